//! The rules for each kind of Service, as `iptables-save` would print them.

use super::*;
use crate::iptables::Options;
use crate::model::{ObjectName, Protocol};
use crate::plan::{LocalTraffic, NodeFacts, NodePortAddresses, PortName};
use Place::{Elsewhere, Here};

fn shape() -> Shape {
    let facts = NodeFacts {
        family: Family::V4,
        local_traffic: LocalTraffic::Cidr("10.0.0.0/8".parse().unwrap()),
        masquerade_all: false,
        masquerade_mark: 0x4000,
        node_port_addresses: NodePortAddresses::All,
        host_addresses: vec![],
        service_cidrs: Vec::new(),
    };
    Shape::new(&facts, Options { localhost_node_ports: true, tcp_be_liberal: false }, false, Layout::Full)
}

fn sparse() -> Shape {
    Shape { layout: Layout::Sparse, ..shape() }
}

fn drawn() -> Shape {
    Shape { layout: Layout::Drawn, ..shape() }
}

fn endpoint(address: &str, place: Place) -> Endpoint {
    Endpoint { address: address.parse().unwrap(), port: 8080, place, weight: 1 }
}

/// `ns1/svc1:p80`, whose hashes the contract gives, with an endpoint here and one elsewhere.
fn port() -> PortPlan {
    PortPlan {
        name: PortName { service: ObjectName::new("ns1", "svc1"), port: "p80".into(), protocol: Protocol::Tcp },
        cluster_ip: "172.30.0.41".parse().unwrap(),
        port: 80,
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        node_port: None,
        internal: Route::Cluster,
        external: Route::Cluster,
        external_local: false,
        source_ranges: Vec::new(),
        allow_vip_sources: false,
        affinity: None,
        scheduler: None,
        cluster: vec![endpoint("10.180.0.1", Here), endpoint("10.180.1.1", Elsewhere)],
        local: Vec::new(),
        serving: Vec::new(),
    }
}

/// Names as short as a reader likes them: the hashes of the port and of its two endpoints.
fn shorten(line: &str) -> String {
    line.replace("XPGD46QRK7WJZT7O", "x").replace("CPWPCALSNDDLLDLJ", "1").replace("WSZU2WHNA7645Q2J", "2")
}

fn written(shape: &Shape, port: PortPlan, comments: bool) -> Vec<String> {
    let plan = ServicePlan { ports: vec![port.clone()], ..ServicePlan::none(&port.name.service) };
    let rules = rules(shape, &plan, comments);
    let chains = rules.chains.iter().flat_map(|chain| rules.text(chain).lines()).map(shorten);
    let shared = rules
        .shared
        .iter()
        .map(|(chain, rule)| shorten(&format!("{}: -A {} {rule}", chain.table().as_str(), chain.name())));
    chains.chain(shared).collect()
}

#[track_caller]
fn expect(port: PortPlan, expected: &[&str]) {
    let written = written(&shape(), port, false);
    assert!(written == expected, "{:#?}", written);
}

#[test]
fn a_cluster_ip() {
    expect(
        port(),
        &[
            "-A KUBE-SEP-1 -s 10.180.0.1/32 -j KUBE-MARK-MASQ",
            "-A KUBE-SEP-1 -p tcp -m tcp -j DNAT --to-destination 10.180.0.1:8080",
            "-A KUBE-SEP-2 -s 10.180.1.1/32 -j KUBE-MARK-MASQ",
            "-A KUBE-SEP-2 -p tcp -m tcp -j DNAT --to-destination 10.180.1.1:8080",
            "-A KUBE-SVC-x ! -s 10.0.0.0/8 -d 172.30.0.41/32 -p tcp -m comment --comment \"ns1/svc1:p80 cluster IP\" \
             -m tcp --dport 80 -j KUBE-MARK-MASQ",
            "-A KUBE-SVC-x -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-1",
            "-A KUBE-SVC-x -j KUBE-SEP-2",
            "nat: -A KUBE-SERVICES -d 172.30.0.41/32 -p tcp -m comment --comment \"ns1/svc1:p80 cluster IP\" \
             -m tcp --dport 80 -j KUBE-SVC-x",
        ],
    );
}

/// The lines that `port` has beyond those of a plain ClusterIP.
#[track_caller]
fn expect_more(port: PortPlan, expected: &[&str]) {
    let plain = written(&shape(), self::port(), false);
    let more: Vec<_> = written(&shape(), port, false).into_iter().filter(|line| !plain.contains(line)).collect();
    assert!(more == expected, "{more:#?}");
}

