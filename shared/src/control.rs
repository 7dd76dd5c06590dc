//! The control protocol: length-prefixed JSON over a Unix stream socket.
//!
//! A frame is a 32-bit big-endian length and that many bytes of JSON. A client sends [`Call`] frames and reads one
//! [`Answer`] frame for each, in order.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::event::BypassFamily;
use crate::{Chain, Rule, Selector, Verdict};

/// Moves when a client of the old version could misunderstand the new one.
pub const VERSION: u32 = 1;

/// Where the daemon listens unless it is told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/app-fw/ctl.sock";

/// The environment variable that names another place.
pub const SOCKET_VARIABLE: &str = "APP_FW_SOCKET";

/// The longest request the daemon takes, bytes.
pub const MAX_REQUEST: usize = 1 << 20;

/// The longest answer a client should take, bytes: a listing of many rules is long.
pub const MAX_ANSWER: usize = 1 << 28;

/// Bytes of the length that starts a frame.
pub const HEADER: usize = 4;

/// A request with the version of the protocol it is written in.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Call {
    /// [`VERSION`] of the client.
    pub version: u32,
    /// What is wanted.
    #[serde(flatten)]
    pub request: Request,
}

/// What a client can ask for.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Add a rule.
    Add {
        /// The rule; its namespace may be a file.
        rule: Rule,
        /// Position in its chain and namespace, 0 first; at the end if absent.
        #[serde(default)]
        position: Option<usize>,
    },
    /// Delete the rule at a position.
    Delete {
        /// Its chain.
        chain: Chain,
        /// Its namespace.
        namespace: Selector,
        /// Its position, 0 first.
        position: usize,
    },
    /// List rules and policies.
    List {
        /// Only this chain.
        #[serde(default)]
        chain: Option<Chain>,
        /// Only this namespace.
        #[serde(default)]
        namespace: Option<Selector>,
    },
    /// Delete all rules of a namespace.
    Flush {
        /// Only this chain.
        #[serde(default)]
        chain: Option<Chain>,
        /// The namespace.
        namespace: Selector,
    },
    /// Set a chain's policy in a namespace.
    Policy {
        /// The chain.
        chain: Chain,
        /// The namespace.
        namespace: Selector,
        /// What happens where no rule fires.
        verdict: Verdict,
    },
    /// How the daemon is.
    Status,
}

/// What the daemon answers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// A rule was added.
    Added(ListedRule),
    /// So many rules were deleted.
    Deleted(usize),
    /// The policy was set.
    PolicySet,
    /// The rules and policies asked for.
    Listing(Listing),
    /// How the daemon is.
    Status(Box<Status>),
    /// Nothing was changed.
    Error(Failure),
}

/// Why a request was refused.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// For machines.
    pub kind: FailureKind,
    /// A sentence: what, and what would help.
    pub message: String,
}

/// Kinds of refusal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The frame was no request in this version of the protocol.
    Malformed,
    /// The caller may not do this.
    Forbidden,
    /// There is no such rule.
    NotFound,
    /// The request makes no sense here.
    Invalid,
    /// The store could not do it; nothing was changed.
    Store,
    /// Too many clients are served already; later it may work.
    Busy,
}

/// A rule with its place.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ListedRule {
    /// Stable, never given twice.
    pub id: u64,
    /// Position in its chain and namespace, 0 first.
    pub position: usize,
    /// Whether the namespace exists now. Rules for one that does not are dormant.
    pub dormant: bool,
    /// The rule.
    pub rule: Rule,
}

/// A chain's policy in a namespace.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ListedPolicy {
    /// The chain.
    pub chain: Chain,
    /// The namespace; `any` for the daemon's own default.
    pub namespace: Selector,
    /// What happens where no rule fires.
    pub verdict: Verdict,
    /// Set with `ctl-fw -P` and stored; else it is the daemon's default (`--pol-out` and so on).
    pub stored: bool,
}

/// Rules and policies.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Listing {
    /// By chain, namespace, position.
    pub rules: Vec<ListedRule>,
    /// By chain, namespace.
    pub policies: Vec<ListedPolicy>,
}

/// How the daemon is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub daemon: String,
    /// Its process id.
    pub pid: u32,
    /// Milliseconds since its queues were bound.
    pub uptime_ms: u64,
    /// Which clock times the batches: `tsc` or `monotonic-raw`.
    pub clock: String,
    /// Moves with every committed change of the rules.
    pub rules_generation: u64,
    /// Rules in force.
    pub rules: usize,
    /// What the eBPF probe does.
    pub probe: ProbeStatus,
    /// One for each queue.
    pub queues: Vec<QueueStatus>,
    /// Events left out by the rate limit or a full journal.
    pub events_omitted: u64,
    /// Digests known without hashing.
    pub digests: usize,
    /// Open sockets of the daemon's network namespace whose packets no rule sees.
    #[serde(default)]
    pub bypass_capable: Vec<BypassSocket>,
}

