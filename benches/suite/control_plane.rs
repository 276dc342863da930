//! A start against a real API server: the `kube-apiserver` and `etcd` that were given, filled with the same Services. Only
//! starts are measured here: a real server does not tell when it sent what.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::certificates::Authority;
use crate::cluster::{Cluster, node};
use crate::measure::{await_ruleset, curl, run};
use crate::proxy::{Proxy, write_config};

const SERVER: &str = "https://127.0.0.1:6443";
const STORAGE: &str = "http://127.0.0.1:2379";
const AUTHORIZATION: &str = "Authorization: Bearer bench";
/// A server that is not ready by then has failed.
const READY: Duration = Duration::from_secs(60);
/// Connections that objects are created over.
const WRITERS: usize = 8;

/// The programs of a control plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Programs {
    /// kube-apiserver.
    pub apiserver: PathBuf,
    /// etcd: 3.5 or later, for streaming lists.
    pub etcd: PathBuf,
}

/// What is to be measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    /// Whom to ask.
    pub programs: Programs,
    /// Who asks, one after another.
    pub proxies: Vec<PathBuf>,
    /// How many Services, with three endpoints each.
    pub services: usize,
    /// How many starts of each.
    pub starts: usize,
}

/// What came out.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// How many Services there were.
    pub services: usize,
    /// `curl` fetching both lists: seconds, one per attempt.
    pub curl: Vec<f64>,
    /// Bytes of both lists.
    pub list_bytes: usize,
    /// What each proxy took, or why it did not get there.
    pub starts: Vec<Result<Start, String>>,
}

/// What one proxy took.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Start {
    /// From the start of the process until everything is in the kernel: seconds, one per attempt.
    pub took: Vec<f64>,
    /// CPU seconds up to then.
    pub cpu: Vec<f64>,
    /// Resident memory after the last one, KiB.
    pub rss: u64,
}

/// A program that runs beside us, and ends with this.
struct Daemon(Child);

/// Measures; `folder` is for the files that it needs.
///
/// # Errors
/// One line that says what did not work.
pub fn measure(job: &Job, folder: &Path) -> Result<Outcome, String> {
    let authority = Authority::new("benchmark");
    let _running = start(&job.programs, &authority, folder)?;
    fill(&Cluster::new(job.services, 3), folder)?;
    let config = write_config(folder, SERVER, authority.pem(), "nftables").map_err(|error| error.to_string())?;
    let mut outcome = Outcome { services: job.services, curl: Vec::new(), list_bytes: 0, starts: Vec::new() };
    for _ in 0..job.starts {
        let (seconds, bytes) = curl(folder, SERVER)?;
        outcome.curl.push(seconds);
        outcome.list_bytes = bytes;
    }
    for proxy in &job.proxies {
        outcome.starts.push(starts(proxy, job, &config, &folder.join("log")));
        run("nft flush ruleset")?;
    }
    Ok(outcome)
}

fn starts(binary: &Path, job: &Job, config: &Path, log: &Path) -> Result<Start, String> {
    let mut start = Start::default();
    for _ in 0..job.starts {
        run("nft flush ruleset")?;
        let mut proxy = Proxy::start(&[], binary, config, log).map_err(|error| error.to_string())?;
        let started = await_ruleset(&mut proxy, job.services).map_err(|error| error.to_string())?;
        start.took.push(started.took.as_secs_f64());
        start.cpu.push(started.cpu as f64 / 1e9);
        start.rss = proxy.cost().map_err(|error| error.to_string())?.rss;
        proxy.stop();
    }
    Ok(start)
}

/// Starts both, and waits until the server is ready.
fn start(programs: &Programs, authority: &Authority, folder: &Path) -> Result<[Daemon; 2], String> {
    let identity = authority.sign("apiserver", &["127.0.0.1"]);
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).map(|()| path.display().to_string()).map_err(|error| error.to_string())
    };
    let certificate = file("server.crt", &identity.certificate)?;
    let key = file("server.key", &identity.key)?;
    let tokens = file("tokens", "bench,bench,bench\n")?;
    file("ca.pem", authority.pem())?;
    let data = folder.join("etcd").display().to_string();
    let etcd = Daemon::start(
        &programs.etcd,
        &[
            ("--data-dir", &data),
            ("--listen-client-urls", STORAGE),
            ("--advertise-client-urls", STORAGE),
            ("--listen-peer-urls", "http://127.0.0.1:2380"),
            ("--quota-backend-bytes", "4294967296"),
        ],
        &folder.join("etcd.log"),
    )?;
    let apiserver = Daemon::start(
        &programs.apiserver,
        &[
            ("--etcd-servers", STORAGE),
            ("--bind-address", "127.0.0.1"),
            ("--advertise-address", "192.0.2.1"),
            ("--endpoint-reconciler-type", "none"),
            ("--service-cluster-ip-range", "172.16.0.0/12"),
            ("--tls-cert-file", &certificate),
            ("--tls-private-key-file", &key),
            ("--token-auth-file", &tokens),
            ("--authorization-mode", "AlwaysAllow"),
            ("--disable-admission-plugins", "ServiceAccount"),
            ("--service-account-issuer", SERVER),
            ("--service-account-key-file", &certificate),
            ("--service-account-signing-key-file", &key),
        ],
        &folder.join("apiserver.log"),
    )?;
    let ready = format!("curl -sSf --cacert {}/ca.pem -H '{AUTHORIZATION}' {SERVER}/readyz", folder.display());
    let began = Instant::now();
    while let Err(reason) = run(&ready) {
        if began.elapsed() > READY {
            let log = fs::read_to_string(folder.join("apiserver.log")).unwrap_or_default();
            let last = log.lines().last().unwrap_or_default();
            return Err(format!("{} does not get ready: {reason}; {last}", programs.apiserver.display()));
        }
        thread::sleep(Duration::from_millis(200));
    }
    Ok([apiserver, etcd])
}

