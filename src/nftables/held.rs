//! What the kernel holds already: read once at a start, so that only differences are written.

use std::borrow::Borrow;
use std::collections::{BTreeSet, HashSet};
use std::hash::{Hash, Hasher};
use std::io;
use std::ops::Bound::{Included, Unbounded};

use super::class::{Class, Classes};
use super::footprint::{entrances, number_of};
use super::layout::{LOCAL_OFFSET, Set, TABLE, base_chains, inner_chains, sets, table_family};
use super::record::{Footprint, Records, Shapes, read_number, set_of};
use crate::kernel::nftables::{Nftables, Value};
use crate::plan::{NodeFacts, PortPlan};

/// The state of our table in the kernel.
pub enum Kernel {
    /// There is none.
    Absent,
    /// There is one of another layout: upstream's, or another version's.
    Foreign,
    /// It is ours, with these elements.
    Ours(Box<Held>),
}

/// Elements of our table. What is still in here at the end is not wanted any more.
#[derive(Default)]
pub struct Held {
    records: HashSet<Kept>,
    /// Records of ranges of sources, in order: the kernel takes none that overlaps another of the same address and port.
    ranges: BTreeSet<Box<[u8]>>,
    /// Numbers that ClusterIPs lead to, and those that were recalled.
    served: HashSet<u32>,
    taken: HashSet<u32>,
    /// What was wanted since [`Held::remember`], if that was asked for.
    wanted: Option<Vec<Box<[u8]>>>,
    /// Classes and their indices.
    pub classes: Classes,
    /// Classes that have a chain.
    pub chains: Vec<Class>,
    /// Whether traffic is being served: all base chains are there.
    pub hooked: bool,
}

/// A record, known by what the kernel tells elements apart by: its first bytes.
struct Kept {
    record: Box<[u8]>,
    identity: usize,
}

/// Reads what there is.
///
/// # Errors
/// When the kernel cannot be asked, or when the ruleset changed while it was read.
pub fn read(nft: &mut Nftables, facts: &NodeFacts, shapes: &Shapes) -> io::Result<Kernel> {
    let family = table_family(facts.family);
    if !nft.has_table(family, TABLE)? {
        return Ok(Kernel::Absent);
    }
    let specs = sets(facts.family);
    let found = nft.sets(family, TABLE)?;
    let chains = nft.chains(family, TABLE)?;
    let base = base_chains(facts.family);
    let known: HashSet<&str> =
        base.iter().map(|chain| chain.name).chain(inner_chains(facts).iter().map(|chain| chain.name)).collect();
    let named_as_ours = |(name, _): &(String, bool)| known.contains(&**name) || Class::of_chain(name).is_some();
    let same_sets = found.len() == specs.len() && specs.iter().all(|spec| found.iter().any(|read| spec.is(read)));
    if !same_sets || !chains.iter().all(named_as_ours) {
        return Ok(Kernel::Foreign);
    }
    let hooks = chains.iter().filter(|(_, hooked)| *hooked).count();
    let class_chains = chains.iter().filter_map(|(name, _)| Class::of_chain(name)).collect();
    let mut held = Held { hooked: hooks == base.len(), chains: class_chains, ..Held::default() };
    if hooks != 0 && !held.hooked {
        return Ok(Kernel::Foreign);
    }
    for set in Set::ALL {
        let readable = match set {
            Set::Classes => held.read_classes(nft, facts)?,
            // Written by packets, not by us.
            Set::Affinity => true,
            set => held.read_records(nft, facts, shapes, set)?,
        };
        if !readable {
            return Ok(Kernel::Foreign);
        }
    }
    Ok(Kernel::Ours(Box::new(held)))
}

// === impl Held ===

impl Held {
    fn read_classes(&mut self, nft: &mut Nftables, facts: &NodeFacts) -> io::Result<bool> {
        let name = sets(facts.family)[Set::Classes as usize].name;
        let mut readable = true;
        nft.elements(table_family(facts.family), TABLE, name, |element| {
            let class = if let Value::Goto(chain) = element.data { Class::of_chain(chain) } else { None };
            readable &= class.is_some_and(|class| self.classes.adopt(read_number(element.key), class));
        })?;
        Ok(readable)
    }

    fn read_records(&mut self, nft: &mut Nftables, facts: &NodeFacts, shapes: &Shapes, set: Set) -> io::Result<bool> {
        let name = sets(facts.family)[set as usize].name;
        let mut record = Vec::new();
        let mut readable = true;
        nft.elements(table_family(facts.family), TABLE, name, |element| {
            match shapes.record(set, &element, &mut record) {
                Some(()) => self.keep(&record, shapes),
                None => readable = false,
            }
        })?;
        Ok(readable)
    }

    fn keep(&mut self, record: &[u8], shapes: &Shapes) {
        match set_of(record) {
            Set::AllowedSources => drop(self.ranges.insert(record.into())),
            set => {
                if set == Set::Services {
                    self.served.extend(number_of(record, shapes));
                }
                self.records.insert(Kept { record: record.into(), identity: shapes.identity(record).len() });
            }
        }
    }

