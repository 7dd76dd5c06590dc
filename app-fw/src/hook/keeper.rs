//! Puts the rules in place, sees to it that they stay, and takes them away.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use shared::Chain;
use shared::control::{HookStatus, HooksStatus};

use super::changes::Changes;
use super::pins;
use super::place::Place;
use super::rules::{self, Instance, Listing, Rule, Wanted};
use super::tables::{Tables, TablesError, Variant, attempt};

/// How often legacy rules are read back: the kernel does not tell of their changes. One process for each family.
const LEGACY_LOOK: Duration = Duration::from_secs(2);
/// How often all others are, though the kernel tells.
const LOOK: Duration = Duration::from_secs(30);
/// How soon it is tried again what failed.
const AGAIN: Duration = Duration::from_secs(1);
/// The time between two looks, however fast others change the tables.
const SPACING: Duration = Duration::from_millis(100);
/// The time between two moves to the end: another may want to be the last as well.
const MOVES: Duration = Duration::from_secs(10);

/// Pins the programs again that somebody removed; a sentence if that cannot be.
pub type Repin = Box<dyn FnMut(&Path) -> Result<(), String> + Send>;

/// The rules of one place in one family's tables.
#[derive(Clone, Debug)]
struct Row {
    place: Place,
    tables: usize,
    /// Since when they have not been there.
    gone: Option<Instant>,
    put_back: u64,
    /// Why it is not known whether they are there, or they could not be put back.
    why: Option<String>,
}

/// What the status is made from.
#[derive(Debug, Default)]
pub struct Board {
    shown: Mutex<Shown>,
}

#[derive(Debug, Default)]
struct Shown {
    rows: Vec<(Row, &'static str, String)>,
    pins: Option<PathBuf>,
    notes: Vec<String>,
    /// What the last look found.
    findings: Vec<String>,
}

impl Board {
    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows where the pins are.
    pub fn set_pins(&self, directory: Option<&Path>) {
        self.shown().pins = directory.map(Path::to_owned);
    }

    /// Shows something for as long as the daemon runs.
    pub fn note(&self, sentence: String) {
        self.shown().notes.push(sentence);
    }

    /// For the status.
    pub fn status(&self) -> HooksStatus {
        let shown = self.shown();
        let hook = |(row, family, tables): &(Row, &'static str, String)| HookStatus {
            hook: row.place.to_string(),
            family: (*family).into(),
            tables: tables.clone(),
            in_place: row.gone.is_none() && row.why.is_none(),
            gone_ms: row.gone.map(|since| since.elapsed().as_millis() as u64),
            put_back: row.put_back,
            why_not: row.why.clone(),
        };
        HooksStatus {
            rules: shown.rows.iter().map(hook).collect(),
            pins: shown.pins.as_ref().map(|pins| pins.display().to_string()),
            notes: shown.notes.iter().chain(&shown.findings).cloned().collect(),
        }
    }
}

/// One family's tables.
struct Kept {
    tables: Tables,
    /// How our rules are written there.
    seen: Vec<Rule>,
    moved: Option<Instant>,
    /// What lets packets past them.
    around: Vec<String>,
    /// What was last told to have gone wrong.
    trouble: Option<String>,
}

/// Knows what is to be there.
pub struct Keeper {
    wanted: Wanted,
    kept: Vec<Kept>,
    rows: Vec<Row>,
    pins: Option<PathBuf>,
    repin: Repin,
    board: Arc<Board>,
    /// There were rules of ours when this daemon was started: of one that crashed.
    took_over: bool,
    /// What was last told to have gone wrong with the pins.
    trouble: Option<String>,
}

impl Keeper {
    /// Puts all rules in place, instead of those that daemons left which are gone, and reads them back. If one family's cannot
    /// be, nothing is left that was not there before.
    ///
    /// # Errors
    /// See [`TablesError`].
    pub fn place(
        wanted: Wanted,
        tables: Vec<Tables>,
        pins: Option<PathBuf>,
        repin: Repin,
        board: Arc<Board>,
    ) -> Result<Keeper, TablesError> {
        let rows = (0..tables.len()).flat_map(|tables| {
            let row = move |place: &Place| Row { place: place.clone(), tables, gone: None, put_back: 0, why: None };
            wanted.places.iter().map(row).collect::<Vec<_>>()
        });
        let rows = rows.collect();
        let kept = tables
            .into_iter()
            .map(|tables| Kept { tables, seen: Vec::new(), moved: None, around: Vec::new(), trouble: None })
            .collect();
        let mut keeper = Keeper { wanted, kept, rows, pins, repin, board, took_over: false, trouble: None };
        keeper.find_programs();
        if let Err(error) = keeper.put_first() {
            keeper.back_out().unwrap_or_else(|error| tracing::error!("{error}"));
            return Err(error);
        }
        keeper.show();
        Ok(keeper)
    }

