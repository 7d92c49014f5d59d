//! Waiting: what a thread waits for, and how.

#[cfg(all(test, loom))]
mod model;

use std::os::fd::BorrowedFd;

use crate::presence::Presence;
use crate::sync::{Ordering, fence};

/// Something a thread waits for: a lane, a device, a socket set.
///
/// The order that loses no wake-up: poll everything; if nothing was there, `arm` every source, issue one
/// `fence(SeqCst)`, ask every source whether it is `ready`, and only if none is, sleep on the wake descriptors; then
/// `disarm`. [`crate::waiter::Waiter`] does this.
pub trait Source {
    /// Readable when there may be something to do. Level-triggered until [`Source::disarm`] has reset it. The same for
    /// as long as the source lives.
    fn wake_fd(&self) -> BorrowedFd<'_>;

    /// What tells the wake descriptor from all others that this process ever has, if the source knows. A descriptor's
    /// number does not: when it is closed, the next one gets it. Of a source that does not know, the kernel is asked
    /// before each sleep.
    fn wake_id(&self) -> Option<WakeId> {
        None
    }

    /// Whether the wake descriptor is an eventfd that is watched edge-triggered, so that nobody has to reset it.
    fn edge_triggered(&self) -> bool {
        false
    }

    /// Says to whoever feeds this source that its reader is about to sleep.
    fn arm(&mut self) {}

    /// Whether there is something to do now. Asked after [`Source::arm`] and a fence.
    fn ready(&mut self) -> bool {
        false
    }

    /// Says that the reader is awake again, and resets the wake descriptor.
    fn disarm(&mut self) {}

    /// Lets the two sides know each other, for their waiting: tells whoever feeds this source in which thread line of
    /// this domain its reader says what it is doing, and returns what the feeder says of itself. `None` for sources that
    /// no thread of a domain feeds.
    fn meet(&mut self, _seat: Option<u32>) -> Option<PeerView> {
        None
    }
}

/// A number that no two wake descriptors of this process share, ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WakeId(u64);

impl WakeId {
    /// A number that nobody else has. For a source that keeps its wake descriptor open as long as it lives.
    pub fn unique() -> Self {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        Self(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
    }
}

/// What the other side of a lane says about the thread that serves it. Advice, like all that it is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerView {
    /// What it is doing, and where.
    pub presence: Presence,
    /// When it last rang this side's bell, in ticks of 256 ns of the monotonic clock; 0 for never.
    pub rung: u32,
}

/// The last look before a sleep: arms every source, and then whether any is ready. If not, whoever feeds one of them
/// from now on rings.
pub(crate) fn arm_and_look(sources: &mut [&mut dyn Source]) -> bool {
    sources.iter_mut().for_each(|source| source.arm());
    // SYNC: pairs with the fence in `ring::Waker::must_ring`: what a waker published before its fence is seen below, or
    // the armed words are seen by the waker. One fence for all sources: each waker of each source fences between its
    // publication and its look at that source's armed word, so Dekker's argument holds for each pair.
    fence(Ordering::SeqCst);
    sources.iter_mut().any(|source| source.ready())
}
