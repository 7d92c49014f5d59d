//! The face of every block device here: one asynchronous queue.
//!
//! A [`BlockQueue`] is a link to a back end in another domain, or a back end itself; whoever uses it cannot tell. One
//! queue belongs to one thread. Requests carry an id of the caller's; completions come in any order.

use fido_core::foreign::Landing;
use fido_core::payload::Payload;
use fido_core::wait::Source;

/// The most bytes one request may carry.
pub const MAX_REQUEST_BYTES: u32 = 4 << 20;
/// The largest block size, in bytes.
pub const MAX_BLOCK_BYTES: u32 = 64 << 10;
/// The largest preferred block size, in bytes.
pub const MAX_PREFERRED_BYTES: u32 = MAX_REQUEST_BYTES;
/// The most requests a queue may have in flight.
pub const MAX_DEPTH: u32 = 4096;
/// The most blocks a device may have: what a discard can name on a lane, see `link::codec`.
pub const MAX_BLOCKS: u64 = (1 << 48) - 1;

/// What a device is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Size in bytes, a multiple of `block`.
    pub bytes: u64,
    /// Offsets and lengths are multiples of this many bytes, a power of two.
    pub block: u32,
    /// The most requests in flight on one queue.
    pub depth: u32,
}

/// What a device can do, and what is best for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Everything that changes the content is refused with [`BlockError::ReadOnly`].
    pub read_only: bool,
    /// [`BlockOp::Discard`] is supported.
    pub discard: bool,
    /// [`BlockOp::WriteZeroes`] is supported.
    pub write_zeroes: bool,
    /// What a completed write has written needs a flush to be durable.
    pub volatile_cache: bool,
    /// The physical or else the best size of an access: a power of two from the block size to
    /// [`MAX_PREFERRED_BYTES`]. Smaller accesses are right, but may cost the device a read.
    pub preferred_block: u32,
}

/// A geometry, or a feature of it, beyond the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// The block size.
    #[error("a block size of {block} bytes; it must be a power of two up to {MAX_BLOCK_BYTES}")]
    Block {
        /// The size in question.
        block: u32,
    },
    /// The device's size.
    #[error("a device of {bytes} bytes; it must be a multiple of its block size, {block}, from 1 to 2^48-1 blocks")]
    Bytes {
        /// The size in question.
        bytes: u64,
        /// The block size.
        block: u32,
    },
    /// The preferred block size.
    #[error("a preferred block of {preferred} bytes; it must be a power of two from {block} to {MAX_PREFERRED_BYTES}")]
    Preferred {
        /// The size in question.
        preferred: u32,
        /// The block size.
        block: u32,
    },
    /// The queue's depth.
    #[error("a queue of {depth} requests; it must have 1 to {MAX_DEPTH}")]
    Depth {
        /// The depth in question.
        depth: u32,
    },
}

/// What is asked of a device. Offsets and lengths are in bytes.
#[derive(Debug, Clone)]
pub enum BlockOp {
    /// Reads `len` bytes. The data is lent from the device's buffers.
    Read {
        /// First byte.
        offset: u64,
        /// How many bytes.
        len: u32,
    },
    /// Writes the payload, wherever in the appliance its bytes lie (any alignment in memory; its length is a
    /// multiple of the block size). The queue keeps the payload until the request is complete.
    Write {
        /// First byte.
        offset: u64,
        /// The data.
        data: Payload,
        /// Whether it must be on stable storage when the request completes (force unit access).
        durable: bool,
    },
    /// Makes every write that completed before this request durable.
    Flush,
    /// Says that the content is no longer needed; it then reads as zeros or as before.
    Discard {
        /// First byte.
        offset: u64,
        /// How many bytes; unlike those of a read or write not limited to [`MAX_REQUEST_BYTES`].
        len: u64,
    },
    /// Makes a range read as zeros.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// How many bytes; as for a discard not limited to [`MAX_REQUEST_BYTES`].
        len: u64,
        /// Whether the zeros must be on stable storage when the request completes.
        durable: bool,
        /// Whether the space behind the range may be given back.
        unmap: bool,
    },
    /// Asks what of a range is allocated. The answer is a list in the device's arena, see [`crate::extents`]. A device
    /// that cannot say answers [`BlockError::Unsupported`], and all of it counts as allocated.
    Extents {
        /// First byte.
        offset: u64,
        /// How many bytes; as for a discard not limited to [`MAX_REQUEST_BYTES`].
        len: u64,
    },
}

