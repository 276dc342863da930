//! The doctor looks at real nodes: network namespaces with real ailments.

mod support;

use std::process::Command;

use serde_json::{Value, json};
use support::apiserver::{ApiServer, TOKEN};
use support::follower::Folder;
use support::netns::{isolated, run};

/// What the doctor says: its exit code, and its report.
fn doctor(arguments: &[&str]) -> (i32, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_kube-proxy"))
        .args(["doctor", "--json"])
        .args(arguments)
        .output()
        .expect("the program starts");
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    });
    (output.status.code().expect("it ends by itself"), report)
}

/// The verdict and the finding of one check in this mode.
fn check(mode: &str, name: &str) -> (String, String) {
    let (_, report) = doctor(&[&format!("--proxy-mode={mode}"), "--manifests=/run"]);
    let checks = report["checks"].as_array().expect("a list of checks");
    let check = checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name} in {report}"));
    let text = |key: &str| check[key].as_str().expect("a text").to_owned();
    assert_eq!(check.get("mend").is_some(), check["verdict"] != "ok", "{check}");
    (text("verdict"), text("finding"))
}

fn verdict(mode: &str, name: &str) -> String {
    check(mode, name).0
}

#[test]
fn a_bare_namespace_is_diagnosed_and_mended() {
    isolated("a_bare_namespace_is_diagnosed_and_mended", || {
        run("echo 0 >/proc/sys/net/ipv4/ip_forward");
        assert_eq!(verdict("nftables", "forwarding"), "fail");
        assert_eq!(verdict("nftables", "default route"), "fail");
        assert_eq!(doctor(&["--proxy-mode=nftables", "--manifests=/run"]).0, 1);

        run("echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding");
        run("ip link add left type veth peer name right; ip link set left up; ip route add default dev left");
        assert_eq!(verdict("nftables", "forwarding"), "ok");
        assert_eq!(verdict("nftables", "default route"), "ok");

        assert_eq!(verdict("nftables", "bridges"), "ok");
        run("ip link add name cni0 type bridge; echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables || true");
        assert_eq!(verdict("nftables", "bridges"), "warn");
    });
}

#[test]
fn what_nf_tables_can_do_is_found_without_a_trace() {
    isolated("what_nf_tables_can_do_is_found_without_a_trace", || {
        assert_eq!(check("nftables", "nf_tables"), ("ok".to_owned(), "all that is needed is there".to_owned()));
        assert_eq!(run("nft list ruleset"), "");
    });
}

#[test]
fn rules_of_another_mode_are_found() {
    isolated("rules_of_another_mode_are_found", || {
        for mode in ["nftables", "iptables", "ipvs"] {
            assert_eq!(verdict(mode, "leftovers"), "ok");
        }
        run("nft add table ip6 kube-proxy");
        assert_eq!(verdict("nftables", "leftovers"), "ok");
        assert_eq!(verdict("iptables", "leftovers"), "fail");

        run("nft delete table ip6 kube-proxy; iptables-nft -t nat -N KUBE-SERVICES");
        assert_eq!(verdict("nftables", "leftovers"), "fail");
        assert_eq!(verdict("iptables", "leftovers"), "ok");

        // The advice is true, whatever there is beside the program.
        for path in ["/nonexistent".to_owned(), std::env::var("PATH").expect("there is a PATH")] {
            run("iptables-nft -t nat -S KUBE-SERVICES || iptables-nft -t nat -N KUBE-SERVICES");
            assert_eq!(verdict("nftables", "leftovers"), "fail");
            let (_, report) = doctor(&["--proxy-mode=nftables", "--manifests=/run"]);
            assert!(report.to_string().contains("run `kube-proxy --cleanup`"), "{report}");
            let cleanup = Command::new(env!("CARGO_BIN_EXE_kube-proxy")).arg("--cleanup").env("PATH", path).output();
            assert!(cleanup.expect("the program starts").status.success());
            assert_eq!(verdict("nftables", "leftovers"), "ok");
        }

        run("ip link add kube-ipvs0 type veth peer name other");
        assert_eq!(verdict("nftables", "leftovers"), "fail");
        assert_eq!(verdict("ipvs", "leftovers"), "ok");
    });
}

