//! The health check ports of load balancers with policy Local: each Service that has one gets a small server which
//! tells how many endpoints it has on this node (contract 12.3).
//!
//! Must not count endpoints; it is told the number.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};
use serde_json::Value;
use smol::{LocalExecutor, Task};

use super::health::Health;
use super::http::{Answer, Handler, json, serve};
use crate::kernel::listen::{self, Unspecified};
use crate::model::ObjectName;

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The servers of one family. Dropping it closes them.
pub struct ServiceHealth {
    executor: Rc<LocalExecutor<'static>>,
    addresses: Vec<IpAddr>,
    health: Rc<Health>,
    servers: HashMap<ObjectName, Server>,
    /// Those that are wanted and do not listen.
    closed: HashSet<ObjectName>,
    /// Those of which a server ended by itself since the last look.
    ended: Rc<RefCell<Vec<ObjectName>>>,
    /// What was told to end, and may still hold its port.
    ending: Vec<Task<()>>,
}

/// A health check port that cannot be opened for now.
#[derive(Debug)]
pub struct Failure {
    /// Whose it is.
    pub service: ObjectName,
    /// The port.
    pub port: u16,
    /// Why.
    pub error: io::Error,
}

struct Server {
    port: u16,
    /// Why it could not be opened, as was told.
    told: Option<io::ErrorKind>,
    endpoints: Rc<Cell<usize>>,
    /// One for each address.
    tasks: Vec<(IpAddr, Task<()>)>,
}

// === impl ServiceHealth ===

impl ServiceHealth {
    /// No servers yet. They will run on `executor` and listen on `addresses`: those of the node that accept NodePorts, or
    /// the unspecified one of the family for all of that family.
    pub fn new(executor: Rc<LocalExecutor<'static>>, addresses: Vec<IpAddr>, health: Rc<Health>) -> Self {
        Self {
            executor,
            addresses,
            health,
            servers: HashMap::new(),
            closed: HashSet::new(),
            ended: Rc::default(),
            ending: Vec::new(),
        }
    }

    /// Says where to listen from now on. What is open on addresses that stay is left alone; the next
    /// [`ServiceHealth::open`] does the rest.
    pub fn listen_on(&mut self, addresses: Vec<IpAddr>) {
        if addresses == self.addresses {
            return;
        }
        self.addresses = addresses;
        for server in self.servers.values_mut() {
            let gone = server.tasks.extract_if(.., |(address, _)| !self.addresses.contains(address));
            self.ending.extend(gone.map(|(_, task)| task));
        }
        self.closed = self.servers.keys().cloned().collect();
    }

    /// Says what a Service wants: its port, and the number of distinct addresses of its ready endpoints on this node.
    /// `None`: it has no such port any more. A port is opened by the next [`ServiceHealth::open`].
    pub fn set(&mut self, service: &ObjectName, wanted: Option<(u16, usize)>) {
        if let (Some((port, endpoints)), Some(server)) = (wanted, self.servers.get(service))
            && server.port == port
        {
            server.endpoints.set(endpoints);
            return;
        }
        if let Some(server) = self.servers.remove(service) {
            self.ending.extend(server.tasks.into_iter().map(|(_, task)| task));
            self.closed.remove(service);
        }
        if let Some((port, endpoints)) = wanted {
            let server = Server { port, told: None, endpoints: Rc::new(Cell::new(endpoints)), tasks: Vec::new() };
            self.servers.insert(service.clone(), server);
            self.closed.insert(service.clone());
        }
    }

    /// Closes what is no longer wanted, opens what is not open yet, and returns what cannot be opened, once for each
    /// reason; it is tried again by the next call. To be called after each successful sync. The executor must be running.
    pub async fn open(&mut self) -> Vec<Failure> {
        for service in self.ended.take() {
            if let Some(server) = self.servers.get_mut(&service) {
                server.tasks.retain(|(_, task)| !task.is_finished());
                self.closed.insert(service);
            }
        }
        // A port is free only when its former owner is really gone.
        for task in self.ending.drain(..) {
            task.cancel().await;
        }
        let mut failures = Vec::new();
        let (executor, addresses, health, ended) = (&self.executor, &self.addresses, &self.health, &self.ended);
        let servers = &mut self.servers;
        self.closed.retain(|service| {
            let server = servers.get_mut(service).expect("`set` keeps both tables alike");
            let is_open = |address: &IpAddr| server.tasks.iter().any(|(open, _)| open == address);
            let open = |address: &IpAddr| {
                let listener = listen::tcp(SocketAddr::new(*address, server.port), Unspecified::OwnFamily);
                listener.map(|listener| (*address, listener))
            };
            let opened: io::Result<Vec<_>> = addresses.iter().filter(|address| !is_open(address)).map(open).collect();
            match opened {
                Ok(listeners) => {
                    let handler = handler(service, &server.endpoints, health);
                    server.told = None;
                    server.tasks.extend(listeners.into_iter().map(|(address, listener)| {
                        let (handler, name, ended) = (Rc::clone(&handler), service.clone(), Rc::clone(ended));
                        let serving = async move {
                            let error = serve(listener, handler).await;
                            ::log::error!(
                                "the health check port of {name} ended, the next sync opens it again: {error}"
                            );
                            ended.borrow_mut().push(name);
                        };
                        (address, executor.spawn(serving))
                    }));
                    false
                }
                Err(error) => {
                    if server.told.replace(error.kind()) != Some(error.kind()) {
                        failures.push(Failure { service: service.clone(), port: server.port, error });
                    }
                    true
                }
            }
        });
        failures
    }
}

fn handler(service: &ObjectName, endpoints: &Rc<Cell<usize>>, health: &Rc<Health>) -> Handler {
    let (service, endpoints, health) = (service.clone(), Rc::clone(endpoints), Rc::clone(health));
    Rc::new(move |_| answer(&service, endpoints.get(), health.is_healthy()))
}

fn answer(service: &ObjectName, endpoints: usize, healthy: bool) -> Answer {
    let good = endpoints > 0 && healthy;
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let [namespace, name] = [service.namespace(), service.name()].map(Value::from);
    let mut answer = json(
        status,
        format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace},\n\t\t\"name\": {name}\n\t}},\n\
             \t\"localEndpoints\": {endpoints},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
        ),
    );
    answer.headers_mut().insert(WEIGHT, HeaderValue::from(endpoints));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_depend_on_endpoints_and_health() {
        let service = ObjectName::new("ns", "svc");
        for (endpoints, healthy, status) in [(1, true, 200), (0, true, 503), (2, false, 503), (0, false, 503)] {
            let answer = answer(&service, endpoints, healthy);
            assert_eq!(answer.status().as_u16(), status, "{endpoints} {healthy}");
            assert_eq!(answer.headers()[WEIGHT], endpoints.to_string());
        }
    }

    #[test]
    fn the_body_is_upstreams_to_the_tab() {
        let body = answer(&ObjectName::new("ns", "svc"), 1, true).into_body().whole();
        let expected = "{
\t\"service\": {
\t\t\"namespace\": \"ns\",
\t\t\"name\": \"svc\"
\t},
\t\"localEndpoints\": 1,
\t\"serviceProxyHealthy\": true
}";
        assert_eq!(body, expected);
    }
}
