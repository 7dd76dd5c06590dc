//! Packets that are passing through: of containers behind a bridge or a cable, and of other machines.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use harness::counter::Place;
use harness::netns::Namespace;
use harness::{Actor, Counter, Daemon, LIMIT, Ns, Server, World, world};

use crate::line::{Line, wait_until};

const BRIDGE: &str = "docker0";
const GATEWAY: &str = "172.17.0.1";
const INSIDE: &str = "172.17.0.2";

/// A world whose router is the machine with the containers; its peer is the outside.
pub struct Host {
    pub world: World,
    name: String,
}

impl Host {
    pub fn new(label: &str) -> Result<Self> {
        let world = World::with_router(label)?;
        let name = format!("{}c", world.namespace(Ns::Router).name());
        Ok(Self { world, name })
    }

    /// A namespace behind a cable to a bridge, as Docker makes them. It always has the same name and address.
    pub fn container(&self) -> Result<Namespace> {
        self.container_named(&self.name, "veth-c", INSIDE)
    }

    fn container_named(&self, name: &str, cable: &str, address: &str) -> Result<Namespace> {
        let router = self.world.namespace(Ns::Router);
        let container = Namespace::create(name)?;
        if router.ip(&format!("link show {BRIDGE}")).is_err() {
            // Else it has that of one of its ports, and another whenever ports come and go.
            router.ip(&format!("link add {BRIDGE} address 02:af:00:00:0c:01 type bridge"))?;
            router.ip(&format!("addr add {GATEWAY}/16 dev {BRIDGE}"))?;
            router.ip(&format!("link set {BRIDGE} addrgenmode none up"))?;
        }
        router.ip(&format!("link add {cable} type veth peer name eth0 netns {name}"))?;
        router.ip(&format!("link set {cable} master {BRIDGE} addrgenmode none up"))?;
        container.ip(&format!("addr add {address}/16 dev eth0"))?;
        container.ip("link set eth0 addrgenmode none up")?;
        container.ip(&format!("route add default via {GATEWAY}"))?;
        Ok(container)
    }

    pub fn daemon(&self) -> Result<Daemon> {
        self.world.daemon_in(Ns::Router, self.world.files(), &[])
    }

    /// `iptables -I ARGUMENTS` on the host, IPv4 only: the container has nothing else.
    pub fn iptables(&self, arguments: &str) -> Result<()> {
        let mut argv = vec!["iptables", "-w", "10", "-I"];
        argv.extend(arguments.split_whitespace());
        self.world.run(Ns::Router, &argv, LIMIT)?.ok().map(drop)
    }

    pub fn ctl(&self, line: &str) -> Result<String> {
        self.world.ctl_in(Ns::Router, &line.split_whitespace().collect::<Vec<_>>())?.ok()
    }

    fn sender(&self, container: &Namespace, program: &Path, port: u16) -> Result<Sender<'_>> {
        let arrived = self.world.count(&format!("udp dport {port}"))?;
        let actor = Actor::start(container, program, &["udp", &format!("{}:{port}", self.world.peer4())])?;
        Ok(Sender { world: &self.world, actor, arrived })
    }

    fn actor(&self) -> Result<PathBuf> {
        self.world.programs().path("actor")
    }
}

/// A program in a container whose packets the outside counts.
struct Sender<'w> {
    world: &'w World,
    actor: Actor,
    arrived: Counter<'w>,
}

impl Sender<'_> {
    fn passes(&mut self) -> Result<()> {
        self.actor.step("send")?;
        let arrived = &self.arrived;
        wait_until("the packet arrives", || Ok(arrived.delta()? == 1))
    }

    fn is_blocked(&mut self) -> Result<()> {
        // That it could arrive was seen before.
        let before = self.arrived.total()?;
        anyhow::ensure!(before > 0, "nothing of this kind ever arrived");
        self.actor.step("send")?;
        self.world.wait_queues_empty(Ns::Router)?;
        anyhow::ensure!(self.arrived.total()? == before, "it arrived");
        Ok(())
    }
}

fn is_drop(event: &serde_json::Value) -> bool {
    event["verdict"] == "DROP"
}

