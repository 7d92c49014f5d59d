//! Loans: both ends of them, in private memory.
//!
//! The lender keeps each payload it has sent in a [`LoanTable`] until the borrower returns its tag. The borrower's
//! payload carries a [`Borrowed`] hold; when its last clone is dropped, on whatever thread, the tag goes to the lane's
//! [`Returns`], and from there, by the lane's [`Borrower`], with the next message or flush back to the lender.
//!
//! When the lender dies, its borrowers' holds live on (the window stays mapped, frozen); when the last one is dropped,
//! the fence of that incarnation is passed, and [`Returns`] says so to the [`PassFence`] it was given.

#[cfg(all(test, loom))]
mod model;

use std::sync::{Arc, PoisonError};

use crate::addr::DomainId;
use crate::bell::{Bell, Ringer};
use crate::payload::{Hold, Payload};
use crate::sync::{AtomicBool, Mutex, MutexGuard, Ordering};

/// The most loans that one lane has out at a time.
pub const MAX_LOANS: usize = 32_768;

/// A peer has returned a loan that it does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer returned loan {tag}, which it does not have")]
pub struct UnknownLoan {
    /// What it returned.
    pub tag: u16,
}

/// A peer has lent more than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer has more than {MAX_LOANS} loans out")]
pub(super) struct TooManyLoans;

/// What is on loan, by tag. Tags count from 1.
#[derive(Debug, Default)]
pub(super) struct LoanTable {
    loans: Vec<Option<Payload>>,
    free: Vec<u16>,
    out: usize,
}

impl LoanTable {
    /// Whether another loan can be given.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        self.out < MAX_LOANS
    }

    /// Keeps a payload and gives it a tag. The caller has asked for room.
    #[inline]
    pub(super) fn give(&mut self, payload: Payload) -> u16 {
        self.out += 1;
        let Some(index) = self.free.pop() else {
            self.loans.push(Some(payload));
            return self.loans.len() as u16;
        };
        self.loans[usize::from(index)] = Some(payload);
        index + 1
    }

    /// Ends a loan.
    #[inline]
    pub(super) fn take(&mut self, tag: u16) -> Result<Payload, UnknownLoan> {
        let index = tag.wrapping_sub(1);
        let loan = self.loans.get_mut(usize::from(index)).and_then(Option::take).ok_or(UnknownLoan { tag })?;
        self.free.push(index);
        self.out -= 1;
        Ok(loan)
    }

    /// How many loans are out.
    pub(super) fn len(&self) -> usize {
        self.out
    }

    /// Takes all loans out of the table, for the quarantine.
    pub(super) fn drain(&mut self) -> Vec<Payload> {
        self.out = 0;
        self.free.clear();
        self.loans.drain(..).flatten().collect()
    }
}

/// Who wants to know when nothing that came from a dead incarnation is held any more.
pub trait PassFence: Send + Sync {
    /// Called once per lane and dead incarnation, from whichever thread drops the last hold.
    fn passed(&self, dead: DomainId);
}

/// The loans of one session that this domain has to return, as the lane's thread has them: what only that thread does
/// takes no lock.
pub(super) struct Borrower {
    shared: Arc<Returns>,
    /// Loans received.
    borrowed: u64,
    /// Loans received and not returned yet.
    out: usize,
    /// Tags to be returned, taken over from `shared`; those before `next` have been returned.
    tags: Vec<u16>,
    next: usize,
}

/// What the holds on these loans and the lane's thread share.
pub(super) struct Returns {
    peer: DomainId,
    fence: Arc<dyn PassFence>,
    bell: Arc<Bell>,
    /// Whether there are tags: what the lane's thread asks for every message, without the lock. It may be late by a
    /// moment, but not for a sleeper: a return either comes before [`Borrower::set_sleeping`] took the lock, and is seen
    /// after it, or finds that it has to ring.
    due: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Tags to be returned, the oldest first.
    tags: Vec<u16>,
    /// Holds that were dropped.
    ended: u64,
    /// The lane's thread sleeps.
    sleeping: bool,
    /// The session is over: tags are of no use any more.
    closed: bool,
    /// The peer is dead, and whoever drops the last of so many holds has to say so.
    dying: Option<u64>,
}

