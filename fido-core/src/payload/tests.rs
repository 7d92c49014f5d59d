//! Payloads against the same spelled out byte by byte: address and hold of each.

use super::*;
use crate::addr::{GlobalAddr, MAX_ARENA_BYTES};
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
    payload.push(segment(30, 10), None);
    payload.push(segment(40, 10), None);
    assert_eq!((payload.parts().len(), payload.len()), (3, 50));
}

#[test]
fn neighbours_that_are_too_long_together_stay_apart() {
    let mut payload = Payload::new();
    payload.push(segment(0, u32::MAX), None);
    payload.push(segment(u64::from(u32::MAX), 1), None);
    payload.push(segment(1 << 32, u32::MAX), None);
    assert_eq!(payload.len(), 2 * u64::from(u32::MAX) + 1);
    let lens: Vec<u32> = payload.segments().map(|segment| segment.len).collect();
    assert_eq!(lens, [u32::MAX, 1, u32::MAX], "one byte more does not fit into 32 bits");
    let head = payload.split_to(u64::from(u32::MAX) + 1);
    assert_eq!((head.len(), payload.len()), (1 << 32, u64::from(u32::MAX)));
}

#[test]
fn the_end_of_the_largest_arena() {
    let mut payload = Payload::new();
    payload.push(segment(MAX_ARENA_BYTES - 10, 10), None);
    payload.push(Segment::new(GlobalAddr::from_bits(2 << 40), 10), None);
    assert_eq!(payload.parts().len(), 2, "the next generation is no neighbour");
    assert_eq!(payload.split_to(10).segments().next(), Some(segment(MAX_ARENA_BYTES - 10, 10)));
    assert_eq!(payload.segments().next(), Some(Segment::new(GlobalAddr::from_bits(2 << 40), 10)));
}

#[test]
fn nothing_is_nothing() {
    let mut payload = Payload::new();
    payload.push(segment(5, 0), None);
    assert!(payload.is_empty() && payload.parts().is_empty());
    assert!(payload.split_to(u64::MAX).is_empty());
    assert!(payload.slice(0, 0).is_some_and(|part| part.is_empty()));
    assert!(payload.slice(1, 0).is_none() && payload.slice(u64::MAX, 1).is_none());
}

/// Each byte of a payload: its address, and which of the holds keeps it (by address, 0 for none).
fn bytes(payload: &Payload) -> Vec<(u64, usize)> {
    let one = |part: &Part| {
        let hold = part.hold.as_ref().map_or(0, |hold| Arc::as_ptr(hold).cast::<()>().addr());
        let start = part.segment.addr.bits();
        (0..u64::from(part.segment.len)).map(move |at| (start + at, hold))
    };
    payload.parts().iter().flat_map(one).collect()
}

/// Parts of 0 to 49 bytes, some of them neighbours, under three holds or none.
fn any_payload() -> impl Strategy<Value = Payload> {
    prop::collection::vec((0u32..50, any::<bool>(), 0usize..4), 0..12).prop_map(|parts| {
        let holds: Vec<Hold> = (0..3u8).map(|n| Arc::new(n) as Hold).collect();
        let (mut payload, mut at) = (Payload::new(), 0);
        for (len, gap, hold) in parts {
            at += if gap { 1000 } else { 0 };
            payload.push(segment(at, len), holds.get(hold).cloned());
            at += u64::from(len);
        }
        payload
    })
}

fn is_in_order(payload: &Payload) -> bool {
    let sum: u64 = payload.segments().map(|segment| u64::from(segment.len)).sum();
    sum == payload.len() && payload.segments().all(|segment| segment.len > 0)
}

proptest! {
    #[test]
    fn splitting_anywhere_keeps_every_byte_and_its_hold(payload in any_payload()) {
        let all = bytes(&payload);
        for at in 0..=all.len() + 1 {
            let mut tail = payload.clone();
            let head = tail.split_to(at as u64);
            let cut = at.min(all.len());
            prop_assert!(is_in_order(&head) && is_in_order(&tail));
            prop_assert_eq!(bytes(&head), &all[..cut]);
            prop_assert_eq!(bytes(&tail), &all[cut..]);
            let mut whole = head;
            whole.append(tail);
            prop_assert_eq!(bytes(&whole), &all[..]);
            prop_assert_eq!(whole.parts().len(), payload.parts().len(), "and the halves join again");
        }
    }

    #[test]
    fn a_slice_is_that_range_or_nothing(payload in any_payload(), start in 0u64..600, len in 0u64..600) {
        let all = bytes(&payload);
        match payload.slice(start, len) {
            Some(part) => prop_assert_eq!(bytes(&part), &all[start as usize..(start + len) as usize]),
            None => prop_assert!(start + len > all.len() as u64),
        }
    }

    #[test]
    fn released_holds_are_gone_and_the_bytes_stay(payload in any_payload(), which in 0u8..3) {
        let mut released = payload.clone();
        released.release(|hold| hold.downcast_ref::<u8>() == Some(&which));
        prop_assert_eq!(released.segments().collect::<Vec<_>>(), payload.segments().collect::<Vec<_>>());
        for (part, before) in released.parts().iter().zip(payload.parts()) {
            let was = before.hold.as_ref().and_then(|hold| hold.downcast_ref::<u8>());
            prop_assert_eq!(part.hold.is_some(), was.is_some_and(|n| *n != which));
        }
    }
}
