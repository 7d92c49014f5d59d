//! What the manager and the processes say to each other: judges what comes in, sends what goes out.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use fido_core::addr::DomainId;
use fido_core::arena::Peer;
use fido_core::assignment::WireId;
use fido_core::platform::host::memory;
use fido_core::platform::host::protocol::{FromDomain, FromManager, ProtocolError};

use super::super::carrier::{Gone, Heritage, Left, What};
use super::super::event_loop::index_of;
use super::super::topology::Index;
use super::HostCarrier;
use super::channel::{Channel, ChannelError, Descriptors};

/// Messages of one domain that are read before the others get their turn.
pub(super) const BATCH: usize = 64;

impl HostCarrier {
    /// Reads one message of a domain; whether there may be more.
    pub(super) fn hear(&mut self, index: Index) -> bool {
        let Some(incarnation) = self.at(index) else { return false };
        let id = incarnation.id;
        let Some(channel) = &incarnation.channel else { return false };
        let heard = match channel.receive() {
            Ok(None) => return false,
            Ok(Some((message, fds))) => self.judge(index, id, message, fds),
            Err(ProtocolError::Closed) => {
                // Without its connection a domain is of no use, but it may just be about to exit.
                incarnation.channel = None;
                incarnation.is_ending = true;
                Ok(What::Closed)
            }
            Err(error) => Err(error.to_string()),
        };
        self.report(id, heard.unwrap_or_else(What::Fault));
        true
    }

    /// One message. The error is what the domain did wrong.
    fn judge(&mut self, index: Index, id: DomainId, message: FromDomain, fds: Vec<OwnedFd>) -> Result<What, String> {
        let wanted = match &message {
            FromDomain::Arena { .. } => 1,
            FromDomain::Bells { link } => self.topology.edge(index, *link).map_or(0, |edge| edge.lanes.into()),
            _ => 0,
        };
        if fds.len() != wanted {
            return Err(format!("{} descriptors beside {message:?}, expected {wanted}", fds.len()));
        }
        Ok(match message {
            FromDomain::Hello { .. } => return Err("it said `hello` twice".into()),
            FromDomain::Arena { bytes } => self.judge_arena(index, id, bytes, fds)?,
            FromDomain::Bells { link } => self.judge_bells(index, link, fds)?,
            FromDomain::Ready { notes } => What::Ready(notes),
            FromDomain::Mapped { id: of } => What::Mapped(existing(of)?),
            FromDomain::Passed { id: dead, except } => What::Passed {
                dead: existing(dead)?,
                except: except.into_iter().map(existing).collect::<Result<_, _>>()?,
            },
        })
    }

    fn judge_arena(&mut self, index: Index, id: DomainId, bytes: u64, mut fds: Vec<OwnedFd>) -> Result<What, String> {
        let assigned = self.manifest.domains.get(index).map_or(0, |domain| domain.arena);
        if bytes != assigned {
            return Err(format!("it handed over an arena of {bytes} bytes, {assigned} were assigned"));
        }
        let fd = fds.pop().ok_or("an arena without a descriptor")?;
        let window = memory::open(fd.as_fd(), id, bytes).map_err(|error| error.to_string())?;
        Peer::read(&window).map_err(|error| error.to_string())?;
        if let Some(incarnation) = self.at(index) {
            incarnation.arena.get_or_insert_with(|| Arc::new([fd]));
        }
        Ok(What::Arena(Some(Arc::new(window))))
    }

    fn judge_bells(&mut self, index: Index, link: u32, fds: Vec<OwnedFd>) -> Result<What, String> {
        if let Some(at) = fds.iter().position(|fd| !is_eventfd(fd)) {
            return Err(format!("bell {at} of link {link} is not an eventfd"));
        }
        if let Some(incarnation) = self.at(index) {
            incarnation.bells.entry(link).or_insert_with(|| fds.into());
        }
        Ok(What::Bells(link))
    }

    /// A process has ended, perhaps.
    pub(super) fn reap(&mut self, index: Index) {
        let Some(incarnation) = self.at(index) else { return };
        let Some(status) = incarnation.process.reap() else { return };
        let id = incarnation.id;
        let said_ready = incarnation.last_words.take().is_some_and(|channel| says_ready(&channel));
        let heritage = incarnation.arena.take().map(|arena| Heritage { id, left: Left::Arena(arena) });
        let how = match &status {
            Ok(status) => status.to_string(),
            Err(error) => format!("exit status unknown: {error}"),
        };
        let clean = status.as_ref().is_ok_and(|status| status.success());
        let exited = status.is_ok_and(|status| status.code().is_some());
        self.strangers.retain(|stranger| !stranger.is_of(id));
        if let Some(place) = self.incarnations.get_mut(index) {
            *place = None;
        }
        self.report(id, What::Gone(Gone { clean, exited, said_ready, how, heritage }));
    }

    /// Hands the arena of `of` to `to`.
    pub(super) fn introduce(&mut self, to: DomainId, of: DomainId) {
        let Some(domain) = index_of(of).and_then(|index| self.manifest.domains.get(index)) else { return };
        let message = FromManager::Peer { id: of.into(), domain: domain.name.clone(), bytes: domain.arena };
        if let Some(arena) = self.of(of).and_then(|incarnation| incarnation.arena.clone()) {
            self.report(to, What::Offered(of));
            self.send(to, message, arena);
        }
    }

    /// Sends to an incarnation, if it is connected.
    pub(super) fn send(&mut self, to: DomainId, message: FromManager, fds: Descriptors) {
        let channel = self.of(to).and_then(|incarnation| incarnation.channel.as_mut());
        if let Some(Err(error)) = channel.map(|channel| channel.send(message, fds, Instant::now())) {
            self.broken(to, error);
        }
    }

    pub(super) fn flush(&mut self, index: Index) {
        let Some(incarnation) = self.at(index) else { return };
        let id = incarnation.id;
        let channel = incarnation.channel.as_mut();
        if let Some(Err(error)) = channel.map(|channel| channel.flush(Instant::now())) {
            self.broken(id, error);
        }
    }

    fn broken(&mut self, id: DomainId, error: ChannelError) {
        match error {
            // What it said before it closed can still be read; then `hear` finds the end.
            ChannelError::Protocol(ProtocolError::Closed) => {}
            error => self.report(id, What::Fault(error.to_string())),
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

/// Whether a message that nobody has read says that the domain is ready.
fn says_ready(channel: &Channel) -> bool {
    std::iter::from_fn(|| channel.receive().ok().flatten())
        .any(|(message, _)| matches!(message, FromDomain::Ready { .. }))
}
