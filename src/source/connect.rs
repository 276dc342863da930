//! One connection to the API server: resolve, TCP, TLS, HTTP/1.1. Every step has a time limit.
//!
//! A connection has no task of its own: whoever waits for its answer drives it. Must never block the loop; a host
//! name, unlike an address, is resolved on a helper thread that ends by itself.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_rustls::TlsConnector;
use futures_rustls::client::TlsStream;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::{Request, Response};
use nix::sys::socket::{setsockopt, sockopt};
use smol::Async;
use smol_hyper::rt::FuturesIo;

use super::auth::Access;
use super::http::Limits;
use super::refusal::Error;
use super::tls;

/// Bytes read from the socket at a time: two TLS records.
const READ_BUFFER: usize = 32 * 1024;

/// An HTTP connection that can carry one request after another.
pub struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    driver: Driver,
}

/// What moves the bytes; `None` once the connection is closed.
type Driver = Option<Pin<Box<http1::Connection<Transport, Full<Bytes>>>>>;

enum Transport {
    Plain(FuturesIo<Async<TcpStream>>),
    Tls(Box<FuturesIo<TlsStream<Async<TcpStream>>>>),
}

/// Waits for `work`, but no longer than `limit`; then `None`.
pub async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    smol::future::or(async { Some(work.await) }, async {
        smol::Timer::after(limit).await;
        None
    })
    .await
}

// === impl Connection ===

impl Connection {
    /// Connects to the server, to each of its addresses until one answers.
    pub async fn open(access: &Access, limits: &Limits) -> Result<Self, Error> {
        let server = access.server();
        let fail = |what: &dyn std::fmt::Display| Error::Unreachable(format!("API server {server}: {what}"));
        let seconds = limits.connect.as_secs_f32();
        let addresses = match within(limits.connect, resolve(&server.host, server.port)).await {
            None => return Err(fail(&format_args!("its name was not resolved within {seconds} s"))),
            Some(found) => found.map_err(|error| fail(&format_args!("its name cannot be resolved: {error}")))?,
        };
        let mut last = fail(&"its name has no address");
        for address in addresses {
            match within(limits.connect, Self::open_at(address, access, limits)).await {
                Some(Ok(connection)) => return Ok(connection),
                Some(Err(error)) => last = fail(&error),
                None => last = fail(&format_args!("no connection within {seconds} s")),
            }
        }
        Err(last)
    }

    /// Sends a request and waits for the head of the answer.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, hyper::Error> {
        let answer = pin!(async {
            self.sender.ready().await?;
            self.sender.send_request(request).await
        });
        drive(&mut self.driver, answer).await
    }

    /// Waits for the next piece of the answer's body; `None` at its end.
    pub async fn chunk(&mut self, body: &mut Incoming) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            let frame = drive(&mut self.driver, pin!(body.frame())).await?;
            match frame.map(|frame| frame.into_data()) {
                Ok(Ok(data)) => return Some(Ok(data)),
                Ok(Err(_trailers)) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Whether another request may be sent once `body` was read to its end.
    pub fn reusable(&self, body: &Incoming) -> bool {
        self.driver.is_some() && body.is_end_stream() && !self.sender.is_closed()
    }

    async fn open_at(address: SocketAddr, access: &Access, limits: &Limits) -> io::Result<Self> {
        let socket = Async::<TcpStream>::connect(address).await?;
        notice_dead_peer(&socket, limits)?;
        let transport = if access.server().tls {
            let config = access.tls().map_err(io::Error::other)?;
            let name = tls::server_name(access.certificate_name()).map_err(io::Error::other)?;
            let stream = TlsConnector::from(config).connect(name, socket).await.map_err(explain_tls)?;
            Transport::Tls(Box::new(FuturesIo::new(stream)))
        } else {
            Transport::Plain(FuturesIo::new(socket))
        };
        let mut builder = http1::Builder::new();
        builder.read_buf_exact_size(Some(READ_BUFFER));
        let (sender, driver) = builder.handshake(transport).await.map_err(io::Error::other)?;
        Ok(Self { sender, driver: Some(Box::pin(driver)) })
    }
}

/// Polls the connection along with what waits for it.
async fn drive<F: Future>(driver: &mut Driver, mut work: Pin<&mut F>) -> F::Output {
    std::future::poll_fn(|context| {
        if let Some(connection) = driver
            && connection.as_mut().poll(context).is_ready()
        {
            // How it ended is told to whoever waits for an answer.
            *driver = None;
        }
        work.as_mut().poll(context)
    })
    .await
}

async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let host = host.to_owned();
    smol::unblock(move || Ok((host.as_str(), port).to_socket_addrs()?.collect())).await
}

/// Lets the kernel find out that the other end is gone, even when there is nothing to send.
fn notice_dead_peer(socket: &Async<TcpStream>, limits: &Limits) -> io::Result<()> {
    let seconds = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX).max(1);
    let unacknowledged = u32::try_from(limits.keep_alive.as_millis()).unwrap_or(u32::MAX);
    setsockopt(socket, sockopt::TcpNoDelay, &true)?;
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &seconds(limits.keep_alive / 2))?;
    setsockopt(socket, sockopt::TcpKeepInterval, &seconds(limits.keep_alive / 8))?;
    setsockopt(socket, sockopt::TcpKeepCount, &4)?;
    setsockopt(socket, sockopt::TcpUserTimeout, &unacknowledged)?;
    Ok(())
}

/// Says what a certificate error means for whoever wrote the kubeconfig.
fn explain_tls(error: io::Error) -> io::Error {
    use futures_rustls::rustls::{CertificateError, Error};
    let hint = match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(certificate)) => match certificate {
            CertificateError::UnknownIssuer => {
                "is not signed by the given certificate-authority: give the one that signed it"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "is not for this name or address: use one that it names, or set tls-server-name"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "has expired: renew it, or set this node's clock"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "is not valid yet: set this node's clock"
            }
            _ => "cannot be accepted",
        },
        _ => return error,
    };
    io::Error::new(error.kind(), format!("its certificate {hint} ({error})"))
}

// === impl Transport ===

impl Read for Transport {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl Write for Transport {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