/// A socket that sends and receives past netfilter.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct BypassSocket {
    /// Of which address family it is.
    pub family: BypassFamily,
    /// Its inode number, as in `/proc/PID/fd`.
    pub inode: u64,
    /// Who holds it. Empty: no descriptor of it was found.
    pub holders: Vec<BypassHolder>,
}

/// A process that holds such a socket.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct BypassHolder {
    /// Process id in the daemon's pid namespace.
    pub pid: u32,
    /// The program's path as the process sees it; for people. Absent if it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// What the eBPF probe does.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ProbeStatus {
    /// At least some of it runs.
    pub loaded: bool,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
    /// Hooks that could not be attached.
    pub missing: Vec<MissingHook>,
    /// What a missing hook costs; sentences.
    pub cost: Vec<String>,
    /// Messages of the kernel about processes that were lost because nobody took them in time.
    pub lost_events: u64,
}

/// A hook that could not be attached.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MissingHook {
    /// Its token.
    pub hook: String,
    /// Why.
    pub why: String,
}

/// One queue.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct QueueStatus {
    /// The chain it feeds.
    pub chain: Option<Chain>,
    /// NFQUEUE number.
    pub number: u16,
    /// Packets judged.
    pub packets: u64,
    /// Of these accepted.
    pub accepted: u64,
    /// Of these dropped.
    pub dropped: u64,
    /// Messages that carried verdicts.
    pub batches: u64,
    /// Packets that had to wait for a digest.
    pub parked: u64,
    /// Times the kernel could not hand over a packet because the receive buffer was full.
    pub overruns: u64,
    /// Bytes of the receive buffer.
    pub receive_buffer: u64,
    /// Answers used again.
    pub flow_hits: u64,
    /// Answers made.
    pub flow_misses: u64,
    /// Answers thrown away, by the reason why.
    pub stale: std::collections::BTreeMap<String, u64>,
}

/// What is wrong with a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than the reader takes.
    #[error("a frame of {length} bytes is longer than the {limit} allowed")]
    TooLong {
        /// Announced length, bytes.
        length: usize,
        /// Allowed length, bytes.
        limit: usize,
    },
    /// No JSON, or not of the expected shape.
    #[error("the frame makes no sense: {0}")]
    Json(#[from] serde_json::Error),
}

/// Makes a frame.
///
/// # Errors
/// The value is longer than 4 GiB or cannot be written as JSON.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; HEADER];
    serde_json::to_writer(&mut frame, value)?;
    let length = frame.len() - HEADER;
    let header = u32::try_from(length).map_err(|_| FrameError::TooLong { length, limit: u32::MAX as usize })?;
    frame[..HEADER].copy_from_slice(&header.to_be_bytes());
    Ok(frame)
}

/// Reads a frame's header: how many bytes follow.
///
/// # Errors
/// More than `limit`.
pub fn body_length(header: [u8; HEADER], limit: usize) -> Result<usize, FrameError> {
    let length = u32::from_be_bytes(header) as usize;
    if length > limit { Err(FrameError::TooLong { length, limit }) } else { Ok(length) }
}

/// Reads a frame's body.
///
/// # Errors
/// It is not a `T`.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    Ok(serde_json::from_slice(body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip() {
        let rule = "-c OUTPUT -n host -v DROP ! -d 10.0.0.0/8".parse().unwrap();
        let call = Call { version: VERSION, request: Request::Add { rule, position: Some(2) } };
        let frame = encode(&call).unwrap();
        let (header, body) = frame.split_at(HEADER);
        assert_eq!(body_length(header.try_into().unwrap(), MAX_REQUEST).unwrap(), body.len());
        assert_eq!(decode::<Call>(body).unwrap(), call);
    }

    #[test]
    fn long_frames_are_refused_before_they_are_read() {
        assert!(body_length(u32::MAX.to_be_bytes(), MAX_REQUEST).is_err());
        assert!(body_length((MAX_REQUEST as u32 + 1).to_be_bytes(), MAX_REQUEST).is_err());
        assert_eq!(body_length((MAX_REQUEST as u32).to_be_bytes(), MAX_REQUEST).unwrap(), MAX_REQUEST);
    }

    #[test]
    fn nonsense_is_an_error() {
        for body in [&b""[..], b"{", b"[]", b"{\"version\":1}", b"{\"version\":1,\"request\":\"dance\"}", b"\xff\xfe"] {
            assert!(decode::<Call>(body).is_err());
        }
        let bad = br#"{"version":1,"request":"delete","chain":"OUTPUT","namespace":"a b","position":0}"#;
        assert!(decode::<Call>(bad).is_err());
    }
}
