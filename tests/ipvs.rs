//! IPVS mode with real packets, read back with `ipvsadm` and `ip`. Needs a kernel with IPVS: `tests/vm/run ipvs` has
//! one.

mod support;

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use Place::{Elsewhere, Here};
use ipnet::IpNet;
use kube_proxy::backend::{Backend, Report};
use kube_proxy::ipvs::{Ipvs, Options, Scheduler};
use kube_proxy::kernel::links;
use kube_proxy::model::{Family, ObjectName, Place, Protocol};
use kube_proxy::plan::{Endpoint, LocalTraffic, NodeFacts, NodePortAddresses, PortName, PortPlan, Route, ServicePlan};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use support::lab::{ask, connect, host, tcp, udp};
use support::netns::{run, succeeds, with_ipvs};

fn facts(family: Family) -> NodeFacts {
    let pods = if family == Family::V4 { "10.64.0.0/24" } else { "fd00:64::/64" };
    NodeFacts {
        family,
        local_traffic: LocalTraffic::Cidr(pods.parse().unwrap()),
        masquerade_all: false,
        masquerade_mark: 0x4000,
        node_port_addresses: NodePortAddresses::All,
        host_addresses: host_addresses(family),
        service_cidrs: vec![],
    }
}

/// The addresses that the test gave to other devices than the mode's own.
fn host_addresses(family: Family) -> Vec<IpAddr> {
    let found = links::addresses().unwrap().into_iter().filter(|found| &*found.interface != "kube-ipvs0");
    let others = found.map(|found| found.address).filter(|address| Family::of(address) == family);
    others.filter(|address| !address.is_loopback() && !address.to_string().starts_with("fe80:")).collect()
}

fn started(family: Family, options: Options) -> Ipvs {
    let mut ipvs = Ipvs::new(family, options).unwrap();
    ipvs.start().unwrap();
    ipvs
}

fn replace(ipvs: &mut Ipvs, family: Family, services: &[ServicePlan]) -> Report {
    let report = ipvs.replace(&facts(family), &mut services.iter().cloned()).unwrap();
    assert!(report.set_aside.is_empty(), "{:?}", report.set_aside);
    report
}

