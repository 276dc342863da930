//! Named packet counters over netlink (`linux/netfilter/nfnetlink_acct.h`), which rules of iptables count into.
//!
//! Must not know what is counted. A kernel without the extension is an error like any other; callers do without.

use std::io;

use nix::libc;
use nix::sys::socket::SockProtocol;

use super::netlink::{ACK, Buffer, CREATE, Socket, attribute};

const NFNL_SUBSYS_ACCT: u16 = 7;
const NEW: u16 = 0;
const GET: u16 = 1;
const DELETE: u16 = 3;
/// Up to 31 bytes.
const NAME: u16 = 1;
const PACKETS: u16 = 2;
/// `nfgenmsg` of no particular family.
const HEADER: [u8; 4] = [0; 4];

/// Makes sure that there is a counter of this name. One that is there goes on counting.
///
/// # Errors
/// When the kernel has no such counters, or does not let us.
pub fn ensure(name: &str) -> io::Result<()> {
    match ask(NEW, CREATE, name, |_| {}) {
        // EBUSY is what an existing counter is told by (nfnl_acct_new).
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
        other => other,
    }
}

/// How many packets a counter has counted; `None` when there is no such counter.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn packets(name: &str) -> io::Result<Option<u64>> {
    let mut packets = None;
    let asked = ask(GET, 0, name, |body| {
        packets = attribute(body, PACKETS).and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)));
    });
    match asked {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(|()| packets),
    }
}

/// Removes a counter, unless some rule still counts into it; no error when there is none.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn remove(name: &str) -> io::Result<()> {
    match ask(DELETE, 0, name, |_| {}) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EBUSY | libc::EINVAL)) => Ok(()),
        other => other,
    }
}

fn ask(command: u16, flags: u16, name: &str, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut socket = Socket::open(SockProtocol::NetlinkNetFilter)?;
    let mut request = Buffer::new();
    request.message(NFNL_SUBSYS_ACCT << 8 | command, ACK | flags, socket.next_sequence(), &HEADER);
    request.text(NAME, name);
    socket.request(&request, |message| each(message.payload.get(4..).unwrap_or_default()))
}
