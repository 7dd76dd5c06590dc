//! What survives a restart: rules, policies and the digests of objects, in SQLite.
//!
//! A change is committed and on the disk before its function returns, and has happened completely or not at all. All
//! functions block; they belong on a thread that may.

mod digests;
mod error;
mod lock;
mod migrations;
mod open;
#[cfg(test)]
mod tests;

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use shared::{Chain, Rule, Selector, Verdict};

pub use digests::{MAX_DIGESTS, ObjectKey};
pub use error::StoreError;
pub(crate) use lock::{LockError, LockFile};

/// Where the daemon keeps its database unless it is told otherwise.
pub const DEFAULT_PATH: &str = "/var/lib/app-fw/rules.db";

/// The database of one daemon.
#[derive(Debug)]
pub struct Store {
    // Dropped before the lock: the next daemon must find it closed.
    connection: Connection,
    revision: u64,
    max_digests: usize,
    _lock: LockFile,
}

/// A rule with its place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredRule {
    /// Stable, never given twice.
    pub id: u64,
    /// Position in its chain and namespace, 0 first, without gaps.
    pub position: usize,
    /// The rule.
    pub rule: Rule,
}

/// A chain's policy in a namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredPolicy {
    /// The chain.
    pub chain: Chain,
    /// The namespace.
    pub namespace: Selector,
    /// What happens where no rule fires.
    pub verdict: Verdict,
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
        let revision = read_revision(&connection)?;
        Ok(Store { connection, revision, max_digests: MAX_DIGESTS, _lock: lock })
    }

    /// Moves with every committed change of rules or policies, across restarts too.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// All rules by chain, namespace and position, in the order of their types.
    ///
    /// # Errors
    /// A rule that cannot be read is an error that names it: a firewall that leaves out a rule lets through what it
    /// should not.
    pub fn rules(&self) -> Result<Vec<StoredRule>, StoreError> {
        let mut statement = self.connection.prepare_cached("SELECT id, chain, namespace, position, body FROM rules")?;
        let mut rows = statement.query([])?;
        let mut rules = Vec::new();
        while let Some(row) = rows.next()? {
            rules.push(read_rule(row)?);
        }
        rules.sort_unstable_by(|a, b| {
            (a.rule.chain, &a.rule.namespace, a.position).cmp(&(b.rule.chain, &b.rule.namespace, b.position))
        });
        check_positions(&rules)?;
        Ok(rules)
    }

    /// All policies that were set, by chain and namespace.
    ///
    /// # Errors
    /// The database cannot be read, or contradicts itself.
    pub fn policies(&self) -> Result<Vec<StoredPolicy>, StoreError> {
        let mut statement = self.connection.prepare_cached("SELECT chain, namespace, verdict FROM policies")?;
        let mut rows = statement.query([])?;
        let mut policies = Vec::new();
        while let Some(row) = rows.next()? {
            policies.push(read_policy(row)?);
        }
        policies.sort_unstable_by(|a, b| (a.chain, &a.namespace).cmp(&(b.chain, &b.namespace)));
        Ok(policies)
    }

    /// Adds a rule at `position` of its chain and namespace, shifting those from there on; at the end if `None`.
    ///
    /// # Errors
    /// The position is beyond the end, the namespace is a file, or the database cannot be written.
    pub fn add(&mut self, rule: &Rule, position: Option<usize>) -> Result<StoredRule, StoreError> {
        let place = Place::new(rule.chain, &rule.namespace)?;
        let body = serde_json::to_string(rule).map_err(|error| StoreError::Corrupt(error.to_string()))?;
        self.change(|transaction| {
            let length = place.length(transaction)?;
            let position = position.unwrap_or(length);
            if position > length {
                return Err(StoreError::OutOfRange {
                    chain: rule.chain,
                    namespace: rule.namespace.clone(),
                    position,
                    length,
                });
            }
            if position < length {
                place.shift(transaction, position, 1)?;
            }
            transaction
                .prepare_cached("INSERT INTO rules (chain, namespace, position, body) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![place.chain, place.namespace, position as i64, body])?;
            let id = transaction.last_insert_rowid().cast_unsigned();
            Ok((StoredRule { id, position, rule: rule.clone() }, true))
        })
    }

    /// Deletes the rule at `position` and closes the gap.
    ///
    /// # Errors
    /// There is no such rule, the namespace is a file, or the database cannot be written.
    pub fn delete(&mut self, chain: Chain, namespace: &Selector, position: usize) -> Result<(), StoreError> {
        let place = Place::new(chain, namespace)?;
        self.change(|transaction| {
            let length = place.length(transaction)?;
            if position >= length {
                return Err(StoreError::NoSuchRule { chain, namespace: namespace.clone(), position, length });
            }
            transaction
                .prepare_cached("DELETE FROM rules WHERE chain = ?1 AND namespace = ?2 AND position = ?3")?
                .execute(params![place.chain, place.namespace, position as i64])?;
            place.shift(transaction, position + 1, -1)?;
            Ok(((), true))
        })
    }

    /// Deletes all rules of a namespace, or of one of its chains. Returns how many there were.
    ///
    /// # Errors
    /// The namespace is a file, or the database cannot be written.
    pub fn flush(&mut self, chain: Option<Chain>, namespace: &Selector) -> Result<usize, StoreError> {
        let places: Vec<_> = Chain::ALL
            .into_iter()
            .filter(|candidate| chain.is_none_or(|chain| chain == *candidate))
            .map(|chain| Place::new(chain, namespace))
            .collect::<Result<_, _>>()?;
        self.change(|transaction| {
            let mut deleted = 0;
            for place in &places {
                deleted += transaction
                    .prepare_cached("DELETE FROM rules WHERE chain = ?1 AND namespace = ?2")?
                    .execute(params![place.chain, place.namespace])?;
            }
            Ok((deleted, deleted > 0))
        })
    }

    /// Sets a chain's policy in a namespace.
    ///
    /// # Errors
    /// The namespace is a file, or the database cannot be written.
    pub fn set_policy(&mut self, chain: Chain, namespace: &Selector, verdict: Verdict) -> Result<(), StoreError> {
        let place = Place::new(chain, namespace)?;
        self.change(|transaction| {
            let changed = transaction
                .prepare_cached(
                    "INSERT INTO policies (chain, namespace, verdict) VALUES (?1, ?2, ?3)
                     ON CONFLICT DO UPDATE SET verdict = excluded.verdict WHERE verdict <> excluded.verdict",
                )?
                .execute(params![place.chain, place.namespace, verdict.to_string()])?;
            Ok(((), changed > 0))
        })
    }

    /// Runs `edit` in one transaction, moves the revision if it says that it changed something, and commits.
    fn change<T>(
        &mut self,
        edit: impl FnOnce(&Transaction<'_>) -> Result<(T, bool), StoreError>,
    ) -> Result<T, StoreError> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (answer, changed) = edit(&transaction)?;
        if changed {
            transaction.prepare_cached("UPDATE meta SET value = value + 1 WHERE key = 'revision'")?.execute([])?;
        }
        let revision = read_revision(&transaction)?;
        transaction.commit()?;
        self.revision = revision;
        Ok(answer)
    }
}

