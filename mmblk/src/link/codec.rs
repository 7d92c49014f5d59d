//! The requests and answers of a lane, packed into the 16 bytes of a message's arguments.
//!
//! | message | kind | flags | arguments (32 bits each) | payload |
//! |---|---|---|---|---|
//! | identify | 0x01 | | id, protocol version | |
//! | read | 0x02 | | id, offset low, offset high, length | |
//! | write | 0x03 | 1: durable | id, offset low, offset high, length | the data |
//! | flush | 0x04 | | id | |
//! | discard | 0x05 | | id, block low, block high:16 and count high:16, count low | |
//! | write-zeroes | 0x06 | 1: durable, 2: unmap | as of discard | |
//! | extents | 0x07 | | as of discard | |
//! | identity | 0x81 | log2 of the block size | id, bytes low, bytes high, depth:16 and preferred:8 and features:8 | |
//! | done | 0x82 | | id, length | of a read, the data; of extents, their list |
//! | failed | 0x83 | code | id, errno or version | |
//!
//! *Preferred* is the log2 of the preferred block size; the features are 1: read-only, 2: discard, 4: write-zeroes,
//! 8: volatile cache. An identity that was not asked for, with the id of the question (`u32::MAX`), says that the
//! device has another size now.
//!
//! Decoding is total: any 18 bytes are a message or a [`CodecError`], and what is unused must be zero, so that every
//! message has one form only.

use fido_core::message::Head;

use crate::queue::{BlockError, BlockOp, Features, Geometry, GeometryError};

/// The version of this protocol. Both sides must have the same.
pub const VERSION: u32 = 2;
/// The id of the question who the device is, of its answer, and of the news of another size. No request has it.
pub const IDENTIFY_ID: u32 = u32::MAX;

const IDENTIFY: u8 = 0x01;
const READ: u8 = 0x02;
const WRITE: u8 = 0x03;
const FLUSH: u8 = 0x04;
const DISCARD: u8 = 0x05;
const WRITE_ZEROES: u8 = 0x06;
const EXTENTS: u8 = 0x07;
const IDENTITY: u8 = 0x81;
const DONE: u8 = 0x82;
const FAILED: u8 = 0x83;

const DURABLE: u8 = 1;
const UNMAP: u8 = 2;

const READ_ONLY: u8 = 1;
const CAN_DISCARD: u8 = 2;
const CAN_WRITE_ZEROES: u8 = 4;
const VOLATILE_CACHE: u8 = 8;

/// The highest bits that a block number or count has.
const BLOCK_MASK: u64 = (1 << 48) - 1;

/// A message that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Not a kind of this protocol, or not of this direction.
    #[error("a message of kind {kind:#04x}")]
    Kind {
        /// What it says.
        kind: u8,
    },
    /// Something that must be zero is not, or a flag is unknown.
    #[error("a message of kind {kind:#04x} with flags {flags:#04x} and arguments {args:x?}")]
    Form {
        /// What kind it is.
        kind: u8,
        /// Its flags.
        flags: u8,
        /// Its arguments.
        args: [u32; 4],
    },
    /// A device beyond the limits.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
}

/// What the front end says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Asks for the geometry; the first message of a session.
    Identify {
        /// The front end's protocol version.
        version: u32,
    },
    /// Reads.
    Read {
        /// First byte.
        offset: u64,
        /// How many bytes.
        len: u32,
    },
    /// Writes the message's payload.
    Write {
        /// First byte.
        offset: u64,
        /// The payload's length, which has to agree.
        len: u32,
        /// Whether it must be on stable storage.
        durable: bool,
    },
    /// Makes completed writes durable.
    Flush,
    /// Says that content is no longer needed. In blocks, so that both numbers fit.
    Discard {
        /// First block, below 2^48.
        block: u64,
        /// How many blocks, below 2^48.
        blocks: u64,
    },
    /// Makes a range read as zeros. In blocks, as a discard.
    WriteZeroes {
        /// First block, below 2^48.
        block: u64,
        /// How many blocks, below 2^48.
        blocks: u64,
        /// Whether the zeros must be on stable storage.
        durable: bool,
        /// Whether the space may be given back.
        unmap: bool,
    },
    /// Asks what is allocated. In blocks, as a discard.
    Extents {
        /// First block, below 2^48.
        block: u64,
        /// How many blocks, below 2^48.
        blocks: u64,
    },
}

