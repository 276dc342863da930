//! Services and EndpointSlices as Protocol Buffers: the numbers of the fields that are read, as the API's
//! `generated.proto` files give them, and the envelope that the API server puts around messages
//! (<https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding>).

use std::time::Duration;

use super::fields::{Field, Fields, Malformed, Raw, Value, read};
use super::wire::{self, Text};
use super::{BadObject, Decoder, INITIAL_END, Line, Page};
use crate::model::{Event, Kind};
use crate::source::refusal::Refusal;

/// What every message begins with.
const MAGIC: &[u8] = b"k8s\0";

/// Every message is one of these, and says more than is needed here about what it contains.
#[derive(Default)]
struct Envelope<'a> {
    raw: Raw<'a>,
}

#[derive(Default)]
struct List<'a> {
    metadata: ListMeta<'a>,
    items: Vec<Raw<'a>>,
}

#[derive(Default)]
struct ListMeta<'a> {
    resource_version: Text<'a>,
    r#continue: Text<'a>,
}

#[derive(Default)]
struct Change<'a> {
    kind: Text<'a>,
    object: RawExtension<'a>,
}

#[derive(Default)]
struct RawExtension<'a> {
    raw: Raw<'a>,
}

/// What ends a watch, or explains a status code.
#[derive(Default)]
struct Failure<'a> {
    message: Text<'a>,
    details: FailureDetails,
    code: u32,
}

#[derive(Default)]
struct FailureDetails {
    retry_after_seconds: u32,
}

/// A bookmark may be of any kind: only metadata counts.
#[derive(Default)]
struct Bookmark<'a> {
    metadata: BookmarkMeta<'a>,
}

#[derive(Default)]
struct BookmarkMeta<'a> {
    resource_version: Text<'a>,
    annotations: Vec<Entry<'a>>,
}

/// Of a map.
#[derive(Default)]
struct Entry<'a> {
    key: Text<'a>,
    value: Text<'a>,
}

/// Makes messages readable: which field has which number. All others are skipped.
macro_rules! messages {
    ($($message:ty { $($number:literal => $($field:ident).+,)* })*) => {$(
        impl<'a> Field<'a> for $message {
            fn merge(&mut self, value: Value<'a>) -> Result<(), Malformed> {
                for field in Fields::of(value.bytes()?) {
                    match field? {
                        $(($number, value) => self.$($field).+.merge(value)?,)*
                        _ => {}
                    }
                }
                Ok(())
            }
        }
    )*};
}

messages! {
    Envelope<'a> { 2 => raw, }
    List<'a> { 1 => metadata, 2 => items, }
    ListMeta<'a> { 2 => resource_version, 3 => r#continue, }
    Change<'a> { 1 => kind, 2 => object, }
    RawExtension<'a> { 1 => raw, }
    Failure<'a> { 3 => message, 5 => details, 6 => code, }
    FailureDetails { 5 => retry_after_seconds, }
    Bookmark<'a> { 1 => metadata, }
    BookmarkMeta<'a> { 6 => resource_version, 12 => annotations, }
    Entry<'a> { 1 => key, 2 => value, }

    wire::Identity<'a> { 1 => metadata, }
    wire::Meta<'a> { 1 => name, 3 => namespace, 6 => resource_version, 11 => labels, 12 => annotations, }
    wire::Service<'a> { 1 => metadata, 2 => spec, 3 => status, }
    wire::ServiceSpec<'a> {
        1 => ports,
        3 => cluster_ip,
        4 => kind,
        5 => external_ips,
        7 => session_affinity,
        9 => load_balancer_source_ranges,
        11 => external_traffic_policy,
        12 => health_check_node_port,
        14 => session_affinity_config,
        18 => cluster_ips,
        19 => ip_families,
        22 => internal_traffic_policy,
    }
    wire::ServicePort<'a> { 1 => name, 2 => protocol, 3 => port, 5 => node_port, }
    wire::AffinityConfig { 1 => client_ip, }
    wire::ClientIpConfig { 1 => timeout_seconds, }
    wire::ServiceStatus<'a> { 1 => load_balancer, }
    wire::LoadBalancer<'a> { 1 => ingress, }
    wire::Ingress<'a> { 1 => ip, 3 => ip_mode, }
    wire::EndpointSlice<'a> { 1 => metadata, 2 => endpoints, 3 => ports, 4 => address_type, }
    wire::SlicePort<'a> { 1 => name, 2 => protocol, 3 => port, }
    wire::Endpoint<'a> { 1 => addresses, 2 => conditions, 6 => node_name, 8 => hints, }
    wire::Conditions { 1 => ready, 2 => serving, 3 => terminating, }
    wire::Hints<'a> { 1 => for_zones, 2 => for_nodes, }
    wire::Hint<'a> { 1 => name, }
}

