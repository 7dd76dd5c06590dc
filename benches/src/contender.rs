//! What is compared: things that guard the client's namespace.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tempfile::TempDir;

use crate::crowd::Crowd;
use crate::lab::{Lab, Namespace};
use crate::opensnitch::OpenSnitch;
use crate::supervise::{Interrupted, Supervisor, Ward, command_in, output_of, own_path};

/// How long a daemon may take until it is ready, and until it has ended.
const START_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How long a foreign daemon may take from binding its queue to having its rules in place.
const SETTLE: Duration = Duration::from_secs(1);
/// The queue that takes the client's outgoing packets.
const QUEUE: &str = "0";
/// Where the daemon pins programs: on the bpffs of this run.
macro_rules! pins {
    () => {
        "/sys/fs/bpf/app-fw"
    };
}
/// The daemon's control socket, in its directory.
const SOCKET: &str = "ctl.sock";

/// Where the programs under test are.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The daemon.
    pub app_fw: PathBuf,
    /// Its command line.
    pub ctl_fw: PathBuf,
}

/// Whether the kernel may use the daemon's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// Every packet goes to the daemon.
    Off,
    /// As if each packet were the first since all answers were forgotten: the kernel looks for an answer, the packet goes to
    /// the daemon all the same, and the daemon hands its answer to the kernel.
    Cold,
    /// What the kernel has an answer for does not go to the daemon.
    On,
}

/// A thing that guards a namespace.
#[derive(Debug, Clone)]
pub enum Contender {
    /// Nothing: no rule, no consumer.
    None,
    /// No firewall, but a rule that accepts everything and has the kernel track connections.
    Conntrack,
    /// One rule of iptables that accepts everything.
    Accept,
    /// [`crate::accept_all`] on every outgoing packet.
    AcceptAll {
        /// Its name in the tables. The same program under two names: how far their ratio strays from 1 is what the run
        /// cannot tell apart.
        name: &'static str,
        /// Whether large segments come uncut.
        gso: bool,
    },
    /// The daemon.
    AppFw {
        /// Its name in the tables.
        name: String,
        /// Further options for the daemon.
        options: Vec<String>,
        /// Whether the kernel may answer.
        cache: Cache,
        /// What to start.
        programs: Programs,
        /// The file to restore its rules from; one hash rule if absent.
        ruleset: Option<PathBuf>,
        /// How many flows it has judged, and its cache may hold, before the load begins.
        flows: u32,
    },
    /// The daemon of Debian's package `opensnitch`.
    OpenSnitch(OpenSnitch),
    /// Any other daemon.
    Other {
        /// Its name in the tables.
        name: String,
        /// What `sh -c` gets in the client's namespace. It also has to see to the rules of iptables that feed the daemon.
        command: String,
    },
}

impl Contender {
    /// The name on the command line and in the tables.
    pub fn name(&self) -> &str {
        match self {
            Self::None => "none",
            Self::Conntrack => "conntrack",
            Self::Accept => "accept",
            Self::AcceptAll { name, .. } => name,
            Self::AppFw { name, .. } | Self::Other { name, .. } => name,
            Self::OpenSnitch(_) => "opensnitch",
        }
    }

    /// Which of the client's packets must be seen, and by what.
    pub fn reach(&self) -> Reach {
        match self {
            Self::None => Reach::None,
            Self::Conntrack | Self::Accept => Reach::Rules,
            Self::AcceptAll { .. } | Self::AppFw { cache: Cache::Off | Cache::Cold, .. } => Reach::Queue,
            Self::AppFw { cache: Cache::On, .. } => Reach::KernelOrQueue,
            Self::OpenSnitch(_) | Self::Other { .. } => Reach::Some,
        }
    }

