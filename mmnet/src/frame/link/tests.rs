use fido_core::addr::{Generation, GlobalAddr, Segment};
use fido_core::assignment::Transport;
use fido_core::testing::{TestLink, lane_pair};

use super::*;
use crate::frame::{Checksum, MAX_FRAME_BYTES, Segmentation, SegmentationKind};

fn frame(link: &FrameLink, len: usize, byte: u8) -> Frame {
    let mut buf = link.memory().alloc(len).unwrap();
    buf.as_mut_slice().fill(byte);
    buf.into_payload().into()
}

fn len(frame: Option<Frame>) -> Option<u64> {
    frame.map(|frame| frame.payload.len())
}

fn pair(slots: u32) -> (FrameLink, FrameLink) {
    let (a, b) = lane_pair(slots, Transport::Pointer);
    (FrameLink::new(a, 1500).unwrap(), FrameLink::new(b, 1500).unwrap())
}

#[test]
fn limits_are_exact() {
    for (mtu, fits) in [(MIN_MTU - 1, false), (MIN_MTU, true), (MAX_MTU, true), (MAX_MTU + 1, false)] {
        assert_eq!(FrameLink::new(lane_pair(4, Transport::Pointer).0, mtu).is_ok(), fits, "{mtu}");
    }
    let (mut a, mut b) = pair(8);
    for (len, fits) in [(13, false), (14, true), (1518, true), (1519, false)] {
        assert_eq!(a.send(frame(&a, len, 1)).is_ok(), fits, "{len}");
    }
    a.flush();
    assert_eq!((len(b.recv()), len(b.recv())), (Some(14), Some(1518)));
    assert!(b.recv().is_none());
}

#[test]
fn a_receiver_that_does_not_look_holds_up_nobody_and_its_sender_sees_it() {
    let (mut a, mut b) = pair(8);
    let total = 4 * QUEUE as u64;
    for n in 0..total {
        a.send(frame(&a, 60, n as u8)).unwrap();
        a.flush();
        b.flush();
    }
    assert!(!a.has_room());
    let dropped = a.counts().dropped_sending;
    assert!(dropped > 0 && b.counts().dropped_receiving == 0, "{dropped}");
    let mut received = 0;
    while let Some(frame) = b.recv() {
        let mut byte = [0];
        b.memory().read_header(&frame.payload, 0, &mut byte).unwrap();
        assert_eq!(u64::from(byte[0]), received % 256);
        received += 1;
        drop(frame);
        b.flush();
        a.flush();
    }
    assert_eq!(received + dropped, total);
    for _ in 0..4 {
        b.flush();
        a.flush();
    }
    assert_eq!(a.memory().heap().used(), 0, "all loans are back");
}

#[test]
fn a_peer_that_takes_nothing_costs_a_bounded_queue() {
    let (mut a, _b) = pair(8);
    let mut sent = 0;
    while a.has_room() {
        a.send(frame(&a, 60, 1)).unwrap();
        sent += 1;
    }
    // Eight messages of three frames are in the ring.
    assert_eq!(sent, 24 + QUEUE);
    a.send(frame(&a, 60, 1)).unwrap();
    assert_eq!((a.counts().dropped_sending, a.counts().sent), (1, 24));
}

#[test]
fn what_is_no_frame_is_refused() {
    let (mut bare, b) = lane_pair(8, Transport::Pointer);
    let mut b = FrameLink::new(b, 1500).unwrap();
    let memory = bare.memory().clone();
    let mut wild = Payload::new();
    wild.push(Segment::new(GlobalAddr::from_bits(u64::MAX), 60), Some(std::sync::Arc::new(())));
    let of = |len| memory.alloc(len).unwrap().into_payload();
    for (kind, payload) in [(FRAME, of(13)), (FRAME, of(1519)), (0x20, of(60)), (FRAME, wild), (FRAME, of(60))] {
        bare.send(Head { kind, ..Head::default() }, payload).unwrap();
    }
    bare.flush();
    assert_eq!(len(b.recv()), Some(60));
    assert_eq!((b.counts().refused, b.counts().received), (4, 1));
}

