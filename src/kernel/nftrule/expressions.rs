//! The expressions that nf_tables runs (`linux/netfilter/nf_tables.h`), one function each.
//!
//! Spelling only: which expressions a rule needs is decided by the compiler beside it.

use super::Outcome;
use crate::kernel::netlink::Buffer;

const LIST_ELEM: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
pub(super) const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
pub(super) const REG_VERDICT: u32 = 0;
pub(super) const NF_DROP: i32 = 0;
pub(super) const NF_ACCEPT: i32 = 1;
pub(super) const NFT_JUMP: i32 = -3;
pub(super) const NFT_GOTO: i32 = -4;
pub(super) const NFT_RETURN: i32 = -5;

/// A value occupies words of 4 bytes from this one on; word 0 is the first that a rule may use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Word(pub(super) u32);

pub(super) fn payload(b: &mut Buffer, base: u32, offset: u32, length: u32, at: Word) {
    simple(b, "payload", |b| {
        b.be32(1, at.register());
        b.be32(2, base);
        b.be32(3, offset);
        b.be32(4, length);
    });
}

pub(super) fn lookup(b: &mut Buffer, set: &str, destination: Option<u32>, inverted: bool) -> Outcome {
    expression(b, "lookup", |b| {
        b.text(1, set);
        b.be32(2, Word(0).register());
        if let Some(destination) = destination {
            b.be32(3, destination);
        }
        if inverted {
            b.be32(5, 1); // NFT_LOOKUP_F_INV
        }
        Ok(())
    })
}

pub(super) fn bitwise(b: &mut Buffer, at: Word, mask: u32, xor: u32) {
    bitwise_bytes(b, at, &mask.to_ne_bytes(), &xor.to_ne_bytes());
}

pub(super) fn bitwise_bytes(b: &mut Buffer, at: Word, mask: &[u8], xor: &[u8]) {
    simple(b, "bitwise", |b| {
        b.be32(1, at.register());
        b.be32(2, at.register());
        b.be32(3, mask.len() as u32);
        b.nest(4, |b| b.attr(DATA_VALUE, mask));
        b.nest(5, |b| b.attr(DATA_VALUE, xor));
    });
}

pub(super) fn compare(b: &mut Buffer, equal: bool, bytes: &[u8]) {
    simple(b, "cmp", |b| {
        b.be32(1, Word(0).register());
        b.be32(2, u32::from(!equal));
        b.nest(3, |b| b.attr(DATA_VALUE, bytes));
    });
}

pub(super) fn verdict(b: &mut Buffer, code: i32, chain: Option<&str>) -> Outcome {
    expression(b, "immediate", |b| {
        b.be32(1, REG_VERDICT);
        b.nest(2, |b| {
            b.nest(DATA_VERDICT, |b| {
                b.be32(VERDICT_CODE, code as u32);
                if let Some(chain) = chain {
                    b.text(VERDICT_CHAIN, chain);
                }
            });
        });
        Ok(())
    })
}

pub(super) fn simple(b: &mut Buffer, name: &str, data: impl FnOnce(&mut Buffer)) {
    b.nest(LIST_ELEM, |b| {
        b.text(EXPR_NAME, name);
        b.nest(EXPR_DATA, data);
    });
}

pub(super) fn expression(b: &mut Buffer, name: &str, data: impl FnOnce(&mut Buffer) -> Outcome) -> Outcome {
    let mut outcome = Ok(());
    simple(b, name, |b| outcome = data(b));
    outcome
}

// === impl Word ===

impl Word {
    /// Registers of 16 bytes are numbered from 1, those of 4 bytes from 8; like nft, the former where it begins one.
    pub(super) fn register(self) -> u32 {
        if self.0.is_multiple_of(4) { 1 + self.0 / 4 } else { 8 + self.0 }
    }
}
