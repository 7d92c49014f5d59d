//! The fence desk under every interleaving, checked by loom: the lanes that lead to a dead domain pass its fence on
//! different threads, and the manager must be told once.
//!
//! | promise | mutations that break it |
//! |---|---|
//! | the manager is told once, when all have passed | the count is looked at after the lock was let go; it is that of a moment before |

use super::*;
use crate::addr::{Generation, Slot};
use crate::assignment::Transport;
use crate::platform::PlatformError;
use loom::thread;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Default)]
struct Reports(AtomicUsize);

impl Reporter for Reports {
    fn ready(&self, _notes: &BTreeMap<String, String>) -> Result<(), PlatformError> {
        Ok(())
    }

    fn mapped(&self, _owner: DomainId) -> Result<(), PlatformError> {
        Ok(())
    }

    fn passed(&self, _dead: DomainId) -> Result<(), PlatformError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// Two lanes of one link pass at the same time.
fn two_lanes(passed: fn(&FenceDesk, DomainId)) {
    loom::model(move || {
        let link = LinkAssignment {
            link: 1,
            name: String::new(),
            peer: String::new(),
            peer_slot: 5,
            lanes: 2,
            slots: 4,
            transport: Transport::Pointer,
        };
        let reports = Arc::new(Reports::default());
        let desk = Arc::new(FenceDesk::new(&[link], reports.clone()));
        let dead = DomainId { slot: Slot::new(5).expect("below 4096"), generation: Generation::FIRST };
        let other = desk.clone();
        let other = thread::spawn(move || passed(&other, dead));
        passed(&desk, dead);
        other.join().expect("the other lane ends");
        assert_eq!(reports.0.load(Ordering::SeqCst), 1, "how often the manager was told");
    });
}

#[test]
fn the_manager_is_told_once() {
    two_lanes(FenceDesk::passed);
}

fn count(desk: &FenceDesk, dead: DomainId) {
    *desk.passed.lock().expect("nobody panics").entry(dead).or_insert(0) += 1;
}

fn is_complete(desk: &FenceDesk, dead: DomainId) -> bool {
    desk.passed.lock().expect("nobody panics").get(&dead).is_some_and(|count| *count >= 2)
}

#[test]
#[should_panic(expected = "how often the manager was told")]
fn mutation_the_count_is_looked_at_without_the_lock() {
    two_lanes(|desk, dead| {
        count(desk, dead);
        if is_complete(desk, dead) {
            desk.reporter.passed(dead).expect("counted");
        }
    });
}

#[test]
#[should_panic(expected = "how often the manager was told")]
fn mutation_the_count_is_of_a_moment_before() {
    two_lanes(|desk, dead| {
        let before = desk.passed.lock().expect("nobody panics").get(&dead).copied().unwrap_or(0);
        count(desk, dead);
        if before + 1 >= 2 {
            desk.reporter.passed(dead).expect("counted");
        }
    });
}
