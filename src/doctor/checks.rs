//! Judges what was seen of the node: each check is a pure function of the facts, with a verdict, plain words, and how
//! to mend it.

use super::facts::{Facts, Presence};
use super::probe::Answer;
use super::report::{Check, Verdict};
use crate::config::Mode;
use crate::model::Family;

/// All checks of the node itself, in the order in which they are shown.
pub fn all(facts: &Facts) -> Vec<Check> {
    let checks: [fn(&Facts) -> Check; 12] = [
        kernel,
        nf_tables,
        ipvs,
        iptables_tools,
        iptables_mix,
        other_proxies,
        leftovers,
        forwarding,
        bridges,
        memory_cgroup,
        default_route,
        connections,
    ];
    checks.iter().map(|check| check(facts)).collect()
}

/// nftables mode needs 5.13 (contract 8.1).
fn kernel(facts: &Facts) -> Check {
    let mut numbers = facts.kernel.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let check = Check::ok("kernel", format!("Linux {}", facts.kernel));
    if version >= (5, 13) {
        return check;
    }
    let verdict = if facts.mode == Mode::Nftables { Verdict::Fail } else { Verdict::Warn };
    check.but(
        verdict,
        format!("Linux {} is older than 5.13, which nftables mode needs", facts.kernel),
        "upgrade the kernel, or set `mode: iptables`",
    )
}

fn nf_tables(facts: &Facts) -> Check {
    let check = Check::ok("nf_tables", "all that is needed is there");
    let needed = if facts.mode == Mode::Nftables { Verdict::Fail } else { Verdict::Warn };
    let mut missing = Vec::new();
    for (_, answer) in &facts.nf_tables {
        match answer {
            Answer::Missing(modules) => missing.extend_from_slice(modules),
            Answer::Forbidden => {
                return check.but(Verdict::Warn, "not examined: that takes CAP_NET_ADMIN", "run this as root");
            }
            Answer::Silent(error) => {
                return check.but(
                    needed,
                    format!("the kernel has no nf_tables ({error})"),
                    "modprobe nf_tables; if there is no such module, take a kernel with CONFIG_NF_TABLES",
                );
            }
        }
    }
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return check;
    }
    check.but(
        needed,
        format!("the kernel lacks {}", missing.join(", ")),
        format!("modprobe {}; if there is no such module, take a kernel with it", missing.join(" ")),
    )
}

fn ipvs(facts: &Facts) -> Check {
    let check = Check::ok("ipvs", "not needed in this mode");
    if facts.mode != Mode::Ipvs {
        return check;
    }
    match facts.ipvs {
        Presence::Loaded => Check::ok("ipvs", "loaded"),
        Presence::Loadable => check.but(
            Verdict::Warn,
            "the module ip_vs is there, but not loaded",
            "echo ip_vs >/etc/modules-load.d/ip_vs.conf && modprobe ip_vs",
        ),
        Presence::Absent => check.but(
            Verdict::Fail,
            "this kernel has no module ip_vs",
            "set `mode: nftables`, or take a kernel with CONFIG_IP_VS",
        ),
        Presence::Unknown => check.but(
            Verdict::Warn,
            "not loaded, and /lib/modules of this kernel cannot be read",
            "modprobe ip_vs on the node, and mount its /lib/modules into the pod",
        ),
    }
}

/// The only mode that runs programs of others.
fn iptables_tools(facts: &Facts) -> Check {
    match &facts.iptables_trouble {
        _ if facts.mode != Mode::Iptables => Check::ok("tools", "none are needed in this mode"),
        None => Check::ok("tools", "iptables is there"),
        Some(trouble) => Check::ok("tools", "").but(
            Verdict::Fail,
            trouble,
            "set `mode: nftables` in config.conf; or apt-get install iptables; or take the image with iptables",
        ),
    }
}

/// The kernel runs both rulesets, one after the other; the tools of one do not show the other.
fn iptables_mix(facts: &Facts) -> Check {
    let check = Check::ok("iptables", "one kind of iptables is in use, or none");
    if facts.legacy_tables.is_empty() || facts.iptables_nft_tables.is_empty() {
        return check;
    }
    check.but(
        Verdict::Warn,
        format!(
            "iptables-legacy (tables {}) and iptables-nft (tables {}) are both in use",
            facts.legacy_tables.join(", "),
            facts.iptables_nft_tables.join(", ")
        ),
        "settle for one with `update-alternatives --set iptables /usr/sbin/iptables-nft` (and ip6tables), then reboot",
    )
}

