//! What is said to the kernel's driver, and what it says: numbers and layouts.
//!
//! Source: `include/uapi/linux/ublk_cmd.h` and `Documentation/block/ublk.rst` of Linux 6.12.

use crate::queue::{BlockError, Features, Geometry};

/// Where devices are made and ended.
pub const CONTROL: &str = "/dev/ublk-control";
/// The unit of all positions.
pub const SECTOR: u64 = 512;
/// The most queues of a device.
pub const MAX_QUEUES: usize = 256;
/// The most requests under way on one queue.
pub const MAX_DEPTH: u32 = 4096;
/// The most bytes of a request.
pub const MAX_BYTES: u32 = 1 << 20;
/// A tag will not be used any more.
pub const ABORTED: i32 = -libc::ENODEV;

/// Commands to [`CONTROL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Command {
    /// What is a device like?
    Info = code(READ, 0x02, 32),
    /// Make one.
    Add = code(READ | WRITE, 0x04, 32),
    /// Remove it.
    Delete = code(READ | WRITE, 0x05, 32),
    /// Let it be used.
    Start = code(READ | WRITE, 0x06, 32),
    /// Let it not be used any more.
    Stop = code(READ | WRITE, 0x07, 32),
    /// Say what it is like.
    Describe = code(READ | WRITE, 0x08, 32),
    /// What can the driver do?
    Features = code(READ, 0x13, 32),
}

/// The first command for a tag: hand me requests by it.
pub const FETCH: u32 = code(READ | WRITE, 0x20, 16);
/// The tag's request has ended like this; hand me the next one.
pub const COMMIT_AND_FETCH: u32 = code(READ | WRITE, 0x21, 16);

const WRITE: u32 = 1;
const READ: u32 = 2;

/// A command's number as `_IOC` in `ioctl.h` makes them.
const fn code(direction: u32, number: u32, bytes: u32) -> u32 {
    direction << 30 | bytes << 16 | (b'u' as u32) << 8 | number
}

/// Payload goes by reads and writes of the queue's file.
pub const USER_COPY: u64 = 1 << 7;
/// Commands have numbers of ioctl's form, as all here.
pub const IOCTL_ENCODE: u64 = 1 << 6;
/// The state of a device whose server is gone, or that was never started.
pub const DEAD: u16 = 0;

/// `ublksrv_ctrl_cmd`: a command to [`CONTROL`], with the buffer that goes with it.
pub fn control(device: u32, buffer: (u64, u16), data: u64) -> [u8; 80] {
    let mut bytes = [0; 80];
    bytes[0..4].copy_from_slice(&device.to_ne_bytes());
    bytes[4..6].copy_from_slice(&u16::MAX.to_ne_bytes());
    bytes[6..8].copy_from_slice(&buffer.1.to_ne_bytes());
    bytes[8..16].copy_from_slice(&buffer.0.to_ne_bytes());
    bytes[16..24].copy_from_slice(&data.to_ne_bytes());
    bytes
}

/// `ublksrv_io_cmd`: a command for a tag.
pub fn tag(queue: u16, tag: u16, result: i32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0..2].copy_from_slice(&queue.to_ne_bytes());
    bytes[2..4].copy_from_slice(&tag.to_ne_bytes());
    bytes[4..8].copy_from_slice(&result.to_ne_bytes());
    bytes
}

/// Where in the queue's file the payload of a request is.
pub fn payload_at(queue: u16, tag: u16) -> u64 {
    0x8000_0000 + (u64::from(queue) << 41 | u64::from(tag) << 25)
}

/// Where in the device's file the descriptors of a queue are.
pub fn descriptors_at(queue: u16) -> u64 {
    u64::from(queue) * (u64::from(MAX_DEPTH) * DESCRIPTOR_BYTES as u64).next_multiple_of(4096)
}

/// `ublksrv_ctrl_dev_info`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Queues.
    pub queues: u16,
    /// Requests under way on each.
    pub depth: u16,
    /// See [`DEAD`].
    pub state: u16,
    /// Its number; `u32::MAX` asks for a free one.
    pub device: u32,
}

impl Info {
    /// How long it is.
    pub const BYTES: usize = 64;

