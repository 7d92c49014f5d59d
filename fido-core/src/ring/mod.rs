//! The ring: a single-producer single-consumer array of 64-byte slots, in which every word has one writer.
//!
//! The slots lie in the producer's arena: 60 bytes of message and a 32-bit *lap stamp*. The producer writes the
//! message, its last word and the stamp with one release store; a slot is ready when its stamp is the consumer's lap.
//! Nothing is cleared, so the consumer never writes a line that the producer owns.
//!
//! Flow control is by *credit*: the consumer publishes its running count in its own arena, every quarter ring and
//! before it sleeps; the producer keeps a private copy and reads it again only when that copy says "full".
//!
//! Doorbells are suppressed by the *armed* word in the sleeper's own arena: bit 0 "asleep", bit 1 "also waiting for
//! credit", the rest a count of sleeps, so that one sleep is rung once. The sleeper publishes the word, fences, looks
//! again, then sleeps; the other side publishes, fences, then reads the word. One of the two must see the other
//! (Dekker's argument); the model beside this file checks it, and that it fails without the fences.
//!
//! Positions count up without bound modulo 2^32; capacity is a power of two, so laps stay in step at the wrap.
//! Capacity and positions live in private memory: nothing read from the peer indexes anything.

mod doorbell;
#[cfg(all(test, loom))]
mod model;
mod queue;

use crate::sync::{AtomicU32, AtomicU64, Ordering};
pub use doorbell::{Sleeper, Waker, is_asleep};
pub use queue::{Arrived, Consumer, Producer, WildCredit, join, split};

/// 64-bit words of a slot before the one that has the stamp. (The model needs no more to be right about stamps.)
pub const PAIRS: usize = if cfg!(loom) { 1 } else { 7 };

/// 32-bit words of a message.
pub const MESSAGE_WORDS: usize = 2 * PAIRS + 1;

/// The message part of a slot, as plain private words.
pub type Words = [u32; MESSAGE_WORDS];

/// One slot, in the producer's arena: little-endian words of 32 bits, accessed in pairs.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Slot {
    pairs: [AtomicU64; PAIRS],
    /// The last word of the message, and above it the stamp.
    last: AtomicU64,
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
    /// Advice for the other side's waiting.
    pub advice: Advice,
}

/// What helps the other side to wait well. Nothing rests on it: a wrong word makes a wait longer or wastes a moment of
/// a processor.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Advice {
    /// Which of its domain's thread lines tells what this side's thread is doing, counted from 1; 0 for none.
    pub seat: AtomicU32,
    /// When this side last rang the other's bell, in ticks of 256 ns of the monotonic clock; 0 for never.
    pub rung: AtomicU32,
}

/// A word alone on its cache line.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Line(AtomicU32);

impl Line {
    /// Publishes a value; what was written before it is visible to who reads it.
    #[inline]
    pub fn publish(&self, value: u32) {
        // SYNC: pairs with the acquire load in `Line::read` on the other side.
        self.0.store(value, Ordering::Release);
    }

    /// Reads what the other side has published.
    #[inline]
    pub fn read(&self) -> u32 {
        // SYNC: pairs with the release store in `Line::publish`.
        self.0.load(Ordering::Acquire)
    }
}
