//! Foreign memory: what somebody outside the appliance gives to be read *and written*, such as the memory of a virtual
//! machine whose disk a domain is.
//!
//! It is no arena. A guest writes its memory at any time, and a device writes there too (virtio is made so); the rule of
//! one writer does not hold in it. So nothing of it is ever referred to, words in it are atomics, everything read from
//! it is an allegation and read once. To the rest of the appliance it is a [`Window`] in slot 0, which no domain has:
//! segments of a [`crate::payload::Payload`] may lie there, and a device in this process reads them as it reads those
//! of a peer. Other domains have no such window; to them the bytes are copied.
//!
//! The files must be sealed against shrinking: a mapping beyond a file's end would be the death of this process.
//!
//! Source: the memory table of vhost-user (`docs/interop/vhost-user.rst` of QEMU).

#[cfg(test)]
#[cfg(not(miri))]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::addr::{DomainId, Generation, GlobalAddr, MAX_ARENA_BYTES, Segment, Slot};
use crate::platform::place;
use crate::window::{Span, Window};

/// The most files that one memory may consist of.
pub const MAX_REGIONS: usize = 32;

/// A piece of foreign memory, as its owner describes it.
#[derive(Debug)]
pub struct Region {
    /// Where the guest has it.
    pub guest: u64,
    /// Where the owner's process has it.
    pub user: u64,
    /// How many bytes.
    pub len: u64,
    /// Where it begins in the file.
    pub offset: u64,
    /// The file.
    pub file: OwnedFd,
}

/// Why memory that somebody gives cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum ForeignError {
    /// None, or more than [`MAX_REGIONS`].
    #[error("memory in {0} regions; it must be 1 to {MAX_REGIONS}")]
    Regions(usize),
    /// A region that cannot be: empty, not in whole pages, or beyond what addresses can say.
    #[error("a region of {len:#x} bytes at guest {guest:#x}, user {user:#x}, file {offset:#x}: {what}")]
    Region {
        /// Where the guest has it.
        guest: u64,
        /// Where its owner has it.
        user: u64,
        /// How many bytes.
        len: u64,
        /// Where it begins in the file.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The file could be shrunk under the mapping.
    #[error("region {region} is not sealed against shrinking (use a sealed memfd)")]
    Unsealed {
        /// Which.
        region: usize,
    },
    /// The file ends before the region does.
    #[error("region {region} ends at byte {end:#x} of a file of {bytes:#x} bytes")]
    Short {
        /// Which.
        region: usize,
        /// Where it ends.
        end: u64,
        /// The file's size.
        bytes: u64,
    },
    /// The kernel refused a step.
    #[error("cannot {step} foreign memory: {error}")]
    Kernel {
        /// What was being done.
        step: &'static str,
        /// The kernel's reason.
        error: io::Error,
    },
}

#[derive(Debug, Clone, Copy)]
struct Place {
    guest: u64,
    user: u64,
    len: u64,
    /// Where it begins in the window.
    at: u64,
}

/// Foreign memory, mapped: its regions one after the other in one window.
#[derive(Debug, Clone)]
pub struct Foreign {
    window: Arc<Window>,
    places: Vec<Place>,
}

impl Foreign {
    /// The slot of all foreign memory: no domain has it.
    pub const SLOT: Slot = match Slot::new(0) {
        Some(slot) => slot,
        None => unreachable!(),
    };

    /// Maps what `regions` describe. The generation tells it from other foreign memory of this process that is mapped
    /// at the same time.
    ///
    /// # Errors
    /// [`ForeignError`] that names what is wrong.
    pub fn map(generation: Generation, regions: &[Region]) -> Result<Self, ForeignError> {
        if regions.is_empty() || regions.len() > MAX_REGIONS {
            return Err(ForeignError::Regions(regions.len()));
        }
        let mut places: Vec<Place> = Vec::with_capacity(regions.len());
        let mut total = 0_u64;
        for (index, region) in regions.iter().enumerate() {
            check(index, region)?;
            let overlaps = |a: u64, b: u64, len: u64| a < b + len && b < a + region.len;
            let wrong = |what| fault(region, what);
            if places.iter().any(|p| overlaps(region.guest, p.guest, p.len) || overlaps(region.user, p.user, p.len)) {
                return Err(wrong("overlaps another region"));
            }
            places.push(Place { guest: region.guest, user: region.user, len: region.len, at: total });
            total = total.checked_add(region.len).filter(|total| *total <= MAX_ARENA_BYTES).ok_or(wrong("too much"))?;
        }
        let kernel = |step| move |error| ForeignError::Kernel { step, error };
        let mapping = place::reserve_anywhere(total).map_err(kernel("reserve addresses for"))?;
        for (region, place) in regions.iter().zip(&places) {
            place::map_writable_over(&mapping, place.at, region.len, region.file.as_fd(), region.offset)
                .map_err(kernel("map"))?;
        }
        let id = DomainId { slot: Self::SLOT, generation };
        let base = mapping.base();
        // SAFETY: all of the range is mapped readable, in whole pages, until the mapping is dropped; the files cover it
        // (checked above) and cannot shrink (sealed).
        let window = Arc::new(unsafe { Window::new(id, base, total, Box::new(mapping)) });
        Ok(Self { window, places })
    }

