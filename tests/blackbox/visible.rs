//! What no digest says of a process: executable memory that no file holds, a tracer, and sockets whose packets no rule sees.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use harness::{Actor, Counter, Daemon, LIMIT, Ns, Server, Signal};
use serde_json::{Value, json};

use crate::line::{pause, status, wait_until};
use crate::pair::Pair;

/// With the probe, where answers are kept, and without, where each packet has a look of its own.
const PROBES: [&[&str]; 2] = [&[], &["--no-probe"]];

/// A world whose OUTPUT is queued, with a daemon, and somebody who takes datagrams at port 9.
struct Scene {
    daemon: Daemon,
    _sink: Server,
    pair: Pair,
}

/// Whom a chain lets pass by a predicate.
#[derive(Clone, Copy, Debug)]
struct Chain {
    policy: &'static str,
    verdict: &'static str,
    negated: bool,
    /// Packets of whom the predicate is true of pass, or else those of all others.
    passes_if: bool,
}

const CHAINS: [Chain; 4] = [
    Chain { policy: "ACCEPT", verdict: "DROP", negated: false, passes_if: false },
    Chain { policy: "ACCEPT", verdict: "DROP", negated: true, passes_if: true },
    Chain { policy: "DROP", verdict: "ACCEPT", negated: false, passes_if: true },
    Chain { policy: "DROP", verdict: "ACCEPT", negated: true, passes_if: false },
];

impl Scene {
    fn new(label: &str, arguments: &[&str]) -> Result<Scene> {
        let pair = Pair::new(label)?;
        pair.world.queue_output()?;
        let sink = pair.world.udp_sink(9)?;
        let daemon = pair.world.daemon(arguments)?;
        Ok(Scene { daemon, _sink: sink, pair })
    }

    /// Puts one rule in the place of all others.
    fn take(&self, chain: Chain, predicate: &str) -> Result<()> {
        self.pair.no_rules("OUTPUT")?;
        let mut rule = vec!["-A", "-c", "OUTPUT", "-v", chain.verdict];
        rule.extend(chain.negated.then_some("!"));
        rule.push(predicate);
        self.pair.world.ctl_ok(&rule)?;
        self.pair.world.ctl_ok(&["-P", "OUTPUT", chain.policy])?;
        Ok(())
    }

    fn count(&self) -> Result<Counter<'_>> {
        self.pair.world.count("udp dport 9")
    }

    /// An actor with a UDP socket to port 9.
    fn sender(&self) -> Result<Actor> {
        self.start(&["udp"])
    }

    fn start(&self, role: &[&str]) -> Result<Actor> {
        self.pair.start(&self.pair.good, &[role, &[&self.pair.to4(9)]].concat())
    }

    /// What `actor` sends arrives, or nothing of it does.
    fn passes(&self, actor: &mut Actor, arrived: &Counter<'_>, does: bool, what: &str) -> Result<()> {
        actor.step("send 2")?;
        if does {
            return self.pair.exactly(arrived, 2, what);
        }
        self.pair.silent(arrived).context(what.to_owned())
    }

    /// The predicate becomes true of a process at each of `changes` and false again at the next, as rules of all kinds see
    /// on the next packet. It is never true of another process, which goes on sending.
    fn follows(
        &self,
        predicate: &str,
        actor: &mut Actor,
        mut change: impl FnMut(&mut Actor, bool) -> Result<()>,
    ) -> Result<()> {
        let arrived = self.count()?;
        let mut other = self.sender()?;
        for chain in CHAINS {
            self.take(chain, predicate)?;
            for is in [false, true, false, true, false] {
                change(actor, is)?;
                let what = format!("{predicate} is {is}, {chain:?}");
                // Twice: the second time an answer may be kept.
                for _ in 0..2 {
                    self.passes(actor, &arrived, is == chain.passes_if, &what)?;
                }
                self.passes(&mut other, &arrived, !chain.passes_if, &format!("{what}: the other"))?;
            }
        }
        Ok(())
    }
}

