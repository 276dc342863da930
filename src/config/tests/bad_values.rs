//! What is refused, in which words, and with which place.

use super::*;

const BIT: &str = "must be within the range [0, 31]";
const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const CIDR: &str = "must be a valid CIDR";
const OOM: &str = "must be within the range [-1000, 1000]";
const MODES: &str =
    "must be iptables, ipvs, nftables or blank (blank means the best-available proxy [currently iptables])";
const POSITIVE: &str = "must be greater than 0";
const PERIODS: &str = "must be greater than or equal to KubeProxyConfiguration.MinSyncPeriod";
const NO_IP: &str = "not a valid textual representation of an IP address";
const IP_PORT: &str = "must be IP:port";
const IP: &str = "must be a valid IP";
const PORT: &str = "must be a valid port";
const PRIMARY: &str = "can't use both 'primary' and CIDRs";
const HIDDEN: &str = "--show-hidden-metrics-for-version must be omitted or have the value '1.35'. Only the \
                      previous minor version is allowed";
const DETECT_MODES: &str =
    "supported values: \"ClusterCIDR\", \"NodeCIDR\", \"BridgeInterface\", \"InterfaceNamePrefix\", \"\"";
const EMPTY: &str = "must not be empty";
const LONG_NAME: &str = "must be no longer than 15 bytes, for no interface's name is";
const CIDR_BLOCK: &str = "must be a valid CIDR block (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)";
const CIDRS: &str =
    "must be a either a single CIDR or dual-stack pair of CIDRs (e.g. [10.100.0.0/16, fde4:8dba:82e1::/48]";

/// One bad value each: the file's text below its head, the line it is in, upstream's path, the value as it is shown,
/// and what is wrong with it.
const BAD_VALUES: [(&str, u32, &str, &str, &str); 41] = [
    ("iptables: {masqueradeBit: 32}", 3, "KubeProxyIPTablesConfiguration.MasqueradeBit", "32", BIT),
    ("mode: ipvs\niptables: {masqueradeBit: -1}", 4, "KubeProxyIPTablesConfiguration.MasqueradeBit", "-1", BIT),
    ("mode: nftables\nnftables: {masqueradeBit: 32}", 4, "KubeProxyNFTablesConfiguration.MasqueradeBit", "32", BIT),
    ("mode: ipvs\nipvs: {tcpTimeout: -1s}", 4, "KubeProxyIPVSConfiguration.TCPTimeout", "-1s", NOT_NEGATIVE),
    ("mode: ipvs\nipvs: {tcpFinTimeout: -1s}", 4, "KubeProxyIPVSConfiguration.TCPFinTimeout", "-1s", NOT_NEGATIVE),
    ("mode: ipvs\nipvs: {udpTimeout: -1s}", 4, "KubeProxyIPVSConfiguration.UDPTimeout", "-1s", NOT_NEGATIVE),
    (
        "mode: ipvs\nipvs: {excludeCIDRs: [10.0.0.0/8, x]}",
        4,
        "KubeProxyIPVSConfiguration.ExcludeCidrs[1]",
        "\"x\"",
        CIDR,
    ),
    (
        "conntrack: {maxPerCore: -1}",
        3,
        "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.MaxPerCore",
        "-1",
        NOT_NEGATIVE,
    ),
    ("conntrack: {min: -1}", 3, "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.Min", "-1", NOT_NEGATIVE),
    (
        "conntrack: {tcpEstablishedTimeout: -1s}",
        3,
        "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.TCPEstablishedTimeout",
        "-1s",
        NOT_NEGATIVE,
    ),
    (
        "conntrack: {tcpCloseWaitTimeout: -1s}",
        3,
        "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.TCPCloseWaitTimeout",
        "-1s",
        NOT_NEGATIVE,
    ),
    (
        "conntrack: {udpTimeout: -1s}",
        3,
        "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.UDPTimeout",
        "-1s",
        NOT_NEGATIVE,
    ),
    (
        "conntrack: {udpStreamTimeout: -1s}",
        3,
        "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.UDPStreamTimeout",
        "-1s",
        NOT_NEGATIVE,
    ),
    ("oomScoreAdj: 1001", 3, "KubeProxyLinuxConfiguration.OOMScoreAdj", "1001", OOM),
    ("mode: userspace", 3, "Mode.ProxyMode", "\"userspace\"", MODES),
    ("clientConnection:\n  burst: -1", 4, "ClientConnection.Burst", "-1", NOT_NEGATIVE),
    ("configSyncPeriod: -1s", 3, "ConfigSyncPeriod", "-1s", POSITIVE),
    ("iptables: {minSyncPeriod: -1s}", 3, "MinSyncPeriod", "-1s", NOT_NEGATIVE),
    ("mode: nftables\nnftables:\n  minSyncPeriod: 1m\n  syncPeriod: 30s", 6, "SyncPeriod", "1m0s", PERIODS),
    ("bindAddress: host", 3, "BindAddress", "\"host\"", NO_IP),
    ("healthzBindAddress: host", 3, "HealthzBindAddress", "\"host\"", IP_PORT),
    ("healthzBindAddress: host:80", 3, "HealthzBindAddress", "\"host\"", IP),
    ("healthzBindAddress: 1.2.3.4:0", 3, "HealthzBindAddress", "\"0\"", PORT),
    ("metricsBindAddress: '[::1]:x'", 3, "MetricsBindAddress", "\"x\"", PORT),
    ("metricsBindAddress: '1.2.3.4:65536'", 3, "MetricsBindAddress", "\"65536\"", PORT),
    ("nodePortAddresses: [10.0.0.0]", 3, "NodePortAddresses[0]", "\"10.0.0.0\"", CIDR),
    ("nodePortAddresses: [10.0.0.0/8, ' fd00::/8']", 3, "NodePortAddresses[1]", "\" fd00::/8\"", CIDR),
    ("nodePortAddresses: [10.0.0.0/8, primary, x]", 3, "NodePortAddresses[1]", "\"primary\"", PRIMARY),
    ("showHiddenMetricsForVersion: '1.34'", 3, "ShowHiddenMetricsForVersion", "\"1.34\"", HIDDEN),
    ("detectLocalMode: Guess", 3, "DetectLocalMode", "Unsupported value: \"Guess\"", DETECT_MODES),
    (
        "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: ''}",
        4,
        "DetectLocalConfiguration.InterfaceName",
        "\"\"",
        EMPTY,
    ),
    (
        "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {}",
        4,
        "DetectLocalConfiguration.InterfacePrefix",
        "\"\"",
        EMPTY,
    ),
    (
        "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: br-0123456789abc}",
        4,
        "DetectLocalConfiguration.InterfaceName",
        "\"br-0123456789abc\"",
        LONG_NAME,
    ),
    (
        "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: br-0123456789abc}",
        4,
        "DetectLocalConfiguration.InterfacePrefix",
        "\"br-0123456789abc\"",
        LONG_NAME,
    ),
    ("clusterCIDR: 10.0.0.0", 3, "DetectLocalConfiguration.ClusterCIDRs[0]", "\"10.0.0.0\"", CIDR_BLOCK),
    ("clusterCIDR: 10.0.0.0/8, fd00::/48", 3, "DetectLocalConfiguration.ClusterCIDRs[1]", "\" fd00::/48\"", CIDR_BLOCK),
    (
        "clusterCIDR: 10.0.0.0/8,11.0.0.0/8",
        3,
        "DetectLocalConfiguration.ClusterCIDRs",
        "[]string{\"10.0.0.0/8\", \"11.0.0.0/8\"}",
        CIDRS,
    ),
    ("clusterCIDR: a,b,c", 3, "DetectLocalConfiguration.ClusterCIDRs", "[]string{\"a\", \"b\", \"c\"}", CIDRS),
    ("mode: ipvs\nipvs: {syncPeriod: -1s, minSyncPeriod: -2s}\n", 4, "SyncPeriod", "-1s", POSITIVE),
    ("bindAddress: '1'\n", 3, "BindAddress", "\"1\"", NO_IP),
    ("mode: IPVS\n", 3, "Mode.ProxyMode", "\"IPVS\"", MODES),
];

