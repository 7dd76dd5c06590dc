//! Containers of a real Docker, and of users without it. Their namespaces have no name: rules mean them by the file
//! `/proc/PID/ns/net`.

use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use harness::docker::Container;
use harness::servers::PAGE;
use harness::{Actor, Captured, Counter, Docker, LIMIT, Ns, Server, World, world};
use serde_json::Value;

use crate::line::{queue_status, wait_until};

const ACTOR: &str = "/usr/bin/actor";
const CURL: &str = "/usr/bin/curl";
const WGET: &str = "/usr/bin/wget";

/// What comes from the device is judged by OUTPUT rules, whatever Docker does to its own chains.
fn queue_from(world: &World, device: &str) -> Result<()> {
    for program in ["iptables", "ip6tables"] {
        let line = format!("{program} -w 10 -t mangle -A FORWARD -i {device} -j NFQUEUE --queue-num 0");
        world.namespace(Ns::Local).sh(&line)?;
    }
    Ok(())
}

fn ctl(world: &World, line: &str) -> Result<String> {
    world.ctl_ok(&line.split_whitespace().collect::<Vec<_>>())
}

/// Fetches a page inside a container.
fn fetch(container: &Container<'_>, program: &str, url: &str) -> Result<Captured> {
    let options: &[&str] = match program {
        CURL => &[CURL, "-q", "-sS", "--globoff", "--noproxy", "*", "--connect-timeout", "1", url],
        _ => &[WGET, "--no-config", "--no-proxy", "-q", "-t", "1", "-T", "10", "-O", "-", url],
    };
    container.exec(options, LIMIT)
}

/// Containers also send neighbour discovery, which nobody owns.
fn is_drop(event: &Value) -> bool {
    event["verdict"] == "DROP" && event["flow"]["protocol"] != "icmpv6"
}

#[test]
fn curl_in_a_docker_container_is_blocked_by_its_hash_and_wget_passes() -> Result<()> {
    let world = World::new("docker web")?;
    // One port for each line, so that what one connection leaves behind is not counted for another.
    let _servers = (80..=83).map(|port| world.http_server(port)).collect::<Result<Vec<_>>>()?;
    let docker = Docker::start(&world, Ns::Local)?;
    queue_from(&world, "docker0")?;
    let mut daemon = world.daemon(&[])?;
    let (first, second) = (docker.container(&[])?, docker.container(&[])?);
    let (here, there) = (first.netns(), second.netns());
    let urls = |port| [world.url(port), world.url6(port)];
    let curl_to = world.count("tcp dport 80")?;
    for url in urls(80) {
        assert_eq!(fetch(&first, CURL, &url)?.ok()?, PAGE);
    }
    world.wait_connections_closed(Ns::Peer)?;
    ensure!(curl_to.delta()? > 0);

    let curl = world.sha256(Path::new(CURL))?;
    ctl(&world, &format!("-A -c OUTPUT -v DROP -n {here} --sng-hash {curl}"))?;
    for url in urls(80) {
        assert_eq!(fetch(&first, CURL, &url)?.code(), 28);
    }
    curl_to.assert_silent()?;
    for (ours, theirs) in urls(81).iter().zip(&urls(82)) {
        assert_eq!(fetch(&first, WGET, ours)?.ok()?, PAGE);
        assert_eq!(fetch(&second, CURL, theirs)?.ok().context("the rule is another container's")?, PAGE);
    }
    let event = daemon.wait_event(LIMIT, is_drop)?;
    assert_eq!((&event["chain"], &event["reason"]), (&"OUTPUT".into(), &"rule".into()), "{event}");
    assert_eq!(event["owners"].as_array().map(Vec::len), Some(1), "{event}");
    assert_eq!((&event["owners"][0]["path"], &event["owners"][0]["program"]), (&CURL.into(), &curl.into()));

    // Under a policy of DROP only what is named passes, and only where it is named.
    let wget = world.sha256(Path::new(WGET))?;
    ctl(&world, &format!("-F -n {here}"))?;
    for namespace in [&here, &there] {
        ctl(&world, &format!("-P OUTPUT DROP -n {namespace}"))?;
    }
    ctl(&world, &format!("-A -c OUTPUT -v ACCEPT -n {here} --sng-hash {wget}"))?;
    for (blocked, passes) in urls(80).iter().zip(&urls(83)) {
        assert_eq!(fetch(&first, CURL, blocked)?.code(), 28);
        assert_eq!(fetch(&second, CURL, blocked)?.code(), 28);
        assert_eq!(fetch(&first, WGET, passes)?.ok()?, PAGE);
    }
    curl_to.assert_silent()
}

