//! Facts about the machine that belong beside every figure, and how much of it others took meanwhile.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::sys::utsname::uname;
use nix::unistd::{SysconfVar, sysconf};

/// Markdown list items: kernel, processors, load at the start.
///
/// # Errors
/// /proc is not there.
pub fn facts() -> Result<String> {
    let system = uname().context("cannot ask for the kernel's name")?;
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, model)| model.trim()))
        .unwrap_or("model not stated");
    let count = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let load = fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
    let minute = load.split(' ').next().unwrap_or_default();
    Ok(format!(
        "- kernel: {} {} {}\n- processors: {count} x {model}\n- load average (1 minute) at the start: {minute}\n",
        system.sysname().to_string_lossy(),
        system.release().to_string_lossy(),
        system.machine().to_string_lossy(),
    ))
}

/// Processor time of the whole machine and of this run, up to a moment.
///
/// Time in interrupts is part of the whole. Kernels without CONFIG_IRQ_TIME_ACCOUNTING charge it to whichever process it
/// hits, so it is in `ours` too, and leaving it out of the whole would hide as much of the others' time. What hits an idle
/// processor is charged to nobody and ends up with the others: the share errs towards too much disturbance.
#[derive(Debug, Clone, Copy)]
pub struct CpuTimes {
    /// All processes and interrupts.
    everyone: Duration,
    /// This process, its reaped children, and the contender.
    ours: Duration,
    /// The contender's processes.
    guard: Duration,
    /// Taken by the host from this virtual machine.
    stolen: Duration,
    /// Everything, idle time included: what could be had.
    capacity: Duration,
}

impl CpuTimes {
    /// Reads the clocks; `guard` is the contender's process group.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn read(guard: Option<u32>) -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        let line = text.lines().next().context("/proc/stat is empty")?;
        let ticks = parse_cpu_line(line).with_context(|| format!("cannot read {line:?}"))?;
        let [user, nice, system, _idle, _iowait, irq, softirq, stolen] = ticks;
        let mut ours = Duration::ZERO;
        for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
            let usage = getrusage(who).context("cannot ask for own processor time")?;
            ours += duration(usage.user_time()) + duration(usage.system_time());
        }
        let guard = match guard {
            Some(group) => from_ticks(members(group)?.iter().map(|(_, ticks)| ticks).sum())?,
            None => Duration::ZERO,
        };
        Ok(Self {
            everyone: from_ticks(user + nice + system + irq + softirq)?,
            ours: ours + guard,
            guard,
            stolen: from_ticks(stolen)?,
            capacity: from_ticks(ticks.iter().sum())?,
        })
    }

    /// What was spent since `earlier`.
    pub fn spent_since(self, earlier: Self) -> Spent {
        Spent {
            machine: self.everyone.saturating_sub(earlier.everyone),
            guard: self.guard.saturating_sub(earlier.guard),
        }
    }

    /// The share of the machine (0 to 1) that was not to be had since `earlier`, because other processes or the host used it.
    pub fn taken_by_others_since(self, earlier: Self) -> f64 {
        let everyone = self.everyone.saturating_sub(earlier.everyone);
        let ours = self.ours.saturating_sub(earlier.ours);
        let stolen = self.stolen.saturating_sub(earlier.stolen);
        let capacity = self.capacity.saturating_sub(earlier.capacity);
        if capacity.is_zero() {
            return 0.0;
        }
        (everyone.saturating_sub(ours) + stolen).as_secs_f64() / capacity.as_secs_f64()
    }
}

/// Processor time of one sample.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// All processes and interrupts of the machine, the contender's too.
    pub machine: Duration,
    /// The contender's processes.
    pub guard: Duration,
}

/// The processes of a group, and the ticks that each has used.
fn members(group: u32) -> Result<Vec<(u32, u64)>> {
    let mut members = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let name = entry.context("cannot read /proc")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that ended meanwhile is no member any more.
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let (of, ticks) = parse_process(&text).with_context(|| format!("cannot read {text:?}"))?;
        if of == i64::from(group) {
            members.push((pid, ticks));
        }
    }
    Ok(members)
}

/// The ids of the processes of a group.
///
/// # Errors
/// /proc cannot be read.
pub fn processes_of(group: u32) -> Result<Vec<u32>> {
    Ok(members(group)?.into_iter().map(|(pid, _)| pid).collect())
}

/// `cpu  user nice system idle iowait irq softirq steal ...`, in ticks: proc_stat(5).
fn parse_cpu_line(line: &str) -> Option<[u64; 8]> {
    let mut columns = line.strip_prefix("cpu ")?.split_whitespace().map(str::parse);
    let mut ticks = [0; 8];
    for place in &mut ticks {
        *place = columns.next()?.ok()?;
    }
    Some(ticks)
}

/// Process group, and utime + stime in ticks: proc_pid_stat(5). The name before them may hold blanks and brackets, so it is
/// skipped from the end. A process that is just going away is of no group: -1.
fn parse_process(stat: &str) -> Option<(i64, u64)> {
    let mut columns = stat.rsplit_once(')')?.1.split_whitespace();
    let group = columns.nth(2)?.parse().ok()?;
    let mut columns = columns.skip(8);
    let user: u64 = columns.next()?.parse().ok()?;
    let system: u64 = columns.next()?.parse().ok()?;
    Some((group, user + system))
}

fn from_ticks(ticks: u64) -> Result<Duration> {
    let per_second = sysconf(SysconfVar::CLK_TCK).context("cannot ask for the tick")?.context("no tick is known")?;
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

fn duration(time: TimeVal) -> Duration {
    Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_times_are_found() {
        assert_eq!(parse_cpu_line("cpu  1 2 3 4 5 6 7 8 0 0"), Some([1, 2, 3, 4, 5, 6, 7, 8]));
        assert_eq!(parse_cpu_line("cpu  1 2"), None);
        let stat = "77 (a) b (c) S 1 76 77 0 -1 4194560 100 0 0 0 30 12 0 0 20 0 1 0 5 0 0";
        assert_eq!(parse_process(stat), Some((76, 42)));
        let going = "14822 (ip) X 0 -1 -1 0 -1 4227340 301 0 0 0 0 0 0 0 20 0 0 0 7546313 0 0";
        assert_eq!(parse_process(going), Some((-1, 0)));
        assert_eq!(parse_process("77"), None);
    }

    #[test]
    fn own_time_is_not_others() {
        let at = |everyone, ours, stolen, capacity| CpuTimes {
            everyone: Duration::from_secs(everyone),
            ours: Duration::from_secs(ours),
            guard: Duration::from_secs(ours / 2),
            stolen: Duration::from_secs(stolen),
            capacity: Duration::from_secs(capacity),
        };
        assert_eq!(at(16, 14, 1, 20).taken_by_others_since(at(10, 10, 0, 10)), 0.3);
        let spent = Spent { machine: Duration::from_secs(6), guard: Duration::from_secs(2) };
        assert_eq!(at(16, 14, 1, 20).spent_since(at(10, 10, 0, 10)), spent);
        assert_eq!(at(10, 14, 0, 20).taken_by_others_since(at(10, 10, 0, 10)), 0.0);
    }
}
