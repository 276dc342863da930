//! Getting ready: from the configuration to a loop that can turn (contract 15.1), and the runs that end by themselves.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use async_io::Timer;
use smol::LocalExecutor;
use smol::channel::{Receiver, bounded, unbounded};
use smol::future::FutureExt;
use smol::lock::Mutex;

use super::facts::{self, NodeAddresses};
use super::family::Proxy;
use super::modes;
use super::pace::Pace;
use super::signs::{ConfigFile, Signals};
use super::watchers::{Watchdog, Watchers};
use super::{Agent, Stop};
use crate::cli::{KUBERNETES_VERSION, full_version, go_arch};
use crate::config::{Config, DetectLocal, Loaded, Mode, Options, to_configz};
use crate::kernel::{links, sysctl};
use crate::model::{Event, Family, Store};
use crate::nftables;
use crate::observe::exposition::Counter;
use crate::observe::health::Health;
use crate::observe::http;
use crate::observe::metrics::{Metrics, RestRequest};
use crate::observe::pages::Pages;
use crate::observe::scrape::{Build, Traffic};
use crate::observe::service_health::ServiceHealth;
use crate::observe::{systemd, time};
use crate::plan::{NodeFacts, NodePortAddresses};
use crate::source::{Access, Client, Exchange, Limits, Manifests, Notice, Regarding, Source};

/// Events that may wait for the loop.
const EVENTS: usize = 1024;
/// How long to wait for the Node to get addresses (contract 3.2).
const NODE_PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait for it to get podCIDRs, where these are needed.
const POD_CIDR_PATIENCE: Duration = Duration::from_secs(300);
/// How long a dry run waits for the ranges of ClusterIPs.
const SERVICE_CIDR_PATIENCE: Duration = Duration::from_secs(1);
/// How often to try to listen again.
const BIND_RETRY: Duration = Duration::from_secs(5);

/// Everything that is known before the first object is read.
struct Setup {
    executor: Rc<LocalExecutor<'static>>,
    config: Config,
    node_name: String,
    client: Option<Rc<Client>>,
    metrics: Rc<Metrics>,
    events: Receiver<Event>,
    store: Store,
}

/// Serves until told to stop.
///
/// # Errors
/// One line that says why it cannot go on.
pub fn run(options: &Options, loaded: Loaded) -> Result<(), String> {
    let executor = Rc::new(LocalExecutor::new());
    let signals = Signals::catch().map_err(|error| format!("cannot catch signals: {error}"))?;
    let main = async {
        let setup = Setup::begin(Rc::clone(&executor), options, &loaded)?;
        match serve(setup, &loaded, signals).await? {
            Stop::Signal(name) => {
                systemd::stopping();
                log::info!("{name}: ending; the rules stay in place");
                Ok(())
            }
            Stop::Failure(reason) => Err(reason),
        }
    };
    async_io::block_on(executor.run(main))
}

/// Does what needs full privileges, and nothing else (contract 2.6).
///
/// # Errors
/// One line that says what failed.
pub fn init_only(options: &Options, loaded: &Loaded) -> Result<(), String> {
    let executor = Rc::new(LocalExecutor::new());
    let main = async {
        let mut setup = Setup::begin(Rc::clone(&executor), options, loaded)?;
        setup.wait_for_node().await?;
        apply_conntrack(&setup.config)?;
        for family in modes::families(setup.config.mode) {
            modes::backend(&setup.config, family)?;
            log::info!(ip_family = family.as_str(); "System initialized and --init-only specified");
        }
        Ok(())
    };
    async_io::block_on(executor.run(main))
}