/// Who a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Its sizes.
    pub geometry: Geometry,
    /// What it can do.
    pub features: Features,
}

/// What the back end says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// What the device is like.
    Identity(Identity),
    /// The request is complete.
    Done {
        /// Length of the payload that comes with it.
        len: u32,
    },
    /// The request failed.
    Failed(Failure),
}

/// A [`BlockError`] as it travels. What is missing is known to the one who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// [`BlockError::OutOfRange`].
    OutOfRange,
    /// [`BlockError::Misaligned`].
    Misaligned,
    /// [`BlockError::Size`].
    Size,
    /// [`BlockError::Address`].
    Address,
    /// [`BlockError::NoBuffer`].
    NoBuffer,
    /// [`BlockError::Io`].
    Io {
        /// The system's number.
        errno: i32,
    },
    /// [`BlockError::NoSpace`].
    NoSpace,
    /// [`BlockError::ReadOnly`].
    ReadOnly,
    /// [`BlockError::Unsupported`].
    Unsupported,
    /// [`BlockError::Protocol`].
    Protocol,
    /// The back end speaks another version of this protocol.
    Version {
        /// Its version.
        version: u32,
    },
}

/// The id that a message carries, whatever else is wrong with it.
pub fn id(head: &Head) -> u32 {
    head.args[0]
}

impl Request {
    /// The message that says this.
    pub fn encode(&self, id: u32) -> Head {
        match *self {
            Self::Identify { version } => head(IDENTIFY, 0, [id, version, 0, 0]),
            Self::Read { offset, len } => head(READ, 0, [id, low(offset), high(offset), len]),
            Self::Write { offset, len, durable } => {
                head(WRITE, flag(durable, DURABLE), [id, low(offset), high(offset), len])
            }
            Self::Flush => head(FLUSH, 0, [id, 0, 0, 0]),
            Self::Discard { block, blocks } => range(DISCARD, 0, id, block, blocks),
            Self::WriteZeroes { block, blocks, durable, unmap } => {
                let flags = flag(durable, DURABLE) | flag(unmap, UNMAP);
                range(WRITE_ZEROES, flags, id, block, blocks)
            }
            Self::Extents { block, blocks } => range(EXTENTS, 0, id, block, blocks),
        }
    }

    /// What a message says.
    ///
    /// # Errors
    /// [`CodecError`] if it is none of these.
    pub fn decode(head: &Head) -> Result<Self, CodecError> {
        let Head { kind, flags, args: [_, a, b, c] } = *head;
        match (kind, flags, a, b, c) {
            (IDENTIFY, 0, version, 0, 0) => Ok(Self::Identify { version }),
            (READ, 0, ..) => Ok(Self::Read { offset: join(a, b), len: c }),
            (WRITE, 0 | DURABLE, ..) => Ok(Self::Write { offset: join(a, b), len: c, durable: flags & DURABLE != 0 }),
            (FLUSH, 0, 0, 0, 0) => Ok(Self::Flush),
            (DISCARD, 0, ..) => Ok(Self::Discard { block: join(a, b & 0xFFFF), blocks: join(c, b >> 16) }),
            (WRITE_ZEROES, 0..=3, ..) => Ok(Self::WriteZeroes {
                block: join(a, b & 0xFFFF),
                blocks: join(c, b >> 16),
                durable: flags & DURABLE != 0,
                unmap: flags & UNMAP != 0,
            }),
            (EXTENTS, 0, ..) => Ok(Self::Extents { block: join(a, b & 0xFFFF), blocks: join(c, b >> 16) }),
            (IDENTIFY..=EXTENTS, ..) => Err(CodecError::Form { kind, flags, args: head.args }),
            _ => Err(CodecError::Kind { kind }),
        }
    }

