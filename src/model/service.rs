//! One Service, reduced to what a node needs of it.

use std::net::IpAddr;
use std::rc::Rc;

use ipnet::IpNet;

use super::{Family, Protocol};

/// A Service that is served (contract 4.1): it has a ClusterIP and is neither headless nor an ExternalName.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Service {
    /// Its ClusterIPs: the one of each family, in the order of [`Family::ALL`].
    pub cluster_ips: [Option<IpAddr>; 2],
    /// All ports, in the order of the object.
    pub ports: Vec<ServicePort>,
    /// `spec.externalIPs`, both families.
    pub external_ips: Vec<IpAddr>,
    /// Ingress IPs of mode VIP, both families.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`, both families.
    pub source_ranges: Vec<IpNet>,
    /// `externalTrafficPolicy: Local` where it has a meaning (contract 4.1).
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// Port of the health check server of a policy-Local load balancer.
    pub health_check_node_port: Option<u16>,
    /// ClientIP session affinity and its timeout in seconds.
    pub affinity: Option<u32>,
    /// Default weight of the endpoints (annotation); 1 when not given.
    pub weight: Option<u16>,
    /// Scheduler wanted for this Service (annotation, IPVS mode).
    pub scheduler: Option<Box<str>>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty for the only port of a Service. Names of ports are few and shared.
    pub name: Rc<str>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on the ClusterIP, external IPs and load balancer IPs.
    pub port: u16,
    /// Port on the node's addresses; 0 when there is none.
    pub node_port: u16,
}

// === impl Service ===

impl Service {
    /// Its ClusterIP of a family.
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips[family as usize]
    }

    /// Whether it asks for addresses that may be those of others, too.
    pub fn has_external_addresses(&self) -> bool {
        !self.external_ips.is_empty() || !self.load_balancer_ips.is_empty()
    }
}
