use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use jiff::Timestamp;
use proptest::prelude::*;
use shared::control::{Edit, FailureKind};
use shared::document::Document;
use shared::{Chain, Digest, Rule, Selector, Verdict};
use tempfile::TempDir;

use super::*;
use crate::book::tests::{any_change, check, document};

fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db/rules.db");
    (dir, path)
}

fn rule(text: &str) -> Rule {
    text.parse().unwrap()
}

fn add(text: &str) -> Edit {
    Edit::Add { rule: rule(text), position: None }
}

fn now() -> Timestamp {
    "2026-11-21T12:00:00Z".parse().unwrap()
}

fn author() -> Author {
    Author { time: now(), uid: Some(0), pid: Some(7), note: Some("test".into()) }
}

/// The store and the book of what is in it, as the daemon has them.
struct Both {
    store: Store,
    book: Book,
}

impl Both {
    fn open(path: &Path) -> Both {
        let store = Store::open(path).unwrap();
        let book = store.book().unwrap();
        Both { store, book }
    }

    /// Makes edits, all or none; false if they make no sense.
    fn change(&mut self, edits: impl IntoIterator<Item = Edit>) -> Result<bool, StoreError> {
        let mut changing = self.book.change();
        for edit in edits {
            if changing.edit(edit).is_err() {
                return Ok(false);
            }
        }
        commit(&mut self.store, changing)
    }

    fn restore(&mut self, document: Document) -> Result<bool, StoreError> {
        let mut changing = self.book.change();
        changing.restore(document, now()).unwrap();
        commit(&mut self.store, changing)
    }

    /// Makes it as it was before so many revisions.
    fn undo(&mut self, count: u64) -> Result<bool, StoreError> {
        let newest = self.book.revision();
        let mut changing = self.book.change();
        for number in (newest + 1 - count..=newest).rev() {
            changing.take_back(self.store.past(number)?, now()).unwrap();
        }
        commit(&mut self.store, changing)
    }
}

fn commit(store: &mut Store, changing: crate::book::Changing<'_>) -> Result<bool, StoreError> {
    if !changing.delta().is_empty() {
        let revision = store.commit(changing.book(), changing.last_id(), changing.delta(), &author(), || {})?;
        changing.keep(revision.number);
    }
    Ok(true)
}

fn sql(path: &Path, statement: &str) {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch(statement).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn what_was_stored_is_there_after_reopening() {
    let (_dir, path) = place();
    let mut both = Both::open(&path);
    assert_eq!((both.book.revision(), both.book.len()), (0, 0));
    let set = Document::parse("set create lan addresses 10.0.0.0/8,::1/128").unwrap().sets.remove(0);
    let policy = Edit::Policy { chain: Chain::Input, namespace: Selector::Host, verdict: Verdict::Drop };
    let edits = [Edit::CreateSet { set }, add("-c OUTPUT -n netns:blue -v DROP ! -s @lan -l l4"), policy];
    assert!(both.change(edits).unwrap());
    assert!(both.change([add("-c OUTPUT -n host -v REJECT --dport 1,2")]).unwrap());
    both.store.save_counters(&[(1, 5, 500)]).unwrap();
    let before = document(&both.book);
    let history = both.store.history(10).unwrap();
    drop(both);

    let both = Both::open(&path);
    assert_eq!((document(&both.book), both.book.revision()), (before, 2));
    assert_eq!(both.book.rule(1).unwrap().hits.get(), (5, 500));
    assert_eq!(both.book.rule(1).unwrap().hits.fresh(), None);
    assert_eq!(both.store.history(10).unwrap(), history);
    let [second, first] = &history[..] else { panic!("{history:?}") };
    assert_eq!((first.number, second.number, second.uid, second.pid), (1, 2, Some(0), Some(7)));
    assert_eq!((second.time, second.note.as_deref(), second.undoable), (now(), Some("test"), true));
    assert_eq!(second.changes, ["+ -A -c OUTPUT -n host -v REJECT --dport 1,2 --id 2"]);
    assert_eq!(both.store.history(1).unwrap().len(), 1);
}

#[test]
fn only_root_can_read_it_and_commits_reach_the_disk() {
    let (_dir, path) = place();
    let mut both = Both::open(&path);
    both.change([add("-c OUTPUT -n host -v DROP")]).unwrap();
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    for file in [path.clone(), path.with_extension("db-wal"), path.with_extension("db.lock")] {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    let pragma = |name: &str| -> String {
        both.store.connection.pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0)).map_or_else(
            |error| error.to_string(),
            |value| match value {
                rusqlite::types::Value::Integer(number) => number.to_string(),
                rusqlite::types::Value::Text(text) => text,
                other => format!("{other:?}"),
            },
        )
    };
    assert_eq!(pragma("journal_mode"), "wal");
    assert_eq!(pragma("synchronous"), "2");
    assert_eq!(pragma("foreign_keys"), "1");
}

