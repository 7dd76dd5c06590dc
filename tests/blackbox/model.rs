//! Whatever programs, rules and the daemon do, in whatever order: each datagram fares as a few lines of plain reasoning say.
//!
//! A random schedule has a few families of processes hand sockets on, become other programs, load and unload code, and send;
//! in between rules change and the daemon is started anew. Every datagram has a number. In the end exactly those have
//! arrived that should have.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use harness::{Actor, Daemon, LIMIT, Ns, Signal, World};
use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};

/// How long the schedule is, seconds, and where it begins: to look longer, or again.
const SECONDS: &str = "APP_FW_MODEL_SECONDS";
const SEED: &str = "APP_FW_MODEL_SEED";

#[test]
fn a_random_schedule() -> Result<()> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = number(SECONDS).unwrap_or(20);
    let seed = number(SEED).unwrap_or_else(|| {
        use std::hash::{BuildHasher, RandomState};
        RandomState::new().hash_one(0)
    });
    let mut schedule = Schedule::new(seed)?;
    let played = schedule.play(Duration::from_secs(seconds));
    played.and_then(|()| schedule.check()).with_context(|| {
        let last = schedule.log.iter().rev().take(60).rev().cloned().collect::<Vec<_>>().join("\n");
        format!("{SEED}={seed}, after {} steps, of which the last:\n{last}", schedule.log.len())
    })
}

const PORTS: [u16; 2] = [4000, 4001];

/// A process, as far as rules ask.
#[derive(Clone, Debug)]
struct Person {
    is_evil: bool,
    library: Loaded,
    anonymous: Loaded,
    holds: bool,
}

/// Whether something is in a process, and whether that can undo it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Loaded {
    No,
    Here,
    Inherited,
}

impl Person {
    fn new(is_evil: bool) -> Person {
        Person { is_evil, library: Loaded::No, anonymous: Loaded::No, holds: true }
    }

    fn forked(&self) -> Person {
        let inherited = |loaded: Loaded| if loaded == Loaded::No { Loaded::No } else { Loaded::Inherited };
        Person { library: inherited(self.library), anonymous: inherited(self.anonymous), ..self.clone() }
    }
}

/// A process and those it made, each by the one before; they share one socket.
struct Family {
    actor: Actor,
    people: Vec<Person>,
    to: u16,
}

/// The rules there are. All but the last drop.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Rules {
    evil: bool,
    library: bool,
    anonymous: bool,
    port: bool,
    good_to_port: bool,
    /// The policy is to drop, and a rule accepts what is made of the good program.
    only_good: bool,
}

impl Rules {
    /// Plain reasoning.
    fn let_pass(&self, owners: &[&Person], port: u16) -> bool {
        let any = |is: fn(&Person) -> bool| owners.iter().any(|owner| is(owner));
        let drops = self.evil && any(|owner| owner.is_evil)
            || self.library && any(|owner| owner.library != Loaded::No)
            || self.anonymous && any(|owner| owner.anonymous != Loaded::No)
            || self.port && port == PORTS[1]
            || self.good_to_port && port == PORTS[1] && any(|owner| !owner.is_evil);
        !drops && (!self.only_good || owners.iter().all(|owner| !owner.is_evil))
    }
}

struct Schedule {
    dice: TestRng,
    receiver: Receiver,
    families: Vec<Family>,
    rules: Rules,
    daemon: Option<Daemon>,
    world: World,
    good: PathBuf,
    evil: PathBuf,
    library: PathBuf,
    digests: [String; 3],
    ids: [String; 6],
    next: u64,
    expected: BTreeSet<u64>,
    log: Vec<String>,
}

impl Schedule {
    fn new(seed: u64) -> Result<Schedule> {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let world = World::new("model")?;
        let (good, evil, library) = (world.actor_copy("good")?, world.actor_copy("evil")?, world.library("library")?);
        let digests = [world.sha256(&good)?, world.sha256(&evil)?, world.sha256(&library)?];
        world.queue_output()?;
        let daemon = Some(world.daemon(&[])?);
        let receiver = Receiver::start(&world)?;
        let mut schedule = Schedule {
            dice: TestRng::from_seed(RngAlgorithm::ChaCha, &bytes),
            receiver,
            families: Vec::new(),
            rules: Rules::default(),
            daemon,
            world,
            good,
            evil,
            library,
            digests,
            ids: Default::default(),
            next: 0,
            expected: BTreeSet::new(),
            log: Vec::new(),
        };
        schedule.enforce(Rules { evil: true, ..Rules::default() })?;
        Ok(schedule)
    }

    fn play(&mut self, length: Duration) -> Result<()> {
        let end = Instant::now() + length;
        while Instant::now() < end {
            self.step()?;
        }
        Ok(())
    }

    fn below(&mut self, end: usize) -> usize {
        (self.dice.next_u64() % end as u64) as usize
    }

