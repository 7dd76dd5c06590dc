//! SIGINT, SIGTERM and SIGHUP become an error of whatever is waited for, so that every guard on the way out cleans up.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// From now on these signals do not end the program: waits of the harness fail instead, and [`check`] does.
///
/// # Errors
/// The handlers could not be set.
pub fn catch() -> Result<()> {
    let (read, write) = UnixStream::pair().context("socketpair")?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::low_level::pipe::register(signal, write.try_clone()?).context("catching signals")?;
    }
    harness::process::interrupt_on(OwnedFd::from(read));
    Ok(())
}

/// An error if one of the signals came.
///
/// # Errors
/// That one.
pub fn check() -> Result<()> {
    if harness::process::interrupted() {
        bail!("interrupted by a signal");
    }
    Ok(())
}