/// Prints the ruleset that would be programmed.
///
/// # Errors
/// One line that says what is missing.
pub fn dry_run(options: &Options, loaded: &Loaded) -> Result<String, String> {
    if loaded.config.mode != Mode::Nftables {
        return Err(format!(
            "--dry-run shows nftables rulesets; the mode is {}, add --proxy-mode=nftables",
            loaded.config.mode
        ));
    }
    let executor = Rc::new(LocalExecutor::new());
    let main = async {
        let mut setup = Setup::begin(Rc::clone(&executor), options, loaded)?;
        let (addresses, pod_cidrs) = setup.wait_for_node().await?;
        while !setup.store.is_complete() {
            setup.next_event().await?;
        }
        // Old API servers have none to tell of.
        setup.wait_until(SERVICE_CIDR_PATIENCE, Store::knows_service_cidrs).await?;
        let interfaces = links::addresses().map_err(|error| format!("cannot read the node's addresses: {error}"))?;
        let mut objects = Vec::new();
        for family in modes::families(setup.config.mode) {
            let facts = facts::facts(family, &setup.config, &setup.store, &addresses, &pod_cidrs, &interfaces);
            let here = facts::here(family, &addresses, setup.store.node());
            let mut ledger = crate::plan::Ledger::new(family);
            let names: Vec<_> = setup.store.services().cloned().collect();
            let plans = ledger.plan(&setup.store, &here, names);
            let (shown, set_aside) = nftables::show(&facts, &plans);
            objects.extend(shown);
            set_aside
                .iter()
                .for_each(|(port, reason)| log::error!("Service port {port} cannot be programmed: {reason}"));
            ledger.take_clashes().iter().for_each(|clash| log::warn!("{clash}"));
        }
        serde_json::to_string(&serde_json::json!({ "nftables": objects })).map_err(|error| error.to_string())
    };
    async_io::block_on(executor.run(main))
}

async fn serve(mut setup: Setup, loaded: &Loaded, signals: Signals) -> Result<Stop, String> {
    let config_file = match &loaded.file {
        Some(path) => {
            Some(ConfigFile::watch(path).map_err(|error| format!("cannot watch {}: {error}", path.display()))?)
        }
        None => None,
    };
    if let Err(error) = sysctl::set_oom_score_adj(setup.config.oom_score_adj) {
        log::debug!("cannot set oom_score_adj: {error}");
    }
    apply_conntrack(&setup.config)?;
    let health = Health::new(time::clock(), setup.config.sync_period);
    let failures = unbounded();
    serve_pages(&setup, loaded, &health, &failures.0)?;

    let early = async { Err(signals.next().await) };
    let (addresses, pod_cidrs) = match early.or(async { Ok(setup.wait_for_node().await) }).await {
        Ok(node) => node?,
        Err(signal) => return Ok(Stop::Signal(signal)),
    };
    if let Some(node) = setup.store.node() {
        health.node_eligible(node.eligible);
    }
    let families = modes::families(setup.config.mode);
    for note in setup.config.check_families(addresses.primary, families.len() > 1, &pod_cidrs)? {
        log::warn!("{note}");
    }
    let links = links::Watcher::open().map_err(|error| format!("cannot follow the node's addresses: {error}"))?;
    let interfaces = links::addresses().map_err(|error| format!("cannot read the node's addresses: {error}"))?;
    let mut proxies = Vec::new();
    let mut service_health = Vec::new();
    for family in families {
        let facts = facts::facts(family, &setup.config, &setup.store, &addresses, &pod_cidrs, &interfaces);
        let here = facts::here(family, &addresses, setup.store.node());
        let servers = ServiceHealth::new(Rc::clone(&setup.executor), health_addresses(&facts), Rc::clone(&health));
        service_health.push((family, Rc::new(Mutex::new(servers))));
        proxies.push(Rc::new(RefCell::new(Proxy::new(
            family,
            modes::backend(&setup.config, family)?,
            modes::leftovers(setup.config.mode),
            facts,
            here,
        ))));
    }
    expose_traffic(&setup.metrics, &proxies);
    post_start(&setup);
    let pace = Pace::new(setup.config.min_sync_period, setup.config.sync_period);
    let watchers = Watchers {
        executor: Rc::clone(&setup.executor),
        mode: setup.config.mode,
        node_name: setup.node_name,
        metrics: setup.metrics,
        health,
        service_health,
        client: setup.client,
        failures,
        sweeping: Rc::default(),
        watchdog: Watchdog::new(),
        triggers: Vec::new(),
        ready: false,
    };
    let agent = Agent {
        inspect_at: Instant::now() + setup.config.sync_period,
        config: setup.config,
        store: setup.store,
        events: setup.events,
        proxies,
        pace,
        watchers,
        signals,
        config_file,
        links,
        addresses,
        pod_cidrs,
        changed_at: None,
        tick_at: None,
    };
    Ok(agent.run().await)
}

