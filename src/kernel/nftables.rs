//! nf_tables over netlink (`linux/netfilter/nf_tables.h`): transactions that change tables, and dumps that read them.
//!
//! Knows how tables, chains, sets and elements are spelled in messages; what is in them is for the callers. Rules come
//! compiled from [`super::nftrule`].

use std::io;

use nix::errno::Errno;
use nix::sys::socket::{SockProtocol, getsockopt, sockopt};

use super::netlink::{
    ACK, APPEND, Attribute, Buffer, CREATE, DUMP, Message, Received, Socket, attribute, attributes, be32, text,
};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_BATCH_GENID: u16 = 1;

const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const GETRULE: u16 = 7;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const GETSET: u16 = 10;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;
const GETGEN: u16 = 16;

const TABLE_NAME: u16 = 1;
const TABLE_USERDATA: u16 = 6;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const CHAIN_USERDATA: u16 = 12;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LEN: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_DATA_LEN: u16 = 7;
const SET_DESC: u16 = 9;
const SET_ID: u16 = 10;
const SET_TIMEOUT: u16 = 11;
const SET_USERDATA: u16 = 13;
const SET_EXPR: u16 = 17;
const SET_DESC_SIZE: u16 = 1;
const SET_DESC_CONCAT: u16 = 2;
const SET_FIELD_LEN: u16 = 1;
const ELEM_LIST_TABLE: u16 = 1;
const ELEM_LIST_SET: u16 = 2;
const ELEM_LIST_ELEMENTS: u16 = 3;
const ELEM_KEY: u16 = 1;
const ELEM_DATA: u16 = 2;
const ELEM_FLAGS: u16 = 3;
const ELEM_EXPR: u16 = 7;
const ELEM_KEY_END: u16 = 10;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const COUNTER_BYTES: u16 = 1;
const COUNTER_PACKETS: u16 = 2;
const GEN_ID: u16 = 1;
const LIST_ELEM: u16 = 1;

const FLAG_INTERVAL: u32 = 0x4;
const FLAG_MAP: u32 = 0x8;
const FLAG_TIMEOUT: u32 = 0x10;
const FLAG_EVAL: u32 = 0x20;
const FLAG_CONCAT: u32 = 0x80;
const ELEMENT_INTERVAL_END: u32 = 0x1;
const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;
/// `NFT_GOTO`, as in `enum nft_verdicts`.
const VERDICT_GOTO: i32 = -4;

/// User data that nft keeps comments in: one type byte, one length byte, a NUL-terminated text.
const UDATA_COMMENT: u8 = 0;
const UDATA_SET_KEY_BYTE_ORDER: u8 = 0;
const UDATA_SET_DATA_BYTE_ORDER: u8 = 1;
const UDATA_SET_COMMENT: u8 = 7;

/// One message must stay below netlink's 64 KiB for the element list.
const ELEMENT_LIST_LIMIT: usize = 60_000;
const RECEIVE_QUEUE: usize = 4 << 20;
const SEND_QUEUE: usize = 64 << 20;

/// `ip` or `ip6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TableFamily {
    /// `NFPROTO_IPV4`.
    Ip = 2,
    /// `NFPROTO_IPV6`.
    Ip6 = 10,
}

/// A part of a set's key or data, by nft's data type (`enum datatypes` of nft, part of its stored format).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Field {
    /// `ipv4_addr`.
    Ipv4Addr = 7,
    /// `ipv6_addr`.
    Ipv6Addr = 8,
    /// `inet_proto`.
    InetProto = 12,
    /// `inet_service`.
    InetService = 13,
    /// `mark`: a plain 32-bit number.
    Mark = 19,
    /// `classid`: what `meta priority` holds.
    ClassId = 23,
}

/// What the elements of a map lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// A verdict.
    Verdict,
    /// A value.
    Fields(&'static [Field]),
}

/// A named set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetSpec {
    /// Its name.
    pub name: &'static str,
    /// What it is for; shown by `nft list`.
    pub comment: &'static str,
    /// The key, concatenated from these.
    pub key: &'static [Field],
    /// For a map, what it maps to.
    pub data: Option<Data>,
    /// Keys are ranges.
    pub interval: bool,
    /// Filled by packets, with timeouts; at most this many elements.
    pub dynamic: Option<u32>,
    /// Packets and bytes are counted for each element.
    pub counter: bool,
}

/// Where a base chain hooks in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `filter` or `nat`.
    pub kind: &'static str,
    /// `NF_INET_*`.
    pub number: u32,
    /// Lower comes first.
    pub priority: i32,
}