#[test]
fn a_program_in_a_container_is_dropped_by_hash_and_another_passes() -> Result<()> {
    let host = Host::new("container")?;
    let container = host.container()?;
    host.iptables(&format!("FORWARD -i {BRIDGE} -j NFQUEUE --queue-num 0"))?;
    let mut daemon = host.daemon()?;
    let copy = host.world.actor_copy("denied")?;
    let mut allowed = host.sender(&container, &host.actor()?, 9)?;
    let mut denied = host.sender(&container, &copy, 10)?;
    allowed.passes()?;
    denied.passes().context("before the rule")?;
    let digest = host.world.sha256(&copy)?;
    host.ctl(&format!("-A -c OUTPUT -v DROP -n {} --sng-hash {digest}", host.name))?;
    for _ in 0..2 {
        denied.is_blocked()?;
        allowed.passes()?;
    }
    let event = daemon.wait_event(LIMIT, is_drop)?;
    assert_eq!((&event["chain"], &event["reason"]), (&"OUTPUT".into(), &"rule".into()));
    assert_eq!(event["flow"]["namespace"], format!("netns:{}", host.name));
    assert_eq!(event["owners"].as_array().map(Vec::len), Some(1), "{event}");
    assert_eq!(
        (&event["owners"][0]["pid"], &event["owners"][0]["program"]),
        (&denied.actor.pid().into(), &digest.into())
    );

    // Under a policy of DROP only what is named passes.
    host.ctl(&format!("-F -n {}", host.name))?;
    denied.passes()?;
    host.ctl(&format!("-P OUTPUT DROP -n {}", host.name))?;
    host.ctl(&format!("-A -c OUTPUT -v ACCEPT -n {} --sng-hash {}", host.name, host.world.sha256(&host.actor()?)?))?;
    denied.is_blocked()?;
    allowed.passes()
}

#[test]
fn curl_in_a_container_is_blocked_and_wget_is_not() -> Result<()> {
    let host = Host::new("container web")?;
    let container = host.container()?;
    let _server = host.world.http_server(80)?;
    host.iptables(&format!("FORWARD -i {BRIDGE} -j NFQUEUE --queue-num 0"))?;
    host.iptables(&format!("FORWARD -o {BRIDGE} -j NFQUEUE --queue-num 1"))?;
    let _daemon = host.daemon()?;
    let arrived = host.world.count("tcp dport 80")?;
    let url = host.world.url(80);
    let web = |program: &str, options: &str| {
        let mut command = container.command(program);
        command.env_clear().env("PATH", "/usr/bin:/bin").args(options.split_whitespace()).arg(&url);
        harness::process::run(&mut command, LIMIT)
    };
    let curl = "-q -sS --noproxy * --connect-timeout 0.5";
    let wget = "--no-config --no-proxy -q -t 1 -T 10 -O -";
    assert_eq!(web("curl", curl)?.ok()?, harness::servers::PAGE);
    host.world.wait_connections_closed(Ns::Peer)?;
    assert!(arrived.delta()? > 0);
    let digest = host.world.sha256(Path::new("/usr/bin/curl"))?;
    host.ctl(&format!("-A -c OUTPUT -v DROP -n {} --sng-hash {digest}", host.name))?;
    assert_eq!(web("curl", curl)?.code(), 28);
    arrived.assert_silent()?;
    assert_eq!(web("wget", wget)?.ok()?, harness::servers::PAGE);
    Ok(())
}

#[test]
fn what_goes_to_a_container_is_judged_by_input_rules() -> Result<()> {
    let host = Host::new("container input")?;
    let container = host.container()?;
    host.world.namespace(Ns::Peer).ip(&format!("route add 172.17.0.0/16 via {}", "203.0.113.1"))?;
    host.iptables(&format!("FORWARD -o {BRIDGE} -j NFQUEUE --queue-num 1"))?;
    let mut daemon = host.daemon()?;
    let copy = host.world.actor_copy("denied")?;
    let (mut receivers, mut senders, mut counters) = (Vec::new(), Vec::new(), Vec::new());
    for (number, program) in [(0, host.actor()?), (1, copy.clone())] {
        let at = format!("{INSIDE}:{}", 4000 + number);
        receivers.push(Actor::start(&container, &program, &["udp-bind", &at])?);
        senders.push(host.world.actor(Ns::Peer, &["udp", &at])?);
        let expression = format!("udp dport {}", 4000 + number);
        counters.push(Counter::start(&container, Place::Arrived, &expression, format!("n{number}"))?);
    }
    for (sender, counter) in senders.iter_mut().zip(&counters) {
        sender.step("send")?;
        wait_until("the packet arrives", || Ok(counter.delta()? == 1))?;
    }
    let digest = host.world.sha256(&copy)?;
    host.ctl(&format!("-A -c OUTPUT -v DROP -n {}", host.name))?;
    host.ctl(&format!("-A -c INPUT -v DROP -n {} --sng-hash {digest}", host.name))?;
    senders[1].step("send")?;
    let event = daemon.wait_event(LIMIT, is_drop)?;
    assert_eq!(event["owners"][0]["pid"], receivers[1].pid());
    host.world.wait_queues_empty(Ns::Router)?;
    counters[1].assert_silent()?;
    senders[0].step("send")?;
    wait_until("the other's packet arrives", || Ok(counters[0].delta()? == 1))
}

