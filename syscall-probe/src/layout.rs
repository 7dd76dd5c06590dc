//! What `bpf/maps.h` and `bpf/holders.h` lay out in memory, seen from this side: sizes, offsets, and how a record's
//! bytes become a value.
//!
//! Everything is in the byte order of the machine, except addresses, which are in network order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64};

/// Number of process slots; a process uses the slot of its id modulo this.
pub(crate) const PROCESS_SLOTS: usize = 65_536;
/// Number of ports.
pub(crate) const PORTS: usize = 65_536;
/// Number of file slots; a file uses the slot of its inode number modulo this.
pub(crate) const FILE_SLOTS: usize = 131_072;

/// `struct process_slot`.
#[repr(C)]
pub(crate) struct ProcessSlot {
    pub(crate) generation: AtomicU64,
    pub(crate) exec_generation: AtomicU64,
    pub(crate) image_generation: AtomicU64,
    pub(crate) shed_generation: AtomicU64,
    pub(crate) standing_generation: AtomicU64,
    pub(crate) standing_since: AtomicU64,
    pub(crate) in_flight: AtomicI32,
    pub(crate) image_in_flight: AtomicI32,
    pub(crate) unreliable_holders: AtomicU32,
    pub(crate) unreliable_images: AtomicU32,
    pub(crate) standing_in_flight: AtomicI32,
    padding: AtomicU32,
}

/// `struct file_slot`.
#[repr(C)]
pub(crate) struct FileSlot {
    pub(crate) watched: AtomicU32,
    pub(crate) generation: AtomicU32,
}

/// `struct wide`.
#[repr(C)]
pub(crate) struct Wide {
    pub(crate) generation: AtomicU64,
    pub(crate) file_epoch: AtomicU64,
    pub(crate) lost_events: AtomicU64,
    pub(crate) raw_sockets: AtomicU64,
    pub(crate) lost_writers: AtomicU64,
    pub(crate) changes: AtomicU64,
    pub(crate) lost_changes: AtomicU64,
    pub(crate) tracers: AtomicU64,
    unfinished: AtomicU64,
    lost_unfinished: AtomicU64,
    pub(crate) links: AtomicU64,
    pub(crate) in_flight: AtomicI32,
    padding: AtomicU32,
}

/// Queues that have slots of their own for senders; a queue uses those of its number modulo this.
pub(crate) const SENDER_QUEUES: usize = 4;
/// Slots of a queue; a packet uses that of its id modulo this.
pub(crate) const SENDER_SLOTS: usize = 32_768;

/// `struct sender`.
#[repr(C)]
pub(crate) struct SenderSlot {
    pub(crate) packet: AtomicU32,
    pub(crate) queue: AtomicU32,
    pub(crate) tgid: AtomicU32,
    /// `SENDER_*`
    pub(crate) flags: AtomicU32,
    pub(crate) start: AtomicU64,
    pub(crate) image_generation: AtomicU64,
    pub(crate) shed_generation: AtomicU64,
    pub(crate) raw_sockets: AtomicU64,
    pub(crate) wide_generation: AtomicU64,
    pub(crate) cgroup: AtomicU64,
    pub(crate) uid: AtomicU32,
    pub(crate) gid: AtomicU32,
    pub(crate) links: AtomicU64,
}

const _: () = assert!(size_of::<SenderSlot>() == 80);

/// Answers that the kernel has room for.
pub(crate) const CACHE_SLOTS: usize = 131_072;
/// Answers in a bucket.
pub(crate) const CACHE_WAYS: usize = 4;
/// Counters of packets that found answers.
pub(crate) const CACHE_COUNTERS: usize = 65_536;
/// Words of a `struct flow_key`.
pub(crate) const ANSWER_KEY: usize = 6;
/// Words of a `struct answer` after `sequence`.
pub(crate) const ANSWER_WORDS: usize = 16;

/// `struct answer`.
#[repr(C)]
pub(crate) struct AnswerSlot {
    pub(crate) sequence: AtomicU64,
    pub(crate) words: [AtomicU64; ANSWER_WORDS],
}

/// `struct cache_control`.
#[repr(C)]
pub(crate) struct CacheControl {
    pub(crate) epoch: AtomicU64,
    pub(crate) lease: AtomicU64,
    pub(crate) secret: AtomicU64,
    pub(crate) daemon: AtomicU32,
    padding: AtomicU32,
    /// By chain, for TCP and UDP.
    pub(crate) kinds: [[AtomicU32; 2]; 3],
}

/// `struct cache_counter`.
#[repr(C)]
pub(crate) struct CacheCounter {
    pub(crate) packets: AtomicU64,
    pub(crate) bytes: AtomicU64,
}

