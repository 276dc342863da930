//! What goes wrong on nodes: others flush tables, Services are refused, modes are switched under way.

use super::*;
use kube_proxy::kernel::nfacct;
use kube_proxy::nftables::Table;

fn broken(number: u16) -> Plan {
    let mut plan = Plan::new(Family::V4, number).endpoints(&[2]);
    plan.edit(|port| port.cluster[0].address = "fd00::1".parse().unwrap());
    plan
}

/// Which of [`every_kind`] are refused here.
const SPOILT: [usize; 5] = [1, 2, 3, 4, 8];

/// The same Service, with something that no tool takes for an address.
fn spoilt(mut plan: ServicePlan) -> ServicePlan {
    let wrong = "fd00::1".parse().unwrap();
    let port = &mut plan.ports[0];
    match port.cluster.first_mut() {
        Some(endpoint) => endpoint.address = wrong,
        None => port.cluster_ip = wrong,
    }
    plan
}

/// Services of every kind but some, spoilt.
fn some_spoilt() -> Vec<ServicePlan> {
    every_kind(Family::V4).into_iter().enumerate().filter(|(n, _)| SPOILT.contains(n)).map(|(_, p)| spoilt(p)).collect()
}

/// Those that are not.
fn unspoilt() -> Vec<ServicePlan> {
    every_kind(Family::V4).into_iter().enumerate().filter(|(n, _)| !SPOILT.contains(n)).map(|(_, p)| p).collect()
}

/// Nobody, and so many that all are said in another layout.
fn others() -> [Vec<ServicePlan>; 2] {
    [Vec::new(), crowd(Family::V4)]
}

/// A table that is replaced by a larger one, as by whoever restores rules from a file, is missed like one that is flushed.
#[test]
fn a_larger_table_in_place_of_ours_is_noticed() {
    isolated("faults::a_larger_table_in_place_of_ours_is_noticed", || {
        use_variant("legacy");
        let facts = facts(Family::V4);
        let mut live = programmed(&facts, &every_kind(Family::V4));
        let before = saved(Family::V4);
        for table in ["nat", "filter"] {
            assert!(live.intact());
            run(&format!(
                "(echo '*{table}'; for n in $(seq 250); do echo \"-A OUTPUT -d 198.51.100.$n -j ACCEPT\"; done; echo COMMIT) |
                iptables-restore"
            ));
            assert!(!live.intact(), "{table}");
            run(&format!("iptables -t {table} -F OUTPUT"));
            live.replace(&facts, &mut every_kind(Family::V4).into_iter()).unwrap();
            assert_same(&saved(Family::V4), &before);
        }
    });
}

/// A tool that begins to read when its pipe has been full for long, and one that never does: every rule gets there.
#[test]
fn a_tool_may_read_late_or_not_at_all() {
    isolated("faults::a_tool_may_read_late_or_not_at_all", || {
        use_variant("legacy");
        let facts = facts(Family::V4);
        let many: Vec<_> = (0..6000).map(|n| Plan::new(Family::V4, n).endpoints(&[12, 13, 14]).build()).collect();
        programmed(&facts, &many);
        let expected = saved(Family::V4);
        before("iptables-restore", "echo >>/run/calls; case $(wc -l </run/calls) in 1) sleep 1;; 2) exit 1;; esac");
        for calls in [1, 3] {
            wipe(Family::V4);
            programmed(&facts, &many);
            assert_eq!(run("wc -l </run/calls").trim(), calls.to_string());
            assert!(saved(Family::V4) == expected, "after {calls} calls");
        }
    });
}

/// Has a tool that can be told to [`refuse`].
fn with_a_tool_that_refuses() {
    refuse(0);
    let line = r#"line=$(grep -n -m 1 ^COMMIT); echo "iptables-restore: line ${line%%:*} failed" >&2"#;
    before(
        "iptables-restore",
        &format!("left=$(cat /run/left); [ $left = 0 ] || {{ echo $((left - 1)) >/run/left; {line}; exit 1; }}"),
    );
}

/// Lets the tool refuse so many texts at the end of the first table, as if the kernel did not take it.
fn refuse(texts: usize) {
    std::fs::write("/run/left", texts.to_string()).expect("there is room");
}

