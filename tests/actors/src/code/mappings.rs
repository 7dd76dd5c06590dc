//! Executable mappings that nobody asked for by `mmap` with PROT_EXEC, or that take long.

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use nix::libc;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};

use super::LENGTH;
use crate::code::compat;

const READ_EXEC: ProtFlags = ProtFlags::READ.union(ProtFlags::EXEC);

/// Makes the head of a file executable memory in some `way`, for good. `path` is where the code comes from; the ways `shm` and
/// `zero` make executable memory that can be shared and belongs to no file.
///
/// # Errors
/// The kernel refused, or the way is unknown.
pub fn map_by(way: &str, path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let private = |protection| {
        // SAFETY: a new mapping at an address of the kernel's choice; nothing ever points into it.
        unsafe { mmap(ptr::null_mut(), LENGTH, protection, MapFlags::PRIVATE, &file, 0) }.context("mmap")
    };
    let private_of = |file: &File, length| {
        // SAFETY: as above.
        unsafe { mmap(ptr::null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE, file, 0) }.context("mmap")
    };
    match way {
        "mprotect" => {
            let page = private(ProtFlags::READ)?;
            // SAFETY: the page mapped above, which nothing points into.
            unsafe { mprotect(page, LENGTH, MprotectFlags::READ | MprotectFlags::EXEC) }.context("mprotect")?;
        }
        "pkey-mprotect" => {
            let page = private(ProtFlags::READ)?;
            // SAFETY: as above.
            let done = unsafe { libc::syscall(libc::SYS_pkey_mprotect, page, LENGTH, READ_EXEC.bits(), -1) };
            ensure!(done == 0, "pkey_mprotect: {}", io::Error::last_os_error());
        }
        "half-mprotect" => {
            // It fails at the hole, when what is before that is executable already.
            let (page, two) = (private_of(&file, 2 * LENGTH)?, 2 * LENGTH);
            // SAFETY: the two pages mapped above, which nothing points into.
            unsafe {
                munmap(page.byte_add(LENGTH), LENGTH).context("munmap")?;
                ensure!(mprotect(page, two, MprotectFlags::READ | MprotectFlags::EXEC).is_err(), "there is no hole");
            }
        }
        "read-implies-exec" => {
            const READ_IMPLIES_EXEC: libc::c_ulong = 0x0040_0000;
            // SAFETY: no memory is involved.
            ensure!(unsafe { libc::personality(READ_IMPLIES_EXEC) } >= 0, "personality");
            private(ProtFlags::READ)?;
        }
        "writable" => {
            let file = OpenOptions::new().read(true).write(true).open(path)?;
            let all = READ_EXEC | ProtFlags::WRITE;
            // SAFETY: a new mapping at an address of the kernel's choice; nothing ever points into it.
            unsafe { mmap(ptr::null_mut(), LENGTH, all, MapFlags::SHARED, &file, 0) }.context("mmap")?;
        }
        "fixed" => {
            // SAFETY: the second mapping replaces the first, which nothing points into.
            unsafe {
                let page = mmap_anonymous(ptr::null_mut(), LENGTH, ProtFlags::READ, MapFlags::PRIVATE)?;
                mmap(page, LENGTH, READ_EXEC, MapFlags::PRIVATE | MapFlags::FIXED, &file, 0).context("mmap")?;
            }
        }
        "memfd" => {
            let copy = memfd_create("code", MemfdFlags::CLOEXEC)?;
            io::copy(&mut &file, &mut File::from(copy.try_clone()?))?;
            // SAFETY: a new mapping at an address of the kernel's choice; nothing ever points into it.
            unsafe { mmap(ptr::null_mut(), LENGTH, READ_EXEC, MapFlags::PRIVATE, &copy, 0) }.context("mmap")?;
        }
        "int80" => compat::map_executable(&file)?,
        "shm" => attach_executable()?,
        "zero" => {
            // SAFETY: a new mapping at an address of the kernel's choice; nothing ever points into it.
            unsafe { mmap_anonymous(ptr::null_mut(), LENGTH, READ_EXEC, MapFlags::SHARED) }.context("mmap")?;
        }
        _ => bail!("unknown way {way}"),
    }
    Ok(())
}