/// `struct cache_counts`.
#[repr(C)]
pub(crate) struct CacheCounts {
    pub(crate) accepted: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) untold: AtomicU64,
    pub(crate) misses: [AtomicU64; 8],
}

const _: () = assert!(size_of::<AnswerSlot>() == 136);
const _: () = assert!(size_of::<CacheControl>() == 56);
const _: () = assert!(size_of::<CacheCounter>() == 16);
const _: () = assert!(size_of::<CacheCounts>() == 88);

/// `struct connection`, word by word: the kernel may be writing it.
#[repr(C)]
pub(crate) struct ConnectionSlot {
    pub(crate) port_generation: AtomicU64,
    /// From `netns_cookie` to `version`.
    pub(crate) fields: [AtomicU64; CONNECTION_FIELDS],
    writer: AtomicU64,
    pub(crate) ambiguous: AtomicU64,
}

/// Words of the fields of a `struct connection`.
pub(crate) const CONNECTION_FIELDS: usize = 12;

const _: () = assert!(size_of::<ConnectionSlot>() == 120);
const _: () = assert!(size_of::<ProcessSlot>() == 72);
const _: () = assert!(size_of::<FileSlot>() == 8);
const _: () = assert!(size_of::<Wide>() == 96);
const _: () = assert!(PROCESS_SLOTS.is_power_of_two() && FILE_SLOTS.is_power_of_two());

/// Length of `struct created_socket`.
pub(crate) const CREATED_SOCKET: usize = 40;
/// Length of `struct writers`.
pub(crate) const WRITERS: usize = 104;
/// How many of them it has room for.
const WRITERS_ROOM: usize = 4;
/// Length of `struct event`.
pub(crate) const EVENT: usize = 24;
/// Length of `struct change`.
pub(crate) const CHANGE: usize = 88;
/// Length of `struct socket_record`.
pub(crate) const SOCKET_RECORD: usize = 88;
/// Length of `struct object`.
const OBJECT: usize = 48;
/// Length of `struct mapping_record`.
pub(crate) const MAPPING_RECORD: usize = 64;
/// Length of `struct bypass_record`.
pub(crate) const BYPASS_RECORD: usize = 32;

/// Who made a socket, as the kernel saw it when the socket was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Creator {
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// Start of the process: CLOCK_BOOTTIME of its first thread, nanoseconds.
    pub start: u64,
    /// It is a `SOCK_RAW` socket.
    pub raw: bool,
    /// Its maker's descriptor table may have been shared with another process, which then holds the socket as well. (A
    /// process with threads that gave up the common table can hide this; [`crate::Generations::process`] calls
    /// processes that were *seen* to share unsettled.)
    pub shared_table: bool,
    /// The maker's [`crate::Generation::value`] when the socket was made: while it is unchanged nobody else can have
    /// got the socket from it.
    pub process_generation: u64,
    /// [`crate::Generations::wide`] when the socket was made.
    pub wide_generation: u64,
    /// [`crate::Generations::lost_writers`] when the socket was made: while it is unchanged all its writers are known.
    pub lost_writers: u64,
}

/// A process that wrote into a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writer {
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// Start of the process: CLOCK_BOOTTIME of its first thread, nanoseconds.
    pub start: u64,
    /// [`crate::Generations::exec`] of the process when it first wrote.
    pub wrote: u64,
}

/// The processes that wrote into a socket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Writers {
    /// Those that are known.
    pub known: Vec<Writer>,
    /// There were more.
    pub more: bool,
}

/// Who was running when a packet was queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sender {
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// Start of the process: CLOCK_BOOTTIME of its first thread, nanoseconds.
    pub start: u64,
    /// [`crate::Generations::image`] at that moment.
    pub image: crate::Generation,
    /// [`crate::Generations::shed`] at that moment.
    pub shed: u64,
    /// [`crate::Generations::raw_sockets`] at that moment.
    pub raw_sockets: u64,
    /// Others may have had the same address space at that moment.
    pub shared: bool,
    /// [`crate::Generations::wide`] at that moment.
    pub wide: u64,
    /// Its thread was traced (ptrace).
    pub traced: bool,
    /// Effective user id of the thread that ran, as the initial user namespace has it.
    pub uid: u32,
    /// The same for its group id.
    pub gid: u32,
    /// Id of the process's control group of version 2, which is never given again.
    pub cgroup: u64,
    /// [`crate::Generations::links`] at that moment.
    pub links: u64,
    /// It finished a datagram that somebody else, or the program which it was before, had begun (`MSG_MORE`, `UDP_CORK`), or may
    /// have.
    pub finished: bool,
}

pub(crate) const SENDER_SETTLED: u32 = 1;
pub(crate) const SENDER_TRACED: u32 = 2;
pub(crate) const SENDER_SHARED: u32 = 4;
pub(crate) const SENDER_FINISHED: u32 = 8;

