//! What a slot alleges of its payload, at every limit and one past it. The peer's slots and lists are written by hand.

use super::*;
use crate::addr::Slot;
use crate::message::{Frame, LIST_ENTRY_BYTES, NO_SEGMENT};

/// Two ends, and a list of segments in the heap of `b`, the one that alleges.
struct Rig {
    a: Lane,
    b: Lane,
    list: crate::heap::ArenaBuf,
}

/// As many one-byte segments as a list may have, and one more.
const ENTRIES: usize = MAX_SEGMENTS + 1;

fn rig() -> Rig {
    let (a, b) = lane_pair(16, Transport::Pointer);
    let mut list = b.memory().alloc(ENTRIES * LIST_ENTRY_BYTES).unwrap();
    let id = b.memory().id();
    for (n, entry) in list.as_mut_slice().chunks_exact_mut(LIST_ENTRY_BYTES).enumerate() {
        // Every other byte: neighbours would become one.
        let segment = Segment::new(GlobalAddr::new(id, 2 * n as u64).unwrap(), 1);
        entry.copy_from_slice(&message::encode_entry(segment));
    }
    Rig { a, b, list }
}

impl Rig {
    fn at(&self, offset: u64, len: u32) -> Segment {
        Segment::new(GlobalAddr::new(self.b.memory().id(), offset).unwrap(), len)
    }

    /// A frame whose first segment is the list, of `len` bytes.
    fn listed(&self, count: u16, len: usize) -> Frame {
        let list = Segment::new(self.list.segment().addr, len as u32);
        Frame { head: head(1), loan: 7, returned: 0, count, segments: [list, NO_SEGMENT, NO_SEGMENT] }
    }

    /// What becomes of a frame: the segments of the payload, or the refusal.
    fn alleges(&mut self, frame: Frame) -> Result<usize, RefusalError> {
        publish(&mut self.b, &frame.encode());
        match self.a.recv().expect("a message") {
            Ok((_, payload)) => Ok(payload.parts().len()),
            Err(refusal) => {
                assert_eq!(refusal.head, frame.head);
                Err(refusal.error)
            }
        }
    }
}

#[test]
fn the_number_of_segments() {
    let mut rig = rig();
    for count in [0u16, 1, 2, 3] {
        let mut frame = rig.listed(count, 0);
        frame.segments = [rig.at(0, 1), rig.at(2, 1), rig.at(4, 1)];
        assert_eq!(rig.alleges(frame), Ok(usize::from(count)), "in the slot");
    }
    for count in [4u16, 5, 255, 256] {
        let frame = rig.listed(count, usize::from(count) * LIST_ENTRY_BYTES);
        assert_eq!(rig.alleges(frame), Ok(usize::from(count)), "in a list");
    }
    for count in [257u16, 258, u16::MAX] {
        let frame = rig.listed(count, usize::from(count) * LIST_ENTRY_BYTES);
        assert_eq!(rig.alleges(frame), Err(RefusalError::TooManySegments { count }));
    }
}

#[test]
fn the_length_of_a_list() {
    let mut rig = rig();
    for len in [0, 1, 4 * LIST_ENTRY_BYTES - 1, 4 * LIST_ENTRY_BYTES + 1, 5 * LIST_ENTRY_BYTES, u32::MAX as usize] {
        let frame = rig.listed(4, len);
        assert_eq!(rig.alleges(frame), Err(RefusalError::List { list: frame.segments[0], count: 4 }));
    }
    assert_eq!(rig.alleges(rig.listed(4, 4 * LIST_ENTRY_BYTES)), Ok(4));
}

#[test]
fn the_place_of_a_list() {
    let mut rig = rig();
    let (arena, bytes) = (rig.b.memory().arena().len(), 4 * LIST_ENTRY_BYTES as u32);
    let mut frame = rig.listed(4, bytes as usize);
    frame.segments[0] = rig.at(arena - u64::from(bytes), bytes);
    let zeros = AddressError::NoWindow { segment: NO_SEGMENT };
    assert_eq!(rig.alleges(frame), Err(zeros.into()), "the last bytes of the arena are read: zeros name nobody");
    frame.segments[0] = rig.at(arena - u64::from(bytes) + 1, bytes);
    assert!(matches!(rig.alleges(frame), Err(RefusalError::Address(AddressError::OutOfBounds { .. }))));
    let own = rig.a.memory().id();
    let stale = DomainId { generation: rig.b.memory().id().generation.next(), ..rig.b.memory().id() };
    for id in [own, stale] {
        frame.segments[0] = Segment::new(GlobalAddr::new(id, 0).unwrap(), bytes);
        assert!(matches!(rig.alleges(frame), Err(RefusalError::List { .. })), "not in the sender's arena");
    }
}

#[test]
fn an_empty_segment_must_lie_inside_too() {
    let mut rig = rig();
    let arena = rig.b.memory().arena().len();
    let mut frame = rig.listed(1, 0);
    for (offset, len, inside) in [(arena, 0, true), (arena + 1, 0, false), (arena - 1, 1, true), (arena, 1, false)] {
        frame.segments[0] = rig.at(offset, len);
        let expected = if inside { Ok(len as usize) } else { Err(()) };
        assert_eq!(rig.alleges(frame).map_err(drop), expected, "{len} bytes at {offset}");
    }
    frame.segments[0] = Segment::new(GlobalAddr::from_bits(0), 0);
    let nobody = Slot::new(0).unwrap();
    assert!(rig.a.memory().windows().get(DomainId { slot: nobody, ..rig.b.memory().id() }).is_none());
    assert!(matches!(rig.alleges(frame), Err(RefusalError::Address(AddressError::NoWindow { .. }))));
}

#[test]
fn segments_need_a_loan_and_a_loan_needs_none() {
    let mut rig = rig();
    let mut frame = rig.listed(1, 0);
    (frame.segments[0], frame.loan) = (rig.at(0, 1), 0);
    assert_eq!(rig.alleges(frame), Err(RefusalError::NoLoan));
    (frame.count, frame.loan) = (0, u16::MAX);
    assert_eq!(rig.alleges(frame), Ok(0));
    assert_eq!(returned_tags(&mut rig), [u16::MAX], "nothing held: returned at once");
}

#[test]
fn kinds_up_to_the_reserved_ones() {
    let mut rig = rig();
    let mut frame = rig.listed(0, 0);
    frame.loan = 0;
    for kind in [0, KIND_RESERVED - 1] {
        frame.head.kind = kind;
        assert_eq!(rig.alleges(frame), Ok(0));
    }
    for kind in [KIND_RESERVED + 1, u8::MAX] {
        frame.head.kind = kind;
        frame.loan = u16::from(kind);
        assert_eq!(rig.alleges(frame), Err(RefusalError::ReservedKind { kind }));
    }
    assert_eq!(returned_tags(&mut rig), [u16::from(KIND_RESERVED + 1), 255], "the loans of what was refused come back");
}

#[test]
fn whatever_is_refused_is_returned() {
    let mut rig = rig();
    let frame = rig.listed(257, 0);
    for tag in 1..=3 {
        assert!(rig.alleges(Frame { loan: tag, ..frame }).is_err());
    }
    assert_eq!(returned_tags(&mut rig), [1, 2, 3]);
    assert_eq!(rig.a.memory().stats().refusals.get(), 3);
}

/// The tags that `a` gives back, as they lie in its ring.
fn returned_tags(rig: &mut Rig) -> Vec<u16> {
    rig.a.flush();
    let words = rig.b.session.as_mut().expect("a session").rx.pop().expect("a message of returns");
    message::decode_returns(&words).collect()
}
