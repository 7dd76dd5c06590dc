//! Changes of the rules. A change is checked and compiled first; then it is committed, put in force, announced and
//! answered. Whatever can fail fails before the commit, and then nothing has changed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use jiff::{Timestamp, ToSpan};
use shared::control::{Announcement, Changed, Edit, Failure, FailureKind, Listing, Revision};
use shared::document::Form;
use shared::{Chain, Rule, Selector};
use tokio::sync::Notify;

use crate::book::{Book, Changing, Delta, Outcome};
use crate::control::{Caller, Hub};
use crate::kernel_cache::KernelCache;
use crate::matcher::{Defaults, Ruleset};
use crate::namespaces::Namespaces;
use crate::store::{Author, Checkpointer, MAX_REVISIONS, Store, StoreError};

use super::compiler::{Compiled, Compiler};
use super::listing::{Extract, Lister};
use super::windows::Moment;
use super::{invalid, resolve};

/// What the daemon calls its own changes.
const EXPIRED: &str = "expired";

/// How long to wait when rules that have had their end could not be deleted. They are out of force meanwhile.
const RETRY: i64 = 10;

/// Changes of so many rules are worth a second thread.
const LARGE: usize = 1000;

/// So many of what was in force lately are kept; others are freed soon.
const RETIRED: usize = 4;

/// After changes of so many rules what the store has in its log is worth bringing into the database. That takes some
/// milliseconds, for which whoever makes a change should not wait.
const LOGGED: usize = 128;

/// Keeps the rules: in memory, in the store, and in force.
pub struct Registrar {
    /// Locked before the store.
    desk: Mutex<Desk>,
    store: Arc<Mutex<Store>>,
    checkpointer: Mutex<Option<Checkpointer>>,
    rules: Arc<ArcSwap<Ruleset>>,
    namespaces: Arc<ArcSwap<Namespaces>>,
    defaults: Defaults,
    hub: Arc<Hub>,
    kernel: OnceLock<Arc<KernelCache>>,
    /// Something was changed: the clock may be of interest at another time.
    pub(super) changed: Notify,
    /// The rules should be filed anew, what was in force before be freed, or the store's log be brought into the database.
    worn: Notify,
}

struct Desk {
    book: Book,
    compiler: Compiler,
    /// What was in force, and what became different. Kept for a while, so that neither a worker nor a client waits until it
    /// is freed.
    retired: VecDeque<(Arc<Ruleset>, Delta)>,
    /// Changes that are in the store's log, about.
    logged: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The store keeps itself consistent by transactions, a change of the book takes itself back.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn store_failure(error: StoreError) -> Failure {
    error.failure()
}

impl Registrar {
    /// Reads everything the store holds, and puts it in force.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn new(
        store: Arc<Mutex<Store>>,
        namespaces: Arc<ArcSwap<Namespaces>>,
        defaults: Defaults,
        hub: Arc<Hub>,
    ) -> Result<Registrar, StoreError> {
        let (book, checkpointer) = {
            let mut store = lock(&store);
            (store.book()?, store.take_checkpointer())
        };
        let (compiler, ruleset) = Compiler::new(&book, defaults, &Moment::now());
        Ok(Registrar {
            desk: Mutex::new(Desk { book, compiler, retired: VecDeque::new(), logged: 0 }),
            store,
            checkpointer: Mutex::new(checkpointer),
            rules: Arc::new(ArcSwap::from_pointee(ruleset)),
            namespaces,
            defaults,
            hub,
            kernel: OnceLock::new(),
            changed: Notify::new(),
            worn: Notify::new(),
        })
    }

    /// Has answers that the kernel uses be forgotten with each change from now on.
    pub fn keep_kernel_true(&self, kernel: Arc<KernelCache>) {
        // Once, before any change.
        drop(self.kernel.set(kernel));
    }

    /// The rules in force, now and later.
    pub fn in_force(&self) -> Arc<ArcSwap<Ruleset>> {
        self.rules.clone()
    }

    /// The rules in force.
    pub fn rules(&self) -> Arc<Ruleset> {
        self.rules.load_full()
    }

