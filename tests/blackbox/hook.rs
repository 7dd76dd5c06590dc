//! `app-fw --hook`: the rules that bring packets are put in place, stay there, and go.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use harness::daemon::Files;
use harness::{Captured, Daemon, LIMIT, Ns, Running, World};
use shared::control::{HookStatus, HooksStatus};

use crate::forward::Host;
use crate::line::{Line, queue_status, status, wait_until};

const BOTH: [&str; 2] = ["iptables-nft", "iptables-legacy"];

fn of_ipv6(program: &str) -> String {
    program.replace("iptables", "ip6tables")
}

/// All rules and chains of users that a program knows of in a namespace, by table.
fn rules_in(world: &World, ns: Ns, program: &str) -> Result<Vec<String>> {
    let save = format!("{program}-save");
    let text = world.run(ns, &[&save], LIMIT)?.ok()?;
    let mut table = "";
    let mut rules = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        }
        let own_chain = line.starts_with(':') && line.contains(" - [");
        if line.starts_with("-A ") || own_chain {
            rules.push(format!("{table}: {}", line.trim_end_matches(" [0:0]")));
        }
    }
    Ok(rules)
}

fn rules(world: &World, program: &str) -> Result<Vec<String>> {
    rules_in(world, Ns::Local, program)
}

/// Only those of app-fw's, without the table.
fn ours(world: &World, program: &str) -> Result<Vec<String>> {
    let rules = rules(world, program)?.into_iter();
    Ok(rules.filter(|rule| rule.contains("app-fw-")).map(|rule| rule.replace("mangle: ", "")).collect())
}

fn iptables(world: &World, line: &str) -> Result<Captured> {
    world.run(Ns::Local, &line.split_whitespace().collect::<Vec<_>>(), LIMIT)
}

fn start(world: &World, hook: &str, more: &[&str]) -> Result<Daemon> {
    let pins = world.files().pins.display().to_string();
    world.daemon(&[&["--hook", hook, "--pins", &pins], more].concat())
}

fn hooks(daemon: &Daemon) -> Result<HooksStatus> {
    Ok(status(&daemon.files().socket)?.hooks)
}

fn all_in_place(hooks: &HooksStatus) -> bool {
    hooks.rules.iter().all(|hook| hook.in_place)
}

/// Until the rules were put back so often.
fn wait_put_back(daemon: &Daemon, wanted: impl Fn(&HookStatus) -> bool, times: u64) -> Result<()> {
    wait_until("the rules are back", || {
        let hooks = hooks(daemon)?;
        let back = hooks.rules.iter().filter(|hook| wanted(hook)).all(|hook| hook.put_back >= times);
        Ok(back && all_in_place(&hooks))
    })
}

/// A datagram of a program that is denied by its hash, and one of another that is not.
struct Pair<'w> {
    allowed: Line<'w>,
    denied: Line<'w>,
}

impl<'w> Pair<'w> {
    fn new(world: &'w World) -> Result<Self> {
        let copy = world.actor_copy("denied")?;
        let mut pair = Pair { allowed: Line::udp(world, 9)?, denied: Line::udp_from(world, &copy, 10)? };
        pair.allowed.expect_passes().context("before the rule")?;
        pair.denied.expect_passes().context("before the rule")?;
        world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "DROP", "--sng-hash", &world.sha256(&copy)?])?;
        Ok(pair)
    }

    /// More than once: kept answers count as well, those in the kernel too.
    fn expect_judged(&mut self) -> Result<()> {
        for _ in 0..3 {
            self.denied.expect_blocked()?;
            self.allowed.expect_passes()?;
        }
        Ok(())
    }
}

