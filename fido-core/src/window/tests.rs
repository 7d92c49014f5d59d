//! Translation at every boundary, over plain memory.

use super::*;
use crate::addr::{Generation, GlobalAddr, MAX_ARENA_BYTES, Slot};
use crate::testing::{plain_memory, watched};
use proptest::prelude::*;

fn id(slot: u16, generation: u16) -> DomainId {
    DomainId { slot: Slot::new(slot).unwrap(), generation: Generation::new(generation).unwrap() }
}

/// A window over `len` bytes that count up.
fn window(id: DomainId, len: u64) -> Arc<Window> {
    let raw = plain_memory(len);
    for at in 0..len as usize {
        // SAFETY: inside the fresh memory, which nobody else knows yet.
        unsafe { raw.base.add(at).write(at as u8) };
    }
    // SAFETY: the mapping keeps the memory, which is aligned to a page.
    Arc::new(unsafe { Window::new(id, raw.base, len, raw.mapping) })
}

fn segment(id: DomainId, offset: u64, len: u32) -> Segment {
    Segment::new(GlobalAddr::new(id, offset).unwrap(), len)
}

const LEN: u64 = 3 * 4096 + 7;

fn near_the_end() -> impl Strategy<Value = u64> {
    let places = vec![0, 1, 8, 4096, LEN / 2, LEN - 1, LEN, LEN + 1, 1 << 32, MAX_ARENA_BYTES - 1];
    prop_oneof![prop::sample::select(places), 0..2 * LEN]
}

#[test]
fn the_edges_of_a_window() {
    let window = window(id(7, 3), LEN);
    for (offset, len, inside) in [
        (0, LEN, true),
        (0, LEN + 1, false),
        (1, LEN, false),
        (LEN - 1, 1, true),
        (LEN - 1, 2, false),
        (LEN, 0, true),
        (LEN, 1, false),
        (LEN + 1, 0, false),
        (u64::MAX, 0, false),
        (u64::MAX, 1, false),
        (1, u64::MAX, false),
        (LEN, u64::MAX - LEN + 1, false),
    ] {
        assert_eq!(window.at(offset, len).is_some(), inside, "{len} bytes at {offset}");
    }
}

#[test]
fn every_error_says_what_is_wrong() {
    let table = Arc::new(WindowTable::default());
    let view = WindowView::new(table.clone());
    let wish = segment(id(7, 3), 10, 5);
    assert_eq!(view.check(wish), Err(AddressError::NoWindow { segment: wish }));
    table.insert(window(id(7, 2), LEN));
    let mapped = Generation::new(2).unwrap();
    assert_eq!(view.check(wish), Err(AddressError::Generation { segment: wish, mapped }));
    let neighbour = segment(id(6, 2), 10, 5);
    assert_eq!(view.check(neighbour), Err(AddressError::NoWindow { segment: neighbour }));
    table.insert(window(id(7, 3), LEN));
    assert_eq!(view.check(wish), Ok(()));
    let long = segment(id(7, 3), 10, u32::MAX);
    assert_eq!(view.check(long), Err(AddressError::OutOfBounds { segment: long, arena_len: LEN }));
    let none = segment(id(7, 0), 0, 0);
    assert!(matches!(view.check(none), Err(AddressError::Generation { .. })), "generation 0 names nobody");
}

#[test]
fn a_dead_incarnation_and_its_successor_are_told_apart() {
    let table = Arc::new(WindowTable::default());
    let view = WindowView::new(table.clone());
    let (old, new) = (window(id(7, 4095), LEN), window(id(7, 1), LEN));
    table.insert(old.clone());
    table.insert(new.clone());
    for window in [&old, &new] {
        let span = view.translate(segment(window.id(), 5, 4)).unwrap();
        assert_eq!(span.as_ptr(), window.at(5, 4).unwrap());
    }
    let kept = view.translate(segment(old.id(), LEN - 2, 2)).unwrap();
    table.remove(old.id());
    let mapped = new.id().generation;
    let stale = segment(old.id(), 0, 1);
    assert_eq!(view.check(stale), Err(AddressError::Generation { segment: stale, mapped }));
    drop((old, table, view));
    let mut out = [0; 4];
    assert_eq!((kept.read(0, &mut out), out[0]), (2, (LEN - 2) as u8), "a span keeps its window");
}

