//! A domain's life as the manager drives it: start, service, end, and what follows from the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fido_core::addr::DomainId;

use super::DomainState;
use super::carrier::Gone;
use super::event_loop::{EventLoop, Incarnation};
use super::restarts::{End, Verdict};
use super::state::Event;
use super::topology::Index;

/// How long a domain may live on after it closed its connection: it may be about to exit.
pub(super) const CLOSE_GRACE: Duration = Duration::from_secs(1);

impl EventLoop {
    /// Starts the domains that have not been started and whose predecessors have been ready.
    pub(super) fn start_waiting(&mut self) {
        for index in self.manifest.start_order() {
            let waiting =
                self.shared.lock().entries.get(index).is_some_and(|entry| entry.status.state == DomainState::Waiting);
            let served = |name: &String| {
                let run = self.manifest.position(name).and_then(|at| self.runs.get(at));
                run.is_some_and(|run| run.served)
            };
            let free = self.manifest.domains.get(index).is_some_and(|domain| domain.after.iter().all(served));
            if waiting && free && self.stopping.is_none() {
                self.feed(Event::Want(index));
            }
        }
    }

    /// Starts an incarnation.
    pub(super) fn spawn(&mut self, id: DomainId) {
        let Some(index) = self.state.index(id) else { return };
        self.show(index, |entry| {
            entry.status.restarts += u64::from(entry.status.state != DomainState::Waiting);
            entry.status.state = DomainState::Starting;
            entry.status.generation = id.generation.number();
        });
        let Some(run) = self.runs.get_mut(index) else { return };
        run.incarnation = Some(Incarnation {
            id,
            notes: BTreeMap::new(),
            ready: false,
            start_deadline: Some(super::after(self.options.start_deadline)),
            close_deadline: None,
            condemned: None,
        });
        if let Err(problem) = self.carrier.start(index, id, run.heritage.clone()) {
            run.incarnation = None;
            self.ended(index, id, End { clean: false, exited: true, was_ready: false }, problem);
        }
    }

    /// A domain says that it serves.
    pub(super) fn serving(&mut self, id: DomainId) {
        let Some(index) = self.state.index(id) else { return };
        let Some(run) = self.runs.get_mut(index) else { return };
        let Some(incarnation) = run.incarnation.as_mut() else { return };
        run.served = true;
        incarnation.start_deadline = None;
        let first = !std::mem::replace(&mut incarnation.ready, true);
        // Whatever was left to it, it has taken over; from now on what counts is what it leaves itself.
        run.heritage = None;
        let notes = incarnation.notes.clone();
        if first {
            tracing::info!(domain = self.name(index), generation = id.generation.number(), ?notes, "ready");
        }
        self.show(index, |entry| {
            entry.status.notes = notes;
            if first && entry.status.state == DomainState::Starting {
                entry.status.state = DomainState::Ready;
            }
        });
        if first {
            self.start_waiting();
        }
    }

    /// Kills a domain. What follows comes when it is gone.
    pub(super) fn condemn(&mut self, index: Index, problem: &str) {
        let name = self.name(index).to_owned();
        let Some(incarnation) = self.incarnation(index) else { return };
        if incarnation.condemned.is_some() {
            return;
        }
        let id = incarnation.id;
        tracing::warn!(domain = name, generation = id.generation.number(), reason = problem, "killing a domain");
        incarnation.condemned = Some(problem.to_owned());
        incarnation.start_deadline = None;
        incarnation.close_deadline = None;
        self.carrier.kill(id);
        self.show_state(index, DomainState::Ending);
    }

    /// An incarnation is gone.
    pub(super) fn gone(&mut self, index: Index, id: DomainId, gone: Gone) {
        let Some(run) = self.runs.get_mut(index) else { return };
        let Some(incarnation) = run.incarnation.take() else { return };
        let was_ready = incarnation.ready || gone.said_ready;
        let end = End { clean: gone.clean, exited: gone.exited && incarnation.condemned.is_none(), was_ready };
        let problem = match incarnation.condemned {
            Some(reason) => reason,
            None if was_ready => format!("it ended ({})", gone.how),
            None => format!("it ended before it was ready ({})", gone.how),
        };
        if was_ready && self.manifest.domains.get(index).is_some_and(|domain| domain.inherit) {
            run.heritage = gone.heritage;
        }
        self.ended(index, id, end, problem);
    }

    /// An incarnation has ended: tells the others, and decides about the next one.
    fn ended(&mut self, index: Index, id: DomainId, end: End, problem: String) {
        let generation = id.generation.number();
        let now = Instant::now();
        let stopping = self.stopping.is_some();
        let Some(run) = self.runs.get_mut(index) else { return };
        let verdict = if stopping { Verdict::Ended } else { run.restarts.judge(end, now) };
        let mut problem = problem;
        let state = match verdict {
            Verdict::Restart(at) => {
                run.restart_at = Some(at);
                DomainState::Restarting
            }
            Verdict::Ended => DomainState::Ended,
            Verdict::Failed(reason) => {
                problem = format!("{reason}; the last time: {problem}");
                DomainState::Failed
            }
        };
        if state != DomainState::Restarting {
            run.heritage = None;
        }
        let name = self.name(index);
        match state {
            DomainState::Failed => tracing::error!(domain = name, generation, problem, "failed for good"),
            DomainState::Restarting => tracing::warn!(domain = name, generation, problem, "ended, will be restarted"),
            _ => tracing::info!(domain = name, generation, problem, "ended"),
        }
        self.show(index, |entry| {
            entry.retire();
            entry.status.pid = None;
            entry.status.guest = None;
            entry.status.state = state;
            entry.status.notes.clear();
            entry.status.problem = Some(problem);
        });
        self.feed(Event::Gone(id));
    }
}
