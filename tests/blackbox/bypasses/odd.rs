//! Packets that no ordinary program sends: other protocols, odd flags, fragments, options, chains of headers, and pieces.

use anyhow::{Context, Result, ensure};
use harness::Actor;

use super::{Trial, quiet};
use crate::line::wait_until;

const LOCAL4: [u8; 4] = [198, 51, 100, 1];
const PEER4: [u8; 4] = [198, 51, 100, 2];
const LOCAL6: [u8; 16] = [0xfd, 0, 0, 0xaf, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1];
const PEER6: [u8; 16] = [0xfd, 0, 0, 0xaf, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2];
/// What marks the packets made here: an IPv4 identification, an IPv6 flow label.
const MARK4: u16 = 0x1234;
const MARK6: u32 = 0x1_2345;

/// As the step `hex` wants it.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A datagram from port 4001 to port 9, 28 bytes long.
pub fn udp() -> Vec<u8> {
    let mut datagram = Vec::new();
    for word in [4001_u16, 9, 28, 0] {
        datagram.extend(word.to_be_bytes());
    }
    datagram.extend([b'u'; 20]);
    datagram
}

/// A segment from port 4001 to port 7 with these flags.
pub fn tcp(flags: u8) -> Vec<u8> {
    let mut segment = Vec::new();
    for word in [4001_u16, 7, 0, 1, 0, 1] {
        segment.extend(word.to_be_bytes());
    }
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment
}

/// A whole packet. The kernel fills in length and checksum (raw(7), IP_HDRINCL).
pub fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    ipv4_with(protocol, &[], 0, payload)
}

/// `fragment`: flags and offset as in the header.
fn ipv4_with(protocol: u8, options: &[u8], fragment: u16, payload: &[u8]) -> Vec<u8> {
    let words = 5 + options.len() / 4;
    let mut packet = vec![0x40 | words as u8, 0, 0, 0];
    packet.extend(MARK4.to_be_bytes());
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(LOCAL4);
    packet.extend(PEER4);
    packet.extend(options);
    packet.extend(payload);
    packet
}

/// A whole packet; `next` is the protocol of what comes first in the payload.
fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = (0x6000_0000 | MARK6).to_be_bytes().to_vec();
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(LOCAL6);
    packet.extend(PEER6);
    packet.extend(payload);
    packet
}

/// An options header of so many times 8 bytes, all padding.
fn options6(next: u8, eights: u8, rest: &[u8]) -> Vec<u8> {
    let mut header = vec![next, eights - 1];
    let mut room = usize::from(eights) * 8 - 2;
    while room > 0 {
        // PadN holds up to 5 bytes here: Linux drops more than 7 bytes of padding in a row, so it is broken up by Pad1-free
        // options of an unknown kind that may be skipped (00xxxxxx).
        let length = room.min(8);
        header.push(0x1e);
        header.push((length - 2) as u8);
        header.extend(std::iter::repeat_n(0, length - 2));
        room -= length;
    }
    header.extend(rest);
    header
}

fn fragment6(next: u8, offset_and_more: u16, rest: &[u8]) -> Vec<u8> {
    let mut header = vec![next, 0];
    header.extend(offset_and_more.to_be_bytes());
    header.extend([0, 0, 0x12, 0x34]);
    header.extend(rest);
    header
}

/// A type 2 header that names the destination itself: RFC 6275.
fn routing6(next: u8, rest: &[u8]) -> Vec<u8> {
    let mut header = vec![next, 2, 2, 0, 0, 0, 0, 0];
    header.extend(PEER6);
    header.extend(rest);
    header
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Arrives if its sender is allowed.
    Whole,
    /// Arrives where no rule asks who sent it.
    Piece,
    /// Never arrives.
    Broken,
}

use Kind::{Broken, Piece, Whole};

fn packets4() -> Vec<(&'static str, Kind, Vec<u8>)> {
    const MORE: u16 = 0x2000;
    let inner = ipv4(17, &udp());
    vec![
        ("plain", Whole, ipv4(17, &udp())),
        ("no operations", Whole, ipv4_with(17, &[1; 4], 0, &udp())),
        ("router alert", Whole, ipv4_with(17, &[148, 4, 0, 0], 0, &udp())),
        ("forty bytes of options", Whole, ipv4_with(17, &[1; 40], 0, &udp())),
        ("SYN and FIN", Whole, ipv4(6, &tcp(0x03))),
        ("ACK", Whole, ipv4(6, &tcp(0x10))),
        ("no flags", Whole, ipv4(6, &tcp(0))),
        ("all flags", Whole, ipv4(6, &tcp(0xff))),
        ("FIN", Whole, ipv4(6, &tcp(0x01))),
        ("RST", Whole, ipv4(6, &tcp(0x04))),
        ("echo request", Whole, ipv4(1, &[8, 0, 0, 0, 0, 1, 0, 1])),
        ("echo reply", Whole, ipv4(1, &[0, 0, 0, 0, 0, 1, 0, 1])),
        ("GRE", Whole, ipv4(47, &[0, 0, 8, 0, 1, 2, 3, 4])),
        ("IP in IP", Whole, ipv4(4, &inner)),
        ("ESP", Whole, ipv4(50, &[0; 24])),
        ("DCCP", Whole, ipv4(33, &[0; 24])),
        ("SCTP", Whole, ipv4(132, &[0x0f, 0xa1, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 4])),
        ("UDP-Lite", Whole, ipv4(136, &udp())),
        ("for experiments", Whole, ipv4(253, b"tunnel")),
        ("first fragment", Piece, ipv4_with(17, &[], MORE, &udp()[..24])),
        ("later fragment", Piece, ipv4_with(17, &[], 3, b"rest")),
        ("later fragment of TCP", Piece, ipv4_with(6, &[], MORE | 185, &[0; 24])),
        ("short UDP", Broken, ipv4(17, &udp()[..5])),
        ("short TCP", Broken, ipv4(6, &tcp(0x02)[..13])),
        ("short first fragment", Broken, ipv4_with(6, &[], MORE, &tcp(0x02)[..8])),
    ]
}

