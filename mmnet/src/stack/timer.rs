//! What a stack sleeps on: frames, returned loans and its timers, behind one descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use fido_core::wait::WakeId;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};

/// Descriptors in the set.
const SOURCES: usize = 3;

#[derive(Debug)]
pub(super) struct Alarm {
    epoll: OwnedFd,
    timer: OwnedFd,
    id: WakeId,
    /// The timer was set; so that one that was not need not be stopped.
    set: bool,
    /// Somebody was about to sleep.
    armed: bool,
}

impl Alarm {
    /// Of a device's descriptor, `edge`-triggered or not, and an edge-triggered bell. Both live as long as this.
    pub(super) fn new(device: BorrowedFd<'_>, edge: bool, bell: BorrowedFd<'_>) -> rustix::io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let edge = if edge { EventFlags::ET } else { EventFlags::empty() };
        for (fd, flags) in [(device, edge), (bell, EventFlags::ET), (timer.as_fd(), EventFlags::ET)] {
            epoll::add(&epoll, fd, EventData::new_u64(0), EventFlags::IN | flags)?;
        }
        Ok(Self { epoll, timer, id: WakeId::unique(), set: false, armed: false })
    }

    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    pub(super) fn id(&self) -> WakeId {
        self.id
    }

    /// Makes the descriptor readable after `delay`, or by no timer.
    pub(super) fn set(&mut self, delay: Option<Duration>) {
        self.armed = true;
        if delay.is_none() && !self.set {
            return;
        }
        self.set = delay.is_some();
        // 0 would stop it.
        let delay = delay.map_or(Duration::ZERO, |delay| delay.max(Duration::from_nanos(1)));
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec::try_from(delay).unwrap_or(zero);
        // It cannot fail with a timer of ours and a delay in range.
        let _ = timerfd_settime(
            &self.timer,
            TimerfdTimerFlags::empty(),
            &Itimerspec { it_interval: zero, it_value: value },
        );
    }

    /// Takes what there is off the set, so that it is no longer readable for it.
    pub(super) fn reset(&mut self) {
        if std::mem::take(&mut self.armed) {
            let mut events = [const { std::mem::MaybeUninit::uninit() }; SOURCES];
            let _ = epoll::wait(&self.epoll, &mut events[..], Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        }
    }
}
