//! What /proc does not tell about processes, and how the scheduler is asked for a thread of ours.

use std::io;

/// `KCMP_FILES` of linux/kcmp.h.
const KCMP_FILES: libc::c_int = 2;

/// Whether two threads surely have one descriptor table. Two that have ended share the one that they do not have.
pub fn share_descriptors(one: i32, other: i32) -> bool {
    // SAFETY: kcmp(2) takes numbers and touches no memory of this process.
    unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILES, 0, 0) == 0 }
}

/// Asks the scheduler to let the calling thread go before others: by weight (a nice value of -10, unless it has been given another),
/// and with turns of 0.1 ms, the shortest there are, so that it is not kept waiting until another has had its turn of some
/// milliseconds. Kernels before 6.12 do not know of such turns.
///
/// # Errors
/// What sched_setattr(2) says.
pub fn go_first() -> io::Result<()> {
    /// Nanoseconds.
    const TURN: u64 = 100_000;
    const NICE: i32 = -10;
    let size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: all of it is numbers, of which zero means nothing special. The kernel reads it for as long as the call takes.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the length it is told.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    // Whoever has given the daemon another policy meant it.
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    attributes.size = size;
    attributes.sched_runtime = TURN;
    if attributes.sched_nice == 0 {
        attributes.sched_nice = NICE;
    }
    // SAFETY: as above.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_goes_first_keeps_to_his_policy() {
        let niceness = |()| std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let thread = std::thread::spawn(move || {
            go_first().unwrap();
            niceness(())
        });
        // proc(5): field 19, the 17th after the name.
        let stat = thread.join().unwrap();
        let field = stat.rsplit(") ").next().unwrap().split(' ').nth(16).unwrap().to_owned();
        assert_eq!(field, "-10");
    }

    #[test]
    fn threads_share_until_one_goes_its_own_way() {
        let me = std::process::id() as i32;
        let thread = std::thread::spawn(move || {
            let id = nix::unistd::gettid().as_raw();
            let before = share_descriptors(me, id);
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES).unwrap();
            (before, share_descriptors(me, id))
        });
        assert_eq!(thread.join().unwrap(), (true, false));
        assert!(!share_descriptors(me, i32::MAX));
    }
}
