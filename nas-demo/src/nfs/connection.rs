//! One connection: its records, its calls under way, and its replies that the port has not taken yet.

use std::collections::VecDeque;
use std::net::SocketAddr;

use fido_core::memory::Memory;
use fido_core::payload::{MAX_SEGMENTS, Payload};
use mmnet::stream::{SendError, StreamId, StreamPort};

use super::budget::Meter;
use super::record::Records;
use super::reply::Reply;

/// A connection.
#[derive(Debug)]
pub struct Connection {
    /// Tells it from others that had the same name before.
    pub serial: u64,
    /// The other end.
    pub remote: SocketAddr,
    /// What has arrived.
    pub records: Records,
    /// The memory that its calls and replies keep in use.
    pub meter: Meter,
    /// Calls that have not been answered.
    pub in_flight: usize,
    /// Whether the other end sends no more.
    pub finished: bool,
    /// Whether this end sends no more.
    pub closing: bool,
    /// Whether it is in the server's list of those that get a turn.
    pub queued: bool,
    outbox: VecDeque<Outgoing>,
    /// The port refused a reply; it will say when there is room again.
    blocked: bool,
}

#[derive(Debug)]
enum Outgoing {
    Written(Reply),
    Sealed(Payload),
}

/// How far the replies of a connection got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// All are with the port; so many were sent now.
    All(usize),
    /// The port takes no more now, and says when it does.
    Blocked,
    /// There is no buffer in the arena now.
    NoBuffer,
}

impl Connection {
    /// A new connection.
    pub fn new(serial: u64, remote: SocketAddr) -> Self {
        Self {
            serial,
            remote,
            records: Records::default(),
            meter: Meter::default(),
            in_flight: 0,
            finished: false,
            closing: false,
            queued: false,
            outbox: VecDeque::new(),
            blocked: false,
        }
    }

    /// Calls that are under way or whose replies the port has not taken.
    pub fn calls(&self) -> usize {
        self.in_flight + self.outbox.len()
    }

    /// Queues a reply.
    pub fn push(&mut self, reply: Reply) {
        self.outbox.push_back(Outgoing::Written(reply));
    }

    /// The port says that there is room again.
    pub fn unblock(&mut self) {
        self.blocked = false;
    }

    /// Hands replies to the port.
    pub fn send(&mut self, id: StreamId, port: &mut impl StreamPort, memory: &Memory, zeros: &Payload) -> Sent {
        let mut count = 0;
        while !self.blocked {
            let sealed = match self.outbox.pop_front() {
                None => return Sent::All(count),
                Some(Outgoing::Sealed(payload)) => payload,
                Some(Outgoing::Written(reply)) => match reply.seal(memory, zeros) {
                    Ok(payload) => payload,
                    Err(reply) => {
                        self.outbox.push_front(Outgoing::Written(reply));
                        return Sent::NoBuffer;
                    }
                },
            };
            count += 1;
            self.send_sealed(id, port, sealed);
        }
        Sent::Blocked
    }

    /// Sends a reply, in several pieces if it has more parts than one message may carry.
    fn send_sealed(&mut self, id: StreamId, port: &mut impl StreamPort, mut reply: Payload) {
        while !reply.is_empty() {
            let bytes = reply.segments().take(MAX_SEGMENTS).map(|segment| u64::from(segment.len)).sum();
            match port.send(id, reply.split_to(bytes)) {
                Ok(()) => {}
                Err(SendError::Full(mut piece)) => {
                    piece.append(reply);
                    self.outbox.push_front(Outgoing::Sealed(piece));
                    self.blocked = true;
                    return;
                }
                Err(SendError::Closed) => {
                    // Nobody is there to take them; `Closed` follows and ends the connection here too.
                    self.outbox.clear();
                    return;
                }
            }
        }
    }
}
