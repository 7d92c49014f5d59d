//! What every block queue must do, whatever is behind it. Each back end's test file runs all of it.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(missing_docs, reason = "a test's helpers")]

pub mod held;
pub mod link;

use std::time::{Duration, Instant};

use fido_core::addr::{GlobalAddr, Segment};
use fido_core::assignment::WaitStrategy;
use fido_core::memory::Memory;
use fido_core::payload::{MAX_SEGMENTS, Payload};
use fido_core::testing::private_memory;
use fido_core::waiter::Waiter;
use mmblk::queue::{BlockCompletion, BlockError, BlockOp, BlockQueue, Features, Geometry, MAX_REQUEST_BYTES};
use proptest::prelude::*;

/// No test may take longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The geometry of every device under test.
pub const GEOMETRY: Geometry = Geometry { bytes: 8 << 20, block: 512, depth: 8 };

/// What a device that a test plays can do.
pub const FEATURES: Features =
    Features { read_only: false, discard: true, write_zeroes: true, volatile_cache: true, preferred_block: 4096 };

/// A queue under test, and the memory of its user.
pub struct Rig<Q> {
    pub queue: Q,
    pub memory: Memory,
    /// A second domain's memory that both the user and the device can see.
    pub peer: Memory,
    /// The memory of the device's domain.
    pub device: Memory,
    /// Whether it stores what is written.
    pub stores: bool,
    /// How often a payload byte is copied on its way.
    pub copies: u64,
    /// Whatever the queue needs to go on.
    pub keep: Box<dyn std::any::Any>,
}

impl<Q: BlockQueue> Rig<Q> {
    /// A queue in the user's own domain.
    pub fn local(stores: bool, make: impl FnOnce(&Memory) -> (Q, Box<dyn std::any::Any>)) -> Self {
        let memory = private_memory(16 << 20);
        let peer = private_memory(2 << 20);
        memory.windows().insert(peer.arena().window().clone());
        let (queue, keep) = make(&memory);
        Self { queue, device: memory.clone(), memory, peer, stores, copies: 0, keep }
    }

    /// Submits what must be taken.
    pub fn submit(&mut self, id: u64, op: BlockOp) {
        assert!(self.queue.submit(id, op).is_ok(), "request {id} was not taken");
    }

    /// The next `count` completions, sleeping in between as a component does.
    pub fn completions(&mut self, count: usize) -> Vec<BlockCompletion> {
        completions(&mut self.queue, count)
    }

    /// One request, start to end.
    pub fn one(&mut self, op: BlockOp) -> Result<Payload, BlockError> {
        self.submit(77, op);
        let completion = self.completions(1).pop().unwrap();
        assert_eq!(completion.id, 77);
        completion.result
    }

    pub fn payload(&self, bytes: &[u8]) -> Payload {
        payload(&self.memory, bytes)
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), BlockError> {
        let data = self.payload(bytes);
        let empty = self.one(BlockOp::Write { offset, data, durable: false })?;
        assert!(empty.is_empty());
        Ok(())
    }

    pub fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>, BlockError> {
        let data = self.one(BlockOp::Read { offset, len })?;
        assert_eq!(data.len(), u64::from(len));
        Ok(self.bytes(&data))
    }

    pub fn bytes(&self, data: &Payload) -> Vec<u8> {
        let mut out = vec![0; data.len() as usize];
        assert_eq!(self.memory.read_header(data, 0, &mut out).unwrap(), out.len());
        out
    }
}

pub fn completions(queue: &mut impl BlockQueue, count: usize) -> Vec<BlockCompletion> {
    let deadline = Instant::now() + PATIENCE;
    let mut waiter = Waiter::new(WaitStrategy::Sleep).unwrap();
    let mut all = Vec::new();
    while all.len() < count {
        queue.flush_submissions();
        match queue.poll() {
            Some(completion) => all.push(completion),
            None => {
                assert!(Instant::now() < deadline, "no completion came");
                waiter.idle(&mut [queue], Some(PATIENCE)).unwrap();
            }
        }
    }
    assert!(queue.poll().is_none(), "a completion too many");
    all
}

