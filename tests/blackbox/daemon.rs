//! The daemon's life: starting, refusing to start, its options, degraded states, stopping.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use harness::daemon::Files;
use harness::{Captured, Daemon, LIMIT, Ns, Signal, World};
use rusqlite::Connection;
use syscall_probe::Hook;

use crate::line::{Line, pause, queue_status, status, wait_until};

/// `app-fw` where it is expected to end by itself.
fn run_to_end(world: &World, files: &Files, arguments: &[&str]) -> Result<Captured> {
    let program = world.programs().path("app-fw")?.display().to_string();
    let [db, socket, log] = [&files.database, &files.socket, &files.events].map(|path| path.display().to_string());
    let mut argv = vec![program.as_str(), "--db", &db, "--socket", &socket, "--log", &log];
    argv.extend(arguments);
    world.run(Ns::Local, &argv, LIMIT)
}

/// The daemon refuses to start, with this exit code and these words.
fn refuses(world: &World, arguments: &[&str], code: i32, words: &[&str]) -> Result<()> {
    let files = Files::named(world.folder(), "refused");
    let ended = run_to_end(world, &files, arguments)?;
    ensure!(ended.code() == code, "exit code {code} expected: {ended}");
    for word in words {
        ensure!(ended.stderr.contains(word), "no word of {word:?}: {ended}");
    }
    ensure!(!ended.stderr.contains("panicked"), "{ended}");
    ensure!(!files.socket.exists(), "a socket without a daemon");
    Ok(())
}

/// The numbers of the queues that are bound in a namespace.
fn bound(world: &World, ns: Ns) -> Result<Vec<u16>> {
    let table = world.namespace(ns).enter(|| {
        fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_queue").context("the table of queues")
    })?;
    table.lines().map(|line| Ok(line.split_whitespace().next().context("an empty line")?.parse()?)).collect()
}

/// How soon a program must pass beside a rule that denies another.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Innocent {
    /// With its first packet.
    AtOnce,
    /// Its first packets may be in doubt, and doubt drops.
    Soon,
}

/// A program, a copy with a digest of its own, is denied by it; the one next to it is not.
fn blocks_by_hash(world: &World, arguments: &[&str], innocent: Innocent) -> Result<Daemon> {
    world.queue_output()?;
    let copy = world.actor_copy("denied")?;
    let daemon = world.daemon(arguments)?;
    let (mut allowed, mut denied) = (Line::udp(world, 9)?, Line::udp_from(world, &copy, 10)?);
    allowed.expect_passes().context("before the rule")?;
    denied.expect_passes().context("before the rule")?;
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "DROP", "--sng-hash", &world.sha256(&copy)?])?;
    if innocent == Innocent::Soon {
        passes_soon(&mut allowed, &daemon.files().socket)
            .with_context(|| format!("beside the rule; events: {:?}", daemon.events()))?;
    }
    // More than once: kept answers count as well.
    for _ in 0..3 {
        denied.expect_blocked()?;
        allowed.expect_passes().with_context(|| format!("beside the rule; events: {:?}", daemon.events()))?;
    }
    Ok(daemon)
}

/// Sends until one is accepted, which must arrive; a few may be dropped before.
fn passes_soon(line: &mut Line<'_>, socket: &Path) -> Result<()> {
    for _ in 0..5 {
        let before = queue_status(socket, 0)?;
        line.actor().step("send")?;
        let mut accepted = false;
        wait_until("it is judged", || {
            let now = queue_status(socket, 0)?;
            accepted = now.accepted > before.accepted;
            Ok(accepted || now.dropped > before.dropped)
        })?;
        if accepted {
            return line.expect_arrived(1);
        }
    }
    anyhow::bail!("nothing of an innocent program passes")
}

#[test]
fn the_socket_appears_when_the_queues_are_bound() -> Result<()> {
    let world = World::new("ready")?;
    world.queue_output()?;
    let mut line = None;
    for _ in 0..4 {
        let mut daemon = world.daemon(&[])?;
        assert_eq!(bound(&world, Ns::Local)?, [0, 1, 2]);
        // Without --queue-bypass nothing passes an unbound queue.
        let line = match &mut line {
            Some(line) => line,
            none => none.insert(Line::udp(&world, 9)?),
        };
        line.expect_passes()?;
        assert!(daemon.stop()?.success());
        assert!(bound(&world, Ns::Local)?.is_empty());
        line.expect_blocked()?;
    }
    Ok(())
}

