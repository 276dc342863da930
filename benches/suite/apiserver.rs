//! The API server of the benchmarks: TLS, paged lists, streaming lists, watches, and changes at any rate, each stamped
//! just before it is written. Watches speak protobuf to who prefers it, lists JSON.
//!
//! Must never be what is measured: JSON is written straight from the cluster into the connection, and protobuf, which
//! takes longer to make, is kept.

use std::collections::HashMap;
use std::io::{self, BufReader, BufWriter, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Instant;

use futures_rustls::pki_types::pem::PemObject;
use futures_rustls::pki_types::{CertificateDer, PrivateKeyDer};
use futures_rustls::rustls::crypto::ring;
use futures_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;

use crate::certificates::Authority;
use crate::cluster::{Cluster, node, service_cidr};
use crate::protobuf::{self, PROTOBUF};
use crate::wire::{Wire, read_request};

/// What is collected before it is encrypted: several full TLS records.
const BUFFER: usize = 64 * 1024;

/// A running server.
pub struct ApiServer {
    /// Who signed its certificate, as PEM.
    pub authority: String,
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    tls: Arc<ServerConfig>,
    state: Mutex<State>,
}

struct State {
    cluster: Cluster,
    /// What a streaming list in protobuf consists of, but for the bookmark: by resource, each object.
    frames: HashMap<Resource, Vec<Arc<[u8]>>>,
    /// Those who watch EndpointSlices.
    watchers: Vec<Sender<Change>>,
    /// When each change was written, by its number.
    sent: HashMap<u32, Instant>,
}

/// A line for those who watch.
#[derive(Clone)]
struct Change {
    mark: u32,
    line: Arc<str>,
    frame: Arc<[u8]>,
}

/// What a request is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Resource {
    Services,
    Slices,
    Nodes,
    ServiceCidrs,
}

// === impl ApiServer ===

impl ApiServer {
    /// Serves this cluster on a free port of loopback.
    pub fn start(cluster: Cluster) -> io::Result<Self> {
        let authority = Authority::new("benchmark");
        let identity = authority.sign("apiserver", &["127.0.0.1"]);
        let chain = vec![CertificateDer::from_pem_slice(identity.certificate.as_bytes()).map_err(io::Error::other)?];
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).map_err(io::Error::other)?;
        let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(io::Error::other)?;
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let frames = |resource: Resource| {
            let all = (0..resource.count(&cluster)).map(|index| resource.frame("ADDED", &cluster, index));
            (resource, all.collect())
        };
        let frames = HashMap::from([Resource::Services, Resource::Slices].map(frames));
        let state = State { cluster, frames, watchers: Vec::new(), sent: HashMap::new() };
        let shared = Arc::new(Shared { tls: Arc::new(tls), state: Mutex::new(state) });
        let server = Self { authority: authority.pem().to_owned(), address, shared: Arc::clone(&shared) };
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                // Ends with the connection, however that ends.
                thread::spawn(move || serve(&shared, connection));
            }
        });
        Ok(server)
    }

    /// Its address as a URL.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Changes the endpoints of one Service and tells all who watch. The number of the change is an endpoint's address.
    pub fn change(&self, service: usize, mark: u32, how: impl FnOnce(&mut Cluster)) {
        let mut state = self.shared.state();
        how(&mut state.cluster);
        let line = Resource::Slices.line("MODIFIED", &state.cluster, service);
        let frame = Resource::Slices.frame("MODIFIED", &state.cluster, service);
        let listed = Resource::Slices.frame("ADDED", &state.cluster, service);
        state.frames.entry(Resource::Slices).or_default()[service] = listed;
        let change = Change { mark, line: line.into(), frame };
        state.watchers.retain(|watcher| watcher.send(change.clone()).is_ok());
    }

    /// When a change was sent; asking forgets it.
    pub fn take_sent(&self, mark: u32) -> Option<Instant> {
        self.shared.state().sent.remove(&mark)
    }
}

// === impl Shared ===

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the state")
    }
}

fn serve(shared: &Shared, connection: TcpStream) -> io::Result<()> {
    let peer = connection.peer_addr()?;
    connection.set_nodelay(true)?;
    let session = ServerConnection::new(Arc::clone(&shared.tls)).map_err(io::Error::other)?;
    let mut wire = BufReader::new(Wire::Tls(Box::new(StreamOwned::new(session, connection))));
    while let Some((request, _)) = read_request(&mut wire, peer)? {
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let Some(resource) = Resource::at(path) else {
            wire.get_mut().write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}")?;
            wire.get_mut().flush()?;
            continue;
        };
        if query.contains("watch=true") {
            let accepted = request.headers.get("accept").is_some_and(|accepted| accepted.starts_with(PROTOBUF));
            let binary = accepted && matches!(resource, Resource::Services | Resource::Slices);
            return watch(shared, resource, binary, query.contains("sendInitialEvents"), wire.get_mut());
        }
        let page = list(shared, resource, query);
        write!(
            wire.get_mut(),
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            page.len()
        )?;
        wire.get_mut().write_all(page.as_bytes())?;
        wire.get_mut().flush()?;
    }
    Ok(())
}

