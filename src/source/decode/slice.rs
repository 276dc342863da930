//! An EndpointSlice from the wire to the model (contract 4.2). What cannot be read is logged and left out; the rest is
//! used.

use std::net::IpAddr;

use k8s_openapi::jiff::Timestamp;

use super::wire;
use super::words::Words;
use crate::model::{Endpoint, EndpointSlice, Family, ObjectName, Place, Protocol, SlicePort, parse_ip};

/// What is needed beside the object itself.
pub struct Context<'a> {
    /// Our node: its endpoints are local.
    pub node_name: &'a str,
    /// Names of ports and zones, so that each is kept once.
    pub words: &'a mut Words,
}

/// The slice as this node needs it; `None` when it feeds no Service that can be served from here.
pub fn slice(name: &ObjectName, wire: &wire::EndpointSlice<'_>, context: &mut Context<'_>) -> Option<EndpointSlice> {
    let labels = wire.metadata.labels.as_ref();
    if labels.is_some_and(|labels| labels.headless.is_some()) {
        return None;
    }
    let service = labels.map_or("", |labels| &*labels.service_name);
    if service.is_empty() {
        log::warn!("EndpointSlice {name} has no label kubernetes.io/service-name: ignored");
        return None;
    }
    let family = match &*wire.address_type {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        other => {
            log::error!("EndpointSlice {name} has address type {other:?}, which cannot be served: ignored");
            return None;
        }
    };
    let annotations = wire.metadata.annotations.as_ref();
    let weights = annotations.map_or_else(Vec::new, |annotations| weights(name, &annotations.weights));
    let mut ports: Vec<_> = wire.ports.iter().flatten().filter_map(|wire| port(name, wire, context.words)).collect();
    let wanted = wire.endpoints.iter().flatten();
    let mut endpoints: Vec<_> = wanted.filter_map(|wire| endpoint(name, wire, family, &weights, context)).collect();
    // These are kept by the thousand.
    ports.shrink_to_fit();
    endpoints.shrink_to_fit();
    Some(EndpointSlice {
        service: ObjectName::new(name.namespace(), service),
        family,
        ports,
        endpoints,
        triggered: annotations.and_then(|annotations| triggered(name, &annotations.triggered)),
    })
}

fn port(name: &ObjectName, wire: &wire::SlicePort<'_>, words: &mut Words) -> Option<SlicePort> {
    let number = wire.port.and_then(|port| u16::try_from(port).ok()).filter(|&port| port != 0);
    let (Some(port_name), Some(port), Some(protocol)) = (&wire.name, number, Protocol::from_api(&wire.protocol)) else {
        log::warn!(
            "EndpointSlice {name}: port {:?} ({:?} {:?}) cannot be served: ignored",
            wire.name.as_deref(),
            &*wire.protocol,
            wire.port
        );
        return None;
    };
    Some(SlicePort { name: words.share(port_name), protocol, port })
}

fn endpoint(
    name: &ObjectName,
    wire: &wire::Endpoint<'_>,
    family: Family,
    weights: &[(IpAddr, u16)],
    context: &mut Context<'_>,
) -> Option<Endpoint> {
    let text = wire.addresses.as_deref().and_then(|addresses| addresses.first()).map_or("", |text| &**text);
    let Some(address) = parse_ip(text).filter(|address| Family::of(address) == family) else {
        log::warn!("EndpointSlice {name}: endpoint {text:?} has no {family} address: ignored");
        return None;
    };
    let condition = |read: fn(&wire::Conditions) -> Option<bool>| wire.conditions.as_ref().and_then(read);
    let hints = wire.hints.as_ref();
    let node_hints = hints.and_then(|hints| hints.for_nodes.as_deref()).unwrap_or_default();
    let zone_hints = hints.and_then(|hints| hints.for_zones.as_deref()).unwrap_or_default();
    Some(Endpoint {
        address,
        ready: condition(|c| c.ready).unwrap_or(true),
        serving: condition(|c| c.serving).unwrap_or(true),
        terminating: condition(|c| c.terminating).unwrap_or(false),
        place: match &*wire.node_name {
            "" => Place::Unknown,
            node if node == context.node_name => Place::Here,
            _ => Place::Elsewhere,
        },
        hinted_node: (!node_hints.is_empty()).then(|| node_hints.iter().any(|hint| &*hint.name == context.node_name)),
        hinted_zones: zone_hints.iter().map(|hint| context.words.share(&hint.name)).collect(),
        weight: weights.iter().find(|(of, _)| *of == address).map(|&(_, weight)| weight),
    })
}

/// Reads `address=weight,...`; a part that cannot be read is logged and ignored.
fn weights(name: &ObjectName, text: &str) -> Vec<(IpAddr, u16)> {
    let mut found = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let read = part
            .split_once('=')
            .and_then(|(address, weight)| Some((parse_ip(address.trim())?, weight.trim().parse().ok()?)));
        match read {
            Some(weight) => found.push(weight),
            None => log::warn!(
                "EndpointSlice {name}: {part:?} in annotation kube-proxy.io/weights is not address=0..65535: ignored"
            ),
        }
    }
    found
}

