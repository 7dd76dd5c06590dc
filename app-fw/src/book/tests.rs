use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use proptest::prelude::*;
use shared::control::Edit;
use shared::document::{Document, NumberedRule, Policy};
use shared::set::Set;
use shared::{Chain, Rule, Selector, Verdict};

use super::*;

fn rule(text: &str) -> Rule {
    text.parse().unwrap()
}

fn set(text: &str) -> Set {
    Document::parse(text).unwrap().sets.remove(0)
}

fn add(text: &str, position: Option<usize>) -> Edit {
    Edit::Add { rule: rule(text), position }
}

fn now() -> Timestamp {
    "2026-11-21T12:00:00Z".parse().unwrap()
}

/// Makes edits as one change.
#[track_caller]
fn make(book: &mut Book, edits: impl IntoIterator<Item = Edit>) -> Delta {
    let revision = book.revision() + 1;
    let mut changing = book.change();
    for edit in edits {
        changing.edit(edit).unwrap();
    }
    changing.keep(revision)
}

fn refused(book: &mut Book, edit: Edit) -> BookError {
    book.change().edit(edit).unwrap_err()
}

/// What there is, as a document says it.
pub(crate) fn document(book: &Book) -> Document {
    let policies = book.policies().iter().map(|((chain, namespace), verdict)| Policy {
        chain: *chain,
        namespace: namespace.clone(),
        verdict: *verdict,
    });
    Document {
        sets: book.sets().map(|set| (**set).clone()).collect(),
        policies: policies.collect(),
        rules: book.rules().map(|it| NumberedRule { id: Some(it.id), rule: (*it.rule).clone() }).collect(),
    }
}

/// All that a book holds twice agrees.
pub(crate) fn check(book: &Book) {
    assert_eq!(book.rules().count(), book.len());
    for (place, list) in book.places() {
        assert!(!list.is_empty() && list.is_sorted_by(|a, b| a.rank < b.rank), "{place:?}");
        for (position, entry) in list.iter().enumerate() {
            assert!(entry.place() == *place && entry.position(book) == position);
            assert!(Arc::ptr_eq(entry, &book.ids[&entry.id]) && entry.id <= book.last_id);
        }
    }
    let mut uses: BTreeMap<SetName, BTreeSet<u64>> = BTreeMap::new();
    for entry in book.rules() {
        for (name, _) in entry.rule.predicates.iter().flat_map(|it| it.on.sets()) {
            uses.entry(name.clone()).or_default().insert(entry.id);
        }
    }
    assert_eq!(uses, book.uses.clone().into_iter().collect());
}

fn read(past: Past<&Rule>) -> Past<Rule> {
    serde_json::from_slice(&serde_json::to_vec(&past).unwrap()).unwrap()
}

