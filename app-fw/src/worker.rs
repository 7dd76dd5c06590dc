//! The thread that serves a queue: reads packets, has them judged, sends verdicts.
//!
//! Verdicts are collected until there are enough of them, the oldest is old enough, or there is nothing more to read. A
//! packet that must wait for an answer is parked; the others go on.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::SystemTime;

use crossbeam_channel::Receiver;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use shared::control::QueueStatus;
use shared::{Cause, Chain, Protocol, Verdict};

use crate::clock::Clock;
use crate::investigate::{Finding, Investigators, Key, Mailbox, Question};
use crate::journal::{Draft, Reporter};
use crate::learn::Recorder;
use crate::namespaces::Namespace;
use crate::pipeline::{Answer, Arrived, Decision, Patience, Pipeline, Place, Reuse, Stale, Tell};
use crate::queue::message::messages;
use crate::queue::{Message, Queue, Queued, Verdicts};
use crate::rejection::{self, Envoy};
use crate::signature::Signatures;
use crate::sys::datagrams::Datagrams;

/// How a worker works.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Packets read at once.
    pub prefetch: usize,
    /// Verdicts that make a batch.
    pub batch_count: usize,
    /// Age of a verdict that ends a batch, nanoseconds.
    pub batch_age: u64,
    /// Bytes handed over of each packet.
    pub copy_range: u16,
}

/// Packets that may be parked at once, each worker. When there are more, the one that came first is judged by what is
/// known: most questions are answered in a fraction of a millisecond, and those must find a place however many others wait
/// for a large file.
const MAX_PARKED: usize = 4096;
/// Of these, packets that wait for the same answer. More are judged by what is known: one program's flood leaves room for
/// the others.
const MAX_PARKED_TOGETHER: usize = 512;
/// Bytes of verdict messages that end a batch, well below what a socket sends at once.
const BATCH_BYTES: usize = 64 * 1024;
/// Times a batch is tried that the kernel has no memory for.
const SEND_ATTEMPTS: usize = 3;
/// Netlink and attribute headers before a packet's bytes.
const METADATA: usize = 1024;
/// So often is the receive buffer looked after under load, in packets.
const LOOK_AFTER: u64 = 256;
/// So often does a worker under load look whether it is time to stop, in reads.
const LOOK_UP: u32 = 64;
/// See `Pipeline::is_its_work`.
const ROUNDS_AFTER_EXEC: u32 = 3;
/// Packets that are still settled after the order to stop. With the queue bound, more may come for ever.
const LAST_PACKETS: u64 = 100_000;

/// What a worker counts. Written by one worker, read by the status.
#[derive(Debug, Default)]
pub struct Counters {
    packets: AtomicU64,
    accepted: AtomicU64,
    dropped: AtomicU64,
    batches: AtomicU64,
    parked: AtomicU64,
    overruns: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    stale: [AtomicU64; Stale::ALL.len()],
}

impl Counters {
    /// Adds what was counted to a status.
    pub fn add_to(&self, status: &mut QueueStatus) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        status.packets += read(&self.packets);
        status.accepted += read(&self.accepted);
        status.dropped += read(&self.dropped);
        status.batches += read(&self.batches);
        status.parked += read(&self.parked);
        status.overruns += read(&self.overruns);
        status.flow_hits += read(&self.hits);
        status.flow_misses += read(&self.misses);
        for (stale, counter) in Stale::ALL.iter().zip(&self.stale) {
            *status.stale.entry(stale.token().into()).or_default() += read(counter);
        }
    }

    fn add(counter: &AtomicU64, more: u64) {
        if more > 0 {
            counter.fetch_add(more, Ordering::Relaxed);
        }
    }
}

/// Counted since the last time the counters were brought up to date.
#[derive(Default)]
struct Tally {
    packets: u64,
    accepted: u64,
    dropped: u64,
    parked: u64,
}

/// A packet that waits for an answer.
struct Parked {
    arrived: Arrived,
    waits_for: Key,
    /// What of the packet was handed over: its verdict may change it.
    bytes: Box<[u8]>,
}

