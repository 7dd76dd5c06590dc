//! From the book to the rules in force.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use shared::{Chain, Selector, Verdict};

use crate::book::{self, Book, Entry};
use crate::matcher::{ActiveRule, Contents, Defaults, Delta, Ruleset, Sets};

use super::windows::Moment;

/// Changes of more rules than this have everything filed anew.
const FEW: usize = 128;

type Places = HashMap<(Selector, Chain), Delta>;

/// Keeps rules ready, so that a change makes only those that it changes.
#[derive(Debug)]
pub(super) struct Compiler {
    defaults: Defaults,
    sets: Arc<Sets>,
    active: HashMap<u64, Arc<ActiveRule>>,
    /// Rules that depend on time, and the state for which they are made.
    timed: BTreeMap<u64, Vec<bool>>,
    /// Their ends.
    ends: BTreeSet<(Timestamp, u64)>,
    /// What was changed since the rules began to be filed anew.
    since: Option<Vec<Step>>,
}

/// A change that was put beside what was filed before.
#[derive(Debug)]
struct Step {
    removed: Vec<((Selector, Chain), u64)>,
    added: Vec<Arc<ActiveRule>>,
}

/// A rule made ready.
struct Made {
    id: u64,
    /// None if it is gone, or has had its end.
    active: Option<Arc<ActiveRule>>,
    /// What of it depends on time.
    state: Option<Vec<bool>>,
}

/// What will be in force, if it can be stored.
pub(super) struct Compiled {
    pub(super) ruleset: Ruleset,
    made: Vec<Made>,
    sets: Arc<Sets>,
    step: Option<Step>,
}

impl Compiler {
    /// Everything, and how it is put in force.
    pub(super) fn new(book: &Book, defaults: Defaults, moment: &Moment) -> (Compiler, Ruleset) {
        let sets = Arc::new(Sets::new(book.sets().map(|set| &**set)));
        let mut compiler = Compiler {
            defaults,
            sets: sets.clone(),
            active: HashMap::with_capacity(book.len()),
            timed: BTreeMap::new(),
            ends: BTreeSet::new(),
            since: None,
        };
        for entry in book.rules() {
            let (active, state) = make(entry, &sets, moment);
            compiler.take(entry.id, active, state);
            compiler.ends.extend(entry.rule.until.map(|until| (until, entry.id)));
        }
        let active = book.rules().filter_map(|entry| compiler.active.get(&entry.id).cloned());
        let ruleset = compiler.file(book.revision(), book, active, &sets);
        (compiler, ruleset)
    }

    /// What is in force after a change, if it was `before` that. `book` is as it is after it. Changes nothing yet.
    pub(super) fn compiled(&self, before: &Ruleset, book: &Book, delta: &book::Delta, moment: &Moment) -> Compiled {
        let sets = match delta.sets.is_empty() {
            true => self.sets.clone(),
            false => {
                let changed = delta.sets.iter().map(|(name, change)| (name, change.after.as_deref()));
                Arc::new(self.sets.with(changed))
            }
        };
        let mut changed: BTreeMap<u64, Option<&Entry>> =
            delta.rules.iter().map(|(id, change)| (*id, change.after.as_deref())).collect();
        let users = delta.sets.keys().flat_map(|name| book.users(name));
        changed.extend(users.map(|entry| (entry.id, Some(&**entry))));
        let is_small = changed.len() <= FEW;
        self.with(before, book, &changed, sets, moment, is_small)
    }

    /// What is in force after rules have had their end, or a time of the week begins or ends. `None`: the same.
    pub(super) fn at(&self, before: &Ruleset, book: &Book, moment: &Moment) -> Option<Compiled> {
        let is_changed = |(id, state): (&u64, &Vec<bool>)| {
            let entry = book.rule(*id)?;
            (moment.state(&entry.rule).as_ref() != Some(state)).then_some((*id, Some(&**entry)))
        };
        let changed: BTreeMap<u64, Option<&Entry>> = self.timed.iter().filter_map(is_changed).collect();
        let is_small = changed.len() <= FEW;
        (!changed.is_empty()).then(|| self.with(before, book, &changed, self.sets.clone(), moment, is_small))
    }

