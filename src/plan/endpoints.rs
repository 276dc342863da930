//! Which endpoints of a Service port get traffic: readiness, termination, topology, locality (contract 5).

use std::collections::HashSet;
use std::net::IpAddr;

use crate::model::{self, EndpointSlice, Family, Protocol};

/// An endpoint of one Service port: from one of its slices, with the port number of that slice.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The endpoint.
    pub endpoint: &'a model::Endpoint,
    /// Its port.
    pub port: u16,
}

/// What policy asks of the selection.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// There is a NodePort, external IP or load balancer IP.
    pub externally_accessible: bool,
}

/// The endpoints that were selected.
#[derive(Debug, Default)]
pub struct Selection<'a> {
    /// For policy Cluster.
    pub cluster: Vec<Candidate<'a>>,
    /// For policy Local.
    pub local: Vec<Candidate<'a>>,
    /// Some endpoint could take traffic somewhere.
    pub any: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Topology {
    Everywhere,
    SameNode,
    SameZone,
}

/// All endpoints of a Service port, each once, in the order of address and port (contract 4.2).
pub fn candidates<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    family: Family,
    port_name: &str,
    protocol: Protocol,
) -> Vec<Candidate<'a>> {
    let mut all = Vec::new();
    for slice in slices.filter(|slice| slice.family == family) {
        for port in slice.ports.iter().filter(|port| *port.name == *port_name && port.protocol == protocol) {
            all.extend(slice.endpoints.iter().map(|endpoint| Candidate { endpoint, port: port.port }));
        }
    }
    // Stable: of several that say the same address, the last one that is not about to go counts, else the first.
    all.sort_by_key(Candidate::socket);
    all.dedup_by(|later, kept| {
        let same = later.socket() == kept.socket();
        if same && !later.endpoint.terminating {
            *kept = *later;
        }
        same
    });
    all
}

/// How many addresses of a Service are ready on this node, on whatever port (contract 12.3). A slice without ports has
/// no endpoint to send anything to, such as one of Pods that lack the named port.
pub fn ready_here<'a>(slices: impl Iterator<Item = &'a EndpointSlice> + Clone, family: Family) -> usize {
    let ports: HashSet<_> =
        slices.clone().flat_map(|slice| &slice.ports).map(|port| (&*port.name, port.protocol)).collect();
    let all = ports.into_iter().flat_map(|(name, protocol)| candidates(slices.clone(), family, name, protocol));
    let ready = all.map(|candidate| candidate.endpoint).filter(|endpoint| endpoint.place.is_here() && endpoint.ready);
    ready.map(|endpoint| endpoint.address).collect::<HashSet<_>>().len()
}

/// Selects among the endpoints of a Service port.
pub fn select<'a>(all: &[Candidate<'a>], policy: Policy, zone: Option<&str>) -> Selection<'a> {
    let mut selection = Selection::default();
    if !policy.internal_local || policy.externally_accessible {
        let topology = topology(all, zone);
        selection.cluster = pick(all, |e| e.ready && is_available(e, topology, zone));
        if selection.cluster.is_empty() {
            selection.cluster = pick(all, |e| e.serving && e.terminating);
        }
        selection.any = !selection.cluster.is_empty();
    }
    if policy.internal_local || (policy.external_local && policy.externally_accessible) {
        selection.any |= all.iter().any(|c| c.endpoint.ready || (c.endpoint.serving && c.endpoint.terminating));
        selection.local = pick(all, |e| e.place.is_here() && e.ready);
        if selection.local.is_empty() {
            selection.local = pick(all, |e| e.place.is_here() && e.serving && e.terminating);
        }
    }
    selection
}

fn pick<'a>(all: &[Candidate<'a>], wanted: impl Fn(&model::Endpoint) -> bool) -> Vec<Candidate<'a>> {
    all.iter().filter(|candidate| wanted(candidate.endpoint)).copied().collect()
}

