//! Questions to rtnetlink about devices, ids of namespaces, and addresses; see rtnetlink(7), linux/net_namespace.h and
//! linux/if_addr.h.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket};

use crate::queue::message::{aligned, attributes};
use crate::sys::netlink;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWNSID: u16 = 88;
const RTM_DELNSID: u16 = 89;
const RTM_GETNSID: u16 = 90;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_LINK_NETNSID: u16 = 37;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_TARGET_NETNSID: u16 = 10;
const NETNSA_NSID: u16 = 1;
const NETNSA_PID: u16 = 2;
const NETNSA_FD: u16 = 3;
/// Sizes of `nlmsghdr`, `ifinfomsg`, `ifaddrmsg` and `rtgenmsg` (padded).
const HEADER: usize = 16;
const LINK: usize = 16;
const ADDRESS: usize = 8;
const ID: usize = 4;

/// What changes under a dump is dumped again so often.
const ATTEMPTS: usize = 8;

/// `RTNLGRP_*` of linux/rtnetlink.h, as bits: IPv4 addresses, IPv6 addresses, ids of namespaces.
const GROUPS: u32 = 1 << (5 - 1) | 1 << (9 - 1) | 1 << (28 - 1);

/// The id of a namespace in the daemon's own: what devices say of where they lead.
pub type PeerId = i32;

/// A network device.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// The namespace at its other end.
    pub peer: Option<PeerId>,
    /// It is a bridge.
    pub bridge: bool,
    /// It is a veth.
    pub cable: bool,
}

/// A routing socket in the calling thread's namespace. After an error it may still hold the late answer to an older
/// question: open another.
#[derive(Debug)]
pub struct Route {
    socket: OwnedFd,
}

impl Route {
    /// Opens one.
    ///
    /// # Errors
    /// The kernel is out of something.
    pub fn open() -> io::Result<Route> {
        let route = Route { socket: open()? };
        // Else a dump takes no notice of IFA_TARGET_NETNSID.
        netlink::check_strictly(route.socket.as_fd())?;
        Ok(route)
    }

    /// What is at the other end of a device.
    ///
    /// # Errors
    /// There is no such device, or no answer.
    pub fn link(&self, device: u32) -> io::Result<Link> {
        let mut body = [0; LINK];
        body[4..8].copy_from_slice(&device.to_ne_bytes());
        let answer = self.ask(RTM_GETLINK, &body, RTM_NEWLINK)?;
        let info = attributes(answer.get(LINK..).unwrap_or_default()).find(|(kind, _)| *kind == IFLA_LINKINFO);
        let kind = info.and_then(|(_, info)| attributes(info).find(|(kind, _)| *kind == IFLA_INFO_KIND));
        Ok(Link {
            peer: number(&answer, LINK, IFLA_LINK_NETNSID),
            bridge: kind.is_some_and(|(_, kind)| kind.starts_with(b"bridge")),
            cable: kind.is_some_and(|(_, kind)| kind.starts_with(b"veth")),
        })
    }

    /// The id of the namespace that a file refers to; `None` if it has none, so that no device leads there.
    ///
    /// # Errors
    /// The file is no namespace.
    pub fn id_of_file(&self, namespace: &impl AsRawFd) -> io::Result<Option<PeerId>> {
        self.id(NETNSA_FD, namespace.as_raw_fd())
    }

    /// The id of the namespace that a process lives in.
    ///
    /// # Errors
    /// There is no such process.
    pub fn id_of_process(&self, pid: i32) -> io::Result<Option<PeerId>> {
        self.id(NETNSA_PID, pid)
    }

    fn id(&self, by: u16, value: i32) -> io::Result<Option<PeerId>> {
        let answer = self.ask(RTM_GETNSID, &with_number([0; ID], by, value), RTM_NEWNSID)?;
        Ok(number(&answer, ID, NETNSA_NSID).filter(|id| *id >= 0))
    }

