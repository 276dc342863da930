//! The command line flags: every one that upstream's kube-proxy knows (contract 1), and a few of ours.
//!
//! Plain values; a flag that was not given is `None`, so that those who read it know what to leave alone. The order of
//! the fields is the order of `--help`. Must not look at the world or at the configuration file.

use std::collections::BTreeMap;
use std::str::FromStr;

use argh::{ArgsInfo, FromArgs};

use super::duration::GoDuration;
use super::raw::{Quantity, VmoduleItem};
use super::{address, gates};
use crate::model::parse_ip;

/// Serve Kubernetes Services on this node.
#[derive(Debug, Default, Clone, PartialEq, FromArgs, ArgsInfo)]
pub struct Flags {
    /// the configuration file; with it, flags below that set what a file can set have no effect
    #[argh(option, arg_name = "file")]
    pub config: Option<String>,
    /// write the configuration that results from file and flags to this file, and exit
    #[argh(option, arg_name = "file")]
    pub write_config_to: Option<String>,
    /// remove all rules of all modes, and exit
    #[argh(option, arg_name = "bool", from_str_fn(parse_bool))]
    pub cleanup: Option<bool>,
    /// do only what needs full privileges, and exit; a later run needs no more than CAP_NET_ADMIN
    #[argh(option, arg_name = "bool", from_str_fn(parse_bool))]
    pub init_only: Option<bool>,
    /// print the ruleset that would be programmed as libnftables JSON, and exit
    #[argh(option, arg_name = "bool", from_str_fn(parse_bool))]
    pub dry_run: Option<bool>,
    /// print the version, and exit; "raw" prints all of it
    #[argh(option, arg_name = "bool|raw")]
    pub version: Option<String>,

    /// name of this node's Node object, if it is not the host name; also beside --config
    #[argh(option, arg_name = "name")]
    pub hostname_override: Option<String>,
    /// URL of the API server, if it is not the one in the kubeconfig; also beside --config
    #[argh(option, arg_name = "url")]
    pub master: Option<String>,
    /// kubeconfig file; without it the service account of a pod is used
    #[argh(option, arg_name = "file")]
    pub kubeconfig: Option<String>,
    /// read Services, EndpointSlices and Nodes from the files in this folder, not from an API server
    #[argh(option, arg_name = "dir")]
    pub manifests: Option<String>,
    /// switch features on or off: Name=true,Name=false,...
    #[argh(option, arg_name = "list", from_str_fn(gates::parse_flag))]
    pub feature_gates: Vec<BTreeMap<String, bool>>,

    /// iptables, ipvs or nftables (default iptables)
    #[argh(option, arg_name = "mode")]
    pub proxy_mode: Option<String>,
    /// masquerade all traffic to cluster IPs
    #[argh(option, arg_name = "bool", from_str_fn(parse_bool))]
    pub masquerade_all: Option<bool>,
    /// this node's IP; decides the primary IP family (default 0.0.0.0: ask the Node object)
    #[argh(option, arg_name = "ip", from_str_fn(ip_or_nothing))]
    pub bind_address: Option<String>,
    /// how traffic of local pods is told: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix
    #[argh(option, arg_name = "mode")]
    pub detect_local_mode: Option<String>,
    /// range of pod IPs in the cluster, or one per IP family with a comma between
    #[argh(option, arg_name = "cidrs")]
    pub cluster_cidr: Option<String>,
    /// bridge that pods hang on, for BridgeInterface
    #[argh(option, arg_name = "name")]
    pub pod_bridge_interface: Option<String>,
    /// how the names of pod interfaces begin, for InterfaceNamePrefix
    #[argh(option, arg_name = "prefix")]
    pub pod_interface_name_prefix: Option<String>,
    /// ranges of node IPs that serve NodePorts, or "primary" (default all; nftables: primary)
    #[argh(option, arg_name = "cidrs", from_str_fn(parse_list))]
    pub nodeport_addresses: Vec<Vec<String>>,

