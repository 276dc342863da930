//! Removes all that a kube-proxy in iptables mode ever made, this one or another (contract 9.9).
//!
//! Needs no backend: it reads what is there and takes exactly that away. Must not touch anybody else's rules, and KUBE-FIREWALL
//! stays, because kubelet uses it too.

use crate::backend::Error;
use crate::kernel::nfacct;
use crate::model::Family;

use super::held::Held;
use super::probe::Tools;
use super::restore::{self, Aside, Section};
use super::shared::{COUNTERS, FIREWALL, Table};
use super::state;

/// Removes the rules of iptables mode in a family; quick when there are none, and no error when there is no iptables.
/// Tries every table, and reports all that failed.
pub fn cleanup(family: Family) -> Result<(), Error> {
    let Some(tools) = Tools::find(family)? else { return Ok(()) };
    let outcomes = [Table::Nat, Table::Filter, Table::Mangle].map(|table| clean(tools, table));
    if outcomes.iter().any(|outcome| matches!(outcome, Ok(true))) {
        // The other family's rules may still count into them: then they stay.
        COUNTERS.iter().for_each(|counter| drop(nfacct::remove(counter)));
    }
    let failures: Vec<_> = outcomes.into_iter().filter_map(Result::err).map(|Error(failure)| failure).collect();
    if failures.is_empty() { Ok(()) } else { Err(Error(format!("remove iptables rules: {}", failures.join("; ")))) }
}

/// Whether there was anything to remove.
fn clean(tools: Tools, table: Table) -> Result<bool, Error> {
    let held = Held::read(tools, table)?;
    if held.is_empty() {
        return Ok(false);
    }
    let mut section = Section::new(table)?;
    for rule in held.to_remove() {
        section.add(format_args!("-D {rule}\n"))?;
    }
    let ours = held.shared.keys().filter(|name| ***name != *FIREWALL);
    for name in ours.clone() {
        section.add(format_args!(":{name} - [0:0]\n"))?;
    }
    state::remove_chains(&mut section, held.chains.keys().copied())?;
    for name in ours {
        section.add(format_args!("-X {name}\n"))?;
    }
    restore::run(tools, &mut [section], 0, &mut Aside::new()).map(|_| true)
}
