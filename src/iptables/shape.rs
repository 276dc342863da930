//! The rules that do not come from Services: of the chains that all share, and how packets get into these (contract 9.1,
//! 9.3, 9.4).
//!
//! Pure text, written as `iptables-save` prints it, so that what is in the kernel can be compared with what is wanted.
//! Must not know a Service: its rules come from `rules`.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use crate::model::Family;
use crate::plan::{LocalTraffic, NodeFacts, NodePortAddresses};

use super::Options;
use super::probability::Probability;
use super::shared::{CANARY, COUNTERS, DRAW, DRAWN, FIREWALL, MARK_MASQ, Shared, Table};

/// What is masqueraded in the end.
const MASQUERADE: &str =
    "-m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully";

/// A chain that is the same whatever the Services are.
#[derive(Debug, PartialEq, Eq)]
pub struct Fixed {
    /// Where it is.
    pub table: Table,
    /// Its name.
    pub name: Cow<'static, str>,
    /// Its rules, without `-A` and the name.
    pub rules: Vec<String>,
}

/// A rule in a chain of the kernel that leads to one of ours.
#[derive(Debug, PartialEq, Eq)]
pub struct Jump {
    /// Where it is.
    pub table: Table,
    /// The kernel's chain.
    pub from: &'static str,
    /// The chain it leads to.
    pub to: &'static str,
    matches: &'static str,
}

/// What all rules of one family have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    pub(super) facts: NodeFacts,
    pub(super) options: Options,
    /// Rules count into [`COUNTERS`].
    pub(super) counted: bool,
    /// How much of the nat table is left out.
    pub(super) layout: Layout,
}

/// How the nat table says where Services lead. With many of them, what is there is what a change costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layout {
    /// Every endpoint has a chain.
    Full,
    /// Only those endpoints have one that need it.
    Sparse,
    /// Neither do most Services: what many would say alike is said once, and what does not decide about packets, not at
    /// all.
    Drawn,
}

const NEW_EXTERNAL: &str =
    "-m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" ";
const NEW_SERVICE: &str = "-m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" ";
const NEW_FIREWALL: &str = "-m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" ";
const SERVICE: &str = "-m comment --comment \"kubernetes service portals\" ";

/// The jumps in the order in which missing ones are put on top, so that the last one comes first.
const JUMPS: [Jump; 14] = [
    jump(Table::Filter, "INPUT", "KUBE-EXTERNAL-SERVICES", NEW_EXTERNAL),
    jump(Table::Filter, "FORWARD", "KUBE-EXTERNAL-SERVICES", NEW_EXTERNAL),
    jump(Table::Filter, "INPUT", "KUBE-NODEPORTS", "-m comment --comment \"kubernetes health check service ports\" "),
    jump(Table::Filter, "FORWARD", "KUBE-SERVICES", NEW_SERVICE),
    jump(Table::Filter, "OUTPUT", "KUBE-SERVICES", NEW_SERVICE),
    jump(Table::Filter, "FORWARD", "KUBE-FORWARD", "-m comment --comment \"kubernetes forwarding rules\" "),
    jump(Table::Filter, "INPUT", "KUBE-PROXY-FIREWALL", NEW_FIREWALL),
    jump(Table::Filter, "OUTPUT", "KUBE-PROXY-FIREWALL", NEW_FIREWALL),
    jump(Table::Filter, "FORWARD", "KUBE-PROXY-FIREWALL", NEW_FIREWALL),
    jump(Table::Nat, "OUTPUT", "KUBE-SERVICES", SERVICE),
    jump(Table::Nat, "PREROUTING", "KUBE-SERVICES", SERVICE),
    jump(Table::Nat, "POSTROUTING", "KUBE-POSTROUTING", "-m comment --comment \"kubernetes postrouting rules\" "),
    jump(Table::Filter, "INPUT", FIREWALL, ""),
    jump(Table::Filter, "OUTPUT", FIREWALL, ""),
];

const fn jump(table: Table, from: &'static str, to: &'static str, matches: &'static str) -> Jump {
    Jump { table, from, to, matches }
}

