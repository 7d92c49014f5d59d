//! The inside's end: connections that another domain owns, over a lane, as a [`StreamPort`].
//!
//! Received bytes are on loan from wherever they lie; dropping a payload returns it, and the outside reads on. What is
//! sent is lent to the outside, message by message, until it has been sent. The outside says from time to time how
//! much that is, so what a connection has queued is known here, up to a quarter of [`MAX_QUEUED_BYTES`].
//!
//! When the outside dies, all its connections are closed. What the inside has to do if a third domain dies whose bytes
//! it has sent is nothing: the outside [rescues](super::Gateway::rescue) them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use fido_core::lane::{Change, Lane};
use fido_core::message::Head;
use fido_core::payload::{MAX_SEGMENTS, Payload};
use fido_core::wait::{PeerView, Source, WakeId};

use super::codec::{Command, Name, Report, next_message, send_next};
use super::slab::Slab;
use super::{
    ACKNOWLEDGE_BYTES, MAX_CONNECTIONS, MAX_QUEUED_BYTES, SendError, StreamEvent, StreamId, StreamPort, domain_address,
};

/// Messages that wait because the lane is full, before sends are refused. At twice as many, which finishes, resets and
/// answers to a broken outside can make, nothing more is received either: answers are not queued without bound.
pub(super) const OUTBOUND: usize = 1024;
/// Messages without an event that are taken in one poll.
const SILENT: usize = 64;

/// The connections of another domain's port.
#[derive(Debug)]
pub struct LinkPort {
    lane: Lane,
    connections: Slab<Connection>,
    /// Ports that the outside may call itself.
    ports: HashSet<u16>,
    /// By what the outside calls them. Its ids begin anew when it does; ours do not, so that an answer that comes too
    /// late never goes to somebody else.
    by_wire: HashMap<StreamId, StreamId>,
    events: VecDeque<StreamEvent>,
    /// Taken, but the lane was full.
    outbound: VecDeque<(Head, Payload)>,
    /// Refused because too much is outbound.
    waiting: VecDeque<StreamId>,
}

#[derive(Debug)]
struct Connection {
    wire: Name,
    /// To which port it was called, if it was.
    port: Option<u16>,
    /// Bytes sent that the outside has not acknowledged.
    outstanding: u64,
    wants_room: bool,
    /// In the port's list of those refused because too much is outbound.
    in_waiting: bool,
    /// Nothing may be sent any more: finished or reset.
    ended: bool,
    /// Nothing of it is of interest any more but its end.
    reset: bool,
}

impl Connection {
    /// Whether `bytes` more may be on the way. As the outside acknowledges late, a quarter counts as nothing.
    fn has_room(&self, bytes: u64) -> bool {
        self.outstanding <= ACKNOWLEDGE_BYTES || self.outstanding.saturating_add(bytes) <= MAX_QUEUED_BYTES
    }

    fn has_drained(&self) -> bool {
        self.outstanding <= MAX_QUEUED_BYTES / 2
    }
}

