//! What wakes a queue: one epoll set over the socket of the present connection, a bell and a timer.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use fido_core::bell::Bell;
use fido_core::stats::Stats;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};

const SOCKET: u64 = 0;
const OTHER: u64 = 1;

/// What has happened.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sign {
    /// Something at the socket.
    Socket(EventFlags),
    /// The bell or the timer: look again.
    Other,
}

#[derive(Debug)]
pub(super) struct Wake {
    epoll: OwnedFd,
    bell: Arc<Bell>,
    timer: OwnedFd,
}

impl Wake {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let bell = Arc::new(Bell::new()?);
        for fd in [bell.as_fd(), timer.as_fd()] {
            epoll::add(&epoll, fd, EventData::new_u64(OTHER), EventFlags::IN | EventFlags::ET)?;
        }
        Ok(Self { epoll, bell, timer })
    }

    /// Watches a socket; one that is closed is not watched any more.
    pub(super) fn watch(&self, socket: &OwnedFd) -> io::Result<()> {
        use EventFlags as E;
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(SOCKET), E::IN | E::OUT | E::RDHUP | E::ET)?)
    }

    pub(super) fn bell(&self) -> Arc<Bell> {
        self.bell.clone()
    }

    /// Wakes the queue after that time.
    pub(super) fn ring_in(&self, after: Duration, stats: &Stats) {
        let value = Timespec { tv_sec: after.as_secs() as i64, tv_nsec: i64::from(after.subsec_nanos()) };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        stats.syscalls.add(1);
        // It cannot fail with these arguments.
        let _ = rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
    }

    /// What has happened since the last call.
    pub(super) fn signs(&self, stats: &Stats) -> impl Iterator<Item = Sign> + use<> {
        let mut space = [MaybeUninit::<epoll::Event>::uninit(); 4];
        stats.syscalls.add(1);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut signs = [None; 4];
        if let Ok((events, _)) = epoll::wait(&self.epoll, &mut space, Some(&now)) {
            for (sign, event) in signs.iter_mut().zip(events) {
                *sign = Some(if event.data.u64() == SOCKET { Sign::Socket(event.flags) } else { Sign::Other });
            }
        }
        signs.into_iter().flatten()
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
