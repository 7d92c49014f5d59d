//! Signals, as something a component's thread can wait for.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use fido_core::wait::{Source, WakeId};

/// Catches signals of one meaning.
#[derive(Debug)]
pub struct Signals {
    signals: OwnedFd,
    id: WakeId,
}

impl Signals {
    /// Catches SIGHUP (look again what the device is like) from now on, in this thread and in those that it starts. Call it before any thread
    /// is started: one that does not block a signal would die of it.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub fn hangup() -> io::Result<Self> {
        Self::catch(&[libc::SIGHUP])
    }

    /// Catches SIGTERM and SIGINT (come to an end) from now on, in this thread and in those that it starts. Call it before any thread
    /// is started: one that does not block a signal would die of it.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub fn end() -> io::Result<Self> {
        Self::catch(&[libc::SIGTERM, libc::SIGINT])
    }

    fn catch(signals: &[libc::c_int]) -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: `sigemptyset` initialises the set, and the other calls only read it. Blocking a signal runs no code.
        let fd = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in signals {
                libc::sigaddset(set.as_mut_ptr(), *signal);
            }
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else has.
        let signals = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { signals, id: WakeId::unique() })
    }

    /// Whether one has come since this was asked last.
    pub fn take(&mut self) -> bool {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        rustix::io::read(&self.signals, &mut info).is_ok()
    }
}

impl Source for Signals {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }

    fn wake_id(&self) -> Option<WakeId> {
        Some(self.id)
    }
}
