//! What rules can ask of a packet besides its flow and what its owners are made of: whose these are, and which devices it
//! passes. What was so when the packet was sent counts, and not what is when it is looked at.
//!
//! Each packet waits in a queue until the test has it judged.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use app_fw::attribute::census::Census;
use app_fw::clock::Clock;
use app_fw::image::{Chronicle, ControlGroups, Digests, Retention};
use app_fw::investigate::{Finding, Investigators, Mailbox, Means};
use app_fw::matcher::{ActiveRule, Contents, Defaults, Ruleset, Sets};
use app_fw::namespaces::Namespaces;
use app_fw::pipeline::{Arrived, Decision, Interfaces, Patience, Pipeline, Surroundings, Tell, Whose};
use app_fw::queue::message::messages;
use app_fw::queue::{Message, Queue, Settings, Verdicts};
use app_fw::sys::datagrams::Datagrams;
use arc_swap::ArcSwap;
use crossbeam_channel::Receiver;
use harness::{Actor, LIMIT, Ns, World};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use shared::{Chain, Ports, Verdict};
use syscall_probe::{Hook, Options, Probe};

/// Ports of the peer's.
const DATAGRAMS: u16 = 9;
const SEGMENTS: u16 = 10;

/// The daemon's way of a packet, step by step.
struct Lab {
    pipeline: Pipeline,
    investigators: Investigators,
    mailbox: Mailbox,
    findings: Receiver<Finding>,
    clock: Clock,
    queue: Arc<Queue>,
    datagrams: Datagrams,
    round: u64,
    _probe: Probe,
}

/// What was found about a packet.
#[derive(Debug)]
struct Found {
    /// Of each owner.
    whose: Vec<Whose>,
    interfaces: Interfaces,
}

impl Lab {
    /// In the namespace of the calling thread.
    fn new(without: &[Hook]) -> Result<Lab> {
        let mut probe = Probe::load(&Options { object: None, without: without.to_vec() })?;
        let settings = Settings {
            copy_range: 256,
            segmentation_offload: true,
            length: 1024,
            receive_buffer: 1 << 20,
            max_receive_buffer: 1 << 20,
        };
        let queue = Arc::new(Queue::bind(0, &settings)?);
        probe.watch_queue(queue.socket()).map_err(anyhow::Error::msg)?;
        let generations = probe.generations();
        let chronicle = probe.take_changes().map(|changes| Arc::new(Chronicle::new(changes, generations.clone())));
        // It asks for more than files.
        let (text, sets) = ("-c OUTPUT -n any -v DROP --anon-exec", Arc::<Sets>::default());
        let rule: shared::Rule = text.parse().map_err(|error| anyhow::anyhow!("{text}: {error}"))?;
        let rules = [Arc::new(ActiveRule::new(1, 1, Arc::new(rule), Arc::default(), &sets, |_| true))];
        let defaults = Defaults { output: Verdict::Accept, input: Verdict::Accept, forward: Verdict::Accept };
        let clock = Clock::new();
        let means = Means {
            clock: clock.clone(),
            digests: Arc::new(Digests::new([], crossbeam_channel::bounded(1).0)),
            generations: Some(generations.clone()),
            iterator: probe.holders(),
            census: Census::default(),
            chronicle,
            mappings: probe.mappings(),
            namespaces: Arc::new(ArcSwap::from_pointee(Namespaces::look()?)),
            rules: Arc::new(ArcSwap::from_pointee(Ruleset::new(1, Contents { rules, policies: [], sets }, defaults))),
        };
        let investigators = Investigators::start(&means, Some(&probe))?;
        let pipeline = Pipeline::new(Surroundings {
            chain: Chain::Output,
            rules: means.rules.clone(),
            namespaces: means.namespaces.clone(),
            generations: Some(generations),
            sockets: Some(probe.sockets()),
            census: means.census.clone(),
            control_groups: ControlGroups::find(),
            retention: Retention::Nothing,
            kernel: None,
            as_made: true,
        });
        let (mailbox, findings, _wake) = Mailbox::new()?;
        let datagrams = Datagrams::new(1, 4096);
        Ok(Lab { pipeline, investigators, mailbox, findings, clock, queue, datagrams, round: 0, _probe: probe })
    }

