//! One ring and one queue of the device: takes chains, asks the device, and gives them back.

use std::sync::Arc;

use fido_core::foreign::{Area, Foreign, Landing};
use fido_core::memory::Memory;
use fido_core::payload::Payload;

use super::chain::Chain;
use super::inflight::Notes;
use super::request::{self, ID_BYTES, Request, Work};
use super::ring::{Ring, RingError};
use crate::queue::{BlockCompletion, BlockError, BlockOp, BlockQueue, Busy};

/// A queue that may go from thread to thread.
pub type Queue = Box<dyn BlockQueue + Send>;

/// What the guest waits for.
#[derive(Debug)]
struct Flight {
    status: Area,
    /// How many bytes of data it gets, if all is well.
    data: u32,
    /// Where a read's bytes have to be copied to, if the device is in another domain.
    landing: Option<Landing>,
}

/// What was taken and could not be handed on yet.
#[derive(Debug)]
enum Next {
    Op(BlockOp),
    Into(u64, Landing),
    /// A write that has to be copied first, for which there was no room.
    Copy(u64, Payload),
}

/// One ring and its queue.
pub struct Serving {
    ring: Ring,
    guest: Arc<Foreign>,
    notes: Option<Notes>,
    memory: Memory,
    queue: Queue,
    /// Writes must be durable at once: the guest does not know of flushes.
    write_through: bool,
    id: [u8; ID_BYTES],
    chain: Chain,
    /// By first descriptor.
    flights: Vec<Option<Flight>>,
    under_way: usize,
    blocked: Option<(u16, Next)>,
    /// Chains of a predecessor, still to be done, the first last.
    again: Vec<u16>,
    /// Up to which position the guest has been told what was given back.
    told: u16,
}

/// What a ring is served with.
pub struct Parts {
    /// The ring.
    pub ring: Ring,
    /// The guest's memory; its window is in the table of `memory`.
    pub guest: Arc<Foreign>,
    /// Where requests under way are noted.
    pub notes: Option<Notes>,
    /// The domain's memory.
    pub memory: Memory,
    /// The device.
    pub queue: Queue,
    /// Writes must be durable at once.
    pub write_through: bool,
    /// The device's identification.
    pub id: [u8; ID_BYTES],
}

impl Serving {
    /// Serves a ring from where it stands. What a predecessor has left under way comes first.
    pub fn new(parts: Parts) -> Self {
        let Parts { mut ring, guest, mut notes, memory, queue, write_through, id } = parts;
        let mut again = Vec::new();
        if let Some(notes) = &mut notes {
            again = notes.recover(ring.next_used());
            ring.take_from(ring.next_used().wrapping_add(again.len() as u16));
            again.reverse();
        }
        let flights = (0..ring.places()).map(|_| None).collect();
        let chain = Chain::default();
        let (under_way, blocked, told) = (0, None, ring.next_used());
        Self { ring, guest, notes, memory, queue, write_through, id, chain, flights, under_way, blocked, again, told }
    }

    /// The ring.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The device's queue.
    pub fn queue(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// What there is to wait for.
    pub fn sources(&mut self) -> (&Ring, &mut Queue) {
        (&self.ring, &mut self.queue)
    }

    /// Whether the device has anything.
    pub fn has_flights(&self) -> bool {
        self.under_way > usize::from(self.blocked.is_some())
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.under_way == 0 && self.blocked.is_none() && self.again.is_empty()
    }

    /// Whether something waits for room, for which nobody rings.
    pub fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }

    /// The queue, and the position of the next chain.
    pub fn end(self) -> (Queue, u16) {
        (self.queue, self.ring.next_available())
    }

    /// Takes chains as long as there is room, and hands them to the device; without `fresh`, only those that a
    /// predecessor had taken. Whether there were any.
    ///
    /// # Errors
    /// What makes the ring unusable. What is under way may still end.
    pub fn take(&mut self, fresh: bool) -> Result<bool, RingError> {
        let mut any = false;
        if let Some((head, next)) = self.blocked.take() {
            any = self.hand_on(head, next);
        }
        let depth = self.queue.geometry().depth as usize;
        // A guest that is answered at once could go on for ever.
        for _ in 0..self.ring.places() {
            if self.blocked.is_some() || self.under_way >= depth {
                break;
            }
            let head = match self.again.pop() {
                Some(head) => head,
                None if !fresh => break,
                None => match self.ring.take()? {
                    Some(head) => head,
                    None => break,
                },
            };
            self.begin(head)?;
            any = true;
        }
        self.queue.flush_submissions();
        Ok(any)
    }

    fn begin(&mut self, head: u16) -> Result<(), RingError> {
        let Some(place) = self.flights.get_mut(usize::from(head)) else { return Err(RingError::Head(head)) };
        if place.is_some() {
            return Err(RingError::Twice(head));
        }
        let collected = self.chain.collect(&self.guest, self.ring.descriptors(), head);
        collected.map_err(|error| RingError::Chain { head, error })?;
        if let Some(notes) = &mut self.notes {
            notes.begin(head);
        }
        let Some(Request { work, status }) = Request::parse(&self.chain) else {
            self.give(head, 0);
            return Ok(());
        };
        *place = Some(Flight { status, data: 0, landing: None });
        self.under_way += 1;
        self.start(head, work);
        Ok(())
    }

