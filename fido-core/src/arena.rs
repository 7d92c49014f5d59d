//! The arena: the memory a domain owns and shares, and how it is laid out.
//!
//! ```text
//! 0      header: magic, version, identity, length, heritage (crate::heritage)
//! 128    counters (crate::stats)
//! 1024   lane directory: where this domain's half of each lane is
//! 8192   the thread lines: what each of the domain's threads is doing (crate::presence)
//! 12288  the lane blocks: control lines and ring slots, one block a lane
//! …      the heap
//! ```
//! All numbers are little-endian. Only the owner writes; peers read the directory once when they connect, check it
//! and keep what they found in private memory.
//!
//! Version 2 has the thread lines, and the fourth control line of a lane, both advice for waiting only.

use std::mem::offset_of;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use crate::addr::{DomainId, MAX_ARENA_BYTES};
use crate::presence::{Presence, ThreadLine};
use crate::stats::Stats;
use crate::window::Window;

/// First word of an arena: `FIDOARNA`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"FIDOARNA");
/// Version of the layout and of the ring protocol. What does not match is refused.
pub const VERSION: u32 = 2;
/// The least length of an arena, in bytes.
pub const MIN_ARENA_BYTES: u64 = 64 * 1024;
/// The most lanes one domain can have over all its links: what the directory holds.
pub const MAX_LANES: usize = (THREADS_AT - DIRECTORY_AT) / ENTRY_BYTES;
/// The most threads of one domain that can publish what they are doing. Further ones work too, unseen.
pub const MAX_THREADS: usize = (HEADER_BYTES as usize - THREADS_AT) / size_of::<ThreadLine>();
/// The largest ring, in slots.
pub const MAX_RING_SLOTS: u32 = 1 << 16;
/// The smallest ring, in slots: credits come in quarters.
pub const MIN_RING_SLOTS: u32 = 4;

const HEADER_BYTES: u64 = 12288;
/// What an arena without lanes has before its heap.
pub(crate) const BARE_BYTES: u64 = HEADER_BYTES;
const THREADS_AT: usize = 8192;
const STATS_AT: usize = 128;
const DIRECTORY_AT: usize = 1024;
const ENTRY_BYTES: usize = 32;
const SLOT_BYTES: u64 = 64;
/// The control lines of a lane: session, credit, armed, advice; a cache line each.
const CONTROL_BYTES: u64 = 256;

/// The fixed head of an arena.
#[repr(C)]
struct Header {
    magic: AtomicU64,
    version: AtomicU32,
    lanes: AtomicU32,
    slot: AtomicU32,
    generation: AtomicU32,
    len: AtomicU64,
    /// Where the heritage lies. Layouts from before there was one leave zeros here: none.
    heritage_at: AtomicU64,
    heritage_len: AtomicU64,
}

/// A directory entry: this domain's half of one lane.
#[repr(C)]
struct Entry {
    link: AtomicU32,
    lane: AtomicU32,
    control: AtomicU64,
    slots: AtomicU64,
    capacity: AtomicU32,
    reserved: AtomicU32,
}

const _: () = assert!(size_of::<Entry>() == ENTRY_BYTES && size_of::<Header>() <= STATS_AT);
const _: () = assert!(STATS_AT + size_of::<Stats>() <= DIRECTORY_AT);
const _: () = assert!(MAX_THREADS == u64::BITS as usize);
#[cfg(not(loom))]
const _: () = assert!(size_of::<crate::ring::Control>() as u64 == CONTROL_BYTES);

/// Why an arena cannot be made or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArenaError {
    /// The length is beyond the limits.
    #[error("an arena of {len} bytes; it must have {MIN_ARENA_BYTES} to {MAX_ARENA_BYTES} bytes")]
    Length {
        /// The length in question.
        len: u64,
    },
    /// The lanes do not fit.
    #[error("the lanes need {needed} bytes but the arena has only {len}; raise the domain's `arena` in the manifest")]
    TooSmall {
        /// Bytes up to the end of the lanes, plus one page of heap.
        needed: u64,
        /// The arena's length.
        len: u64,
    },
    /// More lanes than the directory holds.
    #[error("{lanes} lanes in one domain; the limit is {MAX_LANES}")]
    TooManyLanes {
        /// The number in question.
        lanes: usize,
    },
    /// A ring's size is not a power of two within the limits.
    #[error("a ring of {slots} slots; it must be a power of two from {MIN_RING_SLOTS} to {MAX_RING_SLOTS}")]
    RingSlots {
        /// The number in question.
        slots: u32,
    },
    /// It does not begin with an arena's magic number.
    #[error("not an arena: it begins with {found:#018x}")]
    Magic {
        /// What it begins with.
        found: u64,
    },
    /// Another version of the protocol.
    #[error(
        "the peer's arena has layout version {found}, this domain speaks version {VERSION}; build both from the same release"
    )]
    Version {
        /// The peer's version.
        found: u32,
    },
    /// It says it belongs to somebody else.
    #[error("the arena says it is of domain {found}, expected {expected}")]
    Identity {
        /// What the header says, as `slot.generation`.
        found: String,
        /// Whose it should be.
        expected: DomainId,
    },
    /// The heritage lies outside the arena.
    #[error("the arena's heritage, {len} bytes at {at}, is not inside the arena")]
    Heritage {
        /// Its first byte, as the header says.
        at: u64,
        /// Its length, as the header says.
        len: u64,
    },
    /// The directory has no such lane, or what it says of it is out of bounds.
    #[error("link {link} lane {lane}: {what}")]
    Lane {
        /// The link.
        link: u32,
        /// The lane in it.
        lane: u16,
        /// What is wrong.
        what: &'static str,
    },
}

