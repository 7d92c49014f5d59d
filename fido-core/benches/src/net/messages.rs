//! A side that speaks over a lane: its connections are messages, and a carrier says how bytes get into messages and out.

use std::time::{Duration, Instant};

use fido_core::assignment::WaitStrategy;
use fido_core::lane::{Lane, SendError};
use fido_core::memory::Memory;
use fido_core::message::Head;
use fido_core::payload::Payload;
use fido_core::wait::Source;
use fido_core::waiter::Waiter;

use super::netperf::{Side, Turn};
use super::{PATIENCE, SILENCE};
use crate::Failure;
use crate::notified::Notified;

const OPEN: u8 = 1;
const ACCEPT: u8 = 2;
const DATA: u8 = 3;
const FINISH: u8 = 4;
/// Messages that are handed on, and loans that are returned, together at the most.
const BATCH: u32 = 16;

/// A lane, however its sides wake each other.
pub trait Wire: Source {
    /// Sends, and need not wake anybody.
    fn put(&mut self, head: Head, payload: Payload) -> Result<(), SendError>;
    /// The next message.
    fn take(&mut self) -> Option<(Head, Payload)>;
    /// Wakes the other side for what was put, if need be.
    fn hand_on(&mut self);
    /// Returns loans.
    fn settle(&mut self);
    /// Takes in what the other side has returned.
    fn collect(&mut self);
    /// Messages with payload that the other side has not done with.
    fn loans(&self) -> usize;
}

impl Wire for Lane {
    fn put(&mut self, head: Head, payload: Payload) -> Result<(), SendError> {
        self.send(head, payload)
    }

    fn take(&mut self) -> Option<(Head, Payload)> {
        self.recv()?.ok()
    }

    fn hand_on(&mut self) {
        self.flush();
    }

    fn settle(&mut self) {
        self.flush();
    }

    fn collect(&mut self) {
        self.flush();
    }

    fn loans(&self) -> usize {
        Lane::loans(self)
    }
}

impl Wire for Notified {
    fn put(&mut self, head: Head, payload: Payload) -> Result<(), SendError> {
        self.send(head, payload)
    }

    fn take(&mut self) -> Option<(Head, Payload)> {
        self.recv()
    }

    fn hand_on(&mut self) {
        self.notify();
    }

    fn settle(&mut self) {
        // Who waits for room sleeps.
        self.notify();
    }

    fn collect(&mut self) {
        self.flush();
    }

    fn loans(&self) -> usize {
        Notified::loans(self)
    }
}

/// How bytes get into messages and out.
pub trait Carrier {
    /// At most `bytes` bytes of a message; nothing if there is no room. `loans` messages are out.
    fn fill(&mut self, bytes: usize, loans: usize) -> Result<Option<Payload>, Failure>;
    /// Receives: what is done with the bytes before they are let go of.
    fn empty(&mut self, payload: &Payload) -> Result<(), Failure>;
    /// The domain's memory.
    fn memory(&self) -> &Memory;
}

/// The side.
pub struct Messages<W, C> {
    wire: W,
    carrier: C,
    waiter: Waiter,
    datagrams: bool,
    /// Put and not handed on.
    put: u32,
    /// Taken and not returned.
    taken: u32,
    /// The other side has finished.
    ended: bool,
}

