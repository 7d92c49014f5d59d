//! What happens to the other when one side of a link dies.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use common::link::{Served, connect, file_device, identity, next_request, played, say, until};
use common::{FEATURES, GEOMETRY, completions, pattern, payload};
use fido_core::assignment::{Transport, WaitStrategy};
use fido_core::lane::Lane;
use fido_core::payload::Payload;
use fido_core::testing::TestLink;
use fido_core::waiter::Waiter;
use mmblk::backend::file::FileQueue;
use mmblk::blocking::{Blocking, Copied};
use mmblk::link::back::BackEnd;
use mmblk::link::codec::{self, Answer, Request};
use mmblk::link::front::LinkQueue;
use mmblk::queue::{BlockError, BlockOp, BlockQueue, Geometry};

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
fn a_disk_dies_under_load_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (mut link, a, b) = TestLink::new(64, Transport::Pointer);
    let memory = a.memory().clone();
    let serve = |lane: Lane| {
        let queue = file_device(&dir).queue(lane.memory().clone()).unwrap();
        Served::new(BackEnd::new(lane, queue).unwrap())
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

/// A back end whose user dies with requests of all kinds under way; side a is the device here.
fn bereaved(dir: &tempfile::TempDir) -> (TestLink, BackEnd<FileQueue>) {
    let (link, lane, mut user) = TestLink::new(64, Transport::Pointer);
    let queue = file_device(dir).queue(link.a().memory.clone()).unwrap();
    let mut back = BackEnd::new(lane, queue).unwrap();
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
