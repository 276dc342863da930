//! Namespaces for measurements: each runs in its own, as root or as anybody who may make user namespaces, and leaves
//! nothing behind.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::measure::run;

/// The word that tells this program that it is inside.
pub const INSIDE: &str = "inside";

/// Runs this program once more in fresh network and mount namespaces, with a job, and reads what it tells.
///
/// # Errors
/// One line that says what did not work.
pub fn send_in<J: Serialize, O: DeserializeOwned>(kind: &str, job: &J) -> Result<O, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let job = serde_json::to_string(job).map_err(|error| error.to_string())?;
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let output = command
        .args(["--net", "--mount", "--propagation", "private", "--"])
        .arg(program)
        .args([INSIDE, kind, &job])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("unshare (util-linux) does not start: {error}"))?;
    if !output.status.success() {
        return Err(format!("a measurement failed: {job}"));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("a measurement said nonsense: {error}"))
}

/// Makes the namespaces fit to work in; the folder that a measurement may write to.
///
/// # Errors
/// One line that says what did not work.
pub fn prepare() -> Result<PathBuf, String> {
    run("mount -t tmpfs tmpfs /run && mkdir /run/netns /run/bench && ip link set lo up")?;
    run("ip addr add 192.0.2.1/32 dev lo")?;
    Ok(PathBuf::from("/run/bench"))
}

/// Tells an outcome to whoever sent us in.
///
/// # Errors
/// When nobody listens.
pub fn tell<O: Serialize>(outcome: &O) -> Result<(), String> {
    let text = serde_json::to_string(outcome).map_err(|error| error.to_string())?;
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| error.to_string())
}
