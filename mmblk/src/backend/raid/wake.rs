//! One descriptor for many: what an array sleeps on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use fido_core::wait::Source;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

/// An epoll set of the members' descriptors and a timer.
#[derive(Debug)]
pub(super) struct Wake {
    epoll: OwnedFd,
    timer: OwnedFd,
    /// When the timer goes off.
    due: Option<Instant>,
}

impl Wake {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        epoll::add(&epoll, &timer, EventData::new_u64(0), EventFlags::IN)?;
        Ok(Self { epoll, timer, due: None })
    }

    /// Enters a queue's descriptor. It leaves the set when it is closed.
    pub(super) fn watch(&self, queue: &impl Source) -> io::Result<()> {
        let edge = if queue.edge_triggered() { EventFlags::ET } else { EventFlags::empty() };
        match epoll::add(&self.epoll, queue.wake_fd(), EventData::new_u64(0), EventFlags::IN | edge) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Wakes after `wait`, unless an earlier wake-up is set.
    pub(super) fn after(&mut self, wait: Duration) {
        let due = Instant::now() + wait;
        if self.due.is_some_and(|earlier| earlier <= due) {
            return;
        }
        let time = Timespec::try_from(wait.max(Duration::from_micros(1))).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: time };
        // It cannot fail with a valid time; if it does, the timer is set again at the next look.
        let set = rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
        self.due = set.is_ok().then_some(due);
    }

    /// Whether the timer has gone off; it is then to be set anew.
    pub(super) fn has_rung(&mut self) -> bool {
        if self.due.is_none() {
            return false;
        }
        let mut count = [0; 8];
        let rung = rustix::io::read(&self.timer, &mut count).is_ok();
        if rung {
            self.due = None;
        }
        rung
    }

    /// Takes the events that come once only out of the set.
    pub(super) fn drain(&self) {
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 64];
        // What is left over ends the next sleep at once.
        let _ = epoll::wait(&self.epoll, &mut events[..], Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }));
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_wake_up_counts_and_a_later_one_does_not() {
        let mut wake = Wake::new().unwrap();
        assert!(!wake.has_rung());
        wake.after(Duration::from_secs(3600));
        wake.after(Duration::from_millis(1));
        wake.after(Duration::from_secs(3600));
        let mut timer = [rustix::event::PollFd::new(&wake.timer, rustix::event::PollFlags::IN)];
        let patience = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut timer, Some(&patience)).unwrap(), 1, "the earlier one was forgotten");
        assert!(wake.has_rung() && !wake.has_rung());
    }
}