/// One element to add or remove.
#[derive(Clone, Copy, Debug)]
pub struct Element<'a> {
    /// Key, each field padded to four bytes.
    pub key: &'a [u8],
    /// End of the range, for sets whose keys are ranges of concatenations.
    pub end: Option<&'a [u8]>,
    /// Value, for maps; ignored when removing.
    pub data: Value<'a>,
    /// For plain interval sets: this key is the first one after a range.
    pub interval_end: bool,
}

/// What an element maps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Nothing: an element of a set.
    None,
    /// Bytes, each field padded to four.
    Bytes(&'a [u8]),
    /// `goto` this chain.
    Goto(&'a str),
}

/// A transaction under construction. All of it takes effect at once, or nothing.
pub struct Batch {
    buffer: Buffer,
    family: TableFamily,
    table: &'static str,
    sequence: u32,
    set_id: u32,
}

/// The door to nf_tables.
pub struct Nftables {
    socket: Socket,
    limit: usize,
    sequence: u32,
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

/// A set as read from the kernel: what tells whether it is the one we would declare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadSet {
    /// Its name.
    pub name: String,
    /// `NFT_SET_*` flags.
    pub flags: u32,
    /// nft's key type number.
    pub key_type: u32,
    /// nft's data type number; 0 for sets.
    pub data_type: u32,
    /// Whether elements are counted.
    pub counter: bool,
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

const fn subsystem(message: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | message
}

const fn padded(length: usize) -> usize {
    (length + 3) & !3
}

// === impl TableFamily ===

impl TableFamily {
    fn header(self) -> [u8; 4] {
        [self as u8, 0, 0, 0]
    }
}

// === impl Field ===

impl Field {
    /// Bytes without padding.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Ipv6Addr => 16,
            Self::InetProto => 1,
            Self::InetService => 2,
            Self::Ipv4Addr | Self::Mark | Self::ClassId => 4,
        }
    }

    /// The name nft prints.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipv4Addr => "ipv4_addr",
            Self::Ipv6Addr => "ipv6_addr",
            Self::InetProto => "inet_proto",
            Self::InetService => "inet_service",
            Self::Mark => "mark",
            Self::ClassId => "classid",
        }
    }

    /// nft's number for the concatenation of some fields: six bits each.
    fn concatenated(fields: &[Self]) -> u32 {
        fields.iter().fold(0, |all, &field| all << 6 | field as u32)
    }

    /// nft's `enum byteorder`: of this machine, of the network, or a concatenation that has none.
    fn byte_order(fields: &[Self]) -> u32 {
        match fields {
            [Self::Mark | Self::ClassId] => 1,
            [_] => 2,
            _ => 0,
        }
    }

    /// Bytes of the concatenation of some fields. A lone field is not padded.
    pub fn total(fields: &[Self]) -> usize {
        match fields {
            [only] => only.bytes(),
            several => several.iter().map(|field| padded(field.bytes())).sum(),
        }
    }
}

// === impl SetSpec ===

impl SetSpec {
    fn flags(&self) -> u32 {
        let mut flags = 0;
        if self.data.is_some() {
            flags |= FLAG_MAP;
        }
        if self.interval {
            flags |= FLAG_INTERVAL;
            if self.key.len() > 1 {
                flags |= FLAG_CONCAT;
            }
        }
        if self.dynamic.is_some() {
            flags |= FLAG_TIMEOUT | FLAG_EVAL;
        }
        flags
    }

    fn data_type(&self) -> u32 {
        match self.data {
            None => 0,
            Some(Data::Verdict) => DATA_TYPE_VERDICT,
            Some(Data::Fields(fields)) => Field::concatenated(fields),
        }
    }

    /// What nft needs to know to print the set: byte orders and the comment.
    fn userdata(&self) -> Vec<u8> {
        let byte_order = |kind, fields: &[Field]| {
            let [a, b, c, d] = Field::byte_order(fields).to_ne_bytes();
            [kind, 4, a, b, c, d]
        };
        let mut userdata = byte_order(UDATA_SET_KEY_BYTE_ORDER, self.key).to_vec();
        if let Some(Data::Fields(fields)) = self.data {
            userdata.extend(byte_order(UDATA_SET_DATA_BYTE_ORDER, fields));
        }
        userdata.extend(comment_data(UDATA_SET_COMMENT, self.comment));
        userdata
    }

    /// Whether a set that was read from the kernel is this one.
    pub fn is(&self, read: &ReadSet) -> bool {
        read.name == self.name
            && read.flags == self.flags()
            && read.key_type == Field::concatenated(self.key)
            && read.data_type == self.data_type()
            && read.counter == self.counter
    }

