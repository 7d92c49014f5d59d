//! The arena heap: buffers inside the own arena, from a cache line to several MiB.
//!
//! All bookkeeping is in private memory, so a peer can neither read nor damage it. A buffer ([`ArenaBuf`]) is
//! exclusively its holder's until it is turned into a [`Payload`]; from then on it is shared and nobody can write it
//! through a safe interface any more, which is what a loan promises. It is freed when the last hold on it is dropped,
//! on whichever thread that happens.
//!
//! [`Filling`] is the one exception to "written, then lent": a receive buffer whose filled front is already on loan
//! while the kernel fills the rest.

mod buddy;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::addr::{GlobalAddr, Segment};
use crate::arena::OwnArena;
use crate::payload::Payload;
use buddy::Buddy;
pub use buddy::{MAX_BUFFER_BYTES, MIN_BUFFER_BYTES};

/// Why a buffer cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeapError {
    /// Nothing of that size is free now; buffers on loan come back, so it may be there later.
    #[error(
        "arena heap exhausted: {wanted} bytes wanted, {used} of {capacity} bytes are in use; raise the domain's `arena` in the manifest or wait for loans to return"
    )]
    Exhausted {
        /// What was asked for, in bytes.
        wanted: u64,
        /// Bytes in use, as rounded up by the heap.
        used: u64,
        /// Bytes in all.
        capacity: u64,
    },
    /// No heap gives a buffer of that size.
    #[error("a buffer of {wanted} bytes was asked for; the limits are 1 and {MAX_BUFFER_BYTES} bytes")]
    Size {
        /// What was asked for, in bytes.
        wanted: u64,
    },
}

/// The heap of one arena. Clones share it.
#[derive(Clone)]
pub struct Heap(Arc<Shared>);

struct Shared {
    arena: Arc<OwnArena>,
    /// The heap's first byte within the arena.
    start: u64,
    state: Mutex<Buddy>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Buddy> {
        // The allocator's state is consistent between its calls and they do not panic: a poisoned lock only says
        // that some other code panicked while it held a guard, which none does.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heap {
    /// A heap over `range` of the arena (cut to whole pages, and to what the arena has).
    ///
    /// There must be no other heap over any part of it: both would hand out the same bytes. [`crate::memory::Memory`]
    /// sees to that.
    pub(crate) fn new(arena: Arc<OwnArena>, range: Range<u64>) -> Self {
        let start = range.start.next_multiple_of(buddy::PAGE_BYTES);
        let end = range.end.min(arena.len());
        let state = Mutex::new(Buddy::new(end.saturating_sub(start)));
        Self(Arc::new(Shared { arena, start, state }))
    }

    /// A buffer of `len` bytes (aligned to a cache line; to a page from 4 KiB on), its content undefined but
    /// initialised.
    ///
    /// # Errors
    /// [`HeapError`] if there is no room or `len` is beyond the limits.
    pub fn alloc(&self, len: usize) -> Result<ArenaBuf, HeapError> {
        let wanted = len as u64;
        if wanted == 0 || wanted > MAX_BUFFER_BYTES {
            return Err(HeapError::Size { wanted });
        }
        let mut state = self.0.state();
        match state.alloc(wanted) {
            Some(at) => Ok(ArenaBuf { heap: self.0.clone(), offset: self.0.start + at, len: len as u32 }),
            None => Err(HeapError::Exhausted { wanted, used: state.used(), capacity: state.capacity() }),
        }
    }

    /// Bytes in use, as rounded up by the heap.
    pub fn used(&self) -> u64 {
        self.0.state().used()
    }

    /// Bytes in all.
    pub fn capacity(&self) -> u64 {
        self.0.state().capacity()
    }
}

impl fmt::Debug for Heap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Heap({} of {} bytes used)", self.used(), self.capacity())
    }
}

/// A buffer in the own arena. Freed when dropped.
pub struct ArenaBuf {
    heap: Arc<Shared>,
    offset: u64,
    len: u32,
}

impl ArenaBuf {
    /// Length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a buffer is never empty")]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Where the buffer is, for every domain.
    pub fn segment(&self) -> Segment {
        let addr = GlobalAddr::new(self.heap.arena.id(), self.offset);
        // The offset lies within the arena, and an arena within the 40 bits of an offset (checked at its creation).
        Segment::new(addr.unwrap_or(GlobalAddr::from_bits(0)), self.len)
    }