/// The last TCP connection that a process began from a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// [`crate::Generations::port`] of its local port when it began. While that is the same, no other socket has taken
    /// the port and this one has not given it up.
    pub port_generation: u64,
    /// Cookie of the network namespace it lives in.
    pub netns_cookie: u64,
    /// Cookie of the socket.
    pub cookie: u64,
    /// Who made the socket, if that was seen.
    pub maker: Option<Creator>,
    /// Local address, as packets show it: never an IPv4 address mapped into IPv6.
    pub local: IpAddr,
    /// Address of the peer.
    pub remote: IpAddr,
    /// Port of the peer.
    pub remote_port: u16,
}

/// Which socket [`crate::Holders::of_socket`] is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketEnds {
    /// Cookie of the socket.
    pub cookie: u64,
    /// `IPPROTO_*`.
    pub protocol: u16,
    /// What it is bound to; unspecified if to all. Of the socket's family: an IPv6 socket has IPv6 addresses.
    pub local: IpAddr,
    /// Port it is bound to, host byte order.
    pub local_port: u16,
    /// Address of the peer; unspecified if not connected.
    pub remote: IpAddr,
    /// Port of the peer, host byte order; 0 if not connected.
    pub remote_port: u16,
}

/// `struct ethhdr`: a program that is run on a packet is not shown one without.
const ETHERNET_HEADER: usize = 14;
/// `struct socket_ends`.
const SOCKET_ENDS: usize = 48;

impl SocketEnds {
    pub(crate) fn can_be_found(&self) -> bool {
        matches!(i32::from(self.protocol), libc::IPPROTO_TCP | libc::IPPROTO_UDP)
    }

    pub(crate) fn encode(&self) -> [u8; ETHERNET_HEADER + SOCKET_ENDS] {
        let mut bytes = [0; ETHERNET_HEADER + SOCKET_ENDS];
        let family = if self.local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let mut put = |at: usize, value: &[u8]| {
            bytes[ETHERNET_HEADER + at..ETHERNET_HEADER + at + value.len()].copy_from_slice(value);
        };
        put(0, &self.cookie.to_ne_bytes());
        put(8, &(family as u16).to_ne_bytes());
        put(10, &self.protocol.to_ne_bytes());
        put(12, &self.local_port.to_be_bytes());
        put(14, &self.remote_port.to_be_bytes());
        for (at, address) in [(16, self.local), (32, self.remote)] {
            match address {
                IpAddr::V4(address) => put(at, &address.octets()),
                IpAddr::V6(address) => put(at, &address.octets()),
            }
        }
        bytes
    }
}

/// An open descriptor of an IPv4 or IPv6 socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketRecord {
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// Descriptor number; `u32::MAX` for a socket in the own table of an io_uring that the process holds.
    pub fd: u32,
    /// Start of the process: CLOCK_BOOTTIME of its first thread, nanoseconds.
    pub start: u64,
    /// Inode number of the socket, as in `/proc/PID/fd` and in socket diagnostics.
    pub inode: u64,
    /// Cookie of the socket, as in `SO_COOKIE` and in socket diagnostics. Never 0.
    pub cookie: u64,
    /// References of the open file: one for every descriptor of every process (dup, fork, SCM_RIGHTS), for every
    /// message it is under way in, for every io_uring it is registered with, **and one for every call that is running
    /// on it in a process with several threads** (a blocked `accept` or `recv`). One that no record accounts for is
    /// therefore a holder that cannot be seen, or such a call.
    pub file_refs: u64,
    /// Inode number of the socket's network namespace, as in `/proc/PID/ns/net`.
    pub netns: u32,
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
    /// `SOCK_STREAM`, `SOCK_DGRAM`, `SOCK_RAW`, `SOCK_SEQPACKET`...
    pub kind: u16,
    /// `IPPROTO_*`; up to 16 bits (`IPPROTO_MPTCP` is 262).
    pub protocol: u16,
    /// State, as the kernel's `TCP_*` numbers (1 established, 7 closed, 10 listening), for every protocol.
    pub state: u8,
    /// The descriptor table may be shared with another process (see [`Creator::shared_table`]), or the first thread of this
    /// one has ended: there may be more records than descriptors.
    pub shared_table: bool,
    /// `IPV6_V6ONLY` is set.
    pub ipv6_only: bool,
    /// `SO_REUSEADDR` or `SO_REUSEPORT` is set: a datagram socket of another process that sets the same option may join
    /// this one's port by just sending or connecting, if the port is one that the kernel chooses
    /// (`ip_local_port_range`), and **no hook sees that**.
    pub reuse: bool,
    /// Local port, or for `SOCK_RAW` the protocol, or for ICMP echo sockets the identifier. 0: none.
    pub local_port: u16,
    /// Port of the peer; 0 if not connected.
    pub remote_port: u16,
    /// Local address; unspecified if bound to all.
    pub local: IpAddr,
    /// Address of the peer; unspecified if not connected.
    pub remote: IpAddr,
}

