//! What leaves the process: the metrics as a strict reader sees them, the words to systemd, the log.

use std::collections::{HashMap, HashSet};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Output};
use std::time::{Duration, UNIX_EPOCH};

use kube_proxy::model::{Family, ObjectName, Protocol};
use kube_proxy::observe::log::{Format, start};
use kube_proxy::observe::metrics::{Metrics, Sync};
use kube_proxy::observe::scrape::{Build, Traffic};
use kube_proxy::observe::systemd::{self, Status};
use kube_proxy::plan::PortName;

const INSIDE: &str = "KUBE_PROXY_TEST_ROLE";

/// A family as read from the text format.
#[derive(Debug, Default)]
struct Read {
    kind: String,
    samples: Vec<Sample>,
}

/// Name, labels and value.
type Sample = (String, Vec<(String, String)>, f64);

/// A strict reader of the text format: whatever a careful scraper might refuse is a failure here.
fn read(text: &str) -> HashMap<String, Read> {
    let mut families: HashMap<String, Read> = HashMap::new();
    let mut current = String::new();
    let mut seen = HashSet::new();
    assert!(text.ends_with('\n'), "the last line ends");
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("HELP has a text");
            assert!(!help.is_empty() && !families.contains_key(name), "{line}: only once");
            current = name.to_owned();
            families.insert(current.clone(), Read::default());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("TYPE has a type");
            assert_eq!(name, current, "TYPE follows its HELP");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            families.get_mut(name).unwrap().kind = kind.to_owned();
        } else {
            assert!(!line.starts_with('#') && !line.is_empty(), "{line:?}");
            let (name, labels, value) = sample(line);
            let family = families.get_mut(&current).expect("samples follow HELP and TYPE");
            let suffixes: &[&str] = if family.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.iter().any(|suffix| name == format!("{current}{suffix}")), "{line} under {current}");
            assert!(seen.insert((name.clone(), labels.clone())), "{line}: twice");
            family.samples.push((name, labels, value));
        }
    }
    families
}

fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).expect("a sample has a value");
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name), "{line}");
    let mut labels = Vec::new();
    if let Some(mut inside) = rest.strip_prefix('{') {
        loop {
            let (label, after) = inside.split_once("=\"").expect("labels are quoted");
            assert!(is_name(label), "{line}");
            let mut value = String::new();
            let mut characters = after.char_indices();
            let end = loop {
                match characters.next().expect("a quote ends the value") {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match characters.next().unwrap().1 {
                        'n' => '\n',
                        escaped @ ('"' | '\\') => escaped,
                        other => panic!("unknown escape {other} in {line}"),
                    }),
                    (_, other) => value.push(other),
                }
            };
            labels.push((label.to_owned(), value));
            inside = &after[end + 1..];
            match inside.strip_prefix(',') {
                Some(more) => inside = more,
                None => break,
            }
        }
        rest = inside.strip_prefix('}').expect("labels are closed");
    }
    let value = rest.strip_prefix(' ').expect("one space before the value").parse().expect("a number");
    (name.to_owned(), labels, value)
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Service ports with counters, in each family.
const PORTS: usize = 250;

/// Metrics with something in every family.
fn filled() -> Metrics {
    let metrics = Metrics::new(Build { major: "1", minor: "36", git_version: "v1.36.0", ..Build::default() });
    for family in Family::ALL {
        let name = family.as_str();
        metrics.queued(family, 1.5);
        metrics.synced(family, Some(Sync::Full), Duration::from_millis(2), true, 2.5);
        metrics.synced(family, Some(Sync::Partial), Duration::from_secs(100), false, 3.5);
        metrics.programmed(family, Duration::from_millis(700));
        metrics.changed(family, Duration::from_micros(1500));
        metrics.swept(family, Duration::from_millis(1), 3);
        metrics.no_local_endpoints.with(&["internal", name]).set(1.0);
        metrics.iptables_rules.with(&["nat", name]).set(1.0);
        metrics.iptables_last.with(&["nat", name]).set(1.0);
        metrics.iptables_restore_failures.with(&[name]).add(1);
        metrics.iptables_partial_restore_failures.with(&[name]).add(1);
        metrics.nftables_sync_failures.with(&[name]).add(1);
        metrics.nftables_cleanup_failures.with(&[name]).add(1);
        for gauge in [&metrics.programmed_services, &metrics.programmed_endpoints, &metrics.set_aside] {
            gauge.with(&[name]).set(7.0);
        }
    }
    metrics.feature_enabled.with(&["ComponentFlagz", "BETA"]).set(1.0);
    metrics.healthz.with(&["200"]).add(1);
    metrics.livez.with(&["503"]).add(1);
    metrics.rest_retries.with(&["429", "LIST", "[fd00::1]:6443"]).add(1);
    metrics.requested("GET", "[fd00::1]:6443", "200", Duration::from_millis(30));
    metrics.transferred("GET", "[fd00::1]:6443", 300, 2_000_000);
    metrics.set_traffic(Box::new(|| {
        // More than fit into one piece.
        let names = (0..PORTS).map(|number| format!("a\"b\\c\nd{number}"));
        let ports = names.map(|name| PortName {
            service: ObjectName::new("ns", &name),
            port: "p".into(),
            protocol: Protocol::Tcp,
        });
        let of_family = |port: PortName| {
            Family::ALL.map(|family| Traffic { port: port.clone(), family, packets: 4, bytes: 5_000_000_000 })
        };
        ports.flat_map(of_family).collect()
    }));
    metrics
}

