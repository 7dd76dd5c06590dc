//! Whoever sent is gone, or somebody else has taken its place, when the packet is looked at.

use anyhow::{Context, Result, ensure};
use harness::{Ns, Signal};

use super::{PORTION, SINK, TIMES, TO_SINK, Trial, quiet, repeat, rule, text};
use crate::line::{pause, status, wait_until};
use crate::pair::Pair;

/// A port that the kernel does not choose by itself.
const PORT: u16 = 4001;

/// A process that lives for a millisecond and does not look back.
fn fire_and_forget(pair: &Pair, program: &std::path::Path, times: u64) -> Result<()> {
    let mut helper = pair.world.actor(Ns::Local, &["idle"])?;
    repeat(&mut helper, "run", times, &format!("{} udp-send {} 1", text(program)?, pair.to4(SINK)))
}

#[test]
fn a_datagram_of_a_denied_program_that_is_gone() -> Result<()> {
    Trial::new("gone")?.never(TO_SINK, |pair, times| fire_and_forget(pair, &pair.evil, times))
}

#[test]
fn a_datagram_of_an_allowed_program_that_is_gone() -> Result<()> {
    Trial::new("gone but allowed")?.always(TO_SINK, |pair, times| fire_and_forget(pair, &pair.good, times))
}

/// Its first thread ends while the packet is judged; another stays, and has everything that the first one had.
fn beheaded(pair: &Pair, program: &std::path::Path, times: u64) -> Result<()> {
    let mut helper = pair.world.actor(Ns::Local, &["idle"])?;
    let what = format!("{} beheaded udp-send {} 1 --judged", text(program)?, pair.to4(SINK));
    repeat(&mut helper, "run", times, &what)
}

#[test]
fn a_datagram_of_a_program_that_loses_its_first_thread() -> Result<()> {
    let mut trial = Trial::new("beheaded")?;
    trial.never(TO_SINK, |pair, times| beheaded(pair, &pair.evil, times))?;
    // What asks for more than digests needs a look.
    trial.rules.push(rule("DROP", "ACCEPT", "!", "--anon-exec".to_owned()));
    trial.always(TO_SINK, |pair, times| beheaded(pair, &pair.good, times))
}

/// The same for programs on an overlay, as containers have them: another one than that on which the program was looked at.
#[test]
fn a_datagram_of_a_program_of_a_container_that_is_gone() -> Result<()> {
    /// Each in a mount namespace of its own; what it runs is in `merged`.
    const OVERLAY: &str = r#"cd "$1" && mkdir -p "$2/upper" "$2/work" "$2/merged" &&
        mount -t overlay overlay -o "lowerdir=lower,upperdir=$2/upper,workdir=$2/work" "$2/merged" &&
        mkdir -p merged && mount --bind "$2/merged" merged && shift 2 && exec "$@""#;
    let mut trial = Trial::new("container")?;
    let folder = trial.pair.world.folder().to_owned();
    let lower = folder.join("lower");
    std::fs::create_dir(&lower)?;
    for program in [&trial.pair.good, &trial.pair.evil] {
        let name = program.file_name().context("a name")?;
        std::fs::copy(program, lower.join(name))?;
    }
    let inside = |name: &str, program: &str, arguments: &[&str]| {
        let head = ["-m", "sh", "-c", OVERLAY, "sh", text(&folder)?, name, program];
        trial.pair.start(std::path::Path::new("unshare"), &[&head[..], arguments].concat())
    };
    let mut looked_at = inside("one", "merged/good", &["udp", &trial.pair.to4(super::ECHO)])?;
    let mut good = inside("two", text(&trial.pair.good)?, &["idle"])?;
    let mut evil = inside("three", text(&trial.pair.good)?, &["idle"])?;
    trial.rules[1].put(&trial.pair)?;
    looked_at.step("converse 2")?;
    let run = |helper: &mut harness::Actor, program: &str, pair: &Pair, times: u64| {
        repeat(helper, "run", times, &format!("merged/{program} udp-send {} 1", pair.to4(SINK)))
    };
    trial.never(TO_SINK, |pair, times| run(&mut evil, "evil", pair, times))?;
    trial.always(TO_SINK, |pair, times| run(&mut good, "good", pair, times))
}

