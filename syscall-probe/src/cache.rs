//! Verdicts that stay in the kernel: what `bpf/cache.h` reads, written from this side.
//!
//! An answer is stored with a [`Stamp`] of the generations it was derived from. To store a true one: take the stamp, *then* find
//! that the answer still holds, then put it. Whatever changes after the stamp was taken makes the kernel see other sums.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::generations::{Generations, Shared};
use crate::layout::{
    ANSWER_KEY, ANSWER_WORDS, AnswerSlot, CACHE_SLOTS, CACHE_WAYS, CacheControl, CacheCounter, CacheCounts,
};
use crate::sys::{SharedArray, monotonic};

/// A chain whose packets can be judged in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CachedChain {
    /// Packets that leave.
    Output = 0,
    /// Packets that arrive.
    Input = 1,
}

impl CachedChain {
    /// All of them.
    pub const ALL: [CachedChain; 2] = [CachedChain::Output, CachedChain::Input];
}

/// What the kernel does with a packet that finds its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CachedVerdict {
    /// The program for accepted packets matches.
    Accept = 1,
    /// The program for dropped packets matches.
    Drop = 2,
}

/// A flow of TCP or UDP, as its packets show it where iptables sees them. Ports in host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CachedFlow {
    /// Where its packets are met.
    pub chain: CachedChain,
    /// 6 or 17.
    pub protocol: u8,
    /// Source address.
    pub source: IpAddr,
    /// Source port.
    pub source_port: u16,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port.
    pub destination_port: u16,
    /// Index of the device by which its packets come ([`CachedChain::Input`]) or go.
    pub device: u32,
}

impl CachedFlow {
    /// The port at this machine's end.
    fn own_port(&self) -> u16 {
        match self.chain {
            CachedChain::Output => self.source_port,
            CachedChain::Input => self.destination_port,
        }
    }

    /// `struct flow_key`, word by word; `None` if there is no such packet.
    fn words(&self) -> Option<[u64; ANSWER_KEY]> {
        let mut bytes = [0u8; ANSWER_KEY * 8];
        let version = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                bytes[0..4].copy_from_slice(&source.octets());
                bytes[16..20].copy_from_slice(&destination.octets());
                4
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                bytes[0..16].copy_from_slice(&source.octets());
                bytes[16..32].copy_from_slice(&destination.octets());
                6
            }
            _ => return None,
        };
        bytes[32..34].copy_from_slice(&self.source_port.to_ne_bytes());
        bytes[34..36].copy_from_slice(&self.destination_port.to_ne_bytes());
        bytes[36] = self.protocol;
        bytes[37] = version;
        bytes[38] = self.chain as u8;
        let device = match self.chain {
            CachedChain::Input => 40..44,
            CachedChain::Output => 44..48,
        };
        bytes[device].copy_from_slice(&self.device.to_ne_bytes());
        let word = |at: usize| u64::from_ne_bytes(bytes[at * 8..at * 8 + 8].try_into().unwrap_or_default());
        Some(std::array::from_fn(word))
    }
}

/// Who has to stand still for an answer to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// Nobody: the rules did not ask.
    Flow,
    /// The only process that holds the socket.
    Holder {
        /// Its id, in the initial pid namespace.
        tgid: u32,
    },
    /// The only holder, who sends each packet by a system call.
    Sender {
        /// Its id, in the initial pid namespace.
        tgid: u32,
        /// When it began: nanoseconds since boot.
        start: u64,
        /// Effective user id.
        uid: u32,
        /// Effective group id.
        gid: u32,
        /// Id of its control group of version 2.
        cgroup: u64,
    },
}

impl Basis {
    fn tgid(&self) -> Option<u32> {
        match *self {
            Basis::Flow => None,
            Basis::Holder { tgid } | Basis::Sender { tgid, .. } => Some(tgid),
        }
    }
}

/// The generations that an answer depends on, at one time. Generations never fall, so that a sum of several stands still only while
/// each of them does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    flow: CachedFlow,
    basis: Basis,
    machine: u64,
    process: u64,
    port: u64,
}

/// What packets found, for one chain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CacheCount {
    /// Accepted in the kernel.
    pub accepted: u64,
    /// Dropped in the kernel.
    pub dropped: u64,
    /// Went to the queue, by [`MISSES`].
    pub misses: [u64; MISSES.len()],
}

/// Tokens of the reasons why packets went to the queue, in the order of their counters.
pub const MISSES: [&str; 8] = ["lease", "kind", "place", "unknown", "machine", "port", "process", "sender"];

/// How long an answer holds if the daemon is not heard of.
pub const LEASE: Duration = Duration::from_millis(500);

/// The answers. Cheap to share; several threads may put.
pub struct Cache {
    pub(crate) answers: SharedArray<AnswerSlot>,
    pub(crate) control: SharedArray<CacheControl>,
    pub(crate) counters: SharedArray<CacheCounter>,
    pub(crate) counts: SharedArray<CacheCounts>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) turn: AtomicU64,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").finish_non_exhaustive()
    }
}

impl Cache {
    /// Begins: hashes are mixed with `secret`. No answer holds before [`Cache::renew`].
    pub(crate) fn begin(&self, secret: u64) {
        let control = &self.control[0];
        control.secret.store(secret, Ordering::Relaxed);
        control.daemon.store(std::process::id(), Ordering::Relaxed);
    }

    /// The daemon is alive: answers hold for another [`LEASE`].
    pub fn renew(&self) {
        self.control[0].lease.store(monotonic() + LEASE.as_nanos() as u64, Ordering::Release);
    }

    /// No answer holds any more.
    pub fn end(&self) {
        self.control[0].lease.store(0, Ordering::SeqCst);
    }

