//! Socket diagnostics: questions to the kernel about sockets, as linux/inet_diag.h has them. See sock_diag(7).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket};
use shared::Protocol;

use crate::queue::message::{aligned, attributes};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_HEADER: usize = 16;
/// `struct inet_diag_req_v2`.
const REQUEST: usize = 56;
/// `struct inet_diag_msg`.
const ANSWER: usize = 72;
const INET_DIAG_SKV6ONLY: u16 = 11;

/// `TCP_*` of net/tcp_states.h.
pub mod state {
    /// Connected.
    pub const ESTABLISHED: u8 = 1;
    /// A handshake that has no socket of its own yet.
    pub const SYN_RECV: u8 = 3;
    /// What is left of a connection after it ended.
    pub const TIME_WAIT: u8 = 6;
    /// Connected, and the peer has said its last.
    pub const CLOSE_WAIT: u8 = 8;
    /// Listening.
    pub const LISTEN: u8 = 10;
    /// A question about sockets in any state.
    pub const ALL: u32 = u32::MAX;
}

/// One end of a connection, or half of one: unspecified addresses and port 0 mean "any".
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tuple {
    /// Local address.
    pub local: IpAddr,
    /// Local port, host byte order.
    pub local_port: u16,
    /// Address of the peer.
    pub remote: IpAddr,
    /// Port of the peer, host byte order.
    pub remote_port: u16,
}

/// A socket as the kernel describes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Socket {
    /// Names it for good: never given twice while the machine runs.
    pub cookie: u64,
    /// Inode of the file that holds it; 0 if no file does.
    pub inode: u64,
    /// User id of its opener.
    pub uid: u32,
    /// See [`state`].
    pub state: u8,
    /// Its ends.
    pub tuple: Tuple,
    /// Takes no IPv4. Told for listening and unconnected sockets only.
    pub ipv6_only: bool,
}

/// A way to ask about the sockets of one network namespace: the one its thread was in when it was opened.
pub struct Diag {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// Answers come in the system call that asks; only a broken kernel would let this pass.
const PATIENCE: Duration = Duration::from_secs(1);

impl Diag {
    /// Opens a socket in the namespace of the calling thread.
    ///
    /// # Errors
    /// What socket(2) says.
    pub fn open() -> io::Result<Diag> {
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
        setsockopt(&socket, ReceiveTimeout, &nix::sys::time::TimeVal::new(PATIENCE.as_secs() as i64, 0))?;
        Ok(Diag { socket, sequence: 0, buffer: vec![0; 32 * 1024] })
    }