#[test]
fn rules_are_put_in_place_and_removed_and_others_stay() -> Result<()> {
    for program in BOTH {
        let world = World::new(program)?;
        let six = of_ipv6(program);
        for line in [
            format!("{program} -w 10 -t mangle -A OUTPUT -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1400"),
            format!("{program} -w 10 -A OUTPUT -p udp --dport 11 -j DROP"),
            format!("{six} -w 10 -t mangle -N mine"),
        ] {
            iptables(&world, &line)?.ok()?;
        }
        let before = (rules(&world, program)?, rules(&world, &six)?);
        let mut daemon = start(&world, "INPUT,FORWARD:docker0,OUTPUT", &["--iptables", program])?;
        let pins = daemon.files().pins.clone();
        let bpf = |verdict: &str, chain: &str| {
            format!("-m bpf --object-pinned {}/{}-{chain}", pins.display(), verdict.to_lowercase()) + " -j " + verdict
        };
        for family in [program, &six] {
            let mut there = ours(&world, family)?;
            there.sort();
            let mut expected = vec![
                ":app-fw-0-OUTPUT -".to_owned(),
                ":app-fw-0-INPUT -".into(),
                format!("-A app-fw-0-OUTPUT {}", bpf("ACCEPT", "output")),
                format!("-A app-fw-0-OUTPUT {}", bpf("DROP", "output")),
                "-A app-fw-0-OUTPUT -j NFQUEUE --queue-num 0".into(),
                format!("-A app-fw-0-INPUT {}", bpf("ACCEPT", "input")),
                format!("-A app-fw-0-INPUT {}", bpf("DROP", "input")),
                "-A app-fw-0-INPUT -j NFQUEUE --queue-num 1".into(),
                "-A OUTPUT -j app-fw-0-OUTPUT".into(),
                "-A INPUT -j app-fw-0-INPUT".into(),
                "-A FORWARD -i docker0 -j app-fw-0-OUTPUT".into(),
                "-A FORWARD -o docker0 -j app-fw-0-INPUT".into(),
            ];
            expected.sort();
            ensure!(there == expected, "{family}: {there:#?}\n{expected:#?}");
        }
        // In the order that counts.
        let all = rules(&world, program)?;
        let at = |part: &str| all.iter().position(|rule| rule.contains(part)).context(part.to_owned());
        ensure!(
            at("-A app-fw-0-OUTPUT -m bpf")? < at("drop-output")? && at("drop-output")? < at("-num 0")?,
            "{all:#?}"
        );
        ensure!(at("TCPMSS")? < at("-A OUTPUT -j app-fw")?, "{all:#?}");
        let told = hooks(&daemon)?;
        ensure!(told.rules.len() == 6 && all_in_place(&told), "{told:?}");
        ensure!(told.pins.as_deref() == pins.to_str() && told.notes.is_empty(), "{told:?}");
        let shown = world.ctl_ok(&["status"])?;
        let kind = program.replace("iptables-", "");
        ensure!(shown.contains(&format!("OUTPUT ipv4 {program} ({kind}): in place")), "{shown}");

        let mut pair = Pair::new(&world)?;
        pair.expect_judged()?;
        wait_until("packets are settled in the kernel", || {
            pair.allowed.expect_passes()?;
            Ok(status(&daemon.files().socket)?.kernel_cache.chains.iter().any(|chain| chain.accepted > 0))
        })?;
        let mut line6 = Line::outgoing(
            &world,
            &world.programs().path("actor")?,
            &["udp", &format!("[{}]:12", world.peer6())],
            "udp dport 12",
        )?;
        line6.expect_passes()?;
        world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "DROP", "-p", "udp", "--dport", "12"])?;
        line6.expect_blocked()?;
        // What app-fw accepts still has to pass the other tables.
        let arrived = world.count("udp dport 11")?;
        let mut sender = world.actor(Ns::Local, &["udp", &format!("{}:11", world.peer4())])?;
        let judged = queue_status(&daemon.files().socket, 0)?.accepted;
        let _ = sender.step("send");
        wait_until("it is accepted", || Ok(queue_status(&daemon.files().socket, 0)?.accepted > judged))?;
        pair.allowed.expect_passes()?;
        ensure!(arrived.total()? == 0, "the user's own DROP was skipped");

        assert!(daemon.stop()?.success());
        ensure!((rules(&world, program)?, rules(&world, &six)?) == before, "{:#?}", rules(&world, program)?);
        ensure!(fs::read_dir(&pins)?.count() == 0, "pins that nobody names any more");
        ensure!(!fs::read_to_string("/proc/self/mountinfo")?.contains(pins.to_str().context("path")?), "still mounted");
        pair.denied.expect_passes().context("the rules are gone")?;
    }
    Ok(())
}

#[test]
fn incoming_packets_are_judged() -> Result<()> {
    let world = World::new("hook input")?;
    let _daemon = start(&world, "INPUT", &[])?;
    let _server = harness::Server::udp_sink(world.namespace(Ns::Local), 7)?;
    let mut line = Line::incoming(&world, &["udp", "198.51.100.1:7"], "udp dport 7")?;
    line.expect_passes()?;
    world.ctl_ok(&["-A", "-c", "INPUT", "-v", "DROP", "-p", "udp", "--dport", "7"])?;
    line.expect_blocked()
}

