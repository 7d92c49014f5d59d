//! Rings, credit and doorbells under every interleaving that the memory model allows, checked by loom.
//!
//! Each promise has a model over the real code, and beside it the *mutations* that the model must catch: the same with
//! one step done wrong, re-implemented here. A mutation that goes unnoticed fails the test.
//!
//! | promise | mutations that break it |
//! |---|---|
//! | a message arrives whole | the stamp is stored before the words; the stamp is stored without release |
//! | no message is overwritten before it was read | the credit is published before the words were read |
//! | no wake-up is lost | no fence at the sleeper; no fence at the waker; the waker looks before it publishes; the sleeper looks before it arms |
//! | each sleep is rung | the waker remembers that it rang, but not for which sleep |
//! | nobody waits for ever for room | the sleeper does not say that it waits for credit; the consumer keeps its credit to itself when it goes to sleep |
//!
//! What loom does not show: a load that takes effect after a later store of its thread. So it cannot tell that the
//! credit must be published with *release*; that is argued in `Consumer::publish_credit`.

use super::*;
use crate::sync::{AtomicBool, fence};
use loom::sync::Arc;
use loom::thread;

/// The first words of the message `whole(7)` in a slot, and its last word with the stamp of the first lap.
const PAIR: u64 = 7 | 7 << 32;
const LAST: u64 = 7 | 1 << 32;

/// A message that shows it if a part of it is missing.
fn whole(number: u32) -> Words {
    [number; MESSAGE_WORDS]
}

/// Both halves of a ring, and the bells of those who sleep.
struct Shared {
    slots: Vec<Slot>,
    producer: Control,
    consumer: Control,
    producer_bell: Bell,
    consumer_bell: Bell,
}

fn shared(slots: usize) -> Arc<Shared> {
    Arc::new(Shared {
        slots: (0..slots).map(|_| Slot::default()).collect(),
        producer: Control::default(),
        consumer: Control::default(),
        producer_bell: Bell::default(),
        consumer_bell: Bell::default(),
    })
}

impl Shared {
    fn tx(&self) -> Producer {
        // SAFETY: the slots live as long as the `Arc` around `self`, which both threads hold until they end.
        unsafe { Producer::new(self.slots.as_ptr(), self.slots.len() as u32) }
    }

    fn rx(&self) -> Consumer {
        // SAFETY: as above.
        unsafe { Consumer::new(self.slots.as_ptr(), self.slots.len() as u32) }
    }
}

/// A bell as the kernel has it: it remembers that it was rung. Whoever waits for one that nobody will ring has lost a
/// wake-up.
#[derive(Default)]
struct Bell {
    rung: AtomicBool,
    /// The only one who would ring it has ended.
    silent: AtomicBool,
}

impl Bell {
    fn ring(&self) {
        self.rung.store(true, Ordering::Release);
    }

    fn wait(&self) {
        while !self.rung.load(Ordering::Acquire) {
            let silent = self.silent.load(Ordering::Acquire);
            assert!(!silent || self.rung.load(Ordering::Acquire), "lost wake-up");
            thread::yield_now();
        }
        self.rung.store(false, Ordering::Relaxed);
    }

    fn fall_silent(&self) {
        self.silent.store(true, Ordering::Release);
    }
}

