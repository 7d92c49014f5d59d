//! Sides that are smoltcp over frames.

use std::time::{Duration, Instant as Clock};

use fido_core::assignment::WaitStrategy;
use fido_core::lane::Lane;
use fido_core::waiter::Waiter;
use mmnet::frame::{FrameLink, FramePort, MAX_MTU};
use mmnet::phy::FramePhy;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr, IpEndpoint};

use super::netperf::{Side, Turn};
use super::{PATIENCE, SILENCE};
use crate::Failure;

const TCP_BUFFER_BYTES: usize = 1 << 20;
const UDP_BUFFER_BYTES: usize = 1 << 20;
const DATAGRAMS: usize = 256;
/// After so many bytes or messages the stack is polled.
const BATCH_BYTES: usize = 64 << 10;
const BATCH: u32 = 16;
const PORT: u16 = 7;
/// Where the leading side's ports begin.
const FIRST_LOCAL: u16 = 49_152;

/// A stack with one TCP and one UDP socket.
pub struct Stack {
    phy: FramePhy,
    interface: Interface,
    sockets: SocketSet<'static>,
    /// The connection's socket, and the one that listens for the next connection meanwhile.
    tcp: SocketHandle,
    next: SocketHandle,
    udp: SocketHandle,
    waiter: Waiter,
    began: Clock,
    other: IpAddress,
    local: u16,
    datagrams: bool,
    out: Vec<u8>,
    input: Vec<u8>,
    /// Bytes that the sockets have copied in and out.
    copied: u64,
    /// Bytes and messages that the sockets have taken since the last poll.
    unpolled: (usize, u32),
}

