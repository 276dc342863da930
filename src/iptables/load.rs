//! Programs everything: what the kernel holds is read, what differs is written, what is stale goes. Nothing is flushed that
//! is as it should be, so a restart changes nothing.
//!
//! A tool reads the text while it is written. Must not be used for changes: it looks at all Services.

use std::collections::HashMap;

use crate::backend::{Error, Report};
use crate::plan::ServicePlan;

use super::count::Count;
use super::held::{Held, Ordered, Unordered};
use super::names::ChainName;
use super::restore::{self, Aside, Owner, Section, Whose};
use super::shared::{FIREWALL, Shape, Shared, Table};
use super::state::{self, Programmed};
use super::tap::Tap;
use super::{Iptables, Owners, rules};

/// How far a load has come.
#[derive(Default)]
struct Load {
    owners: Owners,
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
        let mut nat = self.load_chains(shape, &mut held[0], services, &mut load)?;
        self.load_shared(&mut nat, shape, &held[0], &mut load)?;
        load.jumps(&mut nat, shape, &held[0])?;
        // Nothing leads to them any more.
        load.report.changes += state::remove_chains(&mut nat, held[0].chains.keys().copied())?;

        let mut filter = next(Table::Filter, &mut nat)?;
        load.fixed(&mut filter, shape, &held[1])?;
        self.load_shared(&mut filter, shape, &held[1], &mut load)?;
        load.jumps(&mut filter, shape, &held[1])?;

        let mut mangle = next(Table::Mangle, &mut filter)?;
        if self.watch.is_blank(Table::Mangle) || !self.watch.has_canary(self.tools) {
            load.fixed(&mut mangle, shape, &Held::default())?;
        }
        self.finish(&mut [nat, filter, mangle], &mut load)?;
        if !load.aside.is_empty() {
            self.leave_out(shape, &mut held, &mut load)?;
        }
        load.report.tables = self.owned.beside(load.written);
        Ok(load.report)
    }

    /// What a table holds; it is not read when there cannot be anything.
    fn held(&mut self, table: Table) -> Result<Held, Error> {
        if self.watch.is_blank(table) { Ok(Held::default()) } else { Held::read(self.tools, table) }
    }

    /// The chains of all Services: writes those that are not held as they should be, and takes those that should be
    /// there out of `held`. Returns the section that is not run yet.
    fn load_chains(
        &mut self,
        shape: &Shape,
        held: &mut Held,
        services: &mut dyn Iterator<Item = ServicePlan>,
        load: &mut Load,
    ) -> Result<Section, Error> {
        let mut section = Section::tapped(Table::Nat, Tap::new(self.tools))?;
        load.fixed(&mut section, shape, held)?;
        for plan in services {
            let rules = rules::rules(shape, &plan, self.comments(shape));
            let programmed = Programmed::of(&rules);
            section.own(Whose::Service(load.owners.add(&plan)));
            for ((name, print), chain) in programmed.chains.iter().zip(&rules.chains) {
                if held.chains.remove(name) != Some(*print) {
                    let written = state::write_chain(&mut section, &rules, chain)?;
                    load.wrote(Table::Nat, written);
                }
            }
            self.forget(&plan.name);
            self.keep(&plan.name, programmed);
            if self.sliced(section.lines()) {
                self.finish(std::slice::from_mut(&mut section), load)?;
                section = Section::tapped(Table::Nat, Tap::new(self.tools))?;
            }
        }
        section.own(Whose::All);
        Ok(section)
    }

    /// The shared chains of a table with the rules that all Services have in them.
    fn load_shared(&self, section: &mut Section, shape: &Shape, held: &Held, load: &mut Load) -> Result<(), Error> {
        let table = section.table();
        let mut of_services: HashMap<Shared, Vec<(Owner, &str)>> = HashMap::new();
        for (number, (name, _)) in (0..).zip(&load.owners.0) {
            let programmed = self.services.get(name).filter(|_| !load.aside.contains_key(&number));
            for (shared, rule) in programmed.iter().flat_map(|programmed| &programmed.shared) {
                of_services.entry(*shared).or_default().push((number, rule));
            }
        }
        let mut written = 0;
        for shared in Shared::ALL.into_iter().filter(|shared| shared.table() == table) {
            let (head, tail) = (shape.head(shared), shape.tail(shared));
            let mut wanted = Unordered::default();
            let rules = of_services.remove(&shared).unwrap_or_default();
            head.iter().for_each(|rule| wanted.add(&format!("-A {} {rule}", shared.name())));
            rules.iter().for_each(|(_, rule)| wanted.add(&format!("-A {} {rule}", shared.name())));
            tail.iter().for_each(|rule| wanted.add(&format!("-A {} {rule}", shared.name())));
            if held.shared.get(shared.name()).is_some_and(|(_, print)| *print == wanted) {
                continue;
            }
            section.own(Whose::All);
            section.add(format_args!(":{} - [0:0]\n", shared.name()))?;
            let before = section.lines();
            for rule in head {
                section.add(format_args!("-A {} {rule}\n", shared.name()))?;
            }
            for (number, rule) in rules {
                section.own(Whose::Service(number));
                section.add(format_args!("-A {} {rule}\n", shared.name()))?;
            }
            section.own(Whose::All);
            for rule in tail {
                section.add(format_args!("-A {} {rule}\n", shared.name()))?;
            }
            written += section.lines() - before;
        }
        load.wrote(table, written);
        Ok(())
    }

    /// Runs the sections, whose text the tool has read meanwhile.
    fn finish(&self, sections: &mut [Section], load: &mut Load) -> Result<(), Error> {
        let tap = sections.last_mut().and_then(Section::untap).unwrap_or_else(|| Tap::new(self.tools));
        load.report.refusals += restore::finish(tap, self.tools, sections, load.owners.count(), &mut load.aside)?;
        Ok(())
    }

    /// Removes what leads to the Services that were refused, which may have been held and left alone, and their chains.
    fn leave_out(&mut self, shape: &Shape, held: &mut [Held; 2], load: &mut Load) -> Result<(), Error> {
        let mut chains: Vec<ChainName> = Vec::new();
        for (number, refused) in &load.aside {
            let (service, ports) = &load.owners.0[*number as usize];
            chains.extend(self.forget(service).chains.iter().map(|(name, _)| *name));
            load.report.set_aside.extend(ports.iter().map(|port| (port.clone(), refused.reason.clone())));
        }
        let mut sections = [Section::new(Table::Nat)?, Section::new(Table::Filter)?];
        for (section, held) in sections.iter_mut().zip(held) {
            held.shared.clear();
            self.load_shared(section, shape, held, load)?;
        }
        state::remove_chains(&mut sections[0], chains.iter().copied())?;
        load.report.refusals += restore::run(self.tools, &mut sections, load.owners.count(), &mut load.aside)?;
        Ok(())
    }
}

