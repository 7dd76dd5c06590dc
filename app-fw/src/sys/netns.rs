//! Network namespaces by cookie, and visits to them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::Mode;
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

/// `SO_NETNS_COOKIE` of include/uapi/asm-generic/socket.h.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie of the namespace the calling thread is in: a number the kernel gives to no other namespace while it runs.
///
/// # Errors
/// The kernel is older than 5.14, or out of descriptors.
pub fn current_cookie() -> io::Result<u64> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    cookie_of(&socket)
}

/// The cookie of the namespace a socket lives in.
///
/// # Errors
/// The kernel is older than 5.14.
pub fn cookie_of(socket: &impl AsRawFd) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `cookie`, which has that many.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Opens a namespace's file. Nothing else is opened, whoever named it: a FIFO would wait, a device may do something.
///
/// # Errors
/// There is none, or (`EINVAL`) it is something else.
pub fn open(path: &Path) -> io::Result<File> {
    let found = nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    if fstatfs(&found)?.filesystem_type() != NSFS_MAGIC {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

/// Runs `work` inside the namespace that `namespace` refers to, and comes back.
///
/// # Errors
/// The namespace cannot be entered. If the way back is barred the process ends: a thread in the wrong namespace would
/// judge packets by the wrong sockets.
pub fn inside<T>(namespace: &OwnedFd, work: impl FnOnce() -> T) -> io::Result<T> {
    // `thread-self`, not `self`: namespaces belong to threads.
    let home: OwnedFd = std::fs::File::open("/proc/thread-self/ns/net")?.into();
    setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
    let result = work();
    if let Err(error) = setns(home.as_fd(), CloneFlags::CLONE_NEWNET) {
        tracing::error!("cannot return to the daemon's network namespace: {error}");
        std::process::abort();
    }
    Ok(result)
}