    /// Judges and lets go what is queued, up to the next packet to `port`, of which it tells.
    fn next(&mut self, port: u16) -> Result<Found> {
        let deadline = Instant::now() + LIMIT;
        loop {
            ensure!(Instant::now() < deadline, "no packet came");
            let mut ready = [PollFd::new(self.queue.socket(), PollFlags::POLLIN)];
            poll(&mut ready, PollTimeout::from(100_u8))?;
            let found = self.read(port)?;
            // One is read at a time: the next reading begins with an empty queue, or not; either is a round later.
            self.round += 1;
            self.pipeline.set_round(self.round);
            if let Some(found) = found {
                return Ok(found);
            }
        }
    }

    fn read(&mut self, port: u16) -> Result<Option<Found>> {
        match self.datagrams.receive(self.queue.socket()) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
            received => received?,
        };
        let (datagram, _) = self.datagrams.get(0).context("a datagram")?;
        let datagram = datagram.to_vec();
        let mut found = None;
        for message in messages(&datagram) {
            let Message::Packet(queued) = message else { continue };
            let ran = self.pipeline.who_ran(0, queued.id);
            let interfaces = self.pipeline.interfaces(&queued, ran.as_ref());
            let now = self.clock.now();
            let arrived = Arrived::new(&queued, Chain::Output, now, self.round, ran, interfaces);
            let is_wanted = arrived.packet.is_ok_and(
                |packet| matches!(packet.flow.ports, Ports::Known { destination, .. } if destination == port),
            );
            let answer = loop {
                match self.pipeline.decide(&arrived, Tell::Nothing, Patience::Wait) {
                    Decision::Judged(answer) => break answer,
                    Decision::Wait(question) => {
                        let key = question.key();
                        self.investigators.ask(question, &self.mailbox, Arc::new(AtomicUsize::new(1)));
                        loop {
                            let finding = self.findings.recv_timeout(Duration::from_secs(10))?;
                            let is_it = finding.key == key;
                            self.pipeline.learn(finding);
                            if is_it {
                                break;
                            }
                        }
                    }
                }
            };
            let mut verdicts = Verdicts::new(0, 1);
            verdicts.push(queued.id, Verdict::Accept, now);
            self.queue.send(&verdicts)?;
            if is_wanted {
                let identity = answer.identity.as_ref().context("owners were asked for")?;
                found = Some(Found { whose: identity.whose.to_vec(), interfaces });
            }
        }
        Ok(found)
    }

    /// What is found about a packet that `actor` sends, after something else has happened.
    fn sent(&mut self, actor: &mut Actor, then: impl FnOnce(&mut Actor) -> Result<()>) -> Result<Found> {
        actor.step("send")?;
        then(actor)?;
        self.next(DATAGRAMS)
    }
}

impl Found {
    /// Of the one owner.
    fn owner(&self) -> Result<(Option<u32>, Option<u32>, Option<&str>)> {
        let [Whose { uid, gid, cgroup, .. }] = &self.whose[..] else { anyhow::bail!("{self:?}") };
        Ok((*uid, *gid, cgroup.as_deref()))
    }

    fn uid(&self) -> Result<Option<u32>> {
        Ok(self.owner()?.0)
    }

    fn cgroup(&self) -> Result<Option<&str>> {
        Ok(self.owner()?.2)
    }

    fn leaves_by(&self) -> Option<String> {
        let name = self.interfaces.output.filter(|_| !self.interfaces.uncertain)?;
        Some(String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned())
    }
}

/// A control group of version 2 of the test's own.
struct Group {
    place: PathBuf,
    path: String,
}