#[test]
fn containers_are_judged_behind_their_bridge() -> Result<()> {
    let host = Host::new("hook container")?;
    let container = host.container()?;
    let world = &host.world;
    let _server = world.http_server(80)?;
    let pins = world.files().pins.display().to_string();
    let daemon = world.daemon_in(Ns::Router, world.files(), &["--hook", "FORWARD:docker+,FORWARD", "--pins", &pins])?;
    let arrived = world.count("tcp dport 80")?;
    let url = world.url(80);
    let get = |program: &str| {
        let limit: &[&str] =
            if program == "curl" { &["-sS", "--max-time", "2"] } else { &["-q", "-O", "-", "-T", "2", "-t", "1"] };
        let mut command = container.command(program);
        harness::process::run(command.args(limit).arg(&url).env_clear().env("PATH", "/usr/bin:/bin"), LIMIT)
    };
    ensure!(get("curl")?.success() && get("wget")?.success());
    let before = arrived.total()?;
    ensure!(before > 0);
    let curl = world.sha256(&fs::canonicalize("/usr/bin/curl")?)?;
    host.ctl(&format!("-A -c OUTPUT -v DROP -n any --sng-hash {curl}"))?;
    world.wait_connections_closed(Ns::Peer)?;
    let before = arrived.total()?;
    ensure!(!get("curl")?.success());
    ensure!(arrived.total()? == before, "curl's packets arrived");
    ensure!(get("wget")?.success());
    let socket = &daemon.files().socket;
    ensure!(queue_status(socket, 0)?.packets > 0 && queue_status(socket, 1)?.packets > 0);
    ensure!(queue_status(socket, 2)?.packets == 0, "all of it is of the container");
    // What is not of the container: from the local end to the peer.
    let mut through = Line::udp(world, 9)?.judged_in(Ns::Router);
    through.expect_passes()?;
    ensure!(queue_status(socket, 2)?.packets > 0);
    Ok(())
}

#[test]
fn a_killed_daemon_leaves_its_rules_and_the_next_takes_them_over() -> Result<()> {
    for program in BOTH {
        let world = World::new("hook killed")?;
        iptables(&world, &format!("{program} -w 10 -t mangle -A OUTPUT -p tcp -j MARK --set-mark 1"))?.ok()?;
        let mut daemon = start(&world, "OUTPUT,INPUT", &["--iptables", program])?;
        let mut line = Line::udp(&world, 9)?;
        line.expect_passes()?;
        let once = ours(&world, program)?;
        daemon.kill9()?;
        ensure!(ours(&world, program)? == once);
        line.expect_blocked().context("nobody judges")?;
        let daemon = start(&world, "OUTPUT,INPUT", &["--iptables", program])?;
        ensure!(ours(&world, program)? == once, "{:#?}", ours(&world, program)?);
        line.expect_passes()?;
        drop(daemon);
        ensure!(ours(&world, program)?.is_empty());

        // Others, elsewhere: another queue, the other kind of tables, fewer hooks.
        let mut daemon = start(&world, "OUTPUT,INPUT", &["--iptables", program])?;
        daemon.kill9()?;
        let mut daemon = start(&world, "INPUT", &["--bypass", "--queue-out", "10:12", "--iptables", BOTH[1]])?;
        let there = ours(&world, BOTH[1])?;
        ensure!(there.iter().all(|rule| rule.contains("app-fw-10-INPUT")), "{there:#?}");
        ensure!(there.iter().any(|rule| rule.ends_with("-j NFQUEUE --queue-num 1 --queue-bypass")), "{there:#?}");
        ensure!(ours(&world, BOTH[0])?.is_empty());
        daemon.kill9()?;
        line.expect_passes().context("--bypass")?;
    }
    Ok(())
}

