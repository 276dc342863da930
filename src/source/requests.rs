//! What is asked of the API server, in `kube`'s words: which objects, and from where on.
//!
//! Paths and parameters only; sending them is somebody else's.

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::core::params::{ListParams, WatchParams};
use kube::core::{Request, Resource};

use super::format::Format;
use crate::model::Kind;

/// The objects of one kind that this node needs (contract 4).
pub struct Objects {
    request: Request,
    labels: Option<&'static str>,
    fields: Option<String>,
    format: Format,
}

// === impl Objects ===

impl Objects {
    /// Those of a kind.
    pub fn new(kind: Kind, node_name: &str) -> Self {
        let (path, labels, fields) = match kind {
            Kind::Service => (
                Service::url_path(&(), None),
                Some("!service.kubernetes.io/service-proxy-name"),
                Some("spec.clusterIP!=None".to_owned()),
            ),
            Kind::EndpointSlice => (EndpointSlice::url_path(&(), None), Some("!service.kubernetes.io/headless"), None),
            Kind::Node => (Node::url_path(&(), None), None, Some(format!("metadata.name={node_name}"))),
            Kind::ServiceCidr => (ServiceCIDR::url_path(&(), None), None, None),
        };
        // Of the others there are few, and `k8s-openapi` reads their JSON.
        let format = match kind {
            Kind::Service | Kind::EndpointSlice => Format::Protobuf,
            Kind::Node | Kind::ServiceCidr => Format::Json,
        };
        Self { request: Request::new(path), labels, fields, format }
    }

    /// The best format in which they can be read.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The list and all that follows, in one answer that lasts so many seconds.
    pub fn streaming_list(&self, seconds: u32) -> String {
        let params = WatchParams { send_initial_events: true, ..self.watch_params(seconds) };
        path(self.request.watch(&params, ""))
    }

    /// What follows on a version.
    pub fn watch(&self, version: &str, seconds: u32) -> String {
        path(self.request.watch(&self.watch_params(seconds), version))
    }

    /// A page of the list: the first one, or the one that `next` leads to. Without a limit it is all of them.
    pub fn page(&self, limit: Option<u32>, next: &str) -> String {
        let params = ListParams {
            label_selector: self.labels.map(str::to_owned),
            field_selector: self.fields.clone(),
            limit,
            continue_token: (!next.is_empty()).then(|| next.to_owned()),
            ..ListParams::default()
        };
        path(self.request.list(&params))
    }

    fn watch_params(&self, seconds: u32) -> WatchParams {
        WatchParams {
            label_selector: self.labels.map(str::to_owned),
            field_selector: self.fields.clone(),
            timeout: Some(seconds),
            ..WatchParams::default()
        }
    }
}

fn path<E: std::fmt::Debug>(request: Result<hyper::Request<Vec<u8>>, E>) -> String {
    request.expect("our parameters go together, and their values are escaped").uri().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_those_of_the_contract() {
        for (kind, expected) in [
            (
                Kind::Service,
                "/api/v1/services?&limit=500&fieldSelector=spec.clusterIP%21%3DNone\
                 &labelSelector=%21service.kubernetes.io%2Fservice-proxy-name",
            ),
            (
                Kind::EndpointSlice,
                "/apis/discovery.k8s.io/v1/endpointslices?&limit=500&labelSelector=%21service.kubernetes.io%2Fheadless",
            ),
            (Kind::Node, "/api/v1/nodes?&limit=500&fieldSelector=metadata.name%3Dus.lan"),
            (Kind::ServiceCidr, "/apis/networking.k8s.io/v1/servicecidrs?&limit=500"),
        ] {
            let mut wanted: Vec<_> = expected.split('&').collect();
            let page = Objects::new(kind, "us.lan").page(Some(500), "");
            let mut got: Vec<_> = page.split('&').collect();
            wanted.sort_unstable();
            got.sort_unstable();
            assert_eq!(got, wanted);
        }
    }

    #[test]
    fn a_watch_says_where_it_begins() {
        let node = Objects::new(Kind::Node, "us");
        assert!(node.watch("12 3", 300).ends_with("&resourceVersion=12+3"));
        let list = node.streaming_list(300);
        for part in ["watch=true", "timeoutSeconds=300", "allowWatchBookmarks=true", "sendInitialEvents=true"] {
            assert!(list.split('&').any(|given| given == part), "{list}");
        }
        assert!(list.contains("resourceVersionMatch=NotOlderThan"));
        assert!(node.page(Some(2), "a/b=").contains("&continue=a%2Fb%3D"));
        assert!(!node.page(None, "").contains("limit="));
    }
}
