//! Several small frames in one message of a lane, under one loan.
//!
//! What a frame of 64 bytes costs on a lane is the message, the loan and its return. So up to [`FRAMES`] frames go
//! together if they have the same marks and no more segments than fit into a slot beside them. They come apart again at
//! the other end; the loan ends when the last of them has been dropped.

use fido_core::message::INLINE_SEGMENTS;
use fido_core::payload::Payload;

use super::offload::Offload;
use super::port::Frame;

/// The most frames in one message.
pub(super) const FRAMES: usize = 3;
/// The longest frame that goes together with others.
pub(super) const SMALL: u64 = 4096;

/// Frames that go in one message.
#[derive(Debug, Default)]
pub(super) struct Bundle {
    /// The marks of all of them.
    pub(super) offload: Offload,
    /// Their bytes, one behind the other.
    pub(super) payload: Payload,
    /// The length of each; 0 where there is none.
    pub(super) lens: [u32; FRAMES],
}

impl Bundle {
    /// How many there are.
    #[inline]
    pub(super) fn frames(&self) -> usize {
        self.lens.iter().take_while(|len| **len > 0).count()
    }

    /// The bytes of all.
    #[inline]
    pub(super) fn len(&self) -> u64 {
        self.payload.len()
    }

    /// Whether no frame can come to these any more.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.lens[FRAMES - 1] > 0 || self.payload.parts().len() >= INLINE_SEGMENTS || self.len() > SMALL
    }

    /// Adds a frame, or gives it back if it does not go with these. An empty bundle takes any.
    #[inline]
    pub(super) fn add(&mut self, frame: Frame) -> Option<Frame> {
        let at = self.frames();
        let len = frame.payload.len();
        if at == 0 {
            *self = Self { offload: frame.offload, payload: frame.payload, lens: [len as u32, 0, 0] };
            return None;
        }
        let parts = self.payload.parts().len() + frame.payload.parts().len();
        if at == FRAMES || self.is_full() || len > SMALL || parts > INLINE_SEGMENTS || frame.offload != self.offload {
            return Some(frame);
        }
        self.lens[at] = len as u32;
        self.payload.append(frame.payload);
        None
    }

    /// Where all but the last frame end, as a word of the message: the lengths of the first two, or 0.
    #[inline]
    pub(super) fn boundaries(&self) -> u32 {
        // Only small frames have a next one.
        let before = |next: usize| if self.lens[next] > 0 { self.lens[next - 1] } else { 0 };
        before(1) | before(2) << 16
    }

    /// The frames one by one.
    pub(super) fn into_frames(self) -> Unbundling {
        let boundaries = self.boundaries();
        Unbundling::new(self.offload, self.payload, boundaries)
    }
}

/// The frames of a message, one by one. Boundaries are a peer's word: what they cut off may be no frame.
#[derive(Debug)]
pub(super) struct Unbundling {
    offload: Offload,
    payload: Payload,
    boundaries: u32,
}

impl Unbundling {
    #[inline]
    pub(super) fn new(offload: Offload, payload: Payload, boundaries: u32) -> Self {
        Self { offload, payload, boundaries }
    }
}

impl Iterator for Unbundling {
    type Item = Frame;

    #[inline]
    fn next(&mut self) -> Option<Frame> {
        if self.payload.is_empty() {
            return None;
        }
        let len = self.boundaries & 0xffff;
        self.boundaries >>= 16;
        let payload = if len == 0 { std::mem::take(&mut self.payload) } else { self.payload.split_to(u64::from(len)) };
        Some(Frame { offload: self.offload, payload })
    }
}