#[test]
fn edits_in_one_change() {
    let mut book = Book::default();
    let delta = make(
        &mut book,
        [
            Edit::CreateSet { set: set("set create lan addresses 10.0.0.0/8") },
            add("-c OUTPUT -n host -v DROP --dport 1", None),
            add("-c OUTPUT -n host -v DROP -d @lan", Some(0)),
            add("-c INPUT -n any -v ACCEPT", None),
            Edit::Move { id: 2, position: 1 },
            Edit::Replace { id: 1, rule: rule("-c OUTPUT -n host -v REJECT --dport 2") },
            Edit::Delete { id: 3 },
            Edit::Policy { chain: Chain::Output, namespace: Selector::Host, verdict: Verdict::Drop },
            Edit::AddElements { name: "lan".parse().unwrap(), elements: vec!["::1".into(), "10.0.0.0/8".into()] },
        ],
    );
    check(&book);
    assert_eq!(
        document(&book).to_string(),
        "set create lan addresses 10.0.0.0/8,::1/128\n-P OUTPUT DROP -n host\n\
         -A -c OUTPUT -n host -v REJECT --dport 2 --id 1\n-A -c OUTPUT -n host -v DROP -d @lan --id 2\n"
    );
    assert_eq!(
        delta.lines(&book),
        [
            "+ set create lan addresses 10.0.0.0/8,::1/128",
            "+ -P OUTPUT DROP -n host",
            "+ -A -c OUTPUT -n host -v REJECT --dport 2 --id 1",
            "+ -A -c OUTPUT -n host -v DROP -d @lan --id 2",
        ]
    );
    assert_eq!(book.uses(&"lan".parse().unwrap()), 1);
    let delta = make(
        &mut book,
        [
            Edit::Move { id: 2, position: 0 },
            Edit::DeleteElements { name: "lan".parse().unwrap(), elements: vec!["::1".into()] },
            Edit::Policy { chain: Chain::Output, namespace: Selector::Host, verdict: Verdict::Accept },
        ],
    );
    assert_eq!(
        delta.lines(&book),
        [
            "- set add lan ::1/128",
            "- -P OUTPUT DROP -n host",
            "+ -P OUTPUT ACCEPT -n host",
            "~ -A -c OUTPUT -n host -v DROP -d @lan --id 2 at 0",
        ]
    );
    let flush = Edit::Flush { chain: None, namespace: Selector::Host };
    assert!(matches!(book.change().edit(flush), Ok(Outcome::Deleted(2))));
    assert_eq!(book.len(), 2, "it was not kept");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut book = Book::default();
    let lan = || "lan".parse::<SetName>().unwrap();
    make(
        &mut book,
        [
            Edit::CreateSet { set: set("set create lan addresses 10.0.0.0/8") },
            add("-c OUTPUT -n host -v DROP -d @lan", None),
        ],
    );
    let before = document(&book);
    use BookError as E;
    let refused = |edit| refused(&mut book, edit);
    let mut refused = refused;
    assert!(matches!(refused(add("-c OUTPUT -n host -v DROP", Some(2))), E::OutOfRange { position: 2, length: 1, .. }));
    let host = || Selector::Host;
    let delete = Edit::DeleteAt { chain: Chain::Output, namespace: host(), position: 1 };
    assert_eq!(refused(delete).to_string(), "there is no rule at position 1: OUTPUT of host has 1 rules");
    assert_eq!(refused(Edit::Delete { id: 2 }), E::NoSuchRule(2));
    assert!(matches!(refused(Edit::Move { id: 1, position: 1 }), E::OutOfRange { .. }));
    let policy = Edit::Policy { chain: Chain::Output, namespace: host(), verdict: Verdict::Reject };
    assert_eq!(refused(policy), E::PolicyRejects);
    assert_eq!(refused(Edit::DeleteSet { name: lan() }), E::SetInUse { name: lan(), rules: 1 });
    assert_eq!(refused(Edit::DeleteSet { name: "wan".parse().unwrap() }), E::NoSuchSet("wan".parse().unwrap()));
    assert_eq!(refused(Edit::CreateSet { set: set("set create lan ports") }), E::SetExists(lan()));
    assert!(matches!(refused(add("-c OUTPUT -n host -v DROP -s @wan", None)), E::UnknownSet { option: "-s", .. }));
    assert!(matches!(refused(add("-c OUTPUT -n host -v DROP --dport @lan", None)), E::WrongKind { .. }));
    let elements = |texts: [&str; 1]| texts.map(String::from).to_vec();
    let absent = Edit::DeleteElements { name: lan(), elements: elements(["10.0.0.0/9"]) };
    assert_eq!(refused(absent), E::NotInSet { name: lan(), element: "10.0.0.0/9".into() });
    assert!(matches!(refused(Edit::AddElements { name: lan(), elements: elements(["x"]) }), E::Element(_)));
    assert!(matches!(refused(add("-c OUTPUT -n /proc/1/ns/net -v DROP", None)), E::Unresolved(_)));
    assert!(matches!(refused(add("-c OUTPUT -n any -v DROP ! --netns /x", None)), E::Unresolved(_)));
    let mut twice = rule("-c OUTPUT -n any -v DROP -p tcp");
    twice.predicates.push(twice.predicates[0].clone());
    assert_eq!(refused(Edit::Add { rule: twice, position: None }), E::Twice("-p"));
    let restore = |book: &mut Book, text: &str| {
        let document = Document { policies: vec![], ..Document::parse(text).unwrap() };
        book.change().restore(document, now())
    };
    let mut far = Document::parse("-A -c OUTPUT -n any -v DROP\n-A -c OUTPUT -n any -v DROP\n").unwrap();
    far.rules[1].id = Some(MAX_ID + 1);
    assert!(matches!(book.change().restore(far.clone(), now()), Err((Some(1), E::Contradiction(_)))));
    far.rules[1].id = None;
    far.rules[0].id = Some(MAX_ID);
    assert_eq!(book.change().restore(far, now()), Err((Some(1), E::TooHigh)));
    let unresolved = "-A -c OUTPUT -n any -v DROP\n-A -c OUTPUT -n /x -v DROP\n";
    assert!(matches!(restore(&mut book, unresolved), Err((Some(1), E::Unresolved(_)))));
    check(&book);
    assert_eq!((document(&book), book.last_id), (before, 1));
}

