//! The platform `xen`: incarnations are guests, made and ended by `xl`; what they and the manager say to each other
//! stands in xenstore (`docs/xen.md`). Runs in dom0.
//!
//! * `xl`: the toolstack's commands, beside the manager's thread.
//! * `guest`: what a guest says, judged.
//! * `registry`: what guests are told, and what follows from what they say.
//! * `life`: how guests are made and how they end.
//! * `start`: what must be in order before anything is started, and what a manager that was killed has left.
//!
//! * `vault`: what guests leave to their successors.
//!
//! It maps the arenas of those guests only that leave something; what others count is not in the status.

mod error;
mod guest;
mod life;
mod registry;
mod start;
#[cfg(test)]
mod tests;
mod vault;
mod xl;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fido_core::addr::DomainId;
use fido_core::platform::xen::layout::ManagerNode;
use fido_core::platform::xen::store::{Store, StoreError, WatchEvent};
use rustix::event::{PollFd, PollFlags};

use super::carrier::{Carrier, Heritage, News, What, Word};
use super::event_loop::{index_of, timespec};
use super::topology::{Index, Topology};
use crate::manifest::Manifest;
pub use error::XenError;
use guest::{Guest, Step};
use vault::Vault;
use xl::{Running, Xl};

/// The watch that tells of guests that are gone, or have shut themselves down.
const RELEASE: &str = "@releaseDomain";
/// How long commands that are still under way at the end may take.
const LAST_COMMANDS: Duration = Duration::from_secs(60);

/// What a guest owes the manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Debt {
    /// To grant its arena to that reader.
    Root(DomainId),
    /// To publish ports of a link for that peer.
    Ports(u32, DomainId),
}

/// See the module.
pub(super) struct XenCarrier {
    manifest: Arc<Manifest>,
    topology: Topology,
    xl: Xl,
    store: Store,
    vault: Box<dyn Vault>,
    /// Why xenstore cannot be used any more.
    lost: Option<String>,
    guests: Vec<Option<Guest>>,
    debts: BTreeMap<(DomainId, Debt), Instant>,
    /// Ends that wait for the ports of the other: to, link, peer.
    binders: Vec<(DomainId, u32, DomainId)>,
    news: VecDeque<News>,
    /// `xl list`, under way, and the guests that there were when it began.
    listing: Option<(Running, Vec<DomainId>)>,
    is_list_wanted: bool,
    /// Commands for guests that are gone already, which still have to end.
    last_commands: Vec<Running>,
    /// Domains with a guest that cannot be destroyed.
    left_behind: Vec<String>,
    /// So many guests have been started.
    starts: u32,
    /// Says to other managers that this appliance is taken.
    _claim: OwnedFd,
}

impl XenCarrier {
    /// Over a toolstack, a store and a vault, with the claim on the appliance's name.
    fn over(
        manifest: Arc<Manifest>,
        xl: Xl,
        store: Store,
        vault: Box<dyn Vault>,
        claim: OwnedFd,
    ) -> Result<Self, StoreError> {
        store.watch(RELEASE, "release")?;
        Ok(Self {
            topology: Topology::of(&manifest),
            guests: manifest.domains.iter().map(|_| None).collect(),
            manifest,
            xl,
            store,
            vault,
            lost: None,
            debts: BTreeMap::new(),
            binders: Vec::new(),
            news: VecDeque::new(),
            listing: None,
            is_list_wanted: false,
            last_commands: Vec::new(),
            left_behind: Vec::new(),
            starts: 0,
            _claim: claim,
        })
    }

    fn living(&self) -> impl Iterator<Item = (Index, &Guest)> {
        self.guests.iter().enumerate().filter_map(|(index, guest)| Some((index, guest.as_ref()?)))
    }

    fn at(&mut self, index: Index) -> Option<&mut Guest> {
        self.guests.get_mut(index)?.as_mut()
    }

    fn of(&mut self, id: DomainId) -> Option<&mut Guest> {
        self.at(index_of(id)?).filter(|guest| guest.id == id)
    }

    fn name(&self, index: Index) -> &str {
        self.manifest.domains.get(index).map_or("", |domain| &domain.name)
    }

    fn report(&mut self, id: DomainId, what: What) {
        self.news.push_back(News { id, what });
    }

    /// xenstore is gone: guests that are linked go on without it, but nothing can be brokered any more.
    fn lose_store(&mut self, error: &StoreError) {
        if self.lost.is_some() {
            return;
        }
        let problem = format!("{error}; what is linked goes on, but nothing can be restarted or connected any more");
        tracing::error!("{problem}");
        let all: Vec<_> = self.living().map(|(_, guest)| guest.id).collect();
        for id in all {
            self.report(id, What::Trouble(problem.clone()));
        }
        self.lost = Some(problem);
        self.debts.clear();
        self.binders.clear();
    }

