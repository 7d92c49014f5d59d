//! Free space while the volume is in use: a block that nothing refers to any more may still be read by a request that
//! looked it up before. It becomes free when every read that was open at that time has ended.

use std::collections::{BTreeSet, VecDeque};

use super::allocator::Allocator;
use super::extents::Run;

/// A read that is under way; given back to [`Space::close_read`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reading(u64);

/// The data region's free space, and what becomes free soon.
#[derive(Debug)]
pub struct Space {
    allocator: Allocator,
    /// Blocks that only [`Space::take_reserve`] gives out, so that a full volume can still be emptied.
    reserve: u64,
    total: u64,
    open: BTreeSet<Reading>,
    next: Reading,
    /// What was given up at which time, oldest first.
    leaving: VecDeque<(Reading, Run)>,
    leaving_blocks: u64,
}

impl Space {
    /// Space over `blocks` blocks, of which `used` are in use; the first run that overlaps another is an error.
    ///
    /// # Errors
    /// The run.
    pub fn new(blocks: u64, used: &[Run]) -> Result<Self, Run> {
        let mut allocator = Allocator::new(blocks);
        if let Some(run) = used.iter().find(|run| !allocator.claim(**run)) {
            return Err(*run);
        }
        let reserve = (blocks / 256).clamp(16, 1024);
        let next = Reading(0);
        Ok(Self {
            allocator,
            reserve,
            total: blocks,
            open: BTreeSet::new(),
            next,
            leaving: VecDeque::new(),
            leaving_blocks: 0,
        })
    }

    /// Takes blocks for file data; `None` if there are not enough.
    pub fn take(&mut self, count: u64) -> Option<Vec<Run>> {
        if self.allocator.available() < count.saturating_add(self.reserve) {
            return None;
        }
        self.allocator.take(count)
    }

    /// Takes blocks for an operation that frees others.
    pub fn take_reserve(&mut self, count: u64) -> Option<Vec<Run>> {
        self.allocator.take(count)
    }

    /// Blocks for file data, in all and free (those that are about to be included).
    pub fn totals(&self) -> (u64, u64) {
        let free = self.allocator.available() + self.leaving_blocks;
        (self.total.saturating_sub(self.reserve), free.saturating_sub(self.reserve))
    }

    /// Whether blocks become free when reads end.
    pub fn is_waiting(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// A read begins: what is freed from now on stays until it ends.
    pub fn open_read(&mut self) -> Reading {
        let reading = self.next;
        self.next = Reading(reading.0 + 1);
        self.open.insert(reading);
        reading
    }

    /// A read has ended. Returns whether blocks became free.
    pub fn close_read(&mut self, reading: Reading) -> bool {
        self.open.remove(&reading);
        let mut freed = false;
        while let Some((since, run)) = self.leaving.front().copied()
            && self.open.first().is_none_or(|oldest| *oldest >= since)
        {
            self.leaving.pop_front();
            self.leaving_blocks -= run.count;
            self.allocator.free(run);
            freed = true;
        }
        freed
    }

    /// Nothing refers to a run any more.
    pub fn free(&mut self, run: Run) {
        if self.open.is_empty() {
            self.allocator.free(run);
        } else {
            self.leaving_blocks += run.count;
            self.leaving.push_back((self.next, run));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_stay_while_an_older_read_is_open() {
        let mut space = Space::new(1000, &[]).unwrap();
        let free = space.totals().1;
        let runs = space.take(10).unwrap();
        let (old, other) = (space.open_read(), space.open_read());
        space.free(runs[0]);
        let late = space.open_read();
        assert!(space.is_waiting());
        assert_eq!(space.totals().1, free);
        assert!(!space.close_read(old));
        assert!(space.close_read(other));
        assert!(!space.is_waiting());
        assert!(!space.close_read(late));
    }

    #[test]
    fn the_reserve_is_kept_to_the_block() {
        let mut space = Space::new(1000, &[]).unwrap();
        let (total, free) = space.totals();
        assert_eq!((total, free), (984, 984));
        assert!(space.take(985).is_none());
        assert!(space.take(984).is_some());
        assert!(space.take(1).is_none());
        assert!(space.take_reserve(16).is_some());
        assert!(space.take_reserve(1).is_none());
    }

    #[test]
    fn overlapping_extents_are_found_at_mount() {
        let (a, b) = (Run { start: 0, count: 5 }, Run { start: 4, count: 1 });
        assert_eq!(Space::new(100, &[a, b]).unwrap_err(), b);
    }
}
