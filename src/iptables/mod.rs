//! The iptables backend: a plan as chains and rules of `iptables`, in either of its variants (contract 9).
//!
//! One way through: `rules` says one Service as text, `shared` what all have in common, `held` what the kernel has,
//! `state` what differs, `restore` runs it with the tools that `probe` found. Contains no policy.
//!
//! What it costs: the legacy variant reads and replaces a whole table for every change, so its time grows with the
//! cluster whatever we do; we touch a table only if it changes. The nft variant takes a time that grows with the square
//! of the chains in one call, so a full load goes in slices. Both are child processes that are waited for: a few
//! milliseconds for a change in the nft variant, up to seconds for a full load of thousands of Services.

mod cleanup;
mod held;
mod names;
mod probe;
mod restore;
mod rules;
mod shared;
mod state;

use std::collections::HashMap;
use std::path::Path;

pub use cleanup::cleanup;
pub use probe::{Tools, supported};

use crate::backend::{Backend, Error, Report};
use crate::kernel::sysctl;
use crate::model::{Family, ObjectName};
use crate::plan::{NodeFacts, PortName, ServicePlan};

use held::{Held, Ordered, Unordered};
use names::ChainName;
use probe::Variant;
use restore::{Aside, Owner, Section};
use rules::Detail;
use shared::{CANARY, FIREWALL, Shape, Shared, Table};
use state::{Programmed, Script};

/// With more endpoints than this, further ones get rules without comments (contract 9.6).
const COMMENTED_ENDPOINTS: usize = 1000;
/// With more Services than this, the legacy variant's table has chains only for the endpoints that need one. It is read
/// and replaced as a whole for every change (*measured* with the tool alone, on text of 10,000 Services without comments: 0.14 s instead of
/// 0.45 s).
const CROWD: usize = 300;
/// The nft variant is slow with many chains at once: this many lines are a transaction (*measured*: a first load of
/// 10,000 Services takes 3 s in slices of 500 to 2,000 lines, minutes in one piece).
const SLICE: usize = 1000;
/// Lets the kernel route 127.0.0.0/8, for NodePorts on loopback.
const ROUTE_LOCALNET: &str = "/proc/sys/net/ipv4/conf/all/route_localnet";

/// What the configuration and the node say beyond [`NodeFacts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// NodePorts are served on 127.0.0.0/8 too (`iptables.localhostNodePorts`).
    pub localhost_node_ports: bool,
    /// `nf_conntrack_tcp_be_liberal` is set: packets that connection tracking calls INVALID may pass.
    pub tcp_be_liberal: bool,
}

/// The iptables rules of one family.
pub struct Iptables {
    family: Family,
    options: Options,
    tools: Tools,
    shape: Option<Shape>,
    services: HashMap<ObjectName, Programmed>,
    endpoints: usize,
    /// There are, or were, many Services.
    crowded: bool,
}

/// Services in the order in which scripts number them, with the names to report.
#[derive(Default)]
struct Owners(Vec<(ObjectName, Vec<PortName>)>);

impl Iptables {
    /// A backend for a family, with the iptables that the PATH has. Fails when there is none, or one that is too old.
    /// Nothing is programmed before [`Backend::replace`].
    pub fn new(family: Family, options: Options) -> Result<Self, Error> {
        let tools = Tools::require(family)?;
        Ok(Self { family, options, tools, shape: None, services: HashMap::new(), endpoints: 0, crowded: false })
    }

    fn forget(&mut self, name: &ObjectName) -> Programmed {
        let old = self.services.remove(name).unwrap_or_default();
        self.endpoints -= old.endpoints;
        old
    }

    fn keep(&mut self, name: &ObjectName, programmed: Programmed) {
        self.endpoints += programmed.endpoints;
        if !programmed.chains.is_empty() || !programmed.shared.is_empty() {
            self.services.insert(name.clone(), programmed);
        }
    }

    fn detail(&mut self) -> Detail {
        self.crowded |= self.services.len() > CROWD;
        Detail {
            comments: self.endpoints <= COMMENTED_ENDPOINTS,
            chains: !(self.crowded && self.tools.variant() == Variant::Legacy),
        }
    }

    fn sliced(&self, lines: usize) -> bool {
        self.tools.variant() == Variant::Nft && lines >= SLICE
    }