    fn put_first(&mut self) -> Result<(), TablesError> {
        for Kept { tables, .. } in &self.kept {
            self.took_over |= !tables.listing()?.of(self.wanted.instance).is_empty();
        }
        let all = 0..self.kept.len();
        match all.clone().try_for_each(|index| self.put(index)) {
            Err(TablesError::Refused { program, said }) if self.wanted.programs.iter().any(Option::is_some) => {
                // It may be the match `bpf` that is missing.
                self.wanted.programs = Default::default();
                self.pins = None;
                all.clone().try_for_each(|index| self.put(index))?;
                let note = format!(
                    "rules cannot name the verdict cache, every packet goes through the daemon: {program}: {said}"
                );
                tracing::warn!("{note}");
                self.board.note(note);
            }
            placed => placed?,
        }
        // After: packets are judged twice for a moment, and never not at all.
        all.into_iter().try_for_each(|index| self.clear_other_variant(index))
    }

    /// A former daemon may have used the other kind of tables.
    fn clear_other_variant(&self, index: usize) -> Result<(), TablesError> {
        let Some(other) = self.kept[index].tables.other_variant() else { return Ok(()) };
        if Listing::read(&other.everything()?).instances().is_empty() {
            return Ok(());
        }
        other.remove(|listing| self.abandoned(listing, true))
    }

    /// Whose rules nobody serves: no queue of theirs is bound, or it is ours.
    fn abandoned(&self, listing: &Listing, with_ours: bool) -> Vec<Instance> {
        let bound = bound_queues();
        let is_abandoned = |instance: &Instance| match *instance == self.wanted.instance {
            true => with_ours,
            // What cannot be known is left alone.
            false => bound.as_ref().is_ok_and(|bound| !bound.contains(instance)),
        };
        listing.instances().into_iter().filter(is_abandoned).collect()
    }

    fn put(&mut self, index: usize) -> Result<(), TablesError> {
        let tables = self.kept[index].tables.clone();
        let listing = attempt(|| {
            let listing = tables.listing()?;
            tables.restore(&rules::to_place(&listing, &self.wanted, &self.abandoned(&listing, false)))?;
            let listing = tables.listing()?;
            if listing.holds(&self.wanted, None) {
                Ok(listing)
            } else {
                Err(TablesError::NotThere { program: tables.name() })
            }
        })?;
        self.kept[index].seen = listing.of(self.wanted.instance);
        self.look_around(index, &listing);
        Ok(())
    }

    /// Rules name programs that are there.
    fn find_programs(&mut self) {
        let pins = self.pins.as_deref();
        let found = |chain| Some(pins::programs(pins?, chain)).filter(|both| both.iter().all(|path| path.exists()));
        self.wanted.programs = Chain::ALL.map(found);
    }

    /// With iptables-legacy nobody can change a table any more in which a rule names a program that is gone. Whether new ones
    /// have been made: rules of nft go on calling the old ones.
    fn keep_pins(&mut self) -> bool {
        let named = self.wanted.programs.iter().flatten().flatten();
        let Some(missing) = named.into_iter().find(|path| !path.exists()).cloned() else { return false };
        let Some(directory) = self.pins.clone() else { return false };
        let again =
            pins::provide(&directory).map_err(|error| error.to_string()).and_then(|()| (self.repin)(&directory));
        let trouble =
            again.err().map(|error| format!("{} is gone and cannot be made again: {error}", missing.display()));
        match &trouble {
            None => tracing::warn!("{} was gone and is there again", missing.display()),
            told if *told == self.trouble => {}
            Some(trouble) => tracing::error!("{trouble}"),
        }
        self.trouble = trouble;
        self.trouble.is_none()
    }