    /// All ids there are.
    ///
    /// # Errors
    /// No answer.
    pub fn ids(&self) -> io::Result<HashSet<PeerId>> {
        let mut ids = HashSet::new();
        self.dump(RTM_GETNSID, &[0; ID], |kind, body| {
            if kind == RTM_NEWNSID {
                ids.extend(number(body, ID, NETNSA_NSID).filter(|id| *id >= 0));
            }
        })?;
        Ok(ids)
    }

    /// The addresses of the namespace with an id; none if no namespace has it.
    ///
    /// # Errors
    /// No answer, or the addresses change all the time.
    pub fn addresses(&self, of: PeerId) -> io::Result<HashSet<IpAddr>> {
        for _ in 0..ATTEMPTS {
            match self.addresses_now(of) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(HashSet::new()),
                answer => return answer,
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    fn addresses_now(&self, of: PeerId) -> io::Result<HashSet<IpAddr>> {
        let mut addresses = HashSet::new();
        self.dump(RTM_GETADDR, &with_number([0; ADDRESS], IFA_TARGET_NETNSID, of), |kind, body| {
            if kind == RTM_NEWADDR {
                let find = |wanted| attributes(body.get(ADDRESS..)?).find(|(kind, _)| *kind == wanted);
                // Where the two differ, IFA_ADDRESS is the other end's.
                let own = find(IFA_LOCAL).or_else(|| find(IFA_ADDRESS));
                addresses.extend(own.and_then(|(_, bytes)| address(bytes)));
            }
        })?;
        Ok(addresses)
    }

    fn send(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let mut request = vec![0; HEADER];
        request.extend(body);
        let length = aligned(request.len());
        request.resize(length, 0);
        request[0..4].copy_from_slice(&(length as u32).to_ne_bytes());
        request[4..6].copy_from_slice(&kind.to_ne_bytes());
        request[6..8].copy_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        send(self.socket.as_raw_fd(), &request, MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }

    /// The body of the one message that answers.
    fn ask(&self, kind: u16, body: &[u8], wanted: u16) -> io::Result<Vec<u8>> {
        self.send(kind, 0, body)?;
        let mut buffer = vec![0; 32 * 1024];
        let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        match messages(buffer.get(..length).unwrap_or_default()).next() {
            Some(Message { kind, body, .. }) if kind == wanted => Ok(body.to_vec()),
            Some(Message { kind: NLMSG_ERROR, body, .. }) => Err(error(body)),
            _ => Err(broken()),
        }
    }

    /// All messages that answer.
    fn dump(&self, kind: u16, body: &[u8], mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.send(kind, NLM_F_DUMP, body)?;
        let mut buffer = vec![0; 32 * 1024];
        let mut interrupted = false;
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for Message { kind, flags, body } in messages(buffer.get(..length).unwrap_or_default()) {
                interrupted |= flags & NLM_F_DUMP_INTR != 0;
                match kind {
                    // An error may stand where the count of messages would.
                    NLMSG_DONE if body.first_chunk::<4>().is_some_and(|code| i32::from_ne_bytes(*code) < 0) => {
                        return Err(error(body));
                    }
                    // Something changed meanwhile, and something else may have been left out for it.
                    NLMSG_DONE if interrupted => return Err(io::ErrorKind::Interrupted.into()),
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return Err(error(body)),
                    kind => each(kind, body),
                }
            }
        }
    }
}

/// What changed in a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum News {
    /// It got its id, or its addresses changed.
    Changed(PeerId),
    /// It is gone, and its id may be given again.
    Gone(PeerId),
}

/// Hears of new ids, and of addresses in all namespaces that have one. The kernel tells in the system call that makes the
/// change.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
}

impl Listener {
    /// Starts to listen.
    ///
    /// # Errors
    /// The kernel is out of something, or this is not root.
    pub fn open() -> io::Result<Listener> {
        let socket = open()?;
        netlink::hear_all_namespaces(socket.as_fd())?;
        nix::sys::socket::bind(socket.as_raw_fd(), &nix::sys::socket::NetlinkAddr::new(0, GROUPS))?;
        Ok(Listener { socket })
    }

