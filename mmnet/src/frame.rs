//! A link-level connection between two domains: Ethernet frames by address over a lane.
//!
//! A frame is a [`Payload`] of at least a header and at most the link's limit, lent to the other side until it drops
//! it. As on a wire, nobody waits for a slow receiver: what arrives is taken off the lane at once and queued, at most
//! [`QUEUE`] frames, and what does not fit is dropped and counted. What is sent while the lane is full waits, at most
//! [`QUEUE`] frames; a sender can ask first, and what it sends all the same is dropped and counted.
//!
//! When the peer dies both queues are emptied, so that its fence can pass.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use fido_core::lane::{Change, Lane, SendError};
use fido_core::memory::Memory;
use fido_core::message::Head;
use fido_core::payload::Payload;
use fido_core::wait::{PeerView, Source, WakeId};

/// Bytes of an Ethernet header.
pub const HEADER_BYTES: usize = 14;
/// The least payload that every link must carry (IPv4's minimum).
pub const MIN_MTU: usize = 576;
/// The largest payload: with its header, a frame has less than 64 KiB.
pub const MAX_MTU: usize = 65_535 - HEADER_BYTES;
/// Frames that wait, in each direction.
pub const QUEUE: usize = 256;

/// The one kind of message: the payload is a frame.
const FRAME: u8 = 0x21;

/// Why a link cannot be had or a frame not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The MTU is out of range.
    #[error("an MTU of {0} bytes; it must be {MIN_MTU} to {MAX_MTU}")]
    Mtu(usize),
    /// The frame is shorter than a header or longer than the link carries.
    #[error("a frame of {len} bytes; this link carries {HEADER_BYTES} to {limit}")]
    Length {
        /// The frame's length.
        len: u64,
        /// The link's limit, header included.
        limit: usize,
    },
}

/// What a link has carried and lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FrameCounts {
    /// Frames given to the lane.
    pub sent: u64,
    /// Frames handed to the receiver.
    pub received: u64,
    /// Frames not sent: no peer, too many waiting, or no memory.
    pub dropped_sending: u64,
    /// Frames that arrived and found the receive queue full.
    pub dropped_receiving: u64,
    /// What arrived and was no frame.
    pub refused: u64,
}

