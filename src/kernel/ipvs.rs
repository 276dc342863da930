//! IPVS over generic netlink (`linux/ip_vs.h`): virtual servers, their real servers, and timeouts.
//!
//! Says how they are spelled in messages and which were refused; what should be in the table is for the callers.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;

use nix::libc;

use super::genl::{Family, body};
use super::netlink::{ACK, Buffer, DUMP, Received, Refusal, attribute, text};

const CMD_NEW_SERVICE: u8 = 1;
const CMD_SET_SERVICE: u8 = 2;
const CMD_DEL_SERVICE: u8 = 3;
const CMD_GET_SERVICE: u8 = 4;
const CMD_NEW_DEST: u8 = 5;
const CMD_SET_DEST: u8 = 6;
const CMD_DEL_DEST: u8 = 7;
const CMD_GET_DEST: u8 = 8;
const CMD_SET_CONFIG: u8 = 12;

const ATTR_SERVICE: u16 = 1;
const ATTR_DEST: u16 = 2;
const ATTR_TIMEOUT_TCP: u16 = 4;
const ATTR_TIMEOUT_TCP_FIN: u16 = 5;
const ATTR_TIMEOUT_UDP: u16 = 6;

const SVC_AF: u16 = 1;
const SVC_PROTOCOL: u16 = 2;
const SVC_ADDR: u16 = 3;
const SVC_PORT: u16 = 4;
const SVC_SCHED_NAME: u16 = 6;
const SVC_FLAGS: u16 = 7;
const SVC_TIMEOUT: u16 = 8;
const SVC_NETMASK: u16 = 9;

const DEST_ADDR: u16 = 1;
const DEST_PORT: u16 = 2;
const DEST_FWD_METHOD: u16 = 3;
const DEST_WEIGHT: u16 = 4;
const DEST_U_THRESH: u16 = 5;
const DEST_L_THRESH: u16 = 6;
const DEST_ACTIVE_CONNS: u16 = 7;
const DEST_INACT_CONNS: u16 = 8;
const DEST_ADDR_FAMILY: u16 = 11;

/// `IP_VS_SVC_F_PERSISTENT`: a client stays with its real server.
pub const PERSISTENT: u32 = 0x1;
/// `IP_VS_SVC_F_SCHED1`: for the schedulers sh and mh, choose again when the chosen real server is not available.
pub const SCHEDULER_FALLBACK: u32 = 0x8;
/// `IP_VS_SVC_F_SCHED2`: for the schedulers sh and mh, the client's port counts too.
pub const SCHEDULER_PORT: u32 = 0x10;
/// `IP_VS_SVC_F_HASHED`: the kernel's own note, in every answer.
const HASHED: u32 = 0x2;

/// Commands sent at once. Every one may be refused, and all refusals must fit into the receive queue.
const PORTION: usize = 256;
const RECEIVE_QUEUE: usize = 1 << 20;

/// Where a virtual server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VirtualServer {
    /// Its address.
    pub address: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Its port.
    pub port: u16,
}

/// How a virtual server chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name of the scheduler.
    pub scheduler: Rc<str>,
    /// `IP_VS_SVC_F_*`.
    pub flags: u32,
    /// Seconds that a client is remembered; what the kernel reports without [`PERSISTENT`] means nothing.
    pub timeout: u32,
}

/// Where a virtual server sends connections to, by NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RealServer {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

/// A real server as read from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Which one.
    pub server: RealServer,
    /// Its share of new connections; 0: none.
    pub weight: u32,
    /// Whether connections reach it by NAT.
    pub nat: bool,
    /// Connections, established or ending, that it has.
    pub connections: u32,
}

/// A change of the table.
#[derive(Clone, Debug)]
pub enum Command {
    /// Adds a virtual server; refused with `EEXIST` if it exists.
    Add(VirtualServer, Settings),
    /// Changes how it chooses.
    Set(VirtualServer, Settings),
    /// Removes it with its real servers.
    Delete(VirtualServer),
    /// Adds a real server with this weight; refused with `EEXIST` if it exists.
    AddReal(VirtualServer, RealServer, u32),
    /// Changes its weight.
    SetReal(VirtualServer, RealServer, u32),
    /// Removes it. Its connections end when their next packet comes.
    DeleteReal(VirtualServer, RealServer),
}

