//! What one Service port puts into the kernel: its plan, as elements of the shared sets and maps.
//!
//! A pure function of the plan, the port's number and its previous footprint (which tells the slots to keep). The
//! plan's words become elements here; nothing is decided.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::class::{Class, Classes, NO_CLASS};
use super::layout::{LOCAL_OFFSET, NUMBER_BITS, NUMBER_MASK, Set};
use super::record::{Footprint, Records, Shapes, address_bytes, padded_port, read_endpoint, read_number, set_of};
use super::slots::{arrange, settle, shares};
use crate::model::Protocol;
use crate::plan::{Endpoint, PortPlan, Route};

/// Endpoints beyond this have no slot in a group without affinity.
const MAX_PLAIN_SLOTS: usize = LOCAL_OFFSET as usize;
/// Endpoints beyond this have no slot in a group with affinity: the slot has to share 32 bits with the number.
const MAX_STICKY_SLOTS: usize = 1 << (32 - NUMBER_BITS);

/// Lays out a Service port.
///
/// # Errors
/// Says why the port cannot be programmed.
pub fn lay_out(
    plan: &PortPlan,
    number: u32,
    classes: &mut Classes,
    shapes: &Shapes,
    old: &Footprint,
) -> Result<Footprint, String> {
    let mut port = Port { plan, number, classes, shapes, old, records: Records::default() };
    // Endpoints that no address leads to would be found by nobody, after a restart not even by us.
    let external = if plan.externally_accessible() { plan.external } else { Route::Reject };
    let uses_cluster = plan.internal == Route::Cluster || external != Route::Reject;
    let uses_local = plan.internal == Route::Local || external == Route::Local;
    let cluster = if uses_cluster { port.group(&plan.cluster, false)? } else { NO_CLASS };
    let local = if uses_local { port.group(&plan.local, true)? } else { NO_CLASS };
    port.cluster_ip(cluster, local);
    port.external(cluster, local);
    port.source_ranges();
    port.hairpin();
    Ok(port.records.finish())
}

/// The elements of facts that are no Service's: ranges of ClusterIPs, addresses that serve NodePorts.
pub fn of_node(service_cidrs: &[IpNet], node_port_ips: &[IpAddr]) -> Footprint {
    let mut records = Records::default();
    for net in IpNet::aggregate(&service_cidrs.to_vec()) {
        let (first, length) = address_bytes(net.network());
        records.push(Set::ServiceCidrs, &[&first[..length], &[0]]);
        let (mut beyond, _) = address_bytes(net.broadcast());
        if increment(&mut beyond[..length]) {
            records.push(Set::ServiceCidrs, &[&beyond[..length], &[1]]);
        }
    }
    for &address in node_port_ips {
        let (bytes, length) = address_bytes(address);
        records.push(Set::NodePortIps, &[&bytes[..length]]);
    }
    records.finish()
}

/// The number of the Service port that a record belongs to, for sets that are keyed by it or lead to it.
pub fn number_of(record: &[u8], shapes: &Shapes) -> Option<u32> {
    match set_of(record) {
        Set::Endpoints | Set::Draw => Some(read_number(&shapes.key(record)[..4])),
        Set::Slots | Set::LocalSlots => Some(read_number(shapes.key(record)) & NUMBER_MASK),
        set if set.is_counted() => Some(read_number(shapes.data(record)) & NUMBER_MASK),
        _ => None,
    }
}

/// The records that a port's traffic enters by: those that tell its number after a restart.
pub fn entrances(plan: &PortPlan) -> Footprint {
    let mut records = Records::default();
    let protocol = protocol_bytes(plan.name.protocol);
    let zero = [0; 4];
    records.push(Set::Services, &vip_parts(plan.cluster_ip, plan.port, &protocol, &zero).as_slices());
    for address in plan.external_addresses() {
        for set in [Set::External, Set::ExternalLocal] {
            records.push(set, &vip_parts(address, plan.port, &protocol, &zero).as_slices());
        }
    }
    if let Some(port) = plan.node_port {
        for set in [Set::NodePorts, Set::NodePortsLocal] {
            records.push(set, &[&protocol, &padded_port(port), &zero]);
        }
    }
    records.finish()
}

