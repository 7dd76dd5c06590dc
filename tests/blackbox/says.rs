//! What a rule can say, each thing with a packet that it meets and one that it does not, counted where they arrive.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use harness::{Counter, LIMIT, Ns, World};

use crate::pair::Pair;

const PORT: u16 = 9;

/// A world in which two programs send, and everything that leaves is judged.
struct Scene {
    pair: Pair,
}

impl Scene {
    fn new(label: &str) -> Result<Scene> {
        let pair = Pair::new(label)?;
        pair.world.queue_output()?;
        Ok(Scene { pair })
    }

    fn world(&self) -> &World {
        &self.pair.world
    }

    fn counter(&self) -> Result<Counter<'_>> {
        let counter = self.world().count(&format!("udp dport {PORT}"))?;
        self.send(&self.pair.good, &[])?;
        ensure!(counter.delta()? == 2, "without a rule everything passes");
        Ok(counter)
    }

    /// Two datagrams of a program, started by `wrapper`, all judged.
    fn send(&self, program: &Path, wrapper: &[&str]) -> Result<()> {
        let program = program.to_str().context("a path")?;
        let to = self.pair.to4(PORT);
        let argv = [wrapper, &[program, "udp-send", &to, "2", "--judged"]].concat();
        self.world().run(Ns::Local, &argv, LIMIT)?.ok()?;
        self.world().wait_queues_empty(Ns::Local)
    }

    /// With a DROP rule that says `words`: whether packets of `program` arrive.
    fn passes(&self, counter: &Counter<'_>, words: &[&str], program: &Path, wrapper: &[&str]) -> Result<bool> {
        let argv = [&["-A", "-c", "OUTPUT", "-n", "any", "-v", "DROP"], words].concat();
        self.world().ctl_ok(&argv)?;
        self.send(program, wrapper)?;
        self.world().ctl_ok(&["-F", "-c", "OUTPUT", "-n", "any"])?;
        match counter.delta()? {
            0 => Ok(false),
            2 => Ok(true),
            other => anyhow::bail!("{words:?}: {other} of 2 packets arrived"),
        }
    }
}

#[test]
fn of_packets() -> Result<()> {
    let scene = Scene::new("says packets")?;
    let _daemon = scene.world().daemon(&[])?;
    let counter = scene.counter()?;
    let good = &scene.pair.good;
    scene.world().ctl_ok(&["set", "create", "lan", "addresses", "198.51.100.0/24,fd00::/8"])?;
    scene.world().ctl_ok(&["set", "create", "far", "addresses", "203.0.113.0/24"])?;
    scene.world().ctl_ok(&["set", "create", "web", "ports", "80,8000:8100"])?;
    let device =
        scene.world().run(Ns::Local, &["ip", "-o", "route", "get", &scene.world().peer4().to_string()], LIMIT)?.ok()?;
    let device = device.split_whitespace().skip_while(|word| *word != "dev").nth(1).context("a device")?.to_owned();
    let begins = format!("{}+", &device[..2]);
    for (words, blocked) in [
        ("-d 203.0.113.1,198.51.100.0/24", true),
        ("-d 203.0.113.1,203.0.113.2", false),
        ("-d @lan", true),
        ("-d @far", false),
        ("-d @far,198.51.100.2", true),
        ("! -d @far", true),
        ("! -d @lan", false),
        ("--dport 80,9", true),
        ("--dport 1:8,10:20", false),
        ("--dport @web", false),
        ("! --dport @web", true),
        ("--dport :1023", true),
        ("-p tcp,17", true),
        ("! -p udp", false),
        (&format!("-o {device}"), true),
        (&format!("-o {begins}"), true),
        ("-o lo", false),
        ("! -o lo", true),
        ("-i lo", false),
        ("! -i lo", true),
        ("--netns host", false),
        ("! --netns host", true),
        ("--netns any", true),
        ("--owner owned", true),
        ("--owner unowned", false),
        ("! --owner unowned", true),
        ("--owner undetermined", false),
    ] {
        let words: Vec<&str> = words.split_whitespace().collect();
        ensure!(scene.passes(&counter, &words, good, &[])? != blocked, "{words:?}");
    }
    Ok(())
}

#[test]
fn of_owners() -> Result<()> {
    let scene = Scene::new("says owners")?;
    for options in [&[][..], &["--no-probe"]] {
        let mut daemon = scene.world().daemon(options)?;
        let counter = scene.counter()?;
        let (good, evil) = (&scene.pair.good, &scene.pair.evil);
        let (of_good, of_evil) = (scene.world().sha256(good)?, scene.world().sha256(evil)?);
        let path = good.to_str().context("a path")?;
        let by_name = format!("{}/g*", good.parent().and_then(Path::to_str).context("a folder")?);
        let root = &[][..];
        let nobody = &["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"][..];
        let cases: &[(&str, &[&str], bool)] = &[
            (&format!("--sng-hash {of_good},{of_evil}"), root, true),
            (&format!("--sng-hash {of_evil} --sng-hash {of_good}"), root, true),
            (&format!("--sng-hash {of_evil}"), root, false),
            (&format!("! --sng-hash {of_evil}"), root, true),
            (&format!("--all-hash {of_evil},{of_good}"), root, false),
            (&format!("--all-hash {of_good}"), root, true),
            (&format!("--exe {path}"), root, true),
            (&format!("--program-path {path}"), root, true),
            (&format!("--program-path {by_name}"), root, true),
            ("--program-path /usr/bin/*", root, false),
            ("--object-path **/libc.so.6", root, true),
            ("! --object-path **/libc.so.6", root, false),
            ("--uid 0", root, true),
            ("--uid root", root, true),
            ("--uid 1-70000", root, false),
            ("--uid 1-70000", nobody, true),
            ("--uid nobody", nobody, true),
            ("! --uid root", nobody, true),
            ("! --uid root", root, false),
            ("--gid 65534", nobody, true),
            ("--gid 65534", root, false),
            ("--cgroup /", root, true),
            ("--cgroup /no/such/group", root, false),
            ("--unit no-such", root, false),
            ("--container 0123456789ab", root, false),
            ("! --container 0123456789ab", root, true),
        ];
        for (words, wrapper, blocked) in cases {
            let words: Vec<&str> = words.split_whitespace().collect();
            let passes = scene.passes(&counter, &words, good, wrapper)?;
            ensure!(passes != *blocked, "{words:?} {wrapper:?} {options:?}");
        }
        ensure!(daemon.stop()?.success());
    }
    Ok(())
}

