//! What is asked of a queue: so many requests under way, at random places, for some time.

use std::time::{Duration, Instant};

use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::waiter::Waiter;
use hdrhistogram::Histogram;
use mmblk::queue::{BlockOp, BlockQueue};

use crate::Failure;

/// How long a request may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(20);

/// A kind of request, and how many at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Write, or read.
    pub write: bool,
    /// Bytes of each.
    pub bytes: u32,
    /// Requests under way in each job.
    pub depth: u32,
    /// Threads, each with a queue of its own.
    pub jobs: usize,
}

const fn load(write: bool, bytes: u32, depth: u32, jobs: usize) -> Load {
    Load { write, bytes, depth, jobs }
}

/// All that is asked of each device.
pub const LOADS: [Load; 14] = [
    load(false, 4096, 64, 1),
    load(true, 4096, 64, 1),
    load(false, 512, 64, 1),
    load(true, 512, 64, 1),
    load(false, 4096, 64, 2),
    load(true, 4096, 64, 2),
    load(false, 512, 64, 2),
    load(true, 512, 64, 2),
    load(false, 4096, 1, 1),
    load(true, 4096, 1, 1),
    load(false, 512, 1, 1),
    load(true, 512, 1, 1),
    load(false, 256 << 10, 8, 1),
    load(true, 256 << 10, 8, 1),
];

/// What a job has done.
pub struct Done {
    /// From the first request to the last completion.
    pub elapsed: Duration,
    /// From submission to completion, in nanoseconds; one for each operation.
    pub times: Histogram<u64>,
}

/// A place for a request under way.
struct Place {
    began: Instant,
    /// What it writes.
    data: Payload,
}

/// One job.
struct Job<'a, Q> {
    queue: &'a mut Q,
    load: Load,
    /// How many requests fit on the device side by side.
    places_there: u64,
    random: u64,
    places: Vec<Place>,
    in_flight: u32,
}

/// Puts `load` on `queue` for `time`; `seed` makes the places those of this job.
///
/// # Errors
/// The first request that fails, or takes more than `PATIENCE`.
pub fn run<Q: BlockQueue>(
    queue: &mut Q,
    memory: &Memory,
    load: Load,
    time: Duration,
    seed: u64,
    mut waiter: Waiter,
) -> Result<Done, Failure> {
    let mut job = Job::new(queue, memory, load, seed)?;
    let mut times = Histogram::new(3)?;
    let began = Instant::now();
    for id in 0..load.depth {
        job.submit(u64::from(id), Instant::now())?;
    }
    job.queue.flush_submissions();
    let (mut last, mut unflushed) = (began, false);
    while job.in_flight > 0 {
        if let Some(completion) = job.queue.poll() {
            let id = completion.id;
            drop(completion.result?);
            last = Instant::now();
            let place = job.places.get(id as usize).ok_or("a completion of nothing")?;
            times.record(last.duration_since(place.began).as_nanos() as u64)?;
            job.in_flight -= 1;
            if last.duration_since(began) < time {
                job.submit(id, last)?;
            }
            unflushed = true;
        } else if unflushed {
            job.queue.flush_submissions();
            waiter.busy();
            unflushed = false;
        } else {
            if last.elapsed() > PATIENCE {
                return Err(format!("no completion for {PATIENCE:?}").into());
            }
            waiter.idle(&mut [job.queue], Some(Duration::from_secs(1)))?;
        }
    }
    Ok(Done { elapsed: last.duration_since(began), times })
}

impl<'a, Q: BlockQueue> Job<'a, Q> {
    fn new(queue: &'a mut Q, memory: &Memory, load: Load, seed: u64) -> Result<Self, Failure> {
        let mut places = Vec::new();
        for _ in 0..load.depth {
            let mut data = Payload::new();
            if load.write {
                let mut buf = memory.alloc(load.bytes as usize)?;
                buf.as_mut_slice().fill(0xA5);
                data = buf.into_payload();
            }
            places.push(Place { began: Instant::now(), data });
        }
        let places_there = queue.geometry().bytes / u64::from(load.bytes);
        let random = 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed + 1);
        Ok(Self { queue, load, places_there, random, places, in_flight: 0 })
    }

    /// Submits the next request with that id, as of `now`: the clock is asked once for the end of one request and the
    /// beginning of the next, since asking is a good part of what a request to the null device costs.
    fn submit(&mut self, id: u64, now: Instant) -> Result<(), Failure> {
        let offset = self.next() % self.places_there * u64::from(self.load.bytes);
        let place = self.places.get_mut(id as usize).ok_or("no such place")?;
        let op = if self.load.write {
            BlockOp::Write { offset, data: place.data.clone(), durable: false }
        } else {
            BlockOp::Read { offset, len: self.load.bytes }
        };
        place.began = now;
        self.queue.submit(id, op).map_err(|_| "the queue is full before its depth is reached")?;
        self.in_flight += 1;
        Ok(())
    }

    /// Marsaglia's xorshift: the same places in every way and round.
    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}
