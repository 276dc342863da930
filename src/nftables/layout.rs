//! The ruleset that all Services share: sets, maps, chains and rules. How many there are does not depend on how many
//! Services exist; a Service is nothing but elements (see [`super::footprint`]).
//!
//! # A packet's way
//!
//! The first packet of a connection looks its destination up in `services` (ClusterIPs), `external` (external and load
//! balancer IPs) or `node-ports`. What it finds is a 32-bit number that travels with the packet in `meta priority`:
//! the upper 12 bits are a *class* (which group of endpoints, how many, with affinity or not), the lower 20 bits the
//! *number* of the Service port. `dispatch` goes to the chain of the class, which draws a slot and looks up
//! number . slot in `endpoints`. The only verdict map is `classes`, and it has an element per class, not per Service:
//! the kernel validates a table anew whenever a verdict is added, at a cost that grows with its verdict maps.
//!
//! `meta priority` is a scratch register here. Forwarding sets it from the packet's TOS afterwards, in IPv4; in IPv6
//! `filter-forward` clears it, and for packets of this host `filter-output` does. Only the first packet of a connection
//! ever sees these chains.

use nftables::expr::MetaKey;

use crate::kernel::nftables::{Data, Field, Hook, SetSpec, TableFamily};
use crate::kernel::nftchains::{ADDRESS, Chain, PAIR, PORT, VIP, VIP_AND_SOURCE};
use crate::kernel::nftrule::Step;
use crate::kernel::nftwords::*;
use crate::model::Family;
use crate::plan::{LocalTraffic, NodeFacts, NodePortAddresses};

/// The table's name, in both families (contract 8.2).
pub const TABLE: &str = "kube-proxy";
/// The table's comment.
pub const TABLE_COMMENT: &str = "rules for kube-proxy";

/// Bits of `meta priority` that hold the number of a Service port; above them is the class, or a slot.
pub const NUMBER_BITS: u32 = 20;
/// The mask of these bits.
pub const NUMBER_MASK: u32 = (1 << NUMBER_BITS) - 1;
/// In `endpoints`, the slots of node-local endpoints begin here.
pub const LOCAL_OFFSET: u32 = 1 << 16;

/// The sets and maps; the value is the index into [`sets`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Set {
    /// ClusterIP and port → class and number.
    Services,
    /// External or load balancer IP and port → class and number of the cluster-wide endpoints.
    External,
    /// The same under externalTrafficPolicy Local → class and number of the local endpoints.
    ExternalLocal,
    /// NodePort → class and number of the cluster-wide endpoints.
    NodePorts,
    /// The same under externalTrafficPolicy Local → class and number of the local endpoints.
    NodePortsLocal,
    /// Class → chain.
    Classes,
    /// Number and slot → endpoint.
    Endpoints,
    /// With affinity: number and a random index → slot and number.
    Draw,
    /// With affinity: slot and number → endpoint.
    Slots,
    /// With affinity: slot and number → endpoint, node-local ones only.
    LocalSlots,
    /// Client and number → slot and number. Filled by packets.
    Affinity,
    /// Every ClusterIP.
    ClusterIps,
    /// Ranges that ClusterIPs are taken from.
    ServiceCidrs,
    /// Virtual addresses without any endpoint.
    NoEndpoints,
    /// Virtual addresses under policy Local, without an endpoint on this node.
    NoLocalEndpoints,
    /// NodePorts without any endpoint.
    NodePortsNoEndpoints,
    /// NodePorts under policy Local, without an endpoint on this node.
    NodePortsNoLocalEndpoints,
    /// Load balancer IPs with loadBalancerSourceRanges.
    Restricted,
    /// Who may use these.
    AllowedSources,
    /// Endpoints on this node, each paired with itself.
    Hairpin,
    /// Addresses of this node that serve NodePorts.
    NodePortIps,
}

const ENDPOINT: [&[Field]; 2] = [&[Field::Ipv4Addr, Field::InetService], &[Field::Ipv6Addr, Field::InetService]];
const CLIENT: [&[Field]; 2] = [&[Field::Ipv4Addr, Field::ClassId], &[Field::Ipv6Addr, Field::ClassId]];
const NUMBER: &[Field] = &[Field::ClassId];
const NUMBER_AND_SLOT: &[Field] = &[Field::ClassId, Field::Mark];

/// Clients that are remembered, all Services together. Beyond that, connections are balanced without memory.
const AFFINITY_SIZE: u32 = 1 << 18;

/// Number of sets and maps.
pub const SET_COUNT: usize = Set::ALL.len();

