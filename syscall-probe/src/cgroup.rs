//! The root of the cgroup2 hierarchy, where a socket hook sees the sockets of every process.

use std::fs::{self, File};

use procfs::process::Process;

/// Inode number of the initial cgroup namespace (include/linux/proc_ns.h, `PROC_CGROUP_INIT_INO`).
const INITIAL_NAMESPACE: &str = "cgroup:[4026531835]";

/// Opens the root of the cgroup2 hierarchy, wherever it is mounted (/sys/fs/cgroup, or /sys/fs/cgroup/unified beside
/// version 1). The error is a sentence for the operator.
pub(crate) fn open_root() -> Result<File, String> {
    // In another cgroup namespace what looks like the root is a branch, and sockets outside of it would go unseen.
    match fs::read_link("/proc/self/ns/cgroup") {
        Ok(link) if link.as_os_str() == INITIAL_NAMESPACE => {}
        Ok(_) => {
            return Err(
                "the daemon runs in a cgroup namespace of its own, which hides the root of the cgroup2 hierarchy"
                    .to_owned(),
            );
        }
        Err(error) => return Err(format!("cannot read /proc/self/ns/cgroup: {error}")),
    }
    let mounts = Process::myself()
        .and_then(|process| process.mountinfo())
        .map_err(|error| format!("cannot read /proc/self/mountinfo: {error}"))?;
    let mount = mounts
        .into_iter()
        .find(|mount| mount.fs_type == "cgroup2" && mount.root == "/")
        .ok_or("the cgroup2 hierarchy is not mounted (mount -t cgroup2 none /sys/fs/cgroup/unified)")?;
    File::open(&mount.mount_point).map_err(|error| format!("cannot open {}: {error}", mount.mount_point.display()))
}
