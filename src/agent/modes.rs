//! The three modes, side by side: the only place that knows all backends.
//!
//! Picks and constructs; what a backend does is its own affair.

use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;

use crate::backend::{Backend, Error};
use crate::config::{self, Config, Mode};
use crate::iptables::{self, Iptables};
use crate::ipvs::{self, Ipvs};
use crate::kernel::nftables::{Nftables, is_absent};
use crate::kernel::{ipset, sysctl};
use crate::model::Family;
use crate::nftables::{self, Table};
use crate::plan::NodeFacts;

/// Removes what former modes left behind.
pub type Leftovers = Box<dyn FnOnce() -> Result<(), Error>>;

/// Why an administrator who chose IPVS mode should choose again.
pub const IPVS_DEPRECATION: &str = "mode ipvs is deprecated: Kubernetes deprecated it in v1.35 and will remove it; the mode \
    to move to is nftables: write `mode: nftables` and restart, what this mode programmed is then removed";

/// The sets of upstream's IPVS mode (contract 10.5), less their prefix: `KUBE-` for IPv4, `KUBE-6-` for IPv6.
const IPSETS: [&str; 17] = [
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-SOURCE-CIDR",
    "LOAD-BALANCER-SOURCE-IP",
    "NODE-PORT-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
];
/// Longer names are cut (`IPSET_MAXNAMELEN` less the zero at its end).
const LONGEST_IPSET: usize = 31;

/// The families that this node has, and the mode can serve (contract 3.3).
///
/// # Errors
/// One line that says why there is none.
pub fn families(mode: Mode) -> Result<Vec<Family>, String> {
    let v6 = Path::new("/proc/net/if_inet6").exists()
        && std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6").map_or(true, |text| text.trim() != "1");
    let (mut served, mut lacking) = (Vec::new(), Vec::new());
    for family in Family::ALL.into_iter().filter(|family| *family == Family::V4 || v6) {
        match if mode == Mode::Iptables { iptables::supported(family) } else { Ok(()) } {
            Ok(()) => served.push(family),
            Err(reason) => {
                log::info!("no iptables for {family}: {reason}");
                lacking.push(reason);
            }
        }
    }
    match served.is_empty() {
        true => Err(format!(
            "iptables is not available on this host: {}; install it, or choose mode nftables",
            lacking.join("; ")
        )),
        false => Ok(served),
    }
}

/// Checks that the node's first family is served.
///
/// # Errors
/// One line that says so if not.
pub fn check_primary(served: &[Family], primary: Family) -> Result<(), String> {
    if served.contains(&primary) {
        return Ok(());
    }
    Err(format!(
        "no support for primary IP family \"{primary}\": this node has no {primary}, or no iptables for it; enable that, or \
         set bindAddress to an address of the other family"
    ))
}

/// The backend of a family in the configured mode, ready for its first sync.
///
/// # Errors
/// One line that says what this node lacks.
pub fn backend(config: &Config, family: Family) -> Result<Box<dyn Backend>, String> {
    let backend: Result<Box<dyn Backend>, Error> = match config.mode {
        Mode::Nftables => {
            nftables::check_kernel()?;
            Table::new(family).map(|table| Box::new(table) as _)
        }
        Mode::Iptables => Iptables::new(family, iptables_options(config)).map(|rules| Box::new(rules) as _),
        Mode::Ipvs => ipvs_options(&config.ipvs)
            .and_then(|options| Ipvs::new(family, options))
            .and_then(|mut servers| servers.start().map(|()| Box::new(servers) as _)),
    };
    backend.map_err(|error| error.to_string())
}

/// Does what needs full privileges beyond making the [`backend`].
///
/// # Errors
/// One line that says what the kernel refused.
pub fn prepare(config: &Config, facts: &NodeFacts) -> Result<(), String> {
    match config.mode {
        Mode::Iptables => iptables::prepare(facts, iptables_options(config)).map_err(|error| error.to_string()),
        Mode::Nftables | Mode::Ipvs => Ok(()),
    }
}

/// What of these families has to go once the rules of this mode are in place. Tries everything before it complains.
pub fn leftovers(config: &Config, families: Vec<Family>) -> Leftovers {
    let (mode, exclude) = (config.mode, config.ipvs.exclude_cidrs.clone());
    let remove = move |family| match mode {
        Mode::Nftables => iptables::cleanup(family).and(remove_ipvs(family, &exclude)).and(remove_ipsets(family)),
        Mode::Iptables => remove_nftables(family).and(remove_ipvs(family, &exclude)),
        Mode::Ipvs => remove_nftables(family).and(iptables::cleanup(family)).and(remove_ipsets(family)),
    };
    Box::new(move || families.into_iter().map(remove).fold(Ok(()), Result::and))
}

