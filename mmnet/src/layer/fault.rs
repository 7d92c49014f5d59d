//! The fault-injecting layer: what a bad wire does to frames, in both directions, each in so many of a million cases.
//!
//! With one seed and the same frames in the same order the same happens, but for the moments. Nobody's bytes are changed:
//! a frame is damaged in a copy.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use fido_core::addr::DomainId;
use fido_core::dice::Dice;
use fido_core::later::Later;
use fido_core::memory::Memory;
use fido_core::wait::{PeerView, Source, WakeId};
use serde::Deserialize;

use crate::frame::{Checksum, Frame, FrameCounts, FrameError, FramePort, QUEUE, check, lies_in};

/// A frame that is reordered comes so much later than it would.
pub const LATE: Duration = Duration::from_millis(1);
/// Frames that wait in the layer at most.
pub const MAX_WAITING: usize = 1024;
/// The longest delay, jitter included, in microseconds.
const MAX_DELAY: u64 = 10_000_000;
const MILLION: u32 = 1_000_000;

/// What happens, in how many of a million cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Faults {
    /// Repeats the choices of a run.
    pub seed: u64,
    /// A frame is lost.
    pub loss: u32,
    /// A frame comes twice.
    pub duplication: u32,
    /// One bit of a frame is wrong. A frame whose checksum is still to be computed is lost instead: it would be computed
    /// over the damage, and nobody could notice.
    pub corruption: u32,
    /// A frame comes [`LATE`], so that others overtake it.
    pub reordering: u32,
    /// Microseconds that every frame takes.
    pub delay: u64,
    /// Microseconds that it takes in addition at most, each time others.
    pub jitter: u64,
}

/// Why that cannot happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FaultsError {
    /// More often than always.
    #[error("{what} in {millionths} of a million cases; it must be 0 to {MILLION}")]
    Often {
        /// What.
        what: &'static str,
        /// How often.
        millionths: u32,
    },
    /// For too long.
    #[error("a delay of {0} microseconds with its jitter; it must be at most {MAX_DELAY}")]
    Delay(u64),
}

impl Faults {
    /// Whether they are within their limits.
    ///
    /// # Errors
    /// [`FaultsError`] that names what is not.
    pub fn check(&self) -> Result<(), FaultsError> {
        let rates = [
            ("loss", self.loss),
            ("duplication", self.duplication),
            ("corruption", self.corruption),
            ("reordering", self.reordering),
        ];
        if let Some((what, millionths)) = rates.into_iter().find(|(_, millionths)| *millionths > MILLION) {
            return Err(FaultsError::Often { what, millionths });
        }
        let delay = self.delay.saturating_add(self.jitter);
        if delay > MAX_DELAY { Err(FaultsError::Delay(delay)) } else { Ok(()) }
    }
}

/// To how many frames what has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FaultCounts {
    /// Lost, those included that were to be damaged and could not be.
    pub lost: u64,
    /// Came twice.
    pub duplicated: u64,
    /// Damaged.
    pub corrupted: u64,
    /// Came late, for others to overtake.
    pub reordered: u64,
    /// Lost because [`MAX_WAITING`] others waited.
    pub crowded_out: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Out,
    In,
}

/// A port behind a bad wire.
#[derive(Debug)]
pub struct Faulty<P> {
    port: P,
    faults: Faults,
    dice: Dice,
    waiting: Later<(Way, Frame)>,
    arrived: VecDeque<Frame>,
    counts: FaultCounts,
}