/// What happened to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// It became another program.
    Exec,
    /// It made a socket that passes beside netfilter (`AF_PACKET`, `AF_XDP`). One made through io_uring is not told of.
    BypassSocket {
        /// `AF_PACKET` or `AF_XDP`.
        family: u16,
        /// Inode number of the socket's network namespace.
        netns: u32,
    },
}

/// An open descriptor of a socket that passes beside netfilter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BypassRecord {
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// Start of the process: CLOCK_BOOTTIME of its first thread, nanoseconds.
    pub start: u64,
    /// Inode number of the socket, as in `/proc/PID/fd`.
    pub inode: u64,
    /// Inode number of the socket's network namespace, as in `/proc/PID/ns/net`.
    pub netns: u32,
    /// `AF_PACKET` or `AF_XDP`.
    pub family: u16,
}

/// Something that happened to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// Start of the process: CLOCK_BOOTTIME of its first thread, nanoseconds.
    pub start: u64,
    /// What happened.
    pub kind: EventKind,
}

/// A mapped file, as it was when it was mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedFile {
    /// Number of its device, as `stat(2)` of most file systems shows it.
    pub device: u64,
    /// Its inode number.
    pub inode: u64,
    /// Its length, bytes.
    pub size: u64,
    /// When its content changed last, nanoseconds since 1970.
    pub mtime: i64,
    /// When anything about it changed last, nanoseconds since 1970.
    pub ctime: i64,
    /// [`crate::Generations::file`] of its slot, read before the rest.
    pub generation: u32,
    /// Type of its file system, as in `statfs(2)`.
    pub magic: u64,
}

/// A mapping of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMapping {
    /// First address.
    pub start: u64,
    /// The file.
    pub file: MappedFile,
    /// Somebody has it open for writing, or a mapping that writes to it.
    pub written: bool,
}

/// How what a process is made of changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It runs this program, and is made of nothing else so far.
    Program(MappedFile),
    /// It has this file mapped executable too.
    Object(MappedFile),
    /// Only its generation moved.
    Nothing,
    /// It is made of something else than before.
    Unclear,
    /// It begins, made of what its parent is made of.
    Fork {
        /// Process id of the parent.
        parent: u32,
        /// Start of the parent, as [`Change::start`].
        parent_start: u64,
    },
    /// It has ended. May be told twice.
    End,
}

/// A change of what a process is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// Start of the process: CLOCK_BOOTTIME of its first thread, nanoseconds.
    pub start: u64,
    /// [`crate::Generations::image`] after it.
    pub generation: u64,
    /// Others may have the same address space, and with it the same change.
    pub shared: bool,
    /// Its file was never watched ([`crate::Generations::watch_file`]).
    pub news: bool,
    /// What changed.
    pub kind: ChangeKind,
}

/// A record that this version does not understand; it comes from an object file that is not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The record has another length than the layout says.
    #[error("a record of {found} bytes where {expected} were expected")]
    Length {
        /// Length of the record.
        found: usize,
        /// Length of the layout.
        expected: usize,
    },
    /// The event is of no known kind.
    #[error("an event of the unknown kind {0}")]
    EventKind(u32),
    /// The change is of no known kind.
    #[error("a change of the unknown kind {0}")]
    ChangeKind(u32),
    /// The socket is of a family that the iterator leaves out.
    #[error("a socket of the address family {0}, which is neither IPv4 nor IPv6")]
    Family(u16),
}

const CREATED_RAW: u32 = 1;
const CREATED_SHARED_TABLE: u32 = 2;
const CHANGE_SHARED: u32 = 1;
const CHANGE_NEWS: u32 = 2;
const RECORD_SHARED_TABLE: u8 = 1;
const RECORD_IPV6_ONLY: u8 = 2;
const RECORD_REUSE: u8 = 4;

/// `N` bytes at a constant offset of a record whose length is known: the offsets below are checked by every decoding
/// test.
fn bytes<const N: usize, const LENGTH: usize>(record: &[u8; LENGTH], offset: usize) -> [u8; N] {
    std::array::from_fn(|index| record[offset + index])
}

fn u64_at<const LENGTH: usize>(record: &[u8; LENGTH], offset: usize) -> u64 {
    u64::from_ne_bytes(bytes(record, offset))
}

fn u32_at<const LENGTH: usize>(record: &[u8; LENGTH], offset: usize) -> u32 {
    u32::from_ne_bytes(bytes(record, offset))
}

fn u16_at<const LENGTH: usize>(record: &[u8; LENGTH], offset: usize) -> u16 {
    u16::from_ne_bytes(bytes(record, offset))
}

