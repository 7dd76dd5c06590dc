//! What processes are and were made of, as the kernel tells it change by change. So the packet of a process that has ended
//! before anybody looked at it is still judged by what that was made of.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// Processes that have ended and are still remembered. Each takes some kilobytes at most, and shares them with its kin.
const MAX_ENDED: usize = 4096;
/// Processes that have mapped something new and are told of at once; more are not.
const MAX_GROWN: usize = 4096;
/// A process with more mapped files has no account. Each costs 56 bytes.
const MAX_FILES: usize = 1024;

impl Chronicle {
    /// Begins with the next change.
    pub fn new(changes: Changes, generations: Generations) -> Chronicle {
        let lost = generations.lost_changes();
        Chronicle { generations, book: Mutex::new(Book { changes, lost, lives: Lives::default() }) }
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

    /// What a process is or was made of. `None`: it is not known.
    pub fn of(&self, process: Process) -> Option<Account> {
        let mut book = self.book();
        book.catch_up(&self.generations);
        let life = book.lives.known.get(&process).filter(|life| life.clear)?;
        let generation = self.generations.image(process.tgid);
        let complete = generation.settled && generation.value == life.generation;
        complete.then(|| Account { files: life.files.clone(), generation })
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn catch_up(&mut self, generations: &Generations) {
        let mut whole = true;
        while let Some(change) = self.changes.next() {
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
        if lost != self.lost || !whole {
            self.lost = lost;
            self.lives = Lives::default();
        }
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
                let space = self.new_space();
                let files = Arc::new(vec![file]);
                self.known
                    .insert(process, Life { files, generation: change.generation, clear: true, space, ended: false });
            }
            ChangeKind::Fork { parent, parent_start } => {
                let space = self.new_space();
                // Of a parent that nothing is known of, nothing is known of the child.
                if let Some(parent) = self.known.get(&Process::new(parent, parent_start)) {
                    let space = if change.shared { parent.space } else { space };
                    let child = Life { generation: change.generation, space, ..parent.clone() };
                    self.known.insert(process, child);
                }
            }
            ChangeKind::End => self.end(process),
            ChangeKind::Object(_) | ChangeKind::Nothing | ChangeKind::Unclear => {
                let Some(life) = self.known.get_mut(&process) else { return };
                // Two threads may tell in another order than they moved it.
                life.generation = life.generation.max(change.generation);
                life.change(&change.kind);
                let space = life.space;
                if change.shared {
                    self.known
                        .values_mut()
                        .filter(|life| life.space == space)
                        .for_each(|life| life.change(&change.kind));
                }
            }
        }
    }

    fn new_space(&mut self) -> u64 {
        self.spaces += 1;
        self.spaces
    }

    fn end(&mut self, process: Process) {
        if let Some(life) = self.known.get_mut(&process)
            && !std::mem::replace(&mut life.ended, true)
        {
            self.ended.push_back(process);
        }
        if self.ended.len() > MAX_ENDED
            && let Some(oldest) = self.ended.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

impl Life {
    fn change(&mut self, kind: &ChangeKind) {
        match kind {
            ChangeKind::Object(_) if self.files.len() >= MAX_FILES => self.clear = false,
            ChangeKind::Object(file) if !self.files.contains(file) => Arc::make_mut(&mut self.files).push(*file),
            ChangeKind::Unclear => self.clear = false,
            _ => {}
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
