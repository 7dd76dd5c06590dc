//! What can go wrong with the store.

use std::io;
use std::path::PathBuf;

use rusqlite::ErrorCode;
use shared::control::{Failure, FailureKind};

/// Why the store could not do what it was asked. Whatever the error, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory of the database does not exist and could not be made.
    #[error("cannot make the directory {}: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The database file, or the lock beside it, could not be opened or made.
    #[error("cannot open {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another daemon has it.
    #[error(
        "another app-fw{} uses {}: stop it, or give this one its own file with --db",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(),
        path.display()
    )]
    InUse {
        /// The database.
        path: PathBuf,
        /// Who has it, if it could be told.
        pid: Option<u32>,
    },
    /// Somebody else could put rules into it.
    #[error(
        "{} belongs to user {owner} and has mode {mode:03o}: only user {wanted} may be able to write it (chown, chmod 600)",
        path.display()
    )]
    Insecure {
        /// The database.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its permission bits.
        mode: u32,
        /// The user the daemon runs as.
        wanted: u32,
    },
    /// The file is something else, or its first page is destroyed.
    #[error("{} is not a database", .0.display())]
    NotADatabase(PathBuf),
    /// The database is another application's.
    #[error("{} is a database of another application", .0.display())]
    Foreign(PathBuf),
    /// A newer app-fw has written it.
    #[error(
        "{} has version {found} and this app-fw knows versions up to {known}: it was written by a newer app-fw, use that one",
        path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The version this program writes.
        known: i64,
    },
    /// What is in the database contradicts itself.
    #[error("the database is corrupt: {0}")]
    Corrupt(String),
    /// A stored rule cannot be read.
    #[error("rule {id} in the database cannot be read: {why}")]
    Rule {
        /// Its id.
        id: i64,
        /// What is wrong.
        why: String,
    },
    /// What there was before a revision is not kept.
    #[error("what there was before revision {0} is not kept: it cannot be taken back")]
    Forgotten(u64),
    /// Somebody holds a lock on the database.
    #[error("the database is locked by another program (an open sqlite3 shell?)")]
    Busy,
    /// No room.
    #[error("the disk that holds the database is full")]
    Full,
    /// It can be read but not written.
    #[error("the database cannot be written: its file or file system is read-only")]
    ReadOnly,
    /// A migration failed.
    #[error("cannot bring the database to version {to}: {source}")]
    Migration {
        /// The version this program writes.
        to: i64,
        /// What failed.
        source: Box<rusqlite_migration::Error>,
    },
    /// Anything else SQLite says.
    #[error("SQLite: {0}")]
    Sqlite(rusqlite::Error),
}

impl StoreError {
    /// What a client is told.
    pub fn failure(&self) -> Failure {
        let kind = match self {
            StoreError::Forgotten(_) => FailureKind::NotFound,
            _ => FailureKind::Store,
        };
        Failure { kind, message: self.to_string(), index: None }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> StoreError {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Busy,
            Some(ErrorCode::DiskFull) => StoreError::Full,
            Some(ErrorCode::ReadOnly) => StoreError::ReadOnly,
            Some(ErrorCode::DatabaseCorrupt) => StoreError::Corrupt(error.to_string()),
            _ => StoreError::Sqlite(error),
        }
    }
}
