//! Verdicts on their way to the kernel: many messages in one send.
//!
//! Ordinary verdict messages settle one packet each, in any order. (`NFQNL_MSG_VERDICT_BATCH` would settle every packet
//! up to an id, those that still wait for a digest included.)

use super::message::{SUBSYSTEM, aligned};
use shared::Verdict;

const NLM_F_REQUEST: u16 = 1;
const MSG_VERDICT: u16 = SUBSYSTEM | 1;
const ATTRIBUTE_VERDICT_HDR: u16 = 2;
const ATTRIBUTE_PAYLOAD: u16 = 10;
/// linux/netfilter.h.
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
/// nlmsghdr, nfgenmsg, and the verdict attribute.
const PLAIN: usize = 16 + 4 + 12;

/// Verdicts that were reached and not sent yet.
pub struct Verdicts {
    bytes: Vec<u8>,
    count: usize,
    /// When the first of them was reached, nanoseconds of the caller's clock.
    oldest: u64,
    queue: u16,
}

impl Verdicts {
    /// Room for `count` verdicts for packets of `queue`.
    pub fn new(queue: u16, count: usize) -> Verdicts {
        Verdicts { bytes: Vec::with_capacity(count * PLAIN), count: 0, oldest: 0, queue }
    }

    /// Adds a verdict reached at `now`.
    pub fn push(&mut self, id: u32, verdict: Verdict, now: u64) {
        self.start(id, verdict, PLAIN, now);
    }

    /// Accepts a packet with another content.
    pub fn push_changed(&mut self, id: u32, packet: &[u8], now: u64) {
        let attribute = 4 + packet.len();
        self.start(id, Verdict::Accept, PLAIN + aligned(attribute), now);
        self.bytes.extend((attribute as u16).to_ne_bytes());
        self.bytes.extend(ATTRIBUTE_PAYLOAD.to_ne_bytes());
        self.bytes.extend(packet);
        self.bytes.resize(self.bytes.len() + aligned(attribute) - attribute, 0);
    }

    fn start(&mut self, id: u32, verdict: Verdict, length: usize, now: u64) {
        if self.count == 0 {
            self.oldest = now;
        }
        self.count += 1;
        let verdict = match verdict {
            Verdict::Accept => NF_ACCEPT,
            Verdict::Drop | Verdict::Reject => NF_DROP,
        };
        let mut message = [0u8; PLAIN];
        message[0..4].copy_from_slice(&(length as u32).to_ne_bytes());
        message[4..6].copy_from_slice(&MSG_VERDICT.to_ne_bytes());
        message[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
        message[18..20].copy_from_slice(&self.queue.to_be_bytes());
        message[20..22].copy_from_slice(&12u16.to_ne_bytes());
        message[22..24].copy_from_slice(&ATTRIBUTE_VERDICT_HDR.to_ne_bytes());
        message[24..28].copy_from_slice(&verdict.to_be_bytes());
        message[28..32].copy_from_slice(&id.to_be_bytes());
        self.bytes.extend(message);
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// When the one that waits longest was reached.
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// The messages.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets them: they were sent.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_what_the_kernel_reads() {
        let mut verdicts = Verdicts::new(0x0102, 2);
        verdicts.push(7, Verdict::Drop, 100);
        verdicts.push(8, Verdict::Accept, 200);
        assert_eq!((verdicts.len(), verdicts.oldest()), (2, 100));
        let mut first = 32u32.to_ne_bytes().to_vec();
        first.extend([1, 3, 1, 0]);
        first.extend([0; 8]);
        first.extend([0, 0, 1, 2]);
        first.extend([12, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!(verdicts.bytes()[..32], first);
        assert_eq!(verdicts.bytes()[56..64], [0, 0, 0, 1, 0, 0, 0, 8]);
        verdicts.clear();
        assert!(verdicts.is_empty() && verdicts.bytes().is_empty());
        verdicts.push(9, Verdict::Accept, 300);
        assert_eq!(verdicts.oldest(), 300);
    }

    #[test]
    fn changed_packets_are_padded() {
        let mut verdicts = Verdicts::new(0, 1);
        verdicts.push_changed(1, b"abcde", 0);
        assert_eq!(verdicts.bytes().len(), 32 + 12);
        assert_eq!(verdicts.bytes()[0], 44);
        assert_eq!(verdicts.bytes()[32..], [9, 0, 10, 0, b'a', b'b', b'c', b'd', b'e', 0, 0, 0]);
    }
}
