//! Many flows that a contender has judged: one process that has sent to many addresses from one socket, and lives on.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::lab::{CROWD, Lab};
use crate::load::Outcome;
use crate::measure::Measure;
use crate::supervise::{Supervisor, Ward, command_in, own_path};

/// Flows that are many.
pub const MANY: u32 = 100_000;
const _: () = assert!(MANY <= CROWD.1);
/// A daemon that looks for the owner of each packet takes long.
const LIMIT: Duration = Duration::from_secs(120);

/// The process. With it the flows end.
#[derive(Debug)]
pub struct Crowd {
    holder: Ward,
}

impl Crowd {
    /// Sends a packet of each of `flows` flows, so that the contender has judged it.
    ///
    /// # Errors
    /// Fewer than nearly all have arrived, or [`crate::supervise::Interrupted`].
    pub fn gather(supervisor: &Supervisor, lab: &Lab, flows: u32) -> Result<Self> {
        let deadline = Instant::now() + LIMIT;
        // Gone when all have arrived: it has the ports that loads are sent to.
        let mut server = Measure::UdpNew.serve(supervisor, lab)?;
        let mut command = command_in(&lab.client.path(), own_path()?)?;
        command.args(["hold-flows", &flows.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = Ward::start("hold-flows", &mut command)?;
        holder.line(supervisor, deadline).context("not all flows were sent")?;
        server.tell("report")?;
        let arrived: Outcome = server.line(supervisor, deadline).context("no outcome from the server")?.parse()?;
        ensure!(arrived.count >= u64::from(flows) * 9 / 10, "of {flows} flows only {} arrived", arrived.count);
        Ok(Self { holder })
    }

    /// Sends another packet of each flow.
    ///
    /// # Errors
    /// The deadline passed, or [`crate::supervise::Interrupted`].
    pub fn send_again(&mut self, supervisor: &Supervisor) -> Result<()> {
        self.holder.tell("again")?;
        self.holder.line(supervisor, Instant::now() + LIMIT).map(drop)
    }
}
