//! From outcomes to a page that people read: tables, ratios, plots, and the conditions they were measured under.
//!
//! Says what was measured, and whether it is within its budget; never rounds in our favour.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::control_plane;
use crate::measure::{Changes, Outcome};
use crate::plot::{Series, draw};
use crate::traffic;

/// All that was measured of one binary.
pub struct Subject {
    /// How it is called in the tables.
    pub name: String,
    /// Where it is.
    pub binary: PathBuf,
    /// By number of Services.
    pub outcomes: Vec<(usize, Outcome)>,
    /// By number of Services.
    pub traffic: Vec<(usize, traffic::Outcome)>,
    /// Numbers of Services with which a peer could not be measured.
    pub failures: Vec<usize>,
}

/// The middle one.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The page.
pub fn page(subjects: &[Subject], real: &[control_plane::Outcome], load: &[f64]) -> String {
    let mut page = String::from("# Benchmarks\n\nWritten by `benches/run`; run it to write it anew.\n\n");
    conditions(&mut page, subjects, load);
    starts(&mut page, subjects);
    if !real.is_empty() {
        let names: Vec<&str> = subjects.iter().map(|subject| &*subject.name).collect();
        page.push_str(&control_plane::page(&names, real));
    }
    changes(&mut page, subjects);
    memory(&mut page, subjects);
    days(&mut page, subjects);
    data_path(&mut page, subjects);
    page
}

/// The plots, by file name.
pub fn plots(subjects: &[Subject]) -> [(&'static str, String); 2] {
    let lines = |name: &str, value: &dyn Fn(&Outcome) -> Option<f64>| -> Vec<Series> {
        let of = |subject: &Subject| Series {
            name: format!("{}{name}", subject.name),
            points: subject.outcomes.iter().filter_map(|(n, o)| Some((*n as f64, value(o)?))).collect(),
        };
        subjects.iter().map(of).filter(|series| !series.points.is_empty()).collect()
    };
    let mut start = lines("", &|outcome| Some(median(&outcome.start)));
    start.extend(lines(": curl", &|outcome| Some(median(&outcome.curl))).into_iter().take(1));
    start.extend(lines(": floor", &|outcome| (!outcome.floor.is_empty()).then(|| median(&outcome.floor))));
    let quantile = |outcome: &Outcome, share: f64| outcome.changes.last().map(|changes| changes.quantile(share));
    let mut change = lines(": median", &|outcome| quantile(outcome, 0.5));
    change.extend(lines(": p99", &|outcome| quantile(outcome, 0.99)));
    [
        ("start.svg", draw("Process start → everything in the kernel", "Services × 3 endpoints", "seconds", &start)),
        ("change.svg", draw("One endpoint: API server → kernel", "Services × 3 endpoints", "milliseconds", &change)),
    ]
}

fn conditions(page: &mut String, subjects: &[Subject], load: &[f64]) {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let processors = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let loads: Vec<String> = load.iter().map(|load| format!("{load:.1}")).collect();
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(
        page,
        "{processors} × {}, Linux {}. Load average of the last minute at the beginning of each size: {}: \
         with more than {processors}, wall-clock times say as much about the machine as about the proxy.\n\n\
         The API server, the proxy and whoever looks on share this machine and loopback. `minSyncPeriod` is 1ms (the \
         default is 1s), so that it is the work that is measured and not the waiting. Nice level of all of them: {}. \
         Medians of all attempts.\n",
        model.trim_start_matches(['\t', ':', ' ']),
        kernel.trim(),
        loads.join(", "),
        nice()
    );
    for Subject { name, binary, failures, .. } in subjects {
        let version = Command::new(binary).arg("--version").output().map(|output| output.stdout).unwrap_or_default();
        let bytes = fs::metadata(binary).map(|file| file.len()).unwrap_or(0);
        let _ = writeln!(page, "- {name}: {}, {bytes} bytes", String::from_utf8_lossy(&version).trim());
        for services in failures {
            let _ = writeln!(page, "  - with {services} Services it did not get through the measurement");
        }
    }
}

/// The nice level that we, and what we start, run at (proc(5), `stat`).
fn nice() -> String {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    after_name.split(' ').nth(16).unwrap_or("unknown").to_owned()
}

fn starts(page: &mut String, subjects: &[Subject]) {
    page.push_str(
        "\n## Start\n\nFrom the start of the process until everything is in the kernel. `curl` fetches the same two \
         lists, as JSON; a proxy that prefers protobuf gets that. The budget is 1.5 times `curl`'s time and 0.2 s. The floor is the same ruleset, sent once more from prepared \
         bytes: what the kernel itself needs. A full sync is the proxy's plan, its bytes and the kernel's part \
         together; for that part, the budget is 1.3 times the floor.\n\n![start](start.svg)\n\n| Services | proxy | \
         start | CPU | curl | budget | full sync | kernel's part | floor |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    each(subjects, |subject, services, outcome| {
        let (start, curl) = (median(&outcome.start), median(&outcome.curl));
        let budget = 1.5 * curl + 0.2;
        let (part, floor) = (median(&outcome.in_kernel), median(&outcome.floor));
        let missed = |missed: bool| if missed { " **missed**" } else { "" };
        let _ = writeln!(
            page,
            "| {services} | {} | {start:.2} s{} | {:.2} s | {curl:.2} s | {budget:.2} s{} | {} | {}{} | {} |",
            subject.name,
            ratio(subjects, subject, services, start, |outcome| median(&outcome.start)),
            median(&outcome.start_cpu),
            missed(start > budget),
            seconds(&outcome.full_sync),
            seconds(&outcome.in_kernel),
            missed(part > 1.3 * floor),
            seconds(&outcome.floor),
        );
    });
    for (services, outcome) in subjects.first().into_iter().flat_map(|subject| &subject.outcomes) {
        let (curl, floor) = (median(&outcome.curl), median(&outcome.floor));
        if curl + floor > 1.5 * curl + 0.2 {
            let _ = writeln!(
                page,
                "\nWith {services} Services, fetching and the kernel's floor alone add up to {:.2} s: more than the \
                 budget, for a program with one thread.",
                curl + floor
            );
        }
    }
}

