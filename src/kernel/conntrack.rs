//! Connection tracking over ctnetlink (`linux/netfilter/nfnetlink_conntrack.h`): finding UDP entries and deleting them.
//!
//! A table of hundreds of thousands of entries is read a datagram at a time, with a pause for others after each.
//! Must not decide which entries are to go; the caller does.
//!
//! The kernel can choose family and protocol for us, which is six times cheaper, but then looks for entries to fill a
//! datagram with for as long as it takes: 34 ms in a table of 200,000 that has none, and nobody else runs meanwhile. So
//! large tables are read whole, 0.3 ms at a time (measured on x86-64, kernel 6.18).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;

use async_io::Async;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockProtocol};
use smol::future::yield_now;

use super::netlink::{ACK, Buffer, DUMP, Message, Received, Socket, attribute};
use super::sysctl;

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET`.
const GET: u16 = 0x101;
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = 0x102;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// Within `CTA_FILTER`: which fields of the original tuple must match.
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const MATCH_PROTO_NUM: u32 = 1 << 3;

const NESTED: u16 = 0x8000;
const UDP: u8 = libc::IPPROTO_UDP as u8;

/// The header of every nfnetlink message.
const NFGEN_HEADER: usize = 4;
/// Up to this many entries in its table the kernel chooses those of interest.
const SMALL_TABLE: u64 = 32_768;
/// Deletions sent at once. Their answers must fit into a receive queue of default size.
const DELETIONS: usize = 64;
/// How often a dump that was interrupted by a change is begun anew.
const ATTEMPTS: usize = 5;

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Where packets of this direction come from.
    pub source: SocketAddr,
    /// Where they go.
    pub destination: SocketAddr,
}

/// A tracked UDP flow. Where it was not translated, `reply` is `original` turned round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As the first packet was sent.
    pub original: Tuple,
    /// As answers are expected.
    pub reply: Tuple,
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// UDP entries looked at.
    pub seen: usize,
    /// Entries deleted; not those that went by themselves meanwhile.
    pub deleted: usize,
}

/// Reads the UDP entries of a family (`Inet` or `Inet6`) and deletes those that `stale` picks. Other tasks of the
/// executor run in between; dropping the future stops the sweep. An interrupted dump is begun anew up to five times.
///
/// # Errors
/// When the kernel has no ctnetlink, forbids it to us, or refuses a deletion for any reason but that the entry is gone.
pub async fn delete_udp(family: AddressFamily, stale: impl Fn(&Entry) -> bool) -> io::Result<Swept> {
    let mut swept = Swept::default();
    // A socket of its own for deletions: their answers must not mix with the dump.
    let mut deleter = Socket::open(SockProtocol::NetlinkNetFilter).map_err(explained)?;
    for _ in 0..ATTEMPTS {
        match sweep(family, &stale, &mut deleter, &mut swept).await {
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            other => return other.map(|()| swept).map_err(explained),
        }
    }
    Ok(swept)
}

fn explained(error: io::Error) -> io::Error {
    let text =
        format!("cannot sweep tracked UDP flows: {error}; it takes CAP_NET_ADMIN and the module nf_conntrack_netlink");
    io::Error::new(error.kind(), text)
}

async fn sweep(
    family: AddressFamily,
    stale: &impl Fn(&Entry) -> bool,
    deleter: &mut Socket,
    swept: &mut Swept,
) -> io::Result<()> {
    let mut socket = Socket::open(SockProtocol::NetlinkNetFilter)?;
    // The same socket under a second descriptor, so that waiting does not borrow the one that reads.
    let ready = Async::new(socket.as_fd().try_clone_to_owned()?)?;
    let count = sysctl::read(Path::new("/proc/sys/net/netfilter/nf_conntrack_count"));
    let chosen = count.is_ok_and(|count| count <= SMALL_TABLE);
    let request = dump_request(chosen.then_some(family), socket.next_sequence());
    socket.send(request.bytes())?;

    let mut condemned = Buffer::new();
    let mut interrupted = false;
    let mut outcome = None;
    while outcome.is_none() {
        let some = socket.receive(false, |received| match received {
            Received::Message(message, cut) => {
                interrupted |= cut;
                let Some(entry) = Entry::read(family, &message) else { return };
                swept.seen += 1;
                if stale(&entry) {
                    condemn(&mut condemned, deleter.next_sequence(), &message);
                }
            }
            Received::Done { cut, .. } => {
                interrupted |= cut;
                outcome = Some(Ok(()));
            }
            Received::Acknowledged { .. } => {}
            Received::Refused(refusal) => outcome = Some(Err(refusal)),
        })?;
        if !some {
            ready.readable().await?;
            continue;
        }
        swept.deleted += delete(deleter, &condemned)?;
        condemned.clear();
        yield_now().await;
    }
    match outcome {
        Some(Err(refusal)) => Err(refusal.into()),
        _ if interrupted => Err(Errno::EINTR.into()),
        _ => Ok(()),
    }
}

/// Asks for the UDP entries of a family, or for all entries. Kernels before 5.8 ignore the filter and send all entries
/// of the family; [`Entry::read`] looks again anyway.
fn dump_request(family: Option<AddressFamily>, sequence: u32) -> Buffer {
    let mut request = Buffer::new();
    request.message(GET, DUMP, sequence, &[family.map_or(0, |family| family as u8), 0, 0, 0]);
    if family.is_some() {
        request.nest(CTA_TUPLE_ORIG, |tuple| tuple.nest(CTA_TUPLE_PROTO, |proto| proto.attr(CTA_PROTO_NUM, &[UDP])));
        request.nest(CTA_FILTER, |filter| filter.attr(CTA_FILTER_ORIG_FLAGS, &MATCH_PROTO_NUM.to_ne_bytes()));
    }
    request
}

/// Adds the deletion of the entry in `message`: named by its original tuple and zone, and by its id, so that a flow
/// that was tracked anew under the same tuple is left alone.
fn condemn(deletions: &mut Buffer, sequence: u32, message: &Message<'_>) {
    let (header, attributes) = message.payload.split_at(NFGEN_HEADER);
    deletions.message(DELETE, ACK, sequence, &[header[0], 0, 0, 0]);
    for (kind, flags) in [(CTA_TUPLE_ORIG, NESTED), (CTA_ZONE, 0), (CTA_ID, 0)] {
        if let Some(payload) = attribute(attributes, kind) {
            deletions.attr(kind | flags, payload);
        }
    }
}

/// Sends deletions, takes their answers, and returns how many entries there were.
fn delete(socket: &mut Socket, deletions: &Buffer) -> io::Result<usize> {
    let mut rest = deletions.bytes();
    let mut deleted = 0;
    while !rest.is_empty() {
        let (some, count) = split(rest);
        socket.send(&rest[..some])?;
        rest = &rest[some..];
        let mut answers = 0;
        let mut failure = None;
        while answers < count {
            socket.receive(true, |received| match received {
                Received::Acknowledged { .. } => {
                    answers += 1;
                    deleted += 1;
                }
                Received::Refused(refusal) => {
                    answers += 1;
                    if refusal.errno != Errno::ENOENT {
                        failure = Some(refusal);
                    }
                }
                Received::Message(..) | Received::Done { .. } => {}
            })?;
        }
        if let Some(refusal) = failure {
            return Err(refusal.into());
        }
    }
    Ok(deleted)
}

/// Length in bytes, and number, of the first [`DELETIONS`] messages.
fn split(messages: &[u8]) -> (usize, usize) {
    let mut end = 0;
    let mut count = 0;
    while count < DELETIONS
        && let Some(length) = messages.get(end..end + 4)
    {
        // The slice has four bytes, so this cannot fail. Lengths are multiples of four: that is how Buffer pads.
        end += u32::from_ne_bytes(length.try_into().unwrap()) as usize;
        count += 1;
    }
    (end, count)
}

// === impl Tuple ===

impl Tuple {
    /// Reads a `CTA_TUPLE_*` attribute; `None` unless it is UDP over IP.
    fn read(tuple: &[u8]) -> Option<Self> {
        let ip = attribute(tuple, CTA_TUPLE_IP)?;
        let proto = attribute(tuple, CTA_TUPLE_PROTO)?;
        if attribute(proto, CTA_PROTO_NUM)? != [UDP] {
            return None;
        }
        let address = |v4, v6| match attribute(ip, v4) {
            Some(bytes) => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
            None => Some(IpAddr::from(<[u8; 16]>::try_from(attribute(ip, v6)?).ok()?)),
        };
        let port = |kind| Some(u16::from_be_bytes(attribute(proto, kind)?.try_into().ok()?));
        Some(Self {
            source: SocketAddr::new(address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?, port(CTA_PROTO_SRC_PORT)?),
            destination: SocketAddr::new(address(CTA_IP_V4_DST, CTA_IP_V6_DST)?, port(CTA_PROTO_DST_PORT)?),
        })
    }
}

// === impl Entry ===

impl Entry {
    /// Reads one message of a dump; `None` unless it is a UDP entry of the family.
    fn read(family: AddressFamily, message: &Message<'_>) -> Option<Self> {
        let (header, attributes) = message.payload.split_at_checked(NFGEN_HEADER)?;
        if header[0] != family as u8 {
            return None;
        }
        Some(Self {
            original: Tuple::read(attribute(attributes, CTA_TUPLE_ORIG)?)?,
            reply: Tuple::read(attribute(attributes, CTA_TUPLE_REPLY)?)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of a dump as the kernel builds it, for a flow from one port to another.
    fn entry(protocol: u8, addresses: [&[u8]; 2], reply_source: &[u8]) -> Vec<u8> {
        let kinds =
            if addresses[0].len() == 4 { (CTA_IP_V4_SRC, CTA_IP_V4_DST) } else { (CTA_IP_V6_SRC, CTA_IP_V6_DST) };
        let mut buffer = Buffer::new();
        let family = if addresses[0].len() == 4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        buffer.message(0x100, 0, 1, &[family as u8, 0, 0, 0]);
        for (kind, source, destination, ports) in [
            (CTA_TUPLE_ORIG, addresses[0], addresses[1], (4000u16, 53u16)),
            (CTA_TUPLE_REPLY, reply_source, addresses[0], (5353, 4000)),
        ] {
            buffer.nest(kind, |tuple| {
                tuple.nest(CTA_TUPLE_IP, |ip| {
                    ip.attr(kinds.0, source);
                    ip.attr(kinds.1, destination);
                });
                tuple.nest(CTA_TUPLE_PROTO, |proto| {
                    proto.attr(CTA_PROTO_NUM, &[protocol]);
                    proto.attr(CTA_PROTO_SRC_PORT, &ports.0.to_be_bytes());
                    proto.attr(CTA_PROTO_DST_PORT, &ports.1.to_be_bytes());
                });
            });
        }
        buffer.be32(CTA_ID, 7);
        buffer.bytes()[16..].to_vec()
    }

    #[test]
    fn entries_of_both_families_are_read() {
        let payload = entry(UDP, [&[10, 0, 0, 1], &[10, 96, 0, 10]], &[10, 244, 0, 5]);
        let message = Message { kind: 0x100, sequence: 1, payload: &payload };
        assert_eq!(Entry::read(AddressFamily::Inet6, &message), None, "the other family");
        let read = Entry::read(AddressFamily::Inet, &message).unwrap();
        assert_eq!(read.original.source, "10.0.0.1:4000".parse().unwrap());
        assert_eq!(read.original.destination, "10.96.0.10:53".parse().unwrap());
        assert_eq!(read.reply.source, "10.244.0.5:5353".parse().unwrap());
        assert_eq!(read.reply.destination, "10.0.0.1:4000".parse().unwrap());

        let payload = entry(UDP, [&[1; 16], &[2; 16]], &[3; 16]);
        let message = Message { kind: 0x100, sequence: 1, payload: &payload };
        let read = Entry::read(AddressFamily::Inet6, &message).unwrap();
        assert_eq!(read.reply.source, "[303:303:303:303:303:303:303:303]:5353".parse().unwrap());
    }

    #[test]
    fn other_protocols_and_crippled_entries_are_passed_over() {
        let udp = entry(UDP, [&[10, 0, 0, 1], &[10, 96, 0, 10]], &[10, 244, 0, 5]);
        let tcp = entry(6, [&[10, 0, 0, 1], &[10, 96, 0, 10]], &[10, 244, 0, 5]);
        for payload in [&tcp[..], &udp[..3], &udp[..40], &[]] {
            assert_eq!(Entry::read(AddressFamily::Inet, &Message { kind: 0x100, sequence: 1, payload }), None);
        }
    }

    #[test]
    fn many_deletions_are_sent_in_portions() {
        let payload = entry(UDP, [&[10, 0, 0, 1], &[10, 96, 0, 10]], &[10, 244, 0, 5]);
        let mut deletions = Buffer::new();
        for sequence in 0..DELETIONS as u32 + 3 {
            condemn(&mut deletions, sequence, &Message { kind: 0x100, sequence: 1, payload: &payload });
        }
        let (first, count) = split(deletions.bytes());
        assert_eq!(count, DELETIONS);
        assert_eq!(split(&deletions.bytes()[first..]), (deletions.len() - first, 3));
        assert_eq!(split(&[]), (0, 0));
    }
}
