//! From the configuration to a loop that turns (contract 15.1), and the runs that end by themselves.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use smol::LocalExecutor;
use smol::channel::unbounded;
use smol::future::FutureExt;
use smol::lock::Mutex;

use super::facts;
use super::family::Proxy;
use super::modes;
use super::onlookers::{expose_counters, expose_traffic, health_addresses, post_start, serve_pages};
use super::pace::Pace;
use super::setup::Setup;
use super::signs::{ConfigFile, Signals};
use super::thread::{self, Alarm};
use super::watchers::{Watchdog, Watchers};
use super::{Agent, Runner, SHORTEST_PERIOD, Stop};
use crate::config::{Config, Loaded, Mode, Options};
use crate::ipvs;
use crate::kernel::{links, sysctl};
use crate::model::{Family, Store};
use crate::nftables;
use crate::observe::health::Health;
use crate::observe::service_health::ServiceHealth;
use crate::observe::{systemd, time};
use crate::plan::Ledger;

/// How long a dry run waits for the ranges of ClusterIPs.
const SERVICE_CIDR_PATIENCE: Duration = Duration::from_secs(1);
/// How long a proxy goes without a sync when nothing is to do; in IPVS mode it is `syncPeriod` (contract 14.1).
const IDLE: Duration = Duration::from_secs(3600);

/// Serves until told to stop.
///
/// # Errors
/// One line that says why it cannot go on.
pub fn run(options: &Options, loaded: Loaded) -> Result<(), String> {
    let executor = Rc::new(LocalExecutor::new());
    let alarm = Rc::new(Alarm::default());
    let signals = Signals::catch().map_err(|error| format!("cannot catch signals: {error}"))?;
    let main = async {
        let setup = Setup::begin(Rc::clone(&executor), options, &loaded)?;
        match serve(setup, &loaded, signals, Rc::clone(&alarm)).await? {
            Stop::Signal(name) => {
                systemd::stopping();
                log::info!("{name}: ending; the rules stay in place");
                Ok(())
            }
            Stop::Failure(reason) => Err(reason),
        }
    };
    thread::block_on(&alarm, executor.run(main))
}

/// Does what needs full privileges, and nothing else (contract 2.6).
///
/// # Errors
/// One line that says what failed.
pub fn init_only(options: &Options, loaded: &Loaded) -> Result<(), String> {
    let executor = Rc::new(LocalExecutor::new());
    let main = async {
        let mut setup = Setup::begin(Rc::clone(&executor), options, loaded)?;
        let (addresses, pod_cidrs) = setup.wait_for_node().await?;
        apply_conntrack(&setup.config)?;
        let families = modes::families(setup.config.mode)?;
        modes::check_primary(&families, addresses.primary)?;
        for note in setup.config.check_families(addresses.primary, families.len() > 1, &pod_cidrs)? {
            log::warn!("{note}");
        }
        let interfaces = links::addresses().map_err(|error| format!("cannot read the node's addresses: {error}"))?;
        for family in families {
            modes::backend(&setup.config, family)?;
            let facts = facts::facts(family, &setup.config, &setup.store, &addresses, &pod_cidrs, &interfaces);
            modes::prepare(&setup.config, &facts)?;
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
        let families = modes::families(setup.config.mode)?;
        modes::check_primary(&families, addresses.primary)?;
        for family in families {
            let facts = facts::facts(family, &setup.config, &setup.store, &addresses, &pod_cidrs, &interfaces);
            let here = facts::here(family, &setup.config, &addresses, setup.store.node());
            let mut ledger = Ledger::new(family);
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

async fn serve(mut setup: Setup, loaded: &Loaded, signals: Signals, alarm: Rc<Alarm>) -> Result<Stop, String> {
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
    let (fail, failed) = unbounded();
    serve_pages(&setup, loaded, &health, &fail)?;
    let families = modes::families(setup.config.mode)?;
    // What this node lacks is told now, not when the API server answers.
    let backends =
        families.iter().map(|family| modes::backend(&setup.config, *family)).collect::<Result<Vec<_>, _>>()?;
    if setup.config.mode == Mode::Ipvs {
        log::warn!("{}", modes::IPVS_DEPRECATION);
    }
    systemd::ready(&systemd::Status::Waiting(setup.config.mode.as_str(), &setup.waits_for()));

    let early = async { Err(signals.next().await) };
    let node = async { Ok(setup.wait_for_node().await) };
    let (addresses, pod_cidrs) = match early.or(node).or(systemd::stay_alive()).await {
        Ok(node) => node?,
        Err(signal) => return Ok(Stop::Signal(signal)),
    };
    if let Some(node) = setup.store.node() {
        health.node_eligible(node.eligible);
    }
    modes::check_primary(&families, addresses.primary)?;
    for note in setup.config.check_families(addresses.primary, families.len() > 1, &pod_cidrs)? {
        log::warn!("{note}");
    }
    let own_device = (setup.config.mode == Mode::Ipvs).then_some(ipvs::DEVICE);
    let links =
        links::Watcher::open(own_device).map_err(|error| format!("cannot follow the node's addresses: {error}"))?;
    let interfaces = links::addresses().map_err(|error| format!("cannot read the node's addresses: {error}"))?;
    let mut proxies = Vec::new();
    let mut service_health = Vec::new();
    let unserved = Family::ALL.into_iter().filter(|family| !families.contains(family)).collect::<Vec<_>>();
    for (family, backend) in families.into_iter().zip(backends) {
        // A family that is served no longer has nobody else to remove its rules.
        let others = if family == addresses.primary { &unserved[..] } else { &[] };
        let leftovers = modes::leftovers(&setup.config, [&[family], others].concat());
        let facts = facts::facts(family, &setup.config, &setup.store, &addresses, &pod_cidrs, &interfaces);
        let here = facts::here(family, &setup.config, &addresses, setup.store.node());
        let servers = ServiceHealth::new(Rc::clone(&setup.executor), health_addresses(&facts), Rc::clone(&health));
        service_health.push((family, Rc::new(Mutex::new(servers))));
        proxies.push(Rc::new(RefCell::new(Proxy::new(family, backend, leftovers, facts, here))));
    }
    expose_traffic(&setup.metrics, &proxies);
    if setup.config.mode == Mode::Iptables {
        expose_counters(&setup.metrics);
    }
    post_start(&setup);
    let longest = if setup.config.mode == Mode::Ipvs { setup.config.sync_period.max(SHORTEST_PERIOD) } else { IDLE };
    let pace = || Pace::new(setup.config.min_sync_period, setup.config.sync_period, longest);
    let runners = proxies.into_iter().map(|proxy| Runner { proxy, pace: pace() }).collect();
    let watchers = Watchers {
        executor: Rc::clone(&setup.executor),
        mode: setup.config.mode,
        node_name: setup.node_name,
        metrics: setup.metrics,
        health,
        service_health,
        client: setup.client,
        failures: (fail, Box::pin(failed)),
        sweeping: Rc::default(),
        watchdog: Watchdog::new(),
        born: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64,
        backlogs: Default::default(),
    };
    let agent = Agent {
        alarm,
        listing_since: None,
        inspect_at: Instant::now(),
        config: setup.config,
        store: setup.store,
        events: Box::pin(setup.events),
        runners,
        watchers,
        signals,
        config_file,
        links,
        addresses,
        pod_cidrs,
        tick_at: None,
        refresh_at: None,
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
