//! Requests to the API server: plain ones, a series of them over one connection, and streams with a connection each.
//!
//! Knows status codes and time limits, nothing of what is asked or answered. Compression is not asked for: what is
//! big comes by watch, and is read as it comes.

use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, DATE, HOST, HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response};

use super::auth::Access;
use super::connect::{Connection, within};
use super::format::Format;
use super::refusal::{Chain, Error, Refusal};
use super::requests::Objects;
use crate::model::Kind;

/// Most that an error page may say.
const LARGEST_ERROR: usize = 64 * 1024;
/// Largest answer to a plain request.
const LARGEST_BODY: usize = 256 * 1024 * 1024;

/// How to ask, and how long to wait for what.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Lists may come as the beginning of a watch (feature gate WatchListClient).
    pub streaming: bool,
    /// Objects may come as protobuf, where the server has it (`clientConnection.contentType`).
    pub protobuf: bool,
    /// For a connection, TLS included, to each address of the server.
    pub connect: Duration,
    /// For the head of an answer, and between two pieces of the body of a plain one.
    pub answer: Duration,
    /// For the kernel to find out that the other end is gone.
    pub keep_alive: Duration,
    /// How long a watch lasts before the server ends it; each takes a random time between this and twice this.
    pub watch: Duration,
    /// For a sign of life beyond the end of a watch.
    pub grace: Duration,
    /// A watch that breaks off after so long did its work: it is resumed at once, as one that ends.
    pub lasting: Duration,
    /// Between the first attempts after a failure, and at most.
    pub retry: (Duration, Duration),
    /// Objects on one page of a list.
    pub page: u32,
}

/// What happened to one request, for whoever counts.
#[derive(Debug)]
pub struct Exchange<'a> {
    /// `GET` or `POST`.
    pub verb: &'a str,
    /// `host:port` of the server.
    pub host: &'a str,
    /// How far it got.
    pub outcome: Outcome,
}

/// How far a request got.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// The answer begins, or will not come.
    Answered {
        /// Status code; `None` when there was no answer.
        code: Option<u16>,
        /// From the request to the head of the answer.
        duration: Duration,
    },
    /// The answer is complete. Watches never are.
    Read {
        /// Bytes of the request's body.
        sent: usize,
        /// Bytes of the answer's body.
        received: usize,
    },
}

/// Is told of every request.
pub type Observer = Rc<dyn Fn(&Exchange<'_>)>;

/// Talks to one API server.
pub struct Client {
    access: Access,
    limits: Limits,
    user_agent: HeaderValue,
    authority: String,
    observer: Option<Observer>,
}

/// Plain requests, one after another, over one connection as long as the server keeps it open.
pub(super) struct Session<'c> {
    client: &'c Client,
    kept: Option<Connection>,
}

/// What is asked of the server.
struct Ask<'a> {
    method: Method,
    path: &'a str,
    /// JSON, or nothing.
    body: Bytes,
    accept: Format,
}

/// An answer that is complete.
pub(super) struct Answer {
    /// How it is written.
    pub format: Format,
    /// What it says.
    pub body: Vec<u8>,
    headers: HeaderMap,
}

/// An answer that keeps coming.
pub struct Stream {
    /// How it is written.
    pub format: Format,
    server: String,
    connection: Connection,
    body: Incoming,
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            streaming: true,
            protobuf: true,
            connect: Duration::from_secs(10),
            // Longer than kube-apiserver's own limit of 60 s for a request: a slow one may answer late, and says itself
            // when it will not.
            answer: Duration::from_secs(75),
            keep_alive: Duration::from_secs(40),
            watch: Duration::from_secs(300),
            grace: Duration::from_secs(15),
            lasting: Duration::from_secs(15),
            retry: (Duration::from_millis(200), Duration::from_secs(30)),
            page: 500,
        }
    }
}

// === impl Client ===

impl Client {
    /// A client that has not connected yet.
    pub fn new(access: Access, limits: Limits, observer: Option<Observer>) -> Self {
        let authority = access.server().authority();
        Self { access, limits, user_agent: user_agent(), authority, observer }
    }

    /// What it was made with.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The server's address, for messages.
    pub fn server(&self) -> String {
        self.access.server().to_string()
    }