/// Why a request failed. The device stays usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Beyond the device's end.
    #[error("{offset}+{len} is beyond the device's end")]
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
    },
    /// Not a multiple of the block size.
    #[error("{offset}+{len} is not a multiple of the device's block size")]
    Misaligned {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
    },
    /// Empty, or more than [`MAX_REQUEST_BYTES`] or [`fido_core::payload::MAX_SEGMENTS`].
    #[error("a request of {len} bytes in {segments} segments is beyond the limits")]
    Size {
        /// Bytes asked for.
        len: u64,
        /// Segments of its payload.
        segments: usize,
    },
    /// A segment of the payload has no memory behind it at the device.
    #[error("the device cannot reach the payload: {0}")]
    Address(String),
    /// The device has no buffer now. Try again when loans have returned.
    #[error("the device has no free buffer")]
    NoBuffer,
    /// The operating system's error.
    #[error("input/output error {errno}")]
    Io {
        /// `errno`, as `std::io::Error::from_raw_os_error` takes it.
        errno: i32,
    },
    /// The device cannot do this at all, see [`Features`].
    #[error("the device does not support the request")]
    Unsupported,
    /// The device may only be read.
    #[error("the device is read-only")]
    ReadOnly,
    /// The device has no space left behind it.
    #[error("no space behind the device")]
    NoSpace,
    /// The answer made no sense.
    #[error("the device answered with {0}")]
    Protocol(String),
}

/// The end of a request.
#[derive(Debug)]
pub struct BlockCompletion {
    /// The id it was submitted with.
    pub id: u64,
    /// For a read, the data on loan (drop it to return it); for extents, their list; for all else, nothing.
    pub result: Result<Payload, BlockError>,
}

/// A request that the queue could not take.
#[derive(Debug)]
pub struct Busy(pub BlockOp);

/// One asynchronous queue of a block device.
pub trait BlockQueue: Source {
    /// What the device is like. It changes in [`BlockQueue::resized`] only.
    fn geometry(&self) -> Geometry;

    /// What the device can do. Stays the same for the life of the queue.
    fn features(&self) -> Features;

    /// The new geometry, once after the device's size has changed; [`BlockQueue::geometry`] then says the same. Only
    /// the size changes. What lies beyond a device that has become smaller is out of range from the moment on, whether
    /// this has been called or not. A queue that finds out while its user sleeps wakes it.
    fn resized(&mut self) -> Option<Geometry> {
        None
    }

    /// Starts a request. Its completion carries `id`, which the caller may choose freely. A request that is wrong in
    /// itself (range, size) is taken and completes with its error.
    ///
    /// # Errors
    /// [`Busy`] gives the request back if the queue is full: poll, then try again.
    fn submit(&mut self, id: u64, op: BlockOp) -> Result<(), Busy>;

    /// Whether the device is in this process, so that it reaches [`fido_core::foreign`] memory: payload of writes may
    /// lie there, and [`BlockQueue::read_into`] is there. Otherwise its bytes have to be copied to and from the arena.
    fn reaches_foreign(&self) -> bool {
        false
    }

    /// As [`BlockOp::Read`], but the bytes go to `landing` and the completion has none. What is in `landing` after a
    /// failure is unspecified.
    ///
    /// # Errors
    /// Gives `landing` back if the queue is full, or can never do this (see [`BlockQueue::reaches_foreign`]).
    fn read_into(&mut self, _id: u64, _offset: u64, landing: Landing) -> Result<(), Landing> {
        Err(landing)
    }

    /// Moves things along and returns the next completion, if there is one. Never blocks.
    fn poll(&mut self) -> Option<BlockCompletion>;

    /// Hands submitted requests on. Call it after a batch of `submit` and before waiting.
    fn flush_submissions(&mut self);
}

impl BlockOp {
    /// How many bytes of payload it moves between device and memory.
    pub fn payload_bytes(&self) -> u64 {
        match self {
            Self::Read { len, .. } => u64::from(*len),
            Self::Write { data, .. } => data.len(),
            Self::Flush | Self::Discard { .. } | Self::WriteZeroes { .. } | Self::Extents { .. } => 0,
        }
    }

