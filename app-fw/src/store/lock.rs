//! A lock file: at most one holder, whatever happens to the holder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

/// Held until dropped. The kernel lets go when the holder dies, so a file left behind by a killed daemon is no obstacle.
///
/// SQLite's own locks would not do: they cannot tell another daemon from an administrator's `sqlite3` shell, and cannot
/// keep a second daemon from replacing the first one's control socket.
#[derive(Debug)]
pub(crate) struct LockFile {
    path: PathBuf,
    file: Flock<File>,
}

/// Why the lock could not be had.
#[derive(Debug)]
pub(crate) enum LockError {
    /// Somebody has it: its process id, as written into the file.
    Taken(Option<u32>),
    /// The file could not be made.
    Io(io::Error),
}

impl LockFile {
    /// Takes the lock `path.lock`, which is made if it is missing.
    pub(crate) fn beside(path: &Path) -> Result<LockFile, LockError> {
        let mut name = path.as_os_str().to_owned();
        name.push(".lock");
        let path = PathBuf::from(name);
        loop {
            let file = open(&path).map_err(LockError::Io)?;
            let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(file, errno)| match errno {
                Errno::EWOULDBLOCK => LockError::Taken(read_pid(&file)),
                errno => LockError::Io(errno.into()),
            })?;
            // The holder before us may have removed the file between our open and our lock: then somebody else may
            // already hold the lock on a new file of that name.
            if is_at(&file, &path).map_err(LockError::Io)? {
                write_pid(&file).map_err(LockError::Io)?;
                return Ok(LockFile { path, file });
            }
        }
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        if is_at(&self.file, &self.path).unwrap_or(false) {
            // A file that stays behind is harmless.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(path)
}

/// Whether `file` is what the path leads to now.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok(named.dev() == held.dev() && named.ino() == held.ino()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn read_pid(file: &File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_pid(mut file: &File) -> io::Result<()> {
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_holder_and_the_file_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let held = LockFile::beside(&path).unwrap();
        let taken = LockFile::beside(&path).unwrap_err();
        assert!(matches!(taken, LockError::Taken(Some(pid)) if pid == std::process::id()));
        drop(held);
        assert!(!dir.path().join("x.lock").exists());
        LockFile::beside(&path).unwrap();
    }

    #[test]
    fn a_file_left_behind_is_no_obstacle_and_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x.lock"), "99999999\n").unwrap();
        drop(LockFile::beside(&dir.path().join("x")).unwrap());
        std::os::unix::fs::symlink(dir.path().join("victim"), dir.path().join("x.lock")).unwrap();
        assert!(matches!(LockFile::beside(&dir.path().join("x")), Err(LockError::Io(_))));
        assert!(!dir.path().join("victim").exists());
    }

    #[test]
    fn many_at_once_are_never_two() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let holders = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        if let Ok(lock) = LockFile::beside(&path) {
                            use std::sync::atomic::Ordering::SeqCst;
                            assert_eq!(holders.fetch_add(1, SeqCst), 0);
                            holders.fetch_sub(1, SeqCst);
                            drop(lock);
                        }
                    }
                });
            }
        });
    }
}
