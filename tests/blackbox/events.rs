//! Events: each tells of one packet and why it got its verdict, and none ever makes a packet wait.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use harness::counter::Place;
use harness::{Daemon, LIMIT, Ns, World, world};
use serde_json::{Value, json};

use crate::line::{Line, queue_status, status, wait_until};

/// Kernel ticks a second in /proc/PID/stat, on all architectures Linux runs on (`getconf CLK_TCK`).
const TICK: u64 = 1_000_000_000 / 100;

/// When a process started, nanoseconds after boot: field 22 of proc_pid_stat(5).
fn start_of(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, behind_name) = stat.rsplit_once(')').context("no name")?;
    let ticks: u64 = behind_name.split_whitespace().nth(19).context("a short line")?.parse()?;
    Ok(ticks * TICK)
}

/// The one owner of an event, which must be this process, completely.
fn check_owner(world: &World, event: &Value, pid: u32, program: &Path) -> Result<()> {
    let owners = event["owners"].as_array().context("no owners")?;
    ensure!(owners.len() == 1, "{owners:?}");
    let owner = &owners[0];
    ensure!(owner["pid"] == pid && owner["start"] == start_of(pid)?, "{owner}");
    ensure!(owner["path"] == program.to_str().context("path")?, "{owner}");
    ensure!(owner["program"] == world.sha256(program)?, "{owner}");
    let image = owner["image"].as_str().context("no image digest")?;
    ensure!(image.len() == 64 && owner.get("undetermined").is_none(), "{owner}");
    Ok(())
}

/// `2026-01-31T12:34:56.123456Z`, by the clock of the world.
fn is_now(time: &Value) -> bool {
    let Some(time) = time.as_str().and_then(|time| time.parse::<jiff::Timestamp>().ok()) else { return false };
    time.duration_until(jiff::Timestamp::now()).abs() < jiff::SignedDuration::from_mins(1)
}

fn is_drop(event: &Value) -> bool {
    event["verdict"] == "DROP"
}

#[test]
fn a_drop_by_rule_names_packet_process_and_rule() -> Result<()> {
    let world = World::new("drop event")?;
    world.queue_output()?;
    let mut daemon = world.daemon(&[])?;
    let copy = world.actor_copy("a program")?;
    let mut line = Line::udp_from(&world, &copy, 9)?;
    line.expect_passes()?;
    assert_eq!(daemon.events()?, Vec::<Value>::new(), "a plain ACCEPT is no event");
    let digest = world.sha256(&copy)?;
    let added = world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "DROP", "--sng-hash", &digest, "--json"])?;
    let added: Value = serde_json::from_str(&added)?;
    line.expect_blocked()?;
    let event = daemon.wait_event(LIMIT, is_drop)?;
    assert!(is_now(&event["time"]), "{event}");
    assert_eq!((&event["chain"], &event["reason"]), (&json!("OUTPUT"), &json!("rule")));
    // IP header, UDP header, payload.
    assert_eq!((&event["length"], &event["omitted"]), (&json!(20 + 8 + 5), &json!(0)));
    let port: u16 = line.actor().step("port")?.parse()?;
    let name = world.namespace(Ns::Local).name();
    assert_eq!(
        event["flow"],
        json!({
            "protocol": "udp", "source": "198.51.100.1", "destination": "198.51.100.2",
            "source_port": port, "destination_port": 9, "namespace": format!("netns:{name}"),
        })
    );
    assert_eq!(event["rule"]["id"], added["id"]);
    assert_eq!(event["rule"]["text"], format!("-A -c OUTPUT -n netns:{name} -v DROP --sng-hash {digest}"));
    check_owner(&world, &event, line.actor().pid(), &copy)?;
    // The aggregate is the one to put into a rule.
    let aggregate = event["owners"][0]["image"].as_str().context("no image")?.to_owned();
    world.ctl_ok(&["-F"])?;
    line.expect_passes()?;
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "DROP", "--agg-hash", &aggregate])?;
    line.expect_blocked()
}

#[test]
fn a_drop_by_policy_names_the_process_too() -> Result<()> {
    let world = World::new("policy event")?;
    world.queue_output()?;
    for arguments in [&["--no-probe"][..], &[], &["-b", "1"]] {
        let mut daemon = world.daemon(arguments)?;
        let copy = world.actor_copy("program")?;
        let mut line = Line::udp_from(&world, &copy, 9)?;
        line.expect_passes()?;
        let before = daemon.events()?.len();
        world.ctl_ok(&["-P", "OUTPUT", "DROP"])?;
        line.expect_blocked()?;
        // The kernel's own packets (neighbour discovery, group reports) are dropped by the same policy.
        let of_program = |event: &Value| is_drop(event) && event["flow"]["destination_port"] == 9;
        let event = daemon.wait_event_from(before, LIMIT, of_program)?;
        assert_eq!(event["reason"], "policy");
        assert!(event.get("rule").is_none(), "{event}");
        check_owner(&world, &event, line.actor().pid(), &copy).with_context(|| format!("{arguments:?}"))?;
        world.ctl_ok(&["-P", "OUTPUT", "ACCEPT"])?;
    }
    Ok(())
}

