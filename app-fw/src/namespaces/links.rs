//! From a network device to the namespace at its other end: the way from a forwarded packet to the container that sent
//! it. Asks rtnetlink; see rtnetlink(7) and linux/net_namespace.h.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket};

use super::{NAMES, Namespace, Namespaces};
use crate::queue::message::{aligned, attributes};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_LINK_NETNSID: u16 = 37;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
/// nlmsghdr, ifinfomsg; nlmsghdr, rtgenmsg (padded).
const LINK_REQUEST: usize = 16 + 16;
const NSID_REQUEST: usize = 16 + 4 + 8;

/// What a device leads to.
#[derive(Clone, Debug)]
pub enum Beyond {
    /// A namespace of this machine.
    Namespace(Arc<Namespace>),
    /// No other namespace now: a bridge behind which none has the address, or a cable with both ends here.
    Elsewhere,
    /// No other namespace; that stays so.
    Nowhere,
}

/// The namespace in which `address` lives, reached through `device`, an interface index in the calling thread's
/// namespace: what is at the other end of a virtual cable, or, behind a bridge, what has the address.
///
/// # Errors
/// The kernel does not answer, or no process and no name leads to that namespace.
pub fn behind(namespaces: &Namespaces, device: u32, address: IpAddr) -> io::Result<Beyond> {
    let mut route = Route::open()?;
    let link = route.link(device)?;
    if link.peer.is_none() && !link.bridge {
        return Ok(if link.cable { Beyond::Elsewhere } else { Beyond::Nowhere });
    }
    let mut found = None;
    for path in candidates() {
        let Ok(file) = File::open(&path) else { continue };
        // A name whose namespace is not there yet, or no longer, is a plain file.
        let Ok(id) = route.nsid(&file.into()) else { continue };
        let leads_there = match link.peer {
            Some(peer) => id == Some(peer),
            None => id.is_some() && has_address(namespaces, &path, address)?,
        };
        if leads_there && found.replace(path).is_some() {
            return Err(io::Error::other("several namespaces behind the bridge have the address"));
        }
    }
    match (found, link.peer) {
        (Some(path), _) => Ok(Beyond::Namespace(Arc::new(namespaces.at(&path)?))),
        (None, None) => Ok(Beyond::Elsewhere),
        (None, Some(_)) => {
            Err(io::Error::new(io::ErrorKind::NotFound, "no process lives in the namespace behind the device"))
        }
    }
}

