//! The door to nf_tables: carries out transactions, and reads what there is.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{SockProtocol, getsockopt, sockopt};

use super::*;
use crate::kernel::netlink::{
    ACK, Attribute, Buffer, DUMP, Message, Received, Socket, attribute, attributes, be32, text,
};

const GETTABLE: u16 = 1;
const GETCHAIN: u16 = 4;
const GETRULE: u16 = 7;
const GETSET: u16 = 10;
const GETSETELEM: u16 = 13;
const GETGEN: u16 = 16;
const ELEM_EXPR: u16 = 7;
const IMMEDIATE_DATA: u16 = 2;
const COUNTER_BYTES: u16 = 1;
const COUNTER_PACKETS: u16 = 2;
const GEN_ID: u16 = 1;
const RECEIVE_QUEUE: usize = 4 << 20;
const SEND_QUEUE: usize = 64 << 20;

/// Transactions that this process carried out, whatever the table: the generation that they add to is one for all.
static TRANSACTIONS: AtomicU32 = AtomicU32::new(0);

/// The door to nf_tables.
pub struct Nftables {
    socket: Socket,
    limit: usize,
    sequence: u32,
    /// How long the kernel worked on transactions since that was asked last.
    spent: Duration,
    /// For the question that is asked over and over.
    question: Buffer,
}

/// An element as read from the kernel.
#[derive(Clone, Copy, Debug)]
pub struct ReadElement<'a> {
    /// Key.
    pub key: &'a [u8],
    /// End of the range.
    pub end: Option<&'a [u8]>,
    /// Value.
    pub data: Value<'a>,
    /// Marks the end of a range in a plain interval set.
    pub interval_end: bool,
    /// Packets and bytes, where they are counted.
    pub counter: Option<(u64, u64)>,
}

/// A rule as read from the kernel.
#[derive(Clone, Copy, Debug)]
pub struct ReadRule<'a> {
    /// The chain that it is in.
    pub chain: &'a str,
    /// What the kernel knows it by, within its table.
    pub handle: u64,
    /// The chain that it leads to with a verdict of its own, be that `jump` or `goto`; those in maps are not looked at.
    pub leads_to: Option<&'a str>,
}

/// Why a transaction did not happen.
#[derive(Debug)]
pub enum CommitError {
    /// Somebody else changed the ruleset since the generation that was asked for: read again.
    Changed,
    /// The kernel refused.
    Refused {
        /// Index of the refused message within the batch, if it was one.
        message: Option<usize>,
        /// Why.
        errno: Errno,
        /// The kernel's words.
        text: Option<String>,
    },
    /// Whether it happened is unknown: read again.
    Unknown(io::Error),
}

// === impl Nftables ===