/// Whether NodePorts are served on 127.0.0.0/8. Never on `::1`: the kernel has no way to (contract 6.3).
pub fn localhost_node_ports(facts: &NodeFacts, options: Options) -> bool {
    options.localhost_node_ports
        && facts.family == Family::V4
        && match &facts.node_port_addresses {
            NodePortAddresses::All => true,
            NodePortAddresses::Only(addresses) => addresses.iter().any(IpAddr::is_loopback),
        }
}

/// The jumps of a table, the same on every node.
pub fn jumps(table: Table) -> impl Iterator<Item = &'static Jump> {
    JUMPS.iter().filter(move |jump| jump.table == table)
}

// === impl Jump ===

impl fmt::Display for Jump {
    /// The rule, without `-A` but with the name of the chain that it is in.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}-j {}", self.from, self.matches, self.to)
    }
}

// === impl Shape ===

impl Shape {
    /// Rules for a node; they count into [`COUNTERS`] if these are there.
    pub fn new(facts: &NodeFacts, options: Options, counted: bool, layout: Layout) -> Self {
        Self { facts: facts.clone(), options, counted, layout }
    }

    /// Whether NodePorts are served on 127.0.0.0/8.
    pub fn localhost_node_ports(&self) -> bool {
        localhost_node_ports(&self.facts, self.options)
    }

    /// Whether endpoints are drawn for many Services in common.
    pub fn is_drawn(&self) -> bool {
        self.layout == Layout::Drawn
    }

    /// The chains of a table that Services put rules into.
    pub fn shared(&self, table: Table) -> impl Iterator<Item = Shared> {
        let all = Shared::NAMED.into_iter().chain(Shared::drawn().filter(|_| self.is_drawn()));
        all.filter(move |shared| shared.table() == table)
    }

    /// The chains of a table that do not depend on Services.
    pub fn fixed(&self, table: Table) -> Vec<Fixed> {
        let mark = self.facts.masquerade_mark;
        let fixed = |name: &'static str, rules| Fixed { table, name: name.into(), rules };
        let canary = fixed(CANARY, Vec::new());
        match table {
            Table::Mangle => vec![canary],
            Table::Nat => {
                let postrouting = vec![
                    format!("-m mark ! --mark {mark:#x}/{mark:#x} -j RETURN"),
                    format!("-j MARK --set-xmark {mark:#x}/0x0"),
                    MASQUERADE.to_owned(),
                ];
                let mut chains = vec![
                    canary,
                    fixed(MARK_MASQ, vec![format!("-j MARK --set-xmark {mark:#x}/{mark:#x}")]),
                    fixed("KUBE-POSTROUTING", postrouting),
                ];
                chains.extend(DRAWN.filter(|_| self.is_drawn()).map(draw));
                chains
            }
            Table::Filter => {
                let mut chains = vec![canary, fixed("KUBE-FORWARD", self.forward())];
                if self.localhost_node_ports() {
                    // Without this, route_localnet would let neighbours reach what listens on loopback.
                    chains.push(fixed(
                        FIREWALL,
                        vec![
                            "! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet connections\" \
                             -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
                                .to_owned(),
                        ],
                    ));
                }
                chains
            }
        }
    }

    fn forward(&self) -> Vec<String> {
        let mark = self.facts.masquerade_mark;
        let mut rules = Vec::with_capacity(3);
        if !self.options.tcp_be_liberal {
            let counter = if self.counted { nfacct(COUNTERS[0]) } else { String::new() };
            rules.push(format!("-m conntrack --ctstate INVALID {counter}-j DROP"));
        }
        rules.push(format!(
            "-m comment --comment \"kubernetes forwarding rules\" -m mark --mark {mark:#x}/{mark:#x} -j ACCEPT"
        ));
        rules.push(
            "-m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
                .to_owned(),
        );
        rules
    }

    /// The rules that come before those of the Services in a shared chain. Many Services do not ask each by itself who
    /// is to be masqueraded on the way to a ClusterIP: everybody who would be is marked, and whoever turns out to be on
    /// the way elsewhere is not any more ([`Shape::unmark`]). Nor does each draw among its endpoints: that is done for
    /// all that have so many, and leads to the chain in which each has the endpoint of that number.
    pub fn head(&self, chain: Shared) -> Vec<String> {
        if !self.is_drawn() || chain != Shared::Services {
            return Vec::new();
        }
        let mark = self.masquerade().map(|(source, interface)| format!("{source}{interface}-j {MARK_MASQ}"));
        mark.into_iter().chain(DRAWN.map(|of| format!("-j {DRAW}{of}"))).collect()
    }

