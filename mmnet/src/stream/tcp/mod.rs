//! The outside's sockets as a [`StreamPort`]: accepts TCP connections, receives into the own arena, sends from
//! wherever in the appliance the bytes lie.
//!
//! * Received bytes go by `recv` straight into buffers of the own arena and are lent piece by piece; pieces that
//!   follow each other in a buffer join in a payload. A buffer is taken when a socket is readable, and given up when
//!   the connection is idle and others need it.
//! * What is sent goes by one `sendmsg` per flush and connection, up to 1024 segments, from the windows. A hold is
//!   dropped as soon as its bytes are with the kernel.
//! * At most [`Limits::receive_bytes`] of a connection are on loan; then it is not read until something comes back.
//!   The same holds for all if the heap is exhausted. Neither costs anything while it lasts: the thread on which the
//!   last hold is dropped wakes the port.
//! * If that lasts longer than [`Limits::starve_patience`], the connection with the most on loan that has been silent
//!   is reset: clients that send half a record and then nothing would else keep the heap for ever.
//! * One connection gets one `recv` or `sendmsg` of bounded size per turn, so a fast one does not starve the others.
//!
//! The epoll set is edge-triggered. A connection that is not to be read now, because too much of it is on loan, needs
//! no system call to be silenced and none to be heard again: that it is readable is remembered in private memory.
//! Level-triggered, every stop and go would be an `epoll_ctl`. For the same reason interest in writability is
//! registered once: TCP raises that edge only after a send was refused.
//!
//! It does not open connections to the outside, and it does not count `payload_bytes`: that is counted once per
//! appliance, at the block device.

mod connection;
mod famine;

mod limits;
mod socket;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use fido_core::addr::DomainId;
use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::wait::Source;
use fido_core::window::Span;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};

use super::slab::Slab;
use super::{SendError, StreamEvent, StreamId, StreamPort};
use crate::stream::lease::{Account, Waker};
use connection::{Connection, Received, Sent};
use famine::Famine;
pub use limits::{BindError, Limits};
pub use socket::raise_file_limit;

/// Names in the epoll set that no connection has: those are 32 bits.
const LISTENER: u64 = 1 << 32;
const WAKER: u64 = LISTENER + 1;
const TIMER: u64 = LISTENER + 2;
/// Edges taken from the kernel per turn.
const EDGES: usize = 128;
/// Connections accepted, read from and sent on per turn.
const TURN: usize = 64;
/// Idle connections that keep a partly used receive buffer.
const KEEPERS: usize = 32;
/// When to try again what nobody wakes us for: buffers that somebody else freed, file descriptors.
const RETRY_NANOS: i64 = 10_000_000;

/// A listening TCP socket and its connections.
pub struct TcpPort {
    memory: Memory,
    limits: Limits,
    listener: OwnedFd,
    local: SocketAddr,
    epoll: OwnedFd,
    waker: Arc<Waker>,
    /// One-shot: for what nobody else wakes us, see [`RETRY_NANOS`].
    timer: OwnedFd,
    connections: Slab<Connection>,
    events: VecDeque<StreamEvent>,
    /// To be read from. So are `starving` once there are buffers, and blocked ones once the waker names them.
    reading: VecDeque<StreamId>,
    /// To be sent on.
    sending: VecDeque<StreamId>,
    starving: Vec<StreamId>,
    famine: Famine,
    /// Those with a buffer and nothing to read, longest first.
    keeping: VecDeque<StreamId>,
    /// The listener had an edge and has not been accepted empty since.
    acceptable: bool,
    /// Accepting failed for want of something; the timer runs.
    accept_paused: bool,
    /// Scratch space.
    spans: Vec<Span>,
}

