//! One serving thread: its rounds, and how jobs come and go.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use super::load::{self, Idleness, LIGHT, Load, Verdict, WHOLE, Work};
use super::{Board, Door, DoorSource, Job, Place, Shared};
use crate::bell::Bell;
use crate::wait::Source;
use crate::waiter::Waiter;

/// A job and in how many rounds it had work.
struct Charge<J> {
    job: J,
    work: Work,
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
    /// Only threads that may be let go ask the clock for it.
    idleness: Idleness,
}

/// Has a thread serve `jobs`: one that was let go, or a new one in a free place. Gives the jobs back if there is none, or
/// the system has none.
pub(super) fn take_on<J: Job + 'static>(
    shared: &Arc<Shared<J>>,
    board: &mut Board<J>,
    jobs: Vec<J>,
) -> Result<(), (Vec<J>, io::Error)> {
    if let Some(index) = board.places.iter().position(|place| place.as_ref().is_some_and(|place| !place.serves)) {
        if let Some(place) = &mut board.places[index] {
            place.serves = true;
            place.door.share.store(WHOLE, Ordering::Relaxed);
        }
        give(board, index, jobs);
        shared.changed.notify_all();
        return Ok(());
    }
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
    board.places[place] = Some(Place { door: door.clone(), inbox: jobs, serves: true });
    let mine = shared.clone();
    let thread = std::thread::Builder::new().name(format!("fido-crew-{place}")).spawn(move || {
        let (charges, load) = (Vec::new(), Load::default());
        Worker { shared: mine, place, door, waiter, charges, load, idle: false, idleness: Idleness::default() }.serve();
    });
    match thread {
        Ok(thread) => {
            board.threads.push(thread);
            Ok(())
        }
        Err(error) => Err((board.places[place].take().map_or_else(Vec::new, |place| place.inbox), error)),
    }
}

