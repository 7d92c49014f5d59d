//! The link against the conformance suite, over both transports; and what each side does with nonsense from the other.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use common::link::{Served, connect, file_device, identity, memory_device, next_request, played, say, until};
use common::{FEATURES, GEOMETRY, PATIENCE, Rig, completions, conforms, follows_the_model, pattern, payload, steps};
use fido_core::addr::{GlobalAddr, Segment};
use fido_core::assignment::{Transport, WaitStrategy};
use fido_core::lane::Lane;
use fido_core::memory::Memory;
use fido_core::message::Head;
use fido_core::payload::Payload;
use fido_core::testing::{TestLink, lane_pair, test_domain};
use fido_core::wait::Source;
use fido_core::waiter::Waiter;
use mmblk::backend::file::FileQueue;
use mmblk::blocking::{Blocking, Copied};
use mmblk::link::back::BackEnd;
use mmblk::link::codec::{self, Answer, Failure, Request};
use mmblk::link::front::{ConnectError, LinkQueue};
use mmblk::queue::{BlockError, BlockOp, BlockQueue, Features, Geometry};
use proptest::prelude::*;

/// A queue over a link whose rings have `slots` slots, to what `serve` makes of the other end.
fn over_link(slots: u32, transport: Transport, serve: impl FnOnce(Lane) -> Served) -> Rig<LinkQueue> {
    let (link, a, b) = TestLink::new(slots, transport);
    let third = test_domain(2 << 20);
    link.add_window(&third);
    let (memory, device) = (a.memory().clone(), b.memory().clone());
    let served = serve(b);
    let copies = if transport == Transport::Copying { 2 } else { 0 };
    let keep = Box::new(served);
    Rig { queue: connect(a), memory, peer: third.memory, device, stores: true, copies, keep }
}

fn over_memory(slots: u32, transport: Transport) -> Rig<LinkQueue> {
    over_link(slots, transport, |lane| {
        let queue = memory_device().queue(lane.memory().clone()).unwrap();
        Served::new(BackEnd::new(lane, queue).unwrap())
    })
}

fn over_file(transport: Transport) -> Rig<LinkQueue> {
    over_link(64, transport, |lane| {
        let dir = tempfile::tempdir().unwrap();
        let queue = file_device(&dir).queue(lane.memory().clone()).unwrap();
        // The image's name goes with the directory; the image itself lives as long as it is open.
        Served::new(BackEnd::new(lane, queue).unwrap())
    })
}

#[test]
fn memory_over_a_link_conforms() {
    conforms(|| over_memory(64, Transport::Pointer));
}

#[test]
fn memory_over_a_link_of_four_slots_conforms() {
    conforms(|| over_memory(4, Transport::Pointer));
}

#[test]
fn memory_over_a_copying_link_conforms() {
    conforms(|| over_memory(64, Transport::Copying));
}

#[test]
fn file_over_a_link_conforms() {
    conforms(|| over_file(Transport::Pointer));
}

#[test]
fn file_over_a_copying_link_conforms() {
    conforms(|| over_file(Transport::Copying));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn memory_over_a_link_follows_the_model(steps in steps()) {
        follows_the_model(&mut over_memory(8, Transport::Pointer), &steps);
    }

    #[test]
    fn file_over_a_link_follows_the_model(steps in steps()) {
        follows_the_model(&mut over_file(Transport::Pointer), &steps);
    }
}

#[test]
fn the_blocking_face_over_a_link() {
    let Rig { queue, memory, keep, .. } = over_file(Transport::Pointer);
    let mut disk = Blocking::new(queue, memory.clone(), Waiter::new(WaitStrategy::Adaptive).unwrap());
    let bytes = pattern(3, 5 << 20);
    disk.write_from(512, &bytes, false, Copied::Metadata).unwrap();
    disk.flush().unwrap();
    let mut found = vec![0; bytes.len()];
    disk.read_into(512, &mut found, Copied::Metadata).unwrap();
    assert!(found == bytes);
    assert_eq!(memory.stats().snapshot().payload_bytes_copied, 0);
    drop((disk, keep));
}

#[test]
fn nobody_there_is_an_error_in_time() {
    let (a, _b) = lane_pair(8, Transport::Pointer);
    let error = LinkQueue::connect(a, Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { .. }) && error.to_string().contains("test[0]"), "{error}");
}

