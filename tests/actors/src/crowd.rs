//! Many connections at once, for what has to be tried many times and takes long.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, accept_with, connect, ipproto, recv, send,
    socket_with,
};

use crate::heir::Borrower;
use crate::socket::Socket;

/// How long a reader waits for more before it says that nothing comes.
const QUIET: Timespec = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };

/// Connections, oldest first.
#[derive(Debug, Default)]
pub struct Crowd(Vec<OwnedFd>);

impl Crowd {
    /// Connects so many times more.
    ///
    /// # Errors
    /// Refused, or no answer in time.
    pub fn connect(&mut self, times: usize, to: SocketAddr) -> Result<()> {
        for _ in 0..times {
            let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let fd = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
            connect(&fd, &to).context("connect")?;
            self.0.push(fd);
        }
        Ok(())
    }

    /// Accepts so many times more.
    ///
    /// # Errors
    /// Too few came in time.
    pub fn accept(&mut self, times: usize, listener: &Socket) -> Result<()> {
        for _ in 0..times {
            self.0.push(accept_with(listener.fd(), SocketFlags::CLOEXEC).context("accept")?);
        }
        Ok(())
    }

    /// Writes so many bytes `x` to each, without waiting: what the kernel does not take is left out.
    pub fn put(&self, bytes: usize) {
        let much = vec![b'x'; bytes];
        for fd in &self.0 {
            let _ = send(fd, &much, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
    }

    /// Lends each to `program`, one after the other, which writes its payload and lets go of it.
    ///
    /// # Errors
    /// It could not be started, or failed.
    pub fn lend(&self, program: &Path) -> Result<()> {
        let mut borrower = Borrower::start(program, None, false)?;
        self.0.iter().try_for_each(|fd| borrower.lend(fd))
    }

    /// Reads what comes until nothing comes any more; returns how often it was `byte`.
    ///
    /// # Errors
    /// A connection broke.
    pub fn count(&self, byte: u8) -> Result<usize> {
        let mut count = 0;
        let mut buffer = vec![0; 1 << 20];
        let mut open: Vec<&OwnedFd> = self.0.iter().collect();
        while !open.is_empty() {
            let mut fds: Vec<_> = open.iter().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)).collect();
            if poll(&mut fds, Some(&QUIET))? == 0 {
                break;
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            let mut ended = vec![false; open.len()];
            for (index, fd) in open.iter().enumerate().filter(|(index, _)| ready[*index]) {
                let (_, length) = recv(fd, &mut *buffer, RecvFlags::DONTWAIT).context("receive")?;
                count += buffer[..length].iter().filter(|read| **read == byte).count();
                ended[index] = length == 0;
            }
            let mut ended = ended.into_iter();
            open.retain(|_| ended.next() != Some(true));
        }
        Ok(count)
    }
}
