//! Where the programs of the verdict cache are pinned, so that iptables finds them by a path: a directory of a bpffs.
//!
//! Pins outlive the daemon on purpose: rules made by hand refer to them, and with iptables-legacy a rule whose pin is gone
//! makes every later change of its table fail, whoever makes it.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use shared::Chain;

use super::rules::Instance;
use crate::store::{LockError, LockFile};

/// Where systemd mounts a bpffs.
const USUAL: &str = "/sys/fs/bpf";
/// Where the daemon mounts its own if there is none. Not one that is mounted elsewhere: that is somebody's own.
const OWN: &str = "/run/app-fw/bpf";
/// What a bpffs of the daemon's is called in the table of mounts, so that it is told from others.
const SOURCE: &str = "app-fw";

/// Why there are no pins.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    /// Another daemon has its pins there.
    #[error("another app-fw has its pins in {}: stop it, or give this one its own directory with --pins", .0.display())]
    Taken(PathBuf),
    /// Somebody else could change them.
    #[error("{} is another user's, or others can write to it: anybody could change what iptables runs", .0.display())]
    NotPrivate(PathBuf),
    /// The system refused.
    #[error("{}: {error}", path.display())]
    System {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The programs could not be pinned; a sentence.
    #[error("{0}")]
    Programs(String),
}

fn system(path: &Path) -> impl FnOnce(io::Error) -> PinsError {
    let path = path.to_owned();
    move |error| PinsError::System { path, error }
}

/// What the programs in the directory lead to; the probe makes it last, and takes what it finds by this name for whole.
const BEHIND: &str = "programs";

/// The programs of a chain: whether to accept, and whether to drop.
pub fn programs(directory: &Path, chain: Chain) -> [PathBuf; 2] {
    let kind = chain.name().to_ascii_lowercase();
    ["accept", "drop"].map(|verdict| directory.join(format!("{verdict}-{kind}")))
}

/// A directory of pins that is this daemon's alone, for as long as it runs.
#[derive(Debug)]
pub struct Pins {
    directory: PathBuf,
    /// Of the directory. Goes with the daemon, however that ends.
    lock: Flock<File>,
}

impl Pins {
    /// Makes the directory `named`, or the usual one of this daemon, with a bpffs below it if there is none, and has `pin` fill it.
    ///
    /// # Errors
    /// See [`PinsError`].
    pub fn make(
        named: Option<&Path>,
        instance: Instance,
        pin: impl FnOnce(&Path) -> Result<(), String>,
    ) -> Result<Pins, PinsError> {
        let directory = match named {
            Some(named) => std::path::absolute(named).map_err(system(named))?,
            None => usual(instance)?,
        };
        provide(&directory)?;
        let lock = File::open(&directory).map_err(system(&directory))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            Errno::EWOULDBLOCK => PinsError::Taken(directory.clone()),
            error => system(&directory)(error.into()),
        })?;
        pin(&directory).map_err(PinsError::Programs)?;
        Ok(Pins { directory, lock })
    }

    /// Where they are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Removes them with their directory, and the bpffs if it is the daemon's own and nobody else has something there. To be
    /// called when no rule refers to them.
    ///
    /// # Errors
    /// The system refuses.
    pub fn remove(self) -> Result<(), PinsError> {
        let Pins { directory, lock } = self;
        let all = Chain::ALL.iter().flat_map(|chain| programs(&directory, *chain));
        std::iter::once(directory.join(BEHIND)).chain(all).try_for_each(|path| remove(&path))?;
        let mounted = mounted_below(&directory);
        let _alone = mounted.as_deref().map(alone).transpose()?;
        // An open file keeps a file system busy.
        drop(lock);
        // What is not empty is somebody else's too.
        if mounted.as_deref() != Some(&*directory) {
            let _ = fs::remove_dir(&directory);
            let _ = directory.parent().filter(|parent| parent.ends_with(SOURCE)).map(fs::remove_dir);
        }
        if let Some(mounted) = mounted.filter(|mounted| is_empty(mounted)) {
            umount2(&mounted, MntFlags::UMOUNT_NOFOLLOW).map_err(io::Error::from).map_err(system(&mounted))?;
            // One that was named may be there for a reason.
            let _ = (mounted == Path::new(OWN)).then(|| fs::remove_dir(&mounted));
        }
        Ok(())
    }
}

/// The same for a daemon with these queues in this network namespace whenever it starts, and no other's.
fn usual(instance: Instance) -> Result<PathBuf, PinsError> {
    const NAMESPACE: &str = "/proc/thread-self/ns/net";
    let namespace = fs::metadata(NAMESPACE).map_err(system(Path::new(NAMESPACE)))?.ino();
    let root = if is_bpffs(Path::new(USUAL)) { USUAL } else { OWN };
    // A bpffs takes no names with dots.
    Ok(Path::new(root).join(format!("{SOURCE}/net-{namespace}-queue-{instance}")))
}

