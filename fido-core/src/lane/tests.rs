//! Tests of the lane over real windows, in one process.

mod alleged;

use super::*;
use crate::addr::{GlobalAddr, Segment};
use crate::lane::receive::RefusalError;
use crate::testing::{TestLink, lane_pair, test_domain};

fn head(kind: u8) -> Head {
    Head { kind, flags: 3, args: [1, 2, 3, u32::MAX] }
}

fn bytes(memory: &Memory, data: &[u8]) -> Payload {
    let mut buf = memory.alloc(data.len()).unwrap();
    buf.as_mut_slice().copy_from_slice(data);
    buf.into_payload()
}

fn text(memory: &Memory, payload: &Payload) -> Vec<u8> {
    let mut out = vec![0; payload.len() as usize];
    memory.read_header(payload, 0, &mut out).unwrap();
    out
}

fn received(lane: &mut Lane) -> (Head, Payload) {
    lane.recv().expect("a message").expect("an acceptable one")
}

fn received_text(lane: &mut Lane) -> Vec<u8> {
    let payload = received(lane).1;
    text(lane.memory(), &payload)
}

#[test]
fn a_loan_travels_there_and_back() {
    let (mut a, mut b) = lane_pair(8, Transport::Pointer);
    let payload = bytes(a.memory(), b"hello");
    let segment = payload.segments().next().unwrap();
    a.send(head(1), payload).unwrap();
    a.flush();
    let (got, payload) = received(&mut b);
    assert_eq!((got, text(b.memory(), &payload)), (head(1), b"hello".to_vec()));
    assert_eq!(payload.segments().next().unwrap(), segment, "by address");
    assert_eq!(a.loans(), 1);
    let used = a.memory().heap().used();
    drop(payload);
    b.flush();
    a.flush();
    assert_eq!(a.loans(), 0);
    assert!(a.memory().heap().used() < used, "the buffer is free again");
    assert_eq!(b.memory().stats().payload_bytes_copied.get(), 0);
}

#[test]
fn a_return_rides_on_an_answer() {
    let (mut a, mut b) = lane_pair(8, Transport::Pointer);
    let payload = bytes(a.memory(), b"request");
    a.send(head(1), payload).unwrap();
    a.flush();
    drop(received(&mut b));
    b.send(head(2), Payload::new()).unwrap();
    assert_eq!(received(&mut a).0, head(2));
    assert_eq!(a.loans(), 0);
    b.arm();
    assert_eq!(b.memory().stats().messages_sent.get(), 1, "at the latest before a sleep");
}

#[test]
fn the_copying_transport_copies_twice_and_returns_at_once() {
    let (mut a, mut b) = lane_pair(8, Transport::Copying);
    let payload = bytes(a.memory(), b"hello");
    a.send(head(1), payload).unwrap();
    let (_, payload) = received(&mut b);
    assert_eq!(text(b.memory(), &payload), b"hello");
    assert_eq!(payload.segments().next().unwrap().addr.domain(), b.memory().id(), "a copy of its own");
    b.flush();
    a.flush();
    assert_eq!(a.loans(), 0, "although the receiver still has its copy");
    let copied = |lane: &Lane| lane.memory().stats().payload_bytes_copied.get();
    assert_eq!((copied(&a), copied(&b)), (5, 5));
    assert_eq!(a.memory().stats().bells_rung.get(), 1);
}

#[test]
fn lists_of_segments_up_to_the_limit() {
    let (mut a, mut b) = lane_pair(8, Transport::Pointer);
    for count in [1, 3, 4, MAX_SEGMENTS] {
        let mut payload = Payload::new();
        for n in 0..count {
            payload.append(bytes(a.memory(), &[n as u8; 7]));
        }
        let expected = text(a.memory(), &payload);
        a.send(head(1), payload).unwrap();
        assert_eq!(received_text(&mut b), expected);
    }
    let mut payload = Payload::new();
    (0..=MAX_SEGMENTS).for_each(|_| payload.append(bytes(a.memory(), b"x")));
    assert!(matches!(a.send(head(1), payload), Err(SendError::TooManySegments(_))));
    b.flush();
    a.flush();
    assert_eq!((a.loans(), a.memory().heap().used()), (0, 0), "lists and all are free again");
}

