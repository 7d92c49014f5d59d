//! Whether to spin before a sleep, and for how long: learned from what a thread's waits have been like.
//!
//! Two ways to wait compete, *spinning* (look again and again for a while, then sleep) and *sleeping* (at once). Which
//! is better depends on what a thread cannot know in advance: whether a processor is free for whoever it waits for, how
//! long that one takes, what a sleep costs here, whether the other side sleeps itself. So it lives in one of the two
//! and now and then tries the other for a few waits, and compares the lengths of the waits. Where everybody answers
//! everybody, a way to wait that holds up somebody else comes back as a longer wait; where it does not, the kernel says
//! so: it gives the processor that a spinner offers to whoever else wants it (*displaced*).
//!
//! What there is of numbers follows from two promises, not from a machine:
//! * *Nothing is more than `SLOWER` slower than the better way.* A wait that has lasted 4 times what a sleep costs is
//!   made at most 1.25 times as long by sleeping now. That is the longest spin.
//! * *Trials cost at most 1 %.* After a trial has cost some time, there is none for `TRIAL_RATE` times as long.
//!
//! What a sleep costs is measured: the time from the ring of the bell, which the ringer stamps, to the sleeper's first
//! look, its median. (Spinning as long as a block costs is at most twice as bad as knowing the future: Karlin et al.,
//! "Competitive randomized algorithms for nonuniform problems", 1994; here somewhat longer, because what counts is the
//! time and not the processor, and less often, because most of the time one of the two is right for thousands of waits
//! in a row.)
//!
//! Whether to go to another processor instead of waiting is decided in `parting.rs`.
//!
//! Pure: it reads no clock and makes no system call. Times are nanoseconds of any clock that does not go backwards.

mod parting;

use parting::Parting;

/// The longest spin, in costs of a sleep: a sleep after it adds at most a quarter to the wait.
const SLOWER: u64 = 4;
/// Trials may cost one part in so many of the time.
const TRIAL_RATE: u64 = 100;
/// Waits of one trial.
const TRIAL: u32 = 8;
/// Waits of a trial of spinning that may be in vain before it is given up.
const TRIAL_VAIN: u32 = 3;
/// What a sleep costs on an idle processor of common machines, in nanoseconds: believed until one has been measured, and
/// of peers as long as the own ones do not cost more. And the limits of what is believed.
const COST: u64 = 25_000;
const MIN_COST: u64 = 1_000;
const MAX_COST: u64 = 1_000_000;
/// A mean forgets: each new value counts one part in so many.
const MEMORY: u64 = 64;
/// One, in the units of shares.
const ONE: u32 = 1 << 10;

/// The way a thread waits now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Spin,
    Sleep,
}

/// What a thread sees of its peers when a wait turns out not to be over at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct View {
    /// A peer says it is on the same processor.
    pub together: bool,
    /// And that it is awake.
    pub crowded: bool,
    /// There are peers, and all say that they sleep or wait themselves: what there is to come comes from outside, or
    /// from one that has just been woken.
    pub quiet: bool,
}

/// What to do next in a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Look again.
    Look,
    /// Offer the processor to others, say how long that took ([`Spin::yielded`]), then look again.
    Yield,
    /// Go to another processor, away from a peer; say how long that took ([`Spin::moved`]), then look again.
    Move,
    /// Sleep.
    Sleep,
}

/// The wait that is under way.
#[derive(Debug, Clone, Copy, Default)]
struct Wait {
    began: u64,
    budget: u64,
    last_look: u64,
    next_yield: u64,
    pace: u64,
    displaced: bool,
    /// What was seen at its beginning.
    view: View,
    /// It begins with a move away from there.
    moving: bool,
    /// The processor was offered and somebody else had it for a while.
    lent: bool,
    /// The last offer took so long, and whether it brought work is not known yet.
    offered: Option<u64>,
    /// It has come to the sleep: a spin after it would be a second one.
    spent: Option<u64>,
}

/// A few waits in the other way.
#[derive(Debug, Clone, Copy, Default)]
struct Trial {
    waits: u32,
    /// Those of them that were short enough to say something.
    telling: u32,
    vain: u32,
    /// Those in which a peer on the same processor brought the work when it was offered that.
    shared: u32,
    total: u64,
    cost: u64,
}

/// What one thread has learned.
#[derive(Debug, Clone)]
pub struct Spin {
    /// There is a second processor at all.
    allowed: bool,
    way: Way,
    trial: Option<Trial>,
    next_trial: u64,
    /// What a sleep costs: the median of what was measured.
    cost: u64,
    /// The mean length of the waits that say something about it, in each way.
    spun: Option<u64>,
    slept: Option<u64>,
    /// The share of waits in which spinning was in vain: they ended in a sleep after all, or the processor
    /// was wanted by somebody else than who was waited for.
    vain: u32,
    /// Waits in the present way, up to what a comparison needs.
    waits: u32,
    /// What offering the processor costs when nobody wants it.
    yield_cost: u64,
    parting: Parting,
    wait: Wait,
}

