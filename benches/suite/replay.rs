//! The kernel's own floor: the ruleset that somebody programmed, read back as netlink messages and sent once more, from
//! prepared bytes in one transaction. Nobody who programs the same objects can be faster than this.
//!
//! Only for rulesets without anonymous sets.

use std::io;
use std::time::{Duration, Instant};

use kube_proxy::kernel::netlink::{ACK, APPEND, Buffer, CREATE, Received, Socket, attribute, attributes, text};

use crate::kernel::{NAME, NEW_CHAIN, NEW_ELEMENTS, NEW_RULE, NEW_SET, NEW_TABLE, SET_NAME, SUBSYSTEM, dump, open};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const DELETE_TABLE: u16 = 2;
const SET_ID: u16 = 10;

/// What an object is made of: attributes that the kernel tells but does not take (handles, counts of users) are left out.
const KINDS: [(u16, &[u16]); 5] = [
    (NEW_TABLE, &[1, 6]),
    (NEW_SET, &[1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 17]),
    (NEW_CHAIN, &[1, 3, 4, 5, 7, 12]),
    (NEW_ELEMENTS, &[1, 2, 3]),
    (NEW_RULE, &[1, 2, 4, 7]),
];

/// A whole ruleset, ready to be sent.
pub struct Recording {
    batch: Buffer,
    tables: Vec<(u8, String)>,
    last: u32,
}

// === impl Recording ===

impl Recording {
    /// Reads the ruleset of this namespace.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn new() -> io::Result<Self> {
        let mut socket = open()?;
        let mut recording = Self { batch: Buffer::new(), tables: Vec::new(), last: 0 };
        recording.batch.message(BATCH_BEGIN, 0, 0, &header(0));
        let mut sets: Vec<(u8, String, String)> = Vec::new();
        for (kind, attributes) in KINDS {
            if kind == NEW_ELEMENTS {
                for (family, table, set) in &sets {
                    let family = format!("{family}");
                    let of_set: [(u16, &str); 3] = [(0, &family), (NAME, table), (SET_NAME, set)];
                    dump(&mut socket, kind, &of_set, |message| recording.add(kind, attributes, message.payload))?;
                }
                continue;
            }
            dump(&mut socket, kind, &[], |message| {
                let name = |kind| attribute(&message.payload[4..], kind).map(text).unwrap_or_default().to_owned();
                match kind {
                    NEW_TABLE => recording.tables.push((message.payload[0], name(NAME))),
                    NEW_SET => sets.push((message.payload[0], name(NAME), name(SET_NAME))),
                    _ => {}
                }
                recording.add(kind, attributes, message.payload);
            })?;
        }
        recording.batch.add_flags(ACK);
        recording.batch.message(BATCH_END, 0, recording.last + 1, &header(0));
        Ok(recording)
    }

    fn add(&mut self, kind: u16, wanted: &[u16], payload: &[u8]) {
        self.last += 1;
        let flags = if kind == NEW_RULE { CREATE | APPEND } else { CREATE };
        self.batch.message(SUBSYSTEM << 8 | kind, flags, self.last, &payload[..4]);
        for attribute in attributes(&payload[4..]).filter(|attribute| wanted.contains(&attribute.kind)) {
            // Lists and nested attributes of old kernels are not flagged; the flag means nothing to nf_tables.
            self.batch.attr(attribute.kind, attribute.payload);
        }
        if kind == NEW_SET {
            self.batch.be32(SET_ID, self.last);
        }
    }

    /// Removes the tables.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self) -> io::Result<()> {
        let mut batch = Buffer::new();
        batch.message(BATCH_BEGIN, 0, 0, &header(0));
        for (sequence, (family, table)) in (1..).zip(&self.tables) {
            batch.message(SUBSYSTEM << 8 | DELETE_TABLE, 0, sequence, &[*family, 0, 0, 0]);
            batch.text(NAME, table);
        }
        batch.add_flags(ACK);
        batch.message(BATCH_END, 0, self.tables.len() as u32 + 1, &header(0));
        carry_out(&mut open()?, &batch)
    }

    /// Sends it; how long the kernel took. The tables must not be there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn play(&self) -> io::Result<Duration> {
        let mut socket = open()?;
        socket.reserve(self.batch.len() + (1 << 20), 4 << 20);
        let began = Instant::now();
        carry_out(&mut socket, &self.batch)?;
        Ok(began.elapsed())
    }
}

fn header(family: u8) -> [u8; 4] {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    [family, 0, high, low]
}

/// Sends a transaction; its answers are there when `send` returns.
fn carry_out(socket: &mut Socket, batch: &Buffer) -> io::Result<()> {
    socket.send(batch.bytes())?;
    let mut refused = None;
    while socket.receive(false, |received| {
        if let Received::Refused(refusal) = received {
            refused.get_or_insert(refusal);
        }
    })? {}
    refused.map_or(Ok(()), |refusal| {
        let message = refusal.sequence;
        Err(io::Error::other(format!("message {message} was refused: {}", io::Error::from(refusal))))
    })
}
