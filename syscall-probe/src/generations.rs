//! The generations, read from memory shared with the kernel.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering, fence};

use crate::Hook;
use crate::layout::{
    Connection, ConnectionSlot, FILE_SLOTS, FileSlot, MappedFile, PROCESS_SLOTS, ProcessSlot, SENDER_FINISHED,
    SENDER_QUEUES, SENDER_SETTLED, SENDER_SHARED, SENDER_SLOTS, SENDER_TRACED, Sender, SenderSlot, Wide,
};
use crate::sys::SharedArray;

/// The state of a process as far as answers derived from it are concerned. What it holds and what it is made of have
/// one each.
///
/// Two equal values, both settled, mean that nothing has changed in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Generation {
    /// Moves when the process may have changed.
    pub value: u64,
    /// No change is under way, and every change would be seen. While it is false nothing derived from the process may
    /// be kept or used.
    pub settled: bool,
}

/// Which generations can be relied upon. Where one of these is false, nothing that depends on it may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exact {
    /// [`Generations::process`], [`Generations::image`] and [`Generations::tracers`]; without it no process is ever
    /// settled.
    pub processes: bool,
    /// [`Generations::standing`].
    pub standing: bool,
    /// [`Generations::port`].
    pub ports: bool,
    /// [`Generations::file`] and [`Generations::file_epoch`].
    pub files: bool,
    /// [`crate::SocketTable::creator`] and [`Generations::raw_sockets`].
    pub sockets: bool,
    /// [`Generations::links`].
    pub links: bool,
}

impl Exact {
    pub(crate) fn without(missing: &[(Hook, String)]) -> Exact {
        let all = |needed: &[Hook]| needed.iter().all(|hook| missing.iter().all(|(absent, _)| absent != hook));
        let calls = all(&[Hook::SysEnter, Hook::SysExit, Hook::RunningTasks]);
        let processes = calls && all(&[Hook::Exec, Hook::Fork, Hook::Exit]);
        Exact {
            processes,
            standing: processes && all(&[Hook::CgroupAttach]),
            // connect() of a datagram socket can give a port up, and only the system call shows it.
            ports: calls && all(&[Hook::TcpState, Hook::TcpConnect, Hook::SockRelease, Hook::Bind]),
            files: all(&[Hook::InodeDirty]),
            sockets: all(&[Hook::SockCreate]),
            links: all(&[Hook::Links]),
        }
    }

    const NOTHING: Exact =
        Exact { processes: false, standing: false, ports: false, files: false, sockets: false, links: false };
}

/// A file whose changes are watched: the slot of its inode number, which other files may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileWatch(u32);

/// `f_type` of ext2, ext3 and ext4 (include/uapi/linux/magic.h).
const EXT_MAGIC: u64 = 0xef53;

impl FileWatch {
    /// Whether a file system reports all changes of its files; `filesystem` is the `f_type` of statfs(2).
    ///
    /// True for ext2, ext3 and ext4 alone. tmpfs and memfd report the first write to a file and hardly any later change
    /// (tried on Linux 6.18). Others keep their own account of what is dirty. A file of theirs has to be looked at each
    /// time. For an overlay ask about the file below.
    pub fn covers(filesystem: u64) -> bool {
        filesystem == EXT_MAGIC
    }
}

/// The arrays, and whether the kernel still moves what is in them.
pub(crate) struct Shared {
    pub(crate) processes: SharedArray<ProcessSlot>,
    pub(crate) ports: SharedArray<AtomicU64>,
    pub(crate) connections: SharedArray<ConnectionSlot>,
    pub(crate) senders: SharedArray<SenderSlot>,
    pub(crate) files: SharedArray<FileSlot>,
    pub(crate) wide: SharedArray<Wide>,
    pub(crate) exact: Exact,
    pub(crate) detached: AtomicBool,
}

/// Reads generations. Cheap to copy to every thread; outlives the [`crate::Probe`], after which nothing is exact or
/// settled any more.
#[derive(Clone)]
pub struct Generations {
    shared: Arc<Shared>,
}

impl Generations {
    pub(crate) fn new(shared: Arc<Shared>) -> Generations {
        Generations { shared }
    }