    /// All answers so far are forgotten: to be called after the rules, or anything else was changed that answers are derived from
    /// and the kernel does not see, and before that is told to anybody.
    pub fn forget_all(&self) {
        self.control[0].epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// The generations now. `None` if an answer about such packets cannot be kept.
    pub fn stamp(&self, flow: CachedFlow, basis: Basis) -> Option<Stamp> {
        let exact = Generations::new(Arc::clone(&self.shared)).exact();
        let all = &self.shared.wide[0];
        let load = |generation: &AtomicU64| generation.load(Ordering::Acquire);
        let machine = load(&self.control[0].epoch)
            .wrapping_add(load(&all.generation))
            .wrapping_add(load(&all.file_epoch))
            .wrapping_add(load(&all.tracers))
            .wrapping_add(load(&all.links));
        let Some(tgid) = basis.tgid() else {
            return exact.links.then_some(Stamp { flow, basis, machine, process: 0, port: 0 });
        };
        let is_exact = exact.processes && exact.standing && exact.ports && exact.files && exact.sockets && exact.links;
        let slot = &self.shared.processes[tgid as usize % self.shared.processes.len()];
        let process = load(&slot.generation)
            .wrapping_add(load(&slot.image_generation))
            .wrapping_add(load(&slot.shed_generation))
            .wrapping_add(load(&slot.standing_generation));
        let port = load(&self.shared.ports[usize::from(flow.own_port())]);
        is_exact.then_some(Stamp { flow, basis, machine, process, port })
    }

    /// Stores an answer that was found to hold after the stamp was taken, for as long as `life` if that is given. `counter`: which
    /// counter its packets are added to.
    pub fn put(&self, stamp: &Stamp, verdict: CachedVerdict, counter: u32, life: Option<Duration>) {
        const OF_OWNER: u64 = 1;
        const OF_SENDER: u64 = 2;
        let Some(key) = stamp.flow.words() else { return };
        let (depends, tgid, start, uid, gid, cgroup) = match stamp.basis {
            Basis::Flow => (0, 0, 0, 0, 0, 0),
            Basis::Holder { tgid } => (OF_OWNER, tgid, 0, 0, 0, 0),
            Basis::Sender { tgid, start, uid, gid, cgroup } => (OF_OWNER | OF_SENDER, tgid, start, uid, gid, cgroup),
        };
        let mut words = [0; ANSWER_WORDS];
        words[..ANSWER_KEY].copy_from_slice(&key);
        words[ANSWER_KEY..].copy_from_slice(&[
            verdict as u64 | depends << 32,
            stamp.machine,
            stamp.process,
            stamp.port,
            start,
            cgroup,
            u64::from(tgid) | u64::from(uid) << 32,
            u64::from(gid) | u64::from(counter) << 32,
            life.map_or(0, |life| monotonic() + life.as_nanos() as u64),
        ]);
        self.place(&key).write(&words);
    }

    /// The slot of a flow: its own, an empty one, one that holds no more, or any of its bucket.
    fn place(&self, key: &[u64; ANSWER_KEY]) -> &AnswerSlot {
        let bucket = bucket_of(key, self.control[0].secret.load(Ordering::Relaxed));
        let ways = &self.answers[bucket..bucket + CACHE_WAYS];
        let is =
            |slot: &&AnswerSlot| slot.words.iter().zip(key).all(|(word, part)| word.load(Ordering::Relaxed) == *part);
        let is_free = |slot: &&AnswerSlot| slot.words[ANSWER_KEY].load(Ordering::Relaxed) == 0;
        let any = || &ways[self.turn.fetch_add(1, Ordering::Relaxed) as usize % CACHE_WAYS];
        ways.iter().find(is).or_else(|| ways.iter().find(is_free)).unwrap_or_else(any)
    }

    /// Packets and bytes that a counter has counted since the last call.
    pub fn take_counter(&self, counter: u32) -> (u64, u64) {
        let counter = &self.counters[counter as usize % self.counters.len()];
        (counter.packets.swap(0, Ordering::AcqRel), counter.bytes.swap(0, Ordering::AcqRel))
    }

    /// How many counters there are; the first is for answers of which nobody asks how many packets they got.
    pub fn counters(&self) -> u32 {
        self.counters.len() as u32
    }

    /// What packets of a chain found so far.
    pub fn count(&self, chain: CachedChain) -> CacheCount {
        let counts = &self.counts[chain as usize];
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        CacheCount {
            accepted: load(&counts.accepted),
            dropped: load(&counts.dropped),
            misses: std::array::from_fn(|index| load(&counts.misses[index])),
        }
    }
}

/// As `bucket_of` in `bpf/cache.h`.
fn bucket_of(key: &[u64; ANSWER_KEY], secret: u64) -> usize {
    let mixed = |hash: u64, word: &u64| {
        let hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^ hash >> 32
    };
    let hash = key.iter().fold(secret, mixed) as u32 as usize;
    hash & (CACHE_SLOTS - 1) & !(CACHE_WAYS - 1)
}

impl AnswerSlot {
    /// Whoever finds another writing leaves it to him: the packet after this brings the answer again.
    fn write(&self, words: &[u64; ANSWER_WORDS]) {
        let before = self.sequence.load(Ordering::Relaxed);
        let is_ours = before.is_multiple_of(2)
            && self.sequence.compare_exchange(before, before + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if !is_ours {
            return;
        }
        std::sync::atomic::fence(Ordering::SeqCst);
        for (word, value) in self.words.iter().zip(words) {
            word.store(*value, Ordering::Relaxed);
        }
        self.sequence.store(before + 2, Ordering::Release);
    }
}
