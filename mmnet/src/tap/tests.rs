//! The port over a pair of datagram sockets, which read and write as a queue of the kernel's does. The kernel's own are
//! tried by `.ci/net`.

use std::os::unix::net::UnixDatagram;

use fido_core::testing::private_memory;
use proptest::prelude::*;

use super::*;
use crate::frame::{Checksum, Segmentation, SegmentationKind};

fn port_in(memory: &Memory, mtu: usize) -> (TapPort, UnixDatagram) {
    let (near, far) = UnixDatagram::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    (TapPort::over(near.into(), "test", mtu, true, memory.clone()), far)
}

fn bytes_of(memory: &Memory, payload: &Payload) -> Vec<u8> {
    let mut bytes = vec![0; payload.len() as usize];
    memory.read_header(payload, 0, &mut bytes).unwrap();
    bytes
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|at| ((at * 7) >> 3) as u8).collect()
}

fn large() -> Offload {
    Offload {
        checksum: Checksum::Needed { start: 34, offset: 16 },
        segmentation: Some(Segmentation { kind: SegmentationKind::Tcp4, size: 1448, header: 66, ecn: false }),
    }
}

fn with_header(offload: Offload, frame: &[u8]) -> Vec<u8> {
    [&VirtioHeader::from(offload).to_bytes(), frame].concat()
}

#[test]
fn frames_of_every_length_come_and_go_with_their_marks() {
    let memory = private_memory(4 << 20);
    let (mut port, kernel) = port_in(&memory, 1500);
    let lens = [14, 60, 1518, 2048, 2049, 2048 + PIECE_BYTES, 2049 + PIECE_BYTES, MAX_FRAME_BYTES];
    for (len, offload) in lens.map(|len| (len, if len > 1518 { large() } else { Offload::default() })) {
        let bytes = with_header(offload, &frame(len));
        kernel.send(&bytes).unwrap();
        let arrived = port.recv().unwrap();
        assert_eq!((arrived.offload, bytes_of(&memory, &arrived.payload)), (offload, frame(len)));
        assert!(arrived.payload.parts().len() <= 3, "a lane takes it without a list");
        port.send(arrived).unwrap();
        let mut back = vec![0; bytes.len() + 1];
        assert_eq!(kernel.recv(&mut back).unwrap(), bytes.len());
        assert_eq!(back[..bytes.len()], bytes);
    }
    assert!(port.recv().is_none());
    let counts = port.counts();
    assert_eq!((counts.sent, counts.received, counts.sent_bytes), (8, 8, counts.received_bytes));
    assert_eq!(memory.stats().payload_bytes_copied.get(), 0);
    let kept = memory.heap().used();
    assert!(kept <= 2048 + 2 * PIECE_BYTES as u64, "{kept}: what the next frame will need");
}

#[test]
fn a_small_frame_holds_no_large_buffer() {
    let memory = private_memory(4 << 20);
    let (mut port, kernel) = port_in(&memory, 1500);
    let mut held = Vec::new();
    for _ in 0..100 {
        kernel.send(&with_header(Offload::default(), &frame(60))).unwrap();
        held.push(port.recv().unwrap());
    }
    assert!(memory.heap().used() <= 101 * 2048 + 2 * PIECE_BYTES as u64, "{}", memory.heap().used());
}

#[test]
fn lengths_and_marks_are_checked_at_their_limits() {
    let memory = private_memory(1 << 20);
    let (mut port, kernel) = port_in(&memory, 1500);
    for (len, fits) in [(0, false), (13, false), (14, true), (1518, true), (1519, false)] {
        kernel.send(&with_header(Offload::default(), &frame(len))).unwrap();
        assert_eq!(port.recv().is_some(), fits, "{len}");
    }
    kernel.send(&[0; 5]).unwrap();
    assert!(port.recv().is_none());
    let mut marks = with_header(large(), &frame(2000));
    marks[1] = 2;
    kernel.send(&marks).unwrap();
    assert!(port.recv().is_none());
    assert_eq!((port.counts().refused, port.counts().received), (5, 2));
    let payload = memory.alloc(1519).unwrap().into_payload();
    assert!(port.send(payload.into()).is_err());
}

#[test]
fn without_memory_frames_are_lost_counted_and_nobody_waits() {
    let memory = private_memory(1 << 20);
    let (mut port, kernel) = port_in(&memory, 1500);
    let hoard: Vec<_> = [512, 256, 128, 64, 32, 16, 8, 4, 2, 1]
        .into_iter()
        .flat_map(|kib| std::iter::from_fn(move || Some(kib << 10)).take(2))
        .filter_map(|len| memory.alloc(len).ok())
        .collect();
    for _ in 0..3 {
        kernel.send(&with_header(Offload::default(), &frame(60))).unwrap();
    }
    assert!(port.recv().is_none());
    assert_eq!(port.counts().dropped_receiving, 3);
    drop(hoard);
    kernel.send(&with_header(Offload::default(), &frame(60))).unwrap();
    assert!(port.recv().is_some());
}

#[test]
fn names_and_numbers_of_queues_are_checked() {
    for (name, fits) in
        [("", false), ("a", true), ("a23456789012345", true), ("a234567890123456", false), ("a/b", false)]
    {
        let refused =
            matches!(TapPort::open(&TapOptions::named(name), private_memory(1 << 20)), Err(TapError::Name(_)));
        assert_eq!(!refused, fits, "{name}");
    }
    for queues in [0, MAX_QUEUES + 1] {
        let memories = vec![private_memory(1 << 20); queues];
        let opened = TapPort::open_queues(&TapOptions::named("fido-none"), memories);
        assert!(matches!(opened, Err(TapError::Queues(count)) if count == queues), "{queues}");
    }
}

#[test]
fn who_may_not_is_told_what_to_do() {
    let error = TapError::Denied { name: "tap0".into(), queues: 2 }.to_string();
    assert!(
        error.contains("CAP_NET_ADMIN") && error.contains("ip tuntap add dev tap0 mode tap multi_queue"),
        "{error}"
    );
}

proptest! {
    /// Whatever is read is a frame that every port of that MTU may carry, or is refused and counted.
    #[test]
    fn any_input_is_a_frame_or_refused(data in prop::collection::vec(any::<u8>(), 0..4000)) {
        fuzzing::input(&data);
    }
}