#[test]
fn rules_follow_the_name_of_a_container_that_is_made_again() -> Result<()> {
    let host = Host::new("container again")?;
    host.iptables(&format!("FORWARD -i {BRIDGE} -j NFQUEUE --queue-num 0")).context("before the bridge is there")?;
    let daemon = host.daemon()?;
    // Rules may come before their namespace.
    host.ctl(&format!("-A -c OUTPUT -v DROP -n {} --dport 9", host.name))?;
    let other = host.world.namespace(Ns::Peer).name();
    host.ctl(&format!("-A -c OUTPUT -v DROP -n {other} --dport 10"))?;
    host.ctl("-A -c OUTPUT -v DROP --dport 10")?;
    for round in 0..2 {
        let container = host.container()?;
        let mut ten = host.sender(&container, &host.actor()?, 10)?;
        ten.passes()
            .with_context(|| format!("round {round}: rules of the host and of others are not the container's"))?;
        let mut nine = host.sender(&container, &host.actor()?, 9)?;
        nine.actor.step("send")?;
        host.world.wait_queues_empty(Ns::Router)?;
        assert_eq!(nine.arrived.total()?, 0, "round {round}");
        host.ctl(&format!("-F -n {}", host.name))?;
        nine.passes().with_context(|| format!("round {round}: without the rule"))?;
        host.ctl(&format!("-A -c OUTPUT -v DROP -n {} --dport 9", host.name))?;
        nine.is_blocked().with_context(|| format!("round {round}"))?;
        host.ctl("-A -c OUTPUT -v DROP -n any --dport 10")?;
        ten.is_blocked().context("a rule for any")?;
        host.ctl("-F -n any")?;
        drop((ten, nine));
        // With the namespace it would go, but some time later.
        host.world.namespace(Ns::Router).ip("link del veth-c")?;
        drop(container);
    }
    drop(daemon);
    Ok(())
}

#[test]
fn a_namespace_behind_a_cable_without_a_bridge() -> Result<()> {
    let world = World::with_router("cable")?;
    // The local namespace is a container of the router here.
    for family in ["iptables", "ip6tables"] {
        let rule = [family, "-w", "10", "-I", "FORWARD", "-i", "eth0", "-j", "NFQUEUE", "--queue-num", "0"];
        world.run(Ns::Router, &rule, LIMIT)?.ok()?;
    }
    let mut daemon = world.daemon_in(Ns::Router, world.files(), &[])?;
    let copy = world.actor_copy("denied")?;
    let actor = world.programs().path("actor")?;
    let to = [format!("{}:9", world.peer4()), format!("[{}]:9", world.peer6())];
    let mut lines = Vec::new();
    for (program, to, bind) in [
        (&actor, &to[0], "0.0.0.0:4001"),
        (&actor, &to[1], "[::]:4002"),
        (&copy, &to[0], "0.0.0.0:4003"),
        (&copy, &to[1], "[::]:4004"),
    ] {
        let (_, port) = bind.rsplit_once(':').context("no port")?;
        let line = Line::outgoing(&world, program, &["udp", to, "--bind", bind], &format!("udp sport {port}"))?;
        lines.push((program == &actor, line.judged_in(Ns::Router)));
    }
    lines.iter_mut().try_for_each(|(_, line)| line.expect_passes())?;
    let (digest, name) = (world.sha256(&copy)?, world.namespace(Ns::Local).name());
    world.ctl_in(Ns::Router, &["-A", "-c", "OUTPUT", "-v", "DROP", "-n", name, "--sng-hash", &digest])?.ok()?;
    for _ in 0..2 {
        lines.iter_mut().try_for_each(|(passes, line)| line.expect(*passes))?;
    }
    let event = daemon.wait_event(LIMIT, is_drop)?;
    assert_eq!(event["owners"][0]["path"], copy.to_str().context("path")?);
    Ok(())
}

