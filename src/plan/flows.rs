//! Which tracked UDP flows have outlived a change, so that the kernel must forget them (contract 11.1).
//!
//! A tracked flow keeps its translation: without this, a client that goes on sending from one port stays with the
//! endpoint it once got, or with none. Changes are gathered in one [`Stale`] per family and judged together. Must never
//! look at the kernel: it is asked about each flow.
//!
//! Upstream sweeps only when endpoints change and some still serve. Here flows also end when the Service goes, loses an
//! address, or has no endpoint left, so that its clients hear "unreachable" instead of nothing; and a NodePort is looked
//! for on the node's own addresses only, so that flows which pass the node on their way to the same port elsewhere
//! keep their translation.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use super::{Endpoint, PortName, PortPlan};
use crate::model::Protocol;

/// A tracked UDP flow, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Where the client sends to.
    pub destination: SocketAddr,
    /// Who answers: the same as `destination` for a flow that was not translated.
    pub answering: SocketAddr,
}

/// Tells the flows that must be forgotten after all changes it was told of. When a sweep fails, keep it,
/// [`Stale::extend`] it by later changes, and sweep again: what was said last about an address holds.
#[derive(Debug, Default)]
pub struct Stale {
    addresses: HashMap<SocketAddr, Target>,
    node_ports: HashMap<u16, Target>,
    node_addresses: HashSet<IpAddr>,
}

/// What is known of one virtual address and port, or of one NodePort.
#[derive(Debug, Default)]
struct Target {
    /// Who may keep its flows, by Service port; more than one only when Services clash. `None`: the port is not served
    /// there any more.
    keepers: HashMap<PortName, Option<Rc<HashSet<SocketAddr>>>>,
    /// Endpoints that its flows may still go to although its Service port changed or went.
    former: HashSet<SocketAddr>,
}

/// A place that clients send to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Address(SocketAddr),
    NodePort(u16),
}

// === impl Flow ===

impl Flow {
    fn is_translated(&self) -> bool {
        self.destination != self.answering
    }
}

// === impl Stale ===

impl Stale {
    /// Takes note that a Service port changed: `old` is how it was programmed before, `new` how it is now. `None` is a
    /// port that did not exist, or does no longer; a first sync passes `None` for all, which ends the flows that went
    /// stale while nobody looked. Ports of other protocols than UDP, and changes that leave every flow as it is, such
    /// as an additional endpoint, are no news.
    pub fn changed(&mut self, old: Option<&PortPlan>, new: Option<&PortPlan>) {
        let [old, new] = [old, new].map(|plan| plan.filter(|plan| plan.name.protocol == Protocol::Udp));
        if let (Some(old), Some(new)) = (old, new)
            && keeps_all_flows(old, new)
        {
            return;
        }
        if let Some(old) = old {
            for place in places(old) {
                let target = self.target(place);
                target.keepers.insert(old.name.clone(), None);
                target.former.extend(reached(old));
            }
        }
        if let Some(new) = new {
            let keepers = Rc::new(keepers(new));
            for place in places(new) {
                self.target(place).keepers.insert(new.name.clone(), Some(Rc::clone(&keepers)));
            }
        }
    }

    /// Adds what was noted later. A flow to an endpoint that was merely added meanwhile may end too: its next packet is
    /// translated anew.
    pub fn extend(&mut self, later: Self) {
        add(&mut self.addresses, later.addresses);
        add(&mut self.node_ports, later.node_ports);
        self.node_addresses = later.node_addresses;
    }

    /// The node's addresses that accept NodePorts (contract 3.5), for [`Stale::is_stale`]; all of them, as of now.
    pub fn set_node_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.node_addresses = addresses.into_iter().collect();
    }

    /// Whether nothing was noted, so that there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.node_ports.is_empty()
    }

    /// Whether a flow of this family must be forgotten.
    ///
    /// A flow to a virtual address that is served must be answered by one that may keep it; so one that was never
    /// translated goes too. A flow to an address that is served no longer goes if a former endpoint answers it.
    ///
    /// A flow to a NodePort is held to the same if it goes to one of the node's addresses. To any other address,
    /// perhaps one that the node has lost, it goes only if it was translated to a former endpoint of that very port:
    /// nothing but our rules can have done that.
    pub fn is_stale(&self, flow: &Flow) -> bool {
        if let Some(target) = self.addresses.get(&flow.destination) {
            return target.ends(flow);
        }
        let Some(target) = self.node_ports.get(&flow.destination.port()) else { return false };
        if self.node_addresses.contains(&flow.destination.ip()) {
            target.ends(flow)
        } else {
            target.ends_elsewhere(flow)
        }
    }

    fn target(&mut self, place: Place) -> &mut Target {
        match place {
            Place::Address(address) => self.addresses.entry(address).or_default(),
            Place::NodePort(port) => self.node_ports.entry(port).or_default(),
        }
    }
}

