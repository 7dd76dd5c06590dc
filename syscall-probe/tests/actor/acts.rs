//! What an actor can do.

use std::collections::HashMap;
use std::ffi::c_void;
use std::fs::OpenOptions;
use std::io::{IoSlice, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::null_mut;
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail, ensure};
use nix::libc;
use nix::sys::mman::{MRemapFlags, MapFlags, ProtFlags, mmap_anonymous, mprotect, mremap, munmap};
use nix::sys::socket::{MsgFlags, SockaddrIn, sendmsg, setsockopt, sockopt};

/// Of linux/net.h.
const SOCK_PACKET: i32 = 10;
const PAGE: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

#[derive(Default)]
pub struct Stage {
    sockets: HashMap<String, OwnedFd>,
    blocked: Option<(UnixDatagram, JoinHandle<()>)>,
    probe: Option<syscall_probe::Probe>,
    /// Address and length.
    mapped: Option<(usize, usize)>,
}

impl Stage {
    pub fn play(&mut self, command: &str) -> Result<String> {
        let words: Vec<&str> = command.split(' ').collect();
        match words.as_slice() {
            ["nothing"] => {}
            ["getppid", times] => call_repeatedly(times.parse()?),
            ["mmap", protection] => mmap(protections(protection))?,
            ["map", protections_of @ ..] => self.map(protections_of)?,
            ["shed", way] => self.shed(way)?,
            ["half-mprotect"] => half_mprotect()?,
            ["fail-to-exec"] => drop(Command::new("/nowhere").exec()),
            ["mmap-many", protection, times] => mmap_many(protections(protection), times.parse()?)?,
            ["load-probe"] => self.probe = Some(syscall_probe::Probe::load(&syscall_probe::Options::default())?),
            ["mprotect", protection] => mprotect_page(protections(protection))?,
            ["mprotect-32", protection] => mprotect_32(protections(protection))?,
            ["mmap-read-implies-exec"] => mmap_read_implies_exec()?,
            ["shmat", flags] => shmat(flags.parse()?)?,
            ["set-user", call] => set_user(user_call(call)?),
            ["set-user-32", number] => drop(call_32(number.parse()?, [u64::MAX; 3])),
            ["thread-of-user", id] => thread_of_user(id.parse()?)?,
            ["traceme"] => call_and_fail(libc::SYS_ptrace, [libc::PTRACE_TRACEME.into(), 0, 0]),
            ["attach-to-nobody"] => call_and_fail(libc::SYS_ptrace, [libc::PTRACE_ATTACH.into(), 0, 0]),
            ["seize-nobody"] => call_and_fail(libc::SYS_ptrace, [libc::PTRACE_SEIZE.into(), 0, 0]),
            ["seize-nobody-32"] => drop(call_32(26, [0x4206, 0, 0])),
            ["peek-nobody"] => call_and_fail(libc::SYS_ptrace, [libc::PTRACE_PEEKDATA.into(), 0, 0]),
            ["packet", name] => return self.packet(name, libc::AF_PACKET, libc::SOCK_RAW),
            ["packet-of-old", name] => return self.packet(name, libc::AF_INET, SOCK_PACKET),
            ["packet-32", name] => return self.packet_32(name),
            ["xdp", name] => return self.packet(name, libc::AF_XDP, libc::SOCK_RAW),
            ["fork"] => fork()?,
            ["clone-mmap", flags] => clone_mmap(flags.parse()?)?,
            ["become-a-shell"] => return Err(become_a_shell().into()),
            ["unix-sendmsg"] => unix_sendmsg()?,
            ["unix-block"] => return self.block(),
            ["unix-unblock"] => self.unblock()?,
            ["udp-sendmsg"] => udp_sendmsg()?,
            ["pidfd-getfd"] => pidfd_getfd()?,
            ["notif-addfd"] => call_and_fail(libc::SYS_ioctl, [0, 0x4018_2103, 0]),
            ["ioctl-other"] => call_and_fail(libc::SYS_ioctl, [0, 0x5401, 0]),
            ["io-uring"] => call_and_fail(libc::SYS_io_uring_setup, [0, 0, 0]),
            ["udp", name] => return self.udp(name, None),
            ["udp-bound", name] => return self.udp(name, Some(0)),
            ["connect", name, port] => return self.connect(name, port.parse()?),
            ["disconnect", name] => self.disconnect(name)?,
            ["tcp-listen", name] => return self.tcp_listen(name),
            ["tcp-connect", name, port] => return self.tcp_connect(name, port.parse()?),
            ["write", name] => drop(nix::unistd::write(self.socket(name)?, b"x")?),
            ["write-by-child", name] => self.write_by_child(name)?,
            ["accept", name, listener] => return self.accept(name, listener),
            ["raw", name] => return self.raw(name),
            ["ping", name] => return self.ping(name),
            ["dup", new, old] => return self.dup(new, old),
            ["move", name, number] => self.renumber(name, number.parse()?)?,
            ["close", name] => drop(self.sockets.remove(*name).context("no such socket")?),
            ["fork-and-wait"] => return fork_and_wait(),
            ["share-table"] => return share_table(),
            ["end-first-thread"] => end_first_thread()?,
            ["new-table"] => own_table(),
            ["udp-many", number] => self.udp_many(number.parse()?)?,
            ["cookie", name] => return self.cookie(name),
            ["file", how, path] => change_file(how, path)?,
            ["overlay", place] => mount_overlay(place)?,
            _ => bail!("unknown act"),
        }
        Ok("done".to_owned())
    }

