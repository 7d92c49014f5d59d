//! Whether to spin before a sleep: learned from how often that was enough.
//!
//! Spinning pays off while what a thread waits for tends to come within the time that a sleep and its wake-up cost;
//! otherwise it only keeps a processor from whoever is waited for. So a thread tries it for a few waits, keeps at it
//! as long as most of them end within the budget, and otherwise sleeps at once for a while, which doubles with every
//! trial that fails. (Spinning as long as a block costs is at most twice as bad as knowing the future: Karlin et al.,
//! "Competitive randomized algorithms for nonuniform problems", 1994. The trials are for the common case that one of
//! the two is right for thousands of waits in a row.)

use std::time::Duration;

/// How long to spin: about what waking a sleeper on an idle processor costs.
const BUDGET: Duration = Duration::from_micros(24);
/// Waits after which a time of spinning is judged.
const TRIAL: u32 = 16;
/// Waits without spinning after a first failed trial, and at most.
const REST: u32 = 64;
const MAX_REST: u32 = 1 << 14;

/// The state of one thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spin {
    phase: Phase,
    /// The length of the next rest.
    rest: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// There is no processor for it.
    Never,
    /// Spins; so many waits to go until the verdict, of which so many were short.
    Trying { left: u32, short: u32 },
    /// Sleeps at once for so many waits.
    Resting { left: u32 },
}

impl Spin {
    /// For a thread that may spin, or may not because there are fewer processors than threads that wait for each other.
    pub(crate) fn new(allowed: bool) -> Self {
        let phase = if allowed { Phase::Trying { left: TRIAL, short: 0 } } else { Phase::Never };
        Self { phase, rest: REST }
    }

    /// How long to spin in the present wait.
    pub(crate) fn budget(&self) -> Duration {
        match self.phase {
            Phase::Trying { .. } => BUDGET,
            Phase::Never | Phase::Resting { .. } => Duration::ZERO,
        }
    }

    /// A wait is over: whether it was `short`, ended by work while the thread was spinning.
    pub(crate) fn waited(&mut self, short: bool) {
        self.phase = match self.phase {
            Phase::Never => Phase::Never,
            Phase::Resting { left: 0 | 1 } => Phase::Trying { left: TRIAL, short: 0 },
            Phase::Resting { left } => Phase::Resting { left: left - 1 },
            Phase::Trying { left: 0 | 1, short: before } => self.judge(before + u32::from(short)),
            Phase::Trying { left, short: before } => Phase::Trying { left: left - 1, short: before + u32::from(short) },
        };
    }

    fn judge(&mut self, short: u32) -> Phase {
        if short > TRIAL / 2 {
            self.rest = REST;
            return Phase::Trying { left: TRIAL, short: 0 };
        }
        let left = self.rest;
        self.rest = (self.rest * 2).min(MAX_REST);
        Phase::Resting { left }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `waits` waits that would each be short with spinning or not, how many were spun in.
    fn spun(spin: &mut Spin, waits: u32, short: bool) -> u32 {
        let mut spun = 0;
        for _ in 0..waits {
            let spins = spin.budget() > Duration::ZERO;
            spun += u32::from(spins);
            spin.waited(spins && short);
        }
        spun
    }

    #[test]
    fn it_spins_while_that_is_enough() {
        let mut spin = Spin::new(true);
        assert_eq!(spun(&mut spin, 1000, true), 1000);
    }

    #[test]
    fn it_all_but_stops_when_it_never_is() {
        let mut spin = Spin::new(true);
        assert!(spun(&mut spin, 100_000, false) <= 100_000 / 100 / 4);
    }

    #[test]
    fn it_comes_back() {
        let mut spin = Spin::new(true);
        spun(&mut spin, 100_000, false);
        spun(&mut spin, MAX_REST, true);
        assert_eq!(spun(&mut spin, 1000, true), 1000);
        spun(&mut spin, TRIAL, false);
        let rested = REST - spun(&mut spin, REST, true);
        assert!(rested > REST / 2, "it rests at once");
        assert_eq!(spun(&mut spin, 1000, true), 1000, "and not for long: the success before counts");
    }

    #[test]
    fn it_never_spins_without_a_processor() {
        assert_eq!(spun(&mut Spin::new(false), 1000, true), 0);
    }
}
