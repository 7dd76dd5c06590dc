//! What is measured, and one run of it.

use std::net::IpAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::iperf3;
use crate::lab::{Lab, Namespace};
use crate::load::{Latency, Outcome};
use crate::supervise::{Supervisor, Ward, command_in, own_path};

/// Time for what is not traffic: starting processes, ending connections.
pub(crate) const MARGIN: Duration = Duration::from_secs(15);

/// A kind of traffic. The token is what `--only` and `--hold` take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Measure {
    /// One TCP connection of iperf3
    TcpBulk,
    /// TCP connections one after the other, 1 thread
    #[value(name = "connect-1")]
    Connect1,
    /// TCP connections one after the other in each of 8 threads
    #[value(name = "connect-8")]
    Connect8,
    /// 64-byte UDP packets from one connected socket
    #[value(name = "udp-64")]
    Udp64,
    /// 64-byte UDP packets, each to another address or port than those before it
    UdpNew,
    /// Requests and answers of one byte, beside a bulk connection and new ones
    Loaded,
    /// Processes with 40 more libraries that send one UDP packet and wait for its echo
    First,
}

impl Measure {
    /// What contenders are compared by, in the order of the table.
    pub const USUAL: [Self; 5] = [Self::TcpBulk, Self::Connect1, Self::Connect8, Self::Udp64, Self::Loaded];

    /// The token on the command line and in the tables.
    pub fn token(self) -> &'static str {
        match self {
            Self::TcpBulk => "tcp-bulk",
            Self::Connect1 => "connect-1",
            Self::Connect8 => "connect-8",
            Self::Udp64 => "udp-64",
            Self::UdpNew => "udp-new",
            Self::Loaded => "loaded",
            Self::First => "first",
        }
    }

    /// The heading of its column, with the unit.
    pub fn heading(self) -> &'static str {
        match self {
            Self::TcpBulk => "TCP bulk, Gbit/s",
            Self::Connect1 => "connections/s, 1 thread",
            Self::Connect8 => "connections/s, 8 threads",
            Self::Udp64 => "UDP 64 B, packets/s",
            Self::UdpNew => "UDP 64 B, new flows/s",
            Self::Loaded => "requests/s under load",
            Self::First => "processes/s, first packet",
        }
    }

    /// Whether single operations are timed.
    pub fn has_latency(self) -> bool {
        matches!(self, Self::Connect1 | Self::Connect8 | Self::Loaded | Self::First)
    }

    /// Client threads.
    pub fn threads(self) -> u16 {
        if self == Self::Connect8 { 8 } else { 1 }
    }

    /// A rate in the unit of [`Self::heading`], as it is printed.
    pub fn format(self, rate: f64) -> String {
        match self {
            Self::TcpBulk => format!("{rate:.2}"),
            _ => format!("{rate:.0}"),
        }
    }

    /// The fewest packets the client's side can have sent for `count` things: what must have passed a guard that judges
    /// each packet.
    pub fn least_packets(self, count: u64) -> u64 {
        match self {
            // A packet before segmentation is at most 64 KiB long.
            Self::TcpBulk => count >> 16,
            // SYN, ACK, data, FIN; what follows the server's FIN may still be under way.
            Self::Connect1 | Self::Connect8 => count * 4,
            Self::Udp64 | Self::UdpNew | Self::Loaded | Self::First => count,
        }
    }

    /// Whether most packets are of flows that packets were seen of before.
    pub fn is_of_few_flows(self) -> bool {
        matches!(self, Self::TcpBulk | Self::Udp64 | Self::Loaded)
    }

    /// Sends this traffic through the lab for `duration`.
    ///
    /// # Errors
    /// The load fails or does not end in time, or [`crate::supervise::Interrupted`].
    pub fn run(self, supervisor: &Supervisor, lab: &Lab, duration: Duration) -> Result<Sample> {
        if self == Self::TcpBulk {
            return iperf3::run(supervisor, lab, duration);
        }
        let mut server = self.serve(supervisor, lab)?;
        let mut client = self.start_role(&lab.client, "drive", lab.server_address(), Some(duration))?;
        let deadline = Instant::now() + duration + MARGIN;
        let sent: Outcome = client.line(supervisor, deadline).context("no outcome from the client")?.parse()?;
        server.tell("report")?;
        let received: Outcome = server.line(supervisor, deadline).context("no outcome from the server")?.parse()?;
        client.ended(supervisor, deadline)?;
        let counted = if self.has_latency() { sent } else { received };
        Ok(Sample { rate: counted.per_second()?, count: counted.count, latency: sent.latency })
    }

    /// Starts what receives this traffic; on return it does.
    ///
    /// # Errors
    /// It does not start.
    pub fn serve(self, supervisor: &Supervisor, lab: &Lab) -> Result<Ward> {
        let mut server = self.start_role(&lab.server, "serve", lab.server_address(), None)?;
        server.line(supervisor, Instant::now() + MARGIN).context("the server is not ready")?;
        Ok(server)
    }

    fn start_role(self, place: &Namespace, role: &str, address: IpAddr, duration: Option<Duration>) -> Result<Ward> {
        let mut command = command_in(&place.path(), own_path()?)?;
        command.args([role, self.token(), &address.to_string()]);
        if let Some(duration) = duration {
            command.arg(duration.as_secs_f64().to_string());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Ward::start(&format!("{role} {}", self.token()), &mut command)
    }
}

/// What one run of a measure gave.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// In the unit of [`Measure::heading`].
    pub rate: f64,
    /// Bytes, connections or packets that the rate stands for.
    pub count: u64,
    /// Time per connection or first packet, where those are measured.
    pub latency: Option<Latency>,
}
