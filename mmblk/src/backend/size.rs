//! The size of a device that can change, which its queues share, and how each hears of another one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use fido_core::bell::{Bell, Ringer};
use fido_core::wait::WakeId;

use crate::queue::Geometry;

/// The size of a device, in bytes.
#[derive(Debug)]
pub(crate) struct Size {
    bytes: AtomicU64,
    /// The bells of the queues. Locked only when a queue comes or the size changes.
    bells: Mutex<Vec<Weak<Bell>>>,
}

impl Size {
    pub(crate) fn new(bytes: u64) -> Self {
        Self { bytes: AtomicU64::new(bytes), bells: Mutex::default() }
    }

    pub(crate) fn get(&self) -> u64 {
        // Relaxed: it stands for itself. A bell that follows a change carries its own order.
        self.bytes.load(Ordering::Relaxed)
    }

    /// Sets it, and wakes every queue if it is another one.
    pub(crate) fn set(&self, bytes: u64) {
        if self.bytes.swap(bytes, Ordering::Relaxed) == bytes {
            return;
        }
        let mut bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        bells.retain(|bell| {
            bell.upgrade().is_some_and(|bell| {
                bell.ring();
                true
            })
        });
    }

    /// For a new queue, which knows the present size.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub(crate) fn follow(&self, geometry: Geometry) -> io::Result<Follower> {
        let bell = Arc::new(Bell::new()?);
        let mut bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        bells.push(Arc::downgrade(&bell));
        // Read under the lock: who changes it later rings.
        Ok(Follower { bell, geometry: Geometry { bytes: self.get(), ..geometry } })
    }
}

/// What one queue knows of its device's size.
#[derive(Debug)]
pub(crate) struct Follower {
    bell: Arc<Bell>,
    /// As it was told to the queue's user last.
    geometry: Geometry,
}

impl Follower {
    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Whether there is news.
    pub(crate) fn is_behind(&self, size: &Size) -> bool {
        self.geometry.bytes != size.get()
    }

    /// The new geometry, once.
    pub(crate) fn news(&mut self, size: &Size) -> Option<Geometry> {
        let bytes = size.get();
        if bytes == self.geometry.bytes {
            return None;
        }
        self.geometry.bytes = bytes;
        Some(self.geometry)
    }

    /// For [`fido_core::wait::Source::wake_id`].
    pub(crate) fn id(&self) -> WakeId {
        self.bell.id()
    }

    /// Readable no more, until the next change.
    pub(crate) fn reset(&self) {
        self.bell.reset();
    }
}

impl AsFd for Follower {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