impl TcpPort {
    /// Listens on `addr`; port 0 takes any free one.
    ///
    /// # Errors
    /// [`BindError`], which says what is wrong with the address or the limits.
    pub fn bind(memory: Memory, addr: SocketAddr, limits: Limits) -> Result<Self, BindError> {
        limits.check()?;
        let listener = socket::listen(addr, &limits)?;
        let other = |errno: Errno| BindError::Other { addr, source: errno.into() };
        let local = rustix::net::getsockname(&listener).map_err(other)?;
        let local = SocketAddr::try_from(local).map_err(other)?;
        let waker = Arc::new(Waker::new().map_err(other)?);
        let timer_flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, timer_flags).map_err(other)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(other)?;
        let sources = [(listener.as_fd(), LISTENER), (waker.bell(), WAKER), (timer.as_fd(), TIMER)];
        for (fd, token) in sources {
            let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&epoll, fd, epoll::EventData::new_u64(token), edge).map_err(other)?;
        }
        Ok(Self {
            memory,
            limits,
            listener,
            local,
            epoll,
            waker,
            timer,
            connections: Slab::new(limits.connections),
            events: VecDeque::new(),
            reading: VecDeque::new(),
            sending: VecDeque::new(),
            starving: Vec::new(),
            famine: Famine::default(),
            keeping: VecDeque::new(),
            acceptable: true,
            accept_paused: false,
            spans: Vec::new(),
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// How many connections there are, those included whose `Closed` event has not been taken.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// One turn over everything that can move; events go to the queue.
    fn turn(&mut self) {
        self.take_news();
        self.take_edges();
        self.accept();
        self.read();
        self.transmit();
    }

    /// What the threads say on which leases ended.
    fn take_news(&mut self) {
        if let Some(released) = self.waker.take() {
            for id in released {
                self.want_to_read(id);
            }
            self.feed();
        }
    }

    /// Lets those try again that found the heap exhausted.
    fn feed(&mut self) {
        for id in std::mem::take(&mut self.starving) {
            self.want_to_read(id);
        }
    }

    fn take_edges(&mut self) {
        let mut space = [MaybeUninit::<epoll::Event>::uninit(); EDGES];
        self.memory.stats().syscalls.add(1);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let Ok((edges, _)) = epoll::wait(&self.epoll, &mut space, Some(&now)) else { return };
        for edge in edges {
            let (token, flags) = (edge.data.u64(), edge.flags);
            match token {
                LISTENER => self.acceptable = true,
                // It was only to wake us: `take_news` looks at what lies behind it.
                WAKER => {}
                TIMER => {
                    self.accept_paused = false;
                    self.feed();
                }
                id => self.take_edge(StreamId(id as u32), flags),
            }
        }
    }

    fn take_edge(&mut self, id: StreamId, flags: epoll::EventFlags) {
        use epoll::EventFlags as E;
        if flags.contains(E::ERR) {
            self.fail(id);
            return;
        }
        let Some(connection) = self.connections.get_mut(id) else { return };
        if flags.intersects(E::OUT | E::HUP) {
            connection.writable = true;
        }
        // An edge reports all that is true, so also an end that has been read already.
        if flags.intersects(E::IN | E::PRI | E::RDHUP | E::HUP) && !connection.peer_finished {
            connection.readable = true;
            connection.to_the_end |= flags.intersects(E::PRI | E::RDHUP | E::HUP);
        }
        self.want_to_read(id);
        self.want_to_send(id);
    }

    fn want_to_read(&mut self, id: StreamId) {
        if let Some(connection) = self.connections.get_mut(id)
            && connection.readable
            && !connection.in_reading
        {
            connection.in_reading = true;
            self.reading.push_back(id);
        }
    }

    fn want_to_send(&mut self, id: StreamId) {
        if let Some(connection) = self.connections.get_mut(id)
            && connection.writable
            && connection.has_to_send()
            && !connection.in_sending
        {
            connection.in_sending = true;
            self.sending.push_back(id);
        }
    }

    fn can_accept(&self) -> bool {
        self.acceptable && !self.accept_paused && !self.connections.is_full()
    }

    fn accept(&mut self) {
        for _ in 0..TURN {
            if !self.can_accept() {
                return;
            }
            match socket::accept(&self.listener, self.memory.stats()) {
                Ok((fd, remote)) => self.admit(fd, remote),
                Err(Errno::AGAIN) => self.acceptable = false,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    tracing::warn!(open = self.connections.len(), "no file descriptor or memory for a connection");
                    self.accept_paused = true;
                    self.start_timer();
                }
                // The connection that failed is gone; the next one may be well.
                Err(_) => {}
            }
        }
    }

    fn admit(&mut self, fd: OwnedFd, remote: SocketAddr) {
        use epoll::EventFlags as E;
        let (limits, waker) = (self.limits, self.waker.clone());
        let make = |id| Connection::new(fd, Account::new(id, limits.receive_bytes, waker), &limits);
        let Some(id) = self.connections.insert_with(make) else { return };
        self.events.push_back(StreamEvent::Opened { id, remote });
        self.memory.stats().syscalls.add(1);
        let edges = E::IN | E::OUT | E::RDHUP | E::PRI | E::ET;
        let added = match self.connections.get(id).and_then(|connection| connection.socket.as_ref()) {
            Some(fd) => epoll::add(&self.epoll, fd, epoll::EventData::new_u64(u64::from(id.0)), edges).is_ok(),
            None => false,
        };
        if !added {
            self.fail(id);
        }
    }

    fn read(&mut self) {
        for _ in 0..TURN.min(self.reading.len()) {
            let Some(id) = self.reading.pop_front() else { return };
            self.read_one(id);
        }
    }

    fn read_one(&mut self, id: StreamId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.in_reading = false;
        if !connection.readable {
            return;
        }
        let had_buffer = connection.has_usable_buffer();
        let received = connection.receive(&self.memory, &self.limits);
        if !had_buffer && connection.has_buffer() {
            self.famine.end();
        }
        match received {
            Received::Data(data) => {
                connection.fed_in = self.famine.count();
                self.events.push_back(StreamEvent::Data { id, data });
                self.keep_or_go_on(id);
            }
            Received::Nothing => self.keep_or_go_on(id),
            Received::End => {
                connection.peer_finished = true;
                let over = connection.is_over();
                self.events.push_back(StreamEvent::Finished { id });
                if over {
                    self.close(id, false);
                }
            }
            Received::Blocked => {}
            Received::Starved => self.starve(id),
            Received::Failed => self.fail(id),
        }
    }

    /// After a read: there may be more, or the connection is idle and keeps its buffer for a while.
    fn keep_or_go_on(&mut self, id: StreamId) {
        self.want_to_read(id);
        let Some(connection) = self.connections.get_mut(id) else { return };
        if connection.readable || connection.in_keeping || !connection.has_buffer() {
            return;
        }
        connection.in_keeping = true;
        self.keeping.push_back(id);
        if self.keeping.len() > KEEPERS {
            self.shed_one();
        }
    }

    /// Takes the buffer of the longest idle connection; false if none has one.
    fn shed_one(&mut self) -> bool {
        while let Some(id) = self.keeping.pop_front() {
            let Some(connection) = self.connections.get_mut(id) else { continue };
            connection.in_keeping = false;
            if !connection.readable && connection.has_buffer() {
                connection.drop_buffer(&self.limits);
                return true;
            }
        }
        false
    }

    /// There is no buffer for `id`: take those of idle connections, or wait until some come back.
    fn starve(&mut self, id: StreamId) {
        while self.shed_one() {}
        // First the wish to be woken, then a last look: what is freed in between is not missed.
        self.waker.starve();
        if self.memory.alloc(connection::LEAST_BUFFER_BYTES).is_ok() {
            self.want_to_read(id);
            return;
        }
        if self.starving.is_empty() {
            self.start_timer();
        }
        self.starving.push(id);
        if self.famine.is_due(self.limits.starve_patience) {
            self.evict();
        }
    }

    /// Nobody has had a buffer for so long that nobody may ever: resets the connection that is most to blame.
    fn evict(&mut self) {
        let famine = self.famine.count();
        let blame = |id: &StreamId| self.connections.get(*id).and_then(|connection| connection.blame(famine));
        let worst = self.connections.ids().into_iter().filter_map(|id| Some((blame(&id)?, id))).max();
        self.famine.end();
        let Some((blame, id)) = worst else { return };
        let starving = self.starving.len();
        tracing::warn!(?id, on_loan = blame.on_loan, starving, "no receive buffers; resetting who holds most of them");
        self.memory.stats().refusals.add(1);
        self.fail(id);
    }

    fn start_timer(&mut self) {
        let after = Timespec { tv_sec: 0, tv_nsec: RETRY_NANOS };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: after };
        self.memory.stats().syscalls.add(1);
        // It cannot fail with these arguments; if it did, the next lease that ends or connection that closes would do.
        let _ = rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
    }

    fn transmit(&mut self) {
        for _ in 0..self.sending.len() {
            let Some(id) = self.sending.pop_front() else { return };
            self.transmit_one(id);
        }
    }

    fn transmit_one(&mut self, id: StreamId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.in_sending = false;
        match connection.transmit(&self.memory, &mut self.spans) {
            Sent::Settled if connection.is_over() => {
                self.close(id, false);
                return;
            }
            Sent::Settled | Sent::More => {}
            Sent::Failed => {
                self.fail(id);
                return;
            }
        }
        if connection.wants_room && connection.has_drained() {
            connection.wants_room = false;
            self.events.push_back(StreamEvent::Writable { id });
        }
        self.want_to_send(id);
    }

    fn fail(&mut self, id: StreamId) {
        self.close(id, true);
    }

    fn close(&mut self, id: StreamId, reset: bool) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        if connection.close(reset, &self.memory) {
            self.accept_paused = false;
            self.events.push_back(StreamEvent::Closed { id });
        }
    }
}

