//! Netlink: building messages, sending them, reading answers. For every netlink protocol alike (`linux/netlink.h`).
//!
//! Must not know what any message means; that is for the modules beside it.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendmsg, setsockopt, socket,
    sockopt,
};

/// `NLM_F_REQUEST`: every message to the kernel has it.
pub const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`: answer even when there is nothing to say.
pub const ACK: u16 = 0x4;
/// `NLM_F_ROOT | NLM_F_MATCH`: the whole table.
pub const DUMP: u16 = 0x300;
/// `NLM_F_EXCL`: fail if it exists.
pub const EXCL: u16 = 0x200;
/// `NLM_F_REPLACE`: replace what exists.
pub const REPLACE: u16 = 0x100;
/// `NLM_F_CREATE`: create if missing.
pub const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`: add at the end.
pub const APPEND: u16 = 0x800;

const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;
const RECEIVE_BUFFER: usize = 64 * 1024;

/// Message types below this are netlink's own.
const MIN_TYPE: u16 = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const DUMP_INTERRUPTED: u16 = 0x10;
const ERROR_CAPPED: u16 = 0x100;
const ERROR_TLVS: u16 = 0x200;

/// Bytes that a buffer has from the beginning.
const ROOM: usize = 1024;

/// Messages under construction: one after another in one buffer, ready for one `sendmsg`.
#[derive(Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    message: usize,
    messages: usize,
}

/// One message as received, without its netlink header.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Message type.
    pub kind: u16,
    /// Sequence number of the request that it answers.
    pub sequence: u32,
    /// What follows the netlink header.
    pub payload: &'a [u8],
}

/// An attribute as received.
#[derive(Clone, Copy, Debug)]
pub struct Attribute<'a> {
    /// Attribute type without flags.
    pub kind: u16,
    /// Its payload.
    pub payload: &'a [u8],
}

/// An error that the kernel answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Sequence number of the message that was refused.
    pub sequence: u32,
    /// Why.
    pub errno: Errno,
    /// As the kernel gave it: some of its parts have codes of their own, which `errno` does not know.
    pub code: i32,
    /// The kernel's own words, when it has some (`NLMSGERR_ATTR_MSG`).
    pub text: Option<String>,
}

/// A netlink socket.
pub struct Socket {
    fd: OwnedFd,
    receive: Vec<u8>,
    sequence: u32,
}

/// Reads a table, a few times over if need be: a dump that changes disturb fails with `EINTR`.
///
/// # Errors
/// Those of `read`; `EINTR` when there is no end of changes.
pub fn undisturbed<T>(mut read: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..4 {
        match read() {
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            other => return other,
        }
    }
    read()
}

/// The attributes in a byte string; ends at the first malformed one.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = Attribute<'_>> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        let payload = bytes.get(ATTRIBUTE_HEADER..length)?;
        bytes = bytes.get(align(length)..).unwrap_or(&[]);
        Some(Attribute { kind, payload })
    })
}

/// The first attribute of a type.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|a| a.kind == kind).map(|a| a.payload)
}

/// A NUL-terminated string attribute.
pub fn text(payload: &[u8]) -> &str {
    let end = payload.iter().position(|&b| b == 0).unwrap_or(payload.len());
    std::str::from_utf8(&payload[..end]).unwrap_or("")
}

/// A 32-bit number in network byte order, as nfnetlink has them.
pub fn be32(payload: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(payload.try_into().ok()?))
}

const fn align(length: usize) -> usize {
    (length + 3) & !3
}

// === impl Buffer ===

impl Buffer {
    /// An empty buffer, with room for what a change or a question takes.
    pub fn new() -> Self {
        Self { bytes: Vec::with_capacity(ROOM), ..Self::default() }
    }

    /// Begins a message; the previous one is thereby complete. `header` is the fixed part after the netlink header.
    pub fn message(&mut self, kind: u16, flags: u16, sequence: u32, header: &[u8]) {
        self.message = self.bytes.len();
        self.messages += 1;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(header);
        self.pad();
    }

