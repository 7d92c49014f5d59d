//! What a window saves: one granted page, mapped or copied for the occasion, as the classic split drivers do. For
//! measurements; nothing of the platform comes through here.

use std::os::fd::AsFd;

use rustix::mm::{MapFlags, ProtFlags};

use super::error::XenError;
use super::sys::PAGE_BYTES;
use super::sys::gntdev::Gntdev;

/// A granted page of another domain.
#[derive(Debug)]
pub struct ForeignPage {
    device: Gntdev,
    domain: u16,
    reference: u32,
}

impl ForeignPage {
    /// The page behind a reference. It is not looked at yet.
    ///
    /// # Errors
    /// [`XenError::NoDevice`] or [`XenError::Privilege`].
    pub fn of(domain: u16, reference: u32) -> Result<Self, XenError> {
        Ok(Self { device: Gntdev::open()?, domain, reference })
    }

    /// Maps it, reads its first word, unmaps it.
    ///
    /// # Errors
    /// [`XenError::System`].
    pub fn map_touch_unmap(&self) -> Result<u64, XenError> {
        let error = XenError::system("map one granted page");
        let index = self.device.announce(self.domain, &[self.reference]).map_err(&error)?;
        let (hint, bytes) = (std::ptr::null_mut(), PAGE_BYTES as usize);
        // SAFETY: a new mapping, at a place that the kernel picks.
        let mapped =
            unsafe { rustix::mm::mmap(hint, bytes, ProtFlags::READ, MapFlags::SHARED, self.device.as_fd(), index) };
        let at = mapped.map_err(|errno| error(errno.into()))?;
        // SAFETY: a word of the page just mapped; its owner may write it, so it is read as what nobody can rely on.
        let word = unsafe { at.cast::<u64>().read_volatile() };
        // SAFETY: the mapping from above, to which nothing refers.
        unsafe { rustix::mm::munmap(at, bytes) }.map_err(|errno| error(errno.into()))?;
        self.device.forget(index, 1).map_err(&error)?;
        Ok(word)
    }

    /// Lets Xen copy it (`GNTTABOP_copy`).
    ///
    /// # Errors
    /// [`XenError::BadReference`] if Xen refuses, [`XenError::System`].
    pub fn copy(&self, to: &mut [u8; PAGE_BYTES as usize]) -> Result<(), XenError> {
        let status = self.device.copy_page(self.domain, self.reference, to);
        match status.map_err(XenError::system("copy one granted page"))? {
            0 => Ok(()),
            status => Err(XenError::BadReference { domain: self.domain, page: 0, reference: self.reference, status }),
        }
    }
}
