//! What a backend is: the one small door between the plan and a way to program the kernel.

use std::fmt;
use std::time::Duration;

use crate::plan::{NodeFacts, PortName, ServicePlan};

/// Programs the kernel for one IP family. What it is given is the truth; it finds out itself what to change.
pub trait Backend {
    /// Brings the kernel to exactly `services` under `facts`, whatever it holds now, without interrupting traffic.
    /// Called first, and again after an error or when `facts` changed.
    fn replace(&mut self, facts: &NodeFacts, services: &mut dyn Iterator<Item = ServicePlan>) -> Result<Report, Error>;

    /// Applies changed Services, each once, to what was programmed before. Work is proportional to `changed`.
    fn update(&mut self, changed: &[ServicePlan]) -> Result<Report, Error>;

    /// Looks whether somebody else removed our rules; `false` asks for a [`Backend::replace`]. Must be cheap.
    fn intact(&mut self) -> bool;

    /// Removes all that this backend ever made in its family.
    fn cleanup(&mut self) -> Result<(), Error>;

    /// Packets and bytes of new connections per Service port, where the kernel counts them. Reads the kernel: for
    /// scrapes only.
    fn traffic(&mut self) -> Vec<(PortName, u64, u64)> {
        Vec::new()
    }

    /// Does what has to be done later without a change, and says how long until the next time; `None`: nothing waits.
    fn tick(&mut self) -> Option<Duration> {
        None
    }
}

/// What a successful call did.
#[derive(Debug, Default)]
pub struct Report {
    /// Elements, rules or real servers added and removed in the kernel.
    pub changes: usize,
    /// Service ports that could not be programmed, with the reason. All others are.
    pub set_aside: Vec<(PortName, String)>,
    /// How often a tool refused a text, where a tool is used.
    pub refusals: usize,
    /// There is so much of everything by now that it is to be written anew, in another form.
    pub outgrown: bool,
    /// How long the kernel worked on it, where that can be told from our own work.
    pub in_kernel: Option<Duration>,
    /// How many rules each table has of ours, for backends whose tables have rules that are worth counting.
    pub tables: Vec<Rules>,
}

/// The rules of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The table.
    pub table: &'static str,
    /// How many rules are ours.
    pub owned: usize,
    /// How many of them this call wrote.
    pub written: usize,
}

/// Why a backend could not do its work. Nothing that was programmed before is lost.
#[derive(Debug)]
pub struct Error(pub String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}
