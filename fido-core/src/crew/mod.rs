//! A crew: serving threads that share out lanes among them, as many as the load takes.
//!
//! One thread serves everything while that is enough. When it is saturated ([`load`]) it takes on another and gives it
//! half of its work; when two have little to do, one gives its work to the other and stands by. What is shared out is a
//! [`Job`]: a lane with all that belongs to it. It is handed over whole, between two rounds, by moving it: the type
//! system sees to it that no lane is ever served by two threads. Nothing about a lane has to be told to its peer for
//! that, because its bell and everything else of it go with it.
//!
//! What a job has begun may stay behind, though: the kernel ties a request of io_uring to the thread that submitted it,
//! and fails it if that thread ends. So no thread of a crew ends before all jobs of the crew are gone. One that is not
//! needed sleeps until it is, or until then.
//!
//! A job that panics, in whatever it is asked, is dropped and reported, the others are served on. What a crew does not do: divide one lane, place
//! threads on processors, or go beyond the number of threads it was given.

pub mod load;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
mod worker;

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::bell::{Bell, Ringer};
use crate::wait::{Source, WakeId};
use crate::waiter::Waiter;

/// The most threads of one crew.
pub const MAX_CREW: usize = 64;

/// What is served: a lane and what belongs to it. Served by one thread at a time, but not always by the same. Every thread
/// that has ever served it lives as long as it does.
pub trait Job: Send {
    /// What it is called in messages.
    fn name(&self) -> String;

    /// Moves everything along; whether there was anything to do. Never blocks.
    fn poll(&mut self) -> bool;

    /// Hands on what is queued. Called before a wait, and before the job is handed over or given back.
    fn flush(&mut self) {}

    /// Enters what to wait for.
    fn sources<'a>(&'a mut self, all: &mut Vec<&'a mut dyn Source>);
}

/// How many threads a crew may have, and how long they keep still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Threads that are there always; at least 1.
    pub least: usize,
    /// The most threads, at most [`MAX_CREW`].
    pub most: usize,
    /// After so long without any work a thread beyond the least is let go.
    pub lull: Duration,
}

/// Why there is no crew.
#[derive(Debug, thiserror::Error)]
pub enum CrewError {
    /// The limits make no sense.
    #[error("a crew of {} to {} threads; it must be at least 1 and at most {MAX_CREW}", .0.least, .0.most)]
    Limits(Limits),
    /// The system has no thread or descriptor left.
    #[error("no serving thread: {0}")]
    System(#[from] io::Error),
}

/// A job, or a thread with all its jobs, that came to an unforeseen end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What it was.
    pub what: String,
    /// What the panic, or the system, said.
    pub message: String,
}

/// What a crew has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Threads that serve now.
    pub threads: usize,
    /// Threads taken on since the start, the first ones not counted; each time anew if they had been let go.
    pub taken_on: u64,
    /// Threads let go because they were not needed: they serve nothing, and stand by.
    pub let_go: u64,
    /// Jobs that went from one thread to another.
    pub handed_over: u64,
}

type MakeWaiter = Box<dyn FnMut() -> io::Result<Waiter> + Send>;

/// Serving threads. When this is dropped, the jobs are dropped, and then the threads end.
pub struct Crew<J: Job + 'static> {
    shared: Arc<Shared<J>>,
}

/// The jobs of a crew that has been stopped. They cannot be taken out: the threads that have served them live as long as
/// this does, and with them what the jobs have begun there.
pub struct Stopped<J: Job + 'static> {
    // The order counts: the jobs are dropped before the threads are dismissed, even if one of them panics.
    jobs: Vec<J>,
    _threads: Threads<J>,
}

/// Threads that serve nothing any more. They end when this is dropped.
struct Threads<J> {
    shared: Arc<Shared<J>>,
    handles: Vec<JoinHandle<()>>,
}

/// Where a thread is told of new jobs and of the end.
#[derive(Debug)]
struct Door {
    bell: Bell,
    knocked: AtomicBool,
    /// The share of its rounds that found work, for the others.
    share: AtomicU32,
}

impl Door {
    fn knock(&self) {
        // SYNC: pairs with the acquire swap in `Worker::follow_orders`; the bell wakes who had looked before.
        self.knocked.store(true, Ordering::Release);
        self.bell.ring();
    }
}

/// A thread as the others see it.
struct Place<J> {
    door: Arc<Door>,
    /// Jobs on their way to it.
    inbox: Vec<J>,
    /// Not if it has been let go and stands by.
    serves: bool,
}

impl<J> Place<J> {
    fn share(&self) -> u32 {
        self.door.share.load(Ordering::Relaxed)
    }
}

/// What all threads of a crew share.
struct Board<J> {
    /// A place for each thread there may be.
    places: Vec<Option<Place<J>>>,
    make_waiter: MakeWaiter,
    /// Everybody is to give back all jobs.
    ending: bool,
    /// All jobs are gone, and the threads may end.
    dismissed: bool,
    counts: Counts,
    failures: Vec<Failure>,
    threads: Vec<JoinHandle<()>>,
    /// Jobs given back at the end.
    given_back: Vec<J>,
}

impl<J> Board<J> {
    /// The threads that serve, except for one: the share of their rounds that found work, and their places.
    fn others(&self, but: usize) -> impl Iterator<Item = (u32, usize)> {
        let places = self.places.iter().enumerate().filter(move |(index, _)| *index != but);
        places.filter_map(|(index, place)| Some((place.as_ref().filter(|place| place.serves)?.share(), index)))
    }
}

