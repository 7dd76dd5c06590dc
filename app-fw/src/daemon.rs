//! Puts the daemon together, runs it, and takes it apart again.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, bounded, select};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::Group;
use shared::{Chain, Digest};
use syscall_probe::{DecodeError, Event, EventKind, Events, Hook, Options, Probe};
use tokio::io::Interest;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::{Args, SigType, Switch};
use crate::attribute::census::Census;
use crate::bypass::Bypass;
use crate::clock::Clock;
use crate::control::{ControlError, GROUP, Hub, Server};
use crate::explain::Explainer;
use crate::hook::{self, HookError, Hooks};
use crate::image::{Chronicle, ControlGroups, Digests, Process, Retention};
use crate::investigate::{Investigators, Mailbox, Means};
use crate::journal::{Journal, Notices, Policy};
use crate::kernel_cache::{HEARTBEAT, KernelCache};
use crate::learn::Recorder;
use crate::matcher::{Defaults, Ruleset};
use crate::namespaces::Namespaces;
use crate::office::{Office, Post, Premises, ProbeReport, Registrar, keep_time};
use crate::pipeline::{Pipeline, Surroundings};
use crate::queue::{self, Queue, QueueError};
use crate::rejection::Envoy;
use crate::signature::{SecretError, Signatures, Uses};
use crate::store::{ObjectKey, Store, StoreError};
use crate::sys::readiness::watch;
use crate::worker::{Counters, Parts, Settings, Worker};

/// Why the daemon could not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// It must be root.
    #[error("app-fw needs root: it binds netfilter queues and looks into all processes")]
    NotRoot,
    /// A queue.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The database.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The control socket.
    #[error("{0}")]
    Control(#[from] ControlError),
    /// The key for signatures.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The rules that bring packets.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The event log.
    #[error("event log {path}: {error}")]
    Log {
        /// Its path.
        path: String,
        /// Why not.
        error: io::Error,
    },
    /// A worker ended.
    #[error("a queue can no longer be served: {0}")]
    Worker(String),
    /// The system.
    #[error("{step}: {error}")]
    System {
        /// What was tried.
        step: &'static str,
        /// Why not.
        error: io::Error,
    },
}

fn system(step: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
    move |error| DaemonError::System { step, error }
}

/// Packets that may wait in the kernel for a verdict, each queue. Those parked count.
const QUEUE_LENGTH: u32 = 16_384;
/// The receive buffer to begin with, bytes.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Enough for an IPv6 header with options, and for an ICMP error with the headers it quotes.
const HEADERS: u16 = 256;
/// Digests that may wait to be stored.
const FRESH_DIGESTS: usize = 4096;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// See [`DaemonError`].
pub fn run(args: &Args) -> Result<(), DaemonError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(DaemonError::NotRoot);
    }
    crate::sys::files::ignore_lease_signals();
    args.without_effect().iter().for_each(|note| tracing::info!("{note}"));
    let store = Store::open(&args.db)?;
    let signatures = signatures(args)?;
    let mut probe = load_probe(args);
    // Before any thread starts: see Queue::bind.
    let queues = bind_queues(args, signatures.as_deref())?;
    let mut hooks = prepare_hooks(args, &mut probe)?;
    let cache = kernel_cache(&hooks, probe.as_ref().ok());
    if let (Err(why), Switch::On) = (&cache, args.kernel_cache) {
        tracing::warn!("no verdict cache in the kernel: {why}");
    }
    let report = ProbeReport::new(probe.as_ref().map_err(Clone::clone), cache);
    report.sentences().iter().for_each(|sentence| tracing::warn!("{sentence}"));
    if let Ok(probe) = &mut probe {
        let watched = queues.iter().try_for_each(|(_, queue)| probe.watch_queue(queue.socket()));
        watched.unwrap_or_else(|error| tracing::warn!("{error}"));
    }
    let events = probe.as_mut().ok().and_then(Probe::take_events);
    let chronicle = probe.as_mut().ok().and_then(|probe| {
        let changes = probe.take_changes()?;
        Some(Arc::new(Chronicle::new(changes, probe.generations())))
    });
    let reports = Reports { probe: report, hooks: hooks.board() };
    let started = start(args, store, signatures, probe.as_ref().ok(), chronicle, reports, queues)?;
    let probe = Arc::new(Mutex::new(probe));
    // Not earlier: the rules bring packets, for which workers are there now.
    // From here on nothing ends the daemon but in order: else its rules would stay and, with --no-bypass, nothing would pass.
    let signals = Signals::listen()?;
    let placed = hooks.place(Box::new(repin(probe.clone()))).map_err(DaemonError::from);
    let served = placed.and_then(|()| serve(args, &started, events, signals));
    // Before the queues are given back: no packet is to come to one that nobody serves.
    let removed = match &served {
        Ok(()) => hooks.remove(),
        // It has crashed, and what passes is as for a crash.
        Err(DaemonError::Worker(_)) => {
            hooks.are_in_place().then(|| tracing::error!("the rules of --hook stay: start app-fw again"));
            Ok(())
        }
        Err(_) => hooks.back_out(),
    };
    served.and(started.stop()).and(removed.map_err(DaemonError::from))
}

