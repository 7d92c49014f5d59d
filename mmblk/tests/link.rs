//! The link against the conformance suite, over both transports; and what happens when one side dies.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

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
use mmblk::backend::file::{FileDevice, FileOptions, FileQueue};
use mmblk::backend::memory::MemoryDevice;
use mmblk::blocking::{Blocking, Copied};
use mmblk::link::back::BackEnd;
use mmblk::link::codec::{self, Answer, Failure, Identity, Request};
use mmblk::link::front::{ConnectError, LinkQueue};
use mmblk::queue::{BlockError, BlockOp, BlockQueue, Features, Geometry};
use proptest::prelude::*;

/// A back end in a thread of its own, until it is dropped.
struct Served {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn new<Q: BlockQueue + Send + 'static>(mut back: BackEnd<Q>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut waiter = Waiter::new(WaitStrategy::Sleep).unwrap();
            while !stopped.load(Ordering::Relaxed) {
                if back.poll() {
                    waiter.busy();
                } else {
                    back.flush();
                    waiter.idle(&mut back.sources(), Some(Duration::from_millis(20))).unwrap();
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn memory_device() -> MemoryDevice {
    MemoryDevice::new(GEOMETRY).unwrap()
}

fn file_device(dir: &tempfile::TempDir) -> FileDevice {
    let options = FileOptions {
        create_bytes: Some(GEOMETRY.bytes),
        block: GEOMETRY.block,
        depth: GEOMETRY.depth,
        ..FileOptions::new(dir.path().join("image"))
    };
    FileDevice::open(&options).unwrap()
}

fn connect(lane: Lane) -> LinkQueue {
    LinkQueue::connect(lane, PATIENCE).unwrap()
}

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
        Served::new(BackEnd::new(lane, queue))
    })
}

