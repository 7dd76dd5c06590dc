use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use proptest::prelude::*;
use shared::control::{Changed, Done, Edit, Failure, FailureKind};
use shared::document::{Document, Form};
use shared::{Chain, Flow, Ports, Protocol, Rule, Selector, Verdict};
use tempfile::TempDir;

use super::*;
use crate::book::tests::any_change;
use crate::matcher::{Defaults, Device, Facts};
use crate::namespaces::Namespaces;
use crate::store::Store;

const ROOT: Caller = Caller { uid: 0, pid: Some(7) };

fn registrar(dir: &Path) -> (Arc<Registrar>, Arc<Hub>) {
    let store = Arc::new(Mutex::new(Store::open(&dir.join("rules.db")).unwrap()));
    let namespaces = Arc::new(ArcSwap::from_pointee(Namespaces::look().unwrap()));
    let defaults = Defaults { output: Verdict::Accept, input: Verdict::Accept, forward: Verdict::Accept };
    let hub = Arc::new(Hub::default());
    (Arc::new(Registrar::new(store, namespaces, defaults, hub.clone()).unwrap()), hub)
}

fn new() -> (TempDir, Arc<Registrar>) {
    let dir = tempfile::tempdir().unwrap();
    let (registrar, _) = registrar(dir.path());
    (dir, registrar)
}

fn rule(text: &str) -> Rule {
    text.parse().unwrap()
}

fn add(text: &str) -> Edit {
    Edit::Add { rule: rule(text), position: None }
}

fn change(registrar: &Registrar, edits: impl IntoIterator<Item = Edit>) -> Result<Changed, Failure> {
    registrar.change(ROOT, edits.into_iter().collect(), Some("test".into()), None)
}

/// Ids and texts of the rules in force, in order.
fn in_force(registrar: &Registrar) -> Vec<(u64, String)> {
    let rules = registrar.rules();
    let of = |(selector, chain)| rules.view(&[selector], chain).rules();
    let places = [(Selector::Host, Chain::Output), (Selector::Host, Chain::Input)];
    places.into_iter().flat_map(of).map(|rule| (rule.id, rule.text().into())).collect()
}

/// The same as it is listed.
fn listed(registrar: &Registrar) -> Vec<(u64, String)> {
    let rules = registrar.list(None, None).unwrap().rules;
    let of = |chain, namespace| rules.iter().filter(move |it| it.rule.chain == chain && it.rule.namespace == namespace);
    let places = [Chain::Output, Chain::Input]
        .into_iter()
        .flat_map(|chain| of(chain, Selector::Host).chain(of(chain, Selector::Any)));
    places.map(|it| (it.id, it.rule.to_string())).collect()
}

#[test]
fn a_change_is_stored_in_force_and_announced_or_nothing_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (registrar, hub) = registrar(dir.path());
    let reader = hub.subscribe(true, false);
    let changed =
        change(&registrar, [add("-c OUTPUT -n host -v DROP"), add("-c INPUT -n /proc/1/ns/net -v DROP")]).unwrap();
    assert_eq!((changed.revision, changed.rules), (1, 2));
    let Done::Rule(second) = &changed.done[1] else { panic!("{changed:?}") };
    assert_eq!((second.id, second.position, &second.rule.namespace), (2, 0, &Selector::Host));
    let generation = registrar.rules().generation;
    assert_eq!(in_force(&registrar), listed(&registrar));

    let failure = change(&registrar, [add("-c OUTPUT -n any -v DROP"), Edit::Delete { id: 9 }]).unwrap_err();
    assert_eq!((failure.kind, failure.index), (FailureKind::NotFound, Some(1)));
    let failure = change(&registrar, [add("-c OUTPUT -n any -v DROP"), add("-c INPUT -n /x -v DROP")]).unwrap_err();
    assert_eq!((failure.kind, failure.index), (FailureKind::Invalid, Some(1)));
    let over = add("-c OUTPUT -n any -v DROP --until 2020-01-01T00:00:00Z");
    assert_eq!(change(&registrar, [over]).unwrap_err().kind, FailureKind::Invalid);
    let edits = || vec![add("-c OUTPUT -n any -v DROP")];
    let failure = registrar.change(ROOT, edits(), None, Some(0)).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Conflict);
    // What changes nothing is no revision.
    let nothing = change(&registrar, [Edit::Flush { chain: None, namespace: Selector::Any }]).unwrap();
    assert_eq!((nothing.revision, &nothing.done[..]), (1, &[Done::Deleted(0)][..]));
    assert_eq!((registrar.rules().generation, listed(&registrar).len()), (generation, 2));
    assert_eq!(registrar.change(ROOT, edits(), None, Some(1)).unwrap().revision, 2);

    let history = registrar.history(None).unwrap();
    assert_eq!(history.iter().map(|revision| revision.number).collect::<Vec<_>>(), [2, 1]);
    assert_eq!((history[1].uid, history[1].pid, history[1].note.as_deref()), (Some(0), Some(7), Some("test")));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for revision in history.into_iter().rev() {
        let frame = runtime.block_on(reader.next());
        let told: shared::control::Announcement = shared::control::decode(&frame[shared::control::HEADER..]).unwrap();
        assert_eq!(told, shared::control::Announcement::Changed(revision));
    }
    drop(registrar);
    let (again, _) = super::tests::registrar(dir.path());
    assert_eq!((in_force(&again).len(), again.rules().generation), (3, 2));
}

