//! The devices that stand for themselves.
//!
//! | kind | text | options |
//! |---|---|---|
//! | `null` | its size | `block` (4096), `depth` (128) |
//! | `memory` | its size | the same |
//! | `file` | the path | the same; `create=SIZE`: of an image that is not there; `read-only=yes`; `direct=yes`; `lock-wait` (5s) |

use std::sync::Arc;

use fido_core::memory::Memory;

use super::description::Description;
use super::options::{Options, time};
use super::{BoxQueue, Device, OpenError};
use crate::backend::file::{FileDevice, FileOptions};
use crate::backend::memory::MemoryDevice;
use crate::backend::null::NullQueue;
use crate::queue::Geometry;

const BLOCK: u32 = 4096;
const DEPTH: u32 = 128;

/// What a device in memory is to be like.
fn geometry(device: &Description) -> Result<Geometry, OpenError> {
    stands_alone(device)?;
    let mut options = Options::of(device);
    let block = options.number("block")?.unwrap_or(BLOCK);
    let depth = options.number("depth")?.unwrap_or(DEPTH);
    let geometry = Geometry { bytes: options.size_text()?, block, depth };
    let geometry = geometry.checked().map_err(|error| options.error(format!("{:?}", device.text), error))?;
    options.done()?;
    Ok(geometry)
}

/// It is not made of others.
pub(super) fn stands_alone(device: &Description) -> Result<(), OpenError> {
    match device.members.len() {
        0 => Ok(()),
        found => Err(OpenError::Members { kind: device.kind.clone(), needed: "nothing", found }),
    }
}

#[derive(Debug)]
struct NullDevice(Geometry);

pub(super) fn null(device: &Description) -> Result<Arc<dyn Device>, OpenError> {
    Ok(Arc::new(NullDevice(geometry(device)?)))
}

impl Device for NullDevice {
    fn geometry(&self) -> Geometry {
        self.0
    }

    fn queue(&self, memory: &Memory) -> Result<BoxQueue, OpenError> {
        Ok(Box::new(NullQueue::new(self.0, memory.clone())?))
    }

    fn refresh(&self) -> Result<(), OpenError> {
        Ok(())
    }
}

pub(super) fn memory(device: &Description) -> Result<Arc<dyn Device>, OpenError> {
    Ok(Arc::new(MemoryDevice::new(geometry(device)?)?))
}

impl Device for MemoryDevice {
    fn geometry(&self) -> Geometry {
        self.geometry()
    }

    fn queue(&self, memory: &Memory) -> Result<BoxQueue, OpenError> {
        Ok(Box::new(self.queue(memory.clone())?))
    }

    fn refresh(&self) -> Result<(), OpenError> {
        Ok(())
    }
}

pub(super) fn file(device: &Description) -> Result<Arc<dyn Device>, OpenError> {
    stands_alone(device)?;
    let mut options = Options::of(device);
    if device.text.is_empty() {
        return Err(options.error("the path", "it is missing"));
    }
    let usual = FileOptions::new(&device.text);
    let file = FileOptions {
        create_bytes: options.size("create")?,
        read_only: options.flag("read-only")?,
        direct: options.flag("direct")?,
        block: options.number("block")?.unwrap_or(usual.block),
        depth: options.number("depth")?.unwrap_or(usual.depth),
        lock_wait: options.read("lock-wait", time)?.unwrap_or(usual.lock_wait),
        ..usual
    };
    options.done()?;
    Ok(Arc::new(FileDevice::open(&file)?))
}

impl Device for FileDevice {
    fn geometry(&self) -> Geometry {
        self.geometry()
    }

    fn queue(&self, memory: &Memory) -> Result<BoxQueue, OpenError> {
        Ok(Box::new(self.queue(memory.clone())?))
    }

    fn refresh(&self) -> Result<(), OpenError> {
        FileDevice::refresh(self)?;
        Ok(())
    }
}
