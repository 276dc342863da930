//! Who owns which virtual address: two Services that want the same one must not overwrite each other.
//!
//! A ClusterIP goes before what anybody may write into a Service: its external and load balancer IPs. Among equals, the
//! first to ask gets it. The other is served on what is left, which is said once, and gets the address when it becomes
//! free. Upstream lets the later one win or both mix; a cluster's API server normally prevents a clash of ClusterIPs.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;

use super::{PortPlan, ServicePlan};
use crate::model::{NameMap, NameSet, ObjectName, Protocol};

/// Owners of virtual addresses, for one family.
#[derive(Default)]
pub struct Claims {
    owners: HashMap<Claim, Owner>,
    held: NameMap<Box<[Claim]>>,
    /// Who would like to have what somebody else owns.
    waiting: HashMap<Claim, NameSet>,
    /// The same, by who waits.
    wishes: NameMap<Box<[Claim]>>,
    /// Who began to wait since [`Claims::take_clashes`] was last called.
    news: HashSet<(Claim, ObjectName)>,
}

/// What a plan asked for.
#[derive(Default)]
struct Asked {
    /// What it got.
    holds: Vec<Claim>,
    /// What somebody else owns.
    wishes: Vec<Claim>,
}

/// Who has a virtual address.
struct Owner {
    name: ObjectName,
    right: Right,
}

/// What an address is to the Service that asks for it: the greater takes it from the lesser.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Right {
    /// A NodePort, an external or a load balancer IP.
    External,
    /// Its ClusterIP.
    Cluster,
}

/// A virtual address: `None` is a NodePort on whatever addresses the node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Claim {
    address: Option<IpAddr>,
    protocol: Protocol,
    port: u16,
}

/// An address that a Service cannot have.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Clash {
    loser: ObjectName,
    what: String,
    owner: ObjectName,
}

// === impl Claims ===

impl Claims {
    /// Makes room for the addresses of so many Services in all.
    pub fn expect(&mut self, services: usize) {
        self.owners.reserve(services.saturating_sub(self.owners.len()));
        self.held.reserve(services.saturating_sub(self.held.len()));
    }

    /// Takes a Service's ClusterIP for it before anybody is planned, so that the order of planning does not matter.
    /// Returns Services that have to be planned again, for the addresses were theirs.
    pub fn reserve(
        &mut self,
        name: &ObjectName,
        cluster_ip: IpAddr,
        ports: impl Iterator<Item = (Protocol, u16)>,
    ) -> NameSet {
        let mut again = NameSet::default();
        let mut held = self.held.get_mut(name).map(std::mem::take).unwrap_or_default().into_vec();
        for (protocol, port) in ports.filter(|(_, port)| *port != 0) {
            let claim = Claim { address: Some(cluster_ip), protocol, port };
            if self.take(claim, name, Right::Cluster, &mut again) && !held.contains(&claim) {
                held.push(claim);
            }
        }
        self.hold(name, held);
        again
    }

    /// Removes from a plan what other Services own, and gives up what it wants no more. Returns Services that have to be
    /// planned again: those that waited for what it gave up, and those from which it took something.
    pub fn settle(&mut self, plan: &mut ServicePlan) -> NameSet {
        let mut again = NameSet::default();
        // Taken out of its place, not removed: a table that is removed from and added to for ever grows.
        let before = self.held.get_mut(&plan.name).map(std::mem::take).unwrap_or_default();
        let mut asked = Asked { holds: Vec::with_capacity(plan.ports.len()), wishes: Vec::new() };
        plan.ports.retain_mut(|port| self.settle_port(port, &mut asked, &mut again));
        let Asked { holds, wishes } = asked;
        for claim in before.into_iter().filter(|claim| !holds.contains(claim)) {
            // It may have been taken away.
            if self.owners.get(&claim).is_some_and(|owner| owner.name == plan.name) {
                self.owners.remove(&claim);
                again.extend(self.waiting.remove(&claim).unwrap_or_default());
            }
        }
        self.hold(&plan.name, holds);
        self.wish(&plan.name, wishes);
        again.remove(&plan.name);
        again
    }

    /// Who holds an address, or waits for one.
    pub fn claimants(&self) -> impl Iterator<Item = &ObjectName> {
        self.held.keys().chain(self.wishes.keys().filter(|name| !self.held.contains_key(*name)))
    }