fn changes(page: &mut String, subjects: &[Subject]) {
    page.push_str(
        "\n## Changes\n\nOne endpoint is replaced: from the moment before the API server encrypts the event until the \
         kernel's notification of the transaction is read. Beside p99 stands what the machine itself adds: p99 and the \
         longest of as many bytes, at the same rate, to a thread on another processor and back; and the proxy's part, \
         by its own histogram: from having read the event to the kernel's acknowledgement, which 99 % did within so \
         much. The budget is 2 ms for the median of the whole, and 5 ms for p99 of the proxy's part, or of the whole \
         where a proxy does not tell. Meanwhile something of the least priority keeps the processors from falling \
         asleep: a virtual one may take milliseconds to wake.\n\n\
         ![change](change.svg)\n\n\
         | Services | proxy | a second | median | p99 | the machine itself | proxy's part, p99 | overtaken | CPU a \
         change | messages | bytes |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    each(subjects, |subject, services, outcome| {
        for (index, changes) in outcome.changes.iter().enumerate() {
            if changes.latencies.is_empty() {
                let (name, rate, overtaken) = (&subject.name, changes.rate, changes.overtaken);
                let _ = writeln!(page, "| {services} | {name} | {rate} | – | – | – | – | {overtaken} | – | – | – |");
                continue;
            }
            let machine = [0.99, 1.0].map(|share| quantile(&changes.machine, share));
            let (middle, high) = (changes.quantile(0.5), changes.quantile(0.99));
            let of = |outcome: &Outcome| outcome.changes.get(index).map_or(f64::NAN, |changes| changes.quantile(0.5));
            let _ = writeln!(
                page,
                "| {services} | {} | {} | {middle:.2} ms{} | {high:.2} ms | {:.2}, {:.2} ms | {}{} | {} | {:.2} ms | {} | {} |",
                subject.name,
                changes.rate,
                ratio(subjects, subject, services, middle, of),
                machine[0],
                machine[1],
                changes.acknowledged.map_or("–".to_owned(), |bound| format!("≤ {bound} ms")),
                if middle <= 2.0 && changes.acknowledged.unwrap_or(high) <= 5.0 { "" } else { " **missed**" },
                changes.overtaken,
                changes.cpu,
                changes.messages,
                changes.bytes,
            );
        }
    });
}

