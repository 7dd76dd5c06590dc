//! Everything at once: save, restore, check, history, monitor.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use ctl_fw::{Console, Exit};
use proptest::prelude::*;
use shared::control::{self, Announcement, Answer, Failure, FailureKind, Listing, Request, Revision};
use shared::document::Document;

use super::common::{Broken, Daemon, ask, changed, listed_rule, listing, run, run_words};

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
        assert_eq!(document.read().unwrap(), Document::parse(text).unwrap());
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

/// `ctl-fw monitor | head -1`, and nothing more happens.
#[test]
fn monitor_ends_when_its_reader_has_gone() {
    use std::io::Read;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("ctl.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_ctl-fw"))
        .arg("monitor")
        .env("APP_FW_SOCKET", &socket)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    for frame in [control::encode(&Answer::Subscribed), control::encode(&Announcement::Missed(1))] {
        stream.write_all(&frame.unwrap()).unwrap();
    }
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 10]).unwrap();
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
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
    assert_eq!((outcome.exit, document.read().unwrap().rules.len()), (Exit::Done, 20_000));
}

proptest! {
    /// What is saved, in either form, restores to the same.
    #[test]
    fn documents_round_trip(lines in prop::collection::vec((0..SAMPLES.len(), any::<bool>(), 1..1000u64), 0..8), json in any::<bool>()) {
        let mut rules = Vec::new();
        for (sample, negated, id) in lines {
            let mark = if negated { "! " } else { "" };
            rules.push(listed_rule(id + 1000 * rules.len() as u64, false, &format!("-c OUTPUT -n any -v DROP {mark}{}", SAMPLES[sample])));
        }
        let listing = Listing { rules, ..listing() };
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rules");
        let form = if json { "--json" } else { "" };
        ask(&format!("save {form} {}", file.display()), Answer::Listing(listing.clone()));
        let (outcome, asked) = ask(&format!("restore {}", file.display()), changed(vec![]));
        prop_assert_eq!(outcome.err, "");
        let Request::Restore { document, .. } = asked else { panic!() };
        let restored: Vec<_> = document.read().unwrap().rules.into_iter().map(|numbered| (numbered.id.unwrap(), numbered.rule)).collect();
        let saved: Vec<_> = listing.rules.into_iter().map(|listed| (listed.id, listed.rule)).collect();
        prop_assert_eq!(restored, saved);
    }

    #[test]
    fn no_arguments_panic(words in prop::collection::vec("(-[A-Za-z!]|--?[a-z-]{0,12}|!|[a-zA-Z0-9/:.,@]{0,8})", 0..8)) {
        // None of these finds a daemon.
        let words: Vec<_> = words.iter().map(String::as_str).filter(|word| !SLOW.contains(word)).collect();
        let outcome = run_words(Path::new("/nonexistent"), &words);
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
