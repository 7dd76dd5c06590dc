//! The steps an actor takes, one per line of input.
//!
//! | step | does | answer |
//! | --- | --- | --- |
//! | `send [N]` | sends N (1) times | `ok` |
//! | `begin` | begins a datagram, which the next `send` sends (MSG_MORE) | `ok` |
//! | `cork` / `uncork` | has all that is sent meanwhile become one datagram (UDP_CORK) | `ok` |
//! | `segmented LENGTH EACH` | sends LENGTH bytes in datagrams of EACH, by one call (UDP_SEGMENT) | `ok` |
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
//! | `patched-exec FILE` | maps a file, writes to its own copy, makes it executable | `ok` |
//! | `unmap-exec` | unmaps what one of these two made | `ok` |
//! | `trace PID` | begins to trace a process (PTRACE_SEIZE) | `ok` |
//! | `untrace PID` | ceases to trace it | `ok` |
//! | `patch PID WHERE` | writes to a process' code, what was there before (/proc/PID/mem); WHERE: what a line of its maps ends with | `ok` |
//! | `converse N` | N times: sends, and receives the answer | `ok` |
//! | `judged` | waits until everything a datagram socket sent was judged | `ok` |
//! | `flood N` | sends N times, whatever the kernel says | `ok` |
//! | `to ADDR:PORT` | sends elsewhere from now on | `ok` |
//! | `send-from ADDR` | sends once from another address (IP_PKTINFO) | `ok` |
//! | `fast-open` | connects with 200 bytes in the SYN (after `--later`) | `ok` |
//! | `lease FILE` | maps FILE executable and holds a write lease on it | `ok` |
//! | `mark N` | SO_MARK | `ok` |
//! | `hex BYTES` | sends these bytes, hexadecimal, as they are | `ok` |
//! | `map-by WAY FILE` | makes FILE executable memory; WAY: see [`code::mappings::map_by`] | `ok` |
//! | `connect-many N ADDR:PORT` / `accept-many N` | N connections beside the socket | `ok` |
//! | `put-all N` | writes N bytes `x` to each of those without waiting | `ok` |
//! | `lend-all EXE` | lends each to EXE, which writes `actor` and lets go | `ok` |
//! | `count-all BYTE` | reads from each what comes; BYTE is one letter | `ok` how often it was BYTE |
//! | `drop-all` | closes them | `ok` |
//!
//! and those that do something many times by themselves. `hasty` does not wait for the verdict before it covers its tracks,
//! `patient` does:
//!
//! | step | does, N times |
//! | --- | --- |
//! | `run N EXE ARG...` | starts EXE as any program and waits for its end |
//! | `run-as-one N EXE ARG... \| EXE ARG...` | runs the first, then the second with the same process id |
//! | `sockets N` | makes a socket and closes it |
//! | `connects N` | connects to a port of this machine where nobody listens |
//! | `send-close N PORT hasty\|patient` | sends from a new socket at PORT, which may be shared (0: at any, which may not), and closes it |
//! | `flicker N hasty\|patient FILE` | dlopen, send, dlclose |
//! | `vanish N WAY FILE` | maps FILE executable, sends, and has the mapping go; WAY: `mremap`, `brk`, `shmat` |
//! | `populate N FILE` | sends from another thread while mmap populates FILE; `ok` how often that was before its end |
//! | `become UID` | makes the thread that takes steps another user's |
//! | `thread-of-user UID` | starts a thread that is another user's |
//! | `lend N hasty\|patient EXE` | lends the socket to EXE, which sends once and closes it |
//! | `bequeath N hasty\|patient EXE` | starts EXE with the socket inherited, which sends once and ends |
//! | `steal N PID FD hasty\|patient` | takes a descriptor of another process (pidfd_getfd), sends once and closes it |
//! | `raw N PROTOCOL[+header] hasty\|patient BYTES` | sends from a new raw socket, to where the socket sends, and closes it |
//! | `ring N KIND` | sends by an io_uring, which stays; KIND: see [`code::ring::Ring::open`] |
//! | `int80 N` | sends by 32-bit system calls |
//!
//! EXE is the path of an actor: this one, or a copy of it with another digest.

use std::io::{self, BufRead, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::code::files;
use crate::code::ring::Ring;
use crate::code::{self, Library};
use crate::crowd::Crowd;
use crate::heir::{self, Heir};
use crate::repeat;
use crate::socket::{PAYLOAD, Socket};
use crate::tracer;

fn pid(text: &str) -> Result<nix::unistd::Pid> {
    Ok(nix::unistd::Pid::from_raw(text.parse().context("PID")?))
}

/// Makes the calling thread another user's, and leaves it a way back.
fn become_user(uid: u32) -> Result<()> {
    use rustix::thread::{Uid, set_thread_res_uid};
    set_thread_res_uid(None, Some(Uid::ROOT), None).context("back to root")?;
    let user = Uid::from_raw(uid);
    set_thread_res_uid(Some(user), Some(user), Some(Uid::ROOT)).context("setresuid")
}

/// Starts a thread that is another user's, and stays.
fn thread_of_user(uid: u32) -> Result<()> {
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = done.send(become_user(uid));
        std::thread::park();
    });
    wait.recv()?
}