    /// The generation of what the process with this id (in the initial pid namespace) holds, and of its being there. It
    /// moves at exec, when the process forks, ends, or may have passed a descriptor on. Processes that use io_uring or
    /// share a descriptor table are never settled.
    pub fn process(&self, tgid: u32) -> Generation {
        let slot = self.slot(tgid);
        self.read(&slot.generation, &slot.in_flight, &slot.unreliable_holders)
    }

    /// The generation of what the process with this id is made of. It moves at exec, when the id is given to another
    /// process, when something executable is mapped or unmapped, and when it lets itself be traced. It stands still when
    /// the process ends: what it was made of to its end stays true. [`Generations::wide`] moves too when the change is another process's doing.
    pub fn image(&self, tgid: u32) -> Generation {
        let slot = self.slot(tgid);
        self.read(&slot.image_generation, &slot.image_in_flight, &slot.unreliable_images)
    }

    /// Moves with [`Generations::image`] when something executable goes: at exec, when it is unmapped, replaced by another
    /// mapping or no longer executable, and when the id is given to another process. While it stands still the process
    /// is made of all that it was made of, and perhaps of more.
    pub fn shed(&self, tgid: u32) -> u64 {
        self.slot(tgid).shed_generation.load(Ordering::Acquire)
    }

    /// The generation of whose the process with this id is: effective user and group of each of its threads, and its control
    /// group. It moves at exec, when the id is given to another process, when a thread makes one of the calls that change
    /// users, and when somebody puts the process into another control group.
    pub fn standing(&self, tgid: u32) -> Generation {
        let slot = self.slot(tgid);
        let value = slot.standing_generation.load(Ordering::Acquire);
        // In the order of `read`.
        let settled = slot.standing_in_flight.load(Ordering::Acquire) == 0
            && slot.unreliable_images.load(Ordering::Acquire) == 0
            && self.exact().standing;
        Generation { value, settled }
    }

    /// The generation of the process with this id since which [`Generations::standing`] stands still: what it made at an older
    /// one was perhaps another user's. 0 if no change was seen.
    pub fn standing_since(&self, tgid: u32) -> u64 {
        self.slot(tgid).standing_since.load(Ordering::Acquire)
    }

    fn slot(&self, tgid: u32) -> &ProcessSlot {
        &self.shared.processes[tgid as usize % PROCESS_SLOTS]
    }

    fn read(&self, value: &AtomicU64, in_flight: &AtomicI32, unreliable: &AtomicU32) -> Generation {
        // A call moves the generation before it stops being in flight. Loading in the same order, whoever sees the call
        // as over either sees its generation too or has the older one, which the next comparison finds out.
        let value = value.load(Ordering::Acquire);
        let settled = in_flight.load(Ordering::Acquire) == 0
            && unreliable.load(Ordering::Acquire) == 0
            && self.wide_slot().in_flight.load(Ordering::Acquire) == 0
            && self.exact().processes;
        Generation { value, settled }
    }

    /// The generation since which the process with this id runs its program: what it made at an older one was made by
    /// the program before. It moves when the call begins, and once more when the new program is there. 0 if no exec of it was seen.
    pub fn exec(&self, tgid: u32) -> u64 {
        self.slot(tgid).exec_generation.load(Ordering::Acquire)
    }

    /// The generation of a local port, of all protocols and network namespaces together. It moves when a socket gives
    /// the port up, takes it by bind, listens on it or connects from it with TCP. See [`crate::SocketRecord::reuse`]
    /// for what it does not show.
    pub fn port(&self, port: u16) -> u64 {
        self.shared.ports[usize::from(port)].load(Ordering::Acquire)
    }