/// Serves a queue, alone or with others.
pub struct Worker {
    queue: Arc<Queue>,
    chain: Chain,
    settings: Settings,
    clock: Clock,
    pipeline: Pipeline,
    investigators: Investigators,
    mailbox: Mailbox,
    findings: Receiver<Finding>,
    wake: Arc<EventFd>,
    stop: Arc<EventFd>,
    reporter: Reporter,
    signatures: Option<Arc<Signatures>>,
    counters: Arc<Counters>,
    envoy: Envoy,
    audit: Option<Recorder>,
    tally: Tally,
    verdicts: Verdicts,
    parked: VecDeque<Parked>,
    /// Questions that are open, and how many packets wait for each.
    asked: HashMap<Key, Arc<AtomicUsize>>,
    unlooked: u64,
    /// Since the queue was last empty there was so much in it that packets may have been lost.
    congested: bool,
    busy: u32,
    /// How often the queue has been read empty.
    round: u64,
    /// So often it is to be read empty before the worker rests.
    more_rounds: u32,
}

/// What a worker is made of.
pub struct Parts {
    /// The queue it serves.
    pub queue: Arc<Queue>,
    /// The chain the queue feeds.
    pub chain: Chain,
    /// How it works.
    pub settings: Settings,
    /// The daemon's clock.
    pub clock: Clock,
    /// Judges.
    pub pipeline: Pipeline,
    /// Answers questions.
    pub investigators: Investigators,
    /// Readable when it is time to stop.
    pub stop: Arc<EventFd>,
    /// Takes events.
    pub reporter: Reporter,
    /// Signs and validates, where that is asked for.
    pub signatures: Option<Arc<Signatures>>,
    /// What it counts.
    pub counters: Arc<Counters>,
    /// Tells other namespaces of rejections.
    pub envoy: Envoy,
    /// Lets everything pass, and records what would not.
    pub audit: Option<Recorder>,
}

impl Worker {
    /// Puts one together.
    ///
    /// # Errors
    /// No eventfd can be had.
    pub fn new(parts: Parts) -> io::Result<Worker> {
        let (mailbox, findings, wake) = Mailbox::new()?;
        Ok(Worker {
            verdicts: Verdicts::new(parts.queue.number(), parts.settings.batch_count),
            queue: parts.queue,
            chain: parts.chain,
            settings: parts.settings,
            clock: parts.clock,
            pipeline: parts.pipeline,
            investigators: parts.investigators,
            mailbox,
            findings,
            wake,
            stop: parts.stop,
            reporter: parts.reporter,
            signatures: parts.signatures,
            counters: parts.counters,
            envoy: parts.envoy,
            audit: parts.audit,
            tally: Tally::default(),
            parked: VecDeque::new(),
            asked: HashMap::new(),
            unlooked: 0,
            congested: false,
            busy: 0,
            round: 0,
            more_rounds: 0,
        })
    }

    /// Where it is told of programs that start.
    pub fn mailbox(&self) -> Mailbox {
        self.mailbox.clone()
    }

    /// Serves until it is told to stop; then settles what is queued.
    ///
    /// # Errors
    /// The queue's socket is broken.
    pub fn run(mut self) -> io::Result<()> {
        let size = METADATA + usize::from(self.settings.copy_range);
        let mut datagrams = Datagrams::new(self.settings.prefetch, size);
        loop {
            let more = self.receive(&mut datagrams, Patience::Wait)?;
            self.retry_parked();
            if !more {
                self.flush();
                // Some kernels tell by ENOBUFS that the buffer was full, others (6.18) only count.
                if std::mem::take(&mut self.congested) {
                    self.look_after_buffer();
                }
                self.round += 1;
                self.pipeline.set_round(self.round);
                if self.pipeline.wants_rounds() {
                    self.more_rounds = ROUNDS_AFTER_EXEC;
                }
                if self.more_rounds > 0 {
                    self.more_rounds -= 1;
                    continue;
                }
            }
            // Under load there is always more to read; it is still time to stop when it is.
            if self.rest(more)? {
                break;
            }
        }
        let mut left = LAST_PACKETS;
        let hurry = Patience::End(Cause::Stopping);
        while left > 0 && self.receive(&mut datagrams, hurry)? {
            left = left.saturating_sub(datagrams.capacity() as u64);
        }
        for parked in std::mem::take(&mut self.parked) {
            self.judge(parked, hurry);
        }
        self.flush();
        Ok(())
    }

