//! The tables of the legacy iptables: how large they are, which the kernel tells at once, without reading them
//! (`linux/netfilter_ipv4/ip_tables.h`, `linux/netfilter_ipv6/ip6_tables.h`).
//!
//! Must not change anything, and understands no rules.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;
/// `XT_TABLE_MAXNAMELEN`, with its last zero.
const NAME: usize = 32;

/// The size of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rules, policies and the heads of chains.
    pub entries: u32,
    /// Bytes of all of them.
    pub bytes: u32,
    /// How many chains the kernel itself has in this table.
    pub hooks: u32,
}

/// `struct ipt_getinfo`, which is that of IPv6 too.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct GetInfo {
    name: [u8; NAME],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    num_entries: u32,
    size: u32,
}

/// The tables of a family that there are in our network namespace. None when that cannot be read.
pub fn tables(family: AddressFamily) -> Vec<String> {
    let path = if family == AddressFamily::Inet6 { "/proc/net/ip6_tables_names" } else { "/proc/net/ip_tables_names" };
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Whether somebody has put something into a table. Makes the kernel set up nothing, unlike [`size`].
pub fn is_used(family: AddressFamily, table: &str) -> bool {
    tables(family).iter().any(|name| name == table) && size(family, table).is_ok_and(|size| !size.is_blank())
}

/// How large a table is. Makes the kernel set up an empty one, if it has not yet.
///
/// # Errors
/// When the kernel has no such table, or does not let us ask.
pub fn size(family: AddressFamily, table: &str) -> io::Result<Size> {
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let level = if family == AddressFamily::Inet6 { libc::IPPROTO_IPV6 } else { libc::IPPROTO_IP };
    let mut info = GetInfo::default();
    let room = info.name.get_mut(..table.len()).filter(|room| room.len() < NAME).ok_or(Errno::ENAMETOOLONG)?;
    room.copy_from_slice(table.as_bytes());
    let mut length = size_of::<GetInfo>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the kernel reads and writes at most `length` bytes of `info`, which is plain
    // integers in the layout of the header. JUSTIFICATION: nix has no wrapper for this option.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, GET_INFO, (&raw mut info).cast(), &raw mut length) };
    Errno::result(result)?;
    Ok(Size { entries: info.num_entries, bytes: info.size, hooks: info.valid_hooks.count_ones() })
}

// === impl Size ===

impl Size {
    /// Whether nobody has put anything into the table: each of the kernel's chains is a policy, and one entry ends it.
    pub fn is_blank(self) -> bool {
        self.entries <= self.hooks + 1
    }
}
