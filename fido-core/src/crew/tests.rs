//! A crew at work: it grows and shrinks by what there is to do, and loses nothing.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use super::*;
use crate::assignment::WaitStrategy;

/// Longer than anything here takes; no test waits that long unless it fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the test knows of one job.
#[derive(Debug)]
struct Sight {
    bell: Bell,
    /// It always has work.
    flooded: AtomicBool,
    /// Pieces of work that it still has to do.
    pieces: AtomicU64,
    done: AtomicU64,
    panics: AtomicBool,
    /// How many flushes from now on panics the last of; 0 for none.
    flushes: AtomicU64,
    /// Which threads have served it, and whether two ever did at once.
    servers: Mutex<BTreeMap<String, u64>>,
    present: Mutex<Option<ThreadId>>,
    torn: AtomicBool,
}

struct TestJob(usize, Arc<Sight>);

impl Job for TestJob {
    fn name(&self) -> String {
        format!("job {}", self.0)
    }

    fn poll(&mut self) -> bool {
        let me = std::thread::current();
        let before = self.1.present.lock().unwrap().replace(me.id());
        assert!(!self.1.panics.load(Ordering::SeqCst), "told to");
        *self.1.servers.lock().unwrap().entry(me.name().unwrap_or("?").to_owned()).or_default() += 1;
        let left = self.1.pieces.load(Ordering::SeqCst);
        let busy = self.1.flooded.load(Ordering::SeqCst) || left > 0;
        if left > 0 {
            self.1.pieces.fetch_sub(1, Ordering::SeqCst);
        }
        if busy {
            self.1.done.fetch_add(1, Ordering::SeqCst);
        }
        if before.is_some() || self.1.present.lock().unwrap().take() != Some(me.id()) {
            self.1.torn.store(true, Ordering::SeqCst);
        }
        busy
    }

    fn flush(&mut self) {
        let left = self.1.flushes.load(Ordering::SeqCst);
        self.1.flushes.store(left.saturating_sub(1), Ordering::SeqCst);
        assert!(left != 1, "told to when flushed");
    }

    fn sources<'a>(&'a mut self, all: &mut Vec<&'a mut dyn Source>) {
        all.push(self);
    }
}

impl Source for TestJob {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.1.bell.as_fd()
    }

    fn edge_triggered(&self) -> bool {
        true
    }

    fn ready(&mut self) -> bool {
        self.1.flooded.load(Ordering::SeqCst) || self.1.pieces.load(Ordering::SeqCst) > 0
    }
}

fn crew(least: usize, most: usize, jobs: usize) -> (Crew<TestJob>, Vec<Arc<Sight>>) {
    crew_that_waits(WaitStrategy::Sleep, least, most, jobs)
}

