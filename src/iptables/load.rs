//! Programs everything: what the kernel holds is read, what differs is written, what is stale goes. Nothing is flushed that
//! is as it should be, so a restart changes nothing.
//!
//! A tool reads the text while it is written. Must not be used for changes: it looks at all Services.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::backend::{Error, Report};
use crate::plan::ServicePlan;

use super::count::Count;
use super::held::{Held, Ordered, Unordered};
use super::names::ChainName;
use super::restore::{self, Aside, Owner, Section, Whose};
use super::shape::{self, Shape};
use super::shared::{FIREWALL, Shared, Table};
use super::state::{self, Programmed};
use super::tap::Tap;
use super::{Iptables, Owners, rules};

/// How far a load has come.
#[derive(Default)]
struct Load {
    owners: Owners,
    /// Those that have rules in shared chains of the filter table: mostly few.
    filtered: Vec<Owner>,
    aside: Aside,
    report: Report,
    written: Count,
}

impl Iptables {
    /// Brings the kernel to exactly these Services. Nothing is known of them yet.
    pub(super) fn load(
        &mut self,
        shape: &Shape,
        services: &mut dyn Iterator<Item = ServicePlan>,
    ) -> Result<Report, Error> {
        let mut load = Load::default();
        let mut held = [self.held(Table::Nat)?, self.held(Table::Filter)?];
        // Asked now: once a tool reads what is written here, it may hold the lock that others wait for.
        let has_canary = !self.watch.is_blank(Table::Mangle) && self.watch.has_canary(self.tools);
        let mut nat = self.load_nat(shape, &mut held[0], services, &mut load)?;
        let draws = held[0].draws().filter(|_| !shape.is_drawn()).map(str::to_owned);
        let mut stale: Vec<String> = held[0].chains.keys().map(ChainName::to_string).chain(draws).collect();
        // The nft tool sorts the chains that a text names into a list, and looks for each from the list's beginning on.
        stale.sort_unstable_by(|one, other| other.cmp(one));
        nat.own(Whose::Once);
        state::empty_chains(&mut nat, stale.iter())?;
        let mut nat_jumps = next(Table::Nat, &mut nat)?;
        load.wrote(Table::Nat, jumps(&mut nat_jumps, &held[0])?);

        let mut filter = next(Table::Filter, &mut nat_jumps)?;
        load.fixed(&mut filter, shape, &held[1])?;
        self.load_shared(&mut filter, shape, &held[1], &mut load)?;
        let mut filter_jumps = next(Table::Filter, &mut filter)?;
        load.wrote(Table::Filter, jumps(&mut filter_jumps, &held[1])?);

        let mut mangle = next(Table::Mangle, &mut filter_jumps)?;
        if !has_canary {
            load.fixed(&mut mangle, shape, &Held::default())?;
        }
        let mut sections = [nat, nat_jumps, filter, filter_jumps, mangle];
        if !self.ended_well(&mut sections)? {
            // One table may be committed although another one was refused: then its jumps are there.
            for section in [1, 3] {
                let table = sections[section].table();
                sections[section] = Section::new(table)?;
                jumps(&mut sections[section], &self.held(table)?)?;
            }
            self.run(&mut sections, &mut load)?;
        }
        if !load.aside.is_empty() {
            stale.extend(self.leave_out(shape, &mut held, &mut load)?.iter().map(ChainName::to_string));
        }
        self.remove_stale(&held[0], &stale, &mut load);
        // The tool lets go of its lock after each table: others may have had their turn.
        self.watch.changed(false);
        load.report.tables = self.owned.beside(load.written);
        Ok(load.report)
    }

    /// What a table holds; it is not read when there cannot be anything.
    fn held(&mut self, table: Table) -> Result<Held, Error> {
        if self.watch.is_blank(table) { Ok(Held::default()) } else { Held::read(self.tools, table) }
    }

    /// The chains of all Services, and the shared ones: writes those that are not held as they should be, and takes those
    /// of Services that should be there out of `held`. Returns the section that is not run yet.
    fn load_nat(
        &mut self,
        shape: &Shape,
        held: &mut Held,
        services: &mut dyn Iterator<Item = ServicePlan>,
        load: &mut Load,
    ) -> Result<Section, Error> {
        let mut section = Section::tapped(Table::Nat, Tap::new(self.tools))?;
        load.fixed(&mut section, shape, held)?;
        // With none of the shared chains there, there is nothing to compare, and nothing leads there yet: they are written
        // while the Services are planned.
        let streamed = held.shared.is_empty();
        let mut sliced = false;
        let expected = services.size_hint().0;
        self.services.reserve(expected);
        load.owners.reserve(expected);
        let mut shared = Joint::begin(shape, shape.shared(Table::Nat).filter(|_| streamed), &mut section)?;
        for plan in services {
            let rules = rules::rules(shape, &plan, self.comments(shape));
            let programmed = Programmed::of(&rules);
            let owner = load.owners.add(&plan);
            section.own(Whose::Service(owner));
            for ((name, print), chain) in programmed.chains.iter().zip(&rules.chains) {
                if held.chains.remove(name) != Some(*print) {
                    let written = state::write_chain(&mut section, &rules, chain)?;
                    load.wrote(Table::Nat, written);
                }
            }
            rules.shared.iter().for_each(|(chain, rule)| shared.take(*chain, rule));
            shared.write(&mut section)?;
            if programmed.shared.has(Table::Filter) {
                load.filtered.push(owner);
            }
            self.keep(&plan.name, programmed);
            if self.sliced(section.lines()) {
                section = self.after(section, load)?.adding();
                sliced = true;
            }
        }
        load.wrote(Table::Nat, shared.end(shape, &mut section)?);
        if sliced {
            // It must not be said again because of what follows it.
            section = self.after(section, load)?;
        }
        if !streamed {
            self.load_shared(&mut section, shape, held, load)?;
        }
        Ok(section)
    }

