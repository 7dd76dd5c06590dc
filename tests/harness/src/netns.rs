//! Network namespaces under /run/netns, named after the process that made them.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::{Captured, inside, run, wait_readable};

const ROOT: &str = "/run/netns";
const LIMIT: Duration = Duration::from_secs(10);

/// A network namespace that is removed when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    path: PathBuf,
}

impl Namespace {
    /// Makes the namespace `name` and sets its loopback up.
    ///
    /// # Errors
    /// Not root, the name is taken, or `ip` is missing.
    pub fn create(name: &str) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", name]), LIMIT)?
            .ok()
            .with_context(|| format!("making the network namespace {name} (this needs root)"))?;
        let namespace = Self { name: name.to_owned(), path: Path::new(ROOT).join(name) };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name under /run/netns.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file under /run/netns.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A command line that runs `program` inside; see [`inside`].
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        inside(&self.path, program)
    }

    /// Runs a command inside to its end. `line` is cut at blanks: no quoting.
    ///
    /// # Errors
    /// It could not be started, failed, or hung.
    pub fn sh(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command")?;
        run(self.command(program).args(words), LIMIT).and_then(Captured::ok)
    }

    /// `ip ARGUMENTS` inside.
    ///
    /// # Errors
    /// As [`sh`](Self::sh).
    pub fn ip(&self, arguments: &str) -> Result<String> {
        self.sh(&format!("ip {arguments}"))
    }

    /// Runs `work` on a thread that has entered the namespace, and returns what it returns. Sockets it opens stay in
    /// the namespace for good; paths under /proc/sys/net are the namespace's own. Do not start processes there: those of
    /// [`inside`] are killed when the thread ends.
    ///
    /// # Errors
    /// The namespace could not be entered, or `work` failed.
    ///
    /// # Panics
    /// If `work` does.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = fs::File::open(&self.path).with_context(|| format!("opening {}", self.path.display()))?;
        // A thread of its own: setns changes the calling thread only, and this way there is nothing to restore.
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .with_context(|| format!("entering {}", self.path.display()))?;
                work()
            });
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Writes a setting of the namespace, `net/ipv4/ip_forward` for instance.
    ///
    /// # Errors
    /// No such setting, or not allowed.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.enter(|| fs::write(&path, value).with_context(|| format!("setting {}", path.display())))
    }

    /// Joins this namespace and `other` by a veth pair: `here` in this one, `there` in the other, both up. The pair is
    /// made inside: nothing of it ever shows in the caller's namespace.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn join(&self, here: &Port<'_>, other: &Self, there: &Port<'_>) -> Result<()> {
        self.ip(&format!(
            "link add {} address {} type veth peer name {} address {} netns {}",
            here.name, here.mac, there.name, there.mac, other.name
        ))?;
        for (namespace, port, opposite) in [(self, here, there), (other, there, here)] {
            namespace.bring_up(port, opposite)?;
        }
        Ok(())
    }

    fn bring_up(&self, port: &Port<'_>, opposite: &Port<'_>) -> Result<()> {
        let dev = port.name;
        // No link-local address, so no router solicitations and multicast reports that a test did not ask for.
        self.ip(&format!("link set {dev} addrgenmode none up"))?;
        self.ip(&format!("addr add {}/24 dev {dev}", port.v4))?;
        self.ip(&format!("addr add {}/64 dev {dev} nodad", port.v6))?;
        // Fixed neighbours: under a DROP policy the kernel's own neighbour discovery would be dropped, and the test
        // would see that instead of what it is about.
        for address in [opposite.v4, opposite.v6] {
            self.ip(&format!("neigh add {address} lladdr {} dev {dev} nud permanent", opposite.mac))?;
        }
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name) {
            eprintln!("cleaning up: {error:#}");
        }
    }
}

/// One end of a veth pair.
#[derive(Debug, Clone, Copy)]
pub struct Port<'a> {
    /// Interface name.
    pub name: &'a str,
    /// Ethernet address.
    pub mac: &'a str,
    /// IPv4 address; the prefix is 24 long.
    pub v4: &'a str,
    /// IPv6 address; the prefix is 64 long.
    pub v6: &'a str,
}

/// Kills what still runs in the namespace and removes it. A namespace that does not exist is no error.
///
/// # Errors
/// The kernel refused.
pub fn remove(name: &str) -> Result<()> {
    if !Path::new(ROOT).join(name).exists() {
        return Ok(());
    }
    end_inhabitants(name)?;
    spawn_uninterrupted(&["ip", "netns", "delete", name]).map(drop)
}

