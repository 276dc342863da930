//! What was programmed, and the changes that lead from there to what is wanted. Pure bookkeeping: no kernel.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;

use super::class::Classes;
use super::footprint::lay_out;
use super::layout::NUMBER_MASK;
use super::record::{Footprint, Records, Shapes, set_of};
use crate::model::{NameMap, ObjectName, Protocol};
use crate::plan::{PortName, PortPlan, ServicePlan};

/// What was programmed.
#[derive(Default)]
pub struct State {
    services: NameMap<Vec<Port>>,
    /// Ways to choose an endpoint.
    pub classes: Classes,
    /// Numbers of the Service ports.
    pub numbers: Numbers,
    shared: Shared,
}

/// A programmed Service port.
struct Port {
    name: Rc<str>,
    protocol: Protocol,
    number: u32,
    footprint: Footprint,
}

/// Numbers for Service ports. One that became free is used again as late as possible: clients may still be remembered
/// under it.
pub struct Numbers {
    /// Those that were not used yet.
    unused: VecDeque<Range<u32>>,
    free: VecDeque<u32>,
}

/// Elements that several Service ports want, with their count.
#[derive(Default)]
pub struct Shared(HashMap<Box<[u8]>, u32>);

/// Elements to remove and to add.
#[derive(Default)]
pub struct Changes {
    gone: Records,
    added: Records,
}

/// Tells number and slots of a Service port that an earlier process programmed.
pub type Recall<'a> = &'a mut dyn FnMut(&PortPlan) -> Option<(u32, Footprint)>;

/// Service ports that cannot be programmed, and why.
pub type SetAside = Vec<(PortName, String)>;

// === impl State ===

impl State {
    /// Nothing programmed yet, but for these classes, and room for so many Services.
    pub fn with(classes: Classes, services: usize) -> Self {
        let mut state = Self { classes, ..Self::default() };
        state.services.reserve(services);
        // Each has a ClusterIP that others might want too.
        state.shared.0.reserve(services);
        state
    }

    /// Brings a Service to its new plan. A port that is new here may be known to the kernel: `recall` tells its number
    /// and slots.
    pub fn apply(
        &mut self,
        service: &ServicePlan,
        shapes: &Shapes,
        recall: Recall<'_>,
        changes: &mut Changes,
        set_aside: &mut SetAside,
    ) {
        // Taken out of its place, not removed: a table that is removed from and added to for ever grows.
        let mut old = self.services.get_mut(&service.name).map(std::mem::take).unwrap_or_default();
        let mut ports = Vec::with_capacity(service.ports.len());
        for plan in &service.ports {
            let known = old.iter().position(|port| port.is(plan)).map(|at| old.swap_remove(at));
            let before = known.as_ref().map(|port| port.footprint.clone()).unwrap_or_default();
            let known = known.map(|port| (port.number, port.footprint)).or_else(|| recall(plan));
            let Some((number, slots)) =
                known.or_else(|| self.numbers.take().map(|number| (number, Footprint::default())))
            else {
                set_aside.push((plan.name.clone(), "there are too many Service ports".into()));
                continue;
            };
            let footprint = lay_out(plan, number, &mut self.classes, shapes, &slots).unwrap_or_else(|reason| {
                set_aside.push((plan.name.clone(), reason));
                Footprint::default()
            });
            self.shared.difference(&before, &footprint, shapes, changes);
            ports.push(Port { name: plan.name.port.clone(), protocol: plan.name.protocol, number, footprint });
        }
        for port in old {
            self.shared.difference(&port.footprint, &Footprint::default(), shapes, changes);
            self.numbers.free.push_back(port.number);
        }
        if ports.is_empty() {
            self.services.remove(&service.name);
        } else {
            self.services.insert(service.name.clone(), ports);
        }
    }

    /// Takes a Service back whose changes the kernel refused.
    pub fn forget(&mut self, service: &ObjectName, shapes: &Shapes) {
        for port in self.services.remove(service).unwrap_or_default() {
            self.shared.difference(&port.footprint, &Footprint::default(), shapes, &mut Changes::default());
            self.numbers.free.push_back(port.number);
        }
    }

