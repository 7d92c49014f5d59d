//! Doorbells: how a domain that sleeps is woken.
//!
//! A [`Bell`] is the sleeper's: something a thread can poll. A [`Ringer`] is what its peer holds. Whether a bell has
//! to be rung at all is decided in shared memory (see [`crate::ring`]); ringing is the slow path and costs a system
//! call or an event channel.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::EventfdFlags;

/// Rings a bell.
pub trait Ringer: Send + Sync + std::fmt::Debug {
    /// Wakes whoever sleeps on the bell. Never blocks; a bell that cannot be rung any more is silently passed over,
    /// because its owner's death is reported elsewhere.
    fn ring(&self);
}

/// An own bell: an eventfd. Edge-triggered users need never reset it.
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    /// A new bell.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(rustix::event::eventfd(0, flags)?))
    }

    /// A bell over an eventfd that somebody else has made.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Another handle of the same bell, for a peer.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub fn share(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Forgets what was rung so far, for level-triggered users.
    pub fn reset(&self) {
        let mut count = [0; 8];
        // Nothing rung is the common case and no error.
        let _ = rustix::io::read(&self.0, &mut count);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Ringer for Bell {
    fn ring(&self) {
        // The only failure is a count at its maximum, and then the bell is ringing already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}
