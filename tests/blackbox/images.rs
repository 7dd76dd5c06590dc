//! What a process is made of is what is mapped executable in it now: files by their content, never by their path.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use harness::{Actor, Counter, LIMIT, Ns};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};

use crate::pair::{Pair, STANCES};

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

/// A world whose OUTPUT is queued, with somebody who takes datagrams at port 9.
struct Scene {
    pair: Pair,
    _sink: harness::Server,
    to: String,
}

impl Scene {
    fn new(label: &str) -> Result<Scene> {
        let pair = Pair::new(label)?;
        pair.world.queue_output()?;
        let sink = pair.world.udp_sink(9)?;
        let to = pair.to4(9);
        Ok(Scene { pair, _sink: sink, to })
    }

    fn count(&self) -> Result<Counter<'_>> {
        self.pair.world.count("udp dport 9")
    }

    /// An actor with a UDP socket to port 9.
    fn start(&self, program: &Path) -> Result<Actor> {
        self.pair.start(program, &["udp", &self.to])
    }

    /// What `actor` sends arrives, or nothing of it does.
    fn passes(&self, actor: &mut Actor, arrived: &Counter<'_>, does: bool, what: &str) -> Result<()> {
        actor.step("send 2")?;
        if does {
            return self.pair.exactly(arrived, 2, what);
        }
        self.pair.silent(arrived).context(what.to_owned())
    }

    /// Runs a command of the machine's; a process of its own, so that no other test inherits a file open for writing.
    fn run(&self, argv: &[&str]) -> Result<()> {
        self.pair.world.run(Ns::Local, argv, LIMIT)?.ok().map(drop)
    }

    /// Overwrites a file in place: the same inode, the same size if both files have the same.
    fn overwrite(&self, file: &Path, with: &Path) -> Result<()> {
        self.run(&[
            "dd",
            &format!("if={}", text(with)?),
            &format!("of={}", text(file)?),
            "bs=1M",
            "conv=notrunc",
            "status=none",
        ])
    }
}

/// Two files of the same size.
fn same_size(one: &Path, other: &Path) -> Result<()> {
    ensure!(fs::metadata(one)?.len() == fs::metadata(other)?.len(), "{} and {}", one.display(), other.display());
    Ok(())
}

// --- libraries ------------------------------------------------------------------------------------------------------

/// A scene with a library that a rule drops, and an allowed program that sends datagrams and holds a connection.
struct Late {
    scene: Scene,
    _server: harness::Server,
    _daemon: harness::Daemon,
    load: String,
}

impl Late {
    fn new() -> Result<Late> {
        let scene = Scene::new("dlopen")?;
        let server = scene.pair.world.tcp_echo(7)?;
        let daemon = scene.pair.world.daemon(&[])?;
        let library = scene.pair.world.library("libforeign.so")?;
        scene.pair.only_rule("OUTPUT", "ACCEPT", "DROP", &scene.pair.world.sha256(&library)?)?;
        Ok(Late { scene, _server: server, _daemon: daemon, load: format!("dlopen {}", library.display()) })
    }

    fn connection(&self) -> Result<(Actor, Counter<'_>)> {
        let pair = &self.scene.pair;
        let mut actor = pair.start(&pair.good, &["tcp", &pair.to4(7), "--timeout", "20000"])?;
        let arrived = pair.world.count(&format!("tcp dport 7 tcp sport {}", actor.step("port")?))?;
        actor.step("send")?;
        ensure!(actor.step("recv")?.starts_with('5'));
        Ok((actor, arrived))
    }
}

#[test]
fn a_library_loaded_late_is_judged_on_the_next_packet() -> Result<()> {
    let late = Late::new()?;
    let (scene, arrived) = (&late.scene, late.scene.count()?);
    let mut one = scene.start(&scene.pair.good)?;
    scene.passes(&mut one, &arrived, true, "before")?;
    one.step(&late.load)?;
    scene.passes(&mut one, &arrived, false, "with the library")?;
    // The same file, mapped by another way than the loader's.
    let mut mapped = scene.start(&scene.pair.good)?;
    scene.passes(&mut mapped, &arrived, true, "before")?;
    mapped.step(&late.load.replace("dlopen", "map-exec"))?;
    scene.passes(&mut mapped, &arrived, false, "with the library mapped")?;

    let (mut two, segments) = late.connection()?;
    two.step(&late.load)?;
    scene.pair.world.wait_queues_empty(Ns::Local)?;
    ensure!(segments.delta()? > 0);
    two.step("send")?;
    scene.pair.silent(&segments)
}

