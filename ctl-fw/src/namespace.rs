//! Namespace files as this process sees them, said so that another process understands.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use shared::Selector;

/// Links in a row that are followed, as in the kernel (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// Why a namespace file cannot be named to the daemon.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// It is not there, or may not be looked at.
    #[error("cannot find the network namespace {}: {source}", path.display())]
    Io {
        /// What was looked for.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Requests are JSON, which is UTF-8.
    #[error("the path {} cannot be sent to app-fw: it is not UTF-8", .0.display())]
    NotText(PathBuf),
}

/// The network namespace of the calling thread, as a file that means the same to every process.
///
/// # Errors
/// /proc cannot be read.
pub fn own() -> Result<Selector, NamespaceError> {
    // Not `self`: namespaces belong to threads.
    absolute(&Selector::File("/proc/thread-self/ns/net".into()))
}

/// The selector with its file, if it is one, free of links and relative parts: `/proc/self`, a link to it, and `../x` mean
/// something else to the daemon.
///
/// # Errors
/// The file does not exist.
pub fn absolute(selector: &Selector) -> Result<Selector, NamespaceError> {
    match selector {
        Selector::File(path) => {
            let resolved = resolve(path).map_err(|source| NamespaceError::Io { path: path.clone(), source })?;
            match resolved.to_str() {
                Some(_) => Ok(Selector::File(resolved)),
                None => Err(NamespaceError::NotText(resolved)),
            }
        }
        other => Ok(other.clone()),
    }
}

/// Follows links up to the namespace's own, `net:[4026531840]`, which leads to no path.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut path = std::path::absolute(path)?;
    for _ in 0..MOST_LINKS {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return fs::canonicalize(path) };
        let parent = fs::canonicalize(parent)?;
        path = parent.join(name);
        if !fs::symlink_metadata(&path)?.is_symlink() {
            return Ok(path);
        }
        let target = match fs::read_link(&path) {
            // Only links of /proc are refused: those of a process that we may not trace. The daemon may.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(path),
            target => target?,
        };
        if is_namespace_link(&target) {
            return Ok(main_thread(path));
        }
        path = parent.join(target);
    }
    Err(io::Error::from(nix::errno::Errno::ELOOP))
}

/// The text of the links in /proc/PID/ns (namespaces(7)).
fn is_namespace_link(target: &Path) -> bool {
    let text = target.as_os_str().as_bytes();
    text.starts_with(b"net:[") && text.ends_with(b"]")
}

/// `/proc/7/task/7/ns/net` is better known as `/proc/7/ns/net`.
fn main_thread(path: PathBuf) -> PathBuf {
    let parts: Vec<_> = path.iter().collect();
    match parts.as_slice() {
        [root, proc, process, task, thread, rest @ ..] if *task == "task" && process == thread => {
            [*root, *proc, *process].iter().chain(rest).collect()
        }
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn file(path: impl AsRef<Path>) -> Result<Selector, NamespaceError> {
        absolute(&Selector::File(path.as_ref().into()))
    }

    #[test]
    fn self_becomes_a_process() {
        let mine = PathBuf::from(format!("/proc/{}/ns/net", std::process::id()));
        assert_eq!(file("/proc/self/ns/net").unwrap(), Selector::File(mine.clone()));
        assert_eq!(file("/proc/../proc/self/./ns/../ns/net").unwrap(), Selector::File(mine.clone()));
        assert_eq!(file(&mine).unwrap(), Selector::File(mine.clone()));
        assert_eq!(file("/proc/1/ns/net").unwrap(), Selector::File("/proc/1/ns/net".into()));

        // This thread is not the main one.
        let Selector::File(own) = own().unwrap() else { panic!() };
        let thread = fs::canonicalize("/proc/thread-self").unwrap();
        assert_eq!(own, thread.join("ns/net"));
        assert_eq!(main_thread("/proc/7/task/7/ns/net".into()), Path::new("/proc/7/ns/net"));
        assert_eq!(main_thread("/proc/7/task/8/ns/net".into()), Path::new("/proc/7/task/8/ns/net"));
    }

    #[test]
    fn links_are_followed_here_not_in_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let mine = Selector::File(format!("/proc/{}/ns/net", std::process::id()).into());
        symlink("/proc/self/ns/net", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        assert_eq!(file(dir.path().join("b")).unwrap(), mine);
        symlink("loop", dir.path().join("loop")).unwrap();
        assert!(file(dir.path().join("loop")).is_err());
        fs::write(dir.path().join("bound"), "").unwrap();
        let bound = fs::canonicalize(dir.path()).unwrap().join("bound");
        assert_eq!(file(&bound).unwrap(), Selector::File(bound));
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = file("/proc/self/ns/nett").unwrap_err().to_string();
        assert!(error.contains("/proc/self/ns/nett"), "{error}");
        for other in [Selector::Any, Selector::Host, Selector::Named("x".into())] {
            assert_eq!(absolute(&other).unwrap(), other);
        }
    }
}
