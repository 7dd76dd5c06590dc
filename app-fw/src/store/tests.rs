use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use proptest::prelude::*;
use shared::Digest;
use shared::control::FailureKind;
use tempfile::TempDir;

use super::*;

fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db/rules.db");
    (dir, path)
}

fn rule(text: &str) -> Rule {
    text.parse().unwrap()
}

fn ports(store: &Store) -> Vec<String> {
    store.rules().unwrap().iter().map(|stored| stored.rule.predicates[0].to_string()).collect()
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
    let mut store = Store::open(&path).unwrap();
    assert_eq!(store.revision(), 0);
    let first = store.add(&rule("-c OUTPUT -n host -v DROP --dport 1"), None).unwrap();
    let second = store.add(&rule("-c OUTPUT -n netns:blue -v DROP ! -s 10.0.0.0/8 -l l4"), None).unwrap();
    store.set_policy(Chain::Input, &Selector::Host, Verdict::Drop).unwrap();
    assert_eq!((first.id, first.position, second.id, second.position), (1, 0, 2, 0));
    assert_eq!(store.revision(), 3);
    drop(store);

    let store = Store::open(&path).unwrap();
    assert_eq!(store.rules().unwrap(), [first, second]);
    let policy = StoredPolicy { chain: Chain::Input, namespace: Selector::Host, verdict: Verdict::Drop };
    assert_eq!(store.policies().unwrap(), [policy]);
    assert_eq!(store.revision(), 3);
}

#[test]
fn only_root_can_read_it_and_commits_reach_the_disk() {
    let (_dir, path) = place();
    let mut store = Store::open(&path).unwrap();
    store.add(&rule("-c OUTPUT -n host -v DROP"), None).unwrap();
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    for file in [path.clone(), path.with_extension("db-wal"), path.with_extension("db.lock")] {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    let pragma = |name: &str| -> String {
        store.connection.pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0)).map_or_else(
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
fn positions_are_per_chain_and_namespace() {
    let (_dir, path) = place();
    let mut store = Store::open(&path).unwrap();
    for (text, position) in [
        ("-c OUTPUT -n host -v DROP --dport 1", None),
        ("-c OUTPUT -n host -v DROP --dport 2", None),
        ("-c OUTPUT -n host -v DROP --dport 3", Some(0)),
        ("-c OUTPUT -n any -v DROP --dport 4", None),
        ("-c INPUT -n host -v DROP --dport 5", Some(0)),
        ("-c OUTPUT -n host -v DROP --dport 6", Some(1)),
        ("-c OUTPUT -n host -v DROP --dport 7", Some(4)),
    ] {
        store.add(&rule(text), position).unwrap();
    }
    let expected = ["4", "3", "6", "1", "2", "7", "5"].map(|port| format!("--dport {port}"));
    assert_eq!(ports(&store), expected);

    store.delete(Chain::Output, &Selector::Host, 1).unwrap();
    let expected = ["4", "3", "1", "2", "7", "5"].map(|port| format!("--dport {port}"));
    assert_eq!(ports(&store), expected);

    assert_eq!(store.flush(Some(Chain::Input), &Selector::Host).unwrap(), 1);
    assert_eq!(store.flush(None, &Selector::Host).unwrap(), 4);
    assert_eq!(store.flush(None, &Selector::Host).unwrap(), 0);
    assert_eq!(ports(&store), ["--dport 4"]);
}

#[test]
fn ids_are_never_given_twice() {
    let (_dir, path) = place();
    let mut store = Store::open(&path).unwrap();
    let old = store.add(&rule("-c OUTPUT -n host -v DROP"), None).unwrap();
    store.delete(Chain::Output, &Selector::Host, 0).unwrap();
    drop(store);
    let mut store = Store::open(&path).unwrap();
    assert!(store.add(&rule("-c OUTPUT -n host -v DROP"), None).unwrap().id > old.id);
}

#[test]
fn refusals_change_nothing() {
    let (_dir, path) = place();
    let mut store = Store::open(&path).unwrap();
    store.add(&rule("-c OUTPUT -n host -v DROP --dport 1"), None).unwrap();
    let before = (store.rules().unwrap(), store.revision());

    let beyond = store.add(&rule("-c OUTPUT -n host -v DROP"), Some(2)).unwrap_err();
    assert!(matches!(beyond, StoreError::OutOfRange { position: 2, length: 1, .. }));
    assert_eq!(beyond.failure().kind, FailureKind::NotFound);
    let absent = store.delete(Chain::Output, &Selector::Host, 1).unwrap_err();
    assert_eq!(absent.to_string(), "there is no rule at position 1: OUTPUT of host has 1 rules");
    assert!(matches!(store.delete(Chain::Input, &Selector::Any, 0), Err(StoreError::NoSuchRule { length: 0, .. })));
    assert!(store.add(&rule("-c OUTPUT -n host -v DROP"), Some(usize::MAX)).is_err());
    assert!(store.delete(Chain::Output, &Selector::Host, usize::MAX).is_err());
    for refused in [
        store.add(&rule("-c OUTPUT -n /proc/1/ns/net -v DROP"), None).err(),
        store.flush(None, &Selector::File("/proc/1/ns/net".into())).err(),
        store.set_policy(Chain::Input, &Selector::File("/x".into()), Verdict::Drop).err(),
    ] {
        assert!(matches!(refused, Some(StoreError::Unresolved(_))));
    }
    assert_eq!((store.rules().unwrap(), store.revision()), before);
}

#[test]
fn the_revision_moves_with_changes_only() {
    let (_dir, path) = place();
    let mut store = Store::open(&path).unwrap();
    store.set_policy(Chain::Input, &Selector::Any, Verdict::Drop).unwrap();
    store.set_policy(Chain::Input, &Selector::Any, Verdict::Drop).unwrap();
    assert_eq!(store.flush(None, &Selector::Any).unwrap(), 0);
    store.remember_digests(&[(key(1), Digest::of(b"1"))]).unwrap();
    assert_eq!(store.revision(), 1);
    store.set_policy(Chain::Input, &Selector::Any, Verdict::Accept).unwrap();
    assert_eq!(store.revision(), 2);
    assert_eq!(store.policies().unwrap().len(), 1);
}

#[test]
fn a_newer_database_is_refused_by_its_version() {
    let (_dir, path) = place();
    drop(Store::open(&path).unwrap());
    sql(&path, "PRAGMA user_version = 7");
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 7, known: 1, .. }));
    assert!(error.to_string().contains("version 7"), "{error}");
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
    let mut store = Store::open(&path).unwrap();
    for _ in 0..200 {
        store.add(&rule("-c OUTPUT -n host -v DROP --dport 1"), None).unwrap();
    }
    drop(store);
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
    let mut store = Store::open(&path).unwrap();
    store.connection.busy_timeout(std::time::Duration::ZERO).unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let drop_all = rule("-c OUTPUT -n host -v DROP");
    assert!(matches!(store.add(&drop_all, None), Err(StoreError::Busy)));
    other.execute_batch("ROLLBACK").unwrap();
    drop(other);

    store.connection.pragma_update(None, "max_page_count", 12).unwrap();
    let full = loop {
        match store.add(&drop_all, Some(0)) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(full, StoreError::Full), "{full:?}");
    let (kept, revision) = (store.rules().unwrap(), store.revision());
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.rules().unwrap(), kept);
    assert_eq!(revision, kept.len() as u64);
}

