//! The server: moves records from the port to the service and replies back, fairly and within limits.
//!
//! * Every connection gets one call per turn, so one with a deep pipeline does not keep others waiting.
//! * What is taken is bounded ([`Limits`]); beyond a limit a connection's bytes are left where they are, which the
//!   port sees and makes the client feel.
//! * A reply that cannot be sent now is kept until it can; nothing is taken from its connection meanwhile.
//! * A connection that sends what is no call is reset; others do not notice.
//!
//! It never blocks, and it does not restart: what it must know after a crash is in the volume and in file handles.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use fido_core::heap::HeapError;
use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::wait::Source;
use mmnet::stream::{StreamEvent, StreamId, StreamPort};

use super::connection::{Connection, Sent};
use super::record::Next;
use super::service::{Answered, Origin, Outcome, Service};
use crate::volume::ops::Volume;

/// The most events and answers taken in one [`NfsServer::poll`].
const BATCH: usize = 128;
/// How long to wait before trying again what waits for memory of the appliance, which nobody announces.
const RETRY: Duration = Duration::from_millis(5);

/// What is taken at most. Beyond the first, connections are reset; beyond the others, clients wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections.
    pub connections: usize,
    /// Calls of one connection that are under way or whose replies are not with the port.
    pub calls_per_connection: usize,
    /// Calls under way in all.
    pub calls: usize,
    /// Bytes that one connection's calls and replies keep in use, until their replies have been sent. One call more
    /// may begin below it.
    pub bytes_per_connection: u64,
    /// The same in all; a connection that keeps nothing in use may begin one call nevertheless. Choose it well below
    /// the arena of the domain that READ data lies in.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            calls_per_connection: 64,
            calls: 1024,
            bytes_per_connection: 8 << 20,
            bytes: 64 << 20,
        }
    }
}

/// The NFSv3 and MOUNT v3 server over a port and a volume.
#[derive(Debug)]
pub struct NfsServer<P, V> {
    port: P,
    service: Service<V>,
    memory: Memory,
    limits: Limits,
    connections: HashMap<StreamId, Connection>,
    next_serial: u64,
    /// Connections that may have something to do.
    runnable: VecDeque<StreamId>,
    /// Connections that have something to do and wait for a limit or for memory.
    stalled: Vec<StreamId>,
    /// Padding.
    zeros: Payload,
    draining: bool,
}

/// What a connection's turn came to.
enum Turn {
    /// Something was done, there may be more.
    Again,
    /// Nothing can be done until something happens.
    Rest,
    /// Nothing can be done for lack of memory or because of a limit.
    Stalled,
    /// It has to be reset.
    Broken,
}

impl<P: StreamPort, V: Volume> NfsServer<P, V> {
    /// Serves `volume` on the connections of `port`, as the export named `export` (and as `/`).
    ///
    /// # Errors
    /// [`HeapError`] if the arena has no room for a few bytes.
    pub fn new(memory: Memory, port: P, volume: V, export: &str, limits: Limits) -> Result<Self, HeapError> {
        let mut zeros = memory.alloc(4)?;
        zeros.as_mut_slice().fill(0);
        Ok(Self {
            port,
            service: Service::new(memory.clone(), volume, export),
            memory,
            limits,
            connections: HashMap::new(),
            next_serial: 0,
            runnable: VecDeque::new(),
            stalled: Vec::new(),
            zeros: zeros.into_payload(),
            draining: false,
        })
    }

    /// The port.
    pub fn port(&mut self) -> &mut P {
        &mut self.port
    }

    /// The volume.
    pub fn volume(&mut self) -> &mut V {
        self.service.volume()
    }

    /// What to wait for.
    pub fn sources(&mut self) -> Vec<&mut dyn Source> {
        let mut sources = self.service.volume().sources();
        sources.push(&mut self.port);
        sources
    }

    /// How long to wait at most, if not for ever.
    pub fn timeout(&self) -> Option<Duration> {
        (!self.stalled.is_empty()).then_some(RETRY)
    }

    /// Takes no more calls and no more connections; those under way are answered, then connections are finished.
    pub fn drain(&mut self) {
        self.draining = true;
        let ids: Vec<_> = self.connections.keys().copied().collect();
        for id in ids {
            self.enqueue(id);
        }
    }

