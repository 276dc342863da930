//! The elements of one set as the kernel holds them, to find out at a start which are missing and which nobody wants.
//!
//! Kept as plain bytes: of 10,000 Services these are 160 kB, and ten times that as a hash table of records, just when a
//! restart needs the most memory. Must not know what the bytes mean.

use std::cmp::Ordering;

/// Elements of one length, in order once they are [sorted](Held::sort).
#[derive(Default)]
pub struct Held {
    bytes: Vec<u8>,
    /// Bytes of each.
    length: usize,
    /// Of each, whether it is wanted.
    wanted: Vec<bool>,
}

// === impl Held ===

impl Held {
    /// Adds an element, given in parts. All have the same length.
    pub fn push(&mut self, parts: [&[u8]; 2]) {
        self.length = parts.map(<[u8]>::len).iter().sum();
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
    }

    /// Puts them in order, when all are there.
    pub fn sort(&mut self) {
        let mut elements: Vec<&[u8]> = self.bytes.chunks_exact(self.length.max(1)).collect();
        elements.sort_unstable();
        self.wanted = vec![false; elements.len()];
        self.bytes = elements.concat();
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes note that an element is wanted. Returns whether it is there.
    pub fn want(&mut self, element: &[u8]) -> bool {
        let found = self.find(element);
        found.inspect(|&index| self.wanted[index] = true).is_some()
    }

    /// What nobody wanted.
    pub fn leftovers(&self) -> impl Iterator<Item = &[u8]> {
        let elements = self.bytes.chunks_exact(self.length.max(1)).zip(&self.wanted);
        elements.filter(|(_, wanted)| !**wanted).map(|(element, _)| element)
    }

    fn find(&self, element: &[u8]) -> Option<usize> {
        let (mut low, mut high) = (0, self.wanted.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.bytes[middle * self.length..][..self.length].cmp(element) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Some(middle),
                Ordering::Greater => high = middle,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_found_and_the_rest_is_left_over() {
        for count in 0..20u8 {
            let mut held = Held::default();
            // In no order: 7 and 20 have no common divisor.
            let elements: Vec<[u8; 2]> = (0..count).map(|n| [n * 7 % 20, n]).collect();
            elements.iter().for_each(|[a, b]| held.push([&[*a], &[*b]]));
            held.sort();
            assert_eq!(held.is_empty(), count == 0);
            for (index, element) in elements.iter().enumerate() {
                assert!(index % 3 == 0 || held.want(element), "{element:?} of {count}");
            }
            assert!(!held.want(&[20, 0]) && !held.want(&[0, 20]));
            let mut expected: Vec<[u8; 2]> = elements.iter().copied().step_by(3).collect();
            expected.sort_unstable();
            assert_eq!(held.leftovers().collect::<Vec<_>>(), expected);
        }
    }
}