#[test]
fn there_is_always_room() {
    let place = (Chain::Output, Selector::Host);
    let mut book = Book::default();
    make(&mut book, (0..300).map(|_| add("-c OUTPUT -n host -v DROP", None)));
    let mut expected: Vec<u64> = (1..=300).collect();
    let mut most = 0;
    let positions = [150, 0, 299, 1].into_iter().flat_map(|position| std::iter::repeat_n(position, 500));
    for (id, position) in (301..).zip(positions) {
        let delta = make(&mut book, [add("-c OUTPUT -n host -v DROP", Some(position))]);
        expected.insert(position, id);
        most = most.max(delta.rules.len());
    }
    check(&book);
    let ids: Vec<u64> = book.list(&place).iter().map(|entry| entry.id).collect();
    assert_eq!(ids, expected);
    assert!((2..=129).contains(&most), "{most} rules gave way");
}

#[test]
fn large_changes_are_summed_up() {
    let mut book = Book::default();
    let delta = make(&mut book, (0..1000).map(|_| add("-c OUTPUT -n host -v DROP", None)));
    assert_eq!(delta.lines(&book), ["1000 rules added"]);
    let comment = "x".repeat(250);
    let long = format!("-c OUTPUT -n any -v DROP --comment {comment}");
    let delta = make(&mut book, (0..70).map(|_| add(&long, None)).chain([Edit::Delete { id: 1 }]));
    assert_eq!(delta.lines(&book), ["70 rules added", "1 rules deleted"]);
}

#[test]
fn a_document_replaces_everything_and_the_same_one_changes_nothing() {
    let mut book = Book::default();
    make(&mut book, (0..40).map(|_| add("-c OUTPUT -n host -v DROP", None)));
    let hits = book.rule(7).unwrap().hits.clone();
    let same = document(&book);
    let mut changing = book.change();
    changing.restore(same.clone(), now()).unwrap();
    assert!(changing.delta().is_empty());
    drop(changing);

    let text = "set create lan addresses 10.0.0.0/8\n-P INPUT DROP -n any\n\
        -A -c OUTPUT -n host -v DROP -d @lan\n-A -c OUTPUT -n host -v DROP --id 7\n\
        -A -c INPUT -n any -v DROP --id 90\n-A -c OUTPUT -n host -v DROP --id 3\n\
        -A -c OUTPUT -n any -v DROP --until 2026-11-21T11:59:59Z\n";
    let mut changing = book.change();
    changing.restore(Document::parse(text).unwrap(), now()).unwrap();
    let delta = changing.keep(9);
    check(&book);
    let expected = "set create lan addresses 10.0.0.0/8\n-P INPUT DROP -n any\n\
        -A -c OUTPUT -n host -v DROP -d @lan --id 91\n-A -c OUTPUT -n host -v DROP --id 7\n\
        -A -c OUTPUT -n host -v DROP --id 3\n-A -c INPUT -n any -v DROP --id 90\n";
    assert_eq!(document(&book).to_string(), expected);
    assert!(Arc::ptr_eq(&hits, &book.rule(7).unwrap().hits));

    let past = read(delta.past());
    let mut changing = book.change();
    changing.take_back(past, now()).unwrap();
    changing.keep(10);
    check(&book);
    assert_eq!(document(&book), same);
}

