//! A packet is judged by every process that holds its socket, whatever kind of socket it is and however they came by it.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use harness::counter::Place;
use harness::{Actor, Counter, LIMIT, Ns};

use crate::pair::{Pair, STANCES, Stance};

/// Each of these holds with the probe and, more slowly, without.
macro_rules! with_and_without_probe {
    ($($name:ident)+) => {
        mod probe {
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name(&[]) })+
        }
        mod no_probe {
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name(&["--no-probe"]) })+
        }
    };
}

with_and_without_probe! {
    udp udp_lite the_mapped_wildcard echo_and_raw_sockets tcp listeners datagrams_to_a_bound_socket accepted_connections
    prefork_workers ports_shared_by_two_programs the_same_port_elsewhere high_descriptors shared_by_fork
    inherited_over_exec passed_over_a_unix_socket closed_by_a_denied_holder shared_connections become_another_program icmp_errors
    fire_and_forget open_before_the_daemon open_before_the_rule one_path_in_two_mount_namespaces by_other_threads
    shared_by_other_threads
}

// --- kinds of sockets -----------------------------------------------------------------------------------------------

/// The allowed program's datagrams arrive, the denied one's do not, under both stances. Each case: what the actor is, and
/// how its packets are counted.
fn datagrams_of(pair: &Pair, daemon: &[&str], cases: &[(&[&str], &str)]) -> Result<()> {
    pair.world.queue_output()?;
    let _daemon = pair.world.daemon(daemon)?;
    for stance in STANCES {
        pair.take("OUTPUT", stance)?;
        for (arguments, expression) in cases {
            let what = format!("{stance:?} {arguments:?}");
            let arrived = pair.world.count(expression)?;
            // One after the other: raw sockets of both at once would both be owners.
            let send = |program: &Path, step: &str| -> Result<()> {
                let mut actor = pair.start(program, arguments)?;
                actor.step(step)?;
                pair.world.wait_queues_empty(Ns::Local)?;
                ensure!(actor.finish()?.success());
                Ok(())
            };
            send(&pair.good, "send 2")?;
            pair.exactly(&arrived, 2, &what)?;
            send(&pair.evil, "send 3")?;
            send(&pair.good, "send")?;
            pair.exactly(&arrived, 1, &what)?;
        }
    }
    Ok(())
}

fn udp(daemon: &[&str]) -> Result<()> {
    let pair = Pair::new("udp")?;
    // Somebody listens, or the second datagram of a connected socket would meet the ICMP answer to the first.
    let _sink = pair.world.udp_sink(4000)?;
    let (to4, to6) = (pair.to4(4000), pair.to6(4000));
    datagrams_of(
        &pair,
        daemon,
        &[
            (&["udp", &to4], "ip saddr 198.51.100.1 udp dport 4000"),
            (&["udp", &to4, "--connect"], "ip saddr 198.51.100.1 udp dport 4000"),
            (&["udp", &to4, "--v4-on-v6"], "ip saddr 198.51.100.1 udp dport 4000"),
            (&["udp", &to4, "--v4-on-v6", "--connect"], "ip saddr 198.51.100.1 udp dport 4000"),
            (&["udp", &to4, "--bind", "0.0.0.0:4001"], "udp sport 4001"),
            (&["udp", &to4, "--bind", "198.51.100.1:4002"], "udp sport 4002"),
            (&["udp", &to6], "ip6 nexthdr udp"),
            (&["udp", &to6, "--connect"], "ip6 nexthdr udp"),
            (&["udp", &to6, "--bind", "[fd00:af:0:1::1]:4003"], "udp sport 4003"),
        ],
    )
}

fn udp_lite(daemon: &[&str]) -> Result<()> {
    let pair = Pair::new("udplite")?;
    let (to4, to6) = (pair.to4(4000), pair.to6(4000));
    if let Err(error) = pair.start(&pair.good, &["udplite", &to4]) {
        ensure!(format!("{error:#}").contains("not supported"), "{error:#}");
        eprintln!("skipping: this kernel has no UDP-Lite");
        return Ok(());
    }
    datagrams_of(
        &pair,
        daemon,
        &[
            (&["udplite", &to4], "ip protocol udplite"),
            (&["udplite", &to4, "--v4-on-v6"], "ip protocol udplite"),
            (&["udplite", &to6], "ip6 nexthdr udplite"),
        ],
    )
}

fn echo_and_raw_sockets(daemon: &[&str]) -> Result<()> {
    let pair = Pair::new("echo and raw")?;
    pair.world.namespace(Ns::Local).sysctl("net/ipv4/ping_group_range", "0 2147483647")?;
    let (peer4, peer6) = (pair.world.peer4().to_string(), pair.world.peer6().to_string());
    datagrams_of(
        &pair,
        daemon,
        &[
            (&["ping", &peer4], "icmp type echo-request"),
            (&["ping", &peer6], "icmpv6 type echo-request"),
            (&["raw", &peer4, "253"], "ip protocol 253"),
            (&["raw", &peer6, "253"], "ip6 nexthdr 253"),
            (&["raw", &peer4, "89"], "ip protocol 89"),
            (&["raw", &peer6, "47"], "ip6 nexthdr gre"),
        ],
    )
}

