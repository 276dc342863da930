//! The plans of all Services of one family, as far as later plans and onlookers depend on earlier ones: who owns which
//! address, which UDP flows became stale, how many ports and endpoints there are, what health checks answer.
//!
//! Keeps a few bytes per Service, never its plan (UDP ports excepted: their flows are compared).

use std::collections::BTreeSet;

use super::claims::{Claims, Clash};
use super::endpoints::ready_here;
use super::flows::Stale;
use super::{Here, PortPlan, Route, ServicePlan, plan};
use crate::model::{Family, NameMap, NameSet, ObjectName, Protocol, Store};

/// The books of one family.
pub struct Ledger {
    family: Family,
    claims: Claims,
    tallies: NameMap<Tally>,
    total: Tally,
    udp: NameMap<Vec<PortPlan>>,
    health_checks: NameMap<(u16, usize)>,
    changed_health_checks: NameMap<Option<(u16, usize)>>,
    stale: Stale,
}

/// The plans of all Services of a family. Those with external addresses come last, but get their ClusterIPs first: an
/// external address may be somebody's ClusterIP. Else they come in the order of their names. So clashes end the same way
/// after every start.
///
/// Nothing is planned before the first is asked for: a backend may have begun something that goes on beside it by then.
pub struct PlanAll<'a> {
    ledger: &'a mut Ledger,
    store: &'a Store,
    here: &'a Here,
    left: usize,
    names: Option<std::vec::IntoIter<&'a ObjectName>>,
    again: NameSet,
}

/// Numbers that onlookers ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Services with at least one port.
    pub services: u32,
    /// Endpoints, counted for each Service port.
    pub endpoints: u32,
    /// Service ports under internalTrafficPolicy Local with endpoints elsewhere only.
    pub no_local_internal: u32,
    /// The same for externalTrafficPolicy.
    pub no_local_external: u32,
}

// === impl Ledger ===

impl Ledger {
    /// Empty books.
    pub fn new(family: Family) -> Self {
        Self {
            family,
            claims: Claims::default(),
            tallies: NameMap::default(),
            total: Tally::default(),
            udp: NameMap::default(),
            health_checks: NameMap::default(),
            changed_health_checks: NameMap::default(),
            stale: Stale::default(),
        }
    }

    /// Plans these Services in the order of their names, and others that get addresses which these give up, or lose
    /// addresses to them; each once.
    pub fn plan(
        &mut self,
        store: &Store,
        here: &Here,
        names: impl IntoIterator<Item = ObjectName>,
    ) -> Vec<ServicePlan> {
        let mut plans: Vec<ServicePlan> = Vec::new();
        let mut queue: BTreeSet<ObjectName> = names.into_iter().collect();
        let mut once = true;
        let losers = self.reserve(store, &queue);
        queue.extend(losers);
        while let Some(name) = queue.pop_first() {
            let (plan, again) = self.plan_one(store, here, &name);
            plans.push(plan);
            // Whoever got something may wait for more. This ends: to plan again gives nothing up, and takes an address
            // from another only for a ClusterIP, which then nobody takes.
            once &= again.is_empty();
            queue.extend(again);
        }
        if !once {
            // The last plan of each holds.
            let mut seen = NameSet::default();
            plans.reverse();
            plans.retain(|plan| seen.insert(plan.name.clone()));
            plans.reverse();
        }
        plans
    }

