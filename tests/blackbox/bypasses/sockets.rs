//! Sockets made, and packets addressed, in ways that are easily overlooked.

use std::time::Duration;

use anyhow::{Context, Result};
use harness::{Actor, Ns};

use super::{ECHO, SINK, TIMES, TO_SINK, Trial, odd, repeat};

/// io_uring: no system call sends, with SQPOLL none at all is made, and a direct descriptor is in no table that /proc shows.
fn ring(kind: &str) -> Result<()> {
    let mut trial = Trial::new("ring")?;
    let mut evil = trial.sender(&trial.pair.evil)?;
    trial.never(TO_SINK, |_, times| repeat(&mut evil, "ring", times, kind))?;
    let mut good = trial.sender(&trial.pair.good)?;
    trial.always(TO_SINK, |_, times| repeat(&mut good, "ring", times, kind))
}

#[test]
fn a_ring_with_a_descriptor() -> Result<()> {
    ring("descriptor")
}

#[test]
fn a_ring_with_a_direct_descriptor() -> Result<()> {
    ring("direct")
}

#[test]
fn a_ring_that_is_polled() -> Result<()> {
    ring("descriptor-sqpoll")
}

#[test]
fn a_ring_that_is_polled_with_a_direct_descriptor() -> Result<()> {
    ring("direct-sqpoll")
}

/// Sockets of 32-bit system calls in a 64-bit process.
#[test]
fn a_socket_of_32_bit_calls() -> Result<()> {
    let mut trial = Trial::new("int 0x80")?;
    let mut evil = trial.sender(&trial.pair.evil)?;
    trial.never(TO_SINK, |_, times| repeat(&mut evil, "int80", times, ""))?;
    let mut good = trial.sender(&trial.pair.good)?;
    trial.always(TO_SINK, |_, times| repeat(&mut good, "int80", times, ""))
}

/// A mark that a firewall might use for what it has judged already.
#[test]
fn a_mark_of_ones_own() -> Result<()> {
    let mut trial = Trial::new("mark")?;
    let mut evil = trial.sender(&trial.pair.evil)?;
    trial.never(TO_SINK, |_, _| {
        for mark in (0..32).map(|bit| 1_u32 << bit).chain([u32::MAX, 0xdead_beef]) {
            evil.step(&format!("mark {mark}"))?;
            evil.step("send")?;
        }
        Ok(())
    })
}

/// One socket, another destination each time: hosts, a group, everybody.
#[test]
fn many_destinations_from_one_socket() -> Result<()> {
    const ADDRESSES: [&str; 5] = ["198.51.100.2", "198.51.100.4", "198.51.100.5", "198.51.100.255", "239.1.2.3"];
    let mut trial = Trial::new("destinations")?;
    for address in &ADDRESSES[1..3] {
        trial.pair.world.namespace(Ns::Peer).ip(&format!("addr add {address}/24 dev eth0"))?;
    }
    trial.pair.world.namespace(Ns::Local).ip("route add 239.0.0.0/8 dev eth0")?;
    let cycle = |actor: &mut Actor, times: u64| -> Result<()> {
        for address in ADDRESSES.iter().cycle().take(usize::try_from(times)?) {
            actor.step(&format!("to {address}:{SINK}"))?;
            actor.step("send").context(*address)?;
        }
        Ok(())
    };
    let (mut evil, mut good) = (trial.sender(&trial.pair.evil)?, trial.sender(&trial.pair.good)?);
    for address in ADDRESSES {
        let expression = format!("ip daddr {address} {TO_SINK}");
        trial.never(&expression, |_, times| cycle(&mut evil, times.max(5)))?;
    }
    trial.always(TO_SINK, |_, times| cycle(&mut good, times))?;
    let mut evil = trial.pair.start(&trial.pair.evil, &["udp", &format!("[ff15::1]:{SINK}")])?;
    trial.never("ip6 daddr ff15::1", |_, times| evil.step(&format!("send {times}")).map(drop))
}

/// IP_PKTINFO: a socket bound to one address sends from another, at which an allowed program has the same port.
#[test]
fn from_the_address_of_an_allowed_program() -> Result<()> {
    let mut trial = Trial::new("source")?;
    trial.pair.world.namespace(Ns::Local).ip("addr add 198.51.100.3/24 dev eth0")?;
    let to = trial.pair.to4(SINK);
    let mut evil = trial.pair.start(&trial.pair.evil, &["udp", &to, "--bind", "198.51.100.1:4001"])?;
    let good = trial.pair.start(&trial.pair.good, &["udp", &to, "--bind", "198.51.100.3:4001"])?;
    let from = "ip saddr 198.51.100.3 udp sport 4001 udp dport 9";
    let send = |actor: &mut Actor, times: u64| -> Result<()> {
        (0..times).try_for_each(|_| actor.step("send-from 198.51.100.3").map(drop))
    };
    trial.never(from, |_, times| send(&mut evil, times))?;
    drop((evil, good));
    let mut good = trial.pair.start(&trial.pair.good, &["udp", &to, "--bind", "198.51.100.1:4001"])?;
    trial.always(from, |_, times| send(&mut good, times))
}