#[test]
fn external_addresses() {
    let port = PortPlan {
        external_ips: vec!["192.168.99.22".parse().unwrap()],
        load_balancer_ips: vec!["1.2.3.4".parse().unwrap()],
        node_port: Some(3001),
        ..port()
    };
    expect_more(
        port,
        &[
            "-A KUBE-EXT-x -m comment --comment \"ns1/svc1:p80 from outside\" -j KUBE-MARK-MASQ",
            "-A KUBE-EXT-x -j KUBE-SVC-x",
            "nat: -A KUBE-SERVICES -d 192.168.99.22/32 -p tcp -m comment --comment \"ns1/svc1:p80 external IP\" \
             -m tcp --dport 80 -j KUBE-EXT-x",
            "nat: -A KUBE-SERVICES -d 1.2.3.4/32 -p tcp -m comment --comment \"ns1/svc1:p80 loadbalancer IP\" \
             -m tcp --dport 80 -j KUBE-EXT-x",
            "nat: -A KUBE-NODEPORTS -p tcp -m comment --comment \"ns1/svc1:p80\" -m tcp --dport 3001 -j KUBE-EXT-x",
        ],
    );
}

#[test]
fn external_policy_local() {
    let port = PortPlan {
        node_port: Some(3001),
        external: Route::Local,
        external_local: true,
        local: vec![endpoint("10.180.0.1", Here)],
        ..port()
    };
    expect_more(
        port,
        &[
            "-A KUBE-SVL-x -j KUBE-SEP-1",
            "-A KUBE-EXT-x -s 10.0.0.0/8 -m comment --comment \"ns1/svc1:p80 from pods\" -j KUBE-SVC-x",
            "-A KUBE-EXT-x -m comment --comment \"ns1/svc1:p80 from this node\" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ",
            "-A KUBE-EXT-x -m comment --comment \"ns1/svc1:p80 from this node\" -m addrtype --src-type LOCAL -j KUBE-SVC-x",
            "-A KUBE-EXT-x -j KUBE-SVL-x",
            "nat: -A KUBE-NODEPORTS -p tcp -m comment --comment \"ns1/svc1:p80\" -m tcp --dport 3001 -j KUBE-EXT-x",
        ],
    );
}

#[test]
fn external_policy_local_without_local_endpoints() {
    let port = PortPlan {
        node_port: Some(3001),
        external_ips: vec!["192.168.99.22".parse().unwrap()],
        external: Route::Drop,
        external_local: true,
        ..port()
    };
    expect_more(
        port,
        &[
            "-A KUBE-EXT-x -s 10.0.0.0/8 -m comment --comment \"ns1/svc1:p80 from pods\" -j KUBE-SVC-x",
            "-A KUBE-EXT-x -m comment --comment \"ns1/svc1:p80 from this node\" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ",
            "-A KUBE-EXT-x -m comment --comment \"ns1/svc1:p80 from this node\" -m addrtype --src-type LOCAL -j KUBE-SVC-x",
            "nat: -A KUBE-SERVICES -d 192.168.99.22/32 -p tcp -m comment --comment \"ns1/svc1:p80 external IP\" \
             -m tcp --dport 80 -j KUBE-EXT-x",
            "nat: -A KUBE-NODEPORTS -p tcp -m comment --comment \"ns1/svc1:p80\" -m tcp --dport 3001 -j KUBE-EXT-x",
            "filter: -A KUBE-EXTERNAL-SERVICES -d 192.168.99.22/32 -p tcp -m comment --comment \"ns1/svc1:p80 has no local endpoints\" \
             -m tcp --dport 80 -j DROP",
            "filter: -A KUBE-EXTERNAL-SERVICES -p tcp -m comment --comment \"ns1/svc1:p80 has no local endpoints\" \
             -m addrtype --dst-type LOCAL -m tcp --dport 3001 -j DROP",
        ],
    );
}