    /// Whether no call is under way and every reply is with the port.
    pub fn is_idle(&self) -> bool {
        self.service.calls() == 0 && self.connections.values().all(|connection| connection.calls() == 0)
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Moves everything along. Returns whether there was anything to do.
    pub fn poll(&mut self) -> bool {
        let mut progress = false;
        for _ in 0..BATCH {
            let Some(event) = self.port.poll() else { break };
            self.on_event(event);
            progress = true;
        }
        for _ in 0..BATCH {
            let Some(answered) = self.service.poll() else { break };
            self.on_answer(answered);
            progress = true;
        }
        progress |= self.run();
        if progress {
            self.hand_on();
        }
        progress
    }

    /// Hands on whatever is queued. Call it before waiting.
    pub fn flush(&mut self) {
        self.hand_on();
        // Handing on may have given back the memory that somebody waits for, and nothing would wake us for it.
        while !self.stalled.is_empty() && self.run() {
            self.hand_on();
        }
    }

    fn hand_on(&mut self) {
        self.service.volume().flush();
        self.port.flush();
    }

    fn on_event(&mut self, event: StreamEvent) {
        match event {
            StreamEvent::Opened { id, remote } => self.on_opened(id, remote),
            StreamEvent::Data { id, data } => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.records.push(data, &self.memory);
                    self.enqueue(id);
                }
            }
            StreamEvent::Finished { id } => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.finished = true;
                    self.enqueue(id);
                }
            }
            StreamEvent::Writable { id } => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.unblock();
                    self.enqueue(id);
                }
            }
            StreamEvent::Closed { id } => self.forget(id),
        }
    }

    fn on_opened(&mut self, id: StreamId, remote: std::net::SocketAddr) {
        self.forget(id);
        if self.draining || self.connections.len() >= self.limits.connections {
            tracing::debug!(client = %remote, limit = self.limits.connections, "connection refused");
            self.port.reset(id);
            return;
        }
        self.next_serial += 1;
        self.connections.insert(id, Connection::new(self.next_serial, remote));
    }

    fn on_answer(&mut self, Answered { origin, reply }: Answered) {
        let connection = self.connections.get_mut(&origin.stream);
        if let Some(connection) = connection.filter(|connection| connection.serial == origin.serial) {
            connection.in_flight -= 1;
            connection.push(reply);
            self.enqueue(origin.stream);
        }
    }

    fn forget(&mut self, id: StreamId) {
        if let Some(connection) = self.connections.remove(&id) {
            self.service.abandon(connection.serial);
        }
    }

    fn enqueue(&mut self, id: StreamId) {
        if let Some(connection) = self.connections.get_mut(&id)
            && !connection.queued
        {
            connection.queued = true;
            self.runnable.push_back(id);
        }
    }

    /// Gives every connection that may have something to do one turn. Returns whether anything was done.
    fn run(&mut self) -> bool {
        for id in std::mem::take(&mut self.stalled) {
            self.enqueue(id);
        }
        let mut progress = false;
        for _ in 0..self.runnable.len() {
            let Some(id) = self.runnable.pop_front() else { break };
            match self.turn(id) {
                Turn::Again => {
                    progress = true;
                    self.enqueue(id);
                }
                Turn::Rest => {}
                Turn::Stalled => self.stalled.push(id),
                Turn::Broken => {
                    progress = true;
                    self.forget(id);
                    self.port.reset(id);
                }
            }
        }
        progress
    }

    /// Sends a connection's replies, then takes one call from it.
    fn turn(&mut self, id: StreamId) -> Turn {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Turn::Rest;
        };
        connection.queued = false;
        match connection.send(id, &mut self.port, &self.memory, &self.zeros) {
            Sent::All(0) => {}
            Sent::All(_) => return Turn::Again,
            Sent::Blocked => return Turn::Rest,
            Sent::NoBuffer => return Turn::Stalled,
        }
        if self.draining || connection.closing {
            return finish_if_done(&mut self.port, id, connection);
        }
        if !has_room(&self.limits, connection, self.service.calls(), self.service.used()) {
            return if connection.records.is_empty() { Turn::Rest } else { Turn::Stalled };
        }
        let record = match connection.records.next(&self.memory) {
            Ok(Next::Record(record)) => record,
            Ok(Next::NoBuffer) => return Turn::Stalled,
            Ok(Next::Partial) if connection.finished => return finish_if_done(&mut self.port, id, connection),
            Ok(Next::Partial) => return Turn::Rest,
            Err(error) => {
                tracing::debug!(client = %connection.remote, %error, "connection reset");
                return Turn::Broken;
            }
        };
        let origin = Origin { stream: id, serial: connection.serial, remote: connection.remote.ip() };
        match self.service.call(origin, &connection.meter, &record) {
            Outcome::Replied(reply) => connection.push(reply),
            Outcome::Asked => connection.in_flight += 1,
            Outcome::Dropped => {}
            Outcome::NotACall => {
                tracing::debug!(client = %connection.remote, "not a call: connection reset");
                return Turn::Broken;
            }
            Outcome::Unreadable(error) => {
                tracing::debug!(client = %connection.remote, %error, "connection reset");
                return Turn::Broken;
            }
        }
        Turn::Again
    }
}

/// Whether a connection may begin another call.
fn has_room(limits: &Limits, connection: &Connection, calls: usize, used: u64) -> bool {
    let mine = connection.meter.used();
    connection.calls() < limits.calls_per_connection
        && calls < limits.calls
        && (mine == 0 || mine < limits.bytes_per_connection && used < limits.bytes)
}

/// Finishes a connection of which nothing is under way any more.
fn finish_if_done(port: &mut impl StreamPort, id: StreamId, connection: &mut Connection) -> Turn {
    if connection.calls() == 0 && !connection.closing {
        connection.closing = true;
        port.finish(id);
    }
    Turn::Rest
}