#[test]
fn a_queue_that_is_taken_is_refused_and_its_owner_goes_on() -> Result<()> {
    let world = World::new("taken")?;
    world.queue_output()?;
    let _daemon = world.daemon(&[])?;
    let mut line = Line::udp(&world, 9)?;
    line.expect_passes()?;
    refuses(&world, &["--no-probe"], 1, &["queue 0 is taken"])?;
    refuses(&world, &["--no-probe", "--queue-out", "7", "--queue-in", "8"], 1, &["queue 2 is taken"])?;
    assert_eq!(bound(&world, Ns::Local)?, [0, 1, 2]);
    line.expect_passes()
}

#[test]
fn a_socket_or_a_database_in_use_is_refused() -> Result<()> {
    let world = World::new("in use")?;
    let daemon = world.daemon(&["--no-probe"])?;
    let other = Files::named(world.folder(), "other");
    let queues = ["--no-probe", "--queue-out", "10", "--queue-in", "11", "--queue-fwd", "12"];
    let same_database = Files { database: daemon.files().database.clone(), ..other.clone() };
    let refused = run_to_end(&world, &same_database, &queues)?;
    assert_eq!(refused.code(), 1);
    assert!(refused.stderr.contains("another app-fw") && refused.stderr.contains("--db"), "{refused}");
    let same_socket = Files { socket: daemon.files().socket.clone(), ..other };
    let refused = run_to_end(&world, &same_socket, &queues)?;
    assert_eq!(refused.code(), 1);
    assert!(refused.stderr.contains("--socket"), "{refused}");
    assert!(world.ctl(&["-L"])?.success(), "the first one must go on");
    Ok(())
}

#[test]
fn wrong_options_are_refused_with_exit_code_2() -> Result<()> {
    let world = World::new("wrong options")?;
    let secret = world.folder().join("secret");
    fs::write(&secret, "0123456789abcdef")?;
    let secret = secret.to_str().context("path")?;
    for (arguments, words) in [
        (&["--frobnicate"][..], &["--frobnicate"][..]),
        (&["--queue-out", "1"], &["--queue-out", "--queue-in"]),
        (&["--queue-out", "65536"], &["65536"]),
        (&["--queue-fwd", "9:8"], &["backwards"]),
        (&["--pol-out", "MAYBE"], &["MAYBE", "ACCEPT, DROP"]),
        (&["-b", "0"], &["-b"]),
        (&["-c", "65"], &["65", "64"]),
        (&["-t", "packet"], &["-s"]),
        (&["-i"], &["-s"]),
        (&["-t", "packet", "-p", "tcp", "-s", secret], &["-p"]),
        (&["-t", "app", "-s", secret], &["-t app"]),
        (&["-e", "x.o", "--no-probe"], &["--no-probe"]),
        (&["--without-hook", "nonsense"], &["nonsense", "sys-enter"]),
        (&["--kernel-cache", "maybe"], &["maybe"]),
        (&["stray"], &["stray"]),
    ] {
        refuses(&world, arguments, 2, words).with_context(|| format!("{arguments:?}"))?;
    }
    Ok(())
}

#[test]
fn without_root_it_says_so() -> Result<()> {
    let world = World::new("not root")?;
    // The world's folder is root's own.
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777))?;
    let program = folder.path().join("app-fw");
    // By another process: a descriptor open for writing that a thread forks just now would make it ETXTBSY.
    let original = world.programs().path("app-fw")?;
    world
        .run(Ns::Local, &["cp", original.to_str().context("path")?, program.to_str().context("path")?], LIMIT)?
        .ok()?;
    let text = |path: &Path| path.display().to_string();
    let (program, db) = (text(&program), text(&folder.path().join("db")));
    let socket = text(&folder.path().join("sock"));
    let argv =
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", &program, "--db", &db, "--socket", &socket];
    let ended = world.run(Ns::Local, &argv, LIMIT)?;
    assert_eq!(ended.code(), 1, "{ended}");
    assert!(ended.stderr.contains("needs root"), "{ended}");
    assert!(!Path::new(&db).exists() && !Path::new(&socket).exists());
    Ok(())
}