fn prepare_hooks(args: &Args, probe: &mut Result<Probe, String>) -> Result<Hooks, HookError> {
    let settings = hook::Settings {
        places: args.hook.clone(),
        queues: hook::Queues {
            of: [args.queue_out.clone(), args.queue_in.clone(), args.queue_fwd.clone()],
            bypass: args.bypass,
        },
        iptables: args.iptables.clone(),
        pins: args.pins.clone(),
    };
    let pin = match probe {
        _ if args.kernel_cache == Switch::Off => Err("--kernel-cache off was given".to_owned()),
        Err(why_not) => Err(why_not.clone()),
        Ok(probe) if probe.cache().is_none() => {
            let missing = probe.missing().iter().find(|(hook, _)| *hook == Hook::Cache);
            Err(missing.map_or("the probe has none".into(), |(_, why)| why.clone()))
        }
        Ok(probe) => Ok(|directory: &Path| probe.pin_cache(directory)),
    };
    Hooks::prepare(settings, pin)
}

/// The verdict cache, whose programs are where iptables finds them, or why there is none.
fn kernel_cache(hooks: &Hooks, probe: Option<&Probe>) -> Result<Arc<KernelCache>, String> {
    hooks.pins().map_err(str::to_owned)?;
    let cache = probe.and_then(Probe::cache).ok_or("the probe has none")?;
    Ok(Arc::new(KernelCache::new(cache)))
}

/// Pins the programs of the verdict cache again that somebody removed.
fn repin(probe: Arc<Mutex<Result<Probe, String>>>) -> impl FnMut(&Path) -> Result<(), String> + Send {
    move |directory| match &mut *probe.lock().unwrap_or_else(PoisonError::into_inner) {
        Ok(probe) => probe.pin_cache(directory),
        Err(why_not) => Err(why_not.clone()),
    }
}

fn load_probe(args: &Args) -> Result<Probe, String> {
    if args.no_probe {
        return Err("--no-probe was given".into());
    }
    let options = Options { object: args.ebpf_obj.clone(), without: args.without_hook.clone() };
    Probe::load(&options).map_err(|error| {
        let of = args.ebpf_obj.as_ref().map_or_else(String::new, |path| format!("{}: ", path.display()));
        of + &chain_of(&error)
    })
}

