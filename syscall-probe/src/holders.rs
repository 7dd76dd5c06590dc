//! Who holds which socket, by the kernel's iterator over the open files of all processes.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::layout::{BYPASS_RECORD, BypassRecord, DecodeError, SOCKET_RECORD, SocketEnds, SocketRecord};
use crate::sys;

/// Bytes read at once. A buffer on the stack keeps look-ups free of allocation and locks.
const BUFFER: usize = 128 * SOCKET_RECORD;

/// Lists open IPv4 and IPv6 sockets of any protocol: one [`SocketRecord`] per descriptor.
///
/// A list is not one moment's truth: the iterator goes from process to process while they run. Whoever keeps what it
/// derived from one reads the generations before. Processes are those of the caller's pid namespace and below. One
/// descriptor of a socket is listed for each number that a process has for it: two threads with tables of their own may
/// have the same socket under one number.
///
/// Not listed, because no descriptor shows them: sockets under way in a message, and those only registered with an
/// io_uring. [`SocketRecord::file_refs`] tells that there are such references.
#[derive(Debug, Clone)]
pub struct Holders {
    programs: Arc<Programs>,
}

#[derive(Debug)]
struct Programs {
    all: OwnedFd,
    bypass: OwnedFd,
    of_one: Option<OfOneSocket>,
}

/// The programs behind [`Holders::of_socket`].
#[derive(Debug)]
pub(crate) struct OfOneSocket {
    pub(crate) find: OwnedFd,
    pub(crate) list: OwnedFd,
}

impl Holders {
    pub(crate) fn new(all: OwnedFd, bypass: OwnedFd, of_one: Option<OfOneSocket>) -> Holders {
        Holders { programs: Arc::new(Programs { all, bypass, of_one }) }
    }

    /// Appends the sockets of one process to `out`; none if there is no such process.
    ///
    /// # Errors
    ///
    /// Those of bpf(2) and of read(2) on the iterator; `out` may have grown.
    pub fn of_process(&self, tgid: u32, out: &mut Vec<SocketRecord>) -> io::Result<()> {
        if tgid == 0 {
            return Ok(()); // The kernel would take it for "all".
        }
        let mut once = Once::default();
        // A kernel that cannot restrict the iteration lists everything.
        list::<SOCKET_RECORD>(&self.programs.all, tgid, |record| {
            let record = SocketRecord::decode(record)?;
            if record.tgid == tgid && once.is_new(&record) {
                out.push(record);
            }
            Ok(())
        })
    }

    /// Appends the sockets of all processes to `out`.
    ///
    /// # Errors
    ///
    /// As [`Holders::of_process`].
    pub fn all(&self, out: &mut Vec<SocketRecord>) -> io::Result<()> {
        let mut once = Once::default();
        list::<SOCKET_RECORD>(&self.programs.all, 0, |record| {
            let record = SocketRecord::decode(record)?;
            if once.is_new(&record) {
                out.push(record);
            }
            Ok(())
        })
    }

    /// Appends the descriptors of one socket to `out`, those of one process or (`tgid` 0) of all: in a fraction of the time that [`Holders::all`] takes, for it compares
    /// pointers and looks at no other file. What a ring holds in its own table is not among them.
    ///
    /// False, and nothing appended: the kernel does not find the socket by its ends (another protocol, bound to an
    /// interface, one of several that share a port), or [`crate::Hook::Holders`] is missing. To be called in the socket's network
    /// namespace.
    ///
    /// # Errors
    ///
    /// As [`Holders::of_process`].
    pub fn of_socket(&self, socket: &SocketEnds, tgid: u32, out: &mut Vec<SocketRecord>) -> io::Result<bool> {
        let Some(programs) = self.programs.of_one.as_ref().filter(|_| socket.can_be_found()) else { return Ok(false) };
        // The one program leaves the file where the other, run by the same thread, looks for it.
        if sys::run(programs.find.as_fd(), &socket.encode())? == 0 {
            return Ok(false);
        }
        let mut once = Once::default();
        list::<SOCKET_RECORD>(&programs.list, tgid, |record| {
            let record = SocketRecord::decode(record)?;
            if record.cookie == socket.cookie && (tgid == 0 || record.tgid == tgid) && once.is_new(&record) {
                out.push(record);
            }
            Ok(())
        })?;
        Ok(true)
    }

    /// Lists the open sockets that pass beside netfilter (`AF_PACKET`, `AF_XDP`), of all processes and network
    /// namespaces: one record per descriptor.
    ///
    /// # Errors
    ///
    /// As [`Holders::of_process`].
    pub fn bypass_sockets(&self) -> io::Result<Vec<BypassRecord>> {
        let mut found = Vec::new();
        list::<BYPASS_RECORD>(&self.programs.bypass, 0, |record| {
            found.push(BypassRecord::decode(record)?);
            Ok(())
        })?;
        Ok(found)
    }
}

/// The kernel shows a table once for each thread that has another than the first thread: if that has ended, for all of them.
/// Whoever counts descriptors to know whether a socket has other references must not count one twice.
#[derive(Default)]
struct Once(HashSet<(u32, u32, u64)>);

impl Once {
    fn is_new(&mut self, record: &SocketRecord) -> bool {
        self.0.insert((record.tgid, record.fd, record.inode))
    }
}

/// Runs an iterator that writes records of `LENGTH` bytes.
pub(crate) fn list<const LENGTH: usize>(
    program: &OwnedFd,
    tgid: u32,
    mut each: impl FnMut(&[u8]) -> Result<(), DecodeError>,
) -> io::Result<()> {
    let mut iterator = File::from(sys::start_iterator(program.as_fd(), tgid)?);
    let mut buffer = [0; BUFFER];
    let mut filled = 0;
    loop {
        let read = read_some(&mut iterator, &mut buffer[filled..])?;
        if read == 0 {
            return if filled == 0 { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) };
        }
        filled += read;
        let whole = filled - filled % LENGTH;
        for record in buffer[..whole].chunks_exact(LENGTH) {
            each(record).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
        // The kernel writes whole records, but what is left of its buffer may end within one of ours.
        buffer.copy_within(whole..filled, 0);
        filled -= whole;
    }
}

/// Reads what there is; 0 at the end. EAGAIN is the kernel's way to say that it went over a million files without one
/// of ours.
pub(crate) fn read_some(iterator: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match iterator.read(buffer) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            result => return result,
        }
    }
}
