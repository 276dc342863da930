//! A small Kubernetes API server with real TLS, and with the faults that real ones have. It keeps the promises a watch
//! relies on: resource versions, bookmarks, streaming lists, pages, 410 once history is forgotten. Services and
//! EndpointSlices come as protobuf to who prefers it.

mod wire;

use std::collections::BTreeMap;
use std::io::{self, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use futures_rustls::pki_types::pem::PemObject;
use futures_rustls::pki_types::{CertificateDer, PrivateKeyDer};
use futures_rustls::rustls::crypto::ring;
use futures_rustls::rustls::server::WebPkiClientVerifier;
use futures_rustls::rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use super::certificates::{Authority, Identity};
use super::protobuf::{self, PROTOBUF};
use wire::{Request, Wire, read_request, send};

/// The bearer token that is accepted at first.
pub const TOKEN: &str = "first-token";

/// Resource, API version and kind of what is served.
const RESOURCES: [(&str, &str, &str); 4] = [
    ("/api/v1/services", "v1", "Service"),
    ("/api/v1/nodes", "v1", "Node"),
    ("/apis/discovery.k8s.io/v1/endpointslices", "discovery.k8s.io/v1", "EndpointSlice"),
    ("/apis/networking.k8s.io/v1/servicecidrs", "networking.k8s.io/v1", "ServiceCIDR"),
];

/// A running server.
pub struct ApiServer {
    pub authority: Authority,
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    tls: Option<Arc<ServerConfig>>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    running: bool,
    token: String,
    version: u64,
    /// By kind and `namespace/name`.
    objects: BTreeMap<(String, String), Value>,
    /// Version, kind, type of change, object.
    history: Vec<(u64, String, &'static str, Value)>,
    /// Changes up to here are forgotten.
    forgotten: u64,
    /// The status with which a watch from before that is refused: 410 within the stream, another in the head.
    displacing: u16,
    streaming: bool,
    /// Streaming lists are taken on, and then fail.
    streaming_fails: bool,
    /// Lists cannot be continued: the history that their pages need is always gone.
    pages_expire: bool,
    /// Kinds whose streaming lists do not end.
    endless: &'static [&'static str],
    /// Raised to end all watches that run.
    generation: u64,
    /// Watches of this generation break off.
    broken: Option<u64>,
    /// Watches up to this generation stay open, but nothing comes from them.
    mute: Option<u64>,
    /// The next line of each watch is cut in half, and the connection with it.
    cut: bool,
    /// Protobuf is offered.
    protobuf: bool,
    /// Bodies come in pieces of this many bytes.
    piece: usize,
    /// How many requests are to be refused, with which status and which `Retry-After`.
    refusals: (usize, u16, Option<u32>),
    /// A kind that nobody may see.
    forbidden: Option<&'static str>,
    requests: Vec<Request>,
    events: Vec<Value>,
    connections: Vec<TcpStream>,
}

// === impl ApiServer ===

impl ApiServer {
    /// Serves TLS on a free port of `host`, an IP address.
    pub fn start(host: &str) -> Self {
        let authority = Authority::new("test authority");
        let identity = authority.sign("apiserver", &[host, "localhost", "kubernetes.example"]);
        let tls = server_config(&authority, &identity);
        Self::bind(host, authority, Some(tls))
    }

    /// Serves without TLS.
    pub fn start_plain() -> Self {
        Self::bind("127.0.0.1", Authority::new("unused"), None)
    }

    fn bind(host: &str, authority: Authority, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind((host, 0)).expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let state = State {
            running: true,
            token: TOKEN.into(),
            version: 100,
            objects: BTreeMap::new(),
            history: Vec::new(),
            forgotten: 0,
            displacing: 410,
            streaming: true,
            streaming_fails: false,
            pages_expire: false,
            endless: &[],
            generation: 1,
            broken: None,
            mute: None,
            cut: false,
            protobuf: true,
            piece: usize::MAX,
            refusals: (0, 0, None),
            forbidden: None,
            requests: Vec::new(),
            events: Vec::new(),
            connections: Vec::new(),
        };
        let server = Self {
            authority,
            address,
            shared: Arc::new(Shared { tls, state: Mutex::new(state), changed: Condvar::new() }),
        };
        server.accept(listener);
        server
    }

    pub fn url(&self) -> String {
        format!("http{}://{}", if self.shared.tls.is_some() { "s" } else { "" }, self.address)
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Creates or replaces an object.
    pub fn put(&self, mut object: Value) {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let key = key(&object);
        let change = if state.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        state.objects.insert(key.clone(), object.clone());
        state.history.push((version, key.0, change, object));
        self.shared.changed.notify_all();
    }

    /// Removes an object, named by `namespace/name`.
    pub fn delete(&self, kind: &str, name: &str) {
        let mut state = self.state();
        let mut object = state.objects.remove(&(kind.into(), name.into())).expect("the object exists");
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        state.history.push((version, kind.into(), "DELETED", object));
        self.shared.changed.notify_all();
    }

    /// Sends this as it is, as the object of a change, to all who watch the kind.
    pub fn send_raw(&self, kind: &str, change: &'static str, object: Value) {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        state.history.push((version, kind.into(), change, object));
        self.shared.changed.notify_all();
    }

    /// Tells all watches how far they are.
    pub fn bookmark(&self) {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        for (_, group, kind) in RESOURCES {
            let object = bookmark(group, kind, version, false);
            state.history.push((version, kind.into(), "BOOKMARK", object));
        }
        self.shared.changed.notify_all();
    }

    /// The newest resource version.
    pub fn version(&self) -> u64 {
        self.state().version
    }

    /// Streaming lists begin, but all that comes is an error: so it is where the storage behind the server is too old
    /// for them.
    pub fn fail_streaming(&self) {
        self.state().streaming_fails = true;
    }

    /// Pages but the first are refused with 410: who asks for them always comes too late.
    pub fn expire_pages(&self) {
        self.state().pages_expire = true;
    }

    /// Streaming lists of these kinds name all objects, but do not say that these are all.
    pub fn hold_back_ends(&self, kinds: &'static [&'static str]) {
        self.state().endless = kinds;
        self.shared.changed.notify_all();
    }

    /// Whether streaming lists are offered.
    pub fn streaming(&self, offered: bool) {
        self.state().streaming = offered;
    }

    /// From now on there is nothing but JSON.
    pub fn speak_json(&self) {
        self.state().protobuf = false;
    }

    /// Forgets all history: a watch from an older version is answered with 410.
    pub fn compact(&self) {
        let mut state = self.state();
        // One change later, so that even who saw everything is behind.
        state.version += 1;
        state.forgotten = state.version;
        state.history.clear();
    }

    /// Forgets all history, as a restored datastore does: a watch from an older version is refused with this status, for
    /// ever.
    pub fn displace(&self, status: u16) {
        self.state().displacing = status;
        self.compact();
    }

    /// Ends all watches, as a server does after a while.
    pub fn end_watches(&self) {
        self.state().generation += 1;
        self.shared.changed.notify_all();
    }

    /// Breaks all watches off, as a balancer does with what is quiet.
    pub fn break_watches(&self) {
        let mut state = self.state();
        state.broken = Some(state.generation);
        state.generation += 1;
        self.shared.changed.notify_all();
    }

    /// All connections that there are stay open, but nothing comes from them any more.
    pub fn fall_silent(&self) {
        let mut state = self.state();
        state.mute = Some(state.generation);
        state.generation += 1;
        self.shared.changed.notify_all();
    }

    /// The next change of each watch is cut in the middle, and its connection reset.
    pub fn cut_next_line(&self, cut: bool) {
        self.state().cut = cut;
    }

    /// Bodies come in pieces of this size.
    pub fn dribble(&self, piece: usize) {
        self.state().piece = piece;
    }

    /// Refuses the next requests.
    pub fn refuse(&self, requests: usize, status: u16, retry_after: Option<u32>) {
        self.state().refusals = (requests, status, retry_after);
    }

    /// From now on nobody may see objects of this kind.
    pub fn forbid(&self, kind: &'static str) {
        self.state().forbidden = Some(kind);
    }

    /// Refusals that nobody got yet.
    pub fn refusals_left(&self) -> usize {
        self.state().refusals.0
    }

    /// From now on only this token is accepted.
    pub fn change_token(&self, token: &str) {
        self.state().token = token.into();
    }

    /// Stops listening and breaks all connections.
    pub fn stop(&self) {
        let mut state = self.state();
        state.running = false;
        state.generation += 1;
        for connection in state.connections.drain(..) {
            let _already_closed = connection.shutdown(Shutdown::Both);
        }
        drop(state);
        self.shared.changed.notify_all();
        // Wakes the listener up, which then closes. It may be gone already.
        let _closed = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        while TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).is_ok() {
            thread::yield_now();
        }
    }

    /// Listens again, at the same address.
    pub fn restart(&self) {
        let listener = TcpListener::bind(self.address).expect("the port is still free");
        self.state().running = true;
        self.accept(listener);
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state().requests.clone()
    }

    /// Events that were created.
    pub fn events(&self) -> Vec<Value> {
        self.state().events.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    fn accept(&self, listener: TcpListener) {
        let shared = Arc::clone(&self.shared);
        thread::spawn(move || {
            for connection in listener.incoming() {
                let Ok(connection) = connection else { return };
                let mut state = shared.state();
                if !state.running {
                    return;
                }
                let closer = connection.try_clone().expect("descriptors are left");
                state.connections.push(connection.try_clone().expect("descriptors are left"));
                drop(state);
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    // A connection that breaks is what many tests are about.
                    let _may_break = serve(&shared, connection);
                    let _may_be_closed = closer.shutdown(Shutdown::Both);
                });
            }
        });
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if self.state().running {
            self.stop();
        }
    }
}

