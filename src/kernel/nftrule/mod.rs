//! Rules: from the vocabulary of the `nftables` crate to the expressions that nf_tables runs.
//!
//! Compiles the subset that our rules are written in, to the same expressions that `nft` makes of it (a test holds the
//! two side by side). Anything else is refused with a message; nothing is guessed.

mod expressions;

use std::fmt;
use std::net::IpAddr;

use nftables::expr::{
    BinaryOperation, CT, Expression, Fib, FibFlag, FibResult, Map, Meta, MetaKey, NamedExpression, NgMode, Numgen,
    Payload, PayloadField, Prefix,
};
use nftables::stmt::{Mangle, Match, NAT, NATFamily, NATFlag, Operator, Reject, SetOp, Statement, VerdictMap};

use crate::kernel::netlink::Buffer;
use expressions::*;

/// A step of a rule.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A statement of the crate.
    Statement(Statement<'static>),
    /// A change of a dynamic map by the packet, which the crate cannot say.
    Learn(Learn),
}

/// `update @map { key timeout T : data }` and its relatives.
#[derive(Clone, Debug, PartialEq)]
pub struct Learn {
    /// What to do.
    pub action: LearnAction,
    /// The dynamic map.
    pub map: &'static str,
    /// Key of the element.
    pub key: Expression<'static>,
    /// Its value.
    pub data: Expression<'static>,
}

/// What a packet does to a dynamic map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LearnAction {
    /// Adds the element, for so many seconds; nothing happens if it is there.
    Add(u32),
    /// Adds it or restarts its timeout.
    Update(u32),
    /// Removes it.
    Delete,
}

/// Something that is not in the subset that is compiled.
#[derive(Debug, PartialEq, Eq)]
pub struct Unsupported(String);

/// What an expression leaves in the registers.
#[derive(Clone, Copy)]
struct Loaded {
    /// Bytes, without padding.
    length: u32,
    /// Numbers are kept in the byte order of this machine, addresses and ports in that of the network.
    host_order: bool,
}

type Outcome<T = ()> = Result<T, Unsupported>;

fn unsupported<T>(what: impl fmt::Debug) -> Outcome<T> {
    Err(Unsupported(format!("{what:?}")))
}

/// Compiles the steps of one rule into `b`.
///
/// # Errors
/// When a step is outside the subset.
pub fn compile(b: &mut Buffer, steps: &[Step]) -> Result<(), Unsupported> {
    steps.iter().try_for_each(|step| match step {
        Step::Statement(statement) => compile_statement(b, statement),
        Step::Learn(learn) => compile_learn(b, learn),
    })
}

fn compile_statement(b: &mut Buffer, statement: &Statement<'_>) -> Outcome {
    match statement {
        Statement::Match(matching) => compile_match(b, matching),
        Statement::Mangle(Mangle { key: Expression::Named(NamedExpression::Meta(Meta { key })), value }) => {
            load(b, value, Word(0))?;
            expression(b, "meta", |b| {
                b.be32(2, meta_key(*key)?.0);
                b.be32(3, Word(0).register());
                Ok(())
            })
        }
        Statement::VerdictMap(VerdictMap { key, data }) => {
            load(b, key, Word(0))?;
            lookup(b, set_name(data)?, Some(REG_VERDICT), false)
        }
        Statement::DNAT(Some(nat)) => compile_dnat(b, nat),
        Statement::Masquerade(nat) => {
            let random =
                nat.as_ref().and_then(|nat| nat.flags.as_ref()).is_some_and(|f| f.contains(&NATFlag::FullyRandom));
            expression(b, "masq", |b| {
                if random {
                    b.be32(1, 0x10); // NF_NAT_RANGE_PROTO_RANDOM_FULLY
                }
                Ok(())
            })
        }
        Statement::Reject(Some(reject)) => compile_reject(b, reject),
        Statement::Set(set) if set.op == SetOp::Add => unsupported("add to a set: use Learn"),
        Statement::Accept(_) => verdict(b, NF_ACCEPT, None),
        Statement::Drop(_) => verdict(b, NF_DROP, None),
        Statement::Return(_) => verdict(b, NFT_RETURN, None),
        Statement::Jump(target) => verdict(b, NFT_JUMP, Some(&target.target)),
        Statement::Goto(target) => verdict(b, NFT_GOTO, Some(&target.target)),
        other => unsupported(other),
    }
}

