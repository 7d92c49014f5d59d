//! Several front ends on one back end: a greedy or a stuck one harms itself only.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Instant;

use common::{PATIENCE, completions};
use fido_core::assignment::WaitStrategy;
use fido_core::lane::Lane;
use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::testing::mesh;
use fido_core::waiter::Waiter;
use mmblk::backend::memory::{MemoryDevice, MemoryQueue};
use mmblk::link::back::{BackEnd, Limits};
use mmblk::link::codec::{self, Answer, Failure, Request};
use mmblk::link::front::LinkQueue;
use mmblk::queue::{BlockError, BlockOp, BlockQueue, Geometry};

const GEOMETRY: Geometry = Geometry { bytes: 8 << 20, block: 512, depth: 64 };
const TURN: u32 = 16;
const MIB: u32 = 1 << 20;

/// One device, and two front ends: one that the test plays, and an honest one that is served like it.
struct Bench {
    backs: Vec<BackEnd<MemoryQueue>>,
    /// The back end's memory.
    memory: Memory,
    wild: Lane,
    honest: Option<Lane>,
}

fn bench(limits: impl Fn(&Memory) -> Limits) -> Bench {
    let mut nodes = mesh(3, &[(0, 1), (0, 2)], 1024, 16 << 20);
    let (honest, wild) = (nodes.pop().unwrap(), nodes.pop().unwrap());
    let server = nodes.pop().unwrap();
    let device = MemoryDevice::new(GEOMETRY).unwrap();
    let limits = limits(&server.memory);
    let back = |lane: Lane| BackEnd::group(vec![(lane, device.queue(server.memory.clone()).unwrap())], limits).unwrap();
    let backs = server.lanes.into_iter().flat_map(back).collect();
    let only = |mut lanes: Vec<Lane>| lanes.pop().unwrap();
    Bench { backs, memory: server.memory, wild: only(wild.lanes), honest: Some(only(honest.lanes)) }
}

impl Bench {
    /// One look at each front end, as a thread that serves both does.
    fn round(&mut self) -> bool {
        let busy = self.backs.iter_mut().fold(false, |busy, back| back.poll() | busy);
        if !busy {
            self.backs.iter_mut().for_each(BackEnd::flush);
        }
        busy
    }
}

/// Connects the honest one while the bench is polled.
fn connect(bench: &mut Bench) -> LinkQueue {
    let lane = bench.honest.take().unwrap();
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| LinkQueue::connect(lane, PATIENCE).unwrap());
        while !connecting.is_finished() {
            bench.round();
            std::thread::yield_now();
        }
        connecting.join().unwrap()
    })
}

#[test]
fn one_that_floods_gets_its_turn_and_no_more() {
    const READS: u64 = 500;
    let mut bench = bench(|_| Limits { turn: TURN, ..Limits::NONE });
    let mut honest = connect(&mut bench);
    let (mut rounds, mut flooded, mut done) = (0u64, 0u64, 0);
    assert!(honest.submit(0, BlockOp::Read { offset: 0, len: 512 }).is_ok());
    honest.flush_submissions();
    let deadline = Instant::now() + PATIENCE;
    while done < READS {
        assert!(Instant::now() < deadline, "{done} reads in {rounds} rounds");
        // Its ring is always full.
        let request = Request::Read { offset: 0, len: 512 }.encode(1);
        while bench.wild.send(request, Payload::new()).is_ok() {}
        bench.wild.flush();
        bench.round();
        rounds += 1;
        let mut answered = 0;
        while let Some(answer) = bench.wild.recv() {
            answer.unwrap();
            answered += 1;
        }
        assert!(answered <= 2 * TURN, "{answered} answers after one round");
        flooded += u64::from(answered);
        if let Some(completion) = honest.poll() {
            assert_eq!(completion.result.unwrap().len(), 512);
            done += 1;
            assert!(honest.submit(done, BlockOp::Read { offset: 0, len: 512 }).is_ok());
            honest.flush_submissions();
        }
    }
    // The other one is served in the round in which it asks or the one after it, however much is waiting.
    assert!(rounds <= 3 * READS, "{rounds} rounds for {READS} reads, one at a time");
    assert!(flooded <= u64::from(TURN) * rounds, "{flooded} answers in {rounds} rounds");
    assert!(flooded >= READS, "the other one was served as well: {flooded}");
}

/// Asks for more than there is, and never looks at its lane again.
fn get_stuck(bench: &mut Bench) {
    for id in 0..64 {
        bench.wild.send(Request::Read { offset: 0, len: MIB }.encode(id), Payload::new()).unwrap();
    }
    bench.wild.flush();
    while bench.round() {}
}

/// Reads one MiB so many times, one after the other; the errors.
fn read(bench: &mut Bench, honest: &mut LinkQueue, reads: u64) -> Vec<BlockError> {
    let mut errors = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    for id in 0..reads {
        assert!(honest.submit(id, BlockOp::Read { offset: 0, len: MIB }).is_ok());
        honest.flush_submissions();
        let completion = loop {
            assert!(Instant::now() < deadline, "{id} reads");
            bench.round();
            if let Some(completion) = honest.poll() {
                break completion;
            }
        };
        match completion.result {
            Ok(data) => assert_eq!(data.len(), u64::from(MIB)),
            Err(error) => errors.push(error),
        }
        honest.flush_submissions();
        while bench.round() {}
    }
    errors
}

