//! How long the iptables backend takes for thousands of Services, next to what the tool itself takes for the same text
//! and for what other kube-proxies send: ratios of one run on one machine, for both variants.
//!
//! `cargo bench --bench iptables -- [SERVICES]` (default 10000), as root or where user namespaces may be made.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kube_proxy::backend::Backend;
use kube_proxy::iptables::{Iptables, Options};
use kube_proxy::model::{Family, ObjectName, Place, Protocol};
use kube_proxy::plan::{Endpoint, LocalTraffic, NodeFacts, NodePortAddresses, PortName, PortPlan, Route, ServicePlan};

const INSIDE: &str = "KUBE_PROXY_BENCH_VARIANT";
const CHANGES: u16 = 9;

fn main() {
    let services = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(10_000);
    match std::env::var(INSIDE) {
        Ok(variant) => measure(&variant, services),
        Err(_) => ["nft", "legacy"].into_iter().for_each(|variant| in_own_namespaces(variant, services)),
    }
}

fn in_own_namespaces(variant: &str, services: u16) {
    let folder = std::env::temp_dir().join(format!("kube-proxy-bench-{}-{variant}", std::process::id()));
    std::fs::create_dir(&folder).expect("the folder for temporary files can be written");
    for suffix in ["", "-save", "-restore"] {
        let tool = format!("/usr/sbin/iptables-{variant}{suffix}");
        std::os::unix::fs::symlink(tool, folder.join(format!("iptables{suffix}"))).expect("the folder is new");
    }
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let program = std::env::current_exe().expect("a running program has a path");
    command.args(["--net", "--"]).arg(program).arg(services.to_string());
    let status = command.env(INSIDE, variant).env("PATH", path).status();
    std::fs::remove_dir_all(&folder).expect("it is still there");
    assert!(status.is_ok_and(|status| status.success()), "{variant} failed");
}

fn measure(variant: &str, services: u16) {
    println!("{variant}, {services} Services of 3 endpoints");
    let facts = NodeFacts {
        family: Family::V4,
        local_traffic: LocalTraffic::Cidr("10.244.1.0/24".parse().expect("a network")),
        masquerade_all: false,
        masquerade_mark: 0x4000,
        node_port_addresses: NodePortAddresses::All,
        host_addresses: vec![],
        service_cidrs: Vec::new(),
    };
    let options = Options { localhost_node_ports: false, tcp_be_liberal: false };
    let mut backend = Iptables::new(Family::V4, options).expect("iptables is there");
    let (_, full) = time(|| backend.replace(&facts, &mut (0..services).map(|n| service(n, 0))).expect("a full load"));
    println!("  full load                          {full:>10.1?}   {} kB resident", resident());

    let text = run("iptables-save", &["-t", "nat"], "");
    let mut changes: Vec<Duration> = (1..=CHANGES)
        .map(|round| time(|| backend.update(&[service(services / 2, round)]).expect("a change")).1)
        .collect();
    let change = median(&mut changes);
    println!("  an endpoint is replaced            {change:>10.1?}");
    let mut comings: Vec<Duration> = (0..3u16)
        .flat_map(|n| [vec![service(services + n, 0)], vec![ServicePlan::none(&name(services + n))]])
        .map(|plan| time(|| backend.update(&plan).expect("a change")).1)
        .collect();
    println!("  a Service comes or goes            {:>10.1?}", median(&mut comings));
    let (_, restart) = time(|| {
        let mut again = Iptables::new(Family::V4, options).expect("iptables is there");
        let plans = (0..services).map(|n| service(n, if n == services / 2 { CHANGES } else { 0 }));
        again.replace(&facts, &mut plans.into_iter()).expect("a restart")
    });
    println!("  a restart that finds all in place  {restart:>10.1?}");
    println!("  a look whether all is there        {:>10.1?}", time(|| assert!(backend.intact())).1);
    backend.cleanup().expect("a clean-up");

    // With endpoints on this node that are not alike there is a chain for each, as others make it on any node.
    backend.replace(&facts, &mut (0..services).map(|n| plan(n, 0, true))).expect("a full load");
    let theirs = rewrite_shared(&run("iptables-save", &["-t", "nat"], ""));
    let mut rewrites: Vec<Duration> =
        (0..3).map(|_| time(|| run("iptables-restore", &["--noflush", "-w", "5"], &theirs)).1).collect();
    let rewrite = median(&mut rewrites);
    println!("  others' change, the tool alone     {rewrite:>10.1?}   {:.1} times our change", ratio(rewrite, change));
    backend.cleanup().expect("a clean-up");

    // The nft variant's time for one piece grows with the square: minutes for 10,000 Services.
    if variant == "legacy" || services <= 3000 {
        let (_, whole) = time(|| run("iptables-restore", &["--noflush", "-w", "5"], &text));
        println!("  the same text in one piece         {whole:>10.1?}   {:.1} times our full load", ratio(whole, full));
    }
}

fn name(n: u16) -> ObjectName {
    ObjectName::new("bench", &format!("service-{n}"))
}

/// The first of its endpoints is another one in every round.
fn service(n: u16, round: u16) -> ServicePlan {
    plan(n, round, false)
}

fn plan(n: u16, round: u16, local: bool) -> ServicePlan {
    let [high, low] = n.to_be_bytes();
    let endpoint = |i: u8, round: u16| Endpoint {
        address: [10, 244 + i, high, low].into(),
        port: 8080 + round,
        place: if local { Place::Here } else { Place::Elsewhere },
        weight: if local { i.into() } else { 1 },
    };
    let port = PortPlan {
        name: PortName { service: name(n), port: "http".into(), protocol: Protocol::Tcp },
        cluster_ip: [10, 96, high, low].into(),
        port: 80,
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        node_port: None,
        internal: Route::Cluster,
        external: Route::Reject,
        external_local: false,
        source_ranges: Vec::new(),
        allow_vip_sources: false,
        affinity: None,
        scheduler: None,
        cluster: vec![endpoint(1, round), endpoint(2, 0), endpoint(3, 0)],
        local: Vec::new(),
        serving: Vec::new(),
    };
    ServicePlan { ports: vec![port], ..ServicePlan::none(&name(n)) }
}

/// What is sent for any change by those who write the shared chains anew each time.
fn rewrite_shared(saved: &str) -> String {
    let shared = |line: &&str| line.contains("A KUBE-SERVICES ") || line.contains("A KUBE-POSTROUTING ");
    let rules: Vec<&str> = saved.lines().filter(shared).collect();
    format!("*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\n{}\nCOMMIT\n", rules.join("\n"))
}

fn run(tool: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(tool)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the tool is there");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("the tool reads");
    let output = child.wait_with_output().expect("the tool ends");
    assert!(output.status.success(), "{tool} failed");
    String::from_utf8(output.stdout).expect("rules are ASCII")
}

fn time<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed())
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn ratio(a: Duration, b: Duration) -> f64 {
    a.as_secs_f64() / b.as_secs_f64()
}

/// Memory of this process, without its children.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
}