/// The socket is closed, its process lives on.
#[test]
fn a_datagram_whose_socket_is_closed() -> Result<()> {
    let mut trial = Trial::new("closed at once")?;
    let mut evil = trial.sender(&trial.pair.evil)?;
    trial.never(TO_SINK, |_, times| repeat(&mut evil, "send-close", times, "0 hasty"))
}

/// Another program, an allowed one, has a socket at the same port (SO_REUSEPORT), and keeps it.
#[test]
fn a_datagram_from_a_port_that_an_allowed_program_keeps() -> Result<()> {
    let mut trial = Trial::new("port kept")?;
    let mut evil = trial.sender(&trial.pair.evil)?;
    let at = format!("0.0.0.0:{PORT}");
    let _good = trial.pair.start(&trial.pair.good, &["udp-bind", &at, "--reuseport"])?;
    trial.never(TO_SINK, |_, times| repeat(&mut evil, "send-close", times, &format!("{PORT} hasty")))
}

/// The same process id twice in a row, from the same port, first one program, then the other.
#[test]
fn a_process_id_used_again() -> Result<()> {
    let mut trial = Trial::new("one id")?;
    trial.never("udp dport 9 udp length 13", |pair, times| {
        let mut helper = pair.world.actor(Ns::Local, &["idle"])?;
        let (good, evil, to) = (text(&pair.good)?, text(&pair.evil)?, pair.to4(SINK));
        let at = format!("--bind 0.0.0.0:{PORT}");
        // To another port, so that only the denied program's packets are counted; and its answer is known by then.
        let allowed = format!("{good} udp-send {} 1 {at} --judged", pair.to4(super::ECHO));
        repeat(&mut helper, "run-as-one", times / 2, &format!("{allowed} | {evil} udp-send {to} 1 {at} --judged"))?;
        repeat(&mut helper, "run-as-one", times / 2, &format!("{evil} udp-send {to} 1 {at} | {allowed}"))
    })?;
    trial.always(TO_SINK, |pair, times| {
        let mut helper = pair.world.actor(Ns::Local, &["idle"])?;
        let (good, evil) = (text(&pair.good)?, text(&pair.evil)?);
        let denied = format!("{evil} udp-send {} 1 --judged", pair.to4(4000));
        repeat(&mut helper, "run-as-one", times, &format!("{denied} | {good} udp-send {} 1 --judged", pair.to4(SINK)))
    })
}

/// Connections of the time before the rule: written to, closed, and their process ended. The kernel sends on.
#[test]
fn written_and_closed_by_one_who_is_gone() -> Result<()> {
    const CONNECTIONS: u64 = TIMES;
    const MUCH: usize = 100_000;
    let trial = Trial::new("orphans")?;
    let mut friend = trial.friend;
    let pair = &trial.pair;
    let _server = pair.world.tcp_echo(4000)?;
    let arrived = pair.world.count("tcp dport 4000")?;
    for rules in &trial.rules {
        pair.no_rules("OUTPUT")?;
        let mut evil = pair.start(&pair.evil, &["idle"])?;
        evil.step(&format!("connect-many {CONNECTIONS} {}", pair.to4(4000)))?;
        pair.world.wait_queues_empty(Ns::Local)?;
        ensure!(arrived.delta()? >= CONNECTIONS);
        rules.put(pair)?;
        quiet(pair, &mut friend)?;
        arrived.delta()?;
        friend.tell(&format!("converse {TIMES}"))?;
        evil.step(&format!("put-all {MUCH}"))?;
        ensure!(evil.finish()?.success());
        friend.answer().context("the allowed program")?;
        quiet(pair, &mut friend)?;
        let passed = arrived.delta()?;
        ensure!(passed == 0, "{passed} packets of {CONNECTIONS} connections arrived under {rules:?}");
    }
    Ok(())
}

