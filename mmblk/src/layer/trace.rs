//! The tracing layer: what is asked of a queue, what comes of it and how long that takes.
//!
//! Every request is counted, and logged at its end (level debug, target `mmblk::trace`): its device, kind, place, length,
//! result, and the time from `submit` to the `poll` that reports it.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use fido_core::foreign::Landing;
use fido_core::wait::{PeerView, Source, WakeId};

use super::Kind;
use crate::queue::{BlockCompletion, BlockOp, BlockQueue, Busy, Features, Geometry};
use crate::slab::Slab;

/// What all queues of one device have been asked so far. Clones share it.
#[derive(Debug, Clone)]
pub struct Sight(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    counts: [Cell; Kind::ALL.len()],
}

#[derive(Debug, Default)]
struct Cell {
    ended: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
    nanos: AtomicU64,
    longest: AtomicU64,
}

/// What has come of the requests of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Requests that have ended.
    pub ended: u64,
    /// Those among them that have failed.
    pub failed: u64,
    /// Bytes of the ranges of those that have not.
    pub bytes: u64,
    /// The time that all have taken together.
    pub time: Duration,
    /// The longest time of one.
    pub longest: Duration,
}

impl Sight {
    /// Nothing seen yet, of a device that is called so in the log.
    pub fn new(name: impl Into<String>) -> Self {
        Self(Arc::new(Inner { name: name.into(), counts: Default::default() }))
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What has come of one kind of request so far.
    pub fn count(&self, kind: Kind) -> Count {
        let cell = &self.0.counts[kind as usize];
        let nanos = |cell: &AtomicU64| Duration::from_nanos(cell.load(Relaxed));
        Count {
            ended: cell.ended.load(Relaxed),
            failed: cell.failed.load(Relaxed),
            bytes: cell.bytes.load(Relaxed),
            time: nanos(&cell.nanos),
            longest: nanos(&cell.longest),
        }
    }

    fn enter(&self, asked: &Asked, completion: &BlockCompletion) {
        let took = asked.since.elapsed();
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let cell = &self.0.counts[asked.kind as usize];
        cell.ended.fetch_add(1, Relaxed);
        cell.nanos.fetch_add(nanos, Relaxed);
        cell.longest.fetch_max(nanos, Relaxed);
        match &completion.result {
            Ok(_) => cell.bytes.fetch_add(asked.len, Relaxed),
            Err(_) => cell.failed.fetch_add(1, Relaxed),
        };
        let error = completion.result.as_ref().err().map(ToString::to_string);
        let (device, kind, offset, len) = (self.name(), asked.kind.name(), asked.offset, asked.len);
        tracing::debug!(target: "mmblk::trace", device, kind, offset, len, error, micros = took.as_micros() as u64);
    }
}

/// A request under way.
#[derive(Debug)]
struct Asked {
    id: u64,
    kind: Kind,
    offset: u64,
    len: u64,
    since: Instant,
}

/// A queue that is watched.
#[derive(Debug)]
pub struct Trace<Q> {
    queue: Q,
    sight: Sight,
    asked: Slab<Asked>,
}

impl<Q: BlockQueue> Trace<Q> {
    /// Watches `queue`, on which nothing may be in flight.
    pub fn new(queue: Q, sight: Sight) -> Self {
        Self { queue, sight, asked: Slab::default() }
    }

    fn ask(&mut self, id: u64, kind: Kind, offset: u64, len: u64) -> u64 {
        self.asked.insert(Asked { id, kind, offset, len, since: Instant::now() })
    }
}

impl<Q: BlockQueue> BlockQueue for Trace<Q> {
    fn geometry(&self) -> Geometry {
        self.queue.geometry()
    }

    fn features(&self) -> Features {
        self.queue.features()
    }

    fn resized(&mut self) -> Option<Geometry> {
        let geometry = self.queue.resized()?;
        tracing::debug!(target: "mmblk::trace", device = self.sight.name(), bytes = geometry.bytes, "another size");
        Some(geometry)
    }

    fn submit(&mut self, id: u64, op: BlockOp) -> Result<(), Busy> {
        let (offset, len, _) = op.extent();
        let number = self.ask(id, Kind::of(&op), offset, len);
        self.queue.submit(number, op).inspect_err(|_| _ = self.asked.remove(number))
    }

    fn reaches_foreign(&self) -> bool {
        self.queue.reaches_foreign()
    }

    fn read_into(&mut self, id: u64, offset: u64, landing: Landing) -> Result<(), Landing> {
        let number = self.ask(id, Kind::Read, offset, landing.len());
        self.queue.read_into(number, offset, landing).inspect_err(|_| _ = self.asked.remove(number))
    }

    fn poll(&mut self) -> Option<BlockCompletion> {
        loop {
            let completion = self.queue.poll()?;
            // A queue that ends what it was not given ends nothing of its user's.
            let Some(asked) = self.asked.remove(completion.id) else { continue };
            self.sight.enter(&asked, &completion);
            return Some(BlockCompletion { id: asked.id, ..completion });
        }
    }

    fn flush_submissions(&mut self) {
        self.queue.flush_submissions();
    }
}

impl<Q: BlockQueue> Source for Trace<Q> {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.queue.wake_fd()
    }

    fn wake_id(&self) -> Option<WakeId> {
        self.queue.wake_id()
    }

    fn edge_triggered(&self) -> bool {
        self.queue.edge_triggered()
    }

    fn arm(&mut self) {
        self.queue.arm();
    }

    fn ready(&mut self) -> bool {
        self.queue.ready()
    }

    fn disarm(&mut self) {
        self.queue.disarm();
    }

    fn meet(&mut self, seat: Option<u32>) -> Option<PeerView> {
        self.queue.meet(seat)
    }
}
