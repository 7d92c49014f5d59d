//! The 60 bytes of a message: a head, a loan, and up to three segments; longer lists lie in the sender's arena.
//!
//! ```text
//! word 0       kind:8 | flags:8 | number of segments:16
//! word 1       loan tag:16 | returned tag:16      (0: none)
//! words 2-5    arguments of the protocol above
//! words 6-14   three segments of address:64, length:32;
//!              with more than three, the first one names an array of them (16 bytes each) in the sender's arena
//! ```
//! Kinds from [`KIND_RESERVED`] on belong to the lane: [`KIND_RETURNS`] carries up to 26 tags of loans that end.

#[cfg(test)]
mod tests;

use crate::addr::{GlobalAddr, Segment};
use crate::ring::Words;

/// Kinds from here on are the lane's own.
pub const KIND_RESERVED: u8 = 0xF0;
/// The lane's message that returns loans: tags fill the words from 2 on; a 0 ends them.
pub const KIND_RETURNS: u8 = 0xF0;
/// How many segments fit into the message itself.
pub const INLINE_SEGMENTS: usize = 3;
/// How many tags one message of [`KIND_RETURNS`] carries.
pub const MAX_RETURNS: usize = 26;
/// Bytes of one entry of a list in the sender's arena: address, length, 4 bytes of zero.
pub const LIST_ENTRY_BYTES: usize = 16;

/// What a protocol puts into a message beside its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// What the message is, below [`KIND_RESERVED`].
    pub kind: u8,
    /// Details of it.
    pub flags: u8,
    /// Its arguments.
    pub args: [u32; 4],
}

/// A message as it lies in a slot, in private memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// The protocol's part.
    pub head: Head,
    /// The tag of the loan that the segments are, 0 if there are none.
    pub loan: u16,
    /// The tag of a loan of the receiver's that ends, 0 for none.
    pub returned: u16,
    /// How many segments the payload has.
    pub count: u16,
    /// The first three segments, or the list of them.
    pub segments: [Segment; INLINE_SEGMENTS],
}

/// No segment.
pub const NO_SEGMENT: Segment = Segment::new(GlobalAddr::from_bits(0), 0);

impl Frame {
    /// The words of a slot.
    pub fn encode(&self) -> Words {
        let mut words = [0; 15];
        words[0] = u32::from(self.head.kind) | u32::from(self.head.flags) << 8 | u32::from(self.count) << 16;
        words[1] = u32::from(self.loan) | u32::from(self.returned) << 16;
        words[2..6].copy_from_slice(&self.head.args);
        for (segment, words) in self.segments.iter().zip(words[6..].chunks_exact_mut(3)) {
            let bits = segment.addr.bits();
            words.copy_from_slice(&[bits as u32, (bits >> 32) as u32, segment.len]);
        }
        words
    }

    /// The message in a slot's words. Every pattern is a message; what it alleges is checked by who uses it.
    pub fn decode(words: &Words) -> Self {
        let mut segments = [NO_SEGMENT; INLINE_SEGMENTS];
        for (segment, words) in segments.iter_mut().zip(words[6..].chunks_exact(3)) {
            let bits = u64::from(words[0]) | u64::from(words[1]) << 32;
            *segment = Segment::new(GlobalAddr::from_bits(bits), words[2]);
        }
        Self {
            head: Head {
                kind: words[0] as u8,
                flags: (words[0] >> 8) as u8,
                args: [words[2], words[3], words[4], words[5]],
            },
            loan: words[1] as u16,
            returned: (words[1] >> 16) as u16,
            count: (words[0] >> 16) as u16,
            segments,
        }
    }
}

/// The words of a message that returns these loans, at most [`MAX_RETURNS`].
pub fn encode_returns(tags: &[u16]) -> Words {
    let mut words = [0; 15];
    words[0] = u32::from(KIND_RETURNS);
    for (index, tag) in tags.iter().take(MAX_RETURNS).enumerate() {
        words[2 + index / 2] |= u32::from(*tag) << (16 * (index % 2));
    }
    words
}

/// The tags in such a message.
pub fn decode_returns(words: &Words) -> impl Iterator<Item = u16> + '_ {
    words.iter().skip(2).flat_map(|word| [*word as u16, (*word >> 16) as u16]).take_while(|tag| *tag != 0)
}

/// One entry of a list in the sender's arena.
pub fn encode_entry(segment: Segment) -> [u8; LIST_ENTRY_BYTES] {
    let mut bytes = [0; LIST_ENTRY_BYTES];
    bytes[..8].copy_from_slice(&segment.addr.bits().to_le_bytes());
    bytes[8..12].copy_from_slice(&segment.len.to_le_bytes());
    bytes
}

/// The segment in a list's entry.
pub fn decode_entry(bytes: [u8; LIST_ENTRY_BYTES]) -> Segment {
    let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, ..] = bytes;
    let addr = GlobalAddr::from_bits(u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]));
    Segment::new(addr, u32::from_le_bytes([l0, l1, l2, l3]))
}
