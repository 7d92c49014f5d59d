//! An inode in the event loop: its record, its mapping, what writes have changed since, and who may change it now.

use std::collections::VecDeque;

use super::extents::{ExtentMap, Run};
use super::job::Written;
use super::ops::{Attr, Ino, VolumeOp};
use super::record::Record;
use super::superblock::BLOCK_BYTES;

/// An operation that has not begun.
#[derive(Debug)]
pub struct Parked {
    /// The volume's own name for it.
    pub id: u64,
    /// The caller's name for it.
    pub ticket: u64,
    /// What is asked.
    pub op: VolumeOp,
    /// How often it has waited for space.
    pub tries: u32,
}

/// Blocks `first..end` of a file that an operation has for itself.
#[derive(Debug, Clone, Copy)]
pub struct Range {
    /// First block.
    pub first: u64,
    /// The block after the last one.
    pub end: u64,
}

impl Range {
    /// The whole file.
    pub const ALL: Self = Self { first: 0, end: u64::MAX };

    fn overlaps(self, other: Self) -> bool {
        self.first < other.end && other.first < self.end
    }
}

/// Who changes which blocks now, and who waits. First come, first served where ranges overlap.
#[derive(Debug, Default)]
pub struct Locks {
    held: Vec<(u64, Range)>,
    waiting: VecDeque<(Range, Parked)>,
}

impl Locks {
    /// Gives a range to an operation (again, if it has it) and returns the operation, or queues it.
    pub fn acquire(&mut self, range: Range, parked: Parked) -> Option<Parked> {
        if self.held.iter().any(|(holder, _)| *holder == parked.id) {
            return Some(parked);
        }
        let blocked = self.held.iter().any(|(_, held)| held.overlaps(range))
            || self.waiting.iter().any(|(waiting, _)| waiting.overlaps(range));
        if blocked {
            self.waiting.push_back((range, parked));
            return None;
        }
        self.held.push((parked.id, range));
        Some(parked)
    }

    /// Takes an operation's range back; returns who begins now. They have their ranges.
    pub fn release(&mut self, op: u64) -> Vec<Parked> {
        self.held.retain(|(holder, _)| *holder != op);
        let mut ready = Vec::new();
        let mut still: VecDeque<(Range, Parked)> = VecDeque::new();
        for (range, parked) in self.waiting.drain(..) {
            let blocked = self.held.iter().any(|(_, held)| held.overlaps(range))
                || still.iter().any(|(waiting, _)| waiting.overlaps(range));
            if blocked {
                still.push_back((range, parked));
            } else {
                self.held.push((parked.id, range));
                ready.push(parked);
            }
        }
        self.waiting = still;
        ready
    }

    /// Whether anybody holds or wants a range.
    pub fn is_idle(&self) -> bool {
        self.held.is_empty() && self.waiting.is_empty()
    }

    /// Everybody who waits.
    pub fn give_up(&mut self) -> Vec<Parked> {
        self.waiting.drain(..).map(|(_, parked)| parked).collect()
    }
}

/// An inode in the event loop.
#[derive(Debug)]
pub struct Node {
    /// As the store has it.
    pub record: Record,
    /// The mapping of a file, once it has been needed.
    pub map: Option<ExtentMap>,
    /// What writes have changed of the record that the store does not have.
    pub written: Option<Written>,
    /// Rises with every write.
    pub version: u64,
    /// The version that was last sent to the store.
    pub sent: u64,
    /// Changes of this inode that are on their way to the store.
    pub jobs: u32,
    /// How many commits of it have failed.
    pub failures: u64,
    /// Nobody knows whether it is as the store has it: to be loaded again as soon as nothing keeps it.
    pub reload: bool,
    /// The store may have mappings that only memory seems to know: then the store alone says what becomes free.
    pub doubt: bool,
    /// Blocks that become free when the next commit is durable.
    pub owed: u64,
    /// Who changes the file now.
    pub locks: Locks,
}

impl Node {
    /// A node for a stored record.
    pub fn new(record: Record) -> Self {
        let locks = Locks::default();
        Self {
            record,
            map: None,
            written: None,
            version: 0,
            sent: 0,
            jobs: 0,
            failures: 0,
            reload: false,
            doubt: false,
            owed: 0,
            locks,
        }
    }

    /// Whether it must stay in memory.
    pub fn is_pinned(&self) -> bool {
        self.written.is_some() || self.jobs > 0 || !self.locks.is_idle()
    }

    /// Whether writes have changed something that was not sent to the store.
    pub fn is_unsent(&self) -> bool {
        self.version > self.sent
    }

    /// Length of the file, writes included.
    pub fn size(&self) -> u64 {
        self.written.map_or(self.record.size, |written| written.size)
    }

    /// The attributes, writes included.
    pub fn attr(&self, ino: Ino) -> Attr {
        let mut attr = self.record.attr(ino);
        self.overlay(&mut attr);
        attr
    }

    /// Adds to stored attributes what writes have changed.
    pub fn overlay(&self, attr: &mut Attr) {
        if let Some(written) = self.written {
            attr.size = written.size;
            attr.mtime = written.time;
            attr.ctime = attr.ctime.max(written.time);
        }
        if let Some(map) = &self.map {
            attr.used = map.blocks() * BLOCK_BYTES;
        }
    }

    /// The runs that only this node refers to: nobody else frees them.
    pub fn unsent_runs(&self) -> Vec<Run> {
        let dirty = self.map.iter().filter(|_| !self.doubt).flat_map(ExtentMap::dirty);
        dirty.map(|piece| piece.run()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parked(id: u64) -> Parked {
        Parked { id, ticket: 0, op: VolumeOp::Stat, tries: 0 }
    }

    fn acquire(locks: &mut Locks, id: u64, first: u64, end: u64) -> bool {
        locks.acquire(Range { first, end }, parked(id)).is_some()
    }

    fn release(locks: &mut Locks, id: u64) -> Vec<u64> {
        locks.release(id).iter().map(|parked| parked.id).collect()
    }

    #[test]
    fn overlapping_writers_go_in_order_and_others_at_once() {
        let mut locks = Locks::default();
        assert!(acquire(&mut locks, 1, 0, 10));
        assert!(!acquire(&mut locks, 2, 9, 11));
        assert!(!acquire(&mut locks, 3, 10, 11), "it would overtake");
        assert!(acquire(&mut locks, 4, 11, 12));
        assert_eq!(release(&mut locks, 1), [2]);
        assert!(acquire(&mut locks, 2, 9, 11), "it has it already");
        assert_eq!(release(&mut locks, 2), [3]);
        assert!(release(&mut locks, 3).is_empty());
        assert!(release(&mut locks, 4).is_empty());
        assert!(locks.is_idle());
    }

    #[test]
    fn the_whole_file_waits_for_everybody() {
        let mut locks = Locks::default();
        assert!(acquire(&mut locks, 1, 0, 1));
        assert!(acquire(&mut locks, 2, 5, 6));
        assert!(locks.acquire(Range::ALL, parked(3)).is_none());
        assert!(release(&mut locks, 1).is_empty());
        assert_eq!(release(&mut locks, 2), [3]);
    }
}
