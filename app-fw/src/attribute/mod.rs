//! From a flow to every process that holds its socket.
//!
//! Two ways lead there. [`quick`] takes a few microseconds and answers the usual question: a TCP socket that only the
//! process which made it can hold. [`Search`] answers all others by asking the kernel for every candidate socket and for
//! every holder of each; it may take milliseconds and runs off the packet path.
//!
//! An answer carries the generations it was derived from, read before anything was looked at.

pub mod census;
pub(crate) mod descriptors;
pub mod diag;
mod search;

use std::sync::Arc;

use shared::{Cause, Protocol};
use smallvec::{SmallVec, smallvec};
use syscall_probe::{Creator, Generation, Generations, SocketTable};

use crate::image::{ProcDir, Process};
use crate::namespaces::NamespaceId;
use diag::{Diag, Tuple, state};

pub use search::Search;

/// The near end of a flow: what there is to look for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Endpoint {
    /// Where the socket lives.
    pub namespace: NamespaceId,
    /// Layer-4 protocol.
    pub protocol: Protocol,
    /// Local and remote end. For ICMP echo the local port is the identifier; for protocols without ports both are 0.
    pub tuple: Tuple,
    /// The interface the packet uses, in the socket's namespace; 0 if unknown.
    pub device: u32,
    /// Who made the packet.
    pub origin: Origin,
    /// Whose raw socket may have made the packet, whatever its ports say; `None`: nobody's.
    pub suspect: Option<Suspect>,
}

/// Who may have forged a packet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Suspect {
    /// The process with this id, which ran when the packet was queued.
    Sender(u32),
    /// Any process that holds a raw socket for the packet's protocol: who sent it is not known.
    Anybody,
}

/// Who made a packet, as far as the queue tells.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Origin {
    /// It is on its way to the socket.
    Elsewhere,
    /// A process: it held the socket when the packet was queued.
    Process {
        /// Filesystem user id of the socket's opener.
        uid: u32,
    },
    /// The kernel, or a socket that nobody holds any more.
    Kernel,
    /// It was forwarded, and the queue knows nothing of its socket.
    Unknown,
}

impl Endpoint {
    /// Some process may have made the packet.
    fn may_be_made(&self) -> bool {
        matches!(self.origin, Origin::Process { .. } | Origin::Unknown)
    }
}

/// One process that holds a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holder {
    /// Which.
    pub process: Process,
    /// Its generation, read before it was looked at.
    pub generation: u64,
    /// A generation at which it had the socket, or the one that this was accepted from, if it is known. Whatever came
    /// out of the socket is the work of programs it ran since.
    pub since: Option<u64>,
    /// [`Generations::exec`] of the process when it first wrote into the socket, if that is known: what was written into a
    /// connection waits in the kernel as long as it takes.
    pub wrote: Option<u64>,
}

impl Holder {
    /// The maker of a socket, as it was then.
    fn maker(maker: &Creator) -> Holder {
        Holder {
            process: Process::new(maker.tgid, maker.start),
            generation: maker.process_generation,
            since: Some(maker.process_generation),
            wrote: None,
        }
    }

    fn is_unmoved(&self, generations: &Generations) -> bool {
        generations.process(self.process.tgid) == Generation { value: self.generation, settled: true }
    }

    /// Whether the process has done nothing since but end, if that. One move may be its end, or a fork or an exec; but
    /// then it is still there.
    fn ended_at_most(&self, generations: &Generations) -> bool {
        let now = generations.process(self.process.tgid);
        now.settled
            && (now.value == self.generation
                || now.value == self.generation + 1 && ProcDir::open(self.process).is_err())
    }
}

/// Who holds the socket or sockets a flow may belong to. Nobody and nothing undetermined: unowned.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Owners {
    /// The holders.
    pub holders: SmallVec<[Holder; 1]>,
    /// There is an owner besides that could not be identified.
    pub undetermined: Option<Cause>,
    /// Cookies of the sockets.
    pub cookies: SmallVec<[u64; 1]>,
    /// [`Generations::wide`] before anything was looked at.
    wide: u64,
    stamp: Option<Stamp>,
}

/// What the look-up as a whole depends on, besides its holders.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    wide: u64,
    port: u64,
    local_port: u16,
}

