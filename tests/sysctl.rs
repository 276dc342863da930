//! The connection tracking settings against a real `/proc/sys`: that of a private network namespace.

mod support;

use kube_proxy::kernel::sysctl::{Conntrack, Root, apply_conntrack, set_oom_score_adj};
use support::netns::{isolated, run};

#[test]
fn what_a_namespace_owns_is_set_and_the_rest_is_a_warning() {
    isolated("what_a_namespace_owns_is_set_and_the_rest_is_a_warning", || {
        let wanted = Conntrack {
            max: Some(987_654),
            tcp_established: Some(7201),
            tcp_close_wait: Some(601),
            udp: Some(41),
            udp_stream: Some(161),
            tcp_be_liberal: true,
        };
        let warnings = apply_conntrack(&Root::default(), &wanted).unwrap();
        for (name, value) in [
            ("tcp_timeout_established", "7201"),
            ("tcp_timeout_close_wait", "601"),
            ("udp_timeout", "41"),
            ("udp_timeout_stream", "161"),
            ("tcp_be_liberal", "1"),
        ] {
            assert_eq!(run(&format!("cat /proc/sys/net/netfilter/nf_conntrack_{name}")).trim(), value, "{name}");
        }
        // The size of the table belongs to the machine: outside the first network namespace nobody may set it.
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].to_string().contains("nf_conntrack_max to 987654"), "{}", warnings[0]);
    });
}

#[test]
fn a_read_only_proc_is_a_warning_unless_all_is_well_already() {
    isolated("a_read_only_proc_is_a_warning_unless_all_is_well_already", || {
        run("mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys");
        let now: u64 = run("cat /proc/sys/net/netfilter/nf_conntrack_udp_timeout").trim().parse().unwrap();
        let same = Conntrack { udp: Some(now), ..Conntrack::default() };
        assert!(apply_conntrack(&Root::default(), &same).unwrap().is_empty());
        let other = Conntrack { udp: Some(now + 1), udp_stream: Some(9999), ..Conntrack::default() };
        let warnings = apply_conntrack(&Root::default(), &other).unwrap();
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].to_string().contains("Read-only file system"), "{}", warnings[0]);
    });
}

#[test]
fn the_kernel_is_told_when_to_kill_us() {
    isolated("the_kernel_is_told_when_to_kill_us", || {
        set_oom_score_adj(900).unwrap();
        assert_eq!(std::fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim(), "900");
        assert!(set_oom_score_adj(1001).is_err(), "out of range");
    });
}
