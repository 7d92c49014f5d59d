//! The end of a lane that opens connections: streams between two domains without TCP.
//!
//! What a [`Gateway`](super::Gateway) does for the connections of sockets, this does for its user's own: at the other
//! end is a [`LinkPort`](super::LinkPort) that listens to ports ([`LinkPort::listen`](super::LinkPort::listen)), and to
//! both sides it is a [`StreamPort`] like any other. Bytes travel by address and are copied by nobody.
//!
//! On either way at most [`MAX_QUEUED_BYTES`] of a connection are on loan; who receives and keeps them makes the sender
//! wait, as with TCP's window. When the other domain dies all connections are closed.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fido_core::addr::DomainId;
use fido_core::lane::{Change, Lane};
use fido_core::message::Head;
use fido_core::payload::{Hold, MAX_SEGMENTS, Payload};
use fido_core::wait::{PeerView, Source, WakeId};

use super::codec::{Command, Name, Report, next_message, send_next};
use super::link::OUTBOUND;
use super::slab::Slab;
use super::{
    ACKNOWLEDGE_BYTES, MAX_CONNECTIONS, MAX_QUEUED_BYTES, SendError, StreamEvent, StreamId, StreamPort, domain_address,
};
use crate::frame::lies_in;

/// Messages without an event that are taken in one poll.
const SILENT: usize = 64;

/// Why there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The other domain is not there.
    #[error("the domain at the lane's other end is not there")]
    Down,
    /// As many connections as there may be.
    #[error("there are {MAX_CONNECTIONS} connections already, as many as there may be")]
    Connections,
    /// Too much waits for the other domain to take it.
    #[error("{OUTBOUND} messages wait for the other domain already; it takes none, or more slowly than they come")]
    Crowded,
}

/// Opens connections to the domain at the other end of a lane. See the module's head.
#[derive(Debug)]
pub struct DialPort {
    lane: Lane,
    calls: Slab<Call>,
    live: Vec<StreamId>,
    serial: u32,
    events: VecDeque<StreamEvent>,
    /// Taken, but the lane was full.
    outbound: VecDeque<(Head, Payload)>,
    /// A send was refused because too much is outbound.
    crowded: bool,
    /// A loan of either way has ended.
    ended: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Call {
    serial: u32,
    /// Bytes sent, and of them those that the other side has let go of.
    sent: u64,
    returned: Arc<AtomicU64>,
    /// Bytes that the user has let go of, and of them those that the other side knows of.
    taken: Arc<AtomicU64>,
    told: u64,
    wants_room: bool,
    /// The other side has taken it.
    accepted: bool,
    /// The user sends no more.
    finished: bool,
    /// The other side sends no more.
    told_end: bool,
}

impl Call {
    fn on_loan(&self) -> u64 {
        self.sent.saturating_sub(self.returned.load(Ordering::Relaxed))
    }
}

/// A hold that says when it ends.
struct Counted {
    bytes: u64,
    count: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    _hold: Option<Hold>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.count.fetch_add(self.bytes, Ordering::Relaxed);
        // SYNC: pairs with the swap in `settle`. The hold is dropped after this: if it is a loan's, that wakes the port.
        self.ended.store(true, Ordering::Release);
    }
}

/// The same bytes under holds that add to `count` when they end.
fn counted(payload: &Payload, count: &Arc<AtomicU64>, ended: &Arc<AtomicBool>) -> Payload {
    let mut all = Payload::new();
    for part in payload.parts() {
        let bytes = u64::from(part.segment.len);
        let hold = Counted { bytes, count: count.clone(), ended: ended.clone(), _hold: part.hold.clone() };
        all.push(part.segment, Some(Arc::new(hold)));
    }
    all
}

impl DialPort {
    /// Opens connections over `lane`, at whose other end is a [`LinkPort`](super::LinkPort).
    pub fn new(lane: Lane) -> Self {
        Self {
            lane,
            calls: Slab::new(MAX_CONNECTIONS),
            live: Vec::new(),
            serial: 0,
            events: VecDeque::new(),
            outbound: VecDeque::new(),
            crowded: false,
            ended: Arc::default(),
        }
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.calls.len()
    }

