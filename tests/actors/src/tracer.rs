//! What a debugger does.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use nix::sys::ptrace;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

/// Begins to trace a process, which goes on running.
///
/// # Errors
/// The kernel refused.
pub fn seize(process: Pid) -> Result<()> {
    ptrace::seize(process, ptrace::Options::empty()).context("PTRACE_SEIZE")
}

/// Ceases to trace a process, which goes on running.
///
/// # Errors
/// It is not traced, or the kernel refused.
pub fn detach(process: Pid) -> Result<()> {
    // Only from one that is stopped.
    ptrace::interrupt(process).context("PTRACE_INTERRUPT")?;
    waitpid(process, None).context("waitpid")?;
    ptrace::detach(process, None).context("PTRACE_DETACH")
}

/// Writes to the code of a process, where a line of its maps ends with `place`. What is written is what was there, so it
/// goes on as before; but the page is now its own and no longer the file's.
///
/// # Errors
/// The kernel refused.
pub fn patch(pid: &str, place: &str) -> Result<()> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let code = maps.lines().find(|line| line.contains(" r-xp ") && line.ends_with(place)).context("no code")?;
    let (start, _) = code.split_once('-').context("maps")?;
    let address = u64::from_str_radix(start, 16)?;
    let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
    let mut byte = [0];
    memory.read_exact_at(&mut byte, address).context("reading its code")?;
    memory.write_all_at(&byte, address).context("writing to its code")
}
