//! The one socket of an actor.

use std::borrow::Cow;
use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::libc::{in_addr, in_pktinfo};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, setsockopt, sockopt as sockopt_of_nix};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, Protocol, RawProtocol, RecvFlags, SendFlags, SocketFlags, SocketType, accept_with, bind, connect,
    ipproto, listen, recvfrom, send, sendto, socket_with,
};

use crate::code;
use crate::options::Options;

/// What every datagram and write carries.
pub const PAYLOAD: &[u8] = b"actor";

/// linux/socket.h
const MSG_FASTOPEN: u32 = 0x2000_0000;

/// An ICMP echo request (types 8 and 128); on an echo socket the kernel fills in identifier and checksum.
const ECHO4: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 1];
const ECHO6: [u8; 8] = [128, 0, 0, 0, 0, 0, 0, 1];

/// A socket and where it sends.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    /// Where datagrams go; none for a connected socket.
    to: Option<SocketAddr>,
    /// Where the last datagram came from.
    from: Option<SocketAddr>,
    payload: Cow<'static, [u8]>,
}

/// The wildcard address of the family of `like`, with port 0.
pub fn unspecified(like: SocketAddr) -> SocketAddr {
    match like.ip() {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

impl Socket {
    /// Opens what the role says.
    ///
    /// # Errors
    /// The arguments are wrong or the kernel refused.
    pub fn open(options: &Options) -> Result<Self> {
        match options.role.as_str() {
            "udp" => Self::datagram(options, ipproto::UDP),
            "udplite" => Self::datagram(options, ipproto::UDPLITE),
            "udp-bind" => {
                let at = options.address()?;
                let fd = new_socket(at, SocketType::DGRAM, Some(ipproto::UDP), options)?;
                bind(&fd, &at).context("bind")?;
                Ok(Self::of(fd, None))
            }
            "tcp" => {
                let to = options.address()?;
                let fd = new_socket(to, SocketType::STREAM, Some(ipproto::TCP), options)?;
                if let Some(at) = options.bind {
                    bind(&fd, &at).context("bind")?;
                }
                let mut socket = Self::of(fd, Some(to));
                if !options.later {
                    socket.connect()?;
                }
                Ok(socket)
            }
            "serve-tcp" => {
                let at = options.address()?;
                let fd = new_socket(at, SocketType::STREAM, Some(ipproto::TCP), options)?;
                sockopt::set_socket_reuseaddr(&fd, true)?;
                bind(&fd, &at).context("bind")?;
                listen(&fd, 128).context("listen")?;
                Ok(Self::of(fd, None))
            }
            "ping" => {
                let to = options.host()?;
                let (protocol, payload) =
                    if to.is_ipv4() { (ipproto::ICMP, &ECHO4) } else { (ipproto::ICMPV6, &ECHO6) };
                let fd = new_socket(to, SocketType::DGRAM, Some(protocol), options)
                    .context("an ICMP echo socket (is net.ipv4.ping_group_range set?)")?;
                Ok(Self { payload: Cow::Borrowed(payload), ..Self::of(fd, Some(to)) })
            }
            "raw" => Self::raw(options.operand(1)?, options.host()?),
            "packet" => {
                let (SocketAddr::V4(from), SocketAddr::V4(to)) = (options.bind.context("--bind")?, options.address()?)
                else {
                    bail!("IPv4 addresses are wanted")
                };
                let interface = nix::net::if_::if_nametoindex(options.operand(1)?).context("DEVICE")?;
                let fd = code::packet_socket(interface)?;
                Ok(Self { payload: Cow::Owned(frame(from, to)), ..Self::of(fd, None) })
            }
            other => bail!("unknown role {other} (see the head of main.rs)"),
        }
    }

    /// A raw IP socket. `kind` is the protocol's number; with `+header` behind it the IP header comes from the sender, which it
    /// does for number 255 anyway (raw(7)).
    ///
    /// # Errors
    /// The kernel refused.
    pub fn raw(kind: &str, to: SocketAddr) -> Result<Self> {
        let (number, header) = kind.strip_suffix("+header").map_or((kind, false), |number| (number, true));
        let number: u8 = number.parse().context("PROTOCOL")?;
        let protocol = RawProtocol::new(number.into()).map(Protocol::from_raw).context("PROTOCOL 0")?;
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let fd = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol)).context("socket")?;
        if header {
            code::header_included(&fd)?;
        }
        Ok(Self::of(fd, Some(to)))
    }

    /// A UDP socket for the first operand, whatever the role.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn udp(options: &Options) -> Result<Self> {
        Self::datagram(options, ipproto::UDP)
    }

    /// A TCP socket that has begun to connect to the first operand.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn begin_tcp(options: &Options) -> Result<Self> {
        let to = options.address()?;
        let fd = new_socket(to, SocketType::STREAM, None, options)?;
        rustix::io::ioctl_fionbio(&fd, true)?;
        match connect(&fd, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(Self::of(fd, None)),
            Err(error) => Err(error).context("connect"),
        }
    }

    /// Whether it is a connection, or to become one.
    ///
    /// # Errors
    /// Not a socket.
    pub fn is_stream(&self) -> Result<bool> {
        Ok(sockopt::socket_type(&self.fd)? == SocketType::STREAM)
    }

    /// Waits until the connection is there or refused, but not long: nothing tells that its first packet was dropped.
    ///
    /// # Errors
    /// Not a socket.
    pub fn wait_for_answer(&self) -> Result<()> {
        const LONG_ENOUGH: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        poll(&mut [PollFd::new(&self.fd, PollFlags::OUT)], Some(&LONG_ENOUGH)).map(drop).context("poll")
    }

    /// A socket that came from elsewhere.
    pub fn of(fd: OwnedFd, to: Option<SocketAddr>) -> Self {
        Self { fd, to, from: None, payload: Cow::Borrowed(PAYLOAD) }
    }

    fn datagram(options: &Options, protocol: Protocol) -> Result<Self> {
        let to = options.address()?;
        let fd = new_socket(to, SocketType::DGRAM, Some(protocol), options)?;
        // What is not sent to a broadcast address needs it not, and nothing else changes.
        sockopt::set_socket_broadcast(&fd, true)?;
        // Always bound: the port is known and stays.
        bind(&fd, &options.bind.unwrap_or(unspecified(to))).context("bind")?;
        let mut socket = Self::of(fd, Some(to));
        if options.connect {
            socket.connect()?;
        }
        Ok(socket)
    }

    /// Connects to where it sends.
    ///
    /// # Errors
    /// Refused, or no answer in time.
    pub fn connect(&mut self) -> Result<()> {
        let to = self.to.context("connected already")?;
        connect(&self.fd, &to).context("connect")?;
        self.to = None;
        Ok(())
    }

    /// Connects with data in the SYN (TCP Fast Open), more than a header takes, and does not wait for the answer.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn fast_open(&self) -> Result<()> {
        let to = self.to.context("connected already")?;
        code::fast_open_without_cookie(&self.fd)?;
        let flags = SendFlags::from_bits_retain(MSG_FASTOPEN) | SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendto(&self.fd, &[b'f'; 200], flags, &to) {
            Ok(_) | Err(Errno::INPROGRESS) => Ok(()),
            Err(error) => Err(error).context("send"),
        }
    }

    /// Sends the payload once.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn send(&self) -> Result<()> {
        self.send_with(SendFlags::empty())
    }

    /// Begins a datagram with the payload; the next to send sends it too (MSG_MORE).
    ///
    /// # Errors
    /// The kernel refused.
    pub fn begin(&self) -> Result<()> {
        self.send_with(SendFlags::MORE)
    }

    fn send_with(&self, flags: SendFlags) -> Result<()> {
        let result = match self.to {
            Some(to) => sendto(&self.fd, &self.payload, flags | SendFlags::NOSIGNAL, &to),
            None => send(&self.fd, &self.payload, flags | SendFlags::NOSIGNAL),
        };
        sent(result)
    }

    /// Sends the payload to whom the last datagram came from.
    ///
    /// # Errors
    /// None came yet, or the kernel refused.
    pub fn reply(&self) -> Result<()> {
        let from = self.from.context("nothing was received yet")?;
        sent(sendto(&self.fd, &self.payload, SendFlags::NOSIGNAL, &from))
    }

    /// Sends bytes as they are, where the socket sends.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn send_bytes(&self, bytes: &[u8]) -> Result<()> {
        sent(match self.to {
            Some(to) => sendto(&self.fd, bytes, SendFlags::NOSIGNAL, &to),
            None => send(&self.fd, bytes, SendFlags::NOSIGNAL),
        })
    }

    /// Sends so many bytes by one call, in datagrams of `each` bytes, into which the kernel cuts them on their way out (UDP_SEGMENT).
    ///
    /// # Errors
    /// The kernel refused.
    pub fn send_segmented(&self, length: usize, each: u16) -> Result<()> {
        let bytes = vec![b'y'; length];
        let control = [ControlMessage::UdpGsoSegments(&each)];
        let to = self.to.map(nix::sys::socket::SockaddrStorage::from);
        let (fd, parts) = (self.fd.as_raw_fd(), [IoSlice::new(&bytes)]);
        sent(nix::sys::socket::sendmsg(fd, &parts, &control, MsgFlags::MSG_NOSIGNAL, to.as_ref()))
    }

    /// Sends the payload once from another of this machine's addresses than the socket's own (IP_PKTINFO).
    ///
    /// # Errors
    /// The kernel refused.
    pub fn send_from(&self, source: Ipv4Addr) -> Result<()> {
        let to = self.to4()?;
        let info = in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: in_addr { s_addr: u32::from_ne_bytes(source.octets()) },
            ipi_addr: in_addr { s_addr: 0 },
        };
        let control = [ControlMessage::Ipv4PacketInfo(&info)];
        let (fd, to) = (self.fd.as_raw_fd(), SockaddrIn::from(to));
        sent(nix::sys::socket::sendmsg(fd, &[IoSlice::new(&self.payload)], &control, MsgFlags::empty(), Some(&to)))
    }

    /// Sends elsewhere from now on.
    pub fn aim(&mut self, to: SocketAddr) {
        self.to = Some(to);
    }

    /// Sets a mark (SO_MARK) on what it sends.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN.
    pub fn mark(&self, mark: u32) -> Result<()> {
        setsockopt(&self.fd, sockopt_of_nix::Mark, &mark).context("SO_MARK")
    }

    /// Receives once; returns the number of bytes and, for a datagram, the sender.
    ///
    /// # Errors
    /// Nothing came in time, or the connection broke.
    pub fn recv(&mut self) -> Result<(usize, Option<SocketAddr>)> {
        let mut buffer = [0; 65536];
        let (_, length, from) = recvfrom(&self.fd, &mut buffer, RecvFlags::empty()).context("receive")?;
        self.from = from.and_then(|from| from.try_into().ok());
        Ok((length, self.from))
    }

    /// Writes so many bytes to a connection.
    ///
    /// # Errors
    /// The kernel refused, or took not all of them in time.
    pub fn put(&self, bytes: usize) -> Result<()> {
        let mut rest = vec![b'x'; bytes];
        while !rest.is_empty() {
            let length = send(&self.fd, &rest, SendFlags::NOSIGNAL).context("send")?;
            rest.drain(..length);
        }
        Ok(())
    }

    /// Receives until the other end closes; returns the number of bytes.
    ///
    /// # Errors
    /// Nothing came in time, or the connection broke.
    pub fn drain(&mut self) -> Result<usize> {
        let mut total = 0;
        loop {
            match self.recv()? {
                (0, _) => return Ok(total),
                (length, _) => total += length,
            }
        }
    }

    /// Accepts a connection, which takes the place of the listener in this actor.
    ///
    /// # Errors
    /// None came in time.
    pub fn accept(&mut self, timeout: Duration) -> Result<()> {
        let connection = accept_with(&self.fd, SocketFlags::CLOEXEC).context("accept")?;
        set_timeouts(&connection, timeout)?;
        self.fd = connection;
        self.to = None;
        Ok(())
    }

    /// Moves the socket to a descriptor that is at least `lowest`; returns it.
    ///
    /// # Errors
    /// Above the limit of open files.
    pub fn move_up(&mut self, lowest: i32) -> Result<i32> {
        self.fd = fcntl_dupfd_cloexec(&self.fd, lowest).context("dup")?;
        Ok(self.fd.as_raw_fd())
    }

    /// The port it is bound to.
    ///
    /// # Errors
    /// It has none.
    pub fn port(&self) -> Result<u16> {
        let address: SocketAddr = rustix::net::getsockname(&self.fd)?.try_into().ok().context("no address")?;
        Ok(address.port())
    }

    /// Where it sends, for an heir's command line.
    pub fn to(&self) -> Option<SocketAddr> {
        self.to
    }

    /// Where it sends, if that is an IPv4 address.
    ///
    /// # Errors
    /// It is none.
    pub fn to4(&self) -> Result<SocketAddrV4> {
        match self.to {
            Some(SocketAddr::V4(to)) => Ok(to),
            _ => bail!("not an IPv4 destination"),
        }
    }

    /// The descriptor.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}

