//! Loads the programs and attaches each to its place; what could not be attached is remembered, not fatal.

use std::fmt;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use aya::maps::{Map, MapData, ProgramArray, RingBuf};
use aya::programs::links::CgroupAttachMode;
use aya::programs::{Program, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader, include_bytes_aligned};

use crate::cache::{Cache, CachedChain};
use crate::error::{describe, with_causes};
use crate::events::{Changes, Events};
use crate::generations::{Exact, Generations, Shared};
use crate::holders::{Holders, OfOneSocket, read_some};
use crate::hook::{
    ALL_SOCKETS, BYPASS_SOCKETS, FIND_SOCKET, ITS_HOLDERS, LINK, MAPPINGS, Place, QUEUED, RUNNING_TASKS,
};
use crate::layout::{
    CACHE_COUNTERS, CACHE_SLOTS, CREATED_SOCKET, FILE_SLOTS, PORTS, PROCESS_SLOTS, SENDER_QUEUES, SENDER_SLOTS, WRITERS,
};
use crate::mappings::Mappings;
use crate::sockets::{OlderSocket, SocketTable, older_sockets};
use crate::sys::{self, Access, SharedArray, SharedWithKernel};
use crate::{Hook, LoadError, cgroup};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probe.bpf.o"));

/// Inode number of the initial pid namespace (include/linux/proc_ns.h, `PROC_PID_INIT_INO`).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// What to load.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// An object file to load instead of the embedded one.
    pub object: Option<PathBuf>,
    /// Hooks to leave off, as on a kernel that lacks them.
    pub without: Vec<Hook>,
}

/// The attached programs. Dropping it detaches all of them, and so does the end of the process, whatever the reason:
/// nothing is pinned.
pub struct Probe {
    shared: Arc<Shared>,
    sockets: SocketTable,
    holders: Option<Holders>,
    mappings: Option<Mappings>,
    events: Option<Events>,
    changes: Option<Changes>,
    cache: Option<Arc<Cache>>,
    /// Of the doors in the directory of [`Probe::pin_cache`].
    behind_doors: Option<ProgramArray<MapData>>,
    missing: Vec<(Hook, String)>,
    /// Where changes of network devices are heard of.
    _links: Option<OwnedFd>,
    /// Owns the programs and their links.
    programs: Ebpf,
}

