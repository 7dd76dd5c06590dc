//! Many datagrams in one system call.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Buffers for [`Datagrams::receive`], allocated once.
pub struct Datagrams {
    bytes: Box<[u8]>,
    size: usize,
    lengths: Vec<Received>,
    /// `headers` point into `vectors`, and `vectors` into `bytes`; none of the three is ever moved or resized.
    vectors: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
}

#[derive(Clone, Copy)]
struct Received {
    length: usize,
    truncated: bool,
}

// SAFETY: the raw pointers point into heap memory that the value owns and that moves with it.
unsafe impl Send for Datagrams {}

impl Datagrams {
    /// Room for `count` datagrams of `size` bytes each.
    pub fn new(count: usize, size: usize) -> Datagrams {
        let count = count.max(1);
        let mut bytes = vec![0u8; count * size].into_boxed_slice();
        let mut vectors: Box<[libc::iovec]> = bytes
            .chunks_exact_mut(size)
            .map(|chunk| libc::iovec { iov_base: chunk.as_mut_ptr().cast(), iov_len: size })
            .collect();
        let headers = vectors
            .iter_mut()
            .map(|vector| {
                // SAFETY: msghdr is a plain C structure; all zeros is a valid value without address and control data.
                let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
                header.msg_iov = vector;
                header.msg_iovlen = 1;
                libc::mmsghdr { msg_hdr: header, msg_len: 0 }
            })
            .collect();
        Datagrams { bytes, size, lengths: Vec::with_capacity(count), vectors, headers }
    }

    /// How many datagrams fit.
    pub fn capacity(&self) -> usize {
        self.vectors.len()
    }

    /// Receives what is there, without waiting; at most [`Datagrams::capacity`]. Returns how many came.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is there; `ENOBUFS` once for each time the socket's buffer overflowed.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.lengths.clear();
        // SAFETY: the headers describe buffers of their stated length that live as long as `self`, and `self` is
        // borrowed mutably for the call.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        if received < 0 {
            return Err(io::Error::last_os_error());
        }
        let filled = self.headers.iter().take(received as usize);
        self.lengths.extend(filled.map(|header| Received {
            length: (header.msg_len as usize).min(self.size),
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        }));
        Ok(received as usize)
    }

    /// The datagram at `index` of the last receipt, and whether it was longer than its buffer.
    pub fn get(&self, index: usize) -> Option<(&[u8], bool)> {
        let received = self.lengths.get(index)?;
        let start = index * self.size;
        Some((self.bytes.get(start..start + received.length)?, received.truncated))
    }
}

/// Sends one datagram without waiting.
///
/// # Errors
/// What send(2) says.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of a live slice.
    let sent = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn datagrams_come_in_order_with_their_lengths() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let mut datagrams = Datagrams::new(4, 8);
        assert_eq!(datagrams.receive(b.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        for text in ["one", "", "much too long", "four", "five"] {
            send(a.as_fd(), text.as_bytes()).unwrap();
        }
        assert_eq!(datagrams.receive(b.as_fd()).unwrap(), 4);
        assert_eq!(datagrams.get(0), Some((&b"one"[..], false)));
        assert_eq!(datagrams.get(1), Some((&b""[..], false)));
        assert_eq!(datagrams.get(2), Some((&b"much too"[..], true)));
        assert_eq!(datagrams.get(3), Some((&b"four"[..], false)));
        assert_eq!(datagrams.get(4), None);
        assert_eq!(datagrams.receive(b.as_fd()).unwrap(), 1);
        assert_eq!(datagrams.get(0), Some((&b"five"[..], false)));
        assert_eq!(datagrams.get(1), None);
    }
}
