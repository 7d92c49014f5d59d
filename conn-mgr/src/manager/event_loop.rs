//! The manager's thread: waits for what can happen, keeps the deadlines, lets the state decide and the carrier act.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use fido_core::addr::DomainId;
use rustix::event::Timespec;

use super::carrier::{Carrier, Heritage};
use super::error::KillError;
use super::restarts::Restarts;
use super::shutdown::Stopping;
use super::state::{Event, State};
use super::status::Shared;
use super::topology::{Index, Topology};
use super::{DomainState, Options};
use crate::manifest::Manifest;

/// The pause when the system cannot even wait.
const PAUSE: Duration = Duration::from_millis(100);

/// From the handle.
pub(super) enum Command {
    /// Kill a domain.
    Kill {
        /// Its name.
        domain: String,
        /// Where the answer goes.
        answer: Sender<Result<(), KillError>>,
    },
    /// Shut down.
    Shutdown {
        /// By when nothing must be left.
        deadline: Instant,
    },
}

/// One domain with what belongs to its current incarnation.
pub(super) struct Run {
    pub(super) restarts: Restarts,
    /// It has been ready at least once: those that come after it may start.
    pub(super) served: bool,
    pub(super) restart_at: Option<Instant>,
    /// What the next incarnation inherits: of the last one that had been ready, kept until a later one is.
    pub(super) heritage: Option<Heritage>,
    pub(super) incarnation: Option<Incarnation>,
}

/// An incarnation that has been started and is not gone.
pub(super) struct Incarnation {
    pub(super) id: DomainId,
    pub(super) notes: BTreeMap<String, String>,
    pub(super) ready: bool,
    /// By when it must be ready.
    pub(super) start_deadline: Option<Instant>,
    /// It cannot be heard any more: by when it must be gone.
    pub(super) close_deadline: Option<Instant>,
    /// Why the manager killed it.
    pub(super) condemned: Option<String>,
}

pub(super) struct EventLoop {
    pub(super) manifest: Arc<Manifest>,
    pub(super) options: Options,
    pub(super) shared: Arc<Shared>,
    pub(super) state: State,
    pub(super) carrier: Box<dyn Carrier>,
    pub(super) runs: Vec<Run>,
    /// By when the survivors must have passed.
    pub(super) fences: BTreeMap<DomainId, Instant>,
    /// By when a reader must have an owner's window in place.
    pub(super) mappings: BTreeMap<(DomainId, DomainId), Instant>,
    pub(super) stopping: Option<Stopping>,
    wake: Arc<OwnedFd>,
    commands: Receiver<Command>,
}

impl EventLoop {
    pub(super) fn new(
        manifest: Arc<Manifest>,
        options: Options,
        carrier: Box<dyn Carrier>,
        shared: Arc<Shared>,
        wake: Arc<OwnedFd>,
        commands: Receiver<Command>,
    ) -> Self {
        let run = |domain: &crate::manifest::Domain| Run {
            restarts: Restarts::new(domain.restart),
            served: false,
            restart_at: None,
            heritage: None,
            incarnation: None,
        };
        Self {
            state: State::new(Topology::of(&manifest)),
            runs: manifest.domains.iter().map(run).collect(),
            fences: BTreeMap::new(),
            mappings: BTreeMap::new(),
            stopping: None,
            manifest,
            options,
            shared,
            carrier,
            wake,
            commands,
        }
    }

    /// Works until the appliance is down.
    pub(super) fn run(mut self) {
        self.start_waiting();
        loop {
            self.keep_deadlines();
            if self.shutdown_is_complete() {
                break;
            }
            if let Err(error) = self.carrier.wait(self.wake.as_fd(), self.next_deadline()) {
                // Out of kernel memory, at worst. Waiting again is all there is to do, but not in a tight loop.
                tracing::error!(%error, "cannot wait for events");
                std::thread::sleep(PAUSE);
            }
            self.take_commands();
            while let Some(news) = self.carrier.next() {
                self.hear(news);
            }
        }
        self.finish();
    }