#[test]
fn accepted_packets_are_told_of_on_request() -> Result<()> {
    let world = World::new("accept events")?;
    world.queue_output()?;
    let mut daemon = world.daemon(&["--log-accept"])?;
    let program = world.programs().path("actor")?;
    let mut line = Line::udp(&world, 9)?;
    line.expect_passes()?;
    // The kernel sends packets of its own, too.
    let event = daemon.wait_event(LIMIT, |event| event["flow"]["destination_port"] == 9)?;
    assert_eq!((&event["verdict"], &event["reason"]), (&json!("ACCEPT"), &json!("policy")));
    check_owner(&world, &event, line.actor().pid(), &program)?;
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "ACCEPT", "--dport", "9"])?;
    line.expect_passes()?;
    let event = daemon.wait_event(LIMIT, |event| event["reason"] == "rule")?;
    assert_eq!(event["verdict"], "ACCEPT");
    check_owner(&world, &event, line.actor().pid(), &program)
}

/// What events say in all: those written, and those they say were left out.
fn told(events: &[Value]) -> Result<u64> {
    let omitted: Option<u64> = events.iter().map(|event| event["omitted"].as_u64()).sum();
    Ok(events.len() as u64 + omitted.context("an event without `omitted`")?)
}

#[test]
fn a_flood_of_events_is_limited_and_the_rest_is_counted() -> Result<()> {
    const FLOOD: u64 = 3000;
    const RATE: u64 = 20;
    let world = World::new("flood")?;
    world.queue_output()?;
    let mut line = Line::udp(&world, 9)?;
    let daemon = world.daemon(&["--log-rate", &RATE.to_string()])?;
    line.expect_passes()?;
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "DROP", "--dport", "9"])?;
    let begun = std::time::Instant::now();
    line.actor().step(&format!("send {FLOOD}"))?;
    let socket = daemon.files().socket.clone();
    // What nobody can be told of is dropped in the kernel.
    let in_kernel = || Ok::<u64, anyhow::Error>(status(&socket)?.kernel_cache.chains.iter().map(|of| of.dropped).sum());
    let dropped = || Ok::<_, anyhow::Error>(queue_status(&socket, 0)?.dropped + in_kernel()?);
    wait_until("all are judged", || Ok(dropped()? >= FLOOD))?;
    line.expect_silence()?;
    let written = daemon.events()?.len() as u64;
    // As many as in a second may come at once.
    let most = RATE + RATE * (begun.elapsed().as_secs() + 1);
    assert!((1..=most).contains(&written), "{written} events at a rate of {RATE}");
    // One by one until there is room for an event again: it says how many are missing.
    wait_until("an event tells of those left out", || {
        line.expect_blocked()?;
        Ok(daemon.events()?.iter().any(|event| event["omitted"].as_u64() > Some(0)))
    })?;
    // The books balance: every drop is an event, or counted in one, or still to be counted in the next.
    let all = told(&daemon.events()?)?;
    let (sum, omitted) = (dropped()?, status(&socket)?.events_omitted);
    ensure!(all <= sum && omitted + daemon.events()?.len() as u64 >= all, "{all} told, {omitted} omitted, {sum} drops");
    ensure!(omitted >= FLOOD - most);
    Ok(())
}

/// Starts the daemon with its events on standard output, which is a pipe of which the returned end is never read.
fn with_blocked_stdout(world: &World, arguments: &[&str]) -> Result<(Daemon, fs::File)> {
    let files = world.files();
    let fifo = files.events.display().to_string();
    world.run(Ns::Local, &["mkfifo", &fifo], LIMIT)?.ok()?;
    // Reading and writing: opening does not wait for the other end.
    let reader = fs::File::options().read(true).write(true).open(&files.events)?;
    let program = world.programs().path("app-fw")?;
    let script = world.folder().join("app-fw-to-stdout");
    // Called with --db X --socket Y --log Z and the rest.
    let text =
        format!("#!/bin/sh\nexec {} \"$1\" \"$2\" \"$3\" \"$4\" {} >\"$6\"\n", program.display(), arguments.join(" "));
    // Written by another process: a descriptor open for writing that a thread forks just now would be ETXTBSY.
    world.run(Ns::Local, &["sh", "-c", &format!("cat >{} <<'END'\n{text}END", script.display())], LIMIT)?.ok()?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok((Daemon::start(world.namespace(Ns::Local), &script, files, &[])?, reader))
}