/// More datagrams than the queue and its socket take. Some of the allowed program's are lost as well, so it speaks TCP.
#[test]
fn a_flood_makes_nothing_pass() -> Result<()> {
    const FLOOD: u64 = 40_000;
    let mut trial = Trial::new("flood")?;
    let _server = trial.pair.world.tcp_echo(7)?;
    let arguments = ["tcp", &trial.pair.to4(7), "--timeout", "15000"];
    trial.friend = trial.pair.start(&trial.pair.good, &arguments)?;
    trial.never(TO_SINK, |pair, times| {
        let mut flooder = pair.start(&pair.evil, &["udp", &pair.to4(SINK)])?;
        let mut evil = pair.start(&pair.evil, &["udp", &pair.to4(SINK)])?;
        if times < TIMES {
            return evil.step("flood 2").map(drop);
        }
        flooder.tell(&format!("flood {FLOOD}"))?;
        repeat(&mut evil, "send-close", times, "0 hasty")?;
        fire_and_forget(pair, &pair.evil, PORTION)?;
        flooder.answer().map(drop)
    })
}

/// The probe remembers the makers of 131,072 sockets.
#[test]
fn more_sockets_than_are_remembered() -> Result<()> {
    const SOCKETS: u32 = 500_000;
    const AT_ONCE: u32 = 50_000;
    let mut trial = Trial::new("sockets")?;
    let mut evil = trial.sender(&trial.pair.evil)?;
    let mut good = trial.sender(&trial.pair.good)?;
    let mut churn = trial.pair.world.actor(Ns::Local, &["idle"])?;
    evil.step("port")?;
    for _ in 0..SOCKETS / AT_ONCE {
        churn.step(&format!("sockets {AT_ONCE}"))?;
    }
    trial.never(TO_SINK, |_, _| evil.step("send 3").map(drop))?;
    let arrived = trial.pair.world.count(TO_SINK)?;
    for rules in &trial.rules {
        rules.put(&trial.pair)?;
        good.step("send 3")?;
        trial.pair.exactly(&arrived, 3, &format!("{rules:?}"))?;
    }
    Ok(())
}

/// So many processes start and end while the daemon stands still that the probe's buffer of changes runs over. Then the
/// daemon knows of none of them.
#[test]
fn a_storm_of_processes_makes_nothing_pass() -> Result<()> {
    const STORM: u64 = 6000;
    let mut trial = Trial::new("storm")?;
    for rules in trial.rules.clone() {
        trial.pair.no_rules("OUTPUT")?;
        let pair = &trial.pair;
        let arrived = pair.world.count(TO_SINK)?;
        let mut evil = pair.start(&pair.evil, &["udp", &pair.to4(SINK)])?;
        let mut turncoat = pair.start(&pair.good, &["udp", &pair.to4(SINK)])?;
        let mut helper = pair.world.actor(Ns::Local, &["idle"])?;
        evil.step("send")?;
        turncoat.step("send")?;
        wait_until("both arrive", || Ok(arrived.total()? == 2))?;
        rules.put(pair)?;
        turncoat.step("send")?;
        wait_until("the allowed one arrives", || Ok(arrived.total()? == 3))?;
        arrived.delta()?;
        let lost = || Ok::<_, anyhow::Error>(status(&trial.daemon.files().socket)?.probe.lost_events);
        let lost_before = lost()?;
        pause(&trial.daemon)?;
        repeat(&mut helper, "run", STORM, "/bin/true")?;
        // Its exec is among the changes that were lost.
        turncoat.step(&format!("exec {}", text(&pair.evil)?))?;
        turncoat.step("send 3")?;
        evil.step("send 3")?;
        repeat(&mut helper, "run", PORTION, &format!("{} udp-send {} 1", text(&pair.evil)?, pair.to4(SINK)))?;
        trial.daemon.signal(Signal::CONT)?;
        quiet(pair, &mut trial.friend)?;
        let passed = arrived.delta()?;
        ensure!(passed == 0, "{passed} packets arrived under {rules:?}");
        ensure!(lost()? > lost_before, "{STORM} processes were no storm");
        trial.friend.step("converse 10")?;
    }
    Ok(())
}
