//! Places for work that takes long, which nobody can keep to himself.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Who works and who waits. One user has at most a quarter of the places; those that must wait are served in order, first
/// the one whose user may have another place.
#[derive(Debug)]
pub struct Crowd<U, J> {
    places: usize,
    working: HashMap<U, usize>,
    waiting: VecDeque<(U, J)>,
}

impl<U: Copy + Eq + Hash, J> Crowd<U, J> {
    /// Nobody is there yet.
    pub fn new(places: usize) -> Crowd<U, J> {
        Crowd { places, working: HashMap::new(), waiting: VecDeque::new() }
    }

    /// The job, if it may begin now. Else it waits.
    pub fn enter(&mut self, user: U, job: J) -> Option<J> {
        let working: usize = self.working.values().sum();
        if working < self.places && self.may_have_another(user) {
            *self.working.entry(user).or_default() += 1;
            return Some(job);
        }
        self.waiting.push_back((user, job));
        None
    }

    /// A job of `user` has ended. Another may begin now, if it is there.
    pub fn leave(&mut self, user: U) -> Option<(U, J)> {
        if let Some(working) = self.working.get_mut(&user) {
            *working -= 1;
            if *working == 0 {
                self.working.remove(&user);
            }
        }
        let next = self.waiting.iter().position(|(user, _)| self.may_have_another(*user))?;
        let (user, job) = self.waiting.remove(next)?;
        *self.working.entry(user).or_default() += 1;
        Some((user, job))
    }

    /// Of those that wait only the wanted ones stay.
    pub fn keep(&mut self, wanted: impl Fn(&J) -> bool) {
        self.waiting.retain(|(_, job)| wanted(job));
    }

    fn may_have_another(&self, user: U) -> bool {
        self.working.get(&user).is_none_or(|working| *working < self.places / 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_more_than_a_quarter() {
        let mut crowd = Crowd::new(8);
        assert_eq!((crowd.enter('a', 1), crowd.enter('a', 2), crowd.enter('a', 3)), (Some(1), Some(2), None));
        assert_eq!(crowd.enter('b', 4), Some(4));
        assert_eq!(crowd.leave('b'), None, "a has his quarter");
        assert_eq!(crowd.leave('a'), Some(('a', 3)));
        assert_eq!((crowd.leave('a'), crowd.leave('a')), (None, None));
        assert!(crowd.working.is_empty() && crowd.waiting.is_empty());
    }

    #[test]
    fn who_waits_is_served_in_order_as_far_as_users_have_room() {
        let mut crowd = Crowd::new(8);
        for user in ['a', 'b', 'c', 'd'] {
            assert!(crowd.enter(user, 0).is_some() && crowd.enter(user, 0).is_some());
        }
        for (job, user) in ['a', 'e', 'b', 'e', 'g', 'f', 'e'].into_iter().enumerate() {
            assert_eq!(crowd.enter(user, job), None, "all places are taken");
        }
        crowd.keep(|job| *job != 4);
        assert_eq!(crowd.leave('c'), Some(('e', 1)), "a has his quarter, though he came first");
        assert_eq!(crowd.leave('a'), Some(('a', 0)));
        assert_eq!(crowd.leave('d'), Some(('e', 3)));
        assert_eq!(crowd.leave('d'), Some(('f', 5)), "b and e have theirs");
        assert_eq!(crowd.leave('f'), None);
        assert_eq!(crowd.leave('e'), Some(('e', 6)));
        assert_eq!(crowd.leave('b'), Some(('b', 2)));
        assert!(crowd.waiting.is_empty());
    }
}
