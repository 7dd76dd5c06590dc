//! The command line against a daemon that answers as the test wants.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::{JoinHandle, spawn};

use ctl_fw::{Console, Exit};
use shared::control::{
    self, Answer, Call, Failure, FailureKind, HEADER, ListedPolicy, ListedRule, Listing, MAX_REQUEST, Request, VERSION,
};
use shared::{Chain, Digest, Rule, Selector, Verdict};
use tempfile::TempDir;

/// A daemon that answers one request, and what it was asked.
struct Daemon {
    socket: PathBuf,
    thread: JoinHandle<Request>,
    _dir: TempDir,
}

impl Daemon {
    fn answering(answer: Answer) -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("ctl.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let thread = spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let request = read_request(&mut stream);
            // Fails if the client's output was closed and it has gone.
            let _ = stream.write_all(&control::encode(&answer).unwrap());
            request
        });
        Daemon { socket, thread, _dir: dir }
    }
}

fn read_request(stream: &mut UnixStream) -> Request {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).unwrap();
    let mut body = vec![0; control::body_length(header, MAX_REQUEST).unwrap()];
    stream.read_exact(&mut body).unwrap();
    let call: Call = control::decode(&body).unwrap();
    assert_eq!(call.version, VERSION);
    call.request
}

struct Outcome {
    exit: Exit,
    out: String,
    err: String,
}

fn run(socket: &Path, line: &str) -> Outcome {
    let mut words: Vec<OsString> = vec!["ctl-fw".into(), "--socket".into(), socket.into()];
    words.extend(line.split_whitespace().map(OsString::from));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = ctl_fw::run(words, &mut Console::plain(&mut out, &mut err));
    Outcome { exit, out: String::from_utf8(out).unwrap(), err: String::from_utf8(err).unwrap() }
}

fn ask(line: &str, answer: Answer) -> (Outcome, Request) {
    let daemon = Daemon::answering(answer);
    let outcome = run(&daemon.socket, line);
    (outcome, daemon.thread.join().unwrap())
}

fn own_namespace() -> Selector {
    Selector::File(fs::canonicalize("/proc/thread-self").unwrap().join("ns/net"))
}

fn rule(text: &str) -> Rule {
    text.parse().unwrap()
}

fn listed(dormant: bool) -> ListedRule {
    ListedRule { id: 4, position: 2, dormant, rule: rule("-c OUTPUT -n netns:blue -v DROP --dport 80") }
}

fn failure(kind: FailureKind) -> Answer {
    Answer::Error(Failure { kind, message: "the reason".into() })
}

#[test]
fn the_known_command_reaches_the_daemon() {
    let hex = Digest::of(b"curl");
    let line = format!("-A -c OUTPUT -v DROP -n /proc/self/ns/net --sng-hash {hex}");
    let (outcome, request) = ask(&line, Answer::Added(listed(false)));
    let namespace = format!("/proc/{}/ns/net", std::process::id());
    let expected = rule(&format!("-c OUTPUT -v DROP -n {namespace} --sng-hash {hex}"));
    assert_eq!(request, Request::Add { rule: expected, position: None });
    assert_eq!(outcome.exit, Exit::Done);
    assert_eq!(outcome.out, "added rule 4 at position 2 of OUTPUT, netns:blue: DROP --dport 80\n");
    assert_eq!(outcome.err, "");
}

#[test]
fn every_command_asks_for_what_it_says() {
    let own = own_namespace();
    let host = Selector::Host;
    let insert = rule(&format!("-c INPUT -n {own} -v ACCEPT ! -s 192.0.2.1/32 -l l3"));
    for (line, request, answer) in [
        (
            "-I 3 -c INPUT -v ACCEPT ! -s 192.0.2.1 -l l3",
            Request::Add { rule: insert, position: Some(3) },
            Answer::Added(listed(false)),
        ),
        (
            "-D 1 -c INPUT",
            Request::Delete { chain: Chain::Input, namespace: own.clone(), position: 1 },
            Answer::Deleted(1),
        ),
        ("-F", Request::Flush { chain: None, namespace: own.clone() }, Answer::Deleted(0)),
        (
            "-F -c FORWARD -n any",
            Request::Flush { chain: Some(Chain::Forward), namespace: Selector::Any },
            Answer::Deleted(9),
        ),
        (
            "-P OUTPUT DROP -n host",
            Request::Policy { chain: Chain::Output, namespace: host, verdict: Verdict::Drop },
            Answer::PolicySet,
        ),
        (
            "-L -c OUTPUT -n blue",
            Request::List { chain: Some(Chain::Output), namespace: Some(Selector::Named("blue".into())) },
            Answer::Listing(Listing { rules: vec![], policies: vec![] }),
        ),
    ] {
        // The thread that asks is the one whose namespace is meant.
        let (outcome, asked) = ask(line, answer);
        assert_eq!(asked, request, "{line}");
        assert_eq!((outcome.exit, outcome.err.as_str()), (Exit::Done, ""), "{line}");
    }
}

#[test]
fn listings_come_as_json_too() {
    let listing = Listing {
        rules: vec![listed(true)],
        policies: vec![ListedPolicy {
            chain: Chain::Output,
            namespace: Selector::Any,
            verdict: Verdict::Accept,
            stored: false,
        }],
    };
    let (outcome, request) = ask("-L --json", Answer::Listing(listing.clone()));
    assert_eq!(request, Request::List { chain: None, namespace: None });
    assert_eq!(serde_json::from_str::<Listing>(&outcome.out).unwrap(), listing);
    let (outcome, _) = ask("-L", Answer::Listing(listing));
    assert!(outcome.out.contains("netns:blue (dormant)"), "{}", outcome.out);
}

#[test]
fn a_dormant_rule_is_noted_beside_the_data() {
    let (outcome, _) = ask("-A -c OUTPUT -v DROP -n blue --json", Answer::Added(listed(true)));
    assert_eq!(serde_json::from_str::<ListedRule>(&outcome.out).unwrap(), listed(true));
    assert!(outcome.err.contains("dormant"), "{}", outcome.err);
}

#[test]
fn no_is_told_from_failure() {
    let (outcome, _) = ask("-D 9 -c OUTPUT", failure(FailureKind::NotFound));
    assert_eq!((outcome.exit, outcome.out.as_str(), outcome.err.as_str()), (Exit::Negative, "", "the reason\n"));
    for kind in
        [FailureKind::Forbidden, FailureKind::Malformed, FailureKind::Invalid, FailureKind::Store, FailureKind::Busy]
    {
        let (outcome, _) = ask("-D 9 -c OUTPUT", failure(kind));
        assert_eq!((outcome.exit, outcome.out.as_str()), (Exit::Error, ""));
        assert_eq!(outcome.err, "error: app-fw refuses: the reason\n");
    }
    let (outcome, _) = ask("status", Answer::PolicySet);
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
            let daemon = Daemon::answering(Answer::Listing(Listing { rules: vec![listed(false)], policies: vec![] }));
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
        let daemon = Daemon::answering(answer);
        let output = program().args(words).env("APP_FW_SOCKET", &daemon.socket).output().unwrap();
        daemon.thread.join().unwrap();
        output.status.code()
    };
    assert_eq!(code(Answer::Deleted(1), &["-D", "0", "-c", "OUTPUT"]), Some(0));
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
