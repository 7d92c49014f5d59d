//! Back ends: block devices that end here instead of passing requests on.
//!
//! | device | what it is for |
//! |---|---|
//! | [`null::NullQueue`] | nothing is stored: the price of everything but the device |
//! | [`memory::MemoryDevice`] | private memory: tests and demonstrations |
//! | [`file::FileDevice`] | an image file or a block device, through io_uring |
//! | [`nbd::NbdDevice`] | an export of any NBD server: a disk on another machine |
//!
//! A device is shared by all queues on it; a queue belongs to one thread.

use std::io;
use std::os::fd::OwnedFd;

use fido_core::heap::HeapError;
use rustix::event::EventfdFlags;

use crate::queue::{Features, Geometry, GeometryError};

pub mod file;
pub mod memory;
pub mod nbd;
pub mod null;
pub mod raid;
mod size;

/// Why a null or memory device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Its geometry is beyond the limits.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The arena has no room for its buffer.
    #[error(transparent)]
    Heap(#[from] HeapError),
    /// There is no memory for its content.
    #[error("no memory for a device of {bytes} bytes")]
    Memory {
        /// The size asked for.
        bytes: u64,
    },
    /// The system refused a wake descriptor.
    #[error("no wake descriptor: {0}")]
    Wake(#[source] io::Error),
}

/// What a device in memory can do: everything, at once, in any size.
fn memory_features(geometry: &Geometry) -> Features {
    Features {
        read_only: false,
        discard: true,
        write_zeroes: true,
        volatile_cache: false,
        preferred_block: geometry.block,
    }
}

/// A wake descriptor for a queue that finishes everything within `submit`: nothing ever happens to it while its
/// thread sleeps, so this never becomes readable and `Source::ready` says the rest.
fn silent_wake() -> Result<OwnedFd, DeviceError> {
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| DeviceError::Wake(e.into()))
}
