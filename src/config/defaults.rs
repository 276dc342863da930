//! What a configuration means where it says nothing (contract 2.2).
//!
//! Two steps, as upstream: [`fill`] completes a file, in which zero and absent are often the same; [`settle`] decides
//! what was left open on purpose, after file and flags had their say. Neither must judge a value that is there.

use super::address::with_port;
use super::duration::GoDuration;
use super::raw::{API_VERSION, KIND, PROTOBUF, RawConfig};
use crate::model::parse_ip;

/// Port of `/healthz` for load balancers.
pub const HEALTHZ_PORT: i32 = 10256;
/// Port of `/metrics`.
pub const METRICS_PORT: i32 = 10249;

const SYNC_PERIOD: GoDuration = GoDuration::from_secs(30);
const MIN_SYNC_PERIOD: GoDuration = GoDuration::from_secs(1);
const MASQUERADE_BIT: i32 = 14;

/// A configuration that nobody said anything about.
pub fn defaults() -> RawConfig {
    let mut raw = RawConfig { api_version: API_VERSION.to_owned(), kind: KIND.to_owned(), ..RawConfig::default() };
    fill(&mut raw);
    raw
}

/// Gives every field that a file left at zero or absent its default.
pub fn fill(raw: &mut RawConfig) {
    put_text(&mut raw.bind_address, "0.0.0.0");
    let ipv6 = parse_ip(&raw.bind_address).is_some_and(|ip| ip.is_ipv6());
    put_text(&mut raw.healthz_bind_address, if ipv6 { "::" } else { "0.0.0.0" });
    put_text(&mut raw.metrics_bind_address, if ipv6 { "::1" } else { "127.0.0.1" });
    raw.healthz_bind_address = with_port(&raw.healthz_bind_address, HEALTHZ_PORT);
    raw.metrics_bind_address = with_port(&raw.metrics_bind_address, METRICS_PORT);

    put_text(&mut raw.client_connection.content_type, PROTOBUF);
    put(&mut raw.client_connection.qps, 5.0);
    put(&mut raw.client_connection.burst, 10);
    put_text(&mut raw.logging.format, "text");
    put(&mut raw.logging.flush_frequency, GoDuration::from_secs(5));

    raw.iptables.masquerade_bit.get_or_insert(MASQUERADE_BIT);
    raw.iptables.localhost_node_ports.get_or_insert(true);
    put(&mut raw.iptables.sync_period, SYNC_PERIOD);
    put(&mut raw.iptables.min_sync_period, MIN_SYNC_PERIOD);
    put(&mut raw.ipvs.sync_period, SYNC_PERIOD);
    raw.nftables.masquerade_bit.get_or_insert(MASQUERADE_BIT);
    put(&mut raw.nftables.sync_period, SYNC_PERIOD);
    put(&mut raw.nftables.min_sync_period, MIN_SYNC_PERIOD);

    raw.cluster_cidr = raw.cluster_cidr.take().filter(|cidrs| !cidrs.is_empty());
    raw.oom_score_adj.get_or_insert(-999);
    raw.conntrack.max_per_core.get_or_insert(32 * 1024);
    raw.conntrack.min.get_or_insert(128 * 1024);
    raw.conntrack.tcp_established_timeout.get_or_insert(GoDuration::from_secs(24 * 3600));
    raw.conntrack.tcp_close_wait_timeout.get_or_insert(GoDuration::from_secs(3600));
    put(&mut raw.config_sync_period, GoDuration::from_secs(15 * 60));
}

/// Decides what an empty mode means, and what follows from the mode. Returns what an operator should know of it.
pub fn settle(raw: &mut RawConfig) -> Option<String> {
    let note = raw.mode.is_empty().then(|| "no proxy mode is configured: using iptables, as upstream does".to_owned());
    put_text(&mut raw.mode, "iptables");
    put_text(&mut raw.detect_local_mode, "ClusterCIDR");
    let any_address = raw.node_port_addresses.as_ref().is_none_or(Vec::is_empty);
    if raw.mode == "nftables" && any_address {
        raw.node_port_addresses = Some(vec!["primary".to_owned()]);
    }
    note
}

fn put<T: PartialEq + Default>(field: &mut T, default: T) {
    if *field == T::default() {
        *field = default;
    }
}

fn put_text(field: &mut String, default: &str) {
    if field.is_empty() {
        default.clone_into(field);
    }
}