    /// Whether ranges are stored as a first key and a first key beyond.
    pub fn has_interval_ends(&self) -> bool {
        self.interval && self.key.len() == 1
    }
}

// === impl Batch ===

impl Batch {
    /// An empty transaction on one table. With `generation`, it only happens if the ruleset is still of that generation.
    pub fn new(family: TableFamily, table: &'static str, generation: Option<u32>) -> Self {
        let mut batch = Self { buffer: Buffer::new(), family, table, sequence: 0, set_id: 0 };
        batch.begin(generation);
        batch
    }

    fn begin(&mut self, generation: Option<u32>) {
        let [high, low] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
        self.buffer.message(NFNL_MSG_BATCH_BEGIN, 0, 0, &[0, 0, high, low]);
        if let Some(generation) = generation {
            self.buffer.be32(NFNL_BATCH_GENID, generation);
        }
        self.sequence = 0;
    }

    fn message(&mut self, kind: u16, flags: u16) {
        self.sequence += 1;
        self.buffer.message(subsystem(kind), flags, self.sequence, &self.family.header());
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.sequence == 0
    }

    /// Declares the table; nothing happens if it exists.
    pub fn add_table(&mut self, comment: &str) {
        self.message(NEWTABLE, CREATE);
        self.buffer.text(TABLE_NAME, self.table);
        self.buffer.attr(TABLE_USERDATA, &comment_data(UDATA_COMMENT, comment));
    }

    /// Removes the table with all that is in it. It must exist.
    pub fn delete_table(&mut self) {
        self.message(DELTABLE, 0);
        self.buffer.text(TABLE_NAME, self.table);
    }

    /// Adds a chain; nothing happens if it exists as wanted.
    pub fn add_chain(&mut self, name: &str, hook: Option<Hook>, comment: &str) {
        self.message(NEWCHAIN, CREATE);
        self.buffer.text(CHAIN_TABLE, self.table);
        self.buffer.text(CHAIN_NAME, name);
        if let Some(hook) = hook {
            self.buffer.nest(CHAIN_HOOK, |b| {
                b.be32(HOOK_NUMBER, hook.number);
                b.be32(HOOK_PRIORITY, hook.priority as u32);
            });
            self.buffer.text(CHAIN_TYPE, hook.kind);
        }
        if !comment.is_empty() {
            self.buffer.attr(CHAIN_USERDATA, &comment_data(UDATA_COMMENT, comment));
        }
    }

    /// Removes an empty chain that nothing refers to.
    pub fn delete_chain(&mut self, name: &str) {
        self.message(DELCHAIN, 0);
        self.buffer.text(CHAIN_TABLE, self.table);
        self.buffer.text(CHAIN_NAME, name);
    }

    /// Removes all rules of a chain.
    pub fn flush_chain(&mut self, name: &str) {
        self.message(DELRULE, 0);
        self.buffer.text(RULE_TABLE, self.table);
        self.buffer.text(RULE_CHAIN, name);
    }

    /// Adds a rule at the end of a chain: `expressions` fills in what [`super::nftrule`] compiles.
    pub fn add_rule(&mut self, chain: &str, expressions: impl FnOnce(&mut Buffer)) {
        self.message(NEWRULE, CREATE | APPEND);
        self.buffer.text(RULE_TABLE, self.table);
        self.buffer.text(RULE_CHAIN, chain);
        self.buffer.nest(RULE_EXPRESSIONS, expressions);
    }

    /// Declares a set or map.
    pub fn add_set(&mut self, set: &SetSpec) {
        self.set_id += 1;
        let id = self.set_id;
        self.message(NEWSET, CREATE);
        let b = &mut self.buffer;
        b.text(SET_TABLE, self.table);
        b.text(SET_NAME, set.name);
        b.be32(SET_FLAGS, set.flags());
        b.be32(SET_KEY_TYPE, Field::concatenated(set.key));
        b.be32(SET_KEY_LEN, Field::total(set.key) as u32);
        if let Some(data) = set.data {
            b.be32(SET_DATA_TYPE, set.data_type());
            let length = if let Data::Fields(fields) = data { Field::total(fields) } else { 0 };
            b.be32(SET_DATA_LEN, length as u32);
        }
        b.be32(SET_ID, id);
        if let Some(size) = set.dynamic {
            b.nest(SET_DESC, |b| b.be32(SET_DESC_SIZE, size));
            b.be64(SET_TIMEOUT, 3_600_000);
        } else if set.flags() & FLAG_CONCAT != 0 {
            b.nest(SET_DESC, |b| {
                b.nest(SET_DESC_CONCAT, |b| {
                    for field in set.key {
                        b.nest(LIST_ELEM, |b| b.be32(SET_FIELD_LEN, field.bytes() as u32));
                    }
                });
            });
        }
        b.attr(SET_USERDATA, &set.userdata());
        if set.counter {
            b.nest(SET_EXPR, |b| b.text(EXPR_NAME, "counter"));
        }
    }