impl Stack {
    /// A stack over that lane, as host `number` of two (1 or 2).
    ///
    /// # Errors
    /// If the stack does not take its address.
    pub fn new(lane: Lane, number: u8) -> Result<Self, Failure> {
        let mut phy = FramePhy::new(FrameLink::new(lane, MAX_MTU)?);
        let waiter = Waiter::new(WaitStrategy::Adaptive)?.counting_in(phy.link().memory());
        let config = Config::new(EthernetAddress([2, 0, 0, 0, 0, number]).into());
        let mut interface = Interface::new(config, &mut phy, Instant::ZERO);
        let mut full = false;
        interface.update_ip_addrs(|addrs| {
            full = addrs.push(IpCidr::new(IpAddress::v4(10, 0, 0, number), 24)).is_err();
        });
        if full {
            return Err("no room for an address".into());
        }
        let mut sockets = SocketSet::new(Vec::new());
        let buffer = || tcp::SocketBuffer::new(vec![0; TCP_BUFFER_BYTES]);
        let mut socket = || {
            let mut socket = tcp::Socket::new(buffer(), buffer());
            socket.set_nagle_enabled(false);
            socket.set_ack_delay(None);
            sockets.add(socket)
        };
        let (tcp, next) = (socket(), socket());
        let packets = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; DATAGRAMS], vec![0; UDP_BUFFER_BYTES]);
        let mut datagrams = udp::Socket::new(packets(), packets());
        datagrams.bind(PORT).map_err(|error| format!("UDP: {error}"))?;
        Ok(Self {
            phy,
            interface,
            tcp,
            next,
            udp: sockets.add(datagrams),
            sockets,
            waiter,
            began: Clock::now(),
            other: IpAddress::v4(10, 0, 0, 3 - number),
            local: FIRST_LOCAL,
            datagrams: false,
            out: vec![0xA5; 64 << 10],
            input: vec![0; 64 << 10],
            copied: 0,
            unpolled: (0, 0),
        })
    }

    fn now(&self) -> Instant {
        Instant::from_micros(self.began.elapsed().as_micros() as i64)
    }

    /// Counts what a socket has taken, and sends after a batch.
    fn has_taken(&mut self, bytes: usize) {
        self.copied += bytes as u64;
        self.unpolled = (self.unpolled.0 + bytes, self.unpolled.1 + 1);
        if self.unpolled.0 >= BATCH_BYTES || self.unpolled.1 >= BATCH {
            self.poll();
        }
    }

    fn poll(&mut self) {
        self.unpolled = (0, 0);
        let now = self.now();
        self.interface.poll(now, &mut self.phy, &mut self.sockets);
        self.phy.flush();
    }

    /// Moves everything along until `done` has a result; nothing after `patience`.
    fn until<T>(
        &mut self,
        patience: Duration,
        mut done: impl FnMut(&mut Self) -> Result<Option<T>, Failure>,
    ) -> Result<Option<T>, Failure> {
        let mut since = None;
        loop {
            if let Some(result) = done(self)? {
                self.waiter.busy();
                return Ok(Some(result));
            }
            let sent = self.phy.link().counts().sent;
            self.poll();
            if let Some(result) = done(self)? {
                self.waiter.busy();
                return Ok(Some(result));
            }
            if since.get_or_insert_with(Clock::now).elapsed() > patience {
                return Ok(None);
            }
            if self.phy.link().counts().sent == sent {
                let now = self.now();
                let delay = self.interface.poll_delay(now, &self.sockets).map(Duration::from);
                self.waiter.idle(&mut [self.phy.source()], Some(delay.map_or(SILENCE, |delay| delay.min(SILENCE))))?;
            }
        }
    }

    /// As [`Self::until`] for what must come.
    fn must<T>(&mut self, what: &str, mut done: impl FnMut(&mut tcp::Socket<'_>) -> Option<T>) -> Result<T, Failure> {
        let result = self.until(PATIENCE, |stack| Ok(done(stack.sockets.get_mut(stack.tcp))))?;
        result.ok_or_else(|| format!("no {what} for {PATIENCE:?}").into())
    }

    fn send_datagram(&mut self, bytes: usize) -> Result<(), Failure> {
        let to = IpEndpoint::new(self.other, PORT);
        let sent = self.until(PATIENCE, |stack| {
            let data = stack.out.get(..bytes).ok_or("a message that is too long")?;
            Ok(stack.sockets.get_mut::<udp::Socket<'_>>(stack.udp).send_slice(data, to).ok())
        })?;
        self.has_taken(bytes);
        sent.ok_or_else(|| "no room for a datagram".into())
    }

    fn receive_datagram(&mut self) -> Result<usize, Failure> {
        let got = self.until(SILENCE, |stack| {
            let socket = stack.sockets.get_mut::<udp::Socket<'_>>(stack.udp);
            Ok(socket.recv_slice(&mut stack.input).ok().map(|(count, _)| count))
        })?;
        let count = got.unwrap_or(0);
        self.copied += count as u64;
        Ok(count)
    }
}

impl Side for Stack {
    fn open(&mut self, turn: &Turn, active: bool) -> Result<(), Failure> {
        self.datagrams = turn.test.is_udp();
        if self.datagrams {
            return Ok(());
        }
        std::mem::swap(&mut self.tcp, &mut self.next);
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.tcp);
        if active {
            self.local = self.local.checked_add(1).unwrap_or(FIRST_LOCAL);
            let to = (self.other, PORT);
            socket
                .connect(self.interface.context(), to, self.local)
                .map_err(|error| format!("cannot connect: {error}"))?;
        } else if !socket.is_open() {
            socket.listen(PORT).map_err(|error| format!("cannot listen: {error}"))?;
        }
        self.must("connection", |socket| (socket.is_active() && socket.may_send()).then_some(()))?;
        if !active {
            // The next one may come before this one is closed here.
            let next = self.sockets.get_mut::<tcp::Socket<'_>>(self.next);
            next.listen(PORT).map_err(|error| format!("cannot listen: {error}"))?;
        }
        Ok(())
    }

    fn send(&mut self, bytes: usize) -> Result<(), Failure> {
        if self.datagrams {
            return self.send_datagram(bytes);
        }
        let mut at = 0;
        while at < bytes {
            let sent = self.until(PATIENCE, |stack| {
                let data = stack.out.get(at..bytes).ok_or("a message that is too long")?;
                let socket = stack.sockets.get_mut::<tcp::Socket<'_>>(stack.tcp);
                let count = socket.send_slice(data).map_err(|error| format!("cannot send: {error}"))?;
                Ok((count > 0).then_some(count))
            })?;
            at += sent.ok_or("no room in the window")?;
        }
        self.has_taken(bytes);
        Ok(())
    }

    fn receive(&mut self, most: usize) -> Result<usize, Failure> {
        if self.datagrams {
            return self.receive_datagram();
        }
        let most = most.min(self.input.len());
        let got = self.until(PATIENCE, |stack| {
            let socket = stack.sockets.get_mut::<tcp::Socket<'_>>(stack.tcp);
            if socket.can_recv() {
                let count = socket.recv_slice(&mut stack.input[..most]);
                return Ok(Some(count.map_err(|error| format!("cannot receive: {error}"))?));
            }
            Ok((!socket.may_recv()).then_some(0))
        })?;
        let count = got.ok_or("nothing received")?;
        self.copied += count as u64;
        Ok(count)
    }

    fn finish(&mut self) -> Result<(), Failure> {
        self.sockets.get_mut::<tcp::Socket<'_>>(self.tcp).close();
        self.poll();
        Ok(())
    }

    fn close(&mut self) -> Result<(), Failure> {
        if self.datagrams {
            self.poll();
            return Ok(());
        }
        self.must("end", |socket| matches!(socket.state(), tcp::State::TimeWait | tcp::State::Closed).then_some(()))?;
        // The name is not used again so soon that a segment of the old connection could meet the new one.
        self.sockets.get_mut::<tcp::Socket<'_>>(self.tcp).abort();
        self.poll();
        Ok(())
    }

    fn copied(&self) -> Option<u64> {
        Some(self.phy.link().memory().stats().payload_bytes_copied.get() + self.copied)
    }
}
