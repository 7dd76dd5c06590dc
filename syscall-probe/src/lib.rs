//! What the kernel can tell a firewall about processes and sockets, and when something it told is no longer true.
//!
//! The daemon keeps answers: what a process is made of, who holds a socket. Each was derived from things that change
//! inside system calls. The eBPF programs of this crate (`bpf/`) move a *generation* in the very call that makes the
//! change, before the changed process can send its next packet. An answer is kept together with the generations it was
//! derived from, read **before** anything was looked at, and is used only while they are the same:
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let probe = syscall_probe::Probe::load(&syscall_probe::Options::default())?;
//! let generations = probe.generations();
//! let (process, wide) = (generations.process(4711), generations.wide());
//! // ... look at the process, derive an answer; keep it with `process` and `wide` if `process.settled` ...
//! let now = generations.process(4711);
//! let still_true = now.settled && now == process && generations.wide() == wide;
//! # Ok(()) }
//! ```
//!
//! The generations are arrays in memory shared with the kernel: reading one is a load, not a system call. They are
//! indexed by slots which unrelated things may share, so an answer can be thrown away for nothing; it is never kept
//! wrongly. What the kernel at hand cannot tell exactly, [`Generations::exact`] says: then nothing that depends on it
//! may be kept.
//!
//! Two things a generation cannot say. *Absence* is not covered: "no process holds this" must not be kept. And
//! [`SocketRecord`] explains which holders a dump cannot show.
//!
//! README.md of this crate says for each hook why it is there.

mod cache;
mod cgroup;
mod error;
mod events;
mod generations;
mod holders;
mod hook;
mod layout;
mod mappings;
mod probe;
mod sockets;
mod sys;

pub use cache::{
    Basis, Cache, CacheCount, CachedChain, CachedFlow, CachedSender, CachedVerdict, LEASE, MISSES, Scope, SentBy, Stamp,
};
pub use error::LoadError;
pub use events::{Changes, Events};
pub use generations::{Exact, FileWatch, Generation, Generations};
pub use holders::Holders;
pub use hook::{Hook, UnknownHook};
pub use layout::{
    BypassRecord, Change, ChangeKind, Connection, Creator, DecodeError, Event, EventKind, FileMapping, MappedFile,
    Sender, SocketEnds, SocketRecord, Writer, Writers,
};
pub use mappings::Mappings;
pub use probe::{CACHE_PINS, Options, Probe};
pub use sockets::{LookupError, SocketTable};
