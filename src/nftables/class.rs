//! Classes: the few ways in which an endpoint is chosen, each with a chain that all Services of the class share.

use std::collections::HashMap;

use nftables::expr::MetaKey;

use super::layout::{LOCAL_OFFSET, NUMBER_BITS, NUMBER_MASK, address_field, table_family};
use crate::kernel::nftrule::{LearnAction, Step};
use crate::kernel::nftwords::*;
use crate::model::Family;

/// A way to choose an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Class {
    /// Only from the endpoints of this node.
    pub local: bool,
    /// Number of slots to draw from, at least 1.
    pub size: u32,
    /// ClientIP affinity: seconds that a client is remembered.
    pub affinity: Option<u32>,
}

/// The classes and their indices.
#[derive(Debug, Default)]
pub struct Classes {
    known: HashMap<Class, Known>,
    highest: u32,
    /// Classes that the kernel does not know yet.
    fresh: Vec<(u32, Class)>,
    /// There was no room for one.
    full: bool,
}

#[derive(Debug)]
struct Known {
    index: u32,
    /// Some Service port was given the index.
    used: bool,
}

/// Class 0 means: no endpoint. It has no chain, so the packet goes on unchanged.
pub const NO_CLASS: u32 = 0;
const MAX_CLASSES: u32 = (1 << (32 - NUMBER_BITS)) - 1;

// === impl Class ===

impl Class {
    /// Name of its chain: `cluster-3`, `local-2-sticky-10800`.
    pub fn chain(&self) -> String {
        let group = if self.local { "local" } else { "cluster" };
        match self.affinity {
            None => format!("{group}-{}", self.size),
            Some(seconds) => format!("{group}-{}-sticky-{seconds}", self.size),
        }
    }

    /// The class of a chain that [`Class::chain`] named.
    pub fn of_chain(name: &str) -> Option<Self> {
        let (local, rest) = match name.split_once('-')? {
            ("local", rest) => (true, rest),
            ("cluster", rest) => (false, rest),
            _ => return None,
        };
        let (size, affinity) = match rest.split_once("-sticky-") {
            None => (rest, None),
            Some((size, seconds)) => (size, Some(seconds.parse().ok()?)),
        };
        let class = Self { local, size: size.parse().ok()?, affinity };
        (class.chain() == name).then_some(class)
    }

    /// The rules of its chain.
    pub fn rules(&self, family: Family) -> Vec<Vec<Step>> {
        match self.affinity {
            None => self.plain_rules(family),
            Some(seconds) => self.sticky_rules(family, seconds),
        }
    }

    /// Draw a slot, go to the endpoint in it. A change may come in between, after which there are fewer slots: the first one
    /// is there as long as any is.
    fn plain_rules(&self, family: Family) -> Vec<Vec<Step>> {
        let endpoint = |slot| dnat(table_family(family), map(concat([priority(), slot]), "endpoints"));
        vec![vec![only_number()], vec![endpoint(self.draw())], vec![endpoint(self.first())]]
    }

    /// A client that is remembered goes where it went, if that endpoint is still there. Else a slot is drawn and
    /// remembered; when there is no room to remember it, the next rule still balances. The last three are for packets
    /// that a change overtakes, as in a plain class.
    fn sticky_rules(&self, family: Family, seconds: u32) -> Vec<Vec<Step>> {
        let slots = if self.local { "local-slots" } else { "slots" };
        let client = || concat([address_field(family, "saddr"), and(priority(), classid(NUMBER_MASK))]);
        let known = concat([address_field(family, "saddr"), priority()]);
        vec![
            vec![only_number()],
            vec![
                set(MetaKey::Priority, map(known, "affinity")),
                learn(LearnAction::Update(seconds), "affinity", client(), priority()),
                dnat(table_family(family), map(priority(), slots)),
            ],
            vec![only_number()],
            vec![set(MetaKey::Priority, map(concat([priority(), self.draw()]), "draw"))],
            vec![learn(LearnAction::Delete, "affinity", client(), priority())],
            vec![learn(LearnAction::Add(seconds), "affinity", client(), priority())],
            vec![dnat(table_family(family), map(priority(), slots))],
            vec![only_number()],
            vec![set(MetaKey::Priority, map(concat([priority(), self.first()]), "draw"))],
            vec![dnat(table_family(family), map(priority(), slots))],
        ]
    }

