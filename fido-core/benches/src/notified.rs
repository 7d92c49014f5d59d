//! A lane whose sides wake each other by events, as front and back ends of Xen's devices do: for the models that Fido is
//! compared with.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use fido_core::lane::{Lane, SendError};
use fido_core::message::Head;
use fido_core::payload::Payload;
use fido_core::wait::Source;

/// The events of a lane: the one that wakes this side, and the other side's.
#[derive(Debug)]
pub struct Events {
    /// Wakes this side.
    pub own: OwnedFd,
    /// Wakes the other side.
    pub other: OwnedFd,
}

/// A lane with notifications.
#[derive(Debug)]
pub struct Notified {
    lane: Lane,
    events: Events,
}

impl Notified {
    /// A lane whose other side waits for an event.
    pub fn new(lane: Lane, events: Events) -> Self {
        Self { lane, events }
    }

    /// Sends, and does not wake anybody yet.
    ///
    /// # Errors
    /// The lane's.
    pub fn send(&mut self, head: Head, payload: Payload) -> Result<(), SendError> {
        self.lane.send(head, payload)
    }

    /// Wakes the other side whatever it does.
    pub fn notify(&mut self) {
        self.lane.flush();
        // It cannot be full of what is 2^64 - 1 notifications.
        let _ = rustix::io::write(&self.events.other, &1_u64.to_ne_bytes());
    }

    /// Sends, and wakes the other side.
    ///
    /// # Errors
    /// The lane's; nobody is woken then.
    pub fn send_and_notify(&mut self, head: Head, payload: Payload) -> Result<(), SendError> {
        self.send(head, payload)?;
        self.notify();
        Ok(())
    }

    /// The next message.
    pub fn recv(&mut self) -> Option<(Head, Payload)> {
        self.lane.recv()?.ok()
    }

    /// Returns loans.
    pub fn flush(&mut self) {
        self.lane.flush();
    }

    /// Messages that the other side has not done with.
    pub fn loans(&self) -> usize {
        self.lane.loans()
    }
}

impl Source for Notified {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.events.own.as_fd()
    }

    fn arm(&mut self) {
        // Nothing to read: nobody has notified.
        let _ = rustix::io::read(&self.events.own, &mut [0_u8; 8]);
    }

    fn ready(&mut self) -> bool {
        self.lane.ready()
    }

    fn disarm(&mut self) {
        // Or what was to be noticed once would be ready for ever.
        self.lane.disarm();
    }
}
