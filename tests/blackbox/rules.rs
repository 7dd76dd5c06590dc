//! Rules: what they match, in which order they are tried, for whom, and that they stay.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use ctl_fw::client::Client;
use harness::counter::Place;
use harness::{Daemon, LIMIT, Ns, World, servers};
use shared::control::{Answer, Edit, Listing, Request};
use shared::{Match, Selector};

use crate::line::{Line, ask, wait_until};

/// What `ctl-fw -L` would show.
fn listing(socket: &Path) -> Result<Listing> {
    match ask(socket, &Request::List { chain: None, namespace: None })? {
        Answer::Listing(listing) => Ok(listing),
        other => bail!("not a listing: {other:?}"),
    }
}

/// Adds a rule before all others, runs `check` and takes it away again.
fn with_rule(world: &World, words: &str, check: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut argv = vec!["-I", "0", "-c", "OUTPUT", "-v", "DROP"];
    argv.extend(words.split_whitespace());
    world.ctl_ok(&argv)?;
    check().with_context(|| format!("with the rule `{words}`"))?;
    world.ctl_ok(&["-D", "0", "-c", "OUTPUT"])?;
    Ok(())
}

/// A world in which everything that leaves is judged, and lines of several kinds in it, by letter:
/// `a` UDP from port 4001 to 9, `b` UDP from 4002 to 10, `6` UDP over IPv6 from 4003 to 9, `l` UDP-Lite from 4004 to 9,
/// `r` protocol 253.
struct Field<'w> {
    world: &'w World,
    lines: Vec<(char, Line<'w>)>,
    _daemon: Daemon,
}

impl<'w> Field<'w> {
    fn new(world: &'w World, kinds: &str) -> Result<Self> {
        world.queue_output()?;
        let daemon = world.daemon(&[])?;
        let (peer4, peer6) = (world.peer4(), world.peer6());
        let actor = world.programs().path("actor")?;
        let mut lines = Vec::new();
        for kind in kinds.chars() {
            let (arguments, expression) = match kind {
                'a' => (format!("udp {peer4}:9 --bind 0.0.0.0:4001"), "ip protocol udp udp dport 9"),
                'b' => (format!("udp {peer4}:10 --bind 0.0.0.0:4002"), "udp dport 10"),
                '6' => (format!("udp [{peer6}]:9 --bind [::]:4003"), "ip6 nexthdr udp udp dport 9"),
                'l' => (format!("udplite {peer4}:9 --bind 0.0.0.0:4004"), "ip protocol udplite"),
                'r' => (format!("raw {peer4} 253"), "ip protocol 253"),
                other => bail!("no line {other}"),
            };
            let arguments: Vec<_> = arguments.split_whitespace().collect();
            let mut line = Line::outgoing(world, &actor, &arguments, expression)?;
            line.expect_passes().with_context(|| format!("line {kind} before any rule"))?;
            lines.push((kind, line));
        }
        Ok(Self { world, lines, _daemon: daemon })
    }

    /// A DROP rule with these matches blocks exactly the lines in `blocked`.
    fn blocks(&mut self, rule: &str, blocked: &str) -> Result<()> {
        let lines = &mut self.lines;
        with_rule(self.world, rule, || {
            lines.iter_mut().try_for_each(|(kind, line)| {
                line.expect(!blocked.contains(*kind)).with_context(|| format!("line {kind}"))
            })
        })
    }
}