fn endpoint(address: &str, place: Place) -> Endpoint {
    Endpoint { address: ip(address), port: 8080, place, weight: 1 }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A port of a Service of its own, on 80 and with these endpoints for everything.
fn port(name: &str, cluster_ip: &str, endpoints: &[Endpoint]) -> PortPlan {
    let route = if endpoints.is_empty() { Route::Reject } else { Route::Cluster };
    PortPlan {
        name: PortName { service: ObjectName::new("ns", name), port: "".into(), protocol: Protocol::Tcp },
        cluster_ip: ip(cluster_ip),
        port: 80,
        external_ips: vec![],
        load_balancer_ips: vec![],
        node_port: None,
        internal: route,
        external: route,
        external_local: false,
        source_ranges: vec![],
        allow_vip_sources: false,
        affinity: None,
        scheduler: None,
        cluster: endpoints.into(),
        local: endpoints.iter().filter(|endpoint| endpoint.place.is_here()).cloned().collect(),
        serving: vec![],
    }
}

fn service(port: PortPlan) -> ServicePlan {
    ServicePlan { name: port.name.service.clone(), ports: vec![port], health_check_node_port: None }
}

/// The virtual and real servers, sorted, without connection counts.
fn ipvsadm() -> Vec<String> {
    let mut lines: Vec<String> = run("ipvsadm -Sn").lines().map(|line| line.trim().to_owned()).collect();
    lines.sort();
    lines
}

/// The virtual addresses, sorted.
fn addresses() -> Vec<String> {
    let listing = run("ip -o addr show dev kube-ipvs0 2>/dev/null || true");
    let mut found: Vec<String> =
        listing.lines().filter_map(|line| line.split_whitespace().nth(3)).map(str::to_owned).collect();
    found.sort();
    found
}

/// All that was programmed, as other tools see it.
fn everything() -> (Vec<String>, Vec<String>, Vec<String>) {
    let mut elements: Vec<String> = ["ip", "ip6"]
        .iter()
        .flat_map(|family| {
            let table =
                run(&format!("nft -s list table {family} kube-proxy-ipvs 2>/dev/null | tr -s ' ,\\n' '\\n' || true"));
            table.lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    elements.sort();
    (ipvsadm(), addresses(), elements)
}

struct Net {
    family: Family,
    a: &'static str,
    far: &'static str,
    client: &'static str,
    node: &'static str,
    vip: fn(u8) -> String,
}

const V4: Net = Net {
    family: Family::V4,
    a: "10.64.0.2",
    far: "10.65.0.2",
    client: "192.0.2.10",
    node: "172.18.0.2",
    vip: |n| format!("10.96.0.{n}"),
};
const V6: Net = Net {
    family: Family::V6,
    a: "fd00:64::2",
    far: "fd00:65::2",
    client: "2001:db8::10",
    node: "fd00:172::2",
    vip: |n| format!("fd00:96::{n}"),
};

impl Net {
    fn build(&self) {
        host("a", self.a, 8080);
        host("far", self.far, 8080);
        host("client", self.client, 8080);
        let bits = self.family.host_bits();
        run(&format!(
            "ip link add eth9 type dummy && ip link set eth9 up && ip addr add {}/{bits} dev eth9",
            self.node
        ));
    }

    fn at(&self, address: &str, port: u16) -> String {
        std::net::SocketAddr::new(ip(address), port).to_string()
    }
}

fn every_entrance(net: &Net) {
    net.build();
    let (local, far) = (endpoint(net.a, Here), endpoint(net.far, Elsewhere));
    let vip = |n| (net.vip)(n);
    let mut ipvs = started(net.family, Options::default());
    let udp_port = |plan: PortPlan| {
        let name = PortName { protocol: Protocol::Udp, ..plan.name.clone() };
        PortPlan { name, ..plan }
    };
    let full = PortPlan {
        external_ips: vec![ip(&vip(101))],
        load_balancer_ips: vec![ip(&vip(102))],
        node_port: Some(30080),
        ..port("full", &vip(1), std::slice::from_ref(&far))
    };
    let policy_local = PortPlan {
        external_ips: vec![ip(&vip(103))],
        node_port: Some(30081),
        external_local: true,
        external: Route::Local,
        ..port("local", &vip(2), &[local.clone(), far.clone()])
    };
    let range: IpNet = IpNet::from(ip(net.client));
    let restricted = PortPlan {
        load_balancer_ips: vec![ip(&vip(104))],
        source_ranges: vec![range],
        ..port("restricted", &vip(3), std::slice::from_ref(&far))
    };
    let services = [
        ServicePlan {
            health_check_node_port: Some(32000),
            name: full.name.service.clone(),
            ports: vec![full.clone(), udp_port(full)],
        },
        service(policy_local),
        service(restricted),
        service(port("empty", &vip(4), &[])),
        service(port("hairpin", &vip(5), std::slice::from_ref(&local))),
    ];
    replace(&mut ipvs, net.family, &services);

    // ClusterIP: pods keep their address, the node and outsiders do not.
    assert_eq!(tcp("a", &net.at(&vip(1), 80)), format!("far {}", net.a));
    assert_eq!(udp("a", &net.at(&vip(1), 80)), format!("far {}", net.a));
    for from in ["client", "node"] {
        for to in [vip(1), vip(101), vip(102)] {
            let answer = tcp(from, &net.at(&to, 80));
            assert!(
                answer.starts_with("far ") && !answer.ends_with(&to) && !answer.ends_with(net.client),
                "{from} {to}: {answer}"
            );
        }
        let answer = tcp(from, &net.at(net.node, 30080));
        assert!(answer.starts_with("far ") && !answer.ends_with(net.client), "{from}: {answer}");
    }
    // Policy Local: only the local endpoint, and the client is seen.
    for to in [net.at(&vip(103), 80), net.at(net.node, 30081)] {
        for _ in 0..4 {
            assert_eq!(tcp("client", &to), format!("a {}", net.client), "{to}");
        }
    }
    // Source ranges: only this client, neither another nor the node.
    assert!(tcp("client", &net.at(&vip(104), 80)).starts_with("far "));
    assert_eq!(tcp("a", &net.at(&vip(104), 80)), "silence");
    assert_eq!(tcp("node", &net.at(&vip(104), 80)), "silence");
    assert!(tcp("node", &net.at(&vip(3), 80)).starts_with("far "), "the ClusterIP is not restricted");
    // Nobody there, wrong port.
    for from in ["a", "client", "node"] {
        assert_eq!(tcp(from, &net.at(&vip(4), 80)), "refused", "{from}, no endpoints");
        assert_eq!(tcp(from, &net.at(&vip(1), 81)), "refused", "{from}, wrong port");
    }
    // Health checks are answered on every address, by whoever listens there.
    let health = TcpListener::bind(if net.family == Family::V4 { "0.0.0.0:32000" } else { "[::]:32000" }).unwrap();
    assert!(connect("client", &net.at(&vip(102), 32000)).is_ok());
    std::mem::drop(health);
    // A pod that reaches itself sees another address than its own.
    let answer = tcp("a", &net.at(&vip(5), 80));
    assert!(answer.starts_with("a ") && !answer.ends_with(net.a), "{answer}");
}

/// A process of this node meets another one at an address of the node; both see the same of their connection.
fn is_left_alone(at: &str) {
    let listener = TcpListener::bind(at).unwrap();
    let stream = std::net::TcpStream::connect(at).unwrap();
    let (_, peer) = listener.accept().unwrap();
    assert_eq!(peer, stream.local_addr().unwrap(), "{at}");
}

/// What is none of a Service's business is not masqueraded: loopback, on the port that is a NodePort elsewhere, and the
/// node's own address, which an endpoint has too.
fn others_are_left_alone(net: &Net) {
    net.build();
    let mut ipvs = started(net.family, Options::default());
    let host = PortPlan { node_port: Some(30080), ..port("host", &(net.vip)(1), &[endpoint(net.node, Here)]) };
    replace(&mut ipvs, net.family, &[service(host)]);
    is_left_alone(if net.family == Family::V4 { "127.0.0.1:30080" } else { "[::1]:30080" });
    is_left_alone(&net.at(net.node, 6443));
}

#[test]
fn connections_of_the_node_to_itself_are_left_alone() {
    with_ipvs("connections_of_the_node_to_itself_are_left_alone", || others_are_left_alone(&V4));
}

#[test]
fn connections_of_the_node_to_itself_are_left_alone_with_ipv6_too() {
    with_ipvs("connections_of_the_node_to_itself_are_left_alone_with_ipv6_too", || others_are_left_alone(&V6));
}

/// Nobody can have a multicast address: who asks for it is told, and nobody else is kept waiting.
#[test]
fn an_address_that_the_kernel_refuses_harms_nobody_else() {
    with_ipvs("an_address_that_the_kernel_refuses_harms_nobody_else", || {
        V6.build();
        let mut ipvs = started(Family::V6, Options::default());
        let far = || [endpoint(V6.far, Elsewhere)];
        let odd = |external: &str| {
            service(PortPlan { external_ips: vec![ip(external)], ..port("odd", "fd00:96::1", &far()) })
        };
        let good = |n: u8| service(port(&format!("s{n}"), &(V6.vip)(n), &far()));
        let services = [odd("ff05::1"), good(2)];
        let report = ipvs.replace(&facts(Family::V6), &mut services.iter().cloned()).unwrap();
        let [(name, reason)] = &report.set_aside[..] else { panic!("{:?}", report.set_aside) };
        assert!(name.service.name() == "odd" && reason.contains("ff05::1"), "{name}: {reason}");
        assert!(tcp("client", "[fd00:96::2]:80").starts_with("far "));
        assert!(tcp("client", "[fd00:96::1]:80").starts_with("far "), "its ClusterIP is served");
        assert!(ipvs.intact(), "there is nothing to mend");
        let gone = ServicePlan { ports: vec![], ..good(2) };
        let report = ipvs.update(&[gone, good(3), odd("ff05::2")]).unwrap();
        assert_eq!(report.set_aside.len(), 1, "{:?}", report.set_aside);
        assert_eq!(addresses(), ["fd00:96::1/128", "fd00:96::3/128"]);
        let mut other_endpoints = odd("ff05::2");
        other_endpoints.ports[0].cluster.clear();
        let report = ipvs.update(&[other_endpoints, good(2)]).unwrap();
        assert_eq!(report.set_aside.len(), 1, "it still is: {:?}", report.set_aside);
        assert!(ipvs.update(&[odd("fd00:97::1")]).unwrap().set_aside.is_empty());
        assert!(tcp("client", "[fd00:97::1]:80").starts_with("far "));
    });
}

#[test]
fn every_entrance_leads_where_its_policy_says() {
    with_ipvs("every_entrance_leads_where_its_policy_says", || every_entrance(&V4));
}

#[test]
fn every_entrance_leads_there_with_ipv6_too() {
    with_ipvs("every_entrance_leads_there_with_ipv6_too", || every_entrance(&V6));
}

/// One SCTP association from a host: the same words as [`tcp`].
fn sctp(from: &str, to: &str, port: u16) -> String {
    let ask = format!(
        "import socket\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)\n\
         s.settimeout(3)\n\
         try:\n  s.connect((\"{to}\", {port})); s.send(b\"?\"); print(s.recv(64).decode())\n\
         except ConnectionRefusedError: print(\"refused\")\n\
         except TimeoutError: print(\"silence\")\n"
    );
    let enter = if from == "node" { String::new() } else { format!("ip netns exec {from} ") };
    run(&format!("{enter}python3 -c '{ask}'")).trim().to_owned()
}

/// Answers SCTP at a host, with its name and the client's address, until it is dropped.
struct SctpServer(Child);

impl SctpServer {
    fn start(host: &str, address: &str, port: u16) -> Self {
        let serve = format!(
            "import socket\n\
             s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)\n\
             s.bind(('{address}', {port})); s.listen(8); print('ready', flush=True)\n\
             while True:\n  c, peer = s.accept(); c.recv(9); c.send(f'{host} {{peer[0]}}'.encode()); c.close()\n"
        );
        let mut server = Command::new("ip")
            .args(["netns", "exec", host, "python3", "-c", &serve])
            .stdout(Stdio::piped())
            .spawn()
            .expect("ip starts");
        let mut line = String::new();
        BufReader::new(server.stdout.take().expect("it is piped")).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "the SCTP server of {host}");
        Self(server)
    }
}

impl Drop for SctpServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn sctp_is_served_like_the_others() {
    with_ipvs("sctp_is_served_like_the_others", || {
        if !succeeds("modprobe -q sctp; python3 -c 'import socket; socket.socket(2, 1, 132)'") {
            assert!(std::env::var_os("KUBE_PROXY_REQUIRE_IPVS").is_none(), "this kernel has no SCTP");
            return;
        }
        V4.build();
        let _server = SctpServer::start("far", V4.far, 8080);
        let mut ipvs = started(Family::V4, Options::default());
        let plan = port("s", "10.96.0.1", &[endpoint(V4.far, Elsewhere)]);
        let name = PortName { protocol: Protocol::Sctp, ..plan.name.clone() };
        let plan = PortPlan { name, node_port: Some(30080), ..plan };
        replace(&mut ipvs, Family::V4, &[service(plan)]);
        assert_eq!(sctp("a", "10.96.0.1", 80), format!("far {}", V4.a), "a pod keeps its address");
        for (from, to, port) in [("node", "10.96.0.1", 80), ("client", "10.96.0.1", 80), ("client", V4.node, 30080)] {
            let answer = sctp(from, to, port);
            assert!(answer.starts_with("far ") && !answer.ends_with(V4.client), "{from} {to}: {answer}");
        }
        assert_ne!(tcp("client", &V4.at(V4.node, 30080)).split(' ').next(), Some("far"), "TCP is not served");
    });
}

#[test]
fn node_ports_are_served_on_all_addresses_or_on_those_that_are_listed() {
    with_ipvs("node_ports_are_served_on_all_addresses_or_on_those_that_are_listed", || {
        V4.build();
        run("ip link add eth8 type dummy && ip link set eth8 up && ip addr add 172.19.0.2/32 dev eth8");
        let services =
            [service(PortPlan { node_port: Some(30080), ..port("s", "10.96.0.1", &[endpoint(V4.far, Elsewhere)]) })];
        let mut ipvs = started(Family::V4, Options::default());
        replace(&mut ipvs, Family::V4, &services);
        let (first, second) = (V4.at(V4.node, 30080), V4.at("172.19.0.2", 30080));
        for to in [&first, &second] {
            assert!(tcp("client", to).starts_with("far "), "{to}");
        }
        assert_eq!(tcp("client", "10.96.0.1:30080"), "refused", "a virtual address has no NodePorts");

        let only = NodeFacts { node_port_addresses: NodePortAddresses::Only(vec![ip(V4.node)]), ..facts(Family::V4) };
        ipvs.replace(&only, &mut services.iter().cloned()).unwrap();
        assert!(tcp("client", &first).starts_with("far "));
        assert_eq!(tcp("client", &second), "refused");
    });
}

#[test]
fn policy_local_without_a_local_endpoint_asks_the_others() {
    with_ipvs("policy_local_without_a_local_endpoint_asks_the_others", || {
        V4.build();
        let plan = PortPlan {
            external_ips: vec![ip("10.96.0.101")],
            node_port: Some(30080),
            external_local: true,
            external: Route::Drop,
            internal: Route::Drop,
            ..port("s", "10.96.0.1", &[endpoint(V4.far, Elsewhere)])
        };
        let mut ipvs = started(Family::V4, Options::default());
        replace(&mut ipvs, Family::V4, &[service(plan)]);
        for to in [V4.at("10.96.0.1", 80), V4.at("10.96.0.101", 80), V4.at(V4.node, 30080)] {
            assert!(tcp("client", &to).starts_with("far "), "{to}");
        }
    });
}

#[test]
fn the_families_share_a_device_and_leave_each_other_alone() {
    with_ipvs("the_families_share_a_device_and_leave_each_other_alone", || {
        V4.build();
        for (host, address) in [("a", V6.a), ("far", V6.far), ("client", V6.client)] {
            support::lab::host(host, address, 8080);
        }
        let served = |net: &Net| [service(port("s", &(net.vip)(1), &[endpoint(net.far, Elsewhere)]))];
        let mut both = [&V4, &V6].map(|net| (net, started(net.family, Options::default())));
        for (net, ipvs) in &mut both {
            replace(ipvs, net.family, &served(net));
        }
        let answers = |net: &Net| tcp("a", &net.at(&(net.vip)(1), 80));
        for net in [&V4, &V6] {
            assert_eq!(answers(net), format!("far {}", net.a));
        }
        let before = everything();
        replace(&mut both[0].1, Family::V4, &served(&V4));
        assert_eq!(everything(), before, "IPv4 is written anew, and IPv6 stays as it is");

        both[0].1.cleanup().unwrap();
        assert_eq!(answers(&V6), format!("far {}", V6.a), "IPv4 is gone, IPv6 serves on");
        both[1].1.cleanup().unwrap();
        assert_eq!(everything(), (vec![], vec![], vec![]));
        assert!(!succeeds("ip link show kube-ipvs0"), "the last one takes the device along");
    });
}

#[test]
fn other_tools_read_what_was_programmed() {
    with_ipvs("other_tools_read_what_was_programmed", || {
        let mut ipvs = started(Family::V4, Options::default());
        let heavy = Endpoint { weight: 7, ..endpoint("10.65.0.3", Elsewhere) };
        let sticky = PortPlan {
            affinity: Some(60),
            scheduler: Some("mh:port,fallback".into()),
            ..port("sticky", "10.96.0.1", &[endpoint("10.65.0.2", Elsewhere), heavy])
        };
        let plain = PortPlan { scheduler: Some("no_such".into()), ..port("plain", "10.96.0.2", &[]) };
        replace(&mut ipvs, Family::V4, &[service(sticky), service(plain)]);
        assert_eq!(
            ipvsadm(),
            [
                "-A -t 10.96.0.1:80 -s mh -p 60 -b mh-fallback,mh-port",
                "-A -t 10.96.0.2:80 -s rr",
                "-a -t 10.96.0.1:80 -r 10.65.0.2:8080 -m -w 1",
                "-a -t 10.96.0.1:80 -r 10.65.0.3:8080 -m -w 7",
            ]
        );
        assert_eq!(addresses(), ["10.96.0.1/32", "10.96.0.2/32"]);
        for (setting, value) in [("conntrack", "1"), ("expire_nodest_conn", "1"), ("expire_quiescent_template", "1")] {
            assert_eq!(run(&format!("sysctl -n net.ipv4.vs.{setting}")).trim(), value, "{setting}");
        }
    });
}

#[test]
fn every_scheduler_of_the_kernel_can_be_had() {
    with_ipvs("every_scheduler_of_the_kernel_can_be_had", || {
        for name in ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "mh", "fo", "ovf"] {
            let mut ipvs =
                started(Family::V4, Options { scheduler: Scheduler::parse(name).unwrap(), ..Options::default() });
            replace(&mut ipvs, Family::V4, &[service(port("s", "10.96.0.1", &[]))]);
            assert!(ipvsadm()[0].starts_with(&format!("-A -t 10.96.0.1:80 -s {name}")), "{name}: {:?}", ipvsadm());
        }
        let mut ipvs =
            Ipvs::new(Family::V4, Options { scheduler: Scheduler::parse("missing").unwrap(), ..Options::default() })
                .unwrap();
        let error = ipvs.start().unwrap_err().to_string();
        assert!(error.contains("ip_vs_missing"), "{error}");
    });
}

#[test]
fn a_restart_changes_nothing_and_cuts_nothing() {
    with_ipvs("a_restart_changes_nothing_and_cuts_nothing", || {
        V4.build();
        let services = [service(PortPlan {
            node_port: Some(30080),
            load_balancer_ips: vec![ip("10.96.0.101")],
            source_ranges: vec!["192.0.2.0/25".parse().unwrap(), "192.0.2.0/24".parse().unwrap()],
            affinity: Some(100),
            ..port("s", "10.96.0.1", &[endpoint(V4.a, Here), endpoint(V4.far, Elsewhere)])
        })];
        let mut ipvs = started(Family::V4, Options::default());
        assert!(replace(&mut ipvs, Family::V4, &services).changes > 0);
        let before = everything();
        let mut connection = connect("client", "10.96.0.1:80").unwrap();
        ask(&mut connection).unwrap();

        drop(ipvs);
        let mut ipvs = started(Family::V4, Options::default());
        assert_eq!(replace(&mut ipvs, Family::V4, &services).changes, 0);
        assert_eq!(everything(), before);
        ask(&mut connection).unwrap();

        // What somebody else broke is mended.
        run("ipvsadm -C && nft flush table ip kube-proxy-ipvs && ip addr del 10.96.0.1/32 dev kube-ipvs0");
        assert!(!ipvs.intact());
        replace(&mut ipvs, Family::V4, &services);
        assert_eq!(everything(), before);
        assert!(ipvs.intact());
        for loss in [
            "ipvsadm -D -t 172.18.0.2:30080",
            "ip addr del 10.96.0.101/32 dev kube-ipvs0",
            "nft flush set ip kube-proxy-ipvs restricted",
            "nft flush set ip kube-proxy-ipvs hairpin",
            "nft flush chain ip kube-proxy-ipvs input",
            "nft flush table ip kube-proxy-ipvs",
        ] {
            run(loss);
            assert!(!ipvs.intact(), "{loss}");
            replace(&mut ipvs, Family::V4, &services);
            assert_eq!(everything(), before, "{loss}");
            assert!(ipvs.intact(), "{loss}");
        }
    });
}

#[test]
fn many_small_changes_lead_where_one_start_leads() {
    with_ipvs("many_small_changes_lead_where_one_start_leads", || {
        run("ip addr add 172.18.0.2/32 dev lo");
        let mut ipvs = started(Family::V4, Options::default());
        replace(&mut ipvs, Family::V4, &[]);
        let mut random = Random(1);
        let mut now: Vec<ServicePlan> = Vec::new();
        for _ in 0..300 {
            let changed: Vec<ServicePlan> = (0..1 + random.below(3)).map(|_| random.service()).collect();
            for plan in &changed {
                now.retain(|service| service.name != plan.name);
                now.extend((!plan.ports.is_empty()).then(|| plan.clone()));
            }
            let report = ipvs.update(&changed).unwrap();
            assert!(report.set_aside.is_empty(), "{:?}", report.set_aside);
        }
        let grown = everything();
        ipvs.cleanup().unwrap();
        assert_eq!(everything(), (vec![], vec![], vec![]));
        let mut fresh = started(Family::V4, Options::default());
        replace(&mut fresh, Family::V4, &now);
        assert_eq!(everything(), grown);
    });
}

/// A reproducible sequence (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn service(&mut self) -> ServicePlan {
        let number = self.below(12) as u8;
        let name = format!("s{number}");
        if self.below(4) == 0 {
            return ServicePlan { name: ObjectName::new("ns", &name), ports: vec![], health_check_node_port: None };
        }
        let mut endpoints: Vec<Endpoint> = (0..6u8)
            .filter(|_| self.below(2) == 0)
            .map(|n| endpoint(&format!("10.64.{}.{n}", n % 2), if n % 2 == 0 { Here } else { Elsewhere }))
            .collect();
        endpoints.iter_mut().for_each(|endpoint| endpoint.weight = 1 + self.below(3) as u16);
        let mut plan = port(&name, &format!("10.96.0.{number}"), &endpoints);
        plan.external_local = self.below(2) == 0;
        if plan.external_local && !plan.local.is_empty() {
            plan.external = Route::Local;
        }
        if self.below(2) == 0 {
            // The external address is everybody's, the port is not.
            plan.port = 1000 + u16::from(number);
            plan.external_ips = vec![ip("203.0.113.9")];
        }
        if self.below(2) == 0 {
            plan.load_balancer_ips = vec![[198, 51, 100, number].into()];
            let ranges = ["10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/24", "0.0.0.0/1"];
            plan.source_ranges =
                ranges.iter().filter(|_| self.below(2) == 0).map(|range| range.parse().unwrap()).collect();
            plan.allow_vip_sources = self.below(2) == 0;
        }
        plan.node_port = (self.below(2) == 0).then_some(30000 + u16::from(number));
        plan.affinity = (self.below(3) == 0).then_some(60 + self.below(2) as u32);
        plan.scheduler = ["wrr", "sh:port"].get(self.below(4) as usize).map(|&name| name.into());
        let health_check_node_port = (self.below(3) == 0).then_some(32000 + u16::from(number));
        ServicePlan { health_check_node_port, ..service(plan) }
    }
}