    /// bit of the packet mark that asks for masquerade, 0 to 31 (default 14)
    #[argh(option, arg_name = "bit", from_str_fn(parse_int))]
    pub iptables_masquerade_bit: Option<i32>,
    /// serve NodePorts on 127.0.0.1 too, iptables mode only (default true)
    #[argh(option, arg_name = "bool", from_str_fn(parse_bool))]
    pub iptables_localhost_nodeports: Option<bool>,
    /// longest time between looks at the rules, iptables and nftables mode (default 30s)
    #[argh(option, arg_name = "duration")]
    pub iptables_sync_period: Option<GoDuration>,
    /// shortest time between changes of the rules, iptables and nftables mode (default 1s)
    #[argh(option, arg_name = "duration")]
    pub iptables_min_sync_period: Option<GoDuration>,
    /// longest time between looks at the kernel's table, ipvs mode (default 30s)
    #[argh(option, arg_name = "duration")]
    pub ipvs_sync_period: Option<GoDuration>,
    /// shortest time between changes of the kernel's table, ipvs mode (default 1s)
    #[argh(option, arg_name = "duration")]
    pub ipvs_min_sync_period: Option<GoDuration>,
    /// how ipvs chooses an endpoint (default rr)
    #[argh(option, arg_name = "name")]
    pub ipvs_scheduler: Option<String>,
    /// ranges of virtual servers that are not ours to touch
    #[argh(option, arg_name = "cidrs", from_str_fn(parse_list))]
    pub ipvs_exclude_cidrs: Vec<Vec<String>>,
    /// answer ARP only for addresses of the interface that is asked
    #[argh(option, arg_name = "bool", from_str_fn(parse_bool))]
    pub ipvs_strict_arp: Option<bool>,
    /// time after which an idle TCP connection is forgotten (0: leave as is)
    #[argh(option, arg_name = "duration")]
    pub ipvs_tcp_timeout: Option<GoDuration>,
    /// the same after a FIN (0: leave as is)
    #[argh(option, arg_name = "duration")]
    pub ipvs_tcpfin_timeout: Option<GoDuration>,
    /// the same for UDP (0: leave as is)
    #[argh(option, arg_name = "duration")]
    pub ipvs_udp_timeout: Option<GoDuration>,

    /// connections that the kernel tracks, per core (default 32768; 0: leave as is)
    #[argh(option, arg_name = "number", from_str_fn(parse_int))]
    pub conntrack_max_per_core: Option<i32>,
    /// connections that it tracks at least (default 131072)
    #[argh(option, arg_name = "number", from_str_fn(parse_int))]
    pub conntrack_min: Option<i32>,
    /// time after which an idle TCP connection is forgotten (default 24h; 0: leave as is)
    #[argh(option, arg_name = "duration")]
    pub conntrack_tcp_timeout_established: Option<GoDuration>,
    /// the same in state CLOSE_WAIT (default 1h; 0: leave as is)
    #[argh(option, arg_name = "duration")]
    pub conntrack_tcp_timeout_close_wait: Option<GoDuration>,
    /// accept TCP packets outside the window
    #[argh(option, arg_name = "bool", from_str_fn(parse_bool))]
    pub conntrack_tcp_be_liberal: Option<bool>,
    /// time after which an unanswered UDP flow is forgotten (0: leave as is)
    #[argh(option, arg_name = "duration")]
    pub conntrack_udp_timeout: Option<GoDuration>,
    /// the same for an answered one (0: leave as is)
    #[argh(option, arg_name = "duration")]
    pub conntrack_udp_timeout_stream: Option<GoDuration>,

    /// where /healthz and /livez are served (default 0.0.0.0:10256)
    #[argh(option, arg_name = "ip:port", from_str_fn(ip_port_or_nothing))]
    pub healthz_bind_address: Option<String>,
    /// where /metrics and its neighbours are served (default 127.0.0.1:10249)
    #[argh(option, arg_name = "ip:port", from_str_fn(ip_port_or_nothing))]
    pub metrics_bind_address: Option<String>,
    /// show metrics that the next release drops; only the previous minor version is valid
    #[argh(option, arg_name = "version")]
    pub show_hidden_metrics_for_version: Option<String>,
    /// give up when one of these two cannot be bound
    #[argh(option, arg_name = "bool", from_str_fn(parse_bool))]
    pub bind_address_hard_fail: Option<bool>,
    /// the kernel's wish to kill us when memory is short, -1000 to 1000 (default -999)
    #[argh(option, arg_name = "number", from_str_fn(parse_int))]
    pub oom_score_adj: Option<i32>,
    /// number for the log level verbosity; also beside --config
    #[argh(option, short = 'v', arg_name = "level", from_str_fn(parse_digits))]
    pub v: Option<u32>,
    /// text or json (default text); also beside --config
    #[argh(option, arg_name = "format")]
    pub logging_format: Option<String>,

