//! The protocols under every interleaving that the memory model allows, checked by loom.

use super::*;
use crate::sync::fence;
use loom::sync::Arc;
use loom::sync::atomic::AtomicBool;
use loom::thread;

struct Shared {
    slots: Vec<Slot>,
    consumer: Control,
    bell: AtomicBool,
}

fn shared() -> Arc<Shared> {
    let slots = (0..2).map(|_| Slot::default()).collect();
    Arc::new(Shared { slots, consumer: Control::default(), bell: AtomicBool::new(false) })
}

#[test]
fn messages_arrive_whole_and_in_order() {
    loom::model(|| {
        let shared = shared();
        // SAFETY: the slots live in the `Arc`, which both threads hold.
        let mut tx = unsafe { Producer::new(shared.slots.as_ptr(), 2) };
        // SAFETY: as above.
        let mut rx = unsafe { Consumer::new(shared.slots.as_ptr(), 2) };
        let sender = shared.clone();
        let producer = thread::spawn(move || {
            for message in [7, 8, 9] {
                while !tx.push(&[message]) {
                    thread::yield_now();
                    tx.refresh(&sender.consumer.credit).expect("the credit is sane");
                }
            }
        });
        for expected in [7, 8, 9] {
            let message = loop {
                match rx.pop() {
                    Some(message) => break message,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(message, [expected]);
            rx.publish_credit(&shared.consumer.credit);
        }
        producer.join().expect("the producer ends");
    });
}

/// One message, one sleep: after both sides are done, either the consumer saw the message before it slept or
/// the bell has been rung.
fn wake_up(sleeper_fences: bool) {
    loom::model(move || {
        let shared = shared();
        // SAFETY: the slots live in the `Arc`, which both threads hold.
        let mut tx = unsafe { Producer::new(shared.slots.as_ptr(), 2) };
        // SAFETY: as above.
        let rx = unsafe { Consumer::new(shared.slots.as_ptr(), 2) };
        let sender = shared.clone();
        let producer = thread::spawn(move || {
            assert!(tx.push(&[7]));
            if Waker::default().must_ring(&sender.consumer.armed, false) {
                sender.bell.store(true, Ordering::Relaxed);
            }
        });
        Sleeper::default().arm(&shared.consumer.armed, false);
        if sleeper_fences {
            fence(Ordering::SeqCst);
        }
        let saw = rx.is_ready();
        producer.join().expect("the producer ends");
        assert!(saw || shared.bell.load(Ordering::Relaxed), "lost wake-up");
    });
}

#[test]
fn no_wake_up_is_lost() {
    wake_up(true);
}

/// The mutation that the model must catch: it proves that the model can fail.
#[test]
#[should_panic(expected = "lost wake-up")]
fn without_the_fence_a_wake_up_is_lost() {
    wake_up(false);
}