    fn keep(&mut self, name: &str, socket: impl Into<OwnedFd>) -> RawFd {
        let socket = socket.into();
        let number = socket.as_raw_fd();
        self.sockets.insert(name.to_owned(), socket);
        number
    }

    fn socket(&self, name: &str) -> Result<&OwnedFd> {
        self.sockets.get(name).context("no such socket")
    }

    /// Replies with the local port.
    fn udp(&mut self, name: &str, port: Option<u16>) -> Result<String> {
        let socket = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Inet,
            nix::sys::socket::SockType::Datagram,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        if let Some(port) = port {
            nix::sys::socket::bind(socket.as_raw_fd(), &SockaddrIn::from(loopback(port)))?;
        }
        self.keep(name, socket);
        self.local_port(name)
    }

    fn udp_many(&mut self, number: u32) -> Result<()> {
        for index in 0..number {
            self.udp(&index.to_string(), None)?;
        }
        Ok(())
    }

    fn connect(&mut self, name: &str, port: u16) -> Result<String> {
        nix::sys::socket::connect(self.socket(name)?.as_raw_fd(), &SockaddrIn::from(loopback(port)))?;
        self.local_port(name)
    }

    fn disconnect(&mut self, name: &str) -> Result<()> {
        let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
        let length = size_of_val(&nowhere) as libc::socklen_t;
        // SAFETY: the kernel reads `length` bytes of a live value.
        ensure!(unsafe { libc::connect(self.socket(name)?.as_raw_fd(), &nowhere, length) } == 0, "connect");
        Ok(())
    }

    fn tcp_listen(&mut self, name: &str) -> Result<String> {
        let listener = TcpListener::bind(loopback(0))?;
        self.keep(name, listener);
        self.local_port(name)
    }

    fn tcp_connect(&mut self, name: &str, port: u16) -> Result<String> {
        let stream = TcpStream::connect(loopback(port))?;
        self.keep(name, stream);
        self.local_port(name)
    }

    /// Pages side by side, each with its own protection, as the segments of a library are.
    fn map(&mut self, pages: &[&str]) -> Result<()> {
        let length = NonZeroUsize::new(PAGE.get() * pages.len()).context("no pages")?;
        // SAFETY: a new mapping that nothing else uses.
        let start = unsafe { mmap_anonymous(None, length, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE)? };
        for (index, page) in pages.iter().enumerate() {
            // SAFETY: a page of the mapping above.
            unsafe { mprotect(start.byte_add(index * PAGE.get()), PAGE.get(), protections(page))? };
        }
        self.mapped = Some((start.as_ptr() as usize, length.get()));
        Ok(())
    }

    fn write_by_child(&self, name: &str) -> Result<()> {
        let socket = self.socket(name)?;
        // SAFETY: the child makes two system calls.
        match unsafe { nix::unistd::fork()? } {
            nix::unistd::ForkResult::Child => {
                let written = nix::unistd::write(socket, b"x");
                // SAFETY: ends the process.
                unsafe { libc::_exit(i32::from(written.is_err())) }
            }
            nix::unistd::ForkResult::Parent { child } => {
                let ended = nix::sys::wait::waitpid(child, None)?;
                ensure!(matches!(ended, nix::sys::wait::WaitStatus::Exited(_, 0)), "the child failed");
            }
        }
        Ok(())
    }