fn exact<const LENGTH: usize>(record: &[u8]) -> Result<&[u8; LENGTH], DecodeError> {
    record.try_into().map_err(|_| DecodeError::Length { found: record.len(), expected: LENGTH })
}

impl Creator {
    pub(crate) fn decode(record: &[u8; CREATED_SOCKET]) -> Creator {
        let flags = u32_at(record, 4);
        Creator {
            tgid: u32_at(record, 0),
            start: u64_at(record, 8),
            raw: flags & CREATED_RAW != 0,
            shared_table: flags & CREATED_SHARED_TABLE != 0,
            process_generation: u64_at(record, 16),
            wide_generation: u64_at(record, 24),
            lost_writers: u64_at(record, 32),
        }
    }
}

impl Creator {
    pub(crate) fn encode(&self) -> [u8; CREATED_SOCKET] {
        let flag = |set, flag| if set { flag } else { 0 };
        let flags = flag(self.raw, CREATED_RAW) | flag(self.shared_table, CREATED_SHARED_TABLE);
        let words = [self.start, self.process_generation, self.wide_generation, self.lost_writers];
        let mut record = [0; CREATED_SOCKET];
        record[..4].copy_from_slice(&self.tgid.to_ne_bytes());
        record[4..8].copy_from_slice(&flags.to_ne_bytes());
        for (bytes, word) in record[8..].chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        record
    }
}

impl Writers {
    pub(crate) fn decode(record: &[u8; WRITERS]) -> Writers {
        let count = u32_at(record, 0) as usize;
        let writer = |index: usize| {
            let at = 8 + index * 24;
            Writer { tgid: u32_at(record, at), start: u64_at(record, at + 8), wrote: u64_at(record, at + 16) }
        };
        let mut known: Vec<Writer> = (0..count.min(WRITERS_ROOM)).map(writer).collect();
        // One that is being noted right now.
        known.retain(|writer| writer.tgid != 0);
        Writers { more: count > known.len(), known }
    }
}

impl Writers {
    pub(crate) fn encode(&self) -> [u8; WRITERS] {
        let mut record = [0; WRITERS];
        record[..4].copy_from_slice(&(self.known.len() as u32).to_ne_bytes());
        for (bytes, writer) in record[8..].chunks_exact_mut(24).zip(&self.known) {
            bytes[..4].copy_from_slice(&writer.tgid.to_ne_bytes());
            bytes[8..16].copy_from_slice(&writer.start.to_ne_bytes());
            bytes[16..].copy_from_slice(&writer.wrote.to_ne_bytes());
        }
        record
    }
}

impl Connection {
    /// `None`: the kernel wrote an IP version that this crate does not know.
    pub(crate) fn decode(port_generation: u64, fields: &[u64; CONNECTION_FIELDS]) -> Option<Connection> {
        let mut record = [0; CONNECTION_FIELDS * 8];
        for (bytes, field) in record.chunks_exact_mut(8).zip(fields) {
            bytes.copy_from_slice(&field.to_ne_bytes());
        }
        let maker = Creator::decode(&bytes(&record, 16));
        let family = match u32_at(&record, 92) {
            4 => libc::AF_INET,
            6 => libc::AF_INET6,
            _ => return None,
        } as u16;
        Some(Connection {
            port_generation,
            netns_cookie: u64_at(&record, 0),
            cookie: u64_at(&record, 8),
            maker: (maker.tgid != 0).then_some(maker),
            local: address(family, bytes(&record, 56)).ok()?,
            remote: address(family, bytes(&record, 72)).ok()?,
            remote_port: u32_at(&record, 88) as u16,
        })
    }
}

impl Event {
    pub(crate) fn decode(record: &[u8]) -> Result<Event, DecodeError> {
        let record: &[u8; EVENT] = exact(record)?;
        let kind = match u32_at(record, 0) {
            1 => EventKind::Exec,
            2 => EventKind::BypassSocket { family: libc::AF_PACKET as u16, netns: u32_at(record, 16) },
            3 => EventKind::BypassSocket { family: libc::AF_XDP as u16, netns: u32_at(record, 16) },
            unknown => return Err(DecodeError::EventKind(unknown)),
        };
        Ok(Event { tgid: u32_at(record, 4), start: u64_at(record, 8), kind })
    }
}

impl MappedFile {
    /// From a `struct object`.
    fn decode(record: &[u8; OBJECT]) -> MappedFile {
        let device = u32_at(record, 32);
        MappedFile {
            // `MKDEV` of the kernel's include/linux/kdev_t.h.
            device: libc::makedev(device >> 20, device & 0xf_ffff),
            inode: u64_at(record, 0),
            size: u64_at(record, 8),
            mtime: u64_at(record, 16).cast_signed(),
            ctime: u64_at(record, 24).cast_signed(),
            generation: u32_at(record, 36),
            magic: u64_at(record, 40),
        }
    }
}

