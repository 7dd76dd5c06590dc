//! Changing the book: all of a change, or nothing.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use shared::control::Edit;
use shared::document::{At, Contradiction, Document};
use shared::set::{Elements, Set, SetName};
use shared::{Match, Rule, Selector, Verdict};

use super::{Book, BookError, Delta, Entry, Hits, MAX_ID, Past, Place, WasSet, members, ranks};

/// What became of an edit.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A rule was added, replaced or moved.
    Rule {
        /// So it is now.
        entry: Arc<Entry>,
        /// Position in its place, 0 first.
        position: usize,
    },
    /// So many rules were deleted.
    Deleted(usize),
    /// The policy was set.
    PolicySet,
    /// The set has so many elements now.
    SetHas(usize),
    /// The set is gone.
    SetDeleted,
}

/// A change under way. Unless it is kept, all of it is taken back when this is dropped, whatever the reason.
#[derive(Debug)]
pub struct Changing<'a> {
    book: &'a mut Book,
    delta: Delta,
    last_id: u64,
    kept: bool,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let delta = std::mem::take(&mut self.delta);
        self.book.put_all(&delta.rules.into_iter().map(|(id, change)| (id, change.before)).collect());
        for (place, (before, _)) in delta.policies {
            put(&mut self.book.policies, place, before);
        }
        for (name, change) in delta.sets {
            put(&mut self.book.sets, name, change.before);
        }
        self.book.last_id = self.last_id;
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> Option<V> {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    }
}

