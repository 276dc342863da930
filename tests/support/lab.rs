//! A node with pods and clients: each a network namespace with one address, reached through the node. Servers and
//! clients are threads of the test that entered the namespace.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use super::netns::run;

/// How long an answer may take: long enough for an emulated machine, and only waited for in full when there is none.
const PATIENCE: Duration = Duration::from_secs(3);

/// Adds a host with an address, routed by the node. Its answers to TCP and UDP on `port` name it and the client.
pub fn host(name: &'static str, address: &str, port: u16) {
    let (ip, bits, gateway) = if address.contains(':') { ("ip -6", 128, "fe80::1") } else { ("ip", 32, "169.254.1.1") };
    let nodad = if bits == 128 { "nodad" } else { "" };
    run(&format!(
        "ip netns list | grep -qw {name} || {{
             ip netns add {name}
             ip link add v-{name} type veth peer name eth0 netns {name}
             ip link set v-{name} up
             ip -n {name} link set lo up
             ip -n {name} link set eth0 up
             ip addr add 169.254.1.1/32 dev v-{name}
             ip addr add fe80::1/64 dev v-{name} nodad
         }}
         ip -n {name} addr add {address}/{bits} dev eth0 {nodad}
         {ip} -n {name} route add {gateway} dev eth0 2>/dev/null || true
         {ip} -n {name} route add default via {gateway} dev eth0
         {ip} route add {address}/{bits} dev v-{name}
         sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
         sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0"
    ));
    serve(name, SocketAddr::new(address.parse().unwrap(), port));
}

/// Starts the servers of a host, until the test ends.
fn serve(name: &'static str, at: SocketAddr) {
    let (tcp, udp) = within(name, move || (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap()));
    thread::spawn(move || {
        for connection in tcp.incoming() {
            let Ok(mut connection) = connection else { continue };
            thread::spawn(move || {
                let peer = connection.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
                let mut byte = [0];
                while connection.read(&mut byte).is_ok_and(|count| count > 0) {
                    // One segment: whoever asks reads once.
                    if connection.write_all(format!("{name} {peer}\n").as_bytes()).is_err() {
                        break;
                    }
                }
            });
        }
    });
    thread::spawn(move || {
        while let Ok((_, peer)) = udp.recv_from(&mut [0; 64]) {
            let _ = udp.send_to(format!("{name} {}\n", peer.ip()).as_bytes(), peer);
        }
    });
}

/// Runs something in a host's namespace; `node` is the test's own. Sockets made there stay there.
pub fn within<T: Send + 'static>(name: &str, what: impl FnOnce() -> T + Send + 'static) -> T {
    let path = (name != "node").then(|| format!("/run/netns/{name}"));
    let inside = move || {
        if let Some(path) = path {
            setns(File::open(path).expect("the namespace exists"), CloneFlags::CLONE_NEWNET)
                .expect("it can be entered");
        }
        what()
    };
    thread::spawn(inside).join().expect("what runs in a namespace does not panic")
}

/// Opens a TCP connection from a host.
pub fn connect(from: &str, to: &str) -> io::Result<TcpStream> {
    let to: SocketAddr = to.parse().expect("an address with a port");
    within(from, move || {
        let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    })
}

/// One question on an open connection, and its answer.
pub fn ask(stream: &mut TcpStream) -> io::Result<String> {
    stream.write_all(b"?")?;
    let mut answer = [0; 64];
    let length = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).trim().to_owned())
}

/// Who answers TCP, and which client address it saw: `a 10.0.0.1`; else `refused` or `silence`.
pub fn tcp(from: &str, to: &str) -> String {
    told(connect(from, to).and_then(|mut stream| ask(&mut stream)))
}

/// The same for UDP.
pub fn udp(from: &str, to: &str) -> String {
    let to: SocketAddr = to.parse().expect("an address with a port");
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    told(within(from, move || {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(b"?")?;
        let mut answer = [0; 64];
        let length = socket.recv(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..length]).trim().to_owned())
    }))
}

fn told(outcome: io::Result<String>) -> String {
    match outcome {
        Ok(answer) => answer,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => "refused".into(),
        Err(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => "silence".into(),
        Err(error) => error.to_string(),
    }
}
