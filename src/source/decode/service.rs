//! A Service from the wire to the model (contract 4.1). What cannot be read is logged and left out; the rest is used.

use std::net::IpAddr;

use ipnet::IpNet;

use super::wire::{self, Text};
use super::words::Words;
use crate::model::{Family, ObjectName, Protocol, Service, ServicePort, parse_cidr, parse_ip};

/// The API server's default for `sessionAffinityConfig.clientIP.timeoutSeconds`.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

/// The Service as this node needs it; `None` when it is not to be served: headless, an ExternalName, or left to
/// another proxy.
pub fn service(name: &ObjectName, wire: &wire::Service<'_>, words: &mut Words) -> Option<Service> {
    let spec = wire.spec.as_ref()?;
    let labels = wire.metadata.labels.as_ref();
    if &*spec.kind == "ExternalName" || labels.is_some_and(|l| l.service_proxy_name.is_some()) {
        return None;
    }
    let cluster_ips = cluster_ips(name, spec);
    if cluster_ips == [None; 2] {
        return None;
    }
    let external_ips = addresses(name, "spec.externalIPs", texts(&spec.external_ips));
    let local_allowed = match &*spec.kind {
        "LoadBalancer" | "NodePort" => true,
        _ => !external_ips.is_empty(),
    };
    let external_local = &*spec.external_traffic_policy == "Local" && local_allowed;
    let affinity = (&*spec.session_affinity == "ClientIP").then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        config.and_then(|config| config.timeout_seconds).unwrap_or(DEFAULT_AFFINITY_SECONDS)
    });
    let annotations = wire.metadata.annotations.as_ref();
    let mut ports: Vec<_> = spec.ports.iter().flatten().filter_map(|wire| port(name, wire, words)).collect();
    ports.shrink_to_fit();
    Some(Service {
        cluster_ips,
        ports,
        external_ips,
        load_balancer_ips: load_balancer_ips(name, wire),
        source_ranges: source_ranges(name, spec),
        external_local,
        internal_local: &*spec.internal_traffic_policy == "Local",
        health_check_node_port: health_check_node_port(name, spec, external_local),
        affinity,
        weight: annotations.and_then(|annotations| weight(name, &annotations.weight)),
        scheduler: annotations.map(|a| a.scheduler.trim()).filter(|text| !text.is_empty()).map(Into::into),
    })
}

/// One per family: the one at that family's place in `ipFamilies`, or the only one when no families are given.
fn cluster_ips(name: &ObjectName, spec: &wire::ServiceSpec<'_>) -> [Option<IpAddr>; 2] {
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let listed = spec.cluster_ips.as_deref().filter(|_| !families.is_empty()).unwrap_or_default();
    let texts = if listed.is_empty() { std::slice::from_ref(&spec.cluster_ip) } else { listed };
    let mut found = [None; 2];
    for (place, text) in texts.iter().enumerate().filter(|(_, text)| !matches!(&***text, "" | "None")) {
        let Some(address) = parse_ip(text) else {
            log::warn!("Service {name}: clusterIP {:?} is not an IP address: ignored", &**text);
            continue;
        };
        let family = Family::of(&address);
        let wanted = families.get(place).is_none_or(|wanted| &**wanted == family.as_str());
        if wanted {
            found[family as usize].get_or_insert(address);
        }
    }
    found
}

fn port(name: &ObjectName, wire: &wire::ServicePort<'_>, words: &mut Words) -> Option<ServicePort> {
    let number = |value: Option<i64>| u16::try_from(value.unwrap_or(0)).ok();
    let (Some(port @ 1..), Some(node_port), Some(protocol)) =
        (number(wire.port), number(wire.node_port), Protocol::from_api(&wire.protocol))
    else {
        log::warn!(
            "Service {name}: port {:?} ({:?} {:?}, nodePort {:?}) cannot be served: ignored",
            &*wire.name,
            &*wire.protocol,
            wire.port.unwrap_or(0),
            wire.node_port.unwrap_or(0)
        );
        return None;
    };
    Some(ServicePort { name: words.share(&wire.name), protocol, port, node_port })
}

fn load_balancer_ips(name: &ObjectName, wire: &wire::Service<'_>) -> Vec<IpAddr> {
    let ingress = wire.status.as_ref().and_then(|status| status.load_balancer.as_ref()).map(|lb| &lb.ingress);
    let ingress = ingress.into_iter().flatten().flatten().filter(|ingress| matches!(&*ingress.ip_mode, "" | "VIP"));
    addresses(name, "status.loadBalancer.ingress", ingress.map(|ingress| &ingress.ip))
}

