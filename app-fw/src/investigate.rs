//! Questions that take longer than a packet should: who holds a socket, what a process is made of, which namespace is
//! behind a device. A few threads answer them; the packets that wait are parked meanwhile.
//!
//! Searchers never hash. An image that needs a digest goes on to a hasher, so that a program of 200 MB delays nobody but
//! itself.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, unbounded};
use nix::sys::eventfd::EventFd;
use shared::Cause;
use syscall_probe::{Generations, Holders, Mappings, Probe};

use crate::attribute::census::Census;
use crate::attribute::{Endpoint, Owners, Search};
use crate::clock::Clock;
use crate::crowd::Crowd;
use crate::image::{Chronicle, Digests, Hashing, Image, NoImage, ProcDir, Process, Reader};
use crate::matcher::Ruleset;
use crate::namespaces::links::{Beyond, Links};
use crate::namespaces::{Namespace, Namespaces};

/// Names a question, so that it is asked once however many packets wait for the answer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Key {
    /// Who holds the socket?
    Owners(Endpoint),
    /// What is the process made of?
    Image(Process),
    /// In which namespace does the address live that is reached through the device?
    Behind(u32, IpAddr),
    /// No question: the process became another program.
    Exec(Process),
}

/// A question.
#[derive(Clone, Debug)]
pub enum Question {
    /// See [`Key::Owners`].
    Owners {
        /// What to look for.
        endpoint: Endpoint,
        /// Where.
        namespace: Arc<Namespace>,
        /// An earlier answer.
        previous: Option<Arc<Owners>>,
        /// A process that likely holds it.
        likely: Option<Process>,
        /// That process's image will be asked for next. It comes with the answer if it can be had at once.
        with_image: bool,
    },
    /// See [`Key::Image`].
    Image(Process),
    /// See [`Key::Behind`].
    Behind(u32, IpAddr),
}

impl Question {
    /// Its name.
    pub fn key(&self) -> Key {
        match self {
            Question::Owners { endpoint, .. } => Key::Owners(*endpoint),
            Question::Image(process) => Key::Image(*process),
            Question::Behind(device, address) => Key::Behind(*device, *address),
        }
    }
}

/// An answer.
#[derive(Debug)]
pub struct Finding {
    /// Which question.
    pub key: Key,
    /// When the search began, by the daemon's clock: the answer is true of packets that came before.
    pub began: u64,
    /// What was found.
    pub found: Found,
}

/// What was found.
#[derive(Clone, Debug)]
pub enum Found {
    /// The holders.
    Owners(Arc<Owners>),
    /// The image, or why there is none.
    Image(Result<Arc<Image>, Cause>),
    /// What is there.
    Behind(Result<Beyond, Cause>),
    /// Nothing: the news is in the key.
    News,
}

/// Where a worker receives answers.
#[derive(Clone)]
pub struct Mailbox {
    sender: Sender<Finding>,
    wake: Arc<EventFd>,
}

impl Mailbox {
    /// A mailbox, its receiving end, and what becomes readable when there is something in it.
    ///
    /// # Errors
    /// No eventfd can be had.
    pub fn new() -> nix::Result<(Mailbox, Receiver<Finding>, Arc<EventFd>)> {
        use nix::sys::eventfd::EfdFlags;
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let (sender, receiver) = unbounded();
        Ok((Mailbox { sender, wake: wake.clone() }, receiver, wake))
    }

    /// Tells a worker that a process became another program.
    pub fn tell_exec(&self, process: Process) {
        self.deliver(Finding { key: Key::Exec(process), began: 0, found: Found::News });
    }

    fn deliver(&self, finding: Finding) {
        // A worker that is gone needs no answer. A counter that is full wakes as well.
        if self.sender.send(finding).is_ok() {
            let _ = self.wake.write(1);
        }
    }
}

