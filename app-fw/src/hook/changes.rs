//! What the kernel tells of changes of nf_tables; see linux/netfilter/nf_tables.h.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};

use super::rules::TABLE;
use crate::queue::message::{aligned, attributes};

/// `NFNLGRP_NFTABLES`, as a bit.
const GROUP: u32 = 1 << (7 - 1);
/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u8 = 10;
/// `NFT_MSG_NEWGEN`: a transaction ended. It names no table.
const NEW_GENERATION: u8 = 15;
/// The first attribute of tables, chains, rules and sets alike is the name of the table.
const NAME_OF_TABLE: u16 = 1;
/// Sizes of `nlmsghdr` and `nfgenmsg`.
const HEADER: usize = 16;
const GENERIC: usize = 4;

/// Hears of changes in the namespace of the thread that opened it.
#[derive(Debug)]
pub struct Changes {
    socket: OwnedFd,
}

impl Changes {
    /// Listens from now on.
    ///
    /// # Errors
    /// The kernel has no nf_tables.
    pub fn listen() -> io::Result<Changes> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUP))?;
        Ok(Changes { socket })
    }

    /// Readable when there is something to hear.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes what there is; returns whether our table may have been changed.
    pub fn concern_us(&self) -> bool {
        let mut buffer = vec![0; 65_536];
        let mut ours = false;
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => ours |= concerns(&buffer[..length], TABLE),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return ours,
                // Changes come faster than they are heard of (ENOBUFS): some may have been ours.
                Err(_) => return true,
            }
        }
    }
}

/// Whether a datagram tells of something in a table of this name.
fn concerns(mut datagram: &[u8], table: &str) -> bool {
    while let Some(header) = datagram.first_chunk::<HEADER>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let [message, subsystem] = u16::from_ne_bytes([header[4], header[5]]).to_le_bytes();
        let Some(body) = datagram.get(HEADER + GENERIC..length) else { return false };
        let is_name =
            |(kind, name): (u16, &[u8])| kind == NAME_OF_TABLE && name.strip_suffix(&[0]) == Some(table.as_bytes());
        if subsystem == SUBSYSTEM && message != NEW_GENERATION && attributes(body).any(is_name) {
            return true;
        }
        datagram = datagram.get(aligned(length)..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, table: &[u8]) -> Vec<u8> {
        let attribute = [&(4 + table.len() as u16).to_ne_bytes()[..], &1u16.to_ne_bytes(), table].concat();
        let length = (HEADER + GENERIC + attribute.len()) as u32;
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], &[2, 0, 0, 0], &attribute].concat();
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

    #[test]
    fn only_our_table_concerns_us() {
        const DELETED_RULE: u16 = 10 << 8 | 8;
        let (ours, other) = (message(DELETED_RULE, b"mangle\0"), message(DELETED_RULE, b"filter\0"));
        assert!(concerns(&ours, "mangle"));
        assert!(!concerns(&other, "mangle"));
        assert!(concerns(&[other, ours].concat(), "mangle"));
        assert!(!concerns(&message(10 << 8 | 15, b"mangle\0"), "mangle"), "a generation has no table");
        assert!(!concerns(&message(1 << 8 | 8, b"mangle\0"), "mangle"), "conntrack's");
    }

    #[test]
    fn nonsense_concerns_nobody_and_ends() {
        for bytes in [&[][..], &[0; 16], &[0; 40], &[0xff; 40], &[20, 0, 0, 0]] {
            assert!(!concerns(bytes, "mangle"));
        }
    }
}