#[test]
fn a_window_is_unmapped_when_it_is_removed_whoever_has_looked_it_up() {
    let mapped = Arc::new(());
    let raw = plain_memory(LEN);
    // SAFETY: the mapping keeps the memory, which is aligned to a page.
    let window = unsafe { Window::new(id(7, 3), raw.base, LEN, raw.mapping) };
    let window = Arc::new(watched(window, Box::new(mapped.clone())));
    let is_mapped = || Arc::strong_count(&mapped) > 1;
    let table = Arc::new(WindowTable::default());
    let views: Vec<_> = (0..3).map(|_| WindowView::new(table.clone())).collect();
    table.insert(window);
    let spans: Vec<_> = views.iter().map(|view| view.translate(segment(id(7, 3), 1, 2)).unwrap()).collect();
    views.iter().for_each(|view| view.check(segment(id(7, 3), 1, 2)).unwrap());
    table.remove(id(7, 3));
    assert!(is_mapped(), "its bytes are in use");
    drop(spans);
    assert!(!is_mapped(), "no view has looked anything up since, and none keeps it");
    let wish = segment(id(7, 3), 1, 2);
    assert!(views.iter().all(|view| view.check(wish) == Err(AddressError::NoWindow { segment: wish })));
}

#[test]
fn a_window_takes_the_place_of_one_of_the_same_incarnation() {
    let table = Arc::new(WindowTable::default());
    let view = WindowView::new(table.clone());
    table.insert(window(id(7, 3), 64));
    assert!(view.check(segment(id(7, 3), 64, 1)).is_err());
    table.insert(window(id(7, 3), 65));
    assert!(view.check(segment(id(7, 3), 64, 1)).is_ok(), "views follow the table");
}

proptest! {
    #[test]
    fn what_is_translated_lies_inside_and_the_rest_is_refused(
        bits: u64, known in 0u8..4, offset in near_the_end(), len in near_the_end()
    ) {
        thread_local! {
            static VIEW: WindowView = {
                let table = Arc::new(WindowTable::default());
                table.insert(window(id(7, 3), LEN));
                WindowView::new(table)
            };
        }
        let domain = match known {
            0 => GlobalAddr::from_bits(bits).domain(),
            1 => id(7, 2),
            _ => id(7, 3),
        };
        let wish = segment(domain, offset, len as u32);
        let inside = offset + u64::from(len as u32) <= LEN;
        VIEW.with(|view| {
            prop_assert_eq!(view.check(wish), view.translate(wish).map(drop));
            match view.translate(wish) {
                Ok(span) => {
                    prop_assert!(domain == id(7, 3) && inside);
                    prop_assert_eq!(span.len(), wish.len as usize);
                }
                Err(AddressError::OutOfBounds { .. }) => prop_assert!(domain == id(7, 3) && !inside),
                Err(AddressError::Generation { .. }) => prop_assert!(domain.slot == id(7, 3).slot && domain != id(7, 3)),
                Err(AddressError::NoWindow { .. }) => prop_assert!(domain.slot != id(7, 3).slot),
            }
            Ok(())
        })?;
    }

    #[test]
    fn a_span_is_read_as_far_as_both_sides_have(
        offset in 0u64..40, len in 0u32..100, start in 0usize..120, room in 0usize..120
    ) {
        let window = window(id(1, 1), 4096);
        let span = Span::of(&window, offset, len).unwrap();
        let count = room.min((len as usize).saturating_sub(start));
        let expected: Vec<u8> = (0..count).map(|at| (offset as usize + start + at) as u8).collect();
        for read in [Span::read, Span::copy] {
            let mut out = vec![0xEE; room];
            prop_assert_eq!(read(&span, start, &mut out), count);
            prop_assert_eq!(&out[..count], &expected);
            prop_assert!(out[count..].iter().all(|byte| *byte == 0xEE), "nothing else is touched");
        }
    }
}
