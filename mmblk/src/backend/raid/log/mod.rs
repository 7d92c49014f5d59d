//! The log that closes the write hole: what is reserved on each member, what is still needed, when it is not any more.
//!
//! Each member has a log of its own, a ring of records behind two blocks in which the tail is kept by turns. Nothing here
//! does input or output; `protect` does. The rules:
//!
//! * A record's space is used again only when all members' tails have passed it *on stable storage*: what a recovery
//!   finds is never a record that has been overwritten in part and counts.
//! * A stripe with a record that a recovery would still redo is *live*: whatever is written to it must be recorded too,
//!   or the recovery would undo it.
//! * A stripe with a write that is in no record and may be undone by a loss of power is *soft*. It is flushed before
//!   anything is written that was computed from it: new parity must not rest on data that may vanish.
//! * A record has done its duty when everything it describes has been written in place and flushed since.

pub mod record;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The most regions that may be under intent before they are retired.
pub(super) const MAX_INTENTS: usize = 32;
/// The most stripes with unrecorded writes until they are flushed.
const MAX_SOFT: usize = 4096;
/// Bytes of a region of intent on each member: a write that is the first in its region waits for the intent, and a recovery
/// makes the redundancy of [`MAX_INTENTS`] regions anew at most, which has to be done before a domain is due to be ready.
const REGION_BYTES: u64 = 8 << 20;

/// The space of one member's log, in bytes from the log's beginning.
#[derive(Debug)]
struct Ring {
    start: u64,
    end: u64,
    head: u64,
    used: VecDeque<(u64, u64)>,
}

impl Ring {
    /// Where `len` bytes would go. A record never wraps, and the head never reaches the oldest record from behind.
    fn place(&self, len: u64) -> Option<u64> {
        let Some((_, oldest)) = self.used.front() else {
            return (self.start + len <= self.end).then_some(self.start);
        };
        if self.head > *oldest {
            if self.head + len <= self.end {
                return Some(self.head);
            }
            return (self.start + len < *oldest).then_some(self.start);
        }
        (self.head + len < *oldest).then_some(self.head)
    }

    fn take(&mut self, seq: u64, at: u64, len: u64) {
        self.head = at + len;
        self.used.push_back((seq, at));
    }

    fn free_before(&mut self, tail: u64) {
        while self.used.front().is_some_and(|(seq, _)| *seq < tail) {
            self.used.pop_front();
        }
    }

    /// Whether more than half is taken.
    fn is_half_full(&self) -> bool {
        let Some((_, oldest)) = self.used.front() else { return false };
        let size = self.end - self.start;
        let taken = if self.head > *oldest { self.head - oldest } else { size - (oldest - self.head) };
        taken > size / 2
    }
}

/// A record that a recovery would still act on.
#[derive(Debug)]
struct Live {
    /// The stripe, of a redo record.
    stripe: Option<u64>,
    /// Writes in flight that it covers.
    users: u32,
}

/// An intent: whether it is on stable storage yet.
#[derive(Debug)]
struct Intent {
    seq: u64,
    durable: bool,
}

/// The state of all members' logs.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) id: u128,
    /// The tail that is on stable storage everywhere.
    pub(super) tail: u64,
    pub(super) next: u64,
    rings: Vec<Ring>,
    live: BTreeMap<u64, Live>,
    stripes: BTreeMap<u64, u32>,
    intents: BTreeMap<u64, Intent>,
    region: u64,
    /// Stripes with writes that are in no record and were not flushed since, and at which count of flushes they ended.
    soft: BTreeMap<u64, u64>,
    flushes: u64,
    /// A reservation has found no room since the last checkpoint.
    pub(super) wanted: bool,
}

impl Log {
    /// Empty logs of `bytes` each on `members` members.
    pub(super) fn new(id: u128, members: usize, bytes: u64, block: u32, chunk: u32) -> Self {
        let start = 2 * u64::from(block);
        let ring = || Ring { start, end: bytes, head: start, used: VecDeque::new() };
        Self {
            id,
            tail: 0,
            next: 0,
            rings: (0..members).map(|_| ring()).collect(),
            live: BTreeMap::new(),
            stripes: BTreeMap::new(),
            intents: BTreeMap::new(),
            region: (REGION_BYTES / u64::from(chunk)).max(1),
            soft: BTreeMap::new(),
            flushes: 0,
            wanted: false,
        }
    }

    /// Whether the stripe has a record that a recovery would redo.
    pub(super) fn is_live(&self, stripe: u64) -> bool {
        self.stripes.contains_key(&stripe)
    }

