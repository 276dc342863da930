//! Where objects come from: the API server, or a folder of manifests. Both yield the same [`Event`]s.
//!
//! Must never keep an object, nor its JSON: what was read is told and forgotten.

mod auth;
mod connect;
mod decode;
mod format;
mod frames;
mod http;
mod kubeconfig;
mod manifests;
mod notice;
mod refusal;
mod requests;
mod tls;
mod trouble;
mod watch;

pub use auth::{Access, Error as AccessError, Server};
pub use http::{Client, Exchange, Limits, Observer, Outcome};
pub use manifests::Manifests;
pub use notice::{Notice, Regarding};
pub use refusal::{Error as RequestError, Refusal};

use std::rc::Rc;

use smol::LocalExecutor;
use smol::channel::Sender;

use crate::model::{Event, Kind};

/// All kinds that are followed, the node first: it is small, and much depends on it.
const KINDS: [Kind; 4] = [Kind::Node, Kind::ServiceCidr, Kind::Service, Kind::EndpointSlice];

/// Where objects come from.
pub enum Source {
    /// An API server.
    Api(Rc<Client>),
    /// A folder of YAML and JSON files.
    Manifests(Manifests),
}

// === impl Source ===

impl Source {
    /// Follows everything that the node `node_name` needs to know, until the receiver of `events` is dropped. Each kind
    /// begins with a list, between `ListStart` and `ListEnd`; a list that breaks off begins again with another
    /// `ListStart`.
    pub fn start(self, node_name: &str, executor: &LocalExecutor<'_>, events: Sender<Event>) {
        match self {
            Self::Api(client) => {
                let troubles = Rc::default();
                for kind in KINDS {
                    let watch =
                        watch::Watch::new(Rc::clone(&client), kind, node_name, events.clone(), Rc::clone(&troubles));
                    executor.spawn(watch.run()).detach();
                }
            }
            Self::Manifests(manifests) => {
                executor.spawn(manifests.follow(node_name.to_owned(), events)).detach();
            }
        }
    }
}
