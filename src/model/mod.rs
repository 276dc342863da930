//! What the cluster says: Services, EndpointSlices and this node, in a compact form.
//!
//! Knows Kubernetes, knows no kernel and makes no decision: which endpoint gets traffic is the plan's business.

mod address;
mod endpoints;
mod node;
mod service;
mod store;

pub use address::{Family, Protocol, parse_cidr, parse_ip};
pub use endpoints::{Endpoint, EndpointSlice, SlicePort};
pub use node::Node;
pub use service::{Service, ServicePort};
pub use store::{Dirty, Store};

use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::rc::Rc;

use ipnet::IpNet;

/// Namespace and name of an object. Cheap to clone: one allocation is shared by all who mention the object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectName(Rc<Name>);

/// `namespace/name` as one text, and where the slash is. A name is looked up far more often than it is read, in a dozen
/// tables: its hash is kept.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    text: Box<str>,
    slash: u32,
    hash: u32,
}

thread_local! {
    /// The key that names are hashed with: nobody outside can make them collide.
    static KEY: RandomState = RandomState::new();
}

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

// === impl ObjectName ===

impl ObjectName {
    /// The name of an object in a namespace.
    pub fn new(namespace: &str, name: &str) -> Self {
        let text: Box<str> = [namespace, "/", name].concat().into();
        // Any part of a good hash is a good hash; names are far shorter than 4 GB.
        let hash = KEY.with(|key| key.hash_one(&*text)) as u32;
        Self(Rc::new(Name { text, slash: namespace.len() as u32, hash }))
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.0.text[..self.0.slash as usize]
    }

    /// The name within its namespace.
    pub fn name(&self) -> &str {
        &self.0.text[self.0.slash as usize + 1..]
    }
}

impl Hash for ObjectName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u32(self.0.hash);
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}