/// Removes what any mode ever programmed (contract 2.6), but for virtual servers in `ipvs.excludeCIDRs`. Tries
/// everything before it complains.
///
/// # Errors
/// What could not be removed.
pub fn cleanup(config: &Config) -> Result<(), String> {
    let remove_ipvs = |family| remove_ipvs(family, &config.ipvs.exclude_cidrs);
    // The rules that use sets go before the sets.
    let steps: [&dyn Fn(Family) -> Result<(), Error>; 4] =
        [&remove_nftables, &iptables::cleanup, &remove_ipvs, &remove_ipsets];
    let outcomes = Family::ALL.into_iter().flat_map(|family| steps.map(|step| step(family)));
    let failures: Vec<String> = outcomes.filter_map(Result::err).map(|error| error.to_string()).collect();
    match &failures[..] {
        [] => Ok(()),
        failures => Err(format!("encountered an error while tearing down rules: {}", failures.join("; "))),
    }
}

/// Whether the kernel has netfilter's netlink: without it nobody ever programmed anything but iptables, for upstream's IPVS
/// mode needs it too, for its ipsets.
fn has_netlink() -> bool {
    !Nftables::open().is_err_and(|error| is_absent(&error))
}

fn remove_nftables(family: Family) -> Result<(), Error> {
    if !has_netlink() {
        return Ok(());
    }
    Table::new(family).and_then(|mut table| table.cleanup())
}

fn remove_ipvs(family: Family, exclude: &[IpNet]) -> Result<(), Error> {
    if !has_netlink() {
        return Ok(());
    }
    let options = ipvs::Options { exclude: exclude.to_vec(), ..ipvs::Options::default() };
    Ipvs::new(family, options).and_then(|mut servers| servers.cleanup())
}

/// Whether upstream's IPVS mode has a set of this name. Others' sets begin with `KUBE-` too: kube-router keeps network
/// policies in such.
fn is_ipset(name: &str, family: Family) -> bool {
    let prefix = if family == Family::V4 { "KUBE-" } else { "KUBE-6-" };
    let Some(rest) = name.strip_prefix(prefix) else { return false };
    let room = LONGEST_IPSET - prefix.len();
    IPSETS.iter().any(|set| rest == &set[..set.len().min(room)])
}

fn remove_ipsets(family: Family) -> Result<(), Error> {
    if !has_netlink() {
        return Ok(());
    }
    let removed = ipset::destroy(|name| is_ipset(name, family));
    removed.map_err(|error| Error(format!("cannot remove all ipsets of IPVS mode: {error}")))
}

fn iptables_options(config: &Config) -> iptables::Options {
    let liberal = sysctl::read(Path::new("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal"));
    iptables::Options {
        localhost_node_ports: config.localhost_node_ports,
        tcp_be_liberal: liberal.is_ok_and(|value| value != 0),
    }
}

fn ipvs_options(config: &config::Ipvs) -> Result<ipvs::Options, Error> {
    let seconds = |timeout: Option<Duration>| timeout.map_or(0, |timeout| timeout.as_secs() as u32);
    Ok(ipvs::Options {
        scheduler: ipvs::Scheduler::parse(&config.scheduler).map_err(|malformed| Error(malformed.to_string()))?,
        exclude: config.exclude_cidrs.clone(),
        strict_arp: config.strict_arp,
        timeouts: [config.tcp_timeout, config.tcp_fin_timeout, config.udp_timeout].map(seconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_sets_of_upstream_s_ipvs_mode_are_taken_for_such() {
        for (name, family) in [
            ("KUBE-LOOP-BACK", Some(Family::V4)),
            ("KUBE-NODE-PORT-LOCAL-SCTP-HASH", Some(Family::V4)),
            ("KUBE-6-IPVS-IPS", Some(Family::V6)),
            ("KUBE-6-LOAD-BALANCER-SOURCE-CID", Some(Family::V6)),
            ("KUBE-6-NODE-PORT-LOCAL-SCTP-HAS", Some(Family::V6)),
            ("KUBE-6-LOAD-BALANCER-SOURCE-CIDR", None),
            ("KUBE-LOAD-BALANCER-SOURCE-CID", None),
            ("KUBE-SRC-AAAAAAAAAAAAAAAA", None),
            ("KUBE-DST-BBBBBBBBBBBBBBBB", None),
            ("KUBE-6-SRC-AAAAAAAAAAAAAAAA", None),
            ("KUBE-CLUSTER-IP-MINE", None),
            ("KUBE-", None),
            ("MY-CLUSTER-IP", None),
        ] {
            for of in Family::ALL {
                assert_eq!(is_ipset(name, of), family == Some(of), "{name} {of}");
            }
        }
    }
}
