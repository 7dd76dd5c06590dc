//! Time for batches and reads: the TSC where it can be trusted, else the kernel's raw monotonic clock.

use nix::time::{ClockId, clock_gettime};

/// Counts nanoseconds from an arbitrary start. Cheap to clone; all clones agree.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    /// Calibrated against the system's clock when it was made.
    Tsc {
        clock: quanta::Clock,
        start: u64,
    },
    MonotonicRaw,
}

impl Clock {
    /// Uses the TSC if the CPU says that it neither stops nor changes its pace; calibrating takes some milliseconds.
    pub fn new() -> Clock {
        if !tsc_is_invariant() {
            return Clock(Source::MonotonicRaw);
        }
        let clock = quanta::Clock::new();
        let start = clock.raw();
        Clock(Source::Tsc { clock, start })
    }

    /// The fallback.
    pub fn monotonic_raw() -> Clock {
        Clock(Source::MonotonicRaw)
    }

    /// Stable token for status.
    pub fn name(&self) -> &'static str {
        match self.0 {
            Source::Tsc { .. } => "tsc",
            Source::MonotonicRaw => "monotonic-raw",
        }
    }

    /// Nanoseconds.
    pub fn now(&self) -> u64 {
        match &self.0 {
            Source::Tsc { clock, start } => clock.delta_as_nanos(*start, clock.raw()),
            Source::MonotonicRaw => clock_gettime(ClockId::CLOCK_MONOTONIC_RAW)
                .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64),
        }
    }
}

impl Default for Clock {
    fn default() -> Clock {
        Clock::new()
    }
}

/// The kernel's reading of the CPU (`constant_tsc`: same pace in all P-states, `nonstop_tsc`: goes on in C-states), and
/// its own trust: it stops offering a TSC as clock source that it found drifting between CPUs.
fn tsc_is_invariant() -> bool {
    let flags_say_so = procfs::CpuInfo::current_or_empty().is_some_and(|flags| {
        ["constant_tsc", "nonstop_tsc"].iter().all(|wanted| flags.iter().any(|flag| flag == wanted))
    });
    let sources = "/sys/devices/system/clocksource/clocksource0/available_clocksource";
    flags_say_so
        && std::fs::read_to_string(sources)
            .is_ok_and(|sources| sources.split_whitespace().any(|source| source == "tsc" || source == "kvm-clock"))
}

/// The flags of the first CPU.
trait CpuFlags {
    fn current_or_empty() -> Option<Vec<String>>;
}

impl CpuFlags for procfs::CpuInfo {
    fn current_or_empty() -> Option<Vec<String>> {
        use procfs::Current;
        let info = procfs::CpuInfo::current().ok()?;
        Some(info.flags(0)?.into_iter().map(String::from).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn both_clocks_run_as_fast_as_the_system() {
        for clock in [Clock::new(), Clock::monotonic_raw()] {
            let (start, reference) = (clock.now(), Instant::now());
            while reference.elapsed() < Duration::from_millis(20) {
                std::hint::spin_loop();
            }
            let (took, reference) = (clock.now() - start, reference.elapsed().as_nanos() as u64);
            // Five in a hundred: NTP may slew the system's clock, but not by that much.
            assert!(took.abs_diff(reference) < reference / 20, "{}: {took} against {reference}", clock.name());
        }
    }
}
