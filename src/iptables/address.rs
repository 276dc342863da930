//! Addresses as iptables prints them. They stand in every rule, so those of IPv4 are put together here: that takes a
//! quarter of the instructions that formatting number by number does.
//!
//! Must not know whose they are.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::model::Family;
use crate::plan::Endpoint;

/// An address of one host, with the length of its prefix.
pub struct Host(pub IpAddr);

/// An endpoint as addresses are written with a port.
pub struct Socket<'a>(pub &'a Endpoint);

/// A text while it is put together.
#[derive(Default)]
struct Short {
    bytes: [u8; "255.255.255.255:65535".len()],
    length: usize,
}

// === impl Host ===

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => f.write_str(Short::default().address(address).with("/32").as_str()),
            IpAddr::V6(address) => write!(f, "{address}/{}", Family::V6.host_bits()),
        }
    }
}

// === impl Socket ===

impl fmt::Display for Socket<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.address {
            IpAddr::V4(address) => {
                f.write_str(Short::default().address(address).with(":").number(self.0.port).as_str())
            }
            IpAddr::V6(_) => SocketAddr::new(self.0.address, self.0.port).fmt(f),
        }
    }
}

// === impl Short ===

impl Short {
    fn address(&mut self, address: Ipv4Addr) -> &mut Self {
        let [a, b, c, d] = address.octets().map(u16::from);
        self.number(a).with(".").number(b).with(".").number(c).with(".").number(d)
    }

    fn number(&mut self, number: u16) -> &mut Self {
        self.with(itoa::Buffer::new().format(number))
    }

    /// Adds a text that there is room for, as [`Short::bytes`] is long.
    fn with(&mut self, text: &str) -> &mut Self {
        let end = self.length + text.len();
        self.bytes[self.length..end].copy_from_slice(text.as_bytes());
        self.length = end;
        self
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length]).expect("only text was put in")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Place;

    #[test]
    fn addresses_are_printed_as_everybody_prints_them() {
        for address in ["0.0.0.0", "1.20.255.9", "255.255.255.255", "::", "2001:db8::1", "::ffff:1.2.3.4"] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(Host(address).to_string(), format!("{address}/{}", Family::of(&address).host_bits()));
            for port in [0, 9, 80, 65535] {
                let endpoint = Endpoint { address, port, place: Place::Elsewhere, weight: 1 };
                assert_eq!(Socket(&endpoint).to_string(), SocketAddr::new(address, port).to_string());
            }
        }
    }
}
