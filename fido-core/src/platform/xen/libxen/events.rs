//! Bound ports, each with a handle of Xen's library of its own, and a set that makes one descriptor of them all.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::OFlags;
use xenevtchn::XenEventChannel;

/// A port that is bound to a peer's. Closed when dropped.
#[derive(Debug)]
pub struct LibraryPort {
    handle: XenEventChannel,
    number: u32,
}

// SAFETY: the library's handle is a descriptor and its place in a list that the library guards by a lock of its own; the
// requests that are made here (read, write and ioctl of the descriptor) may come from any thread.
unsafe impl Send for LibraryPort {}
// SAFETY: as above: none of the requests changes the handle.
unsafe impl Sync for LibraryPort {}

impl LibraryPort {
    fn bind(domain: u16, remote: u32) -> io::Result<Self> {
        let handle =
            XenEventChannel::new(domain.into(), remote).map_err(|error| match error.downcast::<io::Error>() {
                Ok(error) => *error,
                // The library or one of its functions is not there.
                Err(other) => io::Error::new(io::ErrorKind::NotFound, other.to_string()),
            })?;
        let number = u32::try_from(handle.get_bind_port()).map_err(|_| io::ErrorKind::InvalidData)?;
        let port = Self { handle, number };
        let fd = port.fd()?;
        // Else the library would wait for an event where it is to take one.
        rustix::fs::fcntl_setfl(fd, rustix::fs::fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
        Ok(port)
    }

    fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        let fd = self.handle.xenevtchn_fd()?;
        if fd < 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // SAFETY: the descriptor of the handle, which is open as long as the handle is.
        Ok(unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Fires the other end. Succeeds if it is dead.
    ///
    /// # Errors
    /// The kernel's.
    pub fn notify(&self) -> io::Result<()> {
        self.handle.xenevtchn_notify()
    }

    /// Takes what has come and lets more come; whether there was something.
    fn take_event(&self) -> bool {
        let Ok(port) = self.handle.xenevtchn_pending() else { return false };
        let _ = self.handle.xenevtchn_unmask(port as _);
        true
    }
}

/// The bound ports of a bell. Readable when one of them has fired, or what else is in the set.
#[derive(Debug)]
pub struct Bound {
    set: OwnedFd,
    ports: Mutex<Vec<Weak<LibraryPort>>>,
}

impl Bound {
    /// None yet; `other` is a descriptor that is to be heard, too.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub fn beside(other: BorrowedFd<'_>) -> io::Result<Self> {
        let set = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&set, other, EventData::new_u64(0), EventFlags::IN)?;
        Ok(Self { set, ports: Mutex::default() })
    }

    /// Binds the port that `domain` has made.
    ///
    /// # Errors
    /// The kernel's, or that Xen's library is missing.
    pub fn bind(&self, domain: u16, remote: u32) -> io::Result<Arc<LibraryPort>> {
        let port = Arc::new(LibraryPort::bind(domain, remote)?);
        // A handle that is closed leaves the set by itself.
        epoll::add(&self.set, port.fd()?, EventData::new_u64(0), EventFlags::IN)?;
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.retain(|port| port.strong_count() > 0);
        ports.push(Arc::downgrade(&port));
        Ok(port)
    }

    /// Takes the events so far and lets the ports fire again. Returns whether there were any.
    pub fn take_events(&self) -> bool {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        // All of them, not up to the first.
        ports.iter().filter_map(Weak::upgrade).filter(|port| port.take_event()).count() > 0
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.set.as_fd()
    }
}
