//! The control protocol: length-prefixed JSON over a Unix stream socket.
//!
//! A frame is a 32-bit big-endian length and that many bytes of JSON. A client sends [`Call`] frames and reads one
//! [`Answer`] frame for each, in order. After [`Request::Subscribe`] it sends no more, and reads [`Announcement`] frames
//! until it hangs up.

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::document::Form;
use crate::event::{BypassFamily, Event, SocketEvent};
use crate::set::{Set, SetName};
use crate::{Cause, Chain, Digest, Flow, Reason, Rule, Selector, Verdict};

/// Moves when a client of the old version could misunderstand the new one.
pub const VERSION: u32 = 2;

/// Where the daemon listens unless it is told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/app-fw/ctl.sock";

/// The environment variable that names another place.
pub const SOCKET_VARIABLE: &str = "APP_FW_SOCKET";

/// The longest request the daemon takes from anybody, bytes.
pub const MAX_REQUEST: usize = 1 << 20;

/// The longest request it takes from root, who may send a whole ruleset, bytes.
pub const MAX_ROOT_REQUEST: usize = 1 << 28;

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
    /// Make changes, all of them or none, as one revision.
    Change {
        /// In this order.
        edits: Vec<Edit>,
        /// What the client calls it, e.g. its command line; for the history.
        #[serde(default)]
        note: Option<String>,
        /// Only if this is still the newest revision.
        #[serde(default)]
        expected: Option<u64>,
    },
    /// Replace everything: rules, policies and sets become those of the document, as one revision. Rules that come with an
    /// id keep it.
    Restore {
        /// The new ruleset.
        document: Form,
        /// What the client calls it; for the history.
        #[serde(default)]
        note: Option<String>,
        /// Only if this is still the newest revision.
        #[serde(default)]
        expected: Option<u64>,
    },
    /// Take back the newest revision, or everything after a revision. That is a revision itself.
    Undo {
        /// Make it as it was after this one; the one before the newest if absent.
        #[serde(default)]
        to: Option<u64>,
    },
    /// List rules, policies and sets.
    List {
        /// Only this chain.
        #[serde(default)]
        chain: Option<Chain>,
        /// Only this namespace.
        #[serde(default)]
        namespace: Option<Selector>,
    },
    /// List what was changed when and by whom, newest first.
    History {
        /// At most so many; all that are kept if absent.
        #[serde(default)]
        count: Option<usize>,
    },
    /// Be told of what happens from now on.
    Subscribe {
        /// Changes of rules, policies and sets.
        #[serde(default)]
        changes: bool,
        /// Packets that are told of, and sockets that pass beside the rules.
        #[serde(default)]
        packets: bool,
    },
    /// What would happen to packets, and why.
    Explain {
        /// Whose packets.
        subject: Subject,
        /// Met in this chain.
        chain: Chain,
        /// What they are; absent: any.
        #[serde(default)]
        flow: Option<Flow>,
        /// Their namespace; absent: that of the process, or the daemon's own.
        #[serde(default)]
        namespace: Option<Selector>,
    },
    /// List what `app-fw --audit` would have dropped and recorded.
    Learned {
        /// And forget it.
        #[serde(default)]
        clear: bool,
    },
    /// How the daemon is.
    Status,
}

/// One change.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "edit", rename_all = "kebab-case")]
pub enum Edit {
    /// Add a rule.
    Add {
        /// The rule; namespaces in it may be files.
        rule: Rule,
        /// Position in its chain and namespace, 0 first; at the end if absent.
        #[serde(default)]
        position: Option<usize>,
    },
    /// Put a rule in the place of another one. It keeps the id, the counters, and if its chain and namespace are the same,
    /// the position; else it goes to the end.
    Replace {
        /// Id of the rule that was.
        id: u64,
        /// The rule.
        rule: Rule,
    },
    /// Move a rule to another position of its chain and namespace.
    Move {
        /// Its id.
        id: u64,
        /// Where it is then.
        position: usize,
    },
    /// Delete a rule.
    Delete {
        /// Its id.
        id: u64,
    },
    /// Delete the rule at a position.
    DeleteAt {
        /// Its chain.
        chain: Chain,
        /// Its namespace.
        namespace: Selector,
        /// Its position, 0 first.
        position: usize,
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
        /// What happens where no rule fires: ACCEPT or DROP.
        verdict: Verdict,
    },
    /// Make a set.
    CreateSet {
        /// The set: its name is not taken.
        set: Set,
    },
    /// Delete a set. One that rules name cannot be deleted.
    DeleteSet {
        /// Its name.
        name: SetName,
    },
    /// Put elements into a set.
    AddElements {
        /// The set.
        name: SetName,
        /// Texts of the elements. Those that are in it already do no harm.
        elements: Vec<String>,
    },
    /// Take elements out of a set.
    DeleteElements {
        /// The set.
        name: SetName,
        /// Texts of the elements. One that is not in it is an error.
        elements: Vec<String>,
    },
    /// Take all elements out of a set.
    FlushSet {
        /// The set.
        name: SetName,
    },
}