fn tcp(daemon: &[&str]) -> Result<()> {
    let pair = Pair::new("tcp")?;
    let _server = pair.world.tcp_echo(7)?;
    pair.world.queue_output()?;
    let _daemon = pair.world.daemon(daemon)?;
    let (to4, to6) = (pair.to4(7), pair.to6(7));
    // Without a SYN nothing else of a connection can follow; and nothing of the allowed one's matches later.
    let v4 = pair.world.count("ip saddr 198.51.100.1 tcp dport 7 tcp flags & syn == syn")?;
    let v6 = pair.world.count("ip6 saddr fd00:af:0:1::1 tcp dport 7 tcp flags & syn == syn")?;
    for stance in STANCES {
        pair.take("OUTPUT", stance)?;
        for (arguments, arrived) in
            [(vec!["tcp", &to4], &v4), (vec!["tcp", &to4, "--v4-on-v6"], &v4), (vec!["tcp", &to6], &v6)]
        {
            let mut good = pair.start(&pair.good, &with(&arguments, &["--timeout", "20000"]))?;
            converse(&mut good)?;
            ensure!(arrived.delta()? > 0, "{stance:?} {arguments:?}");
            let mut evil = pair.start(&pair.evil, &with(&arguments, &["--later", "--timeout", "100"]))?;
            evil.step("connect").expect_err("no answer to what never arrived");
            pair.silent(arrived)?;
        }
    }
    Ok(())
}

fn with<'a>(arguments: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [arguments, more].concat()
}

/// One round trip to an echo server.
fn converse(actor: &mut Actor) -> Result<()> {
    actor.step("send")?;
    ensure!(actor.step("recv")?.starts_with('5'));
    Ok(())
}

// --- serving --------------------------------------------------------------------------------------------------------

/// A client in the peer.
fn client(pair: &Pair, to: &str, timeout: &str) -> Result<Actor> {
    pair.world.actor(Ns::Peer, &["tcp", to, "--later", "--timeout", timeout])
}

/// Where a socket may be bound, and where a packet for it may go.
const BINDINGS: &[(&str, &str)] = &[
    ("0.0.0.0:4000", "198.51.100.1:4000"),
    ("198.51.100.1:4000", "198.51.100.1:4000"),
    ("[::]:4000", "198.51.100.1:4000"),
    ("[::]:4000", "[fd00:af:0:1::1]:4000"),
];

/// IPv4's wildcard address on an IPv6 socket.
const MAPPED_WILDCARD: &[(&str, &str)] = &[("[::ffff:0.0.0.0]:4000", "198.51.100.1:4000")];

fn listeners(daemon: &[&str]) -> Result<()> {
    listeners_at(BINDINGS, daemon)
}

fn datagrams_to_a_bound_socket(daemon: &[&str]) -> Result<()> {
    datagrams_to(BINDINGS, daemon)
}

fn the_mapped_wildcard(daemon: &[&str]) -> Result<()> {
    listeners_at(MAPPED_WILDCARD, daemon)?;
    datagrams_to(MAPPED_WILDCARD, daemon)
}

/// An answer to a SYN for port 4000, be it a refusal.
const ANSWER: &str = "tcp sport 4000 tcp flags & (syn | rst) != 0";

fn listeners_at(bindings: &[(&str, &str)], daemon: &[&str]) -> Result<()> {
    let pair = Pair::new("listeners")?;
    pair.world.queue_input()?;
    let _daemon = pair.world.daemon(daemon)?;
    let answered = pair.world.count(ANSWER)?;
    for stance in STANCES {
        pair.take("INPUT", stance)?;
        for (at, to) in bindings {
            let what = format!("{stance:?} {at} {to}");
            let mut server = pair.start(&pair.good, &["serve-tcp", at, "--timeout", "20000"])?;
            let mut visitor = client(&pair, to, "20000")?;
            visitor.step("connect").context(what.clone())?;
            server.step("accept")?;
            visitor.step("send")?;
            ensure!(server.step("recv")?.starts_with('5'), "{what}");
            ensure!(visitor.finish()?.success() && server.finish()?.success());
            ensure!(answered.delta()? > 0, "{what}");

            let _server = pair.start(&pair.evil, &["serve-tcp", at])?;
            client(&pair, to, "100")?.step("connect").expect_err("a SYN that is dropped has no answer");
            pair.silent(&answered)?;
        }
    }
    Ok(())
}

fn datagrams_to(bindings: &[(&str, &str)], daemon: &[&str]) -> Result<()> {
    let pair = Pair::new("bound")?;
    pair.world.queue_input()?;
    let _daemon = pair.world.daemon(daemon)?;
    let delivered = pair.world.count_at(Ns::Local, Place::Delivered, "udp dport 4000")?;
    for stance in STANCES {
        pair.take("INPUT", stance)?;
        for (at, to) in bindings {
            let what = format!("{stance:?} {at} {to}");
            let mut sender = pair.world.actor(Ns::Peer, &["udp", to])?;
            let evil = pair.start(&pair.evil, &["udp-bind", at])?;
            sender.step("send 3")?;
            pair.world.wait_queues_empty(Ns::Local)?;
            drop(evil);
            let mut good = pair.start(&pair.good, &["udp-bind", at])?;
            sender.step("send")?;
            good.step("recv").context(what.clone())?;
            pair.exactly(&delivered, 1, &what)?;
        }
    }
    Ok(())
}

/// A server with one connection: the server, its client.
fn connected(pair: &Pair, program: &Path) -> Result<(Actor, Actor)> {
    connected_at(pair, program, "0.0.0.0:4000")
}

