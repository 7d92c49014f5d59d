//! Connections that have not been welcomed: nobody is a domain until it has proved to be the process that the manager
//! started, and has said so.
//!
//! Even who is to be refused is heard first, for a while: closing a socket with an unread message in it would take
//! the answer away from the one who sent it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fido_core::addr::DomainId;
use fido_core::platform::host::protocol::{FromDomain, FromManager, PROTOCOL_VERSION, Predecessor};

use super::super::carrier::{Heritage, Left, What};
use super::super::event_loop::index_of;
use super::super::topology::Index;
use super::HostCarrier;
use super::channel::{Channel, Descriptors};

/// Connections that are to be refused and have not said anything yet; further ones are closed at once.
const MAX_UNWANTED: usize = 64;
/// How long such a connection is listened to.
const PATIENCE: Duration = Duration::from_secs(1);

/// A connection without a name.
pub(super) struct Stranger {
    /// Tells it from others.
    pub(super) key: u64,
    pub(super) channel: Channel,
    /// Whose process it is, or why it is to be refused.
    claim: Result<DomainId, String>,
    /// When it is given up; a domain's own process has its start deadline instead.
    pub(super) deadline: Option<Instant>,
}

impl Stranger {
    /// Whether it comes from the process of that incarnation.
    pub(super) fn is_of(&self, id: DomainId) -> bool {
        self.claim == Ok(id)
    }
}

impl HostCarrier {
    /// A new connection: it must come from the process of a domain that has none yet.
    pub(super) fn judge_connection(&mut self, socket: OwnedFd) {
        let claim = self.claim(&socket);
        let unwanted = self.strangers.iter().filter(|stranger| stranger.claim.is_err()).count();
        if claim.is_err() && unwanted >= MAX_UNWANTED {
            return;
        }
        let deadline = claim.is_err().then(|| Instant::now() + PATIENCE);
        self.last_stranger += 1;
        self.strangers.push(Stranger { key: self.last_stranger, channel: Channel::new(socket), claim, deadline });
    }

    fn claim(&self, socket: &OwnedFd) -> Result<DomainId, String> {
        let from = rustix::net::sockopt::socket_peercred(socket)
            .map_err(|error| format!("the kernel does not say who this is: {error}"))?;
        let pid = from.pid.as_raw_pid();
        let own = from.uid == rustix::process::getuid() || from.uid == rustix::process::geteuid();
        let mut living = self.living().filter(|_| own);
        let Some((_, incarnation)) = living.find(|(_, i)| i64::from(i.process.pid()) == i64::from(pid)) else {
            return Err(format!("process {pid} is not a domain that this manager started"));
        };
        if incarnation.channel.is_some() || self.strangers.iter().any(|stranger| stranger.is_of(incarnation.id)) {
            return Err("this domain has a connection already".into());
        }
        if incarnation.is_ending {
            return Err("this domain is about to end".into());
        }
        Ok(incarnation.id)
    }

    /// The first message of a connection.
    pub(super) fn hear_stranger(&mut self, key: u64) {
        let Some(at) = self.strangers.iter().position(|stranger| stranger.key == key) else { return };
        let stranger = self.strangers.swap_remove(at);
        let message = match stranger.channel.receive() {
            Ok(None) => return self.strangers.push(stranger),
            Ok(Some((_, fds))) if !fds.is_empty() => Err("descriptors beside its first message".to_owned()),
            Ok(Some((message, _))) => Ok(message),
            Err(error) => Err(error.to_string()),
        };
        let of = stranger.claim.as_ref().ok().copied().filter(|id| self.of(*id).is_some());
        let index = of.and_then(index_of);
        let problem = match (stranger.claim, index, message) {
            (Ok(id), Some(index), Ok(FromDomain::Hello { version, domain })) => {
                let name = self.name(index);
                if version != PROTOCOL_VERSION {
                    format!("it speaks version {version} of the protocol, this manager version {PROTOCOL_VERSION}")
                } else if domain != name {
                    format!("this process was started as domain `{name}`, not as {domain:?}")
                } else {
                    return self.welcome(index, id, stranger.channel);
                }
            }
            (Ok(_), _, Ok(_)) => "the first message must be `hello`".to_owned(),
            (Ok(_), _, Err(problem)) | (Err(problem), ..) => problem,
        };
        if let Some(id) = of {
            self.report(id, What::Trouble(format!("refused: {problem}")));
        }
        refuse(stranger.channel, index.map(|index| self.name(index)), problem);
    }

    /// Refuses those that have not said anything in time.
    pub(super) fn refuse_silent(&mut self, now: Instant) {
        let due = |stranger: &mut Stranger| stranger.deadline.is_some_and(|at| at <= now);
        for stranger in self.strangers.extract_if(.., due) {
            refuse(stranger.channel, None, stranger.claim.err().unwrap_or_default());
        }
    }

    fn welcome(&mut self, index: Index, id: DomainId, channel: Channel) {
        let Some(assignment) = self.manifest.assignment(index, id) else { return };
        let bytes = assignment.arena_bytes;
        let Some(incarnation) = self.at(index) else { return };
        incarnation.channel = Some(channel);
        let (predecessor, arena) = match incarnation.heritage.take() {
            Some(Heritage { id, left: Left::Arena(arena) }) => (Some(Predecessor { id: id.into(), bytes }), arena),
            _ => (None, Arc::new([]) as Descriptors),
        };
        self.send(id, FromManager::Welcome { assignment: Box::new(assignment), predecessor }, arena);
    }
}

/// Tells a connection why it is not wanted and ends it.
fn refuse(mut channel: Channel, domain: Option<&str>, reason: String) {
    tracing::warn!(domain, reason, "refused a connection");
    // If it does not read, it is not told.
    let _ = channel.send(FromManager::Refused { reason }, Arc::new([]), Instant::now());
}