#[test]
fn who_leaves_keeps_its_connections_and_then_goes() {
    with_ipvs("who_leaves_keeps_its_connections_and_then_goes", || {
        V4.build();
        let mut ipvs = started(Family::V4, Options { timeouts: [900, 30, 60], ..Options::default() });
        assert!(run("ipvsadm -L --timeout").contains("900 30 60"));
        let with = |endpoints: &[Endpoint]| service(port("s", "10.96.0.1", endpoints));
        let (a, far) = (endpoint(V4.a, Here), endpoint(V4.far, Elsewhere));
        replace(&mut ipvs, Family::V4, &[with(std::slice::from_ref(&a))]);
        let mut connection = connect("client", "10.96.0.1:80").unwrap();
        assert!(ask(&mut connection).unwrap().starts_with("a "));
        assert_eq!(ipvs.tick(), None);

        ipvs.update(&[with(std::slice::from_ref(&far))]).unwrap();
        assert!(ipvsadm().contains(&"-a -t 10.96.0.1:80 -r 10.64.0.2:8080 -m -w 0".to_owned()), "{:?}", ipvsadm());
        assert!(ipvs.tick().is_some(), "somebody is leaving");
        assert!(ask(&mut connection).unwrap().starts_with("a "));
        assert!(tcp("client", "10.96.0.1:80").starts_with("far "));

        // A restart does not forget who is leaving.
        let mut ipvs = started(Family::V4, Options::default());
        replace(&mut ipvs, Family::V4, &[with(&[far])]);
        assert!(ask(&mut connection).unwrap().starts_with("a "));

        // A reset: after an orderly end IPVS would remember the connection for two minutes.
        setsockopt(&connection, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
        drop(connection);
        while ipvs.tick().is_some() {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        assert!(!ipvsadm().iter().any(|line| line.contains("10.64.0.2")), "{:?}", ipvsadm());
    });
}

#[test]
fn what_is_somebody_else_s_stays() {
    with_ipvs("what_is_somebody_else_s_stays", || {
        run(
            "ip addr add 172.18.0.2/32 dev lo; ipvsadm -A -t 10.9.0.1:80 -s rr; ipvsadm -A -f 7 -s rr; ipvsadm -A -t 10.8.0.1:80 -s rr",
        );
        let foreign = ["-A -f 7 -s rr", "-A -t 10.9.0.1:80 -s rr"];
        let excluding = || Options { exclude: vec!["10.9.0.0/16".parse().unwrap()], ..Options::default() };
        let mut other = Ipvs::new(Family::V4, excluding()).unwrap();
        other.cleanup().unwrap();
        assert_eq!(ipvsadm().len(), 3, "this mode never ran here");

        let mut ipvs = started(Family::V4, excluding());
        let external = PortPlan { external_ips: vec![ip("172.18.0.2")], ..port("s", "10.96.0.1", &[]) };
        replace(&mut ipvs, Family::V4, &[service(external)]);
        assert_eq!(
            ipvsadm(),
            [foreign[0], "-A -t 10.9.0.1:80 -s rr", "-A -t 10.96.0.1:80 -s rr", "-A -t 172.18.0.2:80 -s rr"]
        );
        assert_eq!(addresses(), ["10.96.0.1/32"], "the node's own address stays where it is");

        let mut v6 = started(Family::V6, excluding());
        replace(&mut v6, Family::V6, &[service(port("s", "fd00:96::1", &[]))]);
        // A clean-up without the configuration knows what is ours.
        let local = |number| PortPlan {
            node_port: Some(number),
            external_local: true,
            external_ips: vec![ip("172.18.0.2")],
            ..port("s", "10.96.0.1", &[])
        };
        let cluster = PortPlan { node_port: Some(30081), ..port("t", "10.96.0.2", &[]) };
        ipvs.update(&[service(local(30080)), service(cluster)]).unwrap();
        run("ipvsadm -A -t 172.18.0.2:9999 -s rr");
        Ipvs::new(Family::V4, Options::default()).unwrap().cleanup().unwrap();
        assert_eq!(
            ipvsadm(),
            [foreign[0], foreign[1], "-A -t 172.18.0.2:9999 -s rr", "-A -t [fd00:96::1]:80 -s rr"],
            "another's at the node's own address"
        );
        // Where our table does not say whose they are, all go but what is excluded: so upstream's are removed.
        let mut ipvs = started(Family::V4, excluding());
        replace(&mut ipvs, Family::V4, &[service(local(30080))]);
        run("nft delete table ip kube-proxy-ipvs");
        ipvs.cleanup().unwrap();
        assert_eq!(addresses(), ["fd00:96::1/128"], "the other family is not touched");
        v6.cleanup().unwrap();
        assert_eq!(ipvsadm(), foreign);
        assert!(!succeeds("ip link show dev kube-ipvs0"));
        assert_eq!(run("nft list tables"), "");
    });
}

#[test]
fn thousands_of_services_fit() {
    with_ipvs("thousands_of_services_fit", || {
        let plan = |n: u16, last: u8| {
            let [high, low] = n.to_be_bytes();
            let endpoint =
                |third| Endpoint { address: [10, third, high, low].into(), ..endpoint("10.0.0.1", Elsewhere) };
            service(port(&format!("s{n}"), &format!("10.96.{high}.{low}"), &[endpoint(1), endpoint(2), endpoint(last)]))
        };
        let services: Vec<ServicePlan> = (0..2_000).map(|n| plan(n, 3)).collect();
        let timed = |what: &str, action: &mut dyn FnMut() -> Report| {
            let start = std::time::Instant::now();
            let changes = action().changes;
            eprintln!("{what}: {changes} changes in {:?}", start.elapsed());
            changes
        };
        let mut ipvs = started(Family::V4, Options::default());
        timed("start", &mut || replace(&mut ipvs, Family::V4, &services));
        assert_eq!(ipvsadm().len(), 8_000);
        assert_eq!(addresses().len(), 2_000);
        assert_eq!(timed("one endpoint", &mut || ipvs.update(&[plan(1_000, 4)]).unwrap()), 2);
        assert_eq!(timed("restart", &mut || replace(&mut ipvs, Family::V4, &services)), 2);
        timed("end", &mut || {
            ipvs.cleanup().unwrap();
            Report::default()
        });
        assert_eq!((ipvsadm().len(), addresses().len()), (0, 0));
    });
}
