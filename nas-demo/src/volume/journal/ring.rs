//! The writer's side: a ring of records in the arena, and in private memory what is known of them.

use std::collections::{HashMap, HashSet, VecDeque};

use fido_core::heap::HeapError;
use fido_core::heritage::Heritage;
use fido_core::memory::Memory;

use super::{
    CHECKSUM_AT, HEAD_AT, HEADER_BYTES, MAGIC, PIECES, RECORD_BYTES, SUM_AT, TAIL_AT, VERSION, VOID_AT, place,
};
use crate::volume::extents::Piece;
use crate::volume::job::Written;
use crate::volume::ops::Ino;
use crate::volume::record::Mark;
use crate::volume::superblock::checksum;

/// The records of one inode.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// The last one.
    last: u64,
    /// Up to here the store includes them.
    stored: u64,
}

/// The journal of a mounted volume.
#[derive(Debug)]
pub struct Journal {
    area: Heritage,
    boots: u64,
    records: u64,
    /// The first record that counts, and the one after the last.
    tail: u64,
    head: u64,
    /// The inodes of the records from `tail` to `head`.
    inodes: VecDeque<Ino>,
    /// Of the inodes with records that the store does not include. Others' records count for nothing.
    known: HashMap<Ino, Known>,
    void: bool,
    /// Inodes that are not wholly stored and of which it lacks something: they were written while it was void, or a
    /// commit of them has failed, so that a later one's mark may cover what the store does not have.
    loose: HashSet<Ino>,
    /// Commits are asked for again when `head` has come here.
    next_press: u64,
}

impl Journal {
    /// An empty journal of `bytes` in the arena, for the mount with that number and verifier. No successor finds it
    /// before it is [announced](Journal::announce).
    ///
    /// # Errors
    /// [`HeapError`] if the arena has no room for it.
    pub fn new(memory: &Memory, bytes: usize, fsid: u64, boots: u64, verifier: [u8; 8]) -> Result<Self, HeapError> {
        let records = (bytes.saturating_sub(HEADER_BYTES) / RECORD_BYTES).max(1);
        let mut area = Heritage::new(memory, HEADER_BYTES + records * RECORD_BYTES)?;
        let records = records as u64;
        let mut header = [0; CHECKSUM_AT];
        let fields = [MAGIC, VERSION, fsid, boots, u64::from_le_bytes(verifier), records];
        for (slot, field) in header.chunks_exact_mut(8).zip(fields) {
            slot.copy_from_slice(&field.to_le_bytes());
        }
        area.write(0, &header);
        area.write(CHECKSUM_AT, &checksum(&header).to_le_bytes());
        let first = 1;
        area.publish(TAIL_AT, first);
        area.publish(HEAD_AT, first);
        Ok(Self {
            area,
            boots,
            records,
            tail: first,
            head: first,
            inodes: VecDeque::new(),
            known: HashMap::new(),
            void: false,
            loose: HashSet::new(),
            next_press: 0,
        })
    }

    /// From now on a successor finds it.
    pub fn announce(&self) {
        self.area.announce();
    }

    /// Whether a write with so many pieces can be entered now.
    pub fn has_room(&self, pieces: usize) -> bool {
        self.void || self.used() + pieces.div_ceil(PIECES) as u64 <= self.records
    }

    /// Enters a write; there is [room](Journal::has_room).
    pub fn append(&mut self, ino: Ino, written: Written, pieces: &[Piece]) {
        if self.void {
            self.loose.insert(ino);
            return;
        }
        let before = self.head - 1;
        for chunk in pieces.chunks(PIECES) {
            let record = encode(self.head, self.boots, ino, written, chunk);
            self.area.write(place(self.head, self.records), &record);
            self.inodes.push_back(ino);
            self.head += 1;
        }
        let known = self.known.entry(ino).or_insert(Known { last: before, stored: before });
        known.last = self.head - 1;
        // The write counts as a whole from here on.
        self.area.publish(HEAD_AT, self.head);
    }

    /// What a commit of everything that was written of an inode includes; `None` if it adds nothing.
    pub fn mark(&self, ino: Ino) -> Option<Mark> {
        self.known.get(&ino).map(|known| Mark { boots: self.boots, sequence: known.last })
    }

    /// The store includes an inode's records up to `mark`.
    pub fn stored(&mut self, ino: Ino, mark: Mark) {
        if let Some(known) = self.known.get_mut(&ino) {
            known.stored = known.stored.max(mark.sequence);
            if known.stored >= known.last {
                self.known.remove(&ino);
            }
            self.trim();
        }
    }

    /// The store has everything of an inode, or the inode is gone.
    pub fn settled(&mut self, ino: Ino) {
        let known = self.known.remove(&ino).is_some();
        if self.loose.remove(&ino) || known {
            self.trim();
        }
    }

    /// It cannot keep what it promises: a successor is to pass it over, until all is stored.
    pub fn make_void(&mut self, why: &str) {
        if !self.void {
            tracing::warn!(why, "unstable writes would not survive the death of this domain for now");
            self.void = true;
            self.area.publish(VOID_AT, 1);
        }
    }

    /// The records of an inode prove nothing before it is [settled](Journal::settled): a [void](Journal::make_void)
    /// journal stays void until then.
    pub fn distrust(&mut self, ino: Ino) {
        self.loose.insert(ino);
    }

    /// Whether it is time to ask for commits. Once true, it is false until some more has been entered.
    pub fn is_pressing(&mut self) -> bool {
        let pressing = self.used() * 2 > self.records && self.head >= self.next_press;
        if pressing {
            self.next_press = self.head + self.records / 16;
        }
        pressing
    }

    /// The inodes with records that the store does not include.
    pub fn unstored(&self) -> Vec<Ino> {
        self.known.keys().copied().collect()
    }

    fn used(&self) -> u64 {
        self.head - self.tail
    }

    /// Gives up the oldest records, as far as the store includes them.
    fn trim(&mut self) {
        let old = self.tail;
        while let Some(ino) = self.inodes.front()
            && self.known.get(ino).is_none_or(|known| known.stored >= self.tail)
        {
            self.inodes.pop_front();
            self.tail += 1;
        }
        if self.tail > old {
            self.area.publish(TAIL_AT, self.tail);
        }
        if self.void && self.inodes.is_empty() && self.loose.is_empty() {
            self.void = false;
            self.area.publish(VOID_AT, 0);
            tracing::info!("unstable writes survive the death of this domain again");
        }
    }
}

fn encode(sequence: u64, boots: u64, ino: Ino, written: Written, pieces: &[Piece]) -> [u8; RECORD_BYTES] {
    let time = u64::from(written.time.seconds) | u64::from(written.time.nanos) << 32;
    let mut words = [0; RECORD_BYTES / 8];
    words[..5].copy_from_slice(&[sequence, ino, written.size, time, pieces.len() as u64]);
    for (place, piece) in words[5..5 + 3 * PIECES].chunks_exact_mut(3).zip(pieces) {
        place.copy_from_slice(&[piece.file, piece.block, piece.count]);
    }
    words[14] = boots;
    let mut out = [0; RECORD_BYTES];
    for (slot, word) in out.chunks_exact_mut(8).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    let sum = checksum(&out[..SUM_AT]);
    out[SUM_AT..].copy_from_slice(&sum.to_le_bytes());
    out
}