    /// The window, for the table with whose help payload is translated.
    #[must_use]
    pub fn window(&self) -> &Arc<Window> {
        &self.window
    }

    /// The bytes from the guest's address `guest` on that lie in one region, at most `len` of them. `None` if that
    /// address is in none.
    #[must_use]
    pub fn guest(&self, guest: u64, len: u32) -> Option<Area> {
        let place = self.places.iter().find(|place| guest.wrapping_sub(place.guest) < place.len)?;
        let from = guest - place.guest;
        let len = u64::from(len).min(place.len - from) as u32;
        self.area(place.at + from, len)
    }

    /// The `len` bytes at the owner's address `user`, if they lie in one region.
    #[must_use]
    pub fn user(&self, user: u64, len: u32) -> Option<Area> {
        let place = self.places.iter().find(|place| user.wrapping_sub(place.user) < place.len)?;
        let from = user - place.user;
        (u64::from(len) <= place.len - from).then(|| self.area(place.at + from, len))?
    }

    fn area(&self, offset: u64, len: u32) -> Option<Area> {
        let segment = Segment::new(GlobalAddr::new(self.window.id(), offset)?, len);
        Some(Area { span: Span::of(&self.window, offset, len)?, segment })
    }
}

fn fault(region: &Region, what: &'static str) -> ForeignError {
    let Region { guest, user, len, offset, .. } = *region;
    ForeignError::Region { guest, user, len, offset, what }
}

fn check(index: usize, region: &Region) -> Result<(), ForeignError> {
    let page = rustix::param::page_size() as u64;
    let Region { guest, user, len, offset, .. } = *region;
    if len == 0 || [guest, user, len, offset].iter().any(|number| !number.is_multiple_of(page)) {
        return Err(fault(region, "not in whole pages"));
    }
    if [guest, user, offset].iter().any(|from| from.checked_add(len).is_none_or(|end| end > i64::MAX as u64)) {
        return Err(fault(region, "beyond what addresses can say"));
    }
    // SAFETY: a plain fcntl on an open file descriptor.
    let seals = unsafe { libc::fcntl(region.file.as_raw_fd(), libc::F_GET_SEALS) };
    if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
        return Err(ForeignError::Unsealed { region: index });
    }
    let stat = rustix::fs::fstat(&region.file);
    let bytes = stat.map_err(|e| ForeignError::Kernel { step: "examine", error: e.into() })?.st_size as u64;
    if offset + len > bytes {
        return Err(ForeignError::Short { region: index, end: offset + len, bytes });
    }
    Ok(())
}

/// A range of foreign memory that may be written: checked, and mapped as long as this lives.
///
/// Words must be aligned; an access beyond the range or out of alignment panics, for its place comes from the program,
/// not from the guest: whoever has an area checks its length and address once.
#[derive(Clone)]
pub struct Area {
    span: Span,
    segment: Segment,
}

impl Area {
    /// As a segment, for payload.
    #[must_use]
    pub fn segment(&self) -> Segment {
        self.segment
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.span.len()
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.span.is_empty()
    }

