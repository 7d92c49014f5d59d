//! One connection of a stack: between smoltcp's socket and payloads.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use fido_core::addr::DomainId;
use fido_core::memory::Memory;
use fido_core::payload::Payload;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, State};

use crate::frame::lies_in;
use crate::stream::lease::{Account, Lease};
use crate::stream::{MAX_QUEUED_BYTES, StreamEvent, StreamId};

/// The largest buffer that received bytes are handed out in.
const BUFFER_BYTES: usize = 256 << 10;

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) handle: SocketHandle,
    remote: SocketAddr,
    /// The port at this end, if the connection was opened from here.
    pub(super) local: Option<u16>,
    account: Arc<Account>,
    to_send: VecDeque<Payload>,
    /// Bytes in `to_send`.
    pub(super) queued: u64,
    pub(super) wants_room: bool,
    /// It stands, and its user knows.
    opened: bool,
    /// Its user knows that the other end sends no more.
    told_end: bool,
    /// Its user sends no more.
    pub(super) ended: bool,
    /// The socket knows that.
    closed: bool,
    /// Nothing of it is of interest any more.
    dropped: bool,
}

/// What came of serving a connection.
pub(super) enum Outcome {
    /// Nothing to do.
    Idle,
    /// Something.
    Moved,
    /// There is no memory for what it received.
    Starved,
    /// It is gone.
    Over,
}

impl Connection {
    /// A connection that is being opened from the port `local`, or that was accepted.
    pub(super) fn new(handle: SocketHandle, remote: SocketAddr, account: Arc<Account>, local: Option<u16>) -> Self {
        Self {
            handle,
            remote,
            local,
            account,
            to_send: VecDeque::new(),
            queued: 0,
            wants_room: false,
            opened: local.is_none(),
            told_end: false,
            ended: false,
            closed: false,
            dropped: false,
        }
    }

    pub(super) fn enqueue(&mut self, data: Payload) {
        self.queued += data.len();
        self.to_send.push_back(data);
    }

    /// Drops the connection; its end follows when the socket has said so to the other side.
    pub(super) fn reset(&mut self, socket: &mut Socket<'_>) {
        (self.ended, self.dropped) = (true, true);
        self.to_send.clear();
        self.queued = 0;
        socket.abort();
    }

    /// Moves what can be moved, and says what has happened.
    pub(super) fn serve(
        &mut self,
        id: StreamId,
        socket: &mut Socket<'_>,
        memory: &Memory,
        events: &mut VecDeque<StreamEvent>,
    ) -> Outcome {
        if !self.opened && socket.state() != State::SynSent {
            self.opened = true;
            if socket.state() != State::Closed {
                events.push_back(StreamEvent::Opened { id, remote: self.remote });
            }
        }
        let (mut moved, mut starved) = (false, false);
        if !self.dropped {
            match self.receive(socket, memory) {
                Ok(Some(data)) => {
                    moved = true;
                    events.push_back(StreamEvent::Data { id, data });
                }
                Ok(None) => {}
                Err(NoMemory) => starved = true,
            }
            moved |= self.send(socket, memory);
            if self.dropped {
                // Its reset is sent before the socket goes.
                return Outcome::Moved;
            }
        }
        if self.wants_room && self.queued <= MAX_QUEUED_BYTES / 2 && !self.ended {
            self.wants_room = false;
            events.push_back(StreamEvent::Writable { id });
        }
        // What it received is handed out before its end.
        if self.opened && !self.dropped && !self.told_end && ends_receiving(socket) {
            self.told_end = true;
            moved = true;
            events.push_back(StreamEvent::Finished { id });
        }
        let is_over = match socket.state() {
            State::Closed => self.dropped || socket.recv_queue() == 0,
            State::TimeWait => self.told_end || self.dropped,
            _ => false,
        };
        match (is_over, moved, starved) {
            (true, ..) => Outcome::Over,
            (_, true, _) => Outcome::Moved,
            (_, _, true) => Outcome::Starved,
            _ => Outcome::Idle,
        }
    }

    /// What has arrived, as a loan, if so much may be on loan.
    fn receive(&self, socket: &mut Socket<'_>, memory: &Memory) -> Result<Option<Payload>, NoMemory> {
        let there = socket.recv_queue().min(BUFFER_BYTES);
        if there == 0 || !self.account.admits() {
            return Ok(None);
        }
        let mut buf = memory.alloc(there).map_err(|_| NoMemory)?;
        let Ok(count) = socket.recv_slice(buf.as_mut_slice()) else { return Ok(None) };
        buf.truncate(count);
        memory.stats().payload_bytes_copied.add(count as u64);
        let Some(part) = buf.into_payload().parts().first().cloned() else { return Ok(None) };
        let Some(hold) = part.hold else { return Ok(None) };
        let lease = Lease::new(self.account.clone(), hold);
        lease.extend(count as u64);
        Ok(Some(Payload::held(part.segment, lease)))
    }

    /// Copies what is to be sent into the socket, as far as there is room, and then its end; whether anything was.
    fn send(&mut self, socket: &mut Socket<'_>, memory: &Memory) -> bool {
        let mut moved = false;
        while socket.can_send()
            && let Some(data) = self.to_send.front_mut()
        {
            let sent = socket.send(|room| {
                let part = data.split_to(room.len() as u64);
                let copied = memory.copy_to_slice(&part, room);
                (copied.unwrap_or(0), copied)
            });
            let Ok(Ok(count)) = sent else {
                tracing::warn!("resetting a connection: what it is to send cannot be read");
                self.reset(socket);
                return true;
            };
            self.queued -= count as u64;
            moved = true;
            if data.is_empty() {
                self.to_send.pop_front();
            }
        }
        if self.ended && self.to_send.is_empty() && !self.closed && socket.may_send() {
            self.closed = true;
            socket.close();
            moved = true;
        }
        moved
    }

    /// Copies what lies in the dead domain's arena and is still to be sent; false if there is no room.
    pub(super) fn rescue(&mut self, dead: DomainId, memory: &Memory) -> bool {
        for data in self.to_send.iter_mut().filter(|data| lies_in(data, dead)) {
            match memory.copy_in(data) {
                Ok(Some(copy)) => *data = copy.into_payload(),
                Ok(None) => {}
                Err(_) => return false,
            }
        }
        true
    }
}

/// There is no buffer.
struct NoMemory;

/// Whether the other end has finished and all it sent has been taken.
fn ends_receiving(socket: &Socket<'_>) -> bool {
    matches!(socket.state(), State::CloseWait | State::Closing | State::LastAck | State::TimeWait)
        && socket.recv_queue() == 0
}
