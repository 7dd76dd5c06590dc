//! Child processes that never outlive the run, and waits that end on an event, a deadline or a signal.
//!
//! Signals are blocked and read from a descriptor, so that an interrupted run unwinds like a failed one: every `Drop` on
//! the way stops a process or removes a namespace. Children are additionally tied to this process by the kernel
//! (`PR_SET_PDEATHSIG`), which covers the run's own death by SIGKILL.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getppid};

/// The run was asked to end by a signal.
#[derive(Debug, Clone, Copy)]
pub struct Interrupted(pub Signal);

impl std::fmt::Display for Interrupted {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "ended by {}", self.0)
    }
}

impl std::error::Error for Interrupted {}

/// Why a wait ended.
#[derive(Debug, PartialEq, Eq)]
enum Wake {
    Readable,
    ChildChanged,
    TimedOut,
}

/// Owns the run's signals. There is one, made by the main thread before any other thread or process.
#[derive(Debug)]
pub struct Supervisor {
    signals: SignalFd,
}

impl Supervisor {
    /// Blocks the signals that end a run, and SIGCHLD, in this thread and those it will start.
    ///
    /// # Errors
    /// The kernel refuses (out of descriptors).
    pub fn new() -> Result<Self> {
        let mut watched = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD] {
            watched.add(signal);
        }
        watched.thread_block().context("cannot block signals")?;
        let signals = SignalFd::with_flags(&watched, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("cannot make a signal descriptor")?;
        Ok(Self { signals })
    }

    /// Waits for `watched` to be readable or at its end.
    ///
    /// # Errors
    /// The deadline passed, or [`Interrupted`].
    pub fn readable(&self, watched: BorrowedFd<'_>, deadline: Instant) -> Result<()> {
        loop {
            match self.wait(Some(watched), deadline)? {
                Wake::Readable => return Ok(()),
                Wake::ChildChanged => {}
                Wake::TimedOut => bail!("nothing came in time"),
            }
        }
    }

    /// Waits for `watched` to be readable while `process` lives.
    ///
    /// # Errors
    /// The process ended, the deadline passed, or [`Interrupted`].
    pub fn readable_or_ended(&self, watched: BorrowedFd<'_>, process: &mut Ward, deadline: Instant) -> Result<()> {
        loop {
            process.assert_alive()?;
            match self.wait(Some(watched), deadline)? {
                Wake::Readable => return Ok(()),
                Wake::ChildChanged => {}
                Wake::TimedOut => bail!("{} is not ready in time", process.name),
            }
        }
    }

    /// Lets time pass.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub fn pause(&self, duration: Duration) -> Result<()> {
        let deadline = Instant::now() + duration;
        while self.wait(None, deadline)? != Wake::TimedOut {}
        Ok(())
    }

    fn wait(&self, watched: Option<BorrowedFd<'_>>, deadline: Instant) -> Result<Wake> {
        let mut polled = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        polled.extend(watched.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, or the last millisecond would be spent spinning.
        let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled, timeout) {
            Ok(0) => return Ok(Wake::TimedOut),
            Err(Errno::EINTR) => return Ok(Wake::ChildChanged),
            outcome => outcome.context("cannot poll")?,
        };
        let ready = polled.get(1).is_some_and(|fd| fd.any() == Some(true));
        self.take_signals()?;
        Ok(if ready { Wake::Readable } else { Wake::ChildChanged })
    }

    /// Reads all pending signals.
    ///
    /// # Errors
    /// [`Interrupted`] when one of them asks the run to end.
    pub fn take_signals(&self) -> Result<()> {
        while let Some(info) = self.signals.read_signal().context("cannot read signals")? {
            let signal = Signal::try_from(info.ssi_signo as i32).context("an unknown signal")?;
            if signal != Signal::SIGCHLD {
                return Err(Interrupted(signal).into());
            }
        }
        Ok(())
    }
}

/// A command that will run `program` in the network namespace behind `netns`, by way of [`exec_in`].
///
/// # Errors
/// This program's own path cannot be found.
pub fn command_in(netns: &Path, program: impl AsRef<OsStr>) -> Result<Command> {
    let mut command = Command::new(own_path()?);
    command.arg("exec-in").arg(netns).arg("--").arg(program);
    // A terminal's Ctrl-C must reach only the run, which then stops the others in order.
    command.process_group(0).stdin(Stdio::null());
    Ok(command)
}

/// The path of the running program, which it starts again in other roles.
///
/// # Errors
/// /proc is not there.
pub fn own_path() -> Result<std::path::PathBuf> {
    std::env::current_exe().context("cannot find this program's own path")
}