#[test]
fn rates_ends_and_silence() -> Result<()> {
    let scene = Scene::new("says rates")?;
    let world = scene.world();
    let _daemon = world.daemon(&[])?;
    let counter = world.count(&format!("udp dport {PORT}"))?;
    let burst = |count: &str| -> Result<u64> {
        let to = scene.pair.to4(PORT);
        let program = scene.pair.good.to_str().context("a path")?;
        world.run(Ns::Local, &[program, "udp-send", &to, count, "--judged"], LIMIT)?.ok()?;
        world.wait_queues_empty(Ns::Local)?;
        counter.delta()
    };
    // So many in a day, all at once.
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-n", "any", "-v", "ACCEPT", "--limit", "20/d:20", "--comment", "some"])?;
    world.ctl_ok(&["-P", "OUTPUT", "DROP", "-n", "any"])?;
    ensure!(burst("30")? == 20);
    ensure!(burst("5")? == 0);
    ensure!(world.ctl_ok(&["-L"])?.contains("some"));
    world.ctl_ok(&["-F", "-c", "OUTPUT", "-n", "any"])?;
    world.ctl_ok(&["-P", "OUTPUT", "ACCEPT", "-n", "any"])?;
    // Beyond the rate they are dropped.
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-n", "any", "-v", "DROP", "!", "--limit", "10/d:10"])?;
    ensure!(burst("30")? == 10);
    world.ctl_ok(&["-F", "-c", "OUTPUT", "-n", "any"])?;
    // A rule that is gone by itself.
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-n", "any", "-v", "DROP", "--for", "8s"])?;
    ensure!(burst("3")? == 0);
    crate::line::wait_until("the rule to end", || Ok(!world.ctl_ok(&["-L"])?.contains("DROP")))?;
    ensure!(burst("3")? == 3);
    // An hour that is not now, by a clock that all machines share.
    let now = jiff_hour()?;
    let (this, other) =
        (format!("{:02}:00-{:02}:59/utc", now, (now + 1) % 24), format!("{0:02}:00-{0:02}:59/utc", (now + 12) % 24));
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-n", "any", "-v", "DROP", "--time", &other])?;
    ensure!(burst("3")? == 3);
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-n", "any", "-v", "DROP", "--time", &this])?;
    ensure!(burst("3")? == 0);
    Ok(())
}

/// The hour of the day by UTC.
fn jiff_hour() -> Result<u64> {
    Ok(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs() / 3600 % 24)
}

#[test]
fn sets_change_without_touching_rules() -> Result<()> {
    let scene = Scene::new("says sets")?;
    let world = scene.world();
    let _daemon = world.daemon(&[])?;
    let counter = scene.counter()?;
    let (good, evil) = (&scene.pair.good, &scene.pair.evil);
    world.ctl_ok(&["set", "create", "bad", "digests"])?;
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-n", "any", "-v", "DROP", "--sng-hash", "@bad"])?;
    let arrive = |program: &Path| -> Result<u64> {
        scene.send(program, &[])?;
        counter.delta()
    };
    ensure!(arrive(evil)? == 2);
    world.ctl_ok(&["set", "add", "bad", &world.sha256(evil)?])?;
    ensure!(arrive(evil)? == 0);
    ensure!(arrive(good)? == 2);
    let in_use = world.ctl(&["set", "delete", "bad"])?;
    ensure!(in_use.code() == 2, "a set in use was deleted: {in_use}");
    world.ctl_ok(&["set", "remove", "bad", &world.sha256(evil)?])?;
    ensure!(arrive(evil)? == 2);
    Ok(())
}

#[test]
fn explanations() -> Result<()> {
    let scene = Scene::new("explain")?;
    let world = scene.world();
    let _daemon = world.daemon(&[])?;
    let evil = scene.pair.start(&scene.pair.evil, &["udp", &scene.pair.to4(PORT), "--bind", "0.0.0.0:4001"])?;
    let digest = world.sha256(&scene.pair.evil)?;
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-n", "any", "-v", "ACCEPT", "-d", "203.0.113.1"])?;
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-n", "any", "-v", "REJECT", "--sng-hash", &digest])?;
    let path = scene.pair.evil.to_str().context("a path")?;
    let flow = format!("udp 198.51.100.1:4001 {}:{PORT}", world.peer4());
    let by_flow: Vec<&str> = ["explain"].into_iter().chain(flow.split(' ')).collect();
    for argv in [vec!["explain", "--pid", &evil.pid().to_string()], vec!["explain", path], by_flow] {
        let text = world.ctl_ok(&argv)?;
        ensure!(text.contains("REJECT") && text.contains(&digest[..12]) && text.contains(path), "{argv:?}: {text}");
    }
    Ok(())
}
