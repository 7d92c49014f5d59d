//! Doorbells: how a domain that sleeps is woken.
//!
//! A [`Bell`] is the sleeper's: something a thread can poll. A [`Ringer`] is what its peer holds. Whether a bell has
//! to be rung at all is decided in shared memory (see [`crate::ring`]); ringing is the slow path and costs a system
//! call or an event channel.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::EventfdFlags;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

use crate::wait::WakeId;

/// Rings a bell.
pub trait Ringer: Send + Sync + std::fmt::Debug {
    /// Wakes whoever sleeps on the bell. Never blocks; a bell that cannot be rung any more is silently passed over,
    /// because its owner's death is reported elsewhere.
    fn ring(&self);
}

/// A way by which a bell is rung from beyond this machine's processes, such as an event channel of Xen.
pub trait Wire: AsFd + Send + Sync + std::fmt::Debug {
    /// Takes what has come and lets more come: nothing may come after the first until this is called.
    fn rearm(&self);
}

/// An own bell: an eventfd, and perhaps a wire. Edge-triggered users need never reset it, but must [`Bell::arm`] it
/// before they sleep.
#[derive(Debug)]
pub struct Bell {
    event: OwnedFd,
    wired: Option<Wired>,
    id: WakeId,
}

/// A wire, and the epoll set that makes one descriptor of it and the eventfd.
#[derive(Debug)]
struct Wired {
    wire: Arc<dyn Wire>,
    both: OwnedFd,
}

impl Bell {
    /// A new bell.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self::from_fd(rustix::event::eventfd(0, flags)?))
    }

    /// A new bell that `wire` rings as well.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub fn with_wire(wire: Arc<dyn Wire>) -> io::Result<Self> {
        let bell = Self::new()?;
        let both = epoll::create(CreateFlags::CLOEXEC)?;
        for fd in [bell.event.as_fd(), wire.as_fd()] {
            epoll::add(&both, fd, EventData::new_u64(0), EventFlags::IN)?;
        }
        Ok(Self { wired: Some(Wired { wire, both }), ..bell })
    }

    /// A bell over an eventfd that somebody else has made.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { event: fd, wired: None, id: WakeId::unique() }
    }

    /// The eventfd alone.
    #[cfg(test)]
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.event
    }

    /// For [`crate::wait::Source::wake_id`], if the bell's is the source's wake descriptor.
    pub fn id(&self) -> WakeId {
        self.id
    }

    /// Another handle of the same bell, for a peer in this machine: what rings its eventfd.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub fn share(&self) -> io::Result<Self> {
        Ok(Self::from_fd(self.event.try_clone()?))
    }

    /// Must come before a sleep, and before the last look at what the bell is rung for: what rings after it wakes. Costs
    /// nothing without a wire.
    pub fn arm(&self) {
        if let Some(wired) = &self.wired {
            wired.wire.rearm();
        }
    }

    /// Forgets what was rung so far, for level-triggered users.
    pub fn reset(&self) {
        let mut count = [0; 8];
        // Nothing rung is the common case and no error.
        let _ = rustix::io::read(&self.event, &mut count);
        self.arm();
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wired.as_ref().map_or(self.event.as_fd(), |wired| wired.both.as_fd())
    }
}

impl Ringer for Bell {
    fn ring(&self) {
        let ring = || rustix::io::write(&self.event, &1u64.to_ne_bytes());
        if ring() == Err(Errno::AGAIN) {
            // The count is at its maximum, as whoever shares the bell can set it. Who sleeps edge-triggered has heard
            // that long ago, and only what changes the count wakes him. If it is full again after it was taken, somebody
            // else has rung in between.
            let _ = rustix::io::read(&self.event, &mut [0; 8]);
            let _ = ring();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec};
    use std::sync::atomic::{AtomicBool, Ordering};

    /// As an event channel: after it has been rung, nothing comes until it is rearmed.
    #[derive(Debug)]
    struct Masking {
        line: Bell,
        is_masked: AtomicBool,
        is_pending: AtomicBool,
    }

    impl Masking {
        fn fire(&self) {
            if self.is_masked.swap(true, Ordering::SeqCst) {
                self.is_pending.store(true, Ordering::SeqCst);
            } else {
                self.line.ring();
            }
        }
    }

    impl AsFd for Masking {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.line.as_fd()
        }
    }

    impl Wire for Masking {
        fn rearm(&self) {
            self.line.reset();
            self.is_masked.store(false, Ordering::SeqCst);
            if self.is_pending.swap(false, Ordering::SeqCst) {
                self.fire();
            }
        }
    }

    fn is_ready(fd: BorrowedFd<'_>) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&now)).unwrap() > 0
    }

    /// Whether an edge-triggered wait of the bell would end at once.
    fn edge(set: &OwnedFd) -> bool {
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 4];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        !epoll::wait(set, &mut events[..], Some(&now)).unwrap().0.is_empty()
    }

    #[test]
    fn a_wired_bell_is_one_descriptor_for_both_ways() {
        let line = Bell::new().unwrap();
        let wire = Arc::new(Masking { line, is_masked: AtomicBool::new(false), is_pending: AtomicBool::new(false) });
        let bell = Bell::with_wire(wire.clone()).unwrap();
        let set = epoll::create(CreateFlags::CLOEXEC).unwrap();
        epoll::add(&set, bell.as_fd(), EventData::new_u64(0), EventFlags::IN | EventFlags::ET).unwrap();
        assert!(!is_ready(bell.as_fd()) && !edge(&set));
        for _ in 0..3 {
            bell.ring();
            assert!(edge(&set) && !edge(&set), "the eventfd, each time anew");
            bell.arm();
            wire.fire();
            assert!(edge(&set) && !edge(&set), "the wire, although the eventfd is still set");
            wire.fire();
            assert!(!edge(&set), "masked");
            bell.arm();
            assert!(edge(&set), "what came meanwhile wakes after arming");
        }
        bell.reset();
        assert!(!is_ready(bell.as_fd()));
        bell.share().unwrap().ring();
        assert!(is_ready(bell.as_fd()));
    }

    #[test]
    fn a_bell_rings_whatever_its_count_is() {
        // The largest count that an eventfd takes, and one below it.
        for count in [u64::MAX - 2, u64::MAX - 1] {
            let bell = Bell::new().unwrap();
            let set = epoll::create(CreateFlags::CLOEXEC).unwrap();
            epoll::add(&set, bell.as_fd(), EventData::new_u64(0), EventFlags::IN | EventFlags::ET).unwrap();
            rustix::io::write(&bell.share().unwrap().event, &count.to_ne_bytes()).unwrap();
            assert!(edge(&set) && !edge(&set));
            for _ in 0..3 {
                bell.ring();
                assert!(edge(&set) && !edge(&set), "heard, at a count of {count}");
                assert!(is_ready(bell.as_fd()), "and by who looks at the level");
            }
        }
    }
}
