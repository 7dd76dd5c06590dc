//! What is asked of the daemon, and whether a run has shown it.

use std::time::Duration;

use crate::comparison::{Plan, Samples};
use crate::measure::Measure;
use crate::report::{Spread, micros, p50_more, ratios, table};

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Figure {
    /// The contender's rate is at least so much of the baseline's.
    Rate(Measure, f64),
    /// Half of the operations take at most so much longer.
    Longer(Measure, Duration),
}

/// One thing that is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Target {
    contender: &'static str,
    baseline: &'static str,
    figure: Figure,
}

/// The name under which `--other` is held against the target for the reference.
pub const REFERENCE: &str = "reference";
/// Nanoseconds that a packet may cost that the kernel answers.
const PACKET_COST: f64 = 250.0;
/// Contenders whose packets the kernel answers: as usual, and with many rules and flows.
const CACHED: [&str; 2] = ["app-fw-on", "app-fw-on-many"];

fn targets() -> Vec<Target> {
    let mut all = Vec::new();
    let mut ask = |contender, baseline, figure| all.push(Target { contender, baseline, figure });
    for contender in CACHED {
        ask(contender, "conntrack", Figure::Rate(Measure::TcpBulk, 0.95));
        ask(contender, "conntrack", Figure::Rate(Measure::Connect1, 0.85));
        ask(contender, "conntrack", Figure::Longer(Measure::Connect1, Duration::from_micros(15)));
        ask(contender, "conntrack", Figure::Rate(Measure::Udp64, 0.9));
    }
    for measure in Measure::USUAL {
        ask("app-fw-off", "accept-all", Figure::Rate(measure, 0.9));
    }
    ask("app-fw-off", "accept-all", Figure::Longer(Measure::First, Duration::from_micros(200)));
    for measure in Measure::USUAL {
        ask("app-fw-off", REFERENCE, Figure::Rate(measure, 30.0));
    }
    all
}

impl Target {
    /// One row: what, limit, what came out, in how many rounds it was reached, and whether the median reaches it: the median
    /// alone would hide a matter of luck. None if it was not measured.
    fn row(&self, plan: &Plan, samples: &Samples) -> Option<Vec<String>> {
        let index = |name: &str| plan.contenders.iter().position(|contender| contender.name() == name);
        let (contender, baseline) = (index(self.contender)?, index(self.baseline)?);
        let Self { contender: this, baseline: base, .. } = self;
        match self.figure {
            Figure::Rate(measure, least) => {
                let what = format!("{this} / {base}, {}", measure.token());
                let values = ratios(samples, contender, baseline, measure);
                judged(what, format!(">= {least}"), &values, "", |ratio| format!("{ratio:.2}"), |ratio| ratio >= least)
            }
            Figure::Longer(measure, most) => {
                let (what, most) = (format!("{this} - {base}, {}, p50", measure.token()), micros(most));
                let values = p50_more(samples, contender, baseline, measure);
                judged(what, format!("<= {most} us"), &values, " us", |more| format!("{more:.0}"), |more| more <= most)
            }
        }
    }
}

fn judged(
    what: String,
    limit: String,
    values: &[f64],
    unit: &str,
    number: impl Fn(f64) -> String,
    is_reached: impl Fn(f64) -> bool,
) -> Option<Vec<String>> {
    let spread = Spread::of(values.iter().copied())?;
    let reached = values.iter().filter(|&&value| is_reached(value)).count();
    let rounds = format!("{reached} of {}", values.len());
    let word = if is_reached(spread.median) { "met" } else { "**not met**" };
    Some(vec![what, limit, spread.format(number) + unit, rounds, word.to_owned()])
}

/// The targets that this run has something to say about, if any; `packet_cost` in nanoseconds, one per round.
pub fn table_of(plan: &Plan, samples: &Samples, packet_cost: &[f64]) -> Option<String> {
    let cost = judged(
        "cost of a packet that the kernel answers".to_owned(),
        format!("<= {PACKET_COST} ns"),
        packet_cost,
        " ns",
        |cost| format!("{cost:.0}"),
        |cost| cost <= PACKET_COST,
    );
    let rows: Vec<_> = targets().into_iter().filter_map(|target| target.row(plan, samples)).chain(cost).collect();
    let header = ["target", "limit", "median (least-most)", "rounds", "in this run"].map(str::to_owned);
    (!rows.is_empty()).then(|| table(&header, rows.into_iter()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::two_rounds;

    #[test]
    fn a_median_meets_a_target_or_not() {
        let (plan, samples) = two_rounds();
        let target = |figure| Target { contender: "accept-all", baseline: "none", figure };
        let row = target(Figure::Rate(Measure::Udp64, 0.72)).row(&plan, &samples).unwrap();
        assert_eq!(row, ["accept-all / none, udp-64", ">= 0.72", "0.72 (0.70-0.75)", "1 of 2", "met"]);
        let row = target(Figure::Rate(Measure::Udp64, 0.8)).row(&plan, &samples).unwrap();
        assert_eq!(row[3..], ["0 of 2", "**not met**"]);
        assert_eq!(
            target(Figure::Longer(Measure::Udp64, Duration::ZERO)).row(&plan, &samples),
            None,
            "no latency there"
        );
        assert_eq!(target(Figure::Rate(Measure::Connect1, 1.0)).row(&plan, &samples), None);
        let other = Target { contender: "app-fw-on", ..target(Figure::Rate(Measure::Udp64, 1.0)) };
        assert_eq!(other.row(&plan, &samples), None);
    }

    #[test]
    fn what_was_not_measured_is_left_out() {
        let (plan, samples) = two_rounds();
        assert_eq!(table_of(&plan, &samples, &[]), None);
        let text = table_of(&plan, &samples, &[180.0, 251.0, 240.0]).unwrap();
        assert!(text.ends_with("| <= 250 ns | 240 (180-251) ns | 2 of 3 | met |\n"), "{text}");
    }

    #[test]
    fn everything_asked_is_measured_by_itself_or_on_request() {
        assert!(targets().iter().all(|target| match target.figure {
            Figure::Rate(measure, _) | Figure::Longer(measure, _) =>
                Measure::USUAL.contains(&measure) || measure == Measure::First,
        }));
    }
}