    /// Starts it in the client's namespace; on return it is judging packets.
    ///
    /// # Errors
    /// It does not start or does not become ready; what was started is stopped again.
    pub fn stand_guard(&self, supervisor: &Supervisor, lab: &Lab) -> Result<Guard> {
        match self {
            Self::None => Ok(Guard::default()),
            Self::Conntrack => {
                Guard::default().with_rules(&lab.client, &["-m conntrack ! --ctstate INVALID -j ACCEPT"])
            }
            Self::Accept => Guard::default().with_rules(&lab.client, &["-j ACCEPT"]),
            Self::AcceptAll { gso, .. } => start_accept_all(supervisor, lab, *gso),
            Self::AppFw { options, cache, programs, ruleset, flows, .. } => {
                let mut guard = start_daemon(supervisor, &lab.client, programs, *cache, options)?;
                match ruleset {
                    Some(file) => guard.restore(&lab.client, programs, file)?,
                    None => guard.add_hash_rule(&lab.client, programs)?,
                }
                guard = guard.with_rules(&lab.client, cache.rules())?;
                if *flows > 0 {
                    guard.gather(supervisor, lab, *flows)?;
                }
                Ok(guard)
            }
            Self::OpenSnitch(program) => start_other(supervisor, lab, self.name(), program.command(&lab.client)?),
            Self::Other { name, command } => {
                let mut shell = command_in(&lab.client.path(), "sh")?;
                shell.args(["-c", command]);
                start_other(supervisor, lab, name, shell)
            }
        }
        .with_context(|| format!("cannot set up {}", self.name()))
    }
}

/// Where a contender meets packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Nowhere.
    None,
    /// Each in a rule of iptables.
    Rules,
    /// Each in the queue.
    Queue,
    /// Each in the queue, or in a rule by which the kernel answers.
    KernelOrQueue,
    /// Some in the queue.
    Some,
}

/// The program that accepts what the kernel has an answer for.
pub const ACCEPTS: &str = concat!(pins!(), "/accept-output");
/// A rule with these words lets the kernel answer. The daemon pins what the rules call.
const PINNED: &str = "--object-pinned";

impl Cache {
    /// What the daemon is told.
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Off => &["--kernel-cache", "off"],
            Self::Cold | Self::On => &["--kernel-cache", "on", "--pins", pins!()],
        }
    }

    /// The rules that lead to the daemon.
    fn rules(self) -> &'static [&'static str] {
        const ASK: &str = "-j NFQUEUE --queue-num 0";
        match self {
            Self::Off => &[ASK],
            // Rules without a target count and let nothing through.
            Self::Cold => &[
                concat!("-m bpf --object-pinned ", pins!(), "/accept-output"),
                concat!("-m bpf --object-pinned ", pins!(), "/drop-output"),
                ASK,
            ],
            Self::On => &[
                concat!("-m bpf --object-pinned ", pins!(), "/accept-output -j ACCEPT"),
                concat!("-m bpf --object-pinned ", pins!(), "/drop-output -j DROP"),
                ASK,
            ],
        }
    }
}

/// A contender at work. Dropped, it is killed and its rules are removed; [`Guard::stand_down`] is the orderly way.
#[derive(Debug, Default)]
pub struct Guard {
    // In the order in which they must go: nothing may be queued that nobody reads.
    rules: Option<Rules>,
    process: Option<Ward>,
    crowd: Option<Crowd>,
    home: Option<TempDir>,
    /// It is not ours, and may end as it likes.
    foreign: bool,
}