/// Becomes `command` in the network namespace behind `netns`: the child's side of [`command_in`].
///
/// # Errors
/// The namespace or the command is not there; on success it does not return.
pub fn exec_in(netns: &Path, command: &[OsString]) -> Result<()> {
    let (program, arguments) = command.split_first().context("no command was given")?;
    prctl::set_pdeathsig(Signal::SIGKILL).context("cannot tie this process to its parent")?;
    // The parent may have died before the tie was made.
    if getppid() == Pid::from_raw(1) {
        bail!("the parent is gone");
    }
    let namespace = std::fs::File::open(netns).with_context(|| format!("cannot open {}", netns.display()))?;
    setns(&namespace, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {}", netns.display()))?;
    SigSet::all().thread_unblock().context("cannot unblock signals")?;
    Err(Command::new(program).args(arguments).exec())
        .with_context(|| format!("cannot start {}", program.to_string_lossy()))
}

/// Runs a short command to its end and returns its standard output.
///
/// # Errors
/// It cannot be started or exits non-zero; the message carries what it said on standard error.
pub fn output_of(command: &mut Command) -> Result<String> {
    let told = format!("{command:?}");
    let output = command.output().with_context(|| format!("cannot start {told}"))?;
    if !output.status.success() {
        bail!("{told}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A child that is killed and reaped when it goes out of scope.
#[derive(Debug)]
pub struct Ward {
    name: String,
    child: Child,
    unread: Vec<u8>,
}

impl Ward {
    /// Starts `command`; `name` is for messages.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(name: &str, command: &mut Command) -> Result<Self> {
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, unread: Vec::new() })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of its (piped) standard output, without the line end.
    ///
    /// # Errors
    /// Standard output ended, the deadline passed, or [`Interrupted`].
    pub fn line(&mut self, supervisor: &Supervisor, deadline: Instant) -> Result<String> {
        loop {
            if let Some(end) = self.unread.iter().position(|&byte| byte == b'\n') {
                let rest = self.unread.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.unread, rest);
                line.pop();
                return String::from_utf8(line).with_context(|| format!("{} said something unreadable", self.name));
            }
            let name = &self.name;
            let stdout = self.child.stdout.as_mut().with_context(|| format!("{name} has no standard output here"))?;
            supervisor.readable(stdout.as_fd(), deadline).with_context(|| format!("waiting for {name}"))?;
            let mut chunk = [0; 4096];
            let count = stdout.read(&mut chunk).with_context(|| format!("cannot read from {name}"))?;
            if count == 0 {
                let status = self.ended(supervisor, deadline)?;
                bail!("{} ended early: {status}", self.name);
            }
            self.unread.extend_from_slice(&chunk[..count]);
        }
    }

    /// All of its (piped) standard output, from here to the end.
    ///
    /// # Errors
    /// The deadline passed, or [`Interrupted`].
    pub fn rest(&mut self, supervisor: &Supervisor, deadline: Instant) -> Result<String> {
        let mut all = std::mem::take(&mut self.unread);
        let name = &self.name;
        let stdout = self.child.stdout.as_mut().with_context(|| format!("{name} has no standard output here"))?;
        loop {
            supervisor.readable(stdout.as_fd(), deadline).with_context(|| format!("waiting for {name}"))?;
            let mut chunk = [0; 4096];
            match stdout.read(&mut chunk).with_context(|| format!("cannot read from {name}"))? {
                0 => return String::from_utf8(all).with_context(|| format!("{name} said something unreadable")),
                count => all.extend_from_slice(&chunk[..count]),
            }
        }
    }

    /// Writes a line to its (piped) standard input.
    ///
    /// # Errors
    /// It is gone.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("no standard input here")?;
        writeln!(stdin, "{line}").with_context(|| format!("cannot write to {}", self.name))
    }

    /// Fails if the process has ended.
    ///
    /// # Errors
    /// It has ended.
    pub fn assert_alive(&mut self) -> Result<()> {
        match self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))? {
            None => Ok(()),
            Some(status) => bail!("{} ended: {status}", self.name),
        }
    }

    /// Waits for the process to end.
    ///
    /// # Errors
    /// The deadline passed, or [`Interrupted`].
    pub fn ended(&mut self, supervisor: &Supervisor, deadline: Instant) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))? {
                return Ok(status);
            }
            if supervisor.wait(None, deadline)? == Wake::TimedOut {
                return Err(anyhow!("{} did not end in time", self.name));
            }
        }
    }

    /// Sends SIGTERM and waits up to `grace`; past that (or when interrupted) the process is killed.
    ///
    /// # Errors
    /// It had to be killed: a daemon that does not end when told to is a fault worth knowing.
    pub fn terminate(mut self, supervisor: &Supervisor, grace: Duration) -> Result<ExitStatus> {
        // Cannot hit another process: the child is not reaped yet, so its id is still its own.
        if self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))?.is_none() {
            self.signal(Signal::SIGTERM).with_context(|| format!("cannot end {}", self.name))?;
        }
        self.ended(supervisor, Instant::now() + grace)
    }

    /// To it and what it has started: those of [`command_in`] lead a process group. Only while it is not reaped, or the
    /// number might be another's.
    fn signal(&self, signal: Signal) -> nix::Result<()> {
        let pid = Pid::from_raw(self.child.id() as i32);
        match killpg(pid, signal) {
            Err(Errno::ESRCH) => kill(pid, signal),
            outcome => outcome,
        }
    }
}

impl Drop for Ward {
    fn drop(&mut self) {
        // Once it is reaped, its number may be another's.
        if let Ok(None) = self.child.try_wait() {
            let _ = self.signal(Signal::SIGKILL);
        }
        // Fails only when it has been reaped already; either way nothing is left.
        let _ = self.child.wait();
    }
}
