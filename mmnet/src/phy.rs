//! A device for frames as a device of smoltcp: a whole TCP/IP stack over a lane.
//!
//! What is sent is built by the stack in a buffer of the own arena and lent: no copy. What is received is copied once
//! into private memory, because the stack reads a `&[u8]`, and there is no such thing as a reference to memory that a
//! peer may change. (The copy is counted. To spare it for payload, a stack would have to read headers by copy and leave
//! the rest where it is.)
//!
//! The stack computes no checksum of TCP or UDP, and verifies none; what is done instead says [`sums`]. Over IPv4 it
//! leaves the cutting of large segments to the edge; those that arrive it takes whole.

pub mod sums;
#[cfg(test)]
mod tests;

use std::num::{NonZeroU16, NonZeroUsize};

use fido_core::wait::Source;
use smoltcp::phy::{
    Checksum as Sums, ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta, RxToken,
    SegmentationCapabilities, TxToken,
};
use smoltcp::time::Instant;

use crate::frame::{Checksum, Frame, FrameLink, FramePort, HEADER_BYTES, MAX_FRAME_BYTES};

/// Frames that the stack is given before it has to look at other things.
const BATCH: usize = 256;
/// The longest frame that the stack sends to be cut: its IP packet has less than 64 KiB.
const SEGMENTED_BYTES: usize = 65_535;

/// A device for frames as smoltcp wants it.
#[derive(Debug)]
pub struct FramePhy<P: FramePort = FrameLink> {
    port: P,
    /// The received frame, in private memory.
    frame: Vec<u8>,
    /// Frames that may still be given to the stack in this batch.
    left: usize,
    /// The last batch was full.
    more: bool,
    counts: PhyCounts,
}

/// What has gone wrong with frames between the stack and its device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PhyCounts {
    /// Sent by the stack and lost, because there was no memory.
    pub unsent: u64,
    /// Received with a wrong checksum, and dropped.
    pub unsound: u64,
    /// Received and gone before they could be read, with the domain that had lent them.
    pub unreadable: u64,
}

impl FramePhy {
    /// A device over `link`.
    pub fn new(link: FrameLink) -> Self {
        Self::over(link)
    }

    /// The link.
    pub fn link(&self) -> &FrameLink {
        &self.port
    }
}

impl<P: FramePort> FramePhy<P> {
    /// A device over any port.
    pub fn over(port: P) -> Self {
        Self { port, frame: vec![0; MAX_FRAME_BYTES], left: BATCH, more: false, counts: PhyCounts::default() }
    }

    /// The port.
    pub fn port(&self) -> &P {
        &self.port
    }

    /// The port.
    pub fn port_mut(&mut self) -> &mut P {
        &mut self.port
    }

    /// What has gone wrong.
    pub fn counts(&self) -> PhyCounts {
        self.counts
    }

    /// Whether the stack was last told that there are no frames only because it had had a batch of them: so that a busy
    /// sender cannot keep it from everything else. Poll it again.
    pub fn has_more(&self) -> bool {
        self.more
    }

    /// Hands on what was sent. Call it after polling the interface and before waiting.
    pub fn flush(&mut self) {
        self.port.flush();
    }

    /// What to wait for.
    pub fn source(&mut self) -> &mut dyn Source {
        &mut self.port
    }

    /// Copies a received frame into private memory and says how long it is, if it is one for the stack.
    fn take(&mut self, frame: &Frame) -> Option<usize> {
        // The port has checked that.
        let len = usize::try_from(frame.payload.len()).ok().filter(|len| *len <= self.frame.len())?;
        let bytes = self.frame.get_mut(..len)?;
        // A peer that died after the lane's check takes its frame with it.
        if self.port.memory().copy_to_slice(&frame.payload, bytes) != Ok(len) {
            self.counts.unreadable += 1;
            return None;
        }
        if frame.offload.checksum == Checksum::Complete && !sums::is_sound(bytes) {
            self.counts.unsound += 1;
            return None;
        }
        Some(len)
    }
}

impl<P: FramePort> Device for FramePhy<P> {
    type RxToken<'a>
        = Received<'a>
    where
        P: 'a;
    type TxToken<'a>
        = ToSend<'a, P>
    where
        P: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, ToSend<'_, P>)> {
        self.more = false;
        while self.left > 0 {
            let Some(frame) = self.port.recv() else {
                self.left = BATCH;
                return None;
            };
            self.left -= 1;
            if let Some(len) = self.take(&frame) {
                let token = ToSend { port: &mut self.port, unsent: &mut self.counts.unsent, cut: None };
                return Some((Received { frame: &self.frame[..len] }, token));
            }
        }
        (self.left, self.more) = (BATCH, true);
        None
    }

    fn transmit(&mut self, _now: Instant) -> Option<ToSend<'_, P>> {
        let unsent = &mut self.counts.unsent;
        self.port.has_room().then_some(ToSend { port: &mut self.port, unsent, cut: None })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.port.mtu() + HEADER_BYTES;
        let mut sums = ChecksumCapabilities::ignored();
        // There is no mark that would have anybody else compute these.
        (sums.ipv4, sums.icmpv4, sums.icmpv6) = (Sums::Tx, Sums::Tx, Sums::Tx);
        capabilities.checksum = sums;
        let mut segmentation = SegmentationCapabilities::default();
        segmentation.tcpv4 = NonZeroUsize::new(SEGMENTED_BYTES);
        // Not for IPv6: smoltcp 0.14 makes such segments, and then drops them as longer than the MTU.
        capabilities.segmentation = segmentation;
        capabilities
    }
}

/// A received frame.
#[derive(Debug)]
pub struct Received<'a> {
    frame: &'a [u8],
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.frame)
    }
}

/// Leave to send one frame.
#[derive(Debug)]
pub struct ToSend<'a, P> {
    port: &'a mut P,
    unsent: &'a mut u64,
    /// Into segments of what size the edge is to cut it.
    cut: Option<NonZeroU16>,
}

impl<P: FramePort> TxToken for ToSend<'_, P> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let Ok(mut buf) = self.port.memory().alloc(len) else {
            // The stack must have something to write to; the frame is lost, and sent again by who needs it.
            *self.unsent += 1;
            return f(&mut vec![0; len]);
        };
        let result = f(buf.as_mut_slice());
        let offload = sums::mark(buf.as_mut_slice(), self.cut);
        if self.port.send(Frame { offload, payload: buf.into_payload() }).is_err() {
            *self.unsent += 1;
        }
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.cut = meta.segmentation_offload_size;
    }
}