#[test]
fn a_stopped_reader_of_events_stops_no_packet() -> Result<()> {
    const FLOOD: u64 = 4000;
    let world = World::new("blocked pipe")?;
    world.queue_output()?;
    let (mut daemon, reader) = with_blocked_stdout(&world, &["--no-probe", "--log-rate", "1000000"])?;
    let socket = daemon.files().socket.clone();
    let (mut denied, mut allowed) = (Line::udp(&world, 9)?, Line::udp(&world, 10)?);
    denied.expect_passes()?;
    allowed.expect_passes()?;
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "DROP", "--dport", "9"])?;
    // Far more than a pipe holds (64 KiB) and than may wait.
    denied.actor().step(&format!("send {FLOOD}"))?;
    wait_until("all are judged", || Ok(queue_status(&socket, 0)?.dropped >= FLOOD))?;
    denied.expect_silence()?;
    for _ in 0..3 {
        allowed.expect_passes()?;
        denied.expect_blocked()?;
    }
    // Not assert: a panic would make the guard print the events, that is, read the pipe.
    ensure!(status(&socket)?.events_omitted > 0);
    // Nor does it hold up the end.
    let ended = daemon.stop()?;
    ensure!(ended.code() == Some(0), "{ended}\n{}", daemon.messages());
    drop(reader);
    Ok(())
}

#[test]
fn a_reader_of_events_that_is_gone_stops_no_packet() -> Result<()> {
    let world = World::new("closed pipe")?;
    world.queue_output()?;
    let (mut daemon, reader) = with_blocked_stdout(&world, &["--no-probe"])?;
    drop(reader);
    let mut line = Line::udp(&world, 9)?;
    line.expect_passes()?;
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "DROP", "--dport", "9"])?;
    for _ in 0..5 {
        line.expect_blocked()?;
    }
    world.ctl_ok(&["-F"])?;
    line.expect_passes()?;
    assert_eq!(daemon.stop()?.code(), Some(0), "{}", daemon.messages());
    Ok(())
}

#[test]
fn malformed_packets_are_dropped_for_that_reason() -> Result<()> {
    let world = World::new("malformed packet")?;
    let (peer4, local4) = (world.peer4().to_string(), world::LOCAL4.to_string());
    let actor = world.programs().path("actor")?;
    // Five bytes are no TCP header, no UDP header and no ICMP header.
    let mut lines = Vec::new();
    for protocol in ["6", "17", "1"] {
        // By length as well: there are ICMP errors about these packets.
        let expression = &format!("ip protocol {protocol} ip length 25");
        lines.push((
            protocol,
            Line::outgoing(&world, &actor, &["raw", &peer4, protocol], expression)?,
            Line::incoming(&world, &["raw", &local4, protocol], expression)?,
        ));
    }
    let mut sane = Line::outgoing(&world, &actor, &["raw", &peer4, "253"], "ip protocol 253")?;
    for (_, outgoing, incoming) in &mut lines {
        outgoing.expect_passes().context("before the queue")?;
        incoming.expect_passes().context("before the queue")?;
    }
    world.queue_output()?;
    world.queue_input()?;
    let mut daemon = world.daemon(&[])?;
    sane.expect_passes()?;
    for (protocol, outgoing, incoming) in &mut lines {
        for (line, chain) in [(outgoing, "OUTPUT"), (incoming, "INPUT")] {
            let before = daemon.events()?.len();
            line.expect_blocked().with_context(|| format!("protocol {protocol}, {chain}"))?;
            let event = daemon.wait_event_from(before, LIMIT, is_drop)?;
            assert_eq!((&event["reason"], &event["chain"]), (&json!("malformed"), &json!(chain)), "{event}");
            assert!(event.get("flow").is_none(), "{event}");
        }
    }
    sane.expect_passes()
}

/// An IPv4 packet with a TCP header that says this of its own length (in words), of which as much follows as fits in 20
/// bytes. The kernel fills in the IP header's length and checksum (raw(7), IP_HDRINCL).
fn tcp_with_offset(words: u8) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0];
    packet.extend([198, 51, 100, 2, 198, 51, 100, 1]);
    packet.extend(4000u16.to_be_bytes());
    packet.extend(9u16.to_be_bytes());
    packet.extend([0; 8]);
    packet.extend([words << 4, 0x02, 0, 0, 0, 0, 0, 0]);
    packet
}

#[test]
fn a_nonsense_tcp_offset_from_outside_is_malformed() -> Result<()> {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket};
    use std::os::fd::AsRawFd;
    let world = World::new("tcp offset")?;
    let delivered = world.count_at(Ns::Local, Place::Delivered, "tcp dport 9")?;
    let send = |words: u8| {
        world.namespace(Ns::Peer).enter(|| {
            // IPPROTO_RAW implies IP_HDRINCL.
            let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw)?;
            let to = SockaddrIn::new(198, 51, 100, 1, 0);
            sendto(raw.as_raw_fd(), &tcp_with_offset(words), &to, MsgFlags::empty())?;
            Ok(())
        })
    };
    send(2)?;
    wait_until("the packet is delivered without a queue", || Ok(delivered.delta()? == 1))?;
    world.queue_input()?;
    let mut daemon = world.daemon(&[])?;
    send(2)?;
    let event = daemon.wait_event(LIMIT, is_drop)?;
    assert_eq!((&event["reason"], &event["chain"]), (&json!("malformed"), &json!("INPUT")), "{event}");
    world.wait_queues_empty(Ns::Local)?;
    assert_eq!(delivered.delta()?, 0);
    send(5)?;
    wait_until("a sound header passes", || Ok(delivered.delta()? == 1))
}
