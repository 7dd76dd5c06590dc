//! The checksum of IP, TCP, UDP and ICMP: RFC 1071.

/// Adds 16-bit words to a sum, without the final complement. An odd byte at the end counts as if a zero followed.
pub fn sum(bytes: &[u8], start: u32) -> u32 {
    let fold = |sum: u32| (sum & 0xffff) + (sum >> 16);
    let mut pairs = bytes.chunks_exact(2);
    let words = pairs.by_ref().map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let total = words.fold(start, |sum, word| fold(sum + word));
    let odd = pairs.remainder().first().map_or(0, |byte| u32::from(*byte) << 8);
    fold(fold(total + odd))
}

/// The checksum of what was added up.
pub fn finish(sum: u32) -> u16 {
    !(sum as u16)
}

/// What the header of TCP, UDP or ICMPv6 has its checksum begin with: addresses of one family, both 4 or both 16 bytes,
/// the protocol, and the length from there on.
pub fn pseudo(addresses: &[u8], protocol: u8, length: usize) -> u32 {
    sum(addresses, u32::from(protocol) + (length >> 16) as u32 + (length & 0xffff) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7], 0), 0xddf2);
        assert_eq!(finish(0xddf2), 0x220d);
        assert_eq!(sum(&[0xff], 0), 0xff00);
        assert_eq!(sum(&[0xff; 6], 1), 1);
    }
}