#[test]
fn a_library_that_was_unloaded_counts_no_longer() -> Result<()> {
    let late = Late::new()?;
    let (scene, arrived) = (&late.scene, late.scene.count()?);
    let mut one = scene.start(&scene.pair.good)?;
    let (mut two, _) = late.connection()?;
    for _ in 0..2 {
        scene.passes(&mut one, &arrived, true, "without the library")?;
        one.step(&late.load)?;
        scene.passes(&mut one, &arrived, false, "with the library")?;
        one.step("dlclose")?;
        two.step(&late.load)?;
        two.step("send")?;
        scene.pair.world.wait_queues_empty(Ns::Local)?;
        two.step("dlclose")?;
        // The kernel kept the data and sends it again.
        ensure!(two.step("recv")?.starts_with('5'));
    }
    scene.passes(&mut one, &arrived, true, "without it again")
}

#[test]
fn a_library_once_loaded_counts_for_ever_if_maps_are_retained() -> Result<()> {
    let scene = Scene::new("retain")?;
    let _daemon = scene.pair.world.daemon(&["-r"])?;
    let library = scene.pair.world.library("libforeign.so")?;
    scene.pair.only_rule("OUTPUT", "ACCEPT", "DROP", &scene.pair.world.sha256(&library)?)?;
    let arrived = scene.count()?;
    let mut one = scene.start(&scene.pair.good)?;
    scene.passes(&mut one, &arrived, true, "before")?;
    one.step(&format!("dlopen {}", library.display()))?;
    scene.passes(&mut one, &arrived, false, "with the library")?;
    one.step("dlclose")?;
    scene.passes(&mut one, &arrived, false, "after it was unloaded")?;
    let mut other = scene.start(&scene.pair.good)?;
    scene.passes(&mut other, &arrived, true, "another process of the same program")
}

#[test]
fn a_preloaded_library_is_part_of_the_program() -> Result<()> {
    let scene = Scene::new("preload")?;
    let _daemon = scene.pair.world.daemon(&[])?;
    let library = scene.pair.world.library("libforeign.so")?;
    scene.pair.only_rule("OUTPUT", "ACCEPT", "DROP", &scene.pair.world.sha256(&library)?)?;
    let arrived = scene.count()?;
    scene.passes(&mut scene.start(&scene.pair.good)?, &arrived, true, "alone")?;
    scene.passes(&mut preloaded(&scene, &library)?, &arrived, false, "with the library")
}

/// The allowed program, started with a library that is not its own.
fn preloaded(scene: &Scene, library: &Path) -> Result<Actor> {
    let preload = format!("LD_PRELOAD={}", library.display());
    scene.pair.start(Path::new("env"), &[&preload, text(&scene.pair.good)?, "udp", &scene.to])
}

#[test]
fn a_library_overwritten_while_mapped_is_judged_anew() -> Result<()> {
    let scene = Scene::new("overwrite mapped")?;
    let _daemon = scene.pair.world.daemon(&[])?;
    let library = scene.pair.world.library("lib-one.so")?;
    let (first, second) = (scene.pair.world.library("lib-two.so")?, scene.pair.world.library("lib-ten.so")?);
    same_size(&library, &first)?;
    same_size(&library, &second)?;
    scene.overwrite(&library, &first)?;
    let arrived = scene.count()?;
    let mut one = scene.start(&scene.pair.good)?;
    one.step(&format!("dlopen {}", library.display()))?;
    let denied = scene.pair.world.sha256(&second)?;
    scene.pair.only_rule("OUTPUT", "ACCEPT", "DROP", &denied)?;
    for _ in 0..3 {
        scene.passes(&mut one, &arrived, true, "the first content")?;
        scene.overwrite(&library, &second)?;
        scene.passes(&mut one, &arrived, false, "the second content")?;
        scene.overwrite(&library, &first)?;
    }
    // And the other way round: only the first content will do.
    scene.pair.only_rule("OUTPUT", "DROP", "ACCEPT", &scene.pair.world.sha256(&first)?)?;
    scene.passes(&mut one, &arrived, true, "the first content")?;
    scene.overwrite(&library, &second)?;
    scene.passes(&mut one, &arrived, false, "the second content")
}

