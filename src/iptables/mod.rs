//! The iptables backend: a plan as chains and rules of `iptables`, in either of its variants (contract 9).
//!
//! One way through: `rules` says one Service as text, `shape` what comes from none, `shared` which chains there are; `held`
//! is what the kernel has, `load` writes everything that differs from that, `state` what differs from what was programmed
//! before; `restore` runs it with the tools that `probe` found, and `watch` looks whether it is still there. `cleanup`
//! removes what any kube-proxy left: of the nft variant over netlink (`leftovers`), of the legacy one with its tools.
//! Contains no policy.
//!
//! What it costs: the legacy variant reads and replaces a whole table for every change, so its time grows with the
//! cluster whatever we do; we touch a table only if it changes. The nft variant takes a time that grows with the square
//! of the chains in one call, so a full load goes in slices, and a time that grows with all rules for a change. Both are
//! child processes that are waited for: up to a tenth of a second for a change among 10,000 Services, two seconds for a
//! full load of them in the nft variant (*measured*, docs/benchmarks/iptables.md).

mod address;
mod cleanup;
mod count;
mod held;
mod leftovers;
mod load;
mod names;
mod packed;
mod probability;
mod probe;
mod restore;
mod rules;
mod shape;
mod shared;
mod state;
mod tap;
mod watch;

use std::collections::HashMap;
use std::path::Path;

pub use cleanup::cleanup;
pub use probe::{Tools, supported};
pub use shared::COUNTERS;

use crate::backend::{Backend, Error, Report};
use crate::kernel::{nfacct, sysctl};
use crate::model::{Family, NameMap, ObjectName};
use crate::plan::{NodeFacts, PortName, ServicePlan};

use count::Count;
use probe::{Question, Variant};
use restore::{Aside, Owner, Refused};
use shape::{Layout, Shape};
use shared::{Shared, Table};
use state::{Programmed, Script};
use watch::{Filled, Watch};

/// With more endpoints than this, further ones get rules without comments (contract 9.6).
const COMMENTED_ENDPOINTS: usize = 1000;
/// With more Services than this, the nat table says less: what is in it is what a change costs. *Measured* with 10,000
/// Services: the legacy variant reads it and replaces it as a whole, in 0.08 s of CPU time of the tool in [`Layout::Drawn`]
/// (if each Service draws for itself, in a chain of its own, 0.13 s; if it marks for itself what is to be masqueraded,
/// 0.18 s; with comments too, 0.23 s; with all chains and the shared ones written anew, 0.56 s). In the nft variant the
/// kernel checks every rule that its hooks lead to, once from each: a change took 47 ms in [`Layout::Sparse`] and 114 ms in
/// [`Layout::Full`]. There a drawn layout would not do, because the tool reads a whole chain to take a rule out of it.
const CROWD: usize = 300;
/// The nft variant searches all chains that a text names for each of its lines, and the kernel walks over all chains for
/// each transaction: this many lines are a transaction, which is between the two.
const SLICE: usize = 4000;
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

/// Sets in the kernel what the rules depend on, if it is not set yet; needs root of the host.
///
/// # Errors
/// When the kernel does not let us.
pub fn prepare(facts: &NodeFacts, options: Options) -> Result<(), Error> {
    if !shape::localhost_node_ports(facts, options) {
        return Ok(());
    }
    sysctl::ensure(Path::new(ROUTE_LOCALNET), 1).map_err(|error| {
        Error(format!("set {ROUTE_LOCALNET} to 1: {error}; allow it or set iptables.localhostNodePorts to false"))
    })
}

/// The chains that do not belong to one Service, as far as they have rules.
fn filled(shape: &Shape, shared: &HashMap<Shared, usize>) -> Vec<Filled> {
    let fixed = Table::ALL.into_iter().flat_map(|table| shape.fixed(table)).map(|chain| Filled {
        table: chain.table,
        chain: chain.name,
        rules: chain.rules.len(),
    });
    let shared = Table::ALL.into_iter().flat_map(|table| shape.shared(table)).map(|chain| Filled {
        table: chain.table(),
        chain: chain.name(),
        rules: shape.head(chain).len() + shape.tail(chain).len() + shared.get(&chain).copied().unwrap_or(0),
    });
    fixed.chain(shared).filter(|filled| filled.rules > 0).collect()
}

