//! The null device: takes everything, stores nothing, reads zeros.
//!
//! It does all that a device does but the device's work: requests and addresses are checked, limits and depth hold.
//! Reads lend slices of one buffer of zeros that is never written.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use fido_core::foreign::{Area, Landing};
use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::wait::Source;

use super::{DeviceError, memory_features, silent_wake};
use crate::extents::{self, Extent};
use crate::finished::Finished;
use crate::queue::{BlockCompletion, BlockError, BlockOp, BlockQueue, Busy, Features, Geometry, MAX_REQUEST_BYTES};

/// A queue of the null device.
#[derive(Debug)]
pub struct NullQueue {
    geometry: Geometry,
    memory: Memory,
    zeros: Payload,
    finished: Finished,
    wake: OwnedFd,
}

impl NullQueue {
    /// A null device with this geometry. Takes up to [`MAX_REQUEST_BYTES`] of the arena for its zeros.
    ///
    /// # Errors
    /// [`DeviceError`] if the geometry is beyond the limits or the arena has no room.
    pub fn new(geometry: Geometry, memory: Memory) -> Result<Self, DeviceError> {
        let geometry = geometry.checked()?;
        let mut zeros = memory.alloc(geometry.bytes.min(MAX_REQUEST_BYTES.into()) as usize)?;
        zeros.as_mut_slice().fill(0);
        let zeros = zeros.into_payload();
        Ok(Self { geometry, memory, zeros, finished: Finished::default(), wake: silent_wake()? })
    }

    fn perform(&self, op: &BlockOp) -> Result<Payload, BlockError> {
        self.geometry.check(op)?;
        match op {
            // The buffer has as many bytes as the longest request that passes the check.
            BlockOp::Read { len, .. } => self.zeros.slice(0, (*len).into()).ok_or(BlockError::NoBuffer),
            BlockOp::Write { data, .. } => {
                let checked = data.segments().try_for_each(|segment| self.memory.check(segment));
                checked.map_err(|error| {
                    self.memory.stats().refusals.add(1);
                    BlockError::Address(error.to_string())
                })?;
                Ok(Payload::new())
            }
            BlockOp::Extents { len, .. } => extents::write(&[Extent { len: *len, hole: true }], &self.memory),
            BlockOp::Flush | BlockOp::Discard { .. } | BlockOp::WriteZeroes { .. } => Ok(Payload::new()),
        }
    }
}

impl BlockQueue for NullQueue {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn features(&self) -> Features {
        memory_features(&self.geometry)
    }

    fn submit(&mut self, id: u64, op: BlockOp) -> Result<(), Busy> {
        if self.finished.len() >= self.geometry.depth as usize {
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
        if self.finished.len() >= self.geometry.depth as usize {
            return Err(landing);
        }
        let result = self.geometry.check_read_into(offset, &landing).map(|()| {
            landing.areas().iter().for_each(Area::zero);
            Payload::new()
        });
        self.finished.push_counted(id, result, landing.len(), self.memory.stats());
        Ok(())
    }

    fn poll(&mut self) -> Option<BlockCompletion> {
        self.finished.pop()
    }

    fn flush_submissions(&mut self) {}
}

impl Source for NullQueue {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn ready(&mut self) -> bool {
        !self.finished.is_empty()
    }
}
