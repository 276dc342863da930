//! Records: set elements as bytes, and footprints: all the elements of one Service port in one allocation.
//!
//! A record is the number of its set, the key, the end of the key's range where the set has ranges, and the value.
//! Everything has the length that its set prescribes, so records need no delimiters and compare as bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::layout::{SET_COUNT, Set, sets};
use crate::kernel::nftables::{Data, Element, Field, ReadElement, Value};
use crate::model::Family;

/// How long the parts of a set's records are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    key: usize,
    end: usize,
    data: usize,
    /// The last byte tells whether this is the end of a range (plain interval sets).
    marks_ends: bool,
}

/// The shapes of all sets of a family.
#[derive(Clone, Copy, Debug)]
pub struct Shapes {
    of_sets: [Shape; SET_COUNT],
    /// Bytes of an address.
    address: usize,
}

/// The elements of one Service port: records in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footprint(Box<[u8]>);

/// Collects records.
#[derive(Debug, Default)]
pub struct Records {
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

/// The set that a record belongs to.
pub fn set_of(record: &[u8]) -> Set {
    Set::ALL[usize::from(record[0])]
}

/// Bytes of an address.
pub fn address_bytes(address: IpAddr) -> ([u8; 16], usize) {
    let mut bytes = [0; 16];
    match address {
        IpAddr::V4(v4) => {
            bytes[..4].copy_from_slice(&v4.octets());
            (bytes, 4)
        }
        IpAddr::V6(v6) => (v6.octets(), 16),
    }
}

/// A protocol or port in its four bytes.
pub fn padded_port(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// Reads what an endpoint's value says: address and port.
pub fn read_endpoint(data: &[u8]) -> Option<SocketAddr> {
    let (address, port) = data.split_at_checked(data.len().checked_sub(4)?)?;
    let address = match address.len() {
        4 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?)),
        _ => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?)),
    };
    Some(SocketAddr::new(address, u16::from_be_bytes([port[0], port[1]])))
}

/// Reads a number in the byte order of this machine, as `meta priority` and `numgen` have it.
pub fn read_number(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_ne_bytes)
}

// === impl Shapes ===

impl Shapes {
    /// The shapes of a family's sets.
    pub fn new(family: Family) -> Self {
        let of_sets = sets(family).map(|set| {
            let key = Field::total(set.key);
            let ranges = set.interval && !set.has_interval_ends();
            let data = if let Some(Data::Fields(fields)) = set.data { Field::total(fields) } else { 0 };
            Shape { key, end: if ranges { key } else { 0 }, data, marks_ends: set.has_interval_ends() }
        });
        Self { of_sets, address: usize::from(family.host_bits() / 8) }
    }

    fn of(&self, record: &[u8]) -> Shape {
        self.of_sets[usize::from(record[0])]
    }

    /// The set number and key of a record: what the kernel tells elements apart by.
    pub fn identity<'a>(&self, record: &'a [u8]) -> &'a [u8] {
        let shape = self.of(record);
        if shape.marks_ends { record } else { &record[..1 + shape.key + shape.end] }
    }

    /// The key of a record.
    pub fn key<'a>(&self, record: &'a [u8]) -> &'a [u8] {
        &record[1..=self.of(record).key]
    }

    /// The value of a record.
    pub fn data<'a>(&self, record: &'a [u8]) -> &'a [u8] {
        let shape = self.of(record);
        &record[1 + shape.key + shape.end..][..shape.data]
    }

    /// A record whose key ends in the first address of a range, and whose end in the last one: what comes before them, and
    /// both.
    pub fn range<'a>(&self, record: &'a [u8]) -> (&'a [u8], &'a [u8], &'a [u8]) {
        let shape = self.of(record);
        let (key, end) = record[..1 + shape.key + shape.end].split_at(1 + shape.key);
        let (same, first) = key.split_at(key.len() - self.address);
        (same, first, &end[end.len() - self.address..])
    }

    /// A record as an element to send.
    pub fn element<'a>(&self, record: &'a [u8]) -> Element<'a> {
        let shape = self.of(record);
        let (key, rest) = record[1..].split_at(shape.key);
        let (end, data) = rest.split_at(shape.end);
        Element {
            key,
            end: (shape.end > 0).then_some(end),
            data: if shape.data > 0 { Value::Bytes(data) } else { Value::None },
            interval_end: shape.marks_ends && data == [1],
        }
    }

    /// An element that was read as a record; `None` if it does not have the set's shape.
    pub fn record(&self, set: Set, read: &ReadElement<'_>, into: &mut Vec<u8>) -> Option<()> {
        let shape = self.of_sets[set as usize];
        let data = if let Value::Bytes(bytes) = read.data { bytes } else { &[] };
        let end = if shape.end > 0 { read.end.unwrap_or(read.key) } else { &[] };
        if (read.key.len(), end.len(), data.len()) != (shape.key, shape.end, shape.data) {
            return None;
        }
        into.clear();
        into.push(set as u8);
        into.extend_from_slice(read.key);
        into.extend_from_slice(end);
        into.extend_from_slice(data);
        if shape.marks_ends {
            into.push(u8::from(read.interval_end));
        }
        Some(())
    }

    fn length(&self, record: &[u8]) -> usize {
        let shape = self.of(record);
        1 + shape.key + shape.end + shape.data + usize::from(shape.marks_ends)
    }
}

