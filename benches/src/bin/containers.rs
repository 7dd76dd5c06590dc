//! Measures how long packets of containers take, with many containers on the machine.

use std::fs::File;
use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use harness::world::Kind;
use harness::{LIMIT, Ns, Programs, Running, World};
use nix::sched::{CloneFlags, setns};

/// Measure round trips of datagrams from hand-made containers, with many of them on the machine
///
/// A container is a process in a network namespace without a name, behind a veth on a bridge. Every figure is the median
/// (most) of a round trip in microseconds: from the container through the daemon's OUTPUT queue to an echo server.
#[derive(Debug, Parser)]
#[command(name = "containers", version)]
struct Arguments {
    /// How many containers there are
    #[arg(default_values_t = [10, 500, 2000])]
    counts: Vec<usize>,
    /// Containers that are measured, evenly spread
    #[arg(long, default_value_t = 20)]
    samples: usize,
}

/// A bridge has 1,023 ports at most.
const PORTS: usize = 1000;
/// Where the echo server listens.
const ECHO: u16 = 7;

fn main() -> ExitCode {
    match Arguments::try_parse().map_err(Into::into).and_then(|arguments| measure(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("containers: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn measure(arguments: &Arguments) -> Result<()> {
    println!("| containers | port known | rules | first packet | of a new flow | next packet | of a new container |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for count in &arguments.counts {
        let world = World::build(Kind::Bench, "containers", Programs::beside_this()?, false)?;
        let local = world.namespace(Ns::Local);
        local.sysctl("net/ipv4/ip_forward", "1")?;
        world.namespace(Ns::Peer).ip("route add 10.0.0.0/8 via 198.51.100.1")?;
        let _echo = world.udp_echo(ECHO)?;
        let mut containers = Containers { world: &world, processes: Vec::new() };
        containers.add(*count)?;
        containers.row(*count, arguments.samples, "-", "no queue")?;
        let queue = ["iptables", "-t", "mangle", "-A", "FORWARD", "-i", "bridge+", "-j", "NFQUEUE"];
        world.run(Ns::Local, &queue, LIMIT)?.ok()?;
        for (port, known) in [("yes", "1"), ("no", "0")] {
            local.sysctl("net/bridge/bridge-nf-call-iptables", known)?;
            for rules in ["none", "by hash"] {
                let files = harness::daemon::Files::named(world.folder(), &format!("{known}{}", rules.len()));
                let _daemon = world.daemon_in(Ns::Local, files.clone(), &[])?;
                if rules == "by hash" {
                    let digest = "0".repeat(64);
                    let mut ctl = local.command(world.programs().path("ctl-fw")?);
                    ctl.env("APP_FW_SOCKET", &files.socket);
                    ctl.args(["-A", "-c", "OUTPUT", "-v", "DROP", "-n", "any", "--sng-hash", &digest]);
                    harness::process::run(&mut ctl, LIMIT)?.ok()?;
                    // So that no digest is missing.
                    containers.trips(*count / 2)?;
                }
                containers.row(*count, arguments.samples, port, rules)?;
            }
        }
    }
    Ok(())
}

fn summary(mut trips: Vec<Duration>) -> String {
    trips.sort();
    format!("{} ({})", trips[trips.len() / 2].as_micros(), trips[trips.len() - 1].as_micros())
}

/// Processes in namespaces of their own, all with a cable to a bridge.
struct Containers<'w> {
    world: &'w World,
    processes: Vec<Running>,
}

impl Containers<'_> {
    fn add(&mut self, count: usize) -> Result<()> {
        let mut links = String::new();
        let first = self.processes.len();
        for number in first..first + count {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "unshare", "--net", "sh", "-c", "echo && exec sleep infinity"]);
            let mut process = Running::start(command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
            // It has its namespace when it speaks.
            std::io::Read::read(&mut process.take_stdout().context("no pipe")?, &mut [0])?;
            let bridge = number / PORTS;
            if number % PORTS == 0 {
                // Without an address of its own it would take that of a port, and another with each that comes.
                let address = format!("02:af:00:01:00:{bridge:02x}");
                links += &format!("link add bridge{bridge} address {address} type bridge\n");
                links += &format!("addr add 10.{bridge}.0.1/16 dev bridge{bridge}\n");
                links += &format!("link set bridge{bridge} addrgenmode none up\n");
            }
            links += &format!("link add c{number} type veth peer name eth0 netns {}\n", process.pid());
            links += &format!("link set c{number} master bridge{bridge} addrgenmode none up\n");
            // Every broadcast would be copied to all ports, which takes longer than what is measured.
            links += &format!("link set c{number} type bridge_slave flood off mcast_flood off bcast_flood off\n");
            self.processes.push(process);
        }
        batch(&mut self.world.command(Ns::Local, &["ip", "-batch", "-"])?, &links)?;
        for (number, process) in self.processes.iter().enumerate().skip(first) {
            let (bridge, host) = (number / PORTS, number % PORTS + 2);
            let address = format!("10.{bridge}.{}.{}/16", host / 256, host % 256);
            let lines = format!(
                "addr add {address} dev eth0\nlink set eth0 addrgenmode none up\nroute add default via 10.{bridge}.0.1\n"
            );
            let mut command = harness::process::inside(Path::new(&format!("/proc/{}/ns/net", process.pid())), "ip");
            batch(command.args(["-batch", "-"]), &lines)?;
        }
        Ok(())
    }

    /// Measures `samples` of the first `count`, and as many that are made for it.
    fn row(&mut self, count: usize, samples: usize, port: &str, rules: &str) -> Result<()> {
        let chosen = (0..samples).map(|n| n * count / samples.min(count) % count);
        let trips = chosen.map(|n| self.trips(n)).collect::<Result<Vec<_>>>()?;
        let [first, flow, next] = [0, 1, 2].map(|which| summary(trips.iter().map(|trip| trip[which]).collect()));
        let mut fresh = Vec::new();
        for _ in 0..samples {
            self.add(1)?;
            fresh.push(self.trips(self.processes.len() - 1)?[0]);
        }
        println!("| {count} | {port} | {rules} | {first} | {flow} | {next} | {} |", summary(fresh));
        Ok(())
    }

    /// Round trips of the first packet, the first of another flow, and the next of that flow.
    fn trips(&self, number: usize) -> Result<[Duration; 3]> {
        let file = File::open(format!("/proc/{}/ns/net", self.processes[number].pid()))?;
        let to = SocketAddr::new(self.world.peer4(), ECHO);
        let trips = || {
            setns(&file, CloneFlags::CLONE_NEWNET)?;
            let first = UdpSocket::bind("0.0.0.0:0")?;
            let other = UdpSocket::bind("0.0.0.0:0")?;
            Ok([trip(&first, to)?, trip(&other, to)?, trip(&other, to)?])
        };
        std::thread::scope(|scope| scope.spawn(trips).join()).expect("a measuring thread panicked")
    }
}

fn trip(socket: &UdpSocket, to: SocketAddr) -> Result<Duration> {
    socket.set_read_timeout(Some(LIMIT))?;
    let begun = Instant::now();
    socket.send_to(b"x", to)?;
    socket.recv(&mut [0; 8]).context("no echo")?;
    Ok(begun.elapsed())
}

fn batch(command: &mut Command, lines: &str) -> Result<()> {
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    child.stdin.take().context("no pipe")?.write_all(lines.as_bytes())?;
    ensure!(child.wait()?.success(), "`ip -batch` failed");
    Ok(())
}
