//! What is claimed about speed, measured side by side.
//!
//! A [contender](contender::Contender) guards the client's network namespace; a [measure](measure::Measure) sends one kind
//! of traffic from there to the server's namespace and yields a [sample](measure::Sample). [`comparison`] measures every
//! contender by every measure in interleaved rounds, and [`report`] turns the samples into Markdown tables.
//!
//! Everything happens in two network namespaces made for the run ([`lab`]) and in child processes ([`supervise`]), all of
//! which are gone when the run ends, however it ends. See `README.md` beside this crate for how to read the figures.

pub mod accept_all;
pub mod changes;
pub mod comparison;
pub mod contender;
pub mod lab;
pub mod load;
pub mod machine;
pub mod measure;
pub mod pauses;
pub mod report;
pub mod rulesets;
pub mod supervise;
