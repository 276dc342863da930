//! The node of the demo: namespaces, pods on cables, a folder of manifests, and kube-proxy itself as a process like on
//! any node.
//!
//! Knows who is where; must not know what to expect of them.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::libc;

use super::pod::Pod;
use super::{ROLE, own_program};
use crate::kernel::namespaces;
use crate::kernel::sysctl;
use crate::kernel::veth::Cables;
use crate::observe::systemd::SYNCED;

/// The manifest of the Service that loses an endpoint.
pub const WEB: &str = "web.yaml";
const WEB_TEXT: &str = include_str!("../../configs/demo/web.yaml");
/// The manifests, as they are in the source tree.
const MANIFESTS: [(&str, &str); 5] = [
    (WEB, WEB_TEXT),
    ("node.yaml", include_str!("../../configs/demo/node.yaml")),
    ("sticky.yaml", include_str!("../../configs/demo/sticky.yaml")),
    ("udp.yaml", include_str!("../../configs/demo/udp.yaml")),
    ("empty.yaml", include_str!("../../configs/demo/empty.yaml")),
];

/// The flags of kube-proxy, besides where the manifests are. Without conntrack settings, as only the machine's first
/// network namespace has them all; without a pause between syncs, to show how long one takes.
const FLAGS: [&str; 9] = [
    "--proxy-mode=nftables",
    "--hostname-override=demo",
    "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56",
    "--iptables-min-sync-period=0s",
    "--conntrack-max-per-core=0",
    "--conntrack-min=0",
    "--conntrack-tcp-timeout-established=0",
    "--conntrack-tcp-timeout-close-wait=0",
    "--oom-score-adj=0",
];

/// The web pods, by name and the last part of their addresses.
const PODS: [(&str, u8); 3] = [("web-1", 0x11), ("web-2", 0x12), ("web-3", 0x13)];
/// Whether links look for others with their link-local address before they use it, which takes a second.
pub const DUPLICATE_DETECTION: &str = "/proc/sys/net/ipv6/conf/default/accept_dad";
/// How long kube-proxy may take to be ready.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(100);

/// The node with all that is on it.
pub struct Node {
    /// The namespaces belong to a user namespace.
    pub as_user: bool,
    /// The kernel has IPv6.
    pub ipv6: bool,
    /// A client in a pod.
    pub client: Pod,
    /// A client on the other side of the node's only cable to the world.
    pub outside: Pod,
    folder: PathBuf,
    _web: Vec<Pod>,
}

/// kube-proxy, running.
pub struct Proxy {
    process: Child,
    /// From its start until it said that everything is in the kernel.
    pub ready_after: Duration,
}

// === impl Node ===

