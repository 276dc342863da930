//! Everything that is measured: upstream's metrics of this mode under upstream's names (contract 13), and a few of ours.
//!
//! Whoever does the work sets the values; `/metrics` writes them. Must not ask anybody for a value; what only a scrape
//! needs to know is in `scrape`.

use std::cell::RefCell;
use std::iter;
use std::time::Duration;

use super::exposition::{Counter, Family, Gauge, Histogram};
use super::scrape::{self, Build, CounterSource, TrafficSource};
use crate::kernel::process::Usage;
use crate::model;

/// 0.001 to 16.384 seconds, each bound twice the one before.
const SYNC: [f64; 15] = doubling();
/// 0.25 to 300 seconds.
const PROGRAMMING: [f64; 80] = programming();
/// Seconds from a change to the kernel.
const CHANGE: [f64; 15] = [0.000_25, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
/// Seconds a request to the API server takes.
const REQUEST: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];
/// Bytes of such a request, or of the answer.
const SIZE: [f64; 11] =
    [64.0, 256.0, 512.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0];

/// The label of most families.
const IP_FAMILY: &[&str] = &["ip_family"];

/// Whether a sync looked at everything or at changes only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Everything.
    Full,
    /// Changes.
    Partial,
}

/// All metrics. Families that nobody touches stay out of the output.
pub struct Metrics {
    build: Build,
    traffic: RefCell<Option<TrafficSource>>,
    counters: RefCell<Option<CounterSource>>,
    sync_duration: Family<Histogram>,
    full_sync_duration: Family<Histogram>,
    partial_sync_duration: Family<Histogram>,
    last_sync: Family<Gauge>,
    last_queued: Family<Gauge>,
    programming_duration: Family<Histogram>,
    /// Slice changes that are not in the kernel yet.
    pub endpoint_changes_pending: Family<Gauge>,
    /// Slice changes seen.
    pub endpoint_changes: Family<Counter>,
    /// Services with changes that are not in the kernel yet.
    pub service_changes_pending: Family<Gauge>,
    /// Service changes seen.
    pub service_changes: Family<Counter>,
    /// Service ports with endpoints elsewhere but none here under policy Local; labels `internal` or `external`, family.
    pub no_local_endpoints: Family<Gauge>,
    /// iptables mode: rules owned; labels table, family.
    pub iptables_rules: Family<Gauge>,
    /// iptables mode: rules written in the last sync; labels table, family.
    pub iptables_last: Family<Gauge>,
    /// Whether each feature gate is on; labels name, stage.
    pub feature_enabled: Family<Gauge>,
    /// iptables mode: failures of `iptables-restore`; label family.
    pub iptables_restore_failures: Family<Counter>,
    /// iptables mode: such failures in partial syncs; label family.
    pub iptables_partial_restore_failures: Family<Counter>,
    /// nftables mode: transactions that failed; label family.
    pub nftables_sync_failures: Family<Counter>,
    /// nftables mode: deletions of leftovers that failed; label family.
    pub nftables_cleanup_failures: Family<Counter>,
    conntrack_duration: Family<Histogram>,
    conntrack_deleted: Family<Counter>,
    /// Answers of `/healthz`; label code.
    pub healthz: Family<Counter>,
    /// Answers of `/livez`; label code.
    pub livez: Family<Counter>,
    rest_requests: Family<Counter>,
    rest_duration: Family<Histogram>,
    rest_request_size: Family<Histogram>,
    rest_response_size: Family<Histogram>,
    /// Requests to the API server that were made again; labels code, verb, host.
    pub rest_retries: Family<Counter>,
    /// Ours: Services in the kernel; label family.
    pub programmed_services: Family<Gauge>,
    /// Ours: endpoints in the kernel; label family.
    pub programmed_endpoints: Family<Gauge>,
    /// Ours: Service ports that could not be programmed; label family.
    pub set_aside: Family<Gauge>,
    last_change: Family<Gauge>,
    change_duration: Family<Histogram>,
}

