//! What a process is made of.
//!
//! An [`Image`] is put together from what the kernel told of the process ([`chronicle`]), if the digests of all its files
//! are known. Else it is read from /proc/PID/maps, /proc/PID/map_files and /proc/PID/exe: the mapped files themselves,
//! whatever their paths say. Reading takes a fraction of a millisecond and hashing may take longer, so neither happens on the
//! packet path (see [`crate::investigate`]). An image carries the generations it was read under; whoever uses it compares
//! them first ([`Image::is_current`]).

pub mod chronicle;
pub mod digests;
pub mod maps;
pub mod pages;
pub mod process;
pub mod standing;

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use shared::{Cause, Digest};
use syscall_probe::{FileWatch, Generation, Generations, MappedFile, Mappings};

pub use chronicle::Chronicle;
pub use digests::{Digests, FileKey, Hashed};
pub use process::{ProcDir, Process, TICK};
pub use standing::{ControlGroups, Standing};

use crate::sys::files::FileFacts;
use digests::{Below, FUSE, key_of};
use maps::{Executable, Mapping};

/// One object of an image.
#[derive(Clone, PartialEq, Debug)]
pub struct Object {
    /// The mapped file.
    pub key: FileKey,
    /// Its digest, or why it is not known.
    pub digest: Result<Digest, Cause>,
    /// The path under which it is mapped; for people and for ordering. Empty if it is not known.
    pub path: Vec<u8>,
}

/// What a process is made of. Immutable once read.
#[derive(Debug)]
pub struct Image {
    /// Whose image it is.
    pub process: Process,
    /// The objects, ordered by path.
    pub objects: Vec<Object>,
    /// The objects' digests, those that are known.
    pub digests: Vec<Digest>,
    /// The aggregate digest; `None` if some object's digest is not known, or its path.
    pub aggregate: Option<Digest>,
    /// The first object without a digest: why it has none.
    pub gap: Option<Cause>,
    /// Path of the program, as the process sees it; for people.
    pub program: String,
    /// The same to the byte. Empty if it is not known.
    pub program_path: Vec<u8>,
    /// Paths of the objects, in the same order. Empty where they are not known.
    pub paths: Vec<Vec<u8>>,
    /// The program's digest.
    pub program_digest: Option<Digest>,
    /// What there is to it beyond its objects; `None` if nobody looked.
    pub beyond: Option<Beyond>,
    /// Whose the process is; `None` if nobody looked.
    pub standing: Option<Standing>,
    stamp: Option<Stamp>,
}

/// What moves with the mappings of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Moment {
    /// See [`Generations::image`].
    image: Generation,
    /// See [`Generations::wide`]: who shares the address space may have changed it.
    wide: u64,
    /// See [`Generations::tracers`]: one may have come.
    tracers: u64,
}

impl Moment {
    fn of(process: Process, generations: &Generations) -> Moment {
        Moment { image: generations.image(process.tgid), wide: generations.wide(), tracers: generations.tracers() }
    }

    /// Nothing has moved since, nor is under way.
    fn is_now(&self, process: Process, generations: &Generations) -> bool {
        self.image.settled && *self == Moment::of(process, generations)
    }
}

/// The generations an image was read under.
#[derive(Debug)]
struct Stamp {
    moment: Moment,
    files: Vec<(FileWatch, u32)>,
    /// The file epoch at which `files` was last found unchanged.
    epoch: AtomicU64,
}

/// What becomes of objects that are no longer mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retention {
    /// They are no longer part of the image.
    Nothing,
    /// `-r`: they stay part of the image.
    Objects,
    /// `-R`: they stay, and what is mapped later is never added.
    FirstLook,
}

/// Whether objects whose digest is not known are hashed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hashing {
    /// No: tell that it would be needed.
    Never,
    /// Yes, however long it takes.
    Allowed,
    /// Those up to so many bytes: tell that it would be needed for a larger one.
    UpTo(u64),
}

/// Why there is no image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoImage {
    /// There can be none.
    Because(Cause),
    /// Some object must be hashed first.
    NeedsHashing,
}