#[test]
fn rules_that_others_remove_come_back() -> Result<()> {
    let world = World::new("hook flushed")?;
    let daemon = start(&world, "OUTPUT", &["--iptables", "iptables-nft"])?;
    let mut pair = Pair::new(&world)?;
    let once = ours(&world, "iptables-nft")?;
    let saved = world.run(Ns::Local, &["iptables-nft-save"], LIMIT)?.ok()?;
    let file = world.folder().join("saved");
    fs::write(&file, saved.lines().filter(|line| !line.contains("app-fw")).collect::<Vec<_>>().join("\n") + "\n")?;
    let restore = format!("iptables-nft-restore {}", file.display());
    let is_ipv4 = |hook: &HookStatus| hook.family == "ipv4";
    let lines = ["iptables-nft -t mangle -F", "iptables-nft -t mangle -D OUTPUT 1", "nft flush ruleset", &restore];
    for (times, line) in (1..).zip(lines) {
        iptables(&world, line)?.ok()?;
        wait_put_back(&daemon, is_ipv4, times).with_context(|| line.to_owned())?;
        ensure!(ours(&world, "iptables-nft")? == once, "{line}: {:#?}", ours(&world, "iptables-nft")?);
        pair.expect_judged()?;
    }
    let six = hooks(&daemon)?.rules.into_iter().find(|hook| hook.family == "ipv6").context("no IPv6")?;
    ensure!(six.put_back == 1 && six.in_place, "{six:?}: only one of these was about IPv6");
    ensure!(world.ctl_ok(&["status"])?.contains("put back 4 times"));
    // Changes of other tables are nobody's business here.
    ensure!(daemon.messages().matches("there again").count() == 5, "{}", daemon.messages());
    Ok(())
}

#[test]
fn legacy_rules_that_others_remove_come_back() -> Result<()> {
    let world = World::new("hook flushed legacy")?;
    let daemon = start(&world, "OUTPUT", &["--iptables", "iptables-legacy"])?;
    let mut pair = Pair::new(&world)?;
    let once = ours(&world, "iptables-legacy")?;
    iptables(&world, "iptables-legacy -t mangle -F")?.ok()?;
    wait_put_back(&daemon, |hook| hook.family == "ipv4", 1)?;
    ensure!(ours(&world, "iptables-legacy")? == once);
    pair.expect_judged()
}

#[test]
fn rules_of_others_stay_before_ours_and_are_told_of_if_they_lead_around() -> Result<()> {
    let world = World::new("hook order")?;
    let daemon = start(&world, "OUTPUT", &[])?;
    let mark = "-p tcp -j MARK --set-xmark 0x1/0xffffffff";
    // One that comes later would not see what app-fw has accepted.
    iptables(&world, &format!("iptables -t mangle -A OUTPUT {mark}"))?.ok()?;
    let order = || -> Result<Vec<String>> {
        let rules = rules(&world, "iptables")?;
        Ok(rules.into_iter().filter(|rule| rule.starts_with("mangle: -A OUTPUT")).collect())
    };
    wait_until("the rule is in front", || Ok(order()?.first().is_some_and(|rule| rule.contains("MARK"))))?;
    ensure!(order()?.len() == 2);
    ensure!(hooks(&daemon)?.rules.iter().all(|hook| hook.put_back == 0), "they were never gone");
    iptables(&world, "iptables -t mangle -I OUTPUT -o lo -j ACCEPT")?.ok()?;
    wait_until("it is told", || Ok(hooks(&daemon)?.notes.iter().any(|note| note.contains("-A OUTPUT -o lo -j ACCEPT"))))
}

#[test]
fn a_vanished_pin_never_keeps_others_from_changing_legacy_tables() -> Result<()> {
    let world = World::new("hook pins")?;
    let change = || iptables(&world, "iptables-legacy -w 10 -t mangle -A OUTPUT -p tcp -j MARK --set-mark 1");
    let mut daemon = start(&world, "OUTPUT", &["--iptables", "iptables-legacy"])?;
    let pins = daemon.files().pins.clone();
    // While the daemon runs.
    fs::remove_file(pins.join("accept-output"))?;
    wait_until("the pin is back", || Ok(pins.join("accept-output").exists()))?;
    change()?.ok()?;
    // While none runs: then it is for the next one.
    daemon.kill9()?;
    world.run(Ns::Local, &["umount", pins.to_str().context("path")?], LIMIT)?.ok()?;
    ensure!(!change()?.success(), "then this test would be about nothing");
    let mut daemon = start(&world, "OUTPUT", &["--iptables", "iptables-legacy"])?;
    change()?.ok()?;
    ensure!(all_in_place(&hooks(&daemon)?));
    let mut line = Line::udp(&world, 9)?;
    line.expect_passes()?;
    daemon.kill9()?;
    world.run(Ns::Local, &["umount", pins.to_str().context("path")?], LIMIT)?.ok()?;
    // Also without the programs.
    let mut daemon = start(&world, "OUTPUT", &["--iptables", "iptables-legacy", "--kernel-cache", "off"])?;
    change()?.ok()?;
    line.expect_passes()?;
    assert!(daemon.stop()?.success());
    ensure!(ours(&world, "iptables-legacy")?.is_empty());
    Ok(())
}

