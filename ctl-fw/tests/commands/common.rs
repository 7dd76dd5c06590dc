//! A daemon that answers as the test wants.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{JoinHandle, spawn};

use ctl_fw::{Console, Exit};
use serde::Serialize;
use shared::control::{
    self, Answer, Call, Changed, Done, Edit, HEADER, ListedPolicy, ListedRule, ListedSet, Listing, MAX_ROOT_REQUEST,
    Request, VERSION,
};
use shared::set::{Elements, Set, SetKind};
use shared::{Chain, Rule, Selector, Verdict};
use tempfile::TempDir;

/// A daemon that answers one request after another, and what it was asked.
pub struct Daemon {
    pub socket: PathBuf,
    thread: JoinHandle<Vec<Request>>,
    _dir: TempDir,
}

impl Daemon {
    pub fn answering(answers: Vec<Answer>) -> Daemon {
        Daemon::announcing(answers, Vec::<Answer>::new())
    }

    /// Sends more frames after the last answer, and hangs up.
    pub fn announcing(answers: Vec<Answer>, more: Vec<impl Serialize + Send + 'static>) -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("ctl.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let thread = spawn(move || {
            let mut asked = Vec::new();
            let last = answers.len() - 1;
            for (index, answer) in answers.iter().enumerate() {
                let (mut stream, _) = listener.accept().unwrap();
                asked.push(read_request(&mut stream));
                // Fails if the client's output was closed and it has gone.
                let _ = stream.write_all(&control::encode(answer).unwrap());
                if index == last {
                    more.iter().for_each(|frame| drop(stream.write_all(&control::encode(frame).unwrap())));
                }
            }
            asked
        });
        Daemon { socket, thread, _dir: dir }
    }

    pub fn asked(self) -> Vec<Request> {
        self.thread.join().unwrap()
    }
}

fn read_request(stream: &mut UnixStream) -> Request {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).unwrap();
    let mut body = vec![0; control::body_length(header, MAX_ROOT_REQUEST).unwrap()];
    stream.read_exact(&mut body).unwrap();
    let call: Call = control::decode(&body).unwrap();
    assert_eq!(call.version, VERSION);
    call.request
}

#[derive(Debug)]
pub struct Outcome {
    pub exit: Exit,
    pub out: String,
    pub err: String,
}

pub fn run(socket: &Path, line: &str) -> Outcome {
    run_words(socket, &line.split_whitespace().collect::<Vec<_>>())
}

pub fn run_words(socket: &Path, line: &[&str]) -> Outcome {
    let mut words: Vec<OsString> = vec!["ctl-fw".into(), "--socket".into(), socket.into()];
    words.extend(line.iter().map(OsString::from));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = ctl_fw::run(words, &mut Console::plain(&mut out, &mut err));
    Outcome { exit, out: String::from_utf8(out).unwrap(), err: String::from_utf8(err).unwrap() }
}

pub fn ask(line: &str, answer: Answer) -> (Outcome, Request) {
    let (outcome, mut asked) = ask_all(line, vec![answer]);
    (outcome, asked.remove(0))
}

pub fn ask_all(line: &str, answers: Vec<Answer>) -> (Outcome, Vec<Request>) {
    let daemon = Daemon::answering(answers);
    let outcome = run(&daemon.socket, line);
    (outcome, daemon.asked())
}

pub fn own_namespace() -> Selector {
    Selector::File(std::fs::canonicalize("/proc/thread-self").unwrap().join("ns/net"))
}

pub fn rule(text: &str) -> Rule {
    text.parse().unwrap()
}

pub fn listed_rule(id: u64, dormant: bool, text: &str) -> ListedRule {
    ListedRule { id, position: 2, dormant, packets: 3, bytes: 4, rule: rule(text) }
}

pub fn changed(done: Vec<Done>) -> Answer {
    Answer::Changed(Changed { revision: 9, done, rules: 5 })
}

pub fn listed(dormant: bool) -> ListedRule {
    listed_rule(4, dormant, "-c OUTPUT -n netns:blue -v DROP --dport 80")
}

pub fn ruled(dormant: bool) -> Answer {
    changed(vec![Done::Rule(Box::new(listed(dormant)))])
}

/// The one edit of a change, and its note.
pub fn edit(request: Request) -> (Edit, String) {
    let Request::Change { mut edits, note, expected: None } = request else { panic!("{request:?}") };
    assert_eq!(edits.len(), 1);
    (edits.remove(0), note.unwrap())
}

pub fn listing() -> Listing {
    let policy = |namespace, verdict, stored| ListedPolicy { chain: Chain::Output, namespace, verdict, stored };
    let elements = Elements::parse(SetKind::Addresses, ["10.0.0.0/8"]).unwrap();
    Listing {
        revision: 7,
        rules: vec![listed(true)],
        policies: vec![policy(Selector::Any, Verdict::Accept, false), policy(Selector::Host, Verdict::Drop, true)],
        sets: vec![ListedSet { set: Set { name: "lan".parse().unwrap(), elements }, used_by: 0 }],
    }
}

/// Fails like a pipe whose reader has gone, or like a full disk.
pub struct Broken(pub io::ErrorKind);

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(self.0.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