#[test]
fn two_daemons_side_by_side_mind_their_own_namespaces() -> Result<()> {
    let world = World::new("side by side")?;
    world.queue_output()?;
    world.queue(Ns::Peer, &["INPUT"], 1)?;
    let _here = world.daemon(&[])?;
    let there = world.daemon_in(Ns::Peer, Files::named(world.folder(), "there"), &[])?;
    let socket = there.files().socket.display().to_string();
    let mut sent = Line::udp(&world, 9)?;
    let delivered = world.count_at(Ns::Peer, harness::counter::Place::Delivered, "udp dport 9")?;
    sent.expect_passes()?;
    wait_until("the packet is delivered", || Ok(delivered.total()? == 1))?;
    world.ctl_in(Ns::Peer, &["--socket", &socket, "-A", "-c", "INPUT", "-v", "DROP", "--dport", "9"])?.ok()?;
    sent.expect_passes().context("the other daemon's rule is not ours")?;
    world.wait_queues_empty(Ns::Peer)?;
    assert_eq!(delivered.total()?, 1);
    assert!(!world.ctl_ok(&["-L"])?.contains("--dport"));
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "DROP", "--dport", "9"])?;
    world.ctl_in(Ns::Peer, &["--socket", &socket, "-F"])?.ok()?;
    sent.expect_blocked()
}

#[test]
fn a_signal_settles_what_is_queued_and_frees_everything() -> Result<()> {
    let world = World::new("signals")?;
    world.queue_output()?;
    let mut line = Line::udp(&world, 9)?;
    // The kernel would go on accepting for a moment without the daemon.
    let off = &["--kernel-cache", "off"][..];
    for (signal, arguments) in [(Signal::TERM, off), (Signal::INT, off), (Signal::TERM, &["--no-probe"])] {
        let mut daemon = world.daemon(arguments)?;
        line.expect_passes()?;
        // It finds packets and the order to stop at the same time.
        pause(&daemon)?;
        line.actor().step("send 20")?;
        assert_eq!(world.queued(Ns::Local)?, 20);
        daemon.signal(signal)?;
        daemon.signal(Signal::CONT)?;
        let ended = daemon.wait()?;
        assert_eq!(ended.code(), Some(0), "{signal:?}: {ended}\n{}", daemon.messages());
        line.expect_arrived(20).context("packets queued when it was told to stop")?;
        assert!(!daemon.files().socket.exists(), "the socket stayed");
        assert!(bound(&world, Ns::Local)?.is_empty(), "a queue stayed bound");
    }
    // Another can have it all at once.
    let _daemon = world.daemon(&[])?;
    line.expect_passes()
}

#[test]
fn a_daemon_killed_by_sigkill_is_succeeded_at_once() -> Result<()> {
    let world = World::new("succession")?;
    world.queue_output()?;
    let mut line = Line::udp(&world, 9)?;
    for _ in 0..3 {
        let mut daemon = world.daemon(&["--no-probe"])?;
        line.expect_passes()?;
        daemon.kill9()?;
        line.expect_blocked()?;
    }
    Ok(())
}

/// Traffic passes with these options.
fn pass_with(world: &World, line: &mut Line<'_>, options: &[&str]) -> Result<()> {
    for option in options {
        let arguments: Vec<_> = option.split_whitespace().collect();
        let mut daemon = world.daemon(&arguments).with_context(|| format!("`{option}`"))?;
        line.expect_passes()
            .with_context(|| format!("`{option}`: {:?}\n{}", status(&daemon.files().socket), daemon.messages()))?;
        ensure!(daemon.stop()?.success(), "`{option}`: {}", daemon.messages());
    }
    Ok(())
}