impl std::fmt::Debug for TcpPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TcpPort({}, {} connections)", self.local, self.connections.len())
    }
}

impl Source for TcpPort {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn arm(&mut self) {
        self.waker.arm(true);
    }

    fn ready(&mut self) -> bool {
        !self.events.is_empty()
            || !self.reading.is_empty()
            || !self.sending.is_empty()
            || self.can_accept()
            || self.waker.has_news()
    }

    fn disarm(&mut self) {
        self.waker.arm(false);
    }
}

impl StreamPort for TcpPort {
    fn poll(&mut self) -> Option<StreamEvent> {
        if self.events.is_empty() {
            self.turn();
        }
        let event = self.events.pop_front()?;
        if let StreamEvent::Closed { id } = event {
            self.connections.remove(id);
        }
        Some(event)
    }

    fn send(&mut self, id: StreamId, data: Payload) -> Result<(), SendError> {
        let Some(connection) = self.connections.get_mut(id) else { return Err(SendError::Closed) };
        if connection.socket.is_none() || connection.finishing {
            return Err(SendError::Closed);
        }
        if !connection.has_room(data.len()) {
            connection.wants_room = true;
            return Err(SendError::Full(data));
        }
        connection.enqueue(data);
        self.want_to_send(id);
        Ok(())
    }

    fn finish(&mut self, id: StreamId) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.finishing = true;
            self.want_to_send(id);
        }
    }

    fn reset(&mut self, id: StreamId) {
        self.close(id, true);
    }

    fn flush(&mut self) {
        self.transmit();
    }

    fn rescue(&mut self, dead: DomainId) {
        for id in self.connections.ids() {
            let Some(connection) = self.connections.get_mut(id) else { continue };
            if let Err(error) = connection.rescue(dead, &self.memory) {
                tracing::warn!(%dead, %error, "resetting a connection whose replies died with their domain");
                self.close(id, true);
            }
        }
    }
}
