//! One process, held fast while it is looked at.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{Mode, fstat};
use shared::Cause;

use crate::sys::files::{FileFacts, facts};

/// (tgid, start time): names a process for good, which a bare pid does not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Process {
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// When it started, in clock ticks (a hundredth of a second) after boot, as field 22 of /proc/PID/stat.
    pub start: u64,
}

/// Nanoseconds in a clock tick as the kernel shows it to user space (`USER_HZ` is 100 on every architecture Rust knows).
pub const TICK: u64 = 10_000_000;

impl Process {
    /// From the kernel's `start_boottime`, nanoseconds.
    pub fn new(tgid: u32, start_boottime: u64) -> Process {
        Process { tgid, start: start_boottime / TICK }
    }
}

/// /proc/PID of one process. Reads through it fail once the process is gone; they never reach another process that was
/// given the same pid.
///
/// If the first thread has ended and others go on, /proc/PID has no memory and no program any more. Then those are read
/// through one of the others, which have the same ([`ProcDir::has_lost_its_thread`]).
pub struct ProcDir {
    dir: OwnedFd,
    /// /proc/TID of a thread that goes on, where the first has ended: /proc/PID/task/TID lacks map_files.
    thread: Option<OwnedFd>,
}

const LOOK: OFlag = OFlag::O_CLOEXEC.union(OFlag::O_PATH);

impl ProcDir {
    /// Holds `process`.
    ///
    /// # Errors
    /// It is gone (a zombie is), or something else has its pid.
    pub fn open(process: Process) -> Result<ProcDir, Cause> {
        let mut held = ProcDir::hold(process.tgid)?;
        let stat = held.stat()?;
        if stat.living()? != process.start {
            return Err(Cause::ProcessGone);
        }
        if stat.has_ended() {
            held.thread = held.another_thread(process);
        }
        Ok(held)
    }

    /// A thread that goes on, if one can be had: they come and go.
    fn another_thread(&self, process: Process) -> Option<OwnedFd> {
        let goes_on = |thread: &ProcDir| {
            let status = thread.read("status").ok()?;
            (field(&status, "Tgid:")? == process.tgid && !thread.stat().ok()?.has_ended()).then_some(())
        };
        let threads = self.threads().ok()?.filter_map(|id| ProcDir::hold(id.parse().ok()?).ok());
        let thread = threads.into_iter().find(|thread| goes_on(thread).is_some())?;
        // The id may have been another's since it was listed. But if the process is still there now, it was the one with
        // that Tgid then; and what is held leads to no other thread afterwards.
        (self.start() == Ok(process.start)).then_some(thread.dir)
    }

    /// Holds whatever process has this id now.
    ///
    /// # Errors
    /// None has.
    pub fn hold(tgid: u32) -> Result<ProcDir, Cause> {
        open(format!("/proc/{tgid}").as_str(), LOOK | OFlag::O_DIRECTORY, Mode::empty())
            .map(|dir| ProcDir { dir, thread: None })
            .map_err(|_| Cause::ProcessGone)
    }

    /// When it started, clock ticks after boot.
    ///
    /// # Errors
    /// It is gone.
    pub fn start(&self) -> Result<u64, Cause> {
        self.stat()?.living()
    }

    fn stat(&self) -> Result<Stat, Cause> {
        let text = read(&self.dir, "stat").map_err(|_| Cause::ProcessGone)?;
        parse_stat(&text).ok_or(Cause::MapsUnreadable)
    }

    /// Whether the thread it is read through has ended, and the process goes on: what was read last may be nothing, and
    /// another [`ProcDir::open`] helps.
    pub fn has_lost_its_thread(&self) -> bool {
        let ended = |thread: &OwnedFd| {
            !read(thread, "stat").is_ok_and(|text| parse_stat(&text).is_some_and(|stat| !stat.has_ended()))
        };
        ended(self.body()) && self.start().is_ok()
    }

    /// Where memory and program are read.
    fn body(&self) -> &OwnedFd {
        self.thread.as_ref().unwrap_or(&self.dir)
    }