    /// The socket that would take a packet for `tuple`: the connected one, else the one that listens. Only for
    /// protocols whose connected sockets own their tuple. `device` is the interface the packet uses, 0 if unknown;
    /// sockets that are bound to an interface are found only with it.
    ///
    /// # Errors
    /// The kernel cannot answer.
    pub fn find(&mut self, protocol: Protocol, tuple: &Tuple, device: u32) -> io::Result<Option<Socket>> {
        let mut found = None;
        let question = Question { device, ..Question::new(protocol, tuple) };
        let asked = self.ask(&question, |socket| found = Some(socket));
        match asked {
            Ok(()) => Ok(found),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Appends all sockets of a family with this local port, in any of the states of the bit mask.
    ///
    /// # Errors
    /// The kernel cannot answer.
    pub fn list(
        &mut self,
        protocol: Protocol,
        v6: bool,
        local_port: u16,
        states: u32,
        out: &mut Vec<Socket>,
    ) -> io::Result<()> {
        let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let tuple = Tuple { local: any, local_port, remote: any, remote_port: 0 };
        let flags = NLM_F_REQUEST | NLM_F_DUMP;
        self.ask(&Question { states, flags, ..Question::new(protocol, &tuple) }, |socket| {
            if socket.tuple.local_port == local_port {
                out.push(socket);
            }
        })
    }

    /// Ends the connected socket that owns `tuple`: whoever holds it gets `ECONNABORTED`. One that listens, or may speak to
    /// others, is left alone.
    ///
    /// # Errors
    /// There is none (`ENOENT`), or the kernel cannot do it (`CONFIG_INET_DIAG_DESTROY`).
    pub fn destroy(&mut self, protocol: Protocol, tuple: &Tuple) -> io::Result<()> {
        let ends = |of: &Tuple| (of.local.to_canonical(), of.local_port, of.remote.to_canonical(), of.remote_port);
        let is_it = |socket: &Socket| socket.state != state::LISTEN && ends(&socket.tuple) == ends(tuple);
        let found = match protocol {
            // The kernel takes the one that listens where there is no other.
            Protocol::TCP => self.find(protocol, tuple, 0)?.filter(is_it),
            // Of UDP the kernel is asked with both ends the other way round (`udp_dump_one`, "for historical reasons").
            _ => {
                let mut sockets = Vec::new();
                // An IPv6 socket may have IPv4 ends.
                for v6 in [false, true] {
                    self.list(protocol, v6, tuple.local_port, state::ALL, &mut sockets)?;
                }
                sockets.into_iter().find(is_it)
            }
        };
        let Some(socket) = found else {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        };
        let question = Question {
            kind: SOCK_DESTROY,
            // No other that has got the tuple since.
            cookie: Some(socket.cookie),
            flags: NLM_F_REQUEST | NLM_F_ACK,
            ..Question::new(protocol, tuple)
        };
        self.ask(&question, |_| {})
    }

    fn ask(&mut self, question: &Question<'_>, mut each: impl FnMut(Socket)) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = question.bytes(self.sequence);
        send(self.socket.as_raw_fd(), &request, MsgFlags::MSG_NOSIGNAL)?;
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let datagram = self.buffer.get(..length).unwrap_or_default();
            if read_answers(datagram, self.sequence, question.flags & NLM_F_DUMP != 0, &mut each)? {
                return Ok(());
            }
        }
    }
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

/// What is asked of the kernel.
struct Question<'a> {
    kind: u16,
    flags: u16,
    protocol: Protocol,
    /// Bit mask of [`state`].
    states: u32,
    tuple: &'a Tuple,
    /// Interface; 0: any.
    device: u32,
    /// Only this socket.
    cookie: Option<u64>,
}

impl<'a> Question<'a> {
    /// About the one socket that would take a packet.
    fn new(protocol: Protocol, tuple: &'a Tuple) -> Question<'a> {
        let (kind, flags) = (SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST);
        Question { kind, flags, protocol, states: state::ALL, tuple, device: 0, cookie: None }
    }

    fn bytes(&self, sequence: u32) -> [u8; NLMSG_HEADER + REQUEST] {
        let Question { tuple, .. } = *self;
        let mut bytes = [0; NLMSG_HEADER + REQUEST];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &((NLMSG_HEADER + REQUEST) as u32).to_ne_bytes());
        put(4, &self.kind.to_ne_bytes());
        put(6, &self.flags.to_ne_bytes());
        put(8, &sequence.to_ne_bytes());
        put(16, &[family(tuple.local), self.protocol.0]);
        put(20, &self.states.to_ne_bytes());
        put(24, &tuple.local_port.to_be_bytes());
        put(26, &tuple.remote_port.to_be_bytes());
        put(28, &octets(tuple.local));
        put(44, &octets(tuple.remote));
        put(60, &self.device.to_ne_bytes());
        // Two words, the lower one first; all ones (INET_DIAG_NOCOOKIE): whichever socket it is.
        let cookie = self.cookie.unwrap_or(u64::MAX);
        put(64, &(cookie as u32).to_ne_bytes());
        put(68, &((cookie >> 32) as u32).to_ne_bytes());
        bytes
    }
}

/// The first four bytes are an IPv4 address.
fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(address) => address.octets(),
        IpAddr::V4(address) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&address.octets());
            octets
        }
    }
}

