//! The configuration as a whole: tables of what goes in, as flags and files, and what comes out.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::cli::{self, Command};

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// A file that is gone at the end of the test.
struct File(PathBuf);

impl File {
    fn new(text: &str) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("kube-proxy-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::write(&path, text).expect("the temporary folder is writable");
        Self(path)
    }

    fn with_body(text: &str) -> Self {
        Self::new(&format!("{HEAD}{text}"))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn options(line: &str) -> Options {
    match cli::parse(line.split_whitespace().map(OsString::from)) {
        Ok(
            Command::Run(options)
            | Command::InitOnly(options)
            | Command::DryRun(options)
            | Command::Cleanup(options)
            | Command::WriteConfig { options, .. }
            | Command::Demo(options)
            | Command::Doctor { options, .. },
        ) => options,
        Err(exit) => panic!("{line}: {exit:?}"),
    }
}

fn from_flags(line: &str) -> Result<Loaded, String> {
    options(line).load_with_default(Path::new("/nonexistent/config.conf"))
}

fn from_file(text: &str) -> Result<Loaded, String> {
    from_file_and_flags(text, "")
}

fn from_file_and_flags(text: &str, line: &str) -> Result<Loaded, String> {
    let file = File::with_body(text);
    from_flags(&format!("--config={} {line}", file.0.display()))
}

/// The text of one field of the effective configuration, by JSON pointer.
fn field(loaded: &Loaded, pointer: &str) -> String {
    let tree = serde_json::to_value(&loaded.effective).expect("every field has a form in JSON");
    match tree.pointer(pointer) {
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => panic!("no field {pointer}"),
    }
}

#[test]
fn defaults_are_the_same_by_flags_and_by_file() {
    let (mut flags, file) = (from_flags("").unwrap(), from_file("").unwrap());
    assert_eq!(flags.config, file.config);
    assert_eq!(flags.effective, file.effective);
    flags.notes.clear();
    assert_eq!(flags.warnings, Vec::<String>::new());
    let config = flags.config;
    assert_eq!(config.mode, Mode::Iptables);
    assert_eq!(config.kubeconfig, None);
    assert_eq!(config.hostname_override, None);
    assert_eq!(config.bind_address.to_string(), "0.0.0.0");
    assert_eq!(config.healthz_bind_address.unwrap().to_string(), "0.0.0.0:10256");
    assert_eq!(config.metrics_bind_address.to_string(), "127.0.0.1:10249");
    assert_eq!((config.sync_period, config.min_sync_period), (Duration::from_secs(30), Duration::from_secs(1)));
    assert_eq!((config.masquerade_bit, config.masquerade_all, config.localhost_node_ports), (14, false, true));
    assert_eq!(config.detect_local, DetectLocal::ClusterCidr(vec![]));
    assert_eq!(config.node_port_addresses, NodePortAddresses::All);
    assert_eq!(config.oom_score_adj, -999);
    assert_eq!(config.conntrack.max_per_core, Some(32768));
    assert_eq!(config.conntrack.min, 131_072);
    assert_eq!(config.conntrack.tcp_established_timeout, Some(Duration::from_secs(86400)));
    assert_eq!(config.conntrack.tcp_close_wait_timeout, Some(Duration::from_secs(3600)));
    assert_eq!((config.conntrack.udp_timeout, config.conntrack.udp_stream_timeout), (None, None));
    assert_eq!(config.ipvs.scheduler, "rr");
    assert_eq!((config.verbosity, config.log_format), (0, LogFormat::Text));
}

#[test]
fn the_shipped_file_holds_every_field_at_its_default() {
    let shipped = include_str!("../../configs/config.conf");
    let document = read::read("configs/config.conf", shipped).unwrap();
    assert_eq!(document.warnings, Vec::<String>::new());
    assert_eq!(document.raw.cluster_cidr.as_deref(), Some(""));
    let mut raw = document.raw.clone();
    defaults::fill(&mut raw);
    assert_eq!(raw, defaults::defaults());

    let tree: serde_json::Value = serde_saphyr::from_str(shipped).unwrap();
    let mut sample = serde_json::to_value(RawConfig::sample()).unwrap();
    sample["logging"].as_object_mut().unwrap().remove("vmodule");
    sample.as_object_mut().unwrap().remove("windowsRunAsService");
    sample["featureGates"] = serde_json::json!({});
    assert_eq!(shape(&tree), shape(&sample), "the file must name every field");
}

/// All keys of a tree, as paths.
fn shape(tree: &serde_json::Value) -> Vec<String> {
    let mut paths = Vec::new();
    for (key, value) in tree.as_object().into_iter().flatten() {
        paths.push(key.clone());
        paths.extend(shape(value).iter().map(|below| format!("{key}.{below}")));
    }
    paths.sort();
    paths
}

#[test]
fn every_flag_reaches_its_field() {
    for (line, pointer, expected) in [
        ("--kubeconfig=/k", "/clientConnection/kubeconfig", "/k"),
        ("--kube-api-content-type=application/json", "/clientConnection/contentType", "application/json"),
        ("--kube-api-burst=7", "/clientConnection/burst", "7"),
        ("--kube-api-qps=2.5", "/clientConnection/qps", "2.5"),
        ("--feature-gates=AllAlpha=true,AllBeta=false", "/featureGates", r#"{"AllAlpha":true,"AllBeta":false}"#),
        ("--bind-address=10.0.0.1", "/bindAddress", "10.0.0.1"),
        ("--bind-address=", "/bindAddress", "0.0.0.0"),
        ("--bind-address=::", "/healthzBindAddress", "0.0.0.0:10256"),
        ("--healthz-bind-address=10.0.0.1", "/healthzBindAddress", "10.0.0.1:10256"),
        ("--healthz-bind-address=10.0.0.1 --healthz-port=99", "/healthzBindAddress", "10.0.0.1:99"),
        ("--healthz-bind-address=[::]:99", "/healthzBindAddress", "[::]:99"),
        ("--healthz-bind-address=fd00::1", "/healthzBindAddress", "[fd00::1]:10256"),
        ("--healthz-bind-address=", "/healthzBindAddress", "0.0.0.0:10256"),
        ("--healthz-port=0", "/healthzBindAddress", ""),
        ("--healthz-port=99", "/healthzBindAddress", "0.0.0.0:10256"),
        ("--metrics-bind-address=10.0.0.1", "/metricsBindAddress", "10.0.0.1:10249"),
        ("--bind-address-hard-fail", "/bindAddressHardFail", "true"),
        ("--profiling", "/enableProfiling", "true"),
        ("--show-hidden-metrics-for-version=1.35", "/showHiddenMetricsForVersion", "1.35"),
        ("--proxy-mode=ipvs", "/mode", "ipvs"),
        ("", "/mode", "iptables"),
        ("--iptables-masquerade-bit=3", "/iptables/masqueradeBit", "3"),
        ("--iptables-localhost-nodeports=false", "/iptables/localhostNodePorts", "false"),
        ("--masquerade-all", "/iptables/masqueradeAll", "true"),
        ("--masquerade-all --proxy-mode=ipvs", "/iptables/masqueradeAll", "true"),
        ("--masquerade-all --proxy-mode=nftables", "/iptables/masqueradeAll", "false"),
        ("--masquerade-all --proxy-mode=nftables", "/nftables/masqueradeAll", "true"),
        ("--iptables-sync-period=1m", "/iptables/syncPeriod", "1m0s"),
        ("--iptables-sync-period=1m --proxy-mode=nftables", "/nftables/syncPeriod", "1m0s"),
        ("--iptables-sync-period=1m --proxy-mode=nftables", "/iptables/syncPeriod", "0s"),
        ("--iptables-sync-period=1m --proxy-mode=ipvs", "/ipvs/syncPeriod", "30s"),
        ("--iptables-min-sync-period=0s", "/iptables/minSyncPeriod", "0s"),
        ("--ipvs-sync-period=1m --proxy-mode=ipvs", "/ipvs/syncPeriod", "1m0s"),
        ("--ipvs-sync-period=1m", "/iptables/syncPeriod", "30s"),
        ("--proxy-mode=ipvs", "/ipvs/minSyncPeriod", "1s"),
        ("--ipvs-min-sync-period=5s --proxy-mode=ipvs", "/ipvs/minSyncPeriod", "5s"),
        ("--ipvs-scheduler=sh", "/ipvs/scheduler", "sh"),
        ("--ipvs-exclude-cidrs=10.0.0.0/8,fd00::/8", "/ipvs/excludeCIDRs", r#"["10.0.0.0/8","fd00::/8"]"#),
        ("--ipvs-strict-arp", "/ipvs/strictARP", "true"),
        ("--ipvs-tcp-timeout=1s", "/ipvs/tcpTimeout", "1s"),
        ("--ipvs-tcpfin-timeout=1s", "/ipvs/tcpFinTimeout", "1s"),
        ("--ipvs-udp-timeout=1s", "/ipvs/udpTimeout", "1s"),
        ("--detect-local-mode=NodeCIDR", "/detectLocalMode", "NodeCIDR"),
        ("", "/detectLocalMode", "ClusterCIDR"),
        ("--cluster-cidr=10.0.0.0/8", "/clusterCIDR", "10.0.0.0/8"),
        ("", "/clusterCIDR", ""),
        ("--pod-bridge-interface=br", "/detectLocal/bridgeInterface", "br"),
        ("--pod-interface-name-prefix=veth", "/detectLocal/interfaceNamePrefix", "veth"),
        (
            "--nodeport-addresses=10.0.0.0/8 --nodeport-addresses=fd00::/8",
            "/nodePortAddresses",
            r#"["10.0.0.0/8","fd00::/8"]"#,
        ),
        ("--nodeport-addresses=", "/nodePortAddresses", "[]"),
        ("", "/nodePortAddresses", "null"),
        ("--proxy-mode=nftables", "/nodePortAddresses", r#"["primary"]"#),
        ("--oom-score-adj=-5", "/oomScoreAdj", "-5"),
        ("--conntrack-max-per-core=0", "/conntrack/maxPerCore", "0"),
        ("--conntrack-min=1", "/conntrack/min", "1"),
        ("--conntrack-tcp-timeout-established=0", "/conntrack/tcpEstablishedTimeout", "0s"),
        ("--conntrack-tcp-timeout-close-wait=5s", "/conntrack/tcpCloseWaitTimeout", "5s"),
        ("--conntrack-tcp-be-liberal=1", "/conntrack/tcpBeLiberal", "true"),
        ("--conntrack-udp-timeout=5s", "/conntrack/udpTimeout", "5s"),
        ("--conntrack-udp-timeout-stream=5s", "/conntrack/udpStreamTimeout", "5s"),
        ("--config-sync-period=1h", "/configSyncPeriod", "1h0m0s"),
        ("--hostname-override=Node-A", "/hostnameOverride", "node-a"),
        ("-v 4", "/logging/verbosity", "4"),
        ("--vmodule=a=1,b=2", "/logging/vmodule/1/filePattern", "b"),
        ("--logging-format=json", "/logging/format", "json"),
        ("--log-flush-frequency=1s", "/logging/flushFrequency", "1s"),
        (
            "--feature-gates=LoggingAlphaOptions=true --log-text-split-stream",
            "/logging/options/text/splitStream",
            "true",
        ),
        (
            "--feature-gates=LoggingAlphaOptions=true --log-json-split-stream",
            "/logging/options/json/splitStream",
            "true",
        ),
        ("--log-text-info-buffer-size=0", "/logging/options/text/infoBufferSize", "0"),
        (
            "--feature-gates=AllAlpha=true --log-json-info-buffer-size=1Mi",
            "/logging/options/json/infoBufferSize",
            "1Mi",
        ),
    ] {
        let loaded = from_flags(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert_eq!(field(&loaded, pointer), expected, "{line} {pointer}");
    }
}

#[test]
fn only_some_flags_have_a_say_beside_a_file() {
    let text = "mode: ipvs\nhostnameOverride: From-File\noomScoreAdj: -1\nlogging: {verbosity: 1, vmodule: [{filePattern: \
                b, verbosity: 2}]}\n";
    for (line, pointer, expected) in [
        ("", "/hostnameOverride", "From-File"),
        ("--hostname-override=By-Flag", "/hostnameOverride", "by-flag"),
        ("--hostname-override=", "/hostnameOverride", "From-File"),
        ("", "/logging/verbosity", "1"),
        ("-v=4", "/logging/verbosity", "4"),
        ("-v=0", "/logging/verbosity", "0"),
        ("--vmodule=a=1", "/logging/vmodule/0/filePattern", "a"),
        ("--vmodule=a=1", "/logging/vmodule/1/filePattern", "b"),
        ("--log-flush-frequency=1s", "/logging/flushFrequency", "1s"),
        ("--proxy-mode=nftables", "/mode", "ipvs"),
        ("--oom-score-adj=7", "/oomScoreAdj", "-1"),
        ("--healthz-port=0", "/healthzBindAddress", "0.0.0.0:10256"),
        ("--feature-gates=AllAlpha=true", "/conntrack/min", "131072"),
        ("--cluster-cidr=nonsense", "/clusterCIDR", ""),
    ] {
        let loaded = from_file_and_flags(text, line).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert_eq!(field(&loaded, pointer), expected, "{line}");
    }
    let loaded = from_file_and_flags(text, "--oom-score-adj=7 --proxy-mode=nftables -v=1").unwrap();
    assert!(loaded.notes[0].ends_with(": --oom-score-adj, --proxy-mode"), "{:?}", loaded.notes);
    assert_eq!(loaded.config.hostname_override.as_deref(), Some("from-file"));
}

#[test]
fn the_default_file_counts_unless_a_flag_says_what_a_file_would() {
    let file = File::with_body("mode: nftables\n");
    for (line, mode) in [
        ("", Mode::Nftables),
        ("-v=2 --hostname-override=a --manifests=/m", Mode::Nftables),
        ("--config=", Mode::Nftables),
        ("--oom-score-adj=1", Mode::Iptables),
        ("--proxy-mode=ipvs", Mode::Ipvs),
    ] {
        assert_eq!(options(line).load_with_default(&file.0).expect(line).config.mode, mode, "{line}");
    }
}

#[test]
fn files_are_completed_by_upstreams_rules() {
    for (text, pointer, expected) in [
        ("bindAddress: '::'\n", "/healthzBindAddress", "[::]:10256"),
        ("bindAddress: '::'\n", "/metricsBindAddress", "[::1]:10249"),
        ("healthzBindAddress: 10.0.0.1\n", "/healthzBindAddress", "10.0.0.1:10256"),
        ("metricsBindAddress: fd00::1\n", "/metricsBindAddress", "[fd00::1]:10249"),
        ("iptables: {minSyncPeriod: 0s}\n", "/iptables/minSyncPeriod", "1s"),
        ("mode: ipvs\nipvs: {minSyncPeriod: 0s}\n", "/ipvs/minSyncPeriod", "0s"),
        ("mode: ipvs\n", "/iptables/syncPeriod", "0s"),
        ("mode: nftables\nnodePortAddresses: []\n", "/nodePortAddresses", r#"["primary"]"#),
        ("mode: nftables\nnodePortAddresses: [10.0.0.0/8]\n", "/nodePortAddresses", r#"["10.0.0.0/8"]"#),
        ("nodePortAddresses: []\n", "/nodePortAddresses", "[]"),
        ("mode: nftables\niptables: {masqueradeAll: true}\n", "/iptables/masqueradeAll", "false"),
        ("mode: ipvs\nnftables: {masqueradeAll: true}\n", "/nftables/masqueradeAll", "false"),
        ("conntrack: {maxPerCore: 0, tcpCloseWaitTimeout: 0s}\n", "/conntrack/maxPerCore", "0"),
        ("clientConnection: {qps: -1}\n", "/clientConnection/qps", "-1.0"),
        ("winkernel: {networkName: x}\n", "/winkernel/networkName", "x"),
        ("detectLocalMode: ''\n", "/detectLocalMode", "ClusterCIDR"),
    ] {
        let loaded = from_file(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(field(&loaded, pointer), expected, "{text}");
    }
}

#[test]
fn values_get_types_that_cannot_be_wrong() {
    let text = "mode: nftables\nbindAddress: 010.0.0.1\nclusterCIDR: 10.1.2.3/8,fd00::1/48\nnodePortAddresses: \
                [192.168.1.7/24]\nnftables: {masqueradeBit: 0, masqueradeAll: true, syncPeriod: 3h, minSyncPeriod: \
                2h}\nconntrack: {maxPerCore: 0, udpTimeout: 1m}\nhostnameOverride: ' Node '\n";
    let config = from_file(text).unwrap().config;
    assert_eq!(config.bind_address.to_string(), "10.0.0.1");
    let cidrs = ["10.0.0.0/8", "fd00::/48"].map(|net| net.parse().unwrap()).to_vec();
    assert_eq!(config.detect_local, DetectLocal::ClusterCidr(cidrs));
    assert_eq!(config.node_port_addresses, NodePortAddresses::Cidrs(vec!["192.168.1.0/24".parse().unwrap()]));
    assert_eq!((config.masquerade_bit, config.masquerade_all), (0, true));
    assert_eq!((config.sync_period.as_secs(), config.min_sync_period.as_secs()), (10800, 7200));
    assert_eq!(config.conntrack.max_per_core, None);
    assert_eq!(config.conntrack.udp_timeout, Some(Duration::from_secs(60)));
    assert_eq!(config.hostname_override.as_deref(), Some("node"));

    let text = "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: br0}\nnodePortAddresses: [primary]\n";
    let config = from_file(text).unwrap().config;
    assert_eq!(config.detect_local, DetectLocal::BridgeInterface("br0".to_owned()));
    assert_eq!(config.node_port_addresses, NodePortAddresses::Primary);
}

/// One bad value each: the file's text below its head, the line it is in, and the complaint.
const BAD_VALUES: [(&str, u32, &str); 39] = [
    (
        "iptables: {masqueradeBit: 32}",
        3,
        "KubeProxyIPTablesConfiguration.MasqueradeBit: Invalid value: 32: must be within the range [0, 31]",
    ),
    (
        "mode: ipvs\niptables: {masqueradeBit: -1}",
        4,
        "KubeProxyIPTablesConfiguration.MasqueradeBit: Invalid value: -1: must be within the range [0, 31]",
    ),
    (
        "mode: nftables\nnftables: {masqueradeBit: 32}",
        4,
        "KubeProxyNFTablesConfiguration.MasqueradeBit: Invalid value: 32: must be within the range [0, 31]",
    ),
    (
        "mode: ipvs\nipvs: {tcpTimeout: -1s}",
        4,
        "KubeProxyIPVSConfiguration.TCPTimeout: Invalid value: -1s: must be greater than or equal to 0",
    ),
    (
        "mode: ipvs\nipvs: {tcpFinTimeout: -1s}",
        4,
        "KubeProxyIPVSConfiguration.TCPFinTimeout: Invalid value: -1s: must be greater than or equal to 0",
    ),
    (
        "mode: ipvs\nipvs: {udpTimeout: -1s}",
        4,
        "KubeProxyIPVSConfiguration.UDPTimeout: Invalid value: -1s: must be greater than or equal to 0",
    ),
    (
        "mode: ipvs\nipvs: {excludeCIDRs: [10.0.0.0/8, x]}",
        4,
        "KubeProxyIPVSConfiguration.ExcludeCidrs[1]: Invalid value: \"x\": must be a valid CIDR",
    ),
    (
        "conntrack: {maxPerCore: -1}",
        3,
        "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.MaxPerCore: Invalid value: -1: must be greater than or equal to 0",
    ),
    (
        "conntrack: {min: -1}",
        3,
        "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.Min: Invalid value: -1: must be greater than or equal to 0",
    ),
    (
        "conntrack: {tcpEstablishedTimeout: -1s}",
        3,
        "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.TCPEstablishedTimeout: Invalid value: -1s: must be greater than or equal to 0",
    ),
    (
        "conntrack: {tcpCloseWaitTimeout: -1s}",
        3,
        "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.TCPCloseWaitTimeout: Invalid value: -1s: must be greater than or equal to 0",
    ),
    (
        "conntrack: {udpTimeout: -1s}",
        3,
        "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.UDPTimeout: Invalid value: -1s: must be greater than or equal to 0",
    ),
    (
        "conntrack: {udpStreamTimeout: -1s}",
        3,
        "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.UDPStreamTimeout: Invalid value: -1s: must be greater than or equal to 0",
    ),
    (
        "oomScoreAdj: 1001",
        3,
        "KubeProxyLinuxConfiguration.OOMScoreAdj: Invalid value: 1001: must be within the range [-1000, 1000]",
    ),
    (
        "mode: userspace",
        3,
        "Mode.ProxyMode: Invalid value: \"userspace\": must be iptables, ipvs, nftables or blank (blank means the best-available proxy [currently iptables])",
    ),
    (
        "clientConnection:\n  burst: -1",
        4,
        "ClientConnection.Burst: Invalid value: -1: must be greater than or equal to 0",
    ),
    ("configSyncPeriod: -1s", 3, "ConfigSyncPeriod: Invalid value: -1s: must be greater than 0"),
    ("iptables: {minSyncPeriod: -1s}", 3, "MinSyncPeriod: Invalid value: -1s: must be greater than or equal to 0"),
    (
        "mode: nftables\nnftables:\n  minSyncPeriod: 1m\n  syncPeriod: 30s",
        6,
        "SyncPeriod: Invalid value: 1m0s: must be greater than or equal to KubeProxyConfiguration.MinSyncPeriod",
    ),
    (
        "bindAddress: host",
        3,
        "BindAddress: Invalid value: \"host\": not a valid textual representation of an IP address",
    ),
    ("healthzBindAddress: host", 3, "HealthzBindAddress: Invalid value: \"host\": must be IP:port"),
    ("healthzBindAddress: host:80", 3, "HealthzBindAddress: Invalid value: \"host\": must be a valid IP"),
    ("healthzBindAddress: 1.2.3.4:0", 3, "HealthzBindAddress: Invalid value: \"0\": must be a valid port"),
    ("metricsBindAddress: '[::1]:x'", 3, "MetricsBindAddress: Invalid value: \"x\": must be a valid port"),
    ("metricsBindAddress: '1.2.3.4:65536'", 3, "MetricsBindAddress: Invalid value: \"65536\": must be a valid port"),
    ("nodePortAddresses: [10.0.0.0]", 3, "NodePortAddresses[0]: Invalid value: \"10.0.0.0\": must be a valid CIDR"),
    (
        "nodePortAddresses: [10.0.0.0/8, ' fd00::/8']",
        3,
        "NodePortAddresses[1]: Invalid value: \" fd00::/8\": must be a valid CIDR",
    ),
    (
        "nodePortAddresses: [10.0.0.0/8, primary, x]",
        3,
        "NodePortAddresses[1]: Invalid value: \"primary\": can't use both 'primary' and CIDRs",
    ),
    (
        "showHiddenMetricsForVersion: '1.34'",
        3,
        "ShowHiddenMetricsForVersion: Invalid value: \"1.34\": --show-hidden-metrics-for-version must be omitted or have the value '1.35'. Only the previous minor version is allowed",
    ),
    (
        "detectLocalMode: Guess",
        3,
        "DetectLocalMode: Unsupported value: \"Guess\": supported values: \"ClusterCIDR\", \"NodeCIDR\", \"BridgeInterface\", \"InterfaceNamePrefix\", \"\"",
    ),
    (
        "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: ''}",
        4,
        "DetectLocalConfiguration.InterfaceName: Invalid value: \"\": must not be empty",
    ),
    (
        "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {}",
        4,
        "DetectLocalConfiguration.InterfacePrefix: Invalid value: \"\": must not be empty",
    ),
    (
        "clusterCIDR: 10.0.0.0",
        3,
        "DetectLocalConfiguration.ClusterCIDRs[0]: Invalid value: \"10.0.0.0\": must be a valid CIDR block (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)",
    ),
    (
        "clusterCIDR: 10.0.0.0/8, fd00::/48",
        3,
        "DetectLocalConfiguration.ClusterCIDRs[1]: Invalid value: \" fd00::/48\": must be a valid CIDR block (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)",
    ),
    (
        "clusterCIDR: 10.0.0.0/8,11.0.0.0/8",
        3,
        "DetectLocalConfiguration.ClusterCIDRs: Invalid value: []string{\"10.0.0.0/8\", \"11.0.0.0/8\"}: must be a either a single CIDR or dual-stack pair of CIDRs (e.g. [10.100.0.0/16, fde4:8dba:82e1::/48]",
    ),
    (
        "clusterCIDR: a,b,c",
        3,
        "DetectLocalConfiguration.ClusterCIDRs: Invalid value: []string{\"a\", \"b\", \"c\"}: must be a either a single CIDR or dual-stack pair of CIDRs (e.g. [10.100.0.0/16, fde4:8dba:82e1::/48]",
    ),
    (
        "mode: ipvs\nipvs: {syncPeriod: -1s, minSyncPeriod: -2s}\n",
        4,
        "SyncPeriod: Invalid value: -1s: must be greater than 0",
    ),
    ("bindAddress: '1'\n", 3, "BindAddress: Invalid value: \"1\": not a valid textual representation of an IP address"),
    (
        "mode: IPVS\n",
        3,
        "Mode.ProxyMode: Invalid value: \"IPVS\": must be iptables, ipvs, nftables or blank (blank means the best-available proxy [currently iptables])",
    ),
];

#[test]
fn each_bad_value_is_refused_in_upstreams_words_with_its_place() {
    for (text, line, expected) in BAD_VALUES {
        let error = from_file(text).expect_err(text);
        let prefix = format!("KubeProxyConfiguration.{expected} (");
        let at = error.find(&prefix).unwrap_or_else(|| panic!("{text:?}: {error}")) + prefix.len();
        let place: Vec<_> = error[at..].split([':', ')']).collect();
        assert_eq!(place[1], line.to_string(), "{text:?}: {error}");
        assert!(error.starts_with("failed validate: ") && !error.contains('\n'), "{text:?}: {error}");
    }
}

#[test]
fn flags_are_held_to_the_same_rules() {
    for (line, expected) in [
        (
            "--metrics-port=0",
            "failed validate: KubeProxyConfiguration.MetricsBindAddress: Invalid value: \"\": must be IP:port",
        ),
        (
            "--cluster-cidr=",
            "failed validate: KubeProxyConfiguration.DetectLocalConfiguration.ClusterCIDRs[0]: Invalid value: \"\": must be a valid CIDR block (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)",
        ),
        (
            "--iptables-sync-period=0",
            "failed validate: [KubeProxyConfiguration.SyncPeriod: Invalid value: 0s: must be greater than 0, KubeProxyConfiguration.SyncPeriod: Invalid value: 1s: must be greater than or equal to KubeProxyConfiguration.MinSyncPeriod]",
        ),
        (
            "--kube-api-burst=-1 --oom-score-adj=2000",
            "failed validate: [KubeProxyConfiguration.KubeProxyLinuxConfiguration.OOMScoreAdj: Invalid value: 2000: must be within the range [-1000, 1000], KubeProxyConfiguration.ClientConnection.Burst: Invalid value: -1: must be greater than or equal to 0]",
        ),
        ("--feature-gates=no-gate=true", "failed complete: unrecognized feature gate: no-gate"),
        ("--feature-gates=X", "failed complete: missing bool value for X"),
        (
            "--feature-gates=NFTablesProxyMode=false",
            "failed complete: cannot set feature gate NFTablesProxyMode to false, feature is locked to true",
        ),
        ("--logging-format=xml", "initialize logging: logging.format: Invalid value: \"xml\": Unsupported log format"),
        (
            "--logging-format=json --vmodule=a=1",
            "initialize logging: logging.vmodule: Forbidden: Only supported for text log format",
        ),
        (
            "--logging-format=json --feature-gates=AllBeta=false",
            "initialize logging: logging.format: Forbidden: Log format json is disabled, see LoggingBetaOptions feature",
        ),
        (
            "--log-json-split-stream",
            "initialize logging: logging.options.json.splitStream: Forbidden: Feature LoggingAlphaOptions is disabled",
        ),
        (
            "--log-text-info-buffer-size=1Ki",
            "initialize logging: logging.options.text.infoBufferSize: Forbidden: Feature LoggingAlphaOptions is disabled",
        ),
        (
            "--log-flush-frequency=0",
            "initialize logging: logging.flushFrequency: Invalid value: 0s: must be greater than 0",
        ),
        ("-v=2147483648", "initialize logging: logging.verbosity: Invalid value: 2147483648: Must be <= 2147483647"),
        ("--vmodule==1", "initialize logging: logging.vmodule[0]: Required value: File pattern must not be empty"),
        ("--vmodule=a", "failed complete: --vmodule: \"a\" is not of the form pattern=N"),
    ] {
        assert_eq!(from_flags(line).expect_err(line), expected, "{line}");
    }
    assert!(from_flags("--iptables-min-sync-period=2h --iptables-sync-period=3h").is_ok());
    assert!(from_flags("--proxy-mode=nftables --detect-local-mode=NodeCIDR --cluster-cidr=").is_ok());
}

#[test]
fn blank_host_names_are_refused() {
    let mut options = options("");
    options.flags.hostname_override = Some("  ".to_owned());
    let error = options.load_with_default(Path::new("/nonexistent")).unwrap_err();
    assert_eq!(error, "failed complete: empty hostname-override is invalid");
    assert!(from_file("hostnameOverride: '  '\n").unwrap_err().starts_with("empty hostname is invalid"));
}

#[test]
fn files_that_cannot_be_read_are_refused_in_one_line() {
    let error = from_flags("--config=/nonexistent/file").unwrap_err();
    let start = "failed complete: cannot read the configuration file /nonexistent/file: No such file or directory";
    assert!(error.starts_with(start), "{error}");
    let error = from_file("iptables:\n  masqueradeBit: many\n").unwrap_err();
    assert!(error.starts_with("failed complete: failed to decode: "), "{error}");
    assert!(error.contains(":4:3: iptables.masqueradeBit: invalid type: string \"many\", expected i32"), "{error}");
    let error = from_file("featureGates:\n  bad-name: true\n").unwrap_err();
    assert!(
        error.starts_with("failed complete: unrecognized feature gate: bad-name (") && error.contains(":4:3)"),
        "{error}"
    );
}

/// What kubeadm 1.36 writes: nearly everything at its zero value.
const KUBEADM: &str = "\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: \"\"
  burst: 0
  contentType: \"\"
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: \"\"
  interfaceNamePrefix: \"\"
detectLocalMode: \"\"
enableProfiling: false
healthzBindAddress: \"\"
hostnameOverride: \"\"
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: \"\"
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: \"0\"
    text:
      infoBufferSize: \"0\"
  verbosity: 0
metricsBindAddress: \"\"
mode: \"\"
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: \"\"
showHiddenMetricsForVersion: \"\"
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: \"\"
  rootHnsEndpointName: \"\"
  sourceVip: \"\"
";

#[test]
fn kubeadms_file_of_nulls_and_zeros_means_the_defaults() {
    let file = File::new(KUBEADM);
    let loaded = from_flags(&format!("--config={} --hostname-override=pi", file.0.display())).unwrap();
    assert_eq!(loaded.warnings, Vec::<String>::new());
    let mut expected = from_file("").unwrap().config;
    expected.kubeconfig = Some("/var/lib/kube-proxy/kubeconfig.conf".to_owned());
    expected.detect_local = DetectLocal::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()]);
    expected.hostname_override = Some("pi".to_owned());
    assert_eq!(loaded.config, expected);
}

#[test]
fn what_is_written_means_the_same_when_read() {
    for line in [
        "",
        "--proxy-mode=ipvs --masquerade-all --ipvs-exclude-cidrs=10.0.0.0/8 --ipvs-scheduler=sh --ipvs-sync-period=1m",
        "--proxy-mode=nftables --masquerade-all --iptables-sync-period=1m --cluster-cidr=10.0.0.0/8,fd00::/48",
        "--bind-address=fd00::1 --nodeport-addresses=10.0.0.0/8 --hostname-override=a --conntrack-max-per-core=0",
        "--feature-gates=AllAlpha=true,WatchListClient=false --vmodule=a=1 --log-json-info-buffer-size=1Mi -v=3",
        "--detect-local-mode=InterfaceNamePrefix --pod-interface-name-prefix=veth --kube-api-qps=0.5 --profiling",
        "--detect-local-mode=BridgeInterface --pod-bridge-interface=yes --conntrack-tcp-timeout-established=1h30m",
    ] {
        let written = from_flags(line).expect(line);
        let file = File::new(&to_yaml(&written.effective).unwrap());
        let read = from_flags(&format!("--config={}", file.0.display())).expect(line);
        assert_eq!(read.config, written.config, "{line}");
        assert_eq!(read.effective, written.effective, "{line}");
        let odd: Vec<_> = read.warnings.iter().filter(|warning| warning.contains("field")).collect();
        assert!(odd.is_empty(), "{line}: {odd:?}");
    }
}

#[test]
fn configz_is_the_effective_object_under_the_groups_name() {
    let loaded = from_file("mode: nftables\nhostnameOverride: a\n").unwrap();
    let body: serde_json::Value = serde_json::from_str(&to_configz(&loaded.effective).unwrap()).unwrap();
    let object = &body["kubeproxy.config.k8s.io"];
    assert_eq!(object["kind"], "KubeProxyConfiguration");
    assert_eq!(object["apiVersion"], "kubeproxy.config.k8s.io/v1alpha1");
    assert_eq!(object["nodePortAddresses"], serde_json::json!(["primary"]));
    assert_eq!(object["conntrack"]["tcpEstablishedTimeout"], "24h0m0s");
    assert_eq!(object["ipvs"]["excludeCIDRs"], serde_json::Value::Null);
    assert!(object.get("windowsRunAsService").is_none());
}

#[test]
fn every_flag_is_listed_once_with_its_value() {
    let value = |loaded: &Loaded, name: &str| {
        let found = loaded.flags.iter().find(|(listed, _)| *listed == name);
        found.unwrap_or_else(|| panic!("{name} is not listed")).1.clone()
    };
    let loaded = from_flags("--proxy-mode=nftables -v=3 --cleanup --ipvs-exclude-cidrs=a/1,b").unwrap();
    let listed: Vec<_> = loaded.flags.iter().map(|(name, _)| format!("--{name}")).collect();
    let mut known: Vec<_> = <Flags as argh::ArgsInfo>::get_args_info().flags.iter().map(|flag| flag.long).collect();
    known.sort_unstable();
    assert_eq!(listed, known);
    for (name, expected) in [
        ("proxy-mode", "nftables"),
        ("v", "3"),
        ("cleanup", "true"),
        ("nodeport-addresses", "[primary]"),
        ("ipvs-exclude-cidrs", "[a/1,b]"),
        ("iptables-sync-period", "30s"),
        ("kube-api-qps", "5"),
        ("healthz-port", "10256"),
        ("conntrack-tcp-timeout-established", "24h0m0s"),
    ] {
        assert_eq!(value(&loaded, name), expected, "{name}");
    }
    let beside_file = from_file_and_flags("mode: ipvs\n", "-v=2").unwrap();
    assert_eq!((value(&beside_file, "proxy-mode"), value(&beside_file, "v")), (String::new(), "2".to_owned()));
}

#[test]
fn flags_without_effect_are_told_in_one_warning() {
    let loaded = from_flags("--machine-id-file=/m --kube-api-qps=1 --kube-api-content-type=application/json").unwrap();
    assert_eq!(loaded.warnings, ["flags that have no effect here: --machine-id-file, --kube-api-qps"]);
    let loaded = from_flags("--healthz-port=1").unwrap();
    assert_eq!(loaded.warnings, ["Flag --healthz-port has been deprecated, use --healthz-bind-address"]);
    assert_eq!(from_flags("").unwrap().notes, ["no proxy mode is configured: using iptables, as upstream does"]);
    assert!(from_flags("--proxy-mode=iptables").unwrap().notes.is_empty());
}

#[test]
fn odd_keys_and_gates_are_warned_about() {
    let loaded = from_file("Mode: ipvs\nfeatureGates: {AppArmor: true}\nmode: ipvs\nmode: nftables\n").unwrap();
    assert_eq!(loaded.config.mode, Mode::Nftables);
    let [unknown, twice, gate] = &*loaded.warnings else { panic!("{:?}", loaded.warnings) };
    assert!(unknown.contains(":3:1: unknown field \"Mode\""), "{unknown}");
    assert!(twice.contains(":6:1: key \"mode\" already set"), "{twice}");
    assert!(gate.contains("AppArmor"), "{gate}");
}

#[test]
fn ranges_of_the_wrong_family_are_refused_or_noted() {
    let v6_pods = ["fd00::/64".parse().unwrap()];
    for (text, dual, pods, expected) in [
        ("clusterCIDR: 10.0.0.0/8\nnodePortAddresses: [10.0.0.0/8]\n", false, &[][..], Ok(vec![])),
        ("clusterCIDR: fd00::/48\nnodePortAddresses: [10.0.0.0/8]\n", false, &[], Err("clusterCIDR has no range")),
        ("clusterCIDR: fd00::/48\nnodePortAddresses: [primary]\n", true, &[], Ok(vec!["clusterCIDR has no IPv4"])),
        ("detectLocalMode: NodeCIDR\n", true, &v6_pods, Err("the Node's podCIDRs")),
        ("nodePortAddresses: [primary]\n", true, &v6_pods, Ok(vec!["the Node's podCIDRs have no IPv4"])),
        ("", true, &[], Ok(vec!["nodePortAddresses is unset"])),
        ("nodePortAddresses: [fd00::/8]\n", true, &[], Ok(vec!["nodePortAddresses has no IPv4"])),
        ("nodePortAddresses: [10.0.0.0/8]\n", true, &[], Ok(vec!["nodePortAddresses has only IPv4"])),
        (
            "mode: ipvs\nipvs: {excludeCIDRs: [fd00::/8]}\nnodePortAddresses: [primary]\n",
            false,
            &[],
            Ok(vec!["ipvs.excludeCIDRs has no IPv4"]),
        ),
        (
            "healthzBindAddress: '[fd00::1]:1'\nmetricsBindAddress: '[::]:2'\nnodePortAddresses: [primary]\n",
            false,
            &[],
            Ok(vec!["healthzBindAddress [fd00::1]:1 is not IPv4"]),
        ),
    ] {
        let config = from_file(text).expect(text).config;
        match (config.check_families(crate::model::Family::V4, dual, pods), expected) {
            (Ok(notes), Ok(starts)) => {
                assert_eq!(notes.len(), starts.len(), "{text:?}: {notes:?}");
                assert!(notes.iter().zip(&starts).all(|(note, start)| note.starts_with(start)), "{text:?}: {notes:?}");
            }
            (Err(error), Err(part)) => assert!(error.contains(part), "{text:?}: {error}"),
            (got, expected) => panic!("{text:?}: {got:?}, not {expected:?}"),
        }
    }
}
