//! Which process made a socket.

use std::sync::Arc;
use std::{collections, fmt, io};

use aya::maps::{HashMap, Map, MapData, MapError};

use crate::layout::{CREATED_SOCKET, Creator, SocketRecord, WRITERS, Writer, Writers};
use crate::{Generation, Generations, Holders};

type CreatedSockets = HashMap<MapData, u64, [u8; CREATED_SOCKET]>;
type WrittenSockets = HashMap<MapData, u64, [u8; WRITERS]>;

/// The makers of the sockets that were made since the probe was loaded, up to the 131,072 most recently made or looked
/// up. A socket that had one holder when the probe was loaded counts as made by that then.
///
/// For a socket that came out of `accept` that is the process which accepted it, if no other could have it by then; one
/// that was accepted by io_uring is not in it.
#[derive(Clone)]
pub struct SocketTable {
    maps: Arc<Maps>,
}

struct Maps {
    sockets: CreatedSockets,
    writers: WrittenSockets,
}

/// The kernel did not answer the look-up.
#[derive(Debug, thiserror::Error)]
#[error("cannot look up a socket in the probe's table")]
pub struct LookupError(#[source] Box<MapError>);

impl SocketTable {
    /// `older`: sockets that were there before the kernel began to take note.
    pub(crate) fn new(sockets: Map, writers: Map, older: &[OlderSocket]) -> Result<SocketTable, MapError> {
        /// What the kernel has noted meanwhile stands.
        const BPF_NOEXIST: u64 = 1;
        let mut maps = Maps { sockets: HashMap::try_from(sockets)?, writers: HashMap::try_from(writers)? };
        for OlderSocket { cookie, maker, writers } in older {
            // One that does not fit, or is there already, is looked for when it is needed.
            let _ = maker.map(|maker| maps.sockets.insert(cookie, maker.encode(), BPF_NOEXIST));
            let _ = writers.as_ref().map(|writers| maps.writers.insert(cookie, writers.encode(), BPF_NOEXIST));
        }
        Ok(SocketTable { maps: Arc::new(maps) })
    }

    /// Who made the socket with this cookie; `None` if it is older than the probe, had several holders then, or has been forgotten.
    /// One system call.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the look-up.
    pub fn creator(&self, cookie: u64) -> Result<Option<Creator>, LookupError> {
        match self.maps.sockets.get(&cookie, 0) {
            Ok(record) => Ok(Some(Creator::decode(&record))),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(LookupError(Box::new(error))),
        }
    }

    /// The processes that wrote into the TCP socket with this cookie since the probe was loaded, or that sent through any socket
    /// of another network namespace than the one in which it was loaded. What they wrote may leave long after they let
    /// go of the socket. One system call.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the look-up.
    pub fn writers(&self, cookie: u64) -> Result<Writers, LookupError> {
        match self.maps.writers.get(&cookie, 0) {
            Ok(record) => Ok(Writers::decode(&record)),
            Err(MapError::KeyNotFound) => Ok(Writers::default()),
            Err(error) => Err(LookupError(Box::new(error))),
        }
    }
}

/// A socket that was there before the probe.
pub(crate) struct OlderSocket {
    cookie: u64,
    /// Its one holder, if it certainly has one, as if that had just made it.
    maker: Option<Creator>,
    /// All its holders, if they may have written what is not sent yet: nobody has seen whether they did.
    writers: Option<Writers>,
}

/// The sockets there are. To be called when the kernel has begun to take note of new ones.
///
/// # Errors
///
/// When the kernel does not list sockets.
pub(crate) fn older_sockets(generations: &Generations, holders: &Holders) -> io::Result<Vec<OlderSocket>> {
    let mut records = Vec::new();
    holders.all(&mut records)?;
    let wide_generation = generations.wide();
    let before: collections::HashMap<u32, Generation> =
        records.iter().map(|record| (record.tgid, generations.process(record.tgid))).collect();
    // Whoever passes a socket on after this moves; whoever got one before is seen by the second list.
    records.clear();
    holders.all(&mut records)?;
    records.sort_unstable_by_key(|record| (record.cookie, record.tgid));
    let older = records.chunk_by(|a, b| a.cookie == b.cookie).filter_map(|descriptors| {
        let first = descriptors.first()?;
        let maker = || {
            let generation = before.get(&first.tgid).filter(|generation| generation.settled)?;
            let alone = descriptors.iter().all(|other| (other.tgid, other.start) == (first.tgid, first.start))
                && first.file_refs == descriptors.len() as u64;
            alone.then_some(Creator {
                tgid: first.tgid,
                start: first.start,
                raw: i32::from(first.kind) == libc::SOCK_RAW,
                shared_table: first.shared_table,
                process_generation: generation.value,
                wide_generation,
                lost_writers: 0,
            })
        };
        let writers = || {
            let of_process = descriptors.chunk_by(|a, b| a.tgid == b.tgid).filter_map(<[SocketRecord]>::first);
            let writer =
                |one: &SocketRecord| Writer { tgid: one.tgid, start: one.start, wrote: generations.exec(one.tgid) };
            Writers { known: of_process.map(writer).collect(), more: false }
        };
        let is_tcp = i32::from(first.protocol) == libc::IPPROTO_TCP;
        Some(OlderSocket { cookie: first.cookie, maker: maker(), writers: is_tcp.then(writers) })
    });
    Ok(older.collect())
}

impl fmt::Debug for SocketTable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SocketTable").finish_non_exhaustive()
    }
}
