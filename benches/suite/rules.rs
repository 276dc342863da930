//! iptables mode: from the start to the last rule, one change after another, and what the tool alone needs for the same
//! text; in either variant of the tools, for any kube-proxy.
//!
//! Sees changes in the kernel by numbers that it tells at once (the generation of nf_tables, the size of a legacy table),
//! never by reading rules, which would take longer than what is measured.

use std::collections::HashSet;
use std::fmt::Write;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kube_proxy::kernel::netlink::Socket;
use kube_proxy::kernel::xtables;
use nix::sys::socket::AddressFamily;
use serde::{Deserialize, Serialize};

use crate::apiserver::ApiServer;
use crate::cluster::Cluster;
use crate::kernel;
use crate::measure::{full_sync, shell};
use crate::proxy::{Proxy, write_config};
use crate::report::median;

/// A table that did not change for so long may be complete.
const CALM: Duration = Duration::from_millis(1500);
/// Others need minutes to load 10,000 Services.
const PATIENCE: Duration = Duration::from_secs(900);
/// The tables that hold rules of ours.
const TABLES: &str = "nat filter mangle";
/// Bytes, of which a load takes less: the proxy, the tool, and the kernel's tables.
const MEMORY: usize = 256 << 20;
/// Between two looks while it loads: whoever looks takes time from those who are looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How often an endpoint comes, and goes.
const ROUNDS: u32 = 5;

/// What is to be measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The proxy.
    pub binary: PathBuf,
    /// `nft` or `legacy`.
    pub variant: String,
    /// How many Services, of three endpoints each.
    pub services: usize,
    /// How often the proxy starts.
    pub starts: usize,
    /// Whether the tools alone load the same, after each start.
    pub alone: bool,
}

/// What came out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// From the start of the process until everything is in the kernel: seconds, one per start.
    pub start: Vec<f64>,
    /// The proxy's own word on its first sync: seconds.
    pub full_sync: Vec<f64>,
    /// The tools alone, one family after the other, on the text that was read back: seconds.
    pub alone: Vec<f64>,
    /// Event → kernel: milliseconds, ascending.
    pub changes: Vec<f64>,
    /// Rules in the nat table.
    pub rules: usize,
    /// KiB, without the tools that it runs; then the most that it ever was.
    pub memory: (u64, u64),
}

/// Tells when the tables change.
struct Stamp {
    nft: Option<Socket>,
}

/// Measures.
///
/// # Errors
/// One line that says what did not work.
pub fn measure(job: &Job, folder: &Path) -> Result<Outcome, String> {
    let path = put_first(&job.variant)?;
    let server = ApiServer::start(Cluster::new(job.services, 3))
        .map_err(|error| format!("the API server does not start: {error}"))?;
    let config = write_config(folder, &server.url(), &server.authority, "iptables")
        .map_err(|e| format!("{}: {e}", folder.display()))?;
    let log = folder.join("log");
    let explain = |error: io::Error| {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let tail: Vec<&str> = text.lines().rev().take(5).collect();
        format!("{} with {} Services: {error}; its log ends with {tail:?}", job.binary.display(), job.services)
    };
    let wrapper = ["env".to_owned(), format!("PATH={path}")];
    let mut stamp = Stamp::new(&job.variant).map_err(explain)?;
    let mut outcome = Outcome::default();
    let tools = ["iptables", "ip6tables"].map(|tool| format!("{tool}-{}", job.variant));
    let texts = tools.each_ref().map(|tool| folder.join(tool));
    for start in 1..=job.starts {
        touch_memory();
        let began = Instant::now();
        let mut proxy = Proxy::start(&wrapper, &job.binary, &config, &log).map_err(explain)?;
        let (took, rules) = await_rules(&mut proxy, &mut stamp, job, began).map_err(explain)?;
        outcome.start.push(took.as_secs_f64());
        outcome.full_sync.extend(full_sync());
        outcome.rules = rules;
        if start == job.starts {
            change_all(job, &server, &mut stamp, &mut outcome).map_err(explain)?;
            let cost = proxy.cost().map_err(explain)?;
            outcome.memory = (cost.rss, cost.peak);
        }
        proxy.stop();
        let mut took = 0.0;
        for (tool, text) in tools.iter().zip(&texts) {
            shell(&format!("for t in {TABLES}; do {tool}-save -t $t; done > {}", text.display()))?;
            flush(tool)?;
            if job.alone {
                touch_memory();
                took += restore(tool, text).map_err(explain)?.as_secs_f64();
                flush(tool)?;
            }
        }
        outcome.alone.extend(job.alone.then_some(took));
    }
    Ok(outcome)
}

/// A virtual machine's host takes memory back that is free for a while, and gives it again when it is touched: that cost
/// up to 30 ms of a load, whoever did it. It shall happen before.
fn touch_memory() {
    std::hint::black_box(vec![1_u8; MEMORY]);
}

/// Empties the tables, so that the next one begins as the first one did. Those of the nft variant go as a whole.
fn flush(tool: &str) -> Result<String, String> {
    let empty = match tool {
        "iptables-nft" => "nft \"add table ip $t; delete table ip $t\"".to_owned(),
        "ip6tables-nft" => "nft \"add table ip6 $t; delete table ip6 $t\"".to_owned(),
        _ => format!("{tool} -t $t -F && {tool} -t $t -X"),
    };
    shell(&format!("for t in {TABLES}; do {empty} || exit 1; done"))
}

