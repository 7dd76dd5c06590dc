//! Raw sockets: whoever holds one may have made any packet, whatever the packet's ports say.

use std::sync::Arc;

use arc_swap::ArcSwap;
use shared::Protocol;
use syscall_probe::{Generation, Generations, SocketRecord};

use crate::image::Process;

const SOCK_RAW: u16 = libc::SOCK_RAW as u16;

/// Who holds raw sockets. Written by searches, read on the packet path.
#[derive(Clone, Debug, Default)]
pub struct Census(Arc<ArcSwap<Count>>);

#[derive(Debug, Default)]
struct Count {
    /// [`Generations::raw_sockets`] and [`Generations::wide`] before the count; `None`: never counted, or there is one
    /// whose holders are not all known.
    moment: Option<(u64, u64)>,
    holders: Vec<(Process, Generation)>,
}

impl Count {
    /// Whether it is still true: no raw socket was made since, and none was passed on.
    fn holds(&self, generations: &Generations) -> bool {
        self.moment == Some((generations.raw_sockets(), generations.wide()))
            && self
                .holders
                .iter()
                .all(|(process, before)| before.settled && generations.process(process.tgid) == *before)
    }
}

impl Census {
    /// Whether there certainly is no raw socket.
    pub fn is_clear(&self, generations: &Generations) -> bool {
        let count = self.0.load();
        count.holders.is_empty() && count.holds(generations)
    }

    /// Whether the process with this id certainly holds no raw socket.
    pub fn clears(&self, tgid: u32, generations: &Generations) -> bool {
        let count = self.0.load();
        count.holds(generations) && count.holders.iter().all(|(process, _)| process.tgid != tgid)
    }

    /// Counts. `list` lists all open sockets.
    ///
    /// # Errors
    /// Those of `list`.
    pub(super) fn take(
        &self,
        generations: &Generations,
        mut list: impl FnMut() -> std::io::Result<Vec<SocketRecord>>,
    ) -> std::io::Result<Vec<SocketRecord>> {
        let moment = (generations.raw_sockets(), generations.wide());
        let records = list()?;
        let before = holders(&records);
        if before.is_empty() {
            // One that was under way in a message all the time is nobody's; who gets it is not a sender yet.
            self.0.store(Arc::new(Count { moment: Some(moment), holders: Vec::new() }));
            return Ok(records);
        }
        // Whoever passes one on after this moves; whoever got one before is seen by the second list.
        let noted: Vec<_> = before.iter().map(|process| (*process, generations.process(process.tgid))).collect();
        let records = list()?;
        let known = holders(&records).iter().all(|process| before.contains(process)) && all_accounted_for(&records);
        self.0.store(Arc::new(Count { moment: known.then_some(moment), holders: noted }));
        Ok(records)
    }
}

fn raw(records: &[SocketRecord]) -> impl Iterator<Item = &SocketRecord> {
    records.iter().filter(|record| record.kind == SOCK_RAW)
}

fn holders(records: &[SocketRecord]) -> Vec<Process> {
    let mut holders: Vec<_> = raw(records).map(|record| Process::new(record.tgid, record.start)).collect();
    holders.sort_unstable();
    holders.dedup();
    holders
}

/// No raw socket has a reference besides descriptors: one under way in a message could go to anybody. (A call that is
/// running on one in a process with threads looks the same.)
fn all_accounted_for(records: &[SocketRecord]) -> bool {
    raw(records).all(|record| {
        let descriptors = raw(records).filter(|other| other.inode == record.inode).count() as u64;
        record.file_refs <= descriptors && !record.shared_table
    })
}

/// Whether the holder of `socket` may send packets of `protocol` through it. (One that writes whole IP headers may send
/// any; of those only the ones made for it show.)
pub(super) fn may_send(socket: &SocketRecord, protocol: Protocol) -> bool {
    let made_for = socket.protocol;
    is_raw(socket) && (made_for == u16::from(protocol.0) || made_for == u16::from(Protocol::RAW.0))
}

/// Whether it is a raw socket.
pub(super) fn is_raw(socket: &SocketRecord) -> bool {
    socket.kind == SOCK_RAW
}