/// What the daemon answers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The changes were made and are in force.
    Changed(Changed),
    /// The rules, policies and sets asked for.
    Listing(Listing),
    /// What was changed when and by whom, newest first.
    History(Vec<Revision>),
    /// From now on announcements come.
    Subscribed,
    /// What would happen.
    Explanation(Box<Explanation>),
    /// What was recorded.
    Learned(Vec<Learned>),
    /// How the daemon is.
    Status(Box<Status>),
    /// Nothing was changed.
    Error(Failure),
}

/// A change that was made.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Changed {
    /// The revision it made, or the newest one if it changed nothing.
    pub revision: u64,
    /// What became of each edit, in their order. Empty for a whole ruleset.
    pub done: Vec<Done>,
    /// How many rules there are now.
    pub rules: usize,
}

/// What became of an edit.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Done {
    /// A rule was added, replaced or moved; so it is now.
    Rule(Box<ListedRule>),
    /// So many rules were deleted.
    Deleted(usize),
    /// The policy was set.
    PolicySet,
    /// The set has so many elements now.
    SetHas(usize),
    /// The set is gone.
    SetDeleted,
}

/// Something happened.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Announcement {
    /// Rules, policies or sets were changed.
    Changed(Revision),
    /// A packet was judged.
    Packet(Box<Event>),
    /// A socket passes beside the rules.
    Socket(Box<SocketEvent>),
    /// The reader was too slow: so many announcements were left out.
    Missed(u64),
}

/// A revision of the ruleset.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Revision {
    /// Its number: one more for each.
    pub number: u64,
    /// When it was committed.
    pub time: Timestamp,
    /// Who made it: user id. Absent: the daemon itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Who made it: process id in the daemon's pid namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// What the client called it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What it did, one line each: `+ RULE`, `- RULE`; for large ones only a summary.
    pub changes: Vec<String>,
    /// It can be taken back still.
    pub undoable: bool,
}

/// Why a request was refused.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// For machines.
    pub kind: FailureKind,
    /// A sentence: what, and what would help.
    pub message: String,
    /// Which edit, or which rule of a document, is meant: its index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
}

/// Kinds of refusal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The frame was no request in this version of the protocol.
    Malformed,
    /// The caller may not do this.
    Forbidden,
    /// There is no such rule, set, process, or revision.
    NotFound,
    /// The request makes no sense here.
    Invalid,
    /// Somebody else changed the ruleset meanwhile.
    Conflict,
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
    /// Packets for which it fired; across restarts approximately.
    pub packets: u64,
    /// Bytes of these, as their IP headers say.
    pub bytes: u64,
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

/// A set.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ListedSet {
    /// The set.
    pub set: Set,
    /// How many rules name it.
    pub used_by: usize,
}

/// Rules, policies and sets.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Listing {
    /// The newest revision.
    pub revision: u64,
    /// By chain, namespace, position.
    pub rules: Vec<ListedRule>,
    /// By chain, namespace.
    pub policies: Vec<ListedPolicy>,
    /// By name.
    pub sets: Vec<ListedSet>,
}

/// Whose packets are to be explained.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "kebab-case")]
pub enum Subject {
    /// A process that runs.
    Process {
        /// Its id in the daemon's pid namespace.
        pid: u32,
    },
    /// A program that would run, made of these.
    Program {
        /// Its objects; the program first.
        objects: Vec<NamedObject>,
    },
    /// Whoever holds the socket of the flow.
    Holders,
}

/// An object by its digest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NamedObject {
    /// Under which path it is mapped.
    pub path: String,
    /// Its digest, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Why it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undetermined: Option<Cause>,
}

/// What would happen to packets, and why.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// The chain they meet.
    pub chain: Chain,
    /// Their namespace, as rules name it.
    pub namespace: Selector,
    /// Who holds their socket. Empty: nobody.
    pub owners: Vec<ExplainedOwner>,
    /// Each rule they meet, in order.
    pub rules: Vec<ExplainedRule>,
    /// What happens where no rule fires.
    pub policy: Verdict,
    /// What happens to them; absent if that depends on what each packet is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Why, if a verdict is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