/// The iptables rules of one family.
pub struct Iptables {
    options: Options,
    tools: Tools,
    watch: Watch,
    /// Whether the tool knows the counters.
    knows_counters: Question,
    shape: Option<Shape>,
    services: NameMap<Programmed>,
    /// How many rules Services have in each shared chain.
    shared: HashMap<Shared, usize>,
    endpoints: usize,
    /// How many rules are ours.
    owned: Count,
}

/// How far an update has come.
#[derive(Default)]
struct Update {
    report: Report,
    written: Count,
    /// How many transactions it took; others may have had their turn between them.
    transactions: usize,
}

/// Services in the order in which scripts number them, with the names to report.
#[derive(Default)]
struct Owners {
    /// Each with the end of its ports, which begin where those of the one before end.
    services: Vec<(ObjectName, usize)>,
    ports: Vec<PortName>,
}

impl Iptables {
    /// A backend for a family, with the iptables that the PATH has. Fails when there is none, or one that is too old.
    /// Nothing is programmed before [`Backend::replace`].
    pub fn new(family: Family, options: Options) -> Result<Self, Error> {
        let tools = Tools::require(family)?;
        Ok(Self {
            options,
            tools,
            watch: Watch::new(family, tools.variant()),
            knows_counters: tools.ask_for_match("nfacct"),
            shape: None,
            services: NameMap::default(),
            shared: HashMap::default(),
            endpoints: 0,
            owned: Count::default(),
        })
    }

    /// Whether there are counters that rules can count into: the kernel has them, and the tool its part of it.
    fn counters(&mut self) -> bool {
        COUNTERS.iter().all(|counter| nfacct::ensure(counter).is_ok()) && self.knows_counters.is_answered_with_yes()
    }

    fn forget(&mut self, name: &ObjectName) -> Programmed {
        let old = self.services.remove(name).unwrap_or_default();
        self.endpoints -= old.endpoints;
        self.owned -= old.count();
        old.shared.chains().for_each(|shared| *self.shared.entry(shared).or_default() -= 1);
        old
    }

    fn keep(&mut self, name: &ObjectName, programmed: Programmed) {
        self.endpoints += programmed.endpoints;
        self.owned += programmed.count();
        programmed.shared.chains().for_each(|shared| *self.shared.entry(shared).or_default() += 1);
        if !programmed.chains.is_empty() || !programmed.shared.is_empty() {
            self.services.insert(name.clone(), programmed);
        }
    }

    /// The layout for so many Services.
    fn layout(&self, services: usize) -> Layout {
        match self.tools.variant() {
            _ if services <= CROWD => Layout::Full,
            Variant::Nft => Layout::Sparse,
            Variant::Legacy => Layout::Drawn,
        }
    }

    fn comments(&self, shape: &Shape) -> bool {
        self.endpoints <= COMMENTED_ENDPOINTS && !shape.is_drawn()
    }

    fn sliced(&self, lines: usize) -> bool {
        self.tools.variant() == Variant::Nft && lines >= SLICE
    }
}

// === impl Backend ===

impl Backend for Iptables {
    fn replace(&mut self, facts: &NodeFacts, services: &mut dyn Iterator<Item = ServicePlan>) -> Result<Report, Error> {
        let layout = self.layout(services.size_hint().0);
        let shape = Shape::new(facts, self.options, self.counters(), layout);
        self.shape = None;
        self.services.clear();
        self.shared.clear();
        (self.endpoints, self.owned) = (0, Count::fixed(&shape));
        prepare(facts, self.options)?;
        let report = self.load(&shape, services)?;
        self.shape = Some(shape);
        Ok(report)
    }

