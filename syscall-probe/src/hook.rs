//! The places in the kernel where the programs sit, and what follows from one being absent.

use std::fmt;
use std::str::FromStr;

/// A place in the kernel that is watched. A kernel may lack one; [`crate::Probe::missing`] says which and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// Start of the system calls that change a process or pass descriptors.
    SysEnter,
    /// End of these calls.
    SysExit,
    /// The look, once at start, for calls and rings that were there before the probe.
    RunningTasks,
    /// A process becomes another program.
    Exec,
    /// A process makes another.
    Fork,
    /// The last thread of a process ends.
    Exit,
    /// A process is put into another control group.
    CgroupAttach,
    /// A TCP socket is closed or begins to listen.
    TcpState,
    /// A TCP socket has got a port and is about to connect, or is bound to a device.
    TcpConnect,
    /// Data are written into a TCP socket.
    TcpWrite,
    /// A socket is made.
    SockCreate,
    /// A socket's last descriptor is closed.
    SockRelease,
    /// A socket is bound to a port.
    Bind,
    /// The size or a time of a file changes.
    InodeDirty,
    /// The list of all open sockets.
    Sockets,
    /// The search for the holders of one socket.
    Holders,
    /// The list of a process's mappings.
    Mappings,
    /// A packet is put into a queue.
    Senders,
    /// A call that sends has ended.
    Sent,
    /// A network device changes.
    Links,
    /// A packet meets iptables, before it is queued.
    Cache,
}

/// How a program is attached.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    /// A tracepoint with typed arguments, by name.
    Tracepoint(&'static str),
    /// A socket hook at the root of the cgroup2 hierarchy; which one is in the program's section name.
    CgroupSocket,
    /// The hook on setsockopt(2), at the root of the cgroup2 hierarchy.
    CgroupOption,
    /// The TCP callbacks, at the root of the cgroup2 hierarchy.
    TcpCallbacks,
    /// An iterator, by name; nothing stays attached between two runs.
    Iterator(&'static str),
    /// Run on demand, attached nowhere.
    OnDemand,
    /// A filter on each netlink socket that serves a queue; see [`crate::Probe::watch_queue`].
    QueueSocket,
    /// A filter on a netlink socket of the probe's own.
    LinkSocket,
}

impl Hook {
    /// Every hook, in the order in which they are attached.
    ///
    /// `SysExit` before `SysEnter`: a call is counted in flight at its start, so from the first one counted its end
    /// must be seen as well, or the count would never fall. The other way round, an end whose start was not seen is
    /// recognised by the missing note and not counted. `RunningTasks` after both: it covers the calls that had begun
    /// before `SysEnter` was there.
    pub const ALL: [Hook; 21] = [
        Hook::Exit,
        Hook::SysExit,
        Hook::SysEnter,
        Hook::RunningTasks,
        Hook::Exec,
        Hook::Fork,
        Hook::CgroupAttach,
        Hook::TcpState,
        Hook::TcpConnect,
        Hook::TcpWrite,
        Hook::SockCreate,
        Hook::SockRelease,
        Hook::Bind,
        Hook::InodeDirty,
        Hook::Sockets,
        Hook::Holders,
        Hook::Mappings,
        Hook::Senders,
        Hook::Sent,
        Hook::Links,
        Hook::Cache,
    ];

    /// The hook's stable name, as [`fmt::Display`] writes and [`FromStr`] reads it.
    pub const fn as_token(self) -> &'static str {
        match self {
            Hook::SysEnter => "sys-enter",
            Hook::SysExit => "sys-exit",
            Hook::RunningTasks => "running-tasks",
            Hook::Exec => "exec",
            Hook::Fork => "fork",
            Hook::Exit => "exit",
            Hook::CgroupAttach => "cgroup-attach",
            Hook::TcpState => "tcp-state",
            Hook::TcpConnect => "tcp-connect",
            Hook::TcpWrite => "tcp-write",
            Hook::SockCreate => "sock-create",
            Hook::SockRelease => "sock-release",
            Hook::Bind => "bind",
            Hook::InodeDirty => "inode-dirty",
            Hook::Sockets => "sockets",
            Hook::Holders => "holders",
            Hook::Mappings => "mappings",
            Hook::Senders => "senders",
            Hook::Sent => "sent",
            Hook::Links => "links",
            Hook::Cache => "cache",
        }
    }

    /// The programs of this hook, as the object file names them, and where each has its place.
    pub(crate) const fn programs(self) -> &'static [(&'static str, Place)] {
        use Place::{
            CgroupOption, CgroupSocket, Iterator, LinkSocket, OnDemand, QueueSocket, TcpCallbacks, Tracepoint,
        };
        match self {
            Hook::SysEnter => &[("on_sys_enter", Tracepoint("sys_enter"))],
            Hook::SysExit => &[("on_sys_exit", Tracepoint("sys_exit"))],
            Hook::RunningTasks => &[(RUNNING_TASKS, Iterator("task"))],
            Hook::Exec => &[("on_exec", Tracepoint("sched_process_exec"))],
            Hook::Fork => &[("on_fork", Tracepoint("sched_process_fork"))],
            Hook::Exit => &[("on_exit", Tracepoint("sched_process_exit"))],
            Hook::CgroupAttach => &[("on_cgroup_attach", Tracepoint("cgroup_attach_task"))],
            Hook::TcpState => &[("on_tcp_state", Tracepoint("inet_sock_set_state"))],
            Hook::TcpConnect => &[("on_socket_op", TcpCallbacks), ("on_set_option", CgroupOption)],
            Hook::TcpWrite => &[("on_tcp_write", Tracepoint("tcp_sendmsg_locked"))],
            Hook::SockCreate => &[("on_sock_create", CgroupSocket)],
            Hook::SockRelease => &[("on_sock_release", CgroupSocket)],
            Hook::Bind => &[("on_post_bind4", CgroupSocket), ("on_post_bind6", CgroupSocket)],
            Hook::InodeDirty => &[("on_inode_dirty", Tracepoint("writeback_mark_inode_dirty"))],
            Hook::Sockets => &[(ALL_SOCKETS, Iterator("task_file")), (BYPASS_SOCKETS, Iterator("task_file"))],
            Hook::Holders => &[(FIND_SOCKET, OnDemand), (ITS_HOLDERS, Iterator("task"))],
            Hook::Mappings => &[(MAPPINGS, Iterator("task_vma"))],
            Hook::Senders => &[(QUEUED, QueueSocket)],
            Hook::Sent => &[("on_sent", Tracepoint("sock_send_length"))],
            Hook::Links => &[(LINK, LinkSocket)],
            Hook::Cache => &CACHE,
        }
    }
}

