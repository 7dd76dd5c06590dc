//! Events, one JSON object a line. Workers hand over what they know and go on; a thread of its own writes. Nothing here
//! ever makes a packet wait: what is too much is left out and counted.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Receiver, Sender, bounded};
use shared::control::Announcement;
use shared::event::{Event, EventFlow, EventOwner, EventRule, SocketEvent};
use shared::{Cause, Chain, Flow};

use crate::control::Hub;
use crate::image::{Beyond, Image, Process, TICK};
use crate::pipeline::{Answer, Tell};

/// Events that may wait for the writer.
const WAITING: usize = 1024;

/// How long the daemon waits at its end for whoever reads the events.
const PATIENCE: Duration = Duration::from_secs(1);

/// What an event is made from.
pub struct Draft {
    /// When the packet was judged.
    pub time: SystemTime,
    /// The chain it met.
    pub chain: Chain,
    /// Its headers, if they could be read.
    pub flow: Option<Flow>,
    /// Its length, bytes.
    pub length: u32,
    /// It passed whatever the answer says.
    pub audit: bool,
    /// Everything else.
    pub answer: Arc<Answer>,
}

/// What becomes a line.
enum Entry {
    Packet(Draft),
    Socket(SocketEvent),
}

/// What is told.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Tell of accepted packets too.
    pub accepted: bool,
    /// Events per second and queue; as many may come at once.
    pub rate: u64,
}

/// Writes events.
pub struct Journal {
    entries: Sender<Entry>,
    omitted: Arc<Omitted>,
    written: Receiver<()>,
}

#[derive(Default)]
struct Omitted {
    /// Since the last event that was written.
    since: AtomicU64,
    total: AtomicU64,
}

impl Omitted {
    fn count(&self) {
        self.count_many(1);
    }

    fn count_many(&self, events: u64) {
        self.since.fetch_add(events, Ordering::Relaxed);
        self.total.fetch_add(events, Ordering::Relaxed);
    }
}

impl Journal {
    /// Starts a writer to a file, which is appended to, or to standard output for `-`. Subscribers are told too.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path, hub: Arc<Hub>) -> io::Result<Journal> {
        let to: Box<dyn Write + Send> = if path == Path::new("-") {
            Box::new(io::stdout())
        } else {
            Box::new(OpenOptions::new().append(true).create(true).open(path).map(BufWriter::<File>::new)?)
        };
        let (entries, queue) = bounded(WAITING);
        let omitted = Arc::new(Omitted::default());
        let counter = omitted.clone();
        let (done, written) = bounded(1);
        std::thread::Builder::new().name("journal".into()).spawn(move || {
            write(&queue, to, &counter, &hub);
            let _ = done.send(());
        })?;
        Ok(Journal { entries, omitted, written })
    }

    /// A worker's end.
    pub fn reporter(&self, policy: Policy) -> Reporter {
        Reporter {
            entries: self.entries.clone(),
            omitted: self.omitted.clone(),
            policy,
            tokens: policy.rate,
            filled: 0,
        }
    }

    /// For what is told besides packets.
    pub fn notices(&self) -> Notices {
        Notices { entries: self.entries.clone(), omitted: self.omitted.clone() }
    }

    /// Counts what was left out, for the status.
    pub fn omitted(&self) -> impl Fn() -> u64 + Send + Sync + use<> {
        let omitted = self.omitted.clone();
        move || omitted.total.load(Ordering::Relaxed)
    }

    /// Has the writer write what is left once all reporters and notices are gone. A reader that does not read is not
    /// waited for long.
    pub fn finish(self) {
        drop(self.entries);
        if self.written.recv_timeout(PATIENCE).is_err() {
            tracing::warn!("the last events could not be written");
        }
    }
}

/// Takes events that are not about packets. They are few, and not limited in rate.
#[derive(Clone)]
pub struct Notices {
    entries: Sender<Entry>,
    omitted: Arc<Omitted>,
}

impl Notices {
    /// Hands an event over, or counts it as left out.
    pub fn tell(&self, event: SocketEvent) {
        if self.entries.try_send(Entry::Socket(event)).is_err() {
            self.omitted.count();
        }
    }

    /// Counts events that were left out elsewhere.
    pub fn leave_out(&self, events: u64) {
        if events > 0 {
            self.omitted.count_many(events);
        }
    }
}

