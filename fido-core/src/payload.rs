//! Payload: a scatter-gather list together with whatever keeps its bytes unchanged.
//!
//! A [`Payload`] is what components hand around: to a block queue, to a stream, from one to the other. Each part is a
//! segment and, where somebody must be told when it is no longer needed, a [`Hold`]: an own buffer that is freed, or a
//! peer's loan that is returned, when the last clone of the hold is dropped. Slicing and appending move addresses,
//! never bytes. So a part cannot be forgotten, nor returned while a request still refers to it.

use std::any::Any;
use std::sync::Arc;

use crate::addr::Segment;

/// The most segments one message may carry, see [`crate::message`].
pub const MAX_SEGMENTS: usize = 256;

/// Keeps the bytes of a segment valid and unchanged until the last clone is dropped.
pub type Hold = Arc<dyn Any + Send + Sync>;

/// One part of a payload.
#[derive(Clone, Debug)]
pub struct Part {
    /// Where the bytes are.
    pub segment: Segment,
    /// What keeps them there; `None` for bytes that never change while their domain lives.
    pub hold: Option<Hold>,
}

/// A scatter-gather list with the holds that keep it valid. Cheap to slice and to clone: bytes never move.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    parts: Vec<Part>,
    len: u64,
}

impl Payload {
    /// No bytes.
    pub const fn new() -> Self {
        Self { parts: Vec::new(), len: 0 }
    }

    /// One segment, kept by `hold`.
    pub fn held(segment: Segment, hold: Hold) -> Self {
        let mut payload = Self::new();
        payload.push(segment, Some(hold));
        payload
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The parts in order; none is empty.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The segments in order.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = Segment> + '_ {
        self.parts.iter().map(|part| part.segment)
    }

    /// Adds a segment at the end. Neighbouring segments under the same hold become one; an empty one is dropped.
    pub fn push(&mut self, segment: Segment, hold: Option<Hold>) {
        if segment.len == 0 {
            return;
        }
        self.len += u64::from(segment.len);
        if let Some(last) = self.parts.last_mut()
            && same_hold(last.hold.as_ref(), hold.as_ref())
            && let Some(joined) = last.segment.joined(segment)
        {
            last.segment = joined;
            return;
        }
        self.parts.push(Part { segment, hold });
    }

    /// Lets go of the holds for which `gone` says so; the segments stay.
    pub(crate) fn release(&mut self, gone: impl Fn(&Hold) -> bool) {
        for part in &mut self.parts {
            part.hold.take_if(|hold| gone(hold));
        }
    }

    /// Adds all parts of `other` at the end.
    pub fn append(&mut self, other: Self) {
        for part in other.parts {
            self.push(part.segment, part.hold);
        }
    }

    /// Cuts off and returns the first `at` bytes (all of them, if there are fewer).
    pub fn split_to(&mut self, at: u64) -> Self {
        let mut head = Self::new();
        let mut whole = 0;
        let mut left = at.min(self.len);
        for part in &mut self.parts {
            let len = part.segment.len;
            if u64::from(len) <= left {
                left -= u64::from(len);
                head.push(part.segment, part.hold.clone());
                whole += 1;
                continue;
            }
            let cut = left as u32;
            if let (Some(front), Some(back)) = (part.segment.slice(0, cut), part.segment.slice(cut, len - cut)) {
                head.push(front, part.hold.clone());
                part.segment = back;
            }
            break;
        }
        self.parts.drain(..whole);
        self.len -= head.len;
        head
    }

    /// The `len` bytes from `start` on, or `None` if they are not all there.
    pub fn slice(&self, start: u64, len: u64) -> Option<Self> {
        if start.checked_add(len)? > self.len {
            return None;
        }
        let mut tail = self.clone();
        drop(tail.split_to(start));
        Some(tail.split_to(len))
    }
}

fn same_hold(a: Option<&Hold>, b: Option<&Hold>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::GlobalAddr;
    use proptest::prelude::*;

    fn segment(offset: u64, len: u32) -> Segment {
        Segment::new(GlobalAddr::from_bits((1 << 40) | offset), len)
    }

    #[test]
    fn a_hold_lives_as_long_as_its_last_slice() {
        let hold: Hold = Arc::new(());
        let mut payload = Payload::held(segment(0, 100), hold.clone());
        let head = payload.split_to(40);
        drop(payload);
        assert_eq!(Arc::strong_count(&hold), 2);
        drop(head);
        assert_eq!(Arc::strong_count(&hold), 1);
    }

    #[test]
    fn neighbours_join_only_under_one_hold() {
        let (a, b): (Hold, Hold) = (Arc::new(1), Arc::new(2));
        let mut payload = Payload::held(segment(0, 10), a.clone());
        payload.push(segment(10, 10), Some(a));
        assert_eq!(payload.parts().len(), 1);
        payload.push(segment(20, 10), Some(b));
        assert_eq!(payload.parts().len(), 2);
    }

    /// The payload spelled out byte by byte.
    fn bytes(payload: &Payload) -> Vec<u64> {
        payload.segments().flat_map(|s| (0..u64::from(s.len)).map(move |i| s.addr.bits() + i)).collect()
    }

    proptest! {
        #[test]
        fn splitting_keeps_every_byte_in_order(lens in prop::collection::vec(0u32..50, 0..8), at in 0u64..300) {
            let mut payload = Payload::new();
            for (i, len) in lens.iter().enumerate() {
                payload.push(segment(i as u64 * 1000, *len), None);
            }
            let all = bytes(&payload);
            let head = payload.split_to(at);
            prop_assert_eq!(head.len(), at.min(all.len() as u64));
            prop_assert_eq!(head.len() + payload.len(), all.len() as u64);
            let mut parts = bytes(&head);
            parts.extend(bytes(&payload));
            prop_assert_eq!(parts, all);
        }

        #[test]
        fn a_slice_is_that_range(lens in prop::collection::vec(1u32..50, 1..8), start in 0u64..200, len in 0u64..200) {
            let mut payload = Payload::new();
            for (i, l) in lens.iter().enumerate() {
                payload.push(segment(i as u64 * 1000, *l), None);
            }
            let all = bytes(&payload);
            match payload.slice(start, len) {
                Some(part) => prop_assert_eq!(bytes(&part), &all[start as usize..(start + len) as usize]),
                None => prop_assert!(start + len > all.len() as u64),
            }
        }
    }
}
