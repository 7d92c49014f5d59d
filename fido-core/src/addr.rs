//! Global addresses: 64 bits that mean the same byte in every domain.
//!
//! Layout, from the most significant bit: `slot:12 | generation:12 | offset:40`.
//! The slot names a domain for the life of the appliance; the generation rises with each of its restarts, so an
//! address that outlived its domain is recognised as stale and never reaches the successor's memory; the offset is
//! the byte within the domain's arena.
//!
//! Everything here is arithmetic on plain numbers. A value of these types says nothing about whether the memory
//! exists: that is decided where it is translated, see [`crate::window`].

#[cfg(test)]
mod tests;

use std::fmt;

/// Bits of a global address that hold the offset.
pub const OFFSET_BITS: u32 = 40;
/// Bits of a global address that hold the generation.
pub const GENERATION_BITS: u32 = 12;
/// Bits of a global address that hold the slot.
pub const SLOT_BITS: u32 = 12;
/// The largest arena, in bytes (1 TiB): what an offset can name.
pub const MAX_ARENA_BYTES: u64 = 1 << OFFSET_BITS;

const FIELD_MASK: u64 = (1 << SLOT_BITS) - 1;

/// The fixed place of a domain in its appliance, `0..4096`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// How many slots there are.
    pub const COUNT: usize = 1 << SLOT_BITS;
    /// The one with the greatest number.
    pub(crate) const LAST: Self = Self((Self::COUNT - 1) as u16);

    /// The slot with this number, or `None` from 4096 on.
    pub const fn new(number: u16) -> Option<Self> {
        if (number as usize) < Self::COUNT { Some(Self(number)) } else { None }
    }

    /// The number, below [`Slot::COUNT`].
    pub const fn number(self) -> u16 {
        self.0
    }
}

/// How often a domain has been started: `1..4096`, then from 1 again. 0 means "none".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(u16);

impl Generation {
    /// No generation: names no domain.
    pub const NONE: Self = Self(0);
    /// The generation of a domain that is started for the first time.
    pub const FIRST: Self = Self(1);

    /// The generation with this number, or `None` from 4096 on.
    pub const fn new(number: u16) -> Option<Self> {
        if number < 1 << GENERATION_BITS { Some(Self(number)) } else { None }
    }

    /// The number, below 4096.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// The generation after a restart; wraps to [`Generation::FIRST`], never to [`Generation::NONE`].
    pub const fn next(self) -> Self {
        if self.0 >= (1 << GENERATION_BITS) - 1 { Self::FIRST } else { Self(self.0 + 1) }
    }
}

/// One incarnation of a domain: its slot and generation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DomainId {
    /// The fixed place.
    pub slot: Slot,
    /// Which start of it.
    pub generation: Generation,
}

/// 64 bits that mean the same byte in every domain.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GlobalAddr(u64);

impl GlobalAddr {
    /// The address of byte `offset` in the arena of `domain`, or `None` if the offset is 2^40 or more.
    pub const fn new(domain: DomainId, offset: u64) -> Option<Self> {
        if offset >= MAX_ARENA_BYTES {
            return None;
        }
        let head = ((domain.slot.0 as u64) << GENERATION_BITS) | domain.generation.0 as u64;
        Some(Self((head << OFFSET_BITS) | offset))
    }

    /// The address with these 64 bits. Every bit pattern is an address; whether it means anything is decided at
    /// translation.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The 64 bits, as they travel in a ring.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The slot it names.
    pub const fn slot(self) -> Slot {
        Slot((self.0 >> (OFFSET_BITS + GENERATION_BITS)) as u16)
    }

    /// The generation it names.
    pub const fn generation(self) -> Generation {
        Generation(((self.0 >> OFFSET_BITS) & FIELD_MASK) as u16)
    }

    /// The incarnation it names.
    pub const fn domain(self) -> DomainId {
        DomainId { slot: self.slot(), generation: self.generation() }
    }

    /// The byte within the arena.
    pub const fn offset(self) -> u64 {
        self.0 & (MAX_ARENA_BYTES - 1)
    }

    /// The address `bytes` further on, or `None` if that leaves the offset's 40 bits.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.offset().checked_add(bytes) {
            Some(offset) => Self::new(self.domain(), offset),
            None => None,
        }
    }
}

/// A run of bytes anywhere in the appliance: an address and a length.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Segment {
    /// The first byte.
    pub addr: GlobalAddr,
    /// How many bytes, up to 4 GiB - 1.
    pub len: u32,
}

impl Segment {
    /// The segment of `len` bytes at `addr`.
    pub const fn new(addr: GlobalAddr, len: u32) -> Self {
        Self { addr, len }
    }

    /// The part from byte `start` on, `len` bytes long; `None` unless it lies within this segment.
    pub fn slice(self, start: u32, len: u32) -> Option<Self> {
        if start.checked_add(len)? > self.len {
            return None;
        }
        Some(Self { addr: self.addr.checked_add(u64::from(start))?, len })
    }

    /// This and `next` as one segment, if `next` begins where this one ends (in the same incarnation) and the sum
    /// fits.
    pub fn joined(self, next: Self) -> Option<Self> {
        let end = self.addr.checked_add(u64::from(self.len))?;
        (end == next.addr).then_some(Self { addr: self.addr, len: self.len.checked_add(next.len)? })
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {}", self.0)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {}", self.0)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.slot, self.generation)
    }
}

impl fmt::Display for GlobalAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:#x}", self.domain(), self.offset())
    }
}

impl fmt::Debug for GlobalAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.addr, self.len)
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
