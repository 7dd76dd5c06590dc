//! The verdict cache in the kernel: that it settles what it can, and nothing it may not. (That verdicts are the same with it and
//! without is for all other tests to tell, which run with it, and `cargo xtask test` runs those about owners and rules without
//! it too.)

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::{Actor, Daemon, LIMIT, Ns, Signal, World, kernel_cache};
use serde_json::Value;

use crate::forward::Host;
use crate::pair::{Pair, Stance};

/// Packets of a chain that were settled in the kernel, and that went to the queue.
fn settled(world: &World, ns: Ns, chain: &str) -> Result<(u64, u64)> {
    let status: Value = serde_json::from_str(&world.ctl_in(ns, &["status", "--json"])?.ok()?)?;
    let chains = status["kernel_cache"]["chains"].as_array().context("chains")?;
    let Some(found) = chains.iter().find(|found| found["chain"] == chain) else { return Ok((0, 0)) };
    let number = |name: &str| found[name].as_u64().context("a number");
    let missed = found["missed"].as_object().context("missed")?.values().filter_map(Value::as_u64).sum();
    Ok((number("accepted")? + number("dropped")?, missed))
}

/// What a test is about cannot be looked at.
fn is_off() -> bool {
    let is_off = !kernel_cache::is_wanted();
    if is_off {
        eprintln!("skipping: this run is without the cache");
    }
    is_off
}

/// A program that is judged whatever it sends: all its sockets are settled in the kernel, the first packet of each included.
#[test]
fn first_packets_stay_in_the_kernel() -> Result<()> {
    if is_off() {
        return Ok(());
    }
    let pair = Pair::new("first packets")?;
    pair.world.queue_output()?;
    let _daemon = pair.world.daemon(&[])?;
    let _server = pair.world.tcp_echo(7)?;
    pair.take("OUTPUT", Stance::DenyEvil)?;
    let mut good = pair.start(&pair.good, &["udp", &pair.to4(4000)])?;
    let arrived = pair.world.count("udp dport 4000")?;
    good.step("send 50")?;
    pair.exactly(&arrived, 50, "before there is an answer")?;
    let (_, before) = settled(&pair.world, Ns::Local, "OUTPUT")?;
    // Something on the machine may change meanwhile that throws all answers away: then some go to the daemon once more.
    good.step("send-close 500 0 patient")?;
    pair.exactly(&arrived, 500, "a socket for each")?;
    let (after, missed) = settled(&pair.world, Ns::Local, "OUTPUT")?;
    ensure!(after >= 400 && missed - before < 150, "{after} settled, {missed} missed, {before} before");
    // Connections too.
    let mut good = pair.start(&pair.good, &["tcp", &pair.to4(7)])?;
    good.step("converse 5")?;
    let (_, before) = settled(&pair.world, Ns::Local, "OUTPUT")?;
    good.step(&format!("connect-many 50 {}", pair.to4(7)))?;
    let (_, missed) = settled(&pair.world, Ns::Local, "OUTPUT")?;
    // SYN and ACK of each.
    ensure!(missed - before < 50, "{missed} missed, {before} before");
    Ok(())
}

/// Rules that ask where a packet goes: the next socket to the same destination is settled in the kernel, to another it is not.
#[test]
fn answers_hold_for_as_much_as_the_rules_ask() -> Result<()> {
    if is_off() {
        return Ok(());
    }
    let pair = Pair::new("destinations")?;
    pair.world.queue_output()?;
    let _daemon = pair.world.daemon(&[])?;
    pair.take("OUTPUT", Stance::DenyEvil)?;
    let digest = pair.world.sha256(&pair.good)?;
    let (allowed, denied) = (pair.world.count("udp dport 4000")?, pair.world.count("udp dport 4001")?);
    let mut good = pair.start(&pair.good, &["udp", &pair.to4(4001)])?;
    good.step("send")?;
    pair.exactly(&denied, 1, "without a rule")?;
    let rule = ["-A", "-c", "OUTPUT", "-v", "DROP", "--no-log", "--sng-hash", &digest, "-p", "udp", "--dport", "4001"];
    pair.world.ctl_ok(&rule)?;
    good.step(&format!("to {}", pair.to4(4000)))?;
    good.step("send 20")?;
    pair.exactly(&allowed, 20, "before")?;
    let (_, before) = settled(&pair.world, Ns::Local, "OUTPUT")?;
    good.step("send-close 100 0 patient")?;
    pair.exactly(&allowed, 100, "to the same destination")?;
    let (_, missed) = settled(&pair.world, Ns::Local, "OUTPUT")?;
    ensure!(missed - before < 20, "{missed} missed, {before} before");
    good.step(&format!("to {}", pair.to4(4001)))?;
    good.step("send 50")?;
    good.step("send-close 100 0 hasty")?;
    pair.silent(&denied)?;
    good.step(&format!("to {}", pair.to4(4000)))?;
    good.step("send 5")?;
    pair.exactly(&allowed, 5, "after")
}

