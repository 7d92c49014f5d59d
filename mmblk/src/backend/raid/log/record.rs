//! A record of the log: what is about to be written in place.
//!
//! A record is a block with its head, followed by the data it is about. It is on stable storage before anything of what
//! it describes is written in place. `docs/raid.md` has the layout.

use std::ops::Range;

use super::super::MAX_MEMBERS;
use super::super::layout::Layout;

/// Bytes of a head; it takes a whole block of the array.
pub const HEAD_BYTES: usize = 256;
/// The most ranges of rows in one record.
pub const MAX_RANGES: usize = 4;
const MAGIC: [u8; 8] = *b"FIDORLOG";
const CHECKED_BYTES: usize = HEAD_BYTES - 4;

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The new content of some rows of this member in a stripe. It counts only if each of the participants that are still
    /// members of the array has its part: then the new content of all is to be written (again), else none of it was.
    Redo {
        /// The stripe.
        stripe: u64,
        /// The members that have a record of the same number, a bit each.
        participants: u32,
        /// The rows whose content follows, in the order of the data.
        ranges: Vec<Range<u32>>,
        /// The data's CRC-32.
        sum: u32,
    },
    /// These stripes are being written as a whole: redundancy has to be made anew from the data.
    Intent {
        /// The first stripe.
        first: u64,
        /// How many.
        count: u64,
    },
    /// Nothing but the head's `tail`.
    Tail,
}

/// The head of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The log it belongs to; see the superblock.
    pub log_id: u128,
    /// Its number; all members' records of one number belong together.
    pub seq: u64,
    /// All records with smaller numbers have done their duty.
    pub tail: u64,
    /// The member it was written to.
    pub member: usize,
    /// What it says.
    pub content: Content,
}

/// Why bytes are not the head of a record of this log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no record of this log")]
pub struct NoRecord;