impl Probe {
    /// Loads the programs and attaches them.
    ///
    /// # Errors
    ///
    /// Only if nothing can work. A hook that cannot be attached is listed by [`Probe::missing`] instead.
    pub fn load(options: &Options) -> Result<Probe, LoadError> {
        // Without /proc nothing is known about the namespace; the daemon has other reasons to need /proc, and other
        // words for it.
        if fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() != INITIAL_PID_NAMESPACE) {
            return Err(LoadError::PidNamespace);
        }
        let types = Btf::from_sys_fs().map_err(|error| LoadError::NoTypes(Box::new(error)))?;
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&types));
        let own_netns = fs::metadata("/proc/thread-self/ns/net").map_or(0, |file| file.ino() as u32);
        loader.override_global("own_netns", &own_netns, true);
        let mut programs = match &options.object {
            Some(path) => {
                let object = fs::read(path).map_err(|source| LoadError::ReadObject { path: path.clone(), source })?;
                loader.load(&object)?
            }
            None => loader.load(OBJECT)?,
        };
        let processes = shared_array(&programs, "process_slots", PROCESS_SLOTS, Access::Read)?;
        let ports = shared_array(&programs, "port_generations", PORTS, Access::Read)?;
        let connections = shared_array(&programs, "connections", PORTS, Access::Read)?;
        let senders = shared_array(&programs, "senders", SENDER_QUEUES * SENDER_SLOTS, Access::Read)?;
        let files = shared_array(&programs, "file_slots", FILE_SLOTS, Access::ReadWrite)?;
        let wide = shared_array(&programs, "wide", 1, Access::Read)?;
        check_layout(&programs, "sockets", CREATED_SOCKET, None)?;
        check_layout(&programs, "writers", WRITERS, None)?;
        check_layout(&programs, "events", 0, None)?;
        check_layout(&programs, "image_changes", 0, None)?;
        let mut missing = attach_all(&mut programs, &types, &options.without)?;
        let links = missing.iter().all(|(hook, _)| *hook != Hook::Links).then(|| watch_links(&mut programs));
        let links = links.and_then(|links| links.map_err(|reason| missing.push((Hook::Links, reason))).ok());
        // Not earlier: the programs refer to the maps by descriptor until they are loaded.
        let events = Events::new(ring(&mut programs, "events")?);
        let changes = Changes::new(ring(&mut programs, "image_changes")?);
        let holders = holders(&programs, &missing);
        let mappings = missing.iter().all(|(hook, _)| *hook != Hook::Mappings);
        let mappings = mappings.then(|| program_descriptor(&programs, MAPPINGS).ok()).flatten().map(Mappings::new);
        let exact = Exact::without(&missing);
        let shared =
            Shared { processes, ports, connections, senders, files, wide, exact, detached: AtomicBool::new(false) };
        let shared = Arc::new(shared);
        let generations = Generations::new(Arc::clone(&shared));
        let cache =
            missing.iter().all(|(hook, _)| *hook != Hook::Cache).then(|| cache(&programs, &shared)).transpose()?;
        let older = holders.as_ref().filter(|_| exact.processes).map(|holders| older_sockets(&generations, holders));
        let older = older.and_then(Result::ok).unwrap_or_default();
        let sockets = socket_table(&mut programs, &older)?;
        let (events, changes) = (Some(events), Some(changes));
        Ok(Probe {
            shared,
            sockets,
            holders,
            mappings,
            events,
            changes,
            cache,
            behind_doors: None,
            missing,
            _links: links,
            programs,
        })
    }

    /// The hooks that are not there, each with the reason: a sentence for the operator.
    pub fn missing(&self) -> &[(Hook, String)] {
        &self.missing
    }

    /// The generations.
    pub fn generations(&self) -> Generations {
        Generations::new(Arc::clone(&self.shared))
    }

    /// The makers of sockets. Stays empty without [`Hook::SockCreate`].
    pub fn sockets(&self) -> SocketTable {
        self.sockets.clone()
    }

    /// The listers of open sockets; `None` without [`Hook::Sockets`].
    pub fn holders(&self) -> Option<Holders> {
        self.holders.clone()
    }

    /// The lister of mappings; `None` without [`Hook::Mappings`].
    pub fn mappings(&self) -> Option<Mappings> {
        self.mappings.clone()
    }

    /// The verdicts that stay in the kernel; `None` without [`Hook::Cache`].
    pub fn cache(&self) -> Option<Arc<Cache>> {
        self.cache.clone()
    }

    /// Puts what iptables calls into a directory of a bpffs: [`CACHE_PINS`]. What a former daemon has put there is taken over,
    /// so that rules which name it go on working: they call doors, and behind these are the programs of whoever did this last.
    ///
    /// # Errors
    ///
    /// It is no such directory, or something else is there; a sentence for the operator.
    pub fn pin_cache(&mut self, directory: &Path) -> Result<(), String> {
        let programs = directory.join(PROGRAMS);
        let fail = |what: &Path, reason: String| format!("cannot pin {}: {reason}", what.display());
        let pinned = match MapData::from_pin(&programs) {
            Ok(pinned) => pinned,
            Err(_) if !programs.exists() => {
                // Doors without what is behind them are of no use to anybody.
                for name in CACHE_PINS {
                    let path = directory.join(name);
                    if let Err(error) = fs::remove_file(&path)
                        && error.kind() != std::io::ErrorKind::NotFound
                    {
                        return Err(fail(&path, error.to_string()));
                    }
                }
                for name in CACHE_PINS {
                    let path = directory.join(name);
                    let program = self.programs.program_mut(&format!("{}_door", name.replace('-', "_")));
                    let program = program.ok_or_else(|| format!("the object has no program for {name}"))?;
                    program.pin(&path).map_err(|error| fail(&path, with_causes(&error)))?;
                }
                let Some(Map::ProgramArray(map)) = self.programs.map(CACHE_PROGRAMS) else {
                    return Err(format!("the object has no map {CACHE_PROGRAMS}"));
                };
                // Last: with it, all is there.
                map.pin(&programs).map_err(|error| fail(&programs, with_causes(&error)))?;
                MapData::from_pin(&programs).map_err(|error| fail(&programs, with_causes(&error)))?
            }
            Err(error) => return Err(fail(&programs, with_causes(&error))),
        };
        let mut behind =
            ProgramArray::try_from(Map::ProgramArray(pinned)).map_err(|error| fail(&programs, with_causes(&error)))?;
        for (index, name) in CACHE_PINS.iter().enumerate() {
            let Some(Program::SocketFilter(program)) = self.programs.program(&name.replace('-', "_")) else {
                return Err(format!("the object has no program for {name}"));
            };
            let program = program.fd().map_err(|error| with_causes(&error))?;
            behind.set(index as u32, program, 0).map_err(|error| fail(&programs, with_causes(&error)))?;
        }
        self.behind_doors = Some(behind);
        Ok(())
    }

    /// Has [`Generations::sender`] know the packets of the queue that this netlink socket serves, until the socket is
    /// closed. Does nothing without [`Hook::Senders`].
    ///
    /// # Errors
    ///
    /// The kernel refuses; a sentence for the operator.
    pub fn watch_queue(&mut self, socket: BorrowedFd<'_>) -> Result<(), String> {
        if self.missing.iter().any(|(hook, _)| *hook == Hook::Senders) {
            return Ok(());
        }
        let Some(Program::SocketFilter(program)) = self.programs.program_mut(QUEUED) else {
            return Err(format!("the object has no program {QUEUED}"));
        };
        program.attach(socket).map_err(|error| format!("cannot watch the senders of a queue: {error}"))
    }

    /// The messages about processes; `None` when they were taken before, for there is one stream.
    pub fn take_events(&mut self) -> Option<Events> {
        self.events.take()
    }

    /// The account of what processes are made of; `None` when it was taken before, for there is one stream, or where a
    /// hook that it needs is missing.
    pub fn take_changes(&mut self) -> Option<Changes> {
        self.changes.take().filter(|_| self.generations().exact().processes)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if let Some(cache) = &self.cache {
            cache.end();
        }
        // Rules that name the doors keep them, and what is behind them, in memory.
        if let Some(behind) = &mut self.behind_doors {
            for index in 0..CACHE_PINS.len() {
                // It may be another's by now, or cannot be helped.
                drop(behind.clear_index(&(index as u32)));
            }
        }
        // Before the programs go: from here on generations stand still whatever happens, and nobody may believe them.
        self.shared.detached.store(true, Ordering::SeqCst);
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Probe").field("missing", &self.missing).finish_non_exhaustive()
    }
}

