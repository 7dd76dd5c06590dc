//! `app-fw --audit` lets everything pass and records what would not; `ctl-fw learn` makes rules of that.

use anyhow::{Result, ensure};
use harness::Ns;

use crate::line::wait_until;
use crate::pair::Pair;

#[test]
fn what_was_learned_is_enough_to_go_on_and_no_more() -> Result<()> {
    let pair = Pair::new("learn")?;
    let world = &pair.world;
    let _servers = [world.udp_echo(7)?, world.udp_echo(8)?];
    world.queue_output()?;
    let mut daemon = world.daemon(&["--audit", "--pol-out", "DROP"])?;
    let talk = |program, port| pair.start(program, &["udp", &pair.to4(port)])?.step("converse 3").map(drop);
    let arrived = world.count("udp dport 7")?;
    talk(&pair.good, 7)?;
    ensure!(arrived.delta()? == 3, "--audit lets everything pass");
    world.wait_queues_empty(Ns::Local)?;
    ensure!(world.ctl_ok(&["status"])?.contains("audit"));

    let digest = world.sha256(&pair.good)?;
    // It is recorded a moment after the packet has passed.
    wait_until("the program is recorded", || Ok(world.ctl_ok(&["learn"])?.contains(&digest)))?;
    let text = world.ctl_ok(&["learn"])?;
    ensure!(
        text.contains(&digest) && text.contains("--dport 7") && text.contains(&world.peer4().to_string()),
        "{text}"
    );
    ensure!(!text.contains(&world.sha256(&pair.evil)?), "{text}");
    world.ctl_ok(&["learn", "--apply", "--clear"])?;
    ensure!(!world.ctl_ok(&["learn"])?.contains(&digest), "it was to be forgotten");
    ensure!(daemon.stop()?.success());

    // Without --audit the rules hold: for what was learned, and for nothing else.
    let _daemon = world.daemon(&["--pol-out", "DROP"])?;
    talk(&pair.good, 7)?;
    ensure!(arrived.delta()? == 3);
    let mut evil = pair.start(&pair.evil, &["udp", &pair.to4(7)])?;
    evil.step("send 3")?;
    evil.step("judged")?;
    pair.silent(&arrived)?;
    let elsewhere = world.count("udp dport 8")?;
    world.ctl_ok(&[
        "-A",
        "-c",
        "OUTPUT",
        "-v",
        "ACCEPT",
        "-p",
        "udp",
        "--dport",
        "8",
        "--sng-hash",
        &world.sha256(&pair.evil)?,
    ])?;
    talk(&pair.evil, 8)?;
    ensure!(elsewhere.delta()? == 3);
    let mut good = pair.start(&pair.good, &["udp", &pair.to4(8)])?;
    good.step("send 3")?;
    good.step("judged")?;
    pair.silent(&elsewhere)
}

#[test]
fn nothing_is_recorded_without_audit() -> Result<()> {
    let pair = Pair::new("no audit")?;
    let _daemon = pair.world.daemon(&["--no-probe"])?;
    let refused = pair.world.ctl(&["learn"])?;
    ensure!(refused.code() == 2 && refused.stderr.contains("--audit"), "{refused}");
    Ok(())
}
