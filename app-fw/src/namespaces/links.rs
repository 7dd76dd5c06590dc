//! From a network device to the namespace at its other end: the way from a forwarded packet to the container that sent
//! it.
//!
//! A packet must not wait for a look at every namespace there is. So what was learned is kept in an index, and what it says
//! is checked with the kernel before it is used, because processes, namespaces and their ids come and go.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::route::{Listener, News, PeerId, Route};
use super::{NAMES, Namespace, Namespaces};

/// What a device leads to.
#[derive(Clone, Debug)]
pub enum Beyond {
    /// A namespace of this machine.
    Namespace(Arc<Namespace>),
    /// No other namespace now: a bridge behind which none has the address, or a cable with both ends here.
    Elsewhere,
    /// No other namespace; that stays so.
    Nowhere,
}

/// Finds the namespaces behind devices of the calling thread's namespace.
#[derive(Debug, Default)]
pub struct Links {
    route: Option<Route>,
    /// A file for each namespace, as it was when last looked: `/run/netns/NAME` or `/proc/PID/ns/net`.
    files: HashMap<PeerId, PathBuf>,
    /// The processes there were then.
    seen: HashSet<i32>,
    addresses: Option<Addresses>,
}

impl Links {
    /// The namespace in which `address` lives, reached through `device`, an interface index: what is at the other end of a
    /// virtual cable, or, behind a bridge, what has the address.
    ///
    /// # Errors
    /// The kernel does not answer, or no process and no name leads to that namespace.
    pub fn behind(&mut self, namespaces: &Namespaces, device: u32, address: IpAddr) -> io::Result<Beyond> {
        let route = match self.route.take() {
            Some(route) => route,
            None => Route::open()?,
        };
        let beyond = self.ask(&route, namespaces, device, address);
        // An error may mean that an answer is still to come, which would be taken for the next question's.
        self.route = beyond.is_ok().then_some(route);
        beyond
    }

    fn ask(&mut self, route: &Route, namespaces: &Namespaces, device: u32, address: IpAddr) -> io::Result<Beyond> {
        let link = route.link(device)?;
        let peer = match link.peer {
            Some(peer) => Some(peer),
            None if link.bridge => self.with_address(route, address)?,
            None if link.cable => None,
            None => return Ok(Beyond::Nowhere),
        };
        let Some(peer) = peer else { return Ok(Beyond::Elsewhere) };
        let found = self.known(route, namespaces, peer).or_else(|| self.search(route, namespaces, peer));
        let none = || io::Error::new(io::ErrorKind::NotFound, "no process lives in the namespace behind the device");
        found.map(|namespace| Beyond::Namespace(Arc::new(namespace))).ok_or_else(none)
    }

    /// The namespace with an id, if the file that is known for it still leads there.
    fn known(&self, route: &Route, namespaces: &Namespaces, peer: PeerId) -> Option<Namespace> {
        let path = self.files.get(&peer)?;
        let file = File::open(path).ok()?;
        let leads_there = route.id_of_file(&file).ok()? == Some(peer);
        if leads_there { namespaces.of(path, file).ok() } else { None }
    }

    /// The same after a look around. A new container has new processes; to ask all the others as well takes tens of
    /// milliseconds where there are thousands, so that is done only if the new ones lead nowhere.
    fn search(&mut self, route: &Route, namespaces: &Namespaces, peer: PeerId) -> Option<Namespace> {
        let processes: Vec<i32> = processes().collect();
        self.files.remove(&peer);
        note(&mut self.files, route, processes.iter().filter(|pid| !self.seen.contains(pid)));
        self.seen = processes.iter().copied().collect();
        self.known(route, namespaces, peer).or_else(|| {
            self.files = named(route);
            note(&mut self.files, route, &processes);
            self.known(route, namespaces, peer)
        })
    }

    /// The one namespace that has the address.
    fn with_address(&mut self, route: &Route, address: IpAddr) -> io::Result<Option<PeerId>> {
        let mut addresses = match self.addresses.take() {
            Some(addresses) => addresses,
            None => Addresses::listen(route)?,
        };
        addresses.catch_up(route)?;
        let having = addresses.having(address);
        self.addresses = Some(addresses);
        having
    }
}