    /// Looks at the rules, and puts back what is gone; returns when to look again.
    fn look(&mut self) -> Duration {
        let made_anew = self.keep_pins();
        let mut next = LOOK;
        for index in 0..self.kept.len() {
            if self.kept[index].tables.variant == Variant::Legacy {
                next = next.min(LEGACY_LOOK);
            }
            let looked = self.look_at(index).and_then(|()| if made_anew { self.put(index) } else { Ok(()) });
            let trouble = looked.err().map(|error| error.to_string());
            let kept = &mut self.kept[index];
            if let Some(why) = trouble.as_ref().filter(|_| trouble != kept.trouble) {
                tracing::error!("the rules of --hook ({}) cannot be kept in place: {why}", kept.tables.family.name());
            }
            kept.trouble.clone_from(&trouble);
            if trouble.is_some() {
                next = AGAIN;
                self.rows_of(index).for_each(|row| row.why.clone_from(&trouble));
            }
        }
        self.show();
        next
    }

    fn rows_of(&mut self, index: usize) -> impl Iterator<Item = &mut Row> {
        self.rows.iter_mut().filter(move |row| row.tables == index)
    }

    fn look_at(&mut self, index: usize) -> Result<(), TablesError> {
        let listing = self.kept[index].tables.listing()?;
        let (wanted, seen) = (self.wanted.clone(), self.kept[index].seen.clone());
        if listing.holds(&wanted, Some(&seen)) {
            // If they were gone, somebody else put them back.
            self.back(index);
            self.look_around(index, &listing);
            let rested = self.kept[index].moved.is_none_or(|moved| moved.elapsed() >= MOVES);
            if rested && listing.is_followed(&wanted) {
                self.kept[index].moved = Some(Instant::now());
                self.put(index)?;
            }
            return Ok(());
        }
        let mut gone = Vec::new();
        for row in self.rows_of(index).filter(|row| !listing.has(&row.place, &wanted, Some(&seen))) {
            row.gone.get_or_insert_with(Instant::now);
            gone.push(row.place.to_string());
        }
        // The status tells even if it takes long to put them back.
        self.show();
        self.find_programs();
        self.put(index)?;
        self.back(index);
        let tables = &self.kept[index].tables;
        if !gone.is_empty() {
            tracing::warn!("rules of --hook {} were gone from {} and are there again", gone.join(","), tables.name());
        }
        Ok(())
    }

    /// They are all there.
    fn back(&mut self, index: usize) {
        for row in self.rows_of(index) {
            row.put_back += u64::from(row.gone.take().is_some());
            row.why = None;
        }
    }

    /// Says what lets packets past the rules, when that is news.
    fn look_around(&mut self, index: usize, listing: &Listing) {
        let kept = &mut self.kept[index];
        let family = kept.tables.family.name();
        let around = listing.ways_around(&self.wanted);
        let sentence = |rule| format!("{family}: what this rule takes of table {} is not judged: {rule}", rules::TABLE);
        let around: Vec<String> = around.into_iter().map(sentence).collect();
        around.iter().filter(|one| !kept.around.contains(one)).for_each(|one| tracing::warn!("{one}"));
        kept.around = around;
    }

    fn show(&self) {
        let row = |row: &Row| {
            let tables = &self.kept[row.tables].tables;
            (row.clone(), tables.family.name(), tables.name())
        };
        let mut shown = self.board.shown();
        shown.rows = self.rows.iter().map(row).collect();
        let around = self.kept.iter().flat_map(|kept| &kept.around);
        shown.findings = around.chain(&self.trouble).cloned().collect();
    }