/// Contract 11.2.
fn apply_conntrack(config: &Config) -> Result<(), String> {
    let wanted = &config.conntrack;
    let seconds = |duration: Option<Duration>| duration.map(|duration| duration.as_secs());
    let max = wanted
        .max_per_core
        .and_then(|per_core| sysctl::conntrack_max(per_core.into(), wanted.min.into(), sysctl::cpus()));
    let settings = sysctl::Conntrack {
        max,
        tcp_established: seconds(wanted.tcp_established_timeout),
        tcp_close_wait: seconds(wanted.tcp_close_wait_timeout),
        udp: seconds(wanted.udp_timeout),
        udp_stream: seconds(wanted.udp_stream_timeout),
        tcp_be_liberal: wanted.tcp_be_liberal,
    };
    let warnings = sysctl::apply_conntrack(&sysctl::Root::default(), &settings)
        .map_err(|failure| format!("could not set conntrack parameters from kube-proxy configuration: {failure}"))?;
    for warning in warnings {
        log::warn!("{warning}");
    }
    Ok(())
}

/// Begins to serve health, metrics and status pages.
fn serve_pages(
    setup: &Setup,
    loaded: &Loaded,
    health: &Rc<Health>,
    failures: &smol::channel::Sender<String>,
) -> Result<(), String> {
    let config = &setup.config;
    let retry = (!config.bind_address_hard_fail).then_some(BIND_RETRY);
    let pages = Pages {
        metrics: Rc::clone(&setup.metrics),
        mode: config.mode.as_str(),
        configz: to_configz(&loaded.effective)?,
        flags: loaded.flags.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        version: version(),
        emulates: KUBERNETES_VERSION.trim_start_matches('v'),
        started: SystemTime::now(),
        clock: time::clock(),
        pings: Counter::default(),
    };
    let metrics: http::Handler = Rc::new(move |request| pages.answer(request));
    let (health, counters) = (Rc::clone(health), Rc::clone(&setup.metrics));
    let healthz: http::Handler = Rc::new(move |request| health.answer(&counters, request));
    let servers = [
        ("metrics", Some(config.metrics_bind_address), metrics, "FailedToStartMetricServer"),
        ("healthz", config.healthz_bind_address, healthz, "FailedToStartProxierHealthcheck"),
    ];
    for (name, address, handler, reason) in servers {
        let Some(address) = address else { continue };
        let (failures, client, node_name) = (failures.clone(), setup.client.clone(), setup.node_name.clone());
        let server = async move {
            let failure = http::run(name, address, retry, handler).await.to_string();
            if let Some(client) = client {
                let note = failure.clone();
                let notice = Notice {
                    node_name,
                    regarding: Regarding::Node,
                    warning: true,
                    reason,
                    action: "StartKubeProxy",
                    note,
                };
                // The process is about to end: the event gets its chance, but no more.
                client
                    .post_event(notice)
                    .or(async {
                        let _ = Timer::after(BIND_RETRY).await;
                    })
                    .await;
            }
            // The loop may have ended for another reason.
            let _ = failures.send(failure).await;
        };
        setup.executor.spawn(server).detach();
    }
    Ok(())
}

/// Lets scrapes read the kernel's counters.
fn expose_traffic(metrics: &Metrics, proxies: &[Rc<RefCell<Proxy>>]) {
    let proxies = proxies.to_vec();
    metrics.set_traffic(Box::new(move |each| {
        for proxy in &proxies {
            let family = proxy.borrow().family();
            for (port, packets, bytes) in proxy.borrow_mut().traffic() {
                each(Traffic { port: &port, family, packets, bytes });
            }
        }
    }));
}

/// Where the servers of healthCheckNodePorts listen (contract 12.3).
fn health_addresses(facts: &NodeFacts) -> Vec<std::net::IpAddr> {
    match &facts.node_port_addresses {
        NodePortAddresses::All => vec![match facts.family {
            Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        }],
        NodePortAddresses::Only(addresses) => addresses.clone(),
    }
}

/// The event `Starting` (contract 15.3).
fn post_start(setup: &Setup) {
    let Some(client) = setup.client.clone() else { return };
    let notice = Notice {
        node_name: setup.node_name.clone(),
        regarding: Regarding::Node,
        warning: false,
        reason: "Starting",
        action: "StartKubeProxy",
        note: String::new(),
    };
    setup.executor.spawn(async move { client.post_event(notice).await }).detach();
}

fn version() -> &'static str {
    static VERSION: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    VERSION.get_or_init(full_version)
}

