//! Taking over: what the journal of a dead mount holds becomes part of the store, durably, before anything else happens.
//!
//! It is done in one transaction, entry by entry, by the same code as commits, so what a file becomes is what it would
//! have become. All of it or nothing: if any entry makes no sense, or two files would share a block in the end, the
//! transaction is given up and the volume is what the store has. Done twice it changes nothing the second time, so a
//! death in the middle costs nothing.

use mmblk::queue::BlockQueue;

use super::allocator::Allocator;
use super::job::{Effects, Mutation};
use super::journal::{Entry, Testament};
use super::mutate::Mutator;
use super::ops::VolumeError;
use super::record::Mark;
use super::store::Store;
use super::tables::{Fail, WRITER, Writable};

/// Why nothing was taken over.
#[derive(Debug, thiserror::Error)]
enum Hindrance {
    #[error("it is of volume {found:#x}, this is {fsid:#x}")]
    Volume { found: u64, fsid: u64 },
    #[error("it is of mount {found}, but this is mount {boots} and mount {writer} has made the last change")]
    Mount { found: u64, boots: u64, writer: u64 },
    #[error("record {sequence} leaves the data region")]
    Blocks { sequence: u64 },
    #[error("record {sequence} cannot be stored: {error}")]
    Refused { sequence: u64, error: VolumeError },
    #[error("two files would share blocks")]
    Overlap,
    #[error("the store: {0}")]
    Store(String),
}

impl<E: Into<Fail>> From<E> for Hindrance {
    fn from(error: E) -> Self {
        match error.into() {
            Fail::Broken(why) => Self::Store(why),
            Fail::Refused(error) => Self::Store(error.to_string()),
        }
    }
}

impl<Q: BlockQueue + Send + 'static> Store<Q> {
    /// Makes what the mount before has left part of the store. Returns its write verifier if nothing is missing now.
    pub(super) fn inherit(&mut self, fsid: u64, left: &Testament) -> Option<[u8; 8]> {
        match self.take_over(fsid, left) {
            Ok(applied) => {
                tracing::info!(
                    records = left.entries.len(),
                    applied,
                    "took over the unstable writes of the mount before"
                );
                Some(left.verifier)
            }
            Err(hindrance) => {
                tracing::warn!(%hindrance, "the unstable writes of the mount before are lost");
                None
            }
        }
    }

    fn take_over(&mut self, fsid: u64, left: &Testament) -> Result<usize, Hindrance> {
        if left.fsid != fsid {
            return Err(Hindrance::Volume { found: left.fsid, fsid });
        }
        let batch = self.batch + 1;
        let txn = self.database()?.begin_write()?;
        let mut tables = Writable::open(&txn, self.facts.data_blocks)?;
        // Mounts in between do not matter as long as they have changed nothing: they died before they served.
        let writer = tables.counter(WRITER)?;
        if left.boots >= self.boots || left.boots < writer {
            return Err(Hindrance::Mount { found: left.boots, boots: self.boots, writer });
        }
        let mut applied = 0;
        for entry in &left.entries {
            applied += usize::from(self.apply(&mut tables, left.boots, entry)?);
        }
        if applied == 0 {
            return Ok(0);
        }
        let mut allocator = Allocator::new(self.facts.data_blocks);
        if tables.used_runs()?.into_iter().any(|run| !allocator.claim(run)) {
            return Err(Hindrance::Overlap);
        }
        tables.finish(batch)?;
        // The data before what refers to it, as in every commit.
        self.region.flush().map_err(|error| Hindrance::Store(error.to_string()))?;
        txn.commit()?;
        self.batch = batch;
        Ok(applied)
    }

    /// Applies an entry, unless the file is gone or the store includes it already.
    fn apply(&self, tables: &mut Writable<'_>, boots: u64, entry: &Entry) -> Result<bool, Hindrance> {
        let (ino, sequence) = (entry.ino, entry.sequence);
        let mark = Mark { boots, sequence };
        match tables.record(ino) {
            Ok(record) if record.journal >= mark => return Ok(false),
            Ok(_) => {}
            Err(Fail::Refused(VolumeError::Stale)) => return Ok(false),
            Err(fail) => return Err(fail.into()),
        }
        let inside = |end: Option<u64>| end.is_some_and(|end| end <= self.facts.data_blocks);
        if !entry.pieces.iter().all(|piece| inside(piece.block.checked_add(piece.count))) {
            return Err(Hindrance::Blocks { sequence });
        }
        let (written, pieces) = (Some(entry.written), entry.pieces.clone());
        let commit = Mutation::Commit { ino, written, pieces, mark: Some(mark) };
        match Mutator::apply(tables, &mut Effects::default(), self.limits, &commit) {
            Ok(_) => Ok(true),
            Err(Fail::Refused(error)) => Err(Hindrance::Refused { sequence, error }),
            Err(fail) => Err(fail.into()),
        }
    }
}
