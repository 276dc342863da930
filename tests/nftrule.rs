//! The compiler of rules beside `nft` itself: what we program is printed by nft as text, the text is given to nft again,
//! and both must have become the same expressions.

mod support;

use std::collections::BTreeMap;

use kube_proxy::backend::Backend;
use kube_proxy::model::Family;
use kube_proxy::nftables::Table;
use kube_proxy::plan::{LocalTraffic, NodeFacts, NodePortAddresses, Route};
use support::netns::{isolated, run};
use support::plans::{facts, service};

/// Facts that between them bring out every variant of the shared rules.
fn variants(family: Family) -> Vec<NodeFacts> {
    let plain = facts(family);
    let (odd, own) = match family {
        Family::V4 => ("10.64.0.0/11", "192.0.2.1"),
        Family::V6 => ("fd00:64::/43", "2001:db8::1"),
    };
    vec![
        plain.clone(),
        NodeFacts {
            local_traffic: LocalTraffic::Cidr(odd.parse().unwrap()),
            masquerade_mark: 1 << 31,
            ..plain.clone()
        },
        NodeFacts { local_traffic: LocalTraffic::Interface("cni0".into()), masquerade_mark: 1, ..plain.clone() },
        NodeFacts { local_traffic: LocalTraffic::InterfacePrefix("veth".into()), ..plain.clone() },
        NodeFacts { local_traffic: LocalTraffic::Unknown, masquerade_all: true, ..plain.clone() },
        NodeFacts { node_port_addresses: NodePortAddresses::Only(vec![own.parse().unwrap()]), ..plain },
    ]
}

/// Programs the facts with Services of every class.
fn program(facts: &NodeFacts) {
    let family = facts.family;
    let mut sticky = service(family, 2, &[1, 101]);
    // nft 1.0.6 lists the rules of affinity in both families, but runs out of registers when it has to make them for
    // IPv6 (an assertion in netlink_linearize.c).
    sticky.ports[0].affinity = (family == Family::V4).then_some(10800);
    sticky.ports[0].local = sticky.ports[0].cluster[..1].to_vec();
    sticky.ports[0].node_port = Some(30002);
    sticky.ports[0].external_local = true;
    sticky.ports[0].external = Route::Local;
    let mut local = service(family, 3, &[1, 101, 102]);
    local.ports[0].local = local.ports[0].cluster[..1].to_vec();
    local.ports[0].internal = Route::Local;
    let services = [service(family, 1, &[101, 102, 103]), sticky, local];
    Table::new(family).unwrap().replace(facts, &mut services.into_iter()).unwrap();
}

/// The expressions of each chain's rules, as nft reads them from the kernel.
fn expressions(family: &str) -> BTreeMap<String, Vec<String>> {
    let mut chains: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut chain = String::new();
    for line in run(&format!("nft --debug=netlink list table {family} kube-proxy")).lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.starts_with(&format!("{family} kube-proxy ")) && words.len() >= 4 {
            chain = words[2].to_owned();
            chains.entry(chain.clone()).or_default().push("rule".into());
        } else if line.starts_with("  [ ") {
            chains.entry(chain.clone()).or_default().push(line.trim().to_owned());
        }
    }
    chains
}

/// What nft prints, in a form that it accepts: keys that only `typeof` can declare, and a transport protocol where it
/// insists on one before ports are mapped.
fn accepted(text: &str, family: &str) -> String {
    text.lines()
        .map(|line| {
            let line = line
                .replace("type classid . mark : classid", "typeof meta priority . numgen random mod 2 : meta priority")
                .replace("type classid . mark : ", "typeof meta priority . numgen random mod 2 : ")
                .replace("numgen random mod 2 : ipv4_addr . inet_service", "numgen random mod 2 : ip daddr . tcp dport")
                .replace(
                    "numgen random mod 2 : ipv6_addr . inet_service",
                    "numgen random mod 2 : ip6 daddr . tcp dport",
                );
            format!("{}\n", line.replace(&format!("dnat {family} to"), &format!("meta l4proto tcp dnat {family} to")))
        })
        .collect()
}

/// Without the transport protocol that [`accepted`] added, and without nft's swapping of the one byte of a protocol,
/// which does nothing.
fn without_additions(expressions: Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for expression in expressions.into_iter().filter(|expression| {
        !expression.ends_with("= hton(reg 9, 2, 1) ]") && !expression.ends_with("= hton(reg 2, 2, 1) ]")
    }) {
        if expression == "[ cmp eq reg 1 0x00000006 ]"
            && kept.last().is_some_and(|last| last == "[ meta load l4proto => reg 1 ]")
        {
            kept.pop();
        } else {
            kept.push(expression);
        }
    }
    kept
}

#[test]
fn our_rules_are_what_nft_makes_of_their_text() {
    isolated("our_rules_are_what_nft_makes_of_their_text", || {
        for (family, name) in [(Family::V4, "ip"), (Family::V6, "ip6")] {
            for facts in variants(family) {
                program(&facts);
                let ours = expressions(name);
                let text = accepted(&run(&format!("nft --terse list table {name} kube-proxy")), name);
                run(&format!("nft delete table {name} kube-proxy"));
                std::fs::write("/run/rules.nft", &text).unwrap();
                run("nft -f /run/rules.nft");
                let theirs = expressions(name);
                assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
                for (chain, expressions) in theirs {
                    assert_eq!(ours[&chain], without_additions(expressions), "chain {chain} with {facts:?}");
                }
                assert!(ours.values().map(Vec::len).sum::<usize>() > 100, "there was something to compare");
                run(&format!("nft delete table {name} kube-proxy"));
            }
        }
    });
}