struct Port<'a> {
    plan: &'a PortPlan,
    number: u32,
    classes: &'a mut Classes,
    shapes: &'a Shapes,
    old: &'a Footprint,
    records: Records,
}

/// The parts of a record that is keyed by a virtual address.
struct VipParts<'a> {
    address: ([u8; 16], usize),
    protocol: &'a [u8; 4],
    port: [u8; 4],
    data: &'a [u8],
}

fn vip_parts<'a>(address: IpAddr, port: u16, protocol: &'a [u8; 4], data: &'a [u8]) -> VipParts<'a> {
    VipParts { address: address_bytes(address), protocol, port: padded_port(port), data }
}

fn protocol_bytes(protocol: Protocol) -> [u8; 4] {
    [protocol as u8, 0, 0, 0]
}

fn socket(endpoint: &Endpoint) -> SocketAddr {
    SocketAddr::new(endpoint.address, endpoint.port)
}

/// The slot that an endpoint has if it is free: clients may still be remembered for one that was given up, so nobody should
/// get it who comes instead. The last bits of addresses mostly differ.
fn choice(endpoint: SocketAddr) -> usize {
    let bits = match endpoint.ip() {
        IpAddr::V4(address) => address.to_bits(),
        IpAddr::V6(address) => address.to_bits() as u32,
    };
    bits as usize % MAX_STICKY_SLOTS
}

/// Adds one to a big-endian number; `false` when it overflows.
fn increment(bytes: &mut [u8]) -> bool {
    bytes.iter_mut().rev().any(|byte| {
        *byte = byte.wrapping_add(1);
        *byte != 0
    })
}

// === impl VipParts ===

impl VipParts<'_> {
    fn as_slices(&self) -> [&[u8]; 4] {
        [&self.address.0[..self.address.1], self.protocol, &self.port, self.data]
    }
}

// === impl Port ===