impl LinkPort {
    /// The inside's end of `lane`, at whose other end is a [`Gateway`](super::Gateway).
    pub fn new(lane: Lane) -> Self {
        Self {
            lane,
            connections: Slab::new(MAX_CONNECTIONS),
            ports: HashSet::new(),
            by_wire: HashMap::new(),
            events: VecDeque::new(),
            outbound: VecDeque::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Takes connections that the domain at the other end opens itself to that port
    /// ([`DialPort`](super::DialPort)) from now on.
    pub fn listen(&mut self, port: u16) {
        self.ports.insert(port);
    }

    /// To which port the domain at the other end opened a connection itself; `None` if it came from further outside.
    pub fn called_port(&self, id: StreamId) -> Option<u16> {
        self.connections.get(id)?.port
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// The domain's memory.
    #[cfg(test)]
    pub(super) fn lane_memory(&self) -> &fido_core::memory::Memory {
        self.lane.memory()
    }

    /// Messages that wait, and connections that wait for them.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> (usize, usize) {
        (self.outbound.len(), self.waiting.len())
    }

    /// What the outside has not returned.
    #[cfg(test)]
    pub(super) fn lane_loans(&self) -> usize {
        self.lane.loans()
    }

    fn follow_link(&mut self) {
        while let Some(change) = self.lane.change() {
            if let Change::Down(peer) = change {
                tracing::info!(%peer, connections = self.connections.len(), "the outside is gone");
                self.outbound.clear();
                self.waiting.clear();
                for (_, id) in self.by_wire.drain() {
                    self.connections.remove(id);
                    self.events.push_back(StreamEvent::Closed { id });
                }
            }
        }
    }

    /// Takes one message; whatever the peer says, the worst that follows is an end of its connections.
    fn take(&mut self, head: Head, payload: Payload) {
        let mut room = [0; 16];
        let mut header = &room[..0];
        if Report::has_header(&head) {
            match self.lane.memory().read_header(&payload, 0, &mut room) {
                Ok(count) => header = room.get(..count).unwrap_or_default(),
                Err(_) => return self.refuse(Name::of(&head)),
            }
        }
        match Report::decode(&head, payload.len(), header) {
            Ok((name, Report::Opened(remote))) => self.opened(name, remote, None),
            Ok((name, Report::Called(port))) => self.called(name, port),
            Ok((name, report)) => self.report(name, report, payload),
            Err(error) => {
                tracing::warn!(%error, "a message of the outside is refused");
                self.lane.memory().stats().refusals.add(1);
            }
        }
    }

    fn called(&mut self, wire: Name, port: u16) {
        if !self.ports.contains(&port) {
            tracing::info!(port, "nobody listens to the port that was called");
            return self.push(Command::Reset.encode(wire), Payload::new());
        }
        self.opened(wire, domain_address(self.lane.peer()), Some(port));
        if self.named(wire).is_some() {
            self.push(Command::Accept.encode(wire), Payload::new());
        }
    }

    fn opened(&mut self, wire: Name, remote: SocketAddr, port: Option<u16>) {
        let connection =
            Connection { wire, port, outstanding: 0, wants_room: false, in_waiting: false, ended: false, reset: false };
        let known = self.by_wire.contains_key(&wire.id);
        let made = if known { None } else { self.connections.insert_with(|_| connection) };
        let Some(id) = made else {
            tracing::warn!(?wire, "the outside opened a connection twice, or too many");
            self.lane.memory().stats().refusals.add(1);
            self.push(Command::Reset.encode(wire), Payload::new());
            return;
        };
        self.by_wire.insert(wire.id, id);
        self.events.push_back(StreamEvent::Opened { id, remote });
    }

    /// What the connection is called here, if it still is.
    fn named(&self, wire: Name) -> Option<StreamId> {
        let id = *self.by_wire.get(&wire.id)?;
        self.connections.get(id).filter(|connection| connection.wire == wire).map(|_| id)
    }

    fn report(&mut self, wire: Name, report: Report, data: Payload) {
        let Some(id) = self.named(wire) else { return };
        let Some(connection) = self.connections.get_mut(id) else { return };
        match report {
            Report::Closed => {
                if connection.in_waiting {
                    self.waiting.retain(|waiting| *waiting != id);
                }
                self.by_wire.remove(&wire.id);
                self.connections.remove(id);
                self.events.push_back(StreamEvent::Closed { id });
            }
            Report::Sent(bytes) => {
                connection.outstanding = connection.outstanding.saturating_sub(u64::from(bytes));
                self.tell_room(id);
            }
            Report::Data if !connection.reset => self.events.push_back(StreamEvent::Data { id, data }),
            Report::Finished if !connection.reset => self.events.push_back(StreamEvent::Finished { id }),
            Report::Opened(_) | Report::Called(_) | Report::Data | Report::Finished => {}
        }
    }

    /// Bytes of this connection are lost, because their address was wild or could not be read: it cannot go on.
    fn refuse(&mut self, wire: Name) {
        if let Some(id) = self.named(wire) {
            self.reset(id);
        } else {
            self.push(Command::Reset.encode(wire), Payload::new());
        }
    }

    /// Bytes of this connection cannot be sent: nothing behind them may arrive, least of all a proper end.
    fn abandon(&mut self, wire: Name) {
        let connection = self.named(wire).and_then(|id| self.connections.get(id));
        // Of one that is reset already, that is among what waits.
        if connection.is_some_and(|connection| !connection.reset) {
            self.outbound.retain(|(head, _)| Name::of(head) != wire);
        }
        self.refuse(wire);
    }

    /// Says `Writable` if it was asked for and is true.
    fn tell_room(&mut self, id: StreamId) {
        let crowded = self.outbound.len() > OUTBOUND / 2;
        let Some(connection) = self.connections.get_mut(id) else { return };
        if !connection.wants_room || !connection.has_drained() {
            return;
        }
        if crowded {
            if !std::mem::replace(&mut connection.in_waiting, true) {
                self.waiting.push_back(id);
            }
            return;
        }
        connection.wants_room = false;
        self.events.push_back(StreamEvent::Writable { id });
    }

    /// Sends a message after those that wait.
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
                    tracing::warn!(%error, "resetting a connection whose reply cannot be lent");
                    self.abandon(Name::of(&head));
                }
            }
        }
        for id in std::mem::take(&mut self.waiting) {
            if let Some(connection) = self.connections.get_mut(id) {
                connection.in_waiting = false;
            }
            self.tell_room(id);
        }
    }
}

impl Source for LinkPort {
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
        !self.events.is_empty() || self.lane.ready()
    }

    fn disarm(&mut self) {
        self.lane.disarm();
    }

    fn meet(&mut self, seat: Option<u32>) -> Option<PeerView> {
        self.lane.meet(seat)
    }
}

impl StreamPort for LinkPort {
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
                Some(Err(refusal)) => self.refuse(Name::of(&refusal.head)),
                None => break,
            }
        }
        self.push_out();
        self.events.pop_front()
    }

    fn send(&mut self, id: StreamId, mut data: Payload) -> Result<(), SendError> {
        let crowded = self.outbound.len() >= OUTBOUND;
        let Some(connection) = self.connections.get_mut(id).filter(|connection| !connection.ended) else {
            return Err(SendError::Closed);
        };
        if crowded || !connection.has_room(data.len()) {
            if crowded && !std::mem::replace(&mut connection.in_waiting, true) {
                self.waiting.push_back(id);
            }
            connection.wants_room = true;
            return Err(SendError::Full(data));
        }
        connection.outstanding += data.len();
        let head = Command::Send.encode(connection.wire);
        while !data.is_empty() {
            self.push(head, next_message(&mut data, MAX_SEGMENTS));
        }
        Ok(())
    }

    fn finish(&mut self, id: StreamId) {
        let Some(connection) = self.connections.get_mut(id).filter(|connection| !connection.ended) else { return };
        connection.ended = true;
        connection.wants_room = false;
        let head = Command::Finish.encode(connection.wire);
        self.push(head, Payload::new());
    }

    fn reset(&mut self, id: StreamId) {
        let Some(connection) = self.connections.get_mut(id).filter(|connection| !connection.reset) else { return };
        connection.ended = true;
        connection.reset = true;
        connection.wants_room = false;
        let head = Command::Reset.encode(connection.wire);
        self.push(head, Payload::new());
    }

    fn flush(&mut self) {
        self.push_out();
        self.lane.flush();
    }
}