    /// Adds elements to a set or map.
    pub fn add_elements<'a>(&mut self, set: &str, elements: impl IntoIterator<Item = Element<'a>>) {
        self.elements(NEWSETELEM, CREATE, set, elements);
    }

    /// Removes elements, which must be there.
    pub fn delete_elements<'a>(&mut self, set: &str, elements: impl IntoIterator<Item = Element<'a>>) {
        self.elements(DELSETELEM, 0, set, elements);
    }

    /// Removes all elements of a set.
    pub fn flush_set(&mut self, set: &str) {
        self.message(DELSETELEM, 0);
        self.buffer.text(ELEM_LIST_TABLE, self.table);
        self.buffer.text(ELEM_LIST_SET, set);
    }

    /// Fills as many messages as the elements need.
    fn elements<'a>(&mut self, kind: u16, flags: u16, set: &str, elements: impl IntoIterator<Item = Element<'a>>) {
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            self.message(kind, flags);
            self.buffer.text(ELEM_LIST_TABLE, self.table);
            self.buffer.text(ELEM_LIST_SET, set);
            self.buffer.nest(ELEM_LIST_ELEMENTS, |b| {
                while b.message_len() < ELEMENT_LIST_LIMIT
                    && let Some(element) = elements.next()
                {
                    b.nest(LIST_ELEM, |b| element.encode(b, kind == NEWSETELEM));
                }
            });
        }
    }
}

fn comment_data(kind: u8, comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).expect("comments are short constants");
    [&[kind, length], comment.as_bytes(), &[0]].concat()
}

// === impl Element ===

impl Element<'_> {
    fn encode(&self, b: &mut Buffer, with_data: bool) {
        if self.interval_end {
            b.be32(ELEM_FLAGS, ELEMENT_INTERVAL_END);
        }
        b.nest(ELEM_KEY, |b| b.attr(DATA_VALUE, self.key));
        if let Some(end) = self.end {
            b.nest(ELEM_KEY_END, |b| b.attr(DATA_VALUE, end));
        }
        match self.data {
            _ if !with_data => {}
            Value::None => {}
            Value::Bytes(bytes) => b.nest(ELEM_DATA, |b| b.attr(DATA_VALUE, bytes)),
            Value::Goto(chain) => b.nest(ELEM_DATA, |b| {
                b.nest(DATA_VERDICT, |b| {
                    b.be32(VERDICT_CODE, VERDICT_GOTO as u32);
                    b.text(VERDICT_CHAIN, chain);
                });
            }),
        }
    }
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
        Ok(Self { socket, limit, sequence: 0 })
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
        self.hand_over(batch, true)
    }

    /// Whether the kernel would carry out a transaction: it does everything but that, and loads modules for it. Empties
    /// the transaction.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub fn check(&mut self, batch: &mut Batch) -> Result<(), CommitError> {
        self.hand_over(batch, false)
    }

    /// A batch without its end is validated, answered, and dropped by the kernel.
    fn hand_over(&mut self, batch: &mut Batch, for_real: bool) -> Result<(), CommitError> {
        if batch.is_empty() {
            return Ok(());
        }
        let last = batch.sequence;
        // The end of the batch is not acknowledged before Linux 6.10 or so, the last real message always is.
        batch.buffer.add_flags(ACK);
        if for_real {
            let [high, low] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
            batch.buffer.message(NFNL_MSG_BATCH_END, 0, last + 1, &[0, 0, high, low]);
        }
        let sent = self.socket.send(batch.buffer.bytes());
        batch.buffer.clear();
        batch.begin(None);
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
        let mut request = Buffer::new();
        request.message(subsystem(GETGEN), ACK, self.next(), &[0; 4]);
        self.socket.request(&request, |message| {
            generation = generation.or(message.payload.get(4..).and_then(|a| attribute(a, GEN_ID)).and_then(be32));
        })?;
        generation.ok_or_else(|| io::Error::other("nf_tables does not tell its generation"))
    }

    /// Whether a table exists.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn has_table(&mut self, family: TableFamily, table: &str) -> io::Result<bool> {
        let mut request = Buffer::new();
        request.message(subsystem(GETTABLE), ACK, self.next(), &family.header());
        request.text(TABLE_NAME, table);
        found(self.socket.request(&request, |_| {}))
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

/// Turns "no such object" into `false`.
fn found(outcome: io::Result<()>) -> io::Result<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
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