#[test]
fn every_option_of_the_interface_is_taken() -> Result<()> {
    let world = World::new("options")?;
    world.queue_output()?;
    let mut line = Line::udp(&world, 9)?;
    let options = [
        "--queue-out 0 --queue-in 11 --queue-fwd 12:15",
        "--pol-out ACCEPT --pol-in DROP --pol-fwd drop",
        "-t none",
        "--sig-type none --sig-proto ip",
        "--sig_proto udp",
        "-p tcp",
        "-d 0",
        "--proc-delay 1000",
        "-r",
        "-R",
        "--retain-maps --no-rescan",
        "-S --skip-ns-switch",
        "-m",
        "--parallel",
        "-P",
        "--partial-read",
        "-n 4096",
        "--max-nl-bufsz 1048576",
        "--ring-depth 256 --kthread-to 1000",
        "--kernel-cache off",
        "--kernel-cache on",
        "--log-accept --log-rate 1",
    ];
    let options: Vec<_> =
        options.iter().map(|options| format!("--no-probe {}", options.replace("-S -", "-"))).collect();
    pass_with(&world, &mut line, &options.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn options_that_concern_the_probe_are_taken_with_it() -> Result<()> {
    let world = World::new("probe options")?;
    world.queue_output()?;
    let mut line = Line::udp(&world, 9)?;
    pass_with(&world, &mut line, &["-d 100 -r -S -m -P", "-R", "-m -b 8 -c 8"])
}

#[test]
fn notes_tell_of_options_without_effect() -> Result<()> {
    let world = World::new("no effect")?;
    let daemon = world.daemon(&["--no-probe", "--ring-depth", "256", "-S"])?;
    let said = daemon.messages();
    assert!(
        said.contains("--ring-depth and --kthread-to have no effect") && said.contains("-S has no effect"),
        "{said}"
    );
    Ok(())
}

#[test]
fn batches_carry_many_verdicts_and_lose_none() -> Result<()> {
    const BURST: u64 = 2000;
    let world = World::new("batches")?;
    world.queue_input()?;
    // From outside: nothing holds the sender back, as its own full socket would.
    let to = format!("{}:9", harness::world::LOCAL4);
    let mut line = Line::incoming(&world, &["udp", &to], "udp dport 9")?;
    for (options, many) in [
        ("-b 1 -c 1", false),
        ("-b 64 -B 1000000 -c 64", true),
        ("-b 1024 -B 0 -c 32", false),
        ("-b 1024 -B 1000000000 -c 1", false),
        ("-b 16 -B 100", false),
        ("-m -b 32 -c 16", false),
    ] {
        let mut arguments = vec!["--no-probe"];
        arguments.extend(options.split_whitespace());
        let mut daemon = world.daemon(&arguments)?;
        // What is there at once when it goes on.
        pause(&daemon)?;
        line.actor().step(&format!("send {BURST}"))?;
        daemon.signal(Signal::CONT)?;
        line.expect_arrived(BURST).with_context(|| options.to_owned())?;
        // Counters are brought up to date after the verdicts went out.
        let socket = daemon.files().socket.clone();
        wait_until("all are counted", || Ok(queue_status(&socket, 1)?.packets >= BURST))?;
        let counted = queue_status(&socket, 1)?;
        assert_eq!((counted.packets, counted.accepted, counted.dropped), (BURST, BURST, 0), "{options}");
        if options.starts_with("-b 1 ") {
            assert_eq!(counted.batches, BURST, "{options}");
        }
        if many {
            assert!(counted.batches <= BURST / 16, "{options}: {} batches", counted.batches);
        }
        assert!(daemon.stop()?.success());
    }
    Ok(())
}

#[test]
fn a_single_verdict_is_not_held_back() -> Result<()> {
    let world = World::new("idle")?;
    world.queue_output()?;
    // An hour of patience and room for many: only the idle queue sends this one.
    let _daemon = world.daemon(&["--no-probe", "-b", "1024", "-B", "3600000000"])?;
    let mut line = Line::udp(&world, 9)?;
    for _ in 0..5 {
        line.expect_passes()?;
    }
    Ok(())
}

#[test]
fn ranges_of_queues_serve_queue_balance() -> Result<()> {
    const PROTOCOLS: std::ops::Range<u8> = 200..232;
    let world = World::new("balance")?;
    let rule = ["iptables", "-w", "10", "-I", "OUTPUT", "-j", "NFQUEUE", "--queue-balance", "0:3"];
    world.run(Ns::Local, &rule, LIMIT)?.ok()?;
    let daemon = world.daemon(&["--queue-out", "0:3", "--queue-in", "4", "--queue-fwd", "5"])?;
    assert_eq!(bound(&world, Ns::Local)?, [0, 1, 2, 3, 4, 5]);
    let arrived = world.count("ip saddr 198.51.100.1")?;
    // The kernel chooses a queue by addresses and protocol: all in one would be one chance in 4^31.
    for protocol in PROTOCOLS {
        world.actor(Ns::Local, &["raw", &world.peer4().to_string(), &protocol.to_string()])?.step("send")?;
    }
    let sent = PROTOCOLS.len() as u64;
    wait_until("all arrive", || Ok(arrived.total()? == sent))?;
    let served = || -> Result<Vec<u64>> {
        (0..4).map(|number| Ok(queue_status(&daemon.files().socket, number)?.packets)).collect()
    };
    wait_until("all are counted", || Ok(served()?.iter().sum::<u64>() == sent))?;
    assert!(served()?.iter().filter(|packets| **packets > 0).count() > 1, "{:?}", served()?);
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "DROP"])?;
    for protocol in PROTOCOLS {
        world.actor(Ns::Local, &["raw", &world.peer4().to_string(), &protocol.to_string()])?.step("send")?;
    }
    world.wait_queues_empty(Ns::Local)?;
    assert_eq!(arrived.total()?, sent);
    Ok(())
}

