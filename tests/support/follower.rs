//! Follows a source as the agent does, and remembers what it was told.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use kube_proxy::model::{Endpoint, Event, Kind};
use kube_proxy::source::{Access, Client, Exchange, Limits, Outcome, Source};
use smol::LocalExecutor;
use smol::channel::{Receiver, bounded};

/// A test that has not seen what it waits for by then has failed. Nothing is faster or slower for it.
const PATIENCE: Duration = Duration::from_secs(30);

/// The node that follows.
pub const NODE: &str = "us";

/// Verb and status code of each request.
pub type Exchanges = Vec<(String, Option<u16>)>;

/// A source and what it told.
pub struct Follower {
    executor: LocalExecutor<'static>,
    events: Receiver<Event>,
    pub seen: Seen,
    pub exchanges: Rc<RefCell<Exchanges>>,
}

/// What was told, by kind and name.
#[derive(Default)]
pub struct Seen {
    pub objects: BTreeMap<String, Event>,
    /// Lists that were complete.
    pub lists: BTreeMap<String, usize>,
    /// Named by the lists that are not complete yet.
    open: BTreeMap<String, BTreeSet<String>>,
}

/// A folder that is removed in the end.
pub struct Folder(PathBuf);

/// Limits that let a test see the end of waiting.
pub fn limits() -> Limits {
    Limits {
        answer: Duration::from_secs(5),
        retry: (Duration::from_millis(20), Duration::from_millis(200)),
        page: 2,
        ..Limits::default()
    }
}

// === impl Follower ===

impl Follower {
    pub fn api(kubeconfig: &Path, limits: Limits) -> Self {
        let access = Access::load(Some(kubeconfig), None).unwrap_or_else(|error| panic!("{error}"));
        let exchanges: Rc<RefCell<Exchanges>> = Rc::default();
        let log = Rc::clone(&exchanges);
        let observer = Rc::new(move |exchange: &Exchange<'_>| {
            if let Outcome::Answered { code, .. } = exchange.outcome {
                log.borrow_mut().push((exchange.verb.to_owned(), code));
            }
        });
        let client = Rc::new(Client::new(access, limits, Some(observer)));
        Self { exchanges, ..Self::new(Source::Api(client)) }
    }

    pub fn new(source: Source) -> Self {
        let executor = LocalExecutor::new();
        let (sender, events) = bounded(16);
        source.start(NODE, &executor, sender);
        Self { executor, events, seen: Seen::default(), exchanges: Rc::default() }
    }

    /// Follows until this holds.
    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&Seen) -> bool) {
        let Self { executor, events, seen, .. } = self;
        let wait = async {
            while !holds(seen) {
                let event = smol::future::or(async { Some(events.recv().await.expect("the source goes on")) }, async {
                    // What is waited for may be on the server's side, which tells no events.
                    smol::Timer::after(Duration::from_millis(5)).await;
                    None
                });
                if let Some(event) = event.await {
                    seen.take(event);
                }
            }
            true
        };
        let held = smol::future::or(wait, async {
            smol::Timer::after(PATIENCE).await;
            false
        });
        let held = smol::block_on(executor.run(held));
        assert!(held, "never: {what}; seen {:?}, lists {:?}", seen.objects.keys(), seen.lists);
    }

    /// Follows until every kind was listed.
    pub fn until_listed(&mut self) {
        self.until("all kinds are listed", |seen| seen.lists.len() == 4);
    }
}

// === impl Seen ===

impl Seen {
    pub fn has(&self, name: &str) -> bool {
        self.objects.contains_key(name)
    }

    pub fn lists(&self, kind: Kind) -> usize {
        self.lists.get(&format!("{kind:?}")).copied().unwrap_or(0)
    }

    pub fn endpoints(&self, name: &str) -> &[Endpoint] {
        match self.objects.get(&format!("EndpointSlice {name}")) {
            Some(Event::EndpointSlice(_, Some(slice))) => &slice.endpoints,
            _ => &[],
        }
    }

    fn take(&mut self, event: Event) {
        let (kind, name, gone) = match &event {
            Event::ListStart(kind) => {
                self.open.insert(format!("{kind:?}"), BTreeSet::new());
                return;
            }
            Event::ListEnd(kind) => {
                let kind = format!("{kind:?}");
                let named = self.open.remove(&kind).expect("a list that ends has begun");
                self.objects.retain(|name, _| !name.starts_with(&format!("{kind} ")) || named.contains(name));
                *self.lists.entry(kind).or_default() += 1;
                return;
            }
            Event::Service(name, object) => ("Service", name.to_string(), object.is_none()),
            Event::EndpointSlice(name, object) => ("EndpointSlice", name.to_string(), object.is_none()),
            Event::Node(object) => ("Node", "ours".to_owned(), object.is_none()),
            Event::ServiceCidr(name, object) => ("ServiceCidr", name.to_string(), object.is_none()),
        };
        let name = format!("{kind} {name}");
        if gone {
            self.objects.remove(&name);
            return;
        }
        if let Some(named) = self.open.get_mut(kind) {
            named.insert(name.clone());
        }
        self.objects.insert(name, event);
    }
}

// === impl Folder ===

impl Folder {
    pub fn new() -> Self {
        let name = super::netns::unique(&format!("kube-proxy-test-{}-", std::process::id()));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("the temporary folder is writable");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).expect("the temporary folder is writable");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _already_gone = fs::remove_dir_all(&self.0);
    }
}
