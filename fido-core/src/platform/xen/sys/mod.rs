//! The kernel's Xen devices, as thin as can be: one file per device, with the numbers and structures of its public
//! header (`include/uapi/xen/*.h`, and `xen-tools/kmod/fido_arena.h` for ours) and one safe function per request.
//!
//! Nothing here knows what an arena is, and nothing is needed to build it: where there is no Xen, opening fails.

pub mod evtchn;
pub mod fido_arena;
pub mod gntalloc;
pub mod gntdev;
pub mod privcmd;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::error::XenError;

/// Bytes of a page, here and for Xen.
pub const PAGE_BYTES: u64 = 4096;

const NO_DIRECTION: u32 = 0;
const WRITE: u32 = 1;
const READ_AND_WRITE: u32 = 3;

/// A request's number, as `_IOC` of `asm-generic/ioctl.h` makes it.
const fn request(direction: u32, kind: u8, number: u8, size: usize) -> u32 {
    assert!(size < 1 << 14, "a structure of an ioctl is small");
    direction << 30 | (size as u32) << 16 | (kind as u32) << 8 | number as u32
}

/// Opens a device that the kernel module `module` provides; `write` as well as read it.
fn open(device: &'static str, module: &'static str, write: bool) -> Result<OwnedFd, XenError> {
    match File::options().read(true).write(write).open(device) {
        Ok(file) => Ok(file.into()),
        Err(source) if source.kind() == io::ErrorKind::PermissionDenied => Err(XenError::Privilege { device, source }),
        Err(source) => Err(XenError::NoDevice { device, module, source }),
    }
}

/// One request to a device; its result, or the kernel's error.
///
/// # Safety
/// `argument` must be what the device expects for this request: valid for reads and writes of the structure, and, for
/// those of variable size or with addresses inside, of all that the structure says is there.
unsafe fn ioctl<T>(fd: &OwnedFd, request: u32, argument: *mut T) -> io::Result<u32> {
    loop {
        // SAFETY: by the caller's promise.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::c_ulong::from(request), argument) };
        if result >= 0 {
            return Ok(result as u32);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// A buffer with the alignment of a structure of variable size: its fixed part, then an array.
fn words(bytes: usize) -> Vec<u64> {
    vec![0; bytes.div_ceil(8)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers that the headers of Linux 6.1 on x86-64 give, found with a C compiler.
    #[test]
    fn the_numbers_are_those_of_the_headers() {
        assert_eq!(gntalloc::ALLOCATE, 0x0018_4705);
        assert_eq!(gntdev::MAP, 0x0018_4700);
        assert_eq!(gntdev::UNMAP, 0x0010_4701);
        assert_eq!(gntdev::COPY, 0x0010_4708);
        #[cfg(not(feature = "libxen"))]
        assert_eq!(evtchn::BIND_INTERDOMAIN, 0x0008_4501);
        assert_eq!(evtchn::BIND_UNBOUND, 0x0004_4502);
        assert_eq!(evtchn::UNBIND, 0x0004_4503);
        assert_eq!(evtchn::NOTIFY, 0x0004_4504);
        assert_eq!(evtchn::RESET, 0x0000_4505);
        assert_eq!(privcmd::MAP_BATCH, 0x0020_5004);
    }

    #[test]
    fn without_xen_the_error_says_what_is_missing() {
        let Err(error) = open("/dev/xen/not-there", "xen-example", false) else { panic!("it was opened") };
        assert!(matches!(error, XenError::NoDevice { .. }), "{error}");
        assert!(error.to_string().contains("modprobe xen-example"));
    }
}
