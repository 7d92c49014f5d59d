//! One worker: its clients, a queue on each export, and the turns in which it serves them.

mod reading;

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fido_core::addr::DomainId;
use fido_core::crew::Job;
use fido_core::memory::Memory;
use fido_core::wait::Source;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::client::{Client, Clients, Haggling, Key, Talk};
use super::device::{Outlet, Requests};
use super::door::{Door, News};
use super::listen::{self, Listener};
use super::sockets::{Edge, Sockets};
use super::{Facts, Shared};
use crate::queue::{BlockCompletion, BlockOp, BlockQueue};

/// Clients accepted, and steps of one negotiation, per turn.
const TURN: usize = 16;
/// When to look again for buffers that have come back, or for the end of a vanished client's requests.
const SOON: Duration = Duration::from_millis(5);
/// When to look again for negotiations that take too long, or room for another client.
const LATER: Duration = Duration::from_millis(200);

/// Serves clients from a queue on each export. A job of a [`fido_core::crew::Crew`], or of an own loop: poll; if that
/// found nothing, flush and wait for the sources.
#[derive(Debug)]
pub struct Worker<Q> {
    shared: Arc<Shared>,
    door: Arc<Door>,
    memory: Memory,
    listeners: Vec<Listener>,
    /// A listener had an edge and has not been accepted empty since.
    acceptable: bool,
    sockets: Sockets,
    clients: Clients,
    outlets: Vec<Outlet<Q>>,
    requests: Requests,
    /// To be read from.
    reading: VecDeque<Key>,
    /// To be sent to.
    sending: VecDeque<Key>,
    /// Without a buffer.
    starving: Vec<Key>,
    /// Negotiating, or waiting to enter.
    haggling: Vec<Key>,
}

impl<Q: BlockQueue> Worker<Q> {
    pub(super) fn new(
        shared: Arc<Shared>,
        door: Arc<Door>,
        memory: Memory,
        queues: Vec<Q>,
        listeners: Vec<Listener>,
    ) -> io::Result<Self> {
        let sockets = Sockets::new(door.clone(), &listeners)?;
        Ok(Self {
            shared,
            door,
            memory,
            listeners,
            acceptable: true,
            sockets,
            clients: Clients::default(),
            outlets: queues.into_iter().map(Outlet::new).collect(),
            requests: Requests::default(),
            reading: VecDeque::new(),
            sending: VecDeque::new(),
            starving: Vec::new(),
            haggling: Vec::new(),
        })
    }

    /// Moves everything along; whether there was anything to do. Never blocks.
    pub fn poll(&mut self) -> bool {
        let mut worked = self.take_news();
        worked |= self.take_edges();
        worked |= self.accept();
        worked |= self.read();
        self.outlets.iter_mut().for_each(Outlet::flush);
        worked |= self.complete();
        worked |= self.transmit();
        self.set_timer();
        worked
    }

    /// Hands on what is half-way. Call it before waiting.
    pub fn flush(&mut self) {
        self.outlets.iter_mut().for_each(|outlet| outlet.queue.flush_submissions());
    }

    /// What to wait for.
    pub fn sources(&mut self) -> Vec<&mut dyn Source> {
        self.sockets.restless = !self.reading.is_empty() || !self.sending.is_empty() || self.can_accept();
        let mut all: Vec<&mut dyn Source> = vec![&mut self.sockets];
        all.extend(self.outlets.iter_mut().map(|outlet| &mut outlet.queue as &mut dyn Source));
        all
    }

    fn facts(&self, export: usize) -> Option<Facts> {
        let queue = &self.outlets.get(export)?.queue;
        Some(Facts::of(self.shared.exports.get(export)?, queue.geometry(), queue.features()))
    }

    // What others say.

    fn take_news(&mut self) -> bool {
        let news = self.door.take();
        let any = !news.is_empty();
        for news in news {
            match news {
                News::Client(socket) => self.admit(socket),
                News::Dead(dead) => self.rescue(dead),
            }
        }
        any
    }

    fn rescue(&mut self, dead: DomainId) {
        for key in self.clients.keys() {
            if let Some(Client { talk: Talk::Serving(session), .. }) = self.clients.get_mut(key)
                && let Err(error) = session.outgoing.rescue(dead, &self.memory)
            {
                tracing::warn!(%dead, %error, "leaving a client whose replies died with their domain");
                self.close(key);
            }
        }
    }