    /// Gets rid of what `map` mapped.
    fn shed(&mut self, way: &str) -> Result<()> {
        let (start, length) = self.mapped.take().context("nothing is mapped")?;
        let start = std::ptr::NonNull::new(start as *mut c_void).context("address 0")?;
        // SAFETY: what `map` mapped, once.
        unsafe {
            match way {
                "munmap" => munmap(start, length)?,
                "mprotect" => mprotect(start, length, ProtFlags::PROT_NONE)?,
                "mremap" => drop(mremap(start, length, PAGE.get(), MRemapFlags::empty(), None)?),
                "mremap-onto" => {
                    let other = NonZeroUsize::new(length).context("no pages")?;
                    let other = mmap_anonymous(None, other, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE)?;
                    let flags = MRemapFlags::MREMAP_MAYMOVE | MRemapFlags::MREMAP_FIXED;
                    mremap(other, length, length, flags, Some(start))?;
                }
                "mmap" => {
                    let length = NonZeroUsize::new(length).context("no pages")?;
                    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED;
                    let _ = mmap_anonymous(
                        NonZeroUsize::new(start.as_ptr() as usize),
                        length,
                        ProtFlags::PROT_NONE,
                        flags,
                    )?;
                }
                _ => bail!("unknown way"),
            }
        }
        Ok(())
    }

    fn accept(&mut self, name: &str, listener: &str) -> Result<String> {
        let accepted = nix::sys::socket::accept(self.socket(listener)?.as_raw_fd())?;
        // SAFETY: a new descriptor that nobody else owns.
        self.keep(name, unsafe { OwnedFd::from_raw_fd(accepted) });
        self.local_port(name)
    }

    fn raw(&mut self, name: &str) -> Result<String> {
        // SAFETY: no memory is involved.
        let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_ICMP) };
        ensure!(socket >= 0, "socket");
        // SAFETY: a new descriptor that nobody else owns.
        Ok(self.keep(name, unsafe { OwnedFd::from_raw_fd(socket) }).to_string())
    }

    fn packet(&mut self, name: &str, family: i32, kind: i32) -> Result<String> {
        // SAFETY: no memory is involved.
        let socket = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) };
        ensure!(socket >= 0, "socket");
        // SAFETY: a new descriptor that nobody else owns.
        Ok(self.keep(name, unsafe { OwnedFd::from_raw_fd(socket) }).to_string())
    }

    /// socket(AF_PACKET, SOCK_RAW, 0) by the 32-bit entry.
    fn packet_32(&mut self, name: &str) -> Result<String> {
        let socket = call_32(359, [libc::AF_PACKET as u64, libc::SOCK_RAW as u64, 0]);
        ensure!(socket >= 0, "the 32-bit socket returned {socket}");
        // SAFETY: a new descriptor that nobody else owns.
        Ok(self.keep(name, unsafe { OwnedFd::from_raw_fd(socket) }).to_string())
    }

    fn ping(&mut self, name: &str) -> Result<String> {
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0")?; // of the actor's own namespace
        // SAFETY: no memory is involved.
        let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, libc::IPPROTO_ICMP) };
        ensure!(socket >= 0, "socket");
        // SAFETY: a new descriptor that nobody else owns.
        self.keep(name, unsafe { OwnedFd::from_raw_fd(socket) });
        nix::sys::socket::bind(self.socket(name)?.as_raw_fd(), &SockaddrIn::from(loopback(0)))?;
        self.local_port(name)
    }

    fn dup(&mut self, new: &str, old: &str) -> Result<String> {
        let copy = self.socket(old)?.try_clone()?;
        Ok(self.keep(new, copy).to_string())
    }

    fn renumber(&mut self, name: &str, number: RawFd) -> Result<()> {
        let old = self.sockets.remove(name).context("no such socket")?;
        // SAFETY: no memory is involved, and the number is none that the actor uses.
        ensure!(unsafe { libc::dup2(old.as_raw_fd(), number) } == number, "dup2");
        // SAFETY: a new descriptor that nobody else owns.
        self.keep(name, unsafe { OwnedFd::from_raw_fd(number) });
        Ok(())
    }

    fn local_port(&self, name: &str) -> Result<String> {
        let address: SockaddrIn = nix::sys::socket::getsockname(self.socket(name)?.as_raw_fd())?;
        Ok(address.port().to_string())
    }

    fn cookie(&self, name: &str) -> Result<String> {
        let mut cookie = 0_u64;
        let mut length = size_of::<u64>() as libc::socklen_t;
        let socket = self.socket(name)?.as_raw_fd();
        let value = std::ptr::from_mut(&mut cookie).cast();
        // SAFETY: the kernel writes at most `length` bytes to a live value of that size.
        let result = unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_COOKIE, value, &mut length) };
        ensure!(result == 0, "getsockopt");
        Ok(cookie.to_string())
    }

    /// Starts a thread that blocks in sendmsg; replies with its id.
    fn block(&mut self) -> Result<String> {
        let (full, reader) = UnixDatagram::pair()?;
        full.set_nonblocking(true)?;
        while full.send(&[0; 1024]).is_ok() {}
        full.set_nonblocking(false)?;
        let (tid_out, tid) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let _ = tid_out.send(nix::unistd::gettid());
            let _ = sendmsg::<()>(full.as_raw_fd(), &[IoSlice::new(&[1])], &[], MsgFlags::empty(), None);
        });
        self.blocked = Some((reader, thread));
        Ok(tid.recv()?.to_string())
    }

    fn unblock(&mut self) -> Result<()> {
        let (reader, thread) = self.blocked.take().context("nothing is blocked")?;
        // The message that had to wait is the only one of a single byte, and the last.
        while reader.recv(&mut [0; 1024])? != 1 {}
        let _ = thread.join();
        Ok(())
    }
}