#[test]
fn ids_are_never_given_twice() {
    let (_dir, path) = place();
    let mut both = Both::open(&path);
    both.change([add("-c OUTPUT -n host -v DROP")]).unwrap();
    both.change([Edit::Delete { id: 1 }]).unwrap();
    drop(both);
    let mut both = Both::open(&path);
    both.change([add("-c OUTPUT -n host -v DROP")]).unwrap();
    assert!(both.book.rule(2).is_some());
}

/// A database of version 0.1: positions, single values, one rule deleted, one id given and gone.
#[test]
fn a_database_of_version_1_is_brought_up_to_date() {
    let (_dir, path) = place();
    fs::create_dir(path.parent().unwrap()).unwrap();
    sql(&path, include_str!("migrations/v1.sql"));
    let body = |port: u16| {
        format!(
            r#"{{"chain":"OUTPUT","namespace":"host","verdict":"DROP","predicates":[{{"match":"destination-port","value":{port}}}]}}"#
        )
    };
    for (id, position, port) in [(1, 1, 80), (2, 0, 81), (5, 2, 82), (9, 3, 83)] {
        let body = body(port);
        sql(&path, &format!("INSERT INTO rules VALUES ({id}, 'OUTPUT', 'host', {position}, '{body}')"));
    }
    sql(&path, "DELETE FROM rules WHERE id = 9; PRAGMA user_version = 1; UPDATE meta SET value = 6");
    sql(&path, "INSERT INTO policies VALUES ('INPUT', 'any', 'DROP')");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    let mut both = Both::open(&path);
    let expected = "-P INPUT DROP -n any\n-A -c OUTPUT -n host -v DROP --dport 81 --id 2\n\
        -A -c OUTPUT -n host -v DROP --dport 80 --id 1\n-A -c OUTPUT -n host -v DROP --dport 82 --id 5\n";
    assert_eq!(document(&both.book).to_string(), expected);
    assert_eq!(both.book.revision(), 6);
    both.change([add("-c OUTPUT -n host -v DROP")]).unwrap();
    assert!(both.book.rule(10).is_some());
    assert_eq!(both.store.history(9).unwrap().len(), 1);
    assert!(matches!(both.store.past(6), Err(StoreError::Forgotten(6))));
}

#[test]
fn a_newer_database_is_refused_untouched() {
    let (_dir, path) = place();
    drop(Store::open(&path).unwrap());
    sql(&path, "PRAGMA user_version = 9");
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 9, known: 2, .. }), "{error:?}");
    assert!(error.to_string().contains("version 9"), "{error}");
}

#[test]
fn what_is_no_database_of_ours_is_left_alone() {
    let (_dir, path) = place();
    fs::create_dir(path.parent().unwrap()).unwrap();
    let garbage = b"not a database, but longer than a header of one hundred bytes: ".repeat(100);
    fs::write(&path, &garbage).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::NotADatabase(_))));
    assert_eq!(fs::read(&path).unwrap(), garbage);

    fs::remove_file(&path).unwrap();
    sql(&path, "CREATE TABLE theirs (x)");
    assert!(matches!(Store::open(&path), Err(StoreError::Foreign(_))));
    sql(&path, "DROP TABLE theirs; PRAGMA application_id = 1");
    assert!(matches!(Store::open(&path), Err(StoreError::Foreign(_))));

    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::NotADatabase(_))));
}

#[test]
fn a_truncated_database_is_an_error() {
    let (_dir, path) = place();
    let mut both = Both::open(&path);
    both.change((0..200).map(|_| add("-c OUTPUT -n host -v DROP --dport 1"))).unwrap();
    drop(both);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt(_)), "{error:?}");
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let (dir, _) = place();
    fs::write(dir.path().join("file"), "").unwrap();
    let error = Store::open(&dir.path().join("file/rules.db")).unwrap_err();
    let StoreError::Directory { path, source } = &error else { panic!("{error:?}") };
    assert_eq!(path, &dir.path().join("file"));
    assert!(matches!(source.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists), "{source}");
    assert!(Store::open(&dir.path().join("x".repeat(300))).is_err());
    assert!(Store::open(Path::new("")).is_err());
}

#[test]
fn a_database_that_others_can_write_is_refused() {
    let (_dir, path) = place();
    drop(Store::open(&path).unwrap());
    fs::set_permissions(&path, PermissionsExt::from_mode(0o620)).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Insecure { mode: 0o620, .. }));
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    Store::open(&path).unwrap();
}

