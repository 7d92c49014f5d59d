//! How bytes get into messages and out: copied, as netfront and XenLoop do, or lent.
//!
//! The copying ones are models, written for this benchmark only. They have no TCP above and the ring is ours, so they are
//! better than what they model; Xen's price of a notification is not in them.

use std::collections::VecDeque;
use std::hint::black_box;

use fido_core::heap::ArenaBuf;
use fido_core::memory::Memory;
use fido_core::payload::Payload;

use super::messages::Carrier;
use crate::Failure;

/// Bytes of a FIFO, and of all pages of a ring.
const FIFO_BYTES: usize = 1 << 20;
/// A page of a ring.
pub const PAGE_BYTES: usize = 4096;
/// The most that goes into a FIFO at once: what a packet can have.
pub const PACKET_BYTES: usize = 65_535;
/// The longest message that is sent.
const MESSAGE_BYTES: usize = 64 << 10;
/// Bytes in the buffers that a sender lends in turn, as netperf's ring of send buffers.
const LENT_BYTES: usize = 1 << 20;

/// A FIFO in the own arena: bytes are copied in by the sender and out by the receiver.
pub struct Fifo {
    memory: Memory,
    region: ArenaBuf,
    /// The most bytes that go in at once.
    piece: usize,
    /// Whether each takes as much as the most, as pages do.
    whole: bool,
    at: usize,
    /// Bytes that each message takes which the receiver has not done with.
    flying: VecDeque<usize>,
    used: usize,
    source: Vec<u8>,
    sink: Vec<u8>,
}

impl Fifo {
    /// A FIFO of packets (XenLoop).
    ///
    /// # Errors
    /// If there is no memory.
    pub fn of_packets(memory: Memory) -> Result<Self, Failure> {
        Self::new(memory, PACKET_BYTES, false)
    }

    /// A ring of pages (netfront).
    ///
    /// # Errors
    /// If there is no memory.
    pub fn of_pages(memory: Memory) -> Result<Self, Failure> {
        Self::new(memory, PAGE_BYTES, true)
    }

    fn new(memory: Memory, piece: usize, whole: bool) -> Result<Self, Failure> {
        let region = memory.alloc(FIFO_BYTES)?;
        let (source, sink) = (vec![0xA5; MESSAGE_BYTES], vec![0; MESSAGE_BYTES]);
        Ok(Self { memory, region, piece, whole, at: 0, flying: VecDeque::new(), used: 0, source, sink })
    }
}

impl Carrier for Fifo {
    fn fill(&mut self, bytes: usize, loans: usize) -> Result<Option<Payload>, Failure> {
        while self.flying.len() > loans {
            self.used -= self.flying.pop_front().unwrap_or(0);
        }
        let len = bytes.min(self.piece);
        let takes = if self.whole { self.piece } else { len.next_multiple_of(8) };
        // What does not fit before the end begins anew.
        let (at, skipped) = if self.at + takes > FIFO_BYTES { (0, FIFO_BYTES - self.at) } else { (self.at, 0) };
        if self.used + skipped + takes > FIFO_BYTES {
            return Ok(None);
        }
        let place = self.region.as_mut_slice().get_mut(at..at + len).ok_or("a place outside the FIFO")?;
        place.copy_from_slice(self.source.get(..len).ok_or("a message that is too long")?);
        self.memory.stats().payload_bytes_copied.add(len as u64);
        self.at = at + takes;
        self.used += skipped + takes;
        self.flying.push_back(skipped + takes);
        let mut payload = Payload::new();
        let segment = self.region.segment().slice(at as u32, len as u32).ok_or("a place outside the FIFO")?;
        payload.push(segment, None);
        Ok(Some(payload))
    }

    fn empty(&mut self, payload: &Payload) -> Result<(), Failure> {
        self.memory.copy_to_slice(payload, &mut self.sink)?;
        black_box(&self.sink);
        Ok(())
    }

    fn memory(&self) -> &Memory {
        &self.memory
    }
}

/// Bytes are lent where they lie.
pub struct Lending {
    memory: Memory,
    /// Whether the receiver reads each byte once.
    reads: bool,
    bytes: usize,
    buffers: Vec<Payload>,
    next: usize,
}

impl Lending {
    /// A carrier that copies nothing.
    pub fn new(memory: Memory, reads: bool) -> Self {
        Self { memory, reads, bytes: 0, buffers: Vec::new(), next: 0 }
    }
}

impl Carrier for Lending {
    fn fill(&mut self, bytes: usize, _loans: usize) -> Result<Option<Payload>, Failure> {
        if self.bytes != bytes {
            self.bytes = bytes;
            self.buffers.clear();
            for _ in 0..(LENT_BYTES / bytes.max(1)).clamp(1, 64) {
                let mut buf = self.memory.alloc(bytes)?;
                buf.as_mut_slice().fill(0xA5);
                self.buffers.push(buf.into_payload());
            }
        }
        self.next = (self.next + 1) % self.buffers.len();
        Ok(self.buffers.get(self.next).cloned())
    }

    fn empty(&mut self, payload: &Payload) -> Result<(), Failure> {
        if self.reads {
            self.memory.inspect(payload, |piece| {
                black_box(piece);
            })?;
        }
        Ok(())
    }

    fn memory(&self) -> &Memory {
        &self.memory
    }
}
