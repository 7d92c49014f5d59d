//! A TCP/IP stack ready to use: smoltcp over any device for frames, as a [`StreamPort`].
//!
//! A component that has a [`Stack`] listens, connects and takes events exactly as with the kernel's sockets
//! ([`TcpPort`](crate::stream::TcpPort)) or with another domain's connections. Its timers are part of what it waits
//! for: the wake descriptor is readable when a frame arrives or a timer is due.
//!
//! # Knobs
//! No Nagle, no delayed acknowledgement: inside an appliance a segment costs little and a wait much. Buffers of
//! [`StackConfig::buffer_bytes`] each way, with a window scale to match. Over IPv4 segments of up to 64 KiB leave in
//! one frame, to be cut only at the edge (smoltcp 0.14 cannot over IPv6); no checksum of TCP is computed here ([`crate::phy`]).
//!
//! # Copies
//! Bytes are copied three times on their way in (to private memory, into the socket, out of it into a buffer that is
//! lent on) and twice on their way out (into the socket, into the frame); smoltcp's buffers are its own. They are
//! counted. Between two domains of an appliance [`crate::stream`] needs none of them.
//!
//! # What smoltcp cannot do
//! * Lost segments: a fast retransmission after three duplicate acknowledgements, and timeouts; no selective
//!   acknowledgements are used, so of several losses in a window only the first is repaired per round trip. At most 32
//!   holes of a window are remembered.
//! * No congestion control is used: a window's worth may be sent at once. That is right for a lane, which asks for room
//!   and loses nothing, and poor manners on a wide-area network.
//! * Its work per turn grows with the number of sockets, busy or not: hundreds are fine, tens of thousands are not.
//! * Each listener has [`StackConfig::backlog`] sockets that wait for a handshake; a connection that finds none of them
//!   free is refused, not queued. A handshake that is not finished gives up its socket after [`PATIENCE`].
//! * No path MTU discovery, no fragmentation: frames of more than the device's MTU are not sent. No TIME-WAIT: what
//!   comes late for a closed connection is answered with a reset.

mod config;
mod connection;
#[cfg(test)]
mod tests;
mod timer;

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use fido_core::addr::DomainId;
use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::wait::{PeerView, Source, WakeId};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr};

use crate::frame::{FrameLink, FramePort};
use crate::phy::FramePhy;
use crate::stream::lease::{Account, Waker};
use crate::stream::slab::Slab;
use crate::stream::{MAX_QUEUED_BYTES, SendError, StreamEvent, StreamId, StreamPort};
pub use config::{MAX_ADDRESSES, MAX_BACKLOG, StackConfig, StackError};
use connection::{Connection, Outcome};
use timer::Alarm;

/// How long a peer may be silent while something is expected of it, before its connection is given up.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How often a silent peer is asked whether it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long to wait for memory before looking again.
const STARVED: Duration = Duration::from_millis(10);
/// Rounds through all sockets in one turn, before events are handed out.
const ROUNDS: usize = 4;
/// The first port of those that connections from here get.
const FIRST_LOCAL: u16 = 49_152;

/// Sockets that wait for connections to one port.
#[derive(Debug)]
struct Listener {
    port: u16,
    waiting: Vec<SocketHandle>,
}

/// A TCP/IP stack over a device for frames. See the module's head.
pub struct Stack<P: FramePort = FrameLink> {
    phy: FramePhy<P>,
    interface: Interface,
    sockets: SocketSet<'static>,
    config: StackConfig,
    listeners: Vec<Listener>,
    connections: Slab<Connection>,
    live: Vec<StreamId>,
    events: VecDeque<StreamEvent>,
    /// Local ports of connections from here.
    locals: HashSet<u16>,
    next_local: u16,
    waker: Arc<Waker>,
    alarm: Alarm,
    began: Clock,
    /// The last turn ended before all was quiet.
    restless: bool,
    starved: bool,
}

