//! Known ways around application firewalls, tried by real programs. What works only at the right moment is tried hundreds of
//! times, on a machine that has other work to do, while a program that is allowed goes on working.
//!
//! Every trick is first tried where nothing forbids it: its packets must arrive then, or their absence would prove nothing.

mod code;
mod files;
mod hand_over;
pub mod odd;
mod short_lives;
mod sockets;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use harness::{Actor, Daemon, Ns, Running, Server};

use crate::pair::{Pair, STANCES, Stance};

/// Repetitions of what works only at the right moment.
const TIMES: u64 = 200;
/// How many of them an actor is told at once: its answer must come in time on a busy machine too.
const PORTION: u64 = 25;
/// Where forbidden packets go; somebody listens, so that no ICMP error confuses their sender.
const SINK: u16 = 9;
const ECHO: u16 = 7;
const TO_SINK: &str = "udp dport 9";

/// A chain's policy, and the verdict and identity of the one rule in it.
#[derive(Clone, Debug)]
struct Rules {
    policy: &'static str,
    verdict: &'static str,
    identity: [String; 2],
}

/// A world with OUTPUT queued, a daemon, work for the machine, and an allowed program that talks to an echo server.
struct Trial {
    /// Dropped first: its clean-up wants no busy machine.
    _busy: [Running; 2],
    friend: Actor,
    daemon: Daemon,
    _servers: [Server; 2],
    rules: Vec<Rules>,
    /// The allowed program does nothing while a trick is tried.
    alone: bool,
    pair: Pair,
}

impl Trial {
    /// The usual pair: a rule drops the denied program, or accepts the allowed one.
    fn new(label: &str) -> Result<Self> {
        let pair = Pair::new(label)?;
        let mut rules = Vec::new();
        for stance in STANCES {
            rules.push(match stance {
                Stance::DenyEvil => rule("ACCEPT", "DROP", "--sng-hash", pair.world.sha256(&pair.evil)?),
                Stance::AllowGood => rule("DROP", "ACCEPT", "--sng-hash", pair.world.sha256(&pair.good)?),
            });
        }
        Self::with(pair, rules)
    }

    /// A rule drops whoever has `library`, or accepts the allowed program and nothing more than that.
    fn against(
        label: &str,
        library: impl FnOnce(&Pair) -> Result<std::path::PathBuf>,
    ) -> Result<(Self, std::path::PathBuf)> {
        let pair = Pair::new(label)?;
        let library = library(&pair)?;
        let rules = vec![
            rule("ACCEPT", "DROP", "--sng-hash", pair.world.sha256(&library)?),
            rule("DROP", "ACCEPT", "--agg-hash", String::new()),
        ];
        let mut trial = Self::with(pair, rules)?;
        trial.rules[1].identity[1] = crate::rules::aggregate(&trial.pair.world, trial.friend.pid())?;
        Ok((trial, library))
    }

    fn with(pair: Pair, rules: Vec<Rules>) -> Result<Self> {
        let world = &pair.world;
        let servers = [world.udp_echo(ECHO)?, world.udp_sink(SINK)?];
        world.queue_output()?;
        let daemon = world.daemon(&[])?;
        let friend = pair.start(&pair.good, &["udp", &pair.to4(ECHO), "--timeout", "15000"])?;
        // One for each processor of a small machine. Not in the namespace that is judged.
        let work = ["sh", "-c", "while :; do :; done"];
        let busy = [world.spawn(Ns::Peer, &work)?, world.spawn(Ns::Peer, &work)?];
        Ok(Self { _busy: busy, friend, daemon, _servers: servers, rules, alone: false, pair })
    }

    /// The program, the denied one for instance, with a UDP socket to [`SINK`].
    fn sender(&self, program: &Path) -> Result<Actor> {
        self.pair.start(program, &["udp", &self.pair.to4(SINK)])
    }

    /// Under each stance: none of the packets that `act` makes arrives. `act` is told how often it should try, and is tried
    /// a few times without rules before.
    fn never(&mut self, expression: &str, mut act: impl FnMut(&Pair, u64) -> Result<()>) -> Result<()> {
        self.pair.no_rules("OUTPUT")?;
        let pair = &self.pair;
        let arrived = pair.world.count(expression)?;
        act(pair, 2).context("where nothing forbids it")?;
        crate::line::wait_until("the trick works where nothing forbids it", || Ok(arrived.total()? > 0))?;
        for rules in &self.rules {
            rules.put(pair)?;
            quiet(pair, &mut self.friend)?;
            arrived.delta()?;
            // It goes on working meanwhile...
            self.friend.tell(&format!("converse {}", if self.alone { 0 } else { TIMES }))?;
            act(pair, TIMES).with_context(|| format!("{rules:?}"))?;
            self.friend.answer().context("the allowed program")?;
            // ... and afterwards; and its packet has gone behind all the others.
            quiet(pair, &mut self.friend)?;
            let passed = arrived.delta()?;
            ensure!(passed == 0, "{passed} packets of {TIMES} attempts arrived under {rules:?}");
        }
        Ok(())
    }

    /// Under each stance: every one of the packets that `act` makes arrives; `act` is told how many.
    fn always(&mut self, expression: &str, mut act: impl FnMut(&Pair, u64) -> Result<()>) -> Result<()> {
        let pair = &self.pair;
        for rules in &self.rules {
            rules.put(pair)?;
            // The digest of the allowed program is known afterwards.
            quiet(pair, &mut self.friend)?;
            let arrived = pair.world.count(expression)?;
            let before = self.daemon.events()?.len();
            act(pair, TIMES).with_context(|| format!("{rules:?}"))?;
            let told = || format!("told of: {:?}", self.daemon.events().map(|events| events[before..].to_vec()));
            pair.exactly(&arrived, TIMES, &format!("{rules:?}")).with_context(told)?;
        }
        Ok(())
    }
}

impl Rules {
    /// In the place of all others.
    fn put(&self, pair: &Pair) -> Result<()> {
        let [kind, digest] = &self.identity;
        pair.no_rules("OUTPUT")?;
        pair.world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", self.verdict, kind, digest])?;
        pair.world.ctl_ok(&["-P", "OUTPUT", self.policy])?;
        Ok(())
    }
}

fn rule(policy: &'static str, verdict: &'static str, kind: &str, digest: String) -> Rules {
    Rules { policy, verdict, identity: [kind.to_owned(), digest] }
}

/// All verdicts are given, and what they let pass has arrived: a packet that was sent later has.
fn quiet(pair: &Pair, friend: &mut Actor) -> Result<()> {
    pair.world.wait_queues_empty(Ns::Local)?;
    friend.step("converse 1").context("the allowed program")?;
    Ok(())
}

/// Lets an actor repeat `WORD N REST`, altogether so many times.
fn repeat(actor: &mut Actor, word: &str, times: u64, rest: &str) -> Result<()> {
    let mut left = times;
    while left > 0 {
        let portion = left.min(PORTION);
        actor.step(format!("{word} {portion} {rest}").trim_end())?;
        left -= portion;
    }
    Ok(())
}

/// A path as a word of a step; those of a world have no blanks.
fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}
