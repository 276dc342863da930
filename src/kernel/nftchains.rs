//! Chains with their rules, as a table of ours is made of them, and the keys that our tables share.

use super::nftables::{Batch, Field, Hook};
use super::nftrule::{self, Step};

/// An address; by family, IPv4 first, as all of these.
pub const ADDRESS: [&[Field]; 2] = [&[Field::Ipv4Addr], &[Field::Ipv6Addr]];
/// Two addresses.
pub const PAIR: [&[Field]; 2] = [&[Field::Ipv4Addr, Field::Ipv4Addr], &[Field::Ipv6Addr, Field::Ipv6Addr]];
/// Address, protocol and port.
pub const VIP: [&[Field]; 2] = [
    &[Field::Ipv4Addr, Field::InetProto, Field::InetService],
    &[Field::Ipv6Addr, Field::InetProto, Field::InetService],
];
/// Address, protocol, port, and who comes there.
pub const VIP_AND_SOURCE: [&[Field]; 2] = [
    &[Field::Ipv4Addr, Field::InetProto, Field::InetService, Field::Ipv4Addr],
    &[Field::Ipv6Addr, Field::InetProto, Field::InetService, Field::Ipv6Addr],
];
/// Protocol and port.
pub const PORT: &[Field] = &[Field::InetProto, Field::InetService];

/// A chain with its rules.
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// Where it hooks in, for base chains.
    pub hook: Option<Hook>,
    /// Its rules.
    pub rules: Vec<Vec<Step>>,
}

/// Adds chains, or empties those that are there, and fills them with their rules. Chains may refer to each other.
pub fn add_chains(batch: &mut Batch, chains: &[Chain]) {
    for chain in chains {
        batch.add_chain(chain.name, chain.hook, "");
    }
    for chain in chains {
        batch.flush_chain(chain.name);
        add_rules(batch, chain.name, &chain.rules);
    }
}

/// Adds rules at the end of a chain.
///
/// # Panics
/// When a rule is outside the subset that is compiled: a mistake in the program, which tests of every layout rule out.
pub fn add_rules(batch: &mut Batch, chain: &str, rules: &[Vec<Step>]) {
    for rule in rules {
        batch.add_rule(chain, |buffer| nftrule::compile(buffer, rule).expect("tests compile every rule of a layout"));
    }
}