impl From<Cause> for NoImage {
    fn from(cause: Cause) -> NoImage {
        NoImage::Because(cause)
    }
}

/// Executable mappings of files. Each is looked at, so whoever has more keeps others waiting; no program has nearly as many.
const MAX_MAPPINGS: usize = 4096;

/// A process that changes its mappings under the reader is tried so often.
const ATTEMPTS: usize = 4;

/// How images are read.
pub struct Reader<'a> {
    /// Where digests come from.
    pub digests: &'a Digests,
    /// The generations, if the probe moves all that an image depends on.
    pub generations: Option<&'a Generations>,
    /// What the kernel told of processes, if it does.
    pub chronicle: Option<&'a Chronicle>,
    /// Which files processes have mapped, if the kernel tells.
    pub mappings: Option<&'a Mappings>,
    /// Whether somebody wants to know of more than files.
    pub beyond: bool,
}

impl Reader<'_> {
    /// Reads the image of `process`.
    ///
    /// # Errors
    /// The process is gone and not remembered, unreadable, or never stands still; or an object needs hashing and that is
    /// not allowed.
    pub fn read(&self, process: Process, hashing: Hashing) -> Result<Image, NoImage> {
        if let Some(whole) = self.told(process) {
            return Ok(whole);
        }
        match self.look(process, hashing) {
            Err(NoImage::Because(Cause::ProcessGone)) => self.remembered(process).ok_or(Cause::ProcessGone.into()),
            other => other,
        }
    }

    fn look(&self, process: Process, hashing: Hashing) -> Result<Image, NoImage> {
        let mut before = None;
        for _ in 0..ATTEMPTS {
            let dir = ProcDir::open(process)?;
            match self.attempt(process, &dir, hashing, &mut before) {
                Ok(Some(image)) => return Ok(image),
                Ok(None) => {}
                Err(NoImage::Because(_)) if dir.has_lost_its_thread() => {}
                Err(none) => return Err(none),
            }
        }
        Err(Cause::MapsChanging.into())
    }

    /// One look. `None` if the mappings changed meanwhile; `before` is what the last attempt found, and what this one does.
    fn attempt(
        &self,
        process: Process,
        dir: &ProcDir,
        hashing: Hashing,
        before: &mut Option<Vec<Mapping>>,
    ) -> Result<Option<Image>, NoImage> {
        // Generations first, then a look, then the generations again: what is in between is one moment's truth.
        let generation = self.generations.map(|generations| Moment::of(process, generations));
        let executable = read_maps(dir)?;
        let look =
            Look { dir, hashing, process, mappings: self.mappings, mapped: OnceCell::new(), shown: RefCell::default() };
        let Some(found) = self.objects(&look, &executable)? else { return Ok(None) };
        let beyond = if self.beyond { Some(Beyond::look(dir, &executable)?) } else { None };
        let standing = if self.beyond { Some(Standing::look(process, dir, self.generations)?) } else { None };
        let unmoved = match (generation, self.generations) {
            (Some(generation), Some(generations)) => generation.is_now(process, generations),
            _ => false,
        };
        if unmoved || before.as_ref() == Some(&executable.files) || self.stands_still(dir, &executable)? {
            // The process may have ended, and its pid been given away, before the last look.
            dir.start()?;
            let program = dir.link("exe").unwrap_or_default();
            let image = finish(process, program, found, beyond, generation.filter(|_| unmoved));
            return Ok(Some(Image { standing, ..image }));
        }
        *before = Some(executable.files);
        Ok(None)
    }

    /// The image as the kernel told it, if all of it is known. Touches no file, unless more than files is wanted.
    pub fn told(&self, process: Process) -> Option<Image> {
        self.remembered(process).filter(|image| image.aggregate.is_some())
    }

    /// The image as the kernel told it, as far as it is known.
    fn remembered(&self, process: Process) -> Option<Image> {
        let (generations, chronicle) = (self.generations?, self.chronicle?);
        let (epoch, wide, tracers) = (generations.file_epoch(), generations.wide(), generations.tracers());
        let account = chronicle.of(process)?;
        let mut found = Found { objects: Vec::new(), lasting: true, files: Vec::new(), epoch, program: None };
        for file in account.files.iter() {
            let key = key_of(file);
            let (watch, generation) = generations.watch_mapped(file);
            // Its content since it was mapped is the one that its key names, or it is not known.
            let same = FileWatch::covers(file.magic) && generations.file(watch) == generation;
            let digest = self.digests.get(&key).filter(|_| same).ok_or(Cause::ProcessGone);
            let path = self.digests.path(&key).map_or_else(Vec::new, |path| path.to_vec());
            found.program = found.program.or(Some(key));
            found.add(Seen { object: Object { key, digest, path }, watch: Some((watch, generation)), lasting: same });
        }
        let program = found.objects.first().map_or_else(Vec::new, |object| object.path.clone());
        let moment = Moment { image: account.generation, wide, tracers };
        if !self.beyond {
            return Some(finish(process, program, found, None, Some(moment)));
        }
        // The kernel does not tell of it; of one that has ended nothing is known.
        let (beyond, standing) = (Beyond::of(process).ok(), Standing::of(process, Some(generations)).ok());
        let image = || finish(process, program, found, beyond, Some(moment));
        moment.is_now(process, generations).then(|| Image { standing, ..image() })
    }

    /// Whether another look finds the same files mapped: the way to tell without generations. Memory without a file may
    /// come and go meanwhile, as it does in any process that compiles at run time.
    fn stands_still(&self, dir: &ProcDir, executable: &Executable) -> Result<bool, Cause> {
        Ok(read_maps(dir)?.files == executable.files)
    }

    /// The objects behind the mappings and the program. `None` if a mapping vanished meanwhile.
    fn objects(&self, look: &Look<'_>, executable: &Executable) -> Result<Option<Found>, NoImage> {
        let epoch = self.generations.map_or(0, Generations::file_epoch);
        let objects = Vec::with_capacity(executable.files.len());
        let mut found = Found { objects, lasting: true, files: Vec::new(), epoch, program: None };
        for mapping in &executable.files {
            let name = format!("map_files/{}", mapping.file_name());
            let place = Place { name: &name, mapping: Some(mapping), path: mapping.path.clone() };
            let Some(seen) = self.object(look, place)? else { return Ok(None) };
            found.add(seen);
        }
        // The program is part of the image even if it unmapped its own file.
        let place = Place { name: "exe", mapping: None, path: look.dir.link("exe").unwrap_or_default() };
        let Some(seen) = self.object(look, place)? else {
            // It is there as long as the process is; that it cannot be looked at must not leave it out.
            look.dir.start()?;
            return Err(Cause::ObjectUnreadable.into());
        };
        found.program = Some(seen.object.key);
        found.add(seen);
        Ok(Some(found))
    }

    /// The object that is there. `None` if nothing is any more.
    fn object(&self, look: &Look<'_>, place: Place<'_>) -> Result<Option<Seen>, NoImage> {
        let Place { name, mapping, path } = place;
        let Ok((mut file, mut facts)) = look.dir.look(name) else { return Ok(None) };
        let is_plain = is_watched(&FileKey::new(&facts), &file);
        if !is_plain && let (Some(mapped), Some(generations)) = (look.below(&facts, mapping), self.generations) {
            let key = key_of(&mapped);
            let watch = Some(generations.watch_mapped(&mapped));
            if mapped.magic == FUSE as u64 {
                return Ok(Some(self.seen(key, path, watch, false, Err(Cause::ObjectUnreadable))));
            }
            let hashed = self.digest(look, &key, &facts, &file, Some(&mapped))?;
            return Ok(Some(self.seen(key, path, watch, true, hashed)));
        }
        let mut watch = None;
        if let Some(generations) = self.generations {
            // Watched before the look that counts, so that no change falls between.
            let inode = mapping.map_or(facts.ino, |mapping| mapping.inode);
            let slot = generations.watch_file(inode);
            watch = Some((slot, generations.file(slot)));
            match look.dir.look(name) {
                Ok(again) => (file, facts) = again,
                Err(_) => return Ok(None),
            }
        }
        let key = FileKey::new(&facts);
        let watched = self.generations.is_some() && is_watched(&key, &file);
        let hashed = self.digest(look, &key, &facts, &file, None)?;
        Ok(Some(self.seen(key, path, watch, watched, hashed)))
    }

    /// `watched`: the kernel tells of every change.
    fn seen(
        &self,
        key: FileKey,
        path: Vec<u8>,
        watch: Option<(FileWatch, u32)>,
        watched: bool,
        hashed: Result<Hashed, Cause>,
    ) -> Seen {
        if hashed.is_ok() {
            self.digests.note_path(&key, &path);
        }
        let lasting = watched && hashed.as_ref().map_or(true, |hashed| hashed.lasting);
        Seen { object: Object { key, digest: hashed.map(|hashed| hashed.digest), path }, watch, lasting }
    }

    /// `mapped`: the file itself, where an overlay shows it.
    fn digest(
        &self,
        look: &Look<'_>,
        key: &FileKey,
        facts: &FileFacts,
        file: &OwnedFd,
        mapped: Option<&MappedFile>,
    ) -> Result<Result<Hashed, Cause>, NoImage> {
        if !facts.regular {
            // A device may be mapped executable; reading it would mean something else.
            return Ok(Err(Cause::ObjectUnreadable));
        }
        match (self.digests.get(key), look.hashing) {
            (Some(digest), _) => Ok(Ok(Hashed { digest, lasting: true })),
            (None, Hashing::Never) => Err(NoImage::NeedsHashing),
            (None, Hashing::UpTo(limit)) if key.object.size > limit => Err(NoImage::NeedsHashing),
            (None, Hashing::Allowed | Hashing::UpTo(_)) => {
                let below = self.mappings.map(|mappings| Below { mappings, mapped });
                Ok(self.digests.hash(key, file, below))
            }
        }
    }
}

