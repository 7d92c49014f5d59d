//! Bodies of the fuzz targets over what a peer or the manager's other end says. They take any bytes and panic if a
//! promise is broken. `fuzz/` feeds them from a fuzzer; the tests below feed them where there is none.

#![expect(clippy::expect_used, reason = "a fuzz target says by a panic that a promise is broken")]

mod arena;
mod ring;
mod xen;

use crate::addr::{DomainId, GlobalAddr, Segment};
use crate::arena::{LanePlace, OwnArena};
use crate::assignment::Transport;
use crate::lane::Lane;
use crate::message::{
    self, Frame, Head, INLINE_SEGMENTS, KIND_RESERVED, LIST_ENTRY_BYTES, MAX_RETURNS, decode_returns,
};
use crate::payload::{MAX_SEGMENTS, Payload};
use crate::platform::host::protocol::{self, FromDomain, FromManager};
use crate::ring::Words;
use crate::testing::{TestLink, private_memory, store};
pub use arena::{arena, introduction};
pub use ring::ring;
pub use xen::xen;

/// The arenas of [`lane`]: small, so that many can be made in a second.
const ARENA_BYTES: u64 = 256 << 10;
/// The rings of [`lane`]: small, so that they wrap.
const SLOTS: u32 = 8;
/// How many received payloads [`lane`] holds at most.
const MAX_HELD: usize = 16;

/// Takes numbers from the front of any bytes; zeros when there are no more.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let count = N.min(self.0.len());
        out[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        out
    }

    fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn segment(&mut self) -> Segment {
        Segment::new(GlobalAddr::from_bits(u64::from_le_bytes(self.take())), self.word())
    }

    fn words(&mut self) -> Words {
        std::array::from_fn(|_| self.word())
    }
}

/// The words of a slot, the entries of a list: every pattern decodes, encodes to itself, and names no memory that is
/// not there.
pub fn frame(data: &[u8]) {
    thread_local! {
        static MEMORY: crate::memory::Memory = private_memory(ARENA_BYTES);
    }
    let mut input = Input(data);
    let words = input.words();
    let frame = Frame::decode(&words);
    assert_eq!(frame.encode(), words, "a frame is its words");
    assert!(decode_returns(&words).count() <= MAX_RETURNS);
    let mut segments = frame.segments.to_vec();
    while !input.is_empty() && segments.len() < MAX_SEGMENTS {
        segments.push(message::decode_entry(input.take::<LIST_ENTRY_BYTES>()));
    }
    MEMORY.with(|memory| {
        for segment in segments {
            let Ok(span) = memory.translate(segment) else { continue };
            let end = segment.addr.offset() + u64::from(segment.len);
            assert!(segment.addr.domain() == memory.id() && end <= ARENA_BYTES, "{segment} was translated");
            assert_eq!(span.len(), segment.len as usize);
        }
    });
}

/// A lane whose peer writes what it likes into its own arena: nothing but the lane breaks, and all that was lent comes
/// back when the peer is dead and fenced.
pub fn lane(data: &[u8]) {
    let (link, mut lane, peer) = TestLink::sized(SLOTS, Transport::Pointer, ARENA_BYTES);
    let mut rogue = Rogue::new(&link);
    let (mut input, mut held) = (Input(data), Vec::new());
    while !input.is_empty() && lane.is_up() {
        match input.byte() % 8 {
            0..=2 => rogue.publish(&mut input),
            3 => rogue.returns(&mut input),
            4 => rogue.scribble(&mut input),
            5 => rogue.list(&mut input),
            6 => drop(held.pop()),
            _ => send(&mut lane, input.byte()),
        }
        receive(&mut lane, &mut held);
    }
    ends_well(&link, lane, peer, held, 1);
}

/// The peer dies and is fenced, the last of so many of its incarnations: everything that was lent to any comes back.
fn ends_well(link: &TestLink, mut lane: Lane, peer: Lane, held: Vec<Payload>, deaths: usize) {
    link.kill_b();
    drop(held);
    link.fence_b();
    while lane.change().is_some() {}
    drop(peer);
    assert_eq!(link.a_passes.count(), deaths, "each fence is passed, once");
    assert_eq!((lane.loans(), lane.quarantined()), (0, 0), "every loan has come back");
    assert_eq!(lane.memory().heap().used(), 0, "and its memory");
}

/// Lends a payload of so many segments.
fn send(lane: &mut Lane, segments: u8) {
    let mut payload = Payload::new();
    for _ in 0..segments % 6 {
        let buf = lane.memory().alloc(100).expect("loans are few");
        payload.append(buf.into_payload());
    }
    // Full and down are fine.
    let _ = lane.send(Head::default(), payload);
}

fn receive(lane: &mut Lane, held: &mut Vec<Payload>) {
    while lane.change().is_some() {}
    for _ in 0..=SLOTS {
        let Some(message) = lane.recv() else { break };
        let Ok((head, payload)) = message else { continue };
        assert!(head.kind < KIND_RESERVED, "the lane's own messages stay with it");
        assert!(payload.parts().len() <= MAX_SEGMENTS);
        let mut start = [0; 64];
        let count = lane.memory().read_header(&payload, 0, &mut start).expect("segments are checked");
        assert_eq!(count as u64, payload.len().min(64));
        if held.len() < MAX_HELD {
            held.push(payload);
        }
    }
    lane.flush();
}

/// The broken owner of an arena.
struct Rogue<'a> {
    arena: &'a OwnArena,
    place: LanePlace,
    /// Own, the victim's, and a stale incarnation.
    ids: [DomainId; 3],
    published: u32,
}

