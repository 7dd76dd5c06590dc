//! One sender and the count of what arrives of it: the question most tests ask.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use harness::counter::Place;
use harness::{Actor, Counter, Daemon, LIMIT, Ns, Signal, World};
use shared::control::{Answer, QueueStatus, Request, Status};

/// An actor whose packets are counted where they arrive.
pub struct Line<'w> {
    world: &'w World,
    sender: Actor,
    arrived: Counter<'w>,
    /// What was counted and accounted for.
    seen: u64,
    /// Whose queue the packets pass.
    judged: Ns,
}

impl<'w> Line<'w> {
    /// A UDP socket of the local namespace that sends to `port` of the peer over IPv4.
    pub fn udp(world: &'w World, port: u16) -> Result<Self> {
        Self::udp_from(world, &world.programs().path("actor")?, port)
    }

    /// The same from a copy of the actor.
    pub fn udp_from(world: &'w World, program: &Path, port: u16) -> Result<Self> {
        let to = format!("{}:{port}", world.peer4());
        Self::outgoing(world, program, &["udp", &to], &format!("udp dport {port}"))
    }

    /// Any sender in the local namespace, and the nftables expression for its packets at the peer.
    pub fn outgoing(world: &'w World, program: &Path, arguments: &[&str], expression: &str) -> Result<Self> {
        let arrived = world.count(expression)?;
        let sender = world.actor_from(Ns::Local, program, arguments)?;
        Ok(Self { world, sender, arrived, seen: 0, judged: Ns::Local })
    }

    /// A sender in the peer; counted is what the local namespace's INPUT chain has let pass.
    pub fn incoming(world: &'w World, arguments: &[&str], expression: &str) -> Result<Self> {
        let arrived = world.count_at(Ns::Local, Place::Delivered, expression)?;
        let sender = world.actor(Ns::Peer, arguments)?;
        Ok(Self { world, sender, arrived, seen: 0, judged: Ns::Local })
    }

    /// The packets pass a queue of another namespace than the local one.
    pub fn judged_in(self, ns: Ns) -> Self {
        Self { judged: ns, ..self }
    }

    /// The sender.
    pub fn actor(&mut self) -> &mut Actor {
        &mut self.sender
    }

    /// Sends one packet, which must arrive, once.
    ///
    /// # Errors
    /// It did not.
    pub fn expect_passes(&mut self) -> Result<()> {
        self.sender.step("send")?;
        self.expect_arrived(1)
    }

    /// Waits for so many packets that were sent and not accounted for yet.
    ///
    /// # Errors
    /// Fewer arrived, or more.
    pub fn expect_arrived(&mut self, count: u64) -> Result<()> {
        let (arrived, wanted) = (&self.arrived, self.seen + count);
        wait_until("the packets arrive", || Ok(arrived.total()? >= wanted))?;
        self.seen = self.arrived.total()?;
        ensure!(self.seen == wanted, "{} packets more than expected arrived", self.seen - wanted);
        Ok(())
    }

    /// Sends one packet, which must not arrive though others of the same kind did.
    ///
    /// # Errors
    /// It did, or none ever did.
    pub fn expect_blocked(&mut self) -> Result<()> {
        // A sender may be told (EPERM); what counts is what arrives.
        let _ = self.sender.step("send");
        self.expect_silence()
    }

    /// Whatever was sent must not arrive.
    ///
    /// # Errors
    /// Something did, or nothing ever did.
    pub fn expect_silence(&mut self) -> Result<()> {
        ensure!(self.seen > 0, "nothing of this kind ever arrived: silence proves nothing");
        self.world.wait_queues_empty(self.judged)?;
        let new = self.arrived.total()? - self.seen;
        ensure!(new == 0, "{new} packets arrived that should have been dropped");
        Ok(())
    }

    /// One or the other.
    ///
    /// # Errors
    /// It came otherwise.
    pub fn expect(&mut self, passes: bool) -> Result<()> {
        if passes { self.expect_passes() } else { self.expect_blocked() }
    }
}

/// Waits until something holds that has no event of its own.
///
/// # Errors
/// It does not within [`LIMIT`], or cannot be told.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !holds()? {
        ensure!(Instant::now() < deadline, "waited {LIMIT:?} until {what}");
        std::thread::yield_now();
    }
    Ok(())
}

/// Stops a daemon as by Ctrl-Z: from then on it does nothing until SIGCONT.
///
/// # Errors
/// It has ended.
pub fn pause(daemon: &Daemon) -> Result<()> {
    daemon.signal(Signal::STOP)?;
    // The signal is on its way when kill(2) returns; each thread stops when it gets it.
    wait_until("every thread is stopped", || {
        for task in std::fs::read_dir(format!("/proc/{}/task", daemon.pid()))? {
            let stat = std::fs::read_to_string(task?.path().join("stat"))?;
            if !stat.contains(") T ") {
                return Ok(false);
            }
        }
        Ok(true)
    })
}

/// Asks a daemon something, as ctl-fw does.
///
/// # Errors
/// There is no answer, or it is a refusal.
pub fn ask(socket: &Path, request: &Request) -> Result<Answer> {
    match ctl_fw::client::Client::connect(socket)?.call(request)? {
        Answer::Error(failure) => bail!("app-fw refuses: {}", failure.message),
        answer => Ok(answer),
    }
}

/// How a daemon is.
///
/// # Errors
/// As [`ask`].
pub fn status(socket: &Path) -> Result<Status> {
    match ask(socket, &Request::Status)? {
        Answer::Status(status) => Ok(*status),
        other => bail!("not a status: {other:?}"),
    }
}

/// How one queue of a daemon is.
///
/// # Errors
/// As [`status`], or it has no such queue.
pub fn queue_status(socket: &Path, number: u16) -> Result<QueueStatus> {
    let queues = status(socket)?.queues;
    queues.into_iter().find(|queue| queue.number == number).with_context(|| format!("no queue {number}"))
}
