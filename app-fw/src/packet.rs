//! From bytes to a flow.
//!
//! The kernel hands over the first bytes of a packet, starting at its IP header. Everything in them is hostile. Every
//! header is read through `Bytes`, the one length gate; a packet either yields a [`Packet`] or says which check failed.

pub mod checksum;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use shared::{Flow, Ports, Protocol};

/// What the headers of a packet say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Protocol, addresses, ports.
    pub flow: Flow,
    /// Length of the whole packet in bytes, as the kernel counts it.
    pub length: u32,
    /// What the packet is to attribution, beyond its flow.
    pub about: About,
    /// TCP without a byte of data that opens nothing: an acknowledgement, an end, a reset.
    pub is_bare: bool,
}

/// What a packet is about, where its own flow does not say which socket it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum About {
    /// Its own flow.
    Itself,
    /// An ICMP echo request or reply with this identifier (host byte order): the "port" of an ICMP socket.
    Echo(u16),
    /// An ICMP error: it belongs to the flow of the packet it quotes.
    Quoted(Flow),
}

/// Why a packet has no flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PacketError {
    /// A header contradicts itself or ends before it should.
    #[error("malformed packet: {0}")]
    Malformed(&'static str),
    /// A header reaches beyond what the kernel was asked to copy.
    #[error("the packet's headers are longer than the {0} bytes the kernel copied")]
    HeadersTooLong(usize),
}

/// The bytes at hand of a packet that may be longer.
#[derive(Clone, Copy)]
struct Bytes<'a> {
    bytes: &'a [u8],
    /// The packet has no more bytes than these.
    complete: bool,
}

impl<'a> Bytes<'a> {
    /// `N` bytes at `at`.
    fn at<const N: usize>(&self, at: usize, missing: &'static str) -> Result<[u8; N], PacketError> {
        match at.checked_add(N).and_then(|end| self.bytes.get(at..end)).and_then(|b| b.try_into().ok()) {
            Some(bytes) => Ok(bytes),
            None if self.complete => Err(PacketError::Malformed(missing)),
            None => Err(PacketError::HeadersTooLong(self.bytes.len())),
        }
    }
}

/// RFC 791.
mod ipv4 {
    pub const MIN_HEADER: usize = 20;
    pub const TOTAL_LENGTH: usize = 2;
    pub const FRAGMENT: usize = 6;
    pub const PROTOCOL: usize = 9;
    pub const SOURCE: usize = 12;
    pub const DESTINATION: usize = 16;
    pub const OFFSET_MASK: u16 = 0x1fff;
    pub const MORE_FRAGMENTS: u16 = 0x2000;
}

/// RFC 8200.
mod ipv6 {
    pub const HEADER: usize = 40;
    pub const NEXT_HEADER: usize = 6;
    pub const SOURCE: usize = 8;
    pub const DESTINATION: usize = 24;
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const DESTINATION_OPTIONS: u8 = 60;
    pub const MOBILITY: u8 = 135;
    pub const HIP: u8 = 139;
    pub const SHIM6: u8 = 140;
    /// A packet with more extension headers is nothing a sane sender makes.
    pub const MAX_EXTENSIONS: usize = 16;
}

/// Reads a packet. `length` is its whole length in bytes; `bytes` is its head.
///
/// # Errors
/// The headers make no sense, or reach beyond `bytes`.
pub fn parse(bytes: &[u8], length: u32) -> Result<Packet, PacketError> {
    let bytes = Bytes { bytes, complete: bytes.len() >= length as usize };
    let ip = network(bytes)?;
    let ports = ip.ports(bytes)?;
    let flow = Flow { protocol: ip.protocol, source: ip.source, destination: ip.destination, ports };
    let about = ip.about(bytes)?;
    Ok(Packet { flow, length, about, is_bare: ip.is_bare(bytes, length)? })
}

/// Where the layer-4 header of a packet starts. `None`: the packet makes no sense, or this part of it has none.
pub fn layer4(bytes: &[u8], length: u32) -> Option<usize> {
    let ip = network(Bytes { bytes, complete: bytes.len() >= length as usize }).ok()?;
    (ip.fragment != Fragment::Later).then_some(ip.payload)
}