// === impl Footprint ===

impl Footprint {
    /// The records, in ascending order.
    pub fn records<'a>(&'a self, shapes: &'a Shapes) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let length = if rest.is_empty() { return None } else { shapes.length(rest) };
            let (record, after) = rest.split_at(length);
            rest = after;
            Some(record)
        })
    }

    /// Hands what `new` has no more to `gone`, and what it has in addition to `added`.
    pub fn difference<'a>(
        &'a self,
        new: &'a Self,
        shapes: &'a Shapes,
        mut gone: impl FnMut(&'a [u8]),
        mut added: impl FnMut(&'a [u8]),
    ) {
        let (mut old, mut new) = (self.records(shapes).peekable(), new.records(shapes).peekable());
        loop {
            match (old.peek(), new.peek()) {
                (Some(o), Some(n)) if o == n => {
                    old.next();
                    new.next();
                }
                (Some(o), Some(n)) if o > n => new.next().into_iter().for_each(&mut added),
                (Some(_), _) => old.next().into_iter().for_each(&mut gone),
                (None, Some(_)) => new.next().into_iter().for_each(&mut added),
                (None, None) => return,
            }
        }
    }
}

// === impl Records ===

impl Records {
    /// Adds a record made of these parts; lengths are the caller's word.
    pub fn push(&mut self, set: Set, parts: &[&[u8]]) {
        self.starts.push(self.bytes.len());
        self.bytes.push(set as u8);
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
    }

    /// Adds a whole record.
    pub fn push_record(&mut self, record: &[u8]) {
        self.starts.push(self.bytes.len());
        self.bytes.extend_from_slice(record);
    }

    /// Bytes of all records.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Sorts them into a footprint; what was added twice is there once.
    pub fn finish(self) -> Footprint {
        let ends = self.starts.iter().skip(1).copied().chain([self.bytes.len()]);
        let mut records: Vec<&[u8]> =
            self.starts.iter().zip(ends).map(|(&start, end)| &self.bytes[start..end]).collect();
        records.sort_unstable();
        records.dedup();
        Footprint(records.concat().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footprint(addresses: &[[u8; 4]]) -> Footprint {
        let mut records = Records::default();
        for address in addresses {
            records.push(Set::ClusterIps, &[address]);
        }
        records.finish()
    }

    #[test]
    fn a_difference_names_what_changed_and_nothing_else() {
        let shapes = Shapes::new(Family::V4);
        let old = footprint(&[[10, 0, 0, 3], [10, 0, 0, 1], [10, 0, 0, 2]]);
        let new = footprint(&[[10, 0, 0, 2], [10, 0, 0, 4], [10, 0, 0, 4]]);
        let (mut gone, mut added) = (Vec::new(), Vec::new());
        old.difference(&new, &shapes, |r| gone.push(r[4]), |r| added.push(r[4]));
        assert_eq!((gone, added), (vec![1, 3], vec![4]));
    }

    #[test]
    fn endpoints_can_be_read_back() {
        for endpoint in ["10.0.0.1:80", "[fd00::1]:65535"] {
            let endpoint: SocketAddr = endpoint.parse().unwrap();
            let (bytes, length) = address_bytes(endpoint.ip());
            let data = [&bytes[..length], &padded_port(endpoint.port())].concat();
            assert_eq!(read_endpoint(&data), Some(endpoint));
        }
        assert_eq!(read_endpoint(&[1, 2]), None);
    }
}
