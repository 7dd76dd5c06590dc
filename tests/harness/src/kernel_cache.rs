//! The daemon's verdict cache in the kernel: a bpffs for its programs, and the rules that call them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::netns::Namespace;
use crate::process::Running;
use crate::{LIMIT, process};

/// Set to `off`, it has all tests run without the cache.
pub const SWITCH: &str = "APP_FW_TEST_KERNEL_CACHE";

/// Whether tests are to run with the cache.
pub fn is_wanted() -> bool {
    std::env::var_os(SWITCH).is_none_or(|switch| switch != "off")
}

/// A mounted bpffs. Dropping it unmounts it.
#[derive(Debug)]
pub struct Bpffs {
    path: PathBuf,
}

/// Where a folder has its bpffs.
const NAME: &str = "bpf";

impl Bpffs {
    /// Mounts one in a folder.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn mount(folder: &Path) -> Result<Bpffs> {
        let path = folder.join(NAME);
        std::fs::create_dir(&path)?;
        mount("bpf", &path, "bpf", MountFlags::empty(), None).context("mounting a bpffs")?;
        Ok(Bpffs { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = unmount(&self.path, UnmountFlags::DETACH);
    }
}

/// Puts the rules of the cache before all rules of a namespace that lead to the queues 0 (OUTPUT), 1 (INPUT) and 2 (FORWARD)
/// and have none yet. Without effect if there are no such programs: a daemon without the whole probe has no cache.
///
/// # Errors
/// iptables refused.
pub fn precede_queues(namespace: &Namespace, pins: &Path) -> Result<()> {
    if !pins.join("accept-output").exists() {
        return Ok(());
    }
    for family in ["iptables", "ip6tables"] {
        let saved = process::run(namespace.command(format!("{family}-save")).env("LC_ALL", "C"), LIMIT)?.ok()?;
        let script = script(&saved, pins);
        if !script.is_empty() {
            let mut input = tempfile::tempfile()?;
            input.write_all(script.as_bytes())?;
            std::io::Seek::rewind(&mut input)?;
            let mut command: Command = namespace.command(format!("{family}-restore"));
            command.args(["--noflush", "-w", "10"]).stdin(input);
            let status = Running::start(&mut command)?.wait(LIMIT)?;
            anyhow::ensure!(status.success(), "{family}-restore: {status}\n{script}");
        }
    }
    Ok(())
}

/// What iptables-restore is to be told, given what iptables-save says.
fn script(saved: &str, pins: &Path) -> String {
    let mut script = String::new();
    let mut table = "";
    let mut is_open = false;
    let mut places: Vec<(&str, usize)> = Vec::new();
    let mut is_preceded = false;
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            (table, is_open, is_preceded) = (name, false, false);
            places.clear();
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let chain = rule.split(' ').next().unwrap_or_default();
            if places.last().is_none_or(|(known, _)| *known != chain) {
                places.push((chain, 0));
                is_preceded = false;
            }
            let Some((_, place)) = places.last_mut() else { continue };
            *place += 1;
            let program = ["output", "input", "forward"].iter().zip(0..).find_map(|(name, number)| {
                let is_it = rule.ends_with(&format!("-j NFQUEUE --queue-num {number}"))
                    || rule.contains(&format!("-j NFQUEUE --queue-num {number} "));
                is_it.then_some(name)
            });
            if let (Some(program), false) = (program, is_preceded) {
                if !is_open {
                    script.push_str(&format!("*{table}\n"));
                    is_open = true;
                }
                let matches = rule.split(" -j NFQUEUE").next().unwrap_or_default();
                let matches = matches.strip_prefix(chain).unwrap_or_default();
                for (verdict, target) in [("accept", "ACCEPT"), ("drop", "DROP")] {
                    let pin = pins.join(format!("{verdict}-{program}"));
                    script.push_str(&format!(
                        "-I {chain} {place}{matches} -m bpf --object-pinned {} -j {target}\n",
                        pin.display()
                    ));
                    *place += 1;
                }
            }
            is_preceded = rule.contains("-m bpf --object-pinned");
        } else if line == "COMMIT" && is_open {
            script.push_str("COMMIT\n");
        }
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_go_before_queues() {
        let saved = "*mangle\n:FORWARD ACCEPT [0:0]\n-A FORWARD -i docker0 -j NFQUEUE --queue-num 0\nCOMMIT\n\
                     *filter\n:OUTPUT ACCEPT [0:0]\n-A INPUT -j NFQUEUE --queue-num 1\n-A OUTPUT -o lo -j ACCEPT\n\
                     -A OUTPUT -j NFQUEUE --queue-num 0 --queue-bypass\n-A OUTPUT -j NFQUEUE --queue-num 10\nCOMMIT\n";
        let script = script(saved, Path::new("/p"));
        let expected = "*mangle\n\
            -I FORWARD 1 -i docker0 -m bpf --object-pinned /p/accept-output -j ACCEPT\n\
            -I FORWARD 2 -i docker0 -m bpf --object-pinned /p/drop-output -j DROP\nCOMMIT\n*filter\n\
            -I INPUT 1 -m bpf --object-pinned /p/accept-input -j ACCEPT\n\
            -I INPUT 2 -m bpf --object-pinned /p/drop-input -j DROP\n\
            -I OUTPUT 2 -m bpf --object-pinned /p/accept-output -j ACCEPT\n\
            -I OUTPUT 3 -m bpf --object-pinned /p/drop-output -j DROP\nCOMMIT\n";
        assert_eq!(script, expected);
    }

    #[test]
    fn rules_that_are_there_are_not_put_again() {
        let saved = "*filter\n-A OUTPUT -m bpf --object-pinned /p/accept-output -j ACCEPT\n\
                     -A OUTPUT -m bpf --object-pinned /p/drop-output -j DROP\n-A OUTPUT -j NFQUEUE --queue-num 0\nCOMMIT\n";
        assert_eq!(script(saved, Path::new("/p")), "");
    }
}
