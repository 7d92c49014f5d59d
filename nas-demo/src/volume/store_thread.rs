//! The thread that owns the store, and the event loop's handle to it.
//!
//! All jobs that are waiting are taken at once: questions are answered from the last commit, then all changes go into
//! one transaction (group commit), while the next jobs gather. Results arrive in the order in which they became true.
//!
//! Without jobs the thread sleeps on its inbox and its device together: a device that dies must be let go of at once,
//! or its fence is not passed in time.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use fido_core::assignment::WaitStrategy;
use fido_core::bell::{Bell, Ringer};
use fido_core::memory::Memory;
use fido_core::wait::Source;
use fido_core::waiter::Waiter;
use mmblk::queue::BlockQueue;

use super::backend::Region;
use super::blocking::Blocking;
use super::job::{Job, Mutation, Outcome, Query, Work};
use super::journal::Testament;
use super::store::{Mounted, RootOwner, Store};
use super::superblock::OpenError;

/// The most jobs taken at once.
const MAX_BATCH: usize = 1024;
/// The pause of a thread that has no means to wait for something.
const NAP: Duration = Duration::from_millis(50);

/// What a store is opened with.
#[derive(Debug, Clone, Copy)]
pub struct StoreOptions {
    /// Bound of the store's own cache.
    pub cache_bytes: usize,
    /// Who owns the root of a new volume.
    pub root: RootOwner,
    /// The name of a new volume.
    pub fsid: u64,
}

/// The event loop's end: sends jobs, receives results. A source that is ready when results are there.
#[derive(Debug)]
pub struct StoreHandle {
    jobs: Option<Sender<Vec<Job>>>,
    /// Rung after each message to the thread, and when there will be no more.
    call: Arc<Bell>,
    batch: Vec<Job>,
    results: Receiver<Vec<(u64, Outcome)>>,
    arrived: VecDeque<(u64, Outcome)>,
    wake: Arc<Bell>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl StoreHandle {
    /// Starts the thread and waits until the store is open, with what the mount before has `left`.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open<Q: BlockQueue + Send + 'static>(
        memory: Memory,
        queue: Q,
        options: StoreOptions,
        left: Option<Testament>,
    ) -> Result<(Self, Mounted), OpenError> {
        let (jobs, messages) = channel::<Vec<Job>>();
        let call = Arc::new(Bell::new()?);
        let inbox = Inbox { messages, call: call.clone(), next: None, open: true };
        let waiter = Waiter::new(WaitStrategy::Sleep)?.counting_in(&memory);
        let (outbox, results) = channel();
        let (opened, opening) = channel();
        let wake = Arc::new(Bell::new()?);
        let stop = Arc::new(AtomicBool::new(false));
        let device = Blocking::new(queue, memory, stop.clone())?;
        let bell = wake.clone();
        let body = move || {
            let store = Region::open(device, options.fsid)
                .and_then(|region| Store::open(region, options.cache_bytes, options.root, left.as_ref()));
            match store {
                Ok((store, mounted)) => {
                    if opened.send(Ok(mounted)).is_ok() {
                        run(store, inbox, waiter, &outbox, &bell);
                    }
                }
                Err(error) => drop(opened.send(Err(error))),
            }
        };
        let thread = std::thread::Builder::new().name("store".into()).spawn(body)?;
        let died = || OpenError::Store("the store's thread died while it opened the volume".into());
        let mounted = opening.recv().map_err(|_| died())??;
        let handle = Self {
            jobs: Some(jobs),
            call,
            batch: Vec::new(),
            results,
            arrived: VecDeque::new(),
            wake,
            stop,
            thread: Some(thread),
        };
        Ok((handle, mounted))
    }

    /// Queues a job for the next [`StoreHandle::flush`].
    pub fn send(&mut self, job: Job) {
        self.batch.push(job);
    }