fn any_edit() -> impl Strategy<Value = Edit> {
    let chain = prop_oneof![Just(Chain::Output), Just(Chain::Input)];
    let selector = prop_oneof![Just(Selector::Any), Just(Selector::Host)];
    let place = (chain, selector);
    let name = prop_oneof![Just("a"), Just("b")].prop_map(|name| name.parse::<SetName>().unwrap());
    let set =
        (name.clone(), any::<bool>(), prop::collection::vec(1..9u16, 0..4)).prop_map(|(name, ports, elements)| {
            let texts: Vec<String> =
                elements.iter().map(|n| if ports { n.to_string() } else { format!("10.0.0.{n}") }).collect();
            let kind = if ports { shared::set::SetKind::Ports } else { shared::set::SetKind::Addresses };
            let elements = shared::set::Elements::parse(kind, texts.iter().map(String::as_str)).unwrap();
            Set { name, elements }
        });
    let element = (1..9u16).prop_map(|n| n.to_string());
    let rule = (place.clone(), 0..6u8, 1..5u16).prop_map(|((chain, namespace), asks, port)| {
        let asks = match asks {
            0 => "--dport @a".into(),
            1 => "-d @b -s @b".into(),
            _ => format!("--dport {port}"),
        };
        rule(&format!("-c {chain} -n {namespace} -v DROP {asks}"))
    });
    let verdict = prop_oneof![Just(Verdict::Accept), Just(Verdict::Drop)];
    prop_oneof![
        10 => (rule.clone(), prop::option::of(0..6usize)).prop_map(|(rule, position)| Edit::Add { rule, position }),
        3 => (1..20u64, rule).prop_map(|(id, rule)| Edit::Replace { id, rule }),
        4 => (1..20u64, 0..5usize).prop_map(|(id, position)| Edit::Move { id, position }),
        2 => (1..20u64).prop_map(|id| Edit::Delete { id }),
        2 => (place.clone(), 0..4usize).prop_map(|((chain, namespace), position)| Edit::DeleteAt { chain, namespace, position }),
        1 => (place.clone(), any::<bool>()).prop_map(|((chain, namespace), all)| {
            Edit::Flush { chain: (!all).then_some(chain), namespace }
        }),
        1 => (place, verdict).prop_map(|((chain, namespace), verdict)| Edit::Policy { chain, namespace, verdict }),
        2 => set.prop_map(|set| Edit::CreateSet { set }),
        1 => name.clone().prop_map(|name| Edit::DeleteSet { name }),
        2 => (name.clone(), element.clone()).prop_map(|(name, one)| Edit::AddElements { name, elements: vec![one] }),
        1 => (name.clone(), element).prop_map(|(name, one)| Edit::DeleteElements { name, elements: vec![one] }),
        1 => name.prop_map(|name| Edit::FlushSet { name }),
    ]
}

/// Some edits that belong together.
pub(crate) fn any_change() -> impl Strategy<Value = Vec<Edit>> {
    prop::collection::vec(any_edit(), 1..6)
}

/// A book as simple as can be: lists of ids and texts.
#[derive(Clone, Default, Debug, PartialEq)]
struct Model {
    lists: BTreeMap<Place, Vec<(u64, String)>>,
    last_id: u64,
}