pub fn payload(memory: &Memory, bytes: &[u8]) -> Payload {
    let mut buf = memory.alloc(bytes.len()).unwrap();
    buf.as_mut_slice().copy_from_slice(bytes);
    buf.into_payload()
}

/// Bytes that differ from place to place.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (seed.wrapping_mul(31).wrapping_add(i).wrapping_mul(0x9E37_79B9) >> 13) as u8).collect()
}

/// All of it, for a queue that `make` makes.
pub fn conforms<Q: BlockQueue>(make: impl Fn() -> Rig<Q>) {
    reads_what_was_written(&mut make());
    gathers_unaligned_segments(&mut make());
    keeps_its_limits(&mut make());
    refuses_bad_ranges(&mut make());
    refuses_wild_addresses(&mut make());
    holds_its_depth(&mut make());
    discards(&mut make());
    writes_zeroes(&mut make());
    tells_extents(&mut make());
    returns_every_buffer(&mut make());
    counts_bytes_once(&mut make());
}

pub fn reads_what_was_written<Q: BlockQueue>(rig: &mut Rig<Q>) {
    assert_eq!(rig.queue.geometry(), GEOMETRY);
    assert_eq!(rig.read(0, 4096).unwrap(), vec![0; 4096], "a new device reads zeros");
    let bytes = pattern(1, 8192);
    rig.write(512, &bytes).unwrap();
    let data = rig.payload(&bytes);
    rig.one(BlockOp::Write { offset: GEOMETRY.bytes - 8192, data, durable: true }).unwrap();
    rig.one(BlockOp::Flush).unwrap();
    if rig.stores {
        assert_eq!(rig.read(512, 8192).unwrap(), bytes);
        assert_eq!(rig.read(GEOMETRY.bytes - 8192, 8192).unwrap(), bytes);
    }
}

/// A payload of 256 segments at odd places in two domains.
fn scattered<Q>(rig: &Rig<Q>, total: usize) -> (Payload, Vec<u8>) {
    let each = total / MAX_SEGMENTS;
    let (mut data, mut expected) = (Payload::new(), Vec::new());
    for index in 0..MAX_SEGMENTS {
        let len = if index + 1 == MAX_SEGMENTS { total - expected.len() } else { each + index % 2 };
        let bytes = pattern(index as u64, len + 3);
        let memory = if index % 3 == 0 { &rig.peer } else { &rig.memory };
        data.append(payload(memory, &bytes).slice(3, len as u64).unwrap());
        expected.extend_from_slice(&bytes[3..]);
    }
    assert_eq!((data.parts().len(), data.len()), (MAX_SEGMENTS, total as u64));
    (data, expected)
}

pub fn gathers_unaligned_segments<Q: BlockQueue>(rig: &mut Rig<Q>) {
    let (data, expected) = scattered(rig, 256 * 512);
    rig.one(BlockOp::Write { offset: 1024, data, durable: false }).unwrap();
    if rig.stores {
        assert_eq!(rig.read(1024, expected.len() as u32).unwrap(), expected);
    }
}

