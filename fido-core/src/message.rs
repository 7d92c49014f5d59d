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
use crate::ring::{MESSAGE_WORDS, PAIRS, Words, join, split};

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

/// The first two words of a message, which say how to read the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening(u64);

impl Opening {
    /// Of the first pair of words in a slot.
    #[inline]
    pub const fn of(pair: u64) -> Self {
        Self(pair)
    }

    /// Of a message of that kind with neither loan nor return.
    #[inline]
    pub const fn plain(kind: u8, flags: u8) -> Self {
        Self(kind as u64 | (flags as u64) << 8)
    }

    /// The same with one segment, lent under that tag (neither if it is 0), and a return (none if it is 0).
    #[inline]
    pub const fn with(self, loan: u16, returned: u16) -> Self {
        Self(self.0 | ((loan != 0) as u64) << 16 | (loan as u64) << 32 | (returned as u64) << 48)
    }

    /// Whether it is the protocol's, and has one segment under a loan, or neither: what a message mostly is.
    #[inline]
    pub const fn is_simple(self) -> bool {
        let count = self.0 as u32 >> 16;
        self.kind() < KIND_RESERVED && count <= 1 && (count == 1) == (self.loan() != 0)
    }

    /// The tag of the loan that the segments are, 0 if there are none.
    #[inline]
    pub const fn loan(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// The tag of a loan of the receiver's that ends, 0 for none.
    #[inline]
    pub const fn returned(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// The pair of words.
    #[inline]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// What the message is.
    #[inline]
    pub const fn kind(self) -> u8 {
        self.0 as u8
    }

    /// Whether the head is all there is to the message: no loan, no segments, no return, and not the lane's own.
    #[inline]
    pub const fn is_plain(self) -> bool {
        self.0 >> 16 == 0 && self.kind() < KIND_RESERVED
    }

    /// The head, with the arguments from the two pairs that follow.
    #[inline]
    pub const fn head(self, first: u64, second: u64) -> Head {
        let ((a, b), (c, d)) = (split(first), split(second));
        Head { kind: self.kind(), flags: (self.0 >> 8) as u8, args: [a, b, c, d] }
    }
}

impl Head {
    /// The arguments as pairs of words.
    #[inline]
    pub const fn pairs(&self) -> [u64; 2] {
        [join(self.args[0], self.args[1]), join(self.args[2], self.args[3])]
    }
}

impl Frame {
    /// The first two words.
    #[inline]
    pub fn opening(&self) -> Opening {
        let tags = u64::from(self.count) << 16 | u64::from(self.loan) << 32 | u64::from(self.returned) << 48;
        Opening(Opening::plain(self.head.kind, self.head.flags).0 | tags)
    }

    /// The words of a slot.
    pub fn encode(&self) -> Words {
        let (pairs, last) = self.pairs();
        let mut words = [last; MESSAGE_WORDS];
        for (words, pair) in words.chunks_exact_mut(2).zip(pairs) {
            let (low, high) = split(pair);
            words.copy_from_slice(&[low, high]);
        }
        words
    }

    /// The message in a slot's words. Every pattern is a message; what it alleges is checked by who uses it.
    pub fn decode(words: &Words) -> Self {
        Self::of_pairs(|at| join(words[2 * at], words[2 * at + 1]), words[MESSAGE_WORDS - 1])
    }

    /// The pairs of words of a slot, and its last word.
    #[inline]
    pub fn pairs(&self) -> ([u64; PAIRS], u32) {
        let [args, more_args] = self.head.pairs();
        let [a, b, c] = self.segments;
        let second = b.addr.bits();
        let pairs = [
            self.opening().0,
            args,
            more_args,
            a.addr.bits(),
            join(a.len, second as u32),
            join((second >> 32) as u32, b.len),
            c.addr.bits(),
        ];
        (pairs, c.len)
    }

    /// The message in a slot's pairs of words, each of which is asked for once, and its last word.
    #[inline]
    pub fn of_pairs(pair: impl Fn(usize) -> u64, last: u32) -> Self {
        let opening = Opening(pair(0));
        let (first, (first_len, low), (high, second_len), third) = (pair(3), split(pair(4)), split(pair(5)), pair(6));
        Self {
            head: opening.head(pair(1), pair(2)),
            loan: opening.loan(),
            returned: opening.returned(),
            count: (opening.0 >> 16) as u16,
            segments: [
                Segment::new(GlobalAddr::from_bits(first), first_len),
                Segment::new(GlobalAddr::from_bits(join(low, high)), second_len),
                Segment::new(GlobalAddr::from_bits(third), last),
            ],
        }
    }
}

/// The words of a message that returns these loans: as many as there are, at most [`MAX_RETURNS`].
pub fn encode_returns(tags: impl IntoIterator<Item = u16>) -> Words {
    let mut words = [0; 15];
    words[0] = u32::from(KIND_RETURNS);
    for (index, tag) in tags.into_iter().take(MAX_RETURNS).enumerate() {
        words[2 + index / 2] |= u32::from(tag) << (16 * (index % 2));
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
