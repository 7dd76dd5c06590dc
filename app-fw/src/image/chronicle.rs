//! What processes are and were made of, as the kernel tells it change by change. So the packet of a process that has ended
//! before anybody looked at it is still judged by what that was made of.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use syscall_probe::{Change, ChangeKind, Changes, Generation, Generations, MappedFile};

use super::Process;

/// The account of all processes that began since the probe was loaded.
pub struct Chronicle {
    generations: Generations,
    book: Mutex<Book>,
}

/// What a process is made of, whether it lives or not.
#[derive(Clone, PartialEq, Debug)]
pub struct Account {
    /// The files mapped executable, the program first.
    pub files: Arc<Vec<MappedFile>>,
    /// [`Generations::image`] of the process: it was made of them when that moved last.
    pub generation: Generation,
}

struct Book {
    changes: Changes,
    /// How many were taken, of those that [`Generations::changes`] counts.
    taken: u64,
    lost: u64,
    lives: Lives,
}

/// What is known of each process.
#[derive(Default)]
struct Lives {
    known: HashMap<Process, Life>,
    /// Those that ended, in that order.
    ended: VecDeque<Process>,
    spaces: u64,
    /// The processes of address spaces that more than one has.
    kin: HashMap<u64, Vec<Process>>,
    /// Files in all accounts together.
    files: usize,
    /// Those that have mapped something new.
    grown: HashSet<Process>,
}

#[derive(Clone, Debug)]
struct Life {
    files: Arc<Vec<MappedFile>>,
    generation: u64,
    /// It is made of `files` and nothing else.
    clear: bool,
    /// Its address space. Processes may share one until they run another program.
    space: u64,
    ended: bool,
}

/// Processes that have ended and are still remembered.
const MAX_ENDED: usize = 4096;
/// Processes that have mapped something new and are told of at once; more are not.
const MAX_GROWN: usize = 4096;
/// A process with more mapped files has no account.
const MAX_FILES: usize = 512;
/// Files in all accounts together, 56 bytes each, or twice that while a list grows. When there are more, all accounts are
/// forgotten: that leaves the processes to a look.
const MAX_FILES_OF_ALL: usize = 1 << 20;
/// So long is waited for what a processor is telling: longer than a busy host keeps a virtual one from running.
const MAX_WAIT: Duration = Duration::from_millis(20);
/// Processes that live and have an account.
const MAX_LIVES: usize = 1 << 17;

impl Chronicle {
    /// Begins with the next change.
    pub fn new(changes: Changes, generations: Generations) -> Chronicle {
        Chronicle { generations, book: Mutex::new(Book { changes, taken: 0, lost: 0, lives: Lives::default() }) }
    }

    /// What becomes readable when there is something to [`catch_up`](Self::catch_up) with.
    ///
    /// # Errors
    /// No descriptor can be had.
    pub fn news(&self) -> std::io::Result<OwnedFd> {
        self.book().changes.as_fd().try_clone_to_owned()
    }

    /// Takes note of all changes until now. To be called when there is [`news`](Self::news), or the kernel has no room for
    /// more, and everything is forgotten. Returns the processes that have mapped a file since the last call which nobody
    /// had looked at; what has become of them meanwhile is another question.
    pub fn catch_up(&self) -> HashSet<Process> {
        let mut book = self.book();
        book.catch_up(&self.generations);
        std::mem::take(&mut book.lives.grown)
    }