#[test]
fn a_full_ring_gives_the_payload_back_and_credit_makes_room() {
    let (mut a, mut b) = lane_pair(4, Transport::Pointer);
    for n in 0..4 {
        a.send(head(n), Payload::new()).unwrap();
    }
    let payload = bytes(a.memory(), b"later");
    let Err(SendError::Full(payload)) = a.send(head(4), payload) else { panic!("the ring has four slots") };
    for n in 0..4 {
        assert_eq!(received(&mut b).0, head(n));
    }
    a.send(head(4), payload).unwrap();
    assert_eq!(received_text(&mut b), b"later");
    assert!(matches!(a.send(head(KIND_RESERVED), Payload::new()), Err(SendError::ReservedKind(_))));
    a.send(head(KIND_RESERVED - 1), Payload::new()).unwrap();
}

#[test]
fn a_wish_for_room_that_is_given_up_does_not_keep_the_lane_awake() {
    let (mut a, mut b) = lane_pair(4, Transport::Pointer);
    while a.send(head(1), Payload::new()).is_ok() {}
    a.arm();
    assert!(!a.ready());
    a.disarm();
    assert!(matches!(a.send(head(1), Payload::new()), Err(SendError::Full(_))));
    while b.recv().is_some() {}
    b.flush();
    b.arm();
    a.arm();
    assert!(a.ready(), "there is room now");
    a.disarm();
    a.arm();
    assert!(!a.ready(), "and nobody wants it");
}

#[test]
fn returns_take_effect_although_nothing_is_received() {
    let (mut a, mut b) = lane_pair(8, Transport::Pointer);
    let payload = bytes(a.memory(), b"x");
    a.send(head(1), payload).unwrap();
    let held = received(&mut b);
    b.send(head(7), Payload::new()).unwrap();
    drop(held);
    b.flush();
    a.flush();
    assert_eq!(a.loans(), 0, "the return is behind a message that nobody has taken");
    assert_eq!(received(&mut a).0, head(7));
}

#[test]
fn wild_payloads_are_refused_and_the_lane_goes_on() {
    let (mut a, mut b) = lane_pair(8, Transport::Pointer);
    let (me, them) = (a.memory().id(), b.memory().id());
    let at = |id, offset, len| {
        let mut payload = Payload::new();
        payload.push(Segment::new(GlobalAddr::new(id, offset).unwrap(), len), None);
        payload
    };
    let stale = DomainId { generation: me.generation.next(), ..me };
    let nobody = DomainId { slot: crate::addr::Slot::new(0).unwrap(), ..me };
    let end = a.memory().arena().len();
    for wild in
        [at(stale, 0, 1), at(nobody, 0, 1), at(me, end, 1), at(me, end - 1, 2), at(them, u64::from(u32::MAX), 9)]
    {
        a.send(head(1), wild).unwrap();
        let refusal = b.recv().expect("a message").expect_err("a wild one");
        assert_eq!(refusal.head, head(1));
        assert!(matches!(refusal.error, RefusalError::Address(_)), "{refusal:?}");
    }
    let mut long = at(me, 0, 1);
    (1..9).for_each(|n| long.append(at(me, n * 8, 1)));
    long.append(at(stale, 0, 1));
    a.send(head(1), long).unwrap();
    assert!(b.recv().unwrap().is_err(), "one wild segment among many");
    a.send(head(2), at(me, end - 1, 1)).unwrap();
    assert_eq!(received(&mut b).0, head(2));
    b.flush();
    a.flush();
    assert_eq!(a.loans(), 0, "all loans came back");
    assert_eq!(b.memory().stats().refusals.get(), 6);
}

