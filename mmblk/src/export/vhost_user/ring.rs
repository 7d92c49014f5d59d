//! A split virtqueue in a guest's memory, from the device's side.
//!
//! The guest may write all of it at any time. Positions live here; what is read there is read once and checked. Source:
//! Virtual I/O Device (VIRTIO) 1.2, section 2.7.

use std::sync::atomic::{Ordering, fence};

use fido_core::foreign::{Area, Foreign};

use super::message::RingAddresses;

/// The most places a ring may have.
pub const MAX_PLACES: u16 = 1024;

/// Flag of the available ring: the guest wants no interrupts.
const NO_INTERRUPT: u16 = 1;
/// Flag of the used ring: the device wants no kicks.
const NO_NOTIFY: u16 = 1;
/// The rings begin with flags and index.
const ENTRIES: usize = 4;

/// Why a ring cannot be used, or not any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// A size that is no power of two, or too large.
    #[error("a ring of {0} places; it must be a power of two up to {MAX_PLACES}")]
    Places(u32),
    /// A part that is not in the guest's memory, or not aligned.
    #[error("the ring's {part} at {at:#x} is not aligned or not in the guest's memory")]
    Address {
        /// Which.
        part: &'static str,
        /// Where it should be.
        at: u64,
    },
    /// More is available than there are places.
    #[error("{0} chains are available in a ring that has fewer places")]
    Available(u16),
    /// A chain that begins beyond the descriptors.
    #[error("a chain begins at descriptor {0}, which does not exist")]
    Head(u16),
    /// A chain that is under way is available again.
    #[error("the chain at descriptor {0} is available while it is under way")]
    Twice(u16),
    /// A chain that is not well formed.
    #[error("the chain at descriptor {head}: {error}")]
    Chain {
        /// Where it begins.
        head: u16,
        /// What is wrong.
        error: super::chain::ChainError,
    },
}

/// One ring.
#[derive(Debug)]
pub struct Ring {
    places: u16,
    descriptors: Area,
    available: Area,
    used: Area,
    next_available: u16,
    next_used: u16,
    /// The guest says from which position on it wants to be told, and is told so.
    event_index: bool,
}

impl Ring {
    /// A ring of `places` places whose next chain is at position `base`.
    ///
    /// # Errors
    /// [`RingError`] if there cannot be such a ring there.
    pub fn new(
        memory: &Foreign,
        at: RingAddresses,
        places: u32,
        base: u16,
        event_index: bool,
    ) -> Result<Self, RingError> {
        let fits = |places: &u16| *places <= MAX_PLACES && places.is_power_of_two();
        let places = u16::try_from(places).ok().filter(fits).ok_or(RingError::Places(places))?;
        let part = |part, at, bytes: u32, alignment| {
            let area = memory.user(at, bytes).filter(|area| area.is_aligned_to(alignment));
            area.ok_or(RingError::Address { part, at })
        };
        let count = u32::from(places);
        let descriptors = part("descriptors", at.descriptors, 16 * count, 16)?;
        let available = part("available ring", at.available, ENTRIES as u32 + 2 * count + 2, 2)?;
        let used = part("used ring", at.used, ENTRIES as u32 + 8 * count + 2, 4)?;
        let next_used = used.load_u16(2, Ordering::Acquire);
        Ok(Self { places, descriptors, available, used, next_available: base, next_used, event_index })
    }

    /// How many places it has.
    pub fn places(&self) -> u16 {
        self.places
    }

    /// The descriptors.
    pub fn descriptors(&self) -> &Area {
        &self.descriptors
    }

    /// The position of the next chain to take.
    pub fn next_available(&self) -> u16 {
        self.next_available
    }

    /// Takes chains from another position on.
    pub fn take_from(&mut self, position: u16) {
        self.next_available = position;
    }

    /// The position of the next chain to give back.
    pub fn next_used(&self) -> u16 {
        self.next_used
    }

    /// Whether there are chains to take.
    pub fn is_ready(&self) -> bool {
        self.available.load_u16(2, Ordering::Acquire) != self.next_available
    }

    /// Takes the next chain: its first descriptor, which exists.
    ///
    /// # Errors
    /// What the guest says cannot be; the ring is of no use any more.
    pub fn take(&mut self) -> Result<Option<u16>, RingError> {
        // SYNC: pairs with the guest's write barrier between an entry and the index.
        let ready = self.available.load_u16(2, Ordering::Acquire).wrapping_sub(self.next_available);
        if ready == 0 {
            return Ok(None);
        }
        if ready > self.places {
            return Err(RingError::Available(ready));
        }
        let place = usize::from(self.next_available & (self.places - 1));
        let head = self.available.load_u16(ENTRIES + 2 * place, Ordering::Relaxed);
        if head >= self.places {
            return Err(RingError::Head(head));
        }
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(head))
    }

    /// Gives a chain back, with how many bytes were written into it.
    pub fn give(&mut self, head: u16, written: u32) {
        let place = ENTRIES + 8 * usize::from(self.next_used & (self.places - 1));
        self.used.store_u32(place, head.into(), Ordering::Relaxed);
        self.used.store_u32(place + 4, written, Ordering::Relaxed);
        self.next_used = self.next_used.wrapping_add(1);
        // SYNC: pairs with the guest's read barrier between the index and an entry.
        self.used.store_u16(2, self.next_used, Ordering::Release);
    }

    /// Whether the guest wants to hear of what was given back since position `before`.
    pub fn must_call(&self, before: u16) -> bool {
        // SYNC: pairs with the guest's barrier between saying from where on it wants to hear and its last look.
        fence(Ordering::SeqCst);
        if !self.event_index {
            return self.available.load_u16(0, Ordering::Relaxed) & NO_INTERRUPT == 0;
        }
        let from = self.available.load_u16(ENTRIES + 2 * usize::from(self.places), Ordering::Relaxed);
        // Whether `from` is among the positions from `before` up to the one before `next_used`.
        self.next_used.wrapping_sub(from).wrapping_sub(1) < self.next_used.wrapping_sub(before)
    }

    /// Asks the guest for a kick with the next chain. A fence and a look must follow.
    pub fn arm(&self) {
        if self.event_index {
            let place = ENTRIES + 8 * usize::from(self.places);
            self.used.store_u16(place, self.next_available, Ordering::Relaxed);
        } else {
            self.used.store_u16(0, 0, Ordering::Relaxed);
        }
    }

    /// Asks the guest not to kick. With an event index there is nothing to do: it has moved on.
    pub fn disarm(&self) {
        if !self.event_index {
            self.used.store_u16(0, NO_NOTIFY, Ordering::Relaxed);
        }
    }
}