/// A range that holds a whole family lifts the restriction for that family (contract 4.1).
fn source_ranges(name: &ObjectName, spec: &wire::ServiceSpec<'_>) -> Vec<IpNet> {
    let mut ranges = Vec::new();
    for text in texts(&spec.load_balancer_source_ranges) {
        match parse_cidr(text.trim()) {
            Some(range) => ranges.push(range),
            None => log::warn!("Service {name}: source range {:?} is not a CIDR: ignored", &**text),
        }
    }
    for family in Family::ALL {
        if ranges.iter().any(|range| range.prefix_len() == 0 && Family::of_net(range) == family) {
            ranges.retain(|range| Family::of_net(range) != family);
        }
    }
    ranges
}

fn health_check_node_port(name: &ObjectName, spec: &wire::ServiceSpec<'_>, external_local: bool) -> Option<u16> {
    if &*spec.kind != "LoadBalancer" || !external_local {
        return None;
    }
    let port = spec.health_check_node_port.and_then(|port| u16::try_from(port).ok()).filter(|&port| port != 0);
    if port.is_none() {
        log::warn!("Service {name}: externalTrafficPolicy is Local but there is no healthCheckNodePort: not served");
    }
    port
}

fn weight(name: &ObjectName, text: &str) -> Option<u16> {
    if text.is_empty() {
        return None;
    }
    let weight = text.trim().parse().ok();
    if weight.is_none() {
        log::warn!("Service {name}: annotation kube-proxy.io/weight {text:?} is not a number from 0 to 65535: ignored");
    }
    weight
}

fn texts<'w, 'a>(list: &'w Option<Vec<Text<'a>>>) -> impl Iterator<Item = &'w Text<'a>> {
    list.iter().flatten()
}