#[test]
fn a_dead_peers_loans_wait_for_the_fence() {
    let (mut link, mut a, b) = TestLink::new(8, Transport::Pointer);
    let payload = bytes(a.memory(), b"lent to the dead");
    a.send(head(1), payload).unwrap();
    let dead = link.b().id();
    link.kill_b();
    assert_eq!(a.change(), Some(Change::Down(dead)));
    drop(b);
    assert!(matches!(a.send(head(2), Payload::new()), Err(SendError::Down(_))));
    assert_eq!((a.quarantined(), link.a_passes.count()), (1, 1));
    let mut b = link.restart_b();
    assert_eq!(b.change(), None, "the other side has not set up its half yet");
    assert_eq!(a.change(), Some(Change::Up(link.b().id())));
    assert_eq!(b.change(), Some(Change::Up(link.a().id())));
    assert!(b.recv().is_none(), "nothing of the old session");
    assert_eq!(a.quarantined(), 1, "the successor changes nothing for the old loans");
    a.send(head(3), Payload::new()).unwrap();
    assert_eq!(received(&mut b).0, head(3));
    a.memory().windows().remove(dead);
    link.fence_b();
    assert_eq!(a.change(), None);
    // `fence_b` names b's present incarnation; the dead one's loans stay.
    assert_eq!(a.quarantined(), 1);
}

#[test]
fn a_message_for_the_dead_does_not_reach_the_successor() {
    let (mut link, mut a, b) = TestLink::new(8, Transport::Pointer);
    drop(b);
    link.kill_b();
    let mut b = link.restart_b();
    assert_eq!(b.change(), None);
    // The sender has taken neither that the old one is dead nor that there is a new one.
    for changes in 0..2 {
        assert!(matches!(a.send(head(1), Payload::new()), Err(SendError::Down(_))), "{changes} changes taken");
        assert!(a.change().is_some());
    }
    a.send(head(2), Payload::new()).unwrap();
    a.flush();
    assert!(b.change().is_some());
    assert_eq!(received(&mut b).0.kind, 2);
}

#[test]
fn fenced_loans_are_free() {
    let (link, mut a, _b) = TestLink::new(8, Transport::Pointer);
    let payload = bytes(a.memory(), b"x");
    a.send(head(1), payload).unwrap();
    link.kill_b();
    link.fence_b();
    assert!(matches!(a.change(), Some(Change::Down(_))));
    assert_eq!((a.quarantined(), a.memory().heap().used()), (0, 0));
}

#[test]
fn the_fence_waits_for_what_came_through_the_dead() {
    let (link, mut a, mut b) = TestLink::new(8, Transport::Pointer);
    let payload = bytes(b.memory(), b"frozen");
    b.send(head(1), payload).unwrap();
    let (_, payload) = received(&mut a);
    let part = payload.slice(2, 2).unwrap();
    drop(payload);
    link.kill_b();
    assert!(matches!(a.change(), Some(Change::Down(_))));
    assert_eq!(link.a_passes.count(), 0, "a slice of it is still held");
    assert_eq!(text(a.memory(), &part), b"oz", "and readable");
    drop(part);
    assert_eq!((link.a_passes.count(), link.a_passes.last()), (1, Some(link.b().id())));
}

#[test]
fn what_was_lent_back_to_the_dead_does_not_hold_up_its_fence() {
    let (link, mut a, mut b) = TestLink::new(8, Transport::Pointer);
    let payload = bytes(b.memory(), b"echo");
    b.send(head(1), payload).unwrap();
    let (_, payload) = received(&mut a);
    a.send(head(2), payload).unwrap();
    link.kill_b();
    assert!(matches!(a.change(), Some(Change::Down(_))));
    assert_eq!((a.quarantined(), link.a_passes.count()), (1, 1));
}

#[test]
fn a_third_domains_bytes_are_forwarded_by_address() {
    let third = test_domain(1 << 20);
    let (link, mut a, mut b) = TestLink::new(8, Transport::Pointer);
    let payload = bytes(&third.memory, b"from afar");
    a.send(head(1), payload.clone()).unwrap();
    assert!(b.recv().unwrap().is_err(), "no window on the third yet");
    link.add_window(&third);
    a.send(head(1), payload).unwrap();
    assert_eq!(received_text(&mut b), b"from afar");
}

