//! A link-level connection between two domains: Ethernet frames by address over a lane.
//!
//! A frame is lent to the other side until it drops it; its marks are in the message, in which up to three small frames
//! with the same marks go together ([`Bundle`]). What arrives is taken off the lane and queued, at most [`QUEUE`]
//! frames, and what does not fit is dropped and counted. What is sent while
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

use super::bundle::{Bundle, FRAMES, Unbundling};
use super::offload::{Offload, VirtioHeader};
use super::port::{
    Frame, FrameCounts, FrameError, FramePort, MAX_FRAME_BYTES, MAX_MTU, MIN_MTU, QUEUE, check, lies_in,
};

/// The one kind of message: the payload is a frame, or as many as [`Bundle`] allows.
const FRAME: u8 = 0x21;
/// Messages taken off the lane at once for a receiver that takes frames one by one.
const BATCH: usize = 32;

/// Ethernet frames to and from one other domain.
#[derive(Debug)]
pub struct FrameLink {
    lane: Lane,
    mtu: usize,
    received: VecDeque<Frame>,
    /// Frames that may still be joined by others.
    open: Bundle,
    /// Found the lane full.
    waiting: VecDeque<Bundle>,
    /// Frames in `waiting`.
    waiting_frames: usize,
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
        Ok(Self {
            lane,
            mtu,
            received: VecDeque::new(),
            open: Bundle::default(),
            waiting: VecDeque::new(),
            waiting_frames: 0,
            counts: FrameCounts::default(),
        })
    }

    fn queued(&self) -> usize {
        self.waiting_frames + self.open.frames()
    }

    fn follow_link(&mut self) {
        while let Some(change) = self.lane.change() {
            if let Change::Down(_) = change {
                self.received.clear();
                self.waiting.clear();
                (self.open, self.waiting_frames) = (Bundle::default(), 0);
            }
        }
    }

    /// Takes at most `limit` messages off the lane; what arrives meanwhile waits for the next call.
    fn take_in(&mut self, limit: usize) {
        self.follow_link();
        for _ in 0..limit {
            match self.lane.recv() {
                Some(Ok((head, payload))) => self.take(head, payload),
                // The lane has counted and logged it.
                Some(Err(_)) => self.counts.refused += 1,
                None => return,
            }
        }
    }

    /// Takes off the lane what there is room for. The rest waits in the lane, so that its sender sees it fill up; should
    /// that stand still, the lane itself looks for what is returned.
    fn take_what_fits(&mut self) {
        self.follow_link();
        while self.received.len() + FRAMES <= QUEUE {
            match self.lane.recv() {
                Some(Ok((head, payload))) => self.take(head, payload),
                Some(Err(_)) => self.counts.refused += 1,
                None => return,
            }
        }
    }

    fn take(&mut self, head: Head, payload: Payload) {
        let frames = match frames_of(head, payload) {
            Ok(frames) => frames,
            Err(error) => return self.refuse(head, &error),
        };
        for frame in frames {
            if let Err(error) = check(frame.payload.len(), &frame.offload, self.mtu) {
                self.refuse(head, &error.into());
            } else if self.received.len() < QUEUE {
                self.received.push_back(frame);
            } else {
                self.counts.dropped_receiving += 1;
            }
        }
    }

    #[cold]
    fn refuse(&mut self, head: Head, error: &Refused) {
        tracing::warn!(kind = head.kind, %error, "the peer sent what is no frame of this link");
        self.lane.memory().stats().refusals.add(1);
        self.counts.refused += 1;
    }

    /// Sends what waits, as far as the lane takes it.
    fn push_out(&mut self) {
        while let Some(bundle) = self.waiting.pop_front() {
            self.waiting_frames -= bundle.frames();
            if let Some(bundle) = self.give(bundle) {
                self.waiting_frames += bundle.frames();
                self.waiting.push_front(bundle);
                return;
            }
        }
    }

    /// Sends the frames that have been put together, behind those that wait.
    fn close_bundle(&mut self) {
        if self.open.frames() == 0 {
            return;
        }
        let mut left = Some(std::mem::take(&mut self.open));
        if self.waiting.is_empty() {
            left = left.and_then(|bundle| self.give(bundle));
        }
        if let Some(bundle) = left {
            self.waiting_frames += bundle.frames();
            self.waiting.push_back(bundle);
        }
    }

    /// Gives a bundle to the lane; back it comes if that is full.
    fn give(&mut self, bundle: Bundle) -> Option<Bundle> {
        let (frames, len, lens, offload) = (bundle.frames(), bundle.len(), bundle.lens, bundle.offload);
        let (flags, args) = VirtioHeader::from(offload).to_words(bundle.boundaries());
        match self.lane.send(Head { kind: FRAME, flags, args }, bundle.payload) {
            Ok(()) => {
                self.counts.sent += frames as u64;
                self.counts.sent_bytes += len;
                None
            }
            Err(SendError::Full(payload)) => Some(Bundle { offload, payload, lens }),
            Err(_) => {
                self.counts.dropped_sending += frames as u64;
                None
            }
        }
    }
}

/// The frames in a message.
fn frames_of(head: Head, payload: Payload) -> Result<Unbundling, Refused> {
    if head.kind != FRAME {
        return Err(Refused::Kind);
    }
    let (header, boundaries) = VirtioHeader::from_words(head.flags, head.args);
    let offload = Offload::try_from(header).map_err(FrameError::from)?;
    if payload.is_empty() {
        return Err(FrameError::Length { len: 0, limit: MAX_FRAME_BYTES }.into());
    }
    Ok(Unbundling::new(offload, payload, boundaries))
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
        self.lane.is_up() && self.queued() < QUEUE
    }

    fn send(&mut self, frame: Frame) -> Result<(), FrameError> {
        check(frame.payload.len(), &frame.offload, self.mtu)?;
        if self.queued() >= QUEUE || !self.lane.is_up() {
            self.counts.dropped_sending += 1;
            return Ok(());
        }
        if let Some(frame) = self.open.add(frame) {
            self.close_bundle();
            // An empty bundle takes any frame.
            let _ = self.open.add(frame);
        }
        if self.open.is_full() {
            self.close_bundle();
        }
        Ok(())
    }

    fn recv(&mut self) -> Option<Frame> {
        // Also while frames are here: they may be those of a peer that is dead.
        self.follow_link();
        if self.received.is_empty() {
            self.take_in(BATCH);
        }
        let frame = self.received.pop_front()?;
        self.counts.received += 1;
        self.counts.received_bytes += frame.payload.len();
        Some(frame)
    }

    fn flush(&mut self) {
        self.take_what_fits();
        self.push_out();
        self.close_bundle();
        self.lane.flush();
    }

    fn forget(&mut self, dead: DomainId) {
        self.received.retain(|frame| !lies_in(&frame.payload, dead));
        let open = std::mem::take(&mut self.open);
        for bundle in std::mem::take(&mut self.waiting).into_iter().chain([open]) {
            let mut kept = Bundle::default();
            // What was together fits together.
            bundle.into_frames().filter(|frame| !lies_in(&frame.payload, dead)).for_each(|frame| drop(kept.add(frame)));
            self.waiting.extend((kept.frames() > 0).then_some(kept));
        }
        self.waiting_frames = self.waiting.iter().map(Bundle::frames).sum();
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
