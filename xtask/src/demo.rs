//! `cargo xtask demo`: curl is blocked by its SHA-256, wget passes, and the packets at the other end are counted.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use harness::{Captured, Counter, Daemon, Kind, Ns, Programs, World, servers};
use serde_json::Value;

use crate::own_network::Snapshot;
use crate::{cargo, install, interrupt};

/// More than the commands' own time limits, so that theirs are what ends them.
const LIMIT: Duration = Duration::from_secs(15);

/// Runs the demonstration.
///
/// # Errors
/// Something was not as it should be; whatever was made has been removed nevertheless.
pub fn run() -> Result<()> {
    install::require_root()?;
    interrupt::catch()?;
    println!("== What this needs");
    install::for_demo()?;
    for name in Kind::Demo.sweep()? {
        println!("Removed {name}, left by a demo that was killed.");
    }
    let before = Snapshot::take()?;

    println!("\n== Release binaries\n$ cargo build --release -p app-fw -p ctl-fw");
    cargo::run_interruptibly(&["build", "--quiet", "--release", "-p", "app-fw", "-p", "ctl-fw"])?;
    let programs = Programs::in_folder(cargo::binaries("release")?);

    // Everything that is made is owned in there, so that it is gone here, whatever happened.
    let shown = show(programs);
    let clean = removed(&before);
    interrupt::check()?;
    shown?;
    clean?;
    println!("All as it should be.");
    Ok(())
}

fn removed(before: &Snapshot) -> Result<()> {
    let left = Kind::Demo.present();
    ensure!(left.is_empty(), "could not be removed: {}", left.join(", "));
    println!("\n== Afterwards\nRemoved: both namespaces with all processes in them, and the temporary folder.");
    before.compare(&Snapshot::take()?)?;
    println!("The machine's own network namespace is as before: interfaces, addresses, routes, iptables, nftables.");
    Ok(())
}

fn show(programs: Programs) -> Result<()> {
    println!("\n== Two scratch network namespaces, joined by a cable");
    let world = World::build(Kind::Demo, "demo", programs, false)?;
    let curl = curl_under_test(&world)?;
    let _server = world.http_server(80)?;
    println!("{}: {}, app-fw and the programs it judges", world.namespace(Ns::Local).name(), harness::world::LOCAL4);
    println!("{}: {}, a web server", world.namespace(Ns::Peer).name(), world.peer4());

    println!("\n== app-fw starts, and the packets of the first namespace are handed to it");
    println!("# app-fw --db rules.db --socket $APP_FW_SOCKET --log events.json &");
    let mut daemon = world.daemon(&[])?;
    let story = judge(&world, &mut daemon, &curl).and_then(|()| {
        let status = daemon.stop()?;
        ensure!(status.success(), "app-fw did not end well on SIGTERM: {status}");
        Ok(())
    });
    // What the daemon said is only of interest when something went wrong.
    story.with_context(|| match daemon.messages().trim() {
        "" => "not as it should be".to_owned(),
        messages => format!("app-fw said:\n{messages}\nnot as it should be"),
    })
}

fn judge(world: &World, daemon: &mut Daemon, curl: &str) -> Result<()> {
    let get_by_curl = format!("curl -sS --max-time 3 {}", world.url(80));
    let get_by_wget = format!("wget -q -O - --timeout=5 --tries=1 {}", world.url(80));
    let arrived = world.count("tcp dport 80")?;
    shell(world, "iptables -I OUTPUT -j NFQUEUE --queue-num 0")?.ok()?;

    println!("\n== No rule yet: curl passes");
    expect_page(world, &get_by_curl, &arrived)?;

    println!("\n== A rule: drop what comes from a program that has curl's SHA-256");
    shell(
        world,
        &format!("ctl-fw -A -c OUTPUT -v DROP -n /proc/$$/ns/net --sng-hash $(sha256sum {curl} | awk '{{print $1}}')"),
    )?
    .ok()?;
    ensure!(!shell(world, "ctl-fw -L")?.ok()?.trim().is_empty(), "ctl-fw -L lists nothing");

    println!("\n== curl is blocked");
    let earlier = daemon.events()?.len();
    let refused = shell(world, &get_by_curl)?;
    ensure!(!refused.success() && refused.stdout.is_empty(), "curl was not blocked: {refused}");
    arrived.assert_silent().context("curl's packets left the machine")?;
    println!("exit code {}; packets that reached the web server: 0", refused.code());

    println!("\n== wget passes");
    expect_page(world, &get_by_wget, &arrived)?;

    println!("\n== Why: the first event in events.json since the rule was added");
    show_event(daemon, earlier, curl)
}

/// Runs a command line as root would type it, inside the first namespace.
fn shell(world: &World, line: &str) -> Result<Captured> {
    interrupt::check()?;
    println!("# {line}");
    let captured = world.run(Ns::Local, &["sh", "-c", line], LIMIT)?;
    print!("{}{}", captured.stdout, captured.stderr);
    Ok(captured)
}

fn expect_page(world: &World, line: &str, arrived: &Counter<'_>) -> Result<()> {
    let page = shell(world, line)?.ok()?;
    ensure!(page == servers::PAGE, "the web server's page was expected, not `{}`", page.trim_end());
    world.wait_connections_closed(Ns::Peer)?;
    let packets = arrived.delta()?;
    ensure!(packets > 0, "the page came, but no packet was counted at the web server");
    println!("packets that reached the web server: {packets}");
    Ok(())
}

fn show_event(daemon: &mut Daemon, earlier: usize, curl: &str) -> Result<()> {
    let event = daemon.wait_event_from(earlier, LIMIT, |event| event["verdict"] == "DROP" && owned_by(event, curl))?;
    // The line as it stands in the log: the order of the keys is the daemon's.
    let log = fs::read_to_string(&daemon.files().events)?;
    let line = log.lines().find(|line| serde_json::from_str::<Value>(line).is_ok_and(|parsed| parsed == event));
    println!("{}", line.context("the event vanished from the log")?);
    for (what, is, should) in [
        ("reason", &event["reason"], Value::from("rule")),
        ("chain", &event["chain"], Value::from("OUTPUT")),
        ("destination port", &event["flow"]["destination_port"], Value::from(80)),
    ] {
        ensure!(*is == should, "the event's {what} is {is}, not {should}");
    }
    Ok(())
}

fn owned_by(event: &Value, path: &str) -> bool {
    event["owners"].as_array().is_some_and(|owners| owners.iter().any(|owner| owner["path"] == path))
}

/// The real curl. On some machines `curl` is a script around it, whose digest is not what runs.
fn curl_under_test(world: &World) -> Result<String> {
    let found = world.run(Ns::Local, &["sh", "-c", "command -v curl"], LIMIT)?.ok().context("looking for curl")?;
    let path: PathBuf = fs::canonicalize(found.trim_end()).context("following links to curl")?;
    let mut magic = [0; 4];
    fs::File::open(&path)?.read_exact(&mut magic).with_context(|| format!("reading {}", path.display()))?;
    if magic != *b"\x7fELF" {
        bail!("{} is not the curl program but a wrapper (no ELF file): the demo needs Debian's curl", path.display());
    }
    path.into_os_string().into_string().ok().context("a path that is not UTF-8")
}
