//! Sockets whose packets pass beside netfilter: AF_PACKET and AF_XDP. Nothing here can stop what they send, so whoever
//! holds one is told of: in an event when it is first seen, and in the status.
//!
//! A look goes over all open files and takes milliseconds. It happens at start, when the probe says that somebody made
//! such a socket, and when somebody asks for the status, never on the packet path. Only the daemon's own network
//! namespace is looked at: what such a socket sends in another namespace comes through the FORWARD hook.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crossbeam_channel::{Receiver, Sender, bounded};
use shared::control::{BypassHolder, BypassSocket};
use shared::event::{BypassFamily, SocketEvent, SocketNews};
use syscall_probe::Generations;

use crate::attribute::descriptors;
use crate::image::{Hashing, NoImage, ProcDir, Process};
use crate::investigate::Means;
use crate::journal::{Notices, owner, timestamp};

/// The sockets of the calling thread's namespace; threads may visit others. See packet(7).
const TABLE: &str = "/proc/thread-self/net/packet";

/// A socket that passes beside netfilter.
type Key = (BypassFamily, u64);
type Found = BTreeMap<Key, BTreeSet<Process>>;
/// What is told: the family, the inode number if there still is one, the owners.
type News = (BypassFamily, Option<u64>, Vec<Process>);

/// Looks for sockets that pass beside netfilter.
pub struct Bypass {
    means: Means,
    seen: Mutex<Seen>,
    looking: Mutex<()>,
    wake: Sender<()>,
    /// Events of the probe that were lost by the last time it was asked: one may have been ours.
    lost: AtomicU64,
}

/// Who made a socket, of which family.
type Maker = (BypassFamily, Process);

/// Makers whose socket was gone before it could be looked at, and who are not told of again.
const MAKERS: usize = 4096;

struct Seen {
    holders: HashMap<Key, HashSet<Process>>,
    /// Whom the probe named since the last look.
    makers: BTreeSet<Maker>,
    /// Who was told of by name of the maker alone. Emptied when it is full.
    told: HashSet<Maker>,
    /// `None` once the journal is about to end.
    notices: Option<Notices>,
}