fn build() -> Build {
    static PLATFORM: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    Build {
        major: "1",
        minor: "36",
        git_version: version(),
        platform: PLATFORM.get_or_init(|| format!("{}/{}", std::env::consts::OS, go_arch(std::env::consts::ARCH))),
        ..Build::default()
    }
}

/// The name of our Node object (contract 3.1).
fn node_name(config: &Config) -> Result<String, String> {
    let name = match &config.hostname_override {
        Some(name) => name.clone(),
        None => nix::unistd::gethostname()
            .map_err(|error| format!("cannot read the host name: {error}"))?
            .to_string_lossy()
            .into_owned(),
    };
    let name = name.trim().to_lowercase();
    if name.is_empty() { Err("empty hostname is invalid; set --hostname-override".into()) } else { Ok(name) }
}

// === impl Setup ===

impl Setup {
    /// Begins to read objects.
    fn begin(executor: Rc<LocalExecutor<'static>>, options: &Options, loaded: &Loaded) -> Result<Self, String> {
        let config = loaded.config.clone();
        let node_name = node_name(&config)?;
        let metrics = Rc::new(Metrics::new(build()));
        let (sender, events) = bounded(EVENTS);
        let (source, client) = match options.flags.manifests.as_deref() {
            Some(folder) => {
                let manifests =
                    Manifests::open(Path::new(folder)).map_err(|error| format!("--manifests {folder}: {error}"))?;
                (Source::Manifests(manifests), None)
            }
            None => {
                let master = options.flags.master.as_deref().filter(|master| !master.is_empty());
                let access = Access::load(config.kubeconfig.as_deref().map(Path::new), master)
                    .map_err(|error| error.to_string())?;
                let client = Rc::new(Client::new(access, Limits::default(), Some(count_requests(Rc::clone(&metrics)))));
                (Source::Api(Rc::clone(&client)), Some(client))
            }
        };
        source.start(&node_name, &executor, sender);
        Ok(Self { executor, config, node_name, client, metrics, events, store: Store::default() })
    }

    async fn next_event(&mut self) -> Result<(), String> {
        let event = self.events.recv().await.map_err(|_| "the source of objects ended".to_owned())?;
        self.store.apply(event);
        Ok(())
    }

    /// Waits until the Node is known, with what is needed of it (contract 3.2); its addresses and podCIDRs.
    async fn wait_for_node(&mut self) -> Result<(NodeAddresses, Vec<ipnet::IpNet>), String> {
        while !self.store.knows_node() {
            self.next_event().await?;
        }
        let needs_pod_cidr = matches!(self.config.detect_local, DetectLocal::NodeCidr);
        let has_api = self.client.is_some();
        let addresses = |store: &Store| store.node().is_some_and(|node| !node.addresses.is_empty());
        let pod_cidrs = |store: &Store| store.node().is_some_and(|node| !node.pod_cidrs.is_empty());
        if has_api && !self.wait_until(NODE_PATIENCE, addresses).await? {
            log::warn!("Node {} has no addresses, or is not there: going on without", self.node_name);
        }
        if needs_pod_cidr && !self.wait_until(POD_CIDR_PATIENCE, pod_cidrs).await? {
            return Err(match self.store.node() {
                None => format!("timeout waiting for node {:?} to exist", self.node_name),
                Some(_) => format!("timeout waiting for PodCIDR allocation on node {:?}", self.node_name),
            });
        }
        let node = self.store.node();
        let pod_cidrs = node.map(|node| node.pod_cidrs.clone()).unwrap_or_default();
        Ok((NodeAddresses::new(&self.config, node), pod_cidrs))
    }

    /// Takes in events until `enough`, at most for so long; whether it was enough.
    async fn wait_until(&mut self, patience: Duration, enough: impl Fn(&Store) -> bool) -> Result<bool, String> {
        let end = Instant::now() + patience;
        while !enough(&self.store) {
            let timeout = async {
                Timer::at(end).await;
                Ok(false)
            };
            let event = async { self.next_event().await.map(|()| true) };
            if !event.or(timeout).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Counts requests to the API server.
fn count_requests(metrics: Rc<Metrics>) -> Rc<dyn Fn(&Exchange<'_>)> {
    Rc::new(move |exchange| {
        let code = exchange.code.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
        metrics.requested(&RestRequest {
            method: exchange.verb,
            verb: exchange.verb,
            host: exchange.host,
            code: &code,
            took: exchange.duration,
            sent: 0,
            received: 0,
        });
    })
}
