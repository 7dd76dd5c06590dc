//! Changes of the ruleset: all of one or nothing, taken back, announced; rules that end; a store that cannot be written.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use ctl_fw::client::Client;
use harness::{LIMIT, Ns, World};
use jiff::{Timestamp, ToSpan};
use shared::Verdict;
use shared::control::{Announcement, Answer, Changed, Edit, Failure, FailureKind, Listing, Request};

use crate::line::{Line, ask, status, wait_until};

fn add(text: &str) -> Result<Edit> {
    Ok(Edit::Add { rule: text.parse()?, position: None })
}

fn request(edits: Vec<Edit>) -> Request {
    Request::Change { edits, note: None, expected: None }
}

fn changed(socket: &Path, request: &Request) -> Result<Changed> {
    match ask(socket, request)? {
        Answer::Changed(changed) => Ok(changed),
        other => bail!("no change: {other:?}"),
    }
}

fn refused(socket: &Path, request: &Request) -> Result<Failure> {
    match Client::connect(socket)?.call(request)? {
        Answer::Error(failure) => Ok(failure),
        other => bail!("no refusal: {other:?}"),
    }
}

fn list(socket: &Path) -> Result<Listing> {
    match ask(socket, &Request::List { chain: None, namespace: None })? {
        Answer::Listing(listing) => Ok(listing),
        other => bail!("no listing: {other:?}"),
    }
}

#[test]
fn a_change_is_whole_and_can_be_taken_back() -> Result<()> {
    let world = World::new("whole")?;
    world.queue_output()?;
    let mut daemon = world.daemon(&["--no-probe"])?;
    let socket = daemon.files().socket.clone();
    let mut line = Line::udp(&world, 9)?;
    line.expect_passes()?;
    let block = || add("-c OUTPUT -n any -v DROP -p udp --dport 9");
    let bad = add("-c OUTPUT -n any -v DROP -d @nobody")?;
    let failure = refused(&socket, &request(vec![block()?, bad]))?;
    assert_eq!((failure.kind, failure.index), (FailureKind::NotFound, Some(1)));
    line.expect_passes()?;
    let made = changed(&socket, &request(vec![block()?, add("-c INPUT -n any -v ACCEPT")?]))?;
    assert_eq!((made.revision, made.rules, made.done.len()), (1, 2, 2));
    line.expect_blocked()?;
    let late = Request::Change { edits: vec![block()?], note: None, expected: Some(0) };
    assert_eq!(refused(&socket, &late)?.kind, FailureKind::Conflict);
    changed(&socket, &Request::Undo { to: None })?;
    line.expect_passes()?;
    // Killed: what was answered is there again.
    changed(&socket, &Request::Undo { to: None })?;
    daemon.kill9()?;
    let daemon = world.daemon(&["--no-probe"])?;
    let socket = &daemon.files().socket;
    line.expect_blocked()?;
    let listing = list(socket)?;
    assert_eq!(listing.rules.iter().map(|rule| rule.id).collect::<Vec<_>>(), [1, 2]);
    changed(socket, &Request::Undo { to: Some(0) })?;
    line.expect_passes()?;
    let Answer::History(history) = ask(socket, &Request::History { count: None })? else { bail!("no history") };
    assert_eq!(history.len(), 4);
    assert!(history.iter().all(|revision| revision.uid == Some(0) && revision.pid == Some(std::process::id())));
    Ok(())
}