impl Returns {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the guard.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, tag: u16) {
        let mut state = self.state();
        state.ended += 1;
        if !state.closed {
            state.tags.push(tag);
            self.due.store(true, Ordering::Relaxed);
        }
        let ring = std::mem::take(&mut state.sleeping);
        let passed = state.dying == Some(state.ended);
        drop(state);
        if ring {
            self.bell.ring();
        }
        if passed {
            self.fence.passed(self.peer);
        }
    }

    /// All tags that are to be returned now, into `tags`, which is empty.
    fn take(&self, tags: &mut Vec<u16>) {
        let mut state = self.state();
        std::mem::swap(&mut state.tags, tags);
        self.due.store(false, Ordering::Relaxed);
    }
}

impl Borrower {
    pub(super) fn new(peer: DomainId, fence: Arc<dyn PassFence>, bell: Arc<Bell>) -> Self {
        let shared = Returns { peer, fence, bell, due: AtomicBool::new(false), state: Mutex::default() };
        Self { shared: Arc::new(shared), borrowed: 0, out: 0, tags: Vec::new(), next: 0 }
    }

    /// Whether the peer may lend more.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        self.out < MAX_LOANS
    }

    /// A hold on the loan `tag`.
    pub(super) fn borrow(&mut self, tag: u16) -> Arc<Borrowed> {
        self.borrowed += 1;
        self.out += 1;
        Arc::new(Borrowed { tag, returns: self.shared.clone() })
    }

    /// Whether a hold is on a loan of this session.
    pub(super) fn is_mine(&self, hold: &Hold) -> bool {
        hold.downcast_ref::<Borrowed>().is_some_and(|borrowed| Arc::ptr_eq(&borrowed.returns, &self.shared))
    }

    /// The next tag to be returned, the oldest first.
    #[inline]
    pub(super) fn take(&mut self) -> Option<u16> {
        if !self.is_due() {
            return None;
        }
        if self.next == self.tags.len() {
            self.take_over();
        }
        let tag = *self.tags.get(self.next)?;
        self.next += 1;
        self.out -= 1;
        Some(tag)
    }

    /// Takes over from the holds what there is to return.
    #[inline(never)]
    fn take_over(&mut self) {
        self.tags.clear();
        self.next = 0;
        self.shared.take(&mut self.tags);
    }

    /// Whether there is something to return.
    #[inline]
    pub(super) fn is_due(&self) -> bool {
        self.next < self.tags.len() || self.shared.due.load(Ordering::Relaxed)
    }

    /// Notes whether the lane's thread sleeps and wants to be woken for a return.
    pub(super) fn set_sleeping(&self, sleeping: bool) {
        self.shared.state().sleeping = sleeping;
    }

    /// Ends the session: nothing can be returned any more.
    pub(super) fn close(&mut self) {
        (self.tags, self.next) = (Vec::new(), 0);
        let mut state = self.shared.state();
        state.closed = true;
        state.tags.clear();
        self.shared.due.store(false, Ordering::Relaxed);
    }

    /// The peer is dead: passes its fence now, or when the last hold is dropped.
    pub(super) fn peer_died(&mut self) {
        self.close();
        let mut state = self.shared.state();
        let passed = state.dying.replace(self.borrowed).is_none() && state.ended == self.borrowed;
        drop(state);
        if passed {
            self.shared.fence.passed(self.shared.peer);
        }
    }
}

/// Sessions that are over, but whose holds may live on.
pub(super) struct Estate {
    fence: Arc<dyn PassFence>,
    sessions: Vec<Borrower>,
}

impl Estate {
    pub(super) fn new(fence: Arc<dyn PassFence>) -> Self {
        Self { fence, sessions: Vec::new() }
    }

    /// Ends a session.
    pub(super) fn add(&mut self, mut session: Borrower) {
        session.close();
        self.sessions.push(session);
    }

    /// An incarnation is dead: its fence is passed now, or when the last hold of its session is dropped.
    pub(super) fn peer_died(&mut self, peer: DomainId) {
        match self.sessions.iter().position(|session| session.shared.peer == peer) {
            Some(index) => self.sessions.swap_remove(index).peer_died(),
            None => self.fence.passed(peer),
        }
    }
}