/// The next section of what the tool reads already.
fn next(table: Table, last: &mut Section) -> Result<Section, Error> {
    match last.untap() {
        Some(tap) => Section::tapped(table, tap),
        None => Section::new(table),
    }
}

// === impl Load ===

impl Load {
    /// Chains that are the same whatever the Services are, and the shared ones empty if there are none yet.
    fn fixed(&mut self, section: &mut Section, shape: &Shape, held: &Held) -> Result<(), Error> {
        let table = section.table();
        for shared in Shared::ALL.into_iter().filter(|s| s.table() == table && !held.shared.contains_key(s.name())) {
            section.add(format_args!(":{} - [0:0]\n", shared.name()))?;
        }
        if table == Table::Filter && !held.shared.contains_key(FIREWALL) {
            section.add(format_args!(":{FIREWALL} - [0:0]\n"))?;
        }
        for chain in shape.fixed(table) {
            let text: String = chain.rules.iter().map(|rule| format!("-A {} {rule}\n", chain.name)).collect();
            if held.shared.get(chain.name).is_none_or(|(print, _)| *print != Ordered::of(&text)) {
                section.add(format_args!(":{} - [0:0]\n{text}", chain.name))?;
                self.wrote(table, chain.rules.len());
            }
        }
        Ok(())
    }

    /// The jumps that lead to the shared chains.
    fn jumps(&mut self, section: &mut Section, shape: &Shape, held: &Held) -> Result<(), Error> {
        let table = section.table();
        section.own(Whose::Once);
        for jump in shape.jumps(table).filter(|jump| !held.has(jump)) {
            section.add(format_args!("-I {jump}\n"))?;
            self.wrote(table, 1);
        }
        section.own(Whose::All);
        Ok(())
    }

    fn wrote(&mut self, table: Table, rules: usize) {
        self.report.changes += rules;
        *self.written.of(table) += rules;
    }
}