#[test]
fn two_daemons_cannot_share_it() {
    let (_dir, path) = place();
    let first = Store::open(&path).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(&error, StoreError::InUse { pid: Some(pid), .. } if *pid == std::process::id()));
    assert!(error.to_string().contains("--db"), "{error}");
    drop(first);
    Store::open(&path).unwrap();
}

#[test]
fn a_lock_of_another_program_and_a_full_disk_are_told_and_undone() {
    let (_dir, path) = place();
    let mut both = Both::open(&path);
    both.store.connection.busy_timeout(std::time::Duration::ZERO).unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let drop_all = || add("-c OUTPUT -n host -v DROP");
    let busy = both.change([drop_all()]).unwrap_err();
    assert!(matches!(busy, StoreError::Busy));
    assert_eq!(busy.failure().kind, FailureKind::Store);
    assert!(matches!(both.store.save_counters(&[(1, 1, 1)]), Err(StoreError::Busy)));
    assert_eq!(both.book.len(), 0);
    other.execute_batch("ROLLBACK").unwrap();
    drop(other);

    both.store.connection.pragma_update(None, "max_page_count", 20).unwrap();
    let full = loop {
        match both.change([drop_all()]) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(full, StoreError::Full), "{full:?}");
    let kept = (document(&both.book), both.book.revision());
    check(&both.book);
    assert_eq!(kept.1, kept.0.rules.len() as u64);
    drop(both);
    let mut both = Both::open(&path);
    assert_eq!((document(&both.book), both.book.revision()), kept);
    both.change([drop_all()]).unwrap();
}

#[test]
fn what_contradicts_itself_is_named() {
    let (_dir, path) = place();
    let mut both = Both::open(&path);
    both.change((0..3).map(|_| add("-c OUTPUT -n host -v DROP"))).unwrap();
    drop(both);
    for damage in [
        "UPDATE rules SET body = '{\"chain\":' WHERE id = 2",
        "UPDATE rules SET body = '{}' WHERE id = 2",
        "UPDATE rules SET rank = (SELECT rank FROM rules WHERE id = 1) WHERE id = 2",
        "UPDATE rules SET rank = 9223372036854775807 WHERE id = 2",
        "UPDATE rules SET body = replace(body, '[]', '[{\"match\":\"source\",\"value\":\"@x\"}]') WHERE id = 2",
    ] {
        let undo = fs::read(&path).unwrap();
        sql(&path, damage);
        let error = Store::open(&path).unwrap().book().unwrap_err();
        let named = |id| if damage.contains("SELECT") { id == 1 || id == 2 } else { id == 2 };
        assert!(matches!(error, StoreError::Rule { id, .. } if named(id)), "{damage}: {error}");
        fs::write(&path, undo).unwrap();
    }
    for (damage, word) in [
        ("INSERT INTO policies VALUES ('OUTPUT', 'host', 'MAYBE')", "MAYBE"),
        ("DELETE FROM policies; INSERT INTO policies VALUES ('OUTPUT', 'host', 'REJECT')", "REJECT"),
        ("DELETE FROM policies; INSERT INTO sets VALUES ('x', 'y')", "y"),
        ("UPDATE sets SET kind = 'ports'; INSERT INTO elements VALUES ('x', 'http')", "http"),
        ("DELETE FROM sets; DELETE FROM meta WHERE key = 'last_id'", "last id"),
    ] {
        sql(&path, &format!("PRAGMA foreign_keys = ON; {damage}"));
        let error = Store::open(&path).unwrap().book().unwrap_err();
        assert!(error.to_string().contains(word), "{damage}: {error}");
    }
}

#[test]
fn what_somebody_else_changed_is_not_made_worse() {
    let (_dir, path) = place();
    let mut both = Both::open(&path);
    both.change([add("-c OUTPUT -n host -v DROP")]).unwrap();
    sql(&path, "DELETE FROM rules");
    let error = both.change([Edit::Delete { id: 1 }]).unwrap_err();
    assert!(error.to_string().contains("rule 1"), "{error}");
    assert_eq!((both.book.len(), both.book.revision()), (1, 1));
}

