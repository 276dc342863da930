//! The onlookers' doors: metrics, health and status pages, and the events that the API server is told.
//!
//! Opens them and says what is behind; must not know the loop.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use async_io::Timer;
use smol::channel::Sender;
use smol::future::FutureExt;

use super::family::Proxy;
use super::modes::IPVS_DEPRECATION;
use super::setup::Setup;
use crate::cli::{KUBERNETES_VERSION, full_version, go_arch};
use crate::config::{Gate, Loaded, Mode, to_configz};
use crate::iptables;
use crate::kernel::nfacct;
use crate::model::Family;
use crate::observe::exposition::Counter;
use crate::observe::health::Health;
use crate::observe::metrics::Metrics;
use crate::observe::pages::Pages;
use crate::observe::scrape::{Build, Traffic};
use crate::observe::{http, time};
use crate::plan::{NodeFacts, NodePortAddresses};
use crate::source::{Notice, Observer, Outcome, Regarding};

/// How often to try to listen again.
const BIND_RETRY: Duration = Duration::from_secs(5);

/// Begins to serve health, metrics and status pages.
pub(super) fn serve_pages(
    setup: &Setup,
    loaded: &Loaded,
    health: &Rc<Health>,
    failures: &Sender<String>,
) -> Result<(), String> {
    let config = &setup.config;
    let retry = (!config.bind_address_hard_fail).then_some(BIND_RETRY);
    let pages = Pages {
        metrics: Rc::clone(&setup.metrics),
        mode: config.mode.as_str(),
        configz: to_configz(&loaded.effective)?,
        flagz: config.gates.enabled(Gate::ComponentFlagz),
        statusz: config.gates.enabled(Gate::ComponentStatusz),
        flags: loaded.flags.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        version: version(),
        emulates: KUBERNETES_VERSION.trim_start_matches('v').rsplit_once('.').map_or("", |(minor, _)| minor),
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
pub(super) fn expose_traffic(metrics: &Metrics, proxies: &[Rc<RefCell<Proxy>>]) {
    let proxies = proxies.to_vec();
    metrics.set_traffic(Box::new(move || {
        let mut ports = Vec::new();
        for proxy in &proxies {
            let family = proxy.borrow().family();
            let traffic = proxy.borrow_mut().traffic().into_iter();
            ports.extend(traffic.map(|(port, packets, bytes)| Traffic { port, family, packets, bytes }));
        }
        ports
    }));
}

/// Lets scrapes read what iptables rules count into, where they do (contract 13).
pub(super) fn expose_counters(metrics: &Metrics) {
    const SERIES: [(&str, &str); 2] = [
        (
            "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
            "[ALPHA] Packets dropped because connection tracking called them INVALID",
        ),
        (
            "kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
            "[ALPHA] Packets that opened connections to NodePorts on loopback",
        ),
    ];
    metrics.set_counters(Box::new(|each| {
        for (counter, (name, help)) in iptables::COUNTERS.iter().zip(SERIES) {
            if let Ok(Some(packets)) = nfacct::packets(counter) {
                each(name, help, packets);
            }
        }
    }));
}

/// Where the servers of healthCheckNodePorts listen (contract 12.3).
pub(super) fn health_addresses(facts: &NodeFacts) -> Vec<IpAddr> {
    match &facts.node_port_addresses {
        NodePortAddresses::All => vec![match facts.family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }],
        NodePortAddresses::Only(addresses) => addresses.clone(),
    }
}

/// The events of a start (contract 15.3). Upstream sends its warning about IPVS before anybody records it.
pub(super) fn post_start(setup: &Setup) {
    let Some(client) = &setup.client else { return };
    let starting = ("Starting", false, "");
    let deprecation = (setup.config.mode == Mode::Ipvs).then_some(("IPVSDeprecation", true, IPVS_DEPRECATION));
    for (reason, warning, note) in [starting].into_iter().chain(deprecation) {
        let notice = Notice {
            node_name: setup.node_name.clone(),
            regarding: Regarding::Node,
            warning,
            reason,
            action: "StartKubeProxy",
            note: note.into(),
        };
        let client = Rc::clone(client);
        setup.executor.spawn(async move { client.post_event(notice).await }).detach();
    }
}

fn version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(full_version)
}

/// What is said of the build.
pub(super) fn build() -> Build {
    static PLATFORM: OnceLock<String> = OnceLock::new();
    Build {
        major: "1",
        minor: "36",
        git_version: version(),
        platform: PLATFORM.get_or_init(|| format!("{}/{}", std::env::consts::OS, go_arch(std::env::consts::ARCH))),
        ..Build::default()
    }
}

/// Counts requests to the API server.
pub(super) fn count_requests(metrics: Rc<Metrics>) -> Observer {
    Rc::new(move |exchange| {
        let (verb, host) = (exchange.verb, exchange.host);
        match exchange.outcome {
            Outcome::Answered { code, duration } => {
                let code = code.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
                metrics.requested(verb, host, &code, duration);
            }
            Outcome::Read { sent, received } => metrics.transferred(verb, host, sent, received),
        }
    })
}
