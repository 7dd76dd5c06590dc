//! Rules that hold at times only: an end (`--until`), times of the week (`--time`).

use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, Zoned};
use shared::rule::TimeWindow;
use shared::{Match, Rule};

/// The moment for which rules are made ready.
#[derive(Clone, Debug)]
pub(super) struct Moment {
    now: Timestamp,
    zone: TimeZone,
}

impl Moment {
    /// This one, by the machine's time zone.
    pub(super) fn now() -> Moment {
        Moment { now: Timestamp::now(), zone: TimeZone::system() }
    }

    #[cfg(test)]
    pub(super) fn at(now: Timestamp, zone: TimeZone) -> Moment {
        Moment { now, zone }
    }

    pub(super) fn time(&self) -> Timestamp {
        self.now
    }

    fn local(&self, window: &TimeWindow) -> Zoned {
        self.now.to_zoned(if window.utc { TimeZone::UTC } else { self.zone.clone() })
    }

    /// Whether it is such a time of the week.
    pub(super) fn is_within(&self, window: &TimeWindow) -> bool {
        let local = self.local(window);
        let minute = u16::from(local.hour().unsigned_abs()) * 60 + u16::from(local.minute().unsigned_abs());
        window.is_open(local.weekday().to_monday_zero_offset().unsigned_abs(), minute)
    }

    /// Whether a rule has not had its end.
    pub(super) fn is_before_end(&self, rule: &Rule) -> bool {
        rule.until.is_none_or(|until| until > self.now)
    }

    /// What of a rule depends on time: whether it has not had its end, and which of its times it is. `None`: nothing does.
    pub(super) fn state(&self, rule: &Rule) -> Option<Vec<bool>> {
        let mut state: Vec<bool> = windows(rule).map(|window| self.is_within(window)).collect();
        if rule.until.is_some() || !state.is_empty() {
            state.push(self.is_before_end(rule));
            return Some(state);
        }
        None
    }

    /// When to look again at a rule; it may be sooner than something changes. `None`: nothing will.
    pub(super) fn next(&self, rule: &Rule) -> Option<Timestamp> {
        let end = rule.until.filter(|until| *until > self.now);
        windows(rule).filter_map(|window| self.next_of(window)).chain(end).min()
    }

    /// The next time at which a window may open or close: one of its hours, or when clocks change.
    fn next_of(&self, window: &TimeWindow) -> Option<Timestamp> {
        let local = self.local(window);
        let change = local.time_zone().following(self.now).next().map(|change| change.timestamp());
        let hours = (0..=2).filter_map(|days| local.date().checked_add(days.days()).ok()).flat_map(|date| {
            [window.from, window.to].into_iter().filter_map(move |minute| {
                let date = if minute < MINUTES { date } else { date.tomorrow().ok()? };
                let minute = minute % MINUTES;
                let time = Time::new((minute / 60).try_into().ok()?, (minute % 60).try_into().ok()?, 0, 0).ok()?;
                Some(date.to_datetime(time))
            })
        });
        // An hour that clocks show twice is meant both times.
        let times = hours.flat_map(|hour| {
            let zone = local.time_zone();
            [zone.to_ambiguous_timestamp(hour).earlier(), zone.to_ambiguous_timestamp(hour).later()]
        });
        times.flatten().chain(change).filter(|time| *time > self.now).min()
    }
}

/// Of a day.
const MINUTES: u16 = 24 * 60;

fn windows(rule: &Rule) -> impl Iterator<Item = &TimeWindow> {
    rule.predicates.iter().filter_map(|predicate| match &predicate.on {
        Match::Time(window) => Some(window),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn berlin() -> TimeZone {
        // Without a database of zones: the rule that holds in Berlin.
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    fn moment(text: &str) -> Moment {
        Moment::at(text.parse().unwrap(), berlin())
    }

    fn window(text: &str) -> TimeWindow {
        text.parse().unwrap()
    }

    #[test]
    fn local_time_and_utc() {
        // A Wednesday, 09:30 in Berlin.
        let now = moment("2026-11-18T08:30:00Z");
        for (text, expected) in [
            ("09:00-10:00", true),
            ("08:00-09:00", false),
            ("08:00-09:00/utc", true),
            ("wed@09:00-10:00", true),
            ("thu@09:00-10:00", false),
            ("tue@22:00-10:00", true),
            ("mon-fri", true),
            ("sat,sun", false),
        ] {
            assert_eq!(now.is_within(&window(text)), expected, "{text}");
        }
    }

    #[test]
    fn the_next_look_is_no_later_than_the_next_change() {
        let windows =
            ["09:00-10:00", "fri@22:00-06:00", "sun@02:30-03:30", "00:00-24:00", "sat,sun", "01:00-02:00/utc"];
        // Over both changes of clocks.
        for begin in ["2026-03-27T00:00:00Z", "2026-10-23T00:00:00Z"] {
            let begin: Timestamp = begin.parse().unwrap();
            for text in windows {
                let window = window(text);
                let is_open = |now| Moment::at(now, berlin()).is_within(&window);
                let mut now = begin;
                let mut looks = 0;
                while now < begin + 144.hours() {
                    let next = Moment::at(now, berlin()).next_of(&window).unwrap();
                    assert!(next > now, "{text} at {now}");
                    let (open, mut minute) = (is_open(now), now + 1.minute());
                    while minute < next {
                        assert_eq!(is_open(minute), open, "{text}: between {now} and {next}");
                        minute += 1.minute();
                    }
                    now = next;
                    looks += 1;
                }
                assert!(looks < 30, "{text}: {looks}");
            }
        }
    }

    #[test]
    fn an_end_comes_once() {
        let rule: Rule = "-c OUTPUT -n any -v DROP --until 2026-11-18T09:00:00Z".parse().unwrap();
        let before = moment("2026-11-18T08:59:59.5Z");
        assert_eq!(before.state(&rule), Some(vec![true]));
        assert_eq!(before.next(&rule), rule.until);
        let after = moment("2026-11-18T09:00:00Z");
        assert_eq!((after.state(&rule), after.next(&rule)), (Some(vec![false]), None));
        let always: Rule = "-c OUTPUT -n any -v DROP".parse().unwrap();
        assert_eq!((after.state(&always), after.next(&always)), (None, None));
    }
}
