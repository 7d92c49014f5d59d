//! The platform of a simulated domain: real memory, but sockets and bells whose messages arrive when the scheduler says.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use fido_core::addr::DomainId;
use fido_core::arena::RawArena;
use fido_core::assignment::Assignment;
use fido_core::bell::{Bell, Ringer};
use fido_core::platform::host::memory;
use fido_core::platform::{Event, Platform, PlatformError, Reporter};

/// What a domain says to the manager, in the order of its socket.
#[derive(Debug, Clone)]
pub enum Said {
    Arena(Arc<OwnedFd>),
    Bells(u32, Vec<Arc<Bell>>),
    Ready,
    Mapped(DomainId),
    Passed(DomainId),
    /// Its process is gone: what the manager learns last.
    Gone,
}

/// What the manager says to a domain, in the order of its socket.
#[derive(Debug, Clone)]
pub enum Told {
    Peer(DomainId, Arc<OwnedFd>),
    Link(u32, DomainId, Vec<Arc<Bell>>),
    Died(DomainId),
    Fenced(DomainId),
}

/// A domain's half of its socket: what it has said and nobody has heard.
#[derive(Debug, Clone, Default)]
pub struct Outbox(Arc<Mutex<VecDeque<Said>>>);

impl Outbox {
    pub fn say(&self, what: Said) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(what);
    }

    pub fn take(&self) -> VecDeque<Said> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A bell that was rung, and whose it is.
type Rung = (DomainId, Arc<Bell>);

/// Bells that were rung and have not arrived.
#[derive(Debug, Clone, Default)]
pub struct Wires(Arc<Mutex<Vec<Rung>>>);

impl Wires {
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn ring(&self, whose: DomainId, bell: &Arc<Bell>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((whose, bell.clone()));
    }

    /// Takes one out, and with `coalesced` all others of the same bell.
    pub fn take(&self, at: usize, coalesced: bool) -> Option<Rung> {
        let mut wires = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if at >= wires.len() {
            return None;
        }
        let taken = wires.remove(at);
        if coalesced {
            wires.retain(|(_, bell)| !Arc::ptr_eq(bell, &taken.1));
        }
        Some(taken)
    }

    /// A ringer for a peer's bell.
    pub fn ringer(&self, whose: DomainId, bell: Arc<Bell>) -> Box<dyn Ringer> {
        Box::new(Wire { wires: self.clone(), whose, bell })
    }

    /// A ringer that rings nothing.
    pub fn cut() -> Box<dyn Ringer> {
        Box::new(Cut)
    }
}

#[derive(Debug)]
struct Wire {
    wires: Wires,
    whose: DomainId,
    bell: Arc<Bell>,
}

impl Ringer for Wire {
    fn ring(&self) {
        self.wires.ring(self.whose, &self.bell);
    }
}

#[derive(Debug)]
struct Cut;

impl Ringer for Cut {
    fn ring(&self) {}
}

/// A domain's platform. Used while it joins; then the scheduler feeds it events.
pub struct SimulatedPlatform {
    pub assignment: Assignment,
    pub outbox: Outbox,
    pub arena: Option<OwnedFd>,
    /// All bells of its own.
    pub bells: Vec<Arc<Bell>>,
}

impl Platform for SimulatedPlatform {
    fn assignment(&self) -> &Assignment {
        &self.assignment
    }

    fn create_arena(&mut self, id: DomainId, bytes: u64) -> Result<RawArena, PlatformError> {
        let (file, raw) = memory::create("simulated", id, bytes)?;
        self.arena = Some(file);
        Ok(raw)
    }

    fn offer(&mut self, bells: &[(u32, Vec<Arc<Bell>>)]) -> Result<(), PlatformError> {
        let file = self.arena.take().ok_or_else(|| PlatformError::Unexpected("no arena".into()))?;
        self.outbox.say(Said::Arena(Arc::new(file)));
        for (link, bells) in bells {
            self.outbox.say(Said::Bells(*link, bells.clone()));
            self.bells.extend(bells.iter().cloned());
        }
        Ok(())
    }

    fn reporter(&self) -> Arc<dyn Reporter> {
        Arc::new(self.outbox.clone())
    }

    fn next_event(&mut self) -> Result<Event, PlatformError> {
        Err(PlatformError::Unexpected("nothing: the scheduler feeds events".into()))
    }
}

impl Reporter for Outbox {
    fn ready(&self, _notes: &BTreeMap<String, String>) -> Result<(), PlatformError> {
        self.say(Said::Ready);
        Ok(())
    }

    fn mapped(&self, owner: DomainId) -> Result<(), PlatformError> {
        self.say(Said::Mapped(owner));
        Ok(())
    }

    fn passed(&self, dead: DomainId) -> Result<(), PlatformError> {
        self.say(Said::Passed(dead));
        Ok(())
    }
}
