//! Platforms: how memory is shared and bells are rung where the domains run.
//!
//! `fido-core` knows a platform through the small trait [`Platform`] only. The connection manager decides who is
//! given what; a platform carries it out. The data path never goes through here.
//!
//! [`crate::conformance`] is what every platform has to pass.

pub mod host;
pub mod place;
pub mod xen;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::addr::DomainId;
use crate::arena::RawArena;
use crate::assignment::Assignment;
use crate::bell::{Bell, Ringer};
use crate::window::Window;

/// Why a platform could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    /// The program was not started by a connection manager.
    #[error(
        "this program is a domain of an appliance and is started by the connection manager; try: fidod MANIFEST ({0})"
    )]
    NoManager(String),
    /// The manager will not have this domain.
    #[error("the connection manager refuses this domain: {0}")]
    Refused(String),
    /// The manager is gone.
    #[error("the connection manager is gone")]
    ManagerGone,
    /// The manager has said what makes no sense now.
    #[error("the connection manager said {0}")]
    Unexpected(String),
    /// The conversation with the manager failed.
    #[error(transparent)]
    Protocol(#[from] host::protocol::ProtocolError),
    /// Memory cannot be shared.
    #[error(transparent)]
    Memory(#[from] host::memory::MemoryError),
    /// Xen, its store or its devices.
    #[error(transparent)]
    Xen(#[from] xen::error::XenError),
    /// The operating system's error.
    #[error("{step}: {source}")]
    System {
        /// What was being done.
        step: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// What a platform reports.
#[derive(Debug)]
pub enum Event {
    /// The window on an incarnation's arena.
    Window(Window),
    /// The other end of a link is there; its window has been reported before.
    Link {
        /// The link's number.
        link: u32,
        /// The incarnation at the other end.
        peer: DomainId,
        /// What wakes it, by lane.
        ringers: Vec<Box<dyn Ringer>>,
    },
    /// An incarnation is dead.
    Died(DomainId),
    /// Nobody holds anything any more that came through that dead incarnation.
    Fenced(DomainId),
    /// The domain is to finish.
    Shutdown,
}

/// What a domain tells the manager, from any thread.
pub trait Reporter: Send + Sync {
    /// The domain serves; `notes` say what others may want to know.
    ///
    /// # Errors
    /// [`PlatformError`] if the manager cannot be told.
    fn ready(&self, notes: &BTreeMap<String, String>) -> Result<(), PlatformError>;

    /// The window on an incarnation's arena is in place: addresses in it can be sent here.
    ///
    /// # Errors
    /// [`PlatformError`] if the manager cannot be told.
    fn mapped(&self, owner: DomainId) -> Result<(), PlatformError>;

    /// The domain holds nothing any more that came through a dead incarnation.
    ///
    /// # Errors
    /// [`PlatformError`] if the manager cannot be told.
    fn passed(&self, dead: DomainId) -> Result<(), PlatformError>;
}

/// A domain's access to its platform. Used by its control thread only.
pub trait Platform: Send {
    /// What the manager has told this domain about itself.
    fn assignment(&self) -> &Assignment;

    /// The arena of an earlier incarnation of this domain, if it inherits one; once.
    fn take_predecessor(&mut self) -> Option<Window> {
        None
    }

    /// Memory for the own arena: zeroed, and from now on writable here only.
    ///
    /// # Errors
    /// [`PlatformError`] if there is not enough, or it cannot be shared.
    fn create_arena(&mut self, id: DomainId, bytes: u64) -> Result<RawArena, PlatformError>;

    /// The bell of a lane of the own domain.
    ///
    /// # Errors
    /// [`PlatformError`] if there is no descriptor or event channel left.
    fn bell(&mut self, _link: u32, _lane: u16) -> Result<Bell, PlatformError> {
        Bell::new().map_err(|source| PlatformError::System { step: "make a bell", source })
    }

    /// Lets the manager pass the own arena and, by link, the bells of its lanes on to whom it may.
    ///
    /// # Errors
    /// [`PlatformError`] if the manager cannot be told.
    fn offer(&mut self, bells: &[(u32, Vec<Arc<Bell>>)]) -> Result<(), PlatformError>;

    /// A way to report, for other threads.
    fn reporter(&self) -> Arc<dyn Reporter>;

    /// Waits for what happens next.
    ///
    /// # Errors
    /// [`PlatformError::ManagerGone`] at the end; other errors are about one event, and later ones may come.
    fn next_event(&mut self) -> Result<Event, PlatformError>;
}