#[test]
fn each_bad_value_is_refused_in_upstreams_words_with_its_place() {
    for (text, line, path, value, message) in BAD_VALUES {
        let error = from_file(text).expect_err(text);
        let kind = if value.starts_with("Unsupported") { "" } else { "Invalid value: " };
        let prefix = format!("KubeProxyConfiguration.{path}: {kind}{value}: {message} (");
        let at = error.find(&prefix).unwrap_or_else(|| panic!("{text:?}: {error}")) + prefix.len();
        let place: Vec<_> = error[at..].split([':', ')']).collect();
        assert_eq!(place[1], line.to_string(), "{text:?}: {error}");
        assert!(error.starts_with("failed validate: ") && !error.contains('\n'), "{text:?}: {error}");
    }
}

#[test]
fn the_longest_name_of_an_interface_is_no_prefix_of_another() {
    for (mode, key, name, expected) in [
        ("BridgeInterface", "bridgeInterface", "br-0123456789ab", "BridgeInterface(\"br-0123456789ab\")"),
        ("InterfaceNamePrefix", "interfaceNamePrefix", "br-0123456789ab", "BridgeInterface(\"br-0123456789ab\")"),
        ("InterfaceNamePrefix", "interfaceNamePrefix", "br-0123456789a", "InterfaceNamePrefix(\"br-0123456789a\")"),
    ] {
        let text = format!("detectLocalMode: {mode}\ndetectLocal: {{{key}: {name}}}\n");
        assert_eq!(format!("{:?}", from_file(&text).expect(&text).config.detect_local), expected);
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
            "failed validate: KubeProxyConfiguration.DetectLocalConfiguration.ClusterCIDRs[0]: Invalid value: \
             \"\": must be a valid CIDR block (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)",
        ),
        (
            "--iptables-sync-period=0",
            "failed validate: [KubeProxyConfiguration.SyncPeriod: Invalid value: 0s: must be greater than 0, \
             KubeProxyConfiguration.SyncPeriod: Invalid value: 1s: must be greater than or equal to \
             KubeProxyConfiguration.MinSyncPeriod]",
        ),
        (
            "--kube-api-burst=-1 --oom-score-adj=2000",
            "failed validate: [KubeProxyConfiguration.KubeProxyLinuxConfiguration.OOMScoreAdj: Invalid value: 2000: \
             must be within the range [-1000, 1000], KubeProxyConfiguration.ClientConnection.Burst: Invalid value: \
             -1: must be greater than or equal to 0]",
        ),
        ("--feature-gates=no-gate=true", "failed complete: unrecognized feature gate: no-gate"),
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
            "initialize logging: logging.format: Forbidden: Log format json is disabled, see \
             LoggingBetaOptions feature",
        ),
        (
            "--log-json-split-stream",
            "initialize logging: logging.options.json.splitStream: Forbidden: Feature LoggingAlphaOptions is \
             disabled",
        ),
        (
            "--log-text-info-buffer-size=1Ki",
            "initialize logging: logging.options.text.infoBufferSize: Forbidden: Feature \
             LoggingAlphaOptions is disabled",
        ),
        (
            "--log-flush-frequency=0",
            "initialize logging: logging.flushFrequency: Invalid value: 0s: must be greater than 0",
        ),
        ("-v=2147483648", "initialize logging: logging.verbosity: Invalid value: 2147483648: Must be <= 2147483647"),
        ("--vmodule==1", "initialize logging: logging.vmodule[0]: Required value: File pattern must not be empty"),
    ] {
        assert_eq!(from_flags(line).expect_err(line), expected, "{line}");
    }
    assert!(from_flags("--iptables-min-sync-period=2h --iptables-sync-period=3h").is_ok());
    assert!(from_flags("--proxy-mode=nftables --detect-local-mode=NodeCIDR --cluster-cidr=").is_ok());
}