#[test]
fn one_that_returns_nothing_exhausts_its_own_part() {
    let mut bench = bench(|memory| Limits::fair(memory, 2).unwrap());
    let part = Limits::fair(&bench.memory, 2).unwrap().lent_bytes;
    let mut honest = connect(&mut bench);
    get_stuck(&mut bench);
    let stuck = bench.memory.heap().used();
    assert!(stuck <= part && stuck + u64::from(MIB) > part - u64::from(MIB), "{stuck} bytes of {part}");
    assert_eq!(read(&mut bench, &mut honest, 200), []);
    assert_eq!(bench.memory.heap().used(), stuck);
    // What it waited for in vain fails in the end, so that it learns of it should it ever look.
    let deadline = Instant::now() + PATIENCE;
    let mut waiter = Waiter::new(WaitStrategy::Sleep).unwrap();
    let mut answers = Vec::new();
    while answers.len() < 64 {
        assert!(Instant::now() < deadline, "{} answers", answers.len());
        if !bench.round() {
            waiter.idle(&mut bench.backs[0].sources(), Some(PATIENCE)).unwrap();
        }
        while let Some(answer) = bench.wild.recv() {
            answers.push(answer.unwrap());
        }
    }
    let failed = answers.iter().filter(|(head, _)| Answer::decode(head) == Ok(Answer::Failed(Failure::NoBuffer)));
    assert_eq!(failed.count() as u64, 64 - stuck / u64::from(MIB));
    // And when it returns what it has, it is served again.
    answers.clear();
    bench.wild.flush();
    bench.wild.send(Request::Read { offset: 0, len: MIB }.encode(7), Payload::new()).unwrap();
    bench.wild.flush();
    while bench.round() {}
    let (head, data) = bench.wild.recv().unwrap().unwrap();
    assert_eq!((codec::id(&head), data.len()), (7, u64::from(MIB)));
}

/// What the limits are for.
#[test]
fn without_limits_it_takes_the_other_ones_part() {
    let mut bench = bench(|_| Limits::NONE);
    let mut honest = connect(&mut bench);
    get_stuck(&mut bench);
    assert_eq!(read(&mut bench, &mut honest, 3), vec![BlockError::NoBuffer; 3]);
}

/// What comes of a read beyond the part when data is returned, and of a flush behind it.
fn beyond_the_part() -> Vec<Answer> {
    let part = 4 * u64::from(MIB);
    let mut bench = bench(|_| Limits { lent_bytes: part, ..Limits::NONE });
    for id in 0..5 {
        bench.wild.send(Request::Read { offset: 0, len: MIB }.encode(id), Payload::new()).unwrap();
    }
    // A write needs none of it, but keeps its place.
    bench.wild.send(Request::Flush.encode(5), Payload::new()).unwrap();
    bench.wild.flush();
    while bench.round() {}
    let mut lent: Vec<_> = std::iter::from_fn(|| bench.wild.recv()).map(Result::unwrap).collect();
    assert_eq!((lent.len(), bench.memory.heap().used()), (4, part), "at the limit, and not one past it");
    let back = &mut bench.backs[0];
    let mut waiter = Waiter::new(WaitStrategy::Sleep).unwrap();
    drop(lent.pop());
    bench.wild.flush();
    let began = Instant::now();
    let mut answers = Vec::new();
    while answers.len() < 2 {
        assert!(began.elapsed() < PATIENCE, "no answer came");
        if !back.poll() {
            back.flush();
            waiter.idle(&mut back.sources(), Some(PATIENCE)).unwrap();
        }
        while let Some(answer) = bench.wild.recv() {
            answers.push(Answer::decode(&answer.unwrap().0).unwrap());
        }
    }
    answers
}

#[test]
fn a_read_beyond_the_part_waits_for_what_is_returned() {
    // A machine that stands still for as long as the read's patience lasts makes it fail, as it should: another try then.
    let late = Answer::Failed(Failure::NoBuffer);
    let answers = (0..10).map(|_| beyond_the_part()).find(|answers| answers.first() != Some(&late));
    assert_eq!(answers, Some(vec![Answer::Done { len: MIB }, Answer::Done { len: 0 }]));
}

#[test]
fn a_read_as_long_as_there_may_be_fits_into_the_least_part() {
    let mut bench = bench(|_| Limits { lent_bytes: 4 << 20, requests: 1, turn: 1 });
    let mut honest = connect(&mut bench);
    for _ in 0..3 {
        assert!(honest.submit(1, BlockOp::Read { offset: 0, len: 4 * MIB }).is_ok());
        assert!(honest.submit(2, BlockOp::Read { offset: 0, len: 4 * MIB + 512 }).is_ok());
        honest.flush_submissions();
        let error = completions(&mut honest, 1).pop().unwrap();
        assert_eq!((error.id, error.result.is_err()), (2, true));
        while bench.round() {}
        let data = completions(&mut honest, 1).pop().unwrap().result.unwrap();
        assert_eq!(data.len(), 4 * u64::from(MIB));
    }
}