/// All sets and maps of a family, in the order of [`Set`].
pub fn sets(family: Family) -> [SetSpec; SET_COUNT] {
    let f = family as usize;
    Set::ALL.map(|set| {
        let (name, key, data, comment) = match set {
            Set::Services => ("services", VIP[f], Some(NUMBER), "ClusterIP . port : class and number of the Service"),
            Set::External => ("external", VIP[f], Some(NUMBER), "external and load balancer IPs, all endpoints"),
            Set::ExternalLocal => {
                ("external-local", VIP[f], Some(NUMBER), "the same under policy Local, local endpoints")
            }
            Set::NodePorts => ("node-ports", PORT, Some(NUMBER), "NodePorts, all endpoints"),
            Set::NodePortsLocal => {
                ("node-ports-local", PORT, Some(NUMBER), "NodePorts under policy Local, local endpoints")
            }
            Set::Classes => ("classes", NUMBER, None, "class : how to choose an endpoint"),
            Set::Endpoints => (
                "endpoints",
                NUMBER_AND_SLOT,
                Some(ENDPOINT[f]),
                "number . slot : endpoint, local ones from 0x10000 on",
            ),
            Set::Draw => ("draw", NUMBER_AND_SLOT, Some(NUMBER), "with affinity: number . random : slot"),
            Set::Slots => ("slots", NUMBER, Some(ENDPOINT[f]), "with affinity: slot : endpoint"),
            Set::LocalSlots => {
                ("local-slots", NUMBER, Some(ENDPOINT[f]), "with affinity: slot : endpoint on this node")
            }
            Set::Affinity => ("affinity", CLIENT[f], Some(NUMBER), "client . number : slot"),
            Set::ClusterIps => ("cluster-ips", ADDRESS[f], None, "ClusterIPs in use"),
            Set::ServiceCidrs => ("service-cidrs", ADDRESS[f], None, "ranges of ClusterIPs"),
            Set::NoEndpoints => ("no-endpoints", VIP[f], None, "addresses without endpoints"),
            Set::NoLocalEndpoints => {
                ("no-local-endpoints", VIP[f], None, "addresses under policy Local without local endpoints")
            }
            Set::NodePortsNoEndpoints => ("node-ports-no-endpoints", PORT, None, "NodePorts without endpoints"),
            Set::NodePortsNoLocalEndpoints => {
                ("node-ports-no-local-endpoints", PORT, None, "NodePorts under policy Local without local endpoints")
            }
            Set::Restricted => ("restricted", VIP[f], None, "load balancer IPs with source ranges"),
            Set::AllowedSources => ("allowed-sources", VIP_AND_SOURCE[f], None, "who may use these"),
            Set::Hairpin => ("hairpin", PAIR[f], None, "endpoints on this node"),
            Set::NodePortIps => ("node-port-ips", ADDRESS[f], None, "addresses that serve NodePorts"),
        };
        SetSpec {
            name,
            comment,
            key,
            data: if set == Set::Classes { Some(Data::Verdict) } else { data.map(Data::Fields) },
            interval: matches!(set, Set::ServiceCidrs | Set::AllowedSources),
            dynamic: (set == Set::Affinity).then_some(AFFINITY_SIZE),
            counter: set.is_counted(),
        }
    })
}

