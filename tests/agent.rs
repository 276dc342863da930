//! The whole program: a real API server in front, a real kernel behind, signals and exit codes as an operator meets them.

mod support;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use support::apiserver::{ApiServer, TOKEN};
use support::follower::Folder;
use support::netns::{isolated, run, succeeds, with_ipvs};
use support::reader::meaning;

const NODE: &str = "node-1";
/// Long enough for a busy machine; nothing waits that long when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

/// The program at work.
struct Agent {
    child: Child,
    folder: Folder,
    /// Its PATH, where it has one of its own.
    tools: Option<Folder>,
}

/// Who holds a table.
struct Occupied(Child);

/// A cluster with one node and one Service.
fn cluster() -> ApiServer {
    let server = ApiServer::start("127.0.0.1");
    server.put(json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": NODE, "uid": "u-1"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}));
    server.put(json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"type": "NodePort", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ipFamilies": ["IPv4"],
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}}));
    server.put(slice(&["10.244.0.1", "10.244.0.2"]));
    server
}

fn slice(addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> =
        addresses.iter().map(|address| json!({"addresses": [address], "nodeName": NODE})).collect();
    json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints})
}

/// A Service that load balancers find by its healthCheckNodePort.
fn balanced(name: &str, cluster_ip: &str, port: u16) -> Value {
    json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": name, "namespace": "default"},
        "spec": {"type": "LoadBalancer", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "ipFamilies": ["IPv4"],
            "externalTrafficPolicy": "Local", "healthCheckNodePort": port,
            "ports": [{"port": 80, "protocol": "TCP"}]}})
}

