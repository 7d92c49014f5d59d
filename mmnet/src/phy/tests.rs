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
        let buffer = || tcp::SocketBuffer::new(vec![0; 256 << 10]);
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
        assert_eq!((counts.refused, counts.dropped_sending, client.phy.counts()), (0, 0, PhyCounts::default()));
        let frames = BYTES as u64 / counts.sent;
        assert!(frames > mtu as u64, "large segments leave whole: {frames} bytes a frame");
    }
}

#[test]
fn what_is_sent_says_where_its_checksum_goes_and_how_it_is_cut() {
    let (a, b) = lane_pair(64, Transport::Pointer);
    let mut client = Host::new(a, 1, 1500);
    let mut bare = FrameLink::new(b, 1500).unwrap();
    let now = Instant::from_millis(0);
    // A frame as the stack would write it: IPv4, TCP with a header of 32 bytes.
    let mut packet = [0; 3000];
    packet[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    packet[23] = 6;
    packet[46] = 0x80;
    for cut in [None, NonZeroU16::new(1448)] {
        let mut token = client.phy.transmit(now).unwrap();
        let mut meta = PacketMeta::default();
        meta.segmentation_offload_size = cut;
        token.set_meta(meta);
        let len = if cut.is_some() { packet.len() } else { 1000 };
        token.consume(len, |frame| frame.copy_from_slice(&packet[..len]));
        client.phy.flush();
        let offload = bare.recv().unwrap().offload;
        assert_eq!(offload.checksum, Checksum::Needed { start: 34, offset: 16 });
        assert_eq!(offload.segmentation.map(|cut| (cut.size, cut.header)), cut.map(|cut| (cut.get(), 66)));
    }
}

#[test]
fn only_what_nobody_vouches_for_is_verified() {
    let (a, b) = lane_pair(64, Transport::Pointer);
    let (mut phy, mut bare) = (FramePhy::new(FrameLink::new(a, 1500).unwrap()), FrameLink::new(b, 1500).unwrap());
    let memory = bare.memory().clone();
    let mut wrong = [0; 60];
    wrong[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    for (checksum, passes) in
        [(Checksum::Complete, false), (Checksum::Valid, true), (Checksum::Needed { start: 34, offset: 6 }, true)]
    {
        let mut buf = memory.alloc(60).unwrap();
        buf.as_mut_slice().copy_from_slice(&wrong);
        let offload = crate::frame::Offload { checksum, segmentation: None };
        bare.send(Frame { offload, payload: buf.into_payload() }).unwrap();
        bare.flush();
        let before = phy.counts().unsound;
        assert_eq!(phy.receive(Instant::ZERO).is_some(), passes, "{checksum:?}");
        assert_eq!(phy.counts().unsound - before, u64::from(!passes));
    }
}

#[test]
fn a_batch_is_bounded() {
    let (a, b) = lane_pair(1024, Transport::Pointer);
    let (mut phy, mut bare) = (FramePhy::new(FrameLink::new(a, 1500).unwrap()), FrameLink::new(b, 1500).unwrap());
    for _ in 0..=BATCH {
        bare.send(bare.memory().alloc(60).unwrap().into_payload().into()).unwrap();
        bare.flush();
    }
    let given = |phy: &mut FramePhy| std::iter::from_fn(|| phy.receive(Instant::ZERO).map(drop)).count();
    assert_eq!((given(&mut phy), phy.has_more()), (BATCH, true));
    assert_eq!((given(&mut phy), phy.has_more()), (1, false));
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
    assert_eq!((phy.counts().unsent, phy.link().counts().sent), (1, 0));
    drop(hoard);
    phy.transmit(now).unwrap().consume(60, |_| ());
    phy.flush();
    assert_eq!(phy.link().counts().sent, 1);
}