impl Group {
    fn new(world: &World) -> Result<Group> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let of_version_2 = mounts.lines().find(|line| line.contains(" - cgroup2 ")).context("no cgroup2")?;
        let mount = of_version_2.split(' ').nth(4).context("no place")?;
        let group = Group { place: format!("{mount}/{}", world.name()).into(), path: format!("/{}", world.name()) };
        fs::create_dir(&group.place)?;
        Ok(group)
    }

    fn take(&self, pid: u32) -> Result<()> {
        Ok(fs::write(self.place.join("cgroup.procs"), pid.to_string())?)
    }

    fn give_back(&self, pid: u32) -> Result<()> {
        let root = self.place.parent().context("a root")?;
        Ok(fs::write(root.join("cgroup.procs"), pid.to_string())?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that has ended leaves it a moment later.
        let deadline = Instant::now() + LIMIT;
        while fs::remove_dir(&self.place).is_err() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}

/// Tests share the processes' slots and the queue's number, not namespaces; descriptors are looked for when a queue is bound, so
/// it is one test.
#[test]
fn what_was_so_when_the_packet_was_sent() -> Result<()> {
    let world = World::new("facts")?;
    world.queue_output()?;
    let group = Group::new(&world)?;
    let [to, to_server] = [DATAGRAMS, SEGMENTS].map(|port| format!("{}:{port}", world.peer4()));
    let _sink = world.udp_sink(DATAGRAMS)?;
    let _server = world.tcp_echo(SEGMENTS)?;
    world.namespace(Ns::Local).enter(|| {
        let mut lab = Lab::new(&[])?;
        users(&mut lab, world.actor(Ns::Local, &["udp", &to])?)?;
        control_groups(&mut lab, &group, world.actor(Ns::Local, &["udp", &to])?)?;
        one_that_is_gone(&mut lab, &group, world.actor(Ns::Local, &["udp", &to])?)?;
        connections(&mut lab, world.actor(Ns::Local, &["idle"])?, &to_server)?;
        devices(&mut lab, &world, world.actor(Ns::Local, &["udp", &to])?)?;
        drop(lab);
        let mut lab = Lab::new(&[Hook::Senders, Hook::CgroupAttach, Hook::Links])?;
        without_hooks(&mut lab, &world, &group, world.actor(Ns::Local, &["udp", &to])?)
    })
}

fn users(lab: &mut Lab, mut actor: Actor) -> Result<()> {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let own = fs::read_to_string(format!("/proc/{}/cgroup", actor.pid()))?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).context("no group of version 2")?;
    let found = lab.sent(&mut actor, |_| Ok(()))?;
    ensure!(found.owner()? == (Some(uid), Some(gid), Some(own)), "{found:?}");
    for _ in 0..20 {
        for user in [1234, 4321] {
            actor.step(&format!("become {user}"))?;
            let found = lab.sent(&mut actor, |actor| actor.step("become 7").map(drop))?;
            ensure!(found.owner()? == (Some(user), Some(gid), Some(own)), "{found:?}");
        }
    }
    // Another thread is another's: this one sent.
    actor.step("thread-of-user 5")?;
    let found = lab.sent(&mut actor, |_| Ok(()))?;
    ensure!(found.uid()? == Some(7), "{found:?}");
    Ok(())
}

fn control_groups(lab: &mut Lab, group: &Group, mut actor: Actor) -> Result<()> {
    let root = lab.sent(&mut actor, |_| Ok(()))?.cgroup()?.context("it is known")?.to_owned();
    for _ in 0..20 {
        let found = lab.sent(&mut actor, |actor| group.take(actor.pid()))?;
        ensure!(found.cgroup()? == Some(&root), "{found:?}");
        let found = lab.sent(&mut actor, |actor| group.give_back(actor.pid()))?;
        ensure!(found.cgroup()? == Some(&group.path), "{found:?}");
    }
    Ok(())
}

fn one_that_is_gone(lab: &mut Lab, group: &Group, mut actor: Actor) -> Result<()> {
    group.take(actor.pid())?;
    actor.step("become 1234")?;
    actor.step("send")?;
    ensure!(actor.finish()?.success());
    let found = lab.next(DATAGRAMS)?;
    let (uid, _, cgroup) = found.owner()?;
    ensure!((uid, cgroup) == (Some(1234), Some(&group.path[..])), "{found:?}");
    Ok(())
}

