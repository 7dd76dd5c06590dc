//! The control socket and ctl-fw: bad input of every kind, who may do what, exit codes, output for machines.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use harness::{LIMIT, Ns, Running, World};
use serde_json::{Value, json};
use shared::Rule;
use shared::control::{
    Answer, Call, Changed, Done, Edit, FailureKind, MAX_REQUEST, MAX_ROOT_REQUEST, Request, VERSION, decode, encode,
};

use crate::line::{Line, status, wait_until};

/// A connection that says what it likes.
struct Raw(UnixStream);

impl Raw {
    fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Self(stream))
    }

    fn say(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.0.write_all(bytes)?)
    }

    /// A frame with this body.
    fn frame(&mut self, body: &[u8]) -> Result<()> {
        self.say(&u32::try_from(body.len())?.to_be_bytes())?;
        self.say(body)
    }

    fn answer(&mut self) -> Result<Answer> {
        let mut header = [0; 4];
        self.0.read_exact(&mut header).context("the answer's header")?;
        let mut body = vec![0; u32::from_be_bytes(header) as usize];
        self.0.read_exact(&mut body).context("the answer")?;
        Ok(decode(&body)?)
    }

    fn refusal(&mut self) -> Result<FailureKind> {
        match self.answer()? {
            Answer::Error(failure) => Ok(failure.kind),
            other => bail!("no refusal: {other:?}"),
        }
    }

    /// The daemon has hung up.
    fn is_closed(&mut self) -> Result<bool> {
        match self.0.read(&mut [0]) {
            Ok(length) => Ok(length == 0),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

fn call(request: Request) -> Result<Vec<u8>> {
    Ok(encode(&Call { version: VERSION, request })?)
}

#[test]
fn malformed_frames_are_answered_and_end_the_connection() -> Result<()> {
    let world = World::new("malformed")?;
    let daemon = world.daemon(&["--no-probe"])?;
    let socket = &daemon.files().socket;
    let nested = "[".repeat(100_000);
    for body in [
        &b""[..],
        b"{",
        b"\xff\xfe\xfd",
        b"null",
        b"[]",
        b"{\"version\":1}",
        b"{\"version\":1,\"request\":\"dance\"}",
        b"{\"version\":1,\"request\":\"delete\",\"chain\":\"OUTPUT\",\"namespace\":\"any\",\"position\":-1}",
        b"{\"version\":1,\"request\":\"add\",\"rule\":{\"chain\":\"SIDEWAYS\",\"namespace\":\"any\",\"verdict\":\"DROP\"}}",
        b"{\"version\":99,\"request\":\"status\"}",
        nested.as_bytes(),
    ] {
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        let mut client = Raw::open(socket)?;
        client.frame(body)?;
        ensure!(client.refusal().with_context(|| shown.clone())? == FailureKind::Malformed, "{shown}");
        ensure!(client.is_closed()?, "{shown}: the daemon goes on listening");
    }
    // Random garbage: whatever length its first bytes announce.
    let mut client = Raw::open(socket)?;
    client.say(b"GET / HTTP/1.1\r\n\r\n")?;
    assert_eq!(client.refusal()?, FailureKind::Malformed);
    assert_eq!(status(socket)?.rules, 0);
    assert!(!daemon.messages().contains("panicked"), "{}", daemon.messages());
    Ok(())
}

#[test]
fn oversized_frames_are_refused_unread() -> Result<()> {
    let world = World::new("oversized")?;
    let daemon = world.daemon(&["--no-probe"])?;
    let socket = &daemon.files().socket;
    for length in [u32::try_from(MAX_ROOT_REQUEST)? + 1, u32::MAX] {
        let mut client = Raw::open(socket)?;
        client.say(&length.to_be_bytes())?;
        assert_eq!(client.refusal()?, FailureKind::Malformed);
        assert!(client.is_closed()?);
    }
    // A long one is read, and then it makes no sense.
    let mut client = Raw::open(socket)?;
    client.frame(&vec![b' '; MAX_REQUEST])?;
    assert_eq!(client.refusal()?, FailureKind::Malformed);
    assert_eq!(status(socket)?.rules, 0);
    Ok(())
}

#[test]
fn half_and_slow_frames_hold_up_nobody() -> Result<()> {
    let world = World::new("half")?;
    world.queue_output()?;
    let mut daemon = world.daemon(&["--no-probe"])?;
    let socket = daemon.files().socket.clone();
    let flush = Edit::Flush { chain: None, namespace: "any".parse()? };
    let request = call(Request::Change { edits: vec![flush], note: None, expected: None })?;
    let deleted = |answer| match answer {
        Answer::Changed(Changed { done, .. }) => done == [Done::Deleted(1)],
        _ => false,
    };
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "ACCEPT", "-n", "any"])?;
    // Nothing, half a header, half a body; some hang up, some stay.
    let mut staying = Vec::new();
    for cut in [0, 2, 4, request.len() - 1] {
        for stays in [false, true] {
            let mut client = Raw::open(&socket)?;
            client.say(&request[..cut])?;
            if stays {
                staying.push(client);
            }
        }
    }
    let mut line = Line::udp(&world, 9)?;
    line.expect_passes()?;
    assert_eq!(status(&socket)?.rules, 1, "half a request was carried out");
    // Byte by byte is slow, but it is a request.
    let mut slow = Raw::open(&socket)?;
    for byte in &request {
        slow.say(&[*byte])?;
    }
    assert!(deleted(slow.answer()?));
    // Several in one go are answered in order.
    let list = call(Request::List { chain: None, namespace: None })?;
    slow.say(&[call(Request::Status)?, list, request].concat())?;
    assert!(matches!(slow.answer()?, Answer::Status(_)));
    assert!(matches!(slow.answer()?, Answer::Listing(_)));
    assert!(matches!(slow.answer()?, Answer::Changed(Changed { done, .. }) if done == [Done::Deleted(0)]));
    // They do not hold up the end either.
    assert!(daemon.stop()?.success());
    drop(staying);
    Ok(())
}