fn over_file(transport: Transport) -> Rig<LinkQueue> {
    over_link(64, transport, |lane| {
        let dir = tempfile::tempdir().unwrap();
        let queue = file_device(&dir).queue(lane.memory().clone()).unwrap();
        // The image's name goes with the directory; the image itself lives as long as it is open.
        Served::new(BackEnd::new(lane, queue))
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

/// What the device says when it is asked who it is.
fn identity(geometry: Geometry) -> Answer {
    Answer::Identity(Identity { geometry, features: FEATURES })
}

/// A front end whose device the test itself plays.
fn played(geometry: Geometry) -> (TestLink, LinkQueue, Lane) {
    let (link, a, mut b) = TestLink::new(16, Transport::Pointer);
    b.send(identity(geometry).encode(u32::MAX), Payload::new()).unwrap();
    let queue = connect(a);
    let (head, _) = b.recv().unwrap().unwrap();
    assert_eq!(Request::decode(&head), Ok(Request::Identify { version: codec::VERSION }));
    (link, queue, b)
}

fn next_request(lane: &mut Lane) -> (u32, Request, Payload) {
    let (head, data) = lane.recv().expect("a request").unwrap();
    (codec::id(&head), Request::decode(&head).unwrap(), data)
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
fn unfinished_requests_go_to_the_successor_in_order() {
    let (mut link, mut queue, mut device) = played(GEOMETRY);
    let memory = link.a().memory.clone();
    for id in 0..4u8 {
        let data = payload(&memory, &[id; 512]);
        assert!(queue.submit(id.into(), BlockOp::Write { offset: 0, data, durable: false }).is_ok());
    }
    queue.flush_submissions();
    let requests: Vec<_> = (0..4).map(|_| next_request(&mut device)).collect();
    device.send(Answer::Done { len: 0 }.encode(requests[1].0), Payload::new()).unwrap();
    drop(requests);
    assert_eq!(completions(&mut queue, 1).pop().unwrap().id, 1);
    link.kill_b();
    drop(device);
    assert!(queue.poll().is_none());
    assert!(!queue.is_ready());
    assert!(queue.submit(4, BlockOp::Flush).is_ok(), "requests are taken meanwhile");
    let mut device = link.restart_b();
    assert!(queue.poll().is_none());
    while device.change().is_some() {}
    assert!(queue.poll().is_none());
    assert!(matches!(next_request(&mut device).1, Request::Identify { .. }));
    assert!(device.recv().is_none(), "nothing before it is known to be the same device");
    device.send(identity(GEOMETRY).encode(u32::MAX), Payload::new()).unwrap();
    assert!(queue.poll().is_none());
    for expected in [0u8, 2, 3] {
        let (id, request, data) = next_request(&mut device);
        assert!(matches!(request, Request::Write { offset: 0, len: 512, durable: false }));
        let mut found = [9; 512];
        device.memory().read_header(&data, 0, &mut found).unwrap();
        assert_eq!(found, [expected; 512]);
        device.send(Answer::Done { len: 0 }.encode(id), Payload::new()).unwrap();
    }
    let (id, request, _) = next_request(&mut device);
    assert_eq!(request, Request::Flush);
    device.send(Answer::Done { len: 0 }.encode(id), Payload::new()).unwrap();
    let ids: Vec<u64> = completions(&mut queue, 4).iter().map(|c| c.id).collect();
    assert_eq!(ids, [0, 2, 3, 4]);
}

/// A front end, its device, and a block that this has lent.
fn lent(bytes: &[u8]) -> (TestLink, LinkQueue, Lane, Payload) {
    let (link, mut queue, mut device) = played(GEOMETRY);
    assert!(queue.submit(0, BlockOp::Read { offset: 0, len: bytes.len() as u32 }).is_ok());
    let (id, ..) = next_request(&mut device);
    let loan = payload(device.memory(), bytes);
    device.send(Answer::Done { len: bytes.len() as u32 }.encode(id), loan).unwrap();
    let old = completions(&mut queue, 1).pop().unwrap().result.unwrap();
    (link, queue, device, old)
}

/// Starts the device again and says that it is the same.
fn succeeded(link: &mut TestLink, queue: &mut LinkQueue) -> Lane {
    let mut device = link.restart_b();
    assert!(queue.poll().is_none());
    while device.change().is_some() {}
    device.send(identity(GEOMETRY).encode(u32::MAX), Payload::new()).unwrap();
    assert!(queue.poll().is_none());
    assert!(matches!(next_request(&mut device).1, Request::Identify { .. }));
    device
}

/// What the write that comes next is to write, as the device sees it.
fn next_write(device: &mut Lane) -> (u32, Vec<u8>) {
    let (id, request, data) = next_request(device);
    assert!(matches!(request, Request::Write { .. }), "{request:?}");
    let mut found = vec![0; data.len() as usize];
    device.memory().read_header(&data, 0, &mut found).unwrap();
    (id, found)
}

#[test]
fn a_write_around_what_the_dead_device_lent_goes_to_the_successor() {
    let lost = pattern(1, 512);
    let (mut link, mut queue, mut device, old) = lent(&lost);
    let memory = link.a().memory.clone();
    let copied = || memory.stats().payload_bytes_copied.get();
    // Own bytes within old ones, as of a write to the middle of a block.
    let around = |byte: u8| {
        let mut data = old.slice(0, 100).unwrap();
        data.append(payload(&memory, &[byte; 312]));
        data.append(old.slice(412, 100).unwrap());
        BlockOp::Write { offset: 0, data, durable: false }
    };
    let bytes = |byte: u8| [&lost[..100], &[byte; 312], &lost[412..]].concat();
    assert!(queue.submit(1, around(1)).is_ok());
    assert_eq!(next_write(&mut device).1, bytes(1));
    assert_eq!(copied(), 0);
    link.kill_b();
    assert!(queue.poll().is_none());
    assert_eq!(copied(), 200, "as soon as it is dead");
    assert!(queue.submit(2, around(2)).is_ok());
    let (third, fourth) = (around(3), around(4));
    drop(old);
    let mut successor = succeeded(&mut link, &mut queue);
    assert!(queue.submit(3, third).is_ok());
    assert_eq!(copied(), 600);
    assert_eq!(link.a_passes.count(), 0, "the fourth keeps what the device has lent");
    drop(fourth);
    queue.flush_submissions();
    assert_eq!(link.a_passes.count(), 1);
    for byte in 1..4 {
        let (id, found) = next_write(&mut successor);
        assert_eq!(found, bytes(byte), "write {byte}");
        successor.send(Answer::Done { len: 0 }.encode(id), Payload::new()).unwrap();
    }
    for completion in completions(&mut queue, 3) {
        completion.result.unwrap();
    }
}

#[test]
fn what_the_living_device_lends_is_never_copied() {
    let (mut link, mut queue, device, old) = lent(&pattern(1, 512));
    link.kill_b();
    drop((device, old));
    assert!(queue.poll().is_none());
    let mut device = succeeded(&mut link, &mut queue);
    assert!(queue.submit(1, BlockOp::Read { offset: 0, len: 512 }).is_ok());
    let (id, ..) = next_request(&mut device);
    let loan = payload(device.memory(), &pattern(2, 512));
    device.send(Answer::Done { len: 512 }.encode(id), loan).unwrap();
    let data = completions(&mut queue, 1).pop().unwrap().result.unwrap();
    assert!(queue.submit(2, BlockOp::Write { offset: 512, data, durable: false }).is_ok());
    assert_eq!(next_write(&mut device).1, pattern(2, 512));
    assert_eq!(link.a().memory.stats().payload_bytes_copied.get(), 0);
}

#[test]
fn without_a_buffer_such_a_write_waits_for_one() {
    let lost = pattern(1, 512);
    let (mut link, mut queue, device, data) = lent(&lost);
    let memory = link.a().memory.clone();
    let mut hoard = Vec::new();
    for size in [64 << 10, 512, 1] {
        while let Ok(buf) = memory.alloc(size) {
            hoard.push(buf);
        }
    }
    link.kill_b();
    drop(device);
    assert!(queue.submit(1, BlockOp::Write { offset: 0, data, durable: false }).is_ok());
    let mut successor = succeeded(&mut link, &mut queue);
    assert!(successor.recv().is_none() && link.a_passes.count() == 0);
    drop(hoard);
    assert!(queue.poll().is_none());
    assert_eq!(next_write(&mut successor).1, lost);
    assert_eq!(link.a_passes.count(), 1);
}

#[test]
fn another_device_gets_nothing() {
    let (mut link, mut queue, mut device) = played(GEOMETRY);
    assert!(queue.submit(1, BlockOp::Flush).is_ok());
    drop(next_request(&mut device));
    link.kill_b();
    drop(device);
    assert!(queue.poll().is_none());
    let mut device = link.restart_b();
    assert!(queue.poll().is_none());
    while device.change().is_some() {}
    let other = Geometry { bytes: GEOMETRY.bytes / 2, ..GEOMETRY };
    device.send(identity(other).encode(u32::MAX), Payload::new()).unwrap();
    assert!(matches!(completions(&mut queue, 1)[0].result, Err(BlockError::Protocol(_))));
    assert!(queue.submit(2, BlockOp::Flush).is_ok());
    assert!(matches!(completions(&mut queue, 1)[0].result, Err(BlockError::Protocol(_))));
    // The right one comes back after all.
    let dead = device;
    link.kill_b();
    drop(dead);
    assert!(queue.poll().is_none());
    let mut device = link.restart_b();
    assert!(queue.poll().is_none());
    while device.change().is_some() {}
    device.send(identity(GEOMETRY).encode(u32::MAX), Payload::new()).unwrap();
    assert!(queue.poll().is_none());
    assert!(queue.is_ready());
}

fn say(device: &mut Lane, geometry: Geometry, features: Features) {
    device.send(Answer::Identity(Identity { geometry, features }).encode(u32::MAX), Payload::new()).unwrap();
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
fn a_disk_that_has_grown_while_it_was_away_is_the_same() {
    let (mut link, mut queue, device) = played(GEOMETRY);
    link.kill_b();
    drop(device);
    assert!(queue.poll().is_none());
    let mut device = link.restart_b();
    assert!(queue.poll().is_none());
    while device.change().is_some() {}
    let grown = Geometry { bytes: GEOMETRY.bytes + 512, ..GEOMETRY };
    say(&mut device, grown, FEATURES);
    assert!(queue.poll().is_none());
    assert!(queue.is_ready());
    assert_eq!(queue.resized(), Some(grown));
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

#[test]
fn a_disk_dies_under_load_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (mut link, a, b) = TestLink::new(64, Transport::Pointer);
    let memory = a.memory().clone();
    let serve = |lane: Lane| {
        let queue = file_device(&dir).queue(lane.memory().clone()).unwrap();
        Served::new(BackEnd::new(lane, queue))
    };
    let mut served = serve(b);
    let mut queue = connect(a);
    let mut done = 0;
    for round in 0..5u64 {
        for id in 0..u64::from(GEOMETRY.depth) {
            let number = round * u64::from(GEOMETRY.depth) + id;
            let data = payload(&memory, &pattern(number, 64 << 10));
            assert!(queue.submit(number, BlockOp::Write { offset: number << 16, data, durable: false }).is_ok());
        }
        queue.flush_submissions();
        // At any moment: some requests are done, some are in the ring, some are in the kernel.
        std::thread::sleep(Duration::from_micros(round * 300));
        drop(served);
        link.kill_b();
        served = serve(link.restart_b());
        for completion in completions(&mut queue, GEOMETRY.depth as usize) {
            completion.result.unwrap();
            done += 1;
        }
    }
    assert_eq!(done, 40);
    let mut disk = Blocking::new(queue, memory, Waiter::new(WaitStrategy::Sleep).unwrap());
    let mut found = vec![0; 64 << 10];
    for number in 0..done {
        disk.read_into(number << 16, &mut found, Copied::Metadata).unwrap();
        assert!(found == pattern(number, 64 << 10), "write {number}");
    }
    drop(served);
}

/// Polls until it is so.
fn until(mut what: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !what() {
        assert!(Instant::now() < deadline, "it did not come");
        std::thread::yield_now();
    }
}

/// A back end whose user dies with requests of all kinds under way; side a is the device here.
fn bereaved(dir: &tempfile::TempDir) -> (TestLink, BackEnd<FileQueue>) {
    let (link, lane, mut user) = TestLink::new(64, Transport::Pointer);
    let queue = file_device(dir).queue(link.a().memory.clone()).unwrap();
    let mut back = BackEnd::new(lane, queue);
    for id in 0..4 {
        let data = payload(user.memory(), &pattern(id.into(), 512));
        user.send(Request::Write { offset: 512 * u64::from(id), len: 512, durable: false }.encode(id), data).unwrap();
        user.send(Request::Read { offset: 0, len: 1 << 20 }.encode(10 + id), Payload::new()).unwrap();
    }
    user.flush();
    back.poll();
    link.kill_b();
    (link, back)
}

#[test]
fn a_back_end_serves_its_users_successor() {
    let dir = tempfile::tempdir().unwrap();
    let (mut link, mut back) = bereaved(&dir);
    let mut user = link.restart_b();
    until(|| {
        back.poll();
        back.flush();
        user.change().is_some()
    });
    user.send(Request::Identify { version: codec::VERSION }.encode(u32::MAX), Payload::new()).unwrap();
    user.send(Request::Read { offset: 0, len: 512 }.encode(1), Payload::new()).unwrap();
    user.flush();
    let mut answers = Vec::new();
    until(|| {
        back.poll();
        back.flush();
        while let Some(answer) = user.recv() {
            answers.push(answer.unwrap().0);
        }
        answers.len() >= 2
    });
    assert_eq!(answers, [identity(GEOMETRY).encode(u32::MAX), Answer::Done { len: 512 }.encode(1)]);
}

#[test]
fn a_back_end_lets_go_of_a_dead_user() {
    let dir = tempfile::tempdir().unwrap();
    let (link, mut back) = bereaved(&dir);
    until(|| {
        back.poll();
        back.flush();
        link.a_passes.count() == 1
    });
    link.fence_b();
    until(|| {
        back.poll();
        back.flush();
        link.a().memory.heap().used() == 0
    });
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
    let mut back = BackEnd::new(lane, queue);
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
    let mut back = BackEnd::new(lane, queue);
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