/// Reads one datagram of an answer. True: it was the last.
fn read_answers(mut datagram: &[u8], sequence: u32, dump: bool, each: &mut impl FnMut(Socket)) -> io::Result<bool> {
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "socket diagnostics answered nonsense");
    while !datagram.is_empty() {
        let header: &[u8; NLMSG_HEADER] = datagram.first_chunk().ok_or_else(broken)?;
        let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let length = word(0) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let body = datagram.get(NLMSG_HEADER..length).ok_or_else(broken)?;
        datagram = datagram.get(aligned(length)..).unwrap_or_default();
        // What is left of an earlier question that was given up.
        if word(8) != sequence {
            continue;
        }
        match kind {
            NLMSG_DONE | NLMSG_ERROR => {
                let error: &[u8; 4] = body.first_chunk().ok_or_else(broken)?;
                return match i32::from_ne_bytes(*error) {
                    0 => Ok(true),
                    error => Err(io::Error::from_raw_os_error(-error)),
                };
            }
            SOCK_DIAG_BY_FAMILY => {
                each(read_socket(body).ok_or_else(broken)?);
                if !dump {
                    return Ok(true);
                }
            }
            _ => {}
        }
    }
    Ok(false)
}

fn read_socket(body: &[u8]) -> Option<Socket> {
    let fixed: &[u8; ANSWER] = body.first_chunk()?;
    let word = |at: usize| u32::from_ne_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 16] = fixed.get(at..at + 16)?.try_into().ok()?;
        match i32::from(fixed[0]) {
            libc::AF_INET => Some(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into()),
            libc::AF_INET6 => Some(Ipv6Addr::from(octets).into()),
            _ => None,
        }
    };
    let v6only = attributes(body.get(ANSWER..)?).find(|(kind, _)| *kind == INET_DIAG_SKV6ONLY);
    Some(Socket {
        cookie: u64::from(word(44)) | u64::from(word(48)) << 32,
        inode: u64::from(word(68)),
        uid: word(64),
        state: fixed[1],
        tuple: Tuple {
            local: address(8)?,
            local_port: u16::from_be_bytes([fixed[4], fixed[5]]),
            remote: address(24)?,
            remote_port: u16::from_be_bytes([fixed[6], fixed[7]]),
        },
        ipv6_only: v6only.is_some_and(|(_, value)| value.first() == Some(&1)),
    })
}