    /// requests per second to the API server
    #[argh(option, arg_name = "number", from_str_fn(parse_rate))]
    pub kube_api_qps: Option<f32>,
    /// requests to the API server in a burst
    #[argh(option, arg_name = "number", from_str_fn(parse_int))]
    pub kube_api_burst: Option<i32>,
    /// encoding asked of the API server
    #[argh(option, arg_name = "type")]
    pub kube_api_content_type: Option<String>,
    /// time between repeated looks at unchanged objects
    #[argh(option, arg_name = "duration")]
    pub config_sync_period: Option<GoDuration>,
    /// serve /debug/pprof on the metrics address
    #[argh(option, arg_name = "bool", from_str_fn(parse_bool))]
    pub profiling: Option<bool>,
    /// verbosity by source file
    #[argh(option, arg_name = "pattern=N,...", from_str_fn(vmodule_items))]
    pub vmodule: Vec<Vec<VmoduleItem>>,
    /// time between log flushes
    #[argh(option, arg_name = "duration")]
    pub log_flush_frequency: Option<GoDuration>,
    /// in text format, errors to stderr and the rest to stdout
    #[argh(option, arg_name = "bool", from_str_fn(parse_bool))]
    pub log_text_split_stream: Option<bool>,
    /// in text format, size of the buffer before stdout
    #[argh(option, arg_name = "size")]
    pub log_text_info_buffer_size: Option<Quantity>,
    /// in JSON format, errors to stderr and the rest to stdout
    #[argh(option, arg_name = "bool", from_str_fn(parse_bool))]
    pub log_json_split_stream: Option<bool>,
    /// in JSON format, size of the buffer before stdout
    #[argh(option, arg_name = "size")]
    pub log_json_info_buffer_size: Option<Quantity>,
    /// files to look for the machine's identity in
    #[argh(option, arg_name = "files")]
    pub machine_id_file: Option<String>,
    /// files to look for the boot's identity in
    #[argh(option, arg_name = "files")]
    pub boot_id_file: Option<String>,

    /// deprecated: use --healthz-bind-address
    #[argh(option, arg_name = "port", hidden_help, from_str_fn(parse_int))]
    pub healthz_port: Option<i32>,
    /// deprecated: use --metrics-bind-address
    #[argh(option, arg_name = "port", hidden_help, from_str_fn(parse_int))]
    pub metrics_port: Option<i32>,
}

/// Flags that are known, so that nobody's command line breaks, but change nothing here.
pub const WITHOUT_EFFECT: [&str; 13] = [
    "kube-api-qps",
    "kube-api-burst",
    "kube-api-content-type",
    "config-sync-period",
    "profiling",
    "vmodule",
    "log-flush-frequency",
    "log-text-split-stream",
    "log-text-info-buffer-size",
    "log-json-split-stream",
    "log-json-info-buffer-size",
    "machine-id-file",
    "boot-id-file",
];

/// Flags that say the same with and without a configuration file; all others yield to the file (contract 1).
pub const BESIDE_CONFIG: [&str; 19] = [
    "config",
    "write-config-to",
    "cleanup",
    "init-only",
    "dry-run",
    "version",
    "hostname-override",
    "master",
    "manifests",
    "v",
    "vmodule",
    "logging-format",
    "log-flush-frequency",
    "log-text-split-stream",
    "log-text-info-buffer-size",
    "log-json-split-stream",
    "log-json-info-buffer-size",
    "machine-id-file",
    "boot-id-file",
];

/// Reads a truth value in any of the spellings that Go's flags accept.
///
/// # Errors
/// Anything else.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

/// A whole number in any of the spellings that Go's flags accept: `016`, `0o16`, `0x0e` and `1_4` are all fourteen.
fn parse_int(text: &str) -> Result<i32, String> {
    let (sign, unsigned) = match text.strip_prefix('-') {
        Some(unsigned) => ("-", unsigned),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = match unsigned.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &unsigned[2..]),
        [b'0', b'o' | b'O', ..] => (8, &unsigned[2..]),
        [b'0', b'b' | b'B', ..] => (2, &unsigned[2..]),
        [b'0', _, ..] => (8, &unsigned[1..]),
        _ => (10, unsigned),
    };
    // A prefix may have its underscore too.
    let digits = if radix == 10 { digits } else { digits.strip_prefix('_').unwrap_or(digits) };
    let is_run = |run: &str| !run.is_empty() && run.chars().all(|digit| digit.is_digit(radix));
    let value = digits.split('_').all(is_run).then(|| format!("{sign}{}", digits.replace('_', "")));
    let value = value.and_then(|digits| i32::from_str_radix(&digits, radix).ok());
    value.ok_or_else(|| format!("{text:?} is not a whole number from {} to {}", i32::MIN, i32::MAX))
}

/// A whole number of nothing but decimal digits: here Go takes no sign.
fn parse_digits<T: FromStr>(text: &str) -> Result<T, String> {
    let digits = Some(text).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|digits| digits.parse().ok()).ok_or_else(|| format!("{text:?} is not a valid number"))
}

/// A number of requests per second.
fn parse_rate(text: &str) -> Result<f32, String> {
    let rate = text.parse().ok().filter(|rate: &f32| rate.is_finite());
    rate.ok_or_else(|| format!("{text:?} is not a valid number"))
}

