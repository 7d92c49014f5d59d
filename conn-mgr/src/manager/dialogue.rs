//! What the manager and the domains say to each other: judges what comes in, carries out what [`super::state`] decides.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use fido_core::addr::DomainId;
use fido_core::arena::Peer;
use fido_core::assignment::WireId;
use fido_core::platform::host::memory;
use fido_core::platform::host::protocol::{FromDomain, FromManager, ProtocolError};

use super::DomainState;
use super::channel::{ChannelError, Descriptors};
use super::event_loop::{EventLoop, Incarnation};
use super::lifecycle::CLOSE_GRACE;
use super::state::{Action, Event};
use super::topology::Index;

/// Messages of one domain that are read before the others get their turn.
const BATCH: usize = 64;

impl EventLoop {
    /// What a domain has to say, and room for what it has not taken yet.
    pub(super) fn hear(&mut self, index: Index) {
        self.flush(index);
        for _ in 0..BATCH {
            let Some(incarnation) = self.incarnation(index) else { return };
            let id = incarnation.id;
            let Some(channel) = &incarnation.channel else { return };
            let problem = match channel.receive() {
                Ok(None) => return,
                Ok(Some((message, fds))) => match self.take(index, id, message, fds) {
                    Ok(()) => continue,
                    Err(problem) => problem,
                },
                Err(ProtocolError::Closed) => return self.closed(index),
                Err(error) => error.to_string(),
            };
            return self.condemn(index, &problem);
        }
    }

    /// Without its connection a domain is of no use, but it may just be about to exit.
    fn closed(&mut self, index: Index) {
        let Some(incarnation) = self.incarnation(index) else { return };
        incarnation.channel = None;
        incarnation.close_deadline = Some(Instant::now() + CLOSE_GRACE);
        self.show_state(index, DomainState::Ending);
    }

    /// One message. The error is what it did wrong.
    fn take(&mut self, index: Index, id: DomainId, message: FromDomain, fds: Vec<OwnedFd>) -> Result<(), String> {
        let wanted = match &message {
            FromDomain::Arena { .. } => 1,
            FromDomain::Bells { link } => self.state.topology().edge(index, *link).map_or(0, |edge| edge.lanes.into()),
            _ => 0,
        };
        if fds.len() != wanted {
            return Err(format!("{} descriptors beside {message:?}, expected {wanted}", fds.len()));
        }
        match message {
            FromDomain::Hello { .. } => return Err("it said `hello` twice".into()),
            FromDomain::Arena { bytes } => self.take_arena(index, id, bytes, fds)?,
            FromDomain::Bells { link } => self.take_bells(index, id, link, fds)?,
            FromDomain::Ready { notes } => {
                if let Some(incarnation) = self.incarnation(index) {
                    incarnation.notes = notes;
                }
                self.feed(Event::Ready(id));
            }
            FromDomain::Mapped { id: of } => {
                let of = existing(of)?;
                self.mappings.remove(&(id, of));
                self.feed(Event::Mapped { by: id, of });
            }
            FromDomain::Passed { id: dead, except } => {
                let dead = existing(dead)?;
                let except = except.into_iter().map(existing).collect::<Result<_, _>>()?;
                tracing::debug!(domain = self.name(index), generation = %id.generation, %dead, ?except, "passed a fence");
                self.feed(Event::Passed { by: id, dead, except });
            }
        }
        Ok(())
    }

    fn take_arena(&mut self, index: Index, id: DomainId, bytes: u64, mut fds: Vec<OwnedFd>) -> Result<(), String> {
        let assigned = self.manifest.domains.get(index).map_or(0, |domain| domain.arena);
        if bytes != assigned {
            return Err(format!("it handed over an arena of {bytes} bytes, {assigned} were assigned"));
        }
        let fd = fds.pop().ok_or("an arena without a descriptor")?;
        let window = memory::open(fd.as_fd(), id, bytes).map_err(|error| error.to_string())?;
        Peer::read(&window).map_err(|error| error.to_string())?;
        let Some(incarnation) = self.incarnation(index) else { return Ok(()) };
        if incarnation.arena.is_none() {
            incarnation.arena = Some(Arc::new([fd]));
            self.show(index, |entry| entry.window = Some(Arc::new(window)));
        }
        self.feed(Event::Arena(id));
        Ok(())
    }

