//! What nf_tables says of its commits (`NFNLGRP_NFTABLES`): an independent witness of when a change took effect.
//!
//! Must not change anything, and understands no more than which family lost elements of a set.

use std::io;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{SockProtocol, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::netlink::{Received, Socket};
use super::nftables::TableFamily;

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_DELSETELEM`.
const ELEMENT_REMOVED: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | libc::NFT_MSG_DELSETELEM as u16;
/// Notices may come faster than they are read.
const RECEIVE_QUEUE: usize = 1 << 20;

/// Listens for notices of this network namespace.
pub struct Witness(Socket);

// === impl Witness ===

impl Witness {
    /// Begins to listen. Waits for a notice take at most `patience`.
    ///
    /// # Errors
    /// When the kernel has no nf_tables, or does not let us listen.
    pub fn open(patience: Duration) -> io::Result<Self> {
        let socket = Socket::open(SockProtocol::NetlinkNetFilter)?;
        socket.reserve(0, RECEIVE_QUEUE);
        let patience = TimeVal::new(patience.as_secs() as _, patience.subsec_micros() as _);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
        socket.join(libc::NFNLGRP_NFTABLES as u32)?;
        Ok(Self(socket))
    }

    /// Waits until elements were removed in every one of these families, which is in force by then; `false` when
    /// patience ends before.
    ///
    /// # Errors
    /// When the socket fails, or notices were lost.
    pub fn removal(&mut self, families: &[TableFamily]) -> io::Result<bool> {
        let mut missing: Vec<u8> = families.iter().map(|family| *family as u8).collect();
        while !missing.is_empty() {
            let heard = self.0.receive(true, |received| {
                if let Received::Message(message, _) = received
                    && message.kind == ELEMENT_REMOVED
                {
                    // struct nfgenmsg begins with the family.
                    missing.retain(|family| message.payload.first() != Some(family));
                }
            })?;
            if !heard {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
