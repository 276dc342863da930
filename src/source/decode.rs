//! JSON from the API server, one object at a time, straight into the model's compact types.
//!
//! Must never keep any of the JSON, and never let one malformed object harm another: it is reported by name and the
//! caller goes on.

mod service;
mod slice;
mod wire;

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;

use k8s_openapi::api::core::v1::Node as ApiNode;
use k8s_openapi::api::networking::v1::ServiceCIDR as ApiServiceCidr;
use kube::core::{Status, WatchEvent};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::model::{Event, Kind, Node, ObjectName, parse_cidr, parse_ip};

/// Label of a Node that names its zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Taint of a Node that is about to be removed: it is no longer a good target for load balancers (contract 12.1).
const REMOVAL_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// Reads objects as the node `node_name` sees them.
pub struct Decoder {
    node_name: Box<str>,
    zones: HashSet<Rc<str>>,
}

/// One line of a watch.
#[derive(Debug)]
pub enum Line {
    /// An object that is there, was changed or is gone, and its resource version.
    Object(Event, String),
    /// Nothing changed up to this resource version.
    Bookmark {
        /// Where a later watch may resume.
        version: String,
        /// The initial list of a streaming list is complete.
        initial_end: bool,
    },
    /// The server ends the watch, and says why.
    Failure(Box<Status>),
}

/// One page of a list.
#[derive(Debug)]
pub struct Page {
    /// The objects that could be read, and those that could not.
    pub objects: Vec<Result<Event, BadObject>>,
    /// Resource version of the whole list.
    pub version: String,
    /// Where the next page begins; empty on the last one.
    pub next: String,
}

/// An object that cannot be read.
#[derive(Debug)]
pub struct BadObject {
    /// Which one, as far as it can be told.
    pub name: String,
    /// Its resource version, or empty: a watch goes on after it.
    pub version: String,
    /// What is wrong with it.
    pub reason: String,
}

#[derive(Deserialize)]
struct RawPage<'a> {
    #[serde(default)]
    metadata: PageMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PageMeta {
    resource_version: Option<String>,
    r#continue: Option<String>,
}

/// An object that is not read any further than needed for its name.
#[derive(Deserialize)]
struct RawLine<'a> {
    #[serde(borrow, default)]
    object: Option<&'a RawValue>,
}

// === impl Decoder ===

impl Decoder {
    /// A decoder for the given node.
    pub fn new(node_name: &str) -> Self {
        Self { node_name: node_name.into(), zones: HashSet::new() }
    }

    /// Reads one line of a watch for objects of this kind.
    pub fn line(&mut self, kind: Kind, line: &[u8]) -> Result<Line, BadObject> {
        let read = match kind {
            Kind::Service => self.typed_line(line, Self::service),
            Kind::EndpointSlice => self.typed_line(line, Self::slice),
            Kind::Node => self.typed_line(line, Self::node),
            Kind::ServiceCidr => self.typed_line(line, Self::service_cidr),
        };
        read.map_err(|error| {
            let object = serde_json::from_slice::<RawLine<'_>>(line).ok().and_then(|line| line.object);
            BadObject::new(object.map_or("", RawValue::get), &error)
        })
    }

    /// Reads one page of a list of objects of this kind.
    pub fn page(&mut self, kind: Kind, body: &[u8]) -> Result<Page, serde_json::Error> {
        let page: RawPage<'_> = serde_json::from_slice(body)?;
        Ok(Page {
            objects: page.items.iter().flatten().map(|item| self.object(kind, item.get())).collect(),
            version: page.metadata.resource_version.unwrap_or_default(),
            next: page.metadata.r#continue.unwrap_or_default(),
        })
    }

    /// Reads one object of this kind.
    pub fn object(&mut self, kind: Kind, json: &str) -> Result<Event, BadObject> {
        let read = match kind {
            Kind::Service => serde_json::from_str(json).map(|object| self.service(object, false).0),
            Kind::EndpointSlice => serde_json::from_str(json).map(|object| self.slice(object, false).0),
            Kind::Node => serde_json::from_str(json).map(|object| self.node(object, false).0),
            Kind::ServiceCidr => serde_json::from_str(json).map(|object| self.service_cidr(object, false).0),
        };
        read.map_err(|error| BadObject::new(json, &error))
    }

    fn typed_line<'a, T: Deserialize<'a>>(
        &mut self,
        line: &'a [u8],
        convert: impl FnOnce(&mut Self, T, bool) -> (Event, String),
    ) -> Result<Line, serde_json::Error> {
        let (object, gone) = match serde_json::from_slice(line)? {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
            WatchEvent::Deleted(object) => (object, true),
            WatchEvent::Bookmark(bookmark) => {
                let end = bookmark.metadata.annotations.get("k8s.io/initial-events-end");
                return Ok(Line::Bookmark {
                    initial_end: end.is_some_and(|end| end == "true"),
                    version: bookmark.metadata.resource_version,
                });
            }
            WatchEvent::Error(status) => return Ok(Line::Failure(status)),
        };
        let (event, version) = convert(self, object, gone);
        Ok(Line::Object(event, version))
    }

