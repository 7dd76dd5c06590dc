//! Socket facts the well-kept crates do not offer.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `SO_MEMINFO` of include/uapi/asm-generic/socket.h; the values are those of linux/sock_diag.h.
const SO_MEMINFO: libc::c_int = 55;
const SK_MEMINFO_VARS: usize = 9;
const SK_MEMINFO_DROPS: usize = 8;

/// How many messages the socket could not take because its receive buffer was full.
///
/// # Errors
/// It is no socket.
pub fn drops(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut values = [0u32; SK_MEMINFO_VARS];
    option(socket.as_raw_fd(), libc::SOL_SOCKET, SO_MEMINFO, &mut values)?;
    Ok(u64::from(values[SK_MEMINFO_DROPS]))
}

/// Whether a descriptor of this process is a netlink socket of the netfilter family.
pub fn is_netfilter(fd: RawFd) -> bool {
    let (mut domain, mut protocol) = ([0i32], [0i32]);
    option(fd, libc::SOL_SOCKET, libc::SO_DOMAIN, &mut domain).is_ok()
        && option(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL, &mut protocol).is_ok()
        && domain == [libc::AF_NETLINK]
        && protocol == [libc::NETLINK_NETFILTER]
}

/// Name of a network device of the socket's namespace, padded with zeros.
///
/// # Errors
/// There is none with this index.
pub fn device_name(socket: BorrowedFd<'_>, index: u32) -> io::Result<[u8; libc::IFNAMSIZ]> {
    // SAFETY: numbers, of which zeros are valid ones.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_ifindex = libc::c_int::try_from(index).map_err(io::Error::other)?;
    // SAFETY: the kernel reads and writes one `struct ifreq`, which `request` is.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFNAME, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(request.ifr_name.map(|byte| byte as u8))
}

/// Reads a socket option whose value is an array of integers.
fn option<T: Copy, const N: usize>(fd: RawFd, level: i32, name: i32, value: &mut [T; N]) -> io::Result<()> {
    let mut length = size_of::<[T; N]>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `value`, which has that many; all callers pass integers, for
    // which any bytes are valid.
    let result = unsafe { libc::getsockopt(fd, level, name, value.as_mut_ptr().cast(), &raw mut length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Borrows a descriptor by its number.
///
/// # Errors
/// The number is not open.
pub fn borrow<'a>(fd: RawFd) -> io::Result<BorrowedFd<'a>> {
    // SAFETY: F_GETFD only looks; a number that is not open is an error.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, as was just seen. The one caller duplicates it at once, while its owner is alive.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Takes ownership of a descriptor that was just made.
///
/// # Errors
/// It is negative.
pub fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the one caller passes the fresh result of F_DUPFD_CLOEXEC, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