/// Nobody is told of them: then the daemon needs not see them. All are counted for their rule.
#[test]
fn floods_of_forbidden_packets_stay_in_the_kernel() -> Result<()> {
    const PACKETS: u64 = 20_000;
    if is_off() {
        return Ok(());
    }
    let pair = Pair::new("flood")?;
    pair.world.queue_output()?;
    let _daemon = pair.world.daemon(&[])?;
    let digest = pair.world.sha256(&pair.evil)?;
    pair.world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "DROP", "--no-log", "--sng-hash", &digest])?;
    let arrived = pair.world.count("udp dport 4000")?;
    let mut good = pair.start(&pair.good, &["udp", &pair.to4(4000)])?;
    good.step("send")?;
    pair.exactly(&arrived, 1, "of an allowed program")?;
    let mut evil = pair.start(&pair.evil, &["udp", &pair.to4(4000)])?;
    evil.step(&format!("flood {PACKETS}"))?;
    pair.silent(&arrived)?;
    let (settled, missed) = settled(&pair.world, Ns::Local, "OUTPUT")?;
    ensure!(settled + missed == PACKETS + 1 && settled > PACKETS / 2, "{settled} settled, {missed} missed");
    let rules: Value = serde_json::from_str(&pair.world.ctl_ok(&["-L", "--json"])?)?;
    ensure!(rules.to_string().contains(&format!("\"packets\":{PACKETS}")), "{rules}");
    Ok(())
}

/// While an allowed program sends as fast as it can: from the moment a change is acknowledged, nothing of what it forbids arrives.
#[test]
fn a_change_of_the_rules_holds_from_its_acknowledgement_on() -> Result<()> {
    let pair = Pair::new("acknowledged")?;
    pair.world.queue_output()?;
    let mut daemon = pair.world.daemon(&[])?;
    let digest = pair.world.sha256(&pair.good)?;
    let arrived = pair.world.count("udp dport 4000")?;
    for _ in 0..10 {
        let mut good = pair.start(&pair.good, &["udp", &pair.to4(4000)])?;
        good.step("send 20")?;
        pair.exactly(&arrived, 20, "before")?;
        good.tell("flood 400000")?;
        pair.world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "DROP", "--no-log", "--sng-hash", &digest])?;
        // What was let go just before may be on its way: one round trip through the same queues later it is there.
        pair.world.wait_queues_empty(Ns::Local)?;
        arrived.delta()?;
        let after = arrived.delta()?;
        let ended = Instant::now() + Duration::from_millis(100);
        let mut more = after;
        while Instant::now() < ended {
            more += arrived.delta()?;
        }
        ensure!(more == 0, "{more} arrived after the change was acknowledged");
        good.kill9()?;
        pair.no_rules("OUTPUT")?;
    }
    ensure!(daemon.ended()?.is_none());
    Ok(())
}

/// Of a daemon that has ended no answer holds; of one that was stopped, none for longer than the lease.
#[test]
fn answers_end_with_the_daemon() -> Result<()> {
    if is_off() {
        return Ok(());
    }
    let pair = Pair::new("lease")?;
    pair.world.queue_output()?;
    let arrived = pair.world.count("udp dport 4000")?;
    let begin = || -> Result<(Daemon, Actor)> {
        let daemon = pair.world.daemon(&[])?;
        pair.take("OUTPUT", Stance::DenyEvil)?;
        let mut good = pair.start(&pair.good, &["udp", &pair.to4(4000)])?;
        good.step("send 20")?;
        pair.exactly(&arrived, 20, "before")?;
        Ok((daemon, good))
    };
    let (mut daemon, mut good) = begin()?;
    daemon.kill9()?;
    good.step("flood 1000")?;
    ensure!(arrived.delta()? == 0, "a killed daemon's answers were used");
    let (daemon, mut good) = begin()?;
    daemon.signal(Signal::STOP)?;
    let end = Instant::now() + LIMIT;
    // Half a second at most; what comes after waits for the daemon.
    while pair.world.queued(Ns::Local)? == 0 {
        ensure!(Instant::now() < end, "a stopped daemon's answers were used on and on");
        good.step("send")?;
    }
    arrived.delta()?;
    good.step("send 10")?;
    ensure!(arrived.delta()? == 0, "it was used again");
    daemon.signal(Signal::CONT)?;
    // Those that waited too.
    let deadline = Instant::now() + LIMIT;
    let mut counted = 0;
    while counted < 11 && Instant::now() < deadline {
        counted += arrived.delta()?;
    }
    ensure!(counted == 11, "{counted} arrived");
    Ok(())
}

/// The rules by hand call the same programs after the daemon was started anew, or killed.
#[test]
fn rules_outlive_the_daemon() -> Result<()> {
    if is_off() {
        return Ok(());
    }
    let pair = Pair::new("doors")?;
    pair.world.queue_output()?;
    let arrived = pair.world.count("udp dport 4000")?;
    let mut good = pair.start(&pair.good, &["udp", &pair.to4(4000)])?;
    for round in 0..4 {
        let mut daemon = pair.world.daemon(&[])?;
        pair.take("OUTPUT", Stance::DenyEvil)?;
        for times in [1, 50] {
            good.step(&format!("send {times}"))?;
            pair.exactly(&arrived, times, "with a daemon")?;
        }
        let (settled, missed) = settled(&pair.world, Ns::Local, "OUTPUT")?;
        ensure!(settled > 25, "round {round}: {settled} settled, {missed} missed");
        if round % 2 == 0 {
            daemon.stop()?
        } else {
            daemon.kill9()?
        };
    }
    Ok(())
}