/// An actor in a container, and what arrives of it.
struct Sender<'w> {
    world: &'w World,
    actor: Actor,
    arrived: Counter<'w>,
}

impl<'w> Sender<'w> {
    /// Datagrams to a port of the peer; those of both families go by turns, where the container has both.
    fn start(world: &'w World, container: &Container<'_>, to: IpAddr, port: u16) -> Result<Self> {
        let arrived = world.count(&format!("udp dport {port}"))?;
        let actor = container.actor(&["udp", &std::net::SocketAddr::new(to, port).to_string()])?;
        Ok(Self { world, actor, arrived })
    }

    fn passes(&mut self) -> Result<()> {
        self.actor.step("send")?;
        let arrived = &self.arrived;
        wait_until("the packet arrives", || Ok(arrived.delta()? == 1))
    }

    fn is_blocked(&mut self) -> Result<()> {
        let before = self.arrived.total()?;
        self.actor.step("send")?;
        self.world.wait_queues_empty(Ns::Local)?;
        ensure!(self.arrived.total()? == before, "it arrived");
        Ok(())
    }
}

#[test]
fn a_rule_names_a_container_as_docker_does() -> Result<()> {
    let world = World::new("docker name")?;
    let docker = Docker::start(&world, Ns::Local)?;
    queue_from(&world, "docker0")?;
    let _daemon = world.daemon(&[])?;
    let (web, other) = (docker.container(&["--name", "web"])?, docker.container(&["--name", "other"])?);
    let mut senders =
        [Sender::start(&world, &web, world.peer4(), 7)?, Sender::start(&world, &other, world.peer4(), 8)?];
    for sender in &mut senders {
        sender.passes()?;
    }
    docker.ctl(&["-A", "-c", "OUTPUT", "-n", "any", "-v", "DROP", "--container", "web"])?.ok()?;
    let [web, other] = &mut senders;
    web.is_blocked()?;
    other.passes()?;
    ensure!(ctl(&world, "save")?.contains(" --from container:web"));
    let unknown = docker.ctl(&["-A", "-c", "OUTPUT", "-n", "any", "-v", "DROP", "--container", "nobody"])?;
    ensure!(unknown.code() != 0 && unknown.stderr.contains("no container nobody"), "{unknown:?}");
    ctl(&world, "-F -n any")?;
    docker.ctl(&["-A", "-c", "OUTPUT", "-n", "any", "-v", "DROP", "!", "--container", "web"])?.ok()?;
    web.passes()?;
    other.is_blocked()
}

/// Device and inode number of a file in a container.
fn number(container: &Container<'_>, file: &str) -> Result<(u64, u64)> {
    let metadata = std::fs::metadata(format!("/proc/{}/root{file}", container.pid()))?;
    Ok((metadata.dev(), metadata.ino()))
}

fn digest_inside(container: &Container<'_>, file: &str) -> Result<String> {
    let said = container.exec(&["busybox", "sha256sum", file], LIMIT)?.ok()?;
    said.split_whitespace().next().map(str::to_owned).context("sha256sum said nothing")
}

