//! The tables of the metadata store and typed access to their rows.
//!
//! Nothing read from a row is trusted: a row that makes no sense refuses the operation with `Io`.

use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction};

use super::extents::{Piece, Run};
use super::ops::{Ino, MAX_FILE_BYTES, MAX_NAME_BYTES, VolumeError};
use super::record::{RECORD_BYTES, Record};
use super::superblock::BLOCK_BYTES;

type Bytes = &'static [u8];

const INODES: TableDefinition<Ino, Bytes> = TableDefinition::new("inodes");
const NAMES: TableDefinition<(Ino, Bytes), (Ino, u64)> = TableDefinition::new("names");
const ORDER: TableDefinition<(Ino, u64), Bytes> = TableDefinition::new("order");
const EXTENTS: TableDefinition<(Ino, u64), (u64, u64)> = TableDefinition::new("extents");
const TARGETS: TableDefinition<Ino, Bytes> = TableDefinition::new("targets");
const META: TableDefinition<&'static str, u64> = TableDefinition::new("meta");

/// The next inode number.
pub const NEXT_INO: &str = "next_ino";
/// How often the volume has been opened.
pub const BOOTS: &str = "boots";
/// The mount that has made the last change, by its number in [`BOOTS`].
pub const WRITER: &str = "writer";
/// The number of the last transaction: tells, after a failure, whether it took effect.
pub const BATCH: &str = "batch";
/// Bytes in all rows.
pub const USAGE: &str = "usage";
/// Inodes in all.
pub const INODE_COUNT: &str = "inode_count";

/// Why an operation on the store did not happen.
#[derive(Debug)]
pub enum Fail {
    /// It is refused; nothing was changed.
    Refused(VolumeError),
    /// The transaction cannot go on.
    Broken(String),
}

impl From<VolumeError> for Fail {
    fn from(error: VolumeError) -> Self {
        Self::Refused(error)
    }
}

macro_rules! broken {
    ($($error:ty),+) => {
        $(impl From<$error> for Fail {
            fn from(error: $error) -> Self {
                Self::Broken(error.to_string())
            }
        })+
    };
}
broken!(redb::StorageError, redb::TableError, redb::TransactionError, redb::CommitError);

/// A record, checked.
///
/// # Errors
/// [`VolumeError::Stale`] if there is none, [`VolumeError::Io`] if it makes no sense.
pub fn record(inodes: &impl ReadableTable<Ino, Bytes>, ino: Ino) -> Result<Record, Fail> {
    let Some(row) = inodes.get(ino)? else { return Err(VolumeError::Stale.into()) };
    Record::decode(row.value()).ok_or(Fail::Refused(VolumeError::Io))
}

/// What a name stands for: inode and cookie.
pub fn entry(
    names: &impl ReadableTable<(Ino, Bytes), (Ino, u64)>,
    dir: Ino,
    name: &[u8],
) -> Result<Option<(Ino, u64)>, Fail> {
    Ok(names.get((dir, name))?.map(|row| row.value()))
}

/// The extents of an inode, in order, checked against each other and the data region.
pub fn extents(
    extents: &impl ReadableTable<(Ino, u64), (u64, u64)>,
    ino: Ino,
    data_blocks: u64,
) -> Result<Vec<Piece>, Fail> {
    let mut out: Vec<Piece> = Vec::new();
    for row in extents.range((ino, 0)..=(ino, u64::MAX))? {
        let (key, value) = row?;
        let piece = piece(key.value().1, value.value(), data_blocks)?;
        if out.last().is_some_and(|last| last.end() > piece.file) {
            return Err(VolumeError::Io.into());
        }
        out.push(piece);
    }
    Ok(out)
}

/// Every run of the data region that an extent refers to.
///
/// # Errors
/// [`Fail::Broken`], also if one leaves the data region.
pub fn used_runs(extents: &impl ReadableTable<(Ino, u64), (u64, u64)>, data_blocks: u64) -> Result<Vec<Run>, Fail> {
    let mut used = Vec::new();
    for row in extents.iter()? {
        let (_, value) = row?;
        let (start, count) = value.value();
        if start.checked_add(count).is_none_or(|end| end > data_blocks) {
            return Err(Fail::Broken(format!("an extent of {count} blocks at {start} leaves the data region")));
        }
        used.push(Run { start, count });
    }
    Ok(used)
}

