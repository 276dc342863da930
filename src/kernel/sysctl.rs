//! Kernel settings under `/proc` and `/sys`: read, and written only where they differ.
//!
//! Must not know where the wanted values come from: it takes plain numbers.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::libc;

/// Above this many entries per machine the minimum no longer counts (contract 11.2).
const MOST_ENTRIES: u64 = 1_048_576;
/// Entries per bucket of the hash table.
const ENTRIES_PER_BUCKET: u64 = 4;

/// The connection tracking settings that are wanted; `None` leaves one as it is. Timeouts in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conntrack {
    /// Most entries, see [`conntrack_max`].
    pub max: Option<u64>,
    /// Timeout of established TCP connections.
    pub tcp_established: Option<u64>,
    /// Timeout of TCP connections that were closed by the other side only.
    pub tcp_close_wait: Option<u64>,
    /// Timeout of UDP flows that were never answered.
    pub udp: Option<u64>,
    /// Timeout of UDP flows that were.
    pub udp_stream: Option<u64>,
    /// Do not call out-of-window TCP segments invalid. Only ever switched on.
    pub tcp_be_liberal: bool,
}

/// Where the settings are; anything but the default is for tests.
#[derive(Clone, Debug)]
pub struct Root {
    /// `/proc/sys`.
    pub sysctl: PathBuf,
    /// `/sys`.
    pub sysfs: PathBuf,
}

/// A setting that could not be brought to its value.
#[derive(Debug)]
pub struct Failure {
    path: PathBuf,
    value: u64,
    cause: io::Error,
}

/// The table size for a machine: `per_core` entries for each CPU but at least `minimum`; `None` when `per_core` is 0
/// and the kernel's choice is to stay (contract 11.2).
pub fn conntrack_max(per_core: u64, minimum: u64, cpus: u64) -> Option<u64> {
    match per_core.saturating_mul(cpus) {
        0 => None,
        scaled if scaled > MOST_ENTRIES => Some(MOST_ENTRIES),
        scaled => Some(scaled.max(minimum)),
    }
}

/// CPUs of the machine that are online, whatever this process may use of them.
pub fn cpus() -> u64 {
    fs::read_to_string("/sys/devices/system/cpu/online")
        .ok()
        .and_then(|list| count_list(&list))
        .or_else(|| std::thread::available_parallelism().ok().map(|n| n.get() as u64))
        .unwrap_or(1)
}

/// How many numbers a list like `0-3,6` names.
fn count_list(list: &str) -> Option<u64> {
    let mut count = 0;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        count += (last.parse::<u64>().ok()? + 1).checked_sub(first.parse().ok()?)?;
    }
    Some(count)
}

/// Brings the connection tracking settings to `wanted`, and returns those that nobody may change in this container
/// or network namespace: what cannot be changed here is for the administrator to know, not a reason to stop.
///
/// # Errors
/// The first setting that could not be written for any other reason.
pub fn apply_conntrack(root: &Root, wanted: &Conntrack) -> Result<Vec<Failure>, Failure> {
    let netfilter = root.sysctl.join("net/netfilter");
    let mut warnings = Vec::new();
    if let Some(max) = wanted.max {
        let path = netfilter.join("nf_conntrack_max");
        tolerate(ensure(&path, max), path, max, &mut warnings)?;
        // Who cannot have the larger table needs no larger hash for it.
        if warnings.is_empty() {
            let path = root.sysfs.join("module/nf_conntrack/parameters/hashsize");
            let buckets = max / ENTRIES_PER_BUCKET;
            tolerate(ensure_at_least(&path, buckets), path, buckets, &mut warnings)?;
        }
    }
    for (name, value) in [
        ("nf_conntrack_tcp_timeout_established", wanted.tcp_established),
        ("nf_conntrack_tcp_timeout_close_wait", wanted.tcp_close_wait),
        ("nf_conntrack_udp_timeout", wanted.udp),
        ("nf_conntrack_udp_timeout_stream", wanted.udp_stream),
        ("nf_conntrack_tcp_be_liberal", wanted.tcp_be_liberal.then_some(1)),
    ] {
        if let Some(value) = value {
            let path = netfilter.join(name);
            tolerate(ensure(&path, value), path, value, &mut warnings)?;
        }
    }
    Ok(warnings)
}

