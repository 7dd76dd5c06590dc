//! Loading, doing without some hooks, events, and leaving nothing behind. Needs root and a real kernel.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use syscall_probe::{Change, ChangeKind, Changes, Event, EventKind, Events, Exact, Hook, LoadError, Options, Probe};

mod actor;
use actor::Actor;

#[test]
fn actor() {
    actor::play();
}

fn load() -> Probe {
    Probe::load(&Options::default()).expect("the probe loads (tests run as root)")
}

#[test]
fn everything_attaches_here() {
    let probe = load();
    assert_eq!(probe.missing(), []);
    let all = Exact { processes: true, standing: true, ports: true, files: true, sockets: true, links: true };
    assert_eq!(probe.generations().exact(), all);
}

#[test]
fn without_one_hook_the_others_work() {
    let probe = Probe::load(&Options { object: None, without: vec![Hook::Fork, Hook::Sockets] }).expect("it loads");
    let missing: Vec<Hook> = probe.missing().iter().map(|(hook, _)| *hook).collect();
    assert_eq!(missing, [Hook::Fork, Hook::Sockets]);
    let rest = Exact { processes: false, standing: false, ports: true, files: true, sockets: true, links: true };
    assert_eq!(probe.generations().exact(), rest);
    assert!(!probe.generations().process(std::process::id()).settled);
    assert!(probe.holders().is_none());
}

#[test]
fn without_all_hooks_nothing_is_exact() {
    let probe = Probe::load(&Options { object: None, without: Hook::ALL.to_vec() }).expect("as asked for");
    assert_eq!(probe.missing().len(), Hook::ALL.len());
    let nothing = Exact { processes: false, standing: false, ports: false, files: false, sockets: false, links: false };
    assert_eq!(probe.generations().exact(), nothing);
}

#[test]
fn after_the_probe_nothing_is_settled() {
    let probe = load();
    let all = probe.generations();
    let mut actor = Actor::start();
    let tgid = actor.tgid();
    while !all.process(tgid).settled {
        std::thread::yield_now(); // others' wide calls
    }
    drop(probe);
    assert!(!all.process(tgid).settled);
    assert!(!all.exact().ports);
    assert!(!all.image(tgid).settled);
    assert!(!all.standing(tgid).settled);
    let before = all.image(tgid).value;
    actor.act("mmap rx");
    assert_eq!(all.image(tgid).value, before, "the programs are gone");
}

#[test]
fn objects_that_are_none_are_refused() {
    let load =
        |object: PathBuf| Probe::load(&Options { object: Some(object), without: vec![] }).expect_err("no object");
    assert!(matches!(load("/nonexistent".into()), LoadError::ReadObject { .. }));
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), b"\x7fELF nonsense").expect("written");
    assert!(matches!(load(file.path().into()), LoadError::BadObject(_)));
}

#[test]
fn an_object_file_is_taken_instead_of_the_embedded_one() {
    let object = PathBuf::from(concat!(env!("OUT_DIR"), "/probe.bpf.o"));
    let probe = Probe::load(&Options { object: Some(object), without: vec![] }).expect("it loads");
    assert_eq!(probe.missing(), []);
}

/// Takes messages until one is as wanted, for ten seconds without any at most.
#[track_caller]
fn wait_for(events: &mut Events, wanted: impl Fn(&Event) -> bool) -> Event {
    loop {
        while let Some(event) = events.next() {
            let event = event.expect("a known event");
            if wanted(&event) {
                return event;
            }
        }
        let mut descriptors = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
        assert_ne!(poll(&mut descriptors, PollTimeout::from(10_000_u16)), Ok(0), "no message came");
    }
}

#[test]
fn an_exec_is_told_of() {
    let mut probe = load();
    let mut events = probe.take_events().expect("not taken yet");
    assert!(probe.take_events().is_none());
    let tgid = Actor::start().tgid();
    wait_for(&mut events, |event| event.tgid == tgid && event.kind == EventKind::Exec);
    assert_eq!(probe.generations().lost_events(), 0);
}

/// Takes changes of one process until one is as wanted, for ten seconds without any at most.
#[track_caller]
fn wait_for_change(changes: &mut Changes, tgid: u32, wanted: impl Fn(&Change) -> bool) -> Vec<Change> {
    let (mut taken, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(10));
    loop {
        while let Some(change) = changes.next() {
            let change = change.expect("a known change");
            if change.tgid == tgid {
                taken.push(change);
                if wanted(&change) {
                    return taken;
                }
            }
        }
        assert!(Instant::now() < deadline, "no change came");
        std::thread::yield_now(); // nobody is woken for a few
    }
}