fn remove(path: &Path) -> Result<(), PinsError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(system(path)(error)),
        _ => Ok(()),
    }
}

/// Sees to it that the directory is there, on a bpffs, and root's own, and that what is in it is whole or is made anew.
///
/// # Errors
/// See [`PinsError`].
pub fn provide(directory: &Path) -> Result<(), PinsError> {
    let mount_point =
        [USUAL, OWN].into_iter().map(Path::new).find(|root| directory.starts_with(root)).unwrap_or(directory);
    make_directory(mount_point)?;
    let _alone = alone(mount_point)?;
    // Once more: another daemon may have unmounted, and removed, it meanwhile.
    make_directory(mount_point)?;
    if !is_bpffs(mount_point) {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let refused = |error| io::Error::other(format!("no bpffs can be mounted there: {error}"));
        mount(Some(SOURCE), mount_point, Some("bpf"), flags, Some("mode=0700"))
            .map_err(|error| system(mount_point)(refused(error)))?;
        tracing::info!("a bpffs for the verdict cache is mounted at {}", mount_point.display());
    }
    make_directory(directory)?;
    for level in directory.ancestors() {
        let meta = fs::symlink_metadata(level).map_err(system(level))?;
        if !meta.is_dir() || meta.uid() != 0 || meta.mode() & 0o022 != 0 {
            return Err(PinsError::NotPrivate(level.into()));
        }
        if level == mount_point || level.parent() == Some(mount_point) {
            break;
        }
    }
    // Whoever could open it could lock it.
    fs::set_permissions(directory, Permissions::from_mode(0o700)).map_err(system(directory))?;
    let mut all = Chain::ALL.iter().flat_map(|chain| programs(directory, *chain));
    if all.any(|path| !path.exists()) { remove(&directory.join(BEHIND)) } else { Ok(()) }
}

fn make_directory(path: &Path) -> Result<(), PinsError> {
    // /run/app-fw also holds the control socket, which others may reach.
    let mode =
        if path.starts_with(OWN) && path.parent().is_some_and(|parent| !parent.exists()) { 0o755 } else { 0o700 };
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(system(path))
}

/// While it is held, no other daemon mounts or unmounts there. None where there can be no lock: the kernel keeps files like
/// that from being made beside its own, and where the directory above is on a bpffs nothing is mounted.
fn alone(mount_point: &Path) -> Result<Option<LockFile>, PinsError> {
    const PATIENCE: Duration = Duration::from_secs(5);
    if mount_point == Path::new(USUAL) || mount_point.parent().is_none_or(is_bpffs) {
        return Ok(None);
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        match LockFile::beside(mount_point) {
            Ok(lock) => return Ok(Some(lock)),
            Err(LockError::Io(error)) => return Err(system(mount_point)(error)),
            Err(LockError::Taken(_)) if Instant::now() >= deadline => return Err(PinsError::Taken(mount_point.into())),
            // It is held for some milliseconds.
            Err(LockError::Taken(_)) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

/// The mount point of the daemon's own bpffs that a path is on.
fn mounted_below(path: &Path) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    own_mounts(&mounts).filter(|mounted| path.starts_with(mounted)).max_by_key(|mounted| mounted.as_os_str().len())
}

/// Mount points of bpffs that daemons have mounted; see proc_pid_mountinfo(5).
fn own_mounts(mounts: &str) -> impl Iterator<Item = PathBuf> + '_ {
    mounts.lines().filter_map(|line| {
        let (place, what) = line.split_once(" - ")?;
        let mut what = what.split(' ');
        let ours = what.next() == Some("bpf") && what.next() == Some(SOURCE);
        let point = place.split(' ').nth(4)?;
        ours.then(|| PathBuf::from(point.replace("\\040", " ")))
    })
}

/// A bpffs always has two files of the kernel's.
fn is_empty(mounted: &Path) -> bool {
    let is_kernels = |name: &std::ffi::OsStr| name == "maps.debug" || name == "progs.debug";
    fs::read_dir(mounted).is_ok_and(|entries| entries.flatten().all(|entry| is_kernels(&entry.file_name())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_daemons_mounted_is_theirs() {
        let mounts = "43 27 0:39 / /sys/fs/bpf rw,relatime shared:7 - bpf bpf rw,mode=700\n\
                      44 27 0:40 / /run/app-fw/bpf rw,relatime - bpf app-fw rw,mode=700\n\
                      45 27 0:41 / /tmp/a\\040b rw - bpf app-fw rw\n\
                      46 27 0:42 / /tmp/app-fw rw - tmpfs app-fw rw\n";
        let found: Vec<_> = own_mounts(mounts).collect();
        assert_eq!(found, [Path::new("/run/app-fw/bpf"), Path::new("/tmp/a b")]);
    }

    #[test]
    fn programs_are_named_by_verdict_and_chain() {
        let [accept, drop] = programs(Path::new("/p"), Chain::Input);
        assert_eq!((accept, drop), ("/p/accept-input".into(), "/p/drop-input".into()));
    }
}
