//! How many may talk at once.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Limits;
use super::connection::Peer;

/// Counts connections.
#[derive(Clone)]
pub(super) struct Admission {
    limits: Limits,
    census: Arc<Mutex<Census>>,
}

#[derive(Default)]
struct Census {
    all: usize,
    unprivileged: usize,
    by_user: HashMap<u32, usize>,
    /// Users who are sending long requests.
    long: HashSet<u32>,
}

/// The right to be connected; given back when dropped.
pub(super) struct Seat {
    peer: Peer,
    census: Arc<Mutex<Census>>,
}

/// The right to send a long request; given back when dropped.
pub(super) struct Patience {
    uid: u32,
    census: Arc<Mutex<Census>>,
}

fn lock(census: &Mutex<Census>) -> MutexGuard<'_, Census> {
    // No code that holds the lock can panic half-way.
    census.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Admission {
    pub(super) fn new(limits: Limits) -> Admission {
        Admission { limits, census: Arc::default() }
    }

    /// A seat for `peer`, or why there is none.
    pub(super) fn admit(&self, peer: Peer) -> Result<Seat, &'static str> {
        let mut census = lock(&self.census);
        if census.all >= self.limits.connections {
            return Err("too many control connections");
        }
        if !peer.is_root() {
            if census.unprivileged >= self.limits.unprivileged {
                return Err("too many control connections of users other than root");
            }
            let of_user = census.by_user.entry(peer.uid).or_default();
            if *of_user >= self.limits.per_user {
                return Err("too many control connections of this user");
            }
            *of_user += 1;
            census.unprivileged += 1;
        }
        census.all += 1;
        Ok(Seat { peer, census: self.census.clone() })
    }
}

impl Admission {
    /// Lets `peer`, who is not root, send a long request, or says why not.
    pub(super) fn hear(&self, peer: Peer) -> Result<Patience, &'static str> {
        let mut census = lock(&self.census);
        if census.long.len() >= self.limits.long || !census.long.insert(peer.uid) {
            return Err("too many long requests of users other than root");
        }
        Ok(Patience { uid: peer.uid, census: self.census.clone() })
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        lock(&self.census).long.remove(&self.uid);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut census = lock(&self.census);
        census.all -= 1;
        if !self.peer.is_root() {
            census.unprivileged -= 1;
            if let Some(of_user) = census.by_user.get_mut(&self.peer.uid) {
                *of_user -= 1;
                if *of_user == 0 {
                    census.by_user.remove(&self.peer.uid);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_can_send_much_at_once() {
        let admission = Admission::new(Limits { long: 2, ..super::super::LIMITS });
        let hear = |uid| admission.hear(Peer { uid, pid: None });
        let first = hear(1).unwrap();
        assert!(hear(1).is_err());
        let _second = hear(2).unwrap();
        assert!(hear(3).is_err());
        drop(first);
        hear(1).unwrap();
    }

    #[test]
    fn nobody_can_take_every_seat() {
        let limits = Limits { connections: 6, unprivileged: 4, per_user: 2, ..super::super::LIMITS };
        let admission = Admission::new(limits);
        let admit = |uid| admission.admit(Peer { uid, pid: None });
        let first = [admit(1).unwrap(), admit(1).unwrap()];
        assert!(admit(1).is_err());
        let second = [admit(2).unwrap(), admit(3).unwrap()];
        assert!(admit(4).is_err());
        let root = [admit(0).unwrap(), admit(0).unwrap()];
        assert!(admit(0).is_err());
        drop((first, root));
        assert!(admit(1).is_ok());
        drop(second);
        let census = lock(&admission.census);
        assert_eq!((census.all, census.unprivileged, census.by_user.len()), (0, 0, 0));
    }
}
