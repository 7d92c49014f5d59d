//! The superblock: what kind of volume this device holds, and how it is divided.
//!
//! Two copies, in the first two blocks of the device, each with a sequence number and a checksum. They are written
//! alternately with a flush after each, so that at any moment one of them is whole. See `docs/volume.md`.

use super::blocking::{Blocking, DeviceError};
use mmblk::queue::BlockQueue;

/// The unit of allocation of file data, and of everything the volume writes.
pub const BLOCK_BYTES: u64 = 4096;
/// The smallest device that is formatted.
pub const MIN_DEVICE_BYTES: u64 = 16 << 20;
/// The version of the layout that this code reads and writes.
pub const VERSION: u32 = 1;

const MAGIC: [u8; 16] = *b"FIDO-NAS-VOLUME\0";
/// How much of a device must be zero for it to count as empty: well-known file systems, partition tables and volume
/// managers all write something here.
const PROBE_BYTES: usize = 128 << 10;
/// The metadata region begins after the two copies, and ends at a multiple of this.
const ALIGN_BYTES: u64 = 1 << 20;
/// The metadata region's share of the device, and the least it has.
const META_SHARE: u64 = 16;
const MIN_META_BYTES: u64 = 4 << 20;
/// Where a copy's checksum lies.
const CHECKSUM_AT: usize = 96;

