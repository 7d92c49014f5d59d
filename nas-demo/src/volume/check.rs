//! The consistency check: reads the whole metadata store of a volume that is not in use, and says what is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use fido_core::memory::Memory;
use mmblk::queue::BlockQueue;
use redb::ReadableTable;

use super::allocator::Allocator;
use super::backend::Region;
use super::blocking::Blocking;
use super::ops::{Ino, Kind, ROOT};
use super::record::Record;
use super::store::{RootOwner, Store};
use super::superblock::{BLOCK_BYTES, OpenError, Superblock};
use super::tables::{Fail, INODE_COUNT, NEXT_INO, Readable, USAGE};

/// The store's cache during a check.
const CACHE_BYTES: usize = 8 << 20;

/// What a check has found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// Regular files and symbolic links.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Blocks of file data.
    pub blocks: u64,
    /// What is wrong, in words; empty if the volume is consistent.
    pub problems: Vec<String>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    fn problem(&mut self, text: String) {
        self.problems.push(text);
    }
}

/// Checks the volume on a device that nobody else uses. An interrupted transaction of the store is rolled back, as at
/// every opening; an empty device is formatted.
///
/// # Errors
/// [`OpenError`] if there is no volume, or its store is beyond reading.
pub fn check<Q: BlockQueue + Send + 'static>(memory: Memory, queue: Q) -> Result<Report, OpenError> {
    let device = Blocking::new(queue, memory, Arc::new(AtomicBool::new(false)))?;
    let region = Region::open(device, 0)?;
    let (store, mounted) = Store::open(region, CACHE_BYTES, RootOwner { mode: 0o755, uid: 0, gid: 0 }, None)?;
    let broken = |fail| {
        OpenError::Store(match fail {
            Fail::Broken(why) => why,
            Fail::Refused(error) => error.to_string(),
        })
    };
    let tables = store.readable().map_err(broken)?;
    Checker::new(&tables, mounted.superblock).run().map_err(broken)
}

struct Checker<'a> {
    tables: &'a Readable,
    superblock: Superblock,
    report: Report,
    records: BTreeMap<Ino, Record>,
    /// Names, and for directories also subdirectories, by inode.
    links: BTreeMap<Ino, u32>,
    entries: BTreeMap<Ino, u64>,
    usage: u64,
}

impl<'a> Checker<'a> {
    fn new(tables: &'a Readable, superblock: Superblock) -> Self {
        Self {
            tables,
            superblock,
            report: Report::default(),
            records: BTreeMap::new(),
            links: BTreeMap::new(),
            entries: BTreeMap::new(),
            usage: 0,
        }
    }

    fn run(mut self) -> Result<Report, Fail> {
        self.inodes()?;
        self.names()?;
        self.order()?;
        self.extents()?;
        self.targets()?;
        self.links();
        self.reach();
        self.counters()?;
        Ok(self.report)
    }

    fn inodes(&mut self) -> Result<(), Fail> {
        for row in self.tables.inodes.iter()? {
            let (ino, bytes) = row?;
            self.usage += 8 + bytes.value().len() as u64;
            match Record::decode(bytes.value()) {
                Some(record) => drop(self.records.insert(ino.value(), record)),
                None => self.report.problem(format!("inode {}: nonsense in its record", ino.value())),
            }
        }
        for record in self.records.values() {
            match record.kind {
                Kind::Directory => self.report.directories += 1,
                Kind::File | Kind::Symlink => self.report.files += 1,
            }
        }
        if !self.records.get(&ROOT).is_some_and(Record::is_dir) {
            self.report.problem("there is no root directory".into());
        }
        Ok(())
    }

    fn names(&mut self) -> Result<(), Fail> {
        for row in self.tables.names.iter()? {
            let (key, value) = row?;
            let ((dir, name), (ino, cookie)) = (key.value(), value.value());
            let shown = String::from_utf8_lossy(name).into_owned();
            self.usage += 44 + 2 * name.len() as u64;
            *self.entries.entry(dir).or_default() += 1;
            let ordered = self.tables.order.get((dir, cookie))?.is_some_and(|row| row.value() == name);
            if !ordered {
                self.report.problem(format!("directory {dir}: {shown} is not listed under its cookie {cookie}"));
            }
            let child = self.records.get(&ino).copied();
            match (self.records.get(&dir).copied(), child) {
                (Some(parent), Some(child)) if parent.is_dir() => {
                    *self.links.entry(ino).or_default() += 1;
                    if child.is_dir() {
                        *self.links.entry(dir).or_default() += 1;
                    }
                    if child.is_dir() && child.tag != dir {
                        self.report.problem(format!("directory {ino}: its parent is {}, but {dir} has it", child.tag));
                    }
                    if cookie >= parent.next_cookie {
                        self.report.problem(format!("directory {dir}: cookie {cookie} would be given out again"));
                    }
                }
                (Some(parent), None) if parent.is_dir() => {
                    self.report.problem(format!("directory {dir}: {shown} names inode {ino}, which does not exist"));
                }
                _ => self.report.problem(format!("{shown} is in {dir}, which is no directory")),
            }
        }
        Ok(())
    }