    fn start(&mut self, head: u16, work: Work) {
        let durable = self.write_through;
        let next = match work {
            Work::Read { offset, landing } => return self.start_read(head, offset, landing),
            Work::Write { offset, data } if self.queue.reaches_foreign() => {
                Next::Op(BlockOp::Write { offset, data, durable })
            }
            Work::Write { offset, data } => Next::Copy(offset, data),
            Work::Flush => Next::Op(BlockOp::Flush),
            Work::Discard { offset, len } => Next::Op(BlockOp::Discard { offset, len }),
            Work::Zeroes { offset, len, unmap } => Next::Op(BlockOp::WriteZeroes { offset, len, durable, unmap }),
            Work::Identify(landing) => {
                let written = landing.write(&self.id);
                return self.finish(head, request::OK, written as u32);
            }
            Work::Refused(status) => return self.finish(head, status, 0),
        };
        self.hand_on(head, next);
    }

    fn start_read(&mut self, head: u16, offset: u64, landing: Landing) {
        let Ok(len) = u32::try_from(landing.len()) else { return self.finish(head, request::FAILED, 0) };
        let Some(flight) = self.flights.get_mut(usize::from(head)).and_then(Option::as_mut) else { return };
        flight.data = len;
        let next = if self.queue.reaches_foreign() {
            Next::Into(offset, landing)
        } else {
            flight.landing = Some(landing);
            Next::Op(BlockOp::Read { offset, len })
        };
        self.hand_on(head, next);
    }

    /// Hands a request to the device, or keeps it until there is room. Whether it was taken.
    fn hand_on(&mut self, head: u16, next: Next) -> bool {
        let id = u64::from(head);
        let left = match next {
            Next::Op(op) => self.queue.submit(id, op).err().map(|Busy(op)| Next::Op(op)),
            Next::Into(offset, landing) => {
                self.queue.read_into(id, offset, landing).err().map(|landing| Next::Into(offset, landing))
            }
            Next::Copy(offset, data) => return self.copy(head, offset, data),
        };
        self.blocked = left.map(|next| (head, next));
        self.blocked.is_none()
    }

    /// Copies what a guest writes into the own arena, for a device in another domain.
    fn copy(&mut self, head: u16, offset: u64, data: Payload) -> bool {
        if data.is_empty() || data.len() > crate::queue::MAX_REQUEST_BYTES.into() {
            self.finish(head, request::FAILED, 0);
            return true;
        }
        match self.memory.copy_in(&data) {
            Ok(copy) => {
                let data = copy.map(|copy| copy.into_payload()).unwrap_or_default();
                let durable = self.write_through;
                self.hand_on(head, Next::Op(BlockOp::Write { offset, data, durable }))
            }
            Err(fido_core::memory::CopyError::Heap(_)) => {
                self.blocked = Some((head, Next::Copy(offset, data)));
                false
            }
            Err(fido_core::memory::CopyError::Address(_)) => {
                self.finish(head, request::FAILED, 0);
                true
            }
        }
    }

    /// Gives back what the device has finished, and calls the guest if it wants to hear of it. Whether there was
    /// anything.
    pub fn give_back(&mut self, call: impl FnOnce()) -> bool {
        while let Some(BlockCompletion { id, result }) = self.queue.poll() {
            if let Ok(head) = u16::try_from(id) {
                self.complete(head, result);
            }
        }
        let (before, now) = (self.told, self.ring.next_used());
        self.told = now;
        if before != now && self.ring.must_call(before) {
            call();
        }
        before != now
    }

    fn complete(&mut self, head: u16, result: Result<Payload, BlockError>) {
        let Some(flight) = self.flights.get_mut(usize::from(head)).and_then(Option::as_mut) else { return };
        let mut status = request::status(&result);
        if let (Ok(payload), Some(landing)) = (&result, &flight.landing)
            && self.memory.land(payload, landing) != Ok(landing.len())
        {
            status = request::FAILED;
        }
        let data = if status == request::OK { flight.data } else { 0 };
        if let Err(error) = &result {
            tracing::debug!(%error, "a guest's request failed");
        }
        self.finish(head, status, data);
    }

    /// Writes the status and gives the chain back.
    fn finish(&mut self, head: u16, status: u8, data: u32) {
        let Some(flight) = self.flights.get_mut(usize::from(head)).and_then(Option::take) else { return };
        self.under_way -= 1;
        flight.status.write(0, &[status]);
        self.give(head, data + 1);
    }

    fn give(&mut self, head: u16, written: u32) {
        if let Some(notes) = &mut self.notes {
            notes.ending(head);
        }
        self.ring.give(head, written);
        if let Some(notes) = &mut self.notes {
            notes.ended(head, self.ring.next_used());
        }
    }
}
