//! What a component sees of memory: its own heap, and every window by global address.

#[cfg(test)]
#[cfg(not(loom))]
mod tests;

use std::sync::Arc;

use crate::addr::{DomainId, Segment};
use crate::arena::OwnArena;
use crate::heap::{ArenaBuf, Heap, HeapError};
use crate::payload::Payload;
use crate::stats::Stats;
use crate::window::{AddressError, Span, WindowTable, WindowView};

/// Why a payload could not be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// A segment of it has no memory behind it here.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// There is no buffer to copy it to.
    #[error(transparent)]
    Heap(#[from] HeapError),
}

/// The memory of a domain: allocate in the own arena, translate addresses anywhere. One per thread; clones share all
/// but a cache.
#[derive(Debug, Clone)]
pub struct Memory {
    arena: Arc<OwnArena>,
    heap: Heap,
    windows: WindowView,
}

impl Memory {
    /// Memory over an arena, with a heap behind its lanes, and the windows of `table`, to which the own arena is
    /// added.
    ///
    /// It takes the arena itself, so that there is one heap in it and no more.
    pub fn new(arena: OwnArena, table: Arc<WindowTable>) -> Self {
        let arena = Arc::new(arena);
        table.insert(arena.window().clone());
        let heap = Heap::new(arena.clone(), arena.heap_start()..arena.len());
        Self { arena, heap, windows: WindowView::new(table) }
    }

    /// Who this domain is.
    pub fn id(&self) -> DomainId {
        self.arena.id()
    }

    /// The own arena.
    pub fn arena(&self) -> &Arc<OwnArena> {
        &self.arena
    }

    /// The own heap.
    pub fn heap(&self) -> &Heap {
        &self.heap
    }

    /// The domain's windows.
    pub fn windows(&self) -> &Arc<WindowTable> {
        self.windows.table()
    }

    /// The domain's counters.
    pub fn stats(&self) -> &Stats {
        self.arena.stats()
    }

    /// A buffer of `len` bytes in the own arena.
    ///
    /// # Errors
    /// [`HeapError`] if there is no room or `len` is beyond the limits.
    pub fn alloc(&self, len: usize) -> Result<ArenaBuf, HeapError> {
        self.heap.alloc(len)
    }

    /// The bytes behind a segment.
    ///
    /// # Errors
    /// [`AddressError`] if it is stale, unmapped or out of bounds.
    pub fn translate(&self, segment: Segment) -> Result<Span, AddressError> {
        self.windows.translate(segment).inspect_err(|_| self.stats().refusals.add(1))
    }

    /// Whether there are bytes behind a segment now, without keeping them.
    ///
    /// # Errors
    /// [`AddressError`] if it is stale, unmapped or out of bounds.
    pub fn check(&self, segment: Segment) -> Result<(), AddressError> {
        self.windows.check(segment)
    }

    /// The bytes behind every segment of `payload`, in order.
    ///
    /// # Errors
    /// [`AddressError`] of the first segment that cannot be translated.
    pub fn translate_all(&self, payload: &Payload) -> Result<Vec<Span>, AddressError> {
        payload.segments().map(|segment| self.translate(segment)).collect()
    }

    /// Copies bytes of `payload` from `start` on, in order to parse the copy (headers, metadata; counted as such).
    /// Returns how many there were, at most `out.len()`.
    ///
    /// # Errors
    /// [`AddressError`] of the first segment that cannot be translated.
    pub fn read_header(&self, payload: &Payload, start: u64, out: &mut [u8]) -> Result<usize, AddressError> {
        let count = self.gather(payload, start, out, Span::read)?;
        self.stats().header_bytes_copied.add(count as u64);
        Ok(count)
    }

    /// Copies payload bytes into an own slice; counted as payload copied in user space. Returns how many there were,
    /// at most `out.len()`.
    ///
    /// # Errors
    /// [`AddressError`] of the first segment that cannot be translated.
    pub fn copy_to_slice(&self, payload: &Payload, out: &mut [u8]) -> Result<usize, AddressError> {
        let count = self.gather(payload, 0, out, Span::copy)?;
        self.stats().payload_bytes_copied.add(count as u64);
        Ok(count)
    }

    /// Copies a payload into a buffer of the own arena; counted as payload copied in user space. `None` if it is
    /// empty.
    ///
    /// # Errors
    /// [`CopyError`] if a segment cannot be translated or there is no room.
    pub fn copy_in(&self, payload: &Payload) -> Result<Option<ArenaBuf>, CopyError> {
        if payload.is_empty() {
            return Ok(None);
        }
        let buf = self.alloc(usize::try_from(payload.len()).unwrap_or(usize::MAX))?;
        let mut at = 0;
        for segment in payload.segments() {
            let span = self.translate(segment)?;
            // SAFETY: `at` never passes the buffer's length, and nobody has a reference to its bytes.
            at += unsafe { span.copy_to(0, buf.as_ptr().add(at), buf.len() - at) };
        }
        self.stats().payload_bytes_copied.add(at as u64);
        Ok(Some(buf))
    }

    /// Copies a payload to where foreign memory wants it, as much as there is room; counted as payload copied in user
    /// space. Returns how many bytes there were.
    ///
    /// # Errors
    /// [`AddressError`] of the first segment that cannot be translated.
    #[cfg(not(loom))]
    pub fn land(&self, payload: &Payload, landing: &crate::foreign::Landing) -> Result<u64, AddressError> {
        let count = landing.take(&self.translate_all(payload)?);
        self.stats().payload_bytes_copied.add(count);
        Ok(count)
    }

    /// Shows the bytes of a payload piece by piece, for a checksum. Each piece is a copy in the processor's first cache
    /// that nobody keeps; it is not counted.
    ///
    /// # Errors
    /// [`AddressError`] of the first segment that cannot be translated.
    pub fn inspect(&self, payload: &Payload, mut look: impl FnMut(&[u8])) -> Result<(), AddressError> {
        let mut piece = [0; 4096];
        for segment in payload.segments() {
            let span = self.translate(segment)?;
            let mut at = 0;
            while at < span.len() {
                let count = span.copy(at, &mut piece);
                look(&piece[..count]);
                at += count;
            }
        }
        Ok(())
    }

    fn gather(
        &self,
        payload: &Payload,
        start: u64,
        out: &mut [u8],
        copy: fn(&Span, usize, &mut [u8]) -> usize,
    ) -> Result<usize, AddressError> {
        let mut skip = start;
        let mut at = 0;
        for segment in payload.segments() {
            if at == out.len() {
                break;
            }
            if skip >= u64::from(segment.len) {
                skip -= u64::from(segment.len);
                continue;
            }
            at += copy(&self.translate(segment)?, skip as usize, &mut out[at..]);
            skip = 0;
        }
        Ok(at)
    }
}