#[test]
fn iptables_mode_without_iptables_is_found() {
    let output = Command::new(env!("CARGO_BIN_EXE_kube-proxy"))
        .args(["doctor", "--proxy-mode=iptables", "--manifests=/run"])
        .env("PATH", "/nonexistent")
        .output()
        .expect("the program starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("iptables is not in the PATH"), "{text}");
}

#[test]
fn two_kinds_of_iptables_are_found() {
    isolated("two_kinds_of_iptables_are_found", || {
        run("iptables-nft -t nat -N SOMEBODY");
        assert_eq!(verdict("iptables", "iptables"), "ok");
        run("iptables-legacy -t nat -N SOMEBODY");
        let (verdict, finding) = check("iptables", "iptables");
        assert_eq!(verdict, "warn");
        assert!(finding.contains("nat"), "{finding}");
    });
}

#[test]
fn another_kube_proxy_is_found() {
    isolated("another_kube_proxy_is_found", || {
        assert_eq!(verdict("nftables", "processes"), "ok");
        run("cp /bin/sleep /run/kube-proxy");
        let mut first = Command::new("/run/kube-proxy").arg("600").spawn().expect("a copy of sleep starts");
        let (verdict, finding) = check("nftables", "processes");
        let mut second = Command::new("/run/kube-proxy").arg("600").spawn().expect("a copy of sleep starts");
        let with_two = check("nftables", "processes");
        for child in [&mut first, &mut second] {
            child.kill().and_then(|()| child.wait()).expect("our child ends");
        }
        assert_eq!(verdict, "warn");
        assert!(finding.contains(&format!("{} (/run/kube-proxy)", first.id())), "{finding}");
        assert_eq!(with_two.0, "fail", "{}", with_two.1);
    });
}

#[test]
fn a_configuration_that_cannot_be_used_is_named() {
    let file = std::env::temp_dir().join(format!("kube-proxy-doctor-{}.conf", std::process::id()));
    let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: fastest\n";
    std::fs::write(&file, text).expect("the temporary folder can be written");
    let (code, report) = doctor(&[&format!("--config={}", file.display())]);
    std::fs::remove_file(&file).expect("it is still there");
    assert_eq!((code, &report["healthy"]), (1, &Value::Bool(false)));
    let last = report["checks"].as_array().and_then(|checks| checks.last()).expect("a check");
    assert_eq!((&last["name"], &last["verdict"]), (&"configuration".into(), &"fail".into()));
    assert!(last["finding"].as_str().is_some_and(|finding| finding.contains("fastest")), "{last}");
}

#[test]
fn people_are_told_how_to_mend() {
    isolated("people_are_told_how_to_mend", || {
        let output = Command::new(env!("CARGO_BIN_EXE_kube-proxy"))
            .args(["doctor", "--proxy-mode=nftables", "--manifests=/run"])
            .output()
            .expect("the program starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("FAIL  default route"), "{text}");
        assert!(text.contains("→ ip route add default"), "{text}");
    });
}

/// What is said of the way to this server by a node named `pi`: the verdict and the text of each check that follows on
/// the kubeconfig.
fn way_to(server: &ApiServer, folder: &Folder) -> Vec<(String, String, String)> {
    folder.write("ca.crt", server.authority.pem());
    let kubeconfig = folder.write(
        "kubeconfig",
        &format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: it\n\
             contexts: [{{name: it, context: {{cluster: it, user: it}}}}]\n\
             clusters: [{{name: it, cluster: {{server: '{}', certificate-authority: ca.crt}}}}]\n\
             users: [{{name: it, user: {{tokenFile: token}}}}]\n",
            server.url()
        ),
    );
    let (_, report) = doctor(&[&format!("--kubeconfig={}", kubeconfig.display()), "--hostname-override=pi"]);
    let checks = report["checks"].as_array().expect("a list of checks");
    let text = |check: &Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
    let after = checks.iter().skip_while(|check| check["name"] != "kubeconfig").skip(1);
    after
        .map(|check| (text(check, "name"), text(check, "verdict"), text(check, "finding") + &text(check, "mend")))
        .collect()
}

#[test]
fn an_account_that_may_not_read_everything_is_found() {
    let (server, folder) = (ApiServer::start("127.0.0.1"), Folder::new());
    folder.write("token", TOKEN);
    server.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "pi"}}));
    let verdicts = |found: &[(String, String, String)]| -> Vec<(String, String)> {
        found.iter().map(|(name, verdict, _)| (name.clone(), verdict.clone())).collect()
    };
    let healthy = way_to(&server, &folder);
    let ok = |name: &str| (name.to_owned(), "ok".to_owned());
    // The clock of this server stands still.
    let clock = ("clock".to_owned(), "fail".to_owned());
    assert_eq!(verdicts(&healthy), [ok("API server"), clock, ok("permissions"), ok("node")], "{healthy:?}");

    server.forbid("EndpointSlice");
    let found = way_to(&server, &folder);
    let (_, verdict, text) = &found[2];
    assert_eq!(verdict, "fail", "{found:?}");
    assert!(text.contains("may not list endpointslices") && text.contains("system:node-proxier"), "{text}");
    assert_eq!(found[3].1, "ok", "{found:?}");
}

#[test]
fn a_node_that_the_cluster_does_not_know_is_found() {
    let (server, folder) = (ApiServer::start("127.0.0.1"), Folder::new());
    folder.write("token", TOKEN);
    server.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "raspberrypi"}}));
    let found = way_to(&server, &folder);
    let (name, verdict, text) = found.last().expect("a check");
    assert_eq!((&**name, &**verdict), ("node", "warn"), "{found:?}");
    assert!(text.contains("no node pi") && text.contains("hostnameOverride"), "{text}");
}

#[test]
fn a_token_that_is_not_accepted_is_told_from_a_server_that_is_not_there() {
    let (server, folder) = (ApiServer::start("127.0.0.1"), Folder::new());
    folder.write("token", "another-token");
    let refused = way_to(&server, &folder);
    assert_eq!((refused.len(), &*refused[0].1), (1, "fail"), "{refused:?}");
    assert!(refused[0].2.contains("token") && !refused[0].2.contains("firewall"), "{refused:?}");
    server.stop();
    let silent = way_to(&server, &folder);
    assert_eq!((silent.len(), &*silent[0].1), (1, "fail"), "{silent:?}");
    assert!(silent[0].2.contains("firewall"), "{silent:?}");
}

#[test]
fn a_reader_who_goes_away_causes_no_panic() {
    let folder = Folder::new();
    let written = format!("--write-config-to={}", folder.path().join("written").display());
    // The last one logs: the disk of a log file may be full.
    for arguments in
        [&["--help"][..], &["--version"], &["--nonsense"], &["doctor", "--manifests=/run"], &["-v=1", &written]]
    {
        let full = || std::fs::File::options().write(true).open("/dev/full").expect("every Linux has it");
        let status = Command::new(env!("CARGO_BIN_EXE_kube-proxy"))
            .args(arguments)
            .stdout(full())
            .stderr(full())
            .status()
            .expect("the program starts");
        // What a panic would end with: 101, or a signal.
        assert!(matches!(status.code(), Some(0 | 1)), "{arguments:?}: {status}");
    }
}