const fn doubling() -> [f64; 15] {
    // Multiplied by an integer, not doubled: so each bound is the double nearest to its decimal.
    let mut bounds = [0.0; 15];
    let mut index = 0;
    while index < bounds.len() {
        bounds[index] = (1 << index) as f64 / 1000.0;
        index += 1;
    }
    bounds
}

const fn programming() -> [f64; 80] {
    let mut bounds = [0.25; 80];
    bounds[1] = 0.5;
    let mut index = 2;
    let mut seconds = 1;
    while seconds <= 300 {
        bounds[index] = seconds as f64;
        index += 1;
        seconds += if seconds < 60 {
            1
        } else if seconds < 120 {
            5
        } else {
            30
        };
    }
    assert!(index == bounds.len());
    bounds
}

fn sync_histogram() -> Histogram {
    Histogram::new(&SYNC)
}

// === impl Metrics ===

impl Metrics {
    /// Metrics without a value yet.
    pub fn new(build: Build) -> Self {
        let request: fn() -> Histogram = || Histogram::new(&REQUEST);
        let size: fn() -> Histogram = || Histogram::new(&SIZE);
        Self {
            build,
            traffic: RefCell::default(),
            counters: RefCell::default(),
            sync_duration: Family::new(
                "kubeproxy_sync_proxy_rules_duration_seconds",
                "[ALPHA] Time that syncs took, failed ones included",
                IP_FAMILY,
                sync_histogram,
            ),
            full_sync_duration: Family::new(
                "kubeproxy_sync_full_proxy_rules_duration_seconds",
                "[ALPHA] Time that syncs of everything took",
                IP_FAMILY,
                sync_histogram,
            ),
            partial_sync_duration: Family::new(
                "kubeproxy_sync_partial_proxy_rules_duration_seconds",
                "[ALPHA] Time that syncs of changes took",
                IP_FAMILY,
                sync_histogram,
            ),
            last_sync: Family::gauge(
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "[ALPHA] When the last sync succeeded",
                IP_FAMILY,
            ),
            last_queued: Family::gauge(
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "[ALPHA] When a sync was last asked for",
                IP_FAMILY,
            ),
            programming_duration: Family::new(
                "kubeproxy_network_programming_duration_seconds",
                "[ALPHA] Time from a change of pods or Services to its rules in the kernel",
                IP_FAMILY,
                || Histogram::new(&PROGRAMMING),
            ),
            endpoint_changes_pending: Family::gauge(
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                "[ALPHA] EndpointSlice changes that are not in the kernel yet",
                &[],
            ),
            endpoint_changes: Family::counter(
                "kubeproxy_sync_proxy_rules_endpoint_changes_total",
                "[ALPHA] EndpointSlice changes seen",
                &[],
            ),
            service_changes_pending: Family::gauge(
                "kubeproxy_sync_proxy_rules_service_changes_pending",
                "[ALPHA] Services with changes that are not in the kernel yet",
                &[],
            ),
            service_changes: Family::counter(
                "kubeproxy_sync_proxy_rules_service_changes_total",
                "[ALPHA] Service changes seen",
                &[],
            ),
            no_local_endpoints: Family::gauge(
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
                "[ALPHA] Service ports of policy Local whose endpoints are all on other nodes",
                &["traffic_policy", "ip_family"],
            ),
            iptables_rules: Family::gauge(
                "kubeproxy_sync_proxy_rules_iptables_total",
                "[ALPHA] Iptables rules that are ours",
                &["table", "ip_family"],
            ),
            iptables_last: Family::gauge(
                "kubeproxy_sync_proxy_rules_iptables_last",
                "[ALPHA] Iptables rules written by the last sync",
                &["table", "ip_family"],
            ),
            feature_enabled: Family::gauge(
                "kubernetes_feature_enabled",
                "[BETA] Whether a feature gate that this proxy reads is on",
                &["name", "stage"],
            ),
            iptables_restore_failures: Family::counter(
                "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
                "[ALPHA] Times that iptables-restore failed",
                IP_FAMILY,
            ),
            iptables_partial_restore_failures: Family::counter(
                "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
                "[ALPHA] Times that iptables-restore failed in a sync of changes",
                IP_FAMILY,
            ),
            nftables_sync_failures: Family::counter(
                "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
                "[ALPHA] Nftables transactions that failed",
                IP_FAMILY,
            ),
            nftables_cleanup_failures: Family::counter(
                "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total",
                "[ALPHA] Deletions of unused nftables objects that failed",
                IP_FAMILY,
            ),
            conntrack_duration: Family::new(
                "kubeproxy_conntrack_reconciler_sync_duration_seconds",
                "[ALPHA] Time that sweeps for stale connection tracking entries took",
                IP_FAMILY,
                sync_histogram,
            ),
            conntrack_deleted: Family::counter(
                "kubeproxy_conntrack_reconciler_deleted_entries_total",
                "[ALPHA] Stale connection tracking entries deleted",
                IP_FAMILY,
            ),
            healthz: Family::counter(
                "kubeproxy_proxy_healthz_total",
                "[ALPHA] Answers of /healthz by status",
                &["code"],
            ),
            livez: Family::counter("kubeproxy_proxy_livez_total", "[ALPHA] Answers of /livez by status", &["code"]),
            rest_requests: Family::counter(
                "rest_client_requests_total",
                "[ALPHA] Requests to the API server by status, method and host",
                &["code", "method", "host"],
            ),
            rest_duration: Family::new(
                "rest_client_request_duration_seconds",
                "[ALPHA] Time until the API server answered, by verb and host",
                &["verb", "host"],
                request,
            ),
            rest_request_size: Family::new(
                "rest_client_request_size_bytes",
                "[ALPHA] Size of requests to the API server, by verb and host",
                &["verb", "host"],
                size,
            ),
            rest_response_size: Family::new(
                "rest_client_response_size_bytes",
                "[ALPHA] Size of the API server's answers, by verb and host",
                &["verb", "host"],
                size,
            ),
            rest_retries: Family::counter(
                "rest_client_request_retries_total",
                "[ALPHA] Requests to the API server that were made again, by status, verb and host",
                &["code", "verb", "host"],
            ),
            programmed_services: Family::gauge("kubeproxy_programmed_services", "Services in the kernel", IP_FAMILY),
            programmed_endpoints: Family::gauge("kubeproxy_programmed_endpoints", "Endpoints in the kernel", IP_FAMILY),
            set_aside: Family::gauge(
                "kubeproxy_set_aside_service_ports",
                "Service ports that could not be programmed while all others were",
                IP_FAMILY,
            ),
            last_change: Family::gauge(
                "kubeproxy_last_change_to_kernel_seconds",
                "Time from the arrival of the last change to its acknowledgement by the kernel",
                IP_FAMILY,
            ),
            change_duration: Family::new(
                "kubeproxy_change_to_kernel_duration_seconds",
                "Time from the arrival of a change to its acknowledgement by the kernel",
                IP_FAMILY,
                || Histogram::new(&CHANGE),
            ),
        }
    }