    /// As the kernel wants it.
    pub fn bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0..2].copy_from_slice(&self.queues.to_ne_bytes());
        bytes[2..4].copy_from_slice(&self.depth.to_ne_bytes());
        bytes[8..12].copy_from_slice(&MAX_BYTES.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.device.to_ne_bytes());
        bytes[24..32].copy_from_slice(&(USER_COPY | IOCTL_ENCODE).to_ne_bytes());
        bytes
    }

    /// As the kernel gives it.
    pub fn parse(bytes: &[u8; Self::BYTES]) -> Self {
        let half = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let device = u32::from_ne_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
        Self { queues: half(0), depth: half(2), state: half(4), device }
    }
}

/// How long [`parameters`] are.
pub const PARAMETER_BYTES: usize = 60;
const BASIC: u32 = 1;
const DISCARD: u32 = 2;

/// The block sizes that Linux takes: as powers of two.
pub fn shifts(geometry: Geometry, features: Features) -> Option<(u8, u8)> {
    let logical = geometry.block.max(SECTOR as u32);
    let physical = features.preferred_block.clamp(logical, 4096.max(logical));
    (logical <= 4096).then(|| (logical.ilog2() as u8, physical.ilog2() as u8))
}

/// `ublk_params`, as far as we have something to say. `shifts` as from [`shifts`].
pub fn parameters(geometry: Geometry, features: Features, shifts: (u8, u8)) -> [u8; PARAMETER_BYTES] {
    let has_discard = features.discard || features.write_zeroes;
    let attributes = u32::from(features.read_only) | if features.volatile_cache { 1 << 2 | 1 << 3 } else { 0 };
    let all = u32::MAX >> 9;
    let mut bytes = Vec::with_capacity(PARAMETER_BYTES);
    let mut word = |value: u32| bytes.extend(value.to_ne_bytes());
    word(PARAMETER_BYTES as u32);
    word(BASIC | if has_discard { DISCARD } else { 0 });
    word(attributes);
    word(u32::from_ne_bytes([shifts.0, shifts.1, shifts.1, shifts.1]));
    word(MAX_BYTES / SECTOR as u32);
    word(0);
    bytes.extend((geometry.bytes >> shifts.0 << shifts.0 >> 9).to_ne_bytes());
    bytes.extend(0_u64.to_ne_bytes());
    let mut word = |value: u32| bytes.extend(value.to_ne_bytes());
    word(0);
    word(1 << shifts.1);
    word(if features.discard { all } else { 0 });
    word(if features.write_zeroes { all } else { 0 });
    word(u32::from_ne_bytes([1_u16.to_ne_bytes()[0], 1_u16.to_ne_bytes()[1], 0, 0]));
    let mut fixed = [0; PARAMETER_BYTES];
    fixed.copy_from_slice(&bytes);
    fixed
}

/// How long a descriptor is.
pub const DESCRIPTOR_BYTES: usize = 24;

/// What a request is about. Offsets and lengths are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Read.
    Read {
        /// First byte.
        offset: u64,
        /// How many.
        len: u32,
    },
    /// Write.
    Write {
        /// First byte.
        offset: u64,
        /// How many.
        len: u32,
        /// It must be durable when it ends.
        durable: bool,
    },
    /// Make writes durable.
    Flush,
    /// The content is no longer needed.
    Discard {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// The content shall be zeros.
    Zeroes {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
        /// They must be durable when it ends.
        durable: bool,
        /// The space may be given back.
        unmap: bool,
    },
}

impl Work {
    /// From a descriptor: operation and flags, sectors, first sector.
    ///
    /// # Errors
    /// The error number to answer with, if this is nothing that could be done.
    pub fn parse(operation: u32, sectors: u32, first: u64) -> Result<Self, i32> {
        let durable = operation & 1 << 13 != 0;
        if operation & 0xff == 2 {
            // Its place means nothing, and is the last sector that there could be.
            return Ok(Self::Flush);
        }
        let offset = first.checked_mul(SECTOR).ok_or(libc::EINVAL)?;
        let len = u64::from(sectors) * SECTOR;
        let short = u32::try_from(len).ok().filter(|len| (1..=MAX_BYTES).contains(len)).ok_or(libc::EINVAL);
        Ok(match operation & 0xff {
            0 => Self::Read { offset, len: short? },
            1 => Self::Write { offset, len: short?, durable },
            3 => Self::Discard { offset, len },
            5 => Self::Zeroes { offset, len, durable, unmap: operation & 1 << 15 == 0 },
            _ => return Err(libc::EOPNOTSUPP),
        })
    }
}

