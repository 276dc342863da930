//! Facts about this node that shape the rules: its addresses, its families, how local traffic is told (contract 3).
//!
//! Pure: from the configuration, the Node object and the addresses of the interfaces. Must not look them up itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::config::{Config, DetectLocal, Gate, Mode, NodePortAddresses as Configured};
use crate::ipvs;
use crate::kernel::links::Address;
use crate::model::{Family, Node, Store};
use crate::plan::{Here, LocalTraffic, NodeFacts, NodePortAddresses};

/// The node's own address in each family, and which family comes first (contract 3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeAddresses {
    /// The family of the first address.
    pub primary: Family,
    /// By family; loopback when nothing else is known.
    addresses: [IpAddr; 2],
}

// === impl NodeAddresses ===

impl NodeAddresses {
    /// From `bindAddress`, else from the Node, else loopback.
    pub fn new(config: &Config, node: Option<&Node>) -> Self {
        let mut addresses = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let known = node.map(|node| &node.addresses[..]).unwrap_or_default();
        for family in Family::ALL {
            if let Some(address) = known.iter().find(|address| Family::of(address) == family) {
                addresses[family as usize] = *address;
            }
        }
        let mut primary = known.first().map_or(Family::V4, Family::of);
        if !config.bind_address.is_unspecified() {
            primary = Family::of(&config.bind_address);
            addresses[primary as usize] = config.bind_address;
        }
        Self { primary, addresses }
    }

    /// The node's address in a family, unless it is only loopback.
    pub fn of(&self, family: Family) -> Option<IpAddr> {
        Some(self.addresses[family as usize]).filter(|address| !address.is_loopback())
    }
}

/// What planning needs to know of the node.
pub fn here(family: Family, config: &Config, addresses: &NodeAddresses, node: Option<&Node>) -> Here {
    Here {
        zone: node.and_then(|node| node.zone.clone()),
        address: Some(addresses.addresses[family as usize]),
        without_external_ips: !config.gates.enabled(Gate::AllowServiceExternalIps),
    }
}

/// What the rules need to know of it. `pod_cidrs` are those of the Node at the start.
pub fn facts(
    family: Family,
    config: &Config,
    store: &Store,
    addresses: &NodeAddresses,
    pod_cidrs: &[IpNet],
    interfaces: &[Address],
) -> NodeFacts {
    let mut service_cidrs: Vec<IpNet> = store.service_cidrs().filter(|net| Family::of_net(net) == family).collect();
    service_cidrs.sort_unstable();
    service_cidrs.dedup();
    NodeFacts {
        family,
        local_traffic: local_traffic(family, config, pod_cidrs),
        masquerade_all: config.masquerade_all,
        masquerade_mark: 1 << config.masquerade_bit,
        node_port_addresses: node_port_addresses(family, config, addresses, interfaces),
        host_addresses: if config.mode == Mode::Ipvs { host_addresses(family, interfaces) } else { Vec::new() },
        // Only this mode knows what to do with them (contract 4.3).
        service_cidrs: if config.mode == Mode::Nftables { service_cidrs } else { Vec::new() },
    }
}

fn local_traffic(family: Family, config: &Config, pod_cidrs: &[IpNet]) -> LocalTraffic {
    let first = |nets: &[IpNet]| nets.iter().copied().find(|net| Family::of_net(net) == family);
    match &config.detect_local {
        DetectLocal::ClusterCidr(nets) => first(nets).map_or(LocalTraffic::Unknown, LocalTraffic::Cidr),
        DetectLocal::NodeCidr => first(pod_cidrs).map_or(LocalTraffic::Unknown, LocalTraffic::Cidr),
        DetectLocal::BridgeInterface(name) => LocalTraffic::Interface(name.as_str().into()),
        DetectLocal::InterfaceNamePrefix(prefix) => LocalTraffic::InterfacePrefix(prefix.as_str().into()),
    }
}

/// Contract 3.5.
fn node_port_addresses(
    family: Family,
    config: &Config,
    addresses: &NodeAddresses,
    interfaces: &[Address],
) -> NodePortAddresses {
    let ranges: Vec<IpNet> = match &config.node_port_addresses {
        Configured::All => Vec::new(),
        Configured::Primary => addresses.of(family).into_iter().map(IpNet::from).collect(),
        Configured::Cidrs(nets) => nets.iter().copied().filter(|net| Family::of_net(net) == family).collect(),
    };
    if ranges.is_empty() || ranges.iter().any(|net| net.prefix_len() == 0) {
        return NodePortAddresses::All;
    }
    let accepting = interfaces
        .iter()
        .filter(|interface| config.mode != Mode::Ipvs || &*interface.interface != ipvs::DEVICE)
        .map(|interface| interface.address)
        .filter(|address| in_any(&ranges, address));
    NodePortAddresses::Only(sorted(accepting))
}

/// The addresses of a family by which others reach this node. Those of IPVS's own device are the Services' (contract
/// 6.3).
fn host_addresses(family: Family, interfaces: &[Address]) -> Vec<IpAddr> {
    let others = interfaces.iter().filter(|interface| &*interface.interface != ipvs::DEVICE);
    sorted(others.map(|other| other.address).filter(|address| Family::of(address) == family && is_reachable(address)))
}

fn sorted(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = addresses.collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn in_any(ranges: &[IpNet], address: &IpAddr) -> bool {
    ranges.iter().any(|net| net.contains(address))
}

/// Neither loopback nor an IPv6 link-local address.
fn is_reachable(address: &IpAddr) -> bool {
    !address.is_loopback() && !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}
