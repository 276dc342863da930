//! The rules beside the virtual servers: who is masqueraded, who is turned away (contract 6.3, 10.5, 10.6). One small
//! table; a Service is nothing but elements of its sets.
//!
//! # A packet's way
//!
//! Virtual addresses are local ones, so what comes from elsewhere passes `input` before IPVS takes it at the end of the
//! same hook, and what this host sends passes `output` before IPVS takes it there. Both look only at the first packet
//! of a connection. IPVS sends it on to a real server, and `postrouting` masquerades what was marked.
//!
//! No verdict map: the kernel validates a table anew whenever a verdict is added.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use nftables::expr::MetaKey;

use crate::kernel::nftables::{Hook, SetSpec, TableFamily};
use crate::kernel::nftchains::{ADDRESS, Chain, PORT, VIP, VIP_AND_SOURCE};
use crate::kernel::nftrule::Step;
use crate::kernel::nftwords::*;
use crate::model::Family;
use crate::plan::{LocalTraffic, NodeFacts};

/// The table's name, in both families.
pub const TABLE: &str = "kube-proxy-ipvs";
/// The table's comment.
pub const TABLE_COMMENT: &str = "kube-proxy: rules beside the virtual servers of IPVS";

/// The sets; the value is the index into [`sets`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Set {
    /// Addresses that only exist for Services.
    ServiceIps,
    /// ClusterIPs with their ports.
    Internal,
    /// External and load balancer IPs with their ports.
    External,
    /// The same under policy Local.
    ExternalLocal,
    /// NodePorts, but for those under policy Local.
    NodePorts,
    /// NodePorts under policy Local. No rule asks: it is there so that a clean-up knows whose virtual servers these are.
    NodePortsLocal,
    /// Load balancer IPs that not everybody may use.
    Restricted,
    /// Who may use these.
    AllowedSources,
    /// Ports of health check servers, which answer on every address.
    HealthChecks,
    /// Endpoints on this node, each with itself as the source.
    Hairpin,
}

/// All sets of a family, in the order of [`Set`].
pub fn sets(family: Family) -> [SetSpec; Set::ALL.len()] {
    let f = family as usize;
    Set::ALL.map(|set| {
        let (key, comment) = match set {
            Set::ServiceIps => (ADDRESS[f], "addresses of kube-ipvs0: only Services answer there"),
            Set::Internal => (VIP[f], "ClusterIPs"),
            Set::External => (VIP[f], "external and load balancer IPs, all endpoints"),
            Set::ExternalLocal => (VIP[f], "external and load balancer IPs, local endpoints"),
            Set::NodePorts => (PORT, "NodePorts, all endpoints"),
            Set::NodePortsLocal => (PORT, "NodePorts, local endpoints"),
            Set::Restricted => (VIP[f], "load balancer IPs with source ranges"),
            Set::AllowedSources => (VIP_AND_SOURCE[f], "who may use these"),
            Set::HealthChecks => (PORT, "health checks of load balancers"),
            Set::Hairpin => (VIP_AND_SOURCE[f], "endpoints on this node that send to themselves"),
        };
        let interval = set.has_ranges();
        SetSpec { name: set.name(), comment, key, data: None, interval, dynamic: None, counter: false }
    })
}

/// The chain that asks for masquerade. `masquerade` alone is a word of nft's own language.
const MASQUERADE: &str = "ask-for-masquerade";