#[test]
fn routed_packets_are_judged_by_forward_rules() -> Result<()> {
    let world = World::with_router("routed")?;
    world.queue_forward()?;
    let mut daemon = world.daemon_in(Ns::Router, world.files(), &[])?;
    let ctl = |line: &str| world.ctl_in(Ns::Router, &line.split_whitespace().collect::<Vec<_>>())?.ok();
    let actor = world.programs().path("actor")?;
    let (mut nine, mut ten) =
        (Line::udp(&world, 9)?.judged_in(Ns::Router), Line::udp(&world, 10)?.judged_in(Ns::Router));
    let to6 = format!("[{}]:11", world.peer6());
    let mut six = Line::outgoing(&world, &actor, &["udp", &to6], "udp dport 11")?.judged_in(Ns::Router);
    let server = Server::tcp_echo(world.namespace(Ns::Peer), 7)?;
    for line in [&mut nine, &mut ten, &mut six] {
        line.expect_passes()?;
    }
    let router = world.namespace(Ns::Router).name();
    // The senders live behind a cable: rules about the place are for their namespace, as for `any`.
    ctl(&format!("-A -c FORWARD -v DROP -n any -p udp -s {} --dport 9", world::LOCAL4))?;
    nine.expect_blocked()?;
    ten.expect_passes()?;
    ctl("-A -c OUTPUT -v DROP -n any --dport 10")?;
    ten.expect_passes().context("a rule of another chain")?;
    ctl(&format!("-A -c FORWARD -v DROP -n any -d {}/64 -p 17", world.peer6()))?;
    six.expect_blocked()?;
    let event = daemon.wait_event(LIMIT, is_drop)?;
    assert_eq!((&event["chain"], &event["reason"]), (&"FORWARD".into(), &"rule".into()), "{router}: {event}");
    // A connection in both directions.
    let mut client = world.actor(Ns::Local, &["tcp", &format!("{}:7", world.peer4())])?;
    client.step("send")?;
    assert!(client.step("recv")?.starts_with('5'));
    drop(server);
    Ok(())
}

#[test]
fn packets_of_other_machines_are_unowned_and_judged_by_their_flow() -> Result<()> {
    let world = World::with_router("unowned")?;
    // Behind a tunnel device there is no namespace of this machine: what comes out of it is another machine's.
    let (local, router) = (world.namespace(Ns::Local), world.namespace(Ns::Router));
    for (namespace, remote, inner) in [(local, "198.51.100.2", "192.0.2.1"), (router, "198.51.100.1", "192.0.2.2")] {
        namespace.ip(&format!("link add tunnel type vxlan id 7 remote {remote} dstport 4789 dev eth0"))?;
        namespace.ip(&format!("addr add {inner}/30 dev tunnel"))?;
        namespace.ip("link set tunnel addrgenmode none up")?;
    }
    local.ip("route replace default via 192.0.2.2")?;
    world.namespace(Ns::Peer).ip("route add 192.0.2.0/30 via 203.0.113.1")?;
    world.queue(Ns::Router, &["FORWARD"], 2)?;
    let mut daemon = world.daemon_in(Ns::Router, world.files(), &[])?;
    let ctl = |line: &str| world.ctl_in(Ns::Router, &line.split_whitespace().collect::<Vec<_>>())?.ok();
    let copy = world.actor_copy("denied")?;
    let (mut nine, mut ten) =
        (Line::udp_from(&world, &copy, 9)?.judged_in(Ns::Router), Line::udp(&world, 10)?.judged_in(Ns::Router));
    nine.expect_passes()?;
    ten.expect_passes()?;
    // Nobody here holds the socket, so identity says no; the rules are those of the router's own namespace.
    let digest = world.sha256(&copy)?;
    ctl(&format!("-A -c FORWARD -v DROP --sng-hash {digest}"))?;
    ctl(&format!("-A -c FORWARD -v DROP ! --sng-hash {digest}"))?;
    nine.expect_passes()?;
    ctl("-A -c FORWARD -v DROP --dport 9")?;
    nine.expect_blocked()?;
    ten.expect_passes()?;
    let event = daemon.wait_event(LIMIT, is_drop)?;
    assert_eq!(event["owners"], serde_json::json!([]));
    assert_eq!(event["flow"]["namespace"], format!("netns:{}", router.name()));
    ctl(&format!("-I 0 -c FORWARD -v ACCEPT --sng-hash {digest}"))?;
    nine.expect_blocked().context("an ACCEPT by identity needs an owner")
}

