//! SHA-256 digests of objects, and the aggregate over an image.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest (FIPS 180-4), written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// Wrong number of digits.
    #[error("a SHA-256 digest has 64 hex digits, this has {0}")]
    Length(usize),
    /// Something that is not a hex digit.
    #[error("{0:?} is not a hex digit: a SHA-256 digest has 64 hex digits")]
    Digit(char),
}

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// The aggregate digest of an image: SHA-256 over the objects' *binary* digests in the order given. The caller
    /// orders them by the path under which each object is mapped.
    pub fn aggregate<'a>(digests: impl IntoIterator<Item = &'a Digest>) -> Digest {
        let mut hash = Sha256::new();
        for digest in digests {
            hash.update(digest.0);
        }
        Digest(hash.finalize().into())
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Digest, DigestError> {
        if let Some(odd) = text.chars().find(|c| !c.is_ascii_hexdigit()) {
            return Err(DigestError::Digit(odd));
        }
        let bytes = text.as_bytes();
        if bytes.len() != 64 {
            return Err(DigestError::Length(bytes.len()));
        }
        let nibble = |c: u8| match c {
            b'0'..=b'9' => c - b'0',
            _ => (c | 0x20) - b'a' + 10,
        };
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(bytes.chunks_exact(2)) {
            *byte = nibble(pair[0]) << 4 | nibble(pair[1]);
        }
        Ok(Digest(digest))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        crate::rule::from_text(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-4 test vector "abc".
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn hex_round_trips() {
        let digest: Digest = ABC.parse().unwrap();
        assert_eq!(digest, Digest::of(b"abc"));
        assert_eq!(digest.to_string(), ABC);
        assert_eq!(ABC.to_uppercase().parse(), Ok(digest));
    }

    #[test]
    fn bad_digests_say_what_is_wrong() {
        assert_eq!("abcd".parse::<Digest>(), Err(DigestError::Length(4)));
        assert_eq!("".parse::<Digest>(), Err(DigestError::Length(0)));
        let odd = ABC.replace('b', "g");
        assert_eq!(odd.parse::<Digest>(), Err(DigestError::Digit('g')));
        assert_eq!("é".repeat(32).parse::<Digest>(), Err(DigestError::Digit('é')));
    }

    #[test]
    fn the_aggregate_is_over_binary_digests_in_order() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let mut joined = a.0.to_vec();
        joined.extend(b.0);
        assert_eq!(Digest::aggregate([&a, &b]), Digest::of(&joined));
        assert_ne!(Digest::aggregate([&a, &b]), Digest::aggregate([&b, &a]));
    }
}