    /// Reads a whole file.
    ///
    /// # Errors
    /// What open(2) and read(2) say.
    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        read(self.body(), name)
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open_file(&self, name: &str) -> io::Result<File> {
        open_in(self.body(), name)
    }

    /// Its effective user id.
    ///
    /// # Errors
    /// What fstat(2) says.
    pub fn owner(&self) -> io::Result<u32> {
        Ok(fstat(&self.dir)?.st_uid)
    }

    /// Who traces it: the process id of a tracer of any of its threads. A tracer outside the reader's pid namespace is not
    /// seen.
    ///
    /// # Errors
    /// It is gone, or /proc says nonsense.
    pub fn tracer(&self) -> Result<Option<u32>, Cause> {
        let status = read(&self.dir, "status").map_err(|_| Cause::ProcessGone)?;
        let Status { tracer, threads } = parse_status(&status).ok_or(Cause::MapsUnreadable)?;
        let tracer = match tracer {
            0 if threads > 1 => self.tracer_of_threads()?,
            tracer => tracer,
        };
        // The kernel names the thread that traces.
        let process_of = |thread| field(&ProcDir::hold(thread).ok()?.read("status").ok()?, "Tgid:");
        Ok((tracer != 0).then(|| process_of(tracer).unwrap_or(tracer)))
    }

    /// Effective user and group id, each if all threads that go on have the same.
    ///
    /// # Errors
    /// It is gone, or /proc says nonsense.
    pub fn users(&self) -> Result<(Option<u32>, Option<u32>), Cause> {
        let status = read(&self.dir, "status").map_err(|_| Cause::ProcessGone)?;
        let first = parse_users(&status).ok_or(Cause::MapsUnreadable)?;
        if parse_status(&status).ok_or(Cause::MapsUnreadable)?.threads <= 1 {
            return Ok((Some(first.uid), Some(first.gid)));
        }
        let mut found: Option<(Option<u32>, Option<u32>)> = None;
        for task in self.threads().map_err(|_| Cause::ProcessGone)? {
            // A thread that ended meanwhile does nothing any more.
            let Ok(status) = read(&self.dir, &format!("task/{task}/status")) else { continue };
            let users = parse_users(&status).ok_or(Cause::MapsUnreadable)?;
            if users.ended {
                continue;
            }
            let (uid, gid) = found.unwrap_or((Some(users.uid), Some(users.gid)));
            found = Some((uid.filter(|uid| *uid == users.uid), gid.filter(|gid| *gid == users.gid)));
        }
        found.ok_or(Cause::ProcessGone)
    }

    /// Reads a whole file about the first thread, whether that goes on or not.
    ///
    /// # Errors
    /// What open(2) and read(2) say.
    pub fn read_of_first(&self, name: &str) -> io::Result<Vec<u8>> {
        read(&self.dir, name)
    }

    /// Thread id of a tracer, or 0.
    fn tracer_of_threads(&self) -> Result<u32, Cause> {
        for task in self.threads().map_err(|_| Cause::ProcessGone)? {
            // A thread that ended meanwhile does nothing any more.
            let Ok(status) = read(&self.dir, &format!("task/{task}/status")) else { continue };
            let Status { tracer, .. } = parse_status(&status).ok_or(Cause::MapsUnreadable)?;
            if tracer != 0 {
                return Ok(tracer);
            }
        }
        Ok(0)
    }

    /// Ids of its threads.
    fn threads(&self) -> io::Result<impl Iterator<Item = String>> {
        let tasks = std::fs::read_dir(format!("/proc/self/fd/{}/task", self.dir.as_raw_fd()))?;
        Ok(tasks.filter_map(|task| task.ok()?.file_name().into_string().ok()))
    }

    /// Follows a link such as `exe` or `map_files/1000-2000` to the file itself, without opening it for reading: a device
    /// or a FIFO is not disturbed.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn look(&self, name: &str) -> io::Result<(OwnedFd, FileFacts)> {
        let fd = openat(self.body(), name, LOOK, Mode::empty())?;
        let facts = facts(&fd)?;
        Ok((fd, facts))
    }

    /// A link's text; for people.
    pub fn link(&self, name: &str) -> Option<Vec<u8>> {
        use std::os::unix::ffi::OsStringExt;
        readlinkat(self.body(), name).ok().map(OsStringExt::into_vec)
    }
}