/// One look at a process.
struct Look<'a> {
    dir: &'a ProcDir,
    hashing: Hashing,
    process: Process,
    mappings: Option<&'a Mappings>,
    /// The files that are mapped, by address; asked for when there is need.
    mapped: OnceCell<HashMap<u64, MappedFile>>,
    /// What is behind the files that overlays show.
    shown: RefCell<HashMap<FileKey, MappedFile>>,
}

impl Look<'_> {
    /// The file that is mapped, if an overlay shows it and its digest can be kept, or if it must not be read. `mapping`:
    /// none for the program, which most often is mapped too.
    fn below(&self, facts: &FileFacts, mapping: Option<&Mapping>) -> Option<MappedFile> {
        let shown = FileKey::new(facts);
        let mappings = self.mappings?;
        let Some(mapping) = mapping else { return self.shown.borrow().get(&shown).copied() };
        let mapped = self.mapped.get_or_init(|| {
            let all = mappings.of_process(self.process.tgid).unwrap_or_default();
            all.into_iter().map(|mapping| (mapping.start, mapping.file)).collect()
        });
        let mapped = *mapped.get(&mapping.start)?;
        if !FileWatch::covers(mapped.magic) && mapped.magic != FUSE as u64 {
            return None;
        }
        self.shown.borrow_mut().insert(shown, mapped);
        Some(mapped)
    }
}

