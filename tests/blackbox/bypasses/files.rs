//! Files that keep their reader waiting, or that are not where they seem to be.

use std::fs::File;

use anyhow::{Context, Result, ensure};
use harness::{Actor, Ns};

use super::{SINK, TIMES, TO_SINK, repeat, text};
use crate::line::{Line, queue_status, wait_until};
use crate::pair::Pair;

const PAGE: u64 = 4096;
/// The largest file that is no large one.
const NOT_LARGE: u64 = 256 << 20;
/// The largest file that is hashed.
const LARGEST: u64 = 4 << 30;

/// Programs of `user`, more than there are hashers, each with `files` files of `size` bytes that `word` maps; and a program
/// of root's that is allowed and was never hashed.
fn readers_kept_busy(label: &str, user: u32, word: &str, files: usize, size: u64) -> Result<()> {
    const MANY: usize = 80;
    let pair = Pair::new(label)?;
    let world = &pair.world;
    // Older than the daemon: nothing of it is hashed ahead.
    let mut good = Line::udp_from(world, &pair.good, SINK)?;
    world.queue_output()?;
    let _daemon = world.daemon(&[])?;
    pair.only_rule("OUTPUT", "DROP", "ACCEPT", &world.sha256(&pair.good)?)?;
    let map = |number: usize| -> Result<Actor> {
        let (user_id, to) = (format!("--reuid={user}"), pair.to4(8));
        let command = ["setpriv", &user_id, text(&pair.evil)?, "udp", &to];
        let mut evil = Actor::from_command(&mut world.command(Ns::Local, &command)?)?;
        for index in 0..files {
            let path = world.folder().join(format!("large{number}-{index}"));
            let file = File::create(&path)?;
            file.set_len(size)?;
            std::os::unix::fs::fchown(&file, Some(user), None)?;
            drop(file);
            evil.step(&format!("{word} {}", text(&path)?))?;
        }
        Ok(evil)
    };
    let mut busy = (0..MANY).map(map).collect::<Result<Vec<_>>>()?;
    busy.iter_mut().try_for_each(|evil| evil.step("send").map(drop))?;
    good.expect_passes()
}

#[test]
fn large_empty_files_delay_no_other_program() -> Result<()> {
    readers_kept_busy("sparse", 0, "map-exec", 1, LARGEST)
}

#[test]
fn many_files_delay_no_program_of_another_user() -> Result<()> {
    readers_kept_busy("many", 65534, "map-exec", 6, NOT_LARGE)
}

#[test]
fn files_with_a_lease_delay_no_other_program() -> Result<()> {
    readers_kept_busy("lease", 0, "lease", 1, PAGE)
}

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

/// Somebody maps the allowed program's file under another path before that has ever run.
/// That would put its files into another order.
#[test]
fn a_program_seen_first_under_another_path_has_the_same_aggregate() -> Result<()> {
    let pair = Pair::new("first path")?;
    let world = &pair.world;
    let aggregate = crate::rules::aggregate(world, pair.start(&pair.good, &["idle"])?.pid())?;
    world.queue_output()?;
    let _daemon = world.daemon(&[])?;
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "ACCEPT", "--agg-hash", &aggregate])?;
    world.ctl_ok(&["-P", "OUTPUT", "DROP"])?;
    // Behind the paths of the libraries, before which the program's own comes.
    let script =
        r#"mount -t tmpfs none /var && touch /var/other && mount --bind "$1" /var/other && exec "$2" udp "$3""#;
    let (good, evil, to) = (text(&pair.good)?, text(&pair.evil)?, pair.to4(8));
    let mut command = world.command(Ns::Local, &["unshare", "-m", "sh", "-c", script, "sh", good, evil, &to])?;
    let mut evil = Actor::from_command(&mut command)?;
    evil.step("map-exec /var/other")?;
    evil.step("send")?;
    world.wait_queues_empty(Ns::Local)?;
    Line::udp_from(world, &pair.good, SINK)?.expect_passes()
}
