//! What a packet costs that the kernel has an answer for.

use anyhow::{Context, Result, bail, ensure};

use crate::bpf::{self, Runs};
use crate::comparison::{Plan, Samples, measure_once};
use crate::contender::Contender;
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
    let pid = guard.pid().context("only a daemon has programs")?;
    let before = bpf::filters_of(pid)?;
    let counting = bpf::count_run_time()?;
    let observed = measure_once(supervisor, &lab, contender, &mut guard, Measure::Udp64, plan.duration)?;
    drop(counting);
    let runs = busiest(&before, &bpf::filters_of(pid)?).context("the daemon holds no such program")?;
    ensure!(runs.count >= observed.rules.answered, "the program ran {} times for more packets", runs.count);
    guard.stand_down(supervisor)?;
    if runs.count == 0 {
        bail!("the program did not run");
    }
    Ok(runs.time as f64 / runs.count as f64)
}

/// The runs since `before` of the filter that ran most: that is the one that accepts, because what it accepts the others do
/// not see.
fn busiest(before: &[(u64, Runs)], after: &[(u64, Runs)]) -> Option<Runs> {
    let since = |&(id, runs): &(u64, Runs)| {
        let earlier = before.iter().find(|(other, _)| *other == id).map_or(Runs::default(), |(_, runs)| *runs);
        Runs { count: runs.count - earlier.count, time: runs.time - earlier.time }
    };
    after.iter().map(since).max_by_key(|runs| runs.count)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ran_before_does_not_count() {
        let runs = |count, time| Runs { count, time };
        let before = [(1, runs(1000, 5)), (2, runs(10, 100))];
        let after = [(1, runs(1001, 6)), (2, runs(30, 2100)), (3, runs(2, 2))];
        assert_eq!(busiest(&before, &after), Some(runs(20, 2000)));
        assert_eq!(busiest(&before, &[]), None);
    }
}