/// What iptables calls, by their names in a directory of a bpffs, in the order of the programs behind them.
pub const CACHE_PINS: [&str; 6] =
    ["accept-output", "drop-output", "accept-input", "drop-input", "accept-forward", "drop-forward"];

/// What is behind them, in the same directory.
const PROGRAMS: &str = "programs";

/// The same, in the object.
const CACHE_PROGRAMS: &str = "cache_programs";

fn cache(programs: &Ebpf, shared: &Arc<Shared>) -> Result<Arc<Cache>, LoadError> {
    let cache = Cache {
        answers: shared_array(programs, "answers", CACHE_SLOTS, Access::ReadWrite)?,
        control: shared_array(programs, "cache_control", 1, Access::ReadWrite)?,
        counters: shared_array(programs, "cache_counters", CACHE_COUNTERS, Access::ReadWrite)?,
        counts: shared_array(programs, "cache_counts", CachedChain::ALL.len(), Access::Read)?,
        shared: Arc::clone(shared),
        turn: AtomicU64::new(0),
    };
    cache.begin(RandomState::new().hash_one(std::process::id()));
    Ok(Arc::new(cache))
}

/// The map of this name, if it is laid out as this version expects. In an object file from elsewhere it may not be.
fn check_layout<'a>(
    programs: &'a Ebpf,
    name: &'static str,
    value_size: usize,
    entries: Option<usize>,
) -> Result<&'a MapData, LoadError> {
    let unlike = |found: String| LoadError::MapLayout { name, found };
    let map = match programs.map(name) {
        Some(Map::Array(map) | Map::HashMap(map) | Map::LruHashMap(map) | Map::RingBuf(map)) => map,
        Some(_) => return Err(unlike("it is of another type".to_owned())),
        None => return Err(unlike("it does not exist".to_owned())),
    };
    let info = map.info().map_err(|error| unlike(error.to_string()))?;
    let fits = info.value_size() as usize == value_size
        && entries.is_none_or(|entries| info.max_entries() as usize == entries);
    if fits { Ok(map) } else { Err(unlike(format!("{} values of {} bytes", info.max_entries(), info.value_size()))) }
}