/// All chains. Those that hook in come last.
pub fn chains(facts: &NodeFacts) -> Vec<Chain> {
    const INPUT: u32 = 1;
    const OUTPUT: u32 = 3;
    const POSTROUTING: u32 = 4;
    const FILTER: i32 = 0;
    /// IPVS takes what this host sends at `NF_IP_PRI_NAT_DST + 2`, that is -98.
    const BEFORE_IPVS: i32 = -110;
    const SNAT: i32 = 100;
    let w = Wording { facts };
    let inner = |name, rules| Chain { name, hook: None, rules };
    let base = |name, kind, number, priority, rules| Chain { name, hook: Some(Hook { kind, number, priority }), rules };
    vec![
        inner(MASQUERADE, vec![vec![w.ask_for_masquerade(), accept()]]),
        inner("cluster-ip", w.masquerade_strangers().into_iter().chain([vec![accept()]]).collect()),
        inner(
            "services",
            vec![
                vec![
                    is_in(w.entrance(), Set::Restricted.name()),
                    is_not_in(w.entrance_and_source(), Set::AllowedSources.name()),
                    drop(),
                ],
                vec![is_in(w.entrance(), Set::Internal.name()), goto("cluster-ip")],
                vec![is_in(w.entrance(), Set::External.name()), goto(MASQUERADE)],
                vec![is_in(w.entrance(), Set::ExternalLocal.name()), accept()],
            ],
        ),
        base(
            "input",
            "filter",
            INPUT,
            FILTER,
            vec![
                vec![is_new(), jump("services")],
                vec![is_new(), is_in(port(), Set::HealthChecks.name()), accept()],
                vec![is_new(), is_in(w.ip("daddr"), Set::ServiceIps.name()), reject(w.table_family())],
                vec![is_new(), is_in(port(), Set::NodePorts.name()), goto(MASQUERADE)],
            ],
        ),
        base(
            "output",
            "filter",
            OUTPUT,
            BEFORE_IPVS,
            vec![
                // A host process has the virtual address as its source; no answer would come back to that.
                vec![is_new(), is_in(w.ip("saddr"), Set::ServiceIps.name()), w.ask_for_masquerade()],
                vec![is_new(), jump("services")],
                // On loopback, that port is somebody else's (contract 6.3).
                vec![
                    is_new(),
                    is_in(port(), Set::NodePorts.name()),
                    is_not(w.ip("daddr"), w.loopback()),
                    destination_is_local(),
                    goto(MASQUERADE),
                ],
            ],
        ),
        base(
            "postrouting",
            "nat",
            POSTROUTING,
            SNAT,
            vec![
                vec![
                    is_not(and(meta(MetaKey::Mark), number(facts.masquerade_mark)), number(0)),
                    set(MetaKey::Mark, xor(meta(MetaKey::Mark), facts.masquerade_mark)),
                    masquerade(),
                ],
                vec![is_in(w.entrance_and_source(), Set::Hairpin.name()), masquerade()],
            ],
        ),
    ]
}

/// The family of our table.
pub fn table_family(family: Family) -> TableFamily {
    match family {
        Family::V4 => TableFamily::Ip,
        Family::V6 => TableFamily::Ip6,
    }
}

/// Protocol and destination port.
fn port() -> Value {
    concat([meta(MetaKey::L4proto), field("th", "dport")])
}

/// What the rules say differently for each family and node.
struct Wording<'a> {
    facts: &'a NodeFacts,
}

// === impl Set ===

impl Set {
    /// All of them, in order.
    pub const ALL: [Self; 10] = [
        Self::ServiceIps,
        Self::Internal,
        Self::External,
        Self::ExternalLocal,
        Self::NodePorts,
        Self::NodePortsLocal,
        Self::Restricted,
        Self::AllowedSources,
        Self::HealthChecks,
        Self::Hairpin,
    ];

    /// Whether its elements are ranges.
    pub const fn has_ranges(self) -> bool {
        matches!(self, Self::AllowedSources)
    }

    /// Its name in the kernel.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ServiceIps => "service-ips",
            Self::Internal => "cluster-ips",
            Self::External => "external",
            Self::ExternalLocal => "external-local",
            Self::NodePorts => "node-ports",
            Self::NodePortsLocal => "node-ports-local",
            Self::Restricted => "restricted",
            Self::AllowedSources => "allowed-sources",
            Self::HealthChecks => "health-checks",
            Self::Hairpin => "hairpin",
        }
    }
}

// === impl Wording ===

impl Wording<'_> {
    fn table_family(&self) -> TableFamily {
        table_family(self.facts.family)
    }

    fn ip(&self, name: &'static str) -> Value {
        field(if self.facts.family == Family::V4 { "ip" } else { "ip6" }, name)
    }

    /// The addresses of the node itself that nobody else can reach.
    fn loopback(&self) -> Value {
        prefix(match self.facts.family {
            Family::V4 => Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8).into(),
            Family::V6 => Ipv6Net::from(Ipv6Addr::LOCALHOST).into(),
        })
    }

    fn entrance(&self) -> Value {
        concat([self.ip("daddr"), meta(MetaKey::L4proto), field("th", "dport")])
    }

    fn entrance_and_source(&self) -> Value {
        concat([self.ip("daddr"), meta(MetaKey::L4proto), field("th", "dport"), self.ip("saddr")])
    }

    fn ask_for_masquerade(&self) -> Step {
        set(MetaKey::Mark, or(meta(MetaKey::Mark), self.facts.masquerade_mark))
    }

    /// ClusterIP traffic is masqueraded unless it comes from a pod of this node (contract 6.1).
    fn masquerade_strangers(&self) -> Option<Vec<Step>> {
        let is_stranger = match &self.facts.local_traffic {
            _ if self.facts.masquerade_all => return Some(vec![self.ask_for_masquerade()]),
            LocalTraffic::Unknown => return None,
            LocalTraffic::Cidr(net) => is_not(self.ip("saddr"), prefix(*net)),
            LocalTraffic::Interface(name) => is_not(meta(MetaKey::Iifname), text(name.to_string())),
            LocalTraffic::InterfacePrefix(name) => is_not(meta(MetaKey::Iifname), text(format!("{name}*"))),
        };
        Some(vec![is_stranger, self.ask_for_masquerade()])
    }
}