#[test]
fn undo_takes_back_and_undo_twice_is_redo() {
    let (_dir, registrar) = new();
    assert_eq!(registrar.undo(ROOT, None).unwrap_err().kind, FailureKind::NotFound);
    for port in 1..=3 {
        change(&registrar, [add(&format!("-c OUTPUT -n host -v DROP --dport {port}"))]).unwrap();
    }
    let all = listed(&registrar);
    let flush = Edit::Flush { chain: None, namespace: Selector::Host };
    change(&registrar, [flush]).unwrap();
    assert_eq!(registrar.undo(ROOT, None).unwrap().revision, 5);
    assert_eq!((listed(&registrar), in_force(&registrar)), (all.clone(), all.clone()));
    registrar.undo(ROOT, None).unwrap();
    assert!(in_force(&registrar).is_empty());
    registrar.undo(ROOT, Some(2)).unwrap();
    assert_eq!(in_force(&registrar), all[..2]);
    assert_eq!(registrar.history(Some(1)).unwrap()[0].note.as_deref(), Some("undo to revision 2"));
    assert_eq!(registrar.undo(ROOT, Some(8)).unwrap_err().kind, FailureKind::NotFound);
    // To where it is already.
    assert_eq!(registrar.undo(ROOT, Some(7)).unwrap().revision, 7);
    registrar.undo(ROOT, Some(0)).unwrap();
    assert!(listed(&registrar).is_empty());
}

#[test]
fn a_document_is_put_in_force_whole() {
    let (_dir, registrar) = new();
    change(&registrar, [add("-c OUTPUT -n host -v DROP")]).unwrap();
    let text = "set create lan addresses 10.0.0.0/8\n-P OUTPUT DROP -n host\n-A -c OUTPUT -n host -v DROP -d @lan\n\
        -A -c OUTPUT -n host -v DROP --id 1\n";
    let restored = registrar.restore(ROOT, Form::Text(text.into()), None, None).unwrap();
    assert_eq!((restored.rules, restored.done.len()), (2, 0));
    assert_eq!(in_force(&registrar).iter().map(|(id, _)| *id).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(registrar.rules().view(&[Selector::Host], Chain::Output).policy(), Verdict::Drop);
    let mut wrong = Document::parse(text).unwrap();
    wrong.rules[1].id = Some(0);
    let failure = registrar.restore(ROOT, wrong.into(), None, None).unwrap_err();
    assert_eq!((failure.kind, failure.index), (FailureKind::Invalid, Some(1)));
    let failure = registrar.restore(ROOT, Form::Text("jump\n-A -v\n".into()), None, None).unwrap_err();
    assert!(failure.message.starts_with("line 1, column 1: ") && failure.message.ends_with(", and 1 more"));
    // Two names of one place.
    let twice = "-P OUTPUT DROP -n host\n-P OUTPUT DROP -n /proc/1/ns/net\n";
    let failure = registrar.restore(ROOT, Document::parse(twice).unwrap().into(), None, None).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Invalid);
    let listing = registrar.list(Some(Chain::Output), Some(Selector::Host)).unwrap();
    assert_eq!((listing.rules.len(), listing.sets[0].used_by, listing.revision), (2, 1, 2));
    assert_eq!(listing.policies.len(), 2);
    registrar.undo(ROOT, None).unwrap();
    assert_eq!(in_force(&registrar).len(), 1);
}

