//! Whether a serving thread has too much to do or too little: judged by its rounds, not by a clock.
//!
//! A *round* looks at every job once. Idle looks in a row are one round, for how many there are says how fast they are
//! and not how much there is to do. After `WINDOW` rounds the share of those that found work says how the thread
//! fares; several windows in a row have to say the same before anything is changed, more of them for giving up a thread
//! than for taking one on. A thread that has had no work for long has next to nothing to do.

use std::time::Duration;

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

/// In how many rounds one job had work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    now: u32,
    last: u32,
}

impl Work {
    /// A round found work at it.
    pub fn found(&mut self) {
        self.now += 1;
    }

    /// The rounds of the last full window that found work at it.
    pub fn last(&self) -> u32 {
        self.last
    }

    /// A window is over.
    fn turn(&mut self) -> u32 {
        self.last = std::mem::take(&mut self.now);
        self.last
    }
}

/// Which of some jobs with so much work to give away, in order, so that about half of it goes: each in turn, the largest
/// first, goes to the side that has less so far. Nothing unless two have work.
pub fn half(work: &[u32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..work.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(work[*index]));
    if order.get(1).is_none_or(|second| work[*second] == 0) {
        return Vec::new();
    }
    // Those without work are shared out as well: they may have some later.
    let (mut kept, mut given) = ((0, 0), (0, 0));
    let mut chosen = Vec::new();
    for index in order {
        let side = if kept <= given {
            &mut kept
        } else {
            chosen.push(index);
            &mut given
        };
        *side = (side.0 + work[index], side.1 + 1);
    }
    chosen.sort_unstable();
    chosen
}

/// Which one of some jobs with so much work to give away: the one with the most that has at most half of it.
pub fn one(work: &[u32]) -> Vec<usize> {
    let all: u32 = work.iter().sum();
    let fits = (0..work.len()).filter(|index| work[*index] > 0 && 2 * work[*index] <= all);
    fits.max_by_key(|index| work[*index]).into_iter().collect()
}

/// For how long a thread has had no work, over however many waits: one that spins makes many short ones.
#[derive(Debug, Default)]
pub struct Idleness {
    /// When the first of the rounds without work was that have followed the last one with work.
    since: Option<u64>,
}

impl Idleness {
    /// Counts anew.
    pub fn reset(&mut self) {
        self.since = None;
    }

    /// A round at `now`, in nanoseconds, found no work: how much longer it takes to a lull of the given length.
    pub fn until(&mut self, now: u64, lull: Duration) -> Duration {
        let idle = now.saturating_sub(*self.since.get_or_insert(now));
        lull.saturating_sub(Duration::from_nanos(idle))
    }
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
    /// A round is over; `work` is that of each job, which begins a new window with this.
    pub fn round<'a>(&mut self, busy: bool, work: impl Iterator<Item = &'a mut Work>) -> Verdict {
        self.rounds += 1;
        self.busy += u32::from(busy);
        if self.rounds < WINDOW {
            return Verdict::Stay;
        }
        let active = work.map(Work::turn).filter(|rounds| *rounds >= WINDOW * ACTIVE / WHOLE).count();
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

    /// The thread has had no work for the length of a lull.
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
        let mut work = [Work::default(); 2];
        let mut all = Vec::new();
        for round in 0..windows * WINDOW {
            let busy = shares.map(|share| round % WHOLE < share);
            work.iter_mut().zip(busy).filter(|(_, busy)| *busy).for_each(|(work, _)| work.found());
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

    #[test]
    fn the_work_of_a_window_is_kept_for_the_next() {
        let (mut load, mut work) = (Load::default(), Work::default());
        for round in 0..WINDOW {
            assert_eq!(work.last(), 0);
            if round % 4 == 0 {
                work.found();
            }
            load.round(true, std::iter::once(&mut work));
        }
        assert_eq!(work.last(), WINDOW / 4);
    }

    #[test]
    fn a_lull_is_counted_over_many_short_waits() {
        let (mut idleness, lull) = (Idleness::default(), Duration::from_nanos(1000));
        for turn in [7, 100_000] {
            for wait in 0..100 {
                assert_eq!(idleness.until(turn + wait * 10, lull), Duration::from_nanos(1000 - wait * 10));
            }
            assert_eq!(idleness.until(turn + 1000, lull), Duration::ZERO);
            assert_eq!(idleness.until(turn + 2000, lull), Duration::ZERO, "one past it");
            idleness.reset();
        }
    }

    #[test]
    fn half_of_the_work_is_given_away_and_not_half_of_the_jobs() {
        assert_eq!(half(&[]), [0; 0]);
        assert_eq!(half(&[256]), [0; 0]);
        assert_eq!(half(&[0, 256, 0]), [0; 0], "one has all the work");
        assert_eq!(half(&[0, 0, 256, 256]), [1, 3], "the first ones are idle");
        assert_eq!(half(&[256, 256, 256, 256]), [1, 3]);
        assert_eq!(half(&[10, 200, 20, 170]), [0, 2, 3]);
        assert_eq!(half(&[200, 90, 60, 50]), [1, 2, 3]);
    }

    #[test]
    fn the_one_given_away_has_work_but_not_most_of_it() {
        assert_eq!(one(&[]), [0; 0]);
        assert_eq!(one(&[0, 256]), [0; 0], "nothing would be gained");
        assert_eq!(one(&[0, 256, 100, 90]), [2]);
        assert_eq!(one(&[0, 128, 0, 128]), [3]);
    }
}
