//! All objects that matter, and what was touched since that was last asked.
//!
//! Slices are kept by Service, so that planning one Service looks at its own slices only.

use std::collections::HashMap;

use ipnet::IpNet;

use super::{EndpointSlice, Event, Family, Kind, NameMap, NameSet, Node, ObjectName, Service};

/// The objects, as the source told of them.
#[derive(Default)]
pub struct Store {
    /// In boxes: a table has up to twice as many places as it is filled, and moves them when it grows.
    services: NameMap<Box<Kept<Service>>>,
    /// How many of them have a ClusterIP of each family.
    served: [usize; 2],
    slices: NameMap<Vec<NamedSlice>>,
    /// Slice → its Service.
    owners: NameMap<ObjectName>,
    node: Option<Node>,
    service_cidrs: HashMap<Box<str>, Kept<Vec<IpNet>>>,
    rounds: [Round; 4],
    dirty: Dirty,
}

/// What changed.
#[derive(Debug, Default)]
pub struct Dirty {
    /// Services that changed themselves or whose endpoints did.
    pub services: NameSet,
    /// This node's object changed.
    pub node: bool,
    /// This node's object was deleted.
    pub node_gone: bool,
    /// The ServiceCIDRs changed.
    pub service_cidrs: bool,
    /// When the changes of slices happened: nanoseconds since the epoch, and the slice's family.
    pub triggers: Vec<(Family, u64)>,
    /// Events of Services that changed something.
    pub service_events: u64,
    /// Events of slices that changed something, by family.
    pub slice_events: [u64; 2],
}

struct NamedSlice {
    name: ObjectName,
    kept: Kept<EndpointSlice>,
}

/// An object with the round in which it was last named.
struct Kept<T> {
    object: T,
    round: u32,
}

/// Complete lists of one kind of object, counted.
#[derive(Clone, Copy, Default)]
struct Round {
    current: u32,
    /// Has come to an end once.
    complete: bool,
    /// Has begun, and not ended.
    open: bool,
}

// === impl Store ===

