//! The list of open sockets shows every holder. Needs root and a real kernel.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::OnceLock;

use nix::libc;
use syscall_probe::{Holders, Options, Probe, SocketEnds, SocketRecord};

mod actor;
use actor::Actor;

#[test]
fn actor() {
    actor::play();
}

fn holders() -> Holders {
    static PROBE: OnceLock<Probe> = OnceLock::new();
    let probe = PROBE.get_or_init(|| Probe::load(&Options::default()).expect("the probe loads (tests run as root)"));
    probe.holders().expect("the iterator loads")
}

fn sockets_of(tgid: u32) -> Vec<SocketRecord> {
    let mut sockets = Vec::new();
    holders().of_process(tgid, &mut sockets).expect("the iterator runs");
    sockets
}

fn with_cookie(records: Vec<SocketRecord>, cookie: u64) -> Vec<SocketRecord> {
    records.into_iter().filter(|record| record.cookie == cookie).collect()
}

#[test]
fn a_socket_is_described() {
    let mut actor = Actor::start();
    let port = actor.number("tcp-listen l") as u16;
    let cookie = actor.number("cookie l");
    actor.act("move l 777");
    let [record] = sockets_of(actor.tgid())[..] else { panic!("one socket") };
    let netns = std::fs::read_link(actor.proc("ns/net")).expect("it lives");
    let link = std::fs::read_link(actor.proc("fd/777")).expect("it is open");
    assert_eq!((record.tgid, record.fd, record.cookie), (actor.tgid(), 777, cookie));
    assert_eq!(link.to_str(), Some(format!("socket:[{}]", record.inode).as_str()));
    assert_eq!(netns.to_str(), Some(format!("net:[{}]", record.netns).as_str()));
    assert_eq!(i32::from(record.family), libc::AF_INET);
    assert_eq!((i32::from(record.kind), i32::from(record.protocol)), (libc::SOCK_STREAM, libc::IPPROTO_TCP));
    assert_eq!((record.state, record.local_port, record.remote_port), (10, port, 0));
    assert_eq!((record.local, record.remote), (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
    assert_eq!((record.file_refs, record.shared_table, record.ipv6_only), (1, false, false));
    assert!(record.reuse, "std sets SO_REUSEADDR on listeners");
}

#[test]
fn every_protocol_is_listed() {
    let mut actor = Actor::start();
    actor.act("udp u");
    let to = actor.number("connect u 9") as u16;
    actor.act("raw r");
    let identifier = actor.number("ping p") as u16;
    let sockets = sockets_of(actor.tgid());
    let mut protocols: Vec<_> =
        sockets.iter().map(|record| (i32::from(record.kind), i32::from(record.protocol))).collect();
    protocols.sort_unstable();
    let expected = [
        (libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
        (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
        (libc::SOCK_RAW, libc::IPPROTO_ICMP),
    ];
    assert_eq!(protocols, expected);
    let find = |kind, protocol| {
        let same = |record: &&SocketRecord| i32::from(record.kind) == kind && i32::from(record.protocol) == protocol;
        sockets.iter().find(same).expect("it is listed")
    };
    let udp = find(libc::SOCK_DGRAM, libc::IPPROTO_UDP);
    assert_eq!((udp.local_port, udp.remote_port, udp.remote), (to, 9, IpAddr::V4(Ipv4Addr::LOCALHOST)));
    assert!(!udp.reuse);
    assert_eq!(find(libc::SOCK_DGRAM, libc::IPPROTO_ICMP).local_port, identifier);
}

#[test]
fn every_reference_is_counted() {
    let mut actor = Actor::start();
    actor.act("udp u");
    let cookie = actor.number("cookie u");
    let references =
        |tgid| with_cookie(sockets_of(tgid), cookie).iter().map(|record| record.file_refs).collect::<Vec<_>>();
    assert_eq!(references(actor.tgid()), [1]);
    actor.act("dup v u");
    assert_eq!(references(actor.tgid()), [2, 2]);
    actor.act("close v");
    assert_eq!(references(actor.tgid()), [1]);
    let child = actor.number("fork-and-wait") as u32;
    assert_eq!((references(actor.tgid()), references(child)), (vec![2], vec![2]));
    actor.act("dup v u");
    assert_eq!((references(actor.tgid()), references(child)), (vec![3, 3], vec![3]));
}

#[test]
fn the_list_of_all_has_every_holder() {
    let mut actor = Actor::start();
    actor.act("udp u");
    let cookie = actor.number("cookie u");
    let child = actor.number("fork-and-wait") as u32;
    let mut all = Vec::new();
    holders().all(&mut all).expect("the iterator runs");
    let mut one_by_one = with_cookie(sockets_of(actor.tgid()), cookie);
    one_by_one.extend(with_cookie(sockets_of(child), cookie));
    one_by_one.sort_unstable_by_key(|record| record.tgid);
    let mut together = with_cookie(all, cookie);
    together.sort_unstable_by_key(|record| record.tgid);
    assert_eq!(together.len(), 2);
    assert_eq!(together, one_by_one);
}

/// By comparing pointers as by looking at all open files.
#[test]
fn the_holders_of_one_socket_are_those_of_the_list() {
    for make in ["udp-bound s", "tcp-listen s"] {
        let mut actor = Actor::start();
        let namespace = std::fs::File::open(actor.proc("ns/net")).expect("it lives");
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("tests run as root");
        actor.act(make);
        actor.act("dup t s");
        actor.act("move t 777");
        let cookie = actor.number("cookie s");
        let child = actor.number("fork-and-wait") as u32;
        let [record, ..] = with_cookie(sockets_of(child), cookie)[..] else { panic!("it is held") };
        let ends = SocketEnds::from(&record);
        let list = |tgid| {
            let mut found = Vec::new();
            assert!(holders().of_socket(&ends, tgid, &mut found).expect("the iterator runs"), "{make}: is found");
            found.sort_unstable_by_key(|record| (record.tgid, record.fd));
            found
        };
        let mut all = Vec::new();
        holders().all(&mut all).expect("the iterator runs");
        let mut all = with_cookie(all, cookie);
        all.sort_unstable_by_key(|record| (record.tgid, record.fd));
        assert_eq!(all.len(), 4);
        assert_eq!(list(0), all);
        assert_eq!(list(child), with_cookie(sockets_of(child), cookie));
        let another = SocketEnds { cookie: cookie + 1, ..ends };
        assert!(!holders().of_socket(&another, 0, &mut Vec::new()).expect("it runs"), "{make}: another's cookie");
    }
}

#[test]
fn a_shared_descriptor_table_is_told() {
    let mut actor = Actor::start();
    actor.act("udp u");
    let child = actor.number("share-table") as u32;
    let [parents] = sockets_of(actor.tgid())[..] else { panic!("one socket") };
    let [childs] = sockets_of(child)[..] else { panic!("one socket") };
    assert!(parents.shared_table && childs.shared_table);
    assert_eq!(
        (parents.cookie, parents.file_refs, childs.file_refs),
        (childs.cookie, 1, 1),
        "one descriptor, two holders"
    );
}

/// The kernel shows a table once for each thread that has not got the first one's.
#[test]
fn a_descriptor_is_counted_once() {
    let references = |actor: &mut Actor, cookie| {
        let one = with_cookie(sockets_of(actor.tgid()), cookie);
        let mut lists = [Vec::new(), Vec::new()];
        holders().all(&mut lists[0]).expect("the iterator runs");
        let ends = SocketEnds::from(&one[0]);
        assert!(holders().of_socket(&ends, 0, &mut lists[1]).expect("the iterator runs"));
        for list in lists {
            assert_eq!(with_cookie(list, cookie), one);
        }
        one.iter().map(|record| record.file_refs).collect::<Vec<_>>()
    };
    for end_first in [true, false] {
        let mut actor = Actor::start();
        let namespace = std::fs::File::open(actor.proc("ns/net")).expect("it lives");
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("tests run as root");
        actor.act("udp-bound u");
        let cookie = actor.number("cookie u");
        if end_first {
            actor.act("end-first-thread");
        }
        assert_eq!(references(&mut actor, cookie), [1]);
        // One that two threads share beside the acting thread's: one number, of two references.
        actor.act("new-table");
        assert_eq!(references(&mut actor, cookie), [2]);
    }
}

/// More records than fit the reader's buffer, and than the kernel writes at once.
#[test]
fn long_lists_are_whole() {
    let mut actor = Actor::start();
    actor.act("udp-many 1000");
    let sockets = sockets_of(actor.tgid());
    assert_eq!(sockets.len(), 1000);
    let mut cookies: Vec<u64> = sockets.iter().map(|record| record.cookie).collect();
    cookies.sort_unstable();
    cookies.dedup();
    assert_eq!(cookies.len(), 1000);
}

#[test]
fn nobody_holds_nothing() {
    let mut actor = Actor::start();
    let tgid = actor.tgid();
    assert_eq!(sockets_of(tgid), []);
    actor.kill();
    assert_eq!(sockets_of(tgid), []);
    assert_eq!(sockets_of(0), []);
}
