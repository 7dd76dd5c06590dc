//! Which changes of a file move its generation, on which file system. Needs root and a real kernel.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use syscall_probe::{FileWatch, Generations, Options, Probe};

mod actor;
use actor::Actor;

/// How often a change that should move nothing is tried: other files share the slot.
const LOOKS: usize = 20;

#[test]
fn actor() {
    actor::play();
}

fn probe() -> &'static Probe {
    static PROBE: OnceLock<Probe> = OnceLock::new();
    PROBE.get_or_init(|| Probe::load(&Options::default()).expect("the probe loads (tests run as root)"))
}

fn generations() -> Generations {
    probe().generations()
}

/// A watched file, whose pages are clean as far as its file system knows.
struct Watched {
    path: PathBuf,
    watch: FileWatch,
}

impl Watched {
    fn new(path: PathBuf, kept_in: &Path) -> Watched {
        std::fs::write(&path, [0; 8192]).expect("a file");
        Watched::existing(path, kept_in)
    }

    /// `kept_in` is the file that is watched: another than `path` on an overlay.
    fn existing(path: PathBuf, kept_in: &Path) -> Watched {
        std::fs::File::open(&path).and_then(|file| file.sync_all()).expect("a file");
        let watch = generations().watch_file(std::fs::metadata(kept_in).expect("a file").ino());
        Watched { path, watch }
    }

    fn is_moved_by(&self, actor: &mut Actor, change: &str) -> bool {
        let all = generations();
        let before = (all.file(self.watch), all.file_epoch());
        actor.act(&format!("file {change} {}", self.path.display()));
        let after = (all.file(self.watch), all.file_epoch());
        assert!(after.0 == before.0 || after.1 != before.1, "the epoch moves with every watched file");
        after.0 != before.0
    }

    #[track_caller]
    fn moves(&self, actor: &mut Actor, changes: &[&str]) {
        for change in changes {
            assert!(self.is_moved_by(actor, change), "{change} of {} went unseen", self.path.display());
        }
    }

    #[track_caller]
    fn stands_still(&self, actor: &mut Actor, change: &str) {
        let quiet = (0..LOOKS).any(|_| !self.is_moved_by(actor, change));
        assert!(quiet, "{change} of {} moved it every time", self.path.display());
    }
}

const CHANGES: [&str; 4] = ["write", "truncate", "utimes", "chmod"];

/// A folder on a file system that reports changes, if there is one.
fn folder_on_disk() -> Option<tempfile::TempDir> {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let filesystem = nix::sys::statfs::statfs(folder.path()).expect("a file system").filesystem_type().0 as u64;
    if FileWatch::covers(filesystem) {
        return Some(folder);
    }
    println!("skipped: the build folder is not on ext4 (its file system is {filesystem:#x})");
    None
}

#[test]
fn on_disk() {
    let Some(folder) = folder_on_disk() else { return };
    let mut actor = Actor::start();
    let path = folder.path().join("file");
    Watched::new(path.clone(), &path).moves(&mut actor, &["mmap-store"]);
    let file = Watched::new(path.clone(), &path);
    file.stands_still(&mut actor, "open");
    file.moves(&mut actor, &CHANGES);
}

/// Times have been read before each write, as whoever keeps a digest does.
#[test]
fn every_write_after_a_look_at_the_times() {
    let Some(folder) = folder_on_disk() else { return };
    if !has_fine_times() {
        println!("skipped: this kernel's file times move once per clock tick");
        return;
    }
    let mut actor = Actor::start();
    let path = folder.path().join("file");
    let file = Watched::new(path.clone(), &path);
    for _ in 0..200 {
        std::fs::metadata(&path).expect("a file");
        file.moves(&mut actor, &["write"]);
    }
}

/// Linux 6.13 and later.
fn has_fine_times() -> bool {
    let release = nix::sys::utsname::uname().expect("a name").release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(13))
}

#[test]
fn file_systems_that_keep_changes_to_themselves_are_not_covered() {
    let shared_memory = nix::sys::statfs::statfs("/dev/shm").expect("a file system");
    assert!(!FileWatch::covers(shared_memory.filesystem_type().0 as u64));
}

#[test]
fn below_an_overlay() {
    let Some(folder) = folder_on_disk() else { return };
    let place = folder.path();
    for name in ["lower", "upper", "work", "merged"] {
        std::fs::create_dir(place.join(name)).expect("a folder");
    }
    let upper = place.join("upper/file");
    std::fs::write(&upper, [0; 8192]).expect("a file");
    let mut actor = Actor::start();
    actor.act(&format!("overlay {}", place.display()));
    // The path leads to the merged tree only as the actor sees it.
    let merged = actor.proc(&format!("root{}/merged/file", place.display()));
    Watched::existing(merged.clone(), &upper).moves(&mut actor, &["mmap-store"]);
    Watched::existing(merged, &upper).moves(&mut actor, &CHANGES);
}

#[test]
fn a_change_of_an_unwatched_file_leaves_the_epoch() {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let path = folder.path().join("file");
    std::fs::write(&path, b"content").expect("a file");
    let (all, mut actor) = (generations(), Actor::start());
    let quiet = (0..LOOKS).any(|_| {
        let before = all.file_epoch();
        actor.act(&format!("file chmod {}", path.display()));
        all.file_epoch() == before
    });
    assert!(quiet, "it moved every time");
}

#[test]
fn mappings_show_the_files_themselves() {
    let program = std::fs::metadata("/proc/self/exe").expect("this program");
    let mappings = probe().mappings().expect("the iterator loads");
    let own = mappings.of_process(std::process::id()).expect("the iterator runs");
    let mapped: Vec<_> = own.iter().filter(|mapping| mapping.file.inode == program.ino()).collect();
    assert!(!mapped.is_empty(), "it is mapped: {own:?}");
    let maps = std::fs::read_to_string("/proc/self/maps").expect("it lives");
    for mapping in mapped {
        assert_eq!((mapping.file.size, mapping.written), (program.size(), false));
        assert_eq!(mapping.file.mtime, program.mtime() * 1_000_000_000 + program.mtime_nsec());
        assert!(maps.lines().any(|line| line.starts_with(&format!("{:x}-", mapping.start))), "{mapping:?}");
    }
    assert!(mappings.of_process(u32::MAX).is_ok_and(|none| none.is_empty()));
}
