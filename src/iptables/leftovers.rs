//! Removes the rules that iptables-nft keeps, over netlink: table `nat` of IPv4 is the nf_tables table `ip nat`, and so on.
//!
//! Needs no tool, so it works in an image that holds nothing but us. Must not decide what is ours: [`super::shared`] does.

use std::collections::BTreeMap;
use std::io;

use crate::backend::Error;
use crate::kernel::nftables::{Batch, CommitError, Nftables, is_absent};
use crate::model::Family;

use super::shared::{Table, goes};
use super::watch::table_family;

/// Bytes of a transaction: four thousand chains fit in. Small enough not to keep a Pi's kernel busy for long.
const PORTION: usize = 512 << 10;
/// How many transactions are tried for a table. One is enough, unless there are thousands of chains, or somebody else
/// changes the ruleset meanwhile.
const ATTEMPTS: usize = 64;
/// More bytes than any message has that removes something here: names are up to 256 bytes long.
const MESSAGE: usize = 1024;

/// What a table holds of ours, in one generation of the ruleset.
#[derive(Default)]
struct Found {
    generation: u32,
    /// The rules in others' chains that lead to ours: chain and handle.
    jumps: Vec<(String, u64)>,
    /// Our chains, and whether there are rules in them.
    chains: BTreeMap<String, bool>,
}

/// Removes our chains from a table of iptables-nft, and what leads there. Returns whether there was anything.
///
/// The door is closed again for each table: then the kernel makes sure that what went has let go of the counters and ipsets
/// that it used (nft_rcv_nl_event).
pub fn remove(family: Family, table: Table) -> Result<bool, Error> {
    let failed =
        |reason: &dyn std::fmt::Display| Error(format!("remove chains from table {}: {reason}", table.as_str()));
    let mut nft = match Nftables::open() {
        // Such a kernel has no rules of iptables-nft.
        Err(error) if is_absent(&error) => return Ok(false),
        other => other.map_err(|error| failed(&error))?,
    };
    let mut removed = false;
    for _ in 0..ATTEMPTS {
        let found = match Found::read(&mut nft, family, table) {
            // It changed while it was read.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other.map_err(|error| failed(&error))?,
        };
        if found.chains.is_empty() {
            return Ok(removed);
        }
        let (mut batch, complete) = found.removal(family, table, nft.limit().min(PORTION));
        match nft.commit(&mut batch) {
            Ok(()) if complete => return Ok(true),
            Ok(()) => removed = true,
            Err(CommitError::Changed) => {}
            Err(error) => return Err(failed(&error)),
        }
    }
    Err(failed(&"another program changes the ruleset all the time; stop a second kube-proxy, if there is one"))
}

// === impl Found ===

impl Found {
    fn read(nft: &mut Nftables, family: Family, table: Table) -> io::Result<Self> {
        let generation = match nft.generation() {
            Err(error) if is_absent(&error) => return Ok(Self::default()),
            other => other?,
        };
        let ours = nft.chains(table_family(family), table.as_str())?.into_iter().filter(|(name, _)| goes(table, name));
        let mut chains: BTreeMap<_, _> = ours.map(|(name, _)| (name, false)).collect();
        let mut jumps = Vec::new();
        if !chains.is_empty() {
            nft.each_rule(table_family(family), table.as_str(), |rule| {
                if let Some(filled) = chains.get_mut(rule.chain) {
                    *filled = true;
                } else if rule.leads_to.is_some_and(|to| chains.contains_key(to)) {
                    jumps.push((rule.chain.to_owned(), rule.handle));
                }
            })?;
        }
        Ok(Self { generation, jumps, chains })
    }

    /// A transaction that removes as much as it has room for, in bytes, and whether that is all. A chain goes only when
    /// nothing leads to it any more; so wherever this stops, what is left is whole, and nothing comes there.
    fn removal(&self, family: Family, table: Table, limit: usize) -> (Batch, bool) {
        let mut batch = Batch::new(table_family(family), table.as_str(), Some(self.generation));
        let has_room = |batch: &Batch| batch.len() + MESSAGE < limit;
        for (chain, handle) in &self.jumps {
            if !has_room(&batch) {
                return (batch, false);
            }
            batch.delete_rule(chain, *handle);
        }
        for (chain, _) in self.chains.iter().filter(|(_, filled)| **filled) {
            if !has_room(&batch) {
                return (batch, false);
            }
            batch.flush_chain(chain);
        }
        for chain in self.chains.keys() {
            if !has_room(&batch) {
                return (batch, false);
            }
            batch.delete_chain(chain);
        }
        (batch, true)
    }
}