#[test]
fn an_overrun_is_counted_and_makes_the_buffer_grow() -> Result<()> {
    let world = World::new("overrun")?;
    world.queue_input()?;
    let daemon = world.daemon(&["--no-probe"])?;
    let socket = &daemon.files().socket;
    let before = queue_status(socket, 1)?;
    // From outside: nothing holds the sender back, as its own full socket would.
    let to = |port: u16| format!("{}:{port}", harness::world::LOCAL4);
    let mut line = Line::incoming(&world, &["udp", &to(9)], "udp dport 9")?;
    line.expect_passes()?;
    pause(&daemon)?;
    // More than the receive buffer holds, fewer than may wait in the queue.
    line.actor().step("send 16000")?;
    daemon.signal(Signal::CONT)?;
    world.wait_queues_empty(Ns::Local)?;
    wait_until("the overrun is counted", || Ok(queue_status(socket, 1)?.overruns > 0))?;
    let after = queue_status(socket, 1)?;
    assert!(after.receive_buffer > before.receive_buffer, "{before:?} {after:?}");
    // Traffic goes on.
    let mut next = Line::incoming(&world, &["udp", &to(10)], "udp dport 10")?;
    next.expect_passes()?;
    next.expect_passes()
}

#[test]
fn the_receive_buffer_grows_no_further_than_told() -> Result<()> {
    let world = World::new("bounded buffer")?;
    world.queue_output()?;
    let daemon = world.daemon(&["--no-probe", "-n", "65536"])?;
    let socket = &daemon.files().socket;
    let mut line = Line::udp(&world, 9)?;
    line.expect_passes()?;
    pause(&daemon)?;
    line.actor().step("send 1000")?;
    daemon.signal(Signal::CONT)?;
    wait_until("the overrun is counted", || Ok(queue_status(socket, 0)?.overruns > 0))?;
    world.wait_queues_empty(Ns::Local)?;
    assert_eq!(queue_status(socket, 0)?.receive_buffer, 65536);
    let mut next = Line::udp(&world, 10)?;
    next.expect_passes()
}

#[test]
fn a_database_that_is_none_or_newer_or_foreign_is_refused() -> Result<()> {
    let world = World::new("databases")?;
    let mut daemon = world.daemon(&["--no-probe"])?;
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "DROP"])?;
    assert!(daemon.stop()?.success());
    let good = daemon.files().database.clone();
    let bad = Files::named(world.folder(), "bad");
    let refused = |words: &[&str]| -> Result<()> {
        let ended = run_to_end(&world, &bad, &["--no-probe"])?;
        ensure!(ended.code() == 1, "{ended}");
        ensure!(words.iter().all(|word| ended.stderr.contains(word)), "{words:?} expected: {ended}");
        ensure!(!bad.socket.exists() && bound(&world, Ns::Local)?.is_empty());
        Ok(())
    };
    fs::copy(&good, &bad.database)?;
    Connection::open(&bad.database)?.pragma_update(None, "user_version", 99)?;
    refused(&["version 99", "newer app-fw"])?;

    fs::write(&bad.database, [0x5a; 8192])?;
    refused(&["is not a database"])?;
    assert_eq!(fs::read(&bad.database)?, [0x5a; 8192], "somebody's file was changed");

    fs::remove_file(&bad.database)?;
    let other = Connection::open(&bad.database)?;
    other.execute_batch("CREATE TABLE recipes (name TEXT)")?;
    drop(other);
    refused(&["another application"])?;

    fs::copy(&good, &bad.database)?;
    fs::set_permissions(&bad.database, fs::Permissions::from_mode(0o666))?;
    refused(&["chmod 600"])?;

    // The good one is still good.
    fs::set_permissions(&bad.database, fs::Permissions::from_mode(0o600))?;
    let daemon = world.daemon_in(Ns::Local, bad.clone(), &["--no-probe"])?;
    assert_eq!(status(&daemon.files().socket)?.rules, 1);
    Ok(())
}