#[test]
fn pins_that_rules_made_by_hand_name_stay() -> Result<()> {
    let world = World::new("hook by hand")?;
    let by_hand = |files: &Files| {
        let pin = files.pins.join("accept-output");
        iptables(&world, &format!("iptables-legacy -w 10 -A OUTPUT -m bpf --object-pinned {} -j ACCEPT", pin.display()))
    };
    let mut daemon = start(&world, "OUTPUT", &["--iptables", "iptables-nft"])?;
    by_hand(daemon.files())?.ok()?;
    assert!(daemon.stop()?.success());
    ensure!(ours(&world, "iptables-nft")?.is_empty());
    iptables(&world, "iptables-legacy -w 10 -A OUTPUT -p tcp -j ACCEPT")?.ok().context("the pin is gone")?;
    // Without --hook they are there as well, and stay.
    let pins = daemon.files().pins.display().to_string();
    let mut daemon = world.daemon(&["--pins", &pins])?;
    ensure!(hooks(&daemon)?.pins.is_some() && hooks(&daemon)?.rules.is_empty());
    assert!(daemon.stop()?.success());
    iptables(&world, "iptables-legacy -w 10 -A OUTPUT -p tcp -j ACCEPT")?.ok().map(drop)
}

#[test]
fn a_range_of_queues_is_balanced() -> Result<()> {
    let world = World::new("hook range")?;
    let daemon = start(&world, "OUTPUT", &["--queue-out", "20:23"])?;
    let there = ours(&world, "iptables")?;
    ensure!(there.iter().any(|rule| rule.ends_with("-j NFQUEUE --queue-balance 20:23")), "{there:#?}");
    Pair::new(&world)?.expect_judged()?;
    let queues = status(&daemon.files().socket)?.queues;
    ensure!(
        queues.iter().filter(|queue| (20..=23).contains(&queue.number)).map(|queue| queue.packets).sum::<u64>() > 0
    );
    Ok(())
}

#[test]
fn without_the_verdict_cache_all_packets_are_queued() -> Result<()> {
    let world = World::new("hook no cache")?;
    for more in [&["--kernel-cache", "off"][..], &["--no-probe"], &["--without-hook", "cache"]] {
        let daemon = start(&world, "OUTPUT", more)?;
        let mut there = ours(&world, "iptables")?;
        there.sort();
        let expected =
            ["-A OUTPUT -j app-fw-0-OUTPUT", "-A app-fw-0-OUTPUT -j NFQUEUE --queue-num 0", ":app-fw-0-OUTPUT -"];
        ensure!(there == expected, "{more:?}: {there:#?}");
        let told = status(&daemon.files().socket)?;
        ensure!(told.hooks.pins.is_none() && told.kernel_cache.why_not.is_some(), "{:?}", told.kernel_cache);
    }
    Ok(())
}

/// The daemon, which must end by itself, in an environment of its own.
fn refused(world: &World, environment: &[&str], arguments: &[&str]) -> Result<Captured> {
    let files = Files::named(world.folder(), "refused");
    let program = world.programs().path("app-fw")?.display().to_string();
    let own = [("--db", &files.database), ("--socket", &files.socket), ("--pins", &files.pins)];
    let own = own.map(|(option, path)| (option, path.display().to_string()));
    let own = own.iter().filter(|(option, _)| !arguments.contains(option));
    let own: Vec<&str> = own.flat_map(|(option, path)| [*option, path]).collect();
    let ended = world.run(Ns::Local, &[&["env"], environment, &[&program], &own, arguments].concat(), LIMIT)?;
    ensure!(ended.code() == 1 && !files.socket.exists(), "{ended}");
    ensure!(!ended.stderr.contains("panicked"), "{ended}");
    Ok(ended)
}

