//! What the kernel says about a queued packet: netlink messages as linux/netfilter/nfnetlink_queue.h has them.

/// Netlink headers are 4-byte aligned; so are attributes.
const ALIGN: usize = 4;
const NLMSG_HEADER: usize = 16;
const NFGEN_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;
/// The two top bits of an attribute's type are flags.
const TYPE_MASK: u16 = 0x3fff;

pub(super) const NLMSG_ERROR: u16 = 2;
/// `NFNL_SUBSYS_QUEUE << 8`.
pub(super) const SUBSYSTEM: u16 = 3 << 8;
const MSG_PACKET: u16 = SUBSYSTEM;

mod attribute {
    pub const PACKET_HDR: u16 = 1;
    pub const INDEV: u16 = 5;
    pub const OUTDEV: u16 = 6;
    pub const PHYSINDEV: u16 = 7;
    pub const PHYSOUTDEV: u16 = 8;
    pub const PAYLOAD: u16 = 10;
    pub const CAP_LEN: u16 = 13;
    pub const SKB_INFO: u16 = 14;
    pub const UID: u16 = 16;
}

/// `NFQA_SKB_CSUMNOTREADY`: the layer-4 checksum is left to the device.
const CHECKSUM_NOT_READY: u32 = 1;
/// `NFQA_SKB_GSO`: the device is to cut it into packets.
const SEGMENTED: u32 = 2;

/// A packet that waits for its verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Queued<'a> {
    /// Names it in its queue.
    pub id: u32,
    /// Netfilter hook: 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting.
    pub hook: u8,
    /// Interface indexes in the queue's namespace; 0 if there is none.
    pub indev: u32,
    /// Where it leaves.
    pub outdev: u32,
    /// The bridge port it came through.
    pub physindev: u32,
    /// The bridge port it leaves through.
    pub physoutdev: u32,
    /// Filesystem user id of the opener of the socket that sent it. Present exactly if, when it was queued, it
    /// belonged to a socket that some process still held open.
    pub uid: Option<u32>,
    /// From the IP header on; the head only if the copy range is shorter than the packet.
    pub payload: &'a [u8],
    /// Length of the whole packet, bytes.
    pub length: u32,
    /// The layer-4 checksum is not there yet.
    pub checksum_missing: bool,
    /// It stands for several packets, into which it is cut when it leaves.
    pub segmented: bool,
}

/// One message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message<'a> {
    /// A packet.
    Packet(Queued<'a>),
    /// The kernel refused something: an errno, or 0 for an acknowledgement.
    Error(i32),
    /// Nothing this program asked for, or cut short.
    Other,
}

/// Reads the messages of one datagram. Stops at the first whose length makes no sense.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = datagram.get(..NLMSG_HEADER)?;
        let length = ne32(header, 0)? as usize;
        let kind = ne16(header, 4)?;
        // A datagram longer than its buffer arrives cut: what is there of the last message is read as far as it goes.
        let body = datagram.get(NLMSG_HEADER..length.min(datagram.len()))?;
        datagram = datagram.get(aligned(length)..).unwrap_or(&[]);
        Some(match kind {
            MSG_PACKET => packet(body).map_or(Message::Other, Message::Packet),
            NLMSG_ERROR => ne32(body, 0).map_or(Message::Other, |error| Message::Error(-(error as i32))),
            _ => Message::Other,
        })
    })
}

fn packet(body: &[u8]) -> Option<Queued<'_>> {
    let mut queued = Queued::default();
    let mut has_id = false;
    let mut whole = None;
    for (kind, value) in attributes(body.get(NFGEN_HEADER..)?) {
        match kind {
            attribute::PACKET_HDR => {
                queued.id = be32(value)?;
                queued.hook = *value.get(6)?;
                has_id = true;
            }
            attribute::INDEV => queued.indev = be32(value)?,
            attribute::OUTDEV => queued.outdev = be32(value)?,
            attribute::PHYSINDEV => queued.physindev = be32(value)?,
            attribute::PHYSOUTDEV => queued.physoutdev = be32(value)?,
            attribute::PAYLOAD => queued.payload = value,
            attribute::CAP_LEN => whole = Some(be32(value)?),
            attribute::SKB_INFO => {
                let info = be32(value)?;
                queued.checksum_missing = info & CHECKSUM_NOT_READY != 0;
                queued.segmented = info & SEGMENTED != 0;
            }
            attribute::UID => queued.uid = Some(be32(value)?),
            _ => {}
        }
    }
    queued.length = whole.unwrap_or(queued.payload.len() as u32);
    has_id.then_some(queued)
}

/// Type and value of each attribute. Stops at the first whose length makes no sense.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(ne16(bytes, 0)?);
        let kind = ne16(bytes, 2)? & TYPE_MASK;
        let value = bytes.get(ATTRIBUTE_HEADER..length.min(bytes.len()))?;
        bytes = bytes.get(aligned(length)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

pub(crate) fn aligned(length: usize) -> usize {
    length.saturating_add(ALIGN - 1) & !(ALIGN - 1)
}

fn ne16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn ne32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn be32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((ATTRIBUTE_HEADER + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((NLMSG_HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

    fn sample() -> Vec<u8> {
        let mut body = vec![2, 0, 0, 0];
        body.extend(attribute(1, &[0, 0, 1, 2, 8, 0, 3]));
        body.extend(attribute(6, &7u32.to_be_bytes()));
        body.extend(attribute(16, &1000u32.to_be_bytes()));
        body.extend(attribute(13, &1500u32.to_be_bytes()));
        body.extend(attribute(10, b"payload"));
        message(MSG_PACKET, &body)
    }

    #[test]
    fn packets_and_errors_are_told_apart() {
        let mut datagram = sample();
        datagram.extend(message(NLMSG_ERROR, &(-2i32).to_ne_bytes()));
        datagram.extend(message(99, &[]));
        let expected = Queued {
            id: 0x0102,
            hook: 3,
            outdev: 7,
            uid: Some(1000),
            payload: b"payload",
            length: 1500,
            ..Queued::default()
        };
        let read: Vec<_> = messages(&datagram).collect();
        assert_eq!(read, [Message::Packet(expected), Message::Error(2), Message::Other]);
    }

    #[test]
    fn a_cut_datagram_still_names_its_packet() {
        let datagram = sample();
        let Some(Message::Packet(packet)) = messages(&datagram[..datagram.len() - 6]).next() else { panic!() };
        assert_eq!((packet.id, packet.payload), (0x0102, &b"pa"[..]));
    }

    proptest! {
        #[test]
        fn nothing_panics_and_everything_ends(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            prop_assert!(messages(&bytes).count() <= bytes.len());
        }

        #[test]
        fn bent_messages_end_too(at in 0usize..80, value in any::<u8>()) {
            let mut bytes = sample();
            if let Some(byte) = bytes.get_mut(at) { *byte = value }
            prop_assert!(messages(&bytes).count() <= bytes.len());
        }
    }
}
