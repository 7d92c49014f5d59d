use fido_core::assignment::Transport;
use fido_core::testing::lane_pair;

use super::*;
use crate::frame::{FrameLink, MIN_MTU};

const FRAMES: u64 = 10_000;

fn pair(faults: Faults) -> (Faulty<FrameLink>, FrameLink) {
    let (a, b) = lane_pair(64, Transport::Pointer);
    let a = FrameLink::new(a, MIN_MTU).unwrap();
    (Faulty::new(a, faults).unwrap(), FrameLink::new(b, MIN_MTU).unwrap())
}

fn frame(memory: &Memory, number: u64) -> Frame {
    let mut buf = memory.alloc(64).unwrap();
    buf.as_mut_slice().fill(0);
    buf.as_mut_slice()[..8].copy_from_slice(&number.to_be_bytes());
    buf.into_payload().into()
}

fn bytes(memory: &Memory, frame: &Frame) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    memory.read_header(&frame.payload, 0, &mut bytes).unwrap();
    bytes
}

/// Sends frames through the layer and returns what arrives.
fn run(faults: Faults) -> (Vec<Vec<u8>>, FaultCounts, u64) {
    let (mut a, mut b) = pair(faults);
    let mut arrived = Vec::new();
    let mut collect = |a: &mut Faulty<FrameLink>| {
        a.flush();
        while let Some(frame) = b.recv() {
            arrived.push(bytes(b.memory(), &frame));
        }
        b.flush();
    };
    for number in 0..FRAMES {
        a.send(frame(a.memory(), number)).unwrap();
        collect(&mut a);
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while !a.waiting.is_empty() || a.memory().heap().used() > 0 {
        assert!(Instant::now() < deadline, "out of patience: {:?}", a.counts);
        collect(&mut a);
    }
    (arrived, a.counts, a.memory().stats().payload_bytes_copied.get())
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().unwrap())
}

#[test]
fn losses_and_doubles_repeat_with_their_seed() {
    let faults = Faults { seed: 7, loss: 100_000, duplication: 50_000, ..Faults::default() };
    let (arrived, counts, copied) = run(faults);
    assert!((800..1200).contains(&counts.lost) && (350..550).contains(&counts.duplicated), "{counts:?}");
    assert_eq!((arrived.len() as u64, copied), (FRAMES - counts.lost + counts.duplicated, 0));
    assert!(arrived.is_sorted_by_key(|bytes| number(bytes)));
    assert!(run(faults).0 == arrived);
    assert!(run(Faults { seed: 8, ..faults }).0 != arrived);
}

#[test]
fn damage_is_one_bit_of_a_copy() {
    let (arrived, counts, copied) = run(Faults { corruption: 1_000_000, ..Faults::default() });
    assert_eq!((arrived.len() as u64, counts.corrupted, copied), (FRAMES, FRAMES, FRAMES * 64));
    for (at, bytes) in (0u64..).zip(&arrived) {
        let sent = [&at.to_be_bytes()[..], &[0; 56]].concat();
        let wrong: u32 = bytes.iter().zip(&sent).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!(wrong, 1);
    }
}

#[test]
fn what_nobody_would_notice_is_lost_instead() {
    let (mut a, mut b) = pair(Faults { corruption: 1_000_000, ..Faults::default() });
    let mut marked = frame(a.memory(), 1);
    marked.offload.checksum = Checksum::Needed { start: 34, offset: 16 };
    a.send(marked).unwrap();
    a.flush();
    assert!(b.recv().is_none());
    assert_eq!((a.faults().lost, a.faults().corrupted), (1, 0));
}

#[test]
fn late_frames_are_overtaken_and_come_both_ways() {
    let (arrived, counts, _) = run(Faults { reordering: 20_000, ..Faults::default() });
    assert_eq!(arrived.len() as u64 + counts.crowded_out, FRAMES);
    assert!(counts.reordered > 100 && !arrived.is_sorted_by_key(|bytes| number(bytes)), "{counts:?}");

    let (mut a, mut b) = pair(Faults { delay: 2_000, ..Faults::default() });
    let began = Instant::now();
    b.send(frame(b.memory(), 5)).unwrap();
    b.flush();
    assert!(a.recv().is_none() && a.waiting.len() == 1, "it waits");
    let arrived = loop {
        if let Some(frame) = a.recv() {
            break frame;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "out of patience");
    };
    assert!(began.elapsed() >= Duration::from_millis(2));
    assert_eq!(number(&bytes(a.memory(), &arrived)), 5);
}

#[test]
fn what_waits_is_bounded_and_let_go_with_the_dead() {
    let (mut a, _b) = pair(Faults { delay: 5_000_000, ..Faults::default() });
    for number in 0..=MAX_WAITING as u64 {
        a.send(frame(a.memory(), number)).unwrap();
    }
    assert_eq!((a.waiting.len(), a.faults().crowded_out), (MAX_WAITING, 1));
    a.forget(a.memory().id());
    assert_eq!((a.waiting.len(), a.memory().heap().used()), (0, 0));
}

#[test]
fn limits_are_exact() {
    let fits = |faults: Faults| faults.check().is_ok();
    for (millionths, right) in [(MILLION, true), (MILLION + 1, false)] {
        assert_eq!(fits(Faults { loss: millionths, ..Faults::default() }), right);
        assert_eq!(fits(Faults { duplication: millionths, ..Faults::default() }), right);
        assert_eq!(fits(Faults { corruption: millionths, ..Faults::default() }), right);
        assert_eq!(fits(Faults { reordering: millionths, ..Faults::default() }), right);
    }
    for (delay, right) in [(MAX_DELAY - 1, true), (MAX_DELAY, false), (u64::MAX, false)] {
        assert_eq!(fits(Faults { delay, jitter: 1, ..Faults::default() }), right);
    }
}