impl Nftables {
    /// Opens the door.
    ///
    /// # Errors
    /// When the kernel has no netfilter netlink, or we may not use it.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::open(SockProtocol::NetlinkNetFilter)?;
        socket.reserve(SEND_QUEUE, RECEIVE_QUEUE);
        // A datagram must fit into the send queue (netlink_sendmsg).
        let limit = getsockopt(&socket, sockopt::SndBuf).unwrap_or(200_000) - 4096;
        Ok(Self { socket, limit, sequence: 0, spent: Duration::ZERO, question: Buffer::new() })
    }

    /// The largest transaction that can be sent, in bytes.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Carries out a transaction and empties it for the next one. An empty one costs nothing.
    ///
    /// # Errors
    /// See [`CommitError`]; except for `Unknown`, nothing was changed.
    pub fn commit(&mut self, batch: &mut Batch) -> Result<(), CommitError> {
        let empty = batch.is_empty();
        self.hand_over(batch, true)?;
        TRANSACTIONS.fetch_add(u32::from(!empty), Ordering::Relaxed);
        Ok(())
    }

    /// The generation of the ruleset, less the transactions that this process carried out: changes when somebody else
    /// changes the ruleset, and only then (nf_tables_commit adds one for each).
    ///
    /// # Errors
    /// When nf_tables is not there.
    pub fn foreign_generation(&mut self) -> io::Result<u32> {
        Ok(self.generation()?.wrapping_sub(TRANSACTIONS.load(Ordering::Relaxed)))
    }

    /// Whether the kernel would carry out a transaction: it does everything but that, and loads modules for it. Empties
    /// the transaction.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub fn check(&mut self, batch: &mut Batch) -> Result<(), CommitError> {
        self.hand_over(batch, false)
    }

    /// How long the kernel worked on transactions since this was asked last.
    pub fn take_spent(&mut self) -> Duration {
        std::mem::take(&mut self.spent)
    }

    fn hand_over(&mut self, batch: &mut Batch, for_real: bool) -> Result<(), CommitError> {
        if batch.is_empty() {
            return Ok(());
        }
        let (bytes, last) = batch.seal(for_real);
        let began = Instant::now();
        // The kernel carries it out before this returns.
        let sent = self.socket.send(bytes);
        self.spent += began.elapsed();
        batch.restart();
        sent.map_err(|error| match error.raw_os_error() {
            Some(code) => CommitError::Refused { message: None, errno: Errno::from_raw(code), text: None },
            None => CommitError::Unknown(error),
        })?;
        self.outcome(last)
    }

    /// All answers are queued before `sendmsg` returns, so this reads until there are none.
    fn outcome(&mut self, last: u32) -> Result<(), CommitError> {
        let mut acknowledged = false;
        let mut refused = None;
        loop {
            let more = self.socket.receive(false, |received| match received {
                Received::Acknowledged { sequence } => acknowledged |= sequence == last,
                Received::Refused(refusal) => {
                    refused.get_or_insert(refusal);
                }
                Received::Message(..) | Received::Done { .. } => {}
            });
            match more {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return Err(CommitError::Unknown(error)),
            }
        }
        match refused {
            Some(refusal) if refusal.errno == Errno::ERESTART => Err(CommitError::Changed),
            Some(refusal) => Err(CommitError::Refused {
                message: (refusal.sequence as usize).checked_sub(1),
                errno: refusal.errno,
                text: refusal.text,
            }),
            None if acknowledged => Ok(()),
            None => Err(CommitError::Unknown(Errno::ENODATA.into())),
        }
    }

    /// The generation of the whole ruleset: changes with every transaction of anybody.
    ///
    /// # Errors
    /// When nf_tables is not there.
    pub fn generation(&mut self) -> io::Result<u32> {
        let mut generation = None;
        let sequence = self.next();
        self.question.clear();
        self.question.message(subsystem(GETGEN), ACK, sequence, &[0; 4]);
        self.socket.request(&self.question, |message| {
            generation = generation.or(message.payload.get(4..).and_then(|a| attribute(a, GEN_ID)).and_then(be32));
        })?;
        generation.ok_or_else(|| io::Error::other("nf_tables does not tell its generation"))
    }

    /// Whether a table exists. A kernel without nf_tables has none.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn has_table(&mut self, family: TableFamily, table: &str) -> io::Result<bool> {
        let mut request = Buffer::new();
        request.message(subsystem(GETTABLE), ACK, self.next(), &family.header());
        request.text(TABLE_NAME, table);
        has_table(self.socket.request(&request, |_| {}))
    }

    /// Whether a table has a chain.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn has_chain(&mut self, family: TableFamily, table: &str, chain: &str) -> io::Result<bool> {
        let mut request = Buffer::new();
        request.message(subsystem(GETCHAIN), ACK, self.next(), &family.header());
        request.text(CHAIN_TABLE, table);
        request.text(CHAIN_NAME, chain);
        found(self.socket.request(&request, |_| {}))
    }

    /// How much there is that a chain cannot go without: its rules, and what leads to it. 0 if it does not exist.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn uses(&mut self, family: TableFamily, table: &str, chain: &str) -> io::Result<usize> {
        let mut uses = 0;
        let mut request = Buffer::new();
        request.message(subsystem(GETCHAIN), ACK, self.next(), &family.header());
        request.text(CHAIN_TABLE, table);
        request.text(CHAIN_NAME, chain);
        let asked = self.socket.request(&request, |message| {
            let body = message.payload.get(4..).unwrap_or(&[]);
            uses = attribute(body, CHAIN_USE).and_then(be32).unwrap_or(0) as usize;
        });
        found(asked).map(|_| uses)
    }

    /// The names of a table's chains, and whether each hooks in somewhere.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn chains(&mut self, family: TableFamily, table: &str) -> io::Result<Vec<(String, bool)>> {
        let mut chains = Vec::new();
        let mut request = Buffer::new();
        request.message(subsystem(GETCHAIN), DUMP, self.next(), &family.header());
        self.socket.request(&request, |message| {
            let body = message.payload.get(4..).unwrap_or(&[]);
            if attribute(body, CHAIN_TABLE).is_some_and(|name| text(name) == table) {
                let name = attribute(body, CHAIN_NAME).map(text).unwrap_or_default();
                chains.push((name.to_owned(), attribute(body, CHAIN_HOOK).is_some()));
            }
        })?;
        Ok(chains)
    }

    /// How many rules a table has.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn rules(&mut self, family: TableFamily, table: &str) -> io::Result<usize> {
        let mut rules = 0;
        let mut request = Buffer::new();
        request.message(subsystem(GETRULE), DUMP, self.next(), &family.header());
        request.text(RULE_TABLE, table);
        found(self.socket.request(&request, |_| rules += 1))?;
        Ok(rules)
    }

    /// Hands every rule of a table to `each`. A table that does not exist has none.
    ///
    /// # Errors
    /// `EINTR` when the table changed meanwhile, or when the kernel cannot be asked.
    pub fn each_rule(
        &mut self,
        family: TableFamily,
        table: &str,
        mut each: impl FnMut(ReadRule<'_>),
    ) -> io::Result<()> {
        let mut request = Buffer::new();
        request.message(subsystem(GETRULE), DUMP, self.next(), &family.header());
        request.text(RULE_TABLE, table);
        found(self.socket.request(&request, |message| read_rule(message).into_iter().for_each(&mut each))).map(drop)
    }

    /// How many rules a chain has. One that does not exist has none.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn rules_of(&mut self, family: TableFamily, table: &str, chain: &str) -> io::Result<usize> {
        let mut rules = 0;
        let mut request = Buffer::new();
        request.message(subsystem(GETRULE), DUMP, self.next(), &family.header());
        request.text(RULE_TABLE, table);
        request.text(RULE_CHAIN, chain);
        found(self.socket.request(&request, |_| rules += 1)).map(|_| rules)
    }

    /// Whether some rule of a chain names another chain. A chain that does not exist has none.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn leads(&mut self, family: TableFamily, table: &str, chain: &str, to: &str) -> io::Result<bool> {
        let mut leads = false;
        let name = format!("{to}\0");
        let mut request = Buffer::new();
        request.message(subsystem(GETRULE), DUMP, self.next(), &family.header());
        request.text(RULE_TABLE, table);
        request.text(RULE_CHAIN, chain);
        let asked = self.socket.request(&request, |message| {
            leads |= message.payload.windows(name.len()).any(|window| window == name.as_bytes());
        });
        found(asked).map(|_| leads)
    }

    /// The sets and maps of a table.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn sets(&mut self, family: TableFamily, table: &str) -> io::Result<Vec<ReadSet>> {
        let mut sets = Vec::new();
        let mut request = Buffer::new();
        request.message(subsystem(GETSET), DUMP, self.next(), &family.header());
        request.text(SET_TABLE, table);
        self.socket.request(&request, |message| {
            let body = message.payload.get(4..).unwrap_or(&[]);
            let number = |kind| attribute(body, kind).and_then(be32).unwrap_or(0);
            sets.push(ReadSet {
                name: attribute(body, SET_NAME).map(text).unwrap_or_default().to_owned(),
                flags: number(SET_FLAGS),
                key_type: number(SET_KEY_TYPE),
                data_type: number(SET_DATA_TYPE),
                counter: attribute(body, SET_EXPR).is_some(),
            });
        })?;
        Ok(sets)
    }

    /// Hands every element of a set to `each`. A set that does not exist has none.
    ///
    /// # Errors
    /// `EINTR` when the set changed meanwhile, or when the kernel cannot be asked.
    pub fn elements(
        &mut self,
        family: TableFamily,
        table: &str,
        set: &str,
        mut each: impl FnMut(ReadElement<'_>),
    ) -> io::Result<()> {
        let mut request = Buffer::new();
        request.message(subsystem(GETSETELEM), DUMP, self.next(), &family.header());
        request.text(ELEM_LIST_TABLE, table);
        request.text(ELEM_LIST_SET, set);
        found(self.socket.request(&request, |message| read_elements(message, &mut each))).map(drop)
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }
}

