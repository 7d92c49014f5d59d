//! How fast an array writes whole stripes, against its members alone; and parity, against a copy.
//!
//! What is compared, said in two ways that make one ratio. Of *data*: the bytes that the array's user writes in a second with
//! what *n* - 1 of *n* members take, for the parity rotates and each member carries data in all but one of *n* stripes. Of
//! *what the members write*, parity included ([`FullStripe::with_parity`]): with the sum over all members. Each member is
//! written alone, one after the other, by the same thread, in requests of a chunk at the same depth, until flushed.
//!
//! That sum is what the members could do if they had nothing in common. Where they share a disk, or cost more processor
//! than time (images in the page cache on few processors), the machine cannot do it at once, array or not; compare with the
//! members written together then ([`FullStripe::together`]).

use std::time::{Duration, Instant};

use fido_core::assignment::WaitStrategy;
use fido_core::memory::Memory;
use fido_core::parity::ParityError;
use fido_core::payload::Payload;
use fido_core::waiter::Waiter;

use super::assemble::assemble;
use super::create::{CreateOptions, create};
use super::members::MemberQueue;
use super::{RaidError, RaidOptions};
use crate::queue::{BlockError, BlockOp, BlockQueue};

/// What was measured, in bytes of payload per second.
#[derive(Debug, Clone, PartialEq)]
pub struct FullStripe {
    /// The array: bytes of data.
    pub array: f64,
    /// Each member alone.
    pub alone: Vec<f64>,
    /// All members at the same time: the sum of what they take.
    pub together: f64,
}

impl FullStripe {
    /// What the array has its members write in a second: data and parity.
    pub fn with_parity(&self) -> f64 {
        self.array / self.data_share()
    }

    /// The array against its data members, each alone.
    pub fn to_alone(&self) -> f64 {
        self.array / (self.alone.iter().sum::<f64>() * self.data_share())
    }

    /// The array against its data members, written at the same time.
    pub fn to_together(&self) -> f64 {
        self.array / (self.together * self.data_share())
    }

    fn data_share(&self) -> f64 {
        let members = self.alone.len() as f64;
        (members - 1.0) / members
    }
}

/// Writes `stripes` whole stripes of a new RAID 5 of these members, and as much to each of them alone and to all together.
/// Everything on them is lost. `depth` is in stripes.
///
/// # Errors
/// [`RaidError`] if the array cannot be made or a member fails.
pub fn full_stripe(
    mut members: Vec<MemberQueue>,
    options: &CreateOptions,
    stripes: u64,
    depth: usize,
    memory: &Memory,
) -> Result<FullStripe, RaidError> {
    let failed = |member| move |error| RaidError::Member { member, error };
    let chunk = u64::from(options.chunk);
    // Beyond superblocks and log, as in the array.
    let start = (super::superblock::LOG_OFFSET + options.log_bytes).next_multiple_of(1 << 16);
    let data = buffer(memory, options.chunk as usize)?;
    let mut alone = Vec::new();
    for (index, member) in members.iter_mut().enumerate() {
        let plan = Plan { start, step: chunk, count: stripes, depth };
        alone.push(write(&mut [member], &plan, &data).map_err(failed(index))?);
    }
    let mut all: Vec<&mut MemberQueue> = members.iter_mut().collect();
    let together = write(&mut all, &Plan { start, step: chunk, count: stripes, depth }, &data).map_err(failed(0))?;
    let (_, members) = create(members, options, memory)?;
    let mut array = assemble(members, None, RaidOptions::default(), memory)?;
    let width = array.layout().stripe_bytes();
    let stripes = stripes.min(array.layout().stripes);
    let mut whole = Payload::new();
    while whole.len() < width {
        whole.append(data.clone());
    }
    let plan = Plan { start: 0, step: width, count: stripes, depth };
    let speed = write(&mut [&mut array], &plan, &whole).map_err(failed(0))?;
    array.stop()?;
    Ok(FullStripe { array: speed, alone, together })
}

fn buffer(memory: &Memory, len: usize) -> Result<Payload, RaidError> {
    let mut buf = memory.alloc(len).map_err(RaidError::Memory)?;
    buf.as_mut_slice().iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 7 + at / 509) as u8);
    Ok(buf.into_payload())
}

/// Requests one behind the other.
struct Plan {
    start: u64,
    step: u64,
    count: u64,
    depth: usize,
}

/// Writes `plan` to each of the queues, at the same time, and flushes. Bytes per second, all together.
fn write<Q: BlockQueue>(queues: &mut [&mut Q], plan: &Plan, data: &Payload) -> Result<f64, BlockError> {
    let wait = |error: std::io::Error| BlockError::Io { errno: error.raw_os_error().unwrap_or(libc::EIO) };
    let mut waiter = Waiter::new(WaitStrategy::Adaptive).map_err(wait)?;
    // For each queue: the next request and those in flight. The flush is the last.
    let mut state = vec![(0, 0); queues.len()];
    let began = Instant::now();
    loop {
        let mut moved = false;
        for (queue, (next, flying)) in queues.iter_mut().zip(&mut state) {
            while *next < plan.count && *flying < plan.depth {
                let offset = plan.start + *next * plan.step;
                if queue.submit(*next, BlockOp::Write { offset, data: data.clone(), durable: false }).is_err() {
                    break;
                }
                *next += 1;
                *flying += 1;
            }
            if *next == plan.count && *flying == 0 && queue.submit(*next, BlockOp::Flush).is_ok() {
                *next += 1;
                *flying += 1;
            }
            queue.flush_submissions();
            while let Some(completion) = queue.poll() {
                completion.result?;
                *flying = flying.saturating_sub(1);
                moved = true;
            }
        }
        if state.iter().all(|(next, flying)| *next > plan.count && *flying == 0) {
            break;
        }
        if moved {
            waiter.busy();
        } else {
            let mut sources: Vec<&mut dyn fido_core::wait::Source> = Vec::new();
            queues.iter_mut().for_each(|queue| sources.push(&mut **queue));
            waiter.idle(&mut sources, Some(Duration::from_millis(100))).map_err(wait)?;
        }
    }
    let bytes = plan.count * plan.step * queues.len() as u64;
    Ok(bytes as f64 / began.elapsed().as_secs_f64())
}

/// How fast parity over `sources` payloads of `len` bytes is computed, and how fast as many bytes are copied: bytes read per
/// second of each, the best of several rounds.
///
/// # Errors
/// [`RaidError::Memory`] if the arena has no room.
pub fn parity_speed(memory: &Memory, sources: usize, len: usize) -> Result<(f64, f64), RaidError> {
    let payloads: Vec<Payload> = (0..sources).map(|_| buffer(memory, len)).collect::<Result<_, _>>()?;
    let mut target = memory.alloc(len).map_err(RaidError::Memory)?;
    let (mut parity, mut copy) = (Duration::MAX, Duration::MAX);
    for _ in 0..20 {
        let began = Instant::now();
        memory.parity(&payloads, &mut target, 0, len).map_err(address)?;
        parity = parity.min(began.elapsed());
        let began = Instant::now();
        for payload in &payloads {
            memory.parity(std::slice::from_ref(payload), &mut target, 0, len).map_err(address)?;
        }
        copy = copy.min(began.elapsed());
    }
    let speed = |time: Duration| (sources * len) as f64 / time.as_secs_f64();
    Ok((speed(parity), speed(copy)))
}

fn address(error: ParityError) -> RaidError {
    RaidError::Member { member: 0, error: BlockError::Address(error.to_string()) }
}