impl Spin {
    /// For a thread of a machine with so many processors.
    pub fn new(processors: usize) -> Self {
        Self {
            allowed: processors > 1,
            way: Way::Sleep,
            trial: None,
            next_trial: 0,
            cost: COST,
            spun: None,
            slept: None,
            vain: 0,
            waits: 0,
            yield_cost: MIN_COST / 4,
            parting: Parting::default(),
            wait: Wait::default(),
        }
    }

    /// Whether spinning is possible at all: there is a second processor.
    pub fn may_spin(&self) -> bool {
        self.allowed
    }

    /// Whether the first few looks of a wait may be made without asking anything: no clock, no [`Spin::begin`].
    pub fn glances(&self) -> bool {
        self.present_way() == Way::Spin
    }

    /// Work came within these first looks. The clock is asked in trials only.
    pub fn glimpsed(&mut self, now: impl FnOnce() -> u64) {
        self.parting.apart(0);
        if self.trial.is_some() {
            self.waited(0, 0, false, now());
        } else {
            self.spun = self.spun.map(|mean| mean - mean.div_ceil(MEMORY));
            self.waits = (self.waits + 1).min(TRIAL);
            self.vain -= self.vain.div_ceil(16);
        }
    }

    /// A wait was not over at once.
    pub fn begin(&mut self, now: u64, view: View) {
        self.maybe_try(now);
        let budget = match self.present_way() {
            Way::Sleep => 0,
            // Enough for one that has been woken to come and answer.
            Way::Spin if view.quiet => 2 * self.reach(),
            Way::Spin => SLOWER * self.reach(),
        };
        let pace = self.cost / 16;
        let next_yield = if view.crowded { now } else { now + pace };
        // What a trial compares is not to depend on a move in it.
        let moving = view.crowded && self.way == Way::Spin && self.trial.is_none() && self.parting.is_due(now);
        self.wait = Wait { began: now, budget, last_look: now, next_yield, pace, view, moving, ..Wait::default() };
    }

    /// What to do next in the wait that has begun.
    pub fn next(&mut self, now: u64) -> Step {
        let wait = &mut self.wait;
        if let Some(took) = wait.offered.take() {
            // A floor that forgets slowly. Offers that bring work have been taken: of their like there may be no others.
            self.yield_cost = (self.yield_cost + self.yield_cost / 16 + 1).min(took).clamp(MIN_COST / 8, MAX_COST);
        }
        // A look takes far less than a sleep, unless something else ran in between.
        wait.displaced |= now.saturating_sub(wait.last_look) > self.cost;
        wait.last_look = now;
        let elapsed = now.saturating_sub(wait.began);
        if wait.displaced || elapsed >= wait.budget || wait.spent.is_some() {
            wait.spent.get_or_insert(elapsed.min(wait.budget));
            return Step::Sleep;
        }
        if std::mem::take(&mut wait.moving) {
            return Step::Move;
        }
        if now < wait.next_yield {
            return Step::Look;
        }
        wait.next_yield = now + wait.pace;
        wait.pace = (2 * wait.pace).min(self.cost / 4);
        Step::Yield
    }

    /// The processor was offered at `now` and came back after `took`.
    pub fn yielded(&mut self, now: u64, took: u64) {
        self.wait.lent = took > (4 * self.yield_cost).min(self.cost);
        self.wait.displaced |= self.wait.lent;
        self.wait.last_look = now + took;
        self.yield_cost = self.yield_cost.min(took).max(MIN_COST / 8);
        self.wait.offered = Some(took);
    }

    /// A move began at `now` and took so long. `went` is whether there was somewhere to go.
    pub fn moved(&mut self, now: u64, took: u64, went: bool) {
        self.parting.moved(now, took, went);
        // It has an account of its own, and is no part of how long answers take.
        let wait = &mut self.wait;
        (wait.began, wait.last_look) = (wait.began + took, now + took);
        wait.next_yield = wait.last_look + wait.pace;
    }

    /// Work was there before a sleep.
    pub fn found(&mut self, now: u64) {
        let length = now.saturating_sub(self.wait.began);
        let is_hand_over = self.wait.lent && self.wait.spent.is_none();
        if let Some(trial) = &mut self.trial {
            trial.shared += u32::from(is_hand_over && self.wait.view.together);
        }
        if is_hand_over && self.wait.view.crowded {
            self.parting.handed_over(length);
        } else if self.is_telling(length) || self.wait.displaced {
            self.parting.apart(length);
        }
        let spun = self.wait.spent.unwrap_or(length.min(self.wait.budget));
        // Work that is there when the processor comes back came from whoever had it: that is no spin in vain.
        self.waited(length, spun, self.wait.spent.is_some(), now);
    }

