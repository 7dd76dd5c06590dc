//! Traffic: a serving and a driving process for each measure.
//!
//! Both are this program in another role, so that each is a process of its own with its own image, as the traffic of a
//! real program would be. They talk to the run over standard input and output: the server says `ready`, the client works
//! for the given time and prints its [`Outcome`], and the server prints its own once it is told to. TCP bulk alone is the work
//! of iperf3.

mod connect;
mod first;
mod loaded;
mod outcome;
mod udp;

use std::io::{self, BufRead, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::prctl;

use crate::measure::Measure;

pub use first::send_first;
pub use outcome::{Latency, Outcome};
pub use udp::{PAYLOAD as UDP_PAYLOAD, hold_flows};

/// First port that is served; further ones follow it.
pub(crate) const PORT: u16 = 5001;

/// Receives the load of `measure` at `address` and counts it.
///
/// # Errors
/// Ports are taken, or a connection breaks.
pub fn serve(measure: Measure, address: IpAddr) -> Result<()> {
    name_thread("bench-server")?;
    let outcome = match measure {
        Measure::TcpBulk => bail!("iperf3 does that"),
        Measure::Connect1 | Measure::Connect8 => connect::serve(address, measure.threads())?,
        Measure::Udp64 => udp::serve(SocketAddr::new(address, PORT), 1)?,
        Measure::UdpNew => udp::serve(SocketAddr::new(any(address), PORT), udp::PORTS)?,
        Measure::Loaded => loaded::serve(address)?,
        Measure::First => first::serve(address)?,
    };
    say(&outcome.to_string())
}

/// Sends the load of `measure` to `address` for `duration`.
///
/// # Errors
/// The server cannot be reached or a connection breaks: a guard that drops what it should pass must not look fast.
pub fn drive(measure: Measure, address: IpAddr, duration: Duration) -> Result<()> {
    name_thread("bench-client")?;
    let outcome = match measure {
        Measure::TcpBulk => bail!("iperf3 does that"),
        Measure::Connect1 | Measure::Connect8 => connect::drive(address, measure.threads(), duration)?,
        Measure::Udp64 => udp::drive(SocketAddr::new(address, PORT), duration)?,
        Measure::UdpNew => udp::drive_new_flows(PORT, duration)?,
        Measure::Loaded => loaded::drive(address, duration)?,
        Measure::First => first::drive(address, duration)?,
    };
    say(&outcome.to_string())
}

/// Any address of the same family.
pub(crate) fn any(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// So that `perf` and `top` tell the roles apart.
pub(crate) fn name_thread(name: &str) -> Result<()> {
    let name = std::ffi::CString::new(name).context("a name with a NUL")?;
    prctl::set_name(&name).context("cannot set the thread's name")
}

/// Tells the run something.
pub(crate) fn say(line: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("cannot write to standard output")
}

/// Says `ready`, then waits to be asked for the outcome.
pub(crate) fn ready_until_asked() -> Result<()> {
    say("ready")?;
    let mut question = String::new();
    io::stdin().lock().read_line(&mut question).context("cannot read standard input")?;
    Ok(())
}
