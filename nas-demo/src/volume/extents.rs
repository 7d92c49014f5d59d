//! Extents: which blocks of the device hold which blocks of a file, and how far the store knows it.

use std::collections::{BTreeMap, BTreeSet};

/// A run of blocks of a file and the equally long run of the data region that holds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// First block within the file.
    pub file: u64,
    /// First block within the data region.
    pub block: u64,
    /// How many, never 0.
    pub count: u64,
}

impl Piece {
    /// The file's block after the last one.
    pub fn end(self) -> u64 {
        self.file + self.count
    }

    /// The device blocks, as a run.
    pub fn run(self) -> Run {
        Run { start: self.block, count: self.count }
    }

    /// What lies before file block `at`, and what from there on.
    pub fn split(self, at: u64) -> (Option<Self>, Option<Self>) {
        if at <= self.file {
            return (None, Some(self));
        }
        if at >= self.end() {
            return (Some(self), None);
        }
        let front = at - self.file;
        (
            Some(Self { count: front, ..self }),
            Some(Self { file: at, block: self.block + front, count: self.count - front }),
        )
    }

    /// Whether `other` adjoins or overlaps in the file and maps by the same offset.
    pub fn continues(self, other: Self) -> bool {
        self.block.wrapping_sub(self.file) == other.block.wrapping_sub(other.file)
            && self.file <= other.end()
            && other.file <= self.end()
    }

    /// One piece over this and `other`, which [`Piece::continues`] it.
    pub fn hull(self, other: Self) -> Self {
        let first = if other.file < self.file { other } else { self };
        Self { count: self.end().max(other.end()) - first.file, ..first }
    }
}

/// A run of blocks of the data region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First block.
    pub start: u64,
    /// How many.
    pub count: u64,
}

/// How far the store knows a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Only memory knows it.
    Dirty,
    /// On its way to the store.
    Sent,
    /// In the store, durably.
    Stored,
}

/// The current mapping of one file: what the store has, and over it what it does not have yet.
#[derive(Debug, Default)]
pub struct ExtentMap {
    pieces: BTreeMap<u64, (Piece, State)>,
    /// The keys of those that are dirty, so that a commit of a few need not look at all.
    dirty_keys: BTreeSet<u64>,
    blocks: u64,
    dirty: u64,
}

impl ExtentMap {
    /// The mapping as stored.
    pub fn stored(pieces: Vec<Piece>) -> Self {
        let mut map = Self::default();
        for piece in pieces {
            map.insert(piece, State::Stored);
        }
        map
    }

    /// Blocks that are mapped.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Blocks whose mapping is [`State::Dirty`].
    pub fn dirty_blocks(&self) -> u64 {
        self.dirty
    }

    /// Pieces, a measure of the memory it takes.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// The mapped pieces within `start..end`, cut to it.
    pub fn range(&self, start: u64, end: u64) -> Vec<(Piece, State)> {
        let first = self.pieces.range(..=start).next_back().map_or(start, |(file, _)| *file);
        let cut = |(piece, state): &(Piece, State)| {
            let inside = piece.split(start).1?.split(end).0?;
            Some((inside, *state))
        };
        if first >= end {
            return Vec::new();
        }
        self.pieces.range(first..end).filter_map(|(_, entry)| cut(entry)).collect()
    }

    /// Where block `file` is.
    pub fn get(&self, file: u64) -> Option<u64> {
        self.range(file, file + 1).first().map(|(piece, _)| piece.block)
    }

    /// Maps a piece in a state, and returns what it displaces.
    pub fn replace(&mut self, piece: Piece, state: State) -> Vec<(Piece, State)> {
        let displaced = self.remove(piece.file, piece.end());
        self.insert(piece, state);
        displaced
    }

    /// Unmaps `start..end` and returns what was there.
    pub fn remove(&mut self, start: u64, end: u64) -> Vec<(Piece, State)> {
        let removed = self.range(start, end);
        for (inside, _) in &removed {
            // The whole piece around it is taken out; what is outside the range goes back.
            let Some((_, (piece, state))) = self.pieces.range(..=inside.file).next_back().map(|(k, v)| (*k, *v)) else {
                continue;
            };
            self.take(piece.file);
            let (front, rest) = piece.split(start);
            let back = rest.and_then(|rest| rest.split(end).1);
            for kept in [front, back].into_iter().flatten() {
                self.put(kept, state);
            }
        }
        removed
    }

    /// Changes the state of those blocks of `piece` that are mapped exactly so and are in state `from`; returns the
    /// blocks of `piece` that are not mapped so any more.
    pub fn settle(&mut self, piece: Piece, from: State, to: State) -> Vec<Piece> {
        let mut gone = vec![piece];
        for (found, state) in self.range(piece.file, piece.end()) {
            if !found.continues(piece) {
                continue;
            }
            if state == from {
                self.replace(found, to);
            }
            let last = gone.pop();
            let (front, rest) = last.map_or((None, None), |last| last.split(found.file));
            gone.extend(front);
            gone.extend(rest.and_then(|rest| rest.split(found.end()).1));
        }
        gone
    }