/// An Ethernet frame to all stations with a UDP datagram in it.
fn frame(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    let udp = 8 + PAYLOAD.len() as u16;
    let mut header = vec![0x45, 0];
    header.extend((20 + udp).to_be_bytes());
    header.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    header.extend(from.ip().octets());
    header.extend(to.ip().octets());
    let sum: u32 = header.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !(((folded & 0xffff) + (folded >> 16)) as u16);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 8, 0]);
    frame.extend(header);
    frame.extend([from.port(), to.port(), udp, 0].map(u16::to_be_bytes).concat());
    frame.extend(PAYLOAD);
    frame
}

fn new_socket(like: SocketAddr, kind: SocketType, protocol: Option<Protocol>, options: &Options) -> Result<OwnedFd> {
    let family = if like.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = socket_with(family, kind, SocketFlags::CLOEXEC, protocol).context("socket")?;
    if options.v4_on_v6 {
        sockopt::set_ipv6_v6only(&fd, false)?;
    }
    if let Some(device) = &options.device {
        setsockopt(&fd, sockopt_of_nix::BindToDevice, &device.into()).context("SO_BINDTODEVICE")?;
    }
    if let Some(tos) = options.tos {
        sockopt::set_ip_tos(&fd, tos)?;
    }
    if options.reuseport {
        sockopt::set_socket_reuseport(&fd, true)?;
    }
    set_timeouts(&fd, options.timeout)?;
    Ok(fd)
}

/// SO_SNDTIMEO bounds connect() too.
fn set_timeouts(fd: impl AsFd, timeout: Duration) -> Result<()> {
    for which in [Timeout::Recv, Timeout::Send] {
        sockopt::set_socket_timeout(&fd, which, Some(timeout))?;
    }
    Ok(())
}

/// A datagram that iptables drops on its way out is refused with EPERM; one that is dropped by a queue is not. What counts is
/// what arrives.
fn sent<E: Into<std::io::Error>>(result: Result<usize, E>) -> Result<()> {
    match result.map_err(E::into) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error).context("send"),
    }
}