struct Shared<J> {
    limits: Limits,
    board: Mutex<Board<J>>,
    /// Notified when somebody who waits for the board to change may go on: who stands by, and who ends the crew.
    changed: Condvar,
    /// Rung for each failure.
    failed: Bell,
}

impl<J> Shared<J> {
    fn board(&self) -> MutexGuard<'_, Board<J>> {
        // No code panics while it holds the guard.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the guard away until [`Shared::changed`] is notified, or for no reason.
    fn wait<'a>(&self, guard: MutexGuard<'a, Board<J>>) -> MutexGuard<'a, Board<J>> {
        self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, what: String, message: String) {
        tracing::error!(%what, %message, "a serving thread goes on without it");
        self.board().failures.push(Failure { what, message });
        self.failed.ring();
    }
}

impl<J: Job + 'static> Crew<J> {
    /// A crew that serves `jobs`, with waiters of the given making (one for each thread that it takes on).
    ///
    /// # Errors
    /// [`CrewError`] if the limits make no sense, or the first threads cannot be started.
    pub fn start(
        limits: Limits,
        make_waiter: impl FnMut() -> io::Result<Waiter> + Send + 'static,
        jobs: Vec<J>,
    ) -> Result<Self, CrewError> {
        if limits.least < 1 || limits.least > limits.most || limits.most > MAX_CREW {
            return Err(CrewError::Limits(limits));
        }
        let board = Board {
            places: (0..limits.most).map(|_| None).collect(),
            make_waiter: Box::new(make_waiter),
            ending: false,
            dismissed: false,
            counts: Counts::default(),
            failures: Vec::new(),
            threads: Vec::new(),
            given_back: Vec::new(),
        };
        let shared =
            Arc::new(Shared { limits, board: Mutex::new(board), changed: Condvar::new(), failed: Bell::new()? });
        let crew = Self { shared };
        let mut hands: Vec<Vec<J>> = (0..limits.least).map(|_| Vec::new()).collect();
        for (index, job) in jobs.into_iter().enumerate() {
            hands[index % limits.least].push(job);
        }
        let mut board = crew.shared.board();
        for jobs in hands {
            if let Err((_, error)) = worker::take_on(&crew.shared, &mut board, jobs) {
                // The guard must be gone before the crew is dropped.
                drop(board);
                return Err(error.into());
            }
        }
        drop(board);
        Ok(crew)
    }

    /// What the crew has done so far.
    pub fn counts(&self) -> Counts {
        let board = self.shared.board();
        Counts { threads: board.places.iter().flatten().filter(|place| place.serves).count(), ..board.counts }
    }

    /// Failures that have not been taken yet. [`Crew::failed`] is readable when there is one.
    pub fn failures(&self) -> Vec<Failure> {
        std::mem::take(&mut self.shared.board().failures)
    }

    /// Whether there are failures that have not been taken.
    pub fn has_failed(&self) -> bool {
        !self.shared.board().failures.is_empty()
    }

    /// Readable when there has been a failure; edge-triggered.
    pub fn failed(&self) -> BorrowedFd<'_> {
        self.shared.failed.as_fd()
    }

    /// Stops serving, between two rounds, and returns the jobs.
    pub fn stop(self) -> Stopped<J> {
        self.end()
    }

    fn end(&self) -> Stopped<J> {
        let mut board = self.shared.board();
        board.ending = true;
        board.places.iter().flatten().for_each(|place| place.door.knock());
        self.shared.changed.notify_all();
        while board.places.iter().any(Option::is_some) {
            board = self.shared.wait(board);
        }
        let (jobs, handles) = (std::mem::take(&mut board.given_back), std::mem::take(&mut board.threads));
        Stopped { jobs, _threads: Threads { shared: self.shared.clone(), handles } }
    }
}

impl<J: Job + 'static> Drop for Crew<J> {
    fn drop(&mut self) {
        let is_stopped = self.shared.board().ending;
        if !is_stopped {
            self.end();
        }
    }
}

impl<J: Job + 'static> Deref for Stopped<J> {
    type Target = [J];

    fn deref(&self) -> &[J] {
        &self.jobs
    }
}

impl<J: Job + 'static> DerefMut for Stopped<J> {
    fn deref_mut(&mut self) -> &mut [J] {
        &mut self.jobs
    }
}

impl<J> Drop for Threads<J> {
    fn drop(&mut self) {
        self.shared.board().dismissed = true;
        self.shared.changed.notify_all();
        for thread in self.handles.drain(..) {
            // Panics are contained in the thread, and reported from there.
            let _ = thread.join();
        }
    }
}

impl<J: Job + 'static> std::fmt::Debug for Crew<J> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Crew({:?})", self.counts())
    }
}

/// What wakes a thread of a crew beside its jobs.
struct DoorSource(Arc<Door>);

impl Source for DoorSource {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.0.bell.as_fd()
    }

    fn wake_id(&self) -> Option<WakeId> {
        Some(self.0.bell.id())
    }

    fn edge_triggered(&self) -> bool {
        true
    }

    fn ready(&mut self) -> bool {
        // SYNC: pairs with the release store in `Door::knock`.
        self.0.knocked.load(Ordering::Acquire)
    }
}
