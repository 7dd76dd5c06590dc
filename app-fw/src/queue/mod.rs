//! One NFQUEUE: bound with the crate `nfq`, read and answered many messages at a time through its descriptor.

pub mod message;
pub mod verdicts;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, fcntl};

use crate::sys::datagrams;
pub use message::{Message, Queued};
pub use verdicts::Verdicts;

/// How a queue is set up.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Bytes of each packet to hand over; `u16::MAX` for all.
    pub copy_range: u16,
    /// Hand over segments that are not cut to size yet.
    pub segmentation_offload: bool,
    /// Packets that may wait in the kernel.
    pub length: u32,
    /// Bytes of the receive buffer to start with.
    pub receive_buffer: usize,
    /// Bytes it may grow to.
    pub max_receive_buffer: usize,
}

/// Why a queue cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Somebody else owns the number.
    #[error("queue {0} is taken: another program in this network namespace (or another app-fw) is bound to it")]
    Taken(u16),
    /// Not root.
    #[error("binding queue {0} is not permitted: app-fw needs root (CAP_NET_ADMIN)")]
    NotPermitted(u16),
    /// The kernel refused a step.
    #[error("queue {number}: {step}: {source}")]
    Kernel {
        /// Queue number.
        number: u16,
        /// What was tried.
        step: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// A bound queue. Shared by the workers that read it.
pub struct Queue {
    number: u16,
    /// Keeps the socket bound; all traffic goes through `socket`, which is the same socket.
    binding: nfq::Queue,
    socket: OwnedFd,
    receive_buffer: AtomicU64,
    max_receive_buffer: u64,
    /// Packets the kernel could not hand over so far, as the socket counts them.
    drops: AtomicU64,
    /// The first packet came.
    started: AtomicBool,
}

impl Queue {
    /// Opens and binds queue `number` in the network namespace of the calling thread. To be called while no other
    /// thread opens netlink sockets.
    ///
    /// # Errors
    /// See [`QueueError`].
    pub fn bind(number: u16, settings: &Settings) -> Result<Queue, QueueError> {
        let at = |step| move |source| QueueError::Kernel { number, step, source };
        let before = netfilter_sockets().map_err(at("listing descriptors"))?;
        let mut binding = nfq::Queue::open().map_err(at("opening a netlink socket"))?;
        let after = netfilter_sockets().map_err(at("listing descriptors"))?;
        let socket = after
            .difference(&before)
            .next()
            .ok_or_else(|| io::Error::other("the crate nfq opened no netfilter socket"))
            .and_then(|fd| duplicate(*fd))
            .map_err(at("finding the netlink socket"))?;
        binding.bind(number).map_err(|source| match source.raw_os_error() {
            // The kernel says the same of a queue that another socket owns.
            Some(libc::EBUSY | libc::EPERM) if is_taken(number) => QueueError::Taken(number),
            Some(libc::EPERM) => QueueError::NotPermitted(number),
            _ => QueueError::Kernel { number, step: "binding", source },
        })?;
        binding.set_recv_uid_gid(number, true).map_err(at("asking for user ids"))?;
        binding.set_recv_gso(number, settings.segmentation_offload).map_err(at("setting segmentation offload"))?;
        binding.set_queue_max_len(number, settings.length).map_err(at("setting the queue length"))?;
        binding.set_copy_range(number, settings.copy_range).map_err(at("setting the copy range"))?;
        let queue = Queue {
            number,
            binding,
            socket,
            receive_buffer: AtomicU64::new(0),
            max_receive_buffer: settings.max_receive_buffer as u64,
            drops: AtomicU64::new(0),
            started: AtomicBool::new(false),
        };
        queue
            .set_receive_buffer(settings.receive_buffer.min(settings.max_receive_buffer))
            .map_err(at("buffer size"))?;
        Ok(queue)
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// For recvmmsg and poll.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Bytes of the receive buffer.
    pub fn receive_buffer(&self) -> u64 {
        self.receive_buffer.load(Ordering::Relaxed)
    }

    /// Sends verdicts.
    ///
    /// # Errors
    /// What send(2) says.
    pub fn send(&self, verdicts: &Verdicts) -> io::Result<()> {
        datagrams::send(self.socket(), verdicts.bytes())
    }

    /// Packets that were handed over while the queue was being set up and that nobody saw: ids start at 1, so these are
    /// the ids below the first that arrives. Empty ever after.
    pub fn unseen_before(&self, id: u32) -> std::ops::Range<u32> {
        if self.started.load(Ordering::Relaxed) || self.started.swap(true, Ordering::Relaxed) {
            return 0..0;
        }
        1..id
    }

    /// Looks whether packets were lost because the receive buffer was full. If so, doubles it, up to its bound. Returns
    /// how many were lost since the last look.
    ///
    /// # Errors
    /// The kernel does not tell, or does not take the new size.
    pub fn grow_after_overrun(&self) -> io::Result<u64> {
        let drops = crate::sys::socket::drops(self.socket())?;
        let lost = drops.saturating_sub(self.drops.swap(drops, Ordering::Relaxed));
        let size = self.receive_buffer();
        if lost > 0 && size < self.max_receive_buffer {
            self.set_receive_buffer((size * 2).min(self.max_receive_buffer) as usize)?;
        }
        Ok(lost)
    }

    fn set_receive_buffer(&self, bytes: usize) -> io::Result<()> {
        nix::sys::socket::setsockopt(&self.socket, nix::sys::socket::sockopt::RcvBufForce, &bytes)?;
        self.receive_buffer.store(bytes as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Gives the queue back. What is still in it is dropped by the kernel.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn unbind(mut self) -> io::Result<()> {
        self.binding.unbind(self.number)
    }
}

/// Whether some socket is bound to the queue in the network namespace of the calling thread.
fn is_taken(number: u16) -> bool {
    // Lines start with the number: see seq_show of the kernel's nfnetlink_queue.c.
    std::fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_queue").is_ok_and(|queues| {
        queues.lines().any(|line| line.split_ascii_whitespace().next() == Some(number.to_string().as_str()))
    })
}

/// Descriptors of this process that are netfilter netlink sockets. `nfq` does not tell its own.
fn netfilter_sockets() -> io::Result<BTreeSet<i32>> {
    let mut sockets = BTreeSet::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        if let Some(fd) = name.to_str().and_then(|name| name.parse().ok())
            && crate::sys::socket::is_netfilter(fd)
        {
            sockets.insert(fd);
        }
    }
    Ok(sockets)
}

fn duplicate(fd: i32) -> io::Result<OwnedFd> {
    let borrowed = crate::sys::socket::borrow(fd)?;
    let copy = fcntl(borrowed, FcntlArg::F_DUPFD_CLOEXEC(3))?;
    crate::sys::socket::adopt(copy)
}
