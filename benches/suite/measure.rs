//! One measurement: one binary, one size, in fresh namespaces. Start, memory, changes at several rates, the kernel's floor.
//!
//! Runs inside namespaces that [`crate::arena`] made, and tells its results as JSON.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::apiserver::ApiServer;
use crate::awake::{Awake, processors};
use crate::cluster::Cluster;
use crate::kernel::{self, Objects, Sight, Watcher};
use crate::proxy::{Proxy, field, write_config};
use crate::replay::Recording;

/// A ruleset that did not change for so long may be complete.
const CALM: Duration = Duration::from_millis(1200);
/// A change that did not arrive so long after the last one was overtaken by it.
const SETTLED: Duration = Duration::from_secs(5);
/// Nobody may take longer to start, or to carry out a change.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What is to be measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The proxy.
    pub binary: PathBuf,
    /// How many Services.
    pub services: usize,
    /// How many endpoints each.
    pub endpoints: usize,
    /// How many starts.
    pub starts: usize,
    /// Changes a second, and how many of them.
    pub rates: Vec<(u32, u32)>,
    /// Changes of the compressed day; 0: none.
    pub day: u32,
    /// Also measure the kernel's floor: only for rulesets without anonymous sets.
    pub floor: bool,
}

/// What came out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// `curl` fetching both lists: seconds, one per attempt.
    pub curl: Vec<f64>,
    /// Bytes of both lists.
    pub list_bytes: usize,
    /// From the start of the process until everything is in the kernel: seconds, one per attempt.
    pub start: Vec<f64>,
    /// The proxy's own full sync: seconds.
    pub full_sync: Vec<f64>,
    /// What the kernel took of that, by our own word: seconds. Others do not tell.
    pub in_kernel: Vec<f64>,
    /// The kernel alone, from prepared bytes: seconds.
    pub floor: Vec<f64>,
    /// CPU seconds until everything was in the kernel.
    pub start_cpu: Vec<f64>,
    /// After the start.
    pub memory: Memory,
    /// After all changes.
    pub memory_after: Memory,
    /// Growth of the kernel's own unreclaimable memory at the start, KiB; whole machine.
    pub slab: i64,
    /// CPU time in five idle seconds, nanoseconds.
    pub idle_cpu: u64,
    /// What is in the kernel.
    pub objects: Objects,
    /// By rate.
    pub changes: Vec<Changes>,
    /// The compressed day.
    pub day: Option<Day>,
}

/// KiB.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Memory {
    /// Resident.
    pub rss: u64,
    /// Resident, shared pages in proportion.
    pub pss: u64,
    /// Resident, not of a file.
    pub anonymous: u64,
    /// The most there ever was.
    pub peak: u64,
}

/// Changes at one rate.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Changes {
    /// A second.
    pub rate: u32,
    /// API server → kernel: milliseconds each, ascending.
    pub latencies: Vec<f64>,
    /// Changes that never reached the kernel because the next one of the same Service came with them.
    pub overtaken: usize,
    /// The bound in milliseconds that 99 % stayed within from having been read to the kernel's acknowledgement, by the
    /// proxy's own histogram. Others do not tell.
    pub acknowledged: Option<f64>,
    /// CPU milliseconds per change.
    pub cpu: f64,
    /// Messages per transaction in the kernel's notifications, median.
    pub messages: usize,
    /// Bytes of these, median.
    pub bytes: usize,
    /// What the machine itself adds, at the same rate: a byte to another processor and back, milliseconds each, ascending.
    pub machine: Vec<f64>,
}

/// Many changes, as fast as they go in.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Day {
    /// How many.
    pub changes: u32,
    /// Seconds that they took.
    pub took: f64,
    /// CPU seconds that they took.
    pub cpu: f64,
    /// After a tenth of them.
    pub early: Memory,
    /// At the end.
    pub late: Memory,
    /// After a tenth of them.
    pub objects_early: Objects,
    /// At the end.
    pub objects_late: Objects,
}