struct Job {
    question: Question,
    mailbox: Mailbox,
    /// How many packets wait for the answer.
    waiting: Arc<AtomicUsize>,
}

impl Job {
    fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

/// Takes questions. Cheap to clone. Each worker has few questions open at a time, which bounds the queue; those that it has
/// given up are passed over.
#[derive(Clone)]
pub struct Investigators {
    jobs: Sender<Job>,
    ahead: Sender<Process>,
}

/// What all investigators share.
#[derive(Clone)]
pub struct Means {
    /// The daemon's clock.
    pub clock: Clock,
    /// Digests.
    pub digests: Arc<Digests>,
    /// The generations, if the probe runs.
    pub generations: Option<Generations>,
    /// The iterator, if it runs.
    pub iterator: Option<Holders>,
    /// The raw sockets there are.
    pub census: Census,
    /// What the kernel tells of processes, if it does.
    pub chronicle: Option<Arc<Chronicle>>,
    /// The list of mappings, if it runs.
    pub mappings: Option<Mappings>,
    /// The namespaces there are.
    pub namespaces: Arc<ArcSwap<Namespaces>>,
    /// The rules, which say what is of interest.
    pub rules: Arc<ArcSwap<Ruleset>>,
}

const SEARCHERS: usize = 2;
/// Programs that started lately and may be hashed before they send anything. When more wait, some are hashed at their
/// first packet instead.
const AHEAD: usize = 128;
/// Bytes of a large file: its turn comes after those that are not, and only when a packet needs it.
const LARGE: u64 = 256 << 20;
/// Images that are hashed at a time.
const HASHERS: usize = 48;
/// Beside these, images with large files.
const HASHERS_OF_LARGE: usize = 8;

impl Investigators {
    /// Starts the threads. They end when the last clone is dropped.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(means: &Means, probe: Option<&Probe>) -> std::io::Result<Investigators> {
        let (jobs, queue) = unbounded::<Job>();
        let (ahead, upcoming) = bounded::<Process>(AHEAD);
        let of_large = Hashers::new(means.clone(), Hashing::Allowed, HASHERS_OF_LARGE, None);
        let hashers = Hashers::new(means.clone(), Hashing::UpTo(LARGE), HASHERS, Some(of_large));
        for number in 0..SEARCHERS {
            let search = Search::new(
                means.generations.clone(),
                probe.map(Probe::sockets),
                means.iterator.clone(),
                means.census.clone(),
            );
            if number == 0 && means.generations.is_some() {
                search.count_raw_sockets()?;
            }
            let (means, queue, hashers) = (means.clone(), queue.clone(), hashers.clone());
            let search = move || means.search(search, &queue, &hashers);
            thread::Builder::new().name(format!("search-{number}")).spawn(search)?;
        }
        let means = means.clone();
        thread::Builder::new().name("hash-ahead".into()).spawn(move || means.hash_ahead(&upcoming))?;
        Ok(Investigators { jobs, ahead })
    }

    /// Asks. The answer comes to `mailbox`, if packets are still `waiting` for it.
    pub fn ask(&self, question: Question, mailbox: &Mailbox, waiting: Arc<AtomicUsize>) {
        // The threads live as long as a sender does.
        let _ = self.jobs.send(Job { question, mailbox: mailbox.clone(), waiting });
    }

    /// Has a program hashed that just started.
    pub fn look_ahead(&self, process: Process) {
        match self.ahead.try_send(process) {
            Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
    }
}

/// Threads that hash. Each image has its own while there are not too many, so that the machine's scheduler shares the
/// CPUs between a large program and a small one, and a file that cannot be read to its end holds up nobody else.
struct Hashers {
    means: Means,
    hashing: Hashing,
    crowd: Mutex<Crowd<User, Job>>,
    /// Who hashes what these do not.
    others: Option<Arc<Hashers>>,
}

impl Hashers {
    fn new(means: Means, hashing: Hashing, places: usize, others: Option<Arc<Hashers>>) -> Arc<Hashers> {
        Arc::new(Hashers { means, hashing, crowd: Mutex::new(Crowd::new(places)), others })
    }