/// One lane to make room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LanePlan {
    /// The link's number in the appliance.
    pub link: u32,
    /// The lane within the link, from 0.
    pub lane: u16,
    /// Slots of the ring; a power of two.
    pub slots: u32,
}

/// Where one side's half of a lane lies in its arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LanePlace {
    /// What it is for.
    pub plan: LanePlan,
    /// Offset of the control lines.
    pub control: u64,
    /// Offset of the first ring slot.
    pub ring: u64,
}

/// Memory that a platform has made for an arena: writable here, and only here.
pub struct RawArena {
    /// The first byte, aligned to a page.
    pub base: NonNull<u8>,
    /// Length in bytes.
    pub len: u64,
    /// Keeps it mapped.
    pub mapping: Box<dyn std::any::Any + Send + Sync>,
}

/// This domain's arena.
#[derive(Debug)]
pub struct OwnArena {
    window: Arc<Window>,
    places: Vec<LanePlace>,
    heap_start: u64,
    /// The thread lines in use, a bit each.
    seats: AtomicU64,
}

impl OwnArena {
    /// Lays an arena out in fresh (all-zero) memory.
    ///
    /// # Errors
    /// [`ArenaError`] if the lanes or the length are beyond the limits.
    ///
    /// # Safety
    /// `raw` must describe memory as its fields say, zeroed, written by nobody else while the result lives.
    pub unsafe fn format(raw: RawArena, id: DomainId, lanes: &[LanePlan]) -> Result<Self, ArenaError> {
        let (places, heap_start) = plan(raw.len, lanes)?;
        // SAFETY: the caller vouches for the memory; page alignment exceeds the 64 bytes asked for.
        let window = Arc::new(unsafe { Window::new(id, raw.base, raw.len, raw.mapping) });
        let arena = Self { window, places, heap_start, seats: AtomicU64::new(0) };
        arena.write_header(id);
        Ok(arena)
    }

    fn write_header(&self, id: DomainId) {
        for (index, place) in self.places.iter().enumerate() {
            let entry = self.at::<Entry>((DIRECTORY_AT + index * ENTRY_BYTES) as u64);
            entry.link.store(place.plan.link.to_le(), Ordering::Relaxed);
            entry.lane.store(u32::from(place.plan.lane).to_le(), Ordering::Relaxed);
            entry.control.store(place.control.to_le(), Ordering::Relaxed);
            entry.slots.store(place.ring.to_le(), Ordering::Relaxed);
            entry.capacity.store(place.plan.slots.to_le(), Ordering::Relaxed);
        }
        let header = self.at::<Header>(0);
        header.version.store(VERSION.to_le(), Ordering::Relaxed);
        header.lanes.store((self.places.len() as u32).to_le(), Ordering::Relaxed);
        header.slot.store(u32::from(id.slot.number()).to_le(), Ordering::Relaxed);
        header.generation.store(u32::from(id.generation.number()).to_le(), Ordering::Relaxed);
        header.len.store(self.window.len().to_le(), Ordering::Relaxed);
        // SYNC: the magic is written last, with release; `Peer::read` loads it first, with acquire.
        header.magic.store(MAGIC.to_le(), Ordering::Release);
    }

    /// Enters in the header where the heritage lies, in place of any other.
    pub(crate) fn set_heritage(&self, at: u64, len: u64) {
        let header = self.at::<Header>(0);
        header.heritage_len.store(0, Ordering::Release);
        // SYNC: the other side is `Peer::heritage` in the successor, after this domain has died between any two of these
        // stores: if it finds the new place, the length is 0 or the new one.
        fence(Ordering::SeqCst);
        header.heritage_at.store(at.to_le(), Ordering::Relaxed);
        // SYNC: pairs with the acquire load in `Peer::heritage`: the place is there before its length.
        header.heritage_len.store(len.to_le(), Ordering::Release);
    }