fn connected_at(pair: &Pair, program: &Path, at: &str) -> Result<(Actor, Actor)> {
    let mut server = pair.start(program, &["serve-tcp", at, "--timeout", "20000"])?;
    let mut visitor = client(pair, "198.51.100.1:4000", "20000")?;
    visitor.step("connect")?;
    server.step("accept")?;
    Ok((server, visitor))
}

fn accepted_connections(daemon: &[&str]) -> Result<()> {
    let pair = Pair::new("accepted")?;
    pair.world.queue_output()?;
    pair.world.queue_input()?;
    let _daemon = pair.world.daemon(daemon)?;
    let replies = pair.world.count("tcp sport 4000 tcp flags & (psh | ack) == psh | ack")?;
    let requests =
        pair.world.count_at(Ns::Local, Place::Delivered, "tcp dport 4000 tcp flags & (psh | ack) == psh | ack")?;
    for stance in STANCES {
        let (mut server, mut visitor) = connected(&pair, &pair.evil)?;
        let (mut good, mut friend) = {
            // The port is free again for another listener: the first one's was closed by its `accept`.
            let (server, visitor) = connected(&pair, &pair.good)?;
            (server, visitor)
        };
        for (from, to) in [(&mut server, &mut visitor), (&mut good, &mut friend)] {
            from.step("send")?;
            to.step("recv")?;
            to.step("send")?;
            from.step("recv")?;
        }
        ensure!(replies.delta()? > 0 && requests.delta()? > 0);

        pair.take("OUTPUT", stance)?;
        server.step("send 3")?;
        pair.silent(&replies)?;
        good.step("send")?;
        friend.step("recv")?;
        pair.no_rules("OUTPUT")?;
        // The data was kept by the kernel, which sends it again.
        visitor.step("recv")?;
        ensure!(replies.delta()? > 0 && requests.total()? > 0);

        requests.delta()?;
        pair.take("INPUT", stance)?;
        visitor.step("send 3")?;
        pair.silent(&requests)?;
        friend.step("send")?;
        good.step("recv")?;
        pair.no_rules("INPUT")?;
        server.step("recv")?;
        for actor in [&mut visitor, &mut friend, &mut server, &mut good] {
            actor.finish()?;
        }
        pair.settle()?;
    }
    Ok(())
}

fn prefork_workers(daemon: &[&str]) -> Result<()> {
    let pair = Pair::new("prefork")?;
    pair.world.queue_output()?;
    pair.world.queue_input()?;
    let _daemon = pair.world.daemon(daemon)?;
    let answered = pair.world.count(ANSWER)?;
    for stance in STANCES {
        for chain in ["INPUT", "OUTPUT"] {
            pair.take(chain, stance)?;
        }
        let mut server = pair.start(&pair.good, &["serve-tcp", "0.0.0.0:4000", "--timeout", "20000"])?;
        server.step("fork")?;
        let mut visitor = client(&pair, "198.51.100.1:4000", "20000")?;
        visitor.step("connect")?;
        server.step("child accept")?;
        visitor.step("send")?;
        ensure!(server.step("child recv")?.starts_with('5'));
        server.step("child send")?;
        ensure!(visitor.step("recv")?.starts_with('5'));
        visitor.finish()?;
        server.step("release")?;
        ensure!(answered.delta()? > 0);

        // A worker made of something else holds the listener too, and might take the connection.
        server.step(&format!("share {}", pair.evil.display()))?;
        client(&pair, "198.51.100.1:4000", "100")?.step("connect").expect_err("one holder is denied");
        pair.silent(&answered)?;
        server.step("release")?;
        client(&pair, "198.51.100.1:4000", "20000")?.step("connect")?;
        drop(server);

        let mut server = pair.start(&pair.evil, &["serve-tcp", "0.0.0.0:4000"])?;
        server.step("fork")?;
        server.step("close")?;
        pair.world.wait_queues_empty(Ns::Local)?;
        answered.delta()?;
        client(&pair, "198.51.100.1:4000", "100")?.step("connect").expect_err("its only holder is denied");
        pair.silent(&answered)?;
    }
    Ok(())
}