#[test]
fn a_hundred_connections_leave_room_again() -> Result<()> {
    let world = World::new("connections")?;
    let daemon = world.daemon(&["--no-probe"])?;
    let socket = &daemon.files().socket;
    let request = call(Request::Status)?;
    let (mut served, mut busy) = (Vec::new(), 0);
    for _ in 0..100 {
        let mut client = Raw::open(socket)?;
        // One that is refused may have been hung up on already.
        let _ = client.say(&request);
        match client.answer()? {
            Answer::Status(_) => served.push(client),
            Answer::Error(failure) if failure.kind == FailureKind::Busy => busy += 1,
            other => bail!("{other:?}"),
        }
    }
    assert!(served.len() >= 32 && busy > 0, "{} served, {busy} busy", served.len());
    let refused = world.ctl(&["-L"])?;
    assert_eq!(refused.code(), 2);
    assert!(refused.stderr.contains("try again"), "{refused}");
    // Those that were let in are served on.
    for client in &mut served {
        client.say(&request)?;
        assert!(matches!(client.answer()?, Answer::Status(_)));
    }
    drop(served);
    wait_until("there is room again", || Ok(world.ctl(&["-L"])?.success()))
}

#[test]
fn users_may_look_where_they_can_connect_and_change_nothing() -> Result<()> {
    let world = World::new("users")?;
    let daemon = world.daemon(&["--no-probe"])?;
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "ACCEPT", "-n", "any"])?;
    // A folder that others can reach; the world's own is root's.
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    let program = folder.path().join("ctl-fw");
    // By another process: a descriptor open for writing that a thread forks just now would make it ETXTBSY.
    let original = world.programs().path("ctl-fw")?;
    world
        .run(Ns::Local, &["cp", original.to_str().context("path")?, program.to_str().context("path")?], LIMIT)?
        .ok()?;
    fs::set_permissions(world.folder(), fs::Permissions::from_mode(0o711))?;
    let program = program.display().to_string();
    let as_user = |arguments: &[&str]| {
        let mut argv = vec!["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", program.as_str()];
        argv.extend(arguments);
        world.run(Ns::Local, &argv, LIMIT)
    };
    let mode = fs::metadata(&daemon.files().socket)?.permissions().mode();
    assert_eq!(mode & 0o777, 0o660, "{mode:o}");
    let refused = as_user(&["-L"])?;
    assert_eq!(refused.code(), 2);
    assert!(refused.stderr.contains("permission denied") && refused.stderr.contains("root"), "{refused}");

    // As a member of the group would be able to connect.
    fs::set_permissions(&daemon.files().socket, fs::Permissions::from_mode(0o666))?;
    assert!(as_user(&["-L"])?.ok()?.contains("ACCEPT"));
    as_user(&["status"])?.ok()?;
    for change in [
        &["-A", "-c", "OUTPUT", "-v", "DROP", "-n", "any"][..],
        &["-I", "0", "-c", "OUTPUT", "-v", "DROP", "-n", "any"],
        &["-D", "0", "-c", "OUTPUT", "-n", "any"],
        &["-F", "-n", "any"],
        &["-P", "OUTPUT", "DROP", "-n", "any"],
    ] {
        let refused = as_user(change)?;
        assert_eq!(refused.code(), 2, "{refused}");
        assert!(refused.stderr.contains("only root"), "{refused}");
    }
    let listed = world.ctl_ok(&["-L", "--json"])?;
    let listed: Value = serde_json::from_str(&listed)?;
    assert_eq!(listed["rules"].as_array().map(Vec::len), Some(1));
    assert!(listed["policies"].as_array().is_some_and(|policies| policies.iter().all(|p| p["stored"] == false)));
    Ok(())
}

