//! From a flow to every process that holds its socket.
//!
//! Two ways lead there. [`quick`] takes a few microseconds and answers the usual question: a TCP socket that only the
//! process which made it can hold. [`Search`] answers all others by asking the kernel for every candidate socket and for
//! every holder of each; it may take milliseconds and runs off the packet path.
//!
//! An answer carries the generations it was derived from, read before anything was looked at.

pub mod census;
mod descriptors;
pub mod diag;
mod search;

use shared::{Cause, Protocol};
use syscall_probe::{Generation, Generations, SocketTable};

use crate::image::Process;
use crate::namespaces::NamespaceId;
use census::Census;
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
    /// The packet leaves the socket; else it is on its way there.
    pub outgoing: bool,
    /// When the packet was queued, a process still held the socket it came from. Never set for incoming packets.
    pub from_process: bool,
}

/// One process that holds a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holder {
    /// Which.
    pub process: Process,
    /// Its generation, read before it was looked at.
    pub generation: u64,
}

impl Holder {
    /// Whether the process has done nothing since but end, if that.
    fn ended_at_most(&self, generations: &Generations) -> bool {
        let now = generations.process(self.process.tgid);
        now.settled && (now.value == self.generation || now.value == self.generation + 1)
    }
}

/// Who holds the socket or sockets a flow may belong to. Nobody and nothing undetermined: unowned.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Owners {
    /// The holders.
    pub holders: Vec<Holder>,
    /// There is an owner besides that could not be identified.
    pub undetermined: Option<Cause>,
    /// Cookies of the sockets.
    pub cookies: Vec<u64>,
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
    /// The generations now; to be read before anything is looked at. `None` if the kernel does not move them all.
    fn read(generations: &Generations, endpoint: &Endpoint) -> Option<Stamp> {
        let (exact, local_port) = (generations.exact(), endpoint.tuple.local_port);
        (exact.processes && exact.ports && exact.sockets).then(|| Stamp {
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

    /// Whether nothing it was derived from has changed. Costs a few loads.
    ///
    /// # Errors
    /// What changed.
    pub fn check(&self, generations: &Generations) -> Result<(), Staleness> {
        let stamp = self.stamp.as_ref().ok_or(Staleness::NotKept)?;
        if generations.wide() != stamp.wide {
            return Err(Staleness::Wide);
        }
        if generations.port(stamp.local_port) != stamp.port {
            return Err(Staleness::Port);
        }
        let unmoved = |holder: &Holder| {
            generations.process(holder.process.tgid) == Generation { value: holder.generation, settled: true }
        };
        if self.holders.iter().all(unmoved) { Ok(()) } else { Err(Staleness::Process) }
    }

    /// Whether they still are the last holders of a socket that has been closed since: no holder did anything but end.
    fn were_last(&self, generations: &Generations) -> bool {
        self.undetermined.is_none()
            && !self.holders.is_empty()
            && self.holders.iter().all(|holder| holder.ended_at_most(generations))
    }
}

/// Owners of a flow that a few microseconds can tell: its TCP socket was made by a process which has since neither
/// shared, passed on nor inherited anything, so that nobody else can hold it. `None`: a search is needed.
pub fn quick(
    endpoint: &Endpoint,
    diag: &mut Diag,
    sockets: &SocketTable,
    generations: &Generations,
    census: &Census,
) -> Option<Owners> {
    if endpoint.protocol != Protocol::TCP || (endpoint.outgoing && !census.is_clear(generations)) {
        return None;
    }
    let stamp = Stamp::read(generations, endpoint)?;
    let found = diag.find(Protocol::TCP, &endpoint.tuple, endpoint.device).ok()??;
    if found.inode == 0 || matches!(found.state, state::LISTEN | state::SYN_RECV | state::TIME_WAIT) {
        return None;
    }
    let holder = sole_maker(found.cookie, sockets, generations, stamp.wide)?;
    Some(Owners { holders: vec![holder], undetermined: None, cookies: vec![found.cookie], stamp: Some(stamp) })
}

/// The process that made a socket, if nobody else can hold it.
fn sole_maker(cookie: u64, sockets: &SocketTable, generations: &Generations, wide: u64) -> Option<Holder> {
    let creator = sockets.creator(cookie).ok()??;
    let now = generations.process(creator.tgid);
    let alone = now.settled
        && now.value == creator.process_generation
        && wide == creator.wide_generation
        && !creator.shared_table
        && !creator.raw;
    alone.then(|| Holder { process: Process::new(creator.tgid, creator.start), generation: now.value })
}