    fn take_commands(&mut self) {
        let _ = rustix::io::read(&*self.wake, &mut [0u8; 8]);
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Kill { domain, answer } => {
                    // Whoever asked may have gone.
                    let _ = answer.send(self.kill(domain));
                }
                Command::Shutdown { deadline } => self.begin_shutdown(deadline),
            }
        }
    }

    fn kill(&mut self, domain: String) -> Result<(), KillError> {
        let index = self.manifest.position(&domain).ok_or_else(|| KillError::Unknown(domain.clone()))?;
        if self.runs.get(index).is_none_or(|run| run.incarnation.is_none()) {
            return Err(KillError::NotRunning(domain));
        }
        self.condemn(index, "it was killed on request");
        Ok(())
    }

    /// Everything that has a time.
    fn next_deadline(&self) -> Option<Instant> {
        let runs = self.runs.iter().flat_map(|run| {
            let own = run.incarnation.iter().flat_map(|i| [i.start_deadline, i.close_deadline]);
            own.chain([run.restart_at])
        });
        let stop = self.stopping.as_ref().and_then(Stopping::next_deadline);
        let others = self.fences.values().chain(self.mappings.values()).copied().map(Some).chain([stop]);
        runs.chain(others).flatten().min()
    }

    fn keep_deadlines(&mut self) {
        let now = Instant::now();
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        for index in 0..self.runs.len() {
            let Some(run) = self.runs.get_mut(index) else { continue };
            if due(run.restart_at) {
                run.restart_at = None;
                self.feed(Event::Want(index));
                continue;
            }
            let Some(incarnation) = &run.incarnation else { continue };
            if due(incarnation.start_deadline) {
                let what = format!("it was not ready within {:?}", self.options.start_deadline);
                self.condemn(index, &what);
            } else if due(incarnation.close_deadline) {
                self.condemn(index, "it closed its connection with the manager");
            }
        }
        let late: Vec<DomainId> = self.fences.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
        for dead in late {
            self.fences.remove(&dead);
            for index in self.state.owing(dead).into_iter().filter_map(|id| self.state.index(id)).collect::<Vec<_>>() {
                self.condemn(index, &format!("it did not let go of what came through the dead domain {dead} in time"));
            }
        }
        let late: Vec<_> = self.mappings.iter().filter(|(_, at)| **at <= now).map(|(pair, _)| *pair).collect();
        for (reader, owner) in late {
            self.mappings.remove(&(reader, owner));
            if self.state.is_mapping(reader, owner)
                && let Some(index) = self.state.index(reader)
            {
                self.condemn(index, &format!("it did not map the arena of domain {owner} in time"));
            }
        }
        self.keep_shutdown_deadlines(now);
    }

    pub(super) fn incarnation(&mut self, index: Index) -> Option<&mut Incarnation> {
        self.runs.get_mut(index)?.incarnation.as_mut()
    }

    pub(super) fn show(&self, index: Index, change: impl FnOnce(&mut super::status::Entry)) {
        self.shared.change(|board| board.entries.get_mut(index).map(change));
    }

    pub(super) fn name(&self, index: Index) -> &str {
        self.manifest.domains.get(index).map_or("", |domain| &domain.name)
    }

    pub(super) fn show_state(&self, index: Index, state: DomainState) {
        self.show(index, |entry| entry.status.state = state);
    }
}

/// The position of the domain that an incarnation is one of.
pub(super) fn index_of(id: DomainId) -> Option<Index> {
    usize::from(id.slot.number()).checked_sub(1)
}

/// How long `poll` has to wait for a moment.
pub(super) fn timespec(at: Instant) -> Timespec {
    // Rounded up to the millisecond: a wake-up just before the deadline would only be another round.
    let duration = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    Timespec { tv_sec: seconds, tv_nsec: i64::from(duration.subsec_nanos()) }
}