/// An actor at work.
pub struct Stage {
    socket: Option<Socket>,
    timeout: Duration,
    heir: Option<Heir>,
    library: Option<Library>,
    memory: Option<code::Memory>,
    crowd: Crowd,
    ring: Option<Ring>,
}

impl Stage {
    /// An actor with its socket, if it has one.
    pub fn new(socket: Option<Socket>, timeout: Duration) -> Self {
        let crowd = Crowd::default();
        Self { socket, timeout, heir: None, library: None, memory: None, crowd, ring: None }
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
            "begin" => self.socket()?.begin()?,
            "cork" | "uncork" => code::cork(self.socket()?.fd(), word == "cork")?,
            "segmented" => {
                let (length, each) = rest.split_once(' ').context("EACH")?;
                self.socket()?.send_segmented(length.parse().context("LENGTH")?, each.parse().context("EACH")?)?;
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
            "exec" => return Err(heir::become_other(self.socket()?, path, false)),
            "dlopen" => self.library = Some(code::load(path)?),
            "dlclose" => drop(self.library.take().context("no library")?),
            "converse" => self.times(rest, |stage, _| {
                stage.socket()?.send()?;
                stage.socket()?.recv().map(drop)
            })?,
            "become" => become_user(rest.parse().context("UID")?)?,
            "thread-of-user" => thread_of_user(rest.parse().context("UID")?)?,
            "judged" => code::until_judged(self.socket()?.fd())?,
            // A full queue is an error for the sender.
            "flood" => self.times(rest, |stage, _| stage.socket().map(|socket| drop(socket.send())))?,
            "to" => self.socket()?.aim(rest.parse().context("ADDR:PORT")?),
            "send-from" => self.socket()?.send_from(rest.parse().context("ADDR")?)?,
            "mark" => self.socket()?.mark(rest.parse().context("N")?)?,
            "hex" => self.socket()?.send_bytes(&bytes(rest)?)?,
            "map-by" => {
                let (way, path) = rest.split_once(' ').context("FILE")?;
                code::mappings::map_by(way, Path::new(path))?;
            }
            "connect-many" => {
                let (number, to) = rest.split_once(' ').context("ADDR:PORT")?;
                self.crowd.connect(number.parse().context("N")?, to.parse().context("ADDR:PORT")?)?;
            }
            "accept-many" => {
                let listener = self.socket.as_ref().context("no socket")?;
                self.crowd.accept(rest.parse().context("N")?, listener)?;
            }
            "put-all" => self.crowd.put(rest.parse().context("N")?),
            "lend-all" => self.crowd.lend(path)?,
            "count-all" => return Ok(self.crowd.count(*rest.as_bytes().first().context("BYTE")?)?.to_string()),
            "drop-all" => self.crowd = Crowd::default(),
            "vanish" | "sockets" | "connects" | "run" | "run-as-one" | "send-close" | "flicker" | "populate"
            | "lend" | "bequeath" | "steal" | "raw" | "int80" => return self.again_and_again(word, rest),
            "ring" => {
                let (number, kind) = rest.split_once(' ').context("KIND")?;
                let to = self.socket()?.to4()?;
                if self.ring.is_none() {
                    self.ring = Some(Ring::open(kind)?);
                }
                self.times(number, |stage, _| stage.ring.as_mut().context("no ring")?.send(to, PAYLOAD))?;
            }
            "fast-open" => self.socket()?.fast_open()?,
            "lease" => files::lease(path)?,
            "map-exec" => code::map_executable(path)?,
            "anonymous-exec" => self.memory = Some(code::anonymous_executable()?),
            "patched-exec" => self.memory = Some(code::patched_executable(path)?),
            "unmap-exec" => drop(self.memory.take().context("nothing is mapped")?),
            "trace" => tracer::seize(pid(rest)?)?,
            "untrace" => tracer::detach(pid(rest)?)?,
            "patch" => {
                let (process, place) = rest.split_once(' ').context("WHERE")?;
                tracer::patch(process, place)?;
            }
            _ => bail!("unknown step"),
        }
        Ok(String::new())
    }

    fn times(&mut self, number: &str, mut act: impl FnMut(&mut Self, u32) -> Result<()>) -> Result<()> {
        let number: u32 = number.parse().context("N")?;
        (0..number).try_for_each(|index| act(self, index))
    }

    fn again_and_again(&self, word: &str, rest: &str) -> Result<String> {
        let words: Vec<&str> = rest.split(' ').collect();
        let (number, words) = words.split_first().context("N")?;
        repeat::act(self.socket.as_ref(), word, number.parse().context("N")?, words)
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

/// The bytes that a hexadecimal text stands for.
pub fn bytes(hexadecimal: &str) -> Result<Vec<u8>> {
    let pairs = hexadecimal.as_bytes().chunks(2);
    pairs.map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?)).collect()
}