fn shared_array<T: SharedWithKernel>(
    programs: &Ebpf,
    name: &'static str,
    entries: usize,
    access: Access,
) -> Result<SharedArray<T>, LoadError> {
    let map = check_layout(programs, name, size_of::<T>(), Some(entries))?;
    SharedArray::new(map.fd().as_fd(), entries, access).map_err(|source| LoadError::MapMemory { name, source })
}

fn take_map(programs: &mut Ebpf, name: &'static str) -> Result<Map, LoadError> {
    programs.take_map(name).ok_or(LoadError::MapLayout { name, found: "it does not exist".to_owned() })
}

fn socket_table(programs: &mut Ebpf, older: &[OlderSocket]) -> Result<SocketTable, LoadError> {
    let (sockets, writers) = (take_map(programs, "sockets")?, take_map(programs, "writers")?);
    SocketTable::new(sockets, writers, older)
        .map_err(|error| LoadError::MapLayout { name: "sockets", found: error.to_string() })
}

fn ring(programs: &mut Ebpf, name: &'static str) -> Result<RingBuf<MapData>, LoadError> {
    RingBuf::try_from(take_map(programs, name)?)
        .map_err(|error| LoadError::MapLayout { name, found: error.to_string() })
}

fn holders(programs: &Ebpf, missing: &[(Hook, String)]) -> Option<Holders> {
    let is_there = |wanted| missing.iter().all(|(hook, _)| *hook != wanted);
    let program = |name| program_descriptor(programs, name).ok();
    let one = || Some(OfOneSocket { find: program(FIND_SOCKET)?, list: program(ITS_HOLDERS)? });
    is_there(Hook::Sockets).then_some(())?;
    Some(Holders::new(program(ALL_SOCKETS)?, program(BYPASS_SOCKETS)?, is_there(Hook::Holders).then(one).flatten()))
}

/// Attaches every hook that is not to be left off, in the order of [`Hook::ALL`], and returns those that are absent.
fn attach_all(programs: &mut Ebpf, types: &Btf, without: &[Hook]) -> Result<Vec<(Hook, String)>, LoadError> {
    let cgroup = cgroup::open_root();
    let mut missing: Vec<(Hook, String)> = Vec::new();
    let mut refused = None;
    for hook in Hook::ALL {
        let outcome = if without.contains(&hook) {
            Err("it was left off on request".to_owned())
        } else {
            let outcome = attach(programs, types, &cgroup, hook);
            refused = refused.or_else(|| outcome.as_ref().err().map(|reason| (hook, reason.clone())));
            outcome
        };
        missing.extend(outcome.err().map(|reason| (hook, reason)));
    }
    match refused {
        Some((hook, reason)) if missing.len() == Hook::ALL.len() => Err(LoadError::NoHook { hook, reason }),
        _ => Ok(missing),
    }
}