/// The sender of a segment is not known: whose its holder is must be certain for long enough.
fn connections(lab: &mut Lab, mut actor: Actor, to: &str) -> Result<()> {
    actor.step("become 1234")?;
    actor.tell(&format!("connect-many 1 {to}"))?;
    let found = lab.next(SEGMENTS)?;
    ensure!(found.uid()? == Some(1234), "made since: {found:?}");
    // The handshake's last segment.
    lab.next(SEGMENTS)?;
    actor.answer()?;
    let mut put = |actor: &mut Actor, uid: u32| {
        actor.step("put-all 1")?;
        actor.step(&format!("become {uid}"))?;
        let found = lab.next(SEGMENTS)?;
        anyhow::Ok((found.uid()?, format!("{found:?}")))
    };
    for _ in 0..5 {
        // Nobody knows when a segment was made: never the later user alone.
        let (uid, found) = put(&mut actor, 7)?;
        ensure!(uid.is_none(), "{found}");
        let (uid, found) = put(&mut actor, 1234)?;
        ensure!(uid.is_none(), "{found}");
    }
    let mut known = None;
    for _ in 0..10 {
        actor.step("put-all 1")?;
        known = lab.next(SEGMENTS)?.uid()?;
        if known.is_some() {
            break;
        }
    }
    ensure!(known == Some(1234), "{known:?}");
    // Threads of several users have none together.
    actor.step("thread-of-user 5")?;
    for _ in 0..5 {
        actor.step("put-all 1")?;
        ensure!(lab.next(SEGMENTS)?.uid()?.is_none());
    }
    Ok(())
}

/// Then a look says what is, for each packet; what was only where it cannot be another.
fn without_hooks(lab: &mut Lab, world: &World, group: &Group, mut actor: Actor) -> Result<()> {
    actor.step("become 1234")?;
    let found = lab.sent(&mut actor, |actor| actor.step("become 7").map(drop))?;
    ensure!(found.uid()?.is_none(), "{found:?}");
    let known = (0..5).map(|_| lab.sent(&mut actor, |_| Ok(()))?.uid()).find(|uid| !matches!(uid, Ok(None)));
    ensure!(matches!(known, Some(Ok(Some(7)))), "{known:?}");
    for _ in 0..5 {
        group.take(actor.pid())?;
        let found = lab.sent(&mut actor, |_| Ok(()))?;
        ensure!(found.cgroup()? == Some(&group.path), "{found:?}");
        group.give_back(actor.pid())?;
        let found = lab.sent(&mut actor, |_| Ok(()))?;
        ensure!(found.cgroup()? != Some(&group.path) && found.cgroup()?.is_some(), "{found:?}");
    }
    let local = world.namespace(Ns::Local);
    let name = lab.sent(&mut actor, |_| Ok(()))?.leaves_by().context("it is known")?;
    local.ip(&format!("link set {name} name another"))?;
    let found = lab.sent(&mut actor, |_| Ok(()))?;
    ensure!(found.leaves_by().as_deref() == Some("another"), "{found:?}");
    Ok(())
}

fn devices(lab: &mut Lab, world: &World, mut actor: Actor) -> Result<()> {
    let local = world.namespace(Ns::Local);
    let name = lab.sent(&mut actor, |_| Ok(()))?.leaves_by().context("it is known")?;
    for _ in 0..5 {
        for (from, to) in [(&name[..], "another"), ("another", &name[..])] {
            let found = lab.sent(&mut actor, |_| local.ip(&format!("link set {from} name {to}")).map(drop))?;
            ensure!(found.leaves_by().as_deref() == Some(from), "{found:?}");
            ensure!(found.interfaces.input.is_none());
            let found = lab.sent(&mut actor, |_| Ok(()))?;
            ensure!(found.leaves_by().as_deref() == Some(to), "{found:?}");
        }
    }
    Ok(())
}
