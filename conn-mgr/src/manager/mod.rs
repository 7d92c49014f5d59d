//! The manager: runs an appliance from its manifest.
//!
//! One thread does everything (`event_loop`): it has domains started, memory and doorbells brokered, and keeps the
//! deadlines. What it decides is in [`state`] (who is told what, and when), [`fences`] and [`restarts`], all without
//! I/O; how that is done on a platform is behind the trait `Carrier` (`host`: processes and a socket; `xen`: guests and
//! xenstore). [`Manager`] is the handle.
//!
//! It guarantees that no process of a domain survives it: not an orderly end, not a panic of its thread, not a
//! `SIGKILL` of the whole process (the kernel kills the domains then). Guests of Xen survive the latter; the next
//! manager of the same appliance ends them. It does not watch *what* domains do: one that
//! hangs without dying is only noticed where it owes an answer, at its start, at a fence and at the shutdown.

mod carrier;
mod dialogue;
mod error;
mod event_loop;
pub mod fences;
mod host;
mod lifecycle;
mod output;
pub mod restarts;
mod shutdown;
pub mod state;
mod status;
pub mod topology;
mod xen;

#[cfg(test)]
mod state_tests;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fido_core::stats::Snapshot;
use rustix::event::EventfdFlags;

pub use error::{KillError, ManagerError, ShutdownError, WaitError};
pub use output::{LineSink, Output};
pub use status::{DomainState, DomainStatus, Status};
pub use xen::XenError;

use crate::manifest::{Cpus, Manifest, Platform};
use crate::placement::{Place, Plan};
use carrier::Carrier;
use event_loop::{Command, EventLoop};
use host::HostCarrier;
use status::{Board, Entry, Outcome, Shared};
use xen::XenCarrier;

/// How the manager goes about it.
#[derive(Clone)]
pub struct Options {
    /// Where the directory of the socket is made; default `$XDG_RUNTIME_DIR` or the folder for temporary files.
    pub runtime_dir: Option<PathBuf>,
    /// What takes longer from its start to `Ready` is killed and counts as a failed start.
    pub start_deadline: Duration,
    /// How long a [`Manager`] that is dropped without a shutdown waits for its domains.
    pub drop_timeout: Duration,
    /// Where the output of domains goes.
    pub output: Output,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            runtime_dir: None,
            start_deadline: Duration::from_secs(30),
            drop_timeout: Duration::from_secs(5),
            output: Output::default(),
        }
    }
}

/// An appliance that runs. Shuts it down when dropped.
pub struct Manager {
    shared: Arc<Shared>,
    commands: Sender<Command>,
    wake: Arc<OwnedFd>,
    thread: Mutex<Option<JoinHandle<()>>>,
    drop_timeout: Duration,
}

impl Manager {
    /// Starts an appliance. Returns when the manager works, not when the domains are ready:
    /// [`Manager::wait_ready`].
    ///
    /// # Errors
    /// [`ManagerError`] if the manifest is wrong or the platform is not as it must be; nothing runs then.
    pub fn start(mut manifest: Manifest, options: Options) -> Result<Self, ManagerError> {
        manifest.check()?;
        if manifest.platform == Platform::Xen {
            // Those of a guest are Xen's business: `[domain.NAME.xen]` has its own.
            manifest.domains.iter_mut().for_each(|domain| domain.cpus = Cpus::All);
        }
        let plan = Plan::here(&manifest);
        plan.apply(&mut manifest);
        log_places(&manifest, &plan);
        Self::launch(manifest, options, &plan, |manifest, options| {
            let system = |source| ManagerError::System { step: "make the manager's socket", source };
            Ok(match manifest.platform {
                Platform::Host => Box::new(HostCarrier::new(manifest, options).map_err(system)?) as Box<dyn Carrier>,
                Platform::Xen => Box::new(XenCarrier::new(manifest)?),
            })
        })
    }

    /// Starts the manager's thread with the carrier that `make` makes.
    fn launch(
        manifest: Manifest,
        options: Options,
        plan: &Plan,
        make: impl FnOnce(Arc<Manifest>, &Options) -> Result<Box<dyn Carrier>, ManagerError>,
    ) -> Result<Self, ManagerError> {
        let system = |step| move |source| ManagerError::System { step, source };
        let shared = Arc::new(Shared::new(Board::new(&manifest, plan)));
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = rustix::event::eventfd(0, flags).map_err(|e| system("make an eventfd")(e.into()))?;
        let wake = Arc::new(wake);
        let (commands, receiver) = mpsc::channel();
        let drop_timeout = options.drop_timeout;
        let manifest = Arc::new(manifest);
        let carrier = make(manifest.clone(), &options)?;
        let event_loop = EventLoop::new(manifest, options, carrier, shared.clone(), wake.clone(), receiver);
        let board = shared.clone();
        let thread = std::thread::Builder::new()
            .name("fido-manager".into())
            .spawn(move || {
                let _last_words = LastWords(board);
                event_loop.run();
            })
            .map_err(system("start the manager's thread"))?;
        Ok(Self { shared, commands, wake, thread: Mutex::new(Some(thread)), drop_timeout })
    }

    /// The appliance now.
    pub fn status(&self) -> Status {
        self.shared.lock().status()
    }

