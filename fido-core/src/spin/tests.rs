//! A thread in made-up worlds, without a clock or a kernel.

use super::*;
use proptest::prelude::*;

/// What a look takes, and a sleep and its end on the machine of these tests.
const LOOK: u64 = 100;
const SLEEP: u64 = 20_000;

/// A world with one thread that waits.
struct World {
    spin: Spin,
    now: u64,
    view: View,
    /// Somebody else wants the processor: so long is it gone when it is offered.
    wanted: Option<u64>,
    /// Time spent in spins that ended in a sleep, and the number of sleeps.
    in_vain: u64,
    sleeps: u64,
}

impl World {
    fn new() -> Self {
        Self { spin: Spin::new(2), now: 1 << 40, view: View::default(), wanted: None, in_vain: 0, sleeps: 0 }
    }

    /// A wait for something that comes after `length`; `penalty` is what it comes later if this thread sleeps.
    /// Returns how long the wait was.
    fn wait(&mut self, length: u64, penalty: u64) -> u64 {
        let start = self.now;
        let end = start + length;
        if self.spin.glances() {
            self.now += (8 * LOOK).min(length);
            if self.now >= end {
                self.spin.glimpsed(|| self.now);
                return length;
            }
        }
        self.spin.begin(self.now, self.view);
        let spinning = self.now;
        loop {
            if self.now >= end {
                self.spin.found(self.now);
                return self.now - start;
            }
            match self.spin.next(self.now) {
                Step::Look => self.now += LOOK,
                Step::Yield => {
                    let took = self.wanted.unwrap_or(LOOK);
                    self.spin.yielded(self.now, took);
                    self.now += took;
                }
                Step::Move => {
                    self.spin.moved(self.now, SLEEP, true);
                    self.now += SLEEP;
                }
                Step::Sleep => break,
            }
        }
        self.in_vain += self.now - spinning;
        self.sleeps += 1;
        self.now = end.max(self.now) + penalty + SLEEP;
        self.spin.slept(self.now, Some(SLEEP));
        self.now - start
    }

    /// Of `waits` such waits, how many ended in a sleep.
    fn sleeps(&mut self, waits: u32, length: u64, penalty: u64) -> u64 {
        let before = self.sleeps;
        (0..waits).for_each(|_| _ = self.wait(length, penalty));
        self.sleeps - before
    }
}

#[test]
fn it_spins_where_answers_come_at_once() {
    let mut world = World::new();
    assert!(world.sleeps(100, 200, 0) <= 20, "the first waits are for comparison");
    assert_eq!(world.sleeps(10_000, 200, 0), 0);
}

#[test]
fn it_spins_where_a_sleep_would_make_the_wait_much_longer() {
    let mut world = World::new();
    world.sleeps(1000, 2 * SLEEP, 0);
    let slept = world.sleeps(1000, 2 * SLEEP, 0);
    assert!(slept < 100, "{slept}: but for trials of sleeping");
}

#[test]
fn it_sleeps_where_that_makes_no_difference() {
    let mut world = World::new();
    assert!(world.sleeps(1000, 50 * SLEEP, 0) >= 1000);
    assert!(world.in_vain * 50 < world.now - (1 << 40), "{} ns in vain", world.in_vain);
}

#[test]
fn it_wakes_to_a_faster_world_within_the_time_that_trials_may_cost() {
    let mut world = World::new();
    world.sleeps(10_000, 50 * SLEEP, 0);
    let slow_until = world.now;
    let limit = 2 * TRIAL_RATE * u64::from(TRIAL_VAIN) * SLOWER * SLEEP;
    while !world.spin.glances() && world.now - slow_until < limit {
        world.wait(200, SLEEP);
    }
    assert!(world.spin.glances() && world.now - slow_until < limit, "after {} us", (world.now - slow_until) / 1000);
}

#[test]
fn the_rest_after_a_trial_is_counted_from_its_end() {
    let mut world = World::new();
    world.sleeps(TRIAL, 2 * SLEEP, 0);
    // The next wait begins a trial of spinning; the rest of it are glimpses, long after.
    world.wait(2 * SLEEP, 0);
    assert!(world.spin.trial.is_some());
    for _ in 1..TRIAL {
        world.now += 1 << 30;
        world.spin.glimpsed(|| world.now);
    }
    assert!(world.spin.trial.is_none());
    assert!(world.spin.next_trial > world.now, "{} at {}", world.spin.next_trial, world.now);
}

#[test]
fn it_stops_where_the_processor_is_wanted() {
    let mut world = World::new();
    world.sleeps(1000, 2 * SLEEP, 0);
    world.wanted = Some(SLEEP / 2);
    world.sleeps(100, 2 * SLEEP, 0);
    let before = world.in_vain;
    let since = world.now;
    world.sleeps(1000, 2 * SLEEP, 0);
    let share = (world.now - since) / (world.in_vain - before).max(1);
    assert!(share >= 30, "one part in {share} in vain");
    world.wanted = None;
    world.sleeps(1000, 2 * SLEEP, 0);
    assert!(world.sleeps(1000, 2 * SLEEP, 0) < 100, "and it comes back");
}

