//! What a change changed: enough to store it, to tell of it, and to take it back.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shared::document::Policy;
use shared::rule::quoted;
use shared::set::{Elements, Set, SetKind, SetName};
use shared::{Chain, Rule, Selector, Verdict};

use super::{Book, Entry, Place, difference, texts};

/// A rule before and after. At least one is there.
#[derive(Clone, Debug)]
pub struct RuleChange {
    /// What it was.
    pub before: Option<Arc<Entry>>,
    /// What it is.
    pub after: Option<Arc<Entry>>,
    /// It was put elsewhere; else it may have a new rank in its old place.
    pub moved: bool,
}

/// A set before and after. At least one is there.
#[derive(Clone, Debug)]
pub struct SetChange {
    /// What it was.
    pub before: Option<Arc<Set>>,
    /// What it is.
    pub after: Option<Arc<Set>>,
}

/// What is different after a change.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// Rules, by id.
    pub rules: BTreeMap<u64, RuleChange>,
    /// Policies before and after.
    pub policies: BTreeMap<Place, (Option<Verdict>, Option<Verdict>)>,
    /// Sets.
    pub sets: BTreeMap<SetName, SetChange>,
}

/// How everything that was changed was before: `R` is a rule, or a reference to one.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Past<R> {
    /// Rules.
    pub rules: Vec<WasRule<R>>,
    /// Policies; absent ones were not there.
    pub policies: Vec<(Chain, Selector, Option<Verdict>)>,
    /// Sets.
    pub sets: Vec<WasSet>,
}

/// How a rule was.
#[derive(Debug, Serialize, Deserialize)]
pub struct WasRule<R> {
    /// Its id.
    pub id: u64,
    /// Its rank, packets, bytes and what it said; absent: it was not there.
    pub was: Option<(i64, u64, u64, R)>,
    /// Its position is not what it was.
    #[serde(default)]
    pub moved: bool,
}

/// How a set was.
#[derive(Debug, Serialize, Deserialize)]
pub struct WasSet {
    /// Its name.
    pub name: SetName,
    /// Its kind; absent: it was not there.
    pub kind: Option<SetKind>,
    /// Elements that were in it and are not.
    pub missing: Vec<String>,
    /// Elements that were not in it and are.
    pub added: Vec<String>,
}

/// Lines that tell of a change, at most.
const MAX_LINES: usize = 100;

/// Bytes of these lines, at most.
const MAX_TEXT: usize = 16 << 10;

