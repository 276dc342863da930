//! Cables between network namespaces: veth pairs, the two addresses at their ends, a default route (`rtnetlink(7)`).
//!
//! Must not know what is at the other end.

use std::io;
use std::net::IpAddr;

use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::SockProtocol;

use super::netlink::{ACK, Buffer, CREATE, EXCL, Socket};

const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
/// Bytes of `struct rtmsg`.
const ROUTE_HEADER: usize = 12;
const MESSAGE_HEADER: usize = 16;

const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
/// `linux/veth.h`: the other end, as a link header and attributes.
const VETH_INFO_PEER: u16 = 1;

/// `linux/rtnetlink.h`: the gateway is on the link, whatever the routes say.
const RTNH_F_ONLINK: u32 = 4;

/// The door to this network namespace's links.
pub struct Cables(Socket);

// === impl Cables ===

impl Cables {
    /// Opens it; changes nothing.
    ///
    /// # Errors
    /// When rtnetlink cannot be opened.
    pub fn open() -> io::Result<Self> {
        Socket::open(SockProtocol::NetlinkRoute).map(Self)
    }

    /// Makes a pair: one end here, the other in the network namespace of the process `pid`. Both are down.
    ///
    /// # Errors
    /// When a name is taken, the process is gone, or the kernel has no veth driver.
    pub fn lay(&mut self, here: &str, there: &str, pid: u32) -> io::Result<()> {
        let mut peer = Buffer::new();
        peer.message(0, 0, 0, &[0; LINK_HEADER]);
        peer.text(libc::IFLA_IFNAME, there);
        peer.attr(libc::IFLA_NET_NS_PID, &pid.to_ne_bytes());
        let mut request = Buffer::new();
        request.message(libc::RTM_NEWLINK, ACK | CREATE | EXCL, self.0.next_sequence(), &[0; LINK_HEADER]);
        request.text(libc::IFLA_IFNAME, here);
        request.nest(libc::IFLA_LINKINFO, |b| {
            b.text(IFLA_INFO_KIND, "veth");
            b.nest(IFLA_INFO_DATA, |b| b.attr(VETH_INFO_PEER, &peer.bytes()[MESSAGE_HEADER..]));
        });
        self.0.request(&request, |_| {})
    }

    /// Switches a link on.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn up(&mut self, name: &str) -> io::Result<()> {
        let mut header = [0; LINK_HEADER];
        header[4..8].copy_from_slice(&if_nametoindex(name)?.to_ne_bytes());
        // Flags, and the mask of those that are to change.
        header[8..12].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
        header[12..16].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
        let mut request = Buffer::new();
        request.message(libc::RTM_NEWLINK, ACK, self.0.next_sequence(), &header);
        self.0.request(&request, |_| {})
    }

    /// Gives a link its own address, and a route to the one at its other end. They must be of one family.
    ///
    /// # Errors
    /// When there is no such link, or it has that address.
    pub fn address(&mut self, name: &str, own: IpAddr, other: IpAddr) -> io::Result<()> {
        // Duplicate detection would take a second, and there is nobody who could have the address.
        let (bits, flags) = if own.is_ipv4() { (32, 0) } else { (128, libc::IFA_F_NODAD as u8) };
        let mut header = [0; ADDRESS_HEADER];
        header[..3].copy_from_slice(&[family(own), bits, flags]);
        header[4..].copy_from_slice(&if_nametoindex(name)?.to_ne_bytes());
        let mut request = Buffer::new();
        request.message(libc::RTM_NEWADDR, ACK | CREATE | EXCL, self.0.next_sequence(), &header);
        put_ip(&mut request, libc::IFA_LOCAL, own);
        put_ip(&mut request, libc::IFA_ADDRESS, other);
        self.0.request(&request, |_| {})
    }

    /// Sends everything that has no other way through a link to `gateway`, which is at its other end.
    ///
    /// # Errors
    /// When the link is down, or there is a default route.
    pub fn default_route(&mut self, name: &str, gateway: IpAddr) -> io::Result<()> {
        let mut header = [0; ROUTE_HEADER];
        header[0] = family(gateway);
        header[4..8].copy_from_slice(&[
            libc::RT_TABLE_MAIN,
            libc::RTPROT_BOOT,
            libc::RT_SCOPE_UNIVERSE,
            libc::RTN_UNICAST,
        ]);
        // The kernel learns a little later than we that the other end is up, and need not check what we know.
        header[8..].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
        let mut request = Buffer::new();
        request.message(libc::RTM_NEWROUTE, ACK | CREATE | EXCL, self.0.next_sequence(), &header);
        put_ip(&mut request, libc::RTA_GATEWAY, gateway);
        request.attr(libc::RTA_OIF, &if_nametoindex(name)?.to_ne_bytes());
        self.0.request(&request, |_| {})
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

fn put_ip(request: &mut Buffer, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => request.attr(kind, &v4.octets()),
        IpAddr::V6(v6) => request.attr(kind, &v6.octets()),
    }
}