    /// Reads JSON that is small enough to be held in memory at once.
    ///
    /// # Errors
    /// When there is no answer, or one that is not 2xx.
    pub async fn get(&self, path: &str) -> Result<Vec<u8>, Error> {
        self.session().get(path, Format::Json).await.map(|answer| answer.body)
    }

    /// The server's clock, to the second.
    ///
    /// # Errors
    /// When there is no answer, or one without a date.
    pub async fn server_time(&self) -> Result<SystemTime, Error> {
        let answer = self.session().get("/version", Format::Json).await?;
        let date = answer.headers.get(DATE).and_then(|date| date.to_str().ok());
        date.and_then(|date| httpdate::parse_http_date(date).ok())
            .ok_or_else(|| self.unreachable(&"its answer has no date"))
    }

    /// Whether there is anything of this kind that a proxy on this node would read.
    ///
    /// # Errors
    /// When there is no answer, one that is not 2xx (403: this account may not list them), or one that is no list.
    pub async fn has_any(&self, kind: Kind, node_name: &str) -> Result<bool, Error> {
        let body = self.get(&Objects::new(kind, node_name).page(Some(1), "")).await?;
        let list: serde_json::Value = serde_json::from_slice(&body).map_err(|error| self.unreachable(&error))?;
        Ok(list["items"].as_array().is_some_and(|items| !items.is_empty()))
    }

    /// Opens a stream on a connection of its own.
    ///
    /// # Errors
    /// When there is no answer, or one that is not 2xx.
    pub(super) async fn stream(&self, path: &str, accept: Format) -> Result<Stream, Error> {
        let mut connection = self.connect().await?;
        let response = self.send(&mut connection, &Ask::read(path, accept)).await?;
        if response.status().is_success() {
            let format = Format::of(response.headers());
            return Ok(Stream { format, server: self.server(), connection, body: response.into_body() });
        }
        Err(self.refusal(connection, response).await)
    }

    /// Begins a series of plain requests.
    pub(super) fn session(&self) -> Session<'_> {
        Session { client: self, kept: None }
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let began = Instant::now();
        let connection = Connection::open(&self.access, &self.limits).await;
        if connection.is_err() {
            self.observe("GET", Outcome::Answered { code: None, duration: began.elapsed() });
        }
        connection
    }

    async fn send(&self, connection: &mut Connection, ask: &Ask<'_>) -> Result<Response<Incoming>, Error> {
        let request = self.request(ask)?;
        let began = Instant::now();
        let answer = within(self.limits.answer, connection.send(request)).await;
        let code = answer.as_ref().and_then(|answer| answer.as_ref().ok()).map(|answer| answer.status().as_u16());
        self.observe(ask.method.as_str(), Outcome::Answered { code, duration: began.elapsed() });
        match answer {
            Some(Ok(response)) => Ok(response),
            Some(Err(error)) => Err(self.broken(&error)),
            None => Err(self.unreachable(&format_args!("no answer within {} s", self.limits.answer.as_secs_f32()))),
        }
    }

    fn request(&self, ask: &Ask<'_>) -> Result<Request<Full<Bytes>>, Error> {
        let mut builder = Request::builder()
            .method(&ask.method)
            .uri(format!("{}{}", self.access.server().prefix, ask.path))
            .header(HOST, &self.authority)
            .header(USER_AGENT, &self.user_agent)
            .header(ACCEPT, ask.accept.accept());
        if !ask.body.is_empty() {
            builder = builder.header(CONTENT_TYPE, "application/json");
        }
        if let Some(value) = self.access.authorization().map_err(|error| Error::Unreachable(error.to_string()))? {
            builder = builder.header(AUTHORIZATION, value);
        }
        builder.body(Full::new(ask.body.clone())).map_err(|error| self.unreachable(&error))
    }

    async fn refusal(&self, mut connection: Connection, response: Response<Incoming>) -> Error {
        let (head, mut body) = response.into_parts();
        let text = self.read_all(&mut connection, &mut body, LARGEST_ERROR).await.unwrap_or_default();
        Error::Refused(Refusal::new(head.status, &head.headers, &text))
    }

    async fn read_all(&self, connection: &mut Connection, body: &mut Incoming, most: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        loop {
            match within(self.limits.answer, connection.chunk(body)).await {
                Some(None) => return Ok(bytes),
                Some(Some(Ok(chunk))) if bytes.len() + chunk.len() <= most => bytes.extend_from_slice(&chunk),
                Some(Some(Ok(_))) => {
                    return Err(self.unreachable(&format_args!("its answer has more than {most} bytes")));
                }
                Some(Some(Err(error))) => return Err(self.broken(&error)),
                None => {
                    let seconds = self.limits.answer.as_secs_f32();
                    return Err(self.unreachable(&format_args!("its answer stood still for {seconds} s")));
                }
            }
        }
    }

    fn observe(&self, verb: &str, outcome: Outcome) {
        if let Some(observer) = &self.observer {
            observer(&Exchange { verb, host: &self.authority, outcome });
        }
    }

    fn broken(&self, error: &hyper::Error) -> Error {
        self.unreachable(&Chain(error))
    }

    fn unreachable(&self, what: &dyn fmt::Display) -> Error {
        Error::Unreachable(format!("API server {}: {what}", self.access.server()))
    }
}

