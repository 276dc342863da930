//! Virtual servers and their real servers: what must change in the kernel's table, and who is still leaving.
//!
//! A real server that leaves keeps the TCP connections it has: it gets weight 0 and goes when they have (contract 10.4).
//! For UDP it goes at once, unless its endpoint is only terminating and serves on.
//! The kernel's table is the only memory of real servers; a changed virtual server is read before it is corrected.

use std::collections::{HashMap, HashSet};
use std::io;

use nix::errno::Errno;

use super::scheduler::Scheduler;
use super::wanted::Server;
use crate::kernel::ipvs::{Command, Held, Ipvs, RealServer, Settings, VirtualServer};
use crate::model::Protocol;
use crate::plan::Endpoint;

/// Commands are sent when there are so many.
const PORTION: usize = 256;

/// A virtual server that nobody uses, to try a scheduler with (contract 10.1).
const PROBE: (&str, u16) = ("198.51.100.0", 20_000);

/// The kernel's table.
pub struct Servers {
    ipvs: Ipvs,
    pending: Vec<Command>,
    outcome: Outcome,
    leaving: HashMap<VirtualServer, Vec<RealServer>>,
    /// Schedulers by name, and whether the kernel has them.
    schedulers: HashMap<Box<str>, bool>,
}

/// What became of the changes since the last [`Servers::finish`].
#[derive(Debug, Default)]
pub struct Outcome {
    /// Commands that were carried out.
    pub changes: usize,
    /// Virtual servers that the kernel did not take, with its reason.
    pub refused: HashMap<VirtualServer, String>,
    /// Something was there, or missing, against what we knew: somebody else changed the table.
    pub stale: bool,
}

// === impl Servers ===

impl Servers {
    /// Opens the door to IPVS.
    ///
    /// # Errors
    /// `NotFound` when the kernel has no IPVS.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            ipvs: Ipvs::open()?,
            pending: Vec::new(),
            outcome: Outcome::default(),
            leaving: HashMap::new(),
            schedulers: HashMap::new(),
        })
    }

    /// The door, for what is not about servers.
    pub fn ipvs(&mut self) -> &mut Ipvs {
        &mut self.ipvs
    }

    /// Whether the kernel has a scheduler, or can load it. Asked once for each name: a missing module is looked for
    /// by a program that the kernel starts.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn has(&mut self, scheduler: &Scheduler) -> io::Result<bool> {
        if let Some(&known) = self.schedulers.get(&*scheduler.name) {
            return Ok(known);
        }
        let probe = VirtualServer {
            address: PROBE.0.parse().expect("a constant"),
            protocol: Protocol::Tcp as u8,
            port: PROBE.1,
        };
        let settings = Settings { scheduler: scheduler.name.clone(), flags: 0, timeout: 0 };
        let refused = self.ipvs.run([Command::Add(probe, settings), Command::Delete(probe)])?;
        let found = match refused.first() {
            None => true,
            Some(refusal) if refusal.why.errno == Errno::ENOENT => false,
            Some(refusal) => return Err(refusal.why.errno.into()),
        };
        self.schedulers.insert((*scheduler.name).into(), found);
        Ok(found)
    }

    /// Forgets what an attempt that failed left to send and to tell. To be called before the first change of the next.
    pub fn begin(&mut self) {
        self.pending.clear();
        self.outcome = Outcome::default();
    }

    /// Adds a virtual server that the kernel does not have.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn add(&mut self, at: VirtualServer, server: &Server) -> io::Result<()> {
        self.push(Command::Add(at, server.settings.clone()))?;
        for endpoint in server.endpoints.iter() {
            self.push(Command::AddReal(at, real(endpoint), endpoint.weight.into()))?;
        }
        Ok(())
    }

    /// Corrects a virtual server that chooses by `held` now, and its real servers.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or the socket fails.
    pub fn correct(&mut self, at: VirtualServer, held: &Settings, server: &Server) -> io::Result<()> {
        if !held.acts_like(&server.settings) {
            self.push(Command::Set(at, server.settings.clone()))?;
        }
        let real_servers = self.ipvs.real_servers(&at)?;
        let (commands, leaving) = corrections(at, &server.endpoints, server.serving(), &real_servers);
        for command in commands {
            self.push(command)?;
        }
        match leaving.is_empty() {
            true => self.leaving.remove(&at),
            false => self.leaving.insert(at, leaving),
        };
        Ok(())
    }

    /// Removes a virtual server.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn remove(&mut self, at: VirtualServer) -> io::Result<()> {
        self.leaving.remove(&at);
        self.push(Command::Delete(at))
    }

    /// Removes the real servers that have no connections any more. Returns whether some still have.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or the socket fails: then all are looked at again.
    pub fn retire(&mut self) -> io::Result<bool> {
        self.begin();
        let mut busy = HashMap::new();
        let all: Vec<VirtualServer> = self.leaving.keys().copied().collect();
        for at in all {
            let held = self.ipvs.real_servers(&at)?;
            let (still, idle) = retiring(&self.leaving[&at], &held);
            for server in idle {
                self.push(Command::DeleteReal(at, server))?;
            }
            if !still.is_empty() {
                busy.insert(at, still);
            }
        }
        self.flush()?;
        self.leaving = busy;
        Ok(self.any_leaving())
    }

    /// Whether a real server waits for its last connections to end.
    pub fn any_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Sends what is left to send, and tells what became of everything.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn finish(&mut self) -> io::Result<Outcome> {
        self.flush()?;
        Ok(std::mem::take(&mut self.outcome))
    }

    fn push(&mut self, command: Command) -> io::Result<()> {
        self.pending.push(command);
        if self.pending.len() >= PORTION { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        let sent = self.pending.len();
        let refused = self.ipvs.run(self.pending.drain(..))?;
        self.outcome.changes += sent - refused.len();
        for refusal in refused {
            let at = refusal.command.virtual_server();
            match (refusal.command, refusal.why.errno) {
                (Command::Delete(_) | Command::DeleteReal(..), Errno::ENOENT | Errno::ESRCH) => {}
                // The virtual server itself was refused before; that is the reason to tell.
                _ if self.outcome.refused.contains_key(&at) => {}
                (_, Errno::EEXIST | Errno::ESRCH) => self.outcome.stale = true,
                (_, errno) => {
                    self.outcome.refused.insert(at, errno.desc().to_owned());
                }
            }
        }
        Ok(())
    }
}