/// Ethernet frames to and from one other domain.
#[derive(Debug)]
pub struct FrameLink {
    lane: Lane,
    limit: usize,
    received: VecDeque<Payload>,
    waiting: VecDeque<Payload>,
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
        let limit = mtu + HEADER_BYTES;
        Ok(Self { lane, limit, received: VecDeque::new(), waiting: VecDeque::new(), counts: FrameCounts::default() })
    }

    /// The longest frame, header included.
    pub fn max_frame_bytes(&self) -> usize {
        self.limit
    }

    /// What it has carried and lost.
    pub fn counts(&self) -> FrameCounts {
        self.counts
    }

    /// The domain's memory.
    pub fn memory(&self) -> &Memory {
        self.lane.memory()
    }

    /// Whether a frame that is sent now will not be dropped for want of room.
    pub fn has_room(&self) -> bool {
        self.lane.is_up() && self.waiting.len() < QUEUE
    }

    /// Sends a frame, wherever in the appliance it lies. Call [`FrameLink::flush`] after a batch.
    ///
    /// # Errors
    /// [`FrameError::Length`] if it is not one. A frame that cannot be sent is dropped and counted, as on a wire.
    pub fn send(&mut self, frame: Payload) -> Result<(), FrameError> {
        let len = frame.len();
        if !self.is_frame(len) {
            return Err(FrameError::Length { len, limit: self.limit });
        }
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

    /// The next frame that arrived.
    pub fn recv(&mut self) -> Option<Payload> {
        self.take_in();
        let frame = self.received.pop_front()?;
        self.counts.received += 1;
        Some(frame)
    }

    /// Hands on what waits and returns what was dropped. Call it before waiting.
    pub fn flush(&mut self) {
        self.take_in();
        self.push_out();
        self.lane.flush();
    }

    /// Counts a frame that its maker could not finish.
    pub(crate) fn count_unsent(&mut self) {
        self.counts.dropped_sending += 1;
    }

    fn is_frame(&self, len: u64) -> bool {
        (HEADER_BYTES as u64..=self.limit as u64).contains(&len)
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
                Some(Ok((head, frame))) if head.kind == FRAME && self.is_frame(frame.len()) => {
                    if self.received.len() < QUEUE {
                        self.received.push_back(frame);
                    } else {
                        self.counts.dropped_receiving += 1;
                    }
                }
                Some(Ok((head, frame))) => {
                    tracing::warn!(kind = head.kind, len = frame.len(), "the peer sent what is no frame of this link");
                    self.lane.memory().stats().refusals.add(1);
                    self.counts.refused += 1;
                }
                // The lane has counted and logged it.
                Some(Err(_)) => self.counts.refused += 1,
                None => return,
            }
        }
    }

    fn push_out(&mut self) {
        while let Some(frame) = self.waiting.pop_front() {
            match self.lane.send(Head { kind: FRAME, ..Head::default() }, frame) {
                Ok(()) => self.counts.sent += 1,
                Err(SendError::Full(frame)) => {
                    self.waiting.push_front(frame);
                    return;
                }
                Err(_) => self.counts.dropped_sending += 1,
            }
        }
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

#[cfg(test)]
mod tests {
    use fido_core::addr::{GlobalAddr, Segment};
    use fido_core::assignment::Transport;
    use fido_core::testing::{TestLink, lane_pair};

    use super::*;

    fn frame(link: &FrameLink, len: usize, byte: u8) -> Payload {
        let mut buf = link.memory().alloc(len).unwrap();
        buf.as_mut_slice().fill(byte);
        buf.into_payload()
    }

    fn pair(slots: u32) -> (FrameLink, FrameLink) {
        let (a, b) = lane_pair(slots, Transport::Pointer);
        (FrameLink::new(a, 1500).unwrap(), FrameLink::new(b, 1500).unwrap())
    }

    #[test]
    fn limits_are_exact() {
        for (mtu, fits) in [(MIN_MTU - 1, false), (MIN_MTU, true), (MAX_MTU, true), (MAX_MTU + 1, false)] {
            assert_eq!(FrameLink::new(lane_pair(4, Transport::Pointer).0, mtu).is_ok(), fits, "{mtu}");
        }
        let (mut a, mut b) = pair(8);
        for (len, fits) in [(13, false), (14, true), (1514, true), (1515, false)] {
            assert_eq!(a.send(frame(&a, len, 1)).is_ok(), fits, "{len}");
        }
        a.flush();
        assert_eq!((b.recv().unwrap().len(), b.recv().unwrap().len()), (14, 1514));
        assert!(b.recv().is_none());
    }

    #[test]
    fn a_receiver_that_does_not_look_loses_frames_and_nobody_waits() {
        let (mut a, mut b) = pair(8);
        for n in 0..2 * QUEUE {
            a.send(frame(&a, 60, n as u8)).unwrap();
            a.flush();
            b.flush();
        }
        a.flush();
        assert_eq!(b.counts().dropped_receiving, QUEUE as u64);
        for n in 0..QUEUE {
            let mut byte = [0];
            let frame = b.recv().unwrap();
            b.memory().read_header(&frame, 0, &mut byte).unwrap();
            assert_eq!(usize::from(byte[0]), n % 256);
        }
        assert!(b.recv().is_none());
        for _ in 0..4 {
            b.flush();
            a.flush();
        }
        assert_eq!(a.memory().heap().used(), 0, "all loans are back");
    }

    #[test]
    fn a_peer_that_takes_nothing_costs_a_bounded_queue() {
        let (mut a, _b) = pair(8);
        let mut sent = 0;
        while a.has_room() {
            a.send(frame(&a, 60, 1)).unwrap();
            sent += 1;
        }
        assert_eq!(sent, 8 + QUEUE);
        a.send(frame(&a, 60, 1)).unwrap();
        assert_eq!((a.counts().dropped_sending, a.counts().sent), (1, 8));
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let (mut bare, b) = lane_pair(8, Transport::Pointer);
        let mut b = FrameLink::new(b, 1500).unwrap();
        let memory = bare.memory().clone();
        let mut wild = Payload::new();
        wild.push(Segment::new(GlobalAddr::from_bits(u64::MAX), 60), Some(std::sync::Arc::new(())));
        let of = |len| memory.alloc(len).unwrap().into_payload();
        for (kind, payload) in [(FRAME, of(13)), (FRAME, of(1515)), (0x20, of(60)), (FRAME, wild), (FRAME, of(60))] {
            bare.send(Head { kind, ..Head::default() }, payload).unwrap();
        }
        bare.flush();
        assert_eq!(b.recv().map(|frame| frame.len()), Some(60));
        assert_eq!((b.counts().refused, b.counts().received), (4, 1));
    }

    #[test]
    fn a_dead_peers_frames_are_let_go() {
        let (mut link, a, b) = TestLink::new(8, Transport::Pointer);
        let (mut a, mut b) = (FrameLink::new(a, 1500).unwrap(), FrameLink::new(b, 1500).unwrap());
        b.send(frame(&b, 60, 1)).unwrap();
        b.flush();
        a.flush();
        drop(b);
        link.kill_b();
        assert!(a.recv().is_none() && !a.has_room());
        assert_eq!(link.a_passes.count(), 1);
        a.send(frame(&a, 60, 2)).unwrap();
        assert_eq!(a.counts().dropped_sending, 1);
        link.fence_b();
        let mut b = FrameLink::new(link.restart_b(), 1500).unwrap();
        b.flush();
        a.flush();
        b.flush();
        a.send(frame(&a, 60, 3)).unwrap();
        a.flush();
        assert_eq!(b.recv().map(|frame| frame.len()), Some(60));
    }
}
