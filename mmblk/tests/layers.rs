//! The layers: transparent when nothing is to happen, and what happens when something is.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use common::held::Held;
use common::{GEOMETRY, Rig, completions, conforms, pattern, payload, zeroes};
use fido_core::assignment::WaitStrategy;
use fido_core::memory::Memory;
use fido_core::waiter::Waiter;
use mmblk::backend::memory::{MemoryDevice, MemoryQueue};
use mmblk::device::{BoxQueue, open_text};
use mmblk::layer::Kind;
use mmblk::layer::delay::{Delay, Delays, Spread};
use mmblk::layer::fault::{Effect, Fault, Faults, Rule};
use mmblk::layer::shared::Shared;
use mmblk::layer::trace::{Sight, Trace};
use mmblk::queue::{BlockError, BlockOp, BlockQueue};

const LONG: Duration = Duration::from_secs(24 * 60 * 60);
const DEAD: BlockError = BlockError::Io { errno: libc::EIO };

/// A memory device with something around it.
fn around<Q: BlockQueue>(wrap: impl Fn(MemoryQueue) -> Q) -> Rig<Q> {
    let device = MemoryDevice::new(GEOMETRY).unwrap();
    Rig::local(true, |memory: &Memory| (wrap(device.queue(memory.clone()).unwrap()), Box::new(())))
}

fn faulty(seed: u64, rules: Vec<Rule>) -> (Rig<Fault<MemoryQueue>>, Faults) {
    let faults = Faults::new(seed, rules);
    (around(|queue| Fault::new(queue, faults.clone()).unwrap()), faults)
}

#[test]
fn a_traced_device_conforms() {
    conforms(|| around(|queue| Trace::new(queue, Sight::new("memory"))));
}

#[test]
fn a_delayed_device_conforms() {
    let short = Spread { least: Duration::ZERO, most: Duration::from_micros(300) };
    let delays = Delays { seed: 3, read: short, write: short, flush: short, discard: short };
    conforms(|| around(|queue| Delay::new(queue, delays).unwrap()));
}

#[test]
fn a_device_that_stalls_conforms() {
    let short = Spread { least: Duration::ZERO, most: Duration::from_micros(300) };
    let rule = Rule { millionths: 300_000, ..Rule::always(&Kind::ALL, Effect::Stall(short)) };
    conforms(|| faulty(5, vec![rule.clone()]).0);
}

/// Several queues over one: each is a whole device, also while another one's user is at it.
#[test]
fn a_shared_device_conforms() {
    let short = Spread { least: Duration::ZERO, most: Duration::from_micros(300) };
    let delays = Delays { seed: 3, read: short, write: short, flush: short, discard: short };
    conforms(|| {
        let device = MemoryDevice::new(GEOMETRY).unwrap();
        Rig::local(true, |memory| {
            let queue = Delay::new(device.queue(memory.clone()).unwrap(), delays).unwrap();
            let shared = Shared::new(queue);
            let other = shared.queue().unwrap();
            (shared.queue().unwrap(), Box::new(other))
        })
    });
}

/// Half of the depth is everybody's in equal parts: one that floods cannot have the part of another.
#[test]
fn who_floods_a_shared_device_leaves_room() {
    let (held, hand) = Held::new(GEOMETRY);
    let shared = Shared::new(held);
    let (mut greedy, mut modest) = (shared.queue().unwrap(), shared.queue().unwrap());
    let read = || BlockOp::Read { offset: 0, len: 512 };
    for id in 0..8 {
        greedy.submit(id, read()).unwrap();
    }
    assert!(greedy.submit(8, read()).is_err(), "one beyond the depth");
    greedy.flush_submissions();
    // Of eight, two are kept for the other.
    assert_eq!(hand.len(), 6);
    for id in 0..3 {
        modest.submit(id, read()).unwrap();
    }
    modest.flush_submissions();
    assert_eq!(hand.len(), 8, "its own part, at once");
    hand.release(11);
    let ended: Vec<u64> = completions(&mut modest, 3).iter().map(|completion| completion.id).collect();
    assert_eq!(ended, [0, 1, 2]);
    assert_eq!(completions(&mut greedy, 8).len(), 8);
    // One that leaves while the device has something of it leaves no trace.
    for id in 0..4 {
        modest.submit(id, read()).unwrap();
    }
    modest.flush_submissions();
    drop(modest);
    for id in 0..8 {
        greedy.submit(id, read()).unwrap();
    }
    hand.release(12);
    assert_eq!(completions(&mut greedy, 8).len(), 8);
}

