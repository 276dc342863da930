//! Bringing a whole table to a plan: the first load, a restart, a take-over from upstream, a repair.
//!
//! Elements come first, in portions, and the hooks last, so that there is never half a ruleset at work; what is there
//! already is kept. Only a table of another layout is replaced by ours at one stroke.

use std::io;

use super::Table;
use super::class::{Class, Classes};
use super::footprint::of_node;
use super::held::{Held, Kernel, read};
use super::layout::{NUMBER_BITS, Set, TABLE, TABLE_COMMENT, base_chains, inner_chains, table_family};
use super::state::{Changes, Numbers, SetAside, State};
use crate::backend::{Error, Report};
use crate::kernel::nftables::{Batch, CommitError, Element, Value};
use crate::kernel::nftchains::{add_chains, add_rules};
use crate::plan::{NodeFacts, ServicePlan};

/// Bytes of records in a transaction of the first load. Small enough not to keep a Pi's kernel busy for long.
const PORTION: usize = 128 << 10;
/// How often the table is read again when somebody else changes the ruleset meanwhile.
const READ_ATTEMPTS: usize = 5;

/// Why a load failed.
pub(super) enum Failure {
    /// The kernel did not take it.
    Refused(CommitError),
    /// The kernel did not tell what it holds.
    Unreadable(io::Error),
}

/// How carefully Services are written.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Care {
    /// In portions; one refusal fails the load.
    #[default]
    Portions,
    /// Each Service in its own transaction; what is refused is set aside.
    OneByOne,
}

impl Table {
    /// Writes the table anew, or corrects the one that is there.
    pub(super) fn load(
        &mut self,
        facts: &NodeFacts,
        services: &mut dyn Iterator<Item = ServicePlan>,
    ) -> Result<Report, Error> {
        let outcome = self.load_with(facts, services, self.care);
        self.care = match outcome {
            Err(Failure::Refused(CommitError::Refused { .. })) => Care::OneByOne,
            _ => Care::Portions,
        };
        outcome.map_err(|failure| match failure {
            Failure::Refused(error) => Error(error.to_string()),
            Failure::Unreadable(error) => Error(format!("cannot read the nftables ruleset: {error}")),
        })
    }

    fn load_with(
        &mut self,
        facts: &NodeFacts,
        services: &mut dyn Iterator<Item = ServicePlan>,
        care: Care,
    ) -> Result<Report, Failure> {
        let others = self.nft.foreign_generation()?;
        let (kernel, generation) = self.read_stable(facts)?;
        let family = table_family(self.family);
        let mut batch = Batch::new(family, TABLE, Some(generation));
        let (mut held, hooked, foreign) = match kernel {
            Kernel::Ours(held) => (*held, true, false),
            Kernel::Absent => (Held::default(), false, false),
            Kernel::Foreign => (Held::default(), false, true),
        };
        let hooked = hooked && held.hooked;
        let at_one_stroke = foreign && care == Care::Portions;
        // Messages are at most four times as long as the records in them.
        let portion = if at_one_stroke { usize::MAX } else { PORTION.min(self.nft.limit() / 4) };
        if foreign {
            batch.delete_table();
        }
        self.declare(&mut batch, facts, hooked);

        let chains = std::mem::take(&mut held.chains);
        let mut state = State::with(std::mem::take(&mut held.classes), services.size_hint().0);
        for class in state.classes.known() {
            batch.flush_chain(&class.chain());
            add_rules(&mut batch, &class.chain(), &class.rules(self.family));
        }
        state.numbers = Numbers::without(&held.numbers(&self.shapes));
        let mut report = Report::default();
        let mut changes = Changes::default();
        self.want(&mut held, of_node(&facts.service_cidrs, &facts.node_port_addresses.translatable()), &mut changes);
        // At once: the kernel takes no range that overlaps another.
        held.take_leftovers_of(Set::ServiceCidrs).iter().for_each(|record| changes.remove(record));
        if care == Care::OneByOne {
            report.changes += self.flush(&mut batch, &mut state, &mut changes, hooked)?;
        }
        for service in services {
            if care == Care::OneByOne {
                held.remember();
            }
            let mut wanted = Changes::default();
            let (shapes, recalled) = (self.shapes, &mut held);
            state.apply(
                &service,
                &shapes,
                &mut |plan| recalled.recall(plan, &shapes),
                &mut wanted,
                &mut report.set_aside,
            );
            self.want(&mut held, wanted.finish().1, &mut changes);
            if care == Care::OneByOne {
                match self.flush(&mut batch, &mut state, &mut changes, hooked) {
                    Ok(count) => report.changes += count,
                    Err(error @ CommitError::Refused { .. }) => {
                        state.forget(&service.name, &self.shapes);
                        held.give_back(&self.shapes);
                        set_aside(&service, &error, &mut report.set_aside);
                    }
                    Err(error) => return Err(error.into()),
                }
            } else if changes.size() > portion {
                report.changes += self.flush(&mut batch, &mut state, &mut changes, hooked)?;
            }
        }
        held.leftovers().for_each(|record| changes.remove(&record));
        report.changes += self.stage(&mut batch, &mut state, changes, hooked)?;
        if !hooked {
            add_chains(&mut batch, &base_chains(facts.family));
        }
        self.nft.commit(&mut batch)?;
        state.classes.settle();
        // Another load finds room for what was set aside. Nothing is unused then if nothing else changes, so that it is
        // the last one.
        let full = state.classes.is_full();
        report.outgrown = self.remove_unused_classes(&mut state.classes, &chains) && full;
        self.state = Some(state);
        self.facts = Some(facts.clone());
        self.generation = others;
        self.looked_closely = None;
        Ok(report)
    }