    fn draw(&self) -> Value {
        random(self.size, self.offset())
    }

    /// The first slot, as the only one that can be drawn.
    fn first(&self) -> Value {
        random(1, self.offset())
    }

    /// Where this class's slots begin.
    pub fn offset(&self) -> u32 {
        if self.local { LOCAL_OFFSET } else { 0 }
    }
}

fn priority() -> Value {
    meta(MetaKey::Priority)
}

/// Removes class or slot, leaves the number of the Service port.
fn only_number() -> Step {
    set(MetaKey::Priority, and(priority(), classid(NUMBER_MASK)))
}

// === impl Classes ===

impl Classes {
    /// The index of a class, a new one if it is new. `None` when there is no room for another class.
    pub fn index(&mut self, class: Class) -> Option<u32> {
        if let Some(known) = self.known.get_mut(&class) {
            known.used = true;
            return Some(known.index);
        }
        let Some(index) = self.free_index() else {
            self.full = true;
            return None;
        };
        self.highest = self.highest.max(index);
        self.known.insert(class, Known { index, used: true });
        self.fresh.push((index, class));
        Some(index)
    }

    /// The next above the highest, and the lowest gap when there is none above. A class is known, and so has its index,
    /// until the kernel has forgotten it.
    fn free_index(&self) -> Option<u32> {
        if self.highest < MAX_CLASSES {
            return Some(self.highest + 1);
        }
        // Asked for by every Service port that finds no room: not worth a search.
        if self.has_no_gap() {
            return None;
        }
        let mut taken = [false; MAX_CLASSES as usize + 1];
        self.known.values().for_each(|known| taken[known.index as usize] = true);
        (NO_CLASS + 1..=MAX_CLASSES).find(|&index| !taken[index as usize])
    }

    fn has_no_gap(&self) -> bool {
        self.known.len() >= MAX_CLASSES as usize
    }

    /// Whether a class found no room: only a full load tells which ones are not used any more.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Takes over a class that the kernel knows by this key. `false` when that contradicts another one.
    pub fn adopt(&mut self, key: u32, class: Class) -> bool {
        let index = key >> NUMBER_BITS;
        self.highest = self.highest.max(index);
        key == index << NUMBER_BITS
            && index != NO_CLASS
            && self.known.insert(class, Known { index, used: false }).is_none()
    }

    /// Whether both know the same classes by the same indices.
    pub fn is_like(&self, other: &Self) -> bool {
        let index = |class| other.known.get(class).map(|known| known.index);
        self.known.len() == other.known.len()
            && self.known.iter().all(|(class, known)| index(class) == Some(known.index))
    }

    /// Whether a class is among them.
    pub fn knows(&self, class: &Class) -> bool {
        self.known.contains_key(class)
    }

    /// All classes.
    pub fn known(&self) -> impl Iterator<Item = &Class> {
        self.known.keys()
    }

    /// The classes that the kernel does not know yet, with their indices.
    pub fn fresh(&self) -> &[(u32, Class)] {
        &self.fresh
    }

    /// The kernel knows all of them now.
    pub fn settle(&mut self) {
        self.fresh.clear();
    }

    /// The kernel did not take the fresh ones.
    pub fn withdraw(&mut self) {
        for (_, class) in self.fresh.drain(..) {
            self.known.remove(&class);
        }
        self.note_room();
    }

    /// The classes that no Service port was given, with their indices: final once all ports have theirs.
    pub fn unused(&self) -> impl Iterator<Item = (u32, Class)> {
        self.known.iter().filter(|(_, known)| !known.used).map(|(class, known)| (known.index, *class))
    }

