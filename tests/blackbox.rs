//! Black-box tests: one file for each promise. Every test makes a world of its own, runs the real daemon in it and counts
//! at the receiver.

#[path = "blackbox/bypasses/mod.rs"]
mod bypasses;
#[path = "blackbox/cache.rs"]
mod cache;
#[path = "blackbox/control.rs"]
mod control;
#[path = "blackbox/daemon.rs"]
mod daemon;
#[path = "blackbox/docker.rs"]
mod docker;
#[path = "blackbox/events.rs"]
mod events;
#[path = "blackbox/forward.rs"]
mod forward;
#[path = "blackbox/hook.rs"]
mod hook;
#[path = "blackbox/images.rs"]
mod images;
#[path = "blackbox/learning.rs"]
mod learning;
#[path = "blackbox/line.rs"]
mod line;
#[path = "blackbox/model.rs"]
mod model;
#[path = "blackbox/owners.rs"]
mod owners;
#[path = "blackbox/pair.rs"]
mod pair;
#[path = "blackbox/rejects.rs"]
mod rejects;
#[path = "blackbox/rules.rs"]
mod rules;
#[path = "blackbox/says.rs"]
mod says;
#[path = "blackbox/signature.rs"]
mod signature;
#[path = "blackbox/standing.rs"]
mod standing;
#[path = "blackbox/store.rs"]
mod store;
#[path = "blackbox/visible.rs"]
mod visible;
