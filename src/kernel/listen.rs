//! TCP listeners with a say in which families they serve, which the standard library does not offer.
//!
//! Must not accept anything; that is for whoever holds the listener.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};

/// What an unspecified address (`0.0.0.0` or `::`) stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unspecified {
    /// All addresses of both families, as far as the node has them.
    BothFamilies,
    /// All addresses of the family it is written in.
    OwnFamily,
}

/// Opens a non-blocking listener.
///
/// # Errors
/// As `bind(2)` and `listen(2)`; typically the address is in use, or not on this node.
pub fn tcp(address: SocketAddr, unspecified: Unspecified) -> io::Result<TcpListener> {
    if !address.ip().is_unspecified() || unspecified == Unspecified::OwnFamily {
        return open(address, true).map_err(Into::into);
    }
    match open(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), address.port()), false) {
        // Booted without IPv6.
        Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => {
            open(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()), true).map_err(Into::into)
        }
        other => other.map_err(Into::into),
    }
}

fn open(address: SocketAddr, only_own_family: bool) -> nix::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &only_own_family)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&fd, Backlog::new(128)?)?;
    Ok(TcpListener::from(fd))
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    fn reachable(port: u16) -> [bool; 2] {
        ["127.0.0.1", "::1"].map(|host| TcpStream::connect((host, port)).is_ok())
    }

    #[test]
    fn an_unspecified_address_serves_both_families_or_only_its_own() {
        for (address, unspecified, expected) in [
            ("0.0.0.0:0", Unspecified::BothFamilies, [true, true]),
            ("[::]:0", Unspecified::BothFamilies, [true, true]),
            ("0.0.0.0:0", Unspecified::OwnFamily, [true, false]),
            ("[::]:0", Unspecified::OwnFamily, [false, true]),
            ("127.0.0.1:0", Unspecified::BothFamilies, [true, false]),
            ("[::1]:0", Unspecified::BothFamilies, [false, true]),
        ] {
            let listener = tcp(address.parse().unwrap(), unspecified).unwrap();
            assert_eq!(reachable(listener.local_addr().unwrap().port()), expected, "{address} {unspecified:?}");
        }
    }

    #[test]
    fn both_families_can_hold_the_same_port() {
        let v4 = tcp("0.0.0.0:0".parse().unwrap(), Unspecified::OwnFamily).unwrap();
        let port = v4.local_addr().unwrap().port();
        let taken = tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port), Unspecified::OwnFamily);
        assert_eq!(taken.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(tcp(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port), Unspecified::OwnFamily).is_ok());
    }
}