// === impl Target ===

impl Target {
    fn keeps(&self, flow: &Flow) -> bool {
        self.keepers.values().flatten().any(|endpoints| endpoints.contains(&flow.answering))
    }

    fn ends(&self, flow: &Flow) -> bool {
        let is_served = self.keepers.values().any(Option::is_some);
        if !is_served { self.ends_elsewhere(flow) } else { !self.keeps(flow) }
    }

    fn ends_elsewhere(&self, flow: &Flow) -> bool {
        flow.is_translated() && self.former.contains(&flow.answering) && !self.keeps(flow)
    }
}

fn add<P: Eq + Hash>(targets: &mut HashMap<P, Target>, later: HashMap<P, Target>) {
    for (place, later) in later {
        let target = targets.entry(place).or_default();
        target.keepers.extend(later.keepers);
        target.former.extend(later.former);
    }
}

/// Whether no flow of the port can have become stale: it is reached at the same places, and whoever its flows may go to
/// may keep them. When that was nobody, there may be flows that were never translated.
fn keeps_all_flows(old: &PortPlan, new: &PortPlan) -> bool {
    let now = keepers(new);
    reached(old).next().is_some() && reached(old).all(|endpoint| now.contains(&endpoint)) && places(old).eq(places(new))
}

/// Who may keep the flows of a port: those who serve, and where nobody does, those who get the new ones, ready as the
/// cluster says (`publishNotReadyAddresses`).
fn keepers(plan: &PortPlan) -> HashSet<SocketAddr> {
    if plan.serving.is_empty() { reached(plan).collect() } else { plan.serving.iter().map(socket).collect() }
}

/// Everyone whom flows of a port may go to: those who get new flows, and those who keep theirs.
fn reached(plan: &PortPlan) -> impl Iterator<Item = SocketAddr> {
    plan.cluster.iter().chain(&plan.local).chain(&plan.serving).map(socket)
}

/// Everywhere that clients can send to.
fn places(plan: &PortPlan) -> impl Iterator<Item = Place> {
    std::iter::once(plan.cluster_ip)
        .chain(plan.external_addresses())
        .map(|ip| Place::Address(SocketAddr::new(ip, plan.port)))
        .chain(plan.node_port.map(Place::NodePort))
}

