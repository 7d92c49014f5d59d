//! The outside's end: gives the connections of a [`StreamPort`] to another domain, over a lane.
//!
//! Nothing here queues without bound. What arrives on a connection while the lane is full, or nobody is at its other
//! end, is collected in that connection's payload and is on loan meanwhile, so the port's receive limit bounds it.
//! What is to be sent goes to the port at once; what the port does not take waits per connection, bounded by what the
//! inside may have on the way.
//!
//! When the inside dies, all connections it knew of are reset: their clients connect again and retransmit. The port
//! keeps listening and accepting, and what is accepted now waits unannounced until the inside is back, so a client
//! sees a pause. Those beyond the port's limit wait in the kernel.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use fido_core::addr::DomainId;
use fido_core::heap::ArenaBuf;
use fido_core::lane::{Change, Lane};
use fido_core::memory::CopyError;
use fido_core::message::Head;
use fido_core::payload::Payload;
use fido_core::wait::Source;

use super::codec::{Command, Name, Report, send_next};
use super::rescue::rescue_payload;
use super::slab::Slab;
use super::{ACKNOWLEDGE_BYTES, MAX_CONNECTIONS, SendError, StreamEvent, StreamId, StreamPort};

/// Messages taken from the lane and events taken from the port in one turn.
const TURN: usize = 64;
/// Messages of one connection that wait for the port, before the inside is taken to be broken.
const MAX_WAITING: usize = 4096;
/// Dead domains whose bytes may still be on the way here.
const REMEMBERED_DEAD: usize = 8;
/// A long address.
const ADDRESS_BYTES: usize = 16;

/// The connections of `port`, given to the domain at the other end of a lane.
#[derive(Debug)]
pub struct Gateway<P> {
    pub(super) port: P,
    pub(super) lane: Lane,
    connections: Slab<Connection>,
    /// What the port calls them, while it knows them.
    by_port: HashMap<StreamId, StreamId>,
    next_serial: u32,
    /// Connections with something to tell the inside.
    news: VecDeque<StreamId>,
    sent: Arc<SentDesk>,
    dead: VecDeque<DomainId>,
    /// For a long address that is to be told while what has arrived fills the heap.
    pub(super) reserve: Option<ArenaBuf>,
}

#[derive(Debug)]
struct Connection {
    serial: u32,
    on_port: StreamId,
    remote: SocketAddr,
    /// The inside knows of it.
    announced: bool,
    /// Arrived, not passed on.
    arrived: Payload,
    /// The other end has finished, and the inside does not know.
    tell_finished: bool,
    /// The port has closed it.
    closed: bool,
    /// In the list of connections with news.
    in_news: bool,
    /// To be sent, but the port was full.
    waiting: VecDeque<Payload>,
    /// The inside sends no more.
    finishing: bool,
    account: Arc<SentAccount>,
}

/// Where the holds of sent payloads say that a connection has an acknowledgement due.
#[derive(Debug, Default)]
struct SentDesk {
    due: Mutex<Vec<StreamId>>,
    has_due: AtomicBool,
}

/// Bytes of one connection that the port has let go of and that are not acknowledged.
#[derive(Debug)]
struct SentAccount {
    id: StreamId,
    bytes: AtomicU32,
    desk: Arc<SentDesk>,
}

impl SentAccount {
    fn add(&self, bytes: u32) {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let due = ACKNOWLEDGE_BYTES as u32;
        if before < due && before.saturating_add(bytes) >= due {
            self.desk.due.lock().unwrap_or_else(PoisonError::into_inner).push(self.id);
            // SYNC: pairs with the acquire in `Gateway::note_sent`.
            self.desk.has_due.store(true, Ordering::Release);
        }
    }
}

/// Keeps a payload until the port has sent it, and counts it then. The port drops it on its own thread, so nobody has
/// to be woken.
struct Counted {
    payload: Payload,
    account: Arc<SentAccount>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        // A message is at most 1 MiB or one segment, so this fits; more would only delay a refusal.
        self.account.add(u32::try_from(self.payload.len()).unwrap_or(u32::MAX / 4));
    }
}

/// What came of telling the inside something.
enum Told {
    Everything,
    MoreToTell,
    /// There is no buffer for it. Others may need none, and free some.
    HeapFull,
    LaneFull,
}