/// Values with commas between them, each perhaps in quotes: Go reads a list as a line of CSV.
fn parse_list(text: &str) -> Result<Vec<String>, String> {
    let mut values = Vec::new();
    let mut rest = Some(text).filter(|text| !text.is_empty());
    while let Some(text) = rest {
        let (value, after) = match text.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').ok_or_else(|| format!("{text:?} lacks its second quote"))?,
            None => text.split_at(text.find(',').unwrap_or(text.len())),
        };
        values.push(value.to_owned());
        rest = match after.strip_prefix(',') {
            None if !after.is_empty() => return Err(format!("{text:?} goes on after its second quote")),
            rest => rest,
        };
    }
    Ok(values)
}

/// An IP address, or nothing, which leaves the default alone.
fn ip_or_nothing(text: &str) -> Result<String, String> {
    match text.is_empty() || parse_ip(text).is_some() {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is not a valid IP address")),
    }
}

/// An IP address with or without a port, or nothing, which leaves the default alone.
fn ip_port_or_nothing(text: &str) -> Result<String, String> {
    if text.is_empty() || parse_ip(text).is_some() {
        return Ok(text.to_owned());
    }
    let Some((host, port)) = address::split_host_port(text) else {
        return Err(format!("{text:?} is not in a valid format (ip or ip:port): write 0.0.0.0:10256 or [::]:10256"));
    };
    if parse_ip(host).is_none() {
        return Err(format!("{host:?} is not a valid IP address"));
    }
    parse_digits::<u16>(port).map(|_| text.to_owned())
}

/// Patterns of source files, each with a verbosity.
fn vmodule_items(text: &str) -> Result<Vec<VmoduleItem>, String> {
    let item = |entry: &str| {
        let parts = entry.split_once('=').and_then(|(pattern, level)| Some((pattern, level.parse().ok()?)));
        match parts {
            Some((file_pattern, verbosity)) => Ok(VmoduleItem { file_pattern: file_pattern.to_owned(), verbosity }),
            None => Err(format!("{entry:?} is not of the form pattern=N")),
        }
    };
    text.split(',').filter(|entry| !entry.is_empty()).map(item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_name_flags_that_exist() {
        let known = Flags::get_args_info().flags;
        for name in WITHOUT_EFFECT.iter().chain(&BESIDE_CONFIG) {
            assert!(known.iter().any(|flag| flag.long == format!("--{name}")), "{name}");
        }
    }

    #[test]
    fn whole_numbers_are_spelled_as_in_go() {
        for (text, expected) in [
            ("14", 14),
            ("+14", 14),
            ("-14", -14),
            ("016", 14),
            ("0o16", 14),
            ("0O16", 14),
            ("0x0e", 14),
            ("0X0E", 14),
            ("0b1110", 14),
            ("0B1110", 14),
            ("1_4", 14),
            ("0_16", 14),
            ("0x_e", 14),
            ("-0x10", -16),
            ("0", 0),
            ("-0", 0),
            ("00", 0),
            ("2147483647", i32::MAX),
            ("-2147483648", i32::MIN),
        ] {
            assert_eq!(parse_int(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "-",
            "+-1",
            "--1",
            "x",
            " 5",
            "08",
            "0x",
            "0xg",
            "0x+5",
            "0b2",
            "_1",
            "1_",
            "1__2",
            "0_",
            "0__1",
            "1e2",
            "1.0",
            "2147483648",
            "-2147483649",
            "0é",
        ] {
            assert!(parse_int(text).is_err(), "{text}");
        }
    }

    #[test]
    fn plain_numbers_and_rates_are_held_to_their_form() {
        assert_eq!((parse_digits("080"), parse_rate("1e2")), (Ok(80_u16), Ok(100.0)));
        for text in ["", "+80", "-0", "0x50", "1_0", "65536"] {
            assert!(parse_digits::<u16>(text).is_err(), "{text}");
        }
        for text in ["", "NaN", "inf", "-infinity", "1e40", "fast"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn lists_are_lines_of_csv() {
        for (text, expected) in [
            ("", &[][..]),
            ("a", &["a"]),
            ("a,b", &["a", "b"]),
            ("\"a\",\"b\"", &["a", "b"]),
            ("\"a,b\",c", &["a,b", "c"]),
            ("a, b", &["a", " b"]),
            ("a,", &["a", ""]),
            ("\"\"", &[""]),
        ] {
            assert_eq!(parse_list(text).expect(text), expected, "{text}");
        }
        for text in ["\"a", "\"a\"b,c", "a,\"b"] {
            assert!(parse_list(text).is_err(), "{text}");
        }
    }

    #[test]
    fn truth_is_spelled_as_in_go() {
        for (text, expected) in [("true", Ok(true)), ("T", Ok(true)), ("0", Ok(false)), ("FALSE", Ok(false))] {
            assert_eq!(parse_bool(text), expected, "{text}");
        }
        for text in ["", "yes", "on", "tRUE"] {
            assert!(parse_bool(text).is_err(), "{text}");
        }
    }
}