#[test]
fn a_tampered_copy_in_a_second_container_of_the_image_is_told_apart() -> Result<()> {
    let world = World::new("docker copies")?;
    let docker = Docker::start(&world, Ns::Local)?;
    queue_from(&world, "docker0")?;
    let mut daemon = world.daemon(&[])?;
    let original = world.sha256(&world.programs().path("actor")?)?;
    let (clean, other) = (docker.container(&[])?, docker.container(&[])?);
    other.tamper(ACTOR)?;
    let tampered = digest_inside(&other, ACTOR)?;
    assert_ne!(original, tampered);
    let mut senders = [
        Sender::start(&world, &clean, world.peer4(), 9)?,
        Sender::start(&world, &other, world.peer4(), 10)?,
        Sender::start(&world, &clean, world.peer6(), 11)?,
        Sender::start(&world, &other, world.peer6(), 12)?,
    ];
    senders.iter_mut().try_for_each(Sender::passes)?;
    for (policy, verdict, digest, clean_passes) in [
        ("ACCEPT", "DROP", &original, false),
        ("ACCEPT", "DROP", &tampered, true),
        ("DROP", "ACCEPT", &original, true),
        ("DROP", "ACCEPT", &tampered, false),
    ] {
        let seen = daemon.events()?.len();
        for container in [&clean, &other] {
            let namespace = container.netns();
            ctl(&world, &format!("-F -n {namespace}"))?;
            ctl(&world, &format!("-P OUTPUT {policy} -n {namespace}"))?;
            ctl(&world, &format!("-A -c OUTPUT -v {verdict} -n {namespace} --sng-hash {digest}"))?;
        }
        for (number, sender) in senders.iter_mut().enumerate() {
            let passes = (number % 2 == 0) == clean_passes;
            if passes { sender.passes() } else { sender.is_blocked() }
                .with_context(|| format!("sender {number}, policy {policy}, {verdict} {digest}"))?;
        }
        // The process inside, by its number outside.
        let event = daemon.wait_event_from(seen, LIMIT, is_drop)?;
        let pid = event["owners"][0]["pid"].as_u64().context("no owner")?;
        let (from, program) = if clean_passes { (&other, &tampered) } else { (&clean, &original) };
        ensure!(from.has(pid), "{pid} is not of that container: {event}");
        assert_eq!(event["owners"][0]["program"], **program);
        assert_eq!(event["owners"][0]["path"], ACTOR);
    }
    Ok(())
}

/// What counts is the file that is mapped, below the overlay: once its digest is known, the program is as cheap as any other,
/// also one that is older than the daemon.
#[test]
fn programs_of_an_image_are_looked_at_once() -> Result<()> {
    const PACKETS: u64 = 50;
    let world = World::new("docker once")?;
    let docker = Docker::start(&world, Ns::Local)?;
    queue_from(&world, "docker0")?;
    let older = docker.container(&[])?;
    let mut older_sender = Sender::start(&world, &older, world.peer4(), 9)?;
    let daemon = world.daemon(&[])?;
    let younger = docker.container(&[])?;
    for container in [&older, &younger] {
        ctl(&world, &format!("-A -c OUTPUT -v DROP -n {} --sng-hash {}", container.netns(), "0".repeat(64)))?;
    }
    let mut younger_sender = Sender::start(&world, &younger, world.peer4(), 10)?;
    for sender in [&mut older_sender, &mut younger_sender] {
        sender.passes()?;
        let waited = || Ok::<_, anyhow::Error>(queue_status(&daemon.files().socket, 0)?.parked);
        let before = waited()?;
        (0..PACKETS).try_for_each(|_| sender.passes())?;
        let more = waited()? - before;
        // Each would; and calls of others, of tests beside this one for instance, make some moments bad ones.
        ensure!(more < PACKETS / 2, "{more} of {PACKETS} packets waited for a look");
    }
    Ok(())
}

/// So many containers are made until one has the numbers of its predecessor: others on the machine make mounts too.
const TRIES: usize = 50;

#[test]
fn a_tampered_program_with_the_numbers_of_a_removed_one_is_told_apart() -> Result<()> {
    let world = World::new("docker numbers")?;
    let docker = Docker::start(&world, Ns::Local)?;
    queue_from(&world, "docker0")?;
    let _daemon = world.daemon(&[])?;
    let original = world.sha256(&world.programs().path("actor")?)?;
    for denied in ["original", "tampered"] {
        let mut found = None;
        for _ in 0..TRIES {
            let predecessor = docker.container(&[])?;
            let before = number(&predecessor, ACTOR)?;
            // A rule that asks, so that the digest is known under these numbers.
            ctl(&world, &format!("-A -c OUTPUT -v DROP -n {} --sng-hash {}", predecessor.netns(), "0".repeat(64)))?;
            Sender::start(&world, &predecessor, world.peer4(), 9)?.passes()?;
            drop(predecessor);
            let successor = docker.container(&[])?;
            successor.tamper(ACTOR)?;
            if number(&successor, ACTOR)? == before {
                found = Some(successor);
                break;
            }
        }
        let Some(successor) = found else { bail!("no container got the numbers of its predecessor") };
        let tampered = digest_inside(&successor, ACTOR)?;
        let digest = if denied == "original" { &original } else { &tampered };
        ctl(&world, &format!("-A -c OUTPUT -v DROP -n {} --sng-hash {digest}", successor.netns()))?;
        let mut sender = Sender::start(&world, &successor, world.peer4(), 10)?;
        for _ in 0..2 {
            if denied == "original" { sender.passes() } else { sender.is_blocked() }.context(denied)?;
        }
    }
    Ok(())
}