/// Whether an error says that the kernel has no nf_tables: it does not know netfilter's netlink, or nobody there answers
/// for nf_tables.
pub fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EINVAL))
}

fn has_table(outcome: io::Result<()>) -> io::Result<bool> {
    match found(outcome) {
        Err(error) if is_absent(&error) => Ok(false),
        other => other,
    }
}

/// Turns "no such object" into `false`.
fn found(outcome: io::Result<()>) -> io::Result<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn read_rule(message: Message<'_>) -> Option<ReadRule<'_>> {
    let body = message.payload.get(4..)?;
    let expressions = attribute(body, RULE_EXPRESSIONS).unwrap_or(&[]);
    Some(ReadRule {
        chain: text(attribute(body, RULE_CHAIN)?),
        handle: u64::from_be_bytes(attribute(body, RULE_HANDLE)?.try_into().ok()?),
        leads_to: attributes(expressions).find_map(|expression| read_verdict(expression.payload)),
    })
}

fn read_verdict(expression: &[u8]) -> Option<&str> {
    attribute(expression, EXPR_NAME).filter(|name| text(name) == "immediate")?;
    match read_value(attribute(attribute(expression, EXPR_DATA)?, IMMEDIATE_DATA)?) {
        Value::Goto(chain) => Some(chain),
        Value::None | Value::Bytes(_) => None,
    }
}

fn read_elements(message: Message<'_>, each: &mut impl FnMut(ReadElement<'_>)) {
    let body = message.payload.get(4..).unwrap_or(&[]);
    let Some(list) = attribute(body, ELEM_LIST_ELEMENTS) else { return };
    for element in attributes(list) {
        let mut read = ReadElement { key: &[], end: None, data: Value::None, interval_end: false, counter: None };
        for Attribute { kind, payload } in attributes(element.payload) {
            match kind {
                ELEM_KEY => read.key = attribute(payload, DATA_VALUE).unwrap_or(&[]),
                ELEM_KEY_END => read.end = attribute(payload, DATA_VALUE),
                ELEM_FLAGS => read.interval_end = be32(payload).unwrap_or(0) & ELEMENT_INTERVAL_END != 0,
                ELEM_DATA => read.data = read_value(payload),
                ELEM_EXPR => read.counter = read_counter(payload),
                _ => {}
            }
        }
        each(read);
    }
}