    /// Makes edits, all of them or none.
    ///
    /// # Errors
    /// Which of them makes no sense and why; nothing was changed.
    pub fn change(
        &self,
        caller: Caller,
        mut edits: Vec<Edit>,
        note: Option<String>,
        expected: Option<u64>,
    ) -> Result<Changed, Failure> {
        let namespaces = self.namespaces.load_full();
        let now = Timestamp::now();
        for (index, edit) in edits.iter_mut().enumerate() {
            let at = |failure: Failure| Failure { index: Some(index), ..failure };
            resolve::edit(edit, &namespaces).map_err(at)?;
            if let Edit::Add { rule, .. } | Edit::Replace { rule, .. } = edit {
                check_end(rule, now).map_err(at)?;
            }
        }
        let author = author(caller, note, now);
        self.revise(author, expected, |changing| {
            let edit = |(index, edit)| changing.edit(edit).map_err(|error| error.failure(Some(index)));
            edits.into_iter().enumerate().map(edit).collect()
        })
    }

    /// Replaces everything. Rules that have had their end are left out.
    ///
    /// # Errors
    /// What makes no sense, and in which rule; nothing was changed.
    pub fn restore(
        &self,
        caller: Caller,
        document: Form,
        note: Option<String>,
        expected: Option<u64>,
    ) -> Result<Changed, Failure> {
        let mut document = document.read().map_err(|errors| {
            let more = if errors.len() > 1 { format!(", and {} more", errors.len() - 1) } else { String::new() };
            invalid(errors.first().map_or_else(String::new, |first| format!("{first}{more}")))
        })?;
        resolve::document(&mut document, &self.namespaces.load())?;
        let now = Timestamp::now();
        let author = author(caller, note, now);
        self.revise(author, expected, |changing| {
            changing.restore(document, now).map_err(|(index, error)| error.failure(index))?;
            Ok(Vec::new())
        })
    }

    /// Takes back the newest revision that the daemon did not make by itself, or everything after a revision.
    ///
    /// # Errors
    /// There is no such revision, or what there was before is not kept.
    pub fn undo(&self, caller: Caller, to: Option<u64>) -> Result<Changed, Failure> {
        let now = Timestamp::now();
        let mut author = author(caller, None, now);
        let newest = self.history(None)?;
        let Some(to) = to else {
            let by_somebody =
                |revision: &&Revision| !(revision.uid.is_none() && revision.note.as_deref() == Some(EXPIRED));
            // What was added for a time and is gone leaves nothing to be taken back: then it is the turn of what was before.
            for revision in newest.iter().filter(by_somebody) {
                let changed = self.undo(caller, Some(revision.number - 1))?;
                if changed.revision != newest[0].number {
                    return Ok(changed);
                }
            }
            return Err(not_found("there is nothing to undo".into()));
        };
        author.note = Some(format!("undo to revision {to}"));
        // Whoever changes something meanwhile is not to be undone as well.
        let latest = newest.first().map_or(0, |revision| revision.number);
        if to > latest {
            return Err(not_found(format!("there is no revision {to}: the newest is {latest}")));
        }
        self.revise(author, Some(latest), |changing| {
            for number in (to + 1..=latest).rev() {
                let past = lock(&self.store).past(number).map_err(store_failure)?;
                changing.take_back(past, now).map_err(|why| {
                    StoreError::Corrupt(format!("revision {number} cannot be taken back: {why}")).failure()
                })?;
            }
            Ok(Vec::new())
        })
    }