fn loopback(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}

fn protections(letters: &str) -> ProtFlags {
    let mut flags = ProtFlags::PROT_NONE;
    for letter in letters.chars() {
        flags |= match letter {
            'r' => ProtFlags::PROT_READ,
            'w' => ProtFlags::PROT_WRITE,
            'x' => ProtFlags::PROT_EXEC,
            _ => ProtFlags::PROT_NONE,
        };
    }
    flags
}

fn mmap(protection: ProtFlags) -> Result<()> {
    // SAFETY: a new mapping that nothing else uses, and its removal.
    unsafe { munmap(mmap_anonymous(None, PAGE, protection, MapFlags::MAP_PRIVATE)?, PAGE.get())? };
    Ok(())
}

fn mmap_many(protection: ProtFlags, times: u32) -> Result<()> {
    (0..times).try_for_each(|_| mmap(protection))
}

fn mprotect_page(protection: ProtFlags) -> Result<()> {
    // SAFETY: as in `mmap`.
    unsafe {
        let page = mmap_anonymous(None, PAGE, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE)?;
        mprotect(page, PAGE.get(), protection)?;
        munmap(page, PAGE.get())?;
    }
    Ok(())
}

/// mprotect that fails at a hole, after it has made executable what is before that.
fn half_mprotect() -> Result<()> {
    let two = NonZeroUsize::new(2 * PAGE.get()).context("no pages")?;
    // SAFETY: as in `mmap`.
    unsafe {
        let pages = mmap_anonymous(None, two, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE)?;
        munmap(pages.byte_add(PAGE.get()), PAGE.get())?;
        let refused = mprotect(pages, two.get(), ProtFlags::PROT_READ | ProtFlags::PROT_EXEC);
        ensure!(refused.is_err(), "there is no hole");
    }
    Ok(())
}

