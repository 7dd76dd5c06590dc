//! REJECT: nothing arrives, and the program that sent it gets an error at once.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use harness::process::run;
use harness::{Actor, LIMIT, Ns, Server};

use crate::forward::Host;
use crate::pair::Pair;

/// Errors of the system calls, as bash and the actor tell them.
const REFUSED: &str = "refused";
const RESET: &str = "reset";

/// Connects, and tells how that ended: bash waits for a connection as long as the kernel does, minutes.
const CONNECT: &str = r#"exec 3<>"/dev/tcp/$0/$1""#;
/// Sends a datagram, and waits for an answer: after ten seconds the exit code is above 128.
const ASK: &str = r#"exec 3<>"/dev/udp/$0/$1" && echo hello >&3 && read -r -t 10 -u 3 line"#;

fn reject(pair: &Pair, program: &Path) -> Result<()> {
    pair.only_rule("OUTPUT", "ACCEPT", "REJECT", &pair.world.sha256(program)?)
}

#[test]
fn a_connection_is_refused_at_once() -> Result<()> {
    let pair = Pair::new("reject tcp")?;
    let world = &pair.world;
    let _server = world.tcp_echo(7)?;
    world.queue_output()?;
    for options in [&[][..], &["--no-probe"]] {
        let mut daemon = world.daemon(options)?;
        let arrived = world.count("tcp dport 7")?;
        // Another program is not concerned.
        let mut other = pair.start(&pair.good, &["tcp", &pair.to4(7)])?;
        other.step("converse 3")?;
        other.step("close")?;
        pair.settle()?;
        ensure!(arrived.delta()? > 0);
        reject(&pair, Path::new("/bin/bash"))?;
        for peer in [world.peer4().to_string(), world.peer6().to_string()] {
            let tried = world.run(Ns::Local, &["timeout", "10", "bash", "-c", CONNECT, &peer, "7"], LIMIT)?;
            ensure!(tried.code() == 1 && tried.stderr.contains(REFUSED), "{peer}: {tried}");
        }
        pair.silent(&arrived)?;
        pair.no_rules("OUTPUT")?;
        assert!(daemon.stop()?.success());
    }
    Ok(())
}

#[test]
fn a_datagram_is_unreachable_at_once() -> Result<()> {
    let pair = Pair::new("reject udp")?;
    let world = &pair.world;
    let _server = world.udp_echo(7)?;
    world.queue_output()?;
    let _daemon = world.daemon(&[])?;
    for (to, peer) in [(pair.to4(7), world.peer4()), (pair.to6(7), world.peer6())] {
        let arrived = world.count("udp dport 7")?;
        pair.start(&pair.good, &["udp", &to])?.step("converse 2")?;
        ensure!(arrived.delta()? == 2);
        reject(&pair, Path::new("/bin/bash"))?;
        let asked = world.run(Ns::Local, &["bash", "-c", ASK, &peer.to_string(), "7"], LIMIT)?;
        ensure!(asked.code() == 1 && asked.stderr.contains(REFUSED), "{asked}");
        pair.silent(&arrived)?;
        pair.no_rules("OUTPUT")?;
    }
    Ok(())
}

/// QUIC sends so. What is cut only when it leaves cannot be turned into an error: its socket is ended.
#[test]
fn datagrams_sent_many_at_once_are_an_error_too() -> Result<()> {
    let pair = Pair::new("reject many")?;
    let world = &pair.world;
    world.queue_output()?;
    let _daemon = world.daemon(&[])?;
    let (to4, to6) = (pair.to4(7), pair.to6(7));
    for options in
        [&["udp", &to4, "--connect"][..], &["udp", &to6, "--connect"], &["udp", &to4, "--v4-on-v6", "--connect"]]
    {
        let _server = world.udp_echo(7)?;
        let arrived = world.count("udp dport 7")?;
        let mut evil = pair.start(&pair.evil, options)?;
        evil.step("segmented 5000 1000")?;
        (0..5).try_for_each(|_| evil.step("recv").map(drop))?;
        // Between these namespaces they need not be cut at all.
        ensure!(arrived.delta()? > 0);
        reject(&pair, &pair.evil)?;
        evil.step("segmented 5000 1000")?;
        // It does not wait for what never comes.
        let told = evil.step("recv").err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(told.contains("abort"), "{options:?}: {told:?}");
        pair.silent(&arrived)?;
        pair.no_rules("OUTPUT")?;
    }
    Ok(())
}

