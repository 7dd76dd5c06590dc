//! Each hook moves what it must, and does not move what it need not. Needs root and a real kernel.

use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use syscall_probe::{EventKind, Generations, Options, Probe, Writer, Writers};

mod actor;
use actor::Actor;

/// How often a thing that should stand still is looked at: slots are shared with the rest of the machine, so one quiet
/// look is proof.
const LOOKS: usize = 20;

#[test]
fn actor() {
    actor::play();
}

fn probe() -> &'static Probe {
    static PROBE: OnceLock<Probe> = OnceLock::new();
    PROBE.get_or_init(|| {
        let probe = Probe::load(&Options::default()).expect("the probe loads (tests run as root)");
        assert_eq!(probe.missing(), []);
        probe
    })
}

fn generations() -> Generations {
    probe().generations()
}

#[track_caller]
fn moves<T: PartialEq + std::fmt::Debug>(value: impl Fn() -> T, act: impl FnOnce()) {
    let before = value();
    act();
    assert_ne!(value(), before);
}

#[track_caller]
fn stands_still<T: PartialEq>(value: impl Fn() -> T, mut act: impl FnMut()) {
    let quiet = (0..LOOKS).any(|_| {
        let before = value();
        act();
        value() == before
    });
    assert!(quiet, "it moved every time");
}

#[track_caller]
fn act_moves_process(command: &str) {
    let (all, mut actor) = (generations(), Actor::start());
    let tgid = actor.tgid();
    moves(|| all.process(tgid).value, || drop(actor.act(command)));
    settles(&all, tgid);
}

