//! The ring: a single-producer single-consumer array of 64-byte slots, in which every word has one writer.
//!
//! The slots lie in the producer's arena: 60 bytes of message and a 32-bit *lap stamp*. The producer writes the
//! message, then stores the stamp with release; a slot is ready when its stamp is the consumer's lap. Nothing is
//! cleared, so the consumer never writes a line that the producer owns.
//!
//! Flow control is by *credit*: the consumer publishes its running count in its own arena, every quarter ring and
//! before it sleeps; the producer keeps a private copy and reads it again only when that copy says "full".
//!
//! Doorbells are suppressed by the *armed* word in the sleeper's own arena: bit 0 "asleep", bit 1 "also waiting for
//! credit", the rest a count of sleeps, so that one sleep is rung once. The sleeper publishes the word, fences, looks
//! again, then sleeps; the other side publishes, fences, then reads the word. One of the two must see the other
//! (Dekker's argument); the model at the end of this file checks it, and that it fails without the fences.
//!
//! Positions count up without bound modulo 2^32; capacity is a power of two, so laps stay in step at the wrap.
//! Capacity and positions live in private memory: nothing read from the peer indexes anything.

use crate::sync::{AtomicU32, Ordering, fence};

/// 32-bit words of a message. (The model needs no payload to be right about stamps.)
pub const MESSAGE_WORDS: usize = if cfg!(loom) { 1 } else { 15 };

/// The message part of a slot, as plain private words.
pub type Words = [u32; MESSAGE_WORDS];

/// One slot, in the producer's arena.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Slot {
    words: [AtomicU32; MESSAGE_WORDS],
    stamp: AtomicU32,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Slot>() == 64);

/// What one side publishes about itself in its own arena, a cache line each.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Control {
    /// Which incarnation of the peer this side's ring is set up for.
    pub session: Line,
    /// How many messages this side has consumed.
    pub credit: Line,
    /// Whether this side sleeps.
    pub armed: Line,
}

/// A word alone on its cache line.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Line(AtomicU32);

impl Line {
    /// Publishes a value; what was written before it is visible to who reads it.
    pub fn publish(&self, value: u32) {
        // SYNC: pairs with the acquire load in `Line::read` on the other side.
        self.0.store(value, Ordering::Release);
    }

    /// Reads what the other side has published.
    pub fn read(&self) -> u32 {
        // SYNC: pairs with the release store in `Line::publish`.
        self.0.load(Ordering::Acquire)
    }
}

/// The bit of the armed word that says "asleep".
const ASLEEP: u32 = 1;
/// The bit of the armed word that says "wake me for credit too".
const WANTS_CREDIT: u32 = 2;
/// What a sleep adds to the armed word.
const SLEEP_COUNT: u32 = 4;

/// A peer has published a credit that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer says it has consumed {credit} messages, of {sent} that were sent, in a ring of {capacity}")]
pub struct WildCredit {
    /// What the peer says.
    pub credit: u32,
    /// How many were sent (modulo 2^32).
    pub sent: u32,
    /// The ring's capacity.
    pub capacity: u32,
}

/// The sending end.
#[derive(Debug)]
pub struct Producer {
    slots: *const Slot,
    capacity: u32,
    lap_shift: u32,
    /// Messages published so far.
    sent: u32,
    /// The last credit read from the peer.
    credit: u32,
}

// SAFETY: the pointer is to atomics only, kept mapped by whoever made the producer (see `Producer::new`).
unsafe impl Send for Producer {}

impl Producer {
    /// A producer over fresh slots in the own arena: stamps are reset to "nothing yet".
    ///
    /// # Safety
    /// `slots` must point to `capacity` (a power of two) slots that this domain owns and that stay mapped while the
    /// producer lives, and no consumer of an earlier session may read them any more.
    pub unsafe fn new(slots: *const Slot, capacity: u32) -> Self {
        for index in 0..capacity {
            // SAFETY: within the array, by the caller's promise.
            unsafe { &*slots.add(index as usize) }.stamp.store(0, Ordering::Relaxed);
        }
        Self { slots, capacity, lap_shift: capacity.trailing_zeros(), sent: 0, credit: 0 }
    }

    /// How many messages fit now, going by the last credit read.
    pub fn room(&self) -> u32 {
        self.capacity - self.sent.wrapping_sub(self.credit)
    }

