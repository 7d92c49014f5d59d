//! The lane: a pair of one-way rings with a peer, and the loans that travel over it.
//!
//! Protocols above see messages: a [`Head`] of theirs and a [`Payload`]. Sending lends the payload's segments; the
//! lane keeps the payload until the peer has let go of it. A received payload is checked against the windows, and
//! returns its loan when its last clone is dropped, on whatever thread. So no protocol handles tags, and forwarding a
//! payload over another lane is transitive zero copy with nothing to remember.
//!
//! When the peer dies, what was on loan to it goes into *quarantine* until the manager says that its fence is passed;
//! and when the last payload that came from it is dropped here, this side passes that fence ([`PassFence`]).
//!
//! With [`Transport::Copying`] the payload is copied into a buffer of the sender and out of it by the receiver, with a
//! doorbell per message: the classic way, for comparison. Nothing above the lane notices.
//!
//! A lane belongs to one thread at a time. It never blocks.

mod loan;
mod mailbox;
mod receive;
mod send;
mod session;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::addr::DomainId;
use crate::arena::LanePlace;
use crate::assignment::Transport;
use crate::bell::Bell;
use crate::heap::HeapError;
use crate::memory::{CopyError, Memory};
use crate::message::{self, Head, KIND_RESERVED};
use crate::payload::{MAX_SEGMENTS, Payload};
use crate::wait::{PeerView, Source, WakeId};
use crate::window::AddressError;
use loan::{Borrower, Estate};
pub use loan::{MAX_LOANS, PassFence, UnknownLoan};
pub use mailbox::{Mailbox, News};
pub use receive::{Refusal, RefusalError};
use session::Session;

/// Why a message was not sent. The payload comes back where it can be sent later or elsewhere.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// No room in the ring, in the loan table or (for lists and copies) in the heap; the peer or returning loans make
    /// room, and the lane's bell rings then.
    #[error("the lane is full")]
    Full(Payload),
    /// There is no peer now.
    #[error("the lane's peer is not there")]
    Down(Payload),
    /// More than [`MAX_SEGMENTS`].
    #[error("{} segments in one message; the limit is {MAX_SEGMENTS}", .0.parts().len())]
    TooManySegments(Payload),
    /// The kind belongs to the lane itself.
    #[error("kind {0:#x} is reserved (from {KIND_RESERVED:#x} on)")]
    ReservedKind(u8),
    /// The copying transport cannot read the payload.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The copying transport has no buffer of that size at all.
    #[error(transparent)]
    Heap(#[from] HeapError),
}

/// A change of the lane's peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A session with that incarnation has begun; both rings are empty.
    Up(DomainId),
    /// The session with that incarnation is over: it died, or what it published is broken.
    Down(DomainId),
}

/// What a lane needs to know about itself.
pub struct LaneSetup {
    /// For messages: the link's name and the lane's number.
    pub name: String,
    /// This side's half.
    pub place: LanePlace,
    /// How payload travels.
    pub transport: Transport,
    /// The domain's memory.
    pub memory: Memory,
    /// Where news about the peer arrive.
    pub mailbox: Arc<Mailbox>,
    /// Who is told when the fence of a dead peer is passed here.
    pub fence: Arc<dyn PassFence>,
}

/// A pair of one-way rings with a peer. See the module's head.
pub struct Lane {
    setup: LaneSetup,
    session: Option<Session>,
    /// Sessions that are over, but whose holds may live on.
    estate: Estate,
    changes: VecDeque<Change>,
    /// Messages taken from the ring ahead of their time, to get at the returns behind them.
    backlog: VecDeque<Result<(Head, Payload), Refusal>>,
    /// What was on loan to dead incarnations.
    quarantine: Vec<(DomainId, Vec<Payload>)>,
    /// A send found no room. Forgotten after each wait: whoever still wants room tries again then.
    wants_room: bool,
    /// A loan has ended since the last wait: who lacked memory or tags may have looked before that.
    eased: bool,
    /// A received copy found no room in the heap, of which so many bytes were used.
    wants_heap: Option<u64>,
    /// The protocol above takes no messages for the time being.
    held_back: bool,
    /// The protocol above has looked for a message since the last flush.
    looked: bool,
    counts: Counts,
}