#[test]
fn the_line_of_the_interface_blocks_curl_and_not_wget() -> Result<()> {
    let world = World::new("curl and wget")?;
    let (_curls, _wgets) = (world.http_server(80)?, world.http_server(81)?);
    let (from_curl, from_wget) = (world.count("tcp dport 80")?, world.count("tcp dport 81")?);
    world.queue_output()?;
    let _daemon = world.daemon(&[])?;
    let curl = ["curl", "-sS", "--connect-timeout", "0.5", &world.url(80)];
    let wget = ["wget", "-q", "-t", "1", "-T", "10", "-O", "-", &world.url(81)];
    assert_eq!(world.run(Ns::Local, &curl, LIMIT)?.ok()?, servers::PAGE);
    assert_eq!(world.run(Ns::Local, &wget, LIMIT)?.ok()?, servers::PAGE);
    world.wait_connections_closed(Ns::Peer)?;
    assert!(from_curl.delta()? > 0 && from_wget.delta()? > 0);

    // As it stands in the interface.
    let line = "ctl-fw -A -c OUTPUT -v DROP -n /proc/$$/ns/net \
                --sng-hash $(sha256sum /usr/bin/curl | awk '{print $1}')";
    world.run(Ns::Local, &["sh", "-c", line], LIMIT)?.ok()?;
    let blocked = world.run(Ns::Local, &curl, LIMIT)?;
    assert_eq!(blocked.code(), 28, "curl did not run into its timeout: {blocked}");
    from_curl.assert_silent()?;
    assert_eq!(world.run(Ns::Local, &wget, LIMIT)?.ok()?, servers::PAGE);
    assert!(from_wget.delta()? > 0);
    Ok(())
}

#[test]
fn prefixes_of_both_families() -> Result<()> {
    let world = World::new("prefixes")?;
    let mut field = Field::new(&world, "a6")?;
    for (rule, blocked) in [
        ("-d 198.51.100.2", "a"),
        ("-d 198.51.100.2/32", "a"),
        ("-d 198.51.100.0/30", "a"),
        ("-d 198.51.100.0/31", ""),
        // Bits beyond the length do not count.
        ("-d 198.51.100.77/24", "a"),
        ("-s 198.51.100.1", "a"),
        ("-s 198.51.100.2", ""),
        ("-d 0.0.0.0/0", "a"),
        ("-d fd00:af:0:1::2", "6"),
        ("-d fd00:af:0:1::/64", "6"),
        ("-s fd00:af::/32", "6"),
        ("-s fd00:af:0:2::/64", ""),
        ("-d ::/0", "6"),
        ("-s 198.51.100.0/24 -d 198.51.100.3", ""),
    ] {
        field.blocks(rule, blocked)?;
    }
    Ok(())
}

#[test]
fn protocols_by_name_and_number_and_ports() -> Result<()> {
    let world = World::new("protocols")?;
    let mut field = Field::new(&world, "ab6lr")?;
    for (rule, blocked) in [
        ("-p udp", "ab6"),
        ("-p 17", "ab6"),
        ("-p UDPLITE", "l"),
        ("-p 253", "r"),
        ("-p tcp", ""),
        ("--dport 9", "a6l"),
        ("--sport 4002", "b"),
        ("-p udp --dport 9 -d 198.51.100.2", "a"),
        ("--dport 9 --sport 4002", ""),
    ] {
        field.blocks(rule, blocked)?;
    }
    Ok(())
}

#[test]
fn negation_in_both_spellings() -> Result<()> {
    let world = World::new("negation")?;
    let mut field = Field::new(&world, "ab6r")?;
    for (rule, blocked) in [
        ("! -d 198.51.100.2", "6"),
        ("-! -d 198.51.100.2", "6"),
        ("! -s fd00:af::/32", "abr"),
        ("! -p udp", "r"),
        ("-p udp -! --dport 9", "b"),
        ("-p udp ! --sport 4001", "b6"),
        ("-! -p udp ! -d 198.51.100.2", ""),
        // What has no ports has not port 9.
        ("! --dport 9", "br"),
    ] {
        field.blocks(rule, blocked)?;
    }
    Ok(())
}