/// `<binary>/<version> (<os>/<arch>) kubernetes/<commit>`, in Go's words for architectures (contract 15.2).
fn user_agent() -> HeaderValue {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let commit = option_env!("KUBE_PROXY_COMMIT").unwrap_or("unknown");
    let text = format!("kube-proxy/v{} (linux/{architecture}) kubernetes/{commit}", env!("CARGO_PKG_VERSION"));
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("kube-proxy"))
}

// === impl Ask ===

impl<'a> Ask<'a> {
    fn read(path: &'a str, accept: Format) -> Self {
        Self { method: Method::GET, path, body: Bytes::new(), accept }
    }
}

// === impl Session ===

impl Session<'_> {
    /// Reads something small enough to be held in memory at once.
    pub async fn get(&mut self, path: &str, accept: Format) -> Result<Answer, Error> {
        self.answer(&Ask::read(path, accept)).await
    }

    /// Creates an object from JSON.
    pub async fn post(&mut self, path: &str, json: Vec<u8>) -> Result<(), Error> {
        let ask = Ask { method: Method::POST, path, body: json.into(), accept: Format::Json };
        self.answer(&ask).await.map(|_| ())
    }

    async fn answer(&mut self, ask: &Ask<'_>) -> Result<Answer, Error> {
        let client = self.client;
        let (mut connection, response) = self.send(ask).await?;
        if !response.status().is_success() {
            return Err(client.refusal(connection, response).await);
        }
        let (head, mut incoming) = response.into_parts();
        let body = client.read_all(&mut connection, &mut incoming, LARGEST_BODY).await?;
        client.observe(ask.method.as_str(), Outcome::Read { sent: ask.body.len(), received: body.len() });
        self.kept = connection.reusable(&incoming).then_some(connection);
        Ok(Answer { format: Format::of(&head.headers), body, headers: head.headers })
    }

    /// Uses the kept connection if it still works: the server may have closed it in the meantime.
    async fn send(&mut self, ask: &Ask<'_>) -> Result<(Connection, Response<Incoming>), Error> {
        if let Some(mut connection) = self.kept.take()
            && let Ok(response) = self.client.send(&mut connection, ask).await
        {
            return Ok((connection, response));
        }
        let mut connection = self.client.connect().await?;
        let response = self.client.send(&mut connection, ask).await?;
        Ok((connection, response))
    }
}

// === impl Stream ===

impl Stream {
    /// The next bytes; `None` when the server ended the stream properly.
    ///
    /// # Errors
    /// When the connection broke, or nothing came for as long as `silence`.
    pub async fn chunk(&mut self, silence: Duration) -> Result<Option<Bytes>, Error> {
        match within(silence, self.connection.chunk(&mut self.body)).await {
            Some(None) => Ok(None),
            Some(Some(Ok(chunk))) => Ok(Some(chunk)),
            Some(Some(Err(error))) => Err(self.fail(format_args!("the connection broke: {}", Chain(&error)))),
            None => Err(self.fail(format_args!("the connection is dead: not a byte for {} s", silence.as_secs_f32()))),
        }
    }

    /// An error that names the server.
    pub fn fail(&self, what: fmt::Arguments<'_>) -> Error {
        Error::Unreachable(format!("API server {}: {what}", self.server))
    }
}