impl Guard {
    /// The consumer's process id, if there is one; it leads a group of its own.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Ward::pid)
    }

    /// Fails if the consumer has ended: figures taken without it would mean nothing.
    ///
    /// # Errors
    /// It has ended; the message carries the end of what it said.
    pub fn assert_alive(&mut self) -> Result<()> {
        let Some(process) = &mut self.process else { return Ok(()) };
        match &self.home {
            Some(home) => process.assert_alive().with_context(|| last_words(home.path())),
            // Without a directory of its own it speaks on our standard error.
            None => process.assert_alive(),
        }
    }

    /// The flows that it has judged already.
    pub fn crowd(&mut self) -> Option<&mut Crowd> {
        self.crowd.as_mut()
    }

    /// Lets it judge `flows` flows and keeps them up.
    ///
    /// # Errors
    /// Packets are lost, or [`Interrupted`].
    pub fn gather(&mut self, supervisor: &Supervisor, lab: &Lab, flows: u32) -> Result<()> {
        self.crowd = Some(Crowd::gather(supervisor, lab, flows)?);
        Ok(())
    }

    /// The control socket of a daemon.
    ///
    /// # Errors
    /// It is no daemon.
    pub fn socket(&self) -> Result<PathBuf> {
        Ok(self.home.as_ref().context("only a daemon has a control socket")?.path().join(SOCKET))
    }

    /// Sends what leaves `namespace` to the consumer.
    ///
    /// # Errors
    /// iptables fails.
    pub fn queue_output_of(&mut self, namespace: &Namespace) -> Result<()> {
        self.rules = Some(Rules::insert(namespace, Cache::Off.rules())?);
        Ok(())
    }

    fn with_rules(mut self, namespace: &Namespace, rules: &[&str]) -> Result<Self> {
        self.rules = Some(Rules::insert(namespace, rules)?);
        Ok(self)
    }

    /// `ctl-fw` for this daemon.
    ///
    /// # Errors
    /// It is no daemon.
    pub fn ctl_fw(&self, namespace: &Namespace, programs: &Programs) -> Result<Command> {
        let mut command = command_in(&namespace.path(), &programs.ctl_fw)?;
        command.arg("--socket").arg(self.socket()?);
        Ok(command)
    }

    /// Replaces the daemon's rules by those in `file`.
    ///
    /// # Errors
    /// It is no daemon, or does not take them.
    pub fn restore(&self, namespace: &Namespace, programs: &Programs, file: &Path) -> Result<()> {
        output_of(self.ctl_fw(namespace, programs)?.arg("restore").arg(file)).map(drop)
    }

    /// One rule that every packet is judged by and none matches: it drops a program that sends nothing here.
    fn add_hash_rule(&self, client: &Namespace, programs: &Programs) -> Result<()> {
        let digest = digest_of(Path::new("/bin/false"))?;
        let mut command = self.ctl_fw(client, programs)?;
        command.args(["-A", "-c", "OUTPUT", "-v", "DROP", "--sng-hash", &digest]);
        output_of(&mut command).map(drop)
    }

    /// Removes the rules, ends the consumer and waits for it.
    ///
    /// # Errors
    /// The consumer does not end when told to.
    pub fn stand_down(mut self, supervisor: &Supervisor) -> Result<()> {
        drop(self.rules.take());
        match self.process.take().map(|process| process.terminate(supervisor, STOP_LIMIT)) {
            // It has been killed.
            Some(Err(error)) if self.foreign && !error.is::<Interrupted>() => Ok(()),
            Some(outcome) => outcome.map(drop),
            None => Ok(()),
        }
    }
}

/// The end of what a daemon wrote, for messages.
fn last_words(home: &Path) -> String {
    let said = fs::read(home.join("output")).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<&str> = said.lines().collect();
    format!("it last said:\n{}", lines[lines.len().saturating_sub(15)..].join("\n"))
}

fn start_accept_all(supervisor: &Supervisor, lab: &Lab, gso: bool) -> Result<Guard> {
    let mut command = command_in(&lab.client.path(), own_path()?)?;
    command.args(["accept-all", "--queue", QUEUE]).stdout(Stdio::piped());
    if !gso {
        command.arg("--no-gso");
    }
    let mut process = Ward::start("accept-all", &mut command)?;
    process.line(supervisor, Instant::now() + START_LIMIT)?;
    Guard { process: Some(process), ..Guard::default() }.with_rules(&lab.client, Cache::Off.rules())
}

/// Starts a daemon that sees to its rules itself. It is taken to be ready a moment after a queue was bound.
fn start_other(supervisor: &Supervisor, lab: &Lab, name: &str, mut command: Command) -> Result<Guard> {
    let home = TempDir::with_prefix("afw-bench-").context("cannot make a temporary directory")?;
    let output = File::create(home.path().join("output")).context("cannot keep the daemon's output")?;
    command.stdout(output.try_clone().context("cannot keep the daemon's output")?).stderr(output);
    let process = Some(Ward::start(name, &mut command)?);
    let mut guard = Guard { process, home: Some(home), foreign: true, ..Guard::default() };
    let deadline = Instant::now() + START_LIMIT;
    while !QueueCounters::is_any_bound(&lab.client)? {
        guard.assert_alive()?;
        if Instant::now() > deadline {
            bail!("no queue was bound in time; {}", guard.home.map_or(String::new(), |home| last_words(home.path())));
        }
        // Nothing tells of queues.
        supervisor.pause(Duration::from_millis(20))?;
    }
    supervisor.pause(SETTLE)?;
    guard.assert_alive()?;
    Ok(guard)
}

