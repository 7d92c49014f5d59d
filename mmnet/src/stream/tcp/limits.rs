//! What a port may use, and why it cannot be had.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::io::Errno;

use crate::stream::MAX_CONNECTIONS;

/// What one port may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time, 1 to 65536; further ones wait in the kernel's backlog until one closes.
    pub connections: usize,
    /// Bytes of one connection on loan before it is not read any more. As loans are counted by whole buffers, a
    /// reader that collects records needs its largest record plus two buffers.
    pub receive_bytes: u64,
    /// The largest receive buffer, 4 KiB to 4 MiB. A connection starts with a small one.
    pub buffer_bytes: usize,
    /// Connections that wait in the kernel to be accepted; the system's `somaxconn` caps it.
    pub backlog: i32,
    /// How long connections wait for a receive buffer, while nobody has had one, before one that holds some is reset;
    /// 10 ms to an hour. Then as long again before the next one.
    pub starve_patience: Duration,
}

/// What [`Limits::starve_patience`] may be.
const PATIENCE: std::ops::RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3600);

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            receive_bytes: 4 << 20,
            buffer_bytes: 256 << 10,
            backlog: 1024,
            starve_patience: Duration::from_secs(10),
        }
    }
}

impl Limits {
    pub(super) fn check(&self) -> Result<(), BindError> {
        let wrong = |what, value, range| Err(BindError::Limit { what, value, range });
        if !(1..=MAX_CONNECTIONS).contains(&self.connections) {
            return wrong("connections", self.connections as u64, "1 to 65536");
        }
        if !(4 << 10..=4 << 20).contains(&self.buffer_bytes) {
            return wrong("buffer_bytes", self.buffer_bytes as u64, "4 KiB to 4 MiB");
        }
        if self.receive_bytes < 2 * self.buffer_bytes as u64 {
            return wrong("receive_bytes", self.receive_bytes, "at least two buffers");
        }
        if self.backlog < 1 {
            return wrong("backlog", u64::from(self.backlog.unsigned_abs()), "at least 1");
        }
        if !PATIENCE.contains(&self.starve_patience) {
            let millis = u64::try_from(self.starve_patience.as_millis()).unwrap_or(u64::MAX);
            return wrong("starve_patience (ms)", millis, "10 ms to an hour");
        }
        Ok(())
    }
}

/// Why a port cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else listens there.
    #[error("{addr} is in use by another program; stop it or choose another port (0 takes any free one)")]
    InUse {
        /// Where it was to listen.
        addr: SocketAddr,
    },
    /// The system does not allow it.
    #[error("no permission to listen on {addr}; ports below {} need CAP_NET_BIND_SERVICE, choose a higher one", 1024)]
    Permission {
        /// Where it was to listen.
        addr: SocketAddr,
    },
    /// No interface has that address.
    #[error("no interface of this machine has the address of {addr}; use 127.0.0.1, 0.0.0.0 or an address it has")]
    NoSuchAddress {
        /// Where it was to listen.
        addr: SocketAddr,
    },
    /// A limit is out of range.
    #[error("limit {what} = {value}; it must be {range}")]
    Limit {
        /// Which.
        what: &'static str,
        /// What it was set to.
        value: u64,
        /// What it may be.
        range: &'static str,
    },
    /// Something else.
    #[error("cannot listen on {addr}: {source}")]
    Other {
        /// Where it was to listen.
        addr: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

impl BindError {
    pub(super) fn from_errno(addr: SocketAddr, errno: Errno) -> Self {
        match errno {
            Errno::ADDRINUSE => Self::InUse { addr },
            Errno::ACCESS | Errno::PERM => Self::Permission { addr },
            Errno::ADDRNOTAVAIL => Self::NoSuchAddress { addr },
            other => Self::Other { addr, source: other.into() },
        }
    }
}
