//! The harness itself: what black-box tests rely on holds.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::counter::Place;
use harness::{Docker, LIMIT, Ns, World, servers};

fn exists(name: &str) -> bool {
    Path::new("/run/netns").join(name).exists()
}

/// Gone, or a zombie that init has not collected (in a container there may be no init that does).
fn is_dead(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

/// Whether `pid` has the file `path` open or mapped, by what the kernel shows of it.
fn maps(pid: u32, path: &Path) -> Result<bool> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    Ok(maps.lines().any(|line| line.ends_with(path.to_str().unwrap_or("?")) && line.contains("r-xp")))
}

/// The sockets that `pid` holds, as /proc names them.
fn sockets(pid: u32) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let Ok(link) = std::fs::read_link(entry?.path()) else { continue };
        if let Some(link) = link.to_str().filter(|link| link.starts_with("socket:")) {
            found.push(link.to_owned());
        }
    }
    Ok(found)
}

#[test]
fn both_families_reach_the_peer() -> Result<()> {
    let world = World::new("ping")?;
    for (family, address) in [("-4", world.peer4()), ("-6", world.peer6())] {
        world.run(Ns::Local, &["ping", family, "-c", "1", "-W", "2", &address.to_string()], LIMIT)?.ok()?;
    }
    Ok(())
}

#[test]
fn a_router_forwards_both_families_and_counts() -> Result<()> {
    let world = World::with_router("router")?;
    let _server = world.http_server(80)?;
    let forwarded = world.count_at(Ns::Router, Place::Arrived, "tcp dport 80")?;
    for url in [world.url(80), world.url6(80)] {
        let page = world.run(Ns::Local, &["curl", "-sS", "--max-time", "5", &url], LIMIT)?.ok()?;
        assert_eq!(page, servers::PAGE);
        assert!(forwarded.delta()? > 0, "{url}");
    }
    Ok(())
}

#[test]
fn the_web_server_answers_and_counters_count_exactly_what_they_name() -> Result<()> {
    let world = World::new("web")?;
    let server = world.http_server(80)?;
    let (web, other) = (world.count("tcp dport 80")?, world.count("tcp dport 81")?);
    assert!(web.assert_silent().is_err(), "a filter that never counted must not prove anything");
    for url in [world.url(80), world.url6(80)] {
        let page = world.run(Ns::Local, &["curl", "-sS", "--max-time", "5", &url], LIMIT)?.ok()?;
        assert_eq!(page, servers::PAGE);
    }
    world.wait_connections_closed(Ns::Peer)?;
    assert_eq!(server.served(), 2);
    // At least SYN, ACK with the request, FIN, for each of the two.
    assert!(web.delta()? >= 6);
    assert_eq!(other.total()?, 0);
    web.assert_silent()
}

#[test]
fn counters_count_datagrams_one_by_one() -> Result<()> {
    let world = World::new("datagrams")?;
    let sink = world.udp_sink(9)?;
    let arrived = world.count("udp dport 9")?;
    let to = format!("{}:9", world.peer4());
    let actor = world.programs().path("actor")?;
    let actor = actor.to_str().context("path")?;
    world.run(Ns::Local, &[actor, "udp-send", &to, "7"], LIMIT)?.ok()?;
    assert_eq!(arrived.delta()?, 7);
    let deadline = Instant::now() + LIMIT;
    while sink.served() < 7 && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(sink.served(), 7);
    Ok(())
}

#[test]
fn echo_servers_echo() -> Result<()> {
    let world = World::new("echo")?;
    let (tcp, udp) = (world.tcp_echo(7)?, world.udp_echo(7)?);
    let to = format!("{}:7", world.peer4());
    for role in ["tcp", "udp"] {
        let mut actor = world.actor(Ns::Local, &[role, &to])?;
        actor.step("send")?;
        assert!(actor.step("recv")?.starts_with('5'), "{role}");
        assert!(actor.finish()?.success());
    }
    drop(tcp);
    drop(udp);
    assert!(world.actor(Ns::Local, &["tcp", &to]).is_err(), "a dropped server must be gone");
    Ok(())
}

