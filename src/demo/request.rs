//! Requests to a Service, and the tally of who answered.
//!
//! A request asks "who are you?" by connecting (TCP) or with one datagram (UDP); the answer is the pod's name. Must not
//! know what was expected.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::str::FromStr;
use std::time::Duration;

/// Longer than a lost packet takes to be sent again: that would be an answer, if a late one.
const PATIENCE: Duration = Duration::from_secs(2);
const LONGEST_NAME: u64 = 64;

/// How to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A connection per request.
    Tcp,
    /// A socket, and so a flow, per request.
    Udp,
}

/// Who answered how often. As text it is one line, which can be read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Answers by pod.
    pub answers: BTreeMap<String, u32>,
    /// Requests that were refused at once.
    pub refused: u32,
    /// Requests that ended in any other way.
    pub failed: u32,
    /// What went wrong last, for the reader.
    pub trouble: String,
}

// === impl Protocol ===

impl Protocol {
    /// Asks once.
    fn ask(self, to: SocketAddr) -> io::Result<String> {
        let mut answer = String::new();
        match self {
            Self::Tcp => {
                let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.take(LONGEST_NAME).read_to_string(&mut answer)?;
            }
            Self::Udp => {
                let any = if to.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
                let socket = UdpSocket::bind((any, 0))?;
                socket.connect(to)?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.send(b"who are you?")?;
                let mut datagram = [0; LONGEST_NAME as usize];
                let length = socket.recv(&mut datagram)?;
                answer.push_str(&String::from_utf8_lossy(&datagram[..length]));
            }
        }
        if answer.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(answer) }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            other => Err(format!("{other:?} is neither tcp nor udp")),
        }
    }
}

// === impl Tally ===

impl Tally {
    /// Asks once more.
    pub fn ask(&mut self, protocol: Protocol, to: SocketAddr) {
        match protocol.ask(to) {
            Ok(pod) => *self.answers.entry(pod).or_default() += 1,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => self.refused += 1,
            Err(error) => {
                self.failed += 1;
                self.trouble = format!("{to}: {error}");
            }
        }
    }

    /// Answers of one pod.
    pub fn of(&self, pod: &str) -> u32 {
        self.answers.get(pod).copied().unwrap_or(0)
    }

    /// All requests.
    pub fn requests(&self) -> u32 {
        self.answers.values().sum::<u32>() + self.refused + self.failed
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (pod, count) in &self.answers {
            write!(f, "{pod}={count} ")?;
        }
        write!(f, "refused={} failed={} {}", self.refused, self.failed, self.trouble)
    }
}

impl FromStr for Tally {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut tally = Self::default();
        let mut rest = text;
        while let Some((word, after)) = rest.split_once(' ') {
            let pair = word.split_once('=').and_then(|(name, count)| Some((name, count.parse().ok()?)));
            let (name, count) = pair.ok_or_else(|| format!("no tally: {text:?}"))?;
            match name {
                "refused" => tally.refused = count,
                "failed" => {
                    tally.failed = count;
                    tally.trouble = after.to_owned();
                    return Ok(tally);
                }
                pod => drop(tally.answers.insert(pod.to_owned(), count)),
            }
            rest = after;
        }
        Err(format!("no tally: {text:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_survives_the_pipe() {
        let mut tally = Tally { refused: 3, ..Tally::default() };
        tally.answers.extend([("web-1".to_owned(), 7), ("web-2".to_owned(), 5)]);
        assert_eq!(tally.to_string().parse(), Ok(tally.clone()));
        tally.failed = 1;
        tally.trouble = "10.96.0.80:80: timed out = bad".into();
        assert_eq!(tally.to_string().parse(), Ok(tally.clone()));
        assert_eq!(tally.requests(), 16);
        for wrong in ["", "web-1=1", "web-1=x failed=0 ", "refused=1 "] {
            assert!(wrong.parse::<Tally>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn nobody_there_is_refused_not_failed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let mut tally = Tally::default();
        tally.ask(Protocol::Tcp, address);
        tally.ask(Protocol::Udp, address);
        assert_eq!((tally.refused, tally.failed), (2, 0), "{tally}");
    }
}
