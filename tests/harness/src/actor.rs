//! The scripted program (`tests/actors`): a test steps it line by line, so nothing depends on timing.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::LIMIT;
use crate::netns::Namespace;
use crate::process::{Running, wait_readable};

/// A running actor. Dropping it kills it.
#[derive(Debug)]
pub struct Actor {
    running: Running,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    stderr: File,
    /// What was read beyond the last whole line.
    pending: Vec<u8>,
}

impl Actor {
    /// Starts `program` (the actor or a copy of it) in a namespace and waits for its "ready".
    ///
    /// # Errors
    /// It could not be started, or failed before it was ready.
    pub fn start(namespace: &Namespace, program: &Path, arguments: &[&str]) -> Result<Self> {
        Self::from_command(namespace.command(program).args(arguments))
    }

    /// Starts a command that becomes an actor, or hands its input and output on to one, and waits for its "ready".
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn from_command(command: &mut Command) -> Result<Self> {
        let stderr = tempfile::tempfile()?;
        let mut running =
            Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr.try_clone()?))?;
        let stdin = running.take_stdin();
        let stdout = running.take_stdout().context("no pipe to the actor")?;
        let mut actor = Self { running, stdin, stdout, stderr, pending: Vec::new() };
        let line = actor.line(LIMIT)?;
        if line != "ready" {
            bail!("`{}` said `{line}` instead of `ready`", actor.running.command());
        }
        Ok(actor)
    }

    /// The process id of what was started.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Gives one command and returns what follows the "ok" in the answer.
    ///
    /// # Errors
    /// The answer was an error, or none came in time.
    pub fn step(&mut self, command: &str) -> Result<String> {
        self.tell(command)?;
        self.answer().with_context(|| format!("step `{command}`"))
    }

    /// Gives one command without waiting for the answer ([`answer`](Self::answer) does).
    ///
    /// # Errors
    /// The actor has ended.
    pub fn tell(&mut self, command: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("the actor's input was closed")?;
        writeln!(stdin, "{command}").with_context(|| format!("telling `{}`", self.running.command()))
    }

    /// The answer to the oldest command not answered yet.
    ///
    /// # Errors
    /// The answer was an error, or none came in time.
    pub fn answer(&mut self) -> Result<String> {
        let line = self.line(LIMIT)?;
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("ok", rest) => Ok(rest.to_owned()),
            _ => bail!("the actor answered `{line}`"),
        }
    }

    /// Closes its input, which ends it, and waits.
    ///
    /// # Errors
    /// It did not end.
    pub fn finish(&mut self) -> Result<ExitStatus> {
        self.stdin = None;
        self.running.wait(LIMIT)
    }

    /// SIGKILL, and waits.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn kill9(&mut self) -> Result<ExitStatus> {
        self.running.kill()
    }

    fn line(&mut self, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !wait_readable(&[self.stdout.as_fd()], deadline)?[0] {
                bail!("`{}` said nothing for {limit:?}{}", self.running.command(), self.complaint());
            }
            let mut bytes = [0; 4096];
            match self.stdout.read(&mut bytes)? {
                0 => bail!("`{}` has ended{}", self.running.command(), self.complaint()),
                length => self.pending.extend_from_slice(&bytes[..length]),
            }
        }
    }

    fn complaint(&self) -> String {
        let mut text = String::new();
        let mut stderr = &self.stderr;
        let _ = stderr.rewind();
        let _ = stderr.read_to_string(&mut text);
        if text.is_empty() { text } else { format!(":\n{}", text.trim_end()) }
    }
}