#[test]
fn source_ranges() {
    let port = PortPlan {
        load_balancer_ips: vec!["1.2.3.4".parse().unwrap()],
        source_ranges: vec!["203.0.113.0/25".parse().unwrap()],
        allow_vip_sources: true,
        ..port()
    };
    expect_more(
        port,
        &[
            "-A KUBE-EXT-x -m comment --comment \"ns1/svc1:p80 from outside\" -j KUBE-MARK-MASQ",
            "-A KUBE-EXT-x -j KUBE-SVC-x",
            "-A KUBE-FW-x -s 203.0.113.0/25 -m comment --comment \"ns1/svc1:p80 loadbalancer IP\" -j KUBE-EXT-x",
            "-A KUBE-FW-x -s 1.2.3.4/32 -m comment --comment \"ns1/svc1:p80 loadbalancer IP\" -j KUBE-EXT-x",
            "-A KUBE-FW-x -m comment --comment \"ns1/svc1:p80 from elsewhere is dropped by KUBE-PROXY-FIREWALL\"",
            "filter: -A KUBE-PROXY-FIREWALL -d 1.2.3.4/32 -p tcp -m comment --comment \"ns1/svc1:p80 traffic not accepted by KUBE-FW-x\" \
             -m tcp --dport 80 -j DROP",
            "nat: -A KUBE-SERVICES -d 1.2.3.4/32 -p tcp -m comment --comment \"ns1/svc1:p80 loadbalancer IP\" \
             -m tcp --dport 80 -j KUBE-FW-x",
        ],
    );
}

#[test]
fn affinity_by_recent() {
    expect_more(
        PortPlan { affinity: Some(10800), ..port() },
        &[
            "-A KUBE-SEP-1 -p tcp -m recent --set --name KUBE-SEP-1 --mask 255.255.255.255 --rsource -m tcp -j DNAT \
             --to-destination 10.180.0.1:8080",
            "-A KUBE-SEP-2 -p tcp -m recent --set --name KUBE-SEP-2 --mask 255.255.255.255 --rsource -m tcp -j DNAT \
             --to-destination 10.180.1.1:8080",
            "-A KUBE-SVC-x -m recent --rcheck --seconds 10800 --reap --name KUBE-SEP-1 --mask 255.255.255.255 --rsource -j KUBE-SEP-1",
            "-A KUBE-SVC-x -m recent --rcheck --seconds 10800 --reap --name KUBE-SEP-2 --mask 255.255.255.255 --rsource -j KUBE-SEP-2",
        ],
    );
}

/// Sources that the ranges let through are then treated by policy Local; the firewall stands before, not instead.
#[test]
fn source_ranges_with_external_policy_local() {
    let port = PortPlan {
        load_balancer_ips: vec!["1.2.3.4".parse().unwrap()],
        source_ranges: vec!["0.0.0.0/0".parse().unwrap(), "203.0.113.0/25".parse().unwrap()],
        external: Route::Drop,
        external_local: true,
        ..port()
    };
    expect_more(
        port,
        &[
            "-A KUBE-EXT-x -s 10.0.0.0/8 -m comment --comment \"ns1/svc1:p80 from pods\" -j KUBE-SVC-x",
            "-A KUBE-EXT-x -m comment --comment \"ns1/svc1:p80 from this node\" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ",
            "-A KUBE-EXT-x -m comment --comment \"ns1/svc1:p80 from this node\" -m addrtype --src-type LOCAL -j KUBE-SVC-x",
            "-A KUBE-FW-x -m comment --comment \"ns1/svc1:p80 loadbalancer IP\" -j KUBE-EXT-x",
            "-A KUBE-FW-x -s 203.0.113.0/25 -m comment --comment \"ns1/svc1:p80 loadbalancer IP\" -j KUBE-EXT-x",
            "-A KUBE-FW-x -m comment --comment \"ns1/svc1:p80 from elsewhere is dropped by KUBE-PROXY-FIREWALL\"",
            "filter: -A KUBE-PROXY-FIREWALL -d 1.2.3.4/32 -p tcp -m comment --comment \"ns1/svc1:p80 traffic not accepted by KUBE-FW-x\" \
             -m tcp --dport 80 -j DROP",
            "nat: -A KUBE-SERVICES -d 1.2.3.4/32 -p tcp -m comment --comment \"ns1/svc1:p80 loadbalancer IP\" \
             -m tcp --dport 80 -j KUBE-FW-x",
            "filter: -A KUBE-EXTERNAL-SERVICES -d 1.2.3.4/32 -p tcp -m comment --comment \"ns1/svc1:p80 has no local endpoints\" \
             -m tcp --dport 80 -j DROP",
        ],
    );
}