fn piece(file: u64, (block, count): (u64, u64), data_blocks: u64) -> Result<Piece, Fail> {
    let fits = |start: u64, limit: u64| start.checked_add(count).is_some_and(|end| end <= limit);
    if count == 0 || !fits(block, data_blocks) || !fits(file, MAX_FILE_BYTES / BLOCK_BYTES) {
        return Err(VolumeError::Io.into());
    }
    Ok(Piece { file, block, count })
}

/// The tables for reading, at one moment.
pub struct Readable {
    /// Records.
    pub inodes: redb::ReadOnlyTable<Ino, Bytes>,
    /// Entries by name.
    pub names: redb::ReadOnlyTable<(Ino, Bytes), (Ino, u64)>,
    /// Entries by cookie.
    pub order: redb::ReadOnlyTable<(Ino, u64), Bytes>,
    /// Extents.
    pub extents: redb::ReadOnlyTable<(Ino, u64), (u64, u64)>,
    /// Targets of symbolic links.
    pub targets: redb::ReadOnlyTable<Ino, Bytes>,
    /// Counters.
    pub meta: redb::ReadOnlyTable<&'static str, u64>,
}

impl Readable {
    /// Opens the tables in a read transaction.
    ///
    /// # Errors
    /// [`Fail::Broken`].
    pub fn open(txn: &ReadTransaction) -> Result<Self, Fail> {
        Ok(Self {
            inodes: txn.open_table(INODES)?,
            names: txn.open_table(NAMES)?,
            order: txn.open_table(ORDER)?,
            extents: txn.open_table(EXTENTS)?,
            targets: txn.open_table(TARGETS)?,
            meta: txn.open_table(META)?,
        })
    }

    /// A counter.
    ///
    /// # Errors
    /// [`Fail::Broken`].
    pub fn counter(&self, name: &str) -> Result<u64, Fail> {
        Ok(self.meta.get(name)?.map_or(0, |row| row.value()))
    }
}

/// The tables in a write transaction. It counts the bytes of all rows, so that the store can be kept from filling up.
pub struct Writable<'txn> {
    inodes: Table<'txn, Ino, Bytes>,
    names: Table<'txn, (Ino, Bytes), (Ino, u64)>,
    order: Table<'txn, (Ino, u64), Bytes>,
    extents: Table<'txn, (Ino, u64), (u64, u64)>,
    targets: Table<'txn, Ino, Bytes>,
    meta: Table<'txn, &'static str, u64>,
    /// Bytes of all rows.
    pub usage: u64,
    /// Inodes in all.
    pub inode_count: u64,
    data_blocks: u64,
}

impl<'txn> Writable<'txn> {
    /// Opens the tables, which are made if they are missing.
    ///
    /// # Errors
    /// [`Fail::Broken`].
    pub fn open(txn: &'txn WriteTransaction, data_blocks: u64) -> Result<Self, Fail> {
        let mut tables = Self {
            inodes: txn.open_table(INODES)?,
            names: txn.open_table(NAMES)?,
            order: txn.open_table(ORDER)?,
            extents: txn.open_table(EXTENTS)?,
            targets: txn.open_table(TARGETS)?,
            meta: txn.open_table(META)?,
            usage: 0,
            inode_count: 0,
            data_blocks,
        };
        tables.usage = tables.counter(USAGE)?;
        tables.inode_count = tables.counter(INODE_COUNT)?;
        Ok(tables)
    }

    /// Stores the counters and closes the tables. `batch` numbers the transaction.
    ///
    /// # Errors
    /// [`Fail::Broken`].
    pub fn finish(mut self, batch: u64) -> Result<(), Fail> {
        let (usage, inode_count) = (self.usage, self.inode_count);
        self.set_counter(USAGE, usage)?;
        self.set_counter(INODE_COUNT, inode_count)?;
        self.set_counter(BATCH, batch)
    }