    /// Takes the heritage at `at` out of the header, if it is the one that is there.
    pub(crate) fn withdraw_heritage(&self, at: u64) {
        let header = self.at::<Header>(0);
        if u64::from_le(header.heritage_at.load(Ordering::Relaxed)) == at {
            header.heritage_len.store(0, Ordering::Release);
            // SYNC: the other side is `Peer::heritage` in the successor: the memory is used for something else only after
            // this, so whoever still finds the length finds the heritage.
            fence(Ordering::SeqCst);
        }
    }

    /// A reference to atomics in the own arena.
    fn at<T: Atomics>(&self, offset: u64) -> &T {
        // SAFETY: offsets come from this module's layout and are within the arena, which is mapped as long as
        // `self.window`; `T` consists of atomics only, for which any bytes are valid and sharing is sound.
        unsafe { self.window.base().add(offset as usize).cast::<T>().as_ref() }
    }

    /// Who this domain is.
    pub fn id(&self) -> DomainId {
        self.window.id()
    }

    /// The first byte. Writable for [`OwnArena::len`] bytes, while the arena lives.
    pub fn base(&self) -> NonNull<u8> {
        self.window.base()
    }

    /// Length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "an arena is never empty")]
    pub fn len(&self) -> u64 {
        self.window.len()
    }

    /// The own arena as a window.
    pub fn window(&self) -> &Arc<Window> {
        &self.window
    }

    /// Where the heap begins.
    pub fn heap_start(&self) -> u64 {
        self.heap_start
    }

    /// This side's half of each lane.
    pub fn lanes(&self) -> &[LanePlace] {
        &self.places
    }

    /// The counters.
    pub fn stats(&self) -> &Stats {
        self.at(STATS_AT as u64)
    }

    /// Takes a thread line that nobody has, for [`crate::presence::Seat`]; `None` if all are in use.
    pub(crate) fn take_seat(&self) -> Option<u32> {
        let free = |seats: u64| (seats != u64::MAX).then(|| seats | (seats + 1));
        // SYNC: pairs with the release in `leave_seat`: what its last holder wrote to the line comes before.
        let before = self.seats.fetch_update(Ordering::Acquire, Ordering::Relaxed, free).ok()?;
        Some(before.trailing_ones())
    }

    /// Gives a thread line back.
    pub(crate) fn leave_seat(&self, seat: u32) {
        // SYNC: pairs with the acquire in `take_seat`.
        self.seats.fetch_and(!(1 << seat), Ordering::Release);
    }

    /// A thread line, for the thread that has taken it.
    pub(crate) fn thread_line(&self, seat: u32) -> &ThreadLine {
        self.at((THREADS_AT + seat as usize % MAX_THREADS * size_of::<ThreadLine>()) as u64)
    }
}

/// What the domain behind `window` says that one of its threads is doing; `None` if it has no such thread. The window
/// must be one that [`Peer::read`] has accepted.
pub(crate) fn presence_of(window: &Window, seat: u32) -> Option<Presence> {
    let at = (THREADS_AT + (seat as usize).checked_mul(size_of::<ThreadLine>())?) as u64;
    let line = (at < HEADER_BYTES).then(|| window.at(at, size_of::<ThreadLine>() as u64))??;
    // SAFETY: inside the mapping and aligned; atomics only, and only loaded.
    Some(unsafe { line.cast::<ThreadLine>().as_ref() }.read())
}

/// Types that consist of atomics only: any bytes are a valid value, and shared access from many sides is sound.
///
/// # Safety
/// Implement it for such types only.
unsafe trait Atomics {}
// SAFETY: atomics only.
unsafe impl Atomics for Header {}
// SAFETY: atomics only.
unsafe impl Atomics for Entry {}
// SAFETY: transparent over atomics only.
unsafe impl Atomics for Stats {}
// SAFETY: atomics only.
unsafe impl Atomics for ThreadLine {}

/// Reads what a window's header says. Everything is checked; nothing is kept by reference.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a>(&'a Window);

impl<'a> Peer<'a> {
    /// Checks the header of the arena behind `window`.
    ///
    /// # Errors
    /// [`ArenaError`] if it is no arena, of another version, or somebody else's.
    pub fn read(window: &'a Window) -> Result<Self, ArenaError> {
        if window.len() < MIN_ARENA_BYTES {
            return Err(ArenaError::Length { len: window.len() });
        }
        let peer = Self(window);
        // SYNC: pairs with the release store of the magic in `OwnArena::write_header`.
        let magic = u64::from_le(peer.load64(0, Ordering::Acquire));
        if magic != MAGIC {
            return Err(ArenaError::Magic { found: magic });
        }
        let version = peer.load32(8);
        if version != VERSION {
            return Err(ArenaError::Version { found: version });
        }
        let (slot, generation) = (peer.load32(16), peer.load32(20));
        let id = window.id();
        if (slot, generation) != (u32::from(id.slot.number()), u32::from(id.generation.number())) {
            return Err(ArenaError::Identity { found: format!("{slot}.{generation}"), expected: id });
        }
        Ok(peer)
    }