#[test]
fn a_rule_whose_time_has_come_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (registrar, _) = registrar(dir.path());
    let until = Timestamp::now() + Duration::from_millis(300);
    change(&registrar, [add("-c OUTPUT -n host -v DROP --dport 1")]).unwrap();
    change(&registrar, [add(&format!("-c OUTPUT -n host -v ACCEPT --until {until}"))]).unwrap();
    assert_eq!(registrar.mind_the_clock(), Some(until));
    assert_eq!(in_force(&registrar).len(), 2);
    while Timestamp::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    // Somebody holds the database: it is out of force all the same.
    let other = rusqlite::Connection::open(dir.path().join("rules.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert!(registrar.mind_the_clock().is_some());
    assert_eq!((in_force(&registrar).len(), listed(&registrar).len()), (1, 2));
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(registrar.mind_the_clock(), None);
    assert_eq!((in_force(&registrar).len(), listed(&registrar).len()), (1, 1));
    let newest = registrar.history(Some(1)).unwrap().remove(0);
    assert_eq!((newest.number, newest.uid, newest.note.as_deref()), (3, None, Some("expired")));
    assert_eq!(newest.changes, [format!("- -A -c OUTPUT -n host -v ACCEPT --until {until} --id 2")]);
    // Undo is about what somebody did. What has ended stays away, so that there is nothing of it to take back.
    let same = registrar.undo(ROOT, Some(1)).unwrap();
    assert_eq!((same.revision, listed(&registrar).len()), (3, 1));
    assert_eq!(registrar.undo(ROOT, None).unwrap().revision, 4);
    assert!(listed(&registrar).is_empty());
    registrar.undo(ROOT, None).unwrap();
    assert_eq!(listed(&registrar), [(1, "-A -c OUTPUT -n host -v DROP --dport 1".into())]);
}

#[test]
fn what_ended_while_nobody_ran_is_never_in_force() {
    let dir = tempfile::tempdir().unwrap();
    let until = Timestamp::now() + Duration::from_millis(100);
    {
        let (registrar, _) = registrar(dir.path());
        change(&registrar, [add(&format!("-c OUTPUT -n host -v ACCEPT --until {until}"))]).unwrap();
    }
    while Timestamp::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    let (registrar, _) = registrar(dir.path());
    assert!(in_force(&registrar).is_empty());
    assert_eq!(registrar.mind_the_clock(), None);
    assert!(listed(&registrar).is_empty());
}

/// The task wakes by itself.
#[test]
fn time_is_kept_without_looking_at_the_clock_all_the_time() {
    let (_dir, registrar) = new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let keeper = tokio::spawn(keep_time(registrar.clone()));
        for milliseconds in [400u64, 150] {
            let until = Timestamp::now() + Duration::from_millis(milliseconds);
            let keeps = registrar.clone();
            let rule = format!("-c OUTPUT -n host -v ACCEPT --until {until}");
            tokio::task::spawn_blocking(move || change(&keeps, [add(&rule)])).await.unwrap().unwrap();
        }
        let begun = Instant::now();
        while registrar.history(None).unwrap().len() < 4 {
            assert!(begun.elapsed() < Duration::from_secs(20));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        keeper.abort();
    });
    assert!(listed(&registrar).is_empty());
}

#[test]
fn counters_survive() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (registrar, _) = registrar(dir.path());
        change(&registrar, [add("-c OUTPUT -n host -v DROP"), add("-c OUTPUT -n host -v DROP --dport 1")]).unwrap();
        registrar.rules().view(&[Selector::Host], Chain::Output).rules()[0].state.count(100);
        change(&registrar, [Edit::Move { id: 1, position: 1 }]).unwrap();
        registrar.rules().view(&[Selector::Host], Chain::Output).rules()[1].state.count(50);
        registrar.save_counters();
    }
    let (registrar, _) = registrar(dir.path());
    let rules = registrar.list(None, None).unwrap().rules;
    assert_eq!((rules[1].id, rules[1].packets, rules[1].bytes), (1, 2, 150));
    change(&registrar, [Edit::Delete { id: 1 }]).unwrap();
    registrar.undo(ROOT, None).unwrap();
    assert_eq!(registrar.list(None, None).unwrap().rules[1].packets, 2);
}