/// Maps the head of a file executable, lets `act` be done, and has the mapping go in some `way` that is not munmap of it.
///
/// # Errors
/// The kernel refused, `act` failed, or the way is unknown.
pub fn vanish(way: &str, path: &Path, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let anonymous = || {
        // SAFETY: a new mapping at an address of the kernel's choice; nothing ever points into it.
        unsafe { mmap_anonymous(ptr::null_mut(), LENGTH, ProtFlags::READ, MapFlags::PRIVATE) }.context("mmap")
    };
    let at = |place| {
        // SAFETY: it replaces a page that this function made, or one past the heap, which nothing points into.
        unsafe { mmap(place, LENGTH, READ_EXEC, MapFlags::PRIVATE | MapFlags::FIXED, &file, 0) }.context("mmap")
    };
    match way {
        "mremap" => {
            let page = at(anonymous()?)?;
            act()?;
            let other = anonymous()?;
            // SAFETY: both pages are this function's own.
            unsafe {
                let flags = rustix::mm::MremapFlags::MAYMOVE;
                rustix::mm::mremap_fixed(other, LENGTH, LENGTH, flags, page).context("mremap")?;
                munmap(page, LENGTH).context("munmap")
            }
        }
        "brk" => {
            // SAFETY: the heap is longer than before while the page is in it, and nobody else moves its end: the actor has
            // one thread, which allocates nothing in between that would.
            unsafe {
                let end = libc::sbrk(0);
                let start = end.byte_add(end.align_offset(LENGTH));
                ensure!(libc::brk(start.byte_add(LENGTH)) == 0, "brk: {}", io::Error::last_os_error());
                at(start)?;
                let done = act();
                ensure!(libc::brk(end) == 0, "brk: {}", io::Error::last_os_error());
                done
            }
        }
        "shmat" => {
            let page = at(anonymous()?)?;
            act()?;
            // SAFETY: the segment takes the place of the page; both are this function's own.
            unsafe {
                let segment = libc::shmget(libc::IPC_PRIVATE, LENGTH, 0o700);
                ensure!(segment >= 0, "shmget: {}", io::Error::last_os_error());
                let place = libc::shmat(segment, page, libc::SHM_REMAP);
                let error = io::Error::last_os_error();
                libc::shmctl(segment, libc::IPC_RMID, ptr::null_mut());
                ensure!(place as isize != -1, "shmat: {error}");
                ensure!(libc::shmdt(place) == 0, "shmdt: {}", io::Error::last_os_error());
            }
            Ok(())
        }
        _ => bail!("unknown way {way}"),
    }
}

/// A System V shared memory segment attached with SHM_EXEC, for good.
fn attach_executable() -> Result<()> {
    // SAFETY: a new segment, which nothing points into; it goes with the process.
    unsafe {
        let segment = libc::shmget(libc::IPC_PRIVATE, LENGTH, 0o700);
        ensure!(segment >= 0, "shmget: {}", io::Error::last_os_error());
        let address = libc::shmat(segment, ptr::null(), libc::SHM_EXEC);
        let error = io::Error::last_os_error();
        libc::shmctl(segment, libc::IPC_RMID, ptr::null_mut());
        ensure!(address as isize != -1, "shmat: {error}");
    }
    Ok(())
}

/// Where [`populate`] maps: far from everything else, so that another thread can look there.
const PLACE: usize = 0x3000_0000_0000;

/// Maps a whole file executable, every page at once (MAP_POPULATE), and lets another thread call `meanwhile` as soon as the
/// mapping can be seen. Returns whether `meanwhile` was through before mmap returned. Unmaps again after `done`.
///
/// # Errors
/// The file cannot be mapped, or one of the two failed.
pub fn populate(
    path: &Path,
    meanwhile: impl FnOnce() -> Result<()> + Send,
    done: impl FnOnce() -> Result<()>,
) -> Result<bool> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let length = usize::try_from(file.metadata()?.len())?;
    let returned = AtomicBool::new(false);
    let early = std::thread::scope(|scope| -> Result<bool> {
        let other = scope.spawn(|| -> Result<bool> {
            // The kernel says whether there is something to read at an address, without a fault of ours.
            let (_reader, writer) = std::io::pipe()?;
            loop {
                // SAFETY: the kernel only reads, and refuses (EFAULT) where nothing is mapped.
                let wrote = unsafe { libc::write(writer.as_raw_fd(), PLACE as *const c_void, 1) };
                if wrote == 1 {
                    break;
                }
                std::hint::spin_loop();
            }
            meanwhile()?;
            Ok(!returned.load(Ordering::SeqCst))
        });
        let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE | MapFlags::POPULATE;
        // SAFETY: FIXED_NOREPLACE maps where nothing else is; nothing ever points into it.
        let mapped = unsafe { mmap(PLACE as *mut c_void, length, READ_EXEC, flags, &file, 0) };
        returned.store(true, Ordering::SeqCst);
        if mapped.is_err() {
            // The other thread would wait for ever.
            std::process::abort();
        }
        other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    done()?;
    // SAFETY: what was mapped above.
    unsafe { munmap(PLACE as *mut c_void, length) }.context("munmap")?;
    Ok(early)
}