    /// Plans all Services, whatever was planned before.
    pub fn plan_all<'a>(&'a mut self, store: &'a Store, here: &'a Here) -> PlanAll<'a> {
        PlanAll { left: store.count_of(self.family), ledger: self, store, here, names: None, again: NameSet::default() }
    }

    /// Gives these Services their ClusterIPs before they are [planned](Self::plan_one). Returns those that lose an address
    /// by that: they have to be planned again.
    fn reserve<'n>(&mut self, store: &Store, names: impl IntoIterator<Item = &'n ObjectName>) -> NameSet {
        let mut losers = NameSet::default();
        for name in names {
            let Some(service) = store.service(name) else { continue };
            let Some(cluster_ip) = service.cluster_ip(self.family) else { continue };
            let ports = service.ports.iter().map(|port| (port.protocol, port.port));
            losers.extend(self.claims.reserve(name, cluster_ip, ports));
        }
        losers
    }

    /// Makes room for so many Services, all in all: tables that double time and again move all that is in them.
    fn expect(&mut self, services: usize) {
        self.tallies.reserve(services.saturating_sub(self.tallies.len()));
        self.claims.expect(services);
    }

    /// Plans one Service; also returns those that have to be planned again because of it.
    fn plan_one(&mut self, store: &Store, here: &Here, name: &ObjectName) -> (ServicePlan, NameSet) {
        let mut plan = plan(name, store.service(name), store.slices(name), self.family, here);
        let again = self.claims.settle(&mut plan);
        self.note_flows(&plan);
        self.note_health_check(store, &plan);
        self.count(&plan);
        (plan, again)
    }

    /// Plans the Services that have owned addresses and have none of the family any more: those are given up.
    pub fn plan_departed(&mut self, store: &Store, here: &Here) {
        let is_served =
            |name: &ObjectName| store.service(name).is_some_and(|service| service.cluster_ip(self.family).is_some());
        let departed: Vec<_> = self.claims.claimants().filter(|name| !is_served(name)).cloned().collect();
        self.plan(store, here, departed);
    }

    /// Numbers over all Services.
    pub fn total(&self) -> Tally {
        self.total
    }

    /// Clashes over addresses that came up since this was last called, and still stand.
    pub fn take_clashes(&mut self) -> Vec<Clash> {
        self.claims.take_clashes()
    }

    /// The flows that became stale since this was last called.
    pub fn take_stale(&mut self) -> Stale {
        std::mem::take(&mut self.stale)
    }

    /// Judges the flows of every Service anew when it is planned next: without rules for a while, some may not have been
    /// translated at all. Where a Service will not be any more, they end.
    pub fn distrust_flows(&mut self) {
        for port in std::mem::take(&mut self.udp).into_values().flatten() {
            self.stale.changed(Some(&port), None);
        }
    }

    /// Health checks that changed since this was last called: port, and ready endpoints on this node (contract 12.3).
    /// `None`: the Service has none any more.
    pub fn take_health_checks(&mut self) -> Vec<(ObjectName, Option<(u16, usize)>)> {
        std::mem::take(&mut self.changed_health_checks).into_iter().collect()
    }

    fn note_flows(&mut self, plan: &ServicePlan) {
        let new: Vec<PortPlan> =
            plan.ports.iter().filter(|port| port.name.protocol == Protocol::Udp).cloned().collect();
        let old = self.udp.remove(&plan.name).unwrap_or_default();
        for port in &new {
            self.stale.changed(old.iter().find(|before| before.name == port.name), Some(port));
        }
        for port in old.iter().filter(|before| new.iter().all(|port| port.name != before.name)) {
            self.stale.changed(Some(port), None);
        }
        if !new.is_empty() {
            self.udp.insert(plan.name.clone(), new);
        }
    }

    fn note_health_check(&mut self, store: &Store, plan: &ServicePlan) {
        let port = plan.health_check_node_port.filter(|_| !plan.ports.is_empty());
        let check = port.map(|port| (port, ready_here(store.slices(&plan.name), self.family)));
        let before = match check {
            Some(check) => self.health_checks.insert(plan.name.clone(), check),
            None => self.health_checks.remove(&plan.name),
        };
        if before != check {
            self.changed_health_checks.insert(plan.name.clone(), check);
        }
    }

    fn count(&mut self, plan: &ServicePlan) {
        let tally = Tally::of(plan);
        let before = match plan.ports.is_empty() {
            true => self.tallies.remove(&plan.name),
            false => self.tallies.insert(plan.name.clone(), tally),
        };
        self.total.replace(before.unwrap_or_default(), tally);
    }
}

// === impl PlanAll ===

impl<'a> PlanAll<'a> {
    /// Those that have to be planned again, because others gave something up.
    pub fn again(self) -> NameSet {
        self.again
    }

