//! What the way to a null device costs a request, for a profiler: `direct`, used in this thread; `one`, through a lane whose
//! two ends one thread plays in turn, so that the instructions of both can be counted and nothing waits; `two`, with
//! the back end in a thread of its own.
//!
//! ```sh
//! cargo build --release -p mmblk --example way
//! valgrind --tool=callgrind --toggle-collect='way::load' target/release/examples/way one read 4096 64 100000
//! target/release/examples/way two read 4096 64 4000000
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fido_core::assignment::{Transport, WaitStrategy};
use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::testing::{TestLink, private_memory};
use fido_core::waiter::Waiter;
use mmblk::device::{BoxQueue, open_text};
use mmblk::link::back::BackEnd;
use mmblk::link::codec::{Answer, IDENTIFY_ID, Identity};
use mmblk::link::front::LinkQueue;
use mmblk::queue::{BlockOp, BlockQueue};

const USAGE: &str = "usage: way direct|one|two read|write BYTES DEPTH COUNT";
const ARENA_BYTES: u64 = 64 << 20;
const SLOTS: u32 = 512;
const PATIENCE: Duration = Duration::from_secs(5);

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [way, kind, bytes, depth, count] = args.as_slice() else { return Err(USAGE.into()) };
    let load = Load { write: kind == "write", bytes: bytes.parse()?, depth: depth.parse()?, count: count.parse()? };
    let took = match way.as_str() {
        "direct" => direct(&load)?,
        "one" => one_thread(&load)?,
        "two" => two_threads(&load)?,
        _ => return Err(USAGE.into()),
    };
    println!("{way} {kind} {bytes} x {depth}: {:.1} ns", took.as_nanos() as f64 / load.count as f64);
    Ok(())
}

/// What is asked of the queue.
struct Load {
    write: bool,
    bytes: u32,
    depth: u64,
    count: u64,
}

/// The null device.
fn device(memory: &Memory) -> Result<BoxQueue> {
    Ok(open_text("null:268435456,block=512,depth=256")?.queue(memory)?)
}

fn direct(wanted: &Load) -> Result<Duration> {
    let memory = private_memory(ARENA_BYTES);
    let data = payload(&memory, wanted)?;
    load(&mut *device(&memory)?, wanted, &data, || Ok(()))
}

/// Both ends of a link. The answer to who the device is is there before it is asked for, so that nobody has to wait.
fn connected() -> Result<(TestLink, LinkQueue, BackEnd<BoxQueue>)> {
    let (link, front, mut back) = TestLink::sized(SLOTS, Transport::Pointer, ARENA_BYTES);
    let queue = device(back.memory())?;
    let answer = Answer::Identity(Identity { geometry: queue.geometry(), features: queue.features() });
    back.send(answer.encode(IDENTIFY_ID), Payload::new())?;
    Ok((link, LinkQueue::connect(front, PATIENCE)?, BackEnd::new(back, queue)?))
}

fn one_thread(wanted: &Load) -> Result<Duration> {
    let (link, mut front, mut back) = connected()?;
    let data = payload(&link.a().memory, wanted)?;
    load(&mut front, wanted, &data, || {
        back.poll();
        Ok(())
    })
}

fn two_threads(wanted: &Load) -> Result<Duration> {
    let (link, mut front, mut back) = connected()?;
    let (data, over) = (payload(&link.a().memory, wanted)?, AtomicBool::new(false));
    std::thread::scope(|scope| {
        let over = &over;
        scope.spawn(move || {
            let mut waiter = Waiter::new(WaitStrategy::Spin).expect("a waiter");
            while !over.load(Ordering::Relaxed) {
                if back.poll() {
                    waiter.busy();
                } else {
                    back.flush();
                    waiter.idle(&mut back.sources(), Some(Duration::from_millis(50))).expect("a wait");
                }
            }
        });
        let took = load(&mut front, wanted, &data, || Ok(()));
        over.store(true, Ordering::Relaxed);
        took
    })
}

fn payload(memory: &Memory, load: &Load) -> Result<Payload> {
    Ok(memory.alloc(load.bytes as usize)?.into_payload())
}

/// Keeps so many requests under way until so many have ended; `wait` is called when none has.
#[inline(never)]
fn load(
    queue: &mut dyn BlockQueue,
    load: &Load,
    data: &Payload,
    mut wait: impl FnMut() -> Result<()>,
) -> Result<Duration> {
    let places = queue.geometry().bytes / u64::from(load.bytes);
    let op = |turn: u64| {
        let offset = turn.wrapping_mul(0x9E37_79B9) % places * u64::from(load.bytes);
        match load.write {
            true => BlockOp::Write { offset, data: data.clone(), durable: false },
            false => BlockOp::Read { offset, len: load.bytes },
        }
    };
    let began = Instant::now();
    let (mut started, mut ended, mut unflushed) = (0, 0, true);
    while started < load.depth {
        queue.submit(started, op(started)).map_err(|_| "the queue is full")?;
        started += 1;
    }
    while ended < load.count {
        if let Some(completion) = queue.poll() {
            drop(completion.result?);
            ended += 1;
            queue.submit(completion.id, op(started)).map_err(|_| "the queue is full")?;
            started += 1;
            unflushed = true;
        } else {
            if std::mem::take(&mut unflushed) {
                queue.flush_submissions();
            }
            wait()?;
        }
    }
    Ok(began.elapsed())
}
