//! What clients of the control socket can have done: changes of the rules, listings, the status.
//!
//! A change is committed first, then put in force, then acknowledged.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use shared::control::{
    Answer, Failure, FailureKind, ListedPolicy, ListedRule, Listing, MissingHook, ProbeStatus, QueueStatus, Request,
    Status,
};
use shared::{Chain, Selector};
use syscall_probe::{Generations, Hook, Probe};

use crate::bypass::Bypass;
use crate::control::Handler;
use crate::image::Digests;
use crate::matcher::{ActiveRule, Defaults, Ruleset};
use crate::namespaces::Namespaces;
use crate::queue::Queue;
use crate::store::{Store, StoreError, StoredRule};
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
}

impl ProbeReport {
    /// `probe`, or why there is none.
    pub fn new(probe: Result<&Probe, String>) -> ProbeReport {
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
            },
            Ok(probe) => {
                let missing = |(hook, why): &(_, String)| MissingHook { hook: format!("{hook}"), why: why.clone() };
                ProbeReport {
                    loaded: true,
                    why_not: None,
                    missing: probe.missing().iter().map(missing).collect(),
                    cost: cost(probe),
                    generations: Some(probe.generations()),
                }
            }
        }
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
    if probe.holders().is_none() {
        cost.push("holders of sockets are searched in /proc, which takes longer".into());
    } else if probe.missing().iter().any(|(hook, _)| *hook == Hook::Holders) {
        cost.push("holders of sockets are searched among all open files, which takes longer".into());
    }
    cost
}

/// Answers requests.
pub struct Office {
    /// The store; also used by the keeper of digests.
    pub store: Arc<Mutex<Store>>,
    /// The rules in force.
    pub rules: Arc<ArcSwap<Ruleset>>,
    /// The namespaces there are.
    pub namespaces: Arc<ArcSwap<Namespaces>>,
    /// What holds where nothing was stored.
    pub defaults: Defaults,
    /// The queues.
    pub posts: Vec<Post>,
    /// The probe.
    pub probe: ProbeReport,
    /// Digests known.
    pub digests: Arc<Digests>,
    /// Sockets that pass beside netfilter.
    pub bypass: Arc<Bypass>,
    /// Which clock times the batches.
    pub clock: &'static str,
    /// When the queues were bound.
    pub since: Instant,
    /// How many events were left out.
    pub events_omitted: Box<dyn Fn() -> u64 + Send + Sync>,
}

/// Everything the store holds, compiled.
///
/// # Errors
/// The store cannot be read.
pub fn compile(store: &Store, defaults: Defaults) -> Result<Ruleset, StoreError> {
    let rules = store.rules()?.into_iter().map(|stored| ActiveRule::new(stored.id, stored.rule));
    let policies = store.policies()?.into_iter().map(|policy| (policy.namespace, policy.chain, policy.verdict));
    Ok(Ruleset::new(store.revision(), rules, policies, defaults))
}

impl Handler for Office {
    fn handle(&self, request: Request) -> Answer {
        self.answer(request).unwrap_or_else(Answer::Error)
    }
}

