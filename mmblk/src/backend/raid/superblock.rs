//! The superblock: what each member says about the array and about itself.
//!
//! `docs/raid.md` has the layout for a second implementation. Each member has two copies; an update writes the older one
//! first and the other only when that is durable, so one of them is whole whenever the power fails.

use super::layout::{Layout, Level};
use super::{ArrayId, MAX_MEMBERS};

/// Bytes of a superblock.
pub const SUPERBLOCK_BYTES: usize = 512;
/// Where the copies are on a member.
pub const SUPERBLOCK_OFFSETS: [u64; 2] = [0, 64 << 10];
/// Where the log begins on a member.
pub const LOG_OFFSET: u64 = 128 << 10;
/// The version that is written and understood.
pub const VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"FIDORAID";
const CHECKED_BYTES: usize = SUPERBLOCK_BYTES - 4;
/// The index of a member that has no place in the array yet.
const SPARE: u8 = 0xFF;
const STATES_AT: usize = 120;

/// What a member is to the array.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// Its content is not valid: it has failed, or was never there.
    #[default]
    Missing,
    /// Its content is valid.
    Active,
    /// Its content is valid in the stripes before the superblock's `rebuilt`.
    Rebuilding,
}

/// A superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Which array it is.
    pub array: ArrayId,
    /// The member's place in it; `None` for a spare.
    pub index: Option<usize>,
    /// The layout.
    pub layout: Layout,
    /// The array's block size.
    pub block: u32,
    /// Bytes of the log of each member.
    pub log_bytes: u64,
    /// Rises with every change of what is below.
    pub generation: u64,
    /// A random number of this generation: two members that agree in the generation but not in this have gone separate
    /// ways.
    pub nonce: u64,
    /// A random number that the valid records of the log carry.
    pub log_id: u128,
    /// The array was stopped orderly: the log has nothing to say.
    pub clean: bool,
    /// What each place of the array holds.
    pub roles: [Role; MAX_MEMBERS],
    /// Stripes of the rebuilding member that are valid.
    pub rebuilt: u64,
}

/// Why a block is not a superblock.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// It begins with something else.
    #[error("there is no superblock")]
    Magic,
    /// The checksum is wrong: torn or damaged.
    #[error("a superblock with the checksum {found:#010x}, not {expected:#010x}")]
    Checksum {
        /// What it says.
        found: u32,
        /// What its bytes make.
        expected: u32,
    },
    /// Another version.
    #[error("a superblock of version {found}; this is version {VERSION}")]
    Version {
        /// What it says.
        found: u32,
    },
    /// A value that makes no sense.
    #[error("a superblock with {what} = {value}")]
    Value {
        /// Which one.
        what: &'static str,
        /// What it says.
        value: u64,
    },
}

impl Superblock {
    /// Its bytes.
    pub fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let mut out = [0; SUPERBLOCK_BYTES];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &self.block.to_le_bytes());
        put(16, &self.array.0);
        put(32, &[self.layout.level.number(), self.layout.members as u8]);
        put(34, &[self.index.map_or(SPARE, |index| index as u8), self.clean.into()]);
        put(36, &self.layout.chunk.to_le_bytes());
        put(40, &self.layout.data_offset.to_le_bytes());
        put(48, &self.layout.stripes.to_le_bytes());
        put(56, &self.log_bytes.to_le_bytes());
        put(64, &self.generation.to_le_bytes());
        put(72, &self.nonce.to_le_bytes());
        put(80, &self.log_id.to_le_bytes());
        put(96, &self.rebuilt.to_le_bytes());
        for (index, role) in self.roles.iter().enumerate() {
            put(STATES_AT + index, &[*role as u8]);
        }
        let sum = crc32fast::hash(&out[..CHECKED_BYTES]);
        out[CHECKED_BYTES..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`SuperblockError`] that says what is wrong with it.
    pub fn decode(bytes: &[u8; SUPERBLOCK_BYTES]) -> Result<Self, SuperblockError> {
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        if bytes[..8] != MAGIC {
            return Err(SuperblockError::Magic);
        }
        let (found, expected) = (u32_at(CHECKED_BYTES), crc32fast::hash(&bytes[..CHECKED_BYTES]));
        if found != expected {
            return Err(SuperblockError::Checksum { found, expected });
        }
        if u32_at(8) != VERSION {
            return Err(SuperblockError::Version { found: u32_at(8) });
        }
        let wrong = |what, value| SuperblockError::Value { what, value };
        let level = Level::from_number(bytes[32]).ok_or(wrong("level", bytes[32].into()))?;
        let members = usize::from(bytes[33]);
        let block = u32_at(12);
        if !block.is_power_of_two() || !(512..=crate::queue::MAX_BLOCK_BYTES).contains(&block) {
            return Err(wrong("block", block.into()));
        }
        let (data_offset, log_bytes) = (u64_at(40), u64_at(56));
        if LOG_OFFSET.checked_add(log_bytes).is_none_or(|end| end > data_offset) {
            return Err(wrong("log_bytes", log_bytes));
        }
        if !(data_offset | log_bytes).is_multiple_of(block.into()) {
            return Err(wrong("data_offset", data_offset));
        }
        // Each update adds one; no array lives to see the end, so who claims to is not one of ours.
        if u64_at(64) >> 63 != 0 {
            return Err(wrong("generation", u64_at(64)));
        }
        let layout = Layout { level, members, chunk: u32_at(36), data_offset, stripes: u64_at(48) };
        // Whether the member is as long as that is checked where its length is known.
        let layout = layout.checked(block, u64::MAX).map_err(|_| wrong("stripes, chunk or members", layout.stripes))?;
        // A record that never finds room would wait for ever.
        if log_bytes < super::create::least_log_bytes(layout.chunk, block) {
            return Err(wrong("log_bytes", log_bytes));
        }
        let index = (bytes[34] != SPARE).then(|| usize::from(bytes[34]));
        if index.is_some_and(|index| index >= members) {
            return Err(wrong("index", bytes[34].into()));
        }
        let mut roles = [Role::Missing; MAX_MEMBERS];
        for (place, byte) in roles.iter_mut().zip(&bytes[STATES_AT..STATES_AT + members]) {
            *place = match byte {
                0 => Role::Missing,
                1 => Role::Active,
                2 => Role::Rebuilding,
                other => return Err(wrong("role", (*other).into())),
            };
        }
        if u64_at(96) > layout.stripes {
            return Err(wrong("rebuilt", u64_at(96)));
        }
        Ok(Self {
            array: ArrayId(std::array::from_fn(|i| bytes[16 + i])),
            index,
            layout,
            block,
            log_bytes,
            generation: u64_at(64),
            nonce: u64_at(72),
            log_id: u128::from_le_bytes(std::array::from_fn(|i| bytes[80 + i])),
            clean: bytes[35] != 0,
            roles,
            rebuilt: u64_at(96),
        })
    }
}

