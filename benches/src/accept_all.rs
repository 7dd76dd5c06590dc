//! The baseline: the least an NFQUEUE consumer can do, done well.
//!
//! It accepts every packet of one queue without looking at it. It is meant to be hard to beat: segmentation offload stays
//! on, only headers are copied, whatever waits (up to [`BATCH`] packets) is read with one `recvmmsg`, and all its verdicts
//! leave in one `send`. Nothing is allocated per packet and no verdict waits for another packet.
//!
//! Message layouts: `linux/netlink.h`, `linux/netfilter/nfnetlink.h`, `linux/netfilter/nfnetlink_queue.h`. Netlink and
//! attribute headers are in host byte order; what is inside nfnetlink and queue structures is in network byte order.
#![allow(
    unsafe_code,
    reason = "recvmmsg into buffers prepared once is the fast way to read a queue, and nix rebuilds them for each call"
)]

use std::io::{self, Write};
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, send, setsockopt, socket, sockopt,
};

/// Most packets read, and most verdicts sent, at once.
pub const BATCH: usize = 64;
/// Room for one queued packet's message: 128 bytes of packet and about 150 bytes of attributes.
const MESSAGE_ROOM: usize = 1024;
/// Receive buffer, bytes. Large enough never to be the limit: the queue holds at most 1024 packets.
const RECEIVE_BUFFER: usize = 8 << 20;

const NLMSG_HEADER: usize = 16;
const NFGEN_HEADER: usize = 4;
const ATTR_HEADER: usize = 4;
/// nlmsghdr, nfgenmsg, and one attribute holding `nfqnl_msg_verdict_hdr` (verdict, packet id).
const VERDICT_LEN: usize = NLMSG_HEADER + NFGEN_HEADER + ATTR_HEADER + 8;
const VERDICT_ID_AT: usize = VERDICT_LEN - 4;

/// How to consume the queue.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Options {
    /// Queue to bind, in the network namespace this runs in
    #[arg(long, default_value_t = 0)]
    pub queue: u16,
    /// Most bytes of each packet that are copied to userspace
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = clap::value_parser!(u32).range(0..=512))]
    pub copy: u32,
    /// Have the kernel cut large segments into packets before they are queued
    #[arg(long)]
    pub no_gso: bool,
}

/// Binds the queue, prints `ready` on standard output and accepts packets until killed.
///
/// # Errors
/// The queue cannot be bound (not root, or taken), or netlink fails; it never returns otherwise.
pub fn run(options: Options) -> Result<()> {
    let netlink = open()?;
    send(netlink.as_raw_fd(), &bind_request(options), MsgFlags::empty()).context("cannot send the queue's settings")?;
    let mut inbox = Inbox::new();
    let mut verdicts = Verdicts::new(options.queue);
    loop {
        let received = inbox.receive(&netlink)?;
        let mut waiting = 0;
        for index in 0..received {
            // The answer to the settings comes by the same way as packets do, and may come after the first of them.
            match classify(inbox.message(index))? {
                Message::Packet { id } => {
                    verdicts.accept(waiting, id);
                    waiting += 1;
                }
                Message::Answer(0) => announce()?,
                Message::Answer(errno) => {
                    return Err(io::Error::from_raw_os_error(errno))
                        .with_context(|| format!("the kernel refused a request for queue {}", options.queue));
                }
            }
        }
        if waiting > 0 {
            send(netlink.as_raw_fd(), verdicts.first(waiting), MsgFlags::empty()).context("cannot send verdicts")?;
        }
    }
}

fn announce() -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "ready").and_then(|()| out.flush()).context("cannot announce readiness")
}

fn open() -> Result<OwnedFd> {
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)
        .context("cannot open a netfilter netlink socket")?;
    bind(netlink.as_raw_fd(), &NetlinkAddr::new(0, 0)).context("cannot bind the netlink socket")?;
    setsockopt(&netlink, sockopt::RcvBufForce, &RECEIVE_BUFFER)
        .context("cannot enlarge the netlink receive buffer (root is needed)")?;
    let on: libc::c_int = 1;
    // SAFETY: the option takes a c_int; pointer and length describe `on`, which outlives the call.
    let outcome = unsafe {
        libc::setsockopt(
            netlink.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_NO_ENOBUFS,
            (&raw const on).cast(),
            mem::size_of_val(&on) as libc::socklen_t,
        )
    };
    if outcome != 0 {
        return Err(io::Error::last_os_error()).context("cannot set NETLINK_NO_ENOBUFS");
    }
    Ok(netlink)
}