#[test]
fn a_dead_peers_frames_are_let_go() {
    let (mut link, a, b) = TestLink::new(8, Transport::Pointer);
    let (mut a, mut b) = (FrameLink::new(a, 1500).unwrap(), FrameLink::new(b, 1500).unwrap());
    b.send(frame(&b, 60, 1)).unwrap();
    b.flush();
    a.flush();
    drop(b);
    link.kill_b();
    assert!(a.recv().is_none() && !a.has_room());
    assert_eq!(link.a_passes.count(), 1);
    a.send(frame(&a, 60, 2)).unwrap();
    assert_eq!(a.counts().dropped_sending, 1);
    link.fence_b();
    let mut b = FrameLink::new(link.restart_b(), 1500).unwrap();
    b.flush();
    a.flush();
    b.flush();
    a.send(frame(&a, 60, 3)).unwrap();
    a.flush();
    assert_eq!(len(b.recv()), Some(60));
}

#[test]
fn a_large_frame_passes_with_its_marks_and_no_longer_one() {
    let (mut a, mut b) = pair(8);
    let offload = Offload {
        checksum: Checksum::Needed { start: 34, offset: 16 },
        segmentation: Some(Segmentation { kind: SegmentationKind::Tcp4, size: 1448, header: 66, ecn: false }),
    };
    a.send(Frame { offload, ..frame(&a, MAX_FRAME_BYTES, 1) }).unwrap();
    let refused = a.send(Frame { offload, ..frame(&a, MAX_FRAME_BYTES + 1, 1) });
    assert_eq!(refused, Err(FrameError::Length { len: MAX_FRAME_BYTES as u64 + 1, limit: MAX_FRAME_BYTES }));
    a.flush();
    let arrived = b.recv().unwrap();
    assert_eq!((arrived.offload, arrived.payload.len()), (offload, MAX_FRAME_BYTES as u64));
}

#[test]
fn marks_of_a_peer_that_do_not_fit_are_refused() {
    let (mut bare, b) = lane_pair(8, Transport::Pointer);
    let mut b = FrameLink::new(b, 1500).unwrap();
    let memory = bare.memory().clone();
    let outside = VirtioHeader { flags: 1, csum_start: 60, ..VirtioHeader::default() };
    let unknown = VirtioHeader { gso_type: 2, ..VirtioHeader::default() };
    let empty = VirtioHeader { flags: 1, gso_type: 1, ..VirtioHeader::default() };
    for header in [outside, unknown, empty, VirtioHeader::default()] {
        let (flags, args) = header.to_words(0);
        bare.send(Head { kind: FRAME, flags, args }, memory.alloc(60).unwrap().into_payload()).unwrap();
    }
    bare.flush();
    assert_eq!(len(b.recv()), Some(60));
    assert_eq!((b.counts().refused, b.counts().received), (3, 1));
}

#[test]
fn frames_in_a_dead_third_domains_arena_are_let_go() {
    let (mut a, _b) = pair(8);
    for _ in 0..28 {
        a.send(frame(&a, 60, 1)).unwrap();
    }
    let own = a.memory().id();
    a.forget(DomainId { generation: Generation::new(own.generation.number() + 1).unwrap(), ..own });
    assert_eq!((a.queued(), a.waiting_frames), (4, 4));
    a.forget(own);
    assert_eq!((a.queued(), a.waiting.len()), (0, 0));
}