    /// A section for the rest of a table, when all of this one is there.
    fn after(&self, mut slice: Section, load: &mut Load) -> Result<Section, Error> {
        let sections = std::slice::from_mut(&mut slice);
        if !self.ended_well(sections)? {
            self.run(sections, load)?;
        }
        Section::tapped(slice.table(), Tap::new(self.tools))
    }

    /// The shared chains of a table with the rules that all Services have in them.
    fn load_shared(&self, section: &mut Section, shape: &Shape, held: &Held, load: &mut Load) -> Result<(), Error> {
        let table = section.table();
        let mut wanted: HashMap<Shared, Unordered> = HashMap::new();
        let mut want = |shared: Shared, rule: &str| {
            wanted.entry(shared).or_default().add(&format!("-A {} {rule}", shared.name()));
        };
        shape.shared(table).for_each(|shared| shape.head(shared).iter().for_each(|rule| want(shared, rule)));
        self.services_in(table, load).for_each(|(_, programmed)| programmed.shared.for_each(&mut want));
        shape.shared(table).for_each(|shared| shape.tail(shared).iter().for_each(|rule| want(shared, rule)));
        let is_held = |shared: &Shared| {
            let wanted = wanted.get(shared).copied().unwrap_or_default();
            let held = held.shared.get(&*shared.name());
            held.is_some_and(|(_, print)| print.is_like(wanted, !shape.tail(*shared).is_empty()))
        };
        let mut shared = Joint::begin(shape, shape.shared(table).filter(|shared| !is_held(shared)), section)?;
        for (number, programmed) in self.services_in(table, load) {
            section.own(Whose::Service(number));
            programmed.shared.for_each(|chain, rule| shared.take(chain, rule));
            shared.write(section)?;
        }
        load.wrote(table, shared.end(shape, section)?);
        Ok(())
    }

    /// The Services that have rules in shared chains of a table, but for those that were refused.
    fn services_in<'a>(&'a self, table: Table, load: &'a Load) -> impl Iterator<Item = (Owner, &'a Programmed)> {
        let (all, some) = match table {
            Table::Filter => (0..0, &load.filtered[..]),
            _ => (0..load.owners.count(), &[][..]),
        };
        let numbers = all.chain(some.iter().copied()).filter(|number| !load.aside.contains_key(number));
        numbers.filter_map(|number| Some((number, self.services.get(load.owners.name(number))?)))
    }

    /// Ends the text of the sections, which the tool has read meanwhile. Whether it took all of it.
    fn ended_well(&self, sections: &mut [Section]) -> Result<bool, Error> {
        let tap = sections.last_mut().map(Section::untap).transpose()?.flatten();
        Ok(tap.unwrap_or_else(|| Tap::new(self.tools)).ended_well())
    }

    fn run(&self, sections: &mut [Section], load: &mut Load) -> Result<(), Error> {
        load.report.refusals += restore::run(self.tools, sections, &mut load.aside)?;
        Ok(())
    }

    /// Removes what leads to the Services that were refused, which may have been held and left alone, and empties their
    /// chains, which are returned.
    fn leave_out(&mut self, shape: &Shape, held: &mut [Held; 2], load: &mut Load) -> Result<Vec<ChainName>, Error> {
        let mut chains: Vec<ChainName> = Vec::new();
        for (number, refused) in &load.aside {
            chains.extend(self.forget(load.owners.name(*number)).chains.iter().map(|(name, _)| *name));
            load.report.set_aside.extend(load.owners.refused(*number, refused));
        }
        let mut sections = [Section::new(Table::Nat)?, Section::new(Table::Filter)?];
        for (section, held) in sections.iter_mut().zip(held) {
            held.shared.clear();
            self.load_shared(section, shape, held, load)?;
        }
        state::empty_chains(&mut sections[0], chains.iter())?;
        self.run(&mut sections, load)?;
        Ok(chains)
    }

    /// Removes empty chains of the nat table, to which nothing of ours leads any more. What stays is found by the next
    /// load: it does no harm, so it must not keep anything else from being done.
    fn remove_stale(&self, held: &Held, stale: &[String], load: &mut Load) {
        let (busy, idle): (Vec<_>, Vec<_>) = stale.iter().partition(|name| held.jump_to(name).is_some());
        let family = self.tools.family().as_str();
        if let Some(rule) = busy.first().and_then(|name| held.jump_to(name)) {
            let number = busy.len();
            log::warn!(
                ip_family = family;
                "chains that no Service needs any more stay in table nat, empty ({number}): rules of another program lead \
                 there, as `-A {rule}` does; remove these"
            );
        }
        let removed = Section::new(Table::Nat).and_then(|mut section| {
            let removed = state::remove_empty_chains(&mut section, idle.into_iter())?;
            restore::run(self.tools, &mut [section], &mut Aside::new()).map(|_| removed)
        });
        match removed {
            Ok(removed) => load.report.changes += removed,
            Err(error) => log::warn!(
                ip_family = family;
                "chains that no Service needs any more stay in table nat, empty, until the next load: {error}"
            ),
        }
    }
}

