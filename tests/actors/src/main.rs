//! `actor`: the program whose traffic the black-box tests judge.
//!
//! It opens one socket in a way that its arguments say, prints `ready`, and then takes one command per line on standard
//! input, answering each with a line `ok ...` or `error ...`. So a test steps it and never waits for time to pass. The
//! end of its input ends it.
//!
//! ```text
//! actor udp ADDR:PORT [--bind ADDR:PORT] [--connect] [--reuseport] [--v4-on-v6]
//! actor udplite ADDR:PORT            the same over UDP-Lite
//! actor udp-bind ADDR:PORT [--reuseport]         waits for datagrams (`recv`, `reply`)
//! actor tcp ADDR:PORT [--bind ADDR:PORT] [--device NAME] [--tos N] [--later] [--v4-on-v6]     connects (with --later: at `connect`)
//! actor serve-tcp ADDR:PORT [--reuseport]        listens (`accept`)
//! actor ping ADDR                    an ICMP echo socket; needs net.ipv4.ping_group_range
//! actor raw ADDR PROTOCOL            a raw IP socket; PROTOCOL is a number
//! actor packet ADDR:PORT DEVICE --bind ADDR:PORT   sends the same datagrams as `udp` from a packet(7) socket
//! actor idle                         no socket
//! ```
//!
//! and some that need no steps and exit at once:
//!
//! ```text
//! actor udp-send ADDR:PORT COUNT [--bind ADDR:PORT] [--judged]     sends COUNT datagrams and exits without looking back,
//!                                    or (--judged) when they were judged
//! actor udp-exec ADDR:PORT COUNT EXE sends COUNT datagrams and becomes EXE, which waits until they were judged
//! actor tcp-exec ADDR:PORT EXE       begins to connect and becomes EXE, which waits for the answer, a little
//! actor tcp-get ADDR:PORT            fetches / by HTTP, prints the body; exit 1 if it cannot
//! ```
//!
//! Before any of them may stand `unlinked memfd` or `unlinked tmpfile`: the actor then runs from a copy of its file that
//! has no name. Or `headless` or `headless-twin`: the first thread of the actor has ended then, and two others go on; a twin
//! shares the memory of its parent, which is what was started. Or `beheaded`: it may end at any moment. Or `apart`: they have
//! other descriptors than the first.
//!
//! `--timeout MS` (default 2000) bounds connecting and receiving. The steps are listed in [`steps`].

mod code;
mod crowd;
mod heir;
mod options;
mod repeat;
mod socket;
mod steps;
mod tracer;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use code::headless::Way;
use options::Options;
use socket::Socket;
use steps::Stage;

fn main() -> ExitCode {
    match act() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("actor: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, kind, rest @ ..] = arguments.as_slice()
        && word == "unlinked"
    {
        return Err(code::become_unlinked(kind, rest));
    }
    match arguments.first().and_then(|word| Way::parse(word)) {
        Some(way) => code::headless::run(way, play),
        None => play(),
    }
}

fn play() -> Result<()> {
    let arguments = std::env::args().skip(1).skip_while(|word| Way::parse(word).is_some());
    let options = Options::parse(arguments)?;
    match options.role.as_str() {
        "udp-send" => udp_send(&options),
        "tcp-get" => tcp_get(&options),
        "idle" => Stage::new(None, options.timeout).play_on_stdio(true),
        "udp-exec" => Err(udp_exec(&options)?),
        "tcp-exec" => Err(heir::become_other(&Socket::begin_tcp(&options)?, Path::new(options.operand(1)?), true)),
        "borrow" => heir::borrow(&options),
        "heir" if options.fire || options.judged => die_as_heir(&options),
        "heir" => Stage::new(Some(heir::inherit(&options)?), options.timeout).play_on_stdio(options.ready),
        _ => Stage::new(Some(Socket::open(&options)?), options.timeout).play_on_stdio(true),
    }
}

/// Fire and forget: the socket and the process are gone while the packets may still wait for a verdict.
fn udp_send(options: &Options) -> Result<()> {
    let socket = fire(options)?;
    if options.judged { code::until_judged(socket.fd()) } else { Ok(()) }
}

/// Fire, and be another program when the packets are looked at. Returns the error if that cannot be.
fn udp_exec(options: &Options) -> Result<anyhow::Error> {
    let socket = fire(options)?;
    Ok(heir::become_other(&socket, Path::new(options.operand(2)?), true))
}

fn fire(options: &Options) -> Result<Socket> {
    let count: u32 = options.operand(1)?.parse().context("COUNT")?;
    let socket = Socket::udp(options)?;
    for _ in 0..count {
        socket.send()?;
    }
    Ok(socket)
}

fn die_as_heir(options: &Options) -> Result<()> {
    let socket = heir::inherit(options)?;
    if options.fire {
        socket.send()?;
    }
    if !options.judged {
        Ok(())
    } else if socket.is_stream()? {
        socket.wait_for_answer()
    } else {
        code::until_judged(socket.fd())
    }
}

fn tcp_get(options: &Options) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&options.address()?, options.timeout).context("connect")?;
    stream.set_read_timeout(Some(options.timeout))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("receive")?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => {
            print!("{body}");
            Ok(())
        }
        _ => bail!("not a good answer: {answer}"),
    }
}
