//! This node's object, reduced to what matters here.

use std::net::IpAddr;

use ipnet::IpNet;

/// This node, as the API server knows it (contract 3).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Node {
    /// All InternalIP addresses in order, then all ExternalIP addresses.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Box<str>>,
    /// Has neither a deletion timestamp nor the autoscaler's taint: `/healthz` may say 200 (contract 12.1).
    pub eligible: bool,
    /// UID of the object, for events that regard it.
    pub uid: Box<str>,
}
