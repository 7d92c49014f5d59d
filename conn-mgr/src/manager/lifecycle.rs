//! A domain's life as the manager drives it: start, service, end, and what follows from the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fido_core::addr::DomainId;
use fido_core::platform::host::protocol::FromDomain;
use rustix::process::Signal;

use super::DomainState;
use super::channel::Channel;
use super::event_loop::{EventLoop, Heritage, Incarnation};
use super::process::Process;
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

    /// Starts an incarnation's process.
    pub(super) fn spawn(&mut self, id: DomainId) {
        let Some(index) = self.state.index(id) else { return };
        let Some(domain) = self.manifest.domains.get(index) else { return };
        let generation = id.generation.number();
        self.show(index, |entry| {
            entry.status.restarts += u64::from(entry.status.state != DomainState::Waiting);
            entry.status.state = DomainState::Starting;
            entry.status.generation = generation;
        });
        match Process::spawn(domain, id, &self.socket, &self.options.output) {
            Ok((process, pump)) => {
                tracing::info!(domain = domain.name, generation, pid = process.pid(), "started");
                let pid = process.pid();
                self.show(index, |entry| entry.status.pid = Some(pid));
                self.pumps.retain(|pump| !pump.is_finished());
                self.pumps.extend(pump);
                let incarnation = Incarnation {
                    id,
                    process,
                    channel: None,
                    last_words: None,
                    arena: None,
                    bells: BTreeMap::new(),
                    notes: BTreeMap::new(),
                    ready: false,
                    start_deadline: Some(super::after(self.options.start_deadline)),
                    close_deadline: None,
                    condemned: None,
                };
                if let Some(run) = self.runs.get_mut(index) {
                    run.incarnation = Some(incarnation);
                }
            }
            Err(error) => {
                let problem = format!("cannot start {}: {error}", domain.program.display());
                self.ended(index, id, End { clean: false, exited: true, was_ready: false }, problem);
            }
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

    /// Kills a domain's process. What follows comes when it is gone.
    pub(super) fn condemn(&mut self, index: Index, problem: &str) {
        let name = self.name(index).to_owned();
        let Some(incarnation) = self.incarnation(index) else { return };
        if incarnation.condemned.is_some() {
            return;
        }
        let generation = incarnation.id.generation.number();
        tracing::warn!(domain = name, generation, reason = problem, "killing a domain");
        incarnation.condemned = Some(problem.to_owned());
        incarnation.process.signal(Signal::KILL);
        // From here on it is neither heard nor told anything. Only whether it was ready still counts, at its end.
        incarnation.last_words = incarnation.channel.take();
        incarnation.start_deadline = None;
        incarnation.close_deadline = None;
        let id = incarnation.id;
        self.strangers.retain(|stranger| !stranger.is_of(id));
        self.show_state(index, DomainState::Ending);
    }

    /// A process has ended.
    pub(super) fn reap(&mut self, index: Index) {
        // It may have said that it is ready between the look at its connection and the look at its process: whose
        // heritage the next one gets depends on it.
        self.hear(index);
        let Some(run) = self.runs.get_mut(index) else { return };
        let Some(incarnation) = run.incarnation.as_mut() else { return };
        let Some(status) = incarnation.process.reap() else { return };
        let said_ready = incarnation.last_words.take().is_some_and(|channel| says_ready(&channel));
        let (id, was_ready) = (incarnation.id, incarnation.ready || said_ready);
        let arena = incarnation.arena.take();
        let clean = status.as_ref().is_ok_and(|status| status.success());
        let exited = incarnation.condemned.is_none() && status.as_ref().is_ok_and(|status| status.code().is_some());
        let ending = match status {
            Ok(status) => status.to_string(),
            Err(error) => format!("exit status unknown: {error}"),
        };
        let problem = match incarnation.condemned.take() {
            Some(reason) => reason,
            None if was_ready => format!("it ended ({ending})"),
            None => format!("it ended before it was ready ({ending})"),
        };
        run.incarnation = None;
        if was_ready && self.manifest.domains.get(index).is_some_and(|domain| domain.inherit) {
            run.heritage = arena.map(|arena| Heritage { id, arena });
        }
        self.ended(index, id, End { clean, exited, was_ready }, problem);
    }

    /// An incarnation is gone: tells the others, and decides about the next one.
    fn ended(&mut self, index: Index, id: DomainId, end: End, problem: String) {
        let generation = id.generation.number();
        let now = Instant::now();
        let stopping = self.stopping.is_some();
        self.strangers.retain(|stranger| !stranger.is_of(id));
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
            entry.status.state = state;
            entry.status.notes.clear();
            entry.status.problem = Some(problem);
        });
        self.feed(Event::Gone(id));
    }
}

/// Whether a message that nobody has read says that the domain is ready.
fn says_ready(channel: &Channel) -> bool {
    std::iter::from_fn(|| channel.receive().ok().flatten())
        .any(|(message, _)| matches!(message, FromDomain::Ready { .. }))
}
