//! Transactions: what is to change, as messages of one batch (nfnetlink).

use super::set::comment_data;
use super::*;
use crate::kernel::netlink::{ACK, APPEND, Buffer, CREATE};

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_BATCH_GENID: u16 = 1;
const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const DELSETELEM: u16 = 14;
const TABLE_USERDATA: u16 = 6;
const CHAIN_TYPE: u16 = 7;
const CHAIN_USERDATA: u16 = 12;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const SET_KEY_LEN: u16 = 5;
const SET_DATA_LEN: u16 = 7;
const SET_DESC: u16 = 9;
const SET_ID: u16 = 10;
const SET_TIMEOUT: u16 = 11;
const SET_USERDATA: u16 = 13;
const SET_DESC_SIZE: u16 = 1;
const SET_DESC_CONCAT: u16 = 2;
const SET_FIELD_LEN: u16 = 1;
const VERDICT_CODE: u16 = 1;
/// `NFT_GOTO`, as in `enum nft_verdicts`.
const VERDICT_GOTO: i32 = -4;
/// User data that nft keeps comments in: one type byte, one length byte, a NUL-terminated text.
const UDATA_COMMENT: u8 = 0;
/// One message must stay below netlink's 64 KiB for the element list.
const ELEMENT_LIST_LIMIT: usize = 60_000;

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

    /// Completes the transaction: its bytes, and the sequence number whose acknowledgement tells that all went well.
    /// Without its end, the kernel validates and answers it, and drops it.
    pub(super) fn seal(&mut self, with_end: bool) -> (&[u8], u32) {
        let last = self.sequence;
        // The end of the batch is not acknowledged before Linux 6.10 or so, the last real message always is.
        self.buffer.add_flags(ACK);
        if with_end {
            let [high, low] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
            self.buffer.message(NFNL_MSG_BATCH_END, 0, last + 1, &[0, 0, high, low]);
        }
        (self.buffer.bytes(), last)
    }

    /// Begins the next transaction on the same table.
    pub(super) fn restart(&mut self) {
        self.buffer.clear();
        self.begin(None);
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

    /// Removes a chain that nothing refers to.
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

    /// Removes one rule, which must be there.
    pub fn delete_rule(&mut self, chain: &str, handle: u64) {
        self.message(DELRULE, 0);
        self.buffer.text(RULE_TABLE, self.table);
        self.buffer.text(RULE_CHAIN, chain);
        self.buffer.be64(RULE_HANDLE, handle);
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
