//! One TCP connection: its socket, its receive buffer, its send queue.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use fido_core::addr::DomainId;
use fido_core::heap::{Filling, HeapError};
use fido_core::memory::{CopyError, Memory};
use fido_core::payload::{Hold, Part, Payload};
use fido_core::window::{AddressError, Span};
use rustix::io::Errno;

use super::famine::Blame;
use super::{Limits, socket};
use crate::stream::MAX_QUEUED_BYTES;
use crate::stream::lease::{Account, Lease};
use crate::stream::rescue::{rescue_parts, same_hold};

/// A connection's first buffer: thousands of clients with small requests shall not need thousands of big buffers.
const FIRST_BUFFER_BYTES: usize = 16 << 10;
/// By how much the next buffer is larger when one was filled to the brim.
const BUFFER_GROWTH: usize = 4;
/// The least buffer worth a system call, and the least room left in one.
pub(super) const LEAST_BUFFER_BYTES: usize = 4 << 10;
/// The most bytes handed to the kernel in one call; what is left waits until all others had their turn.
const SEND_BYTES: u64 = 1 << 20;

/// What came of trying to receive.
#[derive(Debug)]
pub(super) enum Received {
    /// Bytes.
    Data(Payload),
    /// The end of the stream.
    End,
    /// Nothing there now.
    Nothing,
    /// Too much of this connection is on loan.
    Blocked,
    /// There is no buffer.
    Starved,
    /// The connection failed.
    Failed,
}

/// What came of trying to send.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// All, or the socket takes no more now.
    Settled,
    /// More can be tried at once.
    More,
    /// The connection failed, or an address in its queue was wild.
    Failed,
}