#[test]
fn every_kind_of_socket_reaches_the_peer() -> Result<()> {
    let world = World::new("sockets")?;
    // Somebody listens, or the second datagram of a connected socket would meet the ICMP answer to the first.
    let _sink = world.udp_sink(4000)?;
    world.namespace(Ns::Local).sysctl("net/ipv4/ping_group_range", "0 2147483647")?;
    let (peer4, peer6) = (world.peer4().to_string(), world.peer6().to_string());
    let to4 = format!("{peer4}:4000");
    let to6 = format!("[{peer6}]:4000");
    for (arguments, expression) in [
        (vec!["udp", &to4], "ip saddr 198.51.100.1 udp dport 4000"),
        (vec!["udp", &to4, "--connect"], "ip saddr 198.51.100.1 udp dport 4000"),
        (vec!["udp", &to4, "--v4-on-v6"], "ip saddr 198.51.100.1 udp dport 4000"),
        (vec!["udp", &to4, "--bind", "0.0.0.0:4001"], "udp sport 4001"),
        (vec!["udp", &to6], "ip6 nexthdr udp"),
        (vec!["udplite", &to4], "ip protocol udplite"),
        (vec!["ping", &peer4], "icmp type echo-request"),
        (vec!["ping", &peer6], "icmpv6 type echo-request"),
        (vec!["raw", &peer4, "253"], "ip protocol 253"),
        (vec!["raw", &peer6, "253"], "ip6 nexthdr 253"),
    ] {
        let counter = world.count(expression)?;
        let mut actor = world.actor(Ns::Local, &arguments)?;
        actor.step("send 3")?;
        assert_eq!(counter.total()?, 3, "{arguments:?}");
    }
    Ok(())
}

#[test]
fn an_actor_serves_and_shares_a_port() -> Result<()> {
    let world = World::new("serve")?;
    let mut server = world.actor(Ns::Peer, &["serve-tcp", "0.0.0.0:4000", "--reuseport"])?;
    let second = world.actor(Ns::Peer, &["serve-tcp", "0.0.0.0:4000", "--reuseport"])?;
    drop(second);
    let mut client = world.actor(Ns::Local, &["tcp", &format!("{}:4000", world.peer4()), "--later"])?;
    client.step("connect")?;
    server.step("accept")?;
    client.step("send")?;
    assert!(server.step("recv")?.starts_with('5'));
    server.step("send")?;
    assert!(client.step("recv")?.starts_with('5'));

    let mut waiting = world.actor(Ns::Peer, &["udp-bind", "0.0.0.0:4000"])?;
    let mut asking = world.actor(Ns::Local, &["udp", &format!("{}:4000", world.peer4())])?;
    asking.step("send")?;
    assert!(waiting.step("recv")?.starts_with("5 198.51.100.1:"));
    waiting.step("reply")?;
    assert!(asking.step("recv")?.starts_with('5'));
    Ok(())
}

#[test]
fn heirs_hold_the_socket_and_send_on_it() -> Result<()> {
    let world = World::new("heirs")?;
    let arrived = world.count("udp dport 9")?;
    let other = world.actor_copy("other-actor")?;
    assert_ne!(world.sha256(&other)?, world.sha256(&world.programs().path("actor")?)?);
    let to = format!("{}:9", world.peer4());
    for way in ["share", "pass", "fork"] {
        let mut actor = world.actor(Ns::Local, &["udp", &to])?;
        let step = if way == "fork" { way.to_owned() } else { format!("{way} {}", other.display()) };
        let heir: u32 = actor.step(&step)?.parse()?;
        let socket = sockets(actor.pid())?.first().cloned().context("the actor's socket")?;
        assert!(sockets(heir)?.contains(&socket), "{way}");
        assert_eq!(maps(heir, &other)?, way != "fork", "{way}");
        actor.step("child send 2")?;
        assert_eq!(arrived.delta()?, 2, "{way}: the heir's");
        actor.step("close")?;
        actor.step("child send")?;
        assert_eq!(arrived.delta()?, 1, "{way}: the heir's, after the first holder closed");
    }
    let mut actor = world.actor(Ns::Local, &["udp", &to])?;
    actor.step(&format!("exec {}", other.display()))?;
    assert!(maps(actor.pid(), &other)?);
    actor.step("send")?;
    assert_eq!(arrived.delta()?, 1, "after exec");
    Ok(())
}