impl<P: FramePort> Stack<P> {
    /// A stack over `port`.
    ///
    /// # Errors
    /// [`StackError`] if the configuration is beyond the limits, or the system has no descriptor left.
    pub fn new(port: P, config: StackConfig) -> Result<Self, StackError> {
        config.check()?;
        let waker = Arc::new(Waker::new()?);
        let alarm = Alarm::new(port.wake_fd(), port.edge_triggered(), waker.bell())?;
        let mut phy = FramePhy::over(port);
        let mut hardware = Config::new(EthernetAddress(config.hardware).into());
        let mut seed = [0; 8];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
        hardware.random_seed = u64::from_ne_bytes(seed);
        let mut interface = Interface::new(hardware, &mut phy, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // As many as fit: `check` has seen to that.
            for (address, prefix) in &config.addresses {
                let _ = addresses.push(IpCidr::new((*address).into(), *prefix));
            }
        });
        if let Some(gateway) = config.gateway_v4 {
            let _ = interface.routes_mut().add_default_ipv4_route(gateway);
        }
        if let Some(gateway) = config.gateway_v6 {
            let _ = interface.routes_mut().add_default_ipv6_route(gateway);
        }
        Ok(Self {
            phy,
            interface,
            sockets: SocketSet::new(Vec::new()),
            connections: Slab::new(config.connections),
            next_local: FIRST_LOCAL + (seed[0] as u16) * 64,
            config,
            listeners: Vec::new(),
            live: Vec::new(),
            events: VecDeque::new(),
            locals: HashSet::new(),
            waker,
            alarm,
            began: Clock::now(),
            restless: false,
            starved: false,
        })
    }

    /// The device.
    pub fn port(&self) -> &P {
        self.phy.port()
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Accepts connections to a port of all own addresses from now on.
    ///
    /// # Errors
    /// [`StackError::Port`] if it is 0 or listened to already.
    pub fn listen(&mut self, port: u16) -> Result<(), StackError> {
        if port == 0 || self.listeners.iter().any(|listener| listener.port == port) {
            return Err(StackError::Port(port));
        }
        let waiting = (0..self.config.backlog).filter_map(|_| self.listening(port)).collect();
        self.listeners.push(Listener { port, waiting });
        Ok(())
    }

    /// Opens a connection. [`StreamEvent::Opened`] follows when it stands, or [`StreamEvent::Closed`]; what is sent
    /// before waits.
    ///
    /// # Errors
    /// [`StackError`] if there are too many connections, or no way to that address.
    pub fn connect(&mut self, to: SocketAddr) -> Result<StreamId, StackError> {
        if self.connections.is_full() {
            return Err(StackError::Connections(self.config.connections));
        }
        let local = self.local_port()?;
        let mut socket = self.socket();
        socket.connect(self.interface.context(), to, local).map_err(|error| StackError::Connect { to, error })?;
        let handle = self.sockets.add(socket);
        let (limit, waker) = (self.config.receive_bytes, self.waker.clone());
        let made =
            self.connections.insert_with(|id| Connection::new(handle, to, Account::new(id, limit, waker), Some(local)));
        let id = made.ok_or(StackError::Connections(self.config.connections))?;
        self.locals.insert(local);
        self.live.push(id);
        self.restless = true;
        Ok(id)
    }

    fn local_port(&mut self) -> Result<u16, StackError> {
        for _ in FIRST_LOCAL..=u16::MAX {
            let port = self.next_local;
            self.next_local = if port == u16::MAX { FIRST_LOCAL } else { port + 1 };
            if !self.locals.contains(&port) && self.listeners.iter().all(|listener| listener.port != port) {
                return Ok(port);
            }
        }
        Err(StackError::NoLocalPort)
    }

    fn socket(&self) -> tcp::Socket<'static> {
        let buffer = || tcp::SocketBuffer::new(vec![0; self.config.buffer_bytes]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_timeout(Some(PATIENCE.into()));
        socket.set_keep_alive(Some(KEEP_ALIVE.into()));
        socket
    }

    fn listening(&mut self, port: u16) -> Option<SocketHandle> {
        let mut socket = self.socket();
        // It is new, and the port is not 0.
        socket.listen(port).ok()?;
        Some(self.sockets.add(socket))
    }

    fn now(&self) -> Instant {
        Instant::from_micros(i64::try_from(self.began.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    /// Moves everything until nothing moves any more, or long enough.
    fn turn(&mut self) {
        let _ = self.waker.take();
        for _ in 0..ROUNDS {
            let now = self.now();
            let changed = self.interface.poll(now, &mut self.phy, &mut self.sockets) == PollResult::SocketStateChanged;
            let moved = self.accept() | self.serve();
            self.phy.flush();
            self.restless = changed || moved || self.phy.has_more();
            if !self.restless {
                return;
            }
        }
    }

    /// Makes connections of the sockets that have one, and puts others in their place.
    fn accept(&mut self) -> bool {
        let mut moved = false;
        let mut listeners = std::mem::take(&mut self.listeners);
        for Listener { port, waiting } in &mut listeners {
            for handle in waiting.iter_mut() {
                let state = self.sockets.get::<tcp::Socket>(*handle).state();
                if matches!(state, tcp::State::Listen | tcp::State::SynReceived) {
                    continue;
                }
                // It cannot fail; if it did, the old socket would keep the place.
                let Some(next) = self.listening(*port) else { continue };
                let done = std::mem::replace(handle, next);
                if state == tcp::State::Closed {
                    self.sockets.remove(done);
                } else {
                    self.promote(done);
                }
                moved = true;
            }
        }
        self.listeners = listeners;
        moved
    }

    fn promote(&mut self, handle: SocketHandle) {
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        let remote = socket.remote_endpoint().map(|end| SocketAddr::new(end.addr.into(), end.port));
        let (limit, waker) = (self.config.receive_bytes, self.waker.clone());
        let make = |remote| move |id| Connection::new(handle, remote, Account::new(id, limit, waker), None);
        let made = remote.and_then(|remote| Some((self.connections.insert_with(make(remote))?, remote)));
        let Some((id, remote)) = made else {
            tracing::warn!("a connection is refused: there are too many, or it is gone already");
            // Its reset goes out with the next round; nobody hears of it again.
            socket.abort();
            self.interface.poll_egress(self.now(), &mut self.phy, &mut self.sockets);
            self.sockets.remove(handle);
            return;
        };
        self.live.push(id);
        self.events.push_back(StreamEvent::Opened { id, remote });
    }

    /// Moves bytes between sockets and payloads; whether anything happened.
    fn serve(&mut self) -> bool {
        let memory = self.phy.port().memory().clone();
        let mut moved = false;
        self.starved = false;
        let mut at = 0;
        while let Some(&id) = self.live.get(at) {
            let Some(connection) = self.connections.get_mut(id) else {
                self.live.swap_remove(at);
                continue;
            };
            let socket = self.sockets.get_mut::<tcp::Socket>(connection.handle);
            match connection.serve(id, socket, &memory, &mut self.events) {
                Outcome::Idle => {}
                Outcome::Moved => moved = true,
                Outcome::Starved => self.starved = true,
                Outcome::Over => {
                    let (handle, local) = (connection.handle, connection.local);
                    self.sockets.remove(handle);
                    self.connections.remove(id);
                    local.map(|port| self.locals.remove(&port));
                    self.live.swap_remove(at);
                    self.events.push_back(StreamEvent::Closed { id });
                    moved = true;
                    continue;
                }
            }
            at += 1;
        }
        if self.starved {
            self.waker.starve();
        }
        moved
    }

    fn memory(&self) -> &Memory {
        self.phy.port().memory()
    }

    /// How long until a timer is due.
    fn delay(&mut self) -> Option<Duration> {
        let now = self.now();
        let mut delay = self.interface.poll_delay(now, &self.sockets).map(Duration::from);
        if !self.phy.port().has_room() {
            // What is due cannot be sent, so it would be due at once again. The port wakes when there is room.
            delay = delay.map(|delay| delay.max(STARVED));
        }
        if self.starved { Some(delay.map_or(STARVED, |delay| delay.min(STARVED))) } else { delay }
    }
}

impl<P: FramePort> std::fmt::Debug for Stack<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stack({:?}, {} connections)", self.config.addresses, self.connections.len())
    }
}

impl<P: FramePort> StreamPort for Stack<P> {
    fn poll(&mut self) -> Option<StreamEvent> {
        if self.events.is_empty() {
            self.turn();
        }
        self.events.pop_front()
    }

    fn send(&mut self, id: StreamId, data: Payload) -> Result<(), SendError> {
        let Some(connection) = self.connections.get_mut(id).filter(|connection| !connection.ended) else {
            return Err(SendError::Closed);
        };
        if connection.queued > 0 && connection.queued.saturating_add(data.len()) > MAX_QUEUED_BYTES {
            connection.wants_room = true;
            return Err(SendError::Full(data));
        }
        connection.enqueue(data);
        self.restless = true;
        Ok(())
    }

    fn finish(&mut self, id: StreamId) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.ended = true;
            self.restless = true;
        }
    }

    fn reset(&mut self, id: StreamId) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.reset(self.sockets.get_mut::<tcp::Socket>(connection.handle));
            self.restless = true;
        }
    }

    fn flush(&mut self) {
        if self.restless {
            self.turn();
        } else {
            self.phy.flush();
        }
    }

    fn rescue(&mut self, dead: DomainId) {
        self.phy.port_mut().forget(dead);
        let memory = self.memory().clone();
        for id in &self.live {
            let Some(connection) = self.connections.get_mut(*id) else { continue };
            if !connection.rescue(dead, &memory) {
                tracing::warn!(?id, "resetting a connection: no room for what a dead domain had lent it");
                connection.reset(self.sockets.get_mut::<tcp::Socket>(connection.handle));
            }
        }
        self.restless = true;
    }
}