    /// Reads what the kernel holds, and the generation of the ruleset that this is.
    fn read_stable(&mut self, facts: &NodeFacts) -> io::Result<(Kernel, u32)> {
        for _ in 0..READ_ATTEMPTS {
            let before = self.nft.generation()?;
            match read(&mut self.nft, facts, &self.shapes) {
                Ok(kernel) if self.nft.generation()? == before => return Ok((kernel, before)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("other programs change it all the time"))
    }

    /// Declares the table, its sets and inner chains. The base chains of a table that is at work get their rules too.
    fn declare(&self, batch: &mut Batch, facts: &NodeFacts, hooked: bool) {
        batch.add_table(TABLE_COMMENT);
        self.specs.iter().for_each(|set| batch.add_set(set));
        let mut chains = inner_chains(facts);
        if hooked {
            chains.extend(base_chains(facts.family));
        }
        add_chains(batch, &chains);
    }

    /// Notes what has to change so that these elements are there.
    fn want(&self, held: &mut Held, wanted: super::record::Footprint, changes: &mut Changes) {
        for record in wanted.records(&self.shapes) {
            let (missing, in_the_way) = held.want(record, &self.shapes);
            in_the_way.iter().for_each(|other| changes.remove(other));
            if missing {
                changes.add(record);
            }
        }
    }

    /// Removes chains and elements of the classes that no Service has any more, and of `chains` those whose element
    /// somebody took away. They do no harm where the kernel keeps them: somebody else's rule may lead there. Returns
    /// whether that made room.
    fn remove_unused_classes(&mut self, classes: &mut Classes, chains: &[Class]) -> bool {
        let mut batch = Batch::new(table_family(self.family), TABLE, None);
        for chain in chains.iter().filter(|class| !classes.knows(class)).map(Class::chain) {
            batch.flush_chain(&chain);
            batch.delete_chain(&chain);
        }
        for (index, class) in classes.unused() {
            let (key, chain) = ((index << NUMBER_BITS).to_ne_bytes(), class.chain());
            let element = Element { key: &key, end: None, data: Value::None, interval_end: false };
            batch.delete_elements(self.specs[Set::Classes as usize].name, [element]);
            batch.flush_chain(&chain);
            batch.delete_chain(&chain);
        }
        match self.nft.commit(&mut batch) {
            Ok(()) => classes.forget_unused(),
            Err(error) => {
                log::debug!("cannot remove chains of table {TABLE} that are not used any more: {error}");
                false
            }
        }
    }

    fn flush(
        &mut self,
        batch: &mut Batch,
        state: &mut State,
        changes: &mut Changes,
        at_work: bool,
    ) -> Result<usize, CommitError> {
        let staged = self.stage(batch, state, std::mem::take(changes), at_work);
        let outcome = staged.and_then(|count| self.nft.commit(batch).map(|()| count));
        match outcome {
            Ok(_) => state.classes.settle(),
            Err(_) => state.classes.withdraw(),
        }
        outcome
    }
}

fn set_aside(service: &ServicePlan, error: &CommitError, aside: &mut SetAside) {
    aside.extend(service.ports.iter().map(|port| (port.name.clone(), error.to_string())));
}

// === impl Failure ===

impl From<CommitError> for Failure {
    fn from(error: CommitError) -> Self {
        Self::Refused(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Unreadable(error)
    }
}
