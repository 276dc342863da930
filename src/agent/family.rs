//! One IP family's proxy: its books, its backend, and whether the kernel holds what it should.
//!
//! Decides between writing everything and writing changes; when is for the loop to say.

use std::collections::HashMap;
use std::time::Duration;

use super::modes::Leftovers;
use crate::backend::{Backend, Error, Report, Rules};
use crate::model::{Family, NameSet, ObjectName, Store};
use crate::plan::flows::Stale;
use crate::plan::{Here, Ledger, NodeFacts, PortName, Tally};

/// The proxy of one family.
pub struct Proxy {
    family: Family,
    backend: Box<dyn Backend>,
    ledger: Ledger,
    facts: NodeFacts,
    here: Here,
    /// The kernel holds what was programmed last.
    loaded: bool,
    /// Services that changed since they were last programmed.
    pending: NameSet,
    /// Removes what the modes before this one left, once ours is in.
    leftovers: Option<Leftovers>,
    /// Service ports that could not be programmed, with the reason.
    set_aside: HashMap<PortName, String>,
    /// How often a tool refused a text since it was last told.
    refusals: usize,
    /// What is programmed outgrew its form.
    outgrown: bool,
    /// How long the kernel worked on the sync at hand, where the backend knows.
    in_kernel: Option<Duration>,
    /// The rules of each table, where the backend counts them.
    tables: Vec<Rules>,
}

/// What a sync did.
pub struct Synced {
    /// Elements, rules or real servers changed in the kernel.
    pub changes: usize,
    /// How long the kernel worked on it, where that is known.
    pub in_kernel: Option<Duration>,
    /// UDP flows to be forgotten.
    pub stale: Stale,
}

// === impl Proxy ===

impl Proxy {
    /// Nothing is programmed yet. When it is for the first time, `leftovers` removes what other modes programmed.
    pub fn new(family: Family, backend: Box<dyn Backend>, leftovers: Leftovers, facts: NodeFacts, here: Here) -> Self {
        let ledger = Ledger::new(family);
        Self {
            family,
            backend,
            ledger,
            facts,
            here,
            loaded: false,
            pending: NameSet::default(),
            leftovers: Some(leftovers),
            set_aside: HashMap::new(),
            refusals: 0,
            outgrown: false,
            in_kernel: None,
            tables: Vec::new(),
        }
    }

    /// Which family this is.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Takes note of changed Services.
    pub fn touch<'a>(&mut self, services: impl IntoIterator<Item = &'a ObjectName>) {
        self.pending.extend(services.into_iter().cloned());
    }

    /// Takes note of changed facts. The rules are written anew if they matter.
    pub fn set_facts(&mut self, facts: NodeFacts) {
        self.loaded &= facts == self.facts;
        self.facts = facts;
    }

    /// Takes note of another place of the node. All Services are planned again if it matters.
    pub fn set_here(&mut self, here: Here, store: &Store) {
        if here != self.here {
            self.here = here;
            self.pending.extend(store.services().cloned());
        }
    }

    /// Whether the next sync writes changes, and not everything.
    pub fn is_loaded(&self) -> bool {
        self.loaded
    }

    /// Whether there is anything to do.
    pub fn is_pending(&self) -> bool {
        !self.loaded || !self.pending.is_empty()
    }

    /// Services that wait for the next sync.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Programs what is pending.
    ///
    /// # Errors
    /// When the kernel does not take it; everything will be written at the next attempt.
    pub fn sync(&mut self, store: &Store) -> Result<Synced, Error> {
        let full = !self.loaded;
        let outcome = if full { self.replace(store) } else { self.update(store) };
        for clash in self.ledger.take_clashes() {
            log::warn!("{clash}");
        }
        self.loaded = outcome.is_ok() && !std::mem::take(&mut self.outgrown);
        Ok(Synced { changes: outcome?, in_kernel: self.in_kernel.take(), stale: self.ledger.take_stale() })
    }

    /// Looks whether our rules are still there; a sync is needed if not.
    pub fn inspect(&mut self) -> bool {
        if self.loaded && !self.backend.intact() {
            log::warn!(ip_family = self.family.as_str(); "somebody removed the rules; writing them again");
            self.loaded = false;
        }
        self.loaded
    }

    /// Gives the backend time for what it does by itself; returns when it wants more.
    pub fn tick(&mut self) -> Option<Duration> {
        self.backend.tick()
    }

    /// Numbers for onlookers.
    pub fn tally(&self) -> Tally {
        self.ledger.total()
    }

    /// Service ports that could not be programmed.
    pub fn set_aside(&self) -> usize {
        self.set_aside.len()
    }

    /// How often a tool refused a text since this was asked last.
    pub fn take_refusals(&mut self) -> usize {
        std::mem::take(&mut self.refusals)
    }

    /// The rules of each table as of the last sync, where the backend counts them.
    pub fn tables(&self) -> &[Rules] {
        &self.tables
    }

    /// Health checks that changed: what a Service's server is to answer.
    pub fn take_health_checks(&mut self) -> Vec<(ObjectName, Option<(u16, usize)>)> {
        self.ledger.take_health_checks()
    }

    /// Packets and bytes of each Service port, as far as the backend counts them.
    pub fn traffic(&mut self) -> Vec<(PortName, u64, u64)> {
        self.backend.traffic()
    }

    fn replace(&mut self, store: &Store) -> Result<usize, Error> {
        // What is gone gives up its addresses first.
        self.pending.clear();
        self.ledger.plan_departed(store, &self.here);
        self.ledger.distrust_flows();
        let mut plans = self.ledger.plan_all(store, &self.here);
        let report = self.backend.replace(&self.facts, &mut plans)?;
        let freed = plans.again();
        if let Some(remove) = self.leftovers.take()
            && let Err(error) = remove()
        {
            log::warn!(ip_family = self.family.as_str(); "rules of another mode may still be there: {error}");
        }
        self.set_aside.clear();
        let changes = self.note(report);
        self.loaded = true;
        self.pending = freed;
        if self.pending.is_empty() {
            return Ok(changes);
        }
        let written: Vec<usize> = self.tables.iter().map(|table| table.written).collect();
        let more = self.update(store)?;
        self.tables.iter_mut().zip(written).for_each(|(table, before)| table.written += before);
        Ok(changes + more)
    }

    fn update(&mut self, store: &Store) -> Result<usize, Error> {
        if self.pending.is_empty() {
            self.tables.iter_mut().for_each(|table| table.written = 0);
            return Ok(0);
        }
        let plans = self.ledger.plan(store, &self.here, std::mem::take(&mut self.pending));
        let report = self.backend.update(&plans)?;
        let changed: NameSet = plans.iter().map(|plan| plan.name.clone()).collect();
        self.set_aside.retain(|port, _| !changed.contains(&port.service));
        Ok(self.note(report))
    }

    fn note(&mut self, report: Report) -> usize {
        for (port, reason) in report.set_aside {
            log::error!(ip_family = self.family.as_str(); "Service port {port} cannot be programmed: {reason}");
            self.set_aside.insert(port, reason);
        }
        self.refusals += report.refusals;
        self.outgrown |= report.outgrown;
        self.tables = report.tables;
        self.in_kernel = report.in_kernel.map(|took| took + self.in_kernel.unwrap_or_default());
        report.changes
    }
}