#[test]
fn metrics_pass_a_strict_reader() {
    let families = read(&filled().text().collect::<String>());
    for (name, kind, series) in [
        ("kubeproxy_sync_proxy_rules_duration_seconds", "histogram", 2),
        ("kubeproxy_sync_full_proxy_rules_duration_seconds", "histogram", 2),
        ("kubeproxy_sync_partial_proxy_rules_duration_seconds", "histogram", 2),
        ("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "gauge", 2),
        ("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "gauge", 2),
        ("kubeproxy_network_programming_duration_seconds", "histogram", 2),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "gauge", 1),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_total", "counter", 1),
        ("kubeproxy_sync_proxy_rules_service_changes_pending", "gauge", 1),
        ("kubeproxy_sync_proxy_rules_service_changes_total", "counter", 1),
        ("kubeproxy_sync_proxy_rules_no_local_endpoints_total", "gauge", 2),
        ("kubeproxy_sync_proxy_rules_iptables_total", "gauge", 2),
        ("kubeproxy_sync_proxy_rules_iptables_last", "gauge", 2),
        ("kubeproxy_sync_proxy_rules_iptables_restore_failures_total", "counter", 2),
        ("kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total", "counter", 2),
        ("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", "counter", 2),
        ("kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total", "counter", 2),
        ("kubeproxy_conntrack_reconciler_sync_duration_seconds", "histogram", 2),
        ("kubeproxy_conntrack_reconciler_deleted_entries_total", "counter", 2),
        ("kubeproxy_proxy_healthz_total", "counter", 1),
        ("kubeproxy_proxy_livez_total", "counter", 1),
        ("rest_client_requests_total", "counter", 1),
        ("rest_client_request_duration_seconds", "histogram", 1),
        ("rest_client_request_size_bytes", "histogram", 1),
        ("rest_client_response_size_bytes", "histogram", 1),
        ("rest_client_request_retries_total", "counter", 1),
        ("kubernetes_build_info", "gauge", 1),
        ("kubernetes_feature_enabled", "gauge", 1),
        ("process_resident_memory_bytes", "gauge", 1),
        ("process_cpu_seconds_total", "counter", 1),
        ("kubeproxy_programmed_services", "gauge", 2),
        ("kubeproxy_programmed_endpoints", "gauge", 2),
        ("kubeproxy_set_aside_service_ports", "gauge", 2),
        ("kubeproxy_last_change_to_kernel_seconds", "gauge", 2),
        ("kubeproxy_change_to_kernel_duration_seconds", "histogram", 2),
        ("kubeproxy_service_port_packets_total", "counter", 2 * PORTS),
        ("kubeproxy_service_port_bytes_total", "counter", 2 * PORTS),
    ] {
        let family = families.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        let count =
            family.samples.iter().filter(|sample| sample.0 == name || sample.0 == format!("{name}_count")).count();
        assert_eq!((family.kind.as_str(), count), (kind, series), "{name}");
    }
    let bytes = &families["kubeproxy_service_port_bytes_total"].samples[0];
    assert_eq!(bytes.2, 5e9);
    assert!(bytes.1.contains(&("service".into(), "a\"b\\c\nd0".into())), "{bytes:?}");
}

#[test]
fn buckets_are_upstreams() {
    let families = read(&filled().text().collect::<String>());
    let bounds = |name: &str| -> Vec<String> {
        let mut bounds: Vec<String> = Vec::new();
        for (sample, labels, _) in &families[name].samples {
            let bound = labels.iter().find(|(label, _)| label == "le");
            if let (true, Some((_, bound))) = (sample.ends_with("_bucket"), bound)
                && !bounds.contains(bound)
            {
                bounds.push(bound.clone());
            }
        }
        bounds
    };
    assert_eq!(
        bounds("kubeproxy_sync_proxy_rules_duration_seconds").join(" "),
        "0.001 0.002 0.004 0.008 0.016 0.032 0.064 0.128 0.256 0.512 1.024 2.048 4.096 8.192 16.384 +Inf"
    );
    assert_eq!(
        bounds("rest_client_response_size_bytes").join(" "),
        "64 256 512 1024 4096 16384 65536 262144 1.048576e+06 4.194304e+06 1.6777216e+07 +Inf"
    );
    let programming = bounds("kubeproxy_network_programming_duration_seconds");
    assert_eq!(programming.len(), 81);
    assert_eq!(programming[..4], ["0.25", "0.5", "1", "2"]);
    assert_eq!(programming[60..63], ["59", "60", "65"]);
    assert_eq!(programming[72..76], ["115", "120", "150", "180"]);
    assert_eq!(programming[79..], ["300", "+Inf"]);
}

/// Runs the test `name` of this binary once more, in a role and with these variables.
fn again(name: &str, role: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(INSIDE, role);
    for name in ["JOURNAL_STREAM", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
        command.env_remove(name);
    }
    let output = command.envs(variables.iter().copied()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn role() -> Option<String> {
    std::env::var(INSIDE).ok()
}

#[test]
fn systemd_is_told() {
    let waiting = Status::Waiting("nftables", "the API server");
    let state = Status::Serving { mode: "nftables", services: 2, endpoints: 3, synced: UNIX_EPOCH };
    if role().is_some() {
        assert_eq!(systemd::watchdog_interval(), Some(Duration::from_secs(15)));
        systemd::ready(&waiting);
        systemd::alive();
        systemd::reloading();
        systemd::status(&state);
        systemd::stopping();
        return;
    }
    let path = std::env::temp_dir().join(format!("kube-proxy-notify-{}", std::process::id()));
    let socket = UnixDatagram::bind(&path).unwrap();
    again("systemd_is_told", "tell", &[("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "30000000")]);
    std::fs::remove_file(&path).unwrap();
    let mut told = Vec::new();
    let mut buffer = [0; 512];
    socket.set_nonblocking(true).unwrap();
    while let Ok(length) = socket.recv(&mut buffer) {
        told.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
    assert_eq!(told.len(), 5, "{told:?}");
    assert_eq!(told[0], "READY=1\nSTATUS=nftables: waiting for the API server\n");
    assert_eq!(told[1], "WATCHDOG=1\n");
    assert!(told[2].starts_with("RELOADING=1\nMONOTONIC_USEC="), "{told:?}");
    assert_eq!(told[3], format!("STATUS={state}\n"));
    assert!(told[4].starts_with("STOPPING=1\n"), "{told:?}");
}

#[test]
fn without_a_supervisor_nothing_is_told_and_nothing_fails() {
    if role().is_some() {
        assert_eq!(systemd::watchdog_interval(), None);
        return systemd::alive();
    }
    again("without_a_supervisor_nothing_is_told_and_nothing_fails", "tell", &[]);
    again("without_a_supervisor_nothing_is_told_and_nothing_fails", "tell", &[("NOTIFY_SOCKET", "/nowhere/at/all")]);
}

#[test]
fn the_log_suits_its_reader() {
    if let Some(role) = role() {
        start(if role == "json" { Format::Json } else { Format::Text }, 2).unwrap();
        log::info!(target: "kube_proxy::agent", service = "ns/web", n = 3; "synced");
        log::error!(target: "kube_proxy::agent", "two\nlines");
        log::debug!(target: "kube_proxy::agent", "not at this verbosity");
        return;
    }
    let lines = |role: &str, variables: &[(&str, &str)]| -> Vec<String> {
        let output = again("the_log_suits_its_reader", role, variables);
        String::from_utf8(output.stderr).unwrap().lines().map(str::to_owned).collect()
    };
    assert_eq!(lines("text", &[]), ["INFO  [agent] synced service=ns/web n=3", "ERROR [agent] two\\nlines"]);
    assert_eq!(
        lines("text", &[("JOURNAL_STREAM", "8:1")]),
        ["<6>INFO  [agent] synced service=ns/web n=3", "<3>ERROR [agent] two\\nlines"]
    );
    let objects: Vec<serde_json::Value> =
        lines("json", &[]).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(objects.len(), 2);
    assert_eq!((&objects[0]["msg"], &objects[0]["n"], &objects[0]["v"]), (&"synced".into(), &3.into(), &0.into()));
    assert_eq!((&objects[1]["msg"], &objects[1]["err"]), (&"two\nlines".into(), &"two\nlines".into()));
    assert!(objects[0]["ts"].as_f64().unwrap() > 1.6e12, "milliseconds since the epoch");
}
