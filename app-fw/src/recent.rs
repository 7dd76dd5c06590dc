//! A bounded table that forgets what was not used for long.

use std::borrow::Borrow;
use std::hash::Hash;

use ahash::RandomState;

/// Entries that share a place. A new one takes the room of the one that was not used for longest.
const WAYS: usize = 8;

/// Keeps up to `capacity` entries. Those that fall into the same set of eight compete for its room, so that one may be
/// forgotten although there is room elsewhere: for tables whose entries can be found again.
///
/// Every operation looks at one set: none ever stops to grow or to tidy up. Memory of a set is taken when it gets its first
/// entry. Keys are what senders choose, so the hash is keyed anew for each table.
#[derive(Debug)]
pub struct Recent<K, V> {
    sets: Vec<Slot<K, V>>,
    hasher: RandomState,
    /// Counts uses.
    now: u32,
}

/// A set, once something was put into it.
type Slot<K, V> = Option<Box<Set<K, V>>>;

#[derive(Debug)]
struct Set<K, V> {
    /// Bits of each entry's hash that do not choose the set.
    tags: [u32; WAYS],
    used: [u32; WAYS],
    entries: [Option<(K, V)>; WAYS],
}

impl<K: Eq, V> Set<K, V> {
    fn new() -> Set<K, V> {
        Set { tags: [0; WAYS], used: [0; WAYS], entries: std::array::from_fn(|_| None) }
    }

    fn find<Q>(&self, tag: u32, key: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        (0..WAYS).find(|way| {
            self.tags[*way] == tag && self.entries[*way].as_ref().is_some_and(|(known, _)| known.borrow() == key)
        })
    }

    /// A free place, or that of the entry which was not used for longest.
    fn room(&self, now: u32) -> usize {
        let age = |way: &usize| if self.entries[*way].is_none() { u32::MAX } else { now.wrapping_sub(self.used[*way]) };
        (0..WAYS).max_by_key(age).unwrap_or(0)
    }
}

impl<K: Hash + Eq, V> Recent<K, V> {
    /// A table of at least `capacity` entries.
    pub fn new(capacity: usize) -> Recent<K, V> {
        let sets = capacity.div_ceil(WAYS).max(1).next_power_of_two();
        Recent { sets: (0..sets).map(|_| None).collect(), hasher: RandomState::new(), now: 0 }
    }

    fn place<Q: Hash + ?Sized>(&self, key: &Q) -> (usize, u32) {
        let hash = self.hasher.hash_one(key);
        (hash as usize & (self.sets.len() - 1), (hash >> 32) as u32)
    }

    /// Looks up an entry, which counts as use.
    pub fn get<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let (set, tag) = self.place(key);
        let set = self.sets[set].as_mut()?;
        let way = set.find(tag, key)?;
        self.now = self.now.wrapping_add(1);
        set.used[way] = self.now;
        set.entries[way].as_mut().map(|(_, value)| value)
    }

    /// Looks at an entry, which does not count as use.
    pub fn peek<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let (set, tag) = self.place(key);
        let set = self.sets[set].as_ref()?;
        set.entries[set.find(tag, key)?].as_ref().map(|(_, value)| value)
    }

    /// Puts an entry in the place of any older one.
    pub fn put(&mut self, key: K, value: V) {
        let (set, tag) = self.place(&key);
        self.now = self.now.wrapping_add(1);
        let set = self.sets[set].get_or_insert_with(|| Box::new(Set::new()));
        let way = set.find(tag, &key).unwrap_or_else(|| set.room(self.now));
        set.tags[way] = tag;
        set.used[way] = self.now;
        set.entries[way] = Some((key, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count<K, V>(recent: &Recent<K, V>) -> usize {
        recent.sets.iter().flatten().flat_map(|set| &set.entries).flatten().count()
    }

    #[test]
    fn what_is_used_stays() {
        let mut recent = Recent::new(64);
        for n in 0..10_000 {
            recent.put(n, n);
            assert_eq!(recent.get(&0), Some(&mut 0), "after {n}");
            assert_eq!(recent.get(&n), Some(&mut { n }));
            assert!(count(&recent) <= 64);
        }
        assert_eq!(count(&recent), 64);
        assert_eq!(recent.get(&500), None);
    }

    #[test]
    fn half_full_it_keeps_nearly_all() {
        let mut recent = Recent::new(4096);
        (0..2048).for_each(|n| recent.put(n, n));
        let kept = (0..2048).filter(|n| recent.get(n).is_some()).count();
        // Poisson: a set of eight with four expected overflows in 2 of 100 cases. 1900 is far beyond chance.
        assert!(kept > 1900, "{kept}");
    }

    #[test]
    fn a_new_value_replaces_an_old_one() {
        let mut recent = Recent::new(1);
        recent.put(1, 'a');
        recent.put(2, 'b');
        recent.put(1, 'c');
        assert_eq!(recent.get(&1), Some(&mut 'c'));
        assert_eq!(recent.get(&2), Some(&mut 'b'));
        (3..10).for_each(|n| recent.put(n, 'd'));
        assert_eq!(recent.get(&1), None, "it was not used for longest");
        assert_eq!(recent.get(&2), Some(&mut 'b'));
    }
}
