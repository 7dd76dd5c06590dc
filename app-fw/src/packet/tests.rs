//! Real packet bytes, and what becomes of them when they are cut or bent.

use super::*;
use proptest::prelude::*;

/// `curl http://198.51.100.2:8080/`: a SYN with MSS, SACK, timestamps and window scale.
const TCP4_SYN: [u8; 60] = [
    0x45, 0x00, 0x00, 0x3c, 0x9c, 0x40, 0x40, 0x00, 0x40, 0x06, 0x52, 0x1b, 0xc6, 0x33, 0x64, 0x01, 0xc6, 0x33, 0x64,
    0x02, 0xd4, 0x31, 0x1f, 0x90, 0x5a, 0x2e, 0x11, 0x07, 0x00, 0x00, 0x00, 0x00, 0xa0, 0x02, 0xfa, 0xf0, 0x50, 0x9c,
    0x00, 0x00, 0x02, 0x04, 0x05, 0xb4, 0x04, 0x02, 0x08, 0x0a, 0x8d, 0x2a, 0x6f, 0x11, 0x00, 0x00, 0x00, 0x00, 0x01,
    0x03, 0x03, 0x07,
];

/// A DNS query from ::1 to ::1 port 53.
const UDP6: [u8; 52] = [
    0x60, 0x0a, 0x11, 0x22, 0x00, 0x0c, 0x11, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xc3, 0x50, 0x00, 0x35, 0x00, 0x0c, 0x00, 0x1f, b'a', b'b', b'c', b'd',
];

fn ports(source: u16, destination: u16) -> Ports {
    Ports::Known { source, destination }
}

fn whole(bytes: &[u8]) -> Result<Packet, PacketError> {
    parse(bytes, bytes.len() as u32)
}

#[test]
fn tcp_over_ipv4() {
    let packet = whole(&TCP4_SYN).unwrap();
    assert_eq!(packet.flow.protocol, Protocol::TCP);
    assert_eq!(packet.flow.source.to_string(), "198.51.100.1");
    assert_eq!(packet.flow.destination.to_string(), "198.51.100.2");
    assert_eq!(packet.flow.ports, ports(54321, 8080));
    assert_eq!(packet.about, About::Itself);
    assert_eq!(packet.length, 60);
}

#[test]
fn udp_over_ipv6() {
    let packet = whole(&UDP6).unwrap();
    assert_eq!(packet.flow.protocol, Protocol::UDP);
    assert_eq!(packet.flow.source.to_string(), "::1");
    assert_eq!(packet.flow.ports, ports(50000, 53));
}

#[test]
fn the_head_of_a_long_packet_is_enough() {
    let mut bytes = TCP4_SYN;
    bytes[2..4].copy_from_slice(&64000u16.to_be_bytes());
    assert_eq!(parse(&bytes, 64000).unwrap().flow.ports, ports(54321, 8080));
    // A segment longer than the field can say.
    bytes[2..4].copy_from_slice(&[0, 0]);
    assert_eq!(parse(&bytes, 100_000).unwrap().flow.ports, ports(54321, 8080));
}

#[test]
fn a_cut_packet_is_malformed_and_a_cut_copy_is_too_short() {
    for length in 0..40 {
        assert!(matches!(whole(&TCP4_SYN[..length]), Err(PacketError::Malformed(_))), "{length}");
        assert_eq!(parse(&TCP4_SYN[..length], 60), Err(PacketError::HeadersTooLong(length)), "{length}");
    }
    assert!(whole(&TCP4_SYN[..40]).is_ok());
    for length in 0..48 {
        assert!(matches!(whole(&UDP6[..length]), Err(PacketError::Malformed(_))), "{length}");
    }
}

#[test]
fn nonsense_headers_are_malformed() {
    let bent = |at: usize, value: u8| {
        let mut bytes = TCP4_SYN;
        bytes[at] = value;
        whole(&bytes)
    };
    assert_eq!(bent(0, 0x55), Err(PacketError::Malformed("IP version is neither 4 nor 6")));
    assert_eq!(bent(0, 0x44), Err(PacketError::Malformed("IPv4 header length below 20")));
    assert_eq!(bent(3, 19), Err(PacketError::Malformed("IPv4 total length below header length")));
    assert_eq!(bent(32, 0x40), Err(PacketError::Malformed("TCP data offset below 5")));
    // A header length of 60 puts the TCP header beyond the end.
    assert_eq!(bent(0, 0x4f), Err(PacketError::Malformed("TCP header ends early")));
}

#[test]
fn ipv4_options_are_stepped_over() {
    let mut bytes = vec![0x46];
    bytes.extend(&TCP4_SYN[1..20]);
    bytes.extend([0x94, 0x04, 0, 0]); // router alert, RFC 2113
    bytes.extend(&TCP4_SYN[20..]);
    assert_eq!(whole(&bytes).unwrap().flow.ports, ports(54321, 8080));
}

