//! Removes all that a kube-proxy in iptables mode ever made, this one or another (contract 9.9).
//!
//! Needs no backend: it reads what is there and takes exactly that away. What the nft variant keeps is removed over netlink;
//! to read what the legacy variant keeps takes its tools. Must not touch anybody else's rules, and KUBE-FIREWALL stays,
//! because kubelet uses it too.

use crate::backend::Error;
use crate::kernel::{nfacct, xtables};
use crate::model::Family;

use super::held::Held;
use super::leftovers;
use super::probe::Tools;
use super::restore::{self, Aside, Section};
use super::shared::{COUNTERS, FIREWALL, Table};
use super::state;
use super::watch::domain;

/// Removes the rules of iptables mode in a family, of either variant; quick when there are none. Where the legacy variant
/// may have some and its tools are not there, it says so, and that is no error.
/// Tries every table, and reports all that failed.
pub fn cleanup(family: Family) -> Result<(), Error> {
    let mut outcomes: Vec<_> = Table::ALL.iter().map(|&table| leftovers::remove(family, table)).collect();
    outcomes.extend(clean_legacy(family));
    if outcomes.iter().any(|outcome| matches!(outcome, Ok(true))) {
        // The other family's rules may still count into them: then they stay.
        COUNTERS.iter().for_each(|counter| drop(nfacct::remove(counter)));
    }
    let failures: Vec<_> = outcomes.into_iter().filter_map(Result::err).map(|Error(failure)| failure).collect();
    if failures.is_empty() { Ok(()) } else { Err(Error(format!("remove iptables rules: {}", failures.join("; ")))) }
}

/// For each table that the legacy variant has something in: whether there was anything to remove.
fn clean_legacy(family: Family) -> Vec<Result<bool, Error>> {
    let is_used = |table: &Table| xtables::is_used(domain(family), table.as_str());
    let used: Vec<_> = Table::ALL.into_iter().filter(is_used).collect();
    if used.is_empty() {
        return Vec::new();
    }
    match Tools::legacy(family) {
        Ok(Some(tools)) => used.into_iter().map(|table| clean(tools, table)).collect(),
        Ok(None) => {
            if used.contains(&Table::Nat) {
                tell_what_may_be_left(family);
            }
            Vec::new()
        }
        Err(error) => vec![Err(error)],
    }
}

fn tell_what_may_be_left(family: Family) {
    let tool = match family {
        Family::V4 => "iptables-legacy",
        Family::V6 => "ip6tables-legacy",
    };
    log::warn!(
        ip_family = family.as_str();
        "rules of a kube-proxy in iptables mode may be left in the legacy tables of iptables, and still answer for Services \
         that are gone: {tool} is not here to look. On this node run `{tool}-save | grep -v KUBE- | {tool}-restore`, or \
         kube-proxy once from the image with iptables, or reboot"
    );
}

/// Whether there was anything to remove.
fn clean(tools: Tools, table: Table) -> Result<bool, Error> {
    let held = Held::read(tools, table)?;
    if held.is_empty() {
        return Ok(false);
    }
    let mut section = Section::new(table)?;
    for rule in held.to_remove() {
        section.add(&format!("-D {rule}\n"))?;
    }
    let ours = held.shared.keys().filter(|name| ***name != *FIREWALL);
    for name in ours.clone() {
        section.add(&format!(":{name} - [0:0]\n"))?;
    }
    state::remove_chains(&mut section, held.chains.keys().copied())?;
    for name in ours {
        section.add(&format!("-X {name}\n"))?;
    }
    restore::run(tools, &mut [section], &mut Aside::new()).map(|_| true)
}
