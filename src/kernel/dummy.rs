//! A device that only holds addresses: its life and its addresses (`rtnetlink(7)`).
//!
//! Must not know what the addresses are for.

use std::io;
use std::net::IpAddr;

use nix::libc;
use nix::sys::socket::{AddressFamily, SockProtocol};

use super::links::read_ip;
use super::netlink::{ACK, Buffer, CREATE, DUMP, EXCL, Message, Received, Refusal, Socket, attribute, undisturbed};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;

const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_CACHEINFO: u16 = 6;

/// Bytes of `struct ifinfomsg`.
const LINK_HEADER: usize = 16;
/// Bytes of `struct ifaddrmsg`.
const ADDRESS_HEADER: usize = 8;
/// Addresses changed at once. Every one may be refused, and all refusals must fit into the receive queue.
const PORTION: usize = 256;
const RECEIVE_QUEUE: usize = 1 << 20;

/// The device, which may or may not exist.
pub struct Dummy {
    socket: Socket,
    name: &'static str,
}

// === impl Dummy ===

impl Dummy {
    /// The device of this name; changes nothing.
    ///
    /// # Errors
    /// When rtnetlink cannot be opened.
    pub fn new(name: &'static str) -> io::Result<Self> {
        let socket = Socket::open(SockProtocol::NetlinkRoute)?;
        socket.reserve(0, RECEIVE_QUEUE);
        Ok(Self { socket, name })
    }

    /// Its index, if it exists.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn index(&mut self) -> io::Result<Option<u32>> {
        let mut request = self.link_request(RTM_GETLINK, ACK, 0);
        request.text(IFLA_IFNAME, self.name);
        let mut index = None;
        let outcome = self.socket.request(&request, |message| {
            index = message.payload.get(4..8).map(|bytes| u32::from_ne_bytes(bytes.try_into().expect("four bytes")));
        });
        match outcome {
            Ok(()) => Ok(index),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Its index; creates it first if it does not exist.
    ///
    /// # Errors
    /// When it cannot be created, for instance because the module `dummy` is missing.
    pub fn create(&mut self) -> io::Result<u32> {
        if let Some(index) = self.index()? {
            return Ok(index);
        }
        let mut request = self.link_request(RTM_NEWLINK, ACK | CREATE | EXCL, 0);
        request.text(IFLA_IFNAME, self.name);
        request.nest(IFLA_LINKINFO, |b| b.text(IFLA_INFO_KIND, "dummy"));
        self.socket.request(&request, |_| {})?;
        self.index()?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    /// Removes it with its addresses, if it exists.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete(&mut self) -> io::Result<()> {
        let Some(index) = self.index()? else { return Ok(()) };
        let request = self.link_request(RTM_DELLINK, ACK, index);
        self.socket.request(&request, |_| {})
    }

    /// The addresses of a family that the device of this index has.
    ///
    /// # Errors
    /// When the kernel cannot be asked. What is disturbed by changes is repeated a few times.
    pub fn addresses(&mut self, index: u32, family: AddressFamily) -> io::Result<Vec<IpAddr>> {
        undisturbed(|| {
            let mut header = [0; ADDRESS_HEADER];
            header[0] = family as u8;
            let mut request = Buffer::new();
            request.message(RTM_GETADDR, DUMP, self.socket.next_sequence(), &header);
            let mut found = Vec::new();
            self.socket.request(&request, |message| found.extend(read_address(&message, index)))?;
            Ok(found)
        })
    }

    /// Adds addresses with the prefix of a single host to the device of this index. One that exists is no error. Returns
    /// those that the kernel takes for no address of a host, such as multicast ones, each with the reason.
    ///
    /// # Errors
    /// The first refusal for another reason, or when the kernel cannot be asked.
    pub fn add(&mut self, index: u32, addresses: &[IpAddr]) -> io::Result<Vec<(IpAddr, io::Error)>> {
        let refused = self.change(RTM_NEWADDR, CREATE | EXCL, index, addresses, libc::EEXIST)?;
        let is_no_address = |(_, error): &(IpAddr, io::Error)| {
            matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::InvalidInput)
        };
        let (no_addresses, others): (Vec<_>, Vec<_>) = refused.into_iter().partition(is_no_address);
        others.into_iter().next().map_or(Ok(no_addresses), |(_, error)| Err(error))
    }