#[test]
fn rules_are_filed_anew_while_others_come() {
    let (_dir, registrar) = new();
    change(&registrar, (0..100).map(|_| add("-c OUTPUT -n host -v DROP --dport 1"))).unwrap();
    for number in 0..300 {
        change(&registrar, [add("-c OUTPUT -n host -v DROP --dport 2"), Edit::Delete { id: number % 50 * 2 + 1 }])
            .or_else(|_| change(&registrar, [add("-c OUTPUT -n host -v DROP --dport 3")]))
            .unwrap();
    }
    assert!(registrar.rules().is_worn());
    registrar.refile_and(|| {
        change(&registrar, [Edit::Delete { id: 120 }, add("-c OUTPUT -n host -v DROP --dport 4")]).unwrap();
        change(&registrar, [Edit::Move { id: 130, position: 0 }]).unwrap();
    });
    assert!(!registrar.rules().is_worn());
    assert_eq!(in_force(&registrar), listed(&registrar));
    // Everything was filed anew meanwhile: nothing is left to do.
    for _ in 0..300 {
        change(&registrar, [add("-c OUTPUT -n host -v DROP --dport 2")]).unwrap();
    }
    registrar.refile_and(|| {
        change(&registrar, (0..100).map(|_| add("-c OUTPUT -n host -v DROP --dport 1"))).unwrap();
    });
    assert_eq!(in_force(&registrar), listed(&registrar));
}

/// Verdicts for packets to these ports.
fn verdicts<const N: usize>(registrar: &Registrar, ports: [u16; N]) -> [Verdict; N] {
    let view = registrar.rules().view(&[Selector::Host], Chain::Output);
    ports.map(|destination| {
        let flow = Flow {
            protocol: Protocol::TCP,
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.0.2".parse().unwrap(),
            ports: Ports::Known { source: 1000, destination },
        };
        let namespace = Some(&[Selector::Host][..]);
        let facts = Facts { flow: &flow, input: Device::None, output: Device::None, namespace, now: 0 };
        view.residual(&[]).judge(&facts, &[]).verdict
    })
}

