//! Files that keep their reader waiting, or that are not where they seem to be.

use std::fs::File;

use anyhow::{Context, Result, ensure};
use harness::{Actor, Ns};

use super::{SINK, TIMES, TO_SINK, repeat, text};
use crate::line::{Line, queue_status, wait_until};
use crate::pair::Pair;

/// The largest file that is hashed.
const LARGEST: u64 = 4 << 30;

/// More packets than may wait do so, for large files.
#[test]
fn packets_that_wait_for_large_files_leave_places() -> Result<()> {
    const PLACES: u64 = 4096;
    let pair = Pair::new("places")?;
    let world = &pair.world;
    world.queue_output()?;
    let daemon = world.daemon(&[])?;
    pair.only_rule("OUTPUT", "DROP", "ACCEPT", &world.sha256(&pair.good)?)?;
    let mut known = Line::udp_from(world, &pair.good, SINK)?;
    known.expect_passes()?;
    let flood = |number: usize| -> Result<Actor> {
        let path = world.folder().join(format!("large{number}"));
        File::create(&path)?.set_len(LARGEST)?;
        let mut evil = pair.start(&pair.evil, &["udp", &pair.to4(8)])?;
        evil.step(&format!("map-exec {}", text(&path)?))?;
        // As much as the socket's buffer takes; then it would wait for verdicts.
        evil.tell("send 500")?;
        Ok(evil)
    };
    let _floods = (0..20).map(flood).collect::<Result<Vec<_>>>()?;
    wait_until("all places are taken", || Ok(queue_status(&daemon.files().socket, 0)?.parked >= PLACES))?;
    let arrived = world.count(TO_SINK)?;
    let programs = (0..20).map(|_| {
        let mut good = pair.start(&pair.good, &["udp", &pair.to4(SINK)])?;
        good.step("send")?;
        Ok(good)
    });
    let _programs = programs.collect::<Result<Vec<_>>>()?;
    wait_until("the allowed program's packets arrive", || Ok(arrived.total()? >= 20))
}

/// Somebody maps the C library under another path, and has another map it there who has that path not.
#[test]
fn a_library_under_another_path_makes_nobody_unknown() -> Result<()> {
    let pair = Pair::new("other path")?;
    let world = &pair.world;
    let _sink = world.udp_sink(SINK)?;
    let mut good = pair.start(&pair.good, &["udp", &pair.to4(SINK)])?;
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", good.pid()))?;
    let library = maps.lines().find_map(|line| line.contains("/libc.so").then(|| line.find('/').map(|at| &line[at..])));
    let library = library.flatten().context("no C library")?;
    let other = world.folder().join("other.so");
    File::create(&other)?;
    let script = r#"mount --bind "$1" "$2" && exec "$3" udp "$4""#;
    let (evil, to) = (text(&pair.evil)?, pair.to4(8));
    let mut command =
        world.command(Ns::Local, &["unshare", "-m", "sh", "-c", script, "sh", library, text(&other)?, evil, &to])?;
    // Older than the daemon: it has to look at them.
    let mut inside = Actor::from_command(&mut command)?;
    let mut outside = pair.start(&pair.evil, &["udp", &to])?;
    let by_way_of = format!("/proc/{}/root{}", inside.pid(), other.display());
    world.queue_output()?;
    let _daemon = world.daemon(&[])?;
    let aggregate = crate::rules::aggregate(world, good.pid())?;
    pair.no_rules("OUTPUT")?;
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "ACCEPT", "--agg-hash", &aggregate])?;
    world.ctl_ok(&["-P", "OUTPUT", "DROP"])?;
    good.step("send")?;
    for (evil, path) in [(&mut inside, text(&other)?), (&mut outside, by_way_of.as_str())] {
        evil.step(&format!("map-exec {path}"))?;
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", evil.pid()))?;
        ensure!(maps.contains("/other.so\n"), "it is mapped under another path: {maps}");
        evil.step("send")?;
        world.wait_queues_empty(Ns::Local)?;
        let arrived = world.count(TO_SINK)?;
        let mut helper = world.actor(Ns::Local, &["idle"])?;
        repeat(&mut helper, "run", TIMES, &format!("{} udp-send {} 1", text(&pair.good)?, pair.to4(SINK)))?;
        pair.exactly(&arrived, TIMES, &format!("the allowed program, after {path}"))?;
    }
    Ok(())
}
