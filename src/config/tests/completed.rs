//! What a configuration means where it says little or nothing.

use std::time::Duration;

use super::*;
use crate::config::raw::RawConfig;

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
    let shipped = include_str!("../../../configs/config.conf");
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
        ("clientConnection: {qps: -1}\n", "/clientConnection/qps", "-1"),
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

#[test]
fn protobuf_is_accepted_unless_told_otherwise() {
    for (connection, expected) in [
        ("{}", true),
        ("{contentType: application/json}", false),
        (
            "{contentType: application/json, acceptContentTypes: 'application/vnd.kubernetes.protobuf,application/json'}",
            true,
        ),
        ("{acceptContentTypes: application/json}", false),
        ("{contentType: application/cbor}", false),
    ] {
        let loaded = from_file(&format!("clientConnection: {connection}\n")).unwrap();
        assert_eq!(loaded.config.protobuf, expected, "{connection}");
    }
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
