//! What the commands need from Debian, and why.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::{Unfit, cargo, interrupt};

/// How to tell that a package is there. Not by dpkg: whoever built clang by hand need not install it again.
#[derive(Debug, Clone, Copy)]
enum Sign {
    /// A program on PATH.
    Program(&'static str),
    /// A file.
    File(&'static str),
}

/// One Debian package.
#[derive(Debug)]
struct Package {
    name: &'static str,
    sign: Sign,
    /// Why it is needed.
    why: &'static str,
}

const fn program(name: &'static str, program: &'static str, why: &'static str) -> Package {
    Package { name, sign: Sign::Program(program), why }
}

const fn file(name: &'static str, file: &'static str, why: &'static str) -> Package {
    Package { name, sign: Sign::File(file), why }
}

/// For building and for the demo.
const DEMO: &[Package] = &[
    program("gcc", "cc", "links Rust programs, compiles SQLite into app-fw"),
    file("libc6-dev", "/usr/include/stdlib.h", "the C library's headers, for SQLite"),
    program("clang", "clang", "compiles the eBPF programs"),
    file("libbpf-dev", "/usr/include/bpf/bpf_helpers.h", "headers of the eBPF programs"),
    file("linux-libc-dev", "/usr/include/linux/bpf.h", "kernel headers of the eBPF programs"),
    program("iproute2", "ip", "makes scratch network namespaces"),
    program("util-linux", "nsenter", "runs programs inside them"),
    program("iptables", "iptables", "hands their packets to app-fw"),
    program("nftables", "nft", "counts packets where they arrive"),
    program("curl", "curl", "is blocked in the demo"),
    program("wget", "wget", "passes in the demo"),
];

/// For the tests, on top.
const TEST: &[Package] = &[
    program("iputils-ping", "ping", "ICMP in the tests"),
    program("docker.io", "dockerd", "a Docker of the tests' own, in scratch namespaces; its service is not started"),
    file("busybox-static", "/bin/busybox", "shell and sleep of the tests' container image"),
];

/// For the comparison, on top of what the demo needs.
const BENCH: &[Package] = &[program("iperf3", "iperf3", "sends as much as it can by TCP")];

/// Where Debian has programs; a root shell's PATH may lack the sbin folders.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

impl Package {
    fn is_there(&self) -> bool {
        match self.sign {
            Sign::File(path) => Path::new(path).exists(),
            Sign::Program(name) => FOLDERS.iter().any(|folder| Path::new(folder).join(name).exists()),
        }
    }
}

/// Installs what the demo needs.
///
/// # Errors
/// Not root, or a package cannot be installed.
pub fn for_demo() -> Result<()> {
    install(&DEMO.iter().collect::<Vec<_>>())
}

/// Installs what the comparison needs. OpenSnitch is not among it: it is compared where somebody has installed it.
///
/// # Errors
/// As [`for_demo`].
pub fn for_bench() -> Result<()> {
    install(&DEMO.iter().chain(BENCH).collect::<Vec<_>>())
}

/// Installs what the tests need.
///
/// # Errors
/// As [`for_demo`].
pub fn for_tests() -> Result<()> {
    install(&DEMO.iter().chain(TEST).collect::<Vec<_>>())?;
    for tool in ["fmt", "clippy"] {
        let there = cargo::command(&[tool, "--version"]).output().is_ok_and(|output| output.status.success());
        if !there {
            let component = if tool == "fmt" { "rustfmt" } else { tool };
            println!("Rust's {component} is missing: rustup component add {component}");
            cargo::run_command(Command::new("rustup").args(["component", "add", component]))
                .with_context(|| format!("installing Rust's {component}"))?;
        }
    }
    Ok(())
}

/// Refuses to go on without root.
///
/// # Errors
/// Not root.
pub fn require_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Unfit("this needs root: it installs packages, makes network namespaces and loads eBPF programs".into()).into())
}

fn install(wanted: &[&Package]) -> Result<()> {
    let missing: Vec<&Package> = wanted.iter().copied().filter(|package| !package.is_there()).collect();
    if missing.is_empty() {
        println!("All {} Debian packages that this needs are there.", wanted.len());
        return Ok(());
    }
    println!("These Debian packages are missing and will be installed:");
    for package in &missing {
        println!("  {:<15} {}", package.name, package.why);
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("there is no apt-get here: install what stands for these packages on this system yourself");
    }
    let _quiet = NoServices::begin()?;
    // A fresh image has no package lists; old lists name versions that the archive no longer has.
    if !known(&names) || apt_install(&names).is_err() {
        interrupt::check()?;
        apt(&["update", "-qq"])?;
        apt_install(&names)?;
    }
    match missing.iter().find(|package| !package.is_there()) {
        Some(package) => bail!("{} was installed, but {:?} is still missing", package.name, package.sign),
        None => Ok(()),
    }
}

/// While it lives, packages that are installed do not start their services: Debian's policy-rc.d, see invoke-rc.d(8). A
/// dockerd outside the tests would put a bridge and rules into the machine's own network namespace.
struct NoServices {
    /// The policy is ours to remove.
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";
const REFUSE_ALL: &str =
    "#!/bin/sh\n# Of `cargo xtask`, while it installs packages; to be deleted if found later.\nexit 101\n";
/// "Action forbidden by policy."
const FORBIDDEN: i32 = 101;

impl NoServices {
    fn begin() -> Result<Self> {
        match File::options().write(true).create_new(true).mode(0o755).open(POLICY) {
            Ok(mut file) => {
                let policy = Self { ours: true };
                file.write_all(REFUSE_ALL.as_bytes()).with_context(|| format!("writing {POLICY}"))?;
                Ok(policy)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let answer = Command::new(POLICY).args(["docker", "start"]).status().context(POLICY)?;
                ensure!(
                    answer.code() == Some(FORBIDDEN),
                    "{POLICY} would let a package start its service in the machine's own network namespace: \
                     install what is missing yourself"
                );
                // A run that was killed may have left ours.
                Ok(Self { ours: fs::read_to_string(POLICY).is_ok_and(|text| text == REFUSE_ALL) })
            }
            Err(error) => Err(error).with_context(|| format!("writing {POLICY}")),
        }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("removing {POLICY}: {error}");
        }
    }
}

/// Whether apt's lists know all these packages.
fn known(names: &[&str]) -> bool {
    Command::new("apt-cache")
        .args(["show", "--no-all-versions"])
        .args(names)
        .output()
        .is_ok_and(|output| output.status.success())
}

fn apt_install(names: &[&str]) -> Result<()> {
    let mut arguments = vec!["install", "-qq", "-y", "--no-install-recommends"];
    arguments.extend(names);
    apt(&arguments)
}

fn apt(arguments: &[&str]) -> Result<()> {
    println!("# apt-get {}", arguments.join(" "));
    let output = Command::new("apt-get")
        // Somebody else's apt may be at work: wait for it instead of failing.
        .args(["-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .context("starting apt-get")?;
    // A signal meant for us must not cut dpkg off in the middle of a package; it takes effect here.
    interrupt::check()?;
    if !output.status.success() {
        // Hundreds of lines that only matter now.
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        bail!("apt-get {} failed ({}):\n{}", arguments[0], output.status, said.concat().trim_end());
    }
    Ok(())
}