#[test]
fn rules_that_make_no_sense_are_refused_with_what_is_wanted() -> Result<()> {
    let world = World::new("bad rules")?;
    let daemon = world.daemon(&["--no-probe"])?;
    let digest = "0".repeat(64);
    let passwd = "/etc/passwd";
    for (words, wanted) in [
        ("--sng-hash abc".to_owned(), "64 hex digits"),
        (format!("--sng-hash {}g", &digest[1..]), "64 hex digits"),
        (format!("--agg-hash {digest}00"), "64 hex digits"),
        ("-d 198.51.100.2/33".to_owned(), "no address or prefix"),
        ("-s fd00::/129".to_owned(), "no address or prefix"),
        ("-d example.org".to_owned(), "no address or prefix"),
        ("--dport 65536".to_owned(), "0 to 65535"),
        ("--sport http".to_owned(), "0 to 65535"),
        ("-p 256".to_owned(), "0 to 255"),
        ("-p quic".to_owned(), "udplite"),
        ("-n /no/such/file".to_owned(), "/no/such/file"),
        (format!("-n {passwd}"), "no network namespace"),
        ("-n a'b".to_owned(), "names no network namespace"),
        ("-l l5".to_owned(), "l3"),
        ("! -c INPUT".to_owned(), "cannot be negated"),
        ("--dport 80 !".to_owned(), "nothing follows the negation"),
        ("! ! --dport 80".to_owned(), "twice"),
        ("--dport".to_owned(), "--dport"),
        ("--frobnicate 3".to_owned(), "--frobnicate"),
    ] {
        let mut argv = vec!["-A", "-c", "OUTPUT", "-v", "DROP"];
        argv.extend(words.split_whitespace());
        let refused = world.ctl(&argv)?;
        assert_eq!(refused.code(), 2, "{refused}");
        assert!(refused.stderr.contains(wanted) && refused.stdout.is_empty(), "{wanted:?} expected: {refused}");
    }
    for (words, wanted) in [
        ("-A -v DROP", "--chain"),
        ("-A -c OUTPUT", "--verdict"),
        ("-A -c SIDEWAYS -v DROP", "OUTPUT, INPUT, FORWARD"),
        ("-A -c OUTPUT -v REFUSE", "ACCEPT, DROP"),
        ("-P OUTPUT", "2"),
        ("-P NOWHERE DROP", "OUTPUT, INPUT, FORWARD"),
        ("-D x -c OUTPUT", "invalid"),
        ("-A -L", "cannot be used"),
        ("", "Usage"),
    ] {
        let refused = world.ctl(&words.split_whitespace().collect::<Vec<_>>())?;
        assert_eq!(refused.code(), 2, "{refused}");
        assert!(refused.stderr.contains(wanted), "{wanted:?} expected: {refused}");
    }
    assert_eq!(status(&daemon.files().socket)?.rules, 0);
    Ok(())
}

