//! Rings as others have them, in memory that both sides write. Written for the comparison only, and as carefully as
//! Fido's own: whole words, aligned slots, private positions.

use std::marker::PhantomData;
use std::sync::atomic::Ordering;

use fido_core::ring::{MESSAGE_WORDS, Words};

use super::Channel;
use crate::Failure;
use crate::ring::end::{End, SLOTS};
use crate::ring::shared::{self, Array, Index, Slot, directions};
use crate::ring::spin::{Relax, spin, until};

/// Where a side is in what both sides write.
#[derive(Debug, Default)]
pub struct Positions {
    flagged: Position,
    indexed: Position,
    /// How often this side was woken by its futex.
    pub woken: u32,
}

#[derive(Debug, Default, Clone, Copy)]
struct Position {
    sent: u32,
    received: u32,
    /// The other side's index of what it received, as last seen.
    known_received: u32,
    /// The other side's index of what it sent, as last seen.
    known_sent: u32,
}

/// The flag of a slot with a message.
const FULL: u64 = 1 << 32;

fn slot(array: &Array, position: u32) -> &Slot {
    &array.slots[(position & (SLOTS - 1)) as usize]
}

#[inline]
fn write(slot: &Slot, message: &Words, flag: u64, last: Ordering) {
    for (word, pair) in slot.words.iter().zip(message.chunks_exact(2)) {
        word.store(u64::from(pair[0]) | u64::from(pair[1]) << 32, Ordering::Relaxed);
    }
    slot.last.store(u64::from(message[14]) | flag, last);
}

#[inline]
fn read(slot: &Slot, last: u64) -> Words {
    let mut message = [last as u32; MESSAGE_WORDS];
    for (words, pair) in message.chunks_exact_mut(2).zip(&slot.words) {
        let pair = pair.load(Ordering::Relaxed);
        words.copy_from_slice(&[pair as u32, (pair >> 32) as u32]);
    }
    message
}

/// Each slot says whether it is full; who sends waits for an empty one, who receives empties it.
pub struct Flagged<'a, R> {
    out: &'a Array,
    into: &'a Array,
    at: &'a mut Position,
    relax: PhantomData<R>,
}

impl<'a, R> Flagged<'a, R> {
    pub fn new(end: &'a mut End) -> Self {
        let (out, into) = directions(end.side);
        let layout = end.shared.layout();
        Self {
            out: &layout.flagged[out],
            into: &layout.flagged[into],
            at: &mut end.foreign.flagged,
            relax: PhantomData,
        }
    }
}

impl<R: Relax> Channel for Flagged<'_, R> {
    #[inline]
    fn send(&mut self, message: &Words) -> Result<(), Failure> {
        let slot = slot(self.out, self.at.sent);
        // SYNC: pairs with the release store in `receive`: the words have been read when the slot is empty.
        spin("empty slot", || (slot.last.load(Ordering::Acquire) & FULL == 0).then_some(()))?;
        // SYNC: pairs with the acquire load in `receive`.
        write(slot, message, FULL, Ordering::Release);
        self.at.sent = self.at.sent.wrapping_add(1);
        Ok(())
    }

    #[inline]
    fn receive(&mut self, message: &mut Words) -> Result<(), Failure> {
        let slot = slot(self.into, self.at.received);
        let last = until::<R, _>("message", (&raw const *slot).cast(), || {
            // SYNC: pairs with the release store in `send`.
            Some(slot.last.load(Ordering::Acquire)).filter(|last| last & FULL != 0)
        })?;
        *message = read(slot, last);
        // SYNC: pairs with the acquire load in `send`.
        slot.last.store(0, Ordering::Release);
        self.at.received = self.at.received.wrapping_add(1);
        Ok(())
    }
}

/// Two running indices on lines of their own say what was sent and received; each side keeps the other's as last seen.
/// What was sent is published by batches, what was received by messages.
pub struct Indexed<'a> {
    out: &'a shared::Indexed,
    into: &'a shared::Indexed,
    at: &'a mut Position,
}

impl<'a> Indexed<'a> {
    pub fn new(end: &'a mut End) -> Self {
        let (out, into) = directions(end.side);
        let layout = end.shared.layout();
        Self { out: &layout.indexed[out], into: &layout.indexed[into], at: &mut end.foreign.indexed }
    }
}

/// Reads an index of the other side.
fn published(index: &Index) -> u32 {
    // SYNC: pairs with the release store in `publish`.
    index.0.load(Ordering::Acquire)
}

fn publish(index: &Index, value: u32) {
    // SYNC: pairs with the acquire load in `published`.
    index.0.store(value, Ordering::Release);
}

impl Channel for Indexed<'_> {
    #[inline]
    fn send(&mut self, message: &Words) -> Result<(), Failure> {
        if self.at.sent.wrapping_sub(self.at.known_received) == SLOTS {
            publish(&self.out.sent, self.at.sent);
            let (sent, received) = (self.at.sent, &self.out.received);
            self.at.known_received =
                spin("room", || Some(published(received)).filter(|known| sent.wrapping_sub(*known) < SLOTS))?;
        }
        write(slot(&self.out.array, self.at.sent), message, 0, Ordering::Relaxed);
        self.at.sent = self.at.sent.wrapping_add(1);
        Ok(())
    }

    #[inline]
    fn flush(&mut self) -> Result<(), Failure> {
        publish(&self.out.sent, self.at.sent);
        Ok(())
    }

    #[inline]
    fn receive(&mut self, message: &mut Words) -> Result<(), Failure> {
        if self.at.received == self.at.known_sent {
            let (sent, received) = (&self.into.sent, self.at.received);
            self.at.known_sent = spin("message", || Some(published(sent)).filter(|known| *known != received))?;
        }
        let slot = slot(&self.into.array, self.at.received);
        *message = read(slot, slot.last.load(Ordering::Relaxed));
        self.at.received = self.at.received.wrapping_add(1);
        publish(&self.into.received, self.at.received);
        Ok(())
    }
}
