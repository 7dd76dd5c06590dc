//! Signatures on IPv4 packets, in the format of the published prototype ("format 1"): an IP option with the HMAC-SHA256
//! of the layer-4 payload.
//!
//! The option has type 94 (0x5e, experimental) and length 34, and is padded with a NOP and an end-of-list byte; other IP
//! options are removed. The key is the bytes of the secret file. What is signed: for TCP what follows its header, for UDP
//! what follows its 8 bytes, for ICMP the type and code, for other protocols everything after the IP header. An empty
//! payload is signed too. Nothing binds the signature to the flow, and nothing stops a replay.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use shared::{Chain, Protocol, Reason};

use crate::packet::checksum::{finish, pseudo, sum};

const OPTION: u8 = 0x5e;
const OPTION_LENGTH: usize = 34;
const NOP: u8 = 1;
const END: u8 = 0;
const HEADER: usize = 20;
/// The option with its padding.
const AREA: usize = 36;
const SIGNED_HEADER: usize = HEADER + AREA;
/// A shorter secret could be guessed.
const MIN_SECRET: usize = 16;
/// A longer one is no secret but some other file.
const MAX_SECRET: u64 = 1 << 20;

/// Why a secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("secret {path}: {error}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// Somebody else may know it.
    #[error("secret {path}: others can read it (mode {mode:04o}); it must be readable by its owner only: chmod 600", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Too short or too long.
    #[error("secret {path}: {length} bytes; from 16 bytes to 1 MiB are wanted", path = path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length, bytes.
        length: u64,
    },
}

/// Signs and validates.
pub struct Signatures {
    key: Hmac<Sha256>,
    sign: bool,
    validate_input: bool,
    validate_forward: bool,
}

/// What is done with signatures.
#[derive(Clone, Copy, Debug)]
pub struct Uses {
    /// Sign what OUTPUT accepts.
    pub sign: bool,
    /// Validate on INPUT.
    pub validate_input: bool,
    /// Validate on FORWARD.
    pub validate_forward: bool,
}

impl Signatures {
    /// Reads the secret.
    ///
    /// # Errors
    /// See [`SecretError`].
    pub fn read(path: &Path, uses: Uses) -> Result<Signatures, SecretError> {
        let failed = |error| SecretError::Read { path: path.into(), error };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(SecretError::Open { path: path.into(), mode });
        }
        let mut secret = Vec::new();
        file.take(MAX_SECRET + 1).read_to_end(&mut secret).map_err(failed)?;
        let length = secret.len() as u64;
        if secret.len() < MIN_SECRET || length > MAX_SECRET {
            return Err(SecretError::Length { path: path.into(), length });
        }
        Ok(Signatures::new(&secret, uses))
    }

    fn new(secret: &[u8], uses: Uses) -> Signatures {
        // HMAC takes keys of any length (RFC 2104): longer ones are hashed first.
        let key = Hmac::<Sha256>::new_from_slice(secret).unwrap_or_else(|_| unreachable!("HMAC refused a key length"));
        let Uses { sign, validate_input, validate_forward } = uses;
        Signatures { key, sign, validate_input, validate_forward }
    }

    /// Whether accepted outgoing packets are signed.
    pub fn signs(&self) -> bool {
        self.sign
    }

    /// Whether packets of this chain must carry a good signature.
    pub fn validates(&self, chain: Chain) -> bool {
        match chain {
            Chain::Output => false,
            Chain::Input => self.validate_input,
            Chain::Forward => self.validate_forward,
        }
    }

    /// The packet with its signature. `bytes` must be the whole packet of `length` bytes; `checksum_missing`: its layer-4
    /// checksum has not been filled in.
    ///
    /// # Errors
    /// It cannot carry one.
    pub fn sign(&self, bytes: &[u8], length: u32, checksum_missing: bool) -> Result<Vec<u8>, Reason> {
        let packet = Signable::new(bytes, length).ok_or(Reason::SignatureNoRoom)?;
        let total = SIGNED_HEADER + packet.body.len();
        // The netlink attribute that carries it back counts its own four bytes in as many bits.
        let total_field = u16::try_from(total).ok().filter(|total| *total <= u16::MAX - 4);
        let total_field = total_field.ok_or(Reason::SignatureNoRoom)?;
        let payload = packet.payload().ok_or(Reason::SignatureNoRoom)?;
        let mut signed = Vec::with_capacity(total);
        signed.extend(packet.header.get(..HEADER).ok_or(Reason::SignatureNoRoom)?);
        signed.extend([OPTION, OPTION_LENGTH as u8]);
        signed.extend(self.key.clone().chain_update(payload).finalize().into_bytes());
        signed.extend([NOP, END]);
        signed.extend(packet.body);
        signed[0] = 0x40 | (SIGNED_HEADER / 4) as u8;
        signed[2..4].copy_from_slice(&total_field.to_be_bytes());
        signed[10..12].copy_from_slice(&[0, 0]);
        let sum = finish(sum(&signed[..SIGNED_HEADER], 0));
        signed[10..12].copy_from_slice(&sum.to_be_bytes());
        fill_checksum(&mut signed, packet.protocol, checksum_missing);
        Ok(signed)
    }

    /// Checks a packet's signature. `bytes` must be the whole packet of `length` bytes.
    ///
    /// # Errors
    /// It carries none, or a wrong one.
    pub fn validate(&self, bytes: &[u8], length: u32) -> Result<(), Reason> {
        let packet = Signable::new(bytes, length).ok_or(Reason::SignatureMissing)?;
        let signature = packet.signature().ok_or(Reason::SignatureMissing)?;
        let payload = packet.payload().ok_or(Reason::SignatureWrong)?;
        // Takes the same time whatever the difference.
        self.key.clone().chain_update(payload).verify_slice(signature).map_err(|_| Reason::SignatureWrong)
    }
}