fn ports_shared_by_two_programs(daemon: &[&str]) -> Result<()> {
    let pair = Pair::new("reuseport")?;
    pair.world.queue_output()?;
    pair.world.queue_input()?;
    let _daemon = pair.world.daemon(daemon)?;
    let delivered = pair.world.count_at(Ns::Local, Place::Delivered, "udp dport 4000")?;
    let arrived = pair.world.count("udp sport 4000")?;
    let answered = pair.world.count(ANSWER)?;
    let _sink = pair.world.udp_sink(9)?;
    let to = pair.to4(9);
    for stance in STANCES {
        for chain in ["INPUT", "OUTPUT"] {
            pair.take(chain, stance)?;
        }
        let what = format!("{stance:?}");
        let mut sender = pair.world.actor(Ns::Peer, &["udp", "198.51.100.1:4000", "--bind", "198.51.100.2:9999"])?;
        let mut good = pair.start(&pair.good, &["udp", &to, "--bind", "0.0.0.0:4000", "--reuseport"])?;
        sender.step("send")?;
        good.step("recv")?;
        good.step("send")?;
        pair.exactly(&delivered, 1, &what)?;
        pair.exactly(&arrived, 1, &what)?;
        let mut evil = pair.start(&pair.evil, &["udp-bind", "0.0.0.0:4000", "--reuseport"])?;
        sender.step("send 4")?;
        good.step("send 2")?;
        pair.world.wait_queues_empty(Ns::Local)?;
        evil.finish()?;
        sender.step("send")?;
        good.step("recv")?;
        good.step("send")?;
        pair.exactly(&delivered, 1, &what)?;
        pair.exactly(&arrived, 1, &what)?;

        let _good = pair.start(&pair.good, &["serve-tcp", "0.0.0.0:4000", "--reuseport"])?;
        client(&pair, "198.51.100.1:4000", "20000")?.step("connect")?;
        ensure!(answered.delta()? > 0);
        let mut evil = pair.start(&pair.evil, &["serve-tcp", "0.0.0.0:4000", "--reuseport"])?;
        pair.world.wait_queues_empty(Ns::Local)?;
        answered.delta()?;
        client(&pair, "198.51.100.1:4000", "100")?.step("connect").expect_err("the denied one might be chosen");
        pair.silent(&answered)?;
        evil.finish()?;
        client(&pair, "198.51.100.1:4000", "20000")?.step("connect")?;
    }
    Ok(())
}

/// A denied program's socket with the same port is nobody's co-owner if it is of another protocol, or if it is a TCP
/// socket at another address.
fn the_same_port_elsewhere(daemon: &[&str]) -> Result<()> {
    let pair = Pair::new("same port")?;
    pair.world.queue_output()?;
    pair.world.queue_input()?;
    let _daemon = pair.world.daemon(daemon)?;
    let _sink = pair.world.udp_sink(9)?;
    let to = pair.to4(9);
    let (arrived, answered) = (pair.world.count("udp sport 4000")?, pair.world.count(ANSWER)?);
    for stance in STANCES {
        for chain in ["INPUT", "OUTPUT"] {
            pair.take(chain, stance)?;
        }
        let what = format!("{stance:?}");
        let elsewhere = pair.start(&pair.evil, &["serve-tcp", "127.0.0.1:4000"])?;
        let mut good = pair.start(&pair.good, &["udp", &to, "--bind", "198.51.100.1:4000"])?;
        good.step("send 2")?;
        pair.exactly(&arrived, 2, &what)?;
        let (server, mut visitor) = connected_at(&pair, &pair.good, "198.51.100.1:4000")?;
        ensure!(visitor.finish()?.success());
        drop((elsewhere, good, server));
        ensure!(answered.delta()? > 0);

        // And the other way round.
        let _elsewhere = pair.start(&pair.good, &["serve-tcp", "127.0.0.1:4000"])?;
        let mut evil = pair.start(&pair.evil, &["udp", &to, "--bind", "198.51.100.1:4000"])?;
        evil.step("send 2")?;
        pair.silent(&arrived)?;
        let _server = pair.start(&pair.evil, &["serve-tcp", "198.51.100.1:4000"])?;
        client(&pair, "198.51.100.1:4000", "100")?.step("connect").expect_err("it is the denied one's");
        pair.silent(&answered)?;
    }
    Ok(())
}

// --- holders --------------------------------------------------------------------------------------------------------

fn high_descriptors(daemon: &[&str]) -> Result<()> {
    let pair = Pair::new("descriptors")?;
    pair.world.queue_output()?;
    let _daemon = pair.world.daemon(daemon)?;
    let _sink = pair.world.udp_sink(9)?;
    let to = pair.to4(9);
    let arrived = pair.world.count("udp dport 9")?;
    let start = |program: &Path| {
        // The usual limit is 1024.
        let program = program.to_str().context("path")?;
        pair.start(Path::new("prlimit"), &["--nofile=8192:8192", program, "udp", &to])
    };
    for stance in STANCES {
        pair.take("OUTPUT", stance)?;
        let (mut good, mut evil) = (start(&pair.good)?, start(&pair.evil)?);
        // Each move duplicates the descriptor and closes the former: the socket stays open throughout.
        for descriptor in ["300", "5000"] {
            let what = format!("{stance:?} {descriptor}");
            for actor in [&mut good, &mut evil] {
                ensure!(actor.step(&format!("fd {descriptor}"))? == descriptor);
            }
            evil.step("send 3")?;
            pair.world.wait_queues_empty(Ns::Local)?;
            good.step("send 2")?;
            pair.exactly(&arrived, 2, &what)?;
        }
    }
    Ok(())
}

fn shared_by_fork(daemon: &[&str]) -> Result<()> {
    let pair = Pair::new("fork")?;
    pair.world.queue_output()?;
    let _daemon = pair.world.daemon(daemon)?;
    let _sink = pair.world.udp_sink(9)?;
    let to = pair.to4(9);
    let arrived = pair.world.count("udp dport 9")?;
    for stance in STANCES {
        pair.take("OUTPUT", stance)?;
        let mut evil = pair.start(&pair.evil, &["udp", &to])?;
        evil.step("send")?;
        evil.step("fork")?;
        evil.step("child send 2")?;
        evil.step("close")?;
        evil.step("child send 2")?;
        pair.world.wait_queues_empty(Ns::Local)?;
        // Without the probe a holder that is gone before its packet is judged cannot be named: one step at a time.
        let what = format!("{stance:?}");
        let mut good = pair.start(&pair.good, &["udp", &to])?;
        for steps in [&["send"][..], &["fork", "child send", "send"], &["close", "child send", "child send"]] {
            for step in steps {
                good.step(step)?;
            }
            let sent = steps.iter().filter(|step| step.ends_with("send")).count();
            pair.exactly(&arrived, sent as u64, &what)?;
        }
    }
    Ok(())
}