/// Writes a setting unless it has that value. One that cannot be read counts as different.
///
/// # Errors
/// When it cannot be written.
pub fn ensure(path: &Path, value: u64) -> io::Result<()> {
    if read(path).ok() == Some(value) { Ok(()) } else { write(path, value) }
}

/// Writes a setting if it has a smaller value.
fn ensure_at_least(path: &Path, value: u64) -> io::Result<()> {
    if read(path)? >= value { Ok(()) } else { write(path, value) }
}

/// Reads a setting that is one number.
///
/// # Errors
/// When it cannot be read, or is not a number.
pub fn read(path: &Path) -> io::Result<u64> {
    fs::read_to_string(path)?.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

fn write(path: &Path, value: u64) -> io::Result<()> {
    // Neither create nor truncate: a missing setting must stay an error, and these files have no length.
    io::Write::write_all(&mut fs::OpenOptions::new().write(true).open(path)?, value.to_string().as_bytes())
}

/// Sets how soon the kernel kills this process when memory runs out: −1000 (never) to 1000 (first).
///
/// # Errors
/// When `/proc/self/oom_score_adj` cannot be written; lowering the value takes `CAP_SYS_RESOURCE`.
pub fn set_oom_score_adj(value: i32) -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", value.to_string())
}

fn tolerate(result: io::Result<()>, path: PathBuf, value: u64, warnings: &mut Vec<Failure>) -> Result<(), Failure> {
    let Err(cause) = result else { return Ok(()) };
    let out_of_reach = is_out_of_reach(&cause, &path);
    let failure = Failure { path, value, cause };
    if out_of_reach {
        warnings.push(failure);
        return Ok(());
    }
    Err(failure)
}

/// Whether a setting is read-only for everybody here: the file system is mounted so, the kernel shows the file without
/// any write permission (`nf_conntrack_max` outside the first network namespace), or accepts it only from the first
/// network namespace (`hashsize`).
fn is_out_of_reach(cause: &io::Error, path: &Path) -> bool {
    match cause.raw_os_error() {
        Some(libc::EROFS | libc::EOPNOTSUPP) => true,
        Some(libc::EACCES | libc::EPERM) => fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o222 == 0),
        _ => false,
    }
}

// === impl Root ===

impl Default for Root {
    fn default() -> Self {
        Self { sysctl: "/proc/sys".into(), sysfs: "/sys".into() }
    }
}