/// Whoever lives in a namespace that we made was put there by us; a program that left its process group included.
fn end_inhabitants(name: &str) -> Result<()> {
    let held: Vec<(Pid, OwnedFd)> = inhabitants(name)?
        .into_iter()
        .filter_map(|pid| Some((pid, pidfd_open(pid, PidfdFlags::empty()).ok()?)))
        .collect();
    if held.is_empty() {
        return Ok(());
    }
    // Looked at twice: a pid may have been given to another process before its descriptor was opened, but whoever is
    // inside now is the one behind the descriptor.
    let inside = inhabitants(name)?;
    let deadline = Instant::now() + LIMIT;
    for (_, pidfd) in held.iter().filter(|(pid, _)| inside.contains(pid)) {
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
        wait_readable(&[pidfd.as_fd()], deadline)?;
    }
    Ok(())
}

fn inhabitants(name: &str) -> Result<Vec<Pid>> {
    let pids = spawn_uninterrupted(&["ip", "netns", "pids", name])?;
    Ok(pids.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect())
}

/// Clean-up must go on after an interrupt: no interruptible wait, and a process group that Ctrl-C does not reach.
fn spawn_uninterrupted(argv: &[&str]) -> Result<String> {
    let output = Command::new(argv[0])
        .args(&argv[1..])
        .process_group(0)
        .output()
        .with_context(|| format!("starting {}", argv[0]))?;
    if !output.status.success() {
        bail!("`{}`: {}", argv.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Removes namespaces named `PREFIX-<pid>-...` and directories of that name under `temporary` whose process is gone:
/// the traces of a run that was killed with SIGKILL. Returns what it removed.
///
/// # Errors
/// Everything that could not be removed, after all the rest was.
pub fn sweep(prefix: &str, temporary: &Path) -> Result<Vec<String>> {
    let (mut removed, mut failed) = (Vec::new(), Vec::new());
    for name in leftovers(Path::new(ROOT), prefix) {
        match remove(&name) {
            Ok(()) => removed.push(name),
            // Another run may be sweeping at the same time; what counts is that it is gone.
            Err(_) if !Path::new(ROOT).join(&name).exists() => {}
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    for name in leftovers(temporary, prefix) {
        let path = temporary.join(&name);
        match unmount_below(&path).and_then(|()| Ok(fs::remove_dir_all(&path)?)) {
            Ok(()) => removed.push(path.display().to_string()),
            Err(_) if !path.exists() => {}
            Err(error) => failed.push(format!("removing {}: {error}", path.display())),
        }
    }
    if failed.is_empty() { Ok(removed) } else { Err(anyhow!(failed.join("\n"))) }
}

/// Unmounts what is mounted below a folder. Rules go on using what is pinned there.
///
/// # Errors
/// The kernel refused.
pub(crate) fn unmount_below(folder: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    // proc_pid_mountinfo(5): the mount point is the fifth word. The last that was mounted is the first to go.
    let points = mounts.lines().rev().filter_map(|line| line.split(' ').nth(4));
    for point in points.filter(|point| Path::new(point).starts_with(folder)) {
        unmount(point, UnmountFlags::DETACH).with_context(|| format!("unmounting {point}"))?;
    }
    Ok(())
}

/// Namespaces named `PREFIX-<pid>-...` and directories of that name under `temporary` that *this* process has made and
/// not removed yet.
pub fn present(prefix: &str, temporary: &Path) -> Vec<String> {
    [Path::new(ROOT), temporary]
        .into_iter()
        .flat_map(|folder| names(folder).map(move |name| (folder, name)))
        .filter(|(_, name)| maker(name, prefix) == Some(std::process::id()))
        .map(|(folder, name)| folder.join(name).display().to_string())
        .collect()
}

/// Names that belong to a process that is gone.
pub(crate) fn leftovers(folder: &Path, prefix: &str) -> Vec<String> {
    names(folder)
        .filter(|name| maker(name, prefix).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()))
        .collect()
}

/// The names in a folder; none if there is no such folder.
fn names(folder: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// The pid in `PREFIX-<pid>-...`.
fn maker(name: &str, prefix: &str) -> Option<u32> {
    let (pid, _) = name.strip_prefix(prefix)?.strip_prefix('-')?.split_once('-')?;
    pid.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::maker;

    #[test]
    fn only_names_of_our_own_form_are_swept() {
        assert_eq!(maker("afw-test-12-3-a", "afw-test"), Some(12));
        assert_eq!(maker("afw-demo-12-a", "afw-demo"), Some(12));
        for other in ["afw-test", "afw-test-", "afw-test-x-a", "afw-test-12", "afw-tests-12-a", "docker0"] {
            assert_eq!(maker(other, "afw-test"), None, "{other}");
        }
    }
}
