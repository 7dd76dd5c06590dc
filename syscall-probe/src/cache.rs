//! Verdicts that stay in the kernel: what `bpf/cache.h` reads, written from this side.
//!
//! An answer is stored with a [`Stamp`] of the generations it was derived from. To store a true one: take the stamp, *then* find
//! that the answer still holds, then put it. Whatever changes after the stamp was taken makes the kernel see other sums.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use smallvec::SmallVec;

use crate::generations::{Generations, Shared};
use crate::layout::{
    ANSWER_KEY, ANSWER_WORDS, AnswerSlot, CACHE_SLOTS, CACHE_WAYS, CacheControl, CacheCounter, CacheCounts,
};
use crate::sys::{SharedArray, monotonic};

/// A chain whose packets can be judged in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CachedChain {
    /// Packets that leave, or come from a container.
    Output = 0,
    /// Packets that arrive, or go to a container.
    Input = 1,
    /// Packets that pass.
    Forward = 2,
}

impl CachedChain {
    /// All of them.
    pub const ALL: [CachedChain; 3] = [CachedChain::Output, CachedChain::Input, CachedChain::Forward];
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
    /// Index of the device by which its packets come, the port of a bridge rather than the bridge; 0: they are made here.
    pub in_device: u32,
    /// Index of the device by which its packets go; 0: they stay here.
    pub out_device: u32,
}

/// How much of a flow an answer is an answer for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Everything of its chain and protocol, by the same process if one was asked about.
    All,
    /// What goes to the same destination by the same devices, likewise.
    Destination,
    /// It alone.
    Flow,
}

/// Who has to stand still for an answer to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Basis {
    /// Nobody: the rules did not ask.
    Nobody,
    /// All processes that hold the socket, at most [`Basis::MOST_HOLDERS`]: ids in the initial pid namespace. Only for
    /// [`Scope::Flow`].
    Holders(SmallVec<[u32; 1]>),
    /// Those, and raw sockets come and go nowhere: where anybody may have made the packets. Only for [`Scope::Flow`].
    HoldersAlone(SmallVec<[u32; 1]>),
    /// The only holder, who sends each packet by a system call. Only for [`Scope::Flow`].
    Sender(CachedSender),
    /// Whoever made the socket, if nobody else can hold it. Not for [`Scope::Flow`].
    Maker(CachedSender),
}

/// A process that sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CachedSender {
    /// Its id, in the initial pid namespace.
    pub tgid: u32,
    /// When it began: hundredths of a second since boot, as proc_pid_stat(5) tells it.
    pub start: u64,
    /// How packets come from it.
    pub by: SentBy,
}

/// How packets come from a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SentBy {
    /// The kernel sends them for it, whenever it may.
    Kernel,
    /// Each is sent in a system call of its own.
    Call,
    /// Likewise, by a thread that nobody traces.
    CallOf {
        /// Its effective user id.
        uid: u32,
        /// Its effective group id.
        gid: u32,
    },
}

impl Basis {
    /// What one entry has room for.
    pub const MOST_HOLDERS: usize = 5;

    fn processes(&self) -> &[u32] {
        match self {
            Basis::Nobody => &[],
            Basis::Holders(holders) | Basis::HoldersAlone(holders) => holders,
            Basis::Sender(sender) | Basis::Maker(sender) => std::slice::from_ref(&sender.tgid),
        }
    }

    fn is_of_holders(&self) -> bool {
        matches!(self, Basis::Holders(_) | Basis::HoldersAlone(_) | Basis::Sender(_))
    }
}

/// The kinds of `bpf/cache.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    AnyPacket = 0,
    OfMaker = 1,
    OfMakerTo = 2,
    To = 3,
    OfFlow = 4,
}

impl Kind {
    /// `None`: there is no such answer.
    fn of(scope: Scope, basis: &Basis) -> Option<Kind> {
        match (scope, basis) {
            (Scope::All, Basis::Nobody) => Some(Kind::AnyPacket),
            (Scope::All, Basis::Maker(_)) => Some(Kind::OfMaker),
            (Scope::Destination, Basis::Nobody) => Some(Kind::To),
            (Scope::Destination, Basis::Maker(_)) => Some(Kind::OfMakerTo),
            (Scope::Flow, Basis::Maker(_)) | (Scope::All | Scope::Destination, _) => None,
            (Scope::Flow, _) => Some(Kind::OfFlow),
        }
    }
}

