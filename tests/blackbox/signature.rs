//! Signatures on accepted packets, in the published format: on the wire, validated, refused.

use std::fs::{self, Permissions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use harness::counter::Place;
use harness::daemon::Files;
use harness::{Daemon, LIMIT, Ns, World, servers};
use hmac::{Hmac, KeyInit, Mac};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt};
use sha2::Sha256;

use crate::line::{Line, status, wait_until};

const SECRET: &[u8] = b"a secret of more than sixteen bytes\n";
/// Ethernet's header.
const LINK: usize = 14;

/// A secret that only root can read.
fn secret(world: &World, name: &str, bytes: &[u8]) -> Result<String> {
    let path = world.folder().join(name);
    fs::write(&path, bytes)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok(path.display().to_string())
}

/// Every frame that comes into the peer.
struct Capture(OwnedFd);

impl Capture {
    fn start(world: &World) -> Result<Self> {
        let socket = world.namespace(Ns::Peer).enter(|| {
            let protocol = SockProtocol::EthAll;
            Ok(socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?)
        })?;
        let patience = nix::sys::time::TimeVal::new(LIMIT.as_secs().try_into()?, 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
        Ok(Self(socket))
    }

    /// The next IPv4 packet of this protocol from the local end.
    fn next(&self, protocol: u8) -> Result<Packet> {
        let mut frame = vec![0; 65536];
        loop {
            let length = recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty()).context("no such packet came")?;
            let bytes = frame[..length].get(LINK..).unwrap_or_default();
            if bytes.len() >= 20 && bytes[0] >> 4 == 4 && bytes[9] == protocol && bytes[12..16] == [198, 51, 100, 1] {
                return Packet::new(bytes);
            }
        }
    }
}

/// An IPv4 packet taken apart.
struct Packet {
    header: Vec<u8>,
    body: Vec<u8>,
}

impl Packet {
    fn new(bytes: &[u8]) -> Result<Self> {
        let header = usize::from(bytes[0] & 0xf) * 4;
        let total = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        ensure!(header <= total && total <= bytes.len(), "header {header}, total {total}, captured {}", bytes.len());
        Ok(Self { header: bytes[..header].to_vec(), body: bytes[header..total].to_vec() })
    }

    /// What the format signs.
    fn signed(&self) -> &[u8] {
        match self.header[9] {
            6 => &self.body[usize::from(self.body[12] >> 4) * 4..],
            17 => &self.body[8..],
            _ => &self.body[..2],
        }
    }

    /// Carries the option, padded, with the HMAC of its payload, and sums that are right.
    fn check(&self, secret: &[u8]) -> Result<()> {
        ensure!(self.header.len() == 20 + 36, "a header of {} bytes", self.header.len());
        let option = &self.header[20..];
        ensure!(option[..2] == [0x5e, 34] && option[34..] == [1, 0], "{option:02x?}");
        let mut hmac = Hmac::<Sha256>::new_from_slice(secret)?;
        hmac.update(self.signed());
        ensure!(hmac.finalize().into_bytes()[..] == option[2..34], "not the HMAC of {:02x?}", self.signed());
        ensure!(sum(&self.header) == 0xffff, "the header's checksum is wrong");
        Ok(())
    }

    /// The checksum of layer 4, pseudo-header included, is filled in and right.
    fn check_layer4(&self) -> Result<()> {
        let pseudo =
            [&self.header[12..20], &[0, self.header[9]], &u16::try_from(self.body.len())?.to_be_bytes()].concat();
        let all = if self.header[9] == 1 { self.body.clone() } else { [pseudo.as_slice(), &self.body].concat() };
        ensure!(sum(&all) == 0xffff, "the checksum of protocol {} is wrong", self.header[9]);
        Ok(())
    }
}

/// The one's-complement sum of RFC 1071.
fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |byte| u32::from(*byte)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// Large segments must leave room for the option.
fn clamp(world: &World) -> Result<()> {
    let clamp = "iptables -w 10 -t mangle -A OUTPUT -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1400";
    world.run(Ns::Peer, &clamp.split_whitespace().collect::<Vec<_>>(), LIMIT)?.ok().map(drop)
}

/// A daemon in the peer that validates what comes in.
fn validator(world: &World, secret: &str) -> Result<Daemon> {
    world.queue(Ns::Peer, &["INPUT"], 1)?;
    world.daemon_in(Ns::Peer, Files::named(world.folder(), "validator"), &["-i", "-s", secret])
}