    /// All that happened since the last call.
    ///
    /// # Errors
    /// Something was missed. What follows is heard again.
    pub fn news(&self) -> io::Result<Vec<News>> {
        let mut news = Vec::new();
        let mut buffer = vec![0; 32 * 1024];
        while let Some((length, from)) = netlink::receive_from(self.socket.as_fd(), &mut buffer)? {
            for Message { kind, body, .. } in messages(buffer.get(..length).unwrap_or_default()) {
                let id = || number(body, ID, NETNSA_NSID);
                news.extend(match kind {
                    RTM_NEWADDR | RTM_DELADDR => from.map(News::Changed),
                    // Others' ids are theirs.
                    RTM_NEWNSID if from.is_none() => id().map(News::Changed),
                    RTM_DELNSID if from.is_none() => id().map(News::Gone),
                    _ => None,
                });
            }
        }
        Ok(news)
    }
}

fn open() -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    let patience = Duration::from_secs(1);
    setsockopt(&socket, ReceiveTimeout, &nix::sys::time::TimeVal::new(patience.as_secs() as i64, 0))?;
    Ok(socket)
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    body: &'a [u8],
}

/// The messages in a buffer.
fn messages(mut rest: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let head: &[u8; HEADER] = rest.first_chunk()?;
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let body = rest.get(HEADER..length)?;
        rest = rest.get(aligned(length)..).unwrap_or_default();
        let (kind, flags) = (u16::from_ne_bytes([head[4], head[5]]), u16::from_ne_bytes([head[6], head[7]]));
        Some(Message { kind, flags, body })
    })
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "rtnetlink answered nonsense")
}

fn error(body: &[u8]) -> io::Error {
    body.first_chunk().map_or_else(broken, |code| io::Error::from_raw_os_error(-i32::from_ne_bytes(*code)))
}

/// A fixed header with a 32-bit attribute behind it.
fn with_number<const N: usize>(fixed: [u8; N], kind: u16, value: i32) -> Vec<u8> {
    let mut body = fixed.to_vec();
    body.extend(8u16.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value.to_ne_bytes());
    body
}

/// A 32-bit attribute behind a fixed header.
fn number(body: &[u8], fixed: usize, wanted: u16) -> Option<i32> {
    let (_, value) = attributes(body.get(fixed..)?).find(|(kind, _)| *kind == wanted)?;
    Some(i32::from_ne_bytes(*value.first_chunk()?))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?));
    v4().or_else(|| Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_messages_are_none() {
        let mut bytes = vec![0; 40];
        bytes[0..4].copy_from_slice(&20u32.to_ne_bytes());
        bytes[4..6].copy_from_slice(&RTM_NEWADDR.to_ne_bytes());
        bytes[20..24].copy_from_slice(&20u32.to_ne_bytes());
        let found: Vec<_> = messages(&bytes).map(|message| (message.kind, message.body.len())).collect();
        assert_eq!(found, [(RTM_NEWADDR, 4), (0, 4)]);
        for length in 0..20 {
            assert_eq!(messages(&bytes[..length]).count(), 0, "{length}");
        }
        // A length that is shorter than the header itself ends it, and does not loop.
        bytes[0..4].copy_from_slice(&4u32.to_ne_bytes());
        assert_eq!(messages(&bytes).count(), 0);
    }

    #[test]
    fn this_processs_namespace_has_the_same_id_by_both_ways() {
        let route = Route::open().unwrap();
        let file = std::fs::File::open("/proc/self/ns/net").unwrap();
        let pid = std::process::id() as i32;
        assert_eq!(route.id_of_file(&file).unwrap(), route.id_of_process(pid).unwrap());
        assert!(route.id_of_process(0x7fff_fff0).is_err());
        // After an error of the kernel's the next question is answered.
        assert!(route.link(1).unwrap().peer.is_none());
    }
}
