//! `/dev/xen/gntdev` (`xen/gntdev.h`): maps pages that other domains have granted to this one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{NO_DIRECTION, PAGE_BYTES, ioctl, open, request, words};
use crate::platform::xen::error::XenError;

/// Where it is.
pub const DEVICE: &str = "/dev/xen/gntdev";
/// The most references of one request: the kernel's limit.
pub const MAX_REFERENCES: usize = 65536;

/// `struct ioctl_gntdev_map_grant_ref`, up to its array.
#[repr(C)]
struct Map {
    count: u32,
    pad: u32,
    index: u64,
}

/// `struct ioctl_gntdev_grant_ref`.
#[repr(C)]
struct Reference {
    domain: u32,
    reference: u32,
}

/// `struct ioctl_gntdev_unmap_grant_ref`.
#[repr(C)]
struct Unmap {
    index: u64,
    count: u32,
    pad: u32,
}

/// `struct gntdev_grant_copy_segment`, from a granted page into own memory.
#[repr(C)]
struct Segment {
    reference: u32,
    offset: u16,
    domain: u16,
    to: u64,
    len: u16,
    flags: u16,
    status: i16,
    pad: u16,
}

/// `struct ioctl_gntdev_grant_copy`.
#[repr(C)]
struct Copy {
    count: u32,
    pad: u32,
    segments: u64,
}

/// `GNTCOPY_source_gref`.
const SOURCE_IS_GRANT: u16 = 1;
/// How many pages are probed at once.
const PROBES: usize = 256;

/// `IOCTL_GNTDEV_MAP_GRANT_REF`.
pub(super) const MAP: u32 = request(NO_DIRECTION, b'G', 0, size_of::<Map>() + size_of::<Reference>());
/// `IOCTL_GNTDEV_UNMAP_GRANT_REF`.
pub(super) const UNMAP: u32 = request(NO_DIRECTION, b'G', 1, size_of::<Unmap>());
/// `IOCTL_GNTDEV_GRANT_COPY`.
pub(super) const COPY: u32 = request(NO_DIRECTION, b'G', 8, size_of::<Copy>());

/// The device, open for reading only: nothing that is mapped through it can ever be made writable.
#[derive(Debug)]
pub struct Gntdev(OwnedFd);

impl Gntdev {
    /// Opens it.
    ///
    /// # Errors
    /// [`XenError::NoDevice`] or [`XenError::Privilege`].
    pub fn open() -> Result<Self, XenError> {
        open(DEVICE, "xen-gntdev", false).map(Self)
    }

    /// Announces pages of `domain`, at most [`MAX_REFERENCES`]. Returns where in the file they can be mapped, once.
    ///
    /// # Errors
    /// The kernel's. What Xen thinks of the references shows only when they are mapped.
    pub fn announce(&self, domain: u16, references: &[u32]) -> io::Result<u64> {
        let count = u32::try_from(references.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut buffer = words(size_of::<Map>() + references.len() * size_of::<Reference>());
        let head: *mut Map = buffer.as_mut_ptr().cast();
        // SAFETY: the buffer is aligned to 8 bytes and has room for the head.
        unsafe { head.write(Map { count, pad: 0, index: 0 }) };
        let entries: *mut Reference = head.wrapping_add(1).cast();
        for (at, reference) in references.iter().enumerate() {
            let entry = Reference { domain: domain.into(), reference: *reference };
            // SAFETY: the buffer has room for all entries behind the head.
            unsafe { entries.add(at).write(entry) };
        }
        // SAFETY: the kernel reads the head and `count` entries behind it, and writes the head: all within the buffer.
        unsafe { ioctl(&self.0, MAP, head)? };
        // SAFETY: still the head.
        Ok(unsafe { (*head).index })
    }

    /// Forgets pages that were announced and are not mapped any more.
    ///
    /// # Errors
    /// The kernel's.
    pub fn forget(&self, index: u64, count: u32) -> io::Result<()> {
        let mut unmap = Unmap { index, count, pad: 0 };
        // SAFETY: the structure of this request.
        unsafe { ioctl(&self.0, UNMAP, &raw mut unmap).map(drop) }
    }

    /// Lets Xen copy a page. Returns Xen's status.
    ///
    /// # Errors
    /// The kernel's.
    pub fn copy_page(&self, domain: u16, reference: u32, to: &mut [u8; PAGE_BYTES as usize]) -> io::Result<i16> {
        let mut segments = [Segment::new(domain, reference, to.as_mut_ptr(), to.len() as u16)];
        // SAFETY: the segment's target is the caller's page, exclusively borrowed.
        unsafe { self.copy(&mut segments)? };
        Ok(segments[0].status)
    }

    /// Lets Xen copy a byte of each page, to find one that cannot be read: its position, and Xen's status. Nothing is
    /// mapped for that.
    ///
    /// # Errors
    /// The kernel's.
    pub fn find_refused(&self, domain: u16, references: &[u32]) -> io::Result<Option<(usize, i16)>> {
        let mut byte = 0u8;
        for (at, part) in references.chunks(PROBES).enumerate() {
            let segment = |reference: &u32| Segment::new(domain, *reference, &raw mut byte, 1);
            let mut segments: Vec<Segment> = part.iter().map(segment).collect();
            // SAFETY: all segments' target is `byte`, which nobody else uses.
            unsafe { self.copy(&mut segments)? };
            if let Some(bad) = segments.iter().position(|segment| segment.status != 0) {
                return Ok(Some((at * PROBES + bad, segments[bad].status)));
            }
        }
        Ok(None)
    }

    /// # Safety
    /// The segments' targets must be valid for writes.
    unsafe fn copy(&self, segments: &mut [Segment]) -> io::Result<()> {
        let at = segments.as_mut_ptr().expose_provenance() as u64;
        let mut copy = Copy { count: segments.len() as u32, pad: 0, segments: at };
        // SAFETY: the kernel reads the segments and writes their status, and to their targets, by the caller's promise.
        unsafe { ioctl(&self.0, COPY, &raw mut copy).map(drop) }
    }
}

impl Segment {
    fn new(domain: u16, reference: u32, to: *mut u8, len: u16) -> Self {
        let to = to.expose_provenance() as u64;
        Self { reference, offset: 0, domain, to, len, flags: SOURCE_IS_GRANT, status: 0, pad: 0 }
    }
}

impl AsFd for Gntdev {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

const _: () = assert!(size_of::<Map>() == 16 && size_of::<Reference>() == 8 && size_of::<Unmap>() == 16);
const _: () = assert!(size_of::<Segment>() == 24 && size_of::<Copy>() == 16);
