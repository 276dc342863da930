//! What this node must do: for each virtual address and port, which endpoints get the traffic and how it is treated.
//!
//! Pure functions of the model and the node's facts; every policy of the contract (sections 5 to 7) is decided here,
//! once, for all backends. Must never touch the kernel or the clock.

pub mod claims;
pub mod endpoints;
pub mod flows;
mod ledger;
mod traffic;

pub use ledger::{Ledger, Tally};
pub use traffic::{Here, plan};

use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;

use ipnet::IpNet;

use crate::model::{Family, ObjectName, Place, Protocol};

/// Identity of a Service port within one family.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortName {
    /// The Service.
    pub service: ObjectName,
    /// Name of the port, may be empty.
    pub port: Rc<str>,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// What is to be done for one Service port in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPlan {
    /// Which Service port this is.
    pub name: PortName,
    /// The ClusterIP.
    pub cluster_ip: IpAddr,
    /// The port on all virtual addresses.
    pub port: u16,
    /// `spec.externalIPs` of this family.
    pub external_ips: Vec<IpAddr>,
    /// Load balancer IPs (VIP mode) of this family.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Port on the node's own addresses.
    pub node_port: Option<u16>,
    /// Where traffic to the ClusterIP goes.
    pub internal: Route,
    /// Where traffic to NodePort, external and load balancer IPs goes.
    pub external: Route,
    /// `externalTrafficPolicy: Local`: traffic from outside keeps its source address and only reaches `local`;
    /// local pods and the node itself reach `cluster` (contract 6.1).
    pub external_local: bool,
    /// Who may use the load balancer IPs; empty means everybody (contract 6.2).
    pub source_ranges: Vec<IpNet>,
    /// The node lies in `source_ranges`, so the load balancer IPs are allowed as sources too.
    pub allow_vip_sources: bool,
    /// ClientIP session affinity: timeout in seconds.
    pub affinity: Option<u32>,
    /// Scheduler wanted for this Service (IPVS mode); empty means the configured one.
    pub scheduler: Option<Box<str>>,
    /// Endpoints of policy Cluster, sorted by address and port; may be empty.
    pub cluster: Vec<Endpoint>,
    /// Endpoints of policy Local, if some traffic of this port needs them; may be empty.
    pub local: Vec<Endpoint>,
    /// All endpoints that serve, for conntrack's sake (contract 11.1): UDP ports only.
    pub serving: Vec<Endpoint>,
}

/// Where traffic to a virtual address goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To the endpoints in `cluster`.
    Cluster,
    /// To the endpoints in `local`.
    Local,
    /// No endpoint anywhere: answered with ICMP port unreachable.
    Reject,
    /// Endpoints only elsewhere, under policy Local: dropped.
    Drop,
}

/// An endpoint that gets traffic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// Address of the pod.
    pub address: IpAddr,
    /// Port of the pod.
    pub port: u16,
    /// Where it runs.
    pub place: Place,
    /// Share of new connections relative to the other endpoints; 1 unless annotated.
    pub weight: u16,
}

/// A Service whose plan changed: its ports now. Empty means that it is no longer served.
#[derive(Clone, Debug)]
pub struct ServicePlan {
    /// The Service.
    pub name: ObjectName,
    /// All its ports in this family.
    pub ports: Vec<PortPlan>,
    /// Port on which the node says how many local endpoints it has: packets to it must get in.
    pub health_check_node_port: Option<u16>,
}

/// Facts about the node and its configuration that shape the rules shared by all Services, for one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// The family this is about.
    pub family: Family,
    /// How to tell that a packet comes from a pod of this node (contract 3.4).
    pub local_traffic: LocalTraffic,
    /// Traffic to ClusterIPs is always masqueraded.
    pub masquerade_all: bool,
    /// The bit of the packet mark that asks for masquerade, as a mask.
    pub masquerade_mark: u32,
    /// Addresses that accept NodePort traffic.
    pub node_port_addresses: NodePortAddresses,
    /// Addresses that the node has itself, sorted, for the mode that must know which of a Service's these are: IPVS
    /// (contract 6.3). Else empty.
    pub host_addresses: Vec<IpAddr>,
    /// Ranges that ClusterIPs are taken from (ServiceCIDR objects).
    pub service_cidrs: Vec<IpNet>,
}

/// How traffic from this node's pods is recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalTraffic {
    /// It is not.
    Unknown,
    /// By source range.
    Cidr(IpNet),
    /// By the name of the interface it comes in on.
    Interface(Box<str>),
    /// By the beginning of that name.
    InterfacePrefix(Box<str>),
}

/// Which of the node's addresses serve NodePorts (contract 3.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Every local address but loopback.
    All,
    /// Exactly these, sorted.
    Only(Vec<IpAddr>),
}

// === impl PortName ===

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.port {
            "" => self.service.fmt(f),
            port => write!(f, "{}:{port}", self.service),
        }
    }
}

// === impl NodePortAddresses ===

impl NodePortAddresses {
    /// The listed addresses whose packets can be translated: never those of loopback (contract 6.3). Empty for all.
    pub fn translatable(&self) -> Vec<IpAddr> {
        match self {
            Self::All => Vec::new(),
            Self::Only(addresses) => addresses.iter().copied().filter(|address| !address.is_loopback()).collect(),
        }
    }
}

// === impl ServicePlan ===

impl ServicePlan {
    /// Of a Service that is not served.
    pub fn none(name: &ObjectName) -> Self {
        Self { name: name.clone(), ports: Vec::new(), health_check_node_port: None }
    }
}

// === impl PortPlan ===

impl PortPlan {
    /// External IPs and load balancer IPs, in this order.
    pub fn external_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.external_ips.iter().chain(&self.load_balancer_ips).copied()
    }

    /// Whether anything outside the cluster can reach this port.
    pub fn externally_accessible(&self) -> bool {
        self.node_port.is_some() || self.external_addresses().next().is_some()
    }
}
