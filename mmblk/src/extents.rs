//! What of a device is allocated: the answer to [`BlockOp::Extents`](crate::queue::BlockOp::Extents), as bytes in the
//! device's arena.
//!
//! Each extent is 8 bytes, little-endian: its length, and in the topmost bit whether it is a hole, which reads as
//! zeros. They follow each other from the request's offset on. The list may end before the request does: whoever asked
//! then asks again for the rest. It is never empty, and no extent is.

use fido_core::memory::Memory;
use fido_core::payload::Payload;

use crate::queue::BlockError;

/// The most extents of one answer.
pub const MAX_EXTENTS: usize = 512;
/// Bytes of an extent.
const EXTENT_BYTES: usize = 8;
/// The most bytes of an answer.
pub(crate) const MAX_BYTES: u32 = (MAX_EXTENTS * EXTENT_BYTES) as u32;
const HOLE: u64 = 1 << 63;

/// A range that is allocated, or is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes.
    pub len: u64,
    /// Nothing is allocated; it reads as zeros.
    pub hole: bool,
}

/// Writes a list of at most [`MAX_EXTENTS`] into a buffer of the own arena.
/// (What is beyond is left out.)
///
/// # Errors
/// [`BlockError::NoBuffer`] if the arena has no room.
pub fn write(list: &[Extent], memory: &Memory) -> Result<Payload, BlockError> {
    let list = list.get(..MAX_EXTENTS).unwrap_or(list);
    let mut buf = memory.alloc((list.len() * EXTENT_BYTES).max(1)).map_err(|_| BlockError::NoBuffer)?;
    for (place, Extent { len, hole }) in buf.as_mut_slice().chunks_exact_mut(EXTENT_BYTES).zip(list) {
        place.copy_from_slice(&(len & !HOLE | if *hole { HOLE } else { 0 }).to_le_bytes());
    }
    Ok(buf.into_payload())
}

/// Reads a list that a device has lent. What is beyond [`MAX_EXTENTS`] is left out.
///
/// # Errors
/// [`BlockError::Address`] if there is no memory behind it; [`BlockError::Protocol`] if it is no list.
pub fn read(list: &Payload, memory: &Memory) -> Result<Vec<Extent>, BlockError> {
    let count = (list.len() as usize / EXTENT_BYTES).min(MAX_EXTENTS);
    let mut bytes = vec![0; count * EXTENT_BYTES];
    memory.read_header(list, 0, &mut bytes).map_err(|error| BlockError::Address(error.to_string()))?;
    let words = bytes.as_chunks::<EXTENT_BYTES>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
    let list: Vec<Extent> = words.map(|word| Extent { len: word & !HOLE, hole: word & HOLE != 0 }).collect();
    if list.is_empty() || list.iter().any(|extent| extent.len == 0) {
        return Err(BlockError::Protocol("no list of extents".into()));
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fido_core::testing::private_memory;

    #[test]
    fn a_list_is_read_as_written() {
        let memory = private_memory(1 << 20);
        let list = [Extent { len: 4096, hole: true }, Extent { len: (1 << 63) - 1, hole: false }];
        assert_eq!(read(&write(&list, &memory).unwrap(), &memory).unwrap(), list);
        let many = vec![Extent { len: 1, hole: false }; MAX_EXTENTS + 1];
        assert_eq!(read(&write(&many, &memory).unwrap(), &memory).unwrap(), many[..MAX_EXTENTS]);
        let empty = [Extent { len: 0, hole: true }];
        for wrong in [Payload::new(), write(&empty, &memory).unwrap(), write(&[], &memory).unwrap()] {
            assert!(matches!(read(&wrong, &memory), Err(BlockError::Protocol(_))));
        }
    }
}