/// One endpoint comes, and goes, and so on.
fn change_all(job: &Job, server: &ApiServer, stamp: &mut Stamp, outcome: &mut Outcome) -> io::Result<()> {
    for round in 0..ROUNDS {
        let service = (round as usize).wrapping_mul(7919) % job.services;
        for size in [4, 3] {
            let took = change(server, stamp, service, size, round * 2 + size as u32 % 2)?;
            outcome.changes.push(took.as_secs_f64() * 1000.0);
        }
    }
    outcome.changes.sort_unstable_by(f64::total_cmp);
    Ok(())
}

/// A PATH on which the variant comes first.
fn put_first(variant: &str) -> Result<String, String> {
    shell(&format!(
        "mkdir /run/variant && for t in iptables ip6tables; do for s in '' -save -restore; do \
         ln -s \"$(command -v $t-{variant}$s)\" /run/variant/$t$s; done; done"
    ))?;
    Ok(format!("/run/variant:{}", std::env::var("PATH").unwrap_or_default()))
}

fn await_rules(proxy: &mut Proxy, stamp: &mut Stamp, job: &Job, began: Instant) -> io::Result<(Duration, usize)> {
    let first = stamp.read()?;
    let mut last = (first, began);
    let mut looked = began;
    while began.elapsed() < PATIENCE {
        if !proxy.is_running() {
            return Err(io::Error::other("it ended"));
        }
        let now = stamp.read()?;
        if now != last.0 {
            last = (now, Instant::now());
        } else if now != first && last.1.elapsed() > CALM && looked.elapsed() > CALM {
            let text = shell(&format!("iptables-{}-save -t nat", job.variant)).map_err(io::Error::other)?;
            let destination = |line: &'_ str| Some(line.split_once(" -d ")?.1.split_once(' ')?.0.to_owned());
            let complete = text.lines().filter_map(destination).collect::<HashSet<_>>().len() >= job.services;
            // What came while it was read is news: the next look tells when.
            if complete && stamp.read()? == now {
                return Ok((last.1 - began, text.lines().filter(|line| line.starts_with("-A ")).count()));
            }
            looked = Instant::now();
        }
        thread::sleep(LOOK);
    }
    Err(io::Error::other("it did not program everything in time"))
}

/// A Service gets a number of endpoints; how long until that is in the kernel.
fn change(server: &ApiServer, stamp: &mut Stamp, service: usize, size: usize, mark: u32) -> io::Result<Duration> {
    let before = stamp.read()?;
    let began = Instant::now();
    server.change(service, mark, |cluster| cluster.scale(service, size, mark));
    let mut last = (before, began);
    while last.0 == before || last.1.elapsed() < CALM {
        let now = stamp.read()?;
        if now != last.0 {
            last = (now, Instant::now());
        }
        if began.elapsed() > PATIENCE {
            return Err(io::Error::other("a change takes for ever to reach the kernel"));
        }
        thread::sleep(Duration::from_micros(500));
    }
    Ok(last.1 - began)
}

fn restore(tool: &str, text: &Path) -> io::Result<Duration> {
    let began = Instant::now();
    let status = Command::new(format!("{tool}-restore"))
        .args(["--noflush", "-w", "5"])
        .stdin(Stdio::from(File::open(text)?))
        .status()?;
    if status.success() { Ok(began.elapsed()) } else { Err(io::Error::other("the tool refuses what it saved")) }
}

/// A table for the terminal.
pub fn page(outcomes: &[(String, Job, Outcome)]) -> String {
    let mut out = String::from(
        "| iptables | Services | proxy | start → all rules | its first sync | the tool alone | of that, in turns \
         | change | nat rules | memory, peak |\n|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for (name, job, outcome) in outcomes {
        let seconds = |values: &[f64]| {
            let mut sorted = values.to_vec();
            sorted.sort_unstable_by(f64::total_cmp);
            match &sorted[..] {
                [] => String::new(),
                [one] => format!("{one:.3} s"),
                [least, .., most] => format!("{:.3} s ({least:.3} to {most:.3})", median(&sorted)),
            }
        };
        let changes = match &outcome.changes[..] {
            [] => String::new(),
            all @ [least, .., most] => format!("{:.0} ms ({least:.0} to {most:.0})", median(all)),
            [one] => format!("{one:.0} ms"),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "| {} | {} | {name} | {} | {} | {} | {} | {changes} | {} | {:.1} MB, {:.1} MB |",
            job.variant,
            job.services,
            seconds(&outcome.start),
            seconds(&outcome.full_sync),
            seconds(&outcome.alone),
            in_turns(outcome),
            outcome.rules,
            outcome.memory.0 as f64 / 1024.0,
            outcome.memory.1 as f64 / 1024.0,
        );
    }
    out
}

/// What a first sync took of the time that the tools needed right after it, in the median: the machine's slow moments meet
/// both.
fn in_turns(outcome: &Outcome) -> String {
    let pairs = outcome.full_sync.iter().zip(&outcome.alone);
    let ratios: Vec<f64> = pairs.map(|(sync, alone)| sync / alone).collect();
    if ratios.is_empty() { String::new() } else { format!("{:.2} ×", median(&ratios)) }
}

// === impl Stamp ===

impl Stamp {
    fn new(variant: &str) -> io::Result<Self> {
        Ok(Self { nft: if variant == "nft" { Some(kernel::open()?) } else { None } })
    }

    fn read(&mut self) -> io::Result<u64> {
        match &mut self.nft {
            Some(socket) => kernel::generation(socket).map(u64::from),
            None => xtables::size(AddressFamily::Inet, "nat")
                .map(|size| u64::from(size.entries) << 32 | u64::from(size.bytes)),
        }
    }
}
