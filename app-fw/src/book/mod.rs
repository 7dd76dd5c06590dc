//! The ruleset as it is listed and changed: every rule in its place, policies, sets. Pure: no disk, no clock, no kernel.
//!
//! A change is made through [`Changing`], which puts everything back unless it is kept.

mod changing;
mod delta;
mod error;
mod members;
mod ranks;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use shared::set::{Set, SetName};
use shared::{Chain, Rule, Selector, Verdict};

use crate::matcher::RuleState;

pub use changing::{Changing, Outcome};
pub use delta::{Delta, Past, RuleChange, SetChange, WasRule, WasSet};
pub use error::BookError;
pub use members::{difference, texts};
pub use shared::document::MAX_ID;

/// A chain of a namespace.
pub type Place = (Chain, Selector);

/// A rule with its place. Entries are never changed, only replaced.
#[derive(Debug)]
pub struct Entry {
    /// Stable, never given twice.
    pub id: u64,
    /// Rules of a place stand in this order.
    pub rank: i64,
    /// What it says.
    pub rule: Arc<Rule>,
    /// Packets for which it fired.
    pub hits: Arc<Hits>,
}

impl Entry {
    /// The rank as the matcher has it.
    pub fn order(&self) -> u64 {
        self.rank.cast_unsigned() ^ 1 << 63
    }

    /// Where it stands.
    pub fn place(&self) -> Place {
        (self.rule.chain, self.rule.namespace.clone())
    }

    /// Its position among the rules of its place.
    pub fn position(&self, book: &Book) -> usize {
        book.position(self)
    }

    fn is_as(&self, other: &Entry) -> bool {
        self.rank == other.rank && self.says_as(other)
    }

    fn says_as(&self, other: &Entry) -> bool {
        Arc::ptr_eq(&self.rule, &other.rule) || self.rule == other.rule
    }
}

/// What a rule counts and remembers, and how much of that is stored.
#[derive(Debug, Default)]
pub struct Hits {
    /// Counted by the workers.
    pub state: Arc<RuleState>,
    /// What of the packets the store has.
    stored: AtomicU64,
}

impl Hits {
    /// As they were stored.
    pub fn stored(packets: u64, bytes: u64) -> Hits {
        let state = RuleState::default();
        state.packets.store(packets, Ordering::Relaxed);
        state.bytes.store(bytes, Ordering::Relaxed);
        Hits { state: Arc::new(state), stored: packets.into() }
    }

    /// Packets and bytes so far.
    pub fn get(&self) -> (u64, u64) {
        (self.state.packets.load(Ordering::Relaxed), self.state.bytes.load(Ordering::Relaxed))
    }

    /// Packets and bytes so far, if there are more than are stored.
    pub fn fresh(&self) -> Option<(u64, u64)> {
        let (packets, bytes) = self.get();
        (packets != self.stored.load(Ordering::Relaxed)).then_some((packets, bytes))
    }

    /// So many packets are stored now.
    pub fn set_stored(&self, packets: u64) {
        self.stored.store(packets, Ordering::Relaxed);
    }
}

/// What is to be known to make a book: what the store holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// The newest revision.
    pub revision: u64,
    /// The highest id ever given.
    pub last_id: u64,
    /// The rules, in any order.
    pub rules: Vec<Entry>,
    /// The policies.
    pub policies: BTreeMap<Place, Verdict>,
    /// The sets.
    pub sets: Vec<Set>,
}

/// All rules, policies and sets.
#[derive(Debug, Default)]
pub struct Book {
    revision: u64,
    last_id: u64,
    /// Rules by rank. No list is empty.
    places: BTreeMap<Place, Vec<Arc<Entry>>>,
    ids: HashMap<u64, Arc<Entry>>,
    policies: BTreeMap<Place, Verdict>,
    sets: BTreeMap<SetName, Arc<Set>>,
    /// Ids of the rules that name a set. No list is empty.
    uses: HashMap<SetName, BTreeSet<u64>>,
}

impl Book {
    /// A book of what was stored.
    ///
    /// # Errors
    /// The id of a rule that cannot be as it is, and why.
    pub fn new(contents: Contents) -> Result<Book, (u64, String)> {
        let Contents { revision, last_id, rules, policies, sets } = contents;
        let sets = sets.into_iter().map(|set| (set.name.clone(), Arc::new(set))).collect();
        let mut book = Book { revision, last_id, policies, sets, ..Book::default() };
        for entry in rules {
            book.check_sets(&entry.rule).map_err(|error| (entry.id, error.to_string()))?;
            if !ranks::POSSIBLE.contains(&entry.rank) {
                return Err((entry.id, format!("its rank {} is impossible", entry.rank)));
            }
            book.last_id = book.last_id.max(entry.id);
            book.note_uses(&entry);
            let (id, place, entry) = (entry.id, entry.place(), Arc::new(entry));
            book.places.entry(place).or_default().push(entry.clone());
            if book.ids.insert(id, entry).is_some() {
                return Err((id, "another rule has the same id".into()));
            }
        }
        for list in book.places.values_mut() {
            list.sort_unstable_by_key(|entry| entry.rank);
            if let Some(pair) = list.windows(2).find(|pair| pair[0].rank == pair[1].rank) {
                return Err((pair[1].id, format!("it has the rank of rule {}", pair[0].id)));
            }
        }
        Ok(book)
    }

    /// The newest revision.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// All places that have rules, and their rules in order.
    pub fn places(&self) -> impl Iterator<Item = (&Place, &[Arc<Entry>])> {
        self.places.iter().map(|(place, list)| (place, list.as_slice()))
    }