    fn take_edges(&mut self) -> bool {
        let edges = self.sockets.edges(self.memory.stats());
        for edge in &edges {
            match *edge {
                Edge::Listener => self.acceptable = true,
                Edge::Timer => {
                    self.acceptable = true;
                    self.tick();
                }
                Edge::Client(key, flags) => self.take_edge(key, flags),
            }
        }
        !edges.is_empty()
    }

    fn take_edge(&mut self, key: Key, flags: EventFlags) {
        use EventFlags as E;
        if flags.contains(E::ERR) {
            return self.close(key);
        }
        let Some(client) = self.clients.get_mut(key) else { return };
        client.writable |= flags.intersects(E::OUT | E::HUP);
        client.readable |= flags.intersects(E::IN | E::RDHUP | E::HUP);
        client.to_the_end |= flags.intersects(E::RDHUP | E::HUP);
        self.want_to_read(key);
        self.want_to_send(key);
    }

    /// What was put off.
    fn tick(&mut self) {
        for key in std::mem::take(&mut self.starving) {
            self.want_to_read(key);
        }
        let now = Instant::now();
        for key in self.haggling.clone() {
            let Some(Client { talk: Talk::Haggling(haggling), .. }) = self.clients.get_mut(key) else { continue };
            if haggling.agreed.is_some() {
                self.say(key);
            } else if now >= haggling.deadline {
                tracing::info!("leaving a client that negotiates for too long");
                self.close(key);
            }
        }
    }

    fn set_timer(&mut self) {
        let parked = |key: &Key, clients: &mut Clients| {
            let client = clients.get_mut(*key);
            matches!(client, Some(Client { talk: Talk::Haggling(Haggling { agreed: Some(_), .. }), .. }))
        };
        if !self.starving.is_empty() || self.haggling.iter().any(|key| parked(key, &mut self.clients)) {
            self.sockets.wake_in(SOON, self.memory.stats());
        } else if !self.haggling.is_empty() || (self.acceptable && !self.listeners.is_empty()) {
            self.sockets.wake_in(LATER, self.memory.stats());
        }
    }

    // Clients.

    fn can_accept(&self) -> bool {
        self.acceptable && !self.listeners.is_empty() && self.shared.admits()
    }

