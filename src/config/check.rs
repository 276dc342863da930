//! From a complete [`RawConfig`] to a [`Config`], or the list of all that is wrong (contract 2.3).
//!
//! Paths, texts and order of the messages are upstream's, since scripts and people search for them; the paths are
//! those of its internal types, not of the file. Must not fill in defaults, and must not look at the node.

use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::address::split_host_port;
use super::checked::{Config, Conntrack, DetectLocal, Ipvs, LogFormat, Mode, NodePortAddresses};
use super::duration::GoDuration;
use super::gates::Gates;
use super::raw::{self, ClientConnection, PROTOBUF, RawConfig};
use super::refusals::Refusals;
use crate::model::{Family, parse_cidr, parse_ip};

/// The minor version before the one we stand in for: the only one whose hidden metrics can be shown.
const PREVIOUS_MINOR: &str = "1.35";
const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
/// Bytes of an interface's name: `IFNAMSIZ` less the zero at its end.
const LONGEST_NAME: usize = 15;

/// Checks everything but the logging options.
///
/// # Errors
/// Every bad value.
pub fn check(raw: &RawConfig, gates: Gates) -> Result<Config, Refusals> {
    let mut errors = Refusals::default();
    let mode = Mode::from_name(&raw.mode);
    let iptables_bit = errors.masquerade_bit("KubeProxyIPTablesConfiguration", raw.iptables.masquerade_bit);
    let ipvs = check_ipvs(&raw.ipvs, mode == Some(Mode::Ipvs), &mut errors);
    let masquerade_bit = match mode {
        Some(Mode::Nftables) => errors.masquerade_bit("KubeProxyNFTablesConfiguration", raw.nftables.masquerade_bit),
        _ => iptables_bit,
    };
    let conntrack = check_conntrack(&raw.conntrack, &mut errors);
    let oom_score_adj = raw.oom_score_adj.unwrap_or_default();
    if !(-1000..=1000).contains(&oom_score_adj) {
        let path = "KubeProxyLinuxConfiguration.OOMScoreAdj";
        errors.invalid(path, oom_score_adj, "must be within the range [-1000, 1000]");
    }
    if mode.is_none() {
        let message = "must be iptables, ipvs, nftables or blank (blank means the best-available proxy [currently \
                       iptables])";
        errors.invalid("Mode.ProxyMode", quoted(&raw.mode), message);
    }
    if raw.client_connection.burst < 0 {
        errors.invalid("ClientConnection.Burst", raw.client_connection.burst, NOT_NEGATIVE);
    }
    let mode = mode.unwrap_or(Mode::Iptables);
    let (sync_period, min_sync_period) = check_periods(raw, mode, &mut errors);
    let bind_address = parse_ip(&raw.bind_address).unwrap_or_else(|| {
        let message = "not a valid textual representation of an IP address";
        errors.invalid("BindAddress", quoted(&raw.bind_address), message);
        UNSPECIFIED
    });
    let healthz = Some(&raw.healthz_bind_address).filter(|text| !text.is_empty());
    let healthz_bind_address = healthz.map(|text| errors.socket("HealthzBindAddress", text));
    let metrics_bind_address = errors.socket("MetricsBindAddress", &raw.metrics_bind_address);
    let node_port_addresses = check_node_ports(raw.node_port_addresses.as_deref().unwrap_or_default(), &mut errors);
    let hidden = &raw.show_hidden_metrics_for_version;
    if !hidden.is_empty() && hidden != PREVIOUS_MINOR {
        let message = "--show-hidden-metrics-for-version must be omitted or have the value '1.35'. Only the previous \
                       minor version is allowed";
        errors.invalid("ShowHiddenMetricsForVersion", quoted(hidden), message);
    }
    let detect_local = check_detect_local(raw, &mut errors);
    let config = Config {
        gates,
        kubeconfig: non_empty(&raw.client_connection.kubeconfig),
        protobuf: takes_protobuf(&raw.client_connection),
        hostname_override: non_empty(raw.hostname_override.trim()).map(|name| name.to_lowercase()),
        bind_address,
        healthz_bind_address,
        metrics_bind_address,
        bind_address_hard_fail: raw.bind_address_hard_fail,
        show_hidden_metrics: !hidden.is_empty(),
        mode,
        sync_period,
        min_sync_period,
        masquerade_all: masquerade_all(raw, mode),
        masquerade_bit,
        localhost_node_ports: raw.iptables.localhost_node_ports.unwrap_or_default(),
        ipvs,
        detect_local,
        node_port_addresses,
        oom_score_adj,
        conntrack,
        verbosity: raw.logging.verbosity,
        log_format: log_format(&raw.logging),
    };
    errors.or(config)
}

/// The form of the log, which is checked before all else.
pub fn log_format(raw: &raw::Logging) -> LogFormat {
    if raw.format == "json" { LogFormat::Json } else { LogFormat::Text }
}

