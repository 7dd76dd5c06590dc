//! REJECT: what the sender of a packet is told instead.
//!
//! TCP gets a reset (RFC 9293, 3.10.7.1), everything else an ICMP error: port unreachable, as iptables has it. A packet of
//! this machine that has not left yet is *turned into* its answer and let go: the kernel routes it to the sender, whose
//! call fails at once. Nothing is sent besides, so nothing has to be kept from being judged itself.
//!
//! A packet of a container has left its machine, so to speak: its socket is ended instead ([`Envoy`]).

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};
use shared::{Flow, Ports, Protocol};

use crate::attribute::diag::{Diag, Tuple};
use crate::namespaces::Namespace;
use crate::packet::checksum::{finish, pseudo, sum};
use crate::packet::{About, Packet, layer4};

/// Header without options.
const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP: usize = 20;
/// An ICMP error before what it quotes.
const ICMP: usize = 8;
/// Bytes of the rejected packet that an error quotes at most: all of its headers that matter to the socket.
const QUOTED: usize = 128;

/// RFC 792 and RFC 4443: destination unreachable, port unreachable.
const ICMP_UNREACHABLE: [u8; 2] = [3, 3];
const ICMPV6_UNREACHABLE: [u8; 2] = [1, 4];

/// RFC 9293, 3.1.
mod flags {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;
}

/// The packet that tells the sender of `bytes`, the head of `packet`. `None` if there is nobody to tell (RFC 1122, 3.2.2):
/// it went to many, is an error or a reset itself, or a fragment that is not the first.
pub fn answer(packet: &Packet, bytes: &[u8]) -> Option<Vec<u8>> {
    let flow = &packet.flow;
    let is_broadcast = matches!(flow.destination, IpAddr::V4(address) if address.is_broadcast());
    if flow.destination.is_multicast() || is_broadcast || flow.source.is_unspecified() || flow.source.is_multicast() {
        return None;
    }
    let start = layer4(bytes, packet.length)?;
    if flow.protocol == Protocol::TCP {
        let segment = bytes.get(start..)?.first_chunk::<TCP>()?;
        let reset = reset(segment, packet.length.checked_sub(start as u32)?)?;
        // From where it was going.
        return Some(addressed(flow.destination, flow.source, Protocol::TCP, &reset, 16));
    }
    let is_error = match (packet.about, flow.protocol) {
        (About::Echo(_), _) => false,
        (_, Protocol::ICMP | Protocol::ICMPV6) => true,
        _ => false,
    };
    if is_error {
        return None;
    }
    let (protocol, kind) = match flow.source {
        IpAddr::V4(_) => (Protocol::ICMP, ICMP_UNREACHABLE),
        IpAddr::V6(_) => (Protocol::ICMPV6, ICMPV6_UNREACHABLE),
    };
    let mut error = [0; ICMP].to_vec();
    error[..2].copy_from_slice(&kind);
    error.extend(&bytes[..bytes.len().min(start + QUOTED)]);
    // It comes from this machine, not from where the packet was going.
    Some(addressed(flow.source, flow.source, protocol, &error, 2))
}

/// Whether an address is this namespace's own. An answer to any other would leave the machine, and whoever may forge a
/// source address could send what he likes in it.
pub fn is_own(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// The reset that fits a segment of so many bytes, header included, without its checksum.
fn reset(segment: &[u8; TCP], length: u32) -> Option<[u8; TCP]> {
    let flags = segment[13];
    if flags & flags::RST != 0 {
        return None;
    }
    let data = length.checked_sub(u32::from(segment[12] >> 4) * 4)?;
    let sequence = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
    let mut reset = [0; TCP];
    reset[0..2].copy_from_slice(&segment[2..4]);
    reset[2..4].copy_from_slice(&segment[0..2]);
    reset[12] = (TCP as u8 / 4) << 4;
    if flags & flags::ACK != 0 {
        reset[4..8].copy_from_slice(&segment[8..12]);
        reset[13] = flags::RST;
    } else {
        let controls = u32::from(flags & flags::SYN != 0) + u32::from(flags & flags::FIN != 0);
        let next = sequence.wrapping_add(data).wrapping_add(controls);
        reset[8..12].copy_from_slice(&next.to_be_bytes());
        reset[13] = flags::RST | flags::ACK;
    }
    Some(reset)
}

/// Puts an IP header before `body`, and fills in its checksum at `at`.
fn addressed(source: IpAddr, destination: IpAddr, protocol: Protocol, body: &[u8], at: usize) -> Vec<u8> {
    const TTL: u8 = 64;
    let (mut packet, start) = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = (IPV4 + body.len()) as u16;
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, TTL, protocol.0, 0, 0];
            header[2..4].copy_from_slice(&total.to_be_bytes());
            header.extend(source.octets());
            header.extend(destination.octets());
            let checksum = finish(sum(&header, 0));
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            (header, IPV4)
        }
        (source, destination) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, protocol.0, TTL];
            header[4..6].copy_from_slice(&(body.len() as u16).to_be_bytes());
            for address in [source, destination] {
                match address {
                    IpAddr::V6(address) => header.extend(address.octets()),
                    IpAddr::V4(address) => header.extend(address.to_ipv6_mapped().octets()),
                }
            }
            (header, IPV6)
        }
    };
    packet.extend(body);
    // ICMP for IPv4 alone leaves the addresses out.
    let begin = match (protocol, start) {
        (Protocol::ICMP, _) => 0,
        (_, IPV4) => pseudo(&packet[12..IPV4], protocol.0, body.len()),
        _ => pseudo(&packet[8..IPV6], protocol.0, body.len()),
    };
    let checksum = finish(sum(&packet[start..], begin));
    packet[start + at..start + at + 2].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// Sockets that wait to be ended. More are told nothing: their packets are dropped all the same.