    /// Clashes that came up since this was last called and still stand, in the order of the losers' names.
    pub fn take_clashes(&mut self) -> Vec<Clash> {
        let news = std::mem::take(&mut self.news).into_iter();
        let standing = news.filter(|(claim, loser)| self.waiting.get(claim).is_some_and(|all| all.contains(loser)));
        let mut clashes: Vec<Clash> = standing
            .filter_map(|(claim, loser)| {
                Some(Clash { loser, what: claim.to_string(), owner: self.owners.get(&claim)?.name.clone() })
            })
            .collect();
        clashes.sort_unstable();
        clashes
    }

    fn hold(&mut self, name: &ObjectName, holds: Vec<Claim>) {
        if holds.is_empty() {
            self.held.remove(name);
        } else {
            self.held.insert(name.clone(), holds.into());
        }
    }

    /// From now on a Service waits for these addresses, and for no other.
    fn wish(&mut self, name: &ObjectName, wishes: Vec<Claim>) {
        for claim in self.wishes.remove(name).unwrap_or_default().into_iter().filter(|claim| !wishes.contains(claim)) {
            if let Entry::Occupied(mut waiting) = self.waiting.entry(claim) {
                waiting.get_mut().remove(name);
                if waiting.get().is_empty() {
                    waiting.remove();
                }
            }
        }
        if !wishes.is_empty() {
            self.wishes.insert(name.clone(), wishes.into());
        }
    }

    /// Whether anything is left of the port.
    fn settle_port(&mut self, port: &mut PortPlan, asked: &mut Asked, again: &mut NameSet) -> bool {
        let (protocol, number) = (port.name.protocol, port.port);
        let name = port.name.service.clone();
        let mut get = |address, port, right| self.get(Claim { address, protocol, port }, &name, right, asked, again);
        if number == 0 || !get(Some(port.cluster_ip), number, Right::Cluster) {
            return false;
        }
        // An address that is both is a load balancer IP: its source ranges hold (contract 6.2).
        port.load_balancer_ips.retain(|&ip| get(Some(ip), number, Right::External));
        port.external_ips.retain(|&ip| get(Some(ip), number, Right::External));
        port.node_port = port.node_port.filter(|&node_port| get(None, node_port, Right::External));
        true
    }

    fn get(&mut self, claim: Claim, name: &ObjectName, right: Right, asked: &mut Asked, again: &mut NameSet) -> bool {
        if asked.holds.contains(&claim) {
            return false;
        }
        let got = self.take(claim, name, right, again);
        if got {
            asked.holds.push(claim);
        } else {
            asked.wishes.push(claim);
            if self.waiting.entry(claim).or_default().insert(name.clone()) {
                self.news.insert((claim, name.clone()));
            }
        }
        got
    }

    /// Makes a Service the owner of an address, unless another has at least the same right to it.
    fn take(&mut self, claim: Claim, name: &ObjectName, right: Right, again: &mut NameSet) -> bool {
        let mut entry = match self.owners.entry(claim) {
            Entry::Occupied(entry) => entry,
            Entry::Vacant(entry) => {
                entry.insert(Owner { name: name.clone(), right });
                return true;
            }
        };
        let owner = entry.get_mut();
        if owner.name == *name {
            // Somebody with a greater right may wait.
            if right < std::mem::replace(&mut owner.right, right) {
                again.extend(self.waiting.remove(&claim).unwrap_or_default());
            }
            return true;
        }
        if right <= owner.right {
            return false;
        }
        again.insert(std::mem::replace(owner, Owner { name: name.clone(), right }).name);
        true
    }
}

// === impl Claim ===

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            None => write!(f, "NodePort {}/{}", self.port, self.protocol),
            Some(address) => write!(f, "{} {}/{}", address, self.port, self.protocol),
        }
    }
}

// === impl Clash ===

impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, loser, owner } = self;
        write!(f, "Service {loser} is not served on {what}: Service {owner} has it; give one of them another")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{PortName, Route};

    fn plan(name: &str, ports: &[(&str, u16, Option<u16>)]) -> ServicePlan {
        let name = ObjectName::new("ns", name);
        let ports = ports.iter().enumerate().map(|(index, &(ip, port, node_port))| PortPlan {
            name: PortName { service: name.clone(), port: format!("p{index}").into(), protocol: Protocol::Tcp },
            cluster_ip: ip.parse().unwrap(),
            port,
            external_ips: vec![],
            load_balancer_ips: vec!["198.51.100.1".parse().unwrap()],
            node_port,
            internal: Route::Reject,
            external: Route::Reject,
            external_local: false,
            source_ranges: vec![],
            allow_vip_sources: false,
            affinity: None,
            scheduler: None,
            cluster: vec![],
            local: vec![],
            serving: vec![],
        });
        ServicePlan { ports: ports.collect(), ..ServicePlan::none(&name) }
    }

    /// Names of Services to be planned again.
    fn names(again: &NameSet) -> Vec<&str> {
        let mut names: Vec<_> = again.iter().map(ObjectName::name).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn the_first_keeps_what_both_want_until_it_gives_it_up() {
        let mut claims = Claims::default();
        claims.settle(&mut plan("first", &[("10.0.0.1", 80, Some(30000))]));
        assert!(claims.take_clashes().is_empty());

        let mut second = plan("second", &[("10.0.0.2", 80, Some(30000))]);
        claims.settle(&mut second);
        assert_eq!(claims.take_clashes().len(), 2);
        assert_eq!((second.ports[0].node_port, second.ports[0].load_balancer_ips.len()), (None, 0));
        claims.settle(&mut plan("second", &[("10.0.0.2", 80, Some(30000))]));
        assert!(claims.take_clashes().is_empty(), "it is said once");

        let again = claims.settle(&mut plan("first", &[]));
        assert_eq!(names(&again), ["second"]);
        let mut second = plan("second", &[("10.0.0.2", 80, Some(30000))]);
        claims.settle(&mut second);
        assert!(claims.take_clashes().is_empty());
        assert_eq!(second.ports[0].node_port, Some(30000));
    }

    /// Who waits and goes away is forgotten, and is told again when it comes back.
    #[test]
    fn who_does_not_want_it_any_more_does_not_wait() {
        let mut claims = Claims::default();
        claims.settle(&mut plan("first", &[("10.0.0.1", 80, Some(30000))]));
        for _ in 0..2 {
            claims.settle(&mut plan("second", &[("10.0.0.2", 80, Some(30000))]));
            assert_eq!(claims.take_clashes().len(), 2);
            assert_eq!(claims.claimants().count(), 2);
            claims.settle(&mut plan("second", &[]));
            assert_eq!(claims.claimants().count(), 1);
            assert!(claims.waiting.is_empty() && claims.wishes.is_empty());
        }
        claims.settle(&mut plan("second", &[("10.0.0.2", 80, Some(30000))]));
        claims.settle(&mut plan("second", &[("10.0.0.2", 80, None)]));
        assert_eq!(claims.waiting.len(), 1, "the load balancer IP");
        assert_eq!(names(&claims.settle(&mut plan("first", &[]))), ["second"]);
    }

    /// `a` has it as its ClusterIP, `b` and `c` would have it as an external IP, `d` as its ClusterIP too: whoever comes
    /// first, and whether ClusterIPs are reserved before.
    #[test]
    fn a_cluster_ip_goes_before_an_external_ip() {
        const OURS: &str = "10.0.0.1";
        for (reserved, order, owner) in [
            (false, "ab", "a"),
            (false, "ba", "a"),
            (false, "bca", "a"),
            (false, "cab", "a"),
            (false, "bc", "b"),
            (false, "cb", "c"),
            (false, "bda", "d"),
            (false, "abd", "a"),
            (true, "ba", "a"),
            (true, "bcad", "a"),
            (true, "cbda", "d"),
        ] {
            let wanted = |name: &str| match name {
                "a" | "d" => plan(name, &[(OURS, 80, Some(30000 + u16::from(name.as_bytes()[0])))]),
                _ => {
                    let mut grab = plan(name, &[(if name == "b" { "10.0.0.2" } else { "10.0.0.3" }, 80, None)]);
                    grab.ports[0].external_ips = vec![OURS.parse().unwrap()];
                    grab
                }
            };
            let mut claims = Claims::default();
            let mut queue: std::collections::VecDeque<String> = order.chars().map(String::from).collect();
            for name in queue.iter().filter(|name| reserved && ["a", "d"].contains(&&***name)) {
                assert!(
                    claims
                        .reserve(&ObjectName::new("ns", name), OURS.parse().unwrap(), [(Protocol::Tcp, 80)].into_iter())
                        .is_empty()
                );
            }
            let mut plans: HashMap<String, ServicePlan> = HashMap::new();
            for turn in 0.. {
                let Some(name) = queue.pop_front() else { break };
                let mut plan = wanted(&name);
                let again = claims.settle(&mut plan);
                assert!(!reserved || again.is_empty(), "{order}");
                queue.extend(again.iter().map(|name| name.name().to_owned()));
                plans.insert(name, plan);
                assert!(turn < 2 * order.len(), "{order} ends");
            }
            let ours = |plan: &ServicePlan| {
                plan.ports.iter().any(|port| {
                    port.cluster_ip == OURS.parse::<IpAddr>().unwrap()
                        || port.external_addresses().any(|ip| ip == OURS.parse::<IpAddr>().unwrap())
                })
            };
            let owners: Vec<&String> = plans.iter().filter(|(_, plan)| ours(plan)).map(|(name, _)| name).collect();
            assert_eq!(owners, [owner], "{order}");
            let losers: Vec<String> = claims
                .take_clashes()
                .iter()
                .filter(|clash| clash.what.starts_with("10."))
                .map(|clash| format!("{}<{}", clash.loser.name(), clash.owner.name()))
                .collect();
            let mut expected: Vec<String> = order
                .chars()
                .filter(|name| *name.to_string() != *owner)
                .map(|name| format!("{name}<{owner}"))
                .collect();
            expected.sort_unstable();
            assert_eq!(losers, expected, "{order}");
            for name in ["b", "c"] {
                assert!(plans.get(name).is_none_or(|plan| plan.ports.len() == 1), "{order}: the rest of {name} stays");
            }
        }
    }

    #[test]
    fn who_lost_an_address_does_not_give_it_up_for_its_owner() {
        let mut claims = Claims::default();
        let mut grab = plan("grab", &[("10.0.0.2", 80, None)]);
        grab.ports[0].external_ips = vec!["10.0.0.1".parse().unwrap()];
        claims.settle(&mut grab);
        let web = [("10.0.0.1", 80, None)];
        assert_eq!(names(&claims.settle(&mut plan("web", &web))), ["grab"]);
        assert!(
            claims.settle(&mut plan("grab", &[])).contains(&ObjectName::new("ns", "web")),
            "for the load balancer IP"
        );
        let mut kept = plan("web", &web);
        claims.settle(&mut kept);
        assert_eq!(kept.ports.len(), 1);
        let mut late = plan("late", &web);
        claims.settle(&mut late);
        assert_eq!(late.ports.len(), 0, "web has it still");
    }

    /// The Service whose ClusterIP it was is made anew, and has it as an external IP only.
    #[test]
    fn who_keeps_an_address_by_a_lesser_right_gives_way() {
        let mut claims = Claims::default();
        claims.settle(&mut plan("old", &[("10.0.0.1", 80, None)]));
        claims.settle(&mut plan("new", &[("10.0.0.1", 80, None)]));
        let mut changed = plan("old", &[("10.0.0.2", 80, None)]);
        changed.ports[0].external_ips = vec!["10.0.0.1".parse().unwrap()];
        assert_eq!(names(&claims.settle(&mut changed)), ["new"]);
        let mut new = plan("new", &[("10.0.0.1", 80, None)]);
        assert_eq!(names(&claims.settle(&mut new)), ["old"]);
        assert_eq!(new.ports.len(), 1);
    }

    #[test]
    fn without_its_cluster_ip_a_port_is_nothing() {
        let mut claims = Claims::default();
        claims.settle(&mut plan("first", &[("10.0.0.1", 80, None)]));
        let mut second = plan("second", &[("10.0.0.1", 80, None), ("10.0.0.1", 81, None), ("10.0.0.1", 0, None)]);
        claims.settle(&mut second);
        assert_eq!(second.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [81]);
        assert_eq!(claims.take_clashes().len(), 1);
    }

    #[test]
    fn what_is_external_and_load_balancer_ip_is_the_latter() {
        let mut both = plan("s", &[("10.0.0.1", 80, None)]);
        both.ports[0].external_ips = both.ports[0].load_balancer_ips.clone();
        let mut claims = Claims::default();
        claims.settle(&mut both);
        assert!(claims.take_clashes().is_empty());
        assert_eq!((both.ports[0].external_ips.len(), both.ports[0].load_balancer_ips.len()), (0, 1));
    }

    #[test]
    fn a_service_does_not_clash_with_itself() {
        let mut claims = Claims::default();
        let mut twice = plan("s", &[("10.0.0.1", 80, None), ("10.0.0.1", 80, None)]);
        claims.settle(&mut twice);
        assert!(claims.take_clashes().is_empty());
        assert_eq!(twice.ports.len(), 1);
    }
}
