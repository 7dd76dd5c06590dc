//! Ways for new code to come into a process, fork, and ways into the kernel that no safe wrapper knows. None of them is safe
//! in Rust's sense: this file and the modules below it are the door.
#![allow(unsafe_code)]

pub mod compat;
pub mod files;
pub mod headless;
pub mod mappings;
pub mod reborn;
pub mod ring;

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::ptr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::unistd::ForkResult;
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, memfd_create, openat};
use rustix::ioctl::{Getter, ioctl};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};

pub use libloading::Library;

/// One page; what is mapped is never looked at, so its size does not matter.
const LENGTH: usize = 4096;

/// dlopen.
///
/// # Errors
/// The loader refused.
pub fn load(path: &Path) -> Result<Library> {
    // SAFETY: tests load copies of libgcc_s, whose initialisers this process has run already.
    unsafe { Library::new(path) }.with_context(|| format!("dlopen {}", path.display()))
}

/// Maps the head of a file readable and executable, for good.
///
/// # Errors
/// The file cannot be mapped.
pub fn map_executable(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    // SAFETY: a new mapping at an address of the kernel's choice; nothing ever points into it.
    unsafe { mmap(ptr::null_mut(), LENGTH, ProtFlags::READ | ProtFlags::EXEC, MapFlags::PRIVATE, file, 0) }
        .context("mmap")?;
    Ok(())
}

/// A page that is mapped until this is dropped. Nothing ever points into it.
pub struct Memory(*mut std::ffi::c_void);

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the page was mapped by this file, and nothing points into it.
        let unmapped = unsafe { munmap(self.0, LENGTH) };
        debug_assert!(unmapped.is_ok());
    }
}

impl Memory {
    fn executable(self) -> Result<Memory> {
        // SAFETY: the page is this one's alone.
        unsafe { mprotect(self.0, LENGTH, MprotectFlags::READ | MprotectFlags::EXEC) }.context("mprotect")?;
        Ok(self)
    }
}

/// Makes a page of anonymous memory executable, the way a JIT does.
///
/// # Errors
/// The kernel refused.
pub fn anonymous_executable() -> Result<Memory> {
    let all = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let page = unsafe { mmap_anonymous(ptr::null_mut(), LENGTH, all, MapFlags::PRIVATE) }.context("mmap")?;
    Memory(page).executable()
}

/// Makes a page executable that began as a file's and was written to: no file holds what is in it.
///
/// # Errors
/// The file cannot be mapped.
pub fn patched_executable(path: &Path) -> Result<Memory> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let all = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let page = unsafe { mmap(ptr::null_mut(), LENGTH, all, MapFlags::PRIVATE, file, 0) }.context("mmap")?;
    let memory = Memory(page);
    // SAFETY: the page is this one's alone, and writable.
    unsafe { memory.0.cast::<u8>().write_volatile(0xc3) };
    memory.executable()
}

/// A packet(7) socket that sends Ethernet frames through the interface with this index.
///
/// # Errors
/// The kernel refused.
pub fn packet_socket(interface: u32) -> Result<OwnedFd> {
    let protocol = 0x0800_u16.to_be();
    // SAFETY: all bytes 0 are a valid address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = interface as i32;
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: a new descriptor that nobody else owns; the kernel reads `length` bytes of a live value of that size.
    unsafe {
        let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error()).context("socket");
        }
        let socket = OwnedFd::from_raw_fd(socket);
        if libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) < 0 {
            return Err(io::Error::last_os_error()).context("bind");
        }
        Ok(socket)
    }
}

/// fork: the child's pid in the parent, nothing in the child.
///
/// # Errors
/// Too many processes.
pub fn fork() -> Result<Option<u32>> {
    // SAFETY: the actor has one thread, so the child inherits no lock held by another.
    match unsafe { nix::unistd::fork() }.context("fork")? {
        ForkResult::Parent { child } => Ok(Some(child.as_raw().unsigned_abs())),
        ForkResult::Child => Ok(None),
    }
}

/// The IP header comes from the sender of a raw IPv4 socket (IP_HDRINCL).
///
/// # Errors
/// Not a raw socket.
pub fn header_included(socket: impl AsFd) -> Result<()> {
    set(socket, libc::IPPROTO_IP, libc::IP_HDRINCL, 1).context("IP_HDRINCL")
}

/// What a UDP socket is given goes into one datagram until this is taken back, which sends it (UDP_CORK).
///
/// # Errors
/// Not a UDP socket.
pub fn cork(socket: impl AsFd, yes: bool) -> Result<()> {
    const UDP_CORK: c_int = 1;
    set(socket, libc::IPPROTO_UDP, UDP_CORK, yes.into()).context("UDP_CORK")
}

fn set(socket: impl AsFd, level: c_int, option: c_int, value: c_int) -> Result<()> {
    let (socket, length) = (socket.as_fd().as_raw_fd(), size_of::<c_int>() as libc::socklen_t);
    // SAFETY: the kernel reads one int.
    let done = unsafe { libc::setsockopt(socket, level, option, (&raw const value).cast(), length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error().into()) }
}

/// Data leave with the SYN without having asked the peer for a cookie before (TCP_FASTOPEN_NO_COOKIE).
///
/// # Errors
/// Not a TCP socket.
pub fn fast_open_without_cookie(socket: impl AsFd) -> Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_NO_COOKIE, 1).context("TCP_FASTOPEN_NO_COOKIE")
}

/// Bytes that a socket has sent and the kernel still holds; for a datagram socket those of packets under way.
///
/// # Errors
/// Not a socket.
fn unsent(socket: impl AsFd) -> Result<c_int> {
    const SIOCOUTQ: u32 = 0x5411;
    // SAFETY: this request writes one int.
    unsafe { ioctl(socket, Getter::<SIOCOUTQ, c_int>::new()) }.context("SIOCOUTQ")
}

/// Waits until every packet that a datagram socket has sent was judged: until then the kernel counts it as the socket's.
///
/// # Errors
/// Not a socket, or packets still wait after a long time.
pub fn until_judged(socket: impl AsFd) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(15);
    while unsent(&socket)? > 0 {
        if Instant::now() > deadline {
            bail!("packets still wait for a verdict");
        }
        // The kernel has no event for it.
        std::thread::yield_now();
    }
    Ok(())
}

/// Becomes this same program, run from a copy that no path leads to: `kind` is `memfd` or `tmpfile`. Returns only if that
/// failed.
pub fn become_unlinked(kind: &str, arguments: &[String]) -> anyhow::Error {
    match unlinked_copy(kind) {
        Ok(copy) => Command::new(format!("/proc/self/fd/{}", copy.as_raw_fd())).args(arguments).exec().into(),
        Err(error) => error,
    }
}

fn unlinked_copy(kind: &str) -> Result<File> {
    let file: OwnedFd = match kind {
        "memfd" => memfd_create("actor", MemfdFlags::CLOEXEC)?,
        "tmpfile" => {
            let how = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            openat(CWD, std::env::temp_dir(), how, Mode::RWXU).context("O_TMPFILE")?
        }
        _ => bail!("unknown kind of file {kind}"),
    };
    let mut file = File::from(file);
    io::copy(&mut File::open("/proc/self/exe")?, &mut file)?;
    // A file that is open for writing cannot be executed.
    Ok(File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?)
}
