//! ipset over netlink (`linux/netfilter/ipset/ip_set.h`): only what it takes to remove sets that are not used any more.

use std::io;

use nix::sys::socket::SockProtocol;

use super::netlink::{ACK, Buffer, DUMP, Socket, attribute, text};

const NFNL_SUBSYS_IPSET: u16 = 6;
const CMD_DESTROY: u16 = 3;
const CMD_LIST: u16 = 7;
const ATTR_PROTOCOL: u16 = 1;
const ATTR_SETNAME: u16 = 2;
const ATTR_FLAGS: u16 = 6;
/// `IPSET_FLAG_LIST_SETNAME`: names only, no elements.
const LIST_NAMES: u32 = 1 << 1;
/// The protocol version that all kernels since 3.x speak.
const PROTOCOL: u8 = 6;
/// `IPSET_ERR_BUSY`: ipset's own codes begin at 4096.
const BUSY: i32 = 4100;
/// `nfgenmsg` of no particular family.
const HEADER: [u8; 4] = [2, 0, 0, 0];

/// Removes the sets whose names `wanted` picks. A kernel without ipset has none.
///
/// # Errors
/// When the kernel cannot be asked, or sets are still used by rules: all others are gone then.
pub fn destroy(wanted: impl Fn(&str) -> bool) -> io::Result<()> {
    let mut socket = Socket::open(SockProtocol::NetlinkNetFilter)?;
    let mut condemned = Vec::new();
    let listed = names(&mut socket, |name| {
        if wanted(name) {
            condemned.push(name.to_owned());
        }
    });
    match listed {
        // The module is not there: nobody ever made a set.
        Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => return Ok(()),
        other => other?,
    }
    let mut failures = Vec::new();
    for name in &condemned {
        let mut request = Buffer::new();
        request.message(kind(CMD_DESTROY), ACK, socket.next_sequence(), &HEADER);
        request.attr(ATTR_PROTOCOL, &[PROTOCOL]);
        request.text(ATTR_SETNAME, name);
        match socket.request(&request, |_| {}) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(BUSY) => failures.push(format!("{name} is used by a rule")),
            Err(error) => failures.push(format!("{name}: {error}")),
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(io::Error::other(failures.join(", "))) }
}

fn names(socket: &mut Socket, mut each: impl FnMut(&str)) -> io::Result<()> {
    let mut request = Buffer::new();
    request.message(kind(CMD_LIST), DUMP, socket.next_sequence(), &HEADER);
    request.attr(ATTR_PROTOCOL, &[PROTOCOL]);
    request.be32(ATTR_FLAGS, LIST_NAMES);
    socket.request(&request, |message| {
        let name = message.payload.get(4..).and_then(|body| attribute(body, ATTR_SETNAME));
        name.map(text).into_iter().for_each(&mut each);
    })
}

const fn kind(command: u16) -> u16 {
    NFNL_SUBSYS_IPSET << 8 | command
}
