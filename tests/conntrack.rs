//! Stale UDP flows, with real packets: made by sending through a DNAT rule, read back with the `conntrack` program.

mod support;

use std::cell::Cell;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use kube_proxy::kernel::conntrack::{self, Swept};
use kube_proxy::model::{ObjectName, Place, Protocol};
use kube_proxy::plan::flows::{Flow, Stale};
use kube_proxy::plan::{Endpoint, PortName, PortPlan, Route};
use nix::sys::socket::AddressFamily;
use smol::LocalExecutor;
use smol::future::{block_on, yield_now};
use support::netns::{isolated, run};

/// Virtual addresses, UDP port 53, translated to port 5353 of endpoints in this very namespace.
const RULES: &str = "
    ip link set lo up
    for a in 192.0.2.1 10.244.0.1 10.244.0.2 10.96.0.10 10.96.0.11; do ip addr add $a/32 dev lo; done
    for a in fd00::1 fd00::2 fd00::10; do ip -6 addr add $a/128 dev lo nodad; done
    # The kernel makes their routes a moment later; a packet before that is lost without a word.
    timeout 20 sh -c 'until [ $(ip -6 route show table local | grep -c ^local.fd00::) = 3 ]; do sleep 0.01; done'
    nft -f - <<END
    table inet t {
        chain output {
            type nat hook output priority -100
            ip daddr 10.96.0.10 udp dport 53 dnat ip to 10.244.0.1:5353
            ip daddr 10.96.0.11 udp dport 53 dnat ip to 10.244.0.2:5353
            ip6 daddr fd00::10 udp dport 53 dnat ip6 to [fd00::2]:5353
        }
    }
END";

/// A socket that waits for packets, but not for ever, so that a failure is not a hang.
fn bind(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).expect("the address was added");
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket
}

fn send(from: &str, to: &str) -> UdpSocket {
    let socket = bind(from);
    socket.send_to(b"x", to).expect("everything is local");
    socket
}

fn delete(family: AddressFamily, stale: impl Fn(&conntrack::Entry) -> bool) -> Swept {
    block_on(conntrack::delete_udp(family, stale)).expect("the kernel has ctnetlink")
}

fn list(family: &str, filter: &str) -> String {
    run(&format!("conntrack -L -f {family} {filter} 2>/dev/null"))
}