    /// Reads the peer's credit again.
    ///
    /// # Errors
    /// [`WildCredit`] if it cannot be: the peer is broken.
    pub fn refresh(&mut self, peer: &Line) -> Result<(), WildCredit> {
        let credit = peer.read();
        if self.sent.wrapping_sub(credit) > self.capacity {
            return Err(WildCredit { credit, sent: self.sent, capacity: self.capacity });
        }
        self.credit = credit;
        Ok(())
    }

    /// Publishes one message, if there is room.
    pub fn push(&mut self, message: &Words) -> bool {
        if self.room() == 0 {
            return false;
        }
        // SAFETY: masked to the capacity; the slots stay mapped (`new`).
        let slot = unsafe { &*self.slots.add((self.sent & (self.capacity - 1)) as usize) };
        for (word, value) in slot.words.iter().zip(message) {
            word.store(*value, Ordering::Relaxed);
        }
        // SYNC: pairs with the acquire load of the stamp in `Consumer::is_ready`.
        slot.stamp.store(lap(self.sent, self.lap_shift), Ordering::Release);
        self.sent = self.sent.wrapping_add(1);
        true
    }
}

/// The receiving end.
#[derive(Debug)]
pub struct Consumer {
    slots: *const Slot,
    capacity: u32,
    lap_shift: u32,
    /// Messages taken so far.
    taken: u32,
    /// The credit last published.
    published: u32,
}

// SAFETY: the pointer is to atomics only, kept mapped by whoever made the consumer (see `Consumer::new`).
unsafe impl Send for Consumer {}

impl Consumer {
    /// A consumer of a peer's slots, from their first lap on.
    ///
    /// # Safety
    /// `slots` must point to `capacity` (a power of two) readable slots that stay mapped while the consumer lives.
    pub unsafe fn new(slots: *const Slot, capacity: u32) -> Self {
        Self { slots, capacity, lap_shift: capacity.trailing_zeros(), taken: 0, published: 0 }
    }

    fn slot(&self) -> *const Slot {
        // SAFETY: masked to the capacity, within the array (`new`).
        unsafe { self.slots.add((self.taken & (self.capacity - 1)) as usize) }
    }

    /// Whether a message is there.
    pub fn is_ready(&self) -> bool {
        // SAFETY: a mapped slot of atomics; the reference to the peer's word lives for this load only.
        let stamp = unsafe { &(*self.slot()).stamp };
        // SYNC: pairs with the release store of the stamp in `Producer::push`.
        stamp.load(Ordering::Acquire) == lap(self.taken, self.lap_shift)
    }

    /// Takes the next message, if there is one. The words are copied out once.
    pub fn pop(&mut self) -> Option<Words> {
        if !self.is_ready() {
            return None;
        }
        let slot = self.slot();
        // SAFETY: a mapped slot of atomics; each reference lives for one load.
        let message = std::array::from_fn(|word| unsafe { &(*slot).words[word] }.load(Ordering::Relaxed));
        self.taken = self.taken.wrapping_add(1);
        Some(message)
    }

    /// Whether a quarter ring or more has been taken since the credit was last published.
    pub fn owes_credit(&self) -> bool {
        self.taken.wrapping_sub(self.published) >= self.capacity / 4
    }

    /// Publishes the credit in the own arena; whether that told the peer anything new.
    pub fn publish_credit(&mut self, own: &Line) -> bool {
        let news = self.taken != self.published;
        if news {
            // The release in here orders our reads of the slots before the producer's next writes to them.
            own.publish(self.taken);
            self.published = self.taken;
        }
        news
    }
}

/// The stamp of the slot at a running position: its lap, counted from 1.
fn lap(position: u32, shift: u32) -> u32 {
    (position >> shift) + 1
}

/// The sleeper's half of the doorbell protocol.
#[derive(Debug, Default)]
pub struct Sleeper {
    word: u32,
}

impl Sleeper {
    /// Says "about to sleep" in the own arena. Follow it with `fence(SeqCst)`, look at everything again, then sleep.
    pub fn arm(&mut self, own: &Line, wants_credit: bool) {
        let count = (self.word & !(ASLEEP | WANTS_CREDIT)).wrapping_add(SLEEP_COUNT);
        self.word = count | ASLEEP | if wants_credit { WANTS_CREDIT } else { 0 };
        own.0.store(self.word, Ordering::Relaxed);
    }

    /// Says "awake" again.
    pub fn disarm(&mut self, own: &Line) {
        if self.word & ASLEEP != 0 {
            self.word &= !(ASLEEP | WANTS_CREDIT);
            own.0.store(self.word, Ordering::Relaxed);
        }
    }
}

/// The waker's half of the doorbell protocol.
#[derive(Debug, Default)]
pub struct Waker {
    rung: u32,
}

