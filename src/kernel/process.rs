//! What this process costs the node, read from `/proc/self` (proc(5)).
//!
//! Must not keep anything: every call reads anew.

use std::fs;
use std::io;

use nix::unistd::{SysconfVar, sysconf};

/// A reading of the process's use of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// User and system time, in seconds.
    pub cpu_seconds: f64,
    /// Virtual memory, in bytes.
    pub virtual_bytes: u64,
    /// Limit of virtual memory, in bytes; `None` is unlimited.
    pub virtual_max: Option<u64>,
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
    /// Open descriptors.
    pub open_files: u64,
    /// Limit of open descriptors.
    pub max_files: u64,
    /// When the process began, in seconds since the epoch.
    pub started: f64,
    /// Bytes received by all interfaces of the network namespace.
    pub received_bytes: u64,
    /// Bytes sent by them.
    pub transmitted_bytes: u64,
}

impl Usage {
    /// Takes a reading.
    ///
    /// # Errors
    /// When `/proc` is not there or cannot be read.
    pub fn read() -> io::Result<Self> {
        let ticks = setting(SysconfVar::CLK_TCK, 100);
        let page = setting(SysconfVar::PAGE_SIZE, 4096);
        let stat = Stat::parse(&fs::read_to_string("/proc/self/stat")?).ok_or(io::ErrorKind::InvalidData)?;
        let limits = fs::read_to_string("/proc/self/limits")?;
        let (received_bytes, transmitted_bytes) = traffic(&fs::read_to_string("/proc/self/net/dev")?);
        Ok(Self {
            cpu_seconds: stat.cpu_ticks as f64 / ticks as f64,
            virtual_bytes: stat.virtual_bytes,
            virtual_max: limit(&limits, "Max address space"),
            resident_bytes: stat.resident_pages * page,
            // One of them is the listing itself.
            open_files: (fs::read_dir("/proc/self/fd")?.count() as u64).saturating_sub(1),
            max_files: limit(&limits, "Max open files").unwrap_or(u64::MAX),
            started: boot_time(&fs::read_to_string("/proc/stat")?) as f64 + stat.started_ticks as f64 / ticks as f64,
            received_bytes,
            transmitted_bytes,
        })
    }
}

/// The fields of `/proc/self/stat` that matter.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: u64,
    started_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(line: &str) -> Option<Self> {
        // The command name in parentheses may hold anything; what follows the last one begins with field 3.
        let fields: Vec<&str> = line.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            started_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

fn setting(name: SysconfVar, fallback: u64) -> u64 {
    sysconf(name).ok().flatten().and_then(|value| u64::try_from(value).ok()).unwrap_or(fallback)
}

/// The soft limit in a line of `/proc/self/limits`; `None` is unlimited.
fn limit(limits: &str, name: &str) -> Option<u64> {
    limits.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace().next()?.parse().ok()
}

fn boot_time(stat: &str) -> u64 {
    stat.lines().find_map(|line| line.strip_prefix("btime ")).and_then(|time| time.trim().parse().ok()).unwrap_or(0)
}

/// Sums of the first (received) and ninth (sent) column of `/proc/self/net/dev`.
fn traffic(dev: &str) -> (u64, u64) {
    dev.lines().filter_map(|line| line.split_once(':')).fold((0, 0), |sum, (_, counters)| {
        let mut counters = counters.split_ascii_whitespace().map(|count| count.parse::<u64>().unwrap_or(0));
        (sum.0 + counters.next().unwrap_or(0), sum.1 + counters.nth(7).unwrap_or(0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_cannot_confuse_the_reader() {
        let line = "7 (a) b (c)) S 1 7 7 0 -1 4194304 90 0 0 0 11 22 0 0 20 0 1 0 345 6789120 321 18446744073709551615";
        assert_eq!(
            Stat::parse(line),
            Some(Stat { cpu_ticks: 33, started_ticks: 345, virtual_bytes: 6_789_120, resident_pages: 321 })
        );
        assert_eq!(Stat::parse("7 (a) S 1"), None);
    }

    #[test]
    fn limits_boot_time_and_traffic_are_found() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 524288               files     \n\
                      Max address space         unlimited            unlimited            bytes     \n";
        assert_eq!(limit(limits, "Max open files"), Some(1024));
        assert_eq!(limit(limits, "Max address space"), None);
        assert_eq!(boot_time("cpu 1 2\nbtime 1700000000\nprocesses 4\n"), 1_700_000_000);
        let dev = "Inter-|   Receive   |  Transmit\n face |bytes packets\n    lo: 10 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0\n\
                   eth0:300 1 0 0 0 0 0 0 400 1 0 0 0 0 0 0\n";
        assert_eq!(traffic(dev), (310, 420));
    }

    #[test]
    fn this_process_is_real() {
        let usage = Usage::read().unwrap();
        assert!(usage.resident_bytes > 0 && usage.virtual_bytes >= usage.resident_bytes, "{usage:?}");
        assert!(usage.open_files >= 3 && usage.max_files > 0, "{usage:?}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(usage.started > 0.0 && usage.started < now + 2.0, "{usage:?} at {now}");
    }
}
