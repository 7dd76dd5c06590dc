//! Events, one JSON object a line. A line with `verdict` tells what happened to a packet and why ([`Event`]); a line with
//! `event` tells of something else, and the key says of what ([`SocketEvent`]).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::flow::Ports;
use crate::{Cause, Chain, Digest, Flow, Protocol, Reason, Verdict};

/// One judged packet.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// When the packet was judged: RFC 3339, UTC, microseconds.
    pub time: String,
    /// What happened to it.
    pub verdict: Verdict,
    /// Why, for machines.
    pub reason: Reason,
    /// The chain it met.
    pub chain: Chain,
    /// Bytes, as the IP header says.
    pub length: u32,
    /// What its headers say; absent if they could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<EventFlow>,
    /// Every process that holds its socket. Empty: unowned, or nobody asked because no rule needed to know.
    pub owners: Vec<EventOwner>,
    /// The rule that fired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<EventRule>,
    /// It passed all the same: the daemon was started with `--audit`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub audit: bool,
    /// Events left out by the rate limit since the event before this one.
    pub omitted: u64,
}

/// A [`Flow`] and its namespace, flat.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct EventFlow {
    /// Layer-4 protocol.
    pub protocol: Protocol,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Host byte order; absent if the protocol has none or the packet does not carry them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Host byte order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// The network namespace of the socket, as a selector; absent if it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

impl EventFlow {
    /// Flattens `flow`.
    pub fn new(flow: &Flow, namespace: Option<String>) -> EventFlow {
        let (source_port, destination_port) = match flow.ports {
            Ports::Known { source, destination } => (Some(source), Some(destination)),
            Ports::Absent | Ports::Unknown => (None, None),
        };
        EventFlow {
            protocol: flow.protocol,
            source: flow.source,
            destination: flow.destination,
            source_port,
            destination_port,
            namespace,
        }
    }
}

/// One owner.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct EventOwner {
    /// Process id (tgid) in the daemon's pid namespace; absent if no process could be named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// When the process started: nanoseconds after boot. With `pid` it names the process for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<u64>,
    /// The program's path as the process sees it; for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The program's digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<Digest>,
    /// The image's aggregate digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Digest>,
    /// It has executable memory whose content no file holds. False also where that is not known.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub anon_exec: bool,
    /// Process id of who traces it (ptrace), in the daemon's pid namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traced_by: Option<u32>,
    /// Why the owner is undetermined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undetermined: Option<Cause>,
}

/// A socket was seen that can send past netfilter, or a process that was not seen to hold it before.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SocketEvent {
    /// When it was seen: RFC 3339, UTC, microseconds.
    pub time: String,
    /// What is told.
    pub event: SocketNews,
    /// Of which address family it is.
    pub family: BypassFamily,
    /// Its inode number, as in `/proc/PID/fd`. Absent if it was closed before it could be looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
    /// Every process that holds it, or who made it if it was closed since. Empty: no descriptor of it was found.
    pub owners: Vec<EventOwner>,
}

/// What a [`SocketEvent`] tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SocketNews {
    /// It can send and receive past netfilter: no rule of app-fw sees its packets.
    #[serde(rename = "bypass-capable")]
    BypassCapable,
}

/// Address families that pass beside netfilter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum BypassFamily {
    /// packet(7).
    #[serde(rename = "AF_PACKET")]
    Packet,
    /// AF_XDP.
    #[serde(rename = "AF_XDP")]
    Xdp,
}

impl BypassFamily {
    /// Stable token: the family's name.
    pub fn token(self) -> &'static str {
        match self {
            BypassFamily::Packet => "AF_PACKET",
            BypassFamily::Xdp => "AF_XDP",
        }
    }
}

/// The rule that fired.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct EventRule {
    /// Its id: stable, never given twice.
    pub id: u64,
    /// Its text form.
    pub text: String,
}