    /// Makes everything ready. Returns the Services in the order in which they are planned.
    fn begin(&mut self) -> std::vec::IntoIter<&'a ObjectName> {
        let (mut names, mut last) = (Vec::with_capacity(self.left), Vec::new());
        for (name, service) in self.store.services_of(self.ledger.family) {
            let part = if service.has_external_addresses() { &mut last } else { &mut names };
            // With its text beside it, for to compare names is to go a long way.
            part.push((name.as_str(), name));
        }
        names.sort_unstable();
        last.sort_unstable();
        self.ledger.expect(self.left);
        // Who loses an address by that is planned anyway.
        self.ledger.reserve(self.store, last.iter().map(|(_, name)| *name));
        names.into_iter().chain(last).map(|(_, name)| name).collect::<Vec<_>>().into_iter()
    }
}

impl Iterator for PlanAll<'_> {
    type Item = ServicePlan;

    fn next(&mut self) -> Option<ServicePlan> {
        let names = self.names.take().unwrap_or_else(|| self.begin());
        let name = self.names.insert(names).next()?;
        self.left -= 1;
        self.again.remove(name);
        let (plan, again) = self.ledger.plan_one(self.store, self.here, name);
        self.again.extend(again);
        Some(plan)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

// === impl Tally ===

impl Tally {
    fn of(plan: &ServicePlan) -> Self {
        let count = |wanted: fn(&PortPlan) -> bool| plan.ports.iter().filter(|port| wanted(port)).count() as u32;
        Self {
            services: u32::from(!plan.ports.is_empty()),
            endpoints: plan
                .ports
                .iter()
                .map(|port| if port.cluster.is_empty() { port.local.len() } else { port.cluster.len() } as u32)
                .sum(),
            no_local_internal: count(|port| port.internal == Route::Drop),
            no_local_external: count(|port| port.external == Route::Drop && port.externally_accessible()),
        }
    }

    fn replace(&mut self, old: Self, new: Self) {
        self.services = self.services + new.services - old.services;
        self.endpoints = self.endpoints + new.endpoints - old.endpoints;
        self.no_local_internal = self.no_local_internal + new.no_local_internal - old.no_local_internal;
        self.no_local_external = self.no_local_external + new.no_local_external - old.no_local_external;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{self, EndpointSlice, Event, Service, ServicePort, SlicePort};
    use crate::plan::flows::Flow;

    fn put(store: &mut Store, name: &str, cluster_ip: &str, external: &[&str], protocol: Protocol) -> ObjectName {
        let name = ObjectName::new("ns", name);
        let service = Service {
            cluster_ips: [Some(cluster_ip.parse().unwrap()), None],
            ports: vec![ServicePort { name: "".into(), protocol, port: 53, node_port: 0 }],
            external_ips: external.iter().map(|address| address.parse().unwrap()).collect(),
            ..Service::default()
        };
        store.apply(Event::Service(name.clone(), Some(service)));
        name
    }

    #[test]
    fn who_waits_for_two_gets_both_when_both_go_at_once() {
        let (mut store, here, mut ledger) = (Store::default(), Here::default(), Ledger::new(Family::V4));
        let (x, y) = ("203.0.113.1", "203.0.113.2");
        let a = put(&mut store, "a", "10.96.0.1", &[x], Protocol::Tcp);
        let c = put(&mut store, "c", "10.96.0.3", &[y], Protocol::Tcp);
        ledger.plan(&store, &here, [a.clone(), c.clone()]);
        let b = put(&mut store, "b", "10.96.0.2", &[x, y], Protocol::Tcp);
        assert!(ledger.plan(&store, &here, [b.clone()])[0].ports[0].external_ips.is_empty());
        for name in [&a, &c] {
            store.apply(Event::Service(name.clone(), None));
        }
        let plans = ledger.plan(&store, &here, [a, c]);
        let last = plans.iter().rfind(|plan| plan.name == b).expect("it is planned again");
        assert_eq!(last.ports[0].external_ips.len(), 2, "{:?}", last.ports[0].external_ips);
    }

    #[test]
    fn the_order_of_planning_takes_no_cluster_ip_from_its_owner() {
        let ours: std::net::IpAddr = "10.96.0.7".parse().unwrap();
        for together in [true, false] {
            for order in [["grab", "loot", "web"], ["web", "loot", "grab"], ["loot", "web", "grab"]] {
                let (mut store, here, mut ledger) = (Store::default(), Here::default(), Ledger::new(Family::V4));
                let service = |name| match name {
                    "grab" => ("10.96.0.2", &["10.96.0.7", "203.0.113.1"][..]),
                    "loot" => ("10.96.0.3", &["10.96.0.7"][..]),
                    _ => ("10.96.0.7", &["203.0.113.2"][..]),
                };
                let mut last = NameMap::default();
                let put = |store: &mut Store, name| {
                    let (cluster_ip, external) = service(name);
                    put(store, name, cluster_ip, external, Protocol::Tcp)
                };
                let batches: Vec<Vec<ObjectName>> = match together {
                    true => vec![order.map(|name| put(&mut store, name)).to_vec()],
                    false => order.map(|name| vec![put(&mut store, name)]).to_vec(),
                };
                for names in batches {
                    for plan in ledger.plan(&store, &here, names) {
                        last.insert(plan.name.clone(), plan);
                    }
                }
                for (name, plan) in &last {
                    let addresses: Vec<_> = plan.ports[0].external_addresses().collect();
                    let rest = usize::from(name.name() != "loot");
                    assert!(!addresses.contains(&ours) && addresses.len() == rest, "{order:?} {name}: {addresses:?}");
                }
                let clashes: Vec<String> = ledger.take_clashes().iter().map(ToString::to_string).collect();
                let starts =
                    ["Service ns/grab is not served on 10.96.0.7", "Service ns/loot is not served on 10.96.0.7"];
                assert_eq!(clashes.len(), 2, "{order:?}: {clashes:?}");
                assert!(clashes.iter().zip(starts).all(|(clash, start)| clash.starts_with(start)), "{clashes:?}");
            }
        }
    }

    #[test]
    fn planning_all_takes_no_cluster_ip_from_its_owner() {
        for before in [&[][..], &["grab"], &["web"]] {
            let (mut store, here, mut ledger) = (Store::default(), Here::default(), Ledger::new(Family::V4));
            let put = |store: &mut Store, name| match name {
                "grab" => put(store, name, "10.96.0.2", &["10.96.0.7", "203.0.113.1"], Protocol::Tcp),
                _ => put(store, name, "10.96.0.7", &[], Protocol::Tcp),
            };
            for name in before {
                let name = put(&mut store, name);
                ledger.plan(&store, &here, [name]);
            }
            for name in ["grab", "web"] {
                put(&mut store, name);
            }
            let mut all = ledger.plan_all(&store, &here);
            let plans: Vec<_> = all.by_ref().collect();
            assert!(all.again().is_empty(), "{before:?}");
            let ports: Vec<_> = plans.iter().map(|plan| (plan.name.name(), &plan.ports[0])).collect();
            assert_eq!((ports.len(), ports[0].0), (2, "web"), "{before:?}");
            let left: Vec<_> = ports[1].1.external_addresses().map(|address| address.to_string()).collect();
            assert_eq!(left, ["203.0.113.1"], "{before:?}");
        }
    }

    #[test]
    fn a_clash_of_cluster_ips_ends_the_same_way_after_every_start() {
        let (mut store, here) = (Store::default(), Here::default());
        put(&mut store, "a", "10.96.0.1", &[], Protocol::Tcp);
        put(&mut store, "b", "10.96.0.1", &["203.0.113.1"], Protocol::Tcp);
        put(&mut store, "c", "10.96.0.1", &["203.0.113.2"], Protocol::Tcp);
        let mut ledger = Ledger::new(Family::V4);
        let plans: Vec<_> = ledger.plan_all(&store, &here).collect();
        let ports: Vec<_> = plans.iter().map(|plan| (plan.name.name(), plan.ports.len())).collect();
        assert_eq!(ports, [("a", 0), ("b", 1), ("c", 0)]);
    }

    #[test]
    fn an_address_that_changes_hands_at_once_is_no_clash() {
        let (mut store, here, mut ledger) = (Store::default(), Here::default(), Ledger::new(Family::V4));
        let old = put(&mut store, "old", "10.96.0.1", &["203.0.113.1"], Protocol::Tcp);
        ledger.plan(&store, &here, [old.clone()]);
        store.apply(Event::Service(old.clone(), None));
        let new = put(&mut store, "new", "10.96.0.1", &["203.0.113.1"], Protocol::Tcp);
        let plans = ledger.plan(&store, &here, [old, new.clone()]);
        assert_eq!(ledger.take_clashes(), []);
        let last = plans.iter().rfind(|plan| plan.name == new).expect("it is planned");
        assert_eq!(last.ports[0].external_ips.len(), 1);
    }

    #[test]
    fn what_was_reserved_for_a_service_that_went_is_given_up() {
        let (mut store, here, mut ledger) = (Store::default(), Here::default(), Ledger::new(Family::V4));
        let gone = put(&mut store, "gone", "10.96.0.1", &[], Protocol::Tcp);
        assert!(ledger.reserve(&store, [&gone]).is_empty());
        store.apply(Event::Service(gone, None));
        ledger.plan_departed(&store, &here);
        let new = put(&mut store, "new", "10.96.0.1", &[], Protocol::Tcp);
        assert_eq!(ledger.plan(&store, &here, [new])[0].ports.len(), 1);
    }

    /// It waits for an address that is taken from it again at once.
    #[test]
    fn a_service_is_planned_once_though_it_gets_and_loses() {
        let (mut store, here, mut ledger) = (Store::default(), Here::default(), Ledger::new(Family::V4));
        let c = "203.0.113.1";
        let old = put(&mut store, "a", c, &[], Protocol::Tcp);
        let waits = put(&mut store, "b", "10.96.0.2", &[c], Protocol::Tcp);
        ledger.plan(&store, &here, [old.clone(), waits.clone()]);
        store.apply(Event::Service(old.clone(), None));
        let new = put(&mut store, "w", c, &[], Protocol::Tcp);
        let plans = ledger.plan(&store, &here, [old, new]);
        let ports: Vec<_> = plans.iter().map(|plan| (plan.name.name(), plan.ports.len())).collect();
        assert_eq!(ports, [("a", 0), ("w", 1), ("b", 1)]);
        assert_eq!(plans[2].ports[0].external_addresses().count(), 0);
    }

    #[test]
    fn flows_to_an_address_that_goes_while_all_is_planned_end() {
        let (mut store, here, mut ledger) = (Store::default(), Here::default(), Ledger::new(Family::V4));
        let name = put(&mut store, "dns", "10.96.0.10", &["203.0.113.1"], Protocol::Udp);
        let endpoint = model::Endpoint {
            address: "10.244.0.1".parse().unwrap(),
            ready: true,
            serving: true,
            terminating: false,
            place: model::Place::Elsewhere,
            hinted_node: None,
            hinted_zones: Box::default(),
            weight: None,
        };
        let slice = EndpointSlice {
            service: name.clone(),
            family: Family::V4,
            ports: vec![SlicePort { name: "".into(), protocol: Protocol::Udp, port: 53 }],
            endpoints: vec![endpoint],
            triggered: None,
        };
        store.apply(Event::EndpointSlice(ObjectName::new("ns", "dns-1"), Some(slice)));
        ledger.plan(&store, &here, [name]);
        ledger.take_stale();
        put(&mut store, "dns", "10.96.0.10", &[], Protocol::Udp);
        ledger.distrust_flows();
        assert_eq!(ledger.plan_all(&store, &here).count(), 1);
        let stale = ledger.take_stale();
        let flow = |to: &str| Flow { destination: to.parse().unwrap(), answering: "10.244.0.1:53".parse().unwrap() };
        assert!(stale.is_stale(&flow("203.0.113.1:53")), "it is not served there any more");
        assert!(!stale.is_stale(&flow("10.96.0.10:53")), "it is served there still");
    }

    #[test]
    fn distrusted_flows_are_judged_although_nothing_changed() {
        let (mut store, here, mut ledger) = (Store::default(), Here::default(), Ledger::new(Family::V4));
        let name = put(&mut store, "dns", "10.96.0.10", &[], Protocol::Udp);
        let to: std::net::SocketAddr = "10.96.0.10:53".parse().unwrap();
        let untranslated = Flow { destination: to, answering: to };
        let judged = |ledger: &mut Ledger| {
            ledger.plan(&store, &here, [name.clone()]);
            ledger.take_stale().is_stale(&untranslated)
        };
        assert!(judged(&mut ledger), "a first look");
        ledger.distrust_flows();
        assert!(judged(&mut ledger), "after a time without rules");
    }
}
