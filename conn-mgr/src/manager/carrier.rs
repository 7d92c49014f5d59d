//! The seam between what the manager decides and how it is done on a platform.
//!
//! The manager's loop ([`super::event_loop`]) knows domains, deadlines, policies and the status, the same on every
//! platform. A [`Carrier`] starts and kills incarnations, tells them what was decided and reports what they say, after
//! it has checked all that can be checked without knowing the other domains. It never waits but in [`Carrier::wait`].

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use fido_core::addr::DomainId;
use fido_core::window::Window;

use super::topology::Index;

/// What carries out the manager's decisions on one platform.
pub(super) trait Carrier: Send {
    /// Starts an incarnation of the domain at `index`, which has none. Whatever becomes of it is reported, at the end
    /// [`What::Gone`].
    ///
    /// # Errors
    /// Why nothing was started; then nothing is reported.
    fn start(&mut self, index: Index, id: DomainId, heritage: Option<Heritage>) -> Result<(), String>;

    /// Tells a living incarnation something. What it makes of it is reported.
    fn tell(&mut self, to: DomainId, word: Word);

    /// Ends an incarnation by force. From now on it is neither heard nor told anything; [`What::Gone`] follows.
    fn kill(&mut self, id: DomainId);

    /// Asks an incarnation that did not finish when it was told to a second time, more urgently, if there is a way.
    fn urge(&mut self, id: DomainId);

    /// Waits until there may be news, `wake` is readable, or the time has come.
    ///
    /// # Errors
    /// The system's, if it cannot wait.
    fn wait(&mut self, wake: BorrowedFd<'_>, until: Option<Instant>) -> io::Result<()>;

    /// The next news, if there is one now. Each is acted upon before the next is asked for. Deaths come last: what an
    /// incarnation said before is heard first.
    fn next(&mut self) -> Option<News>;

    /// Waits a little for what is still under way when all incarnations are gone. Afterwards it is dropped, and nothing
    /// of it must be left then; the names of the domains of which something is.
    fn finish(&mut self) -> Vec<String>;
}

/// What an incarnation is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// It may map that one's arena.
    Peer(DomainId),
    /// A link is connected.
    Link {
        /// The link's number.
        link: u32,
        /// The incarnation at the other end.
        peer: DomainId,
    },
    /// That incarnation is dead.
    Died(DomainId),
    /// The fence of that incarnation is complete.
    Fenced(DomainId),
    /// It is to finish.
    Shutdown,
}

/// Something that happened to an incarnation, or that it said.
pub(super) struct News {
    /// Which.
    pub(super) id: DomainId,
    /// What.
    pub(super) what: What,
}

/// See [`News`].
pub(super) enum What {
    /// It runs, as this process.
    Process(u32),
    /// It is there, as the guest with this number.
    Guest(u16),
    /// It has handed over an arena as assigned; with a window on it, if the manager can read it.
    Arena(Option<Arc<Window>>),
    /// It has handed over the bells of one of its links.
    Bells(u32),
    /// It serves.
    Ready(BTreeMap<String, String>),
    /// It has everything it needs to map that one's arena: now it owes its word.
    Offered(DomainId),
    /// Its window on that one's arena is in place.
    Mapped(DomainId),
    /// It holds nothing any more that came through that dead one.
    Passed {
        /// The dead.
        dead: DomainId,
        /// Dead ones to whom it had forwarded such things.
        except: Vec<DomainId>,
    },
    /// Something is wrong with it that it may survive.
    Trouble(String),
    /// It has broken a rule and is to be ended.
    Fault(String),
    /// It can neither be heard nor told anything any more; perhaps it is about to end.
    Closed,
    /// It is gone.
    Gone(Gone),
}

/// How an incarnation has ended.
pub(super) struct Gone {
    /// In order, of its own accord.
    pub(super) clean: bool,
    /// Of its own accord, with whatever result. Not looked at if it was killed by the manager.
    pub(super) exited: bool,
    /// It said that it was ready, and that has not been reported.
    pub(super) said_ready: bool,
    /// In words.
    pub(super) how: String,
    /// What it has left to a successor.
    pub(super) heritage: Option<Heritage>,
}

/// What a dead incarnation has left: its arena, or what it had to say in it.
#[derive(Debug, Clone)]
pub(super) struct Heritage {
    /// Who.
    pub(super) id: DomainId,
    /// In what form.
    pub(super) left: Left,
}

/// What a carrier hands from the dead to its successor.
#[derive(Debug, Clone)]
pub(super) enum Left {
    /// The descriptors that stand for the arena.
    Arena(Arc<[OwnedFd]>),
    /// The bytes of the heritage in it.
    Bytes(Arc<[u8]>),
}
