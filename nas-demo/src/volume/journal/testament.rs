//! The successor's side: reads a dead mount's journal. Everything in it is an allegation.

use fido_core::heritage::Inherited;

use super::{
    CHECKSUM_AT, HEAD_AT, HEADER_BYTES, MAGIC, PIECES, RECORD_BYTES, SUM_AT, TAIL_AT, VERSION, VOID_AT, place,
};
use crate::volume::extents::Piece;
use crate::volume::job::Written;
use crate::volume::ops::{Ino, MAX_FILE_BYTES, Time};
use crate::volume::superblock::{BLOCK_BYTES, checksum};

/// Why a journal is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// It is no journal, or its head is damaged.
    #[error("it is no journal, or its head is damaged")]
    Head,
    /// It was written by another version of this program.
    #[error("it has layout version {found}, this program reads version {VERSION}")]
    Version {
        /// What it says.
        found: u64,
    },
    /// Its bounds contradict each other or its size.
    #[error("records {tail} to {head} of a ring of {records} in {bytes} bytes")]
    Bounds {
        /// The first record.
        tail: u64,
        /// The one after the last.
        head: u64,
        /// How many the ring holds.
        records: u64,
        /// The length of the area.
        bytes: usize,
    },
    /// Its writer has declared it void: a commit had failed.
    #[error("it was void when its writer died")]
    Void,
    /// A record that counts is damaged.
    #[error("record {sequence} is damaged")]
    Record {
        /// Which.
        sequence: u64,
    },
}

/// One record: what a write, or a part of one, has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub sequence: u64,
    /// The file.
    pub ino: Ino,
    /// Its length and time after the write.
    pub written: Written,
    /// What was mapped.
    pub pieces: Vec<Piece>,
}

/// A dead mount's journal, copied and checked as far as that is possible without the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Testament {
    /// The volume.
    pub fsid: u64,
    /// The mount's number.
    pub boots: u64,
    /// The verifier under which the writes were answered.
    pub verifier: [u8; 8],
    /// The records, in order.
    pub entries: Vec<Entry>,
}

impl Testament {
    /// Reads what an arena's dead owner has left. Never panics, whatever the bytes.
    ///
    /// # Errors
    /// [`JournalError`]: all of it can be relied on, or nothing.
    pub fn read(inherited: &Inherited) -> Result<Self, JournalError> {
        let mut header = [0; CHECKSUM_AT + 8];
        inherited.read(0, &mut header);
        let word = |index: usize| word(&header, index);
        if word(0) != MAGIC || word(6) != checksum(&header[..CHECKSUM_AT]) {
            return Err(JournalError::Head);
        }
        if word(1) != VERSION {
            return Err(JournalError::Version { found: word(1) });
        }
        let (fsid, boots, verifier, records) = (word(2), word(3), word(4).to_le_bytes(), word(5));
        let live = |at| inherited.word(at).ok_or(JournalError::Head);
        let (tail, head, bytes) = (live(TAIL_AT)?, live(HEAD_AT)?, inherited.len());
        if live(VOID_AT)? != 0 {
            return Err(JournalError::Void);
        }
        let room = (bytes.saturating_sub(HEADER_BYTES) / RECORD_BYTES) as u64;
        let count = head.checked_sub(tail).filter(|count| *count <= records && (1..=room).contains(&records));
        let Some(count) = count else { return Err(JournalError::Bounds { tail, head, records, bytes }) };
        let mut entries = Vec::with_capacity(count as usize);
        for sequence in tail..head {
            let mut record = [0; RECORD_BYTES];
            inherited.read(place(sequence, records), &mut record);
            entries.push(decode(&record, sequence, boots).ok_or(JournalError::Record { sequence })?);
        }
        Ok(Self { fsid, boots, verifier, entries })
    }
}

/// A little-endian word of `bytes`; 0 beyond the end.
fn word(bytes: &[u8], index: usize) -> u64 {
    bytes.chunks_exact(8).nth(index).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// A record, if it is whole, the one expected, and makes sense in itself.
fn decode(bytes: &[u8; RECORD_BYTES], expected: u64, boots: u64) -> Option<Entry> {
    let word = |index: usize| word(bytes, index);
    let whole = word(SUM_AT / 8) == checksum(&bytes[..SUM_AT]);
    let (sequence, ino, size, time, count) = (word(0), word(1), word(2), word(3), word(4));
    if !whole || sequence != expected || word(14) != boots {
        return None;
    }
    let time = Time { seconds: time as u32, nanos: (time >> 32) as u32 };
    if size > MAX_FILE_BYTES || time.nanos >= 1_000_000_000 || !(1..=PIECES as u64).contains(&count) {
        return None;
    }
    let piece = |at: usize| {
        let piece = Piece { file: word(at), block: word(at + 1), count: word(at + 2) };
        let inside = piece.file.checked_add(piece.count).is_some_and(|end| end <= size.div_ceil(BLOCK_BYTES));
        (piece.count > 0 && inside).then_some(piece)
    };
    let pieces = (0..count as usize).map(|index| piece(5 + 3 * index)).collect::<Option<_>>()?;
    Some(Entry { sequence, ino, written: Written { size, time }, pieces })
}