/// Measures; `folder` is for the files that it needs.
///
/// # Errors
/// One line that says what did not work.
pub fn measure(job: &Job, folder: &Path) -> Result<Outcome, String> {
    let server = ApiServer::start(Cluster::new(job.services, job.endpoints))
        .map_err(|error| format!("the API server does not start: {error}"))?;
    let config = write_config(folder, &server.url(), &server.authority, "nftables")
        .map_err(|error| format!("{}: {error}", folder.display()))?;
    let log = folder.join("log");
    let explain = |error: String| {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let tail: Vec<&str> = text.lines().rev().take(5).collect();
        format!("{} with {} Services: {error}; its log ends with {tail:?}", job.binary.display(), job.services)
    };
    let mut outcome = Outcome::default();
    for _ in 0..job.starts {
        let (seconds, bytes) = curl(folder, &server.url())?;
        outcome.curl.push(seconds);
        outcome.list_bytes = bytes;
    }
    for attempt in 1..=job.starts {
        let slab = kernel_memory();
        let mut proxy = Proxy::start(&[], &job.binary, &config, &log).map_err(|error| explain(error.to_string()))?;
        let start = await_ruleset(&mut proxy, job.services).map_err(|error| explain(error.to_string()))?;
        outcome.start.push(start.took.as_secs_f64());
        outcome.start_cpu.push(start.cpu as f64 / 1e9);
        outcome.full_sync.extend(full_sync());
        outcome.in_kernel.extend(in_kernel(&log));
        if attempt == job.starts {
            outcome.slab = kernel_memory() as i64 - slab as i64;
            outcome.memory = memory(&proxy).map_err(|error| explain(error.to_string()))?;
            outcome.objects = start.objects;
            rest(job, &server, &mut proxy, &mut outcome).map_err(|error| explain(error.to_string()))?;
        }
        proxy.stop();
        if job.floor && attempt == job.starts {
            let recording = Recording::new().map_err(|error| format!("cannot record the ruleset: {error}"))?;
            recording.remove().map_err(|error| format!("cannot remove the ruleset: {error}"))?;
            for _ in 0..job.starts {
                let floor = recording.play().map_err(|error| format!("cannot replay the ruleset: {error}"))?;
                outcome.floor.push(floor.as_secs_f64());
                recording.remove().map_err(|error| format!("cannot remove the ruleset: {error}"))?;
            }
        } else {
            run("nft flush ruleset")?;
        }
    }
    Ok(outcome)
}

/// What is measured once the ruleset is there.
fn rest(job: &Job, server: &ApiServer, proxy: &mut Proxy, outcome: &mut Outcome) -> io::Result<()> {
    let before = proxy.cost()?.cpu;
    thread::sleep(Duration::from_secs(5));
    outcome.idle_cpu = proxy.cost()?.cpu - before;
    let mut mark = 0;
    for &(rate, count) in &job.rates {
        outcome.changes.push(churn(server, proxy, job.services, rate, count, &mut mark)?);
    }
    outcome.memory_after = memory(proxy)?;
    if job.day > 0 {
        outcome.day = Some(day(server, proxy, job, &mut mark)?);
    }
    Ok(())
}

/// A ruleset that came about.
pub struct Started {
    /// From the start of the process.
    pub took: Duration,
    /// CPU time up to then, nanoseconds.
    pub cpu: u64,
    /// What is there.
    pub objects: Objects,
}