/// A configuration for that cluster, with more lines of YAML.
fn configure(folder: &Folder, server: &ApiServer, more: &str) -> String {
    let ca = folder.write("ca.pem", server.authority.pem());
    let kubeconfig = folder.write(
        "kubeconfig",
        &format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: it\ncontexts: [{{name: it, context: {{cluster: it, user: it}}}}]\n\
             clusters: [{{name: it, cluster: {{server: '{}', certificate-authority: '{}'}}}}]\n\
             users: [{{name: it, user: {{token: {TOKEN}}}}}]\n",
            server.url(),
            ca.display()
        ),
    );
    let config = folder.write(
        "config.conf",
        &format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 10.244.0.0/16\n\
             clientConnection: {{kubeconfig: '{}'}}\nconntrack: {{maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}\n\
             healthzBindAddress: 127.0.0.1:10256\nmetricsBindAddress: 127.0.0.1:10249\n{more}\n",
            kubeconfig.display()
        ),
    );
    config.display().to_string()
}

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kube-proxy"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs to the end; exit code and what was written to standard error.
fn outcome(arguments: &[&str]) -> (i32, String) {
    let output = program(arguments).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Where the Service's ClusterIP leads.
fn destinations() -> String {
    if !succeeds("nft list table ip kube-proxy") {
        return String::new();
    }
    meaning("ip").remove("services").unwrap_or_default().into_iter().collect::<Vec<_>>().join("\n")
}

/// Takes the table of a family away and keeps it: nobody else may write it until the answer is dropped.
fn occupy(family: &str) -> Occupied {
    let mut nft = Command::new("nft").arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let table = format!("table {family} kube-proxy");
    let commands = format!("add {table}; delete {table}; add {table} {{ flags owner; }}\n");
    nft.stdin.as_mut().unwrap().write_all(commands.as_bytes()).unwrap();
    until("the table is taken", || succeeds(&format!("nft list {table} | grep -q owner")));
    Occupied(nft)
}

fn get(port: u16, path: &str) -> String {
    ask("127.0.0.1", port, path).unwrap()
}

fn ask(host: &str, port: u16, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect((host, port))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: it\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Whether a healthCheckNodePort tells of so many endpoints.
fn counts(host: &str, port: u16, endpoints: usize) -> bool {
    ask(host, port, "/").is_ok_and(|answer| answer.contains(&format!("\"localEndpoints\": {endpoints},")))
}

// === impl Occupied ===

impl Drop for Occupied {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// === impl Agent ===

impl Agent {
    fn start(server: &ApiServer, more: &str) -> Self {
        Self::start_with_path(server, more, &std::env::var("PATH").unwrap())
    }

    /// As in an image that holds nothing else.
    fn start_alone(server: &ApiServer, more: &str) -> Self {
        Self::start_with_path(server, more, "/nonexistent")
    }

    /// Where IPv6 has no iptables.
    fn start_without_ip6tables(server: &ApiServer, more: &str) -> Self {
        let tools = Folder::new();
        for tool in ["iptables", "iptables-save", "iptables-restore"] {
            let path = run(&format!("command -v {tool}"));
            std::os::unix::fs::symlink(path.trim(), tools.path().join(tool)).unwrap();
        }
        let mut agent = Self::start_with_path(server, more, tools.path().to_str().unwrap());
        agent.tools = Some(tools);
        agent
    }

    fn start_with_path(server: &ApiServer, more: &str, path: &str) -> Self {
        let folder = Folder::new();
        let config = configure(&folder, server, more);
        let mut command = program(&["--config", &config, "--hostname-override", NODE]);
        let child = command.env("PATH", path).stderr(Stdio::null()).spawn().unwrap();
        Self { child, folder, tools: None }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn exit_code(&mut self) -> i32 {
        self.child.wait().unwrap().code().expect("it ends by itself")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn changes_arrive_in_the_kernel_and_the_rules_outlive_the_program() {
    isolated("changes_arrive_in_the_kernel_and_the_rules_outlive_the_program", || {
        let server = cluster();
        let triggered = |addresses: &[&str]| {
            let mut slice = slice(addresses);
            let now = run("date -u +%FT%T.%NZ");
            slice["metadata"]["annotations"] = json!({"endpoints.kubernetes.io/last-change-trigger-time": now.trim()});
            slice
        };
        server.put(triggered(&["10.244.0.1", "10.244.0.2"]));
        let mut agent = Agent::start(&server, "mode: nftables");
        let both = "10.96.0.10 . tcp . 80 -> 10.244.0.1 . 8080 10.244.0.2 . 8080 ";
        until("the Service is programmed", || destinations() == both);
        server.put(triggered(&["10.244.0.2"]));
        until("an endpoint leaves", || destinations() == "10.96.0.10 . tcp . 80 -> 10.244.0.2 . 8080 ");

        assert!(get(10256, "/healthz").starts_with("HTTP/1.1 200"));
        assert!(get(10249, "/proxyMode").ends_with("nftables"));
        let metrics = get(10249, "/metrics");
        assert!(metrics.contains("kubeproxy_programmed_services{ip_family=\"IPv4\"} 1"), "{metrics}");
        // Neither what was before the start nor the other family counts.
        let programmed = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv";
        assert!(metrics.contains(&format!("{programmed}4\"}} 1\n")), "{metrics}");
        assert!(!metrics.contains(&format!("{programmed}6")), "{metrics}");
        assert!(metrics.contains("kubernetes_feature_enabled{name=\"NFTablesProxyMode\",stage=\"\"} 1"), "{metrics}");
        assert!(
            metrics.contains("kubernetes_feature_enabled{name=\"NativeHistograms\",stage=\"ALPHA\"} 0"),
            "{metrics}"
        );
        assert!(server.events().iter().any(|event| event["reason"] == "Starting"));

        agent.signal(Signal::SIGTERM);
        assert_eq!(agent.exit_code(), 0);
        assert_eq!(destinations(), "10.96.0.10 . tcp . 80 -> 10.244.0.2 . 8080 ");

        // What happened meanwhile is made up for by the next start.
        server.delete("Service", "default/web");
        let _agent = Agent::start(&server, "mode: nftables");
        until("the Service goes", || destinations().is_empty());
    });
}

#[test]
fn nothing_is_programmed_in_the_middle_of_a_list() {
    isolated("nothing_is_programmed_in_the_middle_of_a_list", || {
        let server = cluster();
        let both = "10.96.0.10 . tcp . 80 -> 10.244.0.1 . 8080 10.244.0.2 . 8080 ";
        let _agent = Agent::start(&server, "mode: nftables");
        until("the Service is programmed", || destinations() == both);
        let listed = |times: usize| {
            ["/services?", "/endpointslices?"].iter().all(|kind| {
                let path = |path: &str| path.contains(kind) && path.contains("sendInitialEvents");
                server.requests().iter().filter(|request| path(&request.path)).count() >= times
            })
        };

        server.stop();
        server.hold_back_ends(&["Service", "EndpointSlice"]);
        server.put(slice(&["10.244.0.3"]));
        server.compact();
        let began = Instant::now();
        server.restart();
        until("all is listed again", || listed(2));
        for _ in 0..8 {
            assert_eq!(destinations(), both);
            std::thread::sleep(Duration::from_millis(20));
        }
        run("nft delete table ip kube-proxy");
        until("rules that somebody removed are there again", || succeeds("nft list table ip kube-proxy"));
        assert!(began.elapsed() < Duration::from_secs(5), "they do not wait for a list, which has so long to end");
        server.hold_back_ends(&[]);
        until("the lists' ends count", || destinations() == "10.96.0.10 . tcp . 80 -> 10.244.0.3 . 8080 ");

        server.stop();
        server.hold_back_ends(&["Service"]);
        server.compact();
        server.restart();
        until("all is listed once more", || listed(3));
        server.put(slice(&["10.244.0.4"]));
        until("an endless list is not waited for", || destinations().contains("-> 10.244.0.4 . 8080 "));
    });
}

#[test]
fn another_mode_takes_over_and_leaves_nothing_of_the_former() {
    isolated("another_mode_takes_over_and_leaves_nothing_of_the_former", || {
        let server = cluster();
        let iptables_rules = || run("iptables-save").matches("KUBE-SVC-").count();
        let mut first = Agent::start(&server, "mode: iptables");
        until("iptables mode serves", || iptables_rules() > 0);
        first.signal(Signal::SIGINT);
        assert_eq!(first.exit_code(), 0);

        let mut second = Agent::start_alone(&server, "mode: nftables");
        until("nftables mode serves", || !destinations().is_empty());
        until("the rules of iptables mode go", || iptables_rules() == 0);
        second.signal(Signal::SIGTERM);
        assert_eq!(second.exit_code(), 0);

        let _third = Agent::start(&server, "mode: iptables");
        until("iptables mode serves again", || iptables_rules() > 0);
        until("the table of nftables mode goes", || !succeeds("nft list table ip kube-proxy"));
    });
}

#[test]
fn rules_of_a_family_that_is_served_no_longer_go_too() {
    isolated("rules_of_a_family_that_is_served_no_longer_go_too", || {
        let server = cluster();
        let mut first = Agent::start(&server, "mode: nftables");
        let tables = || run("nft list tables | grep -c kube-proxy || true").trim().parse::<u8>().unwrap();
        until("both families have their table", || tables() == 2);
        first.signal(Signal::SIGTERM);
        first.exit_code();

        let _second = Agent::start_without_ip6tables(&server, "mode: iptables");
        until("iptables mode serves", || run("iptables-save").contains("KUBE-SVC-"));
        until("the tables of both families go", || tables() == 0);
    });
}

#[test]
fn ipvs_mode_says_that_it_is_on_its_way_out() {
    with_ipvs("ipvs_mode_says_that_it_is_on_its_way_out", || {
        let server = cluster();
        let folder = Folder::new();
        let config = configure(&folder, &server, "mode: ipvs");
        let log = folder.path().join("log");
        let mut child = program(&["--config", &config, "--hostname-override", NODE])
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut events = Vec::new();
        until("both events come", || {
            events = server.events();
            events.len() > 1
        });
        child.kill().unwrap();
        child.wait().unwrap();
        let event = events.iter().find(|event| event["reason"] == "IPVSDeprecation").unwrap();
        assert_eq!((&event["type"], &event["action"]), (&json!("Warning"), &json!("StartKubeProxy")));
        assert_eq!(event["regarding"]["name"], NODE);
        assert!(event["note"].as_str().unwrap().contains("nftables"), "{event}");
        let said = fs::read_to_string(log).unwrap();
        assert_eq!(said.lines().filter(|line| line.contains("deprecated") && line.contains("nftables")).count(), 1);
    });
}

#[test]
fn ipvs_mode_and_nftables_mode_replace_each_other_and_leave_nothing() {
    with_ipvs("ipvs_mode_and_nftables_mode_replace_each_other_and_leave_nothing", || {
        run("ip addr add 192.0.2.1/32 dev lo; ipvsadm -A -t 10.9.0.1:80 -s rr");
        let devices = run("ip -o link");
        let server = cluster();
        let servers = || run("ipvsadm -Sn").lines().filter(|line| line.starts_with("-A")).count();
        let exclude = |mode: &str| format!("mode: {mode}\nipvs: {{excludeCIDRs: [10.9.0.0/16]}}");
        for _ in 0..2 {
            let mut first = Agent::start(&server, &exclude("ipvs"));
            until("ClusterIP and NodePort have their servers", || servers() == 3);
            until("the table of nftables mode goes", || !succeeds("nft list table ip kube-proxy"));
            first.signal(Signal::SIGTERM);
            first.exit_code();

            let mut second = Agent::start(&server, &exclude("nftables"));
            until("nftables mode serves", || !destinations().is_empty());
            until("the device goes", || !succeeds("ip link show dev kube-ipvs0"));
            until("the tables beside IPVS go", || !run("nft list tables").contains("kube-proxy-ipvs"));
            assert_eq!(run("ipvsadm -Sn"), "-A -t 10.9.0.1:80 -s rr\n", "another's is not touched");
            second.signal(Signal::SIGTERM);
            second.exit_code();
        }
        let mut third = Agent::start(&server, &exclude("ipvs"));
        until("IPVS mode serves", || servers() == 3);
        third.signal(Signal::SIGTERM);
        third.exit_code();
        let (code, said) = outcome(&["--cleanup"]);
        assert_eq!(code, 0, "{said}");
        assert_eq!(run("nft list tables; ipvsadm -Sn; ip -o link"), format!("-A -t 10.9.0.1:80 -s rr\n{devices}"));
    });
}

#[test]
fn in_ipvs_mode_an_external_ip_is_on_one_device_of_the_node() {
    with_ipvs("in_ipvs_mode_an_external_ip_is_on_one_device_of_the_node", || {
        run("ip addr add 192.0.2.1/32 dev lo; ip link add eth9 type dummy; ip link set eth9 up");
        let server = cluster();
        let external = json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "web", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ipFamilies": ["IPv4"],
                "externalIPs": ["198.51.100.7"], "ports": [{"port": 80, "protocol": "TCP"}]}});
        server.put(external);
        let ours = || run("ip -o addr show dev kube-ipvs0 2>/dev/null || true").contains("198.51.100.7/32");
        // The addresses that serve NodePorts stay the same meanwhile.
        let _agent = Agent::start(&server, "mode: ipvs\nnodePortAddresses: [192.0.2.0/24]");
        until("our device has it", ours);
        run("ip addr add 198.51.100.7/32 dev eth9");
        until("it is another device's", || !ours());
        run("ip addr del 198.51.100.7/32 dev eth9");
        until("it is ours again", ours);
    });
}

/// Prints what ten thousand Services cost; `KUBE_PROXY` names another binary, `tests/vm/run ipvs` shows how to run it.
#[test]
#[ignore = "a measurement, for a release build"]
fn ten_thousand_services_in_ipvs_mode() {
    with_ipvs("ten_thousand_services_in_ipvs_mode", || {
        let server = cluster();
        let name = |n: u16| format!("s{n}");
        let slice_of = |n: u16, third: [u8; 3]| {
            let [high, low] = n.to_be_bytes();
            let endpoints: Vec<Value> =
                third.iter().map(|third| json!({"addresses": [format!("10.{third}.{high}.{low}")]})).collect();
            json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": {"name": name(n),
                "namespace": "default", "labels": {"kubernetes.io/service-name": name(n)}}, "addressType": "IPv4",
                "ports": [{"name": "", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints})
        };
        for n in 0..10_000u16 {
            let [high, low] = n.to_be_bytes();
            let address = format!("10.97.{high}.{low}");
            server.put(json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": name(n),
                "namespace": "default"}, "spec": {"clusterIP": address, "clusterIPs": [address],
                "ipFamilies": ["IPv4"], "ports": [{"port": 80, "protocol": "TCP"}]}}));
            server.put(slice_of(n, [1, 2, 3]));
        }
        let folder = Folder::new();
        let config = configure(&folder, &server, "mode: ipvs\nipvs: {minSyncPeriod: 1ms}");
        let binary = std::env::var("KUBE_PROXY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_kube-proxy").into());
        let memory = |child: &Child| {
            let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
            status
                .lines()
                .filter(|line| line.starts_with("VmHWM") || line.starts_with("Rss"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let start = |what: &str| {
            let log = folder.path().join("log");
            let began = Instant::now();
            let child = Command::new(&binary)
                .args(["--config", &config, "--hostname-override", NODE])
                .stdin(Stdio::null())
                .stderr(fs::File::create(&log).unwrap())
                .spawn()
                .unwrap();
            let synced = || {
                let log = fs::read_to_string(&log).unwrap();
                log.lines().filter(|line| line.contains("synced ip_family=")).map(str::to_owned).collect::<Vec<_>>()
            };
            while synced().len() < 2 {
                std::thread::sleep(Duration::from_millis(5));
            }
            eprintln!("{what}: both families are in the kernel after {:?}\n{}", began.elapsed(), synced().join("\n"));
            eprintln!("{what}: {}", memory(&child));
            assert_eq!(fs::read_to_string("/proc/net/ip_vs").unwrap().matches(" Masq ").count(), 30_002);
            assert!(succeeds("ip -o addr show dev kube-ipvs0 | grep -qw 10.97.39.15"));
            child
        };
        let mut child = start("empty tables");
        child.kill().unwrap();
        child.wait().unwrap();
        let mut child = start("tables that are right already");
        let mut took: Vec<String> = Vec::new();
        for round in 0..30u8 {
            server.put(slice_of(5000 + u16::from(round), [1, 2, 4]));
            std::thread::sleep(Duration::from_millis(500));
            let metrics = get(10249, "/metrics");
            let line = metrics
                .lines()
                .find_map(|line| line.strip_prefix("kubeproxy_last_change_to_kernel_seconds{ip_family=\"IPv4\"} "));
            took.extend(line.map(str::to_owned));
        }
        until("the last change is in the kernel", || run("ipvsadm -Sn").matches(" -r 10.4.").count() == 30);
        took.sort();
        eprintln!("seconds from a change to the kernel, sorted: {}", took.join(" "));
        eprintln!("after these changes: {}", memory(&child));
        child.kill().unwrap();
        child.wait().unwrap();
    });
}

#[test]
fn what_upstream_s_ipvs_mode_left_goes_once_ours_is_in() {
    isolated("what_upstream_s_ipvs_mode_left_goes_once_ours_is_in", || {
        run("ipset create KUBE-CLUSTER-IP hash:ip,port && ipset create KUBE-6-CLUSTER-IP hash:ip,port family inet6
            ipset create mine hash:ip
            iptables -t nat -N KUBE-NODE-PORT && iptables -N KUBE-IPVS-FILTER && iptables -N MINE
            iptables -A KUBE-IPVS-FILTER -m set --match-set KUBE-CLUSTER-IP dst,dst -j RETURN
            iptables -A INPUT -m comment --comment 'kubernetes ipvs access filter' -j KUBE-IPVS-FILTER
            iptables -A INPUT -j MINE");
        let server = cluster();
        let _agent = Agent::start(&server, "mode: nftables");
        until("the Service is programmed", || !destinations().is_empty());
        until("the sets go", || run("ipset list -name") == "mine\n");
        let rules = run("iptables-save");
        assert!(!rules.contains("KUBE-"), "{rules}");
        assert!(rules.contains("-A INPUT -j MINE"));
    });
}

#[test]
fn rules_that_somebody_flushed_come_back() {
    isolated("rules_that_somebody_flushed_come_back", || {
        let server = cluster();
        let _agent = Agent::start(&server, "mode: nftables");
        until("the Service is programmed", || !destinations().is_empty());
        run("nft flush ruleset");
        until("the rules come back", || !destinations().is_empty());
    });
}

#[test]
fn a_family_that_cannot_be_programmed_does_not_hold_up_the_other() {
    isolated("a_family_that_cannot_be_programmed_does_not_hold_up_the_other", || {
        let server = cluster();
        let _owner = occupy("ip6");
        let folder = Folder::new();
        let path = folder.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        systemd.set_read_timeout(Some(PATIENCE)).unwrap();
        let config = configure(&folder, &server, "mode: nftables");
        let child = program(&["--config", &config, "--hostname-override", NODE])
            .env("NOTIFY_SOCKET", &path)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let _agent = Agent { child, folder, tools: None };
        let metric = |line: &str| get(10249, "/metrics").lines().any(|found| found == line);
        until("the other family is programmed", || !destinations().is_empty());
        until("this one fails again and again", || {
            let failures = "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv6\"} ";
            let metrics = get(10249, "/metrics");
            let failures = metrics.lines().find_map(|line| line.strip_prefix(failures));
            failures.is_some_and(|failures| failures.parse::<u32>().unwrap() > 2)
        });
        let mut changed = slice(&["10.244.0.2"]);
        let now = run("date -u +%FT%T.%NZ");
        changed["metadata"]["annotations"] = json!({"endpoints.kubernetes.io/last-change-trigger-time": now.trim()});
        server.put(changed);
        until("an endpoint leaves", || destinations() == "10.96.0.10 . tcp . 80 -> 10.244.0.2 . 8080 ");
        until("it is measured", || {
            metric("kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 1")
        });
        assert!(metric("kubeproxy_sync_proxy_rules_endpoint_changes_pending 0"), "the other family has none of them");
        let mut other = slice(&["fd00::2"]);
        other["metadata"]["name"] = json!("web-6");
        other["addressType"] = json!("IPv6");
        server.put(other);
        until("it waits for its own", || metric("kubeproxy_sync_proxy_rules_endpoint_changes_pending 1"));
        let mut buffer = [0; 4096];
        let mut hear = || {
            let length = systemd.recv(&mut buffer).expect("systemd hears of what serves");
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        };
        while !hear().starts_with("STATUS=nftables: 1 Services, 1 endpoints, last sync ") {}
    });
}

#[test]
fn health_sees_rules_that_cannot_be_repaired() {
    isolated("health_sees_rules_that_cannot_be_repaired", || {
        let server = cluster();
        let _agent = Agent::start(&server, "mode: nftables\nnftables: {syncPeriod: 1s}");
        until("the Service is programmed", || !destinations().is_empty());
        let healthy = || get(10256, "/healthz").starts_with("HTTP/1.1 200");
        assert!(healthy());
        let owner = occupy("ip");
        until("it is unhealthy", || !healthy());
        drop(owner);
        until("the rules come back", || !destinations().is_empty());
        until("it is healthy", healthy);
    });
}

#[test]
fn health_checks_do_not_wait_for_events() {
    isolated("health_checks_do_not_wait_for_events", || {
        let server = cluster();
        server.put(balanced("web", "10.96.0.10", 30010));
        let _agent = Agent::start(&server, "mode: nftables\nnodePortAddresses: [0.0.0.0/0]");
        until("there are two endpoints", || counts("127.0.0.1", 30010, 2));
        until("the start is told", || !server.events().is_empty());
        let _taken = TcpListener::bind("0.0.0.0:30020").unwrap();
        server.refuse(1000, 503, None);
        server.put(balanced("other", "10.96.0.20", 30020));
        until("the API server does not take the event", || {
            server.requests().iter().any(|request| request.path.contains("/events") && request.answer == 503)
        });
        server.put(slice(&["10.244.0.1"]));
        until("there is one endpoint", || counts("127.0.0.1", 30010, 1));
    });
}

#[test]
fn flows_that_could_not_be_swept_go_with_the_next_sync() {
    isolated("flows_that_could_not_be_swept_go_with_the_next_sync", || {
        let server = cluster();
        let dns = |address: &str| {
            let mut slice = slice(&[address]);
            slice["metadata"] = json!({"name": "dns-1", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "dns"}});
            slice["ports"] = json!([{"name": "", "port": 5353, "protocol": "UDP"}]);
            slice
        };
        server.put(json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "dns", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.53", "clusterIPs": ["10.96.0.53"], "ipFamilies": ["IPv4"],
                "ports": [{"port": 53, "protocol": "UDP"}]}}));
        server.put(dns("10.244.0.5"));
        let folder = Folder::new();
        let config = configure(&folder, &server, "mode: nftables");
        let log = folder.path().join("log");
        let child = program(&["--config", &config, "--hostname-override", NODE])
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let pid = child.id();
        let _agent = Agent { child, folder, tools: None };
        until("both Services are programmed", || destinations().contains("10.244.0.5"));
        run("conntrack -I -p udp -s 192.0.2.1 -d 10.96.0.53 --sport 4000 --dport 53 --reply-src 10.244.0.5 \
            --reply-dst 192.0.2.1 --reply-port-src 5353 --reply-port-dst 4000 -t 600");
        let is_tracked = || run("conntrack -L -p udp 2>/dev/null").contains("sport=4000");
        assert!(is_tracked());

        // Without another descriptor it can program, and not sweep.
        run(&format!("prlimit --nofile=8: --pid {pid}"));
        server.put(dns("10.244.0.6"));
        until("the sweep fails", || fs::read_to_string(&log).unwrap().contains("cannot sweep stale IPv4 UDP flows"));
        assert!(destinations().contains("10.244.0.6") && is_tracked());
        run(&format!("prlimit --nofile=1024: --pid {pid}"));
        server.put(slice(&["10.244.0.1"]));
        until("the flow is forgotten", || !is_tracked());
    });
}

