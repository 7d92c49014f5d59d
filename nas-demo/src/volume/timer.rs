//! A deadline to wait for, beside queues and lanes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use fido_core::wait::Source;
use rustix::event::Timespec;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};

/// A timer that wakes the event loop once.
#[derive(Debug)]
pub struct Timer {
    fd: OwnedFd,
    set: Option<Instant>,
}

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// The system's.
    pub fn new() -> io::Result<Self> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        Ok(Self { fd, set: None })
    }

    /// Sets it, or not at all. Cheap if nothing changes.
    pub fn set(&mut self, deadline: Option<Instant>) {
        if self.set == deadline {
            return;
        }
        self.set = deadline;
        // 0 would disarm it.
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1)));
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value =
            left.map_or(zero, |left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        // It can only fail for times that a `Duration` cannot hold.
        let _ =
            timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: zero, it_value: value });
    }
}

impl Source for Timer {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Each expiry is an edge of its own: nobody has to read the timer.
    fn edge_triggered(&self) -> bool {
        true
    }

    fn ready(&mut self) -> bool {
        self.set.is_some_and(|at| at <= Instant::now())
    }

    fn disarm(&mut self) {
        if self.ready() {
            self.set = None;
        }
    }
}