#[test]
fn positions_that_are_not_there_are_a_no() -> Result<()> {
    let world = World::new("positions")?;
    let _daemon = world.daemon(&["--no-probe"])?;
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "DROP"])?;
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "ACCEPT"])?;
    for argv in [
        &["-D", "2", "-c", "OUTPUT"][..],
        &["-D", "0", "-c", "INPUT"],
        &["-D", "0", "-c", "OUTPUT", "-n", "any"],
        &["-D", "18446744073709551615", "-c", "OUTPUT"],
        &["-I", "3", "-c", "OUTPUT", "-v", "DROP"],
        &["-I", "18446744073709551615", "-c", "OUTPUT", "-v", "DROP"],
    ] {
        let refused = world.ctl(argv)?;
        assert_eq!(refused.code(), 1, "{refused}");
        assert!(refused.stderr.contains("position"), "{refused}");
    }
    // At the end is a position.
    world.ctl_ok(&["-I", "2", "-c", "OUTPUT", "-v", "DROP"])?;
    world.ctl_ok(&["-D", "2", "-c", "OUTPUT"])?;
    let listed: Value = serde_json::from_str(&world.ctl_ok(&["-L", "-c", "OUTPUT", "--json"])?)?;
    let verdicts = listed["rules"].as_array().map(|rules| rules.iter().map(|rule| &rule["rule"]["verdict"]).collect());
    assert_eq!(verdicts, Some(vec![&json!("DROP"), &json!("ACCEPT")]));
    Ok(())
}

#[test]
fn a_daemon_that_is_not_there_is_an_error_with_a_hint() -> Result<()> {
    let world = World::new("nobody")?;
    let socket = world.files().socket;
    for case in ["no socket", "a socket nobody listens on"] {
        for argv in [&["-L"][..], &["status"], &["-A", "-c", "OUTPUT", "-v", "DROP"], &["-F"]] {
            let failed = world.ctl(argv)?;
            assert_eq!(failed.code(), 2, "{case}: {failed}");
            let hints = ["not running", "--socket", "APP_FW_SOCKET", socket.to_str().context("path")?];
            assert!(hints.iter().all(|hint| failed.stderr.contains(hint)), "{case}: {failed}");
        }
        if !socket.exists() {
            let mut daemon = world.daemon(&["--no-probe"])?;
            daemon.kill9()?;
            ensure!(socket.exists(), "SIGKILL leaves the file");
        }
    }
    // Hashing needs no daemon.
    let file = world.folder().join("file");
    fs::write(&file, "abc")?;
    let digests = world.ctl_ok(&["-H", file.to_str().context("path")?])?;
    assert!(digests.starts_with("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"), "{digests}");
    Ok(())
}

#[test]
fn hashes_agree_with_sha256sum() -> Result<()> {
    let world = World::new("hashes")?;
    let folder = world.folder();
    let files = ["b", "a", "with blank", "c (deleted)"].map(|name| folder.join(name));
    for file in &files {
        fs::write(file, file.to_str().context("path")?)?;
    }
    std::os::unix::fs::symlink(&files[0], folder.join("zlink"))?;
    let link = folder.join("zlink");
    let mut argv = vec!["-H"];
    argv.extend(files.iter().chain([&link]).filter_map(|file| file.to_str()));
    let printed = world.ctl_ok(&argv)?;
    let lines: Vec<_> = printed.lines().collect();
    let mut sorted = files.clone();
    sorted.sort();
    // A file by two names counts once, in the aggregate in the order of the real paths.
    let mut binary = Vec::new();
    for file in &sorted {
        let digest = world.sha256(file)?;
        ensure!(lines.contains(&format!("{digest}  {}", file.display()).as_str()), "{digest}: {printed}");
        binary.extend((0..64).step_by(2).filter_map(|at| u8::from_str_radix(&digest[at..at + 2], 16).ok()));
    }
    let all = folder.join("binary digests");
    fs::write(&all, &binary)?;
    assert_eq!(lines.last(), Some(&format!("{}  aggregate", world.sha256(&all)?).as_str()));

    let missing = world.ctl(&["-H", files[0].to_str().context("path")?, "/no/such/file"])?;
    assert_eq!(missing.code(), 2);
    assert!(missing.stderr.contains("/no/such/file") && !missing.stdout.contains("aggregate"), "{missing}");
    Ok(())
}

