//! A domain that has gone wild: it goes on with its loop, and between the steps of it writes into its own arena what
//! no domain may, publishes messages that lie, and says nonsense to the manager. Nobody else's memory is within its
//! reach.

use fido_core::addr::{DomainId, GlobalAddr, Segment};
use fido_core::arena::{LanePlace, OwnArena};
use fido_core::memory::Memory;
use fido_core::message::{self, Frame, INLINE_SEGMENTS, LIST_ENTRY_BYTES};
use fido_core::testing::{load, store};

use super::process::{Held, Port};
use super::random::Random;

/// The wild side of a domain.
#[derive(Debug, Default)]
pub struct Rogue {
    /// How often it overwrote its whole arena.
    pub floods: u64,
}

impl Rogue {
    /// One wild act. Returns what it was.
    pub fn act(&mut self, memory: &Memory, ports: &[Port], held: &[Held], random: &mut Random) -> String {
        let arena = memory.arena();
        let Some(port) = ports.get(random.below(ports.len())) else { return "nothing".into() };
        let place = &port.place;
        match random.below(40) {
            0..=19 => {
                publish(arena, place, port.peer, held, random);
                "publishes a lie".into()
            }
            20..=24 => {
                list(arena, random, port.peer);
                "writes a list".into()
            }
            25..=29 => {
                let offset = random.next() % (256 + u64::from(place.plan.slots) * 64);
                store(arena, place.control + offset, random.next() as u32);
                "scribbles on its lane".into()
            }
            30..=32 => {
                // Session, credit, armed, seat, rung.
                let word = place.control + random.among(&[0, 64, 128, 192, 196]).unwrap_or(0);
                let near = load(arena, word).wrapping_add(random.below(5) as u32).wrapping_sub(2);
                store(arena, word, near);
                "bends a control word".into()
            }
            33..=38 => {
                let from = random.next() % arena.len();
                (0..random.next() % 64).for_each(|at| store(arena, from + 4 * at, random.next() as u32));
                "scribbles on its arena".into()
            }
            _ => {
                (0..arena.len()).step_by(4).for_each(|at| store(arena, at, random.next() as u32));
                self.floods += 1;
                "overwrites its whole arena".into()
            }
        }
    }
}

/// A message with the stamp that the peer waits for, or one near it.
fn publish(arena: &OwnArena, place: &LanePlace, peer: Option<DomainId>, held: &[Held], random: &mut Random) {
    let mut words = [0; 15];
    words.iter_mut().for_each(|word| *word = random.next() as u32);
    let mut frame = Frame::decode(&words);
    for segment in &mut frame.segments {
        *segment = plausible(arena, peer, held, random);
    }
    if !random.one_in(4) {
        frame.head.kind = 1;
        frame.count %= if random.one_in(3) { 300 } else { 4 };
        frame.loan = random.below(6) as u16;
        frame.returned = if random.one_in(2) { 0 } else { random.below(12) as u16 };
    } else if random.one_in(2) {
        frame.head.kind = message::KIND_RETURNS;
    }
    if usize::from(frame.count) > INLINE_SEGMENTS && !random.one_in(4) {
        let list = GlobalAddr::new(arena.id(), arena.heap_start());
        let len = u32::from(frame.count) * LIST_ENTRY_BYTES as u32;
        frame.segments[0] = list.map_or(frame.segments[0], |list| Segment::new(list, len));
    }
    // Where the lane would publish next is seen from the stamps: the slots of a lap have the same.
    let stamp = |at: u32| load(arena, place.ring + u64::from(at) * 64 + 60);
    let slots = place.plan.slots;
    let next = (1..slots).find(|&at| stamp(at) != stamp(at - 1)).unwrap_or(0);
    let slot = place.ring + u64::from(next) * 64;
    for (offset, word) in (slot..).step_by(4).zip(frame.encode()) {
        store(arena, offset, word);
    }
    store(arena, slot + 60, stamp(next).wrapping_add(1));
}

/// An entry where lists lie.
fn list(arena: &OwnArena, random: &mut Random, peer: Option<DomainId>) {
    let at = arena.heap_start() + (random.below(300) * LIST_ENTRY_BYTES) as u64;
    let entry = message::encode_entry(plausible(arena, peer, &[], random));
    for (offset, bytes) in (at..).step_by(4).zip(entry.as_chunks::<4>().0) {
        store(arena, offset, u32::from_le_bytes(*bytes));
    }
}

/// A segment of its own, of its peer, of something it holds, of an incarnation that is not, or of nobody.
fn plausible(arena: &OwnArena, peer: Option<DomainId>, held: &[Held], random: &mut Random) -> Segment {
    let own = arena.id();
    let id = match random.below(6) {
        0 | 1 => own,
        2 => peer.unwrap_or(own),
        3 => DomainId { generation: own.generation.next(), ..own },
        4 => {
            let taken = held.get(random.below(held.len())).and_then(|held| held.payload.segments().next());
            return taken.unwrap_or(Segment::new(GlobalAddr::from_bits(random.next()), 1));
        }
        _ => return Segment::new(GlobalAddr::from_bits(random.next()), random.next() as u32),
    };
    let offset = random.next() % (arena.len() + arena.len() / 8);
    let len = if random.one_in(8) { random.next() as u32 } else { random.below(4096) as u32 };
    GlobalAddr::new(id, offset).map_or(Segment::new(GlobalAddr::from_bits(0), 0), |addr| Segment::new(addr, len))
}