/// Where /proc shows an object.
struct Place<'a> {
    name: &'a str,
    mapping: Option<&'a Mapping>,
    path: Vec<u8>,
}

/// Whether the kernel tells of every change of the file. Asks file systems on disks only: others could take for ever to
/// answer.
fn is_watched(key: &FileKey, file: &OwnedFd) -> bool {
    let covers = |system: nix::sys::statfs::Statfs| FileWatch::covers(system.filesystem_type().0 as u64);
    key.is_on_disk() && nix::sys::statfs::fstatfs(file).is_ok_and(covers)
}

/// An object as found.
struct Seen {
    object: Object,
    watch: Option<(FileWatch, u32)>,
    /// See [`Hashed::lasting`].
    lasting: bool,
}

struct Found {
    objects: Vec<Object>,
    /// No object can change without a generation moving.
    lasting: bool,
    files: Vec<(FileWatch, u32)>,
    epoch: u64,
    program: Option<FileKey>,
}

impl Found {
    /// A file that is mapped more than once is one object.
    fn add(&mut self, seen: Seen) {
        if !self.objects.iter().any(|known| known.key == seen.object.key) {
            self.objects.push(seen.object);
            self.files.extend(seen.watch);
            self.lasting &= seen.lasting;
        }
    }
}

/// What there is to a process beyond its files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Beyond {
    /// It has executable memory whose content no file holds. `None` if the kernel does not tell.
    pub anon_exec: Option<bool>,
    /// Process id of who traces it.
    pub traced_by: Option<u32>,
}