/// A chain of a namespace, as the database writes it.
struct Place {
    chain: &'static str,
    namespace: String,
}

impl Place {
    fn new(chain: Chain, namespace: &Selector) -> Result<Place, StoreError> {
        match namespace {
            Selector::File(_) => Err(StoreError::Unresolved(namespace.clone())),
            _ => Ok(Place { chain: chain.name(), namespace: namespace.to_string() }),
        }
    }

    /// How many rules there are. By the index, so that it costs the same for any number of them.
    fn length(&self, transaction: &Transaction<'_>) -> Result<usize, StoreError> {
        let last: Option<i64> = transaction
            .prepare_cached("SELECT max(position) FROM rules WHERE chain = ?1 AND namespace = ?2")?
            .query_row(params![self.chain, self.namespace], |row| row.get(0))?;
        let length = last.map_or(Some(0), |last| last.checked_add(1));
        length
            .and_then(|length| usize::try_from(length).ok())
            .ok_or_else(|| StoreError::Corrupt("a rule has an impossible position".into()))
    }

    /// Moves the rules at `from` and after by `by`.
    fn shift(&self, transaction: &Transaction<'_>, from: usize, by: i64) -> Result<(), StoreError> {
        transaction
            .prepare_cached(
                "UPDATE rules SET position = position + ?4 WHERE chain = ?1 AND namespace = ?2 AND position >= ?3",
            )?
            .execute(params![self.chain, self.namespace, from as i64, by])?;
        Ok(())
    }
}

fn read_rule(row: &Row<'_>) -> Result<StoredRule, StoreError> {
    let id: i64 = row.get(0)?;
    let fail = |why: String| StoreError::Rule { id, why };
    let (chain, namespace): (String, String) = (row.get(1)?, row.get(2)?);
    let (position, body): (i64, String) = (row.get(3)?, row.get(4)?);
    let rule: Rule = serde_json::from_str(&body).map_err(|error| fail(error.to_string()))?;
    if rule.chain.name() != chain || rule.namespace.to_string() != namespace {
        return Err(fail(format!("it is filed under {chain} of {namespace} but says {rule}")));
    }
    let position = usize::try_from(position).map_err(|error| fail(error.to_string()))?;
    let id = u64::try_from(id).map_err(|error| fail(error.to_string()))?;
    Ok(StoredRule { id, position, rule })
}

/// Whether each chain of each namespace is numbered from 0 without gaps. `rules` are sorted.
fn check_positions(rules: &[StoredRule]) -> Result<(), StoreError> {
    let mut previous: Option<&StoredRule> = None;
    for stored in rules {
        let expected = previous
            .filter(|previous| {
                previous.rule.chain == stored.rule.chain && previous.rule.namespace == stored.rule.namespace
            })
            .map_or(0, |previous| previous.position + 1);
        if stored.position != expected {
            let why = format!("it is at position {} where {expected} comes next", stored.position);
            return Err(StoreError::Rule { id: stored.id.cast_signed(), why });
        }
        previous = Some(stored);
    }
    Ok(())
}

fn read_policy(row: &Row<'_>) -> Result<StoredPolicy, StoreError> {
    fn word<T: std::str::FromStr<Err: std::fmt::Display>>(row: &Row<'_>, column: usize) -> Result<T, StoreError> {
        let text: String = row.get(column)?;
        text.parse().map_err(|error: T::Err| StoreError::Corrupt(format!("a policy in the database: {error}")))
    }
    Ok(StoredPolicy { chain: word(row, 0)?, namespace: word(row, 1)?, verdict: word(row, 2)? })
}

fn read_revision(connection: &Connection) -> Result<u64, StoreError> {
    let revision: Option<i64> = connection
        .prepare_cached("SELECT value FROM meta WHERE key = 'revision'")?
        .query_row([], |row| row.get(0))
        .optional()?;
    revision
        .and_then(|revision| u64::try_from(revision).ok())
        .ok_or_else(|| StoreError::Corrupt("it has no revision".into()))
}
