//! News in, decisions out: brings what the carrier reports before [`super::state`] and has the carrier do what that
//! decides.

use std::time::Instant;

use fido_core::addr::DomainId;

use super::DomainState;
use super::carrier::{News, What, Word};
use super::event_loop::EventLoop;
use super::lifecycle::CLOSE_GRACE;
use super::state::{Action, Event};

impl EventLoop {
    /// Acts upon one piece of news.
    pub(super) fn hear(&mut self, news: News) {
        let News { id, what } = news;
        // What is said of one that is gone has no meaning any more.
        let Some(index) = self.state.index(id) else { return };
        match what {
            What::Process(pid) => {
                tracing::info!(domain = self.name(index), generation = id.generation.number(), pid, "started");
                self.show(index, |entry| entry.status.pid = Some(pid));
            }
            What::Guest(number) => {
                tracing::info!(
                    domain = self.name(index),
                    generation = id.generation.number(),
                    guest = number,
                    "started"
                );
                self.show(index, |entry| entry.status.guest = Some(number));
            }
            What::Arena(window) => {
                self.show(index, |entry| entry.window = entry.window.take().or(window));
                self.feed(Event::Arena(id));
            }
            What::Bells(link) => self.feed(Event::Bells(id, link)),
            What::Ready(notes) => {
                if let Some(incarnation) = self.incarnation(index) {
                    incarnation.notes = notes;
                }
                self.feed(Event::Ready(id));
            }
            What::Offered(of) => _ = self.mappings.insert((id, of), Instant::now() + self.manifest.fence.deadline),
            What::Mapped(of) => {
                self.mappings.remove(&(id, of));
                self.feed(Event::Mapped { by: id, of });
            }
            What::Passed { dead, except } => {
                tracing::debug!(domain = self.name(index), generation = %id.generation, %dead, ?except, "passed a fence");
                self.feed(Event::Passed { by: id, dead, except });
            }
            What::Trouble(problem) => self.show(index, |entry| entry.status.problem = Some(problem)),
            What::Fault(problem) => self.condemn(index, &problem),
            What::Closed => {
                if let Some(incarnation) = self.incarnation(index) {
                    incarnation.close_deadline = Some(Instant::now() + CLOSE_GRACE);
                }
                self.show_state(index, DomainState::Ending);
            }
            What::Gone(gone) => self.gone(index, id, gone),
        }
    }

    /// Lets the state decide about an event and has it carried out.
    pub(super) fn feed(&mut self, event: Event) {
        for action in self.state.on(event) {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Spawn(id) => self.spawn(id),
            Action::Peer { to, of } => self.tell(to, Word::Peer(of)),
            Action::Link { to, link, peer } => {
                tracing::debug!(link, %to, %peer, "linking");
                self.tell(to, Word::Link { link, peer });
            }
            Action::Died { to, of } => self.tell(to, Word::Died(of)),
            Action::Fenced { to, of } => self.tell(to, Word::Fenced(of)),
            Action::Raised(dead) => {
                self.fences.insert(dead, Instant::now() + self.manifest.fence.deadline);
            }
            Action::Settled(dead) => {
                self.fences.remove(&dead);
                tracing::debug!(%dead, "the fence is complete");
            }
            Action::Serving(id) => self.serving(id),
            Action::Violation(id, problem) => {
                if let Some(index) = self.state.index(id) {
                    self.condemn(index, &problem);
                }
            }
        }
    }

    /// Tells an incarnation that is not about to be killed.
    pub(super) fn tell(&mut self, to: DomainId, word: Word) {
        let incarnation = self.state.index(to).and_then(|index| self.incarnation(index));
        if incarnation.is_some_and(|incarnation| incarnation.condemned.is_none()) {
            self.carrier.tell(to, word);
        }
    }
}