/// A program gives its socket to another, by the step `way`. One denied holder is enough to drop what any of them sends,
/// for as long as it holds the socket.
fn given(way: &str, daemon: &[&str]) -> Result<()> {
    let pair = Pair::new(way)?;
    pair.world.queue_output()?;
    let _daemon = pair.world.daemon(daemon)?;
    let _sink = pair.world.udp_sink(9)?;
    let to = pair.to4(9);
    let arrived = pair.world.count("udp dport 9")?;
    for stance in STANCES {
        pair.take("OUTPUT", stance)?;
        for connect in [&["--connect"][..], &[]] {
            let what = format!("{stance:?} {connect:?}");
            let mut good = pair.start(&pair.good, &with(&["udp", &to], connect))?;
            good.step("send")?;
            pair.exactly(&arrived, 1, &what)?;
            good.step(&format!("{way} {}", pair.evil.display()))?;
            good.step("send 2")?;
            good.step("child send 2")?;
            pair.world.wait_queues_empty(Ns::Local)?;
            good.step("release")?;
            good.step("send")?;
            pair.exactly(&arrived, 1, &what)?;
            // The one who opened it is not the one who counts.
            good.step(&format!("{way} {}", pair.evil.display()))?;
            good.step("close")?;
            good.step("child send 2")?;
            pair.world.wait_queues_empty(Ns::Local)?;
        }
    }
    Ok(())
}

/// Sends again until a datagram arrives. A packet may be as old as what its sender was before an exec, so the first ones of
/// a program that was started with an open socket may be dropped; later ones may not.
fn gets_through(pair: &Pair, actor: &mut Actor, send: &str, arrived: &Counter<'_>) -> Result<()> {
    for _ in 0..10 {
        actor.step(send)?;
        pair.world.wait_queues_empty(Ns::Local)?;
        if arrived.delta()? > 0 {
            return Ok(());
        }
    }
    bail!("ten datagrams were dropped")
}

/// A denied program opens a socket, gives it to an allowed one and closes its own descriptor, but lives on.
fn closed_by_a_denied_holder(daemon: &[&str]) -> Result<()> {
    let pair = Pair::new("closed")?;
    pair.world.queue_output()?;
    let _daemon = pair.world.daemon(daemon)?;
    let _sink = pair.world.udp_sink(9)?;
    let to = pair.to4(9);
    let arrived = pair.world.count("udp dport 9")?;
    for stance in STANCES {
        pair.take("OUTPUT", stance)?;
        for way in ["share", "pass"] {
            let mut evil = pair.start(&pair.evil, &["udp", &to])?;
            evil.step("send")?;
            evil.step(&format!("{way} {}", pair.good.display()))?;
            evil.step("child send 2")?;
            pair.world.wait_queues_empty(Ns::Local)?;
            pair.exactly(&arrived, 0, "while the denied one holds it")?;
            evil.step("close")?;
            gets_through(&pair, &mut evil, "child send", &arrived).with_context(|| format!("{stance:?} {way}"))?;
        }
    }
    Ok(())
}

fn inherited_over_exec(daemon: &[&str]) -> Result<()> {
    given("share", daemon)
}

fn passed_over_a_unix_socket(daemon: &[&str]) -> Result<()> {
    given("pass", daemon)
}

fn shared_connections(daemon: &[&str]) -> Result<()> {
    let pair = Pair::new("connection")?;
    pair.world.queue_output()?;
    let _daemon = pair.world.daemon(daemon)?;
    let _server = pair.world.tcp_echo(7)?;
    for stance in STANCES {
        pair.take("OUTPUT", stance)?;
        for way in ["share", "pass"] {
            let (mut good, arrived) = connection(&pair)?;
            good.step(&format!("{way} {}", pair.evil.display()))?;
            pair.world.wait_queues_empty(Ns::Local)?;
            ensure!(arrived.delta()? > 0, "{stance:?} {way}");
            good.step("send")?;
            pair.silent(&arrived)?;
            good.step("release")?;
            // What was written meanwhile was kept by the kernel, which sends it again. (Had the other written something, it
            // would be an owner for ever: see `bypasses/hand_over.rs`.)
            good.step("recv").with_context(|| format!("{stance:?} {way}"))?;
            ensure!(arrived.delta()? > 0, "{stance:?} {way}");
        }
    }
    Ok(())
}

/// An allowed program with a connection to the echo server, and a count of its segments that has counted.
fn connection(pair: &Pair) -> Result<(Actor, Counter<'_>)> {
    let mut actor = pair.start(&pair.good, &["tcp", &pair.to4(7), "--timeout", "20000"])?;
    let arrived = pair.world.count(&format!("tcp dport 7 tcp sport {}", actor.step("port")?))?;
    converse(&mut actor)?;
    Ok((actor, arrived))
}

