//! REJECT: nothing arrives, and the program that sent it gets an error at once.

use std::path::Path;

use anyhow::{Result, ensure};
use harness::process::run;
use harness::{LIMIT, Ns, Server};

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
        reject(&pair, Path::new("/bin/bash"))?;
        let arrived = world.count("tcp dport 7")?;
        for peer in [world.peer4().to_string(), world.peer6().to_string()] {
            let tried = world.run(Ns::Local, &["timeout", "10", "bash", "-c", CONNECT, &peer, "7"], LIMIT)?;
            ensure!(tried.code() == 1 && tried.stderr.contains(REFUSED), "{peer}: {tried}");
        }
        pair.silent(&arrived)?;
        // Another program is not concerned.
        let mut other = pair.start(&pair.good, &["tcp", &pair.to4(7)])?;
        other.step("converse 3")?;
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
    for peer in [world.peer4().to_string(), world.peer6().to_string()] {
        let ask = || world.run(Ns::Local, &["bash", "-c", ASK, &peer, "7"], LIMIT);
        ask()?.ok()?;
        reject(&pair, Path::new("/bin/bash"))?;
        let arrived = world.count("udp dport 7")?;
        let asked = ask()?;
        ensure!(asked.code() == 1 && asked.stderr.contains(REFUSED), "{peer}: {asked}");
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
    host.ctl(&format!("-A -c OUTPUT -n any -v REJECT --sng-hash {digest}"))?;
    let arrived = host.world.count("tcp dport 7")?;
    let peer = host.world.peer4().to_string();
    let mut connect = container.command("timeout");
    let tried = run(connect.args(["10", "bash", "-c", CONNECT, &peer, "7"]), LIMIT)?;
    ensure!(tried.code() == 1 && tried.stderr.contains("abort"), "{tried}");
    arrived.assert_silent()
}

/// What nobody told to send: the answer to a packet with a forged source would carry it out.
#[test]
fn a_forged_source_gets_no_answer() -> Result<()> {
    let pair = Pair::new("reject forged")?;
    let world = &pair.world;
    world.queue_output()?;
    let _daemon = world.daemon(&[])?;
    let out = world.count("ip protocol icmp")?;
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-n", "any", "-v", "REJECT"])?;
    // IPv4 and UDP headers from 203.0.113.9 to the peer, by a raw socket that writes them itself.
    let peer = world.peer4().octets();
    let header = format!("4500001c0000400040110000cb007109{}", hex(&peer));
    let datagram = format!("{header}0400000700080000");
    let mut evil = pair.start(&pair.evil, &["udp", &pair.to4(9)])?;
    evil.step(&format!("raw 20 255 patient {datagram}"))?;
    pair.silent(&out)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