    /// Forgets the [`Classes::unused`] ones, once the kernel has: their indices are free. Returns whether any were.
    pub fn forget_unused(&mut self) -> bool {
        let before = self.known.len();
        self.known.retain(|_, known| known.used);
        self.note_room();
        self.known.len() < before
    }

    /// After classes were forgotten.
    fn note_room(&mut self) {
        self.highest = self.known.values().map(|known| known.index).max().unwrap_or(NO_CLASS);
        self.full &= self.has_no_gap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_its_class() {
        for (class, name) in [
            (Class { local: false, size: 3, affinity: None }, "cluster-3"),
            (Class { local: true, size: 1000, affinity: None }, "local-1000"),
            (Class { local: false, size: 2, affinity: Some(10800) }, "cluster-2-sticky-10800"),
        ] {
            assert_eq!(class.chain(), name);
            assert_eq!(Class::of_chain(name), Some(class));
        }
        for foreign in ["cluster-ip", "local", "cluster-03", "cluster-3-sticky-", "services", "cluster-ip-check"] {
            assert_eq!(Class::of_chain(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn classes_keep_their_index() {
        let mut classes = Classes::default();
        let three = Class { local: false, size: 3, affinity: None };
        assert_eq!(classes.index(three), Some(1));
        assert_eq!(classes.index(Class { size: 4, ..three }), Some(2));
        assert_eq!(classes.index(three), Some(1));
        assert_eq!(classes.fresh().len(), 2);
        classes.settle();
        assert!(!classes.adopt(7 << NUMBER_BITS, three), "a class has one index");
        assert!(classes.adopt(9 << NUMBER_BITS, Class { size: 5, ..three }));
        assert_eq!(classes.index(Class { size: 6, ..three }), Some(10));
        classes.withdraw();
        assert_eq!(classes.index(Class { size: 7, ..three }), Some(10), "what was withdrawn leaves its index");
    }

    #[test]
    fn classes_that_nobody_uses_make_room() {
        let mut classes = Classes::default();
        let class = |size| Class { local: false, size, affinity: None };
        (1..=MAX_CLASSES).for_each(|index| assert!(classes.adopt(index << NUMBER_BITS, class(index))));
        assert!(!classes.is_full());
        assert_eq!(classes.index(class(0)), None);
        assert!(classes.is_full());
        assert_eq!(classes.index(class(7)), Some(7));
        assert_eq!(classes.unused().count(), MAX_CLASSES as usize - 1);
        assert!(classes.unused().all(|(index, class)| index == class.size && class.size != 7));
        assert_eq!(classes.index(class(0)), None, "the kernel still has them");
        assert!(classes.forget_unused());
        assert!(!classes.is_full());
        assert_eq!(classes.index(class(0)), Some(8));
        assert!(!classes.forget_unused(), "all are used");
    }

    #[test]
    fn gaps_are_filled_when_the_top_is_reached() {
        let mut classes = Classes::default();
        let class = |size| Class { local: false, size, affinity: None };
        assert!([2, MAX_CLASSES].into_iter().all(|index| classes.adopt(index << NUMBER_BITS, class(index))));
        assert_eq!(classes.index(class(MAX_CLASSES)), Some(MAX_CLASSES));
        assert_eq!(classes.index(class(5000)), Some(1));
        assert_eq!(classes.index(class(5001)), Some(3), "neither one that the kernel has nor one that it is to get");
        classes.withdraw();
        assert_eq!(classes.index(class(5002)), Some(1), "what was withdrawn leaves its index");
        classes.settle();
        assert!(classes.forget_unused());
        assert_eq!(classes.index(class(5003)), Some(2));
        (3..MAX_CLASSES).for_each(|index| assert_eq!(classes.index(class(6000 + index)), Some(index)));
        assert!(!classes.is_full());
        assert_eq!(classes.index(class(5004)), None);
        assert!(!classes.forget_unused() && classes.is_full(), "nothing became free");
        classes.withdraw();
        assert!(!classes.is_full());
        assert_eq!(classes.index(class(5004)), Some(2));
    }
}
