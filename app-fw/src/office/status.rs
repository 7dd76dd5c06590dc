//! How the daemon is.

use std::sync::Arc;
use std::time::Instant;

use shared::Chain;
use shared::control::{KernelCacheStatus, MissingHook, ProbeStatus, QueueStatus, Status};
use syscall_probe::{Generations, Hook, Probe};

use crate::bypass::Bypass;
use crate::hook::Board;
use crate::image::Digests;
use crate::kernel_cache::KernelCache;
use crate::matcher::Ruleset;
use crate::queue::Queue;
use crate::worker::Counters;

/// A queue and what its workers count.
pub struct Post {
    /// The chain it feeds.
    pub chain: Chain,
    /// The queue.
    pub queue: Arc<Queue>,
    /// One for each worker.
    pub counters: Vec<Arc<Counters>>,
}

/// What the status tells of the probe: fixed at the start.
pub struct ProbeReport {
    loaded: bool,
    why_not: Option<String>,
    missing: Vec<MissingHook>,
    cost: Vec<String>,
    generations: Option<Generations>,
    kernel_cache: Result<Arc<KernelCache>, String>,
}

impl ProbeReport {
    /// `probe` and its verdict cache, or why there is none.
    pub fn new(probe: Result<&Probe, String>, kernel_cache: Result<Arc<KernelCache>, String>) -> ProbeReport {
        match probe {
            Err(why_not) => ProbeReport {
                loaded: false,
                why_not: Some(why_not),
                missing: Vec::new(),
                cost: vec![
                    "every packet that a rule about owners or objects may concern is looked at afresh; a process that \
                     sends and ends at once stays undetermined"
                        .into(),
                ],
                generations: None,
                kernel_cache,
            },
            Ok(probe) => {
                let missing = |(hook, why): &(_, String)| MissingHook { hook: format!("{hook}"), why: why.clone() };
                ProbeReport {
                    loaded: true,
                    why_not: None,
                    missing: probe.missing().iter().map(missing).collect(),
                    cost: cost(probe),
                    generations: Some(probe.generations()),
                    kernel_cache,
                }
            }
        }
    }

    /// The verdict cache in the kernel, or why there is none.
    pub fn kernel_cache(&self) -> Result<&Arc<KernelCache>, &str> {
        self.kernel_cache.as_ref().map_err(String::as_str)
    }

    /// For the log at start; empty if nothing is missing.
    pub fn sentences(&self) -> Vec<String> {
        let without = self.why_not.iter().map(|why| format!("running without the eBPF probe: {why}"));
        let missing = self.missing.iter().map(|hook| format!("hook {} is missing: {}", hook.hook, hook.why));
        without.chain(missing).chain(self.cost.iter().map(|cost| format!("this costs: {cost}"))).collect()
    }

    fn status(&self) -> ProbeStatus {
        ProbeStatus {
            loaded: self.loaded,
            why_not: self.why_not.clone(),
            missing: self.missing.clone(),
            cost: self.cost.clone(),
            lost_events: self.generations.as_ref().map_or(0, |all| all.lost_events() + all.lost_changes()),
        }
    }
}

fn cost(probe: &Probe) -> Vec<String> {
    let exact = probe.generations().exact();
    let mut cost = Vec::new();
    if !exact.processes || !exact.files {
        cost.push(
            "changes of processes or mapped files are not all seen: images are read afresh for each packet".into(),
        );
    }
    if !exact.standing {
        cost.push(
            "changes of users and control groups are not all seen: where rules ask for them, processes are looked at afresh \
             for each packet"
                .into(),
        );
    }
    if !exact.links {
        cost.push("changes of network devices are not seen: their names are asked for with each packet".into());
    }
    if !exact.ports || !exact.sockets {
        cost.push("changes of sockets are not all seen: owners are searched for each packet".into());
    }
    if !exact.sockets {
        cost.push(
            "makers of sockets are not seen: a program's first packets may be undetermined (other-program)".into(),
        );
    }
    if probe.missing().iter().any(|(hook, _)| *hook == Hook::Senders) {
        cost.push(
            "senders of packets are not seen: what was sent through a socket that is closed by now is undetermined, and a \
             raw socket may send in another's name"
                .into(),
        );
    }
    if probe.missing().iter().any(|(hook, _)| *hook == Hook::Mappings) {
        cost.push("what overlays show is not seen: files in containers are hashed anew for each look".into());
    }
    if probe.missing().iter().any(|(hook, _)| *hook == Hook::Sent) {
        cost.push(
            "who begins a datagram that another call sends (MSG_MORE, UDP_CORK) is not seen: it is undetermined".into(),
        );
    }
    if probe.missing().iter().any(|(hook, _)| *hook == Hook::TcpWrite) {
        cost.push(
            "writers into connections are not seen: what was written by a process that has let go of a connection since, or \
             runs another program, is judged by those who hold it"
                .into(),
        );
    }
    if probe.missing().iter().any(|(hook, _)| *hook == Hook::Cache) {
        cost.push("no verdict stays in the kernel: the daemon sees each packet".into());
    }
    if probe.holders().is_none() {
        cost.push("holders of sockets are searched in /proc, which takes longer".into());
    } else if probe.missing().iter().any(|(hook, _)| *hook == Hook::Holders) {
        cost.push("holders of sockets are searched among all open files, which takes longer".into());
    }
    cost
}

/// What the status is made from, apart from the rules.
pub struct Premises {
    /// `--audit`: nothing is dropped.
    pub audit: bool,
    /// The queues.
    pub posts: Vec<Post>,
    /// The probe.
    pub probe: ProbeReport,
    /// Digests known.
    pub digests: Arc<Digests>,
    /// Sockets that pass beside netfilter.
    pub bypass: Arc<Bypass>,
    /// How packets get to the queues.
    pub hooks: Arc<Board>,
    /// Which clock times the batches.
    pub clock: &'static str,
    /// When the queues were bound.
    pub since: Instant,
    /// How many events were left out.
    pub events_omitted: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl Premises {
    /// How the daemon is.
    pub fn status(&self, rules: &Ruleset) -> Status {
        Status {
            daemon: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_ms: self.since.elapsed().as_millis() as u64,
            clock: self.clock.into(),
            rules_generation: rules.generation,
            rules: rules.len(),
            audit: self.audit,
            probe: self.probe.status(),
            kernel_cache: match self.probe.kernel_cache() {
                Ok(kernel) => kernel.status(),
                Err(why_not) => KernelCacheStatus { why_not: Some(why_not.into()), chains: Vec::new() },
            },
            queues: self.posts.iter().map(Post::status).collect(),
            events_omitted: (self.events_omitted)(),
            digests: self.digests.len(),
            bypass_capable: self.bypass.look(),
            hooks: self.hooks.status(),
        }
    }
}

impl Post {
    fn status(&self) -> QueueStatus {
        let mut status = QueueStatus {
            chain: Some(self.chain),
            number: self.queue.number(),
            receive_buffer: self.queue.receive_buffer(),
            ..QueueStatus::default()
        };
        self.counters.iter().for_each(|counters| counters.add_to(&mut status));
        status
    }
}
