//! nf_tables over netlink (`linux/netfilter/nf_tables.h`): transactions that change tables, and dumps that read them.
//!
//! Knows how tables, chains, sets and elements are spelled in messages; what is in them is for the callers. Rules come
//! compiled from [`super::nftrule`].

mod batch;
mod door;
mod set;

pub use batch::{Batch, Element, Hook, Value};
pub use door::{CommitError, Nftables, ReadElement, ReadRule, is_absent};
pub use set::{Data, Field, ReadSet, SetSpec};

/// `ip` or `ip6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TableFamily {
    /// `NFPROTO_IPV4`.
    Ip = 2,
    /// `NFPROTO_IPV6`.
    Ip6 = 10,
}

const NFNL_SUBSYS_NFTABLES: u16 = 10;

const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_USE: u16 = 6;
const CHAIN_HOOK: u16 = 4;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_DATA_TYPE: u16 = 6;
const SET_EXPR: u16 = 17;
const ELEM_LIST_TABLE: u16 = 1;
const ELEM_LIST_SET: u16 = 2;
const ELEM_LIST_ELEMENTS: u16 = 3;
const LIST_ELEM: u16 = 1;
const ELEM_KEY: u16 = 1;
const ELEM_DATA: u16 = 2;
const ELEM_FLAGS: u16 = 3;
const ELEM_KEY_END: u16 = 10;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CHAIN: u16 = 2;
const FLAG_CONCAT: u32 = 0x80;
const ELEMENT_INTERVAL_END: u32 = 0x1;

/// A message type of nf_tables, as nfnetlink numbers it.
const fn subsystem(message: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | message
}

// === impl TableFamily ===

impl TableFamily {
    fn header(self) -> [u8; 4] {
        [self as u8, 0, 0, 0]
    }
}
