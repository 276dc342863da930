//! `kube-proxy doctor`: looks at this node and says in plain words what is wrong and how to mend it.
//!
//! [`facts`] and [`probe`] see, [`checks`] judges, [`cluster`] does both for the way to the API server, [`report`]
//! speaks. Changes nothing; the agent never needs it.

mod checks;
mod cluster;
mod facts;
mod probe;
mod report;

use std::io::Write;

use crate::config::{Mode, Options};
use facts::Facts;
use report::Report;

/// Looks, prints to stdout, and returns the exit code: 0 when nothing failed, else 1. The options are those the agent
/// would be started with.
pub fn run(options: &Options, json: bool) -> u8 {
    let loaded = options.load();
    // The mode of a configuration that cannot be read is upstream's default.
    let mode = loaded.as_ref().map_or(Mode::Iptables, |loaded| loaded.config.mode);
    let mut checks = checks::all(&Facts::gather(mode));
    checks.extend(cluster::checks(options, &loaded));
    let report = Report::new(checks);
    let text = if json {
        let json = serde_json::to_string_pretty(&report).expect("strings and booleans can always be written");
        json + "\n"
    } else {
        report.to_string()
    };
    // Whoever closed the pipe has read enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    u8::from(!report.healthy)
}