    /// The chains of all Services: writes those that are not held as they should be, and takes those that should be
    /// there out of `held`. Returns the section that is not run yet.
    fn replace_chains(
        &mut self,
        shape: &Shape,
        held: &mut Held,
        services: &mut dyn Iterator<Item = ServicePlan>,
        owners: &mut Owners,
        aside: &mut Aside,
        report: &mut Report,
    ) -> Result<Section, Error> {
        let mut section = Section::new(Table::Nat)?;
        report.changes += fixed_chains(&mut section, shape, Table::Nat, held)?;
        for plan in services {
            let rules = rules::rules(shape, &plan, self.detail());
            let programmed = Programmed::of(&rules);
            section.own(Some(owners.add(&plan)));
            for ((name, print), chain) in programmed.chains.iter().zip(&rules.chains) {
                if held.chains.remove(name) != Some(*print) {
                    report.changes += state::write_chain(&mut section, &rules, chain)?;
                }
            }
            self.forget(&plan.name);
            self.keep(&plan.name, programmed);
            if self.sliced(section.lines()) {
                self.run(std::slice::from_mut(&mut section), owners, aside)?;
                section = Section::new(Table::Nat)?;
            }
        }
        section.own(None);
        Ok(section)
    }

    /// The shared chains of a table with the rules that all Services have in them, and the jumps that lead there.
    fn replace_shared(
        &self,
        section: &mut Section,
        shape: &Shape,
        held: &Held,
        owners: &Owners,
        aside: &Aside,
    ) -> Result<usize, Error> {
        let table = section.table();
        let mut changes = 0;
        for shared in Shared::ALL.into_iter().filter(|shared| shared.table() == table) {
            let tail = shape.tail(shared);
            let mut wanted = Unordered::default();
            let services = owners.0.iter().enumerate().filter(|(number, _)| !aside.contains_key(&(*number as Owner)));
            let rules = || {
                services
                    .clone()
                    .filter_map(|(number, (name, _))| Some((number as Owner, self.services.get(name)?)))
                    .flat_map(|(number, programmed)| {
                        programmed
                            .shared
                            .iter()
                            .filter(|(chain, _)| *chain == shared)
                            .map(move |(_, rule)| (number, rule))
                    })
            };
            rules().for_each(|(_, rule)| wanted.add(&format!("-A {} {rule}", shared.name())));
            tail.iter().for_each(|rule| wanted.add(&format!("-A {} {rule}", shared.name())));
            if held.shared.get(shared.name()).is_some_and(|(_, print)| *print == wanted) {
                continue;
            }
            section.own(None);
            section.add(format_args!(":{} - [0:0]\n", shared.name()))?;
            let before = section.lines();
            for (number, rule) in rules() {
                section.own(Some(number));
                section.add(format_args!("-A {} {rule}\n", shared.name()))?;
            }
            section.own(None);
            for rule in tail {
                section.add(format_args!("-A {} {rule}\n", shared.name()))?;
            }
            changes += section.lines() - before;
        }
        for jump in shape.jumps(table).filter(|jump| !held.has(jump)) {
            section.add(format_args!("-I {jump}\n"))?;
            changes += 1;
        }
        Ok(changes)
    }

    /// Forgets the Services that were refused, and says so. Returns their chains.
    fn set_aside(&mut self, owners: &Owners, aside: &Aside, report: &mut Report) -> Vec<ChainName> {
        let mut chains = Vec::new();
        for (number, reason) in aside {
            let (service, ports) = &owners.0[*number as usize];
            chains.extend(self.forget(service).chains.iter().map(|(name, _)| *name));
            report.set_aside.extend(ports.iter().map(|port| (port.clone(), reason.clone())));
        }
        chains
    }
}

/// Chains that are the same whatever the Services are, and the shared ones empty if there are none yet.
fn fixed_chains(section: &mut Section, shape: &Shape, table: Table, held: &Held) -> Result<usize, Error> {
    let mut changes = 0;
    for shared in Shared::ALL.into_iter().filter(|s| s.table() == table && !held.shared.contains_key(s.name())) {
        section.add(format_args!(":{} - [0:0]\n", shared.name()))?;
    }
    if table == Table::Filter && !held.shared.contains_key(FIREWALL) {
        section.add(format_args!(":{FIREWALL} - [0:0]\n"))?;
    }
    for chain in shape.fixed(table) {
        let text: String = chain.rules.iter().map(|rule| format!("-A {} {rule}\n", chain.name)).collect();
        if held.shared.get(chain.name).is_none_or(|(print, _)| *print != Ordered::of(&text)) {
            section.add(format_args!(":{} - [0:0]\n{text}", chain.name))?;
            changes += chain.rules.len();
        }
    }
    Ok(changes)
}

// === impl Backend ===