fn compile_match(b: &mut Buffer, matching: &Match<'_>) -> Outcome {
    let equal = match matching.op {
        Operator::EQ | Operator::IN => true,
        Operator::NEQ => false,
        other => return unsupported(other),
    };
    match &matching.right {
        Expression::String(name) if name.starts_with('@') => {
            load(b, &matching.left, Word(0))?;
            lookup(b, &name[1..], None, !equal)
        }
        Expression::Named(NamedExpression::Prefix(prefix)) => compare_prefix(b, &matching.left, prefix, equal),
        // `ct state new`, `ct status dnat`: one of the bits is set.
        Expression::String(flag) if matching.op == Operator::IN => {
            let bit = ct_bit(flag)?;
            load(b, &matching.left, Word(0))?;
            bitwise(b, Word(0), bit, 0);
            compare(b, false, &0u32.to_ne_bytes());
            Ok(())
        }
        right => {
            let loaded = load(b, &matching.left, Word(0))?;
            compare(b, equal, &constant(right, loaded)?);
            Ok(())
        }
    }
}

/// Whole bytes are compared by loading just those; else the rest is masked out.
fn compare_prefix(b: &mut Buffer, left: &Expression<'_>, prefix: &Prefix<'_>, equal: bool) -> Outcome {
    let Expression::String(address) = &*prefix.addr else { return unsupported(prefix) };
    let Ok(address) = address.parse::<IpAddr>() else { return unsupported(prefix) };
    let bytes = octets(address);
    let Expression::Named(NamedExpression::Payload(Payload::PayloadField(field))) = left else {
        return unsupported(left);
    };
    let (base, offset, length) = payload_place(field)?;
    if prefix.len.is_multiple_of(8) && prefix.len > 0 {
        let whole = prefix.len / 8;
        payload(b, base, offset, whole, Word(0));
        compare(b, equal, &bytes[..whole as usize]);
        return Ok(());
    }
    payload(b, base, offset, length, Word(0));
    let mask: Vec<u8> =
        (0..length).map(|byte| (0xff00u32 >> prefix.len.saturating_sub(byte * 8).min(8)) as u8).collect();
    bitwise_bytes(b, Word(0), &mask, &vec![0; length as usize]);
    compare(b, equal, &bytes);
    Ok(())
}

fn compile_dnat(b: &mut Buffer, nat: &NAT<'_>) -> Outcome {
    let (Some(address), Some(family)) = (&nat.addr, nat.family) else { return unsupported(nat) };
    load(b, address, Word(0))?;
    let (family, port) = match family {
        NATFamily::IP => (2, Word(1)),
        NATFamily::IP6 => (10, Word(4)),
    };
    expression(b, "nat", |b| {
        b.be32(1, 1); // NFT_NAT_DNAT
        b.be32(2, family);
        b.be32(3, Word(0).register());
        b.be32(5, port.register());
        b.be32(7, 0x3); // NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED
        Ok(())
    })
}

/// Port unreachable, as `reject` without arguments.
fn compile_reject(b: &mut Buffer, reject: &Reject) -> Outcome {
    use nftables::stmt::RejectType;
    use nftables::types::RejectCode;
    let code: u8 = match (reject._type, reject.expr) {
        (Some(RejectType::ICMP), Some(RejectCode::PortUnreach)) => 3,
        (Some(RejectType::ICMPv6), Some(RejectCode::PortUnreach)) => 4,
        _ => return unsupported(reject),
    };
    expression(b, "reject", |b| {
        b.be32(1, 0); // NFT_REJECT_ICMP_UNREACH
        b.attr(2, &[code]);
        Ok(())
    })
}

