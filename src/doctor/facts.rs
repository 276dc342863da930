//! What can be seen of this node: read from `/proc`, `/sys` and netlink, and judged elsewhere ([`super::checks`]).
//!
//! Never changes anything, and takes whatever cannot be read for absent: a doctor must not fall ill.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, SockProtocol};

use super::probe::{self, Answer};
use crate::config::Mode;
use crate::iptables::Tools;
use crate::kernel::netlink::{Buffer, DUMP, Socket, attribute, text};
use crate::kernel::xtables;
use crate::model::Family;

/// This node, as far as the checks care.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The mode that is configured.
    pub mode: Mode,
    /// Release of the kernel, as `uname -r` says it.
    pub kernel: String,
    /// What nf_tables can do, per family that this node has.
    pub nf_tables: Vec<(Family, Answer)>,
    /// Whether the kernel has IPVS.
    pub ipvs: Presence,
    /// Why iptables cannot be run, if it cannot.
    pub iptables_trouble: Option<String>,
    /// Tables that iptables-legacy keeps.
    pub legacy_tables: Vec<String>,
    /// Tables that iptables-nft keeps.
    pub iptables_nft_tables: Vec<&'static str>,
    /// There is a table that an nftables-mode kube-proxy made.
    pub nftables_rules: bool,
    /// There are chains that an iptables-mode kube-proxy made (seen only when made by iptables-nft).
    pub iptables_rules: bool,
    /// There is the device on which an IPVS-mode kube-proxy keeps the addresses.
    pub ipvs_device: bool,
    /// Other processes named kube-proxy in this network namespace.
    pub proxies: Vec<Proxy>,
    /// Whether packets are forwarded, per family that this node has.
    pub forwarding: Vec<(Family, bool)>,
    /// There are bridges, so pods may talk to each other beneath the IP layer.
    pub bridges: bool,
    /// Whether bridged packets pass the rules; `None` without br_netfilter.
    pub bridge_calls: Option<bool>,
    /// Whether the kernel can limit the memory of pods.
    pub memory_cgroup: bool,
    /// There is a default route in some family.
    pub default_route: bool,
    /// Tracked connections, and how many there may be.
    pub connections: Option<(u64, u64)>,
}

/// Whether a part of the kernel is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// In use or built in.
    Loaded,
    /// A module that can be loaded.
    Loadable,
    /// Not made for this kernel.
    Absent,
    /// The list of modules cannot be read, as within a container without /lib/modules.
    Unknown,
}

/// A process named kube-proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Its process ID.
    pub pid: u32,
    /// Its program.
    pub program: PathBuf,
    /// The program is the file that we run from.
    pub ours: bool,
}

// === impl Facts ===

impl Facts {
    /// Looks at this node.
    pub fn gather(mode: Mode) -> Self {
        let kernel = word("/proc/sys/kernel/osrelease").unwrap_or_default();
        let families: Vec<_> = Family::ALL
            .into_iter()
            .filter(|&family| family == Family::V4 || Path::new("/proc/net/if_inet6").exists())
            .collect();
        let tables = ["filter", "nat", "mangle", "raw"];
        let devices = devices();
        Self {
            mode,
            nf_tables: families.iter().map(|&family| (family, probe::nf_tables(family))).collect(),
            ipvs: ipvs(&kernel),
            iptables_trouble: Tools::require(Family::V4).err().map(|error| error.to_string()),
            legacy_tables: [AddressFamily::Inet, AddressFamily::Inet6].into_iter().flat_map(xtables::tables).collect(),
            iptables_nft_tables: tables.into_iter().filter(|name| probe::has_table(Family::V4, name)).collect(),
            nftables_rules: families.iter().any(|&family| probe::has_table(family, "kube-proxy")),
            iptables_rules: families
                .iter()
                .any(|&family| probe::chains(family, "nat").iter().any(|chain| chain == "KUBE-SERVICES")),
            ipvs_device: devices.iter().any(|device| device.name == "kube-ipvs0"),
            proxies: proxies(),
            forwarding: families.iter().map(|&family| (family, forwards(family))).collect(),
            bridges: devices.iter().any(|device| device.kind == "bridge"),
            bridge_calls: word("/proc/sys/net/bridge/bridge-nf-call-iptables").map(|value| value == "1"),
            memory_cgroup: memory_cgroup(),
            default_route: has_default_route(&read("/proc/net/route"), &read("/proc/net/ipv6_route")),
            connections: connections(),
            kernel,
        }
    }
}

