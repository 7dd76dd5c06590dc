//! Rules, policies and sets as the database has them.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use shared::set::{Elements, Set, SetKind, SetName};
use shared::{Chain, Selector, Verdict};

use crate::book::{Contents, Delta, Entry, Hits, MAX_ID, Place, RuleChange};

use super::StoreError;

pub(super) const WRITE_COUNTER: &str = "INSERT INTO counters (id, packets, bytes) VALUES (?1, ?2, ?3)
     ON CONFLICT DO UPDATE SET packets = excluded.packets, bytes = excluded.bytes";

/// The values of [`WRITE_COUNTER`].
pub(super) fn counter(id: u64, packets: u64, bytes: u64) -> (i64, i64, i64) {
    let bounded = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    (bounded(id), bounded(packets), bounded(bytes))
}

/// Everything that packets are judged by.
pub(super) fn contents(connection: &Connection) -> Result<Contents, StoreError> {
    Ok(Contents {
        revision: meta(connection, "revision")?,
        last_id: meta(connection, "last_id")?,
        rules: rules(connection)?,
        policies: policies(connection)?,
        sets: sets(connection)?,
    })
}

fn meta(connection: &Connection, key: &str) -> Result<u64, StoreError> {
    let value: Option<i64> = connection
        .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()?;
    value
        .and_then(|value| u64::try_from(value).ok())
        .ok_or_else(|| StoreError::Corrupt(format!("it has no {}", key.replace('_', " "))))
}

fn rules(connection: &Connection) -> Result<Vec<Entry>, StoreError> {
    let mut statement = connection.prepare(
        "SELECT id, rank, body, coalesce(packets, 0), coalesce(bytes, 0) FROM rules LEFT JOIN counters USING (id)",
    )?;
    let mut rows = statement.query([])?;
    let mut rules = Vec::new();
    while let Some(row) = rows.next()? {
        rules.push(rule(row)?);
    }
    Ok(rules)
}

fn rule(row: &Row<'_>) -> Result<Entry, StoreError> {
    let id: i64 = row.get(0)?;
    let fail = |why: String| StoreError::Rule { id, why };
    let body = row.get_ref(2)?.as_str().map_err(|error| fail(error.to_string()))?;
    let rule = serde_json::from_str(body).map_err(|error| fail(error.to_string()))?;
    let (packets, bytes): (i64, i64) = (row.get(3)?, row.get(4)?);
    let number =
        u64::try_from(id).ok().filter(|id| *id <= MAX_ID).ok_or_else(|| fail("its id is impossible".into()))?;
    let hits = Hits::stored(packets.unsigned_abs(), bytes.unsigned_abs());
    Ok(Entry { id: number, rank: row.get(1)?, rule: Arc::new(rule), hits: Arc::new(hits) })
}

/// Reads a word of ours.
fn word<T: FromStr<Err: Display>>(row: &Row<'_>, column: usize, what: &str) -> Result<T, StoreError> {
    let text: String = row.get(column)?;
    text.parse().map_err(|error: T::Err| StoreError::Corrupt(format!("a {what} in the database: {error}")))
}

fn policies(connection: &Connection) -> Result<BTreeMap<Place, Verdict>, StoreError> {
    let mut statement = connection.prepare("SELECT chain, namespace, verdict FROM policies")?;
    let mut rows = statement.query([])?;
    let mut policies = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let place: (Chain, Selector) = (word(row, 0, "policy")?, word(row, 1, "policy")?);
        let verdict = word(row, 2, "policy")?;
        if verdict == Verdict::Reject {
            return Err(StoreError::Corrupt("a policy in the database is REJECT".into()));
        }
        policies.insert(place, verdict);
    }
    Ok(policies)
}

fn sets(connection: &Connection) -> Result<Vec<Set>, StoreError> {
    let mut elements: HashMap<String, Vec<String>> = HashMap::new();
    let mut statement = connection.prepare("SELECT name, element FROM elements")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        elements.entry(row.get(0)?).or_default().push(row.get(1)?);
    }
    let mut statement = connection.prepare("SELECT name, kind FROM sets")?;
    let mut rows = statement.query([])?;
    let mut sets = Vec::new();
    while let Some(row) = rows.next()? {
        let (name, kind): (SetName, SetKind) = (word(row, 0, "set")?, word(row, 1, "set")?);
        let inside = elements.remove(name.as_str()).unwrap_or_default();
        let elements = Elements::parse(kind, inside.iter().map(String::as_str))
            .map_err(|error| StoreError::Corrupt(format!("the set {name} in the database: {error}")))?;
        sets.push(Set { name, elements });
    }
    Ok(sets)
}

