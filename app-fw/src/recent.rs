//! A bounded table that forgets what was not used for long, without ever stopping to tidy up.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::mem;

use ahash::RandomState;

/// Keeps at least the last `capacity` entries that were put or used, at most twice as many.
///
/// Keys are what senders choose: the hash is keyed anew for each table, and faster than the standard library's.
///
/// Entries live in a young and an old half. A look-up moves an entry to the young half; when that is full, it becomes
/// the old one and what was old is forgotten.
#[derive(Debug)]
pub struct Recent<K, V> {
    young: HashMap<K, V, RandomState>,
    old: HashMap<K, V, RandomState>,
    capacity: usize,
}

impl<K: Hash + Eq, V> Recent<K, V> {
    /// `capacity` entries.
    pub fn new(capacity: usize) -> Recent<K, V> {
        Recent { young: HashMap::default(), old: HashMap::default(), capacity: capacity.max(1) }
    }

    /// Looks up an entry, which counts as use.
    pub fn get<Q>(&mut self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if !self.young.contains_key(key) {
            let (key, value) = self.old.remove_entry(key)?;
            self.put(key, value);
        }
        self.young.get(key)
    }

    /// Puts an entry in the place of any older one.
    pub fn put(&mut self, key: K, value: V) {
        if self.young.len() >= self.capacity && !self.young.contains_key(&key) {
            self.old = mem::take(&mut self.young);
        }
        self.old.remove(&key);
        self.young.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays() {
        let mut recent = Recent::new(10);
        for n in 0..1000 {
            recent.put(n, n);
            assert_eq!(recent.get(&0), Some(&0), "after {n}");
            assert!(recent.young.len() + recent.old.len() <= 20);
            for back in 0..10.min(n) {
                assert!(recent.young.contains_key(&(n - back)) || recent.old.contains_key(&(n - back)));
            }
        }
        assert_eq!(recent.get(&500), None);
    }

    #[test]
    fn a_new_value_replaces_an_old_one() {
        let mut recent = Recent::new(1);
        recent.put(1, 'a');
        recent.put(2, 'b');
        recent.put(1, 'c');
        assert_eq!(recent.get(&1), Some(&'c'));
        assert_eq!(recent.get(&2), Some(&'b'));
        assert_eq!(recent.get(&1), Some(&'c'));
    }
}
