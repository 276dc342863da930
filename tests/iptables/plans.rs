//! Plans for tests, in few words.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kube_proxy::model::{Family, ObjectName, Place, Protocol};
use kube_proxy::plan::{Endpoint, LocalTraffic, NodeFacts, NodePortAddresses, PortName, PortPlan, Route, ServicePlan};

/// A Service with one port, `http` on 80, on the ClusterIP that its number says.
pub struct Plan {
    port: PortPlan,
    number: u16,
    health_check: Option<u16>,
}

/// Numbers that are the same in every run.
pub struct Random(pub u64);

/// A node whose pods have 10.244.1.0/24.
pub fn facts(family: Family) -> NodeFacts {
    let pods = if family == Family::V4 { "10.244.1.0/24" } else { "fd00:10:1::/64" };
    NodeFacts {
        family,
        local_traffic: LocalTraffic::Cidr(pods.parse().unwrap()),
        masquerade_all: false,
        masquerade_mark: 0x4000,
        node_port_addresses: NodePortAddresses::All,
        host_addresses: vec![],
        service_cidrs: Vec::new(),
    }
}

/// Some Service out of a few dozen, in some state; sometimes gone.
pub fn random(random: &mut Random, family: Family) -> ServicePlan {
    let number = 1 + random.below(30) as u16;
    let mut plan = Plan::new(family, number);
    let endpoints: Vec<_> = (2..7).filter(|_| random.below(2) == 0).collect();
    if !endpoints.is_empty() {
        plan = plan.endpoints(&endpoints);
    }
    if random.below(2) == 0 {
        plan = plan.node_port(30000 + number);
    }
    if random.below(3) == 0 {
        plan = plan.external_ip();
    }
    if random.below(3) == 0 {
        plan = plan.load_balancer(if random.below(2) == 0 { &["from"] } else { &[] });
    }
    if random.below(3) == 0 {
        let local: Vec<_> = endpoints.iter().copied().filter(|_| random.below(2) == 0).collect();
        plan = plan.local(&local).health_check(32000 + number);
    }
    if random.below(4) == 0 {
        plan = plan.affinity(1 + random.below(3) as u32);
    }
    let mut plan = plan.build();
    if random.below(5) == 0 {
        plan.ports.clear();
        plan.health_check_node_port = None;
    }
    plan
}

// === impl Plan ===

impl Plan {
    pub fn new(family: Family, number: u16) -> Self {
        let name = PortName {
            service: ObjectName::new("ns", &format!("svc{number}")),
            port: "http".into(),
            protocol: Protocol::Tcp,
        };
        let port = PortPlan {
            name,
            cluster_ip: address(family, [10, 96], number),
            port: 80,
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            node_port: None,
            internal: Route::Reject,
            external: Route::Reject,
            external_local: false,
            source_ranges: Vec::new(),
            allow_vip_sources: false,
            affinity: None,
            scheduler: None,
            cluster: Vec::new(),
            local: Vec::new(),
            serving: Vec::new(),
        };
        Self { port, number, health_check: None }
    }

    /// Pods serve it, by the last part of their addresses; those below 10 are on this node.
    pub fn endpoints(mut self, pods: &[u16]) -> Self {
        self.port.cluster = self.pods(pods);
        (self.port.internal, self.port.external) = (Route::Cluster, Route::Cluster);
        self
    }

    /// A pod that serves it too, in a slice that says of no node.
    pub fn endpoint_of_no_node(mut self, pod: u16) -> Self {
        let endpoints = self.pods(&[pod]).into_iter().map(|endpoint| Endpoint { place: Place::Unknown, ..endpoint });
        self.port.cluster.extend(endpoints);
        (self.port.internal, self.port.external) = (Route::Cluster, Route::Cluster);
        self
    }

    /// Traffic from outside stays on the node, where these pods serve it.
    pub fn local(mut self, pods: &[u16]) -> Self {
        self.port.external_local = true;
        self.port.local = self.pods(pods);
        self.port.external = self.local_route();
        self
    }

    /// Traffic to the ClusterIP stays on the node.
    pub fn internal_local(mut self, pods: &[u16]) -> Self {
        self.port.local = self.pods(pods);
        self.port.internal = self.local_route();
        self
    }

    pub fn node_port(mut self, port: u16) -> Self {
        self.port.node_port = Some(port);
        self
    }

    pub fn external_ip(mut self) -> Self {
        self.port.external_ips = vec![address(self.family(), [198, 51], self.number)];
        self
    }

    /// Open to the client's network, if there are `ranges`, otherwise to all.
    pub fn load_balancer(mut self, ranges: &[&str]) -> Self {
        let range = if self.family() == Family::V4 { "192.0.2.0/24" } else { "2001:db8::/64" };
        self.port.load_balancer_ips = vec![address(
            self.family(),
            [203, 0],
            if self.family() == Family::V4 { 0x7100 + self.number } else { self.number },
        )];
        self.port.source_ranges = ranges.iter().map(|_| range.parse().unwrap()).collect();
        self.port.allow_vip_sources = !ranges.is_empty();
        self
    }

    pub fn affinity(mut self, seconds: u32) -> Self {
        self.port.affinity = Some(seconds);
        self
    }

    pub fn udp(mut self) -> Self {
        self.port.name.protocol = Protocol::Udp;
        self
    }

    pub fn health_check(mut self, port: u16) -> Self {
        self.health_check = Some(port);
        self
    }

    /// Anything else.
    pub fn edit(&mut self, edit: impl FnOnce(&mut PortPlan)) {
        edit(&mut self.port);
    }

    pub fn build(self) -> ServicePlan {
        ServicePlan {
            name: self.port.name.service.clone(),
            ports: vec![self.port],
            health_check_node_port: self.health_check,
        }
    }

    fn local_route(&self) -> Route {
        match (self.port.cluster.is_empty(), self.port.local.is_empty()) {
            (true, _) => Route::Reject,
            (false, true) => Route::Drop,
            (false, false) => Route::Local,
        }
    }

    fn family(&self) -> Family {
        Family::of(&self.port.cluster_ip)
    }

    fn pods(&self, numbers: &[u16]) -> Vec<Endpoint> {
        let pod = |number: &u16| Endpoint {
            address: address(self.family(), [10, 244], 0x100 + number),
            port: 8080,
            place: if *number < 10 { Place::Here } else { Place::Elsewhere },
            weight: 1,
        };
        numbers.iter().map(pod).collect()
    }
}

fn address(family: Family, [a, b]: [u8; 2], number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    match family {
        Family::V4 => Ipv4Addr::new(a, b, high, low).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, a.into(), b.into(), 0, 0, 0, 0, number).into(),
    }
}

// === impl Random ===

impl Random {
    /// Less than `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }
}