/// Waits until every Service's address is in the kernel and the ruleset is calm.
///
/// # Errors
/// When that does not come about, or the proxy ends.
pub fn await_ruleset(proxy: &mut Proxy, services: usize) -> io::Result<Started> {
    let began = Instant::now();
    let mut socket = kernel::open()?;
    let first = kernel::generation(&mut socket)?;
    let mut last = (first, began, 0);
    while began.elapsed() < PATIENCE {
        if !proxy.is_running() {
            return Err(io::Error::other("it ended"));
        }
        let now = kernel::generation(&mut socket)?;
        if now != last.0 {
            last = (now, Instant::now(), proxy.cost()?.cpu);
        } else if now != first && last.1.elapsed() > CALM {
            let mut addresses: BTreeMap<Ipv4Addr, bool> =
                (0..services).map(|service| (Cluster::cluster_ip(service), false)).collect();
            let objects = kernel::objects(&mut addresses)?;
            if addresses.values().all(|found| *found) {
                return Ok(Started { took: last.1 - began, cpu: last.2, objects });
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
    Err(io::Error::other("it did not program everything in time"))
}

/// Replaces endpoints at a rate, and waits until the last one is in the kernel.
fn churn(
    server: &ApiServer,
    proxy: &Proxy,
    services: usize,
    rate: u32,
    count: u32,
    mark: &mut u32,
) -> io::Result<Changes> {
    let _awake = Awake::begin()?;
    let watcher = Watcher::start()?;
    let pause = Duration::from_secs(1) / rate;
    let first = *mark;
    let before = acknowledged();
    let cpu = proxy.cost()?.cpu;
    let mut latencies = Vec::new();
    let mut sizes = Vec::new();
    let mut due = Instant::now();
    let (began, mut sent) = (due, 0);
    while latencies.len() < count as usize {
        if sent < count && due <= Instant::now() {
            // A prime far from any size: all Services get their turn, neighbours far apart.
            let service = (*mark as usize).wrapping_mul(7919) % services;
            server.change(service, *mark, |cluster| cluster.replace(service, *mark));
            (*mark, sent, due) = (*mark + 1, sent + 1, due + pause);
        }
        let patience = if sent < count { due.saturating_duration_since(Instant::now()) } else { pause };
        match watcher.next(patience) {
            Some(Sight::Mark(seen, at)) if seen >= first => {
                if let Some(sent) = server.take_sent(seen) {
                    latencies.push((at - sent).as_secs_f64() * 1000.0);
                }
            }
            Some(Sight::Transaction(messages, bytes)) => sizes.push((messages, bytes)),
            _ => {}
        }
        if sent == count && due.elapsed() > SETTLED {
            break;
        }
        if began.elapsed() > PATIENCE {
            return Err(io::Error::other("changes take for ever to reach the kernel"));
        }
    }
    // What a proxy does after the last change is part of the price.
    thread::sleep(Duration::from_millis(100));
    let cpu = (proxy.cost()?.cpu - cpu) as f64 / 1e6 / f64::from(count);
    let acknowledged = within(&before, &acknowledged(), 0.99);
    latencies.sort_unstable_by(f64::total_cmp);
    sizes.sort_unstable();
    let (messages, bytes) = sizes.get(sizes.len() / 2).copied().unwrap_or_default();
    let overtaken = count as usize - latencies.len();
    let machine = round_trips(pause, count)?;
    Ok(Changes { rate, latencies, overtaken, acknowledged, cpu, messages, bytes, machine })
}

/// A byte to a thread on another processor and back, time and again: what it takes to wake who is asleep, without any
/// work.
fn round_trips(pause: Duration, count: u32) -> io::Result<Vec<f64>> {
    let processors = processors()?;
    let (first, last) = (processors.first().copied(), processors.last().copied());
    let (mut here, mut there) = UnixStream::pair()?;
    let answering = thread::spawn(move || -> io::Result<()> {
        stay_on(first)?;
        let mut byte = [0];
        // Ends when the other side is closed.
        while there.read_exact(&mut byte).and_then(|()| there.write_all(&byte)).is_ok() {}
        Ok(())
    });
    let asking = thread::spawn(move || -> io::Result<Vec<f64>> {
        stay_on(last)?;
        let mut took = Vec::new();
        for _ in 0..count {
            thread::sleep(pause);
            let began = Instant::now();
            here.write_all(&[0])?;
            here.read_exact(&mut [0])?;
            took.push(began.elapsed().as_secs_f64() * 1000.0);
        }
        took.sort_unstable_by(f64::total_cmp);
        Ok(took)
    });
    let took = asking.join().map_err(|_| io::Error::other("the thread that asks failed"))?;
    answering.join().map_err(|_| io::Error::other("the thread that answers failed"))??;
    took
}

/// Keeps this thread on one processor.
fn stay_on(processor: Option<usize>) -> io::Result<()> {
    let mut only = CpuSet::new();
    processor.into_iter().try_for_each(|processor| only.set(processor))?;
    Ok(sched_setaffinity(Pid::from_raw(0), &only)?)
}

/// A day's changes without the waiting: bursts, each awaited.
fn day(server: &ApiServer, proxy: &Proxy, job: &Job, mark: &mut u32) -> io::Result<Day> {
    const BURST: u32 = 50;
    let watcher = Watcher::start()?;
    let (began, cpu) = (Instant::now(), proxy.cost()?.cpu);
    let mut day = Day { changes: job.day, ..Day::default() };
    let first = *mark;
    while *mark - first < job.day {
        let burst = *mark..(*mark + BURST);
        for mark in burst.clone() {
            let service = (mark as usize).wrapping_mul(7919) % job.services;
            // Between one endpoint and two more than at first; at the end, all have what they had.
            let size = 1 + mark as usize % (job.endpoints + 2);
            let size = if mark - first + job.services as u32 >= job.day { job.endpoints } else { size };
            server.change(service, mark, |cluster| cluster.scale(service, size, mark));
        }
        *mark = burst.end;
        let mut waiting = burst.len();
        while waiting > 0 {
            match watcher.next(PATIENCE) {
                Some(Sight::Mark(seen, _)) if burst.contains(&seen) => {
                    server.take_sent(seen);
                    waiting -= 1;
                }
                Some(_) => {}
                None => return Err(io::Error::other("a change never reached the kernel")),
            }
        }
        if day.early.rss == 0 && *mark - first >= job.day / 10 {
            day.early = memory(proxy)?;
            day.objects_early = kernel::objects(&mut BTreeMap::new())?;
        }
    }
    day.took = began.elapsed().as_secs_f64();
    day.cpu = (proxy.cost()?.cpu - cpu) as f64 / 1e9;
    day.late = memory(proxy)?;
    day.objects_late = kernel::objects(&mut BTreeMap::new())?;
    Ok(day)
}

fn memory(proxy: &Proxy) -> io::Result<Memory> {
    let cost = proxy.cost()?;
    Ok(Memory { rss: cost.rss, pss: cost.pss, anonymous: cost.anonymous, peak: cost.peak })
}

/// Unreclaimable slab of the whole machine, KiB.
fn kernel_memory() -> u64 {
    field(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default(), "SUnreclaim:")
}

/// What the proxy itself says of its changes: the bounds of its buckets in seconds, and how many stayed within each.
fn acknowledged() -> Vec<(f64, u64)> {
    const BUCKETS: &str = "kubeproxy_change_to_kernel_duration_seconds_bucket{ip_family=\"IPv4\",le=\"";
    let text = shell("curl -s http://127.0.0.1:10249/metrics").unwrap_or_default();
    let bucket = |line: &str| {
        let (bound, count) = line.strip_prefix(BUCKETS)?.split_once("\"} ")?;
        Some((bound.parse().ok()?, count.parse::<f64>().ok()? as u64))
    };
    text.lines().filter_map(bucket).collect()
}

/// The bound in milliseconds that this share of what came between two looks stayed within.
fn within(before: &[(f64, u64)], after: &[(f64, u64)], share: f64) -> Option<f64> {
    let more = || before.iter().zip(after).map(|((_, before), (bound, after))| (bound * 1000.0, after - before));
    let wanted = more().next_back()?.1 as f64 * share;
    more().find(|(_, count)| *count as f64 >= wanted).map(|(bound, _)| bound)
}

/// What the proxy itself says of its first full sync; the families are one after another.
pub fn full_sync() -> Option<f64> {
    let text = shell("curl -s http://127.0.0.1:10249/metrics").ok()?;
    let sums = text.lines().filter(|line| line.starts_with("kubeproxy_sync_full_proxy_rules_duration_seconds_sum"));
    let sums: Vec<f64> = sums.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    (!sums.is_empty()).then(|| sums.iter().sum())
}

/// What the log says of the kernel's part of the full syncs: seconds, both families together.
fn in_kernel(log: &Path) -> Option<f64> {
    let text = std::fs::read_to_string(log).ok()?;
    let milliseconds = |line: &str| line.split_once(" in_kernel=")?.1.split_once("ms")?.0.parse::<f64>().ok();
    let parts: Vec<f64> = text.lines().filter_map(milliseconds).collect();
    (!parts.is_empty()).then(|| parts.iter().sum::<f64>() / 1000.0)
}

/// Seconds that `curl` needs to fetch both lists over one connection, and their bytes.
///
/// # Errors
/// When `curl` is not there, or fails.
pub fn curl(folder: &Path, url: &str) -> Result<(f64, usize), String> {
    let authority = folder.join("ca.pem");
    let urls = ["/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices"].map(|path| format!("{url}{path}"));
    let began = Instant::now();
    let output = Command::new("curl")
        .args(["-sS", "--fail", "-w", "%{stderr}%{size_download}\n", "-H", "Authorization: Bearer bench", "--cacert"])
        .arg(authority)
        .args(urls)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|error| format!("curl does not start: {error}; install it"))?;
    let took = began.elapsed().as_secs_f64();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(format!("curl failed: {said}"));
    }
    Ok((took, said.lines().filter_map(|line| line.parse::<usize>().ok()).sum()))
}

/// Runs a shell command line.
pub fn run(line: &str) -> Result<(), String> {
    shell(line).map(drop)
}

/// Runs a shell command line; what it printed.
pub fn shell(line: &str) -> Result<String, String> {
    let output = Command::new("sh").args(["-ec", line]).stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{line}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