/// Whether the API server may send protobuf: what is accepted is what is sent, unless it is told separately (contract 2.2).
fn takes_protobuf(connection: &ClientConnection) -> bool {
    let accepted = &connection.accept_content_types;
    if accepted.is_empty() { &connection.content_type } else { accepted }.contains(PROTOBUF)
}

/// Whether everything is masqueraded in this mode: IPVS shares the field of iptables.
pub fn masquerade_all(raw: &RawConfig, mode: Mode) -> bool {
    match mode {
        Mode::Nftables => raw.nftables.masquerade_all,
        Mode::Iptables | Mode::Ipvs => raw.iptables.masquerade_all,
    }
}

/// The longest and the shortest time between syncs of this mode.
pub fn periods(raw: &RawConfig, mode: Mode) -> (GoDuration, GoDuration) {
    match mode {
        Mode::Iptables => (raw.iptables.sync_period, raw.iptables.min_sync_period),
        Mode::Ipvs => (raw.ipvs.sync_period, raw.ipvs.min_sync_period),
        Mode::Nftables => (raw.nftables.sync_period, raw.nftables.min_sync_period),
    }
}

const UNSPECIFIED: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

fn check_ipvs(raw: &raw::Ipvs, in_use: bool, errors: &mut Refusals) -> Ipvs {
    let mut ignored = Refusals::default();
    let errors = if in_use { errors } else { &mut ignored };
    let root = "KubeProxyIPVSConfiguration";
    let [tcp_timeout, tcp_fin_timeout, udp_timeout] =
        [("TCPTimeout", raw.tcp_timeout), ("TCPFinTimeout", raw.tcp_fin_timeout), ("UDPTimeout", raw.udp_timeout)]
            .map(|(name, timeout)| errors.timeout(&format!("{root}.{name}"), timeout));
    let cidrs = raw.exclude_cidrs.iter().flatten().enumerate();
    let exclude_cidrs = cidrs.filter_map(|(i, text)| errors.cidr(&format!("{root}.ExcludeCidrs[{i}]"), text));
    Ipvs {
        exclude_cidrs: exclude_cidrs.collect(),
        scheduler: non_empty(&raw.scheduler).unwrap_or_else(|| "rr".to_owned()),
        strict_arp: raw.strict_arp,
        tcp_timeout,
        tcp_fin_timeout,
        udp_timeout,
    }
}

fn check_conntrack(raw: &raw::Conntrack, errors: &mut Refusals) -> Conntrack {
    let path = |name| format!("KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.{name}");
    let [max_per_core, min] = [("MaxPerCore", raw.max_per_core), ("Min", raw.min)].map(|(name, value)| {
        let value = value.unwrap_or_default();
        u32::try_from(value).unwrap_or_else(|_| {
            errors.invalid(&path(name), value, NOT_NEGATIVE);
            0
        })
    });
    let mut timeout = |name, value: Option<GoDuration>| errors.timeout(&path(name), value.unwrap_or_default());
    Conntrack {
        max_per_core: Some(max_per_core).filter(|max| *max > 0),
        min,
        tcp_established_timeout: timeout("TCPEstablishedTimeout", raw.tcp_established_timeout),
        tcp_close_wait_timeout: timeout("TCPCloseWaitTimeout", raw.tcp_close_wait_timeout),
        tcp_be_liberal: raw.tcp_be_liberal,
        udp_timeout: timeout("UDPTimeout", Some(raw.udp_timeout)),
        udp_stream_timeout: timeout("UDPStreamTimeout", Some(raw.udp_stream_timeout)),
    }
}

fn check_periods(raw: &RawConfig, mode: Mode, errors: &mut Refusals) -> (Duration, Duration) {
    let (longest, shortest) = periods(raw, mode);
    for (path, period) in [("ConfigSyncPeriod", raw.config_sync_period), ("SyncPeriod", longest)] {
        if period <= GoDuration::ZERO {
            errors.invalid(path, period, "must be greater than 0");
        }
    }
    if shortest < GoDuration::ZERO {
        errors.invalid("MinSyncPeriod", shortest, NOT_NEGATIVE);
    }
    if shortest > longest {
        let message = "must be greater than or equal to KubeProxyConfiguration.MinSyncPeriod";
        errors.invalid("SyncPeriod", shortest, message);
    }
    (longest.to_std(), shortest.to_std())
}

fn check_node_ports(entries: &[String], errors: &mut Refusals) -> NodePortAddresses {
    match entries {
        [] => return NodePortAddresses::All,
        [only] if only == "primary" => return NodePortAddresses::Primary,
        _ => {}
    }
    let mut cidrs = Vec::new();
    for (i, entry) in entries.iter().enumerate() {
        let path = format!("NodePortAddresses[{i}]");
        if entry == "primary" {
            errors.invalid(&path, quoted(entry), "can't use both 'primary' and CIDRs");
            break;
        }
        cidrs.extend(errors.cidr(&path, entry));
    }
    NodePortAddresses::Cidrs(cidrs)
}

