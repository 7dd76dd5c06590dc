//! The crate's only unsafe code: memory shared with the kernel, and the system calls that aya has no words for.
#![allow(unsafe_code)]

use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use crate::layout::{
    AnswerSlot, CacheControl, CacheCounter, CacheCounts, ConnectionSlot, FileSlot, ProcessSlot, SenderSlot, Wide,
};

/// A value that may be looked at while the kernel changes it.
///
/// # Safety
///
/// The type consists of atomics alone, without padding, so that every bit pattern is valid and every access is an
/// atomic one.
pub(crate) unsafe trait SharedWithKernel {}
// SAFETY: an atomic.
unsafe impl SharedWithKernel for AtomicU64 {}
// SAFETY: atomics alone; the sizes asserted in `layout` leave no room for padding.
unsafe impl SharedWithKernel for ProcessSlot {}
// SAFETY: as above.
unsafe impl SharedWithKernel for ConnectionSlot {}
// SAFETY: as above.
unsafe impl SharedWithKernel for SenderSlot {}
// SAFETY: as above.
unsafe impl SharedWithKernel for FileSlot {}
// SAFETY: as above.
unsafe impl SharedWithKernel for Wide {}
// SAFETY: as above.
unsafe impl SharedWithKernel for AnswerSlot {}
// SAFETY: as above.
unsafe impl SharedWithKernel for CacheControl {}
// SAFETY: as above.
unsafe impl SharedWithKernel for CacheCounter {}
// SAFETY: as above.
unsafe impl SharedWithKernel for CacheCounts {}

/// What the daemon may do with a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Load.
    Read,
    /// Load and store.
    ReadWrite,
}

/// An eBPF array, mapped into memory. The map lives as long as this does, whatever becomes of its descriptor.
pub(crate) struct SharedArray<T> {
    start: NonNull<T>,
    entries: usize,
}

impl<T: SharedWithKernel> SharedArray<T> {
    /// Maps an array of `entries` values. The caller has checked that the map has that many values of this size.
    ///
    /// # Errors
    ///
    /// Those of mmap(2).
    pub(crate) fn new(map: BorrowedFd<'_>, entries: usize, access: Access) -> io::Result<SharedArray<T>> {
        let protection = match access {
            Access::Read => libc::PROT_READ,
            Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours; the kernel refuses one
        // larger than the map.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), entries * size_of::<T>(), protection, libc::MAP_SHARED, map.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        match NonNull::new(start.cast()) {
            Some(start) => Ok(SharedArray { start, entries }),
            None => Err(io::Error::other("the kernel mapped the array at address 0")),
        }
    }
}

impl<T: SharedWithKernel> Deref for SharedArray<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `start` is page-aligned and maps `entries` values until drop; `T` is atomics alone, so the kernel's
        // stores race with none of our accesses and every bit pattern is valid. Stores through a read-only mapping
        // fault; only file slots and the cache are stored to.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.entries) }
    }
}

impl<T> Drop for SharedArray<T> {
    fn drop(&mut self) {
        // SAFETY: exactly what mmap returned, and nothing borrows from it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.entries * size_of::<T>()) };
    }
}

// SAFETY: memory shared with the kernel belongs to no thread, and `T` is atomics alone.
unsafe impl<T: SharedWithKernel> Send for SharedArray<T> {}
// SAFETY: as above.
unsafe impl<T: SharedWithKernel> Sync for SharedArray<T> {}

/// CLOCK_MONOTONIC, nanoseconds.
pub(crate) fn monotonic() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// A netlink socket that is told of changes of network devices in the namespace of the calling thread.
///
/// # Errors
///
/// Those of socket(2) and bind(2).
pub(crate) fn link_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is involved.
    let socket = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just made, and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: numbers alone, for which zero is valid.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address.nl_groups = libc::RTMGRP_LINK as u32;
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `address`.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

// include/uapi/linux/bpf.h
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_ITER_CREATE: libc::c_long = 33;
const BPF_TRACE_ITER: u32 = 28;

/// `union bpf_attr`, the member `link_create` with its `iter_info`.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    iter_info: u64,
    iter_info_len: u32,
    padding: u32,
}
const _: () = assert!(size_of::<LinkCreate>() == 32);

/// `union bpf_iter_link_info`, the member `task`.
#[repr(C)]
struct IterTask {
    tid: u32,
    pid: u32,
    pid_fd: u32,
}

/// `union bpf_attr`, the member `iter_create`.
#[repr(C)]
struct IterCreate {
    link_fd: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of a live value, which the callers lay out as the command
    // demands, and writes none.
    let descriptor = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    match RawFd::try_from(descriptor) {
        // SAFETY: both commands return a new descriptor, which nobody else owns.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn unsigned(descriptor: RawFd) -> io::Result<u32> {
    u32::try_from(descriptor).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))
}

/// Starts an iterator program over the tasks of one process, or of all if `tgid` is 0, and returns the descriptor its
/// output is read from.
///
/// Kernels before 6.1 cannot restrict it to one process, and go over all without saying so.
///
/// # Errors
///
/// Those of bpf(2).
pub(crate) fn start_iterator(program: BorrowedFd<'_>, tgid: u32) -> io::Result<OwnedFd> {
    let task = IterTask { tid: 0, pid: tgid, pid_fd: 0 };
    let (iter_info, iter_info_len) =
        if tgid == 0 { (0, 0) } else { (std::ptr::from_ref(&task) as u64, size_of::<IterTask>() as u32) };
    let link = LinkCreate {
        prog_fd: unsigned(program.as_raw_fd())?,
        target_fd: 0,
        attach_type: BPF_TRACE_ITER,
        flags: 0,
        iter_info,
        iter_info_len,
        padding: 0,
    };
    let link = bpf(BPF_LINK_CREATE, &link)?;
    // The running iterator keeps what it needs of the link.
    bpf(BPF_ITER_CREATE, &IterCreate { link_fd: unsigned(link.as_raw_fd())?, flags: 0 })
}

/// `union bpf_attr`, the member `test`.
#[repr(C)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}
const _: () = assert!(size_of::<TestRun>() == 80);

/// Runs a traffic classifier once, on a packet that is nowhere else, and returns what it returns.
///
/// # Errors
///
/// Those of bpf(2).
pub(crate) fn run(program: BorrowedFd<'_>, packet: &[u8]) -> io::Result<u32> {
    let mut run = TestRun {
        prog_fd: unsigned(program.as_raw_fd())?,
        retval: 0,
        data_size_in: u32::try_from(packet.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
        data_size_out: 0,
        data_in: packet.as_ptr() as u64,
        data_out: 0,
        repeat: 0,
        duration: 0,
        ctx_size_in: 0,
        ctx_size_out: 0,
        ctx_in: 0,
        ctx_out: 0,
        flags: 0,
        cpu: 0,
        batch_size: 0,
        padding: 0,
    };
    // SAFETY: the kernel reads `size_of::<TestRun>()` bytes of a live value and `data_size_in` bytes of `packet`, and writes
    // into the value's own fields; there is no room for output elsewhere.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, std::ptr::from_mut(&mut run), size_of::<TestRun>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(run.retval) }
}
