//! Whether our rules are still there, without reading them: nothing has to be looked at as long as nobody but us changed
//! a table, and the kernel tells that for free. So this may be asked every second.
//!
//! Must not run anything that takes long while nothing changes, nor mend what it finds.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use nix::sys::socket::AddressFamily;

use crate::kernel::nftables::{Nftables, TableFamily};
use crate::kernel::xtables::{self, Size};
use crate::model::Family;

use super::probe::{Tools, Variant};
use super::shared::{CANARY, Table};

/// What must be there: in a table's chain of the kernel, a rule that leads to one of ours.
const SIGNS: [(Table, &str, &str); 6] = [
    (Table::Nat, "PREROUTING", "KUBE-SERVICES"),
    (Table::Nat, "OUTPUT", "KUBE-SERVICES"),
    (Table::Nat, "POSTROUTING", "KUBE-POSTROUTING"),
    (Table::Filter, "INPUT", "KUBE-EXTERNAL-SERVICES"),
    (Table::Filter, "OUTPUT", "KUBE-SERVICES"),
    (Table::Filter, "FORWARD", "KUBE-FORWARD"),
];

/// How long to wait between looks at tables that only grow: one reads a whole table with the tool.
const PAUSE: Duration = Duration::from_secs(5);

/// A chain of so many rules is not read: it is used as often, which the kernel tells at once, though jumps to it count too.
const LONG: usize = 100;

/// A chain of ours that does not belong to one Service, and how many rules it has.
pub struct Filled {
    /// The table it is in.
    pub table: Table,
    /// Its name.
    pub chain: Cow<'static, str>,
    /// At least so many.
    pub rules: usize,
}

/// Looks on while others use iptables too.
pub struct Watch {
    family: Family,
    variant: Variant,
    /// Not there in the legacy variant.
    nft: Option<Nftables>,
    /// How things were when all was known to be there.
    known: Option<Stamp>,
    /// When signs were last looked for because others changed something, and found.
    looked: Option<Instant>,
}

/// Differs when somebody changed something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stamp {
    /// The number of transactions so far, whoever made them.
    Generation(u32),
    /// The sizes of the tables.
    Sizes([Size; Table::ALL.len()]),
}

// === impl Watch ===

impl Watch {
    /// Nothing is known yet.
    pub fn new(family: Family, variant: Variant) -> Self {
        let nft = if variant == Variant::Nft { Nftables::open().ok() } else { None };
        Self { family, variant, nft, known: None, looked: None }
    }

    /// Whether a table has nothing in it, so that it need not be read. `false` when that is not known.
    pub fn is_blank(&mut self, table: Table) -> bool {
        match (self.variant, &mut self.nft) {
            (Variant::Legacy, _) => xtables::size(domain(self.family), table.as_str()).is_ok_and(Size::is_blank),
            (Variant::Nft, Some(nft)) => nft.has_table(table_family(self.family), table.as_str()).is_ok_and(|is| !is),
            (Variant::Nft, None) => false,
        }
    }

    /// Whether nobody changed anything since all was known to be there. Ask before a change of our own, and tell
    /// [`Watch::changed`] afterwards.
    pub fn is_calm(&mut self) -> bool {
        let now = self.stamp();
        now.is_some() && self.known == now
    }

    /// We changed something ourselves. The next look is a close one where that is cheap, and where it was not calm before.
    pub fn changed(&mut self, was_calm: bool) {
        self.known = if was_calm && self.variant == Variant::Legacy { self.stamp() } else { None };
    }

    /// Whether our rules are there, as far as a look can tell: the jumps to ours, and as many rules as there should be in
    /// the chains that `filled` tells of when it is asked. Where a look costs a process, and tables only grew, which others
    /// make them do all the time, it may be put off for a few seconds.
    pub fn intact(&mut self, tools: Tools, filled: impl FnOnce() -> Vec<Filled>) -> bool {
        let now = self.stamp();
        if now.is_some() && now == self.known {
            return true;
        }
        let (suspects, only_grew) = suspects(self.known, now);
        if only_grew && self.looked.is_some_and(|at| at.elapsed() < PAUSE) {
            return true;
        }
        let filled = filled();
        let intact = suspects.into_iter().all(|table| self.shows_signs(tools, table, &filled));
        // Only looks that others cause are to be put off.
        self.looked = (intact && self.known.is_some()).then(Instant::now);
        self.known = if intact { now } else { None };
        intact
    }

