//! Medians, spreads and ratios as Markdown.

use std::fmt::Write;
use std::time::Duration;

use crate::comparison::{Observed, Plan, Samples};
use crate::contender::Reach;
use crate::measure::Measure;

/// Median and extremes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The one in the middle.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The greatest.
    pub most: f64,
}

impl Spread {
    /// None if there are no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let (&least, &most) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Self { median, least, most })
    }

    /// The median, and the extremes in brackets.
    pub fn format(self, number: impl Fn(f64) -> String) -> String {
        format!("{} ({}-{})", number(self.median), number(self.least), number(self.most))
    }
}

/// The table of figures: medians over the rounds, with the extremes in brackets.
pub fn figures(plan: &Plan, samples: &Samples) -> String {
    let mut header = vec!["contender".to_owned()];
    for measure in &plan.measures {
        header.push(measure.heading().to_owned());
        if measure.has_latency() {
            header.push("p50 / p99, us".to_owned());
        }
    }
    let rows = plan.contenders.iter().enumerate().map(|(index, contender)| {
        let mut row = vec![contender.name().to_owned()];
        for &measure in &plan.measures {
            let rates = Spread::of(samples.of(index, measure).map(|sample| sample.rate));
            row.push(cell(rates, |rate| measure.format(rate)));
            if measure.has_latency() {
                row.push(latency_cell(samples, index, measure));
            }
        }
        row
    });
    table(&header, rows)
}

fn cell(spread: Option<Spread>, number: impl Fn(f64) -> String) -> String {
    spread.map_or("-".to_owned(), |spread| spread.format(number))
}

/// Medians over the rounds of each round's percentiles.
fn latency_cell(samples: &Samples, contender: usize, measure: Measure) -> String {
    let latencies = || samples.of(contender, measure).filter_map(|sample| sample.latency);
    let p50 = Spread::of(latencies().map(|latency| micros(latency.p50)));
    let p99 = Spread::of(latencies().map(|latency| micros(latency.p99)));
    match (p50, p99) {
        (Some(p50), Some(p99)) => format!("{:.0} / {:.0}", p50.median, p99.median),
        _ => "-".to_owned(),
    }
}

/// The rates of contender number `contender` relative to number `baseline`, one per round.
///
/// Round by round: what slows the machine down for longer than a round slows both, and cancels out.
pub fn ratios(samples: &Samples, contender: usize, baseline: usize, measure: Measure) -> Vec<f64> {
    let pairs = samples.of(contender, measure).zip(samples.of(baseline, measure));
    pairs.map(|(this, base)| this.rate / base.rate).collect()
}

/// The table of rates relative to contender number `baseline`.
pub fn ratio_table(plan: &Plan, samples: &Samples, baseline: usize) -> String {
    let mut header = vec![format!("rate relative to {}", plan.contenders[baseline].name())];
    header.extend(plan.measures.iter().map(|measure| measure.token().to_owned()));
    let rows = plan.contenders.iter().enumerate().map(|(index, contender)| {
        let mut row = vec![contender.name().to_owned()];
        row.extend(plan.measures.iter().map(|&measure| {
            cell(Spread::of(ratios(samples, index, baseline, measure)), |ratio| format!("{ratio:.2}"))
        }));
        row
    });
    table(&header, rows)
}

/// Markdown list items: what disturbed the run, so that a reader knows how far to trust it.
pub fn circumstances(plan: &Plan, samples: &Samples) -> String {
    let mut text = String::new();
    if let Some(taken) = Spread::of(samples.taken_by_others()) {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "- share of the machine taken by others, per sample: {}",
            taken.format(|share| format!("{:.0} %", share * 100.0))
        );
    }
    for (index, contender) in plan.contenders.iter().enumerate() {
        for &measure in &plan.measures {
            let dropped = samples.dropped(index, measure);
            if dropped > 0 {
                let _ =
                    writeln!(text, "- {}, {}: {dropped} packets lost in the queue", contender.name(), measure.token());
            }
        }
    }
    text
}

