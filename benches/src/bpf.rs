//! What the kernel tells about eBPF programs and maps that a process holds, and a switch that has it count their run time.
#![allow(
    unsafe_code,
    reason = "one bpf(2) call: the sysctl that does the same is the machine's, a descriptor is this run's"
)]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Of linux/bpf.h.
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_ENABLE_STATS: libc::c_int = 32;
const BPF_STATS_RUN_TIME: u64 = 0;

/// A bpf(2) call that answers with a descriptor.
fn bpf(command: libc::c_int, attributes: &[u64; 2]) -> io::Result<OwnedFd> {
    // SAFETY: the call reads as many bytes as it is told from the array, which outlives it; so does what it points at.
    let outcome =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes) as libc::c_uint) };
    match i32::try_from(outcome) {
        // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the kernel count how long programs run, until the descriptor is closed. Each run is some 60 ns longer for it, of which
/// a part is counted too.
///
/// # Errors
/// The kernel refuses.
pub fn count_run_time() -> Result<OwnedFd> {
    bpf(BPF_ENABLE_STATS, &[BPF_STATS_RUN_TIME, 0]).context("the kernel does not count the run time of eBPF programs")
}

/// A program that is pinned on a bpffs.
#[derive(Debug)]
pub struct Program(OwnedFd);

impl Program {
    /// The one at `path`.
    ///
    /// # Errors
    /// There is none.
    pub fn pinned(path: &Path) -> Result<Self> {
        let name = CString::new(path.as_os_str().as_bytes()).context("a path with a NUL")?;
        let program = bpf(BPF_OBJ_GET, &[name.as_ptr().addr() as u64, 0]);
        // The kernel has read it by now.
        drop(name);
        program.map(Self).with_context(|| format!("cannot open the program at {}", path.display()))
    }

    /// How often it ran, programs that it went on to included, while run time was counted.
    ///
    /// # Errors
    /// It is no program.
    pub fn runs(&self) -> Result<Runs> {
        let path = format!("/proc/self/fdinfo/{}", self.0.as_raw_fd());
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        match (field(&text, "run_cnt"), field(&text, "run_time_ns")) {
            (Some(count), Some(time)) => Ok(Runs { count, time }),
            _ => bail!("{path} does not tell of runs: {text}"),
        }
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

/// Bytes that the kernel keeps for the maps and programs whose descriptors `pid` holds, each counted once.
///
/// # Errors
/// The process is gone.
pub fn bytes_of(pid: u32) -> Result<u64> {
    let folder = format!("/proc/{pid}/fdinfo");
    let mut objects = BTreeMap::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))? {
        // One that was closed meanwhile is held no more.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        objects.extend(object(&text));
    }
    Ok(objects.values().sum())
}

/// Whether it is a map, its id, and its bytes: `bpf_map_show_fdinfo` and `bpf_prog_show_fdinfo` in kernel/bpf/syscall.c.
fn object(text: &str) -> Option<((bool, u64), u64)> {
    let map = field(text, "map_id").map(|id| (true, id));
    let id = map.or_else(|| field(text, "prog_id").map(|id| (false, id)))?;
    Some((id, field(text, "memlock")?))
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_and_programs_are_told_apart() {
        let map = "pos:\t0\nflags:\t02000002\nmap_type:\t2\nmax_entries:\t1\nmemlock:\t8192\nmap_id:\t7\nfrozen:\t0\n";
        assert_eq!(object(map), Some(((true, 7), 8192)));
        let program = "prog_type:\t1\nmemlock:\t4096\nprog_id:\t7\nrun_time_ns:\t500\nrun_cnt:\t4\n";
        assert_eq!(object(program), Some(((false, 7), 4096)));
        assert_eq!(field(program, "run_cnt"), Some(4));
        assert_eq!(object("pos:\t0\nflags:\t02\n"), None);
    }
}