    /// A counter.
    ///
    /// # Errors
    /// [`Fail::Broken`].
    pub fn counter(&self, name: &str) -> Result<u64, Fail> {
        Ok(self.meta.get(name)?.map_or(0, |row| row.value()))
    }

    /// Sets a counter.
    ///
    /// # Errors
    /// [`Fail::Broken`].
    pub fn set_counter(&mut self, name: &'static str, value: u64) -> Result<(), Fail> {
        self.meta.insert(name, value)?;
        Ok(())
    }

    /// A number that no inode has had.
    ///
    /// # Errors
    /// [`Fail::Broken`].
    pub fn new_ino(&mut self) -> Result<Ino, Fail> {
        let ino = self.counter(NEXT_INO)?;
        self.set_counter(NEXT_INO, ino + 1)?;
        Ok(ino)
    }

    /// An inode's record.
    ///
    /// # Errors
    /// As [`record`].
    pub fn record(&self, ino: Ino) -> Result<Record, Fail> {
        record(&self.inodes, ino)
    }

    /// Stores a record.
    ///
    /// # Errors
    /// [`Fail::Broken`].
    pub fn put_record(&mut self, ino: Ino, record: &Record) -> Result<(), Fail> {
        if self.inodes.insert(ino, record.encode().as_slice())?.is_none() {
            self.usage += 8 + RECORD_BYTES as u64;
            self.inode_count += 1;
        }
        Ok(())
    }

    /// Forgets an inode: its record and its target. Its extents are dropped by [`Writable::cut_extents`].
    ///
    /// # Errors
    /// [`Fail::Broken`].
    pub fn remove_inode(&mut self, ino: Ino) -> Result<(), Fail> {
        if self.inodes.remove(ino)?.is_some() {
            self.usage = self.usage.saturating_sub(8 + RECORD_BYTES as u64);
            self.inode_count = self.inode_count.saturating_sub(1);
        }
        if let Some(target) = self.targets.remove(ino)? {
            self.usage = self.usage.saturating_sub(8 + target.value().len() as u64);
        }
        Ok(())
    }

    /// Stores the target of a symbolic link.
    ///
    /// # Errors
    /// [`Fail::Broken`].
    pub fn put_target(&mut self, ino: Ino, target: &[u8]) -> Result<(), Fail> {
        self.targets.insert(ino, target)?;
        self.usage += 8 + target.len() as u64;
        Ok(())
    }

    /// What a name stands for.
    ///
    /// # Errors
    /// [`Fail::Broken`].
    pub fn entry(&self, dir: Ino, name: &[u8]) -> Result<Option<(Ino, u64)>, Fail> {
        entry(&self.names, dir, name)
    }

    /// Whether a directory has entries.
    ///
    /// # Errors
    /// [`Fail::Broken`].
    pub fn has_entries(&self, dir: Ino) -> Result<bool, Fail> {
        Ok(self.order.range((dir, 0)..=(dir, u64::MAX))?.next().transpose()?.is_some())
    }

    /// Every run that an extent refers to.
    ///
    /// # Errors
    /// As [`used_runs`].
    pub fn used_runs(&self) -> Result<Vec<Run>, Fail> {
        used_runs(&self.extents, self.data_blocks)
    }

    /// Adds a name, which must not exist, to a directory and its record.
    ///
    /// # Errors
    /// [`Fail::Broken`].
    pub fn add_entry(&mut self, dir: Ino, record: &mut Record, name: &[u8], ino: Ino) -> Result<(), Fail> {
        let cookie = record.next_cookie;
        record.next_cookie += 1;
        record.size += 1;
        self.names.insert((dir, name), (ino, cookie))?;
        self.order.insert((dir, cookie), name)?;
        self.usage += entry_bytes(name);
        Ok(())
    }

    /// Removes a name from a directory and its record.
    ///
    /// # Errors
    /// [`Fail::Broken`].
    pub fn remove_entry(&mut self, dir: Ino, record: &mut Record, name: &[u8]) -> Result<(), Fail> {
        let removed = self.names.remove((dir, name))?.map(|row| row.value());
        if let Some((_, cookie)) = removed {
            self.order.remove((dir, cookie))?;
            record.size = record.size.saturating_sub(1);
            self.usage = self.usage.saturating_sub(entry_bytes(name));
        }
        Ok(())
    }

