//! Memory of one process, for programs that are no domain of an appliance: the same heap and the same counters, and
//! nobody else who could map it.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::addr::{DomainId, Generation, Slot};
use crate::arena::{ArenaError, LanePlan, OwnArena, RawArena};
use crate::memory::Memory;
use crate::window::WindowTable;

/// Why there is no such memory.
#[derive(Debug, thiserror::Error)]
pub enum PrivateMemoryError {
    /// The system has not so much.
    #[error("the system has no {len} bytes of memory for this process")]
    System {
        /// The length in question.
        len: u64,
    },
    /// The length is beyond the limits of an arena.
    #[error(transparent)]
    Arena(#[from] ArenaError),
}

impl Memory {
    /// Memory over an arena of `len` bytes that no manager knows and nobody else can map: a heap, and no windows but the
    /// own.
    ///
    /// # Errors
    /// [`PrivateMemoryError`] if the system does not have it, or an arena cannot be so large or small.
    pub fn private(len: u64) -> Result<Self, PrivateMemoryError> {
        Ok(Self::new(arena(own_id(), len, &[])?, Arc::new(WindowTable::default())))
    }
}

/// An arena of this process.
pub(crate) fn arena(id: DomainId, len: u64, lanes: &[LanePlan]) -> Result<OwnArena, PrivateMemoryError> {
    let raw = plain_memory(len).ok_or(PrivateMemoryError::System { len })?;
    // SAFETY: fresh, zeroed memory that nobody else knows.
    Ok(unsafe { OwnArena::format(raw, id, lanes)? })
}

/// Slots are counted down from the last one: a manager counts up.
pub(crate) fn own_id() -> DomainId {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let taken = NEXT.fetch_add(1, Ordering::Relaxed) % Slot::COUNT as u16;
    let slot = Slot::new(Slot::LAST.number() - taken).unwrap_or(Slot::LAST);
    DomainId { slot, generation: Generation::FIRST }
}

/// Zeroed memory for an arena that the kernel has no part in. `None` if there is not so much.
pub(crate) fn plain_memory(len: u64) -> Option<RawArena> {
    let layout = Layout::from_size_align(usize::try_from(len).ok()?.max(1), 4096).ok()?;
    // SAFETY: the layout's size is not zero.
    let base = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?;
    Some(RawArena { base, len, mapping: Box::new(Plain { base, layout }) })
}

/// Zeroed memory of this process.
struct Plain {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a range of memory that this value owns; it gives out no references.
unsafe impl Send for Plain {}
// SAFETY: as above.
unsafe impl Sync for Plain {}

impl Drop for Plain {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `plain_memory`, and nothing refers to it any more: windows and arenas own
        // their mapping.
        unsafe { std::alloc::dealloc(self.base.as_ptr(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::MIN_ARENA_BYTES;

    #[test]
    fn what_cannot_be_had_is_said() {
        assert!(Memory::private(MIN_ARENA_BYTES).unwrap().alloc(64).is_ok());
        assert!(matches!(Memory::private(0), Err(PrivateMemoryError::Arena(ArenaError::Length { len: 0 }))));
        let len = u64::MAX;
        assert!(matches!(Memory::private(len), Err(PrivateMemoryError::System { len: found }) if found == len));
    }
}