fn has_address(namespaces: &Namespaces, path: &Path, address: IpAddr) -> io::Result<bool> {
    let addresses = || -> Vec<IpAddr> {
        let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
        let address =
            |storage: nix::sys::socket::SockaddrStorage| match (storage.as_sockaddr_in(), storage.as_sockaddr_in6()) {
                (Some(v4), _) => Some(IpAddr::V4(v4.ip())),
                (_, Some(v6)) => Some(IpAddr::V6(v6.ip())),
                _ => None,
            };
        interfaces.filter_map(|interface| interface.address).filter_map(address).collect()
    };
    match namespaces.at(path).and_then(|namespace| namespace.inside(addresses)) {
        Ok(found) => Ok(found.contains(&address)),
        // It went meanwhile, and its address with it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Cookies of all namespaces that can be found.
pub(super) fn cookies() -> HashSet<u64> {
    let open = |path: PathBuf| Some(OwnedFd::from(File::open(path).ok()?));
    let cookie = |file: OwnedFd| crate::sys::netns::inside(&file, crate::sys::netns::current_cookie).ok()?.ok();
    candidates().filter_map(open).filter_map(cookie).collect()
}

/// One file for each namespace that has a name or a process.
pub(super) fn candidates() -> impl Iterator<Item = PathBuf> {
    let mut seen = HashSet::new();
    let named = std::fs::read_dir(NAMES).into_iter().flatten().flatten().map(|entry| entry.path());
    let of_process = |entry: std::fs::DirEntry| {
        entry.file_name().to_str()?.parse::<u32>().ok()?;
        Some(entry.path().join("ns/net"))
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(of_process);
    named.chain(processes).filter(move |path| std::fs::metadata(path).is_ok_and(|metadata| seen.insert(metadata.ino())))
}

/// A network device.
struct Link {
    /// The id, in this namespace, of the namespace at its other end.
    peer: Option<i32>,
    bridge: bool,
    /// A veth.
    cable: bool,
}

/// A routing socket in the calling thread's namespace.
struct Route {
    socket: OwnedFd,
}

impl Route {
    fn open() -> io::Result<Route> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
        let patience = Duration::from_secs(1);
        setsockopt(&socket, ReceiveTimeout, &nix::sys::time::TimeVal::new(patience.as_secs() as i64, 0))?;
        Ok(Route { socket })
    }

    /// What is at the other end of a device.
    fn link(&mut self, device: u32) -> io::Result<Link> {
        let mut request = [0; LINK_REQUEST];
        header(&mut request, RTM_GETLINK);
        request[20..24].copy_from_slice(&device.to_ne_bytes());
        let answer = self.ask(&request, RTM_NEWLINK)?;
        let info = attributes(answer.get(16..).unwrap_or_default()).find(|(kind, _)| *kind == IFLA_LINKINFO);
        let kind = info.and_then(|(_, info)| attributes(info).find(|(kind, _)| *kind == IFLA_INFO_KIND));
        Ok(Link {
            peer: number(&answer, 16, IFLA_LINK_NETNSID),
            bridge: kind.is_some_and(|(_, kind)| kind.starts_with(b"bridge")),
            cable: kind.is_some_and(|(_, kind)| kind.starts_with(b"veth")),
        })
    }

    /// The id of a namespace in this one; `None` if it has none, so that no device leads there.
    fn nsid(&mut self, namespace: &OwnedFd) -> io::Result<Option<i32>> {
        let mut request = [0; NSID_REQUEST];
        header(&mut request, RTM_GETNSID);
        request[20..22].copy_from_slice(&8u16.to_ne_bytes());
        request[22..24].copy_from_slice(&NETNSA_FD.to_ne_bytes());
        request[24..28].copy_from_slice(&namespace.as_raw_fd().to_ne_bytes());
        let answer = self.ask(&request, RTM_NEWNSID)?;
        Ok(number(&answer, 4, NETNSA_NSID).filter(|id| *id >= 0))
    }

    /// The body of the one message that answers.
    fn ask(&mut self, request: &[u8], wanted: u16) -> io::Result<Vec<u8>> {
        send(self.socket.as_raw_fd(), request, MsgFlags::MSG_NOSIGNAL)?;
        let mut buffer = vec![0; 32 * 1024];
        let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        buffer.truncate(length);
        let broken = || io::Error::new(io::ErrorKind::InvalidData, "rtnetlink answered nonsense");
        let head: &[u8; 16] = buffer.first_chunk().ok_or_else(broken)?;
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let body = buffer.get(16..length).ok_or_else(broken)?;
        match u16::from_ne_bytes([head[4], head[5]]) {
            kind if kind == wanted => Ok(body.to_vec()),
            NLMSG_ERROR => {
                let error: &[u8; 4] = body.first_chunk().ok_or_else(broken)?;
                Err(io::Error::from_raw_os_error(-i32::from_ne_bytes(*error)))
            }
            _ => Err(broken()),
        }
    }
}

fn header(request: &mut [u8], kind: u16) {
    let length = aligned(request.len()) as u32;
    request[0..4].copy_from_slice(&length.to_ne_bytes());
    request[4..6].copy_from_slice(&kind.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
}

/// A 32-bit attribute behind a fixed header.
fn number(body: &[u8], fixed: usize, wanted: u16) -> Option<i32> {
    let (_, value) = attributes(body.get(fixed..)?).find(|(kind, _)| *kind == wanted)?;
    Some(i32::from_ne_bytes(*value.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_leads_nowhere() {
        let namespaces = Namespaces::look().unwrap();
        let address = "192.0.2.1".parse().unwrap();
        assert!(matches!(behind(&namespaces, 1, address), Ok(Beyond::Nowhere)));
        assert!(behind(&namespaces, 0x7fff_fff0, address).is_err());
        assert!(cookies().contains(&namespaces.own.id.cookie));
    }
}
