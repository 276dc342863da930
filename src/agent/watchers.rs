//! Telling the onlookers: metrics, health, systemd, the log; and the sweeps of stale flows that follow a sync.
//!
//! Looks on. Nothing here changes what is programmed.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::socket::AddressFamily;
use smol::LocalExecutor;
use smol::channel::{Receiver, Sender};
use smol::lock::Mutex;
use smol::stream::StreamExt;

use super::Runner;
use super::family::{Proxy, Synced};
use super::onlookers::health_addresses;
use crate::backend::Error;
use crate::config::Mode;
use crate::ipvs;
use crate::kernel::{conntrack, links};
use crate::model::{Dirty, Family, Node};
use crate::observe::health::Health;
use crate::observe::metrics::{Metrics, Sync};
use crate::observe::service_health::ServiceHealth;
use crate::observe::systemd;
use crate::observe::time::epoch_seconds;
use crate::plan::NodeFacts;
use crate::plan::flows::{Flow, Stale};
use crate::source::{Client, Notice, Regarding};

/// After so many sweeps that failed it is given up: what is to be swept must not pile up where none can succeed.
const SWEEPS: u32 = 5;

/// Those who are told.
pub struct Watchers {
    /// Runs what takes longer than a turn of the loop.
    pub executor: Rc<LocalExecutor<'static>>,
    /// How the kernel is programmed.
    pub mode: Mode,
    /// Our Node object.
    pub node_name: String,
    /// The metrics.
    pub metrics: Rc<Metrics>,
    /// What `/healthz` answers.
    pub health: Rc<Health>,
    /// The servers of healthCheckNodePorts.
    pub service_health: Vec<(Family, Rc<Mutex<ServiceHealth>>)>,
    /// Where events go; not with manifests.
    pub client: Option<Rc<Client>>,
    /// Fatal failures of servers. With no server that could fail, the first half keeps the second one waiting.
    pub failures: (Sender<String>, Pin<Box<Receiver<String>>>),
    /// What is to be swept, by family.
    pub sweeping: Rc<RefCell<[Unswept; 2]>>,
    /// What systemd wants to hear.
    pub watchdog: Option<Watchdog>,
    /// When this process began: nanoseconds since the epoch. What happened before it is not its delay (contract 14.4).
    pub born: u64,
    /// What is not in the kernel yet, by family.
    pub backlogs: [Backlog; 2],
}

/// Changes that a family waits for.
#[derive(Default)]
pub struct Backlog {
    /// When its slices changed: nanoseconds since the epoch.
    triggers: Vec<u64>,
    /// Changes of slices.
    slices: u64,
    /// When the oldest change came in.
    since: Option<Instant>,
}

/// Flows that wait for a sweep. There is one at a time: each reads all flows that there are, and what comes meanwhile
/// waits for the next one together.
#[derive(Default)]
pub struct Unswept {
    stale: Stale,
    running: bool,
    /// How often in a row it did not succeed.
    failures: u32,
}

/// When systemd wants to hear that the loop turns.
pub struct Watchdog {
    period: Duration,
    next: Instant,
}

// === impl Watchers ===

impl Watchers {
    /// The loop begins to turn: that counts as a sync that was asked for, and done (contract 13, 14.3).
    pub fn begun(&self, runners: &[Runner]) {
        let now = epoch_seconds(SystemTime::now());
        for runner in runners {
            let family = runner.proxy.borrow().family();
            self.metrics.queued(family, now);
            self.health.synced(family);
        }
    }

    /// Changes came in; `wanted` tells whether they can be programmed yet.
    pub fn changed(&mut self, runners: &[Runner], dirty: &Dirty, wanted: bool) {
        let now = epoch_seconds(SystemTime::now());
        for runner in runners {
            let family = runner.proxy.borrow().family();
            let backlog = &mut self.backlogs[family as usize];
            let news = dirty.triggers.iter().filter(|(of, at)| *of == family && *at > self.born);
            backlog.triggers.extend(news.map(|(_, at)| at));
            let slices = dirty.slice_events[family as usize];
            backlog.slices += slices;
            backlog.since.get_or_insert_with(Instant::now);
            if wanted {
                self.metrics.queued(family, now);
            }
            // Service events are counted once per family, those of slices by their own (contract 13).
            self.metrics.service_changes.with(&[]).add(dirty.service_events);
            self.metrics.endpoint_changes.with(&[]).add(slices);
        }
        self.tell_pending(runners);
    }

    /// A family waits for a sync: for changes, for rules that somebody removed, or for another try.
    pub fn wanted(&self, family: Family) {
        self.health.queued(family);
    }

    /// This node's object changed.
    pub fn node(&self, node: &Node) {
        self.health.node_eligible(node.eligible);
    }