    /// A write that is in no record is carried out in place, or has been.
    pub(super) fn soften(&mut self, stripe: u64) {
        self.soft.insert(stripe, self.flushes);
        self.wanted |= self.soft.len() > MAX_SOFT;
    }

    /// Whether a stripe may have content that a loss of power would undo, and no record of it.
    pub(super) fn is_soft(&self, stripe: u64) -> bool {
        self.soft.contains_key(&stripe)
    }

    /// A flush of all members begins: its number.
    pub(super) fn begin_flush(&mut self) -> u64 {
        self.flushes += 1;
        self.flushes
    }

    /// That flush has ended, on all members: what had been written before it is durable.
    pub(super) fn end_flush(&mut self, number: u64) {
        self.soft.retain(|_, at| *at >= number);
    }

    /// Reserves space on the given members, on all or none: the record's number and the places.
    fn reserve(&mut self, sizes: &[(usize, u64)]) -> Option<(u64, Vec<u64>)> {
        let places: Option<Vec<u64>> =
            sizes.iter().map(|(member, len)| self.rings.get(*member).and_then(|ring| ring.place(*len))).collect();
        let Some(places) = places else {
            self.wanted = true;
            return None;
        };
        let seq = self.next;
        self.next += 1;
        for ((member, len), at) in sizes.iter().zip(&places) {
            if let Some(ring) = self.rings.get_mut(*member) {
                ring.take(seq, *at, *len);
            }
        }
        Some((seq, places))
    }

    /// Reserves records for the new content of a stripe.
    pub(super) fn redo(&mut self, stripe: u64, sizes: &[(usize, u64)]) -> Option<(u64, Vec<u64>)> {
        let (seq, places) = self.reserve(sizes)?;
        self.live.insert(seq, Live { stripe: Some(stripe), users: 1 });
        *self.stripes.entry(stripe).or_default() += 1;
        Some((seq, places))
    }

    /// The stripes of the region that a stripe is in: the first, and how many.
    pub(super) fn region(&self, stripe: u64, stripes: u64) -> (u64, u64) {
        let first = stripe - stripe % self.region;
        (first, self.region.min(stripes - first))
    }

    /// Uses the intent that covers a stripe, if there is one: its number, and whether it is durable.
    pub(super) fn use_intent(&mut self, stripe: u64) -> Option<(u64, bool)> {
        let intent = self.intents.get(&(stripe - stripe % self.region))?;
        self.live.get_mut(&intent.seq)?.users += 1;
        Some((intent.seq, intent.durable))
    }

    /// Reserves records for an intent over a stripe's region.
    pub(super) fn new_intent(&mut self, stripe: u64, sizes: &[(usize, u64)]) -> Option<(u64, Vec<u64>)> {
        if self.live_intents() >= MAX_INTENTS {
            self.wanted = true;
            return None;
        }
        let (seq, places) = self.reserve(sizes)?;
        self.live.insert(seq, Live { stripe: None, users: 1 });
        self.intents.insert(stripe - stripe % self.region, Intent { seq, durable: false });
        Some((seq, places))
    }

    /// An intent is on stable storage.
    pub(super) fn intent_durable(&mut self, seq: u64) {
        if let Some(intent) = self.intents.values_mut().find(|intent| intent.seq == seq) {
            intent.durable = true;
        }
    }

    /// A write that record `seq` covers has been carried out in place.
    pub(super) fn done(&mut self, seq: u64) {
        if let Some(live) = self.live.get_mut(&seq) {
            live.users = live.users.saturating_sub(1);
        }
    }

    /// Whether a checkpoint should be made: there is a need (or `need` says so), and it would retire the oldest record.
    pub(super) fn wants_checkpoint(&mut self, need: bool) -> bool {
        let need = need
            || self.wanted
            || self.soft.len() > MAX_SOFT
            || self.live_intents() * 2 > MAX_INTENTS
            || self.rings.iter().any(Ring::is_half_full);
        let Some(oldest) = self.live.values().next().filter(|_| need) else {
            return self.soft.len() > MAX_SOFT;
        };
        if oldest.users > 0 && oldest.stripe.is_none() {
            // Whoever comes now takes another, so that this one is given up some time.
            self.intents.clear();
        }
        oldest.users == 0
    }

    /// The oldest record that is still needed, or the next one.
    pub(super) fn oldest(&self) -> u64 {
        self.live.keys().next().copied().unwrap_or(self.next)
    }

