//! `/dev/xen/evtchn` (`xen/evtchn.h`): event channels.
//!
//! A port that has fired stays masked until it is written back, so a reader that does not take its events gets no more
//! of them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::{NO_DIRECTION, ioctl, open, request};
use crate::platform::xen::error::XenError;

/// Where it is.
pub const DEVICE: &str = "/dev/xen/evtchn";

/// `IOCTL_EVTCHN_BIND_INTERDOMAIN`.
#[cfg(not(feature = "libxen"))]
pub(super) const BIND_INTERDOMAIN: u32 = request(NO_DIRECTION, b'E', 1, 8);
/// `IOCTL_EVTCHN_BIND_UNBOUND_PORT`.
pub(super) const BIND_UNBOUND: u32 = request(NO_DIRECTION, b'E', 2, 4);
/// `IOCTL_EVTCHN_UNBIND`.
pub(super) const UNBIND: u32 = request(NO_DIRECTION, b'E', 3, 4);
/// `IOCTL_EVTCHN_NOTIFY`.
pub(super) const NOTIFY: u32 = request(NO_DIRECTION, b'E', 4, 4);
/// `IOCTL_EVTCHN_RESET`.
pub(super) const RESET: u32 = request(NO_DIRECTION, b'E', 5, 0);

/// The device, with the ports that were made through this file. They are closed with it. Readable when one of them has
/// fired.
#[derive(Debug)]
pub struct Evtchn(OwnedFd);

impl Evtchn {
    /// Opens it. Reading never blocks.
    ///
    /// # Errors
    /// [`XenError::NoDevice`] or [`XenError::Privilege`].
    pub fn open() -> Result<Self, XenError> {
        let fd = open(DEVICE, "xen-evtchn", true)?;
        let nonblocking = |fd: &OwnedFd| {
            let flags = rustix::fs::fcntl_getfl(fd)?;
            rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)
        };
        nonblocking(&fd)
            .map_err(|errno| XenError::System { step: "set up the event channel device", source: errno.into() })?;
        Ok(Self(fd))
    }

    /// A new port that only `remote` can bind.
    ///
    /// # Errors
    /// The kernel's: `ENOSPC` if there is no port left.
    pub fn make_unbound(&self, remote: u16) -> io::Result<u32> {
        let mut remote = u32::from(remote);
        // SAFETY: the structure of this request: one word.
        unsafe { ioctl(&self.0, BIND_UNBOUND, &raw mut remote) }
    }

    /// A new port, bound to an unbound one of `remote`. (With `libxen`, that library's part.)
    ///
    /// # Errors
    /// The kernel's: `EINVAL` if `remote` has no such port for this domain, `ESRCH` if there is no such domain.
    #[cfg(not(feature = "libxen"))]
    pub fn bind(&self, remote: u16, port: u32) -> io::Result<u32> {
        let mut words = [u32::from(remote), port];
        // SAFETY: the structure of this request: two words.
        unsafe { ioctl(&self.0, BIND_INTERDOMAIN, words.as_mut_ptr()) }
    }

    /// Closes a port.
    ///
    /// # Errors
    /// The kernel's.
    pub fn close(&self, port: u32) -> io::Result<()> {
        let mut port = port;
        // SAFETY: the structure of this request: one word.
        unsafe { ioctl(&self.0, UNBIND, &raw mut port).map(drop) }
    }

    /// Fires the other end of a port. Succeeds if it is dead, or not bound yet.
    ///
    /// # Errors
    /// The kernel's, if the port is not one of this file.
    pub fn notify(&self, port: u32) -> io::Result<()> {
        let mut port = port;
        // SAFETY: the structure of this request: one word.
        unsafe { ioctl(&self.0, NOTIFY, &raw mut port).map(drop) }
    }

    /// Takes the events so far and lets the ports fire again. Returns whether there were any.
    pub fn take_events(&self) -> bool {
        let mut any = false;
        let mut ports = [0; 64 * 4];
        loop {
            match rustix::io::read(&self.0, &mut ports) {
                Ok(0) | Err(Errno::AGAIN) => return any,
                Ok(count) => {
                    any = true;
                    // A port that has been closed meanwhile is passed over by the kernel.
                    let _ = rustix::io::write(&self.0, ports.get(..count).unwrap_or_default());
                    // Fewer than there is room for are all. What comes later makes the file readable anew.
                    if count < ports.len() {
                        return any;
                    }
                }
                Err(Errno::INTR) => {}
                // More events than the kernel remembers: all ports have fired, for all that is known. It cannot happen
                // with as many ports as it has room for.
                Err(_) => {
                    // SAFETY: this request takes no argument.
                    let _ = unsafe { ioctl(&self.0, RESET, std::ptr::null_mut::<u32>()) };
                    return true;
                }
            }
        }
    }
}

impl AsFd for Evtchn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
