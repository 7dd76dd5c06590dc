//! How long packets wait while rules are changed.
//!
//! Small datagrams leave at a steady pace, each with the time at which it was sent; the kernel notes when it arrives in the
//! other namespace. What lies between is the way through the queue, whatever else delays sender and receiver. On a machine
//! that others use too the daemon waits for a processor now and then, and the more so while rules are changed. So the same
//! changes are also made at another daemon, through which no packet passes: what they cost there is not the packet path's.

use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Stdio;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use ctl_fw::client::Client;
use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use shared::control::{Answer, Done, Edit, Request};
use shared::document::Document;

use crate::changes::{changed, edit};
use crate::contender::{Cache, Guard, Programs, start_daemon};
use crate::lab::Lab;
use crate::load::{any, say};
use crate::report::{Spread, table};
use crate::supervise::{Supervisor, Ward, command_in, own_path};

const PORT: u16 = 5001;
/// From one packet to the next.
const PACE: Duration = Duration::from_micros(200);
/// Longer than this, no packet should wait.
const LIMIT: Duration = Duration::from_millis(1);
/// Room for all that can come.
const RECEIVE_BUFFER: usize = 64 << 20;
/// Until the last packet is there.
const SETTLE: Duration = Duration::from_millis(200);

/// What is done while packets flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Nothing,
    /// One rule is added, one deleted, and so on.
    Singles,
    /// A ruleset takes the place of another one.
    Restores,
}

/// Where it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Elsewhere,
    Here,
}

const ARMS: [(&str, Work, At); 5] = [
    ("nothing", Work::Nothing, At::Here),
    ("single rules, of another daemon", Work::Singles, At::Elsewhere),
    ("single rules", Work::Singles, At::Here),
    ("whole rulesets, of another daemon", Work::Restores, At::Elsewhere),
    ("whole rulesets", Work::Restores, At::Here),
];

/// The table: `rounds` times everything, for `duration` each.
///
/// # Errors
/// The daemon or the load fails, or [`crate::supervise::Interrupted`].
pub fn table_of(
    supervisor: &Supervisor,
    lab: &Lab,
    programs: &Programs,
    rulesets: &[String; 2],
    (duration, rounds): (Duration, usize),
) -> Result<String> {
    let mut daemon = start_daemon(supervisor, &lab.client, programs, Cache::Off, &[])?;
    let other = start_daemon(supervisor, &lab.server, programs, Cache::Off, &[])?;
    let parse = |text: &String| {
        Document::parse(text).map_err(|errors| anyhow::anyhow!("rules that are none: {:?}", errors.first()))
    };
    let restore = |document: Document| Request::Restore { document: document.into(), note: None, expected: None };
    let [first, second] = [restore(parse(&rulesets[0])?), restore(parse(&rulesets[1])?)];
    let [mut here, mut elsewhere] = [connect(&daemon)?, connect(&other)?];
    for client in [&mut here, &mut elsewhere] {
        changed(client, &first)?;
    }
    daemon.queue_output_of(&lab.client)?;
    let mut results: [Vec<(Waits, u64)>; 5] = Default::default();
    // The first packets have the program's files hashed.
    stream(supervisor, lab, Duration::from_millis(200), || Ok(false))?;
    last_alone_fires(&mut here)?;
    for round in 0..rounds {
        for turn in 0..ARMS.len() {
            let index = (round + turn) % ARMS.len();
            let (name, work, at) = ARMS[index];
            let client = if at == At::Here { &mut here } else { &mut elsewhere };
            let (mut changes, mut added) = (0, None);
            let waits = stream(supervisor, lab, duration, || {
                match work {
                    Work::Nothing => return Ok(false),
                    Work::Singles => added = single(client, added)?,
                    Work::Restores => {
                        let document = if changes % 2 == 0 { &second } else { &first };
                        changed(client, document)?;
                    }
                }
                changes += 1;
                Ok(true)
            })?;
            daemon.assert_alive()?;
            eprintln!("{name}: {changes} changes, {waits:?}");
            results[index].push((waits, changes));
        }
    }
    daemon.stand_down(supervisor)?;
    other.stand_down(supervisor)?;
    let header =
        ["meanwhile changed", "changes", "p50", "p99", "p99.9", "longest wait, us", "over 1 ms, of 10,000", "lost"];
    Ok(table(&header.map(str::to_owned), ARMS.iter().zip(&results).map(|((name, ..), results)| row(name, results))))
}