impl Tuple {
    /// Whether a socket with this local end may send from, or be reached at, `local`. IPv6 sockets may carry IPv4.
    pub fn is_at(&self, local: IpAddr, ipv6_only: bool) -> bool {
        match (self.local, local) {
            (IpAddr::V4(bound), IpAddr::V4(local)) => bound.is_unspecified() || bound == local,
            (IpAddr::V6(bound), IpAddr::V6(local)) => bound.is_unspecified() || bound == local,
            (IpAddr::V6(bound), IpAddr::V4(local)) => {
                let mapped = |bound: Ipv4Addr| bound.is_unspecified() || bound == local;
                !ipv6_only && (bound.is_unspecified() || bound.to_ipv4_mapped().is_some_and(mapped))
            }
            (IpAddr::V4(_), IpAddr::V6(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
    use std::os::unix::fs::MetadataExt;

    fn inode(socket: &impl AsRawFd) -> u64 {
        std::fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap().ino()
    }

    fn tuple(local: SocketAddr, remote: SocketAddr) -> Tuple {
        Tuple { local: local.ip(), local_port: local.port(), remote: remote.ip(), remote_port: remote.port() }
    }

    /// The rejected packets of a server must not end what it listens with.
    #[test]
    fn only_the_connected_socket_of_a_tuple_is_ended() {
        use std::io::Read;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let mut client = std::net::TcpStream::connect(server).unwrap();
        let (accepted, from) = listener.accept().unwrap();
        let to = |remote: std::net::SocketAddr| Tuple {
            local: server.ip(),
            local_port: server.port(),
            remote: remote.ip(),
            remote_port: remote.port(),
        };
        let mut diag = Diag::open().unwrap();
        let nobody = to("127.0.0.1:1".parse().unwrap());
        let error = diag.destroy(Protocol::TCP, &nobody).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        let unconnected = std::net::UdpSocket::bind(server).unwrap();
        assert!(diag.destroy(Protocol::UDP, &nobody).is_err());
        assert!(unconnected.take_error().unwrap().is_none());
        diag.destroy(Protocol::TCP, &to(from)).unwrap();
        assert_eq!(accepted.take_error().unwrap().unwrap().raw_os_error(), Some(libc::ECONNABORTED));
        // Its peer is told by a reset.
        assert!(client.read(&mut [0]).is_err());
        // And others still connect.
        std::net::TcpStream::connect(server).unwrap();
        listener.accept().unwrap();
    }

    #[test]
    fn a_connection_is_found_from_both_ends() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            let mut diag = Diag::open().unwrap();
            for (near, far) in [(&client, &server), (&server, &client)] {
                let tuple = tuple(near.local_addr().unwrap(), far.local_addr().unwrap());
                let found = diag.find(Protocol::TCP, &tuple, 0).unwrap().unwrap();
                assert_eq!((found.inode, found.tuple), (inode(near), tuple));
                assert_ne!(found.cookie, 0);
            }
            // A stranger at the listener's port.
            let stranger =
                Tuple { remote_port: 1, ..tuple(server.local_addr().unwrap(), client.local_addr().unwrap()) };
            let found = diag.find(Protocol::TCP, &stranger, 0).unwrap().unwrap();
            assert_eq!((found.inode, found.state), (inode(&listener), state::LISTEN));
            let nowhere = Tuple { local_port: 1, ..stranger };
            assert_eq!(diag.find(Protocol::TCP, &nowhere, 0).unwrap(), None);
        }
    }

    #[test]
    fn datagram_sockets_are_listed_by_port() {
        let v4 = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = v4.local_addr().unwrap().port();
        let v6 = UdpSocket::bind(("::1", port)).unwrap();
        let mut diag = Diag::open().unwrap();
        let mut found = Vec::new();
        diag.list(Protocol::UDP, false, port, state::ALL, &mut found).unwrap();
        assert_eq!(found.iter().map(|socket| socket.inode).collect::<Vec<_>>(), [inode(&v4)]);
        found.clear();
        diag.list(Protocol::UDP, true, port, state::ALL, &mut found).unwrap();
        assert_eq!(found.iter().map(|socket| socket.inode).collect::<Vec<_>>(), [inode(&v6)]);
    }

    #[test]
    fn ipv6_sockets_carry_ipv4_unless_they_do_not() {
        let at = |bound: &str| Tuple {
            local: bound.parse().unwrap(),
            local_port: 1,
            remote: "::".parse().unwrap(),
            remote_port: 0,
        };
        let v4: IpAddr = "192.0.2.1".parse().unwrap();
        assert!(at("::").is_at(v4, false));
        assert!(!at("::").is_at(v4, true));
        assert!(at("::ffff:192.0.2.1").is_at(v4, false));
        assert!(!at("::ffff:192.0.2.2").is_at(v4, false));
        assert!(at("::ffff:0.0.0.0").is_at(v4, false));
        assert!(at("0.0.0.0").is_at(v4, false));
        assert!(!at("0.0.0.0").is_at("::1".parse().unwrap(), false));
        assert!(!at("::1").is_at("::2".parse().unwrap(), false));
    }

    #[test]
    fn nonsense_is_an_error_and_old_answers_are_skipped() {
        let mut each = |_| panic!("no socket in here");
        assert!(read_answers(&[1, 2, 3], 1, false, &mut each).is_err());
        let mut message = 20u32.to_ne_bytes().to_vec();
        message.extend([20, 0, 0, 0]);
        message.extend(7u32.to_ne_bytes());
        message.extend([0; 8]);
        assert!(read_answers(&message, 7, false, &mut each).is_err());
        assert!(!read_answers(&message, 8, false, &mut each).unwrap());
    }
}