fn crew_that_waits(strategy: WaitStrategy, least: usize, most: usize, jobs: usize) -> (Crew<TestJob>, Vec<Arc<Sight>>) {
    let sights: Vec<_> = (0..jobs)
        .map(|_| {
            Arc::new(Sight {
                bell: Bell::new().unwrap(),
                flooded: AtomicBool::new(false),
                pieces: AtomicU64::new(0),
                done: AtomicU64::new(0),
                panics: AtomicBool::new(false),
                flushes: AtomicU64::new(0),
                servers: Mutex::default(),
                present: Mutex::default(),
                torn: AtomicBool::new(false),
            })
        })
        .collect();
    let jobs = sights.iter().enumerate().map(|(number, sight)| TestJob(number, sight.clone())).collect();
    let limits = Limits { least, most, lull: Duration::from_millis(5) };
    (Crew::start(limits, move || Waiter::new(strategy), jobs).unwrap(), sights)
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn flood(sights: &[Arc<Sight>], flooded: bool) {
    for sight in sights {
        sight.flooded.store(flooded, Ordering::SeqCst);
        sight.bell.ring();
    }
}

#[test]
fn it_grows_under_load_and_shrinks_when_the_load_is_gone() {
    grows_and_shrinks(WaitStrategy::Sleep);
}

#[test]
fn it_shrinks_as_well_if_its_threads_spin() {
    // Spinners never sleep, and adaptive ones sometimes: no wait of theirs need last as long as a lull.
    grows_and_shrinks(WaitStrategy::Adaptive);
    grows_and_shrinks(WaitStrategy::Spin);
}

fn grows_and_shrinks(strategy: WaitStrategy) {
    let (crew, sights) = crew_that_waits(strategy, 1, 3, 4);
    assert_eq!(crew.counts().threads, 1);
    for turn in 1..=2 {
        flood(&sights, true);
        eventually("three threads", || crew.counts().threads == 3);
        let before: Vec<_> = sights.iter().map(|sight| sight.done.load(Ordering::SeqCst)).collect();
        eventually("work at every job", || {
            sights.iter().zip(&before).all(|(sight, before)| sight.done.load(Ordering::SeqCst) > *before)
        });
        flood(&sights, false);
        eventually("one thread", || crew.counts().threads == 1);
        let counts = crew.counts();
        assert!(counts.taken_on >= 2 * turn && counts.let_go == counts.taken_on, "{counts:?}");
        assert!(counts.handed_over >= 2 * counts.let_go);
    }
    // And all of them are still served, by the one that is left.
    for sight in &sights {
        sight.pieces.store(10, Ordering::SeqCst);
        sight.bell.ring();
    }
    eventually("the last work", || sights.iter().all(|sight| sight.pieces.load(Ordering::SeqCst) == 0));
    assert_eq!(crew.stop().len(), 4);
    assert!(sights.iter().all(|sight| !sight.torn.load(Ordering::SeqCst)), "a job was served by two threads at once");
    assert!(sights.iter().any(|sight| sight.servers.lock().unwrap().len() > 1), "a job went from thread to thread");
}

#[test]
fn it_keeps_to_its_limits() {
    for (least, most) in [(0, 1), (2, 1), (1, MAX_CREW + 1)] {
        let limits = Limits { least, most, lull: Duration::from_millis(5) };
        let crew = Crew::<TestJob>::start(limits, || Waiter::new(WaitStrategy::Sleep), Vec::new());
        assert!(matches!(crew, Err(CrewError::Limits(_))), "{limits:?}");
    }
    let (crew, sights) = crew(2, 2, 4);
    flood(&sights, true);
    eventually("many rounds", || sights.iter().all(|sight| sight.done.load(Ordering::SeqCst) > 10_000));
    flood(&sights, false);
    assert_eq!(crew.counts(), Counts { threads: 2, ..Counts::default() });
    assert_eq!(crew.stop().len(), 4);
}

#[test]
fn one_flooded_job_does_not_make_it_grow() {
    let (crew, sights) = crew(1, 4, 4);
    flood(&sights[..1], true);
    eventually("many rounds", || sights[0].done.load(Ordering::SeqCst) > 50_000);
    assert_eq!(crew.counts().taken_on, 0);
}

#[test]
fn a_panic_of_a_job_is_contained_and_reported() {
    let (crew, sights) = crew(1, 2, 3);
    sights[1].panics.store(true, Ordering::SeqCst);
    sights[1].bell.ring();
    let mut failures = Vec::new();
    eventually("a failure", || {
        failures.extend(crew.failures());
        !failures.is_empty()
    });
    assert_eq!(failures, [Failure { what: "job 1".into(), message: "told to".into() }]);
    for sight in [&sights[0], &sights[2]] {
        sight.pieces.store(5, Ordering::SeqCst);
        sight.bell.ring();
    }
    eventually("the others are served on", || {
        [&sights[0], &sights[2]].iter().all(|sight| sight.pieces.load(Ordering::SeqCst) == 0)
    });
    assert_eq!(crew.stop().len(), 2);
}

#[test]
fn a_panic_while_it_hands_over_costs_only_the_job_that_panics() {
    for leaves in [false, true] {
        let (crew, sights) = crew(1, 2, 4);
        if leaves {
            flood(&sights, true);
            eventually("two threads", || crew.counts().threads == 2);
        }
        // While there is always work no thread rests, and the first flush is that before some jobs go to a second one.
        // Before a thread leaves it rests once.
        sights[1].flushes.store(if leaves { 2 } else { 1 }, Ordering::SeqCst);
        flood(&sights, !leaves);
        let mut failures = Vec::new();
        eventually("a failure", || {
            failures.extend(crew.failures());
            !failures.is_empty()
        });
        assert_eq!(failures, [Failure { what: "job 1".into(), message: "told to when flushed".into() }]);
        flood(&sights, false);
        let others = [&sights[0], &sights[2], &sights[3]];
        for sight in others {
            sight.pieces.store(5, Ordering::SeqCst);
            sight.bell.ring();
        }
        eventually("the others are served on", || others.iter().all(|sight| sight.pieces.load(Ordering::SeqCst) == 0));
        assert_eq!(crew.stop().len(), 3);
    }
}
