//! What a packet costs that the kernel has an answer for.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::bpf::{self, Program};
use crate::comparison::{Plan, Samples, measure_once};
use crate::contender::{ACCEPTS, Contender};
use crate::lab::Lab;
use crate::measure::Measure;
use crate::report::{Spread, nanoseconds_more};
use crate::supervise::Supervisor;

/// Nanoseconds that the kernel's program runs for each packet of one flow, once for each round. The kernel's own looks at
/// the clock are a part of it.
///
/// # Errors
/// The load or the contender fails, the kernel does not count, or [`crate::supervise::Interrupted`].
pub fn nanoseconds(supervisor: &Supervisor, plan: &Plan, contender: &Contender) -> Result<Vec<f64>> {
    (0..plan.rounds).map(|_| once(supervisor, plan, contender)).collect()
}

fn once(supervisor: &Supervisor, plan: &Plan, contender: &Contender) -> Result<f64> {
    let lab = Lab::create(plan.ipv6)?;
    let mut guard = contender.stand_guard(supervisor, &lab)?;
    let program = Program::pinned(Path::new(ACCEPTS))?;
    let counting = bpf::count_run_time()?;
    let before = program.runs()?;
    let observed = measure_once(supervisor, &lab, contender, &mut guard, Measure::Udp64, plan.duration)?;
    let after = program.runs()?;
    drop(counting);
    guard.stand_down(supervisor)?;
    let (count, time) = (after.count - before.count, after.time - before.time);
    ensure!(count > 0 && count >= observed.rules.answered, "the program ran {count} times for more packets");
    Ok(time as f64 / count as f64)
}

/// The contender that differs from one with the cache in nothing but the cache and the daemon.
const PLAIN: &str = "accept";

/// What was found, in sentences: the program's own time, and what the sender's rate says all of it costs.
pub fn sentences(plan: &Plan, samples: &Samples, contender: &Contender, nanoseconds: &[f64]) -> Option<String> {
    let format = |spread: Spread| spread.format(|nanoseconds| format!("{nanoseconds:.0}"));
    let name = contender.name();
    let mut text = format!(
        "A packet that the kernel answers costs {} ns in the program that accepts (`udp-64` by {name}, {} runs of {} s, the \
         kernel's own looks at the clock included).",
        format(Spread::of(nanoseconds.iter().copied())?),
        nanoseconds.len(),
        plan.duration.as_secs_f64()
    );
    let index = |name: &str| plan.contenders.iter().position(|contender| contender.name() == name);
    if let (Some(this), Some(plain)) = (index(name), index(PLAIN))
        && let Some(more) = Spread::of(nanoseconds_more(samples, this, plain, Measure::Udp64))
    {
        text += &format!(
            " By the rates of `udp-64` one takes {} ns longer than by {PLAIN}, which is that, the second rule, and what the \
             daemon watches in system calls.",
            format(more)
        );
    }
    Some(text + "\n")
}