fn compile_learn(b: &mut Buffer, learn: &Learn) -> Outcome {
    let key = load(b, &learn.key, Word(0))?;
    // nft rounds the key up to a 16-byte register before it places the data.
    let data = Word(key.length.div_ceil(16) * 4);
    load(b, &learn.data, data)?;
    let (operation, seconds) = match learn.action {
        LearnAction::Add(seconds) => (0u32, seconds),
        LearnAction::Update(seconds) => (1, seconds),
        LearnAction::Delete => (2, 0),
    };
    expression(b, "dynset", |b| {
        b.text(1, learn.map);
        b.be32(3, operation);
        b.be32(4, Word(0).register());
        b.be32(5, data.register());
        if seconds > 0 {
            b.be64(6, u64::from(seconds) * 1000);
        }
        Ok(())
    })
}

/// Loads a value into the registers from `at` on.
fn load(b: &mut Buffer, value: &Expression<'_>, at: Word) -> Outcome<Loaded> {
    match value {
        Expression::Named(NamedExpression::Payload(Payload::PayloadField(field))) => {
            let (base, offset, length) = payload_place(field)?;
            payload(b, base, offset, length, at);
            Ok(Loaded { length, host_order: false })
        }
        Expression::Named(NamedExpression::Meta(Meta { key })) => {
            let (number, length) = meta_key(*key)?;
            expression(b, "meta", |b| {
                b.be32(2, number);
                b.be32(1, at.register());
                Ok(())
            })?;
            Ok(Loaded { length, host_order: true })
        }
        Expression::Named(NamedExpression::CT(CT { key, .. })) => {
            let number = match &**key {
                "state" => 0,
                "status" => 2,
                other => return unsupported(other),
            };
            expression(b, "ct", |b| {
                b.be32(2, number);
                b.be32(1, at.register());
                Ok(())
            })?;
            Ok(Loaded { length: 4, host_order: true })
        }
        Expression::Named(NamedExpression::Fib(fib)) => load_fib(b, fib, at),
        Expression::Named(NamedExpression::Numgen(numgen)) => load_numgen(b, numgen, at),
        Expression::Named(NamedExpression::Concat(parts)) => {
            let mut length = 0;
            for part in parts {
                let loaded = load(b, part, Word(at.0 + length / 4))?;
                length += loaded.length.next_multiple_of(4);
            }
            Ok(Loaded { length, host_order: false })
        }
        Expression::Named(NamedExpression::Map(map)) => {
            let Map { key, data } = &**map;
            load(b, key, at)?;
            lookup(b, set_name(data)?, Some(at.register()), false)?;
            Ok(Loaded { length: 4, host_order: true })
        }
        Expression::BinaryOperation(operation) => {
            let (left, mask, xor) = match &**operation {
                BinaryOperation::AND(left, mask) => (left, number(mask)?, 0),
                BinaryOperation::XOR(left, Expression::Number(bits)) => (left, u32::MAX, *bits),
                BinaryOperation::OR(parts) => match &parts[..] {
                    [left, Expression::Number(bits)] => (left, !*bits, *bits),
                    _ => return unsupported(parts),
                },
                other => return unsupported(other),
            };
            let loaded = load(b, left, at)?;
            bitwise(b, at, mask, xor);
            Ok(loaded)
        }
        constant => {
            let number = number(constant)?;
            expression(b, "immediate", |b| {
                b.be32(1, at.register());
                b.nest(2, |b| b.attr(DATA_VALUE, &number.to_ne_bytes()));
                Ok(())
            })?;
            Ok(Loaded { length: 4, host_order: true })
        }
    }
}

/// A number, or a class id as nft writes it: `f:ffff`, `none`.
fn number(value: &Expression<'_>) -> Outcome<u32> {
    let parsed = match value {
        Expression::Number(number) => Some(*number),
        Expression::String(text) if text == "none" => Some(0),
        Expression::String(text) => text.split_once(':').and_then(|(major, minor)| {
            let half = |text| u32::from_str_radix(text, 16).ok().filter(|half| *half <= 0xffff);
            Some(half(major)? << 16 | half(minor)?)
        }),
        _ => None,
    };
    parsed.map_or_else(|| unsupported(value), Ok)
}

