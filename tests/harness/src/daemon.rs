//! A running `app-fw`.

use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::inotify;
use serde_json::Value;

use crate::LIMIT;
use crate::netns::Namespace;
use crate::process::{Running, wait_readable};

/// Where one daemon keeps its things.
#[derive(Debug, Clone)]
pub struct Files {
    /// `--db`
    pub database: PathBuf,
    /// `--socket`
    pub socket: PathBuf,
    /// `--log`: one JSON event per line.
    pub events: PathBuf,
    /// Its standard error.
    pub messages: PathBuf,
    /// For its `--pins`, if a test leaves it to the daemon to mount a bpffs.
    pub pins: PathBuf,
}

impl Files {
    /// The files of the daemon `name` in `folder`.
    pub fn named(folder: &Path, name: &str) -> Self {
        let file = |suffix: &str| folder.join(format!("{name}.{suffix}"));
        Self {
            database: file("db"),
            socket: file("sock"),
            events: file("events"),
            messages: file("stderr"),
            pins: file("pins"),
        }
    }
}

/// A running daemon. Dropping it stops it: SIGTERM, and SIGKILL if that does not help in time.
#[derive(Debug)]
pub struct Daemon {
    running: Running,
    files: Files,
}

impl Daemon {
    /// Starts `program` in a namespace and waits until it is ready: its control socket takes connections, which by its
    /// contract means that its queues are bound.
    ///
    /// # Errors
    /// It ended before it was ready (the error has what it said), or took longer than [`LIMIT`].
    pub fn start(namespace: &Namespace, program: &Path, files: Files, arguments: &[&str]) -> Result<Self> {
        // A socket left by a killed daemon must not be taken for the new one's.
        let before = identity(&files.socket);
        let folder = files.socket.parent().context("a socket without a folder")?;
        // The watch comes first, so that no change is missed.
        let changes = Watch::new(folder)?;
        let running = Running::start(
            namespace
                .command(program)
                .arg("--db")
                .arg(&files.database)
                .arg("--socket")
                .arg(&files.socket)
                .arg("--log")
                .arg(&files.events)
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(File::options().create(true).append(true).open(&files.messages)?),
        )?;
        let mut daemon = Self { running, files };
        daemon.wait_ready(&changes, before)?;
        Ok(daemon)
    }

    fn wait_ready(&mut self, changes: &Watch, before: Option<Identity>) -> Result<()> {
        wait_listening(&mut self.running, &self.files.socket, changes, before)
            .with_context(|| format!("starting app-fw\n{}", self.messages()))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Where it keeps its things.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        self.running.signal(signal)
    }

    /// SIGTERM, and waits; SIGKILL if it does not end in time (the status tells).
    ///
    /// # Errors
    /// The kernel refused.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.running.stop()
    }

    /// SIGKILL, and waits.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn kill9(&mut self) -> Result<ExitStatus> {
        self.running.kill()
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// It did not within [`LIMIT`]; it is killed then.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.running.wait(LIMIT)
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// The kernel refused to say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.running.ended()
    }

    /// What it said on standard error so far.
    pub fn messages(&self) -> String {
        fs::read_to_string(&self.files.messages).unwrap_or_default()
    }

    /// The events logged so far, oldest first; of all daemons that used this log, if it was restarted. A line not
    /// finished yet is left for the next call.
    ///
    /// # Errors
    /// A line is not JSON.
    pub fn events(&self) -> Result<Vec<Value>> {
        let text = match fs::read_to_string(&self.files.events) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("reading {}", self.files.events.display())),
        };
        text.split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .map(|line| serde_json::from_str(line).with_context(|| format!("an event that is not JSON: {line}")))
            .collect()
    }

    /// Waits for the first event, from the beginning of the log, that `wanted` accepts.
    ///
    /// # Errors
    /// None came within `limit`, or the daemon ended; the error lists the events there are.
    pub fn wait_event(&mut self, limit: Duration, wanted: impl FnMut(&Value) -> bool) -> Result<Value> {
        self.wait_event_from(0, limit, wanted)
    }

    /// As [`wait_event`](Self::wait_event), from the event with index `first` on (`events()?.len()` before the step).
    ///
    /// # Errors
    /// As there.
    pub fn wait_event_from(
        &mut self,
        first: usize,
        limit: Duration,
        mut wanted: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        let deadline = Instant::now() + limit;
        let folder = self.files.events.parent().context("a log without a folder")?;
        let changes = Watch::new(folder)?;
        loop {
            let ended = self.running.ended()?;
            let events = self.events()?;
            if let Some(event) = events.iter().skip(first).find(|event| wanted(event)) {
                return Ok(event.clone());
            }
            let why = match ended {
                Some(status) => format!("app-fw ended ({status})"),
                None if Instant::now() >= deadline => format!("{limit:?} passed"),
                None => {
                    wait_readable(&[self.running.pidfd(), changes.fd.as_fd()], deadline)?;
                    changes.drain();
                    continue;
                }
            };
            let seen: Vec<String> = events.iter().skip(first).map(Value::to_string).collect();
            return Err(anyhow!("{why} without the event; there were:\n{}", seen.join("\n")));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.running.stop();
        if std::thread::panicking() {
            eprintln!("--- app-fw said:\n{}", self.messages().trim_end());
            let events = fs::read_to_string(&self.files.events).unwrap_or_default();
            eprintln!("--- its events:\n{}", events.trim_end());
        }
    }
}

/// Waits until a program takes connections at `socket`, which was `before` when the program was started. `changes` watches
/// the folder since then.
///
/// # Errors
/// The program ended, or took longer than [`LIMIT`].
pub(crate) fn wait_listening(
    running: &mut Running,
    socket: &Path,
    changes: &Watch,
    before: Option<Identity>,
) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(status) = running.ended()? {
            bail!("it ended before it was ready: {status}");
        }
        let now = identity(socket);
        let is_there = now.is_some() && now != before;
        if is_there && UnixStream::connect(socket).is_ok() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("it was not ready within {LIMIT:?}");
        }
        // A socket that exists but does not listen yet gives no event when it does: look again soon.
        let look_again = if is_there { deadline.min(Instant::now() + Duration::from_millis(2)) } else { deadline };
        wait_readable(&[running.pidfd(), changes.fd.as_fd()], look_again)?;
        changes.drain();
    }
}

/// Inode number and change time of a file: the number of one that was unlinked is soon given out again.
pub(crate) type Identity = (u64, u64);

pub(crate) fn identity(file: &Path) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt;
    let meta = fs::metadata(file).ok()?;
    Some((meta.ino(), meta.ctime_nsec().unsigned_abs()))
}

/// Readable when something in a folder appeared or was written to.
pub(crate) struct Watch {
    fd: OwnedFd,
}

impl Watch {
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let fd = inotify::init(flags).context("inotify")?;
        let what = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::MODIFY;
        inotify::add_watch(&fd, folder, what).with_context(|| format!("watching {}", folder.display()))?;
        Ok(Self { fd })
    }

    fn drain(&self) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.fd, &mut buffer);
        while reader.next().is_ok() {}
    }
}