impl Node {
    /// Moves this process onto a new node. It must have one thread only.
    ///
    /// # Errors
    /// One line that says what failed, and what to do about it.
    pub fn build() -> Result<Self, String> {
        let scratch = std::env::temp_dir();
        let as_user = namespaces::leave_node(&scratch).map_err(|error| forbidden(&error))?;
        let mut cables = Cables::open().map_err(|error| forbidden(&error))?;
        cables.up("lo").map_err(|error| forbidden(&error))?;
        let ipv6 = Path::new("/proc/net/if_inet6").exists();
        set("/proc/sys/net/ipv4/ip_forward", 1)?;
        if ipv6 {
            set("/proc/sys/net/ipv6/conf/all/forwarding", 1)?;
            set(DUPLICATE_DETECTION, 0)?;
        }
        let links = |v4: [[u8; 4]; 2], v6: [(u16, u16, u16, u16); 2]| {
            let v6 = v6.map(|(a, b, c, last)| IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, last)));
            let mut links = vec![(IpAddr::V4(Ipv4Addr::from(v4[0])), IpAddr::V4(Ipv4Addr::from(v4[1])))];
            links.extend(ipv6.then_some((v6[0], v6[1])));
            links
        };
        let in_cluster = |last: u8| {
            // 10.244.0.11 and fd00:10:244::11 look alike.
            let decimal = last / 16 * 10 + last % 16;
            links(
                [[10, 244, 0, decimal], [10, 244, 0, 1]],
                [(0xfd00, 0x10, 0x244, last.into()), (0xfd00, 0x10, 0x244, 1)],
            )
        };
        let world = links([[192, 0, 2, 2], [192, 0, 2, 1]], [(0x2001, 0xdb8, 0, 2), (0x2001, 0xdb8, 0, 1)]);
        let web = PODS.iter().map(|(name, last)| Pod::start(name, &in_cluster(*last))).collect::<Result<_, _>>()?;
        let client = Pod::start("client", &in_cluster(0x21))?;
        let outside = Pod::start("outside", &world)?;
        for (gateway, _) in world {
            cables
                .default_route("outside", gateway)
                .map_err(|error| format!("cannot set the node's default route: {error}"))?;
        }
        let folder = scratch.join("manifests");
        let node = Self { as_user, ipv6, client, outside, folder, _web: web };
        fs::create_dir(&node.folder).map_err(|error| format!("cannot make {}: {error}", node.folder.display()))?;
        for (name, text) in MANIFESTS {
            node.write(name, text)?;
        }
        Ok(node)
    }

    /// Writes a manifest, all at once.
    ///
    /// # Errors
    /// When that is impossible.
    pub fn write(&self, name: &str, text: &str) -> Result<(), String> {
        let (draft, place) = (self.folder.join(format!(".{name}")), self.folder.join(name));
        fs::write(&draft, text)
            .and_then(|()| fs::rename(&draft, &place))
            .map_err(|error| format!("cannot write {}: {error}", place.display()))
    }

    /// Starts kube-proxy, and waits until it says that its rules are in the kernel. With a verbosity, its log is shown.
    ///
    /// # Errors
    /// When it ends or does not get ready; the end of its log is part of the message.
    pub fn start_proxy(&self, verbosity: Option<u32>) -> Result<Proxy, String> {
        let (words, log) = (self.folder.with_file_name("notify"), self.folder.with_file_name("log"));
        let failed = |error: io::Error| format!("cannot start kube-proxy: {error}");
        let ear = UnixDatagram::bind(&words).map_err(failed)?;
        ear.set_read_timeout(Some(LOOK)).map_err(failed)?;
        let stderr = match verbosity {
            Some(_) => Stdio::inherit(),
            None => fs::File::create(&log).map_err(failed)?.into(),
        };
        let started = Instant::now();
        let process = Command::new(own_program())
            .arg("demo")
            .env(ROLE, format!("proxy {} {}", verbosity.unwrap_or(0), self.folder.display()))
            .env("NOTIFY_SOCKET", &words)
            .stdin(Stdio::null())
            .stderr(stderr)
            .spawn()
            .map_err(failed)?;
        let mut proxy = Proxy { process, ready_after: Duration::ZERO };
        while started.elapsed() < PATIENCE {
            let mut word = [0; 1024];
            let length = ear.recv(&mut word).unwrap_or(0);
            if String::from_utf8_lossy(&word[..length]).contains(SYNCED) {
                proxy.ready_after = started.elapsed();
                return Ok(proxy);
            }
            if proxy.process.try_wait().map_err(failed)?.is_some() {
                break;
            }
        }
        let log = fs::read_to_string(log).unwrap_or_default();
        let last = log.lines().last().unwrap_or("it did not say why");
        Err(format!("kube-proxy did not get ready: {last}"))
    }
}

/// The manifest [`WEB`] without the lines of a pod.
pub fn without(pod: &str) -> String {
    let of_pod = format!("name: {pod}}}");
    let stays = |line: &&str| !line.contains(&of_pod);
    WEB_TEXT.split_inclusive('\n').filter(stays).collect()
}

/// Becomes kube-proxy, with `rest` of the role: verbosity and folder. Returns only if that fails.
///
/// # Errors
/// One line that says why.
pub fn become_proxy(rest: &str) -> Result<(), String> {
    use std::os::unix::process::CommandExt;

    let (verbosity, folder) = rest.split_once(' ').ok_or("a proxy needs verbosity and folder")?;
    let error = Command::new(own_program())
        .args(FLAGS)
        .args([format!("--v={verbosity}"), format!("--manifests={folder}")])
        .env_remove(ROLE)
        .exec();
    Err(format!("cannot become kube-proxy: {error}"))
}

/// Sets a setting of the network namespace that this process is in.
///
/// # Errors
/// Where `/proc/sys` cannot be written.
pub fn set(setting: &str, value: u64) -> Result<(), String> {
    sysctl::ensure(Path::new(setting), value).map_err(|error| {
        format!("cannot set {setting} in the demo's own network: {error}; run it where /proc/sys can be written")
    })
}

/// What to do where private namespaces cannot be made.
fn forbidden(error: &io::Error) -> String {
    let way_out = if nix::unistd::geteuid().is_root() {
        "run it with CAP_SYS_ADMIN and CAP_NET_ADMIN (in a container: --privileged)".to_owned()
    } else {
        let program =
            std::env::current_exe().map_or_else(|_| "kube-proxy".to_owned(), |path| path.display().to_string());
        // All three sysctls exist to forbid it; which ones a kernel has depends on its distribution.
        format!(
            "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns or \
             user.max_user_namespaces may forbid it; run it as root: sudo {program} demo"
        )
    };
    let why = match error.raw_os_error() {
        Some(libc::ENOSPC) => "a limit on namespaces is reached".to_owned(),
        _ => error.to_string(),
    };
    format!("the demo cannot make namespaces of its own here: {why}; {way_out}")
}

// === impl Proxy ===

impl Proxy {
    /// Its resident memory in KiB.
    pub fn resident(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).ok()?;
        status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?.parse().ok()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Its rules go with the namespace, so there is nothing to end well.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