/// Looks until something is so, for ten seconds at most: what is waited for is a moment away and has no event of its own.
#[track_caller]
fn comes_true(is_so: impl Fn() -> bool, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// Nothing of the actor's is in flight any more. Others' wide calls may be, for a moment.
#[track_caller]
fn settles(all: &Generations, tgid: u32) {
    comes_true(|| all.process(tgid).settled, "still in flight");
}

#[track_caller]
fn act_leaves_process(command: &str) {
    let (all, mut actor) = (generations(), Actor::start());
    let tgid = actor.tgid();
    stands_still(|| all.process(tgid).value, || drop(actor.act(command)));
}

#[track_caller]
fn act_moves_image(command: &str) {
    let (all, mut actor) = (generations(), Actor::start());
    let tgid = actor.tgid();
    moves(|| all.image(tgid).value, || drop(actor.act(command)));
    comes_true(|| all.image(tgid).settled, "still in flight");
    stands_still(|| all.process(tgid).value, || drop(actor.act(command)));
}

#[track_caller]
fn act_leaves_image(command: &str) {
    let (all, mut actor) = (generations(), Actor::start());
    let tgid = actor.tgid();
    stands_still(|| all.image(tgid).value, || drop(actor.act(command)));
}

#[test]
fn executable_mappings_move_the_image() {
    act_moves_image("mmap rx");
    act_moves_image("mmap rwx");
    act_moves_image("mprotect rx");
    act_moves_image("shmat 32768"); // SHM_EXEC
    act_moves_image("mmap-read-implies-exec");
}

#[test]
fn executable_mappings_by_32_bit_calls_move_the_image() {
    act_moves_image("mprotect-32 rx");
    act_leaves_image("mprotect-32 rw");
}

#[test]
fn shedding_something_executable_moves_image_and_shed() {
    let (all, mut actor) = (generations(), Actor::start());
    let tgid = actor.tgid();
    let generations = || (all.image(tgid).value, all.shed(tgid));
    for (pages, way) in [
        ("rx", "munmap"),
        ("r rx", "munmap"),
        ("r rw r rw r rx", "munmap"),
        ("rx", "mprotect"),
        ("rw rx", "mprotect"),
        ("r rx", "mmap"),
        ("rx rx", "mremap"),
        ("rx", "mremap-onto"),
    ] {
        actor.act(&format!("map {pages}"));
        let before = generations();
        actor.act(&format!("shed {way}"));
        let after = generations();
        assert!(before.0 != after.0 && before.1 != after.1, "{pages}, {way}: {before:?}");
    }
    for (pages, way) in
        [("r", "munmap"), ("rw r", "munmap"), ("r rw r rw", "munmap"), ("rw", "mprotect"), ("rw", "mmap")]
    {
        let mut shed = || {
            actor.act(&format!("map {pages}"));
            let before = generations();
            actor.act(&format!("shed {way}"));
            generations() == before
        };
        assert!((0..LOOKS).any(|_| shed()), "{pages}, {way}: it moved every time");
    }
}

#[test]
fn new_mappings_shed_nothing() {
    let (all, mut actor) = (generations(), Actor::start());
    let tgid = actor.tgid();
    stands_still(|| all.shed(tgid), || drop(actor.act("map rx")));
}

#[track_caller]
fn act_moves_standing(command: &str) {
    let (all, mut actor) = (generations(), Actor::start());
    let tgid = actor.tgid();
    let made_before = all.process(tgid).value;
    moves(|| all.standing(tgid).value, || drop(actor.act(command)));
    comes_true(|| all.standing(tgid).settled, "still in flight");
    let (since, now) = (all.standing_since(tgid), all.process(tgid).value);
    assert!(made_before < since && since <= now, "{command}: {made_before}, {since}, {now}");
    // What it is made of is another matter.
    stands_still(|| (all.image(tgid).value, all.shed(tgid)), || drop(actor.act(command)));
}

#[test]
fn calls_that_change_users_move_the_standing() {
    for call in ["setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid"] {
        act_moves_standing(&format!("set-user {call}"));
    }
    act_moves_standing("thread-of-user 65534");
    let (all, mut actor) = (generations(), Actor::start());
    let tgid = actor.tgid();
    stands_still(|| all.standing(tgid).value, || drop(actor.act("set-user getuid")));
    stands_still(|| all.standing(tgid).value, || drop(actor.act("map rx")));
}

#[test]
fn calls_of_32_bits_that_change_users_move_the_standing() {
    // Each of the above with ids of 16 bits and of 32.
    for number in [23, 213, 46, 214, 70, 203, 71, 204, 164, 208, 170, 210, 138, 215, 139, 216] {
        act_moves_standing(&format!("set-user-32 {number}"));
    }
}

#[test]
fn another_program_or_process_is_of_another_standing() {
    let (all, mut actor) = (generations(), Actor::start());
    let tgid = actor.tgid();
    let standing = || all.standing(tgid).value;
    moves(standing, || drop(actor.act("fail-to-exec")));
    stands_still(standing, || drop(actor.act("fork-and-wait")));
    let before = standing();
    actor.act("become-a-shell");
    assert_ne!(standing(), before);
}

/// A control group of version 2 that a test has for itself.
struct ControlGroup(std::path::PathBuf);

impl ControlGroup {
    fn new() -> ControlGroup {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let fields = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let mount = mounts.lines().map(fields).find(|fields| fields.iter().any(|field| field == "cgroup2"));
        let place = format!("{}/syscall-probe-test-{}", mount.expect("cgroup2 is mounted")[4], std::process::id());
        std::fs::create_dir(&place).expect("a control group");
        ControlGroup(place.into())
    }

    fn take(&self, tgid: u32) {
        std::fs::write(self.0.join("cgroup.procs"), tgid.to_string()).expect("it takes a process");
    }

    fn give_back(&self, tgid: u32) {
        let root = self.0.parent().expect("the root");
        std::fs::write(root.join("cgroup.procs"), tgid.to_string()).expect("the root takes a process");
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // A process that has ended leaves it a moment later.
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}

#[test]
fn another_control_group_moves_the_standing() {
    let group = ControlGroup::new();
    let (all, mut actor) = (generations(), Actor::start());
    let tgid = actor.tgid();
    let (made_before, image) = (all.process(tgid).value, all.image(tgid).value);
    moves(|| all.standing(tgid).value, || group.take(tgid));
    let since = all.standing_since(tgid);
    assert!(made_before < since && since <= all.process(tgid).value);
    // Not what its end would look like.
    assert!(all.process(tgid).value > made_before + 1);
    moves(|| all.standing(tgid).value, || group.give_back(tgid));
    assert_eq!(all.image(tgid).value, image);
    actor.kill();
}

/// In a network namespace of its own: the probe is told of those in which it was loaded.
#[test]
fn changes_of_network_devices_move_the_links() {
    let in_between = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
        let probe = Probe::load(&Options::default()).expect("the probe loads");
        assert!(probe.generations().exact().links);
        let all = probe.generations();
        let ip = |command: &str| {
            assert!(Command::new("ip").args(command.split(' ')).status().expect("ip runs").success(), "{command}");
        };
        for command in ["link add one type veth peer name other", "link set one name two", "link del two"] {
            let before = all.links();
            ip(command);
            assert_ne!(all.links(), before, "{command}");
        }
        let before = all.links();
        ip("link show");
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("another");
        ip("link add one type veth peer name other");
        assert_eq!(all.links(), before, "another namespace's");
    });
    in_between.join().expect("no failure");
}