impl<'a> Rogue<'a> {
    fn new(link: &'a TestLink) -> Self {
        let (id, arena) = (link.b().id(), link.b().memory.arena());
        let stale = DomainId { generation: id.generation.next(), ..id };
        Self { arena, place: arena.lanes()[0], ids: [id, link.a().id(), stale], published: 0 }
    }

    /// A slot with a proper stamp and any message. Some bits make what is in it more plausible.
    fn publish(&mut self, input: &mut Input<'_>) {
        let mut frame = Frame::decode(&input.words());
        let shape = input.byte();
        for (at, segment) in frame.segments.iter_mut().enumerate() {
            *segment = self.plausible(*segment, shape >> (2 * at));
        }
        if shape & 0x40 != 0 {
            frame.count %= MAX_SEGMENTS as u16 + 2;
            let list = GlobalAddr::new(self.ids[0], self.arena.heap_start()).expect("within the arena");
            if usize::from(frame.count) > INLINE_SEGMENTS {
                frame.segments[0] = Segment::new(list, u32::from(frame.count) * LIST_ENTRY_BYTES as u32);
            }
        }
        if shape & 0x80 != 0 {
            frame.returned %= 8;
            frame.loan = frame.loan.max(1);
        }
        self.push(&frame.encode());
    }

    /// A message of returns with any number of tags, of which most are small.
    fn returns(&mut self, input: &mut Input<'_>) {
        let tag = |input: &mut Input<'_>| match input.byte() {
            255 => input.word() as u16,
            small => u16::from(small % 8),
        };
        let tags: Vec<u16> = (0..input.byte() % 32).map(|_| tag(input)).collect();
        self.push(&message::encode_returns(tags));
    }

    fn push(&mut self, words: &Words) {
        let slot = self.place.ring + u64::from(self.published % SLOTS) * 64;
        for (offset, word) in (slot..).step_by(4).zip(*words) {
            store(self.arena, offset, word);
        }
        store(self.arena, slot + 60, self.published / SLOTS + 1);
        self.published = self.published.wrapping_add(1);
    }

    fn plausible(&self, segment: Segment, shape: u8) -> Segment {
        let Some(id) = self.ids.get(usize::from(shape & 3)) else { return segment };
        let offset = segment.addr.offset() % (ARENA_BYTES + ARENA_BYTES / 8);
        GlobalAddr::new(*id, offset).map_or(segment, |addr| Segment::new(addr, segment.len % (64 << 10)))
    }

    /// Any word among the control lines and the slots.
    fn scribble(&self, input: &mut Input<'_>) {
        let end = self.place.ring + u64::from(SLOTS) * 64;
        let offset = u64::from(input.word()) % (end - self.place.control);
        store(self.arena, self.place.control + offset, input.word());
    }

    /// An entry where lists are.
    fn list(&self, input: &mut Input<'_>) {
        let entry = u64::from(input.byte()) * LIST_ENTRY_BYTES as u64;
        let shape = input.byte();
        let segment = self.plausible(input.segment(), shape);
        for (at, bytes) in message::encode_entry(segment).as_chunks::<4>().0.iter().enumerate() {
            store(self.arena, self.arena.heap_start() + entry + 4 * at as u64, u32::from_le_bytes(*bytes));
        }
    }
}

/// A message on the manager's socket: it is one, and then the same after another trip, or it is refused.
pub fn manager_message(data: &[u8]) {
    if let Ok(message) = protocol::decode::<FromDomain>(data) {
        let bytes = serde_json::to_vec(&message).expect("it came from JSON");
        assert_eq!(protocol::decode::<FromDomain>(&bytes).expect("its own encoding"), message);
    }
    if let Ok(message) = protocol::decode::<FromManager>(data) {
        let bytes = serde_json::to_vec(&message).expect("it came from JSON");
        assert!(protocol::decode::<FromManager>(&bytes).is_ok());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    fn said() -> impl Strategy<Value = String> {
        let kind = prop::sample::select(vec!["hello", "arena", "bells", "ready", "passed", "welcome", "peer", "died"]);
        let field = prop::sample::select(vec!["version", "domain", "bytes", "link", "notes", "id", "peer", "x"]);
        let value = prop_oneof![
            any::<i64>().prop_map(|number| number.to_string()),
            Just(r#""name""#.to_owned()),
            Just(r#"{"slot":1,"generation":1}"#.to_owned()),
            Just("{}".to_owned()),
            Just("null".to_owned()),
        ];
        let fields = prop::collection::vec((field, value), 0..4);
        (kind, fields).prop_map(|(kind, fields)| {
            let fields: String = fields.iter().map(|(name, value)| format!(r#","{name}":{value}"#)).collect();
            format!(r#"{{"say":"{kind}"{fields}}}"#)
        })
    }

    proptest! {
        #[test]
        fn any_frame(data: Vec<u8>) {
            super::frame(&data);
        }

        #[test]
        fn any_ring(data in prop::collection::vec(any::<u8>(), 0..2000)) {
            super::ring(&data);
        }

        #[test]
        fn any_arena(data in prop::collection::vec(any::<u8>(), 0..300)) {
            super::arena(&data);
        }

        #[test]
        fn any_introduction(data in prop::collection::vec(any::<u8>(), 0..600)) {
            super::introduction(&data);
        }

        #[test]
        fn any_peer(data in prop::collection::vec(any::<u8>(), 0..2000)) {
            super::lane(&data);
        }

        #[test]
        fn any_message(data: Vec<u8>, text in said()) {
            super::manager_message(&data);
            super::manager_message(text.as_bytes());
        }
    }
}