/// An owner and what it is made of.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ExplainedOwner {
    /// Process id in the daemon's pid namespace; absent for a program that does not run, or an owner that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The program's path as the process sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// Effective user id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Effective group id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Control group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// It has executable memory whose content no file holds; absent if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anon_exec: Option<bool>,
    /// Who traces it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traced_by: Option<u32>,
    /// The aggregate digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregate: Option<Digest>,
    /// The objects, in the order of the aggregate.
    pub objects: Vec<NamedObject>,
    /// Why it is undetermined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undetermined: Option<Cause>,
}

/// A rule, and whether it holds.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ExplainedRule {
    /// Its id.
    pub id: u64,
    /// Its text form.
    pub text: String,
    /// Whether it holds.
    pub holds: Holds,
    /// It decides.
    pub fires: bool,
    /// For each predicate its text and whether it holds.
    pub predicates: Vec<(String, Holds)>,
}

/// Whether something holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Holds {
    /// It does.
    Yes,
    /// It does not.
    No,
    /// Nobody can tell, because an owner is not known well enough.
    Undetermined,
    /// That depends on what each packet is.
    Depends,
}

/// Packets of one program to one place that would have been dropped.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Learned {
    /// The chain.
    pub chain: Chain,
    /// The namespace, as rules name it.
    pub namespace: Selector,
    /// Each program that held the socket. Empty: unowned, or undetermined.
    pub programs: Vec<LearnedProgram>,
    /// Layer-4 protocol.
    pub protocol: crate::Protocol,
    /// The far end's address.
    pub remote: std::net::IpAddr,
    /// The port of whoever is spoken to, host byte order. Absent if the protocol has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// It is a port of this machine's, not of the far end's.
    #[serde(default)]
    pub near: bool,
    /// So many packets.
    pub packets: u64,
    /// Why the last of them would have been dropped.
    pub reason: Reason,
    /// When the first of them was judged.
    pub first: Timestamp,
    /// When the last of them was judged.
    pub last: Timestamp,
}

/// A program as it was learned.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct LearnedProgram {
    /// Its path as the process sees it.
    pub path: String,
    /// Its digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The image's aggregate digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregate: Option<Digest>,
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
    /// Nothing is dropped, only recorded (`--audit`).
    #[serde(default)]
    pub audit: bool,
    /// What the eBPF probe does.
    pub probe: ProbeStatus,
    /// The verdict cache in the kernel.
    #[serde(default)]
    pub kernel_cache: KernelCacheStatus,
    /// One for each queue.
    pub queues: Vec<QueueStatus>,
    /// Events left out by the rate limit or a full journal.
    pub events_omitted: u64,
    /// Digests known without hashing.
    pub digests: usize,
    /// Open sockets of the daemon's network namespace whose packets no rule sees.
    #[serde(default)]
    pub bypass_capable: Vec<BypassSocket>,
    /// The rules of `app-fw --hook`, and what rules made by hand can refer to.
    #[serde(default)]
    pub hooks: HooksStatus,
}

/// How packets get to the daemon.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct HooksStatus {
    /// One for each hook and family; empty without `--hook`.
    pub rules: Vec<HookStatus>,
    /// The directory with the programs of the verdict cache, for `iptables -m bpf --object-pinned`. Absent: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pins: Option<String>,
    /// What is not as it could be; sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// The rules of one hook.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct HookStatus {
    /// As it was asked for: `OUTPUT`, `FORWARD:docker0`.
    pub hook: String,
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// By which program, to which kind of tables.
    pub tables: String,
    /// They are there.
    pub in_place: bool,
    /// Milliseconds since they were found gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_ms: Option<u64>,
    /// How often they were gone and came back.
    pub put_back: u64,
    /// Why they could not be put back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
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

/// The verdict cache in the kernel.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct KernelCacheStatus {
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
    /// What packets met there, by chain; chains that no packet of which it has seen are left out.
    #[serde(default)]
    pub chains: Vec<CachedPackets>,
}

/// What packets of a chain met in the cache.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CachedPackets {
    /// The chain.
    pub chain: Chain,
    /// Accepted there.
    pub accepted: u64,
    /// Dropped there.
    pub dropped: u64,
    /// Sent on to the queue, by the reason why.
    pub missed: std::collections::BTreeMap<String, u64>,
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
        let edits = vec![Edit::Add { rule, position: Some(2) }];
        let call = Call { version: VERSION, request: Request::Change { edits, note: None, expected: Some(3) } };
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
        for body in [&b""[..], b"{", b"[]", b"{\"version\":2}", b"{\"version\":2,\"request\":\"dance\"}", b"\xff\xfe"] {
            assert!(decode::<Call>(body).is_err());
        }
        let bad = br#"{"version":2,"request":"list","namespace":"a b"}"#;
        assert!(decode::<Call>(bad).is_err());
    }
}