fn other_proxies(facts: &Facts) -> Check {
    let list = |proxies: &[super::facts::Proxy]| {
        proxies
            .iter()
            .map(|proxy| format!("{} ({})", proxy.pid, proxy.program.display()))
            .collect::<Vec<_>>()
            .join(", ")
    };
    match &facts.proxies[..] {
        [] => Check::ok("processes", "no kube-proxy is running"),
        [one] if one.ours => Check::ok("processes", format!("kube-proxy is running, process {}", one.pid)),
        [one] => Check::ok("processes", "").but(
            Verdict::Warn,
            format!("a kube-proxy of another file is running: {}", list(std::slice::from_ref(one))),
            "two at a time write the same rules: before you start this one, stop that one",
        ),
        several => Check::ok("processes", "").but(
            Verdict::Fail,
            format!("{} kube-proxies are running: {}", several.len(), list(several)),
            "stop all but one, for they write the same rules: `systemctl disable --now kube-proxy` for the service, \
             `kubectl -n kube-system get pods -o wide` for pods",
        ),
    }
}

/// Rules of a mode that is not configured still catch packets.
fn leftovers(facts: &Facts) -> Check {
    let found: Vec<_> = [
        (facts.nftables_rules, Mode::Nftables, "the nftables table kube-proxy"),
        (facts.iptables_rules && facts.mode != Mode::Ipvs, Mode::Iptables, "the iptables chain KUBE-SERVICES"),
        (facts.ipvs_device, Mode::Ipvs, "the device kube-ipvs0"),
    ]
    .into_iter()
    .filter(|&(there, mode, _)| there && mode != facts.mode)
    .map(|(_, _, what)| what)
    .collect();
    let check = Check::ok("leftovers", "no rules of another mode");
    if found.is_empty() {
        return check;
    }
    check.but(
        Verdict::Fail,
        format!("rules of another mode are in the kernel: {}", found.join(", ")),
        "stop kube-proxy, run `kube-proxy --cleanup`, start it again",
    )
}

fn forwarding(facts: &Facts) -> Check {
    let check = Check::ok("forwarding", "packets are forwarded");
    let off = |wanted: Family| facts.forwarding.iter().any(|&(family, on)| family == wanted && !on);
    if off(Family::V4) {
        // IPVS mode switches it on by itself (contract 10.2).
        let verdict = if facts.mode == Mode::Ipvs { Verdict::Warn } else { Verdict::Fail };
        return check.but(
            verdict,
            "net.ipv4.ip_forward is 0: nothing passes between pods and other nodes",
            "echo net.ipv4.ip_forward=1 >/etc/sysctl.d/99-kubernetes.conf && sysctl --system",
        );
    }
    if off(Family::V6) {
        return check.but(
            Verdict::Warn,
            "net.ipv6.conf.all.forwarding is 0: nothing passes over IPv6",
            "in a cluster with IPv6: echo net.ipv6.conf.all.forwarding=1 >>/etc/sysctl.d/99-kubernetes.conf && \
             sysctl --system",
        );
    }
    check
}

/// A pod that reaches a Service whose endpoint hangs on the same bridge is answered directly, from an address it never
/// asked, unless bridged packets pass the rules.
fn bridges(facts: &Facts) -> Check {
    let check = Check::ok("bridges", "bridged packets pass the rules, or there is no bridge");
    if !facts.bridges || facts.bridge_calls == Some(true) {
        return check;
    }
    check.but(
        Verdict::Warn,
        "packets between pods on one bridge pass by the rules: Services may fail between pods of the same node",
        "echo br_netfilter >/etc/modules-load.d/br_netfilter.conf && modprobe br_netfilter && \
         sysctl net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1",
    )
}

fn memory_cgroup(facts: &Facts) -> Check {
    let check = Check::ok("memory cgroup", "memory can be limited");
    if facts.memory_cgroup {
        return check;
    }
    check.but(
        Verdict::Fail,
        "the memory controller is off, as Raspberry Pi OS has it: the kubelet will not start",
        "append `cgroup_enable=memory cgroup_memory=1` to the line in /boot/firmware/cmdline.txt and reboot",
    )
}

/// The rules see a packet to a ClusterIP only after a route was found for it.
fn default_route(facts: &Facts) -> Check {
    let check = Check::ok("default route", "there is one");
    if facts.default_route {
        return check;
    }
    check.but(
        Verdict::Fail,
        "there is none: this node itself cannot reach a ClusterIP (network unreachable)",
        "ip route add default via <your router>; or for the Services alone: ip route add <service CIDR> dev <device>",
    )
}

