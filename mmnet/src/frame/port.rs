//! The face of everything that Ethernet frames come from and go to.
//!
//! As on a wire, nobody waits for a slow receiver: what does not fit is dropped and counted. A sender that does not want
//! to lose frames asks [`FramePort::has_room`] first. One port belongs to one thread.

use fido_core::addr::DomainId;
use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::wait::Source;

use super::offload::{Offload, OffloadError};

/// Bytes of an Ethernet header without a VLAN tag.
pub const HEADER_BYTES: usize = 14;
/// Bytes of a VLAN tag, which an MTU does not count.
pub const TAG_BYTES: usize = 4;
/// The least MTU that every port must carry (IPv4's minimum).
pub const MIN_MTU: usize = 576;
/// The largest MTU: with its header, a frame has less than 64 KiB.
pub const MAX_MTU: usize = 65_535 - HEADER_BYTES;
/// The longest frame that there can be: the largest IP packet, to be segmented or not, behind a header with a tag.
pub const MAX_FRAME_BYTES: usize = 65_535 + HEADER_BYTES + TAG_BYTES;
/// Frames that wait in a port, in each direction.
pub const QUEUE: usize = 256;

/// An Ethernet frame on its way.
#[derive(Debug, Clone, Default)]
pub struct Frame {
    /// What is still to be done to it.
    pub offload: Offload,
    /// Its bytes, from the destination's address on, without a checksum of the frame.
    pub payload: Payload,
}

impl From<Payload> for Frame {
    /// A frame that is as it shall arrive.
    fn from(payload: Payload) -> Self {
        Self { offload: Offload::default(), payload }
    }
}

/// Why a port cannot be had or a frame not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The MTU is out of range.
    #[error("an MTU of {0} bytes; it must be {MIN_MTU} to {MAX_MTU}")]
    Mtu(usize),
    /// A device without queues.
    #[error("a device must have at least one queue")]
    NoQueues,
    /// The frame is shorter than a header or longer than the port carries.
    #[error("a frame of {len} bytes; this port carries {HEADER_BYTES} to {limit}")]
    Length {
        /// The frame's length.
        len: u64,
        /// The limit for a frame of this kind, header included.
        limit: usize,
    },
    /// Its marks do not fit the frame.
    #[error("a frame with wrong marks: {0}")]
    Offload(#[from] OffloadError),
}

/// What a port has carried and lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FrameCounts {
    /// Frames given to the other side.
    pub sent: u64,
    /// Bytes of them.
    pub sent_bytes: u64,
    /// Frames handed to the receiver.
    pub received: u64,
    /// Bytes of them.
    pub received_bytes: u64,
    /// Frames not sent: no peer, too many waiting, or no memory.
    pub dropped_sending: u64,
    /// Frames that arrived and found the receive queue full.
    pub dropped_receiving: u64,
    /// What arrived and was no frame.
    pub refused: u64,
}

impl FrameCounts {
    /// The counts of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            sent_bytes: self.sent_bytes + other.sent_bytes,
            received: self.received + other.received,
            received_bytes: self.received_bytes + other.received_bytes,
            dropped_sending: self.dropped_sending + other.dropped_sending,
            dropped_receiving: self.dropped_receiving + other.dropped_receiving,
            refused: self.refused + other.refused,
        }
    }
}

/// A device for Ethernet frames by address.
pub trait FramePort: Source {
    /// The memory of the domain that the port is in.
    fn memory(&self) -> &Memory;

    /// The most bytes behind an (untagged) header of a frame, or of each piece of one that is to be segmented.
    fn mtu(&self) -> usize;

    /// What it has carried and lost.
    fn counts(&self) -> FrameCounts;

    /// Whether a frame that is sent now will not be dropped for want of room.
    fn has_room(&self) -> bool;

    /// Sends a frame, wherever in the appliance it lies; the port keeps it until the other side has done with it. Call
    /// [`FramePort::flush`] after a batch. A frame that cannot be sent is dropped and counted, as on a wire.
    ///
    /// # Errors
    /// [`FrameError`] if it is no frame that this port may carry.
    fn send(&mut self, frame: Frame) -> Result<(), FrameError>;

    /// The next frame that arrived. Never blocks.
    fn recv(&mut self) -> Option<Frame>;

    /// Hands on what waits and returns what was dropped. Call it after a batch and before waiting.
    fn flush(&mut self);

    /// `dead` is gone and its fence is to be passed: lets go of everything that lies in its arena.
    fn forget(&mut self, dead: DomainId);
}

/// Whether a frame of `len` bytes with these marks may pass a port with that MTU.
///
/// # Errors
/// [`FrameError::Length`] or [`FrameError::Offload`].
pub(crate) fn check(len: u64, offload: &Offload, mtu: usize) -> Result<(), FrameError> {
    let limit = if offload.segmentation.is_some() { MAX_FRAME_BYTES } else { mtu + HEADER_BYTES + TAG_BYTES };
    if !(HEADER_BYTES as u64..=limit as u64).contains(&len) {
        return Err(FrameError::Length { len, limit });
    }
    Ok(offload.check(len, mtu)?)
}

/// Whether a part of the payload lies in that domain's arena.
pub(crate) fn lies_in(payload: &Payload, domain: DomainId) -> bool {
    payload.parts().iter().any(|part| part.segment.addr.domain() == domain)
}
