//! What a load process counted, as one line of text.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Percentiles of a connection's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// Half of them were at least as fast.
    pub p50: Duration,
    /// 99 of 100 were at least as fast.
    pub p99: Duration,
}

impl Latency {
    /// Percentiles (nearest rank) of `nanoseconds`, which get sorted; none if there are none.
    pub fn of(nanoseconds: &mut [u64]) -> Option<Self> {
        nanoseconds.sort_unstable();
        let rank = |percent: usize| {
            let rank = (nanoseconds.len() * percent).div_ceil(100);
            nanoseconds.get(rank.checked_sub(1)?).copied().map(Duration::from_nanos)
        };
        Some(Self { p50: rank(50)?, p99: rank(99)? })
    }
}

/// A count, the time it took, and percentiles where single operations were timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes, connections or packets.
    pub count: u64,
    /// From the first to the last thing counted.
    pub elapsed: Duration,
    /// Time per operation.
    pub latency: Option<Latency>,
}

impl Outcome {
    /// Things per second.
    ///
    /// # Errors
    /// Nothing was counted, or in no time: there is no rate.
    pub fn per_second(&self) -> Result<f64> {
        if self.count == 0 || self.elapsed.is_zero() {
            bail!("nothing was counted ({self})");
        }
        Ok(self.count as f64 / self.elapsed.as_secs_f64())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "count={} ns={}", self.count, self.elapsed.as_nanos())?;
        match self.latency {
            Some(Latency { p50, p99 }) => write!(out, " p50_ns={} p99_ns={}", p50.as_nanos(), p99.as_nanos()),
            None => Ok(()),
        }
    }
}

impl FromStr for Outcome {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let field = |name: &str| {
            line.split(' ')
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
                .map(str::parse::<u64>)
                .transpose()
        };
        let required = |name: &str| field(name)?.with_context(|| format!("no {name} in {line:?}"));
        let latency = match (field("p50_ns")?, field("p99_ns")?) {
            (Some(p50), Some(p99)) => Some(Latency { p50: Duration::from_nanos(p50), p99: Duration::from_nanos(p99) }),
            _ => None,
        };
        Ok(Self { count: required("count")?, elapsed: Duration::from_nanos(required("ns")?), latency })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_all_of_it() {
        let latency = Some(Latency { p50: Duration::from_micros(40), p99: Duration::from_millis(2) });
        for latency in [None, latency] {
            let outcome = Outcome { count: 7, elapsed: Duration::from_secs(3), latency };
            assert_eq!(outcome.to_string().parse::<Outcome>().unwrap(), outcome);
        }
        assert!("count=1".parse::<Outcome>().is_err());
        assert!("count=x ns=1".parse::<Outcome>().is_err());
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let mut times: Vec<u64> = (1..=200).rev().collect();
        let latency = Latency::of(&mut times).unwrap();
        assert_eq!(latency.p50, Duration::from_nanos(100));
        assert_eq!(latency.p99, Duration::from_nanos(198));
        assert_eq!(Latency::of(&mut []), None);
        assert_eq!(Latency::of(&mut [5]).unwrap().p99, Duration::from_nanos(5));
    }

    #[test]
    fn nothing_has_no_rate() {
        let nothing = Outcome { count: 0, elapsed: Duration::from_secs(1), latency: None };
        assert!(nothing.per_second().is_err());
    }
}