// --- programs -------------------------------------------------------------------------------------------------------

#[test]
fn a_program_replaced_by_rename_is_another_program() -> Result<()> {
    let scene = Scene::new("rename")?;
    let _daemon = scene.pair.world.daemon(&[])?;
    let arrived = scene.count()?;
    let place = scene.pair.world.folder().join("program");
    let put = |program: &Path| -> Result<()> {
        let new = scene.pair.world.folder().join("new");
        scene.run(&["cp", text(program)?, text(&new)?])?;
        Ok(fs::rename(new, &place)?)
    };
    for stance in STANCES {
        let what = |case: &str| format!("{stance:?}: {case}");
        scene.pair.take("OUTPUT", stance)?;
        put(&scene.pair.good)?;
        let mut good = scene.start(&place)?;
        scene.passes(&mut good, &arrived, true, &what("good"))?;
        put(&scene.pair.evil)?;
        scene.passes(&mut good, &arrived, true, &what("good still runs"))?;
        let mut evil = scene.start(&place)?;
        scene.passes(&mut evil, &arrived, false, &what("evil in its place"))?;
        put(&scene.pair.good)?;
        scene.passes(&mut evil, &arrived, false, &what("evil still runs"))?;
        scene.passes(&mut good, &arrived, true, &what("so does good"))?;
        scene.passes(&mut scene.start(&place)?, &arrived, true, &what("good in its place again"))?;
    }
    Ok(())
}

#[test]
fn a_program_overwritten_between_two_runs_is_another_program() -> Result<()> {
    let scene = Scene::new("overwrite")?;
    let _daemon = scene.pair.world.daemon(&[])?;
    let arrived = scene.count()?;
    let place = scene.pair.world.folder().join("program");
    let reference = scene.pair.world.folder().join("times");
    same_size(&scene.pair.good, &scene.pair.evil)?;
    scene.run(&["cp", text(&scene.pair.good)?, text(&place)?])?;
    scene.run(&["cp", "-p", text(&place)?, text(&reference)?])?;
    for stance in STANCES {
        scene.pair.take("OUTPUT", stance)?;
        // With a new modification time, and with the old one restored: size, inode and mtime are the same then.
        for restore in [false, true] {
            let what = |case: &str| format!("{stance:?} restore {restore}: {case}");
            let become_ = |program: &Path| -> Result<()> {
                scene.overwrite(&place, program)?;
                if restore {
                    scene.run(&["touch", "-r", text(&reference)?, text(&place)?])?;
                }
                Ok(())
            };
            become_(&scene.pair.good)?;
            scene.passes(&mut scene.start(&place)?, &arrived, true, &what("good"))?;
            become_(&scene.pair.evil)?;
            scene.passes(&mut scene.start(&place)?, &arrived, false, &what("evil"))?;
            become_(&scene.pair.good)?;
            scene.passes(&mut scene.start(&place)?, &arrived, true, &what("good again"))?;
        }
    }
    Ok(())
}

#[test]
fn a_program_without_a_path_is_judged_by_its_content() -> Result<()> {
    let scene = Scene::new("memfd")?;
    let _daemon = scene.pair.world.daemon(&[])?;
    let arrived = scene.count()?;
    for stance in STANCES {
        scene.pair.take("OUTPUT", stance)?;
        for kind in ["memfd", "tmpfile"] {
            let start = |program| scene.pair.start(program, &["unlinked", kind, "udp", &scene.to]);
            let what = format!("{stance:?} {kind}");
            scene.passes(&mut start(&scene.pair.good)?, &arrived, true, &what)?;
            scene.passes(&mut start(&scene.pair.evil)?, &arrived, false, &what)?;
        }
        for (program, passes) in [(&scene.pair.good, true), (&scene.pair.evil, false)] {
            let copy = scene.pair.world.folder().join("short-lived");
            scene.run(&["cp", text(program)?, text(&copy)?])?;
            let mut actor = scene.start(&copy)?;
            fs::remove_file(&copy)?;
            scene.passes(&mut actor, &arrived, passes, &format!("{stance:?} deleted"))?;
        }
    }
    Ok(())
}

