//! What the kernel says about a queue's requests: a mapping that only it writes.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

use super::command::{self, DESCRIPTOR_BYTES};

/// The descriptors of one queue, by tag.
#[derive(Debug)]
pub(super) struct Descriptors {
    start: NonNull<u8>,
    bytes: usize,
    count: u16,
}

// SAFETY: the mapping belongs to this value alone, and is only read, by atomics.
unsafe impl Send for Descriptors {}

impl Descriptors {
    /// Maps those of a queue of so many tags.
    pub(super) fn map(file: &File, queue: u16, count: u16) -> io::Result<Self> {
        let bytes = (usize::from(count) * DESCRIPTOR_BYTES).next_multiple_of(rustix::param::page_size());
        let at = command::descriptors_at(queue);
        // SAFETY: a new mapping at an address of the kernel's choice takes no memory of anybody's.
        let start =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, ProtFlags::READ, MapFlags::SHARED, file, at) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, bytes, count })
    }

    /// Operation and flags, sectors, and first sector of the request that has that tag.
    pub(super) fn get(&self, tag: u16) -> Option<(u32, u32, u64)> {
        if tag >= self.count {
            return None;
        }
        // SAFETY: the tag's descriptor lies within the mapping, which has `count` of them, each a multiple of 8 bytes
        // behind the page's start: aligned for all three. Nobody has a reference to it; the kernel may write at any time,
        // and these are atomic loads.
        unsafe {
            let at = self.start.as_ptr().add(usize::from(tag) * DESCRIPTOR_BYTES);
            // SYNC: the kernel has written them before the completion that the ring's tail (acquired) has shown.
            let word = |offset: usize| AtomicU32::from_ptr(at.add(offset).cast()).load(Ordering::Relaxed);
            Some((word(0), word(4), AtomicU64::from_ptr(at.add(8).cast()).load(Ordering::Relaxed)))
        }
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` and used by nobody any more. It cannot fail with these arguments.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