impl Store {
    /// Takes in what a source tells.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::ListStart(kind) => {
                let round = &mut self.rounds[kind as usize];
                round.current += 1;
                round.open = true;
            }
            Event::ListEnd(kind) => self.end_round(kind),
            Event::Service(name, service) => self.apply_service(name, service),
            Event::EndpointSlice(name, Some(slice)) => self.put_slice(name, slice),
            Event::EndpointSlice(name, None) => self.drop_slice(&name),
            // A deleted Node keeps its last known state (contract 3.6).
            Event::Node(None) => self.dirty.node_gone |= self.node.is_some(),
            Event::Node(node) => {
                if node != self.node {
                    self.node = node;
                    self.dirty.node = true;
                }
            }
            Event::ServiceCidr(name, cidrs) => {
                let round = self.round(Kind::ServiceCidr);
                let known = self.service_cidrs.get(&name).map(|kept| &kept.object);
                self.dirty.service_cidrs |= known != cidrs.as_ref();
                match cidrs {
                    Some(object) => drop(self.service_cidrs.insert(name, Kept { object, round })),
                    None => drop(self.service_cidrs.remove(&name)),
                }
            }
        }
    }

    /// Whether Services and EndpointSlices have been listed completely: before that, nothing may be programmed.
    pub fn is_complete(&self) -> bool {
        self.rounds[Kind::Service as usize].complete && self.rounds[Kind::EndpointSlice as usize].complete
    }

    /// Whether a list of Services or EndpointSlices is being read: what it will not name is still there.
    pub fn is_listing(&self) -> bool {
        self.rounds[Kind::Service as usize].open || self.rounds[Kind::EndpointSlice as usize].open
    }

    /// Whether the Node has been listed, be it there or not.
    pub fn knows_node(&self) -> bool {
        self.rounds[Kind::Node as usize].complete
    }

    /// Whether the ServiceCIDRs have been listed.
    pub fn knows_service_cidrs(&self) -> bool {
        self.rounds[Kind::ServiceCidr as usize].complete
    }

    /// What changed since this was last called.
    pub fn take_dirty(&mut self) -> Dirty {
        std::mem::take(&mut self.dirty)
    }

    /// Whether there is anything to take.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.services.is_empty() || self.dirty.node || self.dirty.node_gone || self.dirty.service_cidrs
    }

    /// Names of all Services.
    pub fn services(&self) -> impl Iterator<Item = &ObjectName> {
        self.services.keys()
    }

    /// How many Services have a ClusterIP of a family.
    pub fn count_of(&self, family: Family) -> usize {
        self.served[family as usize]
    }

    /// All Services that have a ClusterIP of a family.
    pub fn services_of(&self, family: Family) -> impl Iterator<Item = (&ObjectName, &Service)> {
        let all = self.services.iter().map(|(name, kept)| (name, &kept.object));
        all.filter(move |(_, service)| service.cluster_ip(family).is_some())
    }

    /// A Service.
    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.services.get(name).map(|kept| &kept.object)
    }

    /// The slices of a Service.
    pub fn slices(&self, service: &ObjectName) -> impl Iterator<Item = &EndpointSlice> + Clone {
        self.slices.get(service).into_iter().flatten().map(|slice| &slice.kept.object)
    }

    /// This node.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// All ranges that ClusterIPs are taken from.
    pub fn service_cidrs(&self) -> impl Iterator<Item = IpNet> {
        self.service_cidrs.values().flat_map(|kept| kept.object.iter().copied())
    }

    fn round(&self, kind: Kind) -> u32 {
        self.rounds[kind as usize].current
    }

    /// What the list did not name is gone.
    fn end_round(&mut self, kind: Kind) {
        let round = self.round(kind);
        let current = &mut self.rounds[kind as usize];
        (current.complete, current.open) = (true, false);
        match kind {
            Kind::Service => {
                let gone = stale(self.services.iter().map(|(name, kept)| (name, &**kept)), round);
                gone.into_iter().for_each(|name| self.apply_service(name, None));
            }
            Kind::EndpointSlice => {
                let slices = self.slices.values().flatten();
                let gone: Vec<_> =
                    slices.filter(|slice| slice.kept.round != round).map(|slice| slice.name.clone()).collect();
                gone.iter().for_each(|name| self.drop_slice(name));
            }
            Kind::ServiceCidr => {
                for name in stale(self.service_cidrs.iter(), round) {
                    self.service_cidrs.remove(&name);
                    self.dirty.service_cidrs = true;
                }
            }
            Kind::Node => {}
        }
    }

    fn apply_service(&mut self, name: ObjectName, service: Option<Service>) {
        let round = self.round(Kind::Service);
        let known = self.services.get_mut(&name);
        let old = known.as_ref().map_or([None; 2], |kept| kept.object.cluster_ips);
        let new = service.as_ref().map_or([None; 2], |service| service.cluster_ips);
        let changed = match (known, service) {
            (Some(kept), Some(service)) => {
                kept.round = round;
                let changed = kept.object != service;
                kept.object = service;
                changed
            }
            (None, Some(object)) => {
                let name = self.slices.get_key_value(&name).map_or(&name, |(known, _)| known).clone();
                self.services.insert(name, Box::new(Kept { object, round }));
                true
            }
            (Some(_), None) => {
                self.services.remove(&name);
                true
            }
            (None, None) => false,
        };
        for (count, (old, new)) in self.served.iter_mut().zip(old.into_iter().zip(new)) {
            *count = *count + usize::from(new.is_some()) - usize::from(old.is_some());
        }
        if changed {
            self.dirty.service_events += 1;
            self.dirty.services.insert(name);
        }
    }

    fn put_slice(&mut self, name: ObjectName, mut slice: EndpointSlice) {
        if self.owners.get(&name).is_some_and(|owner| *owner != slice.service) {
            self.drop_slice(&name);
        }
        let round = self.round(Kind::EndpointSlice);
        let family = slice.family;
        let service = self.services.get_key_value(&slice.service).map_or(&slice.service, |(known, _)| known).clone();
        // One name for all who mention the Service, whichever of its objects came first.
        slice.service = service.clone();
        // Nearly all Services have one slice.
        let siblings = self.slices.entry(service.clone()).or_insert_with(|| Vec::with_capacity(1));
        // In the order of their names, so that it does not matter which came first.
        match siblings.binary_search_by(|sibling| sibling.name.cmp(&name)) {
            Ok(place) => {
                let sibling = &mut siblings[place];
                sibling.kept.round = round;
                if sibling.kept.object.same_endpoints(&slice) {
                    return;
                }
                self.dirty.triggered(&slice);
                sibling.kept.object = slice;
            }
            Err(place) => {
                self.dirty.triggered(&slice);
                siblings.insert(place, NamedSlice { name: name.clone(), kept: Kept { object: slice, round } });
                self.owners.insert(name, service.clone());
            }
        }
        self.dirty.slice_events[family as usize] += 1;
        self.dirty.services.insert(service);
    }

    fn drop_slice(&mut self, name: &ObjectName) {
        let Some(service) = self.owners.remove(name) else { return };
        if let Some(siblings) = self.slices.get_mut(&service) {
            for gone in siblings.extract_if(.., |sibling| sibling.name == *name) {
                self.dirty.slice_events[gone.kept.object.family as usize] += 1;
            }
            if siblings.is_empty() {
                self.slices.remove(&service);
            }
        }
        self.dirty.services.insert(service);
    }
}

// === impl Dirty ===