#[test]
fn digests_and_aggregates_and_their_negations() -> Result<()> {
    let world = World::new("identity")?;
    world.queue_output()?;
    let _daemon = world.daemon(&[])?;
    let copy = world.actor_copy("copy")?;
    let mut plain = Line::udp(&world, 9)?;
    let mut other = Line::udp_from(&world, &copy, 10)?;
    plain.expect_passes()?;
    other.expect_passes()?;
    let digest = world.sha256(&copy)?;
    let aggregate = aggregate(&world, other.actor().pid())?;
    for (rule, plain_passes, other_passes) in [
        (format!("--sng-hash {digest}"), true, false),
        (format!("! --sng-hash {digest}"), false, true),
        (format!("--agg-hash {aggregate}"), true, false),
        (format!("-! --agg-hash {aggregate}"), false, true),
        (format!("--sng-hash {digest} --dport 9"), true, true),
        (format!("--sng-hash {digest} --agg-hash {aggregate} --dport 10"), true, false),
    ] {
        with_rule(&world, &rule, || {
            plain.expect(plain_passes).context("the actor")?;
            other.expect(other_passes).context("its copy")
        })?;
    }
    // The other way round: only what is allowed passes.
    world.ctl_ok(&["-P", "OUTPUT", "DROP"])?;
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "ACCEPT", "--sng-hash", &digest])?;
    plain.expect_blocked()?;
    other.expect_passes()
}

/// The aggregate of what a process has mapped executable, by `ctl-fw -H`.
pub fn aggregate(world: &World, pid: u32) -> Result<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let executable = maps.lines().filter(|line| line.split_whitespace().nth(1).is_some_and(|mode| mode.contains('x')));
    let files: BTreeSet<_> = executable.filter_map(|line| line.find('/').map(|start| &line[start..])).collect();
    let mut argv = vec!["-H"];
    argv.extend(files);
    let digests = world.ctl_ok(&argv)?;
    let last = digests.lines().last().and_then(|line| line.strip_suffix("  aggregate"));
    last.map(str::to_owned).with_context(|| format!("no aggregate in:\n{digests}"))
}

#[test]
fn the_first_rule_that_fires_decides() -> Result<()> {
    let world = World::new("order")?;
    world.queue_output()?;
    let daemon = world.daemon(&[])?;
    let (mut nine, mut ten) = (Line::udp(&world, 9)?, Line::udp(&world, 10)?);
    let mut expect = |nine_passes, ten_passes| -> Result<()> {
        nine.expect(nine_passes).context("port 9")?;
        ten.expect(ten_passes).context("port 10")
    };
    let ctl = |line: &str| world.ctl_ok(&line.split_whitespace().collect::<Vec<_>>());
    expect(true, true)?;
    ctl("-A -c OUTPUT -v ACCEPT -p udp --dport 9")?;
    ctl("-A -c OUTPUT -v DROP -p udp")?;
    expect(true, false)?;
    ctl("-I 0 -c OUTPUT -v DROP -p udp --dport 9")?;
    expect(false, false)?;
    // Behind the first, before the one that drops everything.
    ctl("-I 1 -c OUTPUT -v ACCEPT -p udp --dport 10")?;
    expect(false, true)?;
    let order = |socket: &Path| -> Result<Vec<String>> {
        Ok(listing(socket)?.rules.iter().map(|listed| format!("{} {}", listed.position, listed.rule)).collect())
    };
    let name = world.namespace(Ns::Local).name();
    assert_eq!(
        order(&daemon.files().socket)?,
        [
            format!("0 -A -c OUTPUT -n netns:{name} -v DROP -p udp --dport 9"),
            format!("1 -A -c OUTPUT -n netns:{name} -v ACCEPT -p udp --dport 10"),
            format!("2 -A -c OUTPUT -n netns:{name} -v ACCEPT -p udp --dport 9"),
            format!("3 -A -c OUTPUT -n netns:{name} -v DROP -p udp"),
        ]
    );
    ctl("-D 0 -c OUTPUT")?;
    expect(true, true)?;
    ctl("-D 0 -c OUTPUT")?;
    expect(true, false)?;
    ctl("-D 1 -c OUTPUT")?;
    expect(true, true)
}

