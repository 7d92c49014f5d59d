//! What has to be done at a later moment, and a descriptor that wakes for it as well as for the wrapped queue.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use crate::wait::{Source, WakeId};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::alarm::Alarm;

/// Things with a moment each, and what to sleep on until the first of them.
#[derive(Debug)]
pub struct Later<T> {
    /// The first on top; of equal moments the one that came first.
    heap: BinaryHeap<Entry<T>>,
    count: u64,
    alarm: Alarm,
    /// The alarm and the wrapped queue's descriptor.
    both: OwnedFd,
    id: WakeId,
}

#[derive(Debug)]
struct Entry<T> {
    key: Reverse<(Instant, u64)>,
    thing: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

impl<T> Later<T> {
    /// For a layer around `queue`: a block queue, a frame port, whatever is waited for.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub fn around(queue: &impl Source) -> io::Result<Self> {
        let alarm = Alarm::new()?;
        let both = epoll::create(CreateFlags::CLOEXEC)?;
        let edge = if queue.edge_triggered() { EventFlags::ET } else { EventFlags::empty() };
        epoll::add(&both, &alarm, EventData::new_u64(0), EventFlags::IN)?;
        epoll::add(&both, queue.wake_fd(), EventData::new_u64(0), EventFlags::IN | edge)?;
        Ok(Self { heap: BinaryHeap::new(), count: 0, alarm, both, id: WakeId::unique() })
    }

    /// Adds something to be done at `moment`.
    pub fn push(&mut self, moment: Instant, thing: T) {
        self.count += 1;
        self.heap.push(Entry { key: Reverse((moment, self.count)), thing });
    }

    /// Takes the first thing whose moment has come.
    pub fn pop(&mut self) -> Option<T> {
        if !self.is_due() {
            return None;
        }
        self.heap.pop().map(|entry| entry.thing)
    }

    /// Whether the moment of anything has come.
    pub fn is_due(&self) -> bool {
        self.first().is_some_and(|moment| moment <= Instant::now())
    }

    /// How many things there are.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// Drops all things of which `keep` says no.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.heap.retain(|entry| keep(&entry.thing));
    }

    fn first(&self) -> Option<Instant> {
        self.heap.peek().map(|entry| entry.key.0.0)
    }

    /// For [`Source::wake_fd`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.both.as_fd()
    }

    /// For [`Source::wake_id`].
    pub fn id(&self) -> WakeId {
        self.id
    }

    /// For [`Source::arm`], beside the queue's.
    pub fn arm(&self) {
        if let Some(moment) = self.first() {
            self.alarm.set(moment);
        }
    }

    /// For [`Source::disarm`], after the queue's.
    pub fn disarm(&self) {
        self.alarm.reset();
        // What is watched edge-triggered stays in the set until it is taken out.
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 2];
        let _ = epoll::wait(&self.both, &mut events[..], Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }));
    }
}
