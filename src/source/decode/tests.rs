//! Lines, pages and objects, whole and damaged.

use super::*;
use serde_json::{Value, json};

const KINDS: [Kind; 4] = [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr];

fn sample() -> Value {
    json!({
        "metadata": {
            "name": "a", "namespace": "n", "resourceVersion": "7", "uid": "u", "creationTimestamp": null,
            "labels": {"kubernetes.io/service-name": "s\u{e9}\n", "topology.kubernetes.io/zone": "z"},
            "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}}],
        },
        "spec": {
            "clusterIP": "10.0.0.1", "ports": [{"name": "p", "port": 80}], "podCIDRs": ["10.1.0.0/24"],
            "cidrs": ["10.0.0.0/16", "fd00::/108", "bad"], "taints": [{"key": "k", "effect": "NoSchedule"}],
        },
        "addressType": "IPv4",
        "ports": [{"name": "p", "port": 8080}],
        "endpoints": [{"addresses": ["10.1.0.1"], "nodeName": "a", "hints": {"forZones": [{"name": "z"}]}}],
        "status": {"addresses": [
            {"type": "ExternalIP", "address": "192.0.2.1"}, {"type": "InternalIP", "address": "10.2.0.1"},
            {"type": "Hostname", "address": "a"}, {"type": "InternalIP", "address": "bad"},
        ], "loadBalancer": {}},
    })
}

fn line(kind: &str, object: &Value) -> Vec<u8> {
    // The server writes the type first; so must the test.
    format!(r#"{{"type":"{kind}","object":{object}}}"#).into_bytes()
}

#[test]
fn lines_carry_objects_and_their_version() {
    let mut decoder = Decoder::new("a");
    for kind in KINDS {
        for (change, gone) in [("ADDED", false), ("MODIFIED", false), ("DELETED", true)] {
            let Line::Object(event, version) = decoder.line(kind, &line(change, &sample())).unwrap() else {
                panic!("{kind:?} {change} is an object");
            };
            assert_eq!(version, "7");
            let absent = match event {
                Event::Service(name, service) => (name.to_string() == "n/a").then_some(service.is_none()),
                Event::EndpointSlice(name, slice) => (name.to_string() == "n/a").then_some(slice.is_none()),
                Event::Node(node) => Some(node.is_none()),
                Event::ServiceCidr(name, ranges) => (&*name == "a").then_some(ranges.is_none()),
                other => panic!("{other:?}"),
            };
            assert_eq!(absent, Some(gone), "{kind:?} {change}");
        }
    }
}

#[test]
fn bookmarks_tell_where_to_resume() {
    let mut decoder = Decoder::new("a");
    for kind in KINDS {
        let object = json!({"kind": "K", "apiVersion": "v1", "metadata": {"resourceVersion": "9", "creationTimestamp": null},
            "spec": {}, "status": {"loadBalancer": {}}, "addressType": "", "endpoints": null, "ports": null});
        match decoder.line(kind, &line("BOOKMARK", &object)).unwrap() {
            Line::Bookmark { version, initial_end: false } => assert_eq!(version, "9"),
            other => panic!("{other:?}"),
        }
        let annotations = json!({"k8s.io/initial-events-end": "true"});
        let object = json!({"kind": "K", "apiVersion": "v1",
            "metadata": {"resourceVersion": "9", "annotations": annotations}});
        assert!(matches!(
            decoder.line(kind, &line("BOOKMARK", &object)).unwrap(),
            Line::Bookmark { initial_end: true, .. }
        ));
    }
}

#[test]
fn failures_carry_the_status() {
    let object = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "too old", "reason": "Expired", "code": 410});
    for kind in KINDS {
        match Decoder::new("a").line(kind, &line("ERROR", &object)).unwrap() {
            Line::Failure(status) => assert_eq!((status.code, &*status.message), (410, "too old")),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn nodes_have_internal_addresses_first() {
    let Ok(Event::Node(Some(node))) = Decoder::new("a").object(Kind::Node, &sample().to_string()) else {
        panic!("our node is read");
    };
    assert_eq!(node.addresses, ["10.2.0.1", "192.0.2.1"].map(|text| text.parse::<IpAddr>().unwrap()));
    assert_eq!(node.pod_cidrs, ["10.1.0.0/24".parse().unwrap()]);
    assert_eq!((node.zone.as_deref(), node.eligible, &*node.uid), (Some("z"), true, "u"));
}

#[test]
fn leaving_nodes_are_not_eligible() {
    for (field, value) in [
        ("/spec/taints", json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}])),
        ("/metadata/creationTimestamp", Value::Null),
    ] {
        let mut object = sample();
        *object.pointer_mut(field).unwrap() = value;
        if field.starts_with("/metadata") {
            object["metadata"]["deletionTimestamp"] = "2024-01-01T00:00:00Z".into();
        }
        let Ok(Event::Node(Some(node))) = Decoder::new("a").object(Kind::Node, &object.to_string()) else {
            panic!("our node is read");
        };
        assert!(!node.eligible, "{field}");
    }
}

