//! The value of every flag, hidden ones too, as `/flagz` and the first log lines show it (contract 12.2).
//!
//! Values are printed as Go's flag library prints them. Must not decide anything.

use super::defaults::{HEALTHZ_PORT, METRICS_PORT};
use super::flags::Flags;
use super::raw::RawConfig;

/// Name and value of every flag, sorted by name. `raw` has the values of flags that are also fields of the file.
pub fn list(flags: &Flags, raw: &RawConfig) -> Vec<(&'static str, String)> {
    let mut all = Vec::with_capacity(80);
    all.extend(own(flags));
    all.extend(general(raw));
    all.extend(modes(flags, raw));
    all.extend(conntrack(raw));
    all.extend(logs(raw));
    all.sort_unstable();
    all
}

/// Flags that are no field of the file.
fn own(flags: &Flags) -> [(&'static str, String); 14] {
    let text = |flag: &Option<String>| flag.clone().unwrap_or_default();
    let or = |flag: &Option<String>, default: &str| flag.clone().unwrap_or_else(|| default.to_owned());
    [
        ("boot-id-file", or(&flags.boot_id_file, "/proc/sys/kernel/random/boot_id")),
        ("cleanup", flags.cleanup.unwrap_or_default().to_string()),
        ("config", text(&flags.config)),
        ("dry-run", flags.dry_run.unwrap_or_default().to_string()),
        ("healthz-port", flags.healthz_port.unwrap_or(HEALTHZ_PORT).to_string()),
        ("help", false.to_string()),
        ("init-only", flags.init_only.unwrap_or_default().to_string()),
        ("machine-id-file", or(&flags.machine_id_file, "/etc/machine-id,/var/lib/dbus/machine-id")),
        ("manifests", text(&flags.manifests)),
        ("master", text(&flags.master)),
        ("metrics-port", flags.metrics_port.unwrap_or(METRICS_PORT).to_string()),
        ("hostname-override", text(&flags.hostname_override)),
        ("version", or(&flags.version, "false")),
        ("write-config-to", text(&flags.write_config_to)),
    ]
}

fn general(raw: &RawConfig) -> [(&'static str, String); 18] {
    let client = &raw.client_connection;
    let gates: Vec<_> = raw.feature_gates.iter().map(|(name, on)| format!("{name}={on}")).collect();
    [
        ("bind-address", raw.bind_address.clone()),
        ("bind-address-hard-fail", raw.bind_address_hard_fail.to_string()),
        ("cluster-cidr", raw.cluster_cidr.clone().unwrap_or_default()),
        ("config-sync-period", raw.config_sync_period.to_string()),
        ("detect-local-mode", raw.detect_local_mode.clone()),
        ("feature-gates", gates.join(",")),
        ("healthz-bind-address", raw.healthz_bind_address.clone()),
        ("kube-api-burst", client.burst.to_string()),
        ("kube-api-content-type", client.content_type.clone()),
        ("kube-api-qps", client.qps.to_string()),
        ("kubeconfig", client.kubeconfig.clone()),
        ("metrics-bind-address", raw.metrics_bind_address.clone()),
        ("nodeport-addresses", list_of(raw.node_port_addresses.as_deref())),
        ("oom-score-adj", raw.oom_score_adj.unwrap_or_default().to_string()),
        ("pod-bridge-interface", raw.detect_local.bridge_interface.clone()),
        ("pod-interface-name-prefix", raw.detect_local.interface_name_prefix.clone()),
        ("profiling", raw.enable_profiling.to_string()),
        ("show-hidden-metrics-for-version", raw.show_hidden_metrics_for_version.clone()),
    ]
}

/// The periods show what the flags say, not what the mode in use made of them.
fn modes(flags: &Flags, raw: &RawConfig) -> [(&'static str, String); 15] {
    let ipvs = &raw.ipvs;
    let period = |flag: Option<super::GoDuration>, default| flag.map_or(default, |flag| flag.to_string());
    let (longest, shortest) = (|| "30s".to_owned(), || "1s".to_owned());
    [
        ("iptables-localhost-nodeports", raw.iptables.localhost_node_ports.unwrap_or_default().to_string()),
        ("iptables-masquerade-bit", raw.iptables.masquerade_bit.unwrap_or_default().to_string()),
        ("iptables-min-sync-period", period(flags.iptables_min_sync_period, shortest())),
        ("iptables-sync-period", period(flags.iptables_sync_period, longest())),
        ("ipvs-exclude-cidrs", list_of(ipvs.exclude_cidrs.as_deref())),
        ("ipvs-min-sync-period", period(flags.ipvs_min_sync_period, shortest())),
        ("ipvs-scheduler", ipvs.scheduler.clone()),
        ("ipvs-strict-arp", ipvs.strict_arp.to_string()),
        ("ipvs-sync-period", period(flags.ipvs_sync_period, longest())),
        ("ipvs-tcp-timeout", ipvs.tcp_timeout.to_string()),
        ("ipvs-tcpfin-timeout", ipvs.tcp_fin_timeout.to_string()),
        ("ipvs-udp-timeout", ipvs.udp_timeout.to_string()),
        ("masquerade-all", (raw.iptables.masquerade_all || raw.nftables.masquerade_all).to_string()),
        ("proxy-mode", raw.mode.clone()),
        ("v", raw.logging.verbosity.to_string()),
    ]
}

fn conntrack(raw: &RawConfig) -> [(&'static str, String); 7] {
    let conntrack = &raw.conntrack;
    [
        ("conntrack-max-per-core", conntrack.max_per_core.unwrap_or_default().to_string()),
        ("conntrack-min", conntrack.min.unwrap_or_default().to_string()),
        ("conntrack-tcp-be-liberal", conntrack.tcp_be_liberal.to_string()),
        ("conntrack-tcp-timeout-close-wait", conntrack.tcp_close_wait_timeout.unwrap_or_default().to_string()),
        ("conntrack-tcp-timeout-established", conntrack.tcp_established_timeout.unwrap_or_default().to_string()),
        ("conntrack-udp-timeout", conntrack.udp_timeout.to_string()),
        ("conntrack-udp-timeout-stream", conntrack.udp_stream_timeout.to_string()),
    ]
}

fn logs(raw: &RawConfig) -> [(&'static str, String); 7] {
    let logging = &raw.logging;
    let modules: Vec<_> =
        logging.vmodule.iter().map(|item| format!("{}={}", item.file_pattern, item.verbosity)).collect();
    [
        ("log-flush-frequency", logging.flush_frequency.to_string()),
        ("log-json-info-buffer-size", logging.options.json.info_buffer_size.0.clone()),
        ("log-json-split-stream", logging.options.json.split_stream.to_string()),
        ("log-text-info-buffer-size", logging.options.text.info_buffer_size.0.clone()),
        ("log-text-split-stream", logging.options.text.split_stream.to_string()),
        ("logging-format", logging.format.clone()),
        ("vmodule", modules.join(",")),
    ]
}

fn list_of(values: Option<&[String]>) -> String {
    format!("[{}]", values.unwrap_or_default().join(","))
}