impl<'a> Changing<'a> {
    pub(super) fn new(book: &'a mut Book) -> Changing<'a> {
        let last_id = book.last_id;
        Changing { book, delta: Delta::default(), last_id, kept: false }
    }

    /// The book as it is after what was done so far.
    pub fn book(&self) -> &Book {
        self.book
    }

    /// What is different so far.
    pub fn delta(&self) -> &Delta {
        &self.delta
    }

    /// The highest id given so far.
    pub fn last_id(&self) -> u64 {
        self.book.last_id
    }

    /// Makes it so for good, as this revision. What is different then.
    pub fn keep(mut self, revision: u64) -> Delta {
        self.kept = true;
        self.book.revision = revision;
        std::mem::take(&mut self.delta)
    }

    /// Makes one edit. Namespaces are resolved already.
    ///
    /// # Errors
    /// It makes no sense; then the whole change should be dropped.
    pub fn edit(&mut self, edit: Edit) -> Result<Outcome, BookError> {
        match edit {
            Edit::Add { rule, position } => self.add(rule, position),
            Edit::Replace { id, rule } => self.replace(id, rule),
            Edit::Move { id, position } => self.move_to(id, position),
            Edit::Delete { id } => {
                self.entry(id)?;
                self.put(id, None, false);
                Ok(Outcome::Deleted(1))
            }
            Edit::DeleteAt { chain, namespace, position } => {
                let list = self.book.list(&(chain, namespace.clone()));
                let Some(entry) = list.get(position) else {
                    return Err(BookError::NoRuleAt { chain, namespace, position, length: list.len() });
                };
                let id = entry.id;
                self.put(id, None, false);
                Ok(Outcome::Deleted(1))
            }
            Edit::Flush { chain, namespace } => {
                let is_meant = |(of, at): &Place| chain.is_none_or(|chain| chain == *of) && namespace == *at;
                let lists = self.book.places.iter().filter(|(place, _)| is_meant(place)).map(|(_, list)| list);
                let gone: BTreeMap<_, _> = lists.flatten().map(|entry| (entry.id, None)).collect();
                let count = gone.len();
                self.put_all(gone);
                Ok(Outcome::Deleted(count))
            }
            Edit::Policy { chain, namespace, verdict } => {
                check_selector(&namespace)?;
                if verdict == Verdict::Reject {
                    return Err(BookError::PolicyRejects);
                }
                self.put_policy((chain, namespace), Some(verdict));
                Ok(Outcome::PolicySet)
            }
            Edit::CreateSet { set } => {
                if self.book.sets.contains_key(&set.name) {
                    return Err(BookError::SetExists(set.name));
                }
                let count = set.elements.len();
                self.put_set(set.name.clone(), Some(Arc::new(set)));
                Ok(Outcome::SetHas(count))
            }
            Edit::DeleteSet { name } => {
                self.set(&name)?;
                match self.book.uses(&name) {
                    0 => self.put_set(name, None),
                    rules => return Err(BookError::SetInUse { name, rules }),
                }
                Ok(Outcome::SetDeleted)
            }
            Edit::AddElements { name, elements } => self.with_elements(name, &elements, |inside, more| {
                members::add(inside, more);
                Ok(())
            }),
            Edit::DeleteElements { name, elements } => {
                let called = name.clone();
                self.with_elements(name, &elements, |inside, these| {
                    members::remove(inside, &these)
                        .map_err(|element| BookError::NotInSet { name: called.clone(), element })
                })
            }
            Edit::FlushSet { name } => {
                let set = self.set(&name)?;
                let elements = Elements::none(set.elements.kind());
                self.put_set(name.clone(), Some(Arc::new(Set { name, elements })));
                Ok(Outcome::SetHas(0))
            }
        }
    }

    /// Makes everything as a document says. Namespaces are resolved already. Rules that had their end by `now` are left out.
    ///
    /// # Errors
    /// The document contradicts itself; the index of the rule if it is about one.
    pub fn restore(&mut self, document: Document, now: Timestamp) -> Result<(), (Option<usize>, BookError)> {
        if let Some(Contradiction { at, message, .. }) = document.contradictions().into_iter().next() {
            let index = if let At::Rule(index) = at { Some(index) } else { None };
            return Err((index, BookError::Contradiction(message)));
        }
        let Document { sets, policies, rules } = document;
        for policy in &policies {
            check_selector(&policy.namespace).map_err(|error| (None, error))?;
        }
        let given = rules.iter().filter_map(|rule| rule.id).filter(|id| *id <= MAX_ID).max();
        let mut last_id = self.book.last_id.max(given.unwrap_or(0));
        let mut wanted: BTreeMap<Place, Vec<(u64, Rule)>> = BTreeMap::new();
        let mut ids = HashSet::with_capacity(rules.len());
        for (index, numbered) in rules.into_iter().enumerate() {
            check_rule(&numbered.rule).map_err(|error| (Some(index), error))?;
            if numbered.rule.until.is_some_and(|until| until <= now) {
                continue;
            }
            let id = numbered.id.unwrap_or_else(|| {
                last_id += 1;
                last_id
            });
            if id > MAX_ID {
                return Err((Some(index), BookError::TooHigh));
            }
            ids.insert(id);
            let place = (numbered.rule.chain, numbered.rule.namespace.clone());
            wanted.entry(place).or_default().push((id, numbered.rule));
        }
        self.book.last_id = last_id;
        let mut changes: BTreeMap<u64, Option<Arc<Entry>>> =
            self.book.ids.keys().filter(|id| !ids.contains(id)).map(|id| (*id, None)).collect();
        for (place, list) in wanted {
            self.restore_place(&place, list, &mut changes);
        }
        self.put_all(changes);

        let kept: HashSet<Place> = policies.iter().map(|policy| (policy.chain, policy.namespace.clone())).collect();
        let gone: Vec<_> = self.book.policies.keys().filter(|place| !kept.contains(place)).cloned().collect();
        gone.into_iter().for_each(|place| self.put_policy(place, None));
        for policy in policies {
            self.put_policy((policy.chain, policy.namespace), Some(policy.verdict));
        }
        let kept: HashSet<&SetName> = sets.iter().map(|set| &set.name).collect();
        let gone: Vec<_> = self.book.sets.keys().filter(|name| !kept.contains(name)).cloned().collect();
        gone.into_iter().for_each(|name| self.put_set(name, None));
        for set in sets {
            self.put_set(set.name.clone(), Some(Arc::new(set)));
        }
        Ok(())
    }

    /// What has to change for the rules of a place to be `list`. If they stand in their old order, they keep their ranks.
    fn restore_place(&self, place: &Place, list: Vec<(u64, Rule)>, changes: &mut BTreeMap<u64, Option<Arc<Entry>>>) {
        let is_here = |entry: &&Arc<Entry>| entry.rule.chain == place.0 && entry.rule.namespace == place.1;
        let old_rank = |id: &u64| self.book.ids.get(id).filter(is_here).map(|entry| entry.rank);
        let ranks: Option<Vec<i64>> = list.iter().map(|(id, _)| old_rank(id)).collect();
        let ranks = ranks.filter(|ranks| ranks.is_sorted_by(|a, b| a < b));
        for (index, (id, rule)) in list.into_iter().enumerate() {
            // A ruleset of 2^29 rules does not fit into a request.
            let rank = ranks.as_ref().map_or(index as i64 * ranks::GAP, |ranks| ranks[index]);
            let old = self.book.ids.get(&id);
            if old.is_some_and(|old| old.rank == rank && *old.rule == rule) {
                continue;
            }
            let hits = old.map_or_else(Arc::default, |old| old.hits.clone());
            changes.insert(id, Some(Arc::new(Entry { id, rank, rule: Arc::new(rule), hits })));
        }
    }

    /// Makes everything as it was before a change that was the newest. What had its end by `now` stays away.
    ///
    /// # Errors
    /// What was stored of the past makes no sense.
    pub fn take_back(&mut self, past: Past<Rule>, now: Timestamp) -> Result<(), String> {
        let mut rules = BTreeMap::new();
        let mut moved = Vec::new();
        for was in past.rules {
            if was.moved {
                moved.push(was.id);
            }
            let entry = was.was.filter(|(.., rule)| rule.until.is_none_or(|until| until > now)).map(
                |(rank, packets, bytes, rule)| {
                    // It never stopped counting if it is there still.
                    let hits = self
                        .book
                        .rule(was.id)
                        .map_or_else(|| Arc::new(Hits::stored(packets, bytes)), |entry| entry.hits.clone());
                    Arc::new(Entry { id: was.id, rank, rule: Arc::new(rule), hits })
                },
            );
            rules.insert(was.id, entry);
        }
        self.put_all(rules);
        for id in moved {
            if let Some(change) = self.delta.rules.get_mut(&id) {
                change.moved = true;
            }
        }
        for (chain, namespace, verdict) in past.policies {
            self.put_policy((chain, namespace), verdict);
        }
        past.sets.into_iter().try_for_each(|was| self.take_back_set(was))
    }

    fn take_back_set(&mut self, was: WasSet) -> Result<(), String> {
        let WasSet { name, kind, missing, added } = was;
        let Some(kind) = kind else {
            self.put_set(name, None);
            return Ok(());
        };
        let read = |texts: &[String]| {
            Elements::parse(kind, texts.iter().map(String::as_str)).map_err(|error| error.to_string())
        };
        let mut elements = match self.book.sets.get(&name) {
            Some(set) if set.elements.kind() == kind => {
                let mut elements = set.elements.clone();
                members::remove(&mut elements, &read(&added)?)?;
                elements
            }
            _ => Elements::none(kind),
        };
        members::add(&mut elements, read(&missing)?);
        self.put_set(name.clone(), Some(Arc::new(Set { name, elements })));
        Ok(())
    }

    /// Deletes rules.
    pub fn delete(&mut self, ids: impl IntoIterator<Item = u64>) {
        self.put_all(ids.into_iter().map(|id| (id, None)).collect());
    }

    fn entry(&self, id: u64) -> Result<Arc<Entry>, BookError> {
        self.book.ids.get(&id).cloned().ok_or(BookError::NoSuchRule(id))
    }

    fn set(&self, name: &SetName) -> Result<&Arc<Set>, BookError> {
        self.book.sets.get(name).ok_or_else(|| BookError::NoSuchSet(name.clone()))
    }

    fn add(&mut self, rule: Rule, position: Option<usize>) -> Result<Outcome, BookError> {
        check_rule(&rule)?;
        self.book.check_sets(&rule)?;
        let place = (rule.chain, rule.namespace.clone());
        let length = self.book.list(&place).len();
        let position = position.unwrap_or(length);
        if position > length {
            let (chain, namespace) = place;
            return Err(BookError::OutOfRange { chain, namespace, position, length });
        }
        if self.book.last_id >= MAX_ID {
            return Err(BookError::TooHigh);
        }
        self.book.last_id += 1;
        let (id, rank) = (self.book.last_id, self.rank_at(&place, position));
        let entry = Arc::new(Entry { id, rank, rule: Arc::new(rule), hits: Arc::default() });
        self.put(id, Some(entry.clone()), false);
        Ok(Outcome::Rule { entry, position })
    }

    fn replace(&mut self, id: u64, rule: Rule) -> Result<Outcome, BookError> {
        let old = self.entry(id)?;
        check_rule(&rule)?;
        self.book.check_sets(&rule)?;
        let place = (rule.chain, rule.namespace.clone());
        let rank = if place == old.place() { old.rank } else { self.rank_at(&place, self.book.list(&place).len()) };
        let entry = Arc::new(Entry { id, rank, rule: Arc::new(rule), hits: old.hits.clone() });
        self.put(id, Some(entry.clone()), false);
        Ok(Outcome::Rule { position: self.book.position(&entry), entry })
    }

    fn move_to(&mut self, id: u64, position: usize) -> Result<Outcome, BookError> {
        let entry = self.entry(id)?;
        let place = entry.place();
        let length = self.book.list(&place).len();
        if position >= length {
            let (chain, namespace) = place;
            return Err(BookError::OutOfRange { chain, namespace, position, length });
        }
        if self.book.position(&entry) == position {
            return Ok(Outcome::Rule { entry, position });
        }
        self.put(id, None, true);
        let rank = self.rank_at(&place, position);
        let entry = Arc::new(Entry { id, rank, rule: entry.rule.clone(), hits: entry.hits.clone() });
        self.put(id, Some(entry.clone()), true);
        Ok(Outcome::Rule { entry, position })
    }

    fn with_elements(
        &mut self,
        name: SetName,
        texts: &[String],
        change: impl FnOnce(&mut Elements, Elements) -> Result<(), BookError>,
    ) -> Result<Outcome, BookError> {
        let set = self.set(&name)?;
        let these = Elements::parse(set.elements.kind(), texts.iter().map(String::as_str))
            .map_err(|error| BookError::Element(error.to_string()))?;
        let mut elements = set.elements.clone();
        change(&mut elements, these)?;
        let count = elements.len();
        self.put_set(name.clone(), Some(Arc::new(Set { name, elements })));
        Ok(Outcome::SetHas(count))
    }

    fn put(&mut self, id: u64, after: Option<Arc<Entry>>, moved: bool) {
        let before = self.book.ids.get(&id).cloned();
        before.iter().for_each(|before| self.book.remove(before));
        after.iter().for_each(|after| self.book.insert(after.clone()));
        self.delta.note_rule(id, before, after, moved);
    }

    pub(super) fn put_all(&mut self, rules: BTreeMap<u64, Option<Arc<Entry>>>) {
        let before: Vec<_> = rules.keys().map(|id| self.book.ids.get(id).cloned()).collect();
        self.book.put_all(&rules);
        for ((id, after), before) in rules.into_iter().zip(before) {
            self.delta.note_rule(id, before, after, false);
        }
    }

    fn put_policy(&mut self, place: Place, after: Option<Verdict>) {
        let before = put(&mut self.book.policies, place.clone(), after);
        self.delta.note_policy(place, before, after);
    }

    fn put_set(&mut self, name: SetName, after: Option<Arc<Set>>) {
        let before = put(&mut self.book.sets, name.clone(), after.clone());
        self.delta.note_set(name, before, after);
    }
}

fn check_selector(selector: &Selector) -> Result<(), BookError> {
    match selector {
        Selector::File(_) => Err(BookError::Unresolved(selector.clone())),
        _ => Ok(()),
    }
}

/// What a rule must be that is stored, apart from its sets.
fn check_rule(rule: &Rule) -> Result<(), BookError> {
    check_selector(&rule.namespace)?;
    for (index, predicate) in rule.predicates.iter().enumerate() {
        let option = predicate.on.option();
        let kind = std::mem::discriminant(&predicate.on);
        let is_same =
            |other: &shared::Predicate| other.negated == predicate.negated && std::mem::discriminant(&other.on) == kind;
        // Its text would be read back as one list, which means something else.
        if rule.predicates[..index].iter().any(is_same) {
            return Err(BookError::Twice(option));
        }
        if let Match::Netns(list) = &predicate.on {
            list.elements().try_for_each(check_selector)?;
        }
    }
    Ok(())
}
