//! Plans for tests of the backends: a small vocabulary, and random ones.

use kube_proxy::model::{Family, ObjectName, Place, Protocol};
use kube_proxy::plan::{Endpoint, LocalTraffic, NodeFacts, NodePortAddresses, PortName, PortPlan, Route, ServicePlan};

/// Facts of a node whose pods are in 10.244.0.0/16 or fd00:10:244::/56.
pub fn facts(family: Family) -> NodeFacts {
    let (pods, services) = match family {
        Family::V4 => ("10.244.0.0/16", "10.96.0.0/12"),
        Family::V6 => ("fd00:10:244::/56", "fd00:10:96::/112"),
    };
    NodeFacts {
        family,
        local_traffic: LocalTraffic::Cidr(pods.parse().unwrap()),
        masquerade_all: false,
        masquerade_mark: 0x4000,
        node_port_addresses: NodePortAddresses::All,
        host_addresses: vec![],
        service_cidrs: vec![services.parse().unwrap()],
    }
}

/// A pod's endpoint: `10.244.0.N:8080` or `fd00:10:244::N`; those below 100 are on this node.
pub fn endpoint(family: Family, number: u16) -> Endpoint {
    let address = match family {
        Family::V4 => format!("10.244.{}.{}", number / 256, number % 256),
        Family::V6 => format!("fd00:10:244::{number:x}"),
    };
    let place = if number < 100 { Place::Here } else { Place::Elsewhere };
    Endpoint { address: address.parse().unwrap(), port: 8080, place, weight: 1 }
}

/// A Service with one TCP port 80 on `10.96.0.N` or `fd00:10:96::N`, policy Cluster, and these endpoints.
pub fn service(family: Family, number: u16, endpoints: &[u16]) -> ServicePlan {
    let name = ObjectName::new("default", &format!("svc-{number}"));
    let cluster_ip = match family {
        Family::V4 => format!("10.96.{}.{}", number / 256, number % 256),
        Family::V6 => format!("fd00:10:96::{number:x}"),
    };
    let route = if endpoints.is_empty() { Route::Reject } else { Route::Cluster };
    let port = PortPlan {
        name: PortName { service: name.clone(), port: "http".into(), protocol: Protocol::Tcp },
        cluster_ip: cluster_ip.parse().unwrap(),
        port: 80,
        external_ips: vec![],
        load_balancer_ips: vec![],
        node_port: None,
        internal: route,
        external: route,
        external_local: false,
        source_ranges: vec![],
        allow_vip_sources: false,
        affinity: None,
        scheduler: None,
        cluster: endpoints.iter().map(|&endpoint_number| endpoint(family, endpoint_number)).collect(),
        local: vec![],
        serving: vec![],
    };
    ServicePlan { ports: vec![port], ..ServicePlan::none(&name) }
}

/// A small random number generator (SplitMix64), so that a failure can be repeated from its seed.
pub struct Random(pub u64);

// === impl Random ===

impl Random {
    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    /// True once in `of` times.
    pub fn one_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    /// A Service of any kind: some are gone, some have no endpoints, a few have everything.
    pub fn service(&mut self, family: Family, number: u16) -> ServicePlan {
        let count = self.below(6);
        let endpoints: Vec<u16> = (0..count).map(|_| 90 + self.below(20) as u16).collect();
        let mut endpoints: Vec<u16> = endpoints;
        endpoints.sort_unstable();
        endpoints.dedup();
        let mut plan = service(family, number, &endpoints);
        if self.one_in(5) {
            plan.ports.clear();
            return plan;
        }
        let port = &mut plan.ports[0];
        port.local = port.cluster.iter().filter(|endpoint| endpoint.place.is_here()).cloned().collect();
        let local_route = match (port.cluster.is_empty(), port.local.is_empty()) {
            (true, _) => Route::Reject,
            (false, true) => Route::Drop,
            (false, false) => Route::Local,
        };
        if self.one_in(3) {
            port.internal = local_route;
        }
        if self.one_in(3) {
            port.external_local = true;
            port.external = local_route;
        }
        if self.one_in(3) {
            port.affinity = Some([30, 10800][self.below(2) as usize]);
        }
        if self.one_in(2) {
            port.node_port = Some(30000 + number);
        }
        if self.one_in(3) {
            let vip = match family {
                Family::V4 => format!("198.51.100.{}", number % 256),
                Family::V6 => format!("2001:db8::{number:x}"),
            };
            port.load_balancer_ips = vec![vip.parse().unwrap()];
            if self.one_in(2) {
                let ranges = match family {
                    Family::V4 => ["192.0.2.0/24", "192.0.2.128/25", "203.0.113.7/32"],
                    Family::V6 => ["2001:db8:1::/48", "2001:db8:1:8000::/49", "2001:db8:2::7/128"],
                };
                port.source_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
                port.allow_vip_sources = self.one_in(2);
            }
        }
        if self.one_in(4) {
            port.cluster.iter_mut().for_each(|endpoint| endpoint.weight = (endpoint.port % 3) + 1);
            if let Some(first) = port.cluster.first_mut() {
                first.weight = 3;
            }
        }
        plan
    }
}