    /// Waits until every domain serves (or has ended in order after it did).
    ///
    /// # Errors
    /// [`WaitError`] as soon as a domain has failed for good, or when the time is up.
    pub fn wait_ready(&self, timeout: Duration) -> Result<Status, WaitError> {
        let deadline = after(timeout);
        let mut board = self.shared.lock();
        loop {
            if board.outcome.is_some() {
                return Err(WaitError::Stopped);
            }
            let status = board.status();
            if let Some(failed) = status.failed().next() {
                let problem = failed.problem.clone().unwrap_or_default();
                return Err(WaitError::Failed { domain: failed.name.clone(), problem });
            }
            if status.is_ready() {
                return Ok(status);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(WaitError::Timeout { missing: missing(&status) });
            }
            board = self.shared.changed.wait_timeout(board, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the status satisfies `condition`, or the time is up; returns whether it does.
    pub fn wait_until(&self, timeout: Duration, mut condition: impl FnMut(&Status) -> bool) -> bool {
        let deadline = after(timeout);
        let mut board = self.shared.lock();
        loop {
            if condition(&board.status()) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            board = self.shared.changed.wait_timeout(board, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What a domain has counted, over all its incarnations. The sums do not go backwards. `None` if there is no such
    /// domain.
    pub fn stats(&self, domain: &str) -> Option<Snapshot> {
        self.shared.lock().stats(domain)
    }

    /// Kills a domain: its process with `SIGKILL`, its guest with `xl destroy`. When this returns, the status no longer says that it is ready; what
    /// follows is up to its restart policy.
    ///
    /// # Errors
    /// [`KillError`] if it has no process.
    pub fn kill(&self, domain: &str) -> Result<(), KillError> {
        let (answer, result) = mpsc::channel();
        self.command(Command::Kill { domain: domain.to_owned(), answer });
        result.recv().unwrap_or(Err(KillError::Stopped))
    }

    /// Shuts the appliance down: one domain after the other, against the order of the starts. Each is told to finish;
    /// after a part of its share of the time it gets `SIGTERM`, at the end of it `SIGKILL`. A second call (from another
    /// thread) can shorten the time of the first.
    ///
    /// # Errors
    /// [`ShutdownError`] if a domain had to be killed. Everything is down all the same.
    pub fn shutdown(&self, timeout: Duration) -> Result<(), ShutdownError> {
        self.command(Command::Shutdown { deadline: after(timeout) });
        let mut board = self.shared.lock();
        let outcome = loop {
            if let Some(outcome) = &board.outcome {
                break outcome.clone();
            }
            board = self.shared.changed.wait(board).unwrap_or_else(PoisonError::into_inner);
        };
        drop(board);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic has been reported on the board.
            let _ = thread.join();
        }
        match outcome {
            Outcome { broken: Some(reason), .. } => Err(ShutdownError::Broken { reason }),
            Outcome { left, .. } if !left.is_empty() => Err(ShutdownError::Left { domains: left }),
            Outcome { forced, .. } if forced.is_empty() => Ok(()),
            Outcome { forced, .. } => Err(ShutdownError::Forced { domains: forced }),
        }
    }

    fn command(&self, command: Command) {
        // If the thread has gone, the board says so and the answer's channel is closed.
        if self.commands.send(command).is_ok() {
            let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if let Err(error) = self.shutdown(self.drop_timeout) {
            tracing::warn!(%error, "the appliance did not shut down in order");
        }
    }
}

impl Board {
    fn new(manifest: &Manifest, plan: &Plan) -> Self {
        let entry = |(index, domain): (usize, &crate::manifest::Domain)| Entry {
            status: DomainStatus {
                name: domain.name.clone(),
                place: plan.places.get(index).cloned().unwrap_or_default(),
                slot: Manifest::slot(index).map_or(0, |slot| slot.number()),
                pid: None,
                guest: None,
                state: DomainState::Waiting,
                generation: 0,
                restarts: 0,
                notes: Default::default(),
                problem: None,
            },
            retired: Snapshot::default(),
            window: None,
        };
        Self {
            entries: manifest.domains.iter().enumerate().map(entry).collect(),
            appliance: manifest.appliance.clone(),
            outcome: None,
        }
    }
}

fn log_places(manifest: &Manifest, plan: &Plan) {
    for (domain, place) in manifest.domains.iter().zip(&plan.places).filter(|(_, place)| **place != Place::Anywhere) {
        tracing::info!(domain = domain.name, cpus = %place, "placed");
    }
    if plan.decides() {
        tracing::info!("{}", plan.basis);
    }
    for remark in &plan.remarks {
        tracing::warn!("{remark}");
    }
}

/// Says on the board that the manager's thread has ended, even if it panicked, so that nobody waits for it.
struct LastWords(Arc<Shared>);

impl Drop for LastWords {
    fn drop(&mut self) {
        self.0.change(|board| {
            board.outcome.get_or_insert_with(|| Outcome {
                forced: Vec::new(),
                left: Vec::new(),
                broken: Some("its thread ended unexpectedly".into()),
            });
        });
    }
}

/// The moment after a time span that a caller chose; what is beyond the clock is as good as never.
fn after(span: Duration) -> Instant {
    const NEVER: Duration = Duration::from_secs(100 * 365 * 86_400);
    let now = Instant::now();
    now.checked_add(span.min(NEVER)).unwrap_or(now)
}

fn missing(status: &Status) -> Vec<String> {
    let missing = status.domains.iter().filter(|d| !matches!(d.state, DomainState::Ready | DomainState::Ended));
    missing
        .map(|domain| match &domain.problem {
            Some(problem) => format!("`{}` ({problem})", domain.name),
            None => format!("`{}`", domain.name),
        })
        .collect()
}
