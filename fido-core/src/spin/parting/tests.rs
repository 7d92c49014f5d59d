//! Two threads that answer each other, on one processor or on two, without a clock or a kernel.

use super::super::{Spin, Step, View};
use super::{PATIENCE, RATE};

const LOOK: u64 = 100;
/// A hand-over of one processor, and a move to another one.
const HAND_OVER: u64 = 4_000;
const MOVE: u64 = 50_000;

struct Pair {
    spin: Spin,
    now: u64,
    /// The peer is on the same processor, and says that it is awake there.
    together: bool,
    says: bool,
    /// A move parts the two.
    parts: bool,
    /// There is another processor at all.
    elsewhere: bool,
    moves: u64,
}

impl Pair {
    /// Two that spin, on one processor.
    fn new() -> Self {
        let mut pair = Self {
            spin: Spin::new(2),
            now: 1 << 40,
            together: false,
            says: true,
            parts: true,
            elsewhere: true,
            moves: 0,
        };
        (0..100).for_each(|_| pair.wait());
        assert!(pair.spin.glances() && pair.moves == 0);
        pair.together = true;
        pair
    }

    fn view(&self) -> View {
        let here = self.together && self.says;
        View { together: here, crowded: here, quiet: false }
    }

    /// A question and its answer, which takes two looks if the peer has a processor.
    fn wait(&mut self) {
        let glances = self.spin.glances();
        if glances && !self.together {
            self.now += 2 * LOOK;
            return self.spin.glimpsed(|| self.now);
        }
        self.now += if glances { 8 * LOOK } else { 0 };
        self.spin.begin(self.now, self.view());
        loop {
            match self.spin.next(self.now) {
                Step::Look => self.now += LOOK,
                Step::Yield => {
                    let took = if self.together { HAND_OVER } else { LOOK };
                    self.spin.yielded(self.now, took);
                    self.now += took;
                }
                Step::Move => {
                    self.spin.moved(self.now, if self.elsewhere { MOVE } else { LOOK }, self.elsewhere);
                    self.now += if self.elsewhere { MOVE } else { LOOK };
                    self.moves += 1;
                    self.together &= !(self.parts && self.elsewhere);
                    continue;
                }
                Step::Sleep => {
                    self.now += 5_000;
                    return self.spin.slept(self.now, Some(HAND_OVER));
                }
            }
            return self.spin.found(self.now);
        }
    }

    /// The moves and the time of so many bursts of so many questions, at whose beginning both are together.
    fn bursts(&mut self, bursts: u32, questions: u32) -> (u64, u64) {
        let (moves, began) = (self.moves, self.now);
        for _ in 0..bursts {
            self.together = true;
            (0..questions).for_each(|_| self.wait());
        }
        (self.moves - moves, self.now - began)
    }
}

#[test]
fn two_on_one_processor_part_once_a_burst() {
    let mut pair = Pair::new();
    let (moves, _) = pair.bursts(1, 256);
    assert!(moves == 1 && !pair.together);
    let (moves, took) = pair.bursts(100, 256);
    assert!((95..=100).contains(&moves), "{moves} moves in 100 bursts");
    assert!(took < 100 * 256 * HAND_OVER / 6, "{took} ns: the same burst without a move takes 256 hand-overs");
}

#[test]
fn a_first_move_waits_for_as_many_hand_overs_as_a_trial_of_a_peer_lasts() {
    let mut pair = Pair::new();
    let (moves, _) = pair.bursts(1, PATIENCE);
    assert_eq!(moves, 0);
    pair.wait();
    assert_eq!(pair.moves, 1);
}

#[test]
fn moves_that_part_nobody_are_rare_but_tried_again() {
    let mut pair = Pair::new();
    pair.parts = false;
    let (moves, took) = pair.bursts(1, 100_000);
    assert!(moves > 10, "{moves} moves");
    assert!(moves * MOVE * (RATE - 10) <= took, "{moves} moves in {took} ns");
    pair.parts = true;
    let (moves, _) = pair.bursts(1, 10_000);
    assert!(moves == 1 && !pair.together, "it pays again");
}

#[test]
fn moves_do_not_pay_for_a_few_questions() {
    let mut pair = Pair::new();
    let (moves, took) = pair.bursts(20_000, 12);
    assert!(moves * MOVE * (RATE - 10) <= took, "{moves} moves in {took} ns");
}

#[test]
fn who_has_nowhere_to_go_hardly_asks() {
    let mut pair = Pair::new();
    pair.elsewhere = false;
    let (asked, took) = pair.bursts(1, 100_000);
    assert!(asked > 0 && asked * LOOK * (RATE - 10) <= took, "asked {asked} times in {took} ns");
}

#[test]
fn nobody_moves_away_from_strangers() {
    // Whoever takes the processor when it is offered, it is no peer that says so.
    let mut pair = Pair::new();
    pair.says = false;
    assert_eq!(pair.bursts(100, 256).0, 0);
}

#[test]
fn a_peer_that_is_believed_here_but_takes_nothing_is_stayed_with() {
    let mut pair = Pair::new();
    pair.together = false;
    for _ in 0..1000 {
        // What it says is old: it answers from another processor, after a while.
        pair.spin.begin(pair.now, View { together: true, crowded: true, quiet: false });
        for step in [Step::Yield, Step::Look] {
            assert_eq!(pair.spin.next(pair.now), step);
            if step == Step::Yield {
                pair.spin.yielded(pair.now, LOOK);
            }
            pair.now += LOOK;
        }
        pair.spin.found(pair.now);
    }
}

#[test]
fn sleepers_on_one_processor_come_to_spin_apart() {
    // Hand-overs by sleeping are a little faster than by offering, so a trial alone would say: sleep on.
    let mut pair = Pair { spin: Spin::new(2), together: true, ..Pair::new() };
    for _ in 0..1000 {
        if pair.spin.glances() || pair.now >= pair.spin.next_trial && pair.spin.waits >= 8 {
            pair.wait();
        } else {
            pair.spin.begin(pair.now, pair.view());
            assert_eq!(pair.spin.next(pair.now), Step::Sleep);
            pair.now += HAND_OVER / 2;
            pair.spin.slept(pair.now, Some(HAND_OVER / 2));
        }
    }
    assert!(pair.spin.glances() && pair.moves == 1 && !pair.together);
}
