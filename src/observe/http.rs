//! Small HTTP servers: one future each, which listens, answers, and tries again when it cannot listen.
//!
//! Answers are made from what is known; a handler must not wait. What is long is made piece by piece, as the client takes it.
//! Dropping the future closes everything.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::time::Duration;

use async_io::{Async, Timer};
use http_body_util::{Either, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use smol::LocalExecutor;
use smol::future::yield_now;
use smol::lock::Semaphore;
use smol::stream;
use smol_hyper::rt::{FuturesIo, SmolTimer};

use crate::kernel::listen::{self, Unspecified};

/// A request without its body, which nobody here reads.
pub type Request = hyper::http::request::Parts;
/// An answer.
pub type Answer = Response<Body>;
/// Parts of a text, each made when it is asked for.
pub type Pieces = Box<dyn Iterator<Item = String>>;
/// Makes the answer to a request.
pub type Handler = Rc<dyn Fn(&Request) -> Answer>;

/// What an answer says.
pub enum Body {
    /// Something short.
    Whole(String),
    /// Something long: others get their turn before each piece.
    Pieces(Pieces),
}

/// Connections that one server holds at a time; more wait until one ends.
pub const CONNECTIONS: usize = 128;
/// How long a client may take to send a request, and how long a kept connection may be silent.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait after a connection could not be accepted: what was short may be there again by then.
const RECOVERY: Duration = Duration::from_millis(100);

/// Serves `address` for ever; an unspecified one stands for all addresses of both families. When it cannot be bound, or
/// the server ends, this is logged and tried again after `retry`.
///
/// # Errors
/// Returns only when `retry` is `None` and the server failed: in one line, with the address.
pub async fn run(name: &str, address: SocketAddr, retry: Option<Duration>, handler: Handler) -> io::Error {
    loop {
        let failure = match listen::tcp(address, Unspecified::BothFamilies) {
            Ok(listener) => serve(listener, Rc::clone(&handler)).await,
            Err(error) => error,
        };
        let Some(delay) = retry else {
            return io::Error::new(failure.kind(), format!("cannot serve {name} on {address}: {failure}"));
        };
        ::log::error!("cannot serve {name} on {address}, trying again in {} s: {failure}", delay.as_secs());
        Timer::after(delay).await;
    }
}

/// Serves a listener for as long as it listens. When a connection cannot be accepted, for want of descriptors for one,
/// the others go on and it waits.
pub async fn serve(listener: TcpListener, handler: Handler) -> io::Error {
    let listener = match Async::new(listener) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    let slots = Semaphore::new(CONNECTIONS);
    let connections = LocalExecutor::new();
    let accepting = async {
        let mut told = None;
        loop {
            let slot = slots.acquire().await;
            match listener.accept().await {
                Ok((stream, _)) => {
                    told = None;
                    let handler = Rc::clone(&handler);
                    let connection = async move {
                        answer(stream, handler).await;
                        drop(slot);
                    };
                    connections.spawn(connection).detach();
                }
                // The client went before its turn.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                // Somebody ended the listening (`ss -K`): nothing more will come.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return error,
                Err(error) => {
                    if told.replace(error.kind()) != Some(error.kind()) {
                        ::log::warn!("cannot accept a connection, trying again: {error}");
                    }
                    Timer::after(RECOVERY).await;
                }
            }
        }
    };
    connections.run(accepting).await
}

/// Answers all requests of one connection. What goes wrong with it is the client's affair.
async fn answer(stream: Async<TcpStream>, handler: Handler) {
    let service = service_fn(|request: hyper::Request<Incoming>| {
        std::future::ready(Ok::<_, Infallible>(handler(&request.into_parts().0).map(Body::into_stream)))
    });
    let _ = http1::Builder::new()
        .timer(SmolTimer::new())
        .header_read_timeout(PATIENCE)
        // Who has asked may close that half.
        .half_close(true)
        .serve_connection(FuturesIo::new(stream), service)
        .await;
}

/// An answer of plain text.
pub fn text(status: StatusCode, body: impl Into<Body>) -> Answer {
    typed(status, "text/plain; charset=utf-8", body)
}

/// An answer in JSON.
pub fn json(status: StatusCode, body: impl Into<Body>) -> Answer {
    typed(status, "application/json", body)
}

/// An answer of some media type, which the client must not second-guess.
pub fn typed(status: StatusCode, media: &'static str, body: impl Into<Body>) -> Answer {
    let mut answer = Answer::new(body.into());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    answer.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// The answer for a path that is not served.
pub fn not_found() -> Answer {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

// === impl Body ===

impl Body {
    fn into_stream(self) -> impl hyper::body::Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> {
        match self {
            Self::Whole(text) => Either::Left(Full::new(Bytes::from(text))),
            Self::Pieces(pieces) => Either::Right(StreamBody::new(stream::unfold(pieces, async |mut pieces| {
                yield_now().await;
                let piece = Bytes::from(pieces.next()?);
                Some((Ok::<_, Infallible>(Frame::data(piece)), pieces))
            }))),
        }
    }

    /// All of it.
    #[cfg(test)]
    pub fn whole(self) -> String {
        match self {
            Self::Whole(text) => text,
            Self::Pieces(pieces) => pieces.collect(),
        }
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::Whole(text)
    }
}

impl From<&str> for Body {
    fn from(text: &str) -> Self {
        Self::Whole(text.to_owned())
    }
}