#[test]
fn later_fragments_have_no_ports() {
    let mut bytes = TCP4_SYN;
    bytes[6..8].copy_from_slice(&100u16.to_be_bytes());
    assert_eq!(whole(&bytes).unwrap().flow.ports, Ports::Unknown);
    bytes[6..8].copy_from_slice(&0x2000u16.to_be_bytes());
    assert_eq!(whole(&bytes).unwrap().flow.ports, ports(54321, 8080));
    // A first fragment too short for its TCP header hides what it is.
    assert!(matches!(whole(&bytes[..36]), Err(PacketError::Malformed(_))));
}

fn extended(chain: &[(u8, &[u8])], last: u8) -> Vec<u8> {
    let mut bytes = UDP6[..40].to_vec();
    bytes[6] = chain.first().map_or(last, |(kind, _)| *kind);
    for (index, (_, body)) in chain.iter().enumerate() {
        bytes.push(chain.get(index + 1).map_or(last, |(kind, _)| *kind));
        bytes.extend(*body);
    }
    bytes.extend(&UDP6[40..]);
    bytes
}

#[test]
fn ipv6_extensions_are_stepped_over() {
    let hop: &[u8] = &[0, 5, 2, 0, 0, 1, 0];
    let first_fragment: &[u8] = &[0, 0, 1, 1, 2, 3, 4];
    let later_fragment: &[u8] = &[0, 0, 9, 1, 2, 3, 4];
    let authentication: &[u8] = &[1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1];
    for chain in [&[(0, hop)][..], &[(0, hop), (60, hop), (43, hop)], &[(44, first_fragment)], &[(51, authentication)]]
    {
        assert_eq!(whole(&extended(chain, 17)).unwrap().flow.ports, ports(50000, 53), "{chain:?}");
    }
    let later = whole(&extended(&[(0, hop), (44, later_fragment)], 17)).unwrap();
    assert_eq!((later.flow.protocol, later.flow.ports), (Protocol::UDP, Ports::Unknown));
    // What follows a later fragment's header is no header, even if it is announced as one.
    let later = whole(&extended(&[(44, later_fragment)], 60)).unwrap();
    assert_eq!(later.flow.protocol, Protocol(60));
}

#[test]
fn endless_ipv6_extensions_are_malformed() {
    let hop: &[u8] = &[0, 5, 2, 0, 0, 1, 0];
    let chain = vec![(60, hop); 40];
    assert_eq!(whole(&extended(&chain, 17)), Err(PacketError::Malformed("too many IPv6 extension headers")));
}

#[test]
fn echo_has_an_identifier() {
    let mut bytes = TCP4_SYN[..28].to_vec();
    bytes[9] = 1;
    bytes[20..28].copy_from_slice(&[8, 0, 0, 0, 0x12, 0x34, 0, 1]);
    let packet = whole(&bytes).unwrap();
    assert_eq!((packet.flow.ports, packet.about), (Ports::Absent, About::Echo(0x1234)));
    let mut bytes = UDP6[..48].to_vec();
    bytes[6] = 58;
    bytes[40..48].copy_from_slice(&[128, 0, 0, 0, 0x43, 0x21, 0, 1]);
    assert_eq!(whole(&bytes).unwrap().about, About::Echo(0x4321));
}

#[test]
fn icmp_errors_quote_a_flow() {
    let mut bytes = TCP4_SYN[..20].to_vec();
    bytes[9] = 1;
    bytes.extend([3, 4, 0, 0, 0, 0, 5, 0]);
    bytes.extend(&TCP4_SYN[..28]); // the quote ends eight bytes into its TCP header
    let About::Quoted(flow) = whole(&bytes).unwrap().about else { panic!("no quote") };
    assert_eq!((flow.protocol, flow.ports), (Protocol::TCP, ports(54321, 8080)));
    // A quote without ports is none.
    bytes.truncate(50);
    assert_eq!(whole(&bytes).unwrap().about, About::Itself);
}

proptest! {
    #[test]
    fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), more in 0u32..100) {
        let _ = parse(&bytes, bytes.len() as u32 + more);
    }

    #[test]
    fn nothing_panics_behind_a_good_start(
        version in prop_oneof![Just(0x45u8), Just(0x46), Just(0x4f), Just(0x60)],
        next in any::<u8>(),
        rest in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut bytes = vec![version];
        bytes.extend(rest);
        for at in [6, 9] {
            if let Some(byte) = bytes.get_mut(at) { *byte = next }
        }
        let _ = whole(&bytes);
    }
}
