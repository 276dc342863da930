//! Lines, pages and objects, whole and damaged, in both formats.

#[allow(dead_code, reason = "the integration tests use all of it")]
#[path = "../../../tests/support/protobuf.rs"]
mod protobuf;

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
            let Line::Object(event, version) = decoder.line(kind, Format::Json, &line(change, &sample())).unwrap()
            else {
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
        match decoder.line(kind, Format::Json, &line("BOOKMARK", &object)).unwrap() {
            Line::Bookmark { version, initial_end: false } => assert_eq!(version, "9"),
            other => panic!("{other:?}"),
        }
        let annotations = json!({"k8s.io/initial-events-end": "true"});
        let object = json!({"kind": "K", "apiVersion": "v1",
            "metadata": {"resourceVersion": "9", "annotations": annotations}});
        assert!(matches!(
            decoder.line(kind, Format::Json, &line("BOOKMARK", &object)).unwrap(),
            Line::Bookmark { initial_end: true, .. }
        ));
    }
}

#[test]
fn failures_carry_the_status() {
    let object = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "too old", "reason": "Expired", "code": 410});
    for kind in KINDS {
        match Decoder::new("a").line(kind, Format::Json, &line("ERROR", &object)).unwrap() {
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
    let error = Decoder::new("a").line(Kind::Service, Format::Json, &line("ADDED", &bad)).unwrap_err();
    assert_eq!((&*error.name, &*error.version), ("n/a", "7"));
    assert!(error.to_string().starts_with("n/a cannot be read and is skipped: invalid type"), "{error}");

    let body = json!({"metadata": {"resourceVersion": "8", "continue": "more"}, "items": [bad, sample(), 5]});
    let page = Decoder::new("a").page(Kind::Service, Format::Json, body.to_string().as_bytes()).unwrap();
    assert_eq!((&*page.version, &*page.next), ("8", "more"));
    assert_eq!(page.objects.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, false]);
}

#[test]
fn empty_lists_may_be_null() {
    for body in [r#"{"metadata":{"resourceVersion":"1"},"items":null}"#, r#"{"items":[]}"#, "{}"] {
        assert_eq!(
            Decoder::new("a").page(Kind::Node, Format::Json, body.as_bytes()).unwrap().objects.len(),
            0,
            "{body}"
        );
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
                refused += usize::from(decoder.line(kind, Format::Json, &line("MODIFIED", &object)).is_err());
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
            assert!(decoder.line(kind, Format::Json, &whole[..end]).is_err(), "{kind:?} cut at {end}");
        }
        for place in 0..whole.len() {
            for bit in [1, 0x80] {
                let mut damaged = whole.clone();
                damaged[place] ^= bit;
                let _may_be_either = decoder.line(kind, Format::Json, &damaged);
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

/// Objects in which every field that is read has a value of its own.
fn complete() -> [(Kind, Value); 2] {
    let service = json!({
        "kind": "Service", "apiVersion": "v1",
        "metadata": {
            "name": "a", "namespace": "n", "resourceVersion": "7", "uid": "u", "generation": 3,
            "creationTimestamp": "2024-01-02T03:04:05Z", "labels": {"app": "é"},
            "annotations": {"kube-proxy.io/weight": "5", "kube-proxy.io/scheduler": "wrr", "other": ""},
            "ownerReferences": [{"kind": "K", "name": "o", "controller": true}],
            "managedFields": [{"manager": "m", "time": "2024-01-02T03:04:05Z", "fieldsV1": {"f:spec": {}}}],
        },
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"],
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack", "selector": {"app": "a"},
            "ports": [
                {"name": "p", "protocol": "UDP", "port": 53, "targetPort": "dns", "nodePort": 30053},
                {"name": "q", "protocol": "TCP", "port": 443, "targetPort": 8443, "appProtocol": "https"},
            ],
            "externalIPs": ["192.0.2.1", "192.0.2.2"], "loadBalancerSourceRanges": ["10.0.0.0/8"],
            "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 77}},
        },
        "status": {"loadBalancer": {"ingress": [
            {"ip": "192.0.2.9", "ipMode": "VIP"}, {"ip": "192.0.2.8", "ipMode": "Proxy"}, {"hostname": "lb.example"},
        ]}},
    });
    let slice = json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "name": "a-1", "namespace": "n", "resourceVersion": "8",
            "labels": {"kubernetes.io/service-name": "a", "app": "a"},
            "annotations": {
                "endpoints.kubernetes.io/last-change-trigger-time": "2024-01-02T03:04:05.000000006Z",
                "kube-proxy.io/weights": "10.1.0.1=3",
            },
        },
        "addressType": "IPv4",
        "ports": [{"name": "p", "protocol": "UDP", "port": 5353}, {"name": "", "port": 8443, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": ["10.1.0.1"], "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": "us", "zone": "z", "targetRef": {"kind": "Pod", "name": "x"},
                "hints": {"forZones": [{"name": "z"}, {"name": "y"}], "forNodes": [{"name": "us"}]}},
            {"addresses": ["10.1.0.2"], "conditions": {"ready": false, "serving": false, "terminating": true}},
            {"addresses": ["10.1.0.3"]},
        ],
    });
    [(Kind::Service, service), (Kind::EndpointSlice, slice)]
}