    /// Changes the book, the store, and what is in force.
    fn revise(
        &self,
        author: Author,
        expected: Option<u64>,
        edit: impl FnOnce(&mut Changing<'_>) -> Result<Vec<Outcome>, Failure>,
    ) -> Result<Changed, Failure> {
        let mut desk = lock(&self.desk);
        let desk = &mut *desk;
        let current = desk.book.revision();
        if let Some(expected) = expected.filter(|expected| *expected != current) {
            let message = format!("the ruleset was changed: revision {current} is the newest, not {expected}");
            return Err(Failure { kind: FailureKind::Conflict, message, index: None });
        }
        let mut changing = desk.book.change();
        let outcomes = edit(&mut changing)?;
        let mut lister = Lister::new(self.namespaces.load_full());
        let mut done = |outcomes: Vec<Outcome>| outcomes.into_iter().map(|outcome| lister.done(outcome)).collect();
        if changing.delta().is_empty() {
            drop(changing);
            return Ok(Changed { revision: current, done: done(outcomes), rules: desk.book.len() });
        }
        let (compiled, revision) = self.prepare(&desk.compiler, &changing, &author)?;
        let delta = changing.keep(revision.number);
        let ruleset = desk.compiler.adopt(compiled, &delta);
        self.enforce(desk, ruleset, delta);
        self.changed.notify_one();
        let (number, rules) = (revision.number, desk.book.len());
        self.hub.changed(|| Announcement::Changed(revision));
        Ok(Changed { revision: number, done: done(outcomes), rules })
    }

    /// Compiles a change and commits it; a large one at the same time, but nothing is committed that is not compiled.
    fn prepare(
        &self,
        compiler: &Compiler,
        changing: &Changing<'_>,
        author: &Author,
    ) -> Result<(Compiled, Revision), Failure> {
        let (before, moment) = (self.rules.load_full(), Moment::now());
        let (book, delta, last_id) = (changing.book(), changing.delta(), changing.last_id());
        let compile = || compiler.compiled(&before, book, delta, &moment);
        let commit = |ready: &mut dyn FnMut()| lock(&self.store).commit(book, last_id, delta, author, ready);
        if delta.rules.len() < LARGE {
            let compiled = compile();
            return Ok((compiled, commit(&mut || {}).map_err(store_failure)?));
        }
        std::thread::scope(|scope| {
            let mut compiling = Some(scope.spawn(compile));
            let mut compiled = None;
            let mut wait = || {
                let joined = compiling.take().map(std::thread::ScopedJoinHandle::join);
                // A panic goes on here: nothing is committed then.
                compiled = joined.map(|joined| joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            };
            let revision = commit(&mut wait).map_err(store_failure)?;
            let compiled = compiled.ok_or_else(|| invalid("the rules were not compiled".into()))?;
            Ok((compiled, revision))
        })
    }

    fn enforce(&self, desk: &mut Desk, ruleset: Ruleset, delta: Delta) {
        let is_worn = ruleset.is_worn();
        desk.logged += delta.rules.len().max(1);
        desk.retired.push_back((self.rules.swap(Arc::new(ruleset)), delta));
        if let Some(kernel) = self.kernel.get() {
            kernel.forget_all();
        }
        if is_worn || desk.retired.len() > RETIRED || desk.logged >= LOGGED {
            self.worn.notify_one();
        }
    }

    /// Does what is due: deletes rules that have had their end, and puts those in force, or out of it, whose time of the week
    /// begins or ends. When to come again.
    pub(super) fn mind_the_clock(&self) -> Option<Timestamp> {
        let moment = Moment::now();
        let ended = lock(&self.desk).compiler.ended(moment.time());
        let mut retry = None;
        if !ended.is_empty() {
            let author = Author { time: moment.time(), note: Some(EXPIRED.into()), ..Author::default() };
            let delete = |changing: &mut Changing<'_>| {
                // Somebody may have given it more time meanwhile.
                let is_due = |id: &u64| {
                    let rule = changing.book().rule(*id);
                    rule.is_some_and(|entry| !moment.is_before_end(&entry.rule))
                };
                let due: Vec<u64> = ended.into_iter().filter(is_due).collect();
                changing.delete(due);
                Ok(Vec::new())
            };
            if let Err(failure) = self.revise(author, None, delete) {
                tracing::error!("rules that have expired are not in force, but still stored: {}", failure.message);
                retry = moment.time().checked_add(RETRY.seconds()).ok();
            }
        }
        let mut desk = lock(&self.desk);
        let desk = &mut *desk;
        if let Some(compiled) = desk.compiler.at(&self.rules.load(), &desk.book, &moment) {
            let ruleset = desk.compiler.adopt(compiled, &Delta::default());
            self.enforce(desk, ruleset, Delta::default());
        }
        desk.compiler.next(&desk.book, &moment).into_iter().chain(retry).min()
    }

    /// Files the rules anew whenever so many changes were put beside the rest that it is worth it.
    pub async fn keep_filed(self: Arc<Registrar>) {
        loop {
            self.worn.notified().await;
            let registrar = self.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || registrar.refile()).await {
                tracing::error!("the rules could not be filed anew: {error}");
            }
        }
    }