    /// The process that was running when a packet was put into a queue that [`crate::Probe::watch_queue`] watches: `id` is
    /// the packet's in its queue. That process sent it, if a system call did; a packet that the kernel sent on its own
    /// account, or for a timer or an arriving packet, was queued while anybody ran. `None` if it is not known any more: a
    /// queue's last 32,768 packets are, as long as no other queue uses the same slots (numbers modulo 4).
    pub fn sender(&self, queue: u16, id: u32) -> Option<Sender> {
        let index = usize::from(queue) % SENDER_QUEUES * SENDER_SLOTS + id as usize % SENDER_SLOTS;
        let slot = &self.shared.senders[index];
        let is_it =
            || slot.packet.load(Ordering::Acquire) == id && slot.queue.load(Ordering::Acquire) == u32::from(queue);
        if !is_it() {
            return None;
        }
        let flags = slot.flags.load(Ordering::Acquire);
        let sender = Sender {
            tgid: slot.tgid.load(Ordering::Acquire),
            start: slot.start.load(Ordering::Acquire),
            image: Generation {
                value: slot.image_generation.load(Ordering::Acquire),
                settled: flags & SENDER_SETTLED != 0 && self.exact().processes,
            },
            shed: slot.shed_generation.load(Ordering::Acquire),
            shared: flags & SENDER_SHARED != 0,
            wide: slot.wide_generation.load(Ordering::Acquire),
            raw_sockets: slot.raw_sockets.load(Ordering::Acquire),
            traced: flags & SENDER_TRACED != 0,
            finished: flags & SENDER_FINISHED != 0,
            uid: slot.uid.load(Ordering::Acquire),
            gid: slot.gid.load(Ordering::Acquire),
            cgroup: slot.cgroup.load(Ordering::Acquire),
            links: slot.links.load(Ordering::Acquire),
        };
        // A packet that takes the slot writes its id first.
        is_it().then_some(sender)
    }

    /// Whether two TCP sockets with this local port may have the same ends: one was bound to a device (`SO_BINDTODEVICE`)
    /// since the probe was loaded, or that was not watched.
    pub fn is_ambiguous(&self, port: u16) -> bool {
        !self.exact().ports || self.shared.connections[usize::from(port)].ambiguous.load(Ordering::Acquire) != 0
    }

    /// The TCP connection that was begun from a local port, if nothing has happened to the port since: no socket in any
    /// namespace has taken it or given it up. `None` also while the kernel writes it.
    pub fn connection(&self, port: u16) -> Option<Connection> {
        let slot = &self.shared.connections[usize::from(port)];
        let generation = slot.port_generation.load(Ordering::Acquire);
        if generation == 0 || generation != self.port(port) || !self.exact().ports {
            return None;
        }
        let fields = std::array::from_fn(|index| slot.fields[index].load(Ordering::Relaxed));
        // A writer clears the generation before it touches a field.
        fence(Ordering::Acquire);
        let unwritten = slot.port_generation.load(Ordering::Relaxed) == generation;
        if unwritten && generation == self.port(port) { Connection::decode(generation, &fields) } else { None }
    }

    /// Moves when anything may have changed: every answer depends on it.
    pub fn wide(&self) -> u64 {
        self.wide_slot().generation.load(Ordering::Acquire)
    }

    /// Moves when any watched file may have changed: as long as it stands still, no [`FileWatch`] needs to be looked
    /// at.
    pub fn file_epoch(&self) -> u64 {
        self.wide_slot().file_epoch.load(Ordering::Acquire)
    }

    /// Watches the file with this inode number, on a file system that [`FileWatch::covers`]. What is read of the file
    /// afterwards is covered, its times first: from Linux 6.13 on they change with the first write after they were
    /// read, before that not within the same clock tick (1 to 10 ms), and a change that leaves the times alone is not
    /// seen.
    ///
    /// A watch lasts as long as the probe; there are 131,072 slots for all files.
    pub fn watch_file(&self, inode: u64) -> FileWatch {
        let slot = inode % FILE_SLOTS as u64;
        self.shared.files[slot as usize].watched.store(1, Ordering::SeqCst);
        // Or the caller's look at the file could come before the mark: the kernel changes the file first and looks for
        // the mark then.
        fence(Ordering::SeqCst);
        FileWatch(slot as u32)
    }

    /// The generation of a watched file. It moves when the file's size or times change, **before** the data of a write
    /// are in place: what was read while somebody may write is not covered by a generation read in between. A store
    /// into a shared mapping moves it when it is the first to its page since the page was last written back. That the
    /// file is renamed or unlinked is no change of it.
    pub fn file(&self, watch: FileWatch) -> u32 {
        self.shared.files[watch.0 as usize % FILE_SLOTS].generation.load(Ordering::Acquire)
    }