#[test]
fn answers_are_json_on_request() -> Result<()> {
    let world = World::new("json")?;
    let _daemon = world.daemon(&["--no-probe"])?;
    let json = |line: &str| -> Result<Value> {
        let mut argv: Vec<_> = line.split_whitespace().collect();
        argv.push("--json");
        let printed = world.ctl_ok(&argv)?;
        serde_json::from_str(&printed).with_context(|| format!("`{line}` printed {printed}"))
    };
    let added = json("-A -c OUTPUT -v DROP -n any -p tcp ! --dport 443")?;
    assert_eq!((&added["position"], &added["dormant"]), (&json!(0), &json!(false)));
    assert_eq!(added["rule"]["verdict"], "DROP");
    assert_eq!(json("-P INPUT DROP -n any")?, json!({ "chain": "INPUT", "policy": "DROP" }));
    let listed = json("-L")?;
    assert_eq!(listed["rules"], json!([added]));
    assert!(listed["policies"].as_array().is_some_and(|policies| policies.iter().any(|policy| {
        policy["chain"] == "INPUT"
            && policy["namespace"] == "any"
            && policy["verdict"] == "DROP"
            && policy["stored"] == true
    })));
    assert_eq!(json("-L -c INPUT")?["rules"], json!([]));
    let status = json("status")?;
    assert_eq!(status["rules"], 1);
    assert_eq!(status["queues"].as_array().map(Vec::len), Some(3));
    assert_eq!(json("-D 0 -c OUTPUT -n any")?, json!({ "deleted": 1 }));
    assert_eq!(json("-F -n any")?, json!({ "deleted": 0 }));
    let file = world.folder().join("file");
    fs::write(&file, "abc")?;
    let hashed = json(&format!("-H {}", file.display()))?;
    assert!(hashed["files"][0]["digest"].is_string() && hashed["aggregate"].is_string(), "{hashed}");
    Ok(())
}

#[test]
fn a_listing_is_enough_to_make_the_rules_again() -> Result<()> {
    let world = World::new("round trip")?;
    let _daemon = world.daemon(&["--no-probe"])?;
    let (digest, name) = ("ab".repeat(32), world.namespace(Ns::Peer).name().to_owned());
    for words in [
        format!("-c OUTPUT -v DROP -n any --sng-hash {digest}"),
        format!("-c OUTPUT -v ACCEPT -n {name} -s 198.51.100.77/24 ! -d fd00::1 -p udp --sport 53 -! --dport 9 -l l4"),
        format!("-c FORWARD -v DROP -n host ! --agg-hash {digest} -p 253"),
        "-c INPUT -v ACCEPT -n dormant-name".to_owned(),
        "-c INPUT -v DROP".to_owned(),
    ] {
        let mut argv = vec!["-A"];
        argv.extend(words.split_whitespace());
        world.ctl_ok(&argv)?;
    }
    let rules = || -> Result<Vec<Rule>> {
        let listed: Value = serde_json::from_str(&world.ctl_ok(&["-L", "--json"])?)?;
        let rules = listed["rules"].as_array().context("no rules")?.iter();
        rules.map(|listed| Ok(serde_json::from_value(listed["rule"].clone())?)).collect()
    };
    let before = rules()?;
    assert_eq!(before.len(), 5);
    for namespace in ["any", "host", "dormant-name", name.as_str(), world.namespace(Ns::Local).name()] {
        world.ctl_ok(&["-F", "-n", namespace])?;
    }
    assert_eq!(rules()?, []);
    // The text form of a rule is the command line that makes it.
    for rule in &before {
        let text = rule.to_string();
        world.ctl_ok(&text.split_whitespace().collect::<Vec<_>>())?;
    }
    assert_eq!(rules()?, before);
    Ok(())
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() -> Result<()> {
    let world = World::new("broken pipe")?;
    let _daemon = world.daemon(&["--no-probe"])?;
    world.ctl_ok(&["-A", "-c", "OUTPUT", "-v", "DROP"])?;
    for arguments in [&["ctl-fw", "-L"][..], &["ctl-fw", "-L", "--json"], &["ctl-fw", "status"], &["ctl-fw", "--help"]]
    {
        let (reader, writer) = std::io::pipe()?;
        // Gone before the first byte.
        drop(reader);
        let mut said = tempfile::tempfile()?;
        let mut command = world.command(Ns::Local, arguments)?;
        let ended =
            Running::start(command.stdin(Stdio::null()).stdout(writer).stderr(said.try_clone()?))?.wait(LIMIT)?;
        let mut text = String::new();
        std::io::Seek::rewind(&mut said)?;
        said.read_to_string(&mut text)?;
        assert!(ended.success() && text.is_empty(), "{arguments:?}: {ended}: {text}");
    }
    Ok(())
}