fn socket(endpoint: &Endpoint) -> SocketAddr {
    SocketAddr::new(endpoint.address, endpoint.port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectName, Place};
    use crate::plan::Route;

    const NODE: &str = "192.0.2.1";

    fn endpoints(list: &str) -> Vec<Endpoint> {
        list.split_ascii_whitespace()
            .map(|text| {
                let socket: SocketAddr = text.parse().unwrap();
                Endpoint { address: socket.ip(), port: socket.port(), place: Place::Elsewhere, weight: 1 }
            })
            .collect()
    }

    fn port(name: &str, cluster_ip: &str, node_port: Option<u16>, serving: &str) -> PortPlan {
        PortPlan {
            name: PortName { service: ObjectName::new("ns", name), port: "u".into(), protocol: Protocol::Udp },
            cluster_ip: cluster_ip.parse().unwrap(),
            port: 53,
            external_ips: vec!["203.0.113.9".parse().unwrap()],
            load_balancer_ips: vec!["198.51.100.7".parse().unwrap()],
            node_port,
            internal: Route::Cluster,
            external: Route::Cluster,
            external_local: false,
            source_ranges: Vec::new(),
            allow_vip_sources: false,
            affinity: None,
            scheduler: None,
            cluster: endpoints(serving),
            local: Vec::new(),
            serving: endpoints(serving),
        }
    }

    fn dns(serving: &str) -> PortPlan {
        port("dns", "10.96.0.10", Some(31000), serving)
    }

    fn flow(destination: &str, answering: &str) -> Flow {
        let answering = if answering == "itself" { destination } else { answering };
        Flow { destination: destination.parse().unwrap(), answering: answering.parse().unwrap() }
    }

    fn stale(old: Option<&PortPlan>, new: Option<&PortPlan>) -> Stale {
        let mut stale = Stale::default();
        stale.set_node_addresses([NODE.parse().unwrap()]);
        stale.changed(old, new);
        stale
    }

    const PLACES: [&str; 4] = ["10.96.0.10:53", "203.0.113.9:53", "198.51.100.7:53", "192.0.2.1:31000"];

    #[test]
    fn flows_end_with_what_they_went_to() {
        for (about, old, new, answering, expected) in [
            ("endpoint replaced", Some("10.1.0.1:53"), Some("10.1.0.2:53"), "10.1.0.1:53", true),
            ("endpoint that stays", Some("10.1.0.1:53 10.1.0.2:53"), Some("10.1.0.2:53"), "10.1.0.2:53", false),
            ("target port changed", Some("10.1.0.1:53"), Some("10.1.0.1:54"), "10.1.0.1:53", true),
            ("scaled to zero", Some("10.1.0.1:53"), Some(""), "10.1.0.1:53", true),
            ("first endpoint, never translated", Some(""), Some("10.1.0.1:53"), "itself", true),
            ("new Service, never translated", None, Some("10.1.0.1:53"), "itself", true),
            ("new Service without endpoints", None, Some(""), "itself", true),
            ("found at the first sync and good", None, Some("10.1.0.1:53"), "10.1.0.1:53", false),
            ("gone while nobody looked", None, Some("10.1.0.1:53"), "10.1.0.9:53", true),
            ("Service deleted", Some("10.1.0.1:53"), None, "10.1.0.1:53", true),
            ("Service deleted, not our flow", Some("10.1.0.1:53"), None, "10.1.0.9:53", false),
            ("Service deleted, never translated", Some("10.1.0.1:53"), None, "itself", false),
        ] {
            let [old, new] = [old, new].map(|serving| serving.map(dns));
            let stale = stale(old.as_ref(), new.as_ref());
            for place in PLACES {
                assert_eq!(stale.is_stale(&flow(place, answering)), expected, "{about}: {place}");
            }
        }
    }

    #[test]
    fn nothing_to_do_means_no_sweep() {
        let one = dns("10.1.0.1:53");
        let two = dns("10.1.0.1:53 10.1.0.2:53");
        let mut tcp = dns("10.1.0.1:53");
        tcp.name.protocol = Protocol::Tcp;
        assert!(Stale::default().is_empty());
        assert!(stale(Some(&one), Some(&two)).is_empty(), "an endpoint more ends no flow");
        assert!(stale(Some(&one), Some(&one)).is_empty());
        assert!(stale(Some(&tcp), None).is_empty(), "TCP connections are never touched");
        assert!(!stale(Some(&two), Some(&one)).is_empty());
        assert!(!stale(Some(&one), None).is_empty());
    }

    #[test]
    fn a_terminating_endpoint_keeps_its_flows_while_it_serves() {
        let old = dns("10.1.0.1:53");
        let mut new = dns("10.1.0.1:53 10.1.0.2:53");
        new.cluster = endpoints("10.1.0.2:53");
        assert!(!stale(Some(&old), Some(&new)).is_stale(&flow("10.96.0.10:53", "10.1.0.1:53")));
        let last = dns("10.1.0.2:53");
        assert!(stale(Some(&new), Some(&last)).is_stale(&flow("10.96.0.10:53", "10.1.0.1:53")));
    }

    #[test]
    fn endpoints_that_are_ready_without_serving_keep_flows_only_where_nobody_serves() {
        let plan = |ready: &str, serving: &str| PortPlan { cluster: endpoints(ready), ..dns(serving) };
        for (about, old, new, expected) in [
            ("it went", ("10.1.0.1:53 10.1.0.2:53", "10.1.0.2:53"), ("10.1.0.2:53", "10.1.0.2:53"), true),
            ("it stays", ("10.1.0.1:53", ""), ("10.1.0.1:53 10.1.0.2:53", ""), false),
            ("it went and nobody serves", ("10.1.0.1:53", ""), ("10.1.0.2:53", ""), true),
            ("another begins to serve", ("10.1.0.1:53", ""), ("10.1.0.1:53 10.1.0.2:53", "10.1.0.2:53"), true),
            ("it ceases to serve", ("10.1.0.1:53", "10.1.0.1:53"), ("10.1.0.1:53", ""), false),
        ] {
            let [old, new] = [old, new].map(|(ready, serving)| plan(ready, serving));
            let stale = stale(Some(&old), Some(&new));
            assert_eq!(stale.is_stale(&flow("10.96.0.10:53", "10.1.0.1:53")), expected, "{about}");
        }
    }

    #[test]
    fn node_ports_are_looked_for_on_this_node_only() {
        let stale = stale(Some(&dns("10.1.0.1:53 10.1.0.3:53 10.1.0.4:31000")), Some(&dns("10.1.0.2:53 10.1.0.3:53")));
        for (about, destination, answering, expected) in [
            ("passing through, not translated", "8.8.8.8:31000", "itself", false),
            ("passing through, translated by others", "8.8.8.8:31000", "10.7.7.7:31000", false),
            ("straight to a former endpoint on that very port", "10.1.0.4:31000", "itself", false),
            ("an address that the node has lost", "192.0.2.250:31000", "10.1.0.1:53", true),
            ("the same, to one that serves", "192.0.2.250:31000", "10.1.0.2:53", false),
            ("the same, to one that serves as before", "192.0.2.250:31000", "10.1.0.3:53", false),
            ("another port of the node", "192.0.2.1:31001", "10.1.0.1:53", false),
            ("a server of the node itself on that port", "192.0.2.1:31000", "itself", true),
            ("a ClusterIP on that port", "10.96.0.77:31000", "10.1.0.5:31000", false),
        ] {
            assert_eq!(stale.is_stale(&flow(destination, answering)), expected, "{about}");
        }
    }

    #[test]
    fn lost_addresses_and_node_ports_end_their_flows_only() {
        let old = dns("10.1.0.1:53");
        let mut new = dns("10.1.0.1:53");
        new.external_ips.clear();
        new.node_port = None;
        let stale = stale(Some(&old), Some(&new));
        for (destination, expected) in
            [("203.0.113.9:53", true), ("192.0.2.1:31000", true), ("10.96.0.10:53", false), ("198.51.100.7:53", false)]
        {
            assert_eq!(stale.is_stale(&flow(destination, "10.1.0.1:53")), expected, "{destination}");
        }
    }

    #[test]
    fn an_address_that_changes_hands_follows_its_new_owner() {
        let mut stale = stale(Some(&port("a", "10.96.0.10", Some(31000), "10.1.0.1:53")), None);
        stale.changed(None, Some(&port("b", "10.96.0.11", Some(31000), "10.2.0.1:53")));
        assert!(stale.is_stale(&flow("203.0.113.9:53", "10.1.0.1:53")));
        assert!(!stale.is_stale(&flow("203.0.113.9:53", "10.2.0.1:53")));
        assert!(stale.is_stale(&flow("192.0.2.1:31000", "10.1.0.1:53")));
        assert!(!stale.is_stale(&flow("192.0.2.1:31000", "10.2.0.1:53")));
    }

    #[test]
    fn what_was_said_last_holds_when_changes_pile_up() {
        let mut stale = stale(Some(&dns("10.1.0.1:53")), Some(&dns("10.1.0.2:53")));
        stale.changed(Some(&dns("10.1.0.2:53")), Some(&dns("10.1.0.3:53")));
        for (answering, expected) in [("10.1.0.1:53", true), ("10.1.0.2:53", true), ("10.1.0.3:53", false)] {
            assert_eq!(stale.is_stale(&flow("10.96.0.10:53", answering)), expected, "{answering}");
        }
        stale.changed(Some(&dns("10.1.0.3:53")), None);
        for answering in ["10.1.0.1:53", "10.1.0.2:53", "10.1.0.3:53"] {
            assert!(stale.is_stale(&flow("10.96.0.10:53", answering)), "{answering}");
        }
    }

    #[test]
    fn what_could_not_be_swept_is_judged_by_what_was_said_later() {
        let [one, two] = ["10.1.0.1:53", "10.1.0.2:53"].map(dns);
        let other = port("other", "10.96.0.11", Some(31000), "10.1.0.9:53");
        let both = |later: Stale| {
            let mut both = stale(Some(&one), Some(&two));
            both.extend(later);
            both
        };
        let same = both(stale(None, None));
        let third = both(stale(Some(&two), Some(&dns("10.1.0.3:53"))));
        let gone = both(stale(Some(&two), None));
        let mut handed_over = both(stale(Some(&two), None));
        handed_over.extend(stale(None, Some(&other)));
        for (about, stale, expected) in [
            ("nothing more", same, [true, false, true, true]),
            ("replaced again", third, [true, true, false, true]),
            ("deleted", gone, [true, true, false, false]),
            ("another Service's", handed_over, [true, true, true, false]),
        ] {
            let answering = ["10.1.0.1:53", "10.1.0.2:53", "10.1.0.3:53", "10.1.0.9:53"];
            let ends = answering.map(|answering| stale.is_stale(&flow("203.0.113.9:53", answering)));
            assert_eq!(ends, expected, "{about}");
            let ends = answering.map(|answering| stale.is_stale(&flow("192.0.2.1:31000", answering)));
            assert_eq!(ends, expected, "{about}, by NodePort");
        }
    }

    #[test]
    fn services_that_clash_protect_each_other() {
        let mut stale = stale(None, Some(&port("a", "10.96.0.10", None, "10.1.0.1:53")));
        stale.changed(None, Some(&port("b", "10.96.0.11", None, "10.2.0.1:53")));
        for (answering, expected) in [("10.1.0.1:53", false), ("10.2.0.1:53", false), ("10.3.0.1:53", true)] {
            assert_eq!(stale.is_stale(&flow("203.0.113.9:53", answering)), expected, "{answering}");
        }
    }
}