fn attach(programs: &mut Ebpf, types: &Btf, cgroup: &Result<File, String>, hook: Hook) -> Result<(), String> {
    for (name, place) in hook.programs() {
        let program = programs.program_mut(name).ok_or_else(|| format!("the object has no program {name}"))?;
        match *place {
            Place::Tracepoint(tracepoint) => attach_tracepoint(program, tracepoint, types).map_err(|e| describe(&e))?,
            Place::CgroupSocket => attach_cgroup_socket(program, cgroup.as_ref()?).map_err(|e| describe(&e))?,
            Place::CgroupOption => attach_cgroup_option(program, cgroup.as_ref()?).map_err(|e| describe(&e))?,
            Place::TcpCallbacks => attach_tcp_callbacks(program, cgroup.as_ref()?).map_err(|e| describe(&e))?,
            Place::Iterator(target) => load_iterator(program, target, types).map_err(|e| describe(&e))?,
            Place::QueueSocket | Place::LinkSocket | Place::OnDemand => load_only(program).map_err(|e| describe(&e))?,
        }
    }
    if hook == Hook::RunningTasks { look_at_running_tasks(programs) } else { Ok(()) }
}

fn attach_tracepoint(program: &mut Program, tracepoint: &str, types: &Btf) -> Result<(), ProgramError> {
    let Program::BtfTracePoint(program) = program else { return Err(ProgramError::UnexpectedProgramType) };
    program.load(tracepoint, types)?;
    program.attach()?;
    Ok(())
}

// A cgroup link always goes beside others: `Single` here means no flag, and the kernel refuses any flag on a link.
fn attach_cgroup_socket(program: &mut Program, cgroup: &File) -> Result<(), ProgramError> {
    let Program::CgroupSock(program) = program else { return Err(ProgramError::UnexpectedProgramType) };
    program.load()?;
    program.attach(cgroup, CgroupAttachMode::Single)?;
    Ok(())
}

fn attach_cgroup_option(program: &mut Program, cgroup: &File) -> Result<(), ProgramError> {
    let Program::CgroupSockopt(program) = program else { return Err(ProgramError::UnexpectedProgramType) };
    program.load()?;
    program.attach(cgroup, CgroupAttachMode::Single)?;
    Ok(())
}

fn attach_tcp_callbacks(program: &mut Program, cgroup: &File) -> Result<(), ProgramError> {
    let Program::SockOps(program) = program else { return Err(ProgramError::UnexpectedProgramType) };
    program.load()?;
    program.attach(cgroup, CgroupAttachMode::Single)?;
    Ok(())
}

fn load_iterator(program: &mut Program, target: &str, types: &Btf) -> Result<(), ProgramError> {
    let Program::Iter(program) = program else { return Err(ProgramError::UnexpectedProgramType) };
    program.load(target, types)
}

fn load_only(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SocketFilter(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn program_descriptor(programs: &Ebpf, name: &str) -> Result<OwnedFd, String> {
    let descriptor = match programs.program(name) {
        Some(Program::Iter(program)) => program.fd(),
        Some(Program::SchedClassifier(program)) => program.fd(),
        _ => return Err(format!("the object has no program {name}")),
    };
    let descriptor = descriptor.map_err(|error| describe(&error))?;
    descriptor.as_fd().try_clone_to_owned().map_err(|error| format!("cannot duplicate its descriptor: {error}"))
}

/// A socket that hears of network devices in the namespace of the calling thread. Its filter hears all, and keeps nothing.
fn watch_links(programs: &mut Ebpf) -> Result<OwnedFd, String> {
    let socket = sys::link_socket().map_err(|error| format!("cannot listen to rtnetlink: {error}"))?;
    let Some(Program::SocketFilter(program)) = programs.program_mut(LINK) else {
        return Err(format!("the object has no program {LINK}"));
    };
    program.attach(socket.as_fd()).map_err(|error| format!("cannot watch network devices: {error}"))?;
    Ok(socket)
}

/// Runs the iterator to its end. It writes nothing; what it finds it marks in the process slots.
fn look_at_running_tasks(programs: &Ebpf) -> Result<(), String> {
    let program = program_descriptor(programs, RUNNING_TASKS)?;
    let run = || -> std::io::Result<()> {
        let mut iterator = File::from(sys::start_iterator(program.as_fd(), 0)?);
        while read_some(&mut iterator, &mut [0; 64])? != 0 {}
        Ok(())
    };
    run().map_err(|error| format!("the iterator over the running tasks failed: {error}"))
}
