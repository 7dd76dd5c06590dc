//! New TCP connections one after the other: connect, send a byte, receive a byte, close.
//!
//! Each client thread has a listener and a serving thread of its own, so that only the way between them is shared. The
//! client closes first, by FIN; no TIME_WAIT stays behind (see [`crate::lab`]).

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::{Latency, Outcome, PORT, ready_until_asked};

fn endpoints(address: IpAddr, threads: u16) -> impl Iterator<Item = SocketAddr> {
    (PORT..PORT + threads).map(move |port| SocketAddr::new(address, port))
}

/// The client counts; what is returned here only says that the server was there.
pub(super) fn serve(address: IpAddr, threads: u16) -> Result<Outcome> {
    endpoints(address, threads).try_for_each(serve_at)?;
    ready_until_asked()?;
    Ok(Outcome { count: 0, elapsed: Duration::ZERO, latency: None })
}

/// Serves one endpoint in a thread that ends with the process.
pub(super) fn serve_at(at: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(at).with_context(|| format!("cannot listen at {at}"))?;
    thread::spawn(move || {
        for stream in listener.incoming() {
            // A connection that breaks here breaks at the client too, and there it ends the measure.
            let _ = stream.and_then(answer);
        }
    });
    Ok(())
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)?;
    // The client closes first.
    stream.read(&mut byte).map(drop)
}

pub(super) fn drive(address: IpAddr, threads: u16, duration: Duration) -> Result<Outcome> {
    let barrier = Barrier::new(usize::from(threads) + 1);
    thread::scope(|scope| {
        let workers: Vec<_> = endpoints(address, threads)
            .map(|to| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    connect_repeatedly(to, duration)
                })
            })
            .collect();
        barrier.wait();
        let start = Instant::now();
        let mut times = Vec::new();
        for worker in workers {
            times.extend(worker.join().map_err(|_| anyhow!("a client thread panicked"))??);
        }
        let elapsed = start.elapsed();
        Ok(Outcome { count: times.len() as u64, elapsed, latency: Latency::of(&mut times) })
    })
}

/// Returns, for each connection, the nanoseconds from the call of connect to the arrival of the answer.
pub(super) fn connect_repeatedly(to: SocketAddr, duration: Duration) -> Result<Vec<u64>> {
    // Room for 50,000 per second, so that growing the list disturbs nothing.
    let mut times = Vec::with_capacity(duration.as_millis() as usize * 50);
    let start = Instant::now();
    while start.elapsed() < duration {
        let begin = Instant::now();
        exchange(to).with_context(|| format!("connection {} to {to} failed", times.len() + 1))?;
        times.push(begin.elapsed().as_nanos() as u64);
    }
    Ok(times)
}

fn exchange(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    let mut byte = [0x5a];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)
}