impl Beyond {
    /// Looks at a process.
    ///
    /// # Errors
    /// It is gone, or cannot be read.
    pub fn of(process: Process) -> Result<Beyond, Cause> {
        for _ in 0..ATTEMPTS {
            let dir = ProcDir::open(process)?;
            let beyond = read_maps(&dir).and_then(|executable| Beyond::look(&dir, &executable));
            if beyond.is_err() && dir.has_lost_its_thread() {
                continue;
            }
            // It may have ended, and its pid been given away, before the last look.
            dir.start()?;
            return beyond;
        }
        Err(Cause::MapsChanging)
    }

    fn look(dir: &ProcDir, executable: &Executable) -> Result<Beyond, Cause> {
        let private = executable.files.iter().chain(&executable.kernel).filter(|mapping| mapping.private);
        let anon_exec = match executable.anonymous {
            true => Some(true),
            false => pages::any_own(dir, private).map_err(|_| dir.start().err().unwrap_or(Cause::MapsUnreadable))?,
        };
        Ok(Beyond { anon_exec, traced_by: dir.tracer()? })
    }
}

fn read_maps(dir: &ProcDir) -> Result<Executable, Cause> {
    let text = dir.read("maps").map_err(|error| match error.raw_os_error() {
        Some(libc::ESRCH | libc::ENOENT) => Cause::ProcessGone,
        _ => Cause::MapsUnreadable,
    })?;
    // A process that has begun to end has no memory any more, and neither has a kernel thread.
    if text.is_empty() {
        return Err(Cause::ProcessGone);
    }
    let executable = maps::parse(&text).map_err(|_| Cause::MapsUnreadable)?;
    if executable.files.len() > MAX_MAPPINGS { Err(Cause::MapsUnreadable) } else { Ok(executable) }
}

fn finish(process: Process, program: Vec<u8>, found: Found, beyond: Option<Beyond>, moment: Option<Moment>) -> Image {
    let executed = found.objects.iter().find(|object| Some(object.key) == found.program);
    let program_digest = executed.and_then(|object| object.digest.ok());
    // Nothing tells when a tracer lets go or ends: while there is one, each packet has another look.
    let lasting = found.lasting && beyond.is_none_or(|beyond| beyond.traced_by.is_none());
    let stamp = moment.filter(|_| lasting).map(|moment| Stamp {
        moment,
        files: found.files,
        epoch: AtomicU64::new(found.epoch),
    });
    let image = Image::new(process, found.objects, program, program_digest, stamp);
    Image { beyond, ..image }
}

impl Image {
    fn new(
        process: Process,
        mut objects: Vec<Object>,
        program_path: Vec<u8>,
        program_digest: Option<Digest>,
        stamp: Option<Stamp>,
    ) -> Image {
        objects.sort_by(|a, b| a.path.cmp(&b.path).then(a.digest.ok().cmp(&b.digest.ok())));
        let digests: Vec<Digest> = objects.iter().filter_map(|object| object.digest.ok()).collect();
        let gap = objects.iter().find_map(|object| object.digest.err());
        let ordered = objects.iter().all(|object| !object.path.is_empty());
        let aggregate = (gap.is_none() && ordered).then(|| Digest::aggregate(&digests));
        let program = String::from_utf8_lossy(&program_path).into_owned();
        let paths = objects.iter().map(|object| object.path.clone()).collect();
        let (beyond, standing) = (None, None);
        Image {
            process,
            objects,
            digests,
            aggregate,
            gap,
            program,
            program_path,
            paths,
            program_digest,
            beyond,
            standing,
            stamp,
        }
    }