    /// Marks all dirty pieces as sent and returns them.
    pub fn send_dirty(&mut self) -> Vec<Piece> {
        if self.dirty == 0 {
            return Vec::new();
        }
        let dirty: Vec<Piece> = self.dirty().collect();
        for piece in &dirty {
            self.replace(*piece, State::Sent);
        }
        dirty
    }

    /// The dirty pieces.
    pub fn dirty(&self) -> impl Iterator<Item = Piece> + '_ {
        self.dirty_keys.iter().filter_map(|key| self.pieces.get(key)).map(|(piece, _)| *piece)
    }

    /// Adds a piece where nothing is mapped, joined with its neighbours if they continue it.
    fn insert(&mut self, piece: Piece, state: State) {
        let mut joined = piece;
        let before = self.pieces.range(..piece.file).next_back().map(|(_, entry)| *entry);
        let after = self.pieces.range(piece.end()..).next().map(|(_, entry)| *entry);
        for (next, s) in before.into_iter().chain(after) {
            if s == state && joined.continues(next) {
                self.take(next.file);
                joined = joined.hull(next);
            }
        }
        self.put(joined, state);
    }

    fn put(&mut self, piece: Piece, state: State) {
        self.blocks += piece.count;
        if state == State::Dirty {
            self.dirty += piece.count;
            self.dirty_keys.insert(piece.file);
        }
        self.pieces.insert(piece.file, (piece, state));
    }

    fn take(&mut self, file: u64) {
        let Some((piece, state)) = self.pieces.remove(&file) else { return };
        self.blocks -= piece.count;
        if state == State::Dirty {
            self.dirty -= piece.count;
            self.dirty_keys.remove(&file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn piece(file: u64, block: u64, count: u64) -> Piece {
        Piece { file, block, count }
    }

    #[test]
    fn neighbours_of_one_state_join() {
        let mut map = ExtentMap::default();
        map.replace(piece(0, 100, 2), State::Dirty);
        map.replace(piece(4, 104, 2), State::Dirty);
        map.replace(piece(2, 102, 2), State::Dirty);
        assert_eq!(map.range(0, 9), vec![(piece(0, 100, 6), State::Dirty)]);
        map.replace(piece(6, 106, 1), State::Stored);
        assert_eq!(map.len(), 2);
    }

    #[test]
    fn settling_reports_what_was_displaced_meanwhile() {
        let mut map = ExtentMap::default();
        map.replace(piece(0, 10, 6), State::Dirty);
        assert_eq!(map.send_dirty(), vec![piece(0, 10, 6)]);
        map.replace(piece(2, 50, 1), State::Dirty);
        let gone = map.settle(piece(0, 10, 6), State::Sent, State::Dirty);
        assert_eq!(gone, vec![piece(2, 12, 1)]);
        assert_eq!(map.dirty_blocks(), 6);
    }

    fn state() -> impl Strategy<Value = State> {
        prop_oneof![Just(State::Dirty), Just(State::Sent), Just(State::Stored)]
    }

    proptest! {
        /// Against an array of blocks, whatever is mapped, unmapped and settled.
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((0u64..40, 1u64..12, 0u64..200, state(), 0u8..3), 0..60)) {
            let mut map = ExtentMap::default();
            let mut model = [None::<(u64, State)>; 64];
            for (file, count, block, state, what) in steps {
                let (range, target) = (file as usize..(file + count) as usize, piece(file, block, count));
                if what == 0 {
                    let removed: u64 = map.remove(file, file + count).iter().map(|(p, _)| p.count).sum();
                    prop_assert_eq!(removed as usize, model[range.clone()].iter().flatten().count());
                    model[range].fill(None);
                } else if what == 1 {
                    map.replace(target, state);
                    for (i, slot) in model[range].iter_mut().enumerate() {
                        *slot = Some((block + i as u64, state));
                    }
                } else {
                    let gone = map.settle(target, state, State::Stored);
                    let mut missing = 0;
                    for (i, slot) in model[range].iter_mut().enumerate() {
                        match slot {
                            Some((b, s)) if *b == block + i as u64 => if *s == state { *s = State::Stored },
                            _ => missing += 1,
                        }
                    }
                    prop_assert_eq!(gone.iter().map(|p| p.count).sum::<u64>(), missing);
                }
                for (i, slot) in model.iter().enumerate() {
                    let found = map.range(i as u64, i as u64 + 1).first().map(|(p, s)| (p.block, *s));
                    prop_assert_eq!(found, *slot);
                }
                prop_assert_eq!(map.blocks() as usize, model.iter().flatten().count());
                prop_assert_eq!(map.dirty().map(|p| p.count).sum::<u64>(), map.dirty_blocks());
                prop_assert_eq!(map.dirty_blocks() as usize, model.iter().flatten().filter(|s| s.1 == State::Dirty).count());
            }
        }
    }
}