#[test]
fn a_name_is_asked_for_by_dockerd_and_the_page_by_curl() -> Result<()> {
    const BRIDGE: &str = "afw-users";
    let world = World::new("docker names")?;
    let IpAddr::V4(address) = world.peer4() else { bail!("the peer's address is no IPv4 address") };
    let _names = Server::names(world.namespace(Ns::Peer), address)?;
    let _server = world.http_server(80)?;
    let docker = Docker::start(&world, Ns::Local)?;
    let name = format!("com.docker.network.bridge.name={BRIDGE}");
    docker.docker(&["network", "create", "--opt", &name, "users"])?.ok()?;
    queue_from(&world, BRIDGE)?;
    let mut daemon = world.daemon(&[])?;
    let container = docker.container(&["--network", "users"])?;
    let namespace = container.netns();
    let (asked, fetched) = (world.count("udp dport 53")?, world.count("tcp dport 80 tcp flags syn")?);
    let (by_name, by_address) = ("http://page.example/", world.url(80));
    let took = |counter: &Counter<'_>| Ok::<_, anyhow::Error>(counter.delta()? > 0);
    assert_eq!(fetch(&container, CURL, by_name)?.ok()?, PAGE);
    ensure!(took(&asked)? && took(&fetched)?);
    let dockerd = world.sha256(Path::new("/usr/sbin/dockerd"))?;
    let curl = world.sha256(Path::new(CURL))?;

    ctl(&world, &format!("-A -c OUTPUT -v DROP -n {namespace} --sng-hash {dockerd}"))?;
    ensure!(!fetch(&container, CURL, by_name)?.success(), "without an answer to the name");
    world.wait_queues_empty(Ns::Local)?;
    asked.assert_silent()?;
    assert_eq!(fetch(&container, CURL, &by_address)?.ok()?, PAGE);
    ensure!(took(&fetched)?);
    let event = daemon.wait_event(LIMIT, is_drop)?;
    assert_eq!(event["owners"][0]["pid"], docker.pid()?, "{event}");
    assert_eq!(event["owners"][0]["program"], dockerd);

    ctl(&world, &format!("-F -n {namespace}"))?;
    ctl(&world, &format!("-A -c OUTPUT -v DROP -n {namespace} --sng-hash {curl}"))?;
    assert_eq!(fetch(&container, CURL, by_name)?.code(), 28);
    ensure!(took(&asked)?, "the question is not curl's");
    world.wait_queues_empty(Ns::Local)?;
    fetched.assert_silent()?;

    // Under a policy of DROP each of the two needs a rule of its own.
    ctl(&world, &format!("-F -n {namespace}"))?;
    ctl(&world, &format!("-P OUTPUT DROP -n {namespace}"))?;
    ctl(&world, &format!("-A -c OUTPUT -v ACCEPT -n {namespace} --sng-hash {curl}"))?;
    ensure!(!fetch(&container, CURL, by_name)?.success(), "curl may not ask");
    world.wait_queues_empty(Ns::Local)?;
    asked.assert_silent()?;
    assert_eq!(fetch(&container, CURL, &by_address)?.ok()?, PAGE);
    ctl(&world, &format!("-A -c OUTPUT -v ACCEPT -n {namespace} --sng-hash {dockerd}"))?;
    assert_eq!(fetch(&container, CURL, by_name)?.ok()?, PAGE);
    Ok(())
}

/// A namespace that a user made who may make no other, with a cable into it.
struct Own<'w> {
    pid: u32,
    sender: Sender<'w>,
}

