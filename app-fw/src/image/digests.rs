//! Digests of objects: hashed once, known ever after.
//!
//! A digest is remembered under everything about a file that changes when its content does. It is not remembered while
//! a change could still go unnoticed: file systems stamp changes with a clock that may stand still for some milliseconds,
//! so a file that was changed just now might be changed again under the same times.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::statfs::fstatfs;
use sha2::{Digest as _, Sha256};
use shared::{Cause, Digest};
use syscall_probe::{FileMapping, MappedFile, Mappings};

use crate::store::ObjectKey;
use crate::sys::files::{FileFacts, MappedPage, facts, find, has_writers};

/// Names the content of a file, as long as the kernel stamps every change.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FileKey {
    /// What is stored of it.
    pub object: ObjectKey,
    /// For files on devices without a disk, the mount: their device numbers are given again, perhaps to a file system
    /// that says of its files what it likes. 0 for files on disks.
    pub mount: u64,
}

impl From<ObjectKey> for FileKey {
    fn from(object: ObjectKey) -> FileKey {
        FileKey { object, mount: 0 }
    }
}

impl FileKey {
    /// The key of a file.
    pub fn new(facts: &FileFacts) -> FileKey {
        let FileFacts { dev, ino, size, mtime_ns, ctime_ns, mount, .. } = *facts;
        let object = ObjectKey { dev, ino, size, mtime_ns, ctime_ns };
        FileKey { object, mount: if is_disk(dev) { 0 } else { mount } }
    }

    /// Whether the file is on a device with a disk, whose number outlasts a restart of the machine.
    pub fn is_on_disk(&self) -> bool {
        is_disk(self.object.dev)
    }
}

fn is_disk(dev: u64) -> bool {
    nix::sys::stat::major(dev) != 0
}

/// A digest, and how long it is true.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hashed {
    /// The digest.
    pub digest: Digest,
    /// Its key says when it changes. Else it was true just now: somebody has the file open for writing, or the file
    /// system is not of this kernel's making.
    pub lasting: bool,
}

/// Longer than the coarse clock of any kernel stands still (100 Hz: 10 ms).
const SETTLING: Duration = Duration::from_millis(20);

/// Larger than any program; a sparse file can claim to be of any size. Bytes.
const MAX_OBJECT: u64 = 4 << 30;

/// What tells which file it is that an overlay shows: it shows another when somebody has written to it.
#[derive(Clone, Copy)]
pub struct Below<'a> {
    /// The kernel's list of mappings.
    pub mappings: &'a Mappings,
    /// The file that a process has mapped. `key` is its key, and the digest lasts as that of any other file.
    pub mapped: Option<&'a MappedFile>,
}

impl Below<'_> {
    /// What is shown to whoever reads `reader`.
    fn look(&self, reader: &File) -> Result<FileMapping, Cause> {
        let unreadable = |_| Cause::ObjectUnreadable;
        let page = MappedPage::new(reader.as_fd()).map_err(unreadable)?;
        let own = self.mappings.of_process(std::process::id()).map_err(unreadable)?;
        let shown = own.into_iter().find(|mapping| mapping.start == page.start()).ok_or(Cause::ObjectUnreadable)?;
        let is_mapped = |mapped: &MappedFile| (mapped.device, mapped.inode) == (shown.file.device, shown.file.inode);
        if shown.file.magic == FUSE as u64 || !self.mapped.is_none_or(is_mapped) {
            return Err(Cause::ObjectUnreadable);
        }
        Ok(shown)
    }
}

/// What one read takes at once, bytes.
const CHUNK: usize = 256 * 1024;

/// All digests known. Shared by the threads that look for images; never touched on the packet path.
pub struct Digests {
    known: RwLock<HashMap<FileKey, Known>>,
    hashing: Mutex<HashSet<FileKey>>,
    hashed: Condvar,
    fresh: crossbeam_channel::Sender<(ObjectKey, Digest)>,
}

