//! One TCP connection, as much as it takes, counted at the receiver.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::{Outcome, ready_until_asked};

/// Bytes per write, as iperf3 does it.
const CHUNK: usize = 128 << 10;

pub(super) fn serve(at: SocketAddr) -> Result<Outcome> {
    let listener = TcpListener::bind(at).with_context(|| format!("cannot listen at {at}"))?;
    let receiver = thread::spawn(move || receive(&listener));
    ready_until_asked()?;
    receiver.join().map_err(|_| anyhow!("the receiver panicked"))?
}

fn receive(listener: &TcpListener) -> Result<Outcome> {
    let (mut stream, _) = listener.accept().context("cannot accept")?;
    let mut buffer = vec![0; CHUNK];
    let mut count = stream.read(&mut buffer).context("cannot receive")? as u64;
    let start = Instant::now();
    // The clock starts with the first bytes here, so they are not counted.
    let first = count;
    loop {
        match stream.read(&mut buffer).context("cannot receive")? {
            0 => break,
            more => count += more as u64,
        }
    }
    Ok(Outcome { count: count - first, elapsed: start.elapsed(), latency: None })
}

pub(super) fn drive(to: SocketAddr, duration: Duration) -> Result<Outcome> {
    let mut stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
    let chunk = vec![0x5a; CHUNK];
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < duration {
        stream.write_all(&chunk).context("cannot send")?;
        count += chunk.len() as u64;
    }
    stream.shutdown(Shutdown::Write).context("cannot end the connection")?;
    Ok(Outcome { count, elapsed: start.elapsed(), latency: None })
}
