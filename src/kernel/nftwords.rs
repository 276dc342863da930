//! Short names for the `nftables` crate's vocabulary, so that rules read like nft's own text.
//!
//! Says how things are spelled, never what the rules are.

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::IpNet;
use nftables::expr::{
    BinaryOperation, CT, Expression, Fib, FibFlag, FibResult, Map, Meta, MetaKey, NamedExpression, NgMode, Numgen,
    Payload, PayloadField, Prefix,
};
use nftables::stmt::{
    JumpTarget, Mangle, Match, NAT, NATFamily, NATFlag, Operator, Reject, RejectType, Statement, VerdictMap,
};
use nftables::types::RejectCode;

use super::nftables::TableFamily;
use super::nftrule::{Learn, LearnAction, Step};

/// An expression that lives as long as the program cares.
pub type Value = Expression<'static>;

/// A field of a packet header: `ip daddr`.
pub fn field(protocol: &'static str, field: &'static str) -> Value {
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(PayloadField {
        protocol: protocol.into(),
        field: field.into(),
    })))
}

/// `meta KEY`.
pub fn meta(key: MetaKey) -> Value {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

/// `A . B`.
pub fn concat<const N: usize>(parts: [Value; N]) -> Value {
    Expression::Named(NamedExpression::Concat(parts.into()))
}

/// `numgen random mod N offset O`.
pub fn random(modulus: u32, offset: u32) -> Value {
    Expression::Named(NamedExpression::Numgen(Numgen { mode: NgMode::Random, ng_mod: modulus, offset: Some(offset) }))
}

/// `KEY map @NAME`.
pub fn map(key: Value, name: &str) -> Value {
    Expression::Named(NamedExpression::Map(Box::new(Map { key, data: reference(name) })))
}

/// `VALUE & MASK`.
pub fn and(value: Value, mask: Value) -> Value {
    Expression::BinaryOperation(Box::new(BinaryOperation::AND(value, mask)))
}

/// `VALUE | BITS`.
pub fn or(value: Value, bits: u32) -> Value {
    Expression::BinaryOperation(Box::new(BinaryOperation::OR(vec![value, Expression::Number(bits)])))
}

/// `VALUE ^ BITS`.
pub fn xor(value: Value, bits: u32) -> Value {
    Expression::BinaryOperation(Box::new(BinaryOperation::XOR(value, Expression::Number(bits))))
}

/// `LEFT == RIGHT`.
pub fn is(left: Value, right: Value) -> Step {
    comparison(left, Operator::EQ, right)
}

/// `LEFT != RIGHT`.
pub fn is_not(left: Value, right: Value) -> Step {
    comparison(left, Operator::NEQ, right)
}

/// `KEY @NAME`.
pub fn is_in(key: Value, name: &str) -> Step {
    comparison(key, Operator::EQ, reference(name))
}

/// `KEY != @NAME`.
pub fn is_not_in(key: Value, name: &str) -> Step {
    comparison(key, Operator::NEQ, reference(name))
}

/// `ct state new`.
pub fn is_new() -> Step {
    comparison(conntrack("state"), Operator::IN, text("new"))
}

/// `ct status dnat`.
pub fn is_dnatted() -> Step {
    comparison(conntrack("status"), Operator::IN, text("dnat"))
}

/// `fib daddr type local`.
pub fn destination_is_local() -> Step {
    address_type_is_local(FibFlag::Daddr)
}

/// `fib saddr type local`.
pub fn source_is_local() -> Step {
    address_type_is_local(FibFlag::Saddr)
}

/// `meta KEY set VALUE`.
pub fn set(key: MetaKey, value: Value) -> Step {
    Statement::Mangle(Mangle { key: meta(key), value }).into()
}

/// `KEY vmap @NAME`.
pub fn vmap(key: Value, name: &str) -> Step {
    Statement::VerdictMap(VerdictMap { key, data: reference(name) }).into()
}

/// `jump CHAIN`.
pub fn jump(chain: &'static str) -> Step {
    Statement::Jump(JumpTarget { target: chain.into() }).into()
}

/// `goto CHAIN`.
pub fn goto(chain: &'static str) -> Step {
    Statement::Goto(JumpTarget { target: chain.into() }).into()
}

/// `accept`.
pub fn accept() -> Step {
    Statement::Accept(None).into()
}

/// `drop`.
pub fn drop() -> Step {
    Statement::Drop(None).into()
}

/// `reject`: port unreachable.
pub fn reject(family: TableFamily) -> Step {
    let kind = match family {
        TableFamily::Ip => RejectType::ICMP,
        TableFamily::Ip6 => RejectType::ICMPv6,
    };
    Statement::Reject(Some(Reject::new(Some(kind), Some(RejectCode::PortUnreach)))).into()
}

/// `masquerade fully-random`.
pub fn masquerade() -> Step {
    let flags = Some([NATFlag::FullyRandom].into());
    Statement::Masquerade(Some(NAT { addr: None, family: None, port: None, flags })).into()
}

/// `dnat ip to ADDRESS-AND-PORT`.
pub fn dnat(family: TableFamily, to: Value) -> Step {
    let family = match family {
        TableFamily::Ip => NATFamily::IP,
        TableFamily::Ip6 => NATFamily::IP6,
    };
    Statement::DNAT(Some(NAT { addr: Some(to), family: Some(family), port: None, flags: None })).into()
}

/// `ACTION @MAP { KEY : DATA }`.
pub fn learn(action: LearnAction, map: &'static str, key: Value, data: Value) -> Step {
    Step::Learn(Learn { action, map, key, data })
}

/// A constant: an address, an interface name, a flag.
pub fn text(value: impl Into<Cow<'static, str>>) -> Value {
    Expression::String(value.into())
}

/// A constant number.
pub fn number(value: u32) -> Value {
    Expression::Number(value)
}

/// A constant of the kind that `meta priority` holds, as nft writes it.
pub fn classid(value: u32) -> Value {
    text(classid_text(value))
}

/// How nft writes a value of `meta priority`: two hexadecimal halves.
pub fn classid_text(value: u32) -> String {
    if value == 0 { "none".to_owned() } else { format!("{:x}:{:x}", value >> 16, value & 0xffff) }
}

/// `10.244.0.0/16`; a range of one host is written as its address, as nft does.
pub fn prefix(net: IpNet) -> Value {
    if net.prefix_len() == net.max_prefix_len() {
        return address(net.addr());
    }
    Expression::Named(NamedExpression::Prefix(Prefix {
        addr: Box::new(address(net.network())),
        len: net.prefix_len().into(),
    }))
}

fn address(address: IpAddr) -> Value {
    text(address.to_string())
}

fn reference(name: &str) -> Value {
    text(format!("@{name}"))
}

fn conntrack(key: &'static str) -> Value {
    Expression::Named(NamedExpression::CT(CT { key: key.into(), family: None, dir: None }))
}

fn address_type_is_local(flag: FibFlag) -> Step {
    let kind = Expression::Named(NamedExpression::Fib(Fib { result: FibResult::Type, flags: [flag].into() }));
    comparison(kind, Operator::EQ, text("local"))
}

fn comparison(left: Value, op: Operator, right: Value) -> Step {
    Statement::Match(Match { left, right, op }).into()
}