impl std::fmt::Debug for Estate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Estate({} sessions)", self.sessions.len())
    }
}

/// The hold on a peer's loan.
pub(super) struct Borrowed {
    tag: u16,
    returns: Arc<Returns>,
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        self.returns.end(self.tag);
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::addr::{Generation, GlobalAddr, Segment, Slot};
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Passes(AtomicUsize);

    impl PassFence for Passes {
        fn passed(&self, _dead: DomainId) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn borrower(passes: &Arc<Passes>) -> Borrower {
        let peer = DomainId { slot: Slot::new(5).unwrap(), generation: Generation::FIRST };
        Borrower::new(peer, passes.clone(), Arc::new(Bell::new().unwrap()))
    }

    fn payload(n: u64) -> Payload {
        let mut payload = Payload::new();
        payload.push(Segment::new(GlobalAddr::from_bits(n), 1), None);
        payload
    }

    #[test]
    fn a_loan_ends_once() {
        let mut table = LoanTable::default();
        let (a, b) = (table.give(payload(10)), table.give(payload(20)));
        assert!(a != 0 && b != 0 && a != b);
        assert_eq!(table.take(a).unwrap().segments().next().unwrap().addr.bits(), 10);
        for wrong in [a, 0, 3, u16::MAX] {
            assert_eq!(table.take(wrong).unwrap_err(), UnknownLoan { tag: wrong });
        }
        assert_eq!((table.len(), table.drain().len(), table.len()), (1, 1, 0));
        assert!(table.take(b).is_err(), "in quarantine");
    }

    #[test]
    fn the_limit_of_loans() {
        let mut table = LoanTable::default();
        for n in 0..MAX_LOANS {
            assert!(table.has_room());
            assert_eq!(usize::from(table.give(payload(0))), n + 1);
        }
        assert!(!table.has_room());
        table.take(17).unwrap();
        assert!(table.has_room());
    }

    #[test]
    fn the_fence_is_passed_with_the_last_hold_and_once() {
        let passes = Arc::new(Passes::default());
        let count = || passes.0.load(Ordering::SeqCst);
        let mut session = borrower(&passes);
        let (a, b) = (session.borrow(1), session.borrow(2));
        let again = a.clone();
        drop(a);
        session.peer_died();
        drop(b);
        assert_eq!(count(), 0);
        drop(again);
        assert_eq!(count(), 1);
        session.peer_died();
        assert_eq!(count(), 1);
        borrower(&passes).peer_died();
        assert_eq!(count(), 2, "nothing held: at once");
    }

    #[test]
    fn a_return_wakes_a_sleeping_lane() {
        let mut session = borrower(&Arc::new(Passes::default()));
        let hold = session.borrow(9);
        assert!(!session.is_due());
        session.set_sleeping(true);
        std::thread::spawn(move || drop(hold)).join().unwrap();
        let mut count = [0; 8];
        assert_eq!(rustix::io::read(&session.shared.bell, &mut count), Ok(8));
        assert!(session.is_due());
        assert_eq!((session.take(), session.is_due(), session.take()), (Some(9), false, None));
    }

    #[test]
    fn tags_are_returned_in_order_and_count_until_then() {
        let mut session = borrower(&Arc::new(Passes::default()));
        let holds: Vec<_> = (0..MAX_LOANS).map(|n| session.borrow(n as u16 + 1)).collect();
        assert!(!session.has_room(), "at the limit");
        drop(holds);
        assert!(!session.has_room(), "they have not been returned yet");
        assert_eq!(session.take(), Some(1));
        assert!(session.has_room());
        drop(session.borrow(7));
        let rest: Vec<u16> = std::iter::from_fn(|| session.take()).collect();
        let expected: Vec<u16> = (2..=MAX_LOANS as u16).chain([7]).collect();
        assert!(rest == expected && session.out == 0);
    }

    #[test]
    fn what_is_not_returned_when_the_session_ends_never_is() {
        let mut session = borrower(&Arc::new(Passes::default()));
        let holds = [1, 2, 3].map(|tag| session.borrow(tag));
        let [first, second, third] = holds;
        drop((first, second));
        assert_eq!(session.take(), Some(1));
        session.close();
        drop(third);
        assert_eq!((session.is_due(), session.take()), (false, None));
    }
}