    fn step(&mut self) -> Result<()> {
        match self.below(1000) {
            0 => self.restart(),
            1..40 => self.change_rules(),
            _ if self.families.len() < 3 => self.found(),
            40..60 => {
                let index = self.below(self.families.len());
                self.log.push(format!("family {index} ends"));
                drop(self.families.remove(index));
                Ok(())
            }
            _ => {
                let index = self.below(self.families.len());
                self.live(index)
            }
        }
    }

    /// A new family, its socket made in one of the ways there are.
    fn found(&mut self) -> Result<()> {
        let is_evil = self.below(3) == 0;
        let to = format!("{}:{}", self.world.peer4(), PORTS[0]);
        let mut arguments = vec!["udp", to.as_str()];
        arguments.extend(match self.below(4) {
            0 => &["--connect"][..],
            1 => &["--bind", "0.0.0.0:0"][..],
            2 => &["--v4-on-v6"][..],
            _ => &[],
        });
        self.log.push(format!("family {}: evil {is_evil} {arguments:?}", self.families.len()));
        let program = if is_evil { &self.evil } else { &self.good };
        let actor = self.world.actor_from(Ns::Local, program, &arguments)?;
        self.families.push(Family { actor, people: vec![Person::new(is_evil)], to: PORTS[0] });
        Ok(())
    }

    fn live(&mut self, index: usize) -> Result<()> {
        let choice = self.below(20);
        let is_evil = self.below(3) == 0;
        let evil = if is_evil { &self.evil } else { &self.good }.display().to_string();
        let library = self.library.display().to_string();
        let people = self.families[index].people.len();
        let who = self.below(people);
        let is_last = who + 1 == people;
        let person = self.families[index].people[who].clone();
        let act = |schedule: &mut Schedule, step: &str| -> Result<()> {
            let line = format!("{}{step}", "child ".repeat(who));
            schedule.log.push(format!("family {index}: {line}"));
            schedule.families[index].actor.step(&line).map(drop)
        };
        let loaded = |schedule: &mut Schedule, change: &dyn Fn(&mut Person)| {
            change(&mut schedule.families[index].people[who]);
        };
        match choice {
            0 if is_last && person.holds && people < 4 => {
                let way = ["share", "pass"][self.below(2)];
                act(self, &format!("{way} {evil}"))?;
                self.families[index].people.push(Person::new(is_evil));
            }
            1 if is_last && person.holds && people < 4 => {
                act(self, "fork")?;
                self.families[index].people.push(person.forked());
            }
            2 if is_last && people > 1 => {
                // Told by its parent.
                let line = format!("{}release", "child ".repeat(who - 1));
                self.log.push(format!("family {index}: {line}"));
                self.families[index].actor.step(&line)?;
                self.families[index].people.pop();
            }
            // A child takes its steps through a descriptor that would not outlive it.
            3 if people == 1 && person.holds => {
                act(self, &format!("exec {evil}"))?;
                self.families[index].people[who] = Person::new(is_evil);
            }
            4 if person.library == Loaded::No => {
                act(self, &format!("dlopen {library}"))?;
                loaded(self, &|person| person.library = Loaded::Here);
            }
            5 if person.library == Loaded::Here => {
                act(self, "dlclose")?;
                loaded(self, &|person| person.library = Loaded::No);
            }
            6 if person.anonymous == Loaded::No => {
                act(self, "anonymous-exec")?;
                loaded(self, &|person| person.anonymous = Loaded::Here);
            }
            7 if person.anonymous == Loaded::Here => {
                act(self, "unmap-exec")?;
                loaded(self, &|person| person.anonymous = Loaded::No);
            }
            8 if person.holds && self.families[index].people.iter().filter(|person| person.holds).count() > 1 => {
                act(self, "close")?;
                loaded(self, &|person| person.holds = false);
            }
            _ if person.holds => self.send(index, who)?,
            _ => {}
        }
        Ok(())
    }

    fn send(&mut self, index: usize, who: usize) -> Result<()> {
        for _ in 0..=self.below(4) {
            let number = self.next;
            self.next += 1;
            let family = &self.families[index];
            let owners: Vec<&Person> = family.people.iter().filter(|person| person.holds).collect();
            let passes = self.rules.let_pass(&owners, family.to);
            self.log.push(format!("family {index}: {who} sends {number} to {}: passes {passes}", family.to));
            if passes {
                self.expected.insert(number);
            }
            let prefix = "child ".repeat(who);
            let actor = &mut self.families[index].actor;
            actor.step(&format!("{prefix}hex {number:016x}"))?;
            actor.step(&format!("{prefix}judged"))?;
        }
        if self.below(4) == 0 && !self.is_connected(index) {
            let port = PORTS[self.below(2)];
            let line = format!("{}to {}:{port}", "child ".repeat(who), self.world.peer4());
            self.log.push(format!("family {index}: {line}"));
            self.families[index].actor.step(&line)?;
            self.families[index].to = port;
        }
        Ok(())
    }

    /// Where each of a family sends is its own affair: only those that are alone change it.
    fn is_connected(&self, index: usize) -> bool {
        self.families[index].people.len() > 1 || self.families[index].to == 0
    }

