//! A block queue used in a blocking way, with byte granularity: what the metadata store and the superblock need.
//!
//! Bytes are copied here, into and out of the own arena: this is metadata, never payload. Reads and writes that do not
//! fall on the device's blocks are completed by reading the blocks first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fido_core::assignment::WaitStrategy;
use fido_core::heap::HeapError;
use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::wait::Source;
use fido_core::waiter::Waiter;
use fido_core::window::AddressError;
use mmblk::queue::{BlockError, BlockOp, BlockQueue, Geometry};

/// The most bytes moved by one request.
const CHUNK_BYTES: usize = 256 << 10;
/// How long to wait before asking again a device, or a heap, that has no buffer.
const RETRY: Duration = Duration::from_millis(1);
/// The longest sleep, so that a stop is noticed.
const NAP: Duration = Duration::from_millis(50);
/// How long a stopping volume waits for a device that does not answer.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Why a blocking request failed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The device's answer.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// What the device lent has no memory behind it.
    #[error("the device lent a wild address: {0}")]
    Address(#[from] AddressError),
    /// The device lent fewer bytes than were asked for.
    #[error("the device lent {got} of {wanted} bytes")]
    Short {
        /// Bytes asked for.
        wanted: usize,
        /// Bytes lent.
        got: u64,
    },
    /// No arena buffer is that large.
    #[error(transparent)]
    Heap(#[from] HeapError),
    /// Waiting failed.
    #[error("cannot wait for the device: {0}")]
    Wait(#[from] std::io::Error),
    /// The volume is being closed and the device does not answer.
    #[error("the device does not answer and the volume is being closed")]
    Stopped,
}

/// A queue, and the memory to talk to it.
#[derive(Debug)]
pub struct Blocking<Q> {
    queue: Q,
    memory: Memory,
    waiter: Waiter,
    stop: Arc<AtomicBool>,
    /// The id of the last request; a completion of an older one, given up on, is ignored.
    last: u64,
    /// The device was given up: nothing is waited for any more.
    given_up: bool,
}

impl<Q: BlockQueue> Blocking<Q> {
    /// Wraps `queue`. Once `stop` is set, a device that does not answer is waited for only a few seconds more.
    ///
    /// # Errors
    /// The system's, if there is nothing to wait with.
    pub fn new(queue: Q, memory: Memory, stop: Arc<AtomicBool>) -> Result<Self, std::io::Error> {
        let waiter = Waiter::new(WaitStrategy::Sleep)?.counting_in(&memory);
        Ok(Self { queue, memory, waiter, stop, last: 0, given_up: false })
    }

    /// What the device is like.
    pub fn geometry(&self) -> Geometry {
        self.queue.geometry()
    }

    /// Reads bytes from `offset` on.
    ///
    /// # Errors
    /// [`DeviceError`]; part of `out` may have been filled.
    pub fn read(&mut self, offset: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        let mut at = offset;
        for chunk in out.chunks_mut(CHUNK_BYTES) {
            let (start, len) = self.cover(at, chunk.len());
            let data = self.request(BlockOp::Read { offset: start, len })?;
            let got = self.memory.read_header(&data, at - start, chunk)?;
            if got != chunk.len() {
                return Err(DeviceError::Short { wanted: chunk.len(), got: data.len() });
            }
            at += chunk.len() as u64;
        }
        Ok(())
    }

    /// Writes bytes from `offset` on. They are durable after the next [`Blocking::flush`].
    ///
    /// # Errors
    /// [`DeviceError`]; part of the bytes may have been written.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let mut at = offset;
        for chunk in data.chunks(CHUNK_BYTES) {
            let (start, len) = self.cover(at, chunk.len());
            let mut buf = self.buffer(len as usize)?;
            if len as usize != chunk.len() {
                self.read(start, buf.as_mut_slice())?;
            }
            let skip = (at - start) as usize;
            buf.as_mut_slice()[skip..skip + chunk.len()].copy_from_slice(chunk);
            self.request(BlockOp::Write { offset: start, data: buf.into_payload(), durable: false })?;
            at += chunk.len() as u64;
        }
        Ok(())
    }

    /// Fills `offset..end` with zeros.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn zero(&mut self, offset: u64, end: u64) -> Result<(), DeviceError> {
        let zeros = vec![0; CHUNK_BYTES];
        let mut at = offset;
        while at < end {
            let len = (end - at).min(CHUNK_BYTES as u64);
            self.write(at, &zeros[..len as usize])?;
            at += len;
        }
        Ok(())
    }

    /// Makes everything durable whose write has completed, on this queue or another of the same device.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn flush(&mut self) -> Result<(), DeviceError> {
        self.request(BlockOp::Flush).map(drop)
    }

    /// Between requests: takes in what has become of the device (its death, too, counts only once it is noticed here),
    /// returns what it has lent, and sleeps until there is more of that or `other` is ready.
    ///
    /// # Errors
    /// The system's, if it cannot wait.
    pub fn idle(&mut self, other: &mut dyn Source, waiter: &mut Waiter) -> Result<(), std::io::Error> {
        // Nothing is in flight: an answer can only be to a request that was given up.
        while self.queue.poll().is_some() {}
        self.queue.flush_submissions();
        waiter.idle(&mut [other, &mut self.queue], None)
    }

    /// The blocks that cover `len` bytes from `offset` on.
    fn cover(&self, offset: u64, len: usize) -> (u64, u32) {
        let block = u64::from(self.queue.geometry().block.max(1));
        let start = offset - offset % block;
        let end = (offset + len as u64).next_multiple_of(block);
        (start, (end - start) as u32)
    }

    /// A buffer in the arena; waits while the heap is exhausted.
    fn buffer(&self, len: usize) -> Result<fido_core::heap::ArenaBuf, DeviceError> {
        let mut patience = Patience::default();
        loop {
            match self.memory.alloc(len) {
                Ok(buf) => return Ok(buf),
                Err(HeapError::Exhausted { .. }) => patience.check(&self.stop)?,
                Err(error) => return Err(error.into()),
            }
            std::thread::sleep(RETRY);
        }
    }

    /// One request from start to end. Only one is in flight at a time.
    fn request(&mut self, op: BlockOp) -> Result<Payload, DeviceError> {
        if self.given_up {
            return Err(DeviceError::Stopped);
        }
        let result = self.try_request(op);
        self.given_up = matches!(result, Err(DeviceError::Stopped));
        result
    }

    fn try_request(&mut self, op: BlockOp) -> Result<Payload, DeviceError> {
        let mut patience = Patience::default();
        loop {
            let mut next = op.clone();
            self.last += 1;
            while let Err(busy) = self.queue.submit(self.last, next) {
                next = busy.0;
                patience.check(&self.stop)?;
                self.queue.poll();
                std::thread::sleep(RETRY);
            }
            self.queue.flush_submissions();
            match self.wait(&mut patience)? {
                Err(BlockError::NoBuffer) => {
                    patience.check(&self.stop)?;
                    std::thread::sleep(RETRY);
                }
                result => return Ok(result?),
            }
        }
    }

    /// Waits for the completion of the one request in flight.
    fn wait(&mut self, patience: &mut Patience) -> Result<Result<Payload, BlockError>, DeviceError> {
        loop {
            if let Some(done) = self.queue.poll() {
                if done.id == self.last {
                    return Ok(done.result);
                }
                continue;
            }
            patience.check(&self.stop)?;
            self.waiter.idle(&mut [&mut self.queue], Some(NAP))?;
        }
    }
}

/// Waits for ever, unless the volume is being closed.
#[derive(Default)]
struct Patience {
    stopping_since: Option<Instant>,
}

impl Patience {
    fn check(&mut self, stop: &AtomicBool) -> Result<(), DeviceError> {
        if !stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let since = *self.stopping_since.get_or_insert_with(Instant::now);
        if since.elapsed() > STOP_PATIENCE { Err(DeviceError::Stopped) } else { Ok(()) }
    }
}