/// Starts the daemon in `namespace`. It has no rules yet, and nothing is queued for it.
///
/// # Errors
/// It does not start or does not become ready.
pub fn start_daemon(
    supervisor: &Supervisor,
    namespace: &Namespace,
    programs: &Programs,
    cache: Cache,
    options: &[String],
) -> Result<Guard> {
    let home = TempDir::with_prefix("afw-bench-").context("cannot make a temporary directory")?;
    let socket = home.path().join(SOCKET);
    let output = File::create(home.path().join("output")).context("cannot keep the daemon's output")?;
    let mut command = command_in(&namespace.path(), &programs.app_fw)?;
    command.arg("--db").arg(home.path().join("rules.db")).arg("--socket").arg(&socket);
    command.args(["--queue-out", QUEUE]).args(cache.options()).args(options);
    command.stdout(output.try_clone().context("cannot keep the daemon's output")?).stderr(output);

    if cache != Cache::Off && Path::new(pins!()).exists() {
        // An earlier daemon's: what it has left there shall not answer for this one.
        fs::remove_dir_all(pins!()).context("cannot remove earlier pins")?;
    }

    let appearance = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).context("cannot watch files")?;
    appearance
        .add_watch(home.path(), AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)
        .context("cannot watch the temporary directory")?;
    let mut process = Ward::start("app-fw", &mut command)?;
    wait_for_socket(supervisor, &appearance, &socket, &mut process).with_context(|| last_words(home.path()))?;
    Ok(Guard { process: Some(process), home: Some(home), ..Guard::default() })
}

/// The daemon's socket appears when its queues are bound.
fn wait_for_socket(supervisor: &Supervisor, appearance: &Inotify, socket: &Path, process: &mut Ward) -> Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    while !socket.exists() {
        supervisor.readable_or_ended(appearance.as_fd(), process, deadline)?;
        // Which file it was does not matter: the loop looks for itself.
        match appearance.read_events() {
            Ok(_) | Err(nix::errno::Errno::EAGAIN) => {}
            Err(error) => return Err(error).context("cannot read file events"),
        }
    }
    Ok(())
}

/// The SHA-256 of a file, as rules name it.
///
/// # Errors
/// The file cannot be read.
pub fn digest_of(file: &Path) -> Result<String> {
    let told = output_of(Command::new("sha256sum").arg(file))?;
    let (digest, _) = told.split_once(' ').with_context(|| format!("sha256sum said {told:?}"))?;
    Ok(digest.to_owned())
}

/// Rules of a namespace's OUTPUT chain, for IPv4 and IPv6; removed when dropped.
#[derive(Debug)]
struct Rules {
    namespace: PathBuf,
    /// The commands that have placed any.
    placed: Vec<&'static str>,
}

impl Rules {
    fn insert(namespace: &Namespace, rules: &[&str]) -> Result<Self> {
        let mut all = Self { namespace: namespace.path(), placed: Vec::new() };
        for program in ["iptables", "ip6tables"] {
            all.placed.push(program);
            for rule in rules {
                all.change(program, &["-A", "OUTPUT"], rule)?;
            }
        }
        Ok(all)
    }

    fn change(&self, program: &str, action: &[&str], rule: &str) -> Result<()> {
        let mut command = command_in(&self.namespace, program)?;
        output_of(command.arg("-w").args(action).args(rule.split(' ').filter(|word| !word.is_empty()))).map(drop)
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        for program in &self.placed {
            if let Err(error) = self.change(program, &["-F", "OUTPUT"], "") {
                eprintln!("speed: {error:#}");
            }
        }
    }
}

/// Packets that rules of iptables have counted in a namespace, IPv4 and IPv6.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RuleCounters {
    /// What a rule of the OUTPUT chain of the table `filter` decided about.
    pub passed: u64,
    /// What the kernel had an answer of the daemon's for.
    pub answered: u64,
}