impl<W: Wire, C: Carrier> Messages<W, C> {
    /// A side of that lane.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(wire: W, carrier: C, wait: WaitStrategy) -> Result<Self, Failure> {
        let waiter = Waiter::new(wait)?.counting_in(carrier.memory());
        Ok(Self { wire, carrier, waiter, datagrams: false, put: 0, taken: 0, ended: false })
    }

    /// Sees to everything that the other side may wait for, and waits.
    fn idle(&mut self, timeout: Duration) -> Result<(), Failure> {
        if self.put > 0 {
            self.wire.hand_on();
            self.put = 0;
        } else if self.taken > 0 {
            self.wire.settle();
        } else {
            self.waiter.idle(&mut [&mut self.wire], Some(timeout))?;
            self.wire.collect();
        }
        self.taken = 0;
        Ok(())
    }

    fn put(&mut self, kind: u8, mut payload: Payload) -> Result<(), Failure> {
        let head = Head { kind, ..Head::default() };
        let mut since = None;
        loop {
            match self.wire.put(head, payload) {
                Ok(()) => break,
                Err(SendError::Full(back)) => payload = back,
                Err(error) => return Err(error.into()),
            }
            self.be_patient(&mut since, "room in the ring")?;
        }
        self.waiter.busy();
        self.put += 1;
        if self.put >= BATCH {
            self.wire.hand_on();
            self.put = 0;
        }
        Ok(())
    }

    /// Waits once, for what must come.
    fn be_patient(&mut self, since: &mut Option<Instant>, what: &str) -> Result<(), Failure> {
        if since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
            return Err(format!("no {what} for {PATIENCE:?}").into());
        }
        self.idle(SILENCE)
    }

    /// The next message; nothing only with datagrams.
    fn take(&mut self) -> Result<Option<(Head, Payload)>, Failure> {
        let mut since = None;
        loop {
            if let Some(message) = self.wire.take() {
                self.waiter.busy();
                self.taken += 1;
                if self.taken >= BATCH {
                    self.wire.settle();
                    self.taken = 0;
                }
                return Ok(Some(message));
            }
            if self.datagrams && since.is_some_and(|since: Instant| since.elapsed() > SILENCE) {
                return Ok(None);
            }
            self.be_patient(&mut since, "message")?;
        }
    }

    fn expect(&mut self, kind: u8) -> Result<(), Failure> {
        loop {
            match self.take()? {
                Some((head, _)) if head.kind == kind => return Ok(()),
                // A datagram of the test before, which nobody waited for.
                Some((Head { kind: DATA, .. }, _)) => {}
                Some((head, _)) => return Err(format!("a message of kind {} instead of {kind}", head.kind).into()),
                None => return Err("no message".into()),
            }
        }
    }
}

impl<W: Wire, C: Carrier> Side for Messages<W, C> {
    fn open(&mut self, turn: &Turn, active: bool) -> Result<(), Failure> {
        self.datagrams = turn.test.is_udp();
        self.ended = false;
        if self.datagrams {
            return Ok(());
        }
        if active {
            self.put(OPEN, Payload::new())?;
            return self.expect(ACCEPT);
        }
        self.expect(OPEN)?;
        self.put(ACCEPT, Payload::new())
    }

    fn send(&mut self, bytes: usize) -> Result<(), Failure> {
        let (mut left, mut since) = (bytes, None);
        while left > 0 {
            match self.carrier.fill(left, self.wire.loans())? {
                Some(payload) => {
                    left -= payload.len() as usize;
                    self.put(DATA, payload)?;
                }
                None => self.be_patient(&mut since, "room for bytes")?,
            }
        }
        Ok(())
    }

    fn receive(&mut self, _most: usize) -> Result<usize, Failure> {
        if self.ended {
            return Ok(0);
        }
        match self.take()? {
            None => Ok(0),
            Some((Head { kind: DATA, .. }, payload)) => {
                self.carrier.empty(&payload)?;
                Ok(payload.len() as usize)
            }
            Some((Head { kind: FINISH, .. }, _)) => {
                self.ended = true;
                Ok(0)
            }
            Some((head, _)) => Err(format!("a message of kind {}", head.kind).into()),
        }
    }

    fn finish(&mut self) -> Result<(), Failure> {
        self.put(FINISH, Payload::new())
    }

    fn close(&mut self) -> Result<(), Failure> {
        if self.put > 0 {
            self.wire.hand_on();
        }
        self.wire.settle();
        (self.put, self.taken) = (0, 0);
        Ok(())
    }

    fn copied(&self) -> Option<u64> {
        Some(self.carrier.memory().stats().payload_bytes_copied.get())
    }
}
