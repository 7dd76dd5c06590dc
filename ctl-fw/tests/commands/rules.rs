//! Single rules, and how the program ends.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use ctl_fw::{Console, Exit};
use shared::control::{Answer, Done, Edit, Failure, FailureKind, ListedRule, Listing, Request};
use shared::set::{Elements, Set, SetKind};
use shared::{Chain, Digest, Selector, Verdict};

use super::common::{Broken, Daemon, ask, changed, edit, listed, listing, own_namespace, rule, ruled, run};

fn failure(kind: FailureKind) -> Answer {
    Answer::Error(Failure { kind, message: "the reason".into(), index: None })
}

#[test]
fn the_known_command_reaches_the_daemon() {
    let hex = Digest::of(b"curl");
    let line = format!("-A -c OUTPUT -v DROP -n /proc/self/ns/net --sng-hash {hex}");
    let (outcome, request) = ask(&line, ruled(false));
    let (edit, note) = edit(request);
    let namespace = format!("/proc/{}/ns/net", std::process::id());
    let expected = rule(&format!("-c OUTPUT -v DROP -n {namespace} --sng-hash {hex}"));
    assert_eq!(edit, Edit::Add { rule: expected, position: None });
    assert!(note.ends_with(&line), "{note}");
    assert_eq!(outcome.exit, Exit::Done);
    assert_eq!(outcome.out, "added rule 4 at position 2 of OUTPUT, netns:blue: DROP --dport 80\n");
    assert_eq!(outcome.err, "");
}

#[test]
fn every_change_asks_for_what_it_says() {
    let own = own_namespace();
    let host = Selector::Host;
    let lan: shared::set::SetName = "lan".parse().unwrap();
    let insert = rule(&format!("-c INPUT -n {own} -v ACCEPT ! -s 192.0.2.1/32 -l l3"));
    let other = rule("-c OUTPUT -n any -v REJECT ! --netns host --uid 0,7 --comment x");
    let set = Set { name: lan.clone(), elements: Elements::parse(SetKind::Ports, ["80", "443"]).unwrap() };
    let deleted = |count| changed(vec![Done::Deleted(count)]);
    let holds = |count| changed(vec![Done::SetHas(count)]);
    let texts = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect::<Vec<_>>();
    for (line, edited, answer) in [
        ("-I 3 -c INPUT -v ACCEPT ! -s 192.0.2.1 -l l3", Edit::Add { rule: insert, position: Some(3) }, ruled(false)),
        (
            "-A -c OUTPUT -v REJECT ! -n host --uid root,7 --comment x",
            Edit::Add { rule: other.clone(), position: None },
            ruled(false),
        ),
        (
            "rule replace 4 -c OUTPUT -v REJECT ! -n host --uid root,7 --comment x",
            Edit::Replace { id: 4, rule: other },
            ruled(false),
        ),
        ("rule move 4 0", Edit::Move { id: 4, position: 0 }, ruled(false)),
        ("rule delete 4", Edit::Delete { id: 4 }, deleted(1)),
        ("-D --id 4", Edit::Delete { id: 4 }, deleted(1)),
        ("-D 1 -c INPUT", Edit::DeleteAt { chain: Chain::Input, namespace: own.clone(), position: 1 }, deleted(1)),
        ("-F", Edit::Flush { chain: None, namespace: own.clone() }, deleted(0)),
        ("-F -c FORWARD -n any", Edit::Flush { chain: Some(Chain::Forward), namespace: Selector::Any }, deleted(9)),
        (
            "-P OUTPUT DROP -n host",
            Edit::Policy { chain: Chain::Output, namespace: host, verdict: Verdict::Drop },
            changed(vec![Done::PolicySet]),
        ),
        ("set create lan ports 80,443", Edit::CreateSet { set }, holds(2)),
        (
            "set add lan 80,443 1:2",
            Edit::AddElements { name: lan.clone(), elements: texts(&["80", "443", "1:2"]) },
            holds(3),
        ),
        ("set remove lan 80", Edit::DeleteElements { name: lan.clone(), elements: texts(&["80"]) }, holds(0)),
        ("set flush lan", Edit::FlushSet { name: lan.clone() }, holds(0)),
        ("set delete lan", Edit::DeleteSet { name: lan }, changed(vec![Done::SetDeleted])),
    ] {
        // The thread that asks is the one whose namespace is meant.
        let (outcome, asked) = ask(line, answer);
        assert_eq!((outcome.exit, outcome.err.as_str()), (Exit::Done, ""), "{line}");
        assert_eq!(edit(asked).0, edited, "{line}");
        assert_eq!(outcome.out.lines().count(), 1, "{line}");
    }
}

#[test]
fn listings_come_as_json_too() {
    let (outcome, request) = ask("-L --json", Answer::Listing(listing()));
    assert_eq!(request, Request::List { chain: None, namespace: None });
    assert_eq!(serde_json::from_str::<Listing>(&outcome.out).unwrap(), listing());
    let (outcome, request) = ask("-L -c OUTPUT -n blue", Answer::Listing(listing()));
    let blue = Selector::Named("blue".into());
    assert_eq!(request, Request::List { chain: Some(Chain::Output), namespace: Some(blue) });
    assert!(outcome.out.contains("netns:blue (dormant)"), "{}", outcome.out);
    let (outcome, _) = ask("set list lan", Answer::Listing(listing()));
    assert_eq!((outcome.exit, outcome.out.as_str()), (Exit::Done, "10.0.0.0/8\n"));
    let (outcome, _) = ask("set list lam", Answer::Listing(listing()));
    assert_eq!((outcome.exit, outcome.err.as_str()), (Exit::Negative, "there is no set lam; did you mean lan?\n"));
}