/// A file where `ip netns add` would mount a namespace in a moment.
struct Placeholder(PathBuf);

impl Placeholder {
    fn new(host: &Host, number: u32) -> Result<Self> {
        let path = Path::new("/run/netns").join(format!("{}{number}", host.name));
        std::fs::write(&path, "")?;
        Ok(Self(path))
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            eprintln!("cleaning up {}: {error}", self.0.display());
        }
    }
}

#[test]
fn names_that_are_no_namespace_yet_hide_no_container() -> Result<()> {
    let host = Host::new("half made")?;
    let container = host.container()?;
    host.iptables(&format!("FORWARD -i {BRIDGE} -j NFQUEUE --queue-num 0"))?;
    let _daemon = host.daemon()?;
    let mut sender = host.sender(&container, &host.actor()?, 9)?;
    sender.passes()?;
    // The order in which names are looked at is the file system's: some will come before the container's.
    let _half_made = (0..16).map(|number| Placeholder::new(&host, number)).collect::<Result<Vec<_>>>()?;
    host.ctl(&format!("-A -c OUTPUT -v DROP -n {}", host.name))?;
    for _ in 0..3 {
        sender.is_blocked()?;
    }
    Ok(())
}

/// A raw socket in the container makes datagrams that look like an allowed program's, and is closed before they are looked at.
#[test]
fn datagrams_forged_in_a_container() -> Result<()> {
    const TIMES: u64 = 200;
    let host = Host::new("forged")?;
    let container = host.container()?;
    host.iptables(&format!("FORWARD -i {BRIDGE} -j NFQUEUE --queue-num 0"))?;
    let _daemon = host.daemon()?;
    let (good, evil) = (host.world.actor_copy("good")?, host.world.actor_copy("evil")?);
    let _sink = host.world.udp_sink(9)?;
    let to = format!("{}:9", host.world.peer4());
    let mut allowed = Actor::start(&container, &good, &["udp", &to, "--bind", &format!("{INSIDE}:4001")])?;
    let mut denied = Actor::start(&container, &evil, &["udp", &to])?;
    let (own, forged) = (host.world.count("udp length 13")?, host.world.count("udp sport 4001 udp length 28")?);
    let mut forge = |times: u64| -> Result<()> {
        let bytes = crate::bypasses::odd::hexadecimal(&crate::bypasses::odd::udp());
        for _ in 0..times / 25 {
            denied.step(&format!("raw 25 17 hasty {bytes}"))?;
        }
        host.world.wait_queues_empty(Ns::Router)
    };
    forge(25)?;
    wait_until("they arrive where nothing forbids it", || Ok(forged.total()? == 25))?;
    host.ctl(&format!("-P OUTPUT DROP -n {}", host.name))?;
    host.ctl(&format!("-A -c OUTPUT -v ACCEPT -n {} --sng-hash {}", host.name, host.world.sha256(&good)?))?;
    allowed.step("send")?;
    wait_until("the allowed program's arrives", || Ok(own.total()? == 1))?;
    forge(TIMES)?;
    // It went behind all the others.
    allowed.step("send")?;
    wait_until("the allowed program's arrives afterwards", || Ok(own.total()? == 2))?;
    let passed = forged.total()? - 25;
    anyhow::ensure!(passed == 0, "{passed} of {TIMES} arrived");
    Ok(())
}