/// A change that the kernel refused.
#[derive(Debug)]
pub struct Refused {
    /// The change.
    pub command: Command,
    /// Why.
    pub why: Refusal,
}

/// The door to IPVS.
pub struct Ipvs {
    family: Family,
    /// For commands. Kept: static builds give so much memory back to the kernel each time, and take it anew.
    buffer: Buffer,
}

// === impl Ipvs ===

impl Ipvs {
    /// Opens the door.
    ///
    /// # Errors
    /// `NotFound` when the kernel has no IPVS.
    pub fn open() -> io::Result<Self> {
        let mut family = Family::open("IPVS", 1)?;
        family.socket().reserve(0, RECEIVE_QUEUE);
        Ok(Self { family, buffer: Buffer::new() })
    }

    /// All virtual servers that have an address (those for packet marks have none).
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn virtual_servers(&mut self) -> io::Result<HashMap<VirtualServer, Settings>> {
        let mut request = Buffer::new();
        self.family.message(&mut request, CMD_GET_SERVICE, DUMP);
        let mut found = HashMap::new();
        // Most name the same one.
        let mut scheduler: Rc<str> = Rc::default();
        self.family.socket().request(&request, |message| {
            let read = attribute(body(&message), ATTR_SERVICE);
            found.extend(read.and_then(|service| read_virtual_server(service, &mut scheduler)));
        })?;
        Ok(found)
    }

    /// The real servers of a virtual server; none if it does not exist.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn real_servers(&mut self, of: &VirtualServer) -> io::Result<Vec<Held>> {
        let mut request = Buffer::new();
        self.family.message(&mut request, CMD_GET_DEST, DUMP);
        request.nest(ATTR_SERVICE, |b| of.encode(b));
        let mut found = Vec::new();
        let is_ipv4 = of.address.is_ipv4();
        self.family.socket().request(&request, |message| {
            found.extend(attribute(body(&message), ATTR_DEST).and_then(|dest| read_real_server(dest, is_ipv4)));
        })?;
        Ok(found)
    }

    /// Carries out changes in order. Returns those that were refused; all others are done.
    ///
    /// # Errors
    /// When the socket fails: then it is unknown what was done.
    pub fn run(&mut self, commands: impl IntoIterator<Item = Command>) -> io::Result<Vec<Refused>> {
        let mut commands = commands.into_iter();
        let mut refused = Vec::new();
        loop {
            let portion: Vec<Command> = commands.by_ref().take(PORTION).collect();
            if portion.is_empty() {
                return Ok(refused);
            }
            self.run_portion(portion, &mut refused)?;
        }
    }

    fn run_portion(&mut self, portion: Vec<Command>, refused: &mut Vec<Refused>) -> io::Result<()> {
        let buffer = &mut self.buffer;
        buffer.clear();
        let mut last = 0;
        for command in &portion {
            last = self.family.message(buffer, command.number(), 0);
            command.encode(buffer);
        }
        buffer.add_flags(ACK);
        let first = last.wrapping_sub(portion.len() as u32 - 1);
        let socket = self.family.socket();
        socket.send(buffer.bytes())?;
        let mut portion: Vec<Option<Command>> = portion.into_iter().map(Some).collect();
        let mut done = false;
        while !done {
            socket.receive(true, |received| match received {
                Received::Acknowledged { sequence } => done |= sequence == last,
                Received::Refused(why) => {
                    done |= why.sequence == last;
                    let index = why.sequence.wrapping_sub(first) as usize;
                    if let Some(command) = portion.get_mut(index).and_then(Option::take) {
                        refused.push(Refused { command, why });
                    }
                }
                Received::Message(..) | Received::Done { .. } => {}
            })?;
        }
        Ok(())
    }

    /// Sets how long idle connections are remembered, in seconds: TCP, TCP after FIN, UDP. 0 leaves one as it is.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_timeouts(&mut self, tcp: u32, tcp_fin: u32, udp: u32) -> io::Result<()> {
        let mut request = Buffer::new();
        self.family.message(&mut request, CMD_SET_CONFIG, ACK);
        for (kind, seconds) in [(ATTR_TIMEOUT_TCP, tcp), (ATTR_TIMEOUT_TCP_FIN, tcp_fin), (ATTR_TIMEOUT_UDP, udp)] {
            request.attr(kind, &seconds.to_ne_bytes());
        }
        self.family.socket().request(&request, |_| {})
    }
}

