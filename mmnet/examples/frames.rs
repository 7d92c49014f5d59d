//! How fast small frames pass from one domain to another: two threads, each on a processor of its own, or with `count`
//! both ends on one thread in turns, for tools that count instructions.
//!
//! ```text
//! cargo run --release -p mmnet --example frames [count] [FRAMES]
//! ```

#![expect(clippy::unwrap_used, reason = "an example ends where something is wrong")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use fido_core::assignment::Transport;
use fido_core::pool::Pool;
use fido_core::testing::TestLink;
use mmnet::frame::{Frame, FrameLink, FramePort};

/// Bytes of a frame: Ethernet's shortest, without its checksum of 4.
const BYTES: usize = 60;
/// Frames sent before a flush.
const BATCH: usize = 64;
/// Slots of the lane's rings.
const SLOTS: u32 = 1024;
/// Buffers of the sender.
const BUFFERS: usize = 4096;

struct Sender {
    link: FrameLink,
    pool: Pool,
    sent: u64,
}

impl Sender {
    fn new(link: FrameLink) -> Self {
        let pool = Pool::new(link.memory(), BYTES, BUFFERS).unwrap();
        Self { link, pool, sent: 0 }
    }

    /// Sends at most a batch, as far as there is room.
    fn turn(&mut self, limit: u64) {
        for _ in 0..BATCH {
            if self.sent == limit || !self.link.has_room() {
                break;
            }
            let Some(mut buf) = self.pool.take() else { break };
            buf.as_mut_slice()[..8].copy_from_slice(&self.sent.to_le_bytes());
            self.link.send(Frame::from(buf.into_payload())).unwrap();
            self.sent += 1;
        }
        self.link.flush();
    }
}

/// Takes all that is there; the frames are dropped at once, and so returned with the flush. How many have arrived so
/// far, also those that found no place because more came than were taken.
fn receive(link: &mut FrameLink) -> u64 {
    while link.recv().is_some() {}
    link.flush();
    let counts = link.counts();
    counts.received + counts.dropped_receiving
}

fn pin(cpu: usize) {
    let mut one = rustix::thread::CpuSet::new();
    one.set(cpu);
    rustix::thread::sched_setaffinity(None, &one).unwrap();
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let counting = words.first().is_some_and(|word| word == "count");
    let default = if counting { 100_000 } else { 20_000_000 };
    let frames: u64 = words.iter().find_map(|word| word.parse().ok()).unwrap_or(default);
    let (_link, a, b) = TestLink::new(SLOTS, Transport::Pointer);
    let mut sender = Sender::new(FrameLink::new(a, 1500).unwrap());
    let mut receiver = FrameLink::new(b, 1500).unwrap();
    let mut received = 0;
    let began = Instant::now();
    if counting {
        while received < frames {
            sender.turn(frames);
            received = receive(&mut receiver);
        }
    } else {
        let done = Arc::new(AtomicBool::new(false));
        let heard = done.clone();
        let sending = std::thread::spawn(move || {
            pin(0);
            while !heard.load(Ordering::Relaxed) {
                sender.turn(frames);
                std::hint::spin_loop();
            }
            sender
        });
        pin(1);
        while received < frames {
            received = receive(&mut receiver);
        }
        done.store(true, Ordering::Relaxed);
        sender = sending.join().unwrap();
    }
    let seconds = began.elapsed().as_secs_f64();
    let counts = receiver.counts();
    println!("{received} frames of {BYTES} bytes, {:.2} Mpps, {counts:?}", received as f64 / seconds / 1e6);
    assert_eq!((sender.link.counts().dropped_sending, counts.refused), (0, 0));
}