/// The allowed program in the container starts a denied one with its socket, which sends once and is gone before that is looked
/// at.
#[test]
fn a_socket_inherited_in_a_container() -> Result<()> {
    const TIMES: u64 = 200;
    let host = Host::new("inherited")?;
    let container = host.container()?;
    host.iptables(&format!("FORWARD -i {BRIDGE} -j NFQUEUE --queue-num 0"))?;
    let _daemon = host.daemon()?;
    let (good, evil) = (host.world.actor_copy("good")?, host.world.actor_copy("evil")?);
    let _sink = host.world.udp_sink(9)?;
    let to = format!("{}:9", host.world.peer4());
    let mut allowed = Actor::start(&container, &good, &["udp", &to])?;
    let mut flooder = Actor::start(&container, &evil, &["udp", &format!("{}:8", host.world.peer4())])?;
    let arrived = host.world.count("udp dport 9")?;
    let mut bequeath = |times: u64| -> Result<()> {
        flooder.tell("flood 20000")?;
        for _ in 0..times / 25 {
            allowed.step(&format!("bequeath 25 hasty {}", evil.display()))?;
        }
        flooder.answer()?;
        host.world.wait_queues_empty(Ns::Router)
    };
    bequeath(25)?;
    wait_until("they arrive where nothing forbids it", || Ok(arrived.delta()? > 0))?;
    host.ctl(&format!("-P OUTPUT DROP -n {}", host.name))?;
    host.ctl(&format!("-A -c OUTPUT -v ACCEPT -n {} --sng-hash {}", host.name, host.world.sha256(&good)?))?;
    host.world.wait_queues_empty(Ns::Router)?;
    arrived.delta()?;
    bequeath(TIMES)?;
    let passed = arrived.delta()?;
    anyhow::ensure!(passed == 0, "{passed} of {TIMES} arrived");
    Ok(())
}

/// The denied program in the container sends and becomes the allowed one.
#[test]
fn sent_in_a_container_by_one_who_became_an_allowed_program() -> Result<()> {
    const TIMES: u64 = 200;
    let host = Host::new("launder")?;
    let container = host.container()?;
    host.iptables(&format!("FORWARD -i {BRIDGE} -j NFQUEUE --queue-num 0"))?;
    let _daemon = host.daemon()?;
    let (good, evil) = (host.world.actor_copy("good")?, host.world.actor_copy("evil")?);
    let _sink = host.world.udp_sink(9)?;
    let arrived = host.world.count("udp dport 9")?;
    let mut helper = Actor::start(&container, &host.actor()?, &["idle"])?;
    let mut launder = |times: u64| -> Result<()> {
        let line = format!("{} udp-exec {}:9 2 {}", evil.display(), host.world.peer4(), good.display());
        for _ in 0..times / 25 {
            helper.step(&format!("run 25 {line}"))?;
        }
        host.world.wait_queues_empty(Ns::Router)
    };
    launder(25)?;
    wait_until("they arrive where nothing forbids it", || Ok(arrived.delta()? > 0))?;
    host.ctl(&format!("-P OUTPUT DROP -n {}", host.name))?;
    host.ctl(&format!("-A -c OUTPUT -v ACCEPT -n {} --sng-hash {}", host.name, host.world.sha256(&good)?))?;
    arrived.delta()?;
    launder(TIMES)?;
    let passed = arrived.delta()?;
    anyhow::ensure!(passed == 0, "{passed} of {TIMES} arrived");
    Ok(())
}

const GATEWAY6: &str = "fd00:af:0:c::1";
const INSIDE6: &str = "fd00:af:0:c::2";
/// What the namespace beside it has at first.
const BESIDE: &str = "172.17.0.3";
const BESIDE6: &str = "fd00:af:0:c::3";

/// What becomes of a packet from an address of a container.
struct Probe<'h> {
    host: &'h Host,
    daemon: Daemon,
}

impl Probe<'_> {
    fn passes(&self, container: &Namespace, from: &str) -> Result<()> {
        let arrived = self.host.world.count(&format!("udp dport 9 {}", source(from)))?;
        self.send(container, from)?;
        wait_until("the packet arrives", || Ok(arrived.delta()? == 1)).with_context(|| from.to_owned())
    }

    /// Returns the event.
    fn is_blocked(&mut self, container: &Namespace, from: &str) -> Result<serde_json::Value> {
        let arrived = self.host.world.count(&format!("udp dport 9 {}", source(from)))?;
        let seen = self.daemon.events()?.len();
        self.send(container, from)?;
        let event = self.daemon.wait_event_from(seen, LIMIT, is_drop).with_context(|| from.to_owned())?;
        assert_eq!(event["flow"]["source"], from);
        self.host.world.wait_queues_empty(Ns::Router)?;
        anyhow::ensure!(arrived.total()? == 0, "it arrived: {event}");
        Ok(event)
    }

    fn send(&self, container: &Namespace, from: &str) -> Result<()> {
        let (peer4, peer6) = (self.host.world.peer4(), self.host.world.peer6());
        let (to, from) = match from.contains(':') {
            false => (format!("{peer4}:9"), format!("{from}:0")),
            true => (format!("[{peer6}]:9"), format!("[{from}]:0")),
        };
        Actor::start(container, &self.host.actor()?, &["udp", &to, "--bind", &from])?.step("send").map(drop)
    }
}

