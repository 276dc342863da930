//! Which of flag, file and default has the last word.

use super::*;

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
        ("--iptables-masquerade-bit=016", "/iptables/masqueradeBit", "14"),
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
        (
            "--nodeport-addresses=\"10.0.0.0/8\",\"192.168.0.0/16\"",
            "/nodePortAddresses",
            r#"["10.0.0.0/8","192.168.0.0/16"]"#,
        ),
        ("--nodeport-addresses=", "/nodePortAddresses", "[]"),
        ("", "/nodePortAddresses", "null"),
        ("--proxy-mode=nftables", "/nodePortAddresses", r#"["primary"]"#),
        ("--oom-score-adj=-5", "/oomScoreAdj", "-5"),
        ("--oom-score-adj=0x10", "/oomScoreAdj", "16"),
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
    let text = "mode: ipvs\nhostnameOverride: From-File\noomScoreAdj: -1\nlogging:\n  verbosity: 1\n  \
                vmodule: [{filePattern: b, verbosity: 2}]\n";
    for (line, pointer, expected) in [
        ("", "/hostnameOverride", "From-File"),
        ("--hostname-override=By-Flag", "/hostnameOverride", "by-flag"),
        ("--hostname-override=", "/hostnameOverride", "From-File"),
        ("", "/logging/verbosity", "1"),
        ("-v=4", "/logging/verbosity", "4"),
        ("-v=0", "/logging/verbosity", "0"),
        (
            "--vmodule=a=1",
            "/logging/vmodule",
            r#"[{"filePattern":"a","verbosity":1},{"filePattern":"b","verbosity":2}]"#,
        ),
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
        assert_eq!(
            options(line).settle_with_default(&file.0).and_then(Settled::check).expect(line).config.mode,
            mode,
            "{line}"
        );
    }
}
