//! The iptables backend against the real tools, in both variants: what it programs is read back with `iptables-save` and
//! tried with packets, in private namespaces.

#[path = "../support/mod.rs"]
mod support;

mod leftovers;
mod network;
mod plans;

use std::collections::BTreeMap;
use std::net::UdpSocket;

use kube_proxy::backend::{Backend, Report};
use kube_proxy::iptables::{self, Iptables, Options};
use kube_proxy::model::{Family, ObjectName};
use kube_proxy::plan::{NodeFacts, NodePortAddresses, ServicePlan};

use network::Answer;
use plans::{Plan, facts};
use support::netns::{is_root_of_the_machine, isolated, run, succeeds};

const OPTIONS: Options = Options { localhost_node_ports: true, tcp_be_liberal: false };

/// One test for each variant of the tools.
macro_rules! in_both_variants {
    ($($(#[$doc:meta])* fn $name:ident() $body:block)*) => {$(
        mod $name {
            use super::*;

            $(#[$doc])*
            fn body() $body

            #[test]
            fn nft() {
                isolated(&inside(module_path!(), "nft"), || { use_variant("nft"); body() });
            }

            #[test]
            fn legacy() {
                isolated(&inside(module_path!(), "legacy"), || { use_variant("legacy"); body() });
            }
        }
    )*};
}

mod faults;

/// What `cargo test` calls a test in a module.
fn inside(module: &str, test: &str) -> String {
    let (_binary, path) = module.split_once("::").expect("a module is in a crate");
    format!("{path}::{test}")
}

/// Puts a variant first on the PATH of these namespaces, by covering the first directory that is there.
fn use_variant(variant: &str) {
    let path = std::env::var("PATH").expect("there is a PATH");
    let first = path.split(':').find(|dir| std::path::Path::new(dir).is_dir()).expect("a directory in the PATH exists");
    let tools = "for t in iptables ip6tables; do for s in '' -save -restore; do ln -s $(command -v $t-VARIANT$s) /run/$t$s; done; done";
    run(&tools.replace("VARIANT", variant));
    run(&format!(
        "mkdir /run/first && cp -RP {first}/. /run/first/ && mv -f /run/iptables* /run/ip6tables* /run/first/"
    ));
    run(&format!("mount --bind /run/first {first}"));
    let word = if variant == "nft" { "nf_tables" } else { variant };
    assert!(run("iptables --version").contains(word), "the {variant} variant is first on the PATH");
}

/// Lets a tool of this variant do something else first.
fn before(tool: &str, first: &str) {
    let place = run(&format!("command -v {tool}"));
    let real = run(&format!("readlink {place}"));
    let script = format!("#!/bin/sh\n{first}\nexec {} \"$@\"\n", real.trim());
    std::fs::write("/run/script", script).expect("there is room");
    run(&format!("chmod +x /run/script && mv -f /run/script {place}"));
}

fn backend(family: Family) -> Iptables {
    Iptables::new(family, OPTIONS).expect("iptables is there")
}

fn programmed(facts: &NodeFacts, plans: &[ServicePlan]) -> Iptables {
    let mut backend = backend(facts.family);
    let report = backend.replace(facts, &mut plans.iter().cloned()).expect("rules are programmed");
    assert!(report.set_aside.is_empty(), "{:?}", report.set_aside);
    backend
}

/// How rules end that lead to a draw among so many endpoints.
const DRAWS: [&str; 7] = [
    "-j KUBE-SVC-2",
    "-j KUBE-SVC-3",
    "-j KUBE-SVC-4",
    "-j KUBE-SVC-5",
    "-j KUBE-SVC-6",
    "-j KUBE-SVC-7",
    "-j KUBE-SVC-8",
];

type Saved = BTreeMap<(String, String), Vec<String>>;

/// All rules by table and chain. Rules of chains whose order has no meaning are sorted.
fn saved(family: Family) -> Saved {
    let tool = if family == Family::V4 { "iptables" } else { "ip6tables" };
    let mut chains = BTreeMap::new();
    for table in ["nat", "filter", "mangle"] {
        for line in run(&format!("{tool}-save -t {table}")).lines() {
            let name = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
            if let Some(declared) = line.strip_prefix(':') {
                chains.insert((table.to_owned(), name(declared)), Vec::new());
            } else if let Some(rule) = line.strip_prefix("-A ") {
                chains
                    .get_mut(&(table.to_owned(), name(rule)))
                    .expect("chains are declared first")
                    .push(rule.to_owned());
            }
        }
    }
    for ((_, name), rules) in &mut chains {
        if ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL"].contains(&name.as_str())
        {
            let mut last: Vec<_> = rules.extract_if(.., |rule| rule.ends_with("-j KUBE-NODEPORTS")).collect();
            let unmark = rules.pop_if(|rule| rule.contains("-j MARK "));
            last.splice(0..0, unmark);
            let leads =
                |rule: &&String| rule.ends_with("-j KUBE-MARK-MASQ") || DRAWS.iter().any(|to| rule.ends_with(to));
            let first = rules.iter().take_while(leads).count();
            rules[first..].sort();
            rules.extend(last);
        } else if name.strip_prefix("KUBE-SVC-").is_some_and(|rest| rest.len() == "2-1".len()) {
            rules.sort();
        }
    }
    chains
}

/// The same as far as packets notice.
fn without_comments(mut saved: Saved) -> Saved {
    for rule in saved.values_mut().flatten() {
        while let Some(at) = rule.find("-m comment ") {
            let end = at + rule[at..].match_indices('"').nth(1).expect("a comment has quotes").0;
            rule.replace_range(at..rule.len().min(end + 2), "");
        }
    }
    saved
}

/// Compares what is saved, and says only what differs.
fn assert_same(left: &Saved, right: &Saved) {
    let differing = |a: &Saved, b: &Saved| {
        a.iter().filter(|(name, rules)| b.get(*name) != Some(*rules)).map(|c| format!("{c:#?}")).collect::<String>()
    };
    assert!(
        left == right,
        "only on the left:\n{}only on the right:\n{}",
        differing(left, right),
        differing(right, left)
    );
}

/// As if nothing had ever been there.
fn wipe(family: Family) {
    let tool = if family == Family::V4 { "iptables" } else { "ip6tables" };
    run(&format!("for t in nat filter mangle; do {tool} -t $t -F; {tool} -t $t -X; done"));
}

/// One Service of every kind.
fn every_kind(family: Family) -> Vec<ServicePlan> {
    let plan = |n| Plan::new(family, n);
    vec![
        plan(1).build(),
        plan(2).endpoints(&[2, 3]).build(),
        plan(3).endpoints(&[2, 3]).node_port(30003).external_ip().build(),
        plan(4).endpoints(&[2, 3]).node_port(30004).load_balancer(&["from"]).build(),
        plan(5).endpoints(&[2, 3]).local(&[2]).node_port(30005).load_balancer(&[]).health_check(32005).build(),
        plan(6).endpoints(&[3]).local(&[]).node_port(30006).external_ip().build(),
        plan(7).endpoints(&[2, 3]).affinity(10800).build(),
        plan(8).endpoints(&[2, 3]).internal_local(&[2]).build(),
        plan(9).node_port(30009).external_ip().load_balancer(&[]).build(),
        plan(10).endpoints(&[2, 3]).udp().node_port(30010).build(),
    ]
}

/// Real connections through every kind of address, with other Services beside them.
fn every_kind_is_reached(others: &[ServicePlan]) {
    let net = network::Network::new();
    let facts = facts(Family::V4);
    let mut live = programmed(&facts, &[&every_kind(Family::V4), others].concat());
    let from = |who: &str, to: &str| net.ask(who, to);

    assert_eq!(from("client", "10.96.0.1:80"), Answer::Refused, "no endpoints");
    assert!(matches!(from("pod2", "10.96.0.2:80"), Answer::From { .. }));
    assert_eq!(from("client", "10.96.0.8:80"), Answer::from("pod2", "10.244.1.1"), "policy Local, source masqueraded");
    assert_eq!(from("pod2", "10.96.0.8:80"), Answer::from("pod2", "10.244.1.1"), "hairpin is masqueraded");
    assert_eq!(from("pod3", "10.96.0.8:80"), Answer::from("pod2", "10.244.1.3"), "pods keep their address");
    assert!(
        matches!(from("client", "192.0.2.1:30003"), Answer::From { source, .. } if source.ends_with(".1")),
        "masqueraded"
    );
    assert!(matches!(from("node", "127.0.0.1:30003"), Answer::From { .. }), "NodePorts on loopback");
    assert_eq!(from("client", "192.0.2.1:30005"), Answer::from("pod2", "192.0.2.2"), "policy Local keeps the source");
    assert_eq!(from("client", "192.0.2.1:30006"), Answer::Silence, "no local endpoint");
    assert_eq!(from("node", "192.0.2.1:30006"), Answer::from("pod3", "10.244.1.1"), "the node itself reaches all");
    assert_eq!(from("client", "192.0.2.1:30009"), Answer::Refused);
    assert!(matches!(from("client", "203.0.113.4:80"), Answer::From { .. }), "an allowed source");
    assert_eq!(from("pod2", "203.0.113.4:80"), Answer::Silence, "another source");

    let first = from("pod2", "10.96.0.7:80");
    for _ in 0..12 {
        assert_eq!(from("pod2", "10.96.0.7:80"), first, "affinity");
    }

    live.update(&[Plan::new(Family::V4, 1).endpoints(&[3]).build()]).unwrap();
    assert_eq!(from("pod2", "10.96.0.1:80"), Answer::from("pod3", "10.244.1.2"), "an endpoint appeared");
    live.update(&[Plan::new(Family::V4, 1).build()]).unwrap();
    assert_eq!(from("pod2", "10.96.0.1:80"), Answer::Refused, "and disappeared");
    live.update(&[Plan::new(Family::V4, 1).endpoint_of_no_node(2).build()]).unwrap();
    assert_eq!(from("pod2", "10.96.0.1:80"), Answer::from("pod2", "10.244.1.1"), "it may be anywhere, so here too");
}

/// Changes Services at random, beside others that stay; compares with a fresh start after each change.
fn change_at_random(family: Family, others: &[ServicePlan]) {
    let facts = facts(family);
    let mut random = plans::Random(if family == Family::V4 { 4 } else { 6 });
    let mut services: BTreeMap<_, _> = others.iter().map(|plan| (plan.name.clone(), plan.clone())).collect();
    let mut live = programmed(&facts, others);
    for _ in 0..6 {
        let changed: Vec<_> = (0..1 + random.below(8)).map(|_| plans::random(&mut random, family)).collect();
        for plan in &changed {
            services.insert(plan.name.clone(), plan.clone());
        }
        let mut unique: Vec<_> = changed.iter().map(|plan| services[&plan.name].clone()).collect();
        unique.sort_by(|a, b| a.name.cmp(&b.name));
        unique.dedup_by(|a, b| a.name == b.name);
        let report = live.update(&unique).expect("a change is programmed");
        assert!(report.set_aside.is_empty(), "{:?}", report.set_aside);
        let after_changes = saved(family);

        wipe(family);
        live = programmed(&facts, &services.values().cloned().collect::<Vec<_>>());
        assert_same(&after_changes, &saved(family));
    }
}

/// So many more Services that all of them are said in another layout.
fn crowd(family: Family) -> Vec<ServicePlan> {
    (100..420).map(|number| Plan::new(family, number).endpoints(&[12]).build()).collect()
}

in_both_variants! {
    /// What was programmed once is recognised, whoever looks: nothing is written, so counters stay.
    fn a_restart_changes_nothing() {
        for family in Family::ALL {
            programmed(&facts(family), &every_kind(family));
            let tool = if family == Family::V4 { "iptables" } else { "ip6tables" };
            let stand = || run(&format!("{tool}-save -c -t nat; {tool}-save -c -t filter; nft -a list ruleset")).lines()
                .filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
            let home = if family == Family::V4 { "127.0.0.1:9" } else { "[::1]:9" };
            UdpSocket::bind(home).unwrap().send_to(b"counted", home).expect("loopback is up");
            let before = stand();
            assert!(before.contains("[1:35] -A OUTPUT") || before.contains("[1:55] -A OUTPUT"), "a packet was counted: {before}");

            let mut again = backend(family);
            let report = again.replace(&facts(family), &mut every_kind(family).into_iter()).unwrap();
            assert_eq!((report.changes, stand()), (0, before));
        }
    }

    /// Chains that no Service needs any more go, once the others are in.
    fn a_restart_removes_what_is_stale() {
        let facts = facts(Family::V4);
        programmed(&facts, &every_kind(Family::V4)[3..]);
        let fresh = saved(Family::V4);
        wipe(Family::V4);
        run("iptables -t nat -N MINE; iptables -t nat -A PREROUTING -j MINE");
        programmed(&facts, &every_kind(Family::V4));
        programmed(&facts, &every_kind(Family::V4)[3..]);
        let mut now = saved(Family::V4);
        assert!(now.remove(&("nat".into(), "MINE".into())).is_some());
        now.get_mut(&("nat".into(), "PREROUTING".into())).unwrap().retain(|rule| !rule.ends_with("MINE"));
        assert_same(&now, &fresh);
    }

    /// After any changes the kernel holds what a fresh start would have programmed.
    fn changes_lead_where_a_fresh_start_leads() {
        for family in Family::ALL {
            change_at_random(family, &[]);
        }
    }

    /// A Service gets what another one gives up, in one update.
    fn addresses_may_change_hands() {
        let facts = facts(Family::V4);
        let plan = |number, external: Option<&ServicePlan>| {
            let mut plan = Plan::new(Family::V4, number).endpoints(&[number]);
            plan.edit(|port| port.external_ips = external.map_or(Vec::new(), |of| of.ports[0].external_ips.clone()));
            plan.build()
        };
        let first = [5, 6].map(|number| Plan::new(Family::V4, number).endpoints(&[number]).external_ip().build());
        let mut live = programmed(&facts, &first);
        let last = [plan(5, Some(&first[1])), plan(6, None)];
        let report = live.update(&last).unwrap();
        assert!(report.set_aside.is_empty(), "{:?}", report.set_aside);
        let now = saved(Family::V4);
        wipe(Family::V4);
        programmed(&facts, &last);
        assert_same(&now, &saved(Family::V4));
    }

    /// A Service that iptables refuses is named and left out; the others are programmed.
    fn a_refused_service_is_set_aside_and_the_rest_programmed() {
        let facts = facts(Family::V4);
        let mut broken = Plan::new(Family::V4, 20).endpoints(&[2]).build();
        broken.ports[0].cluster[0].address = "fd00::1".parse().unwrap();
        let mut plans = every_kind(Family::V4);
        programmed(&facts, &plans);
        let without = saved(Family::V4);

        plans.insert(4, broken.clone());
        let mut live = backend(Family::V4);
        let report = live.replace(&facts, &mut plans.iter().cloned()).unwrap();
        let [(name, reason)] = &report.set_aside[..] else { panic!("one is set aside: {:?}", report.set_aside) };
        assert_eq!(name, &broken.ports[0].name);
        assert!(reason.contains("fd00::1"), "the reason quotes the line: {reason}");
        assert_same(&saved(Family::V4), &without);

        let good = Plan::new(Family::V4, 21).endpoints(&[3]).build();
        let report = live.update(&[broken.clone(), good.clone()]).unwrap();
        assert_eq!(report.set_aside.len(), 1);
        plans.push(good);
        plans.retain(|plan| plan.name != broken.name);
        wipe(Family::V4);
        let after_update = { programmed(&facts, &plans); saved(Family::V4) };
        wipe(Family::V4);
        let mut live = programmed(&facts, &every_kind(Family::V4));
        live.update(&[broken, plans.last().unwrap().clone()]).unwrap();
        assert_same(&saved(Family::V4), &after_update);
    }

    /// Somebody else's flush is noticed, and what is missing comes back.
    fn a_flush_is_noticed_and_repaired() {
        let facts = facts(Family::V4);
        let mut live = programmed(&facts, &every_kind(Family::V4));
        assert!(live.intact());
        let before = saved(Family::V4);
        wipe(Family::V4);
        assert!(!live.intact());
        live.replace(&facts, &mut every_kind(Family::V4).into_iter()).unwrap();
        assert_same(&saved(Family::V4), &before);
        assert!(live.intact());
    }

    /// A rule that somebody took out makes a change fail; programming everything anew mends it.
    fn a_change_that_finds_its_rule_gone_asks_for_everything_anew() {
        let facts = facts(Family::V4);
        let mut live = programmed(&facts, &every_kind(Family::V4));
        run("iptables -t nat -D KUBE-SERVICES 1");
        let gone = |n| ServicePlan::none(&Plan::new(Family::V4, n).build().name);
        let error = live.update(&(1..=10).map(gone).collect::<Vec<_>>()).unwrap_err();
        assert!(error.to_string().contains("-D KUBE-SERVICES"), "{error}");
        assert!(live.update(&[]).is_err(), "a half known state is not built upon");
        live.replace(&facts, &mut every_kind(Family::V4).into_iter()).unwrap();
        let mended = saved(Family::V4);
        wipe(Family::V4);
        programmed(&facts, &every_kind(Family::V4));
        assert_same(&saved(Family::V4), &mended);
    }

    /// Nothing of ours stays but the chain that kubelet shares, and nothing of others goes.
    fn cleanup_removes_ours_and_only_ours() {
        leftovers::make_foreign("iptables");
        let before = saved(Family::V4);
        let options = Options { localhost_node_ports: false, ..OPTIONS };
        let mut live = Iptables::new(Family::V4, options).unwrap();
        live.replace(&facts(Family::V4), &mut every_kind(Family::V4).into_iter()).unwrap();
        leftovers::lead_to_ours("iptables");
        assert_ne!(saved(Family::V4), before);
        live.cleanup().unwrap();
        assert_same(&saved(Family::V4), &before);
        live.cleanup().expect("a second time finds nothing to do");
    }

    /// NodePorts on chosen addresses only, and another facts value is taken over by the next full programming.
    fn changed_facts_are_taken_over() {
        let mut facts = facts(Family::V4);
        let plans = every_kind(Family::V4);
        let mut live = programmed(&facts, &plans);
        facts.node_port_addresses = NodePortAddresses::Only(vec!["192.0.2.1".parse().unwrap()]);
        facts.masquerade_mark = 0x8000;
        live.replace(&facts, &mut plans.iter().cloned()).unwrap();
        let now = saved(Family::V4);
        wipe(Family::V4);
        programmed(&facts, &plans);
        let mut fresh = saved(Family::V4);
        let nodeports = &now[&("nat".to_owned(), "KUBE-SERVICES".to_owned())];
        assert!(nodeports.last().unwrap().starts_with("KUBE-SERVICES -d 192.0.2.1/32 "), "{nodeports:?}");
        // Shared with kubelet, so not ours to empty.
        let shared = ("filter".to_owned(), "KUBE-FIREWALL".to_owned());
        fresh.insert(shared.clone(), now[&shared].clone());
        assert_same(&now, &fresh);
    }

    /// Real connections through every kind of address.
    fn packets_reach_who_they_should() {
        every_kind_is_reached(&[]);
    }

    /// A load of many slices, with a Service in the middle that is refused. Only endpoints of this node have a chain of
    /// their own.
    fn a_large_load_is_complete() {
        if !is_root_of_the_machine() {
            println!("skipped: iptables-nft sends more than a user namespace lets it");
            return;
        }
        let facts = facts(Family::V4);
        let mut plans: Vec<_> = (1..=702).map(|n| Plan::new(Family::V4, n).endpoints(&[2, 12]).build()).collect();
        let refused = [699, 200];
        refused.iter().for_each(|n| plans[*n].ports[0].cluster[0].address = "fd00::1".parse().unwrap());
        let report = backend(Family::V4).replace(&facts, &mut plans.iter().cloned()).unwrap();
        assert_eq!(report.set_aside.len(), 2);

        let chains = saved(Family::V4);
        let count = |prefix| chains.keys().filter(|(_, name)| name.starts_with(prefix)).count();
        let is_nft = run("iptables --version").contains("nf_tables");
        assert_eq!((count("KUBE-SVC-"), count("KUBE-SEP-")), if is_nft { (700, 700) } else { (42, 700) });
        let to_services = |saved: &Saved| {
            let chains = if is_nft { &["KUBE-SERVICES"][..] } else { &["KUBE-SVC-2-1", "KUBE-SVC-2-2"] };
            let rules = chains.iter().flat_map(|chain| &saved[&("nat".to_owned(), (*chain).to_owned())]);
            rules.filter(|rule| rule.contains(" -d 10.96.")).count() / chains.len()
        };
        assert_eq!(to_services(&chains), 700);

        refused.iter().for_each(|n| drop(plans.remove(*n)));
        let mut again = backend(Family::V4);
        let report = again.replace(&facts, &mut plans.clone().into_iter()).unwrap();
        assert_eq!(report.changes, 0, "all of it is recognised");
        let gone: Vec<_> = plans.iter().skip(1).map(|plan| ServicePlan::none(&plan.name)).collect();
        again.update(&gone).unwrap();
        let left = saved(Family::V4);
        assert_eq!(left.keys().filter(|(_, name)| name.starts_with("KUBE-SEP-")).count(), 1);
        assert_eq!(to_services(&left), 1);
    }

    /// Many Services are said in another way; for packets nothing is different.
    fn packets_reach_who_they_should_in_a_crowd() {
        every_kind_is_reached(&crowd(Family::V4));
    }

    fn changes_in_a_crowd_lead_where_a_fresh_start_leads() {
        for family in Family::ALL {
            change_at_random(family, &crowd(family));
        }
    }

    /// A restart recognises what changes made of a crowd; and when few Services are left, it leaves nothing of it.
    fn a_crowd_is_recognised_and_goes_without_a_trace() {
        for family in Family::ALL {
            let facts = facts(family);
            let mut all = [every_kind(family), crowd(family)].concat();
            let mut live = programmed(&facts, &all);
            let changes = [(330, &[12, 13, 14][..]), (331, &[2, 12]), (330, &[2, 13, 14]), (332, &[12, 13])];
            for (number, endpoints) in changes {
                let plan = Plan::new(family, number).endpoints(endpoints).build();
                live.update(std::slice::from_ref(&plan)).unwrap();
                all.iter_mut().filter(|old| old.name == plan.name).for_each(|old| *old = plan.clone());
            }
            let report = backend(family).replace(&facts, &mut all.iter().cloned()).unwrap();
            assert_eq!(report.changes, 0, "it is as it should be");

            programmed(&facts, &all[..5]);
            let shrunk = without_comments(saved(family));
            wipe(family);
            programmed(&facts, &all[..5]);
            assert_same(&shrunk, &without_comments(saved(family)));
        }
    }

    /// When Services become many, all are said anew: once, and as after a fresh start but for comments.
    fn a_growing_cluster_is_said_anew_once() {
        let (facts, all) = (facts(Family::V4), [every_kind(Family::V4), crowd(Family::V4)].concat());
        let (few, many) = all.split_at(all.len() - 100);
        let mut live = programmed(&facts, few);
        assert!(!live.update(&many[..10]).unwrap().outgrown);
        assert!(live.update(many).unwrap().outgrown, "it asks for everything");
        live.replace(&facts, &mut all.iter().cloned()).unwrap();
        assert!(!live.update(&all[..1]).unwrap().outgrown);
        let grown = without_comments(saved(Family::V4));
        wipe(Family::V4);
        programmed(&facts, &all);
        assert_same(&grown, &without_comments(saved(Family::V4)));
    }
}

/// Where a table is replaced as a whole, many Services share what marks who is masqueraded.
#[test]
fn a_crowd_in_legacy_tables_is_marked_by_one_rule() {
    isolated("a_crowd_in_legacy_tables_is_marked_by_one_rule", || {
        use_variant("legacy");
        programmed(&facts(Family::V4), &crowd(Family::V4));
        let services = &saved(Family::V4)[&("nat".to_owned(), "KUBE-SERVICES".to_owned())];
        assert_eq!(services[0], "KUBE-SERVICES ! -s 10.244.1.0/24 -j KUBE-MARK-MASQ");
        assert_eq!(services[services.len() - 2], "KUBE-SERVICES -j MARK --set-xmark 0x0/0x4000");
    });
}

/// While `iptables-restore` reads, it holds the lock that the other tools wait for: nothing is asked of them meanwhile.
#[test]
fn nothing_is_asked_while_the_tool_reads() {
    isolated("nothing_is_asked_while_the_tool_reads", || {
        use_variant("legacy");
        run("iptables -t mangle -N KUBE-KUBELET-CANARY");
        before("iptables", "case \"$*\" in *' -S '*) flock -n /run/xtables.lock true || echo $* >> /run/waits;; esac");
        programmed(&facts(Family::V4), &every_kind(Family::V4));
        assert!(saved(Family::V4).contains_key(&("mangle".into(), "KUBE-PROXY-CANARY".into())));
        programmed(&facts(Family::V4), &every_kind(Family::V4)[3..]);
        assert_eq!(run("cat /run/waits || true"), "");
    });
}

/// Endpoints get their shares exactly, to the kernel's last bit.
#[test]
fn shares_are_exact() {
    isolated("shares_are_exact", || {
        use_variant("nft");
        programmed(&facts(Family::V4), &[Plan::new(Family::V4, 1).endpoints(&[2, 3, 4, 5]).build()]);
        let chains = saved(Family::V4);
        let (_, rules) = chains.iter().find(|((_, name), _)| name.starts_with("KUBE-SVC-")).unwrap();
        let shares: Vec<_> =
            rules.iter().filter_map(|rule| rule.split("--probability ").nth(1)?.split(' ').next()).collect();
        assert_eq!(shares, ["0.25000000000", "0.33333333349", "0.50000000000"]);
    });
}

/// Clean-up can do without iptables, and a backend says what is missing.
#[test]
fn a_node_without_iptables_is_told_so() {
    isolated("a_node_without_iptables_is_told_so", || {
        for dir in
            std::env::var("PATH").unwrap().split(':').filter(|dir| std::path::Path::new(dir).join("iptables").exists())
        {
            run(&format!("mkdir -p /run/empty && mount --bind /run/empty {dir}"));
        }
        assert!(!succeeds("command -v iptables"));
        iptables::cleanup(Family::V4).expect("nothing to do");
        assert!(iptables::supported(Family::V4).unwrap_err().contains("iptables"));
        let Err(error) = Iptables::new(Family::V4, OPTIONS) else { panic!("there is no iptables") };
        assert_eq!(error.to_string(), "iptables is not in the PATH; install it or choose mode nftables");
    });
}