fn addresses<'w, 'a: 'w>(name: &ObjectName, field: &str, texts: impl Iterator<Item = &'w Text<'a>>) -> Vec<IpAddr> {
    let read = |text: &'w Text<'a>| {
        let address = parse_ip(text);
        if address.is_none() {
            log::warn!("Service {name}: {field} {:?} is not an IP address: ignored", &**text);
        }
        address
    };
    texts.filter(|text| !text.trim().is_empty()).filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(spec: Value, status: Value) -> Option<Service> {
        let text = json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec, "status": status}).to_string();
        service(&ObjectName::new("n", "s"), &serde_json::from_str(&text).unwrap(), &mut Words::default())
    }

    fn spec(changes: Value) -> Option<Service> {
        let mut spec = json!({
            "type": "ClusterIP", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ipFamilies": ["IPv4"],
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}],
        });
        spec.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        read(spec, Value::Null)
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn services_without_a_cluster_ip_are_ignored() {
        assert!(spec(json!({})).is_some());
        for changes in [
            json!({"clusterIP": "None", "clusterIPs": ["None"]}),
            json!({"clusterIP": "", "clusterIPs": []}),
            json!({"clusterIP": null, "clusterIPs": null}),
            json!({"type": "ExternalName"}),
            json!({"clusterIP": "ten", "clusterIPs": ["ten"]}),
        ] {
            assert_eq!(spec(changes.clone()), None, "{changes}");
        }
        assert_eq!(read(Value::Null, Value::Null), None);
    }

    #[test]
    fn services_of_another_proxy_are_ignored() {
        let labels = json!({"service.kubernetes.io/service-proxy-name": ""});
        let text = json!({"metadata": {"labels": labels}, "spec": {"clusterIP": "10.0.0.1"}}).to_string();
        assert_eq!(
            service(&ObjectName::new("n", "s"), &serde_json::from_str(&text).unwrap(), &mut Words::default()),
            None
        );
    }

    #[test]
    fn cluster_ips_follow_the_families() {
        for (changes, expected) in [
            (json!({"clusterIPs": ["10.0.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"]}), ["10.0.0.1", "fd00::1"]),
            (json!({"clusterIPs": ["fd00::1", "10.0.0.1"], "ipFamilies": ["IPv6", "IPv4"]}), ["10.0.0.1", "fd00::1"]),
            (json!({"clusterIPs": ["10.0.0.1", "fd00::1"], "ipFamilies": ["IPv4"]}), ["10.0.0.1", "fd00::1"]),
            (json!({"clusterIPs": ["10.0.0.2"], "ipFamilies": null}), ["10.96.0.1", ""]),
            (json!({"clusterIP": "fd00::2", "clusterIPs": [], "ipFamilies": []}), ["", "fd00::2"]),
            (json!({"clusterIPs": ["10.0.0.1", "10.0.0.2"], "ipFamilies": ["IPv4", "IPv4"]}), ["10.0.0.1", ""]),
        ] {
            let expected = expected.map(|address| (!address.is_empty()).then(|| address.parse().unwrap()));
            assert_eq!(spec(changes.clone()).unwrap().cluster_ips, expected, "{changes}");
        }
    }

    #[test]
    fn ports_that_make_no_sense_are_left_out() {
        let ports = json!([
            {"name": "web", "port": 80, "nodePort": 30080, "protocol": "TCP"},
            {"name": "default-protocol", "port": 81},
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "zero", "port": 0},
            {"name": "large", "port": 65536},
            {"name": "negative", "port": -1},
            {"name": "quic", "port": 443, "protocol": "QUIC"},
        ]);
        let ports = spec(json!({"ports": ports})).unwrap().ports;
        let seen: Vec<_> = ports.iter().map(|port| (&*port.name, port.protocol, port.port, port.node_port)).collect();
        assert_eq!(
            seen,
            [
                ("web", Protocol::Tcp, 80, 30080),
                ("default-protocol", Protocol::Tcp, 81, 0),
                ("dns", Protocol::Udp, 53, 0),
            ]
        );
    }

    #[test]
    fn external_policy_local_needs_something_external() {
        for (changes, expected) in [
            (json!({}), false),
            (json!({"externalIPs": ["192.0.2.1"]}), true),
            (json!({"externalIPs": ["nonsense", " "]}), false),
            (json!({"type": "NodePort"}), true),
            (json!({"type": "LoadBalancer"}), true),
        ] {
            let mut changes = changes;
            changes["externalTrafficPolicy"] = "Local".into();
            assert_eq!(spec(changes.clone()).unwrap().external_local, expected, "{changes}");
        }
    }

    #[test]
    fn health_check_port_belongs_to_local_load_balancers() {
        for (kind, policy, port, expected) in [
            ("LoadBalancer", "Local", 31000, Some(31000)),
            ("LoadBalancer", "Cluster", 31000, None),
            ("NodePort", "Local", 31000, None),
            ("LoadBalancer", "Local", 0, None),
        ] {
            let changes = json!({"type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": port});
            assert_eq!(spec(changes).unwrap().health_check_node_port, expected, "{kind} {policy} {port}");
        }
    }

    #[test]
    fn only_vip_ingress_counts() {
        let ingress = json!([
            {"ip": "192.0.2.1"}, {"ip": "192.0.2.2", "ipMode": "VIP"}, {"ip": "192.0.2.3", "ipMode": "Proxy"},
            {"hostname": "lb.example"}, {"ip": "010.0.0.4"}, {"ip": "bad"},
        ]);
        let found = read(json!({"clusterIP": "10.0.0.1"}), json!({"loadBalancer": {"ingress": ingress}})).unwrap();
        assert_eq!(found.load_balancer_ips, ips(&["192.0.2.1", "192.0.2.2", "10.0.0.4"]));
    }

    #[test]
    fn a_range_of_everything_lifts_the_restriction_of_its_family() {
        for (ranges, expected) in [
            (json!([" 10.1.2.3/8 ", "fd00::/64", "x"]), &["10.0.0.0/8", "fd00::/64"][..]),
            (json!(["10.0.0.0/8", "0.0.0.0/0", "fd00::/64"]), &["fd00::/64"]),
            (json!(["::/0"]), &[]),
        ] {
            let found = spec(json!({"loadBalancerSourceRanges": ranges})).unwrap().source_ranges;
            assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn affinity_has_the_default_timeout() {
        let config = json!({"clientIP": {"timeoutSeconds": 5}});
        for (changes, expected) in [
            (json!({"sessionAffinity": "None", "sessionAffinityConfig": config}), None),
            (json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config}), Some(5)),
            (json!({"sessionAffinity": "ClientIP"}), Some(10_800)),
        ] {
            assert_eq!(spec(changes).unwrap().affinity, expected);
        }
    }

    #[test]
    fn weight_and_scheduler_come_from_annotations() {
        for (weight, expected) in [("5", Some(5)), ("0", Some(0)), ("65536", None), ("-1", None), ("many", None)] {
            let annotations = json!({"kube-proxy.io/weight": weight, "kube-proxy.io/scheduler": "wrr"});
            let text = json!({"metadata": {"annotations": annotations}, "spec": {"clusterIP": "10.0.0.1"}}).to_string();
            let found =
                service(&ObjectName::new("n", "s"), &serde_json::from_str(&text).unwrap(), &mut Words::default())
                    .unwrap();
            assert_eq!((found.weight, found.scheduler.as_deref()), (expected, Some("wrr")), "{weight}");
        }
    }
}