/// Why a device cannot be used as a volume. The device is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It holds something that is not a volume of ours.
    #[error("the image is foreign: it is neither empty nor a Fido volume; it was left as it is")]
    Foreign,
    /// Its label is ours, but neither copy of the superblock is whole.
    #[error("both copies of the superblock are damaged")]
    Damaged,
    /// It was written by another version of this program.
    #[error("the volume has layout version {found}, this program reads version {VERSION}")]
    Version {
        /// What the superblock says.
        found: u32,
    },
    /// The device is smaller than a volume can be.
    #[error("the device has {bytes} bytes, a volume needs at least {MIN_DEVICE_BYTES}")]
    TooSmall {
        /// The device's size.
        bytes: u64,
    },
    /// The device is smaller than the volume on it.
    #[error("the device has {bytes} bytes, but the volume on it was made for {expected}: the image is truncated")]
    Truncated {
        /// The device's size.
        bytes: u64,
        /// What the superblock says.
        expected: u64,
    },
    /// The device's block is larger than the volume's.
    #[error("the device's block is {block} bytes, at most {BLOCK_BYTES} are possible")]
    BlockSize {
        /// The device's block.
        block: u32,
    },
    /// The device failed.
    #[error("the device: {0}")]
    Device(#[from] DeviceError),
    /// The metadata store could not be opened, or holds nonsense.
    #[error("the metadata store: {0}")]
    Store(String),
    /// The arena is too small.
    #[error("memory: {0}")]
    Memory(#[from] fido_core::heap::HeapError),
    /// The operating system refused something.
    #[error("the system: {0}")]
    System(#[from] std::io::Error),
}

/// One copy of the superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Names the volume for ever.
    pub fsid: u64,
    /// The size of the device it was made for.
    pub device_bytes: u64,
    /// The metadata region: first byte and length.
    pub meta_start: u64,
    /// Its length.
    pub meta_bytes: u64,
    /// The first byte of the data region; block 0 of the data lies here.
    pub data_start: u64,
    /// Blocks of the data region.
    pub data_blocks: u64,
    /// Rises with every write of a copy.
    pub sequence: u64,
    /// The length that the metadata store believes its storage has.
    pub meta_len: u64,
    /// Whether the store in the metadata region has been set up.
    pub ready: bool,
}

impl Superblock {
    /// Divides a device of `device_bytes`: two copies, a sixteenth for metadata, the rest for data.
    ///
    /// # Errors
    /// [`OpenError::TooSmall`].
    pub fn divide(device_bytes: u64, fsid: u64) -> Result<Self, OpenError> {
        if device_bytes < MIN_DEVICE_BYTES {
            return Err(OpenError::TooSmall { bytes: device_bytes });
        }
        let meta_start = 2 * BLOCK_BYTES;
        let data_start = (meta_start + (device_bytes / META_SHARE).max(MIN_META_BYTES)).next_multiple_of(ALIGN_BYTES);
        Ok(Self {
            fsid,
            device_bytes,
            meta_start,
            meta_bytes: data_start - meta_start,
            data_start,
            data_blocks: (device_bytes - data_start) / BLOCK_BYTES,
            sequence: 0,
            meta_len: 0,
            ready: false,
        })
    }

    /// The bytes of a copy.
    pub fn encode(&self) -> [u8; BLOCK_BYTES as usize] {
        let mut out = [0; BLOCK_BYTES as usize];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&MAGIC);
        put(&VERSION.to_le_bytes());
        put(&u32::from(self.ready).to_le_bytes());
        for field in [
            self.fsid,
            self.device_bytes,
            self.meta_start,
            self.meta_bytes,
            self.data_start,
            self.data_blocks,
            self.sequence,
            self.meta_len,
        ] {
            put(&field.to_le_bytes());
        }
        let sum = checksum(&out[..CHECKSUM_AT]);
        out[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads a copy; `None` if it is not whole.
    ///
    /// # Errors
    /// [`OpenError::Version`] if it is whole, but of another version.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, OpenError> {
        let word = |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
        let Some(body) = bytes.get(..CHECKSUM_AT) else { return Ok(None) };
        if !body.starts_with(&MAGIC) || word(CHECKSUM_AT) != checksum(body) {
            return Ok(None);
        }
        let found = word(16) as u32;
        if found != VERSION {
            return Err(OpenError::Version { found });
        }
        let block = Self {
            fsid: word(24),
            device_bytes: word(32),
            meta_start: word(40),
            meta_bytes: word(48),
            data_start: word(56),
            data_blocks: word(64),
            sequence: word(72),
            meta_len: word(80),
            ready: word(16) >> 32 != 0,
        };
        Ok(block.is_sane().then_some(block))
    }

    /// Whether the regions lie in order, on blocks, inside the device.
    fn is_sane(&self) -> bool {
        let aligned = [self.meta_start, self.meta_bytes, self.data_start].iter().all(|v| v % BLOCK_BYTES == 0);
        let meta_end = self.meta_start.checked_add(self.meta_bytes);
        let data_end = self.data_blocks.checked_mul(BLOCK_BYTES).and_then(|bytes| bytes.checked_add(self.data_start));
        aligned
            && self.meta_start >= 2 * BLOCK_BYTES
            && meta_end.is_some_and(|end| end <= self.data_start)
            && data_end.is_some_and(|end| end <= self.device_bytes)
    }

    /// Writes the next copy, durably.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn write<Q: BlockQueue>(&mut self, device: &mut Blocking<Q>) -> Result<(), DeviceError> {
        self.sequence += 1;
        device.write(self.sequence % 2 * BLOCK_BYTES, &self.encode())?;
        device.flush()
    }

    /// Reads the superblock of the volume on `device`, or formats an empty device (one that begins with zeros).
    ///
    /// # Errors
    /// [`OpenError`] that says why this is no volume.
    pub fn open_or_format<Q: BlockQueue>(device: &mut Blocking<Q>, fsid: u64) -> Result<Self, OpenError> {
        let geometry = device.geometry();
        if u64::from(geometry.block) > BLOCK_BYTES {
            return Err(OpenError::BlockSize { block: geometry.block });
        }
        if geometry.bytes < MIN_DEVICE_BYTES {
            return Err(OpenError::TooSmall { bytes: geometry.bytes });
        }
        let mut start = vec![0; PROBE_BYTES];
        device.read(0, &mut start)?;
        let (first, rest) = start.split_at(BLOCK_BYTES as usize);
        let (second, rest) = rest.split_at(BLOCK_BYTES as usize);
        let newest = match (Self::decode(first)?, Self::decode(second)?) {
            (Some(a), Some(b)) => Some(if a.sequence >= b.sequence { a } else { b }),
            (a, b) => a.or(b),
        };
        if let Some(block) = newest {
            if geometry.bytes < block.device_bytes {
                return Err(OpenError::Truncated { bytes: geometry.bytes, expected: block.device_bytes });
            }
            return Ok(block);
        }
        // The second block is written first: if power failed in the middle of that, it bears our label, and all else
        // is still empty.
        let torn = second.starts_with(&MAGIC);
        if is_zero(first) && is_zero(rest) && (is_zero(second) || torn) {
            let mut block = Self::divide(geometry.bytes, fsid)?;
            block.write(device)?;
            block.write(device)?;
            return Ok(block);
        }
        Err(if torn || first.starts_with(&MAGIC) { OpenError::Damaged } else { OpenError::Foreign })
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// FNV-1a: finds torn and rotten blocks, which is all it is for.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_least_device_is_exact() {
        assert!(Superblock::divide(MIN_DEVICE_BYTES, 1).is_ok());
        assert!(matches!(Superblock::divide(MIN_DEVICE_BYTES - 1, 1), Err(OpenError::TooSmall { .. })));
    }

    #[test]
    fn another_version_is_refused_by_number() {
        let mut bytes = Superblock::divide(1 << 30, 7).unwrap().encode();
        bytes[16] = 9;
        let sum = checksum(&bytes[..CHECKSUM_AT]);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(&sum.to_le_bytes());
        assert!(matches!(Superblock::decode(&bytes), Err(OpenError::Version { found: 9 })));
    }

    proptest! {
        #[test]
        fn a_copy_survives_and_a_flipped_bit_is_noticed(bytes in MIN_DEVICE_BYTES..1 << 44, fsid: u64, bit in 0usize..832) {
            let block = Superblock { sequence: 5, meta_len: 9, ready: true, ..Superblock::divide(bytes, fsid).unwrap() };
            let mut copy = block.encode();
            prop_assert_eq!(Superblock::decode(&copy).unwrap(), Some(block));
            copy[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Superblock::decode(&copy).unwrap(), None);
        }

        #[test]
        fn regions_fit(bytes in MIN_DEVICE_BYTES..1 << 50) {
            let block = Superblock::divide(bytes, 1).unwrap();
            prop_assert!(block.is_sane());
            prop_assert!(block.data_blocks * BLOCK_BYTES > bytes / 2);
        }

        #[test]
        fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Superblock::decode(&bytes);
        }
    }
}