    /// The elements of all ports.
    pub fn footprints(&self) -> impl Iterator<Item = &Footprint> {
        self.services.values().flatten().map(|port| &port.footprint)
    }

    /// All ports with their numbers.
    pub fn ports(&self) -> impl Iterator<Item = (PortName, u32)> {
        self.services.iter().flat_map(|(service, ports)| {
            ports.iter().map(move |port| {
                (PortName { service: service.clone(), port: port.name.clone(), protocol: port.protocol }, port.number)
            })
        })
    }
}

// === impl Port ===

impl Port {
    fn is(&self, plan: &PortPlan) -> bool {
        self.name == plan.name.port && self.protocol == plan.name.protocol
    }
}

// === impl Numbers ===

impl Numbers {
    /// All but these, which are in ascending order. Those above the highest come first.
    pub fn without(used: &[u32]) -> Self {
        let above = used.last().map_or(1, |highest| highest + 1)..NUMBER_MASK + 1;
        let gaps = [0].iter().chain(used).zip(used).map(|(before, next)| before + 1..*next);
        let unused = [above].into_iter().chain(gaps).filter(|range| !range.is_empty()).collect();
        Self { unused, free: VecDeque::new() }
    }

    /// A number that no port has.
    fn take(&mut self) -> Option<u32> {
        while let Some(range) = self.unused.front_mut() {
            match range.next() {
                None => self.unused.pop_front(),
                number => return number,
            };
        }
        self.free.pop_front()
    }
}

impl Default for Numbers {
    fn default() -> Self {
        Self::without(&[])
    }
}

// === impl Shared ===

impl Shared {
    /// Adds what changes between two footprints; of shared elements, only the first and the last user count.
    fn difference(&mut self, old: &Footprint, new: &Footprint, shapes: &Shapes, changes: &mut Changes) {
        let (mut gone, mut added) = (Vec::new(), Vec::new());
        old.difference(new, shapes, |record| gone.push(record), |record| added.push(record));
        for record in added {
            if !set_of(record).is_shared() || self.add(record) {
                changes.added.push_record(record);
            }
        }
        for record in gone {
            if !set_of(record).is_shared() || self.remove(record) {
                changes.gone.push_record(record);
            }
        }
    }

    fn add(&mut self, record: &[u8]) -> bool {
        if let Some(count) = self.0.get_mut(record) {
            *count += 1;
            return false;
        }
        self.0.insert(record.into(), 1);
        true
    }

    fn remove(&mut self, record: &[u8]) -> bool {
        match self.0.get_mut(record) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            _ => self.0.remove(record).is_some(),
        }
    }
}

// === impl Changes ===

impl Changes {
    /// Wants this element gone.
    pub fn remove(&mut self, record: &[u8]) {
        self.gone.push_record(record);
    }

    /// Wants this element added.
    pub fn add(&mut self, record: &[u8]) {
        self.added.push_record(record);
    }

    /// Bytes of all records: a measure of the size of the transaction.
    pub fn size(&self) -> usize {
        self.gone.size() + self.added.size()
    }

    /// What to remove and what to add.
    pub fn finish(self) -> (Footprint, Footprint) {
        (self.gone.finish(), self.added.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_again_when_there_is_no_other() {
        for (used, first, next) in [
            (&[][..], 1, 2),
            (&[0, 2, 5], 6, 7),
            (&[0, 1, NUMBER_MASK], 2, 3),
            (&[2, 4, NUMBER_MASK - 1], NUMBER_MASK, 1),
            (&[2, 4, NUMBER_MASK], 1, 3),
        ] {
            let mut numbers = Numbers::without(used);
            assert_eq!((numbers.take(), numbers.take()), (Some(first), Some(next)), "{used:?}");
        }
        let mut all = Numbers::without(&(1..=NUMBER_MASK).collect::<Vec<_>>());
        assert_eq!(all.take(), None);
        all.free.push_back(7);
        assert_eq!((all.take(), all.take()), (Some(7), None));
    }
}
