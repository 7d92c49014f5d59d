//! What a peer can write of a ring: slots and their stamps, its credit, its armed word.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Input;
use crate::ring::{Consumer, Line, MESSAGE_WORDS, Producer, Slot, Waker, WildCredit, Words};
use crate::testing::plain_memory;

/// The peer's slots, written at will.
struct Slots {
    base: NonNull<u8>,
    capacity: u32,
}

impl Slots {
    fn word(&self, position: u32, word: usize) -> &AtomicU32 {
        let at = (position % self.capacity) as usize * size_of::<Slot>() + 4 * word;
        // SAFETY: an aligned word of the slots, which `ring` keeps; all accesses to it are atomic.
        unsafe { AtomicU32::from_ptr(self.base.add(at).cast().as_ptr()) }
    }
}

/// Both ends against a peer that writes what it likes: messages come if and only if their stamp is due and are what
/// lies there, a credit is believed if and only if it can be, and one sleep is rung once.
pub fn ring(data: &[u8]) {
    let mut input = Input(data);
    let capacity = 4 << (input.byte() % 3);
    let (own, peers) = (plain_memory(u64::from(capacity) * 64), plain_memory(u64::from(capacity) * 64));
    // SAFETY: zeroed, aligned memory for that many slots, which `own` keeps until the end.
    let mut tx = unsafe { Producer::new(own.base.as_ptr().cast(), capacity) };
    // SAFETY: as above, and `peers`.
    let mut rx = unsafe { Consumer::new(peers.base.as_ptr().cast(), capacity) };
    let slots = Slots { base: peers.base, capacity };
    let (credit, armed, mut waker) = (Line::default(), Line::default(), Waker::default());
    let (mut taken, mut sent, mut believed, mut rung) = (0u32, 0u32, 0u32, 0u32);
    while !input.is_empty() {
        match input.byte() % 6 {
            0 => slots
                .word(u32::from(input.byte()), usize::from(input.byte()) % 16)
                .store(input.word(), Ordering::Relaxed),
            1 => slots.word(taken, MESSAGE_WORDS).store(taken / capacity + 1, Ordering::Relaxed),
            2 => taken += u32::from(pops_what_is_due(&mut rx, &slots, taken)),
            3 => {
                // Near what can be, or anything.
                let said =
                    if input.byte() & 1 == 0 { sent.wrapping_sub(u32::from(input.byte())) } else { input.word() };
                credit.publish(said);
                let expected = if sent.wrapping_sub(said) <= capacity {
                    Ok(())
                } else {
                    Err(WildCredit { credit: said, sent, capacity })
                };
                assert_eq!(tx.refresh(&credit), expected);
                believed = if expected.is_ok() { said } else { believed };
            }
            4 => {
                let room = capacity - sent.wrapping_sub(believed);
                assert_eq!(tx.room(), room);
                assert_eq!(tx.push(&[sent; MESSAGE_WORDS]), room > 0);
                sent += u32::from(room > 0);
            }
            _ => {
                let (word, only_credit) = (input.word(), input.byte() & 1 != 0);
                armed.publish(word);
                let asleep = word & if only_credit { 2 } else { 1 } != 0;
                assert_eq!(waker.must_ring(&armed, only_credit), asleep && word != rung);
                rung = if asleep { word } else { rung };
            }
        }
    }
    drop((own, peers));
}

/// Whether a message was there; it is what the slot says.
fn pops_what_is_due(rx: &mut Consumer, slots: &Slots, taken: u32) -> bool {
    let due = slots.word(taken, MESSAGE_WORDS).load(Ordering::Relaxed) == taken / slots.capacity + 1;
    let words: Words = std::array::from_fn(|word| slots.word(taken, word).load(Ordering::Relaxed));
    assert_eq!(rx.is_ready(), due);
    assert_eq!(rx.pop(), due.then_some(words));
    due
}