#[test]
fn what_a_process_is_made_of_is_told_from_fork_to_exit() {
    use std::os::unix::fs::MetadataExt;
    let mut probe = load();
    let (all, mut changes) = (probe.generations(), probe.take_changes().expect("not taken yet"));
    assert!(probe.take_changes().is_none());
    let mut actor = Actor::start();
    let (tgid, parent) = (actor.tgid(), std::process::id());
    let program = std::fs::metadata("/proc/self/exe").expect("this program");
    // Of all mapped files, by their inodes.
    let maps = std::fs::read_to_string(format!("/proc/{tgid}/maps")).expect("maps");
    let mapped: HashSet<u64> = maps
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields[1].contains('x') && fields[4] != "0")
        .map(|fields| fields[4].parse().expect("an inode"))
        .collect();
    actor.act("map rx");
    let taken = wait_for_change(&mut changes, tgid, |change| change.generation == all.image(tgid).value);
    assert!(matches!(taken[0].kind, ChangeKind::Fork { parent: found, .. } if found == parent), "{taken:?}");
    let is_program = |change: &&Change| matches!(change.kind, ChangeKind::Program(_));
    let executed = taken.iter().find(is_program).expect("its exec");
    let ChangeKind::Program(file) = executed.kind else { unreachable!() };
    let times = (
        program.mtime() * 1_000_000_000 + program.mtime_nsec(),
        program.ctime() * 1_000_000_000 + program.ctime_nsec(),
    );
    assert_eq!((file.device, file.inode, file.size), (program.dev(), program.ino(), program.size()));
    assert_eq!((file.mtime, file.ctime), times);
    assert_eq!(file.generation, all.file(all.watch_mapped(&file).0));
    let told: HashSet<u64> = taken
        .iter()
        .filter_map(|change| match change.kind {
            ChangeKind::Program(file) | ChangeKind::Object(file) => Some(file.inode),
            _ => None,
        })
        .collect();
    assert_eq!(told, mapped);
    assert!(taken.iter().all(|change| change.kind != ChangeKind::Unclear), "{taken:?}");
    assert_eq!(taken.last().map(|change| change.kind), Some(ChangeKind::Nothing), "memory without a file is no object");
    actor.act("half-mprotect");
    wait_for_change(&mut changes, tgid, |change| change.kind == ChangeKind::Unclear);
    actor.act("shed munmap");
    wait_for_change(&mut changes, tgid, |change| change.kind == ChangeKind::Unclear);
    actor.kill();
    let taken = wait_for_change(&mut changes, tgid, |change| change.kind == ChangeKind::End);
    assert_eq!(taken.last().map(|change| change.generation), Some(all.image(tgid).value));
    assert_eq!(all.lost_changes(), 0);
}

#[test]
fn sockets_older_than_the_probe_are_taken_over() {
    let mut actor = Actor::start();
    actor.act("udp u");
    let cookie = actor.number("cookie u");
    // Others' calls may make the moment a bad one.
    let taken_over = (0..20).find_map(|_| {
        let probe = load();
        let creator = probe.sockets().creator(cookie).expect("a look-up")?;
        Some((creator, probe.generations().process(actor.tgid()).value))
    });
    let (creator, now) = taken_over.expect("a socket with one holder");
    assert_eq!((creator.tgid, creator.process_generation, creator.raw), (actor.tgid(), now, false));
}

#[test]
fn changes_that_nobody_takes_are_counted() {
    let mut probe = load();
    let (all, changes) = (probe.generations(), probe.take_changes().expect("not taken yet"));
    let mut actor = Actor::start();
    // Two changes each, of 96 bytes: a quarter of the ring wakes whoever waits, and what is more than all of it is lost.
    actor.act("mmap-many rx 4000");
    let mut descriptors = [PollFd::new(changes.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut descriptors, PollTimeout::from(10_000_u16)), Ok(1));
    actor.act("mmap-many rx 16000");
    assert!(all.lost_changes() > 0);
}

#[test]
fn killed_it_leaves_nothing_behind() {
    let mut actor = Actor::start();
    actor.act("load-probe");
    let links: HashSet<u32> = links_of(actor.tgid());
    assert!(links.len() >= Hook::ALL.len() - 5, "six hooks attach nothing yet, one has two; found {links:?}");
    actor.kill();
    // The kernel frees what nobody holds a little after the descriptors are closed.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while aya::programs::loaded_links().filter_map(Result::ok).any(|link| links.contains(&link.id())) {
        assert!(std::time::Instant::now() < deadline, "a link outlived its owner");
        std::thread::yield_now();
    }
}

/// The numbers of the eBPF links that a process holds.
fn links_of(tgid: u32) -> HashSet<u32> {
    let entries = std::fs::read_dir(format!("/proc/{tgid}/fdinfo")).expect("it lives");
    let texts = entries.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
    texts.filter_map(|text| text.lines().find_map(|line| line.strip_prefix("link_id:")?.trim().parse().ok())).collect()
}
