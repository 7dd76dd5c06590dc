//! The daemon: judges every packet by what the processes behind its socket are made of.
//!
//! [`pipeline::Pipeline::decide`] is the path of a packet; from there everything is found:
//!
//! ```text
//! queue ──> packet ──> attribute ──> image ──> matcher ──> queue::Verdicts ──> journal
//!  bytes    to flow    socket to     objects   rules to     many in one         events
//!                      holders       digests   verdict      send
//! ```
//!
//! A [`worker`] serves a queue on a thread of its own. Whatever takes long is answered by [`investigate`] meanwhile. The
//! control plane ([`daemon`], [`control`], [`office`], [`book`], [`store`]) hands over immutable snapshots.

pub mod args;
pub mod attribute;
pub mod book;
pub mod bypass;
pub mod clock;
pub mod control;
mod crowd;
pub mod daemon;
pub mod devices;
pub mod explain;
pub mod hook;
pub mod image;
pub mod investigate;
pub mod journal;
pub mod kernel_cache;
pub mod learn;
pub mod matcher;
pub mod namespaces;
pub mod office;
pub mod packet;
pub mod pipeline;
pub mod queue;
mod recent;
pub mod rejection;
pub mod signature;
pub mod store;
pub mod sys;
pub mod worker;