impl<P: FramePort> Source for Stack<P> {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.alarm.wake_fd()
    }

    fn wake_id(&self) -> Option<WakeId> {
        Some(self.alarm.id())
    }

    fn arm(&mut self) {
        self.phy.port_mut().arm();
        self.waker.arm(true);
        let delay = self.delay();
        self.alarm.set(delay);
    }

    fn ready(&mut self) -> bool {
        !self.events.is_empty() || self.restless || self.waker.has_news() || self.phy.port_mut().ready()
    }

    fn disarm(&mut self) {
        self.phy.port_mut().disarm();
        self.waker.arm(false);
        self.alarm.reset();
    }

    fn meet(&mut self, seat: Option<u32>) -> Option<PeerView> {
        self.phy.port_mut().meet(seat)
    }
}

/// Body of the fuzz target and of the property test: whatever frames arrive, by whatever marks, a stack that listens
/// neither panics nor hangs, and its loans come back.
///
/// # Panics
/// If it does, or the system has no memory for a lane.
#[expect(clippy::expect_used, reason = "a test cannot go on without what it asks for")]
pub fn fuzz(bytes: &[u8]) {
    use crate::frame::{Checksum, Frame, Offload};
    let transport = fido_core::assignment::Transport::Pointer;
    let (_link, a, b) = fido_core::testing::TestLink::sized(64, transport, 1 << 20);
    let addresses = vec![([10, 0, 0, 2].into(), 24), (std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2).into(), 64)];
    let config = StackConfig { addresses, buffer_bytes: 2 << 10, backlog: 2, connections: 2, ..StackConfig::default() };
    let link = |lane| FrameLink::new(lane, 1500).expect("an MTU in range");
    let (mut bare, mut stack) = (link(a), Stack::new(link(b), config).expect("within the limits"));
    stack.listen(0x0707).expect("a port");
    for piece in bytes.split(|byte| *byte == b'|').take(64) {
        let [mark, rest @ ..] = piece else { continue };
        let frame = [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9], rest].concat();
        let Ok(mut buf) = bare.memory().alloc(frame.len()) else { return };
        buf.as_mut_slice().copy_from_slice(&frame);
        let checksum = if mark & 1 == 0 { Checksum::Valid } else { Checksum::Complete };
        // A frame that is too short or long is refused here already.
        let _ = bare.send(Frame { offload: Offload { checksum, segmentation: None }, payload: buf.into_payload() });
        bare.flush();
        while stack.poll().is_some() {}
        stack.flush();
        while bare.recv().is_some() {}
    }
    bare.flush();
    stack.flush();
    bare.flush();
    assert_eq!(bare.memory().heap().used(), 0, "a loan did not come back");
}
