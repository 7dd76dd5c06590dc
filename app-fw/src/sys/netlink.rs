//! Options and messages of netlink sockets.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Numbers of linux/netlink.h and linux/socket.h.
const SOL_NETLINK: libc::c_int = 270;
const NETLINK_LISTEN_ALL_NSID: libc::c_int = 8;
const NETLINK_GET_STRICT_CHK: libc::c_int = 12;

/// The kernel looks at all of a request for a dump, and refuses what it does not know.
///
/// # Errors
/// The kernel is older than 4.20.
pub fn check_strictly(socket: BorrowedFd<'_>) -> io::Result<()> {
    switch_on(socket, NETLINK_GET_STRICT_CHK)
}

/// The socket also hears what is told in other network namespaces, those that have an id in its own.
///
/// # Errors
/// CAP_NET_BROADCAST is missing.
pub fn hear_all_namespaces(socket: BorrowedFd<'_>) -> io::Result<()> {
    switch_on(socket, NETLINK_LISTEN_ALL_NSID)
}

fn switch_on(socket: BorrowedFd<'_>, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `on`, which has that many.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), SOL_NETLINK, option, (&raw const on).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives what is there: its length, and the id of the namespace it tells of unless that is the socket's own. `None`
/// if there is nothing.
///
/// # Errors
/// Messages were lost, or did not fit.
pub fn receive_from(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<(usize, Option<i32>)>> {
    // Room for one `cmsghdr` with a number, aligned as it must be.
    let mut control = [0u64; 3];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all of msghdr's fields are numbers or pointers, for which zero is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: `message` describes `buffer` and `control`, both writable for as long as the call lasts.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let Ok(length) = usize::try_from(received) else {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
    };
    if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a netlink message that is too long"));
    }
    // SAFETY: `message` is as the kernel left it, and its control buffer is still there.
    let head = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() };
    let from = head.filter(|head| head.cmsg_level == SOL_NETLINK && head.cmsg_type == NETLINK_LISTEN_ALL_NSID);
    // SAFETY: a message of this type carries a 32-bit number, which the kernel would have cut off visibly if it had not
    // fitted; it may lie unaligned.
    let from = from.map(|head| unsafe { libc::CMSG_DATA(head).cast::<i32>().read_unaligned() });
    Ok(Some((length, from)))
}
