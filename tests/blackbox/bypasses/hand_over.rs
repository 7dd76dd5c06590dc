//! Sockets that change hands for a moment: the denied program uses what an allowed one has opened, or has an allowed one
//! finish what it began.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Actor, Ns};

use super::{ECHO, SINK, TO_SINK, Trial, quiet, repeat, text};
use crate::pair::Pair;

/// An allowed program with a socket for which an answer is kept.
fn lender(pair: &Pair) -> Result<Actor> {
    let mut good = pair.start(&pair.good, &["udp", &pair.to4(ECHO), "--timeout", "15000"])?;
    good.step("converse 2")?;
    good.step(&format!("to {}", pair.to4(SINK)))?;
    Ok(good)
}

/// The allowed program lets a denied one have its socket, in each repetition for one datagram.
fn lent(label: &str, word: &str, pace: &str) -> Result<()> {
    let mut trial = Trial::new(label)?;
    trial.never(TO_SINK, |pair, times| {
        let mut good = lender(pair)?;
        repeat(&mut good, word, times, &format!("{pace} {}", text(&pair.evil)?))?;
        good.step("judged").map(drop)
    })?;
    trial.always(TO_SINK, |pair, times| {
        let mut good = lender(pair)?;
        repeat(&mut good, word, times, &format!("patient {}", text(&pair.good)?))
    })
}

#[test]
fn a_socket_passed_for_one_packet() -> Result<()> {
    lent("lent", "lend", "patient")
}

#[test]
fn a_socket_passed_and_closed_before_its_packet_is_judged() -> Result<()> {
    lent("lent hastily", "lend", "hasty")
}

#[test]
fn a_socket_inherited_for_one_packet() -> Result<()> {
    lent("bequeathed", "bequeath", "patient")
}

#[test]
fn a_socket_inherited_by_one_who_is_gone_before_its_packet_is_judged() -> Result<()> {
    lent("bequeathed hastily", "bequeath", "hasty")
}

/// pidfd_getfd: the allowed program does nothing at all.
fn stolen(label: &str, pace: &str) -> Result<()> {
    let mut trial = Trial::new(label)?;
    trial.never(TO_SINK, |pair, times| {
        let mut good = lender(pair)?;
        let number = good.step("fd 100")?;
        let mut evil = pair.start(&pair.evil, &["udp", &pair.to4(SINK)])?;
        repeat(&mut evil, "steal", times, &format!("{} {number} {pace}", good.pid()))?;
        good.step("judged").map(drop)
    })
}

#[test]
fn a_socket_stolen_for_one_packet() -> Result<()> {
    stolen("stolen", "patient")
}

#[test]
fn a_socket_stolen_and_closed_before_its_packet_is_judged() -> Result<()> {
    stolen("stolen hastily", "hasty")
}

/// The denied program sends and becomes the allowed one, which holds the socket when the packet is looked at.
#[test]
fn sent_by_one_who_became_an_allowed_program() -> Result<()> {
    let mut trial = Trial::new("launder")?;
    trial.never(TO_SINK, |pair, times| {
        let mut helper = pair.world.actor(Ns::Local, &["idle"])?;
        let (evil, good) = (text(&pair.evil)?, text(&pair.good)?);
        repeat(&mut helper, "run", times, &format!("{evil} udp-exec {} 2 {good}", pair.to4(SINK)))
    })
}

/// The same with a connection: the new program's mappings are there before the kernel tells of it.
#[test]
fn begun_by_one_who_became_an_allowed_program() -> Result<()> {
    let mut trial = Trial::new("launder connections")?;
    trial.never("tcp dport 9", |pair, times| {
        let mut helper = pair.world.actor(Ns::Local, &["idle"])?;
        let (evil, good) = (text(&pair.evil)?, text(&pair.good)?);
        repeat(&mut helper, "run", times, &format!("{evil} tcp-exec {} {good}", pair.to4(SINK)))
    })
}

/// The allowed program opens the socket and becomes the denied one, which sends.
#[test]
fn sent_by_one_who_was_an_allowed_program() -> Result<()> {
    let mut trial = Trial::new("turncoat")?;
    trial.never(TO_SINK, |pair, times| {
        for _ in 0..times {
            let mut actor = lender(pair)?;
            actor.step(&format!("exec {}", text(&pair.evil)?))?;
            actor.step(&format!("to {}", pair.to4(SINK)))?;
            actor.step("send 2")?;
        }
        Ok(())
    })
}

/// Steps of the one who begins a datagram, and of the one who sends it.
const TOGETHER: [(&[&str], &str); 3] =
    [(&["begin"], "send"), (&["cork", "send"], "uncork"), (&["cork", "begin"], "uncork")];