pub fn keeps_its_limits<Q: BlockQueue>(rig: &mut Rig<Q>) {
    let big = pattern(5, MAX_REQUEST_BYTES as usize);
    rig.write(0, &big).unwrap();
    let found = rig.read(0, MAX_REQUEST_BYTES).unwrap();
    assert!(!rig.stores || found == big);
    let one_past = MAX_REQUEST_BYTES + GEOMETRY.block;
    let size = |result: Result<Payload, BlockError>| matches!(result, Err(BlockError::Size { .. }));
    assert!(size(rig.one(BlockOp::Read { offset: 0, len: one_past })));
    let mut data = rig.payload(&big);
    data.append(rig.payload(&[0; 512]));
    assert!(size(rig.one(BlockOp::Write { offset: 0, data, durable: false })));
    let (mut data, _) = scattered(rig, 256 * 512);
    data.append(rig.payload(&[0; 512]));
    assert_eq!(data.parts().len(), MAX_SEGMENTS + 1);
    assert!(size(rig.one(BlockOp::Write { offset: 0, data, durable: false })));
    assert!(size(rig.one(BlockOp::Read { offset: 0, len: 0 })));
    assert!(size(rig.one(BlockOp::Write { offset: 0, data: Payload::new(), durable: false })));
    assert!(size(rig.one(BlockOp::Discard { offset: 0, len: 0 })));
    assert!(size(rig.one(zeroes(0, 0, false, false))));
}

pub fn refuses_bad_ranges<Q: BlockQueue>(rig: &mut Rig<Q>) {
    for (offset, len) in [(GEOMETRY.bytes, 512), (GEOMETRY.bytes - 512, 1024), (u64::MAX - 511, 512)] {
        let error = BlockError::OutOfRange { offset, len };
        assert_eq!(rig.read(offset, len as u32).unwrap_err(), error);
        assert_eq!(rig.write(offset, &vec![1; len as usize]).unwrap_err(), error);
        assert_eq!(rig.one(BlockOp::Discard { offset, len }).unwrap_err(), error);
        assert_eq!(rig.one(zeroes(offset, len, false, true)).unwrap_err(), error);
    }
    for (offset, len) in [(1, 512), (0, 511), (511, 513)] {
        let error = BlockError::Misaligned { offset, len };
        assert_eq!(rig.read(offset, len as u32).unwrap_err(), error);
        assert_eq!(rig.write(offset, &vec![1; len as usize]).unwrap_err(), error);
    }
    rig.read(0, 512).unwrap();
}

pub fn refuses_wild_addresses<Q: BlockQueue>(rig: &mut Rig<Q>) {
    let before = rig.read(0, 1024).unwrap();
    let id = rig.memory.id();
    let stranger = private_memory(1 << 20).id();
    let at = |id, offset| GlobalAddr::new(id, offset).unwrap();
    let stale = fido_core::addr::DomainId { generation: id.generation.next(), ..id };
    for wild in [at(stranger, 0), at(stale, 0), at(id, rig.memory.arena().len() - 511), at(id, (1 << 40) - 1)] {
        let mut data = rig.payload(&[7; 512]);
        data.push(Segment::new(wild, 512), None);
        let error = rig.one(BlockOp::Write { offset: 0, data, durable: false }).unwrap_err();
        assert!(matches!(error, BlockError::Address(_)), "{error}");
    }
    assert_eq!(rig.read(0, 1024).unwrap(), before, "nothing was written");
}

pub fn holds_its_depth<Q: BlockQueue>(rig: &mut Rig<Q>) {
    for round in 0..3 {
        let depth = u64::from(GEOMETRY.depth);
        for id in 0..depth {
            rig.submit(id + 100 * round, BlockOp::Read { offset: id * 512, len: 512 });
        }
        let busy = rig.queue.submit(depth, BlockOp::Flush);
        assert!(matches!(busy, Err(mmblk::queue::Busy(BlockOp::Flush))), "one past the depth");
        let mut ids: Vec<u64> = rig.completions(depth as usize).iter().map(|c| c.id).collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..depth).map(|id| id + 100 * round).collect::<Vec<_>>());
    }
}