    /// The peer's half of a lane.
    ///
    /// # Errors
    /// [`ArenaError::Lane`] if the directory lacks it or places it outside the arena.
    pub fn lane(&self, link: u32, lane: u16) -> Result<LanePlace, ArenaError> {
        let error = |what| ArenaError::Lane { link, lane, what };
        let count = (self.load32(12) as usize).min(MAX_LANES);
        let at = (0..count)
            .map(|index| DIRECTORY_AT + index * ENTRY_BYTES)
            .find(|&at| self.load32(at) == link && self.load32(at + 4) == u32::from(lane))
            .ok_or(error("the peer's arena has no such lane"))?;
        let control = u64::from_le(self.load64(at + 8, Ordering::Relaxed));
        let ring = u64::from_le(self.load64(at + 16, Ordering::Relaxed));
        let slots = self.load32(at + 24);
        if check_slots(slots).is_err() {
            return Err(error("the peer's ring size is not a power of two within the limits"));
        }
        if !control.is_multiple_of(SLOT_BYTES) || !ring.is_multiple_of(SLOT_BYTES) {
            return Err(error("the peer's lane is not aligned to a cache line"));
        }
        let inside = self.0.at(control, CONTROL_BYTES).and(self.0.at(ring, u64::from(slots) * SLOT_BYTES));
        inside.ok_or(error("the peer's lane leaves its arena"))?;
        Ok(LanePlace { plan: LanePlan { link, lane, slots }, control, ring })
    }

    /// Where its owner says that its heritage lies, and how long it is; not checked against the arena. `None` if there
    /// is none.
    pub fn heritage(&self) -> Option<(u64, u64)> {
        // SYNC: pairs with the release stores in `OwnArena::set_heritage`.
        let len = u64::from_le(self.load64(offset_of!(Header, heritage_len), Ordering::Acquire));
        let at = u64::from_le(self.load64(offset_of!(Header, heritage_at), Ordering::Relaxed));
        (len > 0).then_some((at, len))
    }

    /// The peer's counters.
    pub fn stats(&self) -> crate::stats::Snapshot {
        // SAFETY: within the header, which `read` found inside the mapping; atomics only, and only loaded.
        unsafe { self.0.base().add(STATS_AT).cast::<Stats>().as_ref() }.snapshot()
    }

    fn load32(&self, at: usize) -> u32 {
        // SAFETY: a mapped, aligned word of the header; atomic and only loaded.
        u32::from_le(unsafe { AtomicU32::from_ptr(self.0.base().add(at).cast().as_ptr()) }.load(Ordering::Relaxed))
    }

    fn load64(&self, at: usize, order: Ordering) -> u64 {
        // SAFETY: a mapped, aligned word of the header; atomic and only loaded.
        unsafe { AtomicU64::from_ptr(self.0.base().add(at).cast().as_ptr()) }.load(order)
    }
}

fn check_slots(slots: u32) -> Result<(), ArenaError> {
    if slots.is_power_of_two() && (MIN_RING_SLOTS..=MAX_RING_SLOTS).contains(&slots) {
        Ok(())
    } else {
        Err(ArenaError::RingSlots { slots })
    }
}

/// Whether an arena of `len` bytes can hold these lanes and a page of heap.
///
/// # Errors
/// [`ArenaError`] if the lanes or the length are beyond the limits.
pub fn check_plan(len: u64, lanes: &[LanePlan]) -> Result<(), ArenaError> {
    plan(len, lanes).map(drop)
}

/// Where the lanes go in an arena of `len` bytes, and where the heap begins behind them.
fn plan(len: u64, lanes: &[LanePlan]) -> Result<(Vec<LanePlace>, u64), ArenaError> {
    if !(MIN_ARENA_BYTES..=MAX_ARENA_BYTES).contains(&len) {
        return Err(ArenaError::Length { len });
    }
    if lanes.len() > MAX_LANES {
        return Err(ArenaError::TooManyLanes { lanes: lanes.len() });
    }
    let mut at = HEADER_BYTES;
    let mut places = Vec::with_capacity(lanes.len());
    for &plan in lanes {
        check_slots(plan.slots)?;
        let (control, ring) = (at, at + CONTROL_BYTES);
        places.push(LanePlace { plan, control, ring });
        at = ring + u64::from(plan.slots) * SLOT_BYTES;
    }
    let heap_start = at.next_multiple_of(4096);
    let needed = heap_start + 4096;
    if needed > len {
        return Err(ArenaError::TooSmall { needed, len });
    }
    Ok((places, heap_start))
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
