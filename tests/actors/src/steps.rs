//! The steps an actor takes, one per line of input.
//!
//! | step | does | answer |
//! | --- | --- | --- |
//! | `send [N]` | sends N (1) times | `ok` |
//! | `recv` | receives once | `ok LENGTH [SENDER]` |
//! | `put N` | writes N bytes to a connection | `ok` when the kernel has taken them all |
//! | `drain` | receives until the other end closes | `ok BYTES` |
//! | `reply` | answers the last datagram | `ok` |
//! | `connect` | connects (after `--later`) | `ok` |
//! | `accept` | accepts; the connection replaces the listener | `ok` |
//! | `port` | | `ok PORT` it is bound to |
//! | `fd N` | moves the socket to descriptor N or above | `ok N` |
//! | `close` | closes the socket | `ok` |
//! | `share EXE` | starts EXE with the socket inherited | `ok PID` |
//! | `pass EXE` | starts EXE and passes it the socket by SCM_RIGHTS | `ok PID` |
//! | `fork` | forks; the child holds the socket too | `ok PID` |
//! | `child STEP...` | lets the newest child take a step | the child's answer |
//! | `release` | ends the newest child and waits for its end | `ok` |
//! | `exec EXE` | becomes EXE, socket inherited | `ok` |
//! | `dlopen FILE` / `dlclose` | loads a library / lets go of it | `ok` |
//! | `map-exec FILE` | maps a file executable | `ok` |
//! | `anonymous-exec` | makes anonymous memory executable | `ok` |
//!
//! EXE is the path of an actor: this one, or a copy of it with another digest.

use std::io::{self, BufRead, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::code::{self, Library};
use crate::heir::{self, Heir};
use crate::socket::Socket;

/// An actor at work.
pub struct Stage {
    socket: Option<Socket>,
    timeout: Duration,
    heir: Option<Heir>,
    library: Option<Library>,
}

impl Stage {
    /// An actor with its socket, if it has one.
    pub fn new(socket: Option<Socket>, timeout: Duration) -> Self {
        Self { socket, timeout, heir: None, library: None }
    }

    /// Takes steps from standard input until it ends.
    ///
    /// # Errors
    /// Its input or output broke.
    pub fn play_on_stdio(self, say_ready: bool) -> Result<()> {
        let mut output = io::stdout();
        if say_ready {
            writeln!(output, "ready")?;
        }
        self.play(io::stdin().lock(), output)
    }

    /// Takes steps until the input ends.
    ///
    /// # Errors
    /// Its input or output broke.
    pub fn play(mut self, input: impl BufRead, mut output: impl Write) -> Result<()> {
        for line in input.lines() {
            let answer = match self.step(&line?) {
                Ok(answer) => format!("ok {answer}"),
                Err(error) => format!("error {error:#}"),
            };
            writeln!(output, "{}", answer.trim_end())?;
            output.flush()?;
        }
        Ok(())
    }

    fn step(&mut self, line: &str) -> Result<String> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let path = Path::new(rest);
        match word {
            "send" => {
                let times: u32 = if rest.is_empty() { 1 } else { rest.parse().context("N")? };
                (0..times).try_for_each(|_| self.socket()?.send())?;
            }
            "recv" => return self.recv(),
            "put" => self.socket()?.put(rest.parse().context("N")?)?,
            "drain" => return Ok(self.socket()?.drain()?.to_string()),
            "reply" => self.socket()?.reply()?,
            "connect" => self.socket()?.connect()?,
            "accept" => {
                let timeout = self.timeout;
                self.socket()?.accept(timeout)?;
            }
            "port" => return Ok(self.socket()?.port()?.to_string()),
            "fd" => return Ok(self.socket()?.move_up(rest.parse().context("N")?)?.to_string()),
            "close" => drop(self.socket.take().context("no socket")?),
            "share" => return self.adopt(|socket| heir::share(socket, path)),
            "pass" => return self.adopt(|socket| heir::pass(socket, path)),
            "fork" => return self.fork(),
            "child" => return self.heir.as_mut().context("no child")?.step(rest),
            "release" => self.heir.take().context("no child")?.end()?,
            "exec" => return Err(heir::become_other(self.socket()?, path)),
            "dlopen" => self.library = Some(code::load(path)?),
            "dlclose" => drop(self.library.take().context("no library")?),
            "map-exec" => code::map_executable(path)?,
            "anonymous-exec" => code::anonymous_executable()?,
            _ => bail!("unknown step"),
        }
        Ok(String::new())
    }

    fn socket(&mut self) -> Result<&mut Socket> {
        self.socket.as_mut().context("no socket")
    }

    fn recv(&mut self) -> Result<String> {
        let (length, from) = self.socket()?.recv()?;
        Ok(from.map_or(length.to_string(), |from| format!("{length} {from}")))
    }

    fn adopt(&mut self, start: impl FnOnce(&Socket) -> Result<Heir>) -> Result<String> {
        let heir = start(self.socket()?)?;
        let pid = heir.pid().to_string();
        self.heir = Some(heir);
        Ok(pid)
    }

    fn fork(&mut self) -> Result<String> {
        let (ours, theirs) = heir::channel()?;
        match code::fork()? {
            Some(pid) => {
                drop(theirs);
                self.heir = Some(Heir::over(pid, ours)?);
                Ok(pid.to_string())
            }
            None => {
                drop(ours);
                let stage = Self::new(self.socket.take(), self.timeout);
                let played = theirs
                    .try_clone()
                    .map_err(Into::into)
                    .and_then(|read| stage.play(io::BufReader::new(read), theirs));
                // Not back into the caller's loop, which belongs to the parent.
                std::process::exit(i32::from(played.is_err()));
            }
        }
    }
}
