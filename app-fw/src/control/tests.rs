use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as Client;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Instant;

use nix::sys::stat::{Mode, umask};
use shared::control::{
    self, Announcement, Call, Changed, Edit, Failure, FailureKind, HEADER, MAX_ANSWER, MAX_ROOT_REQUEST, Status,
    VERSION,
};
use shared::{Chain, Selector, Verdict};
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::*;

/// Remembers what it is asked; a policy for FORWARD blocks until it is allowed to end, one for INPUT fails.
struct Toy {
    asked: Mutex<Vec<Request>>,
    started: mpsc::SyncSender<()>,
    gate: Mutex<mpsc::Receiver<()>>,
    hub: Hub,
}

impl Handler for Toy {
    fn handle(&self, caller: Caller, request: Request) -> Answer {
        assert!(caller.uid == 65534 || caller.pid == Some(std::process::id()));
        self.asked.lock().unwrap().push(request.clone());
        let Request::Change { edits, .. } = request else { return seven() };
        match edits[0] {
            Edit::Policy { chain: Chain::Forward, .. } => {
                self.started.send(()).unwrap();
                self.gate.lock().unwrap().recv().unwrap();
                seven()
            }
            Edit::Policy { chain: Chain::Input, .. } => panic!("toy"),
            // More than socket buffers hold.
            Edit::Flush { .. } => {
                Answer::Error(Failure { kind: FailureKind::Invalid, message: "long ".repeat(1 << 20), index: None })
            }
            _ => seven(),
        }
    }

    fn subscribe(&self, changes: bool, packets: bool) -> Subscription {
        self.hub.subscribe(changes, packets)
    }
}

fn seven() -> Answer {
    Answer::Changed(Changed { revision: 7, done: Vec::new(), rules: 7 })
}

/// A server on its own thread, as the daemon runs it: one runtime thread.
struct Running {
    path: PathBuf,
    toy: Arc<Toy>,
    started: mpsc::Receiver<()>,
    gate: mpsc::Sender<()>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    _dir: TempDir,
}

impl Running {
    fn new(limits: Limits) -> Running {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/ctl.sock");
        let mut server = Server::bind(&path, None).unwrap();
        server.limits = limits;
        let (started_in, started) = mpsc::sync_channel(100);
        let (gate, gate_out) = mpsc::channel();
        let toy = Arc::new(Toy {
            asked: Mutex::default(),
            started: started_in,
            gate: Mutex::new(gate_out),
            hub: Hub::default(),
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let handler: Arc<dyn Handler> = toy.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let shutdown = async { stopped.await.unwrap_or(()) };
            runtime.block_on(server.serve(handler, shutdown)).unwrap();
        });
        Running { path, toy, started, gate, stop: Some(stop), thread: Some(thread), _dir: dir }
    }

    fn client(&self) -> Client {
        let client = Client::connect(&self.path).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().unwrap().join().is_err() && !std::thread::panicking() {
            panic!("the server failed");
        }
    }
}

fn frame(request: Request) -> Vec<u8> {
    control::encode(&Call { version: VERSION, request }).unwrap()
}

fn delete(position: usize) -> Request {
    change(Edit::DeleteAt { chain: Chain::Output, namespace: Selector::Host, position })
}

fn policy(chain: Chain) -> Request {
    change(Edit::Policy { chain, namespace: Selector::Host, verdict: Verdict::Drop })
}

fn flush() -> Request {
    change(Edit::Flush { chain: None, namespace: Selector::Any })
}

fn change(edit: Edit) -> Request {
    Request::Change { edits: vec![edit], note: None, expected: None }
}

fn read_answer(client: &mut Client) -> Answer {
    let mut header = [0; HEADER];
    client.read_exact(&mut header).unwrap();
    let mut body = vec![0; control::body_length(header, MAX_ANSWER).unwrap()];
    client.read_exact(&mut body).unwrap();
    control::decode(&body).unwrap()
}

fn ask(client: &mut Client, request: Request) -> Answer {
    client.write_all(&frame(request)).unwrap();
    read_answer(client)
}

fn failure_of(answer: Answer) -> Failure {
    match answer {
        Answer::Error(failure) => failure,
        other => panic!("{other:?}"),
    }
}