    /// Whether the canary of the mangle table is there.
    pub fn has_canary(&mut self, tools: Tools) -> bool {
        match &mut self.nft {
            Some(nft) => nft.has_chain(table_family(self.family), Table::Mangle.as_str(), CANARY).unwrap_or(true),
            None => !matches!(tools.chain(Table::Mangle, CANARY), Ok(None)),
        }
    }

    fn shows_signs(&mut self, tools: Tools, table: Table, filled: &[Filled]) -> bool {
        let family = table_family(self.family);
        let signs = || SIGNS.into_iter().filter(|(of, ..)| *of == table);
        let filled = || filled.iter().filter(|filled| filled.table == table);
        match &mut self.nft {
            Some(nft) => {
                nft.has_chain(family, table.as_str(), CANARY).unwrap_or(true)
                    && signs().all(|(_, from, to)| nft.leads(family, table.as_str(), from, to).unwrap_or(true))
                    && filled().all(|Filled { chain, rules, .. }| {
                        let there = match *rules {
                            ..LONG => nft.rules_of(family, table.as_str(), chain),
                            _ => nft.uses(family, table.as_str(), chain),
                        };
                        there.map_or(true, |there| there >= *rules)
                    })
            }
            None => {
                let mut canary = table != Table::Mangle;
                let mut signs: Vec<_> = signs().collect();
                let mut missing: HashMap<&str, usize> = filled().map(|filled| (&*filled.chain, filled.rules)).collect();
                let read = tools.save(table, |line| {
                    canary |= line.strip_prefix(':').is_some_and(|chain| chain.split(' ').next() == Some(CANARY));
                    let Some(chain) = line.strip_prefix("-A ").and_then(|rule| rule.split(' ').next()) else { return };
                    if let Some(missing) = missing.get_mut(chain) {
                        *missing = missing.saturating_sub(1);
                    }
                    signs.retain(|(_, from, to)| *from != chain || !leads(line, to));
                });
                read.is_err() || canary && signs.is_empty() && missing.values().all(|rules| *rules == 0)
            }
        }
    }

    fn stamp(&mut self) -> Option<Stamp> {
        match (self.variant, &mut self.nft) {
            (Variant::Nft, nft) => nft.as_mut()?.generation().ok().map(Stamp::Generation),
            (Variant::Legacy, _) => {
                let [nat, filter, mangle] =
                    Table::ALL.map(|table| xtables::size(domain(self.family), table.as_str()).ok());
                Some(Stamp::Sizes([nat?, filter?, mangle?]))
            }
        }
    }
}

/// The tables that are not as they were known, and whether all of these only grew: then something was added, or all of it
/// was replaced by more, which happens rarely.
fn suspects(known: Option<Stamp>, now: Option<Stamp>) -> (Vec<Table>, bool) {
    let (Some(Stamp::Sizes(known)), Some(Stamp::Sizes(now))) = (known, now) else { return (Table::ALL.into(), false) };
    let changed = || Table::ALL.into_iter().zip(known.iter().zip(&now)).filter(|(_, (known, now))| known != now);
    let only_grew = changed().all(|(_, (known, now))| known.entries < now.entries);
    (changed().map(|(table, _)| table).collect(), only_grew)
}

fn leads(rule: &str, to: &str) -> bool {
    rule.rsplit_once(" -j ").is_some_and(|(_, target)| target == to)
}

/// The family as sockets have it.
pub fn domain(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// The family as nf_tables has it.
pub fn table_family(family: Family) -> TableFamily {
    match family {
        Family::V4 => TableFamily::Ip,
        Family::V6 => TableFamily::Ip6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_changed_is_suspect() {
        let sizes = |entries: [u32; 3]| {
            Some(Stamp::Sizes(entries.map(|entries| Size { entries, bytes: 100 * entries, hooks: 4 })))
        };
        let known = sizes([20, 30, 6]);
        for (now, expected) in [
            (sizes([21, 30, 6]), (vec![Table::Nat], true)),
            (sizes([21, 31, 6]), (vec![Table::Nat, Table::Filter], true)),
            (sizes([21, 29, 6]), (vec![Table::Nat, Table::Filter], false)),
            (sizes([20, 30, 5]), (vec![Table::Mangle], false)),
            (None, (Table::ALL.into(), false)),
        ] {
            assert_eq!(suspects(known, now), expected);
        }
        assert_eq!(suspects(None, known), (Table::ALL.into(), false));
        let Some(Stamp::Sizes(mut other)) = known else { unreachable!() };
        other[1].bytes += 8;
        assert_eq!(suspects(known, Some(Stamp::Sizes(other))), (vec![Table::Filter], false), "other rules, as many");
    }
}