// === impl Shared ===

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the state")
    }
}

fn server_config(authority: &Authority, identity: &Identity) -> Arc<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).expect("PEM")).expect("an authority");
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .expect("there is an authority");
    let chain = vec![CertificateDer::from_pem_slice(identity.certificate.as_bytes()).expect("PEM")];
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).expect("PEM");
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the default suites")
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .expect("the key goes with the certificate");
    Arc::new(config)
}

fn key(object: &Value) -> (String, String) {
    let text = |field: &str| object["metadata"][field].as_str().map(str::to_owned);
    let name = text("name").expect("objects have names");
    let kind = object["kind"].as_str().expect("objects have kinds").to_owned();
    (kind, text("namespace").map_or(name.clone(), |namespace| format!("{namespace}/{name}")))
}

fn bookmark(group: &str, kind: &str, version: u64, end: bool) -> Value {
    let mut metadata = json!({"resourceVersion": version.to_string(), "creationTimestamp": null});
    if end {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    json!({"kind": kind, "apiVersion": group, "metadata": metadata, "spec": {}, "status": {"loadBalancer": {}}})
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason,
        "message": message})
}

fn serve(shared: &Shared, connection: TcpStream) -> io::Result<()> {
    let peer = connection.peer_addr()?;
    connection.set_nodelay(true)?;
    let wire = match &shared.tls {
        None => Wire::Plain(connection),
        Some(config) => {
            let session = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
            let mut stream = StreamOwned::new(session, connection);
            while stream.conn.is_handshaking() {
                stream.conn.complete_io(&mut stream.sock)?;
            }
            Wire::Tls(Box::new(stream))
        }
    };
    let mut wire = BufReader::new(wire);
    while let Some(mut request) = read_request(&mut wire, peer)? {
        answer(shared, &mut request, &mut wire)?;
    }
    Ok(())
}