#[test]
fn accepted_packets_carry_the_option_and_the_hmac_of_their_payload() -> Result<()> {
    let world = World::new("signed")?;
    world.queue_output()?;
    let _server = world.http_server(80)?;
    world.namespace(Ns::Local).sysctl("net/ipv4/ping_group_range", "0 2147483647")?;
    let secret = secret(&world, "secret", SECRET)?;
    let _daemon = world.daemon(&["-t", "packet", "-p", "ip", "-s", &secret])?;
    let peer4 = world.peer4().to_string();
    let capture = Capture::start(&world)?;

    let mut line = Line::udp(&world, 9)?;
    line.expect_passes()?;
    let datagram = capture.next(17)?;
    assert_eq!(datagram.signed(), b"actor");
    datagram.check(SECRET)?;
    datagram.check_layer4()?;

    world.actor(Ns::Local, &["ping", &peer4])?.step("send")?;
    let echo = capture.next(1)?;
    assert_eq!(echo.signed(), [8, 0]);
    echo.check(SECRET)?;
    echo.check_layer4()?;

    let page = world.run(Ns::Local, &["curl", "-sS", "--max-time", "10", &world.url(80)], LIMIT)?.ok()?;
    assert_eq!(page, servers::PAGE);
    let syn = capture.next(6)?;
    assert!(syn.signed().is_empty(), "an empty payload is signed too");
    let mut request = false;
    for packet in [syn].into_iter().map(Ok).chain(std::iter::from_fn(|| Some(capture.next(6)))) {
        let packet = packet?;
        packet.check(SECRET)?;
        packet.check_layer4()?;
        request |= packet.signed().starts_with(b"GET / ");
        // FIN: the last but for an ACK.
        if packet.body[13] & 1 != 0 {
            break;
        }
    }
    assert!(request, "the request was not among them");
    Ok(())
}

#[test]
fn nothing_is_signed_unless_asked_for() -> Result<()> {
    let world = World::new("unsigned")?;
    let secret = secret(&world, "secret", SECRET)?;
    let arrived = world.count("udp dport 9")?;
    let send = |capture: &Capture| -> Result<Packet> {
        world.namespace(Ns::Local).enter(|| {
            let udp = std::net::UdpSocket::bind("0.0.0.0:0")?;
            udp.send_to(b"plain", (world.peer4(), 9))?;
            Ok(())
        })?;
        capture.next(17)
    };
    let capture = Capture::start(&world)?;
    assert_eq!(send(&capture)?.header.len(), 20);
    world.queue_output()?;
    let mut daemon = world.daemon(&["-t", "none", "-s", &secret])?;
    let unsigned = send(&capture).with_context(|| format!("{:?}", status(&daemon.files().socket)))?;
    assert_eq!(unsigned.header.len(), 20, "-t none signs nothing");
    assert!(daemon.stop()?.success());
    let daemon = world.daemon(&["--sig-type", "packet", "--sig_proto", "ip", "--secret", &secret])?;
    send(&capture).with_context(|| format!("{:?}", status(&daemon.files().socket)))?.check(SECRET)?;
    assert_eq!(arrived.total()?, 3);
    Ok(())
}

#[test]
fn a_validating_peer_takes_what_is_signed_and_nothing_else() -> Result<()> {
    let world = World::new("validated")?;
    world.queue_output()?;
    clamp(&world)?;
    let secret = secret(&world, "secret", SECRET)?;
    let _server = world.http_server(80)?;
    let mut validator = validator(&world, &secret)?;
    let mut signing = world.daemon(&["-t", "packet", "-p", "ip", "-s", &secret])?;
    // More than one full segment in the request.
    let header = format!("X-Padding: {}", "x".repeat(8000));
    let url = world.url(80);
    let fetch = |timeout: &str| {
        let curl = ["curl", "-sS", "--max-time", timeout, "-H", &header, &url];
        world.run(Ns::Local, &curl, LIMIT)
    };
    for _ in 0..3 {
        assert_eq!(fetch("10")?.ok()?, servers::PAGE);
    }
    assert!(validator.events()?.is_empty(), "{:?}", validator.events()?);

    // A third party that does not sign.
    assert!(signing.stop()?.success());
    let mut plain = world.daemon(&[])?;
    let delivered = world.count_at(Ns::Peer, Place::Delivered, "udp dport 9")?;
    let failed = fetch("0.5")?;
    assert_ne!(failed.code(), 0, "{failed}");
    let event = validator.wait_event(LIMIT, |event| event["verdict"] == "DROP")?;
    assert_eq!((&event["reason"], &event["chain"]), (&"signature-missing".into(), &"INPUT".into()), "{event}");
    let mut line = Line::udp(&world, 9)?;
    line.expect_passes().context("it comes as far as the peer")?;
    world.wait_queues_empty(Ns::Peer)?;
    assert_eq!(delivered.total()?, 0);

    // One that signs again is let in again.
    assert!(plain.stop()?.success());
    let _signing = world.daemon(&["-t", "packet", "-s", &secret])?;
    line.expect_passes()?;
    wait_until("the datagram is delivered", || Ok(delivered.total()? == 1))?;
    assert_eq!(fetch("10")?.ok()?, servers::PAGE);
    Ok(())
}

