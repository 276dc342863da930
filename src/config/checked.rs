//! The configuration that the rest of the program sees: every value has a type that cannot hold a wrong one.
//!
//! Made by `check` alone; holds what is acted upon, so a field of the file without effect is not here.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::gates::Gates;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Optional behaviours.
    pub gates: Gates,
    /// Path of the kubeconfig; `None` means the service account of the pod we run in.
    pub kubeconfig: Option<String>,
    /// The API server may send protobuf, where it has it.
    pub protobuf: bool,
    /// Name of our Node object where it is not the host name: trimmed, in lower case.
    pub hostname_override: Option<String>,
    /// This node's address and primary family, unless it is unspecified.
    pub bind_address: IpAddr,
    /// Where `/healthz` is served; `None` means nowhere.
    pub healthz_bind_address: Option<SocketAddr>,
    /// Where `/metrics` is served.
    pub metrics_bind_address: SocketAddr,
    /// Failing to bind one of these two is fatal.
    pub bind_address_hard_fail: bool,
    /// Show the metrics that the next release hides.
    pub show_hidden_metrics: bool,
    /// How the kernel is programmed.
    pub mode: Mode,
    /// Longest time between two syncs.
    pub sync_period: Duration,
    /// Shortest time between two syncs; zero means none.
    pub min_sync_period: Duration,
    /// Traffic to ClusterIPs is always masqueraded.
    pub masquerade_all: bool,
    /// The bit of the packet mark that asks for masquerade, 0 to 31.
    pub masquerade_bit: u8,
    /// iptables mode: NodePorts answer on 127.0.0.1.
    pub localhost_node_ports: bool,
    /// IPVS mode.
    pub ipvs: Ipvs,
    /// How traffic of this node's pods is told from other traffic.
    pub detect_local: DetectLocal,
    /// Which of the node's addresses serve NodePorts.
    pub node_port_addresses: NodePortAddresses,
    /// For `/proc/self/oom_score_adj`, -1000 to 1000.
    pub oom_score_adj: i32,
    /// Connection tracking.
    pub conntrack: Conntrack,
    /// Verbosity of the log, from 0.
    pub verbosity: u32,
    /// Form of the log.
    pub log_format: LogFormat,
}

/// How the kernel is programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Rules of iptables and ip6tables.
    Iptables,
    /// Virtual servers of IPVS.
    Ipvs,
    /// Sets and maps of nftables.
    Nftables,
}

/// Settings of IPVS mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipvs {
    /// Name of the kernel's scheduler.
    pub scheduler: String,
    /// Virtual servers in these ranges are somebody else's.
    pub exclude_cidrs: Vec<IpNet>,
    /// Answer ARP only for addresses of the interface that is asked.
    pub strict_arp: bool,
    /// Idle time of a TCP connection; `None` leaves the kernel's.
    pub tcp_timeout: Option<Duration>,
    /// The same after a FIN.
    pub tcp_fin_timeout: Option<Duration>,
    /// The same for UDP.
    pub udp_timeout: Option<Duration>,
}

/// How traffic of this node's pods is told from other traffic (contract 3.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// It comes from these ranges: at most one per family.
    ClusterCidr(Vec<IpNet>),
    /// It comes from the ranges that the Node object names.
    NodeCidr,
    /// It comes in on this bridge.
    BridgeInterface(String),
    /// It comes in on an interface whose name begins like this.
    InterfaceNamePrefix(String),
}

/// Which of the node's addresses serve NodePorts (contract 3.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// All of them.
    All,
    /// The primary one of each family.
    Primary,
    /// Those in these ranges.
    Cidrs(Vec<IpNet>),
}

/// What is set in the kernel's connection tracking; `None` leaves a value alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conntrack {
    /// Connections per core.
    pub max_per_core: Option<u32>,
    /// Connections at least, where `max_per_core` is set.
    pub min: u32,
    /// Idle time of an established TCP connection.
    pub tcp_established_timeout: Option<Duration>,
    /// Idle time in state CLOSE_WAIT.
    pub tcp_close_wait_timeout: Option<Duration>,
    /// Accept packets outside the TCP window.
    pub tcp_be_liberal: bool,
    /// Idle time of an unanswered UDP flow.
    pub udp_timeout: Option<Duration>,
    /// Idle time of an answered UDP flow.
    pub udp_stream_timeout: Option<Duration>,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// Lines for machines.
    Json,
}

// === impl Mode ===

impl Mode {
    /// The mode of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Iptables, Self::Ipvs, Self::Nftables].into_iter().find(|mode| mode.as_str() == name)
    }

    /// The name in files, flags and `/proxyMode`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
            Self::Nftables => "nftables",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
