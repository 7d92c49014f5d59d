//! `/dev/xen/gntalloc` (`xen/gntalloc.h`): pages that are each granted to one domain.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{NO_DIRECTION, ioctl, open, request, words};
use crate::platform::xen::error::XenError;

/// Where it is.
pub const DEVICE: &str = "/dev/xen/gntalloc";
/// How many pages it gives to all its users together; a setting of the module.
pub const LIMIT: &str = "/sys/module/xen_gntalloc/parameters/limit";

/// `struct ioctl_gntalloc_alloc_gref`, up to its array.
#[repr(C)]
struct Allocate {
    domain: u16,
    flags: u16,
    count: u32,
    index: u64,
}

/// What the array adds to the structure in the request's number: one entry, padded.
const ENTRY: usize = 8;
/// `IOCTL_GNTALLOC_ALLOC_GREF`.
pub(super) const ALLOCATE: u32 = request(NO_DIRECTION, b'G', 5, size_of::<Allocate>() + ENTRY);

/// The device, with the pages that were allocated through this file. They are freed when it is closed, nothing of it is
/// mapped here, and the domain has unmapped them.
#[derive(Debug)]
pub struct Gntalloc(OwnedFd);

impl Gntalloc {
    /// Opens it.
    ///
    /// # Errors
    /// [`XenError::NoDevice`] or [`XenError::Privilege`].
    pub fn open() -> Result<Self, XenError> {
        open(DEVICE, "xen-gntalloc", true).map(Self)
    }

    /// Allocates pages that `domain` may read. Returns where in the file they can be mapped, and their references.
    ///
    /// # Errors
    /// The kernel's: `ENOSPC` if its limit or the grant table does not give so many.
    pub fn allocate(&self, domain: u16, count: u32) -> io::Result<(u64, Vec<u32>)> {
        let mut buffer = words(size_of::<Allocate>() + count.max(2) as usize * size_of::<u32>());
        let head: *mut Allocate = buffer.as_mut_ptr().cast();
        // SAFETY: the buffer is aligned to 8 bytes and has room for the head.
        unsafe { head.write(Allocate { domain, flags: 0, count, index: 0 }) };
        // SAFETY: the kernel reads the head, and writes it and `count` references behind it: all within the buffer.
        unsafe { ioctl(&self.0, ALLOCATE, head)? };
        // SAFETY: still the head, initialised above and perhaps changed by the kernel.
        let index = unsafe { (*head).index };
        let array: *const u32 = head.wrapping_add(1).cast();
        // SAFETY: `count` references lie behind the head, within the buffer, whose every byte is initialised.
        let references = unsafe { std::slice::from_raw_parts(array, count as usize) }.to_vec();
        Ok((index, references))
    }
}

impl AsFd for Gntalloc {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

const _: () = assert!(size_of::<Allocate>() == 16);