/// The chains without a hook: what a packet does.
pub fn inner_chains(facts: &NodeFacts) -> Vec<Chain> {
    let w = Wording::new(facts);
    vec![
        w.chain(
            "services",
            vec![
                vec![w.resolve(w.vip(), Set::Services), goto("cluster-ip")],
                vec![w.resolve(w.vip(), Set::ExternalLocal), goto("external-local")],
                vec![w.resolve(w.vip(), Set::External), goto("external")],
                [w.to_node_port_address(), vec![goto("node-ports")]].concat(),
            ],
        ),
        w.chain(
            "node-ports",
            vec![
                vec![w.resolve(port(), Set::NodePortsLocal), goto("node-port-local")],
                vec![w.resolve(port(), Set::NodePorts), goto("external")],
            ],
        ),
        w.chain("cluster-ip", w.masquerade_strangers().into_iter().chain([vec![goto("dispatch")]]).collect()),
        w.chain("external", vec![vec![w.ask_for_masquerade(), goto("dispatch")]]),
        w.chain("external-local", w.local_policy(w.vip(), Set::External)),
        w.chain("node-port-local", w.local_policy(port(), Set::NodePorts)),
        w.chain(
            "dispatch",
            vec![vec![vmap(and(meta(MetaKey::Priority), classid(!NUMBER_MASK)), w.name(Set::Classes))]],
        ),
        w.chain(
            "firewall",
            vec![vec![
                is_in(w.vip(), w.name(Set::Restricted)),
                is_not_in(w.vip_and_source(), w.name(Set::AllowedSources)),
                drop(),
            ]],
        ),
        w.chain(
            "service-check",
            vec![
                vec![is_in(w.vip(), w.name(Set::NoEndpoints)), reject(table_family(w.family))],
                vec![is_in(w.vip(), w.name(Set::NoLocalEndpoints)), drop()],
            ],
        ),
        w.chain(
            "node-port-check",
            vec![
                [
                    w.input_to_node_port_address(),
                    vec![is_in(port(), w.name(Set::NodePortsNoEndpoints)), reject(table_family(w.family))],
                ]
                .concat(),
                [w.input_to_node_port_address(), vec![is_in(port(), w.name(Set::NodePortsNoLocalEndpoints)), drop()]]
                    .concat(),
            ],
        ),
        w.chain(
            "cluster-ip-check",
            vec![
                vec![is_in(w.ip("daddr"), w.name(Set::ClusterIps)), reject(table_family(w.family))],
                vec![is_in(w.ip("daddr"), w.name(Set::ServiceCidrs)), drop()],
            ],
        ),
        w.chain(
            "masquerading",
            vec![
                vec![
                    is_not(and(meta(MetaKey::Mark), number(facts.masquerade_mark)), number(0)),
                    set(MetaKey::Mark, xor(meta(MetaKey::Mark), facts.masquerade_mark)),
                    masquerade(),
                ],
                vec![is_dnatted(), is_in(concat([w.ip("saddr"), w.ip("daddr")]), w.name(Set::Hairpin)), masquerade()],
            ],
        ),
    ]
}

/// The chains that hook in: when these exist, traffic is served.
pub fn base_chains(family: Family) -> Vec<Chain> {
    const PREROUTING: u32 = 0;
    const INPUT: u32 = 1;
    const FORWARD: u32 = 2;
    const OUTPUT: u32 = 3;
    const POSTROUTING: u32 = 4;
    const BEFORE_DNAT: i32 = -110;
    const DNAT: i32 = -100;
    const SNAT: i32 = 100;
    let base = |name, kind, number, priority, rules| Chain { name, hook: Some(Hook { kind, number, priority }), rules };
    let clear = || vec![is_new(), is_dnatted(), set(MetaKey::Priority, classid(0))];
    let mut forward = vec![vec![is_new(), jump("service-check")], vec![is_new(), jump("cluster-ip-check")]];
    if family == Family::V6 {
        forward.insert(0, clear());
    }
    vec![
        base("filter-prerouting-pre-dnat", "filter", PREROUTING, BEFORE_DNAT, vec![vec![is_new(), jump("firewall")]]),
        base("filter-output-pre-dnat", "filter", OUTPUT, BEFORE_DNAT, vec![vec![is_new(), jump("firewall")]]),
        base(
            "filter-input",
            "filter",
            INPUT,
            0,
            vec![vec![is_new(), jump("node-port-check")], vec![is_new(), jump("service-check")]],
        ),
        base("filter-forward", "filter", FORWARD, 0, forward),
        base(
            "filter-output",
            "filter",
            OUTPUT,
            0,
            vec![clear(), vec![is_new(), jump("service-check")], vec![is_new(), jump("cluster-ip-check")]],
        ),
        base("nat-prerouting", "nat", PREROUTING, DNAT, vec![vec![jump("services")]]),
        base("nat-output", "nat", OUTPUT, DNAT, vec![vec![jump("services")]]),
        base("nat-postrouting", "nat", POSTROUTING, SNAT, vec![vec![jump("masquerading")]]),
    ]
}

/// The family of our table.
pub fn table_family(family: Family) -> TableFamily {
    match family {
        Family::V4 => TableFamily::Ip,
        Family::V6 => TableFamily::Ip6,
    }
}

/// The header fields of a family's addresses: `ip saddr` or `ip6 saddr`.
pub fn address_field(family: Family, name: &'static str) -> Value {
    field(if family == Family::V4 { "ip" } else { "ip6" }, name)
}

/// Protocol and destination port.
fn port() -> Value {
    concat([meta(MetaKey::L4proto), field("th", "dport")])
}

/// What the rules say differently for each family and node.
struct Wording<'a> {
    family: Family,
    facts: &'a NodeFacts,
    names: [&'static str; SET_COUNT],
}

// === impl Set ===

impl Set {
    /// All of them, in order.
    pub const ALL: [Self; 21] = [
        Self::Services,
        Self::External,
        Self::ExternalLocal,
        Self::NodePorts,
        Self::NodePortsLocal,
        Self::Classes,
        Self::Endpoints,
        Self::Draw,
        Self::Slots,
        Self::LocalSlots,
        Self::Affinity,
        Self::ClusterIps,
        Self::ServiceCidrs,
        Self::NoEndpoints,
        Self::NoLocalEndpoints,
        Self::NodePortsNoEndpoints,
        Self::NodePortsNoLocalEndpoints,
        Self::Restricted,
        Self::AllowedSources,
        Self::Hairpin,
        Self::NodePortIps,
    ];

