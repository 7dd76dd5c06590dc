//! Ways for a file to hold something else without a sign, and to keep its reader waiting.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, ensure};
use nix::libc::{self, c_int, c_long, c_void};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::LENGTH;

fn done(result: c_int, what: &'static str) -> Result<()> {
    if result < 0 { Err(io::Error::last_os_error()).context(what) } else { Ok(()) }
}

/// `struct move_extent` of fs/ext4/ext4.h; blocks.
#[repr(C)]
struct MoveExtent {
    reserved: u32,
    donor: u32,
    original_start: u64,
    donor_start: u64,
    length: u64,
    moved: u64,
}

/// EXT4_IOC_MOVE_EXT: `file` and `donor` change the place of one block. What the donor has then reads as zeros.
///
/// # Errors
/// The kernel refused.
pub fn move_extent(file: &Path, donor: &Path, block: u64) -> Result<()> {
    const EXT4_IOC_MOVE_EXT: libc::Ioctl = 0xc028_660f;
    let open =
        |path: &Path| File::options().read(true).write(true).open(path).with_context(|| path.display().to_string());
    let (file, donor) = (open(file)?, open(donor)?);
    // Pages that are to be written back cannot be moved.
    file.sync_all()?;
    donor.sync_all()?;
    let mut what = MoveExtent {
        reserved: 0,
        donor: donor.as_raw_fd().unsigned_abs(),
        original_start: block,
        donor_start: block,
        length: 1,
        moved: 0,
    };
    // SAFETY: the request reads and writes one such structure, which lives.
    done(unsafe { libc::ioctl(file.as_raw_fd(), EXT4_IOC_MOVE_EXT, &raw mut what) }, "EXT4_IOC_MOVE_EXT")?;
    ensure!(what.moved == 1, "nothing was moved");
    // SAFETY: takes numbers only.
    unsafe { libc::posix_fadvise(donor.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    Ok(())
}

/// userfaultfd: ioctl_userfaultfd(2).
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}
#[repr(C)]
struct Register {
    start: u64,
    length: u64,
    mode: u64,
    ioctls: u64,
}
#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    length: u64,
    mode: u64,
    copied: i64,
}
const UFFDIO_API: libc::Ioctl = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00;
const UFFDIO_COPY: libc::Ioctl = 0xc028_aa03;
const UFFD_API: u64 = 0xaa;
const MISSING: u64 = 1;

/// A page of a file that the kernel will write to by and by, though nobody has the file open or mapped any more.
#[derive(Debug)]
pub struct Pinned {
    faults: OwnedFd,
    source: usize,
    writer: JoinHandle<c_long>,
}

/// Has the kernel begin to write to the page at `offset` of a file, and wait for what is to be written.
///
/// # Errors
/// The kernel refused.
pub fn pin(path: &Path, offset: u64) -> Result<Pinned> {
    let file = File::options().read(true).write(true).open(path)?;
    // SAFETY: a descriptor that nobody else owns.
    let faults = unsafe {
        let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) as RawFd;
        done(fd, "userfaultfd")?;
        OwnedFd::from_raw_fd(fd)
    };
    let both = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: new mappings, at no chosen place.
    let (page, source) = unsafe {
        let page = mmap(ptr::null_mut(), LENGTH, both, MapFlags::SHARED, &file, offset).context("mmap")?;
        (page as usize, mmap_anonymous(ptr::null_mut(), LENGTH, both, MapFlags::PRIVATE).context("mmap")? as usize)
    };
    let mut api = Api { api: UFFD_API, features: 0, ioctls: 0 };
    let mut register = Register { start: source as u64, length: LENGTH as u64, mode: MISSING, ioctls: 0 };
    // SAFETY: each request reads and writes one such structure, which lives; nothing in Rust lies in that page.
    unsafe {
        done(libc::ioctl(faults.as_raw_fd(), UFFDIO_API, &raw mut api), "UFFDIO_API")?;
        done(libc::ioctl(faults.as_raw_fd(), UFFDIO_REGISTER, &raw mut register), "UFFDIO_REGISTER")?;
    }
    let writer = thread::spawn(move || {
        let part = |start: usize| libc::iovec { iov_base: start as *mut c_void, iov_len: LENGTH };
        let (from, to) = (part(source), part(page));
        // SAFETY: from one mapping of this process to another; that either may be gone is for the kernel to tell.
        unsafe { libc::process_vm_writev(libc::getpid(), &raw const from, 1, &raw const to, 1, 0) as c_long }
    });
    // It has come as far as the page it reads from: the other one is pinned.
    let mut message = [0_u8; 32];
    rustix::io::read(&faults, &mut message).context("no fault")?;
    // SAFETY: nobody in this process looks at that page.
    unsafe { munmap(page as *mut c_void, LENGTH) }.context("munmap")?;
    Ok(Pinned { faults, source, writer })
}

impl Pinned {
    /// Lets the kernel write; the page is full of `V` then.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn write(self) -> Result<()> {
        let page = vec![b'V'; LENGTH];
        let mut copy =
            Copy { to: self.source as u64, from: page.as_ptr() as u64, length: LENGTH as u64, mode: 0, copied: 0 };
        // SAFETY: the request reads and writes one such structure and reads the page, which live.
        done(unsafe { libc::ioctl(self.faults.as_raw_fd(), UFFDIO_COPY, &raw mut copy) }, "UFFDIO_COPY")?;
        let written = self.writer.join().ok().context("the writer panicked")?;
        ensure!(written == LENGTH as c_long, "{written} bytes were written");
        Ok(())
    }
}

/// Maps a file executable and holds a write lease on it: whoever else opens it waits.
///
/// # Errors
/// The kernel refused.
pub fn lease(path: &Path) -> Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    // SAFETY: sets a signal to be ignored, for which there is no handler, and takes numbers.
    unsafe {
        libc::signal(libc::SIGIO, libc::SIG_IGN);
        done(libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK), "F_SETLEASE")?;
    }
    let protection = ProtFlags::READ | ProtFlags::EXEC;
    // SAFETY: a new mapping, at no chosen place, that nobody looks at.
    unsafe { mmap(ptr::null_mut(), LENGTH, protection, MapFlags::PRIVATE, &file, 0) }.context("mmap")?;
    // Until the process ends.
    mem::forget(file);
    Ok(())
}