/// Any bytes: decoding never panics, and what it accepts encodes to what decodes to the same.
///
/// # Panics
/// If a promise is broken: for fuzzing.
pub fn fuzz(data: &[u8]) {
    let mut bytes = [0; SUPERBLOCK_BYTES];
    let count = data.len().min(SUPERBLOCK_BYTES);
    bytes[..count].copy_from_slice(&data[..count]);
    let _ = Superblock::decode(&bytes);
    // A fuzzer does not guess a magic and a checksum: the same with both right.
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let sum = crc32fast::hash(&bytes[..CHECKED_BYTES]);
    bytes[CHECKED_BYTES..].copy_from_slice(&sum.to_le_bytes());
    if let Ok(superblock) = Superblock::decode(&bytes) {
        assert_eq!(Superblock::decode(&superblock.encode()).as_ref(), Ok(&superblock));
        let last = superblock.layout.stripes - 1;
        assert!(superblock.layout.data_member(last, superblock.layout.data_chunks() - 1) < superblock.layout.members);
        assert!(superblock.layout.bytes() > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn example() -> Superblock {
        let mut roles = [Role::Missing; MAX_MEMBERS];
        roles[..3].copy_from_slice(&[Role::Active, Role::Rebuilding, Role::Active]);
        Superblock {
            array: ArrayId([7; 16]),
            index: Some(2),
            layout: Layout { level: Level::Raid5, members: 3, chunk: 65536, data_offset: 1 << 20, stripes: 1000 },
            block: 4096,
            log_bytes: (1 << 20) - LOG_OFFSET,
            generation: 42,
            nonce: 99,
            log_id: 1 << 100,
            clean: false,
            roles,
            rebuilt: 17,
        }
    }

    #[test]
    fn a_superblock_is_its_bytes() {
        let one = example();
        assert_eq!(Superblock::decode(&one.encode()), Ok(one.clone()));
        let spare = Superblock { index: None, clean: true, ..one };
        assert_eq!(Superblock::decode(&spare.encode()), Ok(spare));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let bytes = example().encode();
        assert_eq!(Superblock::decode(&[0; SUPERBLOCK_BYTES]), Err(SuperblockError::Magic));
        for at in 8..SUPERBLOCK_BYTES {
            let mut bad = bytes;
            bad[at] ^= 0x40;
            assert!(matches!(Superblock::decode(&bad), Err(SuperblockError::Checksum { .. })), "byte {at}");
        }
        let with = |change: fn(&mut Superblock)| {
            let mut one = example();
            change(&mut one);
            Superblock::decode(&one.encode())
        };
        assert_eq!(with(|s| s.rebuilt = 1001), Err(SuperblockError::Value { what: "rebuilt", value: 1001 }));
        assert!(with(|s| s.rebuilt = 1000).is_ok());
        assert_eq!(with(|s| s.index = Some(3)), Err(SuperblockError::Value { what: "index", value: 3 }));
        assert!(matches!(with(|s| s.log_bytes += 4096), Err(SuperblockError::Value { what: "log_bytes", .. })));
        assert!(matches!(with(|s| s.layout.chunk = 3), Err(SuperblockError::Value { .. })));
        assert!(matches!(with(|s| s.block = 256), Err(SuperblockError::Value { what: "block", .. })));
    }

    #[test]
    fn generations_leave_room_and_logs_have_it() {
        let most = Superblock { generation: u64::MAX >> 1, ..example() };
        assert_eq!(Superblock::decode(&most.encode()).as_ref(), Ok(&most));
        let value = (u64::MAX >> 1) + 1;
        let beyond = Superblock { generation: value, ..example() };
        assert_eq!(Superblock::decode(&beyond.encode()), Err(SuperblockError::Value { what: "generation", value }));
        let least = crate::backend::raid::create::least_log_bytes(65536, 4096);
        let small = Superblock { log_bytes: least, ..example() };
        assert_eq!(Superblock::decode(&small.encode()).as_ref(), Ok(&small));
        let value = least - 4096;
        let smaller = Superblock { log_bytes: value, ..example() };
        assert_eq!(Superblock::decode(&smaller.encode()), Err(SuperblockError::Value { what: "log_bytes", value }));
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..SUPERBLOCK_BYTES), fields in any::<(u8, u8, u64)>()) {
            fuzz(&bytes);
            let mut near = example().encode().to_vec();
            near[usize::from(fields.0) + 8] = fields.1;
            near[64..72].copy_from_slice(&fields.2.to_le_bytes());
            fuzz(&near);
        }
    }
}