#[test]
fn descriptors_may_be_high_and_code_may_come_late() -> Result<()> {
    let world = World::new("late")?;
    let library = world.library("libextra.so")?;
    let arrived = world.count("udp dport 9")?;
    let mut actor = world.actor(Ns::Local, &["udp", &format!("{}:9", world.peer4())])?;
    assert_eq!(actor.step("fd 700")?, "700");
    assert_eq!(sockets(actor.pid())?.len(), 1);
    actor.step(&format!("dlopen {}", library.display()))?;
    assert!(maps(actor.pid(), &library)?);
    actor.step("dlclose")?;
    assert!(!maps(actor.pid(), &library)?);
    actor.step(&format!("map-exec {}", library.display()))?;
    assert!(maps(actor.pid(), &library)?);
    actor.step("anonymous-exec")?;
    actor.step("send")?;
    assert_eq!(arrived.total()?, 1);
    assert!(actor.step("nonsense").is_err());
    Ok(())
}

#[test]
fn a_queue_without_a_daemon_passes_nothing() -> Result<()> {
    let world = World::new("queue")?;
    let arrived = world.count("udp dport 9")?;
    let to = format!("{}:9", world.peer4());
    let mut actor = world.actor(Ns::Local, &["udp", &to])?;
    actor.step("send")?;
    assert_eq!(arrived.delta()?, 1);
    world.queue_output()?;
    world.queue_input()?;
    // The kernel may tell the sender; both answers are fine, what counts is what arrives.
    let _ = actor.step("send");
    world.wait_queues_empty(Ns::Local)?;
    arrived.assert_silent()
}

#[test]
fn everything_is_gone_after_the_world() -> Result<()> {
    let world = World::with_router("gone")?;
    let names = [Ns::Local, Ns::Peer, Ns::Router].map(|ns| world.namespace(ns).name().to_owned());
    let folder = world.folder().to_owned();
    assert!(names.iter().all(|name| exists(name)));
    // A process that left its parent's group and would outlive its guard.
    let fifo = folder.join("fifo").display().to_string();
    let script =
        format!("mkfifo {fifo}; setsid sh -c 'echo $$ >{fifo}; exec sleep 1000' & read pid <{fifo}; echo $pid");
    let pid = world.run(Ns::Local, &["sh", "-c", &script], LIMIT)?.ok()?.trim().to_owned();
    assert!(!pid.is_empty() && !is_dead(&pid), "{pid}");
    drop(world);
    assert!(!names.iter().any(|name| exists(name)));
    assert!(!folder.exists());
    assert!(is_dead(&pid), "{pid}");
    Ok(())
}

#[test]
fn everything_is_gone_after_a_panic() {
    let mut name = String::new();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let world = World::new("panic").expect("world");
        world.namespace(Ns::Local).name().clone_into(&mut name);
        let _server = world.http_server(80).expect("server");
        let _client = world.actor(Ns::Local, &["idle"]).expect("actor");
        assert!(!exists(&name), "on purpose");
    }));
    assert!(result.is_err());
    assert!(!name.is_empty() && !exists(&name));
}