    /// The first byte, for the kernel or a raw copy. Valid for [`ArenaBuf::len`] bytes while the buffer lives.
    pub fn as_ptr(&self) -> NonNull<u8> {
        // SAFETY: the heap hands out offsets within its arena's mapping, which lives as long as `heap.arena`.
        unsafe { self.heap.arena.base().add(self.offset as usize) }
    }

    /// The bytes, as long as the buffer is exclusively ours.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: valid and initialised (a mapping starts as zeros) for `len` bytes; `&mut self` and the heap's
        // disjointness make this the only access from this domain, and peers map the arena read-only.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr().as_ptr(), self.len as usize) }
    }

    /// The bytes. Nobody writes them while this borrow lives: writing needs `&mut self`.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: as in `as_mut_slice`, and no writer exists beside a shared borrow.
        unsafe { std::slice::from_raw_parts(self.as_ptr().as_ptr(), self.len as usize) }
    }

    /// Shortens the buffer to its first `len` bytes (no effect if it is not longer).
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len.try_into().unwrap_or(u32::MAX));
    }

    /// The whole buffer as a payload. From here on it is read-only and freed with the payload's last clone.
    pub fn into_payload(self) -> Payload {
        Payload::held(self.segment(), Arc::new(self))
    }
}

impl Drop for ArenaBuf {
    fn drop(&mut self) {
        self.heap.state().free(self.offset - self.heap.start);
    }
}

impl fmt::Debug for ArenaBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ArenaBuf({})", self.segment())
    }
}

/// A buffer that is lent piece by piece while it is still being filled.
///
/// Every byte is written at most once, before it is lent: the promise of a loan holds for each piece.
#[derive(Debug)]
pub struct Filling {
    buf: Arc<FillingBuf>,
    filled: usize,
}

/// The buffer behind a [`Filling`], without any way to form a reference to its bytes.
#[derive(Debug)]
struct FillingBuf(ArenaBuf);

impl Filling {
    /// Starts filling `buf` from its first byte.
    pub fn new(buf: ArenaBuf) -> Self {
        Self { buf: Arc::new(FillingBuf(buf)), filled: 0 }
    }

    /// How many bytes are still free.
    pub fn room(&self) -> usize {
        self.buf.0.len() - self.filled
    }

    /// The first free byte; [`Filling::room`] bytes from here on may be written, by this filling's holder only.
    pub fn spare(&mut self) -> NonNull<u8> {
        // SAFETY: `filled <= len`, so this is inside the buffer or one past its end.
        unsafe { self.buf.0.as_ptr().add(self.filled) }
    }

    /// Lends the next `len` bytes (at most [`Filling::room`]), which have just been written.
    pub fn lend(&mut self, len: usize) -> Payload {
        let len = len.min(self.room());
        let segment = self.buf.0.segment().slice(self.filled as u32, len as u32);
        self.filled += len;
        match segment {
            Some(segment) => Payload::held(segment, self.buf.clone()),
            None => Payload::new(),
        }
    }

    /// Copies the next bytes, which have just been written, into `out` instead of lending them (at most
    /// [`Filling::room`]): headers between pieces of payload. Returns how many.
    pub fn take(&mut self, out: &mut [u8]) -> usize {
        let count = out.len().min(self.room());
        // SAFETY: `count` bytes from `spare` on lie in the buffer and are initialised; nobody writes them meanwhile but
        // this filling's holder, whom we borrow exclusively, and `out` is private memory.
        unsafe { std::ptr::copy_nonoverlapping(self.spare().as_ptr(), out.as_mut_ptr(), count) };
        self.filled += count;
        count
    }

    /// Passes over the next `len` bytes (at most [`Filling::room`]), which are never lent.
    pub fn skip(&mut self, len: usize) {
        self.filled += len.min(self.room());
    }

    /// Starts from the first byte again, if nothing is on loan; false if something is.
    pub fn rewind(&mut self) -> bool {
        // SYNC: `get_mut` acquires what the last other holder released when it dropped its hold: its reads are over
        // before the bytes are written anew.
        let unlent = Arc::get_mut(&mut self.buf).is_some();
        if unlent {
            self.filled = 0;
        }
        unlent
    }

    /// The whole buffer's length.
    #[expect(clippy::len_without_is_empty, reason = "a buffer is never empty")]
    pub fn len(&self) -> usize {
        self.buf.0.len()
    }

    /// Whether nothing of it is on loan.
    pub fn is_unlent(&self) -> bool {
        Arc::strong_count(&self.buf) == 1
    }
}