/// The lengths of the frames that arrive at `b`, and how many loans they came under.
fn arrivals(a: &mut FrameLink, b: &mut FrameLink) -> (Vec<u64>, usize) {
    a.flush();
    let loans = a.lane.loans();
    let frames: Vec<_> = std::iter::from_fn(|| b.recv()).collect();
    let lens = frames.iter().map(|frame| frame.payload.len()).collect();
    for frame in &frames {
        let mut bytes = vec![0; frame.payload.len() as usize];
        b.memory().read_header(&frame.payload, 0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| u64::from(*byte) == frame.payload.len() % 251));
    }
    drop(frames);
    b.flush();
    a.flush();
    assert_eq!((a.lane.loans(), a.memory().heap().used()), (0, 0), "all loans are back");
    (lens, loans)
}

#[test]
fn small_frames_go_three_in_a_message_and_come_apart() {
    let (mut a, mut b) = pair(64);
    for (lens, loans) in [
        (&[60, 61, 62][..], 1),
        (&[60, 61, 62, 63], 2),
        (&[60, 1518, 14], 1),
        // Frames of a cache line each lie side by side, and still are several.
        (&[64, 64, 64, 64, 64], 2),
    ] {
        for len in lens {
            let byte = (len % 251) as u8;
            a.send(frame(&a, *len as usize, byte)).unwrap();
        }
        assert_eq!(arrivals(&mut a, &mut b), (lens.to_vec(), loans), "{lens:?}");
    }
}

#[test]
fn what_does_not_go_together_goes_alone() {
    let (a, b) = lane_pair(64, Transport::Pointer);
    let (mut a, mut b) = (FrameLink::new(a, 9000).unwrap(), FrameLink::new(b, 9000).unwrap());
    let valid = Offload { checksum: Checksum::Valid, ..Offload::default() };
    a.send(frame(&a, 60, 60)).unwrap();
    a.send(Frame { offload: valid, ..frame(&a, 60, 60) }).unwrap();
    assert_eq!(arrivals(&mut a, &mut b), (vec![60, 60], 2), "other marks");
    for len in [4096u64, 60, 60, 4097, 60] {
        a.send(frame(&a, len as usize, (len % 251) as u8)).unwrap();
    }
    assert_eq!(arrivals(&mut a, &mut b), (vec![4096, 60, 60, 4097, 60], 4), "not beside long ones");
    let two_parts = |a: &FrameLink| {
        let mut both = frame(a, 40, 100);
        both.payload.append(frame(a, 60, 100).payload);
        both
    };
    for _ in 0..2 {
        a.send(two_parts(&a)).unwrap();
    }
    a.send(frame(&a, 60, 60)).unwrap();
    assert_eq!(arrivals(&mut a, &mut b), (vec![100, 100, 60], 2), "at most three segments");
}

#[test]
fn boundaries_are_a_peers_word() {
    let (mut bare, b) = lane_pair(64, Transport::Pointer);
    let mut b = FrameLink::new(b, 1500).unwrap();
    let memory = bare.memory().clone();
    // What is cut, into what it comes apart, and how many pieces of that are no frames.
    for (boundaries, frames, refused) in [
        (60 | 60 << 16, &[60, 60, 60][..], 0),
        (13, &[167], 1),
        (180, &[180], 0),
        (u32::MAX, &[180], 0),
        (60 | 113 << 16, &[60, 113], 1),
        (60 << 16, &[180], 0),
    ] {
        let head = Head { kind: FRAME, flags: 0, args: [0, 0, 0, boundaries] };
        bare.send(head, memory.alloc(180).unwrap().into_payload()).unwrap();
        bare.flush();
        let before = b.counts().refused;
        let lens: Vec<_> = std::iter::from_fn(|| b.recv()).map(|frame| frame.payload.len()).collect();
        assert_eq!((&lens[..], b.counts().refused - before), (frames, refused), "{boundaries:#x}");
    }
    bare.send(Head { kind: FRAME, ..Head::default() }, Payload::new()).unwrap();
    bare.flush();
    assert!(b.recv().is_none());
    assert_eq!(b.counts().refused, 3, "no bytes are no frame");
}