/// Programs that are called by name.
pub(crate) const RUNNING_TASKS: &str = "distrust_running";
pub(crate) const ALL_SOCKETS: &str = "dump_sockets";
pub(crate) const BYPASS_SOCKETS: &str = "dump_bypass_sockets";
pub(crate) const FIND_SOCKET: &str = "on_find_socket";
pub(crate) const ITS_HOLDERS: &str = "dump_holders";
pub(crate) const MAPPINGS: &str = "dump_mappings";
pub(crate) const QUEUED: &str = "on_queued";
pub(crate) const LINK: &str = "on_link";
/// The programs of the verdict cache and their doors, which iptables calls.
pub(crate) const CACHE: [(&str, Place); 12] = [
    ("accept_output", Place::OnDemand),
    ("drop_output", Place::OnDemand),
    ("accept_input", Place::OnDemand),
    ("drop_input", Place::OnDemand),
    ("accept_forward", Place::OnDemand),
    ("drop_forward", Place::OnDemand),
    ("accept_output_door", Place::OnDemand),
    ("drop_output_door", Place::OnDemand),
    ("accept_input_door", Place::OnDemand),
    ("drop_input_door", Place::OnDemand),
    ("accept_forward_door", Place::OnDemand),
    ("drop_forward_door", Place::OnDemand),
];

impl fmt::Display for Hook {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_token())
    }
}

/// There is no hook of this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown hook {token:?}; there are {known}", known = Hook::ALL.map(Hook::as_token).join(", "))]
pub struct UnknownHook {
    token: String,
}

impl FromStr for Hook {
    type Err = UnknownHook;

    fn from_str(token: &str) -> Result<Hook, UnknownHook> {
        Hook::ALL
            .into_iter()
            .find(|hook| hook.as_token() == token)
            .ok_or_else(|| UnknownHook { token: token.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for hook in Hook::ALL {
            assert_eq!(hook.to_string().parse(), Ok(hook));
        }
    }

    #[test]
    fn unknown_names_are_told_the_known_ones() {
        let error = "sysenter".parse::<Hook>().expect_err("no such hook");
        assert!(error.to_string().contains("\"sysenter\"") && error.to_string().contains("sys-enter"), "{error}");
    }

    #[test]
    fn every_call_counted_is_seen_to_end() {
        let position = |wanted| Hook::ALL.iter().position(|hook| *hook == wanted);
        assert!(position(Hook::SysExit) < position(Hook::SysEnter));
        assert!(position(Hook::SysEnter) < position(Hook::RunningTasks));
    }
}