/// How much longer half of the operations take by contender number `contender` than by number `baseline`, in microseconds,
/// one per round.
pub fn p50_more(samples: &Samples, contender: usize, baseline: usize, measure: Measure) -> Vec<f64> {
    let halves = |index| samples.of(index, measure).filter_map(|sample| Some(micros(sample.latency?.p50)));
    halves(contender).zip(halves(baseline)).map(|(this, base)| this - base).collect()
}

/// In microseconds.
pub fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// How many nanoseconds longer the machine takes for a packet by contender number `contender` than by number `baseline`, one
/// per round.
pub fn nanoseconds_more(samples: &Samples, contender: usize, baseline: usize, measure: Measure) -> Vec<f64> {
    let pairs = samples.of(contender, measure).zip(samples.of(baseline, measure));
    pairs.map(|(this, base)| (1.0 / this.rate - 1.0 / base.rate) * 1e9).collect()
}

/// Processor time: seconds of the whole machine, and of them those of the contender's processes, for what people pay for.
pub fn processor_time(plan: &Plan, samples: &Samples) -> String {
    /// A measure, what its count is divided by, and what that makes.
    const COSTS: [(Measure, f64, &str); 4] = [
        (Measure::TcpBulk, 1e9 / 8.0, "per Gbit"),
        (Measure::Connect1, 1e4, "per 10,000 connections, 1 thread"),
        (Measure::Connect8, 1e4, "per 10,000 connections, 8 threads"),
        (Measure::Udp64, 1e6, "per 1,000,000 packets"),
    ];
    let costs: Vec<_> = COSTS.into_iter().filter(|(measure, ..)| plan.measures.contains(measure)).collect();
    let mut header = vec!["CPU seconds: machine / of them contender".to_owned()];
    header.extend(costs.iter().map(|(_, _, unit)| (*unit).to_owned()));
    let rows = plan.contenders.iter().enumerate().map(|(index, contender)| {
        let mut row = vec![contender.name().to_owned()];
        row.extend(costs.iter().map(|&(measure, unit, _)| {
            let per = |spent: fn(&Observed) -> Duration| {
                let each = |one: Observed| spent(&one).as_secs_f64() / (one.sample.count as f64 / unit);
                Spread::of(samples.observed(index, measure).map(each))
            };
            match (per(|one| one.spent.machine), per(|one| one.spent.guard)) {
                (Some(machine), Some(guard)) => {
                    format!("{} / {:.3}", machine.format(|spent| format!("{spent:.3}")), guard.median)
                }
                _ => "-".to_owned(),
            }
        }));
        row
    });
    table(&header, rows)
}

/// How many of the packets the kernel had an answer for, where there is a cache.
pub fn answered(plan: &Plan, samples: &Samples) -> Option<String> {
    let mut header = vec!["packets that the kernel answered".to_owned()];
    header.extend(plan.measures.iter().map(|measure| measure.token().to_owned()));
    let cached: Vec<_> =
        plan.contenders.iter().enumerate().filter(|(_, it)| it.reach() == Reach::KernelOrQueue).collect();
    if cached.is_empty() {
        return None;
    }
    let rows = cached.into_iter().map(|(index, contender)| {
        let mut row = vec![contender.name().to_owned()];
        row.extend(plan.measures.iter().map(|&measure| {
            let shares = samples.observed(index, measure).map(|observed| observed.answered_share());
            cell(Spread::of(shares), |share| format!("{:.1} %", share * 100.0))
        }));
        row
    });
    Some(table(&header, rows))
}

/// One line per measure: whether the median of the first contender reaches `target` of the second, and in how many rounds
/// it did, because a median alone would hide a verdict that is a matter of luck.
pub fn verdicts(plan: &Plan, samples: &Samples, (contender, baseline): (usize, usize), target: f64) -> String {
    let names = (plan.contenders[contender].name(), plan.contenders[baseline].name());
    let mut text = String::new();
    for &measure in &plan.measures {
        let ratios = ratios(samples, contender, baseline, measure);
        let reached = ratios.iter().filter(|&&ratio| ratio >= target).count();
        let rounds = ratios.len();
        let Some(spread) = Spread::of(ratios) else { continue };
        let word = if spread.median >= target { "PASS".to_owned() } else { format!("BELOW {target}") };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "- {} / {}, {}: {} {word} ({target} reached in {reached} of {rounds} rounds)",
            names.0,
            names.1,
            measure.token(),
            spread.format(|ratio| format!("{ratio:.2}")),
        );
    }
    text
}