/// Has it become so, or cease to be so if it is.
fn toggle<'a>(mut was: bool, begin: &'a str, cease: &'a str) -> impl FnMut(&mut Actor, bool) -> Result<()> + 'a {
    move |actor, is| {
        if is != was {
            actor.step(if is { begin } else { cease })?;
        }
        was = is;
        Ok(())
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

// --- executable memory that no file holds --------------------------------------------------------------------------------

#[test]
fn executable_memory_without_a_file_is_seen_on_the_next_packet() -> Result<()> {
    for arguments in PROBES {
        let scene = Scene::new("anonymous", arguments)?;
        let patched = format!("patched-exec {}", text(&scene.pair.evil)?);
        for begin in ["anonymous-exec", &patched] {
            // The second has no first thread any more, which is what /proc would show first.
            for mut actor in [scene.sender()?, scene.start(&["headless", "udp"])?] {
                scene
                    .follows("--anon-exec", &mut actor, toggle(false, begin, "unmap-exec"))
                    .with_context(|| format!("{begin} {arguments:?}"))?;
            }
        }
    }
    Ok(())
}

/// What is known of a process when the rule comes says nothing of such memory.
#[test]
fn a_rule_that_comes_later_sees_executable_memory_too() -> Result<()> {
    let scene = Scene::new("later rule", &[])?;
    let arrived = scene.count()?;
    scene.pair.only_rule("OUTPUT", "ACCEPT", "DROP", &scene.pair.world.sha256(&scene.pair.evil)?)?;
    let (mut actor, mut other) = (scene.sender()?, scene.sender()?);
    actor.step("anonymous-exec")?;
    for one in [&mut actor, &mut other] {
        scene.passes(one, &arrived, true, "no rule asks")?;
    }
    scene.pair.world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "DROP", "--anon-exec"])?;
    scene.passes(&mut other, &arrived, true, "it has no such memory")?;
    scene.passes(&mut actor, &arrived, false, "it has")
}

/// Whatever else gives a process executable memory, and what only looks so.
#[test]
fn executable_memory_is_told_apart_by_where_its_content_is() -> Result<()> {
    let scene = Scene::new("ways", &[])?;
    let arrived = scene.count()?;
    scene.take(CHAINS[0], "--anon-exec")?;
    // A file, a System V segment and a memfd have content that can be hashed; shared anonymous memory has not.
    for (way, is_anonymous) in
        [("mprotect", false), ("writable", false), ("memfd", false), ("shm", false), ("zero", true)]
    {
        let library = scene.pair.world.library(&format!("lib-{way}.so"))?;
        let mut actor = scene.sender()?;
        scene.passes(&mut actor, &arrived, true, "before")?;
        actor.step(&format!("map-by {way} {}", text(&library)?))?;
        scene.passes(&mut actor, &arrived, !is_anonymous, way)?;
    }
    Ok(())
}

/// A breakpoint, for instance: the page is the process's own then.
#[test]
fn code_that_was_written_over_is_seen() -> Result<()> {
    for arguments in PROBES {
        let scene = Scene::new("written over", arguments)?;
        let arrived = scene.count()?;
        let mut debugger = scene.pair.start(&scene.pair.good, &["idle"])?;
        scene.take(CHAINS[0], "--anon-exec")?;
        let mut other = scene.sender()?;
        for place in [text(&scene.pair.good)?, "/libc.so.6", "[vdso]"] {
            let mut actor = scene.sender()?;
            debugger.step(&format!("patch {} {place}", actor.pid()))?;
            scene.passes(&mut other, &arrived, true, "nobody wrote over the other's code")?;
            scene.passes(&mut actor, &arrived, false, place)?;
        }
    }
    Ok(())
}

#[test]
fn executable_memory_once_there_counts_for_ever_if_maps_are_retained() -> Result<()> {
    let scene = Scene::new("retained", &["-r"])?;
    let arrived = scene.count()?;
    scene.take(CHAINS[0], "--anon-exec")?;
    let mut actor = scene.sender()?;
    scene.passes(&mut actor, &arrived, true, "before")?;
    actor.step("anonymous-exec")?;
    scene.passes(&mut actor, &arrived, false, "with the memory")?;
    actor.step("unmap-exec")?;
    scene.passes(&mut actor, &arrived, false, "after it was unmapped")
}

// --- tracers -------------------------------------------------------------------------------------------------------------

#[test]
fn a_tracer_is_seen_on_the_next_packet() -> Result<()> {
    for arguments in PROBES {
        let scene = Scene::new("tracer", arguments)?;
        let mut actor = scene.sender()?;
        // Dropped first: who is traced is not gone before its tracer took note.
        let mut tracer = scene.pair.start(&scene.pair.good, &["idle"])?;
        let (begin, cease) = (format!("trace {}", actor.pid()), format!("untrace {}", actor.pid()));
        let mut by_tracer = toggle(false, &begin, &cease);
        scene
            .follows("--traced", &mut actor, |_, is| by_tracer(&mut tracer, is))
            .with_context(|| format!("{arguments:?}"))?;
    }
    Ok(())
}

