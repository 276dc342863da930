//! What the API server sends, one object at a time, straight into the model's compact types: JSON here,
//! [protocol buffers](protobuf) beside it.
//!
//! Must never keep any of the text, and never let one malformed object harm another: it is reported by name and the
//! caller goes on.

mod fields;
mod protobuf;
mod service;
mod slice;
#[cfg(test)]
mod tests;
mod wire;
mod words;

use std::fmt;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node as ApiNode;
use k8s_openapi::api::networking::v1::ServiceCIDR as ApiServiceCidr;
use kube::core::WatchEvent;
pub use protobuf::refusal;
use serde::Deserialize;
use serde_json::value::RawValue;
use words::Words;

use super::format::Format;
use super::refusal::Refusal;
use crate::model::{Event, Kind, Node, ObjectName, parse_cidr, parse_ip};

/// Label of a Node that names its zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Taint of a Node that is about to be removed: it is no longer a good target for load balancers (contract 12.1).
const REMOVAL_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
/// Annotation of the bookmark that ends the initial list of a streaming list; its value is `true`.
const INITIAL_END: &str = "k8s.io/initial-events-end";

/// Reads objects as the node `node_name` sees them.
pub struct Decoder {
    node_name: Box<str>,
    words: Words,
}

/// One message of a watch.
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
    Failure(Refusal),
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
        Self { node_name: node_name.into(), words: Words::default() }
    }

    /// Reads one message of a watch for objects of this kind.
    pub fn line(&mut self, kind: Kind, format: Format, line: &[u8]) -> Result<Line, BadObject> {
        if format == Format::Protobuf {
            return self.protobuf_line(kind, line);
        }
        let read = match kind {
            Kind::Service => self.typed_line(line, Self::service),
            Kind::EndpointSlice => self.typed_line(line, Self::slice),
            Kind::Node => self.typed_line(line, Self::node),
            Kind::ServiceCidr => self.typed_line(line, Self::service_cidr),
        };
        read.map_err(|error| {
            let object = serde_json::from_slice::<RawLine<'_>>(line).ok().and_then(|line| line.object);
            BadObject::json(object.map_or("", RawValue::get), &error)
        })
    }

    /// Reads one page of a list of objects of this kind.
    ///
    /// # Errors
    /// When it is no list: what is wrong with it.
    pub fn page(&mut self, kind: Kind, format: Format, body: &[u8]) -> Result<Page, String> {
        if format == Format::Protobuf {
            return self.protobuf_page(kind, body).map_err(|error| error.to_string());
        }
        let page: RawPage<'_> = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        Ok(Page {
            objects: page.items.iter().flatten().map(|item| self.object(kind, item.get())).collect(),
            version: page.metadata.resource_version.unwrap_or_default(),
            next: page.metadata.r#continue.unwrap_or_default(),
        })
    }

    /// Reads one object of this kind, written in JSON.
    pub fn object(&mut self, kind: Kind, json: &str) -> Result<Event, BadObject> {
        let read = match kind {
            Kind::Service => serde_json::from_str(json).map(|object| self.service(object, false).0),
            Kind::EndpointSlice => serde_json::from_str(json).map(|object| self.slice(object, false).0),
            Kind::Node => serde_json::from_str(json).map(|object| self.node(object, false).0),
            Kind::ServiceCidr => serde_json::from_str(json).map(|object| self.service_cidr(object, false).0),
        };
        read.map_err(|error| BadObject::json(json, &error))
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
                let end = bookmark.metadata.annotations.get(INITIAL_END);
                return Ok(Line::Bookmark {
                    initial_end: end.is_some_and(|end| end == "true"),
                    version: bookmark.metadata.resource_version,
                });
            }
            WatchEvent::Error(status) => return Ok(Line::Failure((*status).into())),
        };
        let (event, version) = convert(self, object, gone);
        Ok(Line::Object(event, version))
    }

    fn service(&mut self, object: wire::Service<'_>, gone: bool) -> (Event, String) {
        let name = object.metadata.object_name();
        let service = if gone { None } else { service::service(&name, &object, &mut self.words) };
        (Event::Service(name, service), object.metadata.resource_version.to_string())
    }

    fn slice(&mut self, object: wire::EndpointSlice<'_>, gone: bool) -> (Event, String) {
        let name = object.metadata.object_name();
        let mut context = slice::Context { node_name: &self.node_name, words: &mut self.words };
        let slice = if gone { None } else { slice::slice(&name, &object, &mut context) };
        (Event::EndpointSlice(name, slice), object.metadata.resource_version.to_string())
    }

    /// Whose node it is was decided by what was asked for.
    fn node(&mut self, object: ApiNode, gone: bool) -> (Event, String) {
        let version = object.metadata.resource_version.clone().unwrap_or_default();
        (Event::Node((!gone).then(|| node(object))), version)
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
    fn json(json: &str, error: &serde_json::Error) -> Self {
        Self::new(&serde_json::from_str(json).unwrap_or_default(), error)
    }

    fn new(wire::Identity { metadata }: &wire::Identity<'_>, error: &dyn fmt::Display) -> Self {
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
