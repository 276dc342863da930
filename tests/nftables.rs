//! The nftables backend against the real kernel, read back with `nft`, an independent reader.

mod support;

use std::net::IpAddr;

use kube_proxy::backend::Backend;
use kube_proxy::model::{Family, ObjectName, Protocol};
use kube_proxy::nftables::Table;
use kube_proxy::plan::{Endpoint, LocalTraffic, NodeFacts, NodePortAddresses, PortName, PortPlan, Route, ServicePlan};
use support::netns::{isolated, run};

fn facts(family: Family) -> NodeFacts {
    NodeFacts {
        family,
        local_traffic: LocalTraffic::Cidr(
            if family == Family::V4 { "10.244.0.0/16" } else { "fd00:10:244::/56" }.parse().unwrap(),
        ),
        masquerade_all: false,
        masquerade_mark: 0x4000,
        node_port_addresses: NodePortAddresses::All,
        service_cidrs: vec![if family == Family::V4 { "10.96.0.0/12" } else { "fd00:10:96::/112" }.parse().unwrap()],
    }
}

fn service(name: &str, cluster_ip: &str, endpoints: &[&str]) -> ServicePlan {
    let name = ObjectName::new("default", name);
    let endpoints: Vec<Endpoint> = endpoints
        .iter()
        .map(|address| Endpoint {
            address: address.parse().unwrap(),
            port: 8080,
            local: address.ends_with('1'),
            weight: 1,
        })
        .collect();
    let route = if endpoints.is_empty() { Route::Reject } else { Route::Cluster };
    let port = PortPlan {
        name: PortName { service: name.clone(), port: "http".into(), protocol: Protocol::Tcp },
        cluster_ip: cluster_ip.parse::<IpAddr>().unwrap(),
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
        cluster: endpoints,
        local: vec![],
        serving: vec![],
    };
    ServicePlan { name, ports: vec![port] }
}

#[test]
fn smoke() {
    isolated("smoke", || {
        for (family, vip, ep) in
            [(Family::V4, "10.96.0.10", "10.244.0.1"), (Family::V6, "fd00:10:96::10", "fd00:10:244::1")]
        {
            let mut table = Table::new(family).unwrap();
            let mut plan = service("web", vip, &[ep]);
            plan.ports[0].affinity = Some(100);
            plan.ports[0].node_port = Some(30000);
            plan.ports[0].load_balancer_ips = vec![vip.parse().unwrap()];
            plan.ports[0].source_ranges =
                vec![if family == Family::V4 { "10.0.0.0/8" } else { "fd00::/16" }.parse().unwrap()];
            table.replace(&facts(family), &mut vec![plan.clone()].into_iter()).unwrap();
            plan.ports[0].affinity = None;
            table.update(&[plan.clone()]).unwrap();
            let mut table = Table::new(family).unwrap();
            let report = table.replace(&facts(family), &mut vec![plan.clone()].into_iter()).unwrap();
            println!("{report:?}");
        }
        println!("{}", run("nft list ruleset"));
    });
}