    /// Hands the queued jobs to the thread.
    pub fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        let unsent = match &self.jobs {
            Some(jobs) => jobs.send(batch).err().map(|error| error.0),
            None => Some(batch),
        };
        self.call.ring();
        // The thread ends only with the handle, unless it panicked: then nobody knows.
        self.arrived.extend(unsent.into_iter().flatten().map(|job| (job.id, Outcome::Unknown)));
    }

    /// The next result.
    pub fn poll(&mut self) -> Option<(u64, Outcome)> {
        if self.arrived.is_empty() {
            self.arrived.extend(self.results.try_iter().flatten());
        }
        self.arrived.pop_front()
    }
}

impl Source for StoreHandle {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn ready(&mut self) -> bool {
        self.arrived.extend(self.results.try_iter().flatten());
        !self.arrived.is_empty()
    }

    fn edge_triggered(&self) -> bool {
        true
    }
}

impl Drop for StoreHandle {
    /// Everything sent is still done; a device that does not answer is waited for only a few seconds.
    fn drop(&mut self) {
        self.flush();
        self.jobs = None;
        self.stop.store(true, Ordering::Relaxed);
        self.call.ring();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook; there is nothing left to clean up.
            let _ = thread.join();
        }
    }
}

/// The thread's end of the way of jobs. A source that is ready when there are jobs, or will be none any more.
#[derive(Debug)]
struct Inbox {
    messages: Receiver<Vec<Job>>,
    call: Arc<Bell>,
    /// Taken from the channel by a look at it.
    next: Option<Vec<Job>>,
    /// The handle is there.
    open: bool,
}

impl Inbox {
    /// The next message, if there is one.
    fn take(&mut self) -> Option<Vec<Job>> {
        self.look();
        self.next.take()
    }

    fn look(&mut self) {
        if self.next.is_none() {
            match self.messages.try_recv() {
                Ok(jobs) => self.next = Some(jobs),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => self.open = false,
            }
        }
    }
}

impl Source for Inbox {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.call.as_fd()
    }

    fn ready(&mut self) -> bool {
        self.look();
        self.next.is_some() || !self.open
    }

    fn edge_triggered(&self) -> bool {
        true
    }
}

fn run<Q: BlockQueue + Send + 'static>(
    mut store: Store<Q>,
    mut inbox: Inbox,
    mut waiter: Waiter,
    outbox: &Sender<Vec<(u64, Outcome)>>,
    bell: &Bell,
) {
    while inbox.open {
        let Some(mut jobs) = inbox.take() else {
            if let Err(error) = store.region.idle(&mut inbox, &mut waiter) {
                tracing::error!(%error, "the store's thread cannot sleep");
                std::thread::sleep(NAP);
            }
            continue;
        };
        while jobs.len() < MAX_BATCH
            && let Some(more) = inbox.take()
        {
            jobs.extend(more);
        }
        let (queries, changes) = sort(jobs);
        let answers = if queries.1.is_empty() { Vec::new() } else { store.ask(&queries.1) };
        if !deliver(queries.0, answers, outbox, bell) {
            return;
        }
        let answers = if changes.1.is_empty() { Vec::new() } else { store.change(&changes.1) };
        if !deliver(changes.0, answers, outbox, bell) {
            return;
        }
    }
}

type Numbered<T> = (Vec<u64>, Vec<T>);

/// Questions and changes, each in order, with their numbers.
fn sort(jobs: Vec<Job>) -> (Numbered<Query>, Numbered<Mutation>) {
    let (mut queries, mut changes) = (Numbered::default(), Numbered::default());
    for Job { id, work } in jobs {
        match work {
            Work::Ask(query) => {
                queries.0.push(id);
                queries.1.push(query);
            }
            Work::Change(mutation) => {
                changes.0.push(id);
                changes.1.push(mutation);
            }
        }
    }
    (queries, changes)
}

/// Sends results and wakes the event loop; `false` if it is gone.
fn deliver(ids: Vec<u64>, outcomes: Vec<Outcome>, outbox: &Sender<Vec<(u64, Outcome)>>, bell: &Bell) -> bool {
    if ids.is_empty() {
        return true;
    }
    let sent = outbox.send(ids.into_iter().zip(outcomes).collect()).is_ok();
    bell.ring();
    sent
}