    /// Maps that every connection to a Service passes once, and that count it.
    pub fn is_counted(self) -> bool {
        matches!(self, Self::Services | Self::External | Self::ExternalLocal | Self::NodePorts | Self::NodePortsLocal)
    }

    /// Sets whose elements several Services may share.
    pub fn is_shared(self) -> bool {
        matches!(self, Self::ClusterIps | Self::Hairpin)
    }
}

// === impl Wording ===

impl<'a> Wording<'a> {
    fn new(facts: &'a NodeFacts) -> Self {
        Self { family: facts.family, facts, names: sets(facts.family).map(|set| set.name) }
    }

    fn chain(&self, name: &'static str, rules: Vec<Vec<Step>>) -> Chain {
        Chain { name, hook: None, rules }
    }

    fn name(&self, set: Set) -> &'static str {
        self.names[set as usize]
    }

    fn ip(&self, name: &'static str) -> Value {
        address_field(self.family, name)
    }

    fn vip(&self) -> Value {
        concat([self.ip("daddr"), meta(MetaKey::L4proto), field("th", "dport")])
    }

    fn vip_and_source(&self) -> Value {
        concat([self.ip("daddr"), meta(MetaKey::L4proto), field("th", "dport"), self.ip("saddr")])
    }

    /// Takes class and number of what the packet is for from a map; the rule ends here if it is for nothing there.
    fn resolve(&self, key: Value, set: Set) -> Step {
        crate::kernel::nftwords::set(MetaKey::Priority, map(key, self.name(set)))
    }

    fn ask_for_masquerade(&self) -> Step {
        set(MetaKey::Mark, or(meta(MetaKey::Mark), self.facts.masquerade_mark))
    }

    /// ClusterIP traffic is masqueraded unless it comes from a pod of this node (contract 6.1).
    fn masquerade_strangers(&self) -> Vec<Vec<Step>> {
        if self.facts.masquerade_all {
            return vec![vec![self.ask_for_masquerade()]];
        }
        self.local_pod(false).into_iter().map(|stranger| vec![stranger, self.ask_for_masquerade()]).collect()
    }

    /// externalTrafficPolicy Local: pods and this host get all endpoints, the rest the local ones (contract 6.1).
    fn local_policy(&self, key: Value, all: Set) -> Vec<Vec<Step>> {
        let pods = self.local_pod(true).map(|pod| vec![pod, self.resolve(key.clone(), all), goto("dispatch")]);
        let host = vec![source_is_local(), self.resolve(key, all), self.ask_for_masquerade(), goto("dispatch")];
        pods.into_iter().chain([host, vec![goto("dispatch")]]).collect()
    }

    /// Matches packets from pods of this node, or all others; nothing when that cannot be told.
    fn local_pod(&self, local: bool) -> Option<Step> {
        let compare = if local { is } else { is_not };
        match &self.facts.local_traffic {
            LocalTraffic::Unknown => None,
            LocalTraffic::Cidr(net) => Some(compare(self.ip("saddr"), prefix(*net))),
            LocalTraffic::Interface(name) => Some(compare(meta(MetaKey::Iifname), text(name.to_string()))),
            LocalTraffic::InterfacePrefix(name) => Some(compare(meta(MetaKey::Iifname), text(format!("{name}*")))),
        }
    }

    fn to_node_port_address(&self) -> Vec<Step> {
        match self.facts.node_port_addresses {
            NodePortAddresses::All => vec![destination_is_local(), self.not_loopback()],
            NodePortAddresses::Only(_) => vec![is_in(self.ip("daddr"), self.name(Set::NodePortIps))],
        }
    }

    /// What reaches the input hook is for this host anyway.
    fn input_to_node_port_address(&self) -> Vec<Step> {
        match self.facts.node_port_addresses {
            NodePortAddresses::All => vec![self.not_loopback()],
            NodePortAddresses::Only(_) => vec![is_in(self.ip("daddr"), self.name(Set::NodePortIps))],
        }
    }

    /// NodePorts are never served on loopback in this mode (contract 6.3).
    fn not_loopback(&self) -> Step {
        let loopback = match self.family {
            Family::V4 => "127.0.0.0/8",
            Family::V6 => "::1/128",
        };
        is_not(self.ip("daddr"), prefix(loopback.parse().expect("a constant")))
    }
}