/// An error with everything that led to it.
fn chain_of(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn signatures(args: &Args) -> Result<Option<Arc<Signatures>>, DaemonError> {
    let uses =
        Uses { sign: args.sig_type != SigType::None, validate_input: args.in_val, validate_forward: args.fwd_val };
    let wanted = uses.sign || uses.validate_input || uses.validate_forward;
    match (&args.secret, wanted) {
        (Some(path), true) => Ok(Some(Arc::new(Signatures::read(path, uses)?))),
        _ => Ok(None),
    }
}

/// Packets whose content matters come whole and cut to size.
fn whole_packets(chain: Chain, signatures: Option<&Signatures>) -> bool {
    signatures.is_some_and(|signatures| signatures.validates(chain) || chain == Chain::Output && signatures.signs())
}

fn bind_queues(args: &Args, signatures: Option<&Signatures>) -> Result<Vec<(Chain, Arc<Queue>)>, DaemonError> {
    let mut queues = Vec::new();
    for (chain, numbers) in
        [(Chain::Output, &args.queue_out), (Chain::Input, &args.queue_in), (Chain::Forward, &args.queue_fwd)]
    {
        let whole = whole_packets(chain, signatures);
        let settings = queue::Settings {
            copy_range: if whole { u16::MAX } else { HEADERS },
            segmentation_offload: !whole,
            length: QUEUE_LENGTH,
            receive_buffer: RECEIVE_BUFFER,
            max_receive_buffer: args.max_nl_bufsz as usize,
        };
        for number in numbers.clone() {
            queues.push((chain, Arc::new(Queue::bind(number, &settings)?)));
        }
    }
    Ok(queues)
}

/// The running parts.
struct Started {
    office: Arc<Office>,
    kernel: Option<Arc<KernelCache>>,
    namespaces: Arc<ArcSwap<Namespaces>>,
    chronicle: Option<Arc<Chronicle>>,
    investigators: Investigators,
    workers: Vec<JoinHandle<()>>,
    mailboxes: Vec<Mailbox>,
    failures: tokio::sync::Mutex<tokio::sync::mpsc::UnboundedReceiver<String>>,
    halt: Arc<EventFd>,
    journal: Journal,
    bypass: Arc<Bypass>,
    keeper: JoinHandle<()>,
    end_keeper: crossbeam_channel::Sender<()>,
}

/// What was found before the daemon's parts were started, for the status.
struct Reports {
    probe: ProbeReport,
    hooks: Arc<hook::Board>,
}

fn start(
    args: &Args,
    store: Store,
    signatures: Option<Arc<Signatures>>,
    probe: Option<&Probe>,
    chronicle: Option<Arc<Chronicle>>,
    reports: Reports,
    queues: Vec<(Chain, Arc<Queue>)>,
) -> Result<Started, DaemonError> {
    let clock = Clock::new();
    let namespaces = Arc::new(ArcSwap::from_pointee(Namespaces::look().map_err(system("network namespaces"))?));
    let defaults = Defaults { output: args.pol_out, input: args.pol_in, forward: args.pol_fwd };
    let digests = store.digests()?;
    let (store, hub) = (Arc::new(Mutex::new(store)), Arc::new(Hub::default()));
    let registrar = Arc::new(Registrar::new(store.clone(), namespaces.clone(), defaults, hub.clone())?);
    let kernel = reports.probe.kernel_cache().ok().cloned();
    kernel.iter().for_each(|kernel| registrar.keep_kernel_true(kernel.clone()));
    let rules = registrar.in_force();
    let (fresh, to_keep) = bounded(FRESH_DIGESTS);
    let digests = Arc::new(Digests::new(digests, fresh));
    let means = Means {
        clock: clock.clone(),
        digests: digests.clone(),
        generations: probe.map(Probe::generations),
        iterator: probe.and_then(Probe::holders),
        census: Census::default(),
        chronicle: chronicle.clone(),
        mappings: probe.and_then(Probe::mappings),
        namespaces: namespaces.clone(),
        rules: rules.clone(),
    };
    let investigators = Investigators::start(&means, probe).map_err(system("starting the investigators"))?;
    let journal = Journal::open(&args.log, hub.clone())
        .map_err(|error| DaemonError::Log { path: args.log.display().to_string(), error })?;
    let bypass = Bypass::start(&means, journal.notices()).map_err(system("starting a thread"))?;
    let halt = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
    let halt = Arc::new(halt.map_err(io::Error::from).map_err(system("eventfd"))?);
    let (failed, failures) = tokio::sync::mpsc::unbounded_channel();
    let (mut posts, mut workers, mut mailboxes) = (Vec::new(), Vec::new(), Vec::new());
    let envoy = Envoy::start().map_err(system("starting a thread"))?;
    let audit = args.audit.then(Recorder::start).transpose().map_err(system("starting a thread"))?;
    let records = audit.as_ref().map(Recorder::records);
    let crew = Crew {
        args,
        means: &means,
        probe,
        rules: &rules,
        signatures,
        investigators: &investigators,
        envoy,
        audit,
        kernel: kernel.clone(),
    };
    for (chain, queue) in queues {
        let mut counters = Vec::new();
        for _ in 0..crew.workers_for(chain) {
            let counter = Arc::new(Counters::default());
            let worker = crew.worker(chain, &queue, &counter, &journal, &halt)?;
            mailboxes.push(worker.mailbox());
            workers.push(work(worker, chain, queue.number(), failed.clone())?);
            counters.push(counter);
        }
        posts.push(Post { chain, queue, counters });
    }
    let (end_keeper, end) = bounded(1);
    let keeper = keep_digests(store, to_keep, end).map_err(system("starting a thread"))?;
    let premises = Premises {
        audit: args.audit,
        posts,
        probe: reports.probe,
        digests,
        bypass: bypass.clone(),
        hooks: reports.hooks,
        clock: clock.name(),
        since: Instant::now(),
        events_omitted: {
            let (omitted, notices, kernel) = (journal.omitted(), journal.notices(), kernel.clone());
            Box::new(move || {
                kernel.iter().for_each(|kernel| notices.leave_out(kernel.take_untold()));
                omitted()
            })
        },
    };
    let explainer = Explainer { means: means.clone(), investigators: investigators.clone() };
    let office = Arc::new(Office { registrar, premises, hub, explainer, records });
    let failures = tokio::sync::Mutex::new(failures);
    Ok(Started {
        office,
        kernel,
        namespaces,
        chronicle,
        investigators,
        workers,
        mailboxes,
        failures,
        halt,
        journal,
        bypass,
        keeper,
        end_keeper,
    })
}

/// What workers are made from.
struct Crew<'a> {
    args: &'a Args,
    means: &'a Means,
    probe: Option<&'a Probe>,
    rules: &'a Arc<ArcSwap<Ruleset>>,
    signatures: Option<Arc<Signatures>>,
    investigators: &'a Investigators,
    envoy: Envoy,
    audit: Option<Recorder>,
    kernel: Option<Arc<KernelCache>>,
}

