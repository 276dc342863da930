//! What the cluster says: Services, EndpointSlices and this node, in a compact form.
//!
//! Knows Kubernetes, knows no kernel and makes no decision: which endpoint gets traffic is the plan's business.

mod address;
mod endpoints;
mod name;
mod node;
mod service;
mod store;

pub use address::{Family, Protocol, parse_cidr, parse_ip};
pub use endpoints::{Endpoint, EndpointSlice, Place, SlicePort};
pub use name::{NameMap, NameSet, ObjectName};
pub use node::Node;
pub use service::{Service, ServicePort};
pub use store::{Dirty, Store};

use ipnet::IpNet;

/// The kinds of objects that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// core/v1 Service.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
    /// core/v1 Node, only the one we run on.
    Node,
    /// networking.k8s.io/v1 ServiceCIDR.
    ServiceCidr,
}

/// What a source tells. `None` means that the object is gone, or is none of our business any more.
#[derive(Clone, Debug)]
pub enum Event {
    /// A complete list of this kind follows: what it does not name by `ListEnd` is gone.
    ListStart(Kind),
    /// The list that began with `ListStart` is complete.
    ListEnd(Kind),
    /// A Service that is to be served, or its end.
    Service(ObjectName, Option<Service>),
    /// A slice, or its end.
    EndpointSlice(ObjectName, Option<EndpointSlice>),
    /// This node's object.
    Node(Option<Node>),
    /// The ranges of one ServiceCIDR object, by its name.
    ServiceCidr(Box<str>, Option<Vec<IpNet>>),
}