    fn service(&mut self, object: wire::Service<'_>, gone: bool) -> (Event, String) {
        let name = object.metadata.object_name();
        let service = if gone { None } else { service::service(&name, &object) };
        (Event::Service(name, service), object.metadata.resource_version.to_string())
    }

    fn slice(&mut self, object: wire::EndpointSlice<'_>, gone: bool) -> (Event, String) {
        let name = object.metadata.object_name();
        let mut context = slice::Context { node_name: &self.node_name, zones: &mut self.zones };
        let slice = if gone { None } else { slice::slice(&name, &object, &mut context) };
        (Event::EndpointSlice(name, slice), object.metadata.resource_version.to_string())
    }

    /// Whatever the server was asked for, only our own node is of interest: others read as nothing.
    fn node(&mut self, object: ApiNode, gone: bool) -> (Event, String) {
        let version = object.metadata.resource_version.clone().unwrap_or_default();
        let ours = object.metadata.name.as_deref() == Some(&*self.node_name);
        (Event::Node((ours && !gone).then(|| node(object))), version)
    }

    fn service_cidr(&mut self, object: ApiServiceCidr, gone: bool) -> (Event, String) {
        let name: Box<str> = object.metadata.name.unwrap_or_default().into();
        let texts = object.spec.and_then(|spec| spec.cidrs).unwrap_or_default();
        let read = |text: &String| {
            let range = parse_cidr(text);
            if range.is_none() {
                log::warn!("ServiceCIDR {name}: {text:?} is not a CIDR: ignored");
            }
            range
        };
        let ranges = (!gone).then(|| texts.iter().filter_map(read).collect());
        (Event::ServiceCidr(name, ranges), object.metadata.resource_version.unwrap_or_default())
    }
}

fn node(object: ApiNode) -> Node {
    let status = object.status.unwrap_or_default();
    let spec = object.spec.unwrap_or_default();
    let addresses = status.addresses.unwrap_or_default();
    let of_type = |wanted: &'static str| {
        addresses.iter().filter(move |address| address.type_ == wanted).filter_map(|address| parse_ip(&address.address))
    };
    let addresses: Vec<IpAddr> = of_type("InternalIP").chain(of_type("ExternalIP")).collect();
    let leaving = spec.taints.iter().flatten().any(|taint| taint.key == REMOVAL_TAINT);
    Node {
        addresses,
        pod_cidrs: spec.pod_cidrs.iter().flatten().filter_map(|text| parse_cidr(text)).collect(),
        zone: object.metadata.labels.and_then(|mut labels| labels.remove(ZONE_LABEL)).map(Into::into),
        eligible: object.metadata.deletion_timestamp.is_none() && !leaving,
        uid: object.metadata.uid.unwrap_or_default().into(),
    }
}

// === impl BadObject ===

impl BadObject {
    fn new(json: &str, error: &serde_json::Error) -> Self {
        let identity: wire::Identity<'_> = serde_json::from_str(json).unwrap_or_default();
        let metadata = identity.metadata;
        let name = match &*metadata.namespace {
            "" => metadata.name.to_string(),
            namespace => format!("{namespace}/{}", &*metadata.name),
        };
        Self { name, version: metadata.resource_version.to_string(), reason: error.to_string() }
    }
}

impl fmt::Display for BadObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.name.is_empty() { "(without a name)" } else { &self.name };
        write!(f, "{name} cannot be read and is skipped: {}", self.reason)
    }
}

// === impl Meta ===

impl wire::Meta<'_> {
    fn object_name(&self) -> ObjectName {
        ObjectName::new(&self.namespace, &self.name)
    }
}

#[cfg(test)]
mod tests {
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
    fn nodes_have_internal_addresses_first_and_others_are_not_ours() {
        let Ok(Event::Node(Some(node))) = Decoder::new("a").object(Kind::Node, &sample().to_string()) else {
            panic!("our node is read");
        };
        assert_eq!(node.addresses, ["10.2.0.1", "192.0.2.1"].map(|text| text.parse::<IpAddr>().unwrap()));
        assert_eq!(node.pod_cidrs, ["10.1.0.0/24".parse().unwrap()]);
        assert_eq!((node.zone.as_deref(), node.eligible, &*node.uid), (Some("z"), true, "u"));
        let other = Decoder::new("b").object(Kind::Node, &sample().to_string());
        assert!(matches!(other, Ok(Event::Node(None))));
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
}