impl Waker {
    /// Whether the peer has to be rung for what has just been published: messages, or only credit. Fences first.
    pub fn must_ring(&mut self, peer: &Line, only_credit: bool) -> bool {
        fence(Ordering::SeqCst);
        let armed = peer.0.load(Ordering::Relaxed);
        let asleep = if only_credit { armed & WANTS_CREDIT != 0 } else { armed & ASLEEP != 0 };
        let must = asleep && armed != self.rung;
        if must {
            self.rung = armed;
        }
        must
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ring(capacity: u32) -> (Vec<Slot>, Producer, Consumer, Line) {
        let slots: Vec<Slot> = (0..capacity).map(|_| Slot::default()).collect();
        // SAFETY: the vector's heap block stays where it is and outlives both ends in each test.
        let ends = unsafe { (Producer::new(slots.as_ptr(), capacity), Consumer::new(slots.as_ptr(), capacity)) };
        (slots, ends.0, ends.1, Line::default())
    }

    #[test]
    fn full_is_full_and_credit_makes_room() {
        let (_slots, mut tx, mut rx, credit) = ring(4);
        for n in 0..4 {
            assert!(tx.push(&[n; MESSAGE_WORDS]));
        }
        assert!(!tx.push(&[9; MESSAGE_WORDS]), "one past the capacity");
        assert_eq!(rx.pop(), Some([0; MESSAGE_WORDS]));
        tx.refresh(&credit).unwrap();
        assert_eq!(tx.room(), 0, "not published yet");
        assert!(rx.owes_credit() && rx.publish_credit(&credit) && !rx.publish_credit(&credit));
        tx.refresh(&credit).unwrap();
        assert_eq!(tx.room(), 1);
    }

    #[test]
    fn a_wild_credit_is_an_error() {
        let (_slots, mut tx, _rx, credit) = ring(4);
        tx.push(&[0; MESSAGE_WORDS]);
        for wild in [2, 5, u32::MAX - 3, 1 << 31] {
            credit.publish(wild);
            assert_eq!(tx.refresh(&credit), Err(WildCredit { credit: wild, sent: 1, capacity: 4 }));
        }
    }

    #[test]
    fn positions_wrap() {
        let (_slots, mut tx, mut rx, credit) = ring(4);
        let start = u32::MAX - 5;
        (tx.sent, tx.credit, rx.taken, rx.published) = (start, start, start, start);
        for n in 0..20 {
            assert!(rx.pop().is_none());
            assert!(tx.push(&[n; MESSAGE_WORDS]));
            assert_eq!(rx.pop(), Some([n; MESSAGE_WORDS]));
            rx.publish_credit(&credit);
            tx.refresh(&credit).unwrap();
        }
    }

    #[test]
    fn one_sleep_is_rung_once() {
        let (mut sleeper, mut waker, line) = (Sleeper::default(), Waker::default(), Line::default());
        assert!(!waker.must_ring(&line, false));
        for _ in 0..3 {
            sleeper.arm(&line, false);
            assert!(!waker.must_ring(&line, true), "it does not wait for credit");
            assert!(waker.must_ring(&line, false));
            assert!(!waker.must_ring(&line, false));
            sleeper.disarm(&line);
            assert!(!waker.must_ring(&line, false));
        }
        sleeper.arm(&line, true);
        assert!(waker.must_ring(&line, true));
    }

    proptest! {
        #[test]
        fn any_interleaving_is_a_queue(capacity in 2u32..7, steps in prop::collection::vec(0u8..3, 0..300)) {
            let (_slots, mut tx, mut rx, credit) = ring(1 << capacity);
            let (mut next, mut expected, mut published) = (0u32, 0u32, 0u32);
            for step in steps {
                match step {
                    0 => {
                        if tx.room() == 0 {
                            tx.refresh(&credit).unwrap();
                        }
                        if tx.push(&[next; MESSAGE_WORDS]) {
                            next += 1;
                        } else {
                            prop_assert_eq!(next - published, 1 << capacity);
                        }
                    }
                    1 => match rx.pop() {
                        Some(message) => {
                            prop_assert_eq!(message, [expected; MESSAGE_WORDS]);
                            expected += 1;
                        }
                        None => prop_assert_eq!(next, expected),
                    },
                    _ => {
                        rx.publish_credit(&credit);
                        published = expected;
                    }
                }
            }
        }
    }
}

/// The protocols under every interleaving that the memory model allows, checked by loom.
#[cfg(all(test, loom))]
mod model {
    use super::*;
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
}