fn check_detect_local(raw: &RawConfig, errors: &mut Refusals) -> DetectLocal {
    let mut name = |path: &str, text: &String| {
        if text.is_empty() {
            errors.invalid(path, quoted(text), "must not be empty");
        }
        if text.len() > LONGEST_NAME {
            errors.invalid(path, quoted(text), "must be no longer than 15 bytes, for no interface's name is");
        }
        text.clone()
    };
    match &*raw.detect_local_mode {
        "ClusterCIDR" => DetectLocal::ClusterCidr(check_cluster_cidrs(raw.cluster_cidr.as_deref(), errors)),
        "NodeCIDR" => DetectLocal::NodeCidr,
        "BridgeInterface" => {
            let path = "DetectLocalConfiguration.InterfaceName";
            DetectLocal::BridgeInterface(name(path, &raw.detect_local.bridge_interface))
        }
        "InterfaceNamePrefix" => {
            let path = "DetectLocalConfiguration.InterfacePrefix";
            let prefix = name(path, &raw.detect_local.interface_name_prefix);
            // One that long is a whole name, and leaves no room for the wildcard that rules have after a prefix.
            let is_whole = prefix.len() == LONGEST_NAME;
            if is_whole { DetectLocal::BridgeInterface(prefix) } else { DetectLocal::InterfaceNamePrefix(prefix) }
        }
        other => {
            let known = r#""ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix", """#;
            errors.push("DetectLocalMode", &format!("Unsupported value: {other:?}: supported values: {known}"));
            DetectLocal::NodeCidr
        }
    }
}

fn check_cluster_cidrs(text: Option<&str>, errors: &mut Refusals) -> Vec<IpNet> {
    let path = "DetectLocalConfiguration.ClusterCIDRs";
    let texts: Vec<&str> = text.map(|text| text.split(',').collect()).unwrap_or_default();
    let mut cidrs = Vec::new();
    if texts.len() <= 2 {
        for (i, text) in texts.iter().enumerate() {
            match parse_cidr(text) {
                Some(cidr) => cidrs.push(cidr),
                None => errors.invalid(
                    &format!("{path}[{i}]"),
                    quoted(text),
                    "must be a valid CIDR block (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)",
                ),
            }
        }
    }
    let same_family = matches!(&*cidrs, [a, b] if Family::of_net(a) == Family::of_net(b));
    if texts.len() > 2 || same_family {
        let list: Vec<_> = texts.iter().map(quoted).collect();
        let message = "must be a either a single CIDR or dual-stack pair of CIDRs (e.g. [10.100.0.0/16, \
                       fde4:8dba:82e1::/48]";
        errors.invalid(path, format!("[]string{{{}}}", list.join(", ")), message);
    }
    cidrs
}

fn non_empty(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn quoted(text: impl Debug) -> String {
    format!("{text:?}")
}

// === impl Refusals ===

impl Refusals {
    fn masquerade_bit(&mut self, parent: &str, bit: Option<i32>) -> u8 {
        let bit = bit.unwrap_or_default();
        match u8::try_from(bit) {
            Ok(bit @ 0..=31) => bit,
            _ => {
                self.invalid(&format!("{parent}.MasqueradeBit"), bit, "must be within the range [0, 31]");
                0
            }
        }
    }

    /// Zero means: leave what the kernel has.
    fn timeout(&mut self, path: &str, timeout: GoDuration) -> Option<Duration> {
        if timeout < GoDuration::ZERO {
            self.invalid(path, timeout, NOT_NEGATIVE);
        }
        Some(timeout.to_std()).filter(|timeout| !timeout.is_zero())
    }

    fn cidr(&mut self, path: &str, text: &str) -> Option<IpNet> {
        let cidr = parse_cidr(text);
        if cidr.is_none() {
            self.invalid(path, quoted(text), "must be a valid CIDR");
        }
        cidr
    }

    fn socket(&mut self, path: &str, text: &str) -> SocketAddr {
        let Some((host, port)) = split_host_port(text) else {
            self.invalid(path, quoted(text), "must be IP:port");
            return SocketAddr::new(UNSPECIFIED, 0);
        };
        let ip = parse_ip(host);
        if ip.is_none() {
            self.invalid(path, quoted(host), "must be a valid IP");
        }
        let number = port.parse().ok().filter(|number| *number != 0);
        if number.is_none() {
            self.invalid(path, quoted(port), "must be a valid port");
        }
        SocketAddr::new(ip.unwrap_or(UNSPECIFIED), number.unwrap_or_default())
    }
}
