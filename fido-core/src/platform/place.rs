//! Where arenas lie in a process: the *pseudo-global address space*, the range of 64 TiB from [`PSEUDO_GLOBAL_BASE`] on,
//! with two places of 8 GiB for each slot (odd and even generations, so that a dead incarnation and its successor can
//! both be mapped). Where the place is taken or too small, the kernel picks another and addresses are translated.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags};

use crate::addr::{DomainId, Slot};

/// Where the pseudo-global address space begins.
pub const PSEUDO_GLOBAL_BASE: usize = 0x1000_0000_0000;
/// The room for one incarnation of one slot, in bytes.
pub const PLACE_BYTES: u64 = (64 << 40) / (2 * Slot::COUNT as u64);

/// Where an incarnation's arena belongs in every process.
pub fn pseudo_global_place(id: DomainId) -> usize {
    let place = usize::from(id.slot.number()) * 2 + usize::from(id.generation.number() & 1);
    PSEUDO_GLOBAL_BASE + place * PLACE_BYTES as usize
}

/// A mapping that is undone when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    pub(super) base: NonNull<u8>,
    pub(super) len: usize,
}

// SAFETY: an address range that this value owns; it gives out no references.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Its first byte.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map` or `reserve` and nothing refers to it any more: windows and arenas own
        // their mapping. Failure is impossible for a range that is mapped, and would only leak it.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Maps a file from `offset` on, at the incarnation's place if that is possible, else anywhere.
pub(super) fn map(fd: BorrowedFd<'_>, offset: u64, id: DomainId, len: u64, access: ProtFlags) -> io::Result<Mapping> {
    // SAFETY: a new mapping of a file; the flags never replace an existing one.
    at_place(id, len, |hint, bytes, flags| unsafe {
        rustix::mm::mmap(hint, bytes, access, flags | MapFlags::SHARED, fd, offset)
    })
}

/// Maps a file from `offset` on, wherever there is room.
pub(super) fn map_anywhere(fd: BorrowedFd<'_>, offset: u64, len: u64, access: ProtFlags) -> io::Result<Mapping> {
    // SAFETY: a new mapping of a file, at a place that the kernel picks.
    attempt(len, 0, MapFlags::SHARED, |hint, bytes, flags| unsafe {
        rustix::mm::mmap(hint, bytes, access, flags, fd, offset)
    })
}

/// Maps a file writable over a part of what was reserved: `len` bytes from byte `at` on, in whole pages.
pub(crate) fn map_writable_over(
    reserved: &Mapping,
    at: u64,
    len: u64,
    fd: BorrowedFd<'_>,
    offset: u64,
) -> io::Result<()> {
    let end = at.checked_add(len).and_then(|end| usize::try_from(end).ok());
    if end.is_none_or(|end| end > reserved.len) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: inside the reserved range, by the check above.
    let place = unsafe { reserved.base.add(at as usize) }.as_ptr().cast();
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: replaces nothing but a part of the range that the caller has reserved and that nobody uses yet.
    unsafe { rustix::mm::mmap(place, len as usize, access, MapFlags::SHARED | MapFlags::FIXED, fd, offset) }?;
    Ok(())
}

/// Addresses without memory, at the incarnation's place if that is possible, else anywhere: to be mapped over in parts.
pub(super) fn reserve(id: DomainId, len: u64) -> io::Result<Mapping> {
    // SAFETY: the flags never replace an existing mapping.
    at_place(id, len, |hint, bytes, flags| unsafe { blank(hint, bytes, flags) })
}

/// Addresses without memory, wherever there are any.
pub(crate) fn reserve_anywhere(len: u64) -> io::Result<Mapping> {
    // SAFETY: new addresses that cannot be accessed, at a place that the kernel picks.
    attempt(len, 0, MapFlags::empty(), |hint, bytes, flags| unsafe { blank(hint, bytes, flags) })
}

/// # Safety
/// `flags` must not let it replace an existing mapping.
unsafe fn blank(hint: Address, bytes: usize, flags: MapFlags) -> rustix::io::Result<Address> {
    // SAFETY: by the caller's promise nothing but new addresses, which cannot be accessed.
    unsafe {
        rustix::mm::mmap_anonymous(hint, bytes, ProtFlags::empty(), flags | MapFlags::PRIVATE | MapFlags::NORESERVE)
    }
}

type Address = *mut std::ffi::c_void;

fn at_place(
    id: DomainId,
    len: u64,
    map: impl Fn(Address, usize, MapFlags) -> rustix::io::Result<Address>,
) -> io::Result<Mapping> {
    if len <= PLACE_BYTES
        && let Ok(mapping) = attempt(len, pseudo_global_place(id), MapFlags::FIXED_NOREPLACE, &map)
    {
        return Ok(mapping);
    }
    attempt(len, 0, MapFlags::empty(), map)
}

fn attempt(
    len: u64,
    address: usize,
    flags: MapFlags,
    map: impl Fn(Address, usize, MapFlags) -> rustix::io::Result<Address>,
) -> io::Result<Mapping> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    let base = map(std::ptr::with_exposed_provenance_mut(address), len, flags)?;
    Ok(Mapping { base: NonNull::new(base.cast()).ok_or(io::ErrorKind::Other)?, len })
}
