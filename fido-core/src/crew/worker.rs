//! One serving thread: its rounds, and how jobs come and go.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::load::{LIGHT, Load, Verdict, WHOLE};
use super::{Board, Door, DoorSource, Job, Place, Shared, serve};
use crate::bell::Bell;
use crate::wait::Source;
use crate::waiter::Waiter;

/// A job and in how many rounds of this window it had work.
struct Charge<J> {
    job: J,
    work: u32,
}

/// One serving thread.
pub(super) struct Worker<J: Job + 'static> {
    shared: Arc<Shared<J>>,
    place: usize,
    door: Arc<Door>,
    waiter: Waiter,
    charges: Vec<Charge<J>>,
    load: Load,
    /// The last round found nothing.
    idle: bool,
    /// There has been no work since the last wait that lasted its whole time.
    rested: bool,
}

/// Starts a thread that serves `jobs`, in a free place. Gives the jobs back if there is none, or the system has none.
pub(super) fn take_on<J: Job + 'static>(
    shared: &Arc<Shared<J>>,
    board: &mut Board<J>,
    jobs: Vec<J>,
) -> Result<(), (Vec<J>, io::Error)> {
    let free = board.places.iter().position(Option::is_none);
    let prepared = free.ok_or_else(|| io::Error::other("all threads that there may be are there")).and_then(|place| {
        // Nobody gives it more before it has said how it fares.
        let share = AtomicU32::new(WHOLE);
        let door = Arc::new(Door { bell: Bell::new()?, knocked: AtomicBool::new(true), share });
        Ok((place, door, (board.make_waiter)()?))
    });
    let (place, door, waiter) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return Err((jobs, error)),
    };
    // The jobs go by the inbox, so that they are not lost with a thread that could not be started.
    board.places[place] = Some(Place { door: door.clone(), inbox: jobs });
    let mine = shared.clone();
    let thread = std::thread::Builder::new().name(format!("fido-crew-{place}")).spawn(move || {
        let (charges, load) = (Vec::new(), Load::default());
        serve(Worker { shared: mine, place, door, waiter, charges, load, idle: false, rested: false });
    });
    match thread {
        Ok(thread) => {
            board.threads.retain(|thread| !thread.is_finished());
            board.threads.push(thread);
            Ok(())
        }
        Err(error) => Err((board.places[place].take().map_or_else(Vec::new, |place| place.inbox), error)),
    }
}