fn row(name: &str, results: &[(Waits, u64)]) -> Vec<String> {
    let us = |of: fn(&Waits) -> u64| {
        let spread = Spread::of(results.iter().map(|(waits, _)| of(waits) as f64 / 1e3));
        spread.map_or("-".to_owned(), |spread| spread.format(|us| format!("{us:.0}")))
    };
    let sum = |of: fn(&Waits) -> u64| results.iter().map(|(waits, _)| of(waits)).sum::<u64>();
    let changes: u64 = results.iter().map(|(_, changes)| changes).sum();
    let late = sum(|waits| waits.late) as f64 * 1e4 / sum(|waits| waits.count) as f64;
    let cells = [us(|waits| waits.p50), us(|waits| waits.p99), us(|waits| waits.p999), us(|waits| waits.most)];
    let lost = sum(|waits| waits.lost);
    let row = [name.to_owned(), changes.to_string()].into_iter().chain(cells);
    row.chain([format!("{late:.1}"), lost.to_string()]).collect()
}

fn connect(daemon: &Guard) -> Result<Client> {
    Ok(Client::connect(&daemon.socket()?)?)
}

/// Adds a rule, or deletes the one that was added.
fn single(client: &mut Client, added: Option<u64>) -> Result<Option<u64>> {
    if let Some(id) = added {
        changed(client, &edit(Edit::Delete { id }))?;
        return Ok(None);
    }
    let rule = "-c OUTPUT -n any -v DROP -d 203.0.113.7 -p tcp".parse()?;
    let done = changed(client, &edit(Edit::Add { rule, position: Some(0) }))?.done;
    let [Done::Rule(rule)] = &done[..] else { bail!("the daemon answers something else: {done:?}") };
    Ok(Some(rule.id))
}

/// Were it another rule that packets meet, something else would be measured.
fn last_alone_fires(client: &mut Client) -> Result<()> {
    let Answer::Listing(listing) = client.call(&Request::List { chain: None, namespace: None })? else {
        bail!("the daemon does not list its rules");
    };
    let (last, others) = listing.rules.split_last().context("there is no rule")?;
    ensure!(last.packets > 0, "the last rule did not fire");
    ensure!(others.iter().all(|rule| rule.packets == 0), "another rule than the last one fired");
    Ok(())
}

/// Keeps packets coming for `duration`; `work` is done again and again meanwhile, until it says that there is none.
fn stream(
    supervisor: &Supervisor,
    lab: &Lab,
    duration: Duration,
    mut work: impl FnMut() -> Result<bool>,
) -> Result<Waits> {
    let address = lab.server_address().to_string();
    let start = |place: &crate::lab::Namespace, role: &str, more: &str| {
        let mut command = command_in(&place.path(), own_path()?)?;
        command.args([role, &address, more]).stdin(Stdio::piped()).stdout(Stdio::piped());
        Ward::start(role, &mut command)
    };
    let seconds = duration.as_secs_f64().to_string();
    let mut receiver = start(&lab.server, "receive-stamped", &seconds)?;
    let deadline = Instant::now() + duration + Duration::from_secs(20);
    receiver.line(supervisor, deadline)?;
    let mut sender = start(&lab.client, "send-stamped", &seconds)?;
    sender.line(supervisor, deadline)?;
    let begin = Instant::now();
    while begin.elapsed() < duration && work()? {
        supervisor.take_signals()?;
    }
    let sent: u64 = sender.line(supervisor, deadline)?.parse()?;
    let waits: Waits = receiver.line(supervisor, deadline)?.parse()?;
    ensure!(waits.count > 0, "nothing arrived");
    Ok(Waits { lost: sent.saturating_sub(waits.count), ..waits })
}

/// How long packets were under way, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Waits {
    count: u64,
    p50: u64,
    p99: u64,
    p999: u64,
    most: u64,
    late: u64,
    lost: u64,
}