fn become_another_program(daemon: &[&str]) -> Result<()> {
    let pair = Pair::new("exec")?;
    pair.world.queue_output()?;
    let _daemon = pair.world.daemon(daemon)?;
    let _server = pair.world.tcp_echo(7)?;
    let _sink = pair.world.udp_sink(9)?;
    let to = pair.to4(9);
    let datagrams = pair.world.count("udp dport 9")?;
    for stance in STANCES {
        let what = format!("{stance:?}");
        pair.take("OUTPUT", stance)?;
        let mut one = pair.start(&pair.good, &["udp", &to])?;
        one.step("send")?;
        pair.exactly(&datagrams, 1, &what)?;
        one.step(&format!("exec {}", pair.evil.display()))?;
        one.step("send 2")?;
        pair.world.wait_queues_empty(Ns::Local)?;
        one.step(&format!("exec {}", pair.good.display()))?;
        gets_through(&pair, &mut one, "send", &datagrams).context(what.clone())?;

        let (mut two, segments) = connection(&pair)?;
        two.step(&format!("exec {}", pair.evil.display()))?;
        pair.world.wait_queues_empty(Ns::Local)?;
        ensure!(segments.delta()? > 0, "{what}");
        two.step("send")?;
        pair.silent(&segments)?;
    }
    Ok(())
}

// --- packets that no process sent just now --------------------------------------------------------------------------

fn icmp_errors(daemon: &[&str]) -> Result<()> {
    let pair = Pair::new("errors")?;
    // The peer answers each datagram to a closed port, not one a second.
    pair.world.namespace(Ns::Peer).sysctl("net/ipv4/icmp_ratelimit", "0")?;
    pair.world.namespace(Ns::Peer).sysctl("net/ipv6/icmp/ratelimit", "0")?;
    pair.world.queue_input()?;
    let _daemon = pair.world.daemon(daemon)?;
    let arrived = |expression| pair.world.count_at(Ns::Local, Place::Arrived, expression);
    let delivered = |expression| pair.world.count_at(Ns::Local, Place::Delivered, expression);
    for (to, expression) in
        [(pair.to4(4000), "icmp type destination-unreachable"), (pair.to6(4000), "icmpv6 type destination-unreachable")]
    {
        let (arrived, delivered) = (arrived(expression)?, delivered(expression)?);
        for stance in STANCES {
            let what = format!("{stance:?} {to}");
            pair.take("INPUT", stance)?;
            let mut good = pair.start(&pair.good, &["udp", &to])?;
            good.step("send")?;
            pair.exactly(&arrived, 1, &what)?;
            pair.exactly(&delivered, 1, &what)?;
            let mut evil = pair.start(&pair.evil, &["udp", &to])?;
            evil.step("send 2")?;
            pair.exactly(&arrived, 2, &what)?;
            good.step("send")?;
            pair.exactly(&delivered, 1, &what)?;
            pair.exactly(&arrived, 1, &what)?;
        }
    }
    Ok(())
}

fn fire_and_forget(daemon: &[&str]) -> Result<()> {
    let pair = Pair::new("fire and forget")?;
    pair.world.queue_output()?;
    let _daemon = pair.world.daemon(daemon)?;
    let _sink = pair.world.udp_sink(9)?;
    let to = pair.to4(9);
    let evil = pair.evil.to_str().context("path")?;
    let arrived = pair.world.count("udp dport 9")?;
    for stance in STANCES {
        pair.take("OUTPUT", stance)?;
        for _ in 0..10 {
            pair.world.run(Ns::Local, &[evil, "udp-send", &to, "3"], LIMIT)?.ok()?;
        }
        pair.world.wait_queues_empty(Ns::Local)?;
        let mut good = pair.start(&pair.good, &["udp", &to])?;
        good.step("send 2")?;
        pair.exactly(&arrived, 2, &format!("{stance:?}"))?;
    }
    Ok(())
}

/// Bytes written to a connection that is then closed: far more than the receiver's window takes.
const MUCH: usize = 1 << 20;

/// A world in which the kernel takes [`MUCH`] from a writer at once and hands it over bit by bit.
fn slow_reader(label: &str) -> Result<Pair> {
    let pair = Pair::new(label)?;
    pair.world.namespace(Ns::Local).sysctl("net/ipv4/tcp_wmem", "4096 8388608 8388608")?;
    pair.world.namespace(Ns::Peer).sysctl("net/ipv4/tcp_rmem", "4096 16384 16384")?;
    pair.world.queue_output()?;
    pair.world.queue_input()?;
    Ok(pair)
}

#[test]
fn what_an_allowed_program_wrote_arrives_after_its_end() -> Result<()> {
    let pair = slow_reader("orphan")?;
    let _daemon = pair.world.daemon(&[])?;
    let to = pair.to4(4000);
    for stance in STANCES {
        for chain in ["INPUT", "OUTPUT"] {
            pair.take(chain, stance)?;
        }
        for how in ["close", "exit", "kill"] {
            let mut reader = pair.world.actor(Ns::Peer, &["serve-tcp", "0.0.0.0:4000", "--timeout", "20000"])?;
            let mut writer = pair.start(&pair.good, &["tcp", &to, "--timeout", "20000"])?;
            reader.step("accept")?;
            writer.step(&format!("put {MUCH}"))?;
            match how {
                "close" => drop(writer.step("close")?),
                "exit" => ensure!(writer.finish()?.success()),
                _ => ensure!(!writer.kill9()?.success()),
            }
            let read: usize = reader.step("drain").with_context(|| format!("{stance:?} {how}"))?.parse()?;
            ensure!(read == MUCH, "{stance:?} {how}: {read} bytes of {MUCH}");
            reader.finish()?;
            pair.settle().with_context(|| format!("{stance:?} {how}"))?;
        }
    }
    Ok(())
}