    fn change_rules(&mut self) -> Result<()> {
        let mut rules = self.rules;
        match self.below(6) {
            0 => rules.evil ^= true,
            1 => rules.library ^= true,
            2 => rules.anonymous ^= true,
            3 => rules.port ^= true,
            4 => rules.good_to_port ^= true,
            _ => rules.only_good ^= true,
        }
        self.enforce(rules)
    }

    /// One change after the other: in between are other rules yet, and nothing is sent.
    fn enforce(&mut self, rules: Rules) -> Result<()> {
        self.log.push(format!("{rules:?}"));
        let [good, evil, library] = self.digests.clone();
        let port = PORTS[1].to_string();
        let drops: [(bool, bool, &[&str]); 5] = [
            (self.rules.evil, rules.evil, &["--sng-hash", &evil]),
            (self.rules.library, rules.library, &["--sng-hash", &library]),
            (self.rules.anonymous, rules.anonymous, &["--anon-exec"]),
            (self.rules.port, rules.port, &["-p", "udp", "--dport", &port]),
            (self.rules.good_to_port, rules.good_to_port, &["--sng-hash", &good, "-p", "udp", "--dport", &port]),
        ];
        for (index, (before, after, matches)) in drops.into_iter().enumerate() {
            // Nobody is told of each packet, or all would have to be seen by the daemon.
            let rule = [&["-I", "0", "-c", "OUTPUT", "-v", "DROP", "--no-log"], matches].concat();
            self.put(index, before, after, &rule)?;
        }
        let accepts = ["-A", "-c", "OUTPUT", "-v", "ACCEPT", "--sng-hash", &good];
        self.put(drops.len(), self.rules.only_good, rules.only_good, &accepts)?;
        if self.rules.only_good != rules.only_good {
            self.world.ctl_ok(&["-P", "OUTPUT", if rules.only_good { "DROP" } else { "ACCEPT" }])?;
        }
        self.rules = rules;
        Ok(())
    }

    /// Adds or deletes a rule.
    fn put(&mut self, index: usize, before: bool, after: bool, rule: &[&str]) -> Result<()> {
        match (before, after) {
            (false, true) => {
                let said = self.world.ctl_ok(rule)?;
                // "added rule ID at position ..."
                let id = said.split_whitespace().nth(2).with_context(|| format!("no id in: {said}"))?;
                self.ids[index] = id.to_owned();
            }
            (true, false) => drop(self.world.ctl_ok(&["-D", "--id", &self.ids[index]])?),
            _ => {}
        }
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("a daemon")?;
        if self.below(2) == 0 {
            self.log.push("the daemon is started anew".into());
            ensure!(daemon.stop()?.success());
        } else {
            self.log.push("the daemon is killed and started anew".into());
            daemon.signal(Signal::KILL)?;
            daemon.wait()?;
        }
        self.daemon = Some(self.world.daemon(&[])?);
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        self.world.wait_queues_empty(Ns::Local)?;
        let deadline = Instant::now() + LIMIT;
        // A verdict is given a moment before the packet is there.
        let arrived = loop {
            let arrived = self.receiver.arrived();
            if self.expected.is_subset(&arrived) || Instant::now() >= deadline {
                break arrived;
            }
            std::thread::yield_now();
        };
        let forbidden: Vec<_> = arrived.difference(&self.expected).collect();
        let lost: Vec<_> = self.expected.difference(&arrived).collect();
        let status = self.world.ctl_ok(&["status", "--json"])?;
        println!("{} sent, {} should arrive, {} did; {status}", self.next, self.expected.len(), arrived.len());
        if !forbidden.is_empty() || !lost.is_empty() {
            bail!("arrived and should not have: {forbidden:?}; should have arrived and did not: {lost:?}");
        }
        ensure!(!self.expected.is_empty(), "nothing was sent that should have arrived");
        Ok(())
    }
}

/// Notes the numbers of all datagrams that come to the ports of the peer.
struct Receiver {
    arrived: Arc<Mutex<BTreeSet<u64>>>,
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Receiver {
    fn start(world: &World) -> Result<Receiver> {
        let (arrived, end) = (Arc::<Mutex<BTreeSet<u64>>>::default(), Arc::new(AtomicBool::new(false)));
        let receive = |port: u16| {
            let address = SocketAddr::new(world.peer4(), port);
            let socket = world.namespace(Ns::Peer).enter(|| Ok(UdpSocket::bind(address)?))?;
            // So that it sees the end.
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            let (arrived, end) = (arrived.clone(), end.clone());
            Ok(std::thread::spawn(move || {
                let mut bytes = [0; 64];
                while !end.load(Ordering::Relaxed) {
                    if let Ok(8) = socket.recv(&mut bytes) {
                        let number = u64::from_be_bytes(bytes[..8].try_into().expect("eight bytes"));
                        arrived.lock().expect("nobody panics with it").insert(number);
                    }
                }
            }))
        };
        let threads = PORTS.into_iter().map(receive).collect::<Result<Vec<_>>>()?;
        Ok(Receiver { arrived, end, threads })
    }

    fn arrived(&self) -> BTreeSet<u64> {
        self.arrived.lock().expect("nobody panics with it").clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}