// === impl VirtualServer ===

impl VirtualServer {
    fn encode(&self, b: &mut Buffer) {
        b.attr(SVC_AF, &address_family(&self.address).to_ne_bytes());
        b.attr(SVC_PROTOCOL, &u16::from(self.protocol).to_ne_bytes());
        b.attr(SVC_ADDR, &padded(&self.address));
        b.attr(SVC_PORT, &self.port.to_be_bytes());
    }
}

// === impl Settings ===

impl Settings {
    /// Whether the kernel would act the same under both.
    pub fn acts_like(&self, other: &Self) -> bool {
        let timeout = |settings: &Self| (settings.flags & PERSISTENT != 0).then_some(settings.timeout);
        self.scheduler == other.scheduler && self.flags == other.flags && timeout(self) == timeout(other)
    }

    fn encode(&self, b: &mut Buffer, is_ipv4: bool) {
        b.text(SVC_SCHED_NAME, &self.scheduler);
        let flags = [self.flags.to_ne_bytes(), (!HASHED).to_ne_bytes()];
        b.attr_parts(SVC_FLAGS, &[&flags[0], &flags[1]]);
        b.attr(SVC_TIMEOUT, &self.timeout.to_ne_bytes());
        // A client is one address: a mask for IPv4, a prefix length for IPv6.
        b.attr(SVC_NETMASK, &if is_ipv4 { u32::MAX } else { 128 }.to_ne_bytes());
    }
}

// === impl RealServer ===

impl RealServer {
    fn encode(&self, b: &mut Buffer) {
        b.attr(DEST_ADDR, &padded(&self.address));
        b.attr(DEST_PORT, &self.port.to_be_bytes());
        b.attr(DEST_ADDR_FAMILY, &address_family(&self.address).to_ne_bytes());
    }

    fn encode_with(&self, b: &mut Buffer, weight: u32) {
        self.encode(b);
        b.attr(DEST_FWD_METHOD, &0u32.to_ne_bytes()); // IP_VS_CONN_F_MASQ
        b.attr(DEST_WEIGHT, &weight.to_ne_bytes());
        b.attr(DEST_U_THRESH, &0u32.to_ne_bytes());
        b.attr(DEST_L_THRESH, &0u32.to_ne_bytes());
    }
}

// === impl Command ===

impl Command {
    /// The virtual server that is changed, or whose real server is.
    pub fn virtual_server(&self) -> VirtualServer {
        match *self {
            Self::Add(of, _)
            | Self::Set(of, _)
            | Self::Delete(of)
            | Self::AddReal(of, ..)
            | Self::SetReal(of, ..)
            | Self::DeleteReal(of, _) => of,
        }
    }

    fn number(&self) -> u8 {
        match self {
            Self::Add(..) => CMD_NEW_SERVICE,
            Self::Set(..) => CMD_SET_SERVICE,
            Self::Delete(..) => CMD_DEL_SERVICE,
            Self::AddReal(..) => CMD_NEW_DEST,
            Self::SetReal(..) => CMD_SET_DEST,
            Self::DeleteReal(..) => CMD_DEL_DEST,
        }
    }

    fn encode(&self, b: &mut Buffer) {
        let of = self.virtual_server();
        b.nest(ATTR_SERVICE, |b| {
            of.encode(b);
            if let Self::Add(_, settings) | Self::Set(_, settings) = self {
                settings.encode(b, of.address.is_ipv4());
            }
        });
        match self {
            Self::AddReal(_, server, weight) | Self::SetReal(_, server, weight) => {
                b.nest(ATTR_DEST, |b| server.encode_with(b, *weight));
            }
            Self::DeleteReal(_, server) => b.nest(ATTR_DEST, |b| server.encode(b)),
            Self::Add(..) | Self::Set(..) | Self::Delete(..) => {}
        }
    }
}

/// `AF_INET` or `AF_INET6`.
fn address_family(address: &IpAddr) -> u16 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u16
}

/// An address as `union nf_inet_addr`: 16 bytes for either family.
fn padded(address: &IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(v6) => v6.octets(),
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            bytes
        }
    }
}

