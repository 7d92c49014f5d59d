//! Stripe locks: one operation at a time on a stripe, in the order in which they came.
//!
//! An operation holds one lock and never waits for a second, so there is no deadlock; those that wait are bounded by the
//! requests that the array takes.

use std::collections::{HashMap, VecDeque};

/// Who has, and who waits for, each stripe.
#[derive(Debug, Default)]
pub(super) struct Locks(HashMap<u64, VecDeque<u64>>);

impl Locks {
    /// Takes the lock, or waits behind the others. Whether it was taken.
    pub(super) fn acquire(&mut self, stripe: u64, op: u64) -> bool {
        let queue = self.0.entry(stripe).or_default();
        queue.push_back(op);
        queue.len() == 1
    }

    /// Gives the lock back. Who has it next.
    pub(super) fn release(&mut self, stripe: u64) -> Option<u64> {
        let queue = self.0.get_mut(&stripe)?;
        queue.pop_front();
        let next = queue.front().copied();
        if next.is_none() {
            self.0.remove(&stripe);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_come_first_served() {
        let mut locks = Locks::default();
        assert!(locks.acquire(5, 1) && locks.acquire(6, 2));
        assert!(!locks.acquire(5, 3) && !locks.acquire(5, 4));
        assert_eq!((locks.release(5), locks.release(5), locks.release(5)), (Some(3), Some(4), None));
        assert_eq!(locks.release(6), None);
        assert!(locks.0.is_empty() && locks.acquire(5, 9));
    }
}