/// One connection. Once its socket is gone it only waits for its `Closed` event to be delivered.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: Option<OwnedFd>,
    account: Arc<Account>,
    filling: Option<Filling>,
    lease: Weak<Lease>,
    /// Size of the next buffer.
    buffer_bytes: usize,
    /// There may be something to read: an edge was seen and the socket has not been read empty since.
    pub(super) readable: bool,
    /// The socket takes more: no refusal since the last edge.
    pub(super) writable: bool,
    /// A short read does not mean "empty": the stream's end or urgent data is there too.
    pub(super) to_the_end: bool,
    /// The famine in which, or after which, it received last.
    pub(super) fed_in: u64,
    /// In the port's list of connections to read from.
    pub(super) in_reading: bool,
    /// In the port's list of connections to send on.
    pub(super) in_sending: bool,
    /// In the port's list of connections that keep a buffer while they are idle.
    pub(super) in_keeping: bool,
    queue: VecDeque<Part>,
    queued: u64,
    /// Whose bytes were sent under the hold of the queue's front.
    sent_of_front: Vec<DomainId>,
    /// A send was refused: say when there is room.
    pub(super) wants_room: bool,
    /// The other end sends no more.
    pub(super) peer_finished: bool,
    /// We send no more after the queue.
    pub(super) finishing: bool,
    /// And we have said so.
    write_shut: bool,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd, account: Arc<Account>, limits: &Limits) -> Self {
        Self {
            socket: Some(socket),
            account,
            filling: None,
            lease: Weak::new(),
            buffer_bytes: FIRST_BUFFER_BYTES.min(limits.buffer_bytes),
            readable: false,
            writable: true,
            to_the_end: false,
            fed_in: 0,
            in_reading: false,
            in_sending: false,
            in_keeping: false,
            queue: VecDeque::new(),
            queued: 0,
            sent_of_front: Vec::new(),
            wants_room: false,
            peer_finished: false,
            finishing: false,
            write_shut: false,
        }
    }

    /// Receives once.
    pub(super) fn receive(&mut self, memory: &Memory, limits: &Limits) -> Received {
        let Some(fd) = self.socket.as_ref() else { return Received::Nothing };
        if !self.account.admits() {
            return Received::Blocked;
        }
        let mut filling = match self.filling.take() {
            Some(filling) if filling.room() >= LEAST_BUFFER_BYTES => filling,
            _ => match buffer(memory, self.buffer_bytes) {
                Ok(filling) => filling,
                Err(_) => return Received::Starved,
            },
        };
        let room = filling.room();
        match socket::receive(fd, &mut filling, memory.stats()) {
            Ok(0) => {
                self.readable = false;
                Received::End
            }
            Ok(count) => {
                self.readable = count == room || self.to_the_end;
                if count == room {
                    self.buffer_bytes = self.buffer_bytes.saturating_mul(BUFFER_GROWTH).min(limits.buffer_bytes);
                }
                let data = self.lend(&mut filling, count);
                self.filling = Some(filling);
                Received::Data(data)
            }
            Err(Errno::AGAIN) => {
                self.readable = false;
                self.filling = Some(filling);
                Received::Nothing
            }
            Err(Errno::INTR) => {
                self.filling = Some(filling);
                Received::Nothing
            }
            Err(_) => Received::Failed,
        }
    }

    /// Lends the next `count` bytes, under the lease that is out for this buffer if there is one.
    fn lend(&mut self, filling: &mut Filling, count: usize) -> Payload {
        let fresh = filling.is_unlent();
        let piece = filling.lend(count);
        let mut data = Payload::new();
        for part in piece.parts() {
            let current = if fresh { None } else { self.lease.upgrade() };
            let lease = match (current, &part.hold) {
                (Some(lease), _) => lease,
                (None, Some(buffer)) => Lease::new(self.account.clone(), buffer.clone()),
                (None, None) => continue,
            };
            lease.extend(u64::from(part.segment.len));
            self.lease = Arc::downgrade(&lease);
            data.push(part.segment, Some(lease as Hold));
        }
        data
    }

    /// Gives the receive buffer up, as far as this connection is concerned; what is lent of it stays.
    pub(super) fn drop_buffer(&mut self, limits: &Limits) {
        self.filling = None;
        self.buffer_bytes = FIRST_BUFFER_BYTES.min(limits.buffer_bytes);
    }

    /// Whether it holds a receive buffer.
    pub(super) fn has_buffer(&self) -> bool {
        self.filling.is_some()
    }

    /// Whether it can receive without another buffer.
    pub(super) fn has_usable_buffer(&self) -> bool {
        self.filling.as_ref().is_some_and(|filling| filling.room() >= LEAST_BUFFER_BYTES)
    }

    /// How much it is to blame for the famine of that number; `None` if its end would free nothing.
    pub(super) fn blame(&self, famine: u64) -> Option<Blame> {
        let on_loan = self.account.on_loan();
        let still = self.fed_in < famine;
        (self.socket.is_some() && on_loan > 0).then_some(Blame { still, silent: still && !self.readable, on_loan })
    }

    /// Whether it has something to tell the socket.
    pub(super) fn has_to_send(&self) -> bool {
        self.socket.is_some() && (!self.queue.is_empty() || (self.finishing && !self.write_shut))
    }

    /// Whether `bytes` more may be queued.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.queued == 0 || self.queued.saturating_add(bytes) <= MAX_QUEUED_BYTES
    }

    /// Whether the queue has drained enough for a sender that was refused to try again.
    pub(super) fn has_drained(&self) -> bool {
        self.queued <= MAX_QUEUED_BYTES / 2
    }

    /// Whether both directions have ended.
    pub(super) fn is_over(&self) -> bool {
        self.peer_finished && self.write_shut
    }

    /// Queues for sending.
    pub(super) fn enqueue(&mut self, data: Payload) {
        self.queued += data.len();
        self.queue.extend(data.parts().iter().cloned());
    }

    /// Sends from the queue once, and the end of the stream behind it. `spans` is scratch space.
    pub(super) fn transmit(&mut self, memory: &Memory, spans: &mut Vec<Span>) -> Sent {
        if self.socket.is_none() {
            return Sent::Settled;
        }
        if !self.queue.is_empty() {
            match self.send_front(memory, spans) {
                Ok(count) => self.sent(count as u64),
                Err(Errno::AGAIN) => {
                    self.writable = false;
                    return Sent::Settled;
                }
                Err(Errno::INTR) => return Sent::More,
                Err(_) => return Sent::Failed,
            }
        }
        if !self.queue.is_empty() {
            return Sent::More;
        }
        if self.finishing && !self.write_shut {
            self.write_shut = true;
            if self.socket.as_ref().is_some_and(|fd| socket::shutdown_write(fd, memory.stats()).is_err()) {
                return Sent::Failed;
            }
        }
        Sent::Settled
    }

    /// Hands the front of the queue to the kernel. A wild address, which the translation has counted as refused, is
    /// answered like the kernel would answer it.
    fn send_front(&self, memory: &Memory, spans: &mut Vec<Span>) -> Result<usize, Errno> {
        let Some(fd) = self.socket.as_ref() else { return Err(Errno::PIPE) };
        if let Err(error) = self.gather(memory, spans) {
            tracing::warn!(%error, "resetting a connection that was given a wild address to send from");
            return Err(Errno::FAULT);
        }
        let sent = socket::send(fd, spans, memory.stats());
        spans.clear();
        sent
    }

    /// Translates the front of the queue.
    fn gather(&self, memory: &Memory, spans: &mut Vec<Span>) -> Result<(), AddressError> {
        spans.clear();
        let mut bytes = 0;
        for part in self.queue.iter().take(socket::MAX_IOVECS) {
            spans.push(memory.translate(part.segment)?);
            bytes += u64::from(part.segment.len);
            if bytes >= SEND_BYTES {
                break;
            }
        }
        Ok(())
    }

    /// Takes `count` sent bytes off the queue; their holds go at once.
    fn sent(&mut self, mut count: u64) {
        self.queued = self.queued.saturating_sub(count);
        while let Some(front) = self.queue.front_mut() {
            let len = u64::from(front.segment.len);
            if count < len {
                let cut = count as u32;
                if let Some(rest) = front.segment.slice(cut, front.segment.len - cut) {
                    front.segment = rest;
                }
                return;
            }
            count -= len;
            let Some(sent) = self.queue.pop_front() else { return };
            if !self.queue.front().is_some_and(|front| same_hold(front, &sent)) {
                self.sent_of_front.clear();
            } else if !self.sent_of_front.contains(&sent.segment.addr.domain()) {
                self.sent_of_front.push(sent.segment.addr.domain());
            }
        }
    }

    /// Copies into own buffers what is queued and keeps something of `dead`'s alive.
    pub(super) fn rescue(&mut self, dead: DomainId, memory: &Memory) -> Result<(), CopyError> {
        rescue_parts(&mut self.queue, self.sent_of_front.contains(&dead), dead, memory)
    }

    /// Closes the socket and lets go of everything; true if it was open until now.
    pub(super) fn close(&mut self, reset: bool, memory: &Memory) -> bool {
        self.queue.clear();
        self.queued = 0;
        self.sent_of_front.clear();
        self.filling = None;
        self.readable = false;
        self.wants_room = false;
        let Some(fd) = self.socket.take() else { return false };
        socket::close(fd, reset, memory.stats());
        true
    }
}

/// A receive buffer of `wanted` bytes, or of as much of that as there is.
fn buffer(memory: &Memory, wanted: usize) -> Result<Filling, HeapError> {
    let mut len = wanted;
    loop {
        match memory.alloc(len) {
            Ok(buf) => return Ok(Filling::new(buf)),
            Err(error) if len <= LEAST_BUFFER_BYTES => return Err(error),
            Err(_) => len = (len / BUFFER_GROWTH).max(LEAST_BUFFER_BYTES),
        }
    }
}