impl Head {
    /// Bytes of data that follow the head's block.
    pub fn data_bytes(&self) -> u64 {
        match &self.content {
            Content::Redo { ranges, .. } => ranges.iter().map(|rows| u64::from(rows.end - rows.start)).sum(),
            Content::Intent { .. } | Content::Tail => 0,
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut out = [0; HEAD_BYTES];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(8, &self.log_id.to_le_bytes());
        put(24, &self.seq.to_le_bytes());
        put(32, &self.tail.to_le_bytes());
        put(41, &[self.member as u8]);
        match &self.content {
            Content::Redo { stripe, participants, ranges, sum } => {
                put(40, &[1]);
                put(42, &(ranges.len() as u16).to_le_bytes());
                put(44, &participants.to_le_bytes());
                put(48, &stripe.to_le_bytes());
                put(64, &sum.to_le_bytes());
                for (index, rows) in ranges.iter().enumerate().take(MAX_RANGES) {
                    put(72 + 8 * index, &rows.start.to_le_bytes());
                    put(76 + 8 * index, &(rows.end - rows.start).to_le_bytes());
                }
            }
            Content::Intent { first, count } => {
                put(40, &[2]);
                put(48, &first.to_le_bytes());
                put(56, &count.to_le_bytes());
            }
            Content::Tail => put(40, &[3]),
        }
        let sum = crc32fast::hash(&out[..CHECKED_BYTES]);
        out[CHECKED_BYTES..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads the head of a record of the log `log_id`, and checks it against the layout of the array.
    ///
    /// # Errors
    /// [`NoRecord`] if it is none, or says what cannot be.
    pub fn decode(bytes: &[u8; HEAD_BYTES], log_id: u128, layout: &Layout) -> Result<Self, NoRecord> {
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let found_id = u128::from_le_bytes(std::array::from_fn(|i| bytes[8 + i]));
        if bytes[..8] != MAGIC
            || found_id != log_id
            || u32_at(CHECKED_BYTES) != crc32fast::hash(&bytes[..CHECKED_BYTES])
        {
            return Err(NoRecord);
        }
        let content = match bytes[40] {
            1 => Self::redo(bytes, layout).ok_or(NoRecord)?,
            2 => {
                let (first, count) = (u64_at(48), u64_at(56));
                if count == 0 || first.checked_add(count).is_none_or(|end| end > layout.stripes) {
                    return Err(NoRecord);
                }
                Content::Intent { first, count }
            }
            3 => Content::Tail,
            _ => return Err(NoRecord),
        };
        let member = usize::from(bytes[41]);
        if member >= layout.members {
            return Err(NoRecord);
        }
        Ok(Self { log_id, seq: u64_at(24), tail: u64_at(32), member, content })
    }

    fn redo(bytes: &[u8; HEAD_BYTES], layout: &Layout) -> Option<Content> {
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let count = usize::from(u16::from_le_bytes([bytes[42], bytes[43]]));
        if count == 0 || count > MAX_RANGES {
            return None;
        }
        let mut ranges = Vec::with_capacity(count);
        let mut last = 0;
        for index in 0..count {
            let (row, len) = (u32_at(72 + 8 * index), u32_at(76 + 8 * index));
            let end = row.checked_add(len).filter(|end| *end <= layout.chunk)?;
            // In order and apart, so that their sum is at most a chunk.
            if len == 0 || row < last {
                return None;
            }
            last = end;
            ranges.push(row..end);
        }
        let stripe = u64::from_le_bytes(std::array::from_fn(|i| bytes[48 + i]));
        let participants = u32_at(44);
        let members = if layout.members == MAX_MEMBERS { u32::MAX } else { (1 << layout.members) - 1 };
        let own = 1_u32.checked_shl(bytes[41].into())?;
        if stripe >= layout.stripes || participants & !members != 0 || participants & own == 0 {
            return None;
        }
        Some(Content::Redo { stripe, participants, ranges, sum: u32_at(64) })
    }
}

/// Any bytes: decoding never panics, and what it accepts lies within the array and encodes to what decodes to the same.
///
/// # Panics
/// If a promise is broken: for fuzzing.
pub fn fuzz(data: &[u8]) {
    use super::super::layout::Level;
    let layout = Layout { level: Level::Raid5, members: 5, chunk: 65536, data_offset: 1 << 20, stripes: 77 };
    let mut bytes = [0; HEAD_BYTES];
    let count = data.len().min(HEAD_BYTES);
    bytes[..count].copy_from_slice(&data[..count]);
    let _ = Head::decode(&bytes, 5, &layout);
    // A fuzzer does not guess a magic, an identity and a checksum: the same with all right.
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..24].copy_from_slice(&5_u128.to_le_bytes());
    let sum = crc32fast::hash(&bytes[..CHECKED_BYTES]);
    bytes[CHECKED_BYTES..].copy_from_slice(&sum.to_le_bytes());
    if let Ok(head) = Head::decode(&bytes, 5, &layout) {
        assert_eq!(Head::decode(&head.encode(), 5, &layout).as_ref(), Ok(&head));
        assert!(head.data_bytes() <= layout.chunk.into() && head.member < layout.members);
        if let Content::Redo { stripe, .. } = head.content {
            assert!(stripe < layout.stripes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::layout::Level;
    use super::*;
    use proptest::prelude::*;

    const LAYOUT: Layout = Layout { level: Level::Raid5, members: 4, chunk: 65536, data_offset: 1 << 20, stripes: 50 };

    fn redo(stripe: u64, participants: u32, ranges: Vec<Range<u32>>) -> Head {
        let content = Content::Redo { stripe, participants, ranges, sum: 7 };
        Head { log_id: 3, seq: 9, tail: 4, member: 1, content }
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "one range of rows is meant")]
    fn a_head_is_its_bytes() {
        let decode = |head: &Head| Head::decode(&head.encode(), 3, &LAYOUT);
        for head in [
            redo(49, 0b1010, vec![0..512, 1024..65536]),
            Head { content: Content::Intent { first: 48, count: 2 }, ..redo(0, 2, vec![]) },
            Head { content: Content::Tail, ..redo(0, 2, vec![]) },
        ] {
            assert_eq!(decode(&head), Ok(head.clone()));
            assert_eq!(Head::decode(&head.encode(), 4, &LAYOUT), Err(NoRecord), "of another log");
        }
        for bad in [
            redo(50, 2, vec![0..512]),
            redo(0, 1, vec![0..512]),
            redo(0, 0b10010, vec![0..512]),
            redo(0, 2, vec![]),
            redo(0, 2, vec![512..1024, 0..512]),
            redo(0, 2, vec![512..65537]),
            Head { content: Content::Intent { first: 49, count: 2 }, ..redo(0, 2, vec![]) },
        ] {
            assert_eq!(decode(&bad), Err(NoRecord), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..HEAD_BYTES), kind in 0u8..5, fields in any::<(u8, u8)>()) {
            let mut bytes = bytes;
            fuzz(&bytes);
            bytes.resize(HEAD_BYTES, 0);
            bytes[40] = kind;
            bytes[41] %= 6;
            fuzz(&bytes);
            let mut near = redo(3, 0b1010, vec![0..512, 1024..65536]).encode();
            near[usize::from(fields.0) % HEAD_BYTES] = fields.1;
            fuzz(&near);
        }
    }
}
