//! What is known before the loop turns: the configuration, where objects come from, and this node's object.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use async_io::Timer;
use smol::LocalExecutor;
use smol::channel::{Receiver, bounded};
use smol::future::FutureExt;

use super::facts::NodeAddresses;
use super::onlookers::{build, count_requests};
use crate::config::{Config, DetectLocal, Gate, Loaded, Options};
use crate::model::{Event, Store};
use crate::observe::metrics::Metrics;
use crate::source::{Access, Client, Limits, Manifests, Source};

/// Events that may wait for the loop.
const EVENTS: usize = 1024;
/// How long to wait for the Node to get addresses (contract 3.2).
const NODE_PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait for it to get podCIDRs, where these are needed.
const POD_CIDR_PATIENCE: Duration = Duration::from_secs(300);
/// Everything that is known before the first object is read.
pub(super) struct Setup {
    pub executor: Rc<LocalExecutor<'static>>,
    pub config: Config,
    pub node_name: String,
    pub client: Option<Rc<Client>>,
    pub metrics: Rc<Metrics>,
    pub events: Receiver<Event>,
    pub store: Store,
}

/// The name of our Node object (contract 3.1).
///
/// # Errors
/// When there is none.
pub fn node_name(config: &Config) -> Result<String, String> {
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
    pub(super) fn begin(
        executor: Rc<LocalExecutor<'static>>,
        options: &Options,
        loaded: &Loaded,
    ) -> Result<Self, String> {
        let config = loaded.config.clone();
        let node_name = node_name(&config)?;
        let metrics = Rc::new(Metrics::new(build()));
        for (name, stage, on) in config.gates.iter() {
            metrics.feature_enabled.with(&[name, stage.as_str()]).set(f64::from(u8::from(on)));
        }
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
                let streaming = config.gates.enabled(Gate::WatchListClient);
                let limits = Limits { streaming, protobuf: config.protobuf, ..Limits::default() };
                let client = Rc::new(Client::new(access, limits, Some(count_requests(Rc::clone(&metrics)))));
                let is_set = |name: &&str| std::env::var_os(*name).is_some_and(|value| !value.is_empty());
                if let Some(name) = ["HTTPS_PROXY", "https_proxy"].into_iter().find(is_set) {
                    log::info!("{name} is set and not used: the API server is asked directly");
                }
                (Source::Api(Rc::clone(&client)), Some(client))
            }
        };
        source.start(&node_name, &executor, sender);
        Ok(Self { executor, config, node_name, client, metrics, events, store: Store::default() })
    }

    /// What the first objects depend on, for people.
    pub(super) fn waits_for(&self) -> String {
        match &self.client {
            Some(client) => format!("the API server {}", client.server()),
            None => "the manifests to be read".into(),
        }
    }

    pub(super) async fn next_event(&mut self) -> Result<(), String> {
        let event = self.events.recv().await.map_err(|_| "the source of objects ended".to_owned())?;
        self.store.apply(event);
        Ok(())
    }

    /// Waits until the Node is known, with what is needed of it (contract 3.2); its addresses and podCIDRs.
    pub(super) async fn wait_for_node(&mut self) -> Result<(NodeAddresses, Vec<ipnet::IpNet>), String> {
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
    pub(super) async fn wait_until(
        &mut self,
        patience: Duration,
        enough: impl Fn(&Store) -> bool,
    ) -> Result<bool, String> {
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