    /// Maps a piece of a file, in place of what was mapped there. Adds the runs it displaces to `dropped`; a block
    /// that was mapped like this already is not displaced. Returns how many blocks of the file had no mapping before.
    ///
    /// # Errors
    /// [`Fail::Broken`], also for rows that make no sense: some may have been changed by then.
    pub fn put_extent(&mut self, ino: Ino, new: Piece, dropped: &mut Vec<Run>) -> Result<u64, Fail> {
        let mut joined = new;
        let mut fresh = new.count;
        for old in self.overlapping(ino, new.file, new.end())? {
            self.drop_extent(ino, old)?;
            let same = old.block.wrapping_sub(old.file) == new.block.wrapping_sub(new.file);
            let (front, rest) = old.split(new.file);
            let (middle, back) = rest.map_or((None, None), |rest| rest.split(new.end()));
            fresh = fresh.saturating_sub(middle.map_or(0, |middle| middle.count));
            if same {
                joined = joined.hull(old);
                continue;
            }
            for kept in [front, back].into_iter().flatten() {
                self.insert_extent(ino, kept)?;
            }
            dropped.extend(middle.map(Piece::run));
        }
        let before = self.overlapping(ino, joined.file.saturating_sub(1), joined.file)?;
        let after = self.overlapping(ino, joined.end(), joined.end().saturating_add(1))?;
        for next in before.into_iter().chain(after) {
            if joined.continues(next) {
                self.drop_extent(ino, next)?;
                joined = joined.hull(next);
            }
        }
        self.insert_extent(ino, joined)?;
        Ok(fresh)
    }

    /// Unmaps everything of a file from block `from` on, adds it to `dropped` and returns how many blocks it is.
    ///
    /// # Errors
    /// As [`Writable::put_extent`].
    pub fn cut_extents(&mut self, ino: Ino, from: u64, dropped: &mut Vec<Run>) -> Result<u64, Fail> {
        let mut gone = 0;
        for old in self.overlapping(ino, from, u64::MAX)? {
            self.drop_extent(ino, old)?;
            let (front, back) = old.split(from);
            if let Some(kept) = front {
                self.insert_extent(ino, kept)?;
            }
            gone += back.map_or(0, |back| back.count);
            dropped.extend(back.map(Piece::run));
        }
        Ok(gone)
    }

    /// The stored pieces that have blocks in `start..end`.
    fn overlapping(&self, ino: Ino, start: u64, end: u64) -> Result<Vec<Piece>, Fail> {
        let mut out = Vec::new();
        if start >= end {
            return Ok(out);
        }
        let nonsense = |_| Fail::Broken(format!("nonsense in the extents of inode {ino}"));
        if let Some(row) = self.extents.range((ino, 0)..(ino, start))?.next_back() {
            let (key, value) = row?;
            let found = piece(key.value().1, value.value(), self.data_blocks).map_err(nonsense)?;
            if found.end() > start {
                out.push(found);
            }
        }
        for row in self.extents.range((ino, start)..(ino, end))? {
            let (key, value) = row?;
            out.push(piece(key.value().1, value.value(), self.data_blocks).map_err(nonsense)?);
        }
        Ok(out)
    }

    fn insert_extent(&mut self, ino: Ino, piece: Piece) -> Result<(), Fail> {
        if self.extents.insert((ino, piece.file), (piece.block, piece.count))?.is_none() {
            self.usage += EXTENT_BYTES;
        }
        Ok(())
    }

    fn drop_extent(&mut self, ino: Ino, piece: Piece) -> Result<(), Fail> {
        if self.extents.remove((ino, piece.file))?.is_some() {
            self.usage = self.usage.saturating_sub(EXTENT_BYTES);
        }
        Ok(())
    }
}

const EXTENT_BYTES: u64 = 32;

fn entry_bytes(name: &[u8]) -> u64 {
    debug_assert!(name.len() <= MAX_NAME_BYTES);
    44 + 2 * name.len() as u64
}