/// Counts not yet added to the domain's counters, beside [`Session::uncounted`].
#[derive(Debug, Default)]
struct Counts {
    given: u64,
    returned: u64,
    suppressed: u64,
}

/// While messages are sent, a flush adds to the domain's counters only when there are as many of them, or flushes, as
/// this: before each addition the processor makes all its stores visible and waits for that.
const COUNTED_AT_ONCE: u64 = 64;

impl Lane {
    /// A lane that waits for its peer.
    pub fn new(setup: LaneSetup) -> Self {
        Self {
            session: None,
            estate: Estate::new(setup.fence.clone()),
            setup,
            changes: VecDeque::new(),
            backlog: VecDeque::new(),
            quarantine: Vec::new(),
            wants_room: false,
            eased: false,
            wants_heap: None,
            held_back: false,
            looked: false,
            counts: Counts::default(),
        }
    }

    /// The link's name and the lane's number.
    pub fn name(&self) -> &str {
        &self.setup.name
    }

    /// The domain's memory.
    pub fn memory(&self) -> &Memory {
        &self.setup.memory
    }

    /// Slots of this side's ring.
    pub fn slots(&self) -> u32 {
        self.setup.place.plan.slots
    }

    /// Whether there is a peer to send to.
    #[inline]
    pub fn is_up(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.is_up)
    }

    /// Who is there to send to.
    pub fn peer(&self) -> Option<DomainId> {
        self.session.as_ref().filter(|session| session.is_up).map(|session| session.peer)
    }

    /// Loans out to the living peer.
    pub fn loans(&self) -> usize {
        self.session.as_ref().map_or(0, |session| session.loans.len())
    }

    /// The next change of the peer, each reported once. Messages of a session come, and are taken, only after its `Up`
    /// was taken from here.
    pub fn change(&mut self) -> Option<Change> {
        self.follow_news();
        self.changes.pop_front()
    }

    /// Says whether the protocol above takes no messages for the time being, so that those that are there keep nobody
    /// awake. Returns of loans still take effect.
    pub fn hold_back(&mut self, held_back: bool) {
        self.held_back = held_back;
    }

    /// Publishes the returns of loans and rings the peer if it sleeps. Call it after a batch and before waiting.
    #[inline]
    pub fn flush(&mut self) {
        self.follow_news();
        if let Some(session) = &self.session {
            // Who has lent nothing waits for no return, and who takes messages takes the returns with them.
            if session.loans.len() > 0 && !self.looked {
                self.collect();
            }
            self.looked = false;
            self.send_returns();
        }
        let has_published = self.ring_peer();
        let (sent, received) = self.session.as_ref().map_or((0, 0), Session::uncounted);
        let put_off = u64::from(sent) + u64::from(received) + self.counts.suppressed;
        if !has_published && put_off + self.counts.returned > 0 || put_off >= COUNTED_AT_ONCE {
            self.add_counts();
        }
    }

    #[inline]
    fn send_returns(&mut self) {
        if self.session.as_ref().is_some_and(|session| session.is_up && session.returns.is_due()) {
            self.send_due_returns();
        }
    }

    #[inline(never)]
    fn send_due_returns(&mut self) {
        let Some(session) = self.session.as_mut() else { return };
        while session.returns.is_due() {
            if session.tx.room() == 0 {
                if let Err(error) = session.refresh_room() {
                    self.break_session(&error);
                    return;
                }
                if session.tx.room() == 0 {
                    self.wants_room = true;
                    return;
                }
            }
            let tags = std::iter::from_fn(|| session.returns.take());
            session.tx.push(&message::encode_returns(tags));
            session.sent_own();
        }
    }

    /// Rings the peer if something was published and it sleeps. Whether something was published.
    #[inline]
    fn ring_peer(&mut self) -> bool {
        let Some(session) = self.session.as_mut().filter(|session| session.has_published()) else { return false };
        if session.must_ring() {
            self.wake_peer();
        } else {
            self.counts.suppressed += 1;
        }
        true
    }

    #[cold]
    fn wake_peer(&mut self) {
        let Some(session) = self.session.as_mut() else { return };
        session.stamp_ring();
        session.ringer.ring();
        let stats = self.setup.memory.stats();
        stats.bells_rung.add(1);
        stats.syscalls.add(1);
    }

    #[inline(never)]
    fn add_counts(&mut self) {
        let counts = std::mem::take(&mut self.counts);
        let (sent, received) = self.session.as_ref().map_or((0, 0), Session::uncounted);
        self.session.as_mut().map(Session::has_counted);
        let stats = self.setup.memory.stats();
        for (counter, count) in [
            (&stats.messages_sent, sent.into()),
            (&stats.messages_received, received.into()),
            (&stats.loans_given, counts.given),
            (&stats.loans_returned, counts.returned),
            (&stats.bells_suppressed, counts.suppressed),
        ] {
            if count > 0 {
                counter.add(count);
            }
        }
    }

    /// Whether there is an open session and nothing to see to but its two rings.
    #[inline]
    fn is_at_ease(&self) -> bool {
        self.session.as_ref().is_some_and(Session::is_open)
            && self.changes.is_empty()
            && !self.setup.mailbox.has_news()
            && self.setup.transport == Transport::Pointer
    }

    /// Takes in what the control thread has to tell, and notices when a session is set up on both sides.
    #[inline]
    fn follow_news(&mut self) {
        let turned = self.session.as_ref().is_some_and(|session| session.is_up != session.peer_is_set_up());
        if turned || self.setup.mailbox.has_news() {
            self.take_news();
        }
    }

    #[cold]
    fn take_news(&mut self) {
        while let Some(news) = self.setup.mailbox.take() {
            match news {
                News::Up(peer, ringer) => self.begin_session(peer, ringer),
                News::Died(peer) => self.peer_died(peer),
                News::Fenced(peer) => {
                    self.quarantine.retain(|(dead, _)| *dead != peer);
                    self.eased = true;
                }
            }
        }
        let Some(session) = self.session.as_mut() else { return };
        match (session.is_up, session.peer_is_set_up()) {
            (false, true) => {
                session.is_up = true;
                self.changes.push_back(Change::Up(session.peer));
            }
            (true, false) => {
                tracing::error!(lane = self.name(), "the peer has ended the session: it finds this domain broken");
                self.end_session();
            }
            _ => {}
        }
    }

    fn begin_session(&mut self, peer: DomainId, ringer: Box<dyn crate::bell::Ringer>) {
        self.end_session();
        let memory = &self.setup.memory;
        let returns = || Borrower::new(peer, self.setup.fence.clone(), self.setup.mailbox.bell().clone());
        let Some(window) = memory.windows().get(peer) else {
            tracing::error!(lane = self.name(), %peer, "the manager announced a peer without its arena");
            self.estate.add(returns());
            return;
        };
        match Session::begin(memory.arena(), &self.setup.place, &window, ringer, returns()) {
            Ok(session) => self.session = Some(session),
            Err(error) => {
                tracing::error!(lane = self.name(), %peer, %error, "the peer's arena is refused");
                memory.stats().refusals.add(1);
                self.estate.add(returns());
            }
        }
    }

    fn peer_died(&mut self, peer: DomainId) {
        if self.session.as_ref().is_some_and(|session| session.peer == peer) {
            self.end_session();
        }
        self.estate.peer_died(peer);
    }

    /// Ends the session, if there is one: loans go into quarantine, what was received and not taken is dropped.
    fn end_session(&mut self) {
        self.add_counts();
        let Some(mut session) = self.session.take() else { return };
        if session.is_up {
            self.changes.push_back(Change::Down(session.peer));
        }
        let mut loans = session.loans.drain();
        // What the dead one had lent and was lent back need not be returned to it. Holding on to it would be waiting for
        // the fence before passing it.
        loans.iter_mut().for_each(|loan| loan.release(|hold| session.returns.is_mine(hold)));
        if !loans.is_empty() {
            self.quarantine.push((session.peer, loans));
        }
        self.backlog.clear();
        self.wants_room = false;
        self.wants_heap = None;
        self.estate.add(session.returns);
    }

    /// The peer has published what cannot be: it is buggy, and nothing more it says is believed. It is told so, lest it
    /// wait for ever.
    fn break_session(&mut self, error: &dyn std::error::Error) {
        if let Some(session) = &self.session {
            session.renounce();
            tracing::error!(lane = self.name(), peer = %session.peer, %error, "the peer is broken; the lane is down");
            self.setup.memory.stats().refusals.add(1);
        }
        self.end_session();
    }

    /// How many payloads are in quarantine, over all dead incarnations.
    pub fn quarantined(&self) -> usize {
        self.quarantine.iter().map(|(_, loans)| loans.len()).sum()
    }
}

