//! One descriptor for many: what an array sleeps on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use fido_core::wait::Source;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

/// An epoll set of the members' descriptors and a timer.
#[derive(Debug)]
pub(super) struct Wake {
    epoll: OwnedFd,
    timer: OwnedFd,
    set: bool,
}

impl Wake {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        epoll::add(&epoll, &timer, EventData::new_u64(0), EventFlags::IN)?;
        Ok(Self { epoll, timer, set: false })
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
        if self.set {
            return;
        }
        let time = Timespec::try_from(wait.max(Duration::from_micros(1))).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: time };
        // It cannot fail with a valid time; if it does, the timer is set again at the next look.
        self.set = rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once).is_ok();
    }

    /// Whether the timer has gone off; it is then to be set anew.
    pub(super) fn has_rung(&mut self) -> bool {
        if !self.set {
            return false;
        }
        let mut count = [0; 8];
        let rung = rustix::io::read(&self.timer, &mut count).is_ok();
        self.set &= !rung;
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
