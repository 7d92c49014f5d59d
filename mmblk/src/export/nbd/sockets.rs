//! What wakes a worker beside its queues: one epoll set, edge-triggered, over listeners, door, timer and clients.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fido_core::stats::Stats;
use fido_core::wait::Source;
use rustix::event::{Timespec, epoll};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};

use super::client::Key;
use super::door::Door;
use super::listen::Listener;

/// Names in the epoll set that no client has.
const LISTENER: u64 = u64::MAX;
const DOOR: u64 = u64::MAX - 1;
const TIMER: u64 = u64::MAX - 2;
/// Edges taken from the kernel at a time.
const EDGES: usize = 64;

/// Something has happened to a descriptor.
#[derive(Debug, Clone, Copy)]
pub(super) enum Edge {
    /// There may be clients to accept.
    Listener,
    /// What was to be tried again later is due.
    Timer,
    /// A client's socket.
    Client(Key, epoll::EventFlags),
}

/// The epoll set and what it is asked besides.
#[derive(Debug)]
pub(super) struct Sockets {
    epoll: OwnedFd,
    timer: OwnedFd,
    /// When the timer goes off.
    due: Option<Instant>,
    door: Arc<Door>,
    /// There is work that nobody will wake us for.
    pub(super) restless: bool,
}

impl Sockets {
    pub(super) fn new(door: Arc<Door>, listeners: &[Listener]) -> rustix::io::Result<Self> {
        let timer_flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, timer_flags)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let own = [(door.bell(), DOOR), (timer.as_fd(), TIMER)];
        let listeners = listeners.iter().map(|listener| (listener.as_fd(), LISTENER));
        for (fd, name) in own.into_iter().chain(listeners) {
            let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&epoll, fd, epoll::EventData::new_u64(name), edge)?;
        }
        Ok(Self { epoll, timer, due: None, door, restless: false })
    }

    pub(super) fn add(&self, socket: &OwnedFd, key: Key) -> rustix::io::Result<()> {
        use epoll::EventFlags as E;
        epoll::add(&self.epoll, socket, epoll::EventData::new_u64(key), E::IN | E::OUT | E::RDHUP | E::ET)
    }

    /// Takes edges from the kernel.
    pub(super) fn edges(&mut self, stats: &Stats) -> Vec<Edge> {
        let mut space = [MaybeUninit::<epoll::Event>::uninit(); EDGES];
        stats.syscalls.add(1);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let Ok((edges, _)) = epoll::wait(&self.epoll, &mut space, Some(&now)) else { return Vec::new() };
        let mut all = Vec::new();
        for edge in edges {
            match edge.data.u64() {
                LISTENER => all.push(Edge::Listener),
                // It was only to wake us: the door is looked at anyway.
                DOOR => {}
                TIMER => {
                    self.due = None;
                    all.push(Edge::Timer);
                }
                key => all.push(Edge::Client(key, edge.flags)),
            }
        }
        all
    }

    /// Lets the timer go off within `after`.
    pub(super) fn wake_in(&mut self, after: Duration, stats: &Stats) {
        let wanted = Instant::now() + after;
        if self.due.is_some_and(|due| due <= wanted) {
            return;
        }
        let value = Timespec { tv_sec: after.as_secs() as i64, tv_nsec: i64::from(after.subsec_nanos()) };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        stats.syscalls.add(1);
        // It cannot fail with these arguments.
        if rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once).is_ok() {
            self.due = Some(wanted);
        }
    }
}

impl Source for Sockets {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn ready(&mut self) -> bool {
        self.restless || self.door.has_news()
    }
}
