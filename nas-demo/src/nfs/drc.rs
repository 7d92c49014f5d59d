//! The duplicate request cache: a call that must not be carried out twice is answered twice instead.
//!
//! A client that loses its connection sends again what was not answered, under the same xid. Calls are recognised by
//! where they come from, their xid and a checksum of all their bytes. What is remembered is bounded in number and in
//! time; a call that is still being carried out is never forgotten.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The most calls remembered.
pub const MAX_REMEMBERED: usize = 2048;
/// How long a reply is remembered: longer than a client waits before it sends again.
pub const MAX_AGE: Duration = Duration::from_secs(120);

/// Recognises a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    remote: IpAddr,
    xid: u32,
    checksum: u64,
    len: usize,
}

impl Key {
    /// The key of the call `xid` from `remote`, of which `head` is all that it says.
    pub fn new(remote: IpAddr, xid: u32, head: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        head.hash(&mut hasher);
        Self { remote, xid, checksum: hasher.finish(), len: head.len() }
    }
}

/// What is known of a call.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing: carry it out.
    New,
    /// It is being carried out, under this ticket.
    InProgress(u64),
    /// It has been: this was the reply.
    Done(Rc<[u8]>),
}

#[derive(Debug)]
enum State {
    InProgress(u64),
    Done { reply: Rc<[u8]>, at: Instant, turn: u64 },
}

/// The cache.
#[derive(Debug, Default)]
pub struct DuplicateCache {
    calls: HashMap<Key, State>,
    /// The calls that are done, the one that was used longest ago first.
    order: BTreeMap<u64, Key>,
    next_turn: u64,
}

impl DuplicateCache {
    /// What is known of a call. If it was done before, it counts as used now.
    pub fn look_up(&mut self, key: &Key, now: Instant) -> Seen {
        let turn = self.take_turn();
        match self.calls.get_mut(key) {
            None => Seen::New,
            Some(State::InProgress(ticket)) => Seen::InProgress(*ticket),
            Some(State::Done { at, turn: old, .. }) if now.saturating_duration_since(*at) > MAX_AGE => {
                self.order.remove(old);
                self.calls.remove(key);
                Seen::New
            }
            Some(State::Done { reply, turn: old, .. }) => {
                self.order.remove(old);
                self.order.insert(turn, *key);
                *old = turn;
                Seen::Done(reply.clone())
            }
        }
    }

    /// Says that a call is being carried out under `ticket`.
    pub fn begin(&mut self, key: Key, ticket: u64) {
        if let Some(State::Done { turn, .. }) = self.calls.insert(key, State::InProgress(ticket)) {
            self.order.remove(&turn);
        }
    }

    /// Says that a call has been carried out, and what was replied.
    pub fn finish(&mut self, key: Key, reply: &[u8], now: Instant) {
        let turn = self.take_turn();
        self.calls.insert(key, State::Done { reply: reply.into(), at: now, turn });
        self.order.insert(turn, key);
        while self.order.len() > MAX_REMEMBERED {
            if let Some((_, oldest)) = self.order.pop_first() {
                self.calls.remove(&oldest);
            }
        }
    }

    /// Says that a call has been carried out, but may be carried out again (the volume was busy, say).
    pub fn forget(&mut self, key: &Key) {
        if let Some(State::Done { turn, .. }) = self.calls.remove(key) {
            self.order.remove(&turn);
        }
    }

    fn take_turn(&mut self) -> u64 {
        self.next_turn += 1;
        self.next_turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn key(xid: u32) -> Key {
        Key::new(Ipv4Addr::LOCALHOST.into(), xid, b"call")
    }

    #[test]
    fn a_call_is_new_then_in_progress_then_done() {
        let (mut cache, now) = (DuplicateCache::default(), Instant::now());
        assert_eq!(cache.look_up(&key(1), now), Seen::New);
        cache.begin(key(1), 7);
        assert_eq!(cache.look_up(&key(1), now), Seen::InProgress(7));
        cache.finish(key(1), b"reply", now);
        assert_eq!(cache.look_up(&key(1), now), Seen::Done(b"reply"[..].into()));
        assert_eq!(cache.look_up(&key(2), now), Seen::New);
        assert_eq!(cache.look_up(&Key::new(Ipv4Addr::LOCALHOST.into(), 1, b"other"), now), Seen::New);
        assert_eq!(cache.look_up(&Key::new(Ipv4Addr::BROADCAST.into(), 1, b"call"), now), Seen::New);
        cache.forget(&key(1));
        assert_eq!(cache.look_up(&key(1), now), Seen::New);
    }

    #[test]
    fn what_was_used_longest_ago_is_forgotten_first() {
        let (mut cache, now) = (DuplicateCache::default(), Instant::now());
        for xid in 0..MAX_REMEMBERED as u32 {
            cache.finish(key(xid), b"", now);
        }
        assert_ne!(cache.look_up(&key(0), now), Seen::New);
        cache.finish(key(u32::MAX), b"", now);
        assert_ne!(cache.look_up(&key(0), now), Seen::New);
        assert_eq!(cache.look_up(&key(1), now), Seen::New);
        assert_eq!(cache.order.len(), MAX_REMEMBERED);
        assert_eq!(cache.calls.len(), MAX_REMEMBERED);
    }

    #[test]
    fn an_old_reply_is_no_reply() {
        let (mut cache, now) = (DuplicateCache::default(), Instant::now());
        cache.finish(key(1), b"", now);
        assert_ne!(cache.look_up(&key(1), now + MAX_AGE), Seen::New);
        assert_eq!(cache.look_up(&key(1), now + MAX_AGE + Duration::from_nanos(1)), Seen::New);
        assert!(cache.order.is_empty());
    }

    #[test]
    fn calls_in_progress_are_not_forgotten() {
        let (mut cache, now) = (DuplicateCache::default(), Instant::now());
        cache.begin(key(u32::MAX), 1);
        for xid in 0..2 * MAX_REMEMBERED as u32 {
            cache.finish(key(xid), b"", now);
        }
        assert_eq!(cache.look_up(&key(u32::MAX), now), Seen::InProgress(1));
    }
}
