//! `/dev/xen/privcmd` (`xen/privcmd.h`): foreign mappings, for a privileged domain.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use super::{NO_DIRECTION, ioctl, open, request};
use crate::platform::xen::error::XenError;

/// Where it is.
pub const DEVICE: &str = "/dev/xen/privcmd";

/// `struct privcmd_mmapbatch_v2`.
#[repr(C)]
struct MapBatch {
    count: u32,
    domain: u16,
    pad: u16,
    address: u64,
    frames: u64,
    errors: u64,
}

/// `IOCTL_PRIVCMD_MMAPBATCH_V2`.
pub(super) const MAP_BATCH: u32 = request(NO_DIRECTION, b'P', 4, size_of::<MapBatch>());

/// The device, open for reading only: what is mapped through it cannot be made writable.
#[derive(Debug)]
pub struct Privcmd(OwnedFd);

impl Privcmd {
    /// Opens it.
    ///
    /// # Errors
    /// [`XenError::NoDevice`] or [`XenError::Privilege`].
    pub fn open() -> Result<Self, XenError> {
        open(DEVICE, "xen-privcmd", false).map(Self)
    }

    /// Puts pages of `domain` behind a mapping of this file, which must begin at `address` and have as many pages.
    /// Returns the position and error of the first page that is not there.
    ///
    /// # Errors
    /// The kernel's.
    ///
    /// # Safety
    /// The mapping must be the caller's own, and nobody may rely on what is in it.
    pub unsafe fn fill(&self, domain: u16, address: NonNull<u8>, frames: &[u64]) -> io::Result<Option<(usize, i32)>> {
        let mut errors = vec![0i32; frames.len()];
        let mut batch = MapBatch {
            count: u32::try_from(frames.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
            domain,
            pad: 0,
            address: address.as_ptr().expose_provenance() as u64,
            frames: frames.as_ptr().expose_provenance() as u64,
            errors: errors.as_mut_ptr().expose_provenance() as u64,
        };
        // SAFETY: the kernel reads `frames`, writes `errors`, both of `count` entries, and maps into the caller's range.
        let result = unsafe { ioctl(&self.0, MAP_BATCH, &raw mut batch) };
        let first = errors.iter().position(|error| *error != 0);
        match (result, first) {
            (_, Some(at)) => Ok(Some((at, errors[at]))),
            (Err(error), None) => Err(error),
            (Ok(_), None) => Ok(None),
        }
    }
}

impl AsFd for Privcmd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

const _: () = assert!(size_of::<MapBatch>() == 32);