#[test]
fn a_connection_under_way_is_reset() -> Result<()> {
    let pair = Pair::new("reset")?;
    let world = &pair.world;
    let _server = world.tcp_echo(7)?;
    world.queue_output()?;
    let _daemon = world.daemon(&[])?;
    // Little and much: what is cut into segments only later is turned back whole.
    for write in ["converse 1", "put 1000000"] {
        for to in [pair.to4(7), pair.to6(7)] {
            let mut evil = pair.start(&pair.evil, &["tcp", &to])?;
            evil.step("converse 2")?;
            reject(&pair, &pair.evil)?;
            let mut outcome = evil.step(write).map(drop);
            // The kernel may have taken all of it before the answer came.
            if outcome.is_ok() {
                outcome = evil.step("converse 1").map(drop);
            }
            let told = outcome.err().map(|error| format!("{error:#}")).unwrap_or_default();
            ensure!(told.to_lowercase().contains(RESET) || told.contains("pipe"), "{write} to {to}: {told:?}");
            pair.no_rules("OUTPUT")?;
        }
    }
    Ok(())
}

#[test]
fn a_container_gets_its_error_too() -> Result<()> {
    let host = Host::new("reject container")?;
    let container = host.container()?;
    let _server = Server::tcp_echo(host.world.namespace(Ns::Peer), 7)?;
    host.iptables("FORWARD -i docker0 -j NFQUEUE --queue-num 0")?;
    let _daemon = host.daemon()?;
    let digest = host.world.sha256(Path::new("/bin/bash"))?;
    let arrived = host.world.count("tcp dport 7")?;
    let mut other = Actor::start(
        &container,
        &host.world.programs().path("actor")?,
        &["tcp", &format!("{}:7", host.world.peer4())],
    )?;
    other.step("converse 1")?;
    other.step("close")?;
    host.world.wait_connections_closed(Ns::Peer)?;
    ensure!(arrived.delta()? > 0);
    host.ctl(&format!("-A -c OUTPUT -n any -v REJECT --sng-hash {digest}"))?;
    let peer = host.world.peer4().to_string();
    let mut connect = container.command("timeout");
    let tried = run(connect.args(["10", "bash", "-c", CONNECT, &peer, "7"]), LIMIT)?;
    ensure!(tried.code() == 1 && tried.stderr.contains("abort"), "{tried}");
    arrived.assert_silent()
}

/// The answer to a packet with a forged source would carry it out: the peer routes back whatever is sent to there.
#[test]
fn a_forged_source_gets_no_answer() -> Result<()> {
    const TIMES: u64 = 20;
    let pair = Pair::new("reject forged")?;
    let world = &pair.world;
    world.queue_output()?;
    let _daemon = world.daemon(&[])?;
    let std::net::IpAddr::V4(peer) = world.peer4() else { bail!("no IPv4") };
    // Whatever is addressed to nobody goes there too.
    world.namespace(Ns::Local).ip(&format!("route replace default via {peer}"))?;
    // IPv4 and UDP headers, by a raw socket that writes them itself: from where nobody is, to the peer.
    let datagram = format!("4500001c0000400040110000{}{}0400000700080000", hex(&NOBODY), hex(&peer.octets()));
    let out = world.count(&format!("ip saddr {}", Ipv4Addr::from(NOBODY)))?;
    let mut evil = pair.start(&pair.evil, &["udp", &pair.to4(9)])?;
    let forge = format!("raw {TIMES} 255 patient {datagram}");
    evil.step(&forge)?;
    pair.exactly(&out, TIMES, "forged datagrams")?;
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-n", "any", "-v", "REJECT"])?;
    evil.step(&forge)?;
    pair.silent(&out)
}

/// Of TEST-NET-3 (RFC 5737).
const NOBODY: [u8; 4] = [203, 0, 113, 9];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