    /// A family's sync ended.
    pub fn synced(&mut self, proxy: &Rc<RefCell<Proxy>>, full: bool, outcome: Result<Synced, Error>, started: Instant) {
        let took = started.elapsed();
        let now = epoch_seconds(SystemTime::now());
        let mut this = proxy.borrow_mut();
        let family = this.family();
        let label = family.as_str();
        self.tell_rules(&mut this, full);
        let sync = if full { Sync::Full } else { Sync::Partial };
        // In IPVS mode they are not told apart (contract 13).
        let sync = (self.mode != Mode::Ipvs).then_some(sync);
        self.metrics.synced(family, sync, took, outcome.is_ok(), now);
        let synced = match outcome {
            Ok(synced) => synced,
            Err(error) => {
                // When these arrive is not known any more (contract 14.4).
                self.backlogs[family as usize].triggers.clear();
                match self.mode {
                    Mode::Nftables => self.metrics.nftables_sync_failures.with(&[label]).add(1),
                    Mode::Iptables => self.metrics.refused(family, full, 1),
                    Mode::Ipvs => {}
                }
                return log::error!(ip_family = label; "sync failed, rules stay as they are, trying again: {error}");
            }
        };
        self.health.synced(family);
        let backlog = std::mem::take(&mut self.backlogs[family as usize]);
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for trigger in backlog.triggers {
            self.metrics.programmed(family, since_epoch.saturating_sub(Duration::from_nanos(trigger)));
        }
        if let Some(since) = backlog.since.or(full.then_some(started)) {
            self.metrics.changed(family, since.elapsed());
        }
        let tally = this.tally();
        self.metrics.programmed_services.with(&[label]).set(tally.services as f64);
        self.metrics.programmed_endpoints.with(&[label]).set(tally.endpoints as f64);
        self.metrics.set_aside.with(&[label]).set(this.set_aside() as f64);
        self.metrics.no_local_endpoints.with(&["internal", label]).set(tally.no_local_internal as f64);
        self.metrics.no_local_endpoints.with(&["external", label]).set(tally.no_local_external as f64);
        let (services, endpoints) = (tally.services, tally.endpoints);
        let changes = synced.changes;
        let milliseconds = |time: Duration| format!("{:.1}ms", time.as_secs_f64() * 1000.0);
        let level = if full { log::Level::Info } else { log::Level::Debug };
        let took = milliseconds(took);
        match synced.in_kernel.map(milliseconds) {
            Some(in_kernel) => {
                log::log!(level, ip_family = label, services, endpoints, changes, took, in_kernel; "synced");
            }
            None => log::log!(level, ip_family = label, services, endpoints, changes, took; "synced"),
        }
        drop(this);
        self.tell_health_checks(proxy);
        self.sweep(family, synced.stale);
    }

    /// What is in the kernel by now, over all families. To be called when some of them were synced.
    pub fn tell_state(&self, runners: &[Runner]) {
        self.tell_pending(runners);
        let tallies = runners.iter().map(|runner| runner.proxy.borrow().tally());
        let services = tallies.clone().map(|tally| tally.services).max().unwrap_or(0);
        let endpoints = tallies.map(|tally| tally.endpoints).sum();
        let (mode, synced) = (self.mode.as_str(), SystemTime::now());
        systemd::status(&systemd::Status::Serving { mode, services, endpoints, synced });
    }

    /// Waits for the failure of a server that must not fail.
    pub async fn failure(&mut self) -> String {
        self.failures.1.next().await.unwrap_or_else(|| "a server ended".into())
    }

    /// When systemd wants to hear from us next.
    pub fn watchdog_at(&self) -> Option<Instant> {
        self.watchdog.as_ref().map(|watchdog| watchdog.next)
    }

    /// Tells systemd that the loop turns, if it is time.
    pub fn feed_watchdog(&mut self, now: Instant) {
        if let Some(watchdog) = self.watchdog.as_mut().filter(|watchdog| watchdog.next <= now) {
            systemd::alive();
            watchdog.next = now + watchdog.period;
        }
    }

    /// Where the backend counts its rules (contract 13).
    fn tell_rules(&self, proxy: &mut Proxy, full: bool) {
        let family = proxy.family();
        self.metrics.refused(family, full, proxy.take_refusals());
        for table in proxy.tables() {
            let labels = &[table.table, family.as_str()];
            self.metrics.iptables_rules.with(labels).set(table.owned as f64);
            self.metrics.iptables_last.with(labels).set(table.written as f64);
        }
    }

    fn tell_pending(&self, runners: &[Runner]) {
        let services = runners.iter().map(|runner| runner.proxy.borrow().pending()).max().unwrap_or(0);
        let slices: u64 = self.backlogs.iter().map(|backlog| backlog.slices).sum();
        self.metrics.service_changes_pending.with(&[]).set(services as f64);
        self.metrics.endpoint_changes_pending.with(&[]).set(slices as f64);
    }