    /// Reads what is there and judges it. Returns whether there may be more.
    fn receive(&mut self, datagrams: &mut Datagrams, patience: Patience) -> io::Result<bool> {
        let count = match datagrams.receive(self.queue.socket()) {
            Ok(count) => count,
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(false),
                Some(libc::EINTR) => return Ok(true),
                Some(libc::ENOBUFS) => {
                    self.congested = true;
                    self.look_after_buffer();
                    return Ok(true);
                }
                _ => return Err(error),
            },
        };
        for index in 0..count {
            let Some((datagram, _)) = datagrams.get(index) else { break };
            for message in messages(datagram) {
                if let Message::Packet(queued) = message {
                    self.arrive(&queued, patience);
                }
            }
        }
        self.unlooked += count as u64;
        if self.unlooked >= LOOK_AFTER {
            self.look_after_buffer();
        }
        let more = count == datagrams.capacity();
        self.congested |= more;
        Ok(more)
    }

    fn arrive(&mut self, queued: &Queued<'_>, patience: Patience) {
        let now = self.clock.now();
        for lost in self.queue.unseen_before(queued.id) {
            let verdict = if self.audit.is_some() { Verdict::Accept } else { Verdict::Drop };
            self.verdicts.push(lost, verdict, now);
            self.tally.dropped += 1;
        }
        self.tally.packets += 1;
        let ran = self.pipeline.who_ran(self.queue.number(), queued.id);
        let interfaces = self.pipeline.interfaces(queued, ran.as_ref());
        let arrived = Arrived::new(queued, self.chain, now, self.round, ran, interfaces);
        let tell = self.tell(now);
        if let Some(answer) = self.refuse_unsigned(queued) {
            return self.settle(&arrived, queued.payload, &answer, now);
        }
        match self.pipeline.decide(&arrived, tell, patience) {
            Decision::Judged(answer) => {
                self.settle(&arrived, queued.payload, &answer, now);
                self.pipeline.lend(&arrived, &answer, tell, self.reporter.concerns(&answer));
            }
            Decision::Wait(question) => {
                let bytes = queued.payload.into();
                let waits_for = question.key();
                self.tally.parked += 1;
                self.park(Parked { arrived, waits_for, bytes }, question);
            }
        }
    }

    /// Has a packet wait for an answer, unless too many wait for the same already.
    fn park(&mut self, parked: Parked, question: Question) {
        match self.asked.entry(parked.waits_for) {
            Entry::Vacant(entry) => {
                let waiting = entry.insert(Arc::new(AtomicUsize::new(1)));
                self.investigators.ask(question, &self.mailbox, waiting.clone());
            }
            Entry::Occupied(entry) if entry.get().load(Ordering::Relaxed) < MAX_PARKED_TOGETHER => {
                entry.get().fetch_add(1, Ordering::Relaxed);
            }
            Entry::Occupied(_) => return self.judge(parked, Patience::End(Cause::Overload)),
        }
        self.parked.push_back(parked);
        if self.parked.len() > MAX_PARKED {
            self.give_up_first();
        }
    }

    /// Judges the packet that has waited longest. If no other waits for the same, its question is given up too: answers that
    /// come too late would keep those that are waited for from coming in time.
    fn give_up_first(&mut self) {
        let Some(first) = self.parked.pop_front() else { return };
        if let Entry::Occupied(entry) = self.asked.entry(first.waits_for)
            && entry.get().fetch_sub(1, Ordering::Relaxed) == 1
        {
            entry.remove();
        }
        self.judge(first, Patience::End(Cause::Overload));
    }

    /// Takes note of what was found, and judges the packets that waited for it.
    fn retry_parked(&mut self) {
        let mut found = HashSet::new();
        while let Ok(finding) = self.findings.try_recv() {
            if let Key::Exec(process) = finding.key {
                // What is queued already may be the former program's; what comes after two more rounds is not.
                self.pipeline.note_exec(process);
                self.more_rounds = ROUNDS_AFTER_EXEC;
                continue;
            }
            self.asked.remove(&finding.key);
            found.insert(finding.key);
            self.pipeline.learn(finding);
        }
        if found.is_empty() {
            return;
        }
        // In the order in which they came, so that a flow stays in order.
        for _ in 0..self.parked.len() {
            let Some(parked) = self.parked.pop_front() else { break };
            if found.contains(&parked.waits_for) {
                self.judge(parked, Patience::Wait);
            } else {
                self.parked.push_back(parked);
            }
        }
    }

    fn judge(&mut self, mut parked: Parked, patience: Patience) {
        let now = self.clock.now();
        let tell = self.tell(now);
        match self.pipeline.decide(&parked.arrived, tell, patience) {
            Decision::Judged(answer) => {
                self.settle(&parked.arrived, &parked.bytes, &answer, now);
                self.pipeline.lend(&parked.arrived, &answer, tell, self.reporter.concerns(&answer));
            }
            Decision::Wait(question) => {
                parked.waits_for = question.key();
                self.park(parked, question);
            }
        }
    }

    /// Puts a verdict into the batch.
    fn settle(&mut self, arrived: &Arrived, bytes: &[u8], answer: &Arc<Answer>, now: u64) {
        let signed = match (answer.judgement.verdict, &self.signatures) {
            (Verdict::Accept, Some(signatures)) if self.signs() => {
                Some(signatures.sign(bytes, arrived.length, arrived.checksum_missing))
            }
            _ => None,
        };
        let answer = match &signed {
            Some(Err(reason)) => &Arc::new(self.pipeline.refusal(*reason)),
            _ => answer,
        };
        let audit = self.audit.as_ref().filter(|_| !answer.judgement.verdict.lets_pass());
        let draft = || Draft {
            time: SystemTime::now(),
            chain: self.chain,
            flow: arrived.packet.ok().map(|packet| packet.flow),
            length: arrived.length,
            audit: audit.is_some(),
            answer: answer.clone(),
        };
        match (answer.judgement.verdict, signed) {
            _ if audit.is_some() => self.verdicts.push(arrived.id, Verdict::Accept, now),
            (Verdict::Accept, Some(Ok(packet))) => self.verdicts.push_changed(arrived.id, &packet, now),
            (Verdict::Reject, _) => match self.rejection(arrived, bytes) {
                Some(answer) => self.verdicts.push_changed(arrived.id, &answer, now),
                None => {
                    self.send_envoy(arrived, answer);
                    self.verdicts.push(arrived.id, Verdict::Drop, now);
                }
            },
            (verdict, _) => self.verdicts.push(arrived.id, verdict, now),
        }
        match answer.judgement.verdict {
            Verdict::Accept => self.tally.accepted += 1,
            Verdict::Drop | Verdict::Reject => self.tally.dropped += 1,
        }
        if let Some(recorder) = audit {
            recorder.record(draft());
        }
        if let Some(rule) = &answer.judgement.rule {
            rule.state.count(arrived.length);
        }
        if self.reporter.concerns(answer) {
            self.reporter.report(draft);
        }
        let full = self.verdicts.len() >= self.settings.batch_count || self.verdicts.bytes().len() >= BATCH_BYTES;
        if full || now.saturating_sub(self.verdicts.oldest()) >= self.settings.batch_age {
            self.flush();
        }
    }

    /// Which verdicts will be told of. Of what is recorded, owners are wanted as well.
    fn tell(&mut self, now: u64) -> Tell {
        match self.reporter.tell(now) {
            Tell::Nothing if self.audit.is_some() => Tell::Drops,
            tell => tell,
        }
    }

    /// What a packet becomes that tells its sender of its rejection, if it can become that.
    fn rejection(&self, arrived: &Arrived, bytes: &[u8]) -> Option<Vec<u8>> {
        let packet = arrived.packet.as_ref().ok().filter(|_| arrived.can_turn_back)?;
        // The kernel goes on to cut it as what it was, and no error can be cut.
        if arrived.segmented && packet.flow.protocol != Protocol::TCP {
            return None;
        }
        rejection::answer(packet, bytes).filter(|_| rejection::is_own(packet.flow.source))
    }

    /// Has the socket told that its packet was rejected, where the packet itself cannot go back.
    fn send_envoy(&self, arrived: &Arrived, answer: &Answer) {
        let is_far = |namespace: &Namespace| matches!(arrived.place, Place::Behind(_)) && !namespace.is_own();
        let is_near = arrived.left_held_socket && arrived.segmented;
        if let (Ok(packet), Some(namespace)) = (&arrived.packet, &answer.namespace)
            && self.chain != Chain::Input
            && (is_near || is_far(namespace))
        {
            self.envoy.send(namespace, packet.flow);
        }
    }

    fn signs(&self) -> bool {
        self.chain == Chain::Output && self.signatures.as_ref().is_some_and(|signatures| signatures.signs())
    }

    /// The answer to a packet whose signature is asked for and not right.
    fn refuse_unsigned(&self, queued: &Queued<'_>) -> Option<Arc<Answer>> {
        let signatures = self.signatures.as_ref().filter(|signatures| signatures.validates(self.chain))?;
        let reason = signatures.validate(queued.payload, queued.length).err()?;
        Some(Arc::new(self.pipeline.refusal(reason)))
    }

    fn flush(&mut self) {
        if !self.verdicts.is_empty() {
            let sent = (0..SEND_ATTEMPTS).find_map(|_| match self.queue.send(&self.verdicts) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM | libc::EINTR)) => None,
                other => Some(other),
            });
            if let Some(Err(error)) = sent.or(Some(Err(io::ErrorKind::OutOfMemory.into()))) {
                tracing::error!(
                    "queue {}: {} verdicts could not be sent: {error}",
                    self.queue.number(),
                    self.verdicts.len()
                );
            }
            self.verdicts.clear();
            Counters::add(&self.counters.batches, 1);
        }
        let tally = std::mem::take(&mut self.tally);
        Counters::add(&self.counters.packets, tally.packets);
        Counters::add(&self.counters.accepted, tally.accepted);
        Counters::add(&self.counters.dropped, tally.dropped);
        Counters::add(&self.counters.parked, tally.parked);
        let Reuse { hits, misses, stale } = self.pipeline.take_reuse();
        Counters::add(&self.counters.hits, hits);
        Counters::add(&self.counters.misses, misses);
        self.counters.stale.iter().zip(stale).for_each(|(counter, more)| Counters::add(counter, more));
    }

    fn look_after_buffer(&mut self) {
        self.unlooked = 0;
        match self.queue.grow_after_overrun() {
            Ok(lost) => Counters::add(&self.counters.overruns, lost),
            Err(error) => tracing::warn!("queue {}: receive buffer: {error}", self.queue.number()),
        }
    }

    /// Waits until there is something to do, or just looks if there is `more`. Returns whether it is time to stop.
    fn rest(&mut self, more: bool) -> io::Result<bool> {
        if more {
            self.busy += 1;
            if !self.busy.is_multiple_of(LOOK_UP) {
                return Ok(false);
            }
        }
        let mut events = [
            PollFd::new(self.queue.socket(), PollFlags::POLLIN),
            PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut events, if more { PollTimeout::ZERO } else { PollTimeout::NONE }) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready = |event: &PollFd<'_>| event.any().unwrap_or(true);
        let [_, woken, stopped] = &events;
        let (woken, stopped) = (ready(woken), ready(stopped));
        if woken {
            // Only resets it.
            let _ = self.wake.read();
        }
        Ok(stopped)
    }
}