/// A whole IPv4 packet, no fragment.
struct Signable<'a> {
    header: &'a [u8],
    body: &'a [u8],
    protocol: Protocol,
}

impl<'a> Signable<'a> {
    fn new(bytes: &'a [u8], length: u32) -> Option<Signable<'a>> {
        let fixed: &[u8; HEADER] = bytes.first_chunk()?;
        let header_length = usize::from(fixed[0] & 0xf) * 4;
        let total = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        let fragment = u16::from_be_bytes([fixed[6], fixed[7]]) & 0x3fff;
        let is_whole = fixed[0] >> 4 == 4 && header_length >= HEADER && fragment == 0 && length as usize == bytes.len();
        if !is_whole || total > bytes.len() {
            return None;
        }
        let header = bytes.get(..header_length)?;
        Some(Signable { header, body: bytes.get(header_length..total)?, protocol: Protocol(fixed[9]) })
    }

    /// What is signed.
    fn payload(&self) -> Option<&'a [u8]> {
        match self.protocol {
            Protocol::TCP => self.body.get(usize::from(self.body.get(12)? >> 4) * 4..),
            Protocol::UDP => self.body.get(8..),
            Protocol::ICMP => self.body.get(..2),
            _ => Some(self.body),
        }
    }

    fn signature(&self) -> Option<&'a [u8]> {
        let mut options = self.header.get(HEADER..)?;
        loop {
            match options {
                [] | [END, ..] => return None,
                [NOP, rest @ ..] => options = rest,
                [kind, length, ..] => {
                    let option = options.get(..usize::from(*length)).filter(|option| option.len() >= 2)?;
                    if *kind == OPTION && option.len() == OPTION_LENGTH {
                        return option.get(2..);
                    }
                    options = options.get(option.len()..)?;
                }
                [_] => return None,
            }
        }
    }
}