/// Rows of cells as Markdown.
pub fn table(header: &[String], rows: impl Iterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(header);
    text.push_str(&line(&vec!["---".to_owned(); header.len()]));
    rows.for_each(|row| text.push_str(&line(&row)));
    text
}

#[cfg(test)]
pub mod tests {
    //! A plan and samples for the tests of whatever reads them.

    use super::*;
    use crate::contender::{Contender, QueueCounters, RuleCounters};
    use crate::machine::Spent;
    use crate::measure::Sample;

    /// What one sample of `rate` packets per second looked like.
    pub fn observed(rate: f64) -> Observed {
        Observed {
            sample: Sample { rate, count: 1_000_000, latency: None },
            taken_by_others: 0.25,
            queue: QueueCounters { queued: 1, dropped: 0 },
            rules: RuleCounters { passed: 4, answered: 3 },
            spent: Spent { machine: Duration::from_secs(2), guard: Duration::from_millis(500) },
        }
    }

    /// Two contenders, one measure.
    pub fn two_rounds() -> (Plan, Samples) {
        let contenders = vec![Contender::None, Contender::AcceptAll { name: "accept-all", gso: true }];
        let duration = Duration::from_secs(1);
        let plan = Plan { contenders, measures: vec![Measure::Udp64], duration, rounds: 2, ipv6: false };
        let mut samples = Samples::default();
        for (none, accept_all) in [(100.0, 70.0), (200.0, 150.0)] {
            for (contender, rate) in [none, accept_all].into_iter().enumerate() {
                let queue = QueueCounters { queued: 1, dropped: contender as u64 };
                samples.add(contender, Measure::Udp64, Observed { queue, ..observed(rate) });
            }
        }
        (plan, samples)
    }

    #[test]
    fn processor_time_is_by_unit() {
        let (plan, samples) = two_rounds();
        assert!(processor_time(&plan, &samples).ends_with("| accept-all | 2.000 (2.000-2.000) / 0.500 |\n"));
    }

    #[test]
    fn only_who_has_a_cache_has_answers() {
        let (plan, samples) = two_rounds();
        assert_eq!(answered(&plan, &samples), None);
        assert_eq!(observed(1.0).answered_share(), 0.75);
    }

    #[test]
    fn a_spread_has_its_median_in_the_middle() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0].into_iter()), Some(Spread { median: 2.0, least: 1.0, most: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0].into_iter()).unwrap().median, 2.5);
        assert_eq!(Spread::of(std::iter::empty()), None);
    }

    #[test]
    fn figures_are_a_table() {
        let (plan, samples) = two_rounds();
        let expected = "| contender | UDP 64 B, packets/s |\n| --- | --- |\n\
                        | none | 150 (100-200) |\n| accept-all | 110 (70-150) |\n";
        assert_eq!(figures(&plan, &samples), expected);
    }

    #[test]
    fn disturbances_are_told() {
        let (plan, samples) = two_rounds();
        let expected = "- share of the machine taken by others, per sample: 25 % (25 %-25 %)\n\
                        - accept-all, udp-64: 2 packets lost in the queue\n";
        assert_eq!(circumstances(&plan, &samples), expected);
    }

    #[test]
    fn slower_takes_longer() {
        let (_, samples) = two_rounds();
        let more: Vec<i64> = nanoseconds_more(&samples, 1, 0, Measure::Udp64).iter().map(|more| *more as i64).collect();
        assert_eq!(more, [4_285_714, 1_666_666]);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let (plan, samples) = two_rounds();
        assert!(ratio_table(&plan, &samples, 0).contains("| accept-all | 0.72 (0.70-0.75) |"));
        let below = "- accept-all / none, udp-64: 0.72 (0.70-0.75) BELOW 0.8 (0.8 reached in 0 of 2 rounds)\n";
        assert_eq!(verdicts(&plan, &samples, (1, 0), 0.8), below);
        assert!(verdicts(&plan, &samples, (0, 1), 0.8).contains("PASS (0.8 reached in 2 of 2 rounds)"));
    }
}