fn real(endpoint: &Endpoint) -> RealServer {
    RealServer { address: endpoint.address, port: endpoint.port }
}

/// What must change so that a virtual server has these endpoints, and which real servers it cannot lose yet.
/// Those in `serving` get nothing new and stay.
fn corrections(
    at: VirtualServer,
    wanted: &[Endpoint],
    serving: &[Endpoint],
    held: &[Held],
) -> (Vec<Command>, Vec<RealServer>) {
    let mut commands = Vec::new();
    let mut leaving = Vec::new();
    let by_server: HashMap<RealServer, &Held> = held.iter().map(|held| (held.server, held)).collect();
    for endpoint in wanted {
        let weight = endpoint.weight.into();
        match by_server.get(&real(endpoint)) {
            None => commands.push(Command::AddReal(at, real(endpoint), weight)),
            Some(held) if held.weight != weight || !held.nat => {
                commands.push(Command::SetReal(at, real(endpoint), weight));
            }
            Some(_) => {}
        }
    }
    let wanted: HashSet<RealServer> = wanted.iter().map(real).collect();
    for held in held.iter().filter(|held| !wanted.contains(&held.server)) {
        let serves = serving.iter().any(|endpoint| real(endpoint) == held.server);
        let is_busy = at.protocol == Protocol::Tcp as u8 && held.connections > 0;
        if !serves && !is_busy {
            commands.push(Command::DeleteReal(at, held.server));
            continue;
        }
        if held.weight != 0 {
            commands.push(Command::SetReal(at, held.server, 0));
        }
        if !serves {
            leaving.push(held.server);
        }
    }
    (commands, leaving)
}