fn read(dir: &OwnedFd, name: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(16 * 1024);
    open_in(dir, name)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn open_in(dir: &OwnedFd, name: &str) -> io::Result<File> {
    Ok(openat(dir, name, OFlag::O_CLOEXEC | OFlag::O_RDONLY, Mode::empty())?.into())
}

/// `PF_EXITING` of the kernel's include/linux/sched.h, as the flags in /proc/PID/stat have it.
const PF_EXITING: u64 = 4;

/// What is wanted of a /proc/PID/stat line; see proc_pid_stat(5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stat {
    state: u8,
    flags: u64,
    threads: u64,
    start: u64,
}

impl Stat {
    /// The thread does nothing any more but close its files.
    fn has_ended(self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x') || self.flags & PF_EXITING != 0
    }

    /// When the process started, of whose first thread this is.
    fn living(self) -> Result<u64, Cause> {
        // A first thread that ended before the others is a zombie too, but the process lives.
        if self.has_ended() && self.threads <= 1 { Err(Cause::ProcessGone) } else { Ok(self.start) }
    }
}

/// What is wanted of /proc/PID/status; see proc_pid_status(5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Status {
    /// Thread id; 0: none.
    tracer: u32,
    threads: u32,
}

fn parse_status(text: &[u8]) -> Option<Status> {
    Some(Status { tracer: field(text, "TracerPid:")?, threads: field(text, "Threads:")? })
}

/// What a thread's status says of its user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Users {
    /// Effective.
    uid: u32,
    gid: u32,
    /// It does nothing any more.
    ended: bool,
}

fn parse_users(text: &[u8]) -> Option<Users> {
    // Real, effective, saved, of the file system.
    let effective = |key| std::str::from_utf8(line(text, key)?).ok()?.split_whitespace().nth(1)?.parse().ok();
    let state = *line(text, "State:")?.trim_ascii_start().first()?;
    let ended = matches!(state, b'Z' | b'X' | b'x');
    Some(Users { uid: effective("Uid:")?, gid: effective("Gid:")?, ended })
}

/// The number on the line that starts with `key`. A process cannot forge one: the kernel escapes line ends in its name.
fn field(text: &[u8], key: &str) -> Option<u32> {
    std::str::from_utf8(line(text, key)?).ok()?.trim().parse().ok()
}

/// What follows `key` on the line that starts with it.
fn line<'a>(text: &'a [u8], key: &str) -> Option<&'a [u8]> {
    text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(key.as_bytes()))
}