#[test]
fn health_checks_are_answered_on_addresses_that_come_later() {
    isolated("health_checks_are_answered_on_addresses_that_come_later", || {
        let server = cluster();
        server.put(balanced("web", "10.96.0.10", 30010));
        let _agent = Agent::start(&server, "mode: nftables\nnodePortAddresses: [192.0.2.0/24]");
        until("the Service is programmed", || !destinations().is_empty());
        for address in ["192.0.2.1", "192.0.2.2"] {
            run(&format!("ip addr add {address}/32 dev lo"));
            until("the port is open", || counts(address, 30010, 2));
        }
        run("ip addr del 192.0.2.1/32 dev lo");
        let listening = || run("ss -Hltn sport = :30010");
        until("the port of an address that is gone is closed", || !listening().contains("192.0.2.1:"));
        assert!(listening().contains("192.0.2.2:"));
    });
}

#[test]
fn a_changed_configuration_ends_the_program_so_that_its_supervisor_starts_it_anew() {
    isolated("a_changed_configuration_ends_the_program_so_that_its_supervisor_starts_it_anew", || {
        let server = cluster();
        let mut agent = Agent::start(&server, "mode: nftables");
        until("the Service is programmed", || !destinations().is_empty());
        configure(&agent.folder, &server, "mode: nftables\noomScoreAdj: 0");
        assert_eq!(agent.exit_code(), 1);
        assert!(!destinations().is_empty());
    });
}

