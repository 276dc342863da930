//! Both sides of a pod: the process inside its network namespace, which answers and sends requests, and the handle by
//! which the demo tells it what to do, one line each way.
//!
//! A pod ends when its orders end. Must not know any Service.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::node::{DUPLICATE_DETECTION, set};
use super::request::{Protocol, Tally};
use super::{ROLE, own_program, say};
use crate::kernel::listen::{self, Unspecified};
use crate::kernel::namespaces;
use crate::kernel::veth::Cables;

/// Where pods answer, over TCP and UDP.
const PORT: u16 = 8080;
/// The pod's end of its cable.
const LINK: &str = "eth0";
/// Between two requests of a load: enough to keep requests in flight, not so much that it is a benchmark.
const PAUSE: Duration = Duration::from_millis(1);

/// A pod as the demo holds it. Ends when dropped.
pub struct Pod {
    name: &'static str,
    process: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// Requests without end, in a thread.
struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Tally>,
}

/// The pod's own side: does what it is told, until the orders end.
///
/// # Errors
/// One line that says what it could not do.
pub fn live() -> Result<(), String> {
    namespaces::leave_network().map_err(|error| format!("cannot make a network namespace: {error}"))?;
    let mut load = None;
    if Path::new(DUPLICATE_DETECTION).exists() {
        set(DUPLICATE_DETECTION, 0)?;
    }
    say("here")?;
    for line in io::stdin().lines() {
        let line = line.map_err(|error| format!("orders cannot be read: {error}"))?;
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["join", name, ref links @ ..] => {
                join(links).map_err(|error| format!("pod {name}: cannot join the network: {error}"))?;
                serve(name).map_err(|error| format!("pod {name}: cannot serve port {PORT}: {error}"))?;
                say("serving")?;
            }
            ["ask", protocol, to, count] => {
                let (protocol, to) = (read(protocol)?, read(to)?);
                let mut tally = Tally::default();
                (0..read(count)?).for_each(|_: u32| tally.ask(protocol, to));
                say(&tally.to_string())?;
            }
            ["begin", protocol, to] => {
                load = Some(Load::begin(read(protocol)?, read(to)?));
                say("begun")?;
            }
            ["end"] => {
                let tally = load.take().map(Load::end).ok_or("nothing was begun")?;
                say(&tally.to_string())?;
            }
            _ => return Err(format!("no such order: {line:?}")),
        }
    }
    Ok(())
}

fn read<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word:?} makes no sense here"))
}

/// Switches the links on. `links` are pairs of own address and gateway, with a `>` between.
fn join(links: &[&str]) -> io::Result<()> {
    let mut cables = Cables::open()?;
    cables.up("lo")?;
    cables.up(LINK)?;
    for link in links {
        let pair = link.split_once('>').and_then(|(own, other)| Some((own.parse().ok()?, other.parse().ok()?)));
        let (own, gateway): (IpAddr, IpAddr) = pair.ok_or(io::ErrorKind::InvalidInput)?;
        cables.address(LINK, own, gateway)?;
        cables.default_route(LINK, gateway)?;
    }
    Ok(())
}

/// Begins to answer with `name`, in threads that end with the process.
fn serve(name: &str) -> io::Result<()> {
    let listener: TcpListener = listen::tcp(SocketAddr::from(([0, 0, 0, 0], PORT)), Unspecified::BothFamilies)?;
    listener.set_nonblocking(false)?;
    let answer = name.to_owned();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            // A client that does not wait for the answer counts that itself.
            let _ = client.write_all(answer.as_bytes());
        }
    });
    let socket = UdpSocket::bind(("0.0.0.0", PORT))?;
    let answer = name.to_owned();
    std::thread::spawn(move || {
        while let Ok((_, client)) = socket.recv_from(&mut [0; 64]) {
            let _ = socket.send_to(answer.as_bytes(), client);
        }
    });
    Ok(())
}

// === impl Pod ===

impl Pod {
    /// Starts a pod in a network namespace of its own, with a cable to this one that is named like the pod. `links`:
    /// for each family the pod's address and its gateway, which will be the address at our end.
    ///
    /// # Errors
    /// One line that says what failed.
    pub fn start(name: &'static str, links: &[(IpAddr, IpAddr)]) -> Result<Self, String> {
        let mut process = Command::new(own_program())
            .arg("demo")
            .env(ROLE, "pod")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot start pod {name}: {error}"))?;
        let orders = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().expect("it is piped"));
        let mut pod = Self { name, process, orders, answers };
        pod.hear()?;
        let mut join = format!("join {name}");
        for (own, gateway) in links {
            join.push_str(&format!(" {own}>{gateway}"));
        }
        let cable = |error: io::Error| format!("cannot connect pod {name}: {error}");
        let mut cables = Cables::open().map_err(cable)?;
        cables.lay(name, LINK, pod.process.id()).map_err(cable)?;
        cables.up(name).map_err(cable)?;
        pod.order(&join)?;
        for (own, gateway) in links {
            cables.address(name, *gateway, *own).map_err(cable)?;
        }
        Ok(pod)
    }

    /// Lets it ask so many times.
    ///
    /// # Errors
    /// When the pod is gone.
    pub fn ask(&mut self, protocol: Protocol, to: SocketAddr, count: u32) -> Result<Tally, String> {
        self.order(&format!("ask {protocol} {to} {count}"))?.parse()
    }

    /// Lets it ask until [`Pod::end`].
    ///
    /// # Errors
    /// When the pod is gone.
    pub fn begin(&mut self, protocol: Protocol, to: SocketAddr) -> Result<(), String> {
        self.order(&format!("begin {protocol} {to}")).map(drop)
    }

    /// Ends what was begun.
    ///
    /// # Errors
    /// When the pod is gone, or nothing was begun.
    pub fn end(&mut self) -> Result<Tally, String> {
        self.order("end")?.parse()
    }

    fn order(&mut self, line: &str) -> Result<String, String> {
        let orders = self.orders.as_mut().expect("they end only in drop");
        writeln!(orders, "{line}").map_err(|error| format!("pod {} is gone: {error}", self.name))?;
        self.hear()
    }

    fn hear(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(1..) => Ok(line.trim_end_matches('\n').to_owned()),
            Ok(0) => Err(format!("pod {} ended early", self.name)),
            Err(error) => Err(format!("pod {} cannot be heard: {error}", self.name)),
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // The end of its orders is the end of the pod.
        self.orders = None;
        let _ = self.process.wait();
    }
}

// === impl Load ===

impl Load {
    fn begin(protocol: Protocol, to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut tally = Tally::default();
            while !seen.load(Ordering::Relaxed) {
                tally.ask(protocol, to);
                std::thread::sleep(PAUSE);
            }
            tally
        });
        Self { stop, thread }
    }

    fn end(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("asking does not panic")
    }
}
