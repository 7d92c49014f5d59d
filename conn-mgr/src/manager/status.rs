//! What the manager shows of its appliance, and where its threads leave it for each other.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use fido_core::arena::Peer;
use fido_core::stats::Snapshot;
use fido_core::window::Window;
use serde::Serialize;

use crate::placement::Place;

/// Where a domain is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DomainState {
    /// Not started yet: those it comes after are not ready.
    Waiting,
    /// Its process runs and has not said that it is ready.
    Starting,
    /// It serves.
    Ready,
    /// It has been told to end, or killed, and is not gone yet.
    Ending,
    /// Its process is gone; the next one starts after the back-off.
    Restarting,
    /// It ended in order and is not started again.
    Ended,
    /// It failed for good: the restart policy gives it no further start.
    Failed,
}

/// A domain as the manager sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DomainStatus {
    /// Its name.
    pub name: String,
    /// Its slot.
    pub slot: u16,
    /// Where its processes run; the same for every incarnation.
    pub place: Place,
    /// Its process, while there is one.
    pub pid: Option<u32>,
    /// On platform `xen`, the number of its guest, while there is one.
    pub guest: Option<u16>,
    /// Where it is in its life.
    pub state: DomainState,
    /// The generation of the latest start; 0 before the first.
    pub generation: u16,
    /// How often it has been started again.
    pub restarts: u64,
    /// What it said of itself when it was ready.
    pub notes: BTreeMap<String, String>,
    /// Why it ended the last time, if it ever did.
    pub problem: Option<String>,
}

/// The whole appliance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Its name.
    pub appliance: String,
    /// The domains in the order of the manifest.
    pub domains: Vec<DomainStatus>,
}

impl Status {
    /// The domain with this name.
    pub fn domain(&self, name: &str) -> Option<&DomainStatus> {
        self.domains.iter().find(|domain| domain.name == name)
    }

    /// Whether every domain serves, or has ended in order after it did.
    pub fn is_ready(&self) -> bool {
        self.domains.iter().all(|domain| matches!(domain.state, DomainState::Ready | DomainState::Ended))
    }

    /// The domains that failed for good.
    pub fn failed(&self) -> impl Iterator<Item = &DomainStatus> {
        self.domains.iter().filter(|domain| domain.state == DomainState::Failed)
    }
}

/// One domain's part of the board.
pub(super) struct Entry {
    pub(super) status: DomainStatus,
    /// The counts of its dead incarnations.
    pub(super) retired: Snapshot,
    /// The arena of the living one.
    pub(super) window: Option<Arc<Window>>,
}

impl Entry {
    /// Keeps what the incarnation counted before its window goes.
    pub(super) fn retire(&mut self) {
        if let Some(window) = self.window.take() {
            self.retired = self.retired.plus(&counts(&window));
        }
    }
}

/// What an arena's owner counted; nothing if it has spoilt its own header.
fn counts(window: &Window) -> Snapshot {
    Peer::read(window).map(|peer| peer.stats()).unwrap_or_default()
}

/// How a shutdown ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Domains that had to be killed.
    pub(super) forced: Vec<String>,
    /// Domains that could not be ended.
    pub(super) left: Vec<String>,
    /// Why the manager itself ended early.
    pub(super) broken: Option<String>,
}

/// What both the manager's thread and its handle see.
pub(super) struct Board {
    pub(super) entries: Vec<Entry>,
    pub(super) appliance: String,
    pub(super) outcome: Option<Outcome>,
}

impl Board {
    pub(super) fn status(&self) -> Status {
        let domains = self.entries.iter().map(|entry| entry.status.clone()).collect();
        Status { appliance: self.appliance.clone(), domains }
    }

    pub(super) fn stats(&self, domain: &str) -> Option<Snapshot> {
        let entry = self.entries.iter().find(|entry| entry.status.name == domain)?;
        let living = entry.window.as_deref().map(counts).unwrap_or_default();
        Some(entry.retired.plus(&living))
    }
}

/// The board with the means to wait for a change of it.
pub(super) struct Shared {
    board: Mutex<Board>,
    pub(super) changed: Condvar,
}

impl Shared {
    pub(super) fn new(board: Board) -> Self {
        Self { board: Mutex::new(board), changed: Condvar::new() }
    }

    /// For reading. The board is only ever changed field by field, so a poisoned lock still guards sense.
    pub(super) fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something and wakes those who wait.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut Board) -> R) -> R {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }
}
