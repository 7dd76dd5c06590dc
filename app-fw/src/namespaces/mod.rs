//! Network namespaces: which there are, what they are called, and which one a selector means.

pub mod links;
mod route;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shared::Selector;

use crate::sys::netns;

/// Where `ip netns` keeps its names.
pub const NAMES: &str = "/run/netns";
const HOST: &str = "/proc/1/ns/net";
/// `thread-self`, not `self`: namespaces belong to threads.
const OWN: &str = "/proc/thread-self/ns/net";

/// Names a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NamespaceId {
    /// `SO_NETNS_COOKIE`: never given twice while the machine runs.
    pub cookie: u64,
    /// Inode number of its file, as in `/proc/PID/ns/net`: unique while the namespace lives.
    pub inode: u64,
}

/// A namespace that can be entered.
#[derive(Debug)]
pub struct Namespace {
    /// Which.
    pub id: NamespaceId,
    /// All selectors that mean it, most specific first.
    pub selectors: Vec<Selector>,
    /// What to call it in events: its most telling selector.
    pub name: Arc<str>,
    way: Way,
}

/// How a thread gets in.
#[derive(Debug)]
enum Way {
    /// By an open file, which keeps the namespace alive: the daemon's own lives as long as the daemon anyway.
    Own(OwnedFd),
    /// By a path that led there when it was found. To hold a container's namespace would keep it, and the devices that
    /// lead there, from going away.
    Path(PathBuf),
}

impl Namespace {
    /// The selector that a rule for it should have: one that survives a restart, if there is one.
    pub fn best_selector(&self) -> Selector {
        // The lifetime comes first; it is said of what has no name.
        self.selectors.get(1).or(self.selectors.first()).cloned().unwrap_or(Selector::Any)
    }

    /// Runs `work` inside.
    ///
    /// # Errors
    /// It cannot be entered.
    pub fn inside<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        match &self.way {
            Way::Own(file) => netns::inside(file, work),
            Way::Path(path) => {
                let file = OwnedFd::from(File::open(path)?);
                let work = || -> io::Result<T> {
                    // The process may have been another's namesake by now.
                    if netns::current_cookie()? != self.id.cookie {
                        return Err(io::Error::new(io::ErrorKind::NotFound, "the namespace is gone"));
                    }
                    Ok(work())
                };
                netns::inside(&file, work)?
            }
        }
    }

    /// It is the daemon's own.
    pub fn is_own(&self) -> bool {
        matches!(self.way, Way::Own(_))
    }
}

/// Names and namespaces at one moment.
#[derive(Debug)]
pub struct Namespaces {
    /// Moves with every look that found a change.
    pub generation: u64,
    /// Names of namespaces by the inode number of their file.
    names: HashMap<u64, Vec<Selector>>,
    boot: Arc<str>,
    /// Inode number of the namespace of process 1, if it can be found.
    host: Option<u64>,
    /// The daemon's own.
    pub own: Arc<Namespace>,
}

/// Why a selector cannot be made one that survives.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// There is nothing at the path.
    #[error("{path}: {error}", path = path.display())]
    File {
        /// What was looked at.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Something is there, but no namespace.
    #[error(
        "{path} is no network namespace: a file such as /proc/PID/ns/net or /run/netns/NAME is wanted",
        path = path.display()
    )]
    NotANamespace {
        /// What is there.
        path: PathBuf,
    },
}