    /// A sync was asked for; `now` in seconds since the epoch.
    pub fn queued(&self, family: model::Family, now: f64) {
        self.last_queued.with(&[family.as_str()]).set(now);
    }

    /// A sync ended that began `took` ago; `now` in seconds since the epoch. `sync` is `None` where the mode does not tell.
    pub fn synced(&self, family: model::Family, sync: Option<Sync>, took: Duration, succeeded: bool, now: f64) {
        let labels = &[family.as_str()];
        self.sync_duration.with(labels).observe(took.as_secs_f64());
        let durations = sync.map(|sync| match sync {
            Sync::Full => &self.full_sync_duration,
            Sync::Partial => &self.partial_sync_duration,
        });
        durations.into_iter().for_each(|durations| durations.with(labels).observe(took.as_secs_f64()));
        if succeeded {
            self.last_sync.with(labels).set(now);
        }
    }

    /// A change of an EndpointSlice that happened `ago`, by the slice's own word, is in the kernel (contract 14.4).
    pub fn programmed(&self, family: model::Family, ago: Duration) {
        self.programming_duration.with(&[family.as_str()]).observe(ago.as_secs_f64());
    }

    /// The first change of a sync that succeeded had come in `ago`.
    pub fn changed(&self, family: model::Family, ago: Duration) {
        self.last_change.with(&[family.as_str()]).set(ago.as_secs_f64());
        self.change_duration.with(&[family.as_str()]).observe(ago.as_secs_f64());
    }

