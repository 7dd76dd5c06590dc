//! The socket file: whole from its first moment, and never two daemons' at once.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::unistd::Gid;

use crate::store::{LockError, LockFile};

/// The group whose members may ask for the rules and the daemon's state.
pub const GROUP: &str = "app-fw";

/// Owner and group may connect. Connecting takes write permission (unix(7)).
const MODE: u32 = 0o660;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Bytes of a socket's path without the final zero: `sockaddr_un.sun_path`, unix(7).
const LONGEST_PATH: usize = 107;

/// Why the control socket could not be opened or served.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The directory of the socket does not exist and could not be made.
    #[error("cannot make the directory {}: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Somebody listens there already.
    #[error(
        "another app-fw{} listens on {}: stop it, or give this one its own socket with --socket",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(),
        path.display()
    )]
    Taken {
        /// The socket.
        path: PathBuf,
        /// Who listens, if it could be told.
        pid: Option<u32>,
    },
    /// Something else has the name.
    #[error("{} exists and is no socket: remove it, or choose another path with --socket", .0.display())]
    NotASocket(PathBuf),
    /// The kernel has no room for the path.
    #[error("the socket path {} is too long: it and its directory must fit into {LONGEST_PATH} bytes", .0.display())]
    TooLong(PathBuf),
    /// Anything else the system refused.
    #[error("cannot listen on {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// The name of a bound socket. Dropping it removes the file, if it is still the one that was bound.
#[derive(Debug)]
pub(super) struct Name {
    path: PathBuf,
    dev: u64,
    ino: u64,
    _lock: LockFile,
}

impl Name {
    pub(super) fn error(&self, source: io::Error) -> ControlError {
        ControlError::Io { path: self.path.clone(), source }
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        // The lock is still held: no other daemon can bind here between the look and the removal.
        let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|now| now.dev() == self.dev && now.ino() == self.ino);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the control socket");
        }
    }
}

/// A file that is removed unless it has been renamed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // After the rename there is nothing under this name.
        let _ = fs::remove_file(&self.0);
    }
}

/// Binds and listens at `path`.
pub(super) fn bind(path: &Path, group: Option<Gid>) -> Result<(UnixListener, Name), ControlError> {
    let io_error = |source| ControlError::Io { path: path.into(), source };
    // Removed again when the daemon may have changed its directory.
    let path = std::path::absolute(path).map_err(io_error)?;
    let io_error = |source| ControlError::Io { path: path.clone(), source };
    let directory = path.parent().ok_or_else(|| ControlError::NotASocket(path.clone()))?;
    make_directory(directory)?;
    let lock = LockFile::beside(&path).map_err(|error| match error {
        LockError::Taken(pid) => ControlError::Taken { path: path.clone(), pid },
        LockError::Io(source) => io_error(source),
    })?;
    check_vacant(&path)?;

    let temporary = Temporary(directory.join(temporary_name()));
    let listener = bind_privately(&temporary.0, group).map_err(|error| match error.raw_os_error() {
        Some(code) if code == Errno::ENAMETOOLONG as i32 => ControlError::TooLong(path.clone()),
        _ => io_error(error),
    })?;
    let bound = fs::symlink_metadata(&temporary.0).map_err(io_error)?;
    // Clients cannot connect to a path that does not fit, though it could be made by renaming.
    UnixAddr::new(&path).map_err(|_| ControlError::TooLong(path.clone()))?;
    fs::rename(&temporary.0, &path).map_err(io_error)?;
    let name = Name { path: path.clone(), dev: bound.dev(), ino: bound.ino(), _lock: lock };
    Ok((listener, name))
}

fn make_directory(directory: &Path) -> Result<(), ControlError> {
    if directory.is_dir() {
        return Ok(());
    }
    if let Some(parent) = directory.parent() {
        make_directory(parent)?;
    }
    match DirBuilder::new().mode(0o755).create(directory) {
        // The umask must not keep the group out.
        Ok(()) => fs::set_permissions(directory, Permissions::from_mode(0o755)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
    .map_err(|source| ControlError::Directory { path: directory.into(), source })
}

/// Nothing is at `path`, or a socket on which nobody listens.
fn check_vacant(path: &Path) -> Result<(), ControlError> {
    let io_error = |source| ControlError::Io { path: path.into(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(ControlError::NotASocket(path.into())),
        Ok(_) => {}
    }
    // Whoever holds it without our lock is no app-fw of this kind, but a listener all the same.
    let probe = new_socket().map_err(|errno| io_error(errno.into()))?;
    let address = UnixAddr::new(path).map_err(|_| ControlError::TooLong(path.into()))?;
    match socket::connect(probe.as_raw_fd(), &address) {
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(()),
        // EAGAIN: its queue of connections is full.
        Ok(()) | Err(Errno::EAGAIN) => Err(ControlError::Taken { path: path.into(), pid: None }),
        Err(errno) => Err(io_error(errno.into())),
    }
}

/// Shorter than most names, since the directory and it must fit into a socket address.
fn temporary_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(".{:x}-{:x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn new_socket() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)
}

/// Nobody can connect before `listen`, and by then owner and mode are right, whatever the umask was.
fn bind_privately(path: &Path, group: Option<Gid>) -> io::Result<UnixListener> {
    let socket = new_socket()?;
    let address = UnixAddr::new(path)?;
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    socket::bind(socket.as_raw_fd(), &address)?;
    // Without a group of our own, not the one that a set-group-id directory would give.
    let group = group.unwrap_or_else(nix::unistd::getegid);
    lchown(path, None, Some(group.as_raw()))?;
    fs::set_permissions(path, Permissions::from_mode(MODE))?;
    socket::listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(UnixListener::from(socket))
}
