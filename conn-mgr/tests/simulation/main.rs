//! Whole appliances, simulated step by step: see [`simulator`]. The long run is `examples/simulate.rs`.

mod simulator;

use simulator::{Coverage, Mutation, Plan, Shape};

/// How many seeds the bounded run takes, by topology in turn.
const SEEDS: u64 = 400;

/// Of so many seeds, one must find a rule that is broken on purpose.
const MUTANT_SEEDS: u64 = 300;

#[test]
fn appliances_keep_every_promise() {
    let mut total = Coverage::default();
    for seed in 0..SEEDS {
        match simulator::run(Plan::of(seed)) {
            Ok(coverage) => total.add(&coverage),
            Err(failure) => panic!("{}", simulator::shrink(failure)),
        }
    }
    println!("{total}");
    assert!(total.covers_everything(), "too little happens: {total}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [3, 14] {
        let run = || simulator::run(Plan::of(seed)).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(run(), run());
    }
}

#[test]
fn shapes_and_mutations_are_named() {
    for (shape, name) in Shape::ALL {
        assert_eq!(name.parse(), Ok(shape));
        assert_eq!(shape.to_string(), name);
    }
    assert!("triangle".parse::<Shape>().unwrap_err().contains("chain4"));
    assert!("none".parse::<Mutation>().unwrap_err().contains("never-ring"));
}

/// A simulator that never fails proves nothing: a rule that is broken on purpose must be found, for that reason if one is
/// named.
fn is_found(mutation: Mutation, reason: &str) {
    let failures = (0..MUTANT_SEEDS).filter_map(|seed| {
        let plan = Plan { mutation: Some(mutation), ..Plan::of(seed) };
        simulator::run(plan).err()
    });
    let failure = failures.into_iter().next().unwrap_or_else(|| panic!("{mutation:?} is not found"));
    println!("{failure}");
    assert!(failure.what.contains(reason), "not by what says {reason:?}: {failure}");
}

macro_rules! mutations {
    ($($test:ident: $mutation:ident $(by $reason:literal)?,)+) => {
        $(#[test]
        fn $test() {
            is_found(Mutation::$mutation, concat!($($reason)?));
        })+

        #[test]
        fn every_mutation_has_a_test() {
            let tested = [$(Mutation::$mutation),+];
            assert!(Mutation::ALL.iter().all(|(mutation, _)| tested.contains(mutation)));
        }
    };
}

mutations! {
    a_fence_that_is_passed_at_once_is_found: PassAtOnce,
    a_death_that_passes_fences_is_found: DeathPasses,
    a_loan_that_is_returned_early_is_found: ReturnEarly,
    a_quarantine_that_is_skipped_is_found: NoQuarantine,
    a_credit_that_is_published_early_is_found: CreditEarly,
    a_bell_that_is_never_rung_is_found: NeverRing,
    a_generation_that_is_not_looked_at_is_found: AnyGeneration,
    a_window_that_is_reported_too_early_is_found: MapLate,
    a_window_that_outlives_its_fence_is_found: KeepWindow by "whose fence is complete",
    a_fence_that_is_never_passed_is_found: NeverPass by "will never pass the fence",
}