    fn take_bells(&mut self, index: Index, id: DomainId, link: u32, fds: Vec<OwnedFd>) -> Result<(), String> {
        if let Some(at) = fds.iter().position(|fd| !is_eventfd(fd)) {
            return Err(format!("bell {at} of link {link} is not an eventfd"));
        }
        if let Some(incarnation) = self.incarnation(index) {
            incarnation.bells.entry(link).or_insert_with(|| fds.into());
        }
        self.feed(Event::Bells(id, link));
        Ok(())
    }

    /// Lets the state decide about an event and carries out what it says.
    pub(super) fn feed(&mut self, event: Event) {
        for action in self.state.on(event) {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Spawn(id) => self.spawn(id),
            Action::Peer { to, of } => self.introduce(to, of),
            Action::Link { to, link, peer } => {
                let bells = self.of(peer, |incarnation| incarnation.bells.get(&link).cloned());
                if let Some(bells) = bells {
                    tracing::debug!(link, %to, %peer, "linking");
                    self.tell(to, FromManager::Link { link, peer: peer.into() }, bells);
                }
            }
            Action::Died { to, of } => self.tell(to, FromManager::Died { id: of.into() }, Arc::new([])),
            Action::Fenced { to, of } => self.tell(to, FromManager::Fenced { id: of.into() }, Arc::new([])),
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

    fn introduce(&mut self, to: DomainId, of: DomainId) {
        let Some(index) = self.state.index(of) else { return };
        let Some(domain) = self.manifest.domains.get(index) else { return };
        let message = FromManager::Peer { id: of.into(), domain: domain.name.clone(), bytes: domain.arena };
        if let Some(arena) = self.of(of, |incarnation| incarnation.arena.clone()) {
            self.mappings.insert((to, of), Instant::now() + self.manifest.fence.deadline);
            self.tell(to, message, arena);
        }
    }

    fn of<R>(&mut self, id: DomainId, get: impl FnOnce(&mut Incarnation) -> Option<R>) -> Option<R> {
        let index = self.state.index(id)?;
        get(self.incarnation(index)?)
    }

    fn tell(&mut self, to: DomainId, message: FromManager, fds: Descriptors) {
        if let Some(index) = self.state.index(to) {
            self.send(index, message, fds);
        }
    }

    /// Sends to a domain, if it is connected.
    pub(super) fn send(&mut self, index: Index, message: FromManager, fds: Descriptors) {
        let channel = self.incarnation(index).and_then(|incarnation| incarnation.channel.as_mut());
        if let Some(Err(error)) = channel.map(|channel| channel.send(message, fds, Instant::now())) {
            self.broken(index, error);
        }
    }

    pub(super) fn flush(&mut self, index: Index) {
        let channel = self.incarnation(index).and_then(|incarnation| incarnation.channel.as_mut());
        if let Some(Err(error)) = channel.map(|channel| channel.flush(Instant::now())) {
            self.broken(index, error);
        }
    }

    fn broken(&mut self, index: Index, error: ChannelError) {
        match error {
            // What it said before it closed can still be read; then `hear` finds the end.
            ChannelError::Protocol(ProtocolError::Closed) => {}
            error => self.condemn(index, &error.to_string()),
        }
    }
}

/// The incarnation that a domain speaks of.
fn existing(id: WireId) -> Result<DomainId, String> {
    id.check().ok_or_else(|| format!("it spoke of {id:?}, which cannot exist"))
}

fn is_eventfd(fd: &OwnedFd) -> bool {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .is_ok_and(|target| target.to_str().is_some_and(|name| name == "anon_inode:[eventfd]"))
}
