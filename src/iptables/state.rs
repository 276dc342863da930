//! What is programmed of each Service, so that a change touches only what differs: names and fingerprints of its chains,
//! and its rules in shared chains, which must be quoted to be taken out.
//!
//! Turns differences into lines for `restore`; must not run them.

use std::fmt;

use crate::backend::Error;

use super::count::Count;
use super::held::Ordered;
use super::names::ChainName;
use super::packed::Packed;
use super::restore::{Section, Whose};
use super::rules::Rules;
use super::shape::Shape;
use super::shared::Table;

/// What is programmed of one Service.
#[derive(Default)]
pub struct Programmed {
    /// Its chains.
    pub chains: Box<[(ChainName, Ordered)]>,
    /// Its rules in shared chains.
    pub shared: Packed,
    /// How many endpoints its ports have.
    pub endpoints: usize,
    /// How many rules its chains have.
    pub rules: usize,
}

/// The transactions of a change, in an order that leaves no moment without a rule: what is to be refused is refused
/// before its translation goes, and is refused until its translation is there.
pub struct Script {
    /// Refusals that appear, translations, refusals that disappear.
    pub sections: [Section; 3],
    /// Rules added and removed.
    pub changes: usize,
    /// Rules added.
    pub written: Count,
}

const APPEARING: usize = 0;
const TRANSLATION: usize = 1;
const DISAPPEARING: usize = 2;

// === impl Programmed ===

impl Programmed {
    /// What these rules are once they are programmed.
    pub fn of(rules: &Rules) -> Self {
        Self {
            chains: rules.chains.iter().map(|chain| (chain.name, Ordered::of(rules.text(chain)))).collect(),
            shared: Packed::of(&rules.shared),
            endpoints: rules.endpoints,
            rules: rules.chains.iter().map(|chain| rules.text(chain).lines().count()).sum(),
        }
    }

    /// How many rules it has.
    pub fn count(&self) -> Count {
        let shared = self.shared.count();
        Count { nat: self.rules + shared.nat, ..shared }
    }
}

// === impl Script ===

impl Script {
    /// Nothing to do yet.
    pub fn new() -> Result<Self, Error> {
        let section = |table| Section::new(table).map(Section::adding);
        let sections = [section(Table::Filter)?, section(Table::Nat)?, section(Table::Filter)?];
        Ok(Self { sections, changes: 0, written: Count::default() })
    }

    /// How many lines it has.
    pub fn lines(&self) -> usize {
        self.sections.iter().map(Section::lines).sum()
    }

    /// Adds what leads from one state of a Service to another.
    pub fn change(
        &mut self,
        shape: &Shape,
        owner: u32,
        old: &Programmed,
        new: &Programmed,
        rules: &Rules,
    ) -> Result<(), Error> {
        self.sections.iter_mut().for_each(|section| section.own(Whose::Service(owner)));
        let nat = &mut self.sections[TRANSLATION];
        for ((name, print), chain) in new.chains.iter().zip(&rules.chains) {
            if !old.chains.contains(&(*name, *print)) {
                let written = write_chain(nat, rules, chain)?;
                self.changes += written;
                self.written.nat += written;
            }
        }
        let old_shared = old.shared.unpack();
        // Reversed, because each goes before the others: rules for the same address keep their order.
        for (shared, rule) in rules.shared.iter().rev().filter(|added| !old_shared.contains(added)) {
            let section = if shared.table() == Table::Nat { TRANSLATION } else { APPEARING };
            let place = shape.head(*shared).len() + 1;
            self.sections[section].add(&format!("-I {} {place} {rule}\n", shared.name()))?;
            self.changes += 1;
            *self.written.of(shared.table()) += 1;
        }
        for (shared, rule) in old_shared.iter().filter(|removed| !rules.shared.contains(removed)) {
            let section = if shared.table() == Table::Nat { TRANSLATION } else { DISAPPEARING };
            self.sections[section].add(&format!("-D {} {rule}\n", shared.name()))?;
            self.changes += 1;
        }
        let stays = |name: &ChainName| new.chains.iter().any(|(other, _)| other == name);
        self.changes += remove_chains(
            &mut self.sections[TRANSLATION],
            old.chains.iter().map(|(name, _)| *name).filter(|n| !stays(n)),
        )?;
        Ok(())
    }

    /// Adds what takes a Service away when the change from `old` to `new` was refused in one of the sections: those
    /// before it are programmed.
    pub fn remove(&mut self, old: &Programmed, new: &Programmed, refused: usize) -> Result<(), Error> {
        let translated = if refused > TRANSLATION { new } else { old };
        let (old, new) = (old.shared.unpack(), new.shared.unpack());
        let appeared = new.iter().filter(|rule| refused > APPEARING && !old.contains(rule));
        let refusals = old.iter().chain(appeared).filter(|(shared, _)| shared.table() == Table::Filter);
        for (shared, rule) in refusals {
            self.sections[DISAPPEARING].add(&format!("-D {} {rule}\n", shared.name()))?;
            self.changes += 1;
        }
        for (shared, rule) in translated.shared.unpack().iter().filter(|(shared, _)| shared.table() == Table::Nat) {
            self.sections[TRANSLATION].add(&format!("-D {} {rule}\n", shared.name()))?;
            self.changes += 1;
        }
        let chains = translated.chains.iter().map(|(name, _)| *name);
        self.changes += remove_chains(&mut self.sections[TRANSLATION], chains)?;
        Ok(())
    }
}

/// Writes a chain, whatever it held before. Returns the number of rules.
pub fn write_chain(section: &mut Section, rules: &Rules, chain: &super::rules::Chain) -> Result<usize, Error> {
    let before = section.lines();
    section.add(&format!(":{} - [0:0]\n{}", chain.name, rules.text(chain)))?;
    Ok(section.lines() - before - 1)
}

/// Removes chains, which may refer to each other but to which nothing else does. Returns their number.
pub fn remove_chains(
    section: &mut Section,
    names: impl Iterator<Item = impl fmt::Display> + Clone,
) -> Result<usize, Error> {
    empty_chains(section, names.clone())?;
    remove_empty_chains(section, names)
}

/// Takes all rules out of chains, and makes those that are not there.
pub fn empty_chains(section: &mut Section, names: impl Iterator<Item = impl fmt::Display>) -> Result<(), Error> {
    for name in names {
        section.add(&format!(":{name} - [0:0]\n"))?;
    }
    Ok(())
}

/// Removes chains that are empty and to which nothing refers. Returns their number.
pub fn remove_empty_chains(
    section: &mut Section,
    names: impl Iterator<Item = impl fmt::Display>,
) -> Result<usize, Error> {
    let mut removed = 0;
    for name in names {
        section.add(&format!("-X {name}\n"))?;
        removed += 1;
    }
    Ok(removed)
}