fn read_address(bytes: &[u8], is_ipv4: bool) -> Option<IpAddr> {
    if is_ipv4 {
        Some(IpAddr::from(<[u8; 4]>::try_from(bytes.get(..4)?).ok()?))
    } else {
        Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?))
    }
}

fn number16(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

fn number32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

/// `scheduler` is the one that was read last.
fn read_virtual_server(service: &[u8], scheduler: &mut Rc<str>) -> Option<(VirtualServer, Settings)> {
    let is_ipv4 = i32::from(number16(attribute(service, SVC_AF)?)?) == libc::AF_INET;
    let server = VirtualServer {
        address: read_address(attribute(service, SVC_ADDR)?, is_ipv4)?,
        protocol: u8::try_from(number16(attribute(service, SVC_PROTOCOL)?)?).ok()?,
        port: u16::from_be_bytes(attribute(service, SVC_PORT)?.try_into().ok()?),
    };
    let name = attribute(service, SVC_SCHED_NAME).map(text).unwrap_or_default();
    if **scheduler != *name {
        *scheduler = name.into();
    }
    let settings = Settings {
        scheduler: scheduler.clone(),
        flags: number32(attribute(service, SVC_FLAGS)?)? & !HASHED,
        timeout: attribute(service, SVC_TIMEOUT).and_then(number32).unwrap_or(0),
    };
    Some((server, settings))
}

fn read_real_server(dest: &[u8], service_is_ipv4: bool) -> Option<Held> {
    let family = attribute(dest, DEST_ADDR_FAMILY).and_then(number16);
    let is_ipv4 = family.map_or(service_is_ipv4, |family| i32::from(family) == libc::AF_INET);
    let count = |kind| attribute(dest, kind).and_then(number32).unwrap_or(0);
    Some(Held {
        server: RealServer {
            address: read_address(attribute(dest, DEST_ADDR)?, is_ipv4)?,
            port: u16::from_be_bytes(attribute(dest, DEST_PORT)?.try_into().ok()?),
        },
        weight: count(DEST_WEIGHT),
        nat: count(DEST_FWD_METHOD) == 0,
        connections: count(DEST_ACTIVE_CONNS).saturating_add(count(DEST_INACT_CONNS)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(command: &Command) -> Vec<u8> {
        let mut buffer = Buffer::new();
        buffer.message(0x20, 0, 1, &[command.number(), 1, 0, 0]);
        command.encode(&mut buffer);
        buffer.bytes()[20..].to_vec()
    }

    #[test]
    fn virtual_servers_read_back_as_they_were_written() {
        for address in ["10.96.0.10", "fd00::a"] {
            let server = VirtualServer { address: address.parse().unwrap(), protocol: 132, port: 8443 };
            let settings = Settings { scheduler: "mh".into(), flags: PERSISTENT | SCHEDULER_PORT, timeout: 10_800 };
            let bytes = encoded(&Command::Add(server, settings.clone()));
            let service = attribute(&bytes, ATTR_SERVICE).unwrap();
            assert_eq!(read_virtual_server(service, &mut Rc::default()), Some((server, settings)));
            let mask = if server.address.is_ipv4() { [0xff; 4] } else { 128u32.to_ne_bytes() };
            assert_eq!(attribute(service, SVC_NETMASK), Some(&mask[..]));
        }
    }

    #[test]
    fn real_servers_read_back_as_they_were_written() {
        for address in ["10.244.1.7", "fd01::7"] {
            let address = address.parse().unwrap();
            let of = VirtualServer { address, protocol: 6, port: 80 };
            let server = RealServer { address, port: 65_535 };
            let bytes = encoded(&Command::SetReal(of, server, 7));
            let held = read_real_server(attribute(&bytes, ATTR_DEST).unwrap(), address.is_ipv4());
            assert_eq!(held, Some(Held { server, weight: 7, nat: true, connections: 0 }));
        }
    }

    #[test]
    fn timeouts_count_only_with_persistence() {
        let plain = |timeout| Settings { scheduler: "rr".into(), flags: 0, timeout };
        assert!(plain(0).acts_like(&plain(360)));
        let persistent = |timeout| Settings { flags: PERSISTENT, ..plain(timeout) };
        assert!(!persistent(10).acts_like(&persistent(360)));
        assert!(!persistent(10).acts_like(&plain(10)));
    }
}
