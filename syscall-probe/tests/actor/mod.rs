//! A process that does one thing at a time on request, in a network namespace of its own: what the tests watch.
//!
//! It is the test binary itself, run again with only the test `actor`. It is a process apart because generations are
//! per process, and the tests of one binary run side by side.

// Each test binary uses its own part of this.
#![allow(dead_code, unsafe_code)]

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

mod acts;

/// Set in the environment of the actor.
const ENVIRONMENT: &str = "SYSCALL_PROBE_ACTOR";
/// Begins each line that the actor says; the test harness says others.
const MARK: &str = "actor: ";

pub struct Actor {
    child: Child,
    commands: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
    /// The thread that acts; namespaces are per thread, and the test harness keeps the first one for itself.
    thread: String,
}

impl Actor {
    /// Starts a process and waits until it is ready.
    pub fn start() -> Actor {
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .args(["--exact", "actor", "--nocapture", "--test-threads=1"])
            .env(ENVIRONMENT, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the actor starts");
        let commands = child.stdin.take();
        let replies = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut actor = Actor { child, commands, replies, thread: String::new() };
        actor.thread = actor.reply();
        actor
    }

    pub fn tgid(&self) -> u32 {
        self.child.id()
    }

    /// A path in /proc about the thread that acts.
    pub fn proc(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/task/{}/{path}", self.tgid(), self.thread))
    }

    /// Makes the actor do something; returns what it says when it has.
    pub fn act(&mut self, command: &str) -> String {
        writeln!(self.commands.as_mut().expect("a pipe"), "{command}").expect("the actor listens");
        let reply = self.reply();
        assert!(!reply.starts_with("error"), "{command}: {reply}");
        reply
    }

    /// As [`Actor::act`], for what is answered with a number.
    pub fn number(&mut self, command: &str) -> u64 {
        self.act(command).parse().expect("a number")
    }

    /// Kills the actor and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("the actor can be killed");
        self.reap_traced();
        self.child.wait().expect("the actor ends");
    }

    /// If the caller traces the acting thread (`traceme`), it must take note of that thread's end before the process can.
    fn reap_traced(&self) {
        use nix::sys::wait::{WaitPidFlag, waitpid};
        if let Ok(thread) = self.thread.parse() {
            // An error: it is not traced.
            let _ = waitpid(nix::unistd::Pid::from_raw(thread), Some(WaitPidFlag::__WALL));
        }
    }

    fn reply(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.replies.read_line(&mut line).expect("a line"), 0, "the actor has ended");
            if let Some((_, reply)) = line.split_once(MARK) {
                return reply.trim_end().to_owned();
            }
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.commands = None;
        let _ = self.child.kill();
        self.reap_traced();
        let _ = self.child.wait();
    }
}

/// The body of the test `actor`: nothing, or the actor's life.
pub fn play() {
    if std::env::var_os(ENVIRONMENT).is_none() {
        return;
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip runs").success());
    let mut stage = acts::Stage::default();
    say(&nix::unistd::gettid().to_string());
    for command in std::io::stdin().lines() {
        let command = command.expect("a command");
        match stage.play(&command) {
            Ok(reply) => say(&reply),
            Err(error) => say(&format!("error {error:#}")),
        }
    }
}

fn say(reply: &str) {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{MARK}{reply}").and_then(|()| output.flush()).expect("somebody listens");
}
