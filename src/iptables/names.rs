//! What our chains are called: the names that tools and admins know, the same as every kube-proxy in iptables mode.
//!
//! A swap from another kube-proxy and back finds its own chains only as long as these names stay (contract 9.2).
//! Must not know what is in a chain.

use std::fmt;

use ring::digest::{Context, SHA256};

use crate::plan::{Endpoint, PortName};

use super::address::Socket;

/// Bytes of the hash in a name: 16 digits of base 32.
const HASH: usize = 10;
const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// The five kinds of chains that belong to one Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Balances over the endpoints of policy Cluster.
    Cluster,
    /// Balances over the endpoints of policy Local.
    Local,
    /// Traffic from outside, by NodePort, external IP or load balancer IP.
    External,
    /// Sources that may use the load balancer IPs.
    Firewall,
    /// One endpoint.
    Endpoint,
}

/// The name of a chain of a Service port, in 11 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainName {
    kind: Kind,
    hash: [u8; HASH],
}

/// The names of one Service port's chains but its endpoints'; hashes once for all of them.
#[derive(Clone)]
pub struct PortChains {
    port: Context,
    hash: [u8; HASH],
}

// === impl Kind ===

impl Kind {
    const ALL: [Self; 5] = [Self::Cluster, Self::Local, Self::External, Self::Firewall, Self::Endpoint];

    const fn prefix(self) -> &'static str {
        match self {
            Self::Cluster => "KUBE-SVC-",
            Self::Local => "KUBE-SVL-",
            Self::External => "KUBE-EXT-",
            Self::Firewall => "KUBE-FW-",
            Self::Endpoint => "KUBE-SEP-",
        }
    }
}

// === impl ChainName ===

impl ChainName {
    /// Reads a name; `None` when it cannot be one of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, digits) = Kind::ALL.into_iter().find_map(|kind| Some((kind, text.strip_prefix(kind.prefix())?)))?;
        if digits.len() * 5 != HASH * 8 {
            return None;
        }
        let mut bits: u128 = 0;
        for digit in digits.as_bytes() {
            bits = bits << 5 | DIGITS.iter().position(|d| d == digit)? as u128;
        }
        let mut hash = [0; HASH];
        hash.copy_from_slice(&bits.to_be_bytes()[16 - HASH..]);
        Some(Self { kind, hash })
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0; 16];
        bytes[16 - HASH..].copy_from_slice(&self.hash);
        let bits = u128::from_be_bytes(bytes);
        let mut digits = [0; HASH * 8 / 5];
        for (i, digit) in digits.iter_mut().rev().enumerate() {
            *digit = DIGITS[(bits >> (5 * i) & 31) as usize];
        }
        f.write_str(self.kind.prefix())?;
        f.write_str(std::str::from_utf8(&digits).expect("the digits are ASCII"))
    }
}

impl fmt::Debug for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl PortChains ===

impl PortChains {
    /// The chains of a Service port.
    pub fn new(name: &PortName) -> Self {
        let mut port = Context::new(&SHA256);
        port.update(name.to_string().as_bytes());
        port.update(name.protocol.as_str().as_bytes());
        let hash = first_bytes(port.clone());
        Self { port, hash }
    }

    /// The chain of a kind; not for endpoints, which have one each.
    pub fn of(&self, kind: Kind) -> ChainName {
        ChainName { kind, hash: self.hash }
    }

    /// The chain of an endpoint.
    pub fn endpoint(&self, endpoint: &Endpoint) -> ChainName {
        let mut context = self.port.clone();
        context.update(Socket(endpoint).to_string().as_bytes());
        ChainName { kind: Kind::Endpoint, hash: first_bytes(context) }
    }
}

fn first_bytes(context: Context) -> [u8; HASH] {
    let mut hash = [0; HASH];
    hash.copy_from_slice(&context.finish().as_ref()[..HASH]);
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectName, Place, Protocol};

    fn port(service: &str, port: &str, protocol: Protocol) -> PortChains {
        PortChains::new(&PortName { service: ObjectName::new("ns1", service), port: port.into(), protocol })
    }

    #[test]
    fn names_are_those_that_everybody_computes() {
        let named = port("svc1", "p80", Protocol::Tcp);
        assert_eq!(named.of(Kind::Cluster).to_string(), "KUBE-SVC-XPGD46QRK7WJZT7O");
        assert_eq!(port("svc3", "", Protocol::Udp).of(Kind::Cluster).to_string(), "KUBE-SVC-MQBK6QNPJP6HU7QS");
        let endpoint =
            Endpoint { address: "10.180.0.1".parse().unwrap(), port: 8080, place: Place::Elsewhere, weight: 1 };
        assert_eq!(named.endpoint(&endpoint).to_string(), "KUBE-SEP-CPWPCALSNDDLLDLJ");
    }

    #[test]
    fn a_name_reads_back_as_itself_and_others_are_not_ours() {
        for kind in Kind::ALL {
            let name = port("svc1", "p80", Protocol::Tcp).of(kind);
            assert_eq!(ChainName::parse(&name.to_string()), Some(name));
        }
        for other in [
            "KUBE-SERVICES",
            "KUBE-SVC-",
            "KUBE-SVC-XPGD46QRK7WJZT7",
            "KUBE-SVC-XPGD46QRK7WJZT71",
            "kube-svc-XPGD46QRK7WJZT7O",
        ] {
            assert_eq!(ChainName::parse(other), None, "{other}");
        }
    }
}
