//! What the kernel tells about eBPF programs and maps that a process holds, and a switch that has it count their run time.
#![allow(
    unsafe_code,
    reason = "one bpf(2) call: the sysctl that does the same is the machine's, a descriptor is this run's"
)]

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use anyhow::{Context, Result};

/// `BPF_ENABLE_STATS` and `BPF_STATS_RUN_TIME` of linux/bpf.h.
const ENABLE_STATS: libc::c_int = 32;
const RUN_TIME: u32 = 0;
/// `BPF_PROG_TYPE_SOCKET_FILTER`.
const SOCKET_FILTER: u64 = 1;

/// Has the kernel count how long programs run, until the descriptor is closed. Each run is some 60 ns longer for it, of which
/// a part is counted too.
///
/// # Errors
/// The kernel refuses.
pub fn count_run_time() -> Result<OwnedFd> {
    let attributes = [RUN_TIME];
    // SAFETY: the call reads as many bytes as it is told from the array, which outlives it.
    let outcome = unsafe {
        libc::syscall(libc::SYS_bpf, ENABLE_STATS, attributes.as_ptr(), size_of_val(&attributes) as libc::c_uint)
    };
    match i32::try_from(outcome) {
        // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()).context("the kernel does not count the run time of eBPF programs"),
    }
}

/// How often a program ran, and how long in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Runs {
    /// Times.
    pub count: u64,
    /// Nanoseconds.
    pub time: u64,
}

/// A map or a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Object {
    Map { id: u64, bytes: u64 },
    Program { id: u64, bytes: u64, kind: u64, runs: Runs },
}

/// Bytes that the kernel keeps for the maps and programs whose descriptors `pid` holds, each counted once.
///
/// # Errors
/// The process is gone.
pub fn bytes_of(pid: u32) -> Result<u64> {
    let mut objects: Vec<_> = objects_of(pid)?
        .into_iter()
        .map(|object| match object {
            Object::Map { id, bytes } => (0, id, bytes),
            Object::Program { id, bytes, .. } => (1, id, bytes),
        })
        .collect();
    objects.sort_unstable();
    objects.dedup();
    Ok(objects.into_iter().map(|(_, _, bytes)| bytes).sum())
}

/// The runs of the filters that `pid` holds, by id.
///
/// # Errors
/// The process is gone.
pub fn filters_of(pid: u32) -> Result<Vec<(u64, Runs)>> {
    let filter = |object| match object {
        Object::Program { id, kind: SOCKET_FILTER, runs, .. } => Some((id, runs)),
        _ => None,
    };
    let mut filters: Vec<_> = objects_of(pid)?.into_iter().filter_map(filter).collect();
    filters.sort_unstable_by_key(|(id, _)| *id);
    filters.dedup_by_key(|(id, _)| *id);
    Ok(filters)
}

fn objects_of(pid: u32) -> Result<Vec<Object>> {
    let folder = format!("/proc/{pid}/fdinfo");
    let mut objects = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))? {
        // One that was closed meanwhile is held no more.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        objects.extend(parse(&text));
    }
    Ok(objects)
}

/// `bpf_map_show_fdinfo` and `bpf_prog_show_fdinfo` in kernel/bpf/syscall.c.
fn parse(text: &str) -> Option<Object> {
    let field = |name: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"))?.trim().parse().ok()
    };
    let bytes = field("memlock")?;
    match (field("map_id"), field("prog_id")) {
        (Some(id), _) => Some(Object::Map { id, bytes }),
        (_, Some(id)) => {
            let runs = Runs { count: field("run_cnt")?, time: field("run_time_ns")? };
            Some(Object::Program { id, bytes, kind: field("prog_type")?, runs })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_and_programs_are_told_apart() {
        let map = "pos:\t0\nflags:\t02000002\nmap_type:\t2\nmax_entries:\t1\nmemlock:\t8192\nmap_id:\t7\nfrozen:\t0\n";
        assert_eq!(parse(map), Some(Object::Map { id: 7, bytes: 8192 }));
        let program = "prog_type:\t1\nprog_jited:\t1\nmemlock:\t4096\nprog_id:\t9\nrun_time_ns:\t500\nrun_cnt:\t4\n";
        let runs = Runs { count: 4, time: 500 };
        assert_eq!(parse(program), Some(Object::Program { id: 9, bytes: 4096, kind: SOCKET_FILTER, runs }));
        assert_eq!(parse("pos:\t0\nflags:\t02\n"), None);
    }
}
