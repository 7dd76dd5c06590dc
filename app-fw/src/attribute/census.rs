//! Raw sockets: whoever holds one may have made any packet of its protocol, whatever the packet's ports say.

use std::sync::Arc;

use arc_swap::ArcSwap;
use shared::Protocol;
use syscall_probe::{Generations, SocketRecord};

const SOCK_RAW: u16 = libc::SOCK_RAW as u16;

/// The raw sockets there are. Written by searches, read on the packet path.
#[derive(Clone, Debug)]
pub struct Census(Arc<ArcSwap<Count>>);

#[derive(Debug)]
struct Count {
    /// [`Generations::raw_sockets`] before the count; `None`: never counted.
    generation: Option<u64>,
    found: usize,
}

impl Default for Census {
    fn default() -> Census {
        Census(Arc::new(ArcSwap::from_pointee(Count { generation: None, found: 0 })))
    }
}

impl Census {
    /// Whether there certainly is no raw socket: none was there at the last count, and none was made since.
    pub fn is_clear(&self, generations: &Generations) -> bool {
        let count = self.0.load();
        count.found == 0 && count.generation == Some(generations.raw_sockets())
    }

    /// Takes note of a complete list of sockets that was begun when [`Generations::raw_sockets`] was `generation`.
    pub(super) fn take(&self, generation: u64, sockets: &[SocketRecord]) {
        let found = sockets.iter().filter(|socket| socket.kind == SOCK_RAW).count();
        self.0.store(Arc::new(Count { generation: Some(generation), found }));
    }
}

/// Whether the holder of `socket` may send packets of `protocol` through it. (A socket that writes whole IP headers may
/// send any; of those only the ones made for it show.)
pub(super) fn may_send(socket: &SocketRecord, protocol: Protocol) -> bool {
    let made_for = socket.protocol;
    socket.kind == SOCK_RAW && (made_for == u16::from(protocol.0) || made_for == u16::from(Protocol::RAW.0))
}
