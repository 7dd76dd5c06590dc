//! What a packet costs that the kernel has an answer for.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::bpf::{self, Runs};
use crate::comparison::{Plan, measure_once};
use crate::contender::Contender;
use crate::lab::Lab;
use crate::measure::Measure;
use crate::report::Spread;
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

/// One sentence.
pub fn sentence(name: &str, nanoseconds: &[f64], duration: Duration) -> Option<String> {
    let spread = Spread::of(nanoseconds.iter().copied())?.format(|nanoseconds| format!("{nanoseconds:.0}"));
    Some(format!(
        "The kernel's program that accepts, in `udp-64` by {name} ({} runs of {} s): {spread} ns per packet, the kernel's own \
         looks at the clock included.\n",
        nanoseconds.len(),
        duration.as_secs_f64()
    ))
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
