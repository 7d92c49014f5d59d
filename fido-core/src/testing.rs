//! Helpers for tests and for programs of one domain: an arena and memory without a manager.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::addr::{DomainId, Generation, Slot};
use crate::arena::{LanePlan, OwnArena};
use crate::memory::Memory;
use crate::platform::host::memory;
use crate::window::WindowTable;

/// An arena of `len` bytes that no manager knows, in a slot of its own (counted down from the last one).
///
/// # Panics
/// If the system has no memory for it or the layout is beyond the limits: it is for tests.
#[expect(clippy::expect_used, reason = "a test cannot go on without it")]
pub fn private_arena(len: u64, lanes: &[LanePlan]) -> Arc<OwnArena> {
    static NEXT: AtomicU16 = AtomicU16::new(Slot::COUNT as u16 - 1);
    let number = NEXT.fetch_sub(1, Ordering::Relaxed) % Slot::COUNT as u16;
    let slot = Slot::new(number).expect("within the limit");
    let id = DomainId { slot, generation: Generation::FIRST };
    let (_file, raw) = memory::create("private", id, len).expect("memory for an arena");
    // SAFETY: fresh memory from the platform; its file is closed, so nobody else has it.
    Arc::new(unsafe { OwnArena::format(raw, id, lanes) }.expect("a layout within the limits"))
}

/// Memory over a private arena of `len` bytes: a heap, and no windows but the own.
///
/// # Panics
/// As [`private_arena`].
pub fn private_memory(len: u64) -> Memory {
    let arena = private_arena(len, &[]);
    let heap_start = arena.heap_start();
    Memory::new(arena, heap_start, Arc::new(WindowTable::default()))
}
