//! What a packet says about itself: protocol, addresses, ports.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A layer-4 protocol number as in the IPv4 header or the last IPv6 next-header field (IANA "Protocol Numbers").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP for IPv4.
    pub const ICMP: Protocol = Protocol(1);
    /// TCP.
    pub const TCP: Protocol = Protocol(6);
    /// UDP.
    pub const UDP: Protocol = Protocol(17);
    /// DCCP.
    pub const DCCP: Protocol = Protocol(33);
    /// GRE.
    pub const GRE: Protocol = Protocol(47);
    /// ICMP for IPv6.
    pub const ICMPV6: Protocol = Protocol(58);
    /// SCTP.
    pub const SCTP: Protocol = Protocol(132);
    /// UDP-Lite.
    pub const UDPLITE: Protocol = Protocol(136);
    /// `IPPROTO_RAW`: what a raw socket says that writes whole IP headers.
    pub const RAW: Protocol = Protocol(255);

    /// Whether the first four bytes of the protocol's header are the source and destination port.
    pub fn has_ports(self) -> bool {
        matches!(self, Protocol::TCP | Protocol::UDP | Protocol::UDPLITE | Protocol::SCTP | Protocol::DCCP)
    }
}

const PROTOCOL_NAMES: [(Protocol, &str); 8] = [
    (Protocol::ICMP, "icmp"),
    (Protocol::TCP, "tcp"),
    (Protocol::UDP, "udp"),
    (Protocol::DCCP, "dccp"),
    (Protocol::GRE, "gre"),
    (Protocol::ICMPV6, "icmpv6"),
    (Protocol::SCTP, "sctp"),
    (Protocol::UDPLITE, "udplite"),
];

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PROTOCOL_NAMES.iter().find(|(protocol, _)| protocol == self) {
            Some((_, name)) => f.pad(name),
            None => fmt::Display::fmt(&self.0, f),
        }
    }
}

/// Why a text is not a protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no protocol: a number from 0 to 255, or one of icmp, tcp, udp, dccp, gre, icmpv6, sctp, udplite")]
pub struct ProtocolError(String);

impl FromStr for Protocol {
    type Err = ProtocolError;

    fn from_str(text: &str) -> Result<Protocol, ProtocolError> {
        let lower = text.to_ascii_lowercase();
        match PROTOCOL_NAMES.iter().find(|(_, name)| *name == lower) {
            Some((protocol, _)) => Ok(*protocol),
            None => text.parse().map(Protocol).map_err(|_| ProtocolError(text.into())),
        }
    }
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Protocol, D::Error> {
        crate::rule::from_text(deserializer)
    }
}

/// What is known of a packet's ports.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ports {
    /// The protocol has none.
    Absent,
    /// The protocol has some, but this packet does not carry them: a fragment that is not the first.
    Unknown,
    /// Host byte order.
    Known {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
}

/// A packet's protocol, addresses and ports, as in its headers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flow {
    /// Layer-4 protocol.
    pub protocol: Protocol,
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family as `source`.
    pub destination: IpAddr,
    /// Ports, where the protocol has them.
    pub ports: Ports,
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ports {
            Ports::Known { source, destination } => write!(
                f,
                "{} {} -> {}",
                self.protocol,
                std::net::SocketAddr::new(self.source, source),
                std::net::SocketAddr::new(self.destination, destination)
            ),
            _ => write!(f, "{} {} -> {}", self.protocol, self.source, self.destination),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_have_names_and_numbers() {
        for number in 0..=255 {
            let protocol = Protocol(number);
            assert_eq!(protocol.to_string().parse(), Ok(protocol));
            assert_eq!(number.to_string().parse(), Ok(protocol));
        }
        assert_eq!("TCP".parse(), Ok(Protocol::TCP));
        assert!("256".parse::<Protocol>().is_err());
        assert!("".parse::<Protocol>().is_err());
        assert!("-1".parse::<Protocol>().is_err());
    }
}