impl<'w> Own<'w> {
    fn start(world: &'w World, program: &Path, number: u8, to: IpAddr) -> Result<Self> {
        let (local, peer) = (world.namespace(Ns::Local), world.namespace(Ns::Peer));
        let port = 20 + u16::from(number);
        let arrived = world.count(&format!("udp dport {port}"))?;
        let mut command = local.command("setpriv");
        command.args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--",
            "unshare",
            "--user",
            "--map-root-user",
        ]);
        command.arg("--net").arg(program).args(["udp", &std::net::SocketAddr::new(to, port).to_string()]);
        let actor = Actor::from_command(&mut command)?;
        let pid = actor.pid();
        let inside = |line: &str| {
            let mut command = harness::process::inside(Path::new(&format!("/proc/{pid}/ns/net")), "ip");
            harness::process::run(command.args(line.split_whitespace()), LIMIT)?.ok()
        };
        local.ip(&format!("link add own{number} type veth peer name eth0 netns {pid}"))?;
        local.ip(&format!("link set own{number} addrgenmode none up"))?;
        inside("link set eth0 addrgenmode none up")?;
        for (network, length, via) in [
            (format!("192.0.2.{}", 4 * number), 30, world::LOCAL4.into()),
            (format!("fd00:af:{number}::"), 64, IpAddr::from(world::LOCAL6)),
        ] {
            let (gateway, address) = match network.strip_suffix("::") {
                Some(prefix) => (format!("{prefix}::1"), format!("{prefix}::2")),
                None => (format!("192.0.2.{}", 4 * number + 1), format!("192.0.2.{}", 4 * number + 2)),
            };
            let nodad = if length == 64 { "nodad" } else { "" };
            local.ip(&format!("addr add {gateway}/{length} dev own{number} {nodad}"))?;
            inside(&format!("addr add {address}/{length} dev eth0 {nodad}"))?;
            inside(&format!("route add default via {gateway}"))?;
            peer.ip(&format!("route add {network}/{length} via {via}"))?;
        }
        Ok(Self { pid, sender: Sender { world, actor, arrived } })
    }
}

#[test]
fn what_a_user_does_in_a_user_namespace_is_judged_by_its_hash() -> Result<()> {
    let world = World::new("user namespaces")?;
    let local = world.namespace(Ns::Local);
    local.sysctl("net/ipv4/ip_forward", "1")?;
    local.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    // Another user must reach the programs.
    std::fs::set_permissions(world.folder(), std::fs::Permissions::from_mode(0o755))?;
    let (good, evil) = (world.actor_copy("good")?, world.actor_copy("evil")?);
    queue_from(&world, "own+")?;
    let mut daemon = world.daemon(&[])?;
    let mut owns = Vec::new();
    for (number, (program, to)) in
        [(&good, world.peer4()), (&evil, world.peer4()), (&good, world.peer6()), (&evil, world.peer6())]
            .into_iter()
            .enumerate()
    {
        let own = Own::start(&world, program, u8::try_from(number)? + 1, to)?;
        owns.push((program == &good, own));
    }
    owns.iter_mut().try_for_each(|(_, own)| own.sender.passes())?;
    for (policy, verdict, program) in [("ACCEPT", "DROP", &evil), ("DROP", "ACCEPT", &good)] {
        let digest = world.sha256(program)?;
        for (_, own) in &owns {
            let namespace = format!("/proc/{}/ns/net", own.pid);
            ctl(&world, &format!("-F -n {namespace}"))?;
            ctl(&world, &format!("-P OUTPUT {policy} -n {namespace}"))?;
            ctl(&world, &format!("-A -c OUTPUT -v {verdict} -n {namespace} --sng-hash {digest}"))?;
        }
        let seen = daemon.events()?.len();
        for (passes, own) in &mut owns {
            if *passes { own.sender.passes() } else { own.sender.is_blocked() }.context(policy)?;
        }
        let event = daemon.wait_event_from(seen, LIMIT, is_drop)?;
        assert_eq!(event["owners"][0]["pid"], owns[1].1.pid, "{event}");
        assert_eq!(event["owners"][0]["path"], evil.to_str().context("path")?);
    }
    Ok(())
}
