//! `--audit`: packets that would not pass do, and it is recorded whose they are and where they go. `ctl-fw learn` makes
//! rules of that.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};
use jiff::Timestamp;
use shared::control::{Learned, LearnedProgram};
use shared::{Chain, Ports, Protocol, Reason, Selector};

use crate::journal::Draft;
use crate::pipeline::Answer;

/// Packets that may wait to be recorded. More are counted and left out: what matters comes again.
const WAITING: usize = 4096;
/// Programs and places that are remembered. More are counted and left out.
const MAX_RECORDS: usize = 1 << 16;

/// Takes what is to be recorded, and never waits. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    drafts: Sender<Draft>,
    records: Arc<Records>,
}

/// What was recorded.
#[derive(Default)]
pub struct Records {
    known: Mutex<HashMap<Key, Tally>>,
    left_out: AtomicU64,
}

/// Packets of one program to one place are one record.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Key {
    chain: Chain,
    namespace: Selector,
    programs: Vec<LearnedProgram>,
    protocol: Protocol,
    remote: IpAddr,
    port: Option<u16>,
    near: bool,
}

/// Ports that kernels and systems choose for whoever asks (RFC 6335; Linux begins at 32768).
const CHOSEN: std::ops::RangeInclusive<u16> = 32768..=u16::MAX;

/// Whether of two ports the one at our end is what is spoken to: the other is a port that was chosen for a client and never comes
/// again. If the ports do not tell, `otherwise`.
fn served_is_near(near: u16, far: u16, otherwise: bool) -> bool {
    match (CHOSEN.contains(&near), CHOSEN.contains(&far)) {
        (false, true) => true,
        (true, false) => false,
        _ => otherwise,
    }
}

#[derive(Clone, Copy, Debug)]
struct Tally {
    packets: u64,
    reason: Reason,
    first: Timestamp,
    last: Timestamp,
}

impl Recorder {
    /// Starts the thread that records. It ends with the last recorder.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start() -> io::Result<Recorder> {
        let (drafts, queue) = bounded(WAITING);
        let records = Arc::new(Records::default());
        let book = records.clone();
        std::thread::Builder::new().name("recorder".into()).spawn(move || book.record(&queue))?;
        Ok(Recorder { drafts, records })
    }

    /// Hands a packet over.
    pub fn record(&self, draft: Draft) {
        if self.drafts.try_send(draft).is_err() {
            self.records.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was recorded so far.
    pub fn records(&self) -> Arc<Records> {
        self.records.clone()
    }
}

impl Records {
    fn known(&self) -> MutexGuard<'_, HashMap<Key, Tally>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, queue: &Receiver<Draft>) {
        for draft in queue {
            let Some(key) = key(&draft) else { continue };
            let now = Timestamp::try_from(draft.time).unwrap_or_default();
            let reason = draft.answer.judgement.reason;
            let mut known = self.known();
            if known.len() >= MAX_RECORDS && !known.contains_key(&key) {
                self.left_out.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let tally = known.entry(key).or_insert(Tally { packets: 0, reason, first: now, last: now });
            *tally = Tally { packets: tally.packets + 1, reason, last: now, ..*tally };
        }
    }

    /// What was recorded, most packets first, and is forgotten then if `clear` says so.
    pub fn list(&self, clear: bool) -> Vec<Learned> {
        let left_out = self.left_out.swap(0, Ordering::Relaxed);
        if left_out > 0 {
            tracing::warn!("{left_out} packets were not recorded: too many at once, or to too many places");
        }
        let mut known = self.known();
        let records = if clear { std::mem::take(&mut *known) } else { known.clone() };
        drop(known);
        let mut list: Vec<Learned> = records
            .into_iter()
            .map(|(Key { chain, namespace, programs, protocol, remote, port, near }, tally)| {
                let Tally { packets, reason, first, last } = tally;
                Learned { chain, namespace, programs, protocol, remote, port, near, packets, reason, first, last }
            })
            .collect();
        list.sort_by(|a, b| b.packets.cmp(&a.packets).then(a.first.cmp(&b.first)));
        list
    }
}

/// What a packet is recorded as. `None`: its headers make no sense.
fn key(draft: &Draft) -> Option<Key> {
    let flow = draft.flow?;
    let known = match flow.ports {
        Ports::Known { source, destination } => Some((source, destination)),
        Ports::Absent | Ports::Unknown => None,
    };
    let incoming = draft.chain == Chain::Input;
    let remote = if incoming { flow.source } else { flow.destination };
    let near = known.is_some_and(|(source, destination)| {
        if incoming { served_is_near(destination, source, true) } else { served_is_near(source, destination, false) }
    });
    let port = known.map(|(source, destination)| if near == incoming { destination } else { source });
    let answer = &draft.answer;
    let namespace = answer.namespace.as_ref().map(|namespace| namespace.best_selector());
    Some(Key {
        chain: draft.chain,
        namespace: namespace.unwrap_or(Selector::Any),
        near,
        programs: programs(answer),
        protocol: flow.protocol,
        remote,
        port,
    })
}

/// Each program that held the socket, once. None if one of them is not known.
fn programs(answer: &Answer) -> Vec<LearnedProgram> {
    let Some(identity) = &answer.identity else { return Vec::new() };
    if identity.owners.undetermined.is_some() {
        return Vec::new();
    }
    let program = |image: &Result<Arc<crate::image::Image>, shared::Cause>| {
        let image = image.as_ref().ok()?;
        let path = image.program.clone();
        Some(LearnedProgram { path, digest: image.program_digest, aggregate: image.aggregate })
    };
    let mut programs: Vec<LearnedProgram> =
        identity.images.iter().map(program).collect::<Option<_>>().unwrap_or_default();
    programs.sort_by(|a, b| (&a.path, a.digest, a.aggregate).cmp(&(&b.path, b.digest, b.aggregate)));
    programs.dedup();
    programs
}
