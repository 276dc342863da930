//! What the kernel holds of ours, read with `iptables-save` and reduced to fingerprints, so that a restart changes only
//! what differs.
//!
//! Must not decide what should be there.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};

use crate::backend::Error;

use super::names::ChainName;
use super::probe::Tools;
use super::shape::Jump;
use super::shared::{FIREWALL, Table, goes, is_draw, is_ours};

/// A chain's rules in their order, without comments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ordered(u64);

/// A chain's rules in any order, but for the last; with comments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unordered {
    sum: u64,
    last: u64,
}

/// What one table holds of ours.
#[derive(Default)]
pub struct Held {
    /// Chains of single Services.
    pub chains: HashMap<ChainName, Ordered>,
    /// All other chains of ours, and those we share with kubelet.
    pub shared: HashMap<Box<str>, (Ordered, Unordered)>,
    /// The rules that lead from others' chains to ours, without `-A`.
    pub jumps: Vec<String>,
}

/// The part of a comment that `iptables-save` prints before the text; ours always need quotes.
const COMMENT: &str = "-m comment --comment \"";

// === impl Ordered ===

impl Ordered {
    /// Of lines as they are printed, with their newlines.
    pub fn of(text: &str) -> Self {
        let mut print = Self::default();
        text.lines().for_each(|line| print.add(line));
        print
    }

    fn add(&mut self, line: &str) {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.0);
        let mut rest = line;
        while let Some((before, after)) = rest.split_once(COMMENT) {
            hasher.write(before.as_bytes());
            rest = after.split_once("\" ").map_or("", |(_, rest)| rest);
        }
        hasher.write(rest.as_bytes());
        self.0 = hasher.finish();
    }
}

// === impl Unordered ===

impl Unordered {
    /// Adds a line, which becomes the last.
    pub fn add(&mut self, line: &str) {
        let mut hasher = DefaultHasher::new();
        hasher.write(line.as_bytes());
        self.last = hasher.finish();
        self.sum = self.sum.wrapping_add(self.last);
    }

    /// Whether both are of the same lines, and, if that matters, the same of them is the last.
    pub fn is_like(self, other: Self, last: bool) -> bool {
        self.sum == other.sum && (!last || self.last == other.last)
    }
}

// === impl Held ===

impl Held {
    /// Reads a table.
    pub fn read(tools: Tools, table: Table) -> Result<Self, Error> {
        let mut held = Self::default();
        tools.save(table, |line| held.take(table, line))?;
        Ok(held)
    }

    /// Whether there is this jump, however its matches are ordered.
    pub fn has(&self, jump: &Jump) -> bool {
        let wanted = jump.to_string();
        self.jumps.iter().any(|rule| *rule == wanted || words(rule) == words(&wanted))
    }

    /// A rule in somebody else's chain that leads to this one, so that it cannot be removed.
    pub fn jump_to(&self, name: &str) -> Option<&str> {
        self.jumps.iter().map(String::as_str).find(|rule| leads_to(rule) == Some(name))
    }

    fn take(&mut self, table: Table, line: &str) {
        if let Some(declaration) = line.strip_prefix(':') {
            let name = declaration.split(' ').next().unwrap_or_default();
            if let Some(name) = ChainName::parse(name) {
                self.chains.insert(name, Ordered::default());
            } else if is_ours(table, name) || name == FIREWALL {
                self.shared.insert(name.into(), Default::default());
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let name = rule.split(' ').next().unwrap_or_default();
            if let Some(ordered) = ChainName::parse(name).and_then(|name| self.chains.get_mut(&name)) {
                ordered.add(line);
                return;
            }
            if let Some((ordered, unordered)) = self.shared.get_mut(name) {
                ordered.add(line);
                unordered.add(line);
            }
            if !goes(table, name) && leads_to(rule).is_some_and(|to| goes(table, to) || to == FIREWALL) {
                self.jumps.push(rule.to_owned());
            }
        }
    }

    /// The chains in which endpoints are drawn, and those that these lead to.
    pub fn draws(&self) -> impl Iterator<Item = &str> {
        self.shared.keys().map(|name| &**name).filter(|name| is_draw(name))
    }

    /// Whether anything is held that is ours alone.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
            && self.shared.keys().all(|name| **name == *FIREWALL)
            && self.to_remove().next().is_none()
    }