    fn refile(&self) {
        self.free(RETIRED);
        self.refile_and(|| {});
        self.checkpoint();
    }

    fn checkpoint(&self) {
        let is_due = {
            let logged = &mut lock(&self.desk).logged;
            *logged >= LOGGED && std::mem::take(logged) > 0
        };
        if is_due
            && let Some(checkpointer) = &*lock(&self.checkpointer)
            && let Err(error) = checkpointer.run()
        {
            tracing::warn!("what was committed stays in the log of the database for now: {error}");
        }
    }

    /// `meanwhile` is for tests.
    pub(super) fn refile_and(&self, meanwhile: impl FnOnce()) {
        let before = {
            let mut desk = lock(&self.desk);
            if !self.rules.load().is_worn() || !desk.compiler.begin_refiling() {
                return;
            }
            self.rules.load_full()
        };
        let fresh = before.compact();
        meanwhile();
        let mut desk = lock(&self.desk);
        let desk = &mut *desk;
        let generation = self.rules.load().generation;
        if let Some(ruleset) = desk.compiler.refiled(fresh, generation, &desk.book) {
            self.enforce(desk, ruleset, Delta::default());
        }
    }

    /// Frees what was in force before.
    fn free(&self, keep: usize) {
        let old: Vec<_> = {
            let retired = &mut lock(&self.desk).retired;
            retired.drain(..retired.len().saturating_sub(keep)).collect()
        };
        drop(old);
    }

    /// Stores what rules have counted.
    pub fn save_counters(&self) {
        self.free(0);
        self.collect();
        let desk = lock(&self.desk);
        let fresh: Vec<_> = desk
            .book
            .rules()
            .filter_map(|entry| entry.hits.fresh().map(|(packets, bytes)| (entry, packets, bytes)))
            .collect();
        let counters: Vec<_> = fresh.iter().map(|(entry, packets, bytes)| (entry.id, *packets, *bytes)).collect();
        match lock(&self.store).save_counters(&counters) {
            Ok(()) => fresh.iter().for_each(|(entry, packets, _)| entry.hits.set_stored(*packets)),
            // They are still counted, and stored another time.
            Err(error) => tracing::warn!("the counters of rules could not be stored: {error}"),
        }
    }

    /// Adds to what rules have counted what the kernel has counted for them.
    fn collect(&self) {
        if let Some(kernel) = self.kernel.get() {
            kernel.collect();
        }
    }

    /// Rules, policies and sets.
    ///
    /// # Errors
    /// The namespace asked for is a file, and none of a namespace.
    pub fn list(&self, chain: Option<Chain>, mut namespace: Option<Selector>) -> Result<Listing, Failure> {
        let namespaces = self.namespaces.load_full();
        if let Some(namespace) = &mut namespace {
            resolve::selector(namespace, &namespaces)?;
        }
        self.collect();
        let extract = Extract::new(&lock(&self.desk).book, chain, namespace.as_ref(), self.defaults);
        Ok(extract.listing(Lister::new(namespaces)))
    }

    /// What was changed when and by whom, newest first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn history(&self, count: Option<usize>) -> Result<Vec<Revision>, Failure> {
        let count = count.unwrap_or(MAX_REVISIONS as usize);
        lock(&self.store).history(count).map_err(store_failure)
    }
}

/// The longest note, bytes.
const LONGEST_NOTE: usize = 1024;

fn author(caller: Caller, note: Option<String>, time: Timestamp) -> Author {
    let note = note.map(|mut note| {
        note.truncate(note.floor_char_boundary(LONGEST_NOTE));
        note
    });
    Author { time, uid: Some(caller.uid), pid: caller.pid, note }
}

fn check_end(rule: &Rule, now: Timestamp) -> Result<(), Failure> {
    match rule.until {
        Some(until) if until <= now => Err(invalid(format!("--until {until} is over: it is {now:.0} now"))),
        _ => Ok(()),
    }
}

fn not_found(message: String) -> Failure {
    Failure { kind: FailureKind::NotFound, message, index: None }
}