/// More workers on one queue get into each other's way.
const MAX_PARALLEL: usize = 4;

impl Crew<'_> {
    fn workers_for(&self, chain: Chain) -> usize {
        let numbers = match chain {
            Chain::Output => &self.args.queue_out,
            Chain::Input => &self.args.queue_in,
            Chain::Forward => &self.args.queue_fwd,
        };
        match (self.args.parallel, numbers.len()) {
            (true, 1) => thread::available_parallelism().map_or(2, usize::from).clamp(2, MAX_PARALLEL),
            _ => 1,
        }
    }

    fn worker(
        &self,
        chain: Chain,
        queue: &Arc<Queue>,
        counters: &Arc<Counters>,
        journal: &Journal,
        halt: &Arc<EventFd>,
    ) -> Result<Worker, DaemonError> {
        let world = Surroundings {
            chain,
            rules: self.rules.clone(),
            namespaces: self.means.namespaces.clone(),
            generations: self.means.generations.clone(),
            sockets: self.probe.map(Probe::sockets),
            census: self.means.census.clone(),
            control_groups: ControlGroups::find(),
            retention: match (self.args.no_rescan, self.args.retain_maps) {
                (true, _) => Retention::FirstLook,
                (false, true) => Retention::Objects,
                (false, false) => Retention::Nothing,
            },
            // A packet that is accepted in the kernel is neither signed nor validated, nor recorded.
            kernel: self
                .kernel
                .clone()
                .filter(|_| self.audit.is_none() && !whole_packets(chain, self.signatures.as_deref())),
            as_made: !whole_packets(chain, self.signatures.as_deref()),
        };
        let whole = whole_packets(chain, self.signatures.as_deref());
        let settings = Settings {
            prefetch: usize::from(self.args.pkt_prefetch),
            batch_count: usize::from(self.args.batch_count),
            batch_age: self.args.batch_timeout.saturating_mul(1000),
            copy_range: if whole { u16::MAX } else { HEADERS },
        };
        Worker::new(Parts {
            queue: queue.clone(),
            chain,
            settings,
            clock: self.means.clock.clone(),
            pipeline: Pipeline::new(world),
            investigators: self.investigators.clone(),
            stop: halt.clone(),
            reporter: journal.reporter(Policy { accepted: self.args.log_accept, rate: self.args.log_rate }),
            signatures: self.signatures.clone(),
            counters: counters.clone(),
            envoy: self.envoy.clone(),
            audit: self.audit.clone(),
        })
        .map_err(system("starting a worker"))
    }
}

fn work(
    worker: Worker,
    chain: Chain,
    number: u16,
    failed: tokio::sync::mpsc::UnboundedSender<String>,
) -> Result<JoinHandle<()>, DaemonError> {
    /// Tells when the thread ends without being asked to, whatever the reason.
    struct Watch(Option<(u16, tokio::sync::mpsc::UnboundedSender<String>)>);
    impl Drop for Watch {
        fn drop(&mut self) {
            if let Some((number, failed)) = self.0.take() {
                let _ = failed.send(format!("the worker of queue {number} ended"));
            }
        }
    }
    let serve = move || {
        let mut watch = Watch(Some((number, failed.clone())));
        if let Err(error) = crate::sys::processes::go_first() {
            tracing::debug!("queue {number}: its thread has to wait like others: {error}");
        }
        match worker.run() {
            Ok(()) => watch.0 = None,
            Err(error) => {
                watch.0 = None;
                let _ = failed.send(format!("queue {number}: {error}"));
            }
        }
    };
    let name = format!("{}-{number}", chain.name().to_ascii_lowercase());
    thread::Builder::new().name(name).spawn(serve).map_err(system("starting a worker"))
}