/// Fills in the TCP or UDP checksum of a signed packet. It is the same as before, for the header it covers is the same;
/// but the kernel may have left it to a device which no longer does it.
fn fill_checksum(packet: &mut [u8], protocol: Protocol, missing: bool) {
    let at = match protocol {
        Protocol::TCP => 16,
        Protocol::UDP => 6,
        _ => return,
    };
    let pseudo = pseudo(&packet[12..20], protocol.0, packet.len() - SIGNED_HEADER);
    let Some(body) = packet.get_mut(SIGNED_HEADER..) else { return };
    let Some(field) = body.get_mut(at..at + 2) else { return };
    // A UDP packet may go without.
    if !missing && protocol == Protocol::UDP && field == [0, 0] {
        return;
    }
    field.copy_from_slice(&[0, 0]);
    let checksum = match finish(sum(body, pseudo)) {
        0 if protocol == Protocol::UDP => 0xffff,
        checksum => checksum,
    };
    body[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef";

    fn signatures() -> Signatures {
        Signatures::new(SECRET, Uses { sign: true, validate_input: true, validate_forward: false })
    }

    /// UDP 10.0.0.1:1000 -> 10.0.0.2:2000 "hello", without checksum.
    fn udp() -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 33, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend([0x03, 0xe8, 0x07, 0xd0, 0, 13, 0, 0]);
        packet.extend(b"hello");
        packet
    }

    fn check(packet: &[u8]) -> Result<(), Reason> {
        signatures().validate(packet, packet.len() as u32)
    }

    #[test]
    fn the_format_is_byte_for_byte_as_described() {
        let signed = signatures().sign(&udp(), 33, true).unwrap();
        assert_eq!(signed[0], 0x4e);
        assert_eq!(u16::from_be_bytes([signed[2], signed[3]]), 33 + 36);
        assert_eq!(signed[20..22], [0x5e, 34]);
        // printf hello | openssl dgst -sha256 -hmac 0123456789abcdef
        let expected = Hmac::<Sha256>::new_from_slice(SECRET).unwrap().chain_update(b"hello").finalize().into_bytes();
        assert_eq!(signed[22..54], expected[..]);
        assert_eq!(signed[54..56], [1, 0]);
        assert_eq!(signed[56..64], [0x03, 0xe8, 0x07, 0xd0, 0, 13, signed[62], signed[63]]);
        assert_eq!(&signed[64..], b"hello");
        // Both checksums are right: summing over them gives all ones.
        assert_eq!(finish(sum(&signed[..56], 0)), 0);
        assert_eq!(finish(sum(&signed[56..], sum(&signed[12..20], 17 + 13))), 0);
        assert_eq!(check(&signed), Ok(()));
    }

    #[test]
    fn what_was_changed_or_not_signed_is_refused() {
        let signed = signatures().sign(&udp(), 33, true).unwrap();
        assert_eq!(check(&udp()), Err(Reason::SignatureMissing));
        for at in [22, 53, 64, 68] {
            let mut bent = signed.clone();
            bent[at] ^= 1;
            assert_eq!(check(&bent), Err(Reason::SignatureWrong), "{at}");
        }
        let other = Signatures::new(
            b"another secret, long",
            Uses { sign: false, validate_input: true, validate_forward: true },
        );
        assert_eq!(other.validate(&signed, signed.len() as u32), Err(Reason::SignatureWrong));
        for length in 0..signed.len() {
            assert!(check(&signed[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn existing_options_are_removed_and_empty_payloads_signed() {
        let mut packet = vec![0x46, 0, 0, 32, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x94, 4, 0, 0];
        packet.extend([0x03, 0xe8, 0x07, 0xd0, 0, 8, 0, 0]);
        let signed = signatures().sign(&packet, 32, true).unwrap();
        assert_eq!(signed.len(), 56 + 8);
        assert_eq!(check(&signed), Ok(()));
    }

    #[test]
    fn what_cannot_carry_a_signature_says_so() {
        let sign = |packet: &[u8], length: u32| signatures().sign(packet, length, false).err();
        let mut fragment = udp();
        fragment[6] = 0x20;
        let mut v6 = udp();
        v6[0] = 0x60;
        for packet in [&fragment, &v6] {
            assert_eq!(sign(packet, 33), Some(Reason::SignatureNoRoom));
        }
        assert_eq!(sign(&udp(), 34), Some(Reason::SignatureNoRoom));
        assert_eq!(sign(&[], 0), Some(Reason::SignatureNoRoom));
        let mut long = udp();
        long.resize(65_500, 0);
        long[2..4].copy_from_slice(&65_500u16.to_be_bytes());
        assert_eq!(sign(&long, 65_500), Some(Reason::SignatureNoRoom));
    }

    #[test]
    fn secrets_others_can_read_or_guess_are_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let read = |content: &[u8], mode| {
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            Signatures::read(&path, Uses { sign: true, validate_input: false, validate_forward: false }).err()
        };
        assert!(read(SECRET, 0o600).is_none());
        assert!(matches!(read(SECRET, 0o640), Some(SecretError::Open { mode: 0o640, .. })));
        assert!(matches!(read(b"short", 0o600), Some(SecretError::Length { length: 5, .. })));
        std::fs::remove_file(&path).unwrap();
        let missing = Signatures::read(&path, Uses { sign: true, validate_input: false, validate_forward: false });
        assert!(matches!(missing, Err(SecretError::Read { .. })));
    }
}
