//! The wire format of requests and replies.

use super::Fields;

/// The first four bytes of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// The first four bytes of a simple reply.
pub const SIMPLE_MAGIC: u32 = 0x6744_6698;
/// The first four bytes of a chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;
/// Bytes of a request before its payload.
pub const REQUEST_BYTES: usize = 28;
/// Bytes of a simple reply before its payload.
pub const SIMPLE_BYTES: usize = 16;
/// Bytes of a chunk before its payload.
pub const CHUNK_BYTES: usize = 20;

/// Kinds of requests.
pub mod command {
    /// Reads.
    pub const READ: u16 = 0;
    /// Writes the payload.
    pub const WRITE: u16 = 1;
    /// Ends the conversation; has no reply.
    pub const DISC: u16 = 2;
    /// Makes durable what has been answered.
    pub const FLUSH: u16 = 3;
    /// Says that content is not needed.
    pub const TRIM: u16 = 4;
    /// Writes zeros.
    pub const WRITE_ZEROES: u16 = 6;
    /// Asks what is allocated.
    pub const BLOCK_STATUS: u16 = 7;
}

bitflags::bitflags! {
    /// How a request is meant.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct CommandFlags: u16 {
        /// Durable when it is answered.
        const FUA = 1;
        /// Zeros are to be written without making a hole.
        const NO_HOLE = 1 << 1;
        /// The answer to a read is to be one piece.
        const DF = 1 << 2;
        /// One extent is enough.
        const REQ_ONE = 1 << 3;
        const _ = !0;
    }
}

/// Kinds of chunks.
pub mod chunk {
    /// Flag: the last chunk of its reply.
    pub const DONE: u16 = 1;
    /// Nothing.
    pub const NONE: u16 = 0;
    /// An offset, and bytes that were read there.
    pub const OFFSET_DATA: u16 = 1;
    /// An offset, and how many zeros were read there.
    pub const OFFSET_HOLE: u16 = 2;
    /// A metadata context, and extents.
    pub const BLOCK_STATUS: u16 = 5;
    /// The bit of all errors.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// An error.
    pub const ERROR: u16 = ERROR_BIT | 1;
}

/// Errors on the wire; numbers of Linux, wherever the ends run.
pub mod error {
    /// Not permitted.
    pub const EPERM: u32 = 1;
    /// Input/output error.
    pub const EIO: u32 = 5;
    /// No memory.
    pub const ENOMEM: u32 = 12;
    /// The request makes no sense.
    pub const EINVAL: u32 = 22;
    /// No space, or beyond the end.
    pub const ENOSPC: u32 = 28;
    /// Not supported.
    pub const ENOTSUP: u32 = 95;
}

/// States of an extent in `base:allocation`.
pub mod allocation {
    /// Nothing is allocated there.
    pub const HOLE: u32 = 1;
    /// It reads as zeros.
    pub const ZERO: u32 = 2;
}

/// A request, its payload not included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// How it is meant.
    pub flags: CommandFlags,
    /// What it is, see [`command`].
    pub command: u16,
    /// The client's name for it.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// How many.
    pub len: u32,
}

impl Request {
    /// As it is on the wire.
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut out = [0; REQUEST_BYTES];
        out[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.bits().to_be_bytes());
        out[6..8].copy_from_slice(&self.command.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
        out[24..].copy_from_slice(&self.len.to_be_bytes());
        out
    }

    /// `None` if it is no request.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let found = fields.u32()? == REQUEST_MAGIC;
        let request = Self {
            flags: CommandFlags::from_bits_retain(fields.u16()?),
            command: fields.u16()?,
            cookie: fields.u64()?,
            offset: fields.u64()?,
            len: fields.u32()?,
        };
        found.then_some(request)
    }
}

/// The head of a simple reply.
pub fn simple(error: u32, cookie: u64) -> [u8; SIMPLE_BYTES] {
    let mut out = [0; SIMPLE_BYTES];
    out[..4].copy_from_slice(&SIMPLE_MAGIC.to_be_bytes());
    out[4..8].copy_from_slice(&error.to_be_bytes());
    out[8..].copy_from_slice(&cookie.to_be_bytes());
    out
}

/// The head of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// [`chunk::DONE`] or nothing.
    pub flags: u16,
    /// What it is, see [`chunk`].
    pub kind: u16,
    /// The client's name for the request.
    pub cookie: u64,
    /// Bytes behind it.
    pub len: u32,
}

impl Chunk {
    /// As it is on the wire.
    pub fn encode(&self) -> [u8; CHUNK_BYTES] {
        let mut out = [0; CHUNK_BYTES];
        out[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.to_be_bytes());
        out[6..8].copy_from_slice(&self.kind.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..].copy_from_slice(&self.len.to_be_bytes());
        out
    }
}

/// The head of any reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// A simple one: an error or 0, and the request.
    Simple {
        /// See [`error`].
        error: u32,
        /// The request.
        cookie: u64,
    },
    /// A chunk of a structured one.
    Chunk(Chunk),
}

impl Reply {
    /// How many bytes the head has that begins like this; `None` if none does.
    pub fn head_bytes(magic: [u8; 4]) -> Option<usize> {
        match u32::from_be_bytes(magic) {
            SIMPLE_MAGIC => Some(SIMPLE_BYTES),
            CHUNK_MAGIC => Some(CHUNK_BYTES),
            _ => None,
        }
    }

    /// `None` if it is no whole head.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        match fields.u32()? {
            SIMPLE_MAGIC => Some(Self::Simple { error: fields.u32()?, cookie: fields.u64()? }),
            CHUNK_MAGIC => Some(Self::Chunk(Chunk {
                flags: fields.u16()?,
                kind: fields.u16()?,
                cookie: fields.u64()?,
                len: fields.u32()?,
            })),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let request = Request {
            flags: CommandFlags::FUA | CommandFlags::REQ_ONE,
            command: command::WRITE,
            cookie: 0x0102_0304_0506_0708,
            offset: u64::MAX,
            len: 7,
        };
        let bytes = request.encode();
        assert_eq!(Request::decode(&bytes), Some(request));
        let mut wrong = bytes;
        wrong[0] ^= 1;
        assert_eq!(Request::decode(&wrong), None);

        let reply = simple(error::EINVAL, 9);
        assert_eq!(Reply::head_bytes(*reply.first_chunk().unwrap()), Some(SIMPLE_BYTES));
        assert_eq!(Reply::decode(&reply), Some(Reply::Simple { error: error::EINVAL, cookie: 9 }));
        let chunk = Chunk { flags: chunk::DONE, kind: chunk::OFFSET_DATA, cookie: 3, len: 11 };
        assert_eq!(Reply::head_bytes(*chunk.encode().first_chunk().unwrap()), Some(CHUNK_BYTES));
        assert_eq!(Reply::decode(&chunk.encode()), Some(Reply::Chunk(chunk)));
        assert_eq!((Reply::decode(&chunk.encode()[..19]), Reply::head_bytes([0; 4])), (None, None));
    }
}