/// One NFQNL_MSG_CONFIG that binds the queue and sets copy mode and flags, and asks for an answer.
fn bind_request(options: Options) -> Vec<u8> {
    let mut attributes = Vec::new();
    // struct nfqnl_msg_config_cmd: command, padding, protocol family (ignored since Linux 3.8).
    push_attribute(&mut attributes, libc::NFQA_CFG_CMD, &[libc::NFQNL_CFG_CMD_BIND as u8, 0, 0, 0]);
    // struct nfqnl_msg_config_params: copy range, copy mode.
    let mut params = options.copy.to_be_bytes().to_vec();
    params.push(libc::NFQNL_COPY_PACKET as u8);
    push_attribute(&mut attributes, libc::NFQA_CFG_PARAMS, &params);
    let gso = libc::NFQA_CFG_F_GSO as u32;
    push_attribute(&mut attributes, libc::NFQA_CFG_MASK, &gso.to_be_bytes());
    let flags = if options.no_gso { 0 } else { gso };
    push_attribute(&mut attributes, libc::NFQA_CFG_FLAGS, &flags.to_be_bytes());

    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
    let length = NLMSG_HEADER + NFGEN_HEADER + attributes.len();
    let mut message = headers(length, libc::NFQNL_MSG_CONFIG, flags, options.queue).to_vec();
    message.extend_from_slice(&attributes);
    message
}

/// nlmsghdr followed by nfgenmsg (family unspecified, version 0, queue number).
fn headers(length: usize, kind: libc::c_int, flags: libc::c_int, queue: u16) -> [u8; NLMSG_HEADER + NFGEN_HEADER] {
    let mut header = [0; NLMSG_HEADER + NFGEN_HEADER];
    header[0..4].copy_from_slice(&(length as u32).to_ne_bytes());
    header[4..6].copy_from_slice(&message_type(kind).to_ne_bytes());
    header[6..8].copy_from_slice(&(flags as u16).to_ne_bytes());
    header[17] = libc::NFNETLINK_V0 as u8;
    header[18..20].copy_from_slice(&queue.to_be_bytes());
    header
}

const fn message_type(kind: libc::c_int) -> u16 {
    ((libc::NFNL_SUBSYS_QUEUE << 8) | kind) as u16
}