    /// What a process is or was made of. `None`: it is not known. Waits for a processor that is telling something, which
    /// takes it a microsecond, or as long as a virtual one is kept from running.
    pub fn of(&self, process: Process) -> Option<Account> {
        let begun = Instant::now();
        loop {
            let mut book = self.book();
            // First the generation, then how much there is to know, then all of that: a change that is not told of by then
            // leaves its process unsettled or has moved it.
            let generation = self.generations.image(process.tgid);
            if book.catch_up(&self.generations) {
                let life = book.lives.known.get(&process).filter(|life| life.clear)?;
                let known = generation.settled && generation.value == life.generation;
                return known.then(|| Account { files: life.files.clone(), generation });
            }
            drop(book);
            // What is not known of a process that has ended nobody can look up.
            if begun.elapsed() > MAX_WAIT {
                return None;
            }
            std::thread::yield_now();
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    /// Returns whether nothing that happened before is missing: one processor may still be writing, and then what others
    /// wrote after it cannot be seen either.
    fn catch_up(&mut self, generations: &Generations) -> bool {
        let mut whole = true;
        // Not what comes meanwhile: somebody may write as fast as it is read.
        let until = generations.changes();
        while self.taken + self.lost < until {
            let Some(change) = self.changes.next() else { break };
            self.taken += 1;
            match change {
                Ok(change) => self.lives.apply(&change),
                Err(error) => {
                    tracing::debug!("{error}");
                    whole = false;
                }
            }
        }
        // After all that came: what was lost among it is counted by now.
        let lost = generations.lost_changes();
        if lost != self.lost || !whole || self.lives.files > MAX_FILES_OF_ALL || self.lives.known.len() > MAX_LIVES {
            self.lost = lost;
            self.lives = Lives::default();
        }
        self.taken + self.lost >= until
    }
}

impl Lives {
    fn apply(&mut self, change: &Change) {
        let process = Process::new(change.tgid, change.start);
        if change.news && self.grown.len() < MAX_GROWN {
            self.grown.insert(process);
        }
        match change.kind {
            ChangeKind::Program(file) => {
                let (files, space) = (Arc::new(vec![file]), self.new_space());
                self.put(process, Life { files, generation: change.generation, clear: true, space, ended: false });
            }
            ChangeKind::Fork { parent, parent_start } => {
                let parent_process = Process::new(parent, parent_start);
                // Of a parent that nothing is known of, nothing is known of the child.
                if let Some(parent) = self.known.get(&parent_process).cloned() {
                    let space = if change.shared { parent.space } else { self.new_space() };
                    if change.shared {
                        let kin = self.kin.entry(space).or_insert_with(|| vec![parent_process]);
                        kin.push(process);
                    }
                    self.put(process, Life { generation: change.generation, space, ended: false, ..parent });
                }
            }
            ChangeKind::End => self.end(process),
            ChangeKind::Object(_) | ChangeKind::Nothing | ChangeKind::Unclear => {
                let Some(life) = self.known.get_mut(&process) else { return };
                // Two threads may tell in another order than they moved it.
                life.generation = life.generation.max(change.generation);
                let space = life.space;
                self.files += life.change(&change.kind);
                if change.shared {
                    for kin in self.kin.get(&space).into_iter().flatten().filter(|kin| **kin != process) {
                        if let Some(life) = self.known.get_mut(kin).filter(|life| life.space == space) {
                            self.files += life.change(&change.kind);
                        }
                    }
                }
            }
        }
    }

    fn new_space(&mut self) -> u64 {
        self.spaces += 1;
        self.spaces
    }

    fn put(&mut self, process: Process, life: Life) {
        self.files += life.files.len();
        if let Some(former) = self.known.insert(process, life) {
            self.files -= former.files.len();
            self.leave(process, former.space);
        }
    }

    fn end(&mut self, process: Process) {
        if let Some(life) = self.known.get_mut(&process)
            && !std::mem::replace(&mut life.ended, true)
        {
            self.ended.push_back(process);
        }
        if self.ended.len() > MAX_ENDED
            && let Some(oldest) = self.ended.pop_front()
            && let Some(life) = self.known.remove(&oldest)
        {
            self.files -= life.files.len();
            self.leave(oldest, life.space);
        }
    }

    /// A process no longer has an address space that it may have shared.
    fn leave(&mut self, process: Process, space: u64) {
        let stays = self.known.get(&process).is_some_and(|life| life.space == space);
        if let Some(kin) = self.kin.get_mut(&space)
            && !stays
        {
            kin.retain(|one| *one != process);
            if kin.len() < 2 {
                self.kin.remove(&space);
            }
        }
    }
}

impl Life {
    /// Returns how many files it has more.
    fn change(&mut self, kind: &ChangeKind) -> usize {
        match kind {
            ChangeKind::Object(file) if self.files.contains(file) => 0,
            ChangeKind::Object(_) if self.files.len() >= MAX_FILES => {
                self.clear = false;
                0
            }
            ChangeKind::Object(file) => {
                Arc::make_mut(&mut self.files).push(*file);
                1
            }
            ChangeKind::Unclear => {
                self.clear = false;
                0
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(inode: u64) -> MappedFile {
        MappedFile { device: 1, inode, size: 1, mtime: 1, ctime: 1, generation: 1, magic: 0xef53 }
    }

    fn change(tgid: u32, generation: u64, kind: ChangeKind) -> Change {
        Change { tgid, start: 10_000_000, generation, shared: false, news: false, kind }
    }

    fn fork(child: u32, parent: u32) -> Change {
        change(child, 1, ChangeKind::Fork { parent, parent_start: 10_000_000 })
    }

    /// The inodes of a process's files, its generation, and whether that is clear.
    fn life(lives: &Lives, tgid: u32) -> Option<(Vec<u64>, u64, bool)> {
        let life = lives.known.get(&Process::new(tgid, 10_000_000))?;
        Some((life.files.iter().map(|file| file.inode).collect(), life.generation, life.clear))
    }

    #[test]
    fn from_program_to_end() {
        let mut lives = Lives::default();
        lives.apply(&change(1, 3, ChangeKind::Object(file(7))));
        assert_eq!(life(&lives, 1), None, "its beginning was not seen");
        lives.apply(&change(1, 4, ChangeKind::Program(file(1))));
        lives.apply(&change(1, 8, ChangeKind::Object(file(2))));
        lives.apply(&change(1, 6, ChangeKind::Object(file(2))));
        lives.apply(&change(1, 9, ChangeKind::Nothing));
        assert_eq!(life(&lives, 1), Some((vec![1, 2], 9, true)));
        lives.apply(&change(1, 10, ChangeKind::End));
        assert_eq!(life(&lives, 1), Some((vec![1, 2], 9, true)), "the end changes nothing");
        lives.apply(&change(2, 1, ChangeKind::Program(file(1))));
        lives.apply(&change(2, 2, ChangeKind::Unclear));
        lives.apply(&change(2, 3, ChangeKind::Object(file(2))));
        assert_eq!(life(&lives, 2), Some((vec![1, 2], 3, false)));
        lives.apply(&change(2, 4, ChangeKind::Program(file(3))));
        assert_eq!(life(&lives, 2), Some((vec![3], 4, true)), "another program is another beginning");
    }

    #[test]
    fn children_begin_as_their_parents() {
        let mut lives = Lives::default();
        lives.apply(&fork(2, 1));
        assert_eq!(life(&lives, 2), None, "nothing is known of the parent");
        lives.apply(&change(1, 1, ChangeKind::Program(file(1))));
        lives.apply(&fork(2, 1));
        lives.apply(&change(2, 2, ChangeKind::Object(file(2))));
        assert_eq!(life(&lives, 1), Some((vec![1], 1, true)));
        assert_eq!(life(&lives, 2), Some((vec![1, 2], 2, true)));
        // Those that share an address space share what is mapped, until one runs another program.
        lives.apply(&Change { shared: true, ..fork(3, 2) });
        lives.apply(&Change { shared: true, ..change(3, 5, ChangeKind::Object(file(3))) });
        assert_eq!(life(&lives, 2), Some((vec![1, 2, 3], 2, true)));
        assert_eq!(life(&lives, 1), Some((vec![1], 1, true)));
        lives.apply(&change(3, 6, ChangeKind::Program(file(4))));
        lives.apply(&Change { shared: true, ..change(3, 7, ChangeKind::Object(file(5))) });
        assert_eq!(life(&lives, 2), Some((vec![1, 2, 3], 2, true)));
        assert_eq!(life(&lives, 3), Some((vec![4, 5], 7, true)));
    }

    #[test]
    fn only_so_many_of_the_dead_are_remembered() {
        let mut lives = Lives::default();
        for tgid in 1..=MAX_ENDED as u32 + 10 {
            lives.apply(&change(tgid, 1, ChangeKind::Program(file(1))));
            lives.apply(&change(tgid, 1, ChangeKind::End));
            lives.apply(&change(tgid, 1, ChangeKind::End));
        }
        assert_eq!((lives.known.len(), lives.ended.len()), (MAX_ENDED, MAX_ENDED));
        assert_eq!(life(&lives, 10), None);
        assert!(life(&lives, 11).is_some());
    }

    #[test]
    fn a_process_of_countless_files_is_not_clear() {
        let mut lives = Lives::default();
        lives.apply(&change(1, 1, ChangeKind::Program(file(0))));
        for inode in 1..=MAX_FILES as u64 {
            assert!(life(&lives, 1).is_some_and(|(_, _, clear)| clear));
            lives.apply(&change(1, 1, ChangeKind::Object(file(inode))));
        }
        assert!(life(&lives, 1).is_some_and(|(_, _, clear)| !clear));
        lives.apply(&change(1, 1, ChangeKind::Object(file(u64::MAX))));
        assert!(life(&lives, 1).is_some_and(|(files, _, _)| files.len() < 2 * MAX_FILES));
    }
}
