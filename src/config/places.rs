//! Where in the configuration file each key stands, so that whatever is said about a value can be found by its reader.
//!
//! Notes places and names only, never a value; does not know what a key is good for.

use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_saphyr::Spanned;

/// The keys of one file.
#[derive(Clone, Debug)]
pub struct Places {
    file: String,
    keys: Keys,
}

/// All keys of a document, in its order.
#[derive(Clone, Debug, Default)]
pub struct Keys(Vec<Key>);

/// A key: its path as a JSON pointer, and where it stands, counted from one.
#[derive(Clone, Debug)]
struct Key {
    pointer: String,
    line: u64,
    column: u64,
}

/// Collects the keys below one path.
struct Below<'a> {
    pointer: &'a str,
    keys: &'a mut Vec<Key>,
}

// === impl Places ===

impl Places {
    /// The keys of this file.
    pub fn new(file: &str, keys: Keys) -> Self {
        Self { file: file.to_owned(), keys }
    }

    /// The place of the value at this JSON pointer, or of what holds it: `<file>:<line>:<column>`.
    pub fn find(&self, pointer: &str) -> Option<String> {
        let holds = |key: &&Key| {
            let rest = pointer.strip_prefix(&*key.pointer);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.keys.0.iter().rfind(holds).map(|key| self.place(key))
    }

    /// One line for each key that is not in `known` (but not for what stands below it) and for each repeated one.
    pub fn odd_keys(&self, known: &Value) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let mut odd = Vec::new();
        for key in &self.keys.0 {
            let (parent, name) = key.pointer.rsplit_once('/').unwrap_or(("", &key.pointer));
            let free_names = parent == "/featureGates";
            let in_list = parent.ends_with("/0");
            let unknown = known.pointer(&key.pointer).is_none() && known.pointer(parent).is_some_and(Value::is_object);
            if unknown && !free_names {
                odd.push(format!("{}: unknown field {name:?}, ignored", self.place(key)));
            } else if !seen.insert(&key.pointer) && !in_list {
                odd.push(format!("{}: key {name:?} already set above, the last one wins", self.place(key)));
            }
        }
        odd
    }

    fn place(&self, key: &Key) -> String {
        format!("{}:{}:{}", self.file, key.line, key.column)
    }
}

// === impl Keys ===

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut keys = Vec::new();
        Below { pointer: "", keys: &mut keys }.deserialize(deserializer)?;
        Ok(Self(keys))
    }
}

// === impl Below ===

impl<'de> DeserializeSeed<'de> for Below<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Below<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let pointer = format!("{}/{}", self.pointer, key.value);
            let (line, column) = (key.referenced.line(), key.referenced.column());
            self.keys.push(Key { pointer: pointer.clone(), line, column });
            map.next_value_seed(Below { pointer: &pointer, keys: self.keys })?;
        }
        Ok(())
    }

    /// All elements of a list have the same keys, so they share the first one's path.
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let pointer = format!("{}/0", self.pointer);
        while list.next_element_seed(Below { pointer: &pointer, keys: self.keys })?.is_some() {}
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }
}
