//! Facts about files that std and nix do not tell.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};

/// `STATX_MNT_ID_UNIQUE` of linux/stat.h: a mount's number that is never given again.
const STATX_MNT_ID_UNIQUE: u32 = 0x4000;

/// What there is to know about the identity of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileFacts {
    /// Device, as in `st_dev`.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Last change of its content, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Last change of its content or inode, nanoseconds since 1970.
    pub ctime_ns: i64,
    /// Its mount. Unique while the machine runs, or 0 if the kernel (before 6.8) does not tell.
    pub mount: u64,
    /// It is a regular file.
    pub regular: bool,
}

/// Looks at an open file, which may be opened with `O_PATH`. Does not ask a file system that lives elsewhere: that
/// could take for ever.
///
/// # Errors
/// What statx(2) says.
pub fn facts(file: impl AsFd) -> io::Result<FileFacts> {
    // SAFETY: statx is a plain C structure; all zeros is a valid value.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is an empty C string, and the kernel writes one `struct statx` to `found`, which is one.
    let result = unsafe {
        libc::statx(
            file.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC,
            libc::STATX_BASIC_STATS | STATX_MNT_ID_UNIQUE,
            &raw mut found,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let nanoseconds =
        |time: libc::statx_timestamp| time.tv_sec.saturating_mul(1_000_000_000).saturating_add(i64::from(time.tv_nsec));
    Ok(FileFacts {
        dev: libc::makedev(found.stx_dev_major, found.stx_dev_minor),
        ino: found.stx_ino,
        size: found.stx_size,
        mtime_ns: nanoseconds(found.stx_mtime),
        ctime_ns: nanoseconds(found.stx_ctime),
        mount: if found.stx_mask & STATX_MNT_ID_UNIQUE != 0 { found.stx_mnt_id } else { 0 },
        regular: u32::from(found.stx_mode) & libc::S_IFMT == libc::S_IFREG,
    })
}

/// `FILEID_KERNFS` of the kernel's include/linux/exportfs.h.
const FILEID_KERNFS: libc::c_int = 0xfe;

/// `struct file_handle` of open_by_handle_at(2) with its bytes.
#[repr(C)]
struct Handle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    id: [u8; 8],
}

/// Finds what has an id on a file system like sysfs or cgroup, of which any file is open. Opened as a mere place.
///
/// # Errors
/// It is gone; or the kernel is older than 5.5.
pub fn open_kernfs(system: BorrowedFd<'_>, id: u64) -> io::Result<OwnedFd> {
    let mut handle = Handle { bytes: 8, kind: FILEID_KERNFS, id: id.to_ne_bytes() };
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: the kernel reads a `struct file_handle` and as many bytes behind it as that says, which `handle` has.
    let fd = unsafe { libc::syscall(libc::SYS_open_by_handle_at, system.as_raw_fd(), &raw mut handle, flags) }
        as libc::c_int;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just made, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether some open file description could write to the file, or some mapping. `None`: the file system does not tell.
///
/// The kernel grants a read lease only on files that nobody has open for writing; it is given back at once.
pub fn has_writers(file: BorrowedFd<'_>) -> Option<bool> {
    // SAFETY: the command takes an integer and touches no memory of this process.
    let set = |kind: libc::c_int| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
    if set(libc::F_RDLCK) == 0 {
        set(libc::F_UNLCK);
        return Some(false);
    }
    match io::Error::last_os_error().raw_os_error() {
        Some(libc::EAGAIN) => Some(true),
        _ => None,
    }
}

/// A page of a file, mapped for the kernel to show which file that is. Nobody reads it: who cuts the file short kills its
/// reader.
pub struct MappedPage {
    start: NonNull<libc::c_void>,
}

const PAGE: usize = 4096;

impl MappedPage {
    /// Maps the beginning of `file`, which is open for reading.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn new(file: BorrowedFd<'_>) -> io::Result<MappedPage> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of this process.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), PAGE, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
        match NonNull::new(start) {
            Some(start) if start.as_ptr() != libc::MAP_FAILED => Ok(MappedPage { start }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Its address.
    pub fn start(&self) -> u64 {
        self.start.as_ptr() as u64
    }
}

impl Drop for MappedPage {
    fn drop(&mut self) {
        // SAFETY: exactly what mmap returned, and nobody has a reference into it.
        unsafe { libc::munmap(self.start.as_ptr(), PAGE) };
    }
}

/// Looks at the file that an absolute path leads to, without links, if the kernel knows the way by heart, as it does to a file
/// that somebody has open. A file system that takes for ever to answer is not asked.
///
/// # Errors
/// What openat2(2) says.
pub fn find(path: &[u8]) -> io::Result<FileFacts> {
    let ways = ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::from_bits_retain(libc::RESOLVE_CACHED);
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ways);
    if path.first() != Some(&b'/') {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    facts(openat2(AT_FDCWD, path, how)?)
}

/// Ignores SIGIO, which tells the holder of a lease that somebody wants to write; its default action ends the process.
pub fn ignore_lease_signals() {
    // SAFETY: SIG_IGN is a valid disposition for SIGIO, and no handler of this process is replaced by it.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, OpenOptions};
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn facts_are_those_of_stat() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"abc").unwrap();
        let file = File::open(&path).unwrap();
        let (facts, stat) = (facts(&file).unwrap(), file.metadata().unwrap());
        assert_eq!((facts.dev, facts.ino, facts.size), (stat.dev(), stat.ino(), 3));
        assert_eq!(facts.ctime_ns, stat.ctime() * 1_000_000_000 + stat.ctime_nsec());
        assert!(facts.regular);
        assert!(!super::facts(File::open("/").unwrap()).unwrap().regular);
    }

    #[test]
    fn writers_are_noticed_also_when_they_only_map() {
        ignore_lease_signals();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"abc").unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!(has_writers(file.as_fd()), Some(false));
        let writer = OpenOptions::new().write(true).open(&path).unwrap();
        assert_eq!(has_writers(file.as_fd()), Some(true));
        drop(writer);
        assert_eq!(has_writers(file.as_fd()), Some(false));
    }
}
