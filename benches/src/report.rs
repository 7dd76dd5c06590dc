//! Medians, spreads and ratios as Markdown.

use std::fmt::Write;
use std::time::Duration;

use crate::comparison::{Plan, Samples};
use crate::measure::Measure;

/// What the daemon is asked to reach at least, relative to the baseline.
pub const TARGET: f64 = 0.8;

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
    let p50 = Spread::of(latencies().map(|latency| latency.p50.as_secs_f64() * 1e6));
    let p99 = Spread::of(latencies().map(|latency| latency.p99.as_secs_f64() * 1e6));
    match (p50, p99) {
        (Some(p50), Some(p99)) => format!("{:.0} / {:.0}", p50.median, p99.median),
        _ => "-".to_owned(),
    }
}

/// The rates of contender number `contender` relative to number `baseline`, one per round.
///
/// Round by round: what slows the machine down for longer than a round slows both, and cancels out.
fn ratios(samples: &Samples, contender: usize, baseline: usize, measure: Measure) -> Vec<f64> {
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

/// More than the baseline's, what the first packet of a process may take.
pub const FIRST_LIMIT: Duration = Duration::from_micros(200);

/// How much longer the first packet of a process takes by contender number `contender` than by number `baseline`: medians
/// of each round, subtracted round by round.
fn first_verdict(plan: &Plan, samples: &Samples, contender: usize, baseline: usize) -> Option<String> {
    let halves =
        |index| samples.of(index, Measure::First).filter_map(|sample| Some(sample.latency?.p50.as_secs_f64() * 1e6));
    let more = halves(contender).zip(halves(baseline)).map(|(this, base)| this - base);
    let spread = Spread::of(more)?;
    let limit = FIRST_LIMIT.as_micros();
    let word = if spread.median < limit as f64 { "PASS" } else { "ABOVE" };
    let names = (plan.contenders[contender].name(), plan.contenders[baseline].name());
    let figures = spread.format(|more| format!("{more:.0}"));
    Some(format!("- {} - {}, p50 of the first packet: {figures} us {word} (limit {limit} us)\n", names.0, names.1))
}

/// One line per measure: whether the median of the first contender reaches `target` of the second, and in how many rounds
/// it did, because a median alone would hide a verdict that is a matter of luck.
pub fn verdicts(plan: &Plan, samples: &Samples, (contender, baseline): (usize, usize), target: f64) -> String {
    let names = (plan.contenders[contender].name(), plan.contenders[baseline].name());
    let mut text = String::new();
    for &measure in &plan.measures {
        if measure == Measure::First {
            // Most of what is counted there is the start of processes.
            text.extend(first_verdict(plan, samples, contender, baseline));
            continue;
        }
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
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::comparison::Observed;
    use crate::contender::{Contender, QueueCounters};
    use crate::measure::Sample;

    fn two_rounds() -> (Plan, Samples) {
        let contenders = vec![Contender::None, Contender::AcceptAll];
        let plan = Plan { contenders, measures: vec![Measure::Udp64], duration: Duration::from_secs(1), rounds: 2 };
        let mut samples = Samples::default();
        for (none, accept_all) in [(100.0, 70.0), (200.0, 150.0)] {
            for (contender, rate) in [none, accept_all].into_iter().enumerate() {
                let sample = Sample { rate, count: 1, latency: None };
                let queue = QueueCounters { queued: 1, dropped: contender as u64 };
                samples.add(contender, Measure::Udp64, Observed { sample, taken_by_others: 0.25, queue });
            }
        }
        (plan, samples)
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
    fn ratios_are_taken_round_by_round() {
        let (plan, samples) = two_rounds();
        assert!(ratio_table(&plan, &samples, 0).contains("| accept-all | 0.72 (0.70-0.75) |"));
        let below = "- accept-all / none, udp-64: 0.72 (0.70-0.75) BELOW 0.8 (0.8 reached in 0 of 2 rounds)\n";
        assert_eq!(verdicts(&plan, &samples, (1, 0), TARGET), below);
        assert!(verdicts(&plan, &samples, (0, 1), TARGET).contains("PASS (0.8 reached in 2 of 2 rounds)"));
    }
}
