//! Datagrams sent by an io_uring.

use std::io::IoSlice;
use std::net::SocketAddrV4;
use std::ptr;

use anyhow::{Context, Result, bail, ensure};
use io_uring::types::{DestinationSlot, Fd, Fixed};
use io_uring::{IoUring, cqueue, opcode, squeue};
use nix::libc;

/// A ring with one UDP socket that it made by itself.
pub struct Ring {
    ring: IoUring,
    socket: Socket,
}

enum Socket {
    Descriptor(i32),
    /// In the ring's own table: /proc shows nothing.
    Direct(u32),
}

impl Ring {
    /// `kind`: `descriptor`, or `direct` for a socket without one; with `-sqpoll` behind it a thread of the kernel takes what
    /// is submitted, without any system call.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn open(kind: &str) -> Result<Self> {
        let mut builder = IoUring::builder();
        let place = match kind.strip_suffix("-sqpoll") {
            Some(place) => {
                builder.setup_sqpoll(1000);
                place
            }
            None => kind,
        };
        let mut ring: IoUring = builder.build(8).context("io_uring_setup")?;
        let direct = match place {
            "direct" => true,
            "descriptor" => false,
            _ => bail!("unknown kind of ring {kind}"),
        };
        let mut make = opcode::Socket::new(libc::AF_INET, libc::SOCK_DGRAM, 0);
        if direct {
            ring.submitter().register_files_sparse(1).context("a table of files")?;
            make = make.file_index(Some(DestinationSlot::try_from_slot_target(0).ok().context("slot 0")?));
        }
        let made = complete(&mut ring, &make.build()).context("IORING_OP_SOCKET")?;
        let socket = if direct { Socket::Direct(0) } else { Socket::Descriptor(made) };
        Ok(Self { ring, socket })
    }

    /// Sends once.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn send(&mut self, to: SocketAddrV4, payload: &[u8]) -> Result<()> {
        let mut name = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: to.port().to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(to.ip().octets()) },
            sin_zero: [0; 8],
        };
        let mut slice = IoSlice::new(payload);
        let message = libc::msghdr {
            msg_name: (&raw mut name).cast(),
            msg_namelen: size_of_val(&name) as u32,
            msg_iov: (&raw mut slice).cast(),
            msg_iovlen: 1,
            msg_control: ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        };
        let entry = match self.socket {
            Socket::Descriptor(descriptor) => opcode::SendMsg::new(Fd(descriptor), &raw const message).build(),
            Socket::Direct(slot) => opcode::SendMsg::new(Fixed(slot), &raw const message).build(),
        };
        complete(&mut self.ring, &entry).context("IORING_OP_SENDMSG").map(drop)
    }
}

/// Submits one entry and waits for its end; returns its result.
fn complete(ring: &mut IoUring, entry: &squeue::Entry) -> Result<i32> {
    // SAFETY: what the entry points to lives until its completion has come, which is waited for here.
    unsafe { ring.submission().push(entry) }.context("a full ring")?;
    ring.submit_and_wait(1).context("io_uring_enter")?;
    let result = ring.completion().next().as_ref().map(cqueue::Entry::result).context("no completion")?;
    ensure!(result >= 0, "{}", std::io::Error::from_raw_os_error(-result));
    Ok(result)
}