    /// Number and slots of a Service port that an earlier process programmed.
    pub fn recall(&mut self, plan: &PortPlan, shapes: &Shapes) -> Option<(u32, Footprint)> {
        let number = self.number(&entrances(plan), shapes)?;
        self.taken.insert(number).then(|| (number, self.slots(number, shapes)))
    }

    /// The numbers in use, in ascending order.
    pub fn numbers(&self, shapes: &Shapes) -> Vec<u32> {
        let mut numbers: Vec<u32> = self.records.iter().filter_map(|kept| number_of(&kept.record, shapes)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// The number that the ClusterIP leads to, or else the first of these entrances: but not the number of another
    /// ClusterIP, for an external address or a NodePort may have changed hands.
    fn number(&self, entrances: &Footprint, shapes: &Shapes) -> Option<u32> {
        entrances
            .records(shapes)
            .filter_map(|record| Some((set_of(record), self.records.get(shapes.identity(record))?)))
            .filter_map(|(set, kept)| Some((set, number_of(&kept.record, shapes)?)))
            .find(|(set, number)| *number != 0 && (*set == Set::Services || !self.served.contains(number)))
            .map(|(_, number)| number)
    }

    /// The records that are keyed by a number, for their slots. Slots that are drawn from have no gaps.
    fn slots(&self, number: u32, shapes: &Shapes) -> Footprint {
        let mut slots = Records::default();
        for (set, first) in
            [(Set::Endpoints, 0), (Set::Endpoints, LOCAL_OFFSET), (Set::Draw, 0), (Set::Draw, LOCAL_OFFSET)]
        {
            let found = (first..).map_while(|slot| self.find(set, &[number, slot]));
            for record in found {
                slots.push_record(record);
                if set == Set::Draw {
                    let slot = read_number(shapes.data(record));
                    let seats = [Set::Slots, Set::LocalSlots].map(|set| self.find(set, &[slot]));
                    seats.into_iter().flatten().for_each(|record| slots.push_record(record));
                }
            }
        }
        slots.finish()
    }

    /// The record with this key.
    fn find(&self, set: Set, key: &[u32]) -> Option<&[u8]> {
        let identity: Vec<u8> = [set as u8].into_iter().chain(key.iter().flat_map(|part| part.to_ne_bytes())).collect();
        self.records.get(&identity[..]).map(|kept| &kept.record[..])
    }

    /// Takes note that a record is wanted; returns whether it must be added, and what must go before.
    pub fn want(&mut self, record: &[u8], shapes: &Shapes) -> (bool, Vec<Box<[u8]>>) {
        let (found, in_the_way) = match set_of(record) {
            Set::AllowedSources => match self.ranges.take(record) {
                Some(same) => (Some(same), Vec::new()),
                None => (None, self.take_overlapping(record, shapes)),
            },
            _ => match self.records.take(shapes.identity(record)).map(|kept| kept.record) {
                Some(kept) if *kept == *record => (Some(kept), Vec::new()),
                other => (None, other.into_iter().collect()),
            },
        };
        let missing = found.is_none();
        if let Some(wanted) = &mut self.wanted {
            wanted.extend(found.into_iter().chain(in_the_way.iter().cloned()));
        }
        (missing, in_the_way)
    }

    /// From now on, what is wanted may turn out not to be.
    pub fn remember(&mut self) {
        self.wanted = Some(Vec::new());
    }

    /// What was wanted since [`Held::remember`] is not: the kernel did not take what belongs to it.
    pub fn give_back(&mut self, shapes: &Shapes) {
        self.wanted.take().unwrap_or_default().iter().for_each(|record| self.keep(record, shapes));
    }

    /// The ranges of a set of plain ranges that were not wanted: all that are wanted must have been asked for.
    pub fn take_leftovers_of(&mut self, set: Set) -> Vec<Box<[u8]>> {
        self.records.extract_if(|kept| set_of(&kept.record) == set).map(|kept| kept.record).collect()
    }

    /// What nobody wanted.
    pub fn leftovers(self) -> impl Iterator<Item = Box<[u8]>> {
        self.records.into_iter().map(|kept| kept.record).chain(self.ranges)
    }

    fn take_overlapping(&mut self, record: &[u8], shapes: &Shapes) -> Vec<Box<[u8]>> {
        let (same, first, last) = shapes.range(record);
        let candidates = self.ranges.range::<[u8], _>((Included(same), Unbounded));
        let of_same = candidates.take_while(|other| other.starts_with(same));
        let overlapping = of_same.filter(|other| {
            let (_, other_first, other_last) = shapes.range(other);
            first <= other_last && other_first <= last
        });
        let overlapping: Vec<Box<[u8]>> = overlapping.cloned().collect();
        for other in &overlapping {
            self.ranges.remove(other);
        }
        overlapping
    }
}

// === impl Kept ===

impl Borrow<[u8]> for Kept {
    fn borrow(&self) -> &[u8] {
        &self.record[..self.identity]
    }
}

impl Hash for Kept {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Borrow::<[u8]>::borrow(self).hash(state);
    }
}

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        Borrow::<[u8]>::borrow(self) == Borrow::<[u8]>::borrow(other)
    }
}

impl Eq for Kept {}