struct Known {
    digest: Digest,
    path: Path,
}

/// Under which path of this process's a file was mapped whenever somebody looked.
#[derive(Clone, PartialEq)]
enum Path {
    Unseen,
    Always(Arc<[u8]>),
    Differs,
}

impl From<Digest> for Known {
    fn from(digest: Digest) -> Known {
        Known { digest, path: Path::Unseen }
    }
}

/// So many digests are kept in memory; some 200 bytes each, with their paths. Beyond that all are forgotten and hashed again when needed.
const MAX_KNOWN: usize = 1 << 18;

impl Digests {
    /// Starts with `known`; new ones also go to `fresh`, to be kept across restarts. A full channel loses only the
    /// keeping.
    pub fn new(
        known: impl IntoIterator<Item = (ObjectKey, Digest)>,
        fresh: crossbeam_channel::Sender<(ObjectKey, Digest)>,
    ) -> Digests {
        Digests {
            known: RwLock::new(known.into_iter().map(|(key, digest)| (key.into(), digest.into())).collect()),
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
    pub fn get(&self, key: &FileKey) -> Option<Digest> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(key).map(|known| known.digest)
    }

    /// The path under which the file with a known digest was mapped whenever it was looked at. `None`: it never was, or
    /// the paths differed.
    pub fn path(&self, key: &FileKey) -> Option<Arc<[u8]>> {
        match &self.known.read().unwrap_or_else(PoisonError::into_inner).get(key)?.path {
            Path::Always(path) => Some(path.clone()),
            Path::Unseen | Path::Differs => None,
        }
    }

    /// Takes note of the path under which a file is mapped, if its digest is known and the path leads there. In a namespace
    /// of his own anybody gives any file another one.
    pub fn note_path(&self, key: &FileKey, path: &[u8]) {
        let is_news = |known: &Known| match &known.path {
            Path::Unseen => true,
            Path::Always(known) => **known != *path,
            Path::Differs => false,
        };
        let is_news_now = self.known.read().unwrap_or_else(PoisonError::into_inner).get(key).is_some_and(is_news);
        if !is_news_now || !find(path).is_ok_and(|facts| FileKey::new(&facts).object == key.object) {
            return;
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get_mut(key).filter(|known| is_news(known)) {
            known.path = if known.path == Path::Unseen { Path::Always(path.into()) } else { Path::Differs };
        }
    }

    /// The digest of the file behind `file` (which may be opened with `O_PATH`), hashed if need be. `below`: what tells which
    /// file an overlay shows. If another thread is hashing it already, waits for that thread.
    ///
    /// # Errors
    /// The file cannot be read, is no longer the one `key` describes, or changes all the time.
    pub fn hash(&self, key: &FileKey, file: &OwnedFd, below: Option<Below<'_>>) -> Result<Hashed, Cause> {
        let mut hashing = self.hashing();
        while hashing.contains(key) {
            hashing = self.hashed.wait(hashing).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(digest) = self.get(key) {
            return Ok(Hashed { digest, lasting: true });
        }
        hashing.insert(*key);
        drop(hashing);
        let result = hash_file(key, file, below);
        if let Ok(Hashed { digest, lasting: true }) = result {
            self.remember(*key, digest);
        }
        self.hashing().remove(key);
        self.hashed.notify_all();
        result
    }

    fn hashing(&self) -> MutexGuard<'_, HashSet<FileKey>> {
        self.hashing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, key: FileKey, digest: Digest) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(key, digest.into());
        drop(known);
        // Numbers of devices without a disk are given again after a restart, to another file system perhaps. A full
        // channel: the digest is made again after a restart.
        if key.is_on_disk() {
            let _ = self.fresh.try_send((key.object, digest));
        }
    }
}

/// File systems whose files change without their times: at the will of a program of the user's own (FUSE) or of another
/// machine, or by a store into a mapping of memory that is never written back. Numbers of linux/magic.h and the file
/// systems' own headers.
const UNSTAMPED: [i64; 10] = [
    0x0102_1994, // tmpfs, memfd
    0x8584_58f6, // ramfs
    0x9584_58f6, // hugetlbfs
    0x6969,      // NFS
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB2
    0x0102_1997, // 9P
    0x00c3_6400, // Ceph
    0x5346_414f, // AFS
    0x7375_7245, // Coda
];

/// `FUSE_SUPER_MAGIC` of linux/magic.h. Whoever serves such a file sees who reads it, and can show the hasher another content
/// than what it has mapped.
pub(super) const FUSE: i64 = 0x6573_5546;

/// `OVERLAYFS_SUPER_MAGIC` of linux/magic.h. What is below may be any of the above.
const OVERLAY: i64 = 0x794c_7630;

/// Whether every change of a file on such a file system leaves a stamp.
fn is_stamped(magic: i64) -> bool {
    magic != OVERLAY && magic != FUSE && !UNSTAMPED.contains(&magic)
}

fn hash_file(key: &FileKey, file: &OwnedFd, below: Option<Below<'_>>) -> Result<Hashed, Cause> {
    let unreadable = |_| Cause::ObjectUnreadable;
    // Opened anew: `file` may be a mere place. Without waiting: who holds a lease on the file may take long to give it
    // back. To read a regular file the flag means nothing.
    let mut options = File::options();
    let place = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut reader = options.read(true).custom_flags(libc::O_NONBLOCK).open(place).map_err(unreadable)?;
    if key.object.size > MAX_OBJECT {
        return Err(Cause::ObjectTooLarge);
    }
    let magic = fstatfs(&reader).map_err(|_| Cause::ObjectUnreadable)?.filesystem_type().0;
    if magic == FUSE {
        return Err(Cause::ObjectUnreadable);
    }
    wait_until_settled(key);
    let below = below.filter(|_| magic == OVERLAY);
    let before = below.map(|below| below.look(&reader)).transpose()?;
    let is_below = below.is_some_and(|below| below.mapped.is_some());
    let is_written = |shown: &Option<FileMapping>| shown.is_some_and(|shown| shown.written);
    // A write stamps the file before its data are there, and a mapping stores whenever it likes: a digest lasts only if
    // nobody could write from the first byte read to the last. Who opened and closed in between left a new time.
    let mut lasting = (is_below || is_stamped(magic)) && !is_written(&before) && !written(&reader);
    let digest = hash_reader(&mut reader).map_err(unreadable)?;
    let after = below.map(|below| below.look(&reader)).transpose()?;
    lasting &= !is_written(&after) && !written(&reader);
    // Whatever changed is another object; the caller looks again.
    let now =
        if is_below { after.map(|shown| key_of(&shown.file)) } else { facts(&reader).ok().as_ref().map(FileKey::new) };
    let shows_the_same = before.map(|shown| key_of(&shown.file)) == after.map(|shown| key_of(&shown.file));
    if now == Some(*key) && shows_the_same { Ok(Hashed { digest, lasting }) } else { Err(Cause::ObjectChanging) }
}

/// The key of a file as the kernel tells of it.
pub(super) fn key_of(file: &MappedFile) -> FileKey {
    let MappedFile { device, inode, size, mtime, ctime, .. } = *file;
    ObjectKey { dev: device, ino: inode, size, mtime_ns: mtime, ctime_ns: ctime }.into()
}

/// Where the file system does not tell, somebody may.
fn written(reader: &File) -> bool {
    has_writers(reader.as_fd()).unwrap_or(true)
}

/// Waits until a change made now would show a later time than the last one did.
fn wait_until_settled(key: &FileKey) {
    let changed = key.object.ctime_ns.max(0) as u64;
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
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::path;
    use std::sync::Arc;

    fn digests() -> (Digests, crossbeam_channel::Receiver<(ObjectKey, Digest)>) {
        crate::sys::files::ignore_lease_signals();
        let (fresh, kept) = crossbeam_channel::bounded(8);
        (Digests::new([], fresh), kept)
    }

    fn look(path: &path::Path) -> (FileKey, OwnedFd) {
        let file = File::open(path).unwrap();
        (FileKey::new(&facts(&file).unwrap()), file.into())
    }

    fn lasting(content: &[u8]) -> Result<Hashed, Cause> {
        Ok(Hashed { digest: Digest::of(content), lasting: true })
    }

    #[test]
    fn a_file_is_hashed_once_and_again_when_it_changed() {
        let (digests, kept) = digests();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"abc").unwrap();
        let (key, fd) = look(&path);
        assert_eq!(digests.get(&key), None);
        assert_eq!(digests.hash(&key, &fd, None), lasting(b"abc"));
        assert_eq!(digests.get(&key), Some(Digest::of(b"abc")));
        assert_eq!(kept.len(), usize::from(key.is_on_disk()));
        std::fs::write(&path, b"abd").unwrap();
        assert_eq!(hash_file(&key, &fd, None), Err(Cause::ObjectChanging));
        let (changed, fd) = look(&path);
        assert_ne!(changed, key);
        assert_eq!(digests.hash(&changed, &fd, None), lasting(b"abd"));
        assert_eq!(digests.len(), 2);
    }

