//! Announcements: whoever subscribed is told of changes and packets. Nobody waits for a reader; what is too much for one is
//! left out, counted, and told.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use shared::control::{self, Announcement};
use tokio::sync::Notify;

/// Bytes that may wait for one reader.
const MAX_WAITING: usize = 1 << 20;

/// Where announcements go to.
#[derive(Debug, Default)]
pub struct Hub {
    readers: Mutex<Vec<Weak<Inbox>>>,
    /// How many of them want packets.
    packets: Arc<AtomicUsize>,
}

/// A reader's end. It is told no more when this is dropped.
#[derive(Debug)]
pub struct Subscription(Arc<Inbox>);

#[derive(Debug)]
struct Inbox {
    changes: bool,
    packets: bool,
    packet_readers: Arc<AtomicUsize>,
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    frames: VecDeque<Arc<[u8]>>,
    bytes: usize,
    /// Left out since the last frame that waits.
    missed: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that holds the lock can panic half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// Begins to tell a reader.
    pub fn subscribe(&self, changes: bool, packets: bool) -> Subscription {
        self.packets.fetch_add(usize::from(packets), Ordering::Relaxed);
        let inbox = Arc::new(Inbox {
            changes,
            packets,
            packet_readers: self.packets.clone(),
            waiting: Mutex::default(),
            arrived: Notify::new(),
        });
        lock(&self.readers).push(Arc::downgrade(&inbox));
        Subscription(inbox)
    }

    /// Tells of a change.
    pub fn changed(&self, make: impl FnOnce() -> Announcement) {
        self.tell(make, |inbox| inbox.changes);
    }

    /// Tells of a packet or a socket. Costs a load while nobody wants to know.
    pub fn packet(&self, make: impl FnOnce() -> Announcement) {
        if self.packets.load(Ordering::Relaxed) > 0 {
            self.tell(make, |inbox| inbox.packets);
        }
    }

    fn tell(&self, make: impl FnOnce() -> Announcement, is_wanted: impl Fn(&Inbox) -> bool) {
        let mut readers = lock(&self.readers);
        readers.retain(|reader| reader.strong_count() > 0);
        let wanting: Vec<Arc<Inbox>> = readers.iter().filter_map(Weak::upgrade).filter(|it| is_wanted(it)).collect();
        if wanting.is_empty() {
            return;
        }
        let frame = frame(&make());
        // With the list still locked, so that all are told in the same order.
        wanting.iter().for_each(|inbox| inbox.put(&frame));
    }
}

impl Inbox {
    fn put(&self, frame: &Arc<[u8]>) {
        let mut waiting = lock(&self.waiting);
        if waiting.bytes + frame.len() > MAX_WAITING {
            waiting.missed += 1;
            return;
        }
        if waiting.missed > 0 {
            let missed = missed(std::mem::take(&mut waiting.missed));
            waiting.push(missed);
        }
        waiting.push(frame.clone());
        drop(waiting);
        self.arrived.notify_one();
    }
}

impl Waiting {
    fn push(&mut self, frame: Arc<[u8]>) {
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    fn pop(&mut self) -> Option<Arc<[u8]>> {
        match self.frames.pop_front() {
            Some(frame) => {
                self.bytes -= frame.len();
                Some(frame)
            }
            None if self.missed > 0 => Some(missed(std::mem::take(&mut self.missed))),
            None => None,
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.packet_readers.fetch_sub(usize::from(self.packets), Ordering::Relaxed);
    }
}

impl Subscription {
    /// The next announcement, as a frame.
    pub async fn next(&self) -> Arc<[u8]> {
        loop {
            let next = lock(&self.0.waiting).pop();
            match next {
                Some(frame) => return frame,
                None => self.0.arrived.notified().await,
            }
        }
    }
}

fn missed(count: u64) -> Arc<[u8]> {
    frame(&Announcement::Missed(count))
}

fn frame(announcement: &Announcement) -> Arc<[u8]> {
    let frame = control::encode(announcement).unwrap_or_else(|error| {
        tracing::error!("an announcement could not be made: {error}");
        Vec::new()
    });
    frame.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::control::HEADER;

    fn read(subscription: &Subscription) -> Option<Announcement> {
        let frame = lock(&subscription.0.waiting).pop()?;
        Some(control::decode(&frame[HEADER..]).unwrap())
    }

    #[test]
    fn each_is_told_what_it_wants_until_it_goes() {
        let hub = Hub::default();
        let (changes, packets) = (hub.subscribe(true, false), hub.subscribe(false, true));
        hub.changed(|| Announcement::Missed(1));
        hub.packet(|| Announcement::Missed(2));
        assert_eq!((read(&changes), read(&changes)), (Some(Announcement::Missed(1)), None));
        assert_eq!((read(&packets), read(&packets)), (Some(Announcement::Missed(2)), None));
        drop(packets);
        hub.packet(|| panic!("nobody wants to know"));
        drop(changes);
        hub.changed(|| panic!("nobody wants to know"));
        assert!(lock(&hub.readers).is_empty());
    }

    #[test]
    fn what_a_reader_missed_is_told_where_it_is_missing() {
        let hub = Hub::default();
        let reader = hub.subscribe(true, false);
        let tell = |number: u64| hub.changed(|| Announcement::Missed(number));
        let length = frame(&Announcement::Missed(1_000_000_000)).len();
        let most = (MAX_WAITING / length) as u64;
        let first = 1_000_000_000;
        (0..most + 7).for_each(|number| tell(first + number));
        assert!(lock(&reader.0.waiting).bytes <= MAX_WAITING);
        for number in 0..10 {
            assert_eq!(read(&reader), Some(Announcement::Missed(first + number)));
        }
        tell(first);
        for number in 10..most {
            assert_eq!(read(&reader), Some(Announcement::Missed(first + number)));
        }
        assert_eq!(read(&reader), Some(Announcement::Missed(7)));
        assert_eq!(read(&reader), Some(Announcement::Missed(first)));
        assert_eq!(read(&reader), None);
        // Nothing comes after what was missed last: it is told all the same.
        (0..most + 3).for_each(|number| tell(first + number));
        (0..most).for_each(|number| assert_eq!(read(&reader), Some(Announcement::Missed(first + number))));
        assert_eq!((read(&reader), read(&reader)), (Some(Announcement::Missed(3)), None));
    }
}
