//! What is claimed about speed, measured side by side.
//!
//! A [contender](contender::Contender) guards the client's network namespace; a [measure](measure::Measure) sends one kind
//! of traffic from there to the server's namespace and yields a [sample](measure::Sample). [`comparison`] measures every
//! contender by every measure in interleaved rounds, [`report`] and [`targets`] turn the samples into Markdown tables, and
//! [`chart`] into a picture. Beside speed there are [`memory`] and the cost of a packet in the kernel ([`packet_cost`]).
//!
//! Everything happens in two network namespaces made for the run ([`lab`]) and in child processes ([`supervise`]), all of
//! which are gone when the run ends, however it ends. See `README.md` beside this crate for how to read the figures.

pub mod accept_all;
pub mod bpf;
pub mod changes;
pub mod chart;
pub mod comparison;
pub mod contender;
pub mod crowd;
pub mod iperf3;
pub mod lab;
pub mod load;
pub mod machine;
pub mod measure;
pub mod memory;
pub mod opensnitch;
pub mod packet_cost;
pub mod pauses;
pub mod report;
pub mod rulesets;
pub mod supervise;
pub mod targets;