#[test]
fn what_cannot_be_put_in_place_is_refused() -> Result<()> {
    let world = World::new("hook refused")?;
    let ended = refused(&world, &["PATH=/nonexistent"], &["--hook", "OUTPUT"])?;
    ensure!(ended.stderr.contains("iptables") && ended.stderr.contains("install"), "{ended}");
    // One that says no, and one that says yes and does nothing.
    for (script, words) in [("echo not today >&2; exit 4", "not today"), ("exit 0", "not there")] {
        let folder = world.folder().join("lying");
        fs::create_dir_all(&folder)?;
        for family in ["iptables", "ip6tables"] {
            install(&folder, family, "echo 'iptables v9 (nf_tables)'")?;
            install(&folder, &format!("{family}-save"), &format!("exec /usr/sbin/{family}-save \"$@\""))?;
            install(&folder, &format!("{family}-restore"), script)?;
        }
        let program = folder.join("iptables").display().to_string();
        let ended = refused(&world, &[], &["--hook", "OUTPUT", "--iptables", &program])?;
        ensure!(ended.stderr.contains(words), "{ended}");
    }
    // IPv4's rules do not stay alone if IPv6's cannot be put in place.
    let folder = world.folder().join("half");
    fs::create_dir_all(&folder)?;
    for suffix in ["", "-save", "-restore"] {
        std::os::unix::fs::symlink(
            format!("/usr/sbin/iptables-nft{suffix}"),
            folder.join(format!("iptables-nft{suffix}")),
        )?;
    }
    install(&folder, "ip6tables-nft", "echo 'ip6tables v9 (nf_tables)'")?;
    for suffix in ["-save", "-restore"] {
        install(&folder, &format!("ip6tables-nft{suffix}"), "echo out of order >&2; exit 1")?;
    }
    let program = folder.join("iptables-nft").display().to_string();
    let ended = refused(&world, &[], &["--hook", "OUTPUT", "--iptables", &program])?;
    ensure!(ended.stderr.contains("out of order"), "{ended}");
    ensure!(ours(&world, "iptables-nft")?.is_empty());
    // Without any ip6tables it goes on, and says so.
    for suffix in ["", "-save", "-restore"] {
        fs::remove_file(folder.join(format!("ip6tables-nft{suffix}")))?;
    }
    let daemon = start(&world, "OUTPUT", &["--iptables", &program])?;
    let told = hooks(&daemon)?;
    ensure!(
        told.rules.len() == 1 && told.notes.iter().any(|note| note.contains("IPv6 packets are not judged")),
        "{told:?}"
    );
    drop(daemon);
    // Nor do rules stay if the daemon cannot go on after they were put in place.
    let _other = world.daemon(&["--no-probe", "--kernel-cache", "off"])?;
    let socket = world.files().socket.display().to_string();
    let queues = ["--queue-out", "30", "--queue-in", "31", "--queue-fwd", "32"];
    let ended = refused(&world, &[], &[&["--hook", "OUTPUT", "--socket", &socket], &queues[..]].concat())?;
    ensure!(ended.stderr.contains("--socket"), "{ended}");
    ensure!(ours(&world, "iptables")?.is_empty());
    Ok(())
}

#[test]
fn what_a_crash_shut_stays_shut_until_a_daemon_has_started() -> Result<()> {
    let world = World::new("hook stays shut")?;
    let mut daemon = start(&world, "OUTPUT", &[])?;
    let mut line = Line::udp(&world, 9)?;
    line.expect_passes()?;
    daemon.kill9()?;
    let there = ours(&world, "iptables")?;
    let _other = world.daemon_in(
        Ns::Local,
        Files::named(world.folder(), "other"),
        &["--no-probe", "--queue-out", "30", "--queue-in", "31", "--queue-fwd", "32"],
    )?;
    let socket = Files::named(world.folder(), "other").socket.display().to_string();
    let pins = world.files().pins.display().to_string();
    let ended = refused(&world, &[], &["--hook", "OUTPUT", "--socket", &socket, "--pins", &pins])?;
    ensure!(ended.stderr.contains("--socket"), "{ended}");
    ensure!(ours(&world, "iptables")? == there);
    line.expect_blocked()
}

