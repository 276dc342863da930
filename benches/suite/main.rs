//! The benchmarks: what `benches/README.md` describes. This file turns words into jobs and outcomes into a report.

mod apiserver;
mod arena;
mod awake;
#[path = "../../tests/support/certificates.rs"]
mod certificates;
mod check;
mod cluster;
mod control_plane;
mod kernel;
mod measure;
mod plot;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../tests/support/protobuf.rs"]
mod protobuf;
mod proxy;
mod replay;
mod report;
mod rules;
mod traffic;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../tests/support/apiserver/wire.rs"]
mod wire;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use arena::{INSIDE, prepare, send_in, tell};
use report::Subject;

const HELP: &str = "\
Usage: cargo bench --bench suite -- [OPTION]...

  --binary PATH     the proxy to measure, instead of the one that was just built
  --peer PATH       another kube-proxy, measured beside it; may be given several times
  --mode MODE       nftables, if not given, or iptables: then --binary, --peer, --services and --starts count,
                    in both variants of the tools, and --variant nft or legacy names one of them
  --services N,...  how many Services, 20,1000 if not given
  --starts N        how often each start is repeated, once if not given
  --day N           also N changes as fast as they go, at the first size of at least 1000; peers are spared
  --traffic N,...   also connections through so many Services
  --apiserver PATH  also starts against this kube-apiserver, with the etcd that --etcd names
  --etcd PATH       etcd for it, 3.5 or later
  --write FOLDER    write the report there, and not to stdout
  --check FILE      compare what does not depend on the clock with FILE, and nothing else";

/// What was asked for.
struct Wishes {
    binary: PathBuf,
    peers: Vec<PathBuf>,
    services: Vec<usize>,
    starts: usize,
    day: u32,
    traffic: Vec<usize>,
    apiserver: Option<PathBuf>,
    etcd: Option<PathBuf>,
    write: Option<PathBuf>,
    check: Option<PathBuf>,
    iptables: bool,
    variants: Vec<String>,
}