impl Bypass {
    /// Starts a thread that looks now and whenever it is asked to. It ends with the returned handle.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(means: &Means, notices: Notices) -> io::Result<Arc<Bypass>> {
        let (wake, wanted) = bounded(1);
        let seen = Mutex::new(Seen::new(Some(notices)));
        let bypass =
            Arc::new(Bypass { means: means.clone(), seen, looking: Mutex::new(()), wake, lost: AtomicU64::new(0) });
        bypass.look_soon();
        let looker = Arc::downgrade(&bypass);
        let serve = move |wanted: Receiver<()>| {
            while wanted.recv().is_ok() {
                let Some(bypass) = looker.upgrade() else { return };
                bypass.look();
            }
        };
        std::thread::Builder::new().name("bypass".into()).spawn(move || serve(wanted))?;
        Ok(bypass)
    }

    /// Has the thread look. Whoever asks while it has not begun yet is served by the same look.
    pub fn look_soon(&self) {
        let _ = self.wake.try_send(());
    }

    /// Takes note that `maker` made a socket of a family (`AF_*`) in the namespace with this inode number. It may be gone
    /// before it can be looked at.
    pub fn note(&self, maker: Process, family: u16, netns: u32) {
        if u64::from(netns) == self.own() {
            self.seen().makers.insert((self::family(family), maker));
            self.look_soon();
        }
    }

    /// Has the thread look if events of the probe were lost since the last call.
    pub fn mind_lost_events(&self) {
        let lost = self.means.generations.as_ref().map_or(0, Generations::lost_events);
        if self.lost.swap(lost, Ordering::Relaxed) != lost {
            self.look_soon();
        }
    }

    /// Looks, and tells of what was not seen before.
    pub fn look(&self) -> Vec<BypassSocket> {
        let (found, news, notices) = {
            // One look after the other: an older one must not take the place of a newer one. Who is named while it lasts
            // counts for the next.
            let _one = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
            let makers = std::mem::take(&mut self.seen().makers);
            let found = self.find();
            let mut seen = self.seen();
            let news = seen.take(&found, makers);
            (found, news, seen.notices.clone())
        };
        if let Some(notices) = notices {
            news.into_iter().for_each(|news| notices.tell(self.event(news)));
        }
        let holder = |process: &Process| BypassHolder { pid: process.tgid, path: program(*process) };
        let socket = |((family, inode), holders): (&Key, &BTreeSet<Process>)| BypassSocket {
            family: *family,
            inode: *inode,
            holders: holders.iter().map(holder).collect(),
        };
        found.iter().map(socket).collect()
    }

    /// Lets go of the journal, which ends when nobody can write to it any more.
    pub fn fall_silent(&self) {
        self.seen().notices = None;
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // What was seen is replaced as a whole; a thread that panicked left nothing half done.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn own(&self) -> u64 {
        self.means.namespaces.load().own.id.inode
    }

    /// Reads, and perhaps hashes, what the owners are made of.
    fn event(&self, (family, inode, owners): News) -> SocketEvent {
        SocketEvent {
            time: timestamp(SystemTime::now()),
            event: SocketNews::BypassCapable,
            family,
            inode,
            owners: owners.into_iter().map(|process| self.owner(process)).collect(),
        }
    }

    fn owner(&self, process: Process) -> shared::event::EventOwner {
        let image = self.means.reader().read(process, Hashing::Allowed).map_err(|none| match none {
            NoImage::Because(cause) => cause,
            NoImage::NeedsHashing => shared::Cause::ObjectUnreadable,
        });
        owner(process, image.as_ref().map_err(|cause| *cause))
    }

    fn find(&self) -> Found {
        let listed = || -> BTreeSet<Key> { inodes(&table()).map(|inode| (BypassFamily::Packet, inode)).collect() };
        let mut found: Found = listed().into_iter().map(|key| (key, BTreeSet::new())).collect();
        let own = self.own();
        let open = self.means.iterator.as_ref().map(|iterator| iterator.bypass_sockets());
        match open.transpose().inspect_err(|error| tracing::warn!("open files: {error}")) {
            Ok(Some(records)) => {
                for record in records.iter().filter(|record| u64::from(record.netns) == own) {
                    let process = Process::new(record.tgid, record.start);
                    found.entry((family(record.family), record.inode)).or_default().insert(process);
                }
            }
            // /proc does not tell the family of a descriptor, so only what the table has is found.
            Ok(None) | Err(_) if !found.is_empty() => match descriptors::dump() {
                Ok(records) => {
                    for record in records {
                        if let Some(holders) = found.get_mut(&(BypassFamily::Packet, record.inode)) {
                            holders.insert(Process::new(record.tgid, record.start));
                        }
                    }
                }
                Err(error) => tracing::warn!("open files: {error}"),
            },
            _ => {}
        }
        // What nobody holds may have been closed meanwhile.
        if found.values().any(BTreeSet::is_empty) {
            let still = listed();
            found.retain(|key, holders| !holders.is_empty() || still.contains(key));
        }
        found
    }
}

impl Seen {
    fn new(notices: Option<Notices>) -> Seen {
        Seen { holders: HashMap::new(), makers: BTreeSet::new(), told: HashSet::new(), notices }
    }

    /// Takes note of what was found; returns the sockets that are new or have a holder that is, and the makers who hold
    /// nothing any more.
    fn take(&mut self, found: &Found, makers: BTreeSet<Maker>) -> Vec<News> {
        let known = |(socket, holders): &(&Key, &BTreeSet<Process>)| {
            self.holders.get(socket).is_some_and(|known| holders.iter().all(|holder| known.contains(holder)))
        };
        let mut news: Vec<News> = found
            .iter()
            .filter(|entry| !known(entry))
            .map(|((family, inode), holders)| (*family, Some(*inode), holders.iter().copied().collect()))
            .collect();
        for (family, maker) in makers {
            let holds = found.iter().any(|((of, _), holders)| *of == family && holders.contains(&maker));
            let held = self.holders.iter().any(|((of, _), holders)| *of == family && holders.contains(&maker));
            if self.told.len() >= MAKERS {
                self.told.clear();
            }
            if !holds && !held && self.told.insert((family, maker)) {
                news.push((family, None, vec![maker]));
            }
        }
        self.holders = found.iter().map(|(socket, holders)| (*socket, holders.iter().copied().collect())).collect();
        news
    }
}

fn family(number: u16) -> BypassFamily {
    if i32::from(number) == libc::AF_XDP { BypassFamily::Xdp } else { BypassFamily::Packet }
}

/// Path of the program, as the process sees it.
fn program(process: Process) -> Option<String> {
    let path = ProcDir::open(process).ok()?.link("exe")?;
    Some(String::from_utf8_lossy(&path).into_owned())
}

/// The text of [`TABLE`].
fn table() -> String {
    match std::fs::read_to_string(TABLE) {
        Ok(table) => table,
        // A kernel without packet sockets.
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => {
            tracing::warn!("{TABLE}: {error}");
            String::new()
        }
    }
}