#[test]
fn it_gives_way_where_spinning_makes_its_own_waits_longer() {
    // Nobody says so, but whoever answers needs this thread's processor: while this thread spins, answers take longer.
    let mut world = World::new();
    let mut slept = 0;
    for _ in 0..5000 {
        let before = world.sleeps;
        let slow = if world.spin.glances() { 3 * SLEEP } else { 0 };
        world.wait(SLEEP / 4 + slow, 0);
        slept += world.sleeps - before;
    }
    assert!(slept > 4500, "{slept} of 5000");
}

#[test]
fn bursts_are_spun_in_and_gaps_slept_in() {
    let mut world = World::new();
    for burst in 0..200 {
        let slept = world.sleeps(64, 300, SLEEP);
        assert!(burst < 20 || slept <= u64::from(TRIAL), "{slept} in burst {burst}");
        world.wait(100 * SLEEP, 0);
    }
    let gaps = world.sleeps;
    assert!(world.in_vain / gaps <= SLOWER * COST + LOOK);
}

#[test]
fn a_peer_that_wakes_more_slowly_than_oneself_is_waited_for() {
    // Asleep, both share a processor, and a sleep costs little. A spinner's peer is woken on another one, which takes
    // longer; once it is awake, it answers at once.
    let mut spin = Spin::new(2);
    let (mut now, mut peer_sleeps) = (1 << 40, true);
    let mut slept_last = 0;
    for wait in 0..20_000 {
        let spins = spin.glances();
        if spins && !peer_sleeps {
            now += 200;
            spin.glimpsed(|| now);
            continue;
        }
        spin.begin(now, View::default());
        let answer = now + if spin.glances() { 33_000 } else { 2_000 };
        let step = std::iter::from_fn(|| match spin.next(now) {
            Step::Sleep => None,
            step => {
                now += LOOK;
                if step == Step::Yield {
                    spin.yielded(now - LOOK, LOOK);
                }
                (now < answer).then_some(())
            }
        });
        step.for_each(drop);
        if now >= answer {
            peer_sleeps = false;
            spin.found(now);
        } else {
            (slept_last, peer_sleeps) = (wait, true);
            now = answer + 4_000;
            spin.slept(now, Some(4_000));
        }
    }
    assert!(slept_last < 10_000, "still asleep in wait {slept_last}");
}

#[test]
fn peers_that_wait_themselves_are_waited_for_less() {
    let mut world = World::new();
    world.sleeps(100, 200, 0);
    world.view.quiet = true;
    world.in_vain = 0;
    world.wait(100 * SLEEP, 0);
    assert!(world.in_vain <= 2 * world.spin.cost() + COST);
    assert!(world.in_vain >= SLEEP);
}

#[test]
fn a_crowd_is_offered_the_processor_first() {
    let mut world = World::new();
    world.sleeps(100, 200, 0);
    for crowded in [false, true] {
        world.spin.begin(world.now, View { together: crowded, crowded, quiet: false });
        assert_eq!(world.spin.next(world.now) == Step::Yield, crowded);
        world.spin.found(world.now);
    }
}

#[test]
fn it_never_spins_on_a_single_processor() {
    let mut world = World { spin: Spin::new(1), ..World::new() };
    assert_eq!(world.sleeps(1000, 200, 0), 1000);
    assert_eq!(world.in_vain, 0);
}

#[test]
fn one_wild_measurement_moves_the_cost_little() {
    let mut spin = Spin::new(2);
    for woken in [u64::MAX, 0, u64::MAX] {
        let before = spin.cost();
        spin.begin(0, View::default());
        spin.slept(1, Some(woken));
        assert!(spin.cost().abs_diff(before) <= before / 16);
    }
    for _ in 0..1000 {
        spin.slept(1, Some(u64::MAX));
    }
    assert!(spin.cost() <= MAX_COST);
    for _ in 0..1000 {
        spin.slept(1, Some(0));
    }
    assert!(spin.cost() >= MIN_COST - MIN_COST / 16);
}

proptest! {
    /// Whatever the waits are like: no spin is longer than its limit, waits that ended in a sleep were made longer by
    /// less than the promise, and where nothing is found by spinning, spinning stays within the cost of trials.
    #[test]
    fn spins_are_bounded(
        waits in prop::collection::vec(
            (0u64..40 * SLEEP, 0u64..2 * SLEEP, any::<[bool; 2]>(), prop::option::of(0u64..10 * SLEEP)),
            1..400,
        ),
    ) {
        let mut world = World::new();
        for (length, penalty, [crowded, quiet], wanted) in waits {
            world.view = View { together: crowded, crowded, quiet };
            world.wanted = wanted;
            let (before, reach) = (world.in_vain, world.spin.reach());
            world.wait(length, penalty);
            let longest = SLOWER * reach + SLEEP + wanted.unwrap_or(0) + LOOK;
            prop_assert!(world.in_vain - before <= longest);
        }
        let start = world.now;
        (world.in_vain, world.wanted) = (0, None);
        for _ in 0..2000 {
            world.wait(30 * SLEEP, 0);
        }
        prop_assert!(world.in_vain < (world.now - start) / 40, "{} of {}", world.in_vain, world.now - start);
    }
}
