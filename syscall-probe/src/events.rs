//! What happened to processes, in the order in which it happened on each processor.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use aya::maps::{MapData, RingBuf};

use crate::layout::{Change, DecodeError, Event};

/// The kernel's messages about processes. The descriptor polls readable when there is one.
///
/// Messages are hints; nothing that is kept may depend on one arriving. If the ring is full,
/// [`crate::Generations::lost_events`] moves.
pub struct Events {
    ring: RingBuf<MapData>,
}

impl Events {
    pub(crate) fn new(ring: RingBuf<MapData>) -> Events {
        Events { ring }
    }

    /// Takes the next message; `None` if there is none now.
    // Not an Iterator: that there is nothing now does not mean that there will be nothing later.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Result<Event, DecodeError>> {
        self.ring.next().map(|record| Event::decode(&record))
    }
}

/// The kernel's account of what processes are made of, change by change, in the order in which it was written. The
/// descriptor polls readable when there is much of it, or a file that was never watched: for other changes do not wait,
/// but look.
///
/// Whoever takes all of it, and finds that [`crate::Generations::lost_changes`] stands still, knows what a process was
/// made of without a look at it. Changes that two threads of one process make at once may come in either order.
pub struct Changes {
    ring: RingBuf<MapData>,
}

impl Changes {
    pub(crate) fn new(ring: RingBuf<MapData>) -> Changes {
        Changes { ring }
    }

    /// Takes the next change; `None` if there is none now.
    // Not an Iterator: that there is nothing now does not mean that there will be nothing later.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Result<Change, DecodeError>> {
        self.ring.next().map(|record| Change::decode(&record))
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Changes").field("descriptor", &self.ring.as_raw_fd()).finish()
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Events").field("descriptor", &self.as_raw_fd()).finish()
    }
}