impl FileMapping {
    pub(crate) fn decode(record: &[u8]) -> Result<FileMapping, DecodeError> {
        let record: &[u8; MAPPING_RECORD] = exact(record)?;
        let file = MappedFile::decode(&bytes(record, 16));
        Ok(FileMapping { start: u64_at(record, 0), file, written: u32_at(record, 8) != 0 })
    }
}

impl Change {
    pub(crate) fn decode(record: &[u8]) -> Result<Change, DecodeError> {
        let record: &[u8; CHANGE] = exact(record)?;
        let flags = u32_at(record, 36);
        let file = MappedFile::decode(&bytes(record, 40));
        let kind = match u32_at(record, 0) {
            1 => ChangeKind::Program(file),
            2 => ChangeKind::Object(file),
            3 => ChangeKind::Nothing,
            4 => ChangeKind::Unclear,
            5 => ChangeKind::Fork { parent: u32_at(record, 32), parent_start: u64_at(record, 24) },
            6 => ChangeKind::End,
            unknown => return Err(DecodeError::ChangeKind(unknown)),
        };
        Ok(Change {
            tgid: u32_at(record, 4),
            start: u64_at(record, 8),
            generation: u64_at(record, 16),
            shared: flags & CHANGE_SHARED != 0,
            news: flags & CHANGE_NEWS != 0,
            kind,
        })
    }
}

impl BypassRecord {
    pub(crate) fn decode(record: &[u8]) -> Result<BypassRecord, DecodeError> {
        let record: &[u8; BYPASS_RECORD] = exact(record)?;
        Ok(BypassRecord {
            tgid: u32_at(record, 0),
            netns: u32_at(record, 4),
            start: u64_at(record, 8),
            inode: u64_at(record, 16),
            family: u16_at(record, 24),
        })
    }
}

impl From<&SocketRecord> for SocketEnds {
    fn from(record: &SocketRecord) -> SocketEnds {
        let SocketRecord { cookie, protocol, local, local_port, remote, remote_port, .. } = *record;
        SocketEnds { cookie, protocol, local, local_port, remote, remote_port }
    }
}

impl SocketRecord {
    pub(crate) fn decode(record: &[u8]) -> Result<SocketRecord, DecodeError> {
        let record: &[u8; SOCKET_RECORD] = exact(record)?;
        let family = u16_at(record, 44);
        let flags = record[51];
        Ok(SocketRecord {
            tgid: u32_at(record, 0),
            fd: u32_at(record, 4),
            start: u64_at(record, 8),
            inode: u64_at(record, 16),
            cookie: u64_at(record, 24),
            file_refs: u64_at(record, 32),
            netns: u32_at(record, 40),
            family,
            kind: u16_at(record, 46),
            protocol: u16_at(record, 48),
            state: record[50],
            shared_table: flags & RECORD_SHARED_TABLE != 0,
            ipv6_only: flags & RECORD_IPV6_ONLY != 0,
            reuse: flags & RECORD_REUSE != 0,
            local_port: u16_at(record, 52),
            remote_port: u16_at(record, 54),
            local: address(family, bytes(record, 56))?,
            remote: address(family, bytes(record, 72))?,
        })
    }
}