/// Nothing more comes. With unread bytes in its buffer the server's end resets instead.
fn assert_closed(client: &mut Client) {
    match client.read(&mut [0; 1]) {
        Ok(0) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn requests_are_answered_in_order() {
    let server = Running::new(LIMITS);
    let mut client = server.client();
    assert_eq!(ask(&mut client, delete(1)), seven());
    client.write_all(&[frame(delete(2)), frame(policy(Chain::Output))].concat()).unwrap();
    assert_eq!(read_answer(&mut client), seven());
    assert_eq!(read_answer(&mut client), seven());
    // Byte by byte is slow, but in time.
    for byte in frame(delete(3)) {
        client.write_all(&[byte]).unwrap();
    }
    assert_eq!(read_answer(&mut client), seven());
    let expected = [delete(1), delete(2), policy(Chain::Output), delete(3)];
    assert_eq!(*server.toy.asked.lock().unwrap(), expected);
}

#[test]
fn a_client_that_is_done_asking_still_gets_its_answer() {
    let server = Running::new(LIMITS);
    let mut client = server.client();
    client.write_all(&frame(delete(1))).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_answer(&mut client), seven());
    assert_closed(&mut client);
}

#[test]
fn nonsense_gets_one_answer_and_an_end() {
    let server = Running::new(LIMITS);
    let bodies: [&[u8]; 7] = [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"{\"request\":\"status\"}",
        b"{\"version\":2}",
        b"{\"version\":2,\"request\":\"dance\"}",
        &b"[".repeat(100_000),
    ];
    for body in bodies {
        let mut client = server.client();
        let mut bytes = (body.len() as u32).to_be_bytes().to_vec();
        bytes.extend(body);
        bytes.extend(frame(delete(1)));
        client.write_all(&bytes).unwrap();
        assert_eq!(failure_of(read_answer(&mut client)).kind, FailureKind::Malformed);
        assert_closed(&mut client);
    }
    assert!(server.toy.asked.lock().unwrap().is_empty());
}

#[test]
fn another_version_is_told_both() {
    let server = Running::new(LIMITS);
    let mut client = server.client();
    let call = br#"{"version":9,"request":"of the future"}"#;
    client.write_all(&[&(call.len() as u32).to_be_bytes()[..], call].concat()).unwrap();
    let failure = failure_of(read_answer(&mut client));
    assert_eq!(failure.kind, FailureKind::Malformed);
    assert!(failure.message.contains("version 9") && failure.message.contains("version 2"), "{}", failure.message);
    assert_closed(&mut client);
}

#[test]
fn an_oversized_frame_is_refused_by_its_header() {
    let server = Running::new(LIMITS);
    for length in [MAX_ROOT_REQUEST as u32 + 1, u32::MAX] {
        let mut client = server.client();
        client.write_all(&length.to_be_bytes()).unwrap();
        let failure = failure_of(read_answer(&mut client));
        assert_eq!(failure.kind, FailureKind::Malformed);
        assert!(failure.message.contains(&MAX_ROOT_REQUEST.to_string()), "{}", failure.message);
        assert_closed(&mut client);
    }
}

#[test]
fn half_a_frame_and_silence_end_the_connection() {
    let limits = Limits { frame: Duration::from_millis(200), idle: Duration::from_millis(400), ..LIMITS };
    let server = Running::new(limits);
    let whole = frame(delete(1));
    for part in [&whole[..0], &whole[..2], &whole[..HEADER], &whole[..whole.len() - 1]] {
        let mut client = server.client();
        client.write_all(part).unwrap();
        assert_closed(&mut client);
        let mut client = server.client();
        client.write_all(part).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_closed(&mut client);
    }
    assert_eq!(ask(&mut server.client(), delete(1)), seven());
}

#[test]
fn a_client_that_does_not_read_is_cut_off_and_delays_nobody() {
    let server = Running::new(Limits { answer: Duration::from_millis(300), ..LIMITS });
    let mut lazy = server.client();
    lazy.write_all(&frame(flush())).unwrap();
    let mut other = server.client();
    assert_eq!(ask(&mut other, delete(1)), seven());
    // The end of the connection shows as its hang-up, which needs no reading.
    let mut polled = [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&lazy), nix::poll::PollFlags::empty())];
    assert_eq!(nix::poll::poll(&mut polled, 20_000u16).unwrap(), 1);
    assert_eq!(ask(&mut other, delete(1)), seven());
}