/// Stores digests as they are made, many at a time.
fn keep_digests(
    store: Arc<Mutex<Store>>,
    fresh: Receiver<(ObjectKey, Digest)>,
    end: Receiver<()>,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("digests".into()).spawn(move || {
        let keep = |first: Option<(ObjectKey, Digest)>| {
            let digests: Vec<_> = first.into_iter().chain(fresh.try_iter()).collect();
            let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = store.remember_digests(&digests) {
                // They are made again after a restart; nothing is judged by what the store has.
                tracing::warn!("digests could not be stored: {error}");
            }
        };
        loop {
            select! {
                recv(fresh) -> digest => match digest {
                    Ok(digest) => keep(Some(digest)),
                    Err(_) => break,
                },
                recv(end) -> _ => break,
            }
        }
        keep(None);
    })
}

/// The signals that end the daemon, and what waits for them.
struct Signals {
    runtime: tokio::runtime::Runtime,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Keeps them from now on.
    fn listen() -> Result<Signals, DaemonError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system("tokio"))?;
        let inside = runtime.enter();
        let terminate = signal(SignalKind::terminate()).map_err(system("signals"))?;
        let interrupt = signal(SignalKind::interrupt()).map_err(system("signals"))?;
        drop(inside);
        Ok(Signals { runtime, terminate, interrupt })
    }
}

/// Serves clients and watches over the rest until a signal or a failure.
fn serve(args: &Args, started: &Started, events: Option<Events>, signals: Signals) -> Result<(), DaemonError> {
    let Signals { runtime, mut terminate, mut interrupt } = signals;
    runtime.block_on(async {
        let group = Group::from_name(GROUP).ok().flatten().map(|group| group.gid);
        let server = Server::bind(&args.socket, group)?;
        tracing::info!("ready: listening on {}", args.socket.display());
        let mut failures = started.failures.lock().await;
        let mut failure = None;
        let over = async {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
                _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
                failed = failures.recv() => failure = failed,
                () = watch_names(&started.namespaces, started.kernel.as_deref()) => {}
                () = keep_alive(started.kernel.as_deref(), started.journal.notices()) => {}
                () = watch_processes(events, started) => {}
                () = keep_chronicle(started) => {}
                () = keep_time(started.office.registrar.clone()) => {}
                () = started.office.registrar.clone().keep_filed() => {}
                () = keep_counters(&started.office.registrar) => {}
            }
        };
        server.serve(started.office.clone(), over).await?;
        failure.map_or(Ok(()), |failure| Err(DaemonError::Worker(failure)))
    })
}

/// How often what rules have counted is stored.
const COUNTERS: Duration = Duration::from_secs(60);

async fn keep_counters(registrar: &Arc<Registrar>) {
    loop {
        tokio::time::sleep(COUNTERS).await;
        let registrar = registrar.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || registrar.save_counters()).await {
            tracing::error!("the counters of rules: {error}");
        }
    }
}

/// Lets the kernel know that the daemon is alive, and has events tell of what it has kept to itself.
async fn keep_alive(kernel: Option<&KernelCache>, notices: Notices) {
    let Some(kernel) = kernel else { return std::future::pending().await };
    let mut beat = tokio::time::interval(HEARTBEAT);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        kernel.renew();
        notices.leave_out(kernel.take_untold());
    }
}

/// Takes note of namespaces that get or lose a name: `ip netns` mounts and unmounts.
async fn watch_names(namespaces: &ArcSwap<Namespaces>, kernel: Option<&KernelCache>) {
    let mounts = std::fs::File::open("/proc/self/mountinfo")
        .and_then(|file| watch(file.into(), Interest::PRIORITY | Interest::ERROR));
    let mounts = match mounts {
        Ok(mounts) => mounts,
        Err(error) => {
            tracing::warn!("names of network namespaces are not followed: {error}");
            return std::future::pending().await;
        }
    };
    loop {
        if let Some(again) = namespaces.load().look_again() {
            namespaces.store(Arc::new(again));
            kernel.into_iter().for_each(KernelCache::forget_all);
        }
        match mounts.ready(Interest::PRIORITY | Interest::ERROR).await {
            Ok(mut ready) => ready.clear_ready(),
            Err(error) => {
                tracing::warn!("names of network namespaces are no longer followed: {error}");
                return std::future::pending().await;
            }
        }
    }
}