    fn crowd(&self) -> MutexGuard<'_, Crowd<User, Job>> {
        self.crowd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Hashers>, user: User, job: Job) {
        let mut crowd = self.crowd();
        crowd.keep(Job::is_awaited);
        let mut next = crowd.enter(user, job).map(|job| (user, job));
        drop(crowd);
        while let Some((user, job)) = next {
            let (hashers, mailbox, key) = (self.clone(), job.mailbox.clone(), job.question.key());
            match thread::Builder::new().name("hash".into()).spawn(move || hashers.work(user, job)) {
                Ok(_) => return,
                Err(error) => tracing::error!("no thread to hash with: {error}"),
            }
            let found = Found::Image(Err(Cause::Overload));
            mailbox.deliver(Finding { key, began: self.means.clock.now(), found });
            next = self.crowd().leave(user);
        }
    }

    fn work(&self, mut user: User, mut job: Job) {
        let _vital = Vital;
        loop {
            if job.is_awaited() {
                self.hash(user, job);
            }
            let Some(next) = self.crowd().leave(user) else { return };
            (user, job) = next;
        }
    }

    fn hash(&self, user: User, job: Job) {
        let Question::Image(process) = job.question else { return };
        let began = self.means.clock.now();
        let found = match (self.means.reader().read(process, self.hashing), &self.others) {
            (Ok(image), _) => Ok(Arc::new(image)),
            (Err(NoImage::Because(cause)), _) => Err(cause),
            (Err(NoImage::NeedsHashing), Some(others)) => return others.take(user, job),
            (Err(NoImage::NeedsHashing), None) => Err(Cause::ObjectUnreadable),
        };
        job.mailbox.deliver(Finding { key: job.question.key(), began, found: Found::Image(found) });
    }
}

/// Whose program is hashed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum User {
    /// By user id.
    Id(u32),
    /// Everybody in a container, whose root can have any user id. By the inode of its network namespace.
    Container(u64),
    /// The process has ended: there is nothing to hash.
    Gone,
}

impl User {
    /// Whose process it is, for a daemon that lives in the network namespace `own`.
    fn of(process: Process, own: u64) -> Option<User> {
        let dir = ProcDir::open(process).ok()?;
        let inode = |name| dir.look(name).ok().map(|(_, namespace)| namespace.ino);
        let net = inode("ns/net")?;
        // In a user namespace of his own anybody makes as many others as he likes.
        let made_by_root = inode("ns/user")? == std::fs::metadata("/proc/self/ns/user").ok()?.ino();
        Some(if net != own && made_by_root { User::Container(net) } else { User::Id(dir.owner().ok()?) })
    }
}

/// A thread that ends in the middle of a question would leave packets waiting for ever: rather the whole daemon ends, and
/// what then happens to packets is what the administrator chose with --queue-bypass.
struct Vital;

impl Drop for Vital {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

impl Means {
    /// Reads images as the searchers do.
    pub(crate) fn reader(&self) -> Reader<'_> {
        let exact = |generations: &&Generations| generations.exact().processes && generations.exact().files;
        Reader {
            digests: &self.digests,
            generations: self.generations.as_ref().filter(exact),
            chronicle: self.chronicle.as_deref(),
            mappings: self.mappings.as_ref(),
            beyond: self.rules.load().asks_beyond_files(),
        }
    }