impl<P: StreamPort> Gateway<P> {
    /// Gives the connections of `port` to the other end of `lane`, where a [`LinkPort`](super::LinkPort) is.
    pub fn new(port: P, lane: Lane) -> Self {
        let reserve = lane.memory().alloc(ADDRESS_BYTES).ok();
        Self {
            reserve,
            port,
            lane,
            connections: Slab::new(MAX_CONNECTIONS),
            by_port: HashMap::new(),
            next_serial: 0,
            news: VecDeque::new(),
            sent: Arc::default(),
            dead: VecDeque::new(),
        }
    }

    /// The port.
    pub fn port(&self) -> &P {
        &self.port
    }

    /// How many connections there are, those included whose end the inside has not been told.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// What to wait for after a turn that found nothing to do.
    pub fn sources(&mut self) -> [&mut dyn Source; 2] {
        [&mut self.port, &mut self.lane]
    }

    /// Moves everything along that can move, a bounded amount, and hands it on. Returns whether there was something
    /// to do; if not, wait for the [`Gateway::sources`].
    pub fn turn(&mut self) -> bool {
        let mut worked = self.follow_link();
        worked |= self.take_commands();
        worked |= self.take_events();
        self.port.flush();
        self.note_sent();
        worked |= self.report();
        self.lane.flush();
        worked
    }

    /// `dead` is gone and its fence is to be passed: what is to be sent and lies in its arena, here, in the port or
    /// still on the way here, is copied into own buffers. Where there is no room for that, the connection is reset.
    pub fn rescue(&mut self, dead: DomainId) {
        if self.dead.len() == REMEMBERED_DEAD {
            self.dead.pop_front();
        }
        self.dead.push_back(dead);
        self.port.rescue(dead);
        for id in self.connections.ids() {
            let Some(connection) = self.connections.get_mut(id) else { continue };
            let memory = self.lane.memory();
            let rescued = connection.waiting.iter_mut().try_for_each(|data| rescue_payload(data, dead, memory));
            if let Err(error) = rescued {
                self.lose(id, &error);
            }
        }
    }

    fn follow_link(&mut self) -> bool {
        let mut changed = false;
        while let Some(change) = self.lane.change() {
            changed = true;
            match change {
                Change::Up(peer) => tracing::info!(%peer, waiting = self.news.len(), "the inside is there"),
                Change::Down(peer) => {
                    tracing::info!(%peer, connections = self.connections.len(), "the inside is gone");
                    self.reset_announced();
                }
            }
        }
        changed
    }

    fn reset_announced(&mut self) {
        for id in self.connections.ids() {
            if let Some(connection) = self.connections.get(id)
                && connection.announced
            {
                self.port.reset(connection.on_port);
                self.forget(id);
            }
        }
    }

    fn forget(&mut self, id: StreamId) {
        if let Some(connection) = self.connections.remove(id)
            && !connection.closed
        {
            self.by_port.remove(&connection.on_port);
        }
    }

    // What the inside says.

    fn take_commands(&mut self) -> bool {
        for taken in 0..TURN {
            match self.lane.recv() {
                Some(Ok((head, payload))) => self.take_command(&head, payload),
                Some(Err(refusal)) => self.refuse(Name::of(&refusal.head)),
                None => return taken > 0,
            }
        }
        true
    }

    fn take_command(&mut self, head: &Head, data: Payload) {
        let (name, command) = match Command::decode(head, data.len()) {
            Ok(message) => message,
            Err(error) => {
                tracing::warn!(%error, "a message of the inside is refused");
                self.lane.memory().stats().refusals.add(1);
                return;
            }
        };
        // What names a connection that is gone was under way when it went.
        let Some(connection) = self.connections.get_mut(name.id).filter(|c| c.serial == name.serial) else { return };
        match command {
            Command::Send => self.queue(name.id, data),
            Command::Finish => {
                connection.finishing = true;
                self.hand_over(name.id);
            }
            Command::Reset => self.port.reset(connection.on_port),
            Command::Accept => {
                tracing::warn!("the inside accepts what nobody here has called for");
                self.lane.memory().stats().refusals.add(1);
            }
        }
    }

    /// Bytes of this connection are lost: their address was wild. It cannot go on.
    fn refuse(&mut self, name: Name) {
        if let Some(connection) = self.connections.get(name.id).filter(|c| c.serial == name.serial) {
            self.port.reset(connection.on_port);
        }
    }