/// What the IP header and its extensions say.
struct Network {
    protocol: Protocol,
    source: IpAddr,
    destination: IpAddr,
    /// Where the layer-4 header starts.
    payload: usize,
    fragment: Fragment,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fragment {
    Whole,
    First,
    Later,
}

impl Fragment {
    /// `offset` in units of eight bytes.
    fn new(offset: u16, more: bool) -> Fragment {
        match (offset, more) {
            (0, false) => Fragment::Whole,
            (0, true) => Fragment::First,
            _ => Fragment::Later,
        }
    }
}

fn network(bytes: Bytes<'_>) -> Result<Network, PacketError> {
    match bytes.at::<1>(0, "empty packet")?[0] >> 4 {
        4 => network4(bytes),
        6 => network6(bytes),
        _ => Err(PacketError::Malformed("IP version is neither 4 nor 6")),
    }
}

fn network4(bytes: Bytes<'_>) -> Result<Network, PacketError> {
    let header = bytes.at::<{ ipv4::MIN_HEADER }>(0, "IPv4 header ends early")?;
    let header_length = usize::from(header[0] & 0xf) * 4;
    if header_length < ipv4::MIN_HEADER {
        return Err(PacketError::Malformed("IPv4 header length below 20"));
    }
    let total = usize::from(be16(&header, ipv4::TOTAL_LENGTH));
    // Zero is what the kernel writes into segments it has not cut yet and that are longer than the field can say.
    if total != 0 && total < header_length {
        return Err(PacketError::Malformed("IPv4 total length below header length"));
    }
    if bytes.complete && bytes.bytes.len() < header_length {
        return Err(PacketError::Malformed("IPv4 options end early"));
    }
    let fragment = be16(&header, ipv4::FRAGMENT);
    Ok(Network {
        protocol: Protocol(header[ipv4::PROTOCOL]),
        source: IpAddr::V4(Ipv4Addr::from(quad(&header, ipv4::SOURCE))),
        destination: IpAddr::V4(Ipv4Addr::from(quad(&header, ipv4::DESTINATION))),
        payload: header_length,
        fragment: Fragment::new(fragment & ipv4::OFFSET_MASK, fragment & ipv4::MORE_FRAGMENTS != 0),
    })
}

fn network6(bytes: Bytes<'_>) -> Result<Network, PacketError> {
    let header = bytes.at::<{ ipv6::HEADER }>(0, "IPv6 header ends early")?;
    let mut next = header[ipv6::NEXT_HEADER];
    let mut payload = ipv6::HEADER;
    let mut fragment = Fragment::Whole;
    for _ in 0..ipv6::MAX_EXTENSIONS {
        // What follows a fragment that is not the first is no header, whatever the chain says.
        if fragment == Fragment::Later {
            break;
        }
        match next {
            ipv6::HOP_BY_HOP | ipv6::ROUTING | ipv6::DESTINATION_OPTIONS | ipv6::MOBILITY | ipv6::HIP | ipv6::SHIM6 => {
                let [following, length] = bytes.at(payload, "IPv6 extension header ends early")?;
                next = following;
                payload += (usize::from(length) + 1) * 8;
            }
            ipv6::AUTHENTICATION => {
                let [following, length] = bytes.at(payload, "IPv6 authentication header ends early")?;
                next = following;
                payload += (usize::from(length) + 2) * 4;
            }
            ipv6::FRAGMENT => {
                let extension = bytes.at::<8>(payload, "IPv6 fragment header ends early")?;
                let word = be16(&extension, 2);
                next = extension[0];
                payload += 8;
                fragment = Fragment::new(word >> 3, word & 1 != 0);
            }
            protocol => return Ok(Network::v6(&header, protocol, payload, fragment)),
        }
    }
    if fragment == Fragment::Later {
        return Ok(Network::v6(&header, next, payload, fragment));
    }
    Err(PacketError::Malformed("too many IPv6 extension headers"))
}

impl Network {
    fn v6(header: &[u8; ipv6::HEADER], protocol: u8, payload: usize, fragment: Fragment) -> Network {
        let address = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&header[at..at + 16]);
            IpAddr::V6(Ipv6Addr::from(octets))
        };
        Network {
            protocol: Protocol(protocol),
            source: address(ipv6::SOURCE),
            destination: address(ipv6::DESTINATION),
            payload,
            fragment,
        }
    }

    fn ports(&self, bytes: Bytes<'_>) -> Result<Ports, PacketError> {
        if !self.protocol.has_ports() {
            return Ok(Ports::Absent);
        }
        if self.fragment == Fragment::Later {
            return Ok(Ports::Unknown);
        }
        if self.protocol == Protocol::TCP {
            // Also of a first fragment: RFC 1858 has what hides behind a TCP header cut short.
            let header = bytes.at::<20>(self.payload, "TCP header ends early")?;
            if header[12] >> 4 < 5 {
                return Err(PacketError::Malformed("TCP data offset below 5"));
            }
        }
        let ports = bytes.at::<8>(self.payload, "layer-4 header ends early")?;
        Ok(Ports::Known { source: be16(&ports, 0), destination: be16(&ports, 2) })
    }

    fn is_bare(&self, bytes: Bytes<'_>, length: u32) -> Result<bool, PacketError> {
        const SYN: u8 = 2;
        if self.protocol != Protocol::TCP || self.fragment != Fragment::Whole {
            return Ok(false);
        }
        let header = bytes.at::<20>(self.payload, "TCP header ends early")?;
        let data = self.payload + usize::from(header[12] >> 4) * 4;
        Ok(header[13] & SYN == 0 && data >= length as usize)
    }

    fn about(&self, bytes: Bytes<'_>) -> Result<About, PacketError> {
        let icmp =
            matches!((self.protocol, self.source), (Protocol::ICMP, IpAddr::V4(_)) | (Protocol::ICMPV6, IpAddr::V6(_)));
        if !icmp || self.fragment == Fragment::Later {
            return Ok(About::Itself);
        }
        let header = bytes.at::<8>(self.payload, "ICMP header ends early")?;
        Ok(match (self.source, header[0]) {
            // RFC 792: echo reply, echo; RFC 4443: echo request, echo reply.
            (IpAddr::V4(_), 0 | 8) | (IpAddr::V6(_), 128 | 129) => About::Echo(be16(&header, 4)),
            // Destination unreachable, source quench, redirect, time exceeded, parameter problem; in ICMPv6 all errors.
            (IpAddr::V4(_), 3 | 4 | 5 | 11 | 12) | (IpAddr::V6(_), 1..=127) => {
                quoted(bytes, self.payload + 8).map_or(About::Itself, About::Quoted)
            }
            _ => About::Itself,
        })
    }
}

/// The flow of the packet an ICMP error quotes. A quote may be cut after eight bytes of its layer 4: enough for ports.
fn quoted(bytes: Bytes<'_>, at: usize) -> Option<Flow> {
    let inner = Bytes { bytes: bytes.bytes.get(at..)?, complete: true };
    let ip = network(inner).ok()?;
    let ports = match (ip.protocol.has_ports(), ip.fragment) {
        (false, _) => Ports::Absent,
        (true, Fragment::Later) => Ports::Unknown,
        (true, _) => {
            let ports = inner.at::<4>(ip.payload, "").ok()?;
            Ports::Known { source: be16(&ports, 0), destination: be16(&ports, 2) }
        }
    };
    Some(Flow { protocol: ip.protocol, source: ip.source, destination: ip.destination, ports })
}

/// Network byte order. `at` is a constant of a field table and within the header's fixed length.
fn be16(header: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([header[at], header[at + 1]])
}

fn quad(header: &[u8], at: usize) -> [u8; 4] {
    [header[at], header[at + 1], header[at + 2], header[at + 3]]
}

#[cfg(test)]
mod tests;
