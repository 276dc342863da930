//! Events for whoever looks with `kubectl describe` (contract 15.3).
//!
//! Best effort: must never hold up anything, and a server that does not take them is only mentioned in the log.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event as ApiEvent;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;

use super::http::Client;
use super::refusal::Error;
use crate::model::ObjectName;

/// Attempts to send one event, and the time between them (contract 15.3).
const ATTEMPTS: u32 = 12;
const BETWEEN: Duration = Duration::from_secs(10);

/// Something that an administrator may want to know.
#[derive(Clone, Debug)]
pub struct Notice {
    /// The node that we run on.
    pub node_name: String,
    /// What it is about.
    pub regarding: Regarding,
    /// A warning, or normal.
    pub warning: bool,
    /// Why, in CamelCase, for machines.
    pub reason: &'static str,
    /// What was done or failed, in CamelCase, for machines.
    pub action: &'static str,
    /// For people; may be empty.
    pub note: String,
}

/// What a notice is about.
#[derive(Clone, Debug)]
pub enum Regarding {
    /// This node.
    Node,
    /// A Service.
    Service(ObjectName),
}

// === impl Client ===

impl Client {
    /// Creates an event, trying again while the server cannot be reached or is busy. Spawn it and forget it.
    pub async fn post_event(&self, notice: Notice) {
        // The host's own name, whatever the node is called.
        let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let event = notice.event(&host, Timestamp::now());
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
        let body = serde_json::to_vec(&event).expect("an event has only strings and times, which are valid JSON");
        let mut session = self.session();
        for attempt in 1..=ATTEMPTS {
            match session.post(&path, body.clone()).await {
                Ok(()) => return,
                // It arrived, only the answer did not.
                Err(Error::Refused(refusal)) if refusal.code == 409 => return,
                Err(Error::Refused(refusal)) if refusal.code < 500 && refusal.code != 429 => {
                    return log::warn!("event {:?} is not taken: {refusal}", notice.reason);
                }
                Err(error) => log::debug!("event {:?}, attempt {attempt} of {ATTEMPTS}: {error}", notice.reason),
            }
            smol::Timer::after(BETWEEN.mul_f64(0.9 + 0.2 * fastrand::f64())).await;
        }
        log::warn!("event {:?} was not sent: the API server did not take it in {ATTEMPTS} attempts", notice.reason);
    }
}

// === impl Notice ===

impl Notice {
    fn event(&self, host: &str, now: Timestamp) -> ApiEvent {
        let (kind, namespace, name) = match &self.regarding {
            Regarding::Node => ("Node", None, &*self.node_name),
            Regarding::Service(service) => ("Service", Some(service.namespace().to_owned()), service.name()),
        };
        ApiEvent {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{:x}", now.as_nanosecond())),
                namespace: Some(namespace.clone().unwrap_or_else(|| "default".into())),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(now)),
            type_: Some(if self.warning { "Warning" } else { "Normal" }.into()),
            reason: Some(self.reason.into()),
            action: Some(self.action.into()),
            note: Some(self.note.clone()).filter(|note| !note.is_empty()),
            reporting_controller: Some("kube-proxy".into()),
            reporting_instance: Some(format!("kube-proxy-{host}")),
            regarding: Some(ObjectReference {
                api_version: Some("v1".into()),
                kind: Some(kind.into()),
                namespace,
                name: Some(name.to_owned()),
                ..ObjectReference::default()
            }),
            ..ApiEvent::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_those_of_the_contract() {
        let now: Timestamp = "2024-01-02T03:04:05.000006Z".parse().unwrap();
        let mut notice = Notice {
            node_name: "pi".into(),
            regarding: Regarding::Node,
            warning: false,
            reason: "Starting",
            action: "StartKubeProxy",
            note: String::new(),
        };
        assert_eq!(
            serde_json::to_value(notice.event("host", now)).unwrap(),
            json!({
                "apiVersion": "events.k8s.io/v1", "kind": "Event",
                "metadata": {"name": "pi.17a668b730014970", "namespace": "default"},
                "eventTime": "2024-01-02T03:04:05.000006Z", "type": "Normal",
                "reason": "Starting", "action": "StartKubeProxy",
                "reportingController": "kube-proxy", "reportingInstance": "kube-proxy-host",
                "regarding": {"apiVersion": "v1", "kind": "Node", "name": "pi"},
            })
        );
        notice.regarding = Regarding::Service(ObjectName::new("shop", "web"));
        notice.note = "node pi failed".into();
        let event = serde_json::to_value(notice.event("host", now)).unwrap();
        assert_eq!(event["metadata"]["namespace"], "shop");
        assert_eq!(event["note"], "node pi failed");
        assert_eq!(event["regarding"]["namespace"], "shop");
    }
}
