//! A pair of network namespaces, with a router between them if wanted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Once, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::counter::Place;
use crate::daemon::Files;
use crate::kernel_cache::{self, Bpffs};
use crate::netns::{Namespace, Port, present, sweep, unmount_below};
use crate::process::{Captured, run};
use crate::programs::copy_with_other_digest;
use crate::{Actor, Counter, Daemon, LIMIT, Programs, Running, Server, docker};

/// What a world is for; its names begin with it, so that each kind sweeps up after itself only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `afw-test-<pid>-...`
    Test,
    /// `afw-demo-<pid>-...`
    Demo,
    /// `afw-bench-<pid>-...`
    Bench,
}

impl Kind {
    /// What the names begin with.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Test => "afw-test",
            Self::Demo => "afw-demo",
            Self::Bench => "afw-bench",
        }
    }

    /// Removes what killed runs of this kind left behind; returns the names.
    ///
    /// # Errors
    /// Something could not be removed.
    pub fn sweep(self) -> Result<Vec<String>> {
        let mut removed = sweep(self.prefix(), &std::env::temp_dir())?;
        removed.extend(docker::sweep_cgroups(self.prefix())?);
        Ok(removed)
    }

    /// What this very process has made and not removed yet.
    pub fn present(self) -> Vec<String> {
        present(self.prefix(), &std::env::temp_dir())
    }
}

/// One of a world's namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ns {
    /// Where the programs run that are judged; without a router, the daemon too.
    Local,
    /// The other end, where servers run and packets are counted.
    Peer,
    /// Between the two, if the world has one.
    Router,
}

/// Addresses of the two ends. Every world uses the same: its namespaces see nothing else.
pub const LOCAL4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// See [`LOCAL4`].
pub const LOCAL6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xaf, 0, 1, 0, 0, 0, 1);
/// The peer's address without a router, the router's own on that side with one.
const NEXT4: &str = "198.51.100.2";
const NEXT6: &str = "fd00:af:0:1::2";
const BEYOND_ROUTER4: &str = "203.0.113.1";
const BEYOND_ROUTER6: &str = "fd00:af:0:2::1";
const BEYOND_PEER4: &str = "203.0.113.2";
const BEYOND_PEER6: &str = "fd00:af:0:2::2";

/// Scratch namespaces and a temporary folder. Everything is removed when the world is dropped, also by a panic.
#[derive(Debug)]
pub struct World {
    label: String,
    name: String,
    local: Namespace,
    peer: Namespace,
    router: Option<Namespace>,
    /// Goes before the folder.
    bpffs: OnceLock<Bpffs>,
    folder: TempDir,
    programs: Programs,
    names: AtomicU32,
}

impl World {
    /// Two joined namespaces for a test; `label` is for messages.
    ///
    /// # Errors
    /// Not root, or a command is missing.
    pub fn new(label: &str) -> Result<Self> {
        Self::build(Kind::Test, label, Programs::beside_this()?, false)
    }

    /// Local and peer joined through a third namespace that forwards.
    ///
    /// # Errors
    /// Not root, or a command is missing.
    pub fn with_router(label: &str) -> Result<Self> {
        Self::build(Kind::Test, label, Programs::beside_this()?, true)
    }

    /// A world of any kind, with binaries from anywhere.
    ///
    /// # Errors
    /// Not root, or a command is missing.
    pub fn build(kind: Kind, label: &str, programs: Programs, routed: bool) -> Result<Self> {
        static SWEEP: Once = Once::new();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(|| {
            if let Err(error) = kind.sweep() {
                eprintln!("removing what an earlier run left: {error:#}");
            }
        });
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{}-{number}", kind.prefix(), std::process::id());
        // The folder holds Unix sockets, whose paths may be 107 bytes long: keep it short.
        let folder =
            tempfile::Builder::new().prefix(&format!("{name}-")).tempdir().context("making a temporary folder")?;
        let world = Self {
            label: label.to_owned(),
            local: Namespace::create(&format!("{name}-a"))?,
            peer: Namespace::create(&format!("{name}-b"))?,
            router: if routed { Some(Namespace::create(&format!("{name}-r"))?) } else { None },
            bpffs: OnceLock::new(),
            folder,
            programs,
            names: AtomicU32::new(0),
            name,
        };
        world.connect().with_context(|| format!("setting up the world `{label}`"))?;
        Ok(world)
    }