#[test]
fn a_dormant_rule_is_noted_beside_the_data() {
    let (outcome, _) = ask("-A -c OUTPUT -v DROP -n blue --json", ruled(true));
    assert_eq!(serde_json::from_str::<ListedRule>(&outcome.out).unwrap(), listed(true));
    assert!(outcome.err.contains("dormant"), "{}", outcome.err);
}

#[test]
fn no_is_told_from_failure() {
    let (outcome, _) = ask("-D 9 -c OUTPUT", failure(FailureKind::NotFound));
    assert_eq!((outcome.exit, outcome.out.as_str(), outcome.err.as_str()), (Exit::Negative, "", "the reason\n"));
    for kind in
        [FailureKind::Forbidden, FailureKind::Malformed, FailureKind::Conflict, FailureKind::Store, FailureKind::Busy]
    {
        let (outcome, _) = ask("-D 9 -c OUTPUT", failure(kind));
        assert_eq!((outcome.exit, outcome.out.as_str()), (Exit::Error, ""));
        assert_eq!(outcome.err, "error: app-fw refuses: the reason\n");
    }
    let (outcome, _) = ask("status", Answer::Subscribed);
    assert_eq!(outcome.exit, Exit::Error);
    assert!(outcome.err.contains("same version"), "{}", outcome.err);
}

#[test]
fn without_a_daemon_the_error_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = run(&dir.path().join("none"), "-L");
    assert_eq!((outcome.exit, outcome.out.as_str()), (Exit::Error, ""));
    assert!(outcome.err.contains("not running") && outcome.err.contains("APP_FW_SOCKET"), "{}", outcome.err);
    let outcome = run(&dir.path().join("none"), "-A -c OUTPUT -v DROP -n ./missing");
    assert!(outcome.err.contains("./missing"), "{}", outcome.err);
}

#[test]
fn wrong_arguments_never_reach_the_daemon() {
    let outcome = run(Path::new("/nonexistent"), "-A -c OUTPUT");
    assert_eq!((outcome.exit, outcome.out.as_str()), (Exit::Error, ""));
    assert!(outcome.err.contains("--verdict"), "{}", outcome.err);
    let outcome = run(Path::new("/nonexistent"), "--help");
    assert_eq!((outcome.exit, outcome.err.as_str()), (Exit::Done, ""));
    assert!(outcome.out.contains("Examples"));
}

#[test]
fn files_are_hashed_without_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("abc");
    fs::write(&path, "abc").unwrap();
    let digest = Digest::of(b"abc");
    let aggregate = Digest::of(&digest.0);
    let name = path.display();
    let outcome = run(Path::new("/nonexistent"), &format!("-H {name}"));
    assert_eq!(outcome.exit, Exit::Done);
    assert_eq!(outcome.out, format!("{digest}  {name}\n{aggregate}  aggregate\n"));

    let outcome = run(Path::new("/nonexistent"), &format!("--json -H {name}"));
    let value: serde_json::Value = serde_json::from_str(&outcome.out).unwrap();
    assert_eq!(value["aggregate"], aggregate.to_string());

    let outcome = run(Path::new("/nonexistent"), &format!("-H {name} {name}-absent"));
    assert_eq!(outcome.exit, Exit::Error);
    assert_eq!(outcome.out, format!("{digest}  {name}\n"));
    assert!(outcome.err.contains("absent"), "{}", outcome.err);
}

#[test]
fn a_reader_that_has_gone_is_no_error_but_a_full_disk_is() {
    for options in [&["-L"][..], &["-L", "--json"]] {
        for (kind, exit) in [(io::ErrorKind::BrokenPipe, Exit::Done), (io::ErrorKind::StorageFull, Exit::Error)] {
            let daemon = Daemon::answering(vec![Answer::Listing(listing())]);
            let mut words: Vec<OsString> = vec!["ctl-fw".into(), "--socket".into(), daemon.socket.clone().into()];
            words.extend(options.iter().map(OsString::from));
            let mut err = Vec::new();
            assert_eq!(ctl_fw::run(words, &mut Console::plain(&mut Broken(kind), &mut err)), exit);
            assert_eq!(err.is_empty(), exit == Exit::Done);
        }
    }
}

#[test]
fn the_program_ends_with_the_stated_codes() {
    let program = || Command::new(env!("CARGO_BIN_EXE_ctl-fw"));
    let code = |answer: Answer, words: &[&str]| {
        let daemon = Daemon::answering(vec![answer]);
        let output = program().args(words).env("APP_FW_SOCKET", &daemon.socket).output().unwrap();
        daemon.asked();
        output.status.code()
    };
    assert_eq!(code(changed(vec![Done::Deleted(1)]), &["-D", "0", "-c", "OUTPUT"]), Some(0));
    assert_eq!(code(failure(FailureKind::NotFound), &["-D", "0", "-c", "OUTPUT"]), Some(1));
    assert_eq!(code(failure(FailureKind::Store), &["-F"]), Some(2));
    assert_eq!(program().arg("-Q").output().unwrap().status.code(), Some(2));

    let mut quiet = program().args(["-H", "/bin/sh"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(quiet.stdout.take());
    let output = quiet.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = program().args(["-H", "/bin/sh"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
