//! When a rule is gone: `--until TIME` and `--for DURATION`.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;

/// An end, as it was given.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Moment {
    /// This very moment.
    At(Timestamp),
    /// This date and time, by the machine's local time.
    Local(DateTime),
    /// The next time the machine's clock shows this.
    Clock(Time),
    /// So long from now.
    In(Duration),
}

impl Moment {
    /// Reads `--until`.
    pub(crate) fn until(text: &str) -> Result<Moment, String> {
        // A zone makes it a moment; a date without a time is its midnight.
        if let Ok(moment) = text.parse() {
            return Ok(Moment::At(moment));
        }
        if text.contains('-')
            && let Ok(local) = text.parse()
        {
            return Ok(Moment::Local(local));
        }
        text.parse().map(Moment::Clock).map_err(|_| {
            format!("{text:?} is no time: 18:30, 2026-12-31, 2026-12-31T18:30 (local), or 2026-12-31T18:30:00Z")
        })
    }

    /// Reads `--for`.
    pub(crate) fn after(text: &str) -> Result<Moment, String> {
        duration(text)
            .map(Moment::In)
            .ok_or_else(|| format!("{text:?} is no length of time: 90s, 10m, 2h30m, 1d or 2w, at most 10 years"))
    }

    /// The moment it is, seen at `now`.
    pub(crate) fn resolve(self, now: Timestamp, zone: &TimeZone) -> Result<Timestamp, jiff::Error> {
        match self {
            Moment::At(moment) => Ok(moment),
            Moment::Local(local) => zone.to_timestamp(local),
            Moment::In(length) => now.checked_add(length),
            Moment::Clock(time) => {
                let today = now.to_zoned(zone.clone()).date();
                let moment = zone.to_timestamp(today.to_datetime(time))?;
                if moment > now { Ok(moment) } else { zone.to_timestamp(today.tomorrow()?.to_datetime(time)) }
            }
        }
    }
}

/// Seconds of ten years.
const LONGEST: u64 = 10 * 366 * 86_400;

/// `2h30m`: numbers and units in descending order.
fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut seconds, mut last) = (text, 0u64, u64::MAX);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let count: u64 = rest[..digits].parse().ok()?;
        let unit = match rest.as_bytes()[digits] {
            b's' => 1,
            b'm' => 60,
            b'h' => 3600,
            b'd' => 86_400,
            b'w' => 604_800,
            _ => return None,
        };
        if unit >= last {
            return None;
        }
        (last, rest) = (unit, &rest[digits + 1..]);
        seconds = seconds.checked_add(count.checked_mul(unit)?)?;
    }
    (1..=LONGEST).contains(&seconds).then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lengths_of_time() {
        let seconds = |text: &str| duration(text).map(|length| length.as_secs());
        assert_eq!(seconds("10m"), Some(600));
        assert_eq!(seconds("2h30m"), Some(9000));
        assert_eq!(seconds("1d"), Some(86_400));
        assert_eq!(seconds("1w1d1h1m1s"), Some(604_800 + 86_400 + 3661));
        for bad in
            ["", "10", "m", "0s", "10x", "30m2h", "1m1m", "-1m", "1.5h", "99999999999999999999s", "11w99999d", "1é"]
        {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn ends_are_moments() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let at = |text: &str| Moment::until(text).unwrap().resolve(now, &zone).unwrap().to_string();
        assert_eq!(at("2026-12-31T18:30:00Z"), "2026-12-31T18:30:00Z");
        assert_eq!(at("2026-12-31T18:30"), "2026-12-31T16:30:00Z");
        assert_eq!(at("2026-12-31 18:30"), "2026-12-31T16:30:00Z");
        assert_eq!(at("2026-12-31"), "2026-12-30T22:00:00Z");
        assert_eq!(at("18:30"), "2026-11-21T16:30:00Z");
        assert_eq!(at("13:30"), "2026-11-22T11:30:00Z");
        let after = Moment::after("1d").unwrap().resolve(now, &zone).unwrap();
        assert_eq!(after.to_string(), "2026-11-22T12:00:00Z");
        for bad in ["", "soon", "25:00", "2026-13-01", "10m"] {
            assert!(Moment::until(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,20}") {
            let _ = (Moment::until(&text), Moment::after(&text));
        }
    }
}