/// By token or certificate; without TLS nobody may tell a token, for everybody could read it.
fn is_authorized(shared: &Shared, state: &State, request: &Request) -> bool {
    let token = request.headers.get("authorization");
    match shared.tls {
        Some(_) => request.certified || token == Some(&format!("Bearer {}", state.token)),
        None => token.is_none(),
    }
}

fn answer(shared: &Shared, (request, body): &mut (Request, Vec<u8>), wire: &mut BufReader<Wire>) -> io::Result<()> {
    let target = request.path.clone();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query: BTreeMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
    let resource = RESOURCES.iter().find(|(of, ..)| *of == path);
    let mut state = shared.state();
    let refused = if state.refusals.0 > 0 {
        state.refusals.0 -= 1;
        let (_, code, retry_after) = state.refusals;
        Some((status(code, "Injected", "refused for the test"), retry_after))
    } else if !is_authorized(shared, &state, request) {
        Some((status(401, "Unauthorized", "Unauthorized"), None))
    } else if resource.is_some_and(|(.., kind)| state.forbidden == Some(kind)) {
        Some((status(403, "Forbidden", "forbidden for the test"), None))
    } else if query.contains_key("sendInitialEvents") && !state.streaming {
        Some((status(422, "Invalid", "sendInitialEvents is forbidden"), None))
    } else if query.contains_key("continue") && state.pages_expire {
        Some((status(410, "Expired", "the provided continue parameter is too old"), None))
    } else {
        None
    };
    let watching = query.get("watch") == Some(&"true");
    let from = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(u64::MAX);
    let streamed = query.contains_key("sendInitialEvents") || state.displacing == 410;
    let refused = match refused {
        None if watching && !streamed && from < state.forgotten => {
            Some((status(state.displacing, "Displaced", "the place is refused for the test"), None))
        }
        refused => refused,
    };
    let accepted = request.headers.get("accept").is_some_and(|accepted| accepted.starts_with(PROTOBUF));
    let binary = state.protobuf && accepted;
    let reply = match (refused, resource) {
        (Some(refused), _) => Some(refused),
        (None, Some(&(_, group, kind))) if watching => {
            request.answer = 200;
            state.requests.push(request.clone());
            drop(state);
            return watch(shared, &query, binary, group, kind, wire);
        }
        (None, Some(&(_, group, kind))) => Some((list(&mut state, &query, group, kind), None)),
        (None, None) if request.method == "POST" && path.ends_with("/events") => {
            state.events.push(serde_json::from_slice(body)?);
            Some((json!({"code": 201}), None))
        }
        (None, None) if path == "/version" => Some((json!({"gitVersion": "v1.36.0"}), None)),
        (None, None) => Some((status(404, "NotFound", "no such resource"), None)),
    };
    let (value, retry_after) = reply.expect("every case but a watch has a reply");
    let code = value["code"].as_u64().unwrap_or(200);
    request.answer = u16::try_from(code).expect("a status has three digits");
    state.requests.push(request.clone());
    let piece = state.piece;
    drop(state);
    let list_of = resource.map(|(.., kind)| *kind).filter(|_| code == 200);
    let (media_type, body) = match list_of {
        _ if !binary => ("application/json", value.to_string().into_bytes()),
        Some(kind) => (PROTOBUF, protobuf::list(kind, &value)),
        None => (PROTOBUF, protobuf::object(&value)),
    };
    let retry = retry_after.map_or(String::new(), |seconds| format!("Retry-After: {seconds}\r\n"));
    let head = format!(
        "HTTP/1.1 {code} Status\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n{retry}\
         Date: Tue, 02 Jan 2024 03:04:05 GMT\r\n\r\n",
        body.len()
    );
    wire.get_mut().write_all(head.as_bytes())?;
    for part in body.chunks(piece) {
        wire.get_mut().write_all(part)?;
        wire.get_mut().flush()?;
    }
    Ok(())
}

