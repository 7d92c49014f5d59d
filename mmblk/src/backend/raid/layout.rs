//! Where the bytes of an array lie on its members.
//!
//! The array's bytes are cut into stripes, a stripe into chunks of which one lies on each member. RAID 0 has data in all
//! of them, RAID 1 the same data in each, RAID 5 data in all but one: the parity of the others, on another member from
//! stripe to stripe ("left-symmetric": it moves from the last member to the first, and the data of a stripe begins
//! behind it, so that a long read meets all members in turn). A *row* is a byte's place within its chunk: bytes of one
//! row belong together.

use super::MAX_MEMBERS;

/// The smallest chunk, in bytes.
pub const MIN_CHUNK_BYTES: u32 = 4 << 10;
/// The largest chunk, in bytes.
pub const MAX_CHUNK_BYTES: u32 = 1 << 20;

/// How the members are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Stripes without redundancy.
    Raid0,
    /// Mirrors.
    Raid1,
    /// Stripes with one parity chunk each.
    Raid5,
}

impl Level {
    /// The number it is known by.
    pub fn number(self) -> u8 {
        match self {
            Self::Raid0 => 0,
            Self::Raid1 => 1,
            Self::Raid5 => 5,
        }
    }

    /// The level of that number.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Raid0, Self::Raid1, Self::Raid5].into_iter().find(|level| level.number() == number)
    }

    /// The fewest members it makes sense with.
    pub fn least_members(self) -> usize {
        match self {
            Self::Raid0 | Self::Raid1 => 2,
            Self::Raid5 => 3,
        }
    }
}

/// A layout beyond the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Too few or too many members.
    #[error("{members} members; a RAID {} has {} to {MAX_MEMBERS}", .level.number(), .level.least_members())]
    Members {
        /// The level.
        level: Level,
        /// How many.
        members: usize,
    },
    /// The size of a chunk.
    #[error(
        "a chunk of {chunk} bytes; it must be a power of two from {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES} and no smaller than a block of the members ({block})"
    )]
    Chunk {
        /// The size in question.
        chunk: u32,
        /// The members' block size.
        block: u32,
    },
    /// There is no room for a single stripe, or more than an address can say.
    #[error("members of {bytes} bytes leave room for {stripes} stripes")]
    Stripes {
        /// The smallest member's size.
        bytes: u64,
        /// What there would be room for.
        stripes: u64,
    },
}

/// An array's layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// How the members are put together.
    pub level: Level,
    /// How many there are.
    pub members: usize,
    /// Bytes of a chunk.
    pub chunk: u32,
    /// Where the first chunk begins on each member.
    pub data_offset: u64,
    /// How many stripes there are.
    pub stripes: u64,
}

/// A part of a request that lies in one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The stripe.
    pub stripe: u64,
    /// The data chunk within it.
    pub chunk: usize,
    /// First row.
    pub row: u32,
    /// Bytes.
    pub len: u32,
}

impl Layout {
    /// The layout itself, if it is within the limits; `block` is the members' block size and `bytes` the smallest
    /// member's size.
    ///
    /// # Errors
    /// [`LayoutError`] that names the value beyond them.
    pub fn checked(self, block: u32, bytes: u64) -> Result<Self, LayoutError> {
        let Self { level, members, chunk, data_offset, stripes } = self;
        if members < level.least_members() || members > MAX_MEMBERS {
            return Err(LayoutError::Members { level, members });
        }
        if !chunk.is_power_of_two() || !(MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES).contains(&chunk) || chunk < block {
            return Err(LayoutError::Chunk { chunk, block });
        }
        let end = stripes.checked_mul(chunk.into()).and_then(|len| len.checked_add(data_offset));
        let total = stripes.checked_mul(self.stripe_bytes());
        if stripes == 0 || end.is_none_or(|end| end > bytes) || total.is_none_or(|total| total >> 48 != 0) {
            return Err(LayoutError::Stripes { bytes, stripes });
        }
        Ok(self)
    }

    /// Chunks of a stripe that hold different data.
    pub fn data_chunks(&self) -> usize {
        match self.level {
            Level::Raid0 => self.members,
            Level::Raid1 => 1,
            Level::Raid5 => self.members.saturating_sub(1),
        }
    }

    /// Bytes of data in a stripe.
    pub fn stripe_bytes(&self) -> u64 {
        self.data_chunks() as u64 * u64::from(self.chunk)
    }

    /// The array's size in bytes.
    pub fn bytes(&self) -> u64 {
        self.stripes * self.stripe_bytes()
    }

    /// The member with a stripe's parity.
    pub fn parity_member(&self, stripe: u64) -> Option<usize> {
        let members = self.members as u64;
        (self.level == Level::Raid5).then(|| (members - 1 - stripe % members) as usize)
    }