    /// Opens a connection to a port of the other domain. [`StreamEvent::Opened`] follows when that has taken it, or
    /// [`StreamEvent::Closed`] if nobody listens there; what is sent before waits with it.
    ///
    /// # Errors
    /// [`DialError`].
    pub fn connect(&mut self, port: u16) -> Result<StreamId, DialError> {
        self.follow_link();
        if !self.lane.is_up() {
            return Err(DialError::Down);
        }
        if self.outbound.len() >= OUTBOUND {
            return Err(DialError::Crowded);
        }
        self.serial = self.serial.wrapping_add(1);
        let call = Call {
            serial: self.serial,
            sent: 0,
            returned: Arc::default(),
            taken: Arc::default(),
            told: 0,
            wants_room: false,
            accepted: false,
            finished: false,
            told_end: false,
        };
        let id = self.calls.insert_with(|_| call).ok_or(DialError::Connections)?;
        self.live.push(id);
        self.say(id, Report::Called(port));
        Ok(id)
    }

    /// The domain's memory.
    #[cfg(test)]
    pub(super) fn lane_memory(&self) -> &fido_core::memory::Memory {
        self.lane.memory()
    }

    fn name(&self, id: StreamId) -> Option<Name> {
        self.calls.get(id).map(|call| Name { id, serial: call.serial })
    }

    /// Says what has no payload.
    fn say(&mut self, id: StreamId, report: Report) {
        if let Some(name) = self.name(id) {
            self.push(report.encode(name).0, Payload::new());
        }
    }

    fn push(&mut self, head: Head, payload: Payload) {
        self.outbound.push_back((head, payload));
        if self.outbound.len() == 1 {
            self.push_out();
        }
    }

    /// Sends what waits, as far as the lane takes it.
    fn push_out(&mut self) {
        while let Some((head, mut payload)) = self.outbound.pop_front() {
            match send_next(&mut self.lane, head, &mut payload) {
                Ok(true) if payload.is_empty() => {}
                Ok(true) => self.outbound.push_front((head, payload)),
                Ok(false) => {
                    // If there is nobody, `Change::Down` follows and clears up.
                    self.outbound.push_front((head, payload));
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "resetting a connection whose bytes cannot be lent");
                    self.abandon(Name::of(&head));
                }
            }
        }
    }

    /// Resets a connection of which bytes are lost: nothing behind them may arrive, least of all a proper end.
    fn abandon(&mut self, name: Name) {
        if self.name(name.id) != Some(name) {
            // Closed already, and that is among what waits.
            return;
        }
        self.outbound.retain(|(head, _)| Name::of(head) != name);
        self.reset(name.id);
    }

    fn follow_link(&mut self) {
        while let Some(change) = self.lane.change() {
            if let Change::Down(_) = change {
                self.outbound.clear();
                for id in std::mem::take(&mut self.live) {
                    self.calls.remove(id);
                    self.events.push_back(StreamEvent::Closed { id });
                }
            }
        }
    }

    fn take(&mut self, head: Head, payload: Payload) {
        match Command::decode(&head, payload.len()) {
            Ok((name, command)) => {
                if self.name(name.id) == Some(name) {
                    self.command(name.id, command, &payload);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a message of the listening domain is refused");
                self.lane.memory().stats().refusals.add(1);
            }
        }
    }

    fn command(&mut self, id: StreamId, command: Command, payload: &Payload) {
        let Some(call) = self.calls.get_mut(id) else { return };
        // Once, and before anything else.
        if call.accepted == (command == Command::Accept) && command != Command::Reset {
            tracing::warn!(?command, "closing a connection: the listening domain says this out of turn");
            self.lane.memory().stats().refusals.add(1);
            return self.close(id);
        }
        match command {
            Command::Accept => {
                call.accepted = true;
                let remote = domain_address(self.lane.peer());
                self.events.push_back(StreamEvent::Opened { id, remote });
            }
            Command::Send if !call.told_end => {
                let data = counted(payload, &call.taken, &self.ended);
                self.events.push_back(StreamEvent::Data { id, data });
            }
            Command::Finish if !call.told_end => {
                call.told_end = true;
                let over = call.finished;
                self.events.push_back(StreamEvent::Finished { id });
                if over {
                    self.close(id);
                }
            }
            Command::Reset => self.close(id),
            Command::Send | Command::Finish => {}
        }
    }

    /// Ends a connection on both sides.
    fn close(&mut self, id: StreamId) {
        self.say(id, Report::Closed);
        if self.calls.remove(id).is_some() {
            self.live.retain(|live| *live != id);
            self.events.push_back(StreamEvent::Closed { id });
        }
    }

    /// Tells both sides of loans that have ended, and of room in the queue.
    fn settle(&mut self) {
        let is_free = self.outbound.len() <= OUTBOUND / 2;
        if self.crowded && is_free {
            self.crowded = false;
            self.ended.store(true, Ordering::Relaxed);
        }
        // SYNC: pairs with the store in `Counted::drop`: what was counted before it is seen below.
        if !self.ended.load(Ordering::Relaxed) || !self.ended.swap(false, Ordering::Acquire) {
            return;
        }
        for at in 0..self.live.len() {
            let Some(&id) = self.live.get(at) else { return };
            let Some(call) = self.calls.get_mut(id) else { continue };
            if call.wants_room && !self.crowded && call.on_loan() <= MAX_QUEUED_BYTES / 2 {
                call.wants_room = false;
                self.events.push_back(StreamEvent::Writable { id });
            }
            let news = call.taken.load(Ordering::Relaxed) - call.told;
            // Below that the other side counts as nothing what it does not know of.
            if news >= ACKNOWLEDGE_BYTES {
                let bytes = u32::try_from(news).unwrap_or(u32::MAX);
                call.told += u64::from(bytes);
                self.say(id, Report::Sent(bytes));
            }
        }
    }
}