    fn connect(&self) -> Result<()> {
        let (local4, local6) = (LOCAL4.to_string(), LOCAL6.to_string());
        let near = Port { name: "eth0", mac: "02:af:00:00:01:01", v4: &local4, v6: &local6 };
        let next = Port { name: "eth0", mac: "02:af:00:00:01:02", v4: NEXT4, v6: NEXT6 };
        let Some(router) = &self.router else {
            return self.local.join(&near, &self.peer, &next);
        };
        self.local.join(&near, router, &next)?;
        let out = Port { name: "eth1", mac: "02:af:00:00:02:01", v4: BEYOND_ROUTER4, v6: BEYOND_ROUTER6 };
        let far = Port { name: "eth0", mac: "02:af:00:00:02:02", v4: BEYOND_PEER4, v6: BEYOND_PEER6 };
        router.join(&out, &self.peer, &far)?;
        self.local.ip(&format!("route add default via {NEXT4}"))?;
        self.local.ip(&format!("route add default via {NEXT6}"))?;
        self.peer.ip(&format!("route add default via {BEYOND_ROUTER4}"))?;
        self.peer.ip(&format!("route add default via {BEYOND_ROUTER6}"))?;
        router.sysctl("net/ipv4/ip_forward", "1")?;
        router.sysctl("net/ipv6/conf/all/forwarding", "1")
    }

    /// The label it was made with.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// What the names of its namespaces begin with: `afw-test-<pid>-<number>`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its temporary folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its binaries.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// One of its namespaces.
    ///
    /// # Panics
    /// If the router of a world without one is asked for.
    pub fn namespace(&self, ns: Ns) -> &Namespace {
        match ns {
            Ns::Local => &self.local,
            Ns::Peer => &self.peer,
            Ns::Router => self.router.as_ref().expect("made with World::with_router"),
        }
    }

    /// The peer's IPv4 address.
    pub fn peer4(&self) -> IpAddr {
        address(if self.router.is_some() { BEYOND_PEER4 } else { NEXT4 })
    }

    /// The peer's IPv6 address.
    pub fn peer6(&self) -> IpAddr {
        address(if self.router.is_some() { BEYOND_PEER6 } else { NEXT6 })
    }

    /// `http://PEER:PORT/` over IPv4.
    pub fn url(&self, port: u16) -> String {
        format!("http://{}:{port}/", self.peer4())
    }

    /// `http://[PEER]:PORT/` over IPv6.
    pub fn url6(&self, port: u16) -> String {
        format!("http://[{}]:{port}/", self.peer6())
    }

    // --- programs ---------------------------------------------------------------------------------------------------

    /// Runs a command in a namespace to its end. Of the environment it sees PATH, HOME, LC_ALL and APP_FW_SOCKET only.
    ///
    /// # Errors
    /// It could not be started or ran longer than `limit`. A non-zero exit is no error.
    pub fn run(&self, ns: Ns, argv: &[&str], limit: Duration) -> Result<Captured> {
        run(&mut self.command(ns, argv)?, limit)
    }

    /// Starts a command in a namespace and leaves it running; give it pipes with [`command`](Self::command) if needed.
    ///
    /// # Errors
    /// It could not be started.
    pub fn spawn(&self, ns: Ns, argv: &[&str]) -> Result<Running> {
        Running::start(&mut self.command(ns, argv)?)
    }

    /// The command line that [`run`](Self::run) runs.
    ///
    /// # Errors
    /// `argv` is empty.
    pub fn command(&self, ns: Ns, argv: &[&str]) -> Result<Command> {
        let (program, arguments) = argv.split_first().context("an empty command")?;
        let mut command = self.namespace(ns).command(program);
        self.environment(command.args(arguments));
        Ok(command)
    }