    /// A sleep is over, `woken` after the bell was rung for it, if that is known.
    pub fn slept(&mut self, now: u64, woken: Option<u64>) {
        if let Some(woken) = woken {
            // A median by small steps: a few wild ones move it no further than as many tame ones.
            let step = self.cost / 16;
            self.cost = if woken > self.cost { self.cost + step } else { self.cost - step };
            self.cost = self.cost.clamp(MIN_COST, MAX_COST);
        }
        let length = now.saturating_sub(self.wait.began);
        if self.is_telling(length) || self.wait.displaced {
            self.parting.apart(length);
        }
        let spun = self.wait.spent.unwrap_or(0);
        self.waited(length, spun, self.wait.budget > 0, now);
    }

    /// What a sleep costs a peer, as far as that is known here; at least [`COST`], because it may cost the peer more than
    /// this thread: two that share a processor while both sleep wake each other cheaply, but a spinner does not let its
    /// peer in there, and it is woken on another one.
    fn reach(&self) -> u64 {
        self.cost.max(COST)
    }

    /// What a sleep costs here, in nanoseconds, as far as is known.
    pub fn cost(&self) -> u64 {
        self.cost
    }

    fn present_way(&self) -> Way {
        match (self.way, self.trial.is_some()) {
            (Way::Spin, false) | (Way::Sleep, true) => Way::Spin,
            (Way::Sleep, false) | (Way::Spin, true) => Way::Sleep,
        }
    }

    /// Begins a trial of the other way if it is time for one, and if it can win: waits much shorter than a sleep cannot
    /// be made shorter by one.
    fn maybe_try(&mut self, now: u64) {
        let can_win = match self.way {
            Way::Sleep => self.allowed,
            Way::Spin => self.spun.is_some_and(|mean| mean > self.cost / 2),
        };
        if can_win && self.waits >= TRIAL && self.trial.is_none() && now >= self.next_trial {
            self.trial = Some(Trial::default());
        }
    }

    /// In a wait that outlasts every spin both ways sleep: its length says nothing about them.
    fn is_telling(&self, length: u64) -> bool {
        length <= SLOWER * self.reach() + self.cost
    }

    fn waited(&mut self, length: u64, spun: u64, vain: bool, now: u64) {
        let is_telling = self.is_telling(length);
        let way = self.present_way();
        if let Some(trial) = &mut self.trial {
            trial.waits += 1;
            if is_telling {
                trial.telling += 1;
                trial.total += length;
            }
            trial.vain += u32::from(vain);
            trial.cost += if way == Way::Spin { spun } else { self.cost };
            let given_up = way == Way::Spin && trial.vain >= TRIAL_VAIN;
            if given_up || trial.waits == TRIAL {
                let trial = *trial;
                self.judge(&trial, given_up, now);
            }
            return;
        }
        self.waits = (self.waits + 1).min(TRIAL);
        match way {
            Way::Sleep if is_telling => self.slept = Some(mean(self.slept, length)),
            Way::Sleep => {}
            Way::Spin => {
                if is_telling {
                    self.spun = Some(mean(self.spun, length));
                }
                self.vain = self.vain - self.vain.div_ceil(16) + if vain { ONE / 16 } else { 0 };
                if self.vain > ONE / 2 {
                    self.go(Way::Sleep);
                    self.rest(SLOWER * self.cost, now);
                }
            }
        }
    }

    /// A trial is over: stays, or goes over to the other way.
    fn judge(&mut self, trial: &Trial, given_up: bool, now: u64) {
        self.trial = None;
        let tried = trial.total.checked_div(trial.telling.into());
        // Two that hand one processor over to each other wait as long as if they slept. Apart they do not.
        let is_promising = 2 * trial.shared > trial.waits && self.parting.may_move(now);
        match self.way {
            Way::Sleep if !given_up && is_promising => {
                self.go(Way::Spin);
                self.spun = tried;
            }
            // Even where the waits are no shorter, what is found by spinning is found at once.
            Way::Sleep if !given_up && tried.zip(self.slept).is_none_or(|(tried, mean)| tried <= mean + mean / 8) => {
                self.go(Way::Spin);
                self.spun = tried;
            }
            Way::Spin if tried.zip(self.spun).is_some_and(|(tried, mean)| tried + tried / 8 < mean) => {
                self.go(Way::Sleep);
                self.slept = tried;
            }
            _ => {}
        }
        self.rest(trial.cost, now);
    }

    fn go(&mut self, way: Way) {
        (self.way, self.waits, self.vain) = (way, 0, 0);
    }

    /// No trial for a while, after one that has cost so much.
    fn rest(&mut self, cost: u64, now: u64) {
        self.next_trial = self.next_trial.max(now) + TRIAL_RATE * cost.max(self.cost);
    }
}

/// A mean that forgets.
fn mean(before: Option<u64>, value: u64) -> u64 {
    before.map_or(value, |mean| mean - mean / MEMORY + value / MEMORY)
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
