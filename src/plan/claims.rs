//! Who owns which virtual address: two Services that want the same one must not overwrite each other.
//!
//! The first to ask gets it. The other is served on what is left, which is said once, and gets the address when it
//! becomes free. Upstream lets the later one win or both mix; a cluster's API server normally prevents the clash.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use super::{PortPlan, ServicePlan};
use crate::model::{NameMap, NameSet, ObjectName, Protocol};

/// Owners of virtual addresses, for one family.
#[derive(Default)]
pub struct Claims {
    owners: HashMap<Claim, ObjectName>,
    held: NameMap<Box<[Claim]>>,
    /// Who would like to have what somebody else owns.
    waiting: HashMap<Claim, NameSet>,
}

/// A virtual address: `None` is a NodePort on whatever addresses the node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Claim {
    address: Option<IpAddr>,
    protocol: Protocol,
    port: u16,
}

/// A clash that came up.
#[derive(Debug, PartialEq, Eq)]
pub struct Clash {
    what: String,
    loser: ObjectName,
    owner: ObjectName,
}

/// What settling a Service's claims led to.
#[derive(Debug, Default)]
pub struct Settled {
    /// Addresses that it cannot have.
    pub clashes: Vec<Clash>,
    /// Services that waited for what it gave up: they have to be planned again.
    pub freed: NameSet,
}

// === impl Claims ===

impl Claims {
    /// Makes room for the addresses of so many Services in all.
    pub fn expect(&mut self, services: usize) {
        self.owners.reserve(services.saturating_sub(self.owners.len()));
        self.held.reserve(services.saturating_sub(self.held.len()));
    }

    /// Removes from a plan what other Services own, and gives up what it wants no more.
    pub fn settle(&mut self, plan: &mut ServicePlan) -> Settled {
        let mut settled = Settled::default();
        // Taken out of its place, not removed: a table that is removed from and added to for ever grows.
        let before = self.held.get_mut(&plan.name).map(std::mem::take).unwrap_or_default();
        let mut holds = Vec::new();
        plan.ports.retain_mut(|port| self.settle_port(port, &mut holds, &mut settled));
        for claim in before.into_iter().filter(|claim| !holds.contains(claim)) {
            self.owners.remove(&claim);
            settled.freed.extend(self.waiting.remove(&claim).unwrap_or_default());
        }
        if holds.is_empty() {
            self.held.remove(&plan.name);
        } else {
            self.held.insert(plan.name.clone(), holds.into());
        }
        settled.freed.remove(&plan.name);
        settled
    }

    /// Whether anything is left of the port.
    fn settle_port(&mut self, port: &mut PortPlan, holds: &mut Vec<Claim>, settled: &mut Settled) -> bool {
        let (protocol, number) = (port.name.protocol, port.port);
        let name = port.name.service.clone();
        let mut get = |address, port| self.get(Claim { address, protocol, port }, &name, holds, settled);
        if number == 0 || !get(Some(port.cluster_ip), number) {
            return false;
        }
        // An address that is both is a load balancer IP: its source ranges hold (contract 6.2).
        port.load_balancer_ips.retain(|&ip| get(Some(ip), number));
        port.external_ips.retain(|&ip| get(Some(ip), number));
        port.node_port = port.node_port.filter(|&node_port| get(None, node_port));
        true
    }

    fn get(&mut self, claim: Claim, name: &ObjectName, holds: &mut Vec<Claim>, settled: &mut Settled) -> bool {
        let owner = self.owners.entry(claim).or_insert_with(|| name.clone());
        if owner == name {
            let twice = holds.contains(&claim);
            if !twice {
                holds.push(claim);
            }
            return !twice;
        }
        if self.waiting.entry(claim).or_default().insert(name.clone()) {
            settled.clashes.push(Clash { what: claim.to_string(), loser: name.clone(), owner: owner.clone() });
        }
        false
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

    #[test]
    fn the_first_keeps_what_both_want_until_it_gives_it_up() {
        let mut claims = Claims::default();
        let mut first = plan("first", &[("10.0.0.1", 80, Some(30000))]);
        assert!(claims.settle(&mut first).clashes.is_empty());

        let mut second = plan("second", &[("10.0.0.2", 80, Some(30000))]);
        let settled = claims.settle(&mut second);
        assert_eq!(settled.clashes.len(), 2, "{settled:?}");
        assert_eq!((second.ports[0].node_port, second.ports[0].load_balancer_ips.len()), (None, 0));
        let again = claims.settle(&mut plan("second", &[("10.0.0.2", 80, Some(30000))]));
        assert!(again.clashes.is_empty(), "it is said once");

        let settled = claims.settle(&mut plan("first", &[]));
        assert_eq!(settled.freed.iter().map(ObjectName::name).collect::<Vec<_>>(), ["second"]);
        let mut second = plan("second", &[("10.0.0.2", 80, Some(30000))]);
        assert!(claims.settle(&mut second).clashes.is_empty());
        assert_eq!(second.ports[0].node_port, Some(30000));
    }

    #[test]
    fn without_its_cluster_ip_a_port_is_nothing() {
        let mut claims = Claims::default();
        claims.settle(&mut plan("first", &[("10.0.0.1", 80, None)]));
        let mut second = plan("second", &[("10.0.0.1", 80, None), ("10.0.0.1", 81, None), ("10.0.0.1", 0, None)]);
        let settled = claims.settle(&mut second);
        assert_eq!(second.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [81]);
        assert_eq!(settled.clashes.len(), 1);
    }

    #[test]
    fn what_is_external_and_load_balancer_ip_is_the_latter() {
        let mut both = plan("s", &[("10.0.0.1", 80, None)]);
        both.ports[0].external_ips = both.ports[0].load_balancer_ips.clone();
        assert!(Claims::default().settle(&mut both).clashes.is_empty());
        assert_eq!((both.ports[0].external_ips.len(), both.ports[0].load_balancer_ips.len()), (0, 1));
    }

    #[test]
    fn a_service_does_not_clash_with_itself() {
        let mut claims = Claims::default();
        let mut twice = plan("s", &[("10.0.0.1", 80, None), ("10.0.0.1", 80, None)]);
        assert!(claims.settle(&mut twice).clashes.is_empty());
        assert_eq!(twice.ports.len(), 1);
    }
}
