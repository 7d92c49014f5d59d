//! Bells on Xen: event channels. One device file per bell, so that a bell is one descriptor to wait for, whatever peers
//! come and go; a port per peer, which carries both directions.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::error::XenError;
use super::sys::evtchn::Evtchn;
use crate::bell::{Ringer, Wire};

/// What rings a bell from other domains.
#[derive(Debug)]
pub struct Channel(Evtchn);

impl Channel {
    /// A channel without ports.
    ///
    /// # Errors
    /// [`XenError::NoDevice`] or [`XenError::Privilege`].
    pub fn open() -> Result<Self, XenError> {
        Evtchn::open().map(Self)
    }

    /// A port for `domain` to bind; until it does, ringing it has no effect.
    ///
    /// # Errors
    /// [`XenError::NoPort`].
    pub fn offer(self: &Arc<Self>, domain: u16) -> Result<Port, XenError> {
        let port = self.0.make_unbound(domain).map_err(|source| XenError::NoPort { domain, source })?;
        Ok(Port { channel: self.clone(), number: port })
    }

    /// Binds the port that `domain` has offered. It rings once, so that nothing from before is missed.
    ///
    /// # Errors
    /// [`XenError::NotBound`] if there is none for this domain, [`XenError::NoPort`].
    pub fn bind(self: &Arc<Self>, domain: u16, remote: u32) -> Result<Port, XenError> {
        let port = self.0.bind(domain, remote).map_err(|source| match Errno::from_io_error(&source) {
            Some(Errno::NOSPC | Errno::NOMEM) => XenError::NoPort { domain, source },
            _ => XenError::NotBound { domain, port: remote, source },
        })?;
        Ok(Port { channel: self.clone(), number: port })
    }

    /// Whether it has been rung since the last time it was asked; it can be rung again then.
    pub fn take_events(&self) -> bool {
        self.0.take_events()
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Wire for Channel {
    fn rearm(&self) {
        self.take_events();
    }
}

/// An end of an event channel. Closed when dropped: the peer's ringing then has no effect.
#[derive(Debug)]
pub struct Port {
    channel: Arc<Channel>,
    number: u32,
}

impl Port {
    /// Its number, by which a peer binds it.
    pub fn number(&self) -> u32 {
        self.number
    }
}

impl Ringer for Port {
    fn ring(&self) {
        // Ringing the dead succeeds; nothing else can be wrong with a port of our own.
        let _: io::Result<()> = self.channel.0.notify(self.number);
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // Nothing else can be wrong with a port of our own.
        let _: io::Result<()> = self.channel.0.close(self.number);
    }
}