#[test]
fn where_rules_cannot_name_programs_all_packets_are_queued() -> Result<()> {
    let world = World::new("hook no match")?;
    let folder = world.folder().join("without-bpf");
    fs::create_dir_all(&folder)?;
    for family in ["iptables", "ip6tables"] {
        install(&folder, family, "echo 'iptables v9 (nf_tables)'")?;
        install(&folder, &format!("{family}-save"), &format!("exec /usr/sbin/{family}-nft-save \"$@\""))?;
        let script = format!(
            "text=$(cat)\ncase $text in *object-pinned*) echo no match bpf >&2; exit 2;; esac\n\
             printf '%s\\n' \"$text\" | exec /usr/sbin/{family}-nft-restore \"$@\""
        );
        install(&folder, &format!("{family}-restore"), &script)?;
    }
    let program = folder.join("iptables").display().to_string();
    let daemon = start(&world, "OUTPUT", &["--iptables", &program])?;
    let told = hooks(&daemon)?;
    ensure!(all_in_place(&told) && told.notes.iter().any(|note| note.contains("no match bpf")), "{told:?}");
    Pair::new(&world)?.expect_judged()?;
    ensure!(ours(&world, "iptables-nft")?.iter().all(|rule| !rule.contains("bpf")));
    // What can no longer be kept is told of.
    install(&folder, "iptables-restore", "echo out of order >&2; exit 1")?;
    iptables(&world, "iptables-nft -t mangle -F")?.ok()?;
    wait_until("it is told", || {
        let four = hooks(&daemon)?.rules.into_iter().find(|hook| hook.family == "ipv4").context("no IPv4")?;
        let why = four.why_not.is_some_and(|why| why.contains("out of order"));
        Ok(!four.in_place && four.gone_ms.is_some() && why)
    })?;
    ensure!(world.ctl_ok(&["status"])?.contains("NOT in place, gone for"));
    install(&folder, "iptables-restore", "exec /usr/sbin/iptables-nft-restore \"$@\"")?;
    wait_put_back(&daemon, |hook| hook.family == "ipv4", 1)
}

#[test]
fn two_daemons_of_one_namespace_keep_to_their_own_rules() -> Result<()> {
    let world = World::new("hook two")?;
    let one = start(&world, "OUTPUT", &[])?;
    let alone = ours(&world, "iptables")?;
    let queues = ["--queue-out", "10", "--queue-in", "11", "--queue-fwd", "12"];
    let files = Files::named(world.folder(), "other");
    let pins = files.pins.display().to_string();
    let mut other =
        world.daemon_in(Ns::Local, files, &[&["--hook", "OUTPUT", "--pins", &pins], &queues[..]].concat())?;
    let both = ours(&world, "iptables")?;
    ensure!(both.len() == 2 * alone.len(), "{both:#?}");
    iptables(&world, "iptables -t mangle -F")?.ok()?;
    wait_put_back(&one, |hook| hook.family == "ipv4", 1)?;
    wait_put_back(&other, |hook| hook.family == "ipv4", 1)?;
    ensure!(ours(&world, "iptables")?.len() == both.len());
    assert!(other.stop()?.success());
    ensure!(ours(&world, "iptables")? == alone);
    ensure!(hooks(&one)?.rules.iter().all(|hook| hook.put_back <= 1 && hook.in_place));
    Line::udp(&world, 9)?.expect_passes()
}

#[test]
fn senders_that_are_rejected_are_told() -> Result<()> {
    let world = World::new("hook reject")?;
    let _daemon = start(&world, "OUTPUT,INPUT", &[])?;
    let _server = world.http_server(80)?;
    let url = world.url(80);
    let curl = || world.run(Ns::Local, &["curl", "-sS", "--max-time", "5", &url], LIMIT);
    ensure!(curl()?.success());
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "REJECT", "-p", "tcp", "--dport", "80"])?;
    let ended = curl()?;
    // "Failed to connect", not "timed out".
    ensure!(ended.code() == 7, "{ended}");
    Ok(())
}

#[test]
fn an_end_that_comes_early_is_orderly_too() -> Result<()> {
    let world = World::new("hook early end")?;
    // The end comes while the rules are put in place.
    let folder = world.folder().join("slow");
    fs::create_dir_all(&folder)?;
    let marker = folder.join("begun");
    for family in ["iptables", "ip6tables"] {
        install(&folder, family, &format!("exec /usr/sbin/{family}-nft \"$@\""))?;
        install(&folder, &format!("{family}-save"), &format!("exec /usr/sbin/{family}-nft-save \"$@\""))?;
        let script = format!("touch {}; sleep 1; exec /usr/sbin/{family}-nft-restore \"$@\"", marker.display());
        install(&folder, &format!("{family}-restore"), &script)?;
    }
    let files = world.files();
    let program = world.programs().path("app-fw")?.display().to_string();
    let tables = folder.join("iptables").display().to_string();
    let [db, socket, pins] = [&files.database, &files.socket, &files.pins].map(|path| path.display().to_string());
    let argv = [
        &program,
        "--db",
        &db,
        "--socket",
        &socket,
        "--pins",
        &pins,
        "--no-probe",
        "--hook",
        "OUTPUT",
        "--iptables",
        &tables,
    ];
    let mut daemon = Running::start(world.command(Ns::Local, &argv)?.stderr(Stdio::null()))?;
    wait_until("it puts rules in place", || Ok(marker.exists()))?;
    daemon.signal(harness::Signal::TERM)?;
    ensure!(daemon.wait(LIMIT)?.success());
    ensure!(ours(&world, "iptables-nft")?.is_empty());
    Ok(())
}