    fn with(
        &self,
        before: &Ruleset,
        book: &Book,
        changed: &BTreeMap<u64, Option<&Entry>>,
        sets: Arc<Sets>,
        moment: &Moment,
        is_small: bool,
    ) -> Compiled {
        // By id.
        let made: Vec<_> = changed
            .iter()
            .map(|(id, entry)| {
                let (active, state) = entry.map_or((None, None), |entry| make(entry, &sets, moment));
                Made { id: *id, active, state }
            })
            .collect();
        let generation = before.generation + 1;
        if !is_small {
            let active = |entry: &Arc<Entry>| match made.binary_search_by_key(&entry.id, |made| made.id) {
                Ok(at) => made[at].active.clone(),
                Err(_) => self.active.get(&entry.id).cloned(),
            };
            let ruleset = self.file(generation, book, book.rules().filter_map(active), &sets);
            return Compiled { ruleset, made, sets, step: None };
        }
        let removed = changed.keys().filter_map(|id| Some((place(self.active.get(id)?), *id))).collect();
        let added = made.iter().filter_map(|made| made.active.clone()).collect();
        let step = Step { removed, added };
        let ruleset = before.with(generation, step.places(), policies(book), sets.clone());
        Compiled { ruleset, made, sets, step: Some(step) }
    }

    fn file(
        &self,
        generation: u64,
        book: &Book,
        rules: impl Iterator<Item = Arc<ActiveRule>>,
        sets: &Arc<Sets>,
    ) -> Ruleset {
        let contents = Contents { rules, policies: policies(book), sets: sets.clone() };
        Ruleset::new(generation, contents, self.defaults)
    }

    /// It is in force.
    pub(super) fn adopt(&mut self, compiled: Compiled, delta: &book::Delta) -> Ruleset {
        let Compiled { ruleset, made, sets, step } = compiled;
        for Made { id, active, state } in made {
            self.take(id, active, state);
        }
        for (id, change) in &delta.rules {
            let end = |entry: &Option<Arc<Entry>>| entry.as_ref()?.rule.until.map(|until| (until, *id));
            if let Some(end) = end(&change.before) {
                self.ends.remove(&end);
            }
            self.ends.extend(end(&change.after));
        }
        self.sets = sets;
        match (step, &mut self.since) {
            (Some(step), Some(since)) => since.push(step),
            (None, since) => *since = None,
            _ => {}
        }
        ruleset
    }

    fn take(&mut self, id: u64, active: Option<Arc<ActiveRule>>, state: Option<Vec<bool>>) {
        match active {
            Some(active) => self.active.insert(id, active),
            None => self.active.remove(&id),
        };
        match state {
            Some(state) => self.timed.insert(id, state),
            None => self.timed.remove(&id),
        };
    }

    /// Rules that have had their end.
    pub(super) fn ended(&self, now: Timestamp) -> Vec<u64> {
        self.ends.iter().take_while(|(end, _)| *end <= now).map(|(_, id)| *id).collect()
    }

    /// When to look at the clock again.
    pub(super) fn next(&self, book: &Book, moment: &Moment) -> Option<Timestamp> {
        self.timed.keys().filter_map(|id| moment.next(&book.rule(*id)?.rule)).min()
    }

    /// Notes what is changed from now on, for [`Compiler::refiled`]. False if that is done already.
    pub(super) fn begin_refiling(&mut self) -> bool {
        let is_idle = self.since.is_none();
        self.since.get_or_insert_default();
        is_idle
    }

    /// `fresh` is what was in force when [`Compiler::begin_refiling`] was called, filed anew; with what was changed since.
    /// `None` if everything was filed anew meanwhile.
    pub(super) fn refiled(&mut self, fresh: Ruleset, generation: u64, book: &Book) -> Option<Ruleset> {
        let steps = self.since.take()?;
        Some(match steps.is_empty() {
            true => fresh,
            false => {
                // Rules made with former sets are replaced by a later step.
                let add = |ruleset: Ruleset, step: &Step| {
                    ruleset.with(generation, step.places(), policies(book), self.sets.clone())
                };
                steps.iter().fold(fresh, add)
            }
        })
    }
}

impl Step {
    fn places(&self) -> Places {
        let mut places = Places::new();
        for (place, id) in &self.removed {
            places.entry(place.clone()).or_default().removed.push(*id);
        }
        for active in &self.added {
            places.entry(place(active)).or_default().added.push(active.clone());
        }
        places
    }
}

fn place(active: &Arc<ActiveRule>) -> (Selector, Chain) {
    (active.rule.namespace.clone(), active.rule.chain)
}

/// The rule as it is at the moment, if it has not had its end, and what of it depends on that.
fn make(entry: &Entry, sets: &Sets, moment: &Moment) -> (Option<Arc<ActiveRule>>, Option<Vec<bool>>) {
    let active = moment.is_before_end(&entry.rule).then(|| {
        let state = entry.hits.state.clone();
        let is_open = |window: &_| moment.is_within(window);
        Arc::new(ActiveRule::new(entry.id, entry.order(), entry.rule.clone(), state, sets, is_open))
    });
    (active, moment.state(&entry.rule))
}

fn policies(book: &Book) -> impl Iterator<Item = (Selector, Chain, Verdict)> {
    book.policies().iter().map(|((chain, namespace), verdict)| (namespace.clone(), *chain, *verdict))
}