    /// The image of the same program with the objects it had before: what was mapped once stays part of it, anonymous
    /// memory included. Another program in the same process has nothing to do with the former one.
    pub fn retaining(&self, former: &Image, retention: Retention) -> Image {
        let had_memory = former.beyond.and_then(|beyond| beyond.anon_exec);
        let (mut objects, retained) = match retention {
            Retention::Nothing => (self.objects.clone(), None),
            _ if self.program_digest != former.program_digest => (self.objects.clone(), None),
            Retention::Objects => {
                let known = |object: &Object| self.objects.iter().any(|mine| mine.key == object.key);
                let had = former.objects.iter().filter(|object| !known(object));
                (self.objects.iter().chain(had).cloned().collect(), had_memory.filter(|had| *had))
            }
            Retention::FirstLook => (former.objects.clone(), had_memory),
        };
        objects.dedup_by(|a, b| a.key == b.key);
        let stamp = self.stamp.as_ref().map(|stamp| Stamp {
            moment: stamp.moment,
            files: stamp.files.clone(),
            epoch: AtomicU64::new(stamp.epoch.load(Ordering::Relaxed)),
        });
        let image = Image::new(self.process, objects, self.program_path.clone(), self.program_digest, stamp);
        let beyond = self.beyond.map(|beyond| Beyond { anon_exec: retained.or(beyond.anon_exec), ..beyond });
        Image { beyond, standing: self.standing.clone(), ..image }
    }

    /// Whether nothing it was derived from has changed since it was read. The end of the process changes nothing: it is
    /// what the process was made of to its end. Costs a few loads.
    pub fn is_current(&self, generations: &Generations) -> bool {
        let Some(stamp) = &self.stamp else { return false };
        stamp.moment.is_now(self.process, generations)
            && stamp.files_unchanged(generations)
            && self.standing.as_ref().is_none_or(|standing| standing.is_current(self.process, generations))
    }

    /// Whether it is what the process was made of at a moment in the past; whose that was is another question. Costs a few
    /// loads.
    pub fn was_true_at(&self, moment: Generation, generations: &Generations) -> bool {
        let Some(stamp) = &self.stamp else { return false };
        let since = Moment { image: moment, wide: generations.wide(), tracers: generations.tracers() };
        stamp.moment == since && stamp.files_unchanged(generations)
    }

    /// Whether it may be kept for another packet.
    pub fn may_be_kept(&self) -> bool {
        self.stamp.is_some() && self.standing.as_ref().is_none_or(Standing::may_be_kept)
    }
}