fn address(family: u16, bytes: [u8; 16]) -> Result<IpAddr, DecodeError> {
    match i32::from(family) {
        libc::AF_INET => Ok(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()),
        libc::AF_INET6 => Ok(Ipv6Addr::from(bytes).into()),
        _ => Err(DecodeError::Family(family)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(record: &mut [u8], offset: usize, bytes: &[u8]) {
        record[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn event(kind: u32) -> [u8; EVENT] {
        let mut record = [0; EVENT];
        put(&mut record, 0, &kind.to_ne_bytes());
        put(&mut record, 4, &4711_u32.to_ne_bytes());
        put(&mut record, 8, &1_234_567_890_123_u64.to_ne_bytes());
        put(&mut record, 16, &4712_u32.to_ne_bytes());
        record
    }

    fn socket(family: u16) -> [u8; SOCKET_RECORD] {
        let mut record = [0; SOCKET_RECORD];
        put(&mut record, 0, &1_u32.to_ne_bytes());
        put(&mut record, 4, &301_u32.to_ne_bytes());
        put(&mut record, 8, &3_u64.to_ne_bytes());
        put(&mut record, 16, &4_u64.to_ne_bytes());
        put(&mut record, 24, &5_u64.to_ne_bytes());
        put(&mut record, 32, &6_u64.to_ne_bytes());
        put(&mut record, 40, &7_u32.to_ne_bytes());
        put(&mut record, 44, &family.to_ne_bytes());
        put(&mut record, 46, &1_u16.to_ne_bytes());
        put(&mut record, 48, &262_u16.to_ne_bytes());
        record[50] = 10;
        record[51] = RECORD_IPV6_ONLY;
        put(&mut record, 52, &8080_u16.to_ne_bytes());
        put(&mut record, 54, &443_u16.to_ne_bytes());
        put(&mut record, 56, &[0x20, 1, 0xd, 0xb8]);
        put(&mut record, 72, &[0x20, 2, 0xd, 0xb8]);
        record
    }

    #[test]
    fn events_of_every_kind() {
        let kind = |number| Event::decode(&event(number)).map(|event| event.kind);
        assert_eq!(kind(1), Ok(EventKind::Exec));
        assert_eq!(kind(2), Ok(EventKind::BypassSocket { family: 17, netns: 4712 }));
        assert_eq!(kind(3), Ok(EventKind::BypassSocket { family: 44, netns: 4712 }));
        assert_eq!(Event::decode(&event(1)), Ok(Event { tgid: 4711, start: 1_234_567_890_123, kind: EventKind::Exec }));
    }

    #[test]
    fn an_unknown_event_is_an_error() {
        assert_eq!(Event::decode(&event(0)), Err(DecodeError::EventKind(0)));
        assert_eq!(Event::decode(&event(4)), Err(DecodeError::EventKind(4)));
        assert_eq!(Event::decode(&event(u32::MAX)), Err(DecodeError::EventKind(u32::MAX)));
    }

    #[test]
    fn changes_of_every_kind() {
        let mut record = [0; CHANGE];
        put(&mut record, 4, &4711_u32.to_ne_bytes());
        put(&mut record, 8, &1_u64.to_ne_bytes());
        put(&mut record, 16, &2_u64.to_ne_bytes());
        put(&mut record, 24, &3_u64.to_ne_bytes());
        put(&mut record, 32, &4_u32.to_ne_bytes());
        for (offset, value) in [(40, 5_u64), (48, 6), (56, 7), (64, u64::MAX), (80, 0xef53)] {
            put(&mut record, offset, &value.to_ne_bytes());
        }
        put(&mut record, 72, &(8_u32 << 20 | 300).to_ne_bytes());
        put(&mut record, 76, &9_u32.to_ne_bytes());
        let file = MappedFile {
            device: libc::makedev(8, 300),
            inode: 5,
            size: 6,
            mtime: 7,
            ctime: -1,
            generation: 9,
            magic: 0xef53,
        };
        let kinds = [
            ChangeKind::Program(file),
            ChangeKind::Object(file),
            ChangeKind::Nothing,
            ChangeKind::Unclear,
            ChangeKind::Fork { parent: 4, parent_start: 3 },
            ChangeKind::End,
        ];
        for (number, kind) in (1_u32..).zip(kinds) {
            put(&mut record, 0, &number.to_ne_bytes());
            let expected = Change { tgid: 4711, start: 1, generation: 2, shared: false, news: false, kind };
            assert_eq!(Change::decode(&record), Ok(expected));
        }
        put(&mut record, 36, &CHANGE_SHARED.to_ne_bytes());
        assert!(Change::decode(&record).is_ok_and(|change| change.shared && !change.news));
        put(&mut record, 36, &CHANGE_NEWS.to_ne_bytes());
        assert!(Change::decode(&record).is_ok_and(|change| change.news && !change.shared));
        for unknown in [0_u32, 7, u32::MAX] {
            put(&mut record, 0, &unknown.to_ne_bytes());
            assert_eq!(Change::decode(&record), Err(DecodeError::ChangeKind(unknown)));
        }
        assert_eq!(Change::decode(&record[1..]), Err(DecodeError::Length { found: CHANGE - 1, expected: CHANGE }));
    }

    #[test]
    fn records_of_another_length_are_errors() {
        for length in [0, 1, EVENT - 1, EVENT + 1] {
            assert_eq!(Event::decode(&vec![1; length]), Err(DecodeError::Length { found: length, expected: EVENT }));
        }
        for length in [0, SOCKET_RECORD - 1, SOCKET_RECORD + 1] {
            assert_eq!(
                SocketRecord::decode(&vec![2; length]),
                Err(DecodeError::Length { found: length, expected: SOCKET_RECORD })
            );
        }
    }

    #[test]
    fn a_socket_beside_netfilter() {
        let mut record = [0; BYPASS_RECORD];
        put(&mut record, 0, &1_u32.to_ne_bytes());
        put(&mut record, 4, &2_u32.to_ne_bytes());
        put(&mut record, 8, &3_u64.to_ne_bytes());
        put(&mut record, 16, &4_u64.to_ne_bytes());
        put(&mut record, 24, &17_u16.to_ne_bytes());
        let expected = BypassRecord { tgid: 1, netns: 2, start: 3, inode: 4, family: 17 };
        assert_eq!(BypassRecord::decode(&record), Ok(expected));
        assert!(BypassRecord::decode(&record[1..]).is_err());
    }

    #[test]
    fn an_ipv6_socket() {
        let record = SocketRecord::decode(&socket(10)).expect("a good record");
        let expected = SocketRecord {
            tgid: 1,
            fd: 301,
            start: 3,
            inode: 4,
            cookie: 5,
            file_refs: 6,
            netns: 7,
            family: 10,
            kind: 1,
            protocol: 262,
            state: 10,
            shared_table: false,
            ipv6_only: true,
            reuse: false,
            local_port: 8080,
            remote_port: 443,
            local: "2001:db8::".parse().expect("an address"),
            remote: "2002:db8::".parse().expect("an address"),
        };
        assert_eq!(record, expected);
    }

    #[test]
    fn an_ipv4_socket_uses_the_first_four_bytes() {
        let record = SocketRecord::decode(&socket(2)).expect("a good record");
        assert_eq!(record.local, IpAddr::from([0x20, 1, 0xd, 0xb8]));
        assert_eq!(record.remote, IpAddr::from([0x20, 2, 0xd, 0xb8]));
    }

    #[test]
    fn a_socket_of_another_family_is_an_error() {
        assert_eq!(SocketRecord::decode(&socket(1)), Err(DecodeError::Family(1)));
    }

    #[test]
    fn connections() {
        let mut record = [0; CONNECTION_FIELDS * 8];
        put(&mut record, 0, &1_u64.to_ne_bytes());
        put(&mut record, 8, &2_u64.to_ne_bytes());
        put(&mut record, 56, &[192, 0, 2, 1]);
        put(&mut record, 72, &[192, 0, 2, 2, 0xff]);
        put(&mut record, 88, &443_u32.to_ne_bytes());
        put(&mut record, 92, &4_u32.to_ne_bytes());
        let words = |record: &[u8]| -> [u64; CONNECTION_FIELDS] {
            let mut words =
                record.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes")));
            std::array::from_fn(|_| words.next().expect("as many words"))
        };
        let expected = Connection {
            port_generation: 7,
            netns_cookie: 1,
            cookie: 2,
            maker: None,
            local: IpAddr::from([192, 0, 2, 1]),
            remote: IpAddr::from([192, 0, 2, 2]),
            remote_port: 443,
        };
        assert_eq!(Connection::decode(7, &words(&record)), Some(expected));
        put(&mut record, 16, &4711_u32.to_ne_bytes());
        put(&mut record, 92, &6_u32.to_ne_bytes());
        let found = Connection::decode(7, &words(&record)).expect("a good record");
        assert_eq!(found.maker.map(|maker| maker.tgid), Some(4711));
        assert_eq!(found.local, IpAddr::from([0xc000, 0x0201, 0, 0, 0, 0, 0, 0]));
        put(&mut record, 92, &5_u32.to_ne_bytes());
        assert_eq!(Connection::decode(7, &words(&record)), None);
    }

    #[test]
    fn a_creator() {
        let mut record = [0; CREATED_SOCKET];
        put(&mut record, 0, &4711_u32.to_ne_bytes());
        put(&mut record, 4, &(CREATED_RAW | CREATED_SHARED_TABLE).to_ne_bytes());
        put(&mut record, 8, &1_u64.to_ne_bytes());
        put(&mut record, 16, &2_u64.to_ne_bytes());
        put(&mut record, 24, &3_u64.to_ne_bytes());
        put(&mut record, 32, &4_u64.to_ne_bytes());
        let expected = Creator {
            tgid: 4711,
            start: 1,
            raw: true,
            shared_table: true,
            process_generation: 2,
            wide_generation: 3,
            lost_writers: 4,
        };
        assert_eq!(Creator::decode(&record), expected);
        assert_eq!(expected.encode(), record);
    }

    #[test]
    fn writers() {
        let mut record = [0; WRITERS];
        assert_eq!(Writers::decode(&record), Writers::default());
        put(&mut record, 0, &2_u32.to_ne_bytes());
        put(&mut record, 8, &4712_u32.to_ne_bytes());
        put(&mut record, 32, &4711_u32.to_ne_bytes());
        put(&mut record, 40, &1_u64.to_ne_bytes());
        put(&mut record, 48, &3_u64.to_ne_bytes());
        let found = Writers::decode(&record);
        assert_eq!((found.known.len(), found.more), (2, false));
        assert_eq!(found.known[1], Writer { tgid: 4711, start: 1, wrote: 3 });
        assert_eq!(found.encode(), record);
        put(&mut record, 0, &3_u32.to_ne_bytes());
        let found = Writers::decode(&record);
        assert_eq!((found.known.len(), found.more), (2, true));
    }
}