impl Source for Lane {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        let bell: &Bell = self.setup.mailbox.bell();
        bell.as_fd()
    }

    fn wake_id(&self) -> Option<WakeId> {
        Some(self.setup.mailbox.bell().id())
    }

    fn edge_triggered(&self) -> bool {
        true
    }

    fn arm(&mut self) {
        if let Some(session) = self.session.as_mut() {
            session.publish_credit();
            session.returns.set_sleeping(true);
            session.arm(self.wants_room);
        }
        self.setup.mailbox.bell().arm();
        let _ = self.ring_peer();
        self.add_counts();
    }

    fn ready(&mut self) -> bool {
        if self.eased || self.setup.mailbox.has_news() || !self.changes.is_empty() {
            return true;
        }
        let has_heap = self.wants_heap.is_none_or(|used| self.setup.memory.heap().used() < used);
        if !self.backlog.is_empty() && has_heap && !self.held_back {
            return true;
        }
        let Some(session) = self.session.as_mut() else { return false };
        if session.is_up != session.peer_is_set_up() {
            return true;
        }
        if !session.is_up {
            return false;
        }
        let has_room = self.wants_room && session.has_room();
        // Held back, a message is of interest only for the returns that it may have, or that may be behind it.
        let wants_message = !self.held_back || session.loans.len() > 0;
        let has_place = self.backlog.len() < self.setup.place.plan.slots as usize;
        let can_take = wants_message && has_place && session.rx.is_ready();
        // Returns need a place in the ring, but no loan as `has_room` does.
        let can_return = session.returns.is_due() && (!self.wants_room || session.tx.room() > 0);
        has_room || can_take || can_return
    }

    fn disarm(&mut self) {
        // Whoever still wants room tries again now and says so again. A wish that nobody has any more would keep the
        // lane ready for ever.
        self.wants_room = false;
        self.eased = false;
        if let Some(session) = self.session.as_mut() {
            session.returns.set_sleeping(false);
            session.disarm();
        }
    }

    fn meet(&mut self, seat: Option<u32>) -> Option<PeerView> {
        self.session.as_mut().filter(|session| session.is_up).map(|session| session.meet(seat))
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.end_session();
        self.add_counts();
        let nothing = Estate::new(self.setup.fence.clone());
        self.setup.mailbox.abandon(std::mem::replace(&mut self.estate, nothing));
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lane({}, {} loans out)", self.name(), self.loans())
    }
}
