//! Names of objects, and tables by them.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::rc::Rc;

/// Namespace and name of an object. Cheap to clone: one allocation is shared by all who mention the object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectName(Rc<Name>);

/// `namespace/name` as one text, and where the slash is. A name is looked up far more often than it is read, in a dozen
/// tables: its hash is kept.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    text: Box<str>,
    slash: u32,
    hash: u32,
}

/// A table of things by the name of their object.
pub type NameMap<V> = HashMap<ObjectName, V, BuildHasherDefault<NameHasher>>;

/// A set of names.
pub type NameSet = HashSet<ObjectName, BuildHasherDefault<NameHasher>>;

/// Passes on the hash that a name keeps, spread over all bits: tables look at the lowest and at the highest ones.
#[derive(Default)]
pub struct NameHasher(u64);

thread_local! {
    /// The key that names are hashed with: nobody outside can make them collide.
    static KEY: RandomState = RandomState::new();
}

// === impl ObjectName ===

impl ObjectName {
    /// The name of an object in a namespace.
    pub fn new(namespace: &str, name: &str) -> Self {
        let text: Box<str> = [namespace, "/", name].concat().into();
        // Any part of a good hash is a good hash; names are far shorter than 4 GB.
        let hash = KEY.with(|key| key.hash_one(&*text)) as u32;
        Self(Rc::new(Name { text, slash: namespace.len() as u32, hash }))
    }

    /// `namespace/name`. Names are in the order of these.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.0.text[..self.0.slash as usize]
    }

    /// The name within its namespace.
    pub fn name(&self) -> &str {
        &self.0.text[self.0.slash as usize + 1..]
    }
}

impl Hash for ObjectName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u32(self.0.hash);
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

// === impl NameHasher ===

impl NameHasher {
    /// 2^64 divided by the golden ratio: odd, and its bits are everywhere (Knuth, The Art of Computer Programming 6.4).
    const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;
}

impl Hasher for NameHasher {
    fn write_u32(&mut self, hash: u32) {
        self.0 = (self.0 ^ u64::from(hash)).wrapping_mul(Self::SPREAD);
    }

    /// Names write one `u32`; whatever else is taken byte by byte.
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u32(byte.into()));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_tables_and_spread_over_them() {
        let names: Vec<_> = (0..4096).map(|number| ObjectName::new("ns", &format!("s{number}"))).collect();
        let table: NameMap<usize> = names.iter().cloned().zip(0..).collect();
        assert!(names.iter().enumerate().all(|(number, name)| table[&ObjectName::new("ns", name.name())] == number));
        let hashes = names.iter().map(|name| BuildHasherDefault::<NameHasher>::default().hash_one(name));
        let (low, high): (HashSet<_>, HashSet<_>) = hashes.map(|hash| (hash & 0xFFF, hash >> 57)).unzip();
        // Of 4096 values drawn at random from as many, 63 % occur.
        assert!(low.len() > 2300 && high.len() == 128, "{} {}", low.len(), high.len());
    }
}
