//! `kube-proxy doctor`: looks at this node and says in plain words what is wrong and how to mend it.
//!
//! [`facts`] and [`probe`] see, [`checks`] judges, [`report`] speaks. Changes nothing; the agent never needs it.

mod checks;
mod facts;
mod probe;
mod report;

use std::io::Write;
use std::path::PathBuf;

use crate::config::Mode;
use facts::Facts;
use report::Report;

/// What the command line says.
#[derive(Clone, Debug, Default)]
pub struct DoctorOptions {
    /// The configuration to look at.
    pub config: Option<PathBuf>,
    /// Speak JSON.
    pub json: bool,
}

/// Looks, prints to stdout, and returns the exit code: 0 when nothing failed, else 1.
pub fn run(options: &DoctorOptions) -> i32 {
    let report = Report::new(checks::all(&Facts::gather(Mode::Nftables)));
    let text = if options.json {
        let json = serde_json::to_string_pretty(&report).expect("strings and booleans can always be written");
        json + "\n"
    } else {
        report.to_string()
    };
    // Whoever closed the pipe has read enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    i32::from(!report.healthy)
}