#[test]
fn what_a_flag_said_has_no_place_in_the_file() {
    let bad = "logging:\n  format: xml\n";
    let complaint = "initialize logging: logging.format: Invalid value: \"xml\": Unsupported log format";
    let error = from_file(bad).unwrap_err();
    assert!(error.starts_with(complaint) && error.ends_with(":4:3)"), "{error}");
    let error = from_file_and_flags("logging: {format: text}\n", "--logging-format=xml").unwrap_err();
    assert_eq!(error, complaint);
}

#[test]
fn blank_host_names_are_refused() {
    let mut options = options("");
    options.flags.hostname_override = Some("  ".to_owned());
    let error = options.settle_with_default(Path::new("/nonexistent")).err().unwrap();
    assert_eq!(error, "failed complete: empty hostname-override is invalid");
    let blank = "hostnameOverride: '  '\n";
    assert_eq!(from_file(blank).unwrap_err(), "failed complete: empty hostname is invalid");
    assert!(from_file_and_flags(blank, "--hostname-override=a").is_ok());
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

#[test]
fn ranges_of_the_wrong_family_are_refused_or_noted() {
    let v6_pods = ["fd00::/64".parse().unwrap()];
    for (text, dual, pods, expected) in [
        ("clusterCIDR: 10.0.0.0/8\nnodePortAddresses: [10.0.0.0/8]\n", false, &[][..], Ok(vec![])),
        ("clusterCIDR: fd00::/48\nnodePortAddresses: [10.0.0.0/8]\n", false, &[], Err("clusterCIDR has no range")),
        ("clusterCIDR: fd00::/48\nnodePortAddresses: [primary]\n", true, &[], Ok(vec!["clusterCIDR has no IPv4"])),
        ("detectLocalMode: NodeCIDR\n", true, &v6_pods, Err("the Node's podCIDRs")),
        (
            "nodePortAddresses: [primary]\n",
            true,
            &v6_pods,
            Ok(vec!["detectLocalMode is ClusterCIDR, but no", "the Node's podCIDRs have no IPv4"]),
        ),
        ("clusterCIDR: 10.0.0.0/8\n", true, &[], Ok(vec!["nodePortAddresses is unset"])),
        ("detectLocalMode: NodeCIDR\nnodePortAddresses: [fd00::/8]\n", true, &[], Ok(vec!["nodePortAddresses has no"])),
        (
            "clusterCIDR: 10.0.0.0/8\nnodePortAddresses: [10.0.0.0/8]\n",
            true,
            &[],
            Ok(vec!["nodePortAddresses has only"]),
        ),
        (
            "mode: ipvs\nclusterCIDR: 10.0.0.0/8\nipvs: {excludeCIDRs: [fd00::/8]}\nnodePortAddresses: [primary]\n",
            false,
            &[],
            Ok(vec!["ipvs.excludeCIDRs has no IPv4"]),
        ),
        (
            "clusterCIDR: 10.0.0.0/8\nhealthzBindAddress: '[fd00::1]:1'\nmetricsBindAddress: '[::]:2'\nnodePortAddresses: [primary]\n",
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