#[test]
fn what_a_killed_run_left_is_swept_by_the_next() -> Result<()> {
    // A process that has ended and been waited for: its pid is free.
    let mut child = std::process::Command::new("true").spawn()?;
    let dead = child.id();
    child.wait()?;
    let prefix = format!("afw-selftest{}", std::process::id());
    let name = format!("{prefix}-{dead}-0-a");
    let alive = format!("{prefix}-{}-0-a", std::process::id());
    let folder = tempfile::tempdir()?;
    for name in [&name, &alive] {
        std::fs::create_dir(folder.path().join(name))?;
    }
    // Forgotten on purpose, as by SIGKILL.
    std::mem::forget(harness::netns::Namespace::create(&name)?);
    let kept = harness::netns::Namespace::create(&alive)?;
    let removed = harness::netns::sweep(&prefix, folder.path())?;
    assert_eq!(removed.len(), 2, "{removed:?}");
    ensure!(!exists(&name) && !folder.path().join(&name).exists());
    ensure!(exists(kept.name()) && folder.path().join(&alive).exists());
    Ok(())
}

#[test]
fn docker_ends_with_a_killed_run_and_its_groups_with_the_guard() -> Result<()> {
    let world = World::new("docker")?;
    let docker = Docker::start(&world, Ns::Local)?;
    let container = docker.container(&[])?;
    let pids = [docker.pid()?, container.pid()].map(|pid| pid.to_string());
    ensure!(!pids.iter().any(|pid| is_dead(pid)) && !control_groups(&world)?.is_empty());
    // What a run started itself dies with it; all others only have this one above them.
    let status = std::fs::read_to_string(format!("/proc/{}/status", pids[0]))?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).context("no parent")?.trim();
    world.run(Ns::Local, &["kill", "-KILL", parent], LIMIT)?.ok()?;
    let begun = Instant::now();
    while !pids.iter().all(|pid| is_dead(pid)) && begun.elapsed() < LIMIT {
        std::thread::yield_now();
    }
    assert!(pids.iter().all(|pid| is_dead(pid)), "{pids:?}");
    // Nobody is left who could remove it.
    std::mem::forget(container);
    drop(docker);
    assert_eq!(control_groups(&world)?, [""; 0]);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains(world.folder().to_str().context("path")?), "{mounts}");
    Ok(())
}

/// Control groups of a world, in whatever hierarchies there are.
fn control_groups(world: &World) -> Result<Vec<String>> {
    let found = std::process::Command::new("find")
        .args(["/sys/fs/cgroup", "-maxdepth", "2", "-name", &format!("{}*", world.name())])
        .output()?;
    Ok(String::from_utf8(found.stdout)?.lines().map(str::to_owned).collect())
}

#[test]
fn a_command_that_hangs_is_killed_with_its_children() -> Result<()> {
    let world = World::new("hang")?;
    let file = world.folder().join("pid");
    let script = format!("sleep 1000 & echo $! > {}; wait", file.display());
    let begun = Instant::now();
    let error = world.run(Ns::Local, &["sh", "-c", &script], Duration::from_millis(500)).expect_err("a bound");
    assert!(format!("{error:#}").contains("did not end"), "{error:#}");
    assert!(begun.elapsed() < LIMIT);
    let pid = std::fs::read_to_string(&file)?;
    // SIGKILL was sent; a process that was running at that moment needs another to die.
    while !is_dead(pid.trim()) && begun.elapsed() < LIMIT {
        std::thread::yield_now();
    }
    assert!(is_dead(pid.trim()), "{pid}");
    Ok(())
}

#[test]
fn a_daemon_that_fails_at_start_is_an_error_with_its_words() -> Result<()> {
    let world = World::new("no daemon")?;
    let files = world.files();
    let error = harness::Daemon::start(world.namespace(Ns::Local), Path::new("/bin/false"), files, &[])
        .expect_err("false is no daemon");
    assert!(format!("{error:#}").contains("ended before it was ready"), "{error:#}");
    Ok(())
}
