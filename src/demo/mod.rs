//! `kube-proxy demo`: Services at work, on a node that is made for it and gone afterwards.
//!
//! The script: build the node, start kube-proxy on it, send requests, take an endpoint away while requests run, and
//! say how it went. All who take part are this program, started again in a [`ROLE`]. Must touch nothing outside its
//! namespaces, and must never be needed by the agent.

mod node;
mod pod;
mod request;
mod table;

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::config::Options;
use crate::kernel::namespaces;
use crate::kernel::nftables::TableFamily;
use crate::kernel::nftevents::Witness;
use node::Node;
use request::{Protocol, Tally};
use table::{Expect, Report, Row};

/// The environment variable that tells a process of the demo what it is: `pod`, or `proxy` with its parameters.
const ROLE: &str = "KUBE_PROXY_DEMO_ROLE";
/// Requests of a row. A pod is left out by chance once in ten thousand million rows.
const REQUESTS: u32 = 60;
/// Requests that are to be refused: a few, as the kernel limits how often it says so (`icmp_ratelimit`).
const REFUSALS: u32 = 3;
/// How long requests run before the endpoint leaves, and after.
const BEFORE_AND_AFTER: Duration = Duration::from_millis(300);
/// How long the change may take to reach the kernel.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pod that leaves.
const LEAVES: &str = "web-3";

const WEB: [&str; 2] = ["10.96.0.80:80", "[fd00:10:96::80]:80"];
const NODE_PORT: [&str; 2] = ["192.0.2.1:30080", "[2001:db8::1]:30080"];
const STICKY: &str = "10.96.0.81:80";
const UDP: &str = "10.96.0.53:53";
const EMPTY: &str = "10.96.0.99:80";

const NEXT: &str = "\
Try next:
  kube-proxy demo -v 2           the same, with kube-proxy's own log
  kube-proxy --dry-run --proxy-mode=nftables --hostname-override=demo \\
    --manifests=configs/demo     the ruleset, without touching anything
  kube-proxy --help              all flags, upstream's and a few more";

/// Shows it all.
///
/// # Errors
/// One line: what could not be done, or was not as expected.
pub fn run(options: &Options) -> Result<(), String> {
    if let Ok(role) = std::env::var(ROLE) {
        return play(&role);
    }
    if let Some(other) = options.given.iter().find(|name| *name != "v") {
        return Err(format!("kube-proxy demo has no use for --{other}; only -v is known, for kube-proxy's log"));
    }
    let mut node = Node::build()?;
    let how = if node.as_user { "without root, in a user namespace" } else { "in namespaces of their own" };
    say(&format!("A node, three web pods and two clients, {how}."))?;
    let proxy = node.start_proxy(options.flags.v)?;
    say(&format!("kube-proxy programmed nftables from configs/demo {} after its start.\n", shown(proxy.ready_after)))?;

    let mut report = Report::default();
    say(&table::head())?;
    send_requests(&mut node, &mut report)?;
    say(&format!("\n{LEAVES} leaves while requests run:"))?;
    let took = take_away(&mut node, &mut report)?;
    say("\nAfterwards:")?;
    for at in web(&node) {
        let tally = node.client.ask(Protocol::Tcp, address(at), REQUESTS)?;
        report.add(Row { from: "pod", what: "ClusterIP", at, expect: Expect::AllBut(LEAVES) }, &tally)?;
    }

    say(&format!("\nFrom the changed file to the kernel, by nf_tables' own notice: {}.", shown(took)))?;
    say("(A part of that, kube-proxy waits in case more files change.)")?;
    if let Some(kilobytes) = proxy.resident() {
        say(&format!("kube-proxy's resident memory: {:.1} MB.", kilobytes as f64 / 1024.0))?;
    }
    say(&format!("Requests: {}, failures: {}\n", report.requests, report.failures))?;
    match report.complaints.first() {
        Some(first) => Err(format!("the demo did not go as expected: {first}; kube-proxy demo -v 4 may show why")),
        None => say(NEXT),
    }
}

