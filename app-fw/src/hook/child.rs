//! Programs that are run to their end, or to the end of our patience.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Longer than iptables waits for its lock.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// What a program left.
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output, invalid UTF-8 replaced.
    pub output: String,
    /// Its standard error likewise.
    pub complaint: String,
}

/// Runs a program with `input` as its standard input.
///
/// # Errors
/// It could not be started (`NotFound`: there is none), or (`TimedOut`) was killed because it did not end.
pub fn run(program: &OsStr, arguments: &[&str], input: &str) -> io::Result<Ended> {
    // A file, not a pipe: nobody has to feed it while its output is read.
    let mut script = File::from(memfd_create("app-fw", MFdFlags::MFD_CLOEXEC)?);
    script.write_all(input.as_bytes())?;
    script.rewind()?;
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").stdin(script).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Ctrl-C is the daemon's: it has rules to take away, for which it needs these programs.
    command.process_group(0);
    let mut child = command.spawn()?;
    let result = listen(&mut child, Instant::now() + PATIENCE);
    if result.is_err() {
        // It cannot have been waited for, so its number is its own.
        let _ = child.kill();
        let _ = child.wait();
    }
    result
}

fn listen(child: &mut Child, deadline: Instant) -> io::Result<Ended> {
    let missing = || io::Error::other("a pipe is missing");
    let output: OwnedFd = child.stdout.take().ok_or_else(missing)?.into();
    let complaint: OwnedFd = child.stderr.take().ok_or_else(missing)?.into();
    let mut open = [Some(File::from(output)), Some(File::from(complaint))];
    let mut read = [Vec::new(), Vec::new()];
    while open.iter().any(Option::is_some) {
        let waiting: Vec<usize> = (0..open.len()).filter(|index| open[*index].is_some()).collect();
        let mut polled: Vec<PollFd<'_>> =
            open.iter().flatten().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)).collect();
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match poll(&mut polled, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = polled.iter().map(|one| one.any().unwrap_or(false)).collect();
        for (index, _) in waiting.into_iter().zip(ready).filter(|(_, ready)| *ready) {
            let mut buffer = [0; 16_384];
            let length = open[index].as_mut().map_or(Ok(0), |pipe| pipe.read(&mut buffer))?;
            read[index].extend_from_slice(&buffer[..length]);
            if length == 0 {
                open[index] = None;
            }
        }
    }
    // Whoever has closed both is about to end.
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(Duration::from_millis(1));
    };
    let [output, complaint] = read.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok(Ended { status, output, complaint })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_output_and_complaints_come_through_however_long() {
        let long = "x".repeat(1 << 20);
        let ended = run("sh".as_ref(), &["-c", "tee /dev/stderr; exit 3"], &long).unwrap();
        assert_eq!((ended.status.code(), ended.output.len(), ended.complaint.len()), (Some(3), 1 << 20, 1 << 20));
        assert_eq!(run("/nonexistent/iptables".as_ref(), &[], "").err().unwrap().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn one_that_hangs_is_killed() {
        let mut child =
            Command::new("sleep").arg("1000").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let error = listen(&mut child, Instant::now() + Duration::from_millis(20)).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