impl Office {
    fn answer(&self, request: Request) -> Result<Answer, Failure> {
        match request {
            Request::Add { mut rule, position } => {
                rule.namespace = self.resolve(rule.namespace)?;
                let stored = self.change(|store| store.add(&rule, position))?;
                Ok(Answer::Added(self.listed(stored, &mut HashMap::new())))
            }
            Request::Delete { chain, namespace, position } => {
                let namespace = self.resolve(namespace)?;
                self.change(|store| store.delete(chain, &namespace, position))?;
                Ok(Answer::Deleted(1))
            }
            Request::Flush { chain, namespace } => {
                let namespace = self.resolve(namespace)?;
                Ok(Answer::Deleted(self.change(|store| store.flush(chain, &namespace))?))
            }
            Request::Policy { chain, namespace, verdict } => {
                let namespace = self.resolve(namespace)?;
                self.change(|store| store.set_policy(chain, &namespace, verdict))?;
                Ok(Answer::PolicySet)
            }
            Request::List { chain, namespace } => {
                let namespace = namespace.map(|namespace| self.resolve(namespace)).transpose()?;
                self.list(chain, namespace.as_ref()).map(Answer::Listing)
            }
            Request::Status => Ok(Answer::Status(Box::new(self.status()))),
        }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        // The store keeps itself consistent by transactions; a thread that panicked left it as it was.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn resolve(&self, selector: Selector) -> Result<Selector, Failure> {
        let resolved = self.namespaces.load().resolve(selector);
        resolved.map_err(|error| Failure { kind: FailureKind::Invalid, message: error.to_string() })
    }

    /// Commits a change and puts it in force.
    fn change<T>(&self, change: impl FnOnce(&mut Store) -> Result<T, StoreError>) -> Result<T, Failure> {
        let mut store = self.store();
        let done = change(&mut store).map_err(|error| error.failure())?;
        let rules = compile(&store, self.defaults).map_err(|error| error.failure())?;
        self.rules.store(Arc::new(rules));
        Ok(done)
    }

    fn listed(&self, stored: StoredRule, known: &mut HashMap<Selector, bool>) -> ListedRule {
        let namespaces = self.namespaces.load();
        let selector = &stored.rule.namespace;
        let exists = *known.entry(selector.clone()).or_insert_with(|| namespaces.exists(selector));
        ListedRule { id: stored.id, position: stored.position, dormant: !exists, rule: stored.rule }
    }

    fn list(&self, chain: Option<Chain>, namespace: Option<&Selector>) -> Result<Listing, Failure> {
        let (rules, policies) = {
            let store = self.store();
            let failure = |error: StoreError| error.failure();
            (store.rules().map_err(failure)?, store.policies().map_err(failure)?)
        };
        let wanted = |of: Chain, at: &Selector| chain.is_none_or(|c| c == of) && namespace.is_none_or(|n| n == at);
        let mut known = HashMap::new();
        let rules = rules
            .into_iter()
            .filter(|stored| wanted(stored.rule.chain, &stored.rule.namespace))
            .map(|stored| self.listed(stored, &mut known))
            .collect();
        let mut listed: Vec<ListedPolicy> = policies
            .into_iter()
            .map(|policy| ListedPolicy {
                chain: policy.chain,
                namespace: policy.namespace,
                verdict: policy.verdict,
                stored: true,
            })
            .collect();
        for chain in Chain::ALL {
            if !listed.iter().any(|policy| policy.chain == chain && policy.namespace == Selector::Any) {
                let verdict = self.defaults.of(chain);
                listed.push(ListedPolicy { chain, namespace: Selector::Any, verdict, stored: false });
            }
        }
        // What holds in any namespace holds in the one asked for.
        listed.retain(|policy| wanted(policy.chain, &policy.namespace) || wanted_any(chain, policy));
        listed.sort_by(|a, b| (a.chain, &a.namespace).cmp(&(b.chain, &b.namespace)));
        Ok(Listing { rules, policies: listed })
    }

    fn status(&self) -> Status {
        let rules = self.rules.load();
        Status {
            daemon: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_ms: self.since.elapsed().as_millis() as u64,
            clock: self.clock.into(),
            rules_generation: rules.generation,
            rules: rules.len(),
            probe: self.probe.status(),
            queues: self.posts.iter().map(Post::status).collect(),
            events_omitted: (self.events_omitted)(),
            digests: self.digests.len(),
            bypass_capable: self.bypass.look(),
        }
    }
}

fn wanted_any(chain: Option<Chain>, policy: &ListedPolicy) -> bool {
    policy.namespace == Selector::Any && chain.is_none_or(|chain| chain == policy.chain)
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