#[test]
fn what_a_denied_program_wrote_does_not_arrive_after_its_end() -> Result<()> {
    let pair = slow_reader("denied orphan")?;
    let _daemon = pair.world.daemon(&[])?;
    let to = pair.to4(4000);
    let arrived = pair.world.count("tcp dport 4000")?;
    for stance in STANCES {
        for denied_before_it_wrote in [true, false] {
            pair.no_rules("OUTPUT")?;
            let mut reader = pair.world.actor(Ns::Peer, &["serve-tcp", "0.0.0.0:4000", "--timeout", "100"])?;
            let mut writer = pair.start(&pair.evil, &["tcp", &to, "--timeout", "20000"])?;
            reader.step("accept")?;
            if denied_before_it_wrote {
                pair.take("OUTPUT", stance)?;
            }
            pair.world.wait_queues_empty(Ns::Local)?;
            if denied_before_it_wrote {
                ensure!(arrived.delta()? > 0);
            }
            writer.step(&format!("put {MUCH}"))?;
            ensure!(writer.finish()?.success());
            if !denied_before_it_wrote {
                pair.take("OUTPUT", stance)?;
                pair.world.wait_queues_empty(Ns::Local)?;
                ensure!(arrived.delta()? > 0);
            }
            // Reading opens the window, and what waits for it would come.
            reader.step("drain").expect_err("the end never comes");
            pair.silent(&arrived)?;
        }
    }
    Ok(())
}

/// SYN to the last ACK, from sockets in every state down to TIME_WAIT: nothing of an allowed program's connection is
/// dropped, whichever end closes first.
#[test]
fn connections_of_an_allowed_program_end_cleanly() -> Result<()> {
    let pair = Pair::new("time wait")?;
    let _server = pair.world.tcp_echo(7)?;
    pair.world.queue_output()?;
    pair.world.queue_input()?;
    let mut daemon = pair.world.daemon(&[])?;
    let to = pair.to4(7);
    for stance in STANCES {
        for chain in ["INPUT", "OUTPUT"] {
            pair.take(chain, stance)?;
        }
        for _ in 0..5 {
            let mut good = pair.start(&pair.good, &["tcp", &to, "--timeout", "20000"])?;
            converse(&mut good)?;
            // This end closes first and keeps the TIME_WAIT.
            good.step("close")?;
            pair.settle()?;
            ensure!(good.finish()?.success());

            // The other end closes first.
            let mut server = pair.start(&pair.good, &["serve-tcp", "0.0.0.0:4000", "--timeout", "20000"])?;
            let mut visitor = client(&pair, "198.51.100.1:4000", "20000")?;
            visitor.step("connect")?;
            server.step("accept")?;
            visitor.step("send")?;
            visitor.finish()?;
            ensure!(server.step("drain")? == "5");
            ensure!(server.finish()?.success());
            pair.settle()?;
        }
    }
    ensure!(daemon.stop()?.success());
    let dropped: Vec<_> = daemon
        .events()?
        .into_iter()
        .filter(|event| event["verdict"] == "DROP" && event["flow"]["protocol"] == "tcp")
        .collect();
    ensure!(dropped.is_empty(), "{dropped:#?}");
    Ok(())
}

// --- when and where -------------------------------------------------------------------------------------------------

fn open_before_the_daemon(daemon: &[&str]) -> Result<()> {
    for stance in STANCES {
        open_before(stance, daemon, true)?;
    }
    Ok(())
}

fn open_before_the_rule(daemon: &[&str]) -> Result<()> {
    for stance in STANCES {
        open_before(stance, daemon, false)?;
    }
    Ok(())
}

fn open_before(stance: Stance, arguments: &[&str], also_the_daemon: bool) -> Result<()> {
    let pair = Pair::new("open before")?;
    let _server = pair.world.tcp_echo(7)?;
    let _sink = pair.world.udp_sink(9)?;
    let mut daemon = None;
    if !also_the_daemon {
        pair.world.queue_output()?;
        daemon = Some(pair.world.daemon(arguments)?);
    }
    let (to7, to9) = (pair.to4(7), pair.to4(9));
    let open = |program: &Path| -> Result<(Actor, Actor)> {
        let mut stream = pair.start(program, &["tcp", &to7, "--timeout", "20000"])?;
        let mut datagrams = pair.start(program, &["udp", &to9, "--connect"])?;
        converse(&mut stream)?;
        datagrams.step("send")?;
        Ok((stream, datagrams))
    };
    let (mut good_stream, mut good_datagrams) = open(&pair.good)?;
    let (mut evil_stream, mut evil_datagrams) = open(&pair.evil)?;
    let port = evil_stream.step("port")?;
    let (segments, datagrams) =
        (pair.world.count(&format!("tcp dport 7 tcp sport {port}"))?, pair.world.count("udp dport 9")?);
    converse(&mut evil_stream)?;
    evil_datagrams.step("send")?;
    pair.exactly(&datagrams, 1, "before")?;
    if also_the_daemon {
        pair.world.queue_output()?;
        daemon = Some(pair.world.daemon(arguments)?);
    }
    pair.take("OUTPUT", stance)?;
    pair.world.wait_queues_empty(Ns::Local)?;
    ensure!(segments.delta()? > 0);
    evil_stream.step("send")?;
    evil_datagrams.step("send 3")?;
    pair.silent(&segments)?;
    converse(&mut good_stream)?;
    good_datagrams.step("send")?;
    pair.exactly(&datagrams, 1, &format!("{stance:?}"))?;
    drop(daemon);
    Ok(())
}