    /// The message for an operation that fits a device with this block size.
    pub fn of(op: &BlockOp, block: u32) -> Self {
        let block = u64::from(block);
        match op {
            BlockOp::Read { offset, len } => Self::Read { offset: *offset, len: *len },
            // At most `MAX_REQUEST_BYTES`: checked before anything is sent.
            BlockOp::Write { offset, data, durable } => {
                Self::Write { offset: *offset, len: data.len() as u32, durable: *durable }
            }
            BlockOp::Flush => Self::Flush,
            BlockOp::Discard { offset, len } => Self::Discard { block: offset / block, blocks: len / block },
            BlockOp::WriteZeroes { offset, len, durable, unmap } => {
                Self::WriteZeroes { block: offset / block, blocks: len / block, durable: *durable, unmap: *unmap }
            }
            BlockOp::Extents { offset, len } => Self::Extents { block: offset / block, blocks: len / block },
        }
    }
}

impl Identity {
    /// Whether that is the same device, as far as can be told, but for its size.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let bytes = self.geometry.bytes;
        Self { geometry: Geometry { bytes, ..other.geometry }, ..*other } == *self
    }

    fn encode(self, id: u32) -> Head {
        let Self { geometry: Geometry { bytes, block, depth }, features } = self;
        let Features { read_only, discard, write_zeroes, volatile_cache, preferred_block } = features;
        let bits = flag(read_only, READ_ONLY)
            | flag(discard, CAN_DISCARD)
            | flag(write_zeroes, CAN_WRITE_ZEROES)
            | flag(volatile_cache, VOLATILE_CACHE);
        // The depth is at most `MAX_DEPTH`, a log2 at most 31: neither reaches beyond its place.
        let last = depth | preferred_block.trailing_zeros() << 16 | u32::from(bits) << 24;
        head(IDENTITY, block.trailing_zeros() as u8, [id, low(bytes), high(bytes), last])
    }

    /// # Errors
    /// [`CodecError::Geometry`] for what is beyond the limits; `form` if a number means nothing.
    fn decode(message: &Head, form: CodecError) -> Result<Self, CodecError> {
        let [_, low, high, last] = message.args;
        let (depth, preferred, bits) = (last & 0xFFFF, last >> 16 & 0xFF, (last >> 24) as u8);
        if bits >= 2 * VOLATILE_CACHE {
            return Err(form);
        }
        let block = 1u32.checked_shl(message.flags.into()).ok_or(form)?;
        let features = Features {
            read_only: bits & READ_ONLY != 0,
            discard: bits & CAN_DISCARD != 0,
            write_zeroes: bits & CAN_WRITE_ZEROES != 0,
            volatile_cache: bits & VOLATILE_CACHE != 0,
            preferred_block: 1u32.checked_shl(preferred).ok_or(form)?,
        };
        let geometry = Geometry { bytes: join(low, high), block, depth }.checked()?;
        Ok(Self { geometry, features: features.checked(block)? })
    }
}

impl Answer {
    /// The message that says this.
    pub fn encode(&self, id: u32) -> Head {
        match *self {
            Self::Identity(identity) => identity.encode(id),
            Self::Done { len } => head(DONE, 0, [id, len, 0, 0]),
            Self::Failed(failure) => {
                let (code, detail) = failure.encode();
                head(FAILED, code, [id, detail, 0, 0])
            }
        }
    }

    /// What a message says.
    ///
    /// # Errors
    /// [`CodecError`] if it is none of these.
    pub fn decode(head: &Head) -> Result<Self, CodecError> {
        let Head { kind, flags, args: [_, a, b, c] } = *head;
        let form = CodecError::Form { kind, flags, args: head.args };
        match (kind, flags, a, b, c) {
            (IDENTITY, ..) => Identity::decode(head, form).map(Self::Identity),
            (DONE, 0, len, 0, 0) => Ok(Self::Done { len }),
            (FAILED, code, detail, 0, 0) => Failure::decode(code, detail).map(Self::Failed).ok_or(form),
            (DONE | FAILED, ..) => Err(form),
            _ => Err(CodecError::Kind { kind }),
        }
    }
}