#[test]
fn a_device_that_answers_nonsense_is_refused() {
    let impossible = Head { flags: 31, ..identity(GEOMETRY).encode(u32::MAX) };
    for answer in [impossible, Answer::Done { len: 0 }.encode(u32::MAX), identity(GEOMETRY).encode(5)] {
        let (a, mut b) = lane_pair(8, Transport::Pointer);
        b.send(answer, Payload::new()).unwrap();
        b.flush();
        assert!(matches!(LinkQueue::connect(a, PATIENCE), Err(ConnectError::Answer { .. })), "{answer:?}");
    }
    let (a, mut b) = lane_pair(8, Transport::Pointer);
    b.send(Answer::Failed(Failure::Version { version: 9 }).encode(u32::MAX), Payload::new()).unwrap();
    assert!(matches!(LinkQueue::connect(a, PATIENCE), Err(ConnectError::Version { found: 9, .. })));
}

#[test]
fn answers_that_make_no_sense_end_only_their_request() {
    let (_link, mut queue, mut device) = played(GEOMETRY);
    let memory = device.memory().clone();
    let wild = Segment::new(GlobalAddr::new(memory.id(), memory.arena().len()).unwrap(), 512);
    let mut nowhere = Payload::new();
    nowhere.push(wild, None);
    let short = payload(&memory, &[0; 511]);
    let protocol = |error: &BlockError| matches!(error, BlockError::Protocol(_));
    let address = |error: &BlockError| matches!(error, BlockError::Address(_));
    type Check = fn(&BlockError) -> bool;
    let cases: [(Head, Payload, Check); 6] = [
        (Answer::Done { len: 512 }.encode(0), Payload::new(), protocol),
        (Answer::Done { len: 512 }.encode(0), short.clone(), protocol),
        (Answer::Done { len: 511 }.encode(0), short, protocol),
        (Answer::Done { len: 512 }.encode(0), nowhere, address),
        (identity(GEOMETRY).encode(0), Payload::new(), protocol),
        (Head { kind: 0x42, flags: 1, args: [0; 4] }, Payload::new(), protocol),
    ];
    for (mut head, data, check) in cases {
        assert!(queue.submit(1, BlockOp::Read { offset: 0, len: 512 }).is_ok());
        let (id, ..) = next_request(&mut device);
        head.args[0] = id;
        device.send(head, data).unwrap();
        let error = completions(&mut queue, 1).pop().unwrap().result.unwrap_err();
        assert!(check(&error), "{head:?}: {error}");
    }
}

#[test]
fn an_unknown_or_second_answer_is_counted_and_ignored() {
    let (link, mut queue, mut device) = played(GEOMETRY);
    let refusals = || link.a().memory.stats().refusals.get();
    let before = refusals();
    assert!(queue.submit(1, BlockOp::Flush).is_ok());
    let (id, ..) = next_request(&mut device);
    for wrong in [id ^ 1, id ^ 1 << 16, 0, 77] {
        device.send(Answer::Done { len: 0 }.encode(wrong), Payload::new()).unwrap();
    }
    device.send(Answer::Done { len: 0 }.encode(id), Payload::new()).unwrap();
    device.send(Answer::Done { len: 0 }.encode(id), Payload::new()).unwrap();
    assert_eq!(completions(&mut queue, 1).pop().unwrap().id, 1);
    assert!(queue.poll().is_none());
    assert_eq!(refusals() - before, 5);
}

#[test]
fn another_size_is_told_once_and_holds_from_then_on() {
    let (link, mut queue, mut device) = played(GEOMETRY);
    for bytes in [GEOMETRY.bytes * 2, GEOMETRY.bytes / 2] {
        let geometry = Geometry { bytes, ..GEOMETRY };
        say(&mut device, geometry, FEATURES);
        assert!(queue.poll().is_none());
        assert!(queue.ready(), "its user is woken");
        assert_eq!((queue.resized(), queue.resized(), queue.geometry()), (Some(geometry), None, geometry));
        let last = BlockOp::Read { offset: bytes - 512, len: 512 };
        assert!(queue.submit(1, last).is_ok());
        let (id, request, _) = next_request(&mut device);
        assert_eq!(request, Request::Read { offset: bytes - 512, len: 512 });
        device.send(Answer::Failed(Failure::NoSpace).encode(id), Payload::new()).unwrap();
        assert_eq!(completions(&mut queue, 1)[0].result.as_ref().unwrap_err(), &BlockError::NoSpace);
        assert!(queue.submit(2, BlockOp::Read { offset: bytes, len: 512 }).is_ok());
        let error = BlockError::OutOfRange { offset: bytes, len: 512 };
        assert_eq!(completions(&mut queue, 1)[0].result.as_ref().unwrap_err(), &error);
    }
    let before = link.a().memory.stats().refusals.get();
    let geometry = queue.geometry();
    say(&mut device, geometry, FEATURES);
    say(&mut device, Geometry { block: 4096, ..geometry }, FEATURES);
    say(&mut device, Geometry { depth: 1, ..geometry }, FEATURES);
    say(&mut device, geometry, Features { read_only: true, ..FEATURES });
    assert!(queue.poll().is_none());
    assert_eq!((queue.resized(), queue.geometry(), queue.features()), (None, geometry, FEATURES));
    assert_eq!(link.a().memory.stats().refusals.get() - before, 3);
}