impl CachedFlow {
    /// The port at the end of whoever is asked about.
    fn own_port(&self) -> u16 {
        match self.chain {
            CachedChain::Output | CachedChain::Forward => self.source_port,
            CachedChain::Input => self.destination_port,
        }
    }

    /// `struct flow_key`, word by word, of a kind of answer; `None` if there is no such packet.
    fn words(&self, kind: Kind, maker: u32) -> Option<[u64; ANSWER_KEY]> {
        let mut bytes = [0u8; ANSWER_KEY * 8];
        bytes[36] = self.protocol;
        bytes[38] = self.chain as u8;
        bytes[39] = kind as u8;
        if kind != Kind::AnyPacket && kind != Kind::OfMaker {
            bytes[37] = match self.destination {
                IpAddr::V4(destination) => {
                    bytes[16..20].copy_from_slice(&destination.octets());
                    4
                }
                IpAddr::V6(destination) => {
                    bytes[16..32].copy_from_slice(&destination.octets());
                    6
                }
            };
            bytes[34..36].copy_from_slice(&self.destination_port.to_ne_bytes());
            bytes[40..44].copy_from_slice(&self.in_device.to_ne_bytes());
            bytes[44..48].copy_from_slice(&self.out_device.to_ne_bytes());
        }
        if kind == Kind::OfFlow {
            match (self.source, self.destination) {
                (IpAddr::V4(source), IpAddr::V4(_)) => bytes[0..4].copy_from_slice(&source.octets()),
                (IpAddr::V6(source), IpAddr::V6(_)) => bytes[0..16].copy_from_slice(&source.octets()),
                _ => return None,
            }
            bytes[32..34].copy_from_slice(&self.source_port.to_ne_bytes());
        }
        if kind == Kind::OfMaker || kind == Kind::OfMakerTo {
            bytes[0..4].copy_from_slice(&maker.to_ne_bytes());
        }
        let word = |at: usize| u64::from_ne_bytes(bytes[at * 8..at * 8 + 8].try_into().unwrap_or_default());
        Some(std::array::from_fn(word))
    }
}

/// The generations that an answer depends on, at one time. Generations never fall, so that a sum of several stands still only while
/// each of them does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    flow: CachedFlow,
    kind: Kind,
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
    /// Of these packets, those of which somebody wanted to be told.
    pub untold: u64,
    /// Went to the queue, by [`MISSES`].
    pub misses: [u64; MISSES.len()],
}

/// Tokens of the reasons why packets went to the queue, in the order of their counters.
pub const MISSES: [&str; 8] = ["lease", "kind", "place", "unknown", "machine", "port", "process", "sender"];