/// What a process of the demo does.
fn play(role: &str) -> Result<(), String> {
    namespaces::end_with_parent().map_err(|error| format!("cannot follow the demo's end: {error}"))?;
    match role.split_once(' ') {
        None if role == "pod" => pod::live(),
        Some(("proxy", rest)) => node::become_proxy(rest),
        _ => Err(format!("{ROLE}={role:?} is no role; unset it")),
    }
}

/// This program, even where its file was replaced or is out of sight.
fn own_program() -> &'static Path {
    Path::new("/proc/self/exe")
}

/// Prints a line, and lets it be seen at once.
///
/// # Errors
/// When nobody reads any more.
fn say(line: &str) -> Result<(), String> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|error| format!("cannot write to stdout: {error}"))
}

/// One row for each way to reach the Services.
fn send_requests(node: &mut Node, report: &mut Report) -> Result<(), String> {
    for at in web(node) {
        let tally = node.client.ask(Protocol::Tcp, address(at), REQUESTS)?;
        report.add(Row { from: "pod", what: "ClusterIP", at, expect: Expect::All }, &tally)?;
    }
    let at = WEB[0];
    let mut tally = Tally::default();
    (0..REQUESTS).for_each(|_| tally.ask(Protocol::Tcp, address(at)));
    report.add(Row { from: "node", what: "ClusterIP", at, expect: Expect::All }, &tally)?;
    for at in NODE_PORT.into_iter().take(web(node).count()) {
        let tally = node.outside.ask(Protocol::Tcp, address(at), REQUESTS)?;
        report.add(Row { from: "outside", what: "NodePort", at, expect: Expect::All }, &tally)?;
    }
    for (what, protocol, at, count, expect) in [
        ("UDP", Protocol::Udp, UDP, REQUESTS, Expect::All),
        ("affinity", Protocol::Tcp, STICKY, REQUESTS, Expect::One),
        ("no endpoints", Protocol::Tcp, EMPTY, REFUSALS, Expect::Refusal),
    ] {
        let tally = node.client.ask(protocol, address(at), count)?;
        report.add(Row { from: "pod", what, at, expect }, &tally)?;
    }
    Ok(())
}

/// Takes an endpoint away while requests run; returns how long it took until the kernel had it.
fn take_away(node: &mut Node, report: &mut Report) -> Result<Duration, String> {
    let deaf = |error| format!("cannot hear from nf_tables: {error}");
    let mut witness = Witness::open(PATIENCE).map_err(deaf)?;
    let families = [TableFamily::Ip, TableFamily::Ip6];
    node.client.begin(Protocol::Tcp, address(WEB[0]))?;
    node.outside.begin(Protocol::Tcp, address(NODE_PORT[0]))?;
    std::thread::sleep(BEFORE_AND_AFTER);

    let text = node::without(LEAVES);
    let began = Instant::now();
    node.write(node::WEB, &text)?;
    let heard = witness.removal(&families[..web(node).count()]).map_err(deaf)?;
    let took = began.elapsed();

    std::thread::sleep(BEFORE_AND_AFTER);
    let tally = node.client.end()?;
    report.add(Row { from: "pod", what: "ClusterIP", at: WEB[0], expect: Expect::Answers }, &tally)?;
    let tally = node.outside.end()?;
    report.add(Row { from: "outside", what: "NodePort", at: NODE_PORT[0], expect: Expect::Answers }, &tally)?;
    match heard {
        true => Ok(took),
        false => {
            Err(format!("the change did not reach the kernel within {PATIENCE:?}; kube-proxy demo -v 4 may show why"))
        }
    }
}

/// The ClusterIPs in the families that this kernel has.
fn web(node: &Node) -> impl Iterator<Item = &'static str> + use<> {
    WEB.into_iter().take(if node.ipv6 { 2 } else { 1 })
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("the constants above are addresses")
}

fn shown(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}