fn read_value(payload: &[u8]) -> Value<'_> {
    if let Some(bytes) = attribute(payload, DATA_VALUE) {
        return Value::Bytes(bytes);
    }
    let chain = attribute(payload, DATA_VERDICT).and_then(|verdict| attribute(verdict, VERDICT_CHAIN));
    chain.map_or(Value::None, |chain| Value::Goto(text(chain)))
}

fn read_counter(payload: &[u8]) -> Option<(u64, u64)> {
    let number = |bytes: &[u8]| Some(u64::from_be_bytes(bytes.try_into().ok()?));
    let data = attribute(payload, EXPR_DATA)?;
    Some((number(attribute(data, COUNTER_PACKETS)?)?, number(attribute(data, COUNTER_BYTES)?)?))
}

// === impl CommitError ===

impl std::fmt::Display for CommitError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Changed => f.write_str("the ruleset was changed by another program meanwhile"),
            Self::Refused { errno, text, .. } => {
                write!(f, "the kernel refused the nftables transaction: {}", errno.desc())?;
                text.as_ref().map_or(Ok(()), |text| write!(f, " ({text})"))
            }
            Self::Unknown(error) => write!(f, "the outcome of the nftables transaction is unknown: {error}"),
        }
    }
}

impl std::error::Error for CommitError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_nf_tables_has_no_table() {
        let outcome = |errno: Errno| has_table(Err(errno.into())).map_err(|error| error.raw_os_error());
        assert!(has_table(Ok(())).unwrap());
        for errno in [Errno::ENOENT, Errno::EINVAL, Errno::EPROTONOSUPPORT] {
            assert_eq!(outcome(errno), Ok(false), "{errno}");
        }
        assert_eq!(outcome(Errno::EPERM), Err(Some(libc::EPERM)));
    }
}