#[test]
fn messages_arrive_whole_and_in_order() {
    loom::model(|| {
        let shared = shared(2);
        let (mut tx, mut rx) = (shared.tx(), shared.rx());
        let sender = shared.clone();
        let producer = thread::spawn(move || {
            for message in [7, 8, 9] {
                while !tx.push(&whole(message)) {
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
            assert_eq!(message, whole(expected));
            rx.publish_credit(&shared.consumer.credit);
        }
        producer.join().expect("the producer ends");
    });
}

/// The real consumer takes what `publish` does to the first slot.
fn one_message(publish: fn(&Slot)) {
    loom::model(move || {
        let shared = shared(1);
        let mut rx = shared.rx();
        let sender = shared.clone();
        let producer = thread::spawn(move || publish(&sender.slots[0]));
        if let Some(message) = rx.pop() {
            assert_eq!(message, whole(7), "a torn message");
        }
        producer.join().expect("the producer ends");
    });
}

#[test]
fn a_message_and_its_stamp_by_hand() {
    one_message(|slot| {
        slot.pairs[0].store(PAIR, Ordering::Relaxed);
        slot.last.store(LAST, Ordering::Release);
    });
}

#[test]
#[should_panic(expected = "a torn message")]
fn mutation_the_stamp_before_the_words() {
    one_message(|slot| {
        slot.last.store(LAST, Ordering::Release);
        slot.pairs[0].store(PAIR, Ordering::Relaxed);
    });
}

#[test]
#[should_panic(expected = "a torn message")]
fn mutation_the_stamp_without_release() {
    one_message(|slot| {
        slot.pairs[0].store(PAIR, Ordering::Relaxed);
        slot.last.store(LAST, Ordering::Relaxed);
    });
}

/// A ring of one slot; the real producer sends two messages, and `take` is how the consumer takes the first.
fn overwriting(take: fn(&mut Consumer, &Shared) -> Words) {
    loom::model(move || {
        let shared = shared(1);
        let (mut tx, mut rx) = (shared.tx(), shared.rx());
        assert!(tx.push(&whole(7)));
        let sender = shared.clone();
        let producer = thread::spawn(move || {
            tx.refresh(&sender.consumer.credit).expect("the credit is sane");
            tx.push(&whole(8));
        });
        assert_eq!(take(&mut rx, &shared), whole(7), "overwritten");
        producer.join().expect("the producer ends");
    });
}

#[test]
fn a_slot_is_free_when_it_was_read() {
    overwriting(|rx, shared| {
        let message = rx.pop().expect("it was sent before");
        rx.publish_credit(&shared.consumer.credit);
        message
    });
}

#[test]
#[should_panic(expected = "overwritten")]
fn mutation_the_credit_before_the_words_were_read() {
    overwriting(|rx, shared| {
        assert!(rx.is_ready());
        shared.consumer.credit.publish(1);
        [shared.slots[0].pairs[0].load(Ordering::Relaxed) as u32; MESSAGE_WORDS]
    });
}

/// One message, one sleep.
fn wake_up(sleep: fn(&Consumer, &Shared) -> bool, publish: fn(&mut Producer, &Shared)) {
    loom::model(move || {
        let shared = shared(1);
        let (mut tx, rx) = (shared.tx(), shared.rx());
        let sender = shared.clone();
        let producer = thread::spawn(move || {
            publish(&mut tx, &sender);
            sender.consumer_bell.fall_silent();
        });
        if !sleep(&rx, &shared) {
            shared.consumer_bell.wait();
        }
        assert!(rx.is_ready());
        producer.join().expect("the producer ends");
    });
}

fn arm_and_look(rx: &Consumer, shared: &Shared) -> bool {
    Sleeper::default().arm(&shared.consumer.armed, false);
    fence(Ordering::SeqCst);
    rx.is_ready()
}

fn push_and_ring(tx: &mut Producer, shared: &Shared) {
    assert!(tx.push(&whole(7)));
    if Waker::default().must_ring(&shared.consumer.armed, false) {
        shared.consumer_bell.ring();
    }
}

#[test]
fn no_wake_up_is_lost() {
    wake_up(arm_and_look, push_and_ring);
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn mutation_no_fence_at_the_sleeper() {
    let sleep = |rx: &Consumer, shared: &Shared| {
        Sleeper::default().arm(&shared.consumer.armed, false);
        rx.is_ready()
    };
    wake_up(sleep, push_and_ring);
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn mutation_the_sleeper_looks_before_it_arms() {
    let sleep = |rx: &Consumer, shared: &Shared| {
        let ready = rx.is_ready();
        Sleeper::default().arm(&shared.consumer.armed, false);
        fence(Ordering::SeqCst);
        ready
    };
    wake_up(sleep, push_and_ring);
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn mutation_no_fence_at_the_waker() {
    let publish = |tx: &mut Producer, shared: &Shared| {
        assert!(tx.push(&whole(7)));
        if shared.consumer.armed.0.load(Ordering::Relaxed) & 1 != 0 {
            shared.consumer_bell.ring();
        }
    };
    wake_up(arm_and_look, publish);
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn mutation_the_waker_looks_before_it_publishes() {
    let publish = |tx: &mut Producer, shared: &Shared| {
        let must = Waker::default().must_ring(&shared.consumer.armed, false);
        assert!(tx.push(&whole(7)));
        if must {
            shared.consumer_bell.ring();
        }
    };
    wake_up(arm_and_look, publish);
}

/// Two messages; the consumer sleeps whenever it finds none. `must_ring` is asked with the armed word's line, and
/// keeps its memory in a number.
fn two_sleeps(must_ring: fn(&Line, &mut Waker, &mut bool) -> bool) {
    let mut model = loom::model::Builder::new();
    // Every schedule would take minutes; whatever goes wrong does so within few switches where none is needed.
    model.preemption_bound = Some(3);
    model.check(move || {
        let shared = shared(2);
        let (mut tx, mut rx) = (shared.tx(), shared.rx());
        let sender = shared.clone();
        let producer = thread::spawn(move || {
            let (mut waker, mut rang) = (Waker::default(), false);
            for message in [7, 8] {
                assert!(tx.push(&whole(message)));
                if must_ring(&sender.consumer.armed, &mut waker, &mut rang) {
                    sender.consumer_bell.ring();
                }
            }
            sender.consumer_bell.fall_silent();
        });
        let mut sleeper = Sleeper::default();
        for message in [7, 8] {
            while !rx.is_ready() {
                sleeper.arm(&shared.consumer.armed, false);
                fence(Ordering::SeqCst);
                if !rx.is_ready() {
                    shared.consumer_bell.wait();
                }
                sleeper.disarm(&shared.consumer.armed);
            }
            assert_eq!(rx.pop(), Some(whole(message)));
        }
        producer.join().expect("the producer ends");
    });
}

#[test]
fn each_sleep_is_rung() {
    two_sleeps(|armed, waker, _| waker.must_ring(armed, false));
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn mutation_the_waker_forgets_which_sleep_it_rang() {
    two_sleeps(|armed, _, rang| {
        let asleep = Waker::default().must_ring(armed, false);
        asleep && !std::mem::replace(rang, true)
    });
}

/// The ring is full and the producer waits for room, the consumer takes what is there and then waits for more.
fn room(wants_credit: bool, tells: bool) {
    loom::model(move || {
        let shared = shared(1);
        let (mut tx, mut rx) = (shared.tx(), shared.rx());
        assert!(tx.push(&whole(7)));
        let receiver = shared.clone();
        let consumer = thread::spawn(move || {
            assert_eq!(rx.pop(), Some(whole(7)));
            if tells && rx.publish_credit(&receiver.consumer.credit) {
                // What a lane does before it sleeps: credit, its own armed word, then a look at the peer's.
                Sleeper::default().arm(&receiver.consumer.armed, false);
                if Waker::default().must_ring(&receiver.producer.armed, true) {
                    receiver.producer_bell.ring();
                }
            }
            receiver.producer_bell.fall_silent();
        });
        let mut sleeper = Sleeper::default();
        while tx.room() == 0 {
            sleeper.arm(&shared.producer.armed, wants_credit);
            fence(Ordering::SeqCst);
            tx.refresh(&shared.consumer.credit).expect("the credit is sane");
            if tx.room() == 0 {
                shared.producer_bell.wait();
            }
            sleeper.disarm(&shared.producer.armed);
        }
        assert!(tx.push(&whole(8)));
        consumer.join().expect("the consumer ends");
    });
}

#[test]
fn whoever_waits_for_room_is_woken() {
    room(true, true);
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn mutation_the_producer_does_not_say_that_it_waits_for_credit() {
    room(false, true);
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn mutation_the_consumer_keeps_its_credit_to_itself() {
    room(true, false);
}
