//! Files that keep their reader waiting.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr;

use anyhow::{Context, Result};
use nix::libc::{self, c_int};
use rustix::mm::{MapFlags, ProtFlags, mmap};

use super::LENGTH;

fn done(result: c_int, what: &'static str) -> Result<()> {
    if result < 0 { Err(io::Error::last_os_error()).context(what) } else { Ok(()) }
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
