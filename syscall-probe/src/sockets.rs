//! Which process made a socket.

use std::fmt;
use std::sync::Arc;

use aya::maps::{HashMap, MapData, MapError};

use crate::layout::{CREATED_SOCKET, Creator};

pub(crate) type CreatedSockets = HashMap<MapData, u64, [u8; CREATED_SOCKET]>;

/// The makers of the sockets that were made since the probe was loaded, up to the 131,072 most recently made or looked
/// up.
///
/// For a socket that came out of `accept` that is the process which accepted it, if no other could have it by then; one
/// that was accepted by io_uring is not in it.
#[derive(Clone)]
pub struct SocketTable {
    sockets: Arc<CreatedSockets>,
}

/// The kernel did not answer the look-up.
#[derive(Debug, thiserror::Error)]
#[error("cannot look up a socket in the probe's table")]
pub struct LookupError(#[source] Box<MapError>);

impl SocketTable {
    pub(crate) fn new(sockets: Arc<CreatedSockets>) -> SocketTable {
        SocketTable { sockets }
    }

    /// Who made the socket with this cookie; `None` if it is older than the probe, was accepted, or has been forgotten.
    /// One system call.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the look-up.
    pub fn creator(&self, cookie: u64) -> Result<Option<Creator>, LookupError> {
        match self.sockets.get(&cookie, 0) {
            Ok(record) => Ok(Some(Creator::decode(&record))),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(LookupError(Box::new(error))),
        }
    }
}

impl fmt::Debug for SocketTable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SocketTable").finish_non_exhaustive()
    }
}
