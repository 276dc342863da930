//! The loop: events in, plans out, syncs paced and retried.
//!
//! Walks the line of the house over and over, on one thread: takes in what the source tells, lets each family's
//! [`family::Proxy`] program what changed, and tells the onlookers. Must never wait for anything but its next turn.

mod facts;
mod family;
mod modes;
mod onlookers;
mod pace;
mod setup;
mod signs;
mod start;
mod thread;
mod watchers;

pub use modes::cleanup;
pub use setup::node_name;
pub use start::{dry_run, init_only, run};

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use smol::channel::Receiver;
use smol::future::FutureExt;
use smol::stream::StreamExt;

use crate::config::{Config, DetectLocal, Mode};
use crate::kernel::links;
use crate::model::{Event, Store};
use facts::NodeAddresses;
use family::Proxy;
use pace::Pace;
use signs::{ConfigFile, Signals};
use thread::Alarm;
use watchers::Watchers;

/// How many events are taken in before the loop looks at anything else.
const EVENTS_PER_TURN: usize = 4096;

/// What is done without a reason is done this often at most.
const SHORTEST_PERIOD: Duration = Duration::from_secs(1);

/// Whoever flushes one table of iptables goes on with the next: rules in between would make that fail.
const FLUSHING: Duration = Duration::from_millis(500);

/// A list is programmed as a whole, unless reading it takes longer: other changes do not wait for ever.
const LISTING: Duration = Duration::from_secs(5);

/// Why a turn of the loop begins.
enum Wake {
    Event(Event),
    Addresses,
    Deadline,
    Stop(Stop),
}

/// Why the loop ends.
enum Stop {
    Signal(&'static str),
    Failure(String),
}

/// One family's proxy at its own pace: what holds up one family does not hold up the other (contract 14.1).
struct Runner {
    proxy: Rc<RefCell<Proxy>>,
    pace: Pace,
}

/// The state of the loop.
struct Agent {
    config: Config,
    alarm: Rc<Alarm>,
    store: Store,
    events: Pin<Box<Receiver<Event>>>,
    runners: Vec<Runner>,
    watchers: Watchers,
    signals: Signals,
    config_file: Option<ConfigFile>,
    links: links::Watcher,
    addresses: NodeAddresses,
    /// The Node's podCIDRs at the start: another set needs another start (contract 3.6).
    pod_cidrs: Vec<IpNet>,
    /// Since when a list is being read.
    listing_since: Option<Instant>,
    /// When to look whether our rules are still there.
    inspect_at: Instant,
    /// When a backend wants time for itself.
    tick_at: Option<Instant>,
    /// When to find out again what rules depend on, because it could not be found out.
    refresh_at: Option<Instant>,
}

// === impl Agent ===

impl Agent {
    /// Turns until told to stop.
    async fn run(mut self) -> Stop {
        self.watchers.begun(&self.runners);
        // What came in before the loop turned is part of the first sync, not news after it.
        if let Some(stop) = self.look_at_changes() {
            return stop;
        }
        loop {
            let listing = self.store.is_listing();
            self.listing_since = listing.then(|| self.listing_since.unwrap_or_else(Instant::now));
            if self.store.is_complete() {
                self.sync();
            }
            match self.wake().await {
                Wake::Event(event) => {
                    self.store.apply(event);
                    self.take_in();
                    if let Some(stop) = self.look_at_changes() {
                        return stop;
                    }
                }
                Wake::Addresses => self.refresh_facts(),
                Wake::Deadline => self.meet_deadlines(),
                Wake::Stop(stop) => return stop,
            }
        }
    }

    /// Waits for something to do.
    async fn wake(&mut self) -> Wake {
        let deadline = self.deadline();
        let event = async {
            match self.events.next().await {
                Some(event) => Wake::Event(event),
                None => Wake::Stop(Stop::Failure("the source of objects ended".into())),
            }
        };
        let addresses = async {
            match self.links.changed().await {
                Ok(()) => Wake::Addresses,
                Err(error) => Wake::Stop(Stop::Failure(format!("cannot follow the node's addresses: {error}"))),
            }
        };
        let timer = async {
            self.alarm.at(deadline).await;
            Wake::Deadline
        };
        let signal = async { Wake::Stop(Stop::Signal(self.signals.next().await)) };
        let config = async {
            let Some(file) = &self.config_file else { return std::future::pending().await };
            let path = file.changed().await.display().to_string();
            Wake::Stop(Stop::Failure(format!(
                "content of the proxy server's configuration file was updated: {path}; start again to use it"
            )))
        };
        let failure = async { Wake::Stop(Stop::Failure(self.watchers.failure().await)) };
        signal.or(config).or(failure).or(timer).or(addresses).or(event).await
    }

    /// Takes in what else has come.
    fn take_in(&mut self) {
        for _ in 0..EVENTS_PER_TURN {
            match self.events.try_recv() {
                Ok(event) => self.store.apply(event),
                Err(_) => return,
            }
        }
    }

    /// Passes on what the store says is changed.
    fn look_at_changes(&mut self) -> Option<Stop> {
        if !self.store.is_dirty() {
            return None;
        }
        let dirty = self.store.take_dirty();
        if dirty.node_gone {
            log::warn!("the Node object of this node was deleted; what it said last still counts");
        }
        if dirty.node
            && let Some(stop) = self.look_at_node()
        {
            return Some(stop);
        }
        if dirty.service_cidrs {
            self.refresh_facts();
        }
        for runner in &self.runners {
            runner.proxy.borrow_mut().touch(&dirty.services);
        }
        if !dirty.services.is_empty() {
            self.watchers.changed(&self.runners, &dirty, self.store.is_complete());
        }
        None
    }