    fn lose(&mut self, id: StreamId, error: &CopyError) {
        tracing::warn!(%error, "resetting a connection whose replies died with their domain");
        if let Some(connection) = self.connections.get_mut(id) {
            connection.waiting.clear();
            self.port.reset(connection.on_port);
        }
    }

    fn queue(&mut self, id: StreamId, mut data: Payload) {
        let memory = self.lane.memory();
        let rescued = self.dead.iter().try_for_each(|dead| rescue_payload(&mut data, *dead, memory));
        if let Err(error) = rescued {
            self.lose(id, &error);
            return;
        }
        let Some(connection) = self.connections.get_mut(id) else { return };
        if connection.finishing || connection.waiting.len() >= MAX_WAITING {
            tracing::warn!("the inside sends after the end, or far too much; resetting the connection");
            self.lane.memory().stats().refusals.add(1);
            connection.waiting.clear();
            self.port.reset(connection.on_port);
            return;
        }
        connection.waiting.push_back(counted(data, connection.account.clone()));
        self.hand_over(id);
    }

    /// Gives the port what waits for it.
    fn hand_over(&mut self, id: StreamId) {
        let Some(connection) = self.connections.get_mut(id).filter(|connection| !connection.closed) else { return };
        while let Some(data) = connection.waiting.pop_front() {
            match self.port.send(connection.on_port, data) {
                Ok(()) => {}
                Err(SendError::Full(data)) => {
                    connection.waiting.push_front(data);
                    return;
                }
                Err(SendError::Closed) => {
                    connection.waiting.clear();
                    return;
                }
            }
        }
        if connection.finishing {
            self.port.finish(connection.on_port);
        }
    }

    // What the outside says.

    fn take_events(&mut self) -> bool {
        for taken in 0..TURN {
            match self.port.poll() {
                Some(StreamEvent::Opened { id, remote }) => self.opened(id, remote),
                Some(StreamEvent::Data { id, data }) => self.with(id, |connection| connection.arrived.append(data)),
                Some(StreamEvent::Finished { id }) => self.with(id, |connection| connection.tell_finished = true),
                Some(StreamEvent::Closed { id }) => {
                    self.with(id, |connection| {
                        connection.closed = true;
                        connection.waiting.clear();
                        if !connection.announced {
                            // Nobody will ever be told.
                            connection.arrived = Payload::new();
                        }
                    });
                    self.by_port.remove(&id);
                }
                Some(StreamEvent::Writable { id }) => {
                    if let Some(id) = self.by_port.get(&id) {
                        self.hand_over(*id);
                    }
                }
                None => return taken > 0,
            }
        }
        true
    }

    fn opened(&mut self, on_port: StreamId, remote: SocketAddr) {
        let serial = self.next_serial;
        self.next_serial = serial.wrapping_add(1);
        let desk = self.sent.clone();
        let made = self.connections.insert_with(|id| Connection {
            serial,
            on_port,
            remote,
            announced: false,
            arrived: Payload::new(),
            tell_finished: false,
            closed: false,
            in_news: false,
            waiting: VecDeque::new(),
            finishing: false,
            account: Arc::new(SentAccount { id, bytes: AtomicU32::new(0), desk }),
        });
        match made {
            Some(id) => {
                self.by_port.insert(on_port, id);
                self.with(on_port, |_| {});
            }
            // So many that have ended are not told yet that no name is left.
            None => self.port.reset(on_port),
        }
    }

    /// Notes something about a connection of the port that the inside is to be told.
    fn with(&mut self, on_port: StreamId, note: impl FnOnce(&mut Connection)) {
        let Some(id) = self.by_port.get(&on_port) else { return };
        if let Some(connection) = self.connections.get_mut(*id) {
            note(connection);
            if !std::mem::replace(&mut connection.in_news, true) {
                self.news.push_back(*id);
            }
        }
    }

    /// Queues the acknowledgements that are due.
    fn note_sent(&mut self) {
        // SYNC: pairs with the release in `SentAccount::add`.
        if !self.sent.has_due.swap(false, Ordering::Acquire) {
            return;
        }
        let due = std::mem::take(&mut *self.sent.due.lock().unwrap_or_else(PoisonError::into_inner));
        for id in due {
            if let Some(connection) = self.connections.get_mut(id)
                && !std::mem::replace(&mut connection.in_news, true)
            {
                self.news.push_back(id);
            }
        }
    }

