//! What the probe costs the machine: nanoseconds per operation, without it and with it, in turns.
//!
//! `cargo run --release -p syscall-probe --example overhead` (as root, on an otherwise idle machine). The figures are
//! medians of rounds; the probe watches the whole machine while this runs.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::time::Instant;

use anyhow::Context;
use nix::libc;
use syscall_probe::{Hook, Options, Probe};

const ROUNDS: usize = 11;

/// An operation, repeated as often as it is told.
type Operation = (&'static str, u32, Box<dyn FnMut(u32)>);

fn main() -> anyhow::Result<()> {
    // Packets stay inside a network namespace of this process.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("a network namespace (run as root)")?;
    let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().context("ip")?;
    anyhow::ensure!(up.success(), "ip link set lo up failed");
    // "Without" has all of it loaded and nothing attached, or fork would be seen to copy the loader's memory.
    let configurations = [
        ("without", Hook::ALL.to_vec()),
        ("with it", vec![]),
        ("sys-enter and sys-exit only", all_but(&[Hook::SysEnter, Hook::SysExit])),
        ("all but those two", vec![Hook::SysEnter, Hook::SysExit]),
    ];
    print!("{:28}", "ns per operation");
    configurations.iter().for_each(|(name, _)| print!("{name:>30}"));
    println!();
    for (name, times, mut operation) in operations()? {
        let mut samples = vec![Vec::new(); configurations.len()];
        for _ in 0..ROUNDS {
            for (index, (_, without)) in configurations.iter().enumerate() {
                let probe = Probe::load(&Options { object: None, without: without.clone() })?;
                samples[index].push(measure(&mut operation, times));
                drop(probe);
            }
        }
        let medians: Vec<f64> = samples.iter_mut().map(|rounds| median(rounds)).collect();
        print!("{name:28}");
        medians.iter().for_each(|with| print!("{:20.0} ({:+6.0})", with, with - medians[0]));
        println!();
    }
    Ok(())
}

fn all_but(kept: &[Hook]) -> Vec<Hook> {
    Hook::ALL.into_iter().filter(|hook| !kept.contains(hook)).collect()
}

fn measure(operation: &mut dyn FnMut(u32), times: u32) -> f64 {
    operation(times / 10);
    let start = Instant::now();
    operation(times);
    start.elapsed().as_nanos() as f64 / f64::from(times)
}

fn median(rounds: &mut [f64]) -> f64 {
    rounds.sort_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}

fn operations() -> anyhow::Result<Vec<Operation>> {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = receiver.local_addr()?;
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let (left, right) = UnixDatagram::pair()?;
    let mut file = File::create("/dev/null")?;
    Ok(vec![
        ("getppid", 1_000_000, Box::new(|times| (0..times).for_each(|_| call_getppid()))),
        ("write to /dev/null", 1_000_000, Box::new(move |times| (0..times).for_each(|_| drop(file.write(&[0]))))),
        ("mmap and munmap, rw", 200_000, Box::new(|times| (0..times).for_each(|_| map(libc::PROT_WRITE)))),
        ("mmap and munmap, rx", 100_000, Box::new(|times| (0..times).for_each(|_| map(libc::PROT_EXEC)))),
        (
            "UDP sendto, unconnected",
            100_000,
            Box::new(move |times| {
                let _keep = &receiver;
                (0..times).for_each(|_| drop(sender.send_to(&[0; 64], address)));
            }),
        ),
        (
            "unix send and receive",
            100_000,
            Box::new(move |times| (0..times).for_each(|_| drop((left.send(&[0]), right.recv(&mut [0]))))),
        ),
        (
            "UDP socket, bind, close",
            20_000,
            Box::new(|times| (0..times).for_each(|_| drop(UdpSocket::bind("127.0.0.1:0")))),
        ),
        ("fork, exit, wait", 1_000, Box::new(|times| (0..times).for_each(|_| fork()))),
    ])
}

fn call_getppid() {
    // SAFETY: no memory is involved.
    unsafe { libc::syscall(libc::SYS_getppid) };
}

fn map(protection: i32) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping that nothing else uses, and its removal.
    unsafe { libc::munmap(libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | protection, flags, -1, 0), 4096) };
}

fn fork() {
    // SAFETY: there is one thread, and the child does nothing but end.
    unsafe {
        match libc::fork() {
            0 => libc::_exit(0),
            child => libc::waitpid(child, std::ptr::null_mut(), 0),
        }
    };
}