/// Names that a reader of /proc/PID/maps may cut, unescape or take for something else.
const NAMES: [&str; 9] = [
    "a blank",
    " ",
    "new\nline",
    "escaped\\012line",
    "gone (deleted)",
    "//anon",
    "[vdso]",
    "7f0000000000-7f0000001000 r-xp 00000000 00:00 0 ",
    "tab\tand \u{1} and \u{fe0f}",
];

#[test]
fn paths_do_not_matter_however_strange() -> Result<()> {
    let scene = Scene::new("paths")?;
    let _daemon = scene.pair.world.daemon(&[])?;
    let arrived = scene.count()?;
    let root = scene.pair.world.folder().to_owned();
    let mut places: Vec<PathBuf> = Vec::new();
    for (number, name) in NAMES.iter().enumerate() {
        let place = root.join(number.to_string()).join(name.trim_start_matches('/'));
        fs::create_dir_all(place.parent().context("no folder")?)?;
        places.push(place);
    }
    // More components than there are bytes in a name.
    let deep = root.join(vec!["d"; 300].join("/"));
    fs::create_dir_all(&deep)?;
    places.push(deep.join("program"));
    // Longer than a path may be in a system call (4096): reached through a descriptor.
    let far = far_away(&root)?;
    places.push(format!("/proc/{}/fd/{}/program", std::process::id(), far.as_raw_fd()).into());
    for place in &places {
        for stance in STANCES {
            scene.pair.take("OUTPUT", stance)?;
            for (program, passes) in [(&scene.pair.good, true), (&scene.pair.evil, false)] {
                // A new file each time: nothing must be known of it.
                scene.run(&["cp", "--remove-destination", text(program)?, text(place)?])?;
                let what = format!("{stance:?} {}", place.display());
                scene.passes(&mut scene.start(place)?, &arrived, passes, &what)?;
            }
        }
    }
    Ok(())
}

/// A folder whose path is longer than 5000 bytes.
fn far_away(root: &Path) -> Result<File> {
    let name = "n".repeat(250);
    let mut folder = File::open(root)?;
    for _ in 0..20 {
        mkdirat(&folder, name.as_str(), Mode::S_IRWXU)?;
        folder = openat(&folder, name.as_str(), OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?.into();
    }
    Ok(folder)
}

// --- rules ----------------------------------------------------------------------------------------------------------

#[test]
fn the_aggregate_of_ctl_fw_is_the_daemons() -> Result<()> {
    let scene = Scene::new("aggregate")?;
    let _daemon = scene.pair.world.daemon(&[])?;
    let arrived = scene.count()?;
    let good = text(&scene.pair.good)?;
    let listed = scene.pair.world.run(Ns::Local, &["ldd", good], LIMIT)?.ok()?;
    // `libc.so.6 => /lib/... (0x...)` or `/lib64/ld-linux... (0x...)`; the vDSO has no path.
    let libraries: Vec<&str> = listed.split_whitespace().filter(|word| word.starts_with('/')).collect();
    ensure!(libraries.len() >= 2, "{listed}");
    let mut arguments = vec!["-H", good];
    arguments.extend(libraries.iter().flat_map(|library| ["-H", library]));
    let printed = scene.pair.world.ctl_ok(&arguments)?;
    let last = printed.lines().last().context("nothing printed")?;
    let aggregate = last
        .split_whitespace()
        .find(|word| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .with_context(|| printed.clone())?;
    scene.pair.world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "ACCEPT", "--agg-hash", aggregate])?;
    scene.pair.world.ctl_ok(&["-P", "OUTPUT", "DROP"])?;
    scene.passes(&mut scene.start(&scene.pair.good)?, &arrived, true, "the program itself")?;
    scene.passes(&mut scene.start(&scene.pair.evil)?, &arrived, false, "another program")?;
    let library = scene.pair.world.library("libforeign.so")?;
    scene.passes(&mut preloaded(&scene, &library)?, &arrived, false, "with a foreign library")?;
    let mut late = scene.start(&scene.pair.good)?;
    scene.passes(&mut late, &arrived, true, "before a library is loaded")?;
    late.step(&format!("dlopen {}", library.display()))?;
    scene.passes(&mut late, &arrived, false, "after")
}

