//! Children whose process id the parent chooses.

use std::io;
use std::mem;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::libc::{self, c_long, pid_t};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// Runs a program to its end in a process with the given id, or with any; returns the id. None: that id is taken.
///
/// # Errors
/// It could not be started or failed.
pub fn run(pid: Option<Pid>, argv: &[&str]) -> Result<Option<Pid>> {
    let (program, arguments) = argv.split_first().context("no program")?;
    let wanted = pid.map_or(0, Pid::as_raw);
    // SAFETY: this structure of numbers may be all zero.
    let mut how: libc::clone_args = unsafe { mem::zeroed() };
    how.exit_signal = libc::SIGCHLD as u64;
    if pid.is_some() {
        how.set_tid = (&raw const wanted) as u64;
        how.set_tid_size = 1;
    }
    // SAFETY: without flags this is fork, and the actor has one thread, so the child inherits no lock held by another.
    let child = unsafe { libc::syscall(libc::SYS_clone3, &raw const how, size_of::<libc::clone_args>()) };
    match child {
        0 => {
            let error = Command::new(program).args(arguments).stdin(Stdio::null()).exec();
            eprintln!("{program}: {error}");
            // SAFETY: ends the process; what the parent set up must not run twice.
            unsafe { libc::_exit(1) }
        }
        -1 => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EEXIST) => Ok(None),
            error => Err(error).context("clone3"),
        },
        child => finished(child),
    }
}

fn finished(child: c_long) -> Result<Option<Pid>> {
    let child = Pid::from_raw(pid_t::try_from(child)?);
    match waitpid(child, None).context("waitpid")? {
        WaitStatus::Exited(_, 0) => Ok(Some(child)),
        status => bail!("the child ended so: {status:?}"),
    }
}