    /// The sequence number of the current message; 0 without one.
    fn sequence(&self) -> u32 {
        let number = self.bytes.get(self.message + 8..).and_then(|rest| rest.first_chunk());
        number.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    }

    /// Adds an attribute to the current message.
    ///
    /// # Panics
    /// When the payload has more than 65,531 bytes, which netlink cannot express.
    pub fn attr(&mut self, kind: u16, payload: &[u8]) {
        self.attr_parts(kind, &[payload]);
    }

    /// Adds an attribute whose payload is these parts, one after another.
    pub fn attr_parts(&mut self, kind: u16, parts: &[&[u8]]) {
        let start = self.open(kind);
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        self.close(start);
    }

    /// Adds a string attribute with its terminating NUL.
    pub fn text(&mut self, kind: u16, value: &str) {
        self.attr_parts(kind, &[value.as_bytes(), &[0]]);
    }

    /// Adds a 32-bit number in network byte order.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// Adds a 64-bit number in network byte order.
    pub fn be64(&mut self, kind: u16, value: u64) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// Adds an attribute that holds what `content` adds.
    pub fn nest(&mut self, kind: u16, content: impl FnOnce(&mut Self)) {
        let start = self.open(kind | NESTED);
        content(self);
        self.close(start);
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Messages so far.
    pub fn messages(&self) -> usize {
        self.messages
    }

    /// Bytes of the message under construction.
    pub fn message_len(&self) -> usize {
        self.bytes.len() - self.message
    }

    /// The finished messages.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.message = 0;
        self.messages = 0;
    }

    /// Adds flags to the current message.
    pub fn add_flags(&mut self, flags: u16) {
        let at = self.message + 6;
        let now = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]) | flags;
        self.bytes[at..at + 2].copy_from_slice(&now.to_ne_bytes());
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        let length = u16::try_from(self.bytes.len() - start).expect("callers keep attributes below 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }

    /// Pads to the alignment and writes the length of the current message.
    fn pad(&mut self) {
        self.bytes.resize(align(self.bytes.len()), 0);
        let length = (self.bytes.len() - self.message) as u32;
        self.bytes[self.message..self.message + 4].copy_from_slice(&length.to_ne_bytes());
    }
}

// === impl Socket ===