impl<J: Job + 'static> Worker<J> {
    /// Serves until the end of the crew or until it is not needed any more.
    pub(super) fn serve(&mut self) {
        let served = catch_unwind(AssertUnwindSafe(|| while self.round() {}));
        if let Err(panic) = served {
            // Not in a job's own part, or the job would have been named: a source, most likely.
            let names: Vec<_> = self.charges.iter().map(|charge| charge.job.name()).collect();
            self.shared.report(format!("a thread with {}", names.join(", ")), text(&*panic));
            self.forsake();
        }
    }

    /// One look at every job, and a wait if there was nothing. Whether to go on.
    fn round(&mut self) -> bool {
        if !self.follow_orders() {
            return false;
        }
        let mut busy = false;
        for index in (0..self.charges.len()).rev() {
            if self.guarded(index, J::poll) == Some(true) {
                self.charges[index].work += 1;
                busy = true;
            }
        }
        let mut verdict = Verdict::Stay;
        if busy || !self.idle {
            verdict = self.load.round(busy, self.charges.iter_mut().map(|charge| &mut charge.work));
        }
        if busy {
            self.waiter.busy();
            self.rested = false;
        } else {
            let rested = self.rest();
            // Only a wait that has lasted its whole time without work is a lull.
            if rested && self.rested {
                verdict = self.load.lull();
            }
            self.rested = rested;
        }
        self.idle = !busy;
        self.door.share.store(self.load.share(), Ordering::Relaxed);
        match verdict {
            Verdict::Stay => true,
            Verdict::Share => {
                self.share();
                true
            }
            Verdict::Leave => !self.leave(),
        }
    }

    /// Takes in new jobs; at the end of the crew gives all back. Whether to go on.
    fn follow_orders(&mut self) -> bool {
        // SYNC: pairs with the release store in `Door::knock`.
        if !self.door.knocked.swap(false, Ordering::Acquire) {
            return true;
        }
        let mut board = self.shared.board();
        let Some(place) = &mut board.places[self.place] else { return false };
        let new = std::mem::take(&mut place.inbox);
        if board.ending {
            board.given_back.extend(self.charges.drain(..).map(|charge| charge.job).chain(new));
            board.places[self.place] = None;
            return false;
        }
        drop(board);
        self.charges.extend(new.into_iter().map(|job| Charge { job, work: 0 }));
        true
    }

    /// Waits; whether it lasted as long as the limit for a lull says.
    fn rest(&mut self) -> bool {
        for index in (0..self.charges.len()).rev() {
            self.guarded(index, J::flush);
        }
        let began = crate::clock::now();
        let mut door = DoorSource(self.door.clone());
        let mut sources: Vec<&mut dyn Source> = vec![&mut door];
        self.charges.iter_mut().for_each(|charge| charge.job.sources(&mut sources));
        let is_needed = self.place < self.shared.limits.least;
        let lull = self.shared.limits.lull;
        if let Err(error) = self.waiter.idle(&mut sources, (!is_needed).then_some(lull)) {
            tracing::error!(%error, "a serving thread cannot sleep");
            std::thread::sleep(lull);
        }
        !is_needed && u128::from(crate::clock::now() - began) >= lull.as_nanos()
    }

    /// Does something with a job; one that panics is dropped and reported.
    fn guarded<T>(&mut self, index: usize, act: fn(&mut J) -> T) -> Option<T> {
        let job = &mut self.charges[index].job;
        match catch_unwind(AssertUnwindSafe(|| act(job))) {
            Ok(result) => Some(result),
            Err(panic) => {
                let job = self.charges.swap_remove(index).job;
                let name = catch_unwind(AssertUnwindSafe(|| job.name())).unwrap_or_else(|_| "a job".into());
                let _ = catch_unwind(AssertUnwindSafe(|| drop(job)));
                self.shared.report(name, text(&*panic));
                None
            }
        }
    }

    /// Gives some of the jobs to the thread that has most time, or to a new one.
    fn share(&mut self) {
        if self.charges.len() < 2 {
            return;
        }
        let mut board = self.shared.board();
        let others = board.places.iter().enumerate().filter(|(index, _)| *index != self.place);
        let others = others.filter_map(|(index, place)| Some((place.as_ref()?.share(), index)));
        let idlest = others.min().filter(|(share, _)| *share <= WHOLE / 2).map(|(_, index)| index);
        let is_full = board.places.iter().all(Option::is_some);
        if idlest.is_none() && is_full || board.ending {
            return;
        }
        // To somebody who has work already one job goes, to a new one every other.
        let count = if idlest.is_some() { 1 } else { self.charges.len() / 2 };
        let mut given = Vec::new();
        for turn in 0..count {
            let mut charge = self.charges.remove(turn);
            charge.job.flush();
            given.push(charge.job);
        }
        let moved = given.len() as u64;
        match idlest {
            Some(index) => give(&mut board, index, given),
            None => match take_on(&self.shared, &mut board, given) {
                Ok(()) => board.counts.taken_on += 1,
                Err((jobs, error)) => {
                    tracing::warn!(%error, "no further serving thread");
                    self.charges.extend(jobs.into_iter().map(|job| Charge { job, work: 0 }));
                    return;
                }
            },
        }
        board.counts.handed_over += moved;
    }

    /// Gives all jobs to another thread that has time for them and ends; whether it could.
    fn leave(&mut self) -> bool {
        let mine = self.load.share();
        let mut board = self.shared.board();
        // The first ones stay, and the others come to them.
        if self.place < self.shared.limits.least || board.ending {
            return false;
        }
        let others = board.places.iter().enumerate().filter(|(index, _)| *index != self.place);
        let others = others.filter_map(|(index, place)| Some((place.as_ref()?.share(), index)));
        let Some((_, heir)) = others.min().filter(|(share, _)| mine == 0 || *share <= LIGHT) else {
            return false;
        };
        self.charges.iter_mut().for_each(|charge| charge.job.flush());
        let mut jobs: Vec<J> = self.charges.drain(..).map(|charge| charge.job).collect();
        // What was on its way here goes on to the heir.
        jobs.extend(board.places[self.place].take().into_iter().flat_map(|place| place.inbox));
        board.counts.let_go += 1;
        board.counts.handed_over += jobs.len() as u64;
        give(&mut board, heir, jobs);
        true
    }

    /// After a panic of its own: whatever this thread has is dropped, and what was on its way goes to others.
    fn forsake(&mut self) {
        let _ = catch_unwind(AssertUnwindSafe(|| self.charges.clear()));
        let mut board = self.shared.board();
        let inbox = board.places[self.place].take().map_or_else(Vec::new, |place| place.inbox);
        let heir = board.places.iter().position(Option::is_some);
        match heir {
            Some(heir) => give(&mut board, heir, inbox),
            None if board.ending => board.given_back.extend(inbox),
            None => {
                // The crew never stands empty while it is not told to end.
                if let Err((jobs, error)) = take_on(&self.shared, &mut board, inbox) {
                    tracing::error!(%error, "the last serving thread is gone, and no other can be started");
                    board.given_back.extend(jobs);
                }
            }
        }
    }
}

/// Puts jobs into a thread's inbox.
fn give<J>(board: &mut Board<J>, index: usize, jobs: Vec<J>) {
    if let Some(place) = &mut board.places[index] {
        place.inbox.extend(jobs);
        place.door.knock();
    }
}

/// What a panic said.
fn text(panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    said.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a text".into())
}
