//! What was programmed for one family, and what a change of Services changes about it. Pure.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;

use super::filter::{Record, record_of_address, record_of_endpoint, record_of_health_check, records_of};
use super::wanted::{Entrance, LocalEndpoint, Server, Wanted};
use crate::kernel::ipvs::VirtualServer;
use crate::model::ObjectName;

/// What was programmed.
#[derive(Default)]
pub struct State {
    services: HashMap<ObjectName, Wanted>,
    addresses: Counts<IpAddr>,
    local_endpoints: Counts<LocalEndpoint>,
    health_checks: Counts<u16>,
    /// Virtual servers that the kernel did not take, at some time.
    refused: HashSet<VirtualServer>,
    /// Addresses that it did not take, with the reason.
    refused_addresses: HashMap<IpAddr, String>,
    around: Around,
}

/// What the node has, apart from Services.
#[derive(Default)]
pub struct Around {
    /// Index of our device.
    pub device: u32,
    /// Addresses of other devices: these need not be on ours.
    pub elsewhere: HashSet<IpAddr>,
    /// Addresses that serve NodePorts.
    pub node_addresses: Vec<IpAddr>,
}

/// How often each thing is wanted.
struct Counts<T>(HashMap<T, u32>);

/// What a number of changed Services changes.
#[derive(Default)]
pub struct Changes {
    servers: HashMap<Entrance, Change>,
    /// Touched, and whether they were wanted before.
    addresses: HashMap<IpAddr, bool>,
    local_endpoints: HashMap<LocalEndpoint, bool>,
    health_checks: HashMap<u16, bool>,
}

/// The server behind an entrance, before and after.
#[derive(Default)]
pub struct Change {
    /// Before.
    pub before: Option<Rc<Server>>,
    /// After.
    pub after: Option<Rc<Server>>,
}

/// Things that go and things that come.
pub struct Difference<T> {
    /// These go.
    pub gone: Vec<T>,
    /// These come.
    pub added: Vec<T>,
}

// === impl State ===

impl State {
    /// Nothing programmed yet.
    pub fn new(around: Around) -> Self {
        Self { around, ..Self::default() }
    }

    /// Index of our device.
    pub fn device(&self) -> u32 {
        self.around.device
    }

    /// Notes that a Service wants this now.
    pub fn change(&mut self, name: ObjectName, wanted: Wanted, changes: &mut Changes) {
        let before = self.services.remove(&name).unwrap_or_default();
        for (entrance, server) in &before.servers {
            changes.lost(*entrance, server);
        }
        for (entrance, server) in &wanted.servers {
            changes.servers.entry(*entrance).or_default().after = Some(server.clone());
        }
        for (of, up) in [(&wanted, true), (&before, false)] {
            of.addresses().for_each(|address| self.addresses.count(address, up, &mut changes.addresses));
            let endpoints = of.local_endpoints.iter();
            endpoints.for_each(|&endpoint| self.local_endpoints.count(endpoint, up, &mut changes.local_endpoints));
            let health_check = of.health_check.iter();
            health_check.for_each(|&port| self.health_checks.count(port, up, &mut changes.health_checks));
        }
        if wanted != Wanted::default() {
            self.services.insert(name, wanted);
        }
    }

    /// All entrances with their servers.
    pub fn servers(&self) -> impl Iterator<Item = (Entrance, &Rc<Server>)> {
        self.services.values().flat_map(|wanted| &wanted.servers).map(|(entrance, server)| (*entrance, server))
    }

    /// The virtual servers of an entrance.
    pub fn at(&self, entrance: Entrance) -> impl Iterator<Item = VirtualServer> {
        let (one, many, protocol, port) = match entrance {
            Entrance::Address(address, protocol, port) => (Some(address), &[][..], protocol, port),
            Entrance::NodePort(protocol, port) => (None, &self.around.node_addresses[..], protocol, port),
        };
        let addresses = one.into_iter().chain(many.iter().copied());
        addresses.map(move |address| VirtualServer { address, protocol: protocol as u8, port })
    }

    /// Notes that the kernel did not take these.
    pub fn refuse(&mut self, servers: impl Iterator<Item = VirtualServer>) {
        self.refused.extend(servers);
    }

    /// Notes that the kernel was given addresses, and which of them it did not take.
    pub fn attempted(&mut self, addresses: &[IpAddr], refused: Vec<(IpAddr, io::Error)>) {
        addresses.iter().for_each(|address| drop(self.refused_addresses.remove(address)));
        self.refused_addresses.extend(refused.into_iter().map(|(address, why)| (address, why.to_string())));
    }

    /// Addresses that it did not take, with the reason.
    pub fn refused_addresses(&self) -> &HashMap<IpAddr, String> {
        &self.refused_addresses
    }

    /// Whether the kernel holds every virtual server and our device every address, but for those that it once did not
    /// take.
    pub fn is_held(&self, has: impl Fn(&VirtualServer) -> bool, addresses: &HashSet<IpAddr>) -> bool {
        let mut servers = self.servers().flat_map(|(entrance, _)| self.at(entrance));
        servers.all(|at| has(&at) || self.refused.contains(&at))
            && self.addresses().all(|it| addresses.contains(&it) || self.refused_addresses.contains_key(&it))
    }

    /// Addresses that must be on our device.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.0.keys().copied().filter(|address| self.is_ours(address))
    }

    /// All elements of the rules' sets.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        let of_servers = self.servers().flat_map(|(entrance, server)| records_of(entrance, server));
        let of_addresses = self.addresses().map(|address| record_of_address(&address));
        let of_endpoints = self.local_endpoints.0.keys().map(record_of_endpoint);
        let of_health_checks = self.health_checks.0.keys().map(record_of_health_check);
        of_servers.chain(of_addresses).chain(of_endpoints).chain(of_health_checks)
    }

    fn is_ours(&self, address: &IpAddr) -> bool {
        !self.around.elsewhere.contains(address)
    }
}