/// The error number for an error.
pub fn errno(error: &BlockError) -> i32 {
    match error {
        BlockError::Io { errno } if (1..4096).contains(errno) => *errno,
        BlockError::Unsupported => libc::EOPNOTSUPP,
        BlockError::NoSpace => libc::ENOSPC,
        _ => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry { bytes: 1 << 20, block: 512, depth: 4 };
    const FEATURES: Features =
        Features { read_only: false, discard: true, write_zeroes: true, volatile_cache: true, preferred_block: 4096 };

    #[test]
    fn numbers_are_those_of_the_kernels_header() {
        // Printed by a C program that includes <linux/ublk_cmd.h>.
        let all = [Command::Info, Command::Add, Command::Delete, Command::Start, Command::Stop, Command::Describe];
        let numbers = [0x8020_7502, 0xc020_7504, 0xc020_7505, 0xc020_7506, 0xc020_7507, 0xc020_7508];
        assert_eq!(all.map(|command| command as u32), numbers);
        assert_eq!([Command::Features as u32, FETCH, COMMIT_AND_FETCH], [0x8020_7513, 0xc010_7520, 0xc010_7521]);
        assert_eq!((payload_at(0, 0), payload_at(1, 2)), (0x8000_0000, 0x200_8400_0000));
        assert_eq!((descriptors_at(0), descriptors_at(2)), (0, 196_608));
    }

    #[test]
    fn requests_are_read_as_they_are_meant() {
        assert_eq!(Work::parse(0, 8, 1), Ok(Work::Read { offset: 512, len: 4096 }));
        assert_eq!(Work::parse(1 | 1 << 13, 1, 0), Ok(Work::Write { offset: 0, len: 512, durable: true }));
        assert_eq!((Work::parse(2, 0, 0), Work::parse(2, 0, u64::MAX)), (Ok(Work::Flush), Ok(Work::Flush)));
        assert_eq!(Work::parse(3, u32::MAX, 2), Ok(Work::Discard { offset: 1024, len: u64::from(u32::MAX) * 512 }));
        let zeroes = |unmap| Ok(Work::Zeroes { offset: 0, len: 512, durable: false, unmap });
        assert_eq!((Work::parse(5, 1, 0), Work::parse(5 | 1 << 15, 1, 0)), (zeroes(true), zeroes(false)));
    }

    #[test]
    fn limits_of_a_request() {
        let most = MAX_BYTES / 512;
        assert!(Work::parse(0, most, 0).is_ok() && Work::parse(1, most, 0).is_ok());
        for (operation, sectors, first) in [(0, most + 1, 0), (1, most + 1, 0), (1, 0, 0), (0, u32::MAX, 0)] {
            assert_eq!(Work::parse(operation, sectors, first), Err(libc::EINVAL));
        }
        assert_eq!(Work::parse(3, 1, u64::MAX / 512 + 1), Err(libc::EINVAL));
        assert_eq!((Work::parse(4, 1, 0), Work::parse(15, 1, 0)), (Err(libc::EOPNOTSUPP), Err(libc::EOPNOTSUPP)));
    }

    #[test]
    fn what_a_device_is_like_goes_to_its_place() {
        let bytes = parameters(GEOMETRY, FEATURES, shifts(GEOMETRY, FEATURES).unwrap());
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4), word(8)), (60, 3, 0b1100));
        assert_eq!(bytes[12..16], [9, 12, 12, 12]);
        assert_eq!((word(16), word(24), word(44), word(48), word(52)), (2048, 2048, 4096, 0x7f_ffff, 0x7f_ffff));
        assert_eq!(bytes[56..60], [1, 0, 0, 0]);
        let plain =
            Features { read_only: true, discard: false, write_zeroes: false, volatile_cache: false, ..FEATURES };
        let bytes = parameters(GEOMETRY, plain, (9, 9));
        assert_eq!((bytes[4], bytes[8]), (1, 1));
    }

    #[test]
    fn block_sizes_are_those_that_linux_takes() {
        let of =
            |block, preferred_block| shifts(Geometry { block, ..GEOMETRY }, Features { preferred_block, ..FEATURES });
        assert_eq!((of(1, 1), of(512, 4096), of(4096, 1 << 20)), (Some((9, 9)), Some((9, 12)), Some((12, 12))));
        assert_eq!(of(8192, 8192), None);
    }
}