fn install(folder: &Path, name: &str, script: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join(name);
    // Renamed, so that nobody executes what a thread has open for writing just now.
    let draft = folder.join(format!("{name}.draft"));
    fs::write(&draft, format!("#!/bin/sh\n{script}\n"))?;
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755))?;
    Ok(fs::rename(draft, path)?)
}

#[test]
fn pins_of_a_running_daemon_are_refused() -> Result<()> {
    let world = World::new("hook pins taken")?;
    let pins = world.files().pins.display().to_string();
    let daemon = world.daemon(&["--pins", &pins])?;
    let queues = ["--queue-out", "10", "--queue-in", "11", "--queue-fwd", "12"];
    let ended = refused(&world, &[], &[&queues[..], &["--pins", &pins]].concat())?;
    ensure!(ended.stderr.contains("another app-fw has its pins"), "{ended}");
    ensure!(daemon.files().pins.join("accept-output").exists());
    Ok(())
}

#[test]
fn the_kind_of_tables_is_that_which_is_used() -> Result<()> {
    let world = World::new("hook kind")?;
    let tables = |daemon: &Daemon| -> Result<String> { Ok(hooks(daemon)?.rules[0].tables.clone()) };
    let is_nft = world.run(Ns::Local, &["iptables", "--version"], LIMIT)?.ok()?.contains("nf_tables");
    let (usual, other) = if is_nft { ("iptables-nft", "iptables-legacy") } else { ("iptables-legacy", "iptables-nft") };
    iptables(&world, &format!("{other} -w 10 -A OUTPUT -p udp --dport 11 -j DROP"))?.ok()?;
    let daemon = start(&world, "OUTPUT", &[])?;
    ensure!(tables(&daemon)?.contains(other), "{}", tables(&daemon)?);
    drop(daemon);
    iptables(&world, &format!("{usual} -w 10 -A OUTPUT -p udp --dport 12 -j DROP"))?.ok()?;
    let daemon = start(&world, "OUTPUT", &[])?;
    ensure!(tables(&daemon)?.starts_with("iptables ("), "{}", tables(&daemon)?);
    let told = hooks(&daemon)?;
    ensure!(told.notes.iter().any(|note| note.contains(other)), "{told:?}");
    Ok(())
}

#[test]
fn a_bpffs_of_its_own_is_mounted_where_there_is_none() -> Result<()> {
    let world = World::new("hook bpffs")?;
    let program = world.programs().path("app-fw")?;
    // In a mount namespace of its own: nothing of /run and /sys/fs/bpf is the machine's.
    let script = |line: &str| {
        format!("mount -t tmpfs none /run && umount -q /sys/fs/bpf; {line}\nexec {} \"$@\"", program.display())
    };
    let start = |name: &str, line: &str| {
        install(world.folder(), name, &script(line))?;
        let wrapper = format!("{name}-alone");
        let inner = world.folder().join(name).display().to_string();
        install(world.folder(), &wrapper, &format!("exec unshare -m --propagation private sh {inner} \"$@\""))?;
        let program = world.folder().join(wrapper);
        Daemon::start(world.namespace(Ns::Local), &program, world.files(), &["--hook", "OUTPUT"])
    };
    let mut daemon = start("own", "")?;
    let mounts = |daemon: &Daemon| fs::read_to_string(format!("/proc/{}/mountinfo", daemon.pid()));
    let pins = PathBuf::from(hooks(&daemon)?.pins.context("no pins")?);
    ensure!(pins.starts_with("/run/app-fw/bpf/app-fw"), "{}", pins.display());
    ensure!(mounts(&daemon)?.contains(" /run/app-fw/bpf "), "{}", mounts(&daemon)?);
    Pair::new(&world)?.expect_judged()?;
    assert!(daemon.stop()?.success());
    let mut daemon = start("usual", "mount -t bpf bpf /sys/fs/bpf")?;
    let pins = PathBuf::from(hooks(&daemon)?.pins.context("no pins")?);
    ensure!(pins.starts_with("/sys/fs/bpf/app-fw"), "{}", pins.display());
    ensure!(!mounts(&daemon)?.contains(" /run/app-fw/bpf "));
    assert!(daemon.stop()?.success());
    Ok(())
}
