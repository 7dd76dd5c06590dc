//! Digests of objects: hashed once, known ever after.
//!
//! A digest is remembered under everything about a file that changes when its content does. It is not remembered while
//! a change could still go unnoticed: file systems stamp changes with a clock that may stand still for some milliseconds,
//! so a file that was changed just now might be changed again under the same times.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::stat::{FileStat, fstat};
use sha2::{Digest as _, Sha256};
use shared::{Cause, Digest};

pub use crate::store::ObjectKey;

/// The key of the file that `stat` describes.
pub fn key_of(stat: &FileStat) -> ObjectKey {
    let nanoseconds = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
    ObjectKey {
        dev: stat.st_dev,
        ino: stat.st_ino,
        size: stat.st_size as u64,
        mtime_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
        ctime_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
    }
}

/// Longer than the coarse clock of any kernel stands still (100 Hz: 10 ms).
const SETTLING: Duration = Duration::from_millis(20);

/// What one read takes at once, bytes.
const CHUNK: usize = 256 * 1024;

/// All digests known. Shared by the threads that look for images; never touched on the packet path.
pub struct Digests {
    known: RwLock<HashMap<ObjectKey, Digest>>,
    hashing: Mutex<HashSet<ObjectKey>>,
    hashed: Condvar,
    fresh: crossbeam_channel::Sender<(ObjectKey, Digest)>,
}

/// So many digests are kept in memory; some 100 bytes each. Beyond that all are forgotten and hashed again when needed.
const MAX_KNOWN: usize = 1 << 18;

impl Digests {
    /// Starts with `known`; new ones also go to `fresh`, to be kept across restarts. A full channel loses only the
    /// keeping.
    pub fn new(
        known: impl IntoIterator<Item = (ObjectKey, Digest)>,
        fresh: crossbeam_channel::Sender<(ObjectKey, Digest)>,
    ) -> Digests {
        Digests {
            known: RwLock::new(known.into_iter().collect()),
            hashing: Mutex::new(HashSet::new()),
            hashed: Condvar::new(),
            fresh,
        }
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.known.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The digest if it is known.
    pub fn get(&self, key: &ObjectKey) -> Option<Digest> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }

    /// The digest of the file behind `file` (which may be opened with `O_PATH`), hashed if need be. If another thread is
    /// hashing it already, waits for that thread.
    ///
    /// # Errors
    /// The file cannot be read, is no longer the one `key` describes, or changes all the time.
    pub fn hash(&self, key: &ObjectKey, file: &OwnedFd) -> Result<Digest, Cause> {
        let mut hashing = self.hashing();
        while hashing.contains(key) {
            hashing = self.hashed.wait(hashing).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(digest) = self.get(key) {
            return Ok(digest);
        }
        hashing.insert(*key);
        drop(hashing);
        let result = hash_file(key, file);
        if let Ok(digest) = result {
            self.remember(*key, digest);
        }
        self.hashing().remove(key);
        self.hashed.notify_all();
        result
    }

    /// The digest of a file whose changes nobody tells of: hashed each time, never remembered.
    ///
    /// # Errors
    /// As [`Digests::hash`].
    pub fn hash_anew(&self, key: &ObjectKey, file: &OwnedFd) -> Result<Digest, Cause> {
        hash_file(key, file)
    }

    fn hashing(&self) -> MutexGuard<'_, HashSet<ObjectKey>> {
        self.hashing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, key: ObjectKey, digest: Digest) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(key, digest);
        drop(known);
        // Numbers of devices without a disk are given again after a restart, to another file system perhaps. A full
        // channel: the digest is made again after a restart.
        if nix::sys::stat::major(key.dev) != 0 {
            let _ = self.fresh.try_send((key, digest));
        }
    }
}

/// File systems whose files change without this kernel's doing, so that neither their times nor a watch can be trusted:
/// a program of the user's own (FUSE), or another machine. Numbers of linux/magic.h and the file systems' own headers.
const FOREIGN: [i64; 8] = [
    0x6573_5546, // FUSE
    0x6969,      // NFS
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB2
    0x0102_1997, // 9P
    0x00c3_6400, // Ceph
    0x5346_414f, // AFS
    0x7375_7245, // Coda
];