impl Dirty {
    fn triggered(&mut self, slice: &EndpointSlice) {
        self.triggers.extend(slice.triggered.map(|at| (slice.family, at)));
    }
}

fn stale<'a, K: Clone + 'a, T: 'a>(objects: impl Iterator<Item = (&'a K, &'a Kept<T>)>, round: u32) -> Vec<K> {
    objects.filter(|(_, kept)| kept.round != round).map(|(name, _)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ObjectName {
        ObjectName::new("ns", name)
    }

    fn slice(service: &str, triggered: u64) -> EndpointSlice {
        let endpoints = vec![];
        EndpointSlice {
            service: name(service),
            family: Family::V4,
            ports: vec![],
            endpoints,
            triggered: Some(triggered),
        }
    }

    fn dirty(store: &mut Store) -> Vec<String> {
        let mut names: Vec<_> = store.take_dirty().services.iter().map(|name| name.name().to_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn only_real_changes_are_dirty() {
        let mut store = Store::default();
        store.apply(Event::Service(name("a"), Some(Service::default())));
        store.apply(Event::EndpointSlice(name("a-1"), Some(slice("a", 1))));
        assert_eq!(dirty(&mut store), ["a"]);
        store.apply(Event::Service(name("a"), Some(Service::default())));
        store.apply(Event::EndpointSlice(name("a-1"), Some(slice("a", 2))));
        store.apply(Event::EndpointSlice(name("unknown"), None));
        assert_eq!(dirty(&mut store), [""; 0]);
    }

    #[test]
    fn slices_are_in_the_order_of_their_names() {
        let mut store = Store::default();
        for (object, triggered) in [("b", 2), ("c", 3), ("a", 1)] {
            store.apply(Event::EndpointSlice(name(object), Some(slice("s", triggered))));
        }
        assert_eq!(store.slices(&name("s")).map(|slice| slice.triggered).collect::<Vec<_>>(), [1, 2, 3].map(Some));
    }

    #[test]
    fn services_are_counted_by_family() {
        let mut store = Store::default();
        let addresses = [
            ("a", ["10.0.0.1", ""], [1, 0]),
            ("b", ["10.0.0.2", "fd00::2"], [2, 1]),
            ("a", ["", "fd00::1"], [1, 2]),
            ("c", ["", ""], [1, 2]),
            ("b", ["10.0.0.2", "fd00::2"], [1, 2]),
        ];
        let counts = |store: &Store| {
            Family::ALL.map(|family| {
                assert_eq!(store.services_of(family).count(), store.count_of(family));
                store.count_of(family)
            })
        };
        for (object, addresses, expected) in addresses {
            let cluster_ips = addresses.map(|address| address.parse().ok());
            store.apply(Event::Service(name(object), Some(Service { cluster_ips, ..Service::default() })));
            assert_eq!(counts(&store), expected, "{object} {addresses:?}");
        }
        store.apply(Event::Service(name("b"), None));
        store.apply(Event::Service(name("b"), None));
        assert_eq!(counts(&store), [0, 1]);
    }

    #[test]
    fn a_slice_may_change_hands() {
        let mut store = Store::default();
        store.apply(Event::EndpointSlice(name("s"), Some(slice("a", 1))));
        dirty(&mut store);
        store.apply(Event::EndpointSlice(name("s"), Some(slice("b", 1))));
        assert_eq!(dirty(&mut store), ["a", "b"]);
        assert_eq!(store.slices(&name("a")).count(), 0);
        assert_eq!(store.slices(&name("b")).count(), 1);
        store.apply(Event::EndpointSlice(name("s"), None));
        assert_eq!(dirty(&mut store), ["b"]);
    }

    #[test]
    fn a_new_list_ends_what_it_does_not_name() {
        let mut store = Store::default();
        for kind in [Kind::Service, Kind::EndpointSlice] {
            store.apply(Event::ListStart(kind));
        }
        for object in ["a", "b"] {
            store.apply(Event::Service(name(object), Some(Service::default())));
            store.apply(Event::EndpointSlice(name(object), Some(slice(object, 1))));
        }
        assert!(!store.is_complete());
        store.apply(Event::ListEnd(Kind::Service));
        store.apply(Event::ListEnd(Kind::EndpointSlice));
        assert!(store.is_complete());
        assert_eq!(dirty(&mut store), ["a", "b"]);

        store.apply(Event::ListStart(Kind::Service));
        store.apply(Event::Service(name("b"), Some(Service::default())));
        store.apply(Event::Service(name("c"), Some(Service::default())));
        assert!(store.is_complete() && store.is_listing());
        store.apply(Event::ListEnd(Kind::Service));
        assert!(!store.is_listing());
        assert_eq!(dirty(&mut store), ["a", "c"]);
        assert!(store.service(&name("a")).is_none());
    }
}
