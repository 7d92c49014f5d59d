//! A simple face on any block queue: one call, one answer, whatever the length.
//!
//! Requests are cut into pieces of at most [`MAX_REQUEST_BYTES`] and as many segments as one may carry, which are in
//! flight together as far as the queue's depth allows. If a piece fails, the call waits for the others and returns
//! the first error; what a failed write has written is then undefined within its range.
//!
//! Nothing is copied by [`Blocking::read`] and [`Blocking::write`]. The others copy between own slices and buffers of
//! the arena; for payload that is counted as copied in user space, for metadata (a store's pages, a superblock) as
//! header bytes.

use std::collections::VecDeque;
use std::io;

use fido_core::memory::Memory;
use fido_core::payload::{MAX_SEGMENTS, Payload};
use fido_core::waiter::Waiter;

use crate::queue::{BlockCompletion, BlockError, BlockOp, BlockQueue, Features, Geometry, MAX_REQUEST_BYTES};

/// What is copied, for the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// Somebody's data: counted as payload copied in user space.
    Payload,
    /// What this domain keeps for itself: counted with the headers.
    Metadata,
}

/// The blocking face of a queue.
#[derive(Debug)]
pub struct Blocking<Q> {
    queue: Q,
    memory: Memory,
    waiter: Waiter,
    /// Ids are never used twice, so that one call's completions cannot be taken for another's.
    next_id: u64,
}

impl<Q: BlockQueue> Blocking<Q> {
    /// Wraps `queue`, on which nothing may be in flight. Copies go through buffers of `memory`; `waiter` says how to
    /// wait for answers.
    pub fn new(queue: Q, memory: Memory, waiter: Waiter) -> Self {
        Self { queue, memory, waiter, next_id: 0 }
    }

    /// What the device is like.
    pub fn geometry(&self) -> Geometry {
        self.queue.geometry()
    }

    /// What the device can do.
    pub fn features(&self) -> Features {
        self.queue.features()
    }

    /// The queue, for asynchronous use between calls. Whatever is started on it must be finished before the next.
    pub fn queue_mut(&mut self) -> &mut Q {
        &mut self.queue
    }

    /// The queue itself.
    pub fn into_inner(self) -> Q {
        self.queue
    }

    /// Reads `len` bytes, on loan from the device: drop the payload to return them.
    ///
    /// # Errors
    /// [`BlockError`] of the first piece that failed.
    pub fn read(&mut self, offset: u64, len: u64) -> Result<Payload, BlockError> {
        check(&self.geometry(), offset, len)?;
        let mut all = Payload::new();
        for data in self.run(pieces(offset, len).map(|(offset, len)| BlockOp::Read { offset, len }))? {
            all.append(data);
        }
        Ok(all)
    }

    /// Reads into an own slice, through at most one request's worth of buffers at a time.
    ///
    /// # Errors
    /// [`BlockError`] of the first piece that failed; `out` is then partly written.
    pub fn read_into(&mut self, offset: u64, out: &mut [u8], what: Copied) -> Result<(), BlockError> {
        check(&self.geometry(), offset, out.len() as u64)?;
        for ((offset, len), out) in pieces(offset, out.len() as u64).zip(out.chunks_mut(MAX_REQUEST_BYTES as usize)) {
            let data = self.one(BlockOp::Read { offset, len })?;
            let copied = match what {
                Copied::Payload => self.memory.copy_to_slice(&data, out),
                Copied::Metadata => self.memory.read_header(&data, 0, out),
            };
            let count = copied.map_err(|e| BlockError::Address(e.to_string()))?;
            if count != out.len() {
                return Err(BlockError::Protocol(format!("{count} bytes for a read of {}", out.len())));
            }
        }
        Ok(())
    }

    /// Writes a payload, straight from where its bytes are.
    ///
    /// # Errors
    /// [`BlockError`] of the first piece that failed.
    pub fn write(&mut self, offset: u64, data: Payload, durable: bool) -> Result<(), BlockError> {
        let geometry = self.geometry();
        check(&geometry, offset, data.len())?;
        let pieces = cut(offset, data, geometry.block)?;
        self.run(pieces.into_iter().map(|(offset, data)| BlockOp::Write { offset, data, durable }))?;
        Ok(())
    }

    /// Writes an own slice, through one request's worth of buffers at a time.
    ///
    /// # Errors
    /// [`BlockError`] of the first piece that failed; [`BlockError::NoBuffer`] if the arena has no room.
    pub fn write_from(&mut self, offset: u64, data: &[u8], durable: bool, what: Copied) -> Result<(), BlockError> {
        check(&self.geometry(), offset, data.len() as u64)?;
        for ((offset, len), data) in pieces(offset, data.len() as u64).zip(data.chunks(MAX_REQUEST_BYTES as usize)) {
            let mut buf = self.memory.alloc(len as usize).map_err(|_| BlockError::NoBuffer)?;
            buf.as_mut_slice().copy_from_slice(data);
            let count = match what {
                Copied::Payload => &self.memory.stats().payload_bytes_copied,
                Copied::Metadata => &self.memory.stats().header_bytes_copied,
            };
            count.add(len.into());
            self.one(BlockOp::Write { offset, data: buf.into_payload(), durable })?;
        }
        Ok(())
    }