/// The rule that counts comes before the one that does not, and only where loopback is served.
#[test]
fn node_ports_on_loopback_are_counted_with_affinity_as_without() {
    let mut shape = shape();
    shape.counted = true;
    let port = PortPlan { node_port: Some(3001), affinity: Some(60), ..port() };
    let node_ports = |shape: &Shape| -> Vec<_> {
        written(shape, port.clone(), false).into_iter().filter(|line| line.contains("KUBE-NODEPORTS")).collect()
    };
    let plain = "nat: -A KUBE-NODEPORTS -p tcp -m comment --comment \"ns1/svc1:p80\" -m tcp --dport 3001 -j KUBE-EXT-x";
    let counted = "nat: -A KUBE-NODEPORTS -d 127.0.0.0/8 -p tcp -m comment --comment \"ns1/svc1:p80\" -m tcp --dport 3001 \
                   -m nfacct --nfacct-name  localhost_nps_accepted_pkts -j KUBE-EXT-x";
    assert_eq!(node_ports(&shape), [counted, plain]);
    shape.options.localhost_node_ports = false;
    assert_eq!(node_ports(&shape), [plain]);
}

#[test]
fn pods_are_told_by_their_interface_on_the_way_in_too() {
    let mut shape = shape();
    shape.facts.local_traffic = LocalTraffic::InterfacePrefix("veth".into());
    let local = PortPlan { node_port: Some(3001), external: Route::Drop, external_local: true, ..port() };
    let written = written(&shape, local, false);
    let from_pods = "-A KUBE-EXT-x -i veth+ -m comment --comment \"ns1/svc1:p80 from pods\" -j KUBE-SVC-x";
    assert!(written.iter().any(|line| line == from_pods), "{written:#?}");
}

#[test]
fn health_check_ports_are_let_in() {
    let plan =
        ServicePlan { health_check_node_port: Some(32000), ..ServicePlan::none(&ObjectName::new("ns1", "svc1")) };
    let rules = rules(&shape(), &plan, false);
    let [(chain, rule)] = &rules.shared[..] else { panic!("{:?}", rules.shared.len()) };
    assert_eq!((chain.table().as_str(), &*chain.name()), ("filter", "KUBE-NODEPORTS"));
    assert_eq!(rule, "-p tcp -m comment --comment \"ns1/svc1 health check node port\" -m tcp --dport 32000 -j ACCEPT");
}

#[test]
fn no_endpoints_at_all() {
    let port = PortPlan {
        internal: Route::Reject,
        external: Route::Reject,
        cluster: Vec::new(),
        load_balancer_ips: vec!["1.2.3.4".parse().unwrap()],
        source_ranges: vec!["203.0.113.0/25".parse().unwrap()],
        node_port: Some(3001),
        ..port()
    };
    expect(
        port,
        &[
            "filter: -A KUBE-SERVICES -d 172.30.0.41/32 -p tcp -m comment --comment \"ns1/svc1:p80 has no endpoints\" \
             -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable",
            "filter: -A KUBE-EXTERNAL-SERVICES -d 1.2.3.4/32 -p tcp -m comment --comment \"ns1/svc1:p80 has no endpoints\" \
             -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable",
            "filter: -A KUBE-EXTERNAL-SERVICES -p tcp -m comment --comment \"ns1/svc1:p80 has no endpoints\" \
             -m addrtype --dst-type LOCAL -m tcp --dport 3001 -j REJECT --reject-with icmp-port-unreachable",
        ],
    );
}

#[test]
fn internal_policy_local_without_local_endpoints() {
    expect(
        PortPlan { internal: Route::Drop, cluster: Vec::new(), ..port() },
        &[
            "filter: -A KUBE-SERVICES -d 172.30.0.41/32 -p tcp -m comment --comment \"ns1/svc1:p80 has no local endpoints\" \
           -m tcp --dport 80 -j DROP",
        ],
    );
}

#[test]
fn endpoints_without_a_chain_of_their_own() {
    let choosing: Vec<_> = written(&drawn(), port(), false);
    assert_eq!(
        choosing,
        [
            "-A KUBE-SEP-1 -s 10.180.0.1/32 -j KUBE-MARK-MASQ",
            "-A KUBE-SEP-1 -p tcp -m tcp -j DNAT --to-destination 10.180.0.1:8080",
            "nat: -A KUBE-SVC-2-1 -d 172.30.0.41/32 -p tcp -m tcp --dport 80 -j KUBE-SEP-1",
            "nat: -A KUBE-SVC-2-2 -d 172.30.0.41/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.180.1.1:8080",
        ]
    );
    let one = written(&drawn(), PortPlan { cluster: vec![endpoint("10.180.1.1", Elsewhere)], ..port() }, false);
    assert_eq!(
        one,
        ["nat: -A KUBE-SERVICES -d 172.30.0.41/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.180.1.1:8080"]
    );
}

