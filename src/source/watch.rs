//! Follows one kind of objects at the API server: the list first, then every change, for ever.
//!
//! Prefers the streaming list, where the list is the beginning of the watch; a server that refuses it is asked for pages.
//! A watch that ends, or breaks off, is resumed where it ended. When the server refuses that place, for whatever reason, the list is
//! read again, between `ListStart` and `ListEnd`, and whoever keeps the objects drops those that it does not name.
//! Must never give up, and never tell of a loss that the server did not tell.

use std::rc::Rc;
use std::time::{Duration, Instant};

use smol::channel::Sender;

use super::decode::{BadObject, Decoder, Line};
use super::format::Format;
use super::frames::Frames;
use super::http::{Client, Stream};
use super::refusal::{Error, Refusal};
use super::requests::Objects;
use super::trouble::{Backoff, Troubles};
use crate::model::{Event, Kind};

/// A watch that ends sooner did not end properly: the next one waits.
const SHORTEST: Duration = Duration::from_secs(1);

/// Follows one kind.
pub struct Watch {
    client: Rc<Client>,
    kind: Kind,
    objects: Objects,
    decoder: Decoder,
    events: Sender<Event>,
    troubles: Rc<Troubles>,
    backoff: Backoff,
    /// Where to resume; empty when the list must be read.
    version: String,
    /// The place to resume was refused and no watch has worked since.
    displaced: bool,
}

/// Why a turn ended.
enum End {
    /// It did not work.
    Failed(Error),
    /// The server does not let the watch resume at its place.
    Displaced(Refusal),
    /// Nobody wants to know any more.
    Deaf,
}

/// Whether a plain list is worth a try after this: not where it would be refused as well, or is one request too many.
fn no_streaming(refusal: &Refusal) -> bool {
    !matches!(refusal.code, 401 | 403 | 404 | 429 | 503 | 504)
}

/// How a watch ends that the server refuses to resume. A place that it does not know (410), that lies ahead of it
/// (504, after its storage was restored) or that it cannot read (400) never becomes right by asking again; who we are,
/// and that nobody has time for us, has nothing to do with the place.
fn refused(refusal: Refusal) -> End {
    match refusal.code {
        401 | 403 | 429 | 502 | 503 => End::Failed(Error::Refused(refusal)),
        _ => End::Displaced(refusal),
    }
}

// === impl Watch ===

impl Watch {
    /// A watch that has not begun.
    pub fn new(client: Rc<Client>, kind: Kind, node_name: &str, events: Sender<Event>, troubles: Rc<Troubles>) -> Self {
        let backoff = Backoff::new(client.limits().retry);
        let objects = Objects::new(kind, node_name);
        let decoder = Decoder::new(node_name);
        Self { client, kind, objects, decoder, events, troubles, backoff, version: String::new(), displaced: false }
    }

    /// Follows until nobody receives the events any more.
    pub async fn run(mut self) {
        loop {
            let ended = if self.version.is_empty() { self.list_and_follow().await } else { self.follow().await };
            let (what, asked) = match ended {
                Err(End::Deaf) => return,
                // However quiet it was: it worked.
                Ok(lasted) if lasted >= SHORTEST => {
                    self.works();
                    continue;
                }
                Ok(_) => (None, None),
                Err(End::Failed(error)) => {
                    let asked = match &error {
                        Error::Refused(refusal) => {
                            self.backoff.somebody_answers();
                            refusal.retry_after
                        }
                        Error::Unreachable(_) => {
                            self.backoff.nobody_answers();
                            None
                        }
                    };
                    (Some(error.to_string()), asked)
                }
                Err(End::Displaced(refusal)) => {
                    log::info!(
                        "watching {:?} from {} is not possible any more ({}): reading the list again",
                        self.kind,
                        self.version,
                        refusal.message
                    );
                    self.version.clear();
                    // Not a failure yet; only when it happens time and again is it to be slowed down.
                    if !std::mem::replace(&mut self.displaced, true) {
                        self.backoff.reset();
                    }
                    (None, refusal.retry_after)
                }
            };
            if let Some(what) = what {
                self.troubles.begins(self.kind, &what);
            }
            smol::Timer::after(self.backoff.after_failure(asked)).await;
        }
    }

    async fn list_and_follow(&mut self) -> Result<Duration, End> {
        if !self.client.limits().streaming {
            self.list().await?;
            return self.follow().await;
        }
        let ended = match self.open(true).await {
            Ok((stream, lasts)) => self.read(stream, lasts, true).await,
            Err(error) => Err(End::Failed(error)),
        };
        match ended {
            // Before the list was complete: a real server refuses within the stream when its storage is too old.
            Err(End::Failed(Error::Refused(refusal))) if self.version.is_empty() && no_streaming(&refusal) => {
                log::debug!("no streaming list of {:?} ({}): asking for pages", self.kind, refusal.message);
                self.list().await?;
                self.follow().await
            }
            ended => ended,
        }
    }

    async fn follow(&mut self) -> Result<Duration, End> {
        match self.open(false).await {
            Ok((stream, lasts)) => self.read(stream, lasts, false).await,
            Err(Error::Refused(refusal)) => Err(refused(refusal)),
            Err(error) => Err(End::Failed(error)),
        }
    }