#[test]
fn bad_input_is_one_line_and_touches_nothing() {
    isolated("bad_input_is_one_line_and_touches_nothing", || {
        let folder = Folder::new();
        let server = cluster();
        for (more, expected) in [
            ("mode: nftable", "must be iptables, ipvs, nftables or blank"),
            ("mode: nftables\nclusterCIDR: 10.244.0.0/99", "must be a valid CIDR block"),
            ("mode: nftables\nnftables: {syncPeriod: tomorrow}", "config.conf:"),
            ("mode: nftables\nclientConnection: {kubeconfig: /nowhere}", "/nowhere"),
        ] {
            let config = configure(&folder, &server, more);
            let (code, said) = outcome(&["--config", &config, "--hostname-override", NODE]);
            assert_eq!(code, 1, "{said}");
            let last = said.lines().last().unwrap_or_default();
            assert!(last.contains(expected), "{more}: {said}");
        }
        let (code, said) = outcome(&["--logging-format=json", "--oom-score-adj=5000"]);
        let line: Value =
            serde_json::from_str(&said).expect("what logging needs was right, so this is a line of the log");
        let error = line["err"].as_str().unwrap_or_default();
        assert!(code == 1 && error.contains("must be within the range [-1000, 1000]"), "{said}");
        let (code, said) = outcome(&["--no-such-flag"]);
        assert_eq!((code, said.contains("--no-such-flag")), (1, true));
        assert_eq!(run("nft list ruleset"), "");
    });
}