#[test]
fn who_has_a_chain_among_many_services() {
    let some = written(&sparse(), port(), true);
    let all = written(&shape(), port(), true);
    let (chain, jump): (Vec<_>, Vec<_>) =
        all.iter().filter(|line| !some.contains(line)).partition(|line| line.starts_with("-A KUBE-SEP-2"));
    assert_eq!((chain.len(), jump.len()), (2, 1), "nothing else is different");
    let more: Vec<_> = some.iter().filter(|line| !all.contains(line)).collect();
    assert_eq!(
        more,
        [
            "-A KUBE-SVC-x -p tcp -m comment --comment \"ns1/svc1:p80 -> 10.180.1.1:8080\" -j DNAT --to-destination 10.180.1.1:8080"
        ]
    );

    let placed = |place| PortPlan { cluster: vec![endpoint("10.180.0.1", place)], ..port() };
    let affine = PortPlan { affinity: Some(1), ..port() };
    let endpoints = |shape: &Shape, port: &PortPlan| {
        let lines = written(shape, port.clone(), false).into_iter();
        lines.filter(|line| line.starts_with("-A KUBE-SEP")).collect::<Vec<_>>()
    };
    for shape in [sparse(), drawn()] {
        assert_eq!(endpoints(&shape, &affine), endpoints(&self::shape(), &affine), "affinity needs every chain");
        assert_eq!(endpoints(&shape, &placed(Place::Unknown)).len(), 2, "it may be here");
        assert_eq!(endpoints(&shape, &placed(Place::Elsewhere)).len(), 0);
        let from_outside = PortPlan { node_port: Some(3001), ..placed(Elsewhere) };
        assert_eq!(endpoints(&shape, &from_outside).len(), 0);
        let local = PortPlan { external_local: true, external: Route::Drop, ..from_outside };
        assert_eq!(endpoints(&shape, &local).len(), 2, "it may come as a client of the node that it is not on");
    }
}

/// Where more leads to the endpoints than the ClusterIP, or they are not alike, the Service has its chain.
#[test]
fn who_draws_alone() {
    let cluster = || vec![endpoint("10.180.1.1", Elsewhere), endpoint("10.180.1.2", Elsewhere)];
    let port = || PortPlan { cluster: cluster(), ..port() };
    let draws_alone = |port| {
        let written = written(&drawn(), port, false);
        let chain = [
            "-A KUBE-SVC-x -p tcp -m statistic --mode random --probability 0.50000000000 -j DNAT \
             --to-destination 10.180.1.1:8080",
            "-A KUBE-SVC-x -p tcp -j DNAT --to-destination 10.180.1.2:8080",
        ];
        let jump = "nat: -A KUBE-SERVICES -d 172.30.0.41/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-x";
        written.starts_with(&chain.map(str::to_owned)) && written.iter().any(|line| line == jump)
    };
    assert!(!draws_alone(port()));
    assert!(draws_alone(PortPlan { node_port: Some(3001), ..port() }));
    assert!(draws_alone(PortPlan { external_ips: vec!["1.2.3.4".parse().unwrap()], ..port() }));

    let has_chain = |port| written(&drawn(), port, false).iter().any(|line| line.starts_with("-A KUBE-SVC-x "));
    let mut cluster = cluster();
    cluster[0].weight = 3;
    assert!(has_chain(PortPlan { cluster, ..port() }));
    assert!(has_chain(PortPlan { affinity: Some(1), ..port() }));
    let many = |number| (0..number).map(|n| endpoint(&format!("10.180.1.{n}"), Elsewhere)).collect();
    assert!(!has_chain(PortPlan { cluster: many(*DRAWN.end()), ..port() }));
    assert!(has_chain(PortPlan { cluster: many(*DRAWN.end() + 1), ..port() }));
}