/// Takes a worker's events.
pub struct Reporter {
    entries: Sender<Entry>,
    omitted: Arc<Omitted>,
    policy: Policy,
    tokens: u64,
    /// When the tokens were last filled up, nanoseconds of the daemon's clock.
    filled: u64,
}

const SECOND: u64 = 1_000_000_000;

impl Reporter {
    /// Which verdicts would be told of at `now`, by the daemon's clock.
    pub fn tell(&mut self, now: u64) -> Tell {
        let earned = now.saturating_sub(self.filled).saturating_mul(self.policy.rate) / SECOND;
        if earned > 0 {
            self.tokens = self.tokens.saturating_add(earned).min(self.policy.rate);
            self.filled = now;
        }
        match (self.tokens, self.policy.accepted) {
            (0, _) => Tell::Nothing,
            (_, false) => Tell::Drops,
            (_, true) => Tell::Everything,
        }
    }

    /// Whether a packet with this answer makes an event at all.
    pub fn concerns(&self, answer: &Answer) -> bool {
        let all = if self.policy.accepted { Tell::Everything } else { Tell::Drops };
        all.of(&answer.judgement)
    }

    /// Hands an event over, or counts it as left out.
    pub fn report(&mut self, draft: impl FnOnce() -> Draft) {
        if self.tokens == 0 {
            return self.omitted.count();
        }
        self.tokens -= 1;
        if self.entries.try_send(Entry::Packet(draft())).is_err() {
            self.omitted.count();
        }
    }
}

fn write(queue: &Receiver<Entry>, mut to: Box<dyn Write + Send>, omitted: &Omitted, hub: &Hub) {
    for entry in queue {
        let line = match &entry {
            Entry::Packet(draft) => {
                let event = event(draft, omitted.since.swap(0, Ordering::Relaxed));
                hub.packet(|| Announcement::Packet(Box::new(event.clone())));
                serde_json::to_vec(&event)
            }
            Entry::Socket(event) => {
                hub.packet(|| Announcement::Socket(Box::new(event.clone())));
                serde_json::to_vec(event)
            }
        };
        let written = line.map_err(io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            to.write_all(&line)?;
            if queue.is_empty() { to.flush() } else { Ok(()) }
        });
        if let Err(error) = written {
            omitted.count();
            tracing::debug!("an event could not be written: {error}");
        }
    }
    let _ = to.flush();
}

fn event(draft: &Draft, omitted: u64) -> Event {
    let answer = &draft.answer;
    let judgement = &answer.judgement;
    let namespace = answer.namespace.as_ref().map(|namespace| namespace.name.to_string());
    Event {
        time: timestamp(draft.time),
        verdict: judgement.verdict,
        reason: judgement.reason,
        chain: draft.chain,
        length: draft.length,
        flow: draft.flow.as_ref().map(|flow| EventFlow::new(flow, namespace)),
        owners: owners(answer),
        rule: judgement.rule.as_ref().map(|rule| EventRule { id: rule.id, text: rule.text().into() }),
        audit: draft.audit,
        omitted,
    }
}

/// RFC 3339, UTC, microseconds.
pub(crate) fn timestamp(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| String::new(), |time| format!("{time:.6}"))
}

fn owners(answer: &Answer) -> Vec<EventOwner> {
    let Some(identity) = &answer.identity else { return Vec::new() };
    let known = identity.owners.holders.iter().zip(&identity.images);
    let mut owners: Vec<_> =
        known.map(|(holder, image)| owner(holder.process, image.as_deref().map_err(|cause| *cause))).collect();
    owners.extend(identity.owners.undetermined.map(|cause| EventOwner {
        pid: None,
        start: None,
        path: None,
        program: None,
        image: None,
        anon_exec: false,
        traced_by: None,
        undetermined: Some(cause),
    }));
    owners
}

/// What an event says of a process.
pub(crate) fn owner(process: Process, image: Result<&Image, Cause>) -> EventOwner {
    let known = image.ok();
    // If no rule asked, it is looked at now.
    let beyond = known.and_then(|image| image.beyond.or_else(|| Beyond::of(process).ok()));
    EventOwner {
        pid: Some(process.tgid),
        start: Some(process.start * TICK),
        path: known.map(|image| image.program.clone()),
        program: known.and_then(|image| image.program_digest),
        image: known.and_then(|image| image.aggregate),
        anon_exec: beyond.is_some_and(|beyond| beyond.anon_exec == Some(true)),
        traced_by: beyond.and_then(|beyond| beyond.traced_by),
        undetermined: image.map_or_else(Some, |image| image.gap),
    }
}
