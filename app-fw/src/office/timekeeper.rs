//! Wakes the registrar when the wall clock says that something about the rules is due.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys::readiness::watch;

use super::Registrar;

/// An alarm by the wall clock.
struct Alarm {
    timer: TimerFd,
    ready: AsyncFd<OwnedFd>,
}

/// Later than anything: the kernel takes no more.
const NEVER: Duration = Duration::from_secs(1 << 32);

impl Alarm {
    fn new() -> io::Result<Alarm> {
        let timer = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        let ready = watch(timer.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
        Ok(Alarm { timer, ready })
    }

    fn set(&self, at: Duration) -> io::Result<()> {
        // Zero would disarm it.
        let at = Expiration::OneShot(at.max(Duration::from_nanos(1)).into());
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        Ok(self.timer.set(at, flags)?)
    }

    /// It has rung, or the clock was set.
    async fn rung(&self) -> io::Result<()> {
        let mut ready = self.ready.readable().await?;
        ready.clear_ready();
        match self.timer.wait() {
            Ok(()) | Err(nix::errno::Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Has the registrar do what is due, when it is due.
pub async fn keep_time(registrar: Arc<Registrar>) {
    if let Err(error) = run(registrar).await {
        tracing::error!("the time is no longer kept, rules do not end by themselves: {error}");
    }
    std::future::pending().await
}

async fn run(registrar: Arc<Registrar>) -> io::Result<()> {
    // Two: setting an alarm forgets that the clock was set before.
    let (alarm, clock_set) = (Alarm::new()?, Alarm::new()?);
    clock_set.set(NEVER)?;
    loop {
        let minding = registrar.clone();
        let next = tokio::task::spawn_blocking(move || minding.mind_the_clock()).await.map_err(io::Error::other)?;
        alarm.set(next.map_or(NEVER, since_1970))?;
        tokio::select! {
            rung = alarm.rung() => rung?,
            set = clock_set.rung() => set?,
            () = registrar.changed.notified() => {}
        }
    }
}

fn since_1970(time: Timestamp) -> Duration {
    Duration::try_from(time.as_duration()).unwrap_or_default()
}
