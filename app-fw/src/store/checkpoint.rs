//! Bringing what was committed from the log into the database, beside whoever commits.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::StoreError;
use super::open::BUSY_TIMEOUT;

/// Pages in the log at which SQLite brings them into the database itself, while somebody waits for a commit: only if nobody
/// has done so before.
const MAX_LOG: i64 = 1 << 14;

/// A connection of its own: SQLite lets one write the log while another brings it into the database.
#[derive(Debug)]
pub struct Checkpointer(Connection);

impl Checkpointer {
    pub(super) fn open(path: &Path) -> Result<Checkpointer, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        Ok(Checkpointer(connection))
    }

    /// Brings over what can be without waiting for anybody. Blocks for the disk.
    ///
    /// # Errors
    /// The disk does not take it. All that was committed is in the log still.
    pub fn run(&self) -> Result<(), StoreError> {
        Ok(self.0.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?)
    }
}

/// Has commits leave it to the checkpointer.
pub(super) fn leave_to_checkpointer(connection: &Connection) -> Result<(), StoreError> {
    Ok(connection.pragma_update_and_check(None, "wal_autocheckpoint", MAX_LOG, |_| Ok(()))?)
}