#[test]
fn a_database_on_a_read_only_file_system_is_refused() -> Result<()> {
    let world = World::new("read-only")?;
    let mut daemon = world.daemon(&["--no-probe"])?;
    assert!(daemon.stop()?.success());
    let (good, app_fw) = (daemon.files().database.display().to_string(), world.programs().path("app-fw")?);
    let folder = world.folder().join("ro");
    fs::create_dir(&folder)?;
    // In a mount namespace of its own, which ends with the command.
    let script = format!(
        "mount -t tmpfs none {0} && cp {good} {0}/db && mount -o remount,ro {0} && exec {1} --no-probe --db {0}/db \
         --socket {2}/sock",
        folder.display(),
        app_fw.display(),
        world.folder().display(),
    );
    let ended = world.run(Ns::Local, &["unshare", "-m", "--propagation", "private", "sh", "-c", &script], LIMIT)?;
    assert_eq!(ended.code(), 1, "{ended}");
    assert!(ended.stderr.to_lowercase().contains("read-only"), "{ended}");
    assert!(bound(&world, Ns::Local)?.is_empty());
    Ok(())
}

#[test]
fn without_a_loadable_probe_it_says_so_and_blocks_the_same() -> Result<()> {
    let world = World::new("bad object")?;
    let object = world.folder().join("bad.o");
    fs::write(&object, b"this is no object file")?;
    let daemon = blocks_by_hash(&world, &["-e", object.to_str().context("path")?], Innocent::AtOnce)?;
    let probe = status(&daemon.files().socket)?.probe;
    assert!(!probe.loaded && probe.why_not.is_some() && !probe.cost.is_empty(), "{probe:?}");
    let said = daemon.messages();
    assert!(said.contains("running without the eBPF probe") && said.contains("bad.o"), "{said}");
    Ok(())
}

#[test]
fn no_probe_blocks_the_same() -> Result<()> {
    let world = World::new("no probe")?;
    let daemon = blocks_by_hash(&world, &["--no-probe"], Innocent::AtOnce)?;
    let probe = status(&daemon.files().socket)?.probe;
    assert!(!probe.loaded && !probe.cost.is_empty(), "{probe:?}");
    assert!(daemon.messages().contains("running without the eBPF probe: --no-probe was given"));
    Ok(())
}

#[test]
fn with_the_whole_probe_nothing_is_missing() -> Result<()> {
    let world = World::new("whole probe")?;
    let daemon = blocks_by_hash(&world, &[], Innocent::AtOnce)?;
    let probe = status(&daemon.files().socket)?.probe;
    assert!(probe.loaded && probe.missing.is_empty() && probe.cost.is_empty(), "{probe:?}");
    Ok(())
}

fn blocks_without(hooks: &[Hook]) -> Result<()> {
    for hook in hooks {
        let world = World::new(&format!("without {hook}"))?;
        let daemon = blocks_by_hash(&world, &["--without-hook", &hook.to_string()], Innocent::Soon)
            .with_context(|| hook.to_string())?;
        let probe = status(&daemon.files().socket)?.probe;
        let missing: Vec<_> = probe.missing.iter().map(|missing| missing.hook.clone()).collect();
        assert!(missing.contains(&hook.to_string()), "{missing:?}");
        assert!(!probe.cost.is_empty(), "{hook} costs something: {probe:?}");
        assert!(daemon.messages().contains(&format!("hook {hook} is missing")), "{}", daemon.messages());
        assert!(world.ctl_ok(&["status"])?.contains(&hook.to_string()));
    }
    Ok(())
}

#[test]
fn without_one_hook_it_blocks_the_same_first_half() -> Result<()> {
    blocks_without(&Hook::ALL[..Hook::ALL.len() / 2])
}

#[test]
fn without_one_hook_it_blocks_the_same_second_half() -> Result<()> {
    blocks_without(&Hook::ALL[Hook::ALL.len() / 2..])
}

#[test]
fn without_any_hook_it_blocks_the_same() -> Result<()> {
    let world = World::new("without hooks")?;
    let tokens: Vec<_> = Hook::ALL.iter().map(Hook::to_string).collect();
    let arguments: Vec<_> = tokens.iter().flat_map(|token| ["--without-hook", token.as_str()]).collect();
    blocks_by_hash(&world, &arguments, Innocent::Soon).map(drop)
}