    fn order(&mut self) -> Result<(), Fail> {
        for row in self.tables.order.iter()? {
            let (key, name) = row?;
            let (dir, cookie) = key.value();
            let named = self.tables.names.get((dir, name.value()))?.is_some_and(|row| row.value().1 == cookie);
            if !named {
                self.report.problem(format!("directory {dir}: cookie {cookie} lists a name that does not exist"));
            }
        }
        Ok(())
    }

    fn extents(&mut self) -> Result<(), Fail> {
        let mut allocator = Allocator::new(self.superblock.data_blocks);
        let mut blocks: BTreeMap<Ino, u64> = BTreeMap::new();
        for row in self.tables.extents.iter()? {
            let (key, _) = row?;
            blocks.entry(key.value().0).or_default();
            self.usage += 32;
        }
        for (ino, sum) in &mut blocks {
            let Some(record) = self.records.get(ino).filter(|record| record.kind == Kind::File) else {
                self.report.problem(format!("inode {ino} has extents, but is no file"));
                continue;
            };
            let Ok(pieces) = super::tables::extents(&self.tables.extents, *ino, self.superblock.data_blocks) else {
                self.report.problem(format!("inode {ino}: its extents overlap or leave the data region"));
                continue;
            };
            for piece in pieces {
                *sum += piece.count;
                if piece.end() > record.size.div_ceil(BLOCK_BYTES) {
                    self.report.problem(format!("inode {ino}: {piece:?} lies beyond its size {}", record.size));
                }
                if !allocator.claim(piece.run()) {
                    self.report.problem(format!("inode {ino}: {piece:?} has blocks that another extent has"));
                }
            }
        }
        for (ino, record) in &self.records {
            let found = blocks.get(ino).copied().unwrap_or(0);
            self.report.blocks += found;
            if record.blocks != found {
                self.report.problem(format!("inode {ino}: {} blocks in its record, {found} found", record.blocks));
            }
        }
        Ok(())
    }

    fn targets(&mut self) -> Result<(), Fail> {
        let mut seen = BTreeSet::new();
        for row in self.tables.targets.iter()? {
            let (ino, target) = row?;
            self.usage += 8 + target.value().len() as u64;
            seen.insert(ino.value());
        }
        let links = self.records.iter().filter(|(_, record)| record.kind == Kind::Symlink).map(|(ino, _)| *ino);
        if !links.eq(seen.iter().copied()) {
            self.report.problem("symbolic links and targets do not match".into());
        }
        Ok(())
    }

    fn links(&mut self) {
        for (ino, record) in &self.records {
            let names = self.links.get(ino).copied().unwrap_or(0);
            // A directory has one more for `.`; the root has no name, but its `..` is its own.
            let expected = match (record.is_dir(), *ino == ROOT) {
                (true, true) => names + 2,
                (true, false) => names + 1,
                (false, _) => names,
            };
            if record.nlink != expected {
                self.report.problem(format!("inode {ino}: {} links in its record, {expected} found", record.nlink));
            }
            if !record.is_dir() && names == 0 {
                self.report.problem(format!("inode {ino} has no name"));
            }
            let entries = self.entries.get(ino).copied().unwrap_or(0);
            if record.is_dir() && record.size != entries {
                self.report.problem(format!("directory {ino}: {} entries in its record, {entries} found", record.size));
            }
        }
    }

    /// Every directory leads up to the root.
    fn reach(&mut self) {
        let mut good: BTreeSet<Ino> = BTreeSet::from([ROOT]);
        for (ino, _) in self.records.iter().filter(|(_, record)| record.is_dir()) {
            let (mut path, mut at) = (BTreeSet::new(), *ino);
            while !good.contains(&at) && path.insert(at) {
                match self.records.get(&at) {
                    Some(record) if record.is_dir() => at = record.tag,
                    _ => break,
                }
            }
            if good.contains(&at) {
                good.extend(path);
            } else {
                self.report.problem(format!("directory {ino} does not lead to the root"));
            }
        }
    }

    fn counters(&mut self) -> Result<(), Fail> {
        let highest = self.records.keys().next_back().copied().unwrap_or(0);
        if self.tables.counter(NEXT_INO)? <= highest {
            self.report.problem(format!("inode number {highest} would be given out again"));
        }
        for (name, found) in [(USAGE, self.usage), (INODE_COUNT, self.records.len() as u64)] {
            let stored = self.tables.counter(name)?;
            if stored != found {
                self.report.problem(format!("counter {name} is {stored}, {found} found"));
            }
        }
        Ok(())
    }
}