#[test]
fn the_queue_makes_the_chain_not_the_hook() -> Result<()> {
    let world = World::new("queue makes chain")?;
    let _daemon = world.daemon(&[])?;
    for chain in ["OUTPUT", "INPUT", "FORWARD"] {
        let port = if chain == "OUTPUT" {
            "9"
        } else if chain == "INPUT" {
            "10"
        } else {
            "11"
        };
        world.ctl_ok(&["-A", "-c", chain, "-v", "DROP", "-p", "udp", "--dport", port])?;
    }
    let (mut nine, mut ten, mut eleven) = (Line::udp(&world, 9)?, Line::udp(&world, 10)?, Line::udp(&world, 11)?);
    for line in [&mut nine, &mut ten, &mut eleven] {
        line.expect_passes().context("without a queue")?;
    }
    for (queue, passes) in [(0, [false, true, true]), (1, [true, false, true]), (2, [true, true, false])] {
        // The latest comes first.
        world.queue(Ns::Local, &["OUTPUT"], queue)?;
        for (line, passes) in [&mut nine, &mut ten, &mut eleven].into_iter().zip(passes) {
            line.expect(passes).with_context(|| format!("queue {queue}"))?;
        }
    }
    Ok(())
}

#[test]
fn input_is_judged_by_the_input_chain() -> Result<()> {
    let world = World::new("input")?;
    world.queue_output()?;
    world.queue_input()?;
    let _daemon = world.daemon(&[])?;
    let to = |port| format!("{}:{port}", harness::world::LOCAL4);
    let mut nine = Line::incoming(&world, &["udp", &to(9), "--bind", "0.0.0.0:4001"], "udp dport 9")?;
    let mut ten = Line::incoming(&world, &["udp", &to(10)], "udp dport 10")?;
    nine.expect_passes()?;
    ten.expect_passes()?;
    // Rules of other chains mean nothing here.
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "DROP", "--dport", "9"])?;
    world.ctl_ok(&["-A", "-c", "FORWARD", "-v", "DROP", "--dport", "9"])?;
    nine.expect_passes()?;
    world.ctl_ok(&[
        "-A",
        "-c",
        "INPUT",
        "-v",
        "DROP",
        "-p",
        "udp",
        "-s",
        &world.peer4().to_string(),
        "--sport",
        "4001",
    ])?;
    nine.expect_blocked()?;
    ten.expect_passes()
}

#[test]
fn policies_hold_where_no_rule_fires_and_stored_ones_win() -> Result<()> {
    let world = World::new("policies")?;
    world.queue_output()?;
    world.queue_input()?;
    let mut daemon = world.daemon(&["--pol-in", "DROP"])?;
    let mut out = Line::udp(&world, 9)?;
    let to = format!("{}:10", harness::world::LOCAL4);
    let mut inward = Line::incoming(&world, &["udp", &to], "udp dport 10")?;
    out.expect_passes()?;
    world.ctl_ok(&["-A", "-c", "INPUT", "-v", "ACCEPT", "--dport", "10"])?;
    inward.expect_passes()?;
    world.ctl_ok(&["-D", "0", "-c", "INPUT"])?;
    inward.expect_blocked().context("--pol-in DROP")?;

    world.ctl_ok(&["-P", "INPUT", "ACCEPT"])?;
    inward.expect_passes()?;
    world.ctl_ok(&["-P", "OUTPUT", "DROP", "-n", "any"])?;
    out.expect_blocked()?;
    inward.expect_passes().context("another chain's policy")?;
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "ACCEPT", "--dport", "9"])?;
    out.expect_passes()?;
    world.ctl_ok(&["-F", "-c", "OUTPUT"])?;
    out.expect_blocked()?;
    world.ctl_ok(&["-P", "OUTPUT", "ACCEPT"])?;
    out.expect_passes().context("a namespace's own policy comes before that of any")?;

    // At the next start what was stored wins over the command line.
    assert!(daemon.stop()?.success());
    let mut daemon = world.daemon(&["--pol-in", "DROP", "--pol-out", "DROP", "--pol-fwd", "DROP"])?;
    out.expect_passes()?;
    inward.expect_passes()?;
    world.ctl_ok(&["-P", "INPUT", "DROP"])?;
    assert!(daemon.stop()?.success());
    let _daemon = world.daemon(&["--pol-in", "ACCEPT"])?;
    inward.expect_blocked()
}

