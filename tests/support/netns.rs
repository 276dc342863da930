//! Private network namespaces: every test that touches the kernel runs in its own, as root or as anybody who may
//! make user namespaces. Nothing it does is seen outside, and nothing is left when it ends.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

const INSIDE: &str = "KUBE_PROXY_TEST_INSIDE";

/// Runs the body of the test `name` (its full path, as `cargo test` prints it) in fresh network and mount namespaces
/// with loopback up and `/run` empty, by starting this test binary once more in there.
pub fn isolated(name: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some_and(|inside| inside == *name) {
        run("mount -t tmpfs tmpfs /run && mkdir /run/netns && ip link set lo up");
        return body();
    }
    let program = std::env::current_exe().expect("a running test has a path");
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let status = command
        .args(["--net", "--mount", "--propagation", "private", "--"])
        .arg(program)
        .args(["--exact", name, "--nocapture", "--include-ignored"])
        .env(INSIDE, name)
        .stdin(Stdio::null())
        .status()
        .expect("unshare (util-linux) starts");
    assert!(status.success(), "{name} failed inside its namespaces");
}

/// Runs a test in its namespaces, where the kernel has IPVS. Elsewhere it says that it did not run, unless
/// KUBE_PROXY_REQUIRE_IPVS is set: then it fails.
pub fn with_ipvs(name: &str, body: impl FnOnce()) {
    let _ = succeeds("modprobe -q ip_vs");
    if !std::path::Path::new("/proc/net/ip_vs").exists() {
        let required = std::env::var_os("KUBE_PROXY_REQUIRE_IPVS").is_some();
        assert!(!required, "KUBE_PROXY_REQUIRE_IPVS is set, and this kernel has no IPVS");
        eprintln!("{name} did not run: this kernel has no IPVS; tests/vm/run ipvs runs it on one that has");
        return;
    }
    isolated(name, body);
}

/// Runs a shell command line and returns what it printed. Panics, with its errors, when it fails.
pub fn run(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).stdin(Stdio::null()).output().expect("sh starts");
    assert!(
        output.status.success(),
        "{line}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether we are root of the machine and not only of a user namespace, where the kernel keeps netlink messages short.
pub fn is_root_of_the_machine() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.contains("4294967295"))
}

/// Whether a shell command line succeeds.
pub fn succeeds(line: &str) -> bool {
    Command::new("sh")
        .args(["-ec", line])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A name that no other call in this process gets.
pub fn unique(prefix: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}{}", COUNT.fetch_add(1, Ordering::Relaxed))
}
