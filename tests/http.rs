//! The HTTP servers, asked over loopback in both families.

mod support;

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use async_io::Async;
use hyper::StatusCode;
use kube_proxy::kernel::listen::{Unspecified, tcp};
use kube_proxy::model::ObjectName;
use kube_proxy::observe::health::Health;
use kube_proxy::observe::http::{Body, CONNECTIONS, Handler, run, serve, text};
use kube_proxy::observe::metrics::Metrics;
use kube_proxy::observe::scrape::Build;
use kube_proxy::observe::service_health::ServiceHealth;
use kube_proxy::observe::time::clock;
use nix::sys::socket::{Shutdown, SockaddrIn, getsockname, shutdown};
use smol::future::{poll_once, yield_now};
use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::{LocalExecutor, block_on};
use support::netns::{isolated, run as run_shell};

/// What a server answered.
struct Answer {
    status: u16,
    headers: HashMap<String, String>,
    body: String,
}

async fn connect(address: SocketAddr) -> std::io::Result<Async<TcpStream>> {
    Async::<TcpStream>::connect(address).await
}

/// Sends one request on a connection of its own and reads until the server closes.
async fn get(address: SocketAddr, path: &str) -> std::io::Result<Answer> {
    let mut stream = connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a complete answer");
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers =
        lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_ascii_lowercase(), value.into()));
    Ok(Answer { status, headers: headers.collect(), body: body.into() })
}

fn echo() -> Handler {
    Rc::new(|request| text(StatusCode::OK, format!("{} {}", request.method, request.uri)))
}

/// Runs `client` beside whatever it spawns.
fn together<F: Future>(client: impl FnOnce(Rc<LocalExecutor<'static>>) -> F) -> F::Output {
    let executor = Rc::new(LocalExecutor::new());
    block_on(executor.run(client(Rc::clone(&executor))))
}

/// A port that nobody has at this moment, in a namespace where nobody else takes it.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn at(host: &str, port: u16) -> SocketAddr {
    SocketAddr::new(host.parse().unwrap(), port)
}

#[test]
fn an_unspecified_address_answers_in_both_families() {
    together(|executor| async move {
        let listener = tcp("0.0.0.0:0".parse().unwrap(), Unspecified::BothFamilies).unwrap();
        let port = listener.local_addr().unwrap().port();
        let _server = executor.spawn(serve(listener, echo()));
        for host in ["127.0.0.1", "::1"] {
            let answer = get(at(host, port), "/a?b=c").await.unwrap();
            assert_eq!((answer.status, answer.body.as_str()), (200, "GET /a?b=c"), "{host}");
        }
    });
}

