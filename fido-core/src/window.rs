//! Windows: the read-only mappings of peers' arenas, and the translation of global addresses into them.
//!
//! What a peer says is an allegation: a segment is looked up, its generation compared and its range checked against
//! the window before a pointer is formed. The result, a [`Span`], keeps the mapping alive, so a pointer that was
//! handed to the kernel stays valid even if the peer dies and its window is dropped meanwhile. Nothing else does but
//! the table and the session of a lane: a window that is removed is unmapped there and then, whoever is idle.
//!
//! Two incarnations of one slot can be mapped at the same time: a dead one (frozen, until the fence is passed) and
//! its successor.

#[cfg(test)]
#[cfg(not(loom))]
mod tests;

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};

use crate::addr::{DomainId, Segment};

/// Why a segment has no memory behind it in this domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No window on that slot: never linked, or its fence has been passed.
    #[error("{segment}: no window on slot {}", segment.addr.slot())]
    NoWindow {
        /// What was to be translated.
        segment: Segment,
    },
    /// The slot is mapped, but in another generation.
    #[error("{segment}: stale or foreign generation, slot {} is mapped in generation {mapped}", segment.addr.slot())]
    Generation {
        /// What was to be translated.
        segment: Segment,
        /// A generation that is mapped.
        mapped: crate::addr::Generation,
    },
    /// The range leaves the arena.
    #[error("{segment}: out of bounds, the arena has {arena_len} bytes")]
    OutOfBounds {
        /// What was to be translated.
        segment: Segment,
        /// The arena's length.
        arena_len: u64,
    },
}

/// A mapping of an arena: this domain's own or, read-only, a peer's.
pub struct Window {
    id: DomainId,
    base: NonNull<u8>,
    len: u64,
    /// The platform's mapping; unmapped when dropped.
    _mapping: Box<dyn Any + Send + Sync>,
}

// SAFETY: a window is an address range whose mapping it owns; it only gives out raw pointers and atomic reads.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// A window over `len` bytes at `base`, which `mapping` keeps mapped.
    ///
    /// # Safety
    /// `base` must stay readable for `len` bytes until `mapping` is dropped, and `base` must be aligned to 64 bytes.
    pub unsafe fn new(id: DomainId, base: NonNull<u8>, len: u64, mapping: Box<dyn Any + Send + Sync>) -> Self {
        Self { id, base, len, _mapping: mapping }
    }

    /// Whose arena it shows.
    pub fn id(&self) -> DomainId {
        self.id
    }

    /// Where the arena's first byte is in this process.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The arena's length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "an arena is never empty")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The pointer to `len` bytes at `offset`, if they lie inside.
    pub fn at(&self, offset: u64, len: u64) -> Option<NonNull<u8>> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: inside the mapping, by the check above.
        Some(unsafe { self.base.add(offset as usize) })
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Window({}, {} bytes at {:p})", self.id, self.len, self.base)
    }
}

/// The bytes of a segment in this process: checked, and mapped as long as the span lives.
#[derive(Clone)]
pub struct Span {
    ptr: NonNull<u8>,
    len: u32,
    _window: Arc<Window>,
}

// SAFETY: a span is a raw address range plus the `Arc` that keeps it mapped; it forms no references.
unsafe impl Send for Span {}
// SAFETY: as above.
unsafe impl Sync for Span {}

impl Span {
    /// `len` bytes at `offset` of a window, if they lie inside.
    pub fn of(window: &Arc<Window>, offset: u64, len: u32) -> Option<Self> {
        let ptr = window.at(offset, u64::from(len))?;
        Some(Self { ptr, len, _window: window.clone() })
    }

    /// The part from byte `start` on, `len` bytes long; `None` unless it lies within this span.
    #[must_use]
    pub fn slice(&self, start: u32, len: u32) -> Option<Self> {
        if start.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: within the span, by the check above.
        let ptr = unsafe { self.ptr.add(start as usize) };
        Some(Self { ptr, len, _window: self._window.clone() })
    }

    /// The first byte, for the kernel or a raw copy. The owner may change the bytes at any time if it is buggy.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes out, each read exactly once, in order to parse the copy. Copies as much as both sides have
    /// from `start` on, and returns how much.
    ///
    /// Reads are atomic (relaxed), so a peer that writes at the same time yields odd values, never undefined
    /// behaviour, and the compiler cannot read a byte a second time.
    pub fn read(&self, start: usize, out: &mut [u8]) -> usize {
        let count = out.len().min(self.len().saturating_sub(start));
        let mut at = 0;
        while at < count {
            // SAFETY: `start + at < len`, inside the mapping.
            let byte = unsafe { self.ptr.add(start + at) };
            if count - at >= 8 && byte.addr().get() % 8 == 0 {
                // SAFETY: 8 mapped, aligned bytes; accessed atomically, and only read.
                let word = unsafe { AtomicU64::from_ptr(byte.as_ptr().cast()) }.load(Ordering::Relaxed);
                out[at..at + 8].copy_from_slice(&word.to_ne_bytes());
                at += 8;
            } else {
                // SAFETY: one mapped byte; accessed atomically, and only read.
                out[at] = unsafe { AtomicU8::from_ptr(byte.as_ptr()) }.load(Ordering::Relaxed);
                at += 1;
            }
        }
        count
    }
}

impl Span {
    /// Copies payload bytes out with one `memcpy`, as much as both sides have from `start` on, and returns how much.
    /// For bytes that are not interpreted: if the owner is buggy and writes meanwhile, they are a mixture.
    pub fn copy(&self, start: usize, out: &mut [u8]) -> usize {
        let room = out.len();
        // SAFETY: an exclusive slice of `room` bytes.
        unsafe { self.copy_to(start, NonNull::from(out).cast(), room) }
    }