    /// What a command of this world may see of the caller's environment: nothing but PATH, in which the project's
    /// binaries come first. A proxy setting or a ~/.curlrc would make curl do something else than the test says.
    fn environment(&self, command: &mut Command) {
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.programs.folder().display());
        command
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.folder())
            .env("LC_ALL", "C")
            .env("APP_FW_SOCKET", &self.files().socket);
    }

    /// Where the world's daemon keeps its things.
    pub fn files(&self) -> Files {
        Files::named(self.folder(), "app-fw")
    }

    /// Starts the daemon in the local namespace and waits until it is ready. A second call after the first daemon has
    /// ended is a restart: same database, same log.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn daemon(&self, arguments: &[&str]) -> Result<Daemon> {
        self.daemon_in(Ns::Local, self.files(), arguments)
    }

    /// Starts a daemon in any of the namespaces with files of its own ([`Files::named`]). Unless the arguments say
    /// otherwise, or [`kernel_cache::SWITCH`] does, packets for the default queues meet its verdict cache before.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn daemon_in(&self, ns: Ns, files: Files, arguments: &[&str]) -> Result<Daemon> {
        let program = self.programs.path("app-fw")?;
        let has_none = |argument: &&str| ["--no-probe", "--kernel-cache", "--pins"].contains(argument);
        let start = |more: &[&str]| {
            let arguments: Vec<&str> = arguments.iter().chain(more).copied().collect();
            Daemon::start(self.namespace(ns), &program, files.clone(), &arguments)
                .with_context(|| format!("world `{}`", self.label))
        };
        if arguments.iter().any(has_none) {
            return start(&[]);
        }
        if !kernel_cache::is_wanted() {
            return start(&["--kernel-cache", "off"]);
        }
        let pins = self.pins(&files)?;
        let daemon = start(&["--pins", pins.to_str().context("a strange path")?])?;
        kernel_cache::precede_queues(self.namespace(ns), &pins)?;
        Ok(daemon)
    }

    /// Where a daemon's programs are.
    fn pins(&self, files: &Files) -> Result<PathBuf> {
        if self.bpffs.get().is_none() {
            // Two daemons are not started at once.
            drop(self.bpffs.set(Bpffs::mount(self.folder())?));
        }
        let bpffs = self.bpffs.get().context("a bpffs")?;
        Ok(bpffs.path().join(files.database.file_stem().context("a database without a name")?))
    }

    /// Runs ctl-fw in the local namespace against the world's daemon.
    ///
    /// # Errors
    /// It could not be started or hung. A non-zero exit is no error.
    pub fn ctl(&self, arguments: &[&str]) -> Result<Captured> {
        self.ctl_in(Ns::Local, arguments)
    }

    /// Runs ctl-fw in any of the namespaces against the world's daemon.
    ///
    /// # Errors
    /// As [`ctl`](Self::ctl).
    pub fn ctl_in(&self, ns: Ns, arguments: &[&str]) -> Result<Captured> {
        run(self.ctl_command(ns)?.args(arguments), LIMIT)
    }

    /// A command that runs ctl-fw in any of the namespaces against the world's daemon.
    ///
    /// # Errors
    /// The program is not built.
    pub fn ctl_command(&self, ns: Ns) -> Result<Command> {
        let mut command = self.namespace(ns).command(&self.programs.path("ctl-fw")?);
        self.environment(&mut command);
        Ok(command)
    }

    /// As [`ctl`](Self::ctl); returns its standard output.
    ///
    /// # Errors
    /// The exit code was not 0.
    pub fn ctl_ok(&self, arguments: &[&str]) -> Result<String> {
        self.ctl(arguments)?.ok()
    }

    /// Starts the scripted program in a namespace and waits until it is ready.
    ///
    /// # Errors
    /// As [`Actor::start`].
    pub fn actor(&self, ns: Ns, arguments: &[&str]) -> Result<Actor> {
        self.actor_from(ns, &self.programs.path("actor")?, arguments)
    }

    /// As [`actor`](Self::actor), from a copy of the program.
    ///
    /// # Errors
    /// As [`Actor::start`].
    pub fn actor_from(&self, ns: Ns, program: &Path, arguments: &[&str]) -> Result<Actor> {
        Actor::start(self.namespace(ns), program, arguments)
    }

    /// A copy of the actor with a digest of its own, in the world's folder.
    ///
    /// # Errors
    /// It could not be copied.
    pub fn actor_copy(&self, name: &str) -> Result<PathBuf> {
        self.copy(&self.programs.path("actor")?, name)
    }

    /// A copy of any program or library with a digest of its own, in the world's folder.
    ///
    /// # Errors
    /// It could not be copied.
    pub fn copy(&self, from: &Path, name: &str) -> Result<PathBuf> {
        let to = self.folder().join(name);
        copy_with_other_digest(from, &to)?;
        Ok(to)
    }

    /// A shared library with a digest that no other file has, for loading into an actor.
    ///
    /// # Errors
    /// No library could be found to copy.
    pub fn library(&self, name: &str) -> Result<PathBuf> {
        // Every Rust program maps libgcc_s, so it is there and fits the machine.
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        let library = maps
            .lines()
            .filter_map(|line| line.find('/').map(|start| &line[start..]))
            .find(|path| path.contains("/libgcc_s.so"))
            .context("this program does not map libgcc_s")?;
        self.copy(Path::new(library), name)
    }

    /// The SHA-256 of a file, 64 hex digits, by sha256sum: another implementation than the one under test.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn sha256(&self, file: &Path) -> Result<String> {
        let out = run(Command::new("sha256sum").arg("--").arg(file), LIMIT)?.ok()?;
        // sha256sum puts a backslash before the digest of a file with a strange name.
        let digest = out.trim_start_matches('\\').split_whitespace().next();
        digest.map(str::to_owned).context("sha256sum said nothing")
    }

    // --- servers ----------------------------------------------------------------------------------------------------

    /// A web server in the peer. Servers elsewhere: [`Server`].
    ///
    /// # Errors
    /// The port cannot be bound.
    pub fn http_server(&self, port: u16) -> Result<Server> {
        Server::http(&self.peer, port)
    }

    /// A TCP server in the peer that sends back what it gets.
    ///
    /// # Errors
    /// The port cannot be bound.
    pub fn tcp_echo(&self, port: u16) -> Result<Server> {
        Server::tcp_echo(&self.peer, port)
    }

    /// A UDP server in the peer that counts datagrams.
    ///
    /// # Errors
    /// The port cannot be bound.
    pub fn udp_sink(&self, port: u16) -> Result<Server> {
        Server::udp_sink(&self.peer, port)
    }

    /// A UDP server in the peer that sends datagrams back.
    ///
    /// # Errors
    /// The port cannot be bound.
    pub fn udp_echo(&self, port: u16) -> Result<Server> {
        Server::udp_echo(&self.peer, port)
    }

    // --- packets ----------------------------------------------------------------------------------------------------

    /// Sends the local namespace's OUTPUT chain, IPv4 and IPv6, to queue 0. Without a daemon its packets are dropped.
    ///
    /// # Errors
    /// iptables refused.
    pub fn queue_output(&self) -> Result<()> {
        self.queue(Ns::Local, &["OUTPUT"], 0)
    }

    /// Sends the local namespace's INPUT chain to queue 1.
    ///
    /// # Errors
    /// iptables refused.
    pub fn queue_input(&self) -> Result<()> {
        self.queue(Ns::Local, &["INPUT"], 1)
    }

    /// Sends the router's FORWARD chain to queue 2.
    ///
    /// # Errors
    /// iptables refused.
    pub fn queue_forward(&self) -> Result<()> {
        self.queue(Ns::Router, &["FORWARD"], 2)
    }

    /// `iptables -I MATCH... -j NFQUEUE --queue-num NUMBER`, and the same with ip6tables. `rule` begins with the chain:
    /// `["FORWARD", "-i", "eth0"]`.
    ///
    /// # Errors
    /// iptables refused.
    pub fn queue(&self, ns: Ns, rule: &[&str], number: u16) -> Result<()> {
        let number = number.to_string();
        for program in ["iptables", "ip6tables"] {
            let mut argv = vec![program, "-w", "10", "-I"];
            argv.extend(rule);
            argv.extend(["-j", "NFQUEUE", "--queue-num", &number]);
            self.run(ns, &argv, LIMIT)?.ok()?;
        }
        // A daemon that is started later does it then.
        let pins = self.bpffs.get().map(|bpffs| bpffs.path().join("app-fw"));
        pins.map_or(Ok(()), |pins| kernel_cache::precede_queues(self.namespace(ns), &pins))
    }

    /// Counts packets that arrive at the peer and match an nftables expression, from now on.
    ///
    /// # Errors
    /// nftables refused the expression.
    pub fn count(&self, expression: &str) -> Result<Counter<'_>> {
        self.count_at(Ns::Peer, Place::Arrived, expression)
    }

    /// Counts packets anywhere.
    ///
    /// # Errors
    /// nftables refused the expression.
    pub fn count_at(&self, ns: Ns, place: Place, expression: &str) -> Result<Counter<'_>> {
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        Counter::start(self.namespace(ns), place, expression, format!("c{number}"))
    }

    /// Waits until no packet of the namespace awaits a verdict. After a datagram was sent, what the peer has not
    /// counted by then it never will.
    ///
    /// # Errors
    /// Packets still wait after [`LIMIT`].
    pub fn wait_queues_empty(&self, ns: Ns) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while self.queued(ns)? > 0 {
            if Instant::now() >= deadline {
                bail!("packets still wait for a verdict after {LIMIT:?}");
            }
            // The kernel has no event for an emptied queue.
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Waits until the namespace has no TCP socket left but listeners and those in TIME_WAIT. Then the other end has
    /// sent all that belongs to its connections; before, a late ACK may still come and be counted where a test expects
    /// silence.
    ///
    /// # Errors
    /// A connection is still open after [`LIMIT`].
    pub fn wait_connections_closed(&self, ns: Ns) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while self.open_connections(ns)? > 0 {
            if Instant::now() >= deadline {
                bail!("TCP connections are still open after {LIMIT:?}");
            }
            // Nor is there an event for this that does not need a netlink listener for the whole life of the world.
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn open_connections(&self, ns: Ns) -> Result<usize> {
        // proc_pid_net(5): slot, local address, remote address, state in hexadecimal.
        const TIME_WAIT: &str = "06";
        const LISTEN: &str = "0A";
        let tables = self.namespace(ns).enter(|| {
            ["tcp", "tcp6"]
                .iter()
                .map(|name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).context("TCP sockets"))
                .collect::<Result<Vec<_>>>()
        })?;
        let states = tables.iter().flat_map(|table| table.lines().skip(1)).map(|line| line.split_whitespace().nth(3));
        Ok(states.filter(|state| !matches!(*state, Some(TIME_WAIT | LISTEN))).count())
    }

    /// Packets of the namespace that await a verdict.
    ///
    /// # Errors
    /// The kernel's table cannot be read.
    pub fn queued(&self, ns: Ns) -> Result<u64> {
        // queue number, peer port id, packets waiting, copy mode, ...
        let table = self.namespace(ns).enter(|| {
            std::fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_queue").context("the table of queues")
        })?;
        table
            .lines()
            .map(|line| {
                let waiting = line.split_whitespace().nth(2).context("a short line")?;
                waiting.parse::<u64>().with_context(|| format!("`{line}`"))
            })
            .sum()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // What daemons have mounted, too: else the folder could not be removed.
        if let Err(error) = unmount_below(self.folder.path()) {
            eprintln!("cleaning up: {error:#}");
        }
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("a constant of this file")
}