#[test]
fn a_connection_serves_many_requests_and_a_body_does_no_harm() {
    together(|executor| async move {
        let listener = tcp("[::1]:0".parse().unwrap(), Unspecified::BothFamilies).unwrap();
        let address = listener.local_addr().unwrap();
        let _server = executor.spawn(serve(listener, echo()));
        let mut stream = connect(address).await.unwrap();
        stream.write_all(b"POST /one HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\n\r\nbody").await.unwrap();
        stream.write_all(b"GET /two HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).await.unwrap();
        assert!(all.contains("POST /one") && all.ends_with("GET /two"), "{all}");
    });
}

#[test]
fn who_has_asked_may_close_that_half() {
    together(|executor| async move {
        let listener = tcp("127.0.0.1:0".parse().unwrap(), Unspecified::BothFamilies).unwrap();
        let address = listener.local_addr().unwrap();
        let handler: Handler =
            Rc::new(|_| text(StatusCode::OK, Body::Pieces(Box::new((0..3).map(|number| number.to_string())))));
        let _server = executor.spawn(serve(listener, handler));
        let mut stream = connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        shutdown(stream.get_ref().as_raw_fd(), Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("\r\n\r\n012"), "{answer:?}");
    });
}

#[test]
fn a_long_answer_is_made_as_it_is_read() {
    const PIECES: usize = 1000;
    const PIECE: usize = 1 << 16;
    together(|executor| async move {
        let listener = tcp("127.0.0.1:0".parse().unwrap(), Unspecified::BothFamilies).unwrap();
        let address = listener.local_addr().unwrap();
        let made = Rc::new(Cell::new(0));
        let counted = Rc::clone(&made);
        let handler: Handler = Rc::new(move |request| {
            if request.uri.path() != "/long" {
                return text(StatusCode::OK, "short");
            }
            let made = Rc::clone(&counted);
            let pieces = (0..PIECES).map(move |number| {
                made.set(number + 1);
                "x".repeat(PIECE)
            });
            text(StatusCode::OK, Body::Pieces(Box::new(pieces)))
        });
        let _server = executor.spawn(serve(listener, handler));
        // Such a client gets no chunks.
        let mut slow = connect(address).await.unwrap();
        slow.write_all(b"GET /long HTTP/1.0\r\n\r\n").await.unwrap();
        for _ in 0..20 {
            assert_eq!(get(address, "/").await.unwrap().body, "short", "others are not kept waiting");
        }
        let begun = made.get();
        assert!(begun > 0 && begun < PIECES, "{begun} pieces wait for their reader");
        let mut answer = String::new();
        slow.read_to_string(&mut answer).await.unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").expect("a complete answer");
        assert_eq!((made.get(), body.len()), (PIECES, PIECES * PIECE));
    });
}

#[test]
fn clients_that_say_nothing_or_nonsense_disturb_nobody() {
    together(|executor| async move {
        let listener = tcp("127.0.0.1:0".parse().unwrap(), Unspecified::BothFamilies).unwrap();
        let address = listener.local_addr().unwrap();
        let _server = executor.spawn(serve(listener, echo()));
        let _silent = connect(address).await.unwrap();
        let mut nonsense = connect(address).await.unwrap();
        nonsense.write_all(b"\x16\x03\x01 this is not HTTP\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        nonsense.read_to_end(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
        drop(connect(address).await.unwrap());
        assert_eq!(get(address, "/").await.unwrap().status, 200);
    });
}

#[test]
fn a_crowd_of_silent_clients_is_served_one_after_another() {
    together(|executor| async move {
        let listener = tcp("127.0.0.1:0".parse().unwrap(), Unspecified::BothFamilies).unwrap();
        let address = listener.local_addr().unwrap();
        let _server = executor.spawn(serve(listener, echo()));
        let mut crowd = Vec::new();
        for _ in 0..CONNECTIONS {
            crowd.push(connect(address).await.unwrap());
        }
        let mut late = Box::pin(get(address, "/late"));
        // Another server answers meanwhile, so ours has had its turns.
        let listener = tcp("127.0.0.1:0".parse().unwrap(), Unspecified::BothFamilies).unwrap();
        let other = listener.local_addr().unwrap();
        let _other = executor.spawn(serve(listener, echo()));
        for _ in 0..20 {
            assert!(poll_once(&mut late).await.is_none(), "there is no room yet");
            assert_eq!(get(other, "/").await.unwrap().status, 200);
        }
        crowd.pop();
        assert_eq!(late.await.unwrap().body, "GET /late");
    });
}

#[test]
fn a_server_without_a_descriptor_left_keeps_its_clients_and_serves_more_later() {
    isolated("a_server_without_a_descriptor_left_keeps_its_clients_and_serves_more_later", || {
        together(|executor| async move {
            let listener = tcp("127.0.0.1:0".parse().unwrap(), Unspecified::BothFamilies).unwrap();
            let address = listener.local_addr().unwrap();
            let _server = executor.spawn(serve(listener, echo()));
            let mut kept = connect(address).await.unwrap();
            let mut buffer = [0; 512];
            let mut ask = async || {
                kept.write_all(b"GET /kept HTTP/1.1\r\nHost: t\r\n\r\n").await.unwrap();
                let length = kept.read(&mut buffer).await.unwrap();
                assert!(buffer[..length].ends_with(b"GET /kept"), "{}", String::from_utf8_lossy(&buffer[..length]));
            };
            ask().await;

            run_shell("prlimit --nofile=256: --pid $PPID");
            let mut ballast = Vec::new();
            while let Ok(file) = File::open("/dev/null") {
                ballast.push(file);
            }
            ballast.pop();
            // The client takes the last one; there is none for the server's side.
            let mut late = Box::pin(get(address, "/late"));
            for _ in 0..20 {
                assert!(poll_once(&mut late).await.is_none(), "it waits");
                ask().await;
            }
            ballast.clear();
            assert_eq!(late.await.unwrap().body, "GET /late");
        });
    });
}

#[test]
fn a_taken_address_is_an_error_or_is_waited_for() {
    isolated("a_taken_address_is_an_error_or_is_waited_for", || {
        together(|executor| async move {
            let taken = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = taken.local_addr().unwrap();
            let error = run("metrics", address, None, echo()).await.to_string();
            assert!(error.starts_with(&format!("cannot serve metrics on {address}: Address")), "{error}");

            let _server = executor.spawn(run("metrics", address, Some(Duration::from_millis(1)), echo()));
            for _ in 0..10 {
                yield_now().await;
            }
            drop(taken);
            let answer = loop {
                if let Ok(answer) = get(address, "/").await {
                    break answer;
                }
            };
            assert_eq!(answer.status, 200);
        });
    });
}

#[test]
fn the_health_server_answers_as_upstreams() {
    together(|executor| async move {
        let health = Health::new(clock(), Duration::from_secs(30));
        let metrics = Rc::new(Metrics::new(Build::default()));
        let listener = tcp("127.0.0.1:0".parse().unwrap(), Unspecified::BothFamilies).unwrap();
        let address = listener.local_addr().unwrap();
        let handler: Handler = {
            let (health, metrics) = (Rc::clone(&health), Rc::clone(&metrics));
            Rc::new(move |request| health.answer(&metrics, request))
        };
        let _server = executor.spawn(serve(listener, handler));
        assert_eq!(get(address, "/healthz").await.unwrap().status, 503, "the node was not seen yet");
        health.node_eligible(true);
        let answer = get(address, "/healthz").await.unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers["content-type"], "application/json");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(body["nodeEligible"], true);
        assert_eq!(get(address, "/livez").await.unwrap().status, 200);
        assert_eq!(get(address, "/metrics").await.unwrap().status, 404);
        let text: String = metrics.text().collect();
        for line in [
            "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
            "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
            "kubeproxy_proxy_livez_total{code=\"200\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    });
}

#[test]
fn health_check_ports_follow_their_services() {
    isolated("health_check_ports_follow_their_services", || {
        together(|executor| async move {
            let health = Health::new(clock(), Duration::from_secs(30));
            let every = |ip: &str| vec![ip.parse::<IpAddr>().unwrap()];
            let mut v4 = ServiceHealth::new(Rc::clone(&executor), every("0.0.0.0"), Rc::clone(&health));
            let mut v6 = ServiceHealth::new(Rc::clone(&executor), every("::"), Rc::clone(&health));
            let [one, two] = ["one", "two"].map(|name| ObjectName::new("ns", name));
            let [first, second] = [free_port(), free_port()];

            for family in [&mut v4, &mut v6] {
                family.set(&one, Some((first, 2)));
                assert!(family.open().await.is_empty(), "the families share a port");
            }
            v6.set(&one, Some((first, 0)));
            for (host, status, weight) in [("127.0.0.1", 200, "2"), ("::1", 503, "0")] {
                let answer = get(at(host, first), "/any/path").await.unwrap();
                assert_eq!(
                    (answer.status, answer.headers["x-load-balancing-endpoint-weight"].as_str()),
                    (status, weight)
                );
                assert!(answer.body.contains("\t\"localEndpoints\": "), "{}", answer.body);
            }

            // Two Services exchange their ports in one sync.
            v4.set(&two, Some((second, 1)));
            assert!(v4.open().await.is_empty());
            v4.set(&one, Some((second, 3)));
            v4.set(&two, Some((first, 4)));
            assert!(v4.open().await.is_empty());
            assert!(get(at("127.0.0.1", first), "/").await.unwrap().body.contains("\"two\""));
            assert!(get(at("127.0.0.1", second), "/").await.unwrap().body.contains("\"one\""));

            // Somebody else has the port: told once, and taken once it is free.
            v4.set(&two, None);
            assert!(v4.open().await.is_empty());
            assert!(get(at("127.0.0.1", first), "/").await.is_err(), "closed");
            let taken = TcpListener::bind(("127.0.0.1", first)).unwrap();
            v4.set(&two, Some((first, 1)));
            let failures = v4.open().await;
            assert_eq!(failures.len(), 1);
            assert_eq!((&failures[0].service, failures[0].port), (&two, first));
            assert!(v4.open().await.is_empty());
            drop(taken);
            assert!(v4.open().await.is_empty());
            assert_eq!(get(at("127.0.0.1", first), "/").await.unwrap().status, 200);
        });
    });
}

#[test]
fn a_health_check_port_that_ended_is_opened_again() {
    isolated("a_health_check_port_that_ended_is_opened_again", || {
        together(|executor| async move {
            let health = Health::new(clock(), Duration::from_secs(30));
            let mut servers = ServiceHealth::new(Rc::clone(&executor), vec!["127.0.0.1".parse().unwrap()], health);
            let port = free_port();
            servers.set(&ObjectName::new("ns", "one"), Some((port, 1)));
            assert!(servers.open().await.is_empty());
            assert_eq!(get(at("127.0.0.1", port), "/").await.unwrap().status, 200);

            end_listening(port);
            assert!(get(at("127.0.0.1", port), "/").await.is_err(), "closed");
            // The server has had its turn when another one answered.
            let listener = tcp("127.0.0.1:0".parse().unwrap(), Unspecified::OwnFamily).unwrap();
            let other = listener.local_addr().unwrap();
            let _other = executor.spawn(serve(listener, echo()));
            assert_eq!(get(other, "/").await.unwrap().status, 200);
            assert!(servers.open().await.is_empty());
            assert_eq!(get(at("127.0.0.1", port), "/").await.unwrap().status, 200);
        });
    });
}

/// Ends the listening on a port of this process, as `ss -K` does.
fn end_listening(port: u16) {
    for fd in fs::read_dir("/proc/self/fd").unwrap() {
        let fd: RawFd = fd.unwrap().file_name().to_str().unwrap().parse().unwrap();
        if getsockname::<SockaddrIn>(fd).is_ok_and(|address| address.port() == port) {
            shutdown(fd, Shutdown::Both).unwrap();
        }
    }
}

#[test]
fn where_one_address_fails_no_other_is_left_open() {
    isolated("where_one_address_fails_no_other_is_left_open", || {
        together(|executor| async move {
            let health = Health::new(clock(), Duration::from_secs(30));
            let addresses = ["127.0.0.1", "192.0.2.77"].map(|ip| ip.parse().unwrap());
            let mut servers = ServiceHealth::new(executor, addresses.into(), health);
            let port = free_port();
            servers.set(&ObjectName::new("ns", "one"), Some((port, 1)));
            assert_eq!(servers.open().await.len(), 1, "192.0.2.77 is not on this node");
            assert!(get(at("127.0.0.1", port), "/").await.is_err());
        });
    });
}
