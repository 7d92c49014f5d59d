//! One front end's account: what it has of the back end at the moment over all its lanes, and which of its incarnations
//! each lane serves.
//!
//! It is shared by the lanes' threads, without a lock. All orderings are sequentially consistent: each decision is one of
//! the kind "I have said what I want and then looked" against "I have changed it and then looked who wants it", and none
//! of it is per byte.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};

use fido_core::addr::DomainId;
use fido_core::payload::{Hold, Payload};

use super::limits::Limits;
use fido_core::alarm::Alarm;

/// The account of one front end.
#[derive(Debug)]
pub(super) struct Account {
    limits: Limits,
    /// The lanes' queues together take more requests than the front end may have; else nobody has to count them.
    counts_requests: bool,
    /// Requests that the device has.
    requests: AtomicU32,
    /// Bytes of the heap that reads hold.
    lent: AtomicU64,
    /// Requests of incarnations that are gone that the device still has.
    leftover: AtomicUsize,
    lanes: Vec<LaneState>,
    /// A lane has been refused something since anything was last given back.
    wanted: AtomicBool,
}

/// What the other lanes of a front end know of one.
#[derive(Debug)]
struct LaneState {
    /// For which incarnation requests may be on their way to the device; 0 for none.
    user: AtomicU64,
    alarm: Arc<Alarm>,
}

/// Bytes of a front end's account that a read holds. Given back when this is dropped, on whatever thread.
#[derive(Debug)]
pub(super) struct Lent {
    account: Arc<Account>,
    bytes: u64,
}

impl Account {
    /// The account for so many lanes, whose queues take so many requests together.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub(super) fn new(limits: Limits, lanes: usize, depths: u64) -> io::Result<Arc<Self>> {
        let state = || Ok(LaneState { user: AtomicU64::new(0), alarm: Arc::new(Alarm::new()?) });
        let lanes = (0..lanes).map(|_| state()).collect::<io::Result<_>>()?;
        let (requests, lent, leftover) = (AtomicU32::new(0), AtomicU64::new(0), AtomicUsize::new(0));
        let (wanted, counts_requests) = (AtomicBool::new(false), depths > u64::from(limits.requests));
        Ok(Arc::new(Self { limits, counts_requests, requests, lent, leftover, lanes, wanted }))
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What wakes each lane.
    pub(super) fn alarms(&self) -> impl Iterator<Item = &Arc<Alarm>> {
        self.lanes.iter().map(|lane| &lane.alarm)
    }

    /// Whether the device may have another request.
    pub(super) fn has_request(&self) -> bool {
        !self.counts_requests || self.requests.load(SeqCst) < self.limits.requests
    }

    /// Whether a read of `len` bytes may have its buffer.
    pub(super) fn has_bytes(&self, len: u64) -> bool {
        self.lent.load(SeqCst).saturating_add(rounded(len)) <= self.limits.lent_bytes
    }

    /// Enters a request, if there is room for it.
    pub(super) fn take_request(&self) -> bool {
        let more = |now: u32| (now < self.limits.requests).then_some(now + 1);
        !self.counts_requests || self.requests.fetch_update(SeqCst, SeqCst, more).is_ok()
    }

    /// So many requests have ended, or were not begun after all.
    pub(super) fn return_requests(&self, count: u32) {
        if self.counts_requests && count > 0 {
            self.requests.fetch_sub(count, SeqCst);
            self.call();
        }
    }

    /// Enters a read of `len` bytes, if there is room for it.
    pub(super) fn lend(self: &Arc<Self>, len: u64) -> Option<Lent> {
        let bytes = rounded(len);
        let more = |now: u64| now.checked_add(bytes).filter(|sum| *sum <= self.limits.lent_bytes);
        self.lent.fetch_update(SeqCst, SeqCst, more).ok()?;
        Some(Lent { account: self.clone(), bytes })
    }

    /// A lane has been refused something, and is about to sleep. It looks once more after this.
    pub(super) fn want(&self) {
        self.wanted.store(true, SeqCst);
    }

    /// Something was given back: wakes whoever may have wanted it.
    fn call(&self) {
        if self.wanted.load(SeqCst) && self.wanted.swap(false, SeqCst) {
            self.ring_all();
        }
    }

    fn ring_all(&self) {
        self.lanes.iter().for_each(|lane| lane.alarm.ring());
    }

    /// The lane's session with an incarnation is over, of which the device still has so many requests.
    pub(super) fn gone(&self, lane: usize, requests: usize) {
        // In this order: who sees no user there sees the requests that it has left.
        self.leftover.fetch_add(requests, SeqCst);
        if let Some(state) = self.lanes.get(lane) {
            state.user.store(0, SeqCst);
        }
        if self.lanes.len() > 1 {
            self.ring_all();
        }
    }

    /// A request that somebody gone had left has ended.
    pub(super) fn left_ended(&self) {
        if self.leftover.fetch_sub(1, SeqCst) == 1 {
            self.ring_all();
        }
    }

    /// The lane has a session with that incarnation.
    pub(super) fn came(&self, lane: usize, user: DomainId) {
        if let Some(state) = self.lanes.get(lane) {
            state.user.store(bits(user), SeqCst);
        }
    }

    /// Whether that incarnation may be served: nothing of another one is on its way to the device, or in it, over any
    /// lane. Once this is so it stays so until the incarnation is gone itself, for every other has to ask as well.
    pub(super) fn may_serve(&self, user: DomainId) -> bool {
        let user = bits(user);
        self.lanes.iter().all(|lane| [0, user].contains(&lane.user.load(SeqCst))) && self.leftover.load(SeqCst) == 0
    }
}

impl Lent {
    /// The data of a read, which holds its bytes of the account from now on.
    pub(super) fn attach(self, data: &Payload) -> Payload {
        if let [part] = data.parts() {
            return Payload::held(part.segment, Arc::new((part.hold.clone(), self)));
        }
        let lent = Arc::new(self);
        let mut all = Payload::new();
        for part in data.parts() {
            let hold: Hold = Arc::new((part.hold.clone(), lent.clone()));
            all.push(part.segment, Some(hold));
        }
        all
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.account.lent.fetch_sub(self.bytes, SeqCst);
        self.account.call();
    }
}

/// What the heap takes for so many bytes.
fn rounded(len: u64) -> u64 {
    len.checked_next_power_of_two().unwrap_or(u64::MAX)
}

/// A number for each incarnation, never 0: generations begin at 1.
fn bits(user: DomainId) -> u64 {
    u64::from(user.slot.number()) << 16 | u64::from(user.generation.number())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_where_the_queues_take_more_than_the_limit() {
        let limits = Limits { requests: 8, ..Limits::NONE };
        let at_most = |depths| {
            let account = Account::new(limits, 2, depths).unwrap();
            let taken = (0..16).take_while(|_| account.has_request() && account.take_request()).count();
            account.return_requests(3);
            (taken, account.has_request(), account.requests.load(SeqCst))
        };
        assert_eq!(at_most(9), (8, true, 5));
        assert_eq!(at_most(8), (16, true, 0), "the queues themselves take no more than eight");
    }
}