#[test]
fn many_services_have_one_rule_for_who_is_masqueraded() {
    let chain =
        |shape: &Shape| [shape.head(Shared::Services), shape.tail(Shared::Services)].map(|rules| rules.join("; "));
    let [head, tail] = chain(&drawn());
    let draws = DRAWN.map(|of| format!("-j KUBE-SVC-{of}")).collect::<Vec<_>>().join("; ");
    assert_eq!(head, format!("! -s 10.0.0.0/8 -j KUBE-MARK-MASQ; {draws}"));
    let [nothing, node_ports] = chain(&shape());
    assert_eq!((nothing, tail), (String::new(), format!("-j MARK --set-xmark 0x0/0x4000; {node_ports}")));

    let everybody = NodeFacts { masquerade_all: true, ..shape().facts };
    assert_eq!(chain(&Shape { facts: everybody, ..drawn() })[0], format!("-j KUBE-MARK-MASQ; {draws}"));
    let nobody = NodeFacts { local_traffic: LocalTraffic::Unknown, ..shape().facts };
    assert_eq!(chain(&Shape { facts: nobody, ..drawn() }), [draws, node_ports]);

    // From outside: policy Cluster marks everything anyway, policy Local keeps the client's address.
    let external = |external_local| PortPlan { node_port: Some(3001), external_local, ..port() };
    let marks = |port| {
        let lines = written(&drawn(), port, false).into_iter();
        lines.filter(|line| line.starts_with("-A KUBE-EXT") && line.contains("MARK")).collect::<Vec<_>>()
    };
    assert!(marks(external(false))[0].ends_with("from outside\" -j KUBE-MARK-MASQ"));
    assert_eq!(marks(external(true))[0], "-A KUBE-EXT-x -j MARK --set-xmark 0x0/0x4000");
}

#[test]
fn weights_are_shares() {
    let mut port = port();
    port.cluster =
        [(3, "10.180.0.1"), (1, "10.180.1.1")].map(|(weight, a)| Endpoint { weight, ..endpoint(a, Here) }).into();
    let shares = written(&shape(), port.clone(), false);
    assert!(shares[5].contains("--probability 0.75000000000 -j KUBE-SEP-1"), "{shares:#?}");
    port.cluster[0].weight = 0;
    let shares = written(&shape(), port.clone(), false);
    assert_eq!(shares[5], "-A KUBE-SVC-x -j KUBE-SEP-2", "no new connections for weight 0");
    port.cluster[1].weight = 0;
    let shares = written(&shape(), port, false);
    assert!(shares[5].contains("--probability 0.50000000000 -j KUBE-SEP-1"), "unless all have it: {shares:#?}");
}

#[test]
fn how_sources_are_told() {
    for (local_traffic, masquerade_all, rule) in [
        (LocalTraffic::Unknown, false, None),
        (LocalTraffic::Unknown, true, Some("-A KUBE-SVC-x -d 172.30.0.41/32 -p tcp ")),
        (LocalTraffic::Interface("br0".into()), false, Some("-A KUBE-SVC-x -d 172.30.0.41/32 ! -i br0 -p tcp ")),
        (
            LocalTraffic::InterfacePrefix("veth".into()),
            false,
            Some("-A KUBE-SVC-x -d 172.30.0.41/32 ! -i veth+ -p tcp "),
        ),
    ] {
        let mut shape = shape();
        (shape.facts.local_traffic, shape.facts.masquerade_all) = (local_traffic, masquerade_all);
        let written = written(&shape, port(), false);
        let first = written.iter().find(|line| line.starts_with("-A KUBE-SVC-x") && line.ends_with("KUBE-MARK-MASQ"));
        assert!(
            first.is_some() == rule.is_some() && first.is_none_or(|line| line.starts_with(rule.unwrap())),
            "{first:?}"
        );
    }
}

#[test]
fn the_other_family() {
    let mut shape = shape();
    shape.facts.family = Family::V6;
    shape.facts.local_traffic = LocalTraffic::Cidr("fd00:10::/32".parse().unwrap());
    let port = PortPlan {
        cluster_ip: "fd00:172:30::41".parse().unwrap(),
        cluster: vec![endpoint("fd00:10:180::1", Here)],
        affinity: Some(60),
        ..port()
    };
    let written = written(&shape, port.clone(), false);
    let dnat = &written[1];
    assert!(dnat.contains("--mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource"), "{dnat}");
    assert!(dnat.ends_with("--to-destination [fd00:10:180::1]:8080"), "{dnat}");
    assert!(written[2].starts_with("-A KUBE-SVC-x ! -s fd00:10::/32 -d fd00:172:30::41/128 -p tcp "), "{}", written[2]);
    let refused = self::written(
        &shape,
        PortPlan { internal: Route::Reject, external: Route::Reject, cluster: Vec::new(), ..port },
        false,
    );
    assert!(refused[0].ends_with("REJECT --reject-with icmp6-port-unreachable"), "{refused:?}");
}