pub fn discards<Q: BlockQueue>(rig: &mut Rig<Q>) {
    if !rig.queue.features().discard {
        let refused = rig.one(BlockOp::Discard { offset: 0, len: 8192 }).unwrap_err();
        return assert_eq!(refused, BlockError::Unsupported);
    }
    let bytes = pattern(9, 64 << 10);
    rig.write(0, &bytes).unwrap();
    rig.one(BlockOp::Discard { offset: 8192, len: 8192 }).unwrap();
    let after = rig.read(0, 64 << 10).unwrap();
    let zeros = [0; 8192];
    assert!(after[8192..16384] == zeros || after[8192..16384] == bytes[8192..16384]);
    if rig.stores {
        assert!(after[..8192] == bytes[..8192] && after[16384..] == bytes[16384..]);
    }
    rig.one(BlockOp::Discard { offset: 0, len: GEOMETRY.bytes }).unwrap();
    assert_eq!(rig.queue.geometry(), GEOMETRY);
}

pub fn zeroes(offset: u64, len: u64, durable: bool, unmap: bool) -> BlockOp {
    BlockOp::WriteZeroes { offset, len, durable, unmap }
}

pub fn writes_zeroes<Q: BlockQueue>(rig: &mut Rig<Q>) {
    let features = rig.queue.features();
    assert!(features.write_zeroes && !features.read_only && features.preferred_block >= GEOMETRY.block);
    let bytes = pattern(11, 256 << 10);
    for (durable, unmap) in [(false, false), (false, true), (true, false), (true, true)] {
        rig.write(0, &bytes).unwrap();
        assert!(rig.one(zeroes(512, 100 << 10, durable, unmap)).unwrap().is_empty());
        let after = rig.read(0, 256 << 10).unwrap();
        let end = 512 + (100 << 10);
        assert!(after[512..end].iter().all(|byte| *byte == 0), "durable {durable}, unmap {unmap}");
        if rig.stores {
            assert!(after[..512] == bytes[..512] && after[end..] == bytes[end..]);
        }
        // Longer than any write may be.
        rig.one(zeroes(0, GEOMETRY.bytes, durable, unmap)).unwrap();
        assert!(rig.read(0, 256 << 10).unwrap().iter().all(|byte| *byte == 0));
    }
    assert!(rig.queue.resized().is_none());
}

pub fn tells_extents<Q: BlockQueue>(rig: &mut Rig<Q>) {
    rig.write(64 << 10, &pattern(3, 64 << 10)).unwrap();
    let (mut at, mut allocated) = (0, Vec::new());
    while at < GEOMETRY.bytes {
        let list = rig.one(BlockOp::Extents { offset: at, len: GEOMETRY.bytes - at }).unwrap();
        for extent in mmblk::extents::read(&list, &rig.memory).unwrap() {
            assert_eq!(extent.len % u64::from(GEOMETRY.block), 0);
            if !extent.hole {
                allocated.push(at..at + extent.len);
            }
            at += extent.len;
        }
    }
    assert_eq!(at, GEOMETRY.bytes);
    let range = 64 << 10..128u64 << 10;
    assert!(!rig.stores || allocated.iter().any(|found| found.start <= range.start && found.end >= range.end));
    let beyond = rig.one(BlockOp::Extents { offset: GEOMETRY.bytes, len: 512 });
    assert!(matches!(beyond, Err(BlockError::OutOfRange { .. })));
}

pub fn returns_every_buffer<Q: BlockQueue>(rig: &mut Rig<Q>) {
    let used = (rig.memory.heap().used(), rig.device.heap().used());
    // Far more than the arenas have, if any of it were kept.
    for _ in 0..64 {
        let lent = rig.one(BlockOp::Read { offset: 0, len: MAX_REQUEST_BYTES / 2 }).unwrap();
        let data = rig.payload(&[1; 65536]);
        rig.one(BlockOp::Write { offset: 0, data, durable: false }).unwrap();
        drop(lent);
    }
    eventually_used(rig, used);
}

