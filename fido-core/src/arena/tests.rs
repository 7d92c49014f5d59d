//! Tests of the arena's layout, and of what a peer makes of a wrong one.

use super::*;
use crate::testing::private_arena;

fn lane(link: u32, slots: u32) -> LanePlan {
    LanePlan { link, lane: 0, slots }
}

#[test]
fn a_peer_reads_what_the_owner_laid_out() {
    let arena = private_arena(1 << 20, &[lane(7, 64), lane(9, 256)]);
    let peer = Peer::read(arena.window()).unwrap();
    for place in arena.lanes() {
        assert_eq!(peer.lane(place.plan.link, 0).unwrap(), *place);
    }
    assert!(matches!(peer.lane(8, 0), Err(ArenaError::Lane { link: 8, .. })));
    arena.stats().sleeps.add(3);
    assert_eq!(peer.stats().sleeps, 3);
}

#[test]
fn thread_lines_are_taken_once_and_up_to_the_limit() {
    let arena = private_arena(1 << 20, &[]);
    let mut taken: Vec<_> = (0..MAX_THREADS).map(|_| arena.take_seat().unwrap()).collect();
    taken.sort_unstable();
    assert!(taken.iter().copied().eq(0..MAX_THREADS as u32));
    assert_eq!(arena.take_seat(), None, "one past the limit");
    arena.leave_seat(17);
    assert_eq!(arena.take_seat(), Some(17));
    assert!(presence_of(arena.window(), MAX_THREADS as u32 - 1).is_some());
    for wild in [MAX_THREADS as u32, u32::MAX] {
        assert_eq!(presence_of(arena.window(), wild), None);
    }
}

#[test]
fn limits_of_the_layout() {
    assert!(plan(MIN_ARENA_BYTES, &[]).is_ok());
    assert_eq!(plan(MIN_ARENA_BYTES - 1, &[]).unwrap_err(), ArenaError::Length { len: MIN_ARENA_BYTES - 1 });
    assert!(plan(MAX_ARENA_BYTES + 1, &[]).is_err());
    assert!(plan(1 << 30, &vec![lane(1, 4); MAX_LANES]).is_ok());
    let error = plan(1 << 30, &vec![lane(1, 4); MAX_LANES + 1]).unwrap_err();
    assert_eq!(error, ArenaError::TooManyLanes { lanes: MAX_LANES + 1 });
    for slots in [0, 2, 3, 100, 2 * MAX_RING_SLOTS] {
        assert_eq!(plan(1 << 30, &[lane(1, slots)]).unwrap_err(), ArenaError::RingSlots { slots });
    }
    assert!(matches!(plan(MIN_ARENA_BYTES, &[lane(1, 1024)]), Err(ArenaError::TooSmall { .. })));
}

#[test]
fn a_wild_directory_is_an_error() {
    let arena = private_arena(1 << 20, &[lane(7, 64)]);
    let peer = Peer::read(arena.window()).unwrap();
    let entry = arena.at::<Entry>(DIRECTORY_AT as u64);
    let put = |control: u64, ring: u64, slots: u32| {
        entry.control.store(control.to_le(), Ordering::Relaxed);
        entry.slots.store(ring.to_le(), Ordering::Relaxed);
        entry.capacity.store(slots.to_le(), Ordering::Relaxed);
        peer.lane(7, 0)
    };
    let (control, ring) = (HEADER_BYTES, HEADER_BYTES + CONTROL_BYTES);
    let (end, over) = (1 << 20, u64::MAX - 63);
    assert!(put(control, ring, 64).is_ok(), "and with one of these each it is not:");
    assert!(put(end - CONTROL_BYTES, end - 64 * 64, 64).is_ok(), "up to the last byte");
    for wild in [end - CONTROL_BYTES + 64, end, over, control + 1, u64::MAX] {
        assert!(put(wild, ring, 64).is_err(), "control at {wild}");
    }
    for wild in [end - 64 * 64 + 64, end, over, ring + 1, u64::MAX] {
        assert!(put(control, wild, 64).is_err(), "ring at {wild}");
    }
    assert!(put(control, ring, 63).is_err());
    arena.at::<Header>(0).lanes.store(u32::MAX, Ordering::Relaxed);
    assert!(peer.lane(1234, 0).is_err());
}

#[test]
fn a_foreign_header_is_refused() {
    let arena = private_arena(1 << 20, &[]);
    let header = arena.at::<Header>(0);
    header.slot.store(99, Ordering::Relaxed);
    assert!(matches!(Peer::read(arena.window()), Err(ArenaError::Identity { .. })));
    header.version.store(VERSION + 1, Ordering::Relaxed);
    assert!(matches!(Peer::read(arena.window()), Err(ArenaError::Version { .. })));
    header.magic.store(0, Ordering::Relaxed);
    assert!(matches!(Peer::read(arena.window()), Err(ArenaError::Magic { found: 0 })));
}
