//! Words that many objects say, each kept once: names of ports and zones.
//!
//! Must not grow with time: what nobody says any more is forgotten.

use std::collections::HashSet;
use std::rc::Rc;

/// Below this it is not worth while to look for words to forget.
const FEW: usize = 64;

/// The words in use.
#[derive(Default)]
pub struct Words {
    known: HashSet<Rc<str>>,
    /// How many were left when the unused ones were last forgotten.
    used: usize,
}

// === impl Words ===

impl Words {
    /// The one copy of a word.
    pub fn share(&mut self, word: &str) -> Rc<str> {
        if let Some(known) = self.known.get(word) {
            return Rc::clone(known);
        }
        if self.known.len() >= FEW.max(2 * self.used) {
            self.known.retain(|word| Rc::strong_count(word) > 1);
            self.used = self.known.len();
        }
        let word: Rc<str> = word.into();
        self.known.insert(Rc::clone(&word));
        word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_kept_once() {
        let mut words = Words::default();
        assert!(Rc::ptr_eq(&words.share("http"), &words.share("http")));
    }

    #[test]
    fn what_nobody_says_is_forgotten() {
        let mut words = Words::default();
        let kept = words.share("http");
        (0..1000).for_each(|number| drop(words.share(&number.to_string())));
        assert!(words.known.len() <= FEW, "{} are left", words.known.len());
        assert!(Rc::ptr_eq(&kept, &words.share("http")), "a word in use stays");
    }
}
