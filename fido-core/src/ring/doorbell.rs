//! Doorbell suppression: the sleeper's word, and who looks at it.

use super::Line;
use crate::sync::{Ordering, fence};

/// The bit of the armed word that says "asleep".
const ASLEEP: u32 = 1;
/// The bit of the armed word that says "wake me for credit too".
const WANTS_CREDIT: u32 = 2;
/// What a sleep adds to the armed word.
const SLEEP_COUNT: u32 = 4;

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

/// Whether the armed word that a side has published says that it sleeps.
pub fn is_asleep(peer: &Line) -> bool {
    peer.0.load(Ordering::Relaxed) & ASLEEP != 0
}

/// The waker's half of the doorbell protocol.
#[derive(Debug, Default)]
pub struct Waker {
    rung: u32,
}

impl Waker {
    /// Whether the peer has to be rung for what has just been published: messages, or only credit. Fences first.
    #[inline]
    pub fn must_ring(&mut self, peer: &Line, only_credit: bool) -> bool {
        // SYNC: pairs with the fence in `wait::arm_and_look`: either what the sleeper has armed is seen below, or what was
        // published before this is seen by its last look.
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
}
