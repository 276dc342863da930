//! What the flags say, in the words of the file.
//!
//! Without a configuration file the flags are the configuration; with one, a few of them still have the last word
//! (contract 1). Only copies: a flag that was not given changes nothing, and no value is judged here.

use super::address::with_port;
use super::defaults::{self, HEALTHZ_PORT, METRICS_PORT};
use super::duration::GoDuration;
use super::flags::Flags;
use super::raw::RawConfig;

/// The configuration that the flags alone amount to.
pub fn from_flags(flags: &Flags) -> RawConfig {
    let mut raw = defaults::defaults();
    raw.feature_gates = flags.feature_gates.iter().flatten().map(|(name, on)| (name.clone(), *on)).collect();
    put(&mut raw.client_connection.kubeconfig, &flags.kubeconfig);
    put(&mut raw.client_connection.content_type, &flags.kube_api_content_type);
    put(&mut raw.client_connection.burst, &flags.kube_api_burst);
    put(&mut raw.client_connection.qps, &flags.kube_api_qps);
    put_address(&mut raw.bind_address, &flags.bind_address);
    put_address(&mut raw.healthz_bind_address, &flags.healthz_bind_address);
    put_address(&mut raw.metrics_bind_address, &flags.metrics_bind_address);
    if flags.write_config_to.is_none() {
        let port = |flag: Option<i32>, default| flag.unwrap_or(default);
        raw.healthz_bind_address = on_port(&raw.healthz_bind_address, port(flags.healthz_port, HEALTHZ_PORT));
        raw.metrics_bind_address = on_port(&raw.metrics_bind_address, port(flags.metrics_port, METRICS_PORT));
    }
    put(&mut raw.bind_address_hard_fail, &flags.bind_address_hard_fail);
    put(&mut raw.enable_profiling, &flags.profiling);
    put(&mut raw.show_hidden_metrics_for_version, &flags.show_hidden_metrics_for_version);
    put(&mut raw.mode, &flags.proxy_mode);
    put(&mut raw.detect_local_mode, &flags.detect_local_mode);
    put(&mut raw.detect_local.bridge_interface, &flags.pod_bridge_interface);
    put(&mut raw.detect_local.interface_name_prefix, &flags.pod_interface_name_prefix);
    put_some(&mut raw.cluster_cidr, flags.cluster_cidr.clone());
    raw.node_port_addresses = list(&flags.nodeport_addresses);
    put(&mut raw.config_sync_period, &flags.config_sync_period);
    put_some(&mut raw.oom_score_adj, flags.oom_score_adj);
    put_modes(&mut raw, flags);
    put_conntrack(&mut raw, flags);
    beside_file(&mut raw, flags);
    raw
}

/// Lets the flags speak that outrank a configuration file.
pub fn beside_file(raw: &mut RawConfig, flags: &Flags) {
    if let Some(name) = flags.hostname_override.as_ref().filter(|name| !name.is_empty()) {
        raw.hostname_override = name.trim().to_lowercase();
    }
    let logging = &mut raw.logging;
    put(&mut logging.verbosity, &flags.v);
    put(&mut logging.format, &flags.logging_format);
    put(&mut logging.flush_frequency, &flags.log_flush_frequency);
    put(&mut logging.options.text.split_stream, &flags.log_text_split_stream);
    put(&mut logging.options.text.info_buffer_size, &flags.log_text_info_buffer_size);
    put(&mut logging.options.json.split_stream, &flags.log_json_split_stream);
    put(&mut logging.options.json.info_buffer_size, &flags.log_json_info_buffer_size);
    logging.vmodule.splice(0..0, flags.vmodule.iter().flatten().cloned());
}

/// The per-mode fields. The flags named after iptables mean nftables too when that is the mode.
fn put_modes(raw: &mut RawConfig, flags: &Flags) {
    put_some(&mut raw.iptables.masquerade_bit, flags.iptables_masquerade_bit);
    put_some(&mut raw.iptables.localhost_node_ports, flags.iptables_localhost_nodeports);
    let (masquerade_all, sync_period, min_sync_period) = match &*raw.mode {
        "nftables" => {
            let mode = &mut raw.nftables;
            (&mut mode.masquerade_all, &mut mode.sync_period, &mut mode.min_sync_period)
        }
        _ => {
            let mode = &mut raw.iptables;
            (&mut mode.masquerade_all, &mut mode.sync_period, &mut mode.min_sync_period)
        }
    };
    put(masquerade_all, &flags.masquerade_all);
    put(sync_period, &flags.iptables_sync_period);
    put(min_sync_period, &flags.iptables_min_sync_period);

    let ipvs = &mut raw.ipvs;
    ipvs.min_sync_period = GoDuration::from_secs(1);
    put(&mut ipvs.sync_period, &flags.ipvs_sync_period);
    put(&mut ipvs.min_sync_period, &flags.ipvs_min_sync_period);
    put(&mut ipvs.scheduler, &flags.ipvs_scheduler);
    ipvs.exclude_cidrs = list(&flags.ipvs_exclude_cidrs);
    put(&mut ipvs.strict_arp, &flags.ipvs_strict_arp);
    put(&mut ipvs.tcp_timeout, &flags.ipvs_tcp_timeout);
    put(&mut ipvs.tcp_fin_timeout, &flags.ipvs_tcpfin_timeout);
    put(&mut ipvs.udp_timeout, &flags.ipvs_udp_timeout);
}

fn put_conntrack(raw: &mut RawConfig, flags: &Flags) {
    let conntrack = &mut raw.conntrack;
    put_some(&mut conntrack.max_per_core, flags.conntrack_max_per_core);
    put_some(&mut conntrack.min, flags.conntrack_min);
    put_some(&mut conntrack.tcp_established_timeout, flags.conntrack_tcp_timeout_established);
    put_some(&mut conntrack.tcp_close_wait_timeout, flags.conntrack_tcp_timeout_close_wait);
    put(&mut conntrack.tcp_be_liberal, &flags.conntrack_tcp_be_liberal);
    put(&mut conntrack.udp_timeout, &flags.conntrack_udp_timeout);
    put(&mut conntrack.udp_stream_timeout, &flags.conntrack_udp_timeout_stream);
}

fn put<T: Clone>(field: &mut T, flag: &Option<T>) {
    if let Some(value) = flag {
        field.clone_from(value);
    }
}

fn put_some<T>(field: &mut Option<T>, flag: Option<T>) {
    if flag.is_some() {
        *field = flag;
    }
}

/// An empty address leaves the default alone.
fn put_address(field: &mut String, flag: &Option<String>) {
    put(field, &flag.clone().filter(|text| !text.is_empty()));
}

/// Port 0 of the deprecated flags means: no server.
fn on_port(address: &str, port: i32) -> String {
    if port == 0 { String::new() } else { with_port(address, port) }
}

/// A list flag may be repeated, and each time hold several values.
fn list(flags: &[Vec<String>]) -> Option<Vec<String>> {
    (!flags.is_empty()).then(|| flags.concat())
}
