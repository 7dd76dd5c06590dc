//! Opening the database: who may, what it must be, and how SQLite is told to keep it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::error::StoreError;
use super::lock::{LockError, LockFile};
use super::migrations;

/// `PRAGMA application_id` of our databases: "APFW". Set in `v1.sql`.
const APPLICATION_ID: i64 = 0x4150_4657;

/// How long a write waits for a program that reads or writes the database by other means.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens the database at `path`, made and brought to the latest version if need be, and the lock that keeps it ours.
pub(super) fn open(path: &Path) -> Result<(Connection, LockFile), StoreError> {
    make_directory(path)?;
    let lock = LockFile::beside(path).map_err(|error| match error {
        LockError::Taken(pid) => StoreError::InUse { path: path.into(), pid },
        LockError::Io(source) => StoreError::File { path: path.into(), source },
    })?;
    make_file(path)?;
    // Without URI: a file may be called "file:x". Without CREATE: it was made above, with the right mode.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(|error| at(path, error))?;
    check_kind(&connection, path)?;
    configure(&connection, path)?;
    check_pages(&connection)?;
    migrations::steps().to_latest(&mut connection).map_err(|error| match error {
        rusqlite_migration::Error::RusqliteError { err, .. } => StoreError::from(err),
        source => StoreError::Migration { to: migrations::LATEST, source: Box::new(source) },
    })?;
    Ok((connection, lock))
}

/// The directory that holds `path`.
fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.into(),
        _ => ".".into(),
    }
}

fn make_directory(path: &Path) -> Result<(), StoreError> {
    let directory = parent(path);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .map_err(|source| StoreError::Directory { path: directory, source })
}

/// Makes the file before SQLite does, so that it never has a wider mode; SQLite gives its -wal and -shm the same one.
fn make_file(path: &Path) -> Result<(), StoreError> {
    let fail = |source| StoreError::File { path: path.into(), source };
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        // SQLite syncs the directory for its journals, not for a file that it did not make.
        Ok(_) => File::open(parent(path)).and_then(|directory| directory.sync_all()).map_err(fail),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => check_file(path),
        Err(error) => Err(fail(error)),
    }
}

/// Whoever can write this file decides what the firewall lets through.
fn check_file(path: &Path) -> Result<(), StoreError> {
    let found = fs::metadata(path).map_err(|source| StoreError::File { path: path.into(), source })?;
    if !found.is_file() {
        return Err(StoreError::NotADatabase(path.into()));
    }
    let (owner, mode, wanted) = (found.uid(), found.mode() & 0o777, nix::unistd::geteuid().as_raw());
    if owner != wanted || mode & 0o022 != 0 {
        return Err(StoreError::Insecure { path: path.into(), owner, mode, wanted });
    }
    Ok(())
}

/// Refuses what is not ours before anything is written to it.
fn check_kind(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(|error| at(path, error));
    let application = number("PRAGMA application_id")?;
    let found = number("PRAGMA user_version")?;
    let is_empty = number("SELECT count(*) FROM sqlite_schema")? == 0;
    match (application, found) {
        (0, 0) if is_empty => Ok(()),
        (APPLICATION_ID, 1..=migrations::LATEST) => Ok(()),
        (APPLICATION_ID, _) if found > migrations::LATEST => {
            Err(StoreError::Newer { path: path.into(), found, known: migrations::LATEST })
        }
        _ => Err(StoreError::Foreign(path.into())),
    }
}

fn configure(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
        .map_err(|error| at(path, error))?;
    if mode != "wal" {
        let source = io::Error::other("its file system cannot hold a write-ahead log (no shared memory mappings)");
        return Err(StoreError::File { path: path.into(), source });
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // A prepared database must not make us run functions from its schema, nor read beyond its cells.
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    // What a large change left behind in the log goes with the next checkpoint.
    connection.pragma_update(None, "journal_size_limit", 4 << 20)?;
    // KiB: a large change is written once, not page by page whenever the cache is full.
    connection.pragma_update(None, "cache_size", -(64 << 10))?;
    connection.set_prepared_statement_cache_capacity(48);
    Ok(())
}

fn check_pages(connection: &Connection) -> Result<(), StoreError> {
    let answer: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if answer == "ok" { Ok(()) } else { Err(StoreError::Corrupt(answer)) }
}

/// Errors of the first accesses are about the file.
fn at(path: &Path, error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => StoreError::NotADatabase(path.into()),
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::SystemIoFailure) => {
            StoreError::File { path: path.into(), source: io::Error::other(error) }
        }
        _ => StoreError::from(error),
    }
}