// === impl Counts ===

impl<T: Copy + Eq + Hash> Counts<T> {
    /// Counts one up or down, and notes in `touched` whether the thing was wanted before.
    fn count(&mut self, thing: T, up: bool, touched: &mut HashMap<T, bool>) {
        touched.entry(thing).or_insert_with(|| self.0.contains_key(&thing));
        match self.0.entry(thing) {
            Entry::Occupied(mut count) if up => *count.get_mut() += 1,
            Entry::Occupied(count) if *count.get() == 1 => {
                count.remove();
            }
            Entry::Occupied(mut count) => *count.get_mut() -= 1,
            Entry::Vacant(count) => {
                count.insert(1);
            }
        }
    }

    fn difference(&self, touched: &HashMap<T, bool>) -> Difference<T> {
        let changed = touched.iter().filter(|(thing, before)| self.0.contains_key(thing) != **before);
        Difference::split(changed.map(|(thing, before)| (*thing, !before)))
    }
}

impl<T> Default for Counts<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

// === impl Changes ===

impl Changes {
    /// Every entrance that was touched and differs.
    pub fn servers(&self) -> impl Iterator<Item = (Entrance, &Change)> {
        self.servers.iter().filter(|(_, change)| change.before != change.after).map(|(at, change)| (*at, change))
    }

    /// Addresses that come to our device and go from it.
    pub fn addresses(&self, state: &State) -> Difference<IpAddr> {
        let mut difference = state.addresses.difference(&self.addresses);
        difference.gone.retain(|address| state.is_ours(address));
        difference.added.retain(|address| state.is_ours(address));
        difference
    }

    /// Elements of the rules' sets that come and go.
    pub fn records(&self, state: &State) -> Difference<Record> {
        let mut all = Difference::split([]);
        for (entrance, change) in self.servers() {
            let of = |server: &Option<Rc<Server>>| -> HashSet<Record> {
                server.iter().flat_map(|server| records_of(entrance, server)).collect()
            };
            let (before, after) = (of(&change.before), of(&change.after));
            all.gone.extend(before.difference(&after).cloned());
            all.added.extend(after.difference(&before).cloned());
        }
        all.extend(self.addresses(state), record_of_address);
        all.extend(state.local_endpoints.difference(&self.local_endpoints), record_of_endpoint);
        all.extend(state.health_checks.difference(&self.health_checks), record_of_health_check);
        all
    }

    /// An entrance does not lead to this server any more; but it may lead to another Service's by now.
    fn lost(&mut self, entrance: Entrance, server: &Rc<Server>) {
        let change = self.servers.entry(entrance).or_default();
        if change.after.as_ref().is_some_and(|after| Rc::ptr_eq(after, server)) {
            change.after = None;
        } else if change.before.is_none() {
            change.before = Some(server.clone());
        }
    }
}

// === impl Difference ===

impl<T> Difference<T> {
    fn split(items: impl IntoIterator<Item = (T, bool)>) -> Self {
        let (mut gone, mut added) = (Vec::new(), Vec::new());
        items.into_iter().for_each(|(item, comes)| if comes { added.push(item) } else { gone.push(item) });
        Self { gone, added }
    }

    fn extend<U>(&mut self, other: Difference<U>, as_item: impl Fn(&U) -> T) {
        self.gone.extend(other.gone.iter().map(&as_item));
        self.added.extend(other.added.iter().map(&as_item));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipvs::scheduler::Scheduler;
    use crate::model::Protocol;
    use crate::plan::{PortName, PortPlan, Route, ServicePlan};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn at(address: &str, port: u16) -> VirtualServer {
        VirtualServer { address: ip(address), protocol: Protocol::Tcp as u8, port }
    }

    /// One Service with a ClusterIP, an external IP that is the node's own, and a NodePort.
    fn state() -> State {
        let name = ObjectName::new("ns", "s");
        let port = PortPlan {
            name: PortName { service: name.clone(), port: "".into(), protocol: Protocol::Tcp },
            cluster_ip: ip("10.96.0.1"),
            port: 80,
            external_ips: vec![ip("192.0.2.1")],
            load_balancer_ips: vec![],
            node_port: Some(30080),
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
        };
        let node_addresses = vec![ip("192.0.2.1"), ip("192.0.2.2")];
        let elsewhere = node_addresses.iter().copied().collect();
        let mut state = State::new(Around { device: 1, elsewhere, node_addresses });
        let plan = ServicePlan { ports: vec![port], ..ServicePlan::none(&name) };
        let wanted = Wanted::new(&plan, |_| Scheduler::parse("rr").unwrap());
        state.change(name, wanted, &mut Changes::default());
        state
    }

    #[test]
    fn a_single_loss_is_seen() {
        let all = [at("10.96.0.1", 80), at("192.0.2.1", 80), at("192.0.2.1", 30080), at("192.0.2.2", 30080)];
        let addresses = HashSet::from([ip("10.96.0.1"), ip("10.96.0.99")]);
        let mut state = state();
        assert!(state.is_held(|at| all.contains(at), &addresses));
        assert!(!state.is_held(|at| all.contains(at), &HashSet::new()));
        for lost in all {
            assert!(!state.is_held(|at| *at != lost && all.contains(at), &addresses), "{lost:?}");
        }
        // What the kernel never had is not lost.
        state.refuse([all[1]].into_iter());
        assert!(state.is_held(|at| *at != all[1] && all.contains(at), &addresses));
    }
}