#[test]
fn a_tracer_that_ends_is_one_no_longer() -> Result<()> {
    for arguments in PROBES {
        let scene = Scene::new("tracer ends", arguments)?;
        let arrived = scene.count()?;
        scene.take(CHAINS[3], "--traced")?;
        let mut actor = scene.sender()?;
        scene.passes(&mut actor, &arrived, true, "before")?;
        let mut tracer = scene.pair.start(&scene.pair.good, &["idle"])?;
        tracer.step(&format!("trace {}", actor.pid()))?;
        scene.passes(&mut actor, &arrived, false, "traced")?;
        drop(tracer);
        scene.passes(&mut actor, &arrived, true, "its tracer ended")?;
    }
    Ok(())
}

/// It was traced when it sent, and is not when the packet is judged.
#[test]
fn a_tracer_that_let_go_before_the_packet_was_judged_is_not_forgotten() -> Result<()> {
    let scene = Scene::new("tracer let go", &[])?;
    let arrived = scene.count()?;
    for chain in [CHAINS[0], CHAINS[3]] {
        scene.take(chain, "--traced")?;
        let mut actor = scene.sender()?;
        let mut tracer = scene.pair.start(&scene.pair.good, &["idle"])?;
        let (trace, untrace) = (format!("trace {}", actor.pid()), format!("untrace {}", actor.pid()));
        for _ in 0..3 {
            scene.passes(&mut actor, &arrived, true, "not traced")?;
            pause(&scene.daemon)?;
            tracer.step(&trace)?;
            actor.step("send 2")?;
            tracer.step(&untrace)?;
            scene.daemon.signal(Signal::CONT)?;
            scene.pair.silent(&arrived).with_context(|| format!("{chain:?}"))?;
        }
        scene.passes(&mut actor, &arrived, true, "not traced any more")?;
    }
    Ok(())
}

// --- events ----------------------------------------------------------------------------------------------------------------

#[test]
fn events_say_what_is_unusual_about_an_owner() -> Result<()> {
    for arguments in PROBES {
        let mut scene = Scene::new("unusual", arguments)?;
        scene.pair.world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "DROP", "--dport", "9"])?;
        let mut actor = scene.sender()?;
        // Dropped first: who is traced is not gone before its tracer took note.
        let mut tracer = scene.pair.start(&scene.pair.good, &["idle"])?;
        let (pid, by) = (actor.pid(), tracer.pid());
        let steps =
            [("", false, false), ("anonymous-exec", true, false), ("trace", true, true), ("unmap-exec", false, true)];
        for (step, anon_exec, traced) in steps {
            match step {
                "" => {}
                "trace" => drop(tracer.step(&format!("trace {pid}"))?),
                step => drop(actor.step(step)?),
            }
            let before = scene.daemon.events()?.len();
            actor.step("send")?;
            let event = scene.daemon.wait_event_from(before, LIMIT, |event| event["verdict"] == "DROP")?;
            let owner = &event["owners"][0];
            ensure!(owner["pid"] == pid, "{event}");
            ensure!(owner.get("anon_exec") == anon_exec.then_some(&json!(true)), "{step}: {event}");
            ensure!(owner.get("traced_by") == traced.then_some(&json!(by)), "{step}: {event}");
        }
    }
    Ok(())
}

// --- beside netfilter ------------------------------------------------------------------------------------------------------

fn is_bypass(event: &Value) -> bool {
    event["event"] == "bypass-capable"
}

/// Somebody who sends by packet(7) in the local namespace what another socket would send to port 9.
fn packet_sender(pair: &Pair) -> Result<Actor> {
    let from = format!("{}:4000", harness::world::LOCAL4);
    pair.start(&pair.evil, &["packet", &pair.to4(9), "eth0", "--bind", &from])
}

fn check_report(pair: &Pair, event: &Value, pid: u32) -> Result<()> {
    ensure!(event["family"] == "AF_PACKET" && event["inode"].is_u64() && event.get("verdict").is_none(), "{event}");
    let owner = event["owners"].as_array().and_then(|owners| owners.first()).context("no owner")?;
    ensure!(owner["pid"] == pid && owner["path"] == text(&pair.evil)?, "{event}");
    ensure!(owner["program"] == pair.world.sha256(&pair.evil)?, "{event}");
    Ok(())
}