/// The new program's mappings are there long before the kernel tells of it: what was made before the call may be a former
/// program's from its start on.
#[test]
fn a_call_of_exec_counts_even_if_it_fails() {
    let (all, mut actor) = (generations(), Actor::start());
    let tgid = actor.tgid();
    let before = all.process(tgid).value;
    moves(|| all.image(tgid).value, || drop(actor.act("fail-to-exec")));
    assert!(all.exec(tgid) > before);
}

#[test]
fn other_calls_leave_process_and_image() {
    for command in ["nothing", "getppid 1000", "mmap rw", "mprotect rw", "udp-sendmsg", "ioctl-other"] {
        act_leaves_process(command);
        act_leaves_image(command);
    }
    // It ends with shmdt, of which nobody says how much goes.
    act_leaves_process("shmat 0");
    act_moves_image("shmat 0");
}

#[test]
fn passing_descriptors_moves_the_process() {
    act_moves_process("unix-sendmsg");
    act_moves_process("notif-addfd");
    act_leaves_image("unix-sendmsg");
}

#[test]
fn a_process_is_unsettled_while_it_passes_a_descriptor() {
    let (all, mut actor) = (generations(), Actor::start());
    let tgid = actor.tgid();
    let thread = actor.act("unix-block");
    // The thread's id is known before it blocks; it is in sendmsg when the kernel says so.
    comes_true(|| in_call(tgid, &thread, nix::libc::SYS_sendmsg), "the thread does not block");
    assert!(!all.process(tgid).settled);
    moves(|| all.process(tgid).value, || drop(actor.act("unix-unblock")));
    settles(&all, tgid);
}

fn in_call(tgid: u32, thread: &str, number: i64) -> bool {
    let call = std::fs::read_to_string(format!("/proc/{tgid}/task/{thread}/syscall")).expect("the thread lives");
    call.split(' ').next() == Some(&number.to_string())
}

#[test]
fn a_thread_killed_in_flight_is_not_counted_for_ever() {
    let (all, mut actor) = (generations(), Actor::start());
    let tgid = actor.tgid();
    let thread = actor.act("unix-block");
    comes_true(|| in_call(tgid, &thread, nix::libc::SYS_sendmsg), "the thread does not block");
    actor.kill();
    settles(&all, tgid);
}

#[test]
fn io_uring_is_never_settled() {
    let (all, mut actor) = (generations(), Actor::start());
    let tgid = actor.tgid();
    settles(&all, tgid);
    actor.act("io-uring");
    assert!((0..LOOKS).all(|_| !all.process(tgid).settled));
    comes_true(|| all.image(tgid).settled, "a ring maps nothing executable");
}

#[test]
fn taking_a_descriptor_moves_everything() {
    let (all, mut actor) = (generations(), Actor::start());
    moves(|| all.wide(), || drop(actor.act("pidfd-getfd")));
    settles(&all, actor.tgid());
}

#[test]
fn beginning_to_trace_moves_the_count_of_tracers() {
    let (all, mut actor) = (generations(), Actor::start());
    for act in ["attach-to-nobody", "seize-nobody", "seize-nobody-32"] {
        moves(|| all.tracers(), || drop(actor.act(act)));
    }
    stands_still(|| all.tracers(), || drop(actor.act("peek-nobody")));
    settles(&all, actor.tgid());
}