impl Stamp {
    /// The generations now; to be read before anything is looked at. `None` if the kernel does not move them all, or if
    /// the packet may be another's than the owners of its flow.
    fn read(generations: &Generations, endpoint: &Endpoint) -> Option<Stamp> {
        let (exact, local_port) = (generations.exact(), endpoint.tuple.local_port);
        let exact_enough = exact.processes && exact.ports && exact.sockets;
        (exact_enough && endpoint.suspect.is_none()).then(|| Stamp {
            wide: generations.wide(),
            port: generations.port(local_port),
            local_port,
        })
    }
}

/// What became of an answer that was kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Staleness {
    /// It may not be kept at all.
    NotKept,
    /// Something that concerns all answers moved.
    Wide,
    /// Some socket took or gave up the local port.
    Port,
    /// A holder's generation moved.
    Process,
}

impl Owners {
    /// No process holds it: the kernel made the packet, or nobody listens.
    pub fn unowned() -> Owners {
        Owners::default()
    }

    /// Somebody sent it, but who cannot be said.
    pub fn undetermined(cause: Cause) -> Owners {
        Owners { undetermined: Some(cause), ..Owners::default() }
    }

    fn sole(holder: Holder, cookie: u64, stamp: Stamp) -> Owners {
        Owners {
            holders: smallvec![holder],
            cookies: smallvec![cookie],
            wide: stamp.wide,
            stamp: Some(stamp),
            undetermined: None,
        }
    }

    /// The owners of a bare segment (no data, no SYN) that the kernel made for a connection whose owners these were: what
    /// is left of a connection says its last words, and whatever became of its holders since, they are theirs.
    pub fn of_last_words(&self) -> Owners {
        Owners { stamp: None, ..self.clone() }
    }

    /// There is somebody besides who cannot be identified.
    pub fn and_somebody(&self, cause: Cause) -> Owners {
        Owners { undetermined: self.undetermined.or(Some(cause)), stamp: None, ..self.clone() }
    }

    /// Besides those who hold the socket now, the process that sent the packet is an owner. If the socket is gone, it is
    /// the only one: nobody else can have it any more.
    pub fn and_sender(owners: Arc<Owners>, process: Process, generations: &Generations) -> Arc<Owners> {
        let is_known = owners.holders.iter().any(|holder| holder.process == process);
        let is_gone = owners.undetermined == Some(Cause::SocketGone);
        if is_known && !is_gone {
            return owners;
        }
        let mut both = Owners::clone(&owners);
        both.stamp = None;
        both.undetermined = both.undetermined.filter(|_| !is_gone);
        if !is_known {
            let generation = generations.process(process.tgid).value;
            both.holders.push(Holder { process, generation, since: None, wrote: None });
        }
        Arc::new(both)
    }

    /// Whether it may be used for another packet, if nothing changes. `accepted`: only to accept it. Of several holders one may
    /// give the socket up without any generation moving; but whatever all of them may send, those who are left may.
    pub fn may_be_kept(&self, accepted: bool) -> bool {
        self.stamp.is_some() && (accepted || self.holders.len() == 1)
    }

    /// Whether nothing it was derived from has changed. Costs a few loads. `accepted`: see [`Owners::may_be_kept`].
    ///
    /// # Errors
    /// What changed.
    pub fn check(&self, generations: &Generations, accepted: bool) -> Result<(), Staleness> {
        let stamp = self.stamp.as_ref().filter(|_| self.may_be_kept(accepted)).ok_or(Staleness::NotKept)?;
        if generations.wide() != stamp.wide {
            return Err(Staleness::Wide);
        }
        if generations.port(stamp.local_port) != stamp.port {
            return Err(Staleness::Port);
        }
        if self.holders.iter().all(|holder| holder.is_unmoved(generations)) { Ok(()) } else { Err(Staleness::Process) }
    }

    /// Whether they still are the last holders of a socket that has been closed since: no holder did anything but end.
    fn were_last(&self, generations: &Generations) -> bool {
        self.undetermined.is_none()
            && !self.holders.is_empty()
            && generations.wide() == self.wide
            && self.holders.iter().all(|holder| holder.ended_at_most(generations))
    }
}

/// What [`quick`] and [`Search`] ask the kernel by.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    /// Who made which socket.
    pub sockets: &'a SocketTable,
    /// The generations.
    pub generations: &'a Generations,
}

