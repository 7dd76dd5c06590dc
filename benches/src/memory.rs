//! What contenders keep in memory for many flows.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::bpf;
use crate::comparison::Plan;
use crate::contender::{Contender, Guard, Reach, RuleCounters};
use crate::lab::Lab;
use crate::machine::processes_of;
use crate::report::table;
use crate::supervise::Supervisor;

/// Until what was not waited for is done: answers are put where they belong, memory is given back.
const SETTLE: Duration = Duration::from_millis(500);

/// Bytes at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Footprint {
    /// The contender's processes, what they share divided.
    daemon: u64,
    /// Maps and programs.
    bpf: u64,
    /// Connections that the kernel tracks in the client's namespace.
    tracked: u64,
}

/// The table: nothing judged yet, and `flows` flows judged and alive.
///
/// # Errors
/// A contender or the load fails, or [`crate::supervise::Interrupted`].
pub fn table_of<'a>(
    supervisor: &Supervisor,
    plan: &Plan,
    contenders: impl Iterator<Item = &'a Contender>,
    flows: u32,
) -> Result<String> {
    let header = ["contender", "processes, at first", "with the flows", "eBPF, at first", "with the flows"];
    let header = header.into_iter().chain(["connections tracked", "second packets that the kernel answered"]);
    let header: Vec<String> = header.map(str::to_owned).collect();
    let rows: Vec<Vec<String>> = contenders
        .map(|contender| {
            row(supervisor, plan, contender, flows).with_context(|| format!("the memory of {}", contender.name()))
        })
        .collect::<Result<_>>()?;
    Ok(table(&header, rows.into_iter()))
}

fn row(supervisor: &Supervisor, plan: &Plan, contender: &Contender, flows: u32) -> Result<Vec<String>> {
    // The many addresses are of IPv4.
    let lab = Lab::create(plan.ipv6)?;
    let mut guard = contender.stand_guard(supervisor, &lab)?;
    let before = Footprint::of(&guard, &lab)?;
    guard.gather(supervisor, &lab, flows)?;
    supervisor.pause(SETTLE)?;
    let first = RuleCounters::read(&lab.client)?;
    guard.crowd().context("the flows are gone")?.send_again(supervisor)?;
    let answered = RuleCounters::read(&lab.client)?.since(first).answered;
    supervisor.pause(SETTLE)?;
    guard.assert_alive()?;
    let after = Footprint::of(&guard, &lab)?;
    guard.stand_down(supervisor)?;
    let share = match contender.reach() {
        Reach::KernelOrQueue => format!("{:.1} %", answered as f64 / f64::from(flows) * 100.0),
        _ => "-".to_owned(),
    };
    let name = contender.name();
    eprintln!("  {name:<16} memory with {flows} flows: {before:?}, then {after:?}, answered {answered}");
    let cells = [before.daemon, after.daemon, before.bpf, after.bpf, after.tracked].map(mebibytes);
    Ok([name.to_owned()].into_iter().chain(cells).chain([share]).collect())
}

fn mebibytes(bytes: u64) -> String {
    if bytes == 0 { "-".to_owned() } else { format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)) }
}

impl Footprint {
    fn of(guard: &Guard, lab: &Lab) -> Result<Self> {
        let mut sum = Self { tracked: tracked(lab)?, ..Self::default() };
        let processes = guard.pid().map_or(Ok(Vec::new()), processes_of)?;
        for pid in processes {
            let path = format!("/proc/{pid}/smaps_rollup");
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
            sum.daemon += proportional(&text).with_context(|| format!("cannot read {path}: {text}"))?;
            sum.bpf += bpf::bytes_of(pid)?;
        }
        Ok(sum)
    }
}

/// `Pss:` in bytes: proc_pid_smaps(5).
fn proportional(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// Connections times what the kernel says that one takes, without what is allocated beside them.
fn tracked(lab: &Lab) -> Result<u64> {
    let count = Path::new("/proc/sys/net/netfilter/nf_conntrack_count");
    let count = lab.client.within(|| match fs::read_to_string(count) {
        Ok(text) => text.trim().parse().context("cannot read how many connections are tracked"),
        // No rule has ever asked for it.
        Err(_) => Ok(0),
    })?;
    let slabs = fs::read_to_string("/proc/slabinfo").unwrap_or_default();
    Ok(count * connection_size(&slabs).unwrap_or(0))
}

/// Bytes of one: slabinfo(5).
fn connection_size(slabs: &str) -> Option<u64> {
    slabs.lines().find_map(|line| line.strip_prefix("nf_conntrack "))?.split_whitespace().nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_found() {
        let rollup = "5557-7fff ---p 00000000 00:00 0 [rollup]\nRss:    4000 kB\nPss:    2048 kB\nPss_Dirty:  1 kB\n";
        assert_eq!(proportional(rollup), Some(2 << 20));
        assert_eq!(proportional("Rss: 1 kB\n"), None);
        let slabs = "slabinfo - version: 2.1\nnf_conntrack   112   112   256   16   1 : tunables 0 0 0\n";
        assert_eq!(connection_size(slabs), Some(256));
        assert_eq!(mebibytes(3 << 19), "1.5 MiB");
        assert_eq!(mebibytes(0), "-");
    }
}
