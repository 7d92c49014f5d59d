//! One sleep for many sources, under every interleaving, checked by loom: two peers publish on two rings while one
//! thread goes to sleep on both.
//!
//! | promise | mutations that break it |
//! |---|---|
//! | whoever sleeps has been rung by each who published | no fence; one source is not looked at again; the last one is armed after the fence; each source is looked at before it is armed |

use super::*;
use crate::bell::Bell;
use crate::ring::{Consumer, Line, MESSAGE_WORDS, Producer, Sleeper, Slot, Waker};
use crate::sync::AtomicBool;
use loom::thread;
use std::os::fd::AsFd;
use std::sync::Arc;

/// A ring of one slot, its reader's armed word and bell.
#[derive(Default)]
struct Ring {
    slot: Slot,
    armed: Line,
    rung: AtomicBool,
}

/// The reader of a ring, as a lane is for its thread.
struct Reader {
    ring: Arc<Ring>,
    rx: Consumer,
    sleeper: Sleeper,
    /// Nobody sleeps on it here.
    bell: Bell,
}

impl Source for Reader {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn arm(&mut self) {
        self.sleeper.arm(&self.ring.armed, false);
    }

    fn ready(&mut self) -> bool {
        self.rx.is_ready()
    }

    fn disarm(&mut self) {
        self.sleeper.disarm(&self.ring.armed);
    }
}

fn publish(ring: &Ring) {
    // SAFETY: the slot lives in the `Arc` that this thread holds.
    let mut tx = unsafe { Producer::new(&raw const ring.slot, 1) };
    assert!(tx.push(&[7; MESSAGE_WORDS]));
    if Waker::default().must_ring(&ring.armed, false) {
        ring.rung.store(true, Ordering::Relaxed);
    }
}

fn sleep(look: fn(&mut [&mut dyn Source]) -> bool) {
    loom::model(move || {
        let rings: [Arc<Ring>; 2] = std::array::from_fn(|_| Arc::default());
        let mut readers = rings.clone().map(|ring| {
            // SAFETY: the slot lives in the `Arc` that the reader holds.
            let rx = unsafe { Consumer::new(&raw const ring.slot, 1) };
            Reader { ring, rx, sleeper: Sleeper::default(), bell: Bell::new().expect("a bell") }
        });
        let peers = rings.clone().map(|ring| thread::spawn(move || publish(&ring)));
        let [a, b] = &mut readers;
        let saw = look(&mut [a, b]);
        peers.into_iter().for_each(|peer| peer.join().expect("the peer ends"));
        let rung = rings.iter().all(|ring| ring.rung.load(Ordering::Relaxed));
        assert!(saw || rung, "lost wake-up");
    });
}

#[test]
fn whoever_sleeps_is_rung_by_each() {
    sleep(arm_and_look);
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn mutation_no_fence() {
    sleep(|sources| {
        sources.iter_mut().for_each(|source| source.arm());
        sources.iter_mut().any(|source| source.ready())
    });
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn mutation_one_source_is_not_looked_at_again() {
    sleep(|sources| {
        sources.iter_mut().for_each(|source| source.arm());
        fence(Ordering::SeqCst);
        sources[0].ready()
    });
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn mutation_the_last_source_is_armed_after_the_fence() {
    sleep(|sources| {
        sources[0].arm();
        fence(Ordering::SeqCst);
        sources[1].arm();
        sources.iter_mut().any(|source| source.ready())
    });
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn mutation_each_source_is_looked_at_before_it_is_armed() {
    sleep(|sources| {
        let ready = sources.iter_mut().any(|source| {
            let ready = source.ready();
            source.arm();
            ready
        });
        fence(Ordering::SeqCst);
        ready
    });
}
