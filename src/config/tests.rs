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
