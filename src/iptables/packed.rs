//! A Service's rules in shared chains as they are kept: what a rule has in common with the one before it is kept once.
//! Rules must be quoted to be taken out, and there may be hundreds of thousands.
//!
//! Must not know what the rules mean.

use super::count::Count;
use super::shared::{Shared, Table};

/// Bytes of what stands before a rule's text: its chain, how much it shares with the rule before, and the length of the
/// rest.
const HEADER: usize = 2 + 2 + 2;

/// Rules, without `-A` and the chain's name, each with its chain.
#[derive(Default)]
pub struct Packed(Box<[u8]>);

// === impl Packed ===

impl Packed {
    /// Packs rules.
    pub fn of(rules: &[(Shared, String)]) -> Self {
        let mut bytes = Vec::with_capacity(rules.iter().map(|(_, rule)| HEADER + rule.len()).sum());
        let mut last = "";
        for (shared, rule) in rules {
            let same = common(last, rule);
            let rest = &rule[same..];
            bytes.extend(shared.code());
            // No rule comes near 64 kB: the tools refuse lines of more than 10 kB.
            bytes.extend((same as u16).to_ne_bytes());
            bytes.extend((rest.len() as u16).to_ne_bytes());
            bytes.extend(rest.as_bytes());
            last = rule;
        }
        Self(bytes.into())
    }

    /// Calls `each` with every rule, in order.
    pub fn for_each(&self, mut each: impl FnMut(Shared, &str)) {
        let mut rule = String::new();
        for (shared, same, rest) in self.parts() {
            rule.truncate(same);
            rule.push_str(std::str::from_utf8(rest).unwrap_or_default());
            each(shared, &rule);
        }
    }

    /// The rules, in order.
    pub fn unpack(&self) -> Vec<(Shared, String)> {
        let mut rules = Vec::new();
        self.for_each(|shared, rule| rules.push((shared, rule.to_owned())));
        rules
    }

    /// The chain of each, in order.
    pub fn chains(&self) -> impl Iterator<Item = Shared> {
        self.parts().map(|(shared, ..)| shared)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn count(&self) -> Count {
        let mut count = Count::default();
        self.chains().for_each(|shared| *count.of(shared.table()) += 1);
        count
    }

    /// Whether any is in this table.
    pub fn has(&self, table: Table) -> bool {
        self.chains().any(|shared| shared.table() == table)
    }

    fn parts(&self) -> impl Iterator<Item = (Shared, usize, &[u8])> {
        let mut bytes = &*self.0;
        std::iter::from_fn(move || {
            let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
            let [a, b, c, d, e, f] = *header;
            let (text, rest) = rest.split_at_checked(u16::from_ne_bytes([e, f]).into())?;
            bytes = rest;
            Some((Shared::of_code([a, b])?, u16::from_ne_bytes([c, d]).into(), text))
        })
    }
}

/// How many bytes two texts have in common at their beginning.
fn common(a: &str, b: &str) -> usize {
    let (blocks, other) = (a.as_bytes().as_chunks::<16>().0, b.as_bytes().as_chunks::<16>().0);
    let equal = 16 * blocks.iter().zip(other).take_while(|(a, b)| a == b).count();
    let rest = a.bytes().skip(equal).zip(b.bytes().skip(equal));
    let same = equal + rest.take_while(|(a, b)| a == b).count();
    (0..=same).rev().find(|&at| b.is_char_boundary(at)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_come_out_as_they_went_in() {
        let rule = |shared, rule: &str| (shared, rule.to_owned());
        let rules = vec![
            rule(Shared::of_endpoint(1, 2), "-d 10.96.0.1/32 -j DNAT --to-destination 10.244.0.1:80"),
            rule(Shared::of_endpoint(2, 2), "-d 10.96.0.1/32 -j DNAT --to-destination 10.244.0.10:80"),
            rule(Shared::Services, ""),
            rule(Shared::HealthPorts, "\u{e4}\u{e4}"),
            rule(Shared::Services, "\u{e4}\u{eb}"),
            rule(Shared::Refused, "-d 10.96.0.1/32"),
        ];
        let packed = Packed::of(&rules);
        assert_eq!(packed.unpack(), rules);
        assert_eq!(packed.count(), Count { nat: 4, filter: 2 });
        assert!(packed.has(Table::Filter) && !Packed::of(&rules[..3]).has(Table::Filter));
        assert!(Packed::default().is_empty() && !packed.is_empty());
        assert!(packed.0.len() < 140, "the second begins as the first does: {}", packed.0.len());
    }
}