impl<'a> Field<'a> for wire::Labels<'a> {
    fn merge(&mut self, value: Value<'a>) -> Result<(), Malformed> {
        let entry: Entry<'a> = read(value.bytes()?)?;
        match &*entry.key {
            "kubernetes.io/service-name" => self.service_name = entry.value,
            "service.kubernetes.io/service-proxy-name" => self.service_proxy_name = Some(entry.value),
            "service.kubernetes.io/headless" => self.headless = Some(entry.value),
            _ => {}
        }
        Ok(())
    }
}

impl<'a> Field<'a> for wire::Annotations<'a> {
    fn merge(&mut self, value: Value<'a>) -> Result<(), Malformed> {
        let entry: Entry<'a> = read(value.bytes()?)?;
        match &*entry.key {
            "endpoints.kubernetes.io/last-change-trigger-time" => self.triggered = entry.value,
            "kube-proxy.io/weight" => self.weight = entry.value,
            "kube-proxy.io/weights" => self.weights = entry.value,
            "kube-proxy.io/scheduler" => self.scheduler = entry.value,
            _ => {}
        }
        Ok(())
    }
}

/// Takes a message out of its envelope.
fn open(bytes: &[u8]) -> Result<&[u8], Malformed> {
    let envelope = bytes.strip_prefix(MAGIC).ok_or(Malformed::new("it does not begin as the API server begins"))?;
    Ok(read::<Envelope<'_>>(envelope)?.raw.0)
}

/// Why a request was refused, when the body of the answer says so.
pub fn refusal(body: &[u8]) -> Option<Refusal> {
    open(body).and_then(read::<Failure<'_>>).map(Refusal::from).ok()
}

// === impl Decoder ===

impl Decoder {
    /// Reads one message of a watch.
    pub(super) fn protobuf_line(&mut self, kind: Kind, line: &[u8]) -> Result<Line, BadObject> {
        let unknown = |error| BadObject::new(&wire::Identity::default(), &error);
        let change: Change<'_> = read(line).map_err(unknown)?;
        let object = open(change.object.raw.0).map_err(unknown)?;
        let gone = match &*change.kind {
            "ADDED" | "MODIFIED" => false,
            "DELETED" => true,
            "BOOKMARK" => return read::<Bookmark<'_>>(object).map(Line::from).map_err(unknown),
            "ERROR" => {
                let failure: Failure<'_> = read(object).map_err(unknown)?;
                return Ok(Line::Failure(failure.into()));
            }
            _ => return Err(unknown(Malformed::new("a change of unknown type"))),
        };
        self.message(kind, object, gone).map(|(event, version)| Line::Object(event, version))
    }

    /// Reads one page of a list.
    pub(super) fn protobuf_page(&mut self, kind: Kind, body: &[u8]) -> Result<Page, Malformed> {
        let list: List<'_> = open(body).and_then(read)?;
        let read = |item: &Raw<'_>| self.message(kind, item.0, false).map(|(event, _)| event);
        Ok(Page {
            objects: list.items.iter().map(read).collect(),
            version: list.metadata.resource_version.to_string(),
            next: list.metadata.r#continue.to_string(),
        })
    }

    fn message(&mut self, kind: Kind, bytes: &[u8], gone: bool) -> Result<(Event, String), BadObject> {
        let event = match kind {
            Kind::Service => read(bytes).map(|object| self.service(object, gone)),
            Kind::EndpointSlice => read(bytes).map(|object| self.slice(object, gone)),
            Kind::Node | Kind::ServiceCidr => Err(Malformed::new("JSON was asked for")),
        };
        event.map_err(|error| BadObject::new(&read(bytes).unwrap_or_default(), &error))
    }
}

// === impl Line ===

impl From<Bookmark<'_>> for Line {
    fn from(Bookmark { metadata }: Bookmark<'_>) -> Self {
        let mut annotations = metadata.annotations.iter();
        Self::Bookmark {
            initial_end: annotations.any(|entry| &*entry.key == INITIAL_END && &*entry.value == "true"),
            version: metadata.resource_version.to_string(),
        }
    }
}

// === impl Refusal ===

impl From<Failure<'_>> for Refusal {
    fn from(failure: Failure<'_>) -> Self {
        let seconds = failure.details.retry_after_seconds;
        Self {
            code: failure.code.try_into().unwrap_or(0),
            message: failure.message.to_string(),
            retry_after: (seconds > 0).then(|| Duration::from_secs(seconds.into())),
        }
    }
}
