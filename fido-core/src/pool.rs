//! A pool: many small buffers of one size, in one buffer of the heap, that are lent again and again.
//!
//! The heap takes its lock twice for each buffer, and each payload of one takes memory for its hold. For frames of 64
//! bytes, ten million a second, that is most of the work. Here a buffer's hold is made once, and kept; a buffer is free
//! again when the pool's is the only one left. Buffers are tried in turns, so the one that is looked at is the one that
//! has been out longest.
//!
//! A pool belongs to one thread; its buffers and their holds may go anywhere. The heap gets its memory back when the
//! pool and the last hold are gone.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::addr::Segment;
use crate::heap::{ArenaBuf, HeapError, MAX_BUFFER_BYTES, MIN_BUFFER_BYTES};
use crate::memory::Memory;
use crate::payload::Payload;

/// How many buffers that are still out are passed over before a pool says that it has none.
pub const LOOKS: usize = 8;

/// Buffers of one size. See the module's head.
#[derive(Debug)]
pub struct Pool {
    slots: Vec<Arc<Slot>>,
    next: usize,
}

/// The place of one buffer in the whole.
#[derive(Debug)]
struct Slot {
    whole: Arc<ArenaBuf>,
    at: usize,
    segment: Segment,
}

impl Pool {
    /// A pool of `count` buffers of `size` bytes, each on cache lines of its own; of fewer, where the largest buffer of
    /// a heap ([`MAX_BUFFER_BYTES`]) does not hold so many.
    ///
    /// # Errors
    /// [`HeapError`] if the heap has no room, or `size` or `count` is 0.
    pub fn new(memory: &Memory, size: usize, count: usize) -> Result<Self, HeapError> {
        let stride = size.next_multiple_of(MIN_BUFFER_BYTES as usize).max(1);
        let most = MAX_BUFFER_BYTES as usize / stride;
        let count = if size == 0 { 0 } else { count.min(most.max(1)) };
        let whole = Arc::new(memory.alloc(stride.saturating_mul(count))?);
        let place = |index: usize| {
            let at = index * stride;
            let segment = whole.segment().slice(at as u32, size as u32)?;
            Some(Arc::new(Slot { whole: whole.clone(), at, segment }))
        };
        Ok(Self { slots: (0..count).map_while(place).collect(), next: 0 })
    }

    /// How many buffers there are.
    pub fn count(&self) -> usize {
        self.slots.len()
    }

    /// A buffer that nobody uses, its content undefined but initialised. `None` if the next [`LOOKS`] are all out.
    #[inline]
    pub fn take(&mut self) -> Option<PoolBuf> {
        let count = self.slots.len();
        for _ in 0..LOOKS.min(count) {
            let slot = self.slots.get_mut(self.next)?;
            self.next = if self.next + 1 == count { 0 } else { self.next + 1 };
            // SYNC: `get_mut` acquires what the last other holder released when it dropped its hold: its reads are over
            // before the bytes are written anew.
            if Arc::get_mut(slot).is_some() {
                return Some(PoolBuf { segment: slot.segment, slot: slot.clone() });
            }
        }
        None
    }
}

/// A buffer of a pool, exclusively its holder's. Back in the pool when dropped.
#[derive(Debug)]
pub struct PoolBuf {
    slot: Arc<Slot>,
    segment: Segment,
}

impl PoolBuf {
    /// Where the buffer is, for every domain.
    pub fn segment(&self) -> Segment {
        self.segment
    }

    /// The bytes.
    #[inline]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: `at` and the segment's length lie within the whole buffer (`Pool::new`), which is valid and initialised
        // and lives as long as the slot. Slots do not overlap, and of this one there is no other user: the pool gave it
        // out when nobody else had it, gives it to nobody while we have it, and whoever holds a payload of it reads only
        // and has consumed this `PoolBuf`. Peers map the arena read-only.
        unsafe {
            let first: NonNull<u8> = self.slot.whole.as_ptr().add(self.slot.at);
            std::slice::from_raw_parts_mut(first.as_ptr(), self.segment.len as usize)
        }
    }

    /// Shortens the buffer to its first `len` bytes (no effect if it is not longer).
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        self.segment.len = self.segment.len.min(len.try_into().unwrap_or(u32::MAX));
    }

    /// The buffer as a payload. From here on it is read-only, and back in the pool with the payload's last clone.
    #[inline]
    pub fn into_payload(self) -> Payload {
        Payload::held(self.segment, self.slot)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::testing::private_memory;

    #[test]
    fn a_buffer_is_lent_again_when_its_last_hold_is_gone() {
        let memory = private_memory(1 << 20);
        let mut pool = Pool::new(&memory, 60, 2).unwrap();
        let mut first = pool.take().unwrap();
        first.as_mut_slice().fill(1);
        first.truncate(14);
        let at = first.segment().addr;
        let payload = first.into_payload();
        let again = payload.clone();
        let second = pool.take().unwrap();
        assert!((second.segment().addr, second.segment().len) == (at.checked_add(64).unwrap(), 60));
        assert!(payload.len() == 14 && pool.take().is_none());
        drop(payload);
        assert!(pool.take().is_none(), "a clone still holds it");
        drop(again);
        assert_eq!(pool.take().map(|buf| buf.segment()), Some(Segment::new(at, 60)), "whole again");
        drop(second);
    }

    #[test]
    fn only_the_next_few_are_looked_at() {
        let mut pool = Pool::new(&private_memory(1 << 20), 100, LOOKS + 1).unwrap();
        let mut out: Vec<_> = (0..=LOOKS).map(|_| pool.take()).collect();
        out[LOOKS] = None;
        assert!(pool.take().is_none(), "one past those that are looked at");
        let last = pool.take();
        assert!(last.is_some(), "the next call looks further");
        out[LOOKS - 1] = None;
        assert!(pool.take().is_some(), "the last one of those that are looked at");
    }

    #[test]
    fn the_heap_gets_its_memory_back_from_the_last_of_all() {
        let memory = private_memory(1 << 20);
        let mut pool = Pool::new(&memory, 1514, 64).unwrap();
        let payload = pool.take().unwrap().into_payload();
        drop(pool);
        assert!(memory.heap().used() > 0);
        drop(payload);
        assert_eq!(memory.heap().used(), 0);
    }

    #[test]
    fn limits() {
        let memory = private_memory(1 << 20);
        for (size, count) in [(0, 1), (1, 0), (MAX_BUFFER_BYTES as usize + 1, 1)] {
            assert!(Pool::new(&memory, size, count).is_err(), "{size} × {count}");
        }
        assert!(matches!(Pool::new(&memory, 1 << 19, 4), Err(HeapError::Exhausted { .. })));
        assert_eq!(Pool::new(&private_memory(2 * MAX_BUFFER_BYTES), 4096, usize::MAX).unwrap().count(), 16_384);
    }
}