impl Port<'_> {
    /// Gives a group of endpoints their slots; returns what leads to them: class and number.
    fn group(&mut self, endpoints: &[Endpoint], local: bool) -> Result<u32, String> {
        if endpoints.is_empty() {
            return Ok(NO_CLASS);
        }
        let weights: Vec<u16> = endpoints.iter().map(|endpoint| endpoint.weight).collect();
        let wanted = endpoints.iter().map(socket).zip(shares(&weights)).filter(|(_, share)| *share > 0);
        let size = match self.plan.affinity {
            None => self.plain_slots(wanted.collect(), local)?,
            Some(_) => self.sticky_slots(wanted.collect(), local)?,
        };
        let class = Class { local, size: size as u32, affinity: self.plan.affinity };
        let index = self.classes.index(class).ok_or("too many different numbers of endpoints and affinity timeouts")?;
        Ok(index << NUMBER_BITS | self.number)
    }

    fn plain_slots(&mut self, wanted: Vec<(SocketAddr, usize)>, local: bool) -> Result<usize, String> {
        let offset = if local { LOCAL_OFFSET } else { 0 };
        let old = self.old_slots(
            Set::Endpoints,
            |shapes, record| {
                let slot = read_number(&shapes.key(record)[4..]);
                (slot >= LOCAL_OFFSET) == local && slot >= offset
            },
            |shapes, record| (read_number(&shapes.key(record)[4..]) - offset, read_endpoint(shapes.data(record))),
        );
        let slots = arrange(&old, &wanted);
        if slots.len() > MAX_PLAIN_SLOTS {
            return Err(format!("{} endpoints are more than the {MAX_PLAIN_SLOTS} that can be balanced", slots.len()));
        }
        for (slot, endpoint) in slots.iter().enumerate() {
            let slot = (slot as u32 + offset).to_ne_bytes();
            let (address, length) = address_bytes(endpoint.ip());
            let port = padded_port(endpoint.port());
            self.records.push(Set::Endpoints, &[&self.number.to_ne_bytes(), &slot, &address[..length], &port]);
        }
        Ok(slots.len())
    }

    /// With affinity there is one more step: a random index leads to a slot, and slots never change hands.
    fn sticky_slots(&mut self, wanted: Vec<(SocketAddr, usize)>, local: bool) -> Result<usize, String> {
        let seats = self.seats()?;
        let offset = if local { LOCAL_OFFSET } else { 0 };
        let old = self.old_slots(
            Set::Draw,
            |shapes, record| (read_number(&shapes.key(record)[4..]) >= LOCAL_OFFSET) == local,
            |shapes, record| {
                let slot = read_number(shapes.data(record)) >> NUMBER_BITS;
                (read_number(&shapes.key(record)[4..]) - offset, Some(slot))
            },
        );
        let mut seated = Vec::with_capacity(wanted.len());
        let mut shares = Vec::with_capacity(wanted.len());
        for (endpoint, share) in wanted {
            if let Some(slot) = seat_of(&seats, endpoint) {
                seated.push((endpoint, slot as u32));
                shares.push((slot as u32, share));
            }
        }
        let drawn = arrange(&old, &shares);
        let slot_bytes = |slot: u32| (slot << NUMBER_BITS | self.number).to_ne_bytes();
        for (index, slot) in drawn.iter().enumerate() {
            let index = (index as u32 + offset).to_ne_bytes();
            self.records.push(Set::Draw, &[&self.number.to_ne_bytes(), &index, &slot_bytes(*slot)]);
        }
        let set = if local { Set::LocalSlots } else { Set::Slots };
        // One that is not drawn is not remembered either.
        for (endpoint, slot) in seated {
            let (address, length) = address_bytes(endpoint.ip());
            self.records.push(set, &[&slot_bytes(slot), &address[..length], &padded_port(endpoint.port())]);
        }
        Ok(drawn.len())
    }

    /// The seats of all endpoints that some traffic may reach, sorted by endpoint.
    fn seats(&self) -> Result<Vec<(SocketAddr, Option<usize>)>, String> {
        let mut wanted: Vec<SocketAddr> = self.plan.cluster.iter().chain(&self.plan.local).map(socket).collect();
        wanted.sort_unstable();
        wanted.dedup();
        if wanted.len() > MAX_STICKY_SLOTS {
            return Err(format!(
                "{} endpoints are more than the {MAX_STICKY_SLOTS} that affinity can tell apart",
                wanted.len()
            ));
        }
        let slots = self.old.records(self.shapes).filter(|r| matches!(set_of(r), Set::Slots | Set::LocalSlots));
        let mut old: Vec<(SocketAddr, usize)> = slots
            .filter_map(|r| {
                let slot = read_number(self.shapes.key(r)) >> NUMBER_BITS;
                Some((read_endpoint(self.shapes.data(r))?, slot as usize))
            })
            .collect();
        old.sort_unstable();
        Ok(settle(&old, &wanted, choice, MAX_STICKY_SLOTS))
    }

    /// What the previous footprint had in the slots of a set.
    fn old_slots<T: Copy>(
        &self,
        set: Set,
        belongs: impl Fn(&Shapes, &[u8]) -> bool,
        read: impl Fn(&Shapes, &[u8]) -> (u32, Option<T>),
    ) -> Vec<Option<T>> {
        let mut slots = Vec::new();
        for record in self.old.records(self.shapes).filter(|r| set_of(r) == set && belongs(self.shapes, r)) {
            let (slot, item) = read(self.shapes, record);
            let slot = slot as usize;
            if slot < MAX_PLAIN_SLOTS {
                slots.resize(slots.len().max(slot + 1), None);
                slots[slot] = item;
            }
        }
        slots
    }

    fn cluster_ip(&mut self, cluster: u32, local: u32) {
        let (address, length) = address_bytes(self.plan.cluster_ip);
        self.records.push(Set::ClusterIps, &[&address[..length]]);
        let (set, value) = match self.plan.internal {
            Route::Cluster => (Set::Services, cluster),
            Route::Local => (Set::Services, local),
            Route::Reject => return self.vip(Set::NoEndpoints, self.plan.cluster_ip, None),
            Route::Drop => return self.vip(Set::NoLocalEndpoints, self.plan.cluster_ip, None),
        };
        self.vip(set, self.plan.cluster_ip, Some(value));
    }

    fn external(&mut self, cluster: u32, local: u32) {
        let plan = self.plan;
        for address in plan.external_addresses() {
            for (set, value) in external_entries(plan, cluster, local) {
                self.vip(set.0, address, value);
            }
        }
        if let Some(port) = plan.node_port {
            for (set, value) in external_entries(plan, cluster, local) {
                let value = value.map(u32::to_ne_bytes);
                let data = value.as_ref().map_or(&[][..], |value| value);
                self.records.push(set.1, &[&protocol_bytes(plan.name.protocol), &padded_port(port), data]);
            }
        }
    }

    /// Who may use the load balancer IPs. The kernel takes no overlapping ranges, so they are merged.
    fn source_ranges(&mut self) {
        let plan = self.plan;
        if plan.source_ranges.is_empty() {
            return;
        }
        let mut allowed = plan.source_ranges.clone();
        if plan.allow_vip_sources {
            allowed.extend(plan.load_balancer_ips.iter().map(|&ip| IpNet::from(ip)));
        }
        let allowed = IpNet::aggregate(&allowed);
        for &vip in &plan.load_balancer_ips {
            self.vip(Set::Restricted, vip, None);
            let protocol = protocol_bytes(plan.name.protocol);
            for net in &allowed {
                let ((first, length), (last, _)) = (address_bytes(net.network()), address_bytes(net.broadcast()));
                let parts = vip_parts(vip, plan.port, &protocol, &first[..length]);
                let [address, protocol, port, first] = parts.as_slices();
                let range = [address, protocol, port, first, address, protocol, port, &last[..length]];
                self.records.push(Set::AllowedSources, &range);
            }
        }
    }

    /// Endpoints on this node may reach themselves through the Service.
    fn hairpin(&mut self) {
        for endpoint in self.plan.cluster.iter().chain(&self.plan.local).filter(|endpoint| endpoint.place.is_here()) {
            let (address, length) = address_bytes(endpoint.address);
            self.records.push(Set::Hairpin, &[&address[..length], &address[..length]]);
        }
    }

    fn vip(&mut self, set: Set, address: IpAddr, value: Option<u32>) {
        let value = value.map(u32::to_ne_bytes);
        let data = value.as_ref().map_or(&[][..], |value| value);
        let protocol = protocol_bytes(self.plan.name.protocol);
        self.records.push(set, &vip_parts(address, self.plan.port, &protocol, data).as_slices());
    }
}

/// The sets that an external address of a port is in (for addresses and for NodePorts), with their values.
fn external_entries(plan: &PortPlan, cluster: u32, local: u32) -> Vec<((Set, Set), Option<u32>)> {
    const ALL: (Set, Set) = (Set::External, Set::NodePorts);
    const LOCAL: (Set, Set) = (Set::ExternalLocal, Set::NodePortsLocal);
    const NONE: (Set, Set) = (Set::NoEndpoints, Set::NodePortsNoEndpoints);
    const NONE_HERE: (Set, Set) = (Set::NoLocalEndpoints, Set::NodePortsNoLocalEndpoints);
    if plan.external == Route::Reject {
        return vec![(NONE, None)];
    }
    let mut entries = Vec::new();
    if cluster != NO_CLASS {
        entries.push((ALL, Some(cluster)));
    }
    if plan.external_local {
        entries.push((LOCAL, Some(local)));
    }
    if plan.external == Route::Drop {
        entries.push((NONE_HERE, None));
    }
    entries
}

fn seat_of(seats: &[(SocketAddr, Option<usize>)], endpoint: SocketAddr) -> Option<usize> {
    seats.binary_search_by_key(&endpoint, |(seated, _)| *seated).ok().and_then(|at| seats[at].1)
}
