//! Requests and answers of one byte over one connection, while another connection carries as much as it takes and a third
//! thread makes new ones.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::{Latency, Outcome, PORT, connect, ready_until_asked};

/// What goes to each port.
const REQUESTS: u16 = PORT;
const CONNECTIONS: u16 = PORT + 1;
const BULK: u16 = PORT + 2;
/// Bytes per write of the bulk connection, as iperf3 does it.
const CHUNK: usize = 128 << 10;

/// The client counts; what is returned here only says that the server was there.
pub(super) fn serve(address: IpAddr) -> Result<Outcome> {
    let listen = |port| {
        let at = SocketAddr::new(address, port);
        TcpListener::bind(at).with_context(|| format!("cannot listen at {at}"))
    };
    let (requests, bulk) = (listen(REQUESTS)?, listen(BULK)?);
    connect::serve_at(SocketAddr::new(address, CONNECTIONS))?;
    // These end with the process, when the outcome has been asked for. A connection that breaks here breaks at the client
    // too, and there it ends the measure.
    thread::spawn(move || requests.accept().and_then(|(stream, _)| echo(stream)));
    thread::spawn(move || bulk.accept().and_then(|(stream, _)| swallow(stream)));
    ready_until_asked()?;
    Ok(Outcome { count: 0, elapsed: Duration::ZERO, latency: None })
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn swallow(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    while stream.read(&mut buffer)? > 0 {}
    Ok(())
}

pub(super) fn drive(address: IpAddr, duration: Duration) -> Result<Outcome> {
    let to = |port| SocketAddr::new(address, port);
    thread::scope(|scope| {
        let bulk = scope.spawn(move || pour(to(BULK), duration).context("the bulk connection broke"));
        let connections = scope.spawn(move || connect::connect_repeatedly(to(CONNECTIONS), duration));
        let start = Instant::now();
        let mut times = ask_repeatedly(to(REQUESTS), duration).context("the connection of requests broke")?;
        let elapsed = start.elapsed();
        bulk.join().map_err(|_| anyhow!("the bulk thread panicked"))??;
        connections.join().map_err(|_| anyhow!("the connecting thread panicked"))??;
        Ok(Outcome { count: times.len() as u64, elapsed, latency: Latency::of(&mut times) })
    })
}

fn pour(to: SocketAddr, duration: Duration) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    let chunk = vec![0x5a; CHUNK];
    let start = Instant::now();
    while start.elapsed() < duration {
        stream.write_all(&chunk)?;
    }
    Ok(())
}

/// Returns, for each request, the nanoseconds until the answer was there.
fn ask_repeatedly(to: SocketAddr, duration: Duration) -> std::io::Result<Vec<u64>> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    let mut times = Vec::with_capacity(duration.as_millis() as usize * 50);
    let start = Instant::now();
    while start.elapsed() < duration {
        let begin = Instant::now();
        let mut byte = [0x5a];
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        times.push(begin.elapsed().as_nanos() as u64);
    }
    Ok(times)
}