/// Takes note of what processes are made of before the kernel has no room to tell, and has new files hashed ahead of the
/// first packet.
async fn keep_chronicle(started: &Started) {
    let Some(chronicle) = &started.chronicle else { return std::future::pending().await };
    let news = chronicle.news().and_then(|fd| watch(fd, Interest::READABLE));
    let Ok(news) = news.inspect_err(|error| tracing::warn!("changes of processes: {error}")) else {
        return std::future::pending().await;
    };
    loop {
        let Ok(mut ready) = news.readable().await else { return std::future::pending().await };
        chronicle.catch_up().into_iter().for_each(|process| started.investigators.look_ahead(process));
        ready.clear_ready();
    }
}

/// Tells the workers of programs that start, and has sockets looked for that pass beside netfilter when one was made.
async fn watch_processes(events: Option<Events>, started: &Started) {
    let Some(mut events) = events else { return std::future::pending().await };
    let polled = events.as_fd().try_clone_to_owned().and_then(|fd| watch(fd, Interest::READABLE));
    let Ok(polled) = polled.inspect_err(|error| tracing::warn!("events of processes: {error}")) else {
        return std::future::pending().await;
    };
    loop {
        let Ok(mut ready) = polled.readable().await else { return std::future::pending().await };
        let emptied = some_of(|| events.next(), |event| take_note(event, started));
        started.bypass.mind_lost_events();
        if emptied {
            ready.clear_ready();
        } else {
            // Still ready: the kernel wakes a reader only for what comes after all was read.
            tokio::task::yield_now().await;
        }
    }
}

fn take_note(event: Result<Event, DecodeError>, started: &Started) {
    let event = match event {
        Ok(event) => event,
        Err(error) => return tracing::debug!("{error}"),
    };
    let process = Process::new(event.tgid, event.start);
    match event.kind {
        EventKind::Exec => started.mailboxes.iter().for_each(|mailbox| mailbox.tell_exec(process)),
        EventKind::BypassSocket { family, netns } => started.bypass.note(process, family, netns),
    }
}

/// Events that are taken before others have their turn: processes may start as fast as they are read of.
const EVENTS_AT_ONCE: usize = 4096;

/// Takes what there is, but not more than is good at once; returns whether that was all.
fn some_of<T>(mut next: impl FnMut() -> Option<T>, mut take: impl FnMut(T)) -> bool {
    for _ in 0..EVENTS_AT_ONCE {
        match next() {
            Some(one) => take(one),
            None => return true,
        }
    }
    false
}

impl Started {
    /// Settles what is queued, gives the queues back, and writes what is left to write.
    fn stop(self) -> Result<(), DaemonError> {
        let Started { office, workers, halt, journal, bypass, keeper, end_keeper, .. } = self;
        halt.write(1).map_err(io::Error::from).map_err(system("stopping the workers"))?;
        for worker in workers {
            if worker.join().is_err() {
                return Err(DaemonError::Worker("a worker panicked".into()));
            }
        }
        let _ = end_keeper.send(());
        let _ = keeper.join();
        office.registrar.save_counters();
        let office = Arc::into_inner(office);
        for post in office.into_iter().flat_map(|office| office.premises.posts) {
            if let Some(queue) = Arc::into_inner(post.queue) {
                let number = queue.number();
                queue.unbind().map_err(|source| QueueError::Kernel { number, step: "unbinding", source })?;
            }
        }
        bypass.fall_silent();
        journal.finish();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_ends_is_left_for_another_turn() {
        let mut taken = 0;
        assert!(!some_of(|| Some(()), |()| taken += 1));
        assert_eq!(taken, EVENTS_AT_ONCE);
        let mut few = 0..EVENTS_AT_ONCE + 1;
        assert!(!some_of(|| few.next(), drop));
        assert!(some_of(|| few.next(), |last| assert_eq!(last, EVENTS_AT_ONCE)));
        assert!(some_of(|| few.next(), drop));
    }
}