impl Waits {
    fn of(mut times: Vec<u64>) -> Waits {
        times.sort_unstable();
        let at = |thousandth: usize| {
            let rank = (times.len() * thousandth).div_ceil(1000);
            rank.checked_sub(1).map_or(0, |index| times[index])
        };
        let late = times.iter().filter(|time| **time > LIMIT.as_nanos() as u64).count() as u64;
        let count = times.len() as u64;
        Waits { count, p50: at(500), p99: at(990), p999: at(999), most: at(1000), late, lost: 0 }
    }
}

impl FromStr for Waits {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Waits> {
        let numbers: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let &[count, p50, p99, p999, most, late] = &numbers[..] else { bail!("cannot read {line:?}") };
        Ok(Waits { count, p50, p99, p999, most, late, lost: 0 })
    }
}

fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64)
}

/// The sender's process: prints how many packets it sent.
///
/// # Errors
/// The network fails.
pub fn send(address: IpAddr, duration: Duration) -> Result<()> {
    let socket = UdpSocket::bind((any(address), 0)).context("cannot make a socket")?;
    socket.connect((address, PORT)).context("cannot connect")?;
    say("ready")?;
    let (start, mut count) = (Instant::now(), 0_u32);
    while start.elapsed() < duration {
        let mut payload = [0x5a; crate::load::UDP_PAYLOAD];
        payload[..8].copy_from_slice(&now()?.to_be_bytes());
        socket.send(&payload).context("cannot send")?;
        count += 1;
        // Those that are late are not made up for: each stands for its own moment.
        thread::sleep(PACE);
    }
    say(&count.to_string())
}

/// The receiver's process: prints how long packets were under way.
///
/// # Errors
/// The network fails.
pub fn receive(address: IpAddr, duration: Duration) -> Result<()> {
    let at = SocketAddr::new(address, PORT);
    let socket = UdpSocket::bind(at).with_context(|| format!("cannot bind {at}"))?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true).context("cannot have arrivals noted")?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("cannot enlarge the receive buffer")?;
    say("ready")?;
    socket.set_read_timeout(Some(duration + Duration::from_secs(10)))?;
    let mut times = Vec::new();
    let mut end: Option<Instant> = None;
    while end.is_none_or(|end| Instant::now() < end) {
        let Some((sent, arrived)) = stamped(&socket)? else { break };
        times.push(arrived.saturating_sub(sent));
        if end.is_none() {
            end = Some(Instant::now() + duration + SETTLE);
            socket.set_read_timeout(Some(SETTLE * 2))?;
        }
    }
    let Waits { count, p50, p99, p999, most, late, .. } = Waits::of(times);
    say(&format!("{count} {p50} {p99} {p999} {most} {late}"))
}

/// When the next packet was sent, and when it arrived. `None` if none comes any more.
fn stamped(socket: &UdpSocket) -> Result<Option<(u64, u64)>> {
    let mut payload = [0; crate::load::UDP_PAYLOAD];
    let mut room = cmsg_space!(TimeSpec);
    let mut vectors = [IoSliceMut::new(&mut payload)];
    let message = match recvmsg::<()>(socket.as_raw_fd(), &mut vectors, Some(&mut room), MsgFlags::empty()) {
        Ok(message) => message,
        Err(nix::errno::Errno::EAGAIN) => return Ok(None),
        Err(error) => return Err(error).context("cannot receive"),
    };
    let arrived = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time).as_nanos() as u64),
        _ => None,
    });
    let arrived = arrived.context("a packet without the time of its arrival")?;
    let sent = u64::from_be_bytes(payload[..8].try_into().context("a short packet")?);
    Ok(Some((sent, arrived)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_summed_up() {
        let waits = Waits::of((1..=1000).map(|us| us * 2000).collect());
        let Waits { count, p50, p99, p999, most, late, .. } = waits;
        assert_eq!((count, p50, p99, p999, most, late), (1000, 1_000_000, 1_980_000, 1_998_000, 2_000_000, 500));
        assert_eq!(format!("{count} {p50} {p99} {p999} {most} {late}").parse::<Waits>().unwrap(), waits);
    }
}
