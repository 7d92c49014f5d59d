//! A disk on another machine, or in another program: the client of any NBD server, by TCP or Unix socket.
//!
//! * Requests are pipelined up to the depth, and answered in any order. Payload goes to the socket from the windows and is
//!   received straight into the own arena, from where it is lent.
//! * When the connection breaks, a thread of its own connects again, for as long as [`NbdOptions::patience`]; then all
//!   unfinished requests are sent again, in the order of their submission: the caller sees a pause. That is harmless, as it
//!   is for a lane ([`crate::link`]): nothing has been said of them. If nobody answers in time, they fail with the system's
//!   error; a later request tries anew.
//! * What the server cannot do is left to what it can: without FUA, a durable write is a write and a flush. Without a
//!   flush there is nothing to flush.
//! * One queue is one connection. A server that does not say that a flush covers all connections gives one queue only.
//! * Nothing that the server says is believed: a reply that makes no sense ends the connection, as a broken one; one
//!   that does so again and again fails the requests.
//!
//! TLS is left out: put a tunnel before it where the network is not trusted. What is durable on the other side is the
//! other side's promise.

mod attempt;
mod connect;
pub mod fuzzing;
mod queue;
mod replies;
mod table;
mod wake;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fido_core::memory::Memory;

use crate::nbd::ExportFlags;
use crate::nbd::haggling::BlockSizes;
use crate::nbd::place::Uri;
use crate::queue::{Features, Geometry, GeometryError, MAX_PREFERRED_BYTES, MAX_REQUEST_BYTES};
pub use queue::NbdQueue;

/// How to use a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdOptions {
    /// The block size to show; the server's, if that is greater.
    pub block: u32,
    /// Requests in flight on each queue.
    pub depth: u32,
    /// How long a connection and its negotiation may take.
    pub timeout: Duration,
    /// For how long to try to connect again.
    pub patience: Duration,
    /// The most bytes of the arena for what a queue has read and its users hold; at least 8 MiB.
    pub buffers: usize,
}

impl Default for NbdOptions {
    fn default() -> Self {
        Self {
            block: 512,
            depth: 64,
            timeout: Duration::from_secs(5),
            patience: Duration::from_secs(30),
            buffers: 32 << 20,
        }
    }
}

/// Why there is no such device.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// Nobody answers there, or not in time.
    #[error("{uri}: {error}")]
    Io {
        /// The export.
        uri: Uri,
        /// What the system says.
        error: io::Error,
    },
    /// What answers is no NBD server, or one that does not keep to the protocol.
    #[error("{uri}: it does not speak NBD as we do: {what}")]
    Protocol {
        /// The export.
        uri: Uri,
        /// What it said.
        what: String,
    },
    /// The server refuses.
    #[error("{uri}: the server refuses (error {code:#x}): {message}")]
    Refused {
        /// The export.
        uri: Uri,
        /// The protocol's number.
        code: u32,
        /// What the server says of it.
        message: String,
    },
    /// It takes only requests that are smaller than ours.
    #[error("{uri}: the server takes requests of {max} bytes at most; {MAX_REQUEST_BYTES} are needed")]
    Requests {
        /// The export.
        uri: Uri,
        /// The server's limit.
        max: u32,
    },
    /// Its size or the options are beyond the limits.
    #[error("{uri}: {error}")]
    Geometry {
        /// The export.
        uri: Uri,
        /// What is beyond.
        error: GeometryError,
    },
    /// The server does not say that a flush covers all connections, so there can be one queue only.
    #[error("{uri}: the server allows one connection at a time, and so one queue")]
    OneQueue {
        /// The export.
        uri: Uri,
    },
}

/// A connection after its negotiation.
#[derive(Debug)]
struct Connected {
    socket: OwnedFd,
    bytes: u64,
    flags: ExportFlags,
    sizes: BlockSizes,
    structured: bool,
    /// The number of the metadata context that says what is allocated.
    allocation: Option<u32>,
}

/// What all queues of a device share.
#[derive(Debug)]
struct Shared {
    uri: Uri,
    options: NbdOptions,
    geometry: Geometry,
    features: Features,
    flags: ExportFlags,
    /// The first connection, until a queue takes it.
    first: Mutex<Option<Connected>>,
}

/// An export of an NBD server.
#[derive(Debug, Clone)]
pub struct NbdDevice(Arc<Shared>);

impl NbdDevice {
    /// Connects and asks what the export is like.
    ///
    /// # Errors
    /// [`NbdError`], which names the export.
    pub fn connect(uri: &Uri, options: &NbdOptions) -> Result<Self, NbdError> {
        let first = connect::connect(uri, options.timeout)?;
        let (geometry, features) = look(&first, uri, options)?;
        let flags = first.flags;
        let (uri, options, first) = (uri.clone(), options.clone(), Mutex::new(Some(first)));
        Ok(Self(Arc::new(Shared { uri, options, geometry, features, flags, first })))
    }

    /// What the device is like.
    pub fn geometry(&self) -> Geometry {
        self.0.geometry
    }

    /// What it can do.
    pub fn features(&self) -> Features {
        self.0.features
    }

    /// A queue on it, with a connection of its own, which lends buffers of `memory` and translates with it.
    ///
    /// # Errors
    /// [`NbdError`] if there can be no other, or the connection fails.
    pub fn queue(&self, memory: Memory) -> Result<NbdQueue, NbdError> {
        let first = self.0.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let connected = match first {
            Some(first) => first,
            None if self.0.flags.contains(ExportFlags::CAN_MULTI_CONN) => {
                connect::connect(&self.0.uri, self.0.options.timeout)?
            }
            None => return Err(NbdError::OneQueue { uri: self.0.uri.clone() }),
        };
        NbdQueue::new(self.0.clone(), connected, memory)
            .map_err(|error| NbdError::Io { uri: self.0.uri.clone(), error })
    }
}

/// What an export is like, for us.
fn look(found: &Connected, uri: &Uri, options: &NbdOptions) -> Result<(Geometry, Features), NbdError> {
    let uri = || uri.clone();
    if found.sizes.max < MAX_REQUEST_BYTES {
        return Err(NbdError::Requests { uri: uri(), max: found.sizes.max });
    }
    let failed = |error| NbdError::Geometry { uri: uri(), error };
    let block = options.block.max(found.sizes.min);
    let bytes = if block == 0 { 0 } else { found.bytes - found.bytes % u64::from(block) };
    let geometry = Geometry { bytes, block, depth: options.depth }.checked().map_err(failed)?;
    let preferred = found.sizes.preferred.max(block).min(MAX_PREFERRED_BYTES);
    let features = Features {
        read_only: found.flags.contains(ExportFlags::READ_ONLY),
        discard: found.flags.contains(ExportFlags::SEND_TRIM),
        write_zeroes: found.flags.contains(ExportFlags::SEND_WRITE_ZEROES),
        volatile_cache: found.flags.contains(ExportFlags::SEND_FLUSH),
        preferred_block: preferred,
    };
    Ok((geometry, features.checked(block).map_err(failed)?))
}