impl Socket {
    /// Opens a socket for a netlink protocol, blocking, with extended error texts and without echoed requests.
    ///
    /// # Errors
    /// When the kernel lacks the protocol or forbids it to us.
    pub fn open(protocol: SockProtocol) -> io::Result<Self> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let socket = Self { fd, receive: vec![0; RECEIVE_BUFFER], sequence: 0 };
        socket.option(libc::NETLINK_CAP_ACK, 1)?;
        socket.option(libc::NETLINK_EXT_ACK, 1)?;
        Ok(socket)
    }

    /// Joins a multicast group.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn join(&self, group: u32) -> io::Result<()> {
        self.option(libc::NETLINK_ADD_MEMBERSHIP, group as libc::c_int)
    }

    /// Makes room for `bytes` in the send or receive queue, beyond the system's limit where we may.
    pub fn reserve(&self, send: usize, receive: usize) {
        if send > 0 && setsockopt(&self.fd, sockopt::SndBufForce, &send).is_err() {
            let _ = setsockopt(&self.fd, sockopt::SndBuf, &send);
        }
        if receive > 0 && setsockopt(&self.fd, sockopt::RcvBufForce, &receive).is_err() {
            let _ = setsockopt(&self.fd, sockopt::RcvBuf, &receive);
        }
    }

    /// A sequence number that no earlier request had.
    pub fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    /// Sends finished messages in one datagram.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        loop {
            match sendmsg(
                self.fd.as_raw_fd(),
                &[IoSlice::new(bytes)],
                &[],
                MsgFlags::empty(),
                Some(&NetlinkAddr::new(0, 0)),
            ) {
                Err(Errno::EINTR) => {}
                other => return other.map(drop).map_err(Into::into),
            }
        }
    }

    /// Reads one datagram and hands each message in it to `each`. `Ok(false)`: nothing was there (`wait` is false).
    ///
    /// # Errors
    /// `ENOBUFS` when the kernel had to drop answers, and whatever else the socket reports.
    pub fn receive(&mut self, wait: bool, mut each: impl FnMut(Received<'_>)) -> io::Result<bool> {
        let flags = if wait { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT } | MsgFlags::MSG_TRUNC;
        let length = loop {
            match recv(self.fd.as_raw_fd(), &mut self.receive, flags) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(false),
                other => break other?,
            }
        };
        if length > self.receive.len() {
            return Err(Errno::EMSGSIZE.into());
        }
        received(&self.receive[..length], &mut each);
        Ok(true)
    }

    /// Sends one request and waits until it is answered: by an acknowledgement, an error, or the end of a dump.
    /// Each message of the answer goes to `each`. What is left of the answer to an earlier request, which failed on the
    /// way, is passed over.
    ///
    /// # Errors
    /// What the kernel refused, `EINTR` for a dump that changed while it was read, or a failure of the socket.
    pub fn request(&mut self, request: &Buffer, mut each: impl FnMut(Message<'_>)) -> io::Result<()> {
        self.send(request.bytes())?;
        let asked = request.sequence();
        let mut outcome = None;
        let mut interrupted = false;
        while outcome.is_none() {
            self.receive(true, |received| match received {
                other if other.sequence() != asked => {}
                Received::Message(message, cut) => {
                    interrupted |= cut;
                    each(message);
                }
                Received::Done { cut, .. } => {
                    interrupted |= cut;
                    outcome = Some(Ok(()));
                }
                Received::Acknowledged { .. } => outcome = Some(Ok(())),
                Received::Refused(refusal) => outcome = Some(Err(refusal)),
            })?;
        }
        match outcome {
            Some(Err(refusal)) => Err(refusal.into()),
            _ if interrupted => Err(Errno::EINTR.into()),
            _ => Ok(()),
        }
    }

    fn option(&self, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
        // SAFETY: the descriptor is open and the option's value is one C int, as netlink(7) says of all options used
        // here. JUSTIFICATION: nix has no safe wrapper for SOL_NETLINK options.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_NETLINK,
                name,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        Errno::result(result).map(drop).map_err(Into::into)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// One piece of an answer.
#[derive(Debug)]
pub enum Received<'a> {
    /// A message; the flag tells that the dump it belongs to was interrupted by a change.
    Message(Message<'a>, bool),
    /// The end of a dump.
    Done {
        /// Of the request.
        sequence: u32,
        /// The dump was interrupted by a change.
        cut: bool,
    },
    /// A request was done.
    Acknowledged {
        /// Which one.
        sequence: u32,
    },
    /// A request was refused.
    Refused(Refusal),
}

fn received(mut bytes: &[u8], each: &mut impl FnMut(Received<'_>)) {
    while let Some(header) = bytes.get(..HEADER) {
        // The slice has 16 bytes, so these conversions cannot fail.
        let length = u32::from_ne_bytes(header[0..4].try_into().unwrap()) as usize;
        let kind = u16::from_ne_bytes(header[4..6].try_into().unwrap());
        let flags = u16::from_ne_bytes(header[6..8].try_into().unwrap());
        let sequence = u32::from_ne_bytes(header[8..12].try_into().unwrap());
        let Some(payload) = bytes.get(HEADER..length) else { return };
        let cut = flags & DUMP_INTERRUPTED != 0;
        match kind {
            NLMSG_ERROR => each(error(sequence, flags, payload)),
            NLMSG_DONE => each(match payload.get(..4).map(|code| i32::from_ne_bytes(code.try_into().unwrap())) {
                Some(code) if code < 0 => Received::Refused(Refusal::new(sequence, -code, None)),
                _ => Received::Done { sequence, cut },
            }),
            MIN_TYPE.. => each(Received::Message(Message { kind, sequence, payload }, cut)),
            _ => {}
        }
        bytes = bytes.get(align(length)..).unwrap_or(&[]);
    }
}

fn error(sequence: u32, flags: u16, payload: &[u8]) -> Received<'_> {
    let code = payload.get(..4).map_or(-libc::EIO, |code| i32::from_ne_bytes(code.try_into().unwrap()));
    if code == 0 {
        return Received::Acknowledged { sequence };
    }
    // With NETLINK_CAP_ACK only the header of the request is echoed; then come the attributes.
    let echoed = if flags & ERROR_CAPPED != 0 {
        HEADER
    } else {
        payload.get(4..8).map_or(0, |length| align(u32::from_ne_bytes(length.try_into().unwrap()) as usize))
    };
    let text = (flags & ERROR_TLVS != 0)
        .then(|| payload.get(4 + echoed..).and_then(|rest| attribute(rest, 1)))
        .flatten()
        .map(|message| text(message).to_owned());
    Received::Refused(Refusal::new(sequence, -code, text))
}

// === impl Received ===

impl Received<'_> {
    /// Which request it answers.
    fn sequence(&self) -> u32 {
        match self {
            Self::Message(message, _) => message.sequence,
            Self::Done { sequence, .. } | Self::Acknowledged { sequence } => *sequence,
            Self::Refused(refusal) => refusal.sequence,
        }
    }
}

// === impl Refusal ===

impl Refusal {
    fn new(sequence: u32, code: i32, text: Option<String>) -> Self {
        Self { sequence, errno: Errno::from_raw(code), code, text }
    }
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        match refusal.text {
            Some(text) => Self::new(Self::from(refusal.errno).kind(), format!("{}: {text}", refusal.errno.desc())),
            None => Self::from_raw_os_error(refusal.code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_can_be_read() {
        let mut buffer = Buffer::new();
        buffer.message(20, ACK, 7, &[1, 2, 3]);
        buffer.text(1, "ab");
        buffer.nest(2, |b| b.be32(3, 0x0102_0304));
        buffer.message(21, 0, 8, &[]);
        buffer.attr(4, &[9]);
        assert_eq!(buffer.messages(), 2);

        let mut seen = Vec::new();
        received(buffer.bytes(), &mut |r| {
            if let Received::Message(m, _) = r {
                seen.push((m.kind, m.sequence, m.payload.to_vec()));
            }
        });
        assert_eq!(seen.len(), 2);
        assert_eq!((seen[0].0, seen[0].1), (20, 7));
        let first: Vec<_> = attributes(&seen[0].2[4..]).collect();
        assert_eq!(text(first[0].payload), "ab");
        assert_eq!(attribute(first[1].payload, 3).and_then(be32), Some(0x0102_0304));
        assert_eq!(attribute(&seen[1].2, 4), Some(&[9][..]));
    }

    #[test]
    fn malformed_answers_are_cut_short_without_panic() {
        for bytes in
            [&[][..], &[1, 0, 0], &[255, 255, 1, 0], &[0; 15], &[255, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]]
        {
            assert_eq!(attributes(bytes).count(), 0);
            received(bytes, &mut |_| panic!("nothing is complete here"));
        }
    }

    /// As after a failure while an answer was read.
    #[test]
    fn what_is_left_of_another_answer_is_passed_over() {
        let mut socket = Socket::open(SockProtocol::NetlinkRoute).unwrap();
        let mut requests = [0; 2].map(|_| {
            let mut header = [0; 16];
            header[4] = 1; // the loopback device
            let mut request = Buffer::new();
            request.message(18, ACK, socket.next_sequence(), &header); // RTM_GETLINK
            request
        });
        socket.send(requests[0].bytes()).unwrap();
        let mut answers = Vec::new();
        socket.request(&requests[1], |message| answers.push(message.sequence)).unwrap();
        assert_eq!(answers, [requests[1].sequence()]);
        requests[1].clear();
        assert_eq!(requests[1].sequence(), 0);
    }

    #[test]
    fn the_kernel_answers_a_dump() {
        let mut socket = Socket::open(SockProtocol::NetlinkRoute).unwrap();
        let mut request = Buffer::new();
        let sequence = socket.next_sequence();
        request.message(18, DUMP, sequence, &[0; 16]); // RTM_GETLINK
        let mut links = 0;
        socket.request(&request, |message| links += usize::from(message.sequence == sequence)).unwrap();
        assert!(links > 0, "at least the loopback device is there");
    }
}
