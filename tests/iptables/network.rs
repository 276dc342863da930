//! A node with pods and a client outside, each in a network namespace; every pod tells who asked it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::support::netns::run;

/// How long an unanswered connection is given. Only the test that expects silence waits so long.
const PATIENCE: Duration = Duration::from_millis(700);

/// The namespaces; the node is the one that the test runs in.
pub struct Network;

/// What became of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A pod answered, and saw this source address.
    From { pod: String, source: String },
    /// Turned away.
    Refused,
    /// Nothing came back.
    Silence,
}

/// A connection that is held open.
pub struct Line(TcpStream);

impl Line {
    /// Whether what is said comes back.
    pub fn is_alive(&mut self) -> bool {
        let mut heard = [0];
        self.0.write_all(b"?").and_then(|()| self.0.read_exact(&mut heard)).is_ok() && &heard == b"?"
    }
}

impl Answer {
    pub fn from(pod: &str, source: &str) -> Self {
        Self::From { pod: pod.into(), source: source.into() }
    }
}

impl Network {
    /// `client` at 192.0.2.2, `pod2` to `pod3` at 10.244.1.2 and 3, behind a bridge with 10.244.1.1.
    pub fn new() -> Self {
        run("ip link add br0 type bridge && ip addr add 10.244.1.1/24 dev br0 && ip link set br0 up
             sysctl -qw net.ipv4.ip_forward=1 net.ipv4.icmp_ratelimit=0
             sysctl -qw net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.default.send_redirects=0
             attach() { ip netns add $1; ip link add v-$1 type veth peer name eth0 netns $1; ip link set v-$1 up
                 ip -n $1 link set lo up; ip -n $1 link set eth0 up; ip -n $1 addr add $2/24 dev eth0; }
             for n in 2 3; do attach pod$n 10.244.1.$n; ip link set v-pod$n master br0
                 bridge link set dev v-pod$n hairpin on; ip -n pod$n route add default via 10.244.1.1; done
             attach client 192.0.2.2; ip addr add 192.0.2.1/24 dev v-client; ip -n client route add default via 192.0.2.1
             ip route add default via 192.0.2.2");
        for pod in ["pod2", "pod3"] {
            let listener = within(pod, || TcpListener::bind("0.0.0.0:8080").expect("the port is free"));
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    thread::spawn(move || answer(stream, pod));
                }
            });
        }
        Self
    }

    /// Connects from a namespace to an address.
    pub fn ask(&self, from: &str, to: &str) -> Answer {
        let name = from.to_owned();
        let to: SocketAddr = to.parse().expect("an address with a port");
        within(from, move || match TcpStream::connect_timeout(&to, PATIENCE) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Answer::Refused,
            Err(error) if error.kind() == ErrorKind::TimedOut => Answer::Silence,
            Err(error) => panic!("connect from {name} to {to}: {error}"),
            Ok(mut stream) => {
                stream.shutdown(Shutdown::Write).expect("it is open");
                let mut text = String::new();
                stream.read_to_string(&mut text).expect("a pod speaks its name");
                let (pod, source) = text.split_once(' ').expect("and the source");
                Answer::from(pod, source)
            }
        })
    }

    /// Connects and stays connected.
    pub fn hold(&self, from: &str, to: &str) -> Line {
        let to: SocketAddr = to.parse().expect("an address with a port");
        let mut stream = within(from, move || TcpStream::connect_timeout(&to, PATIENCE).expect("somebody answers"));
        stream.set_read_timeout(Some(PATIENCE * 5)).expect("it is not zero");
        let mut greeting = [0; 64];
        assert!(stream.read(&mut greeting).is_ok_and(|length| length > 0), "a pod speaks its name");
        Line(stream)
    }
}

fn answer(mut stream: TcpStream, pod: &str) {
    if let Ok(peer) = stream.peer_addr() {
        // A client that is gone needs no answer.
        let _ = stream.write_all(format!("{pod} {}", peer.ip()).as_bytes());
    }
    // And what is said is said back, until nothing more comes.
    if let Ok(mut echo) = stream.try_clone() {
        let _ = std::io::copy(&mut stream, &mut echo);
    }
}

/// Does something in another namespace. Sockets stay in the namespace that they were made in.
fn within<T: Send + 'static>(name: &str, body: impl FnOnce() -> T + Send + 'static) -> T {
    let path = Path::new("/run/netns").join(name);
    let stay = name == "node";
    let inside = move || {
        if !stay {
            let namespace = std::fs::File::open(path).expect("the namespace exists");
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("and may be entered");
        }
        body()
    };
    thread::spawn(inside).join().expect("nothing panicked in there")
}
