//! The command line against a daemon that answers as the test wants.

mod common;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Daemon, ask, ask_all, changed, own_namespace, rule, run};
use ctl_fw::{Console, Exit};
use proptest::prelude::*;
use shared::control::{
    self, Announcement, Answer, Done, Edit, Failure, FailureKind, ListedPolicy, ListedRule, ListedSet, Listing,
    Request, Revision,
};
use shared::document::Document;
use shared::set::{Elements, Set, SetKind};
use shared::{Chain, Digest, Selector, Verdict};

fn listed(dormant: bool) -> ListedRule {
    common::listed(4, dormant, "-c OUTPUT -n netns:blue -v DROP --dport 80")
}

fn ruled(dormant: bool) -> Answer {
    changed(vec![Done::Rule(Box::new(listed(dormant)))])
}

/// The one edit of a change, and its note.
fn edit(request: Request) -> (Edit, String) {
    let Request::Change { mut edits, note, expected: None } = request else { panic!("{request:?}") };
    assert_eq!(edits.len(), 1);
    (edits.remove(0), note.unwrap())
}

fn listing() -> Listing {
    let policy = |namespace, verdict, stored| ListedPolicy { chain: Chain::Output, namespace, verdict, stored };
    let elements = Elements::parse(SetKind::Addresses, ["10.0.0.0/8"]).unwrap();
    Listing {
        revision: 7,
        rules: vec![listed(true)],
        policies: vec![policy(Selector::Any, Verdict::Accept, false), policy(Selector::Host, Verdict::Drop, true)],
        sets: vec![ListedSet { set: Set { name: "lan".parse().unwrap(), elements }, used_by: 0 }],
    }
}

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
fn a_file_is_looked_up_when_the_rule_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = fs::canonicalize(dir.path()).unwrap().join("tool");
    fs::write(&path, "\x7fELF").unwrap();
    std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
    let line =
        format!("-A -c OUTPUT -v DROP -n any ! --exe {} --lib {}", dir.path().join("link").display(), path.display());
    let (outcome, asked) = ask(&line, ruled(false));
    let digest = Digest::of(b"\x7fELF");
    let path = path.display();
    let expected = format!(
        "-c OUTPUT -n any -v DROP ! --sng-hash {digest} --from exe:{path} --sng-hash {digest} --from lib:{path}"
    );
    assert_eq!(edit(asked).0, Edit::Add { rule: rule(&expected), position: None });
    assert_eq!(outcome.err, "");

    for (line, wanted) in [
        ("--exe /nonexistent/x", "/nonexistent/x"),
        ("--pid 4000000000", "no process"),
        ("--pid x", "process id"),
        ("--exec /nonexistent/x", "/nonexistent/x"),
        ("--uid no-such-user", "no-such-user"),
        ("--until 2001-01-01", "before it begins"),
        ("--from exe:/x", "stands after"),
        ("--dport 80 --from exe:/x", "takes no --from"),
        ("--limit 1/s --limit 2/s", "given twice"),
    ] {
        let outcome = run(Path::new("/nonexistent"), &format!("-A -c OUTPUT -v DROP {line}"));
        assert_eq!((outcome.exit, outcome.out.as_str()), (Exit::Error, ""), "{line}");
        assert!(outcome.err.contains(wanted), "{line}: {}", outcome.err);
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
fn what_is_saved_can_be_restored() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rules");
    for form in ["", "--json"] {
        let (outcome, _) = ask(&format!("save {form} {}", file.display()), Answer::Listing(listing()));
        assert_eq!((outcome.exit, outcome.out.as_str()), (Exit::Done, ""));
        let (outcome, asked) = ask(&format!("restore {}", file.display()), changed(vec![]));
        assert_eq!(
            (outcome.exit, outcome.out.as_str(), outcome.err.as_str()),
            (Exit::Done, "revision 9: 5 rules\n", "")
        );
        let Request::Restore { document, expected: None, note: Some(note) } = asked else { panic!() };
        let text = "set create lan addresses 10.0.0.0/8\n-P OUTPUT DROP -n host\n\
                    -A -c OUTPUT -n netns:blue -v DROP --dport 80 --id 4\n";
        assert_eq!(document, Document::parse(text).unwrap());
        assert!(note.starts_with("ctl-fw ") && note.contains("restore"));
    }
    let (outcome, _) = ask("save", Answer::Listing(listing()));
    assert!(outcome.out.starts_with("# Saved by ctl-fw") && outcome.out.contains("--dport 80 --id 4\n"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside the file");
}

#[test]
fn every_error_of_a_file_is_told_and_nothing_changes() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rules");
    let good = "-A -c OUTPUT -n any -v DROP --dport 1\n";
    let mut text = good.repeat(10_000);
    for (at, bad) in [(5_000, "-A -c OUTPUT -n any -v DROP --dport 99999\n"), (7_000, "nonsense\n")] {
        text.insert_str(at * good.len() + if at == 7_000 { 42 } else { 0 }, bad);
    }
    fs::write(&file, text).unwrap();
    let outcome = run(Path::new("/nonexistent"), &format!("check {}", file.display()));
    let name = file.display().to_string();
    let found: Vec<_> =
        outcome.out.lines().map(|line| line.strip_prefix(&name).unwrap().split(' ').next().unwrap()).collect();
    assert_eq!((outcome.exit, found), (Exit::Negative, vec![":5001:37:", ":7002:1:"]), "{}", outcome.out);
    let outcome = run(Path::new("/nonexistent"), &format!("check --json {name}"));
    let value: serde_json::Value = serde_json::from_str(&outcome.out).unwrap();
    assert_eq!(value["files"][0]["errors"][1]["line"], 7002);
    let outcome = run(Path::new("/nonexistent"), &format!("restore {name}"));
    assert_eq!((outcome.exit, outcome.out.as_str()), (Exit::Error, ""));
    assert!(
        outcome.err.contains(":5001:37: ") && outcome.err.contains("2 errors; nothing was changed"),
        "{}",
        outcome.err
    );
    fs::write(&file, good).unwrap();
    let outcome = run(Path::new("/nonexistent"), &format!("check {name}"));
    assert_eq!((outcome.exit, outcome.out), (Exit::Done, format!("{name}: 1 rule, no errors\n")));
    let refusal = Failure { kind: FailureKind::Invalid, message: "no such thing".into(), index: Some(0) };
    let (outcome, _) = ask(&format!("restore {name}"), Answer::Error(refusal));
    assert_eq!(outcome.err, format!("{name}:1:1: no such thing\nerror: app-fw refuses: no such thing\n"));
}

fn revision() -> Revision {
    Revision {
        number: 3,
        time: "2026-11-21T12:00:00.5Z".parse().unwrap(),
        uid: Some(0),
        pid: Some(77),
        note: Some("ctl-fw -A\n...".into()),
        changes: vec!["+ -A -c OUTPUT -n any -v DROP".into()],
        undoable: false,
    }
}

#[test]
fn history_and_back() {
    let (outcome, asked) = ask("history", Answer::History(vec![revision()]));
    assert_eq!(asked, Request::History { count: Some(20) });
    assert_eq!(
        outcome.out,
        "revision 3, 2026-11-21T12:00:00Z, root (pid 77): ctl-fw -A\\n... (cannot be taken back)\n  \
         + -A -c OUTPUT -n any -v DROP\n"
    );
    let (outcome, asked) = ask("undo --to 2", changed(vec![]));
    assert_eq!((asked, outcome.out.as_str()), (Request::Undo { to: Some(2) }, "revision 9: 5 rules\n"));
}

#[test]
fn a_line_for_each_announcement() {
    let announced = vec![Announcement::Changed(revision()), Announcement::Missed(4)];
    let daemon = Daemon::announcing(vec![Answer::Subscribed], announced.clone());
    let outcome = run(&daemon.socket, "monitor --packets");
    assert_eq!(daemon.asked(), [Request::Subscribe { changes: true, packets: true }]);
    assert_eq!(
        outcome.out,
        "2026-11-21T12:00:00Z revision 3 by root (pid 77): + -A -c OUTPUT -n any -v DROP\n\
         (4 announcements were left out: this reader was too slow)\n"
    );
    assert_eq!((outcome.exit, outcome.err.as_str()), (Exit::Error, "error: app-fw has ended\n"));
    let daemon = Daemon::announcing(vec![Answer::Subscribed], announced.clone());
    let outcome = run(&daemon.socket, "monitor --json");
    let read: Vec<Announcement> = outcome.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(read, announced);
    let daemon = Daemon::announcing(vec![Answer::Subscribed], announced);
    let words = ["ctl-fw", "--socket", daemon.socket.to_str().unwrap(), "monitor"];
    let mut err = Vec::new();
    let exit =
        ctl_fw::run(words.map(OsString::from), &mut Console::plain(&mut Broken(io::ErrorKind::BrokenPipe), &mut err));
    assert_eq!((exit, err.as_slice()), (Exit::Done, &b""[..]));
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

/// Fails like a pipe whose reader has gone, or like a full disk.
struct Broken(io::ErrorKind);

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(self.0.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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

#[test]
fn rules_follow_their_files() {
    let dir = tempfile::tempdir().unwrap();
    let root = fs::canonicalize(dir.path()).unwrap();
    let (tool, other) = (root.join("tool"), root.join("other"));
    fs::write(&tool, "new").unwrap();
    fs::write(&other, "same").unwrap();
    let (old, new, same) = (Digest::of(b"old"), Digest::of(b"new"), Digest::of(b"same"));
    let text = |digest: Digest| {
        format!(
            "-c OUTPUT -n any -v DROP --sng-hash {digest} --from exe:{} ! --sng-hash {same} --from lib:{}",
            tool.display(),
            other.display()
        )
    };
    let listing = Listing { rules: vec![common::listed(4, false, &text(old))], ..listing() };
    // A system of dpkg's of its own, whose one package has the file.
    let admin = root.join("dpkg");
    let package = |md5: &str| {
        fs::create_dir_all(admin.join("info")).unwrap();
        fs::create_dir_all(admin.join("updates")).unwrap();
        let status = "Package: pack\nStatus: install ok installed\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n\n";
        fs::write(admin.join("status"), status).unwrap();
        let name = tool.display();
        fs::write(admin.join("info/pack.list"), format!("{name}\n")).unwrap();
        fs::write(admin.join("info/pack.md5sums"), format!("{md5}  {}\n", &name.to_string()[1..])).unwrap();
    };
    let refresh = |options: &str, answers: Vec<Answer>| {
        ask_all(&format!("refresh --admin-dir {} {options}", admin.display()), answers)
    };
    let listed = || Answer::Listing(listing.clone());
    let done = || changed(vec![Done::Rule(Box::new(common::listed(4, false, &text(new))))]);

    let (outcome, asked) = refresh("--dry-run", vec![listed()]);
    assert_eq!((outcome.exit, asked.len()), (Exit::Done, 1), "{outcome:?}");
    assert!(
        outcome.out.contains("of no package") && outcome.out.contains("would update 1 of 1 digest"),
        "{}",
        outcome.out
    );
    let (outcome, asked) = refresh("--dpkg", vec![listed()]);
    assert_eq!((outcome.exit, asked.len()), (Exit::Negative, 1), "{outcome:?}");

    let replaced = |asked: &Request| {
        let Request::Change { edits, expected: Some(7), .. } = asked else { panic!("{asked:?}") };
        assert_eq!(edits, &[Edit::Replace { id: 4, rule: rule(&text(new)) }]);
    };
    let (outcome, asked) = refresh("", vec![listed(), done()]);
    assert_eq!(outcome.exit, Exit::Done);
    replaced(&asked[1]);

    if Command::new("dpkg-query").arg("--version").output().is_ok() {
        // MD5 of "new".
        package("22af645d1859cb5ca6da0c484f1f37ea");
        let (outcome, asked) = refresh("--dpkg --json", vec![listed(), done()]);
        let value: serde_json::Value = serde_json::from_str(&outcome.out).unwrap();
        assert_eq!(
            (&value["changed"][0]["record"], &value["changed"][0]["package"]),
            (&"confirmed".into(), &"pack".into())
        );
        replaced(&asked[1]);
        package("00000000000000000000000000000000");
        let (outcome, asked) = refresh("", vec![listed()]);
        assert_eq!((outcome.exit, asked.len()), (Exit::Negative, 1), "{outcome:?}");
        assert!(outcome.out.contains("NOT as pack has it") && outcome.err.contains("--force"), "{outcome:?}");
        let (outcome, asked) = refresh("--force", vec![listed(), done()]);
        assert_eq!(outcome.exit, Exit::Done);
        replaced(&asked[1]);
    }

    fs::remove_file(&tool).unwrap();
    let (outcome, asked) = refresh("", vec![listed()]);
    assert_eq!((outcome.exit, asked.len()), (Exit::Negative, 1));
    assert!(outcome.err.contains("note: exe:"), "{}", outcome.err);
    let (outcome, _) = refresh("--quiet", vec![listed()]);
    assert_eq!((outcome.exit, outcome.out.as_str(), outcome.err.as_str()), (Exit::Done, "", ""));
    assert_eq!(run(&root.join("none"), "refresh --quiet").exit, Exit::Done);
    assert_eq!(run(&root.join("none"), "refresh").exit, Exit::Error);
}

#[test]
fn a_program_that_does_not_run_is_explained() {
    let answer = control::Explanation {
        chain: Chain::Input,
        namespace: Selector::Any,
        owners: vec![],
        rules: vec![],
        policy: Verdict::Drop,
        verdict: Some(Verdict::Drop),
        reason: Some(shared::Reason::Policy),
    };
    let (outcome, asked) = ask("explain sh -c INPUT -n any", Answer::Explanation(Box::new(answer)));
    let Request::Explain { subject: control::Subject::Program { objects }, chain, flow, namespace } = asked else {
        panic!("{asked:?}")
    };
    assert_eq!((chain, flow, namespace), (Chain::Input, None, Some(Selector::Any)));
    let shell = fs::canonicalize("/bin/sh").unwrap();
    assert_eq!(objects[0].path, shell.to_str().unwrap());
    assert_eq!(objects[0].digest, Some(Digest::of(&fs::read(&shell).unwrap())));
    assert_eq!(outcome.exit, Exit::Done);
    assert!(outcome.out.ends_with("Verdict: DROP: No rule fired; the chain's policy decided.\n"), "{}", outcome.out);
}

#[test]
fn what_was_learned_is_applied_in_one_change() {
    let time = "2026-11-21T12:00:00Z".parse().unwrap();
    let learned = control::Learned {
        chain: Chain::Output,
        namespace: Selector::Host,
        programs: vec![control::LearnedProgram {
            path: "/usr/bin/curl".into(),
            digest: Some(Digest::of(b"curl")),
            aggregate: None,
        }],
        protocol: shared::Protocol::UDP,
        remote: "192.0.2.53".parse().unwrap(),
        port: Some(53),
        packets: 7,
        reason: shared::Reason::Policy,
        first: time,
        last: time,
    };
    let answers = vec![Answer::Learned(vec![learned]), changed(vec![]), Answer::Learned(vec![])];
    let (outcome, asked) = ask_all("learn --apply --clear", answers);
    assert_eq!((outcome.exit, outcome.out.as_str()), (Exit::Done, "revision 9: added 1 rule\n"));
    assert_eq!(asked[0], Request::Learned { clear: false });
    let expected = format!(
        "-c OUTPUT -n host -v ACCEPT -p udp -d 192.0.2.53 --dport 53 --sng-hash {} --from exe:/usr/bin/curl \
         --comment \"learned: curl, 7 packets\"",
        Digest::of(b"curl")
    );
    assert_eq!(edit(asked[1].clone()).0, Edit::Add { rule: rule(&expected), position: None });
    assert_eq!(asked[2], Request::Learned { clear: true });
    let (outcome, _) = ask("learn --apply", Answer::Learned(vec![]));
    assert_eq!(outcome.exit, Exit::Negative);
}

#[test]
fn imported_rules_are_added_all_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("v4");
    fs::write(&file, "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -s 192.0.2.1/32 -j DROP\n-A INPUT -m u32 -j DROP\n")
        .unwrap();
    let line = format!("import iptables -n any {}", file.display());
    let outcome = run(Path::new("/nonexistent"), &line);
    assert_eq!(outcome.exit, Exit::Done);
    assert!(
        outcome.out.ends_with("-P INPUT ACCEPT -n any\n-A -c INPUT -n any -v DROP -s 192.0.2.1/32\n"),
        "{}",
        outcome.out
    );
    let expected = format!("{}:4: -m u32 has no counterpart: -A INPUT -m u32 -j DROP\n", file.display());
    assert_eq!(outcome.err, expected);
    Document::parse(&outcome.out).unwrap();
    let outcome = run(Path::new("/nonexistent"), &format!("{line} --apply"));
    assert!(outcome.exit == Exit::Error && outcome.err.contains("--partial"), "{}", outcome.err);
    let (outcome, asked) = ask(&format!("{line} --apply --partial"), changed(vec![]));
    let Request::Change { edits, .. } = asked else { panic!() };
    assert_eq!(edits.len(), 2);
    assert_eq!(outcome.out, "revision 9: added 1 rule\n");
}

#[test]
fn a_long_ruleset_goes_through() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rules");
    let line = |port: u32| format!("-A -c OUTPUT -n any -v DROP -d 192.0.2.1/32 --dport {}\n", port % 65_536);
    fs::write(&file, (0..20_000).map(line).collect::<String>()).unwrap();
    assert!(fs::metadata(&file).unwrap().len() > control::MAX_REQUEST as u64);
    let (outcome, asked) = ask(&format!("restore {}", file.display()), changed(vec![]));
    let Request::Restore { document, .. } = asked else { panic!() };
    assert_eq!((outcome.exit, document.rules.len()), (Exit::Done, 20_000));
}

proptest! {
    /// What is saved, in either form, restores to the same.
    #[test]
    fn documents_round_trip(lines in prop::collection::vec((0..SAMPLES.len(), any::<bool>(), 1..1000u64), 0..8), json in any::<bool>()) {
        let mut rules = Vec::new();
        for (sample, negated, id) in lines {
            let mark = if negated { "! " } else { "" };
            rules.push(common::listed(id + 1000 * rules.len() as u64, false, &format!("-c OUTPUT -n any -v DROP {mark}{}", SAMPLES[sample])));
        }
        let listing = Listing { rules, ..listing() };
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rules");
        let form = if json { "--json" } else { "" };
        ask(&format!("save {form} {}", file.display()), Answer::Listing(listing.clone()));
        let (outcome, asked) = ask(&format!("restore {}", file.display()), changed(vec![]));
        prop_assert_eq!(outcome.err, "");
        let Request::Restore { document, .. } = asked else { panic!() };
        let restored: Vec<_> = document.rules.into_iter().map(|numbered| (numbered.id.unwrap(), numbered.rule)).collect();
        let saved: Vec<_> = listing.rules.into_iter().map(|listed| (listed.id, listed.rule)).collect();
        prop_assert_eq!(restored, saved);
    }

    #[test]
    fn no_arguments_panic(words in prop::collection::vec("(-[A-Za-z!]|--?[a-z-]{0,12}|!|[a-zA-Z0-9/:.,@]{0,8})", 0..8)) {
        // None of these finds a daemon.
        let words: Vec<_> = words.iter().map(String::as_str).filter(|word| !SLOW.contains(word)).collect();
        let outcome = common::run_words(Path::new("/nonexistent"), &words);
        prop_assert!(outcome.exit != Exit::Done || outcome.err.is_empty());
    }
}

/// Match options, each of which stands behind a negation or not.
const SAMPLES: [&str; 8] = [
    "-d 192.0.2.0/24,@lan --comment \"a \\\"b\\\" \\\\ c\"",
    "--dport 80,443 --until 2030-01-01T00:00:00Z",
    "-i eth+ --log",
    "--sng-hash 27125f03b2a1c8d97f6a0be8c5a3e4d1f00b8a7c6d5e4f3a2b1c0d9e8f7a6b5c --from \"exe:/opt/my app\"",
    "--traced --no-log",
    "--object-path \"/opt/{a,b}/*\" -l l3",
    "--time mon-fri@08:00-18:00 --limit 10/s:20",
    "--uid 0-999 --unit nginx --owner owned",
];

/// Words that make it read the standard input, or files of this machine.
const SLOW: [&str; 4] = ["-", "restore", "import", "man"];