    /// Offset, length, and number of segments; all zero for a flush.
    pub(crate) fn extent(&self) -> (u64, u64, usize) {
        match self {
            Self::Flush => (0, 0, 0),
            Self::Read { offset, len } => (*offset, u64::from(*len), 0),
            Self::Write { offset, data, .. } => (*offset, data.len(), data.parts().len()),
            Self::Discard { offset, len } | Self::WriteZeroes { offset, len, .. } | Self::Extents { offset, len } => {
                (*offset, *len, 0)
            }
        }
    }

    /// Whether its success means that something is durable.
    pub fn is_durable(&self) -> bool {
        matches!(self, Self::Flush | Self::Write { durable: true, .. } | Self::WriteZeroes { durable: true, .. })
    }
}

impl Features {
    /// The features themselves, if they fit a device with this block size.
    ///
    /// # Errors
    /// [`GeometryError::Preferred`].
    pub fn checked(self, block: u32) -> Result<Self, GeometryError> {
        let preferred = self.preferred_block;
        if !preferred.is_power_of_two() || preferred < block || preferred > MAX_PREFERRED_BYTES {
            return Err(GeometryError::Preferred { preferred, block });
        }
        Ok(self)
    }

    /// Checks whether a device with these features does such a thing at all.
    ///
    /// # Errors
    /// The [`BlockError`] that the request has to complete with.
    pub fn check(&self, op: &BlockOp) -> Result<(), BlockError> {
        match op {
            BlockOp::Read { .. } | BlockOp::Flush | BlockOp::Extents { .. } => Ok(()),
            _ if self.read_only => Err(BlockError::ReadOnly),
            BlockOp::Discard { .. } if !self.discard => Err(BlockError::Unsupported),
            BlockOp::WriteZeroes { .. } if !self.write_zeroes => Err(BlockError::Unsupported),
            _ => Ok(()),
        }
    }
}

impl Geometry {
    /// Checks a read into foreign memory as [`Geometry::check`] checks others.
    ///
    /// # Errors
    /// The [`BlockError`] that the request has to complete with.
    pub fn check_read_into(&self, offset: u64, landing: &Landing) -> Result<(), BlockError> {
        let len = landing.len();
        let (segments, short) = (landing.areas().len(), u32::try_from(len));
        match short {
            Ok(len) if segments <= fido_core::payload::MAX_SEGMENTS => self.check(&BlockOp::Read { offset, len }),
            _ => Err(BlockError::Size { len, segments }),
        }
    }

    /// The geometry itself, if it is within the limits.
    ///
    /// # Errors
    /// [`GeometryError`] that names the value beyond them.
    pub fn checked(self) -> Result<Self, GeometryError> {
        let Self { bytes, block, depth } = self;
        if !block.is_power_of_two() || block > MAX_BLOCK_BYTES {
            return Err(GeometryError::Block { block });
        }
        let blocks = bytes / u64::from(block);
        if blocks == 0 || blocks > MAX_BLOCKS || !bytes.is_multiple_of(u64::from(block)) {
            return Err(GeometryError::Bytes { bytes, block });
        }
        if depth == 0 || depth > MAX_DEPTH {
            return Err(GeometryError::Depth { depth });
        }
        Ok(self)
    }