/// mprotect by the 32-bit entry, whose number for it (125) is another.
fn mprotect_32(protection: ProtFlags) -> Result<()> {
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_32BIT;
    // SAFETY: a new mapping that nothing else uses; the system call changes no register but rax and clobbers r8 to r11.
    let result = unsafe {
        let page = mmap_anonymous(None, PAGE, ProtFlags::PROT_READ, flags)?;
        let mut result = 125_u64;
        std::arch::asm!(
            "xchg rbx, {address}",
            "int 0x80",
            "xchg rbx, {address}",
            address = inout(reg) page.as_ptr() as u64 => _,
            inout("rax") result,
            in("rcx") PAGE.get(),
            in("rdx") protection.bits(),
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
        munmap(page, PAGE.get())?;
        result
    };
    ensure!(result == 0, "the 32-bit mprotect returned {result:#x}");
    Ok(())
}

/// A call without pointers by the 32-bit entry.
fn call_32(number: u64, arguments: [u64; 3]) -> i32 {
    let [first, second, third] = arguments;
    let mut result = number;
    // SAFETY: no memory is involved; the call changes no register but rax and clobbers r8 to r11.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {first}",
            "int 0x80",
            "xchg rbx, {first}",
            first = inout(reg) first => _,
            inout("rax") result,
            in("rcx") second,
            in("rdx") third,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result as i32
}

fn mmap_read_implies_exec() -> Result<()> {
    let personality = nix::sys::personality::get()?;
    nix::sys::personality::set(personality | nix::sys::personality::Persona::READ_IMPLIES_EXEC)?;
    let result = mmap(ProtFlags::PROT_READ);
    nix::sys::personality::set(personality)?;
    result
}

fn shmat(flags: i32) -> Result<()> {
    // SAFETY: a new segment that nothing else uses, its attachment and its removal.
    unsafe {
        let segment = libc::shmget(libc::IPC_PRIVATE, PAGE.get(), 0o700);
        ensure!(segment >= 0, "shmget");
        let address = libc::shmat(segment, null_mut(), flags);
        libc::shmctl(segment, libc::IPC_RMID, null_mut());
        ensure!(address as isize != -1 && libc::shmdt(address) == 0, "shmat");
    }
    Ok(())
}

/// Becomes a shell that says "awake" and waits to be killed. Returns only if that fails.
fn become_a_shell() -> std::io::Error {
    Command::new("/bin/sh").args(["-c", "echo 'actor: awake'; read nothing"]).exec()
}

fn fork() -> Result<()> {
    // SAFETY: the child does nothing but end.
    match unsafe { nix::unistd::fork()? } {
        // SAFETY: ends the process.
        nix::unistd::ForkResult::Child => unsafe { libc::_exit(0) },
        nix::unistd::ForkResult::Parent { child } => nix::sys::wait::waitpid(child, None)?,
    };
    Ok(())
}

/// Replies with the id of a child that holds what the actor holds, and lives until the actor dies.
fn fork_and_wait() -> Result<String> {
    let parent = nix::unistd::getpid();
    // SAFETY: the child only makes system calls.
    match unsafe { nix::unistd::fork()? } {
        nix::unistd::ForkResult::Child => wait_for_the_end_of(parent),
        nix::unistd::ForkResult::Parent { child } => Ok(child.to_string()),
    }
}

fn wait_for_the_end_of(parent: nix::unistd::Pid) -> ! {
    let told = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    // It may have ended before it was asked for.
    while told.is_ok() && nix::unistd::getppid() == parent {
        nix::unistd::pause();
    }
    // SAFETY: ends the process.
    unsafe { libc::_exit(0) }
}

/// Replies with the id of a child that shares the actor's descriptor table, and lives until the actor dies.
fn share_table() -> Result<String> {
    let mut stack = vec![0; 256 * 1024];
    let parent = nix::unistd::getpid();
    let wait = Box::new(move || wait_for_the_end_of(parent));
    // SAFETY: the child only makes system calls, on a stack of its own.
    let child =
        unsafe { nix::sched::clone(wait, &mut stack, nix::sched::CloneFlags::CLONE_FILES, Some(libc::SIGCHLD))? };
    Ok(child.to_string())
}

/// The process's first thread ends, and the others go on.
fn end_first_thread() -> Result<()> {
    extern "C" fn end(_: libc::c_int) {
        // SAFETY: ends the thread that it runs on, which never uses its stack again.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
    // One more goes on with the one that acts.
    std::thread::spawn(std::thread::park);
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    let action = SigAction::new(SigHandler::Handler(end), SaFlags::empty(), SigSet::empty());
    let pid = std::process::id();
    // SAFETY: the handler makes one system call.
    unsafe { sigaction(Signal::SIGUSR1, &action)? };
    // SAFETY: sends a signal.
    ensure!(unsafe { libc::syscall(libc::SYS_tgkill, pid, pid, libc::SIGUSR1) } == 0, "tgkill");
    while !std::fs::read_to_string(format!("/proc/{pid}/stat"))?.contains(") Z ") {
        std::thread::yield_now();
    }
    Ok(())
}

/// A thread with a copy of the descriptor table, and another that shares that; both stay.
fn own_table() {
    let (done, wait) = std::sync::mpsc::channel();
    let stay = || loop {
        std::thread::park();
    };
    std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES).expect("a table");
        std::thread::spawn(move || {
            done.send(()).expect("somebody waits");
            stay()
        });
        stay()
    });
    wait.recv().expect("they stay");
}