    #[test]
    fn a_path_is_known_as_long_as_there_is_one() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        let [a, b, other, link] = ["a", "b", "other", "link"].map(|name| dir.path().join(name));
        std::fs::write(&a, b"abc").unwrap();
        std::fs::write(&other, b"abc").unwrap();
        std::fs::hard_link(&a, &b).unwrap();
        std::os::unix::fs::symlink(&a, &link).unwrap();
        let (key, unknown) = (look(&a).0, look(&other).0);
        let digests = Digests::new([(key.object, Digest([1; 32]))], crossbeam_channel::bounded(1).0);
        let key = FileKey::from(key.object);
        let note = |path: &path::Path| digests.note_path(&key, path.as_os_str().as_bytes());
        let path = || digests.path(&key);
        assert_eq!(path(), None);
        note(&a);
        note(&a);
        for elsewhere in [&other, &link, path::Path::new("/nowhere"), path::Path::new("a")] {
            note(elsewhere);
        }
        assert_eq!(path().as_deref(), Some(a.as_os_str().as_bytes()));
        note(&b);
        note(&a);
        assert_eq!(path(), None);
        digests.note_path(&unknown, other.as_os_str().as_bytes());
        assert_eq!(digests.path(&unknown), None, "its digest is not known");
    }

    #[test]
    fn what_somebody_may_write_to_is_not_remembered() {
        let (digests, _kept) = digests();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"abc").unwrap();
        let writer = OpenOptions::new().write(true).open(&path).unwrap();
        let (key, fd) = look(&path);
        let fleeting = Hashed { digest: Digest::of(b"abc"), lasting: false };
        assert_eq!(digests.hash(&key, &fd, None), Ok(fleeting));
        assert_eq!(digests.get(&key), None);
        drop(writer);
        assert_eq!(digests.hash(&key, &fd, None), lasting(b"abc"));
        assert_eq!(digests.len(), 1);
    }

    #[test]
    fn many_threads_want_the_same_file() {
        let (digests, _kept) = digests();
        let digests = Arc::new(digests);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![7; 3 << 20]).unwrap();
        let path = file.into_temp_path();
        let (key, fd) = look(&path);
        let fd = Arc::new(fd);
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (digests, fd) = (digests.clone(), fd.clone());
                std::thread::spawn(move || digests.hash(&key, &fd, None))
            })
            .collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), lasting(&vec![7; 3 << 20]));
        }
        assert_eq!(digests.len(), 1);
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let (digests, _kept) = digests();
        let (key, fd) = look(path::Path::new("/"));
        assert_eq!(digests.hash(&key, &fd, None), Err(Cause::ObjectUnreadable));
    }
}
