//! A link-level connection between two domains: Ethernet frames by address over a lane.
//!
//! A frame is lent to the other side until it drops it; its marks are in the message. What arrives is taken off the
//! lane at once and queued, at most [`QUEUE`] frames, and what does not fit is dropped and counted. What is sent while
//! the lane is full waits, at most [`QUEUE`] frames; a sender can ask first, and what it sends all the same is dropped
//! and counted.
//!
//! When the peer dies both queues are emptied, so that its fence can pass.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use fido_core::addr::DomainId;
use fido_core::lane::{Change, Lane, SendError};
use fido_core::memory::Memory;
use fido_core::message::Head;
use fido_core::payload::Payload;
use fido_core::wait::{PeerView, Source, WakeId};

use super::offload::{Offload, VirtioHeader};
use super::port::{Frame, FrameCounts, FrameError, FramePort, MAX_MTU, MIN_MTU, QUEUE, check, lies_in};

/// The one kind of message: the payload is a frame.
const FRAME: u8 = 0x21;

/// Ethernet frames to and from one other domain.
#[derive(Debug)]
pub struct FrameLink {
    lane: Lane,
    mtu: usize,
    received: VecDeque<Frame>,
    waiting: VecDeque<Frame>,
    counts: FrameCounts,
}

impl FrameLink {
    /// Frames over `lane`, each with a payload of at most `mtu` bytes behind its header.
    ///
    /// # Errors
    /// [`FrameError::Mtu`] if that is out of range.
    pub fn new(lane: Lane, mtu: usize) -> Result<Self, FrameError> {
        if !(MIN_MTU..=MAX_MTU).contains(&mtu) {
            return Err(FrameError::Mtu(mtu));
        }
        Ok(Self { lane, mtu, received: VecDeque::new(), waiting: VecDeque::new(), counts: FrameCounts::default() })
    }

    /// Counts a frame that its maker could not finish.
    pub(crate) fn count_unsent(&mut self) {
        self.counts.dropped_sending += 1;
    }

    fn take_in(&mut self) {
        while let Some(change) = self.lane.change() {
            if let Change::Down(_) = change {
                self.received.clear();
                self.waiting.clear();
            }
        }
        // Bounded: what arrives meanwhile waits for the next call.
        for _ in 0..QUEUE {
            match self.lane.recv() {
                Some(Ok((head, payload))) => self.take(head, payload),
                // The lane has counted and logged it.
                Some(Err(_)) => self.counts.refused += 1,
                None => return,
            }
        }
    }

    fn take(&mut self, head: Head, payload: Payload) {
        match self.frame_of(head, payload) {
            Ok(frame) if self.received.len() < QUEUE => self.received.push_back(frame),
            Ok(_) => self.counts.dropped_receiving += 1,
            Err(error) => {
                tracing::warn!(kind = head.kind, %error, "the peer sent what is no frame of this link");
                self.lane.memory().stats().refusals.add(1);
                self.counts.refused += 1;
            }
        }
    }

    fn frame_of(&self, head: Head, payload: Payload) -> Result<Frame, Refused> {
        if head.kind != FRAME {
            return Err(Refused::Kind);
        }
        let offload = Offload::try_from(VirtioHeader::from_words(head.flags, head.args)).map_err(FrameError::from)?;
        check(payload.len(), &offload, self.mtu)?;
        Ok(Frame { offload, payload })
    }

    fn push_out(&mut self) {
        while let Some(Frame { offload, payload }) = self.waiting.pop_front() {
            let (flags, args) = VirtioHeader::from(offload).to_words();
            let len = payload.len();
            match self.lane.send(Head { kind: FRAME, flags, args }, payload) {
                Ok(()) => {
                    self.counts.sent += 1;
                    self.counts.sent_bytes += len;
                }
                Err(SendError::Full(payload)) => {
                    self.waiting.push_front(Frame { offload, payload });
                    return;
                }
                Err(_) => self.counts.dropped_sending += 1,
            }
        }
    }
}

/// Why a message is no frame.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("not a frame's kind of message")]
    Kind,
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl FramePort for FrameLink {
    fn memory(&self) -> &Memory {
        self.lane.memory()
    }

    fn mtu(&self) -> usize {
        self.mtu
    }

    fn counts(&self) -> FrameCounts {
        self.counts
    }

    fn has_room(&self) -> bool {
        self.lane.is_up() && self.waiting.len() < QUEUE
    }

    fn send(&mut self, frame: Frame) -> Result<(), FrameError> {
        check(frame.payload.len(), &frame.offload, self.mtu)?;
        if self.waiting.len() >= QUEUE {
            self.counts.dropped_sending += 1;
            return Ok(());
        }
        self.waiting.push_back(frame);
        if self.waiting.len() == 1 {
            self.push_out();
        }
        Ok(())
    }

    fn recv(&mut self) -> Option<Frame> {
        self.take_in();
        let frame = self.received.pop_front()?;
        self.counts.received += 1;
        self.counts.received_bytes += frame.payload.len();
        Some(frame)
    }

    fn flush(&mut self) {
        self.take_in();
        self.push_out();
        self.lane.flush();
    }

    fn forget(&mut self, dead: DomainId) {
        self.received.retain(|frame| !lies_in(&frame.payload, dead));
        self.waiting.retain(|frame| !lies_in(&frame.payload, dead));
    }
}

impl Source for FrameLink {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.lane.wake_fd()
    }

    fn wake_id(&self) -> Option<WakeId> {
        self.lane.wake_id()
    }

    fn edge_triggered(&self) -> bool {
        self.lane.edge_triggered()
    }

    fn arm(&mut self) {
        self.lane.arm();
    }

    fn ready(&mut self) -> bool {
        !self.received.is_empty() || self.lane.ready()
    }

    fn disarm(&mut self) {
        self.lane.disarm();
    }

    fn meet(&mut self, seat: Option<u32>) -> Option<PeerView> {
        self.lane.meet(seat)
    }
}