impl<J: Job + 'static> Worker<J> {
    /// Serves until the crew ends, and lives until all of its jobs are gone.
    pub(super) fn serve(mut self) {
        while let Err(panic) = catch_unwind(AssertUnwindSafe(|| while self.round() {})) {
            // Not in a job's own part, or the job would have been named: a source, most likely. The thread itself goes
            // on, for the sake of what jobs that are elsewhere by now have begun here.
            let names: Vec<_> = self.charges.iter().map(|charge| charge.job.name()).collect();
            self.shared.report(format!("a thread with {}", names.join(", ")), text(&*panic));
            let charges = std::mem::take(&mut self.charges);
            charges.into_iter().for_each(|charge| _ = catch_unwind(AssertUnwindSafe(|| drop(charge))));
        }
        let shared = self.shared.clone();
        drop(self);
        let mut board = shared.board();
        while !board.dismissed {
            board = shared.wait(board);
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
                self.charges[index].work.found();
                busy = true;
            }
        }
        let mut verdict = Verdict::Stay;
        if busy || !self.idle {
            verdict = self.load.round(busy, self.charges.iter_mut().map(|charge| &mut charge.work));
        }
        self.idle = !busy;
        if busy {
            self.waiter.busy();
            self.idleness.reset();
        } else {
            match self.patience() {
                Some(Duration::ZERO) => verdict = self.load.lull(),
                patience => self.rest(patience),
            }
        }
        self.door.share.store(self.load.share(), Ordering::Relaxed);
        match verdict {
            Verdict::Stay => {}
            Verdict::Share => self.share(),
            Verdict::Leave => {
                if self.leave() {
                    self.stand_by();
                }
                self.idleness.reset();
            }
        }
        true
    }

    /// Takes in new jobs; at the end of the crew gives all back. Whether to go on.
    fn follow_orders(&mut self) -> bool {
        // SYNC: pairs with the release store in `Door::knock`.
        if !self.door.knocked.swap(false, Ordering::Acquire) {
            return true;
        }
        let mut board = self.shared.board();
        let new = board.places[self.place].as_mut().map_or_else(Vec::new, |place| std::mem::take(&mut place.inbox));
        let ends = board.ending;
        drop(board);
        self.charges.extend(new.into_iter().map(|job| Charge { job, work: Work::default() }));
        if ends {
            self.flush();
            let mut board = self.shared.board();
            board.given_back.extend(self.charges.drain(..).map(|charge| charge.job));
            // Nobody gives jobs to anybody any more.
            board.places[self.place] = None;
            self.shared.changed.notify_all();
        }
        !ends
    }

    /// How much longer a thread that may be let go waits for work; none if there has been none for the length of a lull,
    /// over however many waits.
    fn patience(&mut self) -> Option<Duration> {
        let limits = &self.shared.limits;
        (self.place >= limits.least).then(|| self.idleness.until(crate::clock::now(), limits.lull))
    }

    /// Waits, at most for `patience`.
    fn rest(&mut self, patience: Option<Duration>) {
        self.flush();
        let mut door = DoorSource(self.door.clone());
        let mut sources: Vec<&mut dyn Source> = vec![&mut door];
        self.charges.iter_mut().for_each(|charge| charge.job.sources(&mut sources));
        if let Err(error) = self.waiter.idle(&mut sources, patience) {
            tracing::error!(%error, "a serving thread cannot sleep");
            std::thread::sleep(self.shared.limits.lull);
        }
    }

    /// Without jobs: waits until there are some again, or the crew ends.
    fn stand_by(&mut self) {
        self.load = Load::default();
        let mut board = self.shared.board();
        while !board.ending && !board.places[self.place].as_ref().is_none_or(|place| place.serves) {
            board = self.shared.wait(board);
        }
    }

    /// Flushes all jobs. Never to be called with the board's guard: a job may do anything, and take its time.
    fn flush(&mut self) {
        for index in (0..self.charges.len()).rev() {
            self.guarded(index, J::flush);
        }
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
        self.flush();
        let mut board = self.shared.board();
        let idlest = board.others(self.place).min().filter(|(share, _)| *share <= WHOLE / 2).map(|(_, index)| index);
        let is_full = board.places.iter().all(|place| place.as_ref().is_some_and(|place| place.serves));
        if idlest.is_none() && is_full || board.ending {
            return;
        }
        // To somebody who has work already one job goes, to a new one half of the load.
        let work: Vec<u32> = self.charges.iter().map(|charge| charge.work.last()).collect();
        let chosen = if idlest.is_some() { load::one(&work) } else { load::half(&work) };
        let given: Vec<J> = chosen.into_iter().rev().map(|index| self.charges.remove(index).job).collect();
        if given.is_empty() {
            return;
        }
        let moved = given.len() as u64;
        match idlest {
            Some(index) => give(&mut board, index, given),
            None => match take_on(&self.shared, &mut board, given) {
                Ok(()) => board.counts.taken_on += 1,
                Err((jobs, error)) => {
                    tracing::warn!(%error, "no further serving thread");
                    self.charges.extend(jobs.into_iter().map(|job| Charge { job, work: Work::default() }));
                    return;
                }
            },
        }
        board.counts.handed_over += moved;
    }

    /// Gives all jobs to another thread that has time for them; whether it could. This thread does not end: the kernel
    /// ties what a job has begun here, such as a read by io_uring, to this thread, and it would fail with it.
    fn leave(&mut self) -> bool {
        // The first ones stay, and the others come to them.
        if self.place < self.shared.limits.least {
            return false;
        }
        self.flush();
        let mine = self.load.share();
        let mut board = self.shared.board();
        if board.ending {
            return false;
        }
        let idlest = board.others(self.place).min();
        let Some((_, heir)) = idlest.filter(|(share, _)| mine == 0 || *share <= LIGHT) else { return false };
        let mut jobs: Vec<J> = self.charges.drain(..).map(|charge| charge.job).collect();
        if let Some(place) = &mut board.places[self.place] {
            place.serves = false;
            // What was on its way here goes on to the heir.
            jobs.append(&mut place.inbox);
        }
        board.counts.let_go += 1;
        board.counts.handed_over += jobs.len() as u64;
        give(&mut board, heir, jobs);
        true
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