/// A page; the place where the next one begins is its number.
fn list(state: &mut State, query: &BTreeMap<&str, &str>, group: &str, kind: &str) -> Value {
    let start: usize = query.get("continue").and_then(|start| start.parse().ok()).unwrap_or(0);
    let limit = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
    let all: Vec<&Value> = selected(state, query, kind).collect();
    let items: Vec<&Value> = all.iter().skip(start).take(limit).copied().collect();
    let mut metadata = json!({"resourceVersion": state.version.to_string()});
    if start + items.len() < all.len() {
        metadata["continue"] = (start + items.len()).to_string().into();
    }
    json!({"kind": format!("{kind}List"), "apiVersion": group, "metadata": metadata, "items": items})
}

fn selected<'s>(state: &'s State, query: &BTreeMap<&str, &str>, kind: &'s str) -> impl Iterator<Item = &'s Value> {
    let name = query.get("fieldSelector").and_then(|text| text.strip_prefix("metadata.name%3D")).map(str::to_owned);
    let of_kind = state.objects.iter().filter(move |((of, _), _)| of == kind).map(|(_, object)| object);
    of_kind.filter(move |object| name.as_ref().is_none_or(|name| object["metadata"]["name"] == **name))
}

fn watch(
    shared: &Shared,
    query: &BTreeMap<&str, &str>,
    binary: bool,
    group: &str,
    kind: &str,
    wire: &mut BufReader<Wire>,
) -> io::Result<()> {
    let wire = wire.get_mut();
    let media_type = if binary { format!("{PROTOBUF};stream=watch") } else { "application/json".into() };
    write!(wire, "HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    let message = |change: &str, object: &Value| match binary {
        true => protobuf::change(change, object),
        // The type comes first, as real servers write it.
        false => format!("{{\"type\":\"{change}\",\"object\":{object}}}\n").into_bytes(),
    };
    let state = shared.state();
    let (generation, piece) = (state.generation, state.piece);
    let mut position = query["resourceVersion"].parse().unwrap_or(0);
    if query.contains_key("sendInitialEvents") && state.streaming_fails {
        drop(state);
        send(wire, &message("ERROR", &status(500, "InternalError", "a storage feature is disabled")), piece)?;
        wire.write_all(b"0\r\n\r\n")?;
        return wire.flush();
    }
    if query.contains_key("sendInitialEvents") {
        let initial: Vec<Value> = selected(&state, query, kind).cloned().collect();
        position = state.version;
        drop(state);
        for object in initial {
            send(wire, &message("ADDED", &object), piece)?;
        }
        let held_back = |state: &mut State| state.endless.contains(&kind) && state.generation == generation;
        drop(shared.changed.wait_while(shared.state(), held_back).expect("no panic"));
        send(wire, &message("BOOKMARK", &bookmark(group, kind, position, true)), piece)?;
    } else {
        drop(state);
    }
    wire.flush()?;
    loop {
        let state = shared.state();
        let idle = |state: &mut State| {
            state.generation == generation && state.version == position && state.forgotten <= position
        };
        let (state, _) = shared.changed.wait_timeout_while(state, Duration::from_millis(500), idle).expect("no panic");
        if state.mute == Some(generation) {
            drop(state);
            // Until the client hangs up, or the test ends.
            return io::copy(wire, &mut io::sink()).map(drop);
        }
        if state.broken == Some(generation) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if state.generation != generation {
            drop(state);
            wire.write_all(b"0\r\n\r\n")?;
            return wire.flush();
        }
        if position < state.forgotten && state.displacing != 410 {
            drop(state);
            wire.write_all(b"0\r\n\r\n")?;
            return wire.flush();
        }
        if position < state.forgotten {
            drop(state);
            send(wire, &message("ERROR", &status(410, "Expired", "too old resource version")), piece)?;
            wire.write_all(b"0\r\n\r\n")?;
            return wire.flush();
        }
        let news: Vec<_> = state.history.iter().filter(|(at, of, ..)| *at > position && of == kind).cloned().collect();
        position = state.version;
        let cut = state.cut;
        drop(state);
        for (_, _, change, object) in news {
            if cut {
                let message = message(change, &object);
                write!(wire, "{:x}\r\n", message.len())?;
                wire.write_all(&message[..message.len() / 2])?;
                wire.flush()?;
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            send(wire, &message(change, &object), piece)?;
        }
    }
}
