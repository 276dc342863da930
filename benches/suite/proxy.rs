//! A proxy under test: any kube-proxy binary, started with the same configuration, and what it costs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::cluster::{CLUSTER_CIDR, NODE};

/// A running proxy; ends when it is dropped.
pub struct Proxy {
    child: Child,
}

/// What a process costs, as the kernel counts it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Resident memory, KiB.
    pub rss: u64,
    /// Resident memory, shared pages counted in proportion, KiB.
    pub pss: u64,
    /// Resident memory that is not of a file, KiB.
    pub anonymous: u64,
    /// The most resident memory that there ever was, KiB.
    pub peak: u64,
    /// Time on a processor, nanoseconds.
    pub cpu: u64,
}

/// Writes kubeconfig and configuration for a mode into a folder; the path of the latter. `authority` signed the
/// certificate of the server at `url`.
///
/// # Errors
/// When they cannot be written.
pub fn write_config(folder: &Path, url: &str, authority: &str, mode: &str) -> io::Result<PathBuf> {
    let (signer, kubeconfig) = (folder.join("ca.pem"), folder.join("kubeconfig"));
    fs::write(&signer, authority)?;
    fs::write(
        &kubeconfig,
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: bench\n\
             clusters: [{{name: bench, cluster: {{server: '{url}', certificate-authority: '{}'}}}}]\n\
             users: [{{name: bench, user: {{token: bench}}}}]\n\
             contexts: [{{name: bench, context: {{cluster: bench, user: bench}}}}]\n",
            signer.display()
        ),
    )?;
    let config = folder.join("config.conf");
    fs::write(
        &config,
        format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: {mode}\n\
             clientConnection: {{kubeconfig: '{}'}}\nhostnameOverride: {NODE}\nbindAddress: 192.0.2.1\n\
             clusterCIDR: {CLUSTER_CIDR}\n{mode}: {{minSyncPeriod: 1ms, syncPeriod: 1h0m0s}}\n\
             conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}\n",
            kubeconfig.display()
        ),
    )?;
    Ok(config)
}

// === impl Proxy ===

impl Proxy {
    /// Starts a kube-proxy binary; its log goes into `log`. `wrapper` are words to put before it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(wrapper: &[String], binary: &Path, config: &Path, log: &Path) -> io::Result<Self> {
        let log = fs::File::create(log)?;
        let mut words = wrapper.iter().map(PathBuf::from).chain([binary.to_owned()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        let child = command
            .args(words)
            .arg(format!("--config={}", config.display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Self { child })
    }

    /// What it has cost up to now.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cost(&self) -> io::Result<Cost> {
        let folder = PathBuf::from(format!("/proc/{}", self.child.id()));
        let (status, rollup) =
            (fs::read_to_string(folder.join("status"))?, fs::read_to_string(folder.join("smaps_rollup"))?);
        // All threads of the process.
        let mut cpu = 0;
        for task in fs::read_dir(folder.join("task"))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            cpu += text.split(' ').next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Cost {
            rss: field(&status, "VmRSS:"),
            pss: field(&rollup, "Pss:"),
            anonymous: field(&status, "RssAnon:"),
            peak: field(&status, "VmHWM:"),
            cpu,
        })
    }

    /// Whether it is still there.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to end and waits until it has.
    pub fn stop(&mut self) {
        let _gone_already = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.child.id() as i32),
            nix::sys::signal::Signal::SIGTERM,
        );
        let _ = self.child.wait();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if self.is_running() {
            self.stop();
        }
    }
}

/// A number that follows a name in `/proc`; 0 where the kernel does not tell.
pub fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}