/// A file for each namespace that has an id and a name.
fn named(route: &Route) -> HashMap<PeerId, PathBuf> {
    let mut files = HashMap::new();
    for path in names() {
        let Ok(file) = File::open(&path) else { continue };
        // A name whose namespace is not there yet, or no longer, is a plain file.
        if let Ok(Some(id)) = route.id_of_file(&file) {
            files.entry(id).or_insert(path);
        }
    }
    files
}

/// Adds a file for each namespace that has an id, lacks a file, and has one of these processes.
fn note<'a>(files: &mut HashMap<PeerId, PathBuf>, route: &Route, processes: impl IntoIterator<Item = &'a i32>) {
    for pid in processes {
        if let Ok(Some(id)) = route.id_of_process(*pid) {
            files.entry(id).or_insert_with(|| file_of(*pid));
        }
    }
}

/// Which namespace has which addresses.
#[derive(Debug)]
struct Addresses {
    listener: Listener,
    known: HashMap<PeerId, HashSet<IpAddr>>,
    having: HashMap<IpAddr, HashSet<PeerId>>,
    /// To be looked at before the rest is used.
    changed: HashSet<PeerId>,
}

impl Addresses {
    /// Listens first, then looks, so that no change falls between.
    fn listen(route: &Route) -> io::Result<Addresses> {
        let listener = Listener::open()?;
        let changed = route.ids()?;
        Ok(Addresses { listener, known: HashMap::new(), having: HashMap::new(), changed })
    }

    /// Takes notice of all that has changed until now.
    fn catch_up(&mut self, route: &Route) -> io::Result<()> {
        match self.listener.news() {
            Ok(news) => news.into_iter().for_each(|news| self.note(news)),
            // Too much happened to be told.
            Err(_) => *self = Addresses::listen(route)?,
        }
        for id in std::mem::take(&mut self.changed) {
            self.forget(id);
            let addresses = route.addresses(id)?;
            for address in &addresses {
                self.having.entry(*address).or_default().insert(id);
            }
            self.known.insert(id, addresses);
        }
        Ok(())
    }

    fn note(&mut self, news: News) {
        match news {
            News::Changed(id) => drop(self.changed.insert(id)),
            News::Gone(id) => {
                self.changed.remove(&id);
                self.forget(id);
            }
        }
    }

    fn forget(&mut self, id: PeerId) {
        for address in self.known.remove(&id).into_iter().flatten() {
            if let Some(having) = self.having.get_mut(&address) {
                having.remove(&id);
                if having.is_empty() {
                    self.having.remove(&address);
                }
            }
        }
    }

    fn having(&self, address: IpAddr) -> io::Result<Option<PeerId>> {
        match self.having.get(&address) {
            Some(having) if having.len() > 1 => {
                Err(io::Error::other("several namespaces behind the bridge have the address"))
            }
            having => Ok(having.and_then(|having| having.iter().next()).copied()),
        }
    }
}

/// Cookies of all namespaces that can be found.
pub(super) fn cookies() -> HashSet<u64> {
    let open = |path: PathBuf| Some(OwnedFd::from(File::open(path).ok()?));
    let cookie = |file: OwnedFd| crate::sys::netns::inside(&file, crate::sys::netns::current_cookie).ok()?.ok();
    candidates().filter_map(open).filter_map(cookie).collect()
}

/// One file for each namespace that has a name or a process.
pub(super) fn candidates() -> impl Iterator<Item = PathBuf> {
    let mut seen = HashSet::new();
    let all = names().chain(processes().map(file_of));
    all.filter(move |path| std::fs::metadata(path).is_ok_and(|metadata| seen.insert(metadata.ino())))
}

fn names() -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(NAMES).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Ids of all processes, the oldest mostly first: those stay.
fn processes() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn file_of(pid: i32) -> PathBuf {
    format!("/proc/{pid}/ns/net").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_leads_nowhere() {
        let namespaces = Namespaces::look().unwrap();
        let address = "192.0.2.1".parse().unwrap();
        let mut links = Links::default();
        assert!(matches!(links.behind(&namespaces, 1, address), Ok(Beyond::Nowhere)));
        assert!(links.behind(&namespaces, 0x7fff_fff0, address).is_err());
        assert!(matches!(links.behind(&namespaces, 1, address), Ok(Beyond::Nowhere)), "after an error");
        assert!(cookies().contains(&namespaces.own.id.cookie));
    }
}