#[test]
fn default_policies_are_those_of_the_command_line() -> Result<()> {
    let world = World::new("default policies")?;
    let mut line = Line::udp(&world, 9)?;
    line.expect_passes()?;
    for (queue, option) in [(0, "--pol-out"), (1, "--pol-in"), (2, "--pol-fwd")] {
        world.queue(Ns::Local, &["OUTPUT"], queue)?;
        for policy in ["DROP", "ACCEPT"] {
            let _daemon = world.daemon(&["--no-probe", option, policy])?;
            line.expect(policy == "ACCEPT").with_context(|| format!("{option} {policy}"))?;
        }
    }
    Ok(())
}

#[test]
fn rules_of_another_namespace_do_not_fire_and_those_of_any_do() -> Result<()> {
    let world = World::new("namespaces")?;
    world.queue_output()?;
    let _daemon = world.daemon(&[])?;
    let mut line = Line::udp(&world, 9)?;
    line.expect_passes()?;
    let name = |ns| world.namespace(ns).name().to_owned();
    let path = |ns| world.namespace(ns).path().display().to_string();
    for (namespace, passes) in [
        (name(Ns::Peer), true),
        (path(Ns::Peer), true),
        ("host".to_owned(), true),
        (name(Ns::Local), false),
        (format!("netns:{}", name(Ns::Local)), false),
        (path(Ns::Local), false),
        ("any".to_owned(), false),
    ] {
        world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "DROP", "-n", &namespace])?;
        line.expect(passes).with_context(|| format!("-n {namespace}"))?;
        world.ctl_ok(&["-F", "-n", &namespace])?;
        line.expect_passes().with_context(|| format!("-F -n {namespace}"))?;
    }
    // Without -n it is the namespace in which ctl-fw runs.
    world.ctl_in(Ns::Peer, &["-A", "-c", "OUTPUT", "-v", "DROP"])?.ok()?;
    line.expect_passes()?;
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "DROP"])?;
    line.expect_blocked()
}

/// A further name of a namespace, which goes when this does.
struct Alias(String);

impl Alias {
    /// Named as the world's are, so that the traces of a killed run are swept.
    fn of(world: &World, ns: Ns, pid: u32) -> Result<Self> {
        let name = format!("{}x", world.namespace(ns).name());
        world.run(Ns::Local, &["ip", "netns", "attach", &name, &pid.to_string()], LIMIT)?.ok()?;
        Ok(Self(name))
    }
}

impl Drop for Alias {
    fn drop(&mut self) {
        let gone = std::process::Command::new("ip").args(["netns", "delete", &self.0]).status();
        if !gone.is_ok_and(|status| status.success()) {
            eprintln!("cleaning up: {} stays", self.0);
        }
    }
}