impl RuleCounters {
    /// The counters of `namespace` now.
    ///
    /// # Errors
    /// iptables fails, or tells in an unknown way.
    pub fn read(namespace: &Namespace) -> Result<Self> {
        let mut sum = Self::default();
        for program in ["iptables-save", "ip6tables-save"] {
            let text = output_of(command_in(&namespace.path(), program)?.args(["-c", "-t", "filter"]))?;
            let part = Self::parse(&text).with_context(|| format!("cannot read what {program} says: {text}"))?;
            sum = Self { passed: sum.passed + part.passed, answered: sum.answered + part.answered };
        }
        Ok(sum)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut sum = Self::default();
        for line in text.lines().filter(|line| line.starts_with('[')) {
            let packets: u64 = line.strip_prefix('[')?.split_once(':')?.0.parse().ok()?;
            // Rules without a target let packets go on to one that counts them.
            if line.contains(" -A OUTPUT ") && line.contains(" -j ") {
                sum.passed += packets;
            }
            if line.contains(PINNED) {
                sum.answered += packets;
            }
        }
        Some(sum)
    }

    /// What was counted since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            passed: self.passed.saturating_sub(earlier.passed),
            answered: self.answered.saturating_sub(earlier.answered),
        }
    }
}

/// What the kernel tells about the queues of a namespace, all of them added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueCounters {
    /// Packets that were queued.
    pub queued: u64,
    /// Packets that were lost because a queue or its consumer's receive buffer was full.
    pub dropped: u64,
}

impl QueueCounters {
    /// The counters of `namespace` now.
    ///
    /// # Errors
    /// The kernel has no NFQUEUE, or tells of it in an unknown way.
    pub fn read(namespace: &Namespace) -> Result<Self> {
        Self::parse(&Self::text(namespace)?)
    }

    /// Whether somebody reads a queue of `namespace`.
    ///
    /// # Errors
    /// The kernel has no NFQUEUE.
    pub fn is_any_bound(namespace: &Namespace) -> Result<bool> {
        Ok(!Self::text(namespace)?.trim().is_empty())
    }

    fn text(namespace: &Namespace) -> Result<String> {
        // `thread-self`, because only this thread is in the namespace.
        let path = "/proc/thread-self/net/netfilter/nfnetlink_queue";
        namespace.within(|| fs::read_to_string(path).with_context(|| format!("cannot read {path}")))
    }

    /// Columns (`seq_show` in net/netfilter/nfnetlink_queue.c): queue, port id, waiting, copy mode, copy range, dropped in
    /// the queue, dropped at the receive buffer, last packet id, 1.
    fn parse(text: &str) -> Result<Self> {
        let mut sum = Self::default();
        for line in text.lines() {
            let columns: Vec<u64> = line
                .split_whitespace()
                .map(str::parse)
                .collect::<Result<_, _>>()
                .with_context(|| format!("cannot read {line:?}"))?;
            let &[_, _, _, _, _, full, unread, last_id, _] = columns.as_slice() else {
                bail!("cannot read {line:?}");
            };
            sum.queued += last_id;
            sum.dropped += full + unread;
        }
        Ok(sum)
    }

    /// What was counted since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            queued: self.queued.saturating_sub(earlier.queued),
            dropped: self.dropped.saturating_sub(earlier.dropped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_counters_add_up() {
        let text = "*filter\n:INPUT ACCEPT [9:9]\n:OUTPUT ACCEPT [5:500]\n\
                    [100:9000] -A OUTPUT -m bpf --object-pinned /sys/fs/bpf/x/accept-output -j ACCEPT\n\
                    [7:700] -A OUTPUT -j NFQUEUE --queue-num 0\nCOMMIT\n";
        assert_eq!(RuleCounters::parse(text).unwrap(), RuleCounters { passed: 107, answered: 100 });
        let cold = "[4:40] -A OUTPUT -m bpf --object-pinned /sys/fs/bpf/x/accept-output\n\
                    [5:50] -A OUTPUT -j NFQUEUE --queue-num 0\n";
        assert_eq!(RuleCounters::parse(cold).unwrap(), RuleCounters { passed: 5, answered: 4 });
        assert_eq!(RuleCounters::parse(""), Some(RuleCounters::default()));
        assert_eq!(RuleCounters::parse("[x:1] -A OUTPUT -j ACCEPT"), None);
    }

    #[test]
    fn queue_counters_add_up() {
        let text = "    0  11234     0 2   128     1     2      300  1\n    1 4294962188     0 2   128     0     0        5  1\n";
        assert_eq!(QueueCounters::parse(text).unwrap(), QueueCounters { queued: 305, dropped: 3 });
        assert_eq!(QueueCounters::parse("").unwrap(), QueueCounters::default());
        assert!(QueueCounters::parse("0 1 2").is_err());
    }
}