    /// The first byte, for the kernel to read or write.
    #[must_use]
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.span.as_ptr()
    }

    /// Whether the first byte's address is a multiple of `bytes`.
    #[must_use]
    pub fn is_aligned_to(&self, bytes: usize) -> bool {
        self.as_ptr().addr().get().is_multiple_of(bytes)
    }

    /// The bytes from `start` on, `len` of them if so many are there.
    #[must_use]
    pub fn slice(&self, start: u32, len: u32) -> Option<Self> {
        let segment = self.segment.slice(start, len)?;
        Some(Self { span: self.span.slice(start, len)?, segment })
    }

    /// Copies bytes out, each read once, in order to parse the copy. As much as both sides have.
    pub fn read(&self, start: usize, out: &mut [u8]) -> usize {
        self.span.read(start, out)
    }

    /// Copies bytes in, as much as both sides have from `start` on, and returns how much.
    pub fn write(&self, start: usize, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.len().saturating_sub(start));
        // SAFETY: `start + count` bytes are mapped writable; nobody in this program has a reference to them, and what the
        // guest does at the same time happens outside it. The source is a slice of ours, so it does not overlap.
        unsafe { std::ptr::copy(bytes.as_ptr(), self.as_ptr().add(start.min(self.len())).as_ptr(), count) };
        count
    }

    /// Fills all of it with zeros.
    pub fn zero(&self) {
        // SAFETY: as in `write`.
        unsafe { std::ptr::write_bytes(self.as_ptr().as_ptr(), 0, self.len()) };
    }

    /// Copies the bytes of `from` in, as much as both sides have from `start` on, and returns how much.
    pub(crate) fn take(&self, start: usize, from: &Span, skip: usize) -> usize {
        let room = self.len().saturating_sub(start);
        // SAFETY: `room` bytes from there are mapped writable, without references; they may overlap what `from` shows.
        unsafe { from.copy_to(skip, self.as_ptr().add(start.min(self.len())), room) }
    }

    fn word<const BYTES: usize>(&self, at: usize) -> NonNull<u8> {
        assert!(at.checked_add(BYTES).is_some_and(|end| end <= self.len()), "{at}+{BYTES} of {} bytes", self.len());
        // SAFETY: inside the range, by the check above.
        let word = unsafe { self.as_ptr().add(at) };
        assert!(word.addr().get().is_multiple_of(BYTES), "a word of {BYTES} bytes at {word:p}");
        word
    }
}

macro_rules! words {
    ($($load:ident, $store:ident, $atomic:ident, $word:ident, $bytes:literal;)*) => {
        impl Area {
            $(
                /// The word at byte `at`, little-endian.
                ///
                /// # Panics
                /// If it is not in the area, or not aligned.
                #[must_use]
                pub fn $load(&self, at: usize, order: Ordering) -> $word {
                    let word = self.word::<$bytes>(at);
                    // SAFETY: mapped and aligned (checked by `word`), and only accessed atomically by this program.
                    $word::from_le(unsafe { $atomic::from_ptr(word.as_ptr().cast()) }.load(order))
                }

                /// Stores a word at byte `at`, little-endian.
                ///
                /// # Panics
                /// If it is not in the area, or not aligned.
                pub fn $store(&self, at: usize, value: $word, order: Ordering) {
                    let word = self.word::<$bytes>(at);
                    // SAFETY: mapped, writable and aligned (checked by `word`), and only accessed atomically by this
                    // program.
                    unsafe { $atomic::from_ptr(word.as_ptr().cast()) }.store(value.to_le(), order);
                }
            )*
        }
    };
}

words! {
    load_u8, store_u8, AtomicU8, u8, 1;
    load_u16, store_u16, AtomicU16, u16, 2;
    load_u32, store_u32, AtomicU32, u32, 4;
    load_u64, store_u64, AtomicU64, u64, 8;
}

impl fmt::Debug for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Area({}, {:?})", self.segment, self.span)
    }
}

/// Where a read's bytes shall go: areas, one after the other.
#[derive(Debug, Clone, Default)]
pub struct Landing {
    areas: Vec<Area>,
    len: u64,
}

impl Landing {
    /// Adds an area at the end; an empty one is dropped.
    pub fn push(&mut self, area: Area) {
        if !area.is_empty() {
            self.len += area.len() as u64;
            self.areas.push(area);
        }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no room.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The areas in order; none is empty.
    #[must_use]
    pub fn areas(&self) -> &[Area] {
        &self.areas
    }

    /// Copies bytes in from the beginning on, as much as there is room, and returns how much.
    pub fn write(&self, bytes: &[u8]) -> usize {
        let mut at = 0;
        for area in &self.areas {
            at += area.write(0, bytes.get(at..).unwrap_or_default());
        }
        at
    }

    /// Copies the bytes of spans in, one after the other, and returns how many.
    pub(crate) fn take(&self, spans: &[Span]) -> u64 {
        let (mut spans, mut skip, mut total) = (spans.iter().peekable(), 0, 0);
        for area in &self.areas {
            let mut at = 0;
            while at < area.len()
                && let Some(span) = spans.peek()
            {
                let count = area.take(at, span, skip);
                (at, skip, total) = (at + count, skip + count, total + count as u64);
                if skip == span.len() {
                    skip = 0;
                    spans.next();
                }
            }
        }
        total
    }
}
