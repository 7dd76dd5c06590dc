//! What there is.

use std::collections::HashMap;
use std::sync::Arc;

use shared::control::{Done, ListedPolicy, ListedRule, ListedSet, Listing};
use shared::{Chain, Selector};

use crate::book::{Book, Entry, Outcome};
use crate::matcher::Defaults;
use crate::namespaces::Namespaces;

/// Lists rules: knows which namespaces exist.
pub(super) struct Lister {
    namespaces: Arc<Namespaces>,
    exist: HashMap<Selector, bool>,
}

impl Lister {
    pub(super) fn new(namespaces: Arc<Namespaces>) -> Lister {
        Lister { namespaces, exist: HashMap::new() }
    }

    fn rule(&mut self, entry: &Entry, position: usize) -> ListedRule {
        let selector = &entry.rule.namespace;
        let exists = match self.exist.get(selector) {
            Some(exists) => *exists,
            None => *self.exist.entry(selector.clone()).or_insert(self.namespaces.exists(selector)),
        };
        let (packets, bytes) = entry.hits.get();
        ListedRule { id: entry.id, position, dormant: !exists, packets, bytes, rule: (*entry.rule).clone() }
    }

    /// What a client is told of an edit.
    pub(super) fn done(&mut self, outcome: Outcome) -> Done {
        match outcome {
            Outcome::Rule { entry, position } => Done::Rule(Box::new(self.rule(&entry, position))),
            Outcome::Deleted(count) => Done::Deleted(count),
            Outcome::PolicySet => Done::PolicySet,
            Outcome::SetHas(count) => Done::SetHas(count),
            Outcome::SetDeleted => Done::SetDeleted,
        }
    }
}

/// What is to be listed: taken from the book quickly, so that nobody waits for it long.
pub(super) struct Extract {
    revision: u64,
    places: Vec<Vec<Arc<Entry>>>,
    policies: Vec<ListedPolicy>,
    sets: Vec<(Arc<shared::set::Set>, usize)>,
}

impl Extract {
    pub(super) fn new(book: &Book, chain: Option<Chain>, namespace: Option<&Selector>, defaults: Defaults) -> Extract {
        let is_wanted = |of: Chain, at: &Selector| chain.is_none_or(|c| c == of) && namespace.is_none_or(|n| n == at);
        let mut places: Vec<_> = book.places().filter(|((of, at), _)| is_wanted(*of, at)).collect();
        // As packets meet them: what names a single namespace comes before what names all.
        places.sort_by(|((of, at), _), ((other, there), _)| of.cmp(other).then_with(|| there.cmp(at)));
        let places = places.into_iter().map(|(_, list)| list.to_vec()).collect();
        let mut policies: Vec<ListedPolicy> = book
            .policies()
            .iter()
            .map(|((chain, namespace), verdict)| ListedPolicy {
                chain: *chain,
                namespace: namespace.clone(),
                verdict: *verdict,
                stored: true,
            })
            .collect();
        for chain in Chain::ALL {
            if !policies.iter().any(|policy| policy.chain == chain && policy.namespace == Selector::Any) {
                let verdict = defaults.of(chain);
                policies.push(ListedPolicy { chain, namespace: Selector::Any, verdict, stored: false });
            }
        }
        // What holds in any namespace holds in the one asked for.
        policies.retain(|ListedPolicy { chain: of, namespace: at, .. }| {
            is_wanted(*of, at) || *at == Selector::Any && chain.is_none_or(|chain| chain == *of)
        });
        policies.sort_by(|a, b| (a.chain, &a.namespace).cmp(&(b.chain, &b.namespace)));
        let sets = book.sets().map(|set| (set.clone(), book.uses(&set.name))).collect();
        Extract { revision: book.revision(), places, policies, sets }
    }

    /// Writes it out.
    pub(super) fn listing(self, mut lister: Lister) -> Listing {
        let mut rules = Vec::with_capacity(self.places.iter().map(Vec::len).sum());
        for list in &self.places {
            rules.extend(list.iter().enumerate().map(|(position, entry)| lister.rule(entry, position)));
        }
        let sets = self.sets.into_iter().map(|(set, used_by)| ListedSet { set: (*set).clone(), used_by }).collect();
        Listing { revision: self.revision, rules, policies: self.policies, sets }
    }
}