#[test]
fn a_slow_request_delays_nobody() {
    let server = Running::new(LIMITS);
    let mut slow = server.client();
    slow.write_all(&frame(policy(Chain::Forward))).unwrap();
    server.started.recv().unwrap();
    let mut quick = server.client();
    assert_eq!(ask(&mut quick, delete(1)), seven());
    server.gate.send(()).unwrap();
    assert_eq!(read_answer(&mut slow), seven());
}

#[test]
fn a_handler_that_fails_costs_its_connection_only() {
    let server = Running::new(LIMITS);
    let mut unlucky = server.client();
    unlucky.write_all(&frame(policy(Chain::Input))).unwrap();
    assert_closed(&mut unlucky);
    assert_eq!(ask(&mut server.client(), delete(1)), seven());
}

#[test]
fn too_many_connections_are_told_so() {
    let server = Running::new(Limits { connections: 3, ..LIMITS });
    let mut seated: Vec<Client> = (0..3).map(|_| server.client()).collect();
    for client in &mut seated {
        ask(client, delete(1));
    }
    for _ in 0..20 {
        let mut refused = server.client();
        // Before and after the server's end is closed.
        let _ = refused.write_all(&frame(delete(1)));
        assert_eq!(failure_of(read_answer(&mut refused)).kind, FailureKind::Busy);
        assert_closed(&mut refused);
    }
    for client in &mut seated {
        ask(client, delete(1));
    }
    drop(seated.pop());
    // The server notices the end of that connection when it gets to it.
    let begun = Instant::now();
    while failed_with_busy(&mut server.client()) {
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::yield_now();
    }
}

fn failed_with_busy(client: &mut Client) -> bool {
    let _ = client.write_all(&frame(delete(1)));
    matches!(read_answer(client), Answer::Error(Failure { kind: FailureKind::Busy, .. }))
}

#[test]
fn hundreds_of_clients_at_once() {
    let server = Running::new(Limits { connections: 500, ..LIMITS });
    let mut clients: Vec<Client> = (0..300).map(|_| server.client()).collect();
    for client in &mut clients {
        client.write_all(&frame(delete(1))).unwrap();
    }
    for client in &mut clients {
        assert_eq!(read_answer(client), seven());
    }
}

#[test]
fn stopping_finishes_what_was_begun_and_removes_the_socket() {
    let mut server = Running::new(LIMITS);
    let mut idle = server.client();
    ask(&mut idle, delete(1));
    let mut busy = server.client();
    busy.write_all(&frame(policy(Chain::Forward))).unwrap();
    server.started.recv().unwrap();
    drop(server.stop.take());
    assert_closed(&mut idle);
    assert!(!server.path.exists());
    assert!(fs::read_dir(server.path.parent().unwrap()).unwrap().next().is_none());
    server.gate.send(()).unwrap();
    assert_eq!(read_answer(&mut busy), seven());
    assert_closed(&mut busy);
}

#[test]
fn the_socket_is_never_wider_than_it_should_be() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b/ctl.sock");
    let group = Gid::from_raw(12345);
    // Other tests of this process make files meanwhile; they do not mind a narrow mask.
    let old = umask(Mode::from_bits_truncate(0o077));
    let server = Server::bind(&path, Some(group));
    umask(old);
    let server = server.unwrap();
    let found = fs::symlink_metadata(&path).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (0o660, 0, 12345));
    for made in ["a", "a/b"] {
        assert_eq!(fs::metadata(dir.path().join(made)).unwrap().mode() & 0o777, 0o755);
    }
    let names: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "the socket and its lock: {names:?}");
    // Clients that come before it serves wait.
    Client::connect(&path).unwrap();
    drop(server);
    assert!(!path.exists());
}

#[test]
fn one_socket_has_one_server() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ctl.sock");
    let first = Server::bind(&path, None).unwrap();
    let error = Server::bind(&path, None).unwrap_err();
    assert!(matches!(&error, ControlError::Taken { pid: Some(pid), .. } if *pid == std::process::id()));
    assert!(error.to_string().contains("another app-fw (pid"), "{error}");
    Client::connect(&path).unwrap();
    drop(first);

    // Somebody who does not know about the lock.
    let foreign = StdListener::bind(&path).unwrap();
    assert!(matches!(Server::bind(&path, None), Err(ControlError::Taken { pid: None, .. })));
    Client::connect(&path).unwrap();
    // Killed: the file stays and nobody listens.
    drop(foreign);
    assert!(path.exists());
    let second = Server::bind(&path, None).unwrap();
    Client::connect(&path).unwrap();
    // Replaced under our feet: not ours to remove.
    fs::remove_file(&path).unwrap();
    let _theirs = StdListener::bind(&path).unwrap();
    drop(second);
    assert!(path.exists());
}

