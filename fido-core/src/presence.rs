//! What a domain's threads say about themselves in its arena: where they run, and what they are doing.
//!
//! A thread that waits for another one wants to know whether that one can run at all: is it asleep, does it wait for
//! somebody itself, does it sit on the same processor? So each thread has a line in its domain's arena (a *seat*), and
//! each half of a lane names the line of the thread that serves it. One store a change, however many lanes there are,
//! and none while waits are too short for anybody to look.
//!
//! It is advice. A thread moves without noticing and a broken peer writes anything; nothing but the length of a wait
//! depends on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::arena::OwnArena;

/// What a thread is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It does not say.
    Unknown,
    /// It works, or has just begun to wait.
    Running,
    /// It looks again and again for work.
    Spinning,
    /// It sleeps in the kernel, or is about to.
    Asleep,
}

/// What a thread says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Presence {
    /// What it is doing.
    pub state: State,
    /// The processor it was on when it last said so, if it knows.
    pub cpu: Option<u16>,
}

impl Presence {
    fn encode(self) -> u32 {
        self.state as u32 | self.cpu.map_or(0, |cpu| (u32::from(cpu) + 1) << 2)
    }

    /// What any word means.
    fn decode(word: u32) -> Self {
        let state = [State::Unknown, State::Running, State::Spinning, State::Asleep][word as usize & 3];
        Self { state, cpu: (word >> 2).checked_sub(1).and_then(|cpu| u16::try_from(cpu).ok()) }
    }
}

/// A thread's line in its domain's arena.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct ThreadLine(AtomicU32);

impl ThreadLine {
    /// What the thread says.
    pub fn read(&self) -> Presence {
        Presence::decode(self.0.load(Ordering::Relaxed))
    }
}

/// A thread's place in its domain's arena. Given back when dropped.
#[derive(Debug)]
pub struct Seat {
    arena: Arc<OwnArena>,
    number: u32,
    published: u32,
}

impl Seat {
    /// A place for one thread; `None` if all [`crate::arena::MAX_THREADS`] are taken.
    pub(crate) fn take(arena: &Arc<OwnArena>) -> Option<Self> {
        Some(Self { number: arena.take_seat()?, arena: arena.clone(), published: 0 })
    }

    /// Its number, from 0.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Says what the thread is doing, if that is news.
    pub(crate) fn say(&mut self, presence: Presence) {
        let word = presence.encode();
        if word != self.published {
            self.published = word;
            self.arena.thread_line(self.number).0.store(word, Ordering::Relaxed);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.say(Presence { state: State::Unknown, cpu: None });
        self.arena.leave_seat(self.number);
    }
}

/// The processor that the calling thread runs on, if the system says. A few nanoseconds: no system call.
pub(crate) fn this_cpu() -> Option<u16> {
    // Miri has no processors.
    if cfg!(miri) {
        return None;
    }
    // SAFETY: takes nothing and returns a number.
    u16::try_from(unsafe { libc::sched_getcpu() }).ok()
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::arena::presence_of;
    use crate::testing::private_arena;

    #[test]
    fn any_word_means_something() {
        for state in [State::Unknown, State::Running, State::Spinning, State::Asleep] {
            for cpu in [None, Some(0), Some(1), Some(u16::MAX)] {
                let presence = Presence { state, cpu };
                assert_eq!(Presence::decode(presence.encode()), presence);
            }
        }
        assert_eq!(Presence::decode(u32::MAX), Presence { state: State::Asleep, cpu: None }, "no such processor");
    }

    #[test]
    fn what_is_said_is_read_until_the_seat_is_free() {
        let arena = Arc::new(private_arena(1 << 20, &[]));
        let mut seat = Seat::take(&arena).unwrap();
        let number = seat.number();
        let presence = Presence { state: State::Spinning, cpu: this_cpu() };
        seat.say(presence);
        assert_eq!(presence_of(arena.window(), number), Some(presence));
        drop(seat);
        assert_eq!(presence_of(arena.window(), number).map(|presence| presence.state), Some(State::Unknown));
        assert_eq!(Seat::take(&arena).map(|seat| seat.number()), Some(number));
    }
}