    /// As [`Span::copy`], to a place that this span may overlap: a peer can allege an address in our own arena, even of
    /// the very buffer that its bytes are copied to.
    ///
    /// # Safety
    /// `out` must be valid for writes of `room` bytes, and no reference to them may be live.
    pub(crate) unsafe fn copy_to(&self, start: usize, out: NonNull<u8>, room: usize) -> usize {
        let count = room.min(self.len().saturating_sub(start));
        // SAFETY: the source is mapped for `start + count` bytes, the target by the caller's promise; they may overlap.
        // A peer's concurrent store happens outside this program; no value that the copy yields is relied on.
        unsafe { std::ptr::copy(self.ptr.add(start.min(self.len())).as_ptr(), out.as_ptr(), count) };
        count
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Span({} bytes at {:p})", self.len, self.ptr)
    }
}

/// The windows of a domain, its own arena among them. Shared by all its threads.
#[derive(Debug, Default)]
pub struct WindowTable {
    windows: RwLock<Vec<Arc<Window>>>,
    /// Rises with every change, so that a [`WindowView`] knows when its copy is old.
    epoch: AtomicU64,
}

impl WindowTable {
    /// Adds a window, in place of one of the same incarnation.
    pub fn insert(&self, window: Arc<Window>) {
        let id = window.id();
        self.change(id, Some(window));
    }

    /// Forgets an incarnation's window. It is unmapped before this returns, unless a span or a session is left on it: then
    /// with the last of them.
    pub fn remove(&self, id: DomainId) {
        self.change(id, None);
    }

    fn change(&self, id: DomainId, successor: Option<Arc<Window>>) {
        let mut windows = self.windows.write().unwrap_or_else(PoisonError::into_inner);
        let place = windows.iter().position(|window| window.id() == id);
        let gone = place.map(|place| windows.swap_remove(place));
        windows.extend(successor);
        // SYNC: pairs with the acquire load in `WindowView::refresh`.
        self.epoch.fetch_add(1, Ordering::Release);
        drop(windows);
        // Unmapping an arena takes its time; nobody who looks something up waits for it.
        drop(gone);
    }

    /// The window on an incarnation.
    pub fn get(&self, id: DomainId) -> Option<Arc<Window>> {
        self.windows.read().unwrap_or_else(PoisonError::into_inner).iter().find(|w| w.id() == id).cloned()
    }
}

/// What a view knows about a window. It keeps nothing mapped.
#[derive(Debug)]
struct Known {
    id: DomainId,
    len: u64,
    window: Weak<Window>,
}

impl Known {
    fn of(window: &Arc<Window>) -> Self {
        Self { id: window.id, len: window.len, window: Arc::downgrade(window) }
    }
}

/// One thread's cached view of the [`WindowTable`]: translation without a lock.
#[derive(Debug)]
pub struct WindowView {
    table: Arc<WindowTable>,
    cache: RefCell<(u64, Vec<Known>)>,
}

impl WindowView {
    /// A view of `table`.
    pub fn new(table: Arc<WindowTable>) -> Self {
        Self { table, cache: RefCell::new((u64::MAX, Vec::new())) }
    }

    /// The table it shows.
    pub fn table(&self) -> &Arc<WindowTable> {
        &self.table
    }

    /// The memory behind `segment`.
    ///
    /// # Errors
    /// [`AddressError`] if it is stale, unmapped or out of bounds.
    pub fn translate(&self, segment: Segment) -> Result<Span, AddressError> {
        self.look_up(segment, |known| {
            let window = known.window.upgrade()?;
            let ptr = window.at(segment.addr.offset(), u64::from(segment.len))?;
            Some(Span { ptr, len: segment.len, _window: window })
        })
    }

    /// Whether there is memory behind `segment` now, without keeping it.
    ///
    /// # Errors
    /// [`AddressError`] if it is stale, unmapped or out of bounds.
    pub fn check(&self, segment: Segment) -> Result<(), AddressError> {
        self.look_up(segment, |_| Some(()))
    }

    /// Takes changes of the table in.
    #[inline]
    fn refresh(&self) {
        // SYNC: pairs with the release in `WindowTable::change`; a view that misses a change by a moment behaves as if
        // the look-up had come before it, and finds nothing to upgrade if the window is gone.
        let epoch = self.table.epoch.load(Ordering::Acquire);
        if self.cache.borrow().0 != epoch {
            self.renew(epoch);
        }
    }

    #[cold]
    fn renew(&self, epoch: u64) {
        let windows = self.table.windows.read().unwrap_or_else(PoisonError::into_inner);
        *self.cache.borrow_mut() = (epoch, windows.iter().map(Known::of).collect());
    }

    #[inline]
    fn look_up<T>(&self, segment: Segment, found: impl FnOnce(&Known) -> Option<T>) -> Result<T, AddressError> {
        self.refresh();
        let cache = self.cache.borrow();
        let id = segment.addr.domain();
        let Some(known) = cache.1.iter().find(|known| known.id == id) else {
            let other = cache.1.iter().find(|known| known.id.slot == id.slot);
            return Err(match other {
                Some(other) => AddressError::Generation { segment, mapped: other.id.generation },
                None => AddressError::NoWindow { segment },
            });
        };
        let end = segment.addr.offset().checked_add(u64::from(segment.len));
        if end.is_none_or(|end| end > known.len) {
            return Err(AddressError::OutOfBounds { segment, arena_len: known.len });
        }
        found(known).ok_or(AddressError::NoWindow { segment })
    }
}

impl Clone for WindowView {
    fn clone(&self) -> Self {
        Self::new(self.table.clone())
    }
}
