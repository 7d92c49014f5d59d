//! What a guest is told about its disk: features and configuration space. Source: VIRTIO 1.2, section 5.2.

use crate::queue::{Features, Geometry, MAX_REQUEST_BYTES};

use super::message::MAX_CONFIG;
use super::request::SECTOR;

/// Bits of the virtio features.
pub mod feature {
    /// The most segments of a request are in the configuration.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The disk is read-only.
    pub const READ_ONLY: u64 = 1 << 5;
    /// The block size is in the configuration.
    pub const BLOCK_SIZE: u64 = 1 << 6;
    /// Writes may be volatile until a flush.
    pub const FLUSH: u64 = 1 << 9;
    /// Preferred sizes are in the configuration.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// Several queues.
    pub const MULTI_QUEUE: u64 = 1 << 12;
    /// Discard.
    pub const DISCARD: u64 = 1 << 13;
    /// Write zeroes.
    pub const WRITE_ZEROES: u64 = 1 << 14;
    /// Tables of descriptors.
    pub const INDIRECT: u64 = 1 << 28;
    /// Either side says from which position on it wants to hear.
    pub const EVENT_INDEX: u64 = 1 << 29;
    /// vhost-user: there are protocol features.
    pub const PROTOCOL: u64 = 1 << 30;
    /// virtio 1.
    pub const VERSION_1: u64 = 1 << 32;
}

/// Bits of the protocol features.
pub mod protocol {
    /// Several queues.
    pub const MULTI_QUEUE: u64 = 1 << 0;
    /// Acknowledgements where they are wanted.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// A channel from us to the front end.
    pub const BACKEND_REQUEST: u64 = 1 << 5;
    /// Configuration space.
    pub const CONFIG: u64 = 1 << 9;
    /// Memory for requests under way.
    pub const INFLIGHT: u64 = 1 << 12;
    /// Reset.
    pub const RESET: u64 = 1 << 13;
    /// All that is offered.
    pub const ALL: u64 = MULTI_QUEUE | REPLY_ACK | BACKEND_REQUEST | CONFIG | INFLIGHT | RESET;
}

/// Data segments of one request; the head and the status need two more descriptors.
const SEGMENTS: u32 = fido_core::payload::MAX_SEGMENTS as u32 - 2;
/// The longest discard or write-zeroes, in sectors.
const MAX_RANGE: u32 = 1 << 22;

/// The virtio features of a device with that many queues.
pub fn features(device: &Features, queues: usize) -> u64 {
    use feature::*;
    let mut bits = SEG_MAX | BLOCK_SIZE | TOPOLOGY | INDIRECT | EVENT_INDEX | PROTOCOL | VERSION_1;
    let mut offer = |is: bool, bit: u64| bits |= if is { bit } else { 0 };
    offer(device.read_only, READ_ONLY);
    offer(device.volatile_cache, FLUSH);
    offer(queues > 1, MULTI_QUEUE);
    offer(device.discard, DISCARD);
    offer(device.write_zeroes, WRITE_ZEROES);
    bits
}

/// The configuration space.
pub fn space(geometry: &Geometry, device: &Features, queues: usize) -> Vec<u8> {
    let mut space = Vec::with_capacity(MAX_CONFIG);
    let mut put = |bytes: &[u8]| space.extend_from_slice(bytes);
    let block = geometry.block.max(SECTOR as u32);
    let preferred = device.preferred_block.max(block);
    let sectors = block / SECTOR as u32;
    put(&(geometry.bytes / SECTOR).to_le_bytes());
    put(&MAX_REQUEST_BYTES.to_le_bytes());
    put(&SEGMENTS.to_le_bytes());
    put(&[0; 4]); // No cylinders, heads and sectors.
    put(&block.to_le_bytes());
    put(&[(preferred / block).trailing_zeros() as u8, 0]);
    put(&1_u16.to_le_bytes());
    put(&(preferred / block).to_le_bytes());
    put(&[u8::from(device.volatile_cache), 0]);
    put(&(queues as u16).to_le_bytes());
    for word in [MAX_RANGE, 1, sectors, MAX_RANGE, 1] {
        put(&word.to_le_bytes());
    }
    put(&[1, 0, 0, 0]); // Write-zeroes may give space back.
    space.resize(MAX_CONFIG, 0);
    space
}
