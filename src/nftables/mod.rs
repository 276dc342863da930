//! The nftables backend: verdicts and endpoints as elements of shared maps, written over netlink.
//!
//! [`layout`] is the ruleset that all Services share, [`footprint`] what one Service port adds to it. This module keeps
//! what was programmed and writes the differences; [`load`] does so for a whole table at once.

mod class;
mod footprint;
mod held;
mod layout;
mod load;
mod record;
mod show;
mod slots;
mod state;

pub use show::show;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use layout::{NUMBER_MASK, SET_COUNT, Set, TABLE, base_chains, inner_chains, sets, table_family};
use load::Care;
use record::{Shapes, read_number};
use state::{Changes, State};

use crate::backend::{Backend, Error, Report};
use crate::kernel::nftables::{Batch, CommitError, Element, Nftables, SetSpec, Value};
use crate::kernel::nftchains::add_rules;
use crate::model::Family;
use crate::plan::{NodeFacts, PortName, ServicePlan};

/// Programs one family's table.
pub struct Table {
    nft: Nftables,
    family: Family,
    specs: [SetSpec; SET_COUNT],
    shapes: Shapes,
    /// What was programmed; `None` when that is not known for certain.
    state: Option<State>,
    /// What [`Nftables::foreign_generation`] was when the table was last known to be as we left it.
    generation: u32,
    /// What the shared rules were made from.
    facts: Option<NodeFacts>,
    /// How the next load goes about it.
    care: Care,
    /// When the whole table was last compared with what was programmed.
    looked_closely: Option<Instant>,
}

/// Least time between two comparisons of the whole table.
const CLOSE_LOOKS: Duration = Duration::from_secs(20);

/// Variable that skips [`check_kernel`], as upstream's does.
const SKIP_CHECK: &str = "KUBE_PROXY_NFTABLES_SKIP_KERNEL_VERSION_CHECK";

/// Checks that the kernel is new enough (contract 8.1).
///
/// # Errors
/// When it is older than 5.13.
pub fn check_kernel() -> Result<(), String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let skip = std::env::var_os(SKIP_CHECK).is_some_and(|value| !value.is_empty());
    if version >= (5, 13) || skip {
        return Ok(());
    }
    Err(format!(
        "kube-proxy in nftables mode requires kernel 5.13 or later, this is {}; set {SKIP_CHECK}=1 to try",
        release.trim()
    ))
}

// === impl Table ===

impl Table {
    /// Opens the door to the kernel; changes nothing.
    ///
    /// # Errors
    /// When the kernel has no nf_tables or we may not use it.
    pub fn new(family: Family) -> Result<Self, Error> {
        let nft = Nftables::open().map_err(|error| {
            Error(format!(
                "cannot open netlink for nftables: {error}; CAP_NET_ADMIN and the module nf_tables are needed"
            ))
        })?;
        Ok(Self {
            nft,
            family,
            specs: sets(family),
            shapes: Shapes::new(family),
            state: None,
            generation: 0,
            facts: None,
            care: Care::default(),
            looked_closely: None,
        })
    }

    /// Sums the counters of all maps that lead to Service ports, by the port's number.
    fn counters(&mut self) -> std::io::Result<HashMap<u32, (u64, u64)>> {
        let mut by_number: HashMap<u32, (u64, u64)> = HashMap::new();
        for set in Set::ALL.into_iter().filter(|set| set.is_counted()) {
            let name = self.specs[set as usize].name;
            self.nft.elements(table_family(self.family), TABLE, name, |element| {
                if let (Value::Bytes(value), Some((packets, bytes))) = (element.data, element.counter) {
                    let sums = by_number.entry(read_number(value) & NUMBER_MASK).or_default();
                    *sums = (sums.0 + packets, sums.1 + bytes);
                }
            })?;
        }
        Ok(by_number)
    }

    /// Whether our chains are there, with as many rules as they should have. There are few.
    fn has_rules(&mut self) -> std::io::Result<bool> {
        let (Some(facts), Some(state)) = (&self.facts, &self.state) else { return Ok(true) };
        let (family, base) = (table_family(self.family), base_chains(self.family));
        let hooks = self.nft.chains(family, TABLE)?.iter().filter(|(_, hooked)| *hooked).count();
        let rules: usize = inner_chains(facts).iter().chain(&base).map(|chain| chain.rules.len()).sum();
        let class_rules: usize = state.classes.known().map(|class| class.rules(self.family).len()).sum();
        Ok(hooks == base.len() && self.nft.rules(family, TABLE)? == rules + class_rules)
    }

    /// Whether the kernel holds exactly the elements that were programmed.
    fn holds_elements(&mut self) -> std::io::Result<bool> {
        let (Some(facts), Some(state)) = (&self.facts, &self.state) else { return Ok(true) };
        let held::Kernel::Ours(mut held) = held::read(&mut self.nft, facts, &self.shapes)? else { return Ok(false) };
        let node = footprint::of_node(&facts.service_cidrs, &facts.node_port_addresses.translatable());
        // Several Services may ask for these.
        let mut shared: HashSet<Box<[u8]>> = HashSet::new();
        let mut missing = |footprint: &record::Footprint, held: &mut held::Held| {
            let mut records = footprint.records(&self.shapes);
            records.any(|record| {
                let is_known = record::set_of(record).is_shared() && !shared.insert(record.into());
                !is_known && held.want(record, &self.shapes).0
            })
        };
        let same_classes = held.classes.is_like(&state.classes);
        let complete = !missing(&node, &mut held) && state.footprints().all(|footprint| !missing(footprint, &mut held));
        Ok(same_classes && complete && held.leftovers().next().is_none())
    }

