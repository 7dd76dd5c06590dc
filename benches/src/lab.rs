//! The place where things are measured: a client's and a server's network namespace joined by a veth pair.
//!
//! Nothing is made in the machine's own network namespace: the pair is created inside the two new ones. What has to be
//! mounted is mounted where only this run sees it ([`seclude`]).

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::supervise::output_of;

/// Addresses of documentation networks (RFC 5737, RFC 3849): they cannot mean anything else by accident.
const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SERVER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

/// Further addresses of the server (RFC 2544): the first, and how many there are.
pub const CROWD: (Ipv4Addr, u32) = (Ipv4Addr::new(198, 18, 0, 0), 1 << 17);
const CROWD_NET: &str = "198.18.0.0/15";

/// Where this run has a bpffs of its own, once it is [secluded](seclude).
pub const BPFFS: &str = "/sys/fs/bpf";
/// Where `ip netns` keeps names.
const NAMES: &str = "/run/netns";

/// Gives this program, and all that it starts, mounts of their own: names of network namespaces that nobody else sees, and a
/// bpffs. They are gone when the last of these processes is, even after a SIGKILL. To be called before any thread starts,
/// because those that there are would stay outside.
///
/// # Errors
/// Not root, or the kernel has no bpffs.
pub fn seclude() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("cannot have mounts of its own")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("cannot make mounts private")?;
    fs::create_dir_all(NAMES).with_context(|| format!("cannot make {NAMES}"))?;
    mount(Some("tmpfs"), NAMES, Some("tmpfs"), MsFlags::empty(), none)
        .with_context(|| format!("cannot mount on {NAMES}"))?;
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none).with_context(|| format!("cannot mount on {BPFFS}"))
}

/// Puts a folder in the place of another, for this run alone: to be called after [`seclude`].
///
/// # Errors
/// One of them is not there.
pub fn put_in_place(folder: &Path, of: &Path) -> Result<()> {
    let none = None::<&str>;
    mount(Some(folder), of, none, MsFlags::MS_BIND, none)
        .with_context(|| format!("cannot mount {} on {}", folder.display(), of.display()))
}

/// A named network namespace; removed, with what is in it, when it goes out of scope.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    fn create(name: String) -> Result<Self> {
        output_of(Command::new("ip").args(["netns", "add", &name]))?;
        Ok(Self { name })
    }

    /// The name under /run/netns.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace.
    pub fn path(&self) -> PathBuf {
        Path::new(NAMES).join(&self.name)
    }

    /// Runs `work` on a thread of its own inside the namespace, and returns what it returns.
    ///
    /// # Errors
    /// The namespace cannot be entered, or `work` fails or panics.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let entered = || {
            let file = fs::File::open(self.path()).with_context(|| format!("cannot open {}", self.path().display()))?;
            setns(&file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {}", self.name))?;
            work()
        };
        thread::scope(|scope| scope.spawn(entered).join()).map_err(|_| anyhow!("work inside {} panicked", self.name))?
    }

    /// An empty one.
    ///
    /// # Errors
    /// Not root, or iproute2 is missing.
    pub fn empty(name: &str) -> Result<Self> {
        Self::create(format!("afw-bench-{}-{name}", std::process::id()))
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        output_of(Command::new("ip").args(["-n", &self.name]).args(arguments)).map(drop)
    }

    fn configure(&self, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<()> {
        self.ip(&["address", "add", &format!("{v4}/24"), "dev", "veth0"])?;
        // Without nodad the address could not be used for a second or two.
        self.ip(&["address", "add", &format!("{v6}/64"), "dev", "veth0", "nodad"])?;
        self.ip(&["link", "set", "lo", "up"])?;
        self.ip(&["link", "set", "veth0", "up"])
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = output_of(Command::new("ip").args(["netns", "delete", &self.name])) {
            eprintln!("speed: {error:#}");
        }
    }
}

/// The two namespaces of a run.
#[derive(Debug)]
pub struct Lab {
    /// Where the load comes from and the contender stands guard.
    pub client: Namespace,
    /// Where the load is received and counted.
    pub server: Namespace,
    ipv6: bool,
}

impl Lab {
    /// Makes the namespaces and joins them; `ipv6` chooses the addresses that the load uses.
    ///
    /// # Errors
    /// Not root, or iproute2 is missing. Whatever was made until then is removed.
    pub fn create(ipv6: bool) -> Result<Self> {
        let prefix = format!("afw-bench-{}", std::process::id());
        let client = Namespace::create(format!("{prefix}-a"))?;
        let server = Namespace::create(format!("{prefix}-b"))?;
        client.ip(&["link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", server.name()])?;
        client.configure(CLIENT_V4, CLIENT_V6)?;
        server.configure(SERVER_V4, SERVER_V6)?;
        client.ip(&["route", "add", CROWD_NET, "via", &SERVER_V4.to_string()])?;
        server.ip(&["route", "add", "local", CROWD_NET, "dev", "lo"])?;
        client.within(forget_connections)?;
        Ok(Self { client, server, ipv6 })
    }

    /// Whether the load uses IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.ipv6
    }

    /// The server's address.
    pub fn server_address(&self) -> IpAddr {
        if self.ipv6 { SERVER_V6.into() } else { SERVER_V4.into() }
    }
}

/// Keeps one measure from leaving traces that the next one would feel.
fn forget_connections() -> Result<()> {
    // No TIME_WAIT sockets: at 15,000 connections per second they would use up the ports within seconds, and searching a
    // free one would get slower with each. Connections are still closed by FIN; only the state that lingers is gone.
    set_sysctl("net/ipv4/tcp_max_tw_buckets", "0")?;
    // A lossy contender must not bequeath its slow-start threshold to the next one.
    set_sysctl("net/ipv4/tcp_no_metrics_save", "1")
}

fn set_sysctl(name: &str, value: &str) -> Result<()> {
    fs::write(format!("/proc/sys/{name}"), value).with_context(|| format!("cannot set {name}"))
}
