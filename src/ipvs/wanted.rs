//! What one Service asks of IPVS mode: its entrances, each with the virtual server behind it (contract 10.4). Pure.
//!
//! A plan's words become kernel terms here; nothing is decided that the plan has not decided.

use std::net::IpAddr;
use std::rc::Rc;

use ipnet::IpNet;

use super::scheduler::Scheduler;
use crate::kernel::ipvs::{PERSISTENT, Settings};
use crate::model::Protocol;
use crate::plan::{Endpoint, PortName, PortPlan, Route, ServicePlan};

/// What clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entrance {
    /// A virtual address.
    Address(IpAddr, Protocol, u16),
    /// A port of each of the node's addresses.
    NodePort(Protocol, u16),
}

/// What is special about an entrance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A ClusterIP.
    Internal,
    /// From outside, with all endpoints.
    External,
    /// From outside under policy Local: clients keep their source address.
    ExternalLocal,
}

/// The virtual server behind an entrance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The Service port that it serves.
    pub port: PortName,
    /// What kind of entrance leads here.
    pub kind: Kind,
    /// How it chooses.
    pub settings: Settings,
    /// Where it sends connections to.
    pub endpoints: Rc<[Endpoint]>,
    special: Option<Box<Special>>,
}

/// What few servers have.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Special {
    serving: Box<[Endpoint]>,
    sources: Option<Box<[IpNet]>>,
}

/// All that a Service asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Its entrances.
    pub servers: Box<[(Entrance, Rc<Server>)]>,
    /// Its endpoints on this node, each once.
    pub local_endpoints: Box<[LocalEndpoint]>,
    /// Port of its health check server.
    pub health_check: Option<u16>,
}

/// Address, protocol and port of an endpoint on this node.
pub type LocalEndpoint = (IpAddr, Protocol, u16);

/// The groups of endpoints of a port, shared by its entrances.
struct Groups {
    cluster: Rc<[Endpoint]>,
    local: Rc<[Endpoint]>,
}

// === impl Wanted ===

impl Wanted {
    /// Translates a Service's plan. `scheduler` tells which one a port gets.
    pub fn new(plan: &ServicePlan, mut scheduler: impl FnMut(&PortPlan) -> Scheduler) -> Self {
        let mut servers = Vec::new();
        for port in &plan.ports {
            add(&mut servers, port, &settings(port, scheduler(port)));
        }
        let endpoints = plan.ports.iter().flat_map(|port| {
            let protocol = port.name.protocol;
            port.cluster.iter().chain(&port.local).map(move |endpoint| (endpoint, protocol))
        });
        let mut local_endpoints: Vec<LocalEndpoint> = endpoints
            .filter(|(endpoint, _)| endpoint.place.is_here())
            .map(|(endpoint, protocol)| (endpoint.address, protocol, endpoint.port))
            .collect();
        local_endpoints.sort_unstable();
        local_endpoints.dedup();
        Self {
            servers: servers.into(),
            local_endpoints: local_endpoints.into(),
            health_check: plan.health_check_node_port.filter(|_| !plan.ports.is_empty()),
        }
    }

    /// The virtual addresses that must be local ones, not necessarily each once.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.servers.iter().filter_map(|(entrance, _)| match entrance {
            Entrance::Address(address, ..) => Some(*address),
            Entrance::NodePort(..) => None,
        })
    }
}

/// The entrances of a port, and what is behind them.
fn add(servers: &mut Vec<(Entrance, Rc<Server>)>, port: &PortPlan, settings: &Settings) {
    let protocol = port.name.protocol;
    let groups = Groups { cluster: port.cluster.as_slice().into(), local: port.local.as_slice().into() };
    let server = |kind, route, sources: Option<Box<[IpNet]>>| {
        let is_special = sources.is_some() || !port.serving.is_empty();
        let special = is_special.then(|| Box::new(Special { serving: port.serving.as_slice().into(), sources }));
        let (port, settings) = (port.name.clone(), settings.clone());
        Rc::new(Server { port, kind, settings, endpoints: groups.of(route), special })
    };
    let internal = server(Kind::Internal, port.internal, None);
    servers.push((Entrance::Address(port.cluster_ip, protocol, port.port), internal));
    if !port.externally_accessible() {
        return;
    }
    let kind = if port.external_local { Kind::ExternalLocal } else { Kind::External };
    let external = server(kind, port.external, None);
    for &address in &port.external_ips {
        servers.push((Entrance::Address(address, protocol, port.port), external.clone()));
    }
    for &address in &port.load_balancer_ips {
        let restricted = sources(port, address).map(|sources| server(kind, port.external, Some(sources)));
        let server = restricted.unwrap_or_else(|| external.clone());
        servers.push((Entrance::Address(address, protocol, port.port), server));
    }
    if let Some(node_port) = port.node_port {
        servers.push((Entrance::NodePort(protocol, node_port), external));
    }
}