    /// Removes addresses. One that does not exist is no error.
    ///
    /// # Errors
    /// The first refusal, or when the kernel cannot be asked.
    pub fn remove(&mut self, index: u32, addresses: &[IpAddr]) -> io::Result<()> {
        let refused = self.change(RTM_DELADDR, 0, index, addresses, libc::EADDRNOTAVAIL)?;
        refused.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
    }

    fn change(
        &mut self,
        kind: u16,
        flags: u16,
        index: u32,
        addresses: &[IpAddr],
        harmless: libc::c_int,
    ) -> io::Result<Vec<(IpAddr, io::Error)>> {
        let mut all_refused = Vec::new();
        let mut buffer = Buffer::new();
        for portion in addresses.chunks(PORTION) {
            buffer.clear();
            let sequences: Vec<u32> = portion.iter().map(|_| self.socket.next_sequence()).collect();
            for (address, sequence) in portion.iter().zip(&sequences) {
                encode_address(&mut buffer, kind, flags, *sequence, index, address);
            }
            buffer.add_flags(ACK);
            self.socket.send(buffer.bytes())?;
            let last = sequences.last().copied().unwrap_or_default();
            let mut done = false;
            let mut refused = |refusal: Refusal| {
                let which = sequences.iter().position(|sequence| *sequence == refusal.sequence);
                if let Some(which) = which.filter(|_| refusal.errno as i32 != harmless) {
                    all_refused.push((portion[which], refusal.into()));
                }
            };
            while !done {
                self.socket.receive(true, |received| match received {
                    Received::Acknowledged { sequence } => done |= sequence == last,
                    Received::Refused(refusal) => {
                        done |= refusal.sequence == last;
                        refused(refusal);
                    }
                    Received::Message(..) | Received::Done { .. } => {}
                })?;
            }
        }
        Ok(all_refused)
    }

    fn link_request(&mut self, kind: u16, flags: u16, index: u32) -> Buffer {
        let mut header = [0; LINK_HEADER];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        let mut request = Buffer::new();
        request.message(kind, flags, self.socket.next_sequence(), &header);
        request
    }
}

/// The address in an `RTM_NEWADDR` message about this device.
fn read_address(message: &Message<'_>, index: u32) -> Option<IpAddr> {
    let (header, rest) = message.payload.split_at_checked(ADDRESS_HEADER)?;
    if header[4..] != index.to_ne_bytes() {
        return None;
    }
    attribute(rest, IFA_LOCAL).or_else(|| attribute(rest, IFA_ADDRESS)).and_then(read_ip)
}

fn encode_address(b: &mut Buffer, kind: u16, flags: u16, sequence: u32, index: u32, address: &IpAddr) {
    let (family, bits) = if address.is_ipv4() { (libc::AF_INET, 32) } else { (libc::AF_INET6, 128) };
    // IFA_F_NODAD: nobody else may have these addresses, and they must work at once.
    let address_flags = if address.is_ipv4() { 0 } else { libc::IFA_F_NODAD as u8 };
    let mut header = [0; ADDRESS_HEADER];
    header[..4].copy_from_slice(&[family as u8, bits, address_flags, libc::RT_SCOPE_UNIVERSE]);
    header[4..].copy_from_slice(&index.to_ne_bytes());
    b.message(kind, flags, sequence, &header);
    match address {
        IpAddr::V4(v4) => {
            b.attr(IFA_LOCAL, &v4.octets());
            b.attr(IFA_ADDRESS, &v4.octets());
        }
        IpAddr::V6(v6) => {
            b.attr(IFA_ADDRESS, &v6.octets());
            // Deprecated from the start: the host must not choose such an address as its own when it sends or
            // masquerades (RFC 6724, rule 3). Words of `ifa_cacheinfo`: preferred, valid, and two that are read only.
            let lifetimes = [0, u32::MAX, 0, 0].map(u32::to_ne_bytes);
            b.attr(IFA_CACHEINFO, &lifetimes.concat());
        }
    }
}