impl Failure {
    fn encode(self) -> (u8, u32) {
        match self {
            Self::OutOfRange => (1, 0),
            Self::Misaligned => (2, 0),
            Self::Size => (3, 0),
            Self::Address => (4, 0),
            Self::NoBuffer => (5, 0),
            Self::Io { errno } => (6, errno.cast_unsigned()),
            Self::NoSpace => (7, 0),
            Self::Protocol => (8, 0),
            Self::Version { version } => (9, version),
            Self::ReadOnly => (10, 0),
            Self::Unsupported => (11, 0),
        }
    }

    fn decode(code: u8, detail: u32) -> Option<Self> {
        Some(match (code, detail) {
            (1, 0) => Self::OutOfRange,
            (2, 0) => Self::Misaligned,
            (3, 0) => Self::Size,
            (4, 0) => Self::Address,
            (5, 0) => Self::NoBuffer,
            (6, errno) => Self::Io { errno: errno.cast_signed() },
            (7, 0) => Self::NoSpace,
            (8, 0) => Self::Protocol,
            (9, version) => Self::Version { version },
            (10, 0) => Self::ReadOnly,
            (11, 0) => Self::Unsupported,
            _ => return None,
        })
    }

    /// The error that the one who asked for `op` gets.
    pub fn into_error(self, op: &BlockOp) -> BlockError {
        let (offset, len, segments) = op.extent();
        match self {
            Self::OutOfRange => BlockError::OutOfRange { offset, len },
            Self::Misaligned => BlockError::Misaligned { offset, len },
            Self::Size => BlockError::Size { len, segments },
            Self::Address => BlockError::Address("a segment of it has no memory behind it there".into()),
            Self::NoBuffer => BlockError::NoBuffer,
            Self::Io { errno } => BlockError::Io { errno },
            Self::NoSpace => BlockError::NoSpace,
            Self::ReadOnly => BlockError::ReadOnly,
            Self::Unsupported => BlockError::Unsupported,
            Self::Protocol => BlockError::Protocol("that it does not understand the request".into()),
            Self::Version { version } => BlockError::Protocol(format!("protocol version {version}, not {VERSION}")),
        }
    }
}

impl From<&BlockError> for Failure {
    fn from(error: &BlockError) -> Self {
        match error {
            BlockError::OutOfRange { .. } => Self::OutOfRange,
            BlockError::Misaligned { .. } => Self::Misaligned,
            BlockError::Size { .. } => Self::Size,
            BlockError::Address(_) => Self::Address,
            BlockError::NoBuffer => Self::NoBuffer,
            BlockError::Io { errno } => Self::Io { errno: *errno },
            BlockError::NoSpace => Self::NoSpace,
            BlockError::ReadOnly => Self::ReadOnly,
            BlockError::Unsupported => Self::Unsupported,
            BlockError::Protocol(_) => Self::Protocol,
        }
    }
}

const fn head(kind: u8, flags: u8, args: [u32; 4]) -> Head {
    Head { kind, flags, args }
}

/// A message about a range of blocks.
const fn range(kind: u8, flags: u8, id: u32, block: u64, blocks: u64) -> Head {
    let (block, blocks) = (block & BLOCK_MASK, blocks & BLOCK_MASK);
    head(kind, flags, [id, low(block), high(block) | high(blocks) << 16, low(blocks)])
}

const fn flag(is_set: bool, flag: u8) -> u8 {
    if is_set { flag } else { 0 }
}

const fn low(value: u64) -> u32 {
    value as u32
}

const fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

const fn join(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

/// The body of the fuzz target and of the property test: whatever bytes come in, decoding yields an error or a message
/// that encodes to the same bytes again.
///
/// # Panics
/// If it does not.
pub fn fuzz(bytes: [u8; 18]) {
    let [kind, flags, rest @ ..] = bytes;
    let mut args = [0; 4];
    for (arg, word) in args.iter_mut().zip(rest.chunks_exact(4)) {
        *arg = word.iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
    }
    let message = Head { kind, flags, args };
    if let Ok(request) = Request::decode(&message) {
        assert_eq!(request.encode(id(&message)), message, "{request:?}");
    }
    if let Ok(answer) = Answer::decode(&message) {
        assert_eq!(answer.encode(id(&message)), message, "{answer:?}");
    }
}

#[cfg(test)]
mod tests;
