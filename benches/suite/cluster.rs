//! The cluster that the benchmarks pretend to have: Services and EndpointSlices as an API server stores them, with all
//! the fields that nobody reads.
//!
//! Keeps a few bytes per Service and writes the JSON when it is asked for. Must stay cheap: what it costs is measured
//! along with the proxy.

use std::fmt::Write;
use std::net::Ipv4Addr;

/// The port of every endpoint.
pub const ENDPOINT_PORT: u16 = 8080;
/// Endpoints that come with a change have addresses from here on: the address is the number of the change.
pub const FIRST_MARK: u32 = u32::from_be_bytes([10, 128, 0, 0]);

/// The name of the node that the proxy runs on.
pub const NODE: &str = "bench-node";
/// The ranges of pods and of ClusterIPs.
pub const CLUSTER_CIDR: &str = "10.0.0.0/8";
/// API servers take the very first address for themselves.
const FIRST_CLUSTER_IP: u32 = u32::from_be_bytes([172, 16, 1, 1]);
const FIRST_POD: u32 = u32::from_be_bytes([10, 1, 0, 1]);

/// What `managedFields` says, in the length that real objects have it.
const MANAGED: &str = r#""managedFields":[{"manager":"kube-controller-manager","operation":"Update","apiVersion":"v1","time":"2026-01-02T03:04:05Z","fieldsType":"FieldsV1","fieldsV1":{"f:metadata":{"f:annotations":{".":{},"f:meta.helm.sh/release-name":{},"f:meta.helm.sh/release-namespace":{}},"f:labels":{".":{},"f:app.kubernetes.io/component":{},"f:app.kubernetes.io/instance":{},"f:app.kubernetes.io/managed-by":{},"f:app.kubernetes.io/name":{},"f:app.kubernetes.io/version":{},"f:helm.sh/chart":{}},"f:ownerReferences":{".":{},"k:{\"uid\":\"0f6a3f0e-6f6e-4a63-8b1b-0f0d2d1f7a11\"}":{}}},"f:spec":{"f:internalTrafficPolicy":{},"f:ports":{".":{},"k:{\"port\":80,\"protocol\":\"TCP\"}":{".":{},"f:name":{},"f:port":{},"f:protocol":{},"f:targetPort":{}}},"f:selector":{},"f:sessionAffinity":{},"f:type":{}}}}]"#;

/// The Services and their endpoints.
pub struct Cluster {
    /// The endpoints of each Service.
    endpoints: Vec<Vec<Ipv4Addr>>,
    version: u64,
}

// === impl Cluster ===

impl Cluster {
    /// How many Services share a namespace.
    pub const PER_TEAM: usize = 200;

    /// The namespace of a Service. In the order of numbers, Services are in the order of their names too, in which real
    /// servers list them.
    pub fn team(service: usize) -> String {
        format!("team-{:03}", service / Self::PER_TEAM)
    }

    /// So many Services with so many endpoints each.
    pub fn new(services: usize, endpoints: usize) -> Self {
        let pod = |service: usize, endpoint: usize| Ipv4Addr::from(FIRST_POD + (service * endpoints + endpoint) as u32);
        let of_service = |service| (0..endpoints).map(|endpoint| pod(service, endpoint)).collect();
        Self { endpoints: (0..services).map(of_service).collect(), version: 1000 }
    }

    /// How many Services there are.
    pub fn services(&self) -> usize {
        self.endpoints.len()
    }

    /// The newest resource version.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The ClusterIP of a Service.
    pub fn cluster_ip(service: usize) -> Ipv4Addr {
        Ipv4Addr::from(FIRST_CLUSTER_IP + service as u32)
    }

    /// The endpoint that change number `mark` brings.
    pub fn marked(mark: u32) -> Ipv4Addr {
        Ipv4Addr::from(FIRST_MARK + mark)
    }

    /// One endpoint of a Service is replaced by the one that is called by this number.
    pub fn replace(&mut self, service: usize, mark: u32) {
        self.version += 1;
        let endpoints = &mut self.endpoints[service];
        let place = mark as usize % endpoints.len();
        endpoints[place] = Self::marked(mark);
    }

    /// A Service gets a number of endpoints, one of them the one that is called by this number.
    pub fn scale(&mut self, service: usize, size: usize, mark: u32) {
        self.version += 1;
        let endpoints = &mut self.endpoints[service];
        endpoints.truncate(size - 1);
        while endpoints.len() < size - 1 {
            let more = Ipv4Addr::from(FIRST_POD + (1 << 22) + (service * 8 + endpoints.len()) as u32);
            endpoints.push(more);
        }
        endpoints.push(Self::marked(mark));
    }