    /// Makes every completed write durable.
    ///
    /// # Errors
    /// [`BlockError`] of the device.
    pub fn flush(&mut self) -> Result<(), BlockError> {
        self.one(BlockOp::Flush).map(drop)
    }

    /// Says that the content of a range is no longer needed.
    ///
    /// # Errors
    /// [`BlockError`] of the device.
    pub fn discard(&mut self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.one(BlockOp::Discard { offset, len }).map(drop)
    }

    /// Makes a range read as zeros; `unmap`: the space behind it may be given back.
    ///
    /// # Errors
    /// [`BlockError`] of the device.
    pub fn write_zeroes(&mut self, offset: u64, len: u64, durable: bool, unmap: bool) -> Result<(), BlockError> {
        self.one(BlockOp::WriteZeroes { offset, len, durable, unmap }).map(drop)
    }

    fn one(&mut self, op: BlockOp) -> Result<Payload, BlockError> {
        Ok(self.run(std::iter::once(op))?.pop().unwrap_or_default())
    }

    /// Runs all requests; the results are in the requests' order.
    fn run(&mut self, ops: impl Iterator<Item = BlockOp>) -> Result<Vec<Payload>, BlockError> {
        let mut batch = Batch { base: self.next_id, results: Vec::new(), open: 0, error: None };
        let mut ops: VecDeque<BlockOp> = ops.collect();
        while (!ops.is_empty() && batch.error.is_none()) || batch.open > 0 {
            self.start(&mut ops, &mut batch);
            self.queue.flush_submissions();
            let mut idle = true;
            while let Some(completion) = self.queue.poll() {
                batch.take(completion);
                idle = false;
            }
            if idle {
                self.waiter.idle(&mut [&mut self.queue], None).map_err(wait_error)?;
            }
        }
        self.waiter.busy();
        match batch.error {
            None => Ok(batch.results),
            Some(error) => Err(error),
        }
    }

    /// Submits as many requests as the queue takes.
    fn start(&mut self, ops: &mut VecDeque<BlockOp>, batch: &mut Batch) {
        while batch.error.is_none()
            && let Some(op) = ops.pop_front()
        {
            if let Err(busy) = self.queue.submit(self.next_id, op) {
                return ops.push_front(busy.0);
            }
            self.next_id = self.next_id.wrapping_add(1);
            batch.results.push(Payload::new());
            batch.open += 1;
        }
    }
}

/// The requests of one call.
struct Batch {
    /// The first request's id.
    base: u64,
    results: Vec<Payload>,
    open: usize,
    error: Option<BlockError>,
}

impl Batch {
    fn take(&mut self, completion: BlockCompletion) {
        let index = usize::try_from(completion.id.wrapping_sub(self.base)).unwrap_or(usize::MAX);
        // What is not of this call was started on the queue directly.
        let Some(place) = self.results.get_mut(index) else { return };
        self.open = self.open.saturating_sub(1);
        match completion.result {
            Ok(data) => *place = data,
            Err(error) => {
                self.error.get_or_insert(error);
            }
        }
    }
}

fn wait_error(error: io::Error) -> BlockError {
    BlockError::Io { errno: error.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error()) }
}

fn check(geometry: &Geometry, offset: u64, len: u64) -> Result<(), BlockError> {
    if len == 0 {
        return Err(BlockError::Size { len, segments: 0 });
    }
    geometry.check(&BlockOp::Discard { offset, len })
}

/// The pieces of a range. The block size divides [`MAX_REQUEST_BYTES`].
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, u32)> {
    let step = u64::from(MAX_REQUEST_BYTES);
    (0..len.div_ceil(step)).map(move |index| (offset + index * step, (len - index * step).min(step) as u32))
}

/// The pieces of a payload: each a multiple of the block size, within the limits of one request.
fn cut(mut offset: u64, mut data: Payload, block: u32) -> Result<Vec<(u64, Payload)>, BlockError> {
    let mut pieces = Vec::new();
    while !data.is_empty() {
        let within: u64 = data.segments().take(MAX_SEGMENTS).map(|s| u64::from(s.len)).sum();
        let len = within.min(MAX_REQUEST_BYTES.into());
        let len = len - len % u64::from(block);
        if len == 0 {
            // A single block in more segments than one request may carry.
            return Err(BlockError::Size { len: data.len(), segments: data.parts().len() });
        }
        pieces.push((offset, data.split_to(len)));
        offset += len;
    }
    Ok(pieces)
}
