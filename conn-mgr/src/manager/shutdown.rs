//! The orderly end: one domain after the other, against the order of the starts, each with its share of the time.

use std::time::Instant;

use super::DomainState;
use super::carrier::Word;
use super::event_loop::EventLoop;
use super::state::Event;
use super::status::Outcome;
use super::topology::Index;

/// A shutdown under way.
pub(super) struct Stopping {
    /// Those still to be told, the next one last.
    left: Vec<Index>,
    deadline: Instant,
    current: Option<Stage>,
    forced: Vec<String>,
}

/// The domain that is being ended.
struct Stage {
    index: Index,
    terminate_at: Option<Instant>,
    kill_at: Option<Instant>,
}

impl Stopping {
    /// When something is due.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let stage = self.current.as_ref()?;
        [stage.terminate_at, stage.kill_at].into_iter().flatten().min()
    }
}

impl EventLoop {
    /// Begins the shutdown, or brings its deadline forward.
    pub(super) fn begin_shutdown(&mut self, deadline: Instant) {
        if let Some(stopping) = &mut self.stopping {
            stopping.deadline = stopping.deadline.min(deadline);
            if let Some(stage) = &mut stopping.current {
                stage.kill_at = stage.kill_at.map(|at| at.min(deadline));
            }
            return;
        }
        tracing::info!("shutting down");
        self.feed(Event::Stop);
        for (index, run) in self.runs.iter_mut().enumerate() {
            if run.restart_at.take().is_some() {
                self.shared.change(|board| {
                    if let Some(entry) = board.entries.get_mut(index) {
                        entry.status.state = DomainState::Ended;
                    }
                });
            }
        }
        let left = self.manifest.start_order();
        self.stopping = Some(Stopping { left, deadline, current: None, forced: Vec::new() });
    }

    /// Ends the next domain once the current one is gone. Whether all are gone.
    pub(super) fn shutdown_is_complete(&mut self) -> bool {
        loop {
            let Some(stopping) = &mut self.stopping else { return false };
            let gone = |index: Index| self.runs.get(index).is_none_or(|run| run.incarnation.is_none());
            if stopping.current.as_ref().is_some_and(|stage| !gone(stage.index)) {
                return false;
            }
            let Some(index) = stopping.left.pop() else { return true };
            let now = Instant::now();
            let others = stopping.left.iter().filter(|&&index| !gone(index)).count();
            let share =
                stopping.deadline.saturating_duration_since(now) / u32::try_from(others + 1).unwrap_or(u32::MAX);
            stopping.current =
                Some(Stage { index, terminate_at: Some(now + share.mul_f64(0.6)), kill_at: Some(now + share) });
            self.end(index);
        }
    }

    /// Tells a domain to finish.
    fn end(&mut self, index: Index) {
        let Some(incarnation) = self.incarnation(index) else { return };
        if incarnation.condemned.is_some() {
            return;
        }
        incarnation.start_deadline = None;
        let id = incarnation.id;
        self.carrier.tell(id, Word::Shutdown);
        self.show_state(index, DomainState::Ending);
    }

    pub(super) fn keep_shutdown_deadlines(&mut self, now: Instant) {
        let Some(stage) = self.stopping.as_mut().and_then(|stopping| stopping.current.as_mut()) else { return };
        let index = stage.index;
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let kill = due(stage.kill_at);
        let terminate = due(stage.terminate_at);
        if kill {
            stage.kill_at = None;
        }
        if kill || terminate {
            stage.terminate_at = None;
        }
        let name = self.name(index).to_owned();
        let Some(incarnation) = self.incarnation(index) else { return };
        if kill {
            self.condemn(index, "it did not end when it was told to");
            self.stopping.iter_mut().for_each(|stopping| stopping.forced.push(name.clone()));
        } else if terminate {
            let id = incarnation.id;
            tracing::warn!(domain = name, "did not finish when told to");
            self.carrier.urge(id);
        }
    }

    /// Everything is down: waits for what is still under way and reports.
    pub(super) fn finish(mut self) {
        let left = self.carrier.finish();
        let forced = self.stopping.take().map(|stopping| stopping.forced).unwrap_or_default();
        let shared = self.shared.clone();
        // The carrier goes before the outcome is announced: then nothing is left behind.
        drop(self);
        shared.change(|board| {
            for entry in &mut board.entries {
                if entry.status.state == DomainState::Waiting {
                    entry.status.state = DomainState::Ended;
                }
            }
            board.outcome = Some(Outcome { forced, left, broken: None });
        });
    }
}
