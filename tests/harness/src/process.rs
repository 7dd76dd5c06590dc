//! Processes with a bound on their life: every wait ends, and nothing started here survives its guard.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};

/// How long a program may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(5);

static INTERRUPT: OnceLock<OwnedFd> = OnceLock::new();

/// From now on every wait of this module also ends, with an error, once `fd` becomes readable.
///
/// The demo hands in the pipe its signal handlers write to, so that SIGINT unwinds through the guards and cleans up.
/// Only the first call counts.
pub fn interrupt_on(fd: OwnedFd) {
    let _ = INTERRUPT.set(fd);
}

/// Whether the descriptor given to [`interrupt_on`] has become readable.
pub fn interrupted() -> bool {
    INTERRUPT.get().is_some_and(|fd| readable(fd.as_fd()))
}

fn readable(fd: BorrowedFd<'_>) -> bool {
    wait_readable(&[fd], Instant::now()).is_ok_and(|ready| ready[0])
}

/// Waits until one of `fds` is readable (or hung up) or `deadline` passes; tells which ones are.
pub(crate) fn wait_readable(fds: &[BorrowedFd<'_>], deadline: Instant) -> Result<Vec<bool>> {
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut polled, Some(&timeout)) {
            Ok(_) => return Ok(polled.iter().map(|p| !p.revents().is_empty()).collect()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
    }
}

/// What a finished command left behind.
#[derive(Debug)]
pub struct Captured {
    /// The command as it would be typed.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output, invalid UTF-8 replaced.
    pub stdout: String,
    /// Its standard error, invalid UTF-8 replaced.
    pub stderr: String,
}

impl Captured {
    /// Whether the exit code was 0.
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// The exit code, or 128 + the signal that ended the command, as a shell gives it.
    pub fn code(&self) -> i32 {
        self.status.code().or_else(|| self.status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
    }

    /// Standard output, or an error with everything that was said if the exit code was not 0.
    ///
    /// # Errors
    /// The command failed.
    pub fn ok(self) -> Result<String> {
        if self.success() { Ok(self.stdout) } else { Err(anyhow!("{self}")) }
    }
}

impl std::fmt::Display for Captured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}`: {}", self.command, self.status)?;
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !text.trim().is_empty() {
                write!(f, "\n--- its {name}:\n{}", text.trim_end())?;
            }
        }
        Ok(())
    }
}

/// The command as it would be typed, for messages.
pub fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// A command line that runs `program` with the network namespace behind `netns` (a path such as /run/netns/x), killed
/// when the thread that starts it ends.
///
/// `nsenter` and `setpriv` both exec, so the child's pid is the program's own. The death signal keeps a killed test
/// run from leaving daemons behind.
pub fn inside(netns: &std::path::Path, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", netns.display())).args(["setpriv", "--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Runs `command` to its end with its output captured and no input.
///
/// # Errors
/// It could not be started, or was still running after `limit` (it is killed then).
pub fn run(command: &mut Command, limit: Duration) -> Result<Captured> {
    // Files, not pipes: no reader threads, and a background child that keeps the descriptor open cannot hold us up.
    let (mut out, mut err) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(err.try_clone()?);
    let mut running = Running::start(command)?;
    let status = running.wait(limit);
    let (stdout, stderr) = (read_back(&mut out)?, read_back(&mut err)?);
    match status {
        Ok(status) => Ok(Captured { command: running.command.clone(), status, stdout, stderr }),
        Err(error) if stdout.is_empty() && stderr.is_empty() => Err(error),
        Err(error) => Err(anyhow!("{error:#}; it had said:\n{}{}", stdout, stderr.trim_end())),
    }
}

fn read_back(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A child process in a process group of its own. Dropping it kills the group.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pidfd: OwnedFd,
    command: String,
    ended: Option<ExitStatus>,
}

impl Running {
    /// Starts `command` with whatever standard streams it was given.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let shown = shown(command);
        let mut child = command.process_group(0).spawn().with_context(|| format!("starting `{shown}`"))?;
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { child, pidfd, command: shown, ended: None }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error).context("pidfd_open")
            }
        }
    }

    /// The process id, in the pid namespace of the caller.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The command as it would be typed.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// Readable once the process has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The writing end of its standard input, if that was a pipe and was not taken before.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// The reading end of its standard output, if that was a pipe and was not taken before.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// The kernel refused to say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() && readable(self.pidfd.as_fd()) {
            self.reap()?;
        }
        Ok(self.ended)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It still runs after `limit`, or the wait was interrupted ([`interrupt_on`]). It is killed in both cases.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        let mut fds = vec![self.pidfd.as_fd()];
        fds.extend(INTERRUPT.get().map(AsFd::as_fd));
        let ready = wait_readable(&fds, Instant::now() + limit)?;
        if ready[0] {
            return self.reap();
        }
        self.kill()?;
        if ready.get(1) == Some(&true) {
            bail!("interrupted while `{}` ran", self.command);
        }
        bail!("`{}` did not end within {limit:?}", self.command)
    }

    /// Sends a signal to the process itself, not to its group.
    ///
    /// # Errors
    /// It has ended already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.ended.is_some() {
            bail!("`{}` has ended", self.command);
        }
        // Not reaped yet (see `reap`), so the pid cannot belong to anybody else.
        kill_process(Pid::from_child(&self.child), signal).with_context(|| format!("signalling `{}`", self.command))
    }

    /// SIGTERM, then SIGKILL if that does not help in time.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        self.signal(Signal::TERM)?;
        // Not `wait`: an interrupt must not cut a clean-up short.
        wait_readable(&[self.pidfd.as_fd()], Instant::now() + GRACE)?;
        match self.ended()? {
            Some(status) => Ok(status),
            None => self.kill(),
        }
    }

    /// SIGKILL to the whole group, and waits.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        match self.ended {
            Some(status) => Ok(status),
            None => self.reap(),
        }
    }

    /// Takes the group down and collects the exit status. The group is killed *before* the leader is reaped: until
    /// then its number cannot be given to another.
    fn reap(&mut self) -> Result<ExitStatus> {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let status = self.child.wait().with_context(|| format!("waiting for `{}`", self.command))?;
        self.ended = Some(status);
        Ok(status)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nobody can be told here; the pid is ours, so the only failure is a kernel that refuses wait().
        let _ = self.kill();
    }
}
