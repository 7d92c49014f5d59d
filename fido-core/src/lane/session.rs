//! A session: both rings of a lane, between this domain and one incarnation of its peer.
//!
//! A session begins when each side has reset its own half and has published, in its own arena, the incarnation it
//! did that for. Nobody sends before that, so a survivor's leftovers never reach the peer's successor.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::loan::{Borrower, LoanTable, UnknownLoan};
use crate::addr::DomainId;
use crate::arena::{ArenaError, LanePlace, OwnArena, Peer, presence_of};
use crate::bell::Ringer;
use crate::clock;
use crate::presence::{Presence, State};
use crate::ring::{Consumer, Control, Producer, Sleeper, Slot, Waker, WildCredit, is_asleep};
use crate::wait::PeerView;
use crate::window::Window;

pub(super) struct Session {
    pub(super) peer: DomainId,
    pub(super) tx: Producer,
    pub(super) rx: Consumer,
    sleeper: Sleeper,
    waker: Waker,
    pub(super) ringer: Box<dyn Ringer>,
    pub(super) returns: Borrower,
    pub(super) loans: LoanTable,
    /// Both sides are set up.
    pub(super) is_up: bool,
    /// Position of the ring's end at the last look at the peer's armed word.
    looked: u32,
    /// Credit was published since then.
    credited: bool,
    /// Positions of both rings up to which their messages are in the domain's counters, or are the lane's own, which do
    /// not count. (Positions tell everything that would else have to be noted for every message.)
    counted: Positions,
    /// What the peer publishes when it is set up for this incarnation.
    me: u32,
    own: Half,
    theirs: Half,
    /// The thread line that the own advice names, counted from 1.
    seat: u32,
}

/// Positions of both rings.
#[derive(Debug, Default, Clone, Copy)]
struct Positions {
    sent: u32,
    received: u32,
}

/// One side's control lines, kept mapped.
struct Half {
    control: *const Control,
    window: Arc<Window>,
}

// SAFETY: the pointer is to atomics only, which `window` keeps mapped.
unsafe impl Send for Half {}

impl Half {
    /// The control lines at `offset`, which the layout or `Peer::lane` has found inside the window and aligned.
    fn new(window: &Arc<Window>, offset: u64) -> Option<Self> {
        let control = window.at(offset, size_of::<Control>() as u64)?.as_ptr().cast();
        Some(Self { control, window: window.clone() })
    }

    fn slots(window: &Window, place: &LanePlace) -> Option<*const Slot> {
        let bytes = u64::from(place.plan.slots) * size_of::<Slot>() as u64;
        Some(window.at(place.ring, bytes)?.as_ptr().cast())
    }

    #[inline]
    fn control(&self) -> &Control {
        // SAFETY: mapped, aligned atomics; both sides may access them at any time. Of a peer's only words are loaded.
        unsafe { &*self.control }
    }
}

impl Session {
    /// Sets this side up for `peer`, whose arena is behind `window`, and tells it so.
    pub(super) fn begin(
        arena: &OwnArena,
        place: &LanePlace,
        window: &Arc<Window>,
        ringer: Box<dyn Ringer>,
        returns: Borrower,
    ) -> Result<Self, ArenaError> {
        let (link, lane) = (place.plan.link, place.plan.lane);
        let outside = |what| ArenaError::Lane { link, lane, what };
        if !arena.lanes().contains(place) {
            return Err(outside("the own arena has no such lane"));
        }
        let their_place = Peer::read(window)?.lane(link, lane)?;
        let own = Half::new(arena.window(), place.control).ok_or(outside("outside the own arena"))?;
        let theirs = Half::new(window, their_place.control).ok_or(outside("outside the peer's arena"))?;
        let own_slots = Half::slots(arena.window(), place).ok_or(outside("outside the own arena"))?;
        let their_slots = Half::slots(window, &their_place).ok_or(outside("outside the peer's arena"))?;
        // SAFETY: own slots as the own arena's layout has them (checked above), which `own` keeps mapped; the consumer
        // of the session before was the peer's dead predecessor.
        let tx = unsafe { Producer::new(own_slots, place.plan.slots) };
        // SAFETY: within the peer's window, which `theirs` keeps mapped.
        let rx = unsafe { Consumer::new(their_slots, their_place.plan.slots) };
        own.control().credit.publish(0);
        own.control().armed.publish(0);
        own.control().advice.seat.store(0, Ordering::Relaxed);
        own.control().advice.rung.store(0, Ordering::Relaxed);
        own.control().session.publish(session_word(window.id()));
        ringer.ring();
        Ok(Self {
            peer: window.id(),
            tx,
            rx,
            sleeper: Sleeper::default(),
            waker: Waker::default(),
            ringer,
            returns,
            loans: LoanTable::default(),
            is_up: false,
            looked: 0,
            credited: false,
            counted: Positions::default(),
            me: session_word(arena.id()),
            own,
            theirs,
            seat: 0,
        })
    }