/// A child made with these flags maps something executable and ends.
fn clone_mmap(flags: i32) -> Result<()> {
    let mut stack = vec![0; 256 * 1024];
    let flags = nix::sched::CloneFlags::from_bits_truncate(flags);
    // SAFETY: the child only makes system calls, on a stack of its own, which the parent keeps until it has ended.
    let child = unsafe {
        let body = Box::new(|| isize::from(mmap(ProtFlags::PROT_READ | ProtFlags::PROT_EXEC).is_err()));
        nix::sched::clone(body, &mut stack, flags, Some(libc::SIGCHLD))?
    };
    ensure!(
        matches!(nix::sys::wait::waitpid(child, None)?, nix::sys::wait::WaitStatus::Exited(_, 0)),
        "the child failed"
    );
    Ok(())
}

fn unix_sendmsg() -> Result<()> {
    let (left, _right) = UnixDatagram::pair()?;
    sendmsg::<()>(left.as_raw_fd(), &[IoSlice::new(b"x")], &[], MsgFlags::empty(), None)?;
    Ok(())
}

fn udp_sendmsg() -> Result<()> {
    let socket = UdpSocket::bind(loopback(0))?;
    let address = match socket.local_addr()? {
        std::net::SocketAddr::V4(address) => SockaddrIn::from(address),
        std::net::SocketAddr::V6(_) => bail!("not IPv4"),
    };
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(b"x")], &[], MsgFlags::empty(), Some(&address))?;
    setsockopt(&socket.as_fd(), sockopt::ReuseAddr, &true)?;
    Ok(())
}

fn pidfd_getfd() -> Result<()> {
    // SAFETY: no memory is involved; both results are new descriptors that nobody else owns.
    unsafe {
        let process = libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0);
        ensure!(process >= 0, "pidfd_open");
        let process = OwnedFd::from_raw_fd(process as RawFd);
        let copy = libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), 1, 0);
        ensure!(copy >= 0, "pidfd_getfd");
        drop(OwnedFd::from_raw_fd(copy as RawFd));
    }
    Ok(())
}

fn call_repeatedly(times: u32) {
    for _ in 0..times {
        nix::unistd::getppid();
    }
}

/// A call whose arguments make no sense: the hook comes before the kernel finds that out.
fn user_call(name: &str) -> Result<libc::c_long> {
    Ok(match name {
        "setuid" => libc::SYS_setuid,
        "setgid" => libc::SYS_setgid,
        "setreuid" => libc::SYS_setreuid,
        "setregid" => libc::SYS_setregid,
        "setresuid" => libc::SYS_setresuid,
        "setresgid" => libc::SYS_setresgid,
        "setfsuid" => libc::SYS_setfsuid,
        "setfsgid" => libc::SYS_setfsgid,
        "getuid" => libc::SYS_getuid,
        _ => bail!("no such call"),
    })
}

/// Of the calling thread alone, without the C library, which has all threads do it. Changes nothing: no id is -1.
fn set_user(call: libc::c_long) {
    call_and_fail(call, [-1; 3]);
}

/// A thread that becomes another user's, and stays.
fn thread_of_user(id: u32) -> Result<()> {
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let ids = libc::c_long::from(id);
        // SAFETY: no memory is involved.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, ids, ids, ids) };
        let _ = done.send(result);
        std::thread::park();
    });
    ensure!(wait.recv()? == 0, "setresuid");
    Ok(())
}

fn call_and_fail(number: libc::c_long, arguments: [libc::c_long; 3]) {
    // SAFETY: descriptor 0 is a pipe, which knows none of these; no pointer is valid.
    unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2]) };
}

fn change_file(how: &str, path: &str) -> Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    match how {
        "open" => {}
        "write" => file.write_all(b"changed")?,
        "truncate" => file.set_len(100)?,
        "utimes" => file.set_modified(std::time::SystemTime::now())?,
        "chmod" => file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))?,
        "mmap-store" => {
            let length = PAGE;
            let flags = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            // SAFETY: the file is at least a page long and nothing else truncates it; the mapping is used and removed
            // here.
            unsafe {
                let page = nix::sys::mman::mmap(None, length, flags, MapFlags::MAP_SHARED, file.as_fd(), 0)?;
                page.cast::<u8>().write_volatile(page.cast::<u8>().read_volatile().wrapping_add(1));
                munmap(page, length.get())?;
            }
        }
        _ => bail!("unknown change"),
    }
    Ok(())
}

/// Mounts `place`/lower and `place`/upper together at `place`/merged, in a mount namespace of the actor's own.
fn mount_overlay(place: &str) -> Result<()> {
    use nix::mount::{MsFlags, mount};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let options = format!("lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work");
    mount(
        Some("overlay"),
        format!("{place}/merged").as_str(),
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    )?;
    Ok(())
}
