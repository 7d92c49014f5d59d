//! Payload: a scatter-gather list together with whatever keeps its bytes unchanged.
//!
//! A [`Payload`] is what components hand around: to a block queue, to a stream, from one to the other. Each part is a
//! segment and, where somebody must be told when it is no longer needed, a [`Hold`]: an own buffer that is freed, or a
//! peer's loan that is returned, when the last clone of the hold is dropped. Slicing and appending move addresses,
//! never bytes. So a part cannot be forgotten, nor returned while a request still refers to it.

#[cfg(test)]
mod tests;

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
    parts: Parts,
    len: u64,
}

/// The parts of a payload: up to one needs no memory beside the payload itself.
#[derive(Clone, Debug, Default)]
enum Parts {
    #[default]
    None,
    One(Part),
    Many(Vec<Part>),
}

impl Parts {
    #[inline]
    fn as_slice(&self) -> &[Part] {
        match self {
            Self::None => &[],
            Self::One(part) => std::slice::from_ref(part),
            Self::Many(parts) => parts,
        }
    }

    #[inline]
    fn as_mut_slice(&mut self) -> &mut [Part] {
        match self {
            Self::None => &mut [],
            Self::One(part) => std::slice::from_mut(part),
            Self::Many(parts) => parts,
        }
    }

    #[inline]
    fn push(&mut self, part: Part) {
        match self {
            Self::None => *self = Self::One(part),
            Self::One(_) => {
                let Self::One(first) = std::mem::take(self) else { return };
                // Room for as many as fit into a slot, and one more.
                let mut parts = Vec::with_capacity(4);
                parts.extend([first, part]);
                *self = Self::Many(parts);
            }
            Self::Many(parts) => parts.push(part),
        }
    }

    /// Drops the first `count` parts.
    fn drop_front(&mut self, count: usize) {
        match self {
            Self::Many(parts) if count < parts.len() => drop(parts.drain(..count)),
            _ if count > 0 => *self = Self::None,
            _ => {}
        }
    }
}

impl Payload {
    /// No bytes.
    #[inline]
    pub const fn new() -> Self {
        Self { parts: Parts::None, len: 0 }
    }

    /// One segment, kept by `hold`.
    #[inline]
    pub fn held(segment: Segment, hold: Hold) -> Self {
        Self::of(segment, Some(hold))
    }

    /// One segment, or nothing if that is empty.
    #[inline]
    fn of(segment: Segment, hold: Option<Hold>) -> Self {
        match segment.len {
            0 => Self::new(),
            len => Self { parts: Parts::One(Part { segment, hold }), len: u64::from(len) },
        }
    }

    /// The only part, if there is no other.
    #[inline]
    pub(crate) fn only(&self) -> Option<&Part> {
        match &self.parts {
            Parts::One(part) => Some(part),
            _ => None,
        }
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The parts in order; none is empty.
    #[inline]
    pub fn parts(&self) -> &[Part] {
        self.parts.as_slice()
    }

    /// The segments in order.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = Segment> + '_ {
        self.parts().iter().map(|part| part.segment)
    }

    /// Adds a segment at the end. Neighbouring segments under the same hold become one; an empty one is dropped.
    #[inline]
    pub fn push(&mut self, segment: Segment, hold: Option<Hold>) {
        match self.parts {
            Parts::None => *self = Self::of(segment, hold),
            _ => self.push_behind(segment, hold),
        }
    }

    fn push_behind(&mut self, segment: Segment, hold: Option<Hold>) {
        if segment.len == 0 {
            return;
        }
        self.len += u64::from(segment.len);
        if let Some(last) = self.parts.as_mut_slice().last_mut()
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
        for part in self.parts.as_mut_slice() {
            part.hold.take_if(|hold| gone(hold));
        }
    }

    /// Adds all parts of `other` at the end.
    pub fn append(&mut self, other: Self) {
        match other.parts {
            Parts::None => {}
            Parts::One(part) => self.push(part.segment, part.hold),
            Parts::Many(parts) => parts.into_iter().for_each(|part| self.push(part.segment, part.hold)),
        }
    }

    /// Cuts off and returns the first `at` bytes (all of them, if there are fewer).
    pub fn split_to(&mut self, at: u64) -> Self {
        let mut head = Self::new();
        let mut whole = 0;
        let mut left = at.min(self.len);
        for part in self.parts.as_mut_slice() {
            let len = part.segment.len;
            if u64::from(len) <= left {
                left -= u64::from(len);
                // It is dropped from here below.
                head.push(part.segment, part.hold.take());
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
        self.parts.drop_front(whole);
        self.len -= head.len;
        head
    }

    /// The `len` bytes from `start` on, or `None` if they are not all there.
    pub fn slice(&self, start: u64, len: u64) -> Option<Self> {
        if start.checked_add(len)? > self.len {
            return None;
        }
        if let Some(Part { segment, hold }) = self.only() {
            // Both are within the segment's length, which has 32 bits.
            return Some(Self::of(segment.slice(start as u32, len as u32)?, hold.clone()));
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