    /// The jumps that go when all of ours goes.
    pub fn to_remove(&self) -> impl Iterator<Item = &str> {
        self.jumps.iter().map(String::as_str).filter(|rule| leads_to(rule).is_some_and(|to| to != FIREWALL))
    }
}

/// The chain that a rule leads to, by `-j` or `-g`; or a target that takes no options.
fn leads_to(rule: &str) -> Option<&str> {
    let (rest, target) = rule.rsplit_once(' ')?;
    (rest.ends_with(" -j") || rest.ends_with(" -g")).then_some(target)
}

fn words(rule: &str) -> Vec<&str> {
    let mut words: Vec<_> = rule.split(' ').collect();
    words.sort_unstable();
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_make_no_difference_to_a_chain_but_order_does() {
        let plain = Ordered::of("-A X -s 10.0.0.1/32 -j Y\n-A X -j Z\n");
        assert_eq!(
            plain,
            Ordered::of(
                "-A X -s 10.0.0.1/32 -m comment --comment \"a b\" -j Y\n-A X -m comment --comment \"c/d\" -j Z\n"
            )
        );
        assert_ne!(plain, Ordered::of("-A X -j Z\n-A X -s 10.0.0.1/32 -j Y\n"));
        assert_ne!(plain, Ordered::of("-A X -s 10.0.0.1/32 -j Y\n"));
    }

    #[test]
    fn a_shared_chain_is_the_same_in_any_order_if_its_last_rule_stays_last() {
        let print = |lines: &[&str]| {
            let mut print = Unordered::default();
            lines.iter().for_each(|line| print.add(line));
            print
        };
        assert_eq!(print(&["a", "b", "z"]), print(&["b", "a", "z"]));
        assert_ne!(print(&["a", "b", "z"]), print(&["a", "z", "b"]));
        assert_ne!(print(&["a", "b", "z"]), print(&["a", "z"]));
    }

    #[test]
    fn a_saved_table_is_read() {
        let mut held = Held::default();
        for line in [
            "# Generated by iptables-save",
            "*nat",
            ":PREROUTING ACCEPT [0:0]",
            ":KUBE-SERVICES - [0:0]",
            ":KUBE-SVC-XPGD46QRK7WJZT7O - [0:0]",
            ":MINE - [0:0]",
            "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
            "-A PREROUTING -j MINE",
            "-A MINE -s 192.0.2.1/32 -g KUBE-SVC-XPGD46QRK7WJZT7O",
            "-A MINE -m comment --comment \"-j KUBE-SERVICES\" -j KUBE-SVC-MINE",
            "-A KUBE-SVC-XPGD46QRK7WJZT7O -j KUBE-SEP-CPWPCALSNDDLLDLJ",
            "COMMIT",
        ] {
            held.take(Table::Nat, line);
        }
        assert_eq!(
            held.jumps,
            [
                "PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
                "MINE -s 192.0.2.1/32 -g KUBE-SVC-XPGD46QRK7WJZT7O"
            ]
        );
        assert_eq!(held.jump_to("KUBE-SVC-XPGD46QRK7WJZT7O"), Some(&*held.jumps[1]));
        assert_eq!(held.jump_to("KUBE-SEP-CPWPCALSNDDLLDLJ"), None, "only our own leads there");
        assert_eq!(held.shared.keys().map(|k| &**k).collect::<Vec<_>>(), ["KUBE-SERVICES"]);
        let chain = held.chains[&ChainName::parse("KUBE-SVC-XPGD46QRK7WJZT7O").unwrap()];
        assert_eq!(chain, Ordered::of("-A KUBE-SVC-XPGD46QRK7WJZT7O -j KUBE-SEP-CPWPCALSNDDLLDLJ\n"));
    }
}