impl<P: FramePort> Faulty<P> {
    /// Spoils what `port` sends and receives; `faults` have been checked.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub fn new(port: P, faults: Faults) -> io::Result<Self> {
        let waiting = Later::around(&port)?;
        let (arrived, counts) = Default::default();
        Ok(Self { port, faults, dice: Dice::new(faults.seed), waiting, arrived, counts })
    }

    /// The port.
    pub fn port(&self) -> &P {
        &self.port
    }

    /// What has happened so far.
    pub fn faults(&self) -> FaultCounts {
        self.counts
    }

    fn pass(&mut self, way: Way, frame: Frame) {
        if self.dice.happens(self.faults.loss) {
            self.counts.lost += 1;
            return;
        }
        let damaged = self.dice.happens(self.faults.corruption);
        let Some(frame) = (if damaged { self.damaged(frame) } else { Some(frame) }) else {
            self.counts.lost += 1;
            return;
        };
        if self.dice.happens(self.faults.duplication) {
            self.counts.duplicated += 1;
            self.pass_one(way, frame.clone());
        }
        self.pass_one(way, frame);
    }

    fn pass_one(&mut self, way: Way, frame: Frame) {
        let mut wait = Duration::from_micros(self.faults.delay + self.dice.roll(self.faults.jitter));
        if self.dice.happens(self.faults.reordering) {
            self.counts.reordered += 1;
            wait += LATE;
        }
        if wait.is_zero() {
            self.deliver(way, frame);
        } else if self.waiting.len() >= MAX_WAITING {
            self.counts.crowded_out += 1;
        } else {
            self.waiting.push(Instant::now() + wait, (way, frame));
        }
    }

    /// A copy with one bit wrong; `None` if nobody would notice, or there is no room for it.
    fn damaged(&mut self, frame: Frame) -> Option<Frame> {
        if matches!(frame.offload.checksum, Checksum::Needed { .. }) {
            return None;
        }
        let mut copy = self.port.memory().copy_in(&frame.payload).ok()??;
        let bit = self.dice.roll(copy.len() as u64 * 8 - 1);
        copy.as_mut_slice()[bit as usize / 8] ^= 1 << (bit % 8);
        self.counts.corrupted += 1;
        Some(Frame::from(copy.into_payload()))
    }

    fn deliver(&mut self, way: Way, frame: Frame) {
        match way {
            // It has been checked, and a damaged one is as long as it was.
            Way::Out => _ = self.port.send(frame),
            Way::In => self.arrived.push_back(frame),
        }
    }

    fn deliver_due(&mut self) {
        while let Some((way, frame)) = self.waiting.pop() {
            self.deliver(way, frame);
        }
    }
}

impl<P: FramePort> FramePort for Faulty<P> {
    fn memory(&self) -> &Memory {
        self.port.memory()
    }

    fn mtu(&self) -> usize {
        self.port.mtu()
    }

    fn counts(&self) -> FrameCounts {
        self.port.counts()
    }

    fn has_room(&self) -> bool {
        self.port.has_room()
    }

    fn send(&mut self, frame: Frame) -> Result<(), FrameError> {
        check(frame.payload.len(), &frame.offload, self.mtu())?;
        self.pass(Way::Out, frame);
        Ok(())
    }

    fn recv(&mut self) -> Option<Frame> {
        self.deliver_due();
        for _ in 0..QUEUE {
            if !self.arrived.is_empty() {
                break;
            }
            let frame = self.port.recv()?;
            self.pass(Way::In, frame);
        }
        self.arrived.pop_front()
    }

    fn flush(&mut self) {
        self.deliver_due();
        self.port.flush();
    }

    fn forget(&mut self, dead: DomainId) {
        self.arrived.retain(|frame| !lies_in(&frame.payload, dead));
        self.waiting.retain(|(_, frame)| !lies_in(&frame.payload, dead));
        self.port.forget(dead);
    }
}

impl<P: FramePort> Source for Faulty<P> {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.waiting.fd()
    }

    fn wake_id(&self) -> Option<WakeId> {
        Some(self.waiting.id())
    }

    fn arm(&mut self) {
        self.port.arm();
        self.waiting.arm();
    }

    fn ready(&mut self) -> bool {
        !self.arrived.is_empty() || self.waiting.is_due() || self.port.ready()
    }

    fn disarm(&mut self) {
        self.port.disarm();
        self.waiting.disarm();
    }

    fn meet(&mut self, seat: Option<u32>) -> Option<PeerView> {
        self.port.meet(seat)
    }
}
