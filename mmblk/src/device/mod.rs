//! Devices by description: what a manifest or a command line says is to be opened, and what comes of it.
//!
//! * [`description`] is the text and its form: `delay(read=1ms; file:/srv/disk.img,create=1GiB)`.
//! * [`open`] makes a device of it, with the kinds and layers that [`catalogue`] lists.
//! * [`options`] reads sizes, times and chances.
//!
//! A device gives out a queue for each thread; whatever its kind, it is a [`Device`] and its queues are [`BoxQueue`]s.

pub mod catalogue;
pub mod description;
mod layers;
mod leaves;
pub mod options;
mod raid;
mod remote;

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use fido_core::foreign::Landing;
use fido_core::memory::Memory;
use fido_core::private::PrivateMemoryError;
use fido_core::wait::{PeerView, Source, WakeId};

use crate::backend::DeviceError;
use crate::backend::file::FileError;
use crate::queue::{BlockCompletion, BlockOp, BlockQueue, Busy, Features, Geometry};
pub use catalogue::open;
use description::DescriptionError;

/// A queue of whatever kind.
pub type BoxQueue = Box<dyn BlockQueue + Send>;

/// An open device of whatever kind.
pub trait Device: Debug + Send + Sync {
    /// What it is like now.
    fn geometry(&self) -> Geometry;

    /// A queue on it for one thread, which lends buffers of `memory`.
    ///
    /// # Errors
    /// [`OpenError`] if the system has no descriptor or memory for it, or for a second queue of what has only one, as
    /// a server of one connection does.
    fn queue(&self, memory: &Memory) -> Result<BoxQueue, OpenError>;

    /// What whoever runs it should know, by name; it changes while the device is in use. Nothing, of most kinds.
    fn notes(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Looks whether what is behind it has another size by now; if so, all queues hear of it.
    ///
    /// # Errors
    /// [`OpenError`] if it cannot be found out, or is no size for a device; all is then as before.
    fn refresh(&self) -> Result<(), OpenError>;
}

/// Why a device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The description has no form.
    #[error(transparent)]
    Description(#[from] DescriptionError),
    /// No such kind of device or layer.
    #[error("{kind:?} is no kind of device; there are {known}")]
    Kind {
        /// What was asked for.
        kind: String,
        /// What there is.
        known: String,
    },
    /// An option, or the text behind the colon, is wrong.
    #[error("{kind}: {what}: {reason}")]
    Option {
        /// The kind of device.
        kind: String,
        /// Which part.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A layer around too few or too many devices.
    #[error("{kind}: it is made of {needed}, not of {found}")]
    Members {
        /// The kind of device.
        kind: String,
        /// How many it needs.
        needed: &'static str,
        /// How many were given.
        found: usize,
    },
    /// An image or block device.
    #[error(transparent)]
    File(#[from] FileError),
    /// A null or memory device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// There is no memory to look at it with.
    #[error(transparent)]
    Memory(#[from] PrivateMemoryError),
    /// The system has no descriptor left.
    #[error("a queue cannot be set up: {0}")]
    System(#[from] io::Error),
    /// Whatever else a kind of device says.
    #[error("{kind}: {error}")]
    Other {
        /// The kind of device.
        kind: String,
        /// What it says.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Opens a device for a test or a program that needs no more than the text.
///
/// # Errors
/// [`OpenError`] with the part of the description that is wrong, or what the system says.
pub fn open_text(text: &str) -> Result<Arc<dyn Device>, OpenError> {
    open(&description::Description::parse(text)?)
}

impl BlockQueue for BoxQueue {
    fn geometry(&self) -> Geometry {
        (**self).geometry()
    }

    fn features(&self) -> Features {
        (**self).features()
    }

    fn resized(&mut self) -> Option<Geometry> {
        (**self).resized()
    }

    fn submit(&mut self, id: u64, op: BlockOp) -> Result<(), Busy> {
        (**self).submit(id, op)
    }

    fn reaches_foreign(&self) -> bool {
        (**self).reaches_foreign()
    }

    fn read_into(&mut self, id: u64, offset: u64, landing: Landing) -> Result<(), Landing> {
        (**self).read_into(id, offset, landing)
    }

    fn poll(&mut self) -> Option<BlockCompletion> {
        (**self).poll()
    }

    fn flush_submissions(&mut self) {
        (**self).flush_submissions();
    }
}

impl Source for BoxQueue {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        (**self).wake_fd()
    }

    fn wake_id(&self) -> Option<WakeId> {
        (**self).wake_id()
    }

    fn edge_triggered(&self) -> bool {
        (**self).edge_triggered()
    }

    fn arm(&mut self) {
        (**self).arm();
    }

    fn ready(&mut self) -> bool {
        (**self).ready()
    }

    fn disarm(&mut self) {
        (**self).disarm();
    }

    fn meet(&mut self, seat: Option<u32>) -> Option<PeerView> {
        (**self).meet(seat)
    }
}
