//! Generic netlink (`linux/genetlink.h`): families that have a name, and a number that must be asked for.
//!
//! Must not know what a family is about; see [`super::ipvs`] for one.

use std::io;

use nix::sys::socket::SockProtocol;

use super::netlink::{ACK, Buffer, Message, Socket, attribute};

/// Bytes of the generic netlink header: command, version, two reserved.
const HEADER: usize = 4;
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// A socket that talks to one family.
pub struct Family {
    socket: Socket,
    number: u16,
    version: u8,
}

/// The attributes of a message of a generic netlink family.
pub fn body<'a>(message: &Message<'a>) -> &'a [u8] {
    message.payload.get(HEADER..).unwrap_or(&[])
}

// === impl Family ===

impl Family {
    /// Opens a socket to the family of this name. The kernel loads its module if it can.
    ///
    /// # Errors
    /// `NotFound` when the kernel has no such family.
    pub fn open(name: &str, version: u8) -> io::Result<Self> {
        let mut socket = Socket::open(SockProtocol::NetlinkGeneric)?;
        let mut request = Buffer::new();
        request.message(GENL_ID_CTRL, ACK, socket.next_sequence(), &[CTRL_CMD_GETFAMILY, 1, 0, 0]);
        request.text(CTRL_ATTR_FAMILY_NAME, name);
        let mut number = None;
        // The answer comes before the acknowledgement.
        socket.request(&request, |message| {
            number = attribute(body(&message), CTRL_ATTR_FAMILY_ID)
                .and_then(|id| Some(u16::from_ne_bytes(id.try_into().ok()?)));
        })?;
        let number = number.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Self { socket, number, version })
    }

    /// The socket.
    pub fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// Begins a message with a command in `buffer` and returns its sequence number.
    pub fn message(&mut self, buffer: &mut Buffer, command: u8, flags: u16) -> u32 {
        let sequence = self.socket.next_sequence();
        buffer.message(self.number, flags, sequence, &[command, self.version, 0, 0]);
        sequence
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_found_by_name() {
        // The controller is a family itself, and every kernel has it.
        assert_eq!(Family::open("nlctrl", 1).unwrap().number, GENL_ID_CTRL);
        let missing = Family::open("no-such-family", 1).err().expect("nobody has it");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