/// The denied program puts its words into a datagram that the allowed one sends: what it becomes itself.
#[test]
fn a_datagram_begun_by_one_who_became_an_allowed_program() -> Result<()> {
    let mut trial = Trial::new("half a word")?;
    trial.never(TO_SINK, |pair, times| {
        for (begin, end) in TOGETHER.iter().cycle().take(times as usize) {
            let mut actor = pair.start(&pair.evil, &["udp", &pair.to4(SINK)])?;
            begin.iter().try_for_each(|step| actor.step(step).map(drop))?;
            actor.step(&format!("exec {}", text(&pair.good)?))?;
            actor.step(end)?;
        }
        Ok(())
    })?;
    // Who does all of it itself may.
    trial.always(TO_SINK, |pair, times| {
        let mut good = pair.start(&pair.good, &["udp", &pair.to4(SINK)])?;
        for (begin, end) in TOGETHER.iter().cycle().take(times as usize) {
            begin.iter().chain([end]).try_for_each(|step| good.step(step).map(drop))?;
        }
        Ok(())
    })
}

/// The same in the socket of the allowed program, which got it back in between.
#[test]
fn a_datagram_begun_by_one_who_was_lent_the_socket() -> Result<()> {
    let mut trial = Trial::new("words in the mouth")?;
    trial.never(TO_SINK, |pair, times| {
        let mut good = lender(pair)?;
        for (begin, end) in TOGETHER.iter().cycle().take(times as usize) {
            good.step(&format!("share {}", text(&pair.evil)?))?;
            begin.iter().try_for_each(|step| good.step(&format!("child {step}")).map(drop))?;
            good.step("release")?;
            good.step(end)?;
        }
        good.step("judged").map(drop)
    })
}

/// What the denied program wrote into a connection whose window was closed leaves later, when the other end reads: nobody is
/// at work then but the kernel, and the allowed program alone holds the connection.
#[test]
fn written_into_an_allowed_programs_connection() -> Result<()> {
    /// More than the receiver takes.
    const MUCH: usize = 100_000;
    /// At once; the listener's backlog takes no more.
    const CONNECTIONS: usize = 100;
    let mut trial = Trial::new("closed window")?;
    let pair = &trial.pair;
    pair.world.namespace(Ns::Local).sysctl("net/ipv4/tcp_wmem", "4096 1048576 1048576")?;
    pair.world.namespace(Ns::Peer).sysctl("net/ipv4/tcp_rmem", "4096 16384 16384")?;
    let mut reader = pair.world.actor(Ns::Peer, &["serve-tcp", "0.0.0.0:4000", "--timeout", "15000"])?;
    let mut read = |good: &mut Actor| -> Result<usize> {
        reader.step(&format!("accept-many {CONNECTIONS}"))?;
        // `a` begins what the denied program writes; the allowed one writes `x`.
        let count = reader.step("count-all a")?.parse()?;
        reader.step("drop-all")?;
        good.step("drop-all")?;
        Ok(count)
    };
    let write = |program: &Path| -> Result<Actor> {
        let mut good = pair.start(&pair.good, &["idle"])?;
        good.step(&format!("connect-many {CONNECTIONS} {}", pair.to4(4000)))?;
        good.step(&format!("put-all {MUCH}"))?;
        good.step(&format!("lend-all {}", text(program)?))?;
        Ok(good)
    };
    ensure!(read(&mut write(&pair.evil)?)? == CONNECTIONS, "where nothing forbids it");
    for rules in &trial.rules {
        rules.put(pair)?;
        ensure!(read(&mut write(&pair.good)?)? == CONNECTIONS, "what an allowed program wrote: {rules:?}");
        for _ in 0..2 {
            let mut good = write(&pair.evil)?;
            let passed = read(&mut good)?;
            ensure!(passed == 0, "the bytes of {passed} of {CONNECTIONS} connections arrived under {rules:?}");
        }
        quiet(pair, &mut trial.friend).context("the allowed program")?;
    }
    Ok(())
}