    /// Checks an operation against the device's size and block, and the general limits.
    ///
    /// # Errors
    /// The [`BlockError`] that the request has to complete with.
    pub fn check(&self, op: &BlockOp) -> Result<(), BlockError> {
        if matches!(op, BlockOp::Flush) {
            return Ok(());
        }
        let (offset, len, segments) = op.extent();
        let limited = matches!(op, BlockOp::Read { .. } | BlockOp::Write { .. });
        if len == 0 || (limited && len > u64::from(MAX_REQUEST_BYTES)) || segments > fido_core::payload::MAX_SEGMENTS {
            return Err(BlockError::Size { len, segments });
        }
        if offset.checked_add(len).is_none_or(|end| end > self.bytes) {
            return Err(BlockError::OutOfRange { offset, len });
        }
        let mask = u64::from(self.block) - 1;
        if (offset | len) & mask != 0 {
            return Err(BlockError::Misaligned { offset, len });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Geometry = Geometry { bytes: 8 << 20, block: 512, depth: 4 };
    const ALL: Features =
        Features { read_only: false, discard: true, write_zeroes: true, volatile_cache: true, preferred_block: 4096 };

    #[test]
    fn limits_of_a_geometry() {
        let with = |bytes, block, depth| Geometry { bytes, block, depth }.checked();
        assert!(with(1, 1, 1).is_ok());
        assert!(with(u64::from(MAX_BLOCK_BYTES), MAX_BLOCK_BYTES, MAX_DEPTH).is_ok());
        assert_eq!(with(1 << 20, 2 * MAX_BLOCK_BYTES, 1), Err(GeometryError::Block { block: 2 * MAX_BLOCK_BYTES }));
        assert_eq!(with(1 << 20, 0, 1), Err(GeometryError::Block { block: 0 }));
        assert_eq!(with(1 << 20, 513, 1), Err(GeometryError::Block { block: 513 }));
        assert_eq!(with(0, 512, 1), Err(GeometryError::Bytes { bytes: 0, block: 512 }));
        assert_eq!(with(513, 512, 1), Err(GeometryError::Bytes { bytes: 513, block: 512 }));
        assert!(with(MAX_BLOCKS * 512, 512, 1).is_ok());
        assert!(with(MAX_BLOCKS * 512 + 512, 512, 1).is_err());
        assert_eq!(with(512, 512, 0), Err(GeometryError::Depth { depth: 0 }));
        assert_eq!(with(512, 512, MAX_DEPTH + 1), Err(GeometryError::Depth { depth: MAX_DEPTH + 1 }));
    }

    #[test]
    fn limits_of_a_read() {
        let check = |offset, len| SMALL.check(&BlockOp::Read { offset, len });
        assert!(check(0, MAX_REQUEST_BYTES).is_ok());
        let len = MAX_REQUEST_BYTES + 512;
        assert_eq!(check(0, len), Err(BlockError::Size { len: len.into(), segments: 0 }));
        assert_eq!(check(0, 0), Err(BlockError::Size { len: 0, segments: 0 }));
        assert!(check(SMALL.bytes - 512, 512).is_ok());
        assert_eq!(check(SMALL.bytes, 512), Err(BlockError::OutOfRange { offset: SMALL.bytes, len: 512 }));
        assert_eq!(check(u64::MAX, 512), Err(BlockError::OutOfRange { offset: u64::MAX, len: 512 }));
        assert_eq!(check(1, 512), Err(BlockError::Misaligned { offset: 1, len: 512 }));
        assert_eq!(check(0, 511), Err(BlockError::Misaligned { offset: 0, len: 511 }));
    }

    #[test]
    fn a_discard_or_zeroes_may_span_the_whole_device() {
        let zeroes = |offset, len| BlockOp::WriteZeroes { offset, len, durable: false, unmap: true };
        for op in [zeroes, |offset, len| BlockOp::Discard { offset, len }] {
            assert!(SMALL.check(&op(0, SMALL.bytes)).is_ok());
            let error = Err(BlockError::OutOfRange { offset: 512, len: SMALL.bytes });
            assert_eq!(SMALL.check(&op(512, SMALL.bytes)), error);
            assert_eq!(SMALL.check(&op(0, 0)), Err(BlockError::Size { len: 0, segments: 0 }));
        }
    }

    #[test]
    fn limits_of_the_preferred_block() {
        let with = |preferred_block| Features { preferred_block, ..ALL }.checked(4096).is_ok();
        assert!(with(4096) && with(MAX_PREFERRED_BYTES));
        assert!(!with(2048) && !with(4097) && !with(2 * MAX_PREFERRED_BYTES) && !with(0));
    }

    #[test]
    fn what_a_device_cannot_do_is_refused() {
        let write = BlockOp::Write { offset: 0, data: Payload::new(), durable: false };
        let discard = BlockOp::Discard { offset: 0, len: 512 };
        let zeroes = BlockOp::WriteZeroes { offset: 0, len: 512, durable: false, unmap: false };
        let read = BlockOp::Read { offset: 0, len: 512 };
        for op in [&read, &BlockOp::Flush, &write, &discard, &zeroes] {
            assert_eq!(ALL.check(op), Ok(()));
        }
        let read_only = Features { read_only: true, ..ALL };
        assert!(read_only.check(&read).is_ok() && read_only.check(&BlockOp::Flush).is_ok());
        for op in [&write, &discard, &zeroes] {
            assert_eq!(read_only.check(op), Err(BlockError::ReadOnly));
        }
        assert_eq!(Features { discard: false, ..ALL }.check(&discard), Err(BlockError::Unsupported));
        assert_eq!(Features { write_zeroes: false, ..ALL }.check(&zeroes), Err(BlockError::Unsupported));
    }
}