/// A raw socket of the denied program makes datagrams that look like those of an allowed one, whose socket is open and for
/// which an answer is kept.
fn forged(label: &str, socket: &str, pace: &str, packet: &[u8]) -> Result<()> {
    let mut trial = Trial::new(label)?;
    // While the raw socket is open, it may have made every datagram: the allowed program's are dropped too.
    trial.alone = true;
    let arguments = ["udp", &trial.pair.to4(ECHO), "--bind", "198.51.100.1:4001"];
    let mut good = trial.pair.start(&trial.pair.good, &arguments)?;
    let mut evil = trial.sender(&trial.pair.evil)?;
    // What the allowed program sends has another length.
    trial.never("udp sport 4001 udp length 28", |_, times| {
        good.step("converse 1")?;
        repeat(&mut evil, "raw", times, &format!("{socket} {pace} {}", odd::hexadecimal(packet)))
    })
}

#[test]
fn datagrams_forged_by_a_raw_socket() -> Result<()> {
    forged("raw", "17", "patient", &odd::udp())
}

#[test]
fn datagrams_forged_by_a_raw_socket_that_is_closed_at_once() -> Result<()> {
    forged("raw hastily", "17", "hasty", &odd::udp())
}

#[test]
fn datagrams_forged_with_their_ip_header() -> Result<()> {
    forged("header", "255", "patient", &odd::ipv4(17, &odd::udp()))
}

#[test]
fn datagrams_forged_with_their_ip_header_by_a_socket_that_is_closed_at_once() -> Result<()> {
    forged("header hastily", "255", "hasty", &odd::ipv4(17, &odd::udp()))
}

#[test]
fn datagrams_forged_by_a_raw_socket_of_another_protocol() -> Result<()> {
    forged("other protocol", "253+header", "patient", &odd::ipv4(17, &odd::udp()))
}

/// The same for a connection.
#[test]
fn segments_forged_by_raw_sockets() -> Result<()> {
    let mut trial = Trial::new("segments")?;
    trial.alone = true;
    let _server = trial.pair.world.tcp_echo(7)?;
    let arguments = ["tcp", &trial.pair.to4(7), "--bind", "198.51.100.1:4001"];
    let mut good = trial.pair.start(&trial.pair.good, &arguments)?;
    good.step("converse 1")?;
    let mut evil = trial.sender(&trial.pair.evil)?;
    // Nobody else sets the urgent flag.
    for (socket, packet) in [("6", odd::tcp(0x30)), ("255", odd::ipv4(6, &odd::tcp(0x30)))] {
        for pace in ["patient", "hasty"] {
            trial
                .never("tcp sport 4001 tcp flags & urg == urg", |_, times| {
                    repeat(&mut evil, "raw", times, &format!("{socket} {pace} {}", odd::hexadecimal(&packet)))
                })
                .with_context(|| format!("{socket} {pace}"))?;
        }
    }
    Ok(())
}

/// A connection that is bound to a device may have the same ends as a later one of an allowed program that is bound to none.
#[test]
fn a_connection_with_the_ends_of_an_allowed_programs() -> Result<()> {
    /// The kernel repeats a SYN after a second, and has no event for that.
    const REPEATED: Duration = Duration::from_millis(3500);
    let mut trial = Trial::new("bound to a device")?;
    // The allowed program connects from the denied one's port without being told; else that would hold all of them.
    trial.pair.world.namespace(Ns::Local).sysctl("net/ipv4/ip_local_port_range", "40000 40000")?;
    let ports = [4000, 4001, 4002];
    let _servers = ports.map(|port| trial.pair.world.tcp_echo(port));
    let mut ports = ports.into_iter();
    trial.never("ip dscp 4 tcp dport 4000-4002 tcp flags & syn == syn", |pair, times| {
        let to = pair.to4(ports.next().context("a port")?);
        let mut evil = pair.start(&pair.evil, &["tcp", &to, "--later", "--device", "eth0", "--tos", "16"])?;
        evil.step("fast-open")?;
        pair.world.wait_queues_empty(Ns::Local)?;
        if times == TIMES {
            let mut good = pair.start(&pair.good, &["tcp", &to, "--later"])?;
            // That it can is not what this is about.
            let _ = good.step("connect");
            std::thread::sleep(REPEATED);
        }
        Ok(())
    })
}
