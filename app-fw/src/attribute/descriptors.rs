//! Open sockets by /proc alone: what is left when the kernel lets no iterator be loaded. Slow, and silent about
//! descriptors that come and go while it reads.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;

use procfs::process::{FDTarget, Process, Task, all_processes};
use shared::Protocol;
use syscall_probe::SocketRecord;

use crate::image::TICK;
use crate::sys::processes::share_descriptors;

/// What /proc/PID/net tells about a socket that diagnostics do not know.
#[derive(Clone, Copy)]
struct Listed {
    netns: u32,
    family: i32,
    kind: i32,
    protocol: u16,
    local: IpAddr,
    /// As [`SocketRecord::local_port`].
    port: u16,
}

/// One record for each open descriptor of a socket. Ends are known for ICMP and raw sockets only; all others have just
/// their inode and holder.
pub(crate) fn dump() -> io::Result<Vec<SocketRecord>> {
    let mut listed = HashMap::new();
    let mut namespaces = HashSet::new();
    let mut open = Vec::new();
    for process in all_processes().map_err(io::Error::other)?.flatten() {
        // A process that ends meanwhile holds nothing any more.
        let _ = look_at(&process, &mut namespaces, &mut listed, &mut open);
    }
    Ok(open.into_iter().map(|(tgid, start, fd, inode)| record(tgid, start, fd, inode, listed.get(&inode))).collect())
}

type Descriptor = (u32, u64, u32, u64);

fn look_at(
    process: &Process,
    namespaces: &mut HashSet<u64>,
    listed: &mut HashMap<u64, Listed>,
    open: &mut Vec<Descriptor>,
) -> procfs::ProcResult<()> {
    let start = process.stat()?.starttime;
    let mut found = Vec::new();
    let mut seen: Vec<i32> = Vec::new();
    for task in process.tasks()?.flatten() {
        // Most threads have the table of the first one; some have their own; one that has ended has none.
        if seen.iter().any(|other| share_descriptors(*other, task.tid)) {
            continue;
        }
        let place = format!("/proc/{}/task/{}", task.pid, task.tid);
        let _ = look_at_thread(&place, namespaces, listed, &mut found);
        // Of one that ended meanwhile, something may be missing that another has.
        if seen.len() < MAX_TABLES && has_descriptors(&task) {
            seen.push(task.tid);
        }
    }
    // It is there still, so the id was nobody else's meanwhile.
    process.stat()?;
    open.extend(found.into_iter().map(|(fd, inode)| (process.pid as u32, start, fd, inode)));
    Ok(())
}

/// Tables of one process that each thread's is compared with. What is not known to be the same is looked at.
const MAX_TABLES: usize = 8;

fn has_descriptors(thread: &Task) -> bool {
    std::fs::read_dir(format!("/proc/{}/task/{}/fd", thread.pid, thread.tid)).is_ok_and(|mut fds| fds.next().is_some())
}

/// `place`: its directory in /proc. Finds descriptors with the inode numbers of their sockets.
fn look_at_thread(
    place: &str,
    namespaces: &mut HashSet<u64>,
    listed: &mut HashMap<u64, Listed>,
    found: &mut Vec<(u32, u64)>,
) -> procfs::ProcResult<()> {
    for descriptor in Process::new_with_root(place.into())?.fd()?.flatten() {
        if let FDTarget::Socket(inode) = descriptor.target {
            found.push((descriptor.fd as u32, inode));
        }
    }
    let netns = std::fs::metadata(format!("{place}/ns/net"))?.ino();
    if namespaces.insert(netns) {
        for (table, family, kind, protocol) in TABLES {
            let text = std::fs::read_to_string(format!("{place}/net/{table}")).unwrap_or_default();
            for (inode, local, port) in text.lines().skip(1).filter_map(|line| parse(line, family)) {
                let protocol = if kind == libc::SOCK_RAW { port } else { u16::from(protocol.0) };
                listed.insert(inode, Listed { netns: netns as u32, family, kind, protocol, local, port });
            }
        }
    }
    Ok(())
}

const TABLES: [(&str, i32, i32, Protocol); 4] = [
    ("raw", libc::AF_INET, libc::SOCK_RAW, Protocol::RAW),
    ("raw6", libc::AF_INET6, libc::SOCK_RAW, Protocol::RAW),
    ("icmp", libc::AF_INET, libc::SOCK_DGRAM, Protocol::ICMP),
    ("icmp6", libc::AF_INET6, libc::SOCK_DGRAM, Protocol::ICMPV6),
];

fn record(tgid: u32, start: u64, fd: u32, inode: u64, listed: Option<&Listed>) -> SocketRecord {
    let unspecified = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    SocketRecord {
        tgid,
        fd,
        start: start * TICK,
        inode,
        cookie: 0,
        file_refs: 0,
        netns: listed.map_or(0, |listed| listed.netns),
        family: listed.map_or(0, |listed| listed.family as u16),
        kind: listed.map_or(0, |listed| listed.kind as u16),
        protocol: listed.map_or(0, |listed| listed.protocol),
        state: 0,
        shared_table: true,
        ipv6_only: false,
        reuse: true,
        local_port: listed.map_or(0, |listed| listed.port),
        remote_port: 0,
        local: listed.map_or(unspecified, |listed| listed.local),
        remote: unspecified,
    }
}

/// Inode, local address and port of a line of /proc/net/raw and its kin: the address is written word by word in the
/// machine's byte order, the port behind a colon.
fn parse(line: &str, family: i32) -> Option<(u64, IpAddr, u16)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let inode = fields.nth(7)?.parse().ok()?;
    let mut octets = [0u8; 16];
    for (word, digits) in octets.chunks_exact_mut(4).zip(address.as_bytes().chunks_exact(8)) {
        let digits = std::str::from_utf8(digits).ok()?;
        word.copy_from_slice(&u32::from_str_radix(digits, 16).ok()?.to_ne_bytes());
    }
    let address = match family {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3])),
        _ => IpAddr::V6(Ipv6Addr::from(octets)),
    };
    Some((inode, address, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn lines_of_the_tables() {
        let v4 = "  1: 0100007F:0001 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 x 0";
        assert_eq!(parse(v4, libc::AF_INET), Some((4711, "127.0.0.1".parse().unwrap(), 1)));
        let v6 = "  1: 00000000000000000000000001000000:003A 00000000000000000000000000000000:0000 07 00000000:00000000 \
                  00:00000000 00000000     0        0 12 2 x 0";
        assert_eq!(parse(v6, libc::AF_INET6), Some((12, "::1".parse().unwrap(), 58)));
        for bad in ["", "1:", "1: zz:1", "1: 0100007F:0001 x"] {
            assert_eq!(parse(bad, libc::AF_INET), None);
        }
    }

    #[test]
    fn this_process_holds_its_sockets() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let inode = std::fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap().ino();
        let found = dump().unwrap();
        let holders: Vec<_> = found.iter().filter(|record| record.inode == inode).map(|record| record.tgid).collect();
        assert_eq!(holders, [std::process::id()]);
    }
}