impl StreamPort for DialPort {
    fn poll(&mut self) -> Option<StreamEvent> {
        for _ in 0..SILENT {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            self.follow_link();
            if !self.events.is_empty() {
                continue;
            }
            if self.outbound.len() >= 2 * OUTBOUND {
                break;
            }
            match self.lane.recv() {
                Some(Ok((head, payload))) => self.take(head, payload),
                // Bytes of it are lost: it cannot go on.
                Some(Err(refusal)) => self.reset(Name::of(&refusal.head).id),
                None => break,
            }
        }
        self.push_out();
        self.settle();
        self.events.pop_front()
    }

    fn send(&mut self, id: StreamId, mut data: Payload) -> Result<(), SendError> {
        let crowded = self.outbound.len() >= OUTBOUND;
        let Some(call) = self.calls.get_mut(id).filter(|call| !call.finished) else { return Err(SendError::Closed) };
        let on_loan = call.on_loan();
        if crowded || on_loan > 0 && on_loan.saturating_add(data.len()) > MAX_QUEUED_BYTES {
            call.wants_room = true;
            self.crowded |= crowded;
            return Err(SendError::Full(data));
        }
        call.sent += data.len();
        let (serial, returned) = (call.serial, call.returned.clone());
        let (head, _) = Report::Data.encode(Name { id, serial });
        while !data.is_empty() {
            let part = next_message(&mut data, MAX_SEGMENTS);
            let part = counted(&part, &returned, &self.ended);
            self.push(head, part);
        }
        Ok(())
    }

    fn finish(&mut self, id: StreamId) {
        let Some(call) = self.calls.get_mut(id).filter(|call| !call.finished) else { return };
        call.finished = true;
        let over = call.told_end;
        self.say(id, Report::Finished);
        if over {
            self.close(id);
        }
    }

    fn reset(&mut self, id: StreamId) {
        self.close(id);
    }

    fn flush(&mut self) {
        self.push_out();
        self.settle();
        self.lane.flush();
    }

    fn rescue(&mut self, dead: DomainId) {
        let mut lost = Vec::new();
        for (head, payload) in self.outbound.iter_mut().filter(|(_, payload)| lies_in(payload, dead)) {
            match self.lane.memory().copy_in(payload) {
                Ok(Some(copy)) => {
                    let copy = copy.into_payload();
                    // What it replaces counts as returned.
                    *payload = match self.calls.get_mut(Name::of(head).id) {
                        Some(call) => {
                            call.sent += copy.len();
                            counted(&copy, &call.returned, &self.ended)
                        }
                        None => copy,
                    };
                }
                Ok(None) => {}
                Err(_) => lost.push(Name::of(head)),
            }
        }
        self.outbound.retain(|(_, payload)| !lies_in(payload, dead));
        lost.into_iter().for_each(|name| self.abandon(name));
    }
}

impl Source for DialPort {
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
        !self.events.is_empty() || self.ended.load(Ordering::Relaxed) || self.lane.ready()
    }

    fn disarm(&mut self) {
        self.lane.disarm();
    }

    fn meet(&mut self, seat: Option<u32>) -> Option<PeerView> {
        self.lane.meet(seat)
    }
}