#[test]
fn what_the_device_cannot_do_is_refused_at_the_front() {
    let (_link, a, mut device) = TestLink::new(16, Transport::Pointer);
    say(&mut device, GEOMETRY, Features { read_only: true, ..FEATURES });
    let mut queue = connect(a);
    drop(next_request(&mut device));
    assert!(queue.features().read_only);
    assert!(queue.submit(1, BlockOp::Discard { offset: 0, len: 512 }).is_ok());
    assert_eq!(completions(&mut queue, 1)[0].result.as_ref().unwrap_err(), &BlockError::ReadOnly);
    assert!(device.recv().is_none());
    for (failure, error) in [(Failure::ReadOnly, BlockError::ReadOnly), (Failure::Unsupported, BlockError::Unsupported)]
    {
        assert!(queue.submit(2, BlockOp::Flush).is_ok());
        let (id, ..) = next_request(&mut device);
        device.send(Answer::Failed(failure).encode(id), Payload::new()).unwrap();
        assert_eq!(completions(&mut queue, 1)[0].result.as_ref().unwrap_err(), &error);
    }
}

fn ask(back: &mut BackEnd<FileQueue>, user: &mut Lane, head: Head, data: Payload) -> Answer {
    user.send(head, data).unwrap();
    user.flush();
    let mut answer = None;
    until(|| {
        back.poll();
        back.flush();
        answer = user.recv();
        answer.is_some()
    });
    let (got, _) = answer.unwrap().unwrap();
    assert_eq!(codec::id(&got), codec::id(&head));
    Answer::decode(&got).unwrap()
}

#[test]
fn malformed_requests_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let (lane, mut user) = lane_pair(16, Transport::Pointer);
    let queue = file_device(&dir).queue(lane.memory().clone()).unwrap();
    let mut back = BackEnd::new(lane, queue).unwrap();
    let memory: Memory = user.memory().clone();
    let block = || payload(&memory, &[1; 512]);
    let mut nowhere = Payload::new();
    nowhere.push(Segment::new(GlobalAddr::from_bits(u64::MAX), 512), None);
    let write = |offset, len| Request::Write { offset, len, durable: false }.encode(7);
    let cases = [
        (Head { kind: 0x42, flags: 0, args: [7; 4] }, Payload::new(), Failure::Protocol),
        (Head { kind: 2, flags: 9, args: [7; 4] }, Payload::new(), Failure::Protocol),
        (write(0, 512), Payload::new(), Failure::Protocol),
        (write(0, 1024), block(), Failure::Protocol),
        (Request::Flush.encode(7), block(), Failure::Protocol),
        (write(0, 512), nowhere, Failure::Address),
        (write(1, 512), block(), Failure::Misaligned),
        (write(u64::MAX - 511, 512), block(), Failure::OutOfRange),
        (Request::Read { offset: 0, len: u32::MAX }.encode(7), Payload::new(), Failure::Size),
        (
            Request::Discard { block: (1 << 48) - 1, blocks: (1 << 48) - 1 }.encode(7),
            Payload::new(),
            Failure::OutOfRange,
        ),
        (Request::Identify { version: 1 }.encode(7), Payload::new(), Failure::Version { version: codec::VERSION }),
    ];
    for (head, data, failure) in cases {
        assert_eq!(ask(&mut back, &mut user, head, data), Answer::Failed(failure), "{head:?}");
    }
    assert_eq!(ask(&mut back, &mut user, write(0, 512), block()), Answer::Done { len: 0 });
}

#[test]
fn a_front_end_beyond_the_depth_is_served_all_the_same() {
    let (lane, mut user) = lane_pair(128, Transport::Pointer);
    let queue = memory_device().queue(lane.memory().clone()).unwrap();
    let mut back = BackEnd::new(lane, queue).unwrap();
    for id in 0..128 {
        user.send(Request::Read { offset: 0, len: 512 }.encode(id), Payload::new()).unwrap();
    }
    let mut answered = Vec::new();
    until(|| {
        back.poll();
        back.flush();
        while let Some(answer) = user.recv() {
            answered.push(codec::id(&answer.unwrap().0));
        }
        user.flush();
        answered.len() == 128
    });
    assert_eq!(answered, (0..128).collect::<Vec<_>>());
    assert!(!back.sources()[1].ready());
}