    /// Tells the inside what is new, each connection in turn, until the lane is full.
    fn report(&mut self) -> bool {
        if !self.lane.is_up() {
            return false;
        }
        let mut more = false;
        for told in 0..self.news.len() {
            let Some(id) = self.news.pop_front() else { return told > 0 };
            match self.report_one(id) {
                Told::Everything => {}
                Told::MoreToTell => {
                    more = true;
                    self.news.push_back(id);
                }
                Told::HeapFull => self.news.push_back(id),
                Told::LaneFull => {
                    self.news.push_front(id);
                    return told > 0;
                }
            }
        }
        more
    }

    fn report_one(&mut self, id: StreamId) -> Told {
        let Some(connection) = self.connections.get_mut(id) else { return Told::Everything };
        let name = Name { id, serial: connection.serial };
        if !connection.announced {
            if connection.closed {
                // It came and went without the inside.
                self.forget(id);
                return Told::Everything;
            }
            match announce(&mut self.lane, &mut self.reserve, name, connection.remote) {
                Told::Everything => connection.announced = true,
                not_yet => return not_yet,
            }
        }
        if !connection.arrived.is_empty() {
            return self.pass_on(id, name);
        }
        let acknowledged = connection.account.bytes.load(Ordering::Relaxed);
        if acknowledged >= ACKNOWLEDGE_BYTES as u32 {
            if !tell(&mut self.lane, name, Report::Sent(acknowledged)) {
                return Told::LaneFull;
            }
            connection.account.bytes.fetch_sub(acknowledged, Ordering::Relaxed);
        }
        if connection.tell_finished {
            if !tell(&mut self.lane, name, Report::Finished) {
                return Told::LaneFull;
            }
            connection.tell_finished = false;
        }
        if connection.closed {
            if !tell(&mut self.lane, name, Report::Closed) {
                return Told::LaneFull;
            }
            self.forget(id);
            return Told::Everything;
        }
        connection.in_news = false;
        Told::Everything
    }

    /// Lends one message of what has arrived to the inside.
    fn pass_on(&mut self, id: StreamId, name: Name) -> Told {
        let Some(connection) = self.connections.get_mut(id) else { return Told::Everything };
        match send_next(&mut self.lane, Report::Data.encode(name).0, &mut connection.arrived) {
            Ok(true) => Told::MoreToTell,
            Ok(false) => Told::LaneFull,
            Err(error) => {
                tracing::warn!(%error, "resetting a connection whose data cannot be lent");
                connection.arrived = Payload::new();
                self.port.reset(connection.on_port);
                Told::MoreToTell
            }
        }
    }
}

/// Tells the inside something without payload; false if the lane is full.
fn tell(lane: &mut Lane, name: Name, report: Report) -> bool {
    lane.send(report.encode(name).0, Payload::new()).is_ok()
}

/// Tells the inside of a new connection. A long address goes in a buffer, the reserve if there is no other.
fn announce(lane: &mut Lane, reserve: &mut Option<ArenaBuf>, name: Name, remote: SocketAddr) -> Told {
    let (head, header) = Report::Opened(remote).encode(name);
    let mut payload = Payload::new();
    if let Some(header) = header {
        let fresh = lane.memory().alloc(ADDRESS_BYTES).ok();
        let Some(mut buf) = fresh.or_else(|| reserve.take()) else { return Told::HeapFull };
        for (to, from) in buf.as_mut_slice().iter_mut().zip(header) {
            *to = from;
        }
        payload = buf.into_payload();
    }
    let told = lane.send(head, payload).is_ok();
    if reserve.is_none() {
        *reserve = lane.memory().alloc(ADDRESS_BYTES).ok();
    }
    if told { Told::Everything } else { Told::LaneFull }
}

/// The same bytes under a hold that counts them when they have been sent.
fn counted(payload: Payload, account: Arc<SentAccount>) -> Payload {
    let hold = Arc::new(Counted { payload, account });
    let mut outer = Payload::new();
    for segment in hold.payload.segments() {
        outer.push(segment, Some(hold.clone()));
    }
    outer
}