#[test]
fn a_peer_that_writes_rubbish_into_its_own_arena_breaks_only_its_lane() {
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..20 {
        let (link, mut a, mut b) = TestLink::new(8, Transport::Pointer);
        for n in 0..6 {
            let payload = bytes(a.memory(), &[n; 100]);
            a.send(head(n), payload).unwrap();
        }
        let _ = b.recv();
        let arena = link.b().memory.arena();
        for word in 0..arena.heap_start() / 8 {
            // SAFETY: within the arena; the test plays a broken owner, whose words are only accessed as atomics.
            unsafe { arena.base().cast::<u64>().add(word as usize).write_volatile(random()) };
        }
        for _ in 0..100 {
            while a.change().is_some() {}
            let _ = a.recv();
            let _ = a.send(head(1), Payload::new());
            a.flush();
        }
        link.kill_b();
        link.fence_b();
        while a.change().is_some() {}
        drop(b);
        assert_eq!((a.quarantined(), a.memory().heap().used()), (0, 0));
    }
}

#[test]
fn a_dropped_lane_still_passes_the_fence() {
    let (link, mut a, mut b) = TestLink::new(8, Transport::Pointer);
    let payload = bytes(b.memory(), b"x");
    b.send(head(1), payload).unwrap();
    let (_, payload) = received(&mut a);
    drop(a);
    link.kill_b();
    assert_eq!(link.a_passes.count(), 0);
    drop(payload);
    assert_eq!(link.a_passes.count(), 1);
}

/// Whether a thread that waits for the lane now would find something to do instead of sleeping.
fn stays_awake(lane: &mut Lane) -> bool {
    lane.arm();
    let ready = lane.ready();
    lane.disarm();
    ready
}

#[test]
fn a_return_that_flush_finds_keeps_its_thread_awake_once() {
    let (mut a, mut b) = lane_pair(8, Transport::Pointer);
    let payload = bytes(a.memory(), b"memory that somebody lacks");
    a.send(head(1), payload).unwrap();
    drop(received(&mut b));
    b.flush();
    assert!(stays_awake(&mut a), "a message is there");
    a.flush();
    assert_eq!(a.loans(), 0);
    assert!(stays_awake(&mut a), "who looked for memory before the flush has to look again");
    assert!(!stays_awake(&mut a), "once");
}

#[test]
fn memory_behind_a_fence_keeps_its_thread_awake_once() {
    let (link, mut a, _b) = TestLink::new(8, Transport::Pointer);
    let payload = bytes(a.memory(), b"x");
    a.send(head(1), payload).unwrap();
    link.kill_b();
    while a.change().is_some() {}
    assert!(!stays_awake(&mut a));
    link.fence_b();
    a.flush();
    assert!(stays_awake(&mut a) && !stays_awake(&mut a));
}

/// Publishes words as a broken peer might.
fn publish(lane: &mut Lane, words: &crate::ring::Words) {
    assert!(lane.session.as_mut().expect("a session").tx.push(words));
}

#[test]
fn whoever_finds_the_other_broken_tells_it() {
    for wrong in [message::encode_returns([77]), message::encode_returns([])] {
        let (link, mut a, mut b) = TestLink::new(8, Transport::Pointer);
        publish(&mut b, &wrong);
        assert!(a.recv().is_none());
        assert_eq!(a.change(), Some(Change::Down(link.b().id())));
        b.arm();
        assert!(b.ready(), "it learns of it");
        assert_eq!(b.change(), Some(Change::Down(link.a().id())));
        assert!(matches!(b.send(head(1), Payload::new()), Err(SendError::Down(_))));
    }
}

#[test]
fn messages_that_are_held_back_keep_nobody_awake() {
    let (mut a, mut b) = lane_pair(8, Transport::Pointer);
    a.send(head(1), Payload::new()).unwrap();
    b.flush();
    b.hold_back(true);
    b.arm();
    assert!(!b.ready());
    b.disarm();
    b.hold_back(false);
    b.arm();
    assert!(b.ready());
    assert_eq!(received(&mut b).0, head(1));
}