impl Namespaces {
    /// Looks around from the calling thread's namespace, which becomes [`Namespaces::own`].
    ///
    /// # Errors
    /// /proc or the namespace's cookie cannot be read.
    pub fn look() -> io::Result<Namespaces> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let boot: Arc<str> = boot.trim().into();
        let host = host();
        let names = names(host);
        let own = Namespace {
            way: Way::Own(File::open(OWN)?.into()),
            ..open(Path::new(OWN), File::open(OWN)?, &names, &boot)?
        };
        Ok(Namespaces { generation: 1, names, boot, host, own: Arc::new(own) })
    }

    /// The same a moment later. `None` if nothing changed.
    pub fn look_again(&self) -> Option<Namespaces> {
        let names = names(self.host);
        if names == self.names {
            return None;
        }
        let own = Namespace {
            id: self.own.id,
            selectors: selectors(self.own.id, &names, &self.boot),
            name: name(self.own.id, &names, &self.boot),
            way: match &self.own.way {
                Way::Own(file) => Way::Own(file.try_clone().ok()?),
                Way::Path(path) => Way::Path(path.clone()),
            },
        };
        let own = Arc::new(own);
        Some(Namespaces { generation: self.generation + 1, names, boot: self.boot.clone(), host: self.host, own })
    }

    /// The namespace behind a file.
    ///
    /// # Errors
    /// There is none.
    pub fn at(&self, path: &Path) -> io::Result<Namespace> {
        self.of(path, netns::open(path)?)
    }

    /// The same where the file is open already.
    fn of(&self, path: &Path, file: File) -> io::Result<Namespace> {
        open(path, file, &self.names, &self.boot)
    }

    /// Turns a selector that is a file into one that survives: host, a name, or else the namespace's lifetime.
    ///
    /// # Errors
    /// The file is none, or no network namespace.
    pub fn resolve(&self, selector: Selector) -> Result<Selector, ResolveError> {
        let Selector::File(path) = selector else { return Ok(selector) };
        if path == Path::new(HOST) {
            return Ok(Selector::Host);
        }
        // A name under /run/netns means what it says, now and later.
        if path.parent() == Some(Path::new(NAMES))
            && let Some(Ok(selector)) =
                path.file_name().and_then(|name| name.to_str()).map(|n| format!("netns:{n}").parse())
            && path.exists()
        {
            return Ok(selector);
        }
        let inode = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.ino(),
            Err(error) => return Err(ResolveError::File { path, error }),
        };
        // A fresh look: the daemon may not have heard of a new name yet.
        if let Some(known) = names(self.host).remove(&inode).and_then(|names| names.into_iter().next()) {
            return Ok(known);
        }
        match self.at(&path) {
            Ok(found) => Ok(Selector::Lifetime { cookie: found.id.cookie, boot: self.boot.to_string() }),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOTTY)) => {
                Err(ResolveError::NotANamespace { path })
            }
            Err(error) => Err(ResolveError::File { path, error }),
        }
    }

    /// Whether a selector means a namespace that exists now.
    pub fn exists(&self, selector: &Selector) -> bool {
        match selector {
            Selector::Any => true,
            Selector::Host => self.host.is_some(),
            Selector::Named(_) => self.names.values().flatten().any(|known| known == selector),
            Selector::Lifetime { cookie, boot } => {
                **boot == *self.boot && (*cookie == self.own.id.cookie || links::cookies().contains(cookie))
            }
            Selector::File(_) => false,
        }
    }
}

/// Names in /run/netns, and the host's, by inode. Names come before `host`: they are more specific.
fn names(host: Option<u64>) -> HashMap<u64, Vec<Selector>> {
    let mut names: HashMap<u64, Vec<Selector>> = HashMap::new();
    // A name whose namespace is gone, or not there yet, is a plain file on another file system.
    let nsfs = std::fs::metadata(OWN).map(|metadata| metadata.dev()).ok();
    let entries = std::fs::read_dir(NAMES).into_iter().flatten().flatten();
    for entry in entries {
        let selector = entry.file_name().to_str().and_then(|name| format!("netns:{name}").parse().ok());
        if let (Some(selector), Ok(metadata)) = (selector, std::fs::metadata(entry.path()))
            && Some(metadata.dev()) == nsfs
        {
            names.entry(metadata.ino()).or_default().push(selector);
        }
    }
    names.values_mut().for_each(|names| names.sort());
    if let Some(inode) = host {
        names.entry(inode).or_default().push(Selector::Host);
    }
    names
}