impl Model {
    fn edit(&mut self, edit: &Edit) {
        let at = |lists: &BTreeMap<Place, Vec<(u64, String)>>, id: u64| {
            let find = |(place, list): (&Place, &Vec<(u64, String)>)| {
                Some((place.clone(), list.iter().position(|(other, _)| *other == id)?))
            };
            lists.iter().find_map(find)
        };
        match edit {
            Edit::Add { rule, position } => {
                self.last_id += 1;
                let list = self.lists.entry((rule.chain, rule.namespace.clone())).or_default();
                list.insert(position.unwrap_or(list.len()), (self.last_id, rule.to_string()));
            }
            Edit::Replace { id, rule } => {
                let (place, position) = at(&self.lists, *id).unwrap();
                let new = (rule.chain, rule.namespace.clone());
                self.lists.get_mut(&place).unwrap().remove(position);
                let list = self.lists.entry(new.clone()).or_default();
                list.insert(if new == place { position } else { list.len() }, (*id, rule.to_string()));
            }
            Edit::Move { id, position } => {
                let (place, from) = at(&self.lists, *id).unwrap();
                let list = self.lists.get_mut(&place).unwrap();
                let moved = list.remove(from);
                list.insert(*position, moved);
            }
            Edit::Delete { id } => {
                let (place, position) = at(&self.lists, *id).unwrap();
                self.lists.get_mut(&place).unwrap().remove(position);
            }
            Edit::DeleteAt { chain, namespace, position } => {
                self.lists.get_mut(&(*chain, namespace.clone())).unwrap().remove(*position);
            }
            Edit::Flush { chain, namespace } => {
                self.lists.retain(|(of, at), _| chain.is_some_and(|chain| chain != *of) || at != namespace);
            }
            _ => {}
        }
        self.lists.retain(|_, list| !list.is_empty());
    }

    fn of(book: &Book) -> Model {
        let list = |list: &[Arc<Entry>]| list.iter().map(|entry| (entry.id, entry.rule.to_string())).collect();
        Model { lists: book.places().map(|(place, l)| (place.clone(), list(l))).collect(), last_id: book.last_id }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// The book is a map from places to lists; a change that fails changes nothing; what is taken back is as it was.
    #[test]
    fn the_book_is_as_simple_as_its_model(changes in prop::collection::vec(any_change(), 1..30)) {
        let mut book = Book::default();
        let mut model = Model::default();
        let mut pasts = Vec::new();
        for edits in changes {
            let (before, mut after) = (document(&book), model.clone());
            let revision = book.revision() + 1;
            let mut changing = book.change();
            let mut refused = false;
            for edit in edits {
                match changing.edit(edit.clone()) {
                    Ok(_) => after.edit(&edit),
                    Err(_) => { refused = true; break }
                }
            }
            if refused {
                drop(changing);
                prop_assert_eq!(document(&book), before);
            } else {
                let past = read(changing.delta().past());
                if changing.delta().is_empty() {
                    after.last_id = model.last_id;
                    drop(changing);
                } else {
                    changing.keep(revision);
                    pasts.push((past, before));
                }
                model = after;
            }
            check(&book);
            prop_assert_eq!(Model::of(&book), model.clone());
        }
        // One by one, and each undone undo is as before it.
        while let Some((past, before)) = pasts.pop() {
            let now_it_is = document(&book);
            let revision = book.revision() + 1;
            let mut changing = book.change();
            changing.take_back(past, now()).unwrap();
            let redo = read(changing.delta().past());
            let undone = read(changing.keep(revision).past());
            prop_assert_eq!(redo.rules.len(), undone.rules.len());
            check(&book);
            prop_assert_eq!(&document(&book), &before);
            let mut changing = book.change();
            changing.take_back(redo, now()).unwrap();
            prop_assert_eq!(&document(changing.book()), &now_it_is);
            drop(changing);
            prop_assert_eq!(&document(&book), &before);
        }
    }

    /// A document that is restored is what is there then.
    #[test]
    fn documents_round_trip(first in any_change(), second in any_change()) {
        let mut books = [Book::default(), Book::default()];
        for (book, edits) in books.iter_mut().zip([first, second]) {
            for edit in edits {
                let revision = book.revision() + 1;
                let mut changing = book.change();
                if changing.edit(edit).is_ok() {
                    changing.keep(revision);
                }
            }
        }
        let [mut book, other] = books;
        let (before, wanted) = (document(&book), document(&other));
        let mut changing = book.change();
        changing.restore(wanted.clone(), now()).unwrap();
        let past = read(changing.delta().past());
        prop_assert_eq!(&document(changing.book()), &wanted);
        let delta = changing.keep(7);
        prop_assert_eq!(delta.is_empty(), before == wanted);
        check(&book);
        let mut changing = book.change();
        changing.take_back(past, now()).unwrap();
        prop_assert_eq!(&document(changing.book()), &before);
    }
}