    /// Adds chains and elements of the classes that the kernel does not know yet.
    fn declare_classes(&self, batch: &mut Batch, state: &State) {
        for (index, class) in state.classes.fresh() {
            let chain = class.chain();
            batch.add_chain(&chain, None, "");
            // It may be there, if somebody took its element away.
            batch.flush_chain(&chain);
            add_rules(batch, &chain, &class.rules(self.family));
            let key = (index << layout::NUMBER_BITS).to_ne_bytes();
            let element = Element { key: &key, end: None, data: Value::Goto(&chain), interval_end: false };
            batch.add_elements(self.specs[Set::Classes as usize].name, [element]);
        }
    }

    /// Puts what has to change into a transaction. Returns the number of elements.
    ///
    /// A packet on its way meets the elements of the moment, but the rules of the moment in which it came: a chain that is
    /// new to it is empty. So in a table `at_work`, the chains of new classes are committed before anything leads there.
    fn stage(
        &mut self,
        batch: &mut Batch,
        state: &mut State,
        changes: Changes,
        at_work: bool,
    ) -> Result<usize, CommitError> {
        self.declare_classes(batch, state);
        if at_work && !state.classes.fresh().is_empty() {
            self.nft.commit(batch)?;
            state.classes.settle();
        }
        Ok(self.write(batch, changes))
    }

    /// Removes and adds elements. What goes comes first: a key may lead somewhere else now.
    fn write(&self, batch: &mut Batch, changes: Changes) -> usize {
        let (gone, added) = changes.finish();
        let mut count = 0;
        for (records, add) in [(gone, false), (added, true)] {
            let mut records = records.records(&self.shapes).peekable();
            while let Some(&first) = records.peek() {
                let set = record::set_of(first);
                let name = self.specs[set as usize].name;
                let same = std::iter::from_fn(|| records.next_if(|record| record::set_of(record) == set))
                    .inspect(|_| count += 1)
                    .map(|record| self.shapes.element(record));
                if add { batch.add_elements(name, same) } else { batch.delete_elements(name, same) }
            }
        }
        count
    }
}

// === impl Backend for Table ===

impl Backend for Table {
    fn replace(&mut self, facts: &NodeFacts, services: &mut dyn Iterator<Item = ServicePlan>) -> Result<Report, Error> {
        self.state = None;
        let mut report = self.load(facts, services)?;
        report.in_kernel = Some(self.nft.take_spent());
        Ok(report)
    }

    fn update(&mut self, changed: &[ServicePlan]) -> Result<Report, Error> {
        let Some(mut state) = self.state.take() else {
            return Err(Error("what the kernel holds is not known; it has to be read again".into()));
        };
        let mut report = Report::default();
        let mut changes = Changes::default();
        for service in changed {
            state.apply(service, &self.shapes, &mut |_| None, &mut changes, &mut report.set_aside);
        }
        let mut batch = Batch::new(table_family(self.family), TABLE, None);
        let refused = |error: CommitError| Error(error.to_string());
        report.changes = self.stage(&mut batch, &mut state, changes, true).map_err(refused)?;
        self.nft.commit(&mut batch).map_err(refused)?;
        report.outgrown = state.classes.is_full();
        self.state = Some(state);
        report.in_kernel = Some(self.nft.take_spent());
        Ok(report)
    }

    fn intact(&mut self) -> bool {
        match self.nft.foreign_generation() {
            Ok(now) if now == self.generation => true,
            Ok(_) if !self.has_rules().unwrap_or(true) => false,
            // Somebody changed something somewhere. Looking closely takes time, so not more often than now and then.
            Ok(_) if self.looked_closely.is_some_and(|then| then.elapsed() < CLOSE_LOOKS) => true,
            Ok(now) => {
                self.looked_closely = Some(Instant::now());
                let intact = self.holds_elements().unwrap_or(true);
                self.generation = if intact { now } else { self.generation };
                intact
            }
            Err(_) => true,
        }
    }

    fn traffic(&mut self) -> Vec<(PortName, u64, u64)> {
        let counters = self.counters().unwrap_or_else(|error| {
            log::warn!("cannot read the counters of table {TABLE}: {error}");
            HashMap::new()
        });
        let ports = self.state.iter().flat_map(State::ports);
        ports
            .filter_map(|(name, number)| counters.get(&number).map(|&(packets, bytes)| (name, packets, bytes)))
            .collect()
    }

    fn cleanup(&mut self) -> Result<(), Error> {
        self.state = None;
        let family = table_family(self.family);
        let exists = self
            .nft
            .has_table(family, TABLE)
            .map_err(|error| Error(format!("cannot look for table {TABLE}: {error}")))?;
        if !exists {
            return Ok(());
        }
        let mut batch = Batch::new(family, TABLE, None);
        batch.delete_table();
        self.nft.commit(&mut batch).map_err(|error| Error(format!("cannot remove table {TABLE}: {error}")))
    }
}