    /// The Service as JSON.
    pub fn write_service(&self, service: usize, into: &mut String) {
        let ip = Self::cluster_ip(service);
        self.open("Service", "v1", service, "", "", into);
        // Writing to a String cannot fail.
        let _ = write!(
            into,
            r#","annotations":{{"meta.helm.sh/release-name":"shop-{service:05}","meta.helm.sh/release-namespace":"{team}"}},{MANAGED}}},"spec":{{"ports":[{{"name":"http","protocol":"TCP","appProtocol":"http","port":80,"targetPort":"http"}}],"selector":{{"app.kubernetes.io/instance":"shop-{service:05}","app.kubernetes.io/name":"frontend"}},"clusterIP":"{ip}","clusterIPs":["{ip}"],"type":"ClusterIP","sessionAffinity":"None","ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack","internalTrafficPolicy":"Cluster"}},"status":{{"loadBalancer":{{}}}}}}"#,
            team = Self::team(service),
        );
    }

    /// The one EndpointSlice of a Service as JSON.
    pub fn write_slice(&self, service: usize, into: &mut String) {
        let owner = format!(r#","kubernetes.io/service-name":"shop-{service:05}-frontend""#);
        self.open("EndpointSlice", "discovery.k8s.io/v1", service, "-x7k2p", &owner, into);
        // Writing to a String cannot fail.
        let _ = write!(
            into,
            r#","annotations":{{"endpoints.kubernetes.io/last-change-trigger-time":"2026-01-02T03:04:05Z"}},"ownerReferences":[{{"apiVersion":"v1","kind":"Service","name":"shop-{service:05}-frontend","uid":"0f6a3f0e-6f6e-4a63-8b1b-0f0d2d1f7a11","controller":true,"blockOwnerDeletion":true}}],{MANAGED}}},"addressType":"IPv4","endpoints":["#
        );
        for (index, address) in self.endpoints[service].iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let _ = write!(
                into,
                r#"{comma}{{"addresses":["{address}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},"targetRef":{{"kind":"Pod","namespace":"{team}","name":"shop-{service:05}-frontend-6d4cf56db6-{index:05}","uid":"5b0a4c1e-2a5f-4a0e-9d80-4c19b1a0be{index:02}"}},"nodeName":"worker-{node}","zone":"zone-{zone}"}}"#,
                team = Self::team(service),
                node = (service + index) % 100,
                zone = index % 3,
            );
        }
        let _ = write!(into, r#"],"ports":[{{"name":"http","protocol":"TCP","port":{ENDPOINT_PORT}}}]}}"#);
    }

    /// Everything up to the annotations.
    fn open(&self, kind: &str, api: &str, service: usize, suffix: &str, labels: &str, into: &mut String) {
        let _ = write!(
            into,
            r#"{{"kind":"{kind}","apiVersion":"{api}","metadata":{{"name":"shop-{service:05}-frontend{suffix}","namespace":"{team}","uid":"9c1f2b6e-44c3-4e0b-a6cb-{service:012x}","resourceVersion":"{version}","generation":7,"creationTimestamp":"2026-01-02T03:04:05Z","labels":{{"app.kubernetes.io/component":"web","app.kubernetes.io/instance":"shop-{service:05}","app.kubernetes.io/managed-by":"Helm","app.kubernetes.io/name":"frontend","app.kubernetes.io/version":"1.27.4","helm.sh/chart":"shop-3.14.1"{labels}}}"#,
            team = Self::team(service),
            version = self.version,
        );
    }
}

/// The Node as JSON.
pub fn node() -> String {
    format!(
        r#"{{"kind":"Node","apiVersion":"v1","metadata":{{"name":"{NODE}","uid":"1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed","resourceVersion":"900"}},"spec":{{"podCIDR":"10.0.0.0/24","podCIDRs":["10.0.0.0/24"]}},"status":{{"addresses":[{{"type":"InternalIP","address":"192.0.2.1"}},{{"type":"Hostname","address":"{NODE}"}}]}}}}"#
    )
}

/// The range of ClusterIPs as JSON.
pub fn service_cidr() -> &'static str {
    r#"{"kind":"ServiceCIDR","apiVersion":"networking.k8s.io/v1","metadata":{"name":"kubernetes","resourceVersion":"901"},"spec":{"cidrs":["172.16.0.0/12"]}}"#
}