#[test]
fn a_flush_takes_returns_for_who_takes_no_messages() {
    let (mut a, mut b) = lane_pair(8, Transport::Pointer);
    a.send(head(1), bytes(a.memory(), b"lent")).unwrap();
    assert_eq!(received(&mut b).0, head(1));
    b.send(head(2), Payload::new()).unwrap();
    assert!(a.recv().is_some() && a.loans() == 0, "the return came with the message");
    a.send(head(3), bytes(a.memory(), b"lent")).unwrap();
    assert_eq!(received(&mut b).0, head(3));
    b.send(head(4), Payload::new()).unwrap();
    a.flush();
    assert_eq!(a.loans(), 1, "it has looked for messages, and will again");
    a.flush();
    assert_eq!(a.loans(), 0, "it has not looked since");
    assert_eq!(received(&mut a).0, head(4), "the message waits for it");
}

#[test]
fn what_can_never_be_copied_is_an_error_at_once() {
    let (mut a, _b) = lane_pair(8, Transport::Copying);
    let part = bytes(a.memory(), &[0; 1 << 20]);
    let mut payload = Payload::new();
    (0..17).for_each(|_| payload.append(part.clone()));
    assert!(matches!(a.send(head(1), payload), Err(SendError::Heap(_))), "more than the whole heap has");
}

/// Sends pages until the heap is full of their copies. Returns the one for which there is no room.
fn fill_with_copies(lane: &mut Lane) -> Payload {
    loop {
        match lane.send(head(1), bytes(lane.memory(), &[7; 4096])) {
            Ok(()) => {}
            Err(SendError::Full(payload)) => return payload,
            Err(error) => panic!("{error}"),
        }
    }
}

/// A limit of the copying transport, written down in `docs/testing.md`.
#[test]
fn two_heaps_full_of_copies_for_each_other_stand_still_until_one_gives_something_up() {
    let (_link, mut a, mut b) = TestLink::sized(64, Transport::Copying, 128 << 10);
    let (for_b, for_a) = (fill_with_copies(&mut a), fill_with_copies(&mut b));
    let loans = (a.loans(), b.loans());
    assert!(loans.0 > 8 && loans.1 > 8, "{loans:?}");
    for _ in 0..10 {
        assert!(a.recv().is_none() && b.recv().is_none(), "nowhere to copy to");
        a.flush();
        b.flush();
    }
    assert_eq!((a.loans(), b.loans()), loans, "nothing could be taken, so there is nothing to return");
    drop(for_b);
    let mut taken = (0, 0);
    for _ in 0..loans.0 + loans.1 {
        taken.0 += usize::from(a.recv().is_some());
        taken.1 += usize::from(b.recv().is_some());
        a.flush();
        b.flush();
    }
    assert_eq!((a.loans(), b.loans()), (0, 0), "one buffer in one heap sets everything going");
    assert_eq!(taken, (loans.1, loans.0));
    drop(for_a);
    assert_eq!((a.memory().heap().used(), b.memory().heap().used()), (0, 0));
}

#[test]
fn a_fenced_peer_is_unmapped_though_nobody_has_traffic() {
    let (link, mut a, mut b) = TestLink::new(8, Transport::Pointer);
    b.send(head(1), bytes(b.memory(), b"x")).unwrap();
    let (_, payload) = received(&mut a);
    let elsewhere = a.memory().clone();
    assert!(elsewhere.translate_all(&payload).is_ok() && a.memory().translate_all(&payload).is_ok());
    drop(payload);
    let window = std::sync::Arc::downgrade(&a.memory().windows().get(link.b().id()).unwrap());
    link.kill_b();
    while a.change().is_some() {}
    assert!(window.upgrade().is_some(), "until the fence");
    link.fence_b();
    assert!(window.upgrade().is_none(), "neither the lane nor another thread's memory has looked up anything since");
}
