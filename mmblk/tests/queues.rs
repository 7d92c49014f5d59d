//! A device of several queues: a lane for each, threads that share nothing, and order when the user dies.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use common::held::{Hand, Held};
use common::link::{identity, memory_device, until};
use common::{GEOMETRY, PATIENCE, completions, pattern, payload};
use fido_core::assignment::WaitStrategy;
use fido_core::crew::{Crew, Limits as CrewLimits};
use fido_core::lane::Lane;
use fido_core::payload::Payload;
use fido_core::testing::TestLanes;
use fido_core::waiter::Waiter;
use mmblk::backend::memory::MemoryQueue;
use mmblk::link::back::{BackEnd, Limits};
use mmblk::link::codec::{self, Answer, IDENTIFY_ID, Request};
use mmblk::link::device::LinkDevice;
use mmblk::link::front::{ConnectError, LinkQueue};
use mmblk::queue::{BlockOp, BlockQueue, Geometry};

const LANES: u16 = 4;

/// A device of four lanes in memory, served by up to two threads.
fn device() -> (TestLanes, Crew<BackEnd<MemoryQueue>>, LinkDevice) {
    let (link, server, user) = TestLanes::new(LANES, 64, 32 << 20);
    let device = memory_device();
    let lanes = server.into_iter().map(|lane| {
        let queue = device.queue(lane.memory().clone()).unwrap();
        (lane, queue)
    });
    let limits = Limits::fair(&link.server.memory, 1).unwrap();
    let lanes = BackEnd::group(lanes.collect(), limits).unwrap();
    let limits = CrewLimits { least: 2, most: 2, lull: Duration::from_secs(1) };
    let crew = Crew::start(limits, || Waiter::new(WaitStrategy::Sleep), lanes).unwrap();
    (link, crew, LinkDevice::connect(user, PATIENCE).unwrap())
}

/// Writes 32 pieces of 16 KiB, all that the depth allows at a time, and reads them back.
fn write_and_read(mut queue: LinkQueue, thread: u64, memory: &fido_core::memory::Memory) {
    let depth = u64::from(GEOMETRY.depth);
    let at = |number: u64| (thread * 32 + number) << 14;
    for first in (0..32).step_by(depth as usize) {
        for number in first..first + depth {
            let data = payload(memory, &pattern(at(number), 1 << 14));
            assert!(queue.submit(number, BlockOp::Write { offset: at(number), data, durable: false }).is_ok());
        }
        for completion in completions(&mut queue, depth as usize) {
            completion.result.unwrap();
        }
    }
    for number in 0..32 {
        assert!(queue.submit(number, BlockOp::Read { offset: at(number), len: 1 << 14 }).is_ok());
        let data = completions(&mut queue, 1).pop().unwrap().result.unwrap();
        let mut found = vec![0; 1 << 14];
        memory.read_header(&data, 0, &mut found).unwrap();
        assert!(found == pattern(at(number), 1 << 14), "piece {number} of thread {thread}");
    }
}

#[test]
fn each_thread_has_a_queue_of_its_own() {
    let (link, _crew, device) = device();
    assert_eq!(device.geometry(), GEOMETRY);
    std::thread::scope(|scope| {
        for thread in 0..LANES.into() {
            let (queue, memory) = (device.queue().unwrap(), link.user.memory.clone());
            scope.spawn(move || write_and_read(queue, thread, &memory));
        }
    });
    assert!(device.queue().is_none(), "a lane for each, and no more");
    assert_eq!(link.user.memory.stats().payload_bytes_copied.get(), 0);
    assert_eq!(link.server.memory.stats().payload_bytes_copied.get(), 0);
}

#[test]
fn what_one_queue_has_written_another_reads() {
    let (link, _crew, device) = device();
    let (mut one, mut other) = (device.queue().unwrap(), device.queue().unwrap());
    let data = payload(&link.user.memory, &pattern(1, 512));
    assert!(one.submit(1, BlockOp::Write { offset: 512, data, durable: false }).is_ok());
    completions(&mut one, 1).pop().unwrap().result.unwrap();
    assert!(other.submit(2, BlockOp::Flush).is_ok());
    completions(&mut other, 1).pop().unwrap().result.unwrap();
    assert!(other.submit(3, BlockOp::Read { offset: 512, len: 512 }).is_ok());
    let data = completions(&mut other, 1).pop().unwrap().result.unwrap();
    let mut found = [0; 512];
    link.user.memory.read_header(&data, 0, &mut found).unwrap();
    assert_eq!(found[..], pattern(1, 512));
}

#[test]
fn lanes_to_different_devices_are_no_device() {
    let (_link, server, user) = TestLanes::new(2, 16, 4 << 20);
    let other = Geometry { depth: 4, ..GEOMETRY };
    let mut server = server;
    for (lane, geometry) in server.iter_mut().zip([GEOMETRY, other]) {
        lane.send(identity(geometry).encode(IDENTIFY_ID), Payload::new()).unwrap();
        lane.flush();
    }
    let error = LinkDevice::connect(user, PATIENCE).unwrap_err();
    assert!(matches!(error, ConnectError::Another { .. }), "{error}");
    assert!(matches!(LinkDevice::connect(Vec::new(), PATIENCE), Err(ConnectError::NoLane)));
}

/// Two lanes whose device holds what it is given.
fn held(limits: Limits) -> (TestLanes, Vec<BackEnd<Held>>, Vec<Hand>, Vec<Lane>) {
    let (link, server, user) = TestLanes::new(2, 16, 4 << 20);
    let (queues, hands): (Vec<_>, Vec<_>) = (0..2).map(|_| Held::new(GEOMETRY)).unzip();
    let backs = BackEnd::group(server.into_iter().zip(queues).collect(), limits).unwrap();
    (link, backs, hands, user)
}