    /// The member with a data chunk of a stripe; of mirrors, the first.
    pub fn data_member(&self, stripe: u64, chunk: usize) -> usize {
        match self.parity_member(stripe) {
            Some(parity) => (parity + 1 + chunk) % self.members,
            None => chunk % self.members,
        }
    }

    /// Where a row of a stripe is on each member.
    pub fn member_offset(&self, stripe: u64, row: u32) -> u64 {
        self.data_offset + stripe * u64::from(self.chunk) + u64::from(row)
    }

    /// The parts of a range of the array, chunk by chunk.
    pub fn pieces(&self, offset: u64, len: u64) -> impl Iterator<Item = Piece> + use<> {
        let (layout, end, mut at) = (*self, offset + len, offset);
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let chunk = u64::from(layout.chunk);
            let within = at % layout.stripe_bytes();
            let row = within % chunk;
            let len = (chunk - row).min(end - at);
            let piece = Piece {
                stripe: at / layout.stripe_bytes(),
                chunk: (within / chunk) as usize,
                row: row as u32,
                len: len as u32,
            };
            at += len;
            Some(piece)
        })
    }

    /// The parts of a range of the array, stripe by stripe: stripe, first and end byte within it.
    pub fn stripe_ranges(&self, offset: u64, len: u64) -> impl Iterator<Item = (u64, u64, u64)> + use<> {
        let (width, end, mut at) = (self.stripe_bytes(), offset + len, offset);
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let (stripe, start) = (at / width, at % width);
            let len = (width - start).min(end - at);
            at += len;
            Some((stripe, start, start + len))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layout(level: Level, members: usize) -> Layout {
        Layout { level, members, chunk: 4096, data_offset: 1 << 20, stripes: 100 }
    }

    #[test]
    fn the_places_of_a_left_symmetric_array() {
        let layout = layout(Level::Raid5, 4);
        let row = |stripe| (0..3).map(|chunk| layout.data_member(stripe, chunk)).collect::<Vec<_>>();
        assert_eq!((layout.parity_member(0), row(0)), (Some(3), vec![0, 1, 2]));
        assert_eq!((layout.parity_member(1), row(1)), (Some(2), vec![3, 0, 1]));
        assert_eq!((layout.parity_member(3), row(3)), (Some(0), vec![1, 2, 3]));
        assert_eq!((layout.parity_member(4), row(4)), (Some(3), vec![0, 1, 2]));
        assert_eq!(layout.bytes(), 100 * 3 * 4096);
        assert_eq!(layout.member_offset(2, 100), (1 << 20) + 2 * 4096 + 100);
    }

    #[test]
    fn limits_of_a_layout() {
        let bytes = (1 << 20) + 100 * 4096;
        let good = layout(Level::Raid5, 3);
        assert!(good.checked(512, bytes).is_ok());
        let few = Layout { members: 2, ..good };
        assert_eq!(few.checked(512, bytes), Err(LayoutError::Members { level: Level::Raid5, members: 2 }));
        assert!(Layout { members: MAX_MEMBERS, ..good }.checked(512, bytes).is_ok());
        assert!(Layout { members: MAX_MEMBERS + 1, ..good }.checked(512, bytes).is_err());
        for (chunk, block) in [(2048, 512), (MAX_CHUNK_BYTES * 2, 512), (12288, 512), (4096, 8192), (0, 512)] {
            assert_eq!(Layout { chunk, ..good }.checked(block, u64::MAX), Err(LayoutError::Chunk { chunk, block }));
        }
        assert!(good.checked(512, bytes - 1).is_err());
        assert!(Layout { stripes: 0, ..good }.checked(512, bytes).is_err());
        assert!(Layout { stripes: u64::MAX, ..good }.checked(512, u64::MAX).is_err());
    }

    proptest! {
        #[test]
        fn every_byte_has_one_place(members in 3usize..9, level in 0usize..3, offset in 0u64..1_000_000, len in 1u64..200_000) {
            let layout = layout([Level::Raid0, Level::Raid1, Level::Raid5][level], members);
            let mut at = offset;
            for piece in layout.pieces(offset, len) {
                prop_assert!(piece.len > 0 && piece.row + piece.len <= layout.chunk);
                let back = piece.stripe * layout.stripe_bytes() + piece.chunk as u64 * 4096 + u64::from(piece.row);
                prop_assert_eq!(back, at);
                let member = layout.data_member(piece.stripe, piece.chunk);
                prop_assert!(member < members && Some(member) != layout.parity_member(piece.stripe));
                at += u64::from(piece.len);
            }
            prop_assert_eq!(at, offset + len);
            let total: u64 = layout.stripe_ranges(offset, len).map(|(_, start, end)| end - start).sum();
            prop_assert_eq!(total, len);
        }
    }
}