    async fn open(&self, initial: bool) -> Result<(Stream, Duration), Error> {
        let limits = self.client.limits();
        let lasts = limits.watch.mul_f64(1.0 + fastrand::f64());
        let seconds = u32::try_from(lasts.as_secs()).unwrap_or(u32::MAX).max(1);
        let path = match initial {
            true => self.objects.streaming_list(seconds),
            false => self.objects.watch(&self.version, seconds),
        };
        let stream = self.client.stream(&path, self.accept()).await?;
        Ok((stream, lasts + limits.grace))
    }

    /// The format to ask for.
    fn accept(&self) -> Format {
        if self.client.limits().protobuf { self.objects.format() } else { Format::Json }
    }

    /// Reads messages until the stream ends, and says for how long it did, the initial list apart. Resource versions
    /// count only once that list is complete: within it they come in no order.
    async fn read(&mut self, mut stream: Stream, lasts: Duration, mut listing: bool) -> Result<Duration, End> {
        let mut began = Instant::now();
        if listing {
            self.tell(Event::ListStart(self.kind)).await?;
        } else {
            self.troubles.ends(self.kind);
        }
        let mut frames = Frames::new(stream.format);
        loop {
            let silence = if listing { self.client.limits().answer } else { lasts };
            let asked = Instant::now();
            let chunk = match stream.chunk(silence).await {
                // Balancers cut what is quiet for half a minute. Nothing was missed, unless nothing was heard for so long
                // that it broke off unnoticed.
                Err(error)
                    if !listing && began.elapsed() >= self.client.limits().lasting && asked.elapsed() < silence =>
                {
                    log::debug!("a watch of {:?} broke off: {error}", self.kind);
                    break;
                }
                ended => ended.map_err(End::Failed)?,
            };
            let Some(chunk) = chunk else { break };
            frames.feed(chunk).map_err(|_| End::Failed(stream.fail(format_args!("it sent an endless message"))))?;
            while let Some(line) = frames.next() {
                let version = match self.decoder.line(self.kind, stream.format, &line) {
                    Ok(Line::Object(event, version)) => {
                        self.tell(event).await?;
                        version
                    }
                    Ok(Line::Bookmark { version, initial_end: true }) if listing => {
                        listing = false;
                        began = Instant::now();
                        self.version = version;
                        self.listed().await?;
                        continue;
                    }
                    Ok(Line::Bookmark { version, .. }) => version,
                    Ok(Line::Failure(refusal)) if listing => return Err(End::Failed(Error::Refused(refusal))),
                    Ok(Line::Failure(refusal)) => return Err(refused(refusal)),
                    Err(bad) => {
                        self.complain(&bad);
                        bad.version
                    }
                };
                if !listing {
                    if !version.is_empty() {
                        self.version = version;
                    }
                    self.works();
                }
            }
        }
        if listing {
            return Err(End::Failed(stream.fail(format_args!("it broke off in the middle of a list"))));
        }
        Ok(began.elapsed())
    }

    async fn list(&mut self) -> Result<(), End> {
        self.tell(Event::ListStart(self.kind)).await?;
        let client = Rc::clone(&self.client);
        let mut session = client.session();
        let mut limit = Some(client.limits().page);
        let mut next = String::new();
        loop {
            let path = self.objects.page(limit, &next);
            let answer = match session.get(&path, self.accept()).await {
                Ok(answer) => answer,
                // The history that the pages come from is forgotten, perhaps each time: all at once, then.
                Err(Error::Refused(refusal)) if refusal.code == 410 && !next.is_empty() && limit.is_some() => {
                    log::debug!("no next page of {:?} ({}): asking for all at once", self.kind, refusal.message);
                    (limit, next) = (None, String::new());
                    self.tell(Event::ListStart(self.kind)).await?;
                    continue;
                }
                Err(error) => return Err(End::Failed(error)),
            };
            let page = self.decoder.page(self.kind, answer.format, &answer.body).map_err(|error| {
                let (server, kind) = (self.client.server(), self.kind);
                End::Failed(Error::Unreachable(format!(
                    "API server {server}: its list of {kind:?} cannot be read: {error}"
                )))
            })?;
            drop(answer);
            for object in page.objects {
                match object {
                    Ok(event) => self.tell(event).await?,
                    Err(bad) => self.complain(&bad),
                }
            }
            next = page.next;
            if next.is_empty() {
                self.version = page.version;
                return self.listed().await;
            }
        }
    }

    async fn listed(&mut self) -> Result<(), End> {
        self.tell(Event::ListEnd(self.kind)).await?;
        self.troubles.ends(self.kind);
        // A server that lists but refuses to go on where its lists end must not be asked for them in a tight loop.
        if !self.displaced {
            self.backoff.reset();
        }
        Ok(())
    }

    fn works(&mut self) {
        self.displaced = false;
        self.backoff.reset();
        self.troubles.ends(self.kind);
    }

    async fn tell(&self, event: Event) -> Result<(), End> {
        self.events.send(event).await.map_err(|_| End::Deaf)
    }

    fn complain(&self, bad: &BadObject) {
        log::error!("{:?} {bad}", self.kind);
    }
}