/// Creates all objects.
fn fill(cluster: &Cluster, folder: &Path) -> Result<(), String> {
    let mut first = vec![("/api/v1/nodes".to_owned(), node())];
    first.extend((0..cluster.services()).step_by(Cluster::PER_TEAM).map(|service| {
        ("/api/v1/namespaces".to_owned(), format!(r#"{{"metadata":{{"name":"{}"}}}}"#, Cluster::team(service)))
    }));
    create(&first, &folder.join("requests"))?;
    let mut requests = Vec::new();
    for service in 0..cluster.services() {
        let namespace = Cluster::team(service);
        let mut text = String::new();
        cluster.write_service(service, &mut text);
        requests.push((format!("/api/v1/namespaces/{namespace}/services"), std::mem::take(&mut text)));
        cluster.write_slice(service, &mut text);
        requests.push((format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"), text));
    }
    thread::scope(|scope| {
        let share = |(index, requests)| {
            let file = folder.join(format!("requests-{index}"));
            scope.spawn(move || create(requests, &file))
        };
        let writers: Vec<_> = requests.chunks(requests.len().div_ceil(WRITERS)).enumerate().map(share).collect();
        writers.into_iter().try_for_each(|writer| writer.join().map_err(|_| "a writer panicked".to_owned())?)
    })
}

/// Creates objects, given by the path of their kind and as JSON, over one connection.
fn create(requests: &[(String, String)], file: &Path) -> Result<(), String> {
    let mut words = String::new();
    for (path, text) in requests {
        let mut object: Value = serde_json::from_str(text).map_err(|error| format!("{text}: {error}"))?;
        if let Some(metadata) = object["metadata"].as_object_mut() {
            // These are the server's to write.
            for field in ["resourceVersion", "uid", "managedFields", "creationTimestamp"] {
                metadata.remove(field);
            }
        }
        let quoted = Value::from(object.to_string());
        let separator = if words.is_empty() { "" } else { "next\n" };
        let _ = write!(
            words,
            "{separator}url = \"{SERVER}{path}\"\ndata = {quoted}\nheader = \"Content-Type: application/json\"\n\
             header = \"{AUTHORIZATION}\"\ninsecure\nsilent\nshow-error\nfail\noutput = /dev/null\n",
        );
    }
    fs::write(file, words).map_err(|error| format!("{}: {error}", file.display()))?;
    run(&format!("curl -K {}", file.display()))
}

/// The table of all of them; the names are those of the proxies.
pub fn page(names: &[&str], outcomes: &[Outcome]) -> String {
    let mut page = String::from(
        "\n## Start with a real API server\n\nThe same with `kube-apiserver` and `etcd`, which are on this machine too.\n\n\
         | Services | proxy | start | CPU | curl | budget | resident |\n|---|---|---|---|---|---|---|\n",
    );
    for outcome in outcomes {
        let curl = crate::report::median(&outcome.curl);
        let budget = 1.5 * curl + 0.2;
        for (name, start) in names.iter().zip(&outcome.starts) {
            let services = outcome.services;
            // Writing to a String cannot fail.
            let _ = match start {
                Err(reason) => writeln!(page, "| {services} | {name} | {reason} | | {curl:.2} s | {budget:.2} s | |"),
                Ok(start) => {
                    let (took, cpu) = (crate::report::median(&start.took), crate::report::median(&start.cpu));
                    let verdict = if took <= budget { "" } else { " **missed**" };
                    let rss = start.rss as f64 * 1024.0 / 1e6;
                    writeln!(
                        page,
                        "| {services} | {name} | {took:.2} s | {cpu:.2} s | {curl:.2} s | {budget:.2} s{verdict} | {rss:.1} MB |"
                    )
                }
            };
        }
    }
    page
}

// === impl Daemon ===

impl Daemon {
    fn start(program: &Path, flags: &[(&str, &str)], log: &Path) -> Result<Self, String> {
        let output = fs::File::create(log).map_err(|error| error.to_string())?;
        let errors = output.try_clone().map_err(|error| error.to_string())?;
        let child = Command::new(program)
            .args(flags.iter().map(|(name, value)| format!("{name}={value}")))
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(|error| format!("{} does not start: {error}", program.display()))?;
        Ok(Self(child))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _ = self.0.wait();
    }
}
