//! What was changed when and by whom, and how it was before.

use std::collections::VecDeque;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use shared::Rule;
use shared::control::Revision;

use crate::book::{Delta, Past};

use super::{Store, StoreError};

/// Revisions that are listed, the newest.
pub const MAX_REVISIONS: u64 = 1000;

/// Bytes of what is kept to take revisions back, compressed.
pub const MAX_PAST: usize = 64 << 20;

/// JSON of one revision's past, bytes: a ruleset that fits into a request, with some more for each rule.
const MAX_LENGTH: usize = 1 << 30;

/// Who made a change, and when.
#[derive(Clone, Debug, Default)]
pub struct Author {
    /// When.
    pub time: Timestamp,
    /// User id; absent: the daemon itself.
    pub uid: Option<u32>,
    /// Process id.
    pub pid: Option<u32>,
    /// What he calls it.
    pub note: Option<String>,
}

/// Revisions whose past is kept, oldest first: number and bytes. Without gaps up to the newest.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    pasts: VecDeque<(u64, usize)>,
    bytes: usize,
    max: usize,
}

impl Kept {
    pub(super) fn read(connection: &Connection) -> Result<Kept, StoreError> {
        let mut statement = connection.prepare("SELECT number, length(past) FROM revisions ORDER BY number DESC")?;
        let mut rows = statement.query([])?;
        let mut kept = Kept { max: MAX_PAST, ..Kept::default() };
        while let Some(row) = rows.next()? {
            let (number, length): (i64, Option<i64>) = (row.get(0)?, row.get(1)?);
            let Some(length) = length.and_then(|length| usize::try_from(length).ok()) else { break };
            kept.pasts.push_front((number.cast_unsigned(), length));
            kept.bytes += length;
        }
        Ok(kept)
    }

    fn oldest(&self) -> u64 {
        self.pasts.front().map_or(u64::MAX, |(number, _)| *number)
    }
}

/// How everything was before a change, as it is stored.
pub(super) fn compressed(delta: &Delta) -> Result<Option<Vec<u8>>, StoreError> {
    let json = serde_json::to_vec(&delta.past()).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    Ok((json.len() <= MAX_LENGTH).then(|| lz4_flex::compress_prepend_size(&json)))
}

fn read_past(bytes: &[u8]) -> Result<Past<Rule>, String> {
    let length = bytes.first_chunk().map_or(usize::MAX, |length| u32::from_le_bytes(*length) as usize);
    if length > MAX_LENGTH {
        return Err("its length is impossible".into());
    }
    let json = lz4_flex::decompress_size_prepended(bytes).map_err(|error| error.to_string())?;
    serde_json::from_slice(&json).map_err(|error| error.to_string())
}

/// Adds a revision and lets go of what is too old or too much. What is kept then.
pub(super) fn write(
    transaction: &Transaction<'_>,
    kept: &Kept,
    revision: &Revision,
    past: Option<&[u8]>,
) -> Result<Kept, StoreError> {
    let number = revision.number;
    let mut kept = kept.clone();
    let past = past.filter(|past| past.len() <= kept.max);
    match past {
        Some(past) => {
            kept.pasts.push_back((number, past.len()));
            kept.bytes += past.len();
        }
        // Without it nothing older can be reached.
        None => (kept.pasts, kept.bytes) = (VecDeque::new(), 0),
    }
    while kept.bytes > kept.max {
        kept.bytes -= kept.pasts.pop_front().map_or(kept.bytes, |(_, bytes)| bytes);
    }
    let oldest = number.saturating_sub(MAX_REVISIONS);
    while let Some((_, bytes)) = kept.pasts.pop_front_if(|(number, _)| *number <= oldest) {
        kept.bytes -= bytes;
    }
    let changes = serde_json::to_string(&revision.changes).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    transaction
        .prepare_cached(
            "INSERT INTO revisions (number, time, uid, pid, note, changes, past) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            number.cast_signed(),
            revision.time.as_microsecond(),
            revision.uid,
            revision.pid,
            revision.note,
            changes,
            past
        ])?;
    transaction.prepare_cached("DELETE FROM revisions WHERE number <= ?1")?.execute([oldest.cast_signed()])?;
    let gone = kept.oldest().min(number + 1);
    transaction
        .prepare_cached("UPDATE revisions SET past = NULL WHERE number < ?1 AND past IS NOT NULL")?
        .execute([gone.cast_signed()])?;
    Ok(kept)
}

impl Store {
    #[cfg(test)]
    pub(super) fn limit_past(&mut self, bytes: usize) {
        self.kept.max = bytes;
    }

    /// What was changed when and by whom, newest first, at most `count`.
    ///
    /// # Errors
    /// The database cannot be read, or contradicts itself.
    pub fn history(&self, count: usize) -> Result<Vec<Revision>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT number, time, uid, pid, note, changes FROM revisions ORDER BY number DESC LIMIT ?1",
        )?;
        let mut rows = statement.query([i64::try_from(count).unwrap_or(i64::MAX)])?;
        let mut revisions = Vec::new();
        while let Some(row) = rows.next()? {
            revisions.push(self.revision(row)?);
        }
        Ok(revisions)
    }

    fn revision(&self, row: &Row<'_>) -> Result<Revision, StoreError> {
        let number = row.get::<_, i64>(0)?.cast_unsigned();
        let corrupt = |why: String| StoreError::Corrupt(format!("revision {number}: {why}"));
        let changes: String = row.get(5)?;
        Ok(Revision {
            number,
            time: Timestamp::from_microsecond(row.get(1)?).map_err(|error| corrupt(error.to_string()))?,
            uid: row.get(2)?,
            pid: row.get(3)?,
            note: row.get(4)?,
            changes: serde_json::from_str(&changes).map_err(|error| corrupt(error.to_string()))?,
            undoable: number >= self.kept.oldest(),
        })
    }

    /// How everything was before a revision that it changed.
    ///
    /// # Errors
    /// That is not kept, or cannot be read.
    pub fn past(&self, number: u64) -> Result<Past<Rule>, StoreError> {
        let past: Option<Vec<u8>> = self
            .connection
            .prepare_cached("SELECT past FROM revisions WHERE number = ?1")?
            .query_row([number.cast_signed()], |row| row.get(0))
            .optional()?
            .flatten();
        let past = past.ok_or(StoreError::Forgotten(number))?;
        read_past(&past).map_err(|why| StoreError::Corrupt(format!("revision {number}: {why}")))
    }
}
