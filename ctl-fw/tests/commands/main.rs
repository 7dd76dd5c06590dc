//! The command line against a daemon that answers as the test wants.

mod common;
mod files;
mod rules;
mod rulesets;
