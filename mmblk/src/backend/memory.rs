//! A device in private memory: for tests and demonstrations.
//!
//! Its content dies with its process, flushed or not. The copy between content and payload is this device's stand-in
//! for a disk's DMA, so it is not counted as payload copied in user space.
//!
//! A read that finds no buffer fails with [`BlockError::NoBuffer`] at once: this device has nothing to wait with.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, PoisonError, RwLock};

use fido_core::foreign::Landing;
use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::wait::{Source, WakeId};
use fido_core::window::Span;

use super::size::{Follower, Size};
use super::{DeviceError, memory_features};
use crate::extents::{self, Extent};
use crate::finished::Finished;
use crate::queue::{BlockCompletion, BlockError, BlockOp, BlockQueue, Busy, Features, Geometry};

/// A device in private memory, all zeros at first. Clones and queues share it.
#[derive(Debug, Clone)]
pub struct MemoryDevice {
    /// As it was made.
    made: Geometry,
    size: Arc<Size>,
    content: Arc<RwLock<Vec<u8>>>,
}

impl MemoryDevice {
    /// A device with this geometry (the depth is each queue's).
    ///
    /// # Errors
    /// [`DeviceError`] if the geometry is beyond the limits or there is no memory for the content.
    pub fn new(geometry: Geometry) -> Result<Self, DeviceError> {
        let geometry = geometry.checked()?;
        let none = DeviceError::Memory { bytes: geometry.bytes };
        let Ok(len) = usize::try_from(geometry.bytes) else { return Err(none) };
        let mut content = Vec::new();
        if content.try_reserve_exact(len).is_err() {
            return Err(none);
        }
        content.resize(len, 0);
        let size = Arc::new(Size::new(geometry.bytes));
        Ok(Self { made: geometry, size, content: Arc::new(RwLock::new(content)) })
    }

    /// A queue on it, which lends buffers of `memory`.
    ///
    /// # Errors
    /// [`DeviceError::Wake`] if the system has no descriptor for it.
    pub fn queue(&self, memory: Memory) -> Result<MemoryQueue, DeviceError> {
        let follower = self.size.follow(self.geometry()).map_err(DeviceError::Wake)?;
        Ok(MemoryQueue { device: self.clone(), memory, finished: Finished::default(), follower })
    }

    /// What the device is like.
    pub fn geometry(&self) -> Geometry {
        Geometry { bytes: self.size.get(), ..self.made }
    }

    /// Gives the device another size; every queue hears of it. What is new is zeros.
    ///
    /// # Errors
    /// [`DeviceError`] if the size is beyond the limits or there is no memory for it; the device is then as before.
    pub fn resize(&self, bytes: u64) -> Result<(), DeviceError> {
        Geometry { bytes, ..self.made }.checked()?;
        let none = DeviceError::Memory { bytes };
        let Ok(len) = usize::try_from(bytes) else { return Err(none) };
        let mut content = self.content.write().unwrap_or_else(PoisonError::into_inner);
        if len > content.len() && content.try_reserve_exact(len).is_err() {
            return Err(none);
        }
        content.resize(len, 0);
        // Under the lock, so that two changes leave the same behind here and there.
        self.size.set(bytes);
        Ok(())
    }
}

/// A queue of a [`MemoryDevice`].
#[derive(Debug)]
pub struct MemoryQueue {
    device: MemoryDevice,
    memory: Memory,
    finished: Finished,
    follower: Follower,
}

impl MemoryQueue {
    fn perform(&self, op: &BlockOp) -> Result<Payload, BlockError> {
        self.device.geometry().check(op)?;
        match op {
            BlockOp::Read { offset, len } => self.read(*offset, *len as usize),
            BlockOp::Write { offset, data, .. } => self.write(*offset, data),
            BlockOp::Extents { len, .. } => extents::write(&[Extent { len: *len, hole: false }], &self.memory),
            BlockOp::Flush => Ok(Payload::new()),
            BlockOp::Discard { offset, len } | BlockOp::WriteZeroes { offset, len, .. } => {
                self.change(*offset, *len, |content| content.fill(0))
            }
        }
    }

    fn read(&self, offset: u64, len: usize) -> Result<Payload, BlockError> {
        let mut buf = self.memory.alloc(len).map_err(|_| BlockError::NoBuffer)?;
        let content = self.device.content.read().unwrap_or_else(PoisonError::into_inner);
        let found = content.get(offset as usize..).and_then(|from| from.get(..len));
        buf.as_mut_slice().copy_from_slice(found.ok_or(BlockError::OutOfRange { offset, len: len as u64 })?);
        Ok(buf.into_payload())
    }

    fn land(&self, offset: u64, landing: &Landing) -> Result<Payload, BlockError> {
        self.device.geometry().check_read_into(offset, landing)?;
        let len = landing.len();
        let content = self.device.content.read().unwrap_or_else(PoisonError::into_inner);
        let found = content.get(offset as usize..).and_then(|from| from.get(..len as usize));
        landing.write(found.ok_or(BlockError::OutOfRange { offset, len })?);
        Ok(Payload::new())
    }

    fn write(&self, offset: u64, data: &Payload) -> Result<Payload, BlockError> {
        // All or nothing: every address is checked before the first byte is written.
        let spans = self.memory.translate_all(data).map_err(|e| BlockError::Address(e.to_string()))?;
        self.change(offset, data.len(), |content| copy_spans(&spans, content))
    }

    fn change(&self, offset: u64, len: u64, change: impl FnOnce(&mut [u8])) -> Result<Payload, BlockError> {
        let mut content = self.device.content.write().unwrap_or_else(PoisonError::into_inner);
        let found = content.get_mut(offset as usize..).and_then(|from| from.get_mut(..len as usize));
        change(found.ok_or(BlockError::OutOfRange { offset, len })?);
        Ok(Payload::new())
    }
}

fn copy_spans(spans: &[Span], out: &mut [u8]) {
    let mut at = 0;
    for span in spans {
        at += span.copy(0, out.get_mut(at..).unwrap_or_default());
    }
}

impl BlockQueue for MemoryQueue {
    fn geometry(&self) -> Geometry {
        self.follower.geometry()
    }

    fn resized(&mut self) -> Option<Geometry> {
        self.follower.news(&self.device.size)
    }

    fn features(&self) -> Features {
        memory_features(&self.device.made)
    }

    fn submit(&mut self, id: u64, op: BlockOp) -> Result<(), Busy> {
        if self.finished.len() >= self.device.made.depth as usize {
            return Err(Busy(op));
        }
        let result = self.perform(&op);
        self.finished.push_counted(id, result, op.payload_bytes(), self.memory.stats());
        Ok(())
    }

    fn reaches_foreign(&self) -> bool {
        true
    }

    fn read_into(&mut self, id: u64, offset: u64, landing: Landing) -> Result<(), Landing> {
        if self.finished.len() >= self.device.made.depth as usize {
            return Err(landing);
        }
        let result = self.land(offset, &landing);
        self.finished.push_counted(id, result, landing.len(), self.memory.stats());
        Ok(())
    }

    fn poll(&mut self) -> Option<BlockCompletion> {
        self.finished.pop()
    }

    fn flush_submissions(&mut self) {}
}

impl Source for MemoryQueue {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.follower.as_fd()
    }

    fn edge_triggered(&self) -> bool {
        true
    }

    fn wake_id(&self) -> Option<WakeId> {
        Some(self.follower.id())
    }

    fn ready(&mut self) -> bool {
        !self.finished.is_empty() || self.follower.is_behind(&self.device.size)
    }
}