/// Users on threads of their own, that all sleep now and then: nobody is forgotten, and each gets what is its own.
#[test]
fn threads_share_a_device() {
    let device = MemoryDevice::new(GEOMETRY).unwrap();
    let memory = fido_core::testing::private_memory(32 << 20);
    let short = Spread { least: Duration::ZERO, most: Duration::from_micros(100) };
    let delays = Delays { seed: 3, read: short, write: short, flush: short, discard: short };
    let shared = Shared::new(Delay::new(device.queue(memory.clone()).unwrap(), delays).unwrap());
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let (mut queue, memory) = (shared.queue().unwrap(), memory.clone());
            scope.spawn(move || {
                for round in 0..200 {
                    let count = 1 + (round * 7 + thread) % 8;
                    let at = |number: u64| (thread << 20) + number * 4096;
                    for number in 0..count {
                        let data = payload(&memory, &pattern(round << 8 | number, 4096));
                        queue.submit(number, BlockOp::Write { offset: at(number), data, durable: false }).unwrap();
                    }
                    completions(&mut queue, count as usize).into_iter().for_each(|c| drop(c.result.unwrap()));
                    queue.submit(0, BlockOp::Read { offset: at(0), len: count as u32 * 4096 }).unwrap();
                    let data = completions(&mut queue, 1).pop().unwrap().result.unwrap();
                    let mut found = vec![0; data.len() as usize];
                    memory.read_header(&data, 0, &mut found).unwrap();
                    let wanted: Vec<u8> = (0..count).flat_map(|number| pattern(round << 8 | number, 4096)).collect();
                    assert!(found == wanted, "thread {thread}, round {round}");
                }
            });
        }
    });
}

#[test]
fn layers_around_layers_conform() {
    let bytes = GEOMETRY.bytes;
    let text = format!(
        "trace(delay(read=0us..200us; fault(do=stall,time=100us,on=write,chance=20%; memory:{bytes},block=512,depth=8)))"
    );
    conforms(|| -> Rig<BoxQueue> {
        let device = open_text(&text).unwrap();
        Rig::local(true, |memory| (device.queue(memory).unwrap(), Box::new(())))
    });
}

#[test]
fn what_passes_is_counted() {
    let sight = Sight::new("memory");
    let mut rig = around(|queue| Trace::new(queue, sight.clone()));
    rig.write(0, &pattern(1, 4096)).unwrap();
    rig.read(0, 512).unwrap();
    rig.read(512, 1024).unwrap();
    rig.read(1, 512).unwrap_err();
    rig.one(zeroes(0, GEOMETRY.bytes, false, true)).unwrap();
    let count = |kind| {
        let count = sight.count(kind);
        assert!(count.longest <= count.time);
        (count.ended, count.failed, count.bytes)
    };
    assert_eq!(count(Kind::Write), (1, 0, 4096));
    assert_eq!(count(Kind::Read), (3, 1, 1536));
    assert_eq!(count(Kind::WriteZeroes), (1, 0, GEOMETRY.bytes));
    assert_eq!(count(Kind::Flush), (0, 0, 0));
}

#[test]
fn a_delayed_completion_comes_after_others() {
    let delays = Delays { read: Spread::of(LONG), ..Delays::default() };
    let mut rig = around(|queue| Delay::new(queue, delays).unwrap());
    rig.submit(1, BlockOp::Read { offset: 0, len: 512 });
    rig.submit(2, BlockOp::Flush);
    assert_eq!(completions(&mut rig.queue, 1)[0].id, 2);
    for id in 3..10 {
        rig.submit(id, BlockOp::Read { offset: 0, len: 512 });
    }
    assert!(rig.queue.submit(10, BlockOp::Flush).is_err(), "what waits has its place of the depth");
}

#[test]
fn a_sleeper_is_woken_for_what_was_delayed() {
    let delays = Delays { flush: Spread::of(Duration::from_millis(5)), ..Delays::default() };
    let mut rig = around(|queue| Delay::new(queue, delays).unwrap());
    for id in 0..3 {
        rig.submit(id, BlockOp::Flush);
        // Each of these sleeps without a limit that would do instead.
        assert_eq!(completions(&mut rig.queue, 1)[0].id, id);
    }
    // And it sleeps: nothing is left that would wake it.
    let mut waiter = Waiter::new(WaitStrategy::Sleep).unwrap();
    let arena = rig.memory.arena().clone();
    waiter = waiter.counting_in(&rig.memory);
    waiter.idle(&mut [&mut rig.queue], Some(Duration::from_millis(1))).unwrap();
    assert_eq!(arena.stats().sleeps.get(), 1);
}