/// The denied program writes more into its connection than the window allows, and leaves that to the allowed one; what waits in
/// the kernel leaves when the other end reads.
fn late_words(label: &str, leave: impl Fn(&Pair, &mut Actor, &Path) -> Result<()>) -> Result<()> {
    const MUCH: usize = 100_000;
    let mut trial = Trial::new(label)?;
    let pair = &trial.pair;
    pair.world.namespace(Ns::Local).sysctl("net/ipv4/tcp_wmem", "4096 1048576 1048576")?;
    pair.world.namespace(Ns::Peer).sysctl("net/ipv4/tcp_rmem", "4096 16384 16384")?;
    let mut reader = pair.world.actor(Ns::Peer, &["serve-tcp", "0.0.0.0:4000", "--timeout", "15000"])?;
    let arrived = pair.world.count("tcp dport 4000 meta length > 60")?;
    let mut attempt = |first: &Path, then: &Path, rules: Option<&super::Rules>, friend: &mut Actor| -> Result<usize> {
        pair.no_rules("OUTPUT")?;
        let mut writer = pair.start(first, &["tcp", &pair.to4(4000)])?;
        reader.step("accept-many 1")?;
        writer.step(&format!("put {MUCH}"))?;
        pair.world.wait_queues_empty(Ns::Local)?;
        if let Some(rules) = rules {
            rules.put(pair)?;
        }
        leave(pair, &mut writer, then)?;
        // The queue is read empty more than once.
        friend.step("converse 10")?;
        arrived.delta()?;
        let read = reader.step("count-all x")?.parse()?;
        reader.step("drop-all")?;
        Ok(read)
    };
    let whole = attempt(&pair.evil, &pair.good, None, &mut trial.friend)?;
    ensure!(whole == MUCH, "{whole} bytes arrived where nothing forbids it");
    for rules in &trial.rules {
        let read = attempt(&pair.evil, &pair.good, Some(rules), &mut trial.friend)?;
        ensure!(read < MUCH / 2, "{read} bytes arrived under {rules:?}");
        let passed = arrived.delta()?;
        ensure!(passed == 0, "{passed} packets arrived under {rules:?}");
    }
    Ok(())
}

#[test]
fn written_by_one_who_became_an_allowed_program() -> Result<()> {
    late_words("late words", |_, writer, then| writer.step(&format!("exec {}", text(then)?)).map(drop))
}

/// Who made the connection, wrote, and has let go of it.
#[test]
fn written_by_its_maker_who_left_it_to_an_allowed_program() -> Result<()> {
    late_words("bequeathed words", |_, writer, then| {
        writer.step(&format!("share {}", text(then)?))?;
        writer.step("close").map(drop)
    })
}

/// The probe remembers the makers of 131,072 sockets, and longest those that were used; that one wrote must not be forgotten with
/// them.
#[test]
fn written_by_one_whose_connection_is_forgotten() -> Result<()> {
    const SOCKETS: u32 = 400_000;
    const AT_ONCE: u32 = 20_000;
    late_words("forgotten words", |pair, writer, then| {
        let mut churn = pair.world.actor(Ns::Peer, &["idle"])?;
        for _ in 0..SOCKETS / AT_ONCE {
            churn.step(&format!("connects {AT_ONCE}"))?;
        }
        writer.step(&format!("exec {}", text(then)?)).map(drop)
    })
}

/// The kernel repeats a SYN after a second, and has no event for that.
const REPEATED: Duration = Duration::from_millis(2500);

/// TCP Fast Open: the denied program has data leave with the SYN and lets go of the socket. The kernel repeats the SYN without them,
/// and sends them after the handshake, when the allowed program alone holds the socket.
fn fast_open(label: &str, let_go: impl Fn(&Pair, &str) -> Result<Actor>) -> Result<()> {
    const AT_ONCE: u64 = 10;
    let mut trial = Trial::new(label)?;
    let _server = trial.pair.world.tcp_echo(4000)?;
    for to in [trial.pair.to4(4000), trial.pair.to6(4000)] {
        trial.never("tcp dport 4000 meta length > 200", |pair, times| {
            let holders = (0..times.min(AT_ONCE)).map(|_| let_go(pair, &to)).collect::<Result<Vec<_>>>()?;
            std::thread::sleep(REPEATED);
            drop(holders);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn sent_with_the_syn_by_one_who_became_an_allowed_program() -> Result<()> {
    fast_open("fast and become", |pair, to| {
        let mut evil = pair.start(&pair.evil, &["tcp", to, "--later"])?;
        evil.step("fast-open")?;
        evil.step(&format!("exec {}", text(&pair.good)?))?;
        Ok(evil)
    })
}

#[test]
fn sent_with_the_syn_by_its_maker_who_left_it_to_an_allowed_program() -> Result<()> {
    fast_open("fast and bequeath", |pair, to| {
        let mut evil = pair.start(&pair.evil, &["tcp", to, "--later"])?;
        evil.step("fast-open")?;
        evil.step(&format!("share {}", text(&pair.good)?))?;
        evil.step("close")?;
        Ok(evil)
    })
}

#[test]
fn sent_with_the_syn_of_an_allowed_programs_socket() -> Result<()> {
    fast_open("fast and lent", |pair, to| {
        let mut good = pair.start(&pair.good, &["tcp", to, "--later"])?;
        good.step(&format!("share {}", text(&pair.evil)?))?;
        good.step("child fast-open")?;
        good.step("release")?;
        Ok(good)
    })
}