#[test]
fn a_dormant_rule_wakes_with_its_namespace_and_sleeps_again() -> Result<()> {
    let world = World::new("dormant")?;
    world.queue_output()?;
    let daemon = world.daemon(&[])?;
    let socket = &daemon.files().socket;
    let mut line = Line::udp(&world, 9)?;
    line.expect_passes()?;
    let name = format!("{}x", world.namespace(Ns::Local).name());
    let added = world.ctl(&["-A", "-c", "OUTPUT", "-v", "DROP", "-n", &name])?;
    assert!(added.success() && added.stderr.contains("dormant"), "{added}");
    assert!(world.ctl_ok(&["-L"])?.contains("dormant"));
    line.expect_passes()?;

    let is_dormant = || Ok(listing(socket)?.rules.first().context("the rule is gone")?.dormant);
    for _ in 0..2 {
        let alias = Alias::of(&world, Ns::Local, daemon.pid())?;
        wait_until("the daemon knows the name", || is_dormant().map(|dormant| !dormant))?;
        line.expect_blocked()?;
        drop(alias);
        wait_until("the daemon knows that the name is gone", is_dormant)?;
        line.expect_passes()?;
    }
    Ok(())
}

#[test]
fn a_rule_for_a_namespace_file_lasts_as_long_as_the_namespace() -> Result<()> {
    let world = World::new("lifetime")?;
    let nameless = world.folder().join("nameless");
    let daemon = world.daemon(&["--no-probe"])?;
    // A namespace without a name, kept alive by a process that waits for a writer.
    let fifo = format!("{}.fifo", nameless.display());
    world.run(Ns::Local, &["mkfifo", &fifo], LIMIT)?.ok()?;
    let script = format!("echo >{}; exec cat {fifo}", nameless.display());
    let mut keeper = world.spawn(Ns::Local, &["unshare", "-n", "sh", "-c", &script])?;
    wait_until("the keeper lives in its namespace", || Ok(nameless.exists()))?;
    let file = format!("/proc/{}/ns/net", keeper.pid());
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "DROP", "-n", &file])?;
    let socket = &daemon.files().socket;
    let first = |what: Listing| what.rules.into_iter().next().context("the rule is gone");
    let rule = first(listing(socket)?)?;
    assert!(matches!(rule.rule.namespace, Selector::Lifetime { .. }) && !rule.dormant, "{rule:?}");
    keeper.kill()?;
    // A namespace is taken apart some time after its last process ended.
    wait_until("the rule is dormant", || Ok(first(listing(socket)?)?.dormant))
}

#[test]
fn flush_empties_a_chain_or_all_chains_of_one_namespace() -> Result<()> {
    let world = World::new("flush")?;
    let daemon = world.daemon(&["--no-probe"])?;
    let fill = || -> Result<()> {
        for chain in ["OUTPUT", "INPUT", "FORWARD"] {
            for namespace in [world.namespace(Ns::Local).name(), "any"] {
                world.ctl_ok(&["-A", "-c", chain, "-v", "DROP", "-n", namespace])?;
            }
        }
        Ok(())
    };
    let count = || Ok::<_, anyhow::Error>(listing(&daemon.files().socket)?.rules.len());
    fill()?;
    assert_eq!(count()?, 6);
    world.ctl_ok(&["-F", "-c", "INPUT"])?;
    assert_eq!(count()?, 5);
    world.ctl_ok(&["-F"])?;
    assert_eq!(count()?, 3);
    world.ctl_ok(&["-F", "-n", "any", "-c", "FORWARD"])?;
    assert_eq!(count()?, 2);
    world.ctl_ok(&["-F", "-n", "any"])?;
    assert_eq!(count()?, 0);
    Ok(())
}

#[test]
fn rules_survive_a_restart_and_fire_again() -> Result<()> {
    let world = World::new("restart")?;
    world.queue_output()?;
    let mut daemon = world.daemon(&[])?;
    let copy = world.actor_copy("copy")?;
    let (mut nine, mut ten) = (Line::udp(&world, 9)?, Line::udp_from(&world, &copy, 10)?);
    nine.expect_passes()?;
    ten.expect_passes()?;
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "DROP", "--sng-hash", &world.sha256(&copy)?])?;
    let before = listing(&daemon.files().socket)?;
    for round in 0..2 {
        if round == 0 {
            assert!(daemon.stop()?.success());
        } else {
            daemon.kill9()?;
        }
        daemon = world.daemon(&[])?;
        assert_eq!(listing(&daemon.files().socket)?, before);
        nine.expect_passes()?;
        ten.expect_blocked()?;
    }
    Ok(())
}

