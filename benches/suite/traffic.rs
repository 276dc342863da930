//! The data path: what the first packet of a connection costs, and how many connections a second there are, through one
//! Service among many.
//!
//! A client and all pods live in namespaces of their own, this one is the node between them. One client, one connection
//! after another: it is the way through the rules that is compared, not what a network can carry.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

use crate::apiserver::ApiServer;
use crate::cluster::{Cluster, ENDPOINT_PORT};
use crate::measure::{await_ruleset, run};
use crate::proxy::{Proxy, write_config};

/// Connections that are made one after another, and the slices that they are timed in.
const CONNECTIONS: usize = 3000;
const SLICE: usize = 100;
/// The port of every Service.
const SERVICE_PORT: u16 = 80;

/// What is to be measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The proxy.
    pub binary: PathBuf,
    /// How many Services.
    pub services: usize,
}

/// What came out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// From SYN to SYN/ACK through a Service: microseconds, median.
    pub first_packet: f64,
    /// The same without a Service.
    pub direct: f64,
    /// Connections a second through Services: the median of all slices.
    pub rate: f64,
}

/// Measures; `folder` is for the files that it needs.
///
/// # Errors
/// One line that says what did not work.
pub fn measure(job: &Job, folder: &Path) -> Result<Outcome, String> {
    build()?;
    let server = ApiServer::start(Cluster::new(job.services, 3)).map_err(|error| error.to_string())?;
    let config =
        write_config(folder, &server.url(), &server.authority, "nftables").map_err(|error| error.to_string())?;
    let mut proxy = Proxy::start(&[], &job.binary, &config, &folder.join("log")).map_err(|error| error.to_string())?;
    await_ruleset(&mut proxy, job.services).map_err(|error| format!("{}: {error}", job.binary.display()))?;
    thread::spawn(answer);
    let services = job.services;
    let outcome = thread::spawn(move || connect(services)).join().map_err(|_| "the client panicked".to_owned())?;
    outcome.map_err(|error| format!("no connection through {services} Services: {error}"))
}

/// Node, client and pods.
fn build() -> Result<(), String> {
    for (name, net) in [("client", "198.18.0"), ("pods", "198.18.1")] {
        run(&format!(
            "ip netns add {name}; ip link add {name} type veth peer name eth0 netns {name}; \
             ip addr add {net}.1/24 dev {name}; ip link set {name} up; ip -n {name} link set lo up; \
             ip -n {name} addr add {net}.2/24 dev eth0; ip -n {name} link set eth0 up; \
             ip -n {name} route add default via {net}.1"
        ))?;
    }
    run("ip route add 10.0.0.0/8 via 198.18.1.2; ip -n pods route add local 10.0.0.0/8 dev lo; \
         echo 1 >/proc/sys/net/ipv4/ip_forward")
}

fn enter(name: &str) -> io::Result<()> {
    setns(File::open(format!("/run/netns/{name}"))?, CloneFlags::CLONE_NEWNET).map_err(Into::into)
}

/// All pods at once: whoever connects is let in and let go.
fn answer() -> io::Result<()> {
    enter("pods")?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, ENDPOINT_PORT))?;
    loop {
        // A client that is gone already is served well enough.
        drop(listener.accept());
    }
}

fn connect(services: usize) -> io::Result<Outcome> {
    enter("client")?;
    let pod = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1)), ENDPOINT_PORT);
    // The listener may still be about to start.
    while TcpStream::connect(pod).is_err() {
        thread::sleep(Duration::from_millis(10));
    }
    let mut direct = Vec::new();
    let mut through = Vec::new();
    let mut slices = Vec::new();
    let mut spent = Duration::ZERO;
    for index in 0..CONNECTIONS {
        let service = index.wrapping_mul(7919) % services;
        let address = SocketAddr::new(IpAddr::V4(Cluster::cluster_ip(service)), SERVICE_PORT);
        // In turns, so that whatever else this machine does meets both alike.
        direct.push(handshake(pod)?);
        let began = Instant::now();
        through.push(handshake(address)?);
        spent += began.elapsed();
        if (index + 1) % SLICE == 0 {
            slices.push(SLICE as f64 / std::mem::take(&mut spent).as_secs_f64());
        }
    }
    Ok(Outcome { first_packet: median(&mut through), direct: median(&mut direct), rate: median(&mut slices) })
}

/// Microseconds that a handshake takes.
fn handshake(address: SocketAddr) -> io::Result<f64> {
    let began = Instant::now();
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    let took = began.elapsed();
    // A reset leaves no port in TIME_WAIT.
    let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &at_once)?;
    Ok(took.as_secs_f64() * 1e6)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