    /// Takes in which nodes have changed.
    fn take_events(&mut self) {
        loop {
            match self.store.poll_event() {
                Ok(None) => return,
                Ok(Some(WatchEvent::Changed { path, .. })) if path == RELEASE => self.is_list_wanted = true,
                Ok(Some(WatchEvent::Changed { path, .. })) => {
                    let number = path.strip_prefix("/local/domain/").and_then(|rest| rest.split('/').next());
                    let number = number.and_then(|number| number.parse().ok());
                    let is_it = |guest: &&mut Guest| guest.place.as_ref().map(|home| home.domain) == number;
                    if let Some(guest) = self.guests.iter_mut().flatten().find(is_it).filter(|_| number.is_some()) {
                        guest.is_news = true;
                    }
                }
                Ok(Some(WatchEvent::Lost)) => {
                    self.is_list_wanted = true;
                    self.guests.iter_mut().flatten().for_each(|guest| guest.is_news = true);
                }
                Err(error) => return self.lose_store(&error),
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let guests = self.living().flat_map(|(_, guest)| {
            let command = guest.command.as_ref().map(|(_, running)| running.deadline());
            let rest = guest.rest_until.filter(|_| guest.is_news);
            [command, guest.retry_at, rest]
        });
        let others = self.listing.iter().map(|(running, _)| running).chain(&self.last_commands);
        let others = others.map(|running| Some(running.deadline()));
        guests.chain(others).chain(self.debts.values().copied().map(Some)).flatten().min()
    }

    /// Does one piece of what there is to do; whether there was any.
    fn work(&mut self) -> bool {
        let now = Instant::now();
        self.last_commands.retain_mut(|running| match running.result(now) {
            Some(Err(problem)) => {
                tracing::warn!(problem, "a guest is gone, but xl was not done with it");
                false
            }
            result => result.is_none(),
        });
        (0..self.guests.len()).any(|index| self.follow_command(index, now))
            || self.follow_listing(now)
            || (0..self.guests.len()).any(|index| self.listen(index, now))
            || self.collect_debts(now)
            || (0..self.guests.len()).any(|index| self.retry(index, now))
    }
}

impl Carrier for XenCarrier {
    fn start(&mut self, index: Index, id: DomainId, heritage: Option<Heritage>) -> Result<(), String> {
        self.create(index, id, heritage)
    }

    fn tell(&mut self, to: DomainId, word: Word) {
        match word {
            Word::Peer(of) => self.introduce(to, of),
            Word::Link { link, peer } => self.connect(to, link, peer),
            Word::Died(id) => self.say_died(to, id),
            Word::Fenced(id) => self.take_back(to, ManagerNode::Peer(id)),
            Word::Shutdown => self.stop(to),
        }
    }

    fn kill(&mut self, id: DomainId) {
        self.condemn(id);
    }

    fn urge(&mut self, _id: DomainId) {
        // A guest that does not react to its node has no other ear.
    }

    fn wait(&mut self, wake: BorrowedFd<'_>, until: Option<Instant>) -> io::Result<()> {
        if !self.news.is_empty() {
            return Ok(());
        }
        let mut fds = vec![PollFd::from_borrowed_fd(wake, PollFlags::IN)];
        if self.lost.is_none() {
            fds.extend(self.store.event_fds().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        }
        let commands = self.guests.iter().flatten().filter_map(|guest| guest.command.as_ref());
        let listing = self.listing.iter().map(|(running, _)| running);
        let running = commands.map(|(_, running)| running).chain(listing).chain(&self.last_commands);
        fds.extend(running.map(|running| PollFd::from_borrowed_fd(running.pidfd(), PollFlags::IN)));
        let timeout = until.into_iter().chain(self.next_deadline()).min().map(timespec);
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        drop(fds);
        if self.lost.is_none() {
            self.take_events();
        }
        Ok(())
    }

    fn next(&mut self) -> Option<News> {
        loop {
            if let Some(news) = self.news.pop_front() {
                return Some(news);
            }
            if !self.work() {
                return None;
            }
        }
    }

    fn finish(&mut self) -> Vec<String> {
        let deadline = Instant::now() + LAST_COMMANDS;
        for mut running in self.last_commands.drain(..).chain(self.listing.take().map(|(running, _)| running)) {
            while running.result(Instant::now()).is_none() && Instant::now() < deadline {
                running.sleep(Duration::from_millis(100));
            }
        }
        std::mem::take(&mut self.left_behind)
    }
}

impl Drop for XenCarrier {
    /// Guests do not outlive their manager, even if its thread panics.
    fn drop(&mut self) {
        for guest in self.guests.drain(..).flatten() {
            drop(guest.command);
            if let Some(place) = guest.place
                && let Err(problem) = self.xl.run(&["destroy", &place.domain.to_string()])
            {
                tracing::error!(domain = %guest.id, problem, "a guest is left behind");
            }
        }
    }
}

/// Whether a command under way is of that kind.
fn is_under_way(guest: &Guest, step: Step) -> bool {
    guest.command.as_ref().is_some_and(|(under_way, _)| *under_way == step)
}