#[test]
fn sets_change_what_rules_mean() -> Result<()> {
    let world = World::new("sets")?;
    world.queue_output()?;
    let daemon = world.daemon(&["--no-probe"])?;
    let socket = &daemon.files().socket;
    let mut line = Line::udp(&world, 9)?;
    let name = || "far".parse();
    let set = serde_json::from_str(r#"{"name":"far","kind":"addresses"}"#)?;
    let block = add("-c OUTPUT -n any -v DROP -d @far")?;
    changed(socket, &request(vec![Edit::CreateSet { set }, block]))?;
    line.expect_passes()?;
    let peer = vec![world.peer4().to_string()];
    changed(socket, &request(vec![Edit::AddElements { name: name()?, elements: peer.clone() }]))?;
    line.expect_blocked()?;
    let failure = refused(socket, &request(vec![Edit::DeleteSet { name: name()? }]))?;
    ensure!(failure.kind == FailureKind::Invalid && failure.message.contains("in use"), "{failure:?}");
    changed(socket, &request(vec![Edit::DeleteElements { name: name()?, elements: peer }]))?;
    line.expect_passes()?;
    changed(socket, &Request::Undo { to: None })?;
    line.expect_blocked()
}

#[test]
fn a_rule_that_has_had_its_end_is_gone_by_itself() -> Result<()> {
    let world = World::new("end")?;
    world.queue_output()?;
    let mut daemon = world.daemon(&["--no-probe"])?;
    let socket = daemon.files().socket.clone();
    let mut line = Line::udp(&world, 9)?;
    line.expect_passes()?;
    let until = Timestamp::now() + Duration::from_secs(2);
    let block = |until: Timestamp| add(&format!("-c OUTPUT -n any -v DROP -p udp --until {until}"));
    changed(&socket, &request(vec![block(until)?]))?;
    line.expect_blocked()?;
    let mut changes = subscribe(&socket, true, false)?;
    let Announcement::Changed(revision) = changes.announcement()? else { bail!("no change") };
    assert!(Timestamp::now() >= until);
    assert_eq!((revision.number, revision.uid, revision.note.as_deref()), (2, None, Some("expired")));
    line.expect_passes()?;
    // Nobody runs when it ends.
    let until = Timestamp::now() + Duration::from_secs(1);
    changed(&socket, &request(vec![block(until)?]))?;
    daemon.kill9()?;
    std::thread::sleep(Duration::from_millis(1100));
    let daemon = world.daemon(&["--no-probe"])?;
    line.expect_passes()?;
    let socket = &daemon.files().socket;
    wait_until("the rule is gone", || Ok(list(socket)?.rules.is_empty()))
}

#[test]
fn times_of_the_week_begin_and_end() -> Result<()> {
    let world = World::new("times")?;
    world.queue_output()?;
    let daemon = world.daemon(&["--no-probe"])?;
    let socket = &daemon.files().socket;
    let mut line = Line::udp(&world, 9)?;
    line.expect_passes()?;
    let text = |time: Timestamp| time.to_zoned(jiff::tz::TimeZone::UTC).strftime("%H:%M").to_string();
    let (now, next) = (Timestamp::now(), Timestamp::now() + 1.minute());
    let begins = format!("-c OUTPUT -n any -v DROP -p udp --time {}-{}/utc", text(next), text(now + 3.minutes()));
    changed(socket, &request(vec![add(&begins)?]))?;
    let generation = status(socket)?.rules_generation;
    line.expect_passes()?;
    let begun = Instant::now();
    while status(socket)?.rules_generation == generation {
        ensure!(begun.elapsed() < Duration::from_secs(70), "it did not begin");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(text(Timestamp::now()), text(next));
    line.expect_blocked()?;
    // The clock makes no revisions.
    assert_eq!(list(socket)?.revision, 1);
    Ok(())
}

/// A client that is told from now on.
fn subscribe(socket: &Path, changes: bool, packets: bool) -> Result<Client> {
    let mut client = Client::connect(socket)?;
    let answer = client.call(&Request::Subscribe { changes, packets })?;
    ensure!(answer == Answer::Subscribed, "{answer:?}");
    Ok(client)
}

#[test]
fn subscribers_are_told_of_changes_and_packets() -> Result<()> {
    let world = World::new("told")?;
    world.queue_output()?;
    let daemon = world.daemon(&["--no-probe"])?;
    let socket = &daemon.files().socket;
    let mut line = Line::udp(&world, 9)?;
    line.expect_passes()?;
    let mut both = subscribe(socket, true, true)?;
    let mut packets = subscribe(socket, false, true)?;
    changed(socket, &request(vec![add("-c OUTPUT -n any -v DROP -p udp --dport 9")?]))?;
    line.expect_blocked()?;
    let Announcement::Changed(revision) = both.announcement()? else { bail!("no change") };
    assert_eq!(revision.changes, ["+ -A -c OUTPUT -n any -v DROP -p udp --dport 9 --id 1"]);
    for reader in [&mut both, &mut packets] {
        let Announcement::Packet(event) = reader.announcement()? else { bail!("no packet") };
        assert_eq!((event.verdict, event.rule.as_ref().map(|rule| rule.id)), (Verdict::Drop, Some(1)));
    }
    Ok(())
}

#[test]
fn a_subscriber_that_stops_reading_stops_nobody() -> Result<()> {
    let world = World::new("lazy")?;
    world.queue_output()?;
    let daemon = world.daemon(&["--no-probe", "--log-accept", "--log-rate", "1000000"])?;
    let socket = &daemon.files().socket;
    let mut lazy = subscribe(socket, false, true)?;
    let mut line = Line::udp(&world, 9)?;
    let mut sent = 0;
    // Far more than waits for a reader.
    while sent < 30_000 {
        line.actor().step("send 1000")?;
        line.expect_arrived(1000)?;
        sent += 1000;
    }
    changed(socket, &request(vec![add("-c INPUT -n any -v ACCEPT")?]))?;
    let (mut told, mut missed) = (0, 0);
    while missed == 0 {
        match lazy.announcement()? {
            Announcement::Packet(_) => told += 1,
            Announcement::Missed(count) => missed = count,
            other => bail!("{other:?}"),
        }
    }
    ensure!(told > 0 && told < sent, "{told} told, {missed} missed");
    Ok(())
}

#[test]
fn a_locked_database_is_told_and_the_rules_stay() -> Result<()> {
    let world = World::new("locked")?;
    world.queue_output()?;
    let daemon = world.daemon(&["--no-probe"])?;
    let socket = &daemon.files().socket;
    let mut line = Line::udp(&world, 9)?;
    line.expect_passes()?;
    let block = || add("-c OUTPUT -n any -v DROP -p udp --dport 9");
    changed(socket, &request(vec![block()?]))?;
    let other = rusqlite::Connection::open(&daemon.files().database)?;
    other.execute_batch("BEGIN IMMEDIATE")?;
    for edits in [vec![block()?], vec![Edit::Delete { id: 1 }]] {
        let failure = refused(socket, &request(edits))?;
        ensure!(failure.kind == FailureKind::Store && failure.message.contains("locked"), "{failure:?}");
        line.expect_blocked()?;
    }
    assert_eq!(list(socket)?.rules.len(), 1);
    other.execute_batch("ROLLBACK")?;
    changed(socket, &request(vec![Edit::Delete { id: 1 }]))?;
    line.expect_passes()
}

#[test]
fn a_full_disk_is_told_and_the_rules_stay() -> Result<()> {
    let world = World::new("full")?;
    world.queue_output()?;
    let disk = world.folder().join("disk");
    fs::create_dir(&disk)?;
    // In a mount namespace of its own, which ends with the daemon.
    let program = world.folder().join("on-a-small-disk");
    let script = format!(
        "#!/bin/sh\nexec unshare -m --propagation private sh -c \
         'mount -t tmpfs -o size=400k none {} && exec {} \"$@\"' sh \"$@\"\n",
        disk.display(),
        world.programs().path("app-fw")?.display()
    );
    fs::write(&program, script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let files = harness::daemon::Files { database: disk.join("db"), ..world.files() };
    let daemon = harness::Daemon::start(world.namespace(Ns::Local), &program, files, &["--no-probe"])?;
    let socket = &daemon.files().socket;
    let mut line = Line::udp(&world, 9)?;
    line.expect_passes()?;
    changed(socket, &request(vec![add("-c OUTPUT -n any -v DROP -p udp --dport 9")?]))?;
    line.expect_blocked()?;
    let many = (0..10_000).map(|_| add("-c INPUT -n any -v DROP --dport 9")).collect::<Result<Vec<_>>>()?;
    let failure = refused(socket, &request(many))?;
    ensure!(failure.kind == FailureKind::Store && failure.message.contains("full"), "{failure:?}");
    let listing = list(socket)?;
    assert_eq!((listing.rules.len(), listing.revision), (1, 1));
    line.expect_blocked()?;
    // What fits still does.
    changed(socket, &request(vec![Edit::Delete { id: 1 }]))?;
    line.expect_passes()
}

#[test]
fn a_whole_ruleset_of_many_rules_is_one_request() -> Result<()> {
    let world = World::new("many")?;
    world.queue_output()?;
    let mut daemon = world.daemon(&["--no-probe"])?;
    let socket = daemon.files().socket.clone();
    let mut line = Line::udp(&world, 9)?;
    line.expect_passes()?;
    let mut text: String =
        (0..20_000).map(|n| format!("-A -c OUTPUT -n any -v DROP -d 192.0.2.1 --dport {n}\n")).collect();
    text.push_str("-A -c OUTPUT -n any -v DROP -p udp --dport 9\n");
    let document = shared::document::Document::parse(&text).map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    let restore = Request::Restore { document: document.into(), note: Some("many".into()), expected: None };
    assert_eq!(changed(&socket, &restore)?.rules, 20_001);
    line.expect_blocked()?;
    daemon.stop()?;
    let daemon = world.daemon(&["--no-probe"])?;
    line.expect_blocked()?;
    changed(&daemon.files().socket, &Request::Undo { to: None })?;
    line.expect_passes()
}

/// Not even one that never reads its answer.
#[test]
fn the_end_does_not_wait_for_subscribers() -> Result<()> {
    let world = World::new("hung")?;
    let mut daemon = world.daemon(&["--no-probe"])?;
    let mut reader = std::os::unix::net::UnixStream::connect(&daemon.files().socket)?;
    let call = shared::control::Call {
        version: shared::control::VERSION,
        request: Request::Subscribe { changes: true, packets: true },
    };
    std::io::Write::write_all(&mut reader, &shared::control::encode(&call)?)?;
    reader.set_read_timeout(Some(LIMIT))?;
    reader.read_exact(&mut [0; 4])?;
    let begun = Instant::now();
    ensure!(daemon.stop()?.success(), "{}", daemon.messages());
    ensure!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    Ok(())
}