    fn update(&mut self, changed: &[ServicePlan]) -> Result<Report, Error> {
        let shape =
            self.shape.take().ok_or_else(|| Error("iptables rules are changed before they were made".to_owned()))?;
        let was_calm = self.watch.is_calm();
        let mut update = Update::default();
        let mut rest = changed;
        while !rest.is_empty() {
            rest = &rest[self.update_some(&shape, rest, &mut update)?..];
        }
        let Update { mut report, written, transactions } = update;
        // What is refused although it is as it should be tells that somebody else changed a table just now.
        self.watch.changed(was_calm && transactions <= 1 && report.refusals == 0);
        report.outgrown = shape.layout < self.layout(self.services.len());
        self.shape = Some(shape);
        report.tables = self.owned.beside(written);
        Ok(report)
    }

    fn intact(&mut self) -> bool {
        let (shape, shared) = (&self.shape, &self.shared);
        self.watch.intact(self.tools, || shape.iter().flat_map(|shape| filled(shape, shared)).collect())
    }

    fn cleanup(&mut self) -> Result<(), Error> {
        self.shape = None;
        self.services.clear();
        self.shared.clear();
        (self.endpoints, self.owned) = (0, Count::default());
        cleanup(self.tools.family())
    }
}

impl Iptables {
    /// Changes as many Services as fit into one call of the tool; returns how many.
    fn update_some(&mut self, shape: &Shape, changed: &[ServicePlan], update: &mut Update) -> Result<usize, Error> {
        let mut script = Script::new()?;
        let mut owners = Owners::default();
        let mut news = Vec::new();
        let nothing = Programmed::default();
        for plan in changed {
            let rules = rules::rules(shape, plan, self.comments(shape));
            let new = Programmed::of(&rules);
            let old = self.services.get(&plan.name).unwrap_or(&nothing);
            script.change(shape, owners.add(plan), old, &new, &rules)?;
            news.push(new);
            if self.sliced(script.lines()) {
                break;
            }
        }
        let mut aside = Aside::new();
        let report = &mut update.report;
        report.refusals += restore::run(self.tools, &mut script.sections, &mut aside)?;
        report.changes += script.changes;
        update.written += script.written;
        update.transactions += script.sections.iter().filter(|section| section.lines() > 0).count();
        let taken = news.len();
        // What a refused Service had goes too, and what was programmed of it before the refusal.
        let mut removal = Script::new()?;
        for (number, new) in (0..).zip(news) {
            let name = owners.name(number);
            match aside.remove(&number) {
                Some(refused) => {
                    removal.remove(&self.forget(name), &new, refused.section)?;
                    report.set_aside.extend(owners.refused(number, &refused));
                }
                None => {
                    self.forget(name);
                    self.keep(name, new);
                }
            }
        }
        restore::run(self.tools, &mut removal.sections, &mut aside)?;
        report.changes += removal.changes;
        Ok(taken)
    }
}

// === impl Owners ===

impl Owners {
    fn reserve(&mut self, services: usize) {
        self.services.reserve(services);
        // Most Services have one.
        self.ports.reserve(services);
    }

    fn add(&mut self, plan: &ServicePlan) -> Owner {
        self.ports.extend(plan.ports.iter().map(|port| port.name.clone()));
        self.services.push((plan.name.clone(), self.ports.len()));
        self.count() - 1
    }

    fn name(&self, owner: Owner) -> &ObjectName {
        &self.services[owner as usize].0
    }

    /// The ports of a Service that was refused, each with the reason.
    fn refused(&self, owner: Owner, refused: &Refused) -> impl Iterator<Item = (PortName, String)> {
        let last = owner as usize;
        let start = last.checked_sub(1).map_or(0, |before| self.services[before].1);
        self.ports[start..self.services[last].1].iter().map(|port| (port.clone(), refused.reason.clone()))
    }

    fn count(&self) -> Owner {
        Owner::try_from(self.services.len()).expect("a cluster has fewer than 2^32 Services")
    }
}