fn frame(change: &str, object: &Value) -> Vec<u8> {
    protobuf::change(change, object).split_off(size_of::<u32>())
}

#[test]
fn both_formats_say_the_same() {
    let mut decoder = Decoder::new("us");
    for (kind, object) in complete() {
        for change in ["ADDED", "MODIFIED", "DELETED", "BOOKMARK"] {
            let text = decoder.line(kind, Format::Json, &line(change, &object)).unwrap();
            let binary = decoder.line(kind, Format::Protobuf, &frame(change, &object)).unwrap();
            assert_eq!(format!("{text:?}"), format!("{binary:?}"));
            let empty = matches!(text, Line::Object(Event::Service(_, None) | Event::EndpointSlice(_, None), _));
            assert_eq!(empty, change == "DELETED", "{text:?}");
        }
    }
}

/// Takes each field away in turn: it must be missed in both formats, or in none.
#[test]
fn no_field_is_taken_for_another() {
    let mut decoder = Decoder::new("us");
    for (kind, object) in complete() {
        let mut paths = Vec::new();
        collect(&object, String::new(), &mut paths);
        let mut missed = 0;
        let whole = format!("{:?}", decoder.object(kind, &object.to_string()).unwrap());
        for path in paths.iter().filter(|path| !matches!(&***path, "/kind" | "/apiVersion" | "/metadata")) {
            let mut object = object.clone();
            let (parent, field) = path.rsplit_once('/').unwrap();
            match object.pointer_mut(parent).unwrap() {
                Value::Object(fields) => drop(fields.remove(&field.replace("~1", "/"))),
                list => drop(list.as_array_mut().unwrap().remove(field.parse().unwrap())),
            }
            let text = format!("{:?}", decoder.line(kind, Format::Json, &line("ADDED", &object)).unwrap());
            let binary = format!("{:?}", decoder.line(kind, Format::Protobuf, &frame("ADDED", &object)).unwrap());
            assert_eq!(text, binary, "without {path}");
            missed += usize::from(!text.contains(&whole));
        }
        assert!(missed > 20, "{kind:?}: {missed} of {}", paths.len());
    }
}

#[test]
fn protobuf_has_bookmarks_and_failures() {
    let mut decoder = Decoder::new("us");
    for (kind, object) in complete() {
        let mut bookmark = json!({"kind": object["kind"], "metadata": {"resourceVersion": "9", "annotations": {}}});
        for end in [false, true] {
            let found = decoder.line(kind, Format::Protobuf, &frame("BOOKMARK", &bookmark)).unwrap();
            let Line::Bookmark { version, initial_end } = found else { panic!("{found:?}") };
            assert_eq!((&*version, initial_end), ("9", end));
            bookmark["metadata"]["annotations"][INITIAL_END] = "true".into();
        }
        let expired = json!({"kind": "Status", "message": "too old", "code": 410, "details": {"retryAfterSeconds": 3}});
        let found = decoder.line(kind, Format::Protobuf, &frame("ERROR", &expired)).unwrap();
        let Line::Failure(refusal) = found else { panic!("{found:?}") };
        assert_eq!((refusal.code, &*refusal.message), (410, "too old"));
        assert_eq!(refusal.retry_after.map(|after| after.as_secs()), Some(3));
    }
}

#[test]
fn a_bad_message_is_named_and_harms_no_other() {
    let [(kind, object), _] = complete();
    let mut bad = object.clone();
    bad["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"] = (-1).into();
    let list = json!({"metadata": {"resourceVersion": "8", "continue": "more"}, "items": [bad, object, bad]});
    let page = Decoder::new("us").page(kind, Format::Protobuf, &protobuf::list("Service", &list)).unwrap();
    assert_eq!((&*page.version, &*page.next), ("8", "more"));
    assert_eq!(page.objects.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, false]);
    let error = page.objects[0].as_ref().unwrap_err();
    assert_eq!((&*error.name, &*error.version), ("n/a", "7"));
    assert_eq!(
        error.to_string(),
        "n/a cannot be read and is skipped: malformed protobuf: a number is negative or too large"
    );
}

/// As for JSON: neither cut nor damaged messages panic.
#[test]
fn truncated_and_damaged_protobuf_does_not_panic() {
    let mut decoder = Decoder::new("us");
    for (kind, object) in complete() {
        let whole = frame("ADDED", &object);
        for end in 0..whole.len() {
            assert!(decoder.line(kind, Format::Protobuf, &whole[..end]).is_err(), "{kind:?} cut at {end}");
            let _may_be_either = decoder.page(kind, Format::Protobuf, &whole[..end]);
        }
        for place in 0..whole.len() {
            for bit in 0..8 {
                let mut damaged = whole.clone();
                damaged[place] ^= 1 << bit;
                let _may_be_either = decoder.line(kind, Format::Protobuf, &damaged);
            }
        }
    }
    for kind in KINDS {
        assert!(decoder.page(kind, Format::Protobuf, b"k8s").is_err());
    }
    let error = decoder.line(Kind::Node, Format::Protobuf, &frame("ADDED", &complete()[0].1)).unwrap_err();
    assert!(error.to_string().contains("JSON was asked for"), "{error}");
}