    /// Events that were lost because nobody took them in time.
    pub fn lost_events(&self) -> u64 {
        self.wide_slot().lost_events.load(Ordering::Acquire)
    }

    /// Writers into sockets that could not be noted: [`crate::SocketTable::writers`] may not know all.
    pub fn lost_writers(&self) -> u64 {
        self.wide_slot().lost_writers.load(Ordering::Acquire)
    }

    /// Changes of what processes are made of that were lost because nobody took them in time.
    pub fn lost_changes(&self) -> u64 {
        self.wide_slot().lost_changes.load(Ordering::Acquire)
    }

    /// Changes of what processes are made of that were told of or lost. Each is counted before it is told, and told before
    /// its process is settled again: whoever has taken so many knows all that had come to pass.
    pub fn changes(&self) -> u64 {
        self.wide_slot().changes.load(Ordering::Acquire)
    }

    /// The watch of a file that the kernel told of, and its generation then.
    pub fn watch_mapped(&self, file: &MappedFile) -> (FileWatch, u32) {
        (self.watch_file(file.inode), file.generation)
    }

    /// Moves when a raw socket is made or closed. An answer to who may have sent a packet depends on it.
    pub fn raw_sockets(&self) -> u64 {
        self.wide_slot().raw_sockets.load(Ordering::Acquire)
    }

    /// Moves when somebody has begun to trace another process (ptrace): whoever was not traced before may be now. Who
    /// lets itself be traced (PTRACE_TRACEME) moves its own [`Generations::image`]; nothing moves when tracing ends.
    pub fn tracers(&self) -> u64 {
        self.wide_slot().tracers.load(Ordering::Acquire)
    }

    /// Moves when a network device of the namespace in which the probe was loaded changes: when it comes, goes, or gets another
    /// name, and more.
    pub fn links(&self) -> u64 {
        self.wide_slot().links.load(Ordering::Acquire)
    }

    /// Which generations can be relied upon.
    pub fn exact(&self) -> Exact {
        if self.shared.detached.load(Ordering::Acquire) { Exact::NOTHING } else { self.shared.exact }
    }

    fn wide_slot(&self) -> &Wide {
        &self.shared.wide[0]
    }
}

impl fmt::Debug for Generations {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Generations")
            .field("wide", &self.wide())
            .field("exact", &self.exact())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact_without(hooks: &[Hook]) -> Exact {
        Exact::without(&hooks.iter().map(|hook| (*hook, String::new())).collect::<Vec<_>>())
    }

    #[test]
    fn what_a_missing_hook_costs() {
        let all = Exact { processes: true, standing: true, ports: true, files: true, sockets: true, links: true };
        assert_eq!(exact_without(&[]), all);
        assert_eq!(exact_without(&[Hook::Sockets]), all);
        for hook in [Hook::SysEnter, Hook::SysExit, Hook::RunningTasks] {
            let without = Exact { processes: false, standing: false, ports: false, ..all };
            assert_eq!(exact_without(&[hook]), without, "{hook}");
        }
        for hook in [Hook::Exec, Hook::Fork, Hook::Exit] {
            assert_eq!(exact_without(&[hook]), Exact { processes: false, standing: false, ..all }, "{hook}");
        }
        for hook in [Hook::TcpState, Hook::TcpConnect, Hook::SockRelease, Hook::Bind] {
            assert_eq!(exact_without(&[hook]), Exact { ports: false, ..all }, "{hook}");
        }
        assert_eq!(exact_without(&[Hook::CgroupAttach]), Exact { standing: false, ..all });
        assert_eq!(exact_without(&[Hook::InodeDirty]), Exact { files: false, ..all });
        assert_eq!(exact_without(&[Hook::SockCreate]), Exact { sockets: false, ..all });
        assert_eq!(exact_without(&[Hook::Links]), Exact { links: false, ..all });
        assert_eq!(exact_without(&Hook::ALL), Exact::NOTHING);
    }
}