    fn accept(&mut self) -> bool {
        if !self.can_accept() {
            return false;
        }
        self.acceptable = false;
        for index in 0..self.listeners.len() {
            for accepted in 0..=TURN {
                if accepted == TURN {
                    // There may be more, for which there is no other edge.
                    self.acceptable = true;
                    break;
                }
                if !self.shared.admits() {
                    // Looked at again when the timer goes off.
                    self.acceptable = true;
                    return true;
                }
                let Some(listener) = self.listeners.get(index) else { break };
                match listener.accept() {
                    Ok(socket) => self.assign(socket),
                    Err(Errno::AGAIN) => break,
                    Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                        tracing::warn!("no file descriptor or memory for a client");
                        self.sockets.wake_in(LATER, self.memory.stats());
                        return true;
                    }
                    // The client that failed is gone; the next one may be well.
                    Err(_) => {}
                }
            }
        }
        true
    }

    /// Gives a client to the worker that has fewest.
    fn assign(&mut self, socket: OwnedFd) {
        self.shared.clients.fetch_add(1, Ordering::Relaxed);
        let doors = self.shared.doors();
        if let Some(door) = doors.iter().min_by_key(|door| door.clients()) {
            door.put(News::Client(socket));
        }
    }

    fn admit(&mut self, socket: OwnedFd) {
        listen::tune(&socket);
        let key = self.clients.insert(Client::new(socket, Instant::now() + self.shared.limits.patience));
        self.haggling.push(key);
        let added = self.clients.get_mut(key).is_some_and(|client| self.sockets.add(&client.socket, key).is_ok());
        if added { self.want_to_send(key) } else { self.close(key) }
    }

    fn close(&mut self, key: Key) {
        let Some(client) = self.clients.remove(key) else { return };
        self.shared.clients.fetch_sub(1, Ordering::Relaxed);
        self.door.gone();
        self.haggling.retain(|other| *other != key);
        let session = match client.talk {
            Talk::Serving(session) => session,
            // It has its place already.
            Talk::Haggling(Haggling { agreed: Some(_), .. }) => return self.shared.release(),
            Talk::Haggling(_) => return,
        };
        let export = session.agreement.export;
        let orphans = self.requests.count(key);
        if let (Some(outlet), Some(count)) = (self.outlets.get_mut(export), self.shared.orphans.get(export)) {
            outlet.forget(key);
            count.fetch_add(orphans, Ordering::SeqCst);
        }
        self.shared.release();
        tracing::info!(orphans, "a client is gone");
    }

    fn want_to_read(&mut self, key: Key) {
        if let Some(client) = self.clients.get_mut(key)
            && !client.in_reading
            && client.has_input()
        {
            client.in_reading = true;
            self.reading.push_back(key);
        }
    }

    fn want_to_send(&mut self, key: Key) {
        if let Some(client) = self.clients.get_mut(key)
            && !client.in_sending
            && client.writable
            && client.has_output()
        {
            client.in_sending = true;
            self.sending.push_back(key);
        }
    }

    // Answering.

    fn complete(&mut self) -> bool {
        let mut any = false;
        for index in 0..self.outlets.len() {
            while let Some(outlet) = self.outlets.get_mut(index)
                && let Some(completion) = outlet.queue.poll()
            {
                any = true;
                self.completed(index, completion);
            }
            self.submit_waiting(index);
            if let Some(outlet) = self.outlets.get_mut(index)
                && let Some(geometry) = outlet.queue.resized()
            {
                tracing::info!(bytes = geometry.bytes, export = index, "the device has another size");
                any = true;
            }
        }
        any
    }

    fn completed(&mut self, index: usize, completion: BlockCompletion) {
        let Some((key, mut open)) = self.requests.remove(completion.id) else { return };
        let Some(Client { talk: Talk::Serving(session), .. }) = self.clients.get_mut(key) else {
            if let Some(orphans) = self.shared.orphans.get(index) {
                orphans.fetch_sub(1, Ordering::SeqCst);
            }
            return;
        };
        if open.then_flush && completion.result.is_ok() {
            open.then_flush = false;
            if let Some(outlet) = self.outlets.get_mut(index) {
                outlet.submit(&mut self.requests, key, open, BlockOp::Flush, true);
            }
            return;
        }
        session.finished(&open, completion.result, &self.memory);
        self.want_to_send(key);
        self.want_to_read(key);
    }

    /// Gives the queue what waits for a place in it.
    fn submit_waiting(&mut self, index: usize) {
        while let Some(outlet) = self.outlets.get_mut(index)
            && let Some((key, open, second)) = outlet.submit_next(&mut self.requests)
        {
            if let Some(Client { talk: Talk::Serving(session), .. }) = self.clients.get_mut(key)
                && !second
            {
                session.stalled = false;
                session.submitted(&open);
                self.want_to_read(key);
            }
        }
        if let Some(outlet) = self.outlets.get_mut(index) {
            outlet.flush();
        }
    }

    fn transmit(&mut self) -> bool {
        let count = self.sending.len();
        for _ in 0..count {
            let Some(key) = self.sending.pop_front() else { break };
            let Some(client) = self.clients.get_mut(key) else { continue };
            client.in_sending = false;
            let Talk::Serving(session) = &mut client.talk else {
                self.say(key);
                self.want_to_read(key);
                continue;
            };
            match session.outgoing.send(&client.socket, &self.memory) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => client.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.close(key);
                    continue;
                }
            }
            if session.is_over() {
                self.close(key);
                continue;
            }
            self.want_to_send(key);
            self.want_to_read(key);
        }
        count > 0
    }
}

impl<Q: BlockQueue + Send> Job for Worker<Q> {
    fn name(&self) -> String {
        let names: Vec<&str> = self.shared.exports.iter().map(|export| &*export.name).collect();
        format!("NBD server of {names:?}")
    }

    fn poll(&mut self) -> bool {
        Worker::poll(self)
    }

    fn flush(&mut self) {
        Worker::flush(self);
    }

    fn sources<'a>(&'a mut self, all: &mut Vec<&'a mut dyn Source>) {
        all.extend(Worker::sources(self));
    }
}
