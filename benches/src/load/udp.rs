//! Small UDP packets from one socket as fast as they go, counted at the receiver.
//!
//! The sender is held back by its socket's send buffer: packets that wait in a queue count against it. So a slow guard
//! mostly slows the sender down; what is lost all the same is not counted.

use std::io::{BufRead, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg, setsockopt, sockopt};

use super::{Outcome, PORT, any, ready_until_asked, say};
use crate::lab::CROWD;

/// Bytes in each packet, after the UDP header.
pub const PAYLOAD: usize = 64;
/// Packets sent between two looks at the clock.
const BURST: u64 = 64;
/// Most packets received at once.
const BATCH: usize = 64;
/// Ports that new flows go to.
pub(super) const PORTS: u16 = 4;
/// Receive buffer, bytes, so that the receiver is not where packets get lost.
const RECEIVE_BUFFER: usize = 4 << 20;

/// What the receiving thread has seen so far.
struct Tally {
    start: Instant,
    packets: AtomicU64,
    /// Nanoseconds since `start`.
    first: AtomicU64,
    /// Nanoseconds since `start`.
    last: AtomicU64,
}

/// Counts what comes to `ports` ports from that of `at` on.
pub(super) fn serve(at: SocketAddr, ports: u16) -> Result<Outcome> {
    let tally =
        Tally { start: Instant::now(), packets: AtomicU64::new(0), first: AtomicU64::new(0), last: AtomicU64::new(0) };
    let tally: &'static Tally = Box::leak(Box::new(tally));
    for port in at.port()..at.port() + ports {
        let at = SocketAddr::new(at.ip(), port);
        let socket = UdpSocket::bind(at).with_context(|| format!("cannot bind {at}"))?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("cannot enlarge the receive buffer")?;
        // Ends with the process, when the outcome has been asked for.
        thread::spawn(move || {
            if let Err(error) = receive(&socket, tally) {
                eprintln!("speed: the receiver stopped: {error:#}");
            }
        });
    }
    ready_until_asked()?;
    let (first, last) = (tally.first.load(Ordering::Acquire), tally.last.load(Ordering::Acquire));
    let elapsed = Duration::from_nanos(last.saturating_sub(first));
    Ok(Outcome { count: tally.packets.load(Ordering::Acquire), elapsed, latency: None })
}

fn receive(socket: &UdpSocket, tally: &Tally) -> Result<()> {
    let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
    let mut payloads = [[0; PAYLOAD]; BATCH];
    loop {
        let mut vectors = payloads.each_mut().map(|payload| [IoSliceMut::new(payload)]);
        let received = recvmmsg(socket.as_raw_fd(), &mut headers, vectors.iter_mut(), MsgFlags::MSG_WAITFORONE, None)
            .context("cannot receive")?
            .count() as u64;
        let now = tally.start.elapsed().as_nanos() as u64;
        if tally.first.load(Ordering::Relaxed) == 0 {
            // The clock starts with the first packets, so they are not counted.
            tally.first.store(now, Ordering::Release);
        } else {
            tally.packets.fetch_add(received, Ordering::Release);
        }
        tally.last.store(now, Ordering::Release);
    }
}

pub(super) fn drive(to: SocketAddr, duration: Duration) -> Result<Outcome> {
    let socket = UdpSocket::bind(SocketAddr::new(any(to.ip()), 0)).context("cannot make a socket")?;
    socket.connect(to).with_context(|| format!("cannot connect to {to}"))?;
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < duration {
        for _ in 0..BURST {
            socket.send(&[0x5a; PAYLOAD]).context("cannot send")?;
        }
        count += BURST;
    }
    Ok(Outcome { count, elapsed: start.elapsed(), latency: None })
}

/// Each packet goes to the next of the server's many addresses, and when these are through, to the next port.
pub(super) fn drive_new_flows(port: u16, duration: Duration) -> Result<Outcome> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot make a socket")?;
    let (_, addresses) = CROWD;
    let start = Instant::now();
    let mut count: u64 = 0;
    while start.elapsed() < duration {
        for _ in 0..BURST {
            let address = one_of_the_crowd((count % u64::from(addresses)) as u32);
            let port = port + (count / u64::from(addresses)) as u16 % PORTS;
            socket.send_to(&[0x5a; PAYLOAD], (address, port)).context("cannot send")?;
            count += 1;
        }
    }
    Ok(Outcome { count, elapsed: start.elapsed(), latency: None })
}

fn one_of_the_crowd(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(CROWD.0.to_bits() + number)
}

/// Sends a packet to each of `flows` addresses from one socket, says so, and does it again whenever it is told to.
///
/// # Errors
/// Packets cannot be sent.
pub fn hold_flows(flows: u32) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot make a socket")?;
    let mut orders = std::io::stdin().lock().lines();
    loop {
        for number in 0..flows {
            socket.send_to(&[0x5a; PAYLOAD], (one_of_the_crowd(number), PORT)).context("cannot send")?;
        }
        say("sent")?;
        if orders.next().is_none() {
            return Ok(());
        }
    }
}