    /// Takes our rules away from all tables, as far as that can be.
    ///
    /// # Errors
    /// The first that did not go.
    pub fn remove(&mut self) -> Result<(), TablesError> {
        let instance = self.wanted.instance;
        let mut outcome = Ok(());
        for Kept { tables, .. } in &self.kept {
            let removed = tables.remove(|_| vec![instance]).and_then(|()| {
                let there = tables.listing()?.of(instance);
                if there.is_empty() { Ok(()) } else { Err(TablesError::StillThere { program: tables.name() }) }
            });
            outcome = outcome.and(removed);
        }
        outcome
    }

    /// The same, unless a daemon that crashed had left such rules: what was shut stays shut.
    ///
    /// # Errors
    /// As there.
    pub fn back_out(&mut self) -> Result<(), TablesError> {
        if self.took_over { Ok(()) } else { self.remove() }
    }

    /// Whether any rule of this namespace names something in a directory. What cannot be read may.
    pub fn is_named(&self, directory: &Path) -> bool {
        self.kept.iter().any(|Kept { tables, .. }| {
            std::iter::once(tables.clone())
                .chain(tables.other_variant())
                .any(|tables| tables.everything().map_or(true, |text| rules::mentions(&text, directory)))
        })
    }
}

/// The queues that somebody serves in this namespace.
fn bound_queues() -> io::Result<Vec<u16>> {
    let table = std::fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_queue")?;
    Ok(table.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect())
}

/// A thread that keeps the rules in place, once it has a keeper.
pub struct Watch {
    stop: Arc<EventFd>,
    keeper: Sender<Keeper>,
    thread: JoinHandle<Option<Keeper>>,
}

impl Watch {
    /// Starts it. Changes of these tables are heard of from now on.
    ///
    /// # Errors
    /// No thread can be had, or the kernel does not tell of changes.
    pub fn start(tables: &[Tables]) -> io::Result<Watch> {
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let listens = tables.iter().any(|tables| tables.variant == Variant::Nft);
        let changes = listens.then(Changes::listen).transpose()?;
        let (keeper, given) = bounded(1);
        let until = stop.clone();
        let watch = move || given.recv().ok().map(|keeper| watch(keeper, &until, changes.as_ref()));
        let thread = thread::Builder::new().name("hook".into()).spawn(watch)?;
        Ok(Watch { stop, keeper, thread })
    }

    /// Has the rules kept that were put in place.
    pub fn keep(&self, keeper: Keeper) {
        // It waits for nothing else.
        let _ = self.keeper.send(keeper);
    }

    /// Ends it, and gives the keeper back; `None` if there is none, or it panicked.
    pub fn stop(self) -> Option<Keeper> {
        let _ = self.stop.write(1);
        drop(self.keeper);
        self.thread.join().ok().flatten()
    }
}

fn watch(mut keeper: Keeper, until: &EventFd, changes: Option<&Changes>) -> Keeper {
    let mut due = Instant::now();
    let mut earliest = due;
    loop {
        let stop = PollFd::new(until.as_fd(), PollFlags::POLLIN);
        let heard = changes.map(|changes| PollFd::new(changes.descriptor(), PollFlags::POLLIN));
        let mut polled: Vec<PollFd<'_>> = std::iter::once(stop).chain(heard).collect();
        // Rounded up: else it would be polled in vain for the rest of a millisecond.
        let left = due.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
        if let Err(error) = poll(&mut polled, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))
            && error != nix::errno::Errno::EINTR
        {
            tracing::error!("the rules of --hook are no longer watched: {error}");
            return keeper;
        }
        let ready: Vec<bool> = polled.iter().map(|one| one.any().unwrap_or(false)).collect();
        if ready[0] {
            return keeper;
        }
        if ready.get(1) == Some(&true) && changes.is_some_and(Changes::concern_us) {
            due = due.min(earliest.max(Instant::now()));
        }
        if Instant::now() >= due {
            let next = keeper.look();
            let now = Instant::now();
            (due, earliest) = (now + next, now + SPACING);
        }
    }
}
