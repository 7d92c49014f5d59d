//! A [`FrameLink`] as a device of smoltcp: a whole TCP/IP stack over a lane.
//!
//! What is sent is built by the stack in a buffer of the own arena and lent: no copy. What is received is copied once
//! into private memory, because the stack reads a `&[u8]`, and there is no such thing as a reference to memory that a
//! peer may change. (The copy is counted. To spare it for payload, a stack would have to read headers by copy and leave
//! the rest where it is.)
//!
//! Checksums are neither computed nor verified: the bytes never leave the appliance's memory.

use fido_core::wait::Source;
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::frame::{FrameLink, FramePort, HEADER_BYTES};

/// A frame link as smoltcp wants it.
#[derive(Debug)]
pub struct FramePhy {
    link: FrameLink,
    /// The received frame, in private memory.
    frame: Vec<u8>,
}

impl FramePhy {
    /// A device over `link`.
    pub fn new(link: FrameLink) -> Self {
        let frame = Vec::with_capacity(link.mtu() + HEADER_BYTES);
        Self { link, frame }
    }

    /// The link.
    pub fn link(&self) -> &FrameLink {
        &self.link
    }

    /// Hands on what was sent. Call it after polling the interface and before waiting.
    pub fn flush(&mut self) {
        self.link.flush();
    }

    /// What to wait for.
    pub fn source(&mut self) -> &mut dyn Source {
        &mut self.link
    }
}

impl Device for FramePhy {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = ToSend<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, ToSend<'_>)> {
        loop {
            let payload = self.link.recv()?.payload;
            // At most 64 KiB and a header, which the link has checked.
            self.frame.resize(payload.len() as usize, 0);
            // A peer that died after the lane's check takes its frame with it.
            if self.link.memory().copy_to_slice(&payload, &mut self.frame).is_ok() {
                return Some((Received { frame: &self.frame }, ToSend { link: &mut self.link }));
            }
        }
    }

    fn transmit(&mut self, _now: Instant) -> Option<ToSend<'_>> {
        self.link.has_room().then_some(ToSend { link: &mut self.link })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.link.mtu() + HEADER_BYTES;
        capabilities.checksum = ChecksumCapabilities::ignored();
        capabilities
    }
}

/// A received frame.
#[derive(Debug)]
pub struct Received<'a> {
    frame: &'a [u8],
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.frame)
    }
}

/// Leave to send one frame.
#[derive(Debug)]
pub struct ToSend<'a> {
    link: &'a mut FrameLink,
}

impl TxToken for ToSend<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let Ok(mut buf) = self.link.memory().alloc(len) else {
            // The stack must have something to write to; the frame is lost, and sent again by who needs it.
            self.link.count_unsent();
            return f(&mut vec![0; len]);
        };
        let result = f(buf.as_mut_slice());
        if self.link.send(buf.into_payload().into()).is_err() {
            self.link.count_unsent();
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant as Clock};

    use fido_core::assignment::Transport;
    use fido_core::lane::Lane;
    use fido_core::testing::lane_pair;
    use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
    use smoltcp::socket::tcp;
    use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};

    use super::*;
    use crate::stream::testkit::pattern;

    const BYTES: usize = 512 << 10;

    /// A stack with one socket, which sends `out` and collects what it gets.
    struct Host {
        phy: FramePhy,
        interface: Interface,
        sockets: SocketSet<'static>,
        handle: SocketHandle,
        out: Vec<u8>,
        sent: usize,
        got: Vec<u8>,
    }

    impl Host {
        fn new(lane: Lane, number: u8, mtu: usize) -> Self {
            let mut phy = FramePhy::new(FrameLink::new(lane, mtu).unwrap());
            let config = Config::new(EthernetAddress([2, 0, 0, 0, 0, number]).into());
            let mut interface = Interface::new(config, &mut phy, Instant::from_millis(0));
            interface.update_ip_addrs(|addrs| {
                addrs.push(IpCidr::new(IpAddress::v4(10, 0, 0, number), 24)).unwrap();
            });
            let mut sockets = SocketSet::new(Vec::new());
            let buffer = || tcp::SocketBuffer::new(vec![0; 65_535]);
            let handle = sockets.add(tcp::Socket::new(buffer(), buffer()));
            Self { phy, interface, sockets, handle, out: pattern(number.into(), BYTES), sent: 0, got: Vec::new() }
        }

        fn turn(&mut self, now: Instant) {
            self.interface.poll(now, &mut self.phy, &mut self.sockets);
            let socket = self.sockets.get_mut::<tcp::Socket>(self.handle);
            if socket.can_send() && self.sent < self.out.len() {
                self.sent += socket.send_slice(&self.out[self.sent..]).unwrap();
                if self.sent == self.out.len() {
                    socket.close();
                }
            }
            while socket.can_recv() {
                let got = &mut self.got;
                socket.recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
            }
            self.interface.poll(now, &mut self.phy, &mut self.sockets);
            self.phy.flush();
        }
    }

    #[test]
    fn two_stacks_talk_tcp_over_a_lane() {
        for (transport, mtu, slots) in
            [(Transport::Pointer, 1500, 64), (Transport::Pointer, 32_000, 4), (Transport::Copying, 9000, 16)]
        {
            let (a, b) = lane_pair(slots, transport);
            let (mut client, mut server) = (Host::new(a, 1, mtu), Host::new(b, 2, mtu));
            server.sockets.get_mut::<tcp::Socket>(server.handle).listen(7).unwrap();
            let socket = client.sockets.get_mut::<tcp::Socket>(client.handle);
            socket.connect(client.interface.context(), (IpAddress::v4(10, 0, 0, 2), 7), 49_152).unwrap();
            let began = Clock::now();
            while client.got.len() < BYTES || server.got.len() < BYTES {
                let now = Instant::from_micros(began.elapsed().as_micros() as i64);
                client.turn(now);
                server.turn(now);
                assert!(began.elapsed() < Duration::from_secs(60), "out of patience");
            }
            assert!(client.got == pattern(2, BYTES) && server.got == pattern(1, BYTES));
            let copied = client.phy.link().memory().stats().payload_bytes_copied.get();
            assert!(copied >= BYTES as u64, "the copy out of the peer's memory is counted");
            let counts = client.phy.link().counts();
            assert_eq!((counts.refused, counts.dropped_sending), (0, 0));
        }
    }

    #[test]
    fn without_memory_frames_are_lost_and_counted() {
        let (a, _b) = lane_pair(8, Transport::Pointer);
        let mut phy = FramePhy::new(FrameLink::new(a, 1500).unwrap());
        let memory = phy.link().memory().clone();
        let mut size = 16 << 20;
        let mut hoard = Vec::new();
        while size >= 64 {
            match memory.alloc(size) {
                Ok(buf) => hoard.push(buf),
                Err(_) => size /= 2,
            }
        }
        let now = Instant::from_millis(0);
        assert_eq!(phy.transmit(now).unwrap().consume(60, |frame| frame.len()), 60);
        assert_eq!((phy.link().counts().dropped_sending, phy.link().counts().sent), (1, 0));
        drop(hoard);
        phy.transmit(now).unwrap().consume(60, |_| ());
        phy.flush();
        assert_eq!(phy.link().counts().sent, 1);
    }
}
