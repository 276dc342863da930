//! The benchmarks: what `benches/README.md` describes. This file turns words into jobs and outcomes into a report.

mod apiserver;
mod arena;
#[path = "../../tests/support/certificates.rs"]
mod certificates;
mod cluster;
mod kernel;
mod measure;
mod proxy;
mod replay;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../tests/support/apiserver/wire.rs"]
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;

use measure::{Job, Outcome};

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
    if words.first().is_some_and(|word| word == arena::INSIDE) {
        let folder = arena::prepare()?;
        let job: Job = serde_json::from_str(&words[2]).map_err(|error| error.to_string())?;
        return arena::tell(&measure::measure(&job, &folder)?);
    }
    let binary = PathBuf::from(std::env::var("BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_kube-proxy").into()));
    for services in words.iter().filter_map(|word| word.parse().ok()) {
        let job = Job {
            binary: binary.clone(),
            services,
            endpoints: 3,
            starts: 3,
            rates: vec![(1, 5), (10, 50), (100, 300)],
            day: std::env::var("DAY").ok().and_then(|d| d.parse().ok()).unwrap_or(0),
            floor: true,
        };
        let mut outcome: Outcome = arena::send_in("measure", &job)?;
        for changes in &mut outcome.changes {
            let l = std::mem::take(&mut changes.latencies);
            println!(
                "{services} rate {} median {:.2} p99 {:.2} max {:.2} overtaken {}",
                changes.rate,
                l[l.len() / 2],
                l[l.len() * 99 / 100],
                l[l.len() - 1],
                changes.overtaken
            );
        }
        println!("{outcome:#?}");
    }
    Ok(())
}
