//! Memory that both sides write, made for the peers of the comparison only: Fido itself has none.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

use super::end::{SLOTS, Side};
use crate::Failure;

/// A slot of the foreign rings: 60 bytes of message and a flag, which only one of them uses. Seven words of the message,
/// then its last half word with the flag above it.
#[repr(C, align(64))]
pub struct Slot {
    /// The first 56 bytes of the message.
    pub words: [AtomicU64; 7],
    /// The last 4 bytes of the message, and the flag.
    pub last: AtomicU64,
}

/// One direction of a foreign ring.
#[repr(C)]
pub struct Array {
    /// The messages.
    pub slots: [Slot; SLOTS as usize],
}

/// An index alone on its cache line.
#[repr(C, align(64))]
pub struct Index(pub AtomicU32);

/// One direction of the ring with shared indices.
#[repr(C)]
pub struct Indexed {
    /// How many messages have been sent.
    pub sent: Index,
    /// How many have been received.
    pub received: Index,
    /// The messages.
    pub array: Array,
}

/// Everything; each pair has what the leading side sends first.
#[repr(C)]
pub struct Layout {
    /// The ring whose consumer clears the slot's flag.
    pub flagged: [Array; 2],
    /// The ring with shared indices.
    pub indexed: [Indexed; 2],
    /// Words to sleep on.
    pub futexes: [Index; 2],
}

/// A mapping of the shared memory.
#[derive(Debug)]
pub struct Shared {
    base: NonNull<Layout>,
}

// SAFETY: the mapping consists of atomics only.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// The file behind it, all zeros.
    pub fn create() -> Result<OwnedFd, Failure> {
        let file = rustix::fs::memfd_create("fido-bench-peers", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, size_of::<Layout>() as u64)?;
        Ok(file)
    }

    /// Maps the file, writable.
    pub fn map(file: BorrowedFd<'_>) -> Result<Self, Failure> {
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping wherever the kernel likes.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                size_of::<Layout>(),
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
                file,
                0,
            )?
        };
        Ok(Self { base: NonNull::new(base.cast()).ok_or("mapped at 0")? })
    }

    /// What is in it.
    pub fn layout(&self) -> &Layout {
        // SAFETY: mapped for its whole size, page-aligned, and atomics only.
        unsafe { self.base.as_ref() }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing refers to it any more. A failure leaves it mapped.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), size_of::<Layout>()) };
    }
}

/// Which of a pair a side writes, and which it reads.
pub fn directions(side: Side) -> (usize, usize) {
    if side == Side::Lead { (0, 1) } else { (1, 0) }
}