#[test]
fn places_that_will_not_do_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "precious").unwrap();
    assert!(matches!(Server::bind(&file, None), Err(ControlError::NotASocket(_))));
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    assert!(matches!(Server::bind(&file.join("x.sock"), None), Err(ControlError::Directory { .. })));
    let long = dir.path().join("x".repeat(100));
    assert!(matches!(Server::bind(&long, None), Err(ControlError::TooLong(_))));
    assert!(!long.exists());
    assert!(Server::bind(Path::new("/"), None).is_err());
    assert!(Server::bind(Path::new(""), None).is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

const SOCKET_FOR_NOBODY: &str = "APP_FW_TEST_SOCKET_FOR_NOBODY";

/// Runs as another user, started by the test below.
#[test]
fn helper_nobody() {
    let Some(path) = std::env::var_os(SOCKET_FOR_NOBODY) else { return };
    assert!(!nix::unistd::geteuid().is_root());
    let mut client = Client::connect(path).unwrap();
    let refusal = failure_of(ask(&mut client, delete(1)));
    assert_eq!(refusal.kind, FailureKind::Forbidden);
    assert_eq!(ask(&mut client, Request::Status), seven());
    assert_eq!(ask(&mut client, Request::List { chain: None, namespace: None }), seven());
    for request in [policy(Chain::Output), flush()] {
        assert_eq!(failure_of(ask(&mut client, request)).kind, FailureKind::Forbidden);
    }
    assert_eq!(ask(&mut client, Request::History { count: None }), seven());
    for request in [Request::Undo { to: None }, Request::Learned { clear: true }] {
        assert_eq!(failure_of(ask(&mut client, request)).kind, FailureKind::Forbidden);
    }
    let mut reader = Client::connect(std::env::var_os(SOCKET_FOR_NOBODY).unwrap()).unwrap();
    assert_eq!(ask(&mut reader, Request::Subscribe { changes: true, packets: true }), Answer::Subscribed);
    client.write_all(&(1u32 << 21).to_be_bytes()).unwrap();
    assert_eq!(failure_of(read_answer(&mut client)).kind, FailureKind::Malformed);
    // One long request at a time.
    let connect = || Client::connect(std::env::var_os(SOCKET_FOR_NOBODY).unwrap()).unwrap();
    let (mut long, mut second) = (connect(), connect());
    long.write_all(&(1u32 << 17).to_be_bytes()).unwrap();
    let refused = loop {
        let mut other = connect();
        other.write_all(&(1u32 << 17).to_be_bytes()).unwrap();
        other.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        // The server may hear the second one first.
        if let Ok(1..) = other.read(&mut [0; HEADER]) {
            break true;
        }
    };
    assert!(refused);
    assert_eq!(ask(&mut second, Request::Status), seven());
}

#[test]
fn others_may_look_but_not_touch() {
    let server = Running::new(LIMITS);
    let dir = server._dir.path();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    nix::unistd::chown(&server.path, None, Some(Gid::from_raw(65534))).unwrap();
    // A copy, since another user may not be able to reach this program where it was built.
    let program = dir.join("test");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let status = std::process::Command::new(&program)
        .args([concat!(module_path!(), "::helper_nobody").split_once("::").unwrap().1, "--exact"])
        .env(SOCKET_FOR_NOBODY, &server.path)
        .uid(65534)
        .gid(65534)
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let asked = server.toy.asked.lock().unwrap();
    let expected = [
        Request::Status,
        Request::List { chain: None, namespace: None },
        Request::History { count: None },
        Request::Status,
    ];
    assert_eq!(*asked, expected);
}

/// The answer to `Status` is boxed and nested: it crosses the socket like any other.
#[test]
fn a_status_crosses_the_socket() {
    struct Well(Status);
    impl Handler for Well {
        fn handle(&self, _: Caller, _: Request) -> Answer {
            Answer::Status(Box::new(self.0.clone()))
        }

        fn subscribe(&self, _: bool, _: bool) -> Subscription {
            Hub::default().subscribe(false, false)
        }
    }
    let text = r#"{"daemon":"0","pid":1,"uptime_ms":2,"clock":"tsc","rules_generation":3,"rules":4,
        "probe":{"loaded":true,"missing":[],"cost":[],"lost_events":0},"queues":[],"events_omitted":0,"digests":0}"#;
    let status: Status = serde_json::from_str(text).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let server = Server::bind(&path, None).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (done, stopped) = oneshot::channel::<()>();
    let handler = Arc::new(Well(status.clone()));
    let client = std::thread::spawn(move || {
        let answer = ask(&mut Client::connect(path).unwrap(), Request::Status);
        drop(done);
        answer
    });
    runtime.block_on(server.serve(handler, async { stopped.await.unwrap_or(()) })).unwrap();
    assert_eq!(client.join().unwrap(), Answer::Status(Box::new(status)));
}