    /// Looks at the peer's credit again.
    pub(super) fn refresh_room(&mut self) -> Result<(), WildCredit> {
        self.tx.refresh(&self.theirs.control().credit)
    }

    /// Tells the peer how much has been consumed, if it does not know.
    #[inline]
    pub(super) fn publish_credit(&mut self) {
        self.credited |= self.rx.publish_credit(&self.own.control().credit);
    }

    /// Says in the own arena that this side is about to sleep.
    pub(super) fn arm(&mut self, wants_credit: bool) {
        self.sleeper.arm(&self.own.control().armed, wants_credit);
    }

    /// Says in the own arena that this side is awake.
    pub(super) fn disarm(&mut self) {
        self.sleeper.disarm(&self.own.control().armed);
    }

    /// Whether something was published since the peer's armed word was looked at.
    #[inline]
    pub(super) fn has_published(&self) -> bool {
        self.has_sent() || self.credited
    }

    #[inline]
    fn has_sent(&self) -> bool {
        self.tx.sent() != self.looked
    }

    /// Notes that the peer has just been rung.
    pub(super) fn has_rung(&mut self) {
        (self.looked, self.credited) = (self.tx.sent(), false);
    }

    /// Notes that the message just published is the lane's own.
    pub(super) fn sent_own(&mut self) {
        self.counted.sent = self.counted.sent.wrapping_add(1);
    }

    /// Notes that the message just taken is the lane's own.
    pub(super) fn took_own(&mut self) {
        self.counted.received = self.counted.received.wrapping_add(1);
    }

    /// Messages sent and received that are not in the domain's counters yet.
    #[inline]
    pub(super) fn uncounted(&self) -> (u32, u32) {
        let Positions { sent, received } = self.counted;
        (self.tx.sent().wrapping_sub(sent), self.rx.taken().wrapping_sub(received))
    }

    /// Notes that all of them are.
    pub(super) fn has_counted(&mut self) {
        self.counted = Positions { sent: self.tx.sent(), received: self.rx.taken() };
    }

    /// Whether the peer sleeps and has to be rung for what was published since the last time this was asked.
    #[inline]
    pub(super) fn must_ring(&mut self) -> bool {
        let only_credit = !self.has_sent();
        self.has_rung();
        self.waker.must_ring(&self.theirs.control().armed, only_credit)
    }

    /// Stamps the ring of the peer's bell that follows.
    pub(super) fn stamp_ring(&self) {
        self.own.control().advice.rung.store(clock::stamp(clock::now()), Ordering::Relaxed);
    }

    /// Says which thread line tells of this side's thread, and returns what the peer says of its own.
    pub(super) fn meet(&mut self, seat: Option<u32>) -> PeerView {
        let seat = seat.map_or(0, |seat| seat + 1);
        if seat != self.seat {
            self.seat = seat;
            self.own.control().advice.seat.store(seat, Ordering::Relaxed);
        }
        let theirs = self.theirs.control();
        let seat = theirs.advice.seat.load(Ordering::Relaxed).checked_sub(1);
        let said = seat.and_then(|seat| presence_of(&self.theirs.window, seat));
        let mut presence = said.unwrap_or(Presence { state: State::Unknown, cpu: None });
        if is_asleep(&theirs.armed) {
            presence.state = State::Asleep;
        }
        PeerView { presence, rung: theirs.advice.rung.load(Ordering::Relaxed) }
    }

    /// Whether a message fits, after another look at the peer's credit. (A wild one is noticed by the next send.)
    pub(super) fn has_room(&mut self) -> bool {
        if self.tx.room() == 0 {
            let _ = self.tx.refresh(&self.theirs.control().credit);
        }
        self.tx.room() > 0 && self.loans.has_room()
    }

    /// Ends a loan that the peer returns.
    pub(super) fn end_loan(&mut self, tag: u16, ended: &mut u64) -> Result<(), UnknownLoan> {
        self.loans.take(tag)?;
        *ended += 1;
        Ok(())
    }

    /// Takes back that this side is set up for the peer, and wakes it.
    pub(super) fn renounce(&self) {
        self.own.control().session.publish(0);
        self.ringer.ring();
    }

    /// Whether messages can pass: both sides are set up, and the peer still is.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.is_up && self.peer_is_set_up()
    }

    /// Whether the peer has set its half up for this incarnation of ours.
    #[inline]
    pub(super) fn peer_is_set_up(&self) -> bool {
        self.theirs.control().session.read() == self.me
    }
}

/// An incarnation as the word that is published for it; never 0.
fn session_word(id: DomainId) -> u32 {
    u32::from(id.slot.number()) << 12 | u32::from(id.generation.number())
}