#[test]
fn a_bad_object_is_named_and_harms_no_other() {
    let mut bad = sample();
    bad["spec"]["ports"] = "eighty".into();
    let error = Decoder::new("a").line(Kind::Service, &line("ADDED", &bad)).unwrap_err();
    assert_eq!((&*error.name, &*error.version), ("n/a", "7"));
    assert!(error.to_string().starts_with("n/a cannot be read and is skipped: invalid type"), "{error}");

    let body = json!({"metadata": {"resourceVersion": "8", "continue": "more"}, "items": [bad, sample(), 5]});
    let page = Decoder::new("a").page(Kind::Service, body.to_string().as_bytes()).unwrap();
    assert_eq!((&*page.version, &*page.next), ("8", "more"));
    assert_eq!(page.objects.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, false]);
}

#[test]
fn empty_lists_may_be_null() {
    for body in [r#"{"metadata":{"resourceVersion":"1"},"items":null}"#, r#"{"items":[]}"#, "{}"] {
        assert_eq!(Decoder::new("a").page(Kind::Node, body.as_bytes()).unwrap().objects.len(), 0, "{body}");
    }
}

/// Replaces each value of a real object, one at a time, by each of these: none may panic.
#[test]
fn malformed_objects_do_not_panic() {
    let mutants = [
        json!(null),
        json!(-1),
        json!(1e300),
        json!("\u{0}\u{fffd}\"\\"),
        json!([]),
        json!({}),
        json!([null]),
        json!(true),
    ];
    let mut paths = Vec::new();
    collect(&sample(), String::new(), &mut paths);
    assert!(paths.len() > 40, "{}", paths.len());
    let mut decoder = Decoder::new("a");
    let mut refused = 0;
    for path in &paths {
        for mutant in &mutants {
            let mut object = sample();
            *object.pointer_mut(path).unwrap() = mutant.clone();
            for kind in KINDS {
                refused += usize::from(decoder.line(kind, &line("MODIFIED", &object)).is_err());
            }
        }
    }
    assert!(refused > 100, "mutants are really malformed: {refused}");
}

/// Cuts a line short at every byte and flips every byte: none may panic, and a cut one is never an object.
#[test]
fn truncated_and_damaged_lines_do_not_panic() {
    let mut decoder = Decoder::new("a");
    let whole = line("ADDED", &sample());
    for kind in KINDS {
        for end in 0..whole.len() {
            assert!(decoder.line(kind, &whole[..end]).is_err(), "{kind:?} cut at {end}");
        }
        for place in 0..whole.len() {
            for bit in [1, 0x80] {
                let mut damaged = whole.clone();
                damaged[place] ^= bit;
                let _may_be_either = decoder.line(kind, &damaged);
            }
        }
    }
}

fn collect(value: &Value, path: String, paths: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            collect(value, format!("{path}/{}", key.replace('~', "~0").replace('/', "~1")), paths);
        }),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(index, value)| collect(value, format!("{path}/{index}"), paths));
        }
        _ => {}
    }
    if !path.is_empty() {
        paths.push(path);
    }
}