    /// The rule that takes the mark away that [`Shape::head`] gave, without `-A` and the name.
    pub fn unmark(&self) -> Option<String> {
        let mark = self.facts.masquerade_mark;
        self.masquerade().filter(|_| self.is_drawn()).map(|_| format!("-j MARK --set-xmark 0x0/{mark:#x}"))
    }

    /// The rules that come after those of the Services in a shared chain: node addresses lead to the NodePorts.
    pub fn tail(&self, chain: Shared) -> Vec<String> {
        if chain != Shared::Services {
            Vec::new()
        } else {
            self.unmark().into_iter().chain(self.node_ports()).collect()
        }
    }

    fn node_ports(&self) -> Vec<String> {
        let comment =
            "-m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\"";
        match &self.facts.node_port_addresses {
            NodePortAddresses::All => {
                let except = match self.facts.family {
                    Family::V6 => "! -d ::1/128 ",
                    Family::V4 if !self.localhost_node_ports() => "! -d 127.0.0.0/8 ",
                    Family::V4 => "",
                };
                vec![format!("{except}{comment} -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")]
            }
            NodePortAddresses::Only(addresses) => addresses
                .iter()
                .filter(|address| !address.is_loopback() || self.localhost_node_ports())
                .map(|address| format!("-d {address}/{} {comment} -j KUBE-NODEPORTS", self.facts.family.host_bits()))
                .collect(),
        }
    }

    /// The match for what is masqueraded on the way to a ClusterIP, in two parts as [`Shape::local_match`]. `None`:
    /// nothing is.
    pub(super) fn masquerade(&self) -> Option<(String, String)> {
        if self.facts.masquerade_all { Some(Default::default()) } else { self.local_match(false) }
    }

    /// The match for traffic of this node's pods, or for all other: what stands before the destination address, and
    /// what stands after it. `None` when there is no way to tell.
    pub(super) fn local_match(&self, local: bool) -> Option<(String, String)> {
        let not = if local { "" } else { "! " };
        match &self.facts.local_traffic {
            LocalTraffic::Unknown => None,
            LocalTraffic::Cidr(range) => Some((format!("{not}-s {range} "), String::new())),
            LocalTraffic::Interface(name) => Some((String::new(), format!("{not}-i {name} "))),
            LocalTraffic::InterfacePrefix(prefix) => Some((String::new(), format!("{not}-i {prefix}+ "))),
        }
    }
}

/// The chain that draws one of so many endpoints. Whoever is not on the way to such a Service comes back to where the
/// chain was called.
fn draw(of: u8) -> Fixed {
    let rule = |number| {
        let left = u64::from(of - number) + 1;
        let matching = match left {
            1 => String::new(),
            _ => format!("-m statistic --mode random --probability {} ", Probability { weight: 1, total: left }),
        };
        format!("{matching}-g {}", Shared::of_endpoint(number, of).name())
    };
    Fixed { table: Table::Nat, name: format!("{DRAW}{of}").into(), rules: (1..=of).map(rule).collect() }
}