/// Makes the database as the change says.
pub(super) fn write(transaction: &Transaction<'_>, delta: &Delta) -> Result<(), StoreError> {
    write_rules(transaction, delta)?;
    write_policies(transaction, delta)?;
    write_sets(transaction, delta)
}

fn write_rules(transaction: &Transaction<'_>, delta: &Delta) -> Result<(), StoreError> {
    let mut delete = transaction.prepare_cached("DELETE FROM rules WHERE id = ?1")?;
    let mut forget = transaction.prepare_cached("DELETE FROM counters WHERE id = ?1")?;
    let mut insert = transaction.prepare_cached("INSERT INTO rules (id, rank, body) VALUES (?1, ?2, ?3)")?;
    let mut replace = transaction.prepare_cached("UPDATE rules SET rank = ?2, body = ?3 WHERE id = ?1")?;
    let mut rerank = transaction.prepare_cached("UPDATE rules SET rank = ?2 WHERE id = ?1")?;
    let mut count = transaction.prepare_cached(WRITE_COUNTER)?;
    let body =
        |entry: &Entry| serde_json::to_string(&*entry.rule).map_err(|error| StoreError::Corrupt(error.to_string()));
    for (id, RuleChange { before, after, .. }) in &delta.rules {
        let key = id.cast_signed();
        let touched = match (before, after) {
            (None, Some(after)) => {
                let (packets, bytes) = after.hits.get();
                if packets > 0 {
                    count.execute(counter(*id, packets, bytes))?;
                }
                insert.execute(params![key, after.rank, body(after)?])?
            }
            (Some(before), Some(after)) if before.rule == after.rule => rerank.execute(params![key, after.rank])?,
            (Some(_), Some(after)) => replace.execute(params![key, after.rank, body(after)?])?,
            (before, None) => {
                // What has counted nothing has no row there.
                if before.as_ref().is_none_or(|before| before.hits.get().0 > 0) {
                    forget.execute([key])?;
                }
                delete.execute([key])?
            }
        };
        if touched != 1 {
            return Err(StoreError::Corrupt(format!("rule {id} is not there: somebody else has changed the database")));
        }
    }
    Ok(())
}

fn write_policies(transaction: &Transaction<'_>, delta: &Delta) -> Result<(), StoreError> {
    for ((chain, namespace), (_, after)) in &delta.policies {
        let (chain, namespace) = (chain.name(), namespace.to_string());
        match after {
            Some(verdict) => transaction
                .prepare_cached(
                    "INSERT INTO policies (chain, namespace, verdict) VALUES (?1, ?2, ?3)
                     ON CONFLICT DO UPDATE SET verdict = excluded.verdict",
                )?
                .execute(params![chain, namespace, verdict.to_string()])?,
            None => transaction
                .prepare_cached("DELETE FROM policies WHERE chain = ?1 AND namespace = ?2")?
                .execute(params![chain, namespace])?,
        };
    }
    Ok(())
}

fn write_sets(transaction: &Transaction<'_>, delta: &Delta) -> Result<(), StoreError> {
    let mut insert = transaction.prepare_cached("INSERT INTO elements (name, element) VALUES (?1, ?2)")?;
    let mut remove = transaction.prepare_cached("DELETE FROM elements WHERE name = ?1 AND element = ?2")?;
    for (name, change) in &delta.sets {
        let name = name.as_str();
        let (gone, come) = change.elements();
        if change.is_new() {
            transaction.prepare_cached("DELETE FROM sets WHERE name = ?1")?.execute([name])?;
            if let Some(set) = &change.after {
                transaction
                    .prepare_cached("INSERT INTO sets (name, kind) VALUES (?1, ?2)")?
                    .execute(params![name, set.elements.kind().token()])?;
            }
        } else {
            for element in gone {
                remove.execute(params![name, element])?;
            }
        }
        for element in come {
            insert.execute(params![name, element])?;
        }
    }
    Ok(())
}
