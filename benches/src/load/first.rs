//! Processes of many objects that send a packet and wait for its echo: the first packet that a guard sees of each.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Latency, Outcome, PORT, any, ready_until_asked, say};
use crate::supervise::own_path;

/// Libraries that each process maps besides those that it needs.
pub const LIBRARIES: usize = 40;
/// How long a process waits for the echo.
const LIMIT: Duration = Duration::from_secs(5);

pub(super) fn serve(address: IpAddr) -> Result<Outcome> {
    let socket = UdpSocket::bind(SocketAddr::new(address, PORT)).context("cannot bind")?;
    // Ends with the process, when the outcome has been asked for.
    thread::spawn(move || {
        let mut byte = [0];
        while let Ok((_, from)) = socket.recv_from(&mut byte) {
            let _ = socket.send_to(&byte, from);
        }
    });
    ready_until_asked()?;
    Ok(Outcome { count: 0, elapsed: Duration::ZERO, latency: None })
}

pub(super) fn drive(address: IpAddr, duration: Duration) -> Result<Outcome> {
    let folder = tempfile::tempdir().context("cannot make a directory")?;
    let libraries = copies(folder.path())?.join(":");
    let once = || -> Result<u64> {
        let mut command = Command::new(own_path()?);
        command.args(["send-first", &address.to_string()]).env("LD_PRELOAD", &libraries);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start a sender")?;
        let mut told = String::new();
        child.stdout.take().context("no pipe")?.read_to_string(&mut told)?;
        ensure!(child.wait()?.success(), "a sender failed");
        Ok(told.trim().parse()?)
    };
    // The first one's files have to be hashed; that is not what is measured.
    once()?;
    let (start, mut times) = (Instant::now(), Vec::new());
    while start.elapsed() < duration {
        times.push(once()?);
    }
    let elapsed = start.elapsed();
    Ok(Outcome { count: times.len() as u64, elapsed, latency: Latency::of(&mut times) })
}

/// One process: prints the nanoseconds from the call of send to the arrival of the echo.
///
/// # Errors
/// There is no echo.
pub fn send_first(address: IpAddr) -> Result<()> {
    let socket = UdpSocket::bind(SocketAddr::new(any(address), 0)).context("cannot make a socket")?;
    socket.connect(SocketAddr::new(address, PORT)).context("cannot connect")?;
    socket.set_read_timeout(Some(LIMIT))?;
    let begin = Instant::now();
    socket.send(&[0x5a]).context("cannot send")?;
    socket.recv(&mut [0]).context("no echo")?;
    say(&begin.elapsed().as_nanos().to_string())
}

/// Copies of a library that every Rust program maps: each file is an object of its own.
fn copies(folder: &Path) -> Result<Vec<String>> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let library = maps
        .lines()
        .filter_map(|line| line.find('/').map(|start| &line[start..]))
        .find(|path| path.contains("/libgcc_s.so"))
        .context("this program does not map libgcc_s")?;
    let copy = |number: usize| -> Result<String> {
        let path: PathBuf = folder.join(format!("lib{number:02}.so"));
        std::fs::copy(library, &path).context("cannot copy a library")?;
        path.into_os_string().into_string().ok().context("a path that is no text")
    };
    (0..LIBRARIES).map(copy).collect()
}
