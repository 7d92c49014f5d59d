//! The orders that the judge gives, and the bytes that travel with them.

use crate::memory::Memory;
use crate::payload::Payload;
use crate::window::AddressError;

/// Flag: the order is for the third; the peer passes it on.
pub(super) const FOR_THIRD: u8 = 1;
/// Flag: an answer; kind and first argument are those of the order.
pub(super) const ANSWER: u8 = 2;
/// Flag: an answer, but the order's payload was refused or made no sense.
pub(super) const REFUSED: u8 = 4;

/// What the judge asks for. The first argument of every message is the order's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Order {
    /// Answer with the same arguments and the same payload, by address.
    Echo = 1,
    /// Read the payload; answer with its digest and the address of its first byte.
    Digest,
    /// As `Digest`, and keep the payload.
    Hold,
    /// As `Digest`, of what is kept.
    DigestHeld,
    /// Drop what is kept, then answer.
    Release,
    /// Drop what is kept on another thread, after so many milliseconds; no answer.
    ReleaseElsewhere,
    /// Answer with an own buffer: pattern by seed, length.
    Give,
    /// Do nothing for so many milliseconds; no answer.
    Pause,
    /// Count this; no answer.
    Count,
    /// Answer with how many `Count`s there were.
    Counted,
    /// Die at once.
    Die,
}

impl Order {
    /// The order of that kind.
    pub(super) fn of_kind(kind: u8) -> Option<Self> {
        use Order::*;
        const ORDERS: [Order; 11] =
            [Echo, Digest, Hold, DigestHeld, Release, ReleaseElsewhere, Give, Pause, Count, Counted, Die];
        ORDERS.into_iter().find(|order| *order as u8 == kind)
    }
}

/// The bytes that belong to a seed.
pub(super) fn pattern(seed: u32) -> impl Iterator<Item = u8> {
    (0u32..).map(move |index| (index.wrapping_add(seed).wrapping_mul(0x9E37_79B1) >> 24) as u8)
}

/// A digest of bytes (FNV-1a).
pub(super) fn digest(bytes: impl Iterator<Item = u8>) -> u32 {
    bytes.fold(0x811C_9DC5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// The digest of a payload's bytes, which are read through the windows.
pub(super) fn digest_of(memory: &Memory, payload: &Payload) -> Result<u32, AddressError> {
    let mut bytes = Vec::new();
    for span in memory.translate_all(payload)? {
        let start = bytes.len();
        bytes.resize(start + span.len(), 0);
        span.read(0, &mut bytes[start..]);
    }
    Ok(digest(bytes.into_iter()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_its_order() {
        for kind in 0..=u8::MAX {
            match Order::of_kind(kind) {
                Some(order) => assert_eq!(order as u8, kind),
                None => assert!(kind == 0 || kind > Order::Die as u8),
            }
        }
    }

    #[test]
    fn other_bytes_have_other_digests() {
        let of = |seed, len| digest(pattern(seed).take(len));
        assert_ne!(of(1, 100), of(2, 100));
        assert_ne!(of(1, 100), of(1, 99));
        assert_eq!(digest(std::iter::empty()), 0x811C_9DC5);
    }
}