#[test]
fn a_node_that_cannot_serve_is_told_so() {
    isolated("a_node_that_cannot_serve_is_told_so", || {
        let (folder, server) = (Folder::new(), cluster());
        let config = configure(&folder, &server, "mode: iptables");
        let run_with = |path: &str, more: &[&str]| {
            let arguments = [&["--config", &config, "--hostname-override", NODE], more].concat();
            let output = program(&arguments).env("PATH", path).output().unwrap();
            (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        for more in [&[][..], &["--init-only"]] {
            let (code, said) = run_with("/nowhere", more);
            assert_eq!(code, Some(1), "{said}");
            assert!(said.contains("iptables is not available on this host: iptables: No such file"), "{said}");
        }

        let config = configure(&folder, &server, "mode: nftables\nbindAddress: fd00::1");
        run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
        let (code, said) = outcome(&["--config", &config, "--hostname-override", NODE]);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("no support for primary IP family \"IPv6\""), "{said}");

        let config = configure(&folder, &server, "mode: nftables");
        let text = fs::read_to_string(&config).unwrap().replace("10.244.0.0/16", "fd00:10:244::/64");
        fs::write(&config, text).unwrap();
        for more in [&[][..], &["--init-only"]] {
            let (code, said) = outcome(&[&["--config", &config, "--hostname-override", NODE], more].concat());
            assert_eq!(code, 1, "{said}");
            assert!(said.contains("kube-proxy configuration is incorrect"), "{said}");
        }
        assert_eq!(run("nft list ruleset"), "");
    });
}

/// Contract 13 and 14.3.
#[test]
fn the_beginning_counts_as_a_sync_that_was_asked_for_and_done() {
    isolated("the_beginning_counts_as_a_sync_that_was_asked_for_and_done", || {
        let server = cluster();
        server.hold_back_ends(&["EndpointSlice"]);
        let _agent = Agent::start(&server, "mode: nftables");
        until("both families are told of", || {
            let health = ask("127.0.0.1", 10256, "/healthz").unwrap_or_default();
            health.contains("\"IPv4\":{\"lastUpdated\":") && health.contains("\"IPv6\":{\"lastUpdated\":")
        });
        let metrics = get(10249, "/metrics");
        for family in ["IPv4", "IPv6"] {
            let series = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"";
            assert!(metrics.contains(&format!("{series}{family}\"}} 1.")), "{metrics}");
        }
        assert_eq!(destinations(), "", "nothing is programmed before all is known");
    });
}

#[test]
fn the_one_shot_runs_end_with_what_they_promise() {
    isolated("the_one_shot_runs_end_with_what_they_promise", || {
        let folder = Folder::new();
        let server = cluster();
        let config = configure(&folder, &server, "mode: nftables");
        let written = folder.path().join("written").display().to_string();
        let (code, said) = outcome(&["--config", &config, "--write-config-to", &written]);
        assert_eq!(code, 0, "{said}");
        assert!(fs::read_to_string(&written).unwrap().contains("mode: nftables"));

        let shown = program(&["--config", &config, "--hostname-override", NODE, "--dry-run"]).output().unwrap();
        let ruleset: Value = serde_json::from_slice(&shown.stdout).expect("the dry run prints JSON");
        assert!(ruleset["nftables"].as_array().unwrap().len() > 50);
        assert_eq!(run("nft list ruleset"), "", "a dry run touches nothing");

        assert_eq!(outcome(&["--config", &config, "--hostname-override", NODE, "--init-only"]).0, 0);
        let mut agent = Agent::start(&server, "mode: nftables");
        until("the Service is programmed", || !destinations().is_empty());
        agent.signal(Signal::SIGTERM);
        assert_eq!(agent.exit_code(), 0);
        let (code, said) = outcome(&["--config", &config, "--cleanup"]);
        assert_eq!(code, 0, "{said}");
        assert!(!succeeds("nft list table ip kube-proxy"));
    });
}

#[test]
fn after_an_init_run_settings_need_no_writing() {
    isolated("after_an_init_run_settings_need_no_writing", || {
        let (folder, server) = (Folder::new(), cluster());
        let route_localnet = || run("sysctl -n net.ipv4.conf.all.route_localnet") == "1\n";
        run("sysctl -qw net.ipv4.conf.all.route_localnet=0");
        for (more, expected) in [("iptables: {localhostNodePorts: false}", false), ("", true)] {
            let config = configure(&folder, &server, &format!("mode: iptables\n{more}"));
            let (code, said) = outcome(&["--config", &config, "--hostname-override", NODE, "--init-only"]);
            assert_eq!(code, 0, "{said}");
            assert_eq!(route_localnet(), expected, "{more}");
        }
        run("mount --rbind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys");
        assert!(!succeeds("sysctl -qw net.ipv4.conf.all.route_localnet=1"));
        let _agent = Agent::start(&server, "mode: iptables");
        until("the Service is programmed", || run("iptables-save").contains("KUBE-SVC-"));
    });
}

#[test]
fn systemd_hears_of_the_wait_and_of_the_rules() {
    isolated("systemd_hears_of_the_wait_and_of_the_rules", || {
        let server = cluster();
        let folder = Folder::new();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let config = configure(&folder, &server, "mode: nftables");
        server.stop();
        let mut child = program(&["--config", &config, "--hostname-override", NODE])
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "200000")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut buffer = [0; 4096];
        let mut hear = || {
            let length = socket.recv(&mut buffer).expect("systemd hears from the program");
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        };
        let waiting = format!("READY=1\nSTATUS=nftables: waiting for the API server {}\n", server.url());
        assert_eq!(hear(), waiting, "the start is over although there is no API server");
        for _ in 0..3 {
            assert_eq!(hear(), "WATCHDOG=1\n", "whoever waits is alive");
        }
        assert_eq!(destinations(), "");
        server.restart();
        let mut heard = hear();
        while heard == "WATCHDOG=1\n" {
            heard = hear();
        }
        assert!(heard.starts_with("STATUS=nftables: 1 Services, 2 endpoints, last sync "), "{heard}");
        assert_ne!(destinations(), "");
        assert_eq!(hear(), "WATCHDOG=1\n", "so is whoever serves");
        child.kill().unwrap();
        child.wait().unwrap();
    });
}