#[test]
fn letting_oneself_be_traced_moves_the_image() {
    let (all, mut actor) = (generations(), Actor::start());
    let tgid = actor.tgid();
    stands_still(|| all.image(tgid).value, || drop(actor.act("peek-nobody")));
    moves(|| all.image(tgid).value, || drop(actor.act("traceme")));
    settles(&all, tgid);
}

#[test]
fn fork_moves_parent_and_child() {
    act_moves_process("fork");
    let (all, mut actor) = (generations(), Actor::start());
    let child = actor.number("fork-and-wait") as u32;
    assert_ne!(all.image(child).value, 0, "another process has this id now");
    moves(
        || all.process(child).value,
        || {
            actor.kill(); // and the child with it
            comes_true(|| !lives(child), "the child outlives its parent");
        },
    );
}

/// Neither gone nor a zombie.
fn lives(tgid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{tgid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
}

#[test]
fn a_mapping_in_a_shared_address_space_moves_everything() {
    let (all, mut actor) = (generations(), Actor::start());
    // The parent is suspended meanwhile: the two also share what the C library keeps per thread.
    let command = format!("clone-mmap {}", nix::libc::CLONE_VM | nix::libc::CLONE_VFORK);
    moves(|| all.wide(), || drop(actor.act(&command)));
    settles(&all, actor.tgid());
}

/// Its slot is the next process's. Who held what with it is not known: it did more than end.
#[test]
fn distrust_ends_with_the_process() {
    let (all, mut actor) = (generations(), Actor::start());
    let tgid = actor.tgid();
    actor.act("io-uring");
    let before = all.process(tgid);
    assert!(!before.settled);
    actor.kill();
    comes_true(|| all.process(tgid).settled, "nobody is distrusted any more");
    assert!(all.process(tgid).value >= before.value + 3);
}

#[test]
fn processes_with_one_descriptor_table_are_never_settled() {
    let (all, mut actor) = (generations(), Actor::start());
    let tgid = actor.tgid();
    settles(&all, tgid);
    actor.act(&format!("clone-mmap {}", nix::libc::CLONE_FILES));
    assert!((0..LOOKS).all(|_| !all.process(tgid).settled));
}

#[test]
fn exec_and_exit_move_the_process() {
    let (all, mut actor) = (generations(), Actor::start());
    let tgid = actor.tgid();
    let before = (all.process(tgid).value, all.image(tgid).value);
    assert_eq!(actor.act("become-a-shell"), "awake");
    assert_ne!(all.process(tgid).value, before.0);
    assert_ne!(all.image(tgid).value, before.1);
    assert!(all.image(tgid).settled, "the call that a thread began ended as the leader's");
    let image = all.image(tgid).value;
    moves(|| all.process(tgid).value, || actor.kill());
    assert_eq!(all.image(tgid).value, image, "what it was made of stays true");
}

#[test]
fn taking_and_leaving_a_port_moves_it() {
    let (all, mut actor) = (generations(), Actor::start());
    let port = actor.number("udp-bound a") as u16;
    moves(|| all.port(port), || drop(actor.act("close a")));

    // The kernel takes the next port it likes; asking for a known one shows the bind itself.
    let mut bound = || {
        let before: Vec<u64> = (0..=u16::MAX).map(|port| all.port(port)).collect();
        let port = actor.number("udp-bound b") as u16;
        actor.act("nothing");
        all.port(port) != before[usize::from(port)]
    };
    assert!(bound());
}

#[test]
fn a_port_chosen_by_the_kernel_moves_when_it_is_given_up() {
    let (all, mut actor) = (generations(), Actor::start());
    actor.act("udp a");
    let port = actor.number("connect a 9") as u16;
    moves(|| all.port(port), || drop(actor.act("close a")));
    actor.act("ping p");
    let identifier = actor.number("connect p 0") as u16;
    moves(|| all.port(identifier), || drop(actor.act("close p")));
}

#[test]
fn giving_a_port_up_by_disconnecting_moves_the_process() {
    let (all, mut actor) = (generations(), Actor::start());
    let tgid = actor.tgid();
    actor.act("udp a");
    // The first connect takes a port: nothing is given up.
    stands_still(
        || all.process(tgid).value,
        || {
            actor.act("udp a");
            actor.act("connect a 9");
        },
    );
    moves(|| all.process(tgid).value, || drop(actor.act("disconnect a")));
    // A port asked for by bind stays.
    actor.act("udp-bound b");
    actor.act("connect b 9");
    stands_still(|| all.process(tgid).value, || drop(actor.act("disconnect b")));
    settles(&all, tgid);
}

#[test]
fn tcp_moves_ports_at_listen_connect_and_close() {
    let (all, mut actor) = (generations(), Actor::start());
    let before: Vec<u64> = (0..=u16::MAX).map(|port| all.port(port)).collect();
    let listening = actor.number("tcp-listen l") as u16;
    let bound_and_listening = all.port(listening) - before[usize::from(listening)];
    assert!(bound_and_listening >= 2, "bind and listen each move it, moved {bound_and_listening}");
    let local = actor.number(&format!("tcp-connect c {listening}")) as u16;
    assert_ne!(all.port(local), before[usize::from(local)], "connect");
    actor.act("accept s l");
    // A connection ends when both sides have closed it, as the last acknowledgement comes in.
    let before = all.port(local);
    actor.act("close c");
    actor.act("close s");
    comes_true(|| all.port(local) != before, "the connection's end left its port");
    moves(|| all.port(listening), || drop(actor.act("close l")));
}

#[test]
fn writers_into_a_connection_are_known_until_it_ends() {
    let (all, mut actor) = (generations(), Actor::start());
    let sockets = probe().sockets();
    let listening = actor.number("tcp-listen l");
    actor.act(&format!("tcp-connect c {listening}"));
    actor.act("accept s l");
    let cookie = actor.number("cookie c");
    let maker = || sockets.creator(cookie).expect("a look-up").expect("a new socket");
    let writers = || sockets.writers(cookie).expect("a look-up");
    assert_eq!(writers(), Writers::default());
    actor.act("write c");
    let wrote = all.exec(actor.tgid());
    assert_eq!(writers().known, [Writer { tgid: maker().tgid, start: maker().start, wrote }]);
    for written in 2..=5 {
        actor.act("write-by-child c");
        assert_eq!((writers().known.len(), writers().more), (written.min(4), written > 4));
    }
    let known = writers().known;
    assert!(known.iter().skip(1).all(|writer| writer.tgid != actor.tgid() && writer.start > maker().start));
    assert_eq!(all.lost_writers(), 0);
    actor.act("close s");
    actor.act("close c");
    comes_true(|| writers().known.is_empty(), "a connection that has ended sends nothing");
}

#[test]
fn a_raw_socket_moves_the_generation_of_raw_sockets() {
    let (all, mut actor) = (generations(), Actor::start());
    moves(|| all.raw_sockets(), || drop(actor.act("raw r")));
    moves(|| all.raw_sockets(), || drop(actor.act("close r")));
}

#[test]
fn sockets_beside_netfilter_are_told_of_and_listed() {
    // A probe of its own: its events are nobody else's.
    let mut probe = Probe::load(&Options::default()).expect("the probe loads");
    let mut events = probe.take_events().expect("taken once");
    let holders = probe.holders().expect("the iterator");
    let mut actor = Actor::start();
    let netns = std::fs::metadata(actor.proc("ns/net")).expect("it lives").ino() as u32;
    let packet = nix::libc::AF_PACKET as u16;
    let xdp = nix::libc::AF_XDP as u16;
    for (act, family) in [("packet", packet), ("packet-of-old", packet), ("packet-32", packet), ("xdp", xdp)] {
        let descriptor = actor.number(&format!("{act} a"));
        let told = std::iter::from_fn(|| events.next())
            .flatten()
            .any(|event| event.tgid == actor.tgid() && event.kind == EventKind::BypassSocket { family, netns });
        assert!(told, "{act}");
        let inode = std::fs::metadata(actor.proc(&format!("fd/{descriptor}"))).expect("a descriptor").ino();
        let listed = holders.bypass_sockets().expect("a list");
        let found: Vec<_> = listed.iter().filter(|record| record.inode == inode).collect();
        assert_eq!(found.len(), 1, "{act}: {listed:?}");
        assert_eq!((found[0].tgid, found[0].netns, found[0].family), (actor.tgid(), netns, family), "{act}");
        assert_eq!(found[0].start / 10_000_000, start_in_ticks(actor.tgid()));
        actor.act("close a");
        let listed = holders.bypass_sockets().expect("a list");
        assert!(listed.iter().all(|record| record.inode != inode), "{act}: {listed:?}");
    }
    actor.act("udp u");
    actor.act("raw r");
    let told = std::iter::from_fn(|| events.next())
        .flatten()
        .any(|event| event.tgid == actor.tgid() && matches!(event.kind, EventKind::BypassSocket { .. }));
    assert!(!told);
}

#[test]
fn the_maker_of_a_socket_is_known() {
    let (all, mut actor) = (generations(), Actor::start());
    let tgid = actor.tgid();
    actor.act("udp u");
    let (cookie, now) = (actor.number("cookie u"), all.process(tgid));
    let creator = probe().sockets().creator(cookie).expect("a look-up").expect("a new socket");
    assert_eq!((creator.tgid, creator.raw, creator.shared_table), (tgid, false, false));
    assert_eq!(creator.process_generation, now.value);
    assert!(creator.wide_generation <= all.wide());
    assert_eq!(creator.start / 10_000_000, start_in_ticks(tgid), "the start /proc tells, in ticks of 10 ms");
    actor.act("raw r");
    let cookie = actor.number("cookie r");
    assert!(probe().sockets().creator(cookie).expect("a look-up").expect("a new socket").raw);
    assert_eq!(probe().sockets().creator(u64::MAX).expect("a look-up"), None);
}

#[test]
fn who_accepted_a_socket_is_known() {
    let (all, mut actor) = (generations(), Actor::start());
    let tgid = actor.tgid();
    let port = actor.number("tcp-listen l");
    actor.act(&format!("tcp-connect c {port}"));
    actor.act("accept s l");
    let (cookie, now) = (actor.number("cookie s"), all.process(tgid));
    let holder = probe().sockets().creator(cookie).expect("a look-up").expect("an accepted socket");
    assert_eq!((holder.tgid, holder.raw, holder.shared_table), (tgid, false, false));
    assert_eq!(holder.process_generation, now.value);
    assert_eq!(holder.start / 10_000_000, start_in_ticks(tgid));
}

#[test]
fn a_connection_is_noted_at_its_port_until_the_port_moves() {
    let (all, mut actor) = (generations(), Actor::start());
    let listening = actor.number("tcp-listen l") as u16;
    assert_eq!(all.connection(listening), None, "nothing connects from here");
    let local = actor.number(&format!("tcp-connect c {listening}")) as u16;
    let noted = all.connection(local).expect("a connection");
    assert_eq!((noted.remote_port, noted.port_generation), (listening, all.port(local)));
    assert_eq!((noted.local, noted.remote), ([127, 0, 0, 1].into(), [127, 0, 0, 1].into()));
    assert_eq!(noted.cookie, actor.number("cookie c"));
    assert_eq!(noted.maker, probe().sockets().creator(noted.cookie).expect("a look-up"));
    assert_eq!(noted.maker.map(|maker| maker.tgid), Some(actor.tgid()));
    actor.act("accept s l");
    actor.act("close c");
    actor.act("close s");
    comes_true(|| all.connection(local).is_none(), "the connection's end left its note");
}

/// Field 22 of /proc/PID/stat; the second field ends with the last bracket.
fn start_in_ticks(tgid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{tgid}/stat")).expect("it lives");
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    fields.split_whitespace().nth(19).and_then(|start| start.parse().ok()).expect("a start")
}

#[test]
fn ip_is_there() {
    // The actor needs it; without it every other message here would be hard to read.
    assert!(Command::new("ip").arg("-V").output().is_ok(), "apt-get install iproute2");
}
