//! The allocator of the data region: which blocks are free, in memory only. At mount it is derived from the extents.
//!
//! Next fit, in long runs: a request takes the first run after the last one taken that is long enough; if there is none
//! near, the runs as they come. A second level of bits skips what is full.

use super::extents::Run;

/// How many free runs are looked at for one that is long enough.
const LOOK_AT_RUNS: usize = 64;

/// Which blocks are free.
#[derive(Debug)]
pub struct Allocator {
    /// One bit per block, set while it is free.
    words: Vec<u64>,
    /// One bit per word, set while the word is not 0.
    summary: Vec<u64>,
    blocks: u64,
    free: u64,
    cursor: u64,
}

impl Allocator {
    /// An allocator over `blocks` blocks, all free.
    pub fn new(blocks: u64) -> Self {
        let words = blocks.div_ceil(64) as usize;
        let mut this = Self { words: vec![0; words], summary: vec![0; words.div_ceil(64)], blocks, free: 0, cursor: 0 };
        this.free(Run { start: 0, count: blocks });
        this
    }

    /// Free blocks.
    pub fn available(&self) -> u64 {
        self.free
    }

    /// Takes `count` blocks, in as few runs as can be found quickly; `None` if there are not that many.
    pub fn take(&mut self, count: u64) -> Option<Vec<Run>> {
        if count == 0 || count > self.free {
            return None;
        }
        let runs = self.find(count);
        for run in &runs {
            self.set(*run, false);
        }
        self.cursor = runs.last().map_or(0, |run| run.start + run.count);
        Some(runs)
    }

    /// Marks a run as taken; `false` if part of it was taken already.
    pub fn claim(&mut self, run: Run) -> bool {
        if run.start.checked_add(run.count).is_none_or(|end| end > self.blocks) {
            return false;
        }
        let taken = self.set(run, false);
        taken == run.count
    }

    /// Frees a run.
    pub fn free(&mut self, run: Run) {
        let freed = self.set(run, true);
        debug_assert_eq!(freed, run.count, "{run:?} was free in part");
    }

    /// A run of `count` blocks, or several that add up to it. There are enough.
    fn find(&self, count: u64) -> Vec<Run> {
        let mut runs = Vec::new();
        let mut sum = 0;
        let mut at = self.cursor;
        let mut seen = 0;
        let mut wrapped = false;
        loop {
            let Some(mut run) = self.next_free(at, count) else {
                if wrapped {
                    return runs;
                }
                (at, wrapped) = (0, true);
                continue;
            };
            if wrapped && run.start >= self.cursor {
                return runs;
            }
            if run.count >= count {
                return vec![run];
            }
            if wrapped {
                run.count = run.count.min(self.cursor - run.start);
            }
            at = run.start + run.count;
            seen += 1;
            if sum < count {
                run.count = run.count.min(count - sum);
                sum += run.count;
                runs.push(run);
            }
            if seen >= LOOK_AT_RUNS && sum >= count {
                return runs;
            }
        }
    }

    /// The first free run from `from` on, at most `limit` long.
    fn next_free(&self, from: u64, limit: u64) -> Option<Run> {
        let start = self.next_set(from)?;
        let mut end = start;
        while end < self.blocks && end - start < limit {
            let word = self.words.get((end / 64) as usize).copied().unwrap_or(0);
            let ones = u64::from((!(word >> (end % 64))).trailing_zeros()).min(64 - end % 64);
            end += ones;
            if ones == 0 || end % 64 != 0 {
                break;
            }
        }
        Some(Run { start, count: (end - start).min(limit) })
    }

    /// The first free block from `from` on.
    fn next_set(&self, from: u64) -> Option<u64> {
        let mut word = (from / 64) as usize;
        let masked = self.words.get(word)? & (u64::MAX << (from % 64));
        if masked != 0 {
            return Some(word as u64 * 64 + u64::from(masked.trailing_zeros()));
        }
        word += 1;
        let mut group = word / 64;
        let mut candidates = self.summary.get(group)? & (u64::MAX.checked_shl((word % 64) as u32).unwrap_or(0));
        while candidates == 0 {
            group += 1;
            candidates = *self.summary.get(group)?;
        }
        word = group * 64 + candidates.trailing_zeros() as usize;
        let bits = self.words.get(word)?;
        Some(word as u64 * 64 + u64::from(bits.trailing_zeros()))
    }

    /// Sets the bits of a run to `free`; returns how many changed.
    fn set(&mut self, run: Run, free: bool) -> u64 {
        let mut changed = 0;
        let mut at = run.start;
        let end = (run.start + run.count).min(self.blocks);
        while at < end {
            let (index, shift) = ((at / 64) as usize, at % 64);
            let len = (64 - shift).min(end - at);
            let mask = (u64::MAX >> (64 - len)) << shift;
            if let (Some(word), Some(summary)) = (self.words.get_mut(index), self.summary.get_mut(index / 64)) {
                let old = *word;
                *word = if free { old | mask } else { old & !mask };
                changed += u64::from((old ^ *word).count_ones());
                let bit = 1 << (index % 64);
                *summary = if *word == 0 { *summary & !bit } else { *summary | bit };
            }
            at += len;
        }
        if free {
            self.free += changed;
        } else {
            self.free -= changed;
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_blocks_can_be_taken_and_not_one_more() {
        let mut allocator = Allocator::new(1000);
        assert_eq!(allocator.take(1000), Some(vec![Run { start: 0, count: 1000 }]));
        assert_eq!(allocator.take(1), None);
        allocator.free(Run { start: 500, count: 1 });
        assert_eq!(allocator.take(1), Some(vec![Run { start: 500, count: 1 }]));
    }

    #[test]
    fn a_long_run_is_preferred_to_fragments() {
        let mut allocator = Allocator::new(4096);
        allocator.take(4096).unwrap();
        for start in 0..50 {
            allocator.free(Run { start: start * 2, count: 1 });
        }
        allocator.free(Run { start: 3000, count: 100 });
        assert_eq!(allocator.take(80), Some(vec![Run { start: 3000, count: 80 }]));
    }

    #[test]
    fn claiming_twice_is_noticed() {
        let mut allocator = Allocator::new(100);
        assert!(allocator.claim(Run { start: 10, count: 10 }));
        assert!(!allocator.claim(Run { start: 19, count: 2 }));
        assert!(!allocator.claim(Run { start: 99, count: 2 }));
    }

    proptest! {
        #[test]
        fn what_is_taken_was_free_and_adds_up(blocks in 1u64..9000, steps in prop::collection::vec((1u64..400, any::<bool>()), 0..120)) {
            let mut allocator = Allocator::new(blocks);
            let mut taken = vec![false; blocks as usize];
            let mut held: Vec<Run> = Vec::new();
            for (count, give) in steps {
                if give && !held.is_empty() {
                    let run = held.swap_remove(count as usize % held.len());
                    taken[run.start as usize..(run.start + run.count) as usize].fill(false);
                    allocator.free(run);
                } else {
                    let available = taken.iter().filter(|t| !**t).count() as u64;
                    let runs = allocator.take(count);
                    prop_assert_eq!(runs.is_some(), count <= available);
                    let runs = runs.unwrap_or_default();
                    prop_assert!(runs.is_empty() || runs.iter().map(|r| r.count).sum::<u64>() == count);
                    for run in runs {
                        for slot in &mut taken[run.start as usize..(run.start + run.count) as usize] {
                            prop_assert!(!std::mem::replace(slot, true));
                        }
                        held.push(run);
                    }
                }
                prop_assert_eq!(allocator.available(), taken.iter().filter(|t| !**t).count() as u64);
            }
        }
    }
}