fn push_attribute(message: &mut Vec<u8>, kind: libc::c_int, value: &[u8]) {
    message.extend_from_slice(&((ATTR_HEADER + value.len()) as u16).to_ne_bytes());
    message.extend_from_slice(&(kind as u16).to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

#[derive(Debug, PartialEq, Eq)]
enum Message {
    /// A queued packet; `id` as it stands in the message (network byte order).
    Packet { id: [u8; 4] },
    /// NLMSG_ERROR: 0 or the errno.
    Answer(i32),
}

fn classify(message: &[u8]) -> Result<Message> {
    const PACKET: u16 = message_type(libc::NFQNL_MSG_PACKET);
    const ERROR: u16 = libc::NLMSG_ERROR as u16;
    match field::<2>(message, 4).map(u16::from_ne_bytes) {
        Some(PACKET) => packet_id(message).map(|id| Message::Packet { id }).context("a queued packet without an id"),
        // struct nlmsgerr begins with the negated errno.
        Some(ERROR) => {
            let errno = field::<4>(message, NLMSG_HEADER).map(i32::from_ne_bytes).context("a truncated answer")?;
            Ok(Message::Answer(errno.wrapping_neg()))
        }
        kind => bail!("unexpected netlink message type {kind:?}"),
    }
}

/// The id in NFQA_PACKET_HDR, which the kernel writes as the first attribute.
fn packet_id(message: &[u8]) -> Option<[u8; 4]> {
    const FIRST: usize = NLMSG_HEADER + NFGEN_HEADER;
    let kind = u16::from_ne_bytes(field(message, FIRST + 2)?);
    (kind == libc::NFQA_PACKET_HDR as u16).then(|| field(message, FIRST + ATTR_HEADER))?
}

fn field<const N: usize>(message: &[u8], at: usize) -> Option<[u8; N]> {
    message.get(at..at + N)?.try_into().ok()
}

/// Verdict messages laid out once; only the ids change.
struct Verdicts([u8; BATCH * VERDICT_LEN]);

impl Verdicts {
    fn new(queue: u16) -> Self {
        let mut one = headers(VERDICT_LEN, libc::NFQNL_MSG_VERDICT, libc::NLM_F_REQUEST, queue).to_vec();
        let accept = (libc::NF_ACCEPT as u32).to_be_bytes();
        push_attribute(&mut one, libc::NFQA_VERDICT_HDR, &[accept, [0; 4]].concat());
        let mut all = [0; BATCH * VERDICT_LEN];
        for place in all.chunks_exact_mut(VERDICT_LEN) {
            place.copy_from_slice(&one);
        }
        Self(all)
    }

    fn accept(&mut self, place: usize, id: [u8; 4]) {
        let at = place * VERDICT_LEN + VERDICT_ID_AT;
        self.0[at..at + 4].copy_from_slice(&id);
    }

    fn first(&self, count: usize) -> &[u8] {
        &self.0[..count * VERDICT_LEN]
    }
}

/// Buffers for one `recvmmsg`, with the structures that point at them.
struct Inbox {
    buffers: Box<[[u8; MESSAGE_ROOM]; BATCH]>,
    /// Points into `buffers`.
    _vectors: Box<[libc::iovec; BATCH]>,
    /// Points into `_vectors`.
    headers: Box<[libc::mmsghdr; BATCH]>,
}

impl Inbox {
    fn new() -> Self {
        let mut buffers = Box::new([[0; MESSAGE_ROOM]; BATCH]);
        let mut vectors = Box::new([libc::iovec { iov_base: ptr::null_mut(), iov_len: MESSAGE_ROOM }; BATCH]);
        // SAFETY: mmsghdr is plain C data; all zeroes means no name, no vectors, no control data.
        let mut headers: Box<[libc::mmsghdr; BATCH]> = Box::new([unsafe { mem::zeroed() }; BATCH]);
        for ((buffer, vector), header) in buffers.iter_mut().zip(vectors.iter_mut()).zip(headers.iter_mut()) {
            vector.iov_base = buffer.as_mut_ptr().cast();
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
        }
        Self { buffers, _vectors: vectors, headers }
    }

    /// Waits for one message and takes all that are there; returns how many.
    fn receive(&mut self, netlink: &OwnedFd) -> Result<usize> {
        loop {
            // SAFETY: `headers` holds BATCH entries whose vectors point at buffers of the stated size; all three are on
            // the heap, owned by self and never reallocated, and nothing else refers to the buffers during the call.
            let count = unsafe {
                libc::recvmmsg(
                    netlink.as_raw_fd(),
                    self.headers.as_mut_ptr(),
                    BATCH as libc::c_uint,
                    libc::MSG_WAITFORONE as _,
                    ptr::null_mut(),
                )
            };
            match usize::try_from(count) {
                Ok(count) => return Ok(count),
                Err(_) => match io::Error::last_os_error() {
                    interrupted if interrupted.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error).context("cannot read the queue"),
                },
            }
        }
    }

    fn message(&self, index: usize) -> &[u8] {
        let length = self.headers[index].msg_len as usize;
        &self.buffers[index][..length.min(MESSAGE_ROOM)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_laid_out_as_the_kernel_reads_them() {
        let mut verdicts = Verdicts::new(0x0102);
        verdicts.accept(1, [0xa, 0xb, 0xc, 0xd]);
        let second = &verdicts.first(2)[VERDICT_LEN..];
        assert_eq!(second.len(), 32);
        assert_eq!(second[0..4], 32u32.to_ne_bytes());
        assert_eq!(second[4..6], 0x0301u16.to_ne_bytes(), "NFNL_SUBSYS_QUEUE, NFQNL_MSG_VERDICT");
        assert_eq!(second[18..20], [1, 2], "queue in network byte order");
        assert_eq!(second[20..22], 12u16.to_ne_bytes());
        assert_eq!(second[24..28], [0, 0, 0, 1], "NF_ACCEPT");
        assert_eq!(second[28..32], [0xa, 0xb, 0xc, 0xd]);
    }

    #[test]
    fn messages_are_told_apart_and_short_ones_refused() {
        let mut packet = headers(32, libc::NFQNL_MSG_PACKET, 0, 0).to_vec();
        push_attribute(&mut packet, libc::NFQA_PACKET_HDR, &[0, 0, 0, 7, 8, 0, 3]);
        assert_eq!(classify(&packet).unwrap(), Message::Packet { id: [0, 0, 0, 7] });
        assert!(classify(&packet[..22]).is_err());
        assert!(classify(&[]).is_err());

        let mut answer = vec![0; NLMSG_HEADER];
        answer[4..6].copy_from_slice(&(libc::NLMSG_ERROR as u16).to_ne_bytes());
        answer.extend_from_slice(&(-libc::EBUSY).to_ne_bytes());
        assert_eq!(classify(&answer).unwrap(), Message::Answer(libc::EBUSY));
    }

    #[test]
    fn the_request_carries_its_length() {
        let request = bind_request(Options { queue: 3, copy: 128, no_gso: false });
        assert_eq!(request[0..4], (request.len() as u32).to_ne_bytes());
        assert_eq!(request.len() % 4, 0);
    }
}