#[test]
fn a_rule_holds_for_its_kinds_and_range_and_as_often_as_it_says() {
    let error = BlockError::NoSpace;
    let (mut rig, faults) = faulty(
        0,
        vec![Rule {
            range: 4096..8192,
            after: 1,
            times: Some(2),
            ..Rule::always(&[Kind::Write], Effect::Fail(error.clone()))
        }],
    );
    let one = [7; 512];
    rig.write(0, &one).unwrap();
    rig.write(8192, &one).unwrap();
    rig.read(4096, 512).unwrap();
    rig.write(4096, &one).unwrap();
    assert_eq!(rig.write(4096, &pattern(1, 512)), Err(error.clone()));
    assert_eq!(rig.write(3584, &pattern(1, 1024)), Err(error), "it touches the range");
    rig.write(4096, &one).unwrap();
    assert_eq!(rig.read(3584, 512).unwrap(), [0; 512], "what failed was not done");
    assert_eq!(faults.injected(), 2);
    faults.set_rules(vec![Rule::always(&[Kind::Flush], Effect::Fail(DEAD))]);
    assert_eq!(rig.one(BlockOp::Flush).unwrap_err(), DEAD);
}

#[test]
fn a_lost_write_succeeds_and_is_not_there() {
    let (mut rig, _) = faulty(0, vec![Rule::always(&[Kind::Write, Kind::WriteZeroes, Kind::Read], Effect::Lose)]);
    rig.write(0, &[7; 512]).unwrap();
    assert_eq!(rig.read(0, 512).unwrap(), [0; 512], "a read is not lost");
}

#[test]
fn a_torn_write_is_there_in_part() {
    let (mut rig, _) = faulty(1, vec![Rule::always(&[Kind::Write], Effect::Tear)]);
    let bytes = pattern(1, 8192);
    let mut lengths = Vec::new();
    for _ in 0..32 {
        rig.one(zeroes(0, 8192, false, false)).unwrap();
        rig.write(0, &bytes).unwrap();
        let found = rig.read(0, 8192).unwrap();
        let blocks = (0..16).take_while(|block| found[block * 512..][..512] == bytes[block * 512..][..512]).count();
        assert!(blocks < 16 && found[blocks * 512..].iter().all(|byte| *byte == 0), "{blocks} blocks, and no more");
        lengths.push(blocks);
    }
    assert!(lengths.iter().any(|length| *length != lengths[0]), "always {} blocks", lengths[0]);
}

#[test]
fn a_cut_leaves_a_part_and_a_dead_device() {
    let cut = Rule { after: 1, ..Rule::always(&[Kind::Write], Effect::Cut) };
    let (mut rig, faults) = faulty(2, vec![cut]);
    let bytes = pattern(1, 8192);
    rig.write(8192, &bytes).unwrap();
    assert_eq!(rig.write(0, &bytes), Err(DEAD));
    assert!(faults.is_dead());
    assert_eq!(rig.read(0, 512).unwrap_err(), DEAD);
    assert_eq!(rig.one(BlockOp::Flush).unwrap_err(), DEAD);
    faults.revive();
    assert_eq!(rig.read(8192, 8192).unwrap(), bytes);
    let found = rig.read(0, 8192).unwrap();
    assert!(found != bytes && found.chunks(512).zip(bytes.chunks(512)).all(|(a, b)| a == b || a == [0; 512]));
}

#[test]
fn a_dead_device_fails_what_it_has() {
    let stall = Rule::always(&[Kind::Read], Effect::Stall(Spread::of(Duration::from_millis(5))));
    let die = Rule::always(&[Kind::Discard], Effect::Die);
    let (mut rig, faults) = faulty(0, vec![stall, die]);
    rig.submit(1, BlockOp::Read { offset: 0, len: 512 });
    rig.submit(2, BlockOp::Flush);
    rig.submit(3, BlockOp::Discard { offset: 0, len: 512 });
    let ended = completions(&mut rig.queue, 3);
    assert!(faults.is_dead() && ended.iter().all(|completion| completion.result.as_ref().unwrap_err() == &DEAD));
}

#[test]
fn a_seed_repeats_a_run() {
    let run = |seed| {
        let half = Rule { millionths: 500_000, ..Rule::always(&[Kind::Write], Effect::Fail(DEAD)) };
        let (mut rig, _) = faulty(seed, vec![half]);
        (0..40).map(|_| rig.write(0, &[1; 512]).is_ok()).collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}