fn source(address: &str) -> String {
    format!("{} saddr {address}", if address.contains(':') { "ip6" } else { "ip" })
}

#[test]
fn behind_a_bridge_that_tells_no_port_the_address_decides_wherever_it_moves() -> Result<()> {
    let host = Host::new("bridge without ports")?;
    let router = host.world.namespace(Ns::Router);
    let (ruled, free) = (host.name.clone(), format!("{}d", host.name));
    for family in ["iptables", "ip6tables"] {
        router.sysctl(&format!("net/bridge/bridge-nf-call-{family}"), "0")?;
        router.sh(&format!("{family} -w 10 -I FORWARD -i {BRIDGE} -j NFQUEUE --queue-num 0"))?;
    }
    let add = |container: &Namespace, what: &str, address: &str| {
        let length = if address.contains(':') { "64 nodad" } else { "16" };
        container.ip(&format!("addr {what} {address}/{length} dev eth0"))
    };
    let first = host.container()?;
    let second = host.container_named(&free, "veth-d", BESIDE)?;
    router.ip(&format!("addr add {GATEWAY6}/64 dev {BRIDGE} nodad"))?;
    for (container, address) in [(&first, INSIDE6), (&second, BESIDE6)] {
        add(container, "add", address)?;
        container.ip(&format!("route add default via {GATEWAY6}"))?;
    }
    let mut probe = Probe { daemon: host.daemon()?, host: &host };
    for address in [INSIDE, INSIDE6] {
        probe.passes(&first, address)?;
    }
    host.ctl(&format!("-A -c OUTPUT -v DROP -n {ruled}"))?;
    for (ours, others) in [(INSIDE, BESIDE), (INSIDE6, BESIDE6)] {
        let event = probe.is_blocked(&first, ours)?;
        assert_eq!(event["flow"]["namespace"], format!("netns:{ruled}"), "{event}");
        probe.passes(&second, others)?;
        // An address that moves takes nothing with it.
        add(&first, "del", ours)?;
        add(&second, "add", ours)?;
        add(&first, "add", &format!("{others}0"))?;
        // The route goes with the last address.
        first.ip(&format!("route replace default via {GATEWAY}"))?;
        probe.passes(&second, ours).context("moved")?;
        probe.is_blocked(&first, &format!("{others}0"))?;
        // Where two have it nobody can tell; then what is forbidden to one is forbidden.
        add(&first, "add", ours)?;
        let event = probe.is_blocked(&second, ours)?;
        assert_eq!(event["owners"][0]["undetermined"], "namespace-unknown", "{event}");
        add(&first, "del", ours)?;
        probe.passes(&second, ours).context("one of the two has it no more")?;
        add(&second, "del", ours)?;
    }
    // One that has its address before its cable leads anywhere.
    let late_name = format!("{}e", host.name);
    let late = Namespace::create(&late_name)?;
    host.ctl(&format!("-A -c OUTPUT -v DROP -n {late_name}"))?;
    late.ip("link add eth0 type veth peer name veth-e")?;
    add(&late, "add", "172.17.0.4")?;
    late.ip(&format!("link set veth-e netns {}", router.name()))?;
    router.ip(&format!("link set veth-e master {BRIDGE} addrgenmode none up"))?;
    late.ip("link set eth0 addrgenmode none up")?;
    late.ip(&format!("route add default via {GATEWAY}"))?;
    probe.is_blocked(&late, "172.17.0.4")?;
    // A successor may get the id that another had.
    router.ip("link del veth-c")?;
    drop(first);
    let first = host.container()?;
    probe.is_blocked(&first, INSIDE)?;
    probe.passes(&second, BESIDE)
}