/// Hints count only if every ready endpoint has one, and one of them is for us (contract 5, steps 1 to 4).
fn topology(all: &[Candidate<'_>], zone: Option<&str>) -> Topology {
    let ready = || all.iter().map(|candidate| candidate.endpoint).filter(|endpoint| endpoint.ready);
    if ready().all(|e| e.hinted_node.is_some()) && ready().any(|e| e.hinted_node == Some(true)) {
        return Topology::SameNode;
    }
    if ready().all(|e| !e.hinted_zones.is_empty()) && ready().any(|e| is_available(e, Topology::SameZone, zone)) {
        return Topology::SameZone;
    }
    Topology::Everywhere
}

fn is_available(endpoint: &model::Endpoint, topology: Topology, zone: Option<&str>) -> bool {
    match topology {
        Topology::Everywhere => true,
        Topology::SameNode => endpoint.hinted_node == Some(true),
        Topology::SameZone => zone.is_some_and(|zone| endpoint.hinted_zones.iter().any(|hint| **hint == *zone)),
    }
}

// === impl Candidate ===

impl Candidate<'_> {
    fn socket(&self) -> (IpAddr, u16) {
        (self.endpoint.address, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectName, Place, SlicePort};

    /// `1 ready local`, `2 serving terminating zone=a`, `3 ready node=us`, …: the number is the last octet.
    fn endpoint(text: &str) -> model::Endpoint {
        let words: Vec<&str> = text.split(' ').collect();
        let has = |word| words.contains(&word);
        let hints = |key: &str| words.iter().find_map(|word| word.strip_prefix(key));
        model::Endpoint {
            address: format!("10.0.0.{}", words[0]).parse().unwrap(),
            ready: has("ready"),
            serving: has("ready") || has("serving"),
            terminating: has("terminating"),
            place: if has("local") { Place::Here } else { Place::Elsewhere },
            hinted_node: hints("node=").map(|node| node == "us"),
            hinted_zones: hints("zone=").map(|zones| zones.split(',').map(Into::into).collect()).unwrap_or_default(),
            weight: None,
        }
    }

    fn slice(name: &str, ports: &[u16], endpoints: &[&str]) -> EndpointSlice {
        let port = |port| SlicePort { name: name.into(), protocol: Protocol::Tcp, port };
        EndpointSlice {
            service: ObjectName::new("ns", "s"),
            family: Family::V4,
            ports: ports.iter().copied().map(port).collect(),
            endpoints: endpoints.iter().map(|text| endpoint(text)).collect(),
            triggered: None,
        }
    }

    fn numbers(candidates: &[Candidate<'_>]) -> String {
        let last = |c: &Candidate<'_>| c.endpoint.address.to_string().rsplit('.').next().unwrap().to_owned();
        candidates.iter().map(last).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn selection_follows_the_contract() {
        const CLUSTER: Policy = Policy { internal_local: false, external_local: false, externally_accessible: false };
        const ETP: Policy = Policy { external_local: true, externally_accessible: true, ..CLUSTER };
        const ITP: Policy = Policy { internal_local: true, ..CLUSTER };
        const BOTH: Policy = Policy { internal_local: true, ..ETP };
        type Case = (&'static str, Policy, &'static [&'static str], &'static str, &'static str, bool);
        let cases: &[Case] = &[
            ("nothing", CLUSTER, &[], "", "", false),
            ("ready only", CLUSTER, &["1 ready", "2", "3 serving"], "1", "", true),
            ("terminating is the last resort", CLUSTER, &["1 serving terminating", "2 ready"], "2", "", true),
            (
                "terminating that serves",
                CLUSTER,
                &["1 serving terminating", "2 terminating", "3 serving"],
                "1",
                "",
                true,
            ),
            ("published although not ready", CLUSTER, &["1 ready terminating"], "1", "", true),
            ("zones", CLUSTER, &["1 ready zone=a", "2 ready zone=b", "3 ready zone=b,a"], "1 3", "", true),
            (
                "a missing hint disables zones",
                CLUSTER,
                &["1 ready zone=a", "2 ready zone=b", "3 ready"],
                "1 2 3",
                "",
                true,
            ),
            ("unready ones need no hint", CLUSTER, &["1 ready zone=a", "2 ready zone=b", "3"], "1", "", true),
            ("no endpoint for the zone", CLUSTER, &["1 ready zone=b", "2 ready zone=c"], "1 2", "", true),
            ("node hints come first", CLUSTER, &["1 ready node=us zone=b", "2 ready node=x zone=a"], "1", "", true),
            ("then zones", CLUSTER, &["1 ready node=y zone=b", "2 ready node=x zone=a"], "2", "", true),
            ("hints do not bind terminating ones", CLUSTER, &["1 serving terminating zone=b"], "1", "", true),
            (
                "external Local without addresses",
                Policy { externally_accessible: false, ..ETP },
                &["1 ready local"],
                "1",
                "",
                true,
            ),
            ("external Local", ETP, &["1 ready local", "2 ready"], "1 2", "1", true),
            ("local is not bound by hints", ETP, &["1 ready local zone=b", "2 ready zone=a"], "2", "1", true),
            ("local terminating", ETP, &["1 serving terminating local", "2 ready"], "2", "1", true),
            ("local prefers ready", ETP, &["1 serving terminating local", "2 ready local"], "2", "2", true),
            ("internal Local", ITP, &["1 ready local", "2 ready"], "", "1", true),
            ("internal Local elsewhere", ITP, &["2 ready"], "", "", true),
            ("internal Local, nothing usable", ITP, &["2"], "", "", false),
            ("both Local", BOTH, &["1 ready local", "2 ready"], "1 2", "1", true),
        ];
        for &(name, policy, endpoints, cluster, local, any) in cases {
            let endpoints: Vec<_> = endpoints.iter().map(|text| endpoint(text)).collect();
            let all: Vec<_> = endpoints.iter().map(|endpoint| Candidate { endpoint, port: 80 }).collect();
            let selection = select(&all, policy, Some("a"));
            assert_eq!(
                (&*numbers(&selection.cluster), &*numbers(&selection.local), selection.any),
                (cluster, local, any),
                "{name}"
            );
        }
    }

    #[test]
    fn a_node_without_zone_uses_all() {
        let endpoints = [endpoint("1 ready zone=a"), endpoint("2 ready zone=b")];
        let all: Vec<_> = endpoints.iter().map(|endpoint| Candidate { endpoint, port: 80 }).collect();
        assert_eq!(
            select(&all, Policy { internal_local: false, external_local: false, externally_accessible: false }, None)
                .cluster
                .len(),
            2
        );
    }

    #[test]
    fn slices_are_merged_and_duplicates_count_once() {
        let slices = [
            slice("p", &[80], &["2 ready", "1 serving terminating"]),
            slice("p", &[80], &["1 ready", "2 serving terminating"]),
            slice("p", &[81], &["1 ready"]),
        ];
        let all = candidates(slices.iter(), Family::V4, "p", Protocol::Tcp);
        assert_eq!(numbers(&all), "1 1 2");
        assert_eq!(all.iter().map(|c| c.port).collect::<Vec<_>>(), [80, 81, 80]);
        assert!(all.iter().all(|c| c.endpoint.ready), "one that does not terminate replaces one that does");
        assert!(candidates(slices.iter(), Family::V4, "p", Protocol::Udp).is_empty());
        assert!(candidates(slices.iter(), Family::V6, "p", Protocol::Tcp).is_empty());
        assert!(candidates(slices.iter(), Family::V4, "q", Protocol::Tcp).is_empty());
    }

    #[test]
    fn health_checks_count_addresses_that_are_ready_here_on_some_port() {
        for (about, slices, expected) in [
            ("one, elsewhere another", vec![slice("p", &[80], &["1 ready local", "2 ready"])], 1),
            ("two ports of one", vec![slice("p", &[80], &["1 ready local"]), slice("q", &[81], &["1 ready local"])], 1),
            (
                "two of different ports",
                vec![slice("p", &[80], &["1 ready local"]), slice("q", &[81], &["2 ready local"])],
                2,
            ),
            ("no port", vec![slice("p", &[], &["1 ready local"])], 0),
            ("one that only serves", vec![slice("p", &[80], &["1 serving terminating local"])], 0),
            (
                "named twice, once as ready",
                vec![slice("p", &[80], &["1 local"]), slice("p", &[80], &["1 ready terminating local"])],
                0,
            ),
        ] {
            assert_eq!(ready_here(slices.iter(), Family::V4), expected, "{about}");
        }
    }
}
