//! Arithmetic at every boundary, against the same in 128 bits.

use super::*;
use proptest::prelude::*;

fn id(slot: u16, generation: u16) -> DomainId {
    DomainId { slot: Slot::new(slot).unwrap(), generation: Generation::new(generation).unwrap() }
}

#[test]
fn limits_are_exact() {
    assert!(Slot::new(4095).is_some());
    assert!(Slot::new(4096).is_none());
    assert!(Generation::new(4095).is_some());
    assert!(Generation::new(4096).is_none());
    assert!(GlobalAddr::new(id(1, 1), MAX_ARENA_BYTES - 1).is_some());
    assert!(GlobalAddr::new(id(1, 1), MAX_ARENA_BYTES).is_none());
}

#[test]
fn generation_wraps_past_none() {
    assert_eq!(Generation::new(4095).unwrap().next(), Generation::FIRST);
    assert_eq!(Generation::NONE.next(), Generation::FIRST);
    assert_eq!(Generation::FIRST.next().number(), 2);
}

#[test]
fn the_bits_are_where_the_protocol_has_them() {
    for (slot, generation, offset, bits) in [
        (0, 0, 0, 0),
        (1, 0, 0, 1 << 52),
        (0, 1, 0, 1 << 40),
        (0, 0, 1, 1),
        (4095, 0, 0, 0xFFF0_0000_0000_0000),
        (0, 4095, 0, 0x000F_FF00_0000_0000),
        (0, 0, MAX_ARENA_BYTES - 1, 0x0000_00FF_FFFF_FFFF),
        (4095, 4095, MAX_ARENA_BYTES - 1, u64::MAX),
    ] {
        assert_eq!(GlobalAddr::new(id(slot, generation), offset).unwrap().bits(), bits);
    }
}

#[test]
fn an_address_never_moves_into_the_next_generation() {
    let last = GlobalAddr::new(id(4095, 4095), MAX_ARENA_BYTES - 1).unwrap();
    assert_eq!(last.checked_add(1), None);
    assert_eq!(last.checked_add(u64::MAX), None);
    assert_eq!(last.checked_add(0), Some(last));
}

#[test]
fn the_last_segment_of_the_largest_arena() {
    let len = 4096;
    let whole = Segment::new(GlobalAddr::new(id(9, 9), MAX_ARENA_BYTES - u64::from(len)).unwrap(), len);
    assert_eq!(whole.slice(len - 1, 1).unwrap().addr.offset(), MAX_ARENA_BYTES - 1);
    assert_eq!(whole.slice(len, 0), None, "no offset names the byte behind it");
    let next_generation = Segment::new(GlobalAddr::from_bits(whole.addr.bits() + u64::from(len)), 1);
    assert_eq!(whole.joined(next_generation), None, "neighbours as numbers only");
}

/// Numbers near a boundary, and any.
fn near(boundaries: &'static [u64]) -> impl Strategy<Value = u64> {
    let around = prop::sample::select(boundaries).prop_flat_map(|at| at.saturating_sub(2)..=at.saturating_add(2));
    prop_oneof![around, any::<u64>()]
}

fn offset() -> impl Strategy<Value = u64> {
    near(&[0, 4096, 1 << 32, (1 << 40) - 4096, (1 << 40) - 2]).prop_map(|offset| offset % MAX_ARENA_BYTES)
}

fn len() -> impl Strategy<Value = u32> {
    near(&[0, 4096, 1 << 31, u32::MAX as u64 - 2]).prop_map(|len| len as u32)
}

fn segment() -> impl Strategy<Value = Segment> {
    let number = || near(&[0, 1, 4093]).prop_map(|number| (number % 4096) as u16);
    (number(), number(), offset(), len()).prop_map(|(slot, generation, offset, len)| {
        Segment::new(GlobalAddr::new(id(slot, generation), offset).unwrap(), len)
    })
}

proptest! {
    #[test]
    fn fields_survive(slot in 0u16..4096, generation in 0u16..4096, offset in offset()) {
        let addr = GlobalAddr::new(id(slot, generation), offset).unwrap();
        prop_assert_eq!((addr.domain(), addr.slot(), addr.generation()), (id(slot, generation), id(slot, generation).slot, id(slot, generation).generation));
        prop_assert_eq!(addr.offset(), offset);
        prop_assert_eq!(GlobalAddr::from_bits(addr.bits()), addr);
    }

    #[test]
    fn adding_is_adding_or_nothing(bits: u64, bytes in near(&[0, 1 << 40, u64::MAX - 2])) {
        let addr = GlobalAddr::from_bits(bits);
        let sum = u128::from(addr.offset()) + u128::from(bytes);
        let expected = (sum < 1 << 40).then_some((addr.domain(), sum as u64));
        prop_assert_eq!(addr.checked_add(bytes).map(|to| (to.domain(), to.offset())), expected);
    }

    #[test]
    fn a_slice_is_there_if_and_only_if_it_lies_inside(whole in segment(), start in len(), len in len()) {
        let inside = u64::from(start) + u64::from(len) <= u64::from(whole.len);
        let offset = whole.addr.offset() + u64::from(start);
        let expected = (inside && offset < MAX_ARENA_BYTES)
            .then(|| Segment::new(GlobalAddr::new(whole.addr.domain(), offset).unwrap(), len));
        prop_assert_eq!(whole.slice(start, len), expected);
    }

    #[test]
    fn segments_join_if_and_only_if_they_are_neighbours(a in segment(), gap in -1i64..=1, len in len(), other: bool) {
        let end = a.addr.offset() as i64 + i64::from(a.len) + gap;
        let domain = if other { id(a.addr.slot().number(), a.addr.generation().number() ^ 1) } else { a.addr.domain() };
        let Some(addr) = u64::try_from(end).ok().and_then(|end| GlobalAddr::new(domain, end)) else { return Ok(()) };
        let fits = gap == 0 && !other && a.len.checked_add(len).is_some();
        let expected = fits.then(|| Segment::new(a.addr, a.len + len));
        prop_assert_eq!(a.joined(Segment::new(addr, len)), expected);
    }

    #[test]
    fn halves_join_again(offset in 0u64..(1 << 39), len in 1u32..1 << 20, cut: u32) {
        let whole = Segment::new(GlobalAddr::new(id(3, 2), offset).unwrap(), len);
        let cut = cut % len;
        let (a, b) = (whole.slice(0, cut).unwrap(), whole.slice(cut, len - cut).unwrap());
        prop_assert_eq!(a.joined(b), Some(whole));
    }
}