const WAITING: usize = 256;

/// Ends sockets in other namespaces, where packets cannot be turned back: `SOCK_DESTROY` of linux/sock_diag.h.
#[derive(Clone)]
pub struct Envoy(Sender<(Arc<Namespace>, Flow)>);

impl Envoy {
    /// Starts a thread, which ends with the last envoy.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start() -> io::Result<Envoy> {
        let (envoy, orders) = bounded(WAITING);
        std::thread::Builder::new().name("rejections".into()).spawn(move || serve(&orders))?;
        Ok(Envoy(envoy))
    }

    /// Has the socket ended that sent a packet of this flow. Never waits.
    pub fn send(&self, namespace: &Arc<Namespace>, flow: Flow) {
        let _ = self.0.try_send((namespace.clone(), flow));
    }
}

fn serve(orders: &Receiver<(Arc<Namespace>, Flow)>) {
    for (namespace, flow) in orders {
        let Ports::Known { source, destination } = flow.ports else { continue };
        let tuple =
            Tuple { local: flow.source, local_port: source, remote: flow.destination, remote_port: destination };
        let ended = namespace.inside(|| Diag::open()?.destroy(flow.protocol, &tuple));
        if let Err(error) = ended.and_then(|ended| ended) {
            tracing::debug!("the socket of {flow} in {} could not be ended: {error}", namespace.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::parse;
    use proptest::prelude::*;

    /// TCP 10.0.0.1:1000 -> 10.0.0.2:80.
    fn segment(flags: u8, data: usize) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend([0x03, 0xe8, 0, 80, 0, 0, 0, 100, 0, 0, 0, 200, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        packet.resize(40 + data, 7);
        packet
    }

    fn answered(bytes: &[u8]) -> Option<Vec<u8>> {
        let packet = parse(bytes, bytes.len() as u32).unwrap();
        answer(&packet, bytes)
    }

    #[test]
    fn a_connection_that_begins_is_refused() {
        let reset = answered(&segment(flags::SYN, 3)).unwrap();
        assert_eq!(reset[12..20], [10, 0, 0, 2, 10, 0, 0, 1]);
        assert_eq!(reset[20..24], [0, 80, 0x03, 0xe8]);
        // Sequence 0; what is acknowledged: 100, SYN, three bytes.
        assert_eq!(reset[24..34], [0, 0, 0, 0, 0, 0, 0, 104, 0x50, flags::RST | flags::ACK]);
        assert_eq!(finish(sum(&reset[..20], 0)), 0);
        assert_eq!(finish(sum(&reset[20..], pseudo(&reset[12..20], 6, 20))), 0);
    }

    #[test]
    fn a_connection_under_way_is_reset_where_its_sender_waits() {
        let reset = answered(&segment(flags::ACK, 9)).unwrap();
        assert_eq!(reset[24..34], [0, 0, 0, 200, 0, 0, 0, 0, 0x50, flags::RST]);
    }

    #[test]
    fn a_datagram_is_unreachable() {
        let mut datagram = vec![0x45, 0, 0, 33, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        datagram.extend([0x03, 0xe8, 0x07, 0xd0, 0, 13, 0, 0]);
        datagram.extend(b"hello");
        let error = answered(&datagram).unwrap();
        assert_eq!((error[9], &error[12..20], &error[20..22]), (1, &[10, 0, 0, 1, 10, 0, 0, 1][..], &[3, 3][..]));
        assert_eq!(error[28..], datagram);
        assert_eq!(finish(sum(&error[20..], 0)), 0);
        let About::Quoted(quoted) = parse(&error, error.len() as u32).unwrap().about else { panic!("no error") };
        assert_eq!(quoted, parse(&datagram, 33).unwrap().flow);
    }

    #[test]
    fn own_addresses() {
        assert!(is_own("127.0.0.1".parse().unwrap()));
        assert!(!is_own("192.0.2.77".parse().unwrap()) && !is_own("2001:db8::77".parse().unwrap()));
    }

    #[test]
    fn the_same_over_ipv6() {
        let mut datagram = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
        datagram.extend([[0u8; 15].as_slice(), &[1], &[0; 15], &[2]].concat());
        datagram.extend([0x03, 0xe8, 0x07, 0xd0, 0, 8, 0, 0]);
        let error = answered(&datagram).unwrap();
        assert_eq!((error[6], &error[40..42]), (58, &[1, 4][..]));
        assert_eq!(error[8..24], error[24..40]);
        assert_eq!(finish(sum(&error[40..], pseudo(&error[8..40], 58, error.len() - 40))), 0);
    }

    #[test]
    fn nobody_is_told_of_resets_errors_and_what_goes_to_many() {
        assert_eq!(answered(&segment(flags::RST, 0)), None);
        let mut many = segment(flags::SYN, 0);
        many[16] = 224;
        assert_eq!(answered(&many), None);
        many[16..20].copy_from_slice(&[255; 4]);
        assert_eq!(answered(&many), None);
        let mut datagram = segment(0, 0);
        datagram[9] = 17;
        let error = answered(&datagram).unwrap();
        assert_eq!(answered(&error), None);
        datagram[7] = 1;
        assert_eq!(answered(&datagram), None);
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), more in 0..70_000u32) {
            let length = bytes.len() as u32 + more;
            if let Ok(packet) = parse(&bytes, length) {
                let _ = answer(&packet, &bytes);
            }
        }
    }
}