/// The next section of what the tool reads already.
fn next(table: Table, last: &mut Section) -> Result<Section, Error> {
    match last.untap()? {
        Some(tap) => Section::tapped(table, tap),
        None => Section::new(table),
    }
}

/// The jumps that lead to the shared chains of a table, as far as they are missing. Returns their number.
fn jumps(section: &mut Section, held: &Held) -> Result<usize, Error> {
    section.own(Whose::Once);
    for jump in shape::jumps(section.table()).filter(|jump| !held.has(jump)) {
        section.add(&format!("-I {jump}\n"))?;
    }
    Ok(section.lines())
}

/// Shared chains while they are written, all at once: Service by Service.
struct Joint {
    chains: Vec<(Shared, Cow<'static, str>)>,
    /// What is not in the section yet.
    text: String,
    rules: usize,
}

// === impl Joint ===

impl Joint {
    /// Empties the chains, and writes what comes first in each.
    fn begin(shape: &Shape, chains: impl Iterator<Item = Shared>, section: &mut Section) -> Result<Self, Error> {
        let chains = chains.map(|shared| (shared, shared.name())).collect();
        let mut joint = Self { chains, text: String::new(), rules: 0 };
        for (_, name) in &joint.chains {
            joint.text.extend([":", name, " - [0:0]\n"]);
        }
        joint.frame(shape, Shape::head);
        section.own(Whose::Once);
        joint.write(section)?;
        Ok(joint)
    }

    /// Takes a rule, if it is in one of the chains.
    fn take(&mut self, shared: Shared, rule: &str) {
        if let Some((_, name)) = self.chains.iter().find(|(chain, _)| *chain == shared) {
            self.text.extend(["-A ", name, " ", rule, "\n"]);
            self.rules += 1;
        }
    }

    /// Writes what was taken.
    fn write(&mut self, section: &mut Section) -> Result<(), Error> {
        section.add(&self.text)?;
        self.text.clear();
        Ok(())
    }

    /// Writes what comes last in each chain. Returns how many rules there were.
    fn end(mut self, shape: &Shape, section: &mut Section) -> Result<usize, Error> {
        self.frame(shape, Shape::tail);
        section.own(Whose::Once);
        self.write(section)?;
        Ok(self.rules)
    }

    fn frame(&mut self, shape: &Shape, part: fn(&Shape, Shared) -> Vec<String>) {
        for (shared, name) in &self.chains {
            for rule in part(shape, *shared) {
                self.text.extend(["-A ", name, " ", &rule, "\n"]);
                self.rules += 1;
            }
        }
    }
}

// === impl Load ===

impl Load {
    /// Chains that are the same whatever the Services are, and the shared ones empty if there are none yet.
    fn fixed(&mut self, section: &mut Section, shape: &Shape, held: &Held) -> Result<(), Error> {
        let table = section.table();
        for shared in shape.shared(table).map(Shared::name).filter(|name| !held.shared.contains_key(&**name)) {
            section.add(&format!(":{shared} - [0:0]\n"))?;
        }
        if table == Table::Filter && !held.shared.contains_key(FIREWALL) {
            section.add(&format!(":{FIREWALL} - [0:0]\n"))?;
        }
        for chain in shape.fixed(table) {
            let text: String = chain.rules.iter().map(|rule| format!("-A {} {rule}\n", chain.name)).collect();
            if held.shared.get(&*chain.name).is_none_or(|(print, _)| *print != Ordered::of(&text)) {
                section.add(&format!(":{} - [0:0]\n{text}", chain.name))?;
                self.wrote(table, chain.rules.len());
            }
        }
        Ok(())
    }

    fn wrote(&mut self, table: Table, rules: usize) {
        self.report.changes += rules;
        *self.written.of(table) += rules;
    }
}
