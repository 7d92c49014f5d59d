//! Sides that send bare frames over a link: what a link carries without any protocol above.

use std::time::{Duration, Instant};

use fido_core::assignment::WaitStrategy;
use fido_core::lane::Lane;
use fido_core::payload::Payload;
use fido_core::waiter::Waiter;
use mmnet::frame::{FrameLink, FramePort};

use super::netperf::{Side, Turn};
use super::{PATIENCE, SILENCE};
use crate::Failure;

const MTU: usize = 1500;
/// Frames that are handed on, or let go of, together at the most.
const BATCH: u32 = 32;

/// A link, whose frames are datagrams.
pub struct Frames {
    link: FrameLink,
    waiter: Waiter,
    /// What is sent again and again.
    frame: Payload,
    unflushed: u32,
}

impl Frames {
    /// A side of that lane.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(lane: Lane) -> Result<Self, Failure> {
        let link = FrameLink::new(lane, MTU)?;
        let waiter = Waiter::new(WaitStrategy::Adaptive)?.counting_in(link.memory());
        Ok(Self { link, waiter, frame: Payload::new(), unflushed: 0 })
    }

    fn count(&mut self) {
        self.unflushed += 1;
        if self.unflushed >= BATCH {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.link.flush();
        self.unflushed = 0;
    }

    fn idle(&mut self, timeout: Duration) -> Result<(), Failure> {
        self.flush();
        Ok(self.waiter.idle(&mut [&mut self.link], Some(timeout))?)
    }
}

impl Side for Frames {
    fn open(&mut self, turn: &Turn, _active: bool) -> Result<(), Failure> {
        let mut buf = self.link.memory().alloc(turn.bytes)?;
        buf.as_mut_slice().fill(0xFF);
        self.frame = buf.into_payload();
        Ok(())
    }

    fn send(&mut self, _bytes: usize) -> Result<(), Failure> {
        let mut since = None;
        while !self.link.has_room() {
            if since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                return Err("no room for a frame".into());
            }
            self.idle(SILENCE)?;
        }
        self.waiter.busy();
        self.link.send(self.frame.clone().into())?;
        self.count();
        Ok(())
    }

    fn receive(&mut self, _most: usize) -> Result<usize, Failure> {
        let mut since = None;
        loop {
            if let Some(frame) = self.link.recv() {
                self.waiter.busy();
                let bytes = frame.payload.len() as usize;
                drop(frame);
                self.count();
                return Ok(bytes);
            }
            if since.get_or_insert_with(Instant::now).elapsed() > SILENCE {
                return Ok(0);
            }
            self.idle(SILENCE)?;
        }
    }

    fn finish(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn close(&mut self) -> Result<(), Failure> {
        self.flush();
        Ok(())
    }

    fn copied(&self) -> Option<u64> {
        Some(self.link.memory().stats().payload_bytes_copied.get())
    }
}
