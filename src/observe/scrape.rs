//! What is read only when somebody scrapes: the build, the process, and the kernel's counters of Service ports.
//!
//! Must not keep anything between two scrapes.

use super::exposition::{head, label, sample};
use crate::kernel::process::Usage;
use crate::model::Family;
use crate::plan::PortName;

/// What the program says about its build, as label values of `kubernetes_build_info`.
#[derive(Clone, Debug, Default)]
pub struct Build {
    /// Version of Kubernetes whose behaviour this is, first number.
    pub major: &'static str,
    /// Second number.
    pub minor: &'static str,
    /// Version of the program, like `v1.36.0`.
    pub git_version: &'static str,
    /// Commit it was built from.
    pub git_commit: &'static str,
    /// When, RFC 3339.
    pub build_date: &'static str,
    /// The compiler, with its version.
    pub compiler: &'static str,
    /// Like `linux/arm64`.
    pub platform: &'static str,
}

/// Packets and bytes that a Service port had so far.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// The Service port.
    pub port: PortName,
    /// The family.
    pub family: Family,
    /// New connections' packets, as the kernel counted them.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Reads the kernel's counters. Called once per scrape.
pub type TrafficSource = Box<dyn Fn() -> Vec<Traffic>>;

/// Hands name, help and packets of each of the kernel's own counters to the function that it is given.
pub type CounterSource = Box<dyn Fn(&mut dyn FnMut(&str, &str, u64))>;

/// A family of counters of Service ports.
struct TrafficFamily {
    name: &'static str,
    help: &'static str,
    value: fn(&Traffic) -> u64,
}

const TRAFFIC: [TrafficFamily; 2] = [
    TrafficFamily {
        name: "kubeproxy_service_port_packets_total",
        help: "Packets that opened connections to a Service port",
        value: |port| port.packets,
    },
    TrafficFamily {
        name: "kubeproxy_service_port_bytes_total",
        help: "Bytes of the packets that opened connections to a Service port",
        value: |port| port.bytes,
    },
];

// === impl Build ===

impl Build {
    /// Writes `kubernetes_build_info`.
    pub(super) fn write(&self, out: &mut String) {
        let name = "kubernetes_build_info";
        head(out, name, "gauge", "[BETA] Always 1; the labels tell which build this is");
        let mut labels = String::new();
        for (name, value) in [
            ("build_date", self.build_date),
            ("compiler", self.compiler),
            ("git_commit", self.git_commit),
            ("git_tree_state", "clean"),
            ("git_version", self.git_version),
            // Upstream's label; there is no Go in here.
            ("go_version", ""),
            ("major", self.major),
            ("minor", self.minor),
            ("platform", self.platform),
        ] {
            label(&mut labels, name, value);
        }
        sample(out, name, &labels, 1.0);
    }
}

/// Writes the `process_*` metrics.
pub(super) fn process(out: &mut String, usage: &Usage) {
    for (name, kind, help, value) in [
        ("process_cpu_seconds_total", "counter", "User and system time in seconds", usage.cpu_seconds),
        ("process_max_fds", "gauge", "Limit of open descriptors", usage.max_files as f64),
        ("process_open_fds", "gauge", "Open descriptors", usage.open_files as f64),
        (
            "process_network_receive_bytes_total",
            "counter",
            "Bytes that all interfaces received",
            usage.received_bytes as f64,
        ),
        (
            "process_network_transmit_bytes_total",
            "counter",
            "Bytes that all interfaces sent",
            usage.transmitted_bytes as f64,
        ),
        ("process_resident_memory_bytes", "gauge", "Resident memory in bytes", usage.resident_bytes as f64),
        ("process_start_time_seconds", "gauge", "When the process began, in seconds since the epoch", usage.started),
        ("process_virtual_memory_bytes", "gauge", "Virtual memory in bytes", usage.virtual_bytes as f64),
        (
            "process_virtual_memory_max_bytes",
            "gauge",
            "Limit of virtual memory in bytes",
            usage.virtual_max.map_or(u64::MAX as f64, |limit| limit as f64),
        ),
    ] {
        head(out, name, kind, help);
        sample(out, name, "", value);
    }
}

/// The counters of Service ports, in pieces: they are by far the longest part of the page.
pub(super) fn traffic(ports: Vec<Traffic>) -> impl Iterator<Item = String> {
    const PORTS: usize = 200;
    let pieces = ports.len().div_ceil(PORTS).max(1);
    (0..TRAFFIC.len() * pieces).map(move |number| {
        let (TrafficFamily { name, help, value }, piece) = (&TRAFFIC[number / pieces], number % pieces);
        let (mut out, mut labels) = (String::new(), String::new());
        if piece == 0 {
            head(&mut out, name, "counter", help);
        }
        for traffic in ports.iter().skip(piece * PORTS).take(PORTS) {
            labels.clear();
            label(&mut labels, "namespace", traffic.port.service.namespace());
            label(&mut labels, "service", traffic.port.service.name());
            label(&mut labels, "port", &traffic.port.port);
            label(&mut labels, "protocol", traffic.port.protocol.as_str());
            label(&mut labels, "ip_family", traffic.family.as_str());
            sample(&mut out, name, &labels, value(traffic) as f64);
        }
        out
    })
}

/// Writes the kernel's own counters.
pub(super) fn counters(out: &mut String, source: &CounterSource) {
    source(&mut |name, help, packets| {
        head(out, name, "counter", help);
        sample(out, name, "", packets as f64);
    });
}