impl Stamp {
    fn files_unchanged(&self, generations: &Generations) -> bool {
        let epoch = generations.file_epoch();
        if self.epoch.load(Ordering::Relaxed) == epoch {
            return true;
        }
        let same = self.files.iter().all(|(watch, generation)| generations.file(*watch) == *generation);
        if same {
            // Read before the files were compared: a change in between moves the epoch again.
            self.epoch.store(epoch, Ordering::Relaxed);
        }
        same
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ObjectKey;

    fn digests() -> Digests {
        Digests::new([], crossbeam_channel::bounded(1).0)
    }

    fn me() -> Process {
        let tgid = std::process::id();
        Process { tgid, start: ProcDir::hold(tgid).unwrap().start().unwrap() }
    }

    #[test]
    fn this_process_is_made_of_its_program_and_libraries() {
        let digests = digests();
        let reader = Reader { digests: &digests, generations: None, chronicle: None, mappings: None, beyond: true };
        assert_eq!(reader.read(me(), Hashing::Never).err(), Some(NoImage::NeedsHashing));
        let image = reader.read(me(), Hashing::Allowed).unwrap();
        let program = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(image.program_digest, Some(Digest::of(&program)));
        assert!(image.objects.iter().any(|object| object.path.ends_with(b"libc.so.6")));
        assert_eq!(image.gap, None);
        assert_eq!(image.aggregate, Some(Digest::aggregate(&image.digests)));
        let paths: Vec<_> = image.objects.iter().map(|object| &object.path).collect();
        assert!(paths.is_sorted());
        assert_eq!(image.program, std::env::current_exe().unwrap().to_string_lossy());
        assert_eq!(image.beyond, Some(Beyond { anon_exec: Some(false), traced_by: None }));
        // Now every digest is known.
        assert_eq!(reader.read(me(), Hashing::Never).unwrap().aggregate, image.aggregate);
    }

    #[test]
    fn retained_objects_stay_until_the_program_changes() {
        let object = |n: u8| Object {
            key: ObjectKey { dev: 1, ino: u64::from(n), size: 1, mtime_ns: 1, ctime_ns: 1 }.into(),
            digest: Ok(Digest([n; 32])),
            path: vec![n],
        };
        let image = |program: u8, objects: &[u8]| {
            let objects = objects.iter().map(|n| object(*n)).collect();
            Image::new(me(), objects, Vec::new(), Some(Digest([program; 32])), None)
        };
        let digests = |image: Image| image.digests.iter().map(|digest| digest.0[0]).collect::<Vec<_>>();
        let (former, now) = (image(1, &[1, 2, 3]), image(1, &[1, 4]));
        assert_eq!(digests(now.retaining(&former, Retention::Nothing)), [1, 4]);
        assert_eq!(digests(now.retaining(&former, Retention::Objects)), [1, 2, 3, 4]);
        assert_eq!(digests(now.retaining(&former, Retention::FirstLook)), [1, 2, 3]);
        let other = image(9, &[9]);
        assert_eq!(digests(other.retaining(&former, Retention::Objects)), [9]);
        assert_eq!(digests(other.retaining(&former, Retention::FirstLook)), [9]);
        // So does memory that was made executable.
        let beyond = |anon_exec, traced_by| Some(Beyond { anon_exec: Some(anon_exec), traced_by });
        let former = Image { beyond: beyond(true, None), ..image(1, &[1]) };
        let now = Image { beyond: beyond(false, Some(7)), ..image(1, &[1]) };
        let retained = |retention| now.retaining(&former, retention).beyond;
        assert_eq!(retained(Retention::Nothing), beyond(false, Some(7)));
        assert_eq!(retained(Retention::Objects), beyond(true, Some(7)));
        assert_eq!(former.retaining(&now, Retention::FirstLook).beyond, beyond(false, None));
        assert_eq!(other.retaining(&former, Retention::Objects).beyond, None);
    }

    #[test]
    fn a_file_above_the_limit_is_not_hashed() {
        const SIZE: u64 = 16 << 20;
        let (digests, program) = (digests(), tempfile::tempdir().unwrap());
        let program = program.path().join("large");
        // By commands: no child of another test inherits a file that is open for writing.
        let script = r#"cp /bin/sleep "$0" && truncate -s 16M "$0""#;
        let made = std::process::Command::new("sh").args(["-c", script]).arg(&program).status().unwrap();
        assert!(made.success());
        let mut child = std::process::Command::new(&program).arg("60").spawn().unwrap();
        let dir = ProcDir::hold(child.id()).unwrap();
        let process = Process { tgid: child.id(), start: dir.start().unwrap() };
        while !String::from_utf8_lossy(&dir.read("maps").unwrap()).contains("libc.so.6") {
            std::thread::yield_now();
        }
        let reader = Reader { digests: &digests, generations: None, chronicle: None, mappings: None, beyond: false };
        let [below, enough] = [SIZE - 1, SIZE].map(|limit| reader.read(process, Hashing::UpTo(limit)));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(below.err(), Some(NoImage::NeedsHashing));
        assert_eq!(enough.unwrap().gap, None);
    }

    #[test]
    fn a_process_that_is_gone_has_no_image() {
        let digests = digests();
        let reader = Reader { digests: &digests, generations: None, chronicle: None, mappings: None, beyond: true };
        let gone = Process { start: me().start + 1, ..me() };
        assert_eq!(reader.read(gone, Hashing::Allowed).err(), Some(NoImage::Because(Cause::ProcessGone)));
    }
}
