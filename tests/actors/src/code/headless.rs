//! Processes whose first thread shows nothing of what the others do: it ends while they go on, which is what pthread_exit in
//! `main` makes of a program, or has other descriptors.

use std::io;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::libc::{self, c_int, c_void};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// What becomes of the first thread.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It ends, and the others begin.
    Headless,
    /// It ends some time after they began: up to 3 ms, another time in each of many runs.
    Beheaded,
    /// The same in a child that shares this process' memory; this process waits for its end.
    HeadlessTwin,
    /// It goes on. The others have a descriptor table of their own.
    Apart,
}

impl Way {
    /// By its name.
    pub fn parse(name: &str) -> Option<Way> {
        match name {
            "headless" => Some(Way::Headless),
            "beheaded" => Some(Way::Beheaded),
            "headless-twin" => Some(Way::HeadlessTwin),
            "apart" => Some(Way::Apart),
            _ => None,
        }
    }
}

/// Runs `act` in a process that has two threads besides its first one, in one of those, and ends the process with it.
///
/// # Errors
/// The kernel refused.
pub fn run(way: Way, act: fn() -> Result<()>) -> Result<()> {
    match way {
        Way::Headless => {
            start(has_no_first_thread, act);
            end_thread();
        }
        Way::Beheaded => {
            start(|| true, act);
            thread::sleep(Duration::from_micros(u64::from(std::process::id() % 32) * 100));
            end_thread();
        }
        Way::Apart => {
            start(|| unshare(CloneFlags::CLONE_FILES).is_ok(), act);
            idle();
        }
        Way::HeadlessTwin => {}
    }
    const STACK: usize = 1 << 20;
    let mut stack = vec![0_u8; STACK].leak().as_mut_ptr_range().end;
    stack = stack.wrapping_sub(stack.addr() % 16);
    let argument = &raw const act;
    // SAFETY: the child has a stack of its own. Until its first thread has ended this one, whose thread-local storage it
    // uses, stands still (CLONE_VFORK), and so `act` stays where it is.
    let child = unsafe {
        libc::clone(first, stack.cast(), libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD, argument as *mut c_void)
    };
    if child < 0 {
        return Err(io::Error::last_os_error()).context("clone");
    }
    match waitpid(Pid::from_raw(child), None)? {
        WaitStatus::Exited(_, code) => end_process(code),
        status => bail!("the twin ended so: {status:?}"),
    }
}

extern "C" fn first(act: *mut c_void) -> c_int {
    // SAFETY: what run() has passed.
    start(has_no_first_thread, unsafe { *act.cast::<fn() -> Result<()>>() });
    end_thread()
}

/// `ready` becomes true in the thread that acts.
fn start(ready: fn() -> bool, act: fn() -> Result<()>) {
    thread::spawn(move || {
        while !ready() {
            thread::yield_now();
        }
        // It has the same descriptor table.
        thread::spawn(|| idle());
        let code = match act() {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("{error:#}");
                1
            }
        };
        end_process(code)
    });
}

/// Without the clean-up that std does once for each memory: a twin's is its parent's too.
fn end_process(code: c_int) -> ! {
    // SAFETY: ends the process; what it has written was flushed line by line.
    unsafe { libc::_exit(code) }
}

fn idle() -> ! {
    loop {
        thread::park();
    }
}

fn has_no_first_thread() -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", std::process::id()));
    stat.is_ok_and(|stat| stat.contains(") Z "))
}

fn end_thread() -> ! {
    loop {
        // SAFETY: ends this thread alone, whose stack nobody uses afterwards.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
}
