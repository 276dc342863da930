//! What IPVS mode needs of the kernel before it can work: the module, settings, timeouts (contract 10.1, 10.2).
//!
//! Writes a setting only where it differs. Must not touch virtual servers.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use super::Options;
use super::servers::Servers;
use crate::backend::Error;
use crate::kernel::sysctl;

/// The sysctls that are always wanted, and those of `strictARP`.
const ALWAYS: [(&str, u64); 4] = [
    ("net/ipv4/vs/conntrack", 1),
    ("net/ipv4/vs/expire_nodest_conn", 1),
    ("net/ipv4/vs/expire_quiescent_template", 1),
    ("net/ipv4/ip_forward", 1),
];
const STRICT_ARP: [(&str, u64); 2] = [("net/ipv4/conf/all/arp_ignore", 1), ("net/ipv4/conf/all/arp_announce", 2)];
/// From Linux 5.9 on the kernel's own value is right; before 4.1 there is no such setting.
const REUSE: (&str, u64) = ("net/ipv4/vs/conn_reuse_mode", 0);
const REUSE_FROM: (u32, u32) = (4, 1);
const REUSE_UNTIL: (u32, u32) = (5, 9);

/// Opens IPVS, loading its module if need be. `None` when the kernel has none.
///
/// # Errors
/// When it is there but cannot be used.
pub fn open() -> Result<Option<Servers>, Error> {
    let mut servers = Servers::open();
    if servers.as_ref().is_err_and(is_missing) {
        load_module();
        servers = Servers::open();
    }
    match servers {
        Ok(servers) => Ok(Some(servers)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(Error(format!("cannot open netlink for IPVS: {error}; CAP_NET_ADMIN is needed"))),
    }
}

/// Brings the kernel's settings to what IPVS mode needs.
///
/// # Errors
/// When one cannot be written.
pub fn prepare(servers: &mut Servers, options: &Options) -> Result<(), Error> {
    let strict = if options.strict_arp { &STRICT_ARP[..] } else { &[] };
    let reuse = kernel_version().is_some_and(|version| (REUSE_FROM..REUSE_UNTIL).contains(&version));
    for &(name, value) in ALWAYS.iter().chain(strict).chain(reuse.then_some(&REUSE)) {
        sysctl::ensure(&Path::new("/proc/sys").join(name), value).map_err(|error| {
            Error(format!("cannot set sysctl {name} to {value}: {error}; IPVS mode needs it, set it on the host"))
        })?;
    }
    let [tcp, tcp_fin, udp] = options.timeouts;
    if options.timeouts != [0; 3]
        && let Err(error) = servers.ipvs().set_timeouts(tcp, tcp_fin, udp)
    {
        log::error!("cannot set the IPVS timeouts to {tcp} s, {tcp_fin} s (after FIN) and {udp} s (UDP): {error}");
    }
    Ok(())
}

fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// Asks `modprobe`, which knows what the module needs in turn. Whether it helped shows when IPVS is opened again.
fn load_module() {
    let outcome = Command::new("modprobe").arg("ip_vs").stdin(Stdio::null()).stdout(Stdio::null()).status();
    if let Err(error) = outcome {
        log::debug!("cannot run modprobe ip_vs: {error}");
    }
}

/// Major and minor version of the running kernel.
fn kernel_version() -> Option<(u32, u32)> {
    parse_version(nix::sys::utsname::uname().ok()?.release().to_str()?)
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        for (release, version) in [
            ("6.1.0-56-cloud-amd64", Some((6, 1))),
            ("5.15.0", Some((5, 15))),
            ("6.12+rpt-rpi-v8", Some((6, 12))),
            ("x", None),
        ] {
            assert_eq!(parse_version(release), version, "{release}");
        }
    }
}
