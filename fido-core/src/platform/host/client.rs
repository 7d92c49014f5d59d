//! A domain's side of the conversation with the connection manager.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::memory;
use super::protocol::{
    self, DOMAIN_VARIABLE, FromDomain, FromManager, PROTOCOL_VERSION, Predecessor, ProtocolError, SOCKET_VARIABLE,
};
use crate::addr::DomainId;
use crate::arena::{Peer, RawArena};
use crate::assignment::{Assignment, WireId};
use crate::bell::{Bell, Ringer};
use crate::platform::{Event, Platform, PlatformError, Reporter};
use crate::window::Window;

/// The platform of plain Linux processes, from within a domain.
#[derive(Debug)]
pub struct HostPlatform {
    socket: Arc<OwnedFd>,
    assignment: Assignment,
    /// The arena's file, until it is offered.
    arena: Option<(OwnedFd, u64)>,
    /// What the predecessor left, until it is asked for.
    predecessor: Option<Window>,
}

impl HostPlatform {
    /// Introduces this process to the manager that started it, as the environment says.
    ///
    /// # Errors
    /// [`PlatformError`]: not started by a manager, refused, or unreachable.
    pub fn join() -> Result<Self, PlatformError> {
        let variable = |name: &str| {
            std::env::var(name).map_err(|_| PlatformError::NoManager(format!("the variable {name} is not set")))
        };
        let (path, domain) = (variable(SOCKET_VARIABLE)?, variable(DOMAIN_VARIABLE)?);
        let system = |step| move |errno: rustix::io::Errno| PlatformError::System { step, source: errno.into() };
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(system("make a socket"))?;
        let address = SocketAddrUnix::new(path.as_str()).map_err(system("name the manager's socket"))?;
        rustix::net::connect(&socket, &address).map_err(system("connect to the connection manager"))?;
        Self::over(socket, domain)
    }

    /// Introduces this process as `domain` over a connected socket.
    ///
    /// # Errors
    /// [`PlatformError`]: refused, or the conversation fails.
    pub fn over(socket: OwnedFd, domain: String) -> Result<Self, PlatformError> {
        protocol::send(socket.as_fd(), &FromDomain::Hello { version: PROTOCOL_VERSION, domain }, &[])?;
        let (answer, mut fds) = protocol::receive::<FromManager>(socket.as_fd())?;
        match answer {
            FromManager::Welcome { assignment, predecessor } => {
                let predecessor = predecessor.and_then(|left| open_predecessor(left, fds.pop()));
                Ok(Self { socket: Arc::new(socket), assignment: *assignment, arena: None, predecessor })
            }
            FromManager::Refused { reason } => Err(PlatformError::Refused(reason)),
            other => Err(PlatformError::Unexpected(format!("{other:?} instead of a welcome"))),
        }
    }
}

/// The window on a predecessor's arena. A domain can live without: what is wrong with it is only logged.
fn open_predecessor(left: Predecessor, file: Option<OwnedFd>) -> Option<Window> {
    let (Some(id), Some(file)) = (left.id.check(), file) else {
        tracing::warn!(?left, "the predecessor's arena did not come, or is of no incarnation");
        return None;
    };
    let window = memory::open(file.as_fd(), id, left.bytes);
    let window = window.inspect_err(|error| tracing::warn!(%id, %error, "the predecessor's arena cannot be mapped"));
    let window = window.ok()?;
    match Peer::read(&window) {
        Ok(_) => Some(window),
        Err(error) => {
            tracing::warn!(%id, %error, "the predecessor's arena is broken");
            None
        }
    }
}

impl Platform for HostPlatform {
    fn assignment(&self) -> &Assignment {
        &self.assignment
    }

    fn take_predecessor(&mut self) -> Option<Window> {
        self.predecessor.take()
    }

    fn create_arena(&mut self, id: DomainId, bytes: u64) -> Result<RawArena, PlatformError> {
        let (file, raw) = memory::create(&self.assignment.domain, id, bytes)?;
        self.arena = Some((file, bytes));
        Ok(raw)
    }

    fn offer(&mut self, bells: &[(u32, Vec<Arc<Bell>>)]) -> Result<(), PlatformError> {
        let Some((file, bytes)) = self.arena.take() else {
            return Err(PlatformError::Unexpected("nothing, but the arena is to be offered before it is made".into()));
        };
        protocol::send(self.socket.as_fd(), &FromDomain::Arena { bytes }, &[file.as_fd()])?;
        for (link, bells) in bells {
            let fds: Vec<_> = bells.iter().map(|bell| bell.as_fd()).collect();
            protocol::send(self.socket.as_fd(), &FromDomain::Bells { link: *link }, &fds)?;
        }
        Ok(())
    }

    fn reporter(&self) -> Arc<dyn Reporter> {
        Arc::new(HostReporter(self.socket.clone()))
    }

    fn next_event(&mut self) -> Result<Event, PlatformError> {
        let (message, mut fds) = match protocol::receive::<FromManager>(self.socket.as_fd()) {
            Ok(received) => received,
            Err(ProtocolError::Closed) => return Err(PlatformError::ManagerGone),
            // Another error of the socket would come again and again.
            Err(error @ (ProtocolError::Io(_) | ProtocolError::WouldBlock)) => {
                tracing::error!(%error, "the manager cannot be heard any more");
                return Err(PlatformError::ManagerGone);
            }
            Err(error) => return Err(error.into()),
        };
        let identity = |id: WireId| {
            id.check().ok_or_else(|| PlatformError::Unexpected(format!("{id:?}, which is no incarnation")))
        };
        match message {
            FromManager::Peer { id, bytes, .. } => match fds.pop() {
                Some(file) => Ok(Event::Window(memory::open(file.as_fd(), identity(id)?, bytes)?)),
                None => Err(PlatformError::Unexpected(format!("{message:?} without the arena"))),
            },
            FromManager::Link { link, peer } => {
                let ringers = fds.into_iter().map(|fd| Box::new(Bell::from_fd(fd)) as Box<dyn Ringer>).collect();
                Ok(Event::Link { link, peer: identity(peer)?, ringers })
            }
            FromManager::Died { id } => Ok(Event::Died(identity(id)?)),
            FromManager::Fenced { id } => Ok(Event::Fenced(identity(id)?)),
            FromManager::Shutdown => Ok(Event::Shutdown),
            other @ (FromManager::Welcome { .. } | FromManager::Refused { .. }) => {
                Err(PlatformError::Unexpected(format!("{other:?} in the middle of the conversation")))
            }
        }
    }
}

struct HostReporter(Arc<OwnedFd>);

impl Reporter for HostReporter {
    fn ready(&self, notes: &BTreeMap<String, String>) -> Result<(), PlatformError> {
        Ok(protocol::send(self.0.as_fd(), &FromDomain::Ready { notes: notes.clone() }, &[])?)
    }

    fn mapped(&self, owner: DomainId) -> Result<(), PlatformError> {
        Ok(protocol::send(self.0.as_fd(), &FromDomain::Mapped { id: owner.into() }, &[])?)
    }

    fn passed(&self, dead: DomainId) -> Result<(), PlatformError> {
        Ok(protocol::send(self.0.as_fd(), &FromDomain::Passed { id: dead.into(), except: Vec::new() }, &[])?)
    }
}
