//! What a kube-proxy in iptables mode left, when another mode cleans up: with no tools in reach, as in the plain image, and
//! with those of the other variant.

use std::process::{Command, Stdio};

use kube_proxy::kernel::nftables::Nftables;

use super::*;

const TOOLS: [&str; 2] = ["iptables", "ip6tables"];

/// Chains and rules of others, some of which look nearly like ours; kubelet's among them.
pub fn make_foreign(tool: &str) {
    run(&format!(
        "{tool} -t nat -N MINE; {tool} -t nat -A PREROUTING -j MINE; {tool} -t nat -A MINE -p tcp --dport 7 -j RETURN
        {tool} -t nat -N KUBE-SVC-MINE; {tool} -t nat -A OUTPUT -m comment --comment 'to KUBE-SERVICES' -j KUBE-SVC-MINE
        {tool} -N KUBE-FIREWALL; {tool} -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
        {tool} -I INPUT -j KUBE-FIREWALL; {tool} -I OUTPUT -j KUBE-FIREWALL; {tool} -A FORWARD -p tcp --dport 7 -j DROP
        {tool} -t mangle -N KUBE-KUBELET-CANARY; {tool} -t mangle -N KUBE-IPTABLES-HINT"
    ));
}

/// Somebody else's rules that lead to chains of ours, and chains that upstream's IPVS mode makes.
pub fn lead_to_ours(tool: &str) {
    let chains = run(&format!("{tool}-save -t nat"));
    let service = chains.lines().find_map(|line| Some(line.strip_prefix(":KUBE-SVC-")?.split_once(' ')?.0));
    let service = service.expect("a Service has a chain");
    run(&format!(
        "{tool} -t nat -I MINE -j KUBE-SERVICES; {tool} -t nat -A MINE -p udp -g KUBE-SVC-{service}
        {tool} -A FORWARD -p udp -g KUBE-FORWARD; {tool} -I KUBE-FIREWALL -p udp --dport 9 -j KUBE-NODEPORTS
        {tool} -t nat -N KUBE-NODE-PORT; {tool} -t nat -A KUBE-SVC-MINE -j KUBE-NODE-PORT
        {tool} -t nat -A KUBE-NODE-PORT -j KUBE-MARK-MASQ"
    ));
}

/// Both families, as the tool saves them, without counters.
fn saved_as_text() -> String {
    let text = run("iptables-save; ip6tables-save");
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| format!("{}\n", line.split(" [").next().unwrap()))
        .collect()
}

/// Runs `kube-proxy --cleanup` as in an image that holds nothing else; what it said.
fn clean_up_without_tools() -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_kube-proxy"))
        .arg("--cleanup")
        .env("PATH", "/nonexistent")
        .stdin(Stdio::null())
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn no_tool_is_needed_for_what_iptables_nft_keeps() {
    isolated("leftovers::no_tool_is_needed_for_what_iptables_nft_keeps", || {
        use_variant("nft");
        TOOLS.iter().for_each(|tool| make_foreign(tool));
        run("iptables -t mangle -S; ip6tables -t mangle -S");
        let before = saved_as_text();
        let options = Options { localhost_node_ports: false, ..OPTIONS };
        for (family, tool) in Family::ALL.into_iter().zip(TOOLS) {
            let mut live = Iptables::new(family, options).unwrap();
            live.replace(&facts(family), &mut every_kind(family).into_iter()).unwrap();
            lead_to_ours(tool);
        }
        assert_ne!(saved_as_text(), before);
        let said = clean_up_without_tools();
        assert_eq!(saved_as_text(), before);
        assert!(!said.contains("legacy"), "{said}");
        clean_up_without_tools();
        assert_eq!(saved_as_text(), before, "a second time finds nothing to do");
    });
}