// === impl Failure ===

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, value, cause) = (self.path.display(), self.value, &self.cause);
        write!(f, "cannot set {path} to {value}: {cause}; set it on the host, or leave it out of the configuration")
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_grows_with_the_machine_within_bounds() {
        for (per_core, minimum, cpus, expected) in [
            (32_768, 131_072, 1, Some(131_072)),
            (32_768, 131_072, 4, Some(131_072)),
            (32_768, 131_072, 8, Some(262_144)),
            (32_768, 131_072, 32, Some(1_048_576)),
            (32_768, 131_072, 64, Some(1_048_576)),
            // Above the limit the minimum is ignored, however large; below it is not.
            (2_000_000, 3_000_000, 1, Some(1_048_576)),
            (1, 3_000_000, 1, Some(3_000_000)),
            (0, 131_072, 8, None),
        ] {
            assert_eq!(conntrack_max(per_core, minimum, cpus), expected, "{per_core} {minimum} {cpus}");
        }
    }

    #[test]
    fn cpu_lists_are_counted() {
        for (list, expected) in
            [("0\n", Some(1)), ("0-3\n", Some(4)), ("0-1,4,6-7\n", Some(5)), ("", None), ("3-1", None), ("x", None)]
        {
            assert_eq!(count_list(list), expected, "{list:?}");
        }
        assert!(cpus() >= 1);
    }

    /// A made-up `/proc/sys` and `/sys`, removed when it is dropped.
    struct Tree(Root, PathBuf);

    impl Tree {
        fn new(name: &str, sysctls: &[(&str, &str)], hashsize: &str) -> Self {
            let base = std::env::temp_dir().join(format!("kube-proxy-sysctl-{name}-{}", std::process::id()));
            let root = Root { sysctl: base.join("proc"), sysfs: base.join("sys") };
            fs::create_dir_all(root.sysctl.join("net/netfilter")).unwrap();
            fs::create_dir_all(root.sysfs.join("module/nf_conntrack/parameters")).unwrap();
            for (setting, value) in sysctls {
                fs::write(root.sysctl.join("net/netfilter").join(setting), value).unwrap();
            }
            fs::write(root.sysfs.join("module/nf_conntrack/parameters/hashsize"), hashsize).unwrap();
            Self(root, base)
        }

        fn value(&self, setting: &str) -> u64 {
            read(&self.0.sysctl.join("net/netfilter").join(setting)).unwrap()
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.1);
        }
    }

    #[test]
    fn settings_are_written_and_the_hash_only_grows() {
        let tree =
            Tree::new("write", &[("nf_conntrack_max", "65536\n"), ("nf_conntrack_udp_timeout", "30\n")], "65536\n");
        let wanted = Conntrack { max: Some(131_072), udp: Some(41), ..Conntrack::default() };
        assert!(apply_conntrack(&tree.0, &wanted).unwrap().is_empty());
        assert_eq!(tree.value("nf_conntrack_max"), 131_072);
        assert_eq!(tree.value("nf_conntrack_udp_timeout"), 41);
        let hashsize = tree.0.sysfs.join("module/nf_conntrack/parameters/hashsize");
        assert_eq!(read(&hashsize).unwrap(), 65_536, "it was large enough");

        let wanted = Conntrack { max: Some(1_048_576), ..Conntrack::default() };
        apply_conntrack(&tree.0, &wanted).unwrap();
        assert_eq!(read(&hashsize).unwrap(), 262_144);
    }

    #[test]
    fn the_hash_is_left_alone_when_the_table_is_out_of_reach() {
        let tree = Tree::new("reach", &[("nf_conntrack_udp_timeout", "30\n")], "1\n");
        // A file that no one may write, here because it lies in the real /proc/sys of a kernel that says so.
        let sysctl = tree.0.sysctl.join("net/netfilter/nf_conntrack_max");
        std::os::unix::fs::symlink("/proc/sys/kernel/ostype", &sysctl).unwrap();
        let wanted = Conntrack { max: Some(131_072), udp: Some(41), ..Conntrack::default() };
        let warnings = apply_conntrack(&tree.0, &wanted).unwrap();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].to_string().contains("nf_conntrack_max to 131072"), "{}", warnings[0]);
        assert_eq!(tree.value("nf_conntrack_udp_timeout"), 41, "the others are set nevertheless");
        assert_eq!(read(&tree.0.sysfs.join("module/nf_conntrack/parameters/hashsize")).unwrap(), 1);
    }

    #[test]
    fn a_setting_that_does_not_exist_is_an_error_in_one_line() {
        let tree = Tree::new("missing", &[], "1\n");
        let wanted = Conntrack { tcp_be_liberal: true, ..Conntrack::default() };
        let error = apply_conntrack(&tree.0, &wanted).unwrap_err().to_string();
        assert!(error.contains("nf_conntrack_tcp_be_liberal to 1") && !error.contains('\n'), "{error}");
        let nothing = apply_conntrack(&tree.0, &Conntrack::default()).unwrap();
        assert!(nothing.is_empty(), "what is not wanted is not touched");
    }
}