fn connections(facts: &Facts) -> Check {
    match facts.connections {
        None => Check::ok("connections", "not tracked yet"),
        Some((count, most)) => {
            let check = Check::ok("connections", format!("{count} of {most} are tracked"));
            if most == 0 || count < most - most / 10 {
                return check;
            }
            check.but(
                Verdict::Warn,
                format!("{count} of {most} are tracked: when that is full, new ones are dropped"),
                "raise conntrack.maxPerCore or conntrack.min in config.conf",
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::Proxy;
    use super::*;

    fn healthy(mode: Mode) -> Facts {
        Facts {
            mode,
            kernel: "6.12.34+rpt-rpi-v8".to_owned(),
            nf_tables: Family::ALL.map(|family| (family, Answer::Missing(vec![]))).into(),
            ipvs: Presence::Loaded,
            iptables_trouble: None,
            legacy_tables: vec![],
            iptables_nft_tables: vec!["nat"],
            nftables_rules: mode == Mode::Nftables,
            iptables_rules: mode != Mode::Nftables,
            ipvs_device: mode == Mode::Ipvs,
            proxies: vec![],
            forwarding: Family::ALL.map(|family| (family, true)).into(),
            bridges: true,
            bridge_calls: Some(true),
            memory_cgroup: true,
            default_route: true,
            connections: Some((10, 131_072)),
        }
    }

    fn proxy(pid: u32, ours: bool) -> Proxy {
        Proxy { pid, program: "/usr/local/bin/kube-proxy".into(), ours }
    }

    #[test]
    fn a_healthy_node_gets_no_advice() {
        for mode in [Mode::Nftables, Mode::Iptables, Mode::Ipvs] {
            for check in all(&healthy(mode)) {
                assert_eq!((check.verdict, &check.mend), (Verdict::Ok, &None), "{mode:?}: {check:?}");
            }
        }
    }

    /// One ailment at a time: exactly the check of that name complains, and says how to mend it.
    #[test]
    fn every_ailment_is_found_and_nothing_else() {
        use Mode::{Iptables, Ipvs, Nftables};
        use Verdict::{Fail, Ok, Warn};
        type Ailment = fn(&mut Facts);
        let cases: &[(&str, Mode, Ailment, Verdict)] = &[
            ("kernel", Nftables, |f| f.kernel = "5.10.103-v8+".into(), Fail),
            ("kernel", Iptables, |f| f.kernel = "4.19.0".into(), Warn),
            ("kernel", Nftables, |f| f.kernel = "5.13.0-rc1".into(), Ok),
            ("kernel", Nftables, |f| f.kernel = String::new(), Fail),
            ("nf_tables", Nftables, |f| f.nf_tables[1].1 = Answer::Missing(vec!["nft_fib_ipv6"]), Fail),
            ("nf_tables", Iptables, |f| f.nf_tables[0].1 = Answer::Missing(vec!["nft_masq"]), Warn),
            ("nf_tables", Nftables, |f| f.nf_tables[0].1 = Answer::Forbidden, Warn),
            ("nf_tables", Nftables, |f| f.nf_tables[0].1 = Answer::Silent("no".into()), Fail),
            ("ipvs", Ipvs, |f| f.ipvs = Presence::Loadable, Warn),
            ("ipvs", Ipvs, |f| f.ipvs = Presence::Absent, Fail),
            ("ipvs", Ipvs, |f| f.ipvs = Presence::Unknown, Warn),
            ("ipvs", Nftables, |f| f.ipvs = Presence::Absent, Ok),
            ("tools", Iptables, |f| f.iptables_trouble = Some("iptables is not in the PATH".into()), Fail),
            ("tools", Nftables, |f| f.iptables_trouble = Some("iptables is not in the PATH".into()), Ok),
            ("iptables", Iptables, |f| f.legacy_tables = vec!["nat".into()], Warn),
            ("processes", Nftables, |f| f.proxies = vec![proxy(7, true)], Ok),
            ("processes", Nftables, |f| f.proxies = vec![proxy(7, false)], Warn),
            ("processes", Nftables, |f| f.proxies = vec![proxy(7, true), proxy(8, false)], Fail),
            ("leftovers", Nftables, |f| f.iptables_rules = true, Fail),
            ("leftovers", Nftables, |f| f.ipvs_device = true, Fail),
            ("leftovers", Iptables, |f| f.nftables_rules = true, Fail),
            ("leftovers", Ipvs, |f| f.iptables_rules = true, Ok),
            ("forwarding", Nftables, |f| f.forwarding[0].1 = false, Fail),
            ("forwarding", Ipvs, |f| f.forwarding[0].1 = false, Warn),
            ("forwarding", Nftables, |f| f.forwarding[1].1 = false, Warn),
            ("bridges", Nftables, |f| f.bridge_calls = None, Warn),
            ("bridges", Nftables, |f| f.bridge_calls = Some(false), Warn),
            ("memory cgroup", Nftables, |f| f.memory_cgroup = false, Fail),
            ("default route", Nftables, |f| f.default_route = false, Fail),
            ("connections", Nftables, |f| f.connections = Some((95, 100)), Warn),
            ("connections", Nftables, |f| f.connections = Some((89, 100)), Ok),
            ("connections", Nftables, |f| f.connections = None, Ok),
        ];
        for &(name, mode, ailment, expected) in cases {
            let mut facts = healthy(mode);
            ailment(&mut facts);
            for check in all(&facts) {
                let wanted = if check.name == name { expected } else { Ok };
                assert_eq!(check.verdict, wanted, "{name} in {mode:?}: {check:?}");
                assert_eq!(check.mend.is_some(), wanted != Ok, "{check:?}");
            }
        }
    }
}