/// Adds rules for ports from `first` on until the daemon is gone; tells of each that was acknowledged.
fn add_until_gone(socket: &Path, first: u16, acknowledged: &mpsc::Sender<u16>) -> Result<()> {
    let mut client = Client::connect(socket)?;
    for port in first.. {
        let rule = format!("-c OUTPUT -n any -v DROP -p udp --dport {port}").parse()?;
        let edits = vec![Edit::Add { rule, position: None }];
        match client.call(&Request::Change { edits, note: None, expected: None }) {
            Ok(Answer::Changed(_)) => acknowledged.send(port)?,
            Ok(other) => bail!("not added: {other:?}"),
            Err(_) => break,
        }
    }
    Ok(())
}

fn ports(listing: &Listing) -> Result<Vec<u16>> {
    let port = |on: &Match| match on {
        Match::DestinationPort(ports) => ports.elements().next().map(|range| range.first),
        _ => None,
    };
    let ports = listing.rules.iter().map(|listed| listed.rule.predicates.iter().find_map(|p| port(&p.on)));
    ports.map(|port| port.context("a rule without a port")).collect()
}

#[test]
fn every_acknowledged_rule_is_there_after_kill_9() -> Result<()> {
    const ROUNDS: u16 = 20;
    const STEP: u16 = 1000;
    let world = World::new("kill -9")?;
    let mut last = Vec::new();
    for round in 0..ROUNDS {
        let mut daemon = world.daemon(&["--no-probe"])?;
        let socket = daemon.files().socket.clone();
        let first = 1 + round * STEP;
        let (sender, receiver) = mpsc::channel();
        let acknowledged: Vec<u16> = thread::scope(|scope| {
            let adder = scope.spawn(move || add_until_gone(&socket, first, &sender));
            // At another point of the work in each round.
            let mut acknowledged: Vec<u16> = receiver.iter().take(1 + usize::from(round % 7)).collect();
            let killed = daemon.kill9();
            acknowledged.extend(receiver.iter());
            adder.join().map_err(|_| anyhow::anyhow!("the adder panicked"))??;
            killed?;
            Ok::<_, anyhow::Error>(acknowledged)
        })?;
        ensure!(!acknowledged.is_empty(), "nothing was acknowledged");

        let mut daemon = world.daemon(&["--no-probe"])?;
        let listed = listing(&daemon.files().socket)?;
        let positions: Vec<usize> = listed.rules.iter().map(|listed| listed.position).collect();
        assert_eq!(positions, (0..listed.rules.len()).collect::<Vec<_>>());
        let found = ports(&listed)?;
        last.extend(acknowledged);
        // One more may have been stored that nobody was told of.
        match found.strip_prefix(last.as_slice()) {
            Some([]) => {}
            Some([one]) => last.push(*one),
            _ => bail!("round {round}: acknowledged {last:?}, found {found:?}"),
        }
        assert!(daemon.stop()?.success());
    }
    // What the list says holds.
    world.queue_output()?;
    let mut line = Line::udp(&world, 60000)?;
    let _daemon = world.daemon(&[])?;
    line.expect_passes()?;
    let blocked = last[last.len() - 1];
    let counter = world.count_at(Ns::Peer, Place::Arrived, &format!("udp dport {blocked}"))?;
    let mut blocked = world.actor(Ns::Local, &["udp", &format!("{}:{blocked}", world.peer4())])?;
    blocked.step("send")?;
    world.wait_queues_empty(Ns::Local)?;
    assert_eq!(counter.total()?, 0);
    world.ctl_ok(&["-F", "-n", "any", "-c", "OUTPUT"])?;
    blocked.step("send")?;
    wait_until("the packet arrives", || Ok(counter.total()? == 1))
}