#[test]
fn sets_change_while_rules_are_filed_anew() {
    const NAMED: &str = "-c OUTPUT -n host -v DROP -p tcp --dport @ports";
    let (_dir, registrar) = new();
    let name = || "ports".parse().unwrap();
    let set = Document::parse("set create ports ports 1").unwrap().sets.remove(0);
    change(&registrar, [Edit::CreateSet { set }, add(NAMED)]).unwrap();
    while !registrar.rules().is_worn() {
        change(&registrar, [add("-c OUTPUT -n host -v DROP --dport 9")]).unwrap();
    }
    // One that is filed beside the rest, too.
    change(&registrar, [add(NAMED)]).unwrap();
    registrar.refile_and(|| {
        change(&registrar, [Edit::AddElements { name: name(), elements: vec!["2".into()] }]).unwrap();
        change(&registrar, [Edit::DeleteElements { name: name(), elements: vec!["1".into()] }]).unwrap();
        change(&registrar, [Edit::AddElements { name: name(), elements: vec!["3".into()] }]).unwrap();
    });
    assert!(!registrar.rules().is_worn());
    assert_eq!(in_force(&registrar), listed(&registrar));
    assert_eq!(verdicts(&registrar, [1, 2, 3]), [Verdict::Accept, Verdict::Drop, Verdict::Drop]);
    change(&registrar, [Edit::DeleteElements { name: name(), elements: vec!["2".into()] }]).unwrap();
    assert_eq!(verdicts(&registrar, [1, 2, 3]), [Verdict::Accept, Verdict::Accept, Verdict::Drop]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What is in force is what is listed, however it came about.
    #[test]
    fn what_is_listed_is_in_force(changes in prop::collection::vec((any_change(), 0..8u8), 1..30)) {
        let (_dir, registrar) = new();
        for (edits, dice) in changes {
            let before = (registrar.rules().generation, listed(&registrar));
            let changed = change(&registrar, edits);
            match dice {
                0 => drop(registrar.undo(ROOT, None)),
                1 => registrar.refile_and(|| {}),
                _ if changed.is_err() => {
                    prop_assert_eq!(&before, &(registrar.rules().generation, listed(&registrar)));
                }
                _ => {}
            }
            prop_assert_eq!(in_force(&registrar), listed(&registrar));
            prop_assert_eq!(registrar.rules().len(), listed(&registrar).len());
        }
    }
}

/// `cargo test --release -p app-fw --lib -- --ignored --nocapture speed`
#[test]
#[ignore = "figures, not a test"]
fn speed_with_many_rules() {
    let (dir, registrar) = new();
    let rule = |n: u32| {
        let [_, a, b, c] = n.to_be_bytes();
        format!("-A -c OUTPUT -n host -v DROP -p tcp -d 10.{a}.{b}.{c} --dport {}\n", n % 60_000 + 1)
    };
    let text: String = (0..100_000).map(rule).collect();
    let begun = Instant::now();
    let document = Document::parse(&text).unwrap();
    eprintln!("parse 100,000: {:?}", begun.elapsed());
    let call = shared::control::Call {
        version: shared::control::VERSION,
        request: Request::Restore { document: document.clone().into(), note: None, expected: None },
    };
    let begun = Instant::now();
    let frame = shared::control::encode(&call).unwrap();
    eprintln!("encode {} bytes: {:?}", frame.len(), begun.elapsed());
    let begun = Instant::now();
    let back: shared::control::Call = shared::control::decode(&frame[4..]).unwrap();
    eprintln!("decode as a client: {:?}", begun.elapsed());
    assert_eq!(back, call);
    let begun = Instant::now();
    let back = crate::control::read_call(&frame[4..]).unwrap();
    eprintln!("decode: {:?}", begun.elapsed());
    assert_eq!(back, call.request);
    {
        let mut book = crate::book::Book::default();
        let (document, now) = (document.clone(), Timestamp::now());
        let begun = Instant::now();
        let mut changing = book.change();
        changing.restore(document, now).unwrap();
        eprintln!("  the book: {:?}", begun.elapsed());
        let begun = Instant::now();
        let past = serde_json::to_vec(&changing.delta().past()).unwrap();
        eprintln!("  its past, {} bytes: {:?}", past.len(), begun.elapsed());
        let mut store = Store::open(&dir.path().join("other.db")).unwrap();
        let begun = Instant::now();
        let author = crate::store::Author::default();
        store.commit(changing.book(), changing.last_id(), changing.delta(), &author, || {}).unwrap();
        eprintln!("  the commit: {:?}", begun.elapsed());
        let defaults = Defaults { output: Verdict::Accept, input: Verdict::Accept, forward: Verdict::Accept };
        let begun = Instant::now();
        let compiled = super::compiler::Compiler::new(changing.book(), defaults, &super::windows::Moment::now());
        eprintln!("  compiled: {:?}", begun.elapsed());
        let begun = Instant::now();
        drop(compiled);
        eprintln!("  freed: {:?}", begun.elapsed());
    }
    for round in ["into nothing", "over as many", "over as many"] {
        let begun = Instant::now();
        registrar.restore(ROOT, document.clone().into(), None, None).unwrap();
        eprintln!("restore {round}: {:?}", begun.elapsed());
    }
    let mut times: Vec<Duration> = (0..1000)
        .map(|n| {
            let begun = Instant::now();
            let position = Some([0, 50_000, 99_999][n % 3]);
            let rule = "-c OUTPUT -n host -v DROP --dport 7".parse().unwrap();
            change(&registrar, [Edit::Add { rule, position }]).unwrap();
            let took = begun.elapsed();
            if registrar.rules().is_worn() {
                registrar.refile_and(|| {});
            }
            took
        })
        .collect();
    times.sort();
    eprintln!("one rule: median {:?}, 99 % {:?}, most {:?}", times[500], times[990], times[999]);
    let begun = Instant::now();
    registrar.mind_the_clock();
    eprintln!("the clock: {:?}", begun.elapsed());
    let begun = Instant::now();
    let listing = registrar.list(None, None).unwrap();
    eprintln!("list {}: {:?}", listing.rules.len(), begun.elapsed());
    let begun = Instant::now();
    registrar.undo(ROOT, Some(903)).unwrap();
    eprintln!("undo 100 revisions: {:?}", begun.elapsed());
    drop(registrar);
    let begun = Instant::now();
    let (_registrar, _) = super::tests::registrar(dir.path());
    eprintln!("start: {:?}", begun.elapsed());
}