#[test]
fn the_past_is_kept_up_to_a_bound() {
    let (_dir, path) = place();
    let mut both = Both::open(&path);
    for _ in 0..8 {
        both.change([add("-c OUTPUT -n host -v DROP")]).unwrap();
    }
    let undoable = |both: &Both| {
        both.store.history(100).unwrap().iter().filter(|it| it.undoable).map(|it| it.number).collect::<Vec<_>>()
    };
    assert_eq!(undoable(&both), [8, 7, 6, 5, 4, 3, 2, 1]);
    let length: i64 =
        both.store.connection.query_row("SELECT max(length(past)) FROM revisions", [], |row| row.get(0)).unwrap();
    both.store.limit_past(3 * length as usize);
    both.change([add("-c OUTPUT -n host -v DROP")]).unwrap();
    assert_eq!(undoable(&both), [9, 8, 7]);
    drop(both);
    let mut both = Both::open(&path);
    assert_eq!(undoable(&both), [9, 8, 7]);
    assert!(matches!(both.undo(4), Err(StoreError::Forgotten(6))));
    assert_eq!(both.book.len(), 9);
    both.undo(3).unwrap();
    assert_eq!(both.book.len(), 6);
    // One that is too large by itself leaves nothing to go back to.
    both.store.limit_past(1);
    both.change([add("-c OUTPUT -n host -v DROP")]).unwrap();
    assert_eq!(undoable(&both), [0u64; 0]);
    both.store.limit_past(1 << 20);
    both.change([add("-c OUTPUT -n host -v DROP")]).unwrap();
    assert_eq!(undoable(&both), [12]);
    let pasts: i64 =
        both.store.connection.query_row("SELECT count(past) FROM revisions", [], |row| row.get(0)).unwrap();
    assert_eq!(pasts, 1);
}

#[test]
fn revisions_are_listed_up_to_a_bound() {
    let (_dir, path) = place();
    let mut both = Both::open(&path);
    both.store.connection.pragma_update(None, "synchronous", "OFF").unwrap();
    for _ in 0..MAX_REVISIONS / 2 + 5 {
        both.change([add("-c OUTPUT -n host -v DROP")]).unwrap();
        both.undo(1).unwrap();
    }
    let history = both.store.history(usize::MAX).unwrap();
    assert_eq!(history.len() as u64, MAX_REVISIONS);
    assert!(history.iter().all(|revision| revision.undoable));
}

fn key(number: u64) -> ObjectKey {
    ObjectKey { dev: u64::MAX, ino: number, size: 1 << 63, mtime_ns: -1, ctime_ns: i64::MIN }
}

#[test]
fn digests_are_kept_up_to_a_bound() {
    let (_dir, path) = place();
    let mut store = Store::open(&path).unwrap();
    let entry = |number: u64| (key(number), Digest::of(&number.to_be_bytes()));
    store.remember_digests(&[]).unwrap();
    store.remember_digests(&[entry(1), entry(2), entry(3)]).unwrap();
    // Used again, and replaced where it is another digest.
    store.remember_digests(&[entry(1), (key(2), Digest::of(b"other"))]).unwrap();
    let expected = [(key(2), Digest::of(b"other")), entry(1), entry(3)];
    assert_eq!(store.digests().unwrap(), expected);
    drop(store);

    let mut store = Store::open(&path).unwrap();
    assert_eq!(store.digests().unwrap(), expected);
    store.max_digests = 3;
    store.remember_digests(&[entry(4)]).unwrap();
    assert_eq!(store.digests().unwrap(), [entry(4), expected[0], entry(1)]);
    store.remember_digests(&(10..20).map(entry).collect::<Vec<_>>()).unwrap();
    assert_eq!(store.digests().unwrap(), [entry(19), entry(18), entry(17)]);
}

#[derive(Clone, Debug)]
enum Step {
    Change(Vec<Edit>),
    Restore(Vec<Edit>),
    Undo(u64),
    Reopen,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => any_change().prop_map(Step::Change),
        1 => any_change().prop_map(Step::Restore),
        4 => (1..4u64).prop_map(Step::Undo),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Memory is disk after each step, and a revision that is gone back to is as it was.
    #[test]
    fn memory_is_disk(steps in prop::collection::vec(any_step(), 1..40)) {
        let (_dir, path) = place();
        let mut both = Both::open(&path);
        both.store.connection.pragma_update(None, "synchronous", "OFF").unwrap();
        let mut revisions = vec![document(&both.book)];
        for step in steps {
            match step {
                Step::Change(edits) => drop(both.change(edits).unwrap()),
                Step::Restore(edits) => {
                    let mut other = Book::default();
                    for edit in edits {
                        let mut changing = other.change();
                        if changing.edit(edit).is_ok() {
                            changing.keep(1);
                        }
                    }
                    both.restore(document(&other)).unwrap();
                }
                Step::Undo(count) if count <= both.book.revision() => {
                    let to = both.book.revision() - count;
                    both.undo(count).unwrap();
                    prop_assert_eq!(&document(&both.book), &revisions[to as usize]);
                }
                Step::Undo(_) => {}
                Step::Reopen => {
                    drop(both);
                    both = Both::open(&path);
                }
            }
            check(&both.book);
            let now_it_is = document(&both.book);
            prop_assert_eq!(&document(&both.store.book().unwrap()), &now_it_is);
            prop_assert_eq!(both.store.book().unwrap().revision(), both.book.revision());
            revisions.resize(both.book.revision() as usize + 1, now_it_is);
        }
    }
}
