//! Ways for new code to come into a process, and fork. None of them is safe in Rust's sense: this file is the door.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::ptr;

use anyhow::{Context, Result, bail};
use nix::unistd::ForkResult;
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, memfd_create, openat};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect};

pub use libloading::Library;

/// One page; what is mapped is never looked at, so its size does not matter.
const LENGTH: usize = 4096;

/// dlopen.
///
/// # Errors
/// The loader refused.
pub fn load(path: &Path) -> Result<Library> {
    // SAFETY: tests load copies of libgcc_s, whose initialisers this process has run already.
    unsafe { Library::new(path) }.with_context(|| format!("dlopen {}", path.display()))
}

/// Maps the head of a file readable and executable, for good.
///
/// # Errors
/// The file cannot be mapped.
pub fn map_executable(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    // SAFETY: a new mapping at an address of the kernel's choice; nothing ever points into it.
    unsafe { mmap(ptr::null_mut(), LENGTH, ProtFlags::READ | ProtFlags::EXEC, MapFlags::PRIVATE, file, 0) }
        .context("mmap")?;
    Ok(())
}

/// Makes a page of anonymous memory executable, for good, the way a JIT does.
///
/// # Errors
/// The kernel refused.
pub fn anonymous_executable() -> Result<()> {
    // SAFETY: a new mapping at an address of the kernel's choice; nothing ever points into it.
    unsafe {
        let page = mmap_anonymous(ptr::null_mut(), LENGTH, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
            .context("mmap")?;
        mprotect(page, LENGTH, MprotectFlags::READ | MprotectFlags::EXEC).context("mprotect")
    }
}

/// fork: the child's pid in the parent, nothing in the child.
///
/// # Errors
/// Too many processes.
pub fn fork() -> Result<Option<u32>> {
    // SAFETY: the actor has one thread, so the child inherits no lock held by another.
    match unsafe { nix::unistd::fork() }.context("fork")? {
        ForkResult::Parent { child } => Ok(Some(child.as_raw().unsigned_abs())),
        ForkResult::Child => Ok(None),
    }
}

/// Becomes this same program, run from a copy that no path leads to: `kind` is `memfd` or `tmpfile`. Returns only if that
/// failed.
pub fn become_unlinked(kind: &str, arguments: &[String]) -> anyhow::Error {
    match unlinked_copy(kind) {
        Ok(copy) => Command::new(format!("/proc/self/fd/{}", copy.as_raw_fd())).args(arguments).exec().into(),
        Err(error) => error,
    }
}

fn unlinked_copy(kind: &str) -> Result<File> {
    let file: OwnedFd = match kind {
        "memfd" => memfd_create("actor", MemfdFlags::CLOEXEC)?,
        "tmpfile" => {
            let how = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            openat(CWD, std::env::temp_dir(), how, Mode::RWXU).context("O_TMPFILE")?
        }
        _ => bail!("unknown kind of file {kind}"),
    };
    let mut file = File::from(file);
    io::copy(&mut File::open("/proc/self/exe")?, &mut file)?;
    // A file that is open for writing cannot be executed.
    Ok(File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?)
}
