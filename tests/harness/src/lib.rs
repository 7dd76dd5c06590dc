//! What black-box tests, the demo and the benches stand on: network namespaces of their own, servers and packet counters
//! in them, and processes that never outlive the test.
//!
//! A test makes a [`World`], starts the daemon in it, and asks the receiving end what arrived:
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use harness::{Ns, World};
//! let world = World::new("drop by hash")?;
//! let _server = world.http_server(80)?;
//! let web = world.count("tcp dport 80")?;
//! world.queue_output()?;
//! let _daemon = world.daemon(&[])?;
//! world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "DROP", "-p", "tcp"])?;
//! world.run(Ns::Local, &["curl", "--max-time", "2", &world.url(80)], harness::LIMIT)?;
//! # Ok(()) }
//! ```
//!
//! Nothing here touches the network namespace of the caller: interfaces are made inside the scratch namespaces from the
//! start, and commands run there through `nsenter --net=`. (`ip netns exec` would also remount /sys, which hides cgroups
//! and bpffs from the daemon.)
//!
//! Everything needs root, and the commands `ip`, `nsenter`, `setpriv`, `nft` and `iptables`; [`docker`] needs `dockerd`,
//! `docker` and a busybox without libraries.

pub mod actor;
pub mod counter;
pub mod daemon;
pub mod docker;
pub mod kernel_cache;
pub mod netns;
pub mod process;
pub mod programs;
pub mod servers;
pub mod world;

use std::time::Duration;

pub use actor::Actor;
pub use counter::Counter;
pub use daemon::Daemon;
pub use docker::Docker;
pub use process::{Captured, Running};
pub use programs::Programs;
pub use rustix::process::Signal;
pub use servers::Server;
pub use world::{Kind, Ns, World};

/// How long anything in a test may take before it counts as hung. Generous: the machine may be busy; nothing waits for
/// it to elapse unless something is broken.
pub const LIMIT: Duration = Duration::from_secs(20);
