//! The short form for CI: only what does not depend on the clock, against the values that are written down.
//!
//! Fails on what got worse beyond its tolerance, and says what got so much better that the file should follow.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::apiserver::ApiServer;
use crate::arena::send_in;
use crate::cluster::Cluster;
use crate::kernel::{Sight, Watcher};
use crate::measure::{Job, Outcome, PATIENCE, await_ruleset};
use crate::proxy::{Proxy, write_config};

/// Services of the small and of the large cluster.
const SIZES: (usize, usize) = (20, 1000);
/// Changes of the two runs whose difference is counted.
const EVENTS: (u32, u32) = (50, 250);
/// After the changes, what comes once a little later is waited for, and then an idle time is watched.
const SETTLING: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(10);

/// A run under valgrind, which tells of allocations and counts instructions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Counted {
    /// The proxy.
    pub binary: PathBuf,
    /// How many changes it gets, before it is left alone for a while.
    pub changes: u32,
}

/// What was counted in a run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Counts {
    /// Allocations until the idle time.
    allocations: usize,
    /// Allocations in the idle time.
    idle: usize,
    /// Instructions of the whole run.
    instructions: u64,
}

/// Compares what a binary costs now with the file's lines of `name value tolerance-in-percent`.
///
/// # Errors
/// One line with all that got worse.
pub fn check(binary: &Path, file: &Path) -> Result<(), String> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let found = values(binary)?;
    let mut worse = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, expected, tolerance] = words[..] else { return Err(format!("{}: {line:?}", file.display())) };
        let number = |word: &str| word.parse::<f64>().map_err(|error| format!("{}: {word}: {error}", file.display()));
        let (expected, tolerance) = (number(expected)?, number(tolerance)? / 100.0);
        let Some(&value) = found.get(name) else {
            println!("{name}: not counted here, skipped");
            continue;
        };
        let verdict = match value {
            value if value > expected * (1.0 + tolerance) => "WORSE",
            value if value < expected * (1.0 - tolerance) => "better: write the new value down",
            _ => "as expected",
        };
        println!("{name}: {value:.1}, expected {expected} ± {:.0} %: {verdict}", tolerance * 100.0);
        if verdict == "WORSE" {
            worse.push(name.to_owned());
        }
    }
    if worse.is_empty() { Ok(()) } else { Err(format!("got worse: {}", worse.join(", "))) }
}

fn values(binary: &Path) -> Result<BTreeMap<&'static str, f64>, String> {
    let job = |services| Job {
        binary: binary.to_owned(),
        services,
        endpoints: 3,
        starts: 1,
        rates: vec![(20, 40)],
        day: 0,
        floor: false,
    };
    let small: Outcome = send_in("measure", &job(SIZES.0))?;
    let large: Outcome = send_in("measure", &job(SIZES.1))?;
    let more = (SIZES.1 - SIZES.0) as f64;
    let size = fs::metadata(binary).map_err(|error| format!("{}: {error}", binary.display()))?.len();
    let change = &large.changes[0];
    let mut values = BTreeMap::from([
        ("binary-bytes", size as f64),
        ("chains", large.objects.chains as f64),
        ("sets", large.objects.sets as f64),
        ("chains-more-with-1000-services", large.objects.chains as f64 - small.objects.chains as f64),
        ("elements-per-service", (large.objects.elements as f64 - small.objects.elements as f64) / more),
        ("messages-per-change", change.messages as f64),
        ("bytes-per-change", change.bytes as f64),
        ("resident-kib-20-services", small.memory.rss as f64),
        ("heap-bytes-per-service", (large.memory.anonymous as f64 - small.memory.anonymous as f64) * 1024.0 / more),
    ]);
    match counts(binary) {
        Ok(counts) => values.extend(counts),
        Err(reason) => println!("allocations and instructions are not counted: {reason}"),
    }
    Ok(values)
}

/// What a run with more changes takes more of, for each of them; and what an idle second takes.
fn counts(binary: &Path) -> Result<[(&'static str, f64); 3], String> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        return Err("valgrind is not installed".into());
    }
    let run = |changes| send_in::<_, Counts>("counted", &Counted { binary: binary.to_owned(), changes });
    let (few, many) = (run(EVENTS.0)?, run(EVENTS.1)?);
    let per_change = |few: f64, many: f64| (many - few) / f64::from(EVENTS.1 - EVENTS.0);
    Ok([
        ("allocations-per-change", per_change(few.allocations as f64, many.allocations as f64)),
        ("instructions-per-change", per_change(few.instructions as f64, many.instructions as f64)),
        ("allocations-per-idle-second", many.idle as f64 / IDLE.as_secs_f64()),
    ])
}

/// One run under DHAT.
///
/// # Errors
/// One line that says what did not work.
pub fn counted(job: &Counted, folder: &Path) -> Result<Counts, String> {
    const SERVICES: usize = 100;
    let server = ApiServer::start(Cluster::new(SERVICES, 3)).map_err(|error| error.to_string())?;
    let config =
        write_config(folder, &server.url(), &server.authority, "nftables").map_err(|error| error.to_string())?;
    let [log, trace, profile] = ["log", "trace", "dhat.json"].map(|name| folder.join(name));
    let wrapper = [
        "valgrind".to_owned(),
        "--tool=dhat".to_owned(),
        "--trace-malloc=yes".to_owned(),
        format!("--log-file={}", trace.display()),
        format!("--dhat-out-file={}", profile.display()),
    ];
    let mut proxy = Proxy::start(&wrapper, &job.binary, &config, &log).map_err(|error| error.to_string())?;
    await_ruleset(&mut proxy, SERVICES).map_err(|error| format!("under valgrind: {error}"))?;
    // One after another: each is an event, a plan and a transaction of its own, however busy the machine is.
    let watcher = Watcher::start().map_err(|error| error.to_string())?;
    for mark in 0..job.changes {
        let service = mark as usize % SERVICES;
        server.change(service, mark, |cluster| cluster.replace(service, mark));
        while !matches!(watcher.next(PATIENCE).ok_or("a change never arrived")?, Sight::Mark(seen, _) if seen == mark) {
        }
    }
    thread::sleep(SETTLING);
    let allocations = match traced(&trace)? {
        0 => return Err("valgrind tells of no allocation".into()),
        some => some,
    };
    thread::sleep(IDLE);
    let idle = traced(&trace)? - allocations;
    proxy.stop();
    let text = fs::read_to_string(&profile).map_err(|error| format!("{}: {error}", profile.display()))?;
    let profile: serde_json::Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let instructions = profile["te"].as_u64().ok_or("DHAT counts no instructions")?;
    Ok(Counts { allocations, idle, instructions })
}

/// Allocations so far: valgrind writes a line for each, and one for what is freed.
fn traced(trace: &Path) -> Result<usize, String> {
    let text = fs::read_to_string(trace).map_err(|error| format!("{}: {error}", trace.display()))?;
    Ok(text.lines().filter(|line| line.starts_with("--") && line.contains('=') && !line.contains(" free(")).count())
}
