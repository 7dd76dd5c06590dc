//! Digests that need not be computed again.

use rusqlite::{TransactionBehavior, params};
use shared::Digest;

use super::{Store, StoreError};

/// The most digests kept. When there are more, those go that were remembered longest ago: it costs a hashing, not truth.
pub const MAX_DIGESTS: usize = 100_000;

/// What an object is known by: the mapped file itself, never its path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectKey {
    /// `st_dev`: the device number as stat(2) gives it.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Last change of the content: nanoseconds after 1970, UTC.
    pub mtime_ns: i64,
    /// Last change of content or inode: nanoseconds after 1970, UTC.
    pub ctime_ns: i64,
}

impl Store {
    /// All digests kept, the one remembered last first.
    ///
    /// # Errors
    /// The database cannot be read, or contradicts itself.
    pub fn digests(&self) -> Result<Vec<(ObjectKey, Digest)>, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT dev, ino, size, mtime_ns, ctime_ns, sha256 FROM digests ORDER BY last_used DESC")?;
        let rows = statement.query_map([], |row| {
            let unsigned = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
            let key = ObjectKey {
                dev: unsigned(0)?,
                ino: unsigned(1)?,
                size: unsigned(2)?,
                mtime_ns: row.get(3)?,
                ctime_ns: row.get(4)?,
            };
            Ok((key, Digest(row.get(5)?)))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Keeps digests, all in one transaction. One that is kept already counts as used again; above the bound of
    /// [`MAX_DIGESTS`] the oldest go.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn remember_digests(&mut self, digests: &[(ObjectKey, Digest)]) -> Result<(), StoreError> {
        if digests.is_empty() {
            return Ok(());
        }
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        {
            let mut last_used: i64 = transaction
                .prepare_cached("SELECT coalesce(max(last_used), 0) FROM digests")?
                .query_row([], |row| row.get(0))?;
            let mut insert = transaction.prepare_cached(
                "INSERT OR REPLACE INTO digests (dev, ino, size, mtime_ns, ctime_ns, sha256, last_used)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?;
            for (key, digest) in digests {
                last_used = last_used
                    .checked_add(1)
                    .ok_or_else(|| StoreError::Corrupt("the digests have been used too often".into()))?;
                insert.execute(params![
                    key.dev.cast_signed(),
                    key.ino.cast_signed(),
                    key.size.cast_signed(),
                    key.mtime_ns,
                    key.ctime_ns,
                    digest.0,
                    last_used
                ])?;
            }
            transaction
                .prepare_cached(
                    "DELETE FROM digests WHERE last_used <=
                     (SELECT last_used FROM digests ORDER BY last_used DESC LIMIT 1 OFFSET ?1)",
                )?
                .execute([self.max_digests as i64])?;
        }
        transaction.commit()?;
        Ok(())
    }
}