    /// Opens and closes the servers of healthCheckNodePorts.
    fn tell_health_checks(&self, proxy: &Rc<RefCell<Proxy>>) {
        let family = proxy.borrow().family();
        let changed = proxy.borrow_mut().take_health_checks();
        self.update_health_checks(family, move |servers| {
            changed.iter().for_each(|(service, wanted)| servers.set(service, *wanted));
        });
    }

    /// The addresses that accept NodePorts may be others by now.
    pub fn facts(&self, facts: &NodeFacts) {
        let addresses = health_addresses(facts);
        self.update_health_checks(facts.family, |servers| servers.listen_on(addresses));
    }

    /// Changes the servers, then opens what is closed; what cannot be opened is told.
    fn update_health_checks(&self, family: Family, change: impl FnOnce(&mut ServiceHealth) + 'static) {
        let Some((_, servers)) = self.service_health.iter().find(|(of, _)| *of == family) else { return };
        let (servers, client, node_name) = (Rc::clone(servers), self.client.clone(), self.node_name.clone());
        let telling = async move {
            let failures = {
                let mut servers = servers.lock().await;
                change(&mut servers);
                servers.open().await
            };
            // The servers are free again: the API server may take its time to hear of failures.
            for failure in failures {
                let (service, port, error) = (&failure.service, failure.port, &failure.error);
                let note =
                    format!("node {node_name} failed to start healthcheck \"{service}\" on port {port}: {error}");
                log::error!("{note}; it is tried again at the next sync");
                if let Some(client) = &client {
                    let notice = Notice {
                        node_name: node_name.clone(),
                        regarding: Regarding::Service(failure.service),
                        warning: true,
                        reason: "FailedToStartServiceHealthcheck",
                        action: "Listen",
                        note,
                    };
                    client.post_event(notice).await;
                }
            }
        };
        self.executor.spawn(telling).detach();
    }

    /// Makes the kernel forget UDP flows that the change left behind (contract 11.1).
    fn sweep(&self, family: Family, mut stale: Stale) {
        if stale.is_empty() && self.sweeping.borrow()[family as usize].stale.is_empty() {
            return;
        }
        match links::addresses() {
            Ok(addresses) => {
                let others = addresses.iter().filter(|address| &*address.interface != ipvs::DEVICE);
                stale.set_node_addresses(others.map(|address| address.address));
            }
            Err(error) => log::warn!("cannot read the node's addresses, flows to NodePorts may go stale: {error}"),
        }
        let unswept = &mut self.sweeping.borrow_mut()[family as usize];
        unswept.stale.extend(stale);
        if !std::mem::replace(&mut unswept.running, true) {
            let (sweeping, metrics) = (Rc::clone(&self.sweeping), Rc::clone(&self.metrics));
            self.executor.spawn(sweep_all(family, sweeping, metrics)).detach();
        }
    }
}

/// Sweeps until nothing waits for it, or it fails.
async fn sweep_all(family: Family, sweeping: Rc<RefCell<[Unswept; 2]>>, metrics: Rc<Metrics>) {
    let netlink_family = if family == Family::V4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    loop {
        let stale = std::mem::take(&mut sweeping.borrow_mut()[family as usize].stale);
        let started = Instant::now();
        let is_stale = |entry: &conntrack::Entry| {
            stale.is_stale(&Flow { destination: entry.original.destination, answering: entry.reply.source })
        };
        let outcome = conntrack::delete_udp(netlink_family, is_stale).await;
        let unswept = &mut sweeping.borrow_mut()[family as usize];
        match outcome {
            Ok(swept) => {
                unswept.failures = 0;
                metrics.swept(family, started.elapsed(), swept.deleted);
                log::debug!(ip_family = family.as_str(), deleted = swept.deleted; "stale UDP flows swept");
                unswept.running = !unswept.stale.is_empty();
            }
            Err(error) => {
                unswept.failures += 1;
                unswept.running = false;
                let outlook = if unswept.failures < SWEEPS {
                    let later = std::mem::replace(&mut unswept.stale, stale);
                    unswept.stale.extend(later);
                    "it is tried again at the next sync"
                } else {
                    unswept.failures = 0;
                    "some clients may stay with a former endpoint"
                };
                log::error!("cannot sweep stale {family} UDP flows: {error}; {outlook}");
            }
        }
        if !unswept.running {
            return;
        }
    }
}

// === impl Watchdog ===

impl Watchdog {
    /// As systemd asks; `None` when it does not.
    pub fn new() -> Option<Self> {
        systemd::watchdog_interval().map(|period| Self { period, next: Instant::now() })
    }
}