/// Does something of which the tool refuses the first texts, though nothing is wrong with them.
fn programmed_despite(refusals: usize, work: impl FnOnce() -> Result<Report, kube_proxy::backend::Error>) {
    refuse(refusals);
    let report = work().expect("it is programmed");
    assert_eq!(std::fs::read_to_string("/run/left").unwrap().trim(), "0", "all refusals came");
    assert!(report.set_aside.is_empty(), "{:?}", report.set_aside);
}

in_both_variants! {
    /// The kernel refuses a table that somebody else changed meanwhile, and says no more than where the text ends: whose it is
    /// not is not set aside, and nothing is there twice.
    fn a_refusal_that_is_over_is_nobodys_fault() {
        let facts = facts(Family::V4);
        with_a_tool_that_refuses();
        for others in others() {
            wipe(Family::V4);
            let mut plans = [every_kind(Family::V4), others].concat();
            let mut live = programmed(&facts, &plans);
            plans[0] = Plan::new(Family::V4, 1).endpoints(&[2]).build();
            plans[9] = Plan::new(Family::V4, 10).build();
            programmed_despite(2, || live.update(&[plans[0].clone(), plans[9].clone()]));
            plans[1] = Plan::new(Family::V4, 2).endpoints(&[3]).build();
            programmed_despite(1, || live.update(&plans[1..2]));
            let changed = saved(Family::V4);
            wipe(Family::V4);
            programmed_despite(3, || backend(Family::V4).replace(&facts, &mut plans.iter().cloned()));
            let loaded = saved(Family::V4);
            wipe(Family::V4);
            programmed(&facts, &plans);
            assert_same(&changed, &saved(Family::V4));
            assert_same(&loaded, &saved(Family::V4));
        }
    }

    /// Where any text is refused without a reason, nobody is set aside: all of it is to be programmed anew.
    fn refusals_without_a_reason_are_not_believed() {
        let facts = facts(Family::V4);
        with_a_tool_that_refuses();
        let mut live = programmed(&facts, &every_kind(Family::V4));
        refuse(100);
        let changed = [2, 3].map(|n| Plan::new(Family::V4, n).endpoints(&[3]).build());
        let error = live.update(&changed).unwrap_err();
        assert!(error.to_string().contains("belong to no single Service"), "{error}");
        refuse(0);
        live.replace(&facts, &mut every_kind(Family::V4).into_iter()).unwrap();
    }

    /// What is refused when a table is committed, in a load of many slices: whose it is is found out, and no rule of the
    /// others is there twice.
    fn a_refusal_at_the_end_of_any_slice_is_found() {
        if !is_root_of_the_machine() {
            println!("skipped: iptables-nft sends more than a user namespace lets it");
            return;
        }
        let facts = facts(Family::V4);
        let mut plans: Vec<_> = (1..=1600).map(|n| Plan::new(Family::V4, n).endpoints(&[12, 13]).build()).collect();
        plans.sort_by(|a, b| a.name.cmp(&b.name));
        let refused = [1590, 1100, 1000, 30];
        let all = plans.clone();
        let addresses = refused.map(|n| plans.remove(n).ports[0].cluster_ip.to_string()).join("|");
        programmed(&facts, &plans);
        let without = saved(Family::V4);
        wipe(Family::V4);
        let line = format!("awk '/ ({addresses})[/]32 /{{ found = 1 }} /^COMMIT/ && found {{ print NR; exit }}' $text");
        let refuse = "[ -z \"$line\" ] || { echo \"iptables-restore: line $line failed\" >&2; exit 1; }";
        before("iptables-restore", &format!("text=/run/text.$$; cat >$text; line=$({line}); {refuse}; exec <$text"));
        let report = backend(Family::V4).replace(&facts, &mut all.into_iter()).unwrap();
        assert_eq!(report.set_aside.len(), refused.len(), "{:?}", report.set_aside);
        assert_same(&without_comments(saved(Family::V4)), &without_comments(without));
    }

    /// Whatever part of our rules somebody takes away is missed, and comes back; in one family as in the other.
    fn a_flush_of_any_table_is_noticed() {
        for (family, tool) in [(Family::V4, "iptables"), (Family::V6, "ip6tables")] {
            let facts = facts(family);
            let mut live = programmed(&facts, &every_kind(family));
            let before = saved(family);
            for flush in [
                "-t nat -F", "-t filter -F", "-t nat -F PREROUTING", "-t nat -F KUBE-POSTROUTING",
                "-t filter -F FORWARD", "-t mangle -X KUBE-PROXY-CANARY", "-t nat -F KUBE-SERVICES",
                "-t nat -D KUBE-SERVICES 1", "-t nat -F KUBE-NODEPORTS", "-t nat -F KUBE-MARK-MASQ",
                "-t filter -F KUBE-SERVICES", "-t filter -F KUBE-EXTERNAL-SERVICES",
                "-t filter -F KUBE-PROXY-FIREWALL", "-t filter -F KUBE-NODEPORTS",
            ] {
                assert!(live.intact(), "before {flush}");
                run(&format!("{tool} {flush}"));
                assert!(!live.intact(), "{flush}");
                live.replace(&facts, &mut every_kind(family).into_iter()).unwrap();
                assert_same(&saved(family), &before);
                live.update(&[Plan::new(family, 1).endpoints(&[2]).build()]).unwrap();
                run(&format!("{tool} {flush} 2>/dev/null || {tool} -t nat -F"));
                assert!(!live.intact(), "{flush} after a change");
                live.replace(&facts, &mut every_kind(family).into_iter()).unwrap();
                assert_same(&saved(family), &before);
            }
        }
    }

    /// So is a flush that comes while our own tool has not ended.
    fn a_flush_between_two_tables_is_noticed() {
        let facts = facts(Family::V4);
        let real = run("readlink $(command -v iptables-restore)");
        let flush = "[ -e /run/calm ] || iptables -t nat -F KUBE-SERVICES";
        before("iptables-restore", &format!("{} \"$@\"; status=$?; {flush}; exit $status", real.trim()));
        let mut live = programmed(&facts, &every_kind(Family::V4));
        assert!(!live.intact(), "in a load");
        std::fs::write("/run/calm", "").unwrap();
        live.replace(&facts, &mut every_kind(Family::V4).into_iter()).unwrap();
        assert!(live.intact());
        std::fs::remove_file("/run/calm").unwrap();
        live.update(&[Plan::new(Family::V4, 1).endpoints(&[2]).build()]).unwrap();
        assert!(!live.intact(), "in a change");
    }

    /// Rules of others come and go without an alarm.
    fn what_others_do_is_no_alarm() {
        let mut live = programmed(&facts(Family::V4), &every_kind(Family::V4));
        for line in [
            "iptables -t nat -A POSTROUTING -s 192.0.2.9 -j MASQUERADE", "iptables -A FORWARD -s 192.0.2.9 -j DROP",
            "iptables -t nat -N MINE", "iptables -t nat -D POSTROUTING -s 192.0.2.9 -j MASQUERADE",
            "iptables -D FORWARD -s 192.0.2.9 -j DROP", "iptables -t nat -X MINE", "ip6tables -t nat -F",
        ] {
            run(line);
            assert!(live.intact(), "{line}");
        }
        live.update(&[Plan::new(Family::V4, 1).endpoints(&[2]).build()]).unwrap();
        assert!(live.intact(), "our own changes are none either");
    }

    /// A Service that is refused in a batch leaves nothing behind, and no rule of the others is there twice.
    fn a_refusal_in_a_batch_leaves_the_rest_as_it_should_be() {
        let facts = facts(Family::V4);
        for others in others() {
            wipe(Family::V4);
            let mut plans = [every_kind(Family::V4), others].concat();
            let mut live = programmed(&facts, &plans);
            let emptied = Plan::new(Family::V4, 3).node_port(30003).external_ip().build();
            let batch = [emptied.clone(), broken(20).load_balancer(&["from"]).build(), broken(21).build()];
            let report = live.update(&batch).unwrap();
            assert_eq!((report.set_aside.len(), report.refusals), (2, 2), "{:?}", report.set_aside);
            let now = saved(Family::V4);
            plans[2] = emptied;
            wipe(Family::V4);
            programmed(&facts, &plans);
            assert_same(&now, &saved(Family::V4));
        }
    }

    /// The same when everything is programmed for the first time: no jump is there twice.
    fn a_refusal_in_a_first_load_leaves_the_rest_as_it_should_be() {
        let facts = facts(Family::V4);
        for others in others() {
            wipe(Family::V4);
            let mut plans = [every_kind(Family::V4), others].concat();
            programmed(&facts, &plans);
            let without = saved(Family::V4);
            wipe(Family::V4);
            plans.insert(2, broken(20).node_port(30020).load_balancer(&["from"]).build());
            plans.push(broken(21).build());
            let report = backend(Family::V4).replace(&facts, &mut plans.into_iter()).unwrap();
            assert_eq!(report.set_aside.len(), 2);
            assert!(report.set_aside.iter().all(|(_, reason)| reason.contains("fd00::1")), "{:?}", report.set_aside);
            assert_same(&saved(Family::V4), &without);
        }
    }

    /// All ports of a Service that is refused are told of, and none of another.
    fn the_ports_of_a_refused_service_are_told() {
        let mut two = broken(20).build();
        let mut second = two.ports[0].clone();
        (second.name.port, second.port) = ("https".into(), 443);
        two.ports.push(second);
        let plans =
            [ServicePlan::none(&ObjectName::new("ns", "gone")), Plan::new(Family::V4, 2).endpoints(&[2]).build(), two];
        let told = |report: Report| {
            let mut ports: Vec<_> = report.set_aside.iter().map(|(port, _)| port.to_string()).collect();
            ports.sort();
            ports
        };
        let mut live = backend(Family::V4);
        let loaded = live.replace(&facts(Family::V4), &mut plans.iter().cloned()).unwrap();
        assert_eq!(told(loaded), ["ns/svc20:http", "ns/svc20:https"]);
        assert_eq!(told(live.update(&plans).unwrap()), ["ns/svc20:http", "ns/svc20:https"]);
    }

    /// A Service that is refused has left chains that lead to others of its own, which go all the same.
    fn a_service_that_is_refused_in_a_load_keeps_nothing() {
        let (facts, spoilt) = (facts(Family::V4), some_spoilt());
        for others in others() {
            wipe(Family::V4);
            let plans = [every_kind(Family::V4), others.clone()].concat();
            let mut live = programmed(&facts, &plans);
            let now =
                plans.iter().map(|plan| spoilt.iter().find(|other| other.name == plan.name).unwrap_or(plan).clone());
            let report = live.replace(&facts, &mut now.collect::<Vec<_>>().into_iter()).unwrap();
            assert_eq!(report.set_aside.len(), spoilt.len(), "{:?}", report.set_aside);
            let now = saved(Family::V4);
            wipe(Family::V4);
            programmed(&facts, &[unspoilt(), others].concat());
            assert_same(&now, &saved(Family::V4));
        }
    }

    /// In a change it keeps nothing either, and gets all of it back when it is as it should be.
    fn a_service_that_is_refused_in_a_change_keeps_nothing() {
        let (facts, spoilt) = (facts(Family::V4), some_spoilt());
        for others in others() {
            wipe(Family::V4);
            let mut live = programmed(&facts, &[every_kind(Family::V4), others.clone()].concat());
            let before = saved(Family::V4);
            let report = live.update(&spoilt).unwrap();
            assert_eq!(report.set_aside.len(), spoilt.len(), "{:?}", report.set_aside);
            let now = saved(Family::V4);
            live.update(&every_kind(Family::V4)).unwrap();
            assert_same(&saved(Family::V4), &before);
            wipe(Family::V4);
            programmed(&facts, &[unspoilt(), others].concat());
            assert_same(&now, &saved(Family::V4));
        }
    }

    /// A refusal in a table is heard of when those before it are committed: no jump is there twice.
    fn a_refusal_in_the_filter_table_doubles_no_jump() {
        let facts = facts(Family::V4);
        let mut plans = every_kind(Family::V4);
        programmed(&facts, &plans);
        let without = saved(Family::V4);
        wipe(Family::V4);
        let mut unserved = Plan::new(Family::V4, 20);
        unserved.edit(|port| port.cluster_ip = "fd00::1".parse().unwrap());
        plans.insert(3, unserved.build());
        let report = backend(Family::V4).replace(&facts, &mut plans.into_iter()).unwrap();
        assert_eq!(report.set_aside.len(), 1, "{:?}", report.set_aside);
        assert_same(&saved(Family::V4), &without);
    }

    /// A chain that somebody else leads to cannot go. It is emptied, everything else is done, and it goes later.
    fn a_chain_that_others_lead_to_stands_in_nobodys_way() {
        let facts = facts(Family::V4);
        let mut live = programmed(&facts, &every_kind(Family::V4));
        let chains = saved(Family::V4);
        let service = chains.iter().find_map(|((_, name), rules)| {
            let is_of = name.starts_with("KUBE-SVC-") && rules[0].contains("ns/svc2:http");
            is_of.then_some(name.clone())
        });
        let (service, rest) = (service.unwrap(), &every_kind(Family::V4)[3..]);
        run(&format!("iptables -t nat -N MINE; iptables -t nat -A MINE -g {service}"));
        live.replace(&facts, &mut rest.iter().cloned()).unwrap();
        let mut now = saved(Family::V4);
        assert_eq!(now.remove(&("nat".into(), service)), Some(Vec::new()));
        run("iptables -t nat -F MINE; iptables -t nat -X MINE");
        live.replace(&facts, &mut rest.iter().cloned()).unwrap();
        now.remove(&("nat".into(), "MINE".into()));
        assert_same(&now, &saved(Family::V4));
        wipe(Family::V4);
        programmed(&facts, rest);
        assert_same(&now, &saved(Family::V4));
    }

    /// What is said of the number of rules is what is there.
    fn rules_are_counted() {
        let facts = facts(Family::V4);
        let mut live = backend(Family::V4);
        let there = || {
            let table = |table| run(&format!("iptables-save -t {table}")).lines().filter(|l| l.starts_with("-A")).count();
            [("nat", table("nat")), ("filter", table("filter"))]
        };
        let owned = |report: &kube_proxy::backend::Report| -> Vec<_> {
            report.tables.iter().map(|rules| (rules.table, rules.owned)).collect()
        };
        let report = live.replace(&facts, &mut every_kind(Family::V4).into_iter()).unwrap();
        assert_eq!(owned(&report), there());
        assert!(report.tables.iter().all(|rules| rules.written == rules.owned), "{:?}", report.tables);
        let report = live.update(&[Plan::new(Family::V4, 7).build(), Plan::new(Family::V4, 11).endpoints(&[2]).build()]).unwrap();
        assert_eq!(owned(&report), there());
        assert_eq!(report.tables[1].written, 1, "one Service lost its endpoints");
    }

    /// Connections to NodePorts on loopback are counted, where the kernel has counters; clean-up takes these away.
    fn loopback_node_ports_are_counted() {
        let net = network::Network::new();
        let mut live = programmed(&facts(Family::V4), &every_kind(Family::V4));
        let [_, localhost] = iptables::COUNTERS;
        let Ok(Some(0)) = nfacct::packets(localhost) else { return println!("skipped: the kernel has no nfacct") };
        let answer = net.ask("node", "127.0.0.1:30003");
        assert!(matches!(answer, Answer::From { .. }), "{answer:?}");
        assert!(matches!(net.ask("client", "192.0.2.1:30003"), Answer::From { .. }));
        assert_eq!(nfacct::packets(localhost).unwrap(), Some(1), "the one to loopback");
        live.cleanup().unwrap();
        assert_eq!(nfacct::packets(localhost).unwrap(), None);
    }

    /// From iptables to nftables and back: nothing stays behind, and an open connection goes on.
    fn a_switch_of_modes_keeps_connections() {
        let net = network::Network::new();
        let facts = facts(Family::V4);
        let plans = || every_kind(Family::V4).into_iter();
        programmed(&facts, &every_kind(Family::V4));
        let mut inside = net.hold("pod2", "10.96.0.2:80");
        let mut outside = net.hold("client", "192.0.2.1:30003");
        let mut check = |when: &str| {
            assert!(inside.is_alive() && outside.is_alive(), "{when}");
            assert!(matches!(net.ask("client", "192.0.2.1:30003"), Answer::From { .. }), "{when}");
        };

        let mut nftables = Table::new(Family::V4).unwrap();
        nftables.replace(&facts, &mut plans()).unwrap();
        check("both");
        iptables::cleanup(Family::V4).unwrap();
        check("nftables");
        assert!(saved(Family::V4).keys().all(|(_, chain)| !chain.starts_with("KUBE-") || chain == "KUBE-FIREWALL"));

        programmed(&facts, &every_kind(Family::V4));
        check("both again");
        nftables.cleanup().unwrap();
        check("iptables");
        assert!(!run("nft list tables").contains("kube-proxy"), "its table is gone");
    }
}
