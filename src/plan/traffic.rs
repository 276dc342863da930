//! From a Service and its slices to the plan of its ports: which addresses, which routes (contract 4.1, 6).

use std::net::IpAddr;

use super::endpoints::{Candidate, Policy, Selection, candidates, select};
use super::{Endpoint, PortName, PortPlan, Route, ServicePlan};
use crate::model::{EndpointSlice, Family, ObjectName, Protocol, Service, ServicePort};

/// What planning needs to know of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Here {
    /// The node's zone.
    pub zone: Option<Box<str>>,
    /// The node's address of the family.
    pub address: Option<IpAddr>,
    /// External IPs of Services are not served (feature gate AllowServiceExternalIPs, contract 2.5).
    pub without_external_ips: bool,
}

/// Plans all ports of a Service in one family. A Service that is gone, or has no ClusterIP of the family, has none.
pub fn plan<'a>(
    name: &ObjectName,
    service: Option<&Service>,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    family: Family,
    here: &Here,
) -> ServicePlan {
    let of_family = service.and_then(|service| Some((service, service.cluster_ip(family)?)));
    let Some((service, cluster_ip)) = of_family else { return ServicePlan::none(name) };
    let plan_port = |port: &ServicePort| {
        let all = candidates(slices.clone(), family, &port.name, port.protocol);
        plan_port(name, service, cluster_ip, port, &all, here)
    };
    ServicePlan {
        name: name.clone(),
        ports: service.ports.iter().map(plan_port).collect(),
        health_check_node_port: service.health_check_node_port,
    }
}

fn plan_port(
    name: &ObjectName,
    service: &Service,
    cluster_ip: IpAddr,
    port: &ServicePort,
    all: &[Candidate<'_>],
    here: &Here,
) -> PortPlan {
    let family = Family::of(&cluster_ip);
    let of_family =
        |ips: &[IpAddr]| -> Vec<IpAddr> { ips.iter().copied().filter(|ip| Family::of(ip) == family).collect() };
    let mut external_ips = of_family(&service.external_ips);
    let load_balancer_ips = of_family(&service.load_balancer_ips);
    // Whether they are served or not, the Service is one that outsiders can reach (contract 2.5).
    let policy = Policy {
        internal_local: service.internal_local,
        external_local: service.external_local,
        externally_accessible: port.node_port != 0 || !external_ips.is_empty() || !load_balancer_ips.is_empty(),
    };
    let selection = select(all, policy, here.zone.as_deref());
    if here.without_external_ips {
        external_ips.clear();
    }
    let source_ranges = source_ranges(service, family, &load_balancer_ips);
    let endpoints = |candidates: &[Candidate<'_>]| candidates.iter().map(|c| endpoint(c, service.weight)).collect();
    PortPlan {
        name: PortName { service: name.clone(), port: port.name.clone(), protocol: port.protocol },
        cluster_ip,
        port: port.port,
        node_port: (port.node_port != 0).then_some(port.node_port),
        internal: route(&selection, service.internal_local),
        external: route(&selection, service.external_local),
        external_local: service.external_local,
        allow_vip_sources: here.address.is_some_and(|address| source_ranges.iter().any(|net| net.contains(&address))),
        affinity: service.affinity,
        scheduler: service.scheduler.clone(),
        cluster: endpoints(&selection.cluster),
        local: endpoints(&selection.local),
        serving: if port.protocol == Protocol::Udp { endpoints(&serving(all)) } else { Vec::new() },
        external_ips,
        load_balancer_ips,
        source_ranges,
    }
}

fn route(selection: &Selection<'_>, local: bool) -> Route {
    match (selection.any, local) {
        (false, _) => Route::Reject,
        (true, true) if selection.local.is_empty() => Route::Drop,
        (true, true) => Route::Local,
        (true, false) => Route::Cluster,
    }
}

/// Ranges only matter for load balancer IPs, and one of length zero lifts the restriction (contract 6.2).
fn source_ranges(service: &Service, family: Family, load_balancer_ips: &[IpAddr]) -> Vec<ipnet::IpNet> {
    let ranges = || service.source_ranges.iter().filter(|net| Family::of_net(net) == family);
    if load_balancer_ips.is_empty() || ranges().any(|net| net.prefix_len() == 0) {
        return Vec::new();
    }
    ranges().copied().collect()
}

fn serving<'a>(all: &[Candidate<'a>]) -> Vec<Candidate<'a>> {
    all.iter().filter(|candidate| candidate.endpoint.serving).copied().collect()
}