/// The last column of the table.
fn inodes(table: &str) -> impl Iterator<Item = u64> {
    table.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next_back()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use arc_swap::ArcSwap;
    use shared::Verdict;

    use crate::attribute::census::Census;
    use crate::clock::Clock;
    use crate::image::Digests;
    use crate::matcher::{Defaults, Ruleset};
    use crate::namespaces::Namespaces;

    #[test]
    fn the_kernels_table() {
        let table = "\
sk               RefCnt Type Proto  Iface R Rmem   User   Inode
00000000f3f0a8c5 3      3    0003   0     1 0      0      48059
00000000c3f0a8c5 3      2    88cc   2     1 0      100    48060
";
        assert_eq!(inodes(table).collect::<Vec<_>>(), [48059, 48060]);
        assert_eq!(inodes("").count() + inodes("sk\n\nx y\n").count(), 0);
    }

    #[test]
    fn a_socket_in_another_namespace_has_nobody_look() {
        let defaults = Defaults { output: Verdict::Accept, input: Verdict::Accept, forward: Verdict::Accept };
        let means = Means {
            clock: Clock::new(),
            digests: Arc::new(Digests::new([], bounded(1).0)),
            generations: None,
            iterator: None,
            census: Census::default(),
            chronicle: None,
            mappings: None,
            namespaces: Arc::new(ArcSwap::from_pointee(Namespaces::look().unwrap())),
            rules: Arc::new(ArcSwap::from_pointee(Ruleset::empty(1, defaults))),
        };
        let (wake, wanted) = bounded(1);
        let seen = Mutex::new(Seen::new(None));
        let bypass = Bypass { means, seen, looking: Mutex::new(()), wake, lost: AtomicU64::new(0) };
        let (maker, own) = (Process { tgid: 7, start: 1 }, bypass.own() as u32);
        for family in [libc::AF_PACKET, libc::AF_XDP] {
            bypass.note(maker, family as u16, own + 1);
            assert!(wanted.is_empty() && bypass.seen().makers.is_empty());
        }
        bypass.note(maker, libc::AF_PACKET as u16, own);
        assert!(!wanted.is_empty());
        assert_eq!(bypass.seen().makers, BTreeSet::from([(BypassFamily::Packet, maker)]));
    }

    #[test]
    fn each_socket_and_each_holder_is_news_once() {
        let process = |tgid| Process { tgid, start: 1 };
        let found = |holders: &[(u64, &[u32])]| -> Found {
            let entry = |(inode, tgids): &(u64, &[u32])| {
                ((BypassFamily::Packet, *inode), tgids.iter().map(|tgid| process(*tgid)).collect())
            };
            holders.iter().map(entry).collect()
        };
        let mut seen = Seen::new(None);
        let mut news = |holders: &[(u64, &[u32])]| -> Vec<u64> {
            let news = seen.take(&found(holders), BTreeSet::new());
            news.into_iter().filter_map(|(_, inode, _)| inode).collect()
        };
        assert_eq!(news(&[(1, &[7]), (2, &[])]), [1, 2]);
        assert_eq!(news(&[(1, &[7]), (2, &[])]), [0; 0]);
        assert_eq!(news(&[(1, &[7, 8]), (2, &[])]), [1]);
        assert_eq!(news(&[(1, &[8])]), [0; 0]);
        assert_eq!(news(&[(1, &[8]), (2, &[9])]), [2]);
        assert_eq!(news(&[]), [0; 0]);
        assert_eq!(news(&[(1, &[8])]), [1]);
    }

    #[test]
    fn a_maker_is_told_of_if_its_socket_is_gone() {
        let (packet, xdp) = (BypassFamily::Packet, BypassFamily::Xdp);
        let maker = Process { tgid: 7, start: 1 };
        let held = Found::from([((packet, 1), BTreeSet::from([maker]))]);
        let by = |family| BTreeSet::from([(family, maker)]);
        let mut seen = Seen::new(None);
        assert_eq!(seen.take(&Found::new(), by(packet)), [(packet, None, vec![maker])]);
        assert_eq!(seen.take(&Found::new(), by(packet)), []);
        assert_eq!(seen.take(&Found::new(), by(xdp)), [(xdp, None, vec![maker])]);
        // Found in time, it is told of once.
        let mut seen = Seen::new(None);
        assert_eq!(seen.take(&held, by(packet)), [(packet, Some(1), vec![maker])]);
        assert_eq!(seen.take(&Found::new(), by(packet)), []);
    }
}