fn main() -> ExitCode {
    match carry_out(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("Error: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(words: Vec<String>) -> Result<(), String> {
    if words.first().is_some_and(|word| word == INSIDE) {
        return work_inside(&words[1..]);
    }
    if words.iter().any(|word| word == "--help") {
        println!("{HELP}");
        return Ok(());
    }
    let wishes = Wishes::read(&words)?;
    if let Some(file) = &wishes.check {
        return check::check(&wishes.binary, file);
    }
    if wishes.iptables {
        return measure_rules(&wishes);
    }
    let mut load = Vec::new();
    let subjects = [&wishes.binary].into_iter().chain(&wishes.peers);
    let mut subjects: Vec<Subject> = subjects.enumerate().map(|(index, binary)| subject(index, binary)).collect();
    for &services in &wishes.services {
        load.push(load_average());
        for (index, subject) in subjects.iter_mut().enumerate() {
            eprintln!("{} with {services} Services", subject.name);
            let day = if index == 0
                && services >= 1000
                && subject.outcomes.iter().all(|(_, outcome)| outcome.day.is_none())
            {
                wishes.day
            } else {
                0
            };
            let job = measure::Job {
                binary: subject.binary.clone(),
                services,
                endpoints: 3,
                starts: wishes.starts,
                rates: vec![(1, 10), (10, 100), (100, 500)],
                day,
                floor: index == 0,
            };
            match send_in("measure", &job) {
                Ok(outcome) => subject.outcomes.push((services, outcome)),
                Err(reason) if index > 0 => subject.fail(services, &reason),
                Err(reason) => return Err(reason),
            }
        }
    }
    for &services in &wishes.traffic {
        for (index, subject) in subjects.iter_mut().enumerate() {
            if subject.failures.iter().any(|&failed| failed <= services) {
                continue;
            }
            eprintln!("{}: connections through {services} Services", subject.name);
            let job = traffic::Job { binary: subject.binary.clone(), services };
            match send_in("traffic", &job) {
                Ok(outcome) => subject.traffic.push((services, outcome)),
                Err(reason) if index > 0 => subject.fail(services, &reason),
                Err(reason) => return Err(reason),
            }
        }
    }
    let real = measure_control_plane(&wishes)?;
    match &wishes.write {
        Some(folder) => {
            report::write(folder, &subjects, &real, &load).map_err(|e| format!("{}: {e}", folder.display()))
        }
        None => {
            println!("{}", report::page(&subjects, &real, &load));
            Ok(())
        }
    }
}

/// A real API server, if there is one.
fn measure_control_plane(wishes: &Wishes) -> Result<Vec<control_plane::Outcome>, String> {
    let (Some(apiserver), Some(etcd)) = (&wishes.apiserver, &wishes.etcd) else { return Ok(Vec::new()) };
    let measured = |&services: &usize| {
        eprintln!("{services} Services in a real API server");
        let job = control_plane::Job {
            programs: control_plane::Programs { apiserver: apiserver.clone(), etcd: etcd.clone() },
            proxies: [&wishes.binary].into_iter().chain(&wishes.peers).cloned().collect(),
            services,
            starts: wishes.starts,
        };
        send_in("control-plane", &job)
    };
    wishes.services.iter().map(measured).collect()
}

/// iptables mode, everybody beside everybody.
fn measure_rules(wishes: &Wishes) -> Result<(), String> {
    let mut outcomes = Vec::new();
    for (variant, &services) in wishes.variants.iter().flat_map(|v| wishes.services.iter().map(move |n| (v, n))) {
        for (index, binary) in [&wishes.binary].into_iter().chain(&wishes.peers).enumerate() {
            let Subject { name, binary, .. } = subject(index, binary);
            eprintln!("{name} with {services} Services, iptables-{variant}, load {:.1}", load_average());
            // Others take minutes for a start.
            let (starts, alone) = if index == 0 { (wishes.starts, true) } else { (1, false) };
            let job = rules::Job { binary, variant: variant.clone(), services, starts, alone };
            let outcome: rules::Outcome = send_in("rules", &job)?;
            outcomes.push((name, job, outcome));
            eprintln!("{}", rules::page(&outcomes[outcomes.len() - 1..]));
        }
    }
    println!("{}", rules::page(&outcomes));
    Ok(())
}

/// What [`send_in`] asked for.
fn work_inside(words: &[String]) -> Result<(), String> {
    let [kind, job] = words else { return Err("inside: a kind and a job are needed".into()) };
    let folder = prepare()?;
    let broken = |error: serde_json::Error| format!("{job}: {error}");
    match kind.as_str() {
        "measure" => tell(&measure::measure(&serde_json::from_str(job).map_err(broken)?, &folder)?),
        "control-plane" => tell(&control_plane::measure(&serde_json::from_str(job).map_err(broken)?, &folder)?),
        "rules" => tell(&rules::measure(&serde_json::from_str(job).map_err(broken)?, &folder)?),
        "traffic" => tell(&traffic::measure(&serde_json::from_str(job).map_err(broken)?, &folder)?),
        "counted" => tell(&check::counted(&serde_json::from_str(job).map_err(broken)?, &folder)?),
        other => Err(format!("inside: {other} is not known")),
    }
}

fn subject(index: usize, binary: &Path) -> Subject {
    let name = if index == 0 { "this one".to_owned() } else { format!("peer {index}") };
    Subject { name, binary: binary.to_owned(), outcomes: Vec::new(), traffic: Vec::new(), failures: Vec::new() }
}

fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}

// === impl Wishes ===

impl Wishes {
    fn read(words: &[String]) -> Result<Self, String> {
        let mut wishes = Self {
            binary: env!("CARGO_BIN_EXE_kube-proxy").into(),
            peers: Vec::new(),
            services: vec![20, 1000],
            starts: 1,
            day: 0,
            traffic: Vec::new(),
            apiserver: None,
            etcd: None,
            write: None,
            check: None,
            iptables: false,
            variants: vec!["nft".to_owned(), "legacy".to_owned()],
        };
        // `cargo bench` adds a word of its own.
        let mut words = words.iter().filter(|word| *word != "--bench");
        while let Some(name) = words.next() {
            let value = words.next().ok_or_else(|| format!("{name} needs a value\n{HELP}"))?;
            let number = |text: &str| text.parse::<usize>().map_err(|error| format!("{name} {text}: {error}"));
            let numbers = || value.split(',').map(number).collect::<Result<Vec<_>, _>>();
            match name.as_str() {
                "--binary" => wishes.binary = value.into(),
                "--peer" => wishes.peers.push(value.into()),
                "--mode" if value == "nftables" || value == "iptables" => wishes.iptables = value == "iptables",
                "--variant" => wishes.variants = vec![value.clone()],
                "--services" => wishes.services = numbers()?,
                "--starts" => wishes.starts = number(value)?.max(1),
                "--day" => wishes.day = number(value)? as u32,
                "--traffic" => wishes.traffic = numbers()?,
                "--apiserver" => wishes.apiserver = Some(value.into()),
                "--etcd" => wishes.etcd = Some(value.into()),
                "--write" => wishes.write = Some(value.into()),
                "--check" => wishes.check = Some(value.into()),
                _ => return Err(format!("{name} is not known\n{HELP}")),
            }
        }
        Ok(wishes)
    }
}
