//! Processes that come to hold the actor's socket without having opened it.
//!
//! An heir finds its socket as descriptor 2: standard input and output carry its steps and answers.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use crate::code;
use crate::options::Options;
use crate::socket::Socket;

/// A process that holds the socket, and the way to talk to it. It ends when this is dropped, as its input ends then.
pub struct Heir {
    pid: u32,
    to: Box<dyn Write>,
    from: Box<dyn BufRead>,
}

impl Heir {
    /// An heir at the other end of `stream`.
    ///
    /// # Errors
    /// Too many open files.
    pub fn over(pid: u32, stream: UnixStream) -> Result<Self> {
        let from = BufReader::new(stream.try_clone()?);
        Ok(Self { pid, to: Box::new(stream), from: Box::new(from) })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets it take a step and returns the answer behind the "ok".
    ///
    /// # Errors
    /// Its answer was an error, or it has ended.
    pub fn step(&mut self, step: &str) -> Result<String> {
        writeln!(self.to, "{step}").context("telling the child")?;
        let answer = self.line()?;
        match answer.strip_prefix("ok") {
            Some(rest) => Ok(rest.trim_start().to_owned()),
            None => bail!("child: {answer}"),
        }
    }

    /// Ends it and waits for its end.
    ///
    /// # Errors
    /// It is no child of this process.
    pub fn end(self) -> Result<()> {
        let pid = Pid::from_raw(self.pid.try_into()?);
        drop(self);
        waitpid(pid, None).context("waitpid")?;
        Ok(())
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.from.read_line(&mut line)? == 0 {
            bail!("the child has ended");
        }
        Ok(line.trim_end().to_owned())
    }
}

/// A pair of connected sockets for talking to a child.
///
/// # Errors
/// Too many open files.
pub fn channel() -> Result<(UnixStream, UnixStream)> {
    UnixStream::pair().context("socketpair")
}

/// Starts `program` with the socket inherited, lets it send once, and waits for its end. With `judged` it stays until its
/// packet was judged.
///
/// # Errors
/// It could not be started or failed.
pub fn bequeath(socket: &Socket, program: &Path, judged: bool) -> Result<()> {
    let mut command = heir_command(program, socket);
    command.args(["--quiet", "--fire"]).args(judged.then_some("--judged"));
    let descriptor = Stdio::from(socket.fd().try_clone()?);
    let ended = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(descriptor).status();
    let ended = ended.with_context(|| format!("starting {}", program.display()))?;
    if !ended.success() {
        bail!("the heir ended so: {ended}");
    }
    Ok(())
}

/// A process that gets a socket over a Unix socket, sends once on it, closes it, and takes the next.
pub struct Borrower {
    /// Ends when the channel is closed, and is waited for by nobody: it has nothing to say.
    channel: UnixStream,
}

impl Borrower {
    /// Starts `program` as a borrower. With `judged` it closes a socket only when its packet was judged.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start(program: &Path, to: Option<SocketAddr>, judged: bool) -> Result<Self> {
        let (channel, theirs) = channel()?;
        let mut command = Command::new(program);
        command.arg("borrow").args(judged.then_some("--judged"));
        if let Some(to) = to {
            command.args(["--to", &to.to_string()]);
        }
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        command.spawn().with_context(|| format!("starting {}", program.display()))?;
        Ok(Self { channel })
    }

    /// Lends it a socket and waits until it has closed it again.
    ///
    /// # Errors
    /// It has ended.
    pub fn lend(&mut self, socket: impl AsFd) -> Result<()> {
        send_descriptor(&self.channel, socket.as_fd())?;
        self.channel.read_exact(&mut [0]).context("the borrower has ended")
    }
}

/// In the borrower: borrows until the lender ends.
///
/// # Errors
/// What came was no socket.
pub fn borrow(options: &Options) -> Result<()> {
    let mut lender = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    while let Some(fd) = receive_descriptor(&lender)? {
        let socket = Socket::of(fd, options.to);
        // A refusal is what some lenders are after.
        let _ = socket.send();
        if options.judged {
            code::until_judged(socket.fd())?;
        }
        drop(socket);
        lender.write_all(b"d")?;
    }
    Ok(())
}

/// Starts `program` with the socket inherited across fork and exec, as inetd does.
///
/// # Errors
/// It could not be started.
pub fn share(socket: &Socket, program: &Path) -> Result<Heir> {
    start(program, socket, socket.fd().try_clone()?, &[])
}

/// Starts `program`, which holds nothing, and passes it the socket over a Unix socket.
///
/// # Errors
/// It could not be started or did not take the socket.
pub fn pass(socket: &Socket, program: &Path) -> Result<Heir> {
    let (ours, theirs) = channel()?;
    send_descriptor(&ours, socket.fd().as_fd())?;
    // It waits in the Unix socket until the program, started now, takes it.
    start(program, socket, theirs.into(), &["--passed"])
}

fn start(program: &Path, socket: &Socket, descriptor: OwnedFd, more: &[&str]) -> Result<Heir> {
    let mut child = heir_command(program, socket)
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::from(descriptor))
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    let (to, from) = (child.stdin.take().context("no pipe")?, child.stdout.take().context("no pipe")?);
    let mut heir = Heir { pid: child.id(), to: Box::new(to), from: Box::new(BufReader::new(from)) };
    match heir.line()?.as_str() {
        "ready" => Ok(heir),
        other => bail!("the child said `{other}`"),
    }
}

/// Becomes `program`, which goes on with the same steps and the same socket, or with `judged` waits for the verdicts on what
/// was sent and ends. Returns only if that failed.
pub fn become_other(socket: &Socket, program: &Path, judged: bool) -> anyhow::Error {
    let descriptor = match socket.fd().try_clone() {
        Ok(descriptor) => descriptor,
        Err(error) => return error.into(),
    };
    // The answer to this step is given by the new program, hence the flag.
    let more = judged.then_some("--judged");
    let error = heir_command(program, socket).arg("--quiet").args(more).stderr(Stdio::from(descriptor)).exec();
    anyhow::Error::new(error).context(format!("exec {}", program.display()))
}

fn heir_command(program: &Path, socket: &Socket) -> Command {
    let mut command = Command::new(program);
    command.arg("heir");
    if let Some(to) = socket.to() {
        command.args(["--to", &to.to_string()]);
    }
    command
}

/// In the heir: the socket that came as descriptor 2.
///
/// # Errors
/// There is none, or nothing was passed.
pub fn inherit(options: &Options) -> Result<Socket> {
    let mut fd = io::stderr().as_fd().try_clone_to_owned()?;
    // Descriptor 2 must not go on being the socket: messages would be sent over it.
    rustix::stdio::dup2_stderr(std::fs::File::options().write(true).open("/dev/null")?)?;
    if options.passed {
        fd = receive_descriptor(&fd)?.context("no descriptor was passed")?;
    }
    if !options.ready {
        println!("ok");
    }
    Ok(Socket::of(fd, options.to))
}

fn send_descriptor(over: impl AsFd, descriptor: BorrowedFd<'_>) -> Result<()> {
    let fds = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        bail!("no room for one descriptor");
    }
    sendmsg(over, &[IoSlice::new(b"s")], &mut control, SendFlags::empty()).context("SCM_RIGHTS").map(drop)
}

/// The next descriptor that is passed; none if the other end was closed.
fn receive_descriptor(over: impl AsFd) -> Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(over, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC).context("recvmsg")?;
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    }))
}