fn settings(port: &PortPlan, scheduler: Scheduler) -> Settings {
    let persistent = if port.affinity.is_some() { PERSISTENT } else { 0 };
    Settings {
        scheduler: scheduler.name,
        flags: scheduler.flags | persistent,
        timeout: port.affinity.unwrap_or_default(),
    }
}

/// Who may use a load balancer IP: the ranges, and this node, whose processes have that very address as their source
/// (contract 6.2). The kernel's range sets take no overlaps.
fn sources(port: &PortPlan, address: IpAddr) -> Option<Box<[IpNet]>> {
    if port.source_ranges.is_empty() {
        return None;
    }
    let node = port.allow_vip_sources.then(|| IpNet::from(address));
    let ranges: Vec<IpNet> = port.source_ranges.iter().copied().chain(node).collect();
    Some(IpNet::aggregate(&ranges).into())
}

// === impl Server ===

impl Server {
    /// Whether the virtual server is the same; who may use it is not its business.
    pub fn balances_like(&self, other: &Self) -> bool {
        self.settings == other.settings && self.endpoints == other.endpoints && self.serving() == other.serving()
    }

    /// Endpoints that still serve what they have: of UDP ports, where the kernel knows no end of a connection.
    pub fn serving(&self) -> &[Endpoint] {
        self.special.as_ref().map_or(&[], |special| &special.serving)
    }

    /// Who may use it, as disjoint ranges; `None` is everybody.
    pub fn sources(&self) -> Option<&[IpNet]> {
        self.special.as_ref()?.sources.as_deref()
    }
}

// === impl Groups ===

impl Groups {
    /// Under policy Local, a node without endpoints of its own sends to the others (contract 6.3).
    fn of(&self, route: Route) -> Rc<[Endpoint]> {
        match route {
            Route::Cluster | Route::Drop => self.cluster.clone(),
            Route::Local => self.local.clone(),
            Route::Reject => Rc::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectName, Place};
    use Place::{Elsewhere, Here};

    fn endpoint(address: &str, place: Place) -> Endpoint {
        Endpoint { address: address.parse().unwrap(), port: 8080, place, weight: 3 }
    }

    fn port() -> PortPlan {
        PortPlan {
            name: PortName { service: ObjectName::new("ns", "s"), port: "p".into(), protocol: Protocol::Tcp },
            cluster_ip: "10.96.0.10".parse().unwrap(),
            port: 80,
            external_ips: vec!["192.0.2.9".parse().unwrap()],
            load_balancer_ips: vec!["198.51.100.1".parse().unwrap()],
            node_port: Some(30080),
            internal: Route::Cluster,
            external: Route::Local,
            external_local: true,
            source_ranges: vec!["10.0.0.0/8".parse().unwrap(), "10.1.0.0/16".parse().unwrap()],
            allow_vip_sources: true,
            affinity: Some(60),
            scheduler: None,
            cluster: vec![endpoint("10.244.0.1", Here), endpoint("10.244.1.1", Elsewhere)],
            local: vec![endpoint("10.244.0.1", Here)],
            serving: vec![],
        }
    }

    fn wanted(port: PortPlan) -> Wanted {
        let plan = ServicePlan { name: port.name.service.clone(), ports: vec![port], health_check_node_port: None };
        Wanted::new(&plan, |_| Scheduler::parse("mh").unwrap())
    }

    #[test]
    fn every_entrance_has_the_server_of_its_policy() {
        let wanted = wanted(port());
        let seen: Vec<_> = wanted
            .servers
            .iter()
            .map(|(entrance, server)| {
                (*entrance, server.kind, server.endpoints.len(), server.sources().map(<[_]>::len))
            })
            .collect();
        let address = |text: &str| Entrance::Address(text.parse().unwrap(), Protocol::Tcp, 80);
        assert_eq!(
            seen,
            [
                (address("10.96.0.10"), Kind::Internal, 2, None),
                (address("192.0.2.9"), Kind::ExternalLocal, 1, None),
                // The two ranges are one, and the address itself is the other.
                (address("198.51.100.1"), Kind::ExternalLocal, 1, Some(2)),
                (Entrance::NodePort(Protocol::Tcp, 30080), Kind::ExternalLocal, 1, None),
            ]
        );
        assert_eq!(*wanted.local_endpoints, [("10.244.0.1".parse().unwrap(), Protocol::Tcp, 8080)]);
        let settings = &wanted.servers[0].1.settings;
        assert_eq!((&*settings.scheduler, settings.flags, settings.timeout), ("mh", 0x11, 60));
    }

    #[test]
    fn routes_choose_the_group() {
        for (route, expected) in [(Route::Cluster, 2), (Route::Drop, 2), (Route::Local, 1), (Route::Reject, 0)] {
            let wanted = wanted(PortPlan { external: route, ..port() });
            assert_eq!(wanted.servers[1].1.endpoints.len(), expected, "{route:?}");
        }
    }
}