    fn live_intents(&self) -> usize {
        self.live.values().filter(|live| live.stripe.is_none()).count()
    }

    /// Begins a checkpoint: what has been carried out by now can be retired after a flush. From here on every write needs
    /// a new intent.
    pub(super) fn begin_checkpoint(&mut self) -> BTreeSet<u64> {
        self.intents.clear();
        self.wanted = false;
        self.live.iter().filter(|(_, live)| live.users == 0).map(|(seq, _)| *seq).collect()
    }

    /// The tail once `retired` are not needed any more.
    pub(super) fn tail_without(&self, retired: &BTreeSet<u64>) -> u64 {
        self.live.keys().find(|seq| !retired.contains(seq)).copied().unwrap_or(self.next)
    }

    /// `tail` is on stable storage everywhere.
    pub(super) fn set_tail(&mut self, tail: u64) {
        self.tail = tail;
        let rest = self.live.split_off(&tail);
        for gone in std::mem::replace(&mut self.live, rest).into_values() {
            if let Some(stripe) = gone.stripe
                && let Some(count) = self.stripes.get_mut(&stripe)
            {
                *count -= 1;
                if *count == 0 {
                    self.stripes.remove(&stripe);
                }
            }
        }
        self.rings.iter_mut().for_each(|ring| ring.free_before(tail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(bytes: u64) -> Log {
        Log::new(1, 2, bytes, 512, 4096)
    }

    #[test]
    fn space_comes_back_with_the_tail_only() {
        let mut log = log(1024 + 8 * 512);
        let mut places = Vec::new();
        while let Some((seq, at)) = log.redo(7, &[(0, 1024), (1, 512)]) {
            places.push((seq, at));
        }
        assert_eq!(places.len(), 4, "the first member's log is full");
        assert!(places.iter().enumerate().all(|(i, (seq, at))| *seq == i as u64 && at[0] == 1024 + 1024 * i as u64));
        assert!(log.is_live(7) && log.wanted && !log.wants_checkpoint(false), "the oldest is in flight");
        (0..3).for_each(|seq| log.done(seq));
        assert!(log.wants_checkpoint(false));
        let retired = log.begin_checkpoint();
        assert_eq!(log.tail_without(&retired), 3);
        assert!(log.redo(7, &[(0, 1024)]).is_none(), "not before the tail is durable");
        log.set_tail(3);
        let (seq, at) = log.redo(7, &[(0, 1024), (1, 512)]).unwrap();
        assert_eq!((seq, at), (4, vec![1024, 1024 + 4 * 512]), "the first has wrapped");
        log.done(3);
        log.done(4);
        let retired = log.begin_checkpoint();
        log.set_tail(log.tail_without(&retired));
        assert!(!log.is_live(7));
    }

    #[test]
    fn a_checkpoint_ends_intents_but_not_those_in_use() {
        let mut log = log(1 << 20);
        let (seq, _) = log.new_intent(2049, &[(0, 512), (1, 512)]).unwrap();
        assert_eq!(log.use_intent(2048 + 2047), Some((seq, false)));
        assert_eq!(log.use_intent(2047), None, "another region");
        log.intent_durable(seq);
        assert_eq!(log.use_intent(2048), Some((seq, true)));
        (0..3).for_each(|_| log.done(seq));
        assert_eq!(log.use_intent(2048), Some((seq, true)), "in use again");
        let retired = log.begin_checkpoint();
        assert!(retired.is_empty() && log.tail_without(&retired) == seq);
        assert_eq!(log.use_intent(2048), None, "whoever comes now needs another");
        assert_eq!(log.region(2100, 2101), (2048, 53));
    }

    #[test]
    fn records_in_use_never_overlap() {
        let mut log = log(1024 + 40 * 512);
        let (mut held, mut random) = (VecDeque::new(), 12345_u64);
        for _ in 0..5000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let len = (1 + (random >> 60)) * 512;
            if let Some((seq, at)) = log.redo(0, &[(0, len)]) {
                assert!(at[0] >= 1024 && at[0] + len <= 1024 + 40 * 512);
                assert!(held.iter().all(|(_, start, end)| at[0] + len <= *start || *end <= at[0]));
                held.push_back((seq, at[0], at[0] + len));
            } else {
                let (seq, _, _) = held.pop_front().unwrap();
                log.done(seq);
                let retired = log.begin_checkpoint();
                log.set_tail(log.tail_without(&retired));
            }
        }
    }
}