/// The namespace of process 1. Where even root may not follow its link (process 1 of a sandbox may hold capabilities that
/// nobody else has), it is the one whose sockets process 1's list of sockets shows.
fn host() -> Option<u64> {
    if let Ok(metadata) = std::fs::metadata(HOST) {
        return Some(metadata.ino());
    }
    let sees_process_1 = || -> io::Result<bool> {
        let socket = std::os::unix::net::UnixDatagram::unbound()?;
        let inode = std::fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd()))?.ino().to_string();
        let sockets = std::fs::read_to_string("/proc/1/net/unix")?;
        Ok(sockets.lines().any(|line| line.split_ascii_whitespace().nth(6) == Some(&inode)))
    };
    let is_host = |path: &Path| -> io::Result<Option<u64>> {
        let file = File::open(path)?;
        let inode = file.metadata()?.ino();
        Ok(netns::inside(&file.into(), sees_process_1)??.then_some(inode))
    };
    std::iter::once(PathBuf::from(OWN)).chain(links::candidates()).find_map(|path| is_host(&path).ok().flatten())
}

fn selectors(id: NamespaceId, names: &HashMap<u64, Vec<Selector>>, boot: &str) -> Vec<Selector> {
    let mut selectors = vec![Selector::Lifetime { cookie: id.cookie, boot: boot.into() }];
    selectors.extend(names.get(&id.inode).into_iter().flatten().cloned());
    selectors
}

fn name(id: NamespaceId, names: &HashMap<u64, Vec<Selector>>, boot: &str) -> Arc<str> {
    let best = names.get(&id.inode).and_then(|names| names.first().cloned());
    best.unwrap_or(Selector::Lifetime { cookie: id.cookie, boot: boot.into() }).to_string().into()
}

fn open(path: &Path, file: File, names: &HashMap<u64, Vec<Selector>>, boot: &str) -> io::Result<Namespace> {
    let inode = file.metadata()?.ino();
    let file = OwnedFd::from(file);
    let cookie = netns::inside(&file, netns::current_cookie)??;
    let id = NamespaceId { cookie, inode };
    let way = Way::Path(path.into());
    Ok(Namespace { id, selectors: selectors(id, names, boot), name: name(id, names, boot), way })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_threads_namespace_is_its_own() {
        let namespaces = Namespaces::look().unwrap();
        assert_eq!(namespaces.own.id.inode, std::fs::metadata(OWN).unwrap().ino());
        assert_ne!(namespaces.own.id.cookie, 0);
        let here = namespaces.at(Path::new("/proc/self/ns/net")).unwrap();
        assert_eq!(here.id, namespaces.own.id);
        assert!(namespaces.look_again().is_none_or(|again| again.own.id == here.id));
    }

    #[test]
    fn files_become_selectors_that_survive() {
        let namespaces = Namespaces::look().unwrap();
        let resolve = |text: &str| namespaces.resolve(text.parse().unwrap());
        assert_eq!(resolve(HOST).unwrap(), Selector::Host);
        assert_eq!(resolve("any").unwrap(), Selector::Any);
        // Dormant, not wrong.
        assert_eq!(resolve("netns:no-such-name").unwrap(), Selector::Named("no-such-name".into()));
        assert!(matches!(resolve("/proc/0/ns/net"), Err(ResolveError::File { .. })));
        // A FIFO that nobody writes to is not waited for.
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let refused = namespaces.resolve(Selector::File(fifo));
        assert!(matches!(refused, Err(ResolveError::NotANamespace { .. })), "{refused:?}");
        assert!(
            matches!(resolve("/etc/passwd"), Err(ResolveError::NotANamespace { .. })),
            "{:?}",
            resolve("/etc/passwd")
        );
        assert!(matches!(resolve("/proc/self/ns/mnt"), Err(ResolveError::NotANamespace { .. })));
    }

    #[test]
    fn selectors_that_mean_nothing_now_are_dormant() {
        let namespaces = Namespaces::look().unwrap();
        assert!(namespaces.exists(&Selector::Host));
        assert!(!namespaces.exists(&Selector::Named("no-such-name".into())));
        let own = namespaces.own.selectors[0].clone();
        assert!(namespaces.exists(&own));
        let Selector::Lifetime { cookie, .. } = own else { panic!("the most specific selector is the lifetime") };
        assert!(
            !namespaces.exists(&Selector::Lifetime { cookie, boot: "6e6cd9d5-4a0d-4a42-9a4c-0c9a7b1b4c11".into() })
        );
    }
}