/// What no rule can stop is told of as soon as somebody can do it.
#[test]
fn who_can_send_past_netfilter_is_reported() -> Result<()> {
    let Scene { mut daemon, _sink, pair } = Scene::new("past netfilter", &[])?;
    pair.world.ctl_ok(&["-P", "OUTPUT", "DROP"])?;
    let arrived = pair.world.count("udp dport 9")?;
    let mut actor = packet_sender(&pair)?;
    // Nobody asked for a look.
    let event = daemon.wait_event(LIMIT, is_bypass)?;
    check_report(&pair, &event, actor.pid())?;
    actor.step("send 3")?;
    wait_until("what no rule stops arrives", || Ok(arrived.total()? == 3))?;
    let listed = status(&daemon.files().socket)?.bypass_capable;
    ensure!(listed.len() == 1 && listed[0].holders.len() == 1 && listed[0].holders[0].pid == actor.pid(), "{listed:?}");
    let shown = pair.world.ctl_ok(&["status"])?;
    ensure!(shown.contains(&format!("pid {} {}", actor.pid(), text(&pair.evil)?)), "{shown}");
    let shown: Value = serde_json::from_str(&pair.world.ctl_ok(&["status", "--json"])?)?;
    ensure!(shown["bypass_capable"][0]["holders"][0]["pid"] == actor.pid(), "{shown}");
    // Nobody else is told of, and nobody twice.
    let _elsewhere = pair.world.actor_from(
        Ns::Peer,
        &pair.evil,
        &["packet", &pair.to4(9), "eth0", "--bind", "198.51.100.2:4000"],
    )?;
    ensure!(status(&daemon.files().socket)?.bypass_capable == listed);
    let second = packet_sender(&pair)?;
    daemon.wait_event(LIMIT, |event| is_bypass(event) && event["owners"][0]["pid"] == second.pid())?;
    let told = daemon.events()?.iter().filter(|event| is_bypass(event)).count();
    ensure!(told == 2, "{:?}", daemon.events()?);
    drop((actor, second));
    wait_until("nobody is left", || Ok(status(&daemon.files().socket)?.bypass_capable.is_empty()))
}

#[test]
fn who_can_already_send_past_netfilter_is_reported_at_start() -> Result<()> {
    for arguments in PROBES {
        let pair = Pair::new("past netfilter before")?;
        let actor = packet_sender(&pair)?;
        let mut daemon = pair.world.daemon(arguments)?;
        let event = daemon.wait_event(LIMIT, is_bypass).with_context(|| format!("{arguments:?}"))?;
        check_report(&pair, &event, actor.pid())?;
    }
    Ok(())
}

/// Its maker has ended when the daemon comes to look.
#[test]
fn who_could_send_past_netfilter_for_a_moment_is_reported() -> Result<()> {
    let mut scene = Scene::new("past netfilter for a moment", &[])?;
    pause(&scene.daemon)?;
    let pid = packet_sender(&scene.pair)?.pid();
    scene.daemon.signal(Signal::CONT)?;
    let event = scene.daemon.wait_event(LIMIT, is_bypass)?;
    let owner = &event["owners"][0];
    ensure!(event["family"] == "AF_PACKET" && event.get("inode").is_none() && owner["pid"] == pid, "{event}");
    ensure!(owner["undetermined"] == "process-gone", "{event}");
    ensure!(status(&scene.daemon.files().socket)?.bypass_capable.is_empty());
    Ok(())
}

/// What the daemon is told while it stands still is more than it reads at once, and nothing wakes it for the rest.
#[test]
fn who_could_send_past_netfilter_in_a_storm_of_processes_is_reported() -> Result<()> {
    let mut scene = Scene::new("past netfilter in a storm", &[])?;
    pause(&scene.daemon)?;
    let mut runner = scene.start(&["udp"])?;
    for _ in 0..12 {
        runner.step("run 500 /bin/true")?;
    }
    let pid = packet_sender(&scene.pair)?.pid();
    scene.daemon.signal(Signal::CONT)?;
    let event = scene.daemon.wait_event(LIMIT, is_bypass)?;
    ensure!(event["owners"][0]["pid"] == pid && event.get("inode").is_none(), "{event}");
    Ok(())
}

/// Without the probe nothing tells of a new one: whoever asks for the status sees it, and the events do then.
#[test]
fn without_the_probe_the_status_finds_who_can_send_past_netfilter() -> Result<()> {
    let mut scene = Scene::new("past netfilter, no probe", &["--no-probe"])?;
    let actor = packet_sender(&scene.pair)?;
    let listed = status(&scene.daemon.files().socket)?.bypass_capable;
    ensure!(listed.len() == 1 && listed[0].holders[0].pid == actor.pid(), "{listed:?}");
    check_report(&scene.pair, &scene.daemon.wait_event(LIMIT, is_bypass)?, actor.pid())
}