    fn search(&self, mut search: Search, queue: &Receiver<Job>, hashers: &Arc<Hashers>) {
        let _vital = Vital;
        let mut links = Links::default();
        let own = self.namespaces.load().own.id.inode;
        for job in queue.iter().filter(Job::is_awaited) {
            let began = self.clock.now();
            let found = match &job.question {
                Question::Owners { endpoint, namespace, previous, likely, with_image } => {
                    let found =
                        Found::Owners(Arc::new(search.owners(endpoint, namespace, previous.as_deref(), *likely)));
                    if let (true, Some(process)) = (*with_image, *likely)
                        && let Some(image) = self.reader().told(process)
                    {
                        let found = Found::Image(Ok(Arc::new(image)));
                        job.mailbox.deliver(Finding { key: Key::Image(process), began, found });
                    }
                    found
                }
                Question::Image(process) => match self.reader().read(*process, Hashing::Never) {
                    Ok(image) => Found::Image(Ok(Arc::new(image))),
                    Err(NoImage::Because(cause)) => Found::Image(Err(cause)),
                    Err(NoImage::NeedsHashing) => {
                        hashers.take(User::of(*process, own).unwrap_or(User::Gone), job);
                        continue;
                    }
                },
                Question::Behind(device, address) => Found::Behind(self.behind(&mut links, *device, *address)),
            };
            job.mailbox.deliver(Finding { key: job.question.key(), began, found });
        }
    }

    fn behind(&self, links: &mut Links, device: u32, address: IpAddr) -> Result<Beyond, Cause> {
        links.behind(&self.namespaces.load(), device, address).map_err(|error| {
            tracing::debug!("the namespace of {address} behind device {device}: {error}");
            Cause::NamespaceUnknown
        })
    }

    fn hash_ahead(&self, upcoming: &Receiver<Process>) {
        let own = self.namespaces.load().own.id.inode;
        for process in upcoming {
            // What lives elsewhere sends nothing through this daemon's queues but by way of a container's cable.
            let lives_in = ProcDir::open(process).ok().and_then(|dir| dir.look("ns/net").ok());
            if lives_in.is_some_and(|(_, namespace)| namespace.ino == own) {
                // Only the digests stay; a process that is gone already needs none.
                let _ = self.reader().read(process, Hashing::UpTo(LARGE));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use shared::Verdict;

    use super::*;
    use crate::matcher::Defaults;

    fn process(tgid: u32) -> Process {
        Process { tgid, start: ProcDir::hold(tgid).unwrap().start().unwrap() }
    }

    #[test]
    fn what_nobody_waits_for_is_not_looked_for() {
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
        let investigators = Investigators::start(&means, None).unwrap();
        let (mailbox, findings, _wake) = Mailbox::new().unwrap();
        let me = process(std::process::id());
        for waiting in [0, 1, 0] {
            investigators.ask(Question::Image(me), &mailbox, Arc::new(AtomicUsize::new(waiting)));
        }
        drop((investigators, mailbox));
        // The threads end when all is answered.
        let findings: Vec<_> = findings.iter().collect();
        let [Finding { key, found: Found::Image(Ok(_)), .. }] = &findings[..] else { panic!("{findings:?}") };
        assert_eq!(*key, Key::Image(me));
    }

    /// Whose a process in namespaces of its own is, and the inode of its network namespace.
    fn user_in(namespaces: &str, own: u64) -> (Option<User>, u64) {
        let mut child = Command::new("unshare").args([namespaces, "sleep", "60"]).spawn().unwrap();
        let process = process(child.id());
        let net = || ProcDir::open(process).unwrap().look("ns/net").unwrap().1.ino;
        while net() == own {
            std::thread::yield_now();
        }
        let found = (User::of(process, own), net());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(User::of(process, own), None);
        found
    }

    #[test]
    fn a_containers_root_is_not_the_hosts_and_nobody_makes_himself_another() {
        let own = Namespaces::look().unwrap().own.id.inode;
        let me = User::Id(nix::unistd::geteuid().as_raw());
        assert_eq!(User::of(process(std::process::id()), own), Some(me));
        let (container, inode) = user_in("-n", own);
        assert_eq!(container, Some(User::Container(inode)));
        assert_eq!(user_in("-Urn", own).0, Some(me));
    }
}