/// Its number among protocols.
const UDP: u8 = 17;

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

    /// No answer holds any more, and nobody else is to be told when this process ends.
    pub fn end(&self) {
        self.control[0].lease.store(0, Ordering::SeqCst);
    }

    /// All answers so far are forgotten: to be called after the rules, or anything else was changed that answers are derived from
    /// and the kernel does not see, and before that is told to anybody.
    pub fn forget_all(&self) {
        let control = &self.control[0];
        // An answer of the next epoch says of what kind it is after it has read the epoch.
        control.kinds.iter().flatten().for_each(|kinds| kinds.store(0, Ordering::Relaxed));
        control.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// The generations now. `None` if an answer about such packets cannot be kept.
    pub fn stamp(&self, flow: CachedFlow, scope: Scope, basis: Basis) -> Option<Stamp> {
        let kind = Kind::of(scope, &basis)?;
        let exact = Generations::new(Arc::clone(&self.shared)).exact();
        let all = &self.shared.wide[0];
        let load = |generation: &AtomicU64| generation.load(Ordering::Acquire);
        let mut machine = load(&self.control[0].epoch)
            .wrapping_add(load(&all.generation))
            .wrapping_add(load(&all.file_epoch))
            .wrapping_add(load(&all.tracers))
            .wrapping_add(load(&all.links));
        if matches!(basis, Basis::HoldersAlone(_)) {
            machine = machine.wrapping_add(load(&all.raw_sockets));
        }
        if basis == Basis::Nobody {
            return exact.links.then_some(Stamp { flow, kind, basis, machine, process: 0, port: 0 });
        }
        let is_exact = exact.processes && exact.standing && exact.ports && exact.files && exact.sockets && exact.links;
        if !is_exact || basis.processes().len() > Basis::MOST_HOLDERS {
            return None;
        }
        let of_process = |tgid: &u32| {
            let slot = &self.shared.processes[*tgid as usize % self.shared.processes.len()];
            let image = load(&slot.image_generation)
                .wrapping_add(load(&slot.shed_generation))
                .wrapping_add(load(&slot.standing_generation));
            if basis.is_of_holders() { image.wrapping_add(load(&slot.generation)) } else { image }
        };
        let process = basis.processes().iter().map(of_process).fold(0, u64::wrapping_add);
        let port = load(&self.shared.ports[usize::from(flow.own_port())]);
        Some(Stamp { flow, kind, basis, machine, process, port })
    }

    /// Stores an answer that was found to hold after the stamp was taken. `counter`: which counter its packets are added to.
    /// `untold`: somebody wants to be told of each of them and cannot be for now; it holds for so long, and they are counted.
    /// False if it was there already, and holds.
    pub fn put(&self, stamp: &Stamp, verdict: CachedVerdict, counter: u32, untold: Option<Duration>) -> bool {
        const ON_OWNERS: u64 = 1;
        const ON_MAKER: u64 = 2;
        const ON_SENDER: u64 = 4;
        const ON_CENSUS: u64 = 8;
        const ON_USER: u64 = 16;
        const UNTOLD: u64 = 32;
        const OTHERS_SHIFT: usize = 8;
        let processes = stamp.basis.processes();
        let process = |index: usize| u64::from(processes.get(index).copied().unwrap_or_default());
        let Some(key) = stamp.flow.words(stamp.kind, process(0) as u32) else { return false };
        let others = (processes.len().saturating_sub(1) as u64) << OTHERS_SHIFT;
        let (start, by) = match &stamp.basis {
            Basis::Sender(sender) | Basis::Maker(sender) => (sender.start, sender.by),
            _ => (0, SentBy::Kernel),
        };
        let (on_sender, uid, gid) = match by {
            SentBy::Kernel => (0, 0, 0),
            SentBy::Call => (ON_SENDER, 0, 0),
            SentBy::CallOf { uid, gid } => (ON_SENDER | ON_USER, u64::from(uid), u64::from(gid)),
        };
        let on_whom = match stamp.basis {
            Basis::Nobody => 0,
            Basis::Holders(_) | Basis::Sender(_) => ON_OWNERS,
            Basis::HoldersAlone(_) => ON_OWNERS | ON_CENSUS,
            Basis::Maker(_) => ON_MAKER,
        };
        let depends = on_whom | on_sender | others | untold.map_or(0, |_| UNTOLD);
        let now = monotonic();
        let mut words = [0; ANSWER_WORDS];
        words[..ANSWER_KEY].copy_from_slice(&key);
        words[ANSWER_KEY..].copy_from_slice(&[
            verdict as u64 | depends << 32,
            stamp.machine,
            stamp.process,
            stamp.port,
            start,
            process(1) | process(2) << 32,
            process(3) | process(4) << 32,
            process(0) | uid << 32,
            gid | u64::from(counter) << 32,
            untold.map_or(0, |life| now + life.as_nanos() as u64),
        ]);
        let place = self.place(&key);
        if place.holds(&words, now) {
            return false;
        }
        place.write(&words);
        let is_udp = usize::from(stamp.flow.protocol == UDP);
        self.control[0].kinds[stamp.flow.chain as usize][is_udp].fetch_or(1 << stamp.kind as u32, Ordering::Relaxed);
        true
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
            untold: load(&counts.untold),
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
    /// Whether it has this answer, and has it still at `now`.
    fn holds(&self, words: &[u64; ANSWER_WORDS], now: u64) -> bool {
        const EXPIRES: usize = ANSWER_WORDS - 1;
        let is = |index: usize| self.words[index].load(Ordering::Relaxed) == words[index];
        let expires = self.words[EXPIRES].load(Ordering::Relaxed);
        (expires == 0 || now < expires) && (0..EXPIRES).all(is)
    }

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