#[test]
fn exactly_the_chosen_flows_are_deleted() {
    isolated("exactly_the_chosen_flows_are_deleted", || {
        run(RULES);
        let first = bind("10.244.0.1:5353");
        let clients = [
            send("192.0.2.1:4001", "10.96.0.10:53"),
            send("192.0.2.1:4002", "10.96.0.11:53"),
            send("192.0.2.1:4003", "10.96.0.10:54"),
            send("[fd00::1]:4004", "[fd00::10]:53"),
        ];
        assert_eq!(list("ipv4", "-p udp --dport 53").lines().count(), 2, "both flows are tracked");

        let stale = |entry: &conntrack::Entry| {
            entry.original.destination == "10.96.0.10:53".parse().unwrap()
                && entry.reply.source == "10.244.0.1:5353".parse().unwrap()
        };
        assert_eq!(delete(AddressFamily::Inet6, stale).deleted, 0, "the other family is not looked at");
        assert_eq!(delete(AddressFamily::Inet, stale), Swept { seen: 3, deleted: 1 });
        let left = list("ipv4", "-p udp");
        assert!(!left.contains("sport=4001"), "{left}");
        for stays in ["sport=4002", "sport=4003"] {
            assert!(left.contains(stays), "{left}");
        }
        assert!(list("ipv6", "-p udp").contains("sport=4004"));

        // The next packet of the same client is tracked anew and follows the rule of now.
        run("nft flush chain inet t output
             nft add rule inet t output ip daddr 10.96.0.10 udp dport 53 dnat ip to 10.244.0.2:5353");
        let second = bind("10.244.0.2:5353");
        clients[0].send_to(b"y", "10.96.0.10:53").unwrap();
        let mut buffer = [0; 8];
        assert_eq!(first.recv(&mut buffer).unwrap(), 1);
        assert_eq!(buffer[0], b'x');
        // Nobody listened there when client 4002 sent: only the packet of 4001 can be here.
        assert_eq!(second.recv(&mut buffer).unwrap(), 1);
        assert_eq!(buffer[0], b'y');
    });
}

/// UDP port 53 of a Service with a NodePort, served by these endpoints.
fn dns(serving: &[&str]) -> PortPlan {
    let serving: Vec<Endpoint> = serving
        .iter()
        .map(|address| Endpoint { address: address.parse().unwrap(), port: 5353, place: Place::Here, weight: 1 })
        .collect();
    PortPlan {
        name: PortName { service: ObjectName::new("ns", "dns"), port: "u".into(), protocol: Protocol::Udp },
        cluster_ip: "10.96.0.10".parse().unwrap(),
        port: 53,
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        node_port: Some(31000),
        internal: Route::Cluster,
        external: Route::Cluster,
        external_local: false,
        source_ranges: Vec::new(),
        allow_vip_sources: false,
        affinity: None,
        scheduler: None,
        cluster: serving.clone(),
        local: Vec::new(),
        serving,
    }
}

#[test]
fn clients_follow_when_the_plan_changes() {
    isolated("clients_follow_when_the_plan_changes", || {
        run(RULES);
        let endpoints = ["10.244.0.1:5353", "10.244.0.2:5353"].map(bind);
        // One client of the ClusterIP; one that found the NodePort closed, so far; one of somebody else.
        let clients = [
            send("192.0.2.1:4001", "10.96.0.10:53"),
            send("192.0.2.1:4002", "192.0.2.1:31000"),
            send("192.0.2.1:4003", "10.96.0.11:53"),
        ];
        run("nft flush chain inet t output
             nft add rule inet t output ip daddr 10.96.0.10 udp dport 53 dnat ip to 10.244.0.2:5353
             nft add rule inet t output ip daddr 192.0.2.1 udp dport 31000 dnat ip to 10.244.0.2:5353");
        let mut stale = Stale::default();
        stale.changed(Some(&dns(&["10.244.0.1"])), Some(&dns(&["10.244.0.2"])));
        stale.set_node_addresses(["192.0.2.1".parse().unwrap()]);
        let swept = delete(AddressFamily::Inet, |entry| {
            stale.is_stale(&Flow { destination: entry.original.destination, answering: entry.reply.source })
        });
        assert_eq!(swept, Swept { seen: 3, deleted: 2 });

        let received = |endpoint: &UdpSocket, count: usize| {
            let mut ports: Vec<u16> =
                (0..count).map(|_| endpoint.recv_from(&mut [0; 8]).expect("a packet").1.port()).collect();
            ports.sort_unstable();
            ports
        };
        assert_eq!([received(&endpoints[0], 1), received(&endpoints[1], 1)], [[4001], [4003]], "before");
        for (client, to) in clients.iter().zip(["10.96.0.10:53", "192.0.2.1:31000", "10.96.0.11:53"]) {
            // The closed port was reported to its client; this takes the report.
            let _ = client.take_error();
            client.send_to(b"y", to).unwrap();
        }
        assert_eq!(received(&endpoints[1], 3), [4001, 4002, 4003], "after");
    });
}

#[test]
fn ipv6_flows_and_flows_that_were_never_translated_are_found() {
    isolated("ipv6_flows_and_flows_that_were_never_translated_are_found", || {
        run(RULES);
        let _clients = [
            send("[fd00::1]:4001", "[fd00::10]:53"),
            send("[fd00::1]:4002", "[fd00::10]:54"),
            send("192.0.2.1:4003", "192.0.2.1:31000"),
        ];
        let translated = |entry: &conntrack::Entry| entry.reply.source != entry.original.destination;
        assert_eq!(delete(AddressFamily::Inet6, translated), Swept { seen: 2, deleted: 1 });
        assert!(!list("ipv6", "-p udp").contains("sport=4001"));
        assert!(list("ipv6", "-p udp").contains("sport=4002"));
        assert_eq!(delete(AddressFamily::Inet, |entry| !translated(entry)), Swept { seen: 1, deleted: 1 });
        assert_eq!(list("ipv4", "-p udp"), "");
    });
}

#[test]
fn a_flow_that_went_meanwhile_is_no_error() {
    isolated("a_flow_that_went_meanwhile_is_no_error", || {
        run(RULES);
        let _clients = [send("192.0.2.1:4001", "10.96.0.10:53"), send("192.0.2.1:4002", "10.96.0.10:53")];
        let first = |entry: &conntrack::Entry| entry.original.source.port() == 4001;
        let swept = delete(AddressFamily::Inet, |entry| {
            if first(entry) {
                run("conntrack -D -p udp --sport 4001 2>/dev/null");
            }
            true
        });
        assert_eq!(swept, Swept { seen: 2, deleted: 1 });
        assert_eq!(list("ipv4", "-p udp"), "");
    });
}

#[test]
fn tcp_connections_are_never_offered() {
    isolated("tcp_connections_are_never_offered", || {
        run(RULES);
        let listener = TcpListener::bind("10.244.0.1:80").unwrap();
        let _open = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(list("ipv4", "-p tcp").lines().count(), 1);
        assert_eq!(delete(AddressFamily::Inet, |_| true), Swept::default());
        assert_eq!(list("ipv4", "-p tcp").lines().count(), 1);
    });
}

#[test]
fn a_zone_of_its_own_does_not_protect_a_flow() {
    isolated("a_zone_of_its_own_does_not_protect_a_flow", || {
        run(RULES);
        run("nft add chain inet t raw '{ type filter hook output priority -300; }'
             nft add rule inet t raw udp dport 54 ct zone set 7");
        let client = send("192.0.2.1:4001", "10.96.0.10:53");
        client.send_to(b"x", "10.96.0.10:54").unwrap();
        assert!(list("ipv4", "-p udp").contains("zone=7"));
        let zoned = |entry: &conntrack::Entry| entry.original.destination.port() == 54;
        assert_eq!(delete(AddressFamily::Inet, zoned).deleted, 1);
        assert!(!list("ipv4", "-p udp").contains("zone=7"));
        assert!(list("ipv4", "-p udp").contains("dport=53"));
    });
}

#[test]
fn others_run_while_a_table_is_swept() {
    isolated("others_run_while_a_table_is_swept", || {
        run(RULES);
        run("ip route add local 10.128.0.0/16 dev lo");
        // The kernel chooses from the small table for us; the large one is read whole. The result is the same.
        sweep_half_of(4_000);
        sweep_half_of(40_000);
    });
}

/// Makes `size` flows, half of them to port 53, besides a TCP connection and an IPv6 flow; sweeps these, and looks at
/// what is left.
fn sweep_half_of(size: u32) {
    run("conntrack -F");
    let listener = TcpListener::bind("10.244.0.1:80").unwrap();
    let _open = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let _other = send("[fd00::1]:4002", "[fd00::10]:53");
    let client = bind("192.0.2.1:4001");
    for n in 0..size / 2 {
        for port in [53, 54] {
            let to = format!("10.128.{}.{}:{port}", n / 250, n % 250 + 1);
            // An earlier packet's "port unreachable" may be reported by the first call: then nothing was sent.
            if client.send_to(b"x", &to).is_err() {
                client.send_to(b"x", &to).unwrap();
            }
        }
    }
    let turns = Cell::new(0);
    let executor = LocalExecutor::new();
    let swept = block_on(executor.run(async {
        let _other = executor.spawn(async {
            loop {
                turns.set(turns.get() + 1);
                yield_now().await;
            }
        });
        conntrack::delete_udp(AddressFamily::Inet, |entry| entry.original.destination.port() == 53).await
    }));
    let size = size as usize;
    assert_eq!(swept.unwrap(), Swept { seen: size, deleted: size / 2 });
    // The kernel puts some hundred entries into a datagram, and each datagram is a turn for others.
    assert!(turns.get() >= size / 500, "{} turns", turns.get());
    assert_eq!(run("conntrack -C").trim().parse(), Ok(size / 2 + 2));
}
