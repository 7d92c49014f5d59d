//! Whether a serving thread has too much to do or too little: judged by its rounds, not by a clock.
//!
//! A *round* looks at every job once. Idle looks in a row are one round, for how many there are says how fast they are
//! and not how much there is to do. After [`WINDOW`] rounds the share of those that found work says how the thread
//! fares; several windows in a row have to say the same before anything is changed, more of them for giving up a thread
//! than for taking one on. A thread that has slept its fill without work has next to nothing to do.

/// Rounds after which a thread is judged.
const WINDOW: u32 = 256;
/// Windows in a row that make a thread saturated, and one that is not needed.
const GROW_AFTER: u32 = 4;
const SHRINK_AFTER: u32 = 16;
/// One, in the units of shares.
pub const WHOLE: u32 = 16;
/// The share of rounds with work from which on a thread is saturated.
const SATURATED: u32 = 12;
/// The share up to which a thread has little to do: most of its rounds with work are followed by a pause. Two such can be
/// one.
pub const LIGHT: u32 = 9;
/// The share of rounds in which a job has to have work to count as one that would gain by a thread of its own.
const ACTIVE: u32 = 2;

/// What a thread should do about its load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Stay,
    /// Give some of its jobs to somebody else.
    Share,
    /// Give all of them away, if somebody else has time for them.
    Leave,
}

/// The recent rounds of one thread.
#[derive(Debug)]
pub struct Load {
    rounds: u32,
    busy: u32,
    full: u32,
    light: u32,
    share: u32,
}

impl Default for Load {
    fn default() -> Self {
        Self { rounds: 0, busy: 0, full: 0, light: 0, share: WHOLE }
    }
}

impl Load {
    /// A round is over; `work` has for each job how many rounds of this window found work there, and is reset with the
    /// window.
    pub fn round<'a>(&mut self, busy: bool, work: impl Iterator<Item = &'a mut u32>) -> Verdict {
        self.rounds += 1;
        self.busy += u32::from(busy);
        if self.rounds < WINDOW {
            return Verdict::Stay;
        }
        let active = work.map(std::mem::take).filter(|rounds| *rounds >= WINDOW * ACTIVE / WHOLE).count();
        self.share = self.busy * WHOLE / WINDOW;
        (self.rounds, self.busy) = (0, 0);
        let is_full = self.share >= SATURATED && active > 1;
        self.full = if is_full { self.full + 1 } else { 0 };
        self.light = if self.share <= LIGHT { self.light + 1 } else { 0 };
        if self.full >= GROW_AFTER {
            self.full = 0;
            return Verdict::Share;
        }
        if self.light >= SHRINK_AFTER {
            self.light = 0;
            return Verdict::Leave;
        }
        Verdict::Stay
    }

    /// The thread has slept its fill, and there was no work.
    pub fn lull(&mut self) -> Verdict {
        *self = Self { share: 0, ..Self::default() };
        Verdict::Leave
    }

    /// The share of rounds with work in the last window; all, before there was one.
    pub fn share(&self) -> u32 {
        self.share
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    /// The verdicts of `windows` windows in which so many of 16 rounds find work at each of two jobs.
    fn verdicts(load: &mut Load, windows: u32, shares: [u32; 2]) -> Vec<Verdict> {
        let mut work = [0; 2];
        let mut all = Vec::new();
        for round in 0..windows * WINDOW {
            let busy = shares.map(|share| round % WHOLE < share);
            work.iter_mut().zip(busy).for_each(|(rounds, busy)| *rounds += u32::from(busy));
            match load.round(busy[0] || busy[1], work.iter_mut()) {
                Verdict::Stay => {}
                verdict => all.push(verdict),
            }
        }
        all
    }

    #[test]
    fn a_saturated_thread_shares_after_some_windows() {
        let mut load = Load::default();
        assert_eq!(verdicts(&mut load, GROW_AFTER - 1, [16, 16]), []);
        assert_eq!(verdicts(&mut load, 1, [16, 16]), [Verdict::Share]);
        assert_eq!(verdicts(&mut load, GROW_AFTER - 1, [12, 2]), [], "counted anew");
        assert_eq!(verdicts(&mut load, 1, [12, 2]), [Verdict::Share]);
    }

    #[test]
    fn one_job_alone_gains_nothing_by_a_second_thread() {
        assert_eq!(verdicts(&mut Load::default(), 100, [16, 1]), []);
    }

    #[test]
    fn a_light_load_leaves_after_more_windows_and_one_between_changes_nothing() {
        let mut load = Load::default();
        assert_eq!(verdicts(&mut load, SHRINK_AFTER - 1, [9, 3]), []);
        assert_eq!(verdicts(&mut load, 1, [9, 3]), [Verdict::Leave]);
        assert_eq!(verdicts(&mut load, 100, [11, 11]), [], "neither");
        verdicts(&mut load, GROW_AFTER - 1, [16, 16]);
        verdicts(&mut load, 1, [11, 11]);
        assert_eq!(verdicts(&mut load, 1, [16, 16]), [], "not in a row");
        assert_eq!(load.lull(), Verdict::Leave);
    }
}
