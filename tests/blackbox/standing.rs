//! Rules can ask whose the owners of a packet are, and which device it passes.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use harness::{LIMIT, Ns, World};

use crate::line::Line;

const WITHOUT: &[&str] = &["--without-hook", "senders", "--without-hook", "cgroup-attach", "--without-hook", "links"];
const ARGUMENTS: [&[&str]; 3] = [&[], &["--no-probe"], WITHOUT];

/// The rule counts for the one state and not for the other, whichever verdict it has.
fn tells_apart(
    world: &World,
    line: &mut Line<'_>,
    rule: &[&str],
    put: impl Fn(&mut Line<'_>, bool) -> Result<()>,
) -> Result<()> {
    line.expect_passes()?;
    for (policy, verdict) in [("ACCEPT", "DROP"), ("DROP", "ACCEPT")] {
        world.ctl_ok(&["-P", "OUTPUT", "ACCEPT"])?;
        world.ctl_ok(&["-F", "-c", "OUTPUT"])?;
        world.ctl_ok(&[&["-A", "-c", "OUTPUT", "-v", verdict], rule].concat())?;
        world.ctl_ok(&["-P", "OUTPUT", policy])?;
        for _ in 0..5 {
            for is_so in [true, false] {
                put(line, is_so)?;
                let passes = is_so == (verdict == "ACCEPT");
                let judged = if passes { line.expect_passes() } else { line.expect_blocked() };
                judged.with_context(|| format!("{rule:?}, {verdict}, {is_so}"))?;
            }
        }
    }
    world.ctl_ok(&["-P", "OUTPUT", "ACCEPT"])?;
    world.ctl_ok(&["-F", "-c", "OUTPUT"])?;
    Ok(())
}

#[test]
fn users_count_from_the_next_packet() -> Result<()> {
    let world = World::new("users")?;
    world.queue_output()?;
    for arguments in &ARGUMENTS[..2] {
        let _daemon = world.daemon(arguments)?;
        let mut line = Line::udp(&world, 9)?;
        let put = |line: &mut Line<'_>, is_so: bool| {
            let user = if is_so { 1234 } else { 7 };
            line.actor().step(&format!("become {user}")).map(drop)
        };
        tells_apart(&world, &mut line, &["--uid", "1234"], put).with_context(|| format!("{arguments:?}"))?;
    }
    Ok(())
}

#[test]
fn control_groups_count_from_the_next_packet() -> Result<()> {
    struct Group(PathBuf);
    impl Drop for Group {
        fn drop(&mut self) {
            // A process that has ended leaves it a moment later.
            let deadline = Instant::now() + LIMIT;
            while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
                std::thread::yield_now();
            }
        }
    }
    let world = World::new("groups")?;
    world.queue_output()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let of_version_2 = mounts.lines().find(|line| line.contains(" - cgroup2 ")).context("no cgroup2")?;
    let root = PathBuf::from(of_version_2.split(' ').nth(4).context("no place")?);
    let group = Group(root.join(world.name()));
    fs::create_dir(&group.0)?;
    for arguments in ARGUMENTS {
        let _daemon = world.daemon(arguments)?;
        let mut line = Line::udp(&world, 9)?;
        let put = |line: &mut Line<'_>, is_so: bool| {
            let place = if is_so { &group.0 } else { &root };
            Ok(fs::write(place.join("cgroup.procs"), line.actor().pid().to_string())?)
        };
        let path = format!("/{}", world.name());
        tells_apart(&world, &mut line, &["--cgroup", &path], put).with_context(|| format!("{arguments:?}"))?;
    }
    Ok(())
}

#[test]
fn names_of_devices_count_from_the_next_packet() -> Result<()> {
    let world = World::new("devices")?;
    world.queue_output()?;
    let local = world.namespace(Ns::Local);
    for arguments in ARGUMENTS {
        let _daemon = world.daemon(arguments)?;
        let mut line = Line::udp(&world, 9)?;
        let put = |_: &mut Line<'_>, is_so: bool| {
            let (from, to) = if is_so { ("eth0", "wan7") } else { ("wan7", "eth0") };
            local.ip(&format!("link set {from} name {to}")).map(drop)
        };
        tells_apart(&world, &mut line, &["-o", "wan+"], put).with_context(|| format!("{arguments:?}"))?;
    }
    Ok(())
}