/// Of real servers that are leaving, those that still have connections, and those that can go.
fn retiring(leaving: &[RealServer], held: &[Held]) -> (Vec<RealServer>, Vec<RealServer>) {
    let (mut busy, mut idle) = (Vec::new(), Vec::new());
    for server in leaving {
        match held.iter().find(|held| held.server == *server) {
            Some(held) if held.weight != 0 => {}
            Some(held) if held.connections > 0 => busy.push(*server),
            Some(_) => idle.push(*server),
            None => {}
        }
    }
    (busy, idle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Place;

    fn at(protocol: Protocol) -> VirtualServer {
        VirtualServer { address: "10.96.0.10".parse().unwrap(), protocol: protocol as u8, port: 80 }
    }

    fn endpoint(last: u8, weight: u16) -> Endpoint {
        Endpoint { address: [10, 244, 0, last].into(), port: 8080, place: Place::Elsewhere, weight }
    }

    fn held(last: u8, weight: u32, connections: u32) -> Held {
        Held { server: real(&endpoint(last, 1)), weight, nat: true, connections }
    }

    /// `+` added, `=` set, `-` deleted, each with the last byte of the address and the weight, and who is leaving.
    fn summary(protocol: Protocol, wanted: &[Endpoint], present: &[Held]) -> (String, Vec<u8>) {
        let last = |server: &RealServer| match server.address {
            std::net::IpAddr::V4(v4) => v4.octets()[3],
            std::net::IpAddr::V6(_) => unreachable!("all are IPv4"),
        };
        let (commands, leaving) = corrections(at(protocol), wanted, &[endpoint(9, 1)], present);
        let commands: Vec<String> = commands
            .iter()
            .map(|command| match command {
                Command::AddReal(_, server, weight) => format!("+{}:{weight}", last(server)),
                Command::SetReal(_, server, weight) => format!("={}:{weight}", last(server)),
                Command::DeleteReal(_, server) => format!("-{}", last(server)),
                other => panic!("{other:?}"),
            })
            .collect();
        (commands.join(" "), leaving.iter().map(last).collect())
    }

    #[test]
    fn only_differences_are_written() {
        let wanted = [endpoint(1, 1), endpoint(2, 5)];
        for (present, expected) in [
            (vec![], "+1:1 +2:5"),
            (vec![held(1, 1, 9), held(2, 5, 0)], ""),
            (vec![held(1, 1, 0), held(2, 1, 0)], "=2:5"),
            // It came back while it was leaving.
            (vec![held(1, 0, 3), held(2, 5, 0)], "=1:1"),
            (vec![Held { nat: false, ..held(1, 1, 0) }, held(2, 5, 0)], "=1:1"),
        ] {
            assert_eq!(summary(Protocol::Tcp, &wanted, &present), (expected.into(), vec![]), "{present:?}");
        }
    }

    #[test]
    fn who_leaves_keeps_its_tcp_connections() {
        for (protocol, present, commands, leaving) in [
            (Protocol::Tcp, held(1, 1, 0), "-1", vec![]),
            (Protocol::Tcp, held(1, 1, 2), "=1:0", vec![1]),
            (Protocol::Tcp, held(1, 0, 2), "", vec![1]),
            (Protocol::Udp, held(1, 1, 2), "-1", vec![]),
            (Protocol::Sctp, held(1, 1, 2), "-1", vec![]),
            // It is terminating, and still serves.
            (Protocol::Udp, held(9, 1, 2), "=9:0", vec![]),
            (Protocol::Udp, held(9, 0, 2), "", vec![]),
        ] {
            assert_eq!(summary(protocol, &[], &[present]), (commands.into(), leaving), "{protocol} {present:?}");
        }
    }

    #[test]
    fn who_leaves_goes_with_its_last_connection_unless_it_came_back() {
        let leaving: Vec<RealServer> = (1..=4).map(|last| real(&endpoint(last, 1))).collect();
        let present = [held(1, 0, 2), held(2, 0, 0), held(3, 1, 0)];
        let (busy, idle) = retiring(&leaving, &present);
        assert_eq!((&busy[..], &idle[..]), (&leaving[..1], &leaving[1..2]));
    }
}