/// The command name in brackets may hold anything, brackets included.
fn parse_stat(text: &[u8]) -> Option<Stat> {
    let after_name = text.iter().rposition(|byte| *byte == b')')? + 1;
    let mut fields = text.get(after_name..)?.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
    let state = *fields.next()?.first()?;
    let mut number = |skip| std::str::from_utf8(fields.nth(skip)?).ok()?.parse().ok();
    // Fields 9, 20 and 22; the state is field 3.
    let (flags, threads, start) = (number(5)?, number(10)?, number(1)?);
    Some(Stat { state, flags, threads, start })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_with_hostile_names() {
        let tail = b"S 1 2 3 4 5 4194304 7 8 9 10 11 12 13 14 15 16 7 18 4242 20 21\n";
        for name in [&b"7 (plain) "[..], b"7 (a) R 1 (b) ", b"7 (\xff\n)) "] {
            let line = [name, tail].concat();
            assert_eq!(
                parse_stat(&line),
                Some(Stat { state: b'S', flags: 4_194_304, threads: 7, start: 4242 }),
                "{}",
                line.escape_ascii()
            );
        }
        for bad in [&b""[..], b"1 (x", b"1 (x) S", b"1 (x) S 1 2 3"] {
            assert_eq!(parse_stat(bad), None);
        }
    }

    #[test]
    fn status_lines() {
        let text = b"Name:\tTracerPid:\\n9\nTgid:\t7\nTracerPid:\t4711\nThreads:\t2\n";
        assert_eq!(parse_status(text), Some(Status { tracer: 4711, threads: 2 }));
        assert_eq!(field(text, "Tgid:"), Some(7));
        for bad in [&b""[..], b"TracerPid:\t\nThreads:\t1\n", b"TracerPid:\t1\n", b"TracerPid:\t-1\nThreads:\t1\n"] {
            assert_eq!(parse_status(bad), None);
        }
    }

    #[test]
    fn users_on_status_lines() {
        let text = b"Name:\tUid:\\n9 9\nState:\tS (sleeping)\nUid:\t1\t2\t3\t4\nGid:\t5\t4294967294\t7\t8\n";
        assert_eq!(parse_users(text), Some(Users { uid: 2, gid: u32::MAX - 1, ended: false }));
        let zombie = b"State:\tZ (zombie)\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n";
        assert_eq!(parse_users(zombie), Some(Users { uid: 2, gid: 6, ended: true }));
        for bad in [
            &b""[..],
            b"Uid:\t1\t2\nGid:\t3\t4\n",
            b"State:\nUid:\t1\t2\nGid:\t3\t4\n",
            b"State:\tS\nUid:\t1\nGid:\t3\t4\n",
            b"State:\tS\nUid:\t1\t-2\nGid:\t3\t4\n",
            b"State:\tS\nUid:\t1\t2\nGid:\t3\tx\n",
        ] {
            assert_eq!(parse_users(bad), None, "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn nobody_traces_this_process() {
        // With a second thread, so that all are looked at.
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || wait.recv());
        let me = ProcDir::hold(std::process::id()).unwrap();
        assert_eq!(me.tracer(), Ok(None));
        drop(end);
        let _ = thread.join();
    }

    #[test]
    fn what_is_read_through_a_thread_ends_with_it() {
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            tell.send(nix::unistd::gettid().as_raw() as u32).unwrap();
            wait.recv()
        });
        let mut me = ProcDir::hold(std::process::id()).unwrap();
        let process = Process { tgid: std::process::id(), start: me.start().unwrap() };
        me.thread = Some(ProcDir::hold(told.recv().unwrap()).unwrap().dir);
        assert!(!me.read("maps").unwrap().is_empty() && me.look("exe").is_ok());
        assert!(!me.has_lost_its_thread());
        drop(end);
        let _ = thread.join();
        // The thread may be seen a moment longer than its end is known here.
        while !me.has_lost_its_thread() {
            std::thread::yield_now();
        }
        assert!(me.read("maps").is_ok_and(|maps| maps.is_empty()) || me.read("maps").is_err());
        assert_eq!(me.start(), Ok(process.start));
        assert!(me.another_thread(process).is_some());
        assert!(me.another_thread(Process { start: process.start + 1, ..process }).is_none());
        assert!(me.another_thread(Process { tgid: 1, ..process }).is_none());
    }

    #[test]
    fn this_process_is_held_and_others_are_told_apart() {
        let me = std::process::id();
        let start = ProcDir::hold(me).unwrap().start().unwrap();
        assert!(ProcDir::open(Process { tgid: me, start }).is_ok());
        let other = ProcDir::open(Process { tgid: me, start: start + 1 });
        assert_eq!(other.err(), Some(Cause::ProcessGone));
        assert_eq!(ProcDir::hold(u32::MAX).err(), Some(Cause::ProcessGone));
    }

    #[test]
    fn a_zombie_is_gone() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let held = ProcDir::hold(child.id());
        // Its end is awaited without reaping it.
        use nix::sys::wait::{Id, WaitPidFlag, waitid};
        waitid(Id::Pid(nix::unistd::Pid::from_raw(child.id() as i32)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
            .unwrap();
        assert_eq!(held.and_then(|held| held.start()), Err(Cause::ProcessGone));
        child.wait().unwrap();
    }
}
