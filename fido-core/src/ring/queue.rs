//! The two ends of a ring: messages by lap stamp, flow control by credit.

use super::{Line, MESSAGE_WORDS, PAIRS, Slot, Words};
use crate::sync::Ordering;

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
            unsafe { &*slots.add(index as usize) }.last.store(0, Ordering::Relaxed);
        }
        Self { slots, capacity, lap_shift: capacity.trailing_zeros(), sent: 0, credit: 0 }
    }

    /// How many messages fit now, going by the last credit read.
    #[inline]
    pub fn room(&self) -> u32 {
        self.capacity - self.sent.wrapping_sub(self.credit)
    }

    /// How many messages have been published, modulo 2^32.
    #[inline]
    pub fn sent(&self) -> u32 {
        self.sent
    }

    /// Reads the peer's credit again.
    ///
    /// # Errors
    /// [`WildCredit`] if it cannot be: the peer is broken.
    #[inline]
    pub fn refresh(&mut self, peer: &Line) -> Result<(), WildCredit> {
        let credit = peer.read();
        if self.sent.wrapping_sub(credit) > self.capacity {
            return Err(WildCredit { credit, sent: self.sent, capacity: self.capacity });
        }
        self.credit = credit;
        Ok(())
    }

    /// Publishes one message, if there is room.
    #[inline]
    pub fn push(&mut self, message: &Words) -> bool {
        let pairs: [u64; PAIRS] = std::array::from_fn(|at| join(message[2 * at], message[2 * at + 1]));
        self.publish(pairs, message[MESSAGE_WORDS - 1])
    }

    /// Publishes one message, if there is room: its first words by pairs (see [`join`]), and its last word. Words that
    /// are not given stay what they were a lap ago; the receiver must know that they mean nothing.
    ///
    /// This is for messages that are put together in registers and need not go through memory: what is written there
    /// first takes places in the store buffer, in which the stores to slots wait for their cache lines.
    #[inline]
    pub fn publish<const N: usize>(&mut self, pairs: [u64; N], last: u32) -> bool {
        const { assert!(N <= PAIRS, "a slot has no more") }
        if self.room() == 0 {
            return false;
        }
        // SAFETY: masked to the capacity; the slots stay mapped (`new`).
        let slot = unsafe { &*self.slots.add((self.sent & (self.capacity - 1)) as usize) };
        for (place, pair) in slot.pairs.iter().zip(pairs) {
            place.store(pair.to_le(), Ordering::Relaxed);
        }
        // SYNC: pairs with the acquire load of the stamp in `Consumer::ready`.
        slot.last.store(join(last, lap(self.sent, self.lap_shift)).to_le(), Ordering::Release);
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

    #[inline]
    fn slot(&self) -> *const Slot {
        self.slot_at(self.taken)
    }

    #[inline]
    fn slot_at(&self, position: u32) -> *const Slot {
        // SAFETY: masked to the capacity, within the array (`new`).
        unsafe { self.slots.add((position & (self.capacity - 1)) as usize) }
    }

    /// The last word of the next message, which is to come in `slot`, if it is there.
    #[inline]
    fn ready(&self, slot: *const Slot) -> Option<u32> {
        // SAFETY: a mapped slot of atomics; the reference to the peer's word lives for this load only.
        let last = unsafe { &(*slot).last };
        // SYNC: pairs with the release store of the stamp in `Producer::push`.
        let (word, stamp) = split(u64::from_le(last.load(Ordering::Acquire)));
        (stamp == lap(self.taken, self.lap_shift)).then_some(word)
    }

    /// How many messages have been taken, modulo 2^32.
    #[inline]
    pub fn taken(&self) -> u32 {
        self.taken
    }

    /// Whether a message is there.
    #[inline]
    pub fn is_ready(&self) -> bool {
        self.ready(self.slot()).is_some()
    }

    /// Takes the next message, if there is one. The words are copied out once.
    #[inline]
    pub fn pop(&mut self) -> Option<Words> {
        let next = self.arrived()?;
        let mut message = [next.last(); MESSAGE_WORDS];
        for (index, words) in message.chunks_exact_mut(2).enumerate() {
            let (low, high) = split(next.pair(index));
            words.copy_from_slice(&[low, high]);
        }
        next.take();
        Some(message)
    }

    /// The next message, if there is one, still in its slot.
    #[inline]
    pub fn arrived(&mut self) -> Option<Arrived<'_>> {
        let slot = self.slot();
        fetch(self.slot_at(self.taken.wrapping_add(1)));
        Some(Arrived { slot, last: self.ready(slot)?, consumer: self })
    }

    /// Whether a quarter ring or more has been taken since the credit was last published.
    #[inline]
    pub fn owes_credit(&self) -> bool {
        self.taken.wrapping_sub(self.published) >= self.capacity / 4
    }

    /// Publishes the credit in the own arena; whether that told the peer anything new.
    #[inline]
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

/// A message that has arrived and lies in its slot, where the peer could change it: what is read twice may differ. It
/// stays the next one until it is taken.
#[derive(Debug)]
pub struct Arrived<'a> {
    slot: *const Slot,
    consumer: &'a mut Consumer,
    last: u32,
}

impl Arrived<'_> {
    /// The pair of words with that number, read now; to be taken apart by [`split`].
    ///
    /// # Panics
    /// If there is no such pair.
    #[inline]
    pub fn pair(&self, index: usize) -> u64 {
        // SAFETY: a mapped slot of atomics; the reference to the peer's word lives for this load only.
        let pair = unsafe { &(*self.slot).pairs[index] };
        u64::from_le(pair.load(Ordering::Relaxed))
    }

    /// The last word, which was read with the stamp.
    #[inline]
    pub fn last(&self) -> u32 {
        self.last
    }

    /// Ends this message: its slot is the producer's again with the next credit.
    #[inline]
    pub fn take(self) {
        self.consumer.taken = self.consumer.taken.wrapping_add(1);
    }
}

/// Asks for a slot's cache line without waiting for it. Whoever waits for a message looks at its slot while the line is
/// on its way, and so would ask for the next message only when that one is there: a batch of two would take a fifth
/// longer.
#[inline]
fn fetch(slot: *const Slot) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint that accesses no memory, to an address in a slot anyhow.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(slot.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = slot;
}

/// A pair of words as it lies in a slot.
#[inline]
pub const fn join(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

/// The two words of a pair.
#[inline]
pub const fn split(pair: u64) -> (u32, u32) {
    (pair as u32, (pair >> 32) as u32)
}

/// The stamp of the slot at a running position: its lap, counted from 1.
#[inline]
fn lap(position: u32, shift: u32) -> u32 {
    (position >> shift) + 1
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