fn load_fib(b: &mut Buffer, fib: &Fib, at: Word) -> Outcome<Loaded> {
    if fib.result != FibResult::Type {
        return unsupported(fib);
    }
    let flags = fib.flags.iter().try_fold(0, |flags, flag| match flag {
        FibFlag::Saddr => Ok(flags | 1),
        FibFlag::Daddr => Ok(flags | 2),
        other => unsupported(other),
    })?;
    expression(b, "fib", |b| {
        b.be32(3, flags);
        b.be32(2, 3); // NFT_FIB_RESULT_ADDRTYPE
        b.be32(1, at.register());
        Ok(())
    })?;
    Ok(Loaded { length: 4, host_order: true })
}

fn load_numgen(b: &mut Buffer, numgen: &Numgen, at: Word) -> Outcome<Loaded> {
    if numgen.mode != NgMode::Random {
        return unsupported(numgen);
    }
    expression(b, "numgen", |b| {
        b.be32(1, at.register());
        b.be32(2, numgen.ng_mod);
        b.be32(3, 1); // NFT_NG_RANDOM
        b.be32(4, numgen.offset.unwrap_or(0));
        Ok(())
    })?;
    Ok(Loaded { length: 4, host_order: true })
}

/// Where a field is: base, offset and length in bytes.
fn payload_place(field: &PayloadField<'_>) -> Outcome<(u32, u32, u32)> {
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    Ok(match (&*field.protocol, &*field.field) {
        ("ip", "saddr") => (NETWORK, 12, 4),
        ("ip", "daddr") => (NETWORK, 16, 4),
        ("ip6", "saddr") => (NETWORK, 8, 16),
        ("ip6", "daddr") => (NETWORK, 24, 16),
        ("th", "dport") => (TRANSPORT, 2, 2),
        _ => return unsupported(field),
    })
}

fn meta_key(key: MetaKey) -> Outcome<(u32, u32)> {
    Ok(match key {
        MetaKey::Priority => (2, 4),
        MetaKey::Mark => (3, 4),
        MetaKey::Iifname => (6, 16),
        MetaKey::L4proto => (16, 1),
        other => return unsupported(other),
    })
}

fn ct_bit(flag: &str) -> Outcome<u32> {
    match flag {
        "new" => Ok(8),     // NF_CT_STATE_BIT(IP_CT_NEW)
        "dnat" => Ok(0x20), // IPS_DST_NAT
        other => unsupported(other),
    }
}

/// The bytes that a constant is compared as.
fn constant(value: &Expression<'_>, loaded: Loaded) -> Outcome<Vec<u8>> {
    match value {
        Expression::Number(number) if loaded.host_order => Ok(match loaded.length {
            1 => vec![*number as u8],
            _ => number.to_ne_bytes().to_vec(),
        }),
        Expression::String(text) => string_constant(text, loaded),
        other => unsupported(other),
    }
}

fn string_constant(text: &str, loaded: Loaded) -> Outcome<Vec<u8>> {
    const RTN_LOCAL: u32 = 2;
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(octets(address));
    }
    match (text, loaded.length) {
        ("local", 4) => Ok(RTN_LOCAL.to_ne_bytes().to_vec()),
        ("tcp", 1) => Ok(vec![6]),
        ("udp", 1) => Ok(vec![17]),
        ("sctp", 1) => Ok(vec![132]),
        // An interface name; a trailing asterisk means: that begins so.
        (name, 16) if name.len() < 16 => Ok(match name.strip_suffix('*') {
            Some(prefix) => prefix.as_bytes().to_vec(),
            None => {
                let mut padded = name.as_bytes().to_vec();
                padded.resize(16, 0);
                padded
            }
        }),
        _ => unsupported(text),
    }
}

fn set_name<'a>(reference: &'a Expression<'_>) -> Outcome<&'a str> {
    match reference {
        Expression::String(name) if name.starts_with('@') => Ok(&name[1..]),
        other => unsupported(other),
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

// === impl Step ===

impl From<Statement<'static>> for Step {
    fn from(statement: Statement<'static>) -> Self {
        Self::Statement(statement)
    }
}

// === impl Unsupported ===

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not in the subset of nftables that is compiled: {}", self.0)
    }
}

impl std::error::Error for Unsupported {}
