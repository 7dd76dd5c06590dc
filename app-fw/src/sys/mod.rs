//! The daemon's one door to raw system calls. Everything unsafe in it is behind a safe function of this module.
#![allow(unsafe_code)]

pub mod datagrams;
pub mod files;
pub mod netlink;
pub mod netns;
pub mod processes;
pub mod readiness;
pub mod socket;
