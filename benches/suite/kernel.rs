//! What the kernel tells of the nftables ruleset while somebody programs it: generations, notifications, objects.
//!
//! Looks on from the same network namespace and changes nothing. Knows no table but by name, so that it can watch any
//! kube-proxy.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use kube_proxy::kernel::netlink::{Buffer, DUMP, Message, Received, Socket, attribute, attributes, text};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::SockProtocol;

use crate::cluster::FIRST_MARK;

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES`.
pub const SUBSYSTEM: u16 = 10;
/// Room for the notifications of a large transaction.
const QUEUE: usize = 256 << 20;

/// `enum nf_tables_msg_types`: what exists in a table, and how it is asked for.
pub const NEW_TABLE: u16 = 0;
/// A chain.
pub const NEW_CHAIN: u16 = 3;
/// A rule.
pub const NEW_RULE: u16 = 6;
/// A set or map.
pub const NEW_SET: u16 = 9;
/// Elements.
pub const NEW_ELEMENTS: u16 = 12;
const NEW_GENERATION: u16 = 15;
/// The name of the table and, for elements, of the set.
pub const NAME: u16 = 1;
/// The name of a set, and of the set that elements are in.
pub const SET_NAME: u16 = 2;
/// The list of elements.
pub const ELEMENTS: u16 = 3;

/// Sees when changes arrive in the kernel.
pub struct Watcher {
    seen: Receiver<Sight>,
}

/// What a notification says.
pub enum Sight {
    /// This change is in the kernel since then.
    Mark(u32, Instant),
    /// A transaction ended: so many messages, so many bytes.
    Transaction(usize, usize),
}

/// How many objects there are in all tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Objects {
    /// Chains.
    pub chains: usize,
    /// Rules.
    pub rules: usize,
    /// Sets and maps.
    pub sets: usize,
    /// Elements of all of them.
    pub elements: usize,
}

/// Asks nf_tables for everything of a kind; `attribute` narrows it down.
pub fn dump(socket: &mut Socket, kind: u16, narrow: &[(u16, &str)], each: impl FnMut(Message<'_>)) -> io::Result<()> {
    let mut request = Buffer::new();
    let sequence = socket.next_sequence();
    // A request's number follows that of what it asks for; the family is any.
    let family = narrow.iter().find(|(kind, _)| *kind == 0).map_or(0, |(_, number)| number.parse().unwrap_or(0));
    request.message(SUBSYSTEM << 8 | (kind + 1), DUMP, sequence, &[family, 0, 0, 0]);
    narrow.iter().filter(|(kind, _)| *kind != 0).for_each(|(kind, value)| request.text(*kind, value));
    socket.request(&request, each)
}

/// A socket to nf_tables.
pub fn open() -> io::Result<Socket> {
    Socket::open(SockProtocol::NetlinkNetFilter)
}

/// The generation of the ruleset: grows with every transaction.
pub fn generation(socket: &mut Socket) -> io::Result<u32> {
    let mut generation = 0;
    let mut request = Buffer::new();
    let sequence = socket.next_sequence();
    request.message(SUBSYSTEM << 8 | (NEW_GENERATION + 1), kube_proxy::kernel::netlink::ACK, sequence, &[0; 4]);
    socket.request(&request, |message| {
        let id = message.payload.get(4..).and_then(|body| attribute(body, NAME));
        generation = id.and_then(kube_proxy::kernel::netlink::be32).unwrap_or(generation);
    })?;
    Ok(generation)
}

/// Families, tables and names of all sets.
fn all_sets(socket: &mut Socket) -> io::Result<BTreeSet<(u8, String, String)>> {
    let mut sets = BTreeSet::new();
    dump(socket, NEW_SET, &[], |message| {
        let body = &message.payload[4..];
        let name = |kind| attribute(body, kind).map(text).unwrap_or_default().to_owned();
        sets.insert((message.payload[0], name(NAME), name(SET_NAME)));
    })?;
    Ok(sets)
}

/// Counts everything that there is in this namespace; also which of these addresses are in some set's keys.
pub fn objects(addresses: &mut BTreeMap<Ipv4Addr, bool>) -> io::Result<Objects> {
    let mut socket = open()?;
    let mut objects = Objects::default();
    dump(&mut socket, NEW_CHAIN, &[], |_| objects.chains += 1)?;
    dump(&mut socket, NEW_RULE, &[], |_| objects.rules += 1)?;
    for (family, table, set) in all_sets(&mut socket)? {
        objects.sets += 1;
        let family = family.to_string();
        dump(&mut socket, NEW_ELEMENTS, &[(0, &family), (NAME, &table), (SET_NAME, &set)], |message| {
            let list = attribute(&message.payload[4..], ELEMENTS).unwrap_or_default();
            for element in attributes(list) {
                objects.elements += 1;
                let key = attribute(element.payload, 1).and_then(|key| attribute(key, 1)).unwrap_or_default();
                if let Some(first) = key.get(..4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok())
                    && let Some(found) = addresses.get_mut(&Ipv4Addr::from(first))
                {
                    *found = true;
                }
            }
        })?;
    }
    Ok(objects)
}

// === impl Watcher ===

impl Watcher {
    /// Begins to look, until it is dropped.
    ///
    /// # Errors
    /// When the kernel does not let us.
    pub fn start() -> io::Result<Self> {
        let mut socket = open()?;
        socket.reserve(0, QUEUE);
        socket.join(GROUP)?;
        let (sender, seen) = channel();
        thread::spawn(move || {
            let mut known = HashSet::new();
            let (mut messages, mut bytes) = (0, 0);
            // Ends when nobody wants to know any more, or with the process.
            loop {
                let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                if poll(&mut fds, PollTimeout::from(1000_u16)).is_err() {
                    continue;
                }
                let mut sights = Vec::new();
                let received = socket.receive(false, |received| {
                    let now = Instant::now();
                    let Received::Message(message, _) = received else { return };
                    match message.kind & 0xff {
                        NEW_GENERATION => {
                            sights.push(Sight::Transaction(messages, bytes));
                            (messages, bytes) = (0, 0);
                            return;
                        }
                        NEW_RULE | NEW_ELEMENTS => {
                            for mark in marks(message.payload) {
                                if known.insert(mark) {
                                    sights.push(Sight::Mark(mark, now));
                                }
                            }
                        }
                        _ => {}
                    }
                    messages += 1;
                    bytes += message.payload.len() + 16;
                });
                if let Err(error) = received {
                    eprintln!("notifications of nftables were lost: {error}");
                }
                for sight in sights {
                    if sender.send(sight).is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Self { seen })
    }

    /// The next sight, if there is one within this time.
    pub fn next(&self, patience: Duration) -> Option<Sight> {
        self.seen.recv_timeout(patience).ok()
    }
}

/// The numbers of changes whose addresses are in these bytes. Addresses begin where attributes may begin; the header
/// before them holds a part of the generation, which may look like one.
fn marks(payload: &[u8]) -> impl Iterator<Item = u32> {
    let words = payload.get(4..).unwrap_or_default().chunks_exact(4);
    words.filter(|word| word[0] == 10 && word[1] >= 128).map(|word| {
        let address = u32::from_be_bytes([word[0], word[1], word[2], word[3]]);
        address - FIRST_MARK
    })
}
