//! `docs/protocol.md`, checked: a small second implementation, written from that text with numbers of its own, exchanges
//! messages and loans with the real lane, and what the text shows byte by byte is what lies in memory.
//!
//! Nothing here takes an offset, a bit or a limit from the crate.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod second;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fido_core::addr::{DomainId, Generation, Slot};
use fido_core::arena::{LanePlan, OwnArena, Peer};
use fido_core::assignment::Transport;
use fido_core::bell::{Bell, Ringer};
use fido_core::lane::{Change, Lane, LaneSetup, Mailbox, News, SendError};
use fido_core::memory::Memory;
use fido_core::message::Head;
use fido_core::payload::Payload;
use fido_core::platform::host::protocol::{FromDomain, FromManager, Predecessor, decode};
use fido_core::testing::Passes;
use fido_core::wait::Source;
use second::{Arena, Second};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

const TEXT: &str = include_str!("../../docs/protocol.md");

/// Slot and generation of the real domain and of the second implementation.
const REAL: (u64, u64) = (2, 1);
const SECOND: (u64, u64) = (3, 1);

fn id((slot, generation): (u64, u64)) -> DomainId {
    DomainId { slot: Slot::new(slot as u16).unwrap(), generation: Generation::new(generation as u16).unwrap() }
}

/// Counts how often the second implementation's bell is rung.
#[derive(Debug, Clone, Default)]
struct Rung(Arc<AtomicUsize>);

