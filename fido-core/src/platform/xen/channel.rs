//! Bells on Xen: event channels. One device file per bell, so that a bell is one descriptor to wait for, whatever peers
//! come and go; a port per peer, which carries both directions.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::error::XenError;
#[cfg(feature = "libxen")]
use super::libxen::events::{Bound, LibraryPort};
use super::sys::evtchn::Evtchn;
use crate::bell::{Ringer, Wire};

/// What rings a bell from other domains.
#[derive(Debug)]
pub struct Channel {
    device: Evtchn,
    /// Ports of other domains that are bound through Xen's library.
    #[cfg(feature = "libxen")]
    bound: Bound,
}

impl Channel {
    /// A channel without ports.
    ///
    /// # Errors
    /// [`XenError::NoDevice`] or [`XenError::Privilege`].
    pub fn open() -> Result<Self, XenError> {
        let device = Evtchn::open()?;
        #[cfg(feature = "libxen")]
        let bound = Bound::beside(device.as_fd()).map_err(XenError::system("make a set of event channels"))?;
        Ok(Self {
            device,
            #[cfg(feature = "libxen")]
            bound,
        })
    }

    /// A port for `domain` to bind; until it does, ringing it has no effect.
    ///
    /// # Errors
    /// [`XenError::NoPort`].
    pub fn offer(self: &Arc<Self>, domain: u16) -> Result<Port, XenError> {
        let number = self.device.make_unbound(domain).map_err(|source| XenError::NoPort { domain, source })?;
        Ok(Port::of_device(self, number))
    }

    /// Binds the port that `domain` has offered. It rings once, so that nothing from before is missed.
    ///
    /// # Errors
    /// [`XenError::NotBound`] if there is none for this domain, [`XenError::NoPort`].
    pub fn bind(self: &Arc<Self>, domain: u16, remote: u32) -> Result<Port, XenError> {
        self.bind_port(domain, remote).map_err(|source| match Errno::from_io_error(&source) {
            Some(Errno::NOSPC | Errno::NOMEM) => XenError::NoPort { domain, source },
            _ => XenError::NotBound { domain, port: remote, source },
        })
    }

    #[cfg(not(feature = "libxen"))]
    fn bind_port(self: &Arc<Self>, domain: u16, remote: u32) -> io::Result<Port> {
        Ok(Port::of_device(self, self.device.bind(domain, remote)?))
    }

    #[cfg(feature = "libxen")]
    fn bind_port(self: &Arc<Self>, domain: u16, remote: u32) -> io::Result<Port> {
        Ok(Port(End::Library(self.bound.bind(domain, remote)?)))
    }

    /// Whether it has been rung since the last time it was asked; it can be rung again then.
    pub fn take_events(&self) -> bool {
        let any = self.device.take_events();
        #[cfg(feature = "libxen")]
        let any = self.bound.take_events() || any;
        any
    }
}

impl AsFd for Channel {
    #[cfg(not(feature = "libxen"))]
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    #[cfg(feature = "libxen")]
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bound.as_fd()
    }
}

impl Wire for Channel {
    fn rearm(&self) {
        self.take_events();
    }
}

/// An end of an event channel. Closed when dropped: the peer's ringing then has no effect.
#[derive(Debug)]
pub struct Port(End);

/// Through which file it was made.
#[derive(Debug)]
enum End {
    Device(DevicePort),
    #[cfg(feature = "libxen")]
    Library(Arc<LibraryPort>),
}

impl Port {
    fn of_device(channel: &Arc<Channel>, number: u32) -> Self {
        Self(End::Device(DevicePort { channel: channel.clone(), number }))
    }

    /// Its number, by which a peer binds it.
    pub fn number(&self) -> u32 {
        match &self.0 {
            End::Device(port) => port.number,
            #[cfg(feature = "libxen")]
            End::Library(port) => port.number(),
        }
    }
}

impl Ringer for Port {
    fn ring(&self) {
        // Ringing the dead succeeds; nothing else can be wrong with a port of our own.
        let _: io::Result<()> = match &self.0 {
            End::Device(port) => port.channel.device.notify(port.number),
            #[cfg(feature = "libxen")]
            End::Library(port) => port.notify(),
        };
    }
}

/// A port of the channel's own file.
#[derive(Debug)]
struct DevicePort {
    channel: Arc<Channel>,
    number: u32,
}

impl Drop for DevicePort {
    fn drop(&mut self) {
        // Nothing else can be wrong with a port of our own.
        let _: io::Result<()> = self.channel.device.close(self.number);
    }
}
