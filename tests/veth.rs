//! Cables between namespaces and the witness of nf_tables, against what `ip` shows and `nft` does.

mod support;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use kube_proxy::kernel::nftables::TableFamily;
use kube_proxy::kernel::nftevents::Witness;
use kube_proxy::kernel::veth::Cables;
use support::netns::{isolated, run, succeeds};

#[test]
fn a_cable_carries_both_families_to_another_namespace() {
    isolated("a_cable_carries_both_families_to_another_namespace", || {
        run("ip netns add far && sysctl -qw net.ipv6.conf.default.accept_dad=0");
        // The kernel finds a namespace by a process that is in it.
        let mut inhabitant = Command::new("ip")
            .args(["netns", "exec", "far", "sh", "-c", "echo; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Read::read_exact(inhabitant.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let mut cables = Cables::open().unwrap();
        cables.lay("near", "eth0", inhabitant.id()).unwrap();
        assert!(cables.lay("near", "eth1", inhabitant.id()).is_err(), "the name is taken");
        cables.up("near").unwrap();
        run("ip -n far link set eth0 up
             ip -n far addr add 10.1.0.2 peer 10.1.0.1 dev eth0
             ip -n far addr add fd01::2 peer fd01::1 dev eth0 nodad
             ip -n far addr add 198.51.100.1/32 dev eth0
             ip -n far addr add 2001:db8:9::1/128 dev eth0 nodad");
        for (own, other) in [("10.1.0.1", "10.1.0.2"), ("fd01::1", "fd01::2")] {
            cables.address("near", own.parse().unwrap(), other.parse().unwrap()).unwrap();
            cables.default_route("near", other.parse().unwrap()).unwrap();
        }
        assert!(run("ip addr show dev near").contains("inet 10.1.0.1 peer 10.1.0.2/32"));
        assert!(run("ip route").contains("default via 10.1.0.2 dev near"));
        run("ip -n far link set lo up");
        for reached in ["10.1.0.2", "fd01::2", "198.51.100.1", "2001:db8:9::1"] {
            let address = SocketAddr::new(reached.parse().unwrap(), 1);
            let answer = TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap_err();
            assert_eq!(answer.kind(), ErrorKind::ConnectionRefused, "{reached} is there and says no: {answer}");
        }
        assert!(!succeeds("ip link show eth0"), "that end is not here");
        inhabitant.kill().unwrap();
        inhabitant.wait().unwrap();
    });
}

#[test]
fn the_witness_hears_of_removals_in_all_families_asked_for() {
    isolated("the_witness_hears_of_removals_in_all_families_asked_for", || {
        for family in ["ip", "ip6"] {
            run(&format!("nft 'table {family} t {{ set s {{ type inet_service; elements = {{ 1, 2, 3 }}; }}; }}'"));
        }
        let mut witness = Witness::open(Duration::from_millis(200)).unwrap();
        let both = [TableFamily::Ip, TableFamily::Ip6];
        assert!(!witness.removal(&both).unwrap(), "nothing happened");
        run("nft add element ip t s { 4 }; nft add element ip6 t s { 4 }");
        assert!(!witness.removal(&both).unwrap(), "additions are no removals");
        run("nft delete element ip t s { 1 }");
        assert!(!witness.removal(&both).unwrap(), "half of it");
        run("nft delete element ip t s { 2 }; nft delete element ip6 t s { 2 }");
        assert!(witness.removal(&both).unwrap(), "both");
    });
}
