//! What comes out again: the file, the lists for HTTP, and what the operator is told.

use super::*;
use crate::config::flags::Flags;

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
    let loaded = from_file("mode: nftables\nhostnameOverride: a\nportRange: 1-2\n").unwrap();
    let body: serde_json::Value = serde_json::from_str(&to_configz(&loaded.effective).unwrap()).unwrap();
    let object = &body["kubeproxy.config.k8s.io"];
    assert_eq!(object["kind"], "KubeProxyConfiguration");
    assert_eq!(object["apiVersion"], "kubeproxy.config.k8s.io/v1alpha1");
    assert_eq!(object["nodePortAddresses"], serde_json::json!(["primary"]));
    assert_eq!(object["conntrack"]["tcpEstablishedTimeout"], "24h0m0s");
    assert_eq!(object["ipvs"]["excludeCIDRs"], serde_json::Value::Null);
    assert_eq!(object["portRange"], "");
    assert_eq!(object["logging"]["options"]["text"], serde_json::json!({"infoBufferSize": "0"}));
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
    let loaded = from_flags("--version=v1.36.2-x --kube-api-content-type=application/cbor").unwrap();
    assert_eq!(loaded.warnings, ["flags that have no effect here: --version, --kube-api-content-type"]);
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