/// The text of a file; empty when it cannot be read.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The one word in a file.
fn word(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn entries(folder: &str) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// A network device.
struct Device {
    name: String,
    kind: String,
}

/// The devices of our own network namespace: `/sys/class/net` may be that of another.
fn devices() -> Vec<Device> {
    const GET_LINK: u16 = 18; // RTM_GETLINK, with struct ifinfomsg
    const HEADER: usize = 16;
    const NAME: u16 = 3; // IFLA_IFNAME
    const INFO: u16 = 18; // IFLA_LINKINFO
    const INFO_KIND: u16 = 1;
    let mut devices = Vec::new();
    let mut request = Buffer::new();
    request.message(GET_LINK, DUMP, 1, &[0; HEADER]);
    let read = |mut socket: Socket| {
        socket.request(&request, |message| {
            let body = message.payload.get(HEADER..).unwrap_or(&[]);
            let kind = attribute(body, INFO).and_then(|info| attribute(info, INFO_KIND));
            let word = |payload: Option<&[u8]>| payload.map(text).unwrap_or_default().to_owned();
            devices.push(Device { name: word(attribute(body, NAME)), kind: word(kind) });
        })
    };
    match Socket::open(SockProtocol::NetlinkRoute).and_then(read) {
        Ok(()) => devices,
        Err(_) => Vec::new(),
    }
}

fn ipvs(kernel: &str) -> Presence {
    if Path::new("/proc/net/ip_vs").exists() {
        return Presence::Loaded;
    }
    let modules = ["modules.dep", "modules.builtin"].map(|file| read(&format!("/lib/modules/{kernel}/{file}")));
    if modules.iter().all(String::is_empty) {
        return Presence::Unknown;
    }
    // "kernel/net/netfilter/ipvs/ip_vs.ko.xz: ..."
    let listed = modules.iter().any(|list| list.contains("/ip_vs.ko"));
    if listed { Presence::Loadable } else { Presence::Absent }
}

fn forwards(family: Family) -> bool {
    let path = match family {
        Family::V4 => "/proc/sys/net/ipv4/ip_forward",
        Family::V6 => "/proc/sys/net/ipv6/conf/all/forwarding",
    };
    word(path).is_some_and(|value| value != "0")
}

fn memory_cgroup() -> bool {
    // Version 2, and the list of version 1: "memory <hierarchy> <cgroups> <enabled>".
    read("/sys/fs/cgroup/cgroup.controllers").split_whitespace().any(|controller| controller == "memory")
        || read("/proc/cgroups").lines().any(|line| line.starts_with("memory\t") && line.ends_with("\t1"))
}

/// Reads the kernel's route tables of IPv4 (`/proc/net/route`) and IPv6 (`/proc/net/ipv6_route`).
fn has_default_route(ipv4: &str, ipv6: &str) -> bool {
    const REJECT: u32 = 0x200; // RTF_REJECT: "unreachable" routes
    let usable = |flags: &str| u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & REJECT == 0);
    ipv4.lines().skip(1).any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        matches!(fields[..], [_, "00000000", _, flags, _, _, _, "00000000", ..] if usable(flags))
    }) || ipv6.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        matches!(fields[..], [to, "00", _, _, _, _, _, _, flags, device]
            if to.bytes().all(|digit| digit == b'0') && device != "lo" && usable(flags))
    })
}

fn connections() -> Option<(u64, u64)> {
    let number = |name: &str| word(&format!("/proc/sys/net/netfilter/{name}"))?.parse().ok();
    Some((number("nf_conntrack_count")?, number("nf_conntrack_max")?))
}

fn proxies() -> Vec<Proxy> {
    let own_network = fs::read_link("/proc/self/ns/net").ok();
    let own_program = identity(Path::new("/proc/self/exe"));
    let mut proxies = Vec::new();
    for process in entries("/proc") {
        let Some(pid) = process.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()) else { continue };
        let named = fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim() == "kube-proxy");
        if named && pid != std::process::id() && fs::read_link(process.join("ns/net")).ok() == own_network {
            let program = process.join("exe");
            let ours = own_program.is_some() && identity(&program) == own_program;
            proxies.push(Proxy { pid, program: fs::read_link(&program).unwrap_or_default(), ours });
        }
    }
    proxies
}

/// What tells a file from all others: its device and inode number.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|data| (data.dev(), data.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IPV4_HEAD: &str = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n";

    #[test]
    fn a_default_route_is_told_from_others() {
        let none = "00000000000000000000000000000000";
        for (ipv4, ipv6, expected) in [
            ("eth0 00000000 010200C0 0003 0 0 0 00000000 0 0 0\n", "", true),
            ("eth0 000200C0 00000000 0001 0 0 0 00FFFFFF 0 0 0\n", "", false),
            ("* 00000000 00000000 0200 0 0 0 00000000 0 0 0\n", "", false),
            ("eth0 00000000 010200C0 0003 0 0 0 00000080 0 0 0\n", "", false),
            ("", "", false),
            ("", "@ 00 @ 00 fe800000000000000000000000000001 00000400 1 0 00000003 eth0\n", true),
            ("", "@ 00 @ 00 @ ffffffff 1 0 00200200 lo\n", false),
            ("", "@ 40 @ 00 @ 00000100 1 0 00000001 eth0\n", false),
        ] {
            let ipv4 = format!("{IPV4_HEAD}{ipv4}");
            assert_eq!(has_default_route(&ipv4, &ipv6.replace('@', none)), expected, "{ipv4} / {ipv6}");
        }
    }
}