fn triggered(name: &ObjectName, text: &str) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let time = text.parse::<Timestamp>().ok().and_then(|time| u64::try_from(time.as_nanosecond()).ok());
    if time.is_none() {
        log::warn!("EndpointSlice {name}: last-change-trigger-time {text:?} is not an RFC 3339 time: ignored");
    }
    time
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(changes: Value) -> Option<EndpointSlice> {
        let mut object = json!({
            "metadata": {"name": "web-1", "namespace": "n", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.0.0.1", "10.0.0.9"], "nodeName": "us"}],
        });
        object.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let text = object.to_string();
        let mut context = Context { node_name: "us", words: &mut Words::default() };
        slice(&ObjectName::new("n", "web-1"), &serde_json::from_str(&text).unwrap(), &mut context)
    }

    fn endpoint(endpoint: Value) -> Option<Endpoint> {
        read(json!({"endpoints": [endpoint]})).unwrap().endpoints.pop()
    }

    #[test]
    fn slices_that_feed_nothing_are_ignored() {
        assert!(read(json!({})).is_some());
        for changes in [
            json!({"metadata": {"name": "web-1"}}),
            json!({"metadata": {"labels": {"kubernetes.io/service-name": ""}}}),
            json!({"metadata": {"labels": null}}),
            json!({"metadata": {"labels": {"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": ""}}}),
            json!({"addressType": "FQDN"}),
            json!({"addressType": null}),
        ] {
            assert_eq!(read(changes.clone()), None, "{changes}");
        }
    }

    #[test]
    fn absent_conditions_mean_ready_and_staying() {
        for (conditions, expected) in [
            (Value::Null, (true, true, false)),
            (json!({}), (true, true, false)),
            (json!({"ready": null, "serving": null, "terminating": null}), (true, true, false)),
            (json!({"ready": false, "serving": true, "terminating": true}), (false, true, true)),
            (json!({"ready": false, "serving": false}), (false, false, false)),
        ] {
            let found = endpoint(json!({"addresses": ["10.0.0.1"], "conditions": conditions})).unwrap();
            assert_eq!((found.ready, found.serving, found.terminating), expected, "{conditions}");
        }
    }

    #[test]
    fn only_the_first_address_counts_and_must_be_of_the_family() {
        let address = |addresses: Value| endpoint(json!({"addresses": addresses})).map(|found| found.address);
        assert_eq!(address(json!(["10.0.0.1", "10.0.0.2"])), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(address(json!(["010.0.0.1"])), Some("10.0.0.1".parse().unwrap()));
        for bad in [json!([]), json!(null), json!(["fd00::1"]), json!(["pod.example"]), json!([""])] {
            assert_eq!(address(bad.clone()), None, "{bad}");
        }
    }

    #[test]
    fn endpoints_are_here_on_our_node() {
        let place = |node: Value| endpoint(json!({"addresses": ["10.0.0.1"], "nodeName": node})).unwrap().place;
        assert_eq!(place(json!("us")), Place::Here);
        assert_eq!(place(json!("US")), Place::Elsewhere);
        assert_eq!(place(json!("them")), Place::Elsewhere);
        assert_eq!(place(json!("")), Place::Unknown);
        assert_eq!(place(Value::Null), Place::Unknown);
    }

    #[test]
    fn hints_name_zones_and_this_node() {
        let zones = |hints: Value| {
            let found = endpoint(json!({"addresses": ["10.0.0.1"], "hints": hints})).unwrap();
            (found.hinted_zones.iter().map(ToString::to_string).collect::<Vec<_>>(), found.hinted_node)
        };
        assert_eq!(zones(Value::Null), (vec![], None));
        assert_eq!(zones(json!({"forZones": [], "forNodes": []})), (vec![], None));
        assert_eq!(zones(json!({"forZones": [{"name": "a"}, {"name": "b"}]})), (vec!["a".into(), "b".into()], None));
        assert_eq!(zones(json!({"forNodes": [{"name": "us"}, {"name": "them"}]})).1, Some(true));
        assert_eq!(zones(json!({"forNodes": [{"name": "them"}]})).1, Some(false));
    }

    #[test]
    fn ports_need_a_name_and_a_number() {
        let ports = json!([
            {"name": "web", "port": 8080, "protocol": "TCP"}, {"port": 1}, {"name": null, "port": 2},
            {"name": "none"}, {"name": "zero", "port": 0}, {"name": "large", "port": 70000},
            {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "odd", "port": 3, "protocol": "ODD"},
        ]);
        let ports = read(json!({"ports": ports})).unwrap().ports;
        let seen: Vec<_> = ports.iter().map(|port| (&*port.name, port.protocol, port.port)).collect();
        assert_eq!(seen, [("web", Protocol::Tcp, 8080), ("dns", Protocol::Udp, 53)]);
    }

    #[test]
    fn annotations_give_weights_and_the_time_of_change() {
        let annotations = json!({
            "kube-proxy.io/weights": "10.0.0.1=3, 10.0.0.2 = 0,10.0.0.3=65536,=1,10.0.0.4",
            "endpoints.kubernetes.io/last-change-trigger-time": "2024-01-02T03:04:05.000000006Z",
        });
        let labels = json!({"kubernetes.io/service-name": "web"});
        let endpoints: Vec<_> = (1..=4).map(|i| json!({"addresses": [format!("10.0.0.{i}")]})).collect();
        let metadata = json!({"labels": labels, "annotations": annotations});
        let found = read(json!({"metadata": metadata, "endpoints": endpoints})).unwrap();
        let weights: Vec<_> = found.endpoints.iter().map(|endpoint| endpoint.weight).collect();
        assert_eq!(weights, [Some(3), Some(0), None, None]);
        assert_eq!(found.triggered, Some(1_704_164_645_000_000_006));

        let metadata = json!({"labels": {"kubernetes.io/service-name": "web"}, "annotations":
            {"endpoints.kubernetes.io/last-change-trigger-time": "yesterday"}});
        assert_eq!(read(json!({"metadata": metadata})).unwrap().triggered, None);
    }
}