fn memory(page: &mut String, subjects: &[Subject]) {
    page.push_str(
        "\n## Memory and rest\n\nIn MB of 1,000,000 bytes. The budget is 6 MB resident with 20 Services and 24 MB with \
         10,000. Kernel memory is the growth of unreclaimable slab of the whole machine, and rough.\n\n\
         | Services | proxy | resident | proportional | peak | after changes | kernel | idle CPU in 5 s | chains | \
         elements |\n|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let mb = |kib: u64| kib as f64 * 1024.0 / 1e6;
    each(subjects, |subject, services, outcome| {
        let resident = mb(outcome.memory.rss);
        let limit = match services {
            0..=20 => 6.0,
            21..=10_000 => 24.0,
            _ => f64::INFINITY,
        };
        let _ = writeln!(
            page,
            "| {services} | {} | {resident:.1}{}{} | {:.1} | {:.1} | {:.1} | {:.1} | {:.2} ms | {} | {} |",
            subject.name,
            ratio(subjects, subject, services, resident, |outcome| mb(outcome.memory.rss)),
            if resident <= limit { "" } else { " **missed**" },
            mb(outcome.memory.pss),
            mb(outcome.memory.peak),
            mb(outcome.memory_after.rss),
            outcome.slab as f64 * 1024.0 / 1e6,
            outcome.idle_cpu as f64 / 1e6,
            outcome.objects.chains,
            outcome.objects.elements,
        );
    });
}

fn days(page: &mut String, subjects: &[Subject]) {
    if subjects.iter().flat_map(|subject| &subject.outcomes).all(|(_, outcome)| outcome.day.is_none()) {
        return;
    }
    page.push_str(
        "\n## A day in minutes\n\nServices gain and lose endpoints, as fast as the proxy takes it. Memory and kernel \
         objects must not grow between the first tenth and the end.\n\n\
         | Services | proxy | changes | a second | CPU a change | resident, first tenth | at the end | objects, first \
         tenth | at the end |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    each(subjects, |subject, services, outcome| {
        let Some(day) = &outcome.day else { return };
        let (early, late) = (&day.objects_early, &day.objects_late);
        let _ = writeln!(
            page,
            "| {services} | {} | {} | {:.0} | {:.2} ms | {} KiB | {} KiB | {} chains, {} elements | {} chains, {} \
             elements |",
            subject.name,
            day.changes,
            f64::from(day.changes) / day.took,
            day.cpu * 1000.0 / f64::from(day.changes),
            day.early.rss,
            day.late.rss,
            early.chains,
            early.elements,
            late.chains,
            late.elements,
        );
    });
}

fn data_path(page: &mut String, subjects: &[Subject]) {
    if subjects.iter().all(|subject| subject.traffic.is_empty()) {
        return;
    }
    page.push_str(
        "\n## Data path\n\nOne client, one connection after another, through a Service chosen anew each time: from SYN \
         to SYN/ACK. It must not depend on the number of Services.\n\n\
         | Services | proxy | first packet, median | without a Service | connections a second |\n|---|---|---|---|---|\n",
    );
    for subject in subjects {
        for (services, outcome) in &subject.traffic {
            let _ = writeln!(
                page,
                "| {services} | {} | {:.0} µs | {:.0} µs | {:.0} |",
                subject.name, outcome.first_packet, outcome.direct, outcome.rate
            );
        }
    }
}

fn each<'a>(subjects: &'a [Subject], mut line: impl FnMut(&'a Subject, usize, &'a Outcome)) {
    let sizes = subjects.first().into_iter().flat_map(|subject| &subject.outcomes).map(|(services, _)| *services);
    for size in sizes {
        for subject in subjects {
            subject.outcomes.iter().filter(|(of, _)| *of == size).for_each(|(_, outcome)| line(subject, size, outcome));
        }
    }
}

/// How many times the first subject's value this is, for the others.
fn ratio(subjects: &[Subject], subject: &Subject, services: usize, value: f64, of: impl Fn(&Outcome) -> f64) -> String {
    let ours = subjects.first().filter(|first| first.binary != subject.binary);
    let ours = ours.and_then(|first| first.outcomes.iter().find(|(size, _)| *size == services));
    ours.map_or(String::new(), |(_, outcome)| format!(" ({:.1} ×)", value / of(outcome)))
}

/// The smallest of these that a share of them does not exceed; they are in ascending order.
fn quantile(values: &[f64], share: f64) -> f64 {
    let rank = (values.len() as f64 * share).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

fn seconds(values: &[f64]) -> String {
    if values.is_empty() { "–".into() } else { format!("{:.3} s", median(values)) }
}

/// Writes the page and what belongs to it.
///
/// # Errors
/// When the folder cannot be written to.
pub fn write(
    folder: &Path,
    subjects: &[Subject],
    real: &[control_plane::Outcome],
    load: &[f64],
) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("README.md"), page(subjects, real, load))?;
    plots(subjects).into_iter().try_for_each(|(name, svg)| fs::write(folder.join(name), svg))
}

// === impl Subject ===

impl Subject {
    /// A peer may be too slow for a size, or not up to it: the others are measured all the same.
    pub fn fail(&mut self, services: usize, reason: &str) {
        eprintln!("{}: {reason}", self.name);
        if !self.failures.contains(&services) {
            self.failures.push(services);
        }
    }
}

// === impl Changes ===

impl Changes {
    /// The latency that this share of the changes stays within, milliseconds.
    pub fn quantile(&self, share: f64) -> f64 {
        quantile(&self.latencies, share)
    }
}
