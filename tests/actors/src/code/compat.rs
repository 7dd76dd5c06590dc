//! System calls by the 32-bit entry (`int 0x80`) of a 64-bit process: other numbers, and pointers below 4 GiB.

use std::fs::File;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

use anyhow::{Context, Result, ensure};
use nix::libc;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::LENGTH;

/// Numbers of `arch/x86/entry/syscalls/syscall_32.tbl`.
const WRITE: u32 = 4;
const OLD_MMAP: u32 = 90;
const SOCKET: u32 = 359;
const CONNECT: u32 = 362;

/// Makes a system call with up to three arguments.
///
/// # Safety
/// As the call itself; pointers among the arguments must be below 4 GiB.
unsafe fn call(number: u32, arguments: [u32; 3]) -> Result<u32> {
    let mut result = u64::from(number);
    // SAFETY: the kernel changes rax and clobbers r8 to r11; rbx, which Rust keeps for itself, is put back.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {first}",
            "int 0x80",
            "xchg rbx, {first}",
            first = inout(reg) u64::from(arguments[0]) => _,
            inout("rax") result,
            in("rcx") u64::from(arguments[1]),
            in("rdx") u64::from(arguments[2]),
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    // The result is a 32-bit number; the highest 4095 are errors.
    let result = result as u32;
    let error = result.cast_signed();
    ensure!(!(-4095..0).contains(&error), "32-bit call {number}: {}", std::io::Error::from_raw_os_error(-error));
    Ok(result)
}

/// A page below 4 GiB that holds a copy of some bytes.
struct LowPage(NonNull<u8>);

impl LowPage {
    fn holding(bytes: &[u8]) -> Result<Self> {
        ensure!(bytes.len() <= LENGTH);
        const MAP_32BIT: u32 = 0x40;
        let flags = MapFlags::PRIVATE | MapFlags::from_bits_retain(MAP_32BIT);
        // SAFETY: a new mapping, long enough for the bytes.
        let page = unsafe {
            let page = mmap_anonymous(ptr::null_mut(), LENGTH, ProtFlags::READ | ProtFlags::WRITE, flags)?;
            ptr::copy_nonoverlapping(bytes.as_ptr(), page.cast(), bytes.len());
            page
        };
        NonNull::new(page.cast()).map(Self).context("address 0")
    }

    fn address(&self) -> u32 {
        self.0.as_ptr() as usize as u32 // MAP_32BIT
    }
}

impl Drop for LowPage {
    fn drop(&mut self) {
        // SAFETY: the page is this value's own.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), LENGTH) };
    }
}

/// Maps the head of a file readable and executable, for good.
pub fn map_executable(file: &File) -> Result<()> {
    // struct mmap_arg_struct32: address, length, protection, flags, descriptor, offset.
    let words = [
        0,
        LENGTH as u32,
        (libc::PROT_READ | libc::PROT_EXEC).unsigned_abs(),
        libc::MAP_PRIVATE.unsigned_abs(),
        file.as_raw_fd().unsigned_abs(),
        0,
    ];
    let bytes: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
    let page = LowPage::holding(&bytes)?;
    // SAFETY: a new mapping at an address of the kernel's choice; nothing ever points into it.
    unsafe { call(OLD_MMAP, [page.address(), 0, 0]) }.map(drop)
}

/// Makes a UDP socket, connects it and writes `payload` so many times.
///
/// # Errors
/// The kernel refused.
pub fn send(to: SocketAddrV4, payload: &[u8], times: u32) -> Result<()> {
    let (family, datagram) = (libc::AF_INET.unsigned_abs(), (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC).unsigned_abs());
    // SAFETY: no memory is involved; the result is a new descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(call(SOCKET, [family, datagram, 0])?.cast_signed()) };
    // struct sockaddr_in: family in the host's byte order, port and address in the network's.
    let mut name = (libc::AF_INET as u16).to_ne_bytes().to_vec();
    name.extend(to.port().to_be_bytes());
    name.extend(to.ip().octets());
    name.extend([0; 8]);
    let (address, bytes) = (LowPage::holding(&name)?, LowPage::holding(payload)?);
    let descriptor = socket.as_raw_fd().unsigned_abs();
    // SAFETY: the kernel reads as many bytes as the pages hold.
    unsafe {
        call(CONNECT, [descriptor, address.address(), name.len() as u32])?;
        for _ in 0..times {
            // A refusal is what some callers are after.
            let _ = call(WRITE, [descriptor, bytes.address(), payload.len() as u32]);
        }
    }
    super::until_judged(&socket)
}
