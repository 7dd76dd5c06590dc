//! What /proc does not tell about processes.

/// `KCMP_FILES` of linux/kcmp.h.
const KCMP_FILES: libc::c_int = 2;

/// Whether two threads surely have one descriptor table. Two that have ended share the one that they do not have.
pub fn share_descriptors(one: i32, other: i32) -> bool {
    // SAFETY: kcmp(2) takes numbers and touches no memory of this process.
    unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILES, 0, 0) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

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
