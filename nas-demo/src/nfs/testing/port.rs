//! A port whose other end is the test.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use fido_core::memory::Memory;
use fido_core::payload::{MAX_SEGMENTS, Payload};
use fido_core::wait::Source;
use mmnet::stream::{SendError, StreamEvent, StreamId, StreamPort};
use rustix::event::{EventfdFlags, eventfd};

/// A [`StreamPort`] that a test feeds and reads.
pub struct FakePort {
    memory: Memory,
    fd: OwnedFd,
    events: VecDeque<StreamEvent>,
    sent: HashMap<StreamId, Vec<Payload>>,
    /// Connections that take no more, and of those the ones that were told so.
    full: HashSet<StreamId>,
    refused: HashSet<StreamId>,
    /// What the server did.
    pub finished: Vec<StreamId>,
    /// What the server did.
    pub reset: Vec<StreamId>,
}

impl FakePort {
    pub fn new(memory: Memory) -> Self {
        Self {
            memory,
            fd: eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
            events: VecDeque::new(),
            sent: HashMap::new(),
            full: HashSet::new(),
            refused: HashSet::new(),
            finished: Vec::new(),
            reset: Vec::new(),
        }
    }

    pub fn open(&mut self, id: StreamId) {
        self.open_from(id, SocketAddr::from(([127, 0, 0, 1], 700)));
    }

    pub fn open_from(&mut self, id: StreamId, remote: SocketAddr) {
        self.events.push_back(StreamEvent::Opened { id, remote });
    }

    pub fn receive(&mut self, id: StreamId, bytes: &[u8]) {
        let mut buf = self.memory.alloc(bytes.len()).unwrap();
        buf.as_mut_slice().copy_from_slice(bytes);
        self.receive_payload(id, buf.into_payload());
    }

    pub fn receive_payload(&mut self, id: StreamId, data: Payload) {
        self.events.push_back(StreamEvent::Data { id, data });
    }

    pub fn finish_remote(&mut self, id: StreamId) {
        self.events.push_back(StreamEvent::Finished { id });
    }

    pub fn close(&mut self, id: StreamId) {
        self.events.push_back(StreamEvent::Closed { id });
    }

    /// From now on `id` takes no more, until [`FakePort::make_room`].
    pub fn fill(&mut self, id: StreamId) {
        self.full.insert(id);
    }

    pub fn make_room(&mut self, id: StreamId) {
        self.full.remove(&id);
        if self.refused.remove(&id) {
            self.events.push_back(StreamEvent::Writable { id });
        }
    }

    /// Takes what was sent on a connection.
    pub fn take_sent(&mut self, id: StreamId) -> Vec<Payload> {
        self.sent.remove(&id).unwrap_or_default()
    }

    /// Takes what was sent, as bytes.
    pub fn take_bytes(&mut self, id: StreamId) -> Vec<u8> {
        let mut all = Vec::new();
        for payload in self.take_sent(id) {
            let mut bytes = vec![0; payload.len() as usize];
            self.memory.copy_to_slice(&payload, &mut bytes).unwrap();
            all.extend(bytes);
        }
        all
    }
}

impl Source for FakePort {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl StreamPort for FakePort {
    fn poll(&mut self) -> Option<StreamEvent> {
        self.events.pop_front()
    }

    fn send(&mut self, id: StreamId, data: Payload) -> Result<(), SendError> {
        assert!(data.parts().len() <= MAX_SEGMENTS && !data.is_empty());
        if self.full.contains(&id) {
            self.refused.insert(id);
            return Err(SendError::Full(data));
        }
        self.sent.entry(id).or_default().push(data);
        Ok(())
    }

    fn finish(&mut self, id: StreamId) {
        self.finished.push(id);
    }

    fn reset(&mut self, id: StreamId) {
        self.reset.push(id);
        self.close(id);
    }

    fn flush(&mut self) {}
}
