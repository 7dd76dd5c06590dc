//! Tricks that work only at the right moment: the actor tries them many times by itself, as fast as it can.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::net::sockopt::set_socket_reuseport;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::code::{self, mappings, reborn};
use crate::heir::{self, Borrower};
use crate::socket::{PAYLOAD, Socket, unspecified};
use crate::steps;

/// One of the repeated steps of [`crate::steps`]; `words` are what follows the number.
///
/// # Errors
/// The kernel refused something that is not what the trick is about.
pub fn act(socket: Option<&Socket>, word: &str, times: u32, words: &[&str]) -> Result<String> {
    let socket = || socket.context("no socket");
    let again = |act: &mut dyn FnMut() -> Result<()>| (0..times).try_for_each(|_| act());
    match (word, words) {
        ("sockets", []) => again(&mut || {
            let made = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
            made.map(drop).context("socket")
        })?,
        ("connects", []) => again(&mut || {
            let made = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::NONBLOCK, None)?;
            // Where nobody listens: the refusal comes at once, and the socket is gone.
            let _ = connect(&made, &SocketAddr::from(([127, 0, 0, 1], 1)));
            Ok(())
        })?,
        ("run", argv) => again(&mut || reborn::run(None, argv).map(drop))?,
        ("run-as-one", argv) => {
            let bar = argv.iter().position(|word| *word == "|").context("no |")?;
            again(&mut || as_one(&argv[..bar], &argv[bar + 1..]))?;
        }
        ("send-close", [port, pace]) => {
            let (to, port, judged) = (socket()?.to().context("connected")?, port.parse()?, patient(pace)?);
            again(&mut || send_and_close(to, port, judged))?;
        }
        ("flicker", [pace, path]) => {
            let judged = patient(pace)?;
            again(&mut || flicker(socket()?, Path::new(path), judged))?;
        }
        ("vanish", [way, path]) => again(&mut || mappings::vanish(way, Path::new(path), || socket()?.send()))?,
        ("populate", [path]) => return populate(socket()?, times, Path::new(path)),
        ("lend", [pace, program]) => {
            let mut borrower = Borrower::start(Path::new(program), socket()?.to(), patient(pace)?)?;
            again(&mut || borrower.lend(socket()?.fd()))?;
        }
        ("bequeath", [pace, program]) => {
            let judged = patient(pace)?;
            again(&mut || heir::bequeath(socket()?, Path::new(program), judged))?;
        }
        ("steal", [pid, fd, pace]) => {
            let (fd, to, judged) = (fd.parse()?, socket()?.to().context("connected")?, patient(pace)?);
            let victim = Pid::from_raw(pid.parse()?).context("PID")?;
            let victim = pidfd_open(victim, PidfdFlags::empty()).context("pidfd_open")?;
            again(&mut || {
                let taken = pidfd_getfd(&victim, fd, PidfdGetfdFlags::empty()).context("pidfd_getfd")?;
                send_on(&Socket::of(taken, Some(to)), judged)
            })?;
        }
        ("raw", [kind, pace, bytes]) => {
            let (mut to, judged) = (socket()?.to().context("connected")?, patient(pace)?);
            to.set_port(0);
            let bytes = steps::bytes(bytes)?;
            again(&mut || {
                let raw = Socket::raw(kind, to)?;
                let _ = raw.send_bytes(&bytes);
                if judged { code::until_judged(raw.fd()) } else { Ok(()) }
            })?;
        }
        ("int80", []) => code::compat::send(socket()?.to4()?, PAYLOAD, times)?,
        _ => bail!("unknown step"),
    }
    Ok(String::new())
}

fn patient(pace: &str) -> Result<bool> {
    match pace {
        "hasty" => Ok(false),
        "patient" => Ok(true),
        _ => bail!("neither hasty nor patient: {pace}"),
    }
}

/// Sends once, and stays until the packet was judged if told so.
fn send_on(socket: &Socket, judged: bool) -> Result<()> {
    // A refusal is no reason to stop trying.
    let _ = socket.send();
    if judged { code::until_judged(socket.fd()) } else { Ok(()) }
}

fn as_one(first: &[&str], second: &[&str]) -> Result<()> {
    // Whoever starts a process meanwhile may get the id.
    const ATTEMPTS: u32 = 20;
    for _ in 0..ATTEMPTS {
        let pid = reborn::run(None, first)?;
        if reborn::run(pid, second)?.is_some() {
            return Ok(());
        }
    }
    bail!("{ATTEMPTS} process ids were taken by others")
}

fn send_and_close(to: SocketAddr, port: u16, judged: bool) -> Result<()> {
    let mut at = unspecified(to);
    at.set_port(port);
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    if port != 0 {
        set_socket_reuseport(&fd, true)?;
    }
    bind(&fd, &at).context("bind")?;
    send_on(&Socket::of(fd, Some(to)), judged)
}

fn flicker(socket: &Socket, path: &Path, judged: bool) -> Result<()> {
    let library = code::load(path)?;
    send_on(socket, judged)?;
    drop(library);
    Ok(())
}

fn populate(socket: &Socket, times: u32, path: &Path) -> Result<String> {
    let mut early = 0;
    for _ in 0..times {
        let judged = || code::until_judged(socket.fd());
        if mappings::populate(path, || send_on(socket, false), judged)? {
            early += 1;
        }
    }

    Ok(early.to_string())
}
