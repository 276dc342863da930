//! Processors that do not fall asleep. In a virtual machine, one that sleeps may take milliseconds to wake: that would be
//! measured with whoever is woken.
//!
//! What keeps them awake gives way to everybody else at once.

use std::io;
use std::process::{Child, Command, Stdio};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

/// Ends with whoever began it, even if that is killed.
const BUSY: &str = "while kill -0 $PPID; do :; done 2>/dev/null";

/// Keeps them awake until it is dropped.
pub struct Awake(Vec<Child>);

/// The processors that this process may use.
pub fn processors() -> io::Result<Vec<usize>> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).collect())
}

// === impl Awake ===

impl Awake {
    /// Begins, on every processor.
    ///
    /// # Errors
    /// When the tools for it, of util-linux, are not there.
    pub fn begin() -> io::Result<Self> {
        let mut awake = Self(Vec::new());
        for processor in processors()? {
            let busy = Command::new("taskset")
                .args(["--cpu-list", &processor.to_string(), "chrt", "--idle", "0", "sh", "-c", BUSY])
                .stdin(Stdio::null())
                .spawn()
                .map_err(|error| io::Error::new(error.kind(), format!("taskset does not start: {error}")))?;
            awake.0.push(busy);
        }
        Ok(awake)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        for busy in &mut self.0 {
            // It may have ended by itself.
            let _ = busy.kill();
            let _ = busy.wait();
        }
    }
}