    /// A sweep for stale connection tracking entries ended.
    pub fn swept(&self, family: model::Family, took: Duration, deleted: usize) {
        self.conntrack_duration.with(&[family.as_str()]).observe(took.as_secs_f64());
        self.conntrack_deleted.with(&[family.as_str()]).add(deleted as u64);
    }

    /// A request to the API server was answered with this status code, or `<error>`, after so much time.
    pub fn requested(&self, verb: &str, host: &str, code: &str, took: Duration) {
        self.rest_requests.with(&[code, verb, host]).add(1);
        self.rest_duration.with(&[verb, host]).observe(took.as_secs_f64());
    }

    /// A request to the API server and its answer had so many bytes.
    pub fn transferred(&self, verb: &str, host: &str, sent: usize, received: usize) {
        for (sizes, size) in [(&self.rest_request_size, sent), (&self.rest_response_size, received)] {
            sizes.with(&[verb, host]).observe(size as f64);
        }
    }

    /// `iptables-restore` refused a text so many times.
    pub fn refused(&self, family: model::Family, full: bool, times: usize) {
        if times > 0 {
            let label = &[family.as_str()];
            self.iptables_restore_failures.with(label).add(times as u64);
            if !full {
                self.iptables_partial_restore_failures.with(label).add(times as u64);
            }
        }
    }

    /// Says where scrapes find the kernel's own counters: name, help and packets of each.
    pub fn set_counters(&self, source: CounterSource) {
        *self.counters.borrow_mut() = Some(source);
    }

    /// Says where scrapes find the counters of Service ports.
    pub fn set_traffic(&self, source: TrafficSource) {
        *self.traffic.borrow_mut() = Some(source);
    }

    /// Everything, in the Prometheus text format, in pieces.
    pub fn text(&self) -> impl Iterator<Item = String> + use<> {
        let mut out = String::with_capacity(16 * 1024);
        self.kubeproxy(&mut out);
        for family in [&self.rest_duration, &self.rest_request_size, &self.rest_response_size] {
            family.write(&mut out);
        }
        self.rest_retries.write(&mut out);
        self.rest_requests.write(&mut out);
        self.build.write(&mut out);
        if let Ok(usage) = Usage::read() {
            scrape::process(&mut out, &usage);
        }
        if let Some(source) = &*self.counters.borrow() {
            scrape::counters(&mut out, source);
        }
        let traffic = self.traffic.borrow().as_ref().map(|source| scrape::traffic(source()));
        iter::once(out).chain(traffic.into_iter().flatten())
    }

    fn kubeproxy(&self, out: &mut String) {
        for family in [
            &self.sync_duration,
            &self.full_sync_duration,
            &self.partial_sync_duration,
            &self.programming_duration,
            &self.conntrack_duration,
            &self.change_duration,
        ] {
            family.write(out);
        }
        for family in [
            &self.last_sync,
            &self.last_queued,
            &self.endpoint_changes_pending,
            &self.service_changes_pending,
            &self.no_local_endpoints,
            &self.iptables_rules,
            &self.iptables_last,
            &self.feature_enabled,
            &self.programmed_services,
            &self.programmed_endpoints,
            &self.set_aside,
            &self.last_change,
        ] {
            family.write(out);
        }
        for family in [
            &self.endpoint_changes,
            &self.service_changes,
            &self.iptables_restore_failures,
            &self.iptables_partial_restore_failures,
            &self.nftables_sync_failures,
            &self.nftables_cleanup_failures,
            &self.conntrack_deleted,
            &self.healthz,
            &self.livez,
        ] {
            family.write(out);
        }
    }
}