#[test]
fn a_rule_that_cannot_be_read_is_named() {
    let (_dir, path) = place();
    let mut store = Store::open(&path).unwrap();
    for _ in 0..3 {
        store.add(&rule("-c OUTPUT -n host -v DROP"), None).unwrap();
    }
    drop(store);
    for damage in [
        "UPDATE rules SET body = '{\"chain\":' WHERE id = 2",
        "UPDATE rules SET body = '{}' WHERE id = 2",
        "UPDATE rules SET namespace = 'any', position = 0 WHERE id = 2",
        "UPDATE rules SET position = 9 WHERE id = 2",
    ] {
        let undo = fs::read(&path).unwrap();
        sql(&path, damage);
        let error = Store::open(&path).unwrap().rules().unwrap_err();
        let named = if damage.contains("position = 9") { 3 } else { 2 };
        assert!(matches!(error, StoreError::Rule { id, .. } if id == named), "{damage}: {error}");
        fs::write(&path, undo).unwrap();
    }
    sql(&path, "INSERT INTO policies VALUES ('OUTPUT', 'host', 'MAYBE')");
    let error = Store::open(&path).unwrap().policies().unwrap_err();
    assert!(error.to_string().contains("MAYBE"), "{error}");
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

/// One edit of the list of rules.
#[derive(Clone, Debug)]
enum Edit {
    Add(Chain, Selector, Option<usize>),
    Delete(Chain, Selector, usize),
    Flush(Option<Chain>, Selector),
    Reopen,
}

fn any_edit() -> impl Strategy<Value = Edit> {
    let chain = prop_oneof![Just(Chain::Output), Just(Chain::Input)];
    let selector = prop_oneof![Just(Selector::Any), Just(Selector::Host), Just(Selector::Named("b".into()))];
    let place = (chain, selector);
    prop_oneof![
        12 => (place.clone(), prop::option::of(0..6usize)).prop_map(|((c, s), at)| Edit::Add(c, s, at)),
        6 => (place.clone(), 0..6usize).prop_map(|((c, s), at)| Edit::Delete(c, s, at)),
        1 => (place, any::<bool>()).prop_map(|((c, s), all)| Edit::Flush((!all).then_some(c), s)),
        1 => Just(Edit::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The store is a map from places to vectors.
    #[test]
    fn rules_keep_their_order(edits in prop::collection::vec(any_edit(), 1..40)) {
        let (_dir, path) = place();
        let mut store = Store::open(&path).unwrap();
        let mut model = std::collections::BTreeMap::<(Chain, Selector), Vec<u16>>::new();
        for (number, edit) in (1..).zip(edits) {
            match edit {
                Edit::Add(chain, namespace, position) => {
                    let text = format!("-c {chain} -n {namespace} -v DROP --dport {number}");
                    let list = model.entry((chain, namespace)).or_default();
                    let added = store.add(&rule(&text), position);
                    let at = position.unwrap_or(list.len());
                    if at <= list.len() {
                        prop_assert_eq!(added.unwrap().position, at);
                        list.insert(at, number);
                    } else {
                        prop_assert!(added.is_err());
                    }
                }
                Edit::Delete(chain, namespace, position) => {
                    let list = model.entry((chain, namespace.clone())).or_default();
                    let exists = position < list.len();
                    prop_assert_eq!(store.delete(chain, &namespace, position).is_ok(), exists);
                    if exists {
                        list.remove(position);
                    }
                }
                Edit::Flush(chain, namespace) => {
                    let mut deleted = 0;
                    for ((c, s), list) in &mut model {
                        if *s == namespace && chain.is_none_or(|chain| chain == *c) {
                            deleted += list.len();
                            list.clear();
                        }
                    }
                    prop_assert_eq!(store.flush(chain, &namespace).unwrap(), deleted);
                }
                Edit::Reopen => {
                    drop(store);
                    store = Store::open(&path).unwrap();
                }
            }
            let expected: Vec<String> = model.values().flatten().map(|port| format!("--dport {port}")).collect();
            prop_assert_eq!(ports(&store), expected);
        }
    }
}
