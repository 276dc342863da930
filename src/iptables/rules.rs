//! One Service port as chains and rules: pure text, one line per rule, as `iptables-save` prints it (contract 9.3, 9.4).
//!
//! The plan has decided who is served by whom; here it is only said in the language of iptables.
//! Must not run anything nor know what is programmed.

use std::cell::OnceCell;
use std::fmt::{self, Write};
use std::net::IpAddr;
use std::ops::Range;

use crate::model::{Family, Place};
use crate::plan::{Endpoint, PortPlan, Route, ServicePlan};

use super::address::{Host, Socket};
use super::names::{ChainName, Kind, PortChains};
use super::probability::Probability;
use super::shape::{Layout, Shape, nfacct};
use super::shared::{COUNTERS, DRAWN, MARK_MASQ, Shared};

/// Bytes that have room for a target: of an IPv4 endpoint; others may need more.
const TARGET: usize = " -j DNAT --to-destination 255.255.255.255:65535".len();

/// The rules of one Service.
#[derive(Default)]
pub struct Rules {
    /// Its own chains; a chain comes before those that lead to it.
    pub chains: Vec<Chain>,
    /// Its rules in shared chains, without `-A` and the chain's name.
    pub shared: Vec<(Shared, String)>,
    /// How many different endpoints its ports have.
    pub endpoints: usize,
    text: String,
}

/// One of a Service's own chains.
pub struct Chain {
    /// Its name.
    pub name: ChainName,
    text: Range<usize>,
}

/// Writes the rules of one port.
struct Port<'a> {
    rules: &'a mut Rules,
    shape: &'a Shape,
    plan: &'a PortPlan,
    /// Computed when they are asked for: with many Services, most need none.
    chains: OnceCell<PortChains>,
    comments: bool,
}

/// Where a rule that chose an endpoint sends the packet.
enum Target<'a> {
    Chain(ChainName),
    Socket(&'a Endpoint),
}

/// The rules of a Service. Comments of endpoints cost memory in the kernel, and nobody reads thousands of them (contract
/// 9.6).
pub fn rules(shape: &Shape, service: &ServicePlan, comments: bool) -> Rules {
    let mut rules = Rules::default();
    for plan in &service.ports {
        Port { rules: &mut rules, shape, plan, chains: OnceCell::new(), comments }.write();
    }
    if let Some(port) = service.health_check_node_port {
        let rule = format!(
            "-p tcp -m comment --comment \"{} health check node port\" -m tcp --dport {port} -j ACCEPT",
            service.name
        );
        rules.shared.push((Shared::HealthPorts, rule));
    }
    rules
}

// === impl Rules ===

impl Rules {
    /// The lines of a chain, each with its newline.
    pub fn text(&self, chain: &Chain) -> &str {
        &self.text[chain.text.clone()]
    }
}

// === impl Port ===