fn endpoint(candidate: &Candidate<'_>, default_weight: Option<u16>) -> Endpoint {
    let Candidate { endpoint, port } = *candidate;
    let weight = endpoint.weight.or(default_weight).unwrap_or(1);
    Endpoint { address: endpoint.address, port, place: endpoint.place, weight }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{self, Place, SlicePort};

    fn service() -> Service {
        Service {
            cluster_ips: ["10.96.0.10", "fd00::10"].map(|address| Some(address.parse().unwrap())),
            ports: vec![ServicePort { name: "p".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 }],
            ..Service::default()
        }
    }

    fn slice(place: Place) -> EndpointSlice {
        let endpoint = model::Endpoint {
            address: "10.244.0.1".parse().unwrap(),
            ready: true,
            serving: true,
            terminating: false,
            place,
            hinted_node: None,
            hinted_zones: Box::default(),
            weight: None,
        };
        let ports = vec![SlicePort { name: "p".into(), protocol: Protocol::Tcp, port: 8080 }];
        EndpointSlice {
            service: ObjectName::new("ns", "s"),
            family: Family::V4,
            ports,
            endpoints: vec![endpoint],
            triggered: None,
        }
    }

    fn plan_of(service: &Service, slices: &[EndpointSlice], family: Family) -> PortPlan {
        let here = Here { address: Some("192.0.2.1".parse().unwrap()), ..Here::default() };
        let mut plan = plan(&ObjectName::new("ns", "s"), Some(service), slices.iter(), family, &here);
        plan.ports.pop().unwrap()
    }

    #[test]
    fn routes_follow_the_policies() {
        let nowhere: &[EndpointSlice] = &[];
        let (here, elsewhere) = (&[slice(Place::Here)][..], &[slice(Place::Elsewhere)][..]);
        for (slices, internal_local, external_local, internal, external) in [
            (nowhere, false, false, Route::Reject, Route::Reject),
            (nowhere, true, true, Route::Reject, Route::Reject),
            (here, false, false, Route::Cluster, Route::Cluster),
            (here, true, true, Route::Local, Route::Local),
            (elsewhere, true, false, Route::Drop, Route::Cluster),
            (elsewhere, false, true, Route::Cluster, Route::Drop),
        ] {
            let mut service = Service { internal_local, external_local, ..service() };
            service.ports[0].node_port = 30000;
            let plan = plan_of(&service, slices, Family::V4);
            assert_eq!((plan.internal, plan.external), (internal, external), "{internal_local} {external_local}");
        }
    }

    #[test]
    fn families_are_independent() {
        assert_eq!(plan_of(&service(), &[slice(Place::Here)], Family::V4).internal, Route::Cluster);
        let v6 = plan_of(&service(), &[slice(Place::Here)], Family::V6);
        assert_eq!((v6.internal, v6.cluster_ip), (Route::Reject, "fd00::10".parse().unwrap()));
        let single = Service { cluster_ips: [service().cluster_ips[0], None], ..service() };
        let none = plan(&ObjectName::new("ns", "s"), Some(&single), [].iter(), Family::V6, &Here::default());
        assert!(none.ports.is_empty());
    }

    #[test]
    fn source_ranges_restrict_load_balancer_ips_only() {
        for (vips, ranges, restricted, vip_sources) in [
            (&["198.51.100.1"][..], &["192.0.2.0/24"][..], 1, true),
            (&["198.51.100.1"], &["203.0.113.0/24"], 1, false),
            (&["198.51.100.1"], &["203.0.113.0/24", "0.0.0.0/0"], 0, false),
            (&["198.51.100.1"], &["fd00::/8"], 0, false),
            (&[], &["192.0.2.0/24"], 0, false),
        ] {
            let service = Service {
                load_balancer_ips: vips.iter().map(|ip| ip.parse().unwrap()).collect(),
                source_ranges: ranges.iter().map(|net| net.parse().unwrap()).collect(),
                ..service()
            };
            let plan = plan_of(&service, &[slice(Place::Here)], Family::V4);
            assert_eq!((plan.source_ranges.len(), plan.allow_vip_sources), (restricted, vip_sources), "{ranges:?}");
        }
    }

    #[test]
    fn external_ips_can_be_refused() {
        let external = Service { external_ips: vec!["203.0.113.9".parse().unwrap()], ..service() };
        let planned = |here: &Here| {
            let name = ObjectName::new("ns", "s");
            plan(&name, Some(&external), [slice(Place::Here)].iter(), Family::V4, here).ports.remove(0)
        };
        assert_eq!(planned(&Here::default()).external_ips.len(), 1);
        let refused = planned(&Here { without_external_ips: true, ..Here::default() });
        assert!(refused.external_ips.is_empty() && !refused.externally_accessible());
        assert_eq!(refused.cluster.len(), 1);
    }

    #[test]
    fn an_endpoint_s_weight_comes_before_the_service_s() {
        let mut slices = [slice(Place::Here)];
        let service = Service { weight: Some(7), ..service() };
        assert_eq!(plan_of(&service, &slices, Family::V4).cluster[0].weight, 7);
        slices[0].endpoints[0].weight = Some(3);
        assert_eq!(plan_of(&service, &slices, Family::V4).cluster[0].weight, 3);
    }
}