fn one_path_in_two_mount_namespaces(daemon: &[&str]) -> Result<()> {
    let pair = Pair::new("mounts")?;
    pair.world.queue_output()?;
    let _daemon = pair.world.daemon(daemon)?;
    let _sink = pair.world.udp_sink(9)?;
    let to = pair.to4(9);
    let arrived = pair.world.count("udp dport 9")?;
    // Each sees, at the path of the one, the other.
    let script = r#"mount --bind "$1" "$2" && exec "$2" udp "$3""#;
    let swapped = |seen: &Path, at: &Path| {
        let (seen, at) = (seen.to_str().context("path")?, at.to_str().context("path")?);
        let arguments = ["--mount", "--propagation", "private", "sh", "-c", script, "sh", seen, at, &to];
        pair.start(Path::new("unshare"), &arguments)
    };
    for stance in STANCES {
        let what = format!("{stance:?}");
        pair.take("OUTPUT", stance)?;
        let mut evil_as_good = swapped(&pair.evil, &pair.good)?;
        let mut good_as_evil = swapped(&pair.good, &pair.evil)?;
        let mut good = pair.start(&pair.good, &["udp", &to])?;
        let mut evil = pair.start(&pair.evil, &["udp", &to])?;
        evil_as_good.step("send 3")?;
        evil.step("send 3")?;
        pair.world.wait_queues_empty(Ns::Local)?;
        good_as_evil.step("send")?;
        good.step("send")?;
        pair.exactly(&arrived, 2, &what)?;
    }
    Ok(())
}

// --- threads ----------------------------------------------------------------------------------------------------------

/// Ways to have a socket that the first thread has not: it ended before the socket was made, or has other descriptors.
const THREADS: [&str; 3] = ["headless", "headless-twin", "apart"];

/// Programs older than the daemon, of which it knows only what it sees.
fn by_other_threads(daemon: &[&str]) -> Result<()> {
    let pair = Pair::new("threads")?;
    let (to, echo) = (pair.to4(9), pair.to4(7));
    let _servers = (pair.world.udp_sink(9)?, pair.world.tcp_echo(7)?);
    let mut actors = Vec::new();
    for way in THREADS {
        let udp = |program| pair.start(program, &[way, "udp", &to]);
        let tcp = |program, timeout| pair.start(program, &[way, "tcp", &echo, "--later", "--timeout", timeout]);
        for _ in STANCES {
            let evil = [udp(&pair.evil)?, tcp(&pair.evil, "100")?];
            actors.push((way, udp(&pair.good)?, tcp(&pair.good, "20000")?, evil));
        }
    }
    pair.world.queue_output()?;
    let _daemon = pair.world.daemon(daemon)?;
    let arrived = pair.world.count("udp dport 9")?;
    let connecting = pair.world.count("tcp dport 7 tcp flags & syn == syn")?;
    for stance in STANCES {
        pair.take("OUTPUT", stance)?;
        for way in THREADS {
            let index = actors.iter().position(|(is, ..)| *is == way).context("one for each stance")?;
            let (_, mut datagrams, mut connection, [mut evil, mut evil_connection]) = actors.remove(index);
            let what = format!("{stance:?} {way}");
            // Twice: the second time an answer may be kept.
            for _ in 0..2 {
                datagrams.step("send 2").context(what.clone())?;
                pair.exactly(&arrived, 2, &what)?;
                evil.step("send 2")?;
                pair.silent(&arrived).context(what.clone())?;
            }
            connection.step("connect").context(what.clone())?;
            converse(&mut connection).context(what.clone())?;
            ensure!(connecting.delta()? > 0, "{what}");
            evil_connection.step("connect").expect_err("no answer to what never arrived");
            pair.silent(&connecting).context(what)?;
        }
    }
    Ok(())
}

/// Two threads have the descriptors of an allowed program: they must not be taken for two references, of which the denied
/// program has one.
fn shared_by_other_threads(daemon: &[&str]) -> Result<()> {
    let pair = Pair::new("threads, shared")?;
    pair.world.queue_output()?;
    let _daemon = pair.world.daemon(daemon)?;
    let _servers = (pair.world.udp_sink(9)?, pair.world.tcp_echo(7)?);
    let arrived = pair.world.count("udp dport 9")?;
    for stance in STANCES {
        pair.take("OUTPUT", stance)?;
        for (way, step) in THREADS.into_iter().zip(["share", "pass", "share"]) {
            let what = format!("{stance:?} {way} {step}");
            let mut good = pair.start(&pair.good, &[way, "udp", &pair.to4(9)])?;
            good.step("send")?;
            pair.exactly(&arrived, 1, &what)?;
            good.step(&format!("{step} {}", pair.evil.display()))?;
            good.step("send 2")?;
            pair.silent(&arrived).context(what.clone())?;
            good.step("release")?;
            good.step("send")?;
            pair.exactly(&arrived, 1, &what)?;
        }
    }
    Ok(())
}
