//! The head of a peer's arena: header, counters, directory, heritage.

use super::{ARENA_BYTES, Input, Rogue, SLOTS, ends_well, receive, send};
use crate::arena::{LanePlan, Peer};
use crate::assignment::Transport;
use crate::heritage::Inherited;
use crate::ring::{Control, Slot};
use crate::testing::{TestLink, copy_of, private_arena, store};

/// Where the fields of the header, the directory and the first lane's block are, and some places beside them.
const PLACES: [u64; 18] =
    [0, 8, 16, 24, 32, 40, 128, 1024, 1032, 1040, 1048, 1056, 8184, 8192, 12288, 12352, 12416, 12480];

/// Header, counters, directory, thread lines and the control lines of the first lane.
const HEAD_BYTES: u64 = 12288 + 256;

/// A place in the head and what to write there: small, near the arena's length, or anything.
fn edit(input: &mut Input<'_>) -> (u64, u32) {
    let shape = input.byte();
    let at = if shape & 0x80 == 0 {
        PLACES[usize::from(shape) % PLACES.len()] + u64::from(shape >> 4 & 4)
    } else {
        input.word().into()
    };
    let value = match input.byte() % 4 {
        0 => u32::from(input.byte()),
        1 => (ARENA_BYTES as u32).wrapping_add(u32::from(input.byte())).wrapping_sub(128),
        2 => u32::from(input.byte()) * 64,
        _ => input.word(),
    };
    ((at % HEAD_BYTES) & !3, value)
}

/// Reading the head of any arena: it is refused, or what is found in it lies inside.
pub fn arena(data: &[u8]) {
    let plan = |link, slots| LanePlan { link, lane: 0, slots };
    let arena = private_arena(ARENA_BYTES, &[plan(1, 8), plan(2, 64)]);
    let mut input = Input(data);
    let window = copy_of(arena.window(), |bytes| {
        while !input.is_empty() {
            let (at, value) = edit(&mut input);
            bytes[at as usize..at as usize + 4].copy_from_slice(&value.to_le_bytes());
        }
    });
    let inherited = Inherited::of(&window);
    let Ok(peer) = Peer::read(&window) else {
        assert!(inherited.is_err(), "no arena, no heritage");
        return;
    };
    for (link, lane) in [(1, 0), (2, 0), (0, 0), (1, 1), (u32::MAX, u16::MAX)] {
        let Ok(place) = peer.lane(link, lane) else { continue };
        assert_eq!((place.plan.link, place.plan.lane), (link, lane));
        assert!(window.at(place.control, size_of::<Control>() as u64).is_some());
        assert!(window.at(place.ring, u64::from(place.plan.slots) * size_of::<Slot>() as u64).is_some());
        assert!(place.control.is_multiple_of(64) && place.ring.is_multiple_of(64));
    }
    let _ = peer.stats();
    if let Ok(Some(inherited)) = inherited {
        let mut bytes = vec![0; inherited.len().min(1 << 20)];
        assert_eq!(inherited.read(0, &mut bytes), inherited.len());
        assert_eq!(inherited.word(inherited.len()), None);
        let _ = inherited.word(inherited.len().saturating_sub(8));
    }
}

/// A peer that comes with any head: its arena is refused or the lane works on what it found, and its death is dealt
/// with either way.
pub fn introduction(data: &[u8]) {
    let (mut link, mut lane, first) = TestLink::sized(SLOTS, Transport::Pointer, ARENA_BYTES);
    link.kill_b();
    while lane.change().is_some() {}
    drop(first);
    let mut input = Input(data);
    let edits: Vec<_> = (0..input.byte() % 8).map(|_| edit(&mut input)).collect();
    let mut peer = link.restart_b_as(|arena| edits.iter().for_each(|(at, value)| store(arena, *at, *value)));
    let mut held = Vec::new();
    {
        let mut rogue = Rogue::new(&link);
        while !input.is_empty() {
            match input.byte() % 4 {
                0 => rogue.publish(&mut input),
                1 => rogue.scribble(&mut input),
                2 => drop(peer.change()),
                _ => send(&mut lane, input.byte()),
            }
            receive(&mut lane, &mut held);
        }
    }
    ends_well(&link, lane, peer, held, 2);
}
