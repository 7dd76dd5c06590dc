//! Every contender by every measure, in interleaved rounds.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::contender::{Contender, Guard, QueueCounters, Reach, RuleCounters};
use crate::lab::Lab;
use crate::machine::{CpuTimes, Spent};
use crate::measure::{Measure, Sample};
use crate::supervise::Supervisor;

/// What to measure, and how often.
#[derive(Debug)]
pub struct Plan {
    /// In the order of the table.
    pub contenders: Vec<Contender>,
    /// In the order of the table.
    pub measures: Vec<Measure>,
    /// Length of one run of a measure.
    pub duration: Duration,
    /// How often everything is measured.
    pub rounds: usize,
    /// Whether the load uses IPv6.
    pub ipv6: bool,
}

/// All samples of a run.
#[derive(Debug, Default)]
pub struct Samples(Vec<Record>);

#[derive(Debug)]
struct Record {
    contender: usize,
    measure: Measure,
    observed: Observed,
}

/// A sample and the circumstances in which it was taken.
#[derive(Debug, Clone, Copy)]
pub struct Observed {
    /// What was measured.
    pub sample: Sample,
    /// The share of the machine (0 to 1) that processes outside this run, or the host, took meanwhile.
    pub taken_by_others: f64,
    /// What went through the contender's queues.
    pub queue: QueueCounters,
    /// What its rules counted.
    pub rules: RuleCounters,
    /// Processor time.
    pub spent: Spent,
}

impl Observed {
    /// The share (0 to 1) of the packets that the daemon's rules met and the kernel had an answer for.
    pub fn answered_share(&self) -> f64 {
        self.rules.answered as f64 / self.rules.passed.max(1) as f64
    }
}

impl Samples {
    /// Keeps what contender number `contender` gave by `measure`.
    pub fn add(&mut self, contender: usize, measure: Measure, observed: Observed) {
        self.0.push(Record { contender, measure, observed });
    }

    /// The share of the machine that others took, for each sample of the run.
    pub fn taken_by_others(&self) -> impl Iterator<Item = f64> {
        self.0.iter().map(|record| record.observed.taken_by_others)
    }

    /// Packets that the queues of contender number `contender` lost, in all rounds of `measure`.
    pub fn dropped(&self, contender: usize, measure: Measure) -> u64 {
        self.observed(contender, measure).map(|observed| observed.queue.dropped).sum()
    }

    /// One per round, oldest first, with the circumstances.
    pub fn observed(&self, contender: usize, measure: Measure) -> impl Iterator<Item = Observed> {
        self.0
            .iter()
            .filter(move |record| record.contender == contender && record.measure == measure)
            .map(|record| record.observed)
    }

    /// One sample per round, oldest first.
    pub fn of(&self, contender: usize, measure: Measure) -> impl Iterator<Item = Sample> {
        self.observed(contender, measure).map(|observed| observed.sample)
    }
}

/// Runs the plan. Within a measure the contenders follow each other at once, because the machine's mood changes within
/// seconds; each round starts with another of them, so that none always follows the same one. Each sample has namespaces of
/// its own: rules, tracked connections and what daemons leave behind are gone before the next.
///
/// # Errors
/// A contender or a load fails, a contender did not see each packet, or [`crate::supervise::Interrupted`].
pub fn compare(supervisor: &Supervisor, plan: &Plan) -> Result<Samples> {
    let mut samples = Samples::default();
    for round in 0..plan.rounds {
        for &measure in &plan.measures {
            for turn in 0..plan.contenders.len() {
                let index = (round + turn) % plan.contenders.len();
                let contender = &plan.contenders[index];
                let lab = Lab::create(plan.ipv6)?;
                let mut guard = contender.stand_guard(supervisor, &lab)?;
                let observed = measure_once(supervisor, &lab, contender, &mut guard, measure, plan.duration)
                    .with_context(|| format!("{} by {} failed", contender.name(), measure.token()))?;
                samples.add(index, measure, observed);
                guard.stand_down(supervisor)?;
            }
        }
        if !plan.measures.is_empty() {
            eprintln!("round {} of {} done", round + 1, plan.rounds);
        }
    }
    Ok(samples)
}

/// Runs one measure against a contender at work and tells about it on standard error.
///
/// # Errors
/// The load or the contender fails, or the contender did not see the packets.
pub fn measure_once(
    supervisor: &Supervisor,
    lab: &Lab,
    contender: &Contender,
    guard: &mut Guard,
    measure: Measure,
    duration: Duration,
) -> Result<Observed> {
    let reach = contender.reach();
    // To ask iptables makes its tables; where there is to be none, there shall be none.
    let counted = || if reach == Reach::None { Ok(RuleCounters::default()) } else { RuleCounters::read(&lab.client) };
    let (queue_before, rules_before) = (QueueCounters::read(&lab.client)?, counted()?);
    let cpu_before = CpuTimes::read(guard.pid())?;
    let outcome = measure.run(supervisor, lab, duration);
    // Before the outcome: when the guard has died, that is the cause and a failed load only its effect.
    guard.assert_alive()?;
    let sample = outcome?;
    let cpu = CpuTimes::read(guard.pid())?;
    let observed = Observed {
        sample,
        taken_by_others: cpu.taken_by_others_since(cpu_before),
        queue: QueueCounters::read(&lab.client)?.since(queue_before),
        rules: counted()?.since(rules_before),
        spent: cpu.spent_since(cpu_before),
    };
    tell(contender, measure, &observed);
    assert_seen(reach, measure, &observed)?;
    Ok(observed)
}

/// At least so much of what goes on in few flows the kernel must have had an answer for, or it is not the cache that was
/// measured.
const LEAST_ANSWERED: f64 = 0.5;

/// Figures of a contender that packets went past would mean nothing.
fn assert_seen(reach: Reach, measure: Measure, observed: &Observed) -> Result<()> {
    let least = measure.least_packets(observed.sample.count);
    let Observed { queue: QueueCounters { queued, .. }, rules: RuleCounters { passed, answered }, .. } = *observed;
    let seen = match reach {
        Reach::None => least,
        Reach::Rules => passed,
        Reach::Queue => queued,
        Reach::KernelOrQueue => queued + answered,
        // Whatever it looks at: one packet per connection, or only one.
        Reach::Some if measure.is_of_few_flows() => queued * least,
        Reach::Some => queued * 4,
    };
    if seen < least {
        bail!("it saw only {seen} packets where at least {least} were sent: not each one was judged");
    }
    if reach == Reach::KernelOrQueue && measure.is_of_few_flows() && observed.answered_share() < LEAST_ANSWERED {
        bail!("the kernel had an answer for only {answered} of {passed} packets: the cache does not work here");
    }
    Ok(())
}

/// One line on standard error.
fn tell(contender: &Contender, measure: Measure, observed: &Observed) {
    let Observed { sample, taken_by_others, queue, rules, .. } = observed;
    let latency = sample.latency.map_or(String::new(), |latency| {
        format!(" (p50 {:.0}, p99 {:.0} us)", latency.p50.as_secs_f64() * 1e6, latency.p99.as_secs_f64() * 1e6)
    });
    eprintln!(
        "  {:<16} {:<25} {:>9}{latency}; queued {}, dropped {}, answered {}; {:.0} % of the machine taken by others",
        contender.name(),
        measure.heading(),
        measure.format(sample.rate),
        queue.queued,
        queue.dropped,
        rules.answered,
        taken_by_others * 100.0,
    );
}