/// The match that counts, with the two spaces with which it is saved.
pub(super) fn nfacct(counter: &str) -> String {
    format!("-m nfacct --nfacct-name  {counter} ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iptables::shared::is_draw;

    fn shape(family: Family, addresses: NodePortAddresses, localhost_node_ports: bool) -> Shape {
        let facts = NodeFacts {
            family,
            local_traffic: LocalTraffic::Unknown,
            masquerade_all: false,
            masquerade_mark: 0x4000,
            node_port_addresses: addresses,
            host_addresses: vec![],
            service_cidrs: Vec::new(),
        };
        Shape::new(&facts, Options { localhost_node_ports, tcp_be_liberal: false }, false, Layout::Full)
    }

    fn rules(shape: &Shape, table: Table, name: &str) -> Option<Vec<String>> {
        shape.fixed(table).into_iter().find(|chain| chain.name == name).map(|chain| chain.rules)
    }

    #[test]
    fn node_ports_are_on_the_addresses_that_serve_them() {
        use Family::{V4, V6};
        let only = |addresses: &[&str]| NodePortAddresses::Only(addresses.iter().map(|a| a.parse().unwrap()).collect());
        for (family, addresses, localhost, expected) in [
            (V4, NodePortAddresses::All, true, &["@-m addrtype --dst-type LOCAL "][..]),
            (V4, NodePortAddresses::All, false, &["! -d 127.0.0.0/8 @-m addrtype --dst-type LOCAL "]),
            (V6, NodePortAddresses::All, true, &["! -d ::1/128 @-m addrtype --dst-type LOCAL "]),
            (V4, only(&["10.0.0.1", "10.0.0.2"]), true, &["-d 10.0.0.1/32 @", "-d 10.0.0.2/32 @"]),
            (V4, only(&["10.0.0.1", "127.0.0.1"]), true, &["-d 10.0.0.1/32 @", "-d 127.0.0.1/32 @"]),
            (V4, only(&["10.0.0.1", "127.0.0.1"]), false, &["-d 10.0.0.1/32 @"]),
            (V6, only(&["fd00::1", "::1"]), true, &["-d fd00::1/128 @"]),
        ] {
            let shape = shape(family, addresses, localhost);
            let comment = "-m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" ";
            let tail: Vec<_> = shape.tail(Shared::Services).iter().map(|rule| rule.replace(comment, "@")).collect();
            let expected: Vec<_> = expected.iter().map(|rule| format!("{rule}-j KUBE-NODEPORTS")).collect();
            assert_eq!(tail, expected);
        }
    }

    #[test]
    fn each_endpoint_is_drawn_as_often_as_any_other() {
        let mut shape = shape(Family::V4, NodePortAddresses::All, true);
        assert_eq!(rules(&shape, Table::Nat, "KUBE-SVC-3"), None);
        assert!(shape.shared(Table::Nat).all(|shared| !is_draw(&shared.name())));
        shape.layout = Layout::Drawn;
        assert_eq!(
            rules(&shape, Table::Nat, "KUBE-SVC-3").unwrap(),
            [
                "-m statistic --mode random --probability 0.33333333349 -g KUBE-SVC-3-1",
                "-m statistic --mode random --probability 0.50000000000 -g KUBE-SVC-3-2",
                "-g KUBE-SVC-3-3"
            ]
        );
        assert_eq!(shape.shared(Table::Nat).filter(|shared| is_draw(&shared.name())).count(), 35);
    }

    #[test]
    fn loopback_is_guarded_where_it_is_routed() {
        let guarded = |family, addresses, localhost| {
            rules(&shape(family, addresses, localhost), Table::Filter, FIREWALL).is_some()
        };
        assert!(guarded(Family::V4, NodePortAddresses::All, true));
        assert!(!guarded(Family::V4, NodePortAddresses::All, false));
        assert!(!guarded(Family::V4, NodePortAddresses::Only(vec!["10.0.0.1".parse().unwrap()]), true));
        assert!(!guarded(Family::V6, NodePortAddresses::All, true));
    }

    #[test]
    fn invalid_packets_are_dropped_unless_tracking_is_liberal() {
        let mut shape = shape(Family::V4, NodePortAddresses::All, true);
        let first = |shape: &Shape| rules(shape, Table::Filter, "KUBE-FORWARD").unwrap().remove(0);
        assert_eq!(first(&shape), "-m conntrack --ctstate INVALID -j DROP");
        shape.counted = true;
        assert_eq!(
            first(&shape),
            "-m conntrack --ctstate INVALID -m nfacct --nfacct-name  ct_state_invalid_dropped_pkts -j DROP"
        );
        shape.options.tcp_be_liberal = true;
        assert!(first(&shape).ends_with("-m mark --mark 0x4000/0x4000 -j ACCEPT"));
    }

    #[test]
    fn masquerade_takes_its_mark_back() {
        let rules = rules(&shape(Family::V4, NodePortAddresses::All, true), Table::Nat, "KUBE-POSTROUTING").unwrap();
        let [others, mark, masquerade] = &rules[..] else { panic!("{rules:?}") };
        assert_eq!(others, "-m mark ! --mark 0x4000/0x4000 -j RETURN");
        assert_eq!(mark, "-j MARK --set-xmark 0x4000/0x0");
        assert!(masquerade.ends_with("-j MASQUERADE --random-fully"));
    }
}
