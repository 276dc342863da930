//! One EndpointSlice, reduced to what a node needs of it.

use std::net::IpAddr;
use std::rc::Rc;

use super::{Family, ObjectName, Protocol};

/// An EndpointSlice of address type IPv4 or IPv6 that belongs to a Service (contract 4.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// The Service it belongs to (label `kubernetes.io/service-name`).
    pub service: ObjectName,
    /// Family of all its addresses.
    pub family: Family,
    /// Ports that every endpoint of the slice serves.
    pub ports: Vec<SlicePort>,
    /// The endpoints, in the order of the object.
    pub endpoints: Vec<Endpoint>,
    /// When the change that led to this version happened: nanoseconds since the epoch
    /// (annotation `endpoints.kubernetes.io/last-change-trigger-time`).
    pub triggered: Option<u64>,
}

/// A port of a slice: feeds the Service port of the same name and protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name, may be empty; shared like those of Services.
    pub name: Rc<str>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port number on the endpoint, never 0.
    pub port: u16,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its first address.
    pub address: IpAddr,
    /// May get new connections.
    pub ready: bool,
    /// Still answers, whether or not it is ready or terminating.
    pub serving: bool,
    /// Is about to go.
    pub terminating: bool,
    /// Where it runs.
    pub place: Place,
    /// Node hints: `None` when there are none, else whether they name this node.
    pub hinted_node: Option<bool>,
    /// Zone hints; empty when there are none. Zone names are few and shared.
    pub hinted_zones: Box<[Rc<str>]>,
    /// Weight from the slice's annotation; `None` takes the Service's.
    pub weight: Option<u16>,
}

/// Where an endpoint runs (contract 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// On this node.
    Here,
    /// On another node.
    Elsewhere,
    /// Its slice names no node, so it does not count as local; it may be here all the same.
    Unknown,
}

// === impl Place ===

impl Place {
    /// Whether it is on this node for certain.
    pub fn is_here(self) -> bool {
        self == Self::Here
    }
}

// === impl EndpointSlice ===

impl EndpointSlice {
    /// Whether both say the same of their endpoints; when that came about does not matter.
    pub fn same_endpoints(&self, other: &Self) -> bool {
        self.service == other.service
            && self.family == other.family
            && self.ports == other.ports
            && self.endpoints == other.endpoints
    }
}
