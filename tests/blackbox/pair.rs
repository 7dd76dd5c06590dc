//! Two programs that differ in nothing but their digest: one may send, the other may not.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, ensure};
use harness::{Actor, Counter, LIMIT, Ns, World};

/// A world with an allowed and a denied program.
pub struct Pair {
    pub world: World,
    pub good: PathBuf,
    pub evil: PathBuf,
}

/// The two ways to say the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stance {
    /// Policy ACCEPT; a rule drops the denied program.
    DenyEvil,
    /// Policy DROP; a rule accepts the allowed program.
    AllowGood,
}

/// Both of them.
pub const STANCES: [Stance; 2] = [Stance::DenyEvil, Stance::AllowGood];

impl Pair {
    pub fn new(label: &str) -> Result<Pair> {
        let world = World::new(label)?;
        let good = world.actor_copy("good")?;
        let evil = world.actor_copy("evil")?;
        Ok(Pair { world, good, evil })
    }

    /// Puts the rules of a stance in the place of all others of the chain.
    pub fn take(&self, chain: &str, stance: Stance) -> Result<()> {
        let (policy, verdict, program) = match stance {
            Stance::DenyEvil => ("ACCEPT", "DROP", &self.evil),
            Stance::AllowGood => ("DROP", "ACCEPT", &self.good),
        };
        self.only_rule(chain, policy, verdict, &self.world.sha256(program)?)
    }

    /// One rule for a digest, and a policy.
    pub fn only_rule(&self, chain: &str, policy: &str, verdict: &str, digest: &str) -> Result<()> {
        self.no_rules(chain)?;
        self.world.ctl_ok(&["-A", "-c", chain, "-v", verdict, "--sng-hash", digest])?;
        self.world.ctl_ok(&["-P", chain, policy])?;
        Ok(())
    }

    /// No rules, policy ACCEPT.
    pub fn no_rules(&self, chain: &str) -> Result<()> {
        self.world.ctl_ok(&["-P", chain, "ACCEPT"])?;
        self.world.ctl_ok(&["-F", "-c", chain])?;
        Ok(())
    }

    /// An actor made of `program` in the local namespace.
    pub fn start(&self, program: &Path, arguments: &[&str]) -> Result<Actor> {
        self.world.actor_from(Ns::Local, program, arguments)
    }

    /// `PEER:PORT`, IPv4.
    pub fn to4(&self, port: u16) -> String {
        format!("{}:{port}", self.world.peer4())
    }

    /// `[PEER]:PORT`, IPv6.
    pub fn to6(&self, port: u16) -> String {
        format!("[{}]:{port}", self.world.peer6())
    }

    /// Waits until every verdict is given and `expected` packets have been counted since the last call of
    /// [`Counter::delta`]; more are an error. When it is to show that others did *not* arrive, send those first: the
    /// last one counted has come behind them.
    pub fn exactly(&self, counter: &Counter<'_>, expected: u64, what: &str) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        self.world.wait_queues_empty(Ns::Local)?;
        // A verdict is given a moment before the packet is there.
        let mut counted = counter.delta()?;
        while counted < expected && Instant::now() < deadline {
            counted += counter.delta()?;
        }
        ensure!(counted == expected, "{what}: {counted} packets arrived, {expected} should have");
        Ok(())
    }

    /// After TCP connections of both ends were closed: waits until nothing of them is under way any more.
    pub fn settle(&self) -> Result<()> {
        self.world.wait_connections_closed(Ns::Local)?;
        self.world.wait_connections_closed(Ns::Peer)?;
        self.world.wait_queues_empty(Ns::Local)
    }

    /// Nothing was counted since the last [`Counter::delta`], now that every verdict is given.
    pub fn silent(&self, counter: &Counter<'_>) -> Result<()> {
        self.world.wait_queues_empty(Ns::Local)?;
        counter.assert_silent()
    }
}