/// One request on each lane, which the device has.
fn load(backs: &mut [BackEnd<Held>], hands: &[Hand], user: &mut [Lane]) {
    for lane in user {
        lane.send(Request::Flush.encode(1), Payload::new()).unwrap();
        lane.flush();
    }
    backs.iter_mut().for_each(|back| _ = back.poll());
    assert_eq!(hands.iter().map(Hand::len).sum::<usize>(), backs.len());
}

/// The answers that have come to a lane after the back ends have had all they need.
fn answers(backs: &mut [BackEnd<Held>], lane: &mut Lane) -> Vec<(u32, Answer)> {
    let mut all = Vec::new();
    for _ in 0..8 {
        for back in backs.iter_mut() {
            back.poll();
            back.flush();
        }
        while lane.change().is_some() {}
        while let Some(message) = lane.recv() {
            let (head, _) = message.unwrap();
            all.push((codec::id(&head), Answer::decode(&head).unwrap()));
        }
        lane.flush();
    }
    all
}

#[test]
fn a_successor_is_served_when_nothing_of_the_dead_is_left_on_any_lane() {
    let (mut link, mut backs, hands, mut user) = held(Limits::NONE);
    load(&mut backs, &hands, &mut user);
    let dead = link.user.id();
    drop(user);
    let mut user = link.restart_user();
    // One lane's thread hears of it before the other's.
    link.tell_death(0, dead);
    link.tell_up(0);
    hands[0].release(1);
    let ask = |lane: &mut Lane| {
        until(|| {
            while lane.change().is_some() {}
            lane.is_up()
        });
        lane.send(Request::Identify { version: codec::VERSION }.encode(IDENTIFY_ID), Payload::new()).unwrap();
        lane.send(Request::Flush.encode(2), Payload::new()).unwrap();
        lane.flush();
    };
    assert!(answers(&mut backs, &mut user[0]).is_empty());
    ask(&mut user[0]);
    assert!(answers(&mut backs, &mut user[0]).is_empty(), "the other lane still serves the dead");
    link.tell_death(1, dead);
    assert!(answers(&mut backs, &mut user[0]).is_empty(), "the device still has a request of the dead");
    assert_eq!((hands[0].len(), hands[1].len()), (0, 1));
    assert!(!backs[0].sources()[2].ready());
    hands[1].release(1);
    backs[1].poll();
    assert!(backs[0].sources()[2].ready(), "the waiting lane is woken");
    hands[0].release(1);
    let found = answers(&mut backs, &mut user[0]);
    assert!(matches!(found[..], [(IDENTIFY_ID, Answer::Identity(_)), (2, Answer::Done { len: 0 })]), "{found:?}");
    link.tell_up(1);
    answers(&mut backs, &mut user[1]);
    ask(&mut user[1]);
    hands[1].release(1);
    assert_eq!(answers(&mut backs, &mut user[1]).len(), 2);
}

#[test]
fn the_other_lane_sleeps_until_the_last_request_of_the_dead_has_ended() {
    let (mut link, mut backs, hands, mut user) = held(Limits::NONE);
    load(&mut backs, &hands, &mut user);
    let dead = link.user.id();
    drop(user);
    hands[0].release(1);
    (0..2).for_each(|lane| link.tell_death(lane, dead));
    let mut user = link.restart_user();
    (0..2).for_each(|lane| link.tell_up(lane));
    assert!(answers(&mut backs, &mut user[0]).is_empty());
    let mut second = backs.pop().unwrap();
    let hand = hands[1].clone();
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        hand.release(1);
        assert!(second.poll());
    });
    let mut waiter = Waiter::new(WaitStrategy::Sleep).unwrap();
    user[0].send(Request::Identify { version: codec::VERSION }.encode(IDENTIFY_ID), Payload::new()).unwrap();
    user[0].flush();
    // Each sleep ends by a wake-up: the limit is only there for a test that fails.
    for _ in 0..100 {
        if !backs[0].poll() {
            backs[0].flush();
            waiter.idle(&mut backs[0].sources(), Some(PATIENCE)).unwrap();
        }
        if let Some(Ok((head, _))) = user[0].recv() {
            assert!(matches!(Answer::decode(&head), Ok(Answer::Identity(_))));
            late.join().unwrap();
            return;
        }
    }
    panic!("no answer");
}

#[test]
fn the_limit_of_requests_is_for_all_lanes_together() {
    let limits = Limits { requests: 3, ..Limits::NONE };
    let (_link, mut backs, hands, mut user) = held(limits);
    for lane in &mut user {
        (0..4).for_each(|id| lane.send(Request::Flush.encode(id), Payload::new()).unwrap());
        lane.flush();
    }
    let total = |hands: &[Hand]| hands.iter().map(Hand::len).sum::<usize>();
    assert!(answers(&mut backs, &mut user[0]).is_empty());
    assert_eq!((hands[0].len(), hands[1].len()), (3, 0));
    let mut ended = 0;
    let mut waiter = Waiter::new(WaitStrategy::Sleep).unwrap();
    for turn in 0..8 {
        // What ends on the first lane makes room on the second, which is woken for it.
        let busy = usize::from(hands[0].len() == 0);
        hands[busy].release(1);
        ended += 1;
        let other = 1 - busy;
        while backs[busy].poll() {}
        backs[busy].flush();
        if hands[busy].len() < 3 && ended + total(&hands) < 8 {
            waiter.idle(&mut backs[other].sources(), Some(PATIENCE)).unwrap();
        }
        while backs[other].poll() {}
        assert_eq!(total(&hands), (8 - ended).min(3), "turn {turn}");
    }
    assert!(hands.iter().all(|hand| hand.most() <= 3));
}