fn packets6() -> Vec<(&'static str, Kind, Vec<u8>)> {
    const MORE: u16 = 1;
    vec![
        ("plain", Whole, ipv6(17, &udp())),
        ("hop by hop", Whole, ipv6(0, &options6(17, 1, &udp()))),
        ("destination options", Whole, ipv6(60, &options6(17, 2, &udp()))),
        ("both", Whole, ipv6(0, &options6(60, 1, &options6(17, 1, &udp())))),
        ("routing header", Whole, ipv6(43, &routing6(17, &udp()))),
        ("fragment that is all", Whole, ipv6(44, &fragment6(17, 0, &udp()))),
        ("no next header", Whole, ipv6(59, b"tunnel")),
        ("SYN and FIN", Whole, ipv6(6, &tcp(0x03))),
        ("GRE", Whole, ipv6(47, &[0, 0, 8, 0, 1, 2, 3, 4])),
        ("SCTP", Whole, ipv6(132, &[0x0f, 0xa1, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 4])),
        ("for experiments", Whole, ipv6(253, b"tunnel")),
        ("first fragment", Piece, ipv6(44, &fragment6(17, MORE, &udp()[..24]))),
        ("later fragment", Piece, ipv6(44, &fragment6(17, 3 << 3, b"rest"))),
        ("first fragment without ports", Broken, ipv6(44, &fragment6(60, MORE, &options6(17, 1, &[])))),
        ("longer than is looked at", Broken, ipv6(0, &options6(60, 20, &options6(17, 20, &udp())))),
        ("short UDP", Broken, ipv6(17, &udp()[..5])),
        ("short options", Broken, ipv6(60, &[17, 9, 0, 0])),
    ]
}

fn send(actor: &mut Actor, packet: &[u8]) -> Result<()> {
    actor.step(&format!("hex {}", hexadecimal(packet))).map(drop)
}

fn odd(label: &str, host: &str, expression: &str, packets: &[(&'static str, Kind, Vec<u8>)]) -> Result<()> {
    let mut trial = Trial::new(label)?;
    let pair = &trial.pair;
    let arrived = pair.world.count(expression)?;
    pair.no_rules("OUTPUT")?;
    let mut evil = pair.start(&pair.evil, &["raw", host, "255"])?;
    for (name, kind, packet) in packets {
        // What is sent where nothing forbids it is seen to arrive, but for what is no packet at all.
        send(&mut evil, packet).context(*name)?;
        quiet(pair, &mut trial.friend)?;
        let count = arrived.delta()?;
        ensure!(count == u64::from(*kind != Broken), "{name}: {count} arrived without rules");
    }
    drop(evil);
    for rules in &trial.rules {
        rules.put(pair)?;
        let mut evil = pair.start(&pair.evil, &["raw", host, "255"])?;
        for (name, _, packet) in packets {
            send(&mut evil, packet)?;
            pair.world.wait_queues_empty(harness::Ns::Local)?;
            ensure!(arrived.delta()? == 0, "{name} arrived under {rules:?}");
        }
        evil.finish()?;
        quiet(pair, &mut trial.friend)?;
        ensure!(arrived.delta()? == 0, "a packet arrived late under {rules:?}");
        let mut good = pair.start(&pair.good, &["raw", host, "255"])?;
        for (name, _, packet) in packets.iter().filter(|(_, kind, _)| *kind == Whole) {
            send(&mut good, packet)?;
            wait_until("it arrives", || Ok(arrived.delta()? == 1))
                .with_context(|| format!("{name} of the allowed program under {rules:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn odd_packets_over_ipv4() -> Result<()> {
    odd("odd", "198.51.100.2", &format!("ip id {MARK4}"), &packets4())
}

#[test]
fn odd_packets_over_ipv6() -> Result<()> {
    odd("odd 6", "fd00:af:0:1::2", &format!("ip6 flowlabel {MARK6}"), &packets6())
}