#[test]
fn it_can_be_turned_off() -> Result<()> {
    let pair = Pair::new("off")?;
    pair.world.queue_output()?;
    let _daemon = pair.world.daemon(&["--kernel-cache", "off"])?;
    let said = pair.world.ctl_ok(&["status"])?;
    ensure!(said.contains("cache    none in the kernel: --kernel-cache off was given"), "{said}");
    Ok(())
}

/// What arrives: of connections, of connected sockets, and, through the loopback device, of any.
#[test]
fn incoming_packets() -> Result<()> {
    if is_off() {
        return Ok(());
    }
    let pair = Pair::new("incoming")?;
    pair.world.queue_input()?;
    let _daemon = pair.world.daemon(&[])?;
    let _server = pair.world.tcp_echo(7)?;
    pair.take("INPUT", Stance::DenyEvil)?;
    let mut good = pair.start(&pair.good, &["tcp", &pair.to4(7)])?;
    good.step("converse 50")?;
    let (settled_in, missed) = settled(&pair.world, Ns::Local, "INPUT")?;
    ensure!(settled_in >= 40, "{settled_in} settled, {missed} missed");
    // A program that may not: its connection is not even made, for it never gets an answer.
    let mut evil = pair.start(&pair.evil, &["tcp", &pair.to4(7), "--later", "--timeout", "300"])?;
    evil.step("connect").expect_err("no answer may come to it");
    Ok(())
}

/// What containers send is found by device and addresses, and as long as nobody has a raw socket.
#[test]
fn packets_of_containers() -> Result<()> {
    if is_off() {
        return Ok(());
    }
    let host = Host::new("containers")?;
    let container = host.container()?;
    host.iptables("FORWARD -i docker0 -j NFQUEUE --queue-num 0")?;
    let _daemon = host.daemon()?;
    let (good, evil) = (host.world.actor_copy("good")?, host.world.actor_copy("evil")?);
    host.ctl(&format!("-A -c OUTPUT -v DROP -n any --no-log --sng-hash {}", host.world.sha256(&evil)?))?;
    let arrived = host.world.count("udp dport 9")?;
    let to = format!("{}:9", host.world.peer4());
    let send = |program: &Path, times: u32| -> Result<Actor> {
        let mut actor = Actor::start(&container, program, &["udp", &to])?;
        for _ in 0..times {
            actor.step("send")?;
            host.world.wait_queues_empty(Ns::Router)?;
        }
        Ok(actor)
    };
    let mut sender = send(&good, 50)?;
    host.world.wait_queues_empty(Ns::Router)?;
    ensure!(arrived.delta()? == 50);
    let (kept, missed) = settled(&host.world, Ns::Router, "OUTPUT")?;
    ensure!(kept >= 40, "{kept} settled, {missed} missed");
    drop(send(&evil, 50)?);
    host.world.wait_queues_empty(Ns::Router)?;
    arrived.assert_silent()?;
    // Somebody could forge its packets now: all are looked at.
    let _raw = Actor::start(&container, &evil, &["raw", &host.world.peer4().to_string(), "253"])?;
    let (_, before) = settled(&host.world, Ns::Router, "OUTPUT")?;
    sender.step("send 10")?;
    host.world.wait_queues_empty(Ns::Router)?;
    let (_, missed) = settled(&host.world, Ns::Router, "OUTPUT")?;
    ensure!(missed >= before + 10, "{missed} missed, {before} before");
    Ok(())
}

/// Several processes that hold one connection: as long as all of them may send.
#[test]
fn shared_connections_stay_in_the_kernel() -> Result<()> {
    if is_off() {
        return Ok(());
    }
    let pair = Pair::new("shared")?;
    pair.world.queue_output()?;
    let _daemon = pair.world.daemon(&[])?;
    let _server = pair.world.tcp_echo(7)?;
    pair.take("OUTPUT", Stance::DenyEvil)?;
    let mut good = pair.start(&pair.good, &["tcp", &pair.to4(7)])?;
    good.step("fork")?;
    good.step("converse 5")?;
    let (_, before) = settled(&pair.world, Ns::Local, "OUTPUT")?;
    good.step("converse 50")?;
    good.step("child converse 50")?;
    let (kept, missed) = settled(&pair.world, Ns::Local, "OUTPUT")?;
    ensure!(missed - before < 20, "{kept} settled, {missed} missed, {before} before");
    // One who may not besides.
    let arrived = pair.world.count("tcp dport 7")?;
    good.step("child converse 1")?;
    ensure!(arrived.delta()? > 0);
    good.step(&format!("child pass {}", pair.evil.display()))?;
    good.step("send")?;
    pair.silent(&arrived)
}