impl Port<'_> {
    fn write(mut self) {
        let plan = self.plan;
        let external = plan.externally_accessible();
        if self.has_endpoints() {
            self.endpoints();
            if self.is_drawn() {
                return self.drawn();
            }
            let needs_cluster =
                plan.internal == Route::Cluster || external && (plan.external == Route::Cluster || plan.external_local);
            let needs_local = plan.internal == Route::Local || external && plan.external == Route::Local;
            if needs_cluster && !plan.cluster.is_empty() {
                self.balance(Kind::Cluster, &plan.cluster, plan.internal == Route::Cluster);
            }
            if needs_local && !plan.local.is_empty() {
                self.balance(Kind::Local, &plan.local, plan.internal == Route::Local);
            }
        }
        self.cluster_ip();
        if external {
            self.external();
        }
    }

    fn chains(&self) -> &PortChains {
        self.chains.get_or_init(|| PortChains::new(&self.plan.name))
    }

    /// Whether an endpoint is drawn together with those of all Services that have as many: nothing but the ClusterIP
    /// leads to them, and all of them are alike.
    fn is_drawn(&self) -> bool {
        let plan = self.plan;
        let alike = plan.cluster.windows(2).all(|pair| pair[0].weight == pair[1].weight);
        let number = u8::try_from(plan.cluster.len()).unwrap_or(u8::MAX);
        self.shape.is_drawn()
            && plan.internal == Route::Cluster
            && !plan.externally_accessible()
            && plan.affinity.is_none()
            && alike
            && (number == 1 || DRAWN.contains(&number))
    }

    /// The rules of a ClusterIP whose endpoint is drawn: one for each.
    fn drawn(self) {
        let PortPlan { cluster_ip, port, cluster, .. } = self.plan;
        let matching = self.choosing(&self.to(*cluster_ip), "", *port);
        // There are few, or it would not be drawn.
        let of = cluster.len() as u8;
        for (endpoint, number) in cluster.iter().zip(1..) {
            let mut rule = String::with_capacity(matching.len() + TARGET);
            rule.push_str(&matching);
            match self.target(endpoint) {
                Target::Chain(chain) => write!(rule, " -j {chain}"),
                Target::Socket(endpoint) => write!(rule, " -j DNAT --to-destination {}", Socket(endpoint)),
            }
            .expect("writing to a String does not fail");
            self.rules.shared.push((Shared::of_endpoint(number, of), rule));
        }
    }

    fn has_endpoints(&self) -> bool {
        self.plan.internal != Route::Reject || self.plan.externally_accessible() && self.plan.external != Route::Reject
    }

    fn firewalled(&self) -> bool {
        !self.plan.source_ranges.is_empty() && !self.plan.load_balancer_ips.is_empty()
    }

    fn cluster_ip(&mut self) {
        let plan = self.plan;
        let target = match plan.internal {
            Route::Cluster => self.chains().of(Kind::Cluster),
            Route::Local => self.chains().of(Kind::Local),
            Route::Reject | Route::Drop => {
                return self.refuse(Shared::Refused, plan.internal, &self.to(plan.cluster_ip));
            }
        };
        let rule = format!("{} -j {target}", self.choosing(&self.to(plan.cluster_ip), " cluster IP", plan.port));
        self.rules.shared.push((Shared::Services, rule));
    }

    fn external(&mut self) {
        let plan = self.plan;
        let refused = !matches!(plan.external, Route::Cluster | Route::Local);
        if plan.external != Route::Reject {
            self.external_chain();
            let external = self.chains().of(Kind::External);
            for address in &plan.external_ips {
                let rule = format!("{} -j {external}", self.choosing(&self.to(*address), " external IP", plan.port));
                self.rules.shared.push((Shared::Services, rule));
            }
            let entrance = if self.firewalled() { self.firewall() } else { external };
            for address in &plan.load_balancer_ips {
                let rule =
                    format!("{} -j {entrance}", self.choosing(&self.to(*address), " loadbalancer IP", plan.port));
                self.rules.shared.push((Shared::Services, rule));
            }
            if let Some(port) = plan.node_port {
                if self.shape.counted && self.shape.localhost_node_ports() {
                    let matching = self.choosing("-d 127.0.0.0/8 ", "", port);
                    let rule = format!("{matching} {}-j {external}", nfacct(COUNTERS[1]));
                    self.rules.shared.push((Shared::NodePorts, rule));
                }
                let rule = format!("{} -j {external}", self.choosing("", "", port));
                self.rules.shared.push((Shared::NodePorts, rule));
            }
        }
        if refused {
            for address in plan.external_addresses() {
                self.refuse(Shared::RefusedExternal, plan.external, &self.to(address));
            }
            if let Some(port) = plan.node_port {
                let matching = self.matching("", because(plan.external), "-m addrtype --dst-type LOCAL ", port);
                let rule = format!("{matching} -j {}", self.verdict(plan.external));
                self.rules.shared.push((Shared::RefusedExternal, rule));
            }
        }
    }

    /// Packets that are turned away in the filter table.
    fn refuse(&mut self, chain: Shared, route: Route, destination: &str) {
        let rule =
            format!("{} -j {}", self.matching(destination, because(route), "", self.plan.port), self.verdict(route));
        self.rules.shared.push((chain, rule));
    }

    /// The chain of traffic from outside: who is masqueraded, and which endpoints it may reach.
    fn external_chain(&mut self) {
        let plan = self.plan;
        let name = self.chains().of(Kind::External);
        let (cluster, only_local) = (self.chains().of(Kind::Cluster), self.chains().of(Kind::Local));
        let subject = &plan.name;
        let local = self.shape.local_match(true);
        let unmark = self.shape.unmark().filter(|_| plan.external_local);
        self.chain(name, |text| {
            if let Some(rule) = unmark {
                writeln!(text, "-A {name} {rule}")?;
            }
            if !plan.external_local {
                writeln!(text, "-A {name} -m comment --comment \"{subject} from outside\" -j {MARK_MASQ}")?;
            } else if !plan.cluster.is_empty() {
                if let Some((source, interface)) = local {
                    writeln!(
                        text,
                        "-A {name} {source}{interface}-m comment --comment \"{subject} from pods\" -j {cluster}"
                    )?;
                }
                let from_node =
                    format!("-m comment --comment \"{subject} from this node\" -m addrtype --src-type LOCAL");
                writeln!(text, "-A {name} {from_node} -j {MARK_MASQ}")?;
                writeln!(text, "-A {name} {from_node} -j {cluster}")?;
            }
            match plan.external {
                Route::Cluster => writeln!(text, "-A {name} -j {cluster}"),
                Route::Local => writeln!(text, "-A {name} -j {only_local}"),
                Route::Reject | Route::Drop => Ok(()),
            }
        });
    }

    /// The chain that lets allowed sources through to the load balancer IPs; the filter table drops the others.
    fn firewall(&mut self) -> ChainName {
        let plan = self.plan;
        let name = self.chains().of(Kind::Firewall);
        let external = self.chains().of(Kind::External);
        let subject = &plan.name;
        self.chain(name, |text| {
            let comment = format!("-m comment --comment \"{subject} loadbalancer IP\"");
            for range in &plan.source_ranges {
                match range.prefix_len() {
                    0 => writeln!(text, "-A {name} {comment} -j {external}")?,
                    _ => writeln!(text, "-A {name} -s {range} {comment} -j {external}")?,
                }
            }
            if plan.allow_vip_sources {
                for address in &plan.load_balancer_ips {
                    writeln!(text, "-A {name} -s {} {comment} -j {external}", Host(*address))?;
                }
            }
            writeln!(
                text,
                "-A {name} -m comment --comment \"{subject} from elsewhere is dropped by KUBE-PROXY-FIREWALL\""
            )
        });
        for address in &plan.load_balancer_ips {
            let about = format!(" traffic not accepted by {name}");
            let rule = format!("{} -j DROP", self.matching(&self.to(*address), &about, "", plan.port));
            self.rules.shared.push((Shared::Firewalled, rule));
        }
        name
    }

    /// A chain for each endpoint that some traffic may reach.
    fn endpoints(&mut self) {
        let plan = self.plan;
        let only_local = plan.local.iter().filter(|e| !plan.cluster.contains(e));
        for endpoint in plan.cluster.iter().chain(only_local) {
            self.rules.endpoints += 1;
            if !self.has_chain(endpoint) {
                continue;
            }
            let name = self.chains().endpoint(endpoint);
            let comment = self.comment_of(endpoint, false);
            let (protocol, affinity) =
                (plan.name.protocol, plan.affinity.map(|_| Recent { name, family: self.shape.facts.family }));
            self.chain(name, |text| {
                writeln!(text, "-A {name} -s {} {comment}-j {MARK_MASQ}", Host(endpoint.address))?;
                write!(text, "-A {name} -p {protocol} {comment}")?;
                if let Some(recent) = affinity {
                    write!(text, "-m recent --set {recent} ")?;
                }
                writeln!(text, "-m {protocol} -j DNAT --to-destination {}", Socket(endpoint))
            });
        }
    }

    /// The chain that chooses one of the endpoints. `internal`: ClusterIP traffic comes here too.
    fn balance(&mut self, kind: Kind, endpoints: &[Endpoint], internal: bool) {
        let plan = self.plan;
        let name = self.chains().of(kind);
        let chains = self.chains().clone();
        let targets: Vec<_> = endpoints.iter().map(|endpoint| self.target(endpoint)).collect();
        let (family, protocol) = (self.shape.facts.family, plan.name.protocol);
        let masquerade = self.shape.masquerade().filter(|_| internal && !self.shape.is_drawn());
        let masquerade = masquerade.map(|(source, interface)| {
            let destination = format!("{source}-d {} {interface}", Host(plan.cluster_ip));
            format!("{} -j {MARK_MASQ}", self.choosing(&destination, " cluster IP", plan.port))
        });
        let comments: Vec<_> = endpoints.iter().map(|endpoint| self.comment_of(endpoint, true)).collect();
        self.chain(name, |text| {
            if let Some(rule) = masquerade {
                writeln!(text, "-A {name} {rule}")?;
            }
            let even = endpoints.iter().all(|e| e.weight == 0);
            let weight = |endpoint: &Endpoint| if even { 1 } else { u64::from(endpoint.weight) };
            if let Some(seconds) = plan.affinity {
                for (endpoint, comment) in endpoints.iter().zip(&comments).filter(|(endpoint, _)| weight(endpoint) > 0)
                {
                    let target = chains.endpoint(endpoint);
                    let recent = Recent { name: target, family };
                    writeln!(
                        text,
                        "-A {name} {comment}-m recent --rcheck --seconds {seconds} --reap {recent} -j {target}"
                    )?;
                }
            }
            let mut total: u64 = endpoints.iter().map(weight).sum();
            for ((endpoint, target), comment) in endpoints.iter().zip(&targets).zip(&comments) {
                let weight = weight(endpoint);
                if weight == 0 {
                    continue;
                }
                write!(text, "-A {name} ")?;
                if let Target::Socket(_) = target {
                    write!(text, "-p {protocol} ")?;
                }
                write!(text, "{comment}")?;
                if weight < total {
                    write!(text, "-m statistic --mode random --probability {} ", Probability { weight, total })?;
                }
                match target {
                    Target::Chain(chain) => writeln!(text, "-j {chain}")?,
                    Target::Socket(endpoint) => writeln!(text, "-j DNAT --to-destination {}", Socket(endpoint))?,
                }
                total -= weight;
            }
            Ok(())
        });
    }

    /// With many Services, only those endpoints have a chain that need it: those of Services with affinity, and those that
    /// may be sent back to themselves and are then masqueraded: those that may be on this node, and, under external policy
    /// Local, also Pods of other nodes, which come here unmasqueraded. The chain of any other would hold one rule, which is
    /// as well in the Service's chain.
    fn has_chain(&self, endpoint: &Endpoint) -> bool {
        let plan = self.plan;
        self.shape.layout == Layout::Full
            || endpoint.place != Place::Elsewhere
            || plan.affinity.is_some()
            || plan.external_local && plan.externally_accessible()
    }

    fn target<'e>(&self, endpoint: &'e Endpoint) -> Target<'e> {
        if self.has_chain(endpoint) {
            Target::Chain(self.chains().endpoint(endpoint))
        } else {
            Target::Socket(endpoint)
        }
    }

    fn comment_of(&self, endpoint: &Endpoint, arrow: bool) -> String {
        match (self.comments, arrow) {
            (false, _) => String::new(),
            (true, false) => format!("-m comment --comment \"{}\" ", self.plan.name),
            (true, true) => format!("-m comment --comment \"{} -> {}\" ", self.plan.name, Socket(endpoint)),
        }
    }

    fn to(&self, address: IpAddr) -> String {
        format!("-d {} ", Host(address))
    }

    /// In the nat table.
    fn choosing(&self, addresses: &str, about: &str, port: u16) -> String {
        let protocol = self.plan.name.protocol;
        match self.shape.is_drawn() {
            true => format!("{addresses}-p {protocol} -m {protocol} --dport {port}"),
            false => self.matching(addresses, about, "", port),
        }
    }

    fn matching(&self, addresses: &str, about: &str, more: &str, port: u16) -> String {
        let (name, protocol) = (&self.plan.name, self.plan.name.protocol);
        format!("{addresses}-p {protocol} -m comment --comment \"{name}{about}\" {more}-m {protocol} --dport {port}")
    }

    fn verdict(&self, route: Route) -> &'static str {
        match (route, self.shape.facts.family) {
            (Route::Reject, Family::V4) => "REJECT --reject-with icmp-port-unreachable",
            (Route::Reject, Family::V6) => "REJECT --reject-with icmp6-port-unreachable",
            _ => "DROP",
        }
    }

    fn chain(&mut self, name: ChainName, write: impl FnOnce(&mut String) -> fmt::Result) {
        let start = self.rules.text.len();
        write(&mut self.rules.text).expect("writing to a String does not fail");
        self.rules.chains.push(Chain { name, text: start..self.rules.text.len() });
    }
}

fn because(route: Route) -> &'static str {
    if route == Route::Reject { " has no endpoints" } else { " has no local endpoints" }
}

/// The list in which `xt_recent` remembers the clients of an endpoint.
struct Recent {
    name: ChainName,
    family: Family,
}

impl fmt::Display for Recent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mask = match self.family {
            Family::V4 => "255.255.255.255",
            Family::V6 => "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        };
        write!(f, "--name {} --mask {mask} --rsource", self.name)
    }
}

#[cfg(test)]
mod tests;