/// Owners of a flow that a few microseconds can tell: those of a TCP socket which only the process that made it can hold,
/// or which is closed and goes on sending. `None`: a search is needed.
pub fn quick(endpoint: &Endpoint, diag: &mut Diag, means: Means<'_>, previous: Option<&Owners>) -> Option<Owners> {
    if endpoint.protocol != Protocol::TCP {
        return None;
    }
    if means.generations.is_ambiguous(endpoint.tuple.local_port) {
        return None;
    }
    let stamp = Stamp::read(means.generations, endpoint)?;
    if let Some(begun) = means.begun(endpoint, stamp) {
        return Some(begun);
    }
    let Some(found) = diag.find(Protocol::TCP, &endpoint.tuple, endpoint.device).ok()? else {
        return (!endpoint.may_be_made()).then(|| without_socket(means.generations, previous));
    };
    match found.state {
        state::LISTEN | state::SYN_RECV => None,
        state::TIME_WAIT => Some(means.time_wait(found.cookie, previous)),
        // Nobody can get hold of it any more; as long as it is there, the answer holds.
        _ if found.inode == 0 => {
            let last = means.last_holders(found.cookie, previous)?;
            let alive = last.holders.iter().all(|holder| holder.is_unmoved(means.generations));
            Some(Owners { stamp: Some(stamp).filter(|_| alive), ..last })
        }
        _ => Some(Owners::sole(means.sole_maker(found.cookie)?, found.cookie, stamp)),
    }
}

/// Owners of a packet that no process sent and whose socket is not there: those of the socket that was, or nobody.
fn without_socket(generations: &Generations, previous: Option<&Owners>) -> Owners {
    match previous {
        Some(previous) if previous.were_last(generations) => Owners { stamp: None, ..previous.clone() },
        _ => Owners::unowned(),
    }
}

impl Means<'_> {
    /// Owners of a connection that a process began, if nothing has happened to its port since. Costs a few loads.
    fn begun(&self, endpoint: &Endpoint, stamp: Stamp) -> Option<Owners> {
        let Origin::Process { .. } = endpoint.origin else { return None };
        let connection = self.generations.connection(endpoint.tuple.local_port)?;
        let tuple = Tuple {
            local: connection.local,
            local_port: endpoint.tuple.local_port,
            remote: connection.remote,
            remote_port: connection.remote_port,
        };
        let is_it = connection.port_generation == stamp.port
            && connection.netns_cookie == endpoint.namespace.cookie
            && tuple == endpoint.tuple;
        let holder = self.sole(connection.maker.filter(|_| is_it)?)?;
        Some(Owners::sole(holder, connection.cookie, stamp))
    }

    /// The process that made a socket, if nobody else can hold it.
    fn sole_maker(&self, cookie: u64) -> Option<Holder> {
        self.sole(self.sockets.creator(cookie).ok()??)
    }

    fn sole(&self, maker: Creator) -> Option<Holder> {
        let now = self.generations.process(maker.tgid);
        let alone = now.settled
            && now.value == maker.process_generation
            && self.generations.wide() == maker.wide_generation
            && !maker.shared_table
            && !maker.raw;
        alone.then(|| Holder::maker(&maker))
    }

    /// What is left of a connection says the last word for it, without data: whatever became of its holders since, they are
    /// those of the earlier answer. Nobody's, if there is none.
    fn time_wait(&self, cookie: u64, previous: Option<&Owners>) -> Owners {
        match previous {
            Some(previous) if previous.cookies.contains(&cookie) => Owners { stamp: None, ..previous.clone() },
            _ => self.last_holders(cookie, previous).unwrap_or_default(),
        }
    }

    /// Those who held a socket last that no file holds any more: the holders of an earlier answer, or its maker, if they
    /// did nothing since but end.
    fn last_holders(&self, cookie: u64, previous: Option<&Owners>) -> Option<Owners> {
        if let Some(previous) = previous
            && previous.cookies.contains(&cookie)
            && previous.were_last(self.generations)
        {
            return Some(Owners { stamp: None, ..previous.clone() });
        }
        let maker = self.sockets.creator(cookie).ok()??;
        let made = Holder::maker(&maker);
        let alone = made.ended_at_most(self.generations)
            && self.generations.wide() == maker.wide_generation
            && !maker.shared_table
            && !maker.raw;
        let wide = maker.wide_generation;
        alone.then(|| Owners { holders: smallvec![made], cookies: smallvec![cookie], wide, ..Owners::default() })
    }
}