/// One page; the place where the next one begins is its number.
fn list(shared: &Shared, resource: Resource, query: &str) -> String {
    let parameter = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.parse::<usize>().ok());
    let state = shared.state();
    let all = resource.count(&state.cluster);
    let start = parameter("continue=").unwrap_or(0).min(all);
    let end = parameter("limit=").filter(|&limit| limit > 0).map_or(all, |limit| all.min(start + limit));
    let more = if end < all { format!(r#","continue":"{end}""#) } else { String::new() };
    let mut page = format!(
        r#"{{"kind":"List","apiVersion":"v1","metadata":{{"resourceVersion":"{}"{more}}},"items":["#,
        state.cluster.version()
    );
    for index in start..end {
        if index > start {
            page.push(',');
        }
        resource.write(&state.cluster, index, &mut page);
    }
    page.push_str("]}");
    page
}

/// All objects first, if asked for, then the changes.
fn watch(shared: &Shared, resource: Resource, binary: bool, initial: bool, wire: &mut Wire) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(BUFFER, wire);
    let media_type = if binary { PROTOBUF } else { "application/json" };
    write!(out, "HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    let (sender, changes) = channel();
    let (version, count) = {
        let mut state = shared.state();
        if resource == Resource::Slices {
            state.watchers.push(sender.clone());
        }
        (state.cluster.version(), resource.count(&state.cluster))
    };
    for index in 0..if initial { count } else { 0 } {
        if binary {
            let frame = Arc::clone(&shared.state().frames[&resource][index]);
            chunk(&mut out, &frame)?;
        } else {
            let line = resource.line("ADDED", &shared.state().cluster, index);
            chunk(&mut out, line.as_bytes())?;
        }
    }
    if initial {
        let (api, kind) = resource.type_meta();
        let metadata =
            json!({"resourceVersion": version.to_string(), "annotations": {"k8s.io/initial-events-end": "true"}});
        let object = json!({"kind": kind, "apiVersion": api, "metadata": metadata});
        match binary {
            true => chunk(&mut out, &protobuf::change("BOOKMARK", &object))?,
            false => chunk(&mut out, format!("{{\"type\":\"BOOKMARK\",\"object\":{object}}}\n").as_bytes())?,
        }
    }
    out.flush()?;
    // `sender` stays: a watch that nothing comes from must not end.
    follow(shared, &changes, binary, &mut out)
}

fn follow(shared: &Shared, changes: &Receiver<Change>, binary: bool, out: &mut impl Write) -> io::Result<()> {
    while let Ok(change) = changes.recv() {
        shared.state().sent.insert(change.mark, Instant::now());
        chunk(out, if binary { &change.frame } else { change.line.as_bytes() })?;
        out.flush()?;
    }
    Ok(())
}

/// One message as one chunk, as API servers send them.
fn chunk(out: &mut impl Write, message: &[u8]) -> io::Result<()> {
    write!(out, "{:x}\r\n", message.len())?;
    out.write_all(message)?;
    out.write_all(b"\r\n")
}

// === impl Resource ===

impl Resource {
    fn at(path: &str) -> Option<Self> {
        match path {
            "/api/v1/services" => Some(Self::Services),
            "/apis/discovery.k8s.io/v1/endpointslices" => Some(Self::Slices),
            "/api/v1/nodes" => Some(Self::Nodes),
            "/apis/networking.k8s.io/v1/servicecidrs" => Some(Self::ServiceCidrs),
            _ => None,
        }
    }

    fn type_meta(self) -> (&'static str, &'static str) {
        match self {
            Self::Services => ("v1", "Service"),
            Self::Slices => ("discovery.k8s.io/v1", "EndpointSlice"),
            Self::Nodes => ("v1", "Node"),
            Self::ServiceCidrs => ("networking.k8s.io/v1", "ServiceCIDR"),
        }
    }

    fn count(self, cluster: &Cluster) -> usize {
        match self {
            Self::Services | Self::Slices => cluster.services(),
            Self::Nodes | Self::ServiceCidrs => 1,
        }
    }

    /// A change of an object as a line of JSON.
    fn line(self, change: &str, cluster: &Cluster, index: usize) -> String {
        let mut line = String::with_capacity(4096);
        line.push_str(r#"{"type":""#);
        line.push_str(change);
        line.push_str(r#"","object":"#);
        self.write(cluster, index, &mut line);
        line.push_str("}\n");
        line
    }

    /// The same as protobuf, with its length before it.
    fn frame(self, change: &str, cluster: &Cluster, index: usize) -> Arc<[u8]> {
        let mut text = String::new();
        self.write(cluster, index, &mut text);
        let object: serde_json::Value = serde_json::from_str(&text).expect("the cluster writes JSON");
        protobuf::change(change, &object).into()
    }

    fn write(self, cluster: &Cluster, index: usize, into: &mut String) {
        match self {
            Self::Services => cluster.write_service(index, into),
            Self::Slices => cluster.write_slice(index, into),
            Self::Nodes => into.push_str(&node()),
            Self::ServiceCidrs => into.push_str(service_cidr()),
        }
    }
}