/// Waits until both heaps have these bytes in use.
fn eventually_used<Q: BlockQueue>(rig: &mut Rig<Q>, used: (u64, u64)) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        rig.queue.flush_submissions();
        assert!(rig.queue.poll().is_none());
        let now = (rig.memory.heap().used(), rig.device.heap().used());
        if now == used {
            return;
        }
        assert!(Instant::now() < deadline, "{now:?} bytes are in use, not {used:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn counts_bytes_once<Q: BlockQueue>(rig: &mut Rig<Q>) {
    let mut domains = vec![rig.memory.clone(), rig.device.clone()];
    domains.dedup_by_key(|memory| memory.id());
    let sum = || domains.iter().map(|m| m.stats().snapshot()).reduce(|a, b| a.plus(&b)).unwrap();
    let before = sum();
    rig.write(0, &[1; 4096]).unwrap();
    rig.one(BlockOp::Read { offset: 0, len: 1024 }).unwrap();
    rig.one(BlockOp::Discard { offset: 0, len: 8192 }).unwrap();
    rig.read(1, 512).unwrap_err();
    let counted = sum().since(&before);
    assert_eq!((counted.payload_bytes, counted.payload_bytes_copied), (5120, 5120 * rig.copies));
}

/// A random request, in blocks.
#[derive(Debug, Clone)]
pub enum Step {
    Write { block: u64, blocks: u64, seed: u64, durable: bool },
    Read { block: u64, blocks: u64 },
    Flush,
}

pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = || (0u64..200, 1u64..40);
    let step =
        prop_oneof![
            (range(), any::<u64>(), prop::bool::weighted(0.05))
                .prop_map(|((block, blocks), seed, durable)| Step::Write { block, blocks, seed, durable }),
            range().prop_map(|(block, blocks)| Step::Read { block, blocks }),
            Just(Step::Flush),
        ];
    prop::collection::vec(step, 1..40)
}

/// Runs random requests with several in flight against a model. Requests that touch the same bytes as a write in
/// flight wait for it, as nothing is promised about their order.
pub fn follows_the_model<Q: BlockQueue>(rig: &mut Rig<Q>, steps: &[Step]) {
    let mut model = vec![0u8; GEOMETRY.bytes as usize];
    let mut flying: Vec<(u64, u64, Option<Vec<u8>>)> = Vec::new();
    for (id, step) in steps.iter().enumerate() {
        let (start, end) = match step {
            Step::Flush => (0, 0),
            Step::Write { block, blocks, .. } | Step::Read { block, blocks } => (block * 512, (block + blocks) * 512),
        };
        let overlaps = flying.iter().any(|(s, e, _)| start < *e && *s < end);
        if overlaps || flying.len() == GEOMETRY.depth as usize {
            settle(rig, &mut flying, id);
        }
        let range = start as usize..end as usize;
        let (op, expected) = match step {
            Step::Flush => (BlockOp::Flush, None),
            Step::Read { .. } => {
                (BlockOp::Read { offset: start, len: (end - start) as u32 }, Some(model[range].to_vec()))
            }
            Step::Write { seed, durable, .. } => {
                let bytes = pattern(*seed, range.len());
                model[range].copy_from_slice(&bytes);
                let cut = seed % bytes.len() as u64;
                let whole = rig.payload(&bytes);
                let mut data = rig.payload(&bytes[..cut.max(1) as usize]).slice(0, cut).unwrap();
                data.append(whole.slice(cut, whole.len() - cut).unwrap());
                (BlockOp::Write { offset: start, data, durable: *durable }, None)
            }
        };
        rig.submit(id as u64, op);
        flying.push((start, end, expected));
    }
    settle(rig, &mut flying, steps.len());
}

fn settle<Q: BlockQueue>(rig: &mut Rig<Q>, flying: &mut Vec<(u64, u64, Option<Vec<u8>>)>, next: usize) {
    let base = (next - flying.len()) as u64;
    for completion in rig.completions(flying.len()) {
        let found = completion.result.unwrap();
        let (start, _, expected) = &flying[(completion.id - base) as usize];
        match expected {
            Some(bytes) => assert!(!rig.stores || rig.bytes(&found) == *bytes, "wrong bytes read at {start}"),
            None => assert!(found.is_empty()),
        }
    }
    flying.clear();
}
