//! Something to wake a thread with: at a moment, or now, from any thread.
//!
//! One timer descriptor does both: whoever rings sets it to go off at once. So a ring may be lost in favour of a moment
//! that is set just then: whoever sets one looks again at what would have been rung for, as [`Source`] has it anyway
//! (`arm`, then `ready`).
//!
//! [`Source`]: crate::wait::Source

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::wait::WakeId;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

/// An alarm. Its descriptor is readable from the moment on that was set or rung until [`Alarm::reset`].
#[derive(Debug)]
pub struct Alarm {
    timer: OwnedFd,
    id: WakeId,
    /// It has been set or rung since it was last reset.
    is_set: AtomicBool,
}

impl Alarm {
    /// One that is not set.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self { timer, id: WakeId::unique(), is_set: AtomicBool::new(false) })
    }

    /// For [`crate::wait::Source::wake_id`].
    pub fn id(&self) -> WakeId {
        self.id
    }

    /// Goes off now.
    pub fn ring(&self) {
        self.set_in(Duration::ZERO);
    }

    /// Goes off at `moment`, or now if that is over. Replaces what was set before.
    pub fn set(&self, moment: Instant) {
        self.set_in(moment.saturating_duration_since(Instant::now()));
    }

    fn set_in(&self, wait: Duration) {
        // A timer of zero would be none. What does not fit is beyond all that is waited for here.
        let wait = Timespec::try_from(wait.max(Duration::from_nanos(1))).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        self.set_timer(wait);
        // Afterwards: a reset in between does nothing, and is done one sleep later. The other way round it would leave a
        // descriptor that is ready and that nobody resets. Relaxed: the descriptor itself is the kernel's.
        self.is_set.store(true, Ordering::Relaxed);
    }

    /// Neither set nor rung any more. Costs nothing if it was not.
    pub fn reset(&self) {
        if self.is_set.swap(false, Ordering::Relaxed) {
            self.set_timer(Timespec { tv_sec: 0, tv_nsec: 0 });
        }
    }

    fn set_timer(&self, wait: Timespec) {
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: wait };
        // It fails only for values that no timer takes, of which there are none here.
        let _ = rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    fn goes_off_within(alarm: &Alarm, limit: Duration) -> bool {
        let limit = rustix::event::Timespec::try_from(limit).unwrap();
        poll(&mut [PollFd::new(alarm, PollFlags::IN)], Some(&limit)).unwrap() == 1
    }

    #[test]
    fn it_goes_off_when_set_or_rung_until_it_is_reset() {
        const LONG: Duration = Duration::from_secs(20);
        let alarm = Alarm::new().unwrap();
        assert!(!goes_off_within(&alarm, Duration::ZERO));
        for turn in 0..3 {
            match turn {
                0 => alarm.ring(),
                1 => alarm.set(Instant::now() + Duration::from_millis(1)),
                _ => alarm.set(Instant::now()),
            }
            assert!(goes_off_within(&alarm, LONG) && goes_off_within(&alarm, LONG), "turn {turn}");
            alarm.reset();
            assert!(!goes_off_within(&alarm, Duration::ZERO), "turn {turn}");
        }
        alarm.set(Instant::now() + 100 * LONG);
        assert!(!goes_off_within(&alarm, Duration::ZERO));
        alarm.ring();
        assert!(goes_off_within(&alarm, LONG));
    }
}