fn subscribe(server: &Running) -> Client {
    let mut client = server.client();
    assert_eq!(ask(&mut client, Request::Subscribe { changes: true, packets: false }), Answer::Subscribed);
    client
}

fn read_announcement(client: &mut Client) -> Announcement {
    let mut header = [0; HEADER];
    client.read_exact(&mut header).unwrap();
    let mut body = vec![0; control::body_length(header, MAX_ANSWER).unwrap()];
    client.read_exact(&mut body).unwrap();
    control::decode(&body).unwrap()
}

#[test]
fn subscribers_are_told_until_they_hang_up() {
    let server = Running::new(Limits { idle: Duration::from_millis(100), ..LIMITS });
    let (mut one, mut other) = (subscribe(&server), subscribe(&server));
    let tell = |number| server.toy.hub.changed(|| Announcement::Missed(number));
    for number in 0..100 {
        tell(number);
    }
    for number in 0..100 {
        assert_eq!(read_announcement(&mut one), Announcement::Missed(number));
    }
    drop(one);
    // Longer than a client may be silent that is to ask.
    std::thread::sleep(Duration::from_millis(300));
    tell(100);
    for number in 0..101 {
        assert_eq!(read_announcement(&mut other), Announcement::Missed(number));
    }
    // A subscriber has nothing more to say.
    other.write_all(&frame(delete(1))).unwrap();
    assert_closed(&mut other);
}

#[test]
fn a_subscriber_that_does_not_read_stops_nobody_and_is_told_what_it_missed() {
    let server = Running::new(LIMITS);
    let mut lazy = subscribe(&server);
    let mut busy = server.client();
    let begun = Instant::now();
    for number in 0..200_000 {
        server.toy.hub.changed(|| Announcement::Missed(1 << 40 | number));
    }
    assert_eq!(ask(&mut busy, delete(1)), seven());
    assert!(begun.elapsed() < Duration::from_secs(20));
    let (mut next, mut left_out) = (0, 0);
    while next < 200_000 {
        match read_announcement(&mut lazy) {
            Announcement::Missed(number) if number & 1 << 40 != 0 => {
                assert_eq!(number & !(1 << 40), next);
                next += 1;
            }
            Announcement::Missed(count) => {
                next += count;
                left_out += count;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(left_out > 0 && next == 200_000);
}

#[test]
fn subscribers_do_not_delay_the_end() {
    let mut server = Running::new(LIMITS);
    let mut reader = subscribe(&server);
    drop(server.stop.take());
    assert_closed(&mut reader);
}

#[test]
fn a_whole_ruleset_crosses_the_socket() {
    let server = Running::new(LIMITS);
    let text =
        "set create lan addresses 10.0.0.0/8\n-P INPUT DROP -n any\n-A -c OUTPUT -n host -v DROP -d @lan --id 7\n";
    let document = shared::document::Document::parse(text).unwrap();
    let forms = [document.into(), shared::document::Form::Text(text.into())];
    let requests = forms.map(|document| Request::Restore { document, note: Some("x".into()), expected: Some(3) });
    for restore in &requests {
        assert_eq!(ask(&mut server.client(), restore.clone()), seven());
    }
    assert_eq!(*server.toy.asked.lock().unwrap(), requests);
}