/// Whether the file lies on a file system whose files change without this kernel's doing.
pub fn is_foreign(key: &ObjectKey, file: &OwnedFd) -> bool {
    // All of these have device numbers without a disk.
    nix::sys::stat::major(key.dev) == 0
        && nix::sys::statfs::fstatfs(file).is_ok_and(|system| FOREIGN.contains(&system.filesystem_type().0))
}

fn hash_file(key: &ObjectKey, file: &OwnedFd) -> Result<Digest, Cause> {
    // Opened anew: `file` may be a mere place.
    let mut reader = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(|_| Cause::ObjectUnreadable)?;
    wait_until_settled(key);
    let digest = hash_reader(&mut reader).map_err(|_| Cause::ObjectUnreadable)?;
    // Whatever changed is another object; the caller looks again.
    match fstat(&reader) {
        Ok(stat) if key_of(&stat) == *key => Ok(digest),
        Ok(_) => Err(Cause::ObjectChanging),
        Err(_) => Err(Cause::ObjectUnreadable),
    }
}

/// Waits until a change made now would show a later time than the last one did.
fn wait_until_settled(key: &ObjectKey) {
    let changed = key.ctime_ns.max(0) as u64;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let settled = changed.saturating_add(SETTLING.as_nanos() as u64);
    // A time in the future says nothing about the clock; such a file is not waited for.
    if changed <= now && now < settled {
        std::thread::sleep(Duration::from_nanos(settled - now));
    }
}

/// SHA-256 of all there is to read. Reads, never maps: a mapped file that is cut short kills the reader.
fn hash_reader(reader: &mut File) -> io::Result<Digest> {
    use std::io::Seek;
    reader.rewind()?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => return Ok(Digest(hash.finalize().into())),
            Ok(count) => hash.update(chunk.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Arc;

    fn digests() -> (Digests, crossbeam_channel::Receiver<(ObjectKey, Digest)>) {
        let (fresh, kept) = crossbeam_channel::bounded(8);
        (Digests::new([], fresh), kept)
    }

    fn look(file: &File) -> (ObjectKey, OwnedFd) {
        (key_of(&fstat(file).unwrap()), file.try_clone().unwrap().into())
    }

    #[test]
    fn a_file_is_hashed_once_and_again_when_it_changed() {
        let (digests, kept) = digests();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abc").unwrap();
        let (key, fd) = look(&file);
        assert_eq!(digests.get(&key), None);
        assert_eq!(digests.hash(&key, &fd), Ok(Digest::of(b"abc")));
        assert_eq!(digests.get(&key), Some(Digest::of(b"abc")));
        if nix::sys::stat::major(key.dev) != 0 {
            assert_eq!(kept.try_recv(), Ok((key, Digest::of(b"abc"))));
        }
        file.write_all(b"d").unwrap();
        assert_eq!(hash_file(&key, &fd), Err(Cause::ObjectChanging));
        let (changed, fd) = look(&file);
        assert_ne!(changed, key);
        assert_eq!(digests.hash(&changed, &fd), Ok(Digest::of(b"abcd")));
        assert_eq!(digests.len(), 2);
    }

    #[test]
    fn many_threads_want_the_same_file() {
        let (digests, kept) = digests();
        let digests = Arc::new(digests);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 3 << 20]).unwrap();
        let (key, fd) = look(&file);
        let fd = Arc::new(fd);
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (digests, fd) = (digests.clone(), fd.clone());
                std::thread::spawn(move || digests.hash(&key, &fd))
            })
            .collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), Ok(Digest::of(&vec![7; 3 << 20])));
        }
        assert_eq!(kept.len(), usize::from(nix::sys::stat::major(key.dev) != 0));
        assert_eq!(digests.len(), 1);
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let (digests, _kept) = digests();
        let (key, fd) = look(&File::open("/").unwrap());
        assert_eq!(digests.hash(&key, &fd), Err(Cause::ObjectUnreadable));
    }
}