impl Delta {
    /// Whether nothing is different.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.policies.is_empty() && self.sets.is_empty()
    }

    pub(super) fn note_rule(&mut self, id: u64, before: Option<Arc<Entry>>, after: Option<Arc<Entry>>, moved: bool) {
        let change = self.rules.entry(id).or_insert(RuleChange { before, after: None, moved: false });
        change.after = after;
        change.moved |= moved;
        let is_same = match (&change.before, &change.after) {
            (None, None) => true,
            (Some(before), Some(after)) => before.is_as(after),
            _ => false,
        };
        if is_same {
            self.rules.remove(&id);
        }
    }

    pub(super) fn note_policy(&mut self, place: Place, before: Option<Verdict>, after: Option<Verdict>) {
        let change = self.policies.entry(place.clone()).or_insert((before, None));
        change.1 = after;
        if change.0 == change.1 {
            self.policies.remove(&place);
        }
    }

    pub(super) fn note_set(&mut self, name: SetName, before: Option<Arc<Set>>, after: Option<Arc<Set>>) {
        let change = self.sets.entry(name.clone()).or_insert(SetChange { before, after: None });
        change.after = after;
        if change.before == change.after {
            self.sets.remove(&name);
        }
    }

    /// How it was before.
    pub fn past(&self) -> Past<&Rule> {
        let rules = self.rules.iter().map(|(id, change)| {
            let was = change.before.as_ref().map(|before| {
                let (packets, bytes) = before.hits.get();
                (before.rank, packets, bytes, &*before.rule)
            });
            WasRule { id: *id, was, moved: change.moved }
        });
        let policies =
            self.policies.iter().map(|((chain, namespace), (before, _))| (*chain, namespace.clone(), *before));
        let sets = self.sets.iter().map(|(name, change)| {
            let (missing, added) = change.elements();
            WasSet { name: name.clone(), kind: kind(change.before.as_ref()), missing, added }
        });
        Past { rules: rules.collect(), policies: policies.collect(), sets: sets.collect() }
    }

    /// What was done, a line each; a summary if that were too many. `book` is as it is after the change.
    pub fn lines(&self, book: &Book) -> Vec<String> {
        let mut lines = Vec::new();
        let mut room = MAX_TEXT;
        if self.rules.len() + self.policies.len() <= MAX_LINES {
            for line in self.every_line(book) {
                room = room.saturating_sub(line.len());
                lines.push(line);
                if lines.len() > MAX_LINES || room == 0 {
                    return self.summary();
                }
            }
            return lines;
        }
        self.summary()
    }

    fn every_line<'a>(&'a self, book: &'a Book) -> impl Iterator<Item = String> + 'a {
        let sets = self.sets.iter().flat_map(|(name, change)| change.lines(name));
        let policies = self.policies.iter().flat_map(|((chain, namespace), (before, after))| {
            let line = |sign: char, verdict: Option<Verdict>| {
                let of = |verdict| Policy { chain: *chain, namespace: namespace.clone(), verdict };
                verdict.map(|verdict| format!("{sign} {}", of(verdict)))
            };
            line('-', *before).into_iter().chain(line('+', *after))
        });
        let rules = self.rules.iter().flat_map(|(id, RuleChange { before, after, moved })| {
            let line = |sign: char, entry: &Entry| format!("{sign} {} --id {id}", entry.rule);
            match (before, after) {
                (Some(before), Some(after)) if before.says_as(after) => {
                    let line = moved.then(|| format!("{} at {}", line('~', after), book.position(after)));
                    [line, None]
                }
                _ => [before.as_ref().map(|it| line('-', it)), after.as_ref().map(|it| line('+', it))],
            }
            .into_iter()
            .flatten()
        });
        sets.chain(policies).chain(rules)
    }

    fn summary(&self) -> Vec<String> {
        let (mut added, mut deleted, mut changed, mut moved) = (0usize, 0usize, 0usize, 0usize);
        for change in self.rules.values() {
            match (&change.before, &change.after) {
                (None, _) => added += 1,
                (_, None) => deleted += 1,
                (Some(before), Some(after)) if before.says_as(after) => moved += usize::from(change.moved),
                _ => changed += 1,
            }
        }
        let counts = [
            (added, "rules added"),
            (deleted, "rules deleted"),
            (changed, "rules changed"),
            (moved, "rules moved"),
            (self.policies.len(), "policies changed"),
            (self.sets.len(), "sets changed"),
        ];
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect()
    }
}

fn kind(set: Option<&Arc<Set>>) -> Option<SetKind> {
    set.map(|set| set.elements.kind())
}

impl SetChange {
    /// It was made, deleted, or made anew of another kind.
    pub fn is_new(&self) -> bool {
        kind(self.before.as_ref()) != kind(self.after.as_ref())
    }

    /// Texts of the elements that went, and of those that came.
    pub fn elements(&self) -> (Vec<String>, Vec<String>) {
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => difference(&before.elements, &after.elements),
            (before, after) => {
                let of = |set: &Option<Arc<Set>>| texts(set.as_ref().map(|set| &set.elements));
                (of(before), of(after))
            }
        }
    }

    fn lines(&self, name: &SetName) -> Vec<String> {
        const FEW: usize = 100;
        let all = |sign: char, set: &Set| {
            if set.elements.len() <= FEW {
                return format!("{sign} {set}");
            }
            let empty = Set { name: set.name.clone(), elements: Elements::none(set.elements.kind()) };
            format!("{sign} {empty} ({} elements)", set.elements.len())
        };
        if self.is_new() {
            let before = self.before.iter().map(|set| all('-', set));
            return before.chain(self.after.iter().map(|set| all('+', set))).collect();
        }
        let (gone, come) = self.elements();
        let line = |verb: &str, sign: char, elements: &[String]| match elements.len() {
            0 => None,
            1..=FEW => Some(format!("{sign} set {verb} {} {}", quoted(name.as_str()), elements.join(","))),
            many => Some(format!("{sign} set {verb} {} ({many} elements)", quoted(name.as_str()))),
        };
        line("add", '-', &gone).into_iter().chain(line("add", '+', &come)).collect()
    }
}
