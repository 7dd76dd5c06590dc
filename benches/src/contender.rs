//! What is compared: things that guard the client's namespace.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tempfile::TempDir;

use crate::lab::{Lab, Namespace};
use crate::supervise::{Supervisor, Ward, command_in, output_of, own_path};

/// How long a daemon may take until it is ready, and until it has ended.
const START_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// The queue that takes the client's outgoing packets.
const QUEUE: &str = "0";
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

/// A thing that guards a namespace.
#[derive(Debug, Clone)]
pub enum Contender {
    /// Nothing: no rule, no consumer.
    None,
    /// [`crate::accept_all`] on every outgoing packet.
    AcceptAll,
    /// The same once more: how far its ratio to [`Self::AcceptAll`] strays from 1 is what this run cannot tell apart.
    AcceptAllAgain,
    /// The daemon, every outgoing packet through userspace.
    AppFw {
        /// Its name in the tables.
        name: String,
        /// Further options for the daemon.
        options: Vec<String>,
        /// What to start.
        programs: Programs,
        /// The file to restore its rules from; one hash rule if absent.
        ruleset: Option<PathBuf>,
    },
}

impl Contender {
    /// The name on the command line and in the tables.
    pub fn name(&self) -> &str {
        match self {
            Self::None => "none",
            Self::AcceptAll => "accept-all",
            Self::AcceptAllAgain => "accept-all-again",
            Self::AppFw { name, .. } => name,
        }
    }

    /// Whether each of the client's packets must be seen in the queue.
    pub fn queues_every_packet(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// Starts it in the client's namespace; on return it is judging packets.
    ///
    /// # Errors
    /// It does not start or does not become ready; what was started is stopped again.
    pub fn stand_guard(&self, supervisor: &Supervisor, lab: &Lab) -> Result<Guard> {
        match self {
            Self::None => Ok(Guard::default()),
            Self::AcceptAll | Self::AcceptAllAgain => start_accept_all(supervisor, lab),
            Self::AppFw { options, programs, ruleset, .. } => {
                let mut guard = start_daemon(supervisor, &lab.client, programs, options)?;
                match ruleset {
                    Some(file) => guard.restore(&lab.client, programs, file)?,
                    None => guard.add_hash_rule(&lab.client, programs)?,
                }
                guard.queue_output_of(&lab.client)?;
                Ok(guard)
            }
        }
        .with_context(|| format!("cannot set up {}", self.name()))
    }
}

/// A contender at work. Dropped, it is killed and its rules are removed; [`Guard::stand_down`] is the orderly way.
#[derive(Debug, Default)]
pub struct Guard {
    // In the order in which they must go: nothing may be queued that nobody reads.
    rules: Option<QueueRules>,
    process: Option<Ward>,
    home: Option<TempDir>,
}

impl Guard {
    /// The consumer's process id, if there is one.
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
        self.rules = Some(QueueRules::insert(namespace)?);
        Ok(())
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
        match self.process.take() {
            Some(process) => process.terminate(supervisor, STOP_LIMIT).map(drop),
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

fn start_accept_all(supervisor: &Supervisor, lab: &Lab) -> Result<Guard> {
    let mut command = command_in(&lab.client.path(), own_path()?)?;
    command.args(["accept-all", "--queue", QUEUE]).stdout(Stdio::piped());
    let mut process = Ward::start("accept-all", &mut command)?;
    process.line(supervisor, Instant::now() + START_LIMIT)?;
    let rules = QueueRules::insert(&lab.client)?;
    Ok(Guard { rules: Some(rules), process: Some(process), home: None })
}

/// Starts the daemon in `namespace`. It has no rules yet, and nothing is queued for it.
///
/// # Errors
/// It does not start or does not become ready.
pub fn start_daemon(
    supervisor: &Supervisor,
    namespace: &Namespace,
    programs: &Programs,
    options: &[String],
) -> Result<Guard> {
    let home = TempDir::with_prefix("afw-bench-").context("cannot make a temporary directory")?;
    let socket = home.path().join(SOCKET);
    let output = File::create(home.path().join("output")).context("cannot keep the daemon's output")?;
    let mut command = command_in(&namespace.path(), &programs.app_fw)?;
    command.arg("--db").arg(home.path().join("rules.db")).arg("--socket").arg(&socket);
    command.args(["--queue-out", QUEUE, "--kernel-cache", "off"]).args(options);
    command.stdout(output.try_clone().context("cannot keep the daemon's output")?).stderr(output);

    let appearance = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).context("cannot watch files")?;
    appearance
        .add_watch(home.path(), AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)
        .context("cannot watch the temporary directory")?;
    let mut process = Ward::start("app-fw", &mut command)?;
    wait_for_socket(supervisor, &appearance, &socket, &mut process).with_context(|| last_words(home.path()))?;
    Ok(Guard { rules: None, process: Some(process), home: Some(home) })
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

/// Rules that send every outgoing packet of a namespace, IPv4 and IPv6, to the queue; removed when dropped.
#[derive(Debug)]
struct QueueRules {
    namespace: PathBuf,
    /// The commands whose rule is in place.
    placed: Vec<&'static str>,
}

impl QueueRules {
    fn insert(namespace: &Namespace) -> Result<Self> {
        let mut rules = Self { namespace: namespace.path(), placed: Vec::new() };
        for program in ["iptables", "ip6tables"] {
            rules.change(program, "-I")?;
            rules.placed.push(program);
        }
        Ok(rules)
    }

    fn change(&self, program: &str, action: &str) -> Result<()> {
        let mut command = command_in(&self.namespace, program)?;
        command.args(["-w", action, "OUTPUT", "-j", "NFQUEUE", "--queue-num", QUEUE]);
        output_of(&mut command).map(drop)
    }
}

impl Drop for QueueRules {
    fn drop(&mut self) {
        for program in &self.placed {
            if let Err(error) = self.change(program, "-D") {
                eprintln!("speed: {error:#}");
            }
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
        // `thread-self`, because only this thread is in the namespace.
        let path = "/proc/thread-self/net/netfilter/nfnetlink_queue";
        let text = namespace.within(|| fs::read_to_string(path).with_context(|| format!("cannot read {path}")))?;
        Self::parse(&text)
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
    fn queue_counters_add_up() {
        let text = "    0  11234     0 2   128     1     2      300  1\n    1 4294962188     0 2   128     0     0        5  1\n";
        assert_eq!(QueueCounters::parse(text).unwrap(), QueueCounters { queued: 305, dropped: 3 });
        assert_eq!(QueueCounters::parse("").unwrap(), QueueCounters::default());
        assert!(QueueCounters::parse("0 1 2").is_err());
    }
}
