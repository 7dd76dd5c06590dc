//! Words that cross a process border.
//!
//! The daemon, the command line and any other client of the control socket agree on what is in here: flows, digests,
//! rules, verdicts with their reasons, events, and the control protocol. No I/O happens here.

pub mod control;
pub mod digest;
pub mod document;
pub mod event;
pub mod flow;
pub mod namespace;
pub mod rule;
pub mod set;
pub mod verdict;

pub use digest::Digest;
pub use flow::{Flow, Ports, Protocol};
pub use namespace::Selector;
pub use rule::{Match, Predicate, Rule};
pub use verdict::{Cause, Chain, Reason, Verdict};