#[test]
fn another_key_is_a_wrong_signature() -> Result<()> {
    let world = World::new("wrong key")?;
    world.queue_output()?;
    let ours = secret(&world, "ours", SECRET)?;
    let theirs = secret(&world, "theirs", b"another secret of more than sixteen bytes")?;
    let mut validator = validator(&world, &ours)?;
    let delivered = world.count_at(Ns::Peer, Place::Delivered, "udp dport 9")?;
    let mut line = Line::udp(&world, 9)?;
    let mut signing = world.daemon(&["-t", "packet", "-s", &theirs])?;
    line.expect_passes().context("it comes as far as the peer")?;
    let event = validator.wait_event(LIMIT, |event| event["verdict"] == "DROP")?;
    assert_eq!(event["reason"], "signature-wrong", "{event}");
    world.wait_queues_empty(Ns::Peer)?;
    assert_eq!(delivered.total()?, 0);
    assert!(signing.stop()?.success());
    let _signing = world.daemon(&["-t", "packet", "-s", &ours])?;
    line.expect_passes()?;
    wait_until("the datagram is delivered", || Ok(delivered.total()? == 1))
}

#[test]
fn a_router_validates_what_it_forwards() -> Result<()> {
    let world = World::with_router("router validates")?;
    world.queue_output()?;
    world.queue(Ns::Router, &["FORWARD", "-i", "eth0"], 2)?;
    let secret = secret(&world, "secret", SECRET)?;
    let mut validator =
        world.daemon_in(Ns::Router, Files::named(world.folder(), "validator"), &["-f", "-s", &secret])?;
    let _server = world.http_server(80)?;
    clamp(&world)?;
    let arrived = world.count("udp dport 9")?;
    let mut signing = world.daemon(&["-t", "packet", "-s", &secret])?;
    let mut sender = world.actor(Ns::Local, &["udp", &format!("{}:9", world.peer4())])?;
    sender.step("send")?;
    wait_until("the datagram arrives", || Ok(arrived.delta()? == 1))?;
    let page = world.run(Ns::Local, &["curl", "-sS", "--max-time", "10", &world.url(80)], LIMIT)?.ok()?;
    assert_eq!(page, servers::PAGE);
    assert!(validator.events()?.is_empty(), "{:?}", validator.events()?);
    assert!(signing.stop()?.success());
    let _plain = world.daemon(&[])?;
    sender.step("send")?;
    let event = validator.wait_event(LIMIT, |event| event["verdict"] == "DROP")?;
    assert_eq!((&event["reason"], &event["chain"]), (&"signature-missing".into(), &"FORWARD".into()), "{event}");
    world.wait_queues_empty(Ns::Router)?;
    assert_eq!(arrived.delta()?, 0);
    Ok(())
}

#[test]
fn what_cannot_be_signed_does_not_leave() -> Result<()> {
    let world = World::new("no room")?;
    let actor = world.programs().path("actor")?;
    let to6 = format!("[{}]:9", world.peer6());
    let mut six = Line::outgoing(&world, &actor, &["udp", &to6], "ip6 nexthdr udp")?;
    six.expect_passes().context("without a queue")?;
    world.queue_output()?;
    let secret = secret(&world, "secret", SECRET)?;
    let mut daemon = world.daemon(&["-t", "packet", "-s", &secret])?;
    let mut four = Line::udp(&world, 9)?;
    four.expect_passes()?;
    six.expect_blocked()?;
    let event = daemon.wait_event(LIMIT, |event| event["verdict"] == "DROP")?;
    assert_eq!(event["reason"], "signature-no-room", "{event}");
    Ok(())
}

#[test]
fn a_secret_that_others_can_read_is_refused() -> Result<()> {
    let world = World::new("secrets")?;
    let program = world.programs().path("app-fw")?.display().to_string();
    let files = world.files();
    let [db, socket] = [&files.database, &files.socket].map(|path| path.display().to_string());
    let refused = |path: &PathBuf, words: &[&str]| -> Result<()> {
        let secret = path.display().to_string();
        let argv = [&program, "--no-probe", "--db", &db, "--socket", &socket, "-t", "packet", "-s", &secret];
        let ended = world.run(Ns::Local, &argv, LIMIT)?;
        ensure!(ended.code() == 1 && !files.socket.exists(), "{ended}");
        ensure!(words.iter().chain(&[secret.as_str()]).all(|word| ended.stderr.contains(word)), "{words:?}: {ended}");
        Ok(())
    };
    let path = PathBuf::from(secret(&world, "secret", SECRET)?);
    for mode in [0o604, 0o640, 0o606, 0o644] {
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        refused(&path, &["others can read it", "chmod 600"]).with_context(|| format!("mode {mode:o}"))?;
    }
    refused(&PathBuf::from(secret(&world, "short", b"short")?), &["5 bytes", "16 bytes"])?;
    refused(&world.folder().join("none"), &["No such file"])?;
    for mode in [0o600, 0o400] {
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        let mut daemon = world.daemon(&["--no-probe", "-t", "packet", "-s", path.to_str().context("path")?])?;
        assert!(daemon.stop()?.success());
    }
    Ok(())
}