impl Ringer for Rung {
    fn ring(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Rung {
    fn take(&self) -> usize {
        self.0.swap(0, Ordering::SeqCst)
    }
}

/// The real domain with its end of the lane, and the second implementation at the other.
struct Rig {
    lane: Lane,
    mailbox: Arc<Mailbox>,
    memory: Memory,
    second: Second,
    rung: Rung,
}

/// Both, introduced to each other over link 7, with rings of four slots. The second's arena is of `version`.
fn introduced(version: u32) -> Rig {
    let plan = [LanePlan { link: 7, lane: 0, slots: 4 }];
    let shared = Arena::new(65_536);
    // SAFETY: zeroed memory, aligned to a page, that only this arena writes and that is kept with it.
    let real = unsafe { OwnArena::format(shared.raw(), id(REAL), &plan) }.unwrap();
    let place = real.lanes()[0];
    let memory = Memory::new(real, Arc::default());
    let second = Second::new(SECOND, 7, 4, version, shared, REAL);
    memory.windows().insert(Arc::new(second.arena().window(id(SECOND))));
    let mailbox = Arc::new(Mailbox::new(Arc::new(Bell::new().unwrap())));
    let lane = Lane::new(LaneSetup {
        name: "protocol[0]".into(),
        place,
        transport: Transport::Pointer,
        memory: memory.clone(),
        mailbox: mailbox.clone(),
        fence: Arc::new(Passes::default()),
    });
    let rung = Rung::default();
    mailbox.put(News::Up(id(SECOND), Box::new(rung.clone())));
    Rig { lane, mailbox, memory, second, rung }
}

/// Both, with a session that is up.
fn connected() -> Rig {
    let mut rig = introduced(2);
    assert_eq!(rig.lane.change(), None, "the other half is not set up yet");
    assert_eq!(rig.rung.take(), 1, "but the bell is rung");
    assert_eq!(rig.second.accepts_peer(), Ok(()));
    rig.second.begin();
    assert_eq!(rig.lane.change(), Some(Change::Up(id(SECOND))));
    assert!(rig.second.is_up());
    rig
}

impl Rig {
    fn payload(&self, bytes: &[u8]) -> Payload {
        let mut buf = self.memory.alloc(bytes.len()).unwrap();
        buf.as_mut_slice().copy_from_slice(bytes);
        buf.into_payload()
    }

    fn send(&mut self, kind: u8, payload: Payload) {
        self.lane.send(Head { kind, flags: 0x20, args: [1, 2, 3, 4] }, payload).unwrap();
        self.lane.flush();
    }

    fn text(&self, payload: &Payload) -> Vec<u8> {
        let mut out = vec![0; payload.len() as usize];
        self.memory.read_header(payload, 0, &mut out).unwrap();
        out
    }
}

#[test]
fn both_sides_read_the_same_directory() {
    let rig = introduced(2);
    let window = rig.memory.windows().get(id(SECOND)).unwrap();
    let place = Peer::read(&window).unwrap().lane(7, 0).unwrap();
    assert_eq!((place.control, place.ring, place.plan.slots), rig.second.own_lane());
    let own = rig.memory.arena().lanes()[0];
    assert_eq!((own.control, own.ring, own.plan.slots), rig.second.peers_lane());
}

#[test]
fn a_loan_travels_to_the_second_implementation_and_back() {
    let mut rig = connected();
    let payload = rig.payload(b"hello");
    rig.send(1, payload);
    let message = rig.second.take().unwrap();
    assert_eq!((message.kind(), message.flags(), message.arguments()), (1, 0x20, [1, 2, 3, 4]));
    assert_eq!((message.count(), message.loan(), message.returned()), (1, 1, 0));
    assert_eq!(rig.second.payload(&message), b"hello");
    assert!(rig.second.take().is_none());
    assert_eq!(rig.lane.loans(), 1);
    rig.second.publish(2, 0, 0, message.loan(), &[]);
    assert_eq!(rig.lane.recv().unwrap().unwrap().0.kind, 2);
    assert_eq!((rig.lane.loans(), rig.memory.heap().used()), (0, 0), "the loan has ended");
}

#[test]
fn a_list_of_segments_is_found_in_the_senders_arena() {
    let mut rig = connected();
    for count in [3, 4, 5, 256] {
        let (mut payload, mut expected) = (Payload::new(), Vec::new());
        for n in 0..count {
            payload.append(rig.payload(&[n as u8; 3]));
            expected.extend([n as u8; 3]);
        }
        rig.send(1, payload);
        let message = rig.second.take().unwrap();
        assert_eq!(usize::from(message.count()), count);
        assert_eq!(rig.second.payload(&message), expected);
        rig.second.publish_returns(&[message.loan()]);
        rig.second.publish_credit();
        rig.lane.flush();
        assert_eq!(rig.lane.loans(), 0);
    }
    assert_eq!(rig.memory.heap().used(), 0, "lists are part of their loans");
}

#[test]
fn the_second_implementation_lends_too() {
    let mut rig = connected();
    let segment = rig.second.write(100, b"from the second");
    rig.second.publish(9, 0, 17, 0, &[segment]);
    let (head, payload) = rig.lane.recv().unwrap().unwrap();
    assert_eq!((head.kind, rig.text(&payload)), (9, b"from the second".to_vec()));
    rig.lane.flush();
    assert!(rig.second.take().is_none(), "held");
    drop(payload);
    rig.lane.flush();
    let message = rig.second.take().unwrap();
    assert_eq!((message.kind(), message.tags()), (0xF0, vec![17]));
}

#[test]
fn a_wild_payload_is_refused_and_returned() {
    let mut rig = connected();
    let (addr, _) = rig.second.write(0, b"x");
    let wild = [(addr + (1 << 40), 1), (addr + (1 << 52), 1), (addr, 32_769)];
    for (tag, segment) in (5..).zip(wild) {
        rig.second.publish(9, 0, tag, 0, &[segment]);
        assert!(rig.lane.recv().unwrap().is_err());
        rig.lane.flush();
        assert_eq!(rig.second.take().unwrap().tags(), [tag]);
    }
    rig.second.publish(9, 0, 8, 0, &[(addr, 32_768)]);
    assert!(rig.lane.recv().unwrap().is_ok(), "up to the last byte");
}

#[test]
fn credit_makes_room_and_laps_go_on() {
    let mut rig = connected();
    for lap in 1..=5 {
        (0..4).for_each(|n| rig.send(n, Payload::new()));
        assert!(matches!(rig.lane.send(Head::default(), Payload::new()), Err(SendError::Full(_))));
        for n in 0..4 {
            assert_eq!(rig.second.take().unwrap().kind(), n);
        }
        assert_eq!(rig.second.peers_stamp(0), lap);
        rig.second.publish_credit();
    }
    // The other way: a quarter of the ring is one message here.
    for n in 0..20 {
        assert!(rig.second.publish(n, 0, 0, 0, &[]), "room for message {n}");
        assert_eq!(rig.lane.recv().unwrap().unwrap().0.kind, n);
    }
    assert_eq!(rig.second.peers_credit(), 20);
}

#[test]
fn a_credit_that_cannot_be_breaks_the_session() {
    let mut rig = connected();
    (0..4).for_each(|n| rig.send(n, Payload::new()));
    rig.second.publish_credit_of(5);
    assert!(matches!(rig.lane.send(Head::default(), Payload::new()), Err(SendError::Down(_))));
    assert_eq!(rig.lane.change(), Some(Change::Down(id(SECOND))));
    assert!(!rig.second.is_up(), "renounced");
    assert_ne!(rig.rung.take(), 0, "and told so");
}

#[test]
fn a_tag_that_is_not_out_breaks_the_session() {
    for wrong in [&[77][..], &[]] {
        let mut rig = connected();
        rig.second.publish_returns(wrong);
        assert!(rig.lane.recv().is_none());
        assert_eq!(rig.lane.change(), Some(Change::Down(id(SECOND))));
        assert!(!rig.second.is_up());
    }
}

#[test]
fn bells_are_rung_for_sleepers_once() {
    let mut rig = connected();
    rig.send(1, Payload::new());
    assert_eq!(rig.rung.take(), 0, "nobody sleeps");
    rig.second.arm(false);
    rig.send(2, Payload::new());
    rig.send(3, Payload::new());
    assert_eq!(rig.rung.take(), 1, "one sleep, one bell");
    rig.second.disarm();
    (0..3).for_each(|_| _ = rig.second.take().unwrap());
    rig.second.arm(false);
    rig.send(4, Payload::new());
    assert_eq!(rig.rung.take(), 1, "another sleep");
    // The real lane sleeps, without a wish for room.
    rig.lane.arm();
    assert!(!rig.lane.ready());
    rig.second.publish_credit();
    assert!(!rig.second.must_ring(true), "it does not wait for credit");
    rig.second.publish(1, 0, 0, 0, &[]);
    assert!(rig.second.must_ring(false) && !rig.second.must_ring(false));
    assert!(rig.lane.ready(), "and it would look again");
    rig.lane.disarm();
    assert!(!rig.second.must_ring(false), "awake");
    // Now it waits for room.
    while rig.lane.send(Head::default(), Payload::new()).is_ok() {}
    rig.lane.arm();
    assert!(rig.second.must_ring(true));
}

#[test]
fn a_death_ends_the_session_and_the_fence_frees_what_was_lent() {
    let mut rig = connected();
    let payload = rig.payload(b"lent");
    rig.send(1, payload);
    rig.mailbox.put(News::Died(id(SECOND)));
    assert_eq!(rig.lane.change(), Some(Change::Down(id(SECOND))));
    assert_eq!((rig.lane.quarantined(), rig.memory.heap().used()), (1, 64));
    rig.mailbox.put(News::Fenced(id(SECOND)));
    assert_eq!(rig.lane.change(), None);
    assert_eq!((rig.lane.quarantined(), rig.memory.heap().used()), (0, 0));
}

#[test]
fn another_version_is_refused_on_both_sides() {
    for version in [0, 1, 3, u32::MAX] {
        let mut rig = introduced(version);
        rig.second.begin();
        assert_eq!(rig.lane.change(), None);
        assert!(!rig.lane.is_up() && !rig.second.is_up(), "version {version}");
        assert_eq!(rig.memory.stats().refusals.get(), 1);
        assert!(matches!(rig.lane.send(Head::default(), Payload::new()), Err(SendError::Down(_))));
    }
    let mut rig = introduced(2);
    assert_eq!(rig.second.accepts_peer(), Ok(()));
    rig.second.believe_in_version(3);
    assert_eq!(rig.second.accepts_peer(), Err("version"));
}

#[test]
fn the_example_is_what_lies_in_memory() {
    let mut rig = connected();
    let payload = rig.payload(b"hello");
    rig.send(1, payload);
    let mut bytes = 0;
    for line in block("```hex") {
        let (at, line) = line.split_once(": ").unwrap();
        let at = u64::from_str_radix(at.strip_prefix("0x").unwrap(), 16).unwrap();
        let shown = line.split("  ").next().unwrap().split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap());
        for (at, shown) in (at..).zip(shown) {
            assert_eq!(rig.second.peers_byte(at), shown, "at {at:#x}");
            bytes += 1;
        }
    }
    assert!(bytes > 100, "{bytes} bytes in the example");
    let message = rig.second.take().unwrap();
    rig.second.publish(2, 0, 0, message.loan(), &[]);
    let answer = [0, 1].map(|word| format!("{:08x}", rig.second.own_word(word))).join(" ");
    assert!(TEXT.contains(&format!("words `{answer}` and, last, the stamp `{:08x}`", rig.second.own_word(15))));
}

#[test]
fn the_messages_to_and_from_the_manager_are_as_shown() {
    let (mut from_domain, mut from_manager) = (0, 0);
    for line in block("domain, manager\n") {
        if let Some(json) = line.strip_prefix("domain:") {
            is_said_as_shown::<FromDomain>(json);
            from_domain += 1;
        } else if let Some(json) = line.strip_prefix("manager:") {
            is_said_as_shown::<FromManager>(json);
            from_manager += 1;
        }
    }
    assert_eq!((from_domain, from_manager), (6, 7), "one example of each");
    assert!(decode::<FromDomain>(br#"{"say":"x"}"#).is_err());
}

/// An example is understood, and who says the same today says it with the same fields and values. What becomes of it with
/// a field less or more is what the text says.
fn is_said_as_shown<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(json: &str) {
    let message = decode::<T>(json.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
    let shown: Value = serde_json::from_str(json).unwrap();
    assert_eq!(serde_json::to_value(&message).unwrap(), shown, "not what is sent");
    for (at, name) in fields(&shown, "") {
        let mut lacking = shown.clone();
        lacking.pointer_mut(&at).and_then(Value::as_object_mut).unwrap().remove(&name);
        let absent = decode::<T>(lacking.to_string().as_bytes());
        match name.as_str() {
            "processors" => assert_eq!(absent.unwrap(), message, "0 as shown"),
            _ => assert!(absent.is_err(), "{json} without {at}/{name}"),
        }
        let mut more = shown.clone();
        more.pointer_mut(&at).and_then(Value::as_object_mut).unwrap().insert("unknown".into(), 2.into());
        let passed_over = ["/assignment", "/id", "/peer"].iter().any(|object| at.contains(object))
            || shown == serde_json::json!({"say": "shutdown"});
        assert_eq!(decode::<T>(more.to_string().as_bytes()).is_ok(), passed_over, "{json} with {at}/unknown");
    }
}

/// Each field of each object in `value`: where the object is, and the field's name. Not those that may have any name.
fn fields(value: &Value, at: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let inside: Vec<(String, &Value)> = match value {
        Value::Object(object) => {
            found.extend(object.keys().map(|name| (at.to_owned(), name.clone())));
            object.iter().map(|(name, value)| (name.clone(), value)).collect()
        }
        Value::Array(array) => array.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect(),
        _ => Vec::new(),
    };
    for (name, value) in inside.iter().filter(|(name, _)| name != "params" && name != "notes") {
        found.extend(fields(value, &format!("{at}/{name}")));
    }
    found
}

#[test]
fn fields_that_may_be_absent_are_understood() {
    let id = r#"{"slot":3,"generation":1}"#;
    let passed = format!(r#"{{"say":"passed","id":{id},"except":[{id}]}}"#);
    assert!(matches!(decode(passed.as_bytes()), Ok(FromDomain::Passed { except, .. }) if except.len() == 1));
    let welcome =
        block("domain, manager\n").find_map(|line| line.strip_prefix("manager: {\"say\":\"welcome\",")).unwrap();
    let with = |more: &str| format!(r#"{{"say":"welcome","predecessor":{{"id":{id},"bytes":65536{more}}},{welcome}"#);
    let known = decode(with("").as_bytes()).unwrap();
    assert!(matches!(known, FromManager::Welcome { predecessor: Some(Predecessor { bytes: 65536, .. }), .. }));
    assert!(decode::<FromManager>(with(r#","unknown":1"#).as_bytes()).is_err());
}

/// The lines of the text's first block that begins so.
fn block(head: &str) -> impl Iterator<Item = &'static str> {
    let rest = TEXT.split_once(head).unwrap_or_else(|| panic!("no block {head:?} in the text")).1;
    rest.split("```").next().unwrap().lines().filter(|line| !line.is_empty())
}