    /// All rules, by chain, namespace and position.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.places.values().flatten()
    }

    /// The rule with an id.
    pub fn rule(&self, id: u64) -> Option<&Arc<Entry>> {
        self.ids.get(&id)
    }

    /// The policies that are stored.
    pub fn policies(&self) -> &BTreeMap<Place, Verdict> {
        &self.policies
    }

    /// The sets, by name.
    pub fn sets(&self) -> impl Iterator<Item = &Arc<Set>> {
        self.sets.values()
    }

    /// The set of a name.
    pub fn set(&self, name: &SetName) -> Option<&Arc<Set>> {
        self.sets.get(name)
    }

    /// How many rules name a set.
    pub fn uses(&self, name: &SetName) -> usize {
        self.uses.get(name).map_or(0, BTreeSet::len)
    }

    /// Rules that name a set.
    pub fn users(&self, name: &SetName) -> impl Iterator<Item = &Arc<Entry>> {
        self.uses.get(name).into_iter().flatten().filter_map(|id| self.ids.get(id))
    }

    /// Begins a change.
    pub fn change(&mut self) -> Changing<'_> {
        Changing::new(self)
    }

    fn list(&self, place: &Place) -> &[Arc<Entry>] {
        self.places.get(place).map_or(&[], Vec::as_slice)
    }

    fn position(&self, entry: &Entry) -> usize {
        self.list(&entry.place()).partition_point(|other| other.rank < entry.rank)
    }

    /// Sets that a rule names must be there, and of the right kind.
    fn check_sets(&self, rule: &Rule) -> Result<(), BookError> {
        for predicate in &rule.predicates {
            let option = predicate.on.option();
            for (name, wanted) in predicate.on.sets() {
                let set = self.sets.get(name).ok_or_else(|| BookError::UnknownSet { option, name: name.clone() })?;
                let kind = set.elements.kind();
                if kind != wanted {
                    return Err(BookError::WrongKind { option, name: name.clone(), wanted, kind });
                }
            }
        }
        Ok(())
    }

    fn note_uses(&mut self, entry: &Entry) {
        for (name, _) in entry.rule.predicates.iter().flat_map(|predicate| predicate.on.sets()) {
            match self.uses.get_mut(name) {
                Some(ids) => drop(ids.insert(entry.id)),
                None => drop(self.uses.insert(name.clone(), BTreeSet::from([entry.id]))),
            }
        }
    }

    fn forget_uses(&mut self, entry: &Entry) {
        for (name, _) in entry.rule.predicates.iter().flat_map(|predicate| predicate.on.sets()) {
            if self.uses.get_mut(name).is_some_and(|ids| ids.remove(&entry.id) && ids.is_empty()) {
                self.uses.remove(name);
            }
        }
    }

    fn insert(&mut self, entry: Arc<Entry>) {
        self.note_uses(&entry);
        let list = self.places.entry(entry.place()).or_default();
        let at = list.partition_point(|other| other.rank < entry.rank);
        list.insert(at, entry.clone());
        self.ids.insert(entry.id, entry);
    }

    fn remove(&mut self, entry: &Entry) {
        self.forget_uses(entry);
        let place = entry.place();
        if let Some(list) = self.places.get_mut(&place) {
            let at = list.partition_point(|other| other.rank < entry.rank);
            if list.get(at).is_some_and(|other| other.id == entry.id) {
                list.remove(at);
            }
            if list.is_empty() {
                self.places.remove(&place);
            }
        }
        self.ids.remove(&entry.id);
    }

    /// Puts rules in, replaces them, or takes them out: the same as one after the other, but faster for many.
    fn put_all(&mut self, rules: &BTreeMap<u64, Option<Arc<Entry>>>) {
        const FEW: usize = 16;
        // All go before any comes: one may take the rank of another.
        let before: Vec<_> = rules.keys().filter_map(|id| self.ids.get(id).cloned()).collect();
        if rules.len() <= FEW {
            before.iter().for_each(|before| self.remove(before));
            rules.values().flatten().for_each(|after| self.insert(after.clone()));
            return;
        }
        let mut touched = BTreeSet::new();
        for before in before {
            self.forget_uses(&before);
            self.ids.remove(&before.id);
            // Most rules of a large change stand in few places.
            if !touched.iter().any(|(chain, selector)| is_at(&before, *chain, selector)) {
                touched.insert(before.place());
            }
        }
        for place in touched {
            if let Some(list) = self.places.get_mut(&place) {
                list.retain(|entry| !rules.contains_key(&entry.id));
                if list.is_empty() {
                    self.places.remove(&place);
                }
            }
        }
        let mut touched: Vec<Place> = Vec::new();
        for after in rules.values().flatten() {
            self.note_uses(after);
            self.ids.insert(after.id, after.clone());
            if !touched.last().is_some_and(|(chain, selector)| is_at(after, *chain, selector)) {
                touched.push(after.place());
            }
            let place = touched.last().expect("one was pushed");
            match self.places.get_mut(place) {
                Some(list) => list.push(after.clone()),
                None => drop(self.places.insert(place.clone(), vec![after.clone()])),
            }
        }
        touched.sort_unstable();
        touched.dedup();
        for place in touched {
            // Nearly sorted, as a rule.
            self.places.entry(place).or_default().sort_by_key(|entry| entry.rank);
        }
    }
}

fn is_at(entry: &Entry, chain: Chain, namespace: &Selector) -> bool {
    entry.rule.chain == chain && entry.rule.namespace == *namespace
}
