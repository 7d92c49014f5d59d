//! The delaying layer: each completion comes as long after its request as is asked for, or when the device has it,
//! whichever is later. Requests wait beside each other, as on a disk with many heads.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use fido_core::foreign::Landing;
use fido_core::wait::{PeerView, Source, WakeId};

use super::Kind;
use crate::queue::{BlockCompletion, BlockOp, BlockQueue, Busy, Features, Geometry};
use crate::slab::Slab;
use fido_core::dice::Dice;
use fido_core::later::Later;

/// A time from `least` to `most`, each as likely as the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spread {
    /// The shortest.
    pub least: Duration,
    /// The longest; if it is less than `least`, all are `least`.
    pub most: Duration,
}

impl Spread {
    /// Always this.
    pub fn of(time: Duration) -> Self {
        Self { least: time, most: time }
    }

    pub(super) fn pick(self, dice: &mut Dice) -> Duration {
        let range = self.most.saturating_sub(self.least);
        self.least + Duration::from_nanos(dice.roll(u64::try_from(range.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// How long each kind of request takes at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Delays {
    /// Repeats the choices of a run.
    pub seed: u64,
    /// Reads, and questions for extents.
    pub read: Spread,
    /// Writes, and write-zeroes.
    pub write: Spread,
    /// Flushes.
    pub flush: Spread,
    /// Discards.
    pub discard: Spread,
}

impl Delays {
    fn of(&self, kind: Kind) -> Spread {
        match kind {
            Kind::Read | Kind::Extents => self.read,
            Kind::Write | Kind::WriteZeroes => self.write,
            Kind::Flush => self.flush,
            Kind::Discard => self.discard,
        }
    }
}

/// A queue whose completions take their time.
#[derive(Debug)]
pub struct Delay<Q> {
    queue: Q,
    delays: Delays,
    dice: Dice,
    /// What the device has: the caller's id, and when it may end.
    asked: Slab<(u64, Instant)>,
    ended: Later<BlockCompletion>,
}

impl<Q: BlockQueue> Delay<Q> {
    /// Delays what `queue` answers, on which nothing may be in flight.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub fn new(queue: Q, delays: Delays) -> io::Result<Self> {
        let ended = Later::around(&queue)?;
        Ok(Self { queue, delays, dice: Dice::new(delays.seed), asked: Slab::default(), ended })
    }

    /// Whether it has as many requests as the queue may have: those that wait count.
    fn is_full(&self) -> bool {
        self.asked.len() + self.ended.len() >= self.queue.geometry().depth as usize
    }

    fn ask(&mut self, id: u64, kind: Kind) -> u64 {
        let wait = self.delays.of(kind).pick(&mut self.dice);
        self.asked.insert((id, Instant::now() + wait))
    }
}

impl<Q: BlockQueue> BlockQueue for Delay<Q> {
    fn geometry(&self) -> Geometry {
        self.queue.geometry()
    }

    fn features(&self) -> Features {
        self.queue.features()
    }

    fn resized(&mut self) -> Option<Geometry> {
        self.queue.resized()
    }

    fn submit(&mut self, id: u64, op: BlockOp) -> Result<(), Busy> {
        if self.is_full() {
            return Err(Busy(op));
        }
        let number = self.ask(id, Kind::of(&op));
        self.queue.submit(number, op).inspect_err(|_| _ = self.asked.remove(number))
    }

    fn reaches_foreign(&self) -> bool {
        self.queue.reaches_foreign()
    }

    fn read_into(&mut self, id: u64, offset: u64, landing: Landing) -> Result<(), Landing> {
        if self.is_full() {
            return Err(landing);
        }
        let number = self.ask(id, Kind::Read);
        self.queue.read_into(number, offset, landing).inspect_err(|_| _ = self.asked.remove(number))
    }

    fn poll(&mut self) -> Option<BlockCompletion> {
        while let Some(completion) = self.queue.poll() {
            // A queue that ends what it was not given ends nothing of its user's.
            if let Some((id, moment)) = self.asked.remove(completion.id) {
                self.ended.push(moment, BlockCompletion { id, ..completion });
            }
        }
        self.ended.pop()
    }

    fn flush_submissions(&mut self) {
        self.queue.flush_submissions();
    }
}

impl<Q: BlockQueue> Source for Delay<Q> {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.ended.fd()
    }

    fn wake_id(&self) -> Option<WakeId> {
        Some(self.ended.id())
    }

    fn arm(&mut self) {
        self.queue.arm();
        self.ended.arm();
    }

    fn ready(&mut self) -> bool {
        self.ended.is_due() || self.queue.ready()
    }

    fn disarm(&mut self) {
        self.queue.disarm();
        self.ended.disarm();
    }

    fn meet(&mut self, seat: Option<u32>) -> Option<PeerView> {
        self.queue.meet(seat)
    }
}