#[test]
fn a_negated_digest_means_to_have_no_such_object() -> Result<()> {
    let scene = Scene::new("negated")?;
    let _daemon = scene.pair.world.daemon(&[])?;
    let arrived = scene.count()?;
    let library = scene.pair.world.library("libneeded.so")?;
    let digest = scene.pair.world.sha256(&library)?;
    for negation in ["!", "-!"] {
        for (policy, verdict, without) in [("ACCEPT", "DROP", false), ("DROP", "ACCEPT", true)] {
            scene.pair.no_rules("OUTPUT")?;
            scene.pair.world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", verdict, negation, "--sng-hash", &digest])?;
            scene.pair.world.ctl_ok(&["-P", "OUTPUT", policy])?;
            let what = |case: &str| format!("{negation} {verdict}: {case}");
            let mut one = scene.start(&scene.pair.good)?;
            let mut other = scene.start(&scene.pair.good)?;
            other.step(&format!("dlopen {}", library.display()))?;
            let (passes, does_not) = if without { (&mut one, &mut other) } else { (&mut other, &mut one) };
            scene.passes(passes, &arrived, true, &what("one"))?;
            scene.passes(does_not, &arrived, false, &what("the other"))?;
        }
    }
    Ok(())
}

// --- hashing --------------------------------------------------------------------------------------------------------

/// While a large program is hashed, others have their verdicts, and its own packet waits.
#[test]
fn a_large_program_delays_nobody_but_itself() -> Result<()> {
    const ROUND_TRIPS: usize = 10;
    let scene = Scene::new("large")?;
    let _echo = scene.pair.world.udp_echo(7)?;
    let _daemon = scene.pair.world.daemon(&[])?;
    scene.pair.take("OUTPUT", STANCES[0])?;
    let arrived = scene.count()?;
    let to7 = scene.pair.to4(7);
    let mut small = scene.pair.start(&scene.pair.good, &["udp", &to7])?;
    let round_trip = |actor: &mut Actor| -> Result<()> {
        actor.step("send")?;
        actor.step("recv").map(drop)
    };
    round_trip(&mut small)?;
    // The machine may be so busy that the hashing is over before the round trips are. Then nothing was shown, and a
    // program twice as large is tried.
    for attempt in 0..4 {
        let large = scene.pair.world.folder().join(format!("large-{attempt}"));
        scene.run(&["cp", text(&scene.pair.good)?, text(&large)?])?;
        scene.run(&["truncate", "-s", &format!("+{}M", 300 << attempt), text(&large)?])?;
        let mut actor = scene.start(&large)?;
        actor.step("send")?;
        for _ in 0..ROUND_TRIPS {
            round_trip(&mut small)?;
        }
        let early = arrived.total()?;
        let waits = scene.pair.world.queued(Ns::Local)?;
        scene.pair.exactly(&arrived, 1, "the large program's packet")?;
        if early == attempt && waits == 1 {
            return Ok(());
        }
    }
    anyhow::bail!("{ROUND_TRIPS} round trips never took less time than hashing a large program")
}

#[test]
fn digests_are_still_known_after_a_restart() -> Result<()> {
    const PROGRAMS: usize = 12;
    let scene = Scene::new("kept digests")?;
    let arrived = scene.count()?;
    let known = || -> Result<u64> {
        let status: serde_json::Value = serde_json::from_str(&scene.pair.world.ctl_ok(&["status", "--json"])?)?;
        status["digests"].as_u64().with_context(|| status.to_string())
    };
    let mut daemon = scene.pair.world.daemon(&[])?;
    scene.pair.take("OUTPUT", STANCES[0])?;
    for number in 0..PROGRAMS {
        let copy = scene.pair.world.actor_copy(&format!("copy-{number}"))?;
        scene.passes(&mut scene.start(&copy)?, &arrived, true, "a copy")?;
    }
    ensure!(known()? >= PROGRAMS as u64);
    ensure!(daemon.stop()?.success());
    let _daemon = scene.pair.world.daemon(&[])?;
    // ctl-fw and its libraries may have been hashed just now; they are fewer than the copies.
    let after = known()?;
    ensure!(after >= PROGRAMS as u64, "{after} digests are known after the restart");
    Ok(())
}