    /// Contract 3.6.
    fn look_at_node(&mut self) -> Option<Stop> {
        let node = self.store.node()?;
        self.watchers.node(node);
        if matches!(self.config.detect_local, DetectLocal::NodeCidr) && node.pod_cidrs != self.pod_cidrs {
            let (old, new) = (&self.pod_cidrs, &node.pod_cidrs);
            return Some(Stop::Failure(format!(
                "the Node's podCIDRs changed from {old:?} to {new:?}: the rules need a new start"
            )));
        }
        if NodeAddresses::new(&self.config, Some(node)) != self.addresses {
            log::warn!("the Node's addresses changed; the rules keep the former ones until kube-proxy is restarted");
        }
        for runner in &self.runners {
            let mut proxy = runner.proxy.borrow_mut();
            let here = facts::here(proxy.family(), &self.config, &self.addresses, Some(node));
            proxy.set_here(here, &self.store);
        }
        None
    }

    /// Finds out anew what the rules depend on besides Services.
    fn refresh_facts(&mut self) {
        let interfaces = match links::addresses() {
            Ok(interfaces) => interfaces,
            Err(error) => {
                self.refresh_at = Some(Instant::now() + SHORTEST_PERIOD);
                return log::error!(
                    "cannot read the node's addresses, the rules keep the former ones until that succeeds: {error}"
                );
            }
        };
        self.refresh_at = None;
        for runner in &self.runners {
            let mut proxy = runner.proxy.borrow_mut();
            let family = proxy.family();
            let facts = facts::facts(family, &self.config, &self.store, &self.addresses, &self.pod_cidrs, &interfaces);
            self.watchers.facts(&facts);
            proxy.set_facts(facts);
        }
    }

    /// Programs what is pending and due, each family by itself; where nothing is pending for long, says so.
    fn sync(&mut self) {
        let (mut ran, mut succeeded) = (false, false);
        let not_before = self.not_before();
        for runner in &mut self.runners {
            let started = Instant::now();
            let Some(due) = runner.due(started, not_before) else { continue };
            if runner.proxy.borrow().is_pending() {
                self.watchers.wanted(runner.proxy.borrow().family());
            }
            if due > started {
                continue;
            }
            let full = !runner.proxy.borrow().is_loaded();
            let outcome = runner.proxy.borrow_mut().sync(&self.store);
            runner.pace.ended(Instant::now(), outcome.is_ok());
            ran = true;
            succeeded |= outcome.is_ok();
            self.watchers.synced(&runner.proxy, full, outcome, started);
            self.watchers.feed_watchdog(Instant::now());
        }
        if succeeded {
            self.watchers.tell_state(&self.runners);
        }
        if ran {
            self.tick();
        }
    }

    /// Until when syncs wait for the end of a list.
    fn not_before(&self) -> Option<Instant> {
        self.listing_since.map(|since| since + LISTING)
    }

    fn deadline(&self) -> Instant {
        let now = Instant::now();
        let not_before = self.not_before();
        let syncs = self.runners.iter().filter(|_| self.store.is_complete()).map(|runner| runner.due(now, not_before));
        let others = [self.tick_at, self.refresh_at, self.watchers.watchdog_at()];
        syncs.chain(others).flatten().fold(self.inspect_at, Instant::min)
    }

    fn meet_deadlines(&mut self) {
        let now = Instant::now();
        if self.inspect_at <= now {
            self.inspect_at = now + self.inspection_period();
            for runner in &mut self.runners {
                let mut proxy = runner.proxy.borrow_mut();
                if proxy.is_loaded() && !proxy.inspect() && self.config.mode == Mode::Iptables {
                    runner.pace.hold(now + FLUSHING);
                }
            }
        }
        if self.tick_at.is_some_and(|at| at <= now) {
            self.tick();
        }
        if self.refresh_at.is_some_and(|at| at <= now) {
            self.refresh_facts();
        }
        self.watchers.feed_watchdog(now);
    }

    /// Gives the backends time for what they do by themselves.
    fn tick(&mut self) {
        let wanted = self.runners.iter().filter_map(|runner| runner.proxy.borrow_mut().tick()).min();
        self.tick_at = wanted.map(|pause| Instant::now() + pause);
    }

    fn inspection_period(&self) -> Duration {
        match self.config.mode {
            // One number is read, and compared; three where iptables is the legacy variant.
            Mode::Nftables | Mode::Iptables => SHORTEST_PERIOD,
            Mode::Ipvs => self.config.sync_period.max(SHORTEST_PERIOD),
        }
    }
}

// === impl Runner ===

impl Runner {
    /// When the next sync may run, as of `now`, and changes not before a moment. `None`: never without a change.
    fn due(&self, now: Instant, not_before: Option<Instant>) -> Option<Instant> {
        let proxy = self.proxy.borrow();
        // Where there are no rules, those of an unfinished list are better than none.
        let wanted = not_before.filter(|_| proxy.is_loaded()).map_or(now, |moment| moment.max(now));
        if proxy.is_pending() { Some(self.pace.due(wanted)) } else { self.pace.idle() }
    }
}