#[test]
fn where_nothing_is_nothing_is_made() {
    isolated("leftovers::where_nothing_is_nothing_is_made", || {
        let stand = || run("nft list ruleset; cat /proc/net/ip_tables_names /proc/net/ip6_tables_names || true");
        assert_eq!(stand(), "");
        let said = clean_up_without_tools();
        assert_eq!(stand(), "");
        assert!(!said.contains("legacy"), "{said}");
        run("iptables-nft -N MINE; ip6tables-nft -t mangle -N KUBE-KUBELET-CANARY");
        let others = stand();
        clean_up_without_tools();
        assert_eq!(stand(), others);
    });
}

/// Too many for one transaction, each with a rule that leads to another.
#[test]
fn thousands_of_chains_go_in_parts() {
    isolated("leftovers::thousands_of_chains_go_in_parts", || {
        run("
            name() { seq -f %016.0f $1 $2 | tr 0189 WXYZ; }
            nft add table ip nat
            nft 'add chain ip nat OUTPUT { type nat hook output priority -100; }'
            for first in 1 1001 2001 3001 4001 5001; do
                name $first $((first + 999)) | sed 's/.*/add chain ip nat KUBE-SVC-&/' | nft -f -
                name $first $((first + 999)) | sed 's/.*/add rule ip nat OUTPUT jump KUBE-SVC-&/' | nft -f -
                name $((first + 1)) $((first + 999)) |
                    sed 's/.*/add rule ip nat KUBE-SVC-& jump KUBE-SVC-WWWWWWWWWWWWWWWX/' | nft -f -
            done
            test $(nft list chains ip | grep -c KUBE-SVC-) = 6000");
        let generation = || Nftables::open().and_then(|mut nft| nft.generation()).expect("there is nf_tables");
        let before = generation();
        clean_up_without_tools();
        assert!(generation() - before > 1, "it took more than one transaction");
        let rules = "\t\ttype nat hook output priority -100; policy accept;\n";
        assert_eq!(run("nft list ruleset"), format!("table ip nat {{\n\tchain OUTPUT {{\n{rules}\t}}\n}}\n"));
    });
}

#[test]
fn rules_that_cannot_be_seen_are_told_of() {
    isolated("leftovers::rules_that_cannot_be_seen_are_told_of", || {
        let told =
            || clean_up_without_tools().lines().filter(|line| line.contains("legacy")).map(str::to_owned).collect();
        run("iptables-legacy -t nat -S; ip6tables-legacy -t nat -S");
        assert_eq!(told(), Vec::<String>::new(), "empty tables");
        run("ip6tables-legacy -t nat -N MINE");
        let lines: Vec<String> = told();
        let [line] = &lines[..] else { panic!("one line for one family: {lines:?}") };
        assert!(line.contains("ip6tables-legacy-save | grep -v KUBE- | ip6tables-legacy-restore"), "{line}");
        assert_eq!(run("ip6tables-legacy -t nat -S MINE"), "-N MINE\n");
    });
}

/// Whichever variant is called `iptables`, the rules of the other one go too.
fn the_other_variant_goes_too(first: &str) {
    use_variant(first);
    for variant in ["nft", "legacy"] {
        run(&format!(
            "iptables-{variant} -t nat -N KUBE-SERVICES; iptables-{variant} -t nat -A OUTPUT -j KUBE-SERVICES
            iptables-{variant} -t nat -N MINE; iptables-{variant} -N KUBE-FORWARD"
        ));
    }
    iptables::cleanup(Family::V4).unwrap();
    for variant in ["nft", "legacy"] {
        let left = run(&format!("iptables-{variant} -t nat -S; iptables-{variant} -S"));
        assert!(!left.contains("KUBE") && left.contains("-N MINE"), "{variant}: {left}");
    }
}

#[test]
fn the_legacy_variant_goes_beside_the_nft_one() {
    let name = "leftovers::the_legacy_variant_goes_beside_the_nft_one";
    isolated(name, || the_other_variant_goes_too("nft"));
}

#[test]
fn the_nft_variant_goes_beside_the_legacy_one() {
    let name = "leftovers::the_nft_variant_goes_beside_the_legacy_one";
    isolated(name, || the_other_variant_goes_too("legacy"));
}
