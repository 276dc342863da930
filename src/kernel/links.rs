//! Addresses of this network namespace over rtnetlink: what there is, and word when it changes.
//!
//! Must not judge which addresses matter, and never polls.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use async_io::Async;
use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::SockProtocol;

use super::netlink::{Buffer, DUMP, Message, Received, Socket, attribute, attributes, text, undisturbed};

const INTERFACE_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;

/// An address on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address itself.
    pub address: IpAddr,
    /// Length of the prefix that is on the link, in bits.
    pub prefix: u8,
    /// Index of the interface.
    pub index: u32,
    /// Name of the interface; empty if it came while we asked.
    pub interface: Rc<str>,
    /// Scope as in `linux/rtnetlink.h`: 0 global, 253 link, 254 host.
    pub scope: u8,
    /// `IFA_F_*` flags, for example 0x40: duplicate detection of an IPv6 address is not done yet.
    pub flags: u32,
}

/// Tells when an address or an interface came, went or changed.
pub struct Watcher {
    socket: Socket,
    ignored: Ignored,
    ready: Async<OwnedFd>,
}

/// A device that is not told of.
struct Ignored {
    name: Option<&'static str>,
    /// Its index, while it exists.
    index: Option<u32>,
}

/// All addresses of all interfaces, in the kernel's order.
///
/// # Errors
/// When the kernel cannot be asked. A dump that is disturbed by changes is repeated a few times.
pub fn addresses() -> io::Result<Vec<Address>> {
    undisturbed(dump)
}

fn dump() -> io::Result<Vec<Address>> {
    let mut socket = Socket::open(SockProtocol::NetlinkRoute)?;
    let mut names: HashMap<u32, Rc<str>> = HashMap::new();
    let mut request = Buffer::new();
    request.message(libc::RTM_GETLINK, DUMP, socket.next_sequence(), &[0; INTERFACE_HEADER]);
    socket.request(&request, |message| names.extend(interface(&message)))?;
    let mut found = Vec::new();
    request.clear();
    request.message(libc::RTM_GETADDR, DUMP, socket.next_sequence(), &[0; ADDRESS_HEADER]);
    socket.request(&request, |message| found.extend(Address::read(&message, &names)))?;
    Ok(found)
}

/// Index and name in an `RTM_NEWLINK` message.
fn interface(message: &Message<'_>) -> Option<(u32, Rc<str>)> {
    let (header, rest) = message.payload.split_at_checked(INTERFACE_HEADER)?;
    let index = u32::from_ne_bytes(header[4..8].try_into().ok()?);
    Some((index, text(attribute(rest, libc::IFLA_IFNAME)?).into()))
}

// === impl Address ===

impl Address {
    /// Reads an `RTM_NEWADDR` message.
    fn read(message: &Message<'_>, names: &HashMap<u32, Rc<str>>) -> Option<Self> {
        let (header, rest) = message.payload.split_at_checked(ADDRESS_HEADER)?;
        let mut address = None;
        let mut local = None;
        let mut flags = u32::from(header[2]);
        for attribute in attributes(rest) {
            match attribute.kind {
                libc::IFA_ADDRESS => address = read_ip(attribute.payload),
                libc::IFA_LOCAL => local = read_ip(attribute.payload),
                libc::IFA_FLAGS => flags = u32::from_ne_bytes(attribute.payload.try_into().ok()?),
                _ => {}
            }
        }
        let index = u32::from_ne_bytes(header[4..8].try_into().ok()?);
        Some(Self {
            // On a point-to-point link IFA_ADDRESS is the other end.
            address: local.or(address)?,
            prefix: header[1],
            index,
            interface: names.get(&index).cloned().unwrap_or_default(),
            scope: header[3],
            flags,
        })
    }
}

/// The bytes of an address.
pub(super) fn read_ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

// === impl Watcher ===

impl Watcher {
    /// Begins to listen. Changes from now on are told, so open it before [`addresses`] is called. What happens to the
    /// device `ignored` is not told: whoever changes its addresses himself has no use for hearing it.
    ///
    /// # Errors
    /// When the kernel refuses the socket or its groups.
    pub fn open(ignored: Option<&'static str>) -> io::Result<Self> {
        let socket = Socket::open(SockProtocol::NetlinkRoute)?;
        for group in [libc::RTNLGRP_LINK, libc::RTNLGRP_IPV4_IFADDR, libc::RTNLGRP_IPV6_IFADDR] {
            socket.join(group)?;
        }
        // The same socket under a second descriptor, so that waiting does not borrow the one that reads.
        let ready = Async::new(socket.as_fd().try_clone_to_owned()?)?;
        let index = ignored.and_then(|name| if_nametoindex(name).ok());
        Ok(Self { socket, ignored: Ignored { name: ignored, index }, ready })
    }

    /// Waits until something changed, and takes all notices that are there. Whoever wants to know what, asks again.
    ///
    /// # Errors
    /// When the socket fails. Lost notices are a change, not an error.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut any = false;
            loop {
                let ignored = &mut self.ignored;
                let notice = |received: Received<'_>| match received {
                    Received::Message(message, _) => any |= !ignored.covers(&message),
                    _ => any = true,
                };
                match self.socket.receive(false, notice) {
                    Ok(false) => break,
                    Ok(true) => {}
                    Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => any = true,
                    Err(error) => return Err(error),
                }
            }
            if any {
                return Ok(());
            }
            self.ready.readable().await?;
        }
    }
}

// === impl Ignored ===

impl Ignored {
    /// Whether a notice is about this device and nothing else. Learns its index from notices of links.
    fn covers(&mut self, message: &Message<'_>) -> bool {
        let Some(name) = self.name else { return false };
        if [libc::RTM_NEWADDR, libc::RTM_DELADDR].contains(&message.kind) {
            let index =
                message.payload.get(4..8).map(|bytes| u32::from_ne_bytes(bytes.try_into().expect("four bytes")));
            return index.is_some() && index == self.index;
        }
        match interface(message) {
            Some((index, of)) if &*of == name => {
                self.index = (message.kind != libc::RTM_DELLINK).then_some(index);
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_address_is_among_them() {
        let found = addresses().unwrap();
        let loopback = found.iter().find(|a| a.address.is_loopback()).expect("loopback is up wherever tests run");
        assert_eq!((&*loopback.interface, loopback.scope), ("lo", 254));
    }

    #[test]
    fn the_near_end_of_a_point_to_point_link_is_meant() {
        let mut buffer = Buffer::new();
        buffer.message(libc::RTM_NEWADDR, 0, 1, &[2, 32, 0, 0, 9, 0, 0, 0]);
        buffer.attr(libc::IFA_ADDRESS, &[10, 0, 0, 2]);
        buffer.attr(libc::IFA_LOCAL, &[10, 0, 0, 1]);
        let payload = &buffer.bytes()[16..];
        let names = HashMap::from([(u32::from_ne_bytes([9, 0, 0, 0]), Rc::from("tun9"))]);
        let address = Address::read(&Message { kind: libc::RTM_NEWADDR, sequence: 1, payload }, &names).unwrap();
        assert_eq!(address.address, "10.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!((&*address.interface, address.prefix), ("tun9", 32));
        for cut in [0, 7, 8] {
            let payload = &payload[..cut];
            assert_eq!(Address::read(&Message { kind: libc::RTM_NEWADDR, sequence: 1, payload }, &names), None);
        }
    }
}
