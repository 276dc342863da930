//! The parts of Kubernetes objects that are read, with their names in JSON (their numbers in protobuf are in
//! [`super::protobuf`]). Strings are borrowed from the text, and what is not named here (`managedFields`, owners, ...) is
//! skipped without being built.
//!
//! Must never decide anything: a field that is missing or `null` is simply empty here, as it is for the API server.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// A string, borrowed unless it has escapes; `null` is the empty string.
#[derive(Clone, Default)]
pub struct Text<'a>(Cow<'a, str>);

/// `metadata` of any object.
#[derive(Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Meta<'a> {
    #[serde(borrow)]
    pub name: Text<'a>,
    #[serde(borrow)]
    pub namespace: Text<'a>,
    #[serde(borrow)]
    pub resource_version: Text<'a>,
    #[serde(borrow)]
    pub labels: Option<Labels<'a>>,
    #[serde(borrow)]
    pub annotations: Option<Annotations<'a>>,
}

/// The labels that mean something here.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
pub struct Labels<'a> {
    #[serde(borrow, rename = "kubernetes.io/service-name")]
    pub service_name: Text<'a>,
    #[serde(borrow, rename = "service.kubernetes.io/service-proxy-name")]
    pub service_proxy_name: Option<Text<'a>>,
    #[serde(borrow, rename = "service.kubernetes.io/headless")]
    pub headless: Option<Text<'a>>,
}

/// The annotations that mean something here.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
pub struct Annotations<'a> {
    #[serde(borrow, rename = "endpoints.kubernetes.io/last-change-trigger-time")]
    pub triggered: Text<'a>,
    #[serde(borrow, rename = "kube-proxy.io/weight")]
    pub weight: Text<'a>,
    #[serde(borrow, rename = "kube-proxy.io/weights")]
    pub weights: Text<'a>,
    #[serde(borrow, rename = "kube-proxy.io/scheduler")]
    pub scheduler: Text<'a>,
}

/// Any object, read only as far as needed to say which one it is.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
pub struct Identity<'a> {
    #[serde(borrow)]
    pub metadata: Meta<'a>,
}

/// core/v1 Service.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
pub struct Service<'a> {
    #[serde(borrow)]
    pub metadata: Meta<'a>,
    #[serde(borrow)]
    pub spec: Option<ServiceSpec<'a>>,
    #[serde(borrow)]
    pub status: Option<ServiceStatus<'a>>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceSpec<'a> {
    #[serde(borrow, rename = "type")]
    pub kind: Text<'a>,
    #[serde(borrow, rename = "clusterIP")]
    pub cluster_ip: Text<'a>,
    #[serde(borrow, rename = "clusterIPs")]
    pub cluster_ips: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    pub ip_families: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    pub ports: Option<Vec<ServicePort<'a>>>,
    #[serde(borrow, rename = "externalIPs")]
    pub external_ips: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    pub load_balancer_source_ranges: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    pub external_traffic_policy: Text<'a>,
    #[serde(borrow)]
    pub internal_traffic_policy: Text<'a>,
    pub health_check_node_port: Option<i64>,
    #[serde(borrow)]
    pub session_affinity: Text<'a>,
    pub session_affinity_config: Option<AffinityConfig>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServicePort<'a> {
    #[serde(borrow)]
    pub name: Text<'a>,
    #[serde(borrow)]
    pub protocol: Text<'a>,
    pub port: Option<i64>,
    pub node_port: Option<i64>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
pub struct AffinityConfig {
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIpConfig>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClientIpConfig {
    pub timeout_seconds: Option<u32>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceStatus<'a> {
    #[serde(borrow)]
    pub load_balancer: Option<LoadBalancer<'a>>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
pub struct LoadBalancer<'a> {
    #[serde(borrow)]
    pub ingress: Option<Vec<Ingress<'a>>>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Ingress<'a> {
    #[serde(borrow)]
    pub ip: Text<'a>,
    #[serde(borrow)]
    pub ip_mode: Text<'a>,
}

/// discovery.k8s.io/v1 EndpointSlice.
#[derive(Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointSlice<'a> {
    #[serde(borrow)]
    pub metadata: Meta<'a>,
    #[serde(borrow)]
    pub address_type: Text<'a>,
    #[serde(borrow)]
    pub ports: Option<Vec<SlicePort<'a>>>,
    #[serde(borrow)]
    pub endpoints: Option<Vec<Endpoint<'a>>>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
pub struct SlicePort<'a> {
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    #[serde(borrow)]
    pub protocol: Text<'a>,
    pub port: Option<i64>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Endpoint<'a> {
    #[serde(borrow)]
    pub addresses: Option<Vec<Text<'a>>>,
    pub conditions: Option<Conditions>,
    #[serde(borrow)]
    pub node_name: Text<'a>,
    #[serde(borrow)]
    pub hints: Option<Hints<'a>>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
pub struct Conditions {
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Hints<'a> {
    #[serde(borrow)]
    pub for_zones: Option<Vec<Hint<'a>>>,
    #[serde(borrow)]
    pub for_nodes: Option<Vec<Hint<'a>>>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
pub struct Hint<'a> {
    #[serde(borrow)]
    pub name: Text<'a>,
}

struct TextVisitor;

// === impl Text ===

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

impl<'a> From<Cow<'a, str>> for Text<'a> {
    fn from(text: Cow<'a, str>) -> Self {
        Self(text)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor).map(Self)
    }
}

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(""))
    }
}
