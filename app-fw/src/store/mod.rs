//! What survives a restart: rules, policies, sets, what was changed and how it was before, and the digests of objects, in
//! SQLite.
//!
//! A change is committed and on the disk before its function returns, and has happened completely or not at all. All
//! functions block; they belong on a thread that may.

mod checkpoint;
mod digests;
mod error;
mod history;
mod lock;
mod migrations;
mod open;
mod rows;
#[cfg(test)]
mod tests;

use std::path::Path;

use jiff::Timestamp;
use rusqlite::{Connection, TransactionBehavior, params};
use shared::control::Revision;

use crate::book::{Book, Delta};

pub use checkpoint::Checkpointer;
pub use digests::{MAX_DIGESTS, ObjectKey};
pub use error::StoreError;
use history::Kept;
pub use history::{Author, MAX_PAST, MAX_REVISIONS};
pub(crate) use lock::{LockError, LockFile};

/// Where the daemon keeps its database unless it is told otherwise.
pub const DEFAULT_PATH: &str = "/var/lib/app-fw/rules.db";

/// The database of one daemon.
#[derive(Debug)]
pub struct Store {
    // Dropped before the lock: the next daemon must find it closed.
    connection: Connection,
    checkpointer: Option<Checkpointer>,
    kept: Kept,
    max_digests: usize,
    _lock: LockFile,
}

impl Store {
    /// Opens the database at `path`. A missing file is made with mode 0600, a missing directory with mode 0700; an older
    /// layout is brought to the present one. The store is this process's until it is dropped.
    ///
    /// # Errors
    /// The file or its directory cannot be made or opened; another daemon uses it; others could write it; it is no
    /// database, another application's, newer than this program, or corrupt.
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        let (connection, lock) = open::open(path)?;
        let kept = Kept::read(&connection)?;
        checkpoint::leave_to_checkpointer(&connection)?;
        let checkpointer = Some(Checkpointer::open(path)?);
        Ok(Store { connection, checkpointer, kept, max_digests: MAX_DIGESTS, _lock: lock })
    }

    /// Who brings what was committed from the log into the database. To be taken once; `None` the next time.
    pub fn take_checkpointer(&mut self) -> Option<Checkpointer> {
        self.checkpointer.take()
    }

    /// All rules, policies and sets.
    ///
    /// # Errors
    /// A rule that cannot be read is an error that names it: a firewall that leaves out a rule lets through what it
    /// should not.
    pub fn book(&self) -> Result<Book, StoreError> {
        let contents = rows::contents(&self.connection)?;
        Book::new(contents).map_err(|(id, why)| StoreError::Rule { id: id.cast_signed(), why })
    }

    /// Makes a change last, as the revision after `book`'s. `book` is as it is after the change. `ready` is called when all is
    /// written and nothing is committed yet.
    ///
    /// # Errors
    /// The database cannot be written. Then nothing of it is.
    pub fn commit(
        &mut self,
        book: &Book,
        last_id: u64,
        delta: &Delta,
        author: &Author,
        ready: impl FnOnce(),
    ) -> Result<Revision, StoreError> {
        // As exact as it is stored.
        let time = Timestamp::from_microsecond(author.time.as_microsecond()).unwrap_or(author.time);
        let revision = Revision {
            number: book.revision() + 1,
            time,
            uid: author.uid,
            pid: author.pid,
            note: author.note.clone(),
            changes: delta.lines(book),
            undoable: true,
        };
        let past = history::compressed(delta)?;
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        rows::write(&transaction, delta)?;
        for (key, value) in [("revision", revision.number), ("last_id", last_id)] {
            transaction
                .prepare_cached("UPDATE meta SET value = ?2 WHERE key = ?1")?
                .execute(params![key, value.cast_signed()])?;
        }
        let kept = history::write(&transaction, &self.kept, &revision, past.as_deref())?;
        ready();
        transaction.commit()?;
        self.kept = kept;
        Ok(revision)
    }

    /// Makes counters last: id, packets and bytes of each, all in one transaction.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn save_counters(&mut self, counters: &[(u64, u64, u64)]) -> Result<(), StoreError> {
        if counters.is_empty() {
            return Ok(());
        }
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        {
            let mut write = transaction.prepare_cached(rows::WRITE_COUNTER)?;
            for (id, packets, bytes) in counters {
                write.execute(rows::counter(*id, *packets, *bytes))?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}