impl Backend for Iptables {
    fn replace(&mut self, facts: &NodeFacts, services: &mut dyn Iterator<Item = ServicePlan>) -> Result<Report, Error> {
        let shape = Shape::new(facts, self.options);
        self.shape = None;
        self.services.clear();
        self.endpoints = 0;
        self.crowded = services.size_hint().0 > CROWD;
        if shape.localhost_node_ports() {
            sysctl::ensure(Path::new(ROUTE_LOCALNET), 1).map_err(|error| {
                Error(format!(
                    "set {ROUTE_LOCALNET} to 1: {error}; allow it or set iptables.localhostNodePorts to false"
                ))
            })?;
        }
        let mut report = Report::default();
        let (mut owners, mut aside) = (Owners::default(), Aside::new());

        let mut held = Held::read(self.tools, Table::Nat)?;
        let mut nat = self.replace_chains(&shape, &mut held, services, &mut owners, &mut aside, &mut report)?;
        report.changes += self.replace_shared(&mut nat, &shape, &held, &owners, &aside)?;
        report.changes += state::remove_chains(&mut nat, held.chains.keys().copied())?;
        self.run(&mut [nat], &owners, &mut aside)?;
        if !aside.is_empty() {
            // The rules that lead to what was refused may have been held and left alone.
            let refused = self.set_aside(&owners, &aside, &mut report);
            let mut nat = Section::new(Table::Nat)?;
            held.shared.clear();
            self.replace_shared(&mut nat, &shape, &held, &owners, &aside)?;
            state::remove_chains(&mut nat, refused.iter().copied())?;
            self.run(&mut [nat], &owners, &mut aside)?;
        }

        let held = Held::read(self.tools, Table::Filter)?;
        let mut filter = Section::new(Table::Filter)?;
        report.changes += fixed_chains(&mut filter, &shape, Table::Filter, &held)?;
        report.changes += self.replace_shared(&mut filter, &shape, &held, &owners, &aside)?;
        let mut mangle = Section::new(Table::Mangle)?;
        fixed_chains(&mut mangle, &shape, Table::Mangle, &Held::default())?;
        self.run(&mut [filter, mangle], &owners, &mut aside)?;

        self.shape = Some(shape);
        Ok(report)
    }

    fn update(&mut self, changed: &[ServicePlan]) -> Result<Report, Error> {
        let shape =
            self.shape.take().ok_or_else(|| Error("iptables rules are changed before they were made".to_owned()))?;
        let mut report = Report::default();
        let mut rest = changed;
        while !rest.is_empty() {
            rest = &rest[self.update_some(&shape, rest, &mut report)?..];
        }
        self.shape = Some(shape);
        Ok(report)
    }

    fn intact(&mut self) -> bool {
        let canary = self.tools.chain(Table::Mangle, CANARY);
        if !matches!(canary, Ok(Some(_)) | Err(_)) {
            return false;
        }
        // The legacy variant would read the whole table for this.
        self.tools.variant() == Variant::Legacy
            || match (self.tools.chain(Table::Nat, "KUBE-POSTROUTING"), self.tools.chain(Table::Filter, "KUBE-FORWARD"))
            {
                (Ok(nat), Ok(filter)) => {
                    [nat, filter].iter().all(|rules| rules.as_ref().is_some_and(|text| text.contains("-A ")))
                }
                _ => true,
            }
    }

    fn cleanup(&mut self) -> Result<(), Error> {
        self.shape = None;
        self.services.clear();
        self.endpoints = 0;
        cleanup(self.family)
    }
}

impl Iptables {
    /// Changes as many Services as fit into one call of the tool; returns how many.
    fn update_some(&mut self, shape: &Shape, changed: &[ServicePlan], report: &mut Report) -> Result<usize, Error> {
        let mut script = Script::new()?;
        let mut owners = Owners::default();
        let mut news = Vec::new();
        let nothing = Programmed::default();
        for plan in changed {
            let rules = rules::rules(shape, plan, self.detail());
            let new = Programmed::of(&rules);
            let old = self.services.get(&plan.name).unwrap_or(&nothing);
            script.change(owners.add(plan), old, &new, &rules)?;
            news.push(new);
            if self.sliced(script.lines()) {
                break;
            }
        }
        let mut aside = Aside::new();
        self.run(&mut script.sections, &owners, &mut aside)?;
        report.changes += script.changes;
        let taken = news.len();
        for (number, ((name, ports), new)) in owners.0.iter().zip(news).enumerate() {
            match aside.remove(&(number as Owner)) {
                Some(reason) => report.set_aside.extend(ports.iter().map(|port| (port.clone(), reason.clone()))),
                None => {
                    self.forget(name);
                    self.keep(name, new);
                }
            }
        }
        Ok(taken)
    }

    fn run(&self, sections: &mut [Section], owners: &Owners, aside: &mut Aside) -> Result<(), Error> {
        if sections.iter().all(|section| section.lines() == 0) {
            return Ok(());
        }
        restore::run(self.tools, sections, owners.count(), aside)
    }
}

// === impl Owners ===

impl Owners {
    fn add(&mut self, plan: &ServicePlan) -> Owner {
        self.0.push((plan.name.clone(), plan.ports.iter().map(|port| port.name.clone()).collect()));
        self.count() - 1
    }

    fn count(&self) -> Owner {
        Owner::try_from(self.0.len()).expect("a cluster has fewer than 2^32 Services")
    }
}
